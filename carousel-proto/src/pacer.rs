//! When to send: positions from the wall clock, in bursts that stay below two milliseconds of the rate.
//!
//! Nothing here waits. The caller hands in the time, gets either packets to send or the moment to come back.
//! Time is nanoseconds since 1970-01-01 UTC, so that a server which was restarted goes on where it would
//! have been, and several servers keep their distance.

use crate::schedule::Position;

/// Bursts are this long at most, in nanoseconds of the rate. Long, because each of them wakes the sender; the rest of
/// the promised 2 ms is for those that leave late, so that they and the next ones together keep it.
const BURST_NS: u64 = 1_600_000;
/// Most bytes in a burst: what segmentation offload takes in one train.
const BURST_MAX_BYTES: u64 = 65_000;
/// Further behind than this, or ahead after a step of the clock: jump to where the clock says.
const JUMP_NS: u64 = 100_000_000;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send so many packets, from this position on.
    Send(Position, u32),
    /// Nothing is due before this moment.
    Wait(u64),
}

/// The pace of one channel.
#[derive(Debug, Clone)]
pub struct Pacer {
    /// Bits of one packet on the wire, IPv6 header included.
    packet_bits: u64,
    /// Bit/s.
    rate: u64,
    burst: u64,
    next: u64,
    /// When the last burst began, until somebody asks for the next one.
    began: Option<u64>,
    /// Not before this moment: when behind, catch up at twice the rate instead of in one burst.
    hold: u64,
}

impl Pacer {
    /// `rate` in bit/s of whole IPv6 packets of `packet_len` bytes.
    pub fn new(rate: u64, packet_len: usize, now: u64) -> Self {
        let packet_len = packet_len.max(1) as u64;
        let packet_bits = packet_len * 8;
        let burst =
            (u128::from(rate) * u128::from(BURST_NS) / (u128::from(packet_bits) * 1_000_000_000)) as u64;
        let mut pacer = Self {
            packet_bits,
            rate: rate.max(1),
            burst: burst.clamp(1, (BURST_MAX_BYTES / packet_len).max(1)),
            next: 0,
            began: None,
            hold: 0,
        };
        pacer.next = pacer.due(now);
        pacer
    }

    /// Packets that an endless sender would have sent by `now`.
    fn due(&self, now: u64) -> u64 {
        let due = u128::from(now) * u128::from(self.rate) / (u128::from(self.packet_bits) * 1_000_000_000);
        u64::try_from(due).unwrap_or(u64::MAX)
    }

    /// The moment at which `count` packets are due.
    fn time_of(&self, count: u64) -> u64 {
        let time = (u128::from(count) * u128::from(self.packet_bits) * 1_000_000_000)
            .div_ceil(u128::from(self.rate));
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    /// Nanoseconds that `count` packets take at the rate.
    fn span(&self, count: u64) -> u64 {
        self.time_of(count)
    }

    /// Packets per burst.
    pub fn burst(&self) -> u32 {
        self.burst as u32
    }

    /// Packets that the rate holds in so many nanoseconds.
    pub fn packets_in(&self, time: u64) -> u64 {
        self.due(time)
    }

    /// By how much what [`Pacer::poll`] said to send at `now` is too late.
    pub fn late(&self, now: u64) -> u64 {
        now.saturating_sub(self.time_of(self.next))
    }

    /// What to do at `now`. To be asked again when a burst has been sent: whatever held that up, a pause follows it.
    pub fn poll(&mut self, now: u64) -> Step {
        if let Some(began) = self.began.take() {
            let span = self.span(self.burst);
            self.hold = (began + span / 2).max(now + span / 4);
        }
        let due = self.due(now);
        let jump = self.due(JUMP_NS).max(self.burst);
        if due > self.next + jump || self.next > due + jump + self.burst {
            self.next = due; // suspended, or the clock was set: the clock is right
            self.hold = 0;
        }
        if due < self.next + self.burst {
            return Step::Wait(self.time_of(self.next + self.burst));
        }
        if now < self.hold && self.hold - now < JUMP_NS {
            return Step::Wait(self.hold);
        }
        let position = Position(self.next);
        self.next += self.burst;
        self.began = Some(now);
        Step::Send(position, self.burst as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::mix;

    const START: u64 = 1_800_000_000_000_000_000;

    /// Runs for `seconds`; every wait ends `late` ns late. Returns packets and the most in any burst.
    fn run(rate: u64, seconds: u64, late: impl Fn(u64) -> u64) -> (u64, u32) {
        let mut pacer = Pacer::new(rate, 1280, START);
        let (mut now, mut sent, mut most) = (START, 0, 0);
        while now < START + seconds * 1_000_000_000 {
            match pacer.poll(now) {
                Step::Send(_, n) => {
                    sent += u64::from(n);
                    most = most.max(n);
                }
                Step::Wait(until) => {
                    assert!(until > now);
                    now = until + late(until);
                }
            }
        }
        (sent, most)
    }

    #[test]
    fn the_rate_is_kept_and_bursts_are_short() {
        for rate in [64_000, 1_000_000, 20_000_000, 100_000_000, 1_000_000_000] {
            let (sent, most) = run(rate, 10, |t| t % 30_000);
            let expected = rate * 10 / (1280 * 8);
            assert!(sent.abs_diff(expected) <= expected / 200 + 50, "{rate}: {sent} of {expected}");
            assert!(most == 1 || u64::from(most) * 1280 * 8 * 1_000_000 <= rate * 2_000, "{rate}: {most}");
        }
    }

    #[test]
    fn lateness_is_caught_up_but_not_in_one_burst() {
        let late = |t: u64| if t / 1_000_000 % 100 == 7 { 20_000_000 } else { 5_000 };
        let (sent, most) = run(20_000_000, 10, late);
        assert!(sent > 19_531 * 99 / 100, "{sent}");
        assert_eq!(most, 3);
    }

    #[test]
    fn who_wakes_late_keeps_two_milliseconds_all_the_same() {
        for rate in [64_000, 1_000_000, 20_000_000, 100_000_000, 1_000_000_000] {
            let mut pacer = Pacer::new(rate, 1280, START);
            let (mut now, mut sent) = (START, 0.0);
            // Or one packet.
            let allowed = (rate as f64 * 2e-3).max(10_240.0 + rate as f64 * 0.4e-3);
            // Bits ahead of the rate, at the least so far: no window may hold more than `allowed` beside the rate.
            let mut least = f64::MAX;
            while now < START + 10_000_000_000 {
                match pacer.poll(now) {
                    Step::Send(_, n) => {
                        let bits_of_rate = (now - START) as f64 * rate as f64 / 1e9;
                        least = least.min(sent - bits_of_rate);
                        sent += f64::from(n) * 10_240.0;
                        let most = sent - bits_of_rate - least;
                        assert!(most <= allowed * 1.001, "{rate}: {most} of {allowed} bits");
                    }
                    Step::Wait(until) => now = until + mix(until) % 390_000,
                }
            }
        }
    }

    #[test]
    fn a_burst_that_was_held_up_is_followed_by_a_pause() {
        let mut pacer = Pacer::new(20_000_000, 1280, START);
        let Step::Wait(first) = pacer.poll(START) else { panic!("nothing is due") };
        assert!(matches!(pacer.poll(first), Step::Send(_, 3)));
        assert_eq!(pacer.late(first), 0);
        assert_eq!(pacer.late(first + 5_000_000), 5_000_000);
        // It left five milliseconds later, and meanwhile the next three became due.
        let left = first + 5_000_000;
        assert_eq!(pacer.poll(left), Step::Wait(left + 3 * 512_000 / 4));
        assert!(matches!(pacer.poll(left + 3 * 512_000 / 4), Step::Send(_, 3)));
        assert!(matches!(pacer.poll(left + 400_000), Step::Wait(_)));
    }

    #[test]
    fn a_suspended_server_goes_on_where_the_clock_says() {
        let mut pacer = Pacer::new(20_000_000, 1280, START);
        let later = START + 3_600_000_000_000;
        let fresh = Pacer::new(20_000_000, 1280, later).next;
        let sent = (0..100).filter(|_| matches!(pacer.poll(later), Step::Send(..))).count();
        assert!(sent <= 1);
        assert!(pacer.next.abs_diff(fresh) <= 1);
    }

    #[test]
    fn a_clock_set_back_does_not_stop_it() {
        let mut pacer = Pacer::new(20_000_000, 1280, START);
        let before = START - 3_600_000_000_000;
        assert!(matches!(pacer.poll(before), Step::Wait(t) if t < before + 10_000_000));
    }
}
