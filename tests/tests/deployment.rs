//! The simulator of deployments against those that take packet by packet: times of completion are distributed alike.
//! `cargo test --profile lab --test deployment -- --nocapture` prints the figures.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_proto::geometry::Geometry;
use carousel_proto::receiver::ChannelId;
use carousel_proto::schedule::phase;
use carousel_proto::tiers::Kind;
use carousel_tests::deployment::report::Times;
use carousel_tests::deployment::{Class, Deployment, Joining, Life, QUEUE, Server, run};
use carousel_tests::figures;
use carousel_tests::sim::{Bundle, Carousel, Client, DECODING, Dice, Link, Loss, SYMBOL_LEN, count, cut};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Repair symbols by default, in per cent of the source symbols.
const REPAIR: u32 = 105;
const RATE: u64 = 10_000_000;
/// Seconds from packet to packet at this rate.
const GAP: f64 = (SYMBOL_LEN as f64 + 92.0) * 8.0 / RATE as f64;

/// Receivers without latency and limits, who join at random.
fn deployment(geometry: Geometry, loss: Loss, receivers: usize) -> Deployment {
    Deployment {
        geometry,
        receivers,
        tiers: vec![RATE],
        kind: Kind::Separate,
        servers: vec![Server::new(0)],
        classes: vec![Class { loss, ..Class::default() }],
        joining: Joining::Randomly(600.0),
        join_latency: 0.0,
        leave_latency: 0.0,
        seed: 7,
    }
}

/// Positions from the join up to and including the one that completed the object.
fn positions(lives: &[Life]) -> Vec<f64> {
    lives.iter().map(|life| (life.took / GAP + 1e-6).floor() + 1.0).collect()
}

/// Maps numbers in parallel, in order.
fn each<R: Send>(count: usize, work: impl Fn(u64) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let numbers = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        numbers.take_while(|n| *n < count).map(|n| (n, work(n as u64))).collect::<Vec<_>>()
    };
    let mut found: Vec<_> = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    found.sort_by_key(|(n, _)| *n);
    found.into_iter().map(|(_, result)| result).collect()
}

/// Greatest distance between two distributions, in units of what chance makes of it: one pair in a thousand that are
/// the same has more than 1.95 (Kolmogorov and Smirnov).
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let sorted = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted
    };
    let (a, b) = (sorted(a), sorted(b));
    let below = |values: &[f64], x: f64| values.partition_point(|v| *v <= x) as f64 / values.len() as f64;
    let most = a.iter().chain(&b).map(|x| (below(&a, *x) - below(&b, *x)).abs()).fold(0.0, f64::max);
    most / (1.0 / a.len() as f64 + 1.0 / b.len() as f64).sqrt()
}

/// Checks one against the other in three ways, each with what chance makes of it, and says what is wrong if it is.
fn compare(name: &str, model: &[f64], oracle: &[f64]) -> Option<String> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let late = |values: &[f64]| {
        let lives: Vec<_> = values.iter().map(|took| Life { took: *took, ..Life::default() }).collect();
        Times::new(lives.iter()).percentile(0.99)
    };
    // If both are the same, all runs together say how much they vary.
    let runs = 1.0 / model.len() as f64 + 1.0 / oracle.len() as f64;
    let all = [model, oracle].concat();
    let variance = all.iter().map(|v| (v - mean(&all)).powi(2)).sum::<f64>() / all.len() as f64;
    let off = (mean(model) - mean(oracle)) / (variance * runs).sqrt();
    let bar = late(oracle);
    let beyond = |values: &[f64]| values.iter().filter(|v| **v > bar).count() as f64 / values.len() as f64;
    let share = beyond(&all).max(0.001);
    let tail = (beyond(model) - beyond(oracle)) / (share * (1.0 - share) * runs).sqrt();
    let distance = distance(model, oracle);
    figures::row(
        name,
        &[
            ("packet by packet: runs", &oracle.len()),
            ("mean", &format!("{:.1}", mean(oracle))),
            ("99 %", &bar),
            ("visit by visit: mean", &format!("{:+.2} %", (mean(model) / mean(oracle) - 1.0) * 100.0)),
            ("99 % ", &format!("{:+.2} %", (late(model) / bar - 1.0) * 100.0)),
            ("in standard errors: mean", &format!("{off:.1}")),
            ("beyond 99 %", &format!("{tail:.1}")),
            ("greatest distance", &format!("{distance:.2}")),
        ],
    );
    let alike = off.abs() < 4.0 && tail.abs() < 4.0 && distance < 1.95;
    (!alike).then(|| format!("{name}: mean {off:.1}, tail {tail:.1}, distance {distance:.2}"))
}

fn losses() -> [Loss; 6] {
    let bursts = |mean| Loss::Bursts { mean, share: 0.10 };
    let [none, two, ten, forty] = [0.0, 0.02, 0.10, 0.40].map(Loss::Independent);
    [none, two, ten, forty, bursts(5.0), bursts(50.0)]
}

#[test]
fn as_long_as_packets_that_are_counted() {
    let mut wrong = Vec::new();
    // Ten blocks and one; the last one is short, and 33 need three block pages.
    for (size, log2, runs) in [(9_500_000, 20, 1_000), (700_000, 20, 4_000), (33 * 65_536 - 9, 16, 2_000)] {
        let geometry = cut(size, log2, REPAIR).unwrap();
        let carousel = Carousel::new(geometry);
        for servers in [1, 2] {
            for loss in losses() {
                if servers > 1 && matches!(loss, Loss::Bursts { .. }) {
                    continue; // there each server's link has its own bursts, here it is the receiver's
                }
                let counted = each(runs, |run| {
                    let join = Dice::new(run).below(carousel.positions() * 10_000);
                    let found = count(&carousel, loss, servers, join, run + 1_000_000, 60);
                    assert!(found.complete);
                    found.positions as f64
                });
                let mut deployment = deployment(geometry, loss, runs);
                deployment.servers = (0..servers).map(Server::new).collect();
                let lives = run(&deployment).unwrap();
                let name = format!("counted: {size} bytes, {servers} servers, {loss:?}");
                wrong.extend(compare(&name, &positions(&lives), &counted));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Packets of real bytes to a real receiver until it has the object; servers may be dead between two positions. The
/// time that decoding takes is left out.
fn receive(bundle: &Bundle, servers: &[(u32, u64, u64)], loss: Loss, seed: u64) -> f64 {
    let mut dice = Dice::new(seed);
    let join = dice.below(bundle.positions() * 10_000);
    let mut links: Vec<_> = servers.iter().map(|_| Link::new(loss, dice.draw())).collect();
    let mut client = Client::new(bundle.trust());
    let mut arrivals = Vec::new();
    for step in 0..bundle.positions() * 60 {
        for (n, (number, dies, back)) in servers.iter().enumerate() {
            let position = join + step + phase(*number, bundle.positions());
            if (*dies..*back).contains(&step) || links[n].loses(position) {
                continue;
            }
            client.handle_packet(step, ChannelId(n as u16), &bundle.packet(position));
            arrivals.push(step);
            if client.object().is_some() {
                return arrivals[arrivals.len() - 1 - DECODING as usize] as f64 + 1.0;
            }
        }
    }
    panic!("never ends");
}

#[test]
fn as_long_as_real_packets_to_a_real_receiver() {
    const REAL: usize = 150;
    let geometry = cut(1_200_000, 18, REPAIR).unwrap();
    let mut object = vec![0; geometry.size() as usize];
    Dice::new(3).fill(&mut object);
    let bundle = Bundle::pack(&object, geometry);
    let mut wrong = Vec::new();
    let mut check = |name: &str, servers: &[(u32, u64, u64)], loss: Loss| {
        let real = each(REAL, |seed| receive(&bundle, servers, loss, seed));
        // A death is a moment of the deployment, not of the receiver's: each joins in its own, at its beginning.
        let lives = each(1_000, |seed| {
            let server = |&(number, dies, back): &(u32, u64, u64)| Server {
                dies: (dies as f64 - 0.5) * GAP,
                back: (back as f64 - 0.5) * GAP,
                ..Server::new(number)
            };
            let servers = servers.iter().map(server).collect();
            let joining = Joining::Once;
            run(&Deployment { servers, joining, seed, ..deployment(geometry, loss, 1) }).unwrap().remove(0)
        });
        wrong.extend(compare(&format!("real: {name}, {loss:?}"), &positions(&lives), &real));
    };
    const NEVER: (u64, u64) = (u64::MAX, u64::MAX);
    for loss in [0.0, 0.02, 0.10, 0.40].map(Loss::Independent) {
        check("one server", &[(0, NEVER.0, NEVER.1)], loss);
        check("two in their phases", &[(0, NEVER.0, NEVER.1), (1, NEVER.0, NEVER.1)], loss);
        check("the second dies and comes back", &[(0, NEVER.0, NEVER.1), (1, 200, 500)], loss);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Times in s.
fn times(deployment: &Deployment) -> Times {
    Times::new(run(deployment).unwrap().iter())
}

#[test]
fn a_spare_steps_in_for_a_dead_server() {
    let geometry = cut(50_000_000, 22, REPAIR).unwrap();
    let mut one = deployment(geometry, Loss::Independent(0.01), 500);
    one.joining = Joining::Once;
    let alive = times(&one);
    let mut two = one.clone();
    two.servers = vec![Server { dies: 10.0, ..Server::new(0) }, Server { priority: 10, ..Server::new(1) }];
    let dead = times(&two);
    // A server is taken for dead after 5 s. The spare is in another phase: some of what it sends is there already.
    let more = dead.percentile(0.5) - alive.percentile(0.5);
    println!("{:.1} s, and {more:.1} s more if the server dies after 10 s", alive.percentile(0.5));
    assert!((4.9..12.0).contains(&more), "{more}");
    two.servers.truncate(1);
    assert!(times(&two).percentile(0.0).is_infinite(), "nobody else sends");
    two.servers[0].back = 15.0;
    let back = times(&two).percentile(0.5) - alive.percentile(0.5);
    assert!((5.0..5.2).contains(&back), "a pause of 5 s costs {back} s");
}

#[test]
fn everybody_finds_the_tier_that_fits() {
    let geometry = cut(100_000_000, 22, REPAIR).unwrap();
    let class = |rate| Class { name: String::new(), rate: Some(rate), queue: QUEUE, ..Class::default() };
    let mut separate = deployment(geometry, Loss::Independent(0.0), 300);
    separate.tiers = vec![1_000_000, 4_000_000, 10_000_000];
    separate.classes = [2_000_000, 6_000_000, 20_000_000].map(class).to_vec();
    let (join_latency, leave_latency) = (0.1, 1.0);
    let separate = Deployment { join_latency, leave_latency, ..separate };
    let stacked = Deployment {
        tiers: vec![1_000_000, 1_000_000, 2_000_000, 4_000_000],
        kind: Kind::Stacked,
        classes: [1_500_000, 3_000_000, 6_000_000, 20_000_000].map(class).to_vec(),
        ..separate.clone()
    };
    for (deployment, most) in [(separate, 1.10), (stacked, 1.08)] {
        let lives = run(&deployment).unwrap();
        let right = lives.iter().filter(|life| life.tier == life.class).count();
        let received: f64 = lives.iter().map(|life| f64::from(life.received)).sum();
        let received = received / lives.len() as f64 / geometry.symbols_needed() as f64;
        println!(
            "{:?}: {right} of {} on their tier; received / needed {received:.3}",
            deployment.kind,
            lives.len()
        );
        assert!(right * 100 >= lives.len() * 95, "{right} of {}", lives.len());
        assert!(lives.iter().all(|life| life.took.is_finite()));
        assert!(received < most, "{received}");
    }
}

#[test]
fn the_seed_decides_everything() {
    let geometry = cut(3_000_000, 20, REPAIR).unwrap();
    let mut deployment = deployment(geometry, Loss::Bursts { mean: 5.0, share: 0.1 }, 1_000);
    let took = |deployment: &Deployment| run(deployment).unwrap().iter().map(|l| l.took).collect::<Vec<_>>();
    let first = took(&deployment);
    assert_eq!(first, took(&deployment));
    deployment.seed += 1;
    assert_ne!(first, took(&deployment));
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    let geometry = cut(1_000_000, 20, REPAIR).unwrap();
    let fine = deployment(geometry, Loss::Independent(0.0), 1);
    let lost = |loss| vec![Class { loss, ..Class::default() }];
    let bad = [
        Deployment { tiers: vec![], ..fine.clone() },
        Deployment { tiers: vec![2_000_000, 1_000_000], ..fine.clone() },
        Deployment { tiers: vec![1_000_000, 4_000_000], kind: Kind::Stacked, ..fine.clone() },
        Deployment { classes: lost(Loss::Independent(0.9)), ..fine.clone() },
        Deployment { classes: lost(Loss::Periodic { period: 3, residue: 0 }), ..fine.clone() },
        Deployment { classes: lost(Loss::Bursts { mean: 1.0, share: 0.6 }), ..fine.clone() },
        Deployment { classes: vec![Class { share: 0.0, ..Class::default() }], ..fine.clone() },
        Deployment { servers: vec![Server { dies: 2.0, back: 1.0, ..Server::new(0) }], ..fine.clone() },
        Deployment { servers: vec![], ..fine },
    ];
    for deployment in bad {
        let error = run(&deployment).unwrap_err();
        assert!(error.contains(':') && !error.contains('\n'), "{error}");
    }
}
