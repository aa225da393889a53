//! Two files that others read while a transfer runs: a reader finds the old contents or the new ones, never a part.
//!
//! A thread of its own writes them. A disk that is slow must not keep packets waiting, and one that is full, or a folder
//! that has gone, is worth a warning and nothing more.

use carousel_proto::outcome::{Failure, plain};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The end of a program waits so long for the last contents to be written.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// What the files shall contain, in their order.
pub type Contents = Vec<String>;

/// The files and who writes them.
pub struct Publisher {
    files: Vec<Published>,
    thread: Option<(Sender<Contents>, Receiver<()>)>,
}

impl Publisher {
    /// Tries to write each of the files, so that a wrong path is found before the transfer.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>, contents: &[String]) -> Result<Self, Failure> {
        let mut files: Vec<Published> = paths.into_iter().map(Published::new).collect();
        for (file, text) in files.iter_mut().zip(contents) {
            file.begin(text)?;
        }
        Ok(Self { files, thread: None })
    }

    /// Has a thread write from now on. Within the sandbox, for the thread is in whatever this one is in.
    pub fn start(&mut self) -> io::Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let (sender, inbox) = bounded::<Contents>(1);
        let (alive, ended) = bounded(0);
        let mut files = self.files.clone();
        std::thread::Builder::new().spawn(move || {
            let _alive: Sender<()> = alive;
            for contents in inbox {
                write_all(&mut files, &contents);
            }
        })?;
        self.thread = Some((sender, ended));
        Ok(())
    }

    /// Has them written. If the ones before are not written yet, these never are.
    pub fn publish(&mut self, contents: Contents) {
        match &self.thread {
            Some((sender, _)) => drop(sender.try_send(contents)),
            None => write_all(&mut self.files, &contents),
        }
    }

    /// The last ones, which are waited for, but not for ever.
    pub fn finish(&mut self, contents: Contents) {
        let Some((sender, ended)) = self.thread.take() else { return write_all(&mut self.files, &contents) };
        let _ = sender.send_timeout(contents, LAST_WAIT);
        drop(sender);
        let _ = ended.recv_timeout(LAST_WAIT); // an error in any case: that the thread has ended, or that it hangs
    }
}

fn write_all(files: &mut [Published], contents: &[String]) {
    files.iter_mut().zip(contents).for_each(|(file, text)| file.replace(text));
}

/// One file.
#[derive(Clone)]
struct Published {
    path: PathBuf,
    /// Beside it. The name does not end like the file's: nobody takes it for one.
    new: PathBuf,
    /// What is wrong at the moment, so that it is said once.
    trouble: Option<String>,
}

impl Published {
    fn new(path: PathBuf) -> Self {
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".new");
        Self { new: path.with_file_name(name), path, trouble: None }
    }

    fn begin(&mut self, text: &str) -> Result<(), Failure> {
        if self.path.is_dir() || self.path.file_name().is_none() {
            let path = self.path.display();
            return Err(Failure::usage(format!("{path}: is a folder; name the file to write there")));
        }
        match self.write(text) {
            Err(error) if is_wrong(error.kind()) => {
                let remedy = "name a file in a folder that is there and can be written to";
                Err(Failure::storage(format!("{}: {}; {remedy}", self.path.display(), plain(&error))))
            }
            Err(error) => {
                self.complain(&error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn replace(&mut self, text: &str) {
        match self.write(text) {
            Err(error) => self.complain(&error),
            Ok(()) if self.trouble.take().is_some() => {
                tracing::info!("{}: written again", self.path.display());
            }
            Ok(()) => {}
        }
    }

    /// Not synced: what it says is old after a power cut anyhow.
    fn write(&self, text: &str) -> io::Result<()> {
        let written = create(&self.new).and_then(|mut file| {
            // Other users read it, whatever the umask is: node_exporter is one.
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(text.as_bytes())?;
            drop(file);
            fs::rename(&self.new, &self.path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&self.new);
        }
        written
    }

    fn complain(&mut self, error: &io::Error) {
        let text = plain(error);
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!("{} cannot be written: {text}; going on without", self.path.display());
            self.trouble = Some(text);
        }
    }
}

/// A new file, never one that was there, nor where a link leads: the folder may be everybody's.
fn create(path: &Path) -> io::Result<File> {
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    match create() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            fs::remove_file(path)?; // of somebody who was killed
            create()
        }
        other => other,
    }
}

/// What will be no better later.
fn is_wrong(kind: ErrorKind) -> bool {
    use ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(kind, IsADirectory | NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem)
}
