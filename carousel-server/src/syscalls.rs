//! The system calls of a running server: a filter that the kernel applies before it does anything else.
//!
//! Two filters, of which the kernel heeds the stricter word. The first *kills* at what a server could only want to do
//! if it were no longer itself: listen, receive, run a program, open something for writing. The second names what a
//! server needs and answers *everything else* as a kernel that does not have it would: `ENOSYS`.
//!
//! Why not one list? A list of what is forbidden forgets what is invented tomorrow. A list of what is allowed kills the
//! server on the day when a C library uses something new; but C libraries run on old kernels, and take `ENOSYS` for a
//! reason to do it the old way. So what is new is harmless here, to us and to others.
//!
//! Not even `read` is allowed, because it reads from sockets as well. Files are read by `pread64`, which sockets refuse,
//! and mapped. So there is no system call left by which a byte from the network could come in.

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Request of ioctl(2) that C libraries since 2025 ask for where they asked for TCGETS (asm-generic/ioctls.h).
const TCGETS2: u32 = 0x802c_542a;

/// Death. `ptrace` and `pidfd_getfd` because other processes' sockets could receive.
const DEADLY: [libc::c_long; 15] = [
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
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_memfd_create,
    libc::SYS_ptrace,
    libc::SYS_pidfd_getfd,
];

/// What a server does, and what glibc and musl make of it.
const ORDINARY: [libc::c_long; 54] = [
    // sending
    libc::SYS_socket, // of two kinds, see `deadly`
    libc::SYS_connect,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    // when
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    // files, opened for reading, see `deadly`; remarks on stderr
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_faccessat, // by which glibc finds out where a path leads
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_fcntl,
    libc::SYS_write,
    libc::SYS_writev,
    // memory; mmap and mprotect are in `insert_memory`
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // threads and signals
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_prctl, // names and timer slack of threads
    libc::SYS_prlimit64,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4, // the process that writes the status: see `publish`
];

/// What that process does: it reads its pipe, and replaces files in folders that Landlock knows.
const WRITING: [libc::c_long; 25] = [
    libc::SYS_read,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_fchmod,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_fcntl,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The same by the older numbers that only these machines still have.
#[cfg(target_arch = "x86_64")]
const ORDINARY_HERE: [libc::c_long; 5] =
    [libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_readlink, libc::SYS_access];
#[cfg(target_arch = "x86_64")]
const WRITING_HERE: [libc::c_long; 4] =
    [libc::SYS_open, libc::SYS_unlink, libc::SYS_rename, libc::SYS_renameat];
#[cfg(target_arch = "aarch64")]
const WRITING_HERE: [libc::c_long; 1] = [libc::SYS_renameat];
#[cfg(not(target_arch = "x86_64"))]
const ORDINARY_HERE: [libc::c_long; 0] = [];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const WRITING_HERE: [libc::c_long; 0] = [];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Applies both filters to this thread and those that it starts.
pub fn filter() -> Result<(), seccompiler::Error> {
    apply(deadly()?, ordinary()?)
}

/// The same for the process that writes: no socket of any kind, but files in folders that Landlock knows.
pub fn filter_writer() -> Result<(), seccompiler::Error> {
    let deadly = DEADLY.into_iter().chain([libc::SYS_socket]).map(|call| (call, Vec::new()));
    let mut writing: Rules = WRITING.into_iter().chain(WRITING_HERE).map(|call| (call, Vec::new())).collect();
    insert_memory(&mut writing)?;
    apply(deadly.collect(), writing)
}

fn apply(deadly: Rules, ordinary: Rules) -> Result<(), seccompiler::Error> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let compile = |rules, otherwise, then| -> Result<BpfProgram, BackendError> {
        SeccompFilter::new(rules, otherwise, then, architecture)?.try_into()
    };
    let deadly = compile(deadly, SeccompAction::Allow, SeccompAction::KillProcess)?;
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let ordinary = compile(ordinary, absent, SeccompAction::Allow)?;
    // In this order: the second one does not allow to add a third.
    seccompiler::apply_filter(&deadly)?;
    seccompiler::apply_filter(&ordinary)
}

fn deadly() -> Result<Rules, BackendError> {
    let mut rules: Rules = DEADLY.into_iter().map(|call| (call, Vec::new())).collect();
    // Any way to open that could change something. O_RDONLY is the absence of the other two, and it truncates as well.
    let writing = [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC].map(|flag| flag as u32);
    rules.insert(libc::SYS_openat, any(writing.map(|flag| argument(2, has(flag), flag)))?);
    #[cfg(target_arch = "x86_64")]
    {
        rules.insert(libc::SYS_open, any(writing.map(|flag| argument(1, has(flag), flag)))?);
        rules.insert(libc::SYS_creat, Vec::new());
    }
    // Sockets are for datagrams over IPv6; those of AF_UNIX are how C libraries look up an interface by its name. The
    // kinds but SOCK_DGRAM (2) have one of three bits: SOCK_STREAM (1), SOCK_RAW (3), SOCK_SEQPACKET (5), and so on.
    let [inet6, unix] =
        [libc::AF_INET6, libc::AF_UNIX].map(|family| argument(0, SeccompCmpOp::Ne, family as u32));
    let mut socket = any([1, 4, 8].map(|bit| argument(1, has(bit), bit)))?;
    socket.push(SeccompRule::new(vec![inet6?, unix?])?);
    rules.insert(libc::SYS_socket, socket);
    Ok(rules)
}

fn ordinary() -> Result<Rules, BackendError> {
    let mut rules: Rules = ORDINARY.into_iter().chain(ORDINARY_HERE).map(|call| (call, Vec::new())).collect();
    // An interface's number, and whether stderr is a terminal. Others type into terminals or set up interfaces.
    let requests = [libc::SIOCGIFINDEX as u32, libc::TCGETS as u32, TCGETS2, libc::TIOCGWINSZ as u32];
    rules.insert(libc::SYS_ioctl, any(requests.map(|request| argument(1, SeccompCmpOp::Eq, request)))?);
    insert_memory(&mut rules)?;
    Ok(rules)
}

/// Memory, but no new code: whoever gets in has to make do with ours.
fn insert_memory(rules: &mut Rules) -> Result<(), BackendError> {
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let data = argument(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0);
        rules.insert(call, any([data])?);
    }
    Ok(())
}

fn has(flag: u32) -> SeccompCmpOp {
    SeccompCmpOp::MaskedEq(flag.into())
}

fn argument(index: u8, operator: SeccompCmpOp, value: u32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value.into())
}

/// Matches when one of them does.
fn any<const N: usize>(
    conditions: [Result<SeccompCondition, BackendError>; N],
) -> Result<Vec<SeccompRule>, BackendError> {
    conditions.into_iter().map(|condition| SeccompRule::new(vec![condition?])).collect()
}
