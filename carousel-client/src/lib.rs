//! The command line of `carousel-client`, for the program and for who makes documents of it. All else is the program.

#[allow(missing_docs)] // its comments are the help texts
pub mod cli;

use clap::CommandFactory;

/// The definition, from which man pages and completions are made.
pub fn command() -> clap::Command {
    cli::Arguments::command()
}
