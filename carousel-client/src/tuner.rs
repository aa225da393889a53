//! Which channels are to be joined: the sources chosen by priority, and of each the tiers that it bears.
//!
//! Two state machines of carousel-proto decide; here they are put together. No system calls: what comes out are
//! steps for [`crate::receive`].

use carousel_proto::receiver::ChannelCount;
use carousel_proto::sources::{self, Sources};
use carousel_proto::tiers::{self, Kind, Mode, State, Tiers};
use std::collections::VecDeque;
use std::net::Ipv6Addr;

/// A source as the network knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The S of (S,G); `None`: any.
    pub address: Option<Ipv6Addr>,
    pub port: u16,
}

/// What there is to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The group of each tier, and nanoseconds from packet to packet if the rate is known, else 0.
    pub tiers: Vec<(Ipv6Addr, u64)>,
    /// In the order of preference, with their priority.
    pub sources: Vec<(Origin, u16)>,
}

/// Who chooses the tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Nobody: all of them are joined, and stay so.
    All,
    /// The state machine, or somebody who knows.
    Tier(Kind, Mode),
}

/// What to do with the channel of a source on a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Join(Origin, usize),
    Leave(Origin, usize),
}

/// The sources in use and their tiers.
pub struct Tuner {
    offer: Offer,
    choice: Choice,
    sources: Sources<Origin>,
    used: Vec<(Origin, Option<Tiers>)>,
    seed: u64,
    /// With the group of each: by the time that it is done, the tiers may be others.
    steps: VecDeque<(Step, Ipv6Addr)>,
    /// While nothing is wanted: the tier that was kept until then.
    paused: Option<Option<usize>>,
}

impl Tuner {
    /// `wanted` sources of one priority at most. `seed` is a random number. Nothing is joined before the first
    /// [`Tuner::handle_time`].
    pub fn new(offer: Offer, choice: Choice, wanted: usize, seed: u64) -> Self {
        // Twenty packets of the slowest tier: a tier that is not joined is not waited for, but this errs on the
        // patient side.
        let patience = offer.tiers.iter().map(|(_, gap)| gap * 20).max().unwrap_or(0);
        let mut sources = Sources::new(wanted, patience);
        let offer = distinct(offer);
        sources.handle_list(0, &offer.sources);
        Self { offer, choice, sources, used: Vec::new(), seed, steps: VecDeque::new(), paused: None }
    }

    /// DNS says something new. If the tiers are others, everything begins anew.
    pub fn handle_offer(&mut self, now: u64, offer: Offer) {
        let offer = distinct(offer);
        if self.paused.is_some() {
            self.offer = offer;
            return;
        }
        if offer.tiers != self.offer.tiers {
            self.sources.handle_list(now, &[]);
            self.drain(now);
        }
        self.offer = offer;
        self.sources.handle_list(now, &self.offer.sources);
        self.drain(now);
    }

    /// Nothing is wanted any more, or something is again: then everything begins anew.
    pub fn handle_demand(&mut self, now: u64, wanted: bool) {
        if wanted != self.paused.is_some() {
            return;
        }
        if wanted {
            self.paused = None;
            self.sources.handle_list(now, &self.offer.sources);
        } else {
            self.paused = Some(self.tier());
            self.sources.handle_list(now, &[]);
        }
        self.drain(now);
    }

    /// All that was counted on a channel so far. Those of groups that are no longer offered say nothing.
    pub fn handle_counts(
        &mut self,
        now: u64,
        origin: Origin,
        group: Ipv6Addr,
        total: ChannelCount,
        new: bool,
    ) {
        let Some(tier) = self.offer.tiers.iter().position(|(offered, _)| *offered == group) else { return };
        if new {
            self.sources.handle_packet(now, origin);
        }
        let used = self.used.iter_mut().find(|(used, _)| *used == origin);
        if let Some((_, Some(tiers))) = used {
            tiers.handle_counts(now, tier, total);
        }
    }

    /// Packets that our own socket of this tier has dropped.
    pub fn handle_local_loss(&mut self, packets: u64) {
        for (_, tiers) in &mut self.used {
            tiers.iter_mut().for_each(|tiers| tiers.handle_local_loss(packets));
        }
    }

    /// Time passes; about ten times a second, after the counts.
    pub fn handle_time(&mut self, now: u64) {
        self.sources.handle_time(now); // an empty list during a pause
        for (_, tiers) in &mut self.used {
            tiers.iter_mut().for_each(|tiers| tiers.handle_time(now));
        }
        self.drain(now);
    }

    /// What to do next, if anything, and on which group.
    pub fn poll_step(&mut self) -> Option<(Step, Ipv6Addr)> {
        self.steps.pop_front()
    }

    /// How the choice of the tier of a source stands; `None` where nobody chooses, or the source is not in use.
    pub fn state(&self, origin: Origin) -> Option<State> {
        self.used
            .iter()
            .find(|(used, _)| *used == origin)
            .and_then(|(_, tiers)| Some(tiers.as_ref()?.state()))
    }

    /// The highest tier that is kept of any source, or was when something was wanted last.
    pub fn tier(&self) -> Option<usize> {
        if let Some(kept) = self.paused {
            return kept;
        }
        self.used.iter().filter_map(|(_, tiers)| tiers.as_ref()?.state().tier).max()
    }

    fn drain(&mut self, now: u64) {
        while let Some(output) = self.sources.poll_output() {
            match output {
                sources::Output::Use(origin) => self.start(now, origin),
                sources::Output::Drop(origin) => self.stop(origin),
            }
        }
        for (origin, tiers) in &mut self.used {
            let Some(tiers) = tiers else { continue };
            while let Some(output) = tiers.poll_output() {
                let (step, tier) = match output {
                    tiers::Output::Join(tier) => (Step::Join(*origin, tier), tier),
                    tiers::Output::Leave(tier) => (Step::Leave(*origin, tier), tier),
                    // The source falls silent for us, and `sources` sees that.
                    tiers::Output::NextSource => continue,
                };
                let group = self.offer.tiers.get(tier).map(|(group, _)| *group);
                self.steps.extend(group.map(|group| (step, group)));
            }
        }
    }

    fn start(&mut self, now: u64, origin: Origin) {
        let gaps: Vec<u64> = self.offer.tiers.iter().map(|(_, gap)| *gap).collect();
        let tiers = match self.choice {
            Choice::Tier(kind, mode) => {
                self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                Some(Tiers::new(kind, mode, &gaps, now, self.seed))
            }
            Choice::All => {
                self.steps.extend(each(&self.offer).map(|(tier, group)| (Step::Join(origin, tier), group)));
                None
            }
        };
        self.used.push((origin, tiers));
    }

    fn stop(&mut self, origin: Origin) {
        self.used.retain(|(used, _)| *used != origin);
        // Leaving what is not joined does no harm.
        self.steps.extend(each(&self.offer).map(|(tier, group)| (Step::Leave(origin, tier), group)));
    }
}

/// Two names in DNS may lead to one address. That is one source, of the better priority: taken for two, one would be
/// silent for ever, and leave what the other has joined.
fn distinct(mut offer: Offer) -> Offer {
    let mut known = Vec::new();
    offer.sources.retain(|(origin, _)| {
        let is_new = !known.contains(origin);
        known.push(*origin);
        is_new
    });
    offer
}

/// The tiers by number, and their groups.
fn each(offer: &Offer) -> impl Iterator<Item = (usize, Ipv6Addr)> + '_ {
    offer.tiers.iter().map(|(group, _)| *group).enumerate()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn steps(tuner: &mut Tuner) -> Vec<(bool, usize)> {
        steps_on(tuner).into_iter().map(|(joins, tier, _)| (joins, tier)).collect()
    }

    fn steps_on(tuner: &mut Tuner) -> Vec<(bool, usize, Ipv6Addr)> {
        std::iter::from_fn(|| tuner.poll_step())
            .map(|(step, group)| match step {
                Step::Join(_, tier) => (true, tier, group),
                Step::Leave(_, tier) => (false, tier, group),
            })
            .collect()
    }

    #[test]
    fn what_nobody_wants_is_left_until_it_is_wanted_again() {
        let group = Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 0, 0x8000, 1);
        let origin = Origin { address: Some(Ipv6Addr::LOCALHOST), port: 5004 };
        let offer = Offer { tiers: vec![(group, 0); 2], sources: vec![(origin, 0)] };
        let mut tuner = Tuner::new(offer.clone(), Choice::Tier(Kind::Separate, Mode::Fixed(1)), 1, 7);
        tuner.handle_time(0);
        assert_eq!(steps(&mut tuner), [(true, 1)]);
        let kept = tuner.tier();
        tuner.handle_demand(1, false);
        assert_eq!(steps(&mut tuner), [(false, 0), (false, 1)]);
        for second in 1..20 {
            tuner.handle_time(second * 1_000_000_000);
            tuner.handle_offer(second * 1_000_000_000, offer.clone());
        }
        assert_eq!(steps(&mut tuner), [], "a pause is not the sources' silence");
        assert_eq!(tuner.tier(), kept);
        tuner.handle_demand(20_000_000_000, true);
        assert_eq!(steps(&mut tuner), [(true, 1)]);
    }

    #[test]
    fn an_address_of_two_names_is_one_source() {
        let group = Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 0, 0x8000, 1);
        let origin = Origin { address: Some(Ipv6Addr::LOCALHOST), port: 5004 };
        let offer = Offer { tiers: vec![(group, 0)], sources: vec![(origin, 0), (origin, 0), (origin, 9)] };
        let mut tuner = Tuner::new(offer.clone(), Choice::Tier(Kind::Separate, Mode::Auto), 4, 7);
        for second in 0..60 {
            let total = ChannelCount { received: second, lost: 0 };
            tuner.handle_counts(second * SECOND, origin, group, total, true);
            tuner.handle_time(second * SECOND);
            tuner.handle_offer(second * SECOND, offer.clone());
        }
        assert_eq!(steps(&mut tuner), [(true, 0)], "joined once, and never left");
    }

    #[test]
    fn groups_that_others_replace_are_left_and_say_nothing_more() {
        let group = |n| Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 0, 0x8000, n);
        let origin = Origin { address: Some(Ipv6Addr::LOCALHOST), port: 5004 };
        let of = |groups: &[u16]| Offer {
            tiers: groups.iter().map(|n| (group(*n), 0)).collect(),
            sources: vec![(origin, 0)],
        };
        let choice = Choice::Tier(Kind::Stacked, Mode::Fixed(1));
        let mut tuner = Tuner::new(of(&[1, 2]), choice, 1, 7);
        tuner.handle_time(0);
        assert_eq!(steps_on(&mut tuner), [(true, 0, group(1)), (true, 1, group(2))]);
        // Fewer tiers than before, and one of the groups on another.
        tuner.handle_offer(SECOND, of(&[2]));
        assert_eq!(steps_on(&mut tuner), [(false, 0, group(1)), (false, 1, group(2)), (true, 0, group(2))]);
        // What goes on on the old group is not the new one's life.
        for second in 2..20 {
            let total = ChannelCount { received: second, lost: 0 };
            tuner.handle_counts(second * SECOND, origin, group(1), total, true);
            tuner.handle_time(second * SECOND);
        }
        assert_eq!(steps_on(&mut tuner)[0], (false, 0, group(2)));
    }
}
