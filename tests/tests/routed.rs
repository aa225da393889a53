//! Real routers between server and client: PIM-SSM and MLD as they are, not as we imagine them.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::figures;
use carousel_tests::lab::{self, Host, Lab, Loss, Meter, Router, Running, until};
use carousel_tests::scene::{self, GROUP, PORT};
use carousel_tests::topology::{Routed, SENDER};
use nix::sys::signal::Signal;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::thread::sleep;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// Nobody has this address.
const NOBODY: &str = "fd00:a::66";

/// A lab with routers in it.
fn enter(test: &str) -> Option<(Lab, Routed)> {
    if let Some(why) = lab::routers_missing() {
        lab::skip(test, &why);
        return None;
    }
    let lab = Lab::enter(test)?;
    let began = Instant::now();
    let net = Routed::new(&lab, 1280);
    figures::row("raising the network", &[("s", &format!("{:.1}", began.elapsed().as_secs_f64()))]);
    Some((lab, net))
}

/// Where a router sends what this sender sends.
fn sent_on(router: &Router, source: &str) -> Vec<String> {
    let source: Ipv6Addr = source.parse().unwrap();
    let routes = router.mroutes().into_iter().filter(|route| route.source == source);
    routes.flat_map(|route| route.oifs).collect()
}

#[test]
fn routers_forward_only_what_was_joined() {
    let Some((lab, net)) = enter("routers_forward_only_what_was_joined") else { return };
    let (first, last) = (net.r1.host(), net.r2.host());
    let packed = scene::pack(lab.dir(), MIB, &[]);
    // No loss: these count, and nothing but UDP to groups.
    let watched = [(first, "lan"), (last, "wan")];
    let links = net.r.iter().map(|host| (host, "eth0"));
    for (host, interface) in watched.into_iter().chain(links) {
        host.loss(interface, Loss::PerMille(0));
    }
    let arrived_at = |n: usize| net.r[n - 1].loss_count("eth0").seen;
    let between = || last.loss_count("wan").seen;

    let server = scene::serve(&net.s, &packed, "20M", &[]);
    scene::wait_sending(&net.s, &server);
    until("300 packets at the first router", LIMIT, || first.loss_count("lan").seen >= 300);
    assert_eq!(between(), 0, "nobody has joined, and yet: {:?}", net.r1.mroutes());

    // The wrong join travels as far as the right one, and brings nothing.
    let wrong = scene::get(&net.r[2], &[NOBODY], &packed, &lab.file("none"), &["--timeout", "10s"]);
    until("the first router to know of the wrong join", LIMIT, || {
        assert!(wrong.is_alive(), "{wrong}");
        net.r1.show("show ipv6 pim join").contains(NOBODY)
    });
    assert_eq!(between(), 0, "only a wrong source was joined, and yet: {:?}", net.r1.mroutes());

    let (out, r1) = (lab.file("got"), &net.r[0]);
    let (client, waited) = join_to_packet(r1, || scene::get(r1, &[SENDER], &packed, &out, &[]));
    // A member that stays until all has been looked at: when the client goes, the routers stop within half a second.
    let group = SocketAddrV6::new(GROUP.parse().unwrap(), PORT, 0, 0);
    let member = lab::join(r1, "eth0", SENDER.parse().unwrap(), group);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    assert!(arrived_at(1) >= got.done.packets_received, "{got:?}");
    until("the second router to send to its hosts", LIMIT, || !sent_on(&net.r2, SENDER).is_empty());
    assert_eq!(sent_on(&net.r2, SENDER), ["lan"], "{:?}", net.r2.mroutes());
    assert_eq!(sent_on(&net.r2, NOBODY), ["lan"], "{:?}", net.r2.mroutes());
    drop(member);
    let left = Instant::now();
    until("the first router to stop", LIMIT, || sent_on(&net.r1, SENDER).is_empty());
    let stopped = left.elapsed();
    got.row(
        "two routers",
        &format!("{:.0} ms from join to packet, {:.0} ms from leaving to silence", ms(waited), ms(stopped)),
    );

    assert_eq!(wrong.finish(LIMIT).code(), 5, "{wrong}");
    assert_eq!([2, 3, 4].map(arrived_at), [0; 3], "they have joined nothing that is sent");
}

#[test]
fn late_joins_across_two_routers() {
    let Some((lab, net)) = enter("late_joins_across_two_routers") else { return };
    let packed = scene::pack(lab.dir(), 4 * MIB, &[]);
    let server = scene::serve(&net.s, &packed, "20M", &[]);
    scene::wait_sending(&net.s, &server);
    net.r[3].loss("eth0", Loss::PerMille(100));
    let mut waits = Vec::new();
    for (n, r) in net.r.iter().cycle().take(8).enumerate() {
        sleep(scene::random_moment(Duration::from_secs(2))); // the moment of joining is what is drawn at random
        let out = lab.file(&format!("got{n}"));
        let loss = if n % 4 == 3 { 0.1 } else { 0.0 };
        let get = || {
            let client = scene::get(r, &[SENDER], &packed, &out, &["--force"]);
            let got = scene::arrive(&client, &packed, &out, LIMIT);
            let (wait, ratio) = (got.done.sources[0].first_packet_seconds, got.over_ideal(20e6, loss));
            got.row(
                &format!("late join on {}, p = {loss}", r.name()),
                &format!("{ratio:.3} x ideal, {:.0} ms from join to packet", wait * 1e3),
            );
            got
        };
        let mut got = get();
        waits.push(got.done.sources[0].first_packet_seconds);
        // While the decoder waits for its turn, packets pass: 5 % in a tenth of a second. Waste comes each time.
        for _ in 1..3 {
            if got.packets_per_symbol() > 1.08 {
                got = get();
            }
        }
        assert!(got.packets_per_symbol() <= 1.08, "three times: {got:?}");
    }
    waits.sort_by(f64::total_cmp);
    // A join goes through four programs, any of which may have to wait for a CPU. One that waits for a question or a
    // regular join, which come every 5 and 3 s, does so as a rule.
    assert!(waits[4] <= 0.5 && waits[7] <= 10.0, "{waits:?}");
    let (least, most) = (format!("{:.0}", waits[0] * 1e3), format!("{:.0}", waits[7] * 1e3));
    figures::row("all late joins", &[("least ms from join to packet", &least), ("most", &most)]);
    // Every link is exactly as wide as the packets.
    for host in [&net.s, net.r1.host(), net.r2.host()].into_iter().chain(&net.r) {
        assert_eq!(host.snmp6().fragments(), 0, "fragments at {}", host.name());
        assert_eq!(host.snmp6().get("Icmp6OutPktTooBigs"), 0, "{}", host.name());
    }
}

#[test]
fn routers_stop_when_the_last_client_is_killed() {
    let Some((lab, net)) = enter("routers_stop_when_the_last_client_is_killed") else { return };
    let packed = scene::pack(lab.dir(), 64 * MIB, &[]);
    let server = scene::serve(&net.s, &packed, "20M", &[]);
    scene::wait_sending(&net.s, &server);
    let client = scene::get(&net.r[0], &[SENDER], &packed, &lab.file("got"), &[]);
    scene::wait_received(&net.r[0], &client, MIB, LIMIT);
    client.kill(Signal::SIGKILL);
    let killed = Instant::now();
    until("the receivers' router to stop", LIMIT, || sent_on(&net.r2, SENDER).is_empty());
    let last = killed.elapsed();
    until("the sender's router to stop", LIMIT, || sent_on(&net.r1, SENDER).is_empty());
    let first = killed.elapsed();
    let (last, first_ms) = (format!("{:.0}", ms(last)), format!("{:.0}", ms(first)));
    let silent = "silent after ms";
    figures::row("behind the routers, last client killed", &[(silent, &last)]);
    figures::row("between the routers, last client killed", &[(silent, &first_ms)]);
    // Two questions of 0.2 s, and the prune to the next router. Who says nothing is forgotten after 6 to 11 s.
    assert!(first <= Duration::from_secs(5), "{:?}", net.r1.mroutes());
    let meter = Meter::new(net.r1.host(), "wan");
    sleep(Duration::from_secs(1)); // what is measured: a second of silence
    assert_eq!(meter.read().sent, 0, "the sender's router forwards still");
    assert!(server.is_alive(), "{server}");
}

/// Starts a program that joins, and measures how long the first packet takes from then. Looks often: it is a matter
/// of milliseconds.
fn join_to_packet(host: &Host, start: impl FnOnce() -> Running) -> (Running, Duration) {
    let before = host.snmp6();
    let program = start();
    let waited = host.within(|| {
        let began = Instant::now();
        let see = |table: &str, found: &dyn Fn(&str) -> bool| {
            // One that has ended already, while we had no CPU, has left no trace in the table of joins.
            let read = || std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap();
            while !found(&read()) && program.is_alive() {
                assert!(began.elapsed() < LIMIT, "nothing in {table}: {program}");
                sleep(Duration::from_micros(200));
            }
            Instant::now()
        };
        // The table of joins has a line above them.
        let joined = see("mcfilter6", &|text| text.lines().count() > 1);
        let more = |line: &str| {
            let count = line.strip_prefix("Udp6InDatagrams ").map(|rest| rest.trim().parse().unwrap());
            count.is_some_and(|n: u64| n > before.get("Udp6InDatagrams"))
        };
        see("snmp6", &|text| text.lines().any(more)) - joined
    });
    (program, waited)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[test]
fn router_restart_in_the_middle_of_a_transfer() {
    let Some((lab, mut net)) = enter("router_restart_in_the_middle_of_a_transfer") else { return };
    // Seven seconds of data: it must not be complete before both routers have been away.
    let packed = scene::pack(lab.dir(), 16 * MIB, &[]);
    let server = scene::serve(&net.s, &packed, "20M", &[]);
    scene::wait_sending(&net.s, &server);
    let (out, r1) = (lab.file("got"), net.r[0].clone());
    let meter = Meter::new(&r1, "eth0");
    let client = scene::get(&r1, &[SENDER], &packed, &out, &["--timeout", "60s"]);
    // At its interface: it may read later what came before.
    let arrived = || meter.read().received;
    for router in [&mut net.r2, &mut net.r1] {
        scene::wait_received(&r1, &client, packed.size / 6, LIMIT);
        let name = router.host().name().to_owned();
        router.stop();
        let stopped = Instant::now();
        let mut before = arrived();
        until(&format!("{name}, without its daemons, to forward no more"), Duration::from_secs(10), || {
            sleep(Duration::from_millis(250)); // five hundred packets' time
            std::mem::replace(&mut before, arrived()) == before
        });
        let started = Instant::now();
        router.start_again();
        until("data to come back", LIMIT, || {
            assert!(client.is_alive(), "{client}");
            arrived() > before
        });
        let away = format!("{:.1}", stopped.elapsed().as_secs_f64());
        let after = format!("{:.1}", started.elapsed().as_secs_f64());
        figures::row(
            &format!("{name} restarts"),
            &[("s without data", &away), ("of them with its daemons", &after)],
        );
    }
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    got.row("both routers started again", "");
    assert!(server.is_alive(), "{server}");
}
