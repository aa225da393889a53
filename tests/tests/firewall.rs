//! What a server lets in: nothing. It works behind closed doors, listens to nothing, and could not if it wanted to.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::figures;
use carousel_tests::lab::{self, Host, Lab, deafen, until};
use carousel_tests::scene::{self, CLIENT, GROUP, PORT, SOURCE};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// `20M`, and the same as a number.
const RATE: (&str, f64) = ("20M", 20e6);
const LIMIT: Duration = Duration::from_secs(60);

/// Lets nothing at all into the host: no neighbour, no loopback.
const CLOSED_INPUT: &str = "table inet wall {
  counter refused { }
  chain input {
    type filter hook input priority filter; policy drop;
    counter name refused
  }
}\n";

/// A diode: no frame gets past the interface, so that not even the host's kernel hears of it.
const DIODE: &str = "table netdev wall {
  counter refused { }
  chain ingress {
    type filter hook ingress device \"eth0\" priority filter; policy drop;
    counter name refused
  }
}\n";

/// Two hosts, and these rules on the server's, whose `table` counts what they refuse.
fn walled(lab: &Lab, rules: &str, table: &str) -> (Host, Host) {
    let (s, c) = scene::pair(lab);
    s.nft(rules);
    // A datagram got across when the cable was laid. Now it is refused, and counted.
    let ear = s.within(|| UdpSocket::bind((SOURCE, 0))).unwrap();
    let mouth = c.within(|| UdpSocket::bind((CLIENT, 0))).unwrap();
    let before = refused(&s, table);
    until("the wall to refuse ten datagrams", LIMIT, || {
        mouth.send_to(b"?", ear.local_addr().unwrap()).unwrap();
        refused(&s, table) >= before + 10
    });
    ear.set_nonblocking(true).unwrap();
    assert!(ear.recv(&mut [0; 8]).is_err(), "something came through the wall");
    (s, c)
}

/// What the wall on this host has refused so far.
fn refused(host: &Host, table: &str) -> u64 {
    let text = host.tool(&format!("nft -j list counter {table} refused"));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["nftables"][1]["counter"]["packets"].as_u64().unwrap_or_else(|| panic!("no counter in {text}"))
}

/// A server starts behind the wall, and a client that comes later gets all of the object.
fn serves_a_late_client(test: &str, lab: &Lab, s: &Host, c: &Host, table: &str) {
    let packed = scene::pack(lab.dir(), 4 * MIB, &[]);
    let server = scene::serve(s, &packed, RATE.0, &[]);
    scene::wait_sending(s, &server);
    std::thread::sleep(scene::random_moment(Duration::from_millis(500))); // late by so much
    let out = lab.file("got");
    let client = scene::get(c, &[SOURCE], &packed, &out, &[]);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    got.row(test, &format!("{:.3} x ideal, {} refused", got.over_ideal(RATE.1, 0.0), refused(s, table)));
    assert!(server.is_alive() && !server.stderr().contains("WARN"), "{server}");
}

#[test]
fn serves_behind_a_closed_input() {
    let test = "serves_behind_a_closed_input";
    let Some(lab) = Lab::enter(test) else { return };
    let table = "inet wall";
    let (s, c) = walled(&lab, CLOSED_INPUT, table);
    serves_a_late_client(test, &lab, &s, &c, table);
}

#[test]
fn serves_behind_the_rules_that_we_deploy() {
    let test = "serves_behind_the_rules_that_we_deploy";
    let Some(lab) = Lab::enter(test) else { return };
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/nftables-closed-inbound.nft");
    let table = "inet carousel_closed";
    let (s, c) = walled(&lab, &fs::read_to_string(rules).unwrap(), table);
    serves_a_late_client(test, &lab, &s, &c, table);
}

#[test]
fn serves_behind_a_diode() {
    let test = "serves_behind_a_diode";
    let Some(lab) = Lab::enter(test) else { return };
    let table = "netdev wall";
    let (s, c) = walled(&lab, DIODE, table);
    let heard = || s.snmp6().get("Ip6InReceives");
    let before = heard();

    // Nobody finds out where the server is, for nobody can ask it.
    c.sysctl("net/ipv6/neigh/eth0/retrans_time_ms", "50"); // three unanswered questions, one a second by default
    c.ip("neigh flush dev eth0");
    let mouth = c.within(|| UdpSocket::bind((CLIENT, 0))).unwrap();
    until("the client to give up asking for its neighbour", LIMIT, || {
        let _ = mouth.send_to(b"?", (SOURCE, 9));
        c.ip("neigh show dev eth0").contains(&format!("{SOURCE} FAILED"))
    });
    serves_a_late_client(test, &lab, &s, &c, table);
    assert_eq!(heard(), before, "packets came through the diode");
}

#[test]
fn server_lives_where_listening_is_death() {
    let test = "server_lives_where_listening_is_death";
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 4 * MIB, &[]);
    let server = s.spawn_command(deaf(&scene::serve_line(&packed, RATE.0, &[])));
    scene::wait_sending(&s, &server);
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    assert!(status.contains("\nSeccomp:\t2\n"), "the server has no filter: {status}");
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    scene::arrive(&client, &packed, &out, LIMIT).row(test, "");

    // So to the end of its life: also when the network goes and comes, and when it is told to stop.
    s.ip("link set eth0 down");
    until("the server to notice", LIMIT, || server.stderr().contains("WARN"));
    s.ip("link set eth0 up");
    s.ip(&format!("addr add {SOURCE}/64 dev eth0 nodad"));
    scene::wait_sending(&s, &server);
    server.kill(Signal::SIGTERM);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");

    // And this is how it would have died.
    let client = c.spawn_command(deaf(&scene::get_line(&[SOURCE], &packed, &lab.file("other"), &[])));
    assert_eq!(client.finish(LIMIT).code(), -libc::SIGSYS, "{client}");
}

fn deaf(line: &[OsString]) -> Command {
    let mut cmd = Command::new(&line[0]);
    cmd.args(&line[1..]);
    deafen(&mut cmd);
    cmd
}

#[test]
fn server_listens_to_nothing() {
    let Some(lab) = Lab::enter("server_listens_to_nothing") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), MIB, &[]);
    let server = scene::serve(&s, &packed, RATE.0, &[]);
    scene::wait_sending(&s, &server);
    for kind in ["-Hlun", "-Hltn", "-Hlwn", "-Hl0n"] {
        let listed = || s.tool(&format!("ss {kind}"));
        assert_eq!(listed(), "", "ss {kind} beside a running server");
        let ear = s.within(|| ear(kind));
        assert_ne!(listed(), "", "ss {kind} does not show {ear:?}");
    }

    // Behind ss: no socket but the one that sends, connected to the group (01; one that hears is 07).
    let sockets = |family: &str| -> Vec<String> {
        let table = s.within(|| fs::read_to_string(format!("/proc/thread-self/net/{family}"))).unwrap();
        table.lines().skip(1).map(str::to_owned).collect()
    };
    for family in ["udp", "udplite", "udplite6", "tcp", "tcp6", "raw", "raw6", "packet"] {
        // A kernel may lack one of them; then nobody listens there.
        let there = s.within(|| fs::exists(format!("/proc/thread-self/net/{family}"))).unwrap();
        assert!(!there || sockets(family).is_empty(), "{family}: {:?}", sockets(family));
    }
    let udp = sockets("udp6");
    let [line] = &udp[..] else { panic!("the server has one socket, not {udp:?}") };
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let remote = format!("{}:{PORT:04X}", words(GROUP));
    assert_eq!(fields[2..4], [&remote, "01"], "{line}");

    // What is sent to the port it sends from finds nobody there.
    let port = u16::from_str_radix(fields[1].rsplit(':').next().unwrap(), 16).unwrap();
    let (refused, taken) = ("Udp6NoPorts", "Udp6InDatagrams");
    let before = s.snmp6();
    let mouth = c.within(|| UdpSocket::bind((CLIENT, 0))).unwrap();
    for _ in 0..100 {
        mouth.send_to(b"?", (SOURCE, port)).unwrap();
    }
    until("a hundred datagrams to be refused", LIMIT, || s.snmp6().get(refused) >= before.get(refused) + 100);
    assert_eq!(s.snmp6().get(taken), before.get(taken), "the server's socket took something");
    assert!(server.is_alive(), "{server}");
}

/// A socket of the kind that this option of `ss` shows.
fn ear(kind: &str) -> Socket {
    let (domain, kind_of, protocol) = match kind {
        "-Hlun" => (Domain::IPV6, Type::DGRAM, Protocol::UDP),
        "-Hltn" => (Domain::IPV6, Type::STREAM, Protocol::TCP),
        "-Hlwn" => (Domain::IPV6, Type::RAW, Protocol::ICMPV6),
        _ => (Domain::PACKET, Type::DGRAM, Protocol::from(i32::from((libc::ETH_P_IPV6 as u16).to_be()))),
    };
    let socket = Socket::new(domain, kind_of, Some(protocol)).unwrap();
    if domain == Domain::IPV6 {
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
    }
    if kind_of == Type::STREAM {
        socket.listen(1).unwrap();
    }
    socket
}

/// An address as `/proc/net/udp6` writes it: four numbers of the machine's own byte order.
fn words(address: &str) -> String {
    let octets = address.parse::<Ipv6Addr>().unwrap().octets();
    let number = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
    octets.chunks(4).map(|bytes| format!("{:08X}", number(bytes))).collect()
}

#[test]
fn server_makes_no_receiving_system_call() {
    let test = "server_makes_no_receiving_system_call";
    if !lab::have("strace") {
        return lab::skip(test, "the program strace is missing");
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, _c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 100_000, &[]);
    for source in [&[][..], &["--source", SOURCE]] {
        let log = lab.file("strace");
        // Everything that has to do with descriptors, and with -yy what the descriptors are.
        let calls = "trace=%network,%desc,io_uring_setup,io_uring_enter,io_uring_register";
        let mut line = scene::args(&[&"strace", &"-f", &"-yy", &"-e", &calls, &"-o", &log]);
        line.extend(scene::serve_line(&packed, RATE.0, &[&["--once"], source].concat()));
        let server = s.spawn(&line);
        assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
        judge(&fs::read_to_string(&log).unwrap());
    }
}

/// Looks through strace's log for what is done with sockets.
fn judge(log: &str) {
    // The second kind is the C library's: it asks the kernel for an interface's number through it. The third is how
    // strace names a socket that it cannot look up.
    let marks = ["<UDPv6:", "<UNIX:", "<socket:", "socket(", "socketpair(", "io_uring_"];
    let of_sockets: Vec<(&str, &str)> = log
        .lines()
        .filter(|line| marks.iter().any(|mark| line.contains(mark)))
        .filter_map(|line| Some((call(line)?, line)))
        .collect();
    let names: BTreeSet<&str> = of_sockets.iter().map(|(name, _)| *name).collect();
    let listed = names.iter().cloned().collect::<Vec<_>>().join(" ");
    figures::row("the server, on sockets", &[("system calls", &listed)]);
    assert!(names.contains("sendmmsg"), "nothing sent? {names:?}");
    // bind is not among them: a program that never binds can be forbidden to.
    // fcntl is: a debug build's standard library looks at what it closes.
    let fine = ["close", "connect", "fcntl", "getsockname", "ioctl", "sendmmsg", "setsockopt", "socket"];
    let stray: Vec<_> = of_sockets.iter().filter(|(name, _)| !fine.contains(name)).take(10).collect();
    assert!(stray.is_empty(), "{stray:#?}");
    for (_, line) in of_sockets.iter().filter(|(name, _)| *name == "socket") {
        assert!(line.contains("(AF_UNIX, ") || line.contains("(AF_INET6, SOCK_DGRAM|"), "{line}");
    }
}

/// The system call of a line of strace's log: `PID name(…`; exits, signals and resumptions have none.
fn call(line: &str) -> Option<&str> {
    let name = line.split_once(' ')?.1.trim_start().split_once('(')?.0;
    (!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')).then_some(name)
}
