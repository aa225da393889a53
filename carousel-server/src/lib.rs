//! carousel-server: packs a file once, then sends it for ever and listens to nothing.
//!
//! What to send is a [`plan`], from flags or from a [`config`] file; [`run`] keeps a thread for each channel, inside a
//! [`sandbox`]. Beside it, [`publish`] is a process that writes down the [`status`] of what the threads [`tally`].
//! Disk to wire: [`send`] asks the schedule *what* and the pacer *when*, [`bundle`] hands the slice,
//! `carousel_proto::wire` emits the header, [`socket`] makes one system call per burst.

mod bundle;
mod cli;
mod config;
mod demo;
mod doctor;
mod folder;
mod inspect;
mod keyring;
mod keys;
mod nameserver;
mod namespace;
mod pack;
mod plan;
mod publish;
mod run;
mod sandbox;
mod send;
mod socket;
mod statements;
mod status;
#[cfg(target_pointer_width = "64")]
mod syscalls;
mod tally;
mod zone;

use carousel_proto::outcome::{Failure, Outcome, one_line};
use clap::{CommandFactory, Parser};
use std::io::Write;
use std::process::ExitCode;

/// The text of a configuration; the error says what is wrong with it in one line.
///
/// # Errors
/// [`Outcome::Usage`]. Files that it names are not looked at.
pub fn check_configuration(text: &str) -> Result<(), Failure> {
    config::Config::check(text)
}

/// The definition of the command line, from which man pages and completions are made.
pub fn command() -> clap::Command {
    cli::Arguments::command()
}

/// The program.
pub fn main() -> ExitCode {
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
        .init();
    let ended = match arguments.command {
        cli::Command::Keygen(a) => keys::keygen(&a),
        cli::Command::Pack(a) => pack::pack(&a),
        cli::Command::Seal(a) => keys::seal(&a),
        cli::Command::Keys(a) => keyring::keys(&a),
        cli::Command::Inspect(a) => inspect::inspect(&a),
        cli::Command::Run(a) => run::run(&a),
        cli::Command::Zone(a) => zone::zone(&a),
        cli::Command::Doctor(a) => doctor::doctor(&a),
        cli::Command::Demo(a) => demo::demo(&a),
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
    let _ = writeln!(std::io::stderr(), "carousel-server: {message}");
}
