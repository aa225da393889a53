//! One transfer: from the first packet to the object's name. One loop in one thread; only decoding, which takes longer than
//! packets can wait, has threads of its own.

use crate::belief;
use crate::cli;
use crate::clock::unix_time;
use crate::decode::{self, Answer, Decoded, Job};
use crate::folder::{Left, Staging};
use crate::journal::Replay;
use crate::receive::Reception;
use crate::report::{Heard, Report, Standing};
use crate::silence::{self, Silence};
use crate::ssm::Batch;
use crate::state::State;
use crate::status::{Status, View};
use crate::target::Target;
use crate::tuner::{Offer, Origin, Step, Tuner};
use crate::writer::WorkFile;
use carousel_proto::geometry::{Geometry, Sbn};
use carousel_proto::manifest::Manifest;
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::pages::LANES;
use carousel_proto::receiver::{Bursts, ChannelCount, ChannelId, Output, Receiver, Verdict, place_of};
use carousel_proto::trust::Trust;
use carousel_proto::wire::{HEADER_LEN, IP_UDP_LEN};
use crossbeam_channel::{Receiver as Queue, Sender, TryRecvError, never};
use nix::libc;
use std::fs::File;
use std::io;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the engine looks at clock and signals when nothing arrives.
const TICK: Duration = Duration::from_millis(100);
/// When nothing of a release has come for so long, a newer one on the same groups takes its place. Servers that change
/// to it one after the other are not in step, and nobody minds them.
const SUCCESSION_AFTER: Duration = Duration::from_secs(5);
/// Sources told apart; more, in any-source mode, are counted as the last one.
const MAX_CHANNELS: usize = 256;
/// Below this, a receive buffer holds too little for the pauses of an ordinary machine.
const SMALL_BUFFER: usize = 1 << 20;
/// What of the disk a transfer has to do with.
pub struct Files<'a> {
    pub state: Option<State>,
    pub target: Target,
    /// The work file, where the target's name is known at once.
    pub early: Option<WorkFile>,
    pub seed: Option<Arc<File>>,
    pub status: &'a mut Status,
    /// Set by a signal.
    pub stop: Arc<AtomicBool>,
}

pub struct Engine<'a> {
    arguments: &'a cli::Get,
    receiver: Receiver,
    state: Option<State>,
    report: Report,
    status: &'a mut Status,
    target: Target,
    work: Option<WorkFile>,
    /// A folder that an earlier client had whole, instead of the work file.
    staging: Option<Staging>,
    manifest: Option<Box<Manifest>>,
    /// An older file that may have some of the blocks.
    seed: Option<Arc<File>>,
    /// Set by a signal.
    stop: Arc<AtomicBool>,
    jobs: Option<Sender<Job>>,
    answers: Queue<Result<Answer, Failure>>,
    decoders: Vec<JoinHandle<()>>,
    tuner: Tuner,
    /// What DNS says later.
    updates: Queue<Offer>,
    /// Everything that was ever joined; the index is the [`ChannelId`].
    channels: Vec<Channel>,
    /// Bytes of all packets, headers included.
    bytes: u64,
    began: Instant,
    /// Nanoseconds in which this program ran: time in which it was stopped, by a signal or a debugger, is nobody's
    /// silence.
    clock: u64,
    silence: Silence,
    /// Blocks at the decoder.
    decoding: usize,
    /// Blocks that were there already.
    found: u64,
    /// Since when no packets are wanted; `None`: they are.
    sated: Option<Instant>,
    refusal_said: bool,
    keys_refusal_said: bool,
    small_buffer_said: bool,
    /// Packets that the kernel dropped at each place, as it last said, and at all of them.
    overflowed: (Vec<u32>, u64),
    complete: bool,
}

/// One (source, group) pair and port.
struct Channel {
    origin: Origin,
    /// Who it was, where any may be.
    source: Option<Ipv6Addr>,
    group: Ipv6Addr,
    tier: usize,
    place: usize,
    joined: Instant,
    first_packet: Option<Duration>,
    /// Packets so far, and when the tuner was last told.
    packets: u64,
    told: u64,
}

impl<'a> Engine<'a> {
    pub fn new(
        arguments: &'a cli::Get,
        trust: Trust,
        files: Files<'a>,
        tuner: Tuner,
        updates: Queue<Offer>,
    ) -> Self {
        Self {
            arguments,
            receiver: Receiver::new(trust, unix_time()).for_device(belief::device(arguments)),
            state: files.state,
            report: Report::new(arguments.json, arguments.quiet),
            status: files.status,
            target: files.target,
            work: files.early,
            staging: None,
            manifest: None,
            seed: files.seed,
            stop: files.stop,
            jobs: None,
            answers: never(),
            decoders: Vec::new(),
            tuner,
            updates,
            channels: Vec::new(),
            bytes: 0,
            began: Instant::now(),
            clock: 0,
            silence: Silence::default(),
            decoding: 0,
            found: 0,
            sated: None,
            refusal_said: false,
            keys_refusal_said: false,
            small_buffer_said: false,
            overflowed: (Vec::new(), 0),
            complete: false,
        }
    }

    /// Until the object is complete, something fails, or a signal comes. The groups are left when this returns:
    /// syncing the disk and the hook may take long, and the network need not carry packets meanwhile.
    pub fn run(&mut self, mut reception: Reception) -> Result<Box<Manifest>, Failure> {
        let receiving =
            |e: &io::Error| Failure::new(Outcome::Failed, format!("receiving failed: {}", plain(e)));
        let mut looked = Instant::now();
        let mut batch = Batch::new();
        self.tune(&mut reception)?;
        self.report.waiting();
        while !self.complete {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Failure::new(Outcome::Failed, "interrupted"));
            }
            let mut more = false;
            for place in 0..reception.places() {
                reception.receive(place, &mut batch).map_err(|e| receiving(&e))?;
                self.handle_batch(place, &batch, &reception)?;
                more |= batch.is_full();
            }
            while let Some(answer) = self.next_answer()? {
                self.handle_answer(answer, &reception)?;
            }
            let wanted = self.receiver.wants_packets();
            if wanted != self.sated.is_none() {
                // What comes while the last blocks are decoded is a burden on the network, and no use to us.
                self.sated = (!wanted).then(Instant::now);
                self.tuner.handle_demand(self.clock, wanted);
                self.tune(&mut reception)?;
            }
            let since = looked.elapsed();
            if since >= TICK {
                looked = Instant::now();
                self.clock += since.min(TICK * 10).as_nanos() as u64;
                if let Ok(offer) = self.updates.try_recv() {
                    self.tuner.handle_offer(self.clock, offer);
                }
                self.look_around()?;
                self.tune(&mut reception)?;
            }
            if !more && !self.complete {
                reception.wait(TICK.saturating_sub(looked.elapsed())).map_err(|e| receiving(&e))?;
            }
        }
        self.manifest.take().ok_or_else(|| Failure::new(Outcome::Failed, "complete without a manifest"))
    }

    /// Gives the complete object its name, and tells.
    pub fn finish(&mut self, manifest: &Manifest) -> Result<PathBuf, Failure> {
        let path = self.name(manifest)?;
        let tail = self.sated.map(|since| since.elapsed()).unwrap_or_default();
        self.report.done(manifest, &path, &self.standing(), &self.heard(), tail);
        self.status.verified(&path);
        Ok(path)
    }

    /// Nothing is received any more: what was counted is final.
    pub fn handle_end(&mut self) {
        self.receiver.handle_end();
        self.show();
    }

    fn name(&mut self, manifest: &Manifest) -> Result<PathBuf, Failure> {
        self.jobs = None;
        for decoder in self.decoders.drain(..) {
            let _ = decoder.join();
        }
        self.seed = None; // nothing is open when somebody else is to have it: a device, or what RAUC shall install
        let lost = |what| Failure::new(Outcome::Failed, format!("complete without a {what}"));
        let staging = match (self.staging.take(), self.work.take()) {
            (Some(staging), _) => staging,
            (None, Some(work)) if manifest.table.is_none() => return work.finish(manifest),
            (None, Some(work)) => {
                let hash = self.receiver.manifest_hash().ok_or_else(|| lost("manifest"))?;
                Staging::begin(work, manifest, &hash)?
            }
            (None, None) => return Err(lost("file")),
        };
        self.report.unpacking();
        staging.finish(&self.stop)
    }

    fn handle_batch(&mut self, place: usize, batch: &Batch, reception: &Reception) -> Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        let now = self.began.elapsed().as_nanos() as u64;
        tracing::trace!(packets = batch.packets().count(), "batch");
        let mut packets = batch.packets();
        loop {
            let (mut group, mut sources) = ([&[][..]; LANES], [Ipv6Addr::UNSPECIFIED; LANES]);
            let mut len = 0;
            for (bytes, source) in packets.by_ref().take(LANES) {
                (group[len], sources[len]) = (bytes, source);
                len += 1;
            }
            if len == 0 {
                break;
            }
            let hashed = self.receiver.hash(&group[..len]);
            for ((packet, bytes), source) in hashed.iter().zip(&group[..len]).zip(sources) {
                self.bytes += (IP_UDP_LEN + bytes.len()) as u64;
                let channel = self.channel(source, place);
                let verdict = self.receiver.handle_hashed(now, channel, packet);
                self.store(verdict, bytes)?;
                self.drain(now, reception)?;
            }
        }
        self.count_overflow(place, batch);
        Ok(())
    }

    fn store(&mut self, verdict: Verdict, bytes: &[u8]) -> Result<(), Failure> {
        if let (Verdict::Store(place, stored), Some(work)) = (verdict, &mut self.work) {
            work.store(place, stored, &bytes[HEADER_LEN..])?;
            if work.log_is_due() {
                work.log(|stored| self.receiver.standing(stored))?;
            }
        }
        Ok(())
    }

    fn next_answer(&self) -> Result<Option<Answer>, Failure> {
        match self.answers.try_recv() {
            Ok(result) => result.map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Failure::new(Outcome::Failed, "the decoder ended")),
        }
    }

    fn handle_answer(&mut self, answer: Answer, reception: &Reception) -> Result<(), Failure> {
        self.decoding -= usize::from(!matches!(answer, Answer::Reserved));
        match answer {
            Answer::Reserved => {
                if let Some(work) = &mut self.work {
                    work.handle_reserved();
                }
            }
            Answer::Decoded(Decoded { job, matched, by_decoder }) => {
                if matched && let Some(work) = &mut self.work {
                    work.log_block(job.sbn)?;
                }
                self.receiver.handle_decoded(job, matched, by_decoder);
                if !matched {
                    // Symbols were forgotten: those that come in their places are progress, too.
                    self.silence.restart(self.clock, self.receiver.progress().0);
                }
            }
            Answer::Looked(sbn, value) => self.receiver.handle_looked(sbn, value),
        }
        self.drain(self.began.elapsed().as_nanos() as u64, reception)
    }

    /// Does what the receiver asks for.
    fn drain(&mut self, now: u64, reception: &Reception) -> Result<(), Failure> {
        while let Some(output) = self.receiver.poll_output() {
            match output {
                Output::Started(manifest) if self.arguments.look => {
                    self.remember()?; // what time it is at least
                    self.note_signer();
                    self.report.offered(&manifest);
                    (self.manifest, self.complete) = (Some(manifest), true);
                }
                Output::Started(manifest) => {
                    self.note_signer();
                    self.start(manifest, reception)?;
                    self.remember()?;
                    for (channel, bytes) in self.receiver.take_early().iter() {
                        let verdict = self.receiver.handle_early(now, channel, bytes);
                        self.store(verdict, bytes)?;
                    }
                }
                Output::BlockReady(job) => {
                    if let Some(work) = &mut self.work {
                        work.flush()?; // the decoder reads the file
                    }
                    self.ask(Job::Decode(job));
                }
                Output::BlockFound(sbn) => {
                    self.found += 1;
                    if let Some(work) = &mut self.work {
                        work.log_block(sbn)?;
                    }
                }
                Output::Complete => self.complete = true,
                Output::Keys(signed) => {
                    self.report.keys(&signed.keys);
                    if let Some(state) = &self.state {
                        state.keep_keys(&signed)?;
                    }
                }
                Output::Withdrawn(why) => {
                    if let Some(work) = &mut self.work {
                        work.discard();
                    }
                    return Err(Failure::new(why.outcome(), format!("given up on the way: {why}")));
                }
            }
        }
        Ok(())
    }

    fn note_signer(&mut self) {
        let signer = self.receiver.authority().and_then(|authority| authority.signer());
        self.report.signed_by(signer);
    }

    /// From now on nothing older of this name, unless the caller sees to that.
    pub fn handed_over(&mut self) -> Result<(), Failure> {
        if self.arguments.stage {
            return Ok(());
        }
        if let Some(authority) = self.receiver.authority() {
            authority.handle_handover();
        }
        self.remember()
    }

    fn remember(&mut self) -> Result<(), Failure> {
        match (&self.state, self.receiver.authority()) {
            (Some(state), Some(authority)) => state.remember(authority.memory()),
            _ => Ok(()),
        }
    }

    fn ask(&mut self, job: Job) {
        if let Some(jobs) = &self.jobs {
            self.decoding += 1;
            self.receiver.handle_silence(false); // not only when we look around: another object may begin before
            let _ = jobs.send(job); // a decoder that has ended is noticed by its answers
        }
    }

    /// A manifest was accepted: makes room for the object.
    fn start(&mut self, manifest: Box<Manifest>, reception: &Reception) -> Result<(), Failure> {
        let geometry = manifest.geometry().map_err(|e| Failure::untrusted(e.to_string()))?;
        let path = self.target.path(&manifest)?;
        if let Some(old) = self.manifest.take() {
            tracing::warn!(
                "{}, release {}, is no longer sent as it was: starting again with release {}",
                old.name,
                old.seq,
                manifest.seq
            );
            (self.jobs, self.found) = (None, 0);
        }
        let work = match self.work.take() {
            Some(work) => work,
            None => WorkFile::create(&path, self.arguments.force)?,
        };
        let hash = self.receiver.manifest_hash();
        let hash = hash.ok_or_else(|| Failure::new(Outcome::Failed, "started without a manifest"))?;
        let left = if self.target.is_device() {
            Left::Nothing(work)
        } else {
            Left::find(work, &manifest, &hash, &self.stop)?
        };
        let mut work = match left {
            Left::Nothing(work) => work,
            Left::Staged(staging) => {
                self.status.started(&manifest, &geometry);
                self.report.started(&manifest, IP_UDP_LEN + HEADER_LEN + geometry.symbol_len());
                self.report.resumed(geometry.symbols_needed(), geometry.symbols_needed());
                (self.staging, self.manifest, self.complete) = (Some(staging), Some(manifest), true);
                return Ok(());
            }
        };
        let replay = work.begin(&hash, &geometry)?;
        let bell = || reception.bell().map_err(|e| Failure::new(Outcome::Failed, plain(&e)));
        let threads = self.arguments.threads;
        let (jobs, answers, decoders) =
            decode::start(&work.places(), &path, self.seed.as_ref(), geometry, threads, bell)?;
        self.status.started(&manifest, &geometry);
        self.report.started(&manifest, IP_UDP_LEN + HEADER_LEN + geometry.symbol_len());
        self.silence.restart(self.clock, 0);
        (self.jobs, self.answers, self.decoders) = (Some(jobs), answers, decoders);
        (self.work, self.manifest) = (Some(work), Some(manifest));
        if let Some(replay) = replay {
            self.go_on(replay, &geometry)?;
        }
        if self.seed.is_some() {
            // In whatever is not there yet, and of it only what the object has in the same place.
            for sbn in (0..geometry.blocks()).map(Sbn) {
                if self.receiver.look_for(sbn) {
                    self.ask(Job::Copy(sbn));
                }
            }
        }
        Ok(())
    }

    /// Takes up what an earlier client left, as far as it proves to be right.
    fn go_on(&mut self, mut replay: Replay, geometry: &Geometry) -> Result<(), Failure> {
        let mut looking = vec![false; geometry.blocks() as usize];
        for sbn in std::mem::take(&mut replay.blocks) {
            if self.receiver.look_for(sbn) {
                looking[sbn.0 as usize] = true;
                self.ask(Job::Look(sbn));
            }
        }
        let mut symbol = Vec::new();
        while let (Some(symbols), Some(work)) = (replay.symbols()?, &self.work) {
            // A large object on a slow disk takes minutes, and whoever stops us does not wait for so long.
            if self.stop.load(Ordering::Relaxed) {
                return Err(Failure::new(Outcome::Failed, "interrupted"));
            }
            for (stored, proven) in symbols {
                if looking[stored.sbn.0 as usize] {
                    continue; // as a whole
                }
                work.load(place_of(geometry, stored.sbn, stored.place, stored.esi.0), &mut symbol)?;
                self.receiver.handle_restored(&stored, proven, &symbol);
            }
        }
        let (symbols, needed) = self.receiver.progress();
        self.report.resumed(symbols, needed);
        Ok(())
    }

    /// Whatever ended the transfer: what is there is kept for the next client, and the message says so.
    pub fn put_away(&mut self, failure: Failure) -> Failure {
        let Some(work) = &mut self.work else { return failure };
        if let Err(error) = work.log(|stored| self.receiver.standing(stored)) {
            tracing::warn!("{error}; the next client has to take a little more again");
        }
        if !work.is_kept() {
            let torn =
                "; the device holds a part of the object. With --state, the next client would go on with it";
            let more = if work.is_torn() { torn } else { "" };
            return Failure::new(failure.outcome, format!("{}{more}", failure.message));
        }
        let (symbols, needed) = self.receiver.progress();
        let had = match needed {
            0 => "what an earlier client had".to_owned(),
            _ => format!("{:.0} %", symbols as f64 * 100.0 / needed as f64),
        };
        Failure::new(
            failure.outcome,
            format!("{}; {had} is kept, the same command goes on with it", failure.message),
        )
    }

    /// Tells the tuner what has come and does what it says.
    fn tune(&mut self, reception: &mut Reception) -> Result<(), Failure> {
        let mut counts = self.receiver.channel_counts();
        for channel in &mut self.channels {
            // Before the manifest nothing is judged, and nothing counted as lost.
            let came = ChannelCount { received: channel.packets, lost: 0 };
            let count = counts.next().filter(|_| self.manifest.is_some()).unwrap_or(came);
            let new = channel.packets > channel.told;
            channel.told = channel.packets;
            self.tuner.handle_counts(self.clock, channel.origin, channel.group, count, new);
        }
        drop(counts);
        self.tuner.handle_time(self.clock);
        while let Some((step, group)) = self.tuner.poll_step() {
            let (origin, tier) = match step {
                Step::Join(origin, tier) | Step::Leave(origin, tier) => (origin, tier),
            };
            let state = self.tuner.state(origin);
            match step {
                // A source that is dropped is left on all tiers, whichever were joined.
                Step::Leave(..) => {
                    if reception.leave(group, origin.port, origin.address) {
                        self.report.step(step, group, state);
                    }
                }
                Step::Join(..) => {
                    self.report.step(step, group, state);
                    match reception.join(group, origin.port, origin.address) {
                        Ok((place, granted)) => self.joined(origin, tier, group, place, granted),
                        Err(error) => self.not_joined(origin, group, &error)?,
                    }
                }
            }
        }
        Ok(())
    }

    fn joined(&mut self, origin: Origin, tier: usize, group: Ipv6Addr, place: usize, granted: usize) {
        let wanted = self.arguments.rcvbuf as usize;
        if granted < wanted.min(SMALL_BUFFER) && !std::mem::replace(&mut self.small_buffer_said, true) {
            tracing::warn!(
                "the system caps the receive buffer at {} KiB: pauses of the machine will cost packets; \
                 raise it with `sysctl -w net.core.rmem_max={wanted}`",
                granted >> 10,
            );
        }
        let mut known = false;
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if (channel.origin, channel.place) == (origin, place) {
                self.receiver.handle_join(ChannelId(index as u16));
                (channel.tier, known) = (tier, true); // DNS may have moved the group
            }
        }
        if !known && self.channels.len() < MAX_CHANNELS {
            let source = origin.address;
            let joined = Instant::now();
            let channel = Channel {
                origin,
                source,
                group,
                tier,
                place,
                joined,
                first_packet: None,
                packets: 0,
                told: 0,
            };
            self.channels.push(channel);
        }
    }

    fn not_joined(&self, origin: Origin, group: Ipv6Addr, error: &io::Error) -> Result<(), Failure> {
        let why = match error.raw_os_error() {
            Some(libc::ENODEV) => "the interface is down or has no IPv6; bring it up".to_owned(),
            Some(libc::ENOBUFS) => "too many sources; raise net.ipv6.mld_max_msf".to_owned(),
            Some(libc::EADDRINUSE) => "the port is taken by another program".to_owned(),
            _ => plain(error),
        };
        let line = format!("[{group}]:{} cannot be joined: {why}", origin.port);
        if self.channels.is_empty() {
            return Err(Failure::new(Outcome::Failed, line));
        }
        tracing::warn!("{line}; going on with the others");
        Ok(())
    }

    /// What the kernel says that it dropped is a total for as long as a socket lives.
    fn count_overflow(&mut self, place: usize, batch: &Batch) {
        let (places, all) = &mut self.overflowed;
        if places.len() <= place {
            places.resize(place + 1, 0);
        }
        let before = std::mem::replace(&mut places[place], batch.overflowed);
        let new = if batch.overflowed < before { batch.overflowed } else { batch.overflowed - before };
        if new > 0 {
            let packets = (f64::from(new) * batch.packets_per_message()).round() as u64;
            *all += packets;
            self.tuner.handle_local_loss(packets);
        }
    }

    /// Ten times a second: progress, time-out.
    fn look_around(&mut self) -> Result<(), Failure> {
        if let Some(work) = &mut self.work {
            work.log(|stored| self.receiver.standing(stored))?; // nothing waits for longer than a tick
        }
        let standing = self.standing();
        self.report.progress(&standing);
        if self.status.is_due() {
            self.show();
        }
        let geometry = self.manifest.as_ref().and_then(|manifest| manifest.geometry().ok());
        let patience = silence::patience(geometry.as_ref(), self.receiver.refusal().is_some());
        let came = silence::came(&standing.counters);
        self.silence.handle(self.clock, standing.symbols, came, self.decoding > 0, patience);
        // A thread that still reserves or decodes must not meet another object in its file.
        let idle = self.decoding == 0 && self.work.as_ref().is_some_and(WorkFile::is_reserved);
        let silent = self.silence.lasts(self.clock);
        self.receiver.handle_silence(idle && silent >= SUCCESSION_AFTER);
        if let Some(refusal) = self.receiver.refusal().filter(|_| !self.refusal_said) {
            // No packet may end the program: the genuine manifest may be still to come.
            tracing::warn!("refused: {refusal}; waiting for another one");
            self.report.refused(refusal);
            self.refusal_said = true;
        }
        if let Some(refusal) = self.receiver.keys_refusal().filter(|_| !self.keys_refusal_said) {
            tracing::warn!("refused: {refusal}; the keys stay as they are");
            self.keys_refusal_said = true;
        }
        let timeout = Duration::from_millis(self.arguments.timeout);
        let timed_out = !timeout.is_zero() && silent >= timeout;
        if timed_out && let Some(refusal) = self.receiver.refusal() {
            self.report.refused(refusal);
            return Err(Failure::new(refusal.outcome(), refusal.to_string()));
        }
        if timed_out {
            return Err(Failure::new(Outcome::NoSignal, self.no_signal(&standing)));
        }
        Ok(())
    }

    fn no_signal(&self, standing: &Standing) -> String {
        let mut groups: Vec<String> = self.channels.iter().map(|channel| channel.group.to_string()).collect();
        groups.dedup();
        let waited = self.arguments.timeout as f64 / 1000.0;
        let what = match (standing.counters.received, self.manifest.is_some()) {
            (0, _) => {
                "no packet arrived: `carousel-client doctor` with the same source, group, port and interface finds \
                 out why"
            }
            (_, false) => {
                "packets arrived, but no manifest: a slow channel needs a longer --timeout; or is another program using \
                 this group and port?"
            }
            (_, true) => "nothing new arrived: did the server stop, or change to another object?",
        };
        format!("{waited} s of silence on {}: {what}", groups.join(", "))
    }

    /// The channel of a packet. Where any source may send, those who do are told apart, up to a number.
    fn channel(&mut self, source: Ipv6Addr, place: usize) -> ChannelId {
        let known = self.channels.iter().position(|c| c.source == Some(source) && c.place == place);
        let index = known.or_else(|| {
            let any = self.channels.iter().position(|c| c.source.is_none() && c.place == place)?;
            self.channels[any].source = Some(source);
            Some(any)
        });
        let index = index.unwrap_or_else(|| self.another(source, place));
        let channel = &mut self.channels[index];
        channel.packets += 1;
        channel.first_packet.get_or_insert_with(|| channel.joined.elapsed());
        ChannelId(index as u16)
    }

    fn another(&mut self, source: Ipv6Addr, place: usize) -> usize {
        let like = self.channels.iter().position(|c| c.place == place).unwrap_or(0);
        if self.channels.len() < MAX_CHANNELS {
            let c = &self.channels[like];
            let new = Channel { source: Some(source), first_packet: None, packets: 0, told: 0, ..*c };
            self.channels.push(new);
        }
        self.channels.len() - 1
    }

    fn standing(&self) -> Standing {
        let (symbols, needed) = self.receiver.progress();
        let symbols = if self.staging.is_some() { needed } else { symbols };
        let lost = self.receiver.channel_counts().map(|count| count.lost).sum();
        let tier = self.tuner.tier();
        let (overflowed, found) = (self.overflowed.1, self.found);
        Standing { found, symbols, needed, counters: self.receiver.counters(), lost, overflowed, tier }
    }

    /// Tells whoever reads the status.
    fn show(&mut self) {
        let (standing, heard) = (self.standing(), self.heard());
        let (rate, left) = (self.report.rate(), self.report.left(&standing));
        self.status.show(View { standing, heard, bytes: self.bytes, rate, left });
    }

    /// The channels that something came from.
    fn heard(&self) -> Vec<Heard> {
        let counts = self.receiver.channel_counts().zip(self.receiver.bursts());
        let heard = |(number, (channel, (count, bursts))): (usize, (&Channel, (ChannelCount, &Bursts)))| {
            let (group, port, tier) = (channel.group, channel.origin.port, channel.tier);
            let (source, first_packet) = (channel.source?, channel.first_packet?);
            Some(Heard { number, source, group, port, tier, first_packet, count, bursts: *bursts })
        };
        self.channels.iter().zip(counts).enumerate().filter_map(heard).collect()
    }
}
