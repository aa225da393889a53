//! A server with a configuration: what it prints for DNS, what it sends, and how it takes up changes without a gap.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_dns::records::derived_group;
use carousel_dns::{Channel, Ladder, Resolver, Service, Settings, Source};
use carousel_tests::lab::{Host, Knot, Lab, Running, Signing, Zone, check_zone_file, join, until, zone_file};
use carousel_tests::scene::{self, PACKET_BYTES, PORT, Packed, SOURCE, args};
use carousel_tests::{bins, figures};
use nix::sys::signal::Signal;
use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

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

/// Signals the server, and waits until it has said this once more.
fn reload(server: &Running, says: &str) -> Instant {
    let count = || server.stderr().matches(says).count();
    let (before, at) = (count(), Instant::now());
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
    at: Instant,
    sequence: u32,
    /// Of which bundle it is.
    instance: [u8; 4],
}

/// Everything that a host hears on these channels meanwhile.
fn hear<T>(host: &Host, groups: &[Ipv6Addr], meanwhile: impl FnOnce() -> T) -> (Vec<Vec<Packet>>, T) {
    let over = AtomicBool::new(false);
    let listen = |group: &Ipv6Addr| {
        let socket = join(host, "eth0", SOURCE.parse().unwrap(), SocketAddrV6::new(*group, PORT, 0, 0));
        socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket
    };
    let sockets: Vec<_> = groups.iter().map(listen).collect();
    thread::scope(|scope| {
        let ears: Vec<_> = sockets
            .iter()
            .map(|socket| {
                let over = &over;
                scope.spawn(move || {
                    let (mut buffer, mut packets) = ([0; 2048], Vec::new());
                    while !over.load(Ordering::Relaxed) {
                        if socket.recv(&mut buffer).is_ok() {
                            packets.push(Packet {
                                at: Instant::now(),
                                // PROTOCOL.md, section 4.
                                sequence: u32::from_be_bytes(buffer[4..8].try_into().unwrap()),
                                instance: buffer[24..28].try_into().unwrap(),
                            });
                        }
                    }
                    packets
                })
            })
            .collect();
        let ending = Ending(&over);
        let result = meanwhile();
        drop(ending);
        (ears.into_iter().map(|ear| ear.join().unwrap()).collect(), result)
    })
}

/// Ends the listening, also when what was to happen meanwhile has failed.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn assert_contiguous(packets: &[Packet]) {
    let gap = packets.windows(2).find(|pair| pair[1].sequence != pair[0].sequence.wrapping_add(1));
    assert!(gap.is_none() && packets.len() > 10, "{} packets, {gap:?}", packets.len());
}

fn longest_silence(packets: &[Packet]) -> Duration {
    packets.windows(2).map(|pair| pair[1].at - pair[0].at).max().unwrap()
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

#[test]
fn a_new_bundle_is_taken_up_without_a_gap() {
    let test = "a_new_bundle_is_taken_up_without_a_gap";
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
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
        let (heard, at) = hear(&c, &groups, || {
            thread::sleep(Duration::from_secs(1));
            pack(&lab, "changes", 3 << 20, &seq.to_string());
            let at = reload(&server, "taken up: 1 changed, 0 new, 0 ended, 1 as before");
            thread::sleep(Duration::from_secs(2));
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
        let figure = |duration: Duration| format!("{:.1} ms", duration.as_secs_f64() * 1000.0);
        let (quiet, gap, silence) =
            (longest_silence(same), switch[1].at - switch[0].at, longest_silence(changed));
        figures::row(
            test,
            &[
                ("new bundle after", &figure(after)),
                ("gap at the switch", &figure(gap)),
                ("longest silence there", &figure(silence)),
                ("of the unchanged channel", &figure(quiet)),
            ],
        );
        let in_time = after < Duration::from_secs(1) && silence < Duration::from_millis(100);
        in_time && quiet < Duration::from_millis(50)
    };
    // Being late may be the machine's fault; the server's fault would be there again.
    assert!(attempt() || attempt(), "twice late: {server}");
    assert!(
        server.stderr().contains(&format!("INFO now object (3.0 MiB, seq {seq}) from {SOURCE}")),
        "{server}"
    );
}

#[test]
fn what_is_wrong_is_not_taken_up() {
    let Some(lab) = Lab::enter("what_is_wrong_is_not_taken_up") else { return };
    let (s, c) = scene::pair(&lab);
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
    let (heard, ()) = hear(&c, &addresses(&["ff3e::8000:1"]), || {
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
    let (s, c) = scene::pair(&lab);
    pack(&lab, "fw", 1 << 20, "1");
    let session = |groups: &str| {
        format!("{HEAD}[[session]]\nbundle = \"fw.carousel\"\ngroups = [{groups}]\nrate = \"2M\"\n")
    };
    configure(&lab, &session("\"ff3e::8000:1\", \"ff3e::8000:2\""));
    let server = start(&lab, &s);
    let groups = addresses(&["ff3e::8000:1", "ff3e::8000:2", "ff3e::8000:3"]);
    let half = Duration::from_millis(500);
    let (heard, _) = hear(&c, &groups, || {
        thread::sleep(half);
        configure(&lab, &session("\"ff3e::8000:2\", \"ff3e::8000:3\""));
        reload(&server, "taken up: 0 changed, 1 new, 1 ended, 1 as before");
        thread::sleep(half * 2);
    });
    let (first, last) = (|n: usize| heard[n][0].at, |n: usize| heard[n][heard[n].len() - 1].at);
    heard.iter().for_each(|packets| assert_contiguous(packets));
    assert!(first(2) > last(0) && last(1) > last(0) + half / 2, "{server}");
    assert!(server.stderr().contains("INFO [ff3e::8000:1]:5004 on eth0: no more"), "{server}");
    server.kill(Signal::SIGINT);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
}

#[test]
fn without_a_file_a_hangup_opens_the_bundles_anew() {
    let Some(lab) = Lab::enter("without_a_file_a_hangup_opens_the_bundles_anew") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = pack(&lab, "fw", 1 << 20, "1");
    let server = scene::serve(&s, &packed, "2M", &[]);
    scene::wait_sending(&s, &server);
    let (heard, ()) = hear(&c, &addresses(&[scene::GROUP]), || {
        pack(&lab, "fw", 1 << 20, "2");
        reload(&server, "taken up: 1 changed, 0 new, 0 ended, 0 as before");
        thread::sleep(Duration::from_millis(800));
    });
    assert_contiguous(&heard[0]);
    assert_ne!(heard[0][0].instance, heard[0][heard[0].len() - 1].instance, "{server}");
    assert!(!server.stderr().contains("on purpose"), "{server}");
    pack(&lab, "fw", 1 << 20, "0");
    reload(&server, "object: seq 0 comes after seq 2: to go back on purpose, pack");
}

#[test]
fn a_ladder_s_rates_are_exact_and_change_at_one_moment() {
    let test = "a_ladder_s_rates_are_exact_and_change_at_one_moment";
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    pack(&lab, "fw", 4 << 20, "1");
    let names = ["ff3e::8000:1", "ff3e::8000:2", "ff3e::8000:3", "ff3e::8000:4"];
    let ladder = |base: u64| {
        let session = "[[session]]\nbundle = \"fw.carousel\"\ntiers = \"stacked\"\n";
        configure(&lab, &format!("{HEAD}{session}groups = {names:?}\nrate = \"{base}M\"\n"));
    };
    ladder(1);
    let server = start(&lab, &s);
    let span = Duration::from_secs(3);
    // Packets a second at the base rate, and how many times it each level has.
    let (base, times) = (1e6 / 8.0 / PACKET_BYTES, [1.0, 1.0, 2.0, 4.0]);
    let mut rate = 1;
    let mut attempt = || {
        let (old, new) = (rate, 3 - rate);
        rate = new;
        let (heard, [began, ended]) = hear(&c, &addresses(&names), || {
            thread::sleep(Duration::from_millis(100));
            let began = Instant::now();
            thread::sleep(span);
            ladder(new);
            reload(&server, "taken up: 4 changed, 0 new, 0 ended, 0 as before");
            thread::sleep(Duration::from_secs(1) + span);
            [began, Instant::now() - Duration::from_millis(20)]
        });
        let count = |packets: &[Packet], from: Instant, to: Instant| {
            packets.iter().filter(|packet| packet.at >= from && packet.at < to).count() as f64
        };
        let mut moments = Vec::new();
        let mut exact = true;
        for ((level, packets), times) in (0..).zip(&heard).zip(times) {
            assert_contiguous(packets);
            let per_second = |rate: u64| base * times * rate as f64;
            let (before, after) = (count(packets, began, began + span), count(packets, ended - span, ended));
            let share = |packets: f64, rate| packets / per_second(rate) / span.as_secs_f64();
            let shares = (share(before, old), share(after, new));
            exact &= (shares.0 - 1.0).abs() < 0.02 && (shares.1 - 1.0).abs() < 0.02;
            // Of so many packets in all, so many more or less than at the old rate: since when?
            let all = (ended - began).as_secs_f64();
            let more = count(packets, began, ended) - per_second(old) * all;
            let since = all - more / (per_second(new) - per_second(old));
            moments.push(since);
            figures::row(
                &format!("level {level}, {old} to {new} Mbit/s base"),
                &[
                    ("packets in 3 s before", &before),
                    ("of expected", &format!("{:.4}", shares.0)),
                    ("packets in 3 s after", &after),
                    ("of expected, after", &format!("{:.4}", shares.1)),
                    ("changed after", &format!("{since:.3} s")),
                ],
            );
        }
        moments.sort_by(f64::total_cmp);
        // A packet more or less makes 10 ms on the lowest level.
        exact && moments[3] - moments[0] < 0.04
    };
    assert!(attempt() || attempt(), "twice not exact: {server}");
}
