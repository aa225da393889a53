//! What `--out` means: where the object goes, and what may be there.

use crate::cli;
use crate::state::State;
use crate::writer::WorkFile;
use carousel_proto::manifest::Manifest;
use carousel_proto::outcome::Failure;
use carousel_published::folder_of;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What `--out` means: the object's name, a folder in which it keeps its own, or, with `--device`, a block device.
pub struct Target {
    out: PathBuf,
    is_folder: bool,
    is_device: bool,
}

impl Target {
    pub fn new(arguments: &cli::Get) -> Result<Self, Failure> {
        let out = arguments.out.clone();
        let usage = |what: &str| Err(Failure::usage(format!("{}: {what}", out.display())));
        let kind = out.metadata().map(|metadata| metadata.file_type());
        match &kind {
            Ok(kind) if kind.is_block_device() == arguments.device => {}
            Ok(kind) if kind.is_block_device() => {
                return usage("a block device; with --device, everything on it is overwritten");
            }
            Ok(_) => return usage("no block device; leave --device out"),
            Err(_) if arguments.device => return usage("no such device; check the path"),
            Err(_) => {} // a file that is still to come
        }
        if !arguments.device && kind.is_ok_and(|kind| !kind.is_file() && !kind.is_dir()) {
            return usage("neither a file nor a folder; choose another --out");
        }
        if arguments.no_target_directory {
            let out = out.components().collect(); // without a slash at its end
            return Ok(Self { out, is_folder: false, is_device: arguments.device });
        }
        let is_folder = out.is_dir() || ends_with_slash(&out);
        Ok(Self { out, is_folder, is_device: arguments.device })
    }

    /// Where it and its work file are. A device is opened before anything is given up, and has none.
    pub fn folder(&self) -> Option<&Path> {
        let folder = if self.is_folder { &self.out } else { folder_of(&self.out) };
        (!self.is_device).then_some(folder)
    }

    /// Whether it is a device, and there is no file beside it.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// The work file, where the target's name is known at once.
    pub fn early(&self, arguments: &cli::Get, state: Option<&State>) -> Result<Option<WorkFile>, Failure> {
        match (self.is_device, self.is_folder) {
            (true, _) => WorkFile::on_device(&self.out, state.map(|state| state.log_of(&self.out))).map(Some),
            (_, true) => Ok(None),
            _ => WorkFile::create(&self.out, arguments.force).map(Some),
        }
    }

    /// A folder that will be removed.
    pub fn replaced(&self, arguments: &cli::Get) -> Option<&Path> {
        let is_replaced = arguments.force && !self.is_folder && self.out.is_dir() && !self.out.is_symlink();
        is_replaced.then_some(&*self.out)
    }

    /// The manifest's name is a plain file name, or it would not have been accepted. What is meant by a folder's name
    /// must be plain too: the same command must not mean another place when it is given twice.
    pub fn path(&self, manifest: &Manifest) -> Result<PathBuf, Failure> {
        let (out, name) = (self.out.display(), &manifest.name);
        match (self.is_folder, manifest.table.is_some()) {
            (_, true) if self.is_device => Err(Failure::usage(format!(
                "{out} is a device, and {name} is a folder: it goes into a file system"
            ))),
            (true, true) if !ends_with_slash(&self.out) => Err(Failure::usage(format!(
                "{out} is a folder, and so is {name}: --out {out}/ puts it inside, -T --force puts it in its place"
            ))),
            (true, _) => Ok(self.out.join(name)),
            (false, false) if self.out.is_dir() => Err(Failure::usage(format!(
                "{out} is a folder, and {name} is a file: leave -T away to put it inside"
            ))),
            (false, _) => Ok(self.out.clone()),
        }
    }
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}
