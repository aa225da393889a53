//! Whether the object on its way still comes: what `--timeout` and a newer release wait for.
//!
//! New symbols are the sign of it. But towards the end few blocks want any, and each of them is visited once in a row of
//! the schedule: with a large object on a slow channel that takes minutes, in which only what is known comes. That is no
//! silence. Nor is it before the manifest has come, which on a slow channel may take as long. For ever it would be: what
//! is known could be a replay.

use carousel_proto::geometry::Geometry;
use carousel_proto::receiver::{Counters, EARLY_PACKETS};
use carousel_proto::schedule::VISIT;
use std::time::Duration;

/// Rows of the schedule without a new symbol that are still no silence. At 20 % loss a block waits for up to two.
const ROWS: u64 = 4;

/// Since when nothing of the object has come.
#[derive(Debug, Default)]
pub struct Silence {
    since: u64,
    /// Symbols there when one was new for the last time, and packets that had come by then.
    grown: (u64, u64),
    /// Packets that had come when this was last asked.
    came: u64,
}

/// So many packets that bring nothing new are no silence. Without a `geometry` there was no manifest yet; that one was
/// `refused` is nothing to wait for.
pub fn patience(geometry: Option<&Geometry>, refused: bool) -> u64 {
    match geometry {
        Some(geometry) => ROWS * VISIT * u64::from(geometry.blocks()),
        None if refused => 0,
        None => EARLY_PACKETS as u64,
    }
}

/// Packets that may be of the object.
pub fn came(counters: &Counters) -> u64 {
    counters.received.saturating_sub(counters.unknown + counters.foreign + counters.rejected)
}

impl Silence {
    /// Time begins anew at `now` (ns), with so many symbols there.
    pub fn restart(&mut self, now: u64, symbols: u64) {
        (self.since, self.grown) = (now, (symbols, self.came));
    }

    /// Symbols that are there, and all packets that [`came`]. While the program itself is `busy` with the object there is
    /// no silence.
    pub fn handle(&mut self, now: u64, symbols: u64, came: u64, busy: bool, patience: u64) {
        let any = came > self.came;
        self.came = came;
        if busy || symbols > self.grown.0 {
            self.restart(now, symbols);
        } else if any && came.saturating_sub(self.grown.1) <= patience {
            self.since = now;
        }
    }

    /// How long it has lasted at `now`.
    pub fn lasts(&self, now: u64) -> Duration {
        Duration::from_nanos(now.saturating_sub(self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn what_is_known_counts_for_four_rows_and_no_longer() {
        let geometry = Geometry::new(100 << 20, 1188, 22, 3531, 3708).unwrap();
        let rows = patience(Some(&geometry), false);
        assert_eq!((rows, patience(None, false), patience(None, true)), (800, 4096, 0));
        let mut silence = Silence::default();
        silence.handle(SECOND, 10, 10, false, rows);
        assert_eq!(silence.lasts(SECOND), Duration::ZERO);
        for (second, came) in [(20, 110), (40, 400), (60, 810)] {
            silence.handle(second * SECOND, 10, came, false, rows);
            assert_eq!(silence.lasts(second * SECOND), Duration::ZERO, "{came}");
        }
        silence.handle(70 * SECOND, 10, 811, false, rows);
        assert_eq!(silence.lasts(70 * SECOND), Duration::from_secs(10), "a replay");
        silence.handle(75 * SECOND, 11, 812, false, rows);
        assert_eq!(silence.lasts(76 * SECOND), Duration::from_secs(1), "a new one");
    }

    #[test]
    fn nothing_at_all_is_silence_unless_we_are_busy() {
        let mut silence = Silence::default();
        silence.handle(SECOND, 0, 0, false, 0);
        assert_eq!(silence.lasts(5 * SECOND), Duration::from_secs(5));
        silence.handle(6 * SECOND, 0, 0, true, 0);
        assert_eq!(silence.lasts(7 * SECOND), Duration::from_secs(1));
        // Fewer than before, after a decoding that failed: from there it grows again.
        silence.restart(8 * SECOND, 5);
        silence.handle(9 * SECOND, 6, 1, false, 0);
        assert_eq!(silence.lasts(9 * SECOND), Duration::ZERO);
    }
}
