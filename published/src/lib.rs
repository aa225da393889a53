//! A file that others read while a program writes it again and again. A reader finds the old contents or the new ones,
//! never a part; and nothing that happens to the file is a reason for the program to stop.
//!
//! Both programs publish their status so: the client from a thread, the server from a process of its own.

use carousel_proto::outcome::{Failure, plain};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// One file.
#[derive(Debug, Clone)]
pub struct Published {
    path: PathBuf,
    /// Beside it. The name does not end like the file's: nobody takes it for one.
    new: PathBuf,
    /// What is wrong at the moment, so that it is said once.
    trouble: Option<String>,
}

impl Published {
    /// Writes it for the first time. A path that is wrong is an error; a disk that is full is not.
    ///
    /// # Errors
    /// [`carousel_proto::outcome::Outcome::Usage`] or `Storage`, in one line.
    pub fn new(path: &Path, contents: &str) -> Result<Self, Failure> {
        let shown = path.display();
        let Some(file_name) = path.file_name().filter(|_| !path.is_dir()) else {
            return Err(Failure::usage(format!("{shown}: is a folder; name the file to write there")));
        };
        let mut name = OsString::from(".");
        name.push(file_name);
        name.push(".new");
        let mut new = Self { new: path.with_file_name(name), path: path.to_owned(), trouble: None };
        match new.write(contents.as_bytes()) {
            Err(error) if is_wrong(error.kind()) => {
                let remedy = "name a file in a folder that is there and can be written to";
                Err(Failure::storage(format!("{shown}: {}; {remedy}", plain(&error))))
            }
            other => {
                new.judge(&other);
                Ok(new)
            }
        }
    }

    /// Gives it new contents. If that fails it is said, once.
    pub fn replace(&mut self, contents: &[u8]) {
        let written = self.write(contents);
        self.judge(&written);
    }

    /// The folder that it is in: where new files are made, renamed and removed.
    pub fn folder(&self) -> &Path {
        folder_of(&self.path)
    }

    /// Not synced: what it says is old after a power cut anyhow.
    fn write(&self, contents: &[u8]) -> io::Result<()> {
        let written = create(&self.new).and_then(|mut file| {
            // Other users read it, whatever the umask is: node_exporter is one.
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(contents)?;
            drop(file);
            fs::rename(&self.new, &self.path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&self.new);
        }
        written
    }

    fn judge(&mut self, written: &io::Result<()>) {
        match written {
            Ok(()) if self.trouble.take().is_some() => {
                tracing::info!("{}: written again", self.path.display());
            }
            Ok(()) => {}
            Err(error) => {
                let text = plain(error);
                if self.trouble.as_ref() != Some(&text) {
                    tracing::warn!("{} cannot be written: {text}; going on without", self.path.display());
                    self.trouble = Some(text);
                }
            }
        }
    }
}

/// The folder that a file is in.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
