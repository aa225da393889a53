//! What was found out, before anybody judges it; and finding it out. Nothing is sent, and nothing is listened to.

#![allow(unsafe_code)]

use crate::bundle::Bundle;
use crate::inspect;
use crate::plan::{Plan, Session};
use crate::socket::{Sender as Socket, Target};
use carousel_dns::Source;
use carousel_doctor::kernel::{self, UdpSocket};
use carousel_doctor::{Counters, Link};
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::trust::key_id;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bundles up to so many bytes have every hash checked: that takes a second.
const CHECKED: u64 = 512 << 20;
/// How long it is watched whether packets leave.
const WATCH: Duration = Duration::from_secs(1);
/// LANDLOCK_CREATE_RULESET_VERSION of the Linux kernel (include/uapi/linux/landlock.h).
const LANDLOCK_VERSION: libc::c_uint = 1;

/// All of it.
#[derive(Debug)]
pub struct Facts {
    /// Every interface that is used, by its name; `None`: it is not there.
    pub links: BTreeMap<String, Option<Link>>,
    pub bundles: Vec<Parcel>,
    pub channels: Vec<Way>,
    /// Keys objects and heartbeats cannot be read.
    pub unreadable: Option<Failure>,
    /// Who sends according to the configuration.
    pub servers: Vec<Source>,
    /// The phase was given for this server alone.
    pub has_own_phase: bool,
    /// Seconds since 1970.
    pub now: u64,
    /// Files that this process may open.
    pub open_files: Option<u64>,
    /// Generation of Landlock; 0: none.
    pub landlock: usize,
    pub has_seccomp: bool,
    pub has_trains: bool,
    /// UDP sockets of this host.
    pub sockets: Vec<UdpSocket>,
    /// Each interface through which a server sends now.
    pub leaving: Vec<Leaving>,
}

/// What leaves an interface.
#[derive(Debug, Clone)]
pub struct Leaving {
    pub interface: String,
    /// Bits per second of all multicast.
    pub rate: f64,
    /// Bits per second that the channels which are sent should make.
    pub expected: u64,
}

/// A bundle.
#[derive(Debug)]
pub struct Parcel {
    pub path: PathBuf,
    pub contents: Result<Contents, Failure>,
}

/// What there is to be known of it.
#[derive(Debug, Clone)]
pub struct Contents {
    pub name: String,
    pub seq: u64,
    pub size: u64,
    pub created: u64,
    pub expires: Option<u64>,
    pub packet_len: u64,
    /// By whom it is signed.
    pub key_id: Option<String>,
    /// Every hash was checked.
    pub is_checked: bool,
}

/// A channel.
#[derive(Debug, Clone)]
pub struct Way {
    pub target: Target,
    pub rate: u64,
    pub phase: u32,
    /// Bytes of a packet, if the bundle can be read.
    pub packet_len: Option<u64>,
    /// The address that packets will come from.
    pub source: Result<Ipv6Addr, String>,
}

impl Facts {
    /// Finds all of it out.
    pub fn gather(plan: &Plan, servers: Vec<Source>, has_own_phase: bool) -> Result<Self, Failure> {
        let mut links = BTreeMap::new();
        let mut bundles: Vec<Parcel> = Vec::new();
        let mut channels = Vec::new();
        for session in &plan.sessions {
            if !bundles.iter().any(|known| known.path == session.bundle) {
                bundles.push(Parcel { path: session.bundle.clone(), contents: open(session) });
            }
            let parcel = bundles.iter().find(|known| known.path == session.bundle);
            let packet_len = parcel.and_then(|p| p.contents.as_ref().ok()).map(|c| c.packet_len);
            for channel in &session.channels {
                let target = channel.target.clone();
                if !links.contains_key(&target.interface) {
                    let link = Link::read(&target.interface).map_err(|e| {
                        Failure::new(Outcome::Failed, format!("interfaces cannot be listed: {}", plain(&e)))
                    })?;
                    links.insert(target.interface.clone(), link);
                }
                let source = source(&target);
                channels.push(Way { target, rate: channel.rate, phase: channel.phase, packet_len, source });
            }
        }
        let sockets = kernel::udp_sockets(&fs::read_to_string("/proc/net/udp6").unwrap_or_default());
        Ok(Self {
            has_trains: channels
                .iter()
                .filter_map(|way| Socket::open(&way.target).ok())
                .all(|mut socket| socket.has_trains()),
            leaving: leaving(&channels, &sockets),
            links,
            bundles,
            channels,
            unreadable: plan.statements.read().err(),
            servers,
            has_own_phase,
            now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
            #[allow(clippy::unnecessary_cast)] // on a 32-bit machine the number is shorter
            open_files: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft as u64),
            landlock: landlock(),
            has_seccomp: fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")
                .is_ok_and(|actions| actions.split_ascii_whitespace().any(|word| word == "kill_process")),
            sockets,
        })
    }
}

/// Whether a socket is how a server sends there.
pub fn sends_to(socket: &UdpSocket, target: &Target) -> bool {
    socket.connected && socket.remote == (target.group, target.port)
}

/// Whether a socket is open to what arrives there.
pub fn hears(socket: &UdpSocket, target: &Target) -> bool {
    let (address, port) = socket.local;
    !socket.connected && port == target.port && (address.is_unspecified() || address == target.group)
}

/// A session's bundle, checked as far as that takes no more than a moment.
fn open(session: &Session) -> Result<Contents, Failure> {
    let bundle = Bundle::open(&session.bundle)?;
    session.check(&bundle.layout)?;
    let len = fs::metadata(&session.bundle).map_or(u64::MAX, |metadata| metadata.len());
    let is_checked = len <= CHECKED;
    if is_checked {
        inspect::check(&bundle).map_err(|what| {
            let path = session.bundle.display();
            Failure::untrusted(format!("{path}: damaged: {what}; fetch or pack it again"))
        })?;
    }
    let head = crate::bundle::read_head(&session.bundle)?;
    let m = &bundle.manifest;
    Ok(Contents {
        name: m.name.clone(),
        seq: m.seq,
        size: m.size,
        created: m.created,
        expires: m.expires,
        packet_len: bundle.packet_len() as u64,
        key_id: if bundle.signed { key_id(head.envelope()?.signature) } else { None },
        is_checked,
    })
}

/// The address that packets will come from. Connecting sends nothing.
fn source(target: &Target) -> Result<Ipv6Addr, String> {
    let socket = Socket::open(target).map_err(|e| plain(&e))?;
    socket.source().filter(|address| !address.is_unspecified()).ok_or_else(|| "no address".to_owned())
}

/// What leaves now, where a server sends: packets that a firewall drops are not in this count.
fn leaving(channels: &[Way], sockets: &[UdpSocket]) -> Vec<Leaving> {
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    for way in channels.iter().filter(|way| sockets.iter().any(|socket| sends_to(socket, &way.target))) {
        *expected.entry(&way.target.interface).or_default() += way.rate;
    }
    if expected.is_empty() {
        return Vec::new();
    }
    let count = |name: &str| Counters::read(name).link("Ip6OutMcastOctets");
    let before: Vec<u64> = expected.keys().map(|name| count(name)).collect();
    let began = Instant::now();
    std::thread::sleep(WATCH);
    let seconds = began.elapsed().as_secs_f64();
    let judge = |((name, expected), before): ((&str, u64), u64)| Leaving {
        interface: name.to_owned(),
        rate: count(name).saturating_sub(before) as f64 * 8.0 / seconds,
        expected,
    };
    expected.into_iter().zip(before).map(judge).collect()
}

/// The generation of Landlock that this kernel has. Not every one has new rights to files by which to tell it.
fn landlock() -> usize {
    let (nothing, no_bytes) = (std::ptr::null::<libc::c_void>(), 0_usize);
    // SAFETY: with this flag the call takes no memory and makes nothing.
    let generation =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, no_bytes, LANDLOCK_VERSION) };
    usize::try_from(generation).unwrap_or(0)
}
