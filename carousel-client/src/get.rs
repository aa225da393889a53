//! `get`: one object from the first packet to its name. The engine is one loop over one queue.

use crate::cli;
use crate::decode::{self, Decoded};
use crate::receive::{Arrival, Reception};
use crate::report::{Heard, Report, Standing};
use crate::ssm::{Batch, Membership, Subscription};
use crate::writer::WorkFile;
use carousel_proto::manifest::Manifest;
use carousel_proto::outcome::{Failure, Outcome};
use carousel_proto::receiver::{BlockJob, ChannelId, Output, Receiver, Verdict};
use carousel_proto::trust::{Trust, TrustError, not_a_public_key};
use carousel_proto::wire::{HEADER_LEN, IP_UDP_LEN};
use crossbeam_channel::{Sender, never, select};
use minisign_verify::PublicKey;
use nix::libc;
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often the engine looks at clock and signals when nothing arrives.
const TICK: Duration = Duration::from_millis(100);
/// Sources told apart; more, in any-source mode, are counted as the last one.
const MAX_CHANNELS: usize = 256;
/// Below this, a receive buffer holds too little for the pauses of an ordinary machine.
const SMALL_BUFFER: usize = 1 << 20;

/// `get`.
pub fn get(arguments: &cli::Get) -> Result<(), Failure> {
    let trust = trust(arguments)?;
    let target = Target::new(arguments);
    // Found out now rather than after the transfer: target exists, folder missing or not writable.
    let early = target.path_now().map(|path| WorkFile::create(&path, arguments.force)).transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|e| Failure::new(Outcome::Failed, format!("signals cannot be caught: {e}")))?;
    }
    let subscriptions = join(arguments)?;
    let mut engine = Engine::new(arguments, trust, target, early);
    engine.report.waiting(&arguments.interface);
    let manifest = engine.run(Reception::start(subscriptions), &stop)?;
    let path = engine.finish(&manifest)?;
    engine.report.done(&manifest, &path, &engine.standing(), &engine.sources());
    run_hook(arguments, &path, &manifest)
}

fn trust(arguments: &cli::Get) -> Result<Trust, Failure> {
    if let Some(digest) = arguments.digest {
        return Ok(Trust::Digest(digest));
    }
    if arguments.insecure {
        tracing::warn!("--insecure: whoever sends first decides what arrives");
        return Ok(Trust::Anyone);
    }
    arguments.key.iter().map(|path| read_key(path)).collect::<Result<_, _>>().map(Trust::Keys)
}

fn read_key(path: &Path) -> Result<PublicKey, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::reading(path, &e))?;
    PublicKey::decode(&text)
        .or_else(|_| PublicKey::from_base64(text.trim()))
        .map_err(|_| Failure::usage(format!("{}: {}", path.display(), not_a_public_key(&text))))
}

/// Joins every group.
fn join(arguments: &cli::Get) -> Result<Vec<Subscription>, Failure> {
    let interface = nix::net::if_::if_nametoindex(arguments.interface.as_str()).map_err(|_| {
        Failure::usage(format!("no such interface: {}; `ip link` lists those there are", arguments.interface))
    })?;
    if arguments.source.is_empty() {
        tracing::warn!("no --source: taking from any source that sends to the group (any-source multicast)");
    }
    let mut subscriptions = Vec::new();
    for group in &arguments.group {
        let membership =
            Membership { group: *group, port: arguments.port, interface, sources: arguments.source.clone() };
        let failed = |e: io::Error| {
            let why = match e.raw_os_error() {
                Some(libc::ENODEV) => "the interface is down or has no IPv6; bring it up".to_owned(),
                Some(libc::ENOBUFS) => "too many sources; raise net.ipv6.mld_max_msf".to_owned(),
                Some(libc::EADDRINUSE) => "the port is taken by another program".to_owned(),
                _ => e.to_string(),
            };
            Failure::new(Outcome::Failed, format!("[{group}]:{} cannot be joined: {why}", arguments.port))
        };
        let subscription = Subscription::join(&membership, arguments.rcvbuf as usize).map_err(failed)?;
        if subscription.granted < (arguments.rcvbuf as usize).min(SMALL_BUFFER) {
            tracing::warn!(
                "the system caps the receive buffer at {} KiB: pauses of the machine will cost packets; \
                 raise it with `sysctl -w net.core.rmem_max={}`",
                subscription.granted >> 10,
                arguments.rcvbuf
            );
        }
        if arguments.test_loss > 0 {
            subscription.impair(arguments.test_loss).map_err(failed)?;
        }
        subscriptions.push(subscription);
    }
    Ok(subscriptions)
}

/// What `--out` means: a file, or a folder in which the object keeps its own name.
struct Target {
    out: PathBuf,
    is_folder: bool,
}

impl Target {
    fn new(arguments: &cli::Get) -> Self {
        let text = arguments.out.as_os_str().as_encoded_bytes();
        Self { out: arguments.out.clone(), is_folder: arguments.out.is_dir() || text.ends_with(b"/") }
    }

    fn path_now(&self) -> Option<PathBuf> {
        (!self.is_folder).then(|| self.out.clone())
    }

    /// The manifest's name is a plain file name, or it would not have been accepted.
    fn path(&self, manifest: &Manifest) -> PathBuf {
        if self.is_folder { self.out.join(&manifest.name) } else { self.out.clone() }
    }
}

struct Engine<'a> {
    arguments: &'a cli::Get,
    receiver: Receiver,
    report: Report,
    target: Target,
    work: Option<WorkFile>,
    manifest: Option<Box<Manifest>>,
    jobs: Option<Sender<BlockJob>>,
    decoded: crossbeam_channel::Receiver<Result<Decoded, Failure>>,
    /// The (source, subscription) pairs seen, and when first; the index is the [`ChannelId`].
    channels: Vec<(Ipv6Addr, usize, Duration)>,
    began: Instant,
    /// How long the object has not grown, and its symbols when it last did. Time in which this program did not run,
    /// stopped by a signal or a debugger, is nobody's silence; nor is time for which the decoder has work.
    stalled: (Duration, u64),
    /// Blocks at the decoder.
    decoding: usize,
    refusal_said: bool,
    overflowed: Vec<u32>,
    complete: bool,
}

impl<'a> Engine<'a> {
    fn new(arguments: &'a cli::Get, trust: Trust, target: Target, work: Option<WorkFile>) -> Self {
        Self {
            arguments,
            receiver: Receiver::new(trust, unix_time()),
            report: Report::new(arguments.json, arguments.quiet),
            target,
            work,
            manifest: None,
            jobs: None,
            decoded: never(),
            channels: Vec::new(),
            began: Instant::now(),
            stalled: (Duration::ZERO, 0),
            decoding: 0,
            refusal_said: false,
            overflowed: vec![0; arguments.group.len()],
            complete: false,
        }
    }

    /// Until the object is complete, something fails, or a signal comes. The groups are left when this returns:
    /// syncing the disk and the hook may take long, and the network need not carry packets meanwhile.
    fn run(&mut self, reception: Reception, stop: &AtomicBool) -> Result<Box<Manifest>, Failure> {
        let mut looked = Instant::now();
        while !self.complete {
            if stop.load(Ordering::Relaxed) {
                return Err(Failure::new(Outcome::Failed, "interrupted; nothing was left behind"));
            }
            select! {
                recv(reception.arrivals) -> arrival => match arrival {
                    Ok(Arrival::Packets(batch)) => {
                        self.handle_batch(&batch)?;
                        reception.give_back(batch);
                    }
                    Ok(Arrival::Failed(e)) => {
                        return Err(Failure::new(Outcome::Failed, format!("receiving failed: {e}")));
                    }
                    Err(_) => return Err(Failure::new(Outcome::Failed, "receiving ended")),
                },
                recv(self.decoded) -> result => match result {
                    Ok(result) => self.handle_decoded(result?)?,
                    Err(_) => return Err(Failure::new(Outcome::Failed, "the decoder ended")),
                },
                default(TICK) => {}
            }
            let since = looked.elapsed();
            if since >= TICK {
                looked = Instant::now();
                self.look_around(since)?;
            }
        }
        self.manifest.take().ok_or_else(|| Failure::new(Outcome::Failed, "complete without a manifest"))
    }

    /// Gives the complete object its name.
    fn finish(&mut self, manifest: &Manifest) -> Result<PathBuf, Failure> {
        self.jobs = None;
        let work = self.work.take();
        work.ok_or_else(|| Failure::new(Outcome::Failed, "complete without a file"))?.finish(manifest.size)
    }

    fn handle_batch(&mut self, batch: &Batch) -> Result<(), Failure> {
        let now = self.began.elapsed().as_nanos() as u64;
        tracing::trace!(packets = batch.packets().count(), "batch");
        for (bytes, source) in batch.packets() {
            let channel = self.channel(source, batch.subscription);
            self.handle_packet(now, channel, bytes)?;
        }
        if let Some(work) = &mut self.work {
            work.flush()?;
        }
        self.overflowed[batch.subscription] = batch.overflowed;
        Ok(())
    }

    fn handle_packet(&mut self, now: u64, channel: ChannelId, bytes: &[u8]) -> Result<(), Failure> {
        let verdict = self.receiver.handle_packet(now, channel, bytes);
        self.store(verdict, bytes)?;
        self.drain(now)
    }

    fn store(&mut self, verdict: Verdict, bytes: &[u8]) -> Result<(), Failure> {
        match (verdict, &mut self.work) {
            (Verdict::Store(place), Some(work)) => work.store(place, &bytes[HEADER_LEN..]),
            _ => Ok(()),
        }
    }

    fn handle_decoded(&mut self, decoded: Decoded) -> Result<(), Failure> {
        self.decoding -= 1;
        self.receiver.handle_decoded(decoded.job, decoded.matched, decoded.by_decoder);
        self.drain(self.began.elapsed().as_nanos() as u64)
    }

    /// Does what the receiver asks for.
    fn drain(&mut self, now: u64) -> Result<(), Failure> {
        while let Some(output) = self.receiver.poll_output() {
            match output {
                Output::Started(manifest) => {
                    self.start(manifest)?;
                    for (channel, bytes) in self.receiver.take_early().iter() {
                        let verdict = self.receiver.handle_early(now, channel, bytes);
                        self.store(verdict, bytes)?;
                    }
                }
                Output::BlockReady(job) => {
                    if let Some(work) = &mut self.work {
                        work.flush()?; // the decoder reads the file
                    }
                    if let Some(jobs) = &self.jobs {
                        self.decoding += 1;
                        let _ = jobs.send(job); // a decoder that has ended is noticed by its results
                    }
                }
                Output::Complete => self.complete = true,
            }
        }
        Ok(())
    }

    /// A manifest was accepted: makes room for the object.
    fn start(&mut self, manifest: Box<Manifest>) -> Result<(), Failure> {
        let geometry = manifest.geometry().map_err(|e| Failure::untrusted(e.to_string()))?;
        let path = self.target.path(&manifest);
        let work = match self.work.take() {
            Some(work) => work,
            None => WorkFile::create(&path, self.arguments.force)?,
        };
        work.reserve(&geometry)?;
        let (jobs, decoded) = decode::start(&work.file(), &path, geometry, self.arguments.threads);
        self.report.started(&manifest, IP_UDP_LEN + HEADER_LEN + geometry.symbol_len());
        self.stalled = (Duration::ZERO, 0);
        (self.jobs, self.decoded) = (Some(jobs), decoded);
        (self.work, self.manifest) = (Some(work), Some(manifest));
        Ok(())
    }

    /// Ten times a second: progress, time-out.
    fn look_around(&mut self, since: Duration) -> Result<(), Failure> {
        let standing = self.standing();
        self.report.progress(&standing);
        self.stalled.0 += since.min(TICK * 10);
        if standing.symbols > self.stalled.1 || self.decoding > 0 {
            self.stalled = (Duration::ZERO, standing.symbols);
        }
        if let Some(refusal) = self.receiver.refusal().filter(|_| !self.refusal_said) {
            // No packet may end the program: the genuine manifest may be still to come.
            tracing::warn!("refused: {refusal}; waiting for another one");
            self.refusal_said = true;
        }
        let timeout = Duration::from_millis(self.arguments.timeout);
        let timed_out = !timeout.is_zero() && self.stalled.0 >= timeout;
        if timed_out && let Some(refusal) = self.receiver.refusal() {
            let outcome = match refusal {
                TrustError::Expired { .. } => Outcome::Stale,
                _ => Outcome::Untrusted,
            };
            return Err(Failure::new(outcome, refusal.to_string()));
        }
        if timed_out {
            return Err(Failure::new(Outcome::NoSignal, self.no_signal(&standing)));
        }
        Ok(())
    }

    fn no_signal(&self, standing: &Standing) -> String {
        let groups: Vec<String> = self.arguments.group.iter().map(ToString::to_string).collect();
        let waited = self.arguments.timeout as f64 / 1000.0;
        let what = match (standing.counters.received, self.manifest.is_some()) {
            (0, _) => {
                "no packet arrived: check that the server sends, source, group and port, this host's firewall, \
                 that the interface is up, and that the switch has an MLD querier"
            }
            (_, false) => "packets arrived, but no manifest: is another program using this group and port?",
            (_, true) => "nothing new arrived: did the server stop, or change to another release?",
        };
        format!("{waited} s of silence on {}: {what}", groups.join(", "))
    }

    fn channel(&mut self, source: Ipv6Addr, subscription: usize) -> ChannelId {
        let known = self.channels.iter().position(|(s, g, _)| (*s, *g) == (source, subscription));
        let index = known.unwrap_or_else(|| {
            if self.channels.len() < MAX_CHANNELS {
                self.channels.push((source, subscription, self.began.elapsed()));
            }
            self.channels.len() - 1
        });
        ChannelId(index as u16)
    }

    fn standing(&self) -> Standing {
        let (symbols, needed) = self.receiver.progress();
        let lost = self.receiver.channel_counts().map(|count| count.lost).sum();
        let overflowed = self.overflowed.iter().map(|count| u64::from(*count)).sum();
        Standing { symbols, needed, counters: self.receiver.counters(), lost, overflowed }
    }

    fn sources(&self) -> Vec<Heard> {
        self.channels
            .iter()
            .zip(self.receiver.channel_counts())
            .map(|(&(source, subscription, first_packet), count)| {
                let group = self.arguments.group[subscription];
                Heard { source, group, first_packet, count }
            })
            .collect()
    }
}

/// Seconds since 1970.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

fn run_hook(arguments: &cli::Get, path: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let Some(command) = &arguments.on_complete else { return Ok(()) };
    let status = std::process::Command::new("sh")
        .args(["-c", command])
        .env("CAROUSEL_PATH", path)
        .env("CAROUSEL_NAME", &manifest.name)
        .env("CAROUSEL_SEQ", manifest.seq.to_string())
        .env("CAROUSEL_DIGEST", blake3::Hash::from_bytes(manifest.digest).to_hex().as_str())
        .env("CAROUSEL_SIZE", manifest.size.to_string())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(Outcome::Hook, format!("--on-complete ended with {status}"))),
        Err(e) => Err(Failure::new(Outcome::Hook, format!("--on-complete could not be run: {e}"))),
    }
}
