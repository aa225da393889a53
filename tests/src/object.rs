//! Objects to send: bytes that look random and are the same on every machine, made and hashed in passing, so that
//! the test process stays small (its size shows in its children's, see `lab::Exit`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

const STEP: usize = 1 << 16;
const ISLAND: usize = 10_000;

/// Writes `size` bytes that follow from `seed` and returns their BLAKE3 in hex.
pub fn write(path: &Path, size: u64, seed: u64) -> io::Result<String> {
    let mut bytes =
        blake3::Hasher::new_derive_key("carousel-tests object").update(&seed.to_le_bytes()).finalize_xof();
    let (mut file, mut hash) = (File::create(path)?, blake3::Hasher::new());
    let (mut left, mut buffer) = (size, vec![0; STEP]);
    while left > 0 {
        let n = left.min(STEP as u64) as usize;
        bytes.fill(&mut buffer[..n]);
        hash.update(&buffer[..n]);
        file.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// Writes a file that is nearly all hole: an island of bytes at the beginning, at each of `at` and at the end, each
/// different, so that an offset cut to 32 bits shows. Returns its BLAKE3 in hex.
pub fn write_sparse(path: &Path, size: u64, at: &[u64]) -> io::Result<String> {
    let file = File::create(path)?;
    file.set_len(size)?;
    for offset in at.iter().copied().chain([0, size - ISLAND as u64]) {
        let mut island = [0; ISLAND];
        blake3::Hasher::new().update(&offset.to_le_bytes()).finalize_xof().fill(&mut island);
        file.write_all_at(&island, offset)?;
    }
    digest(path)
}

/// The BLAKE3 of a file in hex.
pub fn digest(path: &Path) -> io::Result<String> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, blake3::Hasher::new(), vec![0; STEP]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().to_hex().to_string()),
            n => hash.update(&buffer[..n]),
        };
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn digest_of_the_file_is_the_one_promised() {
        let dir = crate::lab::Folder::new();
        for size in [0, 1, 65_536, 65_537] {
            let path = dir.path().join("object");
            let promised = super::write(&path, size, 7).unwrap();
            assert_eq!(path.metadata().unwrap().len(), size);
            assert_eq!(super::digest(&path).unwrap(), promised);
        }
    }

    #[test]
    fn islands_lie_where_they_should() {
        let dir = crate::lab::Folder::new();
        let path = dir.path().join("object");
        super::write_sparse(&path, 1 << 20, &[500_000]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let land = |from: usize| bytes[from..from + super::ISLAND].iter().filter(|byte| **byte != 0).count();
        for from in [0, 500_000, (1 << 20) - super::ISLAND] {
            assert!(land(from) > super::ISLAND * 9 / 10);
        }
        assert_eq!(land(600_000), 0);
    }
}
