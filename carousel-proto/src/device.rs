//! Whether a release that may be believed is meant for this device, and for now. PROTOCOL.md sections 4.12 to 4.14.
//!
//! It is not a question of trust: whoever signs may leave devices out, and whoever takes an object by hand takes it
//! whatever it is meant for. Hence a device that says nothing of itself is fit for everything.

use crate::apply::{Apply, ApplyError};
use crate::manifest::Manifest;
use crate::outcome::Outcome;
use crate::rollout::{Rollout, RolloutError};
use crate::table::Shown;
use crate::units::show_moment;

/// Longest device id, in bytes.
pub const MAX_ID_LEN: usize = 255;

/// What a device says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// The kinds of device that it is. None: it takes what is meant for any.
    pub compatible: Vec<String>,
    /// Its own name in rollouts. `None`: it does not go by rollouts.
    pub id: Option<String>,
}

/// Why a release is not for this device, or not now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// For other kinds of device.
    #[error("{name:?}, release {seq}, is for {}, not for {}", shown(wanted), own.join(", "))]
    Compatible {
        /// Object name.
        name: String,
        /// Its release sequence number.
        seq: u64,
        /// What it is for.
        wanted: Vec<String>,
        /// What the device is.
        own: Vec<String>,
    },
    /// Its rollout is not understood.
    #[error("the rollout of {name:?}, release {seq}, is {why}: it is not for this program")]
    Rollout {
        /// Object name.
        name: String,
        /// Its release sequence number.
        seq: u64,
        /// What is wrong.
        why: RolloutError,
    },
    /// When to apply it is not understood.
    #[error("when to apply {name:?}, release {seq}, is {why}: it is not for this program")]
    Apply {
        /// Object name.
        name: String,
        /// Its release sequence number.
        seq: u64,
        /// What is wrong.
        why: ApplyError,
    },
    /// Its rollout does not take this device in yet.
    #[error("{name:?}, release {seq}, is rolled out in steps: {}", turn(*.begins))]
    NotYet {
        /// Object name.
        name: String,
        /// Its release sequence number.
        seq: u64,
        /// When this device is taken in, seconds since 1970; `None`: by no step.
        begins: Option<u64>,
    },
}

/// In one line, whatever a manifest has in it.
fn shown(kinds: &[String]) -> String {
    let kinds: Vec<String> = kinds.iter().map(|kind| Shown(kind.clone().into_bytes()).to_string()).collect();
    kinds.join(", ")
}

fn turn(begins: Option<u64>) -> String {
    match begins {
        Some(time) => format!("this device has its turn on {}", show_moment(time)),
        None => "no step takes this device in so far".to_owned(),
    }
}

impl Unfit {
    /// How a program ends that waited in vain for something better.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotYet { .. } => Outcome::TryAgain,
            Self::Compatible { .. } | Self::Rollout { .. } | Self::Apply { .. } => Outcome::Usage,
        }
    }
}

impl Device {
    /// Whether a release is for this device at `now`, seconds since 1970.
    pub fn judge(&self, manifest: &Manifest, now: u64) -> Result<(), Unfit> {
        let (name, seq) = (|| manifest.name.clone(), manifest.seq);
        let wanted = manifest.compatible.as_deref().unwrap_or_default();
        let fits = |kind: &String| self.compatible.contains(kind);
        if !self.compatible.is_empty() && !wanted.is_empty() && !wanted.iter().any(fits) {
            let (wanted, own) = (wanted.to_vec(), self.compatible.clone());
            return Err(Unfit::Compatible { name: name(), seq, wanted, own });
        }
        let Some(id) = &self.id else { return Ok(()) };
        Apply::of(manifest).map_err(|why| Unfit::Apply { name: name(), seq, why })?;
        let Some(bytes) = &manifest.rollout else { return Ok(()) };
        let rollout = Rollout::parse(bytes).map_err(|why| Unfit::Rollout { name: name(), seq, why })?;
        match rollout.begins(id) {
            Some(time) if time <= now => Ok(()),
            begins => Err(Unfit::NotYet { name: name(), seq, begins }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::sample;
    use crate::rollout::{EVERYBODY, Step};

    fn device(compatible: &[&str], id: Option<&str>) -> Device {
        Device { compatible: compatible.iter().map(|k| k.to_string()).collect(), id: id.map(str::to_owned) }
    }

    fn for_kinds(kinds: Option<&[&str]>) -> Manifest {
        Manifest { compatible: kinds.map(|k| k.iter().map(|k| k.to_string()).collect()), ..sample() }
    }

    #[test]
    fn one_kind_in_common_is_enough() {
        for (own, wanted, fits) in [
            (&["board-a"][..], Some(&["board-a"][..]), true),
            (&["x", "board-a"], Some(&["board-a", "board-b"]), true),
            (&["board-c"], Some(&["board-a", "board-b"]), false),
            (&["board"], Some(&["board-a"]), false),
            (&["board-c"], Some(&[]), true),
            (&["board-c"], None, true),
            (&[], Some(&["board-a"]), true),
        ] {
            let judged = device(own, None).judge(&for_kinds(wanted), 0);
            assert_eq!(judged.is_ok(), fits, "{own:?} {wanted:?}");
            if let Err(unfit) = judged {
                assert_eq!(unfit.outcome(), Outcome::Usage);
                assert!(unfit.to_string().contains("board-a, board-b") || own == ["board"], "{unfit}");
            }
        }
    }

    #[test]
    fn what_a_manifest_says_fits_one_line() {
        let refused = device(&["a"], None).judge(&for_kinds(Some(&["b\n\u{1b}[2J"])), 0).unwrap_err();
        assert!(refused.to_string().ends_with("is for b\\n\\u{1b}[2J, not for a"), "{refused}");
    }

    #[test]
    fn steps_are_waited_for() {
        let steps = vec![Step { time: 1_000, share: 1 }, Step { time: 2_000, share: EVERYBODY }];
        let rollout = Rollout { salt: [1; 16], steps };
        let manifest = Manifest { rollout: Some(rollout.emit()), ..for_kinds(None) };
        let d = device(&[], Some("somebody"));
        assert_eq!(rollout.begins("somebody"), Some(2_000));
        let refused = d.judge(&manifest, 1_999).unwrap_err();
        assert_eq!(refused.outcome(), Outcome::TryAgain);
        assert!(refused.to_string().contains("1970-01-01 00:33:20 UTC"), "{refused}");
        assert_eq!(d.judge(&manifest, 2_000), Ok(()));
        assert_eq!(device(&[], None).judge(&manifest, 0), Ok(()), "who has no id goes by no rollout");
        let some = Rollout { salt: [1; 16], steps: vec![Step { time: 0, share: 1 }] };
        let manifest = Manifest { rollout: Some(some.emit()), ..sample() };
        assert!(matches!(d.judge(&manifest, u64::MAX), Err(Unfit::NotYet { begins: None, .. })));
    }

    #[test]
    fn what_is_not_understood_is_not_for_us() {
        let d = device(&[], Some("somebody"));
        let rollout = Manifest { rollout: Some(b"rollout".to_vec()), ..sample() };
        let apply = Manifest { apply: Some(b"apply".to_vec()), ..sample() };
        assert!(matches!(d.judge(&rollout, 0), Err(Unfit::Rollout { .. })));
        assert!(matches!(d.judge(&apply, 0), Err(Unfit::Apply { .. })));
        assert_eq!(device(&[], None).judge(&rollout, 0), Ok(()));
    }
}
