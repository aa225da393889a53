//! `pack`: cuts a file, or a folder laid end to end, into blocks, adds repair symbols and hashes, signs, and writes it all in sending order.
//!
//! Two passes. The first goes over the blocks, on several threads, each block from disk to its records; the
//! second goes over the hash pages and builds the tree above them. Memory does not depend on the file's size.

use crate::cli;
use crate::folder::Folder;
use crate::keys::{read_secret_key, sign, with_suffix};
use blake3::hazmat::ChainingValue;
use carousel_proto::apply::Apply;
use carousel_proto::bundle::{BundleHeader, FIRST_BLOCK_PAGE, MANIFEST_RECORD, Places};
use carousel_proto::fec::BlockEncoder;
use carousel_proto::geometry::{Geometry, MAX_SYMBOLS, Sbn};
use carousel_proto::manifest::{
    Envelope, FORMAT_VERSION, MAX_ENVELOPE_LEN, Manifest, ManifestError, SignatureAlgorithm, is_plain_name,
};
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::pages::{
    LANES, LEAF_LEN, PageNumber, Subtree, TreeShape, block_hasher, block_pages, block_value,
    emit_block_pages, leaves, object_digest, record_len,
};
use carousel_proto::rollout::{Rollout, SALT_LEN, salt_from, salt_of};
use carousel_proto::schedule::{Coset, DEFAULT_ROUNDS_LOG2, Layout};
use carousel_proto::units::{show_rate, show_size};
use carousel_proto::wire::{HEADER_LEN, IP_UDP_LEN, RECORD_HEADER_LEN, Slot, record_header};
use indicatif::{ProgressBar, ProgressStyle};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// So many bytes may be spent on the blocks of all workers.
const WORK_MEMORY: usize = 40 << 20;

/// `pack`.
pub fn pack(arguments: &cli::Pack) -> Result<(), Failure> {
    let began = Instant::now();
    let input = Input::open(&arguments.path, &arguments.out)?;
    let name = object_name(arguments)?;
    if arguments.out.exists() && !arguments.force {
        return Err(Failure::usage(format!(
            "{} exists; choose another --out, or --force",
            arguments.out.display()
        )));
    }
    let key = arguments.key.as_deref().map(read_secret_key).transpose()?;
    let layout = layout_for(arguments, input.size)?;
    let manifest = Manifest {
        version: FORMAT_VERSION,
        name,
        media_type: arguments.media_type.clone(),
        size: input.size,
        digest: [0; 32],
        symbol_len: layout.geometry().symbol_len() as u16,
        block_log2: layout.geometry().block_log2(),
        repair_full: layout.geometry().repair_full(),
        repair_last: layout.geometry().repair_last(),
        page_len: layout.page_len(),
        pages: layout.pages(),
        cap: Vec::new(),
        seq: arguments.seq,
        created: created(arguments, &input),
        expires: arguments.expires,
        compatible: (!arguments.compatible.is_empty()).then(|| arguments.compatible.clone()),
        rollout: rollout(arguments)?.map(|rollout| rollout.emit()),
        apply: apply(arguments),
        table: input.table_len(),
    };
    // Found now rather than after an hour of packing: the signature takes about 300 bytes more.
    if manifest.emit().len() + 16 * 16 + 320 > MAX_ENVELOPE_LEN {
        let too_long = ManifestError::TooLong(manifest.emit().len() + 16 * 16 + 320);
        return Err(Failure::usage(too_long.to_string()));
    }
    let writer = Writer::create(&arguments.out, layout)?;
    let values = writer.write_blocks(&input)?;
    input.is_unchanged()?;
    let mut manifest = writer.write_tree(manifest, &values)?;
    if let (Some(mut rollout), None) = (rollout(arguments)?, &arguments.rollout_salt) {
        rollout.salt = salt_of(&manifest.digest, manifest.seq);
        manifest.rollout = Some(rollout.emit());
    }
    let bytes = manifest.emit();
    let signature = key.map(|key| sign(&bytes, &manifest, &key)).transpose()?;
    writer.write_head(&manifest, &bytes, signature.as_deref())?;
    let bundle_len = writer.finish(&arguments.out)?;
    let rate = input.size as f64 * 8.0 / began.elapsed().as_secs_f64();
    tracing::info!(
        "packed {} ({}): {} blocks, bundle of {}, {}, at {}",
        manifest.name,
        show_size(input.size),
        layout.geometry().blocks(),
        show_size(bundle_len),
        if signature.is_some() { "signed" } else { "NOT signed" },
        show_rate(rate)
    );
    println!("{}", arguments.out.display());
    if signature.is_none() {
        let path = with_suffix(&arguments.out, ".manifest");
        std::fs::write(&path, &bytes).map_err(|e| Failure::writing(&path, &e))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// The file or folder to pack.
struct Input {
    source: Source,
    size: u64,
    modified: u64,
    path: std::path::PathBuf,
}

enum Source {
    /// And when it was last written to.
    File(File, Option<SystemTime>),
    Folder(Folder),
}

impl Input {
    /// `out` is where the bundle will be: not in the folder that is packed.
    fn open(path: &Path, out: &Path) -> Result<Self, Failure> {
        let reading = |e: std::io::Error| Failure::reading(path, &e);
        let metadata = path.metadata().map_err(reading)?;
        if metadata.is_dir() {
            let folder_of =
                |out: &Path| out.parent().filter(|p| !p.as_os_str().is_empty()).map(Path::canonicalize);
            let out = folder_of(out).unwrap_or_else(|| Path::new(".").canonicalize());
            if out.ok().zip(path.canonicalize().ok()).is_some_and(|(out, path)| out.starts_with(path)) {
                return Err(Failure::usage(format!(
                    "{}: the bundle would lie in the folder that it is made of; choose another --out",
                    path.display()
                )));
            }
            let folder = Folder::open(path)?;
            let (size, modified) = (folder.size(), folder.modified);
            return Ok(Self { source: Source::Folder(folder), size, modified, path: path.to_owned() });
        }
        if !metadata.is_file() {
            return Err(Failure::usage(format!(
                "{}: neither a regular file nor a folder; pack one of these",
                path.display()
            )));
        }
        let file = File::open(path).map_err(reading)?;
        let written = metadata.modified().ok();
        let modified = written.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |t| t.as_secs());
        let source = Source::File(file, written);
        Ok(Self { source, size: metadata.len(), modified, path: path.to_owned() })
    }

    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> Result<(), Failure> {
        match &self.source {
            Source::File(file, _) => file.read_exact_at(bytes, at).map_err(|e| {
                Failure::storage(format!("{}: {} (did it shrink?)", self.path.display(), plain(&e)))
            }),
            Source::Folder(folder) => folder.read_exact_at(bytes, at),
        }
    }

    /// How much of the object is its file table.
    fn table_len(&self) -> Option<u64> {
        match &self.source {
            Source::File(..) => None,
            Source::Folder(folder) => Some(folder.table_len()),
        }
    }

    /// What is signed must be what lay there at one moment, and not the half of a copy that is still being made.
    fn is_unchanged(&self) -> Result<(), Failure> {
        match &self.source {
            Source::File(file, written) => {
                let now = file.metadata().map_err(|e| Failure::reading(&self.path, &e))?;
                if (now.len(), now.modified().ok()) == (self.size, *written) {
                    return Ok(());
                }
                let path = self.path.display();
                let message = format!("{path}: changed while it was being packed; pack it again");
                Err(Failure::new(Outcome::TryAgain, message))
            }
            Source::Folder(folder) => folder.is_unchanged(),
        }
    }
}

fn object_name(arguments: &cli::Pack) -> Result<String, Failure> {
    let own = || arguments.path.file_name().and_then(|n| n.to_str()).map(str::to_owned);
    let name = arguments.name.clone().or_else(own).unwrap_or_default();
    if is_plain_name(&name) {
        Ok(name)
    } else {
        Err(Failure::usage(format!(
            "{name:?} is no plain file name of at most 255 bytes; give one by --name"
        )))
    }
}

/// The steps as they were given. A salt that follows from the object is still to come.
fn rollout(arguments: &cli::Pack) -> Result<Option<Rollout>, Failure> {
    if arguments.rollout.is_empty() {
        return Ok(None);
    }
    let salt = arguments.rollout_salt.as_deref().map_or([0; SALT_LEN], salt_from);
    let rollout = Rollout { salt, steps: arguments.rollout.clone() };
    rollout.validate().map_err(|e| Failure::usage(format!("--rollout: {e}")))?;
    Ok(Some(rollout))
}

fn apply(arguments: &cli::Pack) -> Option<Vec<u8>> {
    let apply = Apply { not_before: arguments.apply_not_before, jitter: arguments.apply_jitter };
    (apply != Apply::default()).then(|| apply.emit())
}

/// Reproducible: never the time of packing.
fn created(arguments: &cli::Pack, input: &Input) -> u64 {
    let epoch = || std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|t| t.parse().ok());
    arguments.created.or_else(epoch).unwrap_or(input.modified)
}

fn layout_for(arguments: &cli::Pack, size: u64) -> Result<Layout, Failure> {
    let usage = |e: &dyn std::fmt::Display| Failure::usage(e.to_string());
    let by_mtu = u64::from(arguments.mtu) - (IP_UDP_LEN + HEADER_LEN) as u64;
    let symbol_len = arguments.symbol_size.unwrap_or(by_mtu & !1);
    let symbol_len = u16::try_from(symbol_len).map_err(|_| usage(&"--symbol-size is too large"))?;
    if !arguments.block_size.is_power_of_two() {
        return Err(usage(&"--block-size must be a power of two from 64KiB to 16MiB"));
    }
    let block_log2 = arguments.block_size.trailing_zeros() as u8;
    let bare = Geometry::new(size, symbol_len, block_log2, 0, 0).map_err(|e| usage(&e))?;
    let k_full = (1u32 << block_log2).div_ceil(u32::from(symbol_len));
    let repair_full = (k_full * arguments.repair).div_ceil(100);
    let short = bare.blocks() > bare.full_blocks();
    let repair_last = if short {
        repair_of_short_block(u32::from(bare.source_symbols(Sbn(bare.full_blocks()))), k_full, repair_full)
    } else {
        0
    };
    let (full, last) = (repair_full.min(0xffff) as u16, repair_last.min(0xffff) as u16);
    if repair_full > MAX_SYMBOLS || repair_last > MAX_SYMBOLS {
        return Err(usage(&format!(
            "--repair {} makes {repair_full} repair symbols in a block, at most {MAX_SYMBOLS} are possible; \
             use less, or a smaller --block-size",
            arguments.repair
        )));
    }
    let geometry = Geometry::new(size, symbol_len, block_log2, full, last).map_err(|e| usage(&e))?;
    Layout::new(geometry, DEFAULT_ROUNDS_LOG2)
        .ok_or_else(|| usage(&"too many symbols for one bundle; use a larger --mtu"))
}

/// Repair symbols of a short block. The law of large numbers does not help a short block, so it is sent a
/// little more often than its length asks for (PROTOCOL.md section 6): by 4 + 0.75·√K symbols.
pub fn repair_of_short_block(k: u32, k_full: u32, repair_full: u32) -> u32 {
    if repair_full == 0 {
        return 0;
    }
    let share = (k + k.isqrt() * 3 / 4 + 4).min(k_full.max(k));
    (share * (k_full + repair_full)).div_ceil(k_full) - k
}

/// The bundle while it is written, under a name of its own until it is whole.
struct Writer {
    file: tempfile::NamedTempFile,
    layout: Layout,
    places: Places,
    record_len: usize,
    /// Set by a signal.
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn create(out: &Path, layout: Layout) -> Result<Self, Failure> {
        // Before there is a file, which nobody would remove: it has twice the object's length from the first moment on.
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [libc::SIGINT, libc::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|e| {
                Failure::new(Outcome::Failed, format!("signals cannot be caught: {}", plain(&e)))
            })?;
        }
        let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".carousel-pack-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder)
            .map_err(|e| Failure::writing(out, &e))?;
        let places = Places::new(&layout);
        reserve(file.as_file(), places.file_len()).map_err(|e| Failure::writing(out, &e))?;
        let record_len = record_len(layout.geometry().symbol_len());
        Ok(Self { file, layout, places, record_len, stop })
    }

    fn is_wanted(&self) -> Result<(), Failure> {
        match self.stop.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Failure::new(Outcome::Failed, "interrupted; nothing was left behind")),
        }
    }

    /// First pass: every block to its records. Returns the blocks' BLAKE3 values.
    fn write_blocks(&self, input: &Input) -> Result<Vec<ChainingValue>, Failure> {
        let blocks = self.layout.geometry().blocks();
        let bar = progress_bar(input.size);
        let values = Mutex::new(vec![[0; 32]; blocks as usize]);
        let next = AtomicU32::new(0);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = (WORK_MEMORY / block_memory(self.layout.geometry()).max(1)).clamp(1, cores);
        let worker = || -> Result<(), Failure> {
            let mut worker = Worker::new(self);
            loop {
                let sbn = Sbn(next.fetch_add(1, Ordering::Relaxed));
                if sbn.0 >= blocks {
                    return Ok(());
                }
                let value = self.is_wanted().and_then(|()| worker.write_block(input, sbn));
                let value = value.inspect_err(|_| {
                    next.store(blocks, Ordering::Relaxed); // the others may stop too
                })?;
                values.lock().unwrap_or_else(PoisonError::into_inner)[sbn.0 as usize] = value;
                bar.inc(self.layout.geometry().block_len(sbn) as u64);
            }
        };
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
            handles.into_iter().try_for_each(|handle| {
                handle
                    .join()
                    .unwrap_or_else(|_| Err(Failure::new(Outcome::Failed, "a packing thread panicked")))
            })
        })?;
        bar.finish_and_clear();
        Ok(values.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Second pass: block pages, hash pages and the tree above them. Returns the manifest with digest and cap.
    fn write_tree(&self, mut manifest: Manifest, values: &[ChainingValue]) -> Result<Manifest, Failure> {
        let geometry = self.layout.geometry();
        manifest.digest = object_digest(values);
        for (number, body) in (0..block_pages(geometry)).zip(emit_block_pages(values)) {
            let at = (FIRST_BLOCK_PAGE + u64::from(number)) * self.record_len as u64;
            let header = record_header(geometry.size(), 0, Slot(number));
            self.write_at(&[&header[..], &body].concat(), at)?;
        }
        let impossible = || Failure::new(Outcome::Failed, "the hash tree does not fit its own layout");
        let shape = TreeShape::new(manifest.pages, manifest.page_len, geometry.symbol_len())
            .ok_or_else(impossible)?;
        for node in 0..shape.cap_nodes() {
            let first = PageNumber((node * shape.pages_per_cap_node()) as u32);
            let subtree = Subtree::build(&shape, first, |number| {
                self.is_wanted()?;
                let mut leaves = vec![0; shape.leaves_len()];
                if let Some(at) = self.page_at(number) {
                    let at = at + RECORD_HEADER_LEN as u64;
                    self.file.as_file().read_exact_at(&mut leaves, at).map_err(|e| self.failed(&e))?;
                }
                Ok::<_, Failure>(leaves)
            })?;
            manifest.cap.extend_from_slice(&subtree.cap_node());
            for number in (first.0..shape.pages()).take(shape.pages_per_cap_node()).map(PageNumber) {
                if let Some(at) = self.page_at(number) {
                    self.write_at(&record_header(geometry.size(), 0, Slot(number.0)), at)?;
                    let path_at = at + (RECORD_HEADER_LEN + shape.leaves_len()) as u64;
                    self.write_at(&subtree.path(number), path_at)?;
                }
            }
        }
        Ok(manifest)
    }

    fn write_head(&self, manifest: &Manifest, bytes: &[u8], signature: Option<&str>) -> Result<(), Failure> {
        let header = BundleHeader { symbol_len: manifest.symbol_len, rounds_log2: self.layout.rounds_log2() };
        self.write_at(&header.emit(), 0)?;
        let algorithm =
            if signature.is_some() { SignatureAlgorithm::Minisign } else { SignatureAlgorithm::None };
        let signature = signature.unwrap_or_default().as_bytes();
        let body = Envelope { manifest: bytes, algorithm: algorithm as u8, signature }
            .emit(usize::from(manifest.symbol_len))
            .map_err(|e| Failure::usage(e.to_string()))?;
        let record = [&record_header(manifest.size, 0, Slot(0))[..], &body].concat();
        self.write_at(&record, MANIFEST_RECORD * self.record_len as u64)
    }

    /// Makes it durable and gives it its name.
    fn finish(self, out: &Path) -> Result<u64, Failure> {
        self.file.as_file().sync_all().map_err(|e| Failure::writing(out, &e))?;
        self.is_wanted()?;
        self.file.persist(out).map_err(|e| Failure::writing(out, &e.error))?;
        Ok(self.places.file_len())
    }

    /// Where a hash page's record begins; `None` for a page number that was set aside but is not used.
    fn page_at(&self, number: PageNumber) -> Option<u64> {
        let per_coset = self.layout.pages_per_coset();
        let (coset, page) = (Coset(number.0 / per_coset), u64::from(number.0 % per_coset));
        (page < self.layout.coset_pages(coset))
            .then(|| self.places.record(coset, self.layout.page_record(page)))
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), Failure> {
        self.file.as_file().write_all_at(bytes, at).map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::writing(self.file.path(), error)
    }
}

/// What a worker needs for a block: its symbols, and the encoder's work memory.
fn block_memory(geometry: &Geometry) -> usize {
    let (k, r) = (usize::from(geometry.source_symbols(Sbn(0))), usize::from(geometry.repair_symbols(Sbn(0))));
    let work = if r == 0 { 0 } else { k.max(r) + k.min(r).next_power_of_two() };
    (k + r + work) * geometry.symbol_len()
}

/// Sets a file's length and reserves its space: a full disk shows now, and what is then written here and there lies
/// together.
fn reserve(file: &File, len: u64) -> std::io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, len as i64) {
        // Not every file system can reserve.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => file.set_len(len),
        done => Ok(done?),
    }
}

/// One packing thread and its buffers.
struct Worker<'a> {
    writer: &'a Writer,
    encoder: BlockEncoder,
    source: Vec<u8>,
    repair: Vec<u8>,
    records: Vec<u8>,
    leaves: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(writer: &'a Writer) -> Self {
        let (source, repair, records, leaves) = Default::default();
        Self { writer, encoder: BlockEncoder::new(), source, repair, records, leaves }
    }

    fn write_block(&mut self, input: &Input, sbn: Sbn) -> Result<ChainingValue, Failure> {
        let geometry = self.writer.layout.geometry();
        let t = geometry.symbol_len();
        let (k, r) = (usize::from(geometry.source_symbols(sbn)), usize::from(geometry.repair_symbols(sbn)));
        let len = geometry.block_len(sbn);
        self.source.clear();
        self.source.resize(k * t, 0);
        input.read_exact_at(&mut self.source[..len], geometry.block_offset(sbn))?;
        let mut hasher = block_hasher(geometry, sbn);
        hasher.update(&self.source[..len]);
        self.repair.resize(r * t, 0);
        self.encoder
            .encode(k, r, t, &self.source, &mut self.repair)
            .map_err(|e| Failure::new(Outcome::Failed, format!("block {}: {e}", sbn.0)))?;
        self.write_symbols(sbn, k)?;
        Ok(block_value(geometry, &hasher))
    }

    /// Puts a block's symbols and their leaves where the layout wants them.
    fn write_symbols(&mut self, sbn: Sbn, k: usize) -> Result<(), Failure> {
        let layout = &self.writer.layout;
        let geometry = layout.geometry();
        let t = geometry.symbol_len();
        for coset in (0..layout.cosets()).map(Coset) {
            for row in 0..layout.rows() {
                let visit = layout.visit(sbn, coset, row);
                if visit.is_empty() {
                    continue;
                }
                let order = layout.row(coset, row);
                let mut index = layout.visit_start(sbn, coset, row, &order);
                for esi in visit {
                    // A page ends here: what was gathered goes out, because the next page's record is between.
                    if index.is_multiple_of(u64::from(layout.page_len())) {
                        self.flush(coset, index)?;
                    }
                    let esi = esi as usize;
                    let symbol = if esi < k {
                        &self.source[esi * t..][..t]
                    } else {
                        &self.repair[(esi - k) * t..][..t]
                    };
                    let offset = geometry.offset(sbn, carousel_proto::geometry::Esi(esi as u16));
                    let slot = Slot(layout.slot(coset, index));
                    self.records.extend_from_slice(&record_header(geometry.size(), offset, slot));
                    self.records.extend_from_slice(symbol);
                    index += 1;
                }
                self.flush(coset, index)?;
            }
        }
        Ok(())
    }

    /// Writes the records gathered, which end before slot `end` of the coset and lie in one page.
    fn flush(&mut self, coset: Coset, end: u64) -> Result<(), Failure> {
        let (writer, layout) = (self.writer, &self.writer.layout);
        let record_len = RECORD_HEADER_LEN + layout.geometry().symbol_len();
        let count = (self.records.len() / record_len) as u64;
        if count > 0 {
            let records: Vec<&[u8]> = self.records.chunks_exact(record_len).collect();
            for records in records.chunks(LANES) {
                self.leaves.extend_from_slice(leaves(records)[..records.len()].as_flattened());
            }
            let first = end - count;
            writer.write_at(&self.records, writer.places.record(coset, layout.slot_record(first)))?;
            let page_len = u64::from(layout.page_len());
            let page = writer.places.record(coset, layout.page_record(first / page_len));
            let leaf_at = RECORD_HEADER_LEN as u64 + first % page_len * LEAF_LEN as u64;
            writer.write_at(&self.leaves, page + leaf_at)?;
            self.records.clear();
            self.leaves.clear();
        }
        Ok(())
    }
}

fn progress_bar(len: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("packing {bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta} left");
    let bar = ProgressBar::new(len);
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_block_gets_a_little_more_than_its_share() {
        assert_eq!(repair_of_short_block(1, 3531, 3531), 9);
        assert_eq!(repair_of_short_block(1765, 3531, 3531), 2 * (1765 + 31 + 4) - 1765);
        assert_eq!(repair_of_short_block(3530, 3531, 3531), 2 * 3531 - 3530);
        assert_eq!(repair_of_short_block(100, 3531, 0), 0);
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_not_packed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object");
        let open = || Input::open(&path, Path::new("out")).unwrap_or_else(|e| panic!("{e}"));
        std::fs::write(&path, "some").unwrap();
        let input = open();
        assert!(input.is_unchanged().is_ok());
        std::fs::write(&path, "some more").unwrap();
        assert_eq!(input.is_unchanged().unwrap_err().outcome, Outcome::TryAgain);
        // The same length, and another time.
        let input = open();
        File::options().write(true).open(&path).unwrap().set_modified(UNIX_EPOCH).unwrap();
        let failure = input.is_unchanged().unwrap_err();
        assert!(failure.message.contains("object: changed while"), "{failure}");
    }
}
