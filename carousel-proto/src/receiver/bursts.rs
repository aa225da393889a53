//! How many packets are lost one after the other: what tells a bad radio link from a full queue.

use crate::textfile::Histogram;

/// The longest burst of each class but the last, which has no end.
const BOUNDS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// Bursts of losses by their length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bursts {
    counts: [u64; BOUNDS.len() + 1],
    packets: u64,
}

impl Bursts {
    /// So many packets were lost in a row; 0 is no burst.
    pub(super) fn note(&mut self, length: u64) {
        if length > 0 {
            self.counts[BOUNDS.partition_point(|bound| *bound < length as f64)] += 1;
            self.packets += length;
        }
    }

    /// All bursts of both.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.packets += other.packets;
    }

    /// Packets lost in all of them.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Their lengths in packets.
    pub fn histogram(&self) -> Histogram<'_> {
        Histogram { bounds: &BOUNDS, counts: &self.counts, sum: self.packets as f64 }
    }
}
