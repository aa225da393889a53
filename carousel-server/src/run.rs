//! `run`: the supervisor. It keeps a thread for each channel, and on SIGHUP gives the threads concerned what to do
//! next. It hears of signals from a thread that waits for nothing else: no pipe, no socket.

use crate::cli;
use crate::keys::has_password;
use crate::plan::{Plan, Work};
use crate::sandbox::Sandbox;
use crate::send::{self, Change, NOTICE};
use crate::socket::{Sender as Socket, Target};
use crate::status::{Meter, Shown, Status};
use crate::tally::Tally;
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::schedule::Tier;
use carousel_proto::units::{show_rate, show_seconds, show_size};
use nix::sys::signal::{SigSet, Signal};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// What the supervisor waits for.
enum Event {
    Signal(Signal),
    /// A channel's thread has ended after so many packets.
    Ended(u64),
}

/// A channel that is being sent.
struct Running {
    work: Work,
    changes: Sender<Change>,
    tally: Arc<Tally>,
    meter: Meter,
}

struct Supervisor<'a> {
    arguments: &'a cli::Run,
    status: &'a mut Status,
    sandbox: Sandbox,
    channels: Vec<Running>,
    /// For the threads.
    events: Sender<Event>,
    /// Threads that have not ended yet.
    alive: usize,
    /// Told to end: nothing is taken up any more.
    ending: bool,
}

/// `run`. However it ends, the status says so.
pub fn run(arguments: &cli::Run) -> Result<(), Failure> {
    let plan = Plan::new(arguments)?;
    // While there is nothing else that its process could inherit: no bundle, no secret, no thread.
    let mut status = Status::new(plan.published.clone(), arguments.no_sandbox)?;
    let ended = send_all(arguments, plan, &mut status);
    status.end(ended.as_ref().err());
    ended
}

fn send_all(arguments: &cli::Run, plan: Plan, status: &mut Status) -> Result<(), Failure> {
    let files = plan.files();
    let works = plan.open()?;
    check_interfaces(&works, &[])?;
    let on_terminal = std::io::stderr().is_terminal();
    let sandbox = enter_sandbox(arguments, &files);
    let (events, inbox) = channel();
    catch_signals(arguments.once, events.clone())?;
    let channels = Vec::new();
    let mut supervisor = Supervisor { arguments, status, sandbox, channels, events, alive: 0, ending: false };
    supervisor.take_up(works, Instant::now())?;
    let sent = supervisor.watch(&inbox, on_terminal);
    tracing::info!("ended after {sent} packets");
    Ok(())
}

impl Supervisor<'_> {
    /// Does what signals say until all threads have ended; how many packets that makes.
    fn watch(&mut self, inbox: &Receiver<Event>, on_terminal: bool) -> u64 {
        let mut sent = 0;
        self.show();
        while self.alive > 0 {
            // Its own sender is in there, so it is never the last.
            match inbox.recv_timeout(self.status.due().unwrap_or(Duration::MAX)) {
                Err(RecvTimeoutError::Timeout) => self.show(),
                Ok(Event::Ended(packets)) => {
                    self.alive -= 1;
                    sent += packets;
                }
                // A terminal that was closed says goodbye in the same way.
                Ok(Event::Signal(Signal::SIGHUP))
                    if on_terminal == std::io::stderr().is_terminal() && !self.ending =>
                {
                    let result = self.reload();
                    self.status.reloaded(result.is_ok());
                    if let Err(failure) = result {
                        tracing::warn!("{}; everything goes on as before", failure.message);
                    }
                    self.show();
                }
                _ => {
                    let at = Instant::now();
                    self.ending = true;
                    self.channels.iter().for_each(|channel| channel.change(at, None));
                }
            }
        }
        self.show(); // the last counts of all
        sent
    }

    /// Tells whoever reads the status.
    fn show(&mut self) {
        self.status.show(self.channels.iter_mut().map(Running::shown));
    }

    /// Reads everything anew and, if it is all right, takes it up.
    fn reload(&mut self) -> Result<(), Failure> {
        self.arguments.config.iter().try_for_each(|file| self.sandbox.check(file))?;
        let plan = Plan::new(self.arguments)?;
        plan.files().iter().try_for_each(|file| self.sandbox.check(file))?;
        if plan.published != *self.status.files() {
            tracing::warn!("status and metrics stay the files that they are until a restart");
        }
        // To ask for it a terminal would be opened for writing, and that is death in the sandbox.
        if let (Some(key), false) = (&plan.statements.heartbeat_key, self.arguments.no_sandbox)
            && has_password(key)?
        {
            let key = key.display();
            let what = "has a password, which is asked for only at the start; restart the server";
            return Err(Failure::usage(format!("{key}: {what}")));
        }
        let works = plan.open()?;
        check_interfaces(&works, &self.channels)?;
        self.take_up(works, Instant::now() + NOTICE)
    }

    /// From a moment on, sends these and nothing else. What is the same as before hears nothing of it.
    fn take_up(&mut self, works: Vec<Work>, at: Instant) -> Result<(), Failure> {
        // New threads first: if the system has no more of them, nothing has changed yet.
        let is_known = |work: &&Work| self.channels.iter().any(|channel| channel.is_same_place(work));
        let fresh = works.iter().filter(|work| !is_known(work)).count();
        let fresh = (0..fresh).map(|_| self.start()).collect::<Result<Vec<_>, _>>()?;
        let (started, mut fresh) = (fresh.len(), fresh.into_iter());
        let mut before = std::mem::take(&mut self.channels);
        let (known, mut as_before, mut unsigned) = (before.len(), 0, Vec::new());
        for work in works {
            let running = before.iter().position(|channel| channel.is_same_place(&work));
            let running = running.map(|index| before.swap_remove(index));
            let thread = match running {
                Some(running) if running.work.is_same(&work) => {
                    as_before += 1;
                    self.channels.push(running);
                    continue;
                }
                Some(running) => {
                    announce("now ", &work, &mut unsigned);
                    let (new, old) = (&work.bundle.manifest, &running.work.bundle.manifest);
                    if new.name == old.name && new.seq < old.seq {
                        tracing::warn!(
                            "{}: seq {} comes after seq {}: to go back on purpose, pack the old content with a higher --seq",
                            new.name,
                            new.seq,
                            old.seq
                        );
                    }
                    Some((running.changes, running.tally, running.meter))
                }
                None => {
                    announce("", &work, &mut unsigned);
                    fresh.next() // of which there are as many as it needs
                }
            };
            if let Some((changes, tally, meter)) = thread {
                let channel = Running { work, changes, tally, meter };
                channel.change(at, Some(channel.work.clone()));
                self.channels.push(channel);
            }
        }
        let ended = before.len();
        for channel in before {
            tracing::info!("{}: no more", channel.work.channel.target);
            channel.change(at, None);
        }
        if known > 0 {
            let changed = known - as_before - ended;
            tracing::info!(
                "taken up: {changed} changed, {started} new, {ended} ended, {as_before} as before"
            );
        }
        Ok(())
    }

    /// A thread that waits for its first change.
    fn start(&mut self) -> Result<(Sender<Change>, Arc<Tally>, Meter), Failure> {
        let (changes, inbox) = channel();
        let (events, once) = (self.events.clone(), self.arguments.once);
        let tally = Arc::new(Tally::default());
        let counts = Arc::clone(&tally);
        let thread = move || {
            let sent = send::run(&inbox, once, &counts);
            let _ = events.send(Event::Ended(sent)); // to nobody, if the program is ending
        };
        spawn(thread)?;
        self.alive += 1;
        Ok((changes, tally, Meter::default()))
    }
}

impl Running {
    fn is_same_place(&self, work: &Work) -> bool {
        self.work.channel.target.is_same_place(&work.channel.target)
    }

    fn shown(&mut self) -> Shown<'_> {
        Shown { work: &self.work, tally: &self.tally, meter: &mut self.meter }
    }

    fn change(&self, at: Instant, to: Option<Work>) {
        let _ = self.changes.send(Change { at, to }); // to nobody, if the thread has sent its one cycle
    }
}

fn spawn(thread: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let failed = |e| Failure::new(Outcome::Failed, format!("no thread can be started: {}", plain(&e)));
    std::thread::Builder::new().spawn(thread).map(drop).map_err(failed)
}

/// Gives up what the program will not need again. Before there are threads.
fn enter_sandbox(arguments: &cli::Run, files: &[PathBuf]) -> Sandbox {
    if arguments.no_sandbox {
        tracing::warn!(
            "--no-sandbox: the server listens to nothing, but the kernel does not keep it from doing so"
        );
        return Sandbox::none();
    }
    let files = files.iter().map(PathBuf::as_path);
    let files: Vec<&Path> = arguments.config.as_deref().into_iter().chain(files).collect();
    Sandbox::enter(&files)
}

/// From here on signals are events, for every thread that is started later.
fn catch_signals(once: bool, events: Sender<Event>) -> Result<(), Failure> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    if !once {
        signals.add(Signal::SIGHUP);
    }
    signals.thread_block().map_err(|e| {
        Failure::new(Outcome::Failed, format!("signals cannot be caught: {}", plain(&e.into())))
    })?;
    spawn(move || {
        while let Ok(signal) = signals.wait()
            && events.send(Event::Signal(signal)).is_ok()
        {}
    })
}

/// Interfaces have to be there when the program starts, and when one is named for the first time. One that is used
/// may be away for a while.
fn check_interfaces(works: &[Work], running: &[Running]) -> Result<(), Failure> {
    for Target { interface, .. } in works.iter().map(|work| &work.channel.target) {
        let is_used = running.iter().any(|running| running.work.channel.target.interface == *interface);
        if !is_used && nix::net::if_::if_nametoindex(interface.as_str()).is_err() {
            return Err(Failure::usage(format!(
                "no such interface: {interface}; `ip link` lists those there are"
            )));
        }
    }
    Ok(())
}

/// Says what a channel sends, and what a human should look at. It `begins` with "now" if that changed.
fn announce(begins: &str, work: &Work, unsigned: &mut Vec<PathBuf>) {
    let (bundle, channel) = (&work.bundle, &work.channel);
    let (m, target) = (&bundle.manifest, &channel.target);
    if !bundle.signed && !unsigned.contains(&bundle.path) {
        tracing::warn!("{} is not signed: only clients with --digest will take it", bundle.path.display());
        unsigned.push(bundle.path.clone());
    }
    if target.group.segments()[0] & 0xfff0 != 0xff30 || target.group.segments()[1] != 0 {
        tracing::warn!(
            "{} is no source-specific group (ff3x::/32): clients must join any source",
            target.group
        );
    }
    let from = Socket::open(target).ok().and_then(|socket| socket.source());
    let from = from.map_or("no address yet".to_owned(), |address| address.to_string());
    // Whoever takes a level takes those below as well: twice its rate in all, but for the lowest.
    let (of, factor) = match channel.tier {
        Tier::Alone => (String::new(), 1),
        Tier::Level(level) => (format!(" as level {level}"), if level == 0 { 1 } else { 2 }),
    };
    let needed = bundle.layout.geometry().symbols_needed() as f64 * bundle.packet_len() as f64 * 8.0;
    tracing::info!(
        "{begins}{} ({}, seq {}) from {from} to [{}]:{}{of} at {}: at best {} for a client without loss",
        m.name,
        show_size(m.size),
        m.seq,
        target.group,
        target.port,
        show_rate(channel.rate as f64),
        show_seconds(needed / (channel.rate * factor) as f64)
    );
}
