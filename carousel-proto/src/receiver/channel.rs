//! Loss on one channel, from its sequence numbers. They are outside authentication, so only a packet that was
//! proven genuine moves the count on; the others fill gaps, late ones too, and no more than there are.
//!
//! How long bursts of losses are is known once nothing can come late any more: it is counted as numbers leave the ring.

use super::bursts::Bursts;
use crate::wire::Sequence;

/// A jump ahead of more than this is a restarted server, not loss.
const JUMP: u32 = 1 << 16;
/// Packets that are late by at most this were reordered; so many are remembered ahead of the count, too.
const REORDER: u32 = 1 << 12;
/// Bits of the ring that holds both.
const RING: u32 = 2 * REORDER;

/// What one channel brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelCount {
    /// Packets that fit our bundle, proven genuine or not.
    pub received: u64,
    /// Packets that never came.
    pub lost: u64,
}

#[derive(Debug, Default)]
pub(super) struct Channel {
    /// The highest number that was proven genuine.
    last: Option<u32>,
    /// Which of the numbers around `last` have come; the bit of number n is n mod [`RING`].
    seen: Vec<u64>,
    count: ChannelCount,
    bursts: Bursts,
    /// Numbers lost in a row, up to the one that left the ring last.
    burst: u64,
}

impl Channel {
    pub(super) fn handle(&mut self, sequence: Sequence, authentic: bool) {
        self.count.received += 1;
        let Sequence(number) = sequence;
        let Some(last) = self.last else {
            if authentic {
                self.restart(number);
            }
            return;
        };
        let ahead = number.wrapping_sub(last);
        if last.wrapping_sub(number) < REORDER {
            self.count.lost -= u64::from(self.mark(number)).min(self.count.lost); // late, not lost
        } else if authentic && ahead <= JUMP {
            self.advance(last, ahead);
        } else if authentic {
            self.restart(number);
        } else if ahead <= REORDER {
            self.mark(number);
        }
    }

    /// The channel was joined, perhaps again: what was sent meanwhile is not lost.
    pub(super) fn handle_join(&mut self) {
        self.settle_all();
    }

    /// Nothing comes any more, not even late.
    pub(super) fn handle_end(&mut self) {
        self.settle_all();
    }

    /// The bursts that are over for good. After [`Channel::handle_end`] they have every packet that was lost.
    pub(super) fn bursts(&self) -> &Bursts {
        &self.bursts
    }

    pub(super) fn count(&self) -> ChannelCount {
        self.count
    }

    /// Begins to count at `number`. What came before it is nobody's loss.
    fn restart(&mut self, number: u32) {
        self.settle_all();
        self.last = Some(number);
        self.seen = vec![u64::MAX; RING as usize / 64];
        (1..=REORDER).for_each(|ahead| self.clear(number.wrapping_add(ahead)));
    }

    /// Moves on by `step` numbers, of which the highest has come; the others are lost unless they have, until they do.
    fn advance(&mut self, last: u32, step: u32) {
        for number in (1..=step).map(|n| last.wrapping_add(n)) {
            let came = number == last.wrapping_add(step) || self.is_marked(number);
            self.count.lost += u64::from(!came);
            self.settle(number.wrapping_sub(REORDER)); // which has the same bit as the next line's
            self.clear(number.wrapping_add(REORDER));
        }
        self.last = Some(last.wrapping_add(step));
        self.mark(last.wrapping_add(step));
    }

    /// A number is too old to come late.
    fn settle(&mut self, number: u32) {
        if self.is_marked(number) {
            self.bursts.note(std::mem::take(&mut self.burst));
        } else {
            self.burst += 1;
        }
    }

    /// So are all of them. The count begins anew with the next number.
    fn settle_all(&mut self) {
        if let Some(last) = self.last.take() {
            (0..REORDER).rev().for_each(|age| self.settle(last.wrapping_sub(age)));
        }
        self.bursts.note(std::mem::take(&mut self.burst));
    }

    /// Notes that a number has come; whether it had not before.
    fn mark(&mut self, number: u32) -> bool {
        let (word, bit) = place(number);
        let new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        new
    }

    fn is_marked(&self, number: u32) -> bool {
        let (word, bit) = place(number);
        self.seen[word] & bit != 0
    }

    fn clear(&mut self, number: u32) {
        let (word, bit) = place(number);
        self.seen[word] &= !bit;
    }
}

fn place(number: u32) -> (usize, u64) {
    ((number % RING / 64) as usize, 1 << (number % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(steps: &[(u32, bool)]) -> u64 {
        let mut channel = Channel::default();
        steps.iter().for_each(|(s, authentic)| channel.handle(Sequence(*s), *authentic));
        channel.count().lost
    }

    #[test]
    fn gaps_are_losses() {
        assert_eq!(lost(&[(1, true), (2, true), (5, true)]), 2);
        assert_eq!(lost(&[(u32::MAX, true), (0, true), (2, true)]), 1);
        assert_eq!(lost(&[(1, true), (2, false), (3, true)]), 0);
        assert_eq!(lost(&[(1, true), (3, true), (2, true), (4, true)]), 0);
    }

    #[test]
    fn what_comes_late_is_not_lost_proven_or_not() {
        assert_eq!(lost(&[(1, true), (9, true), (4, false), (6, true), (4, false)]), 5);
        // Everything comes, each up to 200 places late, every third cannot be proven.
        let mut order: Vec<u32> = (0..20_000).collect();
        order.sort_by_key(|n| n + n.wrapping_mul(2_654_435_761) % 200);
        let steps: Vec<_> = order.iter().map(|n| (n.wrapping_sub(5_000), n % 3 > 0)).collect();
        assert!(lost(&steps) <= 3, "{}", lost(&steps)); // the last ones may be ahead of the count
    }

    #[test]
    fn a_gap_longer_than_memory_is_counted_once() {
        assert_eq!(lost(&[(1, true), (10_001, true), (10_002, false), (10_003, true)]), 9_999);
    }

    #[test]
    fn a_restarted_server_is_no_loss() {
        assert_eq!(lost(&[(1, true), (1 << 20, true), (2, true), (3, true)]), 0);
    }

    #[test]
    fn what_was_sent_while_the_channel_was_left_is_not_lost() {
        let mut channel = Channel::default();
        channel.handle(Sequence(1), true);
        channel.handle_join();
        [9_000, 9_002].into_iter().for_each(|s| channel.handle(Sequence(s), true));
        assert_eq!(channel.count(), ChannelCount { received: 3, lost: 1 });
    }

    /// Bursts of each class when nothing comes any more, which are all that was lost.
    fn bursts(steps: impl IntoIterator<Item = u32>) -> Vec<u64> {
        let mut channel = Channel::default();
        steps.into_iter().for_each(|s| channel.handle(Sequence(s), true));
        channel.handle_end();
        assert_eq!(channel.bursts().packets(), channel.count().lost);
        let last = channel.bursts().histogram().counts.iter().rposition(|count| *count > 0);
        channel.bursts().histogram().counts[..last.map_or(0, |last| last + 1)].to_vec()
    }

    #[test]
    fn bursts_have_their_lengths() {
        assert_eq!(bursts([]), [0; 0]);
        assert_eq!(bursts(1..20_000), [0; 0]);
        // 1, 2, 3 and 5 numbers, round the end of the numbers.
        assert_eq!(bursts([u32::MAX - 1, 0, 3, 7, 13]), [1, 1, 2]);
        // 1000 and 1001 of them, then longer than memory, then a restarted server.
        assert_eq!(bursts([0, 1_001, 2_003, 12_003, 1 << 20]), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        // Every second one, for longer than memory.
        assert_eq!(bursts((0..10_000).map(|n| n * 2)), [9_999]);
        // The last of a burst is the first of the ring.
        let edge = (0..5_000).filter(|n| !(4_090..4_110).contains(n));
        assert_eq!(bursts(edge.chain(5_000..30_000)), [0, 0, 0, 0, 1]);
    }

    #[test]
    fn what_comes_late_splits_a_burst_and_is_none() {
        assert_eq!(bursts([0, 10, 5]), [0, 0, 2]);
        let mut order: Vec<u32> = (0..20_000).filter(|n| n % 1_000 >= 7).collect();
        order.sort_by_key(|n| n + n.wrapping_mul(2_654_435_761) % 200);
        order.retain(|n| *n >= 500); // begin where nothing before it is still to come
        order.insert(0, 499);
        assert_eq!(bursts(order), [0, 0, 0, 19]);
    }

    #[test]
    fn a_burst_is_told_when_it_is_over_for_good() {
        let mut channel = Channel::default();
        (0..100).chain(103..REORDER + 101).for_each(|s| channel.handle(Sequence(s), true));
        assert_eq!((channel.count().lost, channel.bursts().packets()), (3, 0));
        channel.handle(Sequence(101), false); // late
        (REORDER + 101..REORDER + 104).for_each(|s| channel.handle(Sequence(s), true));
        assert_eq!((channel.count().lost, channel.bursts().packets()), (2, 2));
        assert_eq!(channel.bursts().histogram().counts[..3], [2, 0, 0]);
        // What was sent while the channel was left is no burst.
        channel.handle_join();
        [50_000, 50_001].into_iter().for_each(|s| channel.handle(Sequence(s), true));
        channel.handle_end();
        assert_eq!(channel.bursts().packets(), 2);
    }

    #[test]
    fn a_forger_cannot_invent_loss() {
        assert_eq!(lost(&[(1, true), (9000, false), (70, false), (2, true), (3, true)]), 0);
    }
}
