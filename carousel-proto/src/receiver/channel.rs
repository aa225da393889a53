//! Loss on one channel, from its sequence numbers. They are outside authentication, so only a packet that was
//! proven genuine moves the count on; the others fill gaps, and no more than there are.

use crate::wire::Sequence;

/// A jump ahead of more than this is a restarted server, not loss.
const JUMP: u32 = 1 << 16;
/// A step back of at most this is reordering.
const REORDER: u32 = 1 << 12;

/// What one channel brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelCount {
    /// Packets of our bundle.
    pub received: u64,
    /// Packets that never came.
    pub lost: u64,
}

#[derive(Debug, Default)]
pub(super) struct Channel {
    last: Option<u32>,
    /// Packets since `last` that could not be proven genuine.
    between: u32,
    count: ChannelCount,
}

impl Channel {
    pub(super) fn handle(&mut self, sequence: Sequence, authentic: bool) {
        self.count.received += 1;
        let Some(last) = self.last.filter(|_| authentic) else {
            self.between = self.between.saturating_add(1);
            if authentic {
                self.last = Some(sequence.0);
                self.between = 0;
            }
            return;
        };
        let step = sequence.0.wrapping_sub(last);
        if step == 0 {
            return; // duplicated on the way
        }
        if last.wrapping_sub(sequence.0) <= REORDER {
            self.count.lost = self.count.lost.saturating_sub(1); // late, not lost
            return;
        }
        if step <= JUMP {
            self.count.lost += u64::from((step - 1).saturating_sub(self.between));
        }
        self.last = Some(sequence.0);
        self.between = 0;
    }

    pub(super) fn count(&self) -> ChannelCount {
        self.count
    }
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
    fn a_restarted_server_is_no_loss() {
        assert_eq!(lost(&[(1, true), (1 << 20, true), (2, true), (3, true)]), 0);
    }

    #[test]
    fn a_forger_cannot_invent_loss() {
        assert_eq!(lost(&[(1, true), (9000, false), (70, false), (2, true), (3, true)]), 0);
    }
}
