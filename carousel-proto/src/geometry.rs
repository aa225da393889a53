//! How an object is cut into source blocks and symbols, and which byte belongs to which symbol.
//!
//! Terms as in RFC 5052 (SBN, ESI, source and repair symbol). All lengths are bytes.

/// Greatest object size: the lower half of the 48-bit offset space (PROTOCOL.md section 3). The 32 bits of a
/// slot number end sooner in practice, at about 2.5 TB with symbols of 1,188 bytes.
pub const MAX_SIZE: u64 = (1 << 47) - 1;
/// First offset of the repair space.
pub const REPAIR_SPACE: u64 = 1 << 47;
/// Shortest symbol: a manifest packet (1,100 bytes and 6 of lengths) and a block page have to fit into its place.
pub const MIN_SYMBOL_LEN: u16 = 1152;
/// Longest symbol: a 9,000-byte link less 48 bytes of IPv6 and UDP and 44 of our own header.
pub const MAX_SYMBOL_LEN: u16 = 8908;
/// Block lengths are powers of two from 64 KiB …
pub const MIN_BLOCK_LOG2: u8 = 16;
/// … to 16 MiB.
pub const MAX_BLOCK_LOG2: u8 = 24;
/// Most symbols of one kind in a block (the field GF(2^16) is shared by source and repair).
pub const MAX_SYMBOLS: u32 = 32_768;
/// Most blocks: 4 TiB in blocks of 4 MiB. A receiver needs some 75 bytes for each before anything arrived.
pub const MAX_BLOCKS: u64 = 1 << 20;

/// Source block number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sbn(pub u32);

/// Encoding symbol identifier within a block: source below K, repair from K on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Esi(pub u16);

/// Why a set of parameters is no geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Object too large.
    #[error("object of {0} bytes: at most {MAX_SIZE} can be sent")]
    Size(u64),
    /// Symbol length out of range or odd.
    #[error("symbol length {0}: must be even and {MIN_SYMBOL_LEN} to {MAX_SYMBOL_LEN}")]
    SymbolLen(u16),
    /// Block length out of range.
    #[error("block length 2^{0}: must be 2^{MIN_BLOCK_LOG2} to 2^{MAX_BLOCK_LOG2}")]
    BlockLen(u8),
    /// Too many symbols in a block for GF(2^16).
    #[error("{k} source and {r} repair symbols in a block: at most {MAX_SYMBOLS} each")]
    Symbols {
        /// Source symbols.
        k: u32,
        /// Repair symbols.
        r: u32,
    },
    /// Too many blocks.
    #[error("{0} blocks: at most {MAX_BLOCKS}; use a greater block length")]
    Blocks(u64),
}

/// The cut of one object. Constructed only by [`Geometry::new`], so every method can rely on its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    size: u64,
    symbol_len: u16,
    block_log2: u8,
    repair_full: u16,
    repair_last: u16,
}

impl Geometry {
    /// `size` bytes in blocks of `2^block_log2` bytes and symbols of `symbol_len` bytes; a full block has
    /// `repair_full` repair symbols. `repair_last` is for the *short* block: the last one when it is not full.
    pub fn new(
        size: u64,
        symbol_len: u16,
        block_log2: u8,
        repair_full: u16,
        repair_last: u16,
    ) -> Result<Self, GeometryError> {
        if size > MAX_SIZE {
            return Err(GeometryError::Size(size));
        }
        if !(MIN_SYMBOL_LEN..=MAX_SYMBOL_LEN).contains(&symbol_len) || !symbol_len.is_multiple_of(2) {
            return Err(GeometryError::SymbolLen(symbol_len));
        }
        if !(MIN_BLOCK_LOG2..=MAX_BLOCK_LOG2).contains(&block_log2) {
            return Err(GeometryError::BlockLen(block_log2));
        }
        let geometry = Self { size, symbol_len, block_log2, repair_full, repair_last };
        let blocks = size.div_ceil(1 << block_log2);
        if blocks > MAX_BLOCKS {
            return Err(GeometryError::Blocks(blocks));
        }
        let k = (1u32 << block_log2).div_ceil(u32::from(symbol_len));
        let r = u32::from(repair_full.max(repair_last));
        if k > MAX_SYMBOLS || r > MAX_SYMBOLS || k + r > 0xffff {
            return Err(GeometryError::Symbols { k, r });
        }
        Ok(geometry)
    }

    /// Object size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Symbol length T in bytes.
    pub fn symbol_len(&self) -> usize {
        usize::from(self.symbol_len)
    }

    /// Binary logarithm of the block length.
    pub fn block_log2(&self) -> u8 {
        self.block_log2
    }

    /// Repair symbols of a full block.
    pub fn repair_full(&self) -> u16 {
        self.repair_full
    }

    /// Repair symbols of the short block.
    pub fn repair_last(&self) -> u16 {
        self.repair_last
    }

    /// Number of source blocks; 0 for an empty object.
    pub fn blocks(&self) -> u32 {
        self.size.div_ceil(1 << self.block_log2) as u32
    }

    /// Number of blocks of full length; they come first.
    pub fn full_blocks(&self) -> u32 {
        (self.size >> self.block_log2) as u32
    }

    /// Bytes of the object in block `sbn`, which must be below [`Self::blocks`].
    pub fn block_len(&self, sbn: Sbn) -> usize {
        let start = self.block_offset(sbn);
        (self.size - start).min(1 << self.block_log2) as usize
    }

    /// First byte of block `sbn` in the object.
    pub fn block_offset(&self, sbn: Sbn) -> u64 {
        u64::from(sbn.0) << self.block_log2
    }

    /// K: source symbols of block `sbn`.
    pub fn source_symbols(&self, sbn: Sbn) -> u16 {
        self.block_len(sbn).div_ceil(self.symbol_len()) as u16
    }

    /// N − K: repair symbols of block `sbn`.
    pub fn repair_symbols(&self, sbn: Sbn) -> u16 {
        if sbn.0 < self.full_blocks() { self.repair_full } else { self.repair_last }
    }

    /// N: all symbols of block `sbn`.
    pub fn symbols(&self, sbn: Sbn) -> u32 {
        u32::from(self.source_symbols(sbn)) + u32::from(self.repair_symbols(sbn))
    }

    /// Symbols a receiver needs for the whole object: the sum of K over all blocks.
    pub fn symbols_needed(&self) -> u64 {
        let full = u64::from((1u32 << self.block_log2).div_ceil(u32::from(self.symbol_len)));
        let rest = self.size & ((1 << self.block_log2) - 1);
        u64::from(self.full_blocks()) * full + rest.div_ceil(u64::from(self.symbol_len))
    }

    /// The 48-bit wire offset of a symbol: its first byte in the object, or, for a repair symbol, its place
    /// in the repair space.
    pub fn offset(&self, sbn: Sbn, esi: Esi) -> u64 {
        let k = self.source_symbols(sbn);
        let t = u64::from(self.symbol_len);
        if esi.0 < k {
            self.block_offset(sbn) + u64::from(esi.0) * t
        } else {
            let before = u64::from(sbn.0) * u64::from(self.repair_full);
            REPAIR_SPACE + (before + u64::from(esi.0 - k)) * t
        }
    }

    /// Inverse of [`Self::offset`]; `None` for an offset at which no symbol begins.
    pub fn symbol_at(&self, offset: u64) -> Option<(Sbn, Esi)> {
        let t = u64::from(self.symbol_len);
        if offset < REPAIR_SPACE {
            if offset >= self.size {
                return None;
            }
            let sbn = (offset >> self.block_log2) as u32;
            let within = offset & ((1 << self.block_log2) - 1);
            within.is_multiple_of(t).then(|| (Sbn(sbn), Esi((within / t) as u16)))
        } else {
            let offset = offset - REPAIR_SPACE;
            if !offset.is_multiple_of(t) {
                return None;
            }
            let number = offset / t;
            let full = u64::from(self.full_blocks()) * u64::from(self.repair_full);
            let (sbn, index) = if number < full {
                (number / u64::from(self.repair_full), number % u64::from(self.repair_full))
            } else {
                (u64::from(self.full_blocks()), number - full)
            };
            if sbn >= u64::from(self.blocks()) {
                return None;
            }
            let sbn = Sbn(sbn as u32);
            let index = u16::try_from(index).ok().filter(|i| *i < self.repair_symbols(sbn))?;
            Some((sbn, Esi(self.source_symbols(sbn) + index)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn empty_object_has_no_block() {
        let g = Geometry::new(0, 1188, 22, 3531, 0).unwrap();
        assert_eq!((g.blocks(), g.symbols_needed()), (0, 0));
        assert_eq!(g.symbol_at(0), None);
        assert_eq!(g.symbol_at(REPAIR_SPACE), None);
    }

    #[test]
    fn one_byte_more_than_a_block_makes_a_short_block_of_one_symbol() {
        let g = Geometry::new((4 << 20) + 1, 1188, 22, 3531, 9).unwrap();
        assert_eq!((g.blocks(), g.full_blocks()), (2, 1));
        assert_eq!((g.source_symbols(Sbn(0)), g.source_symbols(Sbn(1))), (3531, 1));
        assert_eq!(g.symbols(Sbn(1)), 10);
        assert_eq!(g.block_len(Sbn(1)), 1);
    }

    #[test]
    fn limits_are_errors() {
        assert!(matches!(Geometry::new(1 << 47, 1188, 22, 0, 0), Err(GeometryError::Size(_))));
        assert!(matches!(Geometry::new(1, 1189, 22, 0, 0), Err(GeometryError::SymbolLen(_))));
        assert!(matches!(Geometry::new(1, 1188, 25, 0, 0), Err(GeometryError::BlockLen(_))));
        assert!(matches!(Geometry::new(1, 1188, 22, 40_000, 0), Err(GeometryError::Symbols { .. })));
        assert!(matches!(Geometry::new(MAX_SIZE, 1188, 16, 0, 0), Err(GeometryError::Blocks(_))));
    }

    proptest! {
        #[test]
        fn offset_and_symbol_at_mirror_each_other(
            size in 1u64..40 << 20, t in 576u16..800, log2 in 16u8..23, full in 0u16..4000, last in 0u16..4000,
            pick in any::<(u32, u32)>(),
        ) {
            let g = Geometry::new(size, t * 2, log2, full, last).unwrap();
            let sbn = Sbn(pick.0 % g.blocks());
            let esi = Esi((pick.1 % g.symbols(sbn)) as u16);
            prop_assert_eq!(g.symbol_at(g.offset(sbn, esi)), Some((sbn, esi)));
            let total: u64 = (0..g.blocks()).map(|b| u64::from(g.source_symbols(Sbn(b)))).sum();
            prop_assert_eq!(total, g.symbols_needed());
        }

        #[test]
        fn any_offset_is_answered(size in 0u64..1 << 47, offset in 0u64..1 << 48) {
            if let Ok(g) = Geometry::new(size, 1188, 24, 100, 50)
                && let Some((sbn, esi)) = g.symbol_at(offset)
            {
                prop_assert!(sbn.0 < g.blocks() && u32::from(esi.0) < g.symbols(sbn));
                prop_assert_eq!(g.offset(sbn, esi), offset);
            }
        }
    }
}
