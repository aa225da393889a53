//! Programs that die of listening: a seccomp filter kills them at the first call that could take something in. And
//! programs that meet an older kernel: another one answers as if it lacked some calls.
//!
//! What the first cannot see is `read` on a socket, for a filter knows numbers, not what a descriptor is; strace shows that.
//! See seccomp(2), and seccomp_filter.rst in the kernel's documentation.
#![allow(unsafe_code)]

use std::io;
use std::mem::offset_of;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Calls that listen or receive, or get at a socket by a way round: rings, and other processes' descriptors.
const FORBIDDEN: [libc::c_long; 12] = [
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_ptrace,
    libc::SYS_pidfd_getfd,
];

/// `AUDIT_ARCH_…` (linux/audit.h): the ELF machine of a 64-bit little-endian program. By it the kernel says whose
/// numbers a call uses; a 64-bit program can make 32-bit calls, too.
const ARCH: u32 = 0xc000_0000
    | if cfg!(target_arch = "x86_64") {
        62
    } else if cfg!(target_arch = "aarch64") {
        183
    } else {
        panic!("lab/deaf.rs does not know this machine: add its EM_… number from linux/elf-em.h")
    };

/// From this number on they are x86-64's calls of the x32 kind, which name the same things once more.
const X32: u32 = 0x4000_0000;

/// Lets a program, and whatever it starts, die of SIGSYS as soon as it binds, listens, accepts or receives.
pub fn deafen(cmd: &mut Command) {
    install(cmd, filter(&FORBIDDEN, libc::SECCOMP_RET_KILL_PROCESS));
}

/// Lets a program, and whatever it starts, run as on a kernel that does not have these calls.
pub fn without(cmd: &mut Command, calls: &[libc::c_long]) {
    install(cmd, filter(calls, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32));
}

fn install(cmd: &mut Command, filter: Vec<libc::sock_filter>) {
    let hook = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: takes four numbers. Without it only root may install a filter.
        let promised = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        // SAFETY: the kernel copies `len` instructions from `filter`, which the hook owns.
        let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        if promised == 0 && set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the hook makes two system calls and allocates nothing, which is allowed between fork and exec.
    unsafe { cmd.pre_exec(hook) };
}

fn filter(calls: &[libc::c_long], action: u32) -> Vec<libc::sock_filter> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |offset: usize| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset as u32);
    let answer = |action| step(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    let (kill, allow) = (libc::SECCOMP_RET_KILL_PROCESS, libc::SECCOMP_RET_ALLOW);
    // Each comparison skips the answer behind it, or does not.
    let mut steps = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, ARCH),
        answer(kill),
        load(offset_of!(libc::seccomp_data, nr)),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        answer(kill),
    ];
    for call in calls {
        steps.extend([step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, *call as u32), answer(action)]);
    }
    steps.push(answer(allow));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    /// How a program ends that makes this call, senselessly, just before it is executed.
    fn fate(call: libc::c_long, deaf: bool) -> Option<i32> {
        let mut cmd = Command::new("true");
        if deaf {
            deafen(&mut cmd);
        }
        let hook = move || {
            // SAFETY: no descriptor is -1 and no address 0, so whatever the call is, the kernel refuses it.
            unsafe { libc::syscall(call, -1, 0, 0, 0, 0, 0) };
            Ok(())
        };
        // SAFETY: one system call, no allocation.
        unsafe { cmd.pre_exec(hook) };
        cmd.status().unwrap().signal()
    }

    #[test]
    fn every_forbidden_call_kills_and_others_do_not() {
        for call in FORBIDDEN {
            assert_eq!(fate(call, true), Some(libc::SIGSYS), "system call {call}");
            assert_eq!(fate(call, false), None, "system call {call} without the filter");
        }
        for call in [libc::SYS_socket, libc::SYS_connect, libc::SYS_sendmmsg] {
            assert_eq!(fate(call, true), None, "system call {call}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn calls_by_other_numbers_kill_too() {
        assert_eq!(fate(libc::SYS_bind | i64::from(X32), true), Some(libc::SIGSYS));
    }
}
