//! The doctors of both programs: each trouble is really made, and the doctor must name it, and nothing else; where all
//! is well it must say so.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::bins;
use carousel_tests::figures;
use carousel_tests::lab::{self, Host, Knot, Lab, Loss, Signing, Zone, until, zone_file};
use carousel_tests::scene::{self, GROUP, PORT, Packed, SOURCE, args};
use carousel_tests::topology::{Routed, SENDER, Switched};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// Slow enough for the buffers of ordinary users to bridge a pause of the machine.
const RATE: &str = "5M";
/// Long enough to be sure of silence, short enough to wait for.
const SHORT: [&str; 2] = ["--timeout", "4s"];

/// What a doctor said, and how it ended.
struct Said {
    code: i32,
    json: Value,
    stderr: String,
}

impl Said {
    /// The names of all findings of this level, in their order.
    fn at(&self, level: &str) -> Vec<&str> {
        let all = self.json["findings"].as_array().into_iter().flatten();
        all.filter(|f| f["level"] == level).map(|f| f["id"].as_str().unwrap()).collect()
    }

    fn problems(&self) -> Vec<&str> {
        self.at("problem")
    }

    /// What the finding of this name says, and what to do. Of several the worst.
    fn about(&self, id: &str) -> String {
        let all = || self.json["findings"].as_array().into_iter().flatten().filter(|f| f["id"] == id);
        let worst = all().find(|f| f["level"] == "problem").or_else(|| all().next());
        let f = worst.unwrap_or_else(|| panic!("nothing about {id}: {self}"));
        format!("{} -> {}", f["what"].as_str().unwrap(), f["remedy"].as_str().unwrap_or_default())
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}\n{:#}\n{}", self.code, self.json, self.stderr)
    }
}

/// Runs a command line that ends with one JSON object.
fn hear(host: &Host, line: &[OsString]) -> Said {
    let doctor = host.spawn(line);
    let code = doctor.finish(LIMIT).code();
    let json = serde_json::from_str(&doctor.stdout()).unwrap_or_else(|e| panic!("{e}: {doctor}"));
    let said = Said { code, json, stderr: doctor.stderr() };
    assert_eq!(said.json["exit_code"], code, "{said}");
    for f in said.json["findings"].as_array().unwrap() {
        assert_eq!(f["remedy"].is_null(), f["level"] == "ok", "{said}");
    }
    said
}

/// The client's doctor, looking for what `scene::serve` sends.
fn client_line(source: &str, port: u16, more: &[&str]) -> Vec<OsString> {
    let port = port.to_string();
    let mut line = args(&[&bins::client(), &"doctor", &"--json", &"--group", &GROUP, &"--port", &port]);
    line.extend(args(&[&"--source", &source]));
    if !more.contains(&"--rcvbuf") {
        let most = if may_exceed() { 8 * MIB } else { most_buffer().min(8 * MIB) };
        line.extend(args(&[&"--rcvbuf", &most.to_string()]));
    }
    line.extend(more.iter().map(OsString::from));
    line
}

/// The largest receive buffer that the system gives to ordinary users.
fn most_buffer() -> u64 {
    fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse().unwrap()
}

/// Whether we may have more: root in a user namespace of its own is not root enough.
fn may_exceed() -> bool {
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &(8 * MIB as usize)).is_ok()
}

fn client(host: &Host, more: &[&str]) -> Said {
    hear(host, &client_line(SOURCE, PORT, &[&["--interface", "eth0"], more].concat()))
}

/// The same without the privileges that let it look before the firewall and have a large buffer.
fn ordinary(line: &[OsString]) -> Vec<OsString> {
    let mut whole = args(&[&"setpriv", &"--bounding-set=-net_raw,-net_admin"]);
    whole.extend_from_slice(line);
    whole
}

/// The server's doctor, with the command line of `scene::serve`.
fn server(host: &Host, packed: &Packed, more: &[&str]) -> Said {
    let mut line = scene::serve_line(packed, RATE, more);
    line[1] = "doctor".into();
    line.push("--json".into());
    hear(host, &line)
}

/// Server and client on a cable, and the server sends.
fn sending(lab: &Lab) -> (Host, Host, Packed, lab::Running) {
    let (s, c) = scene::pair(lab);
    let packed = scene::pack(lab.dir(), MIB, &[]);
    let running = scene::serve(&s, &packed, RATE, &[]);
    scene::wait_sending(&s, &running);
    (s, c, packed, running)
}

#[test]
fn doctors_find_nothing_where_all_is_well() {
    let test = "doctors_find_nothing_where_all_is_well";
    let Some(lab) = Lab::enter(test) else { return };
    let net = Switched::new(&lab);
    let packed = scene::pack(lab.dir(), MIB, &[]);
    let before = server(&net.s, &packed, &[]);
    assert_eq!((before.code, before.problems()), (0, vec![]), "{before}");
    assert!(before.about("sending").contains("no server sends"), "{before}");
    let running = scene::serve(&net.s, &packed, RATE, &[]);
    scene::wait_sending(&net.s, &running);

    let sent = |host: &Host| host.snmp6().get("Udp6OutDatagrams");
    let (at_client, key) = (sent(&net.r[0]), packed.keys.public.to_str().unwrap());
    let said = client(&net.r[0], &["--key", key]);
    assert_eq!((said.code, said.problems(), said.at("note")), (0, vec![], vec![]), "{said}");
    assert_eq!(sent(&net.r[0]), at_client, "the client's doctor sent something");
    assert!(said.about("querier").contains("by MLDv2"), "{said}");
    assert!(said.about("manifest").contains("signed by a key of yours"), "{said}");
    let channel = &said.json["channels"][0];
    let rate = channel["rate"].as_f64().unwrap();
    // A busy machine sends less.
    assert!((0.25e6..5.5e6).contains(&rate) && channel["source"] == SOURCE, "{said}");
    figures::row(
        "a healthy network",
        &[
            ("listened s", &said.json["listened_seconds"]),
            ("first packet s", &channel["first_packet_seconds"]),
            ("Mbit/s", &format!("{:.1}", rate / 1e6)),
        ],
    );

    let during = server(&net.s, &packed, &[]);
    assert_eq!((during.code, during.problems()), (0, vec![]), "{during}");
    assert!(during.about("sending").contains("a server runs, and"), "{during}");
    assert!(during.about("source").contains(&format!("--source {SOURCE}")), "{during}");

    // For people: a line for each finding, and one that sums up.
    let mut line = client_line(SOURCE, PORT, &["--interface", "eth0"]);
    line.retain(|word| word != "--json");
    let out = net.r[1].run(&line);
    assert_eq!((out.exit.code(), out.stderr.as_str()), (0, ""), "{out:?}");
    assert_eq!(out.stdout.lines().last(), Some("everything is fine"), "{out:?}");
    assert!(out.stdout.lines().all(|l| l.starts_with("ok ") || l == "everything is fine"), "{out:?}");
    assert!(running.is_alive(), "{running}");
}

/// A querier that asks every two minutes is found at once: leaving a source makes it ask.
#[test]
fn doctor_makes_a_querier_ask() {
    let Some(lab) = Lab::enter("doctor_makes_a_querier_ask") else { return };
    let net = Switched::new(&lab);
    let slow = "mcast_query_interval 12500 mcast_membership_interval 26000 mcast_startup_query_count 0";
    net.switch.host().ip(&format!("link set br0 type bridge {slow}"));
    let packed = scene::pack(lab.dir(), MIB, &[]);
    let running = scene::serve(&net.s, &packed, RATE, &[]);
    scene::wait_sending(&net.s, &running);
    // The question before the change may still have been followed by one at the old pace.
    let asked = || net.r[0].snmp6().get("Icmp6InGroupMembQueries");
    let mut last = (asked(), std::time::Instant::now());
    until("the querier to be slow", LIMIT, || {
        if asked() != last.0 {
            last = (asked(), std::time::Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(5)
    });
    let said = client(&net.r[0], &[]);
    assert_eq!((said.code, said.problems()), (0, vec![]), "{said}");
    assert!(said.about("querier").contains(&format!("{} asks by MLDv2", net.switch.address())), "{said}");
}

#[test]
fn doctor_names_what_is_wrong_with_the_interface() {
    let Some(lab) = Lab::enter("doctor_names_what_is_wrong_with_the_interface") else { return };
    let (s, c, packed, running) = sending(&lab);

    c.ip("route del multicast ff00::/8 dev eth0 table local");
    let said = client(&c, &SHORT);
    assert_eq!((said.code, said.problems()), (5, vec!["multicast-route", "signal"]), "{said}");
    c.tool("ip -6 route add multicast ff00::/8 dev eth0 table local");

    c.sysctl("net/ipv6/conf/eth0/force_mld_version", "1");
    let said = client(&c, &SHORT);
    assert_eq!((said.code, said.problems()), (1, vec!["mld-version"]), "{said}");
    c.sysctl("net/ipv6/conf/eth0/force_mld_version", "0");

    c.ip("addr flush dev eth0 scope link");
    let said = client(&c, &SHORT);
    assert_eq!((said.code, said.problems()), (1, vec!["addresses"]), "{said}");
    assert!(said.about("addresses").contains("no link-local address"), "{said}");

    c.sysctl("net/ipv6/conf/eth0/disable_ipv6", "1");
    let said = client(&c, &SHORT);
    assert_eq!(said.code, 5, "{said}");
    assert!(said.problems().contains(&"ipv6") && said.problems().contains(&"signal"), "{said}");
    assert!(said.about("ipv6").contains("disable_ipv6=0"), "{said}");
    c.sysctl("net/ipv6/conf/eth0/disable_ipv6", "0");

    c.ip("link set eth0 down");
    let said = client(&c, &SHORT);
    assert_eq!(said.code, 5, "{said}");
    assert_eq!(said.problems()[0], "link-state", "{said}");
    assert!(said.about("link-state").contains("ip link set eth0 up"), "{said}");
    assert!(!said.problems().contains(&"querier") && !said.problems().contains(&"firewall"), "{said}");

    // The other end of the cable sees that as a carrier that has gone.
    let said = server(&s, &packed, &[]);
    assert!(said.code == 1 && said.problems().contains(&"link-state"), "{said}");
    s.ip("link set eth0 down");
    let said = server(&s, &packed, &[]);
    assert!(said.about("link-state").contains("is down") && said.problems().contains(&"source"), "{said}");
    drop(running);
}

#[test]
fn doctor_asks_which_interface_is_meant() {
    let Some(lab) = Lab::enter("doctor_asks_which_interface_is_meant") else { return };
    let (_s, c) = scene::pair(&lab);
    c.ip("link add eth1 type veth peer name p1");
    c.ip("link set eth1 up");
    let said = hear(&c, &client_line(SOURCE, PORT, &[]));
    assert_eq!((said.code, said.problems()), (2, vec!["interface"]), "{said}");
    assert!(said.about("interface").contains("eth0, eth1"), "{said}");
    assert!(said.stderr.lines().count() == 1 && said.stderr.contains("--interface"), "{said}");
    let said = hear(&c, &client_line(SOURCE, PORT, &["--interface", "nosuch0"]));
    assert_eq!((said.code, said.problems()), (2, vec!["interface"]), "{said}");
}

#[test]
fn doctor_names_who_sends_instead() {
    let Some(lab) = Lab::enter("doctor_names_who_sends_instead") else { return };
    let (_s, c, _packed, running) = sending(&lab);
    let wrong = |source, port| client_line(source, port, &["--interface", "eth0", "--timeout", "4s"]);
    for line in [wrong("fd00:6::99", PORT), ordinary(&wrong("fd00:6::99", PORT))] {
        let said = hear(&c, &line);
        assert_eq!(said.code, 5, "{said}");
        assert!(
            said.problems().contains(&"other-source") && !said.problems().contains(&"firewall"),
            "{said}"
        );
        assert!(said.about("other-source").contains(&format!("--source {SOURCE}")), "{said}");
    }
    let said = hear(&c, &wrong(SOURCE, PORT + 1));
    assert!(said.code == 5 && said.problems().contains(&"other-port"), "{said}");
    assert!(said.about("other-port").contains(&format!("--port {PORT}")), "{said}");

    // Another group: nobody sends there, and that is all there is to say.
    let mut line = wrong(SOURCE, PORT);
    let at = line.iter().position(|word| word == GROUP).unwrap();
    line[at] = "ff3e::8000:77".into();
    for line in [line.clone(), ordinary(&line)] {
        let mut said = hear(&c, &line);
        // Without privileges it compares what comes with what came in the 0.4 s before the join, in which the server may
        // have had no CPU.
        for _ in 0..2 {
            if said.json["saw_before_firewall"] == false && said.problems().contains(&"firewall") {
                said = hear(&c, &line);
            }
        }
        assert_eq!((said.code, said.problems()), (5, vec!["querier", "signal"]), "{said}");
    }
    drop(running);
    let said = client(&c, &SHORT);
    assert_eq!((said.code, said.problems()), (5, vec!["querier", "signal"]), "a silent server: {said}");
}

#[test]
fn doctor_tells_the_host_s_firewall_from_the_network() {
    let Some(lab) = Lab::enter("doctor_tells_the_host_s_firewall_from_the_network") else { return };
    let net = Switched::new(&lab);
    let packed = scene::pack(lab.dir(), MIB, &[]);
    let running = scene::serve(&net.s, &packed, RATE, &[]);
    scene::wait_sending(&net.s, &running);
    let wall = |host: &Host, hook: &str, rule: &str| {
        host.nft(&format!(
            "table inet filter\ndelete table inet filter\ntable inet filter {{
  chain {hook} {{
    type filter hook {hook} priority 0; policy accept;
    {rule} drop
  }}
}}\n"
        ));
    };
    let r = &net.r[0];
    wall(r, "input", "udp dport 5004");
    let line = client_line(SOURCE, PORT, &["--interface", "eth0", "--timeout", "4s"]);
    for line in [line.clone(), ordinary(&line)] {
        // Without privileges it goes by what comes with the join, and the switch goes on for a while after the last one.
        let (port, group) = (net.switch.port(r), GROUP.parse::<Ipv6Addr>().unwrap());
        let is_member = || net.switch.members().iter().any(|m| (&m.port, m.group) == (&port, group));
        until("the switch to forget", LIMIT, || !is_member());
        let said = hear(r, &line);
        assert_eq!((said.code, said.problems()), (5, vec!["signal", "firewall"]), "{said}");
        // What it says to do helps, word for word.
        let remedy = said.about("firewall");
        let command = remedy.split_once(" -> ").unwrap().1.split(" (").next().unwrap();
        r.tool(command);
        let said = client(r, &SHORT);
        assert_eq!((said.code, said.problems()), (0, vec![]), "{said}");
        wall(r, "input", "udp dport 5004");
    }

    // Queries do not get in: it works, and not for long.
    wall(r, "input", "icmpv6 type mld-listener-query");
    let said = client(r, &SHORT);
    assert_eq!((said.code, said.problems()), (1, vec!["firewall"]), "{said}");
    assert!(said.about("firewall").contains("mld-listener-query accept"), "{said}");

    // Reports do not get out: the network never hears of it. (Another host, which the switch has no memory of.)
    wall(&net.r[1], "output", "icmpv6 type 143");
    let said = client(&net.r[1], &SHORT);
    assert_eq!((said.code, said.problems()), (5, vec!["mld-report", "signal"]), "{said}");

    // What leaves the server does not.
    wall(&net.s, "output", "udp dport 5004");
    let said = server(&net.s, &packed, &[]);
    assert_eq!((said.code, said.problems()), (1, vec!["sending"]), "{said}");
    assert!(running.is_alive(), "{running}");
}

#[test]
fn doctor_names_a_switch_without_a_querier() {
    let Some(lab) = Lab::enter("doctor_names_a_switch_without_a_querier") else { return };
    let (s, c) = (lab.host("s"), lab.host("c"));
    let switch = lab.switch("sw", 1280);
    switch.silence();
    switch.plug(&s, "eth0", &format!("{SOURCE}/64"));
    switch.plug(&c, "eth0", &format!("{}/64", scene::CLIENT));
    lab::reach(&c, scene::CLIENT, &s, SOURCE);
    let packed = scene::pack(lab.dir(), MIB, &[]);
    let running = scene::serve(&s, &packed, RATE, &[]);
    scene::wait_sending(&s, &running);
    // It floods what it knows nothing of, as a Linux bridge does: it works, and one should know.
    let said = client(&c, &SHORT);
    assert_eq!((said.code, said.problems(), said.at("note")), (0, vec![], vec!["querier"]), "{said}");
    // Others do not.
    switch.host().tool(&format!("bridge link set dev {} mcast_flood off", switch.port(&c)));
    let said = client(&c, &SHORT);
    assert_eq!((said.code, said.problems()), (5, vec!["querier", "signal"]), "{said}");
    assert!(said.about("querier").contains("switch on a querier"), "{said}");

    // And one that asks by MLDv1 makes everybody speak it.
    switch.host().ip("link set br0 type bridge mcast_mld_version 1");
    switch.query();
    let queries = || c.snmp6().get("Icmp6InGroupMembQueries");
    until("a question by MLDv1", LIMIT, || queries() > 0);
    let said = client(&c, &SHORT);
    assert_eq!((said.code, said.problems()), (1, vec!["mld-version"]), "{said}");
    assert!(running.is_alive(), "{running}");
}

#[test]
fn doctors_behind_routers() {
    let test = "doctors_behind_routers";
    if let Some(why) = lab::routers_missing() {
        return lab::skip(test, &why);
    }
    let Some(lab) = Lab::enter(test) else { return };
    let net = Routed::new(&lab, 1280);
    let packed = scene::pack(lab.dir(), MIB, &[]);
    let listen = |more: &[&str]| {
        hear(&net.r[0], &client_line(SENDER, PORT, &[&["--interface", "eth0"], more].concat()))
    };
    let running = scene::serve(&net.s, &packed, RATE, &["--hops", "1"]);
    scene::wait_sending(&net.s, &running);
    let said = server(&net.s, &packed, &["--hops", "1"]);
    assert_eq!((said.code, said.problems()), (1, vec!["hop-limit"]), "{said}");
    let said = listen(&SHORT);
    assert_eq!((said.code, said.problems()), (5, vec!["signal"]), "{said}");
    drop(running);

    let running = scene::serve(&net.s, &packed, RATE, &[]);
    scene::wait_sending(&net.s, &running);
    let said = server(&net.s, &packed, &[]);
    assert_eq!((said.code, said.problems()), (0, vec![]), "{said}");
    let said = listen(&[]);
    assert_eq!((said.code, said.problems()), (0, vec![]), "{said}");
    assert!(running.is_alive(), "{running}");
}

#[test]
fn doctor_measures_loss() {
    let test = "doctor_measures_loss";
    let Some(lab) = Lab::enter(test) else { return };
    let (_s, c, _packed, running) = sending(&lab);
    c.loss("eth0", Loss::PerMille(100));
    let said = client(&c, &["--timeout", "6s"]);
    assert_eq!((said.code, said.problems()), (1, vec!["loss"]), "{said}");
    let count = c.loss_count("eth0");
    let measured = said.json["channels"][0]["loss"].as_f64().unwrap();
    assert!((0.07..=0.13).contains(&measured), "{said}");
    figures::row(
        "10 % are lost",
        &[
            ("measured", &format!("{measured:.4}")),
            ("by the kernel", &format!("{:.4}", count.lost as f64 / count.seen as f64)),
            ("packets", &said.json["channels"][0]["packets"]),
        ],
    );
    assert!(running.is_alive(), "{running}");
}

#[test]
fn doctor_looks_at_buffer_key_and_clock() {
    let Some(lab) = Lab::enter("doctor_looks_at_buffer_key_and_clock") else { return };
    let (s, c) = scene::pair(&lab);
    // Made in the year 2096.
    let packed = scene::pack(lab.dir(), MIB, &["--created", "@4000000000"]);
    let running = scene::serve(&s, &packed, RATE, &[]);
    scene::wait_sending(&s, &running);
    let said = server(&s, &packed, &[]);
    assert_eq!((said.code, said.problems()), (1, vec!["clock"]), "{said}");
    let with = |keys: &scene::Keys| client(&c, &["--key", keys.public.to_str().unwrap(), "--timeout", "4s"]);
    let said = with(&packed.keys);
    assert_eq!((said.code, said.problems()), (1, vec!["clock"]), "{said}");
    let other = scene::keygen(lab.dir(), "other");
    let said = with(&other);
    assert_eq!((said.code, said.problems()), (1, vec!["manifest"]), "{said}");

    let asked = (4 * most_buffer()).to_string();
    let said = hear(
        &c,
        &ordinary(&client_line(
            SOURCE,
            PORT,
            &["--interface", "eth0", "--rcvbuf", &asked, "--timeout", "4s"],
        )),
    );
    assert_eq!(said.at("note"), ["querier", "receive-buffer"], "{said}");
    assert!(said.about("receive-buffer").contains("net.core.rmem_max="), "{said}");
    assert_eq!(said.json["saw_before_firewall"], false, "{said}");
    assert!(running.is_alive(), "{running}");
}

#[test]
fn doctor_looks_names_up() {
    let Some(lab) = Lab::enter("doctor_looks_names_up") else { return };
    if !Knot::is_here(&lab) {
        return;
    }
    let (s, c, _packed, running) = sending(&lab);
    let records = format!(
        "_carousel._udp PTR fw._carousel._udp\nfw._carousel._udp SRV 0 10 {PORT} s1\n\
         fw._carousel._udp SRV 10 10 {PORT} s2\n\
         fw._carousel._udp TXT \"txtvers=1\" \"g={GROUP}\" \"r=5000\"\ns1 AAAA {SOURCE}\ns2 AAAA fd00:6::2\n"
    );
    let text = zone_file("example.test", &records);
    let knot =
        Knot::start(&lab, &s, &[Zone { name: "example.test", text: &text, signing: Signing::Unsigned }]);
    let ask = |name: &str, more: &[&str]| {
        let mut line = args(&[&bins::client(), &"doctor", &"--json", &name, &"--nameserver", &SOURCE]);
        line.extend(more.iter().map(OsString::from));
        hear(&c, &line)
    };
    let said = ask("example.test", &SHORT);
    assert_eq!((said.code, said.problems()), (0, vec![]), "{said}");
    assert!(said.about("dns").contains("2 sources, 1 of them spares"), "{said}");
    let said = ask("nobody.example.test", &[]);
    assert_eq!((said.code, said.problems()), (2, vec!["dns"]), "{said}");
    assert!(said.about("dns").contains("NXDOMAIN"), "{said}");
    let said = ask("example.test", &["--tier", "3"]);
    assert_eq!((said.code, said.problems()), (2, vec!["dns"]), "{said}");
    drop(knot);
    let said = ask("example.test", &["--timeout", "2s"]);
    assert_eq!((said.code, said.problems()), (75, vec!["dns"]), "{said}");
    assert!(running.is_alive(), "{running}");
}

#[test]
fn doctor_of_the_server_reads_its_configuration() {
    let Some(lab) = Lab::enter("doctor_of_the_server_reads_its_configuration") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), MIB, &["--mtu", "1400"]);
    let said = server(&s, &packed, &[]);
    assert_eq!((said.code, said.problems()), (1, vec!["mtu"]), "{said}");
    let said = server(&s, &packed, &["--source", "fd00:6::77"]);
    assert!(said.code == 1 && said.problems().contains(&"source"), "{said}");

    s.ip("link set eth0 mtu 1500");
    let config = |address: &str| {
        let server = |n: u32, address: &str| {
            format!("[[server]]\nhost = \"s{n}.example.test\"\naddress = \"{address}\"\n")
        };
        let text = format!(
            "interface = \"eth0\"\nport = 5004\n[[session]]\nbundle = \"F.carousel\"\ngroups = [\"{GROUP}\"]\n{}{}",
            server(1, address),
            server(2, "fd00:6::2")
        );
        fs::write(lab.file("server.toml"), text).unwrap();
    };
    let ask = |more: &[&str]| {
        let file = lab.file("server.toml");
        let mut line = args(&[&bins::server(), &"doctor", &"--config", &file, &"--json"]);
        line.extend(more.iter().map(OsString::from));
        hear(&s, &line)
    };
    config(SOURCE);
    let said = ask(&[]);
    assert_eq!((said.code, said.problems()), (0, vec![]), "{said}");
    assert!(said.at("note").contains(&"phase"), "{said}");
    let said = ask(&["--phase", "1"]);
    assert!(!said.at("note").contains(&"phase"), "{said}");
    config("fd00:6::9");
    let said = ask(&[]);
    assert_eq!((said.code, said.problems()), (1, vec!["source-in-dns"]), "{said}");

    // Whoever listens on this host, it is not the server; and the doctor itself sends nothing.
    let sent = || s.snmp6().get("Udp6OutDatagrams");
    let before = sent();
    let ear = s.within(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))).unwrap();
    config(SOURCE);
    let said = ask(&[]);
    assert!(said.code == 0 && said.at("note").contains(&"listens"), "{said}");
    drop(ear);

    let mut bytes = fs::read(&packed.bundle).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&packed.bundle, bytes).unwrap();
    let said = ask(&[]);
    assert_eq!((said.code, said.problems()), (1, vec!["bundle"]), "{said}");
    let said = ask(&["--interface", "nosuch0"]);
    assert!(said.code == 2 && said.problems().contains(&"interface"), "{said}");
    assert_eq!(sent(), before, "the server's doctor sent something");
    fs::write(lab.file("server.toml"), "nonsense").unwrap();
    assert_eq!(ask(&[]).code, 2);
    drop(c);
}

/// The same line where `/sys` shows this host's devices, not those of the machine outside.
fn with_sysfs(line: &[OsString]) -> Vec<OsString> {
    let mut whole =
        args(&[&"unshare", &"-m", &"sh", &"-c", &"mount -t sysfs sysfs /sys && exec \"$@\"", &"sh"]);
    whole.extend_from_slice(line);
    whole
}

#[test]
fn doctors_read_what_the_device_says() {
    let Some(lab) = Lab::enter("doctors_read_what_the_device_says") else { return };
    let (s, c, packed, running) = sending(&lab);
    let ask_server = |rate: &str| {
        let mut line = scene::serve_line(&packed, rate, &["--json"]);
        line[1] = "doctor".into();
        hear(&s, &with_sysfs(&line))
    };
    let said = ask_server(RATE);
    assert_eq!((said.code, said.problems()), (0, vec![]), "{said}");
    assert!(said.about("rate").contains("which carries 10.00 Gbit/s"), "{said}");
    s.ip("link set eth0 txqueuelen 1");
    let said = ask_server("20M"); // at which several packets leave at once
    assert!(said.at("note").contains(&"send-queue"), "{said}");
    let said = ask_server("9.5G");
    assert!(said.problems().contains(&"rate"), "{said}");

    let ask = |interface: &str| {
        let line = client_line(SOURCE, PORT, &["--interface", interface, "--timeout", "4s"]);
        hear(&c, &with_sysfs(&line))
    };
    let said = ask("eth0");
    assert_eq!((said.code, said.problems(), said.at("note")), (0, vec![], vec!["querier"]), "{said}");
    c.ip("link add br0 mtu 1280 type bridge forward_delay 0");
    c.ip("link set br0 up");
    c.ip("link set eth0 master br0");
    until("the bridge's address", LIMIT, || {
        c.ip("-o addr show dev br0 scope link -tentative").contains("fe80::")
    });
    let said = ask("eth0");
    assert!(said.problems().contains(&"bridge") && said.about("bridge").contains("use br0"), "{said}");
    let said = ask("br0");
    assert_eq!((said.code, said.problems()), (0, vec![]), "{said}");
    assert!(said.at("note").contains(&"bridge"), "{said}");
    c.ip("link set br0 type bridge mcast_querier 1 mcast_mld_version 2");
    let said = ask("br0");
    assert!(!said.at("note").contains(&"bridge"), "{said}");
    assert!(running.is_alive(), "{running}");
}

/// It listens as root to whoever sends: it has given up what that could be good for, and ends in time whatever comes.
#[test]
fn doctor_withstands_a_flood() {
    let Some(lab) = Lab::enter("doctor_withstands_a_flood") else { return };
    let (s, x, c) = (lab.host("s"), lab.host("x"), lab.host("c"));
    let own = "fd00:6::66";
    lab.lan(&[(&s, "fd00:6::1/64"), (&x, "fd00:6::66/64"), (&c, "fd00:6::10/64")], 1280);
    let packed = scene::pack(lab.dir(), MIB, &[]);
    let running = scene::serve(&s, &packed, RATE, &[]);
    scene::wait_sending(&s, &running);
    let forger = x.spawn(&[
        env!("CARGO_BIN_EXE_forger"),
        "--interface=eth0",
        &format!("--source={SOURCE}"),
        &format!("--own={own}"),
        &format!("--group={GROUP}"),
        &format!("--port={PORT}"),
        "--lie=contents",
        "--rate=200e6",
    ]);
    until("the forger to know its templates", LIMIT, || {
        assert!(forger.is_alive(), "{forger}");
        forger.stdout().contains("READY")
    });
    let mut line = client_line(SOURCE, PORT, &["--interface", "eth0", "--timeout", "4s"]);
    let at = line.iter().position(|word| word == "--source").unwrap();
    line.drain(at..at + 2);
    let doctor = c.spawn(&line);
    until("the doctor to join", LIMIT, || {
        let group = format!("{:032x}", u128::from(GROUP.parse::<Ipv6Addr>().unwrap()));
        c.within(|| fs::read_to_string("/proc/thread-self/net/igmp6")).unwrap().contains(&group)
    });
    let status = fs::read_to_string(format!("/proc/{}/status", doctor.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
    };
    assert_eq!((field("Seccomp"), field("NoNewPrivs")), ("2".into(), "1".into()));
    let capabilities = u64::from_str_radix(&field("CapPrm"), 16).unwrap();
    // CAP_NET_BIND_SERVICE (10) and CAP_NET_ADMIN (12), for receive buffers; not CAP_NET_RAW (13).
    assert_eq!(capabilities & !(1 << 10 | 1 << 12), 0, "{capabilities:x}");
    let exit = doctor.finish(LIMIT);
    let json: Value = serde_json::from_str(&doctor.stdout()).unwrap_or_else(|e| panic!("{e}: {doctor}"));
    let heard: Vec<&str> =
        json["channels"].as_array().unwrap().iter().map(|v| v["source"].as_str().unwrap()).collect();
    assert!(heard.contains(&own) && heard.contains(&SOURCE), "{json:#}");
    assert!(exit.seconds < 20.0 && exit.peak_rss <= 32 * MIB, "{exit:?}");
    assert!(forger.is_alive() && running.is_alive(), "{forger}");
}

#[test]
fn doctors_refuse_wrong_command_lines() {
    let refused = |program: &std::path::Path, words: &[&str]| {
        let out = bins::run(program, words.iter().map(OsString::from).collect::<Vec<_>>());
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{words:?}: {stderr}");
        assert!(out.stdout.is_empty() && stderr.lines().count() == 1, "{words:?}: {stderr}");
    };
    let place = ["--group", GROUP, "--port", "5004"];
    let with =
        |words: &[&str]| [&["doctor"], &place[..], words].concat().into_iter().map(str::to_owned).collect();
    let lines: [Vec<String>; 6] = [
        with(&["--timeout", "0s"]),
        with(&["--timeout", "1h"]),
        with(&["--source", "ff3e::1x"]),
        with(&["example.net"]),
        with(&["--interface", "nosuch0"]),
        with(&["--interface", "eth0", "--key", "/nonexistent/key.pub"]),
    ];
    for line in lines {
        refused(&bins::client(), &line.iter().map(String::as_str).collect::<Vec<_>>());
    }
    refused(&bins::client(), &["doctor"]);
    refused(&bins::client(), &["doctor", "--group", "fd00::1", "--port", "5004"]);
    refused(&bins::server(), &["doctor"]);
    refused(&bins::server(), &["doctor", "--config", "/nonexistent/server.toml"]);
}
