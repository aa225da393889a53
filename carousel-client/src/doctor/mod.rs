//! `doctor`: says why nothing arrives, or that everything is fine. [`listen`] and [`tap`] find out, in [`facts`];
//! [`findings`] judges them.
//!
//! It sends nothing but joins, writes nothing, and ends in time. What it hears is not believed: it is counted.

mod facts;
mod findings;
mod listen;
mod meter;
mod tap;

use crate::belief::read_key;
use crate::cli;
use crate::clock::unix_time;
use crate::get::DNS_PORT;
use crate::interface;
use crate::sandbox::{self, Dns};
use carousel_doctor::link::number;
use carousel_doctor::{Finding, Id, Link, Report};
use carousel_proto::authority::{Authority, Memory};
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::trust::Trust;
use facts::{Channel, Facts, Found};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::time::Duration;
use tap::Closed;

/// Sources of a service that are listened to, as `get` takes from.
#[cfg(feature = "dns")]
const SOURCES: usize = 4;

/// `doctor`.
pub fn doctor(arguments: &cli::Doctor) -> Result<(), Failure> {
    let mut trust = trust(arguments)?;
    let link = find_link(arguments)?;
    let closed = Closed::open();
    let timeout = Duration::from_millis(arguments.timeout);
    let dns = Dns {
        trust_anchor: arguments.dns.trust_anchor.as_deref(),
        port: arguments.dns.nameserver.map_or(DNS_PORT, |address| address.port()),
    };
    sandbox::enter_to_look(arguments.service.is_some().then_some(dns));
    let (offered, dns) = match what_to_hear(arguments, timeout) {
        Ok(found) => found,
        Err(failure) => return unknown_to_dns(arguments, &link, failure),
    };
    // Two names may lead to one address, which can be joined but once.
    let mut wanted: Vec<Channel> = Vec::new();
    for channel in offered {
        if !wanted.contains(&channel) {
            wanted.push(channel);
        }
    }
    let mut groups: Vec<Ipv6Addr> = wanted.iter().map(|channel| channel.group).collect();
    groups.dedup();
    let tap = closed.and_then(|closed| closed.look(link.index, &groups).ok());
    let plan =
        listen::Plan { link: &link, wanted: &wanted, rcvbuf: arguments.rcvbuf as usize, limit: timeout };
    let heard = listen::listen(&plan, tap, &mut trust, unix_time())
        .map_err(|e| Failure::new(Outcome::Failed, format!("receiving failed: {}", plain(&e))))?;
    let mut sources: Vec<Ipv6Addr> = wanted.iter().filter_map(|channel| channel.source).collect();
    sources.sort_unstable();
    sources.dedup();
    let facts = Facts {
        ways: sources.into_iter().map(|source| (source, way_to(source, link.index))).collect(),
        link,
        dns,
        wanted,
        source_limit: number("/proc/sys/net/ipv6/mld_max_msf"),
        rcvbuf: arguments.rcvbuf,
        rcvbuf_limit: number("/proc/sys/net/core/rmem_max"),
        now: unix_time(),
        has_key: !arguments.key.is_empty(),
        heard,
    };
    let (findings, ended) = findings::judge(&facts);
    tell(arguments, &Report::new(findings, ended), measured(&facts))
}

/// Whom the manifest should be signed by.
fn trust(arguments: &cli::Doctor) -> Result<Trust, Failure> {
    if arguments.key.is_empty() {
        return Ok(Trust::Anyone);
    }
    let keys = arguments.key.iter().map(|path| read_key(path)).collect::<Result<_, _>>()?;
    Ok(Trust::Authority(Box::new(Authority::pinned(keys, Memory::default(), unix_time()))))
}

/// The interface. If there is none, or more than one, nothing else can be found out: one line says so, as in `get`.
fn find_link(arguments: &cli::Doctor) -> Result<Link, Failure> {
    let find = || {
        let name = interface::choose(arguments.interface.as_deref())?;
        let failed = |e| Failure::new(Outcome::Failed, format!("interfaces cannot be listed: {}", plain(&e)));
        Link::read(&name).map_err(failed)?.ok_or_else(|| {
            Failure::usage(format!("no such interface: {name}; `ip link` lists those there are"))
        })
    };
    find().inspect_err(|failure| {
        if arguments.json {
            let report = Report::new(vec![from_failure(Id::Interface, failure)], Some(failure.outcome));
            let _ = tell(arguments, &report, Map::new());
        }
    })
}

/// DNS leads to nothing: what is known of the interface may be the reason.
fn unknown_to_dns(arguments: &cli::Doctor, link: &Link, failure: Failure) -> Result<(), Failure> {
    let mut findings = link.judge();
    findings.push(from_failure(Id::Dns, &failure));
    tell(arguments, &Report::new(findings, Some(failure.outcome)), Map::new())
}

/// Failures name the thing first and then the remedy.
fn from_failure(id: Id, failure: &Failure) -> Finding {
    let (what, remedy) = failure.message.split_once("; ").unwrap_or((&failure.message, "try again"));
    Finding::problem(id, what, remedy)
}

#[cfg(feature = "dns")]
fn what_to_hear(
    arguments: &cli::Doctor,
    timeout: Duration,
) -> Result<(Vec<Channel>, Option<Found>), Failure> {
    let Some(name) = &arguments.service else { return Ok((named(arguments), None)) };
    let (service, answer) = crate::discovery::look(name, &arguments.dns, timeout)?;
    let tier = service.channels.get(arguments.tier).ok_or_else(|| {
        let highest = service.channels.len().saturating_sub(1);
        Failure::usage(format!(
            "{}: there is no tier {}; the highest is {highest}",
            service.name, arguments.tier
        ))
    })?;
    let picked = carousel_dns::pick(&service.sources, SOURCES, 0);
    let channel = |source: &&carousel_dns::Source| {
        let port = source.port;
        let of = move |address: &Ipv6Addr| Channel { source: Some(*address), group: tier.group, port };
        source.addresses.iter().map(of).collect::<Vec<_>>()
    };
    let wanted: Vec<Channel> = picked.together.iter().flat_map(channel).take(SOURCES).collect();
    let best = service.sources.iter().map(|source| source.priority).min();
    let found = Found {
        name: service.name.to_string(),
        sources: service.sources.len(),
        spares: service.sources.iter().filter(|source| Some(source.priority) != best).count(),
        tiers: service.channels.len(),
        tier: arguments.tier,
        validation: crate::discovery::validation(answer.validation),
        remarks: answer.remarks,
    };
    Ok((wanted, Some(found)))
}

#[cfg(not(feature = "dns"))]
fn what_to_hear(arguments: &cli::Doctor, _: Duration) -> Result<(Vec<Channel>, Option<Found>), Failure> {
    match &arguments.service {
        None => Ok((named(arguments), None)),
        Some(service) => Err(Failure::usage(format!(
            "{service}: this program was built without DNS; name --source, --group and --port"
        ))),
    }
}

/// What the command line names: every source of every group.
fn named(arguments: &cli::Doctor) -> Vec<Channel> {
    let port = arguments.port.unwrap_or_default();
    let of = |group: &Ipv6Addr| {
        let group = *group;
        let named = arguments.source.iter().map(move |s| Channel { source: Some(*s), group, port });
        let any = arguments.source.is_empty().then_some(Channel { source: None, group, port });
        named.chain(any)
    };
    arguments.group.iter().flat_map(of).collect()
}

/// The address that a packet to a source would have. Nothing is sent.
fn way_to(source: Ipv6Addr, interface: u32) -> Option<Ipv6Addr> {
    let scope = if source.is_unicast_link_local() { interface } else { 0 };
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(SocketAddrV6::new(source, 9, 0, scope)).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V6(address) => Some(address),
        std::net::IpAddr::V4(_) => None,
    }
}

/// What was measured, for programs.
fn measured(facts: &Facts) -> Map<String, Value> {
    let voices = facts.heard.voices.iter().map(|voice| {
        json!({
            "source": voice.channel.source, "group": voice.channel.group, "port": voice.channel.port,
            "packets": voice.meter.arrived, "lost": voice.meter.lost(), "loss": voice.meter.loss(),
            "duplicates": voice.meter.duplicates, "rate": voice.rate().map(f64::round),
            "first_packet_seconds": voice.first,
        })
    });
    let mut object = Map::new();
    object.insert("interface".to_owned(), facts.link.name.clone().into());
    object.insert("listened_seconds".to_owned(), facts.heard.seconds.into());
    object.insert("saw_before_firewall".to_owned(), facts.heard.seen.is_some().into());
    object.insert("channels".to_owned(), voices.collect());
    object
}

fn tell(arguments: &cli::Doctor, report: &Report, more: Map<String, Value>) -> Result<(), Failure> {
    let text = if arguments.json { report.json(more) } else { report.text() };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| Failure::writing(Path::new("standard output"), &e))?;
    report.end()
}
