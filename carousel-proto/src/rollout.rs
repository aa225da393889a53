//! Phased rollout without a word from any device: which of them begin with a release, and when. PROTOCOL.md section
//! 4.13.
//!
//! The signed schedule says which share of the fleet may have the release from which moment on. Each device draws a
//! number from its own id and the release's salt, always the same one, and is among the first share if the number is
//! below it. So nobody is asked, nobody keeps a list, and whoever was picked stays picked when the share grows.

/// Most steps of a schedule: it lies in the manifest.
pub const MAX_STEPS: usize = 16;
/// The share of everybody. Shares are counted in ten-thousandths.
pub const EVERYBODY: u16 = 10_000;
/// Bytes of a salt.
pub const SALT_LEN: usize = 16;

const DRAW_KEY: &[u8; 32] = b"carousel v1 rollout draw        ";
const SALT_KEY: &[u8; 32] = b"carousel v1 rollout salt        ";

/// Manifest key 17: the schedule. CBOR keys are the numbers behind `n`.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Rollout {
    /// 1: what makes each release pick other devices.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub salt: [u8; SALT_LEN],
    /// 2: the steps, in the order of time.
    #[n(2)]
    pub steps: Vec<Step>,
}

/// From a moment on, this share of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Step {
    /// Seconds since 1970-01-01 UTC.
    #[n(0)]
    pub time: u64,
    /// Ten-thousandths of the fleet.
    #[n(1)]
    pub share: u16,
}

/// Why a schedule is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RolloutError {
    /// Not the CBOR that is expected.
    #[error("not readable: {0}")]
    Cbor(String),
    /// No step, or too many.
    #[error("{0} steps; a schedule has 1 to {MAX_STEPS}")]
    Steps(usize),
    /// A share of nobody, or of more than everybody.
    #[error("a share of {0} ten-thousandths; it is more than 0 % and at most 100 %")]
    Share(u16),
    /// A step that is not after the one before it, or takes less than that.
    #[error("the step at {} does not come after the one before it with a greater share", crate::units::show_moment(*.0))]
    Order(u64),
}

impl Rollout {
    /// Reads and checks a schedule. Unknown keys are ignored.
    pub fn parse(bytes: &[u8]) -> Result<Self, RolloutError> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let rollout: Self = decoder.decode().map_err(|e| RolloutError::Cbor(e.to_string()))?;
        if decoder.position() != bytes.len() {
            return Err(RolloutError::Cbor("something follows it".into()));
        }
        rollout.validate()?;
        Ok(rollout)
    }

    /// The bytes of manifest key 17.
    pub fn emit(&self) -> Vec<u8> {
        // Writing into a Vec cannot fail.
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// Checks the steps.
    pub fn validate(&self) -> Result<(), RolloutError> {
        if self.steps.is_empty() || self.steps.len() > MAX_STEPS {
            return Err(RolloutError::Steps(self.steps.len()));
        }
        if let Some(step) = self.steps.iter().find(|step| step.share == 0 || step.share > EVERYBODY) {
            return Err(RolloutError::Share(step.share));
        }
        let grows = |pair: &&[Step]| pair[0].time < pair[1].time && pair[0].share < pair[1].share;
        match self.steps.windows(2).find(|pair| !grows(pair)) {
            Some(pair) => Err(RolloutError::Order(pair[1].time)),
            None => Ok(()),
        }
    }

    /// The moment from which a device may begin, seconds since 1970; `None`: no step takes it in.
    pub fn begins(&self, device: &str) -> Option<u64> {
        let drawn = self.draw(device);
        self.steps.iter().find(|step| drawn < step.share).map(|step| step.time)
    }

    /// Whether a device may begin at a moment, seconds since 1970.
    pub fn picks(&self, device: &str, now: u64) -> bool {
        self.begins(device).is_some_and(|time| time <= now)
    }

    /// Which of the [`EVERYBODY`] equal parts of the fleet a device is in.
    pub fn draw(&self, device: &str) -> u16 {
        let mut hasher = blake3::Hasher::new_keyed(DRAW_KEY);
        hasher.update(&self.salt).update(device.as_bytes());
        part_of(&hasher.finalize(), u64::from(EVERYBODY)) as u16
    }
}

/// The salt of a release whose packer gave none: the same bytes whenever it is packed.
pub fn salt_of(digest: &[u8; 32], seq: u64) -> [u8; SALT_LEN] {
    salt(&[&digest[..], &seq.to_be_bytes()].concat())
}

/// The salt that follows from a word: releases with the same word pick the same devices first.
pub fn salt_from(word: &str) -> [u8; SALT_LEN] {
    salt(word.as_bytes())
}

fn salt(bytes: &[u8]) -> [u8; SALT_LEN] {
    let mut salt = [0; SALT_LEN];
    salt.copy_from_slice(&blake3::keyed_hash(SALT_KEY, bytes).as_bytes()[..SALT_LEN]);
    salt
}

/// Which of so many equal parts of all hashes this one is in, from 0 on.
pub(crate) fn part_of(hash: &blake3::Hash, parts: u64) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    ((u128::from(u64::from_be_bytes(first)) * u128::from(parts)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rollout(steps: &[(u64, u16)]) -> Rollout {
        let steps = steps.iter().map(|&(time, share)| Step { time, share }).collect();
        Rollout { salt: salt_of(&[7; 32], 42), steps }
    }

    fn picked(rollout: &Rollout, now: u64) -> Vec<String> {
        let ids = (0..10_000).map(|n| format!("device-{n}"));
        ids.filter(|id| rollout.picks(id, now)).collect()
    }

    /// The bar of issue 7.
    #[test]
    fn a_tenth_of_ten_thousand_the_same_every_time_and_a_superset_later() {
        let tenth = rollout(&[(1_000, 1_000)]);
        let fifth = rollout(&[(1_000, 1_000), (2_000, 2_000)]);
        let first = picked(&tenth, 1_000);
        assert!((900..=1_100).contains(&first.len()), "{}", first.len());
        assert_eq!(first, picked(&tenth, 1_000_000), "the same every time");
        assert_eq!(first, picked(&fifth, 1_999), "… also by a schedule that goes on");
        let second = picked(&fifth, 2_000);
        assert!((1_900..=2_100).contains(&second.len()), "{}", second.len());
        assert!(first.iter().all(|id| second.contains(id)), "no superset");
        // Another release picks others first: of a tenth, a tenth again is chance.
        let other = Rollout { salt: salt_of(&[7; 32], 43), ..tenth };
        let both = picked(&other, 1_000).iter().filter(|id| first.contains(id)).count();
        assert!((50..=160).contains(&both), "{both}");
    }

    #[test]
    fn nobody_before_the_first_step_and_everybody_at_a_hundred_per_cent() {
        let all = rollout(&[(1_000, 1), (2_000, EVERYBODY)]);
        assert_eq!(picked(&all, 999), [""; 0]);
        assert_eq!(picked(&all, 2_000).len(), 10_000);
        assert_eq!(picked(&rollout(&[(0, EVERYBODY)]), 0).len(), 10_000);
    }

    #[test]
    fn the_moment_is_that_of_the_first_step_that_takes_it_in() {
        let r = rollout(&[(10, 100), (20, 5_000)]);
        for id in (0..100).map(|n| n.to_string()) {
            let expected = match r.draw(&id) {
                0..100 => Some(10),
                100..5_000 => Some(20),
                _ => None,
            };
            assert_eq!(r.begins(&id), expected);
        }
    }

    #[test]
    fn emit_and_parse_mirror_each_other_and_what_is_impossible_is_refused() {
        let good = rollout(&[(1, 100), (2, 10_000)]);
        assert_eq!(Rollout::parse(&good.emit()), Ok(good.clone()));
        let refused = |steps: &[(u64, u16)]| Rollout::parse(&rollout(steps).emit()).unwrap_err();
        assert_eq!(refused(&[]), RolloutError::Steps(0));
        assert_eq!(refused(&[(1, 1); 17]), RolloutError::Steps(17));
        assert_eq!(refused(&[(1, 0)]), RolloutError::Share(0));
        assert_eq!(refused(&[(1, 10_001)]), RolloutError::Share(10_001));
        assert_eq!(refused(&[(2, 100), (2, 200)]), RolloutError::Order(2));
        assert_eq!(refused(&[(2, 200), (3, 200)]), RolloutError::Order(3));
        let more = [good.emit(), vec![0]].concat();
        assert!(matches!(Rollout::parse(&more), Err(RolloutError::Cbor(_))));
        assert!(matches!(Rollout::parse(b"rollout"), Err(RolloutError::Cbor(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(rollout) = Rollout::parse(&bytes) {
                prop_assert!(rollout.draw("x") < EVERYBODY);
            }
        }
    }
}
