//! From facts to findings. Pure.

use super::facts::{Contents, Facts, Leaving, Parcel, Way, hears};
use carousel_doctor::link::sysctl;
use carousel_doctor::{Finding, Id, Link};
use carousel_proto::outcome::Outcome;
use carousel_proto::units::{show_moment, show_rate, show_size};
use std::collections::BTreeMap;
use std::net::Ipv6Addr;

/// A clock that says less than this was never set: 2025-01-01.
const LEAST_TIME: u64 = 1_735_689_600;
/// What was packed elsewhere may have a time so far ahead, seconds.
const CLOCK_SLACK: u64 = 300;
/// Shares of a link above which the rate leaves too little to others.
const SHARE: (f64, f64) = (0.5, 0.9);
/// The pause between two bursts, seconds.
const BURST: f64 = 0.0016;
/// Files that the program has open beside those that it sends.
const OTHER_FILES: u64 = 32;
/// From this rate on, bits per second, a second shows whether anything leaves; and this share of it is next to nothing.
const WATCHED: u64 = 100_000;
const LITTLE: f64 = 0.1;
/// The generation of Landlock from which on it knows TCP.
const GOOD_LANDLOCK: usize = 4;

/// All findings, and how it ends if they alone do not decide.
pub fn judge(facts: &Facts) -> (Vec<Finding>, Option<Outcome>) {
    let mut findings = Vec::new();
    let mut ended = None;
    for (name, link) in &facts.links {
        match link {
            Some(link) => findings.extend(link.judge()),
            None => {
                let what = format!("no such interface: {name}");
                findings.push(Finding::problem(Id::Interface, what, "`ip link` lists those there are"));
                ended = Some(Outcome::Usage);
            }
        }
    }
    findings.extend(facts.bundles.iter().map(judge_bundle));
    findings.extend(facts.unreadable.iter().map(|failure| from_message(Id::Bundle, &failure.message)));
    for (way, link) in facts.channels.iter().filter_map(|way| Some((way, link_of(facts, way)?))) {
        findings.push(judge_source(way, link));
        findings.extend(judge_mtu(way, link));
    }
    findings.extend(judge_dns(facts));
    findings.extend(facts.channels.iter().map(judge_group));
    findings.extend(judge_ends(&facts.channels));
    findings.extend(facts.channels.iter().map(judge_hops));
    findings.extend(judge_rates(facts));
    findings.extend(judge_phase(facts));
    findings.push(judge_clock(facts));
    findings.push(match facts.has_trains {
        true => Finding::ok(Id::Segmentation, "the kernel cuts trains into packets (UDP_SEGMENT)"),
        false => Finding::note(
            Id::Segmentation,
            "the kernel cannot cut trains into packets (UDP_SEGMENT)",
            "sending takes more CPU time; Linux 4.18 and newer can",
        ),
    });
    findings.extend(judge_limits(facts));
    findings.push(judge_sandbox(facts));
    findings.push(judge_sockets(facts));
    findings.extend(judge_sending(facts));
    (each_once(findings), ended)
}

fn link_of<'a>(facts: &'a Facts, way: &Way) -> Option<&'a Link> {
    facts.links.get(&way.target.interface)?.as_ref()
}

/// Many channels have much in common.
fn each_once(findings: Vec<Finding>) -> Vec<Finding> {
    let mut once: Vec<Finding> = Vec::new();
    for finding in findings {
        if !once.contains(&finding) {
            once.push(finding);
        }
    }
    once
}

/// Failures name the thing first and then the remedy.
pub fn from_message(id: Id, message: &str) -> Finding {
    let (what, remedy) = message.split_once("; ").unwrap_or((message, "fetch or make it again"));
    Finding::problem(id, what, remedy)
}

fn judge_bundle(parcel: &Parcel) -> Finding {
    let c = match &parcel.contents {
        Ok(contents) => contents,
        Err(failure) => return from_message(Id::Bundle, &failure.message),
    };
    let path = parcel.path.display();
    let what = format!("{path}: {:?}, release {}, {}", c.name, c.seq, show_size(c.size));
    let Some(key) = &c.key_id else {
        return Finding::note(
            Id::Bundle,
            format!("{what}, not signed"),
            "only clients with --digest take it; pack it with --key",
        );
    };
    match c.is_checked {
        true => Finding::ok(Id::Bundle, format!("{what}, signed by key {key}, every hash is right")),
        false => Finding::ok(
            Id::Bundle,
            format!(
                "{what}, signed by key {key}; hashes of large bundles are checked by `carousel-server inspect`"
            ),
        ),
    }
}

fn judge_source(way: &Way, link: &Link) -> Finding {
    let name = &link.name;
    let source = match &way.source {
        Ok(source) => *source,
        Err(why) => {
            return Finding::problem(
                Id::Source,
                format!("nothing can be sent to {}: {why}", way.target),
                format!("bring {name} up and give it an address: ip -6 addr add 2001:db8::1/64 dev {name}"),
            );
        }
    };
    let Some(address) = link.addresses.iter().find(|a| a.address == source) else {
        return Finding::problem(
            Id::Source,
            format!("{source} is no address of {name}"),
            format!("give {name} that address, or name one that it has by source or --source"),
        );
    };
    if !address.is_usable() {
        return Finding::problem(
            Id::Source,
            format!("{source} cannot be used yet, or somebody else has it"),
            "wait for a moment; if it stays so, take another address",
        );
    }
    if address.is_link_local() {
        return Finding::problem(
            Id::Source,
            format!("packets come from {source}, which no router forwards and no DNS knows"),
            format!("give {name} a global address, or one from fd00::/8"),
        );
    }
    if address.is_temporary() {
        return Finding::problem(
            Id::Source,
            format!(
                "packets come from {source}, a temporary address: tomorrow it is another one, and clients ask for this"
            ),
            format!(
                "name a lasting one by source or --source, or sysctl -w {}=0",
                sysctl(name, "use_tempaddr")
            ),
        );
    }
    Finding::ok(Id::Source, format!("packets come from {source}: clients ask for it by --source {source}"))
}

fn judge_mtu(way: &Way, link: &Link) -> Option<Finding> {
    let (len, mtu) = (way.packet_len?, link.mtu?);
    (len > mtu).then(|| {
        Finding::problem(
            Id::Mtu,
            format!("packets have {len} bytes, and {} carries {mtu}", link.name),
            format!("pack with --mtu {mtu} or less, or enlarge the MTU of every link on the way"),
        )
    })
}

fn judge_dns(facts: &Facts) -> Option<Finding> {
    if facts.servers.is_empty() {
        return None;
    }
    let known: Vec<Ipv6Addr> = facts.servers.iter().flat_map(|server| server.addresses.clone()).collect();
    let ours = facts.channels.iter().filter_map(|way| way.source.as_ref().ok());
    let unknown = ours.clone().find(|source| !known.contains(source));
    // The addresses of some are only in DNS itself, as `zone` has said.
    if unknown.is_some() && facts.servers.iter().any(|server| server.addresses.is_empty()) {
        return None;
    }
    Some(match unknown {
        Some(source) => Finding::problem(
            Id::SourceInDns,
            format!(
                "packets come from {source}, which is in no [[server]] table: clients that go by DNS never ask for it"
            ),
            "set source to an address of this server that is in the table, or add it and renew the zone",
        ),
        None => Finding::ok(Id::SourceInDns, "the [[server]] tables name the address that packets come from"),
    })
}

fn judge_group(way: &Way) -> Finding {
    let group = way.target.group;
    let [first, second, ..] = group.segments();
    let (is_ssm, scope) = (first & 0xfff0 == 0xff30 && second == 0, first & 0xf);
    match (is_ssm, scope) {
        (_, 0 | 1) => Finding::problem(
            Id::Group,
            format!("{group} never leaves this host"),
            "take one like ff3e::8000:1, where e stands for everywhere",
        ),
        (false, _) => Finding::note(
            Id::Group,
            format!("{group} is no source-specific group (ff3x::/32): clients must join any source"),
            "take one like ff3e::8000:1",
        ),
        (true, 2) => Finding::note(
            Id::Group,
            format!("{group} does not leave this link: no router forwards it"),
            "take one like ff3e::8000:1 if clients are elsewhere, too",
        ),
        (true, _) => Finding::ok(Id::Group, format!("{group} is source-specific")),
    }
}

/// Ethernet knows of a group its last 32 bits.
fn judge_ends(channels: &[Way]) -> Option<Finding> {
    let mut ends: BTreeMap<u32, Ipv6Addr> = BTreeMap::new();
    for group in channels.iter().map(|way| way.target.group) {
        let end = (u128::from(group) & 0xffff_ffff) as u32;
        let other = *ends.entry(end).or_insert(group);
        if other != group {
            return Some(Finding::note(
                Id::Group,
                format!(
                    "{group} and {other} have the same Ethernet address: some switches send both to whoever joins one"
                ),
                "let the last 32 bits of groups differ",
            ));
        }
    }
    None
}

fn judge_hops(way: &Way) -> Finding {
    match way.target.hops {
        0 | 1 => Finding::problem(
            Id::HopLimit,
            format!("the hop limit of {} is 1: no router passes that on", way.target),
            "hops = 32 or --hops 32",
        ),
        hops => Finding::ok(Id::HopLimit, format!("packets may cross {} routers", hops - 1)),
    }
}

fn judge_rates(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, link) in facts.links.iter().filter_map(|(name, link)| Some((name, link.as_ref()?))) {
        let ways = || facts.channels.iter().filter(|way| way.target.interface == *name);
        let sum: u64 = ways().map(|way| way.rate).sum();
        let device = link.device.as_ref();
        let what = format!("{} in all leave {name}", show_rate(sum as f64));
        findings.push(match device.and_then(|device| device.speed) {
            None => Finding::ok(Id::Rate, format!("{what}, whose speed is not known")),
            Some(speed) => {
                let speed = speed as f64 * 1e6;
                let what = format!("{what}, which carries {}", show_rate(speed));
                let remedy = "lower rates, or a faster link: what does not fit is lost";
                match sum as f64 / speed {
                    share if share > SHARE.1 => Finding::problem(Id::Rate, what, remedy),
                    share if share > SHARE.0 => Finding::note(Id::Rate, what, remedy),
                    _ => Finding::ok(Id::Rate, what),
                }
            }
        });
        // A queue of 0 is none at all: such devices take what they get.
        if let Some(queue) = device.and_then(|device| device.queue).filter(|queue| *queue > 0) {
            let packets = |way: &Way| way.rate as f64 * BURST / 8.0 / way.packet_len.unwrap_or(1280) as f64;
            let burst = ways().map(packets).sum::<f64>().ceil() as u64;
            findings.push(match burst > queue {
                true => Finding::note(
                    Id::SendQueue,
                    format!("{burst} packets may leave at once, and {name} holds {queue}"),
                    format!("ip link set {name} txqueuelen {}", burst.next_power_of_two()),
                ),
                false => Finding::ok(
                    Id::SendQueue,
                    format!("{burst} packets may leave at once, and {name} holds {queue}"),
                ),
            });
        }
    }
    findings
}

/// Servers that are received together must differ in their phase, and a file that they share cannot say so.
fn judge_phase(facts: &Facts) -> Option<Finding> {
    let best = facts.servers.iter().map(|server| server.priority).min()?;
    let equals = facts.servers.iter().filter(|server| server.priority == best).count();
    let phases: Vec<u32> = facts.channels.iter().map(|way| way.phase).collect();
    let phase = phases.first().copied()?;
    Some(if equals > 1 && !facts.has_own_phase {
        Finding::note(
            Id::Phase,
            format!(
                "{equals} servers are received together, and each that runs from this file has phase {phase}"
            ),
            "run with --phase 0 on the first, --phase 1 on the second, and so on: in equal phases they bring nothing more",
        )
    } else {
        Finding::ok(Id::Phase, format!("phase {phase}, with {equals} servers that are received together"))
    })
}

fn judge_clock(facts: &Facts) -> Finding {
    let now = facts.now;
    let set = "set it: timedatectl set-ntp true, or chrony; position and phase follow from the clock";
    let contents = || facts.bundles.iter().filter_map(|parcel| parcel.contents.as_ref().ok());
    if now < LEAST_TIME {
        return Finding::problem(
            Id::Clock,
            format!("this host believes that it is {}", show_moment(now)),
            set,
        );
    }
    if let Some(Contents { name, created, .. }) =
        contents().find(|c| c.created > now.saturating_add(CLOCK_SLACK))
    {
        let (now, created) = (show_moment(now), show_moment(*created));
        return Finding::problem(
            Id::Clock,
            format!("this host believes that it is {now}, and {name:?} was made later, {created}"),
            set,
        );
    }
    if let Some((c, expires)) = contents().find_map(|c| c.expires.filter(|e| *e < now).map(|e| (c, e))) {
        return Finding::problem(
            Id::Clock,
            format!("{:?} expired on {}, and it is {}", c.name, show_moment(expires), show_moment(now)),
            "if this host's clock is right, no client takes it: pack a newer release",
        );
    }
    Finding::ok(Id::Clock, format!("it is {}", show_moment(now)))
}

fn judge_limits(facts: &Facts) -> Option<Finding> {
    let limit = facts.open_files?;
    let needed = (facts.channels.len() + facts.bundles.len()) as u64 + OTHER_FILES;
    Some(match needed > limit {
        true => Finding::problem(
            Id::Limits,
            format!("about {needed} files will be open, and {limit} are allowed"),
            format!("ulimit -n {}, or LimitNOFILE= in the unit", needed.next_power_of_two()),
        ),
        false => {
            Finding::ok(Id::Limits, format!("about {needed} files will be open, and {limit} are allowed"))
        }
    })
}

fn judge_sandbox(facts: &Facts) -> Finding {
    let what = match (facts.has_seccomp, facts.landlock) {
        (true, GOOD_LANDLOCK..) => {
            return Finding::ok(
                Id::Sandbox,
                format!("the kernel has seccomp, and Landlock of generation {}", facts.landlock),
            );
        }
        (true, 0) => "the kernel has seccomp and no Landlock".to_owned(),
        (true, generation) => format!("the kernel has seccomp, and Landlock of generation {generation} only"),
        (false, 0) => "the kernel has neither seccomp nor Landlock".to_owned(),
        (false, generation) => {
            format!("the kernel has no seccomp, and Landlock of generation {generation}")
        }
    };
    Finding::note(
        Id::Sandbox,
        what,
        "it sends all the same; Linux 6.7 and newer take more away from a server that was broken into",
    )
}

fn judge_sockets(facts: &Facts) -> Finding {
    let targets = || facts.channels.iter().map(|way| &way.target);
    let ears = facts.sockets.iter().filter(|socket| targets().any(|target| hears(socket, target))).count();
    match ears {
        0 => Finding::ok(Id::Listens, "no UDP socket of this host is open to these groups and ports"),
        n => Finding::note(
            Id::Listens,
            format!("{n} UDP sockets of this host are open to these groups or ports"),
            "it is not the server, whose sockets are connected and hear nothing; ss -lunp names the program, a client \
             perhaps",
        ),
    }
}

fn judge_sending(facts: &Facts) -> Vec<Finding> {
    if facts.leaving.is_empty() {
        return vec![Finding::ok(
            Id::Sending,
            "no server sends this from here now; whether packets leave was not tried, for a doctor sends none",
        )];
    }
    let judge = |leaving: &Leaving| {
        let Leaving { interface, rate, expected } = leaving;
        let what = format!(
            "a server runs, and {} of multicast leave {interface}, of {} that it should send",
            show_rate(*rate),
            show_rate(*expected as f64)
        );
        // Reports and neighbours make a few hundred bits; what is slower than this cannot be told in a second.
        match *expected >= WATCHED && *rate < *expected as f64 * LITTLE {
            false => Finding::ok(Id::Sending, what),
            true => Finding::problem(
                Id::Sending,
                what,
                "look at what it says; let UDP to ff30::/12 out of this host's firewall: nft list ruleset, chains with \
                 hook output",
            ),
        }
    };
    facts.leaving.iter().map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::Target;
    use carousel_dns::Source;
    use carousel_doctor::Level::{self, Note, Problem};
    use carousel_doctor::kernel::{Address, UdpSocket};
    use carousel_doctor::link::Device;
    use carousel_proto::outcome::Failure;

    const NOW: u64 = 1_800_000_000;

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn link() -> Link {
        let address = |a: &str, flags| Address { address: ip(a), interface: "eth0".into(), flags };
        Link {
            name: "eth0".into(),
            index: 2,
            is_up: true,
            has_carrier: true,
            has_multicast: true,
            addresses: vec![
                address("fe80::1", 0x80),
                address("fd00::1", 0x80),
                address("fd00::7", 0x01),
                address("fd00::8", 0x40),
            ],
            has_ipv6: true,
            mtu: Some(1280),
            has_multicast_route: true,
            device: Some(Device { speed: Some(100), queue: Some(1000), ..Device::default() }),
            ..Link::default()
        }
    }

    fn way() -> Way {
        Way {
            target: Target {
                group: ip("ff3e::8000:1"),
                port: 5004,
                interface: "eth0".into(),
                source: None,
                hops: 32,
                dscp: 1,
            },
            rate: 10_000_000,
            phase: 0,
            packet_len: Some(1280),
            source: Ok(ip("fd00::1")),
        }
    }

    fn contents() -> Contents {
        Contents {
            name: "fw".into(),
            seq: 1,
            size: 1000,
            created: NOW - 1000,
            expires: None,
            packet_len: 1280,
            key_id: Some("AB".into()),
            is_checked: true,
        }
    }

    fn healthy() -> Facts {
        Facts {
            links: [("eth0".to_owned(), Some(link()))].into(),
            bundles: vec![Parcel { path: "F.carousel".into(), contents: Ok(contents()) }],
            channels: vec![way()],
            unreadable: None,
            servers: Vec::new(),
            has_own_phase: false,
            now: NOW,
            open_files: Some(1024),
            landlock: 9,
            has_seccomp: true,
            has_trains: true,
            sockets: Vec::new(),
            leaving: Vec::new(),
        }
    }

    fn server(address: &str, priority: u16) -> Source {
        Source {
            host: format!("s{priority}.example.net").parse().unwrap(),
            addresses: vec![ip(address)],
            port: 0,
            priority,
            weight: 10,
        }
    }

    /// What is not as it should be after a change.
    fn of(change: impl Fn(&mut Facts)) -> Vec<(&'static str, Level)> {
        let mut facts = healthy();
        change(&mut facts);
        let (findings, _) = judge(&facts);
        assert!(findings.iter().all(|f| (f.level == Level::Ok) == f.remedy.is_none()));
        let bad = findings.into_iter().filter(|f| f.level != Level::Ok);
        bad.map(|f| (f.id.as_str(), f.level)).collect()
    }

    #[test]
    fn a_healthy_one_has_no_trouble() {
        assert_eq!(of(|_| {}), []);
        assert!(judge(&healthy()).1.is_none());
        assert_eq!(of(|f| f.channels.extend([way(), way()])), []);
    }

    #[test]
    fn a_missing_interface_is_a_wrong_command_line() {
        let mut facts = healthy();
        facts.links.insert("eth0".into(), None);
        assert_eq!(judge(&facts).1, Some(Outcome::Usage));
        assert_eq!(of(|f| drop(f.links.insert("eth0".into(), None))), [("interface", Problem)]);
    }

    #[test]
    fn bundles() {
        let bad = |f: &mut Facts| f.bundles[0].contents = Err(Failure::untrusted("F: damaged: x; pack it"));
        assert_eq!(of(bad), [("bundle", Problem)]);
        let change = |change: fn(&mut Contents)| of(|f| change(f.bundles[0].contents.as_mut().unwrap()));
        assert_eq!(change(|c| c.key_id = None), [("bundle", Note)]);
        assert_eq!(change(|c| c.is_checked = false), []);
        assert_eq!(change(|c| c.created = NOW + 301), [("clock", Problem)]);
        assert_eq!(change(|c| c.expires = Some(NOW - 1)), [("clock", Problem)]);
        assert_eq!(of(|f| f.now = 0), [("clock", Problem)]);
        assert_eq!(of(|f| f.unreadable = Some(Failure::usage("k: no"))), [("bundle", Problem)]);
    }

    #[test]
    fn sources() {
        let source = |address: &str| of(|f| f.channels[0].source = Ok(ip(address)));
        assert_eq!(source("fe80::1"), [("source", Problem)]);
        assert_eq!(source("fd00::7"), [("source", Problem)], "temporary");
        assert_eq!(source("fd00::8"), [("source", Problem)], "tentative");
        assert_eq!(source("fd00::9"), [("source", Problem)], "somebody else's");
        assert_eq!(
            of(|f| f.channels[0].source = Err("network is unreachable".into())),
            [("source", Problem)]
        );
        assert_eq!(of(|f| f.servers = vec![server("fd00::1", 0)]), []);
        assert_eq!(of(|f| f.servers = vec![server("fd00::2", 0)]), [("source-in-dns", Problem)]);
        let elsewhere = Source { addresses: Vec::new(), ..server("fd00::2", 10) };
        assert_eq!(of(|f| f.servers = vec![server("fd00::2", 0), elsewhere.clone()]), [], "not said here");
    }

    #[test]
    fn packets_groups_and_hops() {
        assert_eq!(of(|f| f.channels[0].packet_len = Some(1281)), [("mtu", Problem)]);
        let group = |group: &str| of(|f| f.channels[0].target.group = ip(group));
        assert_eq!(group("ff31::8000:1"), [("group", Problem)]);
        assert_eq!(group("ff32::8000:1"), [("group", Note)]);
        assert_eq!(group("ff15::1"), [("group", Note)]);
        assert_eq!(group("ff3e:20::1"), [("group", Note)]);
        let twins = |f: &mut Facts| {
            f.channels.push(way());
            f.channels[1].target.group = ip("ff35::8000:1");
        };
        assert_eq!(of(twins), [("group", Note)]);
        assert_eq!(of(|f| f.channels[0].target.hops = 1), [("hop-limit", Problem)]);
        assert_eq!(of(|f| f.channels[0].target.hops = 255), []);
    }

    #[test]
    fn rates_and_queues() {
        assert_eq!(of(|f| f.channels[0].rate = 95_000_000), [("rate", Problem)]);
        assert_eq!(of(|f| f.channels[0].rate = 60_000_000), [("rate", Note)]);
        assert_eq!(of(|f| f.channels.extend((0..6).map(|_| way()))), [("rate", Note)]);
        let small = |queue| {
            move |f: &mut Facts| {
                if let Some(Some(link)) = f.links.get_mut("eth0") {
                    link.device = Some(Device { queue: Some(queue), ..Device::default() });
                }
            }
        };
        assert_eq!(of(small(1)), [("send-queue", Note)]);
        assert_eq!(of(small(0)), []);
        assert_eq!(of(small(2)), []);
    }

    #[test]
    fn servers_that_run_from_one_file() {
        let two = vec![server("fd00::1", 0), server("fd00::2", 0)];
        assert_eq!(of(|f| f.servers = two.clone()), [("phase", Note)]);
        let told = |f: &mut Facts| {
            f.servers = two.clone();
            f.has_own_phase = true;
        };
        assert_eq!(of(told), []);
        assert_eq!(of(|f| f.servers = vec![server("fd00::1", 0), server("fd00::2", 10)]), [], "a spare");
    }

    #[test]
    fn the_host() {
        assert_eq!(of(|f| f.has_trains = false), [("segmentation", Note)]);
        assert_eq!(of(|f| f.open_files = Some(33)), [("limits", Problem)]);
        assert_eq!(of(|f| f.landlock = 3), [("sandbox", Note)]);
        assert_eq!(of(|f| f.has_seccomp = false), [("sandbox", Note)]);
        let socket = |local: &str, connected| UdpSocket {
            local: (ip(local), 5004),
            remote: (ip("ff3e::8000:1"), 5004),
            connected,
        };
        assert_eq!(of(|f| f.sockets = vec![socket("fd00::1", true)]), []);
        assert_eq!(of(|f| f.sockets = vec![socket("::", false)]), [("listens", Note)]);
        assert_eq!(of(|f| f.sockets = vec![socket("ff3e::8000:1", false)]), [("listens", Note)]);
        assert_eq!(of(|f| f.sockets = vec![socket("fd00::1", false)]), [], "it hears no group");
        let leaving =
            |rate, expected| of(|f| f.leaving = vec![Leaving { interface: "eth0".into(), rate, expected }]);
        assert_eq!(leaving(768.0, 10_000_000), [("sending", Problem)]);
        assert_eq!(leaving(0.0, 1_000_000), [("sending", Problem)]);
        assert_eq!(leaving(5e6, 10_000_000), [], "a busy machine");
        assert_eq!(leaving(0.0, 10_000), [], "too slow to tell");
    }
}
