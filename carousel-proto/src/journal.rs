//! The log beside a receiver's unfinished file: which symbol stands where in it, and which blocks are whole. With it a
//! receiver that was killed goes on with what it had.
//!
//! ```text
//! header   magic (16), BLAKE3 of the manifest (32)
//! entry    offset (6), slot (4), place (2), leaf (10)
//! ```
//!
//! All numbers are big-endian; offset, slot and leaf are those of the wire. The highest bit of a place is 1 if the symbol
//! was not proven yet. An entry whose place is [`WHOLE`] says that the block that begins at its offset is whole. Entries are only ever appended, and nothing in them is believed: a
//! symbol counts if the bytes in its place still have that leaf, a block if its hash is the object's. So a log that was
//! cut off, reordered or filled with zeros by a loss of power makes a receiver take some symbols again, and no more.

use crate::geometry::{Esi, Geometry, Sbn};
use crate::pages::{LEAF_LEN, Leaf};
use crate::wire::Slot;

/// Length of the log's beginning.
pub const JOURNAL_HEADER_LEN: usize = 48;
/// Length of each entry.
pub const ENTRY_LEN: usize = 22;
/// In the place of an entry: it is about the whole block.
pub const WHOLE: u16 = u16::MAX;

/// In the place of an entry; there are fewer than 2^15 places.
const UNPROVEN: u16 = 1 << 15;

const MAGIC: &[u8; 16] = b"carousel log 1\n\0";

/// A symbol in a place of its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// The block.
    pub sbn: Sbn,
    /// Which of its symbols.
    pub esi: Esi,
    /// In which of its places, from 0 to K-1.
    pub place: u16,
    /// Where on the wire it has its hash.
    pub slot: Slot,
    /// Its hash.
    pub leaf: Leaf,
}

/// A line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A symbol was stored.
    Symbol {
        /// Which, and where.
        stored: Stored,
        /// Whether its page had judged it by then.
        proven: bool,
    },
    /// A block became whole.
    Block(Sbn),
}

/// The beginning of the log of an object that this manifest describes.
pub fn journal_header(manifest: &blake3::Hash) -> [u8; JOURNAL_HEADER_LEN] {
    let mut header = [0; JOURNAL_HEADER_LEN];
    header[..MAGIC.len()].copy_from_slice(MAGIC);
    header[MAGIC.len()..].copy_from_slice(manifest.as_bytes());
    header
}

impl Entry {
    /// As it is written.
    pub fn emit(&self, geometry: &Geometry) -> [u8; ENTRY_LEN] {
        let (offset, slot, place, leaf) = match self {
            Self::Symbol { stored: s, proven } => {
                let place = if *proven { s.place } else { s.place | UNPROVEN };
                (geometry.offset(s.sbn, s.esi), s.slot.0, place, s.leaf)
            }
            Self::Block(sbn) => (geometry.block_offset(*sbn), 0, WHOLE, [0; LEAF_LEN]),
        };
        let mut bytes = [0; ENTRY_LEN];
        bytes[..6].copy_from_slice(&offset.to_be_bytes()[2..]);
        bytes[6..10].copy_from_slice(&slot.to_be_bytes());
        bytes[10..12].copy_from_slice(&place.to_be_bytes());
        bytes[12..].copy_from_slice(&leaf);
        bytes
    }

    /// `None`: it says nothing about an object of this shape.
    pub fn parse(bytes: &[u8; ENTRY_LEN], geometry: &Geometry) -> Option<Self> {
        let offset = bytes[..6].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let slot = Slot(u32::from_be_bytes([bytes[6], bytes[7], bytes[8], bytes[9]]));
        let place = u16::from_be_bytes([bytes[10], bytes[11]]);
        let (sbn, esi) = geometry.symbol_at(offset)?;
        if place == WHOLE {
            return (esi == Esi(0)).then_some(Self::Block(sbn));
        }
        let mut leaf = [0; LEAF_LEN];
        leaf.copy_from_slice(&bytes[12..]);
        let (proven, place) = (place & UNPROVEN == 0, place & !UNPROVEN);
        let stored = Stored { sbn, esi, place, slot, leaf };
        (place < geometry.source_symbols(sbn)).then_some(Self::Symbol { stored, proven })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry::new(200_000, 1188, 16, 56, 5).unwrap()
    }

    #[test]
    fn entries_come_back_as_they_were() {
        let g = geometry();
        for sbn in (0..g.blocks()).map(Sbn) {
            let entry = Entry::Block(sbn);
            assert_eq!(Entry::parse(&entry.emit(&g), &g), Some(entry));
            for esi in (0..g.symbols(sbn) as u16).map(Esi) {
                let stored = Stored { sbn, esi, place: esi.0 % 2, slot: Slot(77), leaf: [9; LEAF_LEN] };
                for proven in [true, false] {
                    let entry = Entry::Symbol { stored, proven };
                    assert_eq!(Entry::parse(&entry.emit(&g), &g), Some(entry));
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_is_nothing() {
        let g = geometry();
        let stored = Stored { sbn: Sbn(1), esi: Esi(3), place: 56, slot: Slot(0), leaf: [0; LEAF_LEN] };
        let beyond = Entry::Symbol { stored, proven: true }.emit(&g);
        assert_eq!(Entry::parse(&beyond, &g), None);
        let mut middle = beyond;
        middle[10..12].fill(0xff); // whole, but not at a block's beginning
        assert_eq!(Entry::parse(&middle, &g), None);
        assert_eq!(Entry::parse(&[0xff; ENTRY_LEN], &g), None);
        let mut between = beyond;
        (between[5], between[11]) = (between[5] + 1, 0);
        assert_eq!(Entry::parse(&between, &g), None);
    }

    #[test]
    fn the_header_knows_its_object() {
        let of = |manifest: &[u8]| journal_header(&blake3::hash(manifest));
        assert_ne!(of(b"a"), of(b"b"));
        assert!(of(b"a").starts_with(b"carousel log 1\n\0"));
    }
}
