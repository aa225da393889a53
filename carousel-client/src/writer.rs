//! The work file: `.NAME.carousel-part` beside the target, written out of order, renamed when it is whole. With the
//! [`Journal`] beside it, it outlives a client that is killed. A block device is its own work file; its journal, if it
//! has one, is in the folder of `--state`.

#![allow(unsafe_code)]

use crate::device::Device;
use crate::journal::{Journal, Replay};
use crate::places::Places;
use carousel_proto::geometry::{Geometry, Sbn};
use carousel_proto::journal::Stored;
use carousel_proto::manifest::Manifest;
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::receiver::{Place, Standing};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, RenameFlags, fallocate, posix_fadvise, renameat2};
use nix::libc;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Symbols that follow one another in the file are written together, up to so many bytes.
const RUN_MAX: usize = 64 << 10;
/// What is reserved at once, because nobody can write meanwhile.
const PIECE: u64 = 64 << 20;

/// The object's file while it is incomplete. Dropping it removes it if there is nothing in it to go on with.
pub struct WorkFile {
    places: Arc<Places>,
    path: PathBuf,
    /// Where the journal is, if there can be one.
    log: Option<PathBuf>,
    /// As soon as it is known what the object is.
    journal: Option<Journal>,
    /// An earlier client left something in it.
    had: bool,
    /// There is room for all of it. Before that nothing is worth to be kept.
    reserved: bool,
    target: PathBuf,
    replace: bool,
    /// The target is a device, and there is no other file.
    device: Option<Device>,
    finished: bool,
    run: Vec<u8>,
    run_offset: u64,
}

impl WorkFile {
    /// Creates the work file of a target and keeps every other client away from it.
    pub fn create(target: &Path, replace: bool) -> Result<Self, Failure> {
        // A link that leads nowhere is there, too: the name that the object shall get is taken.
        if target.symlink_metadata().is_ok() && !replace {
            return Err(Failure::usage(format!(
                "{} exists; choose another --out, or --force",
                target.display()
            )));
        }
        let (path, log) = (hidden(target, ".carousel-part")?, hidden(target, ".carousel-log")?);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|e| Failure::writing(target, &e))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Failure::new(
                Outcome::TryAgain,
                format!("{}: another client is at work on it", target.display()),
            ),
            // Over a network, mostly, where the server does not know locks.
            TryLockError::Error(error) => Failure::storage(format!(
                "{}: no file can be locked there: {}; choose another --out",
                target.display(),
                plain(&error)
            )),
        })?;
        // Between opening and locking, another client may have renamed this very file to its target, or removed it.
        let same = file
            .metadata()
            .ok()
            .zip(path.metadata().ok())
            .is_some_and(|(mine, named)| (mine.dev(), mine.ino()) == (named.dev(), named.ino()));
        if !same {
            return Err(Failure::new(
                Outcome::TryAgain,
                format!("{}: another client has just been at work on it; try again", target.display()),
            ));
        }
        let had = file.metadata().is_ok_and(|metadata| metadata.len() > 0);
        let mut work = Self::new(Places::in_file(file), path, Some(log), target, replace, None);
        work.had = had;
        Ok(work)
    }

    /// Takes a device for the work file. With a log, a client that was killed leaves something to go on with.
    pub fn on_device(target: &Path, log: Option<PathBuf>) -> Result<Self, Failure> {
        let (file, device) = Device::open(target)?;
        Ok(Self::new(Places::on_device(file), target.to_owned(), log, target, false, Some(device)))
    }

    fn new(
        places: Places,
        path: PathBuf,
        log: Option<PathBuf>,
        target: &Path,
        replace: bool,
        device: Option<Device>,
    ) -> Self {
        Self {
            places: Arc::new(places),
            path,
            log,
            journal: None,
            had: false,
            reserved: false,
            target: target.to_owned(),
            replace,
            device,
            finished: false,
            run: Vec::with_capacity(RUN_MAX),
            run_offset: 0,
        }
    }

    /// Begins with an object, or goes on with it: what is there already, the log says.
    pub fn begin(&mut self, manifest: &blake3::Hash, geometry: &Geometry) -> Result<Option<Replay>, Failure> {
        if let Some(device) = &self.device {
            device.has_room(geometry.size())?; // before anything is written
        }
        self.run.clear(); // of another object, if there is any
        self.reserved = false;
        self.places.begin(geometry);
        let Some(log) = self.log.clone() else { return Ok(None) };
        let (journal, replay) = Journal::open(log, manifest, *geometry)?;
        if replay.is_none() && self.device.is_none() {
            self.places.file().set_len(0).map_err(|e| Failure::writing(&self.path, &e))?;
        }
        self.journal = Some(journal);
        Ok(replay)
    }

    /// What is in the file, for the decoder.
    pub fn places(&self) -> Arc<Places> {
        Arc::clone(&self.places)
    }

    /// Puts a symbol into its place. Neighbours are gathered and written together.
    pub fn store(&mut self, place: Place, stored: Stored, symbol: &[u8]) -> Result<(), Failure> {
        let follows = self.run_offset + self.run.len() as u64 == place.offset;
        if !follows || self.run.len() + place.len > RUN_MAX {
            self.flush()?;
            self.run_offset = place.offset;
        }
        self.run.extend_from_slice(&symbol[..place.len.min(symbol.len())]);
        if let Some(journal) = &mut self.journal {
            journal.handle_stored(stored);
        }
        Ok(())
    }

    /// What stands in a place; nothing where the file ends before it.
    pub fn load(&self, place: Place, symbol: &mut Vec<u8>) -> Result<(), Failure> {
        symbol.resize(place.len, 0);
        match self.places.read_exact_at(symbol, place.offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => symbol.clear(),
            other => other.map_err(|e| Failure::reading(&self.path, &e))?,
        }
        Ok(())
    }

    /// Writes what was gathered, and of what is in the file by then, how to go on with it.
    pub fn log(&mut self, standing: impl Fn(&Stored) -> Standing) -> Result<(), Failure> {
        self.flush()?;
        match &mut self.journal {
            Some(journal) if self.reserved => journal.write(standing),
            _ => Ok(()),
        }
    }

    /// There is room for the object.
    pub fn handle_reserved(&mut self) {
        self.reserved = true;
    }

    /// Whether there is.
    pub fn is_reserved(&self) -> bool {
        self.reserved
    }

    /// Whether it is time for [`WorkFile::log`].
    pub fn log_is_due(&self) -> bool {
        self.reserved && self.journal.as_ref().is_some_and(Journal::is_due)
    }

    /// A block is whole.
    pub fn log_block(&mut self, sbn: Sbn) -> Result<(), Failure> {
        self.journal.as_mut().map_or(Ok(()), |journal| journal.handle_block(sbn))
    }

    /// Nobody shall go on with it.
    pub fn discard(&mut self) {
        (self.journal, self.had) = (None, false);
    }

    /// Whether dropping it leaves something to go on with.
    pub fn is_kept(&self) -> bool {
        self.journal.as_ref().map_or(self.had, |journal| !journal.is_empty())
    }

    /// Whether the target holds a part of the object by now, which only a device can.
    pub fn is_torn(&self) -> bool {
        self.device.is_some() && self.reserved
    }

    /// Writes what was gathered: before a block goes to the decoder, and some times a second. After it, every symbol
    /// that was stored is in the file.
    pub fn flush(&mut self) -> Result<(), Failure> {
        if !self.run.is_empty() {
            self.places
                .write_all_at(&self.run, self.run_offset)
                .map_err(|e| Failure::writing(&self.path, &e))?;
            self.run.clear();
        }
        Ok(())
    }

    /// What it will be called.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// What it is called now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether something else may be there under that name, and go.
    pub fn replaces(&self) -> bool {
        self.replace
    }

    /// How long it is.
    pub fn len(&self) -> Result<u64, Failure> {
        let len = self.file().metadata().map(|metadata| metadata.len());
        len.map_err(|e| Failure::reading(&self.path, &e))
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        self.places.file()
    }

    /// The object is whole: makes it durable.
    pub fn seal(&mut self, size: u64) -> Result<(), Failure> {
        let sealed = self.file().set_len(size).and_then(|()| self.file().sync_all());
        if sealed.is_err() {
            // What the kernel could not write it takes for written. The next client is to see what the disk has.
            let _ = posix_fadvise(self.file(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        sealed.map_err(|e| Failure::writing(&self.path, &e))
    }

    /// All that was in it is elsewhere; `moved`: it has itself become one of the files, and somebody else may already
    /// have another one under its name.
    pub fn handle_unpacked(mut self, moved: bool) {
        self.finished = true;
        self.log.iter().for_each(|log| remove(log));
        if !moved {
            remove(&self.path);
        }
    }

    /// The object is whole: makes it durable and gives it its name, in this order. On a device it has one; there it is
    /// read back. When this returns, nobody here has the target open.
    pub fn finish(mut self, manifest: &Manifest) -> Result<PathBuf, Failure> {
        if let Some(device) = &self.device {
            self.file().sync_data().map_err(|e| Failure::writing(&self.path, &e))?;
            device.verify(manifest)?;
            self.finished = true;
            self.log.iter().for_each(|log| remove(log));
            return Ok(self.target.clone());
        }
        self.seal(manifest.size)?;
        let flags = if self.replace { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
        let rename =
            |flags| renameat2(nix::fcntl::AT_FDCWD, &self.path, nix::fcntl::AT_FDCWD, &self.target, flags);
        match rename(flags) {
            // Some file systems cannot refuse to replace; the target was looked for at the start.
            Err(Errno::EINVAL) if self.target.symlink_metadata().is_err() => rename(RenameFlags::empty()),
            other => other,
        }
        .map_err(|e| match e {
            Errno::EEXIST => {
                Failure::storage(format!("{} exists by now; --force replaces it", self.target.display()))
            }
            e => Failure::writing(&self.target, &e.into()),
        })?;
        self.finished = true;
        self.log.iter().for_each(|log| remove(log));
        if let Some(folder) = self.target.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Failure::writing(folder, &e))?;
        }
        Ok(self.target.clone())
    }
}

impl Drop for WorkFile {
    fn drop(&mut self) {
        if !self.finished && !self.is_kept() {
            self.log.iter().for_each(|log| remove(log));
            if self.device.is_none() {
                remove(&self.path);
            }
        }
    }
}

/// The name of something that belongs to a target while it is not there.
pub fn hidden(target: &Path, suffix: &str) -> Result<PathBuf, Failure> {
    let name = target.file_name().ok_or_else(|| {
        Failure::usage(format!("{}: not a file name; give --out a file or a folder", target.display()))
    })?;
    let mut file = std::ffi::OsString::from(".");
    file.push(name);
    file.push(suffix);
    Ok(target.with_file_name(file))
}

/// If it cannot be removed, it is of no harm.
fn remove(path: &Path) {
    let _ = nix::unistd::unlinkat(nix::fcntl::AT_FDCWD, path, nix::unistd::UnlinkatFlags::NoRemoveDir);
}

/// Reserves the space for an object and one spare symbol per block, so that a full disk shows now. Where files lie in
/// memory that would take as long as to fill them with zeros; there, and where the file system cannot, it only finds
/// out whether there is room.
pub fn reserve(places: &Places, geometry: &Geometry) -> io::Result<()> {
    if places.are_on_device() {
        return Ok(()); // its length was looked at
    }
    let file = places.file();
    let spare = u64::from(geometry.blocks()) * geometry.symbol_len() as u64;
    if fstatfs(file)?.filesystem_type() == TMPFS_MAGIC {
        return has_room(file, geometry.size() + spare);
    }
    // The spare ones first: after that it stays within what the finished file keeps.
    let mut pieces = vec![(geometry.size(), spare)];
    pieces
        .extend((0..geometry.size()).step_by(PIECE as usize).map(|at| (at, PIECE.min(geometry.size() - at))));
    for (at, len) in pieces {
        // What a 32-bit C library cannot name it cannot reserve either; it can be written all the same.
        let place = |n: u64| libc::off_t::try_from(n).map_err(|_| Errno::EOPNOTSUPP);
        let reserve = || fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, place(at)?, place(len)?);
        match std::iter::repeat_with(reserve).find(|done| *done != Err(Errno::EINTR)) {
            Some(Err(Errno::EOPNOTSUPP | Errno::ENOSYS)) => return has_room(file, geometry.size() + spare),
            Some(Err(error)) if len > 0 => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

fn has_room(file: &File, len: u64) -> io::Result<()> {
    let disk = fstatfs(file)?;
    let free = disk.blocks_available() as u64 * disk.block_size() as u64;
    let had = file.metadata()?.blocks() * 512; // by now some of it may have been written
    if free + had < len { Err(Errno::ENOSPC.into()) } else { Ok(()) }
}

/// Starts writing a finished part of the file to the disk, so that the last `fsync` finds little to do.
pub fn start_writeback(places: &Places, offset: u64, len: u64) {
    // SAFETY: takes a descriptor and numbers; a failure only means that `fsync` has more to do.
    unsafe {
        libc::sync_file_range(
            places.file().as_raw_fd(),
            offset as i64,
            len as i64,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}
