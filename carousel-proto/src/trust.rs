//! Whom a receiver believes: a minisign key, a digest it was given, or (said aloud) anybody.
//!
//! minisign's format: <https://jedisct1.github.io/minisign/#signature-format>; only the prehashed form.

use crate::authority::Authority;
use crate::device::Unfit;
use crate::manifest::{Envelope, Manifest, ManifestError, SignatureAlgorithm};
use crate::outcome::Outcome;
use minisign_verify::{PublicKey, Signature};

/// What makes a manifest acceptable.
pub enum Trust {
    /// Signed by one of these keys.
    Keys(Vec<PublicKey>),
    /// Describes the object with this BLAKE3.
    Digest([u8; 32]),
    /// The first one that comes.
    Anyone,
    /// Signed by a key that counts now, and not older than what is remembered.
    Authority(Box<Authority>),
}

/// Why a manifest is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Not a manifest at all.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Signed in a way this code cannot check, or not at all.
    #[error("manifest of {name:?} is not signed by a method this program knows")]
    Unsigned {
        /// Object name as claimed.
        name: String,
    },
    /// The signature is not by any of our keys, or does not fit.
    #[error("signature of {name:?} (key {key_id}) is not by a key we trust")]
    Signature {
        /// Object name as claimed.
        name: String,
        /// Key id as claimed, the way minisign prints it.
        key_id: String,
    },
    /// Too old to begin with.
    #[error("{name:?} expired on {}; ask for a newer release", crate::units::show_moment(*.expires))]
    Expired {
        /// Object name.
        name: String,
        /// Seconds since 1970.
        expires: u64,
    },
    /// Signed by a key whose word is void.
    #[error("signature of {name:?} is by key {key_id}, which was revoked")]
    Revoked {
        /// Object name.
        name: String,
        /// Key id as claimed, the way minisign prints it.
        key_id: String,
    },
    /// Older than what this device had, or than the keys object allows.
    #[error("{name:?} is release {seq}, but nothing below {least} is taken: an old release was sent again")]
    Rollback {
        /// Object name.
        name: String,
        /// Its release sequence number.
        seq: u64,
        /// The least one that is taken.
        least: u64,
    },
    /// The keys object is too old to begin anything under it.
    #[error(
        "keys object {version} expired on {}: nothing is begun before a newer one comes",
        crate::units::show_moment(*.expires)
    )]
    KeysExpired {
        /// Its version.
        version: u64,
        /// Seconds since 1970.
        expires: u64,
    },
    /// No server says that this is still the release to take.
    #[error("no fresh heartbeat says that {name:?} is still the release to take")]
    NoHeartbeat {
        /// Object name.
        name: String,
    },
    /// Not newer than what the caller named.
    #[error("{name:?} is release {seq}: only what is newer than {than} is wanted")]
    NotNewer {
        /// Object name.
        name: String,
        /// Its release sequence number.
        seq: u64,
        /// The one that it had to be newer than.
        than: u64,
    },
    /// Well signed, but not for this device, or not now.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Another object than the one asked for.
    #[error("{name:?} has another digest than the one asked for")]
    Digest {
        /// Object name as claimed.
        name: String,
    },
}

impl TrustError {
    /// How a program ends that waited in vain for something better.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Expired { .. }
            | Self::Rollback { .. }
            | Self::KeysExpired { .. }
            | Self::NotNewer { .. }
            | Self::NoHeartbeat { .. } => Outcome::Stale,
            Self::Unfit(unfit) => unfit.outcome(),
            Self::Manifest(_)
            | Self::Unsigned { .. }
            | Self::Signature { .. }
            | Self::Revoked { .. }
            | Self::Digest { .. } => Outcome::Untrusted,
        }
    }
}

impl Trust {
    /// The manifest of an envelope, if it may be believed and has not expired at `unix_time` (seconds since
    /// 1970; 0 where there is no clock).
    pub fn check(&mut self, envelope: &Envelope<'_>, unix_time: u64) -> Result<Manifest, TrustError> {
        if let Self::Authority(authority) = self {
            return authority.check(envelope); // which has its own idea of the time
        }
        let manifest = Manifest::parse(envelope.manifest)?;
        let name = manifest.name.clone();
        match self {
            Self::Anyone | Self::Authority(_) => {}
            Self::Digest(digest) if manifest.digest == *digest => {}
            Self::Digest(_) => return Err(TrustError::Digest { name }),
            Self::Keys(keys) => {
                let signature = (envelope.algorithm == SignatureAlgorithm::Minisign as u8)
                    .then(|| parse_signature(envelope.signature))
                    .flatten()
                    .ok_or_else(|| TrustError::Unsigned { name: name.clone() })?;
                // Legacy (not prehashed) signatures are refused: one form, one meaning.
                if !keys.iter().any(|key| key.verify(envelope.manifest, &signature, false).is_ok()) {
                    let key_id = key_id(envelope.signature).unwrap_or_default();
                    return Err(TrustError::Signature { name, key_id });
                }
            }
        }
        match manifest.expires {
            Some(expires) if expires < unix_time => Err(TrustError::Expired { name, expires }),
            _ => Ok(manifest),
        }
    }
}

/// What to say of a file that should have been a public key.
pub fn not_a_public_key(text: &str) -> &'static str {
    if text.lines().any(|line| line.len() > 200) {
        "this is a secret key: keep it away from here; what is needed is the public one, PREFIX.pub"
    } else {
        "not a minisign public key"
    }
}

/// Reads the text of a minisign signature file.
pub fn parse_signature(text: &[u8]) -> Option<Signature> {
    Signature::decode(std::str::from_utf8(text).ok()?).ok()
}

/// The key id in a minisign signature, as minisign prints it (16 hexadecimal digits); `None` if the text is
/// no signature.
pub fn key_id(signature: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(signature).ok()?.lines().nth(1)?;
    // "ED" and the key id are the first 10 bytes: 14 digits of base64 hold them.
    let mut bits: u128 = 0;
    for c in line.bytes().take(14) {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u128::from(digit);
    }
    if line.len() < 14 {
        return None;
    }
    let id = (bits >> 4) as u64; // 84 bits were read: 16 of algorithm, 64 of id, 4 of what follows
    Some(format!("{:016X}", id.swap_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::sample;

    #[test]
    fn digest_and_anyone() {
        let bytes = sample().emit();
        let envelope = Envelope { manifest: &bytes, algorithm: 0, signature: b"" };
        assert!(Trust::Anyone.check(&envelope, 0).is_ok());
        assert!(Trust::Digest([7; 32]).check(&envelope, 0).is_ok());
        assert!(matches!(Trust::Digest([8; 32]).check(&envelope, 0), Err(TrustError::Digest { .. })));
        assert!(matches!(Trust::Keys(vec![]).check(&envelope, 0), Err(TrustError::Unsigned { .. })));
    }

    #[test]
    fn the_expired_is_refused() {
        let bytes = crate::manifest::Manifest { expires: Some(100), ..sample() }.emit();
        let envelope = Envelope { manifest: &bytes, algorithm: 0, signature: b"" };
        assert!(Trust::Anyone.check(&envelope, 100).is_ok());
        assert!(matches!(Trust::Anyone.check(&envelope, 101), Err(TrustError::Expired { .. })));
    }

    #[test]
    fn a_signature_that_is_none_is_refused() {
        let bytes = sample().emit();
        for text in [&b"untrusted comment: x\n\xff\xfe"[..], b"", b"a\nb\nc\nd\n"] {
            let envelope = Envelope { manifest: &bytes, algorithm: 1, signature: text };
            assert!(matches!(Trust::Keys(vec![]).check(&envelope, 0), Err(TrustError::Unsigned { .. })));
        }
    }
}
