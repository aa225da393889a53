//! Objects to send: bytes that look random and are the same on every machine, made and hashed in passing, so that
//! the test process stays small (its size shows in its children's, see `lab::Exit`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

const STEP: usize = 1 << 16;

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
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 1, 65_536, 65_537] {
            let path = dir.path().join("object");
            let promised = super::write(&path, size, 7).unwrap();
            assert_eq!(path.metadata().unwrap().len(), size);
            assert_eq!(super::digest(&path).unwrap(), promised);
        }
    }
}
