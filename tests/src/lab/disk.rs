//! A block device of our own: a loop device over a file. It is held by a descriptor of the test process and nothing
//! else, so that the kernel detaches it when that ends, whatever ends it.

use super::{Lab, have, skip};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A block device. Dropping it detaches it, once nobody else has it open.
pub struct Disk {
    path: PathBuf,
    image: PathBuf,
    _held: File,
}

impl Disk {
    /// Puts a device over a file. `None` where this machine has none for us: the test is skipped, and says so.
    pub fn over(lab: &Lab, image: &Path) -> Option<Self> {
        let attached = Self::attach(image);
        if let Err(why) = &attached {
            skip(lab.name(), &format!("no loop device: {why}"));
        }
        attached.ok()
    }

    fn attach(image: &Path) -> Result<Self, String> {
        if !have("losetup") {
            return Err("the program losetup is missing: mount".into());
        }
        let found = losetup(&["--find".as_ref(), "--show".as_ref(), image.as_os_str()])?;
        let path = PathBuf::from(found.trim());
        let held = File::open(&path).map_err(|e| format!("{}: {e}", path.display()));
        // Of a device that is open this only asks to detach it when it is closed; without a descriptor, at once.
        losetup(&["--detach".as_ref(), path.as_os_str()])?;
        Ok(Self { path, image: image.to_owned(), _held: held? })
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file behind it.
    pub fn image(&self) -> &Path {
        &self.image
    }
}

fn losetup(args: &[&std::ffi::OsStr]) -> Result<String, String> {
    let said = Command::new("losetup").args(args).output().map_err(|e| e.to_string())?;
    match said.status.success() {
        true => Ok(String::from_utf8_lossy(&said.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&said.stderr).trim().to_owned()),
    }
}
