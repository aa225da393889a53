//! From a name to sources and channels, through a real nameserver: knot, signed or not, and through bad ones.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_dns::{Answer, Channel, Ladder, LookupError, Resolver, Service, Settings, Source, Validation};
use carousel_proto::outcome::Outcome;
use carousel_tests::lab::{Host, Knot, Lab, Signing, Zone, check_zone_file, zone_file};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ZONE: &str = "example.test";
const SERVER: &str = "[fd00:6::53]:53";
const SERVER_V4: &str = "10.6.0.53:53";
/// Everything but silence is over long before this, on a busy machine too.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One service with all there is to say.
const RECORDS: &str = r#"
_carousel._udp PTR fw._carousel._udp
fw._carousel._udp SRV 0 10 5004 s1
fw._carousel._udp SRV 0 10 5004 s2
fw._carousel._udp SRV 10 10 5004 s3
fw._carousel._udp 20 TXT "txtvers=1" "g=ff3e::9c41:a7d0,ff3e::9c5b:e213" "r=1000,2000" "m=stacked" "seq=42"
s1 AAAA 2001:db8:1::a
s2 AAAA 2001:db8:2::a
s3 AAAA 2001:db8:3::a
"#;

/// A nameserver's host and a client's, with a cable between them.
fn hosts(lab: &Lab) -> (Host, Host) {
    let (ns, c) = (lab.host("ns"), lab.host("c"));
    lab.link(&ns, "eth0", "fd00:6::53/64", &c, "eth0", "fd00:6::10/64", 1280);
    (ns, c)
}

/// Knot with these records, and a client's host.
fn knot(lab: &Lab, records: &str, signing: Signing) -> Option<(Knot, Host, Host)> {
    if !Knot::is_here(lab) {
        return None;
    }
    let (ns, c) = hosts(lab);
    let knot = serve(lab, &ns, &zone_file(ZONE, records), signing);
    Some((knot, ns, c))
}

fn serve(lab: &Lab, host: &Host, text: &str, signing: Signing) -> Knot {
    Knot::start(lab, host, &[Zone { name: ZONE, text, signing }])
}

fn ask(host: &Host, name: &str, anchor: Option<&Path>) -> Result<Answer, LookupError> {
    ask_at(host, SERVER.parse().ok(), name, anchor, TIMEOUT)
}

fn ask_at(
    host: &Host,
    nameserver: Option<SocketAddr>,
    name: &str,
    anchor: Option<&Path>,
    timeout: Duration,
) -> Result<Answer, LookupError> {
    let settings = Settings { nameserver, trust_anchor: anchor.map(PathBuf::from), timeout };
    host.within(|| Resolver::new(settings)?.lookup(name))
}

/// What failed, with a check that it is one line that names what was asked for.
fn failure(result: Result<Answer, LookupError>, name: &str) -> (Outcome, String) {
    let error = result.unwrap_err();
    let line = error.to_string();
    eprintln!("{:?}: {line}", error.outcome());
    let named = line.split(": ").next().is_some_and(|first| first.ends_with(name));
    assert!(named && !line.contains('\n') && line.contains("; "), "{line}");
    (error.outcome(), line)
}

#[test]
fn every_sort_of_name_is_found_by_every_transport() {
    let Some(lab) = Lab::enter("every_sort_of_name_is_found_by_every_transport") else { return };
    let records = RECORDS.to_owned() + "_plain._udp SRV 0 0 5005 s1\nhost SRV 0 0 5006 s2\n";
    let Some((knot, ns, c)) = knot(&lab, &records, Signing::Unsigned) else { return };
    ns.tool("ip addr add 10.6.0.53/24 dev eth0");
    c.tool("ip addr add 10.6.0.10/24 dev eth0");

    for (name, server) in [
        (ZONE, SERVER),
        ("Example.TEST.", SERVER_V4),
        ("fw._carousel._udp.example.test", SERVER_V4),
        ("_carousel._udp.example.test", SERVER),
    ] {
        let answer = ask_at(&c, server.parse().ok(), name, None, TIMEOUT).unwrap();
        assert_eq!(
            (answer.validation, answer.ttl),
            (Validation::Unchecked, Duration::from_secs(20)),
            "{name}"
        );
        let [service] = &answer.services[..] else { panic!("{answer:?}") };
        assert_eq!(service.name.instance().as_deref(), Some("fw"));
        assert_eq!((service.ladder, service.seq), (Ladder::Stacked, Some(42)));
        assert_eq!(
            service.channels.iter().map(|c| c.rate).collect::<Vec<_>>(),
            [Some(1_000_000), Some(2_000_000)]
        );
        let sources: Vec<_> =
            service.sources.iter().map(|s| (s.priority, s.addresses[0].to_string())).collect();
        let address = |n| format!("2001:db8:{n}::a");
        assert_eq!(sources, [(0, address(1)), (0, address(2)), (10, address(3))]);
        assert!(answer.remarks.is_empty(), "{answer:?}");
    }
    for (name, port) in [("_plain._udp.example.test", 5005), ("host.example.test", 5006)] {
        let answer = ask(&c, name, None).unwrap();
        let service = &answer.services[0];
        assert_eq!((service.sources[0].port, service.channels.len()), (port, 1), "{name}");
        assert_eq!(
            service.channels[0].group,
            carousel_dns::records::derived_group(&name.parse().unwrap(), 0)
        );
        // The absence of TXT holds for as long as the SOA says.
        assert_eq!(answer.ttl, Duration::from_secs(30));
    }

    // A source that is added, and one that goes, are seen at once: nothing is remembered.
    knot.reload(
        ZONE,
        &zone_file(ZONE, &RECORDS.replace("SRV 0 10 5004 s1", "SRV 0 10 5004 s4\ns4 AAAA 2001:db8:4::a")),
    );
    let answer = ask(&c, ZONE, None).unwrap();
    let hosts: Vec<_> = answer.services[0].sources.iter().map(|s| s.host.to_string()).collect();
    assert_eq!(hosts, ["s2.example.test", "s4.example.test", "s3.example.test"]);
}

#[test]
fn a_signed_zone_is_secure() {
    let Some(lab) = Lab::enter("a_signed_zone_is_secure") else { return };
    let more =
        "_alias._udp CNAME fw._carousel._udp\n_bare._udp SRV 0 0 5004 s1\n_both._udp CNAME _bare._udp\n";
    for signing in [Signing::TwoKeys, Signing::OneKey] {
        let Some((knot, _ns, c)) = knot(&lab, &(RECORDS.to_owned() + more), signing) else { return };
        for anchor in [knot.trust_anchor(ZONE), knot.trust_anchor_digest(ZONE)] {
            for name in [ZONE, "_alias._udp.example.test", "_both._udp.example.test"] {
                let answer =
                    ask(&c, name, Some(&anchor)).unwrap_or_else(|e| panic!("{signing:?} {name}: {e}"));
                assert_eq!(answer.validation, Validation::Secure, "{signing:?} {name}");
            }
            let (outcome, line) =
                failure(ask(&c, "nothing.example.test", Some(&anchor)), "nothing.example.test");
            assert!(outcome == Outcome::Usage && line.contains("NXDOMAIN"));
        }
    }
}

#[test]
fn a_part_that_is_not_signed_is_insecure_and_what_is_elsewhere_unchecked() {
    let Some(lab) = Lab::enter("a_part_that_is_not_signed_is_insecure_and_what_is_elsewhere_unchecked")
    else {
        return;
    };
    if !Knot::is_here(&lab) {
        return;
    }
    let (ns, c) = hosts(&lab);
    let file = |zone: &str, more: &str| zone_file(zone, &(RECORDS.to_owned() + more));
    // An alias and a host lead out of what is signed.
    let signed = file(
        ZONE,
        "sub NS ns.sub\nns.sub AAAA fd00:6::53\n_out._udp CNAME fw._carousel._udp.sub\n_far._udp SRV 0 0 5004 s1.elsewhere.test.\n",
    );
    let zone = |name, text, signing| Zone { name, text, signing };
    let (sub, elsewhere) = (file("sub.example.test", ""), file("elsewhere.test", ""));
    let knot = Knot::start(
        &lab,
        &ns,
        &[
            zone(ZONE, &signed, Signing::TwoKeys),
            zone("sub.example.test", &sub, Signing::Unsigned),
            zone("elsewhere.test", &elsewhere, Signing::TwoKeys),
        ],
    );
    let anchor = knot.trust_anchor(ZONE);
    for (name, validation) in [
        (ZONE, Validation::Secure),
        ("sub.example.test", Validation::Insecure),
        ("_out._udp.example.test", Validation::Insecure),
        ("elsewhere.test", Validation::Unchecked),
        ("_far._udp.example.test", Validation::Unchecked),
    ] {
        let answer = ask(&c, name, Some(&anchor)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(answer.validation, validation, "{name}");
    }
}

#[test]
fn the_fragment_loads_everywhere_and_says_what_was_meant() {
    let Some(lab) = Lab::enter("the_fragment_loads_everywhere_and_says_what_was_meant") else { return };
    let source = |host: &str, priority, address: &str| Source {
        host: format!("{host}.{ZONE}").parse().unwrap(),
        addresses: vec![address.parse().unwrap()],
        port: 5004,
        priority,
        weight: 10,
    };
    let group = |n: u16| Ipv6Addr::new(0xff3e, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xfff0 + n);
    let service = |instance: &str, tiers: u16| Service {
        name: format!("{instance}._carousel._udp.{ZONE}").parse().unwrap(),
        sources: vec![source("s1", 0, "2001:db8:1::a"), source("s2", 10, "2001:db8:2::a")],
        channels: (0..tiers).map(|n| Channel { group: group(n), rate: Some(1_000_000 << n) }).collect(),
        ladder: if tiers > 1 { Ladder::Stacked } else { Ladder::Separate },
        seq: Some(7),
        digest_prefix: Some("0123456789abcdef".into()),
        key_id: None,
        url: Some(r#"https://example.test/a"b\c;d(e)"#.into()),
    };
    let services = [service("fw", 1), service(r#"Gateway \"1\.2\"; (été) @ $5 \\ *"#, 16)];
    let fragment = carousel_dns::emit_zone(&services, &ZONE.parse().unwrap(), 300).unwrap();
    // In the zone's own file, and in that of a parent.
    let host = lab.host("h");
    for zone in [ZONE, "test"] {
        check_zone_file(&lab, &host, zone, &zone_file(zone, &fragment));
    }
    let Some((_knot, _ns, c)) = knot(&lab, &fragment, Signing::Unsigned) else { return };
    let mut found = ask(&c, ZONE, None).unwrap();
    found.services.sort_by_key(|service| service.channels.len());
    assert_eq!(found.services, services);
    assert!(found.remarks.is_empty(), "{found:?}");
    for service in &services {
        let one = ask(&c, &service.name.to_string(), None).unwrap();
        assert_eq!(&one.services[..], std::slice::from_ref(service));
    }
}

#[test]
fn lies_about_a_signed_zone_are_refused() {
    let Some(lab) = Lab::enter("lies_about_a_signed_zone_are_refused") else { return };
    let Some((signed, _ns, c)) = knot(&lab, RECORDS, Signing::TwoKeys) else { return };
    let anchor = signed.trust_anchor(ZONE);
    let dump = signed.dump(ZONE);
    let (other, other_c) = hosts(&lab);
    let foreign = serve(&lab, &other, &zone_file(ZONE, RECORDS), Signing::TwoKeys);
    let wrong = foreign.trust_anchor(ZONE);
    for (c, anchor) in [(&c, &wrong), (&other_c, &anchor)] {
        let (outcome, line) = failure(ask(c, ZONE, Some(anchor)), ZONE);
        assert!(outcome == Outcome::Untrusted && line.contains("trust anchor"), "{line}");
    }
    // The attacker's own zone, signed by the attacker, with our public key among the attacker's.
    let usurped = foreign.dump(ZONE) + &std::fs::read_to_string(&anchor).unwrap();
    drop(foreign);

    let without = |is_dropped: fn(&str) -> bool| -> String {
        dump.lines().filter(|line| !is_dropped(line)).map(|line| line.to_owned() + "\n").collect()
    };
    let lies = [
        ("an SRV with another port", dump.replace(" 5004 ", " 5999 ")),
        ("a TXT with another group", dump.replace("ff3e::9c41:a7d0", "ff3e::9c41:a7d1")),
        ("an SRV without its signature", without(|line| line.contains(" RRSIG SRV "))),
        ("a service without its TXT", without(|line| line.contains(" TXT ") && !line.contains(" NSEC "))),
        ("a zone without any signature", zone_file(ZONE, RECORDS)),
        ("another zone with our key in it", usurped),
    ];
    for (lie, text) in lies {
        let liar = serve(&lab, &other, &text, Signing::Unsigned);
        let result = ask(&other_c, "fw._carousel._udp.example.test", Some(&anchor));
        assert!(ask(&other_c, ZONE, None).is_ok(), "{lie}: and without a trust anchor nobody sees it");
        let (outcome, _) = failure(result, "fw._carousel._udp.example.test");
        assert_eq!(outcome, Outcome::Untrusted, "{lie}");
        drop(liar);
    }
    // The true copy on another machine is as good as the original, and one false address costs only one source.
    let copy = serve(&lab, &other, &dump, Signing::Unsigned);
    assert_eq!(ask(&other_c, ZONE, Some(&anchor)).unwrap().validation, Validation::Secure);
    copy.reload(ZONE, &dump.replace("2001:db8:1::a", "2001:db8:1::bad"));
    let answer = ask(&other_c, ZONE, Some(&anchor)).unwrap();
    assert_eq!((answer.services[0].sources.len(), answer.validation), (2, Validation::Secure));
    assert!(answer.remarks[0].contains("s1.example.test: left out"), "{answer:?}");
}

#[test]
fn nothing_there_says_so() {
    let Some(lab) = Lab::enter("nothing_there_says_so") else { return };
    let records = "
text TXT hello
_v4._udp SRV 0 0 5004 v4
v4 A 192.0.2.1
_off._udp SRV 0 0 0 .
_void._udp SRV 0 0 5004 void
loop1 CNAME loop2
loop2 CNAME loop1
_new._udp SRV 0 0 5004 s1
_new._udp TXT txtvers=2
s1 AAAA 2001:db8::1
";
    for signing in [Signing::Unsigned, Signing::TwoKeys] {
        let Some((knot, _ns, c)) = knot(&lab, records, signing) else { return };
        let anchor = (signing != Signing::Unsigned).then(|| knot.trust_anchor(ZONE));
        for (name, why) in [
            ("example.test", "no such records"),
            ("no.example.test", "NXDOMAIN"),
            ("fw._carousel._udp.example.test", "NXDOMAIN"),
            ("text.example.test", "no such records"),
            ("_off._udp.example.test", "not offered"),
            ("_v4._udp.example.test", "none of its hosts has an IPv6 address"),
            ("_void._udp.example.test", "none of its hosts has an IPv6 address"),
            ("loop1.example.test", "aliases"),
            ("_new._udp.example.test", "txtvers"),
        ] {
            let result = ask(&c, name, anchor.as_deref());
            if why == "NXDOMAIN" {
                assert_eq!(result.as_ref().unwrap_err().retry_after(), Duration::from_secs(30));
            }
            let (outcome, line) = failure(result, name);
            assert!(outcome == Outcome::Usage && line.contains(why), "{outcome:?} {line}");
        }
        // Not this nameserver's zone.
        let (outcome, line) = failure(ask(&c, "example.org", None), "example.org");
        assert!(outcome == Outcome::TryAgain && line.contains("REFUSED"), "{line}");
    }
}

#[test]
fn large_answers_come_by_tcp_and_are_bounded() {
    let Some(lab) = Lab::enter("large_answers_come_by_tcp_and_are_bounded") else { return };
    let srv =
        |name: &str, n: usize| -> String { (0..n).map(|i| format!("{name} SRV 0 0 5004 h{i}\n")).collect() };
    let text = |name: &str, strings: usize| {
        let long = |i: usize| format!("\"x{i}={}\"", "y".repeat(200));
        let strings: Vec<String> = (0..strings).map(long).collect();
        format!("{name} TXT \"txtvers=1\" {} \"seq=7\"\n", strings.join(" "))
    };
    let hosts: String = (0..100).map(|i| format!("h{i} AAAA 2001:db8::{i:x}\n")).collect();
    let services: String =
        (0..300).map(|i| format!("_carousel._udp.many PTR i{i:03}._carousel._udp.many\n")).collect();
    let each: String = (0..300).map(|i| format!("i{i:03}._carousel._udp.many SRV 0 0 5004 h1\n")).collect();
    let addresses: String = (0..20).map(|i| format!("crowd AAAA 2001:db8:c::{i:x}\n")).collect();
    let records = [
        hosts,
        srv("_fifty._udp", 50),
        text("_fifty._udp", 45),
        srv("_hundred._udp", 100),
        text("_hundred._udp", 80),
        services,
        each,
        "_crowd._udp SRV 0 0 5004 crowd\n".into(),
        addresses,
    ];
    for signing in [Signing::Unsigned, Signing::TwoKeys] {
        let Some((knot, ns, c)) = knot(&lab, &records.concat(), signing) else { return };
        let anchor = (signing != Signing::Unsigned).then(|| knot.trust_anchor(ZONE));
        let before = ns.traffic("eth0").tx_bytes;
        let began = Instant::now();
        let fifty = ask(&c, "_fifty._udp.example.test", anchor.as_deref()).unwrap();
        assert!(ns.traffic("eth0").tx_bytes - before > 9_500, "the whole TXT came");
        assert_eq!((fifty.services[0].sources.len(), fifty.services[0].seq), (50, Some(7)));
        assert!(fifty.remarks.is_empty(), "{:?}", fifty.remarks);
        eprintln!("{signing:?}: 50 SRV and 9.4 KB of TXT in {:.2} s", began.elapsed().as_secs_f64());

        let hundred = ask(&c, "_hundred._udp.example.test", anchor.as_deref()).unwrap();
        assert_eq!((hundred.services[0].sources.len(), hundred.services[0].seq), (64, None));
        assert_eq!(hundred.remarks.len(), 2, "{:?}", hundred.remarks);
        let crowd = ask(&c, "_crowd._udp.example.test", anchor.as_deref()).unwrap();
        assert_eq!((crowd.services[0].sources[0].addresses.len(), crowd.remarks.len()), (8, 1));

        let began = Instant::now();
        let many = ask(&c, "many.example.test", anchor.as_deref()).unwrap();
        assert_eq!((many.services.len(), many.remarks.len()), (256, 1));
        eprintln!("{signing:?}: 256 services in {:.2} s", began.elapsed().as_secs_f64());
    }
}

#[test]
fn aliases_are_followed_but_not_for_ever() {
    let Some(lab) = Lab::enter("aliases_are_followed_but_not_for_ever") else { return };
    let chain = |n: usize| -> String {
        let link = |i: usize| format!("_c{n}x{i}._udp 30 CNAME _c{n}x{}._udp\n", i + 1);
        (0..n).map(link).collect::<String>() + &format!("_c{n}x{n}._udp SRV 0 0 5004 a0\n")
    };
    let records = chain(8) + &chain(9) + "a0 CNAME a1\na1 10 CNAME s1\ns1 AAAA 2001:db8::1\n";
    for signing in [Signing::Unsigned, Signing::TwoKeys] {
        let Some((knot, _ns, c)) = knot(&lab, &records, signing) else { return };
        let anchor = (signing != Signing::Unsigned).then(|| knot.trust_anchor(ZONE));
        let answer = ask(&c, "_c8x0._udp.example.test", anchor.as_deref()).unwrap();
        assert_eq!(answer.services[0].sources[0].addresses.len(), 1);
        assert_eq!(answer.ttl, Duration::from_secs(10), "the TTL of the shortest-lived alias");
        let (outcome, line) =
            failure(ask(&c, "_c9x0._udp.example.test", anchor.as_deref()), "_c9x0._udp.example.test");
        assert!(outcome == Outcome::Usage && line.contains("aliases"));
    }
}

/// A nameserver that answers every question with what `reply` makes of it; it ends with the test.
fn responder(host: &Host, reply: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) {
    let socket = host.within(|| UdpSocket::bind("[::]:53")).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = reply(&buffer[..n]) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
}

#[test]
fn bad_nameservers_cost_no_more_than_the_timeout() {
    let Some(lab) = Lab::enter("bad_nameservers_cost_no_more_than_the_timeout") else { return };
    let timeout = Duration::from_secs(2);
    let mut seen = Vec::new();
    let servfail = |query: &[u8]| {
        let mut answer = query.to_vec();
        answer[2] |= 0x80; // a response
        answer[3] = 2; // SERVFAIL
        Some(answer)
    };
    let truncated = |query: &[u8]| {
        let mut answer = query.to_vec();
        answer[2] |= 0x82; // a response, cut short; nobody listens on TCP
        Some(answer)
    };
    let garbage = |query: &[u8]| Some([&query[..2], &[0xff; 100]].concat());
    let stranger = move |query: &[u8]| {
        let mut answer = servfail(query)?;
        answer[0] ^= 1; // not our question's number
        Some(answer)
    };
    type Reply = Box<dyn Fn(&[u8]) -> Option<Vec<u8>> + Send>;
    let cases: [(&str, Option<Reply>); 6] = [
        ("SERVFAIL", Some(Box::new(servfail))),
        ("silent", Some(Box::new(|_| None))),
        ("truncated, no TCP", Some(Box::new(truncated))),
        ("garbage", Some(Box::new(garbage))),
        ("a stranger's answer", Some(Box::new(stranger))),
        ("nobody listens", None),
    ];
    for (what, reply) in cases {
        let (ns, c) = hosts(&lab);
        if let Some(reply) = reply {
            responder(&ns, reply);
        }
        let began = Instant::now();
        let result = ask_at(&c, SERVER.parse().ok(), ZONE, None, timeout);
        let took = began.elapsed();
        eprint!("{what}, {:.2} s: ", took.as_secs_f64());
        let (outcome, line) = failure(result, ZONE);
        assert_eq!(outcome, Outcome::TryAgain, "{what}: {line}");
        assert!(took < timeout + Duration::from_secs(2), "{what}: {took:?}");
        seen.push((what, line));
    }
    assert!(seen[0].1.contains("SERVFAIL") && seen[1].1.contains("within 2 s"), "{seen:?}");
    // A network that swallows everything, and one that is not there.
    let (ns, c) = hosts(&lab);
    ns.nft("table inet wall { chain in { type filter hook input priority 0; policy drop; }; }");
    for server in [SERVER, "[2001:db8::53]:53"] {
        let began = Instant::now();
        let (outcome, _) = failure(ask_at(&c, server.parse().ok(), ZONE, None, timeout), ZONE);
        assert!(outcome == Outcome::TryAgain && began.elapsed() < timeout + Duration::from_secs(2));
    }
}

#[test]
fn one_dead_host_does_not_hold_up_the_others() {
    let Some(lab) = Lab::enter("one_dead_host_does_not_hold_up_the_others") else { return };
    // Its zone is delegated to us by nobody, so knot refuses to answer for it.
    let records = RECORDS.replace("SRV 0 10 5004 s2", "SRV 0 10 5004 s2.example.org.");
    let Some((_knot, _ns, c)) = knot(&lab, &records, Signing::Unsigned) else { return };
    let answer = ask(&c, ZONE, None).unwrap();
    assert_eq!(answer.services[0].sources.len(), 2);
    assert!(answer.remarks[0].contains("s2.example.org: left out"), "{answer:?}");
    assert!(answer.ttl <= Duration::from_secs(30), "and it is asked again soon");
}

#[test]
fn a_nameserver_that_falls_silent_leaves_what_was_there() {
    let Some(lab) = Lab::enter("a_nameserver_that_falls_silent_leaves_what_was_there") else { return };
    let srv: String = (0..20)
        .map(|i| format!("_twenty._udp SRV 0 0 5004 dead{i}\ndead{i} AAAA 2001:db8::{i:x}\n"))
        .collect();
    let records = RECORDS.replace(" s2", " dead") + "dead AAAA 2001:db8::dead\n" + &srv;
    let Some((_knot, ns, c)) = knot(&lab, &records, Signing::Unsigned) else { return };
    // Questions about names that begin with "dead" do not arrive: UDP header 8 bytes, DNS header 12, one length.
    ns.nft("table inet wall { chain in { type filter hook input priority 0; udp dport 53 @th,168,32 0x64656164 drop; }; }");
    let timeout = Duration::from_secs(2);
    let began = Instant::now();
    let answer = ask_at(&c, SERVER.parse().ok(), ZONE, None, timeout).unwrap();
    assert_eq!((answer.services[0].sources.len(), answer.remarks.len()), (2, 1), "{answer:?}");
    assert!(began.elapsed() < timeout + Duration::from_secs(2), "{:?}", began.elapsed());
    // All of them silent, more than are asked at once, and few enough for UDP.
    let began = Instant::now();
    let name = "_twenty._udp.example.test";
    let error = ask_at(&c, SERVER.parse().ok(), name, None, timeout).unwrap_err();
    assert!(matches!(error, LookupError::Timeout { .. }), "{error}");
    assert!(began.elapsed() < timeout + Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn the_system_s_nameserver_is_used_or_missed() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let Some(lab) = Lab::enter("the_system_s_nameserver_is_used_or_missed") else { return };
    let Some((_knot, _ns, c)) = knot(&lab, RECORDS, Signing::Unsigned) else { return };
    // A thread with its own view of the files: only there another file lies over /etc/resolv.conf.
    let with = |text: &str| {
        let file = lab.file("resolv.conf");
        std::fs::write(&file, text).unwrap();
        let settings = Settings { nameserver: None, trust_anchor: None, timeout: TIMEOUT };
        c.within(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            mount(Some(&file), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            Resolver::new(settings)?.lookup(ZONE)
        })
    };
    assert!(with("search elsewhere.test\nnameserver fd00:6::53\n").is_ok());
    let error = with("# nothing\n").unwrap_err();
    let line = error.to_string();
    assert!(line.starts_with("no nameserver: /etc/resolv.conf") && line.contains("--nameserver"), "{line}");
    assert_eq!(error.outcome(), Outcome::Usage);
}
