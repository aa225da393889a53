//! What a device remembers, in a folder of its own: the keys object, the releases it had, and how late it is at least.
//!
//! ```text
//! keys             the newest keys object, as it came
//! times            key id and seconds since 1970, a line for each key
//! release-HASH     an object's name, then key id and release sequence number, a line for each key
//! device-HASH      what of an object is on a block device while it is incomplete: the journal of `--device`
//! watch-NAME.json  what the agent has done about one item of its configuration
//! lock, watch-lock keep clients apart, and agents
//! ```
//!
//! Files are small, written rarely, and replaced whole: after a power cut there is the old one or the new one.

use carousel_proto::authority::{Marks, Memory};
use carousel_proto::keys::SignedKeys;
use carousel_proto::outcome::Failure;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

const KEYS: &str = "keys";
const TIMES: &str = "times";
const RELEASE: &str = "release-";
const DEVICE: &str = "device-";

/// The folder.
pub struct State {
    folder: PathBuf,
}

impl State {
    /// Makes the folder if it is not there, and finds out whether it can be written to.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        match std::fs::create_dir(folder) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(failed(folder, &e)),
            _ => {}
        }
        let state = Self { folder: folder.to_owned() };
        state.lock()?;
        Ok(state)
    }

    /// The keys object that came last. A damaged one is as good as none: its signatures tell, and it will come again.
    pub fn keys(&self) -> Result<Option<SignedKeys>, Failure> {
        let Some(bytes) = self.read(KEYS)? else { return Ok(None) };
        let signed = SignedKeys::parse(&bytes).ok().filter(|signed| signed.is_signed().is_ok());
        if signed.is_none() {
            tracing::warn!("{}: damaged, going on without it", self.folder.join(KEYS).display());
        }
        Ok(signed)
    }

    /// Keeps a keys object, unless there is a newer one by now.
    pub fn keep_keys(&self, signed: &SignedKeys) -> Result<(), Failure> {
        let _lock = self.lock()?;
        if self.keys()?.is_some_and(|known| known.keys.version >= signed.keys.version) {
            return Ok(());
        }
        let path = self.folder.join(KEYS);
        self.write(KEYS, &signed.emit().map_err(|e| Failure::storage(format!("{}: {e}", path.display())))?)
    }

    /// Where the journal of a device is. The same device under another name has another one: it takes longer, then.
    pub fn log_of(&self, device: &Path) -> PathBuf {
        let real = device.canonicalize().unwrap_or_else(|_| device.to_owned());
        let hash = blake3::hash(real.as_os_str().as_encoded_bytes()).to_hex();
        self.folder.join(format!("{DEVICE}{}", &hash[..32]))
    }

    /// All that was remembered.
    pub fn memory(&self) -> Result<Memory, Failure> {
        let mut memory = Memory { times: self.times()?, ..Memory::default() };
        let entries = std::fs::read_dir(&self.folder).map_err(|e| failed(&self.folder, &e))?;
        for entry in entries {
            let file = entry.map_err(|e| failed(&self.folder, &e))?.file_name();
            let Some(file) = file.to_str().filter(|file| file.starts_with(RELEASE)) else { continue };
            if let Some((name, marks)) = self.release(file)? {
                memory.releases.insert(name, marks);
            }
        }
        Ok(memory)
    }

    /// Remembers what is greater than what is remembered already.
    pub fn remember(&self, memory: &Memory) -> Result<(), Failure> {
        let _lock = self.lock()?;
        let mut times = self.times()?;
        times.merge(&memory.times);
        self.write_changed(TIMES, &times.emit())?;
        for (name, marks) in &memory.releases {
            let hash = blake3::hash(name.as_bytes()).to_hex();
            let file = format!("{RELEASE}{}", &hash[..32]);
            let mut merged = self.release(&file)?.map(|(_, known)| known).unwrap_or_default();
            merged.merge(marks);
            self.write_changed(&file, &format!("{name}\n{}", merged.emit()))?;
        }
        Ok(())
    }

    /// What the agent noted in a file of its own.
    #[cfg(feature = "watch")]
    pub fn note(&self, file: &str) -> Result<Option<String>, Failure> {
        self.read_text(file)
    }

    /// Notes something for the agent: after this it is on the disk.
    #[cfg(feature = "watch")]
    pub fn keep_note(&self, file: &str, text: &str) -> Result<(), Failure> {
        self.write(file, text.as_bytes())
    }

    /// Keeps every other agent away; `None` if there is one. Nobody else knows this lock.
    #[cfg(feature = "watch")]
    pub fn lock_for_agent(&self) -> Result<Option<File>, Failure> {
        let path = self.folder.join("watch-lock");
        let open = || File::options().create(true).truncate(false).write(true).open(&path);
        let file = open().map_err(|e| failed(&path, &e))?;
        Ok(file.try_lock().is_ok().then_some(file))
    }

    fn times(&self) -> Result<Marks, Failure> {
        let Some(text) = self.read_text(TIMES)? else { return Ok(Marks::default()) };
        Marks::parse(&text).ok_or_else(|| self.damaged(TIMES))
    }

    /// An object's name and its marks.
    fn release(&self, file: &str) -> Result<Option<(String, Marks)>, Failure> {
        let Some(text) = self.read_text(file)? else { return Ok(None) };
        let (name, lines) = text.split_once('\n').ok_or_else(|| self.damaged(file))?;
        let marks = Marks::parse(lines).ok_or_else(|| self.damaged(file))?;
        Ok(Some((name.to_owned(), marks)))
    }

    fn read(&self, file: &str) -> Result<Option<Vec<u8>>, Failure> {
        let path = self.folder.join(file);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(&path, &e)),
        }
    }

    fn read_text(&self, file: &str) -> Result<Option<String>, Failure> {
        let bytes = self.read(file)?;
        bytes.map(|bytes| String::from_utf8(bytes).map_err(|_| self.damaged(file))).transpose()
    }

    /// To go on would be to forget which releases are too old: a person has to say so.
    fn damaged(&self, file: &str) -> Failure {
        let path = self.folder.join(file);
        Failure::storage(format!(
            "{}: damaged; remove it, and this device forgets what it has had",
            path.display()
        ))
    }

    fn write_changed(&self, file: &str, text: &str) -> Result<(), Failure> {
        match self.read(file)? {
            Some(known) if known == text.as_bytes() => Ok(()),
            None if text.is_empty() => Ok(()),
            _ => self.write(file, text.as_bytes()),
        }
    }

    /// With the lock held.
    fn write(&self, file: &str, bytes: &[u8]) -> Result<(), Failure> {
        let (path, new) = (self.folder.join(file), self.folder.join(format!(".{file}.new")));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|e| failed(&path, &e))
    }

    fn lock(&self) -> Result<File, Failure> {
        let path = self.folder.join("lock");
        let open = || {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            file.lock().map(|()| file)
        };
        open().map_err(|e| failed(&path, &e))
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    let what = carousel_proto::outcome::plain(error);
    Failure::storage(format!("{}: {what}; choose another --state, or make room", path.display()))
}
