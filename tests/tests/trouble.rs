//! What a network does to a server that only sends: it goes away, shrinks, and complains. The server goes on.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::forgery::{self, Channel, Complaint};
use carousel_tests::lab::{Host, Lab};
use carousel_tests::scene::{self, CLIENT, GROUP, PORT, SOURCE};
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// `20M`, and the same as a number.
const RATE: (&str, f64) = ("20M", 20e6);
const LIMIT: Duration = Duration::from_secs(60);

/// Two hosts and a cable of 1,500 bytes.
fn wide_pair(lab: &Lab) -> (Host, Host) {
    let (s, c) = (lab.host("s"), lab.host("c"));
    lab.link(&s, "eth0", &format!("{SOURCE}/64"), &c, "eth0", &format!("{CLIENT}/64"), 1500);
    (s, c)
}

#[test]
fn server_survives_its_interface_going_down_and_up() {
    let Some(lab) = Lab::enter("server_survives_its_interface_going_down_and_up") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &[]);
    let server = scene::serve(&s, &packed, RATE.0, &[]);
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    scene::wait_received(&c, &client, packed.size / 3, LIMIT);

    // Down takes the address along, as on any host; whoever configures it puts it back.
    s.ip("link set eth0 down");
    std::thread::sleep(Duration::from_millis(300)); // the length of the outage
    assert!(server.is_alive(), "{server}");
    s.ip("link set eth0 up");
    s.ip(&format!("addr add {SOURCE}/64 dev eth0 nodad"));
    scene::wait_sending(&s, &server);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    got.row("interface down and up", "300 ms outage");
    assert_eq!(remarks(&server.stderr()), 1, "{server}");
}

/// Warnings of a server that ran: one for an outage, however many packets it cost.
fn remarks(stderr: &str) -> usize {
    stderr.lines().filter(|line| line.contains("WARN")).count()
}

#[test]
fn client_survives_its_interface_going_down_and_up() {
    let Some(lab) = Lab::enter("client_survives_its_interface_going_down_and_up") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &[]);
    let server = scene::serve(&s, &packed, RATE.0, &[]);
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    scene::wait_received(&c, &client, packed.size / 3, LIMIT);
    c.ip("link set eth0 down");
    std::thread::sleep(Duration::from_millis(300)); // the length of the outage
    c.ip("link set eth0 up");
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    got.row("client's interface down and up", "300 ms outage");
}

#[test]
fn server_survives_a_smaller_mtu_and_never_fragments() {
    let Some(lab) = Lab::enter("server_survives_a_smaller_mtu_and_never_fragments") else { return };
    let (s, c) = wide_pair(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &["--mtu", "1500"]);
    let server = scene::serve(&s, &packed, RATE.0, &[]);
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    scene::wait_received(&c, &client, packed.size / 3, LIMIT);

    s.ip("link set eth0 mtu 1280");
    std::thread::sleep(Duration::from_millis(500)); // the length of the outage
    let (made, said) = (s.snmp6().fragments(), server.stderr());
    s.ip("link set eth0 mtu 1500");
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    got.row("MTU lowered and raised", &format!("500 ms outage, {made} fragments"));
    assert!(server.is_alive(), "{server}");
    assert_eq!(made, 0, "the server fragments: {server}");
    assert_eq!(remarks(&said), 1, "{server}");
    assert_eq!(remarks(&server.stderr()), 1, "{server}");
}

/// Lets the client's host forge ICMPv6 errors about the server's packets until the client is done.
fn complained_about(test: &str, complaint: Complaint) {
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = wide_pair(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &["--mtu", "1500"]);
    let server = scene::serve(&s, &packed, RATE.0, &[]);
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    let channel = Channel { source: SOURCE.parse().unwrap(), group: GROUP.parse().unwrap(), port: PORT };
    let mut forged = 0;
    c.within(|| {
        forgery::complain(&channel, complaint, |sent| {
            forged = sent;
            client.is_alive()
        })
    })
    .unwrap();
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    let ratio = got.exit.seconds / (got.done.symbols_needed as f64 * 1500.0 * 8.0 / RATE.1);
    got.row(test, &format!("{forged} forged: {ratio:.3} x ideal"));
    assert!(server.is_alive(), "{server}");
    let counts = s.snmp6();
    assert!(counts.get("Icmp6InDestUnreachs") + counts.get("Icmp6InPktTooBigs") >= forged / 2, "{forged}");
    // What the kernel cannot give to a socket it counts as an error: they did reach the server's.
    assert_eq!(counts.get("Icmp6InErrors"), 0, "the forged messages name no socket");
    assert_eq!(counts.fragments(), 0, "the server fragments");
    assert!(ratio <= 1.15, "{got:?}");
    assert!(remarks(&server.stderr()) <= 1, "{server}");
}

#[test]
fn forged_port_unreachable_does_not_stop_the_server() {
    complained_about("forged_port_unreachable_does_not_stop_the_server", Complaint::PortUnreachable);
}

#[test]
fn forged_packet_too_big_does_not_shrink_the_packets() {
    complained_about("forged_packet_too_big_does_not_shrink_the_packets", Complaint::PacketTooBig(1280));
}
