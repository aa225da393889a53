//! From pack to verified file through real namespaces. Each scenario prints its figures as Markdown table rows:
//! `cargo test --release -p carousel-tests --test e2e -- --nocapture`.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{Lab, Loss, softnet_drops, until};
use carousel_tests::scene::{self, CLIENT, Got, Packed, SOURCE, SOURCE_2};
use carousel_tests::{lab, object};
use nix::sys::signal::Signal;
use std::fs;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// `20M`, and the same as a number.
const RATE: (&str, f64) = ("20M", 20e6);
const LIMIT: Duration = Duration::from_secs(60);

fn row(scenario: &str, packed: &Packed, got: &Got, more: &str) {
    println!(
        "| {scenario} | {} B | {:.2} s | {:.3} packets/symbol | {:.1} MiB peak | {:.2} s CPU | {more} |",
        packed.size,
        got.exit.seconds,
        got.packets_per_symbol(),
        got.exit.peak_rss as f64 / MIB as f64,
        got.exit.cpu_seconds,
    );
}

/// Repeats a measurement during which the machine itself dropped packets; after three such it is a skip.
fn conclusive<T>(test: &str, mut measure: impl FnMut() -> T) -> Option<T> {
    for _ in 0..3 {
        let before = softnet_drops();
        let result = measure();
        if softnet_drops() == before {
            return Some(result);
        }
    }
    lab::skip(test, "inconclusive three times: the machine dropped packets");
    None
}

/// 20 MiB, where joining and waiting for the manifest weigh five times what they do at 100 MiB; the bars of the
/// closing note are measured by `matrix`.
#[test]
fn late_join_at_loss() {
    let Some(lab) = Lab::enter("late_join_at_loss") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 20 * MIB, &[]);
    let server = scene::serve(&s, &packed, RATE.0, &[]);
    scene::wait_sending(&s, &server);
    for per_mille in [0, 100] {
        let loss = f64::from(per_mille) / 1000.0;
        let Some(got) = conclusive("late_join_at_loss", || {
            c.loss("eth0", Loss::PerMille(per_mille));
            std::thread::sleep(scene::random_moment(Duration::from_millis(500)));
            let out = lab.file("got");
            let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
            scene::arrive(&client, &packed, &out, LIMIT)
        }) else {
            return;
        };
        let ratio = got.over_ideal(RATE.1, loss);
        row("late join", &packed, &got, &format!("p = {loss}: {ratio:.3} x ideal"));
        assert!(ratio <= 1.06, "{ratio} x ideal at p = {loss}: {got:?}");
        assert!(got.packets_per_symbol() <= 1.06, "{got:?}");
        assert_eq!(got.done.packets_rejected, 0);
        assert!(got.exit.peak_rss <= 32 * MIB, "{got:?}");
    }
    // The link is exactly as wide as the packets.
    assert_eq!((s.snmp6().fragments(), c.snmp6().fragments()), (0, 0), "fragments on a 1,280-byte link");
    assert_eq!(s.snmp6().get("Icmp6InPktTooBigs"), 0);
}

#[test]
fn every_size_arrives_exact() {
    let Some(lab) = Lab::enter("every_size_arrives_exact") else { return };
    let (s, c) = scene::pair(&lab);
    // Around one symbol (1,188 bytes at the default MTU) and around one block.
    for size in [0, 1, 1187, 1188, 1189, 4 * MIB, 4 * MIB + 1] {
        let dir = lab.file(&format!("size-{size}"));
        fs::create_dir(&dir).unwrap();
        let packed = scene::pack(&dir, size, &[]);
        let _server = scene::serve(&s, &packed, "100M", &[]);
        let out = dir.join("got");
        let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
        let got = scene::arrive(&client, &packed, &out, LIMIT);
        row("sizes", &packed, &got, "100M");
    }
    assert_eq!((s.snmp6().fragments(), c.snmp6().fragments()), (0, 0));
}

#[test]
fn two_servers_halve_the_time_and_one_may_die() {
    let name = "two_servers_halve_the_time_and_one_may_die";
    let Some(lab) = Lab::enter(name) else { return };
    let (s1, s2, c) = (lab.host("s1"), lab.host("s2"), lab.host("c"));
    let address = |a: &str| format!("{a}/64");
    let (a1, a2, ac) = (address(SOURCE), address(SOURCE_2), address(CLIENT));
    let _switch = lab.lan(&[(&s1, &a1), (&s2, &a2), (&c, &ac)], 1280);
    let packed = scene::pack(lab.dir(), 20 * MIB, &[]);
    let server_1 = scene::serve(&s1, &packed, RATE.0, &["--phase", "0"]);
    let server_2 = scene::serve(&s2, &packed, RATE.0, &["--phase", "1"]);
    scene::wait_sending(&s1, &server_1);
    scene::wait_sending(&s2, &server_2);
    let out = lab.file("got");
    let get = |sources: &[&str]| {
        conclusive(name, || {
            let client = scene::get(&c, sources, &packed, &out, &[]);
            scene::arrive(&client, &packed, &out, LIMIT)
        })
    };

    let Some(one) = get(&[SOURCE]) else { return };
    fs::remove_file(&out).unwrap();
    row("one of two servers", &packed, &one, "");
    let Some(two) = get(&[SOURCE, SOURCE_2]) else { return };
    fs::remove_file(&out).unwrap();
    let ratio = two.exit.seconds / one.exit.seconds;
    row("two servers", &packed, &two, &format!("{ratio:.3} of one server's time"));
    assert!(ratio <= 0.55, "{ratio}: {one:?} {two:?}");

    let before = c.traffic("eth0").rx_bytes;
    let client = scene::get(&c, &[SOURCE, SOURCE_2], &packed, &out, &[]);
    until("half of it to arrive", LIMIT, || c.traffic("eth0").rx_bytes > before + packed.size / 2);
    server_2.kill(Signal::SIGKILL);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    row("two servers, one killed", &packed, &got, "");
    // What the dead one had sent lies ahead of the other: in the worst case it saved nothing, but it must not cost.
    assert!(got.exit.seconds <= 1.05 * one.exit.seconds, "{got:?}");
}

#[test]
fn server_survives_its_interface_going_down_and_up() {
    let Some(lab) = Lab::enter("server_survives_its_interface_going_down_and_up") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &[]);
    let server = scene::serve(&s, &packed, RATE.0, &[]);
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let before = c.traffic("eth0").rx_bytes;
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    until("a third of it to arrive", LIMIT, || c.traffic("eth0").rx_bytes > before + packed.size / 3);

    // Down takes the address along, as on any host; whoever configures it puts it back.
    s.ip("link set eth0 down");
    std::thread::sleep(Duration::from_millis(300)); // the length of the outage
    assert!(server.is_alive(), "{server}");
    s.ip("link set eth0 up");
    s.ip(&format!("addr add {SOURCE}/64 dev eth0 nodad"));
    scene::wait_sending(&s, &server);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    row("interface down and up", &packed, &got, "300 ms outage");
}

#[test]
fn killed_client_leaves_no_target_and_the_target_is_never_partial() {
    let Some(lab) = Lab::enter("killed_client_leaves_no_target_and_the_target_is_never_partial") else {
        return;
    };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &[]);
    let server = scene::serve(&s, &packed, RATE.0, &[]);
    scene::wait_sending(&s, &server);
    let folder = lab.file("target");
    fs::create_dir(&folder).unwrap();
    let out = folder.join("got");

    let before = c.traffic("eth0").rx_bytes;
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    until("half of it to arrive", LIMIT, || c.traffic("eth0").rx_bytes > before + packed.size / 2);
    assert!(fs::read_dir(&folder).unwrap().next().is_some(), "the client works beside the target");
    client.kill(Signal::SIGKILL);
    assert_eq!(client.finish(LIMIT).code(), -9);
    assert!(!out.exists(), "a killed client left a target");

    // Whatever the first one left, the second finishes; the target is whole from the first moment it is there.
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    until("the target", LIMIT, || out.exists() || !client.is_alive());
    assert_eq!(object::digest(&out).unwrap_or_default(), packed.digest, "{client}");
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    row("after a killed client", &packed, &got, "");
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["got"], "work files remain");
}
