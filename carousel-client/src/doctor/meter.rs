//! What one source sends to one group, from the numbers of its packets. Pure.
//!
//! The transfer's own count believes only packets that were proven genuine. A doctor hears too little for proofs, and
//! nobody is the worse for what it believes.

use carousel_proto::wire::Sequence;

/// A jump ahead of more than this is a server that began anew, not loss.
const JUMP: u32 = 1 << 16;
/// So many numbers are remembered, to tell packets that are late from those that come twice.
const MEMORY: u32 = 1 << 12;

/// Counts packets.
#[derive(Debug, Clone)]
pub struct Meter {
    highest: Option<u32>,
    /// Which of the last numbers have come; the bit of n is n mod [`MEMORY`].
    seen: Vec<u64>,
    /// Numbers from the first packet to the highest.
    pub expected: u64,
    /// Those of them that came.
    pub arrived: u64,
    /// Packets that had come before.
    pub duplicates: u64,
    /// Bytes of all of them, headers included.
    pub bytes: u64,
}

impl Meter {
    pub fn new() -> Self {
        Self {
            highest: None,
            seen: vec![0; MEMORY as usize / 64],
            expected: 0,
            arrived: 0,
            duplicates: 0,
            bytes: 0,
        }
    }

    /// A packet came that is so long.
    pub fn handle(&mut self, Sequence(number): Sequence, len: usize) {
        self.bytes += len as u64;
        let ahead = self.highest.map(|highest| number.wrapping_sub(highest));
        match ahead {
            Some(0) => self.duplicates += 1,
            Some(ahead @ 1..=JUMP) => {
                self.expected += u64::from(ahead);
                for skipped in 0..ahead.min(MEMORY) {
                    self.mark(number.wrapping_sub(skipped), false);
                }
                self.come(number);
            }
            // Late: its place was counted when a later one came, unless it was before the first.
            Some(ahead) if ahead.wrapping_neg() < MEMORY => {
                if u64::from(ahead.wrapping_neg()) >= self.expected {
                    return;
                }
                match self.mark(number, true) {
                    true => self.duplicates += 1,
                    false => self.arrived += 1,
                }
                return;
            }
            _ => {
                self.seen.fill(0);
                self.expected += 1;
                self.come(number);
            }
        }
        if ahead != Some(0) {
            self.highest = Some(number);
        }
    }

    /// Numbers that never came.
    pub fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.arrived)
    }

    /// The share of them.
    pub fn loss(&self) -> f64 {
        self.lost() as f64 / self.expected.max(1) as f64
    }

    fn come(&mut self, number: u32) {
        self.mark(number, true);
        self.arrived += 1;
    }

    /// Sets or clears a number's bit; whether it was set.
    fn mark(&mut self, number: u32, come: bool) -> bool {
        let (word, bit) = ((number % MEMORY / 64) as usize, 1u64 << (number % 64));
        let was = self.seen[word] & bit != 0;
        if come {
            self.seen[word] |= bit;
        } else {
            self.seen[word] &= !bit;
        }
        was
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(numbers: impl IntoIterator<Item = u32>) -> (u64, u64, u64) {
        let mut meter = Meter::new();
        numbers.into_iter().for_each(|n| meter.handle(Sequence(n), 1280));
        (meter.arrived, meter.lost(), meter.duplicates)
    }

    #[test]
    fn gaps_are_lost_and_what_is_late_is_not() {
        assert_eq!(count(0..1000), (1000, 0, 0));
        assert_eq!(count([1, 2, 5]), (3, 2, 0));
        assert_eq!(count([1, 5, 3, 2, 4]), (5, 0, 0));
        assert_eq!(count([u32::MAX - 1, 1, u32::MAX]), (3, 1, 0), "across the end of the numbers");
        assert_eq!(count([]), (0, 0, 0));
    }

    #[test]
    fn what_comes_twice_is_neither_lost_nor_gained() {
        assert_eq!(count([1, 1, 2, 2, 1, 3]), (3, 0, 3));
        assert_eq!(count((0..9000).flat_map(|n| [n, n])), (9000, 0, 9000));
    }

    #[test]
    fn every_tenth_of_many() {
        let (arrived, lost, _) = count((0..100_000u32).filter(|n| n % 10 != 3));
        assert_eq!((arrived, lost), (90_000, 10_000));
    }

    #[test]
    fn a_new_beginning_is_no_loss() {
        assert_eq!(count([1, 2, 1 << 30, (1 << 30) + 1]), (4, 0, 0));
        // Backwards, farther than anything is late.
        assert_eq!(count([1 << 20, (1 << 20) + 1, 5, 6, 7]), (5, 0, 0));
    }

    #[test]
    fn what_was_sent_before_the_first_packet_is_nobody_s_gain() {
        assert_eq!(count([10, 9, 8, 11]), (2, 0, 0));
    }

    #[test]
    fn a_long_gap_is_counted_whole() {
        assert_eq!(count([1, 10_001, 10_002, 10_000]), (4, 9_998, 0));
    }
}
