//! How long an object takes, and that it arrives exact, in virtual time: `carousel_tests::sim` does the sending, the
//! losing and the receiving; here are the bars. `cargo test --release --test sim -- --nocapture` prints the figures.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_proto::geometry::{Geometry, Sbn};
use carousel_proto::receiver::ChannelId;
use carousel_tests::sim::{
    Bundle, Carousel, Client, Dice, Lies, Loss, Run, SYMBOL_LEN, Transfer, Weather, count, cut, transfer,
};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

const MIB: u64 = 1 << 20;
/// Binary logarithm of the default block length.
const BLOCK: u8 = 22;
/// Repair symbols by default, in per cent of the source symbols.
const REPAIR: u32 = 105;
/// Cycles after which a receiver counts as waiting for ever.
const PATIENCE: u64 = 60;

fn carousel(size: u64) -> Carousel {
    Carousel::new(cut(size, BLOCK, REPAIR).unwrap())
}

/// One run for each seed, each joining at a random position of the first few cycles.
fn runs(carousel: &Carousel, loss: Loss, servers: u32, seeds: u64) -> Vec<Run> {
    let mut dice = Dice::new(seeds);
    let found: Vec<_> = (0..seeds)
        .map(|seed| count(carousel, loss, servers, dice.below(carousel.positions() * 5), seed, PATIENCE))
        .collect();
    assert!(found.iter().all(|run| run.complete), "{loss:?} never ends");
    found
}

fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().sum::<f64>() / values.count() as f64
}

fn worst(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max)
}

/// Maps in parallel, in order: the runs are independent of each other.
fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(items.len());
    let mut found: Vec<(usize, R)> = std::thread::scope(|scope| {
        let worker = || {
            let mut mine = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(at) else { return mine };
                mine.push((at, work(item)));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, result)| result).collect()
}

/// Hash pages, manifests and block pages over symbols, in one cycle.
fn overhead(carousel: &Carousel) -> f64 {
    let geometry = carousel.geometry();
    let symbols: u64 = (0..geometry.blocks()).map(|sbn| u64::from(geometry.symbols(Sbn(sbn)))).sum();
    carousel.positions() as f64 / symbols as f64 - 1.0
}

fn independent_loss(name: &str, size: u64, seeds: u64) {
    let (carousel, shares) = (carousel(size), [0.0, 0.01, 0.05, 0.10, 0.20, 0.40, 0.50]);
    let overhead = overhead(&carousel);
    let found = each(&shares, |share| runs(&carousel, Loss::Independent(*share), 1, seeds));
    println!("\n{name}, {seeds} joins, pages and manifests {overhead:.4}\n");
    println!(
        "| loss | time / ideal | worst | received / needed | worst | block spread | duplicate | unverified |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    let mut over = Vec::new();
    for (share, runs) in shares.iter().zip(found) {
        let (time, reception) = (mean(runs.iter().map(Run::time)), mean(runs.iter().map(Run::reception)));
        let of_needed = |of: fn(&Run) -> u64| mean(runs.iter().map(|run| of(run) as f64 / run.needed as f64));
        println!(
            "| {:.0} % | {time:.4} | {:.4} | {reception:.4} | {:.4} | {:.4} | {:.4} | {:.4} |",
            share * 100.0,
            worst(runs.iter().map(Run::time)),
            worst(runs.iter().map(Run::reception)),
            mean(runs.iter().map(Run::spread)),
            of_needed(|run| run.duplicate),
            of_needed(|run| run.unverified),
        );
        let bar = match share {
            s if *s <= 0.10 => 1.03,
            s if *s <= 0.20 => 1.05,
            _ => 1.07,
        };
        if time > bar {
            over.push(format!("{share}: time {time:.4} > {bar}"));
        }
        // Beyond that the time bar rules: with no packet sent twice, the two figures are the same.
        if *share <= 0.10 && reception > 1.02 + overhead {
            over.push(format!("{share}: reception {reception:.4} > 1.02 + {overhead:.4}"));
        }
    }
    assert!(over.is_empty(), "{name}: {over:?}");
}

#[test]
fn a_gibibyte_at_any_loss() {
    independent_loss("1 GiB", 1 << 30, 20);
}

#[test]
fn a_hundred_mebibytes_at_any_loss() {
    independent_loss("100 MiB", 100 * MIB, 40);
}

#[test]
fn periodic_loss_never_hits_the_same_block() {
    let mut over = Vec::new();
    println!("\n| blocks | runs | mean time / ideal | worst | at period |\n|---:|---:|---:|---:|---:|");
    for (blocks, joins) in [(1, 40), (8, 20), (25, 8), (64, 4), (100, 4)] {
        let carousel = carousel(4 * MIB * blocks);
        let periods: Vec<u64> = (2..=200).collect();
        let found = each(&periods, |period| {
            let mut dice = Dice::new(blocks << 32 | period);
            let run = |_| {
                let residue = dice.below(*period);
                let join = dice.below(carousel.positions() * 5);
                let run = count(&carousel, Loss::Periodic { period: *period, residue }, 1, join, 0, PATIENCE);
                assert!(run.complete, "{blocks} blocks, period {period}, residue {residue}: never ends");
                (run.time(), *period, residue, join)
            };
            (0..joins).map(run).collect::<Vec<_>>()
        });
        let found = found.concat();
        let worst = found.iter().copied().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        let mean = mean(found.iter().map(|run| run.0));
        println!("| {blocks} | {} | {mean:.4} | {:.4} | {} |", found.len(), worst.0, worst.1);
        over.extend(found.into_iter().filter(|run| run.0 > 1.06).map(|run| (blocks, run)));
    }
    assert!(over.is_empty(), "(blocks, (time, period, residue, join)): {over:?}");
}

#[test]
fn bursts_of_loss() {
    let carousel = carousel(100 * MIB);
    let bursts: Vec<_> = [5.0, 50.0]
        .iter()
        .flat_map(|mean| [0.01, 0.05, 0.10, 0.20].map(|share| Loss::Bursts { mean: *mean, share }))
        .collect();
    let found = each(&bursts, |loss| {
        let times: Vec<f64> = runs(&carousel, *loss, 1, 20).iter().map(Run::time).collect();
        (mean(times.iter().copied()), worst(times.into_iter()))
    });
    println!("\n| bursts, 100 MiB | mean time / ideal of 20 | worst |\n|---|---:|---:|");
    bursts
        .iter()
        .zip(&found)
        .for_each(|(loss, (mean, worst))| println!("| {loss:?} | {mean:.4} | {worst:.4} |"));
    assert!(found.iter().all(|(mean, _)| *mean <= 1.06), "{found:?}");
}

#[test]
fn a_short_last_block_neither_starves_nor_takes_all() {
    let mut over = Vec::new();
    println!("\n| object | loss | mean time / ideal of 300 | worst |\n|---|---:|---:|---:|");
    for rest in [1, 100_000, 2 * MIB] {
        let carousel = carousel(4 * MIB + rest);
        for share in [0.0, 0.01, 0.05, 0.10, 0.20] {
            let runs = runs(&carousel, Loss::Independent(share), 1, 300);
            let time = mean(runs.iter().map(Run::time));
            let worst = worst(runs.iter().map(Run::time));
            println!("| 4 MiB + {rest} | {:.0} % | {time:.4} | {worst:.4} |", share * 100.0);
            if time > 1.05 {
                over.push((rest, share, time));
            }
        }
    }
    assert!(over.is_empty(), "{over:?}");
}

/// Up to 20 %: where a receiver of two servers needs more than 2/3 of a cycle, their thirds overlap.
#[test]
fn servers_share_the_work() {
    let mut over = Vec::new();
    println!("\n| object | loss | 2 servers | 3 | 4 (time / one server's) |\n|---|---:|---:|---:|---:|");
    for size in [8 * MIB, 100 * MIB] {
        let carousel = carousel(size);
        for share in [0.0, 0.01, 0.10, 0.20] {
            let times = each(&[1, 2, 3, 4], |servers| {
                mean(
                    runs(&carousel, Loss::Independent(share), *servers, 20)
                        .iter()
                        .map(|r| r.positions as f64),
                )
            });
            let [two, three, four] = [1, 2, 3].map(|more| times[more] / times[0]);
            let mib = size / MIB;
            println!("| {mib} MiB | {:.0} % | {two:.3} | {three:.3} | {four:.3} |", share * 100.0);
            if two > 0.53 || three > 0.36 || four > 0.29 {
                over.push((mib, share, two, three, four));
            }
        }
    }
    assert!(over.is_empty(), "{over:?}");
}

#[test]
fn a_plain_carousel_completes() {
    let uncoded = Carousel::new(cut(100 * MIB, BLOCK, 0).unwrap());
    println!("\n| plain carousel, 100 MiB | time / ideal |\n|---|---:|");
    for share in [0.0, 0.01, 0.10, 0.50] {
        let time = mean(runs(&uncoded, Loss::Independent(share), 1, 3).iter().map(Run::time));
        println!("| {:.0} % | {time:.2} |", share * 100.0);
    }
    for blocks in [1, 8, 25] {
        let uncoded = Carousel::new(cut(4 * MIB * blocks, BLOCK, 0).unwrap());
        (2..=200).for_each(|period| drop(runs(&uncoded, Loss::Periodic { period, residue: 1 }, 1, 1)));
    }
}

/// A link that does nothing but lose.
fn fair(loss: Loss) -> Weather {
    Weather { loss, twice: 0.0, delay: 0, flip: 0.0, forger: None }
}

/// A real object of this size through this weather; it must arrive exact.
fn arrives(geometry: Geometry, weather: &Weather, seed: u64, patience: u64) -> Transfer {
    let mut dice = Dice::new(seed);
    let mut object = vec![0; geometry.size() as usize];
    dice.fill(&mut object);
    let bundle = Bundle::pack(&object, geometry);
    let join = dice.below(bundle.positions() * 3);
    let found = transfer(&bundle, weather, join, seed, patience);
    let what = format!("{} bytes, {weather:?}, seed {seed}", geometry.size());
    let arrived =
        found.object.as_deref().unwrap_or_else(|| panic!("{what}: never ends: {:?}", found.counters));
    assert!(arrived == object, "{what}: other bytes arrived");
    found
}

#[test]
fn every_size_arrives_exact() {
    let (t, block) = (u64::from(SYMBOL_LEN), 65_536);
    let sizes =
        [0, 1, t - 1, t, t + 1, block - 1, block, block + 1, 3 * block - t, 20 * block + 7, 3 * MIB + 5];
    each(&sizes, |size| {
        for (seed, share) in (*size..).zip([0.0, 0.10, 0.50]) {
            for repair in [0, 30, 100] {
                arrives(cut(*size, 16, repair).unwrap(), &fair(Loss::Independent(share)), seed, 1000);
            }
        }
    });
}

#[test]
fn real_packets_take_as_long_as_counted_ones() {
    let geometry = cut(9 * MIB + 1234, 20, REPAIR).unwrap();
    let carousel = Carousel::new(geometry);
    for loss in [
        Loss::Independent(0.0),
        Loss::Independent(0.10),
        Loss::Independent(0.40),
        Loss::Periodic { period: 13, residue: 3 },
        Loss::Bursts { mean: 50.0, share: 0.10 },
    ] {
        let found = arrives(geometry, &fair(loss), 7, PATIENCE);
        let mut dice = Dice::new(7);
        let mut object = vec![0; geometry.size() as usize];
        dice.fill(&mut object); // the same join needs the same luck
        let counted = count(&carousel, loss, 1, dice.below(carousel.positions() * 3), 7, PATIENCE);
        println!("{loss:?}: real {:.4}, counted {:.4}", found.time, counted.time());
        // The real decoder takes 40 packets, of some 8,000.
        assert!((found.time - counted.time()).abs() < 0.01, "{loss:?}: {} {}", found.time, counted.time());
        assert_eq!((found.counters.rejected, found.counters.decode_failed), (0, 0));
        let lost = found.channel.lost as f64 / (found.channel.lost + found.channel.received) as f64;
        assert!((lost - loss.share()).abs() < 0.03, "{loss:?} was measured as {lost:.3}");
    }
}

#[test]
fn duplicates_reordering_and_damage_do_no_harm() {
    let geometry = cut(5 * MIB + 77, 20, REPAIR).unwrap();
    let weathers = [(0.2, 0, 0.0), (0.0, 500, 0.0), (0.05, 5_000, 0.0), (0.0, 0, 0.02), (0.1, 300, 0.02)];
    println!("\n| twice | late by up to | bit wrong | time / ideal | rejected | failed decodings |");
    println!("|---:|---:|---:|---:|---:|---:|");
    each(&weathers, |(twice, delay, flip)| {
        let loss = Loss::Independent(0.05);
        let weather = Weather { loss, twice: *twice, delay: *delay, flip: *flip, forger: None };
        let found = arrives(geometry, &weather, 11, PATIENCE);
        let Transfer { time, counters, .. } = found;
        let (rejected, failed) = (counters.rejected, counters.decode_failed);
        println!("| {twice} | {delay} | {flip} | {time:.3} | {rejected} | {failed} |");
        assert!(time <= if *flip > 0.0 || *delay > 500 { 2.0 } else { 1.12 }, "{weather:?}: {time}");
        assert!(failed <= 4 * u64::from(geometry.blocks()));
        assert!(*flip > 0.0 || (rejected, failed) == (0, 0), "{weather:?}: honest packets were rejected");
    });
}

#[test]
fn a_forger_costs_time_and_nothing_else() {
    let geometry = cut(6 * MIB + 77, 20, REPAIR).unwrap();
    let attacks: Vec<_> = [Lies::Symbols, Lies::Bytes, Lies::Manifests]
        .iter()
        .flat_map(|lies| [0.0, 0.05, 0.20].map(|share| (*lies, share)))
        .flat_map(|(lies, share)| [1, 2].map(|seed| (lies, share, seed)))
        .collect();
    println!("\n| forger, 5 to 1 | loss | time / ideal | rejected | not judged | failed decodings |");
    println!("|---|---:|---:|---:|---:|---:|");
    each(&attacks, |(lies, share, seed)| {
        let weather = Weather { forger: Some(*lies), ..fair(Loss::Independent(*share)) };
        let found = arrives(geometry, &weather, *seed, PATIENCE);
        let Transfer { time, counters, .. } = found;
        let (rejected, unjudged, failed) = (counters.rejected, counters.unjudged, counters.decode_failed);
        println!("| {lies:?} | {share} | {time:.3} | {rejected} | {unjudged} | {failed} |");
        assert!(time <= 2.0, "{weather:?}: {time}");
        assert!(rejected > 100, "{weather:?}: {counters:?}");
        // Each failure of a block wants a quarter of it more in proven symbols before the next attempt.
        assert!(failed <= 4 * u64::from(geometry.blocks()), "{weather:?}: {failed}");
    });
}

/// The first manifest to come is a lie with the right digest: the client must not settle down to wait for an
/// object that nobody sends.
#[test]
fn a_damaged_manifest_blinds_nobody() {
    let geometry = cut(100_000, 16, REPAIR).unwrap();
    let object = vec![7; 100_000];
    let bundle = Bundle::pack(&object, geometry);
    let blind: Vec<usize> = (0..bundle.manifest(0).len())
        .filter(|at| {
            let mut lie = bundle.manifest(0);
            lie[*at] ^= 1;
            let mut client = Client::new(bundle.trust());
            client.handle_packet(0, ChannelId(0), &lie);
            let packets = (0..3 * bundle.positions()).map(|position| bundle.packet(position));
            packets.for_each(|packet| client.handle_packet(1, ChannelId(0), &packet));
            client.object() != Some(&object)
        })
        .collect();
    assert!(blind.is_empty(), "one wrong bit in byte … of the first manifest: {blind:?}");
}
