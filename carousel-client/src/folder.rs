//! A folder from its object: the work file is taken apart from its end, beside the target, and the whole is swapped in.
//!
//! The table stands at the object's end, and an object becomes whole everywhere at once, so nobody can know earlier
//! where its bytes belong. Then a portion of the work file goes into the staged files, the disk has it, the work file
//! is cut by that much, and the next portion follows: never is more than one portion there twice. What the object
//! begins with is one file in most folders, the largest; what remains of the work file at last *is* this file, and
//! gets its name.
//!
//! ```text
//!  .NAME.carousel-part   [ file 1          | file 2 | file 3 | table ]        the object, proven
//!                        [ file 1          | file |                           cut; how long it is, is how far we are
//!  .NAME.carousel-tree/                          2, 3                         the staged folder, only for us to read
//!  .NAME.carousel-table  manifest's hash, inode of the staged folder, table   before the first cut, until the end
//! ```
//!
//! Who is killed meanwhile goes on: the length of the work file says where. What had been staged is believed no more
//! than a packet: all of it is hashed again, as if it lay end to end.

use crate::writer::{WorkFile, hidden};
use carousel_proto::manifest::Manifest;
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::table::{Attributes, Entry, Kind, Run, Shown, Table};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, copy_file_range, openat, renameat, renameat2};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, syncfs, unlinkat};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// So much is there twice at most: this part of the object, within these limits.
const PORTION_PART: u64 = 32;
const PORTION_MIN: u64 = 1 << 20;
const PORTION_MAX: u64 = 64 << 20;
/// Read and hashed, or copied, at once.
const STEP: usize = 1 << 20;
/// Only for us while it is being put together.
const PRIVATE_FOLDER: Mode = Mode::S_IRWXU;
const PRIVATE_FILE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// What the note begins with.
const NOTE: &[u8; 16] = b"carousel split 1";
/// These words, the manifest's hash and the staged folder's inode. The table follows, and a hash of all that.
const NOTE_HEADER_LEN: usize = 16 + 32 + 8;

/// A folder that is being put together.
pub struct Staging {
    work: WorkFile,
    /// `.NAME.carousel-tree`.
    tree: PathBuf,
    /// `.NAME.carousel-table`, locked as long as this lives.
    note: (PathBuf, File),
    /// The staged folder's inode: how we know it under the target's name.
    inode: u64,
    table: Vec<u8>,
    size: u64,
}

/// What an earlier client left.
pub enum Left {
    /// Nothing but what may be in the work file.
    Nothing(WorkFile),
    /// This very object, whole, and in the middle of being taken apart.
    Staged(Staging),
}

impl Left {
    /// Looks for it. What belongs to another object, or does not prove to be right, is removed.
    pub fn find(
        work: WorkFile,
        manifest: &Manifest,
        hash: &blake3::Hash,
        stop: &AtomicBool,
    ) -> Result<Self, Failure> {
        let (tree, path) =
            (hidden(work.target(), ".carousel-tree")?, hidden(work.target(), ".carousel-table")?);
        let mut work = work;
        if let Some(note) = open_note(&path)? {
            if note.try_lock().is_err() {
                return Err(Failure::new(
                    Outcome::TryAgain,
                    format!("{}: another client is at work on it", work.target().display()),
                ));
            }
            let failed = |e: io::Error| Failure::reading(&path, &e);
            if let Some((inode, table)) = read_note(&note, hash).map_err(failed)? {
                let staging = Staging {
                    work,
                    tree: tree.clone(),
                    note: (path.clone(), note),
                    inode,
                    table,
                    size: manifest.size,
                };
                let place = if staging.is_swapped() {
                    staging.work.target()
                } else {
                    open_up(&tree, true); // it may have been settled already
                    &tree
                };
                if staging.digest(place, stop).is_ok_and(|digest| digest == manifest.digest) {
                    return Ok(Self::Staged(staging));
                }
                check(stop).map_err(kept)?;
                tracing::warn!("what an earlier client had unpacked is damaged; taking it again");
                work = staging.work;
            }
        }
        remove_tree(&tree)?;
        remove_tree(&path)?;
        if manifest.table.is_some() && work.replaces() && work.target().symlink_metadata().is_ok() {
            can_swap(&tree, &path, work.target())?; // found out now rather than after the transfer
        }
        Ok(Self::Nothing(work))
    }
}

impl Staging {
    /// Begins with a whole object: everything in it has been proven.
    pub fn begin(mut work: WorkFile, manifest: &Manifest, hash: &blake3::Hash) -> Result<Self, Failure> {
        work.seal(manifest.size)?;
        let table_len = manifest.table.unwrap_or_default();
        let mut table = vec![0; table_len as usize]; // the manifest was refused if it were too long
        let file = work.file();
        file.read_exact_at(&mut table, manifest.size - table_len)
            .map_err(|e| Failure::reading(work.path(), &e))?;
        if let Err(error) = Table::parse(&table, manifest.size) {
            work.discard();
            return Err(Failure::untrusted(format!("{}: {error}; nothing was unpacked", manifest.name)));
        }
        let (tree, path) =
            (hidden(work.target(), ".carousel-tree")?, hidden(work.target(), ".carousel-table")?);
        remove_tree(&tree)?;
        let failed = |e: Errno| Failure::writing(&tree, &e.into());
        mkdirat(AT_FDCWD, &tree, PRIVATE_FOLDER).map_err(failed)?;
        let inode = tree.symlink_metadata().map_err(|e| Failure::writing(&tree, &e))?.ino();
        let failed = |e: io::Error| Failure::writing(&path, &e);
        let note = write_note(&path, hash, inode, &table).map_err(failed)?;
        sync_folder(work.target())?;
        Ok(Self { work, tree, note: (path, note), inode, table, size: manifest.size })
    }

    /// Unpacks and swaps in. When it fails, the object is kept, and [`Left::find`] goes on with it.
    pub fn finish(self, stop: &AtomicBool) -> Result<PathBuf, Failure> {
        let done = self.unpack(stop).and_then(|moved| self.swap().map(|()| moved));
        let moved = done.map_err(kept)?;
        let target = self.work.target().to_owned();
        if let Err(failure) = remove_tree(&self.tree) {
            tracing::warn!(
                "{}: what was there before could not be removed; remove it by hand",
                failure.message
            );
        }
        self.work.handle_unpacked(moved);
        remove_note(&self.note.0);
        Ok(target)
    }

    /// Everything but the last step. Whether the work file became one of the files is what it returns.
    fn unpack(&self, stop: &AtomicBool) -> Result<bool, Failure> {
        if self.is_swapped() {
            return Ok(false);
        }
        let table = self.table()?;
        let folder = self.tree.symlink_metadata().map_err(|e| Failure::reading(&self.tree, &e))?;
        if !folder.is_dir() {
            return Err(Failure::storage(format!("{}: is no longer a folder", self.tree.display())));
        }
        let mut tree = Tree::open(&self.tree, self.work.target())?;
        for (index, entry) in table.entries().iter().enumerate() {
            tree.make(entry)?;
            if index % 1024 == 0 {
                check(stop)?;
            }
        }
        let first = table.first();
        let mut moved = false;
        self.empty(&table, &mut tree, first.map_or(0, |run| run.len), stop)?;
        if let Some(run) = first {
            // If it is empty, an earlier client did this, and what is called the work file is a new one.
            if self.work.len()? == run.len {
                moved = tree.adopt(self.work.path(), &table.entries()[run.entry])?;
            }
            if !moved {
                // Older kernels' Landlock allows no move from folder to folder. An earlier client may have got half-way.
                self.empty(&table, &mut tree, 0, stop)?;
            }
        }
        check(stop)?;
        tree.settle(&table)?;
        Ok(moved)
    }

    /// Takes the work file apart down to a length, portion by portion: copied, on the disk, cut off.
    fn empty(
        &self,
        table: &Table<'_>,
        tree: &mut Tree,
        down_to: u64,
        stop: &AtomicBool,
    ) -> Result<(), Failure> {
        let portion = (self.size / PORTION_PART).clamp(PORTION_MIN, PORTION_MAX);
        let file = self.work.file();
        let mut len = self.work.len()?;
        while len > down_to {
            check(stop)?;
            let from = len.saturating_sub(portion).max(down_to);
            for run in table.runs_in(from..len) {
                tree.copy(file, run, &table.entries()[run.entry])?;
            }
            tree.sync()?;
            file.set_len(from).map_err(|e| Failure::writing(self.work.path(), &e))?;
            len = from;
        }
        Ok(())
    }

    /// Gives the folder its name, in one step, and makes that last.
    fn swap(&self) -> Result<(), Failure> {
        let target = self.work.target();
        if self.is_swapped() {
            return sync_folder(target); // by an earlier client
        }
        let rename = |flags| renameat2(AT_FDCWD, &self.tree, AT_FDCWD, target, flags);
        let is_there = || target.symlink_metadata().is_ok();
        let done = match rename(RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EEXIST | Errno::EINVAL) if self.work.replaces() && is_there() => {
                match rename(RenameFlags::RENAME_EXCHANGE) {
                    Err(Errno::EINVAL | Errno::ENOSYS) => return Err(no_swap(target)),
                    other => other,
                }
            }
            // Some file systems cannot refuse to replace.
            Err(Errno::EINVAL) if !is_there() => rename(RenameFlags::empty()),
            other => other,
        };
        done.map_err(|e| Failure::writing(target, &e.into()))?;
        sync_folder(target)
    }

    /// Whether what is there under the target's name is the staged folder.
    fn is_swapped(&self) -> bool {
        self.work.target().symlink_metadata().is_ok_and(|m| m.is_dir() && m.ino() == self.inode)
    }

    /// Of work file, files in a folder, and table, as if they lay end to end.
    fn digest(&self, folder: &Path, stop: &AtomicBool) -> Result<[u8; 32], Failure> {
        let table = self.table()?;
        let mut tree = Tree::open(folder, self.work.target())?;
        let (work, len) = (self.work.file(), self.work.len()?);
        let mut hasher = blake3::Hasher::new();
        let mut hash = |file: &File, at: u64, len: u64| -> Result<(), Failure> {
            let step = |left: u64| left.min(STEP as u64) as usize; // it may have more bytes than there are addresses
            let mut bytes = vec![0; step(len)];
            let mut done = 0;
            while done < len {
                let step = &mut bytes[..step(len - done)];
                file.read_exact_at(step, at + done).map_err(|e| Failure::reading(&self.tree, &e))?;
                hasher.update(step);
                check(stop)?;
                done += step.len() as u64;
            }
            Ok(())
        };
        for run in table.runs() {
            let here = len.clamp(run.start, run.end()) - run.start;
            hash(work, run.start, here)?;
            if here < run.len {
                let file = tree.file(&table.entries()[run.entry], OFlag::O_RDONLY)?;
                hash(&file, run.offset + here, run.len - here)?;
            }
        }
        hasher.update(&self.table);
        Ok(*hasher.finalize().as_bytes())
    }

    fn table(&self) -> Result<Table<'_>, Failure> {
        Table::parse(&self.table, self.size).map_err(|e| Failure::untrusted(e.to_string()))
    }
}

/// The staged folder. Every name in it is opened by itself, from the folder that it is in, and never through a link.
struct Tree {
    root: OwnedFd,
    /// The folder that was last worked in.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// For messages.
    target: PathBuf,
}

impl Tree {
    fn open(path: &Path, target: &Path) -> Result<Self, Failure> {
        let root = openat(AT_FDCWD, path, folder_flags(), Mode::empty())
            .map_err(|e| Failure::writing(path, &e.into()))?;
        Ok(Self { root, last: None, target: target.to_owned() })
    }

    /// Makes a folder, a link, or a file that has no data. What is there already is from an earlier client.
    fn make(&mut self, entry: &Entry<'_>) -> Result<(), Failure> {
        let failed = self.failed(entry);
        let (name, folder) = (name(entry.path), self.folder(entry)?);
        let made = match &entry.kind {
            Kind::Folder => mkdirat(folder, name, PRIVATE_FOLDER),
            Kind::Link { target } => {
                let make = || symlinkat(OsStr::from_bytes(target), folder, name);
                match make() {
                    // Where it leads to is in no hash.
                    Err(Errno::EEXIST) => {
                        unlinkat(folder, name, UnlinkatFlags::NoRemoveDir).and_then(|()| make())
                    }
                    other => other,
                }
            }
            Kind::File { extents, .. } if extents.is_empty() => {
                return self.file(entry, OFlag::O_RDWR | OFlag::O_CREAT).map(drop);
            }
            Kind::File { .. } => Ok(()),
        };
        match made {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Opens a file of the staged folder. One that may be written gets its length.
    fn file(&mut self, entry: &Entry<'_>, flags: OFlag) -> Result<File, Failure> {
        let failed = self.failed(entry);
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(self.folder(entry)?, name(entry.path), flags, PRIVATE_FILE).map_err(&failed)?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(|e| failed(errno(&e)))?;
        if let Kind::File { size, .. } = entry.kind
            && flags.contains(OFlag::O_RDWR)
            && metadata.len() != size
        {
            file.set_len(size).map_err(|e| failed(errno(&e)))?;
        }
        Ok(file)
    }

    /// Copies a run out of the work file. File systems that can share the bytes between both do.
    fn copy(&mut self, from: &File, run: Run, entry: &Entry<'_>) -> Result<(), Failure> {
        let failed = self.failed(entry);
        let to = self.file(entry, OFlag::O_RDWR | OFlag::O_CREAT)?;
        let (mut at, mut into) = (run.start as i64, run.offset as i64);
        let end = run.end() as i64;
        while at < end {
            let len = (end - at) as usize;
            // Both offsets are moved on by what was copied.
            match copy_file_range(from, Some(&mut at), &to, Some(&mut into), len) {
                Ok(0) => return Err(failed(Errno::EIO)), // the work file ends too early
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => break,
                Err(error) => return Err(failed(error)),
            }
        }
        let mut bytes = vec![0; if at < end { STEP.min((end - at) as usize) } else { 0 }];
        while at < end {
            let step = &mut bytes[..STEP.min((end - at) as usize)];
            from.read_exact_at(step, at as u64)
                .and_then(|()| to.write_all_at(step, into as u64))
                .map_err(|e| failed(errno(&e)))?;
            at += step.len() as i64;
            into += step.len() as i64;
        }
        Ok(())
    }

    /// Gives a file that lies beside the tree its name in it; `false`: that is not allowed.
    fn adopt(&mut self, path: &Path, entry: &Entry<'_>) -> Result<bool, Failure> {
        let failed = self.failed(entry);
        match renameat(AT_FDCWD, path, self.folder(entry)?, name(entry.path)) {
            Ok(()) => Ok(true),
            Err(Errno::EXDEV | Errno::EACCES | Errno::EPERM) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Permissions and times: of what is in a folder before the folder's own, which may take the right to go on.
    fn settle(&mut self, table: &Table<'_>) -> Result<(), Failure> {
        for entry in table.entries().iter().rev() {
            let failed = self.failed(entry);
            match entry.kind {
                Kind::Link { .. } => {
                    let (folder, time) = (self.folder(entry)?, time_of(&entry.attributes));
                    let flags = UtimensatFlags::NoFollowSymlink;
                    utimensat(folder, name(entry.path), &UNCHANGED, &time, flags).map_err(failed)?;
                }
                Kind::File { .. } => {
                    set(self.file(entry, OFlag::O_RDONLY)?, &entry.attributes).map_err(failed)?
                }
                Kind::Folder => {
                    let name = name(entry.path);
                    let folder =
                        openat(self.folder(entry)?, name, folder_flags(), Mode::empty()).map_err(&failed)?;
                    set(folder, &entry.attributes).map_err(failed)?;
                }
            }
        }
        set(&self.root, table.root()).map_err(|e| Failure::writing(&self.target, &e.into()))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), Failure> {
        syncfs(&self.root).map_err(|e| Failure::writing(&self.target, &e.into()))
    }

    /// The folder that an entry is in.
    fn folder(&mut self, entry: &Entry<'_>) -> Result<&OwnedFd, Failure> {
        let failed = self.failed(entry);
        let Some(slash) = entry.path.iter().rposition(|byte| *byte == b'/') else { return Ok(&self.root) };
        let path = &entry.path[..slash];
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let mut folder: Option<OwnedFd> = None;
            for name in path.split(|byte| *byte == b'/') {
                let within = folder.as_ref().unwrap_or(&self.root);
                let next = openat(within, OsStr::from_bytes(name), folder_flags(), Mode::empty());
                folder = Some(next.map_err(&failed)?);
            }
            self.last = folder.map(|folder| (path.to_vec(), folder));
        }
        Ok(self.last.as_ref().map_or(&self.root, |(_, folder)| folder))
    }

    fn failed(&self, entry: &Entry<'_>) -> impl Fn(Errno) -> Failure + use<> {
        let path = self.target.join(Shown(entry.path.to_vec()).to_string());
        move |error| Failure::writing(&path, &error.into())
    }
}

const UNCHANGED: TimeSpec = TimeSpec::UTIME_OMIT;

fn folder_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn name(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path.rsplit(|byte| *byte == b'/').next().unwrap_or(path))
}

fn time_of(attributes: &Attributes) -> TimeSpec {
    TimeSpec::new(attributes.seconds as _, attributes.nanos as _) // narrower on some 32-bit systems
}

fn set(file: impl AsFd, attributes: &Attributes) -> nix::Result<()> {
    futimens(&file, &UNCHANGED, &time_of(attributes))?;
    fchmod(&file, Mode::from_bits_truncate(attributes.mode.into()))
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// An end that leaves something to go on with.
fn kept(failure: Failure) -> Failure {
    let message =
        format!("{}; the object is whole and kept, the same command goes on with it", failure.message);
    Failure::new(failure.outcome, message)
}

fn check(stop: &AtomicBool) -> Result<(), Failure> {
    if stop.load(Ordering::Relaxed) { Err(Failure::new(Outcome::Failed, "interrupted")) } else { Ok(()) }
}

fn sync_folder(target: &Path) -> Result<(), Failure> {
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Failure::writing(folder, &e))
}

/// Whether a folder can take the place of what is there in one step: with something else in the part of the old one.
fn can_swap(tree: &Path, note: &Path, target: &Path) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::writing(tree, &e);
    std::fs::create_dir(tree).and_then(|()| File::create_new(note).map(drop)).map_err(failed)?;
    let swapped = renameat2(AT_FDCWD, tree, AT_FDCWD, note, RenameFlags::RENAME_EXCHANGE);
    remove_tree(tree)?;
    remove_tree(note)?;
    match swapped {
        Err(Errno::EINVAL | Errno::ENOSYS) => Err(no_swap(target)),
        other => other.map_err(|e| failed(e.into())),
    }
}

fn no_swap(target: &Path) -> Failure {
    Failure::storage(format!(
        "{}: this file system cannot swap two folders in one step; move the old one away first",
        target.display()
    ))
}

/// Written and on the disk before anything is cut off. A part of it is none: its hash would be missing.
fn write_note(path: &Path, manifest: &blake3::Hash, inode: u64, table: &[u8]) -> io::Result<File> {
    remove_note(path);
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
    file.try_lock()?;
    let mut bytes = [NOTE, &manifest.as_bytes()[..], &inode.to_be_bytes(), table].concat();
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    Ok(file)
}

fn open_note(path: &Path) -> Result<Option<File>, Failure> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    match File::options().read(true).write(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        // A folder: left by a client that died while it tried whether folders can be swapped.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => Ok(None),
        Err(e) => Err(Failure::reading(path, &e)),
    }
}

/// The inode and the table, if the note is whole and of this manifest.
fn read_note(file: &File, manifest: &blake3::Hash) -> io::Result<Option<(u64, Vec<u8>)>> {
    let len = file.metadata()?.len();
    if len > carousel_proto::table::MAX_TABLE_LEN + 1024 {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let Some((bytes, hash)) = bytes.split_last_chunk::<32>() else { return Ok(None) };
    let Some((header, table)) = bytes.split_at_checked(NOTE_HEADER_LEN) else { return Ok(None) };
    let expected = [NOTE, &manifest.as_bytes()[..]].concat();
    let Some((words, inode)) = header.split_last_chunk::<8>() else { return Ok(None) };
    if words != expected || blake3::hash(bytes) != *hash {
        return Ok(None);
    }
    Ok(Some((u64::from_be_bytes(*inode), table.to_vec())))
}

fn remove_note(path: &Path) {
    let _ = unlinkat(AT_FDCWD, path, UnlinkatFlags::NoRemoveDir); // if it cannot be removed, its hash is another one
}

/// Removes whatever is there under a name: never through a link, and also folders that forbid it to their owner.
fn remove_tree(path: &Path) -> Result<(), Failure> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    let removed = if metadata.is_dir() {
        std::fs::remove_dir_all(path).or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                open_up(path, false);
                std::fs::remove_dir_all(path)
            }
            _ => Err(error),
        })
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Failure::storage(format!("{}: {}", path.display(), plain(&e))))
        }
        _ => Ok(()),
    }
}

/// Gives the owner of a folder, and of those in it, the right to empty them; and if `files`, to read and write in them.
fn open_up(path: &Path, files: bool) {
    let allow = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let _ = allow(&folder, 0o700);
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            // The type is that of a link itself, not of where it leads to.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() && files => {
                    let _ = allow(&entry.path(), 0o600);
                }
                _ => {}
            }
        }
    }
}
