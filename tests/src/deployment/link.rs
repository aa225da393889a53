//! What a receiver's access line does to packets: the loss of the medium, and a queue before a line that is too slow.

use crate::sim::{Dice, Loss};

/// The loss of a medium, up to 64 packets at a time. One bit for each packet, the first one lowest; set: lost.
#[derive(Debug, Clone)]
pub(super) struct Medium {
    dice: Dice,
    kind: Kind,
    /// Bits that were drawn, and how many of them are not used yet.
    drawn: u64,
    left: u32,
}

#[derive(Debug, Clone)]
enum Kind {
    None,
    /// The chance as a fraction of 2^64.
    Independent(u64),
    /// Chances that a good and a bad spell end, whether this one is bad, and how many packets of it are left.
    Bursts {
        ends: [f64; 2],
        bad: bool,
        left: u64,
    },
}

impl Medium {
    pub fn new(loss: Loss, dice: Dice) -> Self {
        let mut medium = Self { dice, kind: Kind::None, drawn: 0, left: 0 };
        medium.kind = match loss {
            Loss::Independent(p) if p > 0.0 => Kind::Independent((p * 2f64.powi(64)) as u64),
            Loss::Bursts { mean, share } if share > 0.0 => {
                let ends = [share / (1.0 - share) / mean, 1.0 / mean];
                let bad = medium.dice.hits(share);
                let left = spell(&mut medium.dice, ends[usize::from(bad)]);
                Kind::Bursts { ends, bad, left }
            }
            Loss::Periodic { .. } => unreachable!("a deployment loses at random: independent or in bursts"),
            _ => Kind::None,
        };
        medium
    }

    /// Which of the next `count` packets are lost; at most 8.
    #[inline]
    pub fn lost(&mut self, count: u32) -> u32 {
        if matches!(self.kind, Kind::None) {
            return 0;
        }
        let (mut bits, mut had) = (self.drawn as u32, self.left);
        if had < count {
            let kept = had;
            self.draw();
            bits = bits & ((1 << kept) - 1) | (self.drawn as u32) << kept;
            had = 64;
            self.drawn >>= count - kept;
            self.left = had - (count - kept);
        } else {
            self.drawn >>= count;
            self.left = had - count;
        }
        bits & ((1 << count) - 1)
    }

    fn draw(&mut self) {
        self.drawn = match &mut self.kind {
            Kind::None => 0,
            // In each of 64 lanes a random binary fraction is compared with the chance, digit by digit, until all
            // have been decided: after some eight digits.
            Kind::Independent(chance) => {
                let (mut below, mut open, mut digits) = (0, u64::MAX, *chance);
                while open != 0 && digits != 0 {
                    let drawn = self.dice.draw();
                    if digits >> 63 == 1 {
                        below |= open & !drawn;
                        open &= drawn;
                    } else {
                        open &= !drawn;
                    }
                    digits <<= 1;
                }
                below
            }
            Kind::Bursts { ends, bad, left } => {
                let (mut bits, mut filled) = (0u64, 0);
                while filled < 64 {
                    let take = (*left).min(64 - filled);
                    if *bad {
                        bits |= (u64::MAX >> (64 - take)) << filled;
                    }
                    filled += take;
                    *left -= take;
                    if *left == 0 {
                        *bad = !*bad;
                        *left = spell(&mut self.dice, ends[usize::from(*bad)]);
                    }
                }
                bits
            }
        };
        self.left = 64;
    }
}

/// Packets of a spell that each of them ends with this chance: 1 at least.
fn spell(dice: &mut Dice, end: f64) -> u64 {
    let uniform = (dice.draw() >> 11) as f64 * 2f64.powi(-53);
    1 + ((1.0 - uniform).ln() / (1.0 - end).ln()) as u64
}

/// A line and the queue before it, which drops what does not fit. Times are ns, rates bits per ns.
#[derive(Debug, Clone)]
pub(super) struct Line {
    rate: f64,
    room: f64,
    filled: f64,
    at: f64,
    packet: f64,
}

impl Line {
    /// A line of `rate` bit/s with a queue of `queue` s, for packets of `packet` bits.
    pub fn new(rate: f64, queue: f64, packet: f64) -> Self {
        Self { rate: rate / 1e9, room: (rate * queue).max(2.0 * packet), filled: 0.0, at: 0.0, packet }
    }

    /// Whether a demand of so many bit/s, or what waits from before, can make it drop packets after `now`.
    pub fn is_busy(&self, now: f64, demand: f64) -> bool {
        demand > self.rate * 1e9 || self.filled > (now - self.at) * self.rate
    }

    /// Which of `count` packets, the first at `at` and `gap` from one to the next, find the queue full.
    pub fn lost(&mut self, at: f64, gap: f64, count: u32) -> u32 {
        let mut lost = 0;
        for n in 0..count {
            let at = at + f64::from(n) * gap;
            // Runs of several channels overlap a little: time does not go back for that.
            self.filled = (self.filled - (at - self.at).max(0.0) * self.rate).max(0.0);
            self.at = self.at.max(at);
            if self.filled + self.packet <= self.room {
                self.filled += self.packet;
            } else {
                lost |= 1 << n;
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lost share, and how many losses follow on a loss.
    fn shares(loss: Loss) -> (f64, f64) {
        let mut medium = Medium::new(loss, Dice::new(1));
        let (mut lost, mut follow, mut before) = (0, 0, 0);
        const PACKETS: u32 = 4_000_000;
        let mut asked = 0;
        while asked < PACKETS {
            let count = 1 + asked % 8;
            let bits = medium.lost(count);
            for n in 0..count {
                let bit = bits >> n & 1;
                lost += bit;
                follow += bit & before;
                before = bit;
            }
            asked += count;
        }
        (f64::from(lost) / f64::from(asked), f64::from(follow) / f64::from(lost.max(1)))
    }

    #[test]
    fn a_medium_loses_what_it_is_told_to() {
        for p in [0.0, 0.001, 0.02, 0.4] {
            let (lost, follow) = shares(Loss::Independent(p));
            assert!((lost - p).abs() <= 0.01 * p + 5e-5 && (follow - p).abs() < 0.01, "{p}: {lost} {follow}");
        }
        for (mean, share) in [(5.0, 0.02), (20.0, 0.10)] {
            let (lost, follow) = shares(Loss::Bursts { mean, share });
            assert!((lost - share).abs() < 0.03 * share, "{share}: {lost}");
            assert!((follow - (1.0 - 1.0 / mean)).abs() < 0.01, "{mean}: {follow}");
        }
    }

    #[test]
    fn a_line_passes_its_rate() {
        let mut line = Line::new(3e6, 0.1, 10_240.0);
        let gap = 10_240.0 / 4e6 * 1e9; // a third too much
        let passed =
            (0..1_000).map(|n| 8 - line.lost(f64::from(n) * 8.0 * gap, gap, 8).count_ones()).sum::<u32>();
        assert!(passed.abs_diff(6_000 + 29) <= 2, "{passed}: three quarters and what stands in the queue");
    }
}
