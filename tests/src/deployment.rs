//! A whole deployment in virtual time: up to a million receivers with their access lines, tiers, moments of joining,
//! and servers that die and come back; when does each of them have the object?
//!
//! Nothing is averaged. Every receiver runs the state machines of carousel-proto (`Sources`, `Tiers`) as the client
//! does, and hears the packets of the real schedule; only that up to eight packets, the symbols of one visit to a
//! block, are handled in one step, on a map with one bit for each symbol. So what [`crate::sim::count`] and the real
//! receiver need is distributed exactly like this, which `tests/deployment.rs` checks.
//!
//! What it refuses: bytes, hashes, decoding and queues that receivers share; and entropy, everything follows from the
//! seed.

mod link;
mod receiver;
pub mod report;
mod schedule;

use crate::sim::{Dice, Loss, mix};
use carousel_proto::geometry::{Geometry, Sbn};
use carousel_proto::schedule::{DEFAULT_ROUNDS_LOG2, Layout, Tier, phase};
use carousel_proto::tiers::Kind;
use carousel_proto::wire::HEADER_LEN;
use receiver::Held;
pub use receiver::Life;
use schedule::{Map, Schedule, Walker};
use std::num::NonZero;
use std::sync::Mutex;

/// IPv6 and UDP.
const IP_UDP_LEN: usize = 48;
/// Receivers that a thread takes at a time.
const BATCH: usize = 256;
/// A receiver gives up after so many times the ideal time on the lowest tier.
const PATIENCE: f64 = 20.0;

/// From a join to its first packet, and from leaving to the last one: routers ask first whether anybody is left. In s.
pub const JOIN_LATENCY: f64 = 0.1;
/// See [`JOIN_LATENCY`].
pub const LEAVE_LATENCY: f64 = 1.0;
/// The usual queue before an access line, in s.
pub const QUEUE: f64 = 0.1;

/// What is deployed, where and how.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The cut of the object.
    pub geometry: Geometry,
    /// How many receivers.
    pub receivers: usize,
    /// Rates in bit/s, of whole packets, lowest first.
    pub tiers: Vec<u64>,
    /// How the tiers belong together.
    pub kind: Kind,
    /// Who sends.
    pub servers: Vec<Server>,
    /// Who receives.
    pub classes: Vec<Class>,
    /// When they join.
    pub joining: Joining,
    /// From a join to the first packet that it brings, in s.
    pub join_latency: f64,
    /// From leaving to the last packet, in s.
    pub leave_latency: f64,
    /// All chance follows from it.
    pub seed: u64,
}

/// A server. Its position follows from the clock, so it comes back where it would have been.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Server {
    /// Its number, which makes its phase.
    pub number: u32,
    /// As of an SRV record: lower is better; others are spares.
    pub priority: u16,
    /// In s; infinite: never.
    pub dies: f64,
    /// In s; infinite: never.
    pub back: f64,
}

impl Server {
    /// The server of this number, which never dies.
    pub fn new(number: u32) -> Self {
        Self { number, priority: 0, dies: f64::INFINITY, back: f64::INFINITY }
    }

    /// Whether it is dead at a moment in ns.
    fn is_dead(&self, at: f64) -> bool {
        at >= self.dies * 1e9 && at < self.back * 1e9
    }

    /// Seconds of the first `end` in which it sends.
    fn sends(&self, end: f64) -> f64 {
        end - (self.back.min(end) - self.dies.min(end)).max(0.0)
    }
}

/// Receivers of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Class {
    /// For the table.
    pub name: String,
    /// Of all receivers, in relation to the other classes' shares.
    pub share: f64,
    /// What the medium loses: independently or in bursts.
    pub loss: Loss,
    /// Rate of the access line in bit/s: what is left for the carousel. `None`: more than all tiers.
    pub rate: Option<u64>,
    /// How long a packet waits at most before the line, in s.
    pub queue: f64,
}

impl Default for Class {
    /// Nothing is lost, and the line is never too slow.
    fn default() -> Self {
        let loss = Loss::Independent(0.0);
        Self { name: "receiver".into(), share: 1.0, loss, rate: None, queue: QUEUE }
    }
}

/// When receivers join.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Joining {
    /// All at once.
    Once,
    /// Evenly spread over so many seconds.
    Evenly(f64),
    /// Each at a random moment of so many seconds: a Poisson process, once one knows how many came.
    Randomly(f64),
}

impl Deployment {
    /// Bits of a packet on the wire.
    fn packet_bits(&self) -> f64 {
        (self.geometry.symbol_len() + HEADER_LEN + IP_UDP_LEN) as f64 * 8.0
    }

    /// Nanoseconds from packet to packet at a rate.
    fn gap(&self, rate: u64) -> f64 {
        self.packet_bits() * 1e9 / rate as f64
    }

    /// The same on the slowest tier.
    fn slowest_gap(&self) -> u64 {
        self.tiers.iter().map(|tier| self.gap(*tier) as u64).max().unwrap_or(0)
    }

    /// Seconds that the object takes at a rate, headers included, if nothing else is sent and this share is lost.
    pub fn ideal(&self, rate: u64, loss: f64) -> f64 {
        self.geometry.symbols_needed() as f64 * self.gap(rate) / 1e9 / (1.0 - loss)
    }

    /// What is wrong with it, in one line that names the remedy.
    pub fn check(&self) -> Result<(), String> {
        let Some(base) = self.tiers.first() else { return Err("no tier: give at least one rate".into()) };
        if self.servers.is_empty() || self.classes.is_empty() || self.receivers == 0 {
            return Err("nobody sends or receives: give at least one server, class and receiver".into());
        }
        if self.kind == Kind::Stacked {
            let ladder = |(n, rate): (usize, &u64)| *rate == base << n.saturating_sub(1);
            if self.tiers.len() > usize::from(DEFAULT_ROUNDS_LOG2) + 1
                || !self.tiers.iter().enumerate().all(ladder)
            {
                return Err(
                    "rates of a ladder are 1, 1, 2, 4 times the lowest: change them or the kind".into()
                );
            }
        } else if !self.tiers.is_sorted() {
            return Err("separate tiers begin with the lowest: sort the rates".into());
        }
        for class in &self.classes {
            let name = &class.name;
            let share = class.loss.share();
            if !(0.0..0.75).contains(&share) {
                return Err(format!("class {name}: loss is 0 to 75 per cent here, without 75"));
            }
            if matches!(class.loss, Loss::Bursts { mean, .. } if mean < 1.0 || share / (1.0 - share) >= mean)
            {
                return Err(format!("class {name}: such short bursts cannot lose so much: make them longer"));
            }
            if matches!(class.loss, Loss::Periodic { .. }) {
                return Err(format!("class {name}: loss is independent or in bursts here"));
            }
            if class.share <= 0.0 || !class.share.is_finite() {
                return Err(format!("class {name}: its share must be more than 0: leave it out"));
            }
        }
        if self.servers.iter().any(|server| server.back < server.dies) {
            return Err("a server cannot come back before it dies: let back be later than dies".into());
        }
        Ok(())
    }
}

/// What all receivers have in common.
struct World<'a> {
    deployment: &'a Deployment,
    map: Map,
    /// One for all separate tiers, or one for each level.
    schedules: Vec<Schedule>,
    /// Of each server and tier: when the first packet after the beginning is due in ns, and its position.
    starts: Vec<Vec<(f64, u64)>>,
    /// K of each block.
    needed: Vec<i32>,
    /// In ns.
    patience: f64,
}

impl<'a> World<'a> {
    fn new(deployment: &'a Deployment) -> Result<Self, String> {
        deployment.check()?;
        let geometry = &deployment.geometry;
        let layout = Layout::new(*geometry, DEFAULT_ROUNDS_LOG2)
            .ok_or("the object has too many symbols: make it smaller")?;
        let map = Map::new(&layout);
        let levels = match deployment.kind {
            Kind::Stacked => (0..deployment.tiers.len()).map(|level| Tier::Level(level as u8)).collect(),
            Kind::Separate => vec![Tier::Alone],
        };
        let schedules: Option<Vec<_>> =
            levels.into_iter().map(|tier| Schedule::new(&layout, &map, tier)).collect();
        // Some day after 2027: where in their cycles the servers are must not matter, so chance decides.
        let epoch = 1_800_000_000_000_000_000 + mix(deployment.seed) % 86_400_000_000_000;
        let mut world = Self {
            deployment,
            map,
            schedules: schedules.ok_or("the ladder has more levels than the layout: take fewer tiers")?,
            starts: Vec::new(),
            needed: (0..geometry.blocks()).map(|sbn| i32::from(geometry.source_symbols(Sbn(sbn)))).collect(),
            patience: 0.0,
        };
        let bits = deployment.packet_bits() as u128 * 1_000_000_000;
        let start = |number: u32, tier: usize| {
            let sent = u128::from(epoch) * u128::from(deployment.tiers[tier]);
            let late = (sent.div_ceil(bits) * bits - sent) as f64 / deployment.tiers[tier] as f64;
            let length = world.walker(tier).schedule.order.cycle();
            (late, sent.div_ceil(bits) as u64 + phase(number, length))
        };
        world.starts = (deployment.servers.iter())
            .map(|server| (0..deployment.tiers.len()).map(|tier| start(server.number, tier)).collect())
            .collect();
        let worst = deployment.classes.iter().map(|class| class.loss.share()).fold(0.0, f64::max);
        world.patience = (deployment.ideal(deployment.tiers[0], worst) * PATIENCE + 60.0) * 1e9;
        Ok(world)
    }

    fn walker(&self, tier: usize) -> Walker<'_> {
        Walker::new(&self.schedules[tier.min(self.schedules.len() - 1)], 0)
    }

    /// Puts a walker where its server's channel is at `at` ns, or when the server is back.
    fn seek<'b>(&'b self, server: usize, tier: usize, at: f64, walker: &mut Walker<'b>, next: &mut f64) {
        let back = &self.deployment.servers[server];
        let at = if back.is_dead(at) { back.back * 1e9 } else { at };
        *next = f64::INFINITY;
        if at.is_finite() {
            let (first, position) = self.starts[server][tier];
            let gap = self.deployment.gap(self.deployment.tiers[tier]);
            let number = ((at - first) / gap).ceil().max(0.0);
            *walker = Walker::new(walker.schedule, position + number as u64);
            *next = first + number * gap;
        }
    }

    /// When a receiver gives up, in ns; that may be when the last server is dead for good.
    fn end_of_patience(&self, joined: u64) -> f64 {
        let last = |server: &Server| if server.back.is_finite() { f64::INFINITY } else { server.dies * 1e9 };
        let dead = self.deployment.servers.iter().map(last).fold(0.0, f64::max);
        (joined as f64 + self.patience).min(dead)
    }

    fn live(&self, held: &mut Held, number: usize) -> Life {
        let deployment = self.deployment;
        let mut dice = Dice::new(mix(deployment.seed ^ mix(number as u64)));
        let joined = match deployment.joining {
            Joining::Once => 0.0,
            Joining::Evenly(span) => span * number as f64 / deployment.receivers as f64,
            Joining::Randomly(span) => span * uniform(&mut dice),
        };
        let all: f64 = deployment.classes.iter().map(|class| class.share).sum();
        let mut lot = uniform(&mut dice) * all;
        let class = deployment.classes.iter().position(|class| {
            lot -= class.share;
            lot < 0.0
        });
        let class = class.unwrap_or(deployment.classes.len() - 1);
        receiver::live(self, held, class, (joined * 1e9) as u64, dice)
    }
}

/// A number from 0 up to but not including 1.
fn uniform(dice: &mut Dice) -> f64 {
    (dice.draw() >> 11) as f64 * 2f64.powi(-53)
}

/// Lives all lives, on all cores. The order is that of the receivers' numbers, whatever the threads did.
pub fn run(deployment: &Deployment) -> Result<Vec<Life>, String> {
    let world = World::new(deployment)?;
    let mut lives = vec![Life::default(); deployment.receivers];
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let batches = Mutex::new(lives.chunks_mut(BATCH).enumerate());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut held = Held::new(&world);
                loop {
                    let batch = batches.lock().map(|mut batches| batches.next());
                    let Ok(Some((batch, lives))) = batch else { return };
                    for (number, life) in (batch * BATCH..).zip(lives) {
                        *life = world.live(&mut held, number);
                    }
                }
            });
        }
    });
    Ok(lives)
}

#[cfg(test)]
mod tests {
    use super::schedule::{CONTROL, PAGE};
    use super::*;
    use crate::sim::cut;
    use carousel_proto::schedule::{Content, Coset, Item, Order, Position};

    /// The visits, taken apart again, are what the schedule says packet by packet, from any position.
    #[test]
    fn a_walker_goes_as_the_order_says() {
        for (size, log2) in [(3_000, 16), (150_000, 16), (5 << 20, 20), (9_000_001, 22)] {
            let layout = Layout::new(cut(size, log2, 105).unwrap(), DEFAULT_ROUNDS_LOG2).unwrap();
            let map = Map::new(&layout);
            let first = |sbn: u32| {
                let before = (0..sbn).map(|s| layout.geometry().symbols(Sbn(s)).div_ceil(8));
                before.sum::<u32>() * 8
            };
            for tier in [Tier::Alone, Tier::Level(0), Tier::Level(2), Tier::Level(3)] {
                let order = Order::new(&layout, tier).unwrap();
                let schedule = Schedule::new(&layout, &map, tier).unwrap();
                let cosets: Vec<Vec<_>> = (0..8).map(|c| layout.walk(Coset(c)).collect()).collect();
                let mut dice = Dice::new(size);
                for _ in 0..30 {
                    let start = dice.below(1 << 45);
                    let mut walker = Walker::new(&schedule, start);
                    while walker.position < start + 3_000 {
                        let at = walker.position;
                        let run = walker.step(1 + dice.below(9) as u32);
                        assert_eq!(walker.position - at, u64::from(run.count));
                        for n in 0..run.count {
                            let found = match order.item(Position(at + u64::from(n))) {
                                Item::Manifest | Item::BlockPage(_) => (0, CONTROL),
                                Item::Record(coset, record) => match layout.record(record) {
                                    Content::HashPage(_) => (0, PAGE),
                                    Content::Symbol(slot) => {
                                        let (sbn, esi) = cosets[coset.0 as usize][slot as usize];
                                        (first(sbn.0) + u32::from(esi.0), sbn.0)
                                    }
                                },
                            };
                            assert_eq!((run.bit + n, run.block), found, "{size} {tier:?} {at}");
                        }
                    }
                }
            }
        }
    }
}
