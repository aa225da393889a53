//! Whom and what a device believes over the years: the keys object it was given and those that follow, heartbeats, and
//! what it remembers of accepted releases. PROTOCOL.md sections 4.8 to 4.10.
//!
//! Three dangers, three memories. A stolen key: the keys object says which keys count, and a revoked one's word is void,
//! also what it made the device remember. An old release sold as new: the greatest sequence number of each name is
//! kept. A network that withholds the new release: a heartbeat must be fresh before anything is begun. What has
//! expired is not begun; nothing is ever destroyed.

use crate::heartbeat::Heartbeat;
use crate::keys::{Keys, KeysError, SignedKeys};
use crate::manifest::{Envelope, Manifest, SignatureAlgorithm};
use crate::signature::{Key, KeyId, Signature};
use crate::trust::TrustError;
use std::collections::BTreeMap;

/// Heartbeats that are kept: one for each release that may be on the air at the same time, and some.
const HEARTBEATS: usize = 8;
/// Keys that are remembered with what they vouched for. More than a fleet uses in decades.
const MAX_MARKS: usize = 64;

/// The greatest number that each key has vouched for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks(Vec<(KeyId, u64)>);

impl Marks {
    /// Reads lines of key id and number.
    pub fn parse(text: &str) -> Option<Self> {
        let mut marks = Self::default();
        for line in text.lines() {
            let (id, number) = line.split_once(' ')?;
            marks.raise(KeyId::parse(id)?, number.parse().ok()?);
        }
        Some(marks)
    }

    /// Writes them.
    pub fn emit(&self) -> String {
        self.0.iter().map(|(id, number)| format!("{id} {number}\n")).collect()
    }

    /// Raises a key's number, if it is greater.
    pub fn raise(&mut self, id: KeyId, number: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == id) {
            Some((_, known)) => *known = number.max(*known),
            None => {
                if self.0.len() == MAX_MARKS {
                    self.0.remove(0);
                }
                self.0.push((id, number));
            }
        }
    }

    /// Raises all numbers to those of the other.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(id, number)| self.raise(*id, *number));
    }

    /// The greatest number; the word of revoked keys is void.
    fn greatest(&self, keys: &Keys) -> u64 {
        self.latest(keys).unwrap_or(0)
    }

    /// The same; `None` where no key that counts has vouched for any.
    fn latest(&self, keys: &Keys) -> Option<u64> {
        let good = self.0.iter().filter(|(id, _)| !keys.is_revoked(*id));
        good.map(|(_, number)| *number).max()
    }

    /// Keys and their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (KeyId, u64)> + '_ {
        self.0.iter().copied()
    }
}

/// What outlives a program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Moments that signatures told of, seconds since 1970: it cannot be earlier now.
    pub times: Marks,
    /// Release sequence numbers, by object name.
    pub releases: BTreeMap<String, Marks>,
}

/// Whom a device believes, and what it knows.
#[derive(Debug)]
pub struct Authority {
    keys: Keys,
    /// The user wants a heartbeat, whatever the keys object says.
    wants_heartbeat: bool,
    memory: Memory,
    /// What a release must be newer than, whatever its name.
    newer_than: Marks,
    /// The same, whoever vouched for it.
    newer_than_any: Option<u64>,
    /// The device's clock when the program began, seconds since 1970; 0 if it has none.
    clock: u64,
    /// Seconds since then.
    elapsed: u64,
    /// The moments that signatures told of, less the seconds that the program had run when they came.
    told: Marks,
    /// The same of keys objects.
    told_by_keys: u64,
    heartbeats: Vec<Heard>,
    /// The release that was accepted: who signed it, its name and number.
    accepted: Option<Accepted>,
}

/// Who signed a release, its name and number.
pub(crate) type Accepted = (KeyId, String, u64);

/// A good heartbeat.
#[derive(Debug)]
struct Heard {
    manifest: [u8; 32],
    expires: u64,
    by: KeyId,
}

impl Authority {
    /// By a keys object, which the caller believes.
    pub fn new(keys: Keys, memory: Memory, clock: u64) -> Self {
        Self {
            told: memory.times.clone(),
            told_by_keys: keys.created,
            keys,
            wants_heartbeat: false,
            memory,
            newer_than: Marks::default(),
            newer_than_any: None,
            clock,
            elapsed: 0,
            heartbeats: Vec::new(),
            accepted: None,
        }
    }

    /// By these release keys for ever: no other ones come after them.
    pub fn pinned(release: Vec<Key>, memory: Memory, clock: u64) -> Self {
        let none = Keys {
            format: String::new(),
            version: u64::MAX,
            created: 0,
            expires: None,
            threshold: 0,
            roots: Vec::new(),
            release,
            heartbeat: Vec::new(),
            revoked: Vec::new(),
            floors: Vec::new(),
            needs_heartbeat: false,
        };
        Self::new(none, memory, clock)
    }

    /// Begins nothing without a fresh heartbeat, whatever the keys object says.
    pub fn require_heartbeat(&mut self) {
        self.wants_heartbeat = true;
    }

    /// Takes only what is newer than this, whatever its name: as long as the key that vouched for it is not revoked, or
    /// for good where none is named.
    pub fn require_newer(&mut self, than: u64, by: Option<KeyId>) {
        match by {
            Some(by) => self.newer_than.raise(by, than),
            None => self.newer_than_any = self.newer_than_any.max(Some(than)),
        }
    }

    /// Who signed the release that was accepted.
    pub fn signer(&self) -> Option<KeyId> {
        self.accepted.as_ref().map(|(by, _, _)| *by)
    }

    /// The keys object that counts.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What is to be remembered.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// How many seconds the program has run.
    pub fn handle_time(&mut self, elapsed: u64) {
        self.elapsed = self.elapsed.max(elapsed);
    }

    /// Seconds since 1970, at least: by the clock, or by the latest that any signature told of, if that is later. A
    /// device without a clock knows this much.
    pub fn now(&self) -> u64 {
        let told = self.told.greatest(&self.keys).max(self.told_by_keys);
        self.elapsed.saturating_add(self.clock.max(told))
    }

    fn note_time(&mut self, by: KeyId, time: u64) {
        self.memory.times.raise(by, time);
        self.told.raise(by, time.saturating_sub(self.elapsed));
    }

    /// The manifest of an envelope, if it may be begun with.
    pub fn check(&mut self, envelope: &Envelope<'_>) -> Result<Manifest, TrustError> {
        let manifest = Manifest::parse(envelope.manifest)?;
        let name = || manifest.name.clone();
        let signature = (envelope.algorithm == SignatureAlgorithm::Minisign as u8)
            .then(|| Signature::of_manifest(envelope.signature))
            .flatten()
            .ok_or_else(|| TrustError::Unsigned { name: name() })?;
        let by = signature.id;
        self.check_key(by, &manifest.name)?;
        let is_good = |key: &Key| key.id() == by && key.has_signed(envelope.manifest, &signature);
        if !self.keys.release.iter().any(is_good) {
            return Err(TrustError::Signature { name: name(), key_id: by.to_string() });
        }
        let now = self.now();
        if let Some(expires) = self.keys.expires.filter(|expires| *expires < now) {
            return Err(TrustError::KeysExpired { version: self.keys.version, expires });
        }
        if let Some(expires) = manifest.expires.filter(|expires| *expires < now) {
            return Err(TrustError::Expired { name: name(), expires });
        }
        self.check_seq(&manifest.name, manifest.seq)?;
        if let Some(than) = self.must_be_newer_than().filter(|than| manifest.seq <= *than) {
            return Err(TrustError::NotNewer { name: name(), seq: manifest.seq, than });
        }
        if (self.wants_heartbeat || self.keys.needs_heartbeat) && !self.is_alive(envelope.manifest) {
            return Err(TrustError::NoHeartbeat { name: name() });
        }
        self.note_time(by, manifest.created);
        self.accepted = Some((by, name(), manifest.seq));
        Ok(manifest)
    }

    /// The release that is on its way, or that was accepted last.
    pub(crate) fn accepted(&self) -> Option<Accepted> {
        self.accepted.clone()
    }

    /// What was accepted after this one was not begun: this one is still on its way.
    pub(crate) fn keep(&mut self, accepted: Option<Accepted>) {
        self.accepted = accepted;
    }

    fn check_key(&self, by: KeyId, name: &str) -> Result<(), TrustError> {
        let (name, key_id) = (name.to_owned(), by.to_string());
        if self.keys.is_revoked(by) {
            return Err(TrustError::Revoked { name, key_id });
        }
        if !self.keys.release.iter().any(|key| key.id() == by) {
            return Err(TrustError::Signature { name, key_id });
        }
        Ok(())
    }

    fn check_seq(&self, name: &str, seq: u64) -> Result<(), TrustError> {
        let known = self.memory.releases.get(name).map_or(0, |marks| marks.greatest(&self.keys));
        let least = known.max(self.keys.floor(name));
        if seq < least {
            return Err(TrustError::Rollback { name: name.to_owned(), seq, least });
        }
        Ok(())
    }

    fn must_be_newer_than(&self) -> Option<u64> {
        self.newer_than_any.max(self.newer_than.latest(&self.keys))
    }

    /// Whether a fresh heartbeat names this manifest.
    fn is_alive(&self, manifest: &[u8]) -> bool {
        let (hash, now) = (blake3::hash(manifest), self.now());
        self.heartbeats.iter().any(|heard| *hash.as_bytes() == heard.manifest && heard.expires >= now)
    }

    /// The object that was accepted has its name: from now on nothing older of that name.
    pub fn handle_handover(&mut self) {
        if let Some((by, name, seq)) = self.accepted.take() {
            self.memory.releases.entry(name).or_default().raise(by, seq);
        }
    }

    /// How many signatures it takes to check an envelope with a keys object, or with a heartbeat; `None` if that
    /// would bring nothing, or is nothing of the kind.
    pub fn checks(&self, is_keys: bool, envelope: &Envelope<'_>) -> Option<u64> {
        if !is_keys {
            let heartbeat = Heartbeat::parse(envelope.manifest)?;
            let is_known = |h: &Heard| (h.manifest, h.expires) == (heartbeat.manifest, heartbeat.expires);
            let is_news = !self.keys.heartbeat.is_empty() && !self.heartbeats.iter().any(is_known);
            return is_news.then_some(1);
        }
        let signed = SignedKeys::from_envelope(envelope).ok()?;
        // Its own root keys are looked at only after enough of the present ones have signed it: no forger's affair.
        let roots = &self.keys.roots;
        let enough = signed.claimed_by(roots) >= usize::from(self.keys.threshold);
        let dear = if enough { signed.claims_of(roots) as u64 } else { 0 };
        (signed.keys.version > self.keys.version).then_some(dear)
    }

    /// A keys object has come. What it was, if it counts from now on.
    pub fn handle_keys(&mut self, envelope: &Envelope<'_>) -> Result<SignedKeys, KeysError> {
        let signed = SignedKeys::from_envelope(envelope)?;
        signed.follows(&self.keys)?;
        self.keys = signed.keys.clone();
        self.told_by_keys = self.told_by_keys.max(self.keys.created.saturating_sub(self.elapsed));
        let keys = &self.keys;
        self.heartbeats.retain(|heard| keys.heartbeat.iter().any(|key| key.id() == heard.by));
        Ok(signed)
    }

    /// Why the release that was accepted would not be any more, after other keys have come.
    pub fn withdrawn(&self) -> Option<TrustError> {
        let (by, name, seq) = self.accepted.as_ref()?;
        match self.check_key(*by, name) {
            Err(revoked @ TrustError::Revoked { .. }) => Some(revoked),
            _ => self.check_seq(name, *seq).err(),
        }
    }

    /// A heartbeat has come. Whether it is good.
    pub fn handle_heartbeat(&mut self, envelope: &Envelope<'_>) -> bool {
        let Some((heartbeat, by)) = Heartbeat::open(envelope, &self.keys.heartbeat) else { return false };
        if heartbeat.expires < self.now() {
            return false;
        }
        self.note_time(by, heartbeat.time);
        self.heartbeats
            .retain(|heard| heard.manifest != heartbeat.manifest || heard.expires > heartbeat.expires);
        if self.heartbeats.len() == HEARTBEATS {
            self.heartbeats.remove(0);
        }
        self.heartbeats.push(Heard { manifest: heartbeat.manifest, expires: heartbeat.expires, by });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Floor;
    use crate::keys::tests::{keys, signed};
    use crate::manifest::tests::sample;
    use crate::signature::pairs::Pair;

    /// What `authority` says to release `seq`, signed by a pair.
    fn release(
        authority: &mut Authority,
        seq: u64,
        by: u8,
        change: impl FnOnce(&mut Manifest),
    ) -> Result<(), TrustError> {
        let mut manifest = Manifest { seq, created: 0, ..sample() };
        change(&mut manifest);
        let bytes = manifest.emit();
        let signature = Pair::new(by).sign(&bytes).to_minisign();
        let envelope = Envelope { manifest: &bytes, algorithm: 1, signature: signature.as_bytes() };
        authority.check(&envelope).map(drop)
    }

    fn take(authority: &mut Authority, keys: Keys, by: &[u8]) -> Result<(), KeysError> {
        let body = signed(keys, by).emit().unwrap();
        authority.handle_keys(&Envelope::parse(&body).unwrap()).map(drop)
    }

    fn beat(authority: &mut Authority, seq: u64, time: u64, life: u64, by: u8) -> bool {
        let manifest = Manifest { seq, created: 0, ..sample() }.emit();
        let heartbeat = Heartbeat::new(&manifest, time, life);
        let body = heartbeat.seal(Pair::new(by).sign(&heartbeat.emit()));
        authority.handle_heartbeat(&Envelope::parse(&body).unwrap())
    }

    fn at(clock: u64) -> Authority {
        Authority::new(keys(1, 1, &[1], &[10, 11], &[20]), Memory::default(), clock)
    }

    #[test]
    fn only_what_is_newer_is_taken_and_a_revoked_key_s_word_is_void() {
        let mut a = at(5_000);
        a.require_newer(0, None);
        assert_eq!(release(&mut a, 0, 10, |_| ()).unwrap_err().outcome(), crate::outcome::Outcome::Stale);
        assert_eq!(release(&mut a, 1, 10, |_| ()), Ok(()));
        assert_eq!(a.signer(), Some(Pair::new(10).key().id()));
        a.require_newer(90, Some(Pair::new(11).key().id()));
        a.require_newer(5, Some(Pair::new(10).key().id()));
        let refused = release(&mut a, 90, 10, |m| m.name = "another name".into());
        assert!(matches!(refused, Err(TrustError::NotNewer { seq: 90, than: 90, .. })), "{refused:?}");
        assert_eq!(release(&mut a, 91, 10, |_| ()), Ok(()));
        let mut new = keys(2, 1, &[1], &[10], &[20]);
        new.revoked = vec![Pair::new(11).key().id()];
        take(&mut a, new, &[1]).unwrap();
        assert_eq!(release(&mut a, 6, 10, |_| ()), Ok(()), "90 was the word of a key that is revoked");
        assert!(matches!(release(&mut a, 5, 10, |_| ()), Err(TrustError::NotNewer { than: 5, .. })));
    }

    #[test]
    fn every_signature_that_may_be_checked_is_paid_for() {
        let bytes = keys(2, 1, &[1], &[10], &[]).emit();
        let checks = |by: u8| {
            let many = Signature::emit_all(&[Pair::new(by).sign(b"something else")]).repeat(6);
            at(5_000).checks(true, &Envelope { manifest: &bytes, algorithm: 2, signature: &many })
        };
        assert_eq!((checks(1), checks(2)), (Some(6), Some(0)), "by a root key, as they say, and by another");
    }

    #[test]
    fn one_release_key_is_enough_and_no_other_key_is() {
        let mut a = at(5_000);
        assert_eq!((release(&mut a, 1, 10, |_| ()), release(&mut a, 1, 11, |_| ())), (Ok(()), Ok(())));
        for other in [1, 20, 30] {
            assert!(
                matches!(release(&mut a, 1, other, |_| ()), Err(TrustError::Signature { .. })),
                "{other}"
            );
        }
    }

    #[test]
    fn nothing_older_than_what_was_handed_over() {
        let mut a = at(5_000);
        release(&mut a, 7, 10, |_| ()).unwrap();
        assert_eq!(release(&mut a, 6, 10, |_| ()), Ok(()), "not handed over yet");
        release(&mut a, 7, 10, |_| ()).unwrap();
        a.handle_handover();
        let mut b = Authority::new(a.keys().clone(), a.memory().clone(), 5_000);
        assert!(matches!(release(&mut b, 6, 11, |_| ()), Err(TrustError::Rollback { seq: 6, least: 7, .. })));
        assert_eq!(release(&mut b, 7, 11, |_| ()), Ok(()));
        assert_eq!(release(&mut b, 1, 11, |m| m.name = "other".into()), Ok(()));
    }

    #[test]
    fn a_retired_key_s_releases_bind_and_a_revoked_one_s_do_not() {
        let memory = |number| {
            let mut a = at(5_000);
            release(&mut a, number, 10, |m| m.created = 9_000).unwrap();
            a.handle_handover();
            a.memory().clone()
        };
        let mut a = Authority::new(keys(1, 1, &[1], &[10, 11], &[]), memory(u64::MAX), 5_000);
        assert_eq!(a.now(), 9_000);
        take(&mut a, keys(2, 1, &[1], &[11], &[]), &[1]).unwrap();
        assert!(matches!(release(&mut a, 8, 11, |_| ()), Err(TrustError::Rollback { .. })));
        assert!(matches!(release(&mut a, 8, 10, |_| ()), Err(TrustError::Signature { .. })));
        let id = Pair::new(10).key().id();
        let floors = vec![Floor { name: sample().name, seq: 8 }];
        let revoking = Keys { revoked: vec![id], floors, ..keys(3, 1, &[1], &[11], &[]) };
        take(&mut a, revoking, &[1]).unwrap();
        assert!(matches!(release(&mut a, 8, 10, |_| ()), Err(TrustError::Revoked { .. })));
        assert_eq!(release(&mut a, 8, 11, |_| ()), Ok(()));
        assert!(matches!(release(&mut a, 7, 11, |_| ()), Err(TrustError::Rollback { least: 8, .. })));
        assert_eq!(a.now(), 5_000, "its word about the time is void too");
    }

    #[test]
    fn what_is_on_its_way_is_withdrawn_only_if_it_is_forbidden() {
        let mut a = at(5_000);
        release(&mut a, 7, 10, |_| ()).unwrap();
        take(&mut a, keys(2, 1, &[1], &[11], &[]), &[1]).unwrap();
        assert_eq!(a.withdrawn(), None, "the key was retired: what is begun goes on");
        let floors = vec![Floor { name: sample().name, seq: 8 }];
        take(&mut a, Keys { floors, ..keys(3, 1, &[1], &[11], &[]) }, &[1]).unwrap();
        assert!(matches!(a.withdrawn(), Some(TrustError::Rollback { .. })));
        let revoked = vec![Pair::new(10).key().id()];
        take(&mut a, Keys { revoked, ..keys(4, 1, &[1], &[11], &[]) }, &[1]).unwrap();
        assert!(matches!(a.withdrawn(), Some(TrustError::Revoked { .. })));
    }

    #[test]
    fn the_expired_begins_nothing_and_newer_keys_still_come() {
        let old = Keys { expires: Some(4_000), ..keys(1, 1, &[1], &[10], &[]) };
        let mut a = Authority::new(old, Memory::default(), 4_000);
        assert_eq!(release(&mut a, 1, 10, |_| ()), Ok(()));
        a.handle_time(1);
        assert!(matches!(release(&mut a, 1, 10, |_| ()), Err(TrustError::KeysExpired { version: 1, .. })));
        take(&mut a, keys(2, 1, &[1], &[10], &[]), &[1]).unwrap();
        assert_eq!(release(&mut a, 1, 10, |_| ()), Ok(()));
        let expired = release(&mut a, 1, 10, |m| m.expires = Some(4_000));
        assert!(matches!(expired, Err(TrustError::Expired { .. })));
    }

    #[test]
    fn only_a_fresh_heartbeat_of_this_very_release_is_one() {
        let mut a = at(5_000);
        a.require_heartbeat();
        let frozen =
            |a: &mut Authority| matches!(release(a, 7, 10, |_| ()), Err(TrustError::NoHeartbeat { .. }));
        assert!(frozen(&mut a));
        assert!(beat(&mut a, 6, 5_000, 60, 20) && frozen(&mut a), "another release");
        assert!(!beat(&mut a, 7, 5_000, 60, 10) && frozen(&mut a), "a release key");
        assert!(!beat(&mut a, 7, 4_000, 60, 20) && frozen(&mut a), "replayed");
        assert!(beat(&mut a, 7, 5_000, 60, 20) && !frozen(&mut a));
        a.handle_time(61);
        assert!(frozen(&mut a), "it was fresh, and the time has passed");
        assert!(beat(&mut a, 7, 5_061, 60, 20) && !frozen(&mut a));
        // Its key goes, and so do its heartbeats.
        take(&mut a, keys(2, 1, &[1], &[10], &[21]), &[1]).unwrap();
        assert!(frozen(&mut a) && !beat(&mut a, 7, 5_061, 60, 20));
        assert!(beat(&mut a, 7, 5_061, 60, 21) && !frozen(&mut a));
    }

    #[test]
    fn without_a_clock_time_is_what_signatures_told() {
        let mut a = at(0);
        assert_eq!(a.now(), 1_000, "when the keys object was made");
        release(&mut a, 1, 10, |m| m.created = 2_000).unwrap();
        a.handle_time(50);
        assert!(beat(&mut a, 1, 3_000, 60, 20));
        assert_eq!(a.now(), 3_000);
        a.handle_time(60);
        assert_eq!(a.now(), 3_010);
        let mut b = Authority::new(a.keys().clone(), a.memory().clone(), 0);
        assert_eq!(b.now(), 3_000);
        assert!(!beat(&mut b, 1, 2_900, 60, 20), "an old one, recorded");
        // A stolen heartbeat key that lied about the time is forgotten with its lies.
        assert!(beat(&mut b, 1, u64::MAX, 60, 20));
        let expired = release(&mut b, 1, 10, |m| m.expires = Some(9_000));
        assert!(matches!(expired, Err(TrustError::Expired { .. })));
        let revoked = vec![Pair::new(20).key().id()];
        take(&mut b, Keys { revoked, ..keys(2, 1, &[1], &[10], &[21]) }, &[1]).unwrap();
        assert_eq!(release(&mut b, 1, 10, |m| m.expires = Some(9_000)), Ok(()));
    }

    #[test]
    fn marks_survive_being_written() {
        let mut marks = Marks::default();
        (0..100).for_each(|n| marks.raise(KeyId::new([n; 8]), u64::from(n) << 40));
        assert_eq!(marks.0.len(), MAX_MARKS);
        assert_eq!(Marks::parse(&marks.emit()), Some(marks));
        assert_eq!((Marks::parse("x"), Marks::parse("0102030405060708 -1")), (None, None));
    }
}
