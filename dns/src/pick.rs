//! Which sources to take when there are more than are wanted (RFC 2782): the lowest priority first, and among
//! equals by weight. Random numbers come from the caller.

use crate::records::Source;

/// What [`pick`] decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picked<'a> {
    /// To be received together. They are all of the best priority.
    pub together: Vec<&'a Source>,
    /// To be tried in this order when none of those sends.
    pub spares: Vec<&'a Source>,
}

/// Takes at most `wanted` sources of the best priority, and orders the others. The same random number gives the same
/// result; 64 random bits are enough for all draws.
pub fn pick(sources: &[Source], wanted: usize, random: u64) -> Picked<'_> {
    let mut random = Draws(random);
    let mut rest: Vec<&Source> = sources.iter().collect();
    // Within a priority the weightless come first, as the RFC has it: they win when the draw is 0.
    rest.sort_by_key(|source| (source.priority, source.weight != 0));
    let mut order: Vec<&Source> = Vec::with_capacity(rest.len());
    while let Some(first) = rest.first() {
        let priority = first.priority;
        let equal = rest.iter().take_while(|source| source.priority == priority);
        let sum: u64 = equal.clone().map(|source| u64::from(source.weight)).sum();
        let draw = random.next() % (sum + 1);
        let mut running = 0;
        let chosen = equal.take_while(|source| {
            running += u64::from(source.weight);
            running < draw
        });
        let chosen = chosen.count();
        order.push(rest.remove(chosen));
    }
    let best = order.first().map(|source| source.priority);
    let together = order.iter().take(wanted).take_while(|source| Some(source.priority) == best).count();
    let spares = order.split_off(together);
    Picked { together: order, spares }
}

/// SplitMix64 (Steele, Lea, Flood 2014): as many numbers as wanted from one.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(host: &str, priority: u16, weight: u16) -> Source {
        Source { host: host.parse().unwrap(), addresses: vec![], port: 1, priority, weight }
    }

    fn hosts(sources: &[&Source]) -> Vec<String> {
        sources.iter().map(|source| source.host.to_string()).collect()
    }

    #[test]
    fn the_best_priority_together_and_the_others_in_order() {
        let all = [source("c", 20, 0), source("a", 0, 1), source("b", 10, 9), source("a2", 0, 1)];
        for random in 0..100 {
            let picked = pick(&all, 9, random);
            let mut together = hosts(&picked.together);
            together.sort();
            assert_eq!(
                (together, hosts(&picked.spares)),
                (vec!["a".into(), "a2".into()], vec!["b".into(), "c".into()])
            );
            // With one wanted, the other of its priority is the first spare.
            let picked = pick(&all, 1, random);
            assert_eq!(
                (picked.together.len(), hosts(&picked.spares)[1..].to_vec()),
                (1, vec!["b".into(), "c".into()])
            );
            assert_eq!(picked.spares[0].priority, 0);
        }
        assert!(pick(&[], 3, 1).together.is_empty() && pick(&all, 0, 1).spares.len() == 4);
    }

    #[test]
    fn weights_are_shares() {
        let all = [source("light", 0, 10), source("none", 0, 0), source("heavy", 0, 30)];
        let mut first = [0; 3];
        for random in 0..10_000 {
            let host = pick(&all, 1, random).together[0].host.to_string();
            first[["light", "none", "heavy"].iter().position(|h| *h == host).unwrap()] += 1;
        }
        // A draw of 0 to 40: 1, 10 and 30 of 41. Five standard deviations are 220, 220 and 80.
        let share: [i32; 3] = [first[0] - 2439, first[2] - 7317, first[1] - 244];
        assert!(share[0].abs() < 220 && share[1].abs() < 220 && share[2].abs() < 80, "{first:?}");
    }
}
