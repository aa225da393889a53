//! The lab itself: who may enter, hosts, links and the folder they work in.
//!
//! One lab at a time per process: the scenarios measure, and two cores do not carry two of them.
//!
//! Without root the test program replaces itself, once, by itself inside its own user and network namespace; there
//! it is root enough. Where even that is forbidden the test is skipped, loudly, and under `CI=true` a skip is a
//! failure: a green run must not mean "nothing was tried".

mod capture;
mod counters;
mod crowd;
mod deaf;
mod disk;
mod folder;
mod host;
mod inject;
mod knot;
mod meter;
mod process;
mod receiver;
mod router;
mod switch;
mod unbound;
mod wire;

pub use capture::{Capture, Frame};
pub use counters::{Snmp6, Traffic, softnet_drops};
pub use crowd::Crowd;
pub use deaf::{deafen, without};
pub use disk::Disk;
pub use folder::Folder;
pub use host::{Host, Loss, LossCount, Output};
pub use inject::{Argument, CAN_INJECT, Fate, inject, inject_into};
pub use knot::{Knot, Signing, Zone, check_zone_file, zone_file};
pub use meter::{Meter, Passed};
pub use process::{Exit, Running, die_with_us, until};
pub use receiver::join;
pub use router::{Mroute, Role, Router, routers_missing};
pub use switch::{Member, Switch};
pub use unbound::Unbound;
pub use wire::{Flip, Impairment, Wire, WireCounts, WireLoss};

use crate::figures;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

/// Set in the environment of the program that replaced itself, so that it does not try again.
const INSIDE: &str = "CAROUSEL_LAB_INSIDE";
/// Set to keep a lab when its test has ended, well or not, until somebody interrupts it.
const KEEP: &str = "CAROUSEL_LAB_KEEP";

/// A lab: hosts, links and a folder, all gone when it is dropped or its process dies, whatever kills it.
///
/// With `CAROUSEL_LAB_KEEP` set, the end of a scenario leaves it all as it is, programs included, and says how to
/// look inside; then it waits until it is interrupted.
pub struct Lab {
    name: String,
    folder: Folder,
    hosts: Mutex<Vec<Host>>,
    serial: Arc<AtomicU32>,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    /// Enters the lab, waiting for its turn. `None` when this machine forbids namespaces or lacks a tool: the test
    /// then returns at once, and the reason is on stderr.
    pub fn enter(name: &str) -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        static OBSTACLE: OnceLock<Option<String>> = OnceLock::new();
        if let Some(why) = OBSTACLE.get_or_init(obstacle) {
            skip(name, why);
            return None;
        }
        // A test that failed inside the lab poisons the lock but leaves nothing behind.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        process::raise_file_limit();
        figures::set_test(name);
        let lab = Self {
            name: name.to_owned(),
            folder: Folder::new(),
            hosts: Mutex::default(),
            serial: Arc::default(),
            _turn: turn,
        };
        if kept() {
            say(&format!("lab {name}: folder {}", lab.dir().display()));
        }
        Some(lab)
    }

    /// The same for tests that need a `Wire`.
    pub fn enter_with_wires(name: &str) -> Option<Self> {
        let lab = Self::enter(name)?;
        if let Some(why) = wire::obstacle() {
            skip(name, &why);
            return None;
        }
        Some(lab)
    }

    /// The name given on entry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab's folder.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the lab's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A new folder in the lab's.
    pub fn fresh_dir(&self, name: &str) -> PathBuf {
        let dir = self.file(&format!("{name}-{}", self.serial.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        dir
    }

    /// A new host with nothing but its loopback.
    pub fn host(&self, name: &str) -> Host {
        let host = Host::new(name, self.dir().to_owned(), self.serial.clone());
        if kept() {
            say(&host.to_string());
        }
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).push(host.clone());
        host
    }

    /// Joins two hosts by a cable and waits until a datagram gets across. Addresses with prefix length.
    #[allow(clippy::too_many_arguments)] // two ends of three words each; a struct would only rename them
    pub fn link(&self, a: &Host, if_a: &str, addr_a: &str, b: &Host, if_b: &str, addr_b: &str, mtu: u32) {
        cable(a, if_a, b, if_b, mtu);
        address(a, if_a, addr_a);
        address(b, if_b, addr_b);
        reach(a, addr_a, b, addr_b);
        reach(b, addr_b, a, addr_a);
    }

    /// As `link`, but by a wire that can be bad from `a` to `b`.
    #[allow(clippy::too_many_arguments)] // as above
    pub fn wire(
        &self,
        a: &Host,
        if_a: &str,
        addr_a: &str,
        b: &Host,
        if_b: &str,
        addr_b: &str,
        mtu: u32,
    ) -> Wire {
        let wire = self.wire_between(a, if_a, b, if_b, mtu);
        address(a, if_a, addr_a);
        address(b, if_b, addr_b);
        reach(a, addr_a, b, addr_b);
        reach(b, addr_b, a, addr_a);
        wire
    }

    /// The wire and its two interfaces, up but without addresses: for a port of a switch.
    pub fn wire_between(&self, a: &Host, if_a: &str, b: &Host, if_b: &str, mtu: u32) -> Wire {
        let seed = self.serial.fetch_add(1, Ordering::Relaxed);
        Wire::new((a, if_a), (b, if_b), mtu, u64::from(seed))
    }

    /// One Ethernet with a port for each host (`eth0`), through a switch that floods multicast. Returns the switch.
    pub fn lan(&self, members: &[(&Host, &str)], mtu: u32) -> Host {
        let switch = self.host("switch");
        switch.ip(&format!("link add br0 mtu {mtu} type bridge mcast_snooping 0 forward_delay 0"));
        switch.ip("link set br0 up");
        for (i, (host, addr)) in members.iter().enumerate() {
            let port = format!("p{i}");
            cable(host, "eth0", &switch, &port, mtu);
            switch.ip(&format!("link set {port} master br0"));
            address(host, "eth0", addr);
        }
        // To and from the first: then every port carries both ways, and 200 hosts do not take 40,000 probes.
        if let Some(((first, first_addr), others)) = members.split_first() {
            for (other, addr) in others {
                reach(first, first_addr, other, addr);
                reach(other, addr, first, first_addr);
            }
        }
        switch
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !kept() {
            return;
        }
        let how = if thread::panicking() { "failed" } else { "ended well" };
        say(&format!("\nThe scenario {} {how}. Its lab stays:\n", self.name));
        for host in self.hosts.get_mut().unwrap_or_else(PoisonError::into_inner) {
            say(&host.to_string());
        }
        say(&format!("folder {}\nCtrl-C ends it and removes everything.", self.dir().display()));
        loop {
            thread::park();
        }
    }
}

/// Whether labs are to be kept when their scenario has ended.
fn kept() -> bool {
    static KEPT: OnceLock<bool> = OnceLock::new();
    *KEPT.get_or_init(|| std::env::var_os(KEEP).is_some())
}

/// Whether this program replaced itself by itself inside a user namespace of its own.
fn in_user_namespace() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// A line on stderr. Not eprintln!: the test harness would swallow it, and the point is to be loud.
fn say(line: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes());
}

/// Says that a test is skipped and why; under `CI=true` that is a failure.
pub fn skip(test: &str, why: &str) {
    say(&format!("SKIPPED {test}: {why}"));
    assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "skipped under CI: {why}");
}

/// Repeats a measurement during which the machine itself dropped packets; after five such the test is skipped.
pub fn conclusive<T>(test: &str, mut measure: impl FnMut() -> T) -> Option<T> {
    for _ in 0..5 {
        let before = softnet_drops();
        let result = measure();
        if softnet_drops() == before {
            return Some(result);
        }
    }
    skip(test, "inconclusive five times: the machine dropped packets");
    None
}

/// Whether a program can be found.
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).any(|dir| dir.join(program).is_file())
}

/// Switches an interface's offload feature (`tx`, `gro`, `tx-udp-segmentation`, …).
/// With `tx off` the sender finishes its checksums, so that the receiving kernel drops packets with flipped bits;
/// with the default on a veth they reach the application.
pub fn offload(host: &Host, interface: &str, feature: &str, on: bool) {
    host.tool(&format!("ethtool -K {interface} {feature} {}", if on { "on" } else { "off" }));
}

fn cable(a: &Host, if_a: &str, b: &Host, if_b: &str, mtu: u32) {
    let there = b.path();
    a.ip(&format!("link add {if_a} mtu {mtu} type veth peer name {if_b} mtu {mtu} netns {there}"));
    for (host, interface) in [(a, if_a), (b, if_b)] {
        // Loss must act on packets as they are on a wire, not on offloaded trains of them.
        offload(host, interface, "tx-udp-segmentation", false);
        // An end that could send trains of TCP hands over in the sender's own system call, whatever `bill_apart` set.
        offload(host, interface, "tso", false);
        host.ip(&format!("link set {interface} up"));
    }
}

fn address(host: &Host, interface: &str, addr: &str) {
    host.ip(&format!("addr add {addr} dev {interface} nodad"));
}

/// Sends datagrams from one host to another until one arrives: addresses, carrier and neighbours are ready then.
pub fn reach(from: &Host, from_addr: &str, to: &Host, to_addr: &str) {
    let (source, target) = (bare(from_addr), bare(to_addr));
    let bound = |host: &Host, addr: Ipv6Addr| {
        let socket = host.within(|| UdpSocket::bind(SocketAddr::from((addr, 0))));
        socket.unwrap_or_else(|e| panic!("host {}: {addr} is not usable: {e}", host.name()))
    };
    let (sender, receiver) = (bound(from, source), bound(to, target));
    let goal = receiver.local_addr().unwrap_or_else(|e| panic!("probe: {e}"));
    receiver.set_read_timeout(Some(Duration::from_millis(20))).unwrap_or_else(|e| panic!("probe: {e}"));
    until(&format!("a datagram from {source} to {target}"), Duration::from_secs(10), || {
        let _ = sender.send_to(b"?", goal);
        receiver.recv(&mut [0; 8]).is_ok()
    });
}

fn bare(addr: &str) -> Ipv6Addr {
    let text = addr.split('/').next().unwrap_or(addr);
    text.parse().unwrap_or_else(|e| panic!("{addr}: {e}"))
}

/// Why there can be no lab here. When a user namespace can help, this does not return.
fn obstacle() -> Option<String> {
    if let Some(tool) = ["ip", "tc", "bridge", "nft", "ethtool", "unshare", "setsid", "ss"]
        .into_iter()
        .find(|tool| !have(tool))
    {
        return Some(format!("the program {tool} is missing"));
    }
    let allowed = |flags: &str| {
        let probe = ["unshare", flags, "ip", "link", "set", "lo", "up"];
        let quiet =
            Command::new(probe[0]).args(&probe[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        quiet.is_ok_and(|status| status.success())
    };
    if allowed("-np") {
        return None;
    }
    if in_user_namespace() {
        return Some("no network and process namespaces, not even inside a user namespace".into());
    }
    if !allowed("-Urnp") {
        return Some(
            "neither root nor user namespaces: run as root, or allow unprivileged user namespaces".into(),
        );
    }
    let exe = std::env::current_exe().unwrap_or_else(|e| panic!("this program has no path: {e}"));
    let args = std::env::args_os().skip(1);
    Some(Command::new("unshare").arg("-Urn").arg(exe).args(args).env(INSIDE, "1").exec().to_string())
}
