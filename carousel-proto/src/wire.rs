//! The packet: one header of 44 bytes, then a body. Everything is big-endian; the text is PROTOCOL.md
//! section 3.
//!
//! ```text
//!  0        1     2        4          8          24         28     34       40     44
//!  | version | kind | flags | sequence | checksum | instance | size | offset | slot | body …
//!  |<------------- prefix, made for each sending ---------->|<---- record, as in the bundle ---->|
//! ```
//!
//! The record is what a hash page vouches for, and it lies in the bundle as it goes over the wire; the
//! prefix is put before it at the moment of sending.

use crate::geometry::MAX_SYMBOL_LEN;

/// Bytes before the body.
pub const HEADER_LEN: usize = 44;
/// Bytes of the prefix: what the server writes anew for every packet.
pub const PREFIX_LEN: usize = 28;
/// Bytes of a record before its body: size, offset and slot number.
pub const RECORD_HEADER_LEN: usize = HEADER_LEN - PREFIX_LEN;
/// The one protocol version there is.
pub const VERSION: u8 = 1;
/// IPv6 and UDP headers, which `--rate` counts too.
pub const IP_UDP_LEN: usize = 48;

const AT_VERSION: usize = 0;
const AT_KIND: usize = 1;
const AT_FLAGS: usize = 2;
const AT_SEQUENCE: usize = 4;
const AT_CHECKSUM: usize = 8;
const AT_INSTANCE: usize = 24;
const AT_SIZE: usize = 28;
const AT_OFFSET: usize = 34;
const AT_SLOT: usize = 40;

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// The signed description of the object.
    Manifest = 0,
    /// The hashes of a run of slots and the path that proves them.
    HashPage = 1,
    /// BLAKE3 subtree values of up to 16 blocks.
    BlockPage = 2,
    /// A source or repair symbol.
    Symbol = 3,
    /// Which keys are to be believed.
    Keys = 4,
    /// That the manifest is still the one to take.
    Heartbeat = 5,
}

/// First 16 bytes of the object's BLAKE3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Checksum(pub [u8; 16]);

/// First 4 bytes of the BLAKE3 of the manifest: two packings of one file never mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance(pub [u8; 4]);

/// Number of a packet on its channel; counts up by one, wraps, is outside authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence(pub u32);

/// Number of a symbol in the hash tree; page number × page length + index. In a hash or block page
/// packet the same field holds the page's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// Why bytes are not a packet of ours. Such packets are counted and dropped, never fatal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Shorter than a header.
    #[error("{0} bytes are no packet")]
    Short(usize),
    /// Longer than any packet of ours.
    #[error("{0} bytes are too many for a packet")]
    Long(usize),
    /// A version this code cannot read.
    #[error("protocol version {0}")]
    Version(u8),
    /// A kind this code does not know.
    #[error("unknown kind {0}")]
    Kind(u8),
    /// A flag this code does not know.
    #[error("unknown flags {0:#06x}")]
    Flags(u16),
}

/// A packet whose header was checked once, at the door; accessors cannot fail.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    kind: Kind,
}

impl<'a> Packet<'a> {
    /// Checks length, version, kind and flags.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        if bytes.len() < HEADER_LEN {
            return Err(WireError::Short(bytes.len()));
        }
        if bytes.len() > HEADER_LEN + usize::from(MAX_SYMBOL_LEN) {
            return Err(WireError::Long(bytes.len()));
        }
        if bytes[AT_VERSION] != VERSION {
            return Err(WireError::Version(bytes[AT_VERSION]));
        }
        let kind = match bytes[AT_KIND] {
            0 => Kind::Manifest,
            1 => Kind::HashPage,
            2 => Kind::BlockPage,
            3 => Kind::Symbol,
            4 => Kind::Keys,
            5 => Kind::Heartbeat,
            other => return Err(WireError::Kind(other)),
        };
        let flags = u16::from_be_bytes([bytes[AT_FLAGS], bytes[AT_FLAGS + 1]]);
        if flags != 0 {
            return Err(WireError::Flags(flags));
        }
        Ok(Self { bytes, kind })
    }

    /// All of it.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What it carries.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its number on its channel.
    pub fn sequence(&self) -> Sequence {
        Sequence(read_u32(self.bytes, AT_SEQUENCE))
    }

    /// Start of the object's BLAKE3.
    pub fn checksum(&self) -> Checksum {
        let mut checksum = [0; 16];
        checksum.copy_from_slice(&self.bytes[AT_CHECKSUM..AT_CHECKSUM + 16]);
        Checksum(checksum)
    }

    /// Start of the manifest's BLAKE3.
    pub fn instance(&self) -> Instance {
        let mut instance = [0; 4];
        instance.copy_from_slice(&self.bytes[AT_INSTANCE..AT_INSTANCE + 4]);
        Instance(instance)
    }

    /// Object size in bytes.
    pub fn size(&self) -> u64 {
        read_u48(self.bytes, AT_SIZE)
    }

    /// Where the symbol belongs; 0 in other kinds.
    pub fn offset(&self) -> u64 {
        read_u48(self.bytes, AT_OFFSET)
    }

    /// Slot number of a symbol, page number of a page.
    pub fn slot(&self) -> Slot {
        Slot(read_u32(self.bytes, AT_SLOT))
    }

    /// What stands in the bundle: everything behind the prefix.
    pub fn record(&self) -> &'a [u8] {
        &self.bytes[PREFIX_LEN..]
    }

    /// Everything behind the header.
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..]
    }
}

/// Writes the part of the header that is made for each sending.
pub fn emit_prefix(
    out: &mut [u8; PREFIX_LEN],
    kind: Kind,
    sequence: Sequence,
    checksum: Checksum,
    instance: Instance,
) {
    out[AT_VERSION] = VERSION;
    out[AT_KIND] = kind as u8;
    out[AT_FLAGS..AT_SEQUENCE].fill(0);
    out[AT_SEQUENCE..AT_CHECKSUM].copy_from_slice(&sequence.0.to_be_bytes());
    out[AT_CHECKSUM..AT_INSTANCE].copy_from_slice(&checksum.0);
    out[AT_INSTANCE..AT_SIZE].copy_from_slice(&instance.0);
}

/// The part of the header that lies in the bundle before each body. `size` and `offset` are below 2^48.
pub fn record_header(size: u64, offset: u64, slot: Slot) -> [u8; RECORD_HEADER_LEN] {
    let mut out = [0; RECORD_HEADER_LEN];
    out[..6].copy_from_slice(&size.to_be_bytes()[2..]);
    out[6..12].copy_from_slice(&offset.to_be_bytes()[2..]);
    out[12..].copy_from_slice(&slot.0.to_be_bytes());
    out
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn read_u48(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 6].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn emit_and_parse_mirror_each_other(
            kind in 0u8..6, seq in any::<u32>(), sum in any::<[u8; 16]>(), inst in any::<[u8; 4]>(),
            size in 0u64..1 << 48, offset in 0u64..1 << 48, slot in any::<u32>(),
            body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let kinds = [Kind::Manifest, Kind::HashPage, Kind::BlockPage, Kind::Symbol, Kind::Keys, Kind::Heartbeat];
            let kind = kinds[usize::from(kind)];
            let mut prefix = [0xff; PREFIX_LEN];
            emit_prefix(&mut prefix, kind, Sequence(seq), Checksum(sum), Instance(inst));
            let mut bytes = prefix.to_vec();
            bytes.extend_from_slice(&record_header(size, offset, Slot(slot)));
            bytes.extend_from_slice(&body);
            let p = Packet::parse(&bytes).unwrap();
            prop_assert_eq!((p.kind(), p.sequence(), p.checksum()), (kind, Sequence(seq), Checksum(sum)));
            prop_assert_eq!((p.instance(), p.size(), p.offset()), (Instance(inst), size, offset));
            prop_assert_eq!((p.slot(), p.body()), (Slot(slot), &body[..]));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Packet::parse(&bytes);
        }
    }

    #[test]
    fn strangers_are_named() {
        let mut bytes = [0u8; HEADER_LEN];
        assert_eq!(Packet::parse(&bytes[..43]).unwrap_err(), WireError::Short(43));
        assert_eq!(Packet::parse(&[1; 8953]).unwrap_err(), WireError::Long(8953));
        assert_eq!(Packet::parse(&bytes).unwrap_err(), WireError::Version(0));
        bytes[0] = 1;
        bytes[1] = 9;
        assert_eq!(Packet::parse(&bytes).unwrap_err(), WireError::Kind(9));
        bytes[1] = 3;
        bytes[3] = 1;
        assert_eq!(Packet::parse(&bytes).unwrap_err(), WireError::Flags(1));
    }
}
