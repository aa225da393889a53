//! A block device as the target (`--device`): opened so that nobody else has it, measured before anything is written,
//! and read back before anybody is told that the object is there. There is no rename: until then it holds a part of the
//! old and a part of the new.

use carousel_proto::manifest::Manifest;
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::units::show_size;
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// udev takes the lock for a moment when it looks at a device.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// What is read back at once …
const PIECE: usize = 1 << 20;
/// … and what offset, length and memory are multiples of when it comes from the device itself: no device has larger
/// sectors.
const ALIGNMENT: usize = 64 << 10;

/// A device that is ours until this is dropped.
pub struct Device {
    path: PathBuf,
    /// Has the lock, and reads past the memory in which the kernel keeps what was just written.
    back: File,
    size: u64,
}

impl Device {
    /// Opens a device, for reading and writing, unless somebody else uses it. The first is what is written to. Nothing
    /// of it needs to be opened again: the sandbox need not know of any device.
    pub fn open(path: &Path) -> Result<(File, Self), Failure> {
        let back = open_back(path).map_err(|e| not_opened(path, &e))?;
        if !back.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device()) {
            return Err(Failure::usage(format!("{}: no block device; leave --device out", path.display())));
        }
        // The lock that udev heeds too, on whole disks: it does not look at one that is half written.
        let began = Instant::now();
        while back.try_lock().is_err() {
            if began.elapsed() > LOCK_WAIT {
                return Err(Failure::new(
                    Outcome::TryAgain,
                    format!("{}: another client is at work on it", path.display()),
                ));
            }
            std::thread::sleep(LOCK_WAIT / 50);
        }
        // On a block device, this is to have it alone: the kernel refuses what is mounted, swap or part of an array.
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_EXCL);
        let mut file = options.open(path).map_err(|e| not_opened(path, &e))?;
        let size = file.seek(SeekFrom::End(0)).map_err(|e| Failure::reading(path, &e))?;
        Ok((file, Self { path: path.to_owned(), back, size }))
    }

    /// Whether an object fits.
    pub fn has_room(&self, size: u64) -> Result<(), Failure> {
        if size <= self.size {
            return Ok(());
        }
        Err(Failure::storage(format!(
            "{}: the object has {} ({size} bytes), and the device only {} ({} bytes); choose a larger one",
            self.path.display(),
            show_size(size),
            show_size(self.size),
            self.size
        )))
    }

    /// Reads the object back from the device, which was synced, and compares it with what was signed.
    pub fn verify(&self, manifest: &Manifest) -> Result<(), Failure> {
        let found = self.hash(manifest.size).map_err(|e| {
            Failure::storage(format!("{}: cannot be read back: {}", self.path.display(), plain(&e)))
        })?;
        if found == manifest.digest {
            return Ok(());
        }
        Err(Failure::storage(format!(
            "{}: gives back other bytes than were written (BLAKE3 {found}); replace the device, or find what else \
             writes to it. Nothing was handed over",
            self.path.display()
        )))
    }

    fn hash(&self, size: u64) -> io::Result<blake3::Hash> {
        // For a kernel that reads nothing directly. A failure means that memory is read, and nothing worse.
        let _ = posix_fadvise(&self.back, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        let mut buffer = vec![0; PIECE + ALIGNMENT];
        let skip = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let buffer = &mut buffer[skip..][..PIECE];
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < size {
            let came = match self.back.read_at(buffer, at) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            };
            let wanted = usize::try_from(size - at).unwrap_or(usize::MAX);
            // Less than was asked for, and not the end: the next one begins at a multiple again.
            let count = if came >= wanted { wanted } else { came - came % ALIGNMENT };
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            hasher.update(&buffer[..count]);
            at += count as u64;
        }
        Ok(hasher.finalize())
    }
}

fn open_back(path: &Path) -> io::Result<File> {
    let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
    match open(libc::O_DIRECT) {
        Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => open(0),
        other => other,
    }
}

fn not_opened(path: &Path, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        ErrorKind::NotFound => {
            return Failure::usage(format!("{}: no such device; check the path", path.display()));
        }
        ErrorKind::ResourceBusy => {
            "in use: mounted, swap, or part of an array; choose the slot that is not in use"
        }
        ErrorKind::PermissionDenied => {
            "permission denied; run as root, or as the group that the device belongs to"
        }
        ErrorKind::ReadOnlyFilesystem => "read-only; `blockdev --setrw` may change that",
        _ => &plain(error),
    };
    Failure::storage(format!("{}: {remedy}", path.display()))
}
