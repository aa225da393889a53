//! When a device applies what it has received: not before a moment, and not all devices in the same second. PROTOCOL.md
//! section 4.14.

use crate::manifest::Manifest;
use crate::rollout::part_of;

/// The longest jitter: four weeks.
pub const MAX_JITTER: u32 = 28 * 86_400;

const JITTER_KEY: &[u8; 32] = b"carousel v1 apply jitter        ";

/// Manifest key 18. CBOR keys are the numbers behind `n`; absent values are left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Apply {
    /// 1: nobody before this moment, seconds since 1970-01-01 UTC.
    #[n(1)]
    pub not_before: Option<u64>,
    /// 2: over so many seconds after it, or after the device was ready, devices spread.
    #[n(2)]
    pub jitter: Option<u32>,
}

/// Why bytes do not say when to apply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Not the CBOR that is expected.
    #[error("not readable: {0}")]
    Cbor(String),
    /// Longer than [`MAX_JITTER`].
    #[error("a jitter of {0} s; at most {MAX_JITTER} s (28 days) are possible")]
    Jitter(u32),
}

impl Apply {
    /// Reads and checks it. Unknown keys are ignored.
    pub fn parse(bytes: &[u8]) -> Result<Self, ApplyError> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let apply: Self = decoder.decode().map_err(|e| ApplyError::Cbor(e.to_string()))?;
        if decoder.position() != bytes.len() {
            return Err(ApplyError::Cbor("something follows it".into()));
        }
        apply.validate()?;
        Ok(apply)
    }

    /// What a manifest says of it; the default where it says nothing.
    pub fn of(manifest: &Manifest) -> Result<Self, ApplyError> {
        manifest.apply.as_deref().map_or(Ok(Self::default()), Self::parse)
    }

    /// The bytes of manifest key 18.
    pub fn emit(&self) -> Vec<u8> {
        // Writing into a Vec cannot fail.
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// Checks the jitter.
    pub fn validate(&self) -> Result<(), ApplyError> {
        match self.jitter {
            Some(jitter) if jitter > MAX_JITTER => Err(ApplyError::Jitter(jitter)),
            _ => Ok(()),
        }
    }

    /// The moment from which a device may apply a release that it had whole at `ready`, both in seconds since 1970. It
    /// is the same however often it is asked for, also after a restart.
    pub fn moment(&self, release: (&[u8; 32], u64), device: &str, ready: u64) -> u64 {
        let (digest, seq) = release;
        let mut hasher = blake3::Hasher::new_keyed(JITTER_KEY);
        hasher.update(digest).update(&seq.to_be_bytes()).update(device.as_bytes());
        let delay = part_of(&hasher.finalize(), u64::from(self.jitter.unwrap_or(0)) + 1);
        // Where no moment is given, the one in which this device was ready: late devices spread as well.
        self.not_before.unwrap_or(ready).saturating_add(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RELEASE: (&[u8; 32], u64) = (&[7; 32], 42);

    #[test]
    fn devices_spread_over_the_jitter_and_each_keeps_its_moment() {
        let apply = Apply { not_before: Some(1_000), jitter: Some(99) };
        let mut tenths = [0; 10];
        for id in (0..1_000).map(|n| n.to_string()) {
            let moment = apply.moment(RELEASE, &id, 5);
            assert_eq!(moment, apply.moment(RELEASE, &id, 77), "it depends on when the device was ready");
            assert!((1_000..1_100).contains(&moment));
            tenths[(moment as usize - 1_000) / 10] += 1;
        }
        assert!(tenths.iter().all(|n| (60..140).contains(n)), "{tenths:?}");
    }

    #[test]
    fn without_a_moment_it_counts_from_when_the_device_was_ready() {
        assert_eq!(Apply::default().moment(RELEASE, "a", 5), 5);
        let apply = Apply { jitter: Some(10), ..Apply::default() };
        assert!((5..=15).contains(&apply.moment(RELEASE, "a", 5)));
        let late = Apply { not_before: Some(u64::MAX), jitter: Some(10) };
        assert_eq!(late.moment(RELEASE, "a", 5), u64::MAX);
    }

    #[test]
    fn emit_and_parse_mirror_each_other_and_what_is_impossible_is_refused() {
        for apply in [
            Apply::default(),
            Apply { not_before: Some(7), jitter: None },
            Apply { not_before: None, jitter: Some(MAX_JITTER) },
        ] {
            assert_eq!(Apply::parse(&apply.emit()), Ok(apply));
        }
        let long = Apply { not_before: None, jitter: Some(MAX_JITTER + 1) };
        assert_eq!(Apply::parse(&long.emit()), Err(ApplyError::Jitter(MAX_JITTER + 1)));
        assert!(matches!(Apply::parse(b"apply"), Err(ApplyError::Cbor(_))));
        assert!(matches!(Apply::parse(&[0xa0, 0]), Err(ApplyError::Cbor(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Apply::parse(&bytes);
        }
    }
}
