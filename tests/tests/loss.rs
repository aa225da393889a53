//! What links do to packets, all at once: one server, one switch that floods, and a receiver behind each kind of bad
//! link, joining at its own moment. A row for each:
//! `cargo test --release -p carousel-tests --test loss -- --nocapture`.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{self, Flip, Host, Impairment, Lab, Loss, Wire, WireLoss};
use carousel_tests::scene::{self, Done, Got, Packed, SOURCE};
use std::thread;
use std::time::Duration;

const TEST: &str = "bad_links_cost_what_they_lose_and_no_more";
/// 10 Mbit/s, so that two cores carry fourteen clients.
const RATE: (&str, f64) = ("10M", 10e6);
/// What the slow link carries.
const SLOW: f64 = 6e6;
const SIZE: u64 = 20 << 20;
const LIMIT: Duration = Duration::from_secs(120);
/// Of the ideal time it may take so much more than of the packets: there the machine is in it, which others may use too.
const TIME: f64 = 0.1;

/// What is between the switch and a receiver.
#[derive(Clone, Copy)]
enum Link {
    /// A cable, and loss where it ends.
    Lossy(Loss),
    /// A cable slower than the channel, behind a short queue.
    Slow,
    /// A wire.
    Bad(Impairment),
}

/// A receiver and the most that it may take: as a multiple of the packets that it needs, those left out that the link
/// doubled or damaged.
struct Receiver {
    name: &'static str,
    link: Link,
    bar: f64,
    host: Host,
    /// Its port of the switch.
    port: String,
    wire: Option<Wire>,
}

/// What one get took.
struct Outcome {
    got: Got,
    /// Packets of which it could have used each, for one that it needed.
    taken: f64,
    over_ideal: f64,
    /// Packets that neither the link nor the product lost.
    lost_by_the_machine: u64,
}

/// Cables first, as the switch numbers its ports.
fn links() -> Vec<(&'static str, Link, f64)> {
    let good = Impairment::default();
    let independent = |per_mille| Link::Lossy(Loss::PerMille(per_mille));
    let bursts =
        |loss| Link::Bad(Impairment { loss: WireLoss::GilbertElliott { mean_burst: 50.0, loss }, ..good });
    let flip =
        |mend_checksum| Link::Bad(Impairment { flip: Some(Flip { fraction: 0.05, mend_checksum }), ..good });
    vec![
        ("no loss", independent(0), 1.05),
        ("1 %", independent(10), 1.06),
        ("5 %", independent(50), 1.06),
        ("10 %", independent(100), 1.06),
        ("20 %", independent(200), 1.06),
        ("40 %", independent(400), 1.06),
        ("slow link", Link::Slow, 1.10),
        ("bursts of 50, 1 %", bursts(0.01), 1.06),
        ("bursts of 50, 5 %", bursts(0.05), 1.06),
        ("bursts of 50, 10 %", bursts(0.1), 1.06),
        ("every 10th", Link::Bad(Impairment { loss: WireLoss::EveryNth(10), ..good }), 1.06),
        ("5 % twice", Link::Bad(Impairment { duplicate: 0.05, ..good }), 1.05),
        ("reordered", Link::Bad(Impairment { delay_up_to: Duration::from_millis(100), ..good }), 1.06),
        ("5 % damaged", flip(false), 1.06),
        // More than the damaged packets: symbols whose hash page was damaged stay unproven, and one wrong symbol
        // among them spoils the attempt to decode with all. Then only proven ones count, and they are fewer by the
        // same share once more: 1.08 is to be expected, and a hundredth more or less, by the lot of the hash pages.
        ("5 % damaged, checksum mended", flip(true), 1.14),
    ]
}

#[test]
fn bad_links_cost_what_they_lose_and_no_more() {
    let Some(lab) = Lab::enter_with_wires(TEST) else { return };
    let (s, switch, receivers) = network(&lab);
    let packed = scene::pack(lab.dir(), SIZE, &[]);
    let server = scene::serve(&s, &packed, RATE.0, &[]);
    scene::wait_sending(&s, &server);

    // Others may use the machine too. A product that is too slow is so each time.
    let mut complaints: Vec<(&Receiver, Complaint)> = Vec::new();
    for attempt in 0..3 {
        let again = match attempt {
            0 => receivers.iter().collect(),
            _ => complaints.drain(..).map(|(receiver, _)| receiver).collect(),
        };
        complaints = fetch_all(&lab, &switch, &packed, again);
    }
    for (receiver, complaint) in complaints {
        match complaint {
            Complaint::Slow(why) => panic!("{}: in the end {why}", receiver.name),
            Complaint::Inconclusive(why) => lab::skip(TEST, &format!("{}: in the end {why}", receiver.name)),
        }
    }
    assert_eq!(s.snmp6().fragments(), 0);
}

/// What to say against a get.
enum Complaint {
    Slow(String),
    Inconclusive(String),
}

impl Outcome {
    fn complaint(&self, receiver: &Receiver, softnet_drops: u64) -> Option<Complaint> {
        if self.taken <= receiver.bar && self.over_ideal <= receiver.bar + TIME {
            return None; // whatever the machine lost besides
        }
        let lost = self.lost_by_the_machine + softnet_drops;
        if lost > 0 {
            return Some(Complaint::Inconclusive(format!("the machine lost {lost} packets")));
        }
        let Self { taken, over_ideal, got, .. } = self;
        Some(Complaint::Slow(format!("{taken:.3} x the packets and {over_ideal:.3} x the time, {got:?}")))
    }
}

/// The server's host, the switch and the receivers.
fn network(lab: &Lab) -> (Host, Host, Vec<Receiver>) {
    let address = |i: usize| format!("fd00:6::1:{i:x}/64");
    let receiver = |(i, (name, link, bar)): (usize, (&'static str, Link, f64))| {
        let port = if let Link::Bad(_) = link { format!("w{i}") } else { format!("p{}", i + 1) };
        Receiver { name, link, bar, host: lab.host(&format!("c{i}")), port, wire: None }
    };
    let mut receivers: Vec<_> = links().into_iter().enumerate().map(receiver).collect();
    let s = lab.host("s");
    let source = format!("{SOURCE}/64");
    let on_cables = receivers.iter().enumerate().filter(|(_, r)| !matches!(r.link, Link::Bad(_)));
    let addresses: Vec<_> = on_cables.clone().map(|(i, _)| address(i)).collect();
    let mut members = vec![(&s, &*source)];
    members.extend(on_cables.zip(&addresses).map(|((_, receiver), address)| (&receiver.host, &**address)));
    let switch = lab.lan(&members, 1280);

    for (i, Receiver { link, host, port, wire, .. }) in receivers.iter_mut().enumerate() {
        if let Link::Bad(_) = link {
            *wire = Some(lab.wire_between(&switch, port, host, "eth0", 1280));
            switch.ip(&format!("link set {port} master br0"));
            host.ip(&format!("addr add {} dev eth0 nodad", address(i)));
        }
    }
    (s, switch, receivers)
}

/// Lets all of these get the object at once, and returns those that give reason to complain.
fn fetch_all<'a>(
    lab: &Lab,
    switch: &Host,
    packed: &Packed,
    receivers: Vec<&'a Receiver>,
) -> Vec<(&'a Receiver, Complaint)> {
    let before = lab::softnet_drops();
    let outcomes: Vec<_> = thread::scope(|scope| {
        let fetch = |receiver| scope.spawn(move || fetch(lab, switch, receiver, packed));
        let threads: Vec<_> = receivers.iter().map(|receiver| fetch(*receiver)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let drops = lab::softnet_drops() - before;
    let judged = receivers.into_iter().zip(outcomes);
    judged.filter_map(|(receiver, outcome)| Some((receiver, outcome.complaint(receiver, drops)?))).collect()
}

/// Joins at a random moment, gets the object, and prints a row.
fn fetch(lab: &Lab, switch: &Host, receiver: &Receiver, packed: &Packed) -> Outcome {
    let Receiver { name, link, host, port, wire, .. } = receiver;
    thread::sleep(scene::random_moment(Duration::from_secs(2)));
    match link {
        Link::Lossy(loss) => host.loss("eth0", *loss),
        Link::Slow => switch.limit(port, SLOW as u64, 32 << 10),
        Link::Bad(impairment) => wire.iter().for_each(|wire| wire.set(*impairment)),
    }
    let buffer_losses = host.snmp6().buffer_losses();
    let out = lab.file(&format!("got-{}", host.name()));
    let client = scene::get(host, &[SOURCE], packed, &out, &[]);
    let got = scene::arrive(&client, packed, &out, LIMIT);
    std::fs::remove_file(&out).unwrap();

    // What this link did during this get: of bursts there are few, and no two gets meet the same.
    let counts = wire.as_ref().map(Wire::counts).unwrap_or_default();
    let (lost, loss) = match link {
        Link::Lossy(_) => {
            let count = host.loss_count("eth0");
            (count.lost, count.lost as f64 / count.seen as f64)
        }
        Link::Slow => (switch.limit_drops(port), 1.0 - SLOW / RATE.1),
        // A damaged packet is worth as little as a lost one.
        Link::Bad(_) => {
            (counts.lost + counts.flipped, (counts.lost + counts.flipped) as f64 / counts.seen as f64)
        }
    };
    let over_ideal = got.over_ideal(RATE.1, loss);
    // Of what came to the socket, the share that came whole and for the first time.
    let fresh = match link {
        Link::Bad(Impairment { flip, .. }) => {
            let whole = counts.seen - counts.lost - counts.flipped;
            let damaged = if flip.is_some_and(|flip| flip.mend_checksum) { counts.flipped } else { 0 };
            whole as f64 / (whole + damaged + counts.duplicated) as f64
        }
        _ => 1.0,
    };
    let taken = got.packets_per_symbol() * fresh;
    let Done { packets_lost, packets_duplicate, packets_rejected, .. } = got.done;
    let (rate, twice) = (RATE.0, counts.duplicated);
    let link_did = format!("{lost} lost and {twice} doubled by the link");
    let client_saw = format!("{packets_lost} missed and {packets_duplicate} useless to the client");
    let ratio = format!("{over_ideal:.3} x ideal, {taken:.3} x the packets");
    got.row(name, &format!("{rate}, p = {loss:.3}: {ratio}, {link_did}, {client_saw}"));
    // Of what reached the client: what the link did after its last packet is none of its business.
    let share = |count: u64| count as f64 / got.done.packets_received as f64;
    match link {
        Link::Bad(Impairment { flip: Some(Flip { mend_checksum: true, .. }), .. }) => {
            // Not all 5 %: damage to the first fields makes a packet another bundle's, or another protocol's.
            assert!((0.03..0.055).contains(&share(packets_rejected)), "{name}: {counts:?} {got:?}");
        }
        _ => assert_eq!(packets_rejected, 0, "{name}: {counts:?} {got:?}"),
    }
    if twice > 0 {
        assert!(share(packets_duplicate) > 0.04, "{name}: {counts:?} {got:?}");
    }
    assert!(over_ideal > 0.95, "{name}: nothing is that fast: {over_ideal} {got:?}");
    assert_eq!(host.snmp6().fragments(), 0);
    let lost_by_the_machine = host.snmp6().buffer_losses() - buffer_losses + counts.overrun;
    Outcome { got, taken, over_ideal, lost_by_the_machine }
}
