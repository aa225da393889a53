//! One receiver's life, from its join until the object is whole: the state machines of carousel-proto choose
//! sources and tiers, as the client lets them, and the counts they see come from the packets of the schedule.

use super::World;
use super::link::{Line, Medium};
use super::schedule::{CONTROL, PAGE, Run, Walker};
use crate::sim::Dice;
use carousel_proto::pages::BLOCKS_PER_PAGE;
use carousel_proto::receiver::{ChannelCount, EARLY_PACKETS};
use carousel_proto::schedule::{Item, Position};
use carousel_proto::sources::{self, Sources};
use carousel_proto::tiers::{self, Mode, Tiers};

const SECOND: u64 = 1_000_000_000;
/// The client lets its state machines think so often.
const TICK: u64 = SECOND / 10;

/// Packets by which a channel may be heard before another one's that were sent earlier: a visit is heard at once.
const AHEAD: f64 = 8.0;

/// How it ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Life {
    /// Which class of the deployment it belongs to.
    pub class: u16,
    /// The tier it kept at the end, counted from 0.
    pub tier: u16,
    /// Packets that arrived.
    pub received: u32,
    /// When it joined, in s.
    pub joined: f64,
    /// From then until the object was whole, in s; infinite: never.
    pub took: f64,
}

/// The symbols that a receiver holds: what is worth using again for the next one.
pub(super) struct Held {
    map: Vec<u8>,
    /// Symbols that each block still needs; negative: more than that have come.
    wanted: Vec<i32>,
    /// Verified ones among them: a quarter of a block must be.
    unproven: Vec<i32>,
    /// Whether the values of so many blocks are known.
    known: Vec<bool>,
}

impl Held {
    pub fn new(world: &World) -> Self {
        let pages = world.needed.len().div_ceil(BLOCKS_PER_PAGE as usize);
        let wanted = world.needed.clone();
        Self { map: vec![0; world.map.len()], unproven: wanted.clone(), wanted, known: vec![false; pages] }
    }

    fn clear(&mut self, world: &World) {
        self.map.fill(0);
        self.wanted.copy_from_slice(&world.needed);
        self.unproven.iter_mut().zip(&world.needed).for_each(|(unproven, needed)| *unproven = needed / 4);
        self.known.fill(self.wanted.len() <= 1); // one block: its value is the digest
    }

    /// Whether the block can be decoded and proven.
    fn is_complete(&self, block: usize) -> bool {
        self.wanted[block] <= 0 && self.unproven[block] <= 0 && self.known[block / BLOCKS_PER_PAGE as usize]
    }

    /// Takes the symbols of a run that came, verified if their page is known. `Some` if now a block has enough of
    /// them: which packet of the run did it.
    #[inline(always)]
    fn take(&mut self, run: Run, came: u32, verified: bool) -> Option<u32> {
        let byte = run.bit as usize / 8;
        let bytes = &mut self.map[byte..byte + 2];
        let held = u16::from_le_bytes([bytes[0], bytes[1]]);
        let new = came & !u32::from(held >> (run.bit % 8));
        bytes.copy_from_slice(&(held | (new << (run.bit % 8)) as u16).to_le_bytes());
        let block = run.block as usize;
        let (before, unproven) = (self.wanted[block], self.unproven[block]);
        self.wanted[block] = before - ones(new) as i32;
        if verified {
            // What was held already, and perhaps not verified, proves something too.
            self.unproven[block] = unproven - ones(came) as i32;
        }
        if before > 0 && self.wanted[block] <= 0 {
            let last = (1..before).fold(new, |rest, _| rest & rest.wrapping_sub(1));
            return Some(last.trailing_zeros());
        }
        (before <= 0 && unproven > 0 && self.unproven[block] <= 0).then_some(run.count - 1)
    }
}

/// Set bits of the lowest eight. Most machines can do this in one step, but programs for all of them cannot ask.
#[inline(always)]
fn ones(bits: u32) -> u32 {
    const ONES: [u8; 256] = {
        let mut ones = [0; 256];
        let mut bits = 1;
        while bits < 256 {
            ones[bits] = ones[bits / 2] + (bits % 2) as u8;
            bits += 1;
        }
        ones
    };
    u32::from(ONES[(bits & 0xff) as usize])
}

/// A channel of a source, as this receiver's line sees it.
struct Channel<'a> {
    server: usize,
    tier: usize,
    walker: Walker<'a>,
    /// When the next packet comes, in ns; infinite: never.
    next: f64,
    gap: f64,
    /// Until when routers send it: infinite while it is joined.
    flows_until: f64,
    joined: bool,
    count: ChannelCount,
    /// Packets that the choice of the sources knows of.
    told: u64,
    /// Whether the last hash page came.
    page: bool,
    /// Lost, and not noticed before the next packet comes.
    gone: u64,
}

impl Channel<'_> {
    /// Counts packets; bits of `came` are those that were received. A gap shows at the next packet behind it.
    #[inline(always)]
    fn count(&mut self, count: u32, came: u32) {
        if came == 0 {
            self.gone += u64::from(count);
            return;
        }
        let (received, behind) = (ones(came), count - (32 - came.leading_zeros()));
        self.count.received += u64::from(received);
        self.count.lost += self.gone + u64::from(count - received - behind);
        self.gone = u64::from(behind);
    }
}

/// A receiver at a moment. All times are ns since the deployment began.
struct Receiver<'a> {
    world: &'a World<'a>,
    held: &'a mut Held,
    medium: Medium,
    line: Option<Line>,
    busy: bool,
    channels: Vec<Channel<'a>>,
    sources: Sources<usize>,
    used: Vec<(usize, Tiers)>,
    manifest: bool,
    /// How many packets may still be kept without a manifest.
    early: u32,
    /// Blocks that are not complete.
    missing: usize,
    done: Option<f64>,
    dice: Dice,
}

/// Lives one life that begins at `joined` ns.
pub(super) fn live(world: &World, held: &mut Held, class: usize, joined: u64, mut dice: Dice) -> Life {
    let deployment = world.deployment;
    held.clear(world);
    let patience = deployment.slowest_gap() * 20;
    let mut sources = Sources::new(usize::MAX, patience);
    let list: Vec<_> = deployment.servers.iter().map(|server| server.priority).enumerate().collect();
    sources.handle_list(joined, &list);
    let class_of = &deployment.classes[class];
    let packet = deployment.packet_bits();
    let mut receiver = Receiver {
        world,
        missing: held.wanted.len(),
        held,
        medium: Medium::new(class_of.loss, Dice::new(dice.draw())),
        line: class_of.rate.map(|rate| Line::new(rate as f64, class_of.queue, packet)),
        busy: false,
        channels: Vec::new(),
        sources,
        used: Vec::new(),
        manifest: false,
        early: EARLY_PACKETS as u32,
        done: None,
        dice,
    };
    let mut now = joined;
    receiver.think(now);
    let end = world.end_of_patience(joined);
    while receiver.done.is_none() && (now as f64) < end {
        receiver.hear(now as f64, (now + TICK) as f64);
        now += TICK;
        receiver.think(now);
    }
    let tier = receiver.used.iter().filter_map(|(_, tiers)| tiers.state().tier).max().unwrap_or(0);
    let received: u64 = receiver.channels.iter().map(|channel| channel.count.received).sum();
    Life {
        class: class as u16,
        tier: tier as u16,
        received: u32::try_from(received).unwrap_or(u32::MAX),
        joined: joined as f64 / 1e9,
        took: receiver.done.map_or(f64::INFINITY, |done| (done - joined as f64) / 1e9),
    }
}

impl<'a> Receiver<'a> {
    /// Everything that comes before `until`.
    fn hear(&mut self, now: f64, until: f64) {
        if let Some(line) = &self.line {
            let flowing = self.channels.iter().filter(|channel| channel.flows_until > now);
            let demand = flowing.map(|channel| self.world.deployment.tiers[channel.tier] as f64).sum();
            self.busy = line.is_busy(now, demand);
        }
        while self.done.is_none() {
            // The channel that is furthest behind, and how far it may go: a little beyond the next one.
            let (mut first, mut limit) = (None, until);
            for (index, channel) in self.channels.iter().enumerate().filter(|(_, c)| c.next < until) {
                match first {
                    Some((_, at)) if at <= channel.next => limit = limit.min(channel.next),
                    _ => {
                        limit = first.map_or(limit, |(_, at)| limit.min(at));
                        first = Some((index, channel.next));
                    }
                }
            }
            let Some((index, _)) = first else { break };
            // The last block's last packet is to be the right one.
            let ahead = if self.missing > 1 { AHEAD } else { 0.0 };
            self.listen(index, until.min(limit + ahead * self.channels[index].gap));
        }
    }

    /// The packets of a channel before `until`.
    fn listen(&mut self, index: usize, until: f64) {
        let channel = &mut self.channels[index];
        let (start, gap) = (channel.next, channel.gap);
        let server = &self.world.deployment.servers[channel.server];
        if start >= channel.flows_until {
            channel.next = f64::INFINITY;
            return;
        }
        if server.is_dead(start) {
            self.world.seek(channel.server, channel.tier, start, &mut channel.walker, &mut channel.next);
            return;
        }
        let death = if start < server.dies * 1e9 { server.dies * 1e9 } else { f64::INFINITY };
        let until = until.min(channel.flows_until).min(death);
        let packets = ((until - start) / gap).ceil().max(1.0) as u64;
        let (joined, mut sent) = (channel.joined, 0);
        let mut line = self.line.as_mut().filter(|_| self.busy);
        while sent < packets && self.done.is_none() {
            let run = channel.walker.step((packets - sent).min(8) as u32);
            let before = sent;
            let at = |packet: u32| start + (before + u64::from(packet)) as f64 * gap;
            sent += u64::from(run.count);
            let mut lost = line.as_mut().map_or(0, |line| line.lost(at(0), gap, run.count));
            if !joined {
                continue; // it only takes room on the line
            }
            lost |= self.medium.lost(run.count);
            let came = !lost & ((1 << run.count) - 1);
            channel.count(run.count, came);
            if !self.manifest && run.block != CONTROL {
                // What does not fit is not kept.
                let Some(early) = self.early.checked_sub(ones(came)) else { continue };
                self.early = early;
            }
            match run.block {
                PAGE => channel.page = came != 0,
                CONTROL if came != 0 => {
                    match channel.walker.schedule.order.item(Position(channel.walker.position - 1)) {
                        Item::BlockPage(page) if self.manifest || self.early > 0 => {
                            self.held.known[page as usize] = true;
                        }
                        Item::Manifest if !self.manifest => self.manifest = true,
                        _ => continue,
                    }
                    let blocks = 0..self.held.wanted.len();
                    self.missing = blocks.filter(|block| !self.held.is_complete(*block)).count();
                    self.done = (self.manifest && self.missing == 0).then(|| at(0));
                }
                CONTROL => {}
                block => {
                    let Some(packet) = self.held.take(run, came, channel.page) else { continue };
                    if self.manifest && self.held.is_complete(block as usize) {
                        self.missing -= 1;
                        self.done = (self.missing == 0).then(|| at(packet));
                    }
                }
            }
        }
        channel.next = start + sent as f64 * gap;
    }

    /// What the client does every tenth of a second: tells its state machines what has come, and obeys.
    fn think(&mut self, now: u64) {
        for channel in &mut self.channels {
            if channel.count.received > std::mem::replace(&mut channel.told, channel.count.received) {
                self.sources.handle_packet(now, channel.server);
            }
            if let Some((_, tiers)) = self.used.iter_mut().find(|(server, _)| *server == channel.server) {
                let lost = if self.manifest { channel.count.lost } else { 0 };
                tiers.handle_counts(now, channel.tier, ChannelCount { lost, ..channel.count });
            }
        }
        self.sources.handle_time(now);
        for (_, tiers) in &mut self.used {
            tiers.handle_time(now);
        }
        while let Some(output) = self.sources.poll_output() {
            match output {
                sources::Output::Use(server) => {
                    let deployment = self.world.deployment;
                    let gaps: Vec<u64> =
                        deployment.tiers.iter().map(|tier| deployment.gap(*tier) as u64).collect();
                    let tiers = Tiers::new(deployment.kind, Mode::Auto, &gaps, now, self.dice.draw());
                    self.used.push((server, tiers));
                }
                sources::Output::Drop(server) => {
                    self.used.retain(|(used, _)| *used != server);
                    (0..self.world.deployment.tiers.len()).for_each(|tier| self.leave(now, server, tier));
                }
            }
        }
        for index in 0..self.used.len() {
            while let Some(output) = self.used[index].1.poll_output() {
                let server = self.used[index].0;
                match output {
                    tiers::Output::Join(tier) => self.join(now, server, tier),
                    tiers::Output::Leave(tier) => self.leave(now, server, tier),
                    // The source falls silent for us, and `sources` sees that.
                    tiers::Output::NextSource => {}
                }
            }
        }
    }

    fn join(&mut self, now: u64, server: usize, tier: usize) {
        let at = now as f64 + self.world.deployment.join_latency * 1e9;
        let known = self.channels.iter().position(|channel| (channel.server, channel.tier) == (server, tier));
        let index = known.unwrap_or(self.channels.len());
        if known.is_none() {
            self.channels.push(Channel {
                server,
                tier,
                walker: self.world.walker(tier),
                next: f64::INFINITY,
                gap: self.world.deployment.gap(self.world.deployment.tiers[tier]),
                flows_until: 0.0,
                joined: false,
                count: ChannelCount::default(),
                told: 0,
                page: false,
                gone: 0,
            });
        }
        let channel = &mut self.channels[index];
        if channel.flows_until <= now as f64 {
            self.world.seek(server, tier, at, &mut channel.walker, &mut channel.next);
        }
        (channel.joined, channel.flows_until, channel.gone, channel.page) = (true, f64::INFINITY, 0, false);
    }

    fn leave(&mut self, now: u64, server: usize, tier: usize) {
        let until = now as f64 + self.world.deployment.leave_latency * 1e9;
        for channel in self.channels.iter_mut().filter(|c| (c.server, c.tier) == (server, tier) && c.joined) {
            (channel.joined, channel.flows_until) = (false, until);
        }
    }
}
