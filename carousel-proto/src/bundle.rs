//! The bundle: one file in sending order, made of records of equal length. PROTOCOL.md section 7.
//!
//! ```text
//! record 0    bundle header, filled with zeros
//! record 1    the manifest's record
//! record 2 …  the block pages' records
//! …           the records of coset 0, of coset 1, …: [page, its symbols, page, its symbols, …]
//! ```
//!
//! Every record but the first is what goes over the wire behind the prefix, so a server copies nothing and
//! computes nothing.

use crate::manifest::Manifest;
use crate::pages::{block_pages, record_len};
use crate::schedule::{Coset, Item, Layout, MAX_ROUNDS_LOG2, RecordIndex};

/// First bytes of every bundle.
pub const MAGIC: &[u8; 8] = b"carousel";
/// The one bundle version there is.
pub const BUNDLE_VERSION: u16 = 1;
/// Bytes of the header that carry anything.
pub const HEADER_LEN: usize = 16;
/// Record number of the manifest.
pub const MANIFEST_RECORD: u64 = 1;
/// Record number of the first block page.
pub const FIRST_BLOCK_PAGE: u64 = 2;

/// Why a file is no bundle, or a damaged one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The first bytes are something else.
    #[error("not a bundle")]
    Magic,
    /// A version this code cannot read.
    #[error("bundle version {0} is unknown to this program")]
    Version(u16),
    /// The header contradicts itself or the manifest.
    #[error("bundle header and manifest do not agree")]
    Header,
    /// Too short or too long.
    #[error("bundle has {found} bytes, but its manifest describes {expected}")]
    Length {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
}

/// What one needs to know before the manifest can be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BundleHeader {
    /// Symbol length T in bytes.
    pub symbol_len: u16,
    /// Binary logarithm of the number of cosets.
    pub rounds_log2: u8,
}

impl BundleHeader {
    /// Reads the first bytes of a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let header = bytes.get(..HEADER_LEN).filter(|h| h.starts_with(MAGIC)).ok_or(BundleError::Magic)?;
        let version = u16::from_be_bytes([header[8], header[9]]);
        if version != BUNDLE_VERSION {
            return Err(BundleError::Version(version));
        }
        let found =
            Self { symbol_len: u16::from_be_bytes([header[10], header[11]]), rounds_log2: header[12] };
        if found.rounds_log2 > MAX_ROUNDS_LOG2 || header[13..] != [0; 3] {
            return Err(BundleError::Header);
        }
        Ok(found)
    }

    /// Writes record 0.
    pub fn emit(&self) -> Vec<u8> {
        let mut record = Vec::with_capacity(record_len(usize::from(self.symbol_len)));
        record.extend_from_slice(MAGIC);
        record.extend_from_slice(&BUNDLE_VERSION.to_be_bytes());
        record.extend_from_slice(&self.symbol_len.to_be_bytes());
        record.push(self.rounds_log2);
        record.resize(record_len(usize::from(self.symbol_len)), 0);
        record
    }
}

/// Where everything lies in the file.
#[derive(Debug, Clone)]
pub struct Places {
    record_len: u64,
    coset_starts: Vec<u64>,
    records: u64,
}

impl Places {
    /// The places of a layout's records.
    pub fn new(layout: &Layout) -> Self {
        let mut records = FIRST_BLOCK_PAGE + u64::from(block_pages(layout.geometry()));
        let mut coset_starts = Vec::with_capacity(layout.cosets() as usize);
        for coset in (0..layout.cosets()).map(Coset) {
            coset_starts.push(records);
            records += layout.coset_records(coset);
        }
        Self { record_len: record_len(layout.geometry().symbol_len()) as u64, coset_starts, records }
    }

    /// Bytes of one record.
    pub fn record_len(&self) -> usize {
        self.record_len as usize
    }

    /// Bytes of the whole file.
    pub fn file_len(&self) -> u64 {
        self.records * self.record_len
    }

    /// First byte of a record of a coset of this layout.
    pub fn record(&self, coset: Coset, record: RecordIndex) -> u64 {
        (self.coset_starts[coset.0 as usize] + u64::from(record.0)) * self.record_len
    }

    /// First byte of the record that an [`crate::schedule::Order`] of this layout asks for.
    pub fn item(&self, item: Item) -> u64 {
        match item {
            Item::Manifest => MANIFEST_RECORD * self.record_len,
            Item::BlockPage(number) => (FIRST_BLOCK_PAGE + u64::from(number)) * self.record_len,
            Item::Record(coset, record) => self.record(coset, record),
        }
    }
}

/// The layout of a bundle whose header and manifest were read, and the length its file must have.
pub fn layout_of(header: &BundleHeader, manifest: &Manifest, file_len: u64) -> Result<Layout, BundleError> {
    let geometry = manifest.geometry().map_err(|_| BundleError::Header)?;
    let layout = Layout::new(geometry, header.rounds_log2).ok_or(BundleError::Header)?;
    if header.symbol_len != manifest.symbol_len
        || layout.page_len() != manifest.page_len
        || layout.pages() != manifest.pages
    {
        return Err(BundleError::Header);
    }
    let expected = Places::new(&layout).file_len();
    if expected != file_len {
        return Err(BundleError::Length { found: file_len, expected });
    }
    Ok(layout)
}
