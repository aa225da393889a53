//! The files that others read while a server runs.
//!
//! The server itself may not write (see [`crate::syscalls`]). So a process of its own does, which is started before there
//! are bundles, secrets, threads or a sandbox, and has a sandbox of another kind: it reads one pipe, replaces these files
//! in their folders, and can do nothing else. It ends when the pipe is closed, whatever closes it. The server never waits
//! for it: what does not go into the pipe is dropped, for packets have their time.

#![allow(unsafe_code)]

use crate::sandbox;
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_published::Published;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// The end of the server waits so long for the last contents to be written: longer than a disk that is busy with others.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// … and looks so often whether they are.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Room in the pipe, if the system grants it: the contents of a thousand channels.
const PIPE_LEN: libc::c_int = 1 << 20;

/// The server's end.
pub struct Publisher {
    process: Pid,
    door: Option<File>,
    /// What is on its way, and how much of it is in the pipe.
    message: Vec<u8>,
    written: usize,
}

impl Publisher {
    /// Writes each of the files, so that a wrong path is found at once, and starts the process that will. This
    /// process must have one thread only.
    pub fn new(paths: &[&Path], contents: &[String], is_open: bool) -> Result<Self, Failure> {
        let files = paths.iter().zip(contents).map(|(path, text)| Published::new(path, text));
        let mut files = files.collect::<Result<Vec<_>, _>>()?;
        let failed = |e: Errno| {
            let why = plain(&e.into());
            Failure::new(Outcome::Failed, format!("the process that writes the status cannot start: {why}"))
        };
        let (inside, door) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        // SAFETY: there are no other threads, so the child may do whatever we may.
        match unsafe { fork() }.map_err(failed)? {
            ForkResult::Parent { child } => {
                drop(inside);
                never_wait(&door);
                Ok(Self { process: child, door: Some(File::from(door)), message: Vec::new(), written: 0 })
            }
            ForkResult::Child => {
                drop(door); // or it would wait for itself
                write_until_closed(&mut files, inside, is_open);
                std::process::exit(0)
            }
        }
    }

    /// Has them written, unless the ones before are still on their way.
    pub fn publish(&mut self, contents: &[String]) {
        if self.push() {
            self.begin(contents);
            self.push();
        }
    }

    /// The last ones, which are waited for, but not for ever.
    pub fn finish(mut self, contents: &[String]) {
        let until = Instant::now() + LAST_WAIT;
        let wait = |done: &mut dyn FnMut() -> bool| {
            while !done() && Instant::now() < until {
                std::thread::sleep(LOOK_EVERY);
            }
        };
        wait(&mut || self.push());
        if self.message.is_empty() {
            self.begin(contents);
            wait(&mut || self.push());
        }
        self.door = None;
        wait(&mut || waitpid(self.process, Some(WaitPidFlag::WNOHANG)) != Ok(WaitStatus::StillAlive));
    }

    fn begin(&mut self, contents: &[String]) {
        self.written = 0;
        for text in contents {
            self.message.extend_from_slice(&(text.len() as u64).to_le_bytes());
            self.message.extend_from_slice(text.as_bytes());
        }
    }

    /// Puts into the pipe what goes in; whether that is all.
    fn push(&mut self) -> bool {
        while let (Some(door), false) = (&mut self.door, self.message.is_empty()) {
            match door.write(&self.message[self.written..]) {
                Ok(written) => {
                    self.written += written;
                    if self.written == self.message.len() {
                        self.message.clear();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let why = plain(&error);
                    tracing::warn!("the process that writes the status has ended ({why}); going on without");
                    self.door = None;
                }
            }
        }
        self.message.clear();
        true
    }
}

/// Makes writes return at once, and the pipe large. A smaller one only means that large contents take several turns.
fn never_wait(door: &OwnedFd) {
    // SAFETY: both calls take numbers and touch no memory.
    unsafe {
        libc::fcntl(door.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK);
        libc::fcntl(door.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_LEN);
    }
}

/// All that the other process does.
fn write_until_closed(files: &mut [Published], inside: OwnedFd, is_open: bool) {
    // What ends the server ends this by the pipe, after the last contents: a terminal and a service manager signal both.
    let mut signals = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]
        .into_iter()
        .for_each(|signal| signals.add(signal));
    let _ = signals.thread_block();
    let _ = fs::write("/proc/self/comm", "carousel-status"); // its name for `ps`
    if !is_open {
        let folders: Vec<&Path> = files.iter().map(Published::folder).collect();
        sandbox::enter_as_writer(&folders);
    }
    let mut inside = File::from(inside);
    let mut contents: Vec<Vec<u8>> = vec![Vec::new(); files.len()];
    loop {
        for text in &mut contents {
            let mut len = [0; 8];
            if inside.read_exact(&mut len).is_err() {
                return;
            }
            text.clear();
            let len = u64::from_le_bytes(len);
            if (&mut inside).take(len).read_to_end(text).ok() != usize::try_from(len).ok() {
                return;
            }
        }
        files.iter_mut().zip(&contents).for_each(|(file, text)| file.replace(text));
    }
}
