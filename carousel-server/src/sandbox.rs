//! What a running server can no longer do, whatever happens to it: no capability, of the files those that it sends,
//! and the system calls of [`crate::syscalls`]. It is entered when everything has been opened once, before the first
//! thread is started, so that all threads are in it.
//!
//! It can read the folders in which configuration and bundles lie, and what is below them, because a new release is a
//! new file there. A folder that was not known at the start needs a restart.

use caps::{CapSet, Capability};
use carousel_proto::outcome::Failure;
use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};
use std::collections::BTreeSet;
use std::fs::{File, canonicalize};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The newest Landlock of which we know what it takes away. Older kernels take away what they can.
const LANDLOCK: ABI = ABI::V9;

/// The sandbox that this process is in.
pub struct Sandbox {
    /// What can be read, if not everything.
    folders: Option<BTreeSet<PathBuf>>,
}

impl Sandbox {
    /// None.
    pub fn none() -> Self {
        Self { folders: None }
    }

    /// Enters it for good. These files will be opened again. What this kernel cannot do is said and not done.
    pub fn enter(files: &[&Path]) -> Self {
        if let Err(error) = drop_capabilities(files) {
            tracing::warn!("capabilities cannot be dropped: {error}; going on with them");
        }
        let folders = folders(files);
        let is_confined = match confine(&folders) {
            Ok(RulesetStatus::NotEnforced) => {
                tracing::warn!(
                    "this kernel has no Landlock: the server could read any file that its user may"
                );
                false
            }
            Ok(_) => true,
            Err(error) => {
                tracing::warn!("Landlock: {error}: the server could read any file that its user may");
                false
            }
        };
        #[cfg(target_pointer_width = "64")]
        let filtered = crate::syscalls::filter();
        #[cfg(not(target_pointer_width = "64"))]
        let filtered: Result<(), &str> = Err("not for 32-bit machines");
        if let Err(error) = filtered {
            tracing::warn!(
                "no seccomp filter ({error}): the server listens to nothing, but nothing keeps it from it"
            );
        }
        Self { folders: is_confined.then_some(folders) }
    }

    /// Whether a file can be read in here, as far as that depends on its place.
    pub fn check(&self, file: &Path) -> Result<(), Failure> {
        let Some(folders) = &self.folders else { return Ok(()) };
        // A file that is not there gets its own error when it is opened.
        let Ok(real) = canonicalize(file) else { return Ok(()) };
        if folders.iter().any(|folder| real.starts_with(folder)) {
            // Landlock knows folders, not their names.
            let is_closed = File::open(file).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
            return if is_closed {
                Err(Failure::storage(format!(
                    "{}: permission denied; if its folder is another one since the server was started, restart it",
                    file.display()
                )))
            } else {
                Ok(())
            };
        }
        Err(Failure::usage(format!(
            "{}: the server was not started with a file in that folder, and can read no other; restart it",
            file.display()
        )))
    }
}

/// With it root writes into other users' folders.
const FOR_FOREIGN_FOLDERS: [Capability; 2] = [Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER];

/// For the process that writes status files: it can replace files in these folders, and read what it has open. What the
/// kernel cannot do is not said: the server says it of itself.
pub fn enter_as_writer(folders: &[&Path]) {
    if let Err(error) = keep_for_writing(folders) {
        tracing::warn!("status: capabilities cannot be dropped: {error}; going on with them");
    }
    let replace = AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile;
    let confined = ruleset()
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(folders, replace)))
        .and_then(|ruleset| ruleset.restrict_self());
    if let Err(error) = confined {
        tracing::warn!("status: Landlock: {error}; going on without");
    }
    #[cfg(target_pointer_width = "64")]
    let _ = crate::syscalls::filter_writer(); // an old kernel: said by the server
}

/// In whose folder we are is found out without the privilege that opens them all.
fn keep_for_writing(folders: &[&Path]) -> Result<(), caps::errors::CapsError> {
    let had = caps::read(None, CapSet::Permitted)?;
    if had.is_empty() {
        return Ok(());
    }
    let is_ours =
        |m: std::fs::Metadata| m.uid() == nix::unistd::geteuid().as_raw() && m.mode() & 0o300 == 0o300;
    let foreign = !folders.iter().all(|folder| folder.metadata().is_ok_and(is_ours));
    let keep = FOR_FOREIGN_FOLDERS.into_iter().filter(|capability| foreign && had.contains(capability));
    let keep = keep.collect();
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    caps::clear(None, CapSet::Inheritable)
}

/// A file's contents, without read(2): the sandbox has only pread(2), which cannot receive. What is no file, a pipe
/// perhaps, can be read once, before the sandbox is entered.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut bytes = Vec::new();
    if metadata.is_file() {
        bytes.resize(metadata.len() as usize, 0);
        file.read_exact_at(&mut bytes, 0)?;
    } else {
        file.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Where these files are, and where they are reached: a link may be replaced by a file.
fn folders(files: &[&Path]) -> BTreeSet<PathBuf> {
    let folder = |path: PathBuf| path.parent().map(Path::to_owned);
    let real = files.iter().filter_map(|file| folder(canonicalize(file).ok()?));
    let named = files.iter().filter_map(|file| canonicalize(folder(std::path::absolute(file).ok()?)?).ok());
    real.chain(named).collect()
}

/// Sending and reading need none. The system call is not made where there is nothing to drop: service managers may
/// have forbidden it.
fn drop_capabilities(files: &[&Path]) -> Result<(), caps::errors::CapsError> {
    if caps::read(None, CapSet::Permitted)?.is_empty() {
        return Ok(());
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set)?;
    }
    for file in files {
        if File::open(file).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
            tracing::warn!(
                "{}: was read with a privilege that the server has now dropped: it cannot be taken up anew",
                file.display()
            );
        }
    }
    Ok(())
}

/// Lets this thread, and those it starts, read what is in these folders. Nothing else, no TCP, no signal and no
/// AF_UNIX socket to the world outside, as far as the kernel has words for that.
fn confine(folders: &BTreeSet<PathBuf>) -> Result<RulesetStatus, RulesetError> {
    let status = ruleset()?
        .add_rules(path_beneath_rules(folders, AccessFs::ReadFile | AccessFs::ReadDir))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Everything that Landlock can forbid, forbidden.
fn ruleset() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()
}
