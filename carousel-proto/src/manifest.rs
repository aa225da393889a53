//! The manifest: the signed description of one object, deterministic CBOR with integer keys (RFC 8949
//! section 4.2), and the envelope in which it and its signature fill one packet.
//!
//! PROTOCOL.md section 4. A manifest is untrusted until [`crate::trust::Trust::check`] says otherwise;
//! parsing only makes sure that its numbers are within the limits of the format.

use crate::geometry::{Geometry, GeometryError, MAX_BLOCK_LOG2};
use crate::pages::{CAP_LEN_MAX, NODE_LEN, TreeShape};
use crate::table::MAX_TABLE_LEN;
use crate::wire::{Checksum, Instance};

/// Manifest and signature together, in bytes.
pub const MAX_ENVELOPE_LEN: usize = 1_100;
/// The only format version there is.
pub const FORMAT_VERSION: u8 = 1;
/// Longest object name, in bytes of UTF-8.
pub const MAX_NAME_LEN: usize = 255;

/// The signed description of one object. CBOR keys are the numbers behind `n`; absent values are left out.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Manifest {
    /// 1: format version.
    #[n(1)]
    pub version: u8,
    /// 2: file name without any folder.
    #[n(2)]
    pub name: String,
    /// 3: media type (RFC 6838), if the packer knew one.
    #[n(3)]
    pub media_type: Option<String>,
    /// 4: object size in bytes.
    #[n(4)]
    pub size: u64,
    /// 5: BLAKE3-256 of the object.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub digest: [u8; 32],
    /// 6: symbol length T in bytes.
    #[n(6)]
    pub symbol_len: u16,
    /// 7: binary logarithm of the block length.
    #[n(7)]
    pub block_log2: u8,
    /// 8: repair symbols of a full block.
    #[n(8)]
    pub repair_full: u16,
    /// 9: repair symbols of the short block (0 if there is none).
    #[n(9)]
    pub repair_last: u16,
    /// 10: slots per hash page.
    #[n(10)]
    pub page_len: u8,
    /// 11: number of hash pages.
    #[n(11)]
    pub pages: u32,
    /// 12: the cap of the hash tree: 1 to 16 nodes of 16 bytes.
    #[cbor(n(12), with = "minicbor::bytes")]
    pub cap: Vec<u8>,
    /// 13: release sequence number; grows with every release of this name.
    #[n(13)]
    pub seq: u64,
    /// 14: when it was made, seconds since 1970-01-01 UTC.
    #[n(14)]
    pub created: u64,
    /// 15: after this moment nobody starts with it, seconds since 1970-01-01 UTC.
    #[n(15)]
    pub expires: Option<u64>,
    /// 16: the kinds of device it is for; empty or absent: all.
    #[n(16)]
    pub compatible: Option<Vec<String>>,
    /// 17: which devices begin when, [`crate::rollout`]; not looked at here.
    #[cbor(n(17), with = "minicbor::bytes")]
    pub rollout: Option<Vec<u8>>,
    /// 18: when to apply it, [`crate::apply`]; not looked at here.
    #[cbor(n(18), with = "minicbor::bytes")]
    pub apply: Option<Vec<u8>>,
    /// 19: how many bytes at the object's end are the file table of a folder; absent: the object is a file.
    #[n(19)]
    pub table: Option<u64>,
}

/// Why bytes are no manifest, or one outside the limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The envelope's lengths do not fit into its packet.
    #[error("manifest packet is cut short or its lengths do not fit")]
    Envelope,
    /// Not the CBOR that is expected.
    #[error("manifest is not readable: {0}")]
    Cbor(String),
    /// A version this code cannot read.
    #[error("manifest format version {0} is unknown to this program")]
    Version(u8),
    /// Name is empty, too long, or more than a file name.
    #[error("manifest names no plain file")]
    Name,
    /// Sizes outside the limits.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The hash tree's shape does not agree with itself.
    #[error("hash tree of {pages} pages of {page_len} slots with a cap of {cap} bytes is impossible")]
    Tree {
        /// Claimed pages.
        pages: u32,
        /// Claimed slots per page.
        page_len: u8,
        /// Claimed cap length in bytes.
        cap: usize,
    },
    /// A file table that is longer than the object, or than anybody reads.
    #[error("a file table of {0} bytes is impossible")]
    Table(u64),
    /// Manifest and signature are longer than a packet may carry.
    #[error(
        "manifest and signature take {0} bytes, at most {MAX_ENVELOPE_LEN} are allowed: shorten the name or the compatible strings"
    )]
    TooLong(usize),
}

impl Manifest {
    /// Reads and checks a manifest. Unknown keys are ignored: the signature covers them all the same.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_ENVELOPE_LEN {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        let mut decoder = minicbor::Decoder::new(bytes);
        let manifest: Self = decoder.decode().map_err(|e| ManifestError::Cbor(e.to_string()))?;
        if decoder.position() != bytes.len() {
            return Err(ManifestError::Cbor("something follows it".into()));
        }
        manifest.validate()?;
        Ok(manifest)
    }

    /// The bytes that are signed.
    pub fn emit(&self) -> Vec<u8> {
        // Writing into a Vec cannot fail.
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// Checks every number against the limits of the format.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.version != FORMAT_VERSION {
            return Err(ManifestError::Version(self.version));
        }
        if !is_plain_name(&self.name) {
            return Err(ManifestError::Name);
        }
        if let Some(len) = self.table.filter(|len| *len == 0 || *len > self.size.min(MAX_TABLE_LEN)) {
            return Err(ManifestError::Table(len));
        }
        let geometry = self.geometry()?;
        self.tree_shape(&geometry).map(drop)
    }

    /// How the object is cut.
    pub fn geometry(&self) -> Result<Geometry, GeometryError> {
        if self.block_log2 > MAX_BLOCK_LOG2 {
            return Err(GeometryError::BlockLen(self.block_log2));
        }
        Geometry::new(self.size, self.symbol_len, self.block_log2, self.repair_full, self.repair_last)
    }

    /// The hash tree over its slots.
    pub fn tree_shape(&self, geometry: &Geometry) -> Result<TreeShape, ManifestError> {
        let impossible =
            ManifestError::Tree { pages: self.pages, page_len: self.page_len, cap: self.cap.len() };
        let shape = TreeShape::new(self.pages, self.page_len, geometry.symbol_len())
            .ok_or_else(|| impossible.clone())?;
        if self.cap.len() != shape.cap_nodes() * NODE_LEN || shape.cap_nodes() > CAP_LEN_MAX {
            return Err(impossible);
        }
        Ok(shape)
    }

    /// What every packet of this object carries as its checksum.
    pub fn checksum(&self) -> Checksum {
        let mut checksum = [0; 16];
        checksum.copy_from_slice(&self.digest[..16]);
        Checksum(checksum)
    }
}

/// What every packet of a bundle carries as its instance.
pub fn instance_of(manifest: &[u8]) -> Instance {
    let hash = blake3::hash(manifest);
    let mut instance = [0; 4];
    instance.copy_from_slice(&hash.as_bytes()[..4]);
    Instance(instance)
}

/// A file name that stays where it is put and looks like what it is: no folder, no control character, none that
/// turns the direction of writing, not `.` or `..`.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_LEN
        && name != "."
        && name != ".."
        && !name.chars().any(|c| {
            c == '/'
                || c == '\\'
                || c.is_control()
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        })
}

/// How a manifest is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SignatureAlgorithm {
    /// Not signed: clients need the digest.
    None = 0,
    /// The text of a minisign signature file, prehashed Ed25519.
    Minisign = 1,
    /// Signatures of minisign in few bytes, [`crate::signature`]: not for manifests.
    Several = 2,
}

/// Manifest bytes and signature as they lie in the body of a manifest packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The signed bytes.
    pub manifest: &'a [u8],
    /// Algorithm byte as received; unknown values verify as nothing.
    pub algorithm: u8,
    /// The signature, as its algorithm writes it.
    pub signature: &'a [u8],
}

const ENVELOPE_HEADER_LEN: usize = 6;

impl<'a> Envelope<'a> {
    /// Reads the body of a manifest packet.
    pub fn parse(body: &'a [u8]) -> Result<Self, ManifestError> {
        let (header, rest) = body.split_at_checked(ENVELOPE_HEADER_LEN).ok_or(ManifestError::Envelope)?;
        let manifest_len = usize::from(u16::from_be_bytes([header[0], header[1]]));
        let signature_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if manifest_len + signature_len > MAX_ENVELOPE_LEN {
            return Err(ManifestError::TooLong(manifest_len + signature_len));
        }
        let (manifest, rest) = rest.split_at_checked(manifest_len).ok_or(ManifestError::Envelope)?;
        let signature = rest.get(..signature_len).ok_or(ManifestError::Envelope)?;
        Ok(Self { manifest, algorithm: header[2], signature })
    }

    /// Bytes of the body before the filling.
    pub fn len(&self) -> usize {
        ENVELOPE_HEADER_LEN + self.manifest.len() + self.signature.len()
    }

    /// Whether there is neither manifest nor signature.
    pub fn is_empty(&self) -> bool {
        self.manifest.is_empty() && self.signature.is_empty()
    }

    /// Writes the body of a manifest packet, filled with zeros up to `symbol_len`.
    pub fn emit(&self, symbol_len: usize) -> Result<Vec<u8>, ManifestError> {
        let len = self.manifest.len() + self.signature.len();
        if len > MAX_ENVELOPE_LEN {
            return Err(ManifestError::TooLong(len));
        }
        let mut body = Vec::with_capacity(symbol_len);
        body.extend_from_slice(&(self.manifest.len() as u16).to_be_bytes());
        body.extend_from_slice(&[self.algorithm, 0]);
        body.extend_from_slice(&(self.signature.len() as u16).to_be_bytes());
        body.extend_from_slice(self.manifest);
        body.extend_from_slice(self.signature);
        body.resize(symbol_len, 0);
        Ok(body)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn sample() -> Manifest {
        Manifest {
            version: 1,
            name: "gateway-fw.bin".into(),
            media_type: None,
            size: 5_000_000,
            digest: [7; 32],
            symbol_len: 1188,
            block_log2: 22,
            repair_full: 3531,
            repair_last: 700,
            page_len: 88,
            pages: 96,
            cap: vec![1; 256],
            seq: 42,
            created: 1_700_000_000,
            expires: None,
            compatible: Some(vec!["board-a".into()]),
            rollout: None,
            apply: None,
            table: None,
        }
    }

    #[test]
    fn emit_and_parse_mirror_each_other() {
        let m = sample();
        assert_eq!(Manifest::parse(&m.emit()).unwrap(), m);
        assert_eq!(m.emit(), Manifest::parse(&m.emit()).unwrap().emit());
    }

    #[test]
    fn unknown_keys_are_ignored() {
        let bytes = sample().emit();
        let mut more = vec![bytes[0] + 1]; // a map of one pair more
        more.extend_from_slice(&bytes[1..]);
        more.extend_from_slice(&[0x18, 200, 0xf5]); // 200: true
        assert_eq!(Manifest::parse(&more).unwrap(), sample());
    }

    #[test]
    fn nothing_may_follow() {
        let bytes = [sample().emit(), vec![0]].concat();
        assert!(matches!(Manifest::parse(&bytes), Err(ManifestError::Cbor(_))));
    }

    #[test]
    fn impossible_claims_are_refused() {
        let refused = |change: fn(&mut Manifest)| {
            let mut m = sample();
            change(&mut m);
            Manifest::parse(&m.emit()).unwrap_err()
        };
        assert_eq!(refused(|m| m.version = 2), ManifestError::Version(2));
        assert_eq!(refused(|m| m.name = "../x".into()), ManifestError::Name);
        assert!(matches!(refused(|m| m.size = u64::MAX), ManifestError::Geometry(_)));
        assert!(matches!(refused(|m| m.block_log2 = 255), ManifestError::Geometry(_)));
        assert!(matches!(refused(|m| m.cap.truncate(255)), ManifestError::Tree { .. }));
        assert!(matches!(refused(|m| m.pages = u32::MAX), ManifestError::Tree { .. }));
        assert!(matches!(refused(|m| m.page_len = 0), ManifestError::Tree { .. }));
        assert_eq!(refused(|m| m.table = Some(0)), ManifestError::Table(0));
        assert_eq!(refused(|m| m.table = Some(5_000_001)), ManifestError::Table(5_000_001));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::parse(&bytes);
            let _ = Envelope::parse(&bytes);
        }

        #[test]
        fn a_flipped_bit_never_panics(at in 0usize..2000, bit in 0u8..8) {
            let mut bytes = sample().emit();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(m) = Manifest::parse(&bytes) {
                prop_assert!(m.validate().is_ok());
            }
        }
    }

    #[test]
    fn envelope_mirrors() {
        let e = Envelope { manifest: b"manifest", algorithm: 1, signature: b"signature" };
        let body = e.emit(1188).unwrap();
        assert_eq!(body.len(), 1188);
        assert_eq!(Envelope::parse(&body).unwrap(), e);
        assert_eq!(Envelope::parse(&body[..10]), Err(ManifestError::Envelope));
    }
}
