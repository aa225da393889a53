//! Where the symbols of an object lie while it is incomplete: in a file, or on a block device. What has to be parked
//! beyond the object's end lies in the file too. A device may end there, and what it holds behind the object is not
//! ours: that part is in memory, some 300 bytes for each MiB in blocks of 4 MiB.

use carousel_proto::geometry::Geometry;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// The places of an object, for whoever reads and writes symbols.
pub struct Places {
    file: File,
    /// Of a device: what would lie behind the object, one symbol for each block.
    beyond: Option<Mutex<Beyond>>,
}

#[derive(Default)]
struct Beyond {
    /// Where the object ends.
    begin: u64,
    bytes: Vec<u8>,
}

impl Places {
    /// In a file, which may grow.
    pub fn in_file(file: File) -> Self {
        Self { file, beyond: None }
    }

    /// On a device, which cannot.
    pub fn on_device(file: File) -> Self {
        Self { file, beyond: Some(Mutex::default()) }
    }

    /// The file or the device.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether it is a device: there, room is there or not, and nothing is reserved.
    pub fn are_on_device(&self) -> bool {
        self.beyond.is_some()
    }

    /// Begins with an object; nothing of it may be under way.
    pub fn begin(&self, geometry: &Geometry) {
        if let Some(beyond) = &self.beyond {
            let spare = u64::from(geometry.blocks()) * geometry.symbol_len() as u64;
            *beyond.lock().unwrap_or_else(PoisonError::into_inner) =
                Beyond { begin: geometry.size(), bytes: vec![0; spare as usize] };
        }
    }

    /// Reads so many bytes. Where nothing can be, that is [`io::ErrorKind::UnexpectedEof`].
    pub fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let Some(beyond) = &self.beyond else { return self.file.read_exact_at(bytes, at) };
        let beyond = beyond.lock().unwrap_or_else(PoisonError::into_inner);
        let (begin, inside) = beyond.split(bytes.len(), at);
        let (bytes, rest) = bytes.split_at_mut(inside);
        if !rest.is_empty() {
            rest.copy_from_slice(
                beyond.bytes.get(begin..begin + rest.len()).ok_or(io::ErrorKind::UnexpectedEof)?,
            );
        }
        drop(beyond); // a device is slow
        self.file.read_exact_at(bytes, at)
    }

    /// Writes them.
    pub fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let Some(beyond) = &self.beyond else { return self.file.write_all_at(bytes, at) };
        let mut beyond = beyond.lock().unwrap_or_else(PoisonError::into_inner);
        let (begin, inside) = beyond.split(bytes.len(), at);
        let (bytes, rest) = bytes.split_at(inside);
        if !rest.is_empty() {
            let place = beyond.bytes.get_mut(begin..begin + rest.len());
            place.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(rest);
        }
        drop(beyond);
        self.file.write_all_at(bytes, at)
    }
}

impl Beyond {
    /// Of so many bytes at an offset: where the first that is not the object's lies in here, and how many are before
    /// it. Neighbours are written together, so a run may begin in the object and end behind it.
    fn split(&self, len: usize, at: u64) -> (usize, usize) {
        let inside = self.begin.saturating_sub(at).min(len as u64) as usize;
        ((at + inside as u64).saturating_sub(self.begin) as usize, inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_object_never_reaches_the_device() {
        let path = std::env::temp_dir().join(format!("carousel-places-{}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let end = file.try_clone().unwrap();
        let g = Geometry::new(100_000, 1188, 16, 56, 100).unwrap();
        let places = Places::on_device(file);
        places.begin(&g);
        let spare = usize::try_from(g.blocks()).unwrap() * 1188;
        let bytes: Vec<u8> = (0..100_000 + spare).map(|i| (i * 31 / 7) as u8).collect();
        // Runs of every kind: before the end, across it, behind it, and empty.
        for (at, len) in [(0, 99_000), (99_000, 1_000 + 700), (100_700, spare - 700), (100_000, 0)] {
            places.write_all_at(&bytes[at..at + len], at as u64).unwrap();
        }
        assert_eq!(end.metadata().unwrap().len(), 100_000);
        for (at, len) in [(0, 100_000), (98_000, 2_000 + spare), (100_001, spare - 1), (0, 100_000 + spare)] {
            let mut read = vec![0; len];
            places.read_exact_at(&mut read, at as u64).unwrap();
            assert!(read == bytes[at..at + len], "{len} bytes at {at}");
        }
        let too_far = places.read_exact_at(&mut [0; 2], 100_000 + spare as u64 - 1);
        assert_eq!(too_far.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(places.write_all_at(&[0; 2], 100_000 + spare as u64 - 1).is_err());
        // Another object forgets what was parked.
        places.begin(&g);
        let mut read = [1; 10];
        places.read_exact_at(&mut read, 100_000).unwrap();
        assert_eq!(read, [0; 10]);
    }
}
