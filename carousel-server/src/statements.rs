//! What a server sends in some of the manifests' places: keys objects, and heartbeats that it signs itself.
//!
//! The heartbeat's key is the one secret that a server may hold. It installs nothing.

use crate::bundle::Bundle;
use crate::keyring::read_keys;
use crate::keys::{ReleaseKey, read_secret_key, sign_text};
use carousel_proto::heartbeat::Heartbeat;
use carousel_proto::keys::SignedKeys;
use carousel_proto::outcome::Failure;
use carousel_proto::schedule::{Statement, statement};
use carousel_proto::signature::Signature;
use carousel_proto::wire::{Kind, Slot, record_header};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds that a heartbeat counts, where nobody says otherwise.
const LIFE: u64 = 86_400;
/// A heartbeat is signed anew after so many seconds, or a tenth of its life if that is less.
const SIGN_EVERY: u64 = 60;

/// Where keys objects and the heartbeat's key lie.
#[derive(Debug, Clone, Default)]
pub struct Files {
    pub keys: Vec<PathBuf>,
    pub heartbeat_key: Option<PathBuf>,
    pub heartbeat_life: Option<u64>,
}

/// The same, read.
pub struct Signed {
    keys: Vec<SignedKeys>,
    heartbeat: Option<(Arc<ReleaseKey>, u64)>,
}

/// All that goes into the manifests' places of one bundle.
pub struct Statements {
    /// Records of keys objects.
    keys: Vec<Vec<u8>>,
    heartbeat: Option<Pulse>,
}

struct Pulse {
    key: Arc<ReleaseKey>,
    life: u64,
    manifest: Vec<u8>,
    /// Of each packet: all of it before the body, and the length of the body.
    header: Vec<u8>,
    symbol_len: usize,
    /// The record as it is sent, and when it was signed.
    latest: Mutex<(u64, Arc<[u8]>)>,
}

impl Files {
    /// These, and for what they leave open, the other.
    pub fn or(self, other: Self) -> Self {
        Self {
            keys: if self.keys.is_empty() { other.keys } else { self.keys },
            heartbeat_key: self.heartbeat_key.or(other.heartbeat_key),
            heartbeat_life: self.heartbeat_life.or(other.heartbeat_life),
        }
    }

    /// All of them.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.keys.iter().chain(&self.heartbeat_key)
    }

    /// Reads all of them.
    pub fn read(&self) -> Result<Signed, Failure> {
        let mut keys: Vec<SignedKeys> = Vec::new();
        for path in &self.keys {
            let signed = read_keys(path)?;
            let untrusted = |e| Failure::untrusted(format!("{}: {e}", path.display()));
            signed.is_signed().map_err(untrusted)?;
            keys.push(signed);
        }
        let heartbeat = match &self.heartbeat_key {
            Some(path) => Some((Arc::new(read_secret_key(path)?), self.heartbeat_life.unwrap_or(LIFE))),
            None => None,
        };
        if let (Some(newest), Some((key, _))) =
            (keys.iter().max_by_key(|signed| signed.keys.version), &heartbeat)
            && !newest.keys.heartbeat.iter().any(|known| known.id() == key.id())
        {
            return Err(Failure::usage(format!(
                "heartbeat key {} is not in keys object {}: no device would believe it",
                key.id(),
                newest.keys.version
            )));
        }
        Ok(Signed { keys, heartbeat })
    }
}

impl Signed {
    /// What of it a bundle's channels send.
    pub fn statements(&self, bundle: &Bundle) -> Result<Statements, Failure> {
        let header = record_header(bundle.manifest.size, 0, Slot(0)).to_vec();
        let symbol_len = usize::from(bundle.manifest.symbol_len);
        let record = |signed: &SignedKeys| {
            let body = signed.emit().map_err(|e| Failure::usage(e.to_string()))?;
            Ok(filled(&header, &body, symbol_len))
        };
        let keys = self.keys.iter().map(record).collect::<Result<_, Failure>>()?;
        let heartbeat = self.heartbeat.as_ref().map(|(key, life)| Pulse {
            key: Arc::clone(key),
            life: *life,
            manifest: bundle.manifest_bytes().to_vec(),
            header: header.clone(),
            symbol_len,
            latest: Mutex::new((0, Arc::from([]))),
        });
        Ok(Statements { keys, heartbeat })
    }
}

impl Statements {
    /// The heartbeat of this moment, if there are heartbeats.
    pub fn heartbeat(&self) -> Option<Arc<[u8]>> {
        self.heartbeat.as_ref().map(Pulse::record)
    }

    /// What stands at a manifest's place instead of it, if anything does.
    pub fn instead<'a>(&'a self, number: u64, heartbeat: Option<&'a [u8]>) -> Option<(Kind, &'a [u8])> {
        match statement(number, heartbeat.is_some(), self.keys.len()) {
            Statement::Manifest => None,
            Statement::Heartbeat => heartbeat.map(|record| (Kind::Heartbeat, record)),
            Statement::Keys(index) => self.keys.get(index).map(|record| (Kind::Keys, &record[..])),
        }
    }

    /// Whether the other one says the same.
    pub fn is_same(&self, other: &Self) -> bool {
        let who = |s: &Self| s.heartbeat.as_ref().map(|pulse| (pulse.key.id(), pulse.life));
        self.keys == other.keys && who(self) == who(other)
    }
}

impl Pulse {
    fn record(&self) -> Arc<[u8]> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let (signed, record) = &*latest;
        // A clock that was set back must not silence it.
        let is_fresh = (*signed..*signed + SIGN_EVERY.min(self.life / 10).max(1)).contains(&now);
        if !record.is_empty() && is_fresh {
            return Arc::clone(record);
        }
        let heartbeat = Heartbeat::new(&self.manifest, now, self.life);
        let signature = sign_text(&heartbeat.emit(), "carousel heartbeat", &self.key).ok();
        let signature = signature.and_then(|text| Signature::from_minisign(text.as_bytes()));
        let Some(signature) = signature else { return Arc::clone(record) }; // cannot be: 3 short lines of text
        *latest = (now, filled(&self.header, &heartbeat.seal(signature), self.symbol_len).into());
        Arc::clone(&latest.1)
    }
}

/// Header and body of a record, and zeros.
fn filled(header: &[u8], body: &[u8], symbol_len: usize) -> Vec<u8> {
    let mut record = [header, body].concat();
    record.resize(header.len() + symbol_len, 0);
    record
}
