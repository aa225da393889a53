//! What to do about one item, and when. Pure: moments and events go in by `handle_*`, actions come out of
//! [`Agent::poll_action`]. One thing at a time: while a command or a transfer runs, nothing else does.
//!
//! ```text
//!             something newer        whole               recorded          its moment has come,
//!  waiting ──────────────────► receiving ────► verified ────────► ready ─── window open ───► command
//!     ▲  window closed, no signal │                                 ▲   fails, tries left      │
//!     └───────────────────────────┘                                 └──────────────────────────┤
//!                                              ok ◄─── confirmed ─── handed-over ◄── ends well ┤
//!                                                                                              │
//!  a newer release leads on from all but an unconfirmed one                 failed ◄──── no tries left ────┘
//! ```
//!
//! Whatever is done that must not be done twice for nothing, or must not be forgotten, is recorded first:
//! [`Action::Keep`] comes before the action that it is about.

use super::record::{Attempts, Record, Release, Stage, raise};
use super::window::Windows;
use std::collections::VecDeque;

/// A back-off grows to this at most.
const LONGEST_BACKOFF: u64 = 6 * 3_600_000;
/// Clock, windows and the inhibit file are looked at so often, at least.
const LOOK_ROUND: u64 = 5_000;
/// The first time after the start, at the latest.
const FIRST: u64 = 10_000;
/// So often it listens whatever DNS says: DNS knows nothing of keys that were revoked, nor whose release it names.
const LISTEN: u64 = 24 * 3_600_000;

/// What time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds on a clock that never jumps.
    pub ms: u64,
    /// Seconds since 1970 on the device's clock, which may.
    pub unix: u64,
}

/// What the configuration says of an item, as far as it is decided here.
#[derive(Debug, Clone)]
pub struct Rules {
    /// DNS is asked before anything is joined.
    pub by_name: bool,
    /// Milliseconds between looks.
    pub poll: u64,
    /// Milliseconds before the second try.
    pub backoff: u64,
    /// Tries of a transfer, or of the command.
    pub tries: u32,
    pub receive: Windows,
    pub apply: Windows,
    /// There is a command that says whether a release that was handed over is in use.
    pub confirms: bool,
    /// Milliseconds in which it has to.
    pub confirm_within: u64,
    pub device_id: String,
}

/// The states that others see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Waiting,
    Receiving,
    Verified,
    Ready,
    HandedOver,
    Ok,
    Failed,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Receiving => "receiving",
            Self::Verified => "verified",
            Self::Ready => "ready",
            Self::HandedOver => "handed-over",
            Self::Ok => "ok",
            Self::Failed => "failed",
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Write the record to the disk.
    Keep,
    /// Raise the device's memory to the release in the record.
    Remember,
    /// Ask DNS: ends in [`Agent::handle_asked`].
    Ask,
    /// Find out what is sent: ends in [`Agent::handle_looked`].
    Look,
    /// Receive it: ends in [`Agent::handle_received`], perhaps after [`Agent::handle_whole`].
    Receive,
    /// End what was begun to look or to receive; it still ends as if by itself.
    Stop,
    /// Check the file and run the command: ends in [`Agent::handle_handover`].
    HandOver,
    /// Ask whether it is in use: ends in [`Agent::handle_confirm`].
    Confirm,
}

/// What a look brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// Something to be taken.
    Offer { seq: u64, key_id: String },
    /// Something that is not to be taken, and when that changes by itself, seconds since 1970.
    Refused { again: Option<u64>, message: String },
    /// Nothing, for now.
    Nothing(String),
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// With the object.
    Whole,
    /// The network, the sender or the publisher is the reason: no fault of this device or of this release.
    Elsewhere(String),
    /// Something here failed.
    Failed(String),
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    Well,
    /// It asked to be run later.
    Later,
    Badly(String),
    /// It was not run: what lies there is not what was received.
    Gone(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Idle,
    Asking,
    Looking,
    Receiving,
    HandingOver,
    Confirming,
}

/// One item.
#[derive(Debug)]
pub struct Agent {
    rules: Rules,
    record: Record,
    /// What is to be done first, in this order.
    queue: VecDeque<Action>,
    activity: Activity,
    stopping: bool,
    inhibited: bool,
    /// When to look next, hand over, confirm: on the clock that never jumps.
    look_at: u64,
    /// When to look also if DNS names nothing new.
    listen_at: u64,
    hand_over_at: u64,
    confirm_at: u64,
    confirm_by: u64,
    /// Looks and transfers in a row that came to nothing by no fault of ours.
    in_vain: u32,
    message: String,
    random: u64,
}

impl Agent {
    /// Begins, or goes on with what is remembered. The seed should differ between devices.
    pub fn new(rules: Rules, record: Record, seed: u64, now: Now) -> Self {
        let mut agent = Self {
            rules,
            record,
            queue: VecDeque::new(),
            activity: Activity::Idle,
            stopping: false,
            inhibited: false,
            look_at: 0,
            listen_at: now.ms.saturating_add(seed % LISTEN),
            hand_over_at: now.ms,
            confirm_at: now.ms,
            confirm_by: 0,
            in_vain: 0,
            message: String::new(),
            random: seed,
        };
        // A fleet that comes back after a power cut need not ask in the same second.
        let first = (agent.rules.poll / 10).min(FIRST);
        agent.look_at = now.ms + agent.draw() % (first + 1);
        agent.confirm_by = now.ms.saturating_add(agent.rules.confirm_within);
        match agent.record.stage {
            // The disk may have been full, or the power gone, between the two.
            Stage::HandedOver | Stage::Ok => agent.queue.push_back(Action::Remember),
            Stage::HandingOver if !agent.rules.confirms => {
                agent.handover_failed(now, "the command was interrupted".to_owned());
            }
            Stage::Verified => agent.set_stage(Stage::Ready),
            _ => {}
        }
        agent
    }

    /// What others see.
    pub fn state(&self) -> State {
        if self.activity == Activity::Receiving && self.record.stage != Stage::Verified {
            return State::Receiving;
        }
        match self.record.stage {
            Stage::Verified => State::Verified,
            Stage::Ready | Stage::HandingOver => State::Ready,
            _ if self.record.unreceived.is_some() => State::Failed,
            Stage::None => State::Waiting,
            Stage::HandedOver => State::HandedOver,
            Stage::Ok => State::Ok,
            Stage::Failed => State::Failed,
        }
    }

    /// Why it is as it is, for people; perhaps empty.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What is to be on the disk.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// When the publisher lets it be applied, seconds since 1970.
    pub fn moment(&self) -> Option<u64> {
        self.record.release.as_ref().map(|release| release.moment(&self.rules.device_id))
    }

    /// Whether the command or its confirmation runs.
    pub fn is_busy_with_command(&self) -> bool {
        matches!(self.activity, Activity::HandingOver | Activity::Confirming)
    }

    /// Whether the inhibit file is there.
    pub fn is_inhibited(&self) -> bool {
        self.inhibited
    }

    /// Somebody wants nothing to be begun, or no longer.
    pub fn handle_inhibited(&mut self, inhibited: bool) {
        self.inhibited = inhibited;
    }

    /// What to do next; `None`: nothing before [`Agent::poll_timeout`] or an event.
    pub fn poll_action(&mut self, now: Now) -> Option<Action> {
        if matches!(self.queue.front(), Some(Action::Look | Action::Receive)) && !self.may_receive(now) {
            // Since that was decided the window has closed, or somebody has forbidden it.
            self.queue.pop_front();
            (self.activity, self.look_at) = (Activity::Idle, now.ms);
        }
        if self.queue.is_empty() {
            match self.activity {
                Activity::Idle => self.begin(now),
                Activity::Looking | Activity::Receiving if !self.may_receive(now) && !self.stopping => {
                    self.stopping = true;
                    self.queue.push_back(Action::Stop);
                }
                _ => {}
            }
        }
        self.queue.pop_front()
    }

    /// The same when the agent is about to end: what is still to be recorded, and nothing new.
    pub fn poll_last(&mut self) -> Option<Action> {
        self.queue.retain(|action| matches!(action, Action::Keep | Action::Remember));
        self.queue.pop_front()
    }

    /// Milliseconds until there may be something to do.
    pub fn poll_timeout(&self, now: Now) -> u64 {
        let due = match self.activity {
            Activity::Idle => {
                let hand_over = (self.record.stage == Stage::Ready).then_some(self.hand_over_at);
                let confirm = self.wants_confirmation().then_some(self.confirm_at);
                let look = self.may_receive(now).then_some(self.look_at);
                hand_over.into_iter().chain(confirm).chain(look).filter(|at| *at > now.ms).min()
            }
            _ => None,
        };
        due.map_or(LOOK_ROUND, |at| at - now.ms).min(LOOK_ROUND)
    }

    fn begin(&mut self, now: Now) {
        self.stopping = false;
        if self.wants_confirmation() && now.ms >= self.confirm_at {
            self.start(Activity::Confirming, Action::Confirm);
        } else if self.may_apply(now) {
            // Counted before it runs: what takes the whole device down with it must come to an end, too.
            self.record.attempts += 1;
            self.set_stage(Stage::HandingOver);
            self.start(Activity::HandingOver, Action::HandOver);
        } else if self.may_receive(now) && now.ms >= self.look_at && !self.wants_confirmation() {
            match self.rules.by_name {
                true => self.start(Activity::Asking, Action::Ask),
                false => self.look(now),
            }
        }
    }

    fn look(&mut self, now: Now) {
        self.listen_at = now.ms.saturating_add(LISTEN);
        self.start(Activity::Looking, Action::Look);
    }

    fn start(&mut self, activity: Activity, action: Action) {
        self.activity = activity;
        self.queue.push_back(action);
    }

    fn set_stage(&mut self, stage: Stage) {
        self.record.stage = stage;
        self.keep();
    }

    fn keep(&mut self) {
        self.queue.push_back(Action::Keep);
    }

    fn wants_confirmation(&self) -> bool {
        self.rules.confirms && matches!(self.record.stage, Stage::HandedOver | Stage::HandingOver)
    }

    fn may_receive(&self, now: Now) -> bool {
        !self.inhibited && self.rules.receive.is_open(now.unix)
    }

    fn may_apply(&self, now: Now) -> bool {
        let Some(release) = self.record.release.as_ref() else { return false };
        self.record.stage == Stage::Ready
            && !self.inhibited
            && now.ms >= self.hand_over_at
            && self.rules.apply.is_open(now.unix)
            && !self.is_early(release, now)
    }

    /// Whether its publisher wants it to wait. Where he set nothing there is nothing to wait for, also if the clock was
    /// set back since it was whole.
    fn is_early(&self, release: &Release, now: Now) -> bool {
        let is_set = release.not_before.is_some() || release.jitter.is_some();
        is_set && release.moment(&self.rules.device_id) > now.unix
    }

    /// What keeps it from going on, for people.
    pub fn waits_for(&self, now: Now) -> Option<&'static str> {
        let idle = self.activity == Activity::Idle;
        match (&self.record.stage, &self.record.release) {
            (Stage::Ready, Some(release)) if idle => {
                let reasons = [
                    (self.inhibited, "the inhibit file"),
                    (self.is_early(release, now), "the moment that its publisher set"),
                    (!self.rules.apply.is_open(now.unix), "the apply window"),
                    (now.ms < self.hand_over_at, "the next try"),
                ];
                reasons.iter().find(|(holds, _)| *holds).map(|(_, what)| *what)
            }
            _ if idle && self.inhibited => Some("the inhibit file"),
            _ if idle && !self.rules.receive.is_open(now.unix) => Some("the receive window"),
            _ => None,
        }
    }

    /// DNS has answered: the release that it names, if it does; or it has not, and why.
    pub fn handle_asked(&mut self, now: Now, answer: Result<Option<u64>, String>) {
        self.activity = Activity::Idle;
        let is_quiet = now.ms < self.listen_at;
        match answer {
            Ok(Some(seq)) if is_quiet && self.record.newer_than().any(|(_, known)| known == seq) => {
                self.nothing_new(now, format!("release {seq} is the newest"));
            }
            // It is a hint: what is sent decides, also where the number seems to be smaller.
            Ok(_) if self.may_receive(now) => self.look(now),
            Ok(_) => {}
            Err(message) => self.came_to_nothing(now, message),
        }
    }

    /// A look has ended.
    pub fn handle_looked(&mut self, now: Now, looked: Looked) {
        self.activity = Activity::Idle;
        if self.stopping {
            return; // it goes on where it was when the window opens
        }
        match looked {
            Looked::Offer { seq, key_id } => {
                self.in_vain = 0;
                self.note_offer(seq, key_id);
                self.message = format!("release {seq} is on the air");
                self.start(Activity::Receiving, Action::Receive);
            }
            Looked::Refused { again, message } => {
                self.nothing_new(now, message);
                if let Some(time) = again {
                    // A moment later than all clocks agree on, and not all devices in it.
                    let wait = time.saturating_sub(now.unix).saturating_mul(1_000);
                    let late = self.draw() % (self.rules.poll / 10).clamp(1, 2_000);
                    self.look_at = self.look_at.min(now.ms.saturating_add(wait).saturating_add(late));
                }
            }
            Looked::Nothing(message) => self.came_to_nothing(now, message),
        }
    }

    /// What failed before goes on to count, if it was the same release.
    fn note_offer(&mut self, seq: u64, key_id: String) {
        let same = |a: &Attempts| (a.seq, a.key_id.as_str()) == (seq, key_id.as_str());
        if !self.record.receiving.as_ref().is_some_and(same) {
            self.record.receiving = Some(Attempts { seq, key_id, failed: 0 });
        }
    }

    /// The object has its name. The transfer's end is still to come.
    pub fn handle_whole(&mut self, release: Release) {
        self.message = format!("release {} is whole", release.seq);
        (self.record.unreceived, self.record.attempts) = (None, 0);
        self.record.release = Some(release);
        self.set_stage(Stage::Verified);
    }

    /// A transfer has ended.
    pub fn handle_received(&mut self, now: Now, received: Received) {
        self.activity = Activity::Idle;
        if self.record.stage == Stage::Verified {
            // However it ended after that: the object is there.
            self.hand_over_at = now.ms;
            self.set_stage(Stage::Ready);
            self.nothing_new(now, String::new());
            return;
        }
        if self.stopping {
            self.look_at = now.ms;
            return;
        }
        match received {
            Received::Whole => self.transfer_failed(now, "it said nothing of the object".to_owned()),
            Received::Elsewhere(message) => self.came_to_nothing(now, message),
            Received::Failed(message) => self.transfer_failed(now, message),
        }
    }

    fn transfer_failed(&mut self, now: Now, message: String) {
        let Some(attempts) = &mut self.record.receiving else { return self.came_to_nothing(now, message) };
        attempts.failed += 1;
        let (failed, seq) = (attempts.failed, attempts.seq);
        if failed >= self.rules.tries {
            raise(&mut self.record.given_up, &attempts.key_id.clone(), seq);
            (self.record.receiving, self.record.unreceived) = (None, Some(seq));
            self.nothing_new(now, format!("release {seq} is given up after {failed} tries: {message}"));
        } else {
            self.look_at = now.ms.saturating_add(self.backoff(failed));
            self.message = format!("release {seq}, try {failed} of {}: {message}", self.rules.tries);
        }
        self.keep();
    }

    /// The command has ended.
    pub fn handle_handover(&mut self, now: Now, ended: Ended) {
        self.activity = Activity::Idle;
        match ended {
            Ended::Well => self.handed_over(now),
            Ended::Later => {
                self.handle_unstarted();
                self.hand_over_at = now.ms.saturating_add(self.backoff(1));
                self.message = "the command asked to be run later".to_owned();
            }
            Ended::Badly(message) => self.handover_failed(now, message),
            Ended::Gone(message) => {
                let release = self.record.release.take();
                self.record.attempts = 0;
                self.set_stage(Stage::None);
                self.look_at = now.ms;
                if let Some(Release { seq, key_id, .. }) = release {
                    // Whoever spoils it each time must not have it fetched for ever.
                    self.note_offer(seq, key_id);
                    self.transfer_failed(now, message);
                }
            }
        }
    }

    /// The command was not started after all: that was no try.
    pub fn handle_unstarted(&mut self) {
        self.activity = Activity::Idle;
        self.record.attempts = self.record.attempts.saturating_sub(1);
        self.set_stage(Stage::Ready);
    }

    fn handed_over(&mut self, now: Now) {
        if let Some(release) = &self.record.release {
            raise(&mut self.record.installed, &release.key_id, release.seq);
            self.message = format!("release {} is handed over", release.seq);
        }
        self.record.receiving = None;
        (self.confirm_at, self.confirm_by) = (now.ms, now.ms.saturating_add(self.rules.confirm_within));
        self.set_stage(if self.rules.confirms { Stage::HandedOver } else { Stage::Ok });
        self.queue.push_back(Action::Remember);
    }

    fn handover_failed(&mut self, now: Now, message: String) {
        let (attempts, tries) = (self.record.attempts, self.rules.tries);
        if attempts < tries {
            self.hand_over_at = now.ms.saturating_add(self.backoff(attempts));
            self.message = format!("try {attempts} of {tries}: {message}");
            self.set_stage(Stage::Ready);
        } else {
            self.fail(format!("given up after {attempts} tries: {message}"));
        }
    }

    fn fail(&mut self, message: String) {
        if let Some(release) = &self.record.release {
            raise(&mut self.record.given_up, &release.key_id, release.seq);
            self.message = format!("release {} is {message}", release.seq);
        }
        self.set_stage(Stage::Failed);
    }

    /// The confirmation has ended. `Later` means that it is not known yet.
    pub fn handle_confirm(&mut self, now: Now, ended: Ended) {
        self.activity = Activity::Idle;
        let interrupted = self.record.stage == Stage::HandingOver;
        match ended {
            Ended::Well => {
                if interrupted {
                    self.handed_over(now);
                }
                self.set_stage(Stage::Ok);
                self.message = "confirmed".to_owned();
            }
            // The command was interrupted and has not done its work, as far as anybody knows.
            _ if interrupted => self.handover_failed(now, "the command was interrupted".to_owned()),
            Ended::Later if now.ms >= self.confirm_by => self.fail("not confirmed in time".to_owned()),
            Ended::Later => {
                self.confirm_at = now.ms.saturating_add(self.backoff(1));
                self.message = "not confirmed yet".to_owned();
            }
            Ended::Badly(message) | Ended::Gone(message) => {
                self.fail(format!("not confirmed: {message}"));
            }
        }
    }

    fn nothing_new(&mut self, now: Now, message: String) {
        self.in_vain = 0;
        let poll = self.rules.poll;
        self.look_at = now.ms.saturating_add(self.about(poll));
        self.message = message;
    }

    /// No fault of ours: it is tried for ever, but not more often than there would be a look anyway.
    fn came_to_nothing(&mut self, now: Now, message: String) {
        self.in_vain += 1;
        let wait = self.backoff(self.in_vain).min(self.rules.poll);
        self.look_at = now.ms.saturating_add(wait);
        self.message = message;
    }

    /// After so many failures.
    fn backoff(&mut self, failures: u32) -> u64 {
        let doubled = self.rules.backoff.saturating_mul(1 << failures.saturating_sub(1).min(20));
        self.about(doubled.min(LONGEST_BACKOFF))
    }

    /// From three quarters to five quarters of it.
    fn about(&mut self, ms: u64) -> u64 {
        ms - ms / 4 + self.draw() % (ms / 2 + 1)
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}
