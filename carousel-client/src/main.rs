//! carousel-client: takes a file from a carousel, from any moment on, and never sends a packet to it.
//!
//! [`get`] sets up: [`belief`] says whom to believe, [`target`] where the object goes, [`discovery`] asks DNS what there
//! is, [`tuner`] decides which of it is joined. Wire to disk: [`ssm`] joins and
//! [`receive`] waits for batches of packets; `carousel_proto` parses and judges them; [`engine`] does what its receiver
//! says: [`writer`] puts symbols into the work file, [`decode`] completes the blocks, both in [`places`] in a file or on
//! a [`device`]; [`folder`] takes a whole folder apart; [`report`] tells people and programs, [`status`] those who look at
//! files that [`publish`] writes. One loop, one direction. All of it in a [`sandbox`], but for the
//! command at the end, which has a process of its own: [`hook`]. The agent, [`watch`], stands beside all that: it starts
//! this program for each transfer and reads what it says. [`doctor`] listens instead, and says what is wrong.

mod belief;
mod clock;
mod decode;
mod device;
#[cfg(feature = "dns")]
mod discovery;
mod doctor;
mod engine;
mod folder;
mod get;
mod hook;
mod interface;
mod journal;
mod places;
mod publish;
mod receive;
mod report;
mod sandbox;
mod silence;
mod ssm;
mod state;
mod status;
mod target;
mod thread;
mod tuner;
#[cfg(feature = "watch")]
mod watch;
mod writer;

use carousel_client::cli;
use carousel_proto::outcome::{Failure, Outcome, one_line};
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            if !error.use_stderr() {
                let _ = error.print(); // --help or --version
                return ExitCode::SUCCESS;
            }
            say(&one_line(&error.render().to_string()));
            return ExitCode::from(Outcome::Usage as u8);
        }
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .log_internal_errors(false) // on a full disk it would panic over a remark
        .with_target(false)
        .without_time()
        .with_max_level(arguments.log_level())
        .finish()
        // The resolver's remarks on odd answers are for its makers; ours name the thing and the remedy.
        .with(Targets::new().with_default(arguments.log_level()).with_target("hickory", LevelFilter::OFF))
        .init();
    let ended = match arguments.command {
        cli::Command::Get(a) => get::get(&a),
        #[cfg(feature = "dns")]
        cli::Command::Discover(a) => discovery::discover(&a),
        #[cfg(feature = "watch")]
        cli::Command::Watch(a) => watch::watch(&a),
        cli::Command::Doctor(a) => doctor::doctor(&a),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { outcome, message }) => {
            // A report has said everything.
            if !message.is_empty() {
                say(&message);
            }
            ExitCode::from(outcome as u8)
        }
    }
}

/// The last word. Where stderr takes none, the exit code has to do.
fn say(message: &str) {
    let _ = writeln!(std::io::stderr(), "carousel-client: {message}");
}
