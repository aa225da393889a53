//! A server with a configuration: what it prints for DNS, what it sends, and how it takes up changes without a gap.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_dns::records::derived_group;
use carousel_dns::{Channel, Ladder, Resolver, Service, Settings, Source};
use carousel_tests::lab::{
    Capture, Host, Knot, Lab, Running, Signing, Zone, check_zone_file, until, zone_file,
};
use carousel_tests::scene::{self, PACKET_BYTES, PORT, Packed, SOURCE, args};
use carousel_tests::{bins, figures};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const ZONE: &str = "example.test";
const LIMIT: Duration = Duration::from_secs(20);
/// What every configuration here begins with.
const HEAD: &str = "interface = \"eth0\"\nport = 5004\n";

/// Packs an object of a size into NAME.carousel.
fn pack(lab: &Lab, name: &str, size: u64, seq: &str) -> Packed {
    let dir = lab.file(&format!("{name}-{seq}"));
    fs::create_dir(&dir).unwrap();
    let mut packed = scene::pack(&dir, size, &["--seq", seq]);
    let bundle = lab.file(&format!("{name}.carousel"));
    fs::rename(&packed.bundle, &bundle).unwrap();
    packed.bundle = bundle;
    packed
}

/// Writes the configuration as people should: beside it, then renamed over it.
fn configure(lab: &Lab, text: &str) {
    fs::write(lab.file("new.toml"), text).unwrap();
    fs::rename(lab.file("new.toml"), lab.file("server.toml")).unwrap();
}

fn start(lab: &Lab, host: &Host) -> Running {
    let server = host.spawn(&args(&[&bins::server(), &"run", &"--config", &lab.file("server.toml")]));
    scene::wait_sending(host, &server);
    server
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Signals the server, and waits until it has said this once more. When it was signalled.
fn reload(server: &Running, says: &str) -> f64 {
    let count = || server.stderr().matches(says).count();
    let (before, at) = (count(), now());
    server.kill(Signal::SIGHUP);
    until(&format!("the server to say: {says}"), LIMIT, || {
        assert!(server.is_alive(), "{server}");
        count() > before
    });
    at
}

/// A packet of a channel.
#[derive(Clone, Copy, Debug)]
struct Packet {
    /// When it left, in seconds since 1970.
    at: f64,
    sequence: u32,
    /// Of which bundle it is.
    instance: [u8; 4],
}

/// What a host has sent so far, by channel.
struct Heard(Arc<Mutex<Vec<Vec<Packet>>>>);

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<Packet>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the latest packet of a channel is such a one.
    fn wait(&self, what: &str, channel: usize, is_it: impl Fn(&Packet) -> bool) -> Packet {
        let mut found = None;
        until(&format!("{what} to be sent"), LIMIT, || {
            found = self.lock()[channel].last().copied().filter(&is_it);
            found.is_some()
        });
        found.unwrap()
    }
}

/// Everything that a host sends on these channels meanwhile. The times are the kernel's, and it keeps the packets for us:
/// a thread of ours would come late to them whenever others have the CPU, and the order of two channels lost.
fn hear<T>(host: &Host, groups: &[Ipv6Addr], meanwhile: impl FnOnce(&Heard) -> T) -> (Vec<Vec<Packet>>, T) {
    let heard = Heard(Arc::new(Mutex::new(vec![Vec::new(); groups.len()])));
    let (notes, groups) = (Heard(heard.0.clone()), groups.to_owned());
    let capture = Capture::start(host, "eth0", (), move |_, frame| {
        // Ethernet has 14 bytes, IPv6 40 and UDP 8; behind them see PROTOCOL.md, section 4.
        let Some(channel) = groups.iter().position(|group| frame.head[38..54] == group.octets()) else {
            return;
        };
        let word = |at: usize| -> [u8; 4] { frame.head[62 + at..66 + at].try_into().unwrap() };
        notes.lock()[channel].push(Packet {
            at: frame.at as f64 / 1e9,
            sequence: u32::from_be_bytes(word(4)),
            instance: word(24),
        });
    });
    let result = meanwhile(&heard);
    let ((), missed) = capture.finish();
    assert_eq!(missed, 0, "packets that the kernel could not keep for us");
    let packets = std::mem::take(&mut *heard.lock());
    (packets, result)
}

fn assert_contiguous(packets: &[Packet]) {
    let gap = packets.windows(2).find(|pair| pair[1].sequence != pair[0].sequence.wrapping_add(1));
    assert!(gap.is_none() && packets.len() > 10, "{} packets, {gap:?}", packets.len());
}

/// The packets before a moment, and those from then on.
fn split(packets: &[Packet], at: f64) -> (&[Packet], &[Packet]) {
    packets.split_at(packets.partition_point(|packet| packet.at < at))
}

/// The longest one that ended after this moment, in seconds.
fn longest_silence(packets: &[Packet], since: f64) -> f64 {
    let pairs = packets.windows(2).filter(|pair| pair[1].at >= since);
    pairs.map(|pair| pair[1].at - pair[0].at).fold(0.0, f64::max)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The rate of packets without gaps, of the one with so many seconds from packet to packet. Where the server had no CPU
/// for some time it left out what it could not send: most pairs that are half a second apart know nothing of that.
fn pace(packets: &[Packet], gap: f64) -> f64 {
    let apart = (0.5 / gap) as usize;
    let pairs = packets.iter().zip(packets.iter().skip(apart));
    apart as f64 * gap / median(pairs.map(|(a, b)| b.at - a.at))
}

/// When the packet with the number 0 would have left, by those that leave at this pace.
fn origin(packets: &[Packet], gap: f64, zero: u32) -> f64 {
    median(packets.iter().map(|packet| packet.at - f64::from(packet.sequence.wrapping_sub(zero)) * gap))
}

fn addresses(groups: &[&str]) -> Vec<Ipv6Addr> {
    groups.iter().map(|group| group.parse().unwrap()).collect()
}

#[test]
fn zone_says_what_is_sent() {
    let Some(lab) = Lab::enter("zone_says_what_is_sent") else { return };
    let (ladder, separate) = (pack(&lab, "ladder", 100_000, "42"), pack(&lab, "separate", 50_000, "7"));
    let session = |name: &str, more: &str| {
        format!("[[session]]\nservice = '{name}._carousel._udp.{ZONE}'\nbundle = \"{more}\n")
    };
    let text = HEAD.to_owned()
        + &session("fw", "ladder.carousel\"\ntiers = \"stacked\"\nrate = \"1M\"\nlevels = 4")
        + "url = \"https://example.test/fw.carousel\"\n"
        + &session("Maps 1.2", "separate.carousel\"\nrates = [\"1M\", \"10M\"]\nport = 5005")
        + "groups = [\"ff3e::8000:1\", \"ff3e::8000:2\"]\n"
        + "[[server]]\nhost = \"s1.example.test\"\naddress = [\"2001:db8:1::a\", \"2001:db8:1::b\"]\n"
        + "[[server]]\nhost = \"s2.example.test\"\naddress = \"2001:db8:2::a\"\npriority = 10\nweight = 3\n";
    configure(&lab, &text);
    let out =
        bins::run(bins::server(), args(&[&"zone", &"--config", &lab.file("server.toml"), &"--ttl", &"20"]));
    let (fragment, said) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.is_empty(), "{said}");

    let (ns, c) = (lab.host("ns"), lab.host("c"));
    lab.link(&ns, "eth0", "fd00:6::53/64", &c, "eth0", "fd00:6::10/64", 1280);
    for zone in [ZONE, "test"] {
        check_zone_file(&lab, &ns, zone, &zone_file(zone, &fragment));
    }
    if !Knot::is_here(&lab) {
        return;
    }
    let file = zone_file(ZONE, &fragment);
    let _knot = Knot::start(&lab, &ns, &[Zone { name: ZONE, text: &file, signing: Signing::Unsigned }]);
    let settings =
        Settings { nameserver: "[fd00:6::53]:53".parse().ok(), trust_anchor: None, timeout: LIMIT };
    let mut found = c.within(|| Resolver::new(settings)?.lookup(ZONE)).unwrap();
    assert_eq!((found.ttl, found.remarks.len()), (Duration::from_secs(20), 0), "{found:?}");

    let source = |host: &str, addresses: &[&str], port, priority, weight| Source {
        host: format!("{host}.{ZONE}").parse().unwrap(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        port,
        priority,
        weight,
    };
    let service = |name: &str, port, channels: Vec<Channel>, ladder, seq, packed: &Packed| Service {
        name: name.parse().unwrap(),
        sources: vec![
            source("s1", &["2001:db8:1::a", "2001:db8:1::b"], port, 0, 10),
            source("s2", &["2001:db8:2::a"], port, 10, 3),
        ],
        channels,
        ladder,
        seq: Some(seq),
        digest_prefix: Some(packed.digest[..16].to_owned()),
        key_id: Some(key_id(&packed.keys.public)),
        url: None,
    };
    let channel = |group, rate: u64| Channel { group, rate: Some(rate) };
    let (fw, maps) = (format!("fw._carousel._udp.{ZONE}"), format!(r"Maps 1\.2._carousel._udp.{ZONE}"));
    let levels = [1_000_000, 1_000_000, 2_000_000, 4_000_000];
    let levels = (0..).zip(levels).map(|(l, rate)| channel(derived_group(&fw.parse().unwrap(), l), rate));
    let tiers = addresses(&["ff3e::8000:1", "ff3e::8000:2"]);
    let tiers = tiers.into_iter().zip([1_000_000, 10_000_000]).map(|(group, rate)| channel(group, rate));
    let url = Some("https://example.test/fw.carousel".to_owned());
    let expected = [
        Service { url, ..service(&fw, PORT, levels.collect(), Ladder::Stacked, 42, &ladder) },
        service(&maps, 5005, tiers.collect(), Ladder::Separate, 7, &separate),
    ];
    found.services.sort_by_key(|service| std::cmp::Reverse(service.channels.len()));
    for source in found.services.iter_mut().flat_map(|service| &mut service.sources) {
        source.addresses.sort();
    }
    assert_eq!(found.services, expected);
}

/// The id in a public key of minisign, from its comment.
fn key_id(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned()
}

/// What routers and their queues go by, as it leaves.
#[test]
fn hop_limit_and_code_point_are_those_asked_for() {
    let Some(lab) = Lab::enter("hop_limit_and_code_point_are_those_asked_for") else { return };
    let (s, _c) = scene::pair(&lab);
    let packed = pack(&lab, "fw", 100_000, "1");
    for (more, hops, code) in [(&[][..], 32, 1), (&["--hops", "7", "--dscp", "af41"][..], 7, 34)] {
        let server = scene::serve(&s, &packed, "2M", more);
        let capture = Capture::start(&s, "eth0", BTreeSet::new(), |seen, frame| {
            // Behind Ethernet's 14 bytes: version, traffic class and flow label; the hop limit is the eighth byte.
            let class = (u16::from_be_bytes([frame.head[14], frame.head[15]]) >> 4) as u8;
            seen.insert((frame.head[21], class >> 2));
        });
        scene::wait_sending(&s, &server);
        let (seen, _) = capture.finish();
        assert_eq!(seen, BTreeSet::from([(hops, code)]), "{server}");
    }
}

#[test]
fn a_new_bundle_is_taken_up_without_a_gap() {
    let test = "a_new_bundle_is_taken_up_without_a_gap";
    let Some(lab) = Lab::enter(test) else { return };
    let (s, _c) = scene::pair(&lab);
    pack(&lab, "changes", 3 << 20, "1");
    pack(&lab, "stays", 2 << 20, "1");
    let session = |bundle: &str, group: &str| {
        format!("[[session]]\nbundle = \"{bundle}.carousel\"\ngroups = [\"{group}\"]\nrate = \"2M\"\n")
    };
    let groups = addresses(&["ff3e::8000:1", "ff3e::8000:2"]);
    configure(
        &lab,
        &(HEAD.to_owned() + &session("changes", "ff3e::8000:1") + &session("stays", "ff3e::8000:2")),
    );
    let server = start(&lab, &s);
    let mut seq = 1;
    let mut attempt = || {
        seq += 1;
        let (heard, at) = hear(&s, &groups, |heard| {
            let old = heard.wait("the old bundle", 0, |_| true);
            pack(&lab, "changes", 3 << 20, &seq.to_string());
            thread::sleep(Duration::from_secs(1));
            let at = reload(&server, "taken up: 1 changed, 0 new, 0 ended, 1 as before");
            heard.wait("the new bundle", 0, |packet| packet.instance != old.instance);
            thread::sleep(Duration::from_secs(1)); // and it stays
            at
        });
        let [changed, same] = &heard[..] else { panic!("two channels") };
        assert_contiguous(same);
        assert_contiguous(changed);
        assert!(same.iter().all(|packet| packet.instance == same[0].instance));
        let switches: Vec<_> =
            changed.windows(2).filter(|pair| pair[0].instance != pair[1].instance).collect();
        let [switch] = switches[..] else { panic!("{} switches: {server}", switches.len()) };
        let after = switch[1].at - at;
        let figure = |seconds: f64| format!("{:.1} ms", seconds * 1000.0);
        let (quiet, gap, silence) =
            (longest_silence(same, at), switch[1].at - switch[0].at, longest_silence(changed, at));
        figures::row(
            test,
            &[
                ("new bundle after", &figure(after)),
                ("gap at the switch", &figure(gap)),
                ("longest silence there", &figure(silence)),
                ("of the unchanged channel", &figure(quiet)),
            ],
        );
        after < 1.0 && silence < 0.1 && quiet < 0.05
    };
    // Being late may be the machine's fault; the server's fault would be there again.
    assert!((0..5).any(|_| attempt()), "five times late: {server}");
    assert!(
        server.stderr().contains(&format!("INFO now object (3.0 MiB, seq {seq}) from {SOURCE}")),
        "{server}"
    );
}

#[test]
fn what_is_wrong_is_not_taken_up() {
    let Some(lab) = Lab::enter("what_is_wrong_is_not_taken_up") else { return };
    let (s, _c) = scene::pair(&lab);
    let packed = pack(&lab, "fw", 1 << 20, "1");
    let good = HEAD.to_owned()
        + "[[session]]\nbundle = \"fw.carousel\"\ngroups = [\"ff3e::8000:1\"]\nrate = \"2M\"\n";
    configure(&lab, &good);
    let server = start(&lab, &s);
    let whole = fs::read(&packed.bundle).unwrap();
    let replace = |bytes: &[u8]| {
        fs::write(lab.file("spoilt"), bytes).unwrap();
        fs::rename(lab.file("spoilt"), &packed.bundle).unwrap();
    };
    let wrongs: [(&str, &dyn Fn()); 5] = [
        ("server.toml: line 7: unknown field `x`", &|| configure(&lab, &format!("{good}x = 1\n"))),
        ("nosuch.carousel: no such file", &|| configure(&lab, &good.replace("fw.car", "nosuch.car"))),
        ("no such interface: eth7", &|| configure(&lab, &good.replace("eth0", "eth7"))),
        ("server.toml: no such file", &|| fs::remove_file(lab.file("server.toml")).unwrap()),
        ("fw.carousel: damaged", &|| {
            configure(&lab, &good);
            replace(&whole[..whole.len() / 2]);
        }),
    ];
    let (heard, ()) = hear(&s, &addresses(&["ff3e::8000:1"]), |_| {
        for (count, (says, spoil)) in (1..).zip(wrongs) {
            spoil();
            reload(&server, says);
            let said = server.stderr();
            let warnings: Vec<&str> = said.lines().filter(|line| line.contains("WARN")).collect();
            assert_eq!(warnings.len(), count, "{server}");
            assert!(warnings[count - 1].ends_with("; everything goes on as before"), "{server}");
        }
        // The same bundle in another file is sent from there, and nobody hears of it; nothing of the above is remembered.
        replace(&whole);
        reload(&server, "taken up: 1 changed, 0 new, 0 ended, 0 as before");
        thread::sleep(Duration::from_millis(500)); // a change takes 400 ms
    });
    assert_contiguous(&heard[0]);
    assert!(heard[0].iter().all(|packet| packet.instance == heard[0][0].instance));
    server.kill(Signal::SIGTERM);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
}

#[test]
fn channels_come_and_go() {
    let Some(lab) = Lab::enter("channels_come_and_go") else { return };
    let (s, _c) = scene::pair(&lab);
    pack(&lab, "fw", 1 << 20, "1");
    let session = |groups: &str| {
        format!("{HEAD}[[session]]\nbundle = \"fw.carousel\"\ngroups = [{groups}]\nrate = \"2M\"\n")
    };
    configure(&lab, &session("\"ff3e::8000:1\", \"ff3e::8000:2\""));
    let server = start(&lab, &s);
    let groups = addresses(&["ff3e::8000:1", "ff3e::8000:2", "ff3e::8000:3"]);
    let half = Duration::from_millis(500);
    let (heard, ()) = hear(&s, &groups, |heard| {
        thread::sleep(half);
        configure(&lab, &session("\"ff3e::8000:2\", \"ff3e::8000:3\""));
        reload(&server, "taken up: 0 changed, 1 new, 1 ended, 1 as before");
        heard.wait("the new channel", 2, |_| true);
        thread::sleep(half * 2);
    });
    let (first, last) = (|n: usize| heard[n][0].at, |n: usize| heard[n][heard[n].len() - 1].at);
    heard.iter().for_each(|packets| assert_contiguous(packets));
    assert!(first(2) > last(0) && last(1) > last(0) + half.as_secs_f64() / 2.0, "{server}");
    assert!(server.stderr().contains("INFO [ff3e::8000:1]:5004 on eth0: no more"), "{server}");
    server.kill(Signal::SIGINT);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
}

#[test]
fn without_a_file_a_hangup_opens_the_bundles_anew() {
    let Some(lab) = Lab::enter("without_a_file_a_hangup_opens_the_bundles_anew") else { return };
    let (s, _c) = scene::pair(&lab);
    let packed = pack(&lab, "fw", 1 << 20, "1");
    let server = scene::serve(&s, &packed, "2M", &[]);
    scene::wait_sending(&s, &server);
    let (heard, ()) = hear(&s, &addresses(&[scene::GROUP]), |heard| {
        let old = heard.wait("the old bundle", 0, |_| true);
        pack(&lab, "fw", 1 << 20, "2");
        reload(&server, "taken up: 1 changed, 0 new, 0 ended, 0 as before");
        heard.wait("the new bundle", 0, |packet| packet.instance != old.instance);
    });
    assert_contiguous(&heard[0]);
    assert!(!server.stderr().contains("on purpose"), "{server}");
    pack(&lab, "fw", 1 << 20, "0");
    reload(&server, "object: seq 0 comes after seq 2: to go back on purpose, pack");
}

#[test]
fn a_ladder_s_rates_are_exact_and_change_at_one_moment() {
    let test = "a_ladder_s_rates_are_exact_and_change_at_one_moment";
    let Some(lab) = Lab::enter(test) else { return };
    let (s, _c) = scene::pair(&lab);
    pack(&lab, "fw", 4 << 20, "1");
    let names = ["ff3e::8000:1", "ff3e::8000:2", "ff3e::8000:3", "ff3e::8000:4"];
    let ladder = |base: u64| {
        let session = "[[session]]\nbundle = \"fw.carousel\"\ntiers = \"stacked\"\n";
        configure(&lab, &format!("{HEAD}{session}groups = {names:?}\nrate = \"{base}M\"\n"));
    };
    ladder(1);
    let server = start(&lab, &s);
    let span = Duration::from_secs(3);
    // Seconds from packet to packet at the base rate, and how many times as fast each level is.
    let (base, times) = (8.0 * PACKET_BYTES / 1e6, [1.0, 1.0, 2.0, 4.0]);
    let mut rate = 1_u64;
    let mut attempt = || {
        let (old, new) = (rate, 3 - rate);
        rate = new;
        let (heard, [began, told, changed]) = hear(&s, &addresses(&names), |_| {
            thread::sleep(Duration::from_millis(100));
            let began = now();
            thread::sleep(span);
            ladder(new);
            let told = reload(&server, "taken up: 4 changed, 0 new, 0 ended, 0 as before");
            let changed = now() + 0.6; // a change takes 0.4 s
            thread::sleep(Duration::from_millis(600) + span);
            [began, told, changed]
        });
        let mut moments = Vec::new();
        let mut exact = true;
        for ((level, packets), times) in (0..).zip(&heard).zip(times) {
            assert_contiguous(packets);
            let gaps = [old, new].map(|rate| base / times / rate as f64);
            let before = split(split(packets, told).0, began).1;
            let after = split(packets, changed).1;
            let shares = (pace(before, gaps[0]), pace(after, gaps[1]));
            exact &= (shares.0 - 1.0).abs() < 0.02 && (shares.1 - 1.0).abs() < 0.02;
            // The numbers go on through the change, which is where both paces give a packet the same time.
            let (zero, in_a_second) = (packets[0].sequence, gaps.map(|gap| (1.0 / gap) as usize));
            let before = &before[before.len().saturating_sub(in_a_second[0])..];
            let after = &after[..after.len().min(in_a_second[1])];
            let [left, right] =
                [(before, gaps[0]), (after, gaps[1])].map(|(packets, gap)| origin(packets, gap, zero));
            let since = left + (right - left) / (gaps[0] - gaps[1]) * gaps[0] - told;
            moments.push(since);
            figures::row(
                &format!("level {level}, {old} to {new} Mbit/s base"),
                &[
                    ("of its rate before", &format!("{:.4}", shares.0)),
                    ("of its rate after", &format!("{:.4}", shares.1)),
                    ("changed after", &format!("{since:.3} s")),
                ],
            );
        }
        moments.sort_by(f64::total_cmp);
        // A packet more or less makes 10 ms on the lowest level.
        exact && moments[3] - moments[0] < 0.04
    };
    // As above.
    assert!((0..5).any(|_| attempt()), "five times not exact: {server}");
}
