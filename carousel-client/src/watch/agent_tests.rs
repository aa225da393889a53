//! The agent in virtual time.

use super::agent::{Action, Agent, Ended, Looked, Now, Received, Rules, State};
use super::record::{Record, Release, Stage};
use super::window::Windows;
use std::collections::BTreeMap;

const MINUTE: u64 = 60_000;
const START: u64 = 1_795_219_200; // a Saturday, 0:00 UTC
const KEY: &str = "0123456789ABCDEF";

/// A device whose clock runs, and what it did.
struct World {
    agent: Agent,
    rules: Rules,
    now: Now,
    /// What would be on the disk.
    disk: Record,
    remembered: u64,
    did: Vec<Action>,
}

fn rules() -> Rules {
    Rules {
        by_name: false,
        poll: 60 * MINUTE,
        backoff: MINUTE,
        tries: 3,
        receive: Windows::default(),
        apply: Windows::default(),
        confirms: false,
        confirm_within: 24 * 60 * MINUTE,
        device_id: "somebody".into(),
    }
}

fn release(seq: u64) -> Release {
    Release {
        name: "fw.img".into(),
        seq,
        digest: "ab".repeat(32),
        size: 7,
        path: "/fw.img".into(),
        key_id: KEY.into(),
        not_before: None,
        jitter: None,
        received: START,
    }
}

fn offer(seq: u64) -> Looked {
    Looked::Offer { seq, key_id: KEY.into() }
}

impl World {
    fn new(rules: Rules) -> Self {
        let now = Now { ms: 0, unix: START };
        let agent = Agent::new(rules.clone(), Record::default(), 7, now);
        Self { agent, rules, now, disk: Record::default(), remembered: 0, did: Vec::new() }
    }

    /// The power goes and comes back. What was not kept is lost.
    fn reboot(&mut self) {
        self.now.ms += 1;
        self.agent = Agent::new(self.rules.clone(), self.disk.clone(), 8, self.now);
    }

    /// Lets time pass until there is an action that others have to do, or for so long.
    fn next(&mut self, limit: u64) -> Option<Action> {
        let end = self.now.ms + limit;
        loop {
            while let Some(action) = self.agent.poll_action(self.now) {
                self.did.push(action);
                match action {
                    Action::Keep => self.disk = self.agent.record().clone(),
                    Action::Remember => {
                        self.remembered = self.disk.release.as_ref().map_or(0, |release| release.seq);
                    }
                    other => return Some(other),
                }
            }
            if self.now.ms >= end {
                return None;
            }
            let wait = self.agent.poll_timeout(self.now).clamp(1, end - self.now.ms);
            self.pass(wait);
        }
    }

    fn pass(&mut self, ms: u64) {
        let before = self.now.ms / 1_000;
        self.now.ms += ms;
        self.now.unix += self.now.ms / 1_000 - before;
    }

    #[track_caller]
    fn expect(&mut self, action: Action) {
        let came = self.next(24 * 60 * MINUTE);
        assert_eq!(came, Some(action), "{:?}", self.agent);
    }

    #[track_caller]
    fn receive(&mut self, seq: u64) {
        self.expect(Action::Look);
        self.agent.handle_looked(self.now, offer(seq));
        self.expect(Action::Receive);
        assert_eq!(self.agent.state(), State::Receiving);
        self.agent.handle_whole(release(seq));
        assert_eq!(self.agent.state(), State::Verified);
        self.agent.handle_received(self.now, Received::Whole);
        assert_eq!(self.agent.state(), State::Ready);
    }

    /// There is nothing newer until the command runs.
    #[track_caller]
    fn wait_for_command(&mut self) {
        loop {
            match self.next(24 * 60 * MINUTE) {
                Some(Action::Look) => {
                    self.agent
                        .handle_looked(self.now, Looked::Refused { again: None, message: String::new() });
                }
                Some(Action::Stop) => {}
                other => break assert_eq!(other, Some(Action::HandOver), "{:?}", self.agent),
            }
        }
    }

    #[track_caller]
    fn hand_over(&mut self, ended: Ended) {
        self.wait_for_command();
        assert_eq!(self.agent.state(), State::Ready);
        self.agent.handle_handover(self.now, ended);
    }
}

#[test]
fn the_whole_way() {
    let mut w = World::new(rules());
    assert_eq!(w.agent.state(), State::Waiting);
    w.receive(42);
    assert_eq!(w.disk, Record::default(), "not recorded yet");
    w.hand_over(Ended::Well);
    assert_eq!(w.agent.state(), State::Ok);
    assert_eq!(w.remembered, 0, "nothing is remembered before it is recorded");
    w.expect(Action::Look);
    assert_eq!((w.remembered, w.disk.stage), (42, Stage::Ok));
    assert_eq!(w.agent.record().newer_than().collect::<Vec<_>>(), [(KEY, 42), (KEY, 42)]);
    // Recorded before the command runs.
    let order: Vec<_> = w.did.iter().filter(|a| **a != Action::Look).collect();
    use Action::{HandOver, Keep, Receive, Remember};
    assert_eq!(order, [&Receive, &Keep, &Keep, &Keep, &HandOver, &Keep, &Remember]);
}

#[test]
fn it_looks_about_once_a_poll() {
    let mut w = World::new(rules());
    let mut times = Vec::new();
    for _ in 0..20 {
        w.expect(Action::Look);
        times.push(w.now.ms);
        w.agent.handle_looked(w.now, Looked::Refused { again: None, message: "old".into() });
    }
    assert!(times[0] <= 10_000, "the first one soon");
    let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.iter().all(|gap| (45 * MINUTE..=75 * MINUTE + 5_000).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().any(|gap| *gap != gaps[0]), "not in step with others");
    assert_eq!((w.agent.state(), w.agent.message()), (State::Waiting, "old"));
}

#[test]
fn dns_is_asked_first_and_only_a_number_that_is_not_known_is_looked_at() {
    let mut w = World::new(Rules { by_name: true, ..rules() });
    w.expect(Action::Ask);
    w.agent.handle_asked(w.now, Ok(Some(42)));
    w.receive(42);
    w.hand_over(Ended::Well);
    w.expect(Action::Ask);
    w.agent.handle_asked(w.now, Ok(Some(42)));
    w.expect(Action::Ask);
    // Smaller, or none: who knows whose word 42 was.
    for hint in [Some(41), None] {
        w.agent.handle_asked(w.now, Ok(hint));
        w.expect(Action::Look);
        w.agent.handle_looked(w.now, Looked::Refused { again: None, message: String::new() });
        w.expect(Action::Ask);
    }
    // Once a day it listens all the same: other keys may be on the air.
    let mut asked = 0;
    loop {
        asked += 1;
        w.agent.handle_asked(w.now, Ok(Some(42)));
        match w.next(24 * 60 * MINUTE) {
            Some(Action::Ask) => {}
            other => break assert_eq!(other, Some(Action::Look), "{:?}", w.agent),
        }
    }
    assert!((16..40).contains(&asked), "{asked}");
}

#[test]
fn silence_is_tried_again_for_ever_with_a_growing_pause() {
    let mut w = World::new(rules());
    let mut times = Vec::new();
    for _ in 0..12 {
        w.expect(Action::Look);
        times.push(w.now.ms);
        w.agent.handle_looked(w.now, Looked::Nothing("silence".into()));
    }
    let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] <= 75_000 && gaps[0] >= 45_000, "{gaps:?}");
    assert!(gaps[1] > gaps[0] && gaps[10] >= 45 * MINUTE && gaps[10] <= 61 * MINUTE, "{gaps:?}");
    assert_eq!(w.agent.state(), State::Waiting);
    // A transfer that the network breaks off is no failure of the release, however often.
    for _ in 0..20 {
        w.agent.handle_looked(w.now, offer(42));
        w.expect(Action::Receive);
        w.agent.handle_received(w.now, Received::Elsewhere("silence".into()));
        assert_eq!(w.agent.state(), State::Waiting);
        w.expect(Action::Look);
    }
}

#[test]
fn a_turn_in_the_rollout_is_waited_for() {
    let mut w = World::new(rules());
    w.expect(Action::Look);
    let turn = w.now.unix + 600;
    w.agent.handle_looked(w.now, Looked::Refused { again: Some(turn), message: "not yet".into() });
    assert_eq!(w.agent.state(), State::Waiting);
    w.expect(Action::Look);
    assert!((turn..turn + 5).contains(&w.now.unix), "{} {turn}", w.now.unix);
    // One that is far away does not keep it from looking: the schedule may change.
    w.agent.handle_looked(w.now, Looked::Refused { again: Some(u64::MAX), message: "not yet".into() });
    let before = w.now.ms;
    w.expect(Action::Look);
    assert!(w.now.ms - before <= 76 * MINUTE);
}

#[test]
fn the_command_has_so_many_tries_and_a_newer_release_new_ones() {
    let mut w = World::new(rules());
    w.receive(42);
    let mut times = Vec::new();
    for n in 1..=3 {
        w.hand_over(Ended::Badly("exit 1".into()));
        times.push(w.now.ms);
        assert_eq!(w.agent.state(), if n < 3 { State::Ready } else { State::Failed });
    }
    assert!(times[1] - times[0] >= 45_000 && times[2] - times[1] >= 90_000, "{times:?}");
    assert!(w.agent.message().contains("given up after 3 tries: exit 1"), "{}", w.agent.message());
    assert_eq!(w.disk.installed, BTreeMap::new());
    // It is not tried again, nor fetched again.
    w.expect(Action::Look);
    assert!(w.agent.record().newer_than().any(|mark| mark == (KEY, 42)));
    w.agent.handle_looked(w.now, Looked::Refused { again: None, message: String::new() });
    assert_eq!(w.agent.state(), State::Failed);
    w.receive(43);
    w.hand_over(Ended::Badly("exit 1".into()));
    assert_eq!(w.agent.state(), State::Ready);
    w.hand_over(Ended::Well);
    assert_eq!((w.agent.state(), w.agent.record().installed[KEY]), (State::Ok, 43));
}

#[test]
fn a_command_that_asks_to_be_run_later_is_and_that_does_not_count() {
    let mut w = World::new(rules());
    w.receive(42);
    for _ in 0..10 {
        w.hand_over(Ended::Later);
        assert_eq!(w.agent.state(), State::Ready);
    }
    w.hand_over(Ended::Well);
    assert_eq!(w.agent.state(), State::Ok);
}

#[test]
fn a_command_that_takes_the_device_down_is_not_run_for_ever() {
    let mut w = World::new(rules());
    w.receive(42);
    for _ in 0..3 {
        w.wait_for_command();
        w.reboot();
    }
    w.expect(Action::Look);
    assert_eq!(w.agent.state(), State::Failed);
    assert_eq!(w.did.iter().filter(|a| **a == Action::HandOver).count(), 3);
}

#[test]
fn a_command_that_was_not_started_was_no_try() {
    let mut w = World::new(Rules { tries: 1, ..rules() });
    w.receive(42);
    w.wait_for_command();
    assert_eq!((w.disk.stage, w.disk.attempts), (Stage::HandingOver, 1));
    // The agent is to end while the file is still being checked.
    w.agent.handle_unstarted();
    while let Some(action) = w.agent.poll_last() {
        assert_eq!(action, Action::Keep);
        w.disk = w.agent.record().clone();
    }
    w.reboot();
    w.hand_over(Ended::Well);
    assert_eq!(w.agent.state(), State::Ok);
}

#[test]
fn a_clock_that_is_set_back_keeps_nobody_waiting_whom_the_publisher_does_not() {
    let mut w = World::new(rules());
    w.receive(42);
    w.now.unix = START - 8 * 3_600;
    assert_eq!(w.agent.waits_for(w.now), None);
    assert_eq!(w.next(MINUTE), Some(Action::HandOver), "{:?}", w.agent);
}

#[test]
fn it_goes_on_after_a_reboot_in_any_state() {
    for stop in 0..40 {
        let mut w = World::new(rules());
        let mut steps = 0;
        // What happens outside, with a power cut at one of its moments.
        while w.remembered != 42 || w.agent.state() != State::Ok {
            if steps == stop {
                w.reboot();
            }
            steps += 1;
            assert!(steps < 80, "{stop}: {:?}", w.agent);
            let Some(action) = w.agent.poll_action(w.now) else {
                let wait = w.agent.poll_timeout(w.now).max(1);
                w.pass(wait);
                continue;
            };
            match action {
                Action::Keep => w.disk = w.agent.record().clone(),
                Action::Remember => w.remembered = 42,
                Action::Look => w.agent.handle_looked(w.now, offer(42)),
                Action::Receive => {
                    w.agent.handle_whole(release(42));
                    w.agent.handle_received(w.now, Received::Whole);
                }
                Action::HandOver => {
                    assert_eq!(w.disk.stage, Stage::HandingOver, "{stop}: not recorded");
                    w.agent.handle_handover(w.now, Ended::Well);
                }
                Action::Ask | Action::Confirm | Action::Stop => panic!("{action:?}"),
            }
        }
        while let Some(action) = w.agent.poll_action(w.now) {
            assert!(matches!(action, Action::Keep | Action::Remember), "{stop}: {action:?}");
            w.disk = w.agent.record().clone();
        }
        assert_eq!((w.disk.stage, w.disk.installed.get(KEY)), (Stage::Ok, Some(&42)), "{stop}");
    }
}

#[test]
fn what_is_forbidden_after_a_look_does_not_begin() {
    let mut w = World::new(rules());
    w.expect(Action::Look);
    w.agent.handle_looked(w.now, offer(42));
    w.agent.handle_inhibited(true);
    assert_eq!(w.next(MINUTE), None, "not even to be stopped at once");
    assert_eq!((w.agent.state(), w.agent.waits_for(w.now)), (State::Waiting, Some("the inhibit file")));
    w.agent.handle_inhibited(false);
    w.receive(42);
}

#[test]
fn windows_and_inhibition_hold_it_back() {
    let windows = |text: &str| Windows::parse(&[text.to_owned()], 0).unwrap();
    let r = Rules { receive: windows("01:00-02:00"), apply: windows("03:00-04:00"), ..rules() };
    let mut w = World::new(Rules { poll: MINUTE, ..r });
    let hour = |w: &World| (w.now.unix - START) as f64 / 3600.0;
    w.expect(Action::Look);
    assert!((1.0..1.02).contains(&hour(&w)), "{}", hour(&w));
    w.agent.handle_looked(w.now, offer(42));
    w.expect(Action::Receive);
    // It takes longer than the window.
    w.expect(Action::Stop);
    assert!((2.0..2.01).contains(&hour(&w)), "{}", hour(&w));
    w.agent.handle_received(w.now, Received::Failed("interrupted".into()));
    assert_eq!((w.agent.state(), w.agent.waits_for(w.now)), (State::Waiting, Some("the receive window")));
    assert_eq!(w.agent.record().receiving.as_ref().map(|a| a.failed), Some(0), "not its fault");
    w.agent.handle_inhibited(true);
    assert_eq!(w.next(24 * 60 * MINUTE), None, "the window came, but it is inhibited");
    w.agent.handle_inhibited(false);
    w.receive(42);
    assert!((25.0..26.0).contains(&hour(&w)) || (49.0..50.0).contains(&hour(&w)), "{}", hour(&w));
    let day = (hour(&w) / 24.0).floor();
    w.wait_for_command();
    assert!((3.0..3.01).contains(&(hour(&w) - day * 24.0)), "{}", hour(&w));
}

#[test]
fn the_publisher_s_moment_and_its_jitter_are_waited_for() {
    let mut w = World::new(rules());
    w.expect(Action::Look);
    w.agent.handle_looked(w.now, offer(42));
    w.expect(Action::Receive);
    let r = Release { not_before: Some(START + 1_000), jitter: Some(600), ..release(42) };
    let moment = r.moment("somebody");
    assert!((START + 1_000..=START + 1_600).contains(&moment));
    w.agent.handle_whole(r);
    w.agent.handle_received(w.now, Received::Whole);
    assert_eq!(w.agent.waits_for(w.now), Some("the moment that its publisher set"));
    w.reboot(); // before it was recorded: all of it again
    w.expect(Action::Look);
    w.agent.handle_looked(w.now, offer(42));
    w.expect(Action::Receive);
    let r = Release { not_before: Some(START + 1_000), jitter: Some(600), ..release(42) };
    w.agent.handle_whole(r);
    w.agent.handle_received(w.now, Received::Whole);
    assert_eq!(w.next(1_000), None);
    w.reboot();
    assert_eq!(w.agent.state(), State::Ready);
    w.wait_for_command();
    assert!((moment..moment + 6).contains(&w.now.unix), "{moment} {}", w.now.unix);
}

#[test]
fn a_newer_release_takes_the_place_of_one_that_still_waits() {
    let closed = Windows::parse(&["Sun 12:00-13:00".to_owned()], 0).unwrap();
    let mut w = World::new(Rules { apply: closed, ..rules() });
    w.receive(42);
    w.receive(43);
    assert_eq!(w.agent.record().release.as_ref().map(|r| r.seq), Some(43));
    // One that cannot be received leaves what waits where it is.
    for _ in 0..3 {
        w.expect(Action::Look);
        w.agent.handle_looked(w.now, offer(44));
        w.expect(Action::Receive);
        assert_eq!(w.agent.state(), State::Receiving);
        w.agent.handle_received(w.now, Received::Failed("disk full".into()));
        assert_eq!(w.agent.state(), State::Ready);
    }
    assert_eq!(w.agent.record().given_up[KEY], 44);
}

#[test]
fn a_transfer_that_fails_here_has_so_many_tries() {
    let mut w = World::new(rules());
    for n in 1..=3 {
        w.expect(Action::Look);
        w.agent.handle_looked(w.now, offer(42));
        w.expect(Action::Receive);
        w.agent.handle_received(w.now, Received::Failed("disk full".into()));
        assert_eq!(w.agent.state(), if n < 3 { State::Waiting } else { State::Failed });
        if n == 2 {
            w.next(1); // recorded
            w.reboot();
        }
    }
    w.next(1);
    w.reboot();
    assert_eq!(w.agent.state(), State::Failed);
    assert!(w.agent.record().newer_than().any(|mark| mark == (KEY, 42)));
    w.receive(43);
    w.hand_over(Ended::Well);
    assert_eq!(w.agent.state(), State::Ok);
}

#[test]
fn a_file_that_somebody_spoilt_is_fetched_again_but_not_for_ever() {
    let mut w = World::new(rules());
    w.receive(42);
    w.hand_over(Ended::Gone("it differs".into()));
    assert_eq!(w.agent.state(), State::Waiting);
    w.receive(42);
    w.hand_over(Ended::Gone("it differs".into()));
    w.receive(42);
    w.hand_over(Ended::Gone("it differs".into()));
    assert_eq!(w.agent.state(), State::Failed);
    w.receive(43);
    w.hand_over(Ended::Well);
    assert_eq!(w.agent.state(), State::Ok);
}

#[test]
fn a_confirmation_that_never_comes_is_a_failure() {
    let mut w = World::new(Rules { confirms: true, ..rules() });
    w.receive(42);
    w.hand_over(Ended::Well);
    let handed_over = w.now.ms;
    let mut asked = 0;
    while w.agent.state() == State::HandedOver {
        w.expect(Action::Confirm); // and nothing newer is looked for meanwhile
        w.agent.handle_confirm(w.now, Ended::Later);
        asked += 1;
    }
    assert_eq!(w.agent.state(), State::Failed);
    let hours = (w.now.ms - handed_over) / 3_600_000;
    assert!((24..25).contains(&hours) && asked > 100, "{hours} {asked}");
}

#[test]
fn what_was_handed_over_waits_to_be_confirmed() {
    let mut w = World::new(Rules { confirms: true, ..rules() });
    w.receive(42);
    w.hand_over(Ended::Well);
    assert_eq!(w.agent.state(), State::HandedOver);
    w.expect(Action::Confirm);
    assert_eq!((w.remembered, w.disk.stage), (42, Stage::HandedOver));
    w.agent.handle_confirm(w.now, Ended::Later);
    assert_eq!(w.agent.state(), State::HandedOver);
    w.reboot();
    w.expect(Action::Confirm);
    w.agent.handle_confirm(w.now, Ended::Well);
    assert_eq!(w.agent.state(), State::Ok);
    w.receive(43);
    w.hand_over(Ended::Well);
    w.expect(Action::Confirm);
    w.agent.handle_confirm(w.now, Ended::Badly("exit 1".into()));
    assert_eq!(w.agent.state(), State::Failed);
    w.expect(Action::Look);
    assert_eq!(w.disk.stage, Stage::Failed);
}

#[test]
fn a_confirmation_saves_what_was_interrupted_by_its_own_reboot() {
    let mut w = World::new(Rules { confirms: true, ..rules() });
    w.receive(42);
    w.expect(Action::HandOver);
    w.reboot();
    w.expect(Action::Confirm);
    w.agent.handle_confirm(w.now, Ended::Well);
    assert_eq!((w.agent.state(), w.agent.record().installed[KEY]), (State::Ok, 42));
    w.expect(Action::Look);
    assert_eq!((w.remembered, w.disk.stage), (42, Stage::Ok));
    // And where it does not, the command is run again.
    w.agent.handle_looked(w.now, offer(43));
    w.expect(Action::Receive);
    w.agent.handle_whole(release(43));
    w.agent.handle_received(w.now, Received::Whole);
    w.expect(Action::HandOver);
    w.reboot();
    w.expect(Action::Confirm);
    w.agent.handle_confirm(w.now, Ended::Later);
    w.hand_over(Ended::Well);
    assert_eq!(w.agent.state(), State::HandedOver);
}
