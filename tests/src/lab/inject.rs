//! System calls put into the mouth of a running program, to see what the kernel says to *it*: a sandbox is judged from
//! inside. A thread that waits in the kernel is stopped, given other registers, let go for one call, and goes on waiting
//! as if nothing had been.
//!
//! See ptrace(2): `PTRACE_SEIZE`, `PTRACE_INTERRUPT`, `PTRACE_SYSCALL`.

use super::process::{Running, until};
use nix::sys::signal::Signal;
use std::time::Duration;

/// What became of an injected call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The kernel answered; errors are negative.
    Returned(i64),
    /// The program died of it.
    Killed(Signal),
}

/// An argument of an injected call.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// A number, a descriptor or flags.
    Number(i64),
    /// The address of these bytes, with a zero behind them, in the program's memory.
    Text(&'a str),
}

/// Has the latest thread of a running program make a system call.
pub fn inject(program: &Running, call: libc::c_long, arguments: &[Argument<'_>]) -> Fate {
    inject_into(program.pid(), program, call, arguments)
}

/// The same with a process that the program has started.
pub fn inject_into(pid: u32, program: &Running, call: libc::c_long, arguments: &[Argument<'_>]) -> Fate {
    let mut fate = None;
    until("a thread to wait in the kernel", Duration::from_secs(10), || {
        assert!(program.is_alive(), "ended before anything was injected: {program}");
        fate = machine::attempt(pid, program, call, arguments);
        fate.is_some()
    });
    fate.unwrap_or_else(|| panic!("nothing injected into {program}"))
}

/// Whether calls can be injected on this machine.
pub const CAN_INJECT: bool = cfg!(target_arch = "x86_64");

#[cfg(target_arch = "x86_64")]
mod machine {
    use super::{Argument, Fate, Running};
    use nix::errno::Errno;
    use nix::sys::ptrace::{self, Options};
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    /// The instruction `syscall`.
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    /// The kernel's own answers when a call is to be made again after a stop: ERESTARTSYS to ERESTART_RESTARTBLOCK
    /// (linux/errno.h). No program ever sees them.
    const AGAIN: std::ops::RangeInclusive<i64> = -516..=-512;
    /// Below a thread's stack pointer nothing lives but 128 bytes.
    const FREE_STACK: u64 = 8192;

    /// `None`: it did not wait in the kernel just now.
    pub fn attempt(
        pid: u32,
        program: &Running,
        call: libc::c_long,
        arguments: &[Argument<'_>],
    ) -> Option<Fate> {
        let thread = latest_thread(pid)?;
        let failed = |what: &str, e: Errno| -> ! { panic!("{what} thread {thread} of {program}: {e}") };
        // Threads come and go: the one that was found may be at its end.
        let seized = ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD);
        match seized.and_then(|()| ptrace::interrupt(thread)) {
            Ok(()) => {}
            Err(Errno::ESRCH) => return None,
            Err(e) => failed("seize", e),
        }
        if matches!(wait(thread), WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
            return None;
        }
        let before = ptrace::getregs(thread).unwrap_or_else(|e| failed("registers of", e));
        let memory = File::options().read(true).write(true).open(format!("/proc/{thread}/mem"));
        let memory = memory.unwrap_or_else(|e| panic!("memory of {program}: {e}"));
        let mut instruction = [0; 2];
        let read = memory.read_exact_at(&mut instruction, before.rip - 2);
        if read.is_err() || instruction != SYSCALL {
            let _ = ptrace::detach(thread, None);
            return None;
        }

        let mut free = before.rsp - FREE_STACK;
        let mut value = |argument: &Argument<'_>| match argument {
            Argument::Number(number) => number.cast_unsigned(),
            Argument::Text(text) => {
                let (at, bytes) = (free, [text.as_bytes(), b"\0"].concat());
                memory.write_all_at(&bytes, at).unwrap_or_else(|e| panic!("stack of {program}: {e}"));
                free += bytes.len() as u64;
                at
            }
        };
        let mut values = [0; 6];
        values.iter_mut().zip(arguments).for_each(|(place, argument)| *place = value(argument));
        let mut regs = before;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = values;
        regs.rip -= 2;
        regs.rax = call.cast_unsigned();
        regs.orig_rax = u64::MAX; // no call of its own that the kernel would make again
        ptrace::setregs(thread, regs).unwrap_or_else(|e| failed("registers of", e));
        // To the call's beginning, and to its end, which also the dying reach.
        for _ in 0..2 {
            ptrace::syscall(thread, None).unwrap_or_else(|e| failed("resume", e));
            wait(thread);
        }
        if has_to_die(thread) {
            if thread == Pid::from_raw(pid.cast_signed()) {
                // The first thread's death is the program's, which another waits for; the caller can ask how it ended.
                ptrace::detach(thread, None).unwrap_or_else(|e| failed("detach", e));
                return Some(Fate::Killed(Signal::SIGSYS));
            }
            let mut signal = None;
            loop {
                ptrace::cont(thread, signal).unwrap_or_else(|e| failed("resume", e));
                match wait(thread) {
                    WaitStatus::Signaled(_, signal, _) => return Some(Fate::Killed(signal)),
                    WaitStatus::Stopped(_, given) => signal = Some(given),
                    other => panic!("{other:?} of {program}"),
                }
            }
        }
        let answer = ptrace::getregs(thread).unwrap_or_else(|e| failed("registers of", e)).rax;

        let mut after = before;
        if AGAIN.contains(&before.rax.cast_signed()) {
            after.rip -= 2;
            after.rax = before.orig_rax;
        }
        after.orig_rax = u64::MAX;
        ptrace::setregs(thread, after).unwrap_or_else(|e| failed("registers of", e));
        ptrace::detach(thread, None).unwrap_or_else(|e| failed("detach", e));
        Some(Fate::Returned(answer.cast_signed()))
    }

    /// Mostly one whose death can be waited for without taking that of the process from whoever reaps it.
    fn latest_thread(pid: u32) -> Option<Pid> {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let number =
            |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<i32>().ok();
        threads.filter_map(number).max().map(Pid::from_raw) // the first one, if it is alone
    }

    /// Whether the signal of a filter that kills is under way to this thread.
    fn has_to_die(thread: Pid) -> bool {
        let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
        let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
        let pending = pending.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        pending.is_some_and(|set| set & 1 << (libc::SIGSYS - 1) != 0)
    }

    fn wait(thread: Pid) -> WaitStatus {
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap_or_else(|e| panic!("wait for thread {thread}: {e}"))
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod machine {
    use super::{Argument, Fate, Running};

    pub fn attempt(_: u32, _: &Running, _: libc::c_long, _: &[Argument<'_>]) -> Option<Fate> {
        panic!("lab/inject.rs does not know this machine's registers: ask CAN_INJECT first")
    }
}
