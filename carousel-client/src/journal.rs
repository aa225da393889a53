//! The log beside the work file, `.NAME.carousel-log`: what stands where, so that a client that was killed goes on.
//!
//! Data is written first, then the log. Nothing is synced: who is killed loses nothing that the kernel had, and after a
//! loss of power what the disk does not have is received again. So the flash is written once.

use carousel_proto::geometry::{Geometry, Sbn};
use carousel_proto::journal::{ENTRY_LEN, Entry, JOURNAL_HEADER_LEN, Stored, journal_header};
use carousel_proto::outcome::Failure;
use carousel_proto::receiver::Standing;
use nix::libc;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// Symbols of which a killed client may lose track: so many …
const FRESH_MAX: usize = 4096;
/// … or this part of the object, if that is less …
const FRESH_PART: u64 = 256;
/// … but there is no hurry for fewer than these.
const FRESH_MIN: usize = 32;
/// Entries that are read at once.
const READ: usize = 2048;

/// The log of one object.
pub struct Journal {
    file: File,
    path: PathBuf,
    geometry: Geometry,
    len: u64,
    /// Its end, whatever happens. Past it a killed client loses more, and that is all.
    limit: u64,
    /// Not in the log yet.
    fresh: Vec<Stored>,
    /// So many are written at once.
    portion: usize,
    bytes: Vec<u8>,
}

/// What a log says that was there when the client started.
pub struct Replay {
    file: File,
    path: PathBuf,
    geometry: Geometry,
    at: u64,
    /// Whole blocks, in the order of the log.
    pub blocks: Vec<Sbn>,
}

impl Journal {
    /// Opens the log, which nobody else has, or begins it. What it says of the object of this manifest is the second;
    /// of another object, only which blocks were whole: they may be the same.
    pub fn open(
        path: PathBuf,
        manifest: &blake3::Hash,
        geometry: Geometry,
    ) -> Result<(Self, Option<Replay>), Failure> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(|e| Failure::writing(&path, &e))?;
        let failed = |e: io::Error| Failure::writing(&path, &e);
        let header = journal_header(manifest);
        let mut known = [0; JOURNAL_HEADER_LEN];
        let is_known = file.read_exact_at(&mut known, 0).is_ok() && known == header;
        let mut replay = Replay {
            file: file.try_clone().map_err(failed)?,
            path: path.clone(),
            geometry,
            at: 0,
            blocks: Vec::new(),
        };
        replay.read_blocks()?;
        let mut len = JOURNAL_HEADER_LEN as u64;
        if is_known {
            let entries = file.metadata().map_err(failed)?.len().saturating_sub(len) / ENTRY_LEN as u64;
            len += entries * ENTRY_LEN as u64; // an entry may have been cut off
        } else {
            file.set_len(0).and_then(|()| file.write_all_at(&header, 0)).map_err(failed)?;
        }
        let most = 2 * (geometry.symbols_needed() + u64::from(geometry.blocks())) + 1024;
        let portion = ((geometry.symbols_needed() / FRESH_PART) as usize).clamp(FRESH_MIN, FRESH_MAX);
        let journal = Self {
            file,
            path,
            geometry,
            len,
            limit: JOURNAL_HEADER_LEN as u64 + most * ENTRY_LEN as u64,
            fresh: Vec::new(),
            portion,
            bytes: Vec::new(),
        };
        let says_something = len > JOURNAL_HEADER_LEN as u64 || !replay.blocks.is_empty();
        Ok((journal, says_something.then_some(replay)))
    }

    /// Whether there is anything to go on with.
    pub fn is_empty(&self) -> bool {
        self.len == JOURNAL_HEADER_LEN as u64
    }

    /// A symbol was given to the work file.
    pub fn handle_stored(&mut self, stored: Stored) {
        self.fresh.push(stored);
    }

    /// Whether it is time to write.
    pub fn is_due(&self) -> bool {
        self.fresh.len() >= self.portion
    }

    /// Writes down what is in the work file by now.
    pub fn write(&mut self, standing: impl Fn(&Stored) -> Standing) -> Result<(), Failure> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        for stored in self.fresh.drain(..) {
            let proven = match standing(&stored) {
                Standing::Proven => true,
                Standing::Unproven => false,
                Standing::Gone => continue,
            };
            bytes.extend(Entry::Symbol { stored, proven }.emit(&self.geometry));
        }
        self.bytes = bytes;
        self.append()
    }

    /// A block is whole, and all of it in the work file.
    pub fn handle_block(&mut self, sbn: Sbn) -> Result<(), Failure> {
        self.bytes.clear();
        self.bytes.extend(Entry::Block(sbn).emit(&self.geometry));
        self.append()
    }

    fn append(&mut self) -> Result<(), Failure> {
        if self.bytes.is_empty() || self.len + self.bytes.len() as u64 > self.limit {
            return Ok(());
        }
        self.file.write_all_at(&self.bytes, self.len).map_err(|e| Failure::writing(&self.path, &e))?;
        self.len += self.bytes.len() as u64;
        Ok(())
    }
}

impl Replay {
    fn read_blocks(&mut self) -> Result<(), Failure> {
        let mut seen = vec![false; self.geometry.blocks() as usize];
        let mut blocks = Vec::new();
        while let Some(entries) = self.read()? {
            for entry in entries {
                if let Entry::Block(sbn) = entry
                    && !std::mem::replace(&mut seen[sbn.0 as usize], true)
                {
                    blocks.push(sbn);
                }
            }
        }
        (self.blocks, self.at) = (blocks, 0);
        Ok(())
    }

    /// The next symbols, and whether they were proven; `None`: that was all.
    pub fn symbols(&mut self) -> Result<Option<Vec<(Stored, bool)>>, Failure> {
        let symbol = |entry| match entry {
            Entry::Symbol { stored, proven } => Some((stored, proven)),
            Entry::Block(_) => None,
        };
        Ok(self.read()?.map(|entries| entries.into_iter().filter_map(symbol).collect()))
    }

    fn read(&mut self) -> Result<Option<Vec<Entry>>, Failure> {
        let mut bytes = vec![0; READ * ENTRY_LEN];
        let mut filled = 0;
        while filled < bytes.len() {
            let at = JOURNAL_HEADER_LEN as u64 + self.at + filled as u64;
            match self.file.read_at(&mut bytes[filled..], at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Failure::reading(&self.path, &e)),
            }
        }
        let (entries, _) = bytes[..filled].as_chunks::<ENTRY_LEN>();
        self.at += (entries.len() * ENTRY_LEN) as u64;
        let parse = |entry| Entry::parse(entry, &self.geometry);
        Ok((!entries.is_empty()).then(|| entries.iter().filter_map(parse).collect()))
    }
}
