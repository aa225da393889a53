//! What nobody asked for goes nowhere: a snooping switch forwards the carousel to the ports that joined its source,
//! and to no other, and stops when the last one has gone.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::figures;
use carousel_tests::lab::{self, Host, Lab, Member, Meter, Running, Switch, until};
use carousel_tests::scene::{self, GROUP, PACKET_BYTES, SOURCE};
use carousel_tests::topology::Switched;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const RATE: (&str, f64) = ("20M", 20e6);
const LIMIT: Duration = Duration::from_secs(60);
/// The switch asks a port that leaves twice, 100 ms apart, and the client may need 200 ms to end, or without a CPU a
/// second. One that says nothing is forgotten after at least 2.2 s: 4.2 s after its last answer, one of which comes
/// every 2 s.
const LEAVE: Duration = Duration::from_secs(2);

#[test]
fn nobody_joined_and_nothing_passes_the_switch() {
    let Some(lab) = Lab::enter("nobody_joined_and_nothing_passes_the_switch") else { return };
    let net = Switched::new(&lab);
    let packed = scene::pack(lab.dir(), MIB, &[]);
    let server = scene::serve(&net.s, &packed, RATE.0, &[]);
    scene::wait_sending(&net.s, &server);
    let meters = net.r.each_ref().map(|host| Meter::new(net.switch.host(), &net.switch.port(host)));
    let first_port = Meter::new(net.switch.host(), &net.switch.port(&net.s));
    let look = || (Instant::now(), net.s.traffic("eth0").tx_packets);
    let before = first_port.read().received;
    // A machine without a CPU to spare makes the rate a little less, or the moment of looking wrong. A server whose rate
    // is wrong has a wrong one each time.
    let mut rates: Vec<f64> = Vec::new();
    let right = |rate: &f64| (rate / RATE.1 - 1.0).abs() < 0.02;
    while rates.len() < 5 && !rates.iter().any(right) {
        let (began, first) = look();
        std::thread::sleep(Duration::from_secs(3)); // what is measured: three seconds of sending
        let (ended, last) = look();
        rates.push((last - first) as f64 * PACKET_BYTES * 8.0 / (ended - began).as_secs_f64());
    }
    let passed = meters.map(|meter| meter.read().sent);
    let (sent, rate) = (first_port.read().received - before, rates[rates.len() - 1]);
    let mbit = format!("{:.2} Mbit/s", rate / 1e6);
    figures::row(
        "nobody joined",
        &[("packets sent", &sent), ("rate", &mbit), ("left the switch", &passed.iter().sum::<u64>())],
    );
    assert!(right(&rate), "the server sends at {rates:?} bit/s");
    assert!(sent > 2_000, "only {sent} packets came to the switch");
    assert_eq!(passed, [0; 4], "data packets left the switch unasked");
}

#[test]
fn only_ports_that_joined_the_source_get_it() {
    let Some(lab) = Lab::enter("only_ports_that_joined_the_source_get_it") else { return };
    let net = Switched::new(&lab);
    // Five seconds, in which the switch is looked at; a client that is done is in no table any more.
    let packed = scene::pack(lab.dir(), 12 * MIB, &[]);
    let server = scene::serve(&net.s, &packed, RATE.0, &[]);
    scene::wait_sending(&net.s, &server);
    let meters = net.r.each_ref().map(|host| Meter::new(net.switch.host(), &net.switch.port(host)));

    let (out, elsewhere) = (lab.file("got"), "fd00:6::99");
    let idle = scene::get(&net.r[2], &[elsewhere], &packed, &lab.file("nothing"), &["--timeout", "10s"]);
    scene::wait_joined(&net.r[2]);
    let client = scene::get(&net.r[0], &[SOURCE], &packed, &out, &[]);
    scene::wait_joined(&net.r[0]);
    let joined = |host: &Host, source: &str| {
        let (group, source) = (GROUP.parse().unwrap(), Some(source.parse().unwrap()));
        net.switch.members().contains(&Member { port: net.switch.port(host), group, source })
    };
    until("the switch to know both joins", LIMIT, || {
        joined(&net.r[0], SOURCE) && joined(&net.r[2], elsewhere)
    });
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    got.row("one of four joined", "");
    assert_eq!(idle.finish(LIMIT).code(), 5, "the wrong source: {idle}");
    let passed = meters.map(|meter| meter.read().sent);
    for (who, packets) in ["joined", "not joined", "joined a wrong source", "not joined"].iter().zip(&passed)
    {
        figures::row(who, &[("packets at its port", packets)]);
    }
    assert!(passed[0] >= got.done.packets_received, "{passed:?}");
    assert_eq!(passed[1..], [0; 3], "data packets at ports that did not join their source");
}

/// How long after an act the data stream at a receiver's port was certainly still going on.
fn silence_after(switch: &Switch, host: &Host, act: impl FnOnce()) -> Duration {
    let port = switch.port(host);
    let count = || switch.host().traffic(&port).tx_packets;
    let began = Instant::now();
    act();
    // A quarter of the stream's packets within a moment: more than the queries that a leave provokes.
    let (moment, few) = (Duration::from_millis(20), 10);
    let mut last = Duration::ZERO;
    let mut window = (Instant::now(), count());
    until("the stream to end", LIMIT, || {
        if window.0.elapsed() >= moment {
            let now = count();
            if now - window.1 >= few {
                // As it began: without a CPU we may be late to see its end.
                last = window.0.duration_since(began);
            }
            window = (Instant::now(), now);
        }
        began.elapsed() > last + Duration::from_secs(3)
    });
    last
}

#[test]
fn traffic_stops_when_the_last_client_has_gone() {
    let Some(lab) = Lab::enter("traffic_stops_when_the_last_client_has_gone") else { return };
    let net = Switched::new(&lab);
    let packed = scene::pack(lab.dir(), 64 * MIB, &[]);
    let server = scene::serve(&net.s, &packed, RATE.0, &[]);
    scene::wait_sending(&net.s, &server);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let client = scene::get(&net.r[0], &[SOURCE], &packed, &lab.file("got"), &[]);
        scene::wait_received(&net.r[0], &client, MIB, LIMIT);
        let after = silence_after(&net.switch, &net.r[0], || client.kill(signal));
        figures::row(&format!("client ended by {signal}"), &[("last packet after ms", &after.as_millis())]);
        assert!(after <= LEAVE, "{signal}: the stream went on for {after:?}");
    }
}

#[test]
fn a_client_that_is_done_leaves_before_its_hook_runs() {
    let Some(lab) = Lab::enter("a_client_that_is_done_leaves_before_its_hook_runs") else { return };
    let net = Switched::new(&lab);
    let packed = scene::pack(lab.dir(), 2 * MIB, &[]);
    let server = scene::serve(&net.s, &packed, RATE.0, &[]);
    scene::wait_sending(&net.s, &server);
    let (out, go) = (lab.file("got"), lab.file("go"));
    let hook = format!("while ! [ -e {} ]; do sleep 0.1; done", go.display());
    let client = scene::get(&net.r[0], &[SOURCE], &packed, &out, &["--on-complete", &hook]);
    until("the file", LIMIT, || out.exists() || !client.is_alive());
    let after = silence_after(&net.switch, &net.r[0], || ());
    figures::row("client complete, its hook runs", &[("last packet after ms", &after.as_millis())]);
    assert!(client.is_alive(), "its hook should still run: {client}");
    assert!(after <= LEAVE, "the stream went on for {after:?}");
    std::fs::write(&go, "").unwrap();
    scene::arrive(&client, &packed, &out, LIMIT);
}

#[test]
fn one_client_leaves_and_the_others_lose_nothing() {
    let Some(lab) = Lab::enter("one_client_leaves_and_the_others_lose_nothing") else { return };
    let net = Switched::new(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &[]);
    let server = scene::serve(&net.s, &packed, RATE.0, &[]);
    scene::wait_sending(&net.s, &server);
    let dropped = || lab::softnet_drops() + net.r[1].snmp6().buffer_losses();
    let before = dropped();
    let start = |n: usize| scene::get(&net.r[n], &[SOURCE], &packed, &lab.file(&format!("got{n}")), &[]);
    let (leaver, stayer): (Running, Running) = (start(0), start(1));
    scene::wait_received(&net.r[1], &stayer, packed.size / 4, LIMIT);
    leaver.kill(Signal::SIGKILL);
    let got = scene::arrive(&stayer, &packed, &lab.file("got1"), LIMIT);
    got.row("another client left", &format!("{} lost", got.done.packets_lost));
    // Without a CPU the machine loses some, too.
    assert!(got.done.packets_lost == 0 || dropped() > before, "{stayer}");
}
