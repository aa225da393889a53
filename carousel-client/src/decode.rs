//! The decoding threads: they complete blocks while others are still being received.
//!
//! A block is read once, decoded column stripe by column stripe, hashed, and only if the hash is right are the missing
//! places written. So a wrong symbol costs time, never data.

use crate::places::Places;
use crate::thread;
use crate::writer::{reserve, start_writeback};
use blake3::hazmat::ChainingValue;
use carousel_proto::fec::{FecError, StripeDecoder, stripes};
use carousel_proto::geometry::{Geometry, Sbn};
use carousel_proto::outcome::{Failure, plain};
use carousel_proto::pages::{block_hasher, block_value};
use carousel_proto::receiver::{BlockJob, place_of};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Column stripes of a block. More stripes need less work memory and more time, for each pays for the error
/// locator anew: 4 cost 5 % more than one and need a quarter of the memory.
const STRIPES: usize = 4;
/// Blocks up to this length are for devices with little memory: one thread is the default …
const SMALL_BLOCK_LOG2: u8 = 20;
/// … and the stripes are narrower.
const SMALL_BLOCK_STRIPES: usize = 10;
/// Symbols read or written by one system call: while it runs, the receiving thread may have to wait for the file.
const RUN: usize = 64;
/// What became of a [`BlockJob`].
pub struct Decoded {
    pub job: BlockJob,
    /// The block's hash was right, and the block is complete on disk.
    pub matched: bool,
    /// Something had to be restored; otherwise all source symbols were there.
    pub by_decoder: bool,
}

/// What the threads are asked for.
pub enum Job {
    /// To complete a block.
    Decode(BlockJob),
    /// To find out whether a block is here already, from an earlier run.
    Look(Sbn),
    /// To take a block from the seed, and find out what it is.
    Copy(Sbn),
}

/// What they answer.
pub enum Answer {
    /// There is room for the object.
    Reserved,
    Decoded(Decoded),
    /// The value of a block that is in the file now; nothing: the seed has no such block.
    Looked(Sbn, Option<ChainingValue>),
}

/// Where jobs go and answers come from, and the threads: when they have ended, nothing of theirs is open.
pub type Queues = (Sender<Job>, Receiver<Result<Answer, Failure>>, Vec<JoinHandle<()>>);

/// Starts the decoding threads on a work file; by default one per processor, at most two. Each takes a block at
/// a time and rings its `bell` with each result; they end when the queue of jobs is dropped. The first one reserves the
/// space before.
pub fn start(
    file: &Arc<Places>,
    path: &Path,
    seed: Option<&Arc<File>>,
    geometry: Geometry,
    threads: Option<u8>,
    bell: impl Fn() -> Result<PipeWriter, Failure>,
) -> Result<Queues, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(2);
    let default = if is_small(&geometry) { 1 } else { cores };
    let (jobs, todo) = unbounded::<Job>(); // never more than there are blocks
    let (results, done) = unbounded();
    let mut decoders = Vec::new();
    for number in 0..threads.map_or(default, usize::from) {
        let (todo, results, path) = (todo.clone(), results.clone(), path.to_owned());
        let (mut decoder, mut bell) = (Decoder::new(Arc::clone(file), seed.cloned(), geometry), bell()?);
        let started = std::thread::Builder::new().spawn(move || {
            let failed = |e: io::Error| Failure::writing(&path, &e);
            let mut tell = |result| results.send(result).is_ok() && bell.write_all(&[0]).is_ok();
            if number == 0
                && !tell(reserve(&decoder.file, &geometry).map(|()| Answer::Reserved).map_err(failed))
            {
                return;
            }
            thread::step_back(); // not before: without room nothing is kept
            for job in todo {
                if !tell(decoder.work(job).map_err(failed)) {
                    return;
                }
            }
        });
        let no_thread = |e| {
            let what = format!("no thread can be started: {}", plain(&e));
            Failure::new(carousel_proto::outcome::Outcome::Failed, what)
        };
        decoders.push(started.map_err(no_thread)?);
    }
    Ok((jobs, done, decoders))
}

fn is_small(geometry: &Geometry) -> bool {
    geometry.block_log2() <= SMALL_BLOCK_LOG2
}

struct Decoder {
    file: Arc<Places>,
    seed: Option<Arc<File>>,
    geometry: Geometry,
    /// Columns of the stripes.
    stripes: Vec<Range<usize>>,
    /// What the K places of a block hold, end to end.
    block: Vec<u8>,
    erasures: StripeDecoder,
    seed_failure_said: bool,
}

impl Decoder {
    fn new(file: Arc<Places>, seed: Option<Arc<File>>, geometry: Geometry) -> Self {
        let count = if is_small(&geometry) { SMALL_BLOCK_STRIPES } else { STRIPES };
        let stripes = stripes(geometry.symbol_len(), count).collect();
        let (block, erasures) = (Vec::new(), StripeDecoder::new());
        Self { file, seed, geometry, stripes, block, erasures, seed_failure_said: false }
    }

    fn work(&mut self, job: Job) -> io::Result<Answer> {
        match job {
            Job::Decode(job) => self.decode(job).map(Answer::Decoded),
            Job::Look(sbn) => self.look(sbn, None),
            Job::Copy(sbn) => self.look(sbn, self.seed.clone()),
        }
    }

    /// The value of a block that is here, or that is taken from the seed.
    fn look(&mut self, sbn: Sbn, seed: Option<Arc<File>>) -> io::Result<Answer> {
        let mut hasher = block_hasher(&self.geometry, sbn);
        let begin = self.geometry.block_offset(sbn);
        let end = begin + self.geometry.block_len(sbn) as u64;
        let piece = RUN * self.geometry.symbol_len();
        self.block.resize(piece, 0);
        let mut at = begin;
        while at < end {
            let bytes = &mut self.block[..piece.min((end - at) as usize)];
            let read = match &seed {
                Some(seed) => seed.read_exact_at(bytes, at),
                None => self.file.read_exact_at(bytes, at),
            };
            match read {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Answer::Looked(sbn, None)),
                // An old disk may have a bad place. What stood there comes by the network, like all that is new.
                Err(e) if seed.is_some() => {
                    if !std::mem::replace(&mut self.seed_failure_said, true) {
                        tracing::warn!("--seed cannot be read everywhere: {}", plain(&e));
                    }
                    return Ok(Answer::Looked(sbn, None));
                }
                other => other?,
            }
            if seed.is_some() {
                self.file.write_all_at(bytes, at)?;
            }
            hasher.update(bytes);
            at += bytes.len() as u64;
        }
        Ok(Answer::Looked(sbn, Some(block_value(&self.geometry, &hasher))))
    }

    fn decode(&mut self, job: BlockJob) -> io::Result<Decoded> {
        let by_decoder = (0..).zip(&job.places).any(|(place, content): (u16, _)| place != *content);
        self.read(&job)?;
        if by_decoder {
            self.restore(&job).map_err(|e| io::Error::other(format!("block {}: {e}", job.sbn.0)))?;
        }
        let mut hasher = block_hasher(&self.geometry, job.sbn);
        let len = self.geometry.block_len(job.sbn);
        hasher.update(&self.block[..len]);
        let matched = block_value(&self.geometry, &hasher) == job.expected;
        if matched && by_decoder {
            self.write_missing(&job)?;
        }
        if matched {
            start_writeback(&self.file, self.geometry.block_offset(job.sbn), len as u64);
        } else {
            let proven = job.verified;
            tracing::warn!(
                block = job.sbn.0,
                proven,
                "a block's hash is wrong: forged or damaged symbols dropped"
            );
        }
        tracing::debug!(block = job.sbn.0, matched, by_decoder, "decoded");
        Ok(Decoded { job, matched, by_decoder })
    }

    /// Reads all K places.
    fn read(&mut self, job: &BlockJob) -> io::Result<()> {
        let (t, k) = (self.geometry.symbol_len(), usize::from(job.k));
        self.block.resize(k * t, 0);
        // All places but the last follow one another in the file.
        let (most, last) = self.block.split_at_mut((k - 1) * t);
        let mut at = self.geometry.block_offset(job.sbn);
        for run in most.chunks_mut(RUN * t) {
            self.file.read_exact_at(run, at)?;
            at += run.len() as u64;
        }
        let place = place_of(&self.geometry, job.sbn, job.k - 1, job.places[k - 1]);
        last.fill(0);
        self.file.read_exact_at(&mut last[..place.len], place.offset)
    }

    /// Makes every place hold its own source symbol.
    fn restore(&mut self, job: &BlockJob) -> Result<(), FecError> {
        let t = self.geometry.symbol_len();
        for columns in &self.stripes {
            self.erasures.begin(usize::from(job.k), usize::from(job.r), columns.len())?;
            let mut moved = Vec::new();
            for (symbol, (place, content)) in self.block.chunks_exact(t).zip((0..).zip(&job.places)) {
                let column = &symbol[columns.clone()];
                self.erasures.add(*content, column)?;
                if *content < job.k && *content != place {
                    moved.push((*content, column.to_vec())); // a source symbol that was parked elsewhere
                }
            }
            let block = &mut self.block;
            let mut put = |esi: u16, column: &[u8]| {
                block[usize::from(esi) * t..][columns.clone()].copy_from_slice(column);
            };
            self.erasures.finish(&mut put)?;
            moved.iter().for_each(|(esi, column)| put(*esi, column));
        }
        Ok(())
    }

    /// Writes the places whose content was something else than their own symbol.
    fn write_missing(&self, job: &BlockJob) -> io::Result<()> {
        let (t, k) = (self.geometry.symbol_len(), usize::from(job.k));
        let len = self.geometry.block_len(job.sbn);
        let is_missing = |place: &usize| usize::from(job.places[*place]) != *place;
        let mut first = 0;
        while first < k {
            let end = first + (first..k).take(RUN).take_while(is_missing).count();
            if end > first {
                let at = self.geometry.block_offset(job.sbn) + (first * t) as u64;
                self.file.write_all_at(&self.block[first * t..len.min(end * t)], at)?;
            }
            first = end.max(first + 1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carousel_proto::fec::BlockEncoder;
    use carousel_proto::receiver::EMPTY_PLACE;
    use std::io::Write;

    /// A work file of one short block in which the places hold what `places` says.
    fn check(size: u64, places: impl Fn(u16, u16) -> u16, damage: bool) {
        let k = size.div_ceil(1188) as u16;
        let g = Geometry::new(size, 1188, 16, 56, k + 4).unwrap();
        let k = g.source_symbols(Sbn(0));
        let r = g.repair_symbols(Sbn(0));
        let mut source: Vec<u8> = (0..size).map(|i| (i * 31 / 7) as u8).collect();
        let expected = *blake3::hash(&source).as_bytes();
        source.resize(usize::from(k) * 1188, 0);
        let mut repair = vec![0; usize::from(r) * 1188];
        BlockEncoder::new().encode(k.into(), r.into(), 1188, &source, &mut repair).unwrap();
        let all = [source.clone(), repair].concat();
        let map: Vec<u16> = (0..k).map(|p| places(p, k)).collect();
        assert!(!map.contains(&EMPTY_PLACE));
        let path =
            std::env::temp_dir().join(format!("carousel-decode-{}-{size}-{damage}", std::process::id()));
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.write_all(&vec![0xee; size as usize + 1188]).unwrap();
        std::fs::remove_file(&path).unwrap();
        for (place, content) in (0..).zip(&map) {
            let at = place_of(&g, Sbn(0), place, *content);
            file.write_all_at(&all[usize::from(*content) * 1188..][..at.len], at.offset).unwrap();
        }
        if damage {
            let at = place_of(&g, Sbn(0), 0, map[0]);
            file.write_all_at(&[0x55], at.offset + 3).unwrap();
        }
        let before: Vec<u8> = contents(&file);
        let places = Arc::new(Places::in_file(file.try_clone().unwrap()));
        let mut decoder = Decoder::new(places, None, g);
        let job = BlockJob { sbn: Sbn(0), places: map, k, r, expected, verified: true };
        let result = decoder.decode(job).unwrap();
        assert_eq!(result.matched, !damage);
        if damage {
            assert_eq!(contents(&file), before, "a wrong block must not touch the disk");
        } else {
            assert_eq!(contents(&file)[..size as usize], source[..size as usize]);
        }
    }

    fn contents(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn every_way_to_fill_the_places() {
        for size in [1, 1187, 1188, 1189, 30_000, 65_536] {
            check(size, |place, _| place, false);
            check(size, |place, k| k + place, false); // all repair
            check(size, |place, k| if place % 2 == 0 { k + place } else { place }, false);
            check(size, |place, k| k - 1 - place, false); // all source, all in a wrong place
            check(size, |place, k| if place == k - 1 { 0 } else { k + place }, false);
        }
    }

    #[test]
    fn a_seed_that_cannot_be_read_is_no_failure() {
        let g = Geometry::new(30_000, 1188, 16, 56, 30).unwrap();
        let (folder, file) = (File::open("/").unwrap(), File::open("/dev/null").unwrap());
        assert!(folder.read_exact_at(&mut [0], 0).is_err());
        let mut decoder = Decoder::new(Arc::new(Places::in_file(file)), Some(Arc::new(folder)), g);
        for _ in 0..2 {
            assert!(matches!(decoder.work(Job::Copy(Sbn(0))), Ok(Answer::Looked(Sbn(0), None))));
        }
    }

    #[test]
    fn a_wrong_symbol_leaves_the_disk_alone() {
        check(30_000, |place, k| if place % 2 == 0 { k + place } else { place }, true);
        check(30_000, |place, _| place, true);
    }
}
