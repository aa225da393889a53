//! How a program ends. Scripts branch on these numbers; they never change meaning. Both programs say what went
//! wrong in one line that names the thing and the remedy.

use std::io::{Error, ErrorKind};
use std::path::Path;

/// The exit code of both programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// Done.
    Done = 0,
    /// Failed in a way that has no number of its own.
    Failed = 1,
    /// The command line is wrong, or nothing is applicable.
    Usage = 2,
    /// Bad signature or digest.
    Untrusted = 3,
    /// Rollback or expired.
    Stale = 4,
    /// Nothing arrived in time.
    NoSignal = 5,
    /// Disk full, not writable, or a read error.
    Storage = 6,
    /// The hook failed.
    Hook = 7,
    /// Try again later.
    TryAgain = 75,
}

/// An end that is not [`Outcome::Done`]: the code and the one line that names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub outcome: Outcome,
    /// One line for a person.
    pub message: String,
}

impl Failure {
    /// An end with code and line.
    pub fn new(outcome: Outcome, message: impl Into<String>) -> Self {
        Self { outcome, message: message.into() }
    }

    /// Wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Outcome::Usage, message)
    }

    /// Disk full, not writable, or a read error.
    pub fn storage(message: impl Into<String>) -> Self {
        Self::new(Outcome::Storage, message)
    }

    /// Bad signature or digest.
    pub fn untrusted(message: impl Into<String>) -> Self {
        Self::new(Outcome::Untrusted, message)
    }

    /// A file that the command line names cannot be read: a wrong command line if it does not exist.
    pub fn reading(path: &Path, error: &Error) -> Self {
        let message = format!("{}: {}", path.display(), plain(error));
        match error.kind() {
            ErrorKind::NotFound => Self::usage(format!("{message}; check the path")),
            _ => Self::storage(message),
        }
    }

    /// A file cannot be written, or not be read back.
    pub fn writing(path: &Path, error: &Error) -> Self {
        let remedy = match error.kind() {
            ErrorKind::StorageFull => "; make room, or choose another --out",
            ErrorKind::NotFound => "; does the folder exist?",
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "; choose another --out",
            _ => "",
        };
        Self::storage(format!("{}: {}{remedy}", path.display(), plain(error)))
    }
}

/// An error in plain words, without the number that the operating system gave it.
pub fn plain(error: &Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// What is wrong with a command line, in one line, from the several that an argument parser prints.
pub fn one_line(text: &str) -> String {
    let what: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    format!("{}; --help lists what is possible", what.join(" ").trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_a_wrong_command_line_and_a_broken_one_is_not() {
        let missing = Failure::reading(Path::new("x"), &Error::from(ErrorKind::NotFound));
        assert_eq!(
            (missing.outcome, missing.message.as_str()),
            (Outcome::Usage, "x: entity not found; check the path")
        );
        let full = Failure::writing(Path::new("x"), &Error::from_raw_os_error(28));
        assert_eq!(full.outcome, Outcome::Storage);
        assert!(full.message.starts_with("x: no space left on device; make room"), "{}", full.message);
    }

    #[test]
    fn a_parser_s_many_lines_become_one() {
        let text = "error: missing:\n  --out <PATH>\n\nUsage: x\n";
        assert_eq!(one_line(text), "missing: --out <PATH>; --help lists what is possible");
    }
}
