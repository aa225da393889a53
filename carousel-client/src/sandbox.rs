//! What a client can no longer do once it is set up: write anywhere but into its target's folder and those of its state
//! and status, read much else, run a program, gain a privilege. It is entered before the first packet or answer is parsed and before the first thread is
//! started, so that all threads are in it.
//!
//! A list of system calls that are allowed would be as long as what DNS and its runtime need, which is not ours to know:
//! so here is a list of what is forbidden, and Landlock for the files. That of the server is the other way round.

use caps::{CapSet, Capability};
use landlock::{
    ABI, Access, AccessFs, AccessNet, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};
use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The newest Landlock of which we know what it takes away. Older kernels take away what they can.
const LANDLOCK: ABI = ABI::V9;
/// What makes receive buffers larger than the system's limit, and ports below 1,024 possible, for whoever has it.
const USEFUL: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_BIND_SERVICE];
/// With it root writes into other users' folders.
const FOR_FOREIGN_FOLDERS: [Capability; 2] = [Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER];
/// The standard library looks here how many processors a container has.
const PROCESSORS: [&str; 3] = ["/proc/self/cgroup", "/proc/self/mountinfo", "/sys/fs/cgroup"];

/// Death: running programs, waiting for connections, ways round this filter, other processes, the machine itself.
const DEADLY: [libc::c_long; 31] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_memfd_create,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_truncate, // which Landlock does not know before Linux 6.2
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
];

/// From this number on they are x86-64's calls of the x32 kind, which name the same things once more. Some kernels have
/// them, and we need none.
const X32: i64 = 0x4000_0000;
/// Of these, execve, ptrace, kexec_load, process_vm_readv, process_vm_writev and execveat have numbers of their own.
const X32_OWN: [i64; 6] = [520, 521, 528, 539, 540, 545];

/// Where a client still has to reach.
pub struct Reach<'a> {
    /// Where the target and its work file are; a device needs no folder.
    pub folder: Option<&'a Path>,
    /// A folder in there that is to be removed.
    pub replaced: Option<&'a Path>,
    /// What the device remembers, if it does.
    pub state: Option<&'a Path>,
    /// Where files for others are written, and none is read.
    pub published: Vec<&'a Path>,
    /// What DNS is asked with, if it is.
    pub dns: Option<Dns<'a>>,
}

/// What looking up names needs.
pub struct Dns<'a> {
    /// Read anew for every lookup.
    pub trust_anchor: Option<&'a Path>,
    /// Where nameservers answer over TCP.
    pub port: u16,
}

/// Enters the sandbox for good. What this kernel cannot do is said and not done.
pub fn enter(reach: &Reach<'_>) {
    if let Err(error) = drop_capabilities(reach) {
        tracing::warn!("capabilities cannot be dropped: {error}; going on with them");
    }
    match confine(reach) {
        Ok(RulesetStatus::NotEnforced) => {
            tracing::warn!("this kernel has no Landlock: the client could write wherever its user may");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!("Landlock: {error}: the client could write wherever its user may"),
    }
    if let Err(error) = filter() {
        tracing::warn!("no seccomp filter ({error}): nothing keeps the client from running programs");
    }
}

/// The same for somebody who only looks: it writes nowhere, and reads what the kernel tells.
pub fn enter_to_look(dns: Option<Dns<'_>>) {
    let drop_all = || {
        let had = caps::read(None, CapSet::Permitted)?;
        if had.is_empty() {
            return Ok(());
        }
        let keep = USEFUL.into_iter().filter(|capability| had.contains(capability)).collect();
        caps::set(None, CapSet::Effective, &keep)?;
        caps::set(None, CapSet::Permitted, &keep)?;
        caps::clear(None, CapSet::Inheritable)
    };
    if let Err(error) = drop_all() {
        tracing::debug!("capabilities cannot be dropped: {error}");
    }
    let confine = || {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let ports =
            dns.iter().map(|dns| Ok::<_, RulesetError>(NetPort::new(dns.port, AccessNet::ConnectTcp)));
        Ruleset::default()
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(Scope::from_all(LANDLOCK))?
            .create()?
            .add_rules(path_beneath_rules(["/proc", "/sys"], read))?
            .add_rules(path_beneath_rules(dns.iter().flat_map(Dns::files), read))?
            .add_rules(ports)?
            .restrict_self()
    };
    if let Err(error) = confine() {
        tracing::debug!("Landlock: {error}");
    }
    if let Err(error) = filter() {
        tracing::debug!("no seccomp filter: {error}");
    }
}

/// Keeps what is useful. In whose folder we are is found out without the privilege that opens them all.
fn drop_capabilities(reach: &Reach<'_>) -> Result<(), caps::errors::CapsError> {
    let had = caps::read(None, CapSet::Permitted)?;
    if had.is_empty() {
        return Ok(()); // without a system call that a service manager may have forbidden
    }
    let mut keep = USEFUL.into_iter().filter(|capability| had.contains(capability)).collect();
    caps::set(None, CapSet::Effective, &keep)?;
    let is_ours =
        |m: std::fs::Metadata| m.uid() == nix::unistd::geteuid().as_raw() && m.mode() & 0o300 == 0o300;
    let targets = reach.folder.into_iter().chain(reach.replaced);
    let mut folders = targets.chain(reach.state).chain(reach.published.iter().copied());
    if !folders.all(|folder| folder.metadata().is_ok_and(is_ours)) {
        keep.extend(FOR_FOREIGN_FOLDERS.into_iter().filter(|capability| had.contains(capability)));
        caps::set(None, CapSet::Effective, &keep)?;
    }
    caps::set(None, CapSet::Permitted, &keep)?;
    caps::clear(None, CapSet::Inheritable)
}

/// Files and TCP, signals and AF_UNIX sockets of others, as far as the kernel has words for that.
fn confine(reach: &Reach<'_>) -> Result<RulesetStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let replace = AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile;
    let write = read | replace | AccessFs::Truncate;
    // An object may be a folder: its files are made below the target's, and moved there.
    let unpack = write | AccessFs::MakeDir | AccessFs::MakeSym | AccessFs::RemoveDir | AccessFs::Refer;
    let ports =
        reach.dns.iter().map(|dns| Ok::<_, RulesetError>(NetPort::new(dns.port, AccessNet::ConnectTcp)));
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rules(path_beneath_rules(reach.folder, unpack))?
        .add_rules(path_beneath_rules(reach.state, write))?
        .add_rules(path_beneath_rules(&reach.published, replace))?
        .add_rules(path_beneath_rules(PROCESSORS, read))?
        .add_rules(path_beneath_rules(reach.dns.iter().flat_map(Dns::files), read))?
        .add_rules(ports)?
        .restrict_self()?;
    Ok(status.ruleset)
}

impl Dns<'_> {
    /// What lookups read. Where `/etc/resolv.conf` is a link, the folder that it leads to: whoever looks after the
    /// file there replaces it. The whole of `/etc` would be too much: who replaces the file there during a transfer
    /// makes lookups fail, which the transfer survives.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let link = Path::new("/etc/resolv.conf");
        let real = link.canonicalize().unwrap_or_else(|_| link.to_owned());
        let place = match real.parent() {
            Some(folder) if folder != Path::new("/etc") => folder.to_owned(),
            _ => real,
        };
        let anchor = self.trust_anchor.map(Path::to_owned);
        [place, PathBuf::from("/etc/hosts")].into_iter().chain(anchor)
    }
}

/// Applies the filter to this thread and those that it starts.
fn filter() -> Result<(), seccompiler::Error> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter =
        SeccompFilter::new(deadly()?, SeccompAction::Allow, SeccompAction::KillProcess, architecture)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}

#[allow(clippy::unnecessary_cast)] // on a 32-bit machine the numbers are shorter
fn deadly() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let argument = |index, operator, value: libc::c_int| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value as u64)
    };
    // Sockets are for UDP and TCP over IP: no other family, and none of the kinds above SOCK_DGRAM (2).
    let families = [libc::AF_INET, libc::AF_INET6].map(|family| argument(0, SeccompCmpOp::Ne, family));
    let foreign = families.into_iter().collect::<Result<_, _>>()?;
    let raw = vec![argument(1, SeccompCmpOp::MaskedEq(0xf), libc::SOCK_RAW)?];
    let other = [4, 8].map(|bit: libc::c_int| argument(1, SeccompCmpOp::MaskedEq(bit as u64), bit));
    let mut socket = vec![SeccompRule::new(foreign)?, SeccompRule::new(raw)?];
    for condition in other {
        socket.push(SeccompRule::new(vec![condition?])?);
    }
    let mut rules: BTreeMap<_, _> = DEADLY.into_iter().map(|call| (call as i64, Vec::new())).collect();
    rules.insert(libc::SYS_socket as i64, socket);
    if cfg!(target_arch = "x86_64") {
        let calls = rules.keys().copied().chain(X32_OWN);
        let x32: Vec<i64> = calls.map(|call| call | X32).collect();
        rules.extend(x32.into_iter().map(|call| (call, Vec::new())));
    }
    Ok(rules)
}
