//! Pace: does a channel keep its rate, and how much does it send at once?
//!
//! A packet counts at the moment at which it leaves the server's interface. The burst is what a token bucket of the
//! channel's rate would have to hold: the most by which any stretch of time carried more than the rate allows. A train
//! counts with all its segments at once. Whoever had no CPU for some milliseconds has to make up for it, and carries more
//! than the rate for as long; so there is a second figure, of a queue before a link of twice the rate, which is how fast
//! the server makes up.

use crate::{Bench, MTU, called, waited_for_cpu};
use carousel_proto::units::show_rate;
use carousel_tests::bars::{Bar, Bars, Figure, Run};
use carousel_tests::lab::{Capture, Frame, Host};
use carousel_tests::scene::{self, PORT, Packed};
use carousel_tests::{bins, lab};
use std::net::Ipv6Addr;
use std::thread;
use std::time::Duration;

/// Ethernet, and IPv6 with UDP.
const ETHERNET_LEN: usize = 14;
const HEADERS: usize = 48;
/// Per cent by which a rate may be wrong.
const OFF: f64 = 1.0;
/// Of the time measured, so much may the server have waited for a CPU; longer waits make bursts that are not its own.
const WAITED: f64 = 0.01;
/// How fast, in times its rate, a server makes up for the time in which it had no CPU.
const CATCHING_UP: f64 = 2.0;

/// Those that need no CPU to speak of run together, each of the others alone.
const SLOW: &[u64] = &[64_000, 1_000_000, 10_000_000];
const FAST: [&[u64]; 2] = [&[100_000_000], &[1_000_000_000]];

pub fn measure(bench: &Bench, bars: &mut Bars) {
    let packed = bench.pack(bench.pick(64, 16) << 20);
    let mut figures = Vec::new();
    for (rates, offload) in [(SLOW, false)]
        .into_iter()
        .chain([false, true].into_iter().flat_map(|offload| FAST.map(|rates| (rates, offload))))
    {
        figures.extend(together(bench, &packed, rates, offload));
    }
    bars.table("Pace: rates and bursts, as packets leave the server", &figures);
}

/// The figures of channels that one server sends at the same time.
fn together(bench: &Bench, packed: &Packed, rates: &[u64], offload: bool) -> Vec<Figure> {
    let (s, _c) = bench.cable(offload);
    let mut figures: Vec<[Figure; 3]> = rates
        .iter()
        .map(|&rate| {
            let name = |what: &str| format!("{what} at {}, {}", show_rate(rate as f64), called(offload));
            [
                Figure::new(name("off its rate"), "%", Bar::AtMost(OFF)),
                Figure::new(name("burst"), "ms of the rate", Bar::AtMost(most_burst(rate as f64))),
                Figure::new(
                    name("queue at twice the rate"),
                    "ms of the rate",
                    Bar::AtMost(most_burst(rate as f64)),
                ),
            ]
        })
        .collect();
    let mut waits = Vec::new();
    for _ in 0..bench.runs {
        let (channels, waited, clean) = run(bench, &s, packed, rates);
        waits.push(waited);
        for (channel, [off, burst, queue]) in channels.iter().zip(&mut figures) {
            if channel.packets < 3 {
                off.note("nothing came");
                continue;
            }
            for (figure, value, bar) in [
                (off, channel.off() * 100.0, OFF),
                (burst, channel.burst.most * 8e3 / channel.rate, most_burst(channel.rate)),
                (queue, channel.queue.most * 8e3 / channel.rate, most_burst(channel.rate)),
            ] {
                // Waits can only make it worse: what is good in spite of them is good.
                let excused = value > bar && waited > WAITED;
                figure.add(if excused { Run::Spoilt } else { clean }, value);
            }
        }
    }
    let most = waits.iter().copied().fold(0.0, f64::max);
    for [_, burst, _] in &mut figures {
        burst.note(format!("the server waited for a CPU for up to {:.2} % of the time", most * 100.0));
    }
    figures.into_iter().flatten().collect()
}

/// The bar of a burst in ms of the rate: 2, or one packet that follows one which was up to 1 ms late.
fn most_burst(rate: f64) -> f64 {
    (f64::from(MTU) * 8e3 / rate + 1.0).max(2.0)
}

/// One run: what left on each channel, and which part of the time the server had no CPU.
fn run(bench: &Bench, s: &Host, packed: &Packed, rates: &[u64]) -> (Vec<Channel>, f64, Run) {
    let group = |i: usize| format!("ff3e::8000:{}", i + 1);
    let port = PORT.to_string();
    let mut line =
        scene::args(&[&bins::server(), &"run", &packed.bundle, &"--interface", &"eth0", &"--port", &port]);
    for (i, rate) in rates.iter().enumerate() {
        line.extend(scene::args(&[&"--group", &format!("{}@{rate}", group(i))]));
    }
    let server = s.spawn(&line);
    scene::wait_sending(s, &server);
    let channels: Vec<Channel> = rates
        .iter()
        .enumerate()
        .map(|(i, &rate)| Channel::new(group(i).parse().unwrap_or(Ipv6Addr::UNSPECIFIED), rate as f64))
        .collect();
    let before = (waited_for_cpu(&server), lab::softnet_drops());
    let capture = Capture::start(s, "eth0", channels, |channels: &mut Vec<Channel>, frame| {
        if let Some(channel) =
            channels.iter_mut().find(|channel| frame.head[38..54] == channel.group.octets())
        {
            channel.see(&frame);
        }
    });
    let time = Duration::from_secs(bench.pick(10, 2));
    thread::sleep(time); // what is measured, not a wait for anything
    let (channels, missed) = capture.finish();
    let waited = (waited_for_cpu(&server) - before.0) as f64 / time.as_nanos() as f64;
    let clean = if missed == 0 && lab::softnet_drops() == before.1 { Run::Clean } else { Run::Spoilt };
    (channels, waited, clean)
}

/// What left on one channel.
struct Channel {
    group: Ipv6Addr,
    /// Bit/s of IPv6 packets.
    rate: f64,
    packets: u64,
    /// Bytes after the first packet, from its time to the last one's, in nanoseconds since 1970.
    bytes: u64,
    first: u64,
    last: u64,
    /// What a token bucket of the rate would have to hold …
    burst: Bucket,
    /// … and a queue before a link that is [`CATCHING_UP`] as fast.
    queue: Bucket,
}

/// Fills with every packet and drains at a rate.
#[derive(Default)]
struct Bucket {
    level: f64,
    most: f64,
}

impl Bucket {
    fn fill(&mut self, bytes: f64, drained: f64) {
        self.level = (self.level - drained).max(0.0) + bytes;
        self.most = self.most.max(self.level);
    }
}

impl Channel {
    fn new(group: Ipv6Addr, rate: f64) -> Self {
        Self {
            group,
            rate,
            packets: 0,
            bytes: 0,
            first: 0,
            last: 0,
            burst: Bucket::default(),
            queue: Bucket::default(),
        }
    }

    fn see(&mut self, frame: &Frame<'_>) {
        let payload = frame.len - ETHERNET_LEN - HEADERS;
        let segment = usize::try_from(MTU).unwrap_or(usize::MAX) - HEADERS;
        let segments = payload.div_ceil(segment);
        let bytes = payload + segments * HEADERS;
        let mut drained = 0.0;
        if self.packets == 0 {
            self.first = frame.at;
        } else {
            self.bytes += bytes as u64;
            drained = frame.at.saturating_sub(self.last) as f64 * self.rate / 8e9;
        }
        self.burst.fill(bytes as f64, drained);
        self.queue.fill(bytes as f64, drained * CATCHING_UP);
        self.packets += segments as u64;
        self.last = self.last.max(frame.at);
    }

    /// How far from its rate, as a fraction of that.
    fn off(&self) -> f64 {
        let rate = self.bytes as f64 * 8e9 / self.last.saturating_sub(self.first).max(1) as f64;
        (rate / self.rate - 1.0).abs()
    }
}
