//! `watch`: the agent of a device. It waits for newer releases, has them fetched, and hands them over.
//!
//! It is a supervisor and nothing else: it reads no packet and asks no nameserver. For each of that it starts this
//! program once more (`discover`, `get --look`, `get`), which shuts itself in, keeps its own work, and may die without
//! harm; from its JSON lines the agent knows how it went. What is to be done, and when, says [`agent`], which has neither
//! clock nor files; here is who does it, one loop around a queue of events. What must not be forgotten is in [`record`].

mod agent;
#[cfg(test)]
mod agent_tests;
mod child;
mod command;
mod config;
mod record;
mod status;
mod window;

use crate::cli;
use crate::clock::unix_time;
use crate::state::State;
use agent::{Action, Agent, Ended, Now};
use carousel_proto::authority::{Marks, Memory};
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::signature::KeyId;
use child::{Child, ChildId, Kind, Told};
use command::{Line, Said};
use config::{Config, Item, Place};
use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::libc;
use record::{Record, Release};
use status::{Progress, Status};
use std::collections::BTreeSet;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Warnings of transfers that are told once each.
const TOLD: usize = 32;

/// What the loop waits for.
enum Event {
    /// A signal came.
    Signal,
    /// Of one of an item's programs.
    Child(ChildId, Told),
    /// Whether what lies there is what was received.
    Checked(ChildId, Result<(), String>),
}

/// Signals, noted.
struct Signals {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

/// Why the loop ended.
enum End {
    Stop,
    Reload(Box<Config>),
}

/// `watch`.
pub fn watch(arguments: &cli::Watch) -> Result<(), Failure> {
    let mut config = Config::read(&arguments.config)?;
    if arguments.check {
        return Ok(());
    }
    let failed =
        |e: std::io::Error| Failure::new(Outcome::Failed, format!("this program has no path: {}", plain(&e)));
    let program = std::env::current_exe().map_err(failed)?;
    let (events, queue) = unbounded();
    let signals = Signals::register(&events)?;
    loop {
        let state = State::open(&config.state)?;
        let _alone = state.lock_for_agent()?.ok_or_else(|| {
            let folder = config.state.display();
            Failure::new(Outcome::TryAgain, format!("{folder}: another agent is at work with it"))
        })?;
        let mut supervisor = Supervisor::new(&config, &program, &state, events.clone())?;
        match supervisor.run(&queue, &signals, arguments)? {
            End::Stop => return Ok(()),
            End::Reload(new) => {
                drop(supervisor);
                config = *new;
                tracing::info!("{} is taken up", arguments.config.display());
            }
        }
    }
}

impl Signals {
    /// SIGTERM and SIGINT end it, SIGHUP has the file read again. Each of them wakes the loop.
    fn register(events: &Sender<Event>) -> Result<Self, Failure> {
        let signals = Self { stop: Arc::default(), reload: Arc::default() };
        let register = || {
            let (mut bell, ringer) = std::io::pipe()?;
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                let flag = if signal == libc::SIGHUP { &signals.reload } else { &signals.stop };
                signal_hook::flag::register(signal, Arc::clone(flag))?;
                signal_hook::low_level::pipe::register(signal, ringer.try_clone()?)?;
            }
            let events = events.clone();
            thread::spawn(move || {
                while bell.read(&mut [0; 16]).is_ok_and(|n| n > 0) && events.send(Event::Signal).is_ok() {}
            });
            Ok(())
        };
        register().map_err(|e: std::io::Error| {
            Failure::new(Outcome::Failed, format!("signals cannot be caught: {e}"))
        })?;
        Ok(signals)
    }
}

/// All items, and what runs for them.
struct Supervisor<'a> {
    config: &'a Config,
    program: &'a PathBuf,
    state: &'a State,
    events: Sender<Event>,
    workers: Vec<Worker<'a>>,
    status: Status,
    began: Instant,
    children: u64,
}

/// One item.
struct Worker<'a> {
    item: &'a Item,
    agent: Agent,
    task: Option<Task>,
    progress: Progress,
    /// Warnings of transfers that have been told.
    told: BTreeSet<String>,
    shown: (agent::State, String),
    since: u64,
}

/// What runs.
struct Task {
    id: ChildId,
    what: What,
    /// Not while the file is checked.
    child: Option<Child>,
    said: Said,
    /// When it has taken too long.
    overdue_at: Option<Instant>,
    overdue: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Ask,
    Look,
    Receive,
    HandOver,
    Confirm,
}

impl<'a> Supervisor<'a> {
    fn new(
        config: &'a Config,
        program: &'a PathBuf,
        state: &'a State,
        events: Sender<Event>,
    ) -> Result<Self, Failure> {
        let began = Instant::now();
        let now = Now { ms: 0, unix: unix_time() };
        let worker = |item: &'a Item| {
            let record = Record::read(state, &config.state, &item.name)?;
            let seed = RandomState::new().build_hasher().finish();
            let agent = Agent::new(item.rules.clone(), record, seed, now);
            let shown = (agent.state(), String::new());
            tracing::info!("{}: {}", item.name, agent.state().name());
            let (progress, told) = (Progress::default(), BTreeSet::new());
            Ok(Worker { item, agent, task: None, progress, told, shown, since: now.unix })
        };
        let workers = config.items.iter().map(worker).collect::<Result<_, Failure>>()?;
        let status = Status::new(config.status.clone(), config.device_id.clone());
        Ok(Self { config, program, state, events, workers, status, began, children: 0 })
    }

    fn run(
        &mut self,
        queue: &Receiver<Event>,
        signals: &Signals,
        arguments: &cli::Watch,
    ) -> Result<End, Failure> {
        let mut reload: Option<Box<Config>> = None;
        loop {
            if signals.stop.load(Ordering::Relaxed) {
                self.end_all(queue)?;
                return Ok(End::Stop);
            }
            if signals.reload.swap(false, Ordering::Relaxed) {
                match Config::read(&arguments.config) {
                    Ok(config) => reload = Some(Box::new(config)),
                    Err(failure) => tracing::error!("{failure}; going on as before"),
                }
            }
            // No command is broken off for a new file; and nothing else begins before it is taken up.
            let commands = self.workers.iter().any(|worker| worker.agent.is_busy_with_command());
            if !commands && let Some(config) = reload.take() {
                self.end_all(queue)?;
                return Ok(End::Reload(config));
            }
            let mut wait = Duration::from_secs(5);
            for index in 0..self.workers.len() {
                if reload.is_none() {
                    self.act(index)?;
                }
                wait = wait.min(self.look_after(index));
            }
            self.tell();
            if let Ok(event) = queue.recv_timeout(wait) {
                self.handle(event);
            }
        }
    }

    fn now(&self) -> Now {
        Now { ms: self.began.elapsed().as_millis() as u64, unix: unix_time() }
    }

    /// Does what an item's agent says.
    fn act(&mut self, index: usize) -> Result<(), Failure> {
        let now = self.now();
        let inhibited = self.config.inhibit.as_deref().is_some_and(|path| path.exists());
        self.workers[index].agent.handle_inhibited(inhibited);
        while let Some(action) = self.workers[index].agent.poll_action(now) {
            let worker = &mut self.workers[index];
            tracing::debug!("{}: {action:?}", worker.item.name);
            match action {
                Action::Keep | Action::Remember => self.record(index, action)?,
                Action::Stop => {
                    if let Some(child) = worker.task.as_mut().and_then(|task| task.child.as_mut()) {
                        child.stop();
                    }
                }
                Action::Ask => self.begin(index, What::Ask),
                Action::Look => self.begin(index, What::Look),
                Action::Receive => self.begin(index, What::Receive),
                Action::HandOver => self.begin(index, What::HandOver),
                Action::Confirm => self.begin(index, What::Confirm),
            }
            self.tell();
        }
        Ok(())
    }

    /// Writes down what must not be forgotten.
    fn record(&self, index: usize, action: Action) -> Result<(), Failure> {
        let worker = &self.workers[index];
        match (action, memory(worker.agent.record())) {
            (Action::Keep, _) => worker.agent.record().keep(self.state, &worker.item.name),
            (Action::Remember, Some(memory)) => self.state.remember(&memory),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, index: usize, what: What) {
        self.children += 1;
        let id = ChildId(self.children);
        let worker = &mut self.workers[index];
        worker.progress = Progress::default();
        let said = Said::default();
        worker.task = Some(Task { id, what, child: None, said, overdue_at: None, overdue: false });
        let release = worker.agent.record().release.clone();
        match (what, release) {
            (What::HandOver, Some(release)) => {
                // Hours may have passed, and a power cut: it must be what it was.
                let events = self.events.clone();
                thread::spawn(move || drop(events.send(Event::Checked(id, check(&release)))));
            }
            _ => self.start(index),
        }
    }

    /// Starts the program of an item's task.
    fn start(&mut self, index: usize) {
        let (item, record) = (self.workers[index].item, self.workers[index].agent.record());
        let Some(task) = &self.workers[index].task else { return };
        let (id, what) = (task.id, task.what);
        let command = match (what, &item.place, &record.release) {
            (What::Ask, Place::Service(service), _) => Some(command::ask(self.program, self.config, service)),
            (What::Look | What::Receive, ..) => {
                Some(command::get(self.program, self.config, item, record, what == What::Look))
            }
            (What::HandOver, _, Some(release)) => {
                item.handover.as_deref().map(|line| command::foreign(line, release))
            }
            (What::Confirm, _, Some(release)) => {
                item.confirm.as_deref().map(|line| command::foreign(line, release))
            }
            _ => None,
        };
        // Without a command, what lies there is handed over, and in use.
        let Some(command) = command else { return self.ended(index, ExitStatus::default()) };
        let foreign = matches!(what, What::HandOver | What::Confirm);
        let kind = if foreign { Kind::Foreign } else { Kind::Own };
        let told = child::into(&self.events, Event::Child);
        match Child::spawn(command, kind, id, told) {
            Ok(child) => {
                if let Some(task) = &mut self.workers[index].task {
                    task.child = Some(child);
                    task.overdue_at =
                        foreign.then(|| Instant::now() + Duration::from_millis(item.command_timeout));
                }
            }
            Err(error) => {
                let name = &item.name;
                tracing::error!("{name}: a program cannot be started: {}", plain(&error));
                self.ended(index, ExitStatus::from_raw((Outcome::Failed as i32) << 8));
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let of = |workers: &[Worker<'_>], id: ChildId| {
            workers.iter().position(|worker| worker.task.as_ref().is_some_and(|task| task.id == id))
        };
        match event {
            Event::Signal => {}
            Event::Checked(id, checked) => {
                let Some(index) = of(&self.workers, id) else { return };
                match checked {
                    Ok(()) => self.start(index),
                    Err(why) => {
                        self.workers[index].task = None;
                        let now = self.now();
                        self.workers[index].agent.handle_handover(now, Ended::Gone(why));
                    }
                }
            }
            Event::Child(id, told) => {
                let Some(index) = of(&self.workers, id) else { return };
                match told {
                    Told::Out(line) => self.workers[index].said(&line),
                    Told::Err(line) => self.workers[index].complained(&line),
                    Told::Ended(status) => self.ended(index, status),
                }
            }
        }
    }

    /// The program of an item's task has ended.
    fn ended(&mut self, index: usize, status: ExitStatus) {
        let now = self.now();
        let worker = &mut self.workers[index];
        let Some(task) = worker.task.take() else { return };
        let agent = &mut worker.agent;
        match task.what {
            What::Ask => agent.handle_asked(now, task.said.asked(status)),
            What::Look => agent.handle_looked(now, task.said.looked(status)),
            What::Receive => agent.handle_received(now, task.said.received(status)),
            What::HandOver => agent.handle_handover(now, command::ended(status, task.overdue)),
            What::Confirm => agent.handle_confirm(now, command::ended(status, task.overdue)),
        }
    }

    /// Ends what takes too long. How long until there may be something to do.
    fn look_after(&mut self, index: usize) -> Duration {
        let now = self.now();
        let worker = &mut self.workers[index];
        let mut wait = Duration::from_millis(worker.agent.poll_timeout(now));
        if let Some(task) = &mut worker.task {
            let left = task.overdue_at.map(|at| at.saturating_duration_since(Instant::now()));
            if let Some(child) = &mut task.child {
                if left == Some(Duration::ZERO) {
                    task.overdue = true;
                    child.stop();
                }
                wait = wait.min(child.look().or(left).unwrap_or(wait));
            }
        }
        wait.max(Duration::from_millis(1))
    }

    /// Ends everything: transfers keep their work, commands are asked to end. Bounded by the patience with them. What
    /// ends well meanwhile counts.
    fn end_all(&mut self, queue: &Receiver<Event>) -> Result<(), Failure> {
        for worker in &mut self.workers {
            // One that is still to be checked is not started any more.
            if worker.task.take_if(|task| task.child.is_none()).is_some() {
                worker.agent.handle_unstarted();
            }
            worker.task.iter_mut().filter_map(|task| task.child.as_mut()).for_each(Child::stop);
        }
        loop {
            for index in 0..self.workers.len() {
                while let Some(action) = self.workers[index].agent.poll_last() {
                    self.record(index, action)?;
                }
            }
            self.tell();
            if self.workers.iter().all(|worker| worker.task.is_none()) {
                return Ok(());
            }
            let children = self.workers.iter_mut().filter_map(|worker| worker.task.as_mut()?.child.as_mut());
            let wait = children.filter_map(Child::look).min().unwrap_or(Duration::from_secs(1));
            if let Ok(event) = queue.recv_timeout(wait.max(Duration::from_millis(1))) {
                self.handle(event);
            }
        }
    }

    /// What others get to see.
    fn tell(&mut self) {
        let now = self.now();
        for worker in &mut self.workers {
            let (state, message) = (worker.agent.state(), worker.agent.message());
            if (worker.shown.0, worker.shown.1.as_str()) != (state, message) {
                if worker.shown.0 != state {
                    worker.since = now.unix;
                }
                let colon = if message.is_empty() { "" } else { ": " };
                tracing::info!("{}: {}{colon}{message}", worker.item.name, state.name());
                worker.shown = (state, message.to_owned());
            }
        }
        let items = self.workers.iter().map(|worker| {
            let progress = worker.task.as_ref().is_some_and(|task| task.what == What::Receive);
            let progress = progress.then_some(&worker.progress);
            status::item(&worker.item.name, &worker.agent, worker.since, now, progress)
        });
        self.status.show(items.collect(), now.unix);
    }
}

impl Worker<'_> {
    /// A line on stdout of one of our programs.
    fn said(&mut self, line: &str) {
        let Some(task) = &mut self.task else { return };
        match task.said.handle_out(line, unix_time()) {
            Line::Progress(value) => self.progress.handle(&value),
            Line::Whole(release) if task.what == What::Receive => self.agent.handle_whole(release),
            Line::Whole(_) | Line::Noted => {}
        }
    }

    /// A line on a transfer's stderr. What it warns of is told once: the next look would say it again.
    fn complained(&mut self, line: &str) {
        let Some(task) = &mut self.task else { return };
        task.said.handle_err(line);
        let words = line.trim_start();
        let is_warning =
            (words.starts_with("WARN") || words.starts_with("ERROR")) && !words.contains("refused: ");
        if is_warning && self.told.len() < TOLD && self.told.insert(words.to_owned()) {
            eprintln!("{}: {words}", self.item.name);
        } else {
            tracing::debug!("{}: {line}", self.item.name);
        }
    }
}

/// That a release was handed over, as `get` remembers it.
fn memory(record: &Record) -> Option<Memory> {
    let release = record.release.as_ref()?;
    let mut marks = Marks::default();
    marks.raise(KeyId::parse(&release.key_id)?, *record.installed.get(&release.key_id)?);
    let mut memory = Memory::default();
    memory.releases.insert(release.name.clone(), marks);
    Some(memory)
}

/// Whether what lies there is what was received. A folder has no hash of its own and is believed.
fn check(release: &Release) -> Result<(), String> {
    let path = release.path.display();
    let check = || -> std::io::Result<bool> {
        let metadata = std::fs::metadata(&release.path)?;
        if metadata.is_dir() {
            return Ok(true);
        }
        if !metadata.file_type().is_block_device() && metadata.len() != release.size {
            return Ok(false);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(&release.path)?.take(release.size))?;
        Ok(hasher.finalize().to_hex().as_str() == release.digest)
    };
    match check() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{path}: is not what was received any more")),
        Err(error) => Err(format!("{path}: {}", plain(&error))),
    }
}
