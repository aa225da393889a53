//! A folder that goes with its owner, whatever the owner dies of.
//!
//! Nothing in a process survives SIGKILL to tidy up after it, so another process does: the janitor, a shell that
//! makes the folder, waits for the end of a pipe whose other end only we hold, and removes what it made. It sits in a
//! session of its own and ignores the signals that end a terminal's or a service's processes. It is the only one that
//! removes folders, so every test that ends well shows that it works.
//!
//! What kills it together with us (a power cut, `cgroup.kill`) leaves a folder; the next `Folder::new` sweeps it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What the folders are called, so that a later run finds those of a run that was killed.
const PREFIX: &str = "carousel-lab-";

/// Makes a folder, says where, and removes it when stdin ends. Programs that die with us may still write while `rm`
/// runs, so it is repeated; that is bounded, because a mount or another user's file would hold it up for ever.
const JANITOR: &str = r#"
trap '' HUP INT QUIT TERM PIPE
folder=$(mktemp -d -t "$0XXXXXX") || exit
echo "$folder"
exec >/dev/null
read -r nothing
tries=100
while rm -rf "$folder"; [ -e "$folder" ]; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || exit 1
    sleep 0.1
done
"#;

/// A new folder below `TMPDIR`, gone when this is dropped or the process dies.
pub struct Folder {
    path: PathBuf,
    _lock: File,
    janitor: Child,
}

impl Folder {
    /// Makes it. Panics when it cannot.
    #[allow(clippy::new_without_default)] // nobody wants a folder by default
    pub fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    /// The same somewhere else, for instance in memory: `/dev/shm`.
    pub fn new_in(place: &Path) -> Self {
        sweep(place);
        Self::make(place).unwrap_or_else(|e| panic!("no folder in {}: {e}", place.display()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn make(place: &Path) -> io::Result<Self> {
        let mut janitor = Command::new("setsid")
            .env("TMPDIR", place)
            .args(["sh", "-c", JANITOR, PREFIX])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut said = String::new();
        if let Some(mut stdout) = janitor.stdout.take() {
            stdout.read_to_string(&mut said)?;
        }
        let path = PathBuf::from(said.trim_end_matches('\n'));
        let locked = File::open(&path).and_then(|folder| folder.lock().map(|()| folder));
        match locked {
            Ok(lock) => Ok(Self { path, _lock: lock, janitor }),
            Err(e) => {
                janitor.wait()?;
                Err(e)
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Waiting closes the pipe first.
        if !self.janitor.wait().is_ok_and(|status| status.success()) {
            super::say(&format!("LEFT BEHIND: {} could not be removed", self.path.display()));
        }
    }
}

/// Removes folders whose owner and janitor are both gone: their lock is free. One that was touched within the last
/// minute may be so new that its owner has not locked it yet.
fn sweep(place: &Path) {
    let old = |folder: &File| {
        let touched = folder.metadata().and_then(|about| about.modified()).ok();
        touched.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > Duration::from_secs(60))
    };
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        if File::open(entry.path()).is_ok_and(|folder| old(&folder) && folder.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::time::SystemTime;

    #[test]
    fn it_lives_as_long_as_its_owner() {
        let folder = Folder::new();
        let path = folder.path().to_owned();
        let janitor = format!("/proc/{}", folder.janitor.id());
        for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
            kill(Pid::from_raw(folder.janitor.id().cast_signed()), signal).unwrap();
        }
        fs::create_dir(path.join("inner")).unwrap();
        fs::write(path.join("inner/file"), "x").unwrap();
        drop(folder);
        assert!(!path.exists() && !fs::exists(&janitor).unwrap());
    }

    #[test]
    fn only_old_and_ownerless_folders_are_swept() {
        let place = Folder::new();
        let folder = |name: &str, minutes: u64| {
            let path = place.path().join(name);
            fs::create_dir(&path).unwrap();
            let file = File::open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(60 * minutes)).unwrap();
            (path, file)
        };
        let dead = folder("carousel-lab-dead", 2);
        let newborn = folder("carousel-lab-newborn", 0);
        let foreign = folder("foreign", 2);
        let owned = folder("carousel-lab-owned", 2);
        owned.1.lock().unwrap();
        sweep(place.path());
        assert_eq!([dead, newborn, foreign, owned].map(|(path, _)| path.exists()), [false, true, true, true]);
    }
}
