//! From packets to places in the file: judges every packet on arrival and says what is to be done.
//!
//! Driven by `handle_*`, drained by [`Receiver::poll_output`]. It holds no symbol: the caller writes what a
//! [`Verdict::Store`] tells it to, decodes what an [`Output::BlockReady`] asks for and reports back. Memory is
//! bounded whatever arrives: a fixed number of early packets, of hash pages, of symbols that wait for their
//! page, and about 9 KiB of map per 4 MiB block in work. PROTOCOL.md section 8 has the rules.

mod block;
mod bursts;
mod cache;
mod channel;

pub use block::{BlockJob, EMPTY_PLACE, Place};
pub use bursts::Bursts;
pub use channel::ChannelCount;

use crate::authority::Authority;
use crate::device::{Device, Unfit};
use crate::geometry::{Esi, Geometry, Sbn};
use crate::journal::Stored;
use crate::keys::{KeysError, SignedKeys};
use crate::manifest::{Envelope, Manifest, instance_of};
use crate::pages::{
    BLOCKS_PER_PAGE, CV_LEN, LANES, Leaf, PageNumber, TreeShape, leaf, leaves, object_digest,
    verify_block_page,
};
use crate::trust::{Trust, TrustError};
use crate::wire::{Checksum, Instance, Kind, Packet, record_header};
use blake3::hazmat::ChainingValue;
use block::{Admission, Block};
use cache::{PageCache, Pending, Waiting};
use channel::Channel;
use std::collections::VecDeque;

/// Packets kept before the manifest is known: it may be lost a few times in a row without costing symbols.
/// 5 MB, given back as soon as it has come.
pub const EARLY_PACKETS: usize = 4096;
/// … and so many bytes of them at most, where packets are long.
const EARLY_BYTES: usize = 8 << 20;
/// Signature checks: at most so many at once, and one more every [`CHECK_EVERY_NS`].
const CHECK_BURST: u64 = 32;
/// See [`CHECK_BURST`]. Until a manifest is accepted a flood of forged ones may cost a fifth of a core; with
/// fewer checks the genuine one would have to wait long for its turn.
const CHECK_EVERY_NS: u64 = 500_000;
/// Refused manifests that are remembered.
const REFUSED_BODIES: usize = 64;

/// Number of a channel at this receiver: one (source, group, port).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChannelId(pub u16);

/// What becomes of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do: noted, or dropped and counted.
    Nothing,
    /// Write the symbol (the packet's body) there. The second is for the [`crate::journal`].
    Store(Place, Stored),
}

/// A datagram that [`Receiver::hash`] has looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hashed<'a> {
    bytes: &'a [u8],
    /// Of its record, if that will be asked for.
    leaf: Option<Leaf>,
}

/// What became of a symbol that was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is genuine, and still there.
    Proven,
    /// It is there; its page has not come yet.
    Unproven,
    /// Its place has something else, or its block is whole.
    Gone,
}

/// What the caller has to do next.
#[derive(Debug)]
pub enum Output {
    /// A manifest was accepted: make room for the object, then feed [`Receiver::take_early`] in again.
    Started(Box<Manifest>),
    /// A block has enough symbols: decode it, compare its hash, call [`Receiver::handle_decoded`].
    BlockReady(BlockJob),
    /// A block that the caller looked for is the right one.
    BlockFound(Sbn),
    /// Every block is there and the object's hash is right.
    Complete,
    /// Other keys count from now on: remember them.
    Keys(Box<SignedKeys>),
    /// The keys that came forbid the object that is on its way.
    Withdrawn(TrustError),
}

/// Everything counted since the start. Packets are UDP datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// All datagrams.
    pub received: u64,
    /// Not readable: too short, unknown version, kind or flags.
    pub unknown: u64,
    /// Of another object or another packing of it.
    pub foreign: u64,
    /// Of ours by their header, but proven wrong.
    pub rejected: u64,
    /// Symbols that brought nothing new.
    pub duplicate: u64,
    /// Symbols that could not be judged and were not needed badly enough to be kept.
    pub unjudged: u64,
    /// Symbol packets of ours that were not proven wrong.
    pub symbols: u64,
    /// Hash pages, block pages and manifests of ours.
    pub control: u64,
    /// Blocks that needed the decoder.
    pub decoded: u64,
    /// Decodings whose result was wrong: forged or damaged symbols without a page.
    pub decode_failed: u64,
}

/// One object on its way in.
pub struct Receiver {
    trust: Trust,
    device: Device,
    session: Option<Session>,
    early: EarlyPackets,
    /// Between what came early and the next packet others came, for which there was no room.
    early_gap: bool,
    /// Seconds since 1970 at the start, against which a manifest's expiry is held.
    unix_time: u64,
    channels: Vec<Channel>,
    counters: Counters,
    outputs: VecDeque<Output>,
    refusal: Option<TrustError>,
    keys_refusal: Option<KeysError>,
    /// Manifests, keys objects and heartbeats that were refused lately, so that their signature is not checked again.
    refused_bodies: VecDeque<Refused>,
    checks_until: u64,
    /// A manifest that lacks nothing but a heartbeat, as its packet came.
    held: Option<Vec<u8>>,
    /// The first moment there was.
    began: Option<u64>,
    /// Nothing of the object comes any more: a newer release may take its place.
    succession: bool,
}

/// What was refused, and as what: the bytes of a genuine keys object are no manifest, and whoever sends them as one must
/// not have the keys object refused for it.
type Refused = (Kind, blake3::Hash);

struct Session {
    manifest: Vec<u8>,
    geometry: Geometry,
    shape: TreeShape,
    cap: Vec<u8>,
    digest: [u8; 32],
    checksum: Checksum,
    instance: Instance,
    blocks: Vec<State>,
    /// Proven subtree values of the blocks, as far as block pages brought them.
    values: Vec<Option<ChainingValue>>,
    cache: PageCache,
    waiting: Waiting,
    remaining: u32,
    /// Of these, the blocks that still want symbols: those not at the decoder.
    wanting: u32,
    stored: u64,
}

enum State {
    Idle,
    /// The caller looks whether it has the block already.
    Looking,
    /// The caller has a block with this value. Whether that is the right one, its page will say.
    Claimed(ChainingValue),
    Receiving(Box<Block>),
    Decoding(Box<Block>),
    Done,
}

impl Receiver {
    /// A receiver that accepts the first manifest which `trust` accepts and which has not expired at
    /// `unix_time` (seconds since 1970; 0 where there is no clock).
    pub fn new(trust: Trust, unix_time: u64) -> Self {
        Self {
            trust,
            device: Device::default(),
            session: None,
            early: EarlyPackets::default(),
            early_gap: false,
            unix_time,
            channels: Vec::new(),
            counters: Counters::default(),
            outputs: VecDeque::new(),
            refusal: None,
            keys_refusal: None,
            refused_bodies: VecDeque::new(),
            checks_until: 0,
            held: None,
            began: None,
            succession: false,
        }
    }

    /// Takes only what is meant for this device.
    pub fn for_device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// One datagram, at `now` (ns on any clock that does not go back).
    pub fn handle_packet(&mut self, now: u64, channel: ChannelId, bytes: &[u8]) -> Verdict {
        self.handle_hashed(now, channel, &Hashed { bytes, leaf: None })
    }

    /// The next datagrams, of which those that will have to be hashed are hashed at once: the first [`LANES`] of them.
    pub fn hash<'a>(&self, packets: &[&'a [u8]]) -> [Hashed<'a>; LANES] {
        let mut out = [Hashed::default(); LANES];
        let (mut wanted, mut records, mut count) = ([0; LANES], [&[][..]; LANES], 0);
        for (index, bytes) in packets.iter().take(LANES).enumerate() {
            out[index].bytes = bytes;
            if let Some(record) = self.session.as_ref().and_then(|session| session.record_to_judge(bytes)) {
                (wanted[count], records[count]) = (index, record);
                count += 1;
            }
        }
        for (index, leaf) in wanted[..count].iter().zip(leaves(&records[..count])) {
            out[*index].leaf = Some(leaf);
        }
        out
    }

    /// As [`Self::handle_packet`], with the hash made before.
    pub fn handle_hashed(&mut self, now: u64, channel: ChannelId, packet: &Hashed<'_>) -> Verdict {
        self.counters.received += 1;
        if std::mem::take(&mut self.early_gap) {
            self.channels.iter_mut().for_each(Channel::handle_join);
        }
        self.judge(now, channel, packet)
    }

    /// A packet of [`Receiver::take_early`], which was counted when it came.
    pub fn handle_early(&mut self, now: u64, channel: ChannelId, bytes: &[u8]) -> Verdict {
        self.judge(now, channel, &Hashed { bytes, leaf: None })
    }

    fn judge(&mut self, now: u64, channel: ChannelId, hashed: &Hashed<'_>) -> Verdict {
        let bytes = hashed.bytes;
        let Ok(packet) = Packet::parse(bytes) else {
            self.counters.unknown += 1;
            return Verdict::Nothing;
        };
        let Some(session) = &self.session else {
            // An accepted manifest, too, is fed in again in its turn: its sequence number must not look lost.
            let wanted = match packet.kind() {
                Kind::Manifest => self.handle_first_manifest(now, &packet),
                Kind::Keys | Kind::Heartbeat => self.handle_statement(now, &packet) != Judgement::Wrong,
                Kind::HashPage | Kind::BlockPage | Kind::Symbol => true,
            };
            if wanted && !self.early.push(channel, bytes) {
                self.counters.unjudged += 1;
            }
            return Verdict::Nothing;
        };
        if !session.is_of(&packet) {
            self.counters.foreign += 1;
            if self.succession {
                self.handle_successor(now, &packet);
            }
            return Verdict::Nothing;
        }
        if !session.fits(&packet) {
            self.counters.rejected += 1;
            return Verdict::Nothing;
        }
        let judgement = match packet.kind() {
            Kind::Symbol => return self.handle_symbol(channel, &packet, hashed.leaf),
            Kind::Manifest if is_manifest(&packet, &session.manifest) => Judgement::Known,
            Kind::Manifest => Judgement::Wrong,
            Kind::HashPage => self.handle_hash_page(&packet),
            Kind::BlockPage => self.handle_block_page(&packet),
            Kind::Keys | Kind::Heartbeat => self.handle_statement(now, &packet),
        };
        match judgement {
            Judgement::Wrong => self.counters.rejected += 1,
            Judgement::New | Judgement::Known => self.counters.control += 1,
        }
        self.note(channel, &packet, judgement);
        Verdict::Nothing
    }

    /// The packets that came before the manifest, to be fed in again after [`Output::Started`].
    pub fn take_early(&mut self) -> EarlyPackets {
        let early = std::mem::take(&mut self.early);
        self.early_gap = early.overflowed;
        early
    }

    /// Whether a newer release of the same name, or another packing of the same release, may take the place of the object on its way, which then
    /// [`Output::Started`] says. Only while nothing of the object has come for a while, and nothing of it is at the
    /// decoder: where several servers send, some may have the newer one sooner than others.
    pub fn handle_silence(&mut self, silent: bool) {
        self.succession = silent && self.session.is_some();
    }

    /// What to do next, if anything.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// A channel was joined, perhaps after it had been left: its count goes on with the next packet.
    pub fn handle_join(&mut self, channel: ChannelId) {
        if let Some(channel) = self.channels.get_mut(usize::from(channel.0)) {
            channel.handle_join();
        }
    }

    /// The outcome of a [`BlockJob`]: whether the block's hash was right (then the block is complete on disk;
    /// otherwise nothing on disk was touched), and whether anything had to be restored.
    pub fn handle_decoded(&mut self, job: BlockJob, matched: bool, by_decoder: bool) {
        let Some(session) = &mut self.session else { return };
        let sbn = job.sbn;
        let Some(state) = session.blocks.get_mut(sbn.0 as usize) else { return };
        if !matches!(state, State::Decoding(_)) {
            return;
        }
        let State::Decoding(mut block) = std::mem::replace(state, State::Done) else { return };
        if matched {
            self.counters.decoded += u64::from(by_decoder);
            session.remaining -= 1;
            if session.remaining == 0 {
                session.complete(&mut self.outputs);
            }
        } else {
            self.counters.decode_failed += 1;
            session.stored -= u64::from(block.handle_failure(job));
            session.wanting += 1;
            *state = State::Receiving(block);
        }
    }

    /// BLAKE3 of the accepted manifest.
    pub fn manifest_hash(&self) -> Option<blake3::Hash> {
        self.session.as_ref().map(|session| blake3::hash(&session.manifest))
    }

    /// What became of a stored symbol.
    pub fn standing(&self, stored: &Stored) -> Standing {
        match self.session.as_ref().and_then(|session| session.blocks.get(stored.sbn.0 as usize)) {
            Some(State::Receiving(block)) => block.standing(stored.esi, stored.place),
            Some(State::Decoding(_)) => Standing::Unproven, // what it holds is on its way
            _ => Standing::Gone,
        }
    }

    /// A symbol that an earlier run stored, whether that had proven it, and what stands in its place now. Whether it
    /// counts.
    pub fn handle_restored(&mut self, stored: &Stored, proven: bool, bytes: &[u8]) -> bool {
        let Some(session) = &mut self.session else { return false };
        let g = &session.geometry;
        let Some(state) = session.blocks.get_mut(stored.sbn.0 as usize) else { return false };
        if u32::from(stored.esi.0) >= g.symbols(stored.sbn) || bytes.len() > g.symbol_len() {
            return false;
        }
        let Some((page, index)) = session.shape.page_of(stored.slot) else { return false };
        let header = record_header(g.size(), g.offset(stored.sbn, stored.esi), stored.slot);
        let mut record = [&header, bytes].concat();
        record.resize(header.len() + g.symbol_len(), 0);
        if leaf(&record) != stored.leaf {
            return false;
        }
        if matches!(state, State::Idle) {
            *state = State::Receiving(Box::new(Block::new(g, stored.sbn)));
        }
        let State::Receiving(block) = state else { return false };
        if !block.restore(stored.esi, stored.place, proven) {
            return false;
        }
        if !proven {
            let Stored { sbn, esi, leaf, .. } = *stored;
            session.waiting.push(page, Pending { index, leaf, sbn, esi });
        }
        session.stored += 1;
        session.check_ready(stored.sbn, &mut self.outputs);
        true
    }

    /// Whether nothing of a block has come yet. If so, nothing of it is wanted until [`Receiver::handle_looked`].
    pub fn look_for(&mut self, sbn: Sbn) -> bool {
        let state = self.session.as_mut().and_then(|session| session.blocks.get_mut(sbn.0 as usize));
        match state {
            Some(state @ State::Idle) => {
                *state = State::Looking;
                true
            }
            _ => false,
        }
    }

    /// The value of a block ([`crate::pages::block_value`]) as the caller has it in its file, from an earlier run or
    /// another release; `None` if it has not. It counts if it is the right one.
    pub fn handle_looked(&mut self, sbn: Sbn, value: Option<ChainingValue>) {
        let Some(session) = &mut self.session else { return };
        if let Some(state @ State::Looking) = session.blocks.get_mut(sbn.0 as usize) {
            *state = value.map_or(State::Idle, State::Claimed);
            session.judge_claim(sbn, &mut self.outputs);
        }
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What was counted on each channel; index by [`ChannelId`].
    pub fn channel_counts(&self) -> impl Iterator<Item = ChannelCount> + '_ {
        self.channels.iter().map(Channel::count)
    }

    /// Bursts of losses on each channel, as far as they are over; index by [`ChannelId`].
    pub fn bursts(&self) -> impl Iterator<Item = &Bursts> {
        self.channels.iter().map(Channel::bursts)
    }

    /// Nothing will come any more: all bursts are over.
    pub fn handle_end(&mut self) {
        self.channels.iter_mut().for_each(Channel::handle_end);
    }

    /// Symbols held and symbols needed.
    pub fn progress(&self) -> (u64, u64) {
        self.session.as_ref().map_or((0, 0), |s| (s.stored, s.geometry.symbols_needed()))
    }

    /// Whether packets are of any use: not while every block is complete or at the decoder. A decoding that fails
    /// changes that again.
    pub fn wants_packets(&self) -> bool {
        self.session.as_ref().is_none_or(|session| session.wanting > 0)
    }

    /// Why the last manifest was refused, as long as none was accepted.
    pub fn refusal(&self) -> Option<&TrustError> {
        self.refusal.as_ref().filter(|_| self.session.is_none())
    }

    /// Why the last keys object was refused.
    pub fn keys_refusal(&self) -> Option<&KeysError> {
        self.keys_refusal.as_ref()
    }

    /// Whom it believes, if that may change.
    pub fn authority(&mut self) -> Option<&mut Authority> {
        match &mut self.trust {
            Trust::Authority(authority) => Some(authority),
            _ => None,
        }
    }

    /// Keys object or heartbeat. Neither is ever new to the count of a channel: a replay looks the same.
    fn handle_statement(&mut self, now: u64, packet: &Packet<'_>) -> Judgement {
        let is_keys = packet.kind() == Kind::Keys;
        let elapsed = self.elapsed(now);
        let (has_session, succession) = (self.session.is_some(), self.succession);
        let Some(authority) = self.authority() else { return Judgement::Known };
        let Ok(envelope) = Envelope::parse(packet.body()) else { return Judgement::Wrong };
        authority.handle_time(elapsed);
        // What is begun goes on without a heartbeat.
        let wanted = is_keys || !has_session || succession;
        let Some(checks) = authority.checks(is_keys, &envelope).filter(|_| wanted) else {
            return Judgement::Known;
        };
        let body = (packet.kind(), blake3::hash(&packet.body()[..envelope.len()]));
        if self.refused_bodies.contains(&body) {
            return Judgement::Wrong;
        }
        if !self.may_check(now, checks) {
            self.counters.unjudged += 1;
            return Judgement::Known;
        }
        let Some(authority) = self.authority() else { return Judgement::Known };
        if !is_keys {
            if !authority.handle_heartbeat(&envelope) {
                self.remember_refused(body);
                return Judgement::Wrong;
            }
            if let Some(held) = self.held.take()
                && let Ok(packet) = Packet::parse(&held)
            {
                self.checks_until -= CHECK_EVERY_NS; // the check of this one was paid for when it came
                self.handle_first_manifest(now, &packet);
            }
            return Judgement::Known;
        }
        match authority.handle_keys(&envelope) {
            Ok(signed) => {
                let withdrawn = authority.withdrawn().filter(|_| has_session);
                // Other keys, other judgements.
                self.refused_bodies.clear();
                self.keys_refusal = None;
                self.outputs.push_back(Output::Keys(Box::new(signed)));
                self.outputs.extend(withdrawn.map(Output::Withdrawn));
                Judgement::Known
            }
            Err(refusal) => {
                self.remember_refused(body);
                self.keys_refusal = Some(refusal);
                Judgement::Wrong
            }
        }
    }

    /// Signature checks are dear: a token bucket, so that a flood cannot buy CPU time.
    fn may_check(&mut self, now: u64, checks: u64) -> bool {
        if self.checks_until > now {
            return false;
        }
        let earliest = now.saturating_sub(CHECK_BURST * CHECK_EVERY_NS);
        self.checks_until = self.checks_until.max(earliest) + checks * CHECK_EVERY_NS;
        true
    }

    fn remember_refused(&mut self, body: Refused) {
        if self.refused_bodies.len() == REFUSED_BODIES {
            self.refused_bodies.pop_front();
        }
        self.refused_bodies.push_back(body);
    }

    /// Seconds since the first moment there was.
    fn elapsed(&mut self, now: u64) -> u64 {
        now.saturating_sub(*self.began.get_or_insert(now)) / 1_000_000_000
    }

    /// A packet of another object, when nothing comes of ours.
    fn handle_successor(&mut self, now: u64, packet: &Packet<'_>) {
        let of = |session: &Session| Manifest::parse(&session.manifest).ok();
        match packet.kind() {
            Kind::Keys | Kind::Heartbeat => {
                self.handle_statement(now, packet);
            }
            Kind::Manifest => {
                let new = Envelope::parse(packet.body()).ok().and_then(|e| Manifest::parse(e.manifest).ok());
                let is_next = |(new, old): (Manifest, Manifest)| new.name == old.name && new.seq >= old.seq;
                // Ours behind a header that somebody changed would only throw away what is there.
                if self.session.as_ref().is_some_and(|session| is_manifest(packet, &session.manifest)) {
                    return;
                }
                if new.zip(self.session.as_ref().and_then(of)).is_some_and(is_next) {
                    self.handle_first_manifest(now, packet);
                }
            }
            Kind::HashPage | Kind::BlockPage | Kind::Symbol => {}
        }
    }

    /// Whether a session begins with it, or may yet.
    fn handle_first_manifest(&mut self, now: u64, packet: &Packet<'_>) -> bool {
        let Ok(envelope) = Envelope::parse(packet.body()) else {
            self.counters.rejected += 1;
            return false;
        };
        // A manifest damaged on the way must not be believed: no other packet would ever fit it. The same
        // refused manifest comes again every second or so: no second look.
        // The hash takes in lengths and algorithm: a genuine manifest must not be mistaken for a forged twin.
        let body = (Kind::Manifest, blake3::hash(&packet.body()[..envelope.len()]));
        if packet.instance() != instance_of(envelope.manifest) || self.refused_bodies.contains(&body) {
            self.counters.rejected += 1;
            return false;
        }
        if !self.may_check(now, 1) {
            self.counters.unjudged += 1;
            return false;
        }
        let elapsed = self.elapsed(now);
        let mut before = None;
        if let Some(authority) = self.authority() {
            authority.handle_time(elapsed);
            before = authority.accepted();
        }
        let unix_time = match &self.trust {
            Trust::Authority(authority) => authority.now(),
            _ => self.unix_time.saturating_add(elapsed),
        };
        let device = &self.device;
        let judge = |manifest: Manifest| Ok(device.judge(&manifest, unix_time).map(|()| manifest)?);
        let judged = self.trust.check(&envelope, self.unix_time).and_then(judge);
        if let (Err(_), Trust::Authority(authority)) = (&judged, &mut self.trust) {
            authority.keep(before); // believed, perhaps, but not begun: another one may be on its way
        }
        match judged {
            Ok(manifest) => match Session::new(&manifest, &envelope) {
                Some(session) => {
                    let nothing_to_do = session.remaining == 0;
                    self.succession = false;
                    self.held = None; // what waits for its heartbeat has come too late
                    // What came since the last packet of the release before was not counted, and is not lost.
                    self.channels.iter_mut().for_each(Channel::handle_join);
                    self.session = Some(session);
                    self.outputs.push_back(Output::Started(Box::new(manifest)));
                    if nothing_to_do && let Some(session) = &self.session {
                        session.complete(&mut self.outputs);
                    }
                }
                None => self.counters.rejected += 1,
            },
            Err(refusal @ TrustError::NoHeartbeat { .. }) => {
                self.held = Some(packet.bytes().to_vec());
                self.refusal = Some(refusal);
                return true;
            }
            // Its turn comes while we listen, perhaps: it is looked at again, and its packets are as good as any.
            Err(refusal @ TrustError::Unfit(Unfit::NotYet { .. })) => {
                self.refusal = Some(refusal);
                return true;
            }
            Err(refusal) => {
                self.counters.rejected += 1;
                self.remember_refused(body);
                self.refusal = Some(refusal);
            }
        }
        self.session.is_some()
    }

    fn handle_hash_page(&mut self, packet: &Packet<'_>) -> Judgement {
        let Some(session) = &mut self.session else { return Judgement::Wrong };
        let number = PageNumber(packet.slot().0);
        let leaves = &packet.body()[..session.shape.leaves_len()];
        match session.cache.get(number) {
            Some(known) if known == leaves => return Judgement::Known,
            Some(_) => return Judgement::Wrong,
            None if !session.shape.verify(number, packet.body(), &session.cap) => return Judgement::Wrong,
            None => session.cache.insert(number, leaves),
        }
        // Symbols that overtook their page are judged now.
        for pending in session.waiting.take(number) {
            let proven = session.cache.leaf(number, pending.index) == Some(&pending.leaf);
            if let Some(State::Receiving(block)) = session.blocks.get_mut(pending.sbn.0 as usize) {
                if block.resolve(pending.esi, proven) {
                    session.stored -= 1;
                }
                session.check_ready(pending.sbn, &mut self.outputs);
            }
            self.counters.rejected += u64::from(!proven);
        }
        Judgement::New
    }

    fn handle_block_page(&mut self, packet: &Packet<'_>) -> Judgement {
        let Some(session) = &mut self.session else { return Judgement::Wrong };
        let number = PageNumber(packet.slot().0);
        let first = u64::from(number.0) * u64::from(BLOCKS_PER_PAGE);
        if first >= session.values.len() as u64 {
            return Judgement::Wrong;
        }
        let first = first as usize;
        if session.values[first].is_some() {
            // Proven before: now it is enough to compare.
            let group = session.values[first..].iter().take(BLOCKS_PER_PAGE as usize);
            let same = group
                .zip(packet.body().chunks(CV_LEN))
                .all(|(value, bytes)| value.is_some_and(|v| v == bytes));
            return if same { Judgement::Known } else { Judgement::Wrong };
        }
        let Some(values) = verify_block_page(&session.geometry, number, packet.body(), &session.digest)
        else {
            return Judgement::Wrong;
        };
        for (sbn, value) in (first as u32..).map(Sbn).zip(values) {
            session.values[sbn.0 as usize] = Some(value);
            session.check_ready(sbn, &mut self.outputs);
            session.judge_claim(sbn, &mut self.outputs);
        }
        Judgement::New
    }

    fn handle_symbol(&mut self, channel: ChannelId, packet: &Packet<'_>, hash: Option<Leaf>) -> Verdict {
        let hash = || hash.unwrap_or_else(|| leaf(packet.record()));
        let Some(session) = &mut self.session else { return Verdict::Nothing };
        let found = session.geometry.symbol_at(packet.offset()).zip(session.shape.page_of(packet.slot()));
        let Some(((sbn, esi), (page, index))) = found else {
            self.counters.rejected += 1;
            return Verdict::Nothing;
        };
        let state = &mut session.blocks[sbn.0 as usize];
        if matches!(state, State::Idle) {
            *state = State::Receiving(Box::new(Block::new(&session.geometry, sbn)));
        }
        let State::Receiving(block) = state else {
            self.counters.symbols += 1;
            self.counters.duplicate += 1;
            self.note(channel, packet, Judgement::Known);
            return Verdict::Nothing;
        };
        let before = block.held();
        let known = session.cache.leaf(page, index).copied();
        let (admission, judgement) = match known {
            _ if block.has_verified(esi) => (Admission::Duplicate, Judgement::Known),
            Some(expected) if hash() != expected => {
                self.counters.rejected += 1;
                return Verdict::Nothing;
            }
            Some(_) => (block.admit_verified(esi), Judgement::New),
            None => (block.admit_unverified(esi), Judgement::Known),
        };
        if judgement == Judgement::New {
            session.cache.mark(page);
        }
        session.stored = session.stored + u64::from(block.held()) - u64::from(before);
        self.counters.symbols += 1;
        let verdict = match admission {
            Admission::Store(place) => {
                let leaf = known.unwrap_or_else(hash);
                if judgement != Judgement::New {
                    session.waiting.push(page, Pending { index, leaf, sbn, esi });
                }
                let stored = Stored { sbn, esi, place, slot: packet.slot(), leaf };
                Verdict::Store(Place::new(&session.geometry, sbn, place, esi), stored)
            }
            Admission::Duplicate => {
                self.counters.duplicate += 1;
                Verdict::Nothing
            }
            Admission::Refused => {
                self.counters.unjudged += 1;
                Verdict::Nothing
            }
        };
        session.check_ready(sbn, &mut self.outputs);
        self.note(channel, packet, judgement);
        verdict
    }

    /// Only what was proven genuine just now moves a channel's count: what is known could be a replay.
    fn note(&mut self, channel: ChannelId, packet: &Packet<'_>, judgement: Judgement) {
        let index = usize::from(channel.0);
        if self.channels.len() <= index {
            self.channels.resize_with(index + 1, Channel::default);
        }
        if judgement != Judgement::Wrong {
            self.channels[index].handle(packet.sequence(), judgement == Judgement::New);
        }
    }
}

/// Packets that came before the manifest, end to end in one piece of memory, which goes back whole.
#[derive(Debug, Default)]
pub struct EarlyPackets {
    bytes: Vec<u8>,
    /// Channel and length of each.
    packets: Vec<(ChannelId, usize)>,
    /// There was no room for others.
    overflowed: bool,
}

impl EarlyPackets {
    fn push(&mut self, channel: ChannelId, packet: &[u8]) -> bool {
        let room = self.packets.len() < EARLY_PACKETS && self.bytes.len() + packet.len() <= EARLY_BYTES;
        if room {
            self.bytes.extend_from_slice(packet);
            self.packets.push((channel, packet.len()));
        }
        self.overflowed |= !room;
        room
    }

    /// The packets in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (ChannelId, &[u8])> {
        let mut rest = &self.bytes[..];
        self.packets.iter().map(move |(channel, len)| {
            let (packet, behind) = rest.split_at(*len);
            rest = behind;
            (*channel, packet)
        })
    }
}

/// What is known of a packet of our object after looking at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    /// Proven genuine, by hashing it.
    New,
    /// Not proven by itself: known already, or its page is not.
    Known,
    /// Proven wrong.
    Wrong,
}

fn is_manifest(packet: &Packet<'_>, manifest: &[u8]) -> bool {
    Envelope::parse(packet.body()).is_ok_and(|envelope| envelope.manifest == manifest)
}

impl Session {
    /// `None` if the numbers do not fit each other, which [`Manifest::parse`] has already made sure of.
    fn new(manifest: &Manifest, envelope: &Envelope<'_>) -> Option<Self> {
        let geometry = manifest.geometry().ok()?;
        let shape = manifest.tree_shape(&geometry).ok()?;
        let blocks = geometry.blocks();
        let mut values = vec![None; blocks as usize];
        if blocks == 1 {
            values[0] = Some(manifest.digest);
        }
        Some(Self {
            manifest: envelope.manifest.to_vec(),
            geometry,
            shape,
            cap: manifest.cap.clone(),
            digest: manifest.digest,
            checksum: manifest.checksum(),
            instance: instance_of(envelope.manifest),
            blocks: (0..blocks).map(|_| State::Idle).collect(),
            values,
            cache: PageCache::new(shape.leaves_len()),
            waiting: Waiting::default(),
            remaining: blocks,
            wanting: blocks,
            stored: 0,
        })
    }

    /// Whether a packet says that it is of this object, in this packing.
    fn is_of(&self, packet: &Packet<'_>) -> bool {
        packet.checksum() == self.checksum && packet.instance() == self.instance
    }

    /// Whether a packet of this object has its size, and as much behind the header as there must be.
    fn fits(&self, packet: &Packet<'_>) -> bool {
        packet.size() == self.geometry.size() && packet.body().len() == self.geometry.symbol_len()
    }

    /// The record of a symbol that is wanted, as things are.
    fn record_to_judge<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let packet = Packet::parse(bytes).ok()?;
        if packet.kind() != Kind::Symbol || !self.is_of(&packet) || !self.fits(&packet) {
            return None;
        }
        let (sbn, esi) = self.geometry.symbol_at(packet.offset())?;
        match &self.blocks[sbn.0 as usize] {
            State::Idle => Some(packet.record()),
            State::Receiving(block) if !block.has_verified(esi) => Some(packet.record()),
            _ => None,
        }
    }

    /// Hands a block to the decoder once it has symbols enough and its hash is known.
    fn check_ready(&mut self, sbn: Sbn, outputs: &mut VecDeque<Output>) {
        let state = &mut self.blocks[sbn.0 as usize];
        if let State::Receiving(block) = state
            && block.is_ready()
            && let Some(expected) = self.values[sbn.0 as usize]
            && let State::Receiving(mut block) = std::mem::replace(state, State::Done)
        {
            outputs.push_back(Output::BlockReady(block.job(sbn, expected)));
            *state = State::Decoding(block);
            self.wanting -= 1;
        }
    }

    /// A block that the caller has, if its page is there.
    fn judge_claim(&mut self, sbn: Sbn, outputs: &mut VecDeque<Output>) {
        let state = &mut self.blocks[sbn.0 as usize];
        let (State::Claimed(value), Some(expected)) = (&*state, &self.values[sbn.0 as usize]) else { return };
        if value != expected {
            *state = State::Idle;
            return;
        }
        *state = State::Done;
        self.stored += u64::from(self.geometry.source_symbols(sbn));
        self.remaining -= 1;
        self.wanting -= 1;
        outputs.push_back(Output::BlockFound(sbn));
        if self.remaining == 0 {
            self.complete(outputs);
        }
    }

    fn complete(&self, outputs: &mut VecDeque<Output>) {
        let values: Vec<ChainingValue> = self.values.iter().copied().flatten().collect();
        // Each value was proven against this digest; comparing the whole costs nothing and trusts no one.
        if values.len() == self.blocks.len() && object_digest(&values) == self.digest {
            outputs.push_back(Output::Complete);
        }
    }
}

/// Whether an ESI stands in its own place.
pub fn is_home(place: u16, content: u16) -> bool {
    place == content
}

/// Where the symbol of a map's place lies; see [`Place::new`].
pub fn place_of(geometry: &Geometry, sbn: Sbn, place: u16, content: u16) -> Place {
    Place::new(geometry, sbn, place, Esi(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{BundleHeader, Places, layout_of};
    use crate::heartbeat::Heartbeat;
    use crate::manifest::tests::sample;
    use crate::pages::record_len;
    use crate::schedule::{Content, Item, Order, Position, Tier};
    use crate::signature::pairs::Pair;
    use crate::wire::{PREFIX_LEN, Sequence, emit_prefix};
    use minisign_verify::PublicKey;

    const BUNDLE: &[u8] = include_bytes!("../../vectors/tiny.carousel");
    const KEY: &str = include_str!("../../vectors/test.pub");

    /// The manifest packet of the tiny bundle, after `change` has been at its body.
    fn manifest_packet(change: impl Fn(&mut [u8])) -> Vec<u8> {
        let record = &BUNDLE[record_len(1188)..][..record_len(1188)];
        let envelope = Envelope::parse(&record[16..]).unwrap();
        let manifest = Manifest::parse(envelope.manifest).unwrap();
        let mut prefix = [0; PREFIX_LEN];
        let instance = instance_of(envelope.manifest);
        emit_prefix(&mut prefix, Kind::Manifest, Sequence(0), manifest.checksum(), instance);
        let mut packet = [&prefix[..], record].concat();
        change(&mut packet[44..]);
        packet
    }

    #[test]
    fn a_forged_twin_does_not_discredit_the_genuine_manifest() {
        let twins: [fn(&mut [u8]); 3] = [
            |body| body[2] = 0, // another algorithm
            |body| body[4] = 0, // a shorter signature
            |body| body[6 + usize::from(u16::from_be_bytes([body[0], body[1]])) + 60] ^= 1, // a damaged one
        ];
        for twin in twins {
            let key = PublicKey::decode(KEY).unwrap();
            let mut receiver = Receiver::new(Trust::Keys(vec![key]), 0);
            receiver.handle_packet(0, ChannelId(0), &manifest_packet(twin));
            assert!(receiver.poll_output().is_none());
            receiver.handle_packet(1_000_000, ChannelId(0), &manifest_packet(|_| ()));
            assert!(matches!(receiver.poll_output(), Some(Output::Started(_))));
        }
    }

    #[test]
    fn what_comes_before_the_manifest_counts_once_and_so_does_the_manifest() {
        let key = PublicKey::decode(KEY).unwrap();
        let mut receiver = Receiver::new(Trust::Keys(vec![key]), 0);
        let mut page = manifest_packet(|_| ());
        page[1] = Kind::HashPage as u8;
        receiver.handle_packet(0, ChannelId(0), &page);
        assert_eq!(receiver.counters().received, 1, "so that nobody says that nothing arrived");
        receiver.handle_packet(0, ChannelId(0), &manifest_packet(|_| ()));
        let early = receiver.take_early();
        for (channel, bytes) in early.iter() {
            receiver.handle_early(0, channel, bytes);
        }
        let counters = receiver.counters();
        assert_eq!((counters.received, counters.rejected, counters.control), (2, 1, 1));
        let counted = receiver.channel_counts().next().map(|count| count.received);
        assert_eq!(counted, Some(1), "the manifest; the page was wrong");
    }

    #[test]
    fn what_found_no_room_before_the_manifest_is_not_lost() {
        let key = PublicKey::decode(KEY).unwrap();
        let mut receiver = Receiver::new(Trust::Keys(vec![key]), 0);
        let (packets, _) = cycle();
        let mut pages = packets.iter().filter(|packet| packet[1] == Kind::HashPage as u8).cloned();
        let (mut first, mut other) = (pages.next().unwrap(), pages.next().unwrap());
        let all = EARLY_PACKETS as u32 + 1_000;
        for sequence in 0..all {
            first[4..8].copy_from_slice(&sequence.to_be_bytes());
            receiver.handle_packet(0, ChannelId(0), &first);
        }
        receiver.handle_packet(0, ChannelId(0), &manifest_packet(|_| ()));
        assert!(matches!(outputs(&mut receiver)[..], [Output::Started(_)]));
        for (channel, bytes) in receiver.take_early().iter() {
            receiver.handle_early(0, channel, bytes);
        }
        other[4..8].copy_from_slice(&all.to_be_bytes());
        receiver.handle_packet(0, ChannelId(0), &other);
        assert_eq!((receiver.counters().unjudged, receiver.counters().rejected), (1_001, 0));
        assert_eq!(receiver.channel_counts().map(|count| count.lost).sum::<u64>(), 0);
    }

    #[test]
    fn what_was_sent_before_a_newer_release_was_begun_is_not_lost() {
        let mut receiver = Receiver::new(Trust::Anyone, 0);
        for (seq, sequence) in [(5, 1_u32), (6, 6_000)] {
            receiver.handle_silence(true);
            receiver.handle_packet(u64::from(sequence) * 1_000_000, ChannelId(0), &unsigned(seq, "a"));
            assert!(matches!(outputs(&mut receiver)[..], [Output::Started(_)]));
            let mut proven = unsigned(seq, "a");
            proven[4..8].copy_from_slice(&sequence.to_be_bytes());
            receiver.note(ChannelId(0), &Packet::parse(&proven).unwrap(), Judgement::New);
        }
        assert_eq!(receiver.channel_counts().map(|count| count.lost).sum::<u64>(), 0);
    }

    /// The packet of a manifest that nobody has signed.
    fn unsigned(seq: u64, name: &str) -> Vec<u8> {
        let manifest = Manifest { seq, name: name.into(), ..sample() };
        packet_of(&manifest, 0, &[])
    }

    fn packet_of(manifest: &Manifest, algorithm: u8, signature: &[u8]) -> Vec<u8> {
        let bytes = manifest.emit();
        let envelope = Envelope { manifest: &bytes, algorithm, signature };
        let header = &BUNDLE[record_len(1188)..][..16];
        let mut prefix = [0; PREFIX_LEN];
        emit_prefix(&mut prefix, Kind::Manifest, Sequence(0), manifest.checksum(), instance_of(&bytes));
        [&prefix[..], header, &envelope.emit(1188).unwrap()].concat()
    }

    /// A release for one kind of device, and its packet, signed by pair 10.
    fn release(seq: u64, kind: &str) -> (Manifest, Vec<u8>) {
        let manifest = Manifest { seq, compatible: Some(vec![kind.into()]), created: 0, ..sample() };
        let signature = Pair::new(10).sign(&manifest.emit()).to_minisign();
        let packet = packet_of(&manifest, 1, signature.as_bytes());
        (manifest, packet)
    }

    /// Believes releases by pair 10 and heartbeats by pair 20.
    fn by_pairs() -> Receiver {
        let keys = crate::keys::tests::keys(1, 1, &[1], &[10], &[20]);
        Receiver::new(Trust::Authority(Box::new(Authority::new(keys, Default::default(), 5_000))), 5_000)
    }

    #[test]
    fn only_silence_lets_a_release_go_and_only_for_one_that_is_no_older() {
        let mut receiver = Receiver::new(Trust::Anyone, 0);
        let mut now = (0..).step_by(CHECK_EVERY_NS as usize);
        let mut begins = |receiver: &mut Receiver, seq, name| {
            receiver.handle_packet(now.next().unwrap(), ChannelId(0), &unsigned(seq, name));
            match receiver.poll_output() {
                Some(Output::Started(manifest)) => Some(manifest.seq),
                _ => None,
            }
        };
        assert_eq!(begins(&mut receiver, 5, "a"), Some(5));
        assert_eq!(begins(&mut receiver, 6, "a"), None, "the other is on its way");
        receiver.handle_silence(true);
        assert_eq!(begins(&mut receiver, 4, "a"), None, "older");
        assert_eq!(begins(&mut receiver, 6, "b"), None, "something else");
        assert_eq!(begins(&mut receiver, 6, "a"), Some(6));
        assert_eq!(begins(&mut receiver, 7, "a"), None, "this one has only begun");
        receiver.handle_silence(true);
        receiver.handle_silence(false);
        assert_eq!(begins(&mut receiver, 7, "a"), None);
        receiver.handle_silence(true);
        let mut ours = unsigned(6, "a");
        ours[8] ^= 1; // another checksum before the same manifest
        receiver.handle_packet(1_000_000_000, ChannelId(0), &ours);
        assert!(receiver.poll_output().is_none(), "nothing is begun anew");
        assert_eq!(begins(&mut receiver, 7, "a"), Some(7));
    }

    #[test]
    fn a_newer_release_for_other_devices_leaves_the_one_on_its_way_what_it_is() {
        let device = Device { compatible: vec!["board-a".into()], id: None };
        let mut receiver = by_pairs().for_device(device);
        receiver.handle_packet(0, ChannelId(0), &release(5, "board-a").1);
        assert!(matches!(outputs(&mut receiver)[..], [Output::Started(_)]));
        receiver.handle_silence(true);
        receiver.handle_packet(1_000_000, ChannelId(0), &release(6, "board-b").1);
        assert!(outputs(&mut receiver).is_empty());
        let authority = receiver.authority().unwrap();
        authority.handle_handover();
        let handed_over: Vec<u64> =
            authority.memory().releases[&sample().name].iter().map(|(_, seq)| seq).collect();
        assert_eq!(handed_over, [5]);
    }

    #[test]
    fn what_waited_for_its_heartbeat_begins_nothing_once_another_has_begun() {
        let mut receiver = by_pairs();
        receiver.authority().unwrap().require_heartbeat();
        let beat = |seq| {
            let heartbeat = Heartbeat::new(&release(seq, "board-a").0.emit(), 5_000, 60);
            statement_packet(Kind::Heartbeat, &heartbeat.seal(Pair::new(20).sign(&heartbeat.emit())))
        };
        // The older one waits while the newer one is accepted.
        let packets = [release(5, "board-a").1, beat(6), release(6, "board-a").1];
        for (packet, now) in packets.iter().zip((0..).step_by(1_000_000)) {
            receiver.handle_packet(now, ChannelId(0), packet);
        }
        assert!(matches!(&outputs(&mut receiver)[..], [Output::Started(manifest)] if manifest.seq == 6));
        receiver.handle_silence(true);
        receiver.handle_packet(9_000_000, ChannelId(0), &beat(5));
        assert!(outputs(&mut receiver).is_empty());
    }

    /// Every packet of the tiny bundle's cycle.
    fn cycle() -> (Vec<Vec<u8>>, Geometry) {
        let envelope = Envelope::parse(&BUNDLE[record_len(1188) + 16..]).unwrap();
        let manifest = Manifest::parse(envelope.manifest).unwrap();
        let header = BundleHeader::parse(BUNDLE).unwrap();
        let layout = layout_of(&header, &manifest, BUNDLE.len() as u64).unwrap();
        let (order, places) = (Order::new(&layout, Tier::Alone).unwrap(), Places::new(&layout));
        let packet = |position| {
            let item = order.item(Position(position));
            let kind = match item {
                Item::Manifest => Kind::Manifest,
                Item::BlockPage(_) => Kind::BlockPage,
                Item::Record(_, record) => match layout.record(record) {
                    Content::HashPage(_) => Kind::HashPage,
                    Content::Symbol(_) => Kind::Symbol,
                },
            };
            let mut prefix = [0; PREFIX_LEN];
            let sequence = Sequence(position as u32 + 1);
            emit_prefix(&mut prefix, kind, sequence, manifest.checksum(), instance_of(envelope.manifest));
            let record = &BUNDLE[places.item(item) as usize..][..places.record_len()];
            [&prefix[..], record].concat()
        };
        ((0..order.cycle()).map(packet).collect(), *layout.geometry())
    }

    /// A receiver of the tiny bundle that has its manifest.
    fn started() -> Receiver {
        let key = PublicKey::decode(KEY).unwrap();
        let mut receiver = Receiver::new(Trust::Keys(vec![key]), 0);
        receiver.handle_packet(0, ChannelId(0), &manifest_packet(|_| ()));
        assert!(matches!(receiver.poll_output(), Some(Output::Started(_))));
        receiver
    }

    #[test]
    fn what_an_earlier_receiver_stored_counts_if_it_is_still_there() {
        let (packets, geometry) = cycle();
        let mut file = vec![0; 10_000];
        let mut first = started();
        let mut log = Vec::new();
        for (now, packet) in (0..).zip(&packets) {
            if let Verdict::Store(place, stored) = first.handle_packet(now, ChannelId(0), packet) {
                file[place.offset as usize..][..place.len].copy_from_slice(&packet[44..][..place.len]);
                log.push((place, stored));
            }
            if log.len() == 2 && log.iter().all(|(_, stored)| first.standing(stored) == Standing::Proven) {
                break;
            }
        }
        let mut second = started();
        let mut damaged = file[log[0].0.offset as usize..][..log[0].0.len].to_vec();
        damaged[5] ^= 1;
        assert!(!second.handle_restored(&log[0].1, true, &damaged));
        assert!(!second.handle_restored(&Stored { esi: Esi(60_000), ..log[0].1 }, true, &damaged));
        for (number, (place, stored)) in log.iter().enumerate() {
            let bytes = &file[place.offset as usize..][..place.len];
            let proven = number == 0;
            assert!(second.handle_restored(stored, proven, bytes));
            assert!(!second.handle_restored(stored, proven, bytes), "not twice");
            assert_eq!(second.progress().0, number as u64 + 1);
            assert_eq!(second.standing(stored) == Standing::Proven, proven);
        }
        // One more of the three, and it can be decoded.
        assert_eq!(geometry.symbols_needed(), 3);
        let mut now = 0;
        while second.wants_packets() {
            second.handle_packet(now, ChannelId(0), &packets[now as usize]);
            now += 1;
        }
        assert!(outputs(&mut second).iter().any(|output| matches!(output, Output::BlockReady(_))));
    }

    #[test]
    fn a_block_from_elsewhere_counts_if_its_value_is_right() {
        let manifest =
            Manifest::parse(Envelope::parse(&BUNDLE[record_len(1188) + 16..]).unwrap().manifest).unwrap();
        for (value, found) in [(Some(manifest.digest), true), (Some([7; 32]), false), (None, false)] {
            let mut receiver = started();
            assert!(receiver.look_for(Sbn(0)) && !receiver.look_for(Sbn(0)) && !receiver.look_for(Sbn(1)));
            let (packets, _) = cycle();
            let stored = |receiver: &mut Receiver| {
                let verdict = |p: &Vec<u8>| receiver.handle_packet(0, ChannelId(0), p);
                packets.iter().map(verdict).filter(|verdict| matches!(verdict, Verdict::Store(..))).count()
            };
            assert_eq!(stored(&mut receiver), 0, "nobody writes while somebody looks");
            receiver.handle_looked(Sbn(0), value);
            let said = outputs(&mut receiver);
            assert_eq!(matches!(said[..], [Output::BlockFound(Sbn(0)), Output::Complete]), found, "{said:?}");
            assert_eq!(receiver.wants_packets(), !found);
            assert_eq!(stored(&mut receiver) > 0, !found);
        }
    }

    #[test]
    fn packets_are_wanted_until_every_block_is_at_the_decoder_and_again_after_a_failure() {
        let key = PublicKey::decode(KEY).unwrap();
        let mut receiver = Receiver::new(Trust::Keys(vec![key]), 0);
        receiver.handle_packet(0, ChannelId(0), &manifest_packet(|_| ()));
        assert!(receiver.wants_packets());
        let mut jobs = Vec::new();
        let (packets, geometry) = cycle();
        for (position, packet) in (0..).zip(&packets) {
            receiver.handle_packet(position, ChannelId(0), packet);
            while let Some(output) = receiver.poll_output() {
                if let Output::BlockReady(job) = output {
                    jobs.push(job);
                }
            }
            assert_eq!(receiver.wants_packets(), jobs.len() < geometry.blocks() as usize, "{position}");
        }
        assert!(!receiver.wants_packets());
        receiver.handle_decoded(jobs.remove(0), false, true);
        assert!(receiver.wants_packets());
    }

    #[test]
    fn a_flood_of_forged_manifests_buys_no_more_checks_than_their_rate() {
        let key = PublicKey::decode(KEY).unwrap();
        let mut receiver = Receiver::new(Trust::Keys(vec![key]), 0);
        let mut now = 1_000_000_000;
        for round in 0..10_000u64 {
            // 10,000 forgeries a second, each with another signature; two genuine manifests a second.
            now += 100_000;
            let forged = manifest_packet(|body| {
                let at = 6 + usize::from(u16::from_be_bytes([body[0], body[1]])) + 60; // within the signature
                (0..4).for_each(|i| body[at + i as usize] = b'A' + (round / 26u64.pow(i) % 26) as u8);
            });
            receiver.handle_packet(now, ChannelId(0), &forged);
            if round % 5_000 == 4_999 {
                receiver.handle_packet(now + 50_000, ChannelId(0), &manifest_packet(|_| ()));
            }
        }
        // Whether the genuine one had its turn is luck; that nobody buys more CPU time is not.
        let checked = receiver.counters.rejected;
        assert!((1_900..=2_000 + CHECK_BURST + 1).contains(&checked), "{checked} checks in a second");
    }

    /// A packet of another kind with the header of the tiny bundle's manifest.
    fn statement_packet(kind: Kind, body: &[u8]) -> Vec<u8> {
        let mut packet = manifest_packet(|whole| {
            whole.fill(0);
            whole[..body.len()].copy_from_slice(body);
        });
        packet[1] = kind as u8;
        packet
    }

    const KEYS: &[u8] = include_bytes!("../../vectors/test.keys");
    const HEARTBEAT: &[u8] = include_bytes!("../../vectors/tiny.heartbeat");

    /// Believes the object of the vectors, but with the key of the tiny bundle for releases.
    fn by_keys(version: u64, clock: u64) -> Receiver {
        let mut keys = SignedKeys::parse(KEYS).unwrap().keys;
        keys.version = version;
        keys.release = keys.roots.clone();
        Receiver::new(Trust::Authority(Box::new(Authority::new(keys, Default::default(), clock))), clock)
    }

    fn outputs(receiver: &mut Receiver) -> Vec<Output> {
        std::iter::from_fn(|| receiver.poll_output()).collect()
    }

    #[test]
    fn a_manifest_is_held_until_its_heartbeat_comes() {
        let mut receiver = by_keys(2, 1_800_000_100);
        receiver.authority().unwrap().require_heartbeat();
        receiver.handle_packet(0, ChannelId(0), &manifest_packet(|_| ()));
        assert!(matches!(receiver.refusal(), Some(TrustError::NoHeartbeat { .. })));
        let mut forged = statement_packet(Kind::Heartbeat, HEARTBEAT);
        forged[44 + 100] ^= 1;
        receiver.handle_packet(1_000_000, ChannelId(0), &forged);
        assert!(outputs(&mut receiver).is_empty());
        receiver.handle_packet(2_000_000, ChannelId(0), &statement_packet(Kind::Heartbeat, HEARTBEAT));
        assert!(matches!(outputs(&mut receiver)[..], [Output::Started(_)]));
        // A day later it counts no more.
        let mut late = by_keys(2, 1_800_086_401);
        late.authority().unwrap().require_heartbeat();
        late.handle_packet(0, ChannelId(0), &statement_packet(Kind::Heartbeat, HEARTBEAT));
        late.handle_packet(1_000_000, ChannelId(0), &manifest_packet(|_| ()));
        assert!(outputs(&mut late).is_empty());
    }

    #[test]
    fn keys_are_taken_before_and_during_a_session_and_once() {
        for before in [true, false] {
            let mut receiver = by_keys(1, 1_800_000_100);
            if !before {
                receiver.handle_packet(0, ChannelId(0), &manifest_packet(|_| ()));
                assert!(matches!(outputs(&mut receiver)[..], [Output::Started(_)]));
            }
            for _ in 0..3 {
                receiver.handle_packet(1_000_000, ChannelId(0), &statement_packet(Kind::Keys, KEYS));
            }
            // Retired, not revoked: what is begun goes on.
            assert!(matches!(outputs(&mut receiver)[..], [Output::Keys(_)]));
            receiver.handle_packet(9_000_000, ChannelId(0), &manifest_packet(|_| ()));
            assert!(outputs(&mut receiver).is_empty());
            let now_retired = matches!(receiver.refusal(), Some(TrustError::Signature { .. }));
            assert_eq!(now_retired, before);
        }
    }

    #[test]
    fn keys_that_came_as_a_manifest_are_still_taken_as_keys() {
        let mut receiver = by_keys(1, 1_800_000_100);
        let mut disguised = statement_packet(Kind::Manifest, KEYS);
        disguised[24..28].copy_from_slice(&instance_of(Envelope::parse(KEYS).unwrap().manifest).0);
        receiver.handle_packet(0, ChannelId(0), &disguised);
        assert!(matches!(receiver.refusal(), Some(TrustError::Manifest(_))), "it was looked at, and refused");
        receiver.handle_packet(1_000_000, ChannelId(0), &statement_packet(Kind::Keys, KEYS));
        assert!(matches!(outputs(&mut receiver)[..], [Output::Keys(_)]));
    }

    #[test]
    fn forged_statements_share_the_checks_and_move_no_count() {
        let mut receiver = by_keys(1, 1_800_000_100);
        receiver.handle_packet(0, ChannelId(0), &manifest_packet(|_| ()));
        outputs(&mut receiver);
        let before = receiver.counters();
        for round in 0..10_000u64 {
            let mut forged = statement_packet(Kind::Keys, KEYS);
            let at = 44 + 6 + 193 + 20; // within signature A
            forged[at..at + 8].copy_from_slice(&round.to_be_bytes());
            forged[4..8].copy_from_slice(&(round as u32 * 1_000).to_be_bytes());
            receiver.handle_packet(1_000_000_000 + round * 100_000, ChannelId(0), &forged);
        }
        let checked = receiver.counters().rejected - before.rejected;
        assert!((1_900..=2_000 + CHECK_BURST + 1).contains(&checked), "{checked} checks in a second");
        assert!(receiver.keys_refusal().is_some() && outputs(&mut receiver).is_empty());
        assert_eq!(receiver.channel_counts().map(|count| count.lost).sum::<u64>(), 0);
    }
}
