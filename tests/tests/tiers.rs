//! The choice of the tier in virtual time: receivers behind a bottleneck with a queue, links that lose, a flow like
//! TCP beside them. `cargo test --release --test tiers -- --nocapture` draws tier over time, a figure every 5 s.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_proto::receiver::ChannelCount;
use carousel_proto::tiers::{Kind, Mode, Output, Tiers};
use carousel_tests::sim::{Dice, Link, Loss};

const SECOND: u64 = 1_000_000_000;
/// Step of the virtual clock.
const STEP: u64 = SECOND / 2_000;
const PACKET_BITS: u64 = 1_280 * 8;
const JOIN_LATENCY: u64 = SECOND / 10;
/// Routers ask whether anybody is left before they stop.
const LEAVE_LATENCY: u64 = SECOND;
const LADDER: [u64; 4] = [1_000_000, 1_000_000, 2_000_000, 4_000_000];
const HALF_HOUR: u64 = 1_800;

/// A router's port: drop-tail.
struct Bottleneck {
    /// bit/s
    rate: f64,
    /// Bits.
    room: f64,
    filled: f64,
}

impl Bottleneck {
    fn new(rate: f64, seconds: f64) -> Self {
        Self { rate, room: rate * seconds, filled: 0.0 }
    }

    fn passes(&mut self) -> bool {
        let passes = self.filled + PACKET_BITS as f64 <= self.room.max(2.0 * PACKET_BITS as f64);
        self.filled += if passes { PACKET_BITS as f64 } else { 0.0 };
        passes
    }
}

/// A flow with slow start and AIMD.
#[derive(Default)]
struct Tcp {
    window: f64,
    threshold: f64,
    credit: f64,
    deaf: u64,
    delivered: u64,
}

impl Tcp {
    fn step(&mut self, now: u64, neck: &mut Bottleneck) {
        let rtt = 0.04 + neck.filled / neck.rate;
        self.credit += self.window / rtt * STEP as f64 / SECOND as f64;
        while self.credit >= 1.0 {
            self.credit -= 1.0;
            if neck.passes() {
                self.delivered += 1;
                self.window += if self.window < self.threshold { 1.0 } else { 1.0 / self.window };
            } else if now >= self.deaf {
                self.window = (self.window / 2.0).max(1.0);
                self.threshold = self.window;
                self.deaf = now + (rtt * SECOND as f64) as u64;
            }
        }
    }
}

struct Client {
    tiers: Tiers,
    link: Link,
    /// Most bits per second that its socket takes.
    takes: f64,
    socket: f64,
    counts: Vec<ChannelCount>,
    gaps: Vec<u64>,
    local: u64,
    member: Vec<bool>,
    /// Moment, what is kept and what is tried, every 100 ms.
    log: Vec<(u64, Option<usize>, Option<usize>)>,
    gave_up: Vec<u64>,
    packets: u64,
}

impl Client {
    fn new(kind: Kind, rates: &[u64], loss: Loss, seed: u64) -> Self {
        let gaps: Vec<u64> = rates.iter().map(|rate| PACKET_BITS * SECOND / rate).collect();
        Self {
            tiers: Tiers::new(kind, Mode::Auto, &gaps, 0, Dice::new(seed).draw()),
            link: Link::new(loss, seed),
            takes: f64::INFINITY,
            socket: 0.0,
            counts: vec![ChannelCount::default(); rates.len()],
            gaps: vec![0; rates.len()],
            local: 0,
            member: vec![false; rates.len()],
            log: Vec::new(),
            gave_up: Vec::new(),
            packets: 0,
        }
    }

    fn handle(&mut self, tier: usize, passed: bool) {
        self.packets += 1;
        let full = self.socket > 40.0 * PACKET_BITS as f64;
        if !passed || self.link.loses(self.packets) || full {
            self.gaps[tier] += 1;
            self.local += u64::from(passed && full);
            return;
        }
        if self.takes.is_finite() {
            self.socket += PACKET_BITS as f64;
        }
        let count = &mut self.counts[tier];
        count.received += 1;
        count.lost += std::mem::take(&mut self.gaps[tier]); // a gap shows at the next packet
    }

    fn think(&mut self, now: u64) {
        for (tier, count) in self.counts.iter().enumerate() {
            self.tiers.handle_counts(now, tier, *count);
        }
        self.tiers.handle_local_loss(std::mem::take(&mut self.local));
        self.tiers.handle_time(now);
        while let Some(output) = self.tiers.poll_output() {
            match output {
                Output::Join(tier) => (self.member[tier], self.gaps[tier]) = (true, 0),
                Output::Leave(tier) => self.member[tier] = false,
                Output::NextSource => self.gave_up.push(now),
            }
        }
        let state = self.tiers.state();
        self.log.push((now, state.tier, state.trying));
    }

    /// Seconds until this tier was kept for the first time.
    fn reached(&self, tier: usize) -> f64 {
        let first = self.log.iter().find(|(_, kept, _)| *kept == Some(tier));
        first.map_or(f64::INFINITY, |(now, ..)| *now as f64 / SECOND as f64)
    }

    fn tier(&self) -> Option<usize> {
        self.log.last().unwrap().1
    }

    /// Share of the time after the first minute in which a tier above this one was tried, or kept, or still came.
    fn wasted(&self, tier: usize) -> f64 {
        let after: Vec<_> = self.log.iter().filter(|(now, ..)| *now > 60 * SECOND).collect();
        let above = |at: &(u64, Option<usize>, Option<usize>)| at.1.max(at.2) > Some(tier);
        let above_now = after.iter().filter(|at| above(at)).count() as f64;
        let ends = after.windows(2).filter(|w| above(w[0]) && !above(w[1])).count() as f64;
        (above_now + ends * LEAVE_LATENCY as f64 / (SECOND / 10) as f64) / after.len() as f64
    }

    /// Share of the time after the first minute on this tier.
    fn share(&self, tier: usize) -> f64 {
        let after: Vec<_> = self.log.iter().filter(|(now, ..)| *now > 60 * SECOND).collect();
        after.iter().filter(|(_, t, _)| *t == Some(tier)).count() as f64 / after.len() as f64
    }

    fn changes(&self) -> usize {
        self.log.windows(2).filter(|w| w[0].1 != w[1].1).count()
    }

    /// A figure every 5 s; `+` behind it if a tier above was tried meanwhile.
    fn draw(&self) -> String {
        let show = |part: &[(u64, Option<usize>, Option<usize>)]| {
            let tried = part.iter().any(|(.., trying)| trying.is_some());
            let tier = part[0].1.map_or("-".to_owned(), |tier| tier.to_string());
            tier + if tried { "+" } else { "" }
        };
        self.log.chunks(50).map(show).collect()
    }
}

struct World {
    now: u64,
    rates: Vec<u64>,
    credit: Vec<f64>,
    neck: Bottleneck,
    clients: Vec<Client>,
    /// Until when each tier comes through the bottleneck, and since when it was wanted.
    flows: Vec<(u64, Option<u64>)>,
    tcp: Option<Tcp>,
    dead: bool,
}

impl World {
    fn new(rates: &[u64], neck: Bottleneck, clients: Vec<Client>) -> Self {
        Self {
            now: 0,
            rates: rates.to_vec(),
            credit: vec![0.0; rates.len()],
            neck,
            clients,
            flows: vec![(0, None); rates.len()],
            tcp: None,
            dead: false,
        }
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + seconds * SECOND;
        while self.now < end {
            self.now += STEP;
            let step = STEP as f64 / SECOND as f64;
            self.neck.filled = (self.neck.filled - self.neck.rate * step).max(0.0);
            for tier in 0..self.rates.len() {
                let (until, since) = &mut self.flows[tier];
                if self.clients.iter().any(|client| client.member[tier]) {
                    let since = *since.get_or_insert(self.now);
                    if self.now >= since + JOIN_LATENCY || self.now < *until {
                        *until = self.now + LEAVE_LATENCY;
                    }
                } else {
                    *since = None;
                }
                self.credit[tier] += self.rates[tier] as f64 / PACKET_BITS as f64 * step;
                while self.credit[tier] >= 1.0 {
                    self.credit[tier] -= 1.0;
                    if self.now >= *until || self.dead {
                        continue;
                    }
                    let passes = self.neck.passes();
                    self.clients.iter_mut().filter(|c| c.member[tier]).for_each(|c| c.handle(tier, passes));
                }
            }
            if let Some(tcp) = &mut self.tcp {
                tcp.step(self.now, &mut self.neck);
            }
            for client in &mut self.clients {
                client.socket = (client.socket - client.takes * step).max(0.0);
                if self.now.is_multiple_of(SECOND / 10) {
                    client.think(self.now);
                }
            }
        }
    }
}

const NO_LOSS: Loss = Loss::Independent(0.0);

fn one(kind: Kind, rates: &[u64], neck: Bottleneck, loss: Loss, seed: u64, seconds: u64) -> Client {
    let mut world = World::new(rates, neck, vec![Client::new(kind, rates, loss, seed)]);
    world.run(seconds);
    world.clients.remove(0)
}

#[test]
fn the_highest_tier_that_fits_within_a_minute() {
    println!(
        "\n| bottleneck / base | queue | tier | settled after | lost to failed joins |\n|---:|---:|---:|---:|---:|"
    );
    let mut drawing = String::new();
    for (rate, tier) in [(1.5, 0), (3.0, 1), (6.0, 2), (9.0, 3)] {
        for queue in [0.02, 0.2, 0.5, 1.0] {
            for seed in 1..4 {
                let neck = Bottleneck::new(rate * 1e6, queue);
                let client = one(Kind::Stacked, &LADDER, neck, NO_LOSS, seed, HALF_HOUR);
                let (kept, settled, wasted) = (client.tier(), client.reached(tier), client.wasted(tier));
                let share = client.share(tier);
                println!("| {rate} | {queue} s | {kept:?} | {settled:.0} s | {:.2} % |", wasted * 100.0);
                assert!(
                    kept == Some(tier)
                        && settled <= 60.0
                        && share > 0.97
                        && wasted < if queue < 1.0 { 0.02 } else { 0.03 },
                    "{rate} {queue} {seed}: {}",
                    client.draw()
                );
                drawing = client.draw();
            }
        }
        println!("\n{drawing}\n");
    }
}

#[test]
fn separate_tiers_suit_the_link() {
    for (rate, tier) in [(2e6, 0), (20e6, 1), (200e6, 2)] {
        let rates = [1_000_000, 10_000_000, 100_000_000];
        let client = one(Kind::Separate, &rates, Bottleneck::new(rate, 0.1), NO_LOSS, 1, 300);
        println!("{rate}: {:?} after {:.0} s, {}", client.tier(), client.reached(tier), client.draw());
        assert!(client.tier() == Some(tier) && client.reached(tier) <= 60.0);
        assert_eq!(client.member.iter().filter(|member| **member).count(), 1);
    }
}

#[test]
fn random_loss_is_not_congestion() {
    let tier = 3;
    for share in [0.01, 0.05, 0.10, 0.20] {
        for seed in 1..5 {
            let neck = Bottleneck::new(20e6, 0.1);
            let client = one(Kind::Stacked, &LADDER, neck, Loss::Independent(share), seed, HALF_HOUR);
            println!(
                "{share}: {:?} after {:.0} s, {} changes",
                client.tier(),
                client.reached(tier),
                client.changes()
            );
            assert!(client.tier() == Some(3) && client.reached(tier) <= 120.0, "{}", client.draw());
        }
    }
    // With a bottleneck besides.
    let tier = 1;
    for seed in 1..5 {
        let client =
            one(Kind::Stacked, &LADDER, Bottleneck::new(3e6, 0.1), Loss::Independent(0.10), seed, HALF_HOUR);
        println!(
            "0.1 and a bottleneck of 3: {:?}, {:.2} % wasted, {}",
            client.tier(),
            client.wasted(tier) * 100.0,
            client.draw()
        );
        assert!(client.tier() == Some(1) && client.wasted(tier) < 0.02);
    }
}

#[test]
fn loss_that_comes_later_and_is_not_congestion_costs_no_tier() {
    let client = Client::new(Kind::Stacked, &LADDER, NO_LOSS, 5);
    let mut world = World::new(&LADDER, Bottleneck::new(20e6, 0.1), vec![client]);
    world.run(120);
    assert_eq!(world.clients[0].tier(), Some(3));
    world.clients[0].link = Link::new(Loss::Independent(0.15), 5);
    world.run(24); // three windows, one look at the tier below, one join
    println!("{}", world.clients[0].draw());
    assert_eq!(world.clients[0].tier(), Some(3));
    // A link that really shrinks is another matter, and one that grows again.
    world.clients[0].link = Link::new(NO_LOSS, 5);
    world.run(60);
    world.neck = Bottleneck::new(1.3e6, 0.1);
    world.run(120);
    println!("{}", world.clients[0].draw());
    assert_eq!(world.clients[0].tier(), Some(0));
    world.neck = Bottleneck::new(20e6, 0.1);
    world.run(1_200);
    println!("{}", world.clients[0].draw());
    assert_eq!(world.clients[0].tier(), Some(3));
}

#[test]
fn bursts_do_not_make_it_flap() {
    for (mean, share) in [(5.0, 0.02), (5.0, 0.10), (50.0, 0.02), (50.0, 0.05), (50.0, 0.10)] {
        for seed in 1..11 {
            let neck = Bottleneck::new(20e6, 0.1);
            let client = one(Kind::Stacked, &LADDER, neck, Loss::Bursts { mean, share }, seed, HALF_HOUR);
            println!("{mean} {share}: {:.3} of the time on 3, {} changes", client.share(3), client.changes());
            assert!(
                client.tier() == Some(3) && client.share(3) > 0.5 && client.changes() <= 9,
                "{}",
                client.draw()
            );
        }
    }
}

#[test]
fn twenty_behind_one_bottleneck_agree() {
    for (rate, tier, seeds) in
        [(1.5, 0, 0), (3.0, 1, 0), (6.0, 2, 0), (3.0, 1, 50), (6.0, 2, 50), (6.0, 2, 99)]
    {
        let clients =
            (0..20).map(|seed| Client::new(Kind::Stacked, &LADDER, NO_LOSS, seed + 100 + seeds)).collect();
        let mut world = World::new(&LADDER, Bottleneck::new(rate * 1e6, 0.1), clients);
        world.run(900);
        let on = world.clients.iter().map(|client| client.share(tier)).fold(1.0, f64::min);
        let wasted = world.clients.iter().map(|client| client.wasted(tier)).sum::<f64>() / 20.0;
        // Loss that all of them suffer while one tries.
        let any = (0..world.clients[0].log.len())
            .filter(|at| *at > 600 && world.clients.iter().any(|c| c.log[*at].2.is_some()));
        let any = any.count() as f64 / 8_400.0;
        println!(
            "{rate}: least share on {tier} {on:.3}, each wastes {:.2} %, somebody tries {:.2} % of the time",
            wasted * 100.0,
            any * 100.0
        );
        println!("{}\n{}", world.clients[0].draw(), world.clients[7].draw());
        assert!(world.clients.iter().all(|client| client.tier() == Some(tier)));
        assert!(on > 0.9 && wasted < 0.02);
    }
}

#[test]
fn a_flow_like_tcp_keeps_its_share() {
    for rate in [2.0, 2.1, 3.0, 4.1, 4.2, 6.0, 8.2, 8.3, 12.0] {
        for queue in [0.05, 0.2] {
            let clients = vec![Client::new(Kind::Stacked, &LADDER, NO_LOSS, 3)];
            let mut world = World::new(&LADDER, Bottleneck::new(rate * 1e6, queue), clients);
            world.tcp = Some(Tcp { window: 2.0, threshold: 64.0, ..Tcp::default() });
            world.run(HALF_HOUR);
            let got = world.tcp.as_ref().unwrap().delivered as f64 * PACKET_BITS as f64 / HALF_HOUR as f64;
            let fair = rate * 1e6 / 2.0;
            let client = &world.clients[0];
            println!(
                "{rate} {queue}: tier {:?}, TCP {:.0} % of its fair share, {}",
                client.tier(),
                got / fair * 100.0,
                client.draw()
            );
            assert!(got >= 0.10 * fair);
        }
    }
}

#[test]
fn a_slow_host_caps_its_tier() {
    let mut client = Client::new(Kind::Stacked, &LADDER, NO_LOSS, 3);
    client.takes = 3e6;
    let mut world = World::new(&LADDER, Bottleneck::new(20e6, 0.1), vec![client]);
    world.run(HALF_HOUR);
    let (client, tier) = (&world.clients[0], 1);
    println!("{:?}, {}", client.tiers.state(), client.draw());
    assert!(client.tier() == Some(1) && client.reached(tier) <= 60.0 && client.wasted(tier) < 0.02);
}

#[test]
fn a_dead_source_is_given_up_and_missed_for_a_minute_at_most() {
    let clients = vec![Client::new(Kind::Stacked, &LADDER, NO_LOSS, 3)];
    let mut world = World::new(&LADDER, Bottleneck::new(20e6, 0.1), clients);
    world.run(100);
    world.dead = true;
    world.run(15);
    assert_eq!(world.clients[0].gave_up.len(), 1, "silent for 10 s");
    assert!(world.clients[0].member.iter().all(|member| !member));
    world.run(1_000);
    let pauses: Vec<_> = world.clients[0].gave_up.windows(2).map(|w| (w[1] - w[0]) / SECOND).collect();
    println!("seconds from failure to failure: {pauses:?}");
    // 10 s of silence, and 10, 20, 40, 40, … s of pause with a quarter by lot.
    assert!(pauses.len() >= 10 && pauses[0] < pauses[1] && pauses.iter().all(|pause| *pause <= 61));
    world.dead = false;
    world.run(61);
    assert!(world.clients[0].tier().is_some(), "back again");
    world.run(120);
    assert_eq!(world.clients[0].tier(), Some(3), "and up again");
}

#[test]
fn unbearable_loss_breaks_the_circuit() {
    let client = one(Kind::Stacked, &LADDER, Bottleneck::new(0.6e6, 0.1), NO_LOSS, 3, 45);
    assert_eq!(client.gave_up.len(), 1, "40 % of the lowest tier for 30 s");
    let client = one(Kind::Stacked, &LADDER, Bottleneck::new(0.9e6, 0.1), NO_LOSS, 3, 600);
    assert!(
        client.gave_up.is_empty() && client.tier() == Some(0),
        "10 % is worse than nothing lost, but bearable"
    );
}
