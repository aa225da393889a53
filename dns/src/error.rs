//! Why a lookup leads to nothing: one line each, with the name and the remedy, and the exit code.

use crate::name::{Name, NameError};
use crate::resolve::TTL;
use carousel_proto::outcome::{Failure, Outcome, plain};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// When to ask again after what has no TTL: silence, failures.
pub(crate) const RETRY: Duration = Duration::from_secs(30);

/// Why a name led to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LookupError {
    /// The text is no name.
    #[error("{0}")]
    BadName(#[from] NameError),
    /// There is nothing to ask.
    #[error("no nameserver: {0}; name one with --nameserver")]
    NoNameserver(String),
    /// The file with the trust anchor cannot be read.
    #[error("{}: {}; check the path", .0.display(), plain(.1))]
    AnchorFile(PathBuf, Arc<io::Error>),
    /// The file with the trust anchor is malformed.
    #[error("{}: {}; it takes DNSKEY or DS records, as `keymgr ZONE dnskey` prints them", .0.display(), .1)]
    Anchor(PathBuf, String),
    /// No such name, or no such records.
    #[error("{name}: DNS knows of nothing to receive there ({code}); check the name, or name a --source")]
    Nothing {
        /// Asked for.
        name: Name,
        /// NXDOMAIN or "no such records".
        code: &'static str,
        /// For how long that holds.
        ttl: Duration,
    },
    /// A nameserver could not or would not answer.
    #[error("{name}: the nameserver answers {code}; try again later, or ask another with --nameserver")]
    Failed {
        /// Asked for.
        name: Name,
        /// SERVFAIL, REFUSED, …
        code: String,
    },
    /// No answer in time.
    #[error("{name}: no answer from DNS within {} s; check the network, or ask another with --nameserver", .after.as_secs_f64())]
    Timeout {
        /// Asked for.
        name: Name,
        /// The time it had.
        after: Duration,
    },
    /// The nameserver cannot be reached.
    #[error(
        "{name}: the nameserver cannot be reached: {why}; check the network, or ask another with --nameserver"
    )]
    Unreachable {
        /// Asked for.
        name: Name,
        /// What the system says.
        why: String,
    },
    /// DNSSEC says that the answer is false.
    #[error("{name}: refused, DNSSEC says that it is false: {why}; is --trust-anchor the current one?")]
    Bogus {
        /// Asked for.
        name: Name,
        /// What does not fit.
        why: String,
    },
    /// There are records, but nothing can be done with them.
    #[error("{name}: {why}; only who runs the zone can mend that")]
    Unusable {
        /// Whose records.
        name: Name,
        /// What is wrong.
        why: String,
    },
}

impl LookupError {
    /// The exit code.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Failed { .. } | Self::Timeout { .. } | Self::Unreachable { .. } => Outcome::TryAgain,
            Self::Bogus { .. } => Outcome::Untrusted,
            _ => Outcome::Usage,
        }
    }

    /// When to ask again, for those who do.
    pub fn retry_after(&self) -> Duration {
        match self {
            // A zone may say 0, or somebody on the way: that must not become a loop without a pause.
            Self::Nothing { ttl, .. } => (*ttl).clamp(TTL.0, TTL.1),
            _ => RETRY,
        }
    }

    /// What a lookup with several troubles ends with: that somebody lies, then that it may get better.
    pub(crate) fn severity(&self) -> u8 {
        match self.outcome() {
            Outcome::Untrusted => 2,
            Outcome::TryAgain => 1,
            _ => 0,
        }
    }

    /// The same without the name, for remarks that begin with it.
    pub(crate) fn why(&self) -> String {
        let line = self.to_string();
        let why = line.split_once(": ").map_or(line.as_str(), |(_, why)| why);
        why.split("; ").next().unwrap_or(why).to_owned()
    }
}

impl From<LookupError> for Failure {
    fn from(error: LookupError) -> Self {
        Self::new(error.outcome(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_asked_again_without_a_pause() {
        for (ttl, wait) in [(0, 1), (1, 1), (60, 60), (u64::from(u32::MAX), 3600)] {
            let ttl = Duration::from_secs(ttl);
            let error = LookupError::Nothing { name: Name::default(), code: "NXDOMAIN", ttl };
            assert_eq!(error.retry_after(), Duration::from_secs(wait));
        }
    }
}
