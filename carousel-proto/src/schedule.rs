//! In which order the symbols go out. Pure and stateless: a function of position, nothing is remembered.
//!
//! PROTOCOL.md section 6 has the reasons and a worked example. In short:
//!
//! * the N symbols of every block are cut into G = 2^L *cosets* of equal size; a *round* sends one coset of
//!   every block, so that channels which send different cosets never duplicate each other;
//! * a coset is sent in *rows*; each row visits every block once, in an order permuted anew for every row,
//!   with a run of about [`VISIT`] consecutive symbols;
//! * a [`Layout`] puts that order into records (a hash page before the slots it covers), as they lie in the
//!   bundle; an [`Order`] walks the records of a tier and slips manifest and block pages in between.
//!
//! A receiver needs none of this: every packet says where it belongs.

use crate::geometry::{Esi, Geometry, Sbn};
use crate::pages::{TreeShape, block_pages};
use std::ops::Range;

/// Symbols per visit of a block.
pub const VISIT: u64 = 8;
/// Records of a coset that a channel with several cosets in a round sends in a row.
pub const RUN: u64 = 8;
/// Default number of cosets, as a binary logarithm: tiers of rates 1, 1, 2, 4.
pub const DEFAULT_ROUNDS_LOG2: u8 = 3;
/// Most cosets, as a binary logarithm.
pub const MAX_ROUNDS_LOG2: u8 = 6;
/// Most packets from one manifest or block page to the next.
pub const CONTROL_INTERVAL: u64 = 512;

/// One of the G parts into which the symbols of every block are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Coset(pub u32);

/// Number of a packet on a channel since the epoch; what the clock and the rate amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(pub u64);

/// Place of a record within its coset's part of the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordIndex(pub u32);

/// The order of one bundle: where every symbol of every block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    geometry: Geometry,
    rounds_log2: u8,
    rows: u32,
    page_len: u8,
    pages_per_coset: u32,
}

/// The permutation of the blocks in one row: rank r holds block (multiplier·r + shift) mod blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    blocks: u64,
    multiplier: u64,
    inverse: u64,
    shift: u64,
}

impl Layout {
    /// Lays an object out. `None` if it has too many symbols for 32-bit slot numbers.
    pub fn new(geometry: Geometry, rounds_log2: u8) -> Option<Self> {
        let rounds_log2 = rounds_log2.min(MAX_ROUNDS_LOG2);
        let cosets = 1u64 << rounds_log2;
        let greatest = if geometry.blocks() == 0 { 0 } else { geometry.symbols(Sbn(0)) };
        let rows = u64::from(greatest).div_ceil(VISIT * cosets).max(1) as u32;
        // The longest page that leaves room for its path: longer pages cost less, and their path is shorter.
        (1..=31).rev().map(|eighth| eighth * 8).find_map(|page_len| {
            let mut layout = Self { geometry, rounds_log2, rows, page_len, pages_per_coset: 0 };
            let slots = (0..cosets as u32).map(|c| layout.coset_slots(Coset(c))).max().unwrap_or(0);
            layout.pages_per_coset = u32::try_from(slots.div_ceil(u64::from(page_len))).ok()?;
            let pages = layout.pages_per_coset.checked_mul(cosets as u32)?;
            u32::try_from(slots + u64::from(layout.pages_per_coset)).ok()?; // a RecordIndex has 32 bits
            TreeShape::new(pages, page_len, geometry.symbol_len()).map(|_| layout)
        })
    }

    /// The cut of the object.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// G: number of cosets.
    pub fn cosets(&self) -> u32 {
        1 << self.rounds_log2
    }

    /// L: binary logarithm of G.
    pub fn rounds_log2(&self) -> u8 {
        self.rounds_log2
    }

    /// Rows per coset.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Slots per hash page.
    pub fn page_len(&self) -> u8 {
        self.page_len
    }

    /// Page numbers set aside for each coset.
    pub fn pages_per_coset(&self) -> u32 {
        self.pages_per_coset
    }

    /// All page numbers.
    pub fn pages(&self) -> u32 {
        self.pages_per_coset * self.cosets()
    }

    /// The ESIs that row `row` of a coset sends of block `sbn`: ⌊m·N/Q⌋ up to ⌊(m+1)·N/Q⌋ with
    /// Q = cosets × rows and m = coset × rows + row. So every coset and every row serves every block in
    /// proportion to its N, the short one too.
    pub fn visit(&self, sbn: Sbn, coset: Coset, row: u32) -> Range<u32> {
        let m = u64::from(coset.0) * u64::from(self.rows) + u64::from(row);
        let n = u64::from(self.geometry.symbols(sbn));
        let q = u64::from(self.cosets()) * u64::from(self.rows);
        (m * n / q) as u32..((m + 1) * n / q) as u32
    }

    /// Symbols of block `sbn` in the first `rows` rows of a coset.
    fn visited(&self, sbn: Sbn, coset: Coset, rows: u32) -> u64 {
        u64::from(self.visit(sbn, coset, rows).start - self.visit(sbn, coset, 0).start)
    }

    /// Slots of a coset before row `row`.
    pub fn row_start(&self, coset: Coset, row: u32) -> u64 {
        let g = &self.geometry;
        let full = u64::from(g.full_blocks());
        let of_full = if full > 0 { self.visited(Sbn(0), coset, row) } else { 0 };
        let of_last =
            if g.blocks() > g.full_blocks() { self.visited(Sbn(g.full_blocks()), coset, row) } else { 0 };
        full * of_full + of_last
    }

    /// Slots of a coset.
    pub fn coset_slots(&self, coset: Coset) -> u64 {
        self.row_start(coset, self.rows)
    }

    /// Hash pages that a coset really has.
    pub fn coset_pages(&self, coset: Coset) -> u64 {
        self.coset_slots(coset).div_ceil(u64::from(self.page_len))
    }

    /// Records of a coset: its pages and its symbols.
    pub fn coset_records(&self, coset: Coset) -> u64 {
        self.coset_slots(coset) + self.coset_pages(coset)
    }

    /// The permutation of a row.
    pub fn row(&self, coset: Coset, row: u32) -> Row {
        Row::new(u64::from(self.geometry.blocks()), u64::from(coset.0) << 32 | u64::from(row))
    }

    /// Where, within its coset, the first symbol of a visit stands. `order` is `self.row(coset, row)`, which
    /// the caller keeps because it serves all blocks.
    pub fn visit_start(&self, sbn: Sbn, coset: Coset, row: u32, order: &Row) -> u64 {
        let g = &self.geometry;
        let rank = order.rank(sbn);
        let short_before = g.blocks() > g.full_blocks() && order.rank(Sbn(g.full_blocks())) < rank;
        let len = |sbn| u64::from(self.visit(sbn, coset, row).len() as u32);
        let mut before = if g.full_blocks() > 0 { (rank - u64::from(short_before)) * len(Sbn(0)) } else { 0 };
        if short_before {
            before += len(Sbn(g.full_blocks()));
        }
        self.row_start(coset, row) + before
    }

    /// Slot number, within the whole tree, of the `index`th slot of a coset.
    pub fn slot(&self, coset: Coset, index: u64) -> u32 {
        // `new` made sure that this fits 32 bits.
        (u64::from(coset.0) * u64::from(self.pages_per_coset) * u64::from(self.page_len) + index) as u32
    }

    /// Record of the `index`th slot of a coset: a page stands before each run of slots.
    pub fn slot_record(&self, index: u64) -> RecordIndex {
        RecordIndex((index + index / u64::from(self.page_len) + 1) as u32)
    }

    /// Record of the `page`th page of a coset.
    pub fn page_record(&self, page: u64) -> RecordIndex {
        RecordIndex((page * (u64::from(self.page_len) + 1)) as u32)
    }

    /// Whether a record of a coset is a page (and which of the coset's pages) or a symbol (and which slot).
    pub fn record(&self, record: RecordIndex) -> Content {
        let (page, rest) = (u64::from(record.0) / self.stride(), u64::from(record.0) % self.stride());
        match rest {
            0 => Content::HashPage(page),
            rest => Content::Symbol(page * u64::from(self.page_len) + rest - 1),
        }
    }

    fn stride(&self) -> u64 {
        u64::from(self.page_len) + 1
    }

    /// All symbols of a coset in sending order: the slow and obvious way, for inspection and tests.
    pub fn walk(&self, coset: Coset) -> impl Iterator<Item = (Sbn, Esi)> + '_ {
        (0..self.rows).flat_map(move |row| {
            let order = self.row(coset, row);
            (0..self.geometry.blocks()).flat_map(move |rank| {
                let sbn = order.block(rank);
                self.visit(sbn, coset, row).map(move |esi| (sbn, Esi(esi as u16)))
            })
        })
    }
}

/// What a record of a coset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The so-many-th page of the coset.
    HashPage(u64),
    /// The so-many-th slot of the coset.
    Symbol(u64),
}

impl Row {
    fn new(blocks: u64, number: u64) -> Self {
        if blocks < 2 {
            return Self { blocks: blocks.max(1), multiplier: 0, inverse: 0, shift: 0 };
        }
        let mut multiplier = 1 + mix(number * 2) % (blocks - 1);
        let inverse = loop {
            if let Some(inverse) = modular_inverse(multiplier, blocks) {
                break inverse;
            }
            multiplier = multiplier % (blocks - 1) + 1; // 1 is coprime to everything: this ends
        };
        Self { blocks, multiplier, inverse, shift: mix(number * 2 + 1) % blocks }
    }

    /// The block that stands at a rank.
    pub fn block(&self, rank: u32) -> Sbn {
        Sbn(((self.multiplier * u64::from(rank) + self.shift) % self.blocks) as u32)
    }

    /// The rank of a block.
    pub fn rank(&self, sbn: Sbn) -> u64 {
        (u64::from(sbn.0) + self.blocks - self.shift) % self.blocks * self.inverse % self.blocks
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// x with a·x = 1 mod n, by Euclid; `None` if there is none. n is at most 2^24.
fn modular_inverse(a: u64, n: u64) -> Option<u64> {
    let (mut r0, mut r1) = (n as i64, (a % n) as i64);
    let (mut t0, mut t1) = (0i64, 1i64);
    while r1 != 0 {
        let q = r0 / r1;
        (r0, r1) = (r1, r0 - q * r1);
        (t0, t1) = (t1, t0 - q * t1);
    }
    (r0 == 1).then(|| t0.rem_euclid(n as i64) as u64)
}

/// A channel's place in the ladder of rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// A channel that stands alone: it sends every coset in turn.
    Alone,
    /// Level l of a ladder: level 0 sends coset bitrev(r) in round r, level l sends bitrev(r) XOR y for all y
    /// in [2^(l−1), 2^l). Rates have to be 1, 1, 2, 4, … times the base.
    Level(u8),
}

/// What stands at a position of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// The manifest packet.
    Manifest,
    /// This block page.
    BlockPage(u32),
    /// This record of this coset.
    Record(Coset, RecordIndex),
}

/// Which packet a channel sends at each position.
#[derive(Debug, Clone)]
pub struct Order {
    rounds: Vec<Round>,
    /// Records in all rounds.
    cycle: u64,
    block_pages: u64,
    interval: u64,
}

/// What a channel sends of one round. Its cosets take turns by runs of [`RUN`] records, not one after the other:
/// all levels of a ladder then pass the same part of their cosets at the same time, and whoever joins in the
/// middle of a round hears the parts that are behind it in the next one, and nothing twice.
#[derive(Debug, Clone)]
struct Round {
    /// Number of its first record in the channel's cycle.
    first: u64,
    /// The cosets and their numbers of records.
    cosets: Vec<(Coset, u64)>,
    /// Runs that every coset has. What is left of each follows behind, coset by coset.
    runs: u64,
}

impl Round {
    /// What the `offset`th record of the round is.
    fn record(&self, offset: u64) -> Item {
        let (run, cosets) = (offset / RUN, self.cosets.len() as u64);
        if run < self.runs * cosets {
            let (coset, _) = self.cosets[(run % cosets) as usize];
            return Item::Record(coset, RecordIndex((run / cosets * RUN + offset % RUN) as u32));
        }
        let taken = self.runs * RUN;
        let mut rest = offset - taken * cosets;
        for (coset, records) in &self.cosets {
            let left = records - taken;
            if rest < left {
                return Item::Record(*coset, RecordIndex((taken + rest) as u32));
            }
            rest -= left;
        }
        Item::Manifest // not reached: offsets are below the sum of all records
    }
}

impl Order {
    /// The order of one channel. `None` for a level the layout does not have.
    pub fn new(layout: &Layout, tier: Tier) -> Option<Self> {
        let log2 = layout.rounds_log2();
        let per_round = match tier {
            Tier::Alone | Tier::Level(0) => 0..1,
            Tier::Level(l) if l <= log2 => 1 << (l - 1)..1 << l,
            Tier::Level(_) => return None,
        };
        let mut rounds = Vec::new();
        let mut cycle = 0;
        for round in 0..layout.cosets() {
            let start = if log2 == 0 { 0 } else { round.reverse_bits() >> (32 - u32::from(log2)) };
            let cosets: Vec<_> = per_round
                .clone()
                .map(|y| Coset(start ^ y))
                .map(|coset| (coset, layout.coset_records(coset)))
                .collect();
            let runs = cosets.iter().map(|(_, records)| records / RUN).min().unwrap_or(0);
            let first = cycle;
            cycle += cosets.iter().map(|(_, records)| records).sum::<u64>();
            rounds.push(Round { first, cosets, runs });
        }
        let needed = layout.geometry().symbols_needed();
        Some(Self {
            rounds,
            cycle,
            block_pages: u64::from(block_pages(layout.geometry())),
            interval: (needed / 4).clamp(4, CONTROL_INTERVAL),
        })
    }

    /// Positions from one manifest or block page to the next, on average.
    pub fn interval(&self) -> u64 {
        self.interval
    }

    /// Positions of one carousel cycle, manifests and block pages included.
    pub fn cycle(&self) -> u64 {
        if self.cycle == 0 { 1 } else { (self.cycle * self.interval).div_ceil(self.interval - 1) }
    }

    /// The number of the manifest that stands at a position: 0, 1, 2, … for those that come one after the other.
    pub fn manifest_number(&self, position: Position) -> u64 {
        match (self.cycle, self.block_pages) {
            (0, _) => position.0,
            (_, 0) => position.0 / self.interval,
            _ => position.0 / self.interval / 2,
        }
    }

    /// What stands at a position. In every interval one packet, at a place that looks random so that no
    /// periodic loss can hit it always, is manifest or block page; the rest are the records in their order.
    pub fn item(&self, position: Position) -> Item {
        let (turn, at) = (position.0 / self.interval, position.0 % self.interval);
        let control = mix(turn) % self.interval;
        if self.cycle == 0 {
            return Item::Manifest;
        }
        if at == control {
            return if self.block_pages == 0 || turn % 2 == 0 {
                Item::Manifest
            } else {
                Item::BlockPage((turn / 2 % self.block_pages) as u32)
            };
        }
        let record = (turn * (self.interval - 1) + at - u64::from(at > control)) % self.cycle;
        let round = &self.rounds[self.rounds.partition_point(|round| round.first <= record) - 1];
        round.record(record - round.first)
    }
}

/// What a server sends in a manifest's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// The manifest.
    Manifest,
    /// The heartbeat.
    Heartbeat,
    /// One of the keys objects.
    Keys(usize),
}

/// Manifest, heartbeat and keys objects take turns in the manifests' places; several keys objects share one turn.
pub fn statement(manifest_number: u64, has_heartbeat: bool, keys: usize) -> Statement {
    let turns = 1 + u64::from(has_heartbeat) + u64::from(keys > 0);
    match manifest_number % turns {
        0 => Statement::Manifest,
        1 if has_heartbeat => Statement::Heartbeat,
        _ => Statement::Keys((manifest_number / turns % keys.max(1) as u64) as usize),
    }
}

/// Phase of server number `j`, in positions of a cycle: the base-3 radical inverse of j (0, 1/3, 2/3, 1/9,
/// 4/9, …), so that any number of servers share the work.
pub fn phase(server: u32, cycle: u64) -> u64 {
    let (mut numerator, mut denominator, mut rest) = (0u64, 1u64, server);
    while rest > 0 {
        numerator = numerator * 3 + u64::from(rest % 3);
        denominator *= 3; // at most 3^21 for 32 bits
        rest /= 3;
    }
    (u128::from(cycle) * u128::from(numerator) / u128::from(denominator)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn layout(size: u64, log2: u8, repair: u16, last: u16, rounds: u8) -> Layout {
        Layout::new(Geometry::new(size, 1188, log2, repair, last).unwrap(), rounds).unwrap()
    }

    proptest! {
        #[test]
        fn every_symbol_stands_exactly_where_the_packer_looks(
            blocks in 1u64..7, rest in 0u64..65_536, repair in 0u16..120, last in 0u16..60, rounds in 0u8..4,
        ) {
            let l = layout(blocks * 65_536 + rest, 16, repair, last, rounds);
            let mut seen = BTreeSet::new();
            for coset in (0..l.cosets()).map(Coset) {
                let walked: Vec<_> = l.walk(coset).collect();
                prop_assert_eq!(walked.len() as u64, l.coset_slots(coset));
                for row in 0..l.rows() {
                    let order = l.row(coset, row);
                    for sbn in (0..l.geometry().blocks()).map(Sbn) {
                        prop_assert_eq!(order.block(order.rank(sbn) as u32), sbn);
                        let start = l.visit_start(sbn, coset, row, &order);
                        for (i, esi) in l.visit(sbn, coset, row).enumerate() {
                            let index = start + i as u64;
                            prop_assert_eq!(walked[index as usize], (sbn, Esi(esi as u16)));
                            prop_assert!(seen.insert((sbn, esi)));
                            prop_assert_eq!(l.record(l.slot_record(index)), Content::Symbol(index));
                        }
                    }
                }
            }
            let all: u32 = (0..l.geometry().blocks()).map(|b| l.geometry().symbols(Sbn(b))).sum();
            prop_assert_eq!(seen.len() as u32, all);
        }

        #[test]
        fn every_coset_serves_every_block_in_proportion(
            blocks in 1u64..5, rest in 1u64..65_536, last in 0u16..60, rounds in 0u8..5,
        ) {
            let l = layout(blocks * 65_536 + rest, 16, 56, last, rounds);
            for sbn in (0..l.geometry().blocks()).map(Sbn) {
                let share = f64::from(l.geometry().symbols(sbn)) / f64::from(l.cosets());
                for coset in (0..l.cosets()).map(Coset) {
                    let got = l.walk(coset).filter(|(b, _)| *b == sbn).count() as f64;
                    prop_assert!((got - share).abs() <= 1.0, "{sbn:?} {coset:?}: {got} of {share}");
                }
            }
        }
    }

    #[test]
    fn a_ladder_sends_each_coset_once_per_full_set_of_tiers() {
        let l = layout(4 << 20, 22, 3531, 0, 3);
        let orders: Vec<_> = (0..4).map(|t| Order::new(&l, Tier::Level(t)).unwrap()).collect();
        assert!(Order::new(&l, Tier::Level(4)).is_none());
        // A client of tiers 0..=t hears 2^t cosets a round; any 2^(3−t) rounds bring all of them, each once.
        for tiers in 1..=4usize {
            let per_round = 1 << (tiers - 1);
            for start in 0..8 / per_round {
                let mut heard = BTreeSet::new();
                for round in start * 8 / per_round..(start + 1) * 8 / per_round {
                    for order in orders.iter().take(tiers) {
                        for (coset, _) in &order.rounds[round % 8].cosets {
                            assert!(heard.insert(coset.0), "tiers {tiers}: {coset:?} twice");
                        }
                    }
                }
                assert_eq!(heard.len(), 8);
            }
        }
    }

    #[test]
    fn a_level_sends_every_record_of_its_cosets_and_pages_before_their_slots() {
        for (size, rest) in [(3 << 20, 883), (70_000, 56), (3_000, 7)] {
            let l = layout(size, 16, 56, rest.min(56), 3);
            for (level, times) in [(1, 1), (2, 2), (3, 4)] {
                let order = Order::new(&l, Tier::Level(level)).unwrap();
                for round in &order.rounds {
                    let mut next = vec![0; 8];
                    let records: u64 = round.cosets.iter().map(|(_, records)| records).sum();
                    for offset in 0..records {
                        let Item::Record(coset, index) = round.record(offset) else { panic!("{offset}") };
                        assert_eq!(index.0, next[coset.0 as usize], "a coset's records keep their order");
                        next[coset.0 as usize] += 1;
                    }
                    let all =
                        round.cosets.iter().all(|(c, records)| u64::from(next[c.0 as usize]) == *records);
                    assert!(all, "{next:?}");
                }
                let base: u64 = (0..8).map(|c| l.coset_records(Coset(c))).sum();
                assert_eq!(order.cycle, base * times, "in step with level 0 for ever");
            }
        }
    }

    #[test]
    fn a_cycle_holds_every_record_and_the_control_packets() {
        let l = layout(3 << 20, 20, 883, 0, 3);
        let order = Order::new(&l, Tier::Alone).unwrap();
        let records: u64 = (0..8).map(|c| l.coset_records(Coset(c))).sum();
        let (mut seen, mut manifests, mut block_pages) = (BTreeSet::new(), 0, 0);
        for p in 0..order.cycle() {
            match order.item(Position(p)) {
                Item::Manifest => manifests += 1,
                Item::BlockPage(_) => block_pages += 1,
                Item::Record(coset, record) => assert!(seen.insert((coset, record)) || p > records),
            }
        }
        assert_eq!(seen.len() as u64, records);
        assert!(manifests >= 5 && block_pages >= 5, "{manifests} {block_pages}");
    }

    #[test]
    fn no_period_of_loss_hits_every_manifest() {
        let l = layout(100 << 20, 22, 3531, 0, 3);
        let order = Order::new(&l, Tier::Alone).unwrap();
        for period in 2..=600 {
            for residue in [0, period / 2] {
                let arrives = (0..40_000)
                    .filter(|p| p % period != residue)
                    .filter(|p| order.item(Position(*p)) == Item::Manifest)
                    .count();
                assert!(arrives > 10, "period {period} residue {residue}: {arrives}");
            }
        }
    }

    #[test]
    fn an_empty_object_is_all_manifest() {
        let l = Layout::new(Geometry::new(0, 1188, 22, 0, 0).unwrap(), 3).unwrap();
        let order = Order::new(&l, Tier::Alone).unwrap();
        assert!((0..100).all(|p| order.item(Position(p)) == Item::Manifest));
    }

    #[test]
    fn phases_are_the_radical_inverse() {
        let phases: Vec<_> = (0..6).map(|j| phase(j, 9_000)).collect();
        assert_eq!(phases, [0, 3000, 6000, 1000, 4000, 7000]);
        assert!(phase(u32::MAX, 1 << 40) < 1 << 40);
    }
}
