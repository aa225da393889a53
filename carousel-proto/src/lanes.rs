//! Keyed BLAKE3 of several records at once, one in each lane of the CPU's vectors.
//!
//! BLAKE3 spreads a long input over the vectors, a chunk of 1,024 bytes in each lane. A record is little longer than
//! one chunk: hashed by itself it fills one lane of four, eight or sixteen. So the same chunk of many records is
//! hashed side by side. What becomes of a chunk and of its parent is section 2 of the BLAKE3 paper (O'Connor,
//! Aumasson, Neves, Wilcox-O'Hearn, 2020); here are only records of two chunks, which is what packets of 1,280 and of
//! 1,500 bytes hold. All others are hashed one by one.
//!
//! The vector code is the `blake3` crate's own, by its module `platform`, which it promises nothing about. That is why
//! the workspace names the crate's exact version, and why the test below compares every length with
//! [`blake3::keyed_hash`].

use blake3::platform::Platform;
use blake3::{BLOCK_LEN, CHUNK_LEN, IncrementCounter, OUT_LEN};

/// So many records are hashed at once, in several turns where the vectors are narrower.
pub const LANES: usize = 16;

// Flags of the compression function: table 3 of the paper.
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

type Words = [u32; 8];
/// A chaining value, or a hash, of each record.
type Values = [[u8; OUT_LEN]; LANES];

/// What [`blake3::keyed_hash`] says of each of the records, of which there are at most [`LANES`].
pub fn keyed_hashes(key: &[u8; 32], records: &[&[u8]]) -> Values {
    let len = records.first().map_or(0, |record| record.len());
    let same = records.iter().all(|record| record.len() == len);
    if records.len() > 1 && same && (CHUNK_LEN + 1..=2 * CHUNK_LEN).contains(&len) {
        return hash_two_chunks(&words(key), records, len);
    }
    let mut hashes = Values::default();
    for (hash, record) in hashes.iter_mut().zip(records) {
        *hash = *blake3::keyed_hash(key, record).as_bytes();
    }
    hashes
}

/// All records have `len` bytes, more than a chunk and at most two.
fn hash_two_chunks(key: &Words, records: &[&[u8]], len: usize) -> Values {
    let platform = Platform::detect();
    let left = side_by_side::<CHUNK_LEN>(platform, key, records, 0, KEYED_HASH, CHUNK_START, CHUNK_END);

    // A lane takes whole blocks only, and what ends a chunk is another matter: the last block goes by itself.
    let whole = (len - CHUNK_LEN - 1) / BLOCK_LEN;
    let mut tails = [&[][..]; LANES];
    for (tail, record) in tails.iter_mut().zip(records) {
        *tail = &record[CHUNK_LEN..];
    }
    let mut right = whole_blocks(platform, key, &tails[..records.len()], whole);
    for (value, tail) in right.iter_mut().zip(tails) {
        let last = &tail[(whole * BLOCK_LEN).min(tail.len())..];
        let mut block = [0; BLOCK_LEN];
        block[..last.len()].copy_from_slice(last);
        let (mut state, start) = if whole == 0 { (*key, CHUNK_START) } else { (words(value), 0) };
        let flags = KEYED_HASH | start | CHUNK_END;
        platform.compress_in_place(&mut state, &block, last.len() as u8, 1, flags);
        for (bytes, word) in value.chunks_exact_mut(4).zip(state) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    let mut pairs = [[0; BLOCK_LEN]; LANES];
    for ((pair, left), right) in pairs.iter_mut().zip(left).zip(right) {
        pair[..OUT_LEN].copy_from_slice(&left);
        pair[OUT_LEN..].copy_from_slice(&right);
    }
    let pairs = pairs.each_ref().map(|pair| &pair[..]);
    side_by_side::<BLOCK_LEN>(platform, key, &pairs[..records.len()], 0, KEYED_HASH | PARENT | ROOT, 0, 0)
}

/// The chaining values of the second chunks when so many of their blocks were taken in, and more are to come.
fn whole_blocks(platform: Platform, key: &Words, tails: &[&[u8]], blocks: usize) -> Values {
    macro_rules! of {
        ($($blocks:literal)*) => {
            match blocks {
                $($blocks => side_by_side::<{ $blocks * BLOCK_LEN }>(
                    platform, key, tails, 1, KEYED_HASH, CHUNK_START, 0,
                ),)*
                _ => Values::default(), // none: the last block begins with the key
            }
        };
    }
    of!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
}

/// Compresses the first `N` bytes of each input, a multiple of [`BLOCK_LEN`]. No input is shorter.
fn side_by_side<const N: usize>(
    platform: Platform,
    key: &Words,
    inputs: &[&[u8]],
    counter: u64,
    flags: u8,
    flags_start: u8,
    flags_end: u8,
) -> Values {
    let mut lanes = [const { &[0; N] }; LANES];
    for (lane, input) in lanes.iter_mut().zip(inputs) {
        *lane = input.first_chunk().unwrap_or(lane);
    }
    let mut values = Values::default();
    platform.hash_many(
        &lanes[..inputs.len()],
        key,
        counter,
        IncrementCounter::No,
        flags,
        flags_start,
        flags_end,
        values.as_flattened_mut(),
    );
    values
}

fn words(bytes: &[u8; 32]) -> Words {
    let mut words = Words::default();
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8; 32] = b"any key of thirty-two bytes will";

    fn check(records: &[&[u8]]) {
        let hashes = keyed_hashes(KEY, records);
        for (index, record) in records.iter().enumerate() {
            let wanted = blake3::keyed_hash(KEY, record);
            assert_eq!(hashes[index], *wanted.as_bytes(), "{} bytes in lane {index}", record.len());
        }
    }

    #[test]
    fn every_length_in_every_lane() {
        let bytes: Vec<u8> = (0..LANES * 2100).map(|i| (i * i) as u8 ^ (i >> 7) as u8).collect();
        for len in (0..=2100).filter(|len| len % 64 < 2 || len % 64 == 63 || len % 97 == 0) {
            for count in [0, 1, 2, 3, 5, 8, 11, 15, 16] {
                check(&bytes.chunks_exact(2100).take(count).map(|record| &record[..len]).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn lengths_that_differ() {
        let bytes = [7; 2048];
        check(&[&bytes[..1204], &bytes[..1204], &bytes[..1203]]);
        check(&[&bytes[..16], &bytes[..2048], &bytes[..1025]]);
    }
}
