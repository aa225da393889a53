//! From facts to findings. Pure.

use super::facts::{Channel, Described, Facts, Joined, Voice};
use super::listen::QUERIES;
use carousel_doctor::link::sysctl;
use carousel_doctor::{Finding, Id};
use carousel_proto::outcome::Outcome;
use carousel_proto::units::{show_moment, show_rate, show_seconds, show_size};
use std::net::Ipv6Addr;

/// Below this share, loss is nothing to speak of; from the second on it is a fault of the network.
const LOSS: (f64, f64) = (0.01, 0.05);
/// Duplicates are a share of what arrives.
const DUPLICATES: f64 = 0.01;
/// Packets without which a share says nothing.
const FEW: u64 = 50;
/// So many packets, as long as these, do not come unasked: ours are, those of the neighbourhood are not.
const BULK: (f64, f64) = (20.0, 600.0);
/// … and they are more than so many times what came before: half a second of that is a rough measure.
const MORE: f64 = 1.5;
/// No device that runs this was made before: 2025-01-01.
const LEAST_TIME: u64 = 1_735_689_600;
/// A clock may be so far behind the one that signed, seconds.
const CLOCK_SLACK: u64 = 300;
/// There is a manifest among so many packets of a channel, whatever else is sent in its turn (PROTOCOL.md, 6.6). At
/// 500 kbit/s that is more than a minute.
const MANIFEST_WITHIN: u64 = 4_096;
/// A join that takes longer annoys people, seconds.
const SLOW_JOIN: f64 = 2.0;

/// All findings, and how it ends if they alone do not decide.
pub fn judge(facts: &Facts) -> (Vec<Finding>, Option<Outcome>) {
    let mut findings = facts.link.judge();
    let link_works = findings.iter().all(|f| f.remedy.is_none() || f.level < carousel_doctor::Level::Problem);
    findings.extend(judge_dns(facts));
    findings.extend(judge_ways(facts));
    findings.extend(judge_limit(facts));
    findings.extend(judge_joins(facts));
    if link_works {
        findings.extend(judge_mld(facts));
        findings.push(judge_querier(facts));
    }
    findings.extend(judge_signal(facts, link_works));
    findings.extend(judge_manifests(facts));
    findings.extend(facts.heard.voices.iter().flat_map(judge_voice));
    findings.extend(judge_damage(facts));
    findings.push(judge_buffer(facts));
    findings.push(judge_clock(facts));
    let is_heard = |channel: &Channel| facts.heard.voices.iter().any(|voice| channel.is(&voice.channel));
    let ended = (!facts.wanted.iter().any(is_heard)).then_some(Outcome::NoSignal);
    (findings, ended)
}

fn judge_dns(facts: &Facts) -> Vec<Finding> {
    let Some(found) = &facts.dns else { return Vec::new() };
    let mut findings = vec![Finding::ok(
        Id::Dns,
        format!(
            "{}: {} sources, {} of them spares, {} tiers; DNSSEC: {}; listened to tier {}",
            found.name, found.sources, found.spares, found.tiers, found.validation, found.tier
        ),
    )];
    let remark = |remark: &String| {
        Finding::note(Id::Dns, remark.clone(), "mend the zone; `carousel-server zone` prints the records")
    };
    findings.extend(found.remarks.iter().map(remark));
    findings
}

fn judge_ways(facts: &Facts) -> Vec<Finding> {
    let name = &facts.link.name;
    let judge = |(source, way): &(Ipv6Addr, Option<Ipv6Addr>)| {
        if way.is_some_and(|own| facts.link.addresses.iter().any(|a| a.address == own)) {
            return Finding::ok(Id::SourceRoute, format!("{source} is reached through {name}"));
        }
        let what = way.map_or_else(
            || format!("no way leads to {source}"),
            |own| format!("the way to {source} does not begin at {name} but at {own}"),
        );
        Finding::note(
            Id::SourceRoute,
            what,
            "nothing needs to be sent there, but a firewall that looks whether a packet came by the way back (nft fib, \
             firewalld's IPv6_rpfilter) drops it: add a route, or an exception",
        )
    };
    facts.ways.iter().map(judge).collect()
}

fn judge_limit(facts: &Facts) -> Option<Finding> {
    let limit = facts.source_limit?;
    let of =
        |group: &Ipv6Addr| facts.wanted.iter().filter(|c| c.group == *group && c.source.is_some()).count();
    let most = facts.wanted.iter().map(|channel| of(&channel.group)).max().unwrap_or(0) as u64;
    Some(match most > limit {
        true => Finding::problem(
            Id::SourceLimit,
            format!("{most} sources of one group, and the kernel lets a socket join {limit}"),
            format!("sysctl -w net.ipv6.mld_max_msf={}", most.next_power_of_two()),
        ),
        false => {
            Finding::ok(Id::SourceLimit, format!("a socket may join {limit} sources, and {most} are wanted"))
        }
    })
}

fn judge_joins(facts: &Facts) -> Vec<Finding> {
    let judge = |(channel, joined): (&Channel, &Joined)| match joined {
        Joined { error: Some(error), .. } => Finding::problem(
            Id::Join,
            format!("{} cannot be joined on {}: {error}", name(channel), facts.link.name),
            "mend what is said of the interface; too many joins: sysctl net.ipv6.mld_max_msf, net.core.optmem_max",
        ),
        Joined { is_known: false, .. } => Finding::problem(
            Id::Join,
            format!("{} was joined, and the kernel does not list it in /proc/net/mcfilter6", name(channel)),
            "report this, with `uname -a`",
        ),
        _ => Finding::ok(Id::Join, format!("joined {} on {}", name(channel), facts.link.name)),
    };
    facts.wanted.iter().zip(&facts.heard.joins).map(judge).collect()
}

/// Whether the network was told, and how.
fn judge_mld(facts: &Facts) -> Vec<Finding> {
    let [_, before, after] = &facts.heard.counters;
    let name = &facts.link.name;
    let told = after.link_since(before, "Icmp6OutMLDv2Reports");
    let told_in_v1 = after.link_since(before, "Icmp6OutGroupMembResponses");
    let seen = facts.heard.seen.iter().flat_map(|seen| &seen.queriers);
    let old_querier = seen.filter(|(_, version)| *version == 1).map(|(address, _)| *address).next();
    let mut findings = Vec::new();
    if told > 0 {
        findings.push(Finding::ok(Id::MldReport, format!("the join was reported on {name}")));
    } else if told_in_v1 == 0 {
        let was_known = facts.heard.joins.iter().all(|joined| joined.was_known);
        findings.push(if was_known {
            Finding::ok(Id::MldReport, "another program on this host had joined already")
        } else {
            Finding::problem(
                Id::MldReport,
                format!("no MLD report left {name}: the network does not know that anybody wants this"),
                "let ICMPv6 type 143 to ff02::16 out of this host's firewall; nft insert rule inet filter output \
                 icmpv6 type 143 accept",
            )
        });
    }
    findings.push(if facts.link.forced_mld == 1 {
        Finding::problem(
            Id::MldVersion,
            format!("{name} is forced to MLDv1, which cannot ask for a source"),
            format!("sysctl -w net.ipv6.conf.all.force_mld_version=0 {}=0", sysctl(name, "force_mld_version")),
        )
    } else if told_in_v1 > 0 || old_querier.is_some() {
        let who = old_querier.map_or("an MLD querier here".to_owned(), |address| format!("the querier {address}"));
        Finding::problem(
            Id::MldVersion,
            format!("{who} speaks MLDv1, and so everybody must, and nobody can ask for a source"),
            "set MLD version 2 at that switch or router; Linux bridges: ip link set br0 type bridge mcast_mld_version 2",
        )
    } else {
        Finding::ok(Id::MldVersion, "MLDv2 is spoken")
    });
    findings
}

fn judge_querier(facts: &Facts) -> Finding {
    let [_, before, after] = &facts.heard.counters;
    let (now, ever) = (after.link_since(before, QUERIES), after.link(QUERIES));
    let name = &facts.link.name;
    let seen = facts.heard.seen.iter().flat_map(|seen| &seen.queriers).next();
    match (now, ever, seen) {
        (0, _, Some((address, _))) => Finding::problem(
            Id::Firewall,
            format!(
                "this host's firewall drops the MLD queries of {address}: after some minutes the switch forgets us"
            ),
            "nft insert rule inet filter input icmpv6 type mld-listener-query accept",
        ),
        (0, 0, None) => {
            let what = format!("no MLD querier was ever heard on {name}");
            let remedy = "a switch with MLD snooping forwards nothing, or not for long, if nobody asks: switch on a \
                          querier at the router (MLDv2, or PIM) or at the switch, or switch off snooping";
            if facts.heard.voices.is_empty() {
                Finding::problem(Id::Querier, what, remedy)
            } else {
                Finding::note(
                    Id::Querier,
                    format!("{what}; if there is no switch in between, that is fine"),
                    remedy,
                )
            }
        }
        (0, _, None) if facts.heard.voices.is_empty() => Finding::note(
            Id::Querier,
            format!(
                "an MLD querier asked {ever} times since {name} is there, and not now, though it was provoked"
            ),
            "look whether it is still there: a switch with MLD snooping forwards nothing if nobody asks",
        ),
        (0, _, None) => {
            Finding::ok(Id::Querier, format!("an MLD querier asked {ever} times since {name} is there"))
        }
        (_, _, Some((address, version))) => {
            Finding::ok(Id::Querier, format!("{address} asks by MLDv{version} who has joined what"))
        }
        (_, _, None) => Finding::ok(Id::Querier, "an MLD querier asks who has joined what"),
    }
}

fn judge_signal(facts: &Facts, link_works: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Where any source was wanted from the first, the second join changed nothing.
    let is_named = |voice: &Channel| facts.wanted.iter().any(|c| c.source.is_some() && c.is(voice));
    for voice in &facts.heard.voices {
        let rate = voice.rate().map_or(String::new(), |rate| format!(" at {}", show_rate(rate)));
        let what = format!(
            "{} sends{rate}; first packet {} after the join",
            name(&voice.channel),
            show_seconds(voice.first)
        );
        let ignored = is_named(&voice.channel) && facts.heard.any_after.is_some_and(|any| voice.first > any);
        findings.push(match voice.first {
            _ if ignored => Finding::problem(
                Id::SourceSpecific,
                format!("{what}, and not before any source was joined: something ignores joins of one source"),
                "switches and routers on the way need MLDv2 and PIM-SSM for ff30::/12; until then leave out --source",
            ),
            slow if slow > SLOW_JOIN => Finding::note(
                Id::Signal,
                what,
                "routers on the way are slow to set up the path, or it was lost at first; it only costs time",
            ),
            _ => Finding::ok(Id::Signal, what),
        });
    }
    let is_silent = |wanted: &&Channel| !facts.heard.voices.iter().any(|voice| wanted.is(&voice.channel));
    for wanted in facts.wanted.iter().filter(is_silent) {
        let why = why_silent(facts, wanted);
        let remedy = match (&why, link_works) {
            (_, false) => "mend the interface first",
            (Some(_), true) => "see the next line",
            (None, true) => {
                "the network does not bring it: does the server send (carousel-server doctor)? are source, group and \
                 port right? does the switch have an MLD querier, do routers do PIM-SSM, does the hop limit suffice?"
            }
        };
        let waited = show_seconds(facts.heard.seconds);
        findings.push(Finding::problem(
            Id::Signal,
            format!("no packet of {} within {waited}", name(wanted)),
            remedy,
        ));
        findings.extend(why.filter(|_| link_works));
    }
    if facts.heard.voices.is_empty() && facts.heard.foreign > 0 {
        findings.push(Finding::problem(
            Id::Manifest,
            format!("{} packets came, and none of a carousel", facts.heard.foreign),
            "another program uses this group and port: choose others",
        ));
    }
    findings
}

/// What is known about a channel from which nothing comes.
fn why_silent(facts: &Facts, wanted: &Channel) -> Option<Finding> {
    let seen = facts.heard.seen.iter().flat_map(|seen| &seen.packets);
    let seen = || seen.clone().filter(|(kind, _)| kind.group == wanted.group);
    let channel =
        |kind: &super::tap::Kind| Channel { source: Some(kind.source), group: kind.group, port: kind.port };
    let interface = &facts.link.name;
    if let Some((_, count)) = seen().find(|(kind, _)| wanted.is(&channel(kind))) {
        return Some(Finding::problem(
            Id::Firewall,
            format!(
                "{count} packets of {} reached {interface}, and this host's firewall drops them",
                name(wanted)
            ),
            allow(wanted),
        ));
    }
    // One of several sources that are wanted is nobody else.
    let is_other = |other: &Channel| {
        (other.group, other.port) == (wanted.group, wanted.port) && !facts.wanted.iter().any(|c| c.is(other))
    };
    let stranger = facts.heard.strangers.iter().map(|(other, _)| *other).find(is_other);
    let passer = seen().map(|(kind, _)| channel(kind)).find(is_other);
    if let Some(other) = stranger.or(passer)
        && let Some(address) = other.source
    {
        return Some(Finding::problem(
            Id::OtherSource,
            format!(
                "{address} sends to [{}]:{}, and {} does not",
                other.group,
                other.port,
                source_of(wanted)
            ),
            format!(
                "if that is your server: --source {address}; otherwise `carousel-server run` says which address it \
                 sends from"
            ),
        ));
    }
    if let Some((kind, _)) = seen().find(|(kind, _)| wanted.source.is_none_or(|source| source == kind.source))
    {
        return Some(Finding::problem(
            Id::OtherPort,
            format!("{} sends to {} at port {}, not {}", kind.source, kind.group, kind.port, wanted.port),
            format!("--port {}", kind.port),
        ));
    }
    // What came with the joins may be what reached us: then it says nothing of a firewall.
    let heard = &facts.heard;
    let reached_us = !heard.voices.is_empty() || !heard.strangers.is_empty() || heard.foreign > 0;
    (heard.seen.is_none() && !reached_us && has_bulk(facts)).then(|| {
        Finding::problem(
            Id::Firewall,
            format!("since the join, large multicast packets reach {interface}, and none the program: probably this host's firewall drops them"),
            format!("{}; as root this doctor sees more", allow(wanted)),
        )
    })
}

/// Whether packets came to the host with the join: more, and longer ones, than before.
fn has_bulk(facts: &Facts) -> bool {
    let [first, before, after] = &facts.heard.counters;
    let (count, bytes) = ("Ip6InMcastPkts", "Ip6InMcastOctets");
    let quiet = before.link_since(first, count) as f64 / facts.heard.quiet_seconds.max(0.1);
    let came = after.link_since(before, count) as f64;
    let mean = after.link_since(before, bytes) as f64 / came.max(1.0);
    let as_before = quiet * facts.heard.seconds;
    came - as_before >= BULK.0 && came >= as_before * MORE && mean >= BULK.1
}

fn allow(wanted: &Channel) -> String {
    format!(
        "nft insert rule inet filter input ip6 daddr {} udp dport {} accept (with your table and chain: nft list ruleset)",
        wanted.group, wanted.port
    )
}

fn judge_manifests(facts: &Facts) -> Vec<Finding> {
    let heard = &facts.heard;
    let sent = heard.voices.iter().map(|voice| voice.meter.expected).max().unwrap_or(0);
    if heard.manifests.is_empty() && sent >= MANIFEST_WITHIN {
        return vec![Finding::problem(
            Id::Manifest,
            format!("packets of a carousel arrive, and no manifest among {sent} of them"),
            "another program may use this group and port; or the loss is very high",
        )];
    }
    if heard.manifests.is_empty() && heard.voices.iter().any(|voice| voice.lasted > 3.0) {
        return vec![Finding::note(
            Id::Manifest,
            format!("no manifest among {sent} packets; there is one in {MANIFEST_WITHIN} at least"),
            "a slow channel takes its time: listen longer, --timeout 60s",
        )];
    }
    let judge = |m: &Described| {
        let by = m.key_id.as_ref().map_or("not signed".to_owned(), |id| format!("by key {id}"));
        let what = format!("{} sends {:?}, release {}, {}, {by}", m.source, m.name, m.seq, show_size(m.size));
        match (&m.refusal, facts.has_key) {
            (Some(refusal), _) => Finding::problem(
                Id::Manifest,
                format!("{what}: {refusal}"),
                "give --key the public key of whoever packs; if that is right, somebody else sends here",
            ),
            (None, true) => Finding::ok(Id::Manifest, format!("{what}, signed by a key of yours")),
            (None, false) => {
                Finding::ok(Id::Manifest, format!("{what}; signature not checked (--key K.pub does)"))
            }
        }
    };
    heard.manifests.iter().map(judge).collect()
}

fn judge_voice(voice: &Voice) -> Vec<Finding> {
    let meter = &voice.meter;
    if meter.expected < FEW {
        return Vec::new();
    }
    let what = format!(
        "{:.1} % lost: {} of {} packets of {}",
        meter.loss() * 100.0,
        meter.lost(),
        meter.expected,
        name(&voice.channel)
    );
    let remedy = "a lower rate or tier shows whether a link is full; a radio, a cable or a port that counts errors \
                  loses at any rate; the file arrives all the same, only later";
    let mut findings = vec![match meter.loss() {
        loss if loss < LOSS.0 => Finding::ok(Id::Loss, what),
        loss if loss < LOSS.1 => Finding::note(Id::Loss, what, remedy),
        _ => Finding::problem(Id::Loss, what, remedy),
    }];
    if meter.duplicates as f64 > DUPLICATES * meter.arrived as f64 {
        findings.push(Finding::note(
            Id::Duplicates,
            format!("{} packets of {} came twice", meter.duplicates, name(&voice.channel)),
            "two routers forward to this link, or there is a loop: it only costs bandwidth",
        ));
    }
    findings
}

fn judge_damage(facts: &Facts) -> Option<Finding> {
    let [_, before, after] = &facts.heard.counters;
    let damaged = after.host_since(before, "Udp6InCsumErrors");
    (damaged > 0).then(|| {
        Finding::note(
            Id::Damage,
            format!("{damaged} UDP packets came with a wrong checksum"),
            "look at the error counters of cards, cables and switches on the way",
        )
    })
}

fn judge_buffer(facts: &Facts) -> Finding {
    let [_, before, after] = &facts.heard.counters;
    let full = after.host_since(before, "Udp6RcvbufErrors");
    let (asked, granted) = (facts.rcvbuf, facts.heard.granted.unwrap_or(0));
    let enlarge = format!("sysctl -w net.core.rmem_max={asked}, and a file in /etc/sysctl.d to keep it");
    if full > 0 && facts.heard.overflowed > 0 {
        return Finding::problem(
            Id::ReceiveBuffer,
            format!(
                "{} packets were dropped in this host: its receive buffer of {} was full",
                facts.heard.overflowed,
                show_size(granted)
            ),
            if granted < asked {
                enlarge
            } else {
                "a larger --rcvbuf, a lower rate, or a faster device".to_owned()
            },
        );
    }
    if facts.heard.granted.is_some() && granted < asked {
        let limit = facts
            .rcvbuf_limit
            .map_or(String::new(), |limit| format!("; net.core.rmem_max is {}", show_size(limit)));
        return Finding::note(
            Id::ReceiveBuffer,
            format!(
                "the system grants a receive buffer of {}, not {}{limit}",
                show_size(granted),
                show_size(asked)
            ),
            enlarge,
        );
    }
    match facts.heard.granted {
        Some(_) => {
            Finding::ok(Id::ReceiveBuffer, format!("a receive buffer of {} is granted", show_size(granted)))
        }
        None => Finding::note(Id::ReceiveBuffer, "not known: nothing could be joined", "mend that first"),
    }
}

fn judge_clock(facts: &Facts) -> Finding {
    let now = facts.now;
    let set = "set it: timedatectl set-ntp true, or chrony; a device without a clock needs get --state";
    if now < LEAST_TIME {
        return Finding::problem(
            Id::Clock,
            format!("this host believes that it is {}", show_moment(now)),
            set,
        );
    }
    let manifests = || facts.heard.manifests.iter().filter(|m| m.refusal.is_none());
    if let Some(m) = manifests().find(|m| m.created > now.saturating_add(CLOCK_SLACK)) {
        return Finding::problem(
            Id::Clock,
            format!(
                "this host believes that it is {}, and {:?} was made later, {}",
                show_moment(now),
                m.name,
                show_moment(m.created)
            ),
            set,
        );
    }
    if let Some((m, expires)) = manifests().find_map(|m| m.expires.filter(|e| *e < now).map(|e| (m, e))) {
        return Finding::problem(
            Id::Clock,
            format!("{:?} expired on {}, and it is {}", m.name, show_moment(expires), show_moment(now)),
            "if this host's clock is right, pack and send a newer release",
        );
    }
    Finding::ok(Id::Clock, format!("it is {}", show_moment(now)))
}

fn name(channel: &Channel) -> String {
    format!("{} on [{}]:{}", source_of(channel), channel.group, channel.port)
}

fn source_of(channel: &Channel) -> String {
    channel.source.map_or("any source".to_owned(), |source| source.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::Heard;
    use crate::doctor::meter::Meter;
    use crate::doctor::tap::{Kind, Seen};
    use carousel_doctor::kernel::Address;
    use carousel_doctor::{Counters, Level, Link};
    use carousel_proto::wire::Sequence;

    const NOW: u64 = 1_800_000_000;

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn wanted() -> Channel {
        Channel { source: Some(ip("fd00::1")), group: ip("ff3e::8000:1"), port: 5004 }
    }

    fn voice(channel: Channel, numbers: impl Iterator<Item = u32>) -> Voice {
        let mut meter = Meter::new();
        numbers.for_each(|n| meter.handle(Sequence(n), 1280));
        Voice { channel, meter, first: 0.01, lasted: 5.0 }
    }

    fn described() -> Described {
        Described {
            source: ip("fd00::1"),
            name: "fw".into(),
            seq: 1,
            size: 1000,
            created: NOW - 1000,
            expires: None,
            key_id: Some("AB".into()),
            refusal: None,
        }
    }

    fn healthy() -> Facts {
        let address = |a: &str| Address { address: ip(a), interface: "eth0".into(), flags: 0x80 };
        let link = Link {
            name: "eth0".into(),
            index: 2,
            is_up: true,
            has_carrier: true,
            has_multicast: true,
            addresses: vec![address("fe80::10"), address("fd00::10")],
            has_ipv6: true,
            mtu: Some(1280),
            has_multicast_route: true,
            ..Link::default()
        };
        let after = &[("Icmp6OutMLDv2Reports", 2), (QUERIES, 1)];
        let counters = [Counters::of(&[], &[]), Counters::of(&[], &[]), Counters::of(after, &[])];
        Facts {
            link,
            dns: None,
            wanted: vec![wanted()],
            ways: vec![(ip("fd00::1"), Some(ip("fd00::10")))],
            source_limit: Some(64),
            rcvbuf: 8 << 20,
            rcvbuf_limit: Some(212_992),
            now: NOW,
            has_key: true,
            heard: Heard {
                seconds: 5.5,
                joins: vec![Joined { error: None, is_known: true, was_known: false }],
                granted: Some(8 << 20),
                voices: vec![voice(wanted(), 0..1000)],
                counters,
                quiet_seconds: 0.5,
                manifests: vec![described()],
                ..Heard::default()
            },
        }
    }

    fn silent() -> Facts {
        let mut facts = healthy();
        facts.heard.voices.clear();
        facts.heard.manifests.clear();
        facts
    }

    /// What is not as it should be, and how it ends.
    fn trouble(facts: &Facts) -> (Vec<(&'static str, Level)>, Option<Outcome>) {
        let (findings, ended) = judge(facts);
        assert!(findings.iter().all(|f| (f.level == Level::Ok) == f.remedy.is_none()));
        let bad = findings.into_iter().filter(|f| f.level != Level::Ok);
        (bad.map(|f| (f.id.as_str(), f.level)).collect(), ended)
    }

    fn after(facts: &mut Facts, link: &[(&str, u64)], host: &[(&str, u64)]) {
        facts.heard.counters[2] = Counters::of(link, host);
    }

    use Level::{Note, Problem};
    const NOTHING: Option<Outcome> = Some(Outcome::NoSignal);

    #[test]
    fn a_healthy_one_has_no_trouble() {
        assert_eq!(trouble(&healthy()), (vec![], None));
        let any = Channel { source: None, ..wanted() };
        assert_eq!(trouble(&Facts { wanted: vec![any], ..healthy() }), (vec![], None));
    }

    #[test]
    fn silence_without_a_reason_is_the_network_s() {
        assert_eq!(trouble(&silent()), (vec![("signal", Problem)], NOTHING));
        let mut facts = silent();
        after(&mut facts, &[("Icmp6OutMLDv2Reports", 2)], &[]);
        assert_eq!(trouble(&facts), (vec![("querier", Problem), ("signal", Problem)], NOTHING));
        // It asked once, and is gone.
        facts.heard.counters[1] = Counters::of(&[(QUERIES, 3)], &[]);
        after(&mut facts, &[("Icmp6OutMLDv2Reports", 2), (QUERIES, 3)], &[]);
        assert_eq!(trouble(&facts), (vec![("querier", Note), ("signal", Problem)], NOTHING));
    }

    #[test]
    fn a_broken_interface_is_the_reason_and_nothing_is_made_of_what_follows() {
        let mut facts = silent();
        facts.link.is_up = false;
        after(&mut facts, &[], &[]);
        assert_eq!(trouble(&facts), (vec![("link-state", Problem), ("signal", Problem)], NOTHING));
    }

    #[test]
    fn what_the_tap_saw_tells_firewall_source_and_port_apart() {
        let of = |source: &str, port| {
            let mut facts = silent();
            let kind = Kind { source: ip(source), group: wanted().group, port, hops: 31 };
            facts.heard.seen = Some(Seen { packets: vec![(kind, 100)], queriers: vec![(ip("fe80::1"), 2)] });
            trouble(&facts).0
        };
        assert_eq!(of("fd00::1", 5004), [("signal", Problem), ("firewall", Problem)]);
        assert_eq!(of("fd00::2", 5004), [("signal", Problem), ("other-source", Problem)]);
        assert_eq!(of("fd00::1", 5005), [("signal", Problem), ("other-port", Problem)]);
        assert_eq!(of("fd00::2", 5005), [("signal", Problem)], "somebody else's");
    }

    #[test]
    fn without_a_tap_counters_and_the_other_join_tell() {
        let mut facts = silent();
        let bulk = [
            ("Icmp6OutMLDv2Reports", 1),
            (QUERIES, 1),
            ("Ip6InMcastPkts", 900),
            ("Ip6InMcastOctets", 900 * 1280),
        ];
        after(&mut facts, &bulk, &[]);
        assert_eq!(trouble(&facts).0, [("signal", Problem), ("firewall", Problem)]);
        // The same came before the join.
        facts.heard.counters[1] =
            Counters::of(&[("Ip6InMcastPkts", 90), ("Ip6InMcastOctets", 90 * 1280)], &[]);
        assert_eq!(trouble(&facts).0, [("signal", Problem)]);
        // Nor is it news if somewhat less came before: that was counted for half a second only.
        facts.heard.counters[1] =
            Counters::of(&[("Ip6InMcastPkts", 62), ("Ip6InMcastOctets", 62 * 1280)], &[]);
        assert_eq!(trouble(&facts).0, [("signal", Problem)]);
        // Small packets are the neighbourhood's.
        let mut facts = silent();
        after(
            &mut facts,
            &[
                ("Icmp6OutMLDv2Reports", 1),
                (QUERIES, 1),
                ("Ip6InMcastPkts", 900),
                ("Ip6InMcastOctets", 900 * 80),
            ],
            &[],
        );
        assert_eq!(trouble(&facts).0, [("signal", Problem)]);
        let mut facts = silent();
        after(&mut facts, &bulk, &[]);
        facts.heard.strangers = vec![(Channel { source: Some(ip("fd00::66")), ..wanted() }, 500)];
        assert_eq!(trouble(&facts).0, [("signal", Problem), ("other-source", Problem)]);
    }

    #[test]
    fn a_network_that_knows_no_sources() {
        let mut facts = healthy();
        facts.heard.any_after = Some(4.0);
        facts.heard.voices[0].first = 4.2;
        assert_eq!(trouble(&facts), (vec![("source-specific", Problem)], None));
        // Who wanted any source has joined that from the first.
        facts.wanted[0].source = None;
        assert_eq!(trouble(&facts), (vec![("signal", Note)], None));
        facts.wanted[0].source = wanted().source;
        facts.heard.any_after = None;
        assert_eq!(trouble(&facts), (vec![("signal", Note)], None));
    }

    #[test]
    fn one_of_two_sources_is_silent() {
        let mut facts = healthy();
        facts.wanted.push(Channel { source: Some(ip("fd00::2")), ..wanted() });
        assert_eq!(trouble(&facts), (vec![("signal", Problem)], None));
        // The other one is heard through the second join, too, passes the tap, and makes counters grow. It is no
        // stranger, and no firewall is in its way.
        facts.heard.any_after = Some(4.0);
        facts.heard.strangers = vec![(wanted(), 500)];
        let counts = [
            ("Icmp6OutMLDv2Reports", 1),
            (QUERIES, 1),
            ("Ip6InMcastPkts", 900),
            ("Ip6InMcastOctets", 900 * 1280),
        ];
        after(&mut facts, &counts, &[]);
        assert_eq!(trouble(&facts), (vec![("signal", Problem)], None));
        let kind = Kind { source: ip("fd00::1"), group: wanted().group, port: 5004, hops: 31 };
        facts.heard.seen = Some(Seen { packets: vec![(kind, 100)], queriers: vec![(ip("fe80::1"), 2)] });
        assert_eq!(trouble(&facts), (vec![("signal", Problem)], None));
        // A third one is.
        facts.heard.strangers.push((Channel { source: Some(ip("fd00::66")), ..wanted() }, 500));
        assert_eq!(trouble(&facts).0, [("signal", Problem), ("other-source", Problem)]);
    }

    #[test]
    fn mld_and_its_versions() {
        let mut facts = healthy();
        after(&mut facts, &[(QUERIES, 1)], &[]);
        assert_eq!(trouble(&facts).0, [("mld-report", Problem)]);
        facts.heard.joins[0].was_known = true;
        assert_eq!(trouble(&facts).0, []);
        after(&mut facts, &[(QUERIES, 1), ("Icmp6OutGroupMembResponses", 1)], &[]);
        assert_eq!(trouble(&facts).0, [("mld-version", Problem)]);
        let mut facts = healthy();
        facts.link.forced_mld = 1;
        assert_eq!(trouble(&facts).0, [("mld-version", Problem)]);
        let mut facts = healthy();
        facts.heard.seen = Some(Seen { packets: vec![], queriers: vec![(ip("fe80::1"), 1)] });
        assert_eq!(trouble(&facts).0, [("mld-version", Problem)]);
    }

    #[test]
    fn queries_that_do_not_get_past_the_firewall() {
        let mut facts = healthy();
        after(&mut facts, &[("Icmp6OutMLDv2Reports", 1)], &[]);
        assert_eq!(trouble(&facts).0, [("querier", Note)], "packets come all the same");
        facts.heard.seen = Some(Seen { packets: vec![], queriers: vec![(ip("fe80::1"), 2)] });
        assert_eq!(trouble(&facts).0, [("firewall", Problem)]);
    }

    #[test]
    fn loss_and_duplicates() {
        let of = |numbers: Vec<u32>| {
            let mut facts = healthy();
            facts.heard.voices = vec![voice(wanted(), numbers.into_iter())];
            trouble(&facts).0
        };
        assert_eq!(of((0..1000).filter(|n| n % 10 != 1).collect()), [("loss", Problem)]);
        assert_eq!(of((0..1000).filter(|n| n % 50 != 1).collect()), [("loss", Note)]);
        assert_eq!(of((0..1000).filter(|n| n % 500 != 1).collect()), []);
        assert_eq!(of((0..40).filter(|n| n % 2 == 0).collect()), [], "too few to tell");
        assert_eq!(of((0..1000).flat_map(|n| [n, n]).collect()), [("duplicates", Note)]);
    }

    #[test]
    fn buffers() {
        let mut facts = healthy();
        facts.heard.granted = Some(212_992);
        assert_eq!(trouble(&facts), (vec![("receive-buffer", Note)], None));
        facts.heard.overflowed = 17;
        after(&mut facts, &[("Icmp6OutMLDv2Reports", 1), (QUERIES, 1)], &[("Udp6RcvbufErrors", 17)]);
        assert_eq!(trouble(&facts), (vec![("receive-buffer", Problem)], None));
        let mut facts = healthy();
        facts.heard.overflowed = 3; // damaged packets are in that count as well
        after(&mut facts, &[("Icmp6OutMLDv2Reports", 1), (QUERIES, 1)], &[("Udp6InCsumErrors", 3)]);
        assert_eq!(trouble(&facts), (vec![("damage", Note)], None));
    }

    #[test]
    fn clocks_and_manifests() {
        let of = |change: fn(&mut Facts)| {
            let mut facts = healthy();
            change(&mut facts);
            trouble(&facts).0
        };
        assert_eq!(of(|f| f.now = 5), [("clock", Problem)]);
        assert_eq!(of(|f| f.heard.manifests[0].created = NOW + 301), [("clock", Problem)]);
        assert_eq!(of(|f| f.heard.manifests[0].created = u64::MAX), [("clock", Problem)]);
        assert_eq!(of(|f| f.heard.manifests[0].expires = Some(NOW - 1)), [("clock", Problem)]);
        assert_eq!(of(|f| f.heard.manifests[0].expires = Some(NOW)), []);
        assert_eq!(of(|f| f.heard.manifests[0].refusal = Some("no".into())), [("manifest", Problem)]);
        assert_eq!(of(|f| f.heard.manifests.clear()), [("manifest", Note)], "it may be still to come");
        let never = |f: &mut Facts| {
            f.heard.voices = vec![voice(wanted(), 0..5000)];
            f.heard.manifests.clear();
        };
        assert_eq!(of(never), [("manifest", Problem)]);
        // A stranger's manifest says nothing about the time.
        let both = |f: &mut Facts| {
            f.heard.manifests[0].refusal = Some("no".into());
            f.heard.manifests[0].created = u64::MAX;
        };
        assert_eq!(of(both), [("manifest", Problem)]);
    }

    #[test]
    fn the_rest() {
        let of = |change: fn(&mut Facts)| {
            let mut facts = healthy();
            change(&mut facts);
            trouble(&facts).0
        };
        assert_eq!(of(|f| f.ways[0].1 = None), [("source-route", Note)]);
        assert_eq!(of(|f| f.ways[0].1 = Some(ip("fd01::7"))), [("source-route", Note)]);
        assert_eq!(of(|f| f.source_limit = Some(0)), [("source-limit", Problem)]);
        assert_eq!(of(|f| f.source_limit = None), []);
        assert_eq!(of(|f| f.heard.joins[0].error = Some("no".into())), [("join", Problem)]);
        assert_eq!(of(|f| f.heard.joins[0].is_known = false), [("join", Problem)]);
        let mut facts = silent();
        facts.heard.foreign = 7;
        assert_eq!(trouble(&facts), (vec![("signal", Problem), ("manifest", Problem)], NOTHING));
    }
}
