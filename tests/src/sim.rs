//! Virtual time: a carousel, a lossy link and a receiver, without a socket or a clock, the same on every machine.
//!
//! Two of them. [`Run`] only counts: it walks the schedule, throws packets away and keeps what a receiver would
//! keep (some hundred million packets a second), which is enough to know how long an object takes. [`Bundle`] and
//! [`Client`] are the real thing: real bytes, hashes and decoding, with everything a network and a forger can do.
//!
//! What it refuses: entropy. Every run follows from its seed.

#![allow(clippy::expect_used)] // a simulation that cannot be set up is a failed test

use carousel_proto::bundle::{BundleHeader, Places, layout_of};
use carousel_proto::fec::{BlockEncoder, StripeDecoder, stripes};
use carousel_proto::geometry::{Esi, Geometry, GeometryError, Sbn};
use carousel_proto::manifest::{Envelope, FORMAT_VERSION, Manifest, SignatureAlgorithm, instance_of};
use carousel_proto::pages::{
    BLOCKS_PER_PAGE, LEAF_LEN, PageNumber, Subtree, TreeShape, block_hasher, block_value, emit_block_pages,
    leaf,
};
use carousel_proto::receiver::EARLY_PACKETS;
use carousel_proto::receiver::{
    BlockJob, ChannelCount, ChannelId, Counters, EMPTY_PLACE, Output, Place, Receiver, Verdict,
};
use carousel_proto::schedule::{
    Content, Coset, DEFAULT_ROUNDS_LOG2, Item, Layout, Order, Position, Tier, phase,
};
use carousel_proto::trust::Trust;
use carousel_proto::wire::{
    Checksum, HEADER_LEN, Instance, Kind, PREFIX_LEN, RECORD_HEADER_LEN, Sequence, Slot, emit_prefix,
    record_header,
};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;

/// Symbol length on a link of 1,280 bytes.
pub const SYMBOL_LEN: u16 = 1188;

/// What the dice step by.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// One step of SplitMix64; PROTOCOL.md section 6.1 has it too, and places the control packets by it.
#[inline]
pub(crate) fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(GOLDEN);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The dice of this seed.
    pub fn new(seed: u64) -> Self {
        let mut dice = Self(seed);
        dice.draw();
        dice
    }

    /// 64 bits.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        let drawn = mix(self.0);
        self.0 = self.0.wrapping_add(GOLDEN);
        drawn
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(n)) >> 64) as u64
    }

    /// True with probability `p`.
    pub fn hits(&mut self, p: f64) -> bool {
        (self.draw() as f64) < p * 2f64.powi(64)
    }

    /// Fills a buffer.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&self.draw().to_le_bytes()[..word.len()]);
        }
    }
}

/// How a link loses packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Each by itself, with this probability.
    Independent(f64),
    /// Exactly those whose number on the channel is `residue` modulo `period`.
    Periodic {
        /// One of so many is lost.
        period: u64,
        /// Which one.
        residue: u64,
    },
    /// Gilbert–Elliott: all packets of a bad spell are lost, none between.
    Bursts {
        /// Mean length of a bad spell, in packets.
        mean: f64,
        /// Lost share of all packets.
        share: f64,
    },
}

impl Loss {
    /// The share that is lost in the long run.
    pub fn share(&self) -> f64 {
        match *self {
            Self::Independent(p) => p,
            Self::Periodic { period, .. } => 1.0 / period as f64,
            Self::Bursts { share, .. } => share,
        }
    }
}

/// A link that loses packets.
#[derive(Clone, Debug)]
pub struct Link {
    loss: Loss,
    dice: Dice,
    bad: bool,
    /// Of 2^64: chance that a packet is lost, or that a bad spell begins.
    begin: f64,
    /// Chance that a bad spell ends.
    end: f64,
}

impl Link {
    /// A link whose luck follows from `seed`.
    pub fn new(loss: Loss, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let (begin, end) = match loss {
            Loss::Independent(p) => (p, 0.0),
            Loss::Periodic { .. } => (0.0, 0.0),
            Loss::Bursts { mean, share } => (share / (1.0 - share) / mean, 1.0 / mean),
        };
        let bad = matches!(loss, Loss::Bursts { .. }) && dice.hits(loss.share());
        Self { loss, dice, bad, begin, end }
    }

    /// Whether the packet with this number is lost. Numbers are asked for in order.
    #[inline]
    pub fn loses(&mut self, position: u64) -> bool {
        match self.loss {
            Loss::Independent(_) => self.dice.hits(self.begin),
            Loss::Periodic { period, residue } => position % period == residue,
            Loss::Bursts { .. } => {
                let lost = self.bad;
                self.bad = if lost { !self.dice.hits(self.end) } else { self.dice.hits(self.begin) };
                lost
            }
        }
    }
}

/// Repair symbols of the short block as the packer chooses them (must agree with `repair_of_short_block` in
/// carousel-server/src/pack.rs): a block of few symbols varies more, so some are added before the usual share is,
/// up to those of a full block. 0 without a short block, and for a plain carousel.
pub fn repair_last(size: u64, symbol_len: u16, block_log2: u8, repair_full: u16) -> u16 {
    let t = u64::from(symbol_len);
    let k_last = (size & ((1 << block_log2) - 1)).div_ceil(t);
    if k_last == 0 || repair_full == 0 {
        return 0;
    }
    let k_full = (1u64 << block_log2).div_ceil(t);
    let share = (k_last + k_last.isqrt() * 3 / 4 + 4).min(k_full);
    let n_last = (share * (k_full + u64::from(repair_full))).div_ceil(k_full);
    (n_last - k_last) as u16
}

/// The usual cut of an object with `percent` repair symbols.
pub fn cut(size: u64, block_log2: u8, percent: u32) -> Result<Geometry, GeometryError> {
    let k_full = (1u32 << block_log2).div_ceil(u32::from(SYMBOL_LEN));
    let repair_full = (k_full * percent).div_ceil(100) as u16;
    let last = repair_last(size, SYMBOL_LEN, block_log2, repair_full);
    Geometry::new(size, SYMBOL_LEN, block_log2, repair_full, last)
}

/// Entries of the table of one cycle: a symbol is block << 16 | ESI, the rest is beyond all blocks.
const PAGE: u32 = u32::MAX;
const MANIFEST: u32 = u32::MAX - 1;
const BLOCK_PAGE: u32 = 0xff00_0000;

/// One channel's carousel, worked out in advance.
pub struct Carousel {
    geometry: Geometry,
    order: Order,
    /// The records of one cycle.
    cycle: Vec<u32>,
    /// Where in the cycle each coset begins.
    starts: Vec<Option<u64>>,
}

impl Carousel {
    /// The carousel of a channel that stands alone.
    ///
    /// # Panics
    /// If there is no such layout.
    pub fn new(geometry: Geometry) -> Self {
        let layout = Layout::new(geometry, DEFAULT_ROUNDS_LOG2).expect("a layout");
        assert!(
            (1..0xff00).contains(&geometry.blocks()),
            "{} blocks do not fit the table",
            geometry.blocks()
        );
        let order = Order::new(&layout, Tier::Alone).expect("an order");
        let mut slots = vec![Vec::new(); layout.cosets() as usize];
        let mut carousel =
            Self { geometry, order, cycle: Vec::new(), starts: vec![None; layout.cosets() as usize] };
        for position in 0.. {
            let Item::Record(coset, index) = carousel.order.item(Position(position)) else { continue };
            let coset_slots: &mut Vec<(Sbn, Esi)> = &mut slots[coset.0 as usize];
            if index.0 == 0 {
                if carousel.starts[coset.0 as usize].is_some() {
                    break; // the second cycle begins
                }
                carousel.starts[coset.0 as usize] = Some(carousel.cycle.len() as u64);
                *coset_slots = layout.walk(Coset(coset.0)).collect();
            }
            carousel.cycle.push(match layout.record(index) {
                Content::HashPage(_) => PAGE,
                Content::Symbol(slot) => {
                    let (sbn, esi) = coset_slots[slot as usize];
                    sbn.0 << 16 | u32::from(esi.0)
                }
            });
        }
        carousel
    }

    /// The cut of the object.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Positions of one cycle.
    pub fn positions(&self) -> u64 {
        self.order.cycle()
    }

    /// Number, within the cycle, of the record at a position.
    fn record(&self, position: u64) -> Option<u64> {
        match self.order.item(Position(position)) {
            Item::Record(coset, index) => {
                self.starts[coset.0 as usize].map(|start| start + u64::from(index.0))
            }
            _ => None,
        }
    }

    /// The place of the control packet in a turn. Records behind it are one step late: that is how it is found.
    fn control(&self, turn: u64) -> u64 {
        let (interval, first) = (self.order.interval(), turn * self.order.interval());
        let base = turn * (interval - 1);
        let (mut low, mut high) = (0, interval - 1);
        while low < high {
            let middle = (low + high) / 2;
            match self.record(first + middle) {
                None => return middle,
                Some(record) if record == (base + middle) % self.cycle.len() as u64 => low = middle + 1,
                Some(_) => high = middle,
            }
        }
        low
    }
}

/// A channel at a position.
struct Walker<'a> {
    carousel: &'a Carousel,
    position: u64,
    at: u64,
    control: u64,
    record: usize,
}

impl<'a> Walker<'a> {
    fn new(carousel: &'a Carousel, position: u64) -> Self {
        let interval = carousel.order.interval();
        let (turn, at) = (position / interval, position % interval);
        let control = carousel.control(turn);
        let record = (turn * (interval - 1) + at - u64::from(at > control)) % carousel.cycle.len() as u64;
        Self { carousel, position, at, control, record: record as usize }
    }

    #[inline]
    fn next(&mut self) -> u32 {
        let entry = if self.at == self.control {
            match self.carousel.order.item(Position(self.position)) {
                Item::BlockPage(number) => BLOCK_PAGE | number,
                _ => MANIFEST,
            }
        } else {
            let entry = self.carousel.cycle[self.record];
            self.record += 1;
            if self.record == self.carousel.cycle.len() {
                self.record = 0;
            }
            entry
        };
        self.position += 1;
        self.at += 1;
        if self.at == self.carousel.order.interval() {
            self.at = 0;
            self.control = self.carousel.control(self.position / self.carousel.order.interval());
        }
        entry
    }
}

/// What a receiver that only counts has seen, from its join until the object was whole.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Whether it ended by completion, not because the patience did.
    pub complete: bool,
    /// Positions of one server from join to completion.
    pub positions: u64,
    /// Packets that arrived, from all servers.
    pub received: u64,
    /// Symbols that would be needed if nothing were lost or sent twice.
    pub needed: u64,
    /// Lost share of the link.
    pub loss: f64,
    /// Symbols that brought nothing new.
    pub duplicate: u64,
    /// Symbols kept although their page was lost.
    pub unverified: u64,
    /// Repair symbols kept: parked in the place of a source symbol.
    pub parked: u64,
    /// Packets dropped because the manifest was late.
    pub early_dropped: u64,
    /// Positions after which each block was complete.
    pub blocks: Vec<u64>,
}

impl Run {
    /// Completion time over the ideal, which is symbols needed / (1 − loss).
    pub fn time(&self) -> f64 {
        self.positions as f64 * (1.0 - self.loss) / self.needed as f64
    }

    /// Packets received over symbols needed.
    pub fn reception(&self) -> f64 {
        self.received as f64 / self.needed as f64
    }

    /// From the first block's completion to the last one's, over the whole time.
    pub fn spread(&self) -> f64 {
        let first = self.blocks.iter().copied().min().unwrap_or(0);
        (self.positions - first) as f64 / self.positions as f64
    }
}

/// Counts of one receiver.
struct Counting {
    run: Run,
    words: usize,
    held: Vec<u64>,
    k: Vec<u32>,
    count: Vec<u32>,
    verified: Vec<u32>,
    known: Vec<bool>,
    done: Vec<bool>,
    remaining: u32,
    now: u64,
}

impl Counting {
    fn new(geometry: &Geometry, loss: f64) -> Self {
        let blocks = geometry.blocks() as usize;
        let words =
            (geometry.symbols(Sbn(0)) as usize).max(geometry.symbols(Sbn(blocks as u32 - 1)) as usize);
        let words = words.div_ceil(64);
        Self {
            run: Run { needed: geometry.symbols_needed(), loss, blocks: vec![0; blocks], ..Run::default() },
            words,
            held: vec![0; words * blocks],
            k: (0..blocks as u32).map(|sbn| u32::from(geometry.source_symbols(Sbn(sbn)))).collect(),
            count: vec![0; blocks],
            verified: vec![0; blocks],
            known: vec![blocks == 1; blocks],
            done: vec![false; blocks],
            remaining: blocks as u32,
            now: 0,
        }
    }

    #[inline]
    fn handle(&mut self, entry: u32, page_known: bool) {
        if entry >= BLOCK_PAGE {
            if entry < MANIFEST {
                let first = ((entry - BLOCK_PAGE) * BLOCKS_PER_PAGE) as usize;
                for block in first..(first + BLOCKS_PER_PAGE as usize).min(self.k.len()) {
                    self.known[block] = true;
                    self.check(block);
                }
            }
            return;
        }
        let (block, esi) = ((entry >> 16) as usize, entry & 0xffff);
        let word = &mut self.held[block * self.words + esi as usize / 64];
        let bit = 1u64 << (esi % 64);
        // A full map that waits for its block page takes no more either.
        if *word & bit != 0 || self.count[block] >= self.k[block] {
            self.run.duplicate += 1;
            // More proof for a block that has too little to be tried.
            self.verified[block] += u32::from(page_known && self.verified[block] < self.count[block]);
        } else {
            *word |= bit;
            self.count[block] += 1;
            self.verified[block] += u32::from(page_known);
            self.run.unverified += u64::from(!page_known);
            self.run.parked += u64::from(esi >= self.k[block]);
        }
        self.check(block);
    }

    #[inline]
    fn check(&mut self, block: usize) {
        let ready = self.count[block] >= self.k[block] && self.verified[block] >= self.k[block] / 4;
        if ready && self.known[block] && !self.done[block] {
            self.done[block] = true;
            self.run.blocks[block] = self.now;
            self.remaining -= 1;
        }
    }
}

/// One receiver that joins `servers` servers of the same rate, each in its phase, when the first is at `join`.
/// Every server's link loses by itself. Gives up after `patience` cycles.
pub fn count(carousel: &Carousel, loss: Loss, servers: u32, join: u64, seed: u64, patience: u64) -> Run {
    let mut state = Counting::new(&carousel.geometry, loss.share());
    let mut channels: Vec<_> = (0..servers)
        .map(|server| {
            let at = join + phase(server, carousel.positions());
            (Walker::new(carousel, at), Link::new(loss, seed ^ u64::from(server) << 56), false)
        })
        .collect();
    let mut early: Option<Vec<(u32, bool)>> = Some(Vec::new());
    let limit = patience * carousel.positions();
    while state.remaining > 0 && state.now < limit {
        state.now += 1;
        for (walker, link, page_known) in &mut channels {
            let position = walker.position;
            let entry = walker.next();
            if link.loses(position) {
                if entry == PAGE {
                    *page_known = false;
                }
                continue;
            }
            state.run.received += 1;
            if let Some(waiting) = &mut early {
                if entry == MANIFEST {
                    for (entry, page_known) in early.take().unwrap_or_default() {
                        state.handle(entry, page_known);
                    }
                } else if waiting.len() < EARLY_PACKETS {
                    *page_known |= entry == PAGE;
                    waiting.push((entry, *page_known));
                } else {
                    *page_known = false;
                    state.run.early_dropped += 1;
                }
                continue;
            }
            if entry == PAGE {
                *page_known = true;
            } else {
                state.handle(entry, *page_known);
            }
        }
    }
    state.run.complete = state.remaining == 0;
    state.run.positions = state.now;
    state.run
}

/// The channels of one server's ladder: level 0 at the base rate, level l at 2^(l−1) times of it.
pub struct Ladder {
    layout: Layout,
    levels: Vec<Order>,
    /// The symbols of every coset in their order.
    cosets: Vec<Vec<(Sbn, Esi)>>,
}

impl Ladder {
    /// A ladder of as many levels as the layout has.
    ///
    /// # Panics
    /// If there is no such layout.
    pub fn new(geometry: Geometry) -> Self {
        let layout = Layout::new(geometry, DEFAULT_ROUNDS_LOG2).expect("a layout");
        let levels =
            (0..=layout.rounds_log2()).map(|l| Order::new(&layout, Tier::Level(l)).expect("an order"));
        let levels = levels.collect();
        let cosets = (0..layout.cosets()).map(|coset| layout.walk(Coset(coset)).collect()).collect();
        Self { layout, levels, cosets }
    }

    /// The cut of the object.
    pub fn geometry(&self) -> &Geometry {
        self.layout.geometry()
    }

    /// The orders of the levels.
    pub fn levels(&self) -> &[Order] {
        &self.levels
    }

    /// Ticks to one packet of this level; in a tick the top level sends one.
    pub fn ticks(&self, level: usize) -> u64 {
        1 << (self.levels.len() - level.max(1) - 1)
    }

    fn entry(&self, level: usize, position: u64) -> u32 {
        match self.levels[level].item(Position(position)) {
            Item::Manifest => MANIFEST,
            Item::BlockPage(number) => BLOCK_PAGE | number,
            Item::Record(coset, record) => match self.layout.record(record) {
                Content::HashPage(_) => PAGE,
                Content::Symbol(slot) => {
                    let (sbn, esi) = self.cosets[coset.0 as usize][slot as usize];
                    sbn.0 << 16 | u32::from(esi.0)
                }
            },
        }
    }

    /// One receiver without loss, which joins level l of `servers` servers at the tick `joins[l]`, levels without
    /// one never. Gives up after `patience` ticks. Ticks, not positions, are counted in [`Run::positions`].
    pub fn climb(&self, servers: u32, joins: &[u64], patience: u64) -> Run {
        let mut state = Counting::new(self.geometry(), 0.0);
        let start = joins.iter().copied().min().unwrap_or(0);
        let mut early = Some(Vec::new());
        for tick in start..start + patience {
            state.now = tick + 1 - start;
            for (level, _) in joins.iter().enumerate().filter(|(_, join)| **join <= tick) {
                let ticks = self.ticks(level);
                if (tick + 1) % ticks != 0 {
                    continue;
                }
                for server in 0..servers {
                    let at = phase(server, self.levels[level].cycle());
                    let entry = self.entry(level, tick / ticks + at);
                    state.run.received += 1;
                    match &mut early {
                        Some(waiting) if entry != MANIFEST => waiting.push(entry),
                        _ => {
                            early.take().unwrap_or_default().into_iter().for_each(|e| state.handle(e, true));
                            state.handle(entry, true);
                        }
                    }
                }
            }
            if state.remaining == 0 {
                break;
            }
        }
        state.run.complete = state.remaining == 0;
        state.run.positions = state.now;
        state.run
    }
}

/// A bundle in memory, packed the slow and obvious way: everything at once, no streaming.
pub struct Bundle {
    bytes: Vec<u8>,
    layout: Layout,
    places: Places,
    order: Order,
    digest: [u8; 32],
    checksum: Checksum,
    instance: Instance,
}

impl Bundle {
    /// Packs an object, unsigned.
    ///
    /// # Panics
    /// If the geometry is not one of this object.
    pub fn pack(object: &[u8], geometry: Geometry) -> Self {
        let layout = Layout::new(geometry, DEFAULT_ROUNDS_LOG2).expect("a layout");
        let shape =
            TreeShape::new(layout.pages(), layout.page_len(), geometry.symbol_len()).expect("a tree shape");
        let places = Places::new(&layout);
        let mut bundle = vec![0; places.file_len() as usize];
        let mut put = |at: u64, offset: u64, slot: u32, body: &[u8]| {
            let record = &mut bundle[at as usize..][..places.record_len()];
            record[..RECORD_HEADER_LEN].copy_from_slice(&record_header(geometry.size(), offset, Slot(slot)));
            record[RECORD_HEADER_LEN..][..body.len()].copy_from_slice(body);
            leaf(record)
        };

        let blocks: Vec<_> = (0..geometry.blocks()).map(|sbn| symbols(object, &geometry, Sbn(sbn))).collect();
        let mut leaves = vec![0; layout.pages() as usize * shape.leaves_len()];
        for coset in (0..layout.cosets()).map(Coset) {
            for (index, (sbn, esi)) in (0..).zip(layout.walk(coset)) {
                let symbol = &blocks[sbn.0 as usize][usize::from(esi.0) * geometry.symbol_len()..];
                let slot = layout.slot(coset, index);
                let found = put(
                    places.record(coset, layout.slot_record(index)),
                    geometry.offset(sbn, esi),
                    slot,
                    &symbol[..geometry.symbol_len()],
                );
                leaves[slot as usize * LEAF_LEN..][..LEAF_LEN].copy_from_slice(&found);
            }
        }

        let mut cap = Vec::new();
        for node in 0..shape.cap_nodes() {
            let first = PageNumber((node * shape.pages_per_cap_node()) as u32);
            let of_page = |page: PageNumber| {
                leaves[page.0 as usize * shape.leaves_len()..][..shape.leaves_len()].to_vec()
            };
            let Ok(tree) = Subtree::build(&shape, first, |page| Ok::<_, Infallible>(of_page(page)));
            cap.extend_from_slice(&tree.cap_node());
            for page in (first.0..shape.pages()).take(shape.pages_per_cap_node()).map(PageNumber) {
                let coset = Coset(page.0 / layout.pages_per_coset());
                let in_coset = u64::from(page.0 % layout.pages_per_coset());
                if in_coset < layout.coset_pages(coset) {
                    let body = [of_page(page), tree.path(page)].concat();
                    put(places.record(coset, layout.page_record(in_coset)), 0, page.0, &body);
                }
            }
        }

        let values: Vec<_> = (0..geometry.blocks())
            .map(Sbn)
            .map(|sbn| {
                let mut hasher = block_hasher(&geometry, sbn);
                hasher.update(&object[geometry.block_offset(sbn) as usize..][..geometry.block_len(sbn)]);
                block_value(&geometry, &hasher)
            })
            .collect();
        for (number, body) in (0..).zip(emit_block_pages(&values)) {
            put(places.item(Item::BlockPage(number)), 0, number, &body);
        }

        let digest = *blake3::hash(object).as_bytes();
        let manifest = Manifest {
            version: FORMAT_VERSION,
            name: "object".into(),
            media_type: None,
            size: geometry.size(),
            digest,
            symbol_len: geometry.symbol_len() as u16,
            block_log2: geometry.block_log2(),
            repair_full: geometry.repair_full(),
            repair_last: geometry.repair_last(),
            page_len: layout.page_len(),
            pages: layout.pages(),
            cap,
            seq: 1,
            created: 0,
            expires: None,
            compatible: None,
            rollout: None,
            apply: None,
            table: None,
        };
        let emitted = manifest.emit();
        let envelope =
            Envelope { manifest: &emitted, algorithm: SignatureAlgorithm::None as u8, signature: b"" };
        let body = envelope.emit(geometry.symbol_len()).expect("a manifest that fits");
        put(places.item(Item::Manifest), 0, 0, &body);

        let header =
            BundleHeader { symbol_len: geometry.symbol_len() as u16, rounds_log2: layout.rounds_log2() };
        bundle[..places.record_len()].copy_from_slice(&header.emit());
        let found = layout_of(&header, &manifest, bundle.len() as u64);
        assert_eq!(found, Ok(layout), "the reader of bundles agrees");
        Self {
            bytes: bundle,
            layout,
            order: Order::new(&layout, Tier::Alone).expect("an order"),
            places,
            digest,
            checksum: manifest.checksum(),
            instance: instance_of(&emitted),
        }
    }

    /// Its layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Positions of one cycle.
    pub fn positions(&self) -> u64 {
        self.order.cycle()
    }

    /// Whom a receiver of this bundle believes.
    pub fn trust(&self) -> Trust {
        Trust::Digest(self.digest)
    }

    /// The datagram that stands at a position, as a server sends it.
    pub fn packet(&self, position: u64) -> Vec<u8> {
        let item = self.order.item(Position(position));
        let kind = match item {
            Item::Manifest => Kind::Manifest,
            Item::BlockPage(_) => Kind::BlockPage,
            Item::Record(_, index) => match self.layout.record(index) {
                Content::HashPage(_) => Kind::HashPage,
                Content::Symbol(_) => Kind::Symbol,
            },
        };
        let record = &self.bytes[self.places.item(item) as usize..][..self.places.record_len()];
        self.datagram(kind, position as u32, record)
    }

    /// The manifest's datagram with this sequence number.
    pub fn manifest(&self, sequence: u64) -> Vec<u8> {
        let record = &self.bytes[self.places.item(Item::Manifest) as usize..][..self.places.record_len()];
        self.datagram(Kind::Manifest, sequence as u32, record)
    }

    /// A symbol packet that nothing but its hash tells from a real one: the header fits, the contents do not.
    fn forged_symbol(&self, position: u64, dice: &mut Dice) -> Vec<u8> {
        let geometry = self.layout.geometry();
        let sbn = Sbn(dice.below(u64::from(geometry.blocks())) as u32);
        let esi = Esi(dice.below(u64::from(geometry.symbols(sbn))) as u16);
        let slots = u64::from(self.layout.pages()) * u64::from(self.layout.page_len());
        let slot = Slot(dice.below(slots) as u32);
        let mut record = vec![0; self.places.record_len()];
        dice.fill(&mut record);
        record[..RECORD_HEADER_LEN].copy_from_slice(&record_header(
            geometry.size(),
            geometry.offset(sbn, esi),
            slot,
        ));
        self.datagram(Kind::Symbol, position as u32, &record)
    }

    fn datagram(&self, kind: Kind, sequence: u32, record: &[u8]) -> Vec<u8> {
        let mut prefix = [0; PREFIX_LEN];
        emit_prefix(&mut prefix, kind, Sequence(sequence), self.checksum, self.instance);
        [&prefix[..], record].concat()
    }
}

/// All symbols of a block, end to end.
fn symbols(object: &[u8], geometry: &Geometry, sbn: Sbn) -> Vec<u8> {
    let (k, r) = (usize::from(geometry.source_symbols(sbn)), usize::from(geometry.repair_symbols(sbn)));
    let t = geometry.symbol_len();
    let mut all = object[geometry.block_offset(sbn) as usize..][..geometry.block_len(sbn)].to_vec();
    all.resize((k + r) * t, 0);
    let (source, repair) = all.split_at_mut(k * t);
    BlockEncoder::new().encode(k, r, t, source, repair).expect("a block that can be encoded");
    all
}

/// A real receiver with a disk in memory, and a decoder that takes its time.
pub struct Client {
    receiver: Receiver,
    geometry: Option<Geometry>,
    disk: Vec<u8>,
    jobs: VecDeque<(u64, BlockJob)>,
    decoder: StripeDecoder,
    complete: bool,
    packets: u64,
}

/// Packets that arrive while a block is being decoded.
pub const DECODING: u64 = 40;

impl Client {
    /// A client that has heard nothing yet.
    pub fn new(trust: Trust) -> Self {
        Self {
            receiver: Receiver::new(trust, 0),
            geometry: None,
            disk: Vec::new(),
            jobs: VecDeque::new(),
            decoder: StripeDecoder::new(),
            complete: false,
            packets: 0,
        }
    }

    /// One datagram at `now`, in ns.
    pub fn handle_packet(&mut self, now: u64, channel: ChannelId, bytes: &[u8]) {
        let verdict = self.receiver.handle_packet(now, channel, bytes);
        self.go_on(now, verdict, bytes);
    }

    /// Up to [`LANES`] datagrams that came together at `now`, hashed at once as the program does it.
    pub fn handle_group(&mut self, now: u64, channel: ChannelId, packets: &[&[u8]]) {
        let hashed = self.receiver.hash(packets);
        for (packet, bytes) in hashed.iter().zip(packets) {
            let verdict = self.receiver.handle_hashed(now, channel, packet);
            self.go_on(now, verdict, bytes);
        }
    }

    fn go_on(&mut self, now: u64, verdict: Verdict, bytes: &[u8]) {
        self.packets += 1;
        self.store(verdict, bytes);
        while self.jobs.front().is_some_and(|(due, _)| *due <= self.packets)
            && let Some((_, job)) = self.jobs.pop_front()
        {
            self.decode(job);
        }
        while let Some(output) = self.receiver.poll_output() {
            match output {
                Output::Started(manifest) => {
                    let geometry = manifest.geometry().expect("a manifest that was checked");
                    // The spare places stand behind the object. What lies on a disk before is not zeros.
                    let spare = geometry.blocks() as usize * geometry.symbol_len();
                    self.disk = vec![0xee; geometry.size() as usize + spare];
                    self.geometry = Some(geometry);
                    for (channel, bytes) in self.receiver.take_early().iter() {
                        let verdict = self.receiver.handle_early(now, channel, bytes);
                        self.store(verdict, bytes);
                    }
                }
                Output::BlockReady(job) => self.jobs.push_back((self.packets + DECODING, job)),
                Output::Complete => self.complete = true,
                // This receiver trusts by digest: no keys come and go.
                Output::Keys(_) | Output::Withdrawn(_) | Output::BlockFound(_) => {
                    unreachable!("no keys object is believed here, and no block looked for")
                }
            }
        }
    }

    fn store(&mut self, verdict: Verdict, bytes: &[u8]) {
        if let Verdict::Store(place, _) = verdict {
            self.disk[place.offset as usize..][..place.len]
                .copy_from_slice(&bytes[HEADER_LEN..][..place.len]);
        }
    }

    /// The object, once it is complete.
    pub fn object(&self) -> Option<&[u8]> {
        self.geometry.filter(|_| self.complete).map(|geometry| &self.disk[..geometry.size() as usize])
    }

    fn decode(&mut self, job: BlockJob) {
        let geometry = self.geometry.expect("no job before the manifest");
        let (t, k) = (geometry.symbol_len(), usize::from(job.k));
        let mut block = vec![0; k * t];
        let mut standing = Vec::with_capacity(k);
        for (place, content) in (0..job.k).zip(&job.places) {
            assert_ne!(*content, EMPTY_PLACE, "a job has K symbols");
            let place = Place::new(&geometry, job.sbn, place, Esi(*content));
            let mut symbol = self.disk[place.offset as usize..][..place.len].to_vec();
            symbol.resize(t, 0);
            if *content < job.k {
                block[usize::from(*content) * t..][..t].copy_from_slice(&symbol);
            }
            standing.push((*content, symbol));
        }
        let incomplete = job.places.iter().any(|content| *content >= job.k);
        for stripe in stripes(t, 2).filter(|_| incomplete) {
            self.decoder.begin(k, usize::from(job.r), stripe.len()).expect("a code");
            for (content, symbol) in &standing {
                self.decoder.add(*content, &symbol[stripe.clone()]).expect("a symbol of the block, once");
            }
            let put = |esi: u16, bytes: &[u8]| {
                block[usize::from(esi) * t..][stripe.clone()].copy_from_slice(bytes);
            };
            self.decoder.finish(put).expect("K symbols");
        }
        block.truncate(geometry.block_len(job.sbn));
        let mut hasher = block_hasher(&geometry, job.sbn);
        hasher.update(&block);
        let matched = block_value(&geometry, &hasher) == job.expected;
        if matched {
            self.disk[geometry.block_offset(job.sbn) as usize..][..block.len()].copy_from_slice(&block);
        }
        self.receiver.handle_decoded(job, matched, incomplete);
    }
}

/// What a forger sends, five packets for every real one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lies {
    /// Symbols with the right header, random contents, and slot and offset at random.
    Symbols,
    /// Real packets of a moment ago with one wrong byte.
    Bytes,
    /// The manifest with one wrong byte, from before the join on.
    Manifests,
}

/// What happens to packets on their way.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// How they are lost.
    pub loss: Loss,
    /// Chance that one comes twice.
    pub twice: f64,
    /// Each is late by up to so many packets, at random.
    pub delay: u64,
    /// Chance that one bit of a packet is wrong.
    pub flip: f64,
    /// Who else sends.
    pub forger: Option<Lies>,
}

/// What a transfer came to.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// What arrived, if it was complete within the patience.
    pub object: Option<Vec<u8>>,
    /// Positions from join to completion, over symbols needed / (1 − loss).
    pub time: f64,
    /// What the receiver counted.
    pub counters: Counters,
    /// What it counted on the channel.
    pub channel: ChannelCount,
}

fn wrong_byte(mut packet: Vec<u8>, dice: &mut Dice) -> Vec<u8> {
    let at = dice.below(packet.len() as u64) as usize;
    packet[at] ^= 1 + dice.below(255) as u8;
    packet
}

/// Forged packets for every real one.
const LIES: usize = 5;
/// Packets the forger remembers.
const OVERHEARD: usize = 256;
/// Time from one position to the next: 20 Mbit/s.
const STEP_NS: u64 = 512_000;

/// Sends a bundle to a client that joins at `join`, through the weather, for at most `patience` cycles.
pub fn transfer(bundle: &Bundle, weather: &Weather, join: u64, seed: u64, patience: u64) -> Transfer {
    let mut client = Client::new(bundle.trust());
    let (mut link, mut dice) = (Link::new(weather.loss, seed), Dice::new(!seed));
    let mut on_the_way = BTreeMap::new();
    let mut overheard: Vec<Vec<u8>> = Vec::new();
    let manifest = bundle.manifest(join);
    let mut position = join;
    while client.object().is_none() && position < join + patience * bundle.positions() {
        let packet = bundle.packet(position);
        if !link.loses(position) {
            for copy in 0..1 + u64::from(dice.hits(weather.twice)) {
                let mut packet = packet.clone();
                if dice.hits(weather.flip) {
                    let bit = dice.below(packet.len() as u64 * 8);
                    packet[bit as usize / 8] ^= 1 << (bit % 8);
                }
                on_the_way.insert((position + dice.below(weather.delay + 1), position, copy), packet);
            }
        }
        let now = (position - join) * STEP_NS;
        while let Some(first) = on_the_way.first_entry().filter(|entry| entry.key().0 <= position) {
            client.handle_packet(now, ChannelId(0), &first.remove());
        }
        for _ in 0..weather.forger.map_or(0, |_| LIES) {
            let real = match weather.forger {
                Some(Lies::Manifests) => Some(&manifest),
                Some(Lies::Bytes) if !overheard.is_empty() => {
                    Some(&overheard[dice.below(overheard.len() as u64) as usize])
                }
                _ => None,
            };
            let lie = match real {
                Some(real) => wrong_byte(real.clone(), &mut dice),
                None => bundle.forged_symbol(position, &mut dice),
            };
            client.handle_packet(now, ChannelId(0), &lie);
        }
        if overheard.len() == OVERHEARD {
            overheard.swap_remove(dice.below(OVERHEARD as u64) as usize);
        }
        overheard.push(packet);
        position += 1;
    }
    let ideal = bundle.layout.geometry().symbols_needed() as f64 / (1.0 - weather.loss.share());
    Transfer {
        object: client.object().map(<[u8]>::to_vec),
        time: (position - join) as f64 / ideal,
        counters: client.receiver.counters(),
        channel: client.receiver.channel_counts().next().unwrap_or_default(),
    }
}
