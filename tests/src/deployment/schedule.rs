//! A channel's schedule by visits: what [`Order`] says packet by packet, up to eight packets at a time.

use crate::sim::mix;
use carousel_proto::geometry::Sbn;
use carousel_proto::schedule::{Content, Coset, Item, Layout, Order, Position, Tier, VISIT};

/// Packets that are no symbols are blocks beyond all others.
pub(super) const PAGE: u32 = (1 << 28) - 1;
pub(super) const CONTROL: u32 = PAGE - 1;

/// Where the symbols of the blocks stand in a receiver's map: one bit for each, blocks at whole bytes.
#[derive(Debug)]
pub(super) struct Map {
    /// First byte of each block, and behind the last one.
    bytes: Vec<u32>,
}

impl Map {
    pub fn new(layout: &Layout) -> Self {
        let geometry = layout.geometry();
        let lens = (0..geometry.blocks()).map(|sbn| geometry.symbols(Sbn(sbn)).div_ceil(8));
        let ends = lens.scan(0, |end, len| {
            *end += len;
            Some(*end)
        });
        Self { bytes: std::iter::once(0).chain(ends).collect() }
    }

    /// Bytes of a map. Two more than it needs: visits are looked up 16 bits at a time.
    pub fn len(&self) -> usize {
        self.bytes.last().map_or(0, |end| *end as usize) + 2
    }
}

/// Consecutive symbols of one block, or one page.
#[derive(Debug, Clone, Copy)]
struct Visit {
    /// In the map.
    bit: u32,
    /// Block, and in the lowest four bits how many.
    block: u32,
}

/// The list of one kind of channel (PROTOCOL.md section 6.5).
#[derive(Debug)]
pub(super) struct Schedule {
    pub order: Order,
    visits: Vec<Visit>,
    /// Number of each visit's first record in the list.
    records: Vec<u32>,
    /// Λ: records of the list.
    len: u64,
}

impl Schedule {
    /// `None` for a tier that the layout does not have.
    pub fn new(layout: &Layout, map: &Map, tier: Tier) -> Option<Self> {
        let order = Order::new(layout, tier)?;
        let cosets: Vec<Vec<_>> = (0..layout.cosets()).map(|c| layout.walk(Coset(c)).collect()).collect();
        let once: u64 = (0..layout.cosets()).map(|c| layout.coset_records(Coset(c))).sum();
        let times = if let Tier::Level(level @ 2..) = tier { 1 << (level - 1) } else { 1 };
        let mut schedule = Self { order, visits: Vec::new(), records: Vec::new(), len: once * times };
        let (mut number, mut position) = (0, Position(0));
        while u64::from(number) < schedule.len {
            let item = schedule.order.item(position);
            position.0 += 1;
            let Item::Record(coset, record) = item else { continue };
            match layout.record(record) {
                Content::HashPage(_) => schedule.push(number, 0, PAGE),
                Content::Symbol(slot) => {
                    let (sbn, esi) = cosets[coset.0 as usize][slot as usize];
                    schedule.push(number, map.bytes[sbn.0 as usize] * 8 + u32::from(esi.0), sbn.0);
                }
            }
            number += 1;
        }
        Some(schedule)
    }

    fn push(&mut self, record: u32, bit: u32, block: u32) {
        if let Some(last) = self.visits.last_mut() {
            let len = last.block & 15;
            if block != PAGE && last.block >> 4 == block && last.bit + len == bit && len < VISIT as u32 {
                last.block += 1;
                return;
            }
        }
        self.visits.push(Visit { bit, block: block << 4 | 1 });
        self.records.push(record);
    }

    /// The position in this turn at which the manifest or a block page stands (section 6.6).
    fn control(&self, turn: u64) -> u64 {
        turn * self.order.interval() + mix(turn) % self.order.interval()
    }
}

/// Packets of one visit: `count` from a bit of the map on, of this block, [`PAGE`] or [`CONTROL`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub bit: u32,
    pub block: u32,
    pub count: u32,
}

/// A channel at a position.
#[derive(Debug, Clone)]
pub(super) struct Walker<'a> {
    pub schedule: &'a Schedule,
    pub position: u64,
    /// Of the next control packet.
    control: u64,
    visit: usize,
    /// Packets of the visit that are behind.
    behind: u32,
}

impl<'a> Walker<'a> {
    pub fn new(schedule: &'a Schedule, position: u64) -> Self {
        let interval = schedule.order.interval();
        let (turn, at) = (position / interval, position % interval);
        let control = schedule.control(turn);
        let passed = control < position;
        let mut walker = Self { schedule, position, control, visit: 0, behind: 0 };
        if schedule.len > 0 {
            let record = ((turn * (interval - 1) + at - u64::from(passed)) % schedule.len) as u32;
            walker.visit = schedule.records.partition_point(|first| *first <= record) - 1;
            walker.behind = record - schedule.records[walker.visit];
        }
        if passed {
            walker.control = schedule.control(turn + 1);
        }
        walker
    }

    /// What comes next, `most` packets at most.
    #[inline]
    pub fn step(&mut self, most: u32) -> Run {
        if self.position == self.control || self.schedule.len == 0 {
            self.position += 1;
            self.control = self.schedule.control(self.position.div_ceil(self.schedule.order.interval()));
            return Run { bit: 0, block: CONTROL, count: 1 };
        }
        let Visit { bit, block } = self.schedule.visits[self.visit];
        let left = (block & 15) - self.behind;
        let count = most.min(left).min((self.control - self.position).min(VISIT) as u32);
        let run = Run { bit: bit + self.behind, block: block >> 4, count };
        self.position += u64::from(count);
        self.behind += count;
        if count == left {
            self.behind = 0;
            self.visit += 1;
            if self.visit == self.schedule.visits.len() {
                self.visit = 0;
            }
        }
        run
    }
}
