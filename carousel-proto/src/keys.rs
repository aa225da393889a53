//! The keys object: which keys a device believes from now on, signed by k of n root keys. PROTOCOL.md section 4.8.
//!
//! A device is given one at the factory. Newer ones come over the air like any packet, and each is believed because
//! those say so who were believed before: the threshold of the old root keys, and of its own.

use crate::manifest::{Envelope, ManifestError, SignatureAlgorithm, is_plain_name};
use crate::signature::{Key, KeyId, Signature};

/// First value of every keys object of this format. No manifest and no heartbeat begins like this, so that what was
/// signed as one can never be taken for another.
pub const KEYS_FORMAT: &str = "carousel keys 1";
/// Most root keys.
pub const MAX_ROOTS: usize = crate::signature::MAX_SIGNATURES;

/// Which keys may do what. CBOR keys are the numbers behind `n`.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Keys {
    /// 1: [`KEYS_FORMAT`].
    #[n(1)]
    pub format: String,
    /// 2: grows with every keys object of this fleet.
    #[n(2)]
    pub version: u64,
    /// 3: when it was made, seconds since 1970-01-01 UTC.
    #[n(3)]
    pub created: u64,
    /// 4: after this moment nobody starts anything under it, seconds since 1970-01-01 UTC.
    #[n(4)]
    pub expires: Option<u64>,
    /// 5: how many root keys must sign the next one.
    #[n(5)]
    pub threshold: u8,
    /// 6: who signs keys objects.
    #[n(6)]
    pub roots: Vec<Key>,
    /// 7: who signs manifests; any one of them is enough.
    #[n(7)]
    pub release: Vec<Key>,
    /// 8: who signs heartbeats.
    #[n(8)]
    pub heartbeat: Vec<Key>,
    /// 9: keys whose word is void, whatever they signed and whenever.
    #[n(9)]
    pub revoked: Vec<KeyId>,
    /// 10: the least release sequence numbers.
    #[n(10)]
    pub floors: Vec<Floor>,
    /// 11: nobody starts without a fresh heartbeat.
    #[n(11)]
    pub needs_heartbeat: bool,
}

/// No release of this name below this number.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Floor {
    /// Object name.
    #[n(0)]
    pub name: String,
    /// The least release sequence number.
    #[n(1)]
    pub seq: u64,
}

/// Why a keys object is not one, or not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// The envelope is wrong, or too long.
    #[error(transparent)]
    Envelope(#[from] ManifestError),
    /// Not the CBOR that is expected.
    #[error("not a keys object: {0}")]
    Cbor(String),
    /// It contradicts itself.
    #[error("keys object {version} is impossible: {why}")]
    Impossible {
        /// Its version.
        version: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// Not newer than what is there.
    #[error("keys object {version} is not newer than {known}")]
    Old {
        /// Its version.
        version: u64,
        /// The version that is there.
        known: u64,
    },
    /// Too few of the right keys have signed it.
    #[error("keys object {version} is signed by {found} of {needed} root keys{of}")]
    Threshold {
        /// Its version.
        version: u64,
        /// Good signatures by different keys.
        found: usize,
        /// Those needed.
        needed: u8,
        /// Of which keys object.
        of: &'static str,
    },
}

impl Keys {
    /// Reads and checks a keys object. Unknown keys are ignored: the signatures cover them all the same.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeysError> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let keys: Self = decoder.decode().map_err(|e| KeysError::Cbor(e.to_string()))?;
        if decoder.position() != bytes.len() {
            return Err(KeysError::Cbor("something follows it".into()));
        }
        keys.validate()?;
        Ok(keys)
    }

    /// The bytes that are signed.
    pub fn emit(&self) -> Vec<u8> {
        // Writing into a Vec cannot fail.
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// Checks that it does not contradict itself.
    pub fn validate(&self) -> Result<(), KeysError> {
        let all: Vec<&Key> = self.roots.iter().chain(&self.release).chain(&self.heartbeat).collect();
        let twice = |(i, key): (usize, &&Key)| {
            all[..i].iter().any(|known| known.id() == key.id() || known.public() == key.public())
        };
        let why = if self.format != KEYS_FORMAT {
            "its format is unknown to this program"
        } else if self.roots.len() > MAX_ROOTS {
            "more than 8 root keys"
        } else if self.threshold == 0 || usize::from(self.threshold) > self.roots.len() {
            "the threshold is 0, or more than there are root keys"
        } else if all.iter().enumerate().any(twice) {
            "a key stands there twice; each has one task"
        } else if all.iter().any(|key| self.is_revoked(key.id())) {
            "a key is revoked and has a task"
        } else if self.needs_heartbeat && self.heartbeat.is_empty() {
            "a heartbeat is needed, but nobody may sign one"
        } else if self.floors.iter().enumerate().any(|(i, floor)| {
            !is_plain_name(&floor.name) || self.floors[..i].iter().any(|known| known.name == floor.name)
        }) {
            "a name among the least sequence numbers is no plain file name, or stands there twice"
        } else {
            return Ok(());
        };
        Err(KeysError::Impossible { version: self.version, why })
    }

    /// Whether a key's word is void.
    pub fn is_revoked(&self, id: KeyId) -> bool {
        self.revoked.contains(&id)
    }

    /// The least release sequence number of a name.
    pub fn floor(&self, name: &str) -> u64 {
        self.floors.iter().find(|floor| floor.name == name).map_or(0, |floor| floor.seq)
    }
}

/// A keys object and its signatures: what a file `*.keys` holds, and the body of its packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedKeys {
    /// What is signed.
    pub keys: Keys,
    /// Its bytes, as signed: perhaps with CBOR keys that this code does not know.
    bytes: Vec<u8>,
    signatures: Vec<Signature>,
}

impl SignedKeys {
    /// Not signed yet.
    pub fn new(keys: Keys) -> Result<Self, KeysError> {
        keys.validate()?;
        let signed = Self { bytes: keys.emit(), keys, signatures: Vec::new() };
        signed.emit()?;
        Ok(signed)
    }

    /// Reads a file, or the body of a packet.
    pub fn parse(body: &[u8]) -> Result<Self, KeysError> {
        Self::from_envelope(&Envelope::parse(body)?)
    }

    /// Reads what lies in an envelope.
    pub fn from_envelope(envelope: &Envelope<'_>) -> Result<Self, KeysError> {
        let signatures = (envelope.algorithm == SignatureAlgorithm::Several as u8)
            .then(|| Signature::parse_all(envelope.signature))
            .flatten()
            .ok_or_else(|| KeysError::Cbor("its signatures are not readable".into()))?;
        Ok(Self { keys: Keys::parse(envelope.manifest)?, bytes: envelope.manifest.to_vec(), signatures })
    }

    /// The file's bytes; filled with zeros they are the body of a packet.
    pub fn emit(&self) -> Result<Vec<u8>, KeysError> {
        let signature = Signature::emit_all(&self.signatures);
        let algorithm = SignatureAlgorithm::Several as u8;
        let envelope = Envelope { manifest: &self.bytes, algorithm, signature: &signature };
        Ok(envelope.emit(envelope.len())?)
    }

    /// The bytes to be signed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Who claims to have signed it.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Adds a signature, or replaces the same key's.
    pub fn add(&mut self, signature: Signature) -> Result<(), KeysError> {
        self.signatures.retain(|known| known.id != signature.id);
        self.signatures.push(signature);
        self.emit().map(drop)
    }

    /// How many of these keys have signed it, each counted once; no key that it revokes itself counts.
    pub fn signed_by(&self, keys: &[Key]) -> usize {
        let has_signed = |key: &&Key| {
            !self.keys.is_revoked(key.id())
                && self.signatures.iter().any(|s| s.id == key.id() && key.has_signed(&self.bytes, s))
        };
        keys.iter().filter(has_signed).count()
    }

    /// How many of these keys it claims to be signed by: no more can have.
    pub fn claimed_by(&self, keys: &[Key]) -> usize {
        keys.iter().filter(|key| self.signatures.iter().any(|signature| signature.id == key.id())).count()
    }

    /// How many signatures claim to be by one of these keys, several by the same one perhaps: so many may have to be
    /// checked.
    pub fn claims_of(&self, keys: &[Key]) -> usize {
        self.signatures.iter().filter(|signature| keys.iter().any(|key| key.id() == signature.id)).count()
    }

    /// Whether its own root keys have signed it.
    pub fn is_signed(&self) -> Result<(), KeysError> {
        self.reaches(&self.keys, "")
    }

    /// Whether those who believe `old` must believe this: it is newer, and signed by the threshold of the old root
    /// keys and of its own.
    pub fn follows(&self, old: &Keys) -> Result<(), KeysError> {
        if self.keys.version <= old.version {
            return Err(KeysError::Old { version: self.keys.version, known: old.version });
        }
        self.reaches(old, " of the version before")?;
        self.is_signed()
    }

    fn reaches(&self, by: &Keys, of: &'static str) -> Result<(), KeysError> {
        let (version, needed) = (self.keys.version, by.threshold);
        // Checks are dear: none where it cannot be enough.
        let claimed = self.claimed_by(&by.roots);
        let enough = claimed >= usize::from(needed);
        let found = if enough { self.signed_by(&by.roots) } else { claimed };
        if needed == 0 || found < usize::from(needed) {
            return Err(KeysError::Threshold { version, found, needed, of });
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::signature::pairs::Pair;
    use proptest::prelude::*;

    /// A keys object with these pairs as roots, release and heartbeat keys.
    pub(crate) fn keys(version: u64, threshold: u8, roots: &[u8], release: &[u8], heartbeat: &[u8]) -> Keys {
        let of = |numbers: &[u8]| numbers.iter().map(|n| Pair::new(*n).key()).collect();
        Keys {
            format: KEYS_FORMAT.into(),
            version,
            created: 1_000 * version,
            expires: None,
            threshold,
            roots: of(roots),
            release: of(release),
            heartbeat: of(heartbeat),
            revoked: vec![],
            floors: vec![],
            needs_heartbeat: false,
        }
    }

    pub(crate) fn signed(keys: Keys, by: &[u8]) -> SignedKeys {
        let mut signed = SignedKeys::new(keys).unwrap();
        by.iter().for_each(|n| signed.add(Pair::new(*n).sign(&signed.bytes.clone())).unwrap());
        SignedKeys::parse(&signed.emit().unwrap()).unwrap()
    }

    #[test]
    fn the_threshold_of_the_old_root_keys_and_of_its_own() {
        let old = keys(1, 2, &[1, 2, 3], &[10], &[]);
        let follows = |new: &Keys, by: &[u8]| signed(new.clone(), by).follows(&old);
        let same = keys(2, 2, &[1, 2, 3], &[11], &[]);
        assert_eq!(follows(&same, &[1, 3]), Ok(()));
        for too_few in [&[][..], &[1], &[1, 1], &[1, 9], &[1, 10], &[9, 10, 11]] {
            assert!(
                matches!(follows(&same, too_few), Err(KeysError::Threshold { needed: 2, .. })),
                "{too_few:?}"
            );
        }
        // Other root keys: the old ones must say so, and the new ones that they exist.
        let other = keys(2, 1, &[4, 5], &[11], &[]);
        assert_eq!(follows(&other, &[1, 2, 5]), Ok(()));
        assert!(follows(&other, &[1, 2]).is_err() && follows(&other, &[4, 5]).is_err());
        assert!(follows(&other, &[1, 4, 5]).is_err());
        // Not newer; and a root key that it revokes itself does not count.
        assert_eq!(
            follows(&keys(1, 1, &[1], &[], &[]), &[1, 2]),
            Err(KeysError::Old { version: 1, known: 1 })
        );
        let without = Keys { revoked: vec![Pair::new(1).key().id()], ..keys(2, 2, &[2, 3], &[11], &[]) };
        assert_eq!(follows(&without, &[2, 3]), Ok(()));
        assert!(follows(&without, &[1, 2]).is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        let revoked = |n| vec![Pair::new(n).key().id()];
        let floor = |name: &str| Floor { name: name.into(), seq: 1 };
        let good = keys(1, 1, &[1], &[2], &[3]);
        for wrong in [
            Keys { format: "carousel keys 2".into(), ..good.clone() },
            Keys { threshold: 0, ..good.clone() },
            Keys { threshold: 2, ..good.clone() },
            keys(1, 1, &[1], &[1], &[]),
            keys(1, 1, &[1, 1], &[], &[]),
            keys(1, 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[], &[]),
            Keys { revoked: revoked(2), ..good.clone() },
            Keys { needs_heartbeat: true, ..keys(1, 1, &[1], &[2], &[]) },
            Keys { floors: vec![floor("../x")], ..good.clone() },
            Keys { floors: vec![floor("x"), floor("x")], ..good.clone() },
        ] {
            assert!(Keys::parse(&wrong.emit()).is_err(), "{wrong:?}");
        }
        assert_eq!(Keys::parse(&good.emit()), Ok(good.clone()));
        assert!(Keys::parse(&[good.emit(), vec![0]].concat()).is_err());
        // What is signed as one thing is never another.
        assert!(crate::manifest::Manifest::parse(&good.emit()).is_err());
        assert!(crate::heartbeat::Heartbeat::parse(&good.emit()).is_none());
    }

    #[test]
    fn a_full_rotation_fits_into_a_packet_and_too_much_does_not() {
        let full = keys(2, 2, &[1, 2, 3], &[10, 11], &[20]);
        let len = signed(full, &[1, 2, 3, 4]).emit().unwrap().len();
        assert!(len <= 1_106, "{len}");
        let many: Vec<u8> = (10..40).collect();
        assert!(SignedKeys::new(keys(2, 2, &[1, 2, 3], &many, &[])).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (Keys::parse(&bytes), SignedKeys::parse(&bytes));
        }

        #[test]
        fn a_flipped_bit_is_never_believed(at in 0usize..2000, bit in 0u8..8) {
            let old = keys(1, 1, &[1], &[2], &[]);
            let mut bytes = signed(keys(2, 1, &[1], &[3], &[]), &[1]).emit().unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(read) = SignedKeys::parse(&bytes) {
                // The reserved byte of the envelope is nobody's.
                prop_assert!(at == 3 || read.follows(&old).is_err());
            }
        }
    }
}
