//! `--on-complete`: a process of its own, started before there are threads, packets or a sandbox, that waits on a pipe
//! to be told that the object is there, and becomes the command then. What the command may do is what the user who
//! started the client may: it installs firmware. What the client can say to it is five values, and once.

#![allow(unsafe_code)]

use carousel_proto::manifest::Manifest;
use carousel_proto::outcome::{Failure, Outcome, plain};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The environment of the command, in the order in which it goes through the pipe. None contains a zero byte, and one
/// follows each.
const VARIABLES: [&str; 5] =
    ["CAROUSEL_PATH", "CAROUSEL_NAME", "CAROUSEL_SEQ", "CAROUSEL_DIGEST", "CAROUSEL_SIZE"];

/// The process that waits. It ends when this is dropped, and when the client dies, whatever of.
pub struct Hook {
    process: Pid,
    door: OwnedFd,
}

impl Hook {
    /// Starts it. This process must have one thread only.
    pub fn new(command: &str) -> Result<Self, Failure> {
        let failed = |e: Errno| {
            Failure::new(Outcome::Failed, format!("--on-complete cannot be prepared: {}", plain(&e.into())))
        };
        let (inside, door) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        // SAFETY: there are no other threads, so the child may do whatever we may.
        match unsafe { fork() }.map_err(failed)? {
            ForkResult::Parent { child } => Ok(Self { process: child, door }),
            ForkResult::Child => {
                drop(door); // or it would wait for itself
                std::process::exit(wait_and_become(command, inside))
            }
        }
    }

    /// Runs the command and waits for its end.
    pub fn run(self, path: &Path, manifest: &Manifest) -> Result<(), Failure> {
        let failed = |what: String| Err(Failure::new(Outcome::Hook, format!("--on-complete {what}")));
        let (seq, size) = (manifest.seq.to_string(), manifest.size.to_string());
        let digest = blake3::Hash::from_bytes(manifest.digest).to_hex();
        let values = [
            path.as_os_str().as_bytes(),
            manifest.name.as_bytes(),
            seq.as_bytes(),
            digest.as_bytes(),
            size.as_bytes(),
        ];
        let message: Vec<u8> = values.iter().flat_map(|value| [value, &b"\0"[..]].concat()).collect();
        if let Err(error) = File::from(self.door).write_all(&message) {
            return failed(format!("is no longer there: {}", plain(&error)));
        }
        loop {
            match waitpid(self.process, None) {
                Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
                Ok(WaitStatus::Exited(_, code)) => return failed(format!("ended with exit status: {code}")),
                Ok(WaitStatus::Signaled(_, signal, _)) => return failed(format!("ended by {signal}")),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return failed(format!("cannot be waited for: {}", plain(&error.into()))),
            }
        }
    }
}

/// In the process that waits: becomes the command when everything has come; the exit code if not.
fn wait_and_become(command: &str, inside: OwnedFd) -> i32 {
    let mut message = Vec::new();
    if File::from(inside).read_to_end(&mut message).is_err() {
        return 1;
    }
    let values: Vec<&[u8]> =
        message.split_inclusive(|byte| *byte == 0).filter_map(|v| v.strip_suffix(b"\0")).collect();
    if values.len() != VARIABLES.len() {
        return 0; // the client has ended without an object
    }
    let values = VARIABLES.into_iter().zip(values.into_iter().map(OsStr::from_bytes));
    let error: io::Error = Command::new("sh").args(["-c", command]).envs(values).exec();
    crate::report::say(format_args!("carousel-client: sh: {}", plain(&error)));
    127
}
