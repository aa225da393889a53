//! What the ladder of tiers promises: a receiver of levels 0 to l gets 2^l times the base rate, and next to nothing
//! twice. `cargo test --release --test ladder -- --nocapture` prints the figures.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_proto::pacer::{Pacer, Step};
use carousel_proto::schedule::{Item, Position, phase};
use carousel_tests::sim::{Dice, Ladder, Run, SYMBOL_LEN, cut};

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
/// Binary logarithm of the default block length.
const BLOCK: u8 = 22;
/// Repair symbols by default, in per cent of the source symbols.
const REPAIR: u32 = 105;
const SEEDS: u64 = 20;

fn ladder(size: u64) -> Ladder {
    Ladder::new(cut(size, BLOCK, REPAIR).unwrap())
}

/// Ticks that a receiver of the levels up to `level` needs at least.
fn ideal(ladder: &Ladder, level: usize) -> u64 {
    (ladder.geometry().symbols_needed() * ladder.ticks(1)) >> level
}

fn mean_and_worst(runs: &[Run]) -> (f64, f64) {
    assert!(runs.iter().all(|run| run.complete), "never ends");
    let mean = runs.iter().map(Run::reception).sum::<f64>() / runs.len() as f64;
    (mean, runs.iter().map(Run::reception).fold(0.0, f64::max))
}

/// A moment in the first few cycles.
fn moment(ladder: &Ladder, dice: &mut Dice) -> u64 {
    dice.below(ladder.levels()[0].cycle() * ladder.ticks(0) * 5)
}

#[test]
fn no_level_gets_anything_twice() {
    let mut over = Vec::new();
    println!("\n| object | servers | levels 0 | 0 to 1 | 0 to 2 | 0 to 3 (received / needed, worst) |");
    println!("|---|---:|---:|---:|---:|---:|");
    for (size, most) in [(100 * MIB, 4), (16 * MIB + 1000, 4), (4 * MIB, 2), (MIB, 1), (256 * KIB, 1)] {
        let ladder = ladder(size);
        for servers in 1..=most {
            let mut row = format!("| {} KiB | {servers} |", size / KIB);
            for level in 0..4 {
                let mut dice = Dice::new(size + level as u64);
                let patience = ideal(&ladder, level) * 5;
                let runs: Vec<_> = (0..SEEDS)
                    .map(|_| ladder.climb(servers, &vec![moment(&ladder, &mut dice); level + 1], patience))
                    .collect();
                let (mean, worst) = mean_and_worst(&runs);
                row += &format!(" {mean:.4}, {worst:.4} |");
                // A small object has a larger share of manifests; phases of four servers are not evenly apart.
                let bar = match servers {
                    1 if size >= MIB => 1.02,
                    1..=3 => 1.05,
                    _ => 1.07,
                };
                if mean > bar {
                    over.push((size, servers, level, mean));
                }
            }
            println!("{row}");
        }
    }
    assert!(over.is_empty(), "(size, servers, level, received / needed): {over:?}");
}

/// When a receiver that begins at `start` joins each level.
#[derive(Debug, Clone, Copy)]
enum Climb {
    /// So many seconds after each other, at a base rate of 1 Mbit/s: what the choice of the tier does.
    Seconds(u64),
    /// When random shares of the object have come: three shares, sorted. A quarter of it comes on level 0.
    Shares,
}

impl Climb {
    fn joins(self, ladder: &Ladder, start: u64, dice: &mut Dice) -> Vec<u64> {
        match self {
            Self::Seconds(s) => {
                let step = s * 1_000_000 / (8 * (92 + u64::from(SYMBOL_LEN))) * ladder.ticks(0);
                (0..4).map(|level| start + level * step).collect()
            }
            Self::Shares => {
                let mut shares = [0, 1, 2].map(|_| dice.below(1 << 32));
                shares.sort();
                let (mut joins, mut before) = (vec![start], 0);
                for (level, share) in shares.into_iter().enumerate() {
                    let span = (u128::from(ideal(ladder, level)) * u128::from(share - before)) >> 32;
                    before = share;
                    joins.push(joins[level] + span as u64);
                }
                joins
            }
        }
    }
}

#[test]
fn climbing_costs_little() {
    println!("\n| object | from level 0 to 3 | received / needed | worst |\n|---|---|---:|---:|");
    let mut over = Vec::new();
    for size in [100 * MIB, 16 * MIB + 1000] {
        let ladder = ladder(size);
        for (climb, seeds) in [(Climb::Seconds(8), SEEDS), (Climb::Seconds(12), SEEDS), (Climb::Shares, 200)]
        {
            let mut dice = Dice::new(size);
            let runs: Vec<_> = (0..seeds)
                .map(|_| {
                    let start = moment(&ladder, &mut dice);
                    ladder.climb(1, &climb.joins(&ladder, start, &mut dice), ideal(&ladder, 0) * 5)
                })
                .collect();
            let (mean, worst) = mean_and_worst(&runs);
            println!("| {} KiB | {climb:?} | {mean:.4} | {worst:.4} |", size / KIB);
            if mean > 1.08 {
                over.push((size, climb, mean));
            }
        }
    }
    assert!(over.is_empty(), "{over:?}");
}

/// Pacers of rates in the ratio of the ladder, asked at the same moment of the same clock, are in the same round, at
/// the same part of it, and will be for ever.
#[test]
fn levels_keep_step_with_each_other() {
    const AGE: u64 = 3_000_000_000_000_000_000; // 95 years
    for size in [100 * MIB, 16 * MIB + 1000, 300_000] {
        let ladder = ladder(size);
        let mut dice = Dice::new(size);
        let (mut most, mut others, mut asked) = (0, 0, 0);
        for _ in 0..20_000 {
            let (now, base, server) = (dice.below(AGE), 64_000 + dice.below(1 << 22), dice.below(4) as u32);
            let items: Vec<_> = ladder
                .levels()
                .iter()
                .zip([1, 1, 2, 4])
                .map(|(order, times)| {
                    let mut pacer = Pacer::new(base * times, 92 + usize::from(SYMBOL_LEN), now);
                    let mut moment = now;
                    let position = loop {
                        match pacer.poll(moment) {
                            Step::Wait(until) => moment = until,
                            Step::Send(first, _) => break first.0,
                        }
                    };
                    order.item(Position(position + phase(server, order.cycle())))
                })
                .collect();
            let Item::Record(of_base, at) = items[0] else { continue };
            for (level, item) in items.iter().enumerate().skip(1) {
                let Item::Record(coset, index) = item else { continue };
                asked += 1;
                if (of_base.0 ^ coset.0) >> (level - 1) == 1 {
                    most = most.max(at.0.abs_diff(index.0));
                } else {
                    others += 1; // at the edge of a round
                }
            }
        }
        println!("{size} bytes: at most {most} records apart; in another round {others} times of {asked}");
        assert!(most <= 40 && others * 50 <= asked);
    }
}
