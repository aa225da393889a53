//! What the agent remembers of one item of its configuration, whatever happens to the device: a small file in JSON.

use crate::state::State;
use carousel_proto::apply::Apply;
use carousel_proto::outcome::Failure;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How far the release in the record has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// There is none.
    #[default]
    None,
    /// It has its name, and its hashes were right.
    Verified,
    /// It waits to be handed over.
    Ready,
    /// The command has been started.
    HandingOver,
    /// The command ended well; nobody has confirmed it yet.
    HandedOver,
    /// It is in use.
    Ok,
    /// It was given up.
    Failed,
}

/// A release that was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub name: String,
    pub seq: u64,
    /// BLAKE3 of the object, in hexadecimal.
    pub digest: String,
    pub size: u64,
    pub path: PathBuf,
    /// Who signed it, as minisign prints it.
    pub key_id: String,
    pub not_before: Option<u64>,
    pub jitter: Option<u32>,
    /// When it was whole, seconds since 1970.
    pub received: u64,
}

impl Release {
    /// When the publisher lets this device apply it, seconds since 1970.
    pub fn moment(&self, device: &str) -> u64 {
        let apply = Apply { not_before: self.not_before, jitter: self.jitter };
        let digest = blake3::Hash::from_hex(&self.digest).map_or([0; 32], |hash| *hash.as_bytes());
        apply.moment((&digest, self.seq), device, self.received)
    }
}

/// A release that is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    pub seq: u64,
    pub key_id: String,
    /// How often it failed.
    pub failed: u32,
}

/// Sequence numbers by the id of the key that vouched for them.
pub type Marks = BTreeMap<String, u64>;

/// Everything about one item. What a newer agent noted besides is not minded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub stage: Stage,
    pub release: Option<Release>,
    /// How often its command has been started.
    pub attempts: u32,
    /// The release that could not be received so far.
    pub receiving: Option<Attempts>,
    /// The release that could not be received at all, after which nothing newer was.
    pub unreceived: Option<u64>,
    /// What was handed over.
    #[serde(default)]
    pub installed: Marks,
    /// What is not tried again.
    #[serde(default)]
    pub given_up: Marks,
}

impl Record {
    /// Reads it; an empty one where there is none.
    pub fn read(state: &State, folder: &Path, item: &str) -> Result<Self, Failure> {
        let Some(text) = state.note(&file(item))? else { return Ok(Self::default()) };
        serde_json::from_str(&text).map_err(|_| {
            let path = folder.join(file(item));
            // To go on would be to hand the same release over again, perhaps for ever.
            Failure::storage(format!(
                "{}: damaged; remove it, and what this device has is fetched again",
                path.display()
            ))
        })
    }

    /// Writes it; after this it is on the disk.
    pub fn keep(&self, state: &State, item: &str) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Failure::storage(e.to_string()))?;
        state.keep_note(&file(item), &text)
    }

    /// What a release must be newer than to be received: key ids and sequence numbers.
    pub fn newer_than(&self) -> impl Iterator<Item = (&str, u64)> {
        let held = self.release.as_ref().filter(|_| self.stage != Stage::None);
        let held = held.map(|release| (release.key_id.as_str(), release.seq));
        let marks = self.installed.iter().chain(&self.given_up).map(|(id, seq)| (id.as_str(), *seq));
        held.into_iter().chain(marks)
    }
}

/// Raises what a key has vouched for.
pub fn raise(marks: &mut Marks, key_id: &str, seq: u64) {
    let mark = marks.entry(key_id.to_owned()).or_default();
    *mark = seq.max(*mark);
}

fn file(item: &str) -> String {
    format!("watch-{item}.json")
}
