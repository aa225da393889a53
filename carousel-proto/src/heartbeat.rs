//! The heartbeat: a server's word that this is still the release to take. PROTOCOL.md section 4.9.
//!
//! It is signed again and again by a key that lies on the server. Whoever steals that key can hold devices back at the
//! release it names, and nothing else: it installs nothing.

use crate::manifest::{Envelope, SignatureAlgorithm};
use crate::signature::{Key, KeyId, Signature};

/// First value of every heartbeat of this format.
pub const HEARTBEAT_FORMAT: &str = "carousel heartbeat 1";

/// One heartbeat. CBOR keys are the numbers behind `n`.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Heartbeat {
    /// 1: [`HEARTBEAT_FORMAT`].
    #[n(1)]
    pub format: String,
    /// 2: BLAKE3-256 of the manifest's bytes.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub manifest: [u8; 32],
    /// 3: when it was signed, seconds since 1970-01-01 UTC.
    #[n(3)]
    pub time: u64,
    /// 4: until when it counts, seconds since 1970-01-01 UTC.
    #[n(4)]
    pub expires: u64,
}

impl Heartbeat {
    /// That this manifest is the one to take, from a moment on for so many seconds.
    pub fn new(manifest: &[u8], time: u64, life: u64) -> Self {
        let (format, manifest) = (HEARTBEAT_FORMAT.to_owned(), *blake3::hash(manifest).as_bytes());
        Self { format, manifest, time, expires: time.saturating_add(life) }
    }

    /// The bytes that are signed.
    pub fn emit(&self) -> Vec<u8> {
        // Writing into a Vec cannot fail.
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// Reads the bytes that were signed.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let heartbeat: Self = decoder.decode().ok()?;
        let whole = decoder.position() == bytes.len() && heartbeat.format == HEARTBEAT_FORMAT;
        (whole && heartbeat.time <= heartbeat.expires).then_some(heartbeat)
    }

    /// What a packet carries before its filling.
    pub fn seal(&self, signature: Signature) -> Vec<u8> {
        let (bytes, signature) = (self.emit(), Signature::emit_all(&[signature]));
        let algorithm = SignatureAlgorithm::Several as u8;
        let envelope = Envelope { manifest: &bytes, algorithm, signature: &signature };
        envelope.emit(envelope.len()).unwrap_or_default() // some 300 bytes of 1,100
    }

    /// A heartbeat and who signed it, if that was one of these keys.
    pub fn open(envelope: &Envelope<'_>, keys: &[Key]) -> Option<(Self, KeyId)> {
        let heartbeat = Self::parse(envelope.manifest)?;
        if envelope.algorithm != SignatureAlgorithm::Several as u8 {
            return None;
        }
        let signatures = Signature::parse_all(envelope.signature)?;
        let [signature] = &signatures[..] else { return None };
        let key = keys.iter().find(|key| key.id() == signature.id)?;
        key.has_signed(envelope.manifest, signature).then_some((heartbeat, signature.id))
    }
}
