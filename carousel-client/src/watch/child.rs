//! Programs that the agent starts: transfers and lookups, which are this program once more, and the user's commands.
//!
//! Each has a process group of its own, gets a signal when the agent dies of whatever, and tells what it says and how it
//! ends through a queue. It is killed by number only while it has not been waited for, so never somebody else.

#![allow(unsafe_code)]

use crossbeam_channel::Sender;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid, getppid};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// From the friendly signal to the other one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer lines are cut: nobody that we start writes them.
const LONGEST_LINE: u64 = 1 << 20;

/// Which of the programs, ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildId(pub u64);

/// What a program says and does.
#[derive(Debug)]
pub enum Told {
    /// A line on stdout.
    Out(String),
    /// A line on stderr.
    Err(String),
    /// The last of all: it has ended.
    Ended(ExitStatus),
}

/// How much of a program is of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This program: every line.
    Own,
    /// A command of the user: it says what it likes where the agent does, and what it leaves behind may hold the pipe
    /// open for ever.
    Foreign,
}

/// A program that runs, or ran. Dropping it kills it.
pub struct Child {
    /// Its group; `None` once it has been waited for.
    group: Arc<Mutex<Option<Pid>>>,
    /// When the patience with it ends.
    kill_at: Option<Instant>,
}

impl Child {
    /// Starts it. From a thread that lives as long as the agent: the kernel goes by the thread.
    pub fn spawn(
        mut command: Command,
        kind: Kind,
        id: ChildId,
        told: impl Fn(ChildId, Told) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let (pipe, signal) = match kind {
            Kind::Own => (true, Signal::SIGKILL), // which costs it nothing: its work is kept
            Kind::Foreign => (false, Signal::SIGTERM),
        };
        command.stdin(Stdio::null()).process_group(0);
        if pipe {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let parent = getpid();
        let hook = move || {
            set_pdeathsig(signal)?;
            // The agent may have died before that.
            if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        };
        // SAFETY: the hook makes two system calls and allocates nothing.
        unsafe { command.pre_exec(hook) };
        let mut process = command.spawn()?;
        let group = Arc::new(Mutex::new(Some(Pid::from_raw(process.id() as i32))));
        let ours = Arc::clone(&group);
        let (out, err) = (process.stdout.take(), process.stderr.take());
        thread::spawn(move || {
            let errors = told.clone();
            let err = thread::spawn(move || read_lines(err, |line| errors(id, Told::Err(line))));
            read_lines(out, |line| told(id, Told::Out(line)));
            let _ = err.join();
            told(id, Told::Ended(wait(&mut process, &ours)));
        });
        Ok(Self { group, kill_at: None })
    }

    /// Asks it to end, and sees to it that it does: see [`Child::look`].
    pub fn stop(&mut self) {
        if self.kill_at.is_none() {
            self.kill_at = Some(Instant::now() + PATIENCE);
            self.signal(Signal::SIGTERM);
        }
    }

    /// Kills what was asked to end and has not. How long until there is something to do here.
    pub fn look(&mut self) -> Option<Duration> {
        let left = self.kill_at?.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.signal(Signal::SIGKILL);
            return Some(PATIENCE);
        }
        Some(left)
    }

    fn signal(&self, signal: Signal) {
        let group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = *group {
            let _ = killpg(group, signal); // it may have ended just now
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// Waits for the end, and gives the number back only when nobody can be about to use it.
fn wait(process: &mut Process, group: &Mutex<Option<Pid>>) -> ExitStatus {
    let pid = Pid::from_raw(process.id() as i32);
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {
    }
    let mut group = group.lock().unwrap_or_else(PoisonError::into_inner);
    *group = None;
    // It has ended, so this does not wait.
    process.wait().unwrap_or(ExitStatus::from_raw(1 << 8))
}

fn read_lines(from: Option<impl Read>, tell: impl Fn(String)) {
    let Some(from) = from else { return };
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        tell(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
    }
}

/// How a program ended, for people: `exit code 3`, `signal 9`.
pub fn show(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, signal) => format!("signal {} ended it", signal.unwrap_or(0)),
    }
}

/// A queue's end, as [`Child::spawn`] wants it.
pub fn into<T: Send + 'static>(
    queue: &Sender<T>,
    wrap: impl Fn(ChildId, Told) -> T + Clone + Send + 'static,
) -> impl Fn(ChildId, Told) + Clone + Send + 'static {
    let queue = queue.clone();
    move |id, told| drop(queue.send(wrap(id, told))) // nobody listens any more: the agent ends
}
