//! One receiver's life, from its join until the object is whole: the state machines of carousel-proto choose
//! sources and tiers, as the client lets them, and the counts they see come from the packets of the schedule.

use super::link::{Line, Medium};
use super::schedule::{CONTROL, PAGE, Run, Walker};
use super::World;
use crate::sim::Dice;
use carousel_proto::pages::BLOCKS_PER_PAGE;
use carousel_proto::receiver::{ChannelCount, EARLY_PACKETS};
use carousel_proto::schedule::{Item, Position};
use carousel_proto::sources::{self, Sources};
use carousel_proto::tiers::{self, Mode, Tiers};

const SECOND: u64 = 1_000_000_000;
/// The client lets its state machines think so often.
const TICK: u64 = SECOND / 10;

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

/// What a receiver holds: the part of it that is worth using again for the next one.
pub(super) struct Held {
    map: Vec<u8>,
    counts: Vec<u32>,
    known: Vec<bool>,
}

impl Held {
    pub fn new(world: &World) -> Self {
        let blocks = world.needed.len();
        Self {
            map: vec![0; world.map.len()],
            counts: vec![0; blocks],
            known: vec![false; blocks.div_ceil(BLOCKS_PER_PAGE as usize)],
        }
    }

    fn clear(&mut self) {
        self.map.fill(0);
        self.counts.fill(0);
        self.known.fill(self.counts.len() <= 1); // one block: its value is the digest
    }
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
    /// Lost, and not noticed before the next packet comes.
    gone: u64,
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
    received: u64,
    /// Blocks that are not complete.
    missing: usize,
    done: Option<f64>,
    dice: Dice,
}

/// Lives one life that begins at `joined` ns.
pub(super) fn live(world: &World, held: &mut Held, class: usize, joined: u64, mut dice: Dice) -> Life {
    let deployment = world.deployment;
    held.clear();
    let patience = deployment.slowest_gap() * 20;
    let mut sources = Sources::new(usize::MAX, patience);
    let list: Vec<_> = deployment.servers.iter().map(|server| server.priority).enumerate().collect();
    sources.handle_list(joined, &list);
    let class_of = &deployment.classes[class];
    let packet = deployment.packet_bits();
    let mut receiver = Receiver {
        world,
        missing: held.counts.len(),
        held,
        medium: Medium::new(class_of.loss, Dice::new(dice.draw())),
        line: class_of.rate.map(|rate| Line::new(rate as f64, class_of.queue, packet)),
        busy: false,
        channels: Vec::new(),
        sources,
        used: Vec::new(),
        manifest: false,
        early: EARLY_PACKETS as u32,
        received: 0,
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
    Life {
        class: class as u16,
        tier: tier as u16,
        received: u32::try_from(receiver.received).unwrap_or(u32::MAX),
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
            let mut first = None;
            for (index, channel) in self.channels.iter().enumerate() {
                if channel.next < until && first.is_none_or(|(_, at)| channel.next < at) {
                    first = Some((index, channel.next));
                }
            }
            let Some((index, at)) = first else { break };
            self.step(index, at, until);
        }
    }

    /// The next packets of a channel.
    #[inline]
    fn step(&mut self, index: usize, at: f64, until: f64) {
        let world = self.world;
        let channel = &mut self.channels[index];
        if at >= channel.flows_until {
            channel.next = f64::INFINITY;
            return;
        }
        let server = &world.deployment.servers[channel.server];
        if server.is_dead(at) {
            world.seek(channel.server, channel.tier, server.back, &mut channel.walker, &mut channel.next);
            return;
        }
        let most = ((until - at) / channel.gap) as u32 + 1;
        let run = channel.walker.step(most);
        channel.next = at + f64::from(run.count) * channel.gap;
        let mut lost = match &mut self.line {
            Some(line) if self.busy => line.lost(at, channel.gap, run.count),
            _ => 0,
        };
        if !channel.joined {
            return; // it only takes room on the line
        }
        lost |= self.medium.lost(run.count);
        let (received, missed) = (run.count - lost.count_ones(), u64::from(lost.count_ones()));
        if received == 0 {
            channel.gone += missed;
            return;
        }
        let behind = u64::from((lost << (32 - run.count)).leading_ones());
        channel.count.received += u64::from(received);
        channel.count.lost += channel.gone + missed - behind;
        channel.gone = behind;
        let gap = channel.gap;
        self.received += u64::from(received);
        if !self.manifest && run.block != CONTROL {
            // What does not fit is not kept.
            if self.early < received {
                return;
            }
            self.early -= received;
        }
        match run.block {
            PAGE => {}
            CONTROL => self.control(index, at),
            _ => self.keep(run, lost, at, gap),
        }
    }

    fn control(&mut self, index: usize, at: f64) {
        let walker = &self.channels[index].walker;
        match walker.schedule.order.item(Position(walker.position - 1)) {
            Item::BlockPage(page) if self.manifest || self.early > 0 => self.held.known[page as usize] = true,
            Item::Manifest => self.manifest = true,
            _ => return,
        }
        self.missing = (0..self.held.counts.len()).filter(|block| !self.is_complete(*block)).count();
        self.finish(at);
    }

    fn keep(&mut self, run: Run, lost: u32, at: f64, gap: f64) {
        let (byte, shift) = (run.bit as usize / 8, run.bit % 8);
        let bytes = &mut self.held.map[byte..byte + 2];
        let held = u16::from_le_bytes([bytes[0], bytes[1]]);
        let new = !lost & ((1 << run.count) - 1) & !u32::from(held >> shift);
        bytes.copy_from_slice(&(held | (new << shift) as u16).to_le_bytes());
        let block = run.block as usize;
        let (before, needed) = (self.held.counts[block], self.world.needed[block]);
        let count = before + new.count_ones();
        self.held.counts[block] = count;
        if before < needed && count >= needed && self.is_complete(block) {
            self.missing -= 1;
            // The packet that completes it.
            let mut rest = new;
            (before + 1..needed).for_each(|_| rest &= rest - 1);
            self.finish(at + f64::from(rest.trailing_zeros()) * gap);
        }
    }

    fn is_complete(&self, block: usize) -> bool {
        self.manifest
            && self.held.counts[block] >= self.world.needed[block]
            && self.held.known[block / BLOCKS_PER_PAGE as usize]
    }

    fn finish(&mut self, at: f64) {
        if self.missing == 0 && self.manifest {
            self.done = Some(at);
        }
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
                    let gaps: Vec<u64> = deployment.tiers.iter().map(|tier| deployment.gap(*tier) as u64).collect();
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
                gone: 0,
            });
        }
        let channel = &mut self.channels[index];
        if channel.flows_until <= now as f64 {
            self.world.seek(server, tier, at, &mut channel.walker, &mut channel.next);
        }
        (channel.joined, channel.flows_until, channel.gone) = (true, f64::INFINITY, 0);
    }

    fn leave(&mut self, now: u64, server: usize, tier: usize) {
        let until = now as f64 + self.world.deployment.leave_latency * 1e9;
        for channel in self.channels.iter_mut().filter(|c| (c.server, c.tier) == (server, tier) && c.joined) {
            (channel.joined, channel.flows_until) = (false, until);
        }
    }
}
