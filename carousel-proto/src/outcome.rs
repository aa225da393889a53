//! How a program ends. Scripts branch on these numbers; they never change meaning.

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
}
