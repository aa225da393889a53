//! A bundle on disk: its head, and the whole of it mapped for reading.

#![allow(unsafe_code)]

use carousel_proto::bundle::{BundleError, BundleHeader, HEADER_LEN, MANIFEST_RECORD, Places, layout_of};
use carousel_proto::manifest::{Envelope, Manifest, ManifestError, instance_of};
use carousel_proto::outcome::Failure;
use carousel_proto::pages::record_len;
use carousel_proto::schedule::{Item, Layout, MAX_ROUNDS_LOG2};
use carousel_proto::wire::{Checksum, IP_UDP_LEN, Instance, PREFIX_LEN, RECORD_HEADER_LEN};
use memmap2::{Advice, Mmap};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes that are asked of the disk at a time: few requests, and little memory beside many channels.
const PART: u64 = 256 << 10;

/// Header and manifest record of a bundle, everything checked against the file's length.
pub struct Head {
    pub header: BundleHeader,
    pub manifest: Manifest,
    pub layout: Layout,
    manifest_body: Vec<u8>,
}

impl Head {
    /// Manifest and signature.
    pub fn envelope(&self) -> Result<Envelope<'_>, Failure> {
        Envelope::parse(&self.manifest_body).map_err(|e| Failure::untrusted(e.to_string()))
    }
}

/// Reads the head of a bundle and nothing more.
pub fn read_head(path: &Path) -> Result<Head, Failure> {
    let file = File::open(path).map_err(|e| Failure::reading(path, &e))?;
    head_of(&file, path)
}

fn head_of(file: &File, path: &Path) -> Result<Head, Failure> {
    let storage = |e: std::io::Error| Failure::reading(path, &e);
    let metadata = file.metadata().map_err(storage)?;
    if metadata.is_dir() {
        return Err(Failure::usage(format!("{}: is a folder, not a bundle", path.display())));
    }
    let mut start = [0; HEADER_LEN];
    let len = metadata.len();
    if len >= HEADER_LEN as u64 {
        file.read_exact_at(&mut start, 0).map_err(storage)?;
    }
    let header = BundleHeader::parse(&start).map_err(|e| refused(path, &e))?;
    let record_len = record_len(usize::from(header.symbol_len));
    let body_len = usize::from(header.symbol_len);
    let body_at = MANIFEST_RECORD * record_len as u64 + RECORD_HEADER_LEN as u64;
    if len < body_at + body_len as u64 {
        let expected = body_at + body_len as u64;
        return Err(refused(path, &BundleError::Length { found: len, expected }));
    }
    let mut manifest_body = vec![0; body_len];
    file.read_exact_at(&mut manifest_body, body_at).map_err(storage)?;
    let manifest =
        Envelope::parse(&manifest_body).and_then(|e| Manifest::parse(e.manifest)).map_err(|e| match e {
            ManifestError::Version(_) => Failure::usage(format!("{}: {e}; use a newer one", path.display())),
            e => Failure::untrusted(format!("{}: damaged: {e}; fetch or pack it again", path.display())),
        })?;
    let layout = layout_of(&header, &manifest, len).map_err(|e| refused(path, &e))?;
    Ok(Head { header, manifest, layout, manifest_body })
}

fn refused(path: &Path, error: &BundleError) -> Failure {
    match error {
        BundleError::Magic => {
            Failure::usage(format!("{}: not a bundle; make one with `carousel-server pack`", path.display()))
        }
        BundleError::Version(_) => {
            Failure::usage(format!("{}: {error}; use a newer carousel-server", path.display()))
        }
        BundleError::Header | BundleError::Length { .. } => {
            Failure::untrusted(format!("{}: damaged: {error}; fetch or pack it again", path.display()))
        }
    }
}

/// Overwrites the manifest record's body: the only bytes of a bundle that ever change.
pub fn write_manifest(path: &Path, head: &Head, body: &[u8]) -> Result<(), Failure> {
    let storage = |e: std::io::Error| Failure::writing(path, &e);
    let record_len = record_len(usize::from(head.header.symbol_len)) as u64;
    let file = OpenOptions::new().write(true).open(path).map_err(storage)?;
    file.write_all_at(body, MANIFEST_RECORD * record_len + RECORD_HEADER_LEN as u64)
        .and_then(|()| file.sync_all())
        .map_err(storage)
}

/// A bundle mapped into memory, ready to be sent.
pub struct Bundle {
    pub path: PathBuf,
    pub manifest: Manifest,
    pub layout: Layout,
    pub checksum: Checksum,
    pub instance: Instance,
    pub signed: bool,
    manifest_bytes: Vec<u8>,
    /// Manifest and signature, as they are sent.
    manifest_body: Vec<u8>,
    /// Device and inode of the file.
    file: (u64, u64),
    places: Places,
    map: Mmap,
}

impl Bundle {
    /// Opens and maps a bundle. A bundle is replaced by renaming a new one over it, never changed in place:
    /// a running server keeps the old one.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|e| Failure::reading(path, &e))?;
        let head = head_of(&file, path)?;
        let metadata = file.metadata().map_err(|e| Failure::reading(path, &e))?;
        // SAFETY: the map is read-only and private to this struct, and only the kernel reads it while it is sent, who
        // reports EFAULT where somebody has cut the file short. Bundles are replaced by rename, which is harmless.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Failure::reading(path, &e))?;
        let envelope = head.envelope()?;
        let manifest_bytes = envelope.manifest.to_vec();
        let (instance, signed) = (instance_of(envelope.manifest), envelope.algorithm != 0);
        let places = Places::new(&head.layout);
        if (map.len() as u64) < places.file_len() {
            let found = map.len() as u64;
            return Err(refused(path, &BundleError::Length { found, expected: places.file_len() }));
        }
        Ok(Self {
            path: path.to_owned(),
            checksum: head.manifest.checksum(),
            instance,
            signed,
            manifest_bytes,
            manifest_body: head.manifest_body,
            file: (metadata.dev(), metadata.ino()),
            layout: head.layout,
            places,
            map,
            manifest: head.manifest,
        })
    }

    /// The bytes that are signed.
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// Whether the other one sends the same packets, about which the manifest says all, down to the last hash, and from
    /// the same file: an old file would keep its room on the disk, and may be damaged.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.manifest_body, self.file) == (&other.manifest_body, other.file)
    }

    /// Bytes of one packet, IPv6 header included.
    pub fn packet_len(&self) -> usize {
        IP_UDP_LEN + PREFIX_LEN + self.places.record_len()
    }

    /// The record that the schedule asks for: all of a packet but its prefix.
    pub fn record(&self, item: Item) -> &[u8] {
        let at = self.places.item(item) as usize;
        &self.map[at..at + self.places.record_len()]
    }
}

/// Asks for what a channel will send, so that it lies in memory by then. Left alone, the system reads when a page is
/// missed, while the packet waits; it guesses what comes next, but not across cosets that take turns.
pub struct ReadAhead<'a> {
    bundle: &'a Bundle,
    /// The part of the file that was asked for last, of each coset.
    asked: [u64; 1 << MAX_ROUNDS_LOG2],
}

impl<'a> ReadAhead<'a> {
    /// Nothing was asked for yet.
    pub fn new(bundle: &'a Bundle) -> Self {
        Self { bundle, asked: [u64::MAX; 1 << MAX_ROUNDS_LOG2] }
    }

    /// Asks for the part in which this lies, unless that was the last one. It does not wait for it.
    pub fn want(&mut self, item: Item) {
        let Item::Record(coset, _) = item else { return }; // the others are few, and sent again and again
        let part = self.bundle.places.item(item) / PART;
        let asked = &mut self.asked[coset.0 as usize];
        if *asked != part {
            *asked = part;
            let (at, len) = (part * PART, self.bundle.map.len() as u64);
            // Without it the packet waits for the disk, no more.
            let _ = self.bundle.map.advise_range(Advice::WillNeed, at as usize, PART.min(len - at) as usize);
        }
    }
}
