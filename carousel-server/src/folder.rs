//! A folder as one object: its files laid end to end, and behind them the table that says so.
//!
//! The same tree makes the same bytes: names are sorted, holes are found by what a file contains and not by how the
//! file system keeps it, and nothing of this machine (owners, inode numbers, hard links) goes in.

use carousel_proto::outcome::{Failure, Outcome};
use carousel_proto::table::{
    Attributes, Entry, Extent, HOLE_LEN, Kind, MODE_MASK, Run, Shown, Table, check_path, runs_in,
};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek64};
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Blocks that are looked at for zeros by one read.
const BLOCKS: usize = 16;
/// One of them without anything in it.
static ZEROS: [u8; HOLE_LEN as usize] = [0; HOLE_LEN as usize];

/// A folder to pack.
pub struct Folder {
    path: PathBuf,
    found: Vec<Found>,
    runs: Vec<Run>,
    /// The table's bytes.
    table: Vec<u8>,
    /// The latest time of modification in it, in seconds since 1970.
    pub modified: u64,
    /// … and of the folder itself.
    root: Attributes,
}

/// An entry as it was when the folder was looked through.
struct Found {
    path: Vec<u8>,
    attributes: Attributes,
    what: What,
    /// Inode and size: with the time they tell whether it changed.
    identity: (u64, u64),
}

enum What {
    Folder,
    File { size: u64, extents: Vec<Extent> },
    Link { target: Vec<u8> },
}

impl Folder {
    /// Looks through a folder. Whatever cannot travel is refused by its name.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let mut finder = Finder { root: path, found: Vec::new(), lent: None };
        let metadata = path.metadata().map_err(|e| Failure::reading(path, &e))?;
        let root = finder.attributes(b".", &metadata);
        finder.look_through(Vec::new())?;
        if let Some((first, count)) = finder.lent {
            tracing::warn!(
                "{first}: is setuid or setgid; owners do not travel, so these bits do not either ({count} in all)"
            );
        }
        let mut found = finder.found;
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let table = Table::new(root, found.iter().map(Found::entry).collect())
            .map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
        let (table, runs) = (table.emit(), table.runs().to_vec());
        let times = found.iter().map(|found| found.attributes.seconds).chain([root.seconds]);
        let modified = times.max().and_then(|latest| u64::try_from(latest).ok()).unwrap_or(0);
        Ok(Self { path: path.to_owned(), found, runs, table, modified, root })
    }

    /// Length of the object.
    pub fn size(&self) -> u64 {
        self.data_len() + self.table_len()
    }

    /// Length of the table at its end.
    pub fn table_len(&self) -> u64 {
        self.table.len() as u64
    }

    fn data_len(&self) -> u64 {
        self.runs.last().map_or(0, Run::end)
    }

    /// Fills `bytes` with the object from byte `at` on.
    pub fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> Result<(), Failure> {
        let end = at + bytes.len() as u64;
        for run in runs_in(&self.runs, at..end) {
            let path = self.path_of(&self.found[run.entry]);
            let into = &mut bytes[(run.start - at) as usize..][..run.len as usize];
            open(&path)
                .and_then(|file| file.read_exact_at(into, run.offset))
                .map_err(|e| no_longer(&path, &e))?;
        }
        let data_len = self.data_len();
        if end > data_len {
            let from = at.max(data_len);
            let part = &self.table[(from - data_len) as usize..(end - data_len) as usize];
            bytes[(from - at) as usize..].copy_from_slice(part);
        }
        Ok(())
    }

    /// What was packed must be one moment's folder: nothing of it has changed since it was looked through.
    pub fn is_unchanged(&self) -> Result<(), Failure> {
        let root = self.path.metadata().map_err(|e| no_longer(&self.path, &e))?;
        let mut changed = (time(&root) != time_of(&self.root)).then(|| self.path.clone());
        for found in &self.found {
            let path = self.path_of(found);
            let metadata = path.symlink_metadata().map_err(|e| no_longer(&path, &e))?;
            let identity = (metadata.ino(), metadata.len());
            if (time(&metadata), identity) != (time_of(&found.attributes), found.identity) {
                changed.get_or_insert(path);
            }
        }
        changed.map_or(Ok(()), |path| Err(self::changed(&path)))
    }

    fn path_of(&self, found: &Found) -> PathBuf {
        self.path.join(OsStr::from_bytes(&found.path))
    }
}

/// It is not what it was when it was looked at.
pub fn changed(path: &Path) -> Failure {
    let message = format!("{}: changed while it was being packed; pack it again", shown(path));
    Failure::new(Outcome::TryAgain, message)
}

/// What was there, or was as long, cannot be read any more.
pub fn no_longer(path: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::UnexpectedEof => changed(path),
        _ => Failure::reading(path, error),
    }
}

fn time(metadata: &Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

fn time_of(attributes: &Attributes) -> (i64, i64) {
    (attributes.seconds, i64::from(attributes.nanos))
}

impl Found {
    fn entry(&self) -> Entry<'_> {
        let kind = match &self.what {
            What::Folder => Kind::Folder,
            What::File { size, extents } => Kind::File { size: *size, extents: extents.clone() },
            What::Link { target } => Kind::Link { target },
        };
        Entry { path: &self.path, attributes: self.attributes, kind }
    }
}

/// On its way through a folder.
struct Finder<'a> {
    root: &'a Path,
    found: Vec<Found>,
    /// The first entry that is setuid or setgid, and how many there are.
    lent: Option<(String, usize)>,
}

impl Finder<'_> {
    fn look_through(&mut self, below: Vec<u8>) -> Result<(), Failure> {
        let mut folders = vec![below];
        while let Some(folder) = folders.pop() {
            let path = self.root.join(OsStr::from_bytes(&folder));
            let failed = |e: &io::Error| no_longer(&path, e);
            for entry in std::fs::read_dir(&path).map_err(|e| failed(&e))? {
                let name = entry.map_err(|e| failed(&e))?.file_name();
                let mut below = folder.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(name.as_bytes());
                check_path(&below).map_err(|e| Failure::usage(e.to_string()))?;
                let path = path.join(&name);
                let metadata = path.symlink_metadata().map_err(|e| no_longer(&path, &e))?;
                let mut attributes = self.attributes(&below, &metadata);
                let what = what(&path, &metadata)?;
                match what {
                    What::Folder => folders.push(below.clone()),
                    What::Link { .. } => attributes.mode = 0o777,
                    What::File { .. } => {}
                }
                self.found.push(Found {
                    path: below,
                    attributes,
                    what,
                    identity: (metadata.ino(), metadata.len()),
                });
            }
        }
        Ok(())
    }

    fn attributes(&mut self, path: &[u8], metadata: &Metadata) -> Attributes {
        if metadata.mode() & 0o6000 != 0 {
            let (_, count) = self.lent.get_or_insert_with(|| (Shown(path.to_vec()).to_string(), 0));
            *count += 1;
        }
        Attributes {
            mode: (metadata.mode() & u32::from(MODE_MASK)) as u16,
            seconds: metadata.mtime(),
            nanos: metadata.mtime_nsec() as u32,
        }
    }
}

fn what(path: &Path, metadata: &Metadata) -> Result<What, Failure> {
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Ok(What::Folder);
    }
    let failed = |e: io::Error| no_longer(path, &e);
    if kind.is_symlink() {
        let target = std::fs::read_link(path).map_err(failed)?.into_os_string().into_vec();
        return Ok(What::Link { target });
    }
    if kind.is_file() {
        let size = metadata.len();
        let extents = extents_of(&open(path).map_err(failed)?, size).map_err(failed)?;
        return Ok(What::File { size, extents });
    }
    let what = match kind {
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(Failure::usage(format!(
        "{}: is {what}; a folder to pack may hold files, folders and symbolic links only",
        shown(path)
    )))
}

fn shown(path: &Path) -> Shown {
    Shown(path.as_os_str().as_bytes().to_vec())
}

/// A link that took the place of a file meanwhile is not followed, and a pipe that did is not waited for.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path)
}

/// Where a file has more than zeros.
fn extents_of(file: &File, size: u64) -> io::Result<Vec<Extent>> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut data = |offset: u64, len: u64| match extents.last_mut() {
        Some(last) if last.offset + last.len == offset => last.len += len,
        _ => extents.push(Extent { offset, len }),
    };
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < size {
        if size - at < HOLE_LEN {
            data(at, size - at);
            break;
        }
        // What the file system knows to be a hole need not be read.
        let next = match lseek64(file, at as i64, Whence::SeekData) {
            Ok(next) => next as u64,
            Err(Errno::ENXIO) => size, // nothing but a hole up to the end
            Err(_) => at,              // it does not know
        };
        let next = next.min(size) / HOLE_LEN * HOLE_LEN;
        if next > at {
            at = next;
            continue;
        }
        let blocks = ((size - at) / HOLE_LEN).min(BLOCKS as u64) as usize;
        buffer.resize(blocks * HOLE_LEN as usize, 0);
        file.read_exact_at(&mut buffer, at)?;
        for block in buffer.chunks(HOLE_LEN as usize) {
            if block != ZEROS {
                data(at, HOLE_LEN);
            }
            at += HOLE_LEN;
        }
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vanishes_meanwhile_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        folder.is_unchanged().unwrap();
        std::fs::remove_file(&file).unwrap();
        let read = folder.read_exact_at(&mut [0], 0).unwrap_err();
        assert_eq!(
            [read.outcome, folder.is_unchanged().unwrap_err().outcome],
            [Outcome::TryAgain, Outcome::TryAgain]
        );
    }

    #[test]
    fn holes_are_what_is_zero_wherever_that_is_kept() {
        let file = tempfile::tempfile().unwrap();
        let size = 40 * HOLE_LEN + 7;
        file.set_len(size).unwrap();
        file.write_all_at(&[1; 3], 2 * HOLE_LEN - 1).unwrap(); // across a border
        file.write_all_at(&[0; 1 << 20], 20 * HOLE_LEN).unwrap(); // zeros that are kept
        file.write_all_at(&[1], 39 * HOLE_LEN).unwrap();
        let extents: Vec<_> =
            extents_of(&file, size).unwrap().iter().map(|e| (e.offset / HOLE_LEN, e.len)).collect();
        assert_eq!(extents, [(1, 2 * HOLE_LEN), (39, HOLE_LEN + 7)]);
        assert_eq!(extents_of(&file, 0).unwrap(), []);
        let small = extents_of(&file, 100).unwrap();
        assert_eq!(small, [Extent { offset: 0, len: 100 }]);
        let hole = tempfile::tempfile().unwrap();
        hole.set_len(3 * HOLE_LEN).unwrap();
        assert_eq!(extents_of(&hole, 3 * HOLE_LEN).unwrap(), []);
    }
}
