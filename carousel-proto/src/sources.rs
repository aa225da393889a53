//! Which sources to receive from: those of the best priority together, spares only while none of the better ones
//! sends (the roles that RFC 2782 gives to priorities).
//!
//! A source that was chosen stays chosen when it falls silent, so that it is heard when it comes back; a spare is
//! dropped when a better one has been back for a while. Driven by [`Sources::handle_list`], [`Sources::handle_packet`]
//! and [`Sources::handle_time`] (some times a second), drained by [`Sources::poll_output`]. It does not know what
//! addresses, groups and tiers are.

use std::collections::VecDeque;

const SECOND: u64 = 1_000_000_000;
/// A source that was silent for so long does not send. Below 100 kbit/s that is fewer than 50 packets, so the caller
/// names a longer time for slow channels.
pub const PATIENCE: u64 = 5 * SECOND;
/// A source that is back must have sent for so long before its spare is dropped.
const BACK: u64 = 2 * SECOND;

/// What the caller has to do next, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output<K> {
    /// Receive from this source.
    Use(K),
    /// Stop it.
    Drop(K),
}

#[derive(Debug)]
struct Source<K> {
    key: K,
    priority: u16,
    used: Option<Use>,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    since: u64,
    /// The last packet, and the first one after a silence.
    heard: Option<(u64, u64)>,
}

/// The choice among the sources of one service. `K` names a source.
#[derive(Debug)]
pub struct Sources<K> {
    /// Best first.
    list: Vec<Source<K>>,
    wanted: usize,
    patience: u64,
    outputs: VecDeque<Output<K>>,
}

impl<K: Copy + Eq> Sources<K> {
    /// At most `wanted` (at least 1) sources of one priority are received together; a source is silent when nothing
    /// has come for `patience` ns, and for [`PATIENCE`] at least.
    pub fn new(wanted: usize, patience: u64) -> Self {
        Self {
            list: Vec::new(),
            wanted: wanted.max(1),
            patience: patience.max(PATIENCE),
            outputs: VecDeque::new(),
        }
    }

    /// What there is now, in the order of preference, each with its priority (lower is better). Sources that were
    /// there before keep their state, and their place among equals: a new draw of weights moves nobody.
    pub fn handle_list(&mut self, now: u64, list: &[(K, u16)]) {
        let old = std::mem::take(&mut self.list);
        for source in &old {
            if source.used.is_some() && !list.iter().any(|(key, _)| *key == source.key) {
                self.outputs.push_back(Output::Drop(source.key));
            }
        }
        let known = |key: K| old.iter().position(|source| source.key == key);
        for &(key, priority) in list {
            let used = known(key).and_then(|index| old[index].used);
            self.list.push(Source { key, priority, used });
        }
        self.list.sort_by_key(|s| (s.priority, s.used.is_none(), known(s.key).unwrap_or(usize::MAX)));
        self.choose(now);
    }

    /// A packet of this source came.
    pub fn handle_packet(&mut self, now: u64, key: K) {
        let patience = self.patience;
        let source = self.list.iter_mut().find(|source| source.key == key);
        if let Some(used) = source.and_then(|source| source.used.as_mut()) {
            let back = used.heard.filter(|(last, _)| now.saturating_sub(*last) < patience);
            used.heard = Some((now, back.map_or(now, |(_, first)| first)));
        }
    }

    /// Time passes.
    pub fn handle_time(&mut self, now: u64) {
        self.choose(now);
    }

    /// What to do next, if anything.
    pub fn poll_output(&mut self) -> Option<Output<K>> {
        self.outputs.pop_front()
    }

    /// Walks down the list until enough of them send, or may be about to. What is behind is not needed, and dropped
    /// once those before it have shown that they do send.
    fn choose(&mut self, now: u64) {
        let (mut hoped, mut sending, mut class) = (0, 0, None);
        for source in &mut self.list {
            let enough = if class == Some(source.priority) { self.wanted } else { 1 };
            if sending >= enough && source.used.take().is_some() {
                self.outputs.push_back(Output::Drop(source.key));
            }
            if hoped >= enough && source.used.is_none() {
                continue;
            }
            class = Some(source.priority);
            let used = source.used.get_or_insert_with(|| {
                self.outputs.push_back(Output::Use(source.key));
                Use { since: now, heard: None }
            });
            let age = |moment: u64| now.saturating_sub(moment);
            let back = |(last, first)| age(last) < self.patience && last - first >= BACK;
            let sends = used.heard.is_some_and(back);
            sending += usize::from(sends);
            hoped += usize::from(sends || age(used.since) < self.patience);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Output::{Drop, Use};

    /// Sources that send from one second to another; what is done, with the second in which it is.
    fn run(wanted: usize, list: &[(u8, u16)], sends: impl Fn(u8, u64) -> bool) -> Vec<(u64, Output<u8>)> {
        let mut sources = Sources::new(wanted, 0);
        let mut done = Vec::new();
        let mut used = Vec::new();
        for tenth in 0..600 {
            let (now, second) = (tenth * SECOND / 10, tenth / 10);
            if tenth == 0 {
                sources.handle_list(now, list);
            }
            for &key in used.iter().filter(|key| sends(**key, second)) {
                sources.handle_packet(now, key);
            }
            sources.handle_time(now);
            while let Some(output) = sources.poll_output() {
                match output {
                    Use(key) => used.push(key),
                    Drop(key) => used.retain(|k| *k != key),
                }
                done.push((second, output));
            }
        }
        done
    }

    #[test]
    fn equals_are_taken_together_and_spares_are_not() {
        let done = run(8, &[(1, 0), (2, 0), (3, 10)], |_, _| true);
        assert_eq!(done, [(0, Use(1)), (0, Use(2))]);
    }

    #[test]
    fn one_of_two_may_die_without_a_spare() {
        let done = run(8, &[(1, 0), (2, 0), (3, 10)], |key, second| key != 2 || second < 10);
        assert_eq!(done, [(0, Use(1)), (0, Use(2))]);
    }

    #[test]
    fn a_spare_steps_in_and_leaves_when_a_better_one_is_back() {
        let done = run(8, &[(1, 0), (2, 10), (3, 20)], |key, second| key != 1 || !(10..30).contains(&second));
        assert_eq!(done, [(0, Use(1)), (14, Use(2)), (32, Drop(2))]);
    }

    #[test]
    fn spares_are_tried_one_after_the_other() {
        let done = run(8, &[(1, 0), (2, 10), (3, 20)], |key, _| key == 3);
        assert_eq!(done, [(0, Use(1)), (5, Use(2)), (10, Use(3))]);
    }

    #[test]
    fn a_flickering_source_does_not_send_its_spare_away() {
        let done = run(8, &[(1, 0), (2, 10)], |key, second| key != 1 || second < 3 || second % 9 == 0);
        assert_eq!(done, [(0, Use(1)), (7, Use(2))]);
    }

    #[test]
    fn no_more_than_wanted_but_the_dead_are_replaced() {
        let list = [(1, 0), (2, 0), (3, 0), (4, 0)];
        let done = run(2, &list, |key, second| key != 1 || !(10..30).contains(&second));
        assert_eq!(done, [(0, Use(1)), (0, Use(2)), (14, Use(3)), (32, Drop(3))]);
    }

    #[test]
    fn a_new_list_keeps_what_is_still_there() {
        let mut sources = Sources::new(8, 0);
        sources.handle_list(0, &[(1, 0), (2, 0)]);
        sources.handle_list(SECOND, &[(3, 0), (2, 0)]);
        sources.handle_list(2 * SECOND, &[(2, 5), (4, 0)]);
        let done: Vec<_> = std::iter::from_fn(|| sources.poll_output()).collect();
        assert_eq!(done, [Use(1), Use(2), Drop(1), Use(3), Drop(3), Use(4)]);
    }

    #[test]
    fn an_empty_list_drops_all() {
        let mut sources = Sources::new(1, 0);
        sources.handle_list(0, &[(1, 0)]);
        sources.handle_list(SECOND, &[]);
        sources.handle_time(2 * SECOND);
        let done: Vec<_> = std::iter::from_fn(|| sources.poll_output()).collect();
        assert_eq!(done, [Use(1), Drop(1)]);
    }
}
