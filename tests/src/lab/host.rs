//! A host: a network namespace, held by nothing but a descriptor of the test process.
//!
//! No holder process and no name under `/run/netns`: when the descriptor and the programs inside are gone, and
//! SIGKILL of the test process sees to both, the kernel takes the namespace and its links down. To look inside a
//! live one: `nsenter --net=/proc/PID/fd/N`, as `Host::path` prints it.

use super::counters::{self, Snmp6, Traffic};
use super::process::{Exit, Program, Running};
use nix::sched::{CloneFlags, setns, unshare};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

/// Setting up takes milliseconds; a tool that takes this long hangs.
const TOOL_LIMIT: Duration = Duration::from_secs(20);

/// Loss at a receiver, on UDP to multicast groups only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Independent, this many of 1,000 packets.
    PerMille(u32),
    /// Exactly every n-th packet, the first included.
    EveryNth(u32),
}

/// What a receiver's loss rule saw and dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossCount {
    /// UDP multicast packets that arrived at the interface.
    pub seen: u64,
    /// Those of them that were dropped.
    pub lost: u64,
}

/// The end of a short program and what it said.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

/// A host of the lab. Clones are the same host.
#[derive(Clone)]
pub struct Host {
    name: String,
    ns: Arc<File>,
    dir: PathBuf,
    serial: Arc<AtomicU32>,
    programs: Arc<Mutex<Vec<Weak<Program>>>>,
}

impl Host {
    /// A fresh namespace with `lo` up and duplicate address detection off.
    pub(super) fn new(name: &str, dir: PathBuf, serial: Arc<AtomicU32>) -> Self {
        // A thread of its own moves into the new namespace, opens it and ends; the descriptor keeps it.
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            // Effective is the larger of `all` and the interface's own; new interfaces take over `default`.
            for place in ["all", "default"] {
                for (key, value) in [("accept_dad", "0"), ("router_solicitations", "0"), ("accept_ra", "0")] {
                    fs::write(format!("/proc/sys/net/ipv6/conf/{place}/{key}"), value)?;
                }
            }
            File::open("/proc/thread-self/ns/net")
        };
        let ns = thread::scope(|s| s.spawn(make).join());
        let ns = match ns {
            Ok(Ok(file)) => Arc::new(file),
            Ok(Err(e)) => panic!("host {name}: no network namespace: {e}"),
            Err(_) => panic!("host {name}: the namespace thread panicked"),
        };
        let host = Self { name: name.to_owned(), ns, dir, serial, programs: Arc::default() };
        host.ip("link set lo up");
        host
    }

    /// The name given at birth.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path of the namespace, valid while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.ns.as_raw_fd())
    }

    /// Runs a closure on a thread inside the host: sockets made there belong to it, and so does `/proc/sys/net`.
    /// Beware of `/proc/net`: it is the main thread's; use `/proc/thread-self/net`.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(&*self.ns, CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|e| panic!("cannot enter host {}: {e}", self.name));
            f()
        };
        thread::scope(|s| s.spawn(enter).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a program in the host.
    pub fn spawn<S: AsRef<OsStr>>(&self, argv: &[S]) -> Running {
        let Some((program, args)) = argv.split_first() else { panic!("nothing to run") };
        let mut cmd = Command::new(program);
        cmd.args(args);
        self.spawn_command(cmd)
    }

    /// Starts a prepared command in the host (environment, folder); its standard streams are replaced.
    pub fn spawn_command(&self, cmd: Command) -> Running {
        let n = self.serial.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| self.dir.join(format!("{n:03}-{}.{kind}", self.name));
        let what = format!("{cmd:?}");
        let running = Running::start(cmd, &self.ns, file("stdout"), file("stderr"))
            .unwrap_or_else(|e| panic!("host {}: cannot start {what}: {e}", self.name));
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.retain(|program| program.strong_count() > 0);
        programs.push(running.program());
        running
    }

    /// Runs a short program to its end, whatever that is.
    pub fn run<S: AsRef<OsStr>>(&self, argv: &[S]) -> Output {
        let running = self.spawn(argv);
        let exit = running.finish(TOOL_LIMIT);
        Output { exit, stdout: running.stdout(), stderr: running.stderr() }
    }

    /// Runs a tool that must succeed, given as one line of words, and returns its stdout.
    pub fn tool(&self, line: &str) -> String {
        let out = self.run(&line.split_ascii_whitespace().collect::<Vec<_>>());
        assert!(out.exit.status.success(), "host {}: {line}: {}", self.name, out.stderr);
        out.stdout
    }

    /// `ip -6 …`, which must succeed.
    pub fn ip(&self, line: &str) -> String {
        self.tool(&format!("ip -6 {line}"))
    }

    /// Many `ip -6` commands, one a line, in one program: a program takes longer than what it does.
    pub fn ip_batch(&self, lines: &str) {
        let file =
            self.dir.join(format!("{:03}-{}.ip", self.serial.fetch_add(1, Ordering::Relaxed), self.name));
        fs::write(&file, lines).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.ip(&format!("-batch {}", file.display()));
    }

    /// Sets a kernel variable; `key` with slashes, below `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.within(|| fs::write(format!("/proc/sys/{key}"), value))
            .unwrap_or_else(|e| panic!("host {}: sysctl {key}={value}: {e}", self.name));
    }

    /// Loads an nftables ruleset.
    pub fn nft(&self, ruleset: &str) {
        let file =
            self.dir.join(format!("{:03}-{}.nft", self.serial.fetch_add(1, Ordering::Relaxed), self.name));
        fs::write(&file, ruleset).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let out = self.run(&[OsStr::new("nft"), OsStr::new("-f"), file.as_os_str()]);
        assert!(out.exit.status.success(), "host {}: nft: {}\n{ruleset}", self.name, out.stderr);
    }

    /// Sets the loss of UDP multicast arriving at `interface`, replacing what was set before; counts start at 0.
    /// The sender must segment before the wire (`Lab::link` sees to it), else a draw decides over 46 packets.
    pub fn loss(&self, interface: &str, loss: Loss) {
        let draw = match loss {
            Loss::PerMille(n) => format!("numgen random mod 1000 < {n}"),
            Loss::EveryNth(n) => format!("numgen inc mod {n} == 0"),
        };
        let table = format!("netdev lab-{interface}");
        self.nft(&format!(
            "add table {table}\ndelete table {table}\ntable {table} {{
  counter seen {{ }}
  counter lost {{ }}
  chain ingress {{
    type filter hook ingress device \"{interface}\" priority 0; policy accept;
    ip6 daddr ff00::/8 meta l4proto udp counter name seen {draw} counter name lost drop
  }}
}}\n"
        ));
    }

    /// Lets no more than so many further packets of UDP multicast in at `interface`; `None`: all again. So a transfer
    /// stops where a test wants to look at it, however late the test looks. What `loss` drops does not count.
    pub fn let_in(&self, interface: &str, packets: Option<u32>) {
        let stop = match packets {
            None => String::new(),
            Some(0) => "ip6 daddr ff00::/8 meta l4proto udp drop".to_owned(),
            Some(n) => {
                format!("ip6 daddr ff00::/8 meta l4proto udp numgen inc mod 1000000000 >= {n} drop")
            }
        };
        let table = format!("netdev stop-{interface}");
        self.nft(&format!(
            "add table {table}\ndelete table {table}\ntable {table} {{
  chain ingress {{
    type filter hook ingress device \"{interface}\" priority 10; policy accept;
    {stop}
  }}
}}\n"
        ));
    }

    /// What the loss rule of `interface` counted.
    pub fn loss_count(&self, interface: &str) -> LossCount {
        let count = self.counters(&format!("netdev lab-{interface}"));
        LossCount { seen: count("seen"), lost: count("lost") }
    }

    /// Reads the named packet counters of an nftables table.
    pub(super) fn counters(&self, table: &str) -> impl Fn(&str) -> u64 + use<> {
        let text = self.tool(&format!("nft -j list counters table {table}"));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        move |name| {
            let all = json["nftables"].as_array().into_iter().flatten();
            all.map(|entry| &entry["counter"])
                .find(|counter| counter["name"] == name)
                .and_then(|counter| counter["packets"].as_u64())
                .unwrap_or_else(|| panic!("no counter {name} in {text}"))
        }
    }

    /// Sends no more than this on `interface` from now on (Ethernet headers counted); what finds the queue full is
    /// dropped, as in front of any slow link. The count starts at 0.
    pub fn limit(&self, interface: &str, bits_per_second: u64, queue_bytes: u64) {
        // A bucket of two packets keeps the spacing; the kernel's tick does not matter, it has finer timers.
        let burst = 2 * 1600;
        // Another kind in between, or `replace` would keep the old counts.
        self.tool(&format!("tc qdisc replace dev {interface} root pfifo"));
        self.tool(&format!(
            "tc qdisc replace dev {interface} root tbf rate {bits_per_second}bit burst {burst} limit {queue_bytes}"
        ));
    }

    /// Packets that `limit` has dropped on `interface`.
    pub fn limit_drops(&self, interface: &str) -> u64 {
        let text = self.tool(&format!("tc -s -j qdisc show dev {interface} root"));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let drops = json[0]["drops"].as_u64().filter(|_| json[0]["kind"] == "tbf");
        drops.unwrap_or_else(|| panic!("host {}: {interface} has no limit: {text}", self.name))
    }

    /// Lets a kernel thread of its own receive on `interface`. On a plain veth the sender's system call also does
    /// the receiver's work, and the sender's CPU time shows it.
    pub fn bill_apart(&self, interface: &str) {
        self.tool(&format!("ethtool -K {interface} gro on"));
        // That is what brings the thread; but loss must act on packets, not on trains that were put together before.
        self.ip(&format!("link set {interface} gro_max_size 1"));
        // The sysfs at hand shows the outer namespace's interfaces; a mount of our own shows ours.
        let script = format!("mount -t sysfs sysfs /sys && echo 1 >/sys/class/net/{interface}/threaded");
        let out = self.run(&["unshare", "-m", "sh", "-c", &script]);
        assert!(out.exit.status.success(), "host {}: threaded: {}", self.name, out.stderr);
    }

    /// Packets and bytes of an interface so far.
    pub fn traffic(&self, interface: &str) -> Traffic {
        self.within(|| counters::traffic(interface))
            .unwrap_or_else(|| panic!("host {} has no interface {interface}", self.name))
    }

    /// IPv6 and UDP counters so far.
    pub fn snmp6(&self) -> Snmp6 {
        self.within(counters::snmp6)
    }
}

/// How to look inside, and the programs that run there.
impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = if super::in_user_namespace() {
            format!("--user=/proc/{}/ns/user --preserve-credentials ", std::process::id())
        } else {
            String::new()
        };
        write!(f, "host {}: nsenter {user}--net={}", self.name, self.path())?;
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|p| p.is_alive())
            .try_for_each(|p| write!(f, "\n{p}"))
    }
}
