//! The choice of the rate by the programs themselves: ladders, bottlenecks, neighbours. What it looks like over time is
//! drawn beside the figures: `choice-hosts.svg`, `choice-twenty.svg`.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{Host, Lab, Loss, Running, Switch, reach, softnet_drops, until};
use carousel_tests::plot::{Plot, Series};
use carousel_tests::scene::{self, Packed, SOURCE, args};
use carousel_tests::topology::Switched;
use carousel_tests::{bins, figures, lab};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const GROUPS: [&str; 4] = ["ff3e::8000:1", "ff3e::8000:2", "ff3e::8000:3", "ff3e::8000:4"];
/// How many times the base rate the levels up to each have together.
const TIMES: [f64; 4] = [1.0, 2.0, 4.0, 8.0];
/// bit/s of the lowest level.
const BASE: f64 = 1e6;
const LIMIT: Duration = Duration::from_secs(60);
/// In this time a flow of TCP begins, or it does not.
const CONNECT: Duration = Duration::from_secs(10);
/// For so long a slow host does not come round to its packets, and then it does for as long.
const PAUSE: Duration = Duration::from_secs(1);
/// Room for some 137 packets in each socket: in a pause levels 0 and 1 bring 98 each, level 2 brings 195. The pause is
/// long because a machine that is busy makes it longer: by less than 0.4 s, or there is no room for level 1.
const ROOM: &str = "154KiB";

/// Packs an object and serves it as a ladder.
fn serve_ladder(lab: &Lab, host: &Host, size: u64) -> (Packed, Running) {
    let packed = scene::pack(lab.dir(), size, &[]);
    let config = lab.file("server.toml");
    let text = format!(
        "interface = \"eth0\"\nport = {}\n[[session]]\nbundle = \"F.carousel\"\ntiers = \"stacked\"\n\
         groups = {GROUPS:?}\nrate = \"{BASE}\"\n",
        scene::PORT
    );
    fs::write(&config, text).unwrap();
    let server = host.spawn(&args(&[&bins::server(), &"run", &"--config", &config]));
    scene::wait_sending(host, &server);
    (packed, server)
}

/// The options that name the groups of the levels above the lowest, up to `top`.
fn up_to(top: usize) -> Vec<&'static str> {
    GROUPS[1..=top].iter().flat_map(|group| ["--group", group]).collect()
}

#[test]
fn every_level_of_the_ladder_wastes_nothing() {
    let Some(lab) = Lab::enter("every_level_of_the_ladder_wastes_nothing") else { return };
    let net = Switched::new(&lab);
    let (packed, server) = serve_ladder(&lab, &net.s, 8 << 20);
    let get = |top: usize, attempt: usize| {
        let out = lab.file(&format!("got-{top}-{attempt}"));
        (scene::get(&net.r[top], &[SOURCE], &packed, &out, &up_to(top)), out)
    };
    let is_frugal = |top: usize, (client, out): &(Running, PathBuf)| {
        let got = scene::arrive(client, &packed, out, Duration::from_secs(120));
        let time = got.over_ideal(BASE * TIMES[top], 0.0);
        // Most of them come while the last block is decoded: this takes a time, not a share.
        let per_second = BASE * TIMES[top] / 8.0 / scene::PACKET_BYTES;
        let duplicates = got.done.packets_duplicate as f64 / per_second;
        figures::row(
            &format!("levels 0 to {top}"),
            &[
                ("packets/symbol", &format!("{:.4}", got.packets_per_symbol())),
                ("duplicates", &got.done.packets_duplicate),
                ("in", &format!("{:.0} ms", duplicates * 1000.0)),
                ("lost", &got.done.packets_lost),
                ("start to exit", &format!("{:.2} s", got.exit.seconds)),
                ("of the ideal time", &format!("{time:.3}")),
            ],
        );
        assert!(server.is_alive(), "{server}");
        // The packets are the bar. Of the time: nothing waits for long; the programs' start and end and the last
        // block's decoding take seconds where the CPU is somebody else's.
        assert!(time <= 1.06 + 4.0 / got.exit.seconds, "{got:?}");
        got.packets_per_symbol() <= 1.04
    };
    let clients: Vec<_> = (0..net.r.len()).map(|top| get(top, 0)).collect();
    for (top, client) in clients.iter().enumerate() {
        // If the last block waits 0.2 s for a CPU, this is what the highest level brings meanwhile; but a level that
        // wastes does so each time.
        let frugal = is_frugal(top, client) || (1..4).any(|attempt| is_frugal(top, &get(top, attempt)));
        assert!(frugal, "levels 0 to {top}: each time more than 1.04 packets for a symbol: {}", client.0);
    }
}

/// How long the clients choose, and from when on they must have chosen.
const SPAN: f64 = 92.0;
const SETTLED: f64 = 60.0;
/// In this time the group still comes after it was left: the switch asks who else wants it.
const LEAVE_LATENCY: f64 = 0.2;

/// What a client logged.
struct Course {
    /// Seconds, the level, and whether it was joined.
    steps: Vec<(f64, usize, bool)>,
    /// Seconds and the tier kept.
    kept: Vec<(f64, Option<usize>)>,
}

impl Course {
    fn new(client: &Running) -> Self {
        let (mut steps, mut kept) = (Vec::new(), Vec::new());
        for line in client.stdout().lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            let seconds = event["seconds"].as_f64();
            let tier = event["tier"].as_u64().map(|tier| tier as usize);
            match (event["event"].as_str(), seconds, tier) {
                (Some(step @ ("join" | "leave")), Some(at), Some(tier)) => {
                    steps.push((at, tier, step == "join"));
                }
                (Some("progress"), Some(at), tier) => kept.push((at, tier)),
                _ => {}
            }
        }
        Self { steps, kept }
    }

    /// Seconds until this tier was kept for the first time.
    fn reached(&self, tier: usize) -> f64 {
        self.kept.iter().find(|(_, kept)| *kept == Some(tier)).map_or(f64::INFINITY, |(at, _)| *at)
    }

    /// Whether nothing else was kept from a moment on.
    fn keeps(&self, tier: usize, from: f64) -> bool {
        let mut after = self.kept.iter().filter(|(at, _)| *at >= from).peekable();
        after.peek().is_some() && after.all(|(_, kept)| *kept == Some(tier))
    }

    /// When levels above this one were joined, and for how long each.
    fn above(&self, tier: usize) -> Vec<(f64, f64)> {
        let joins = self.steps.iter().enumerate().filter(|(_, step)| step.1 > tier && step.2);
        joins
            .map(|(n, &(at, level, _))| {
                let left = self.steps[n..].iter().find(|step| step.1 == level && !step.2);
                (at, left.map_or(SPAN, |step| step.0) - at)
            })
            .collect()
    }

    /// The highest level that is joined, over time.
    fn series(&self, name: &str) -> Series {
        let mut joined = [false; GROUPS.len()];
        let mut points = vec![(0.0, None)];
        for &(at, level, join) in &self.steps {
            joined[level] = join;
            points.push((at, joined.iter().rposition(|joined| *joined).map(|level| level as f64)));
        }
        points.push((SPAN, None));
        Series { name: name.to_owned(), points }
    }
}

fn listed(joins: &[(f64, f64)]) -> String {
    let joins: Vec<String> = joins.iter().map(|(at, long)| format!("{at:.0} s ({long:.1} s)")).collect();
    joins.join(", ")
}

/// Seconds of failed joins after the clients must have settled.
fn late(failed: &[(f64, f64)]) -> f64 {
    failed
        .iter()
        .fold(0.0, |sum, (at, long)| sum + ((at + long + LEAVE_LATENCY).min(SPAN) - at.max(SETTLED)).max(0.0))
}

/// Failed joins above the tier that fits: what they cost in the run, and what they will in half an hour, in which the
/// pauses between them go on to double, up to ten minutes.
fn wasted(failed: &[(f64, f64)]) -> (f64, f64) {
    let Some(&(last, _)) = failed.last() else { return (0.0, 0.0) };
    let cost = |at: &(f64, f64)| at.1 + LEAVE_LATENCY;
    let late = late(failed);
    let mean = failed.iter().map(cost).sum::<f64>() / failed.len() as f64;
    // Where levels are joined for good, there are no pauses.
    let pause = failed.windows(2).last().map_or(16.0, |pair| pair[1].0 - pair[0].0 - pair[0].1);
    let mut pause = pause.max(1.0);
    let (mut at, mut expected) = (last, late);
    while at < 1800.0 {
        pause = (pause * 2.0).min(600.0);
        at += pause;
        expected += if (SETTLED..1800.0).contains(&at) { mean } else { 0.0 };
    }
    (late / (SPAN - SETTLED), expected / (1800.0 - SETTLED))
}

/// A flow of TCP without end from one host to another, until this is dropped.
struct Bulk {
    delivered: Arc<AtomicU64>,
    sender: Option<TcpStream>,
}

impl Bulk {
    /// Where it does not even get a connection, nothing is ever delivered.
    fn start(from: &Host, to: &Host, addr: Ipv6Addr) -> Self {
        let listener = to.within(|| TcpListener::bind((addr, 0))).unwrap();
        let goal = listener.local_addr().unwrap();
        let delivered = Arc::new(AtomicU64::new(0));
        let count = delivered.clone();
        // In this direction a connection may be there long before the other end hears of it.
        thread::spawn(move || {
            let (mut receiver, _) = listener.accept().unwrap();
            let mut buffer = [0; 1 << 16];
            while let Ok(bytes @ 1..) = receiver.read(&mut buffer) {
                count.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        });
        let sender = from.within(|| TcpStream::connect_timeout(&goal, CONNECT)).ok();
        if let Some(mut end) = sender.as_ref().map(|sender| sender.try_clone().unwrap()) {
            thread::spawn(move || while end.write_all(&[0; 1 << 14]).is_ok() {});
        }
        Self { delivered, sender }
    }

    fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.sender.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
    }
}

/// A switch with the server and hosts that are plugged in one after the other.
struct Net<'a> {
    lab: &'a Lab,
    switch: Switch,
    s: Host,
    count: u16,
}

impl Net<'_> {
    /// Another host, and behind which rate, if any: a queue of 80 ms, as routers have it.
    fn host(&mut self, name: &str, times: Option<f64>) -> (Host, Ipv6Addr) {
        let host = self.lab.host(name);
        self.count += 1;
        let addr = Ipv6Addr::new(0xfd00, 6, 0, 0, 0, 0, 1, self.count);
        self.switch.plug(&host, "eth0", &format!("{addr}/64"));
        reach(&host, &addr.to_string(), &self.s, SOURCE);
        if let Some(times) = times {
            let rate = times * BASE;
            self.switch.host().limit(&self.switch.port(&host), rate as u64, (rate / 8.0 * 0.08) as u64);
        }
        (host, addr)
    }
}

#[test]
fn everybody_gets_what_fits() {
    let test = "everybody_gets_what_fits";
    let Some(lab) = Lab::enter(test) else { return };
    let (switch, s) = (lab.switch("sw", 1280), lab.host("s"));
    switch.plug(&s, "eth0", &format!("{SOURCE}/64"));
    let mut net = Net { lab: &lab, switch, s, count: 0 };
    let necks = [(1.5, 0), (3.0, 1), (6.0, 2)]
        .map(|(times, tier)| (times, tier, net.host(&format!("x{:.0}", times * 10.0), Some(times)).0));
    let (radio, _) = net.host("radio", None);
    radio.loss("eth0", Loss::PerMille(100));
    let (slow, _) = net.host("slow", None);
    let shared = [3.0, 4.2].map(|times| (times, net.host(&format!("tcp{:.0}", times * 10.0), Some(times))));
    let (crowd, _) = net.host("crowd", Some(3.0));
    let (t, _) = net.host("t", None);
    // The same on every machine, and one that gives way to loss: BBR would not.
    t.sysctl("net/ipv4/tcp_congestion_control", "reno");
    net.switch.query();
    net.switch.settle();
    let (packed, server) = serve_ladder(&lab, &net.s, 96 << 20);

    let drops = softnet_drops();
    let began = Instant::now();
    let get = |host: &Host, n: usize, more: &[&str]| {
        let out = lab.file(&format!("got-{}-{n}", host.name()));
        let more = [&up_to(3)[..], &["--tier", "stacked", "--quiet"], more].concat();
        scene::get(host, &[SOURCE], &packed, &out, &more)
    };
    let alone = necks.each_ref().map(|(_, _, host)| get(host, 0, &[]));
    let on_radio = get(&radio, 0, &[]);
    let on_slow = get(&slow, 0, &["--rcvbuf", ROOM]);
    let beside = shared.each_ref().map(|(_, (host, _))| get(host, 0, &[]));
    let twenty: Vec<_> = (0..20).map(|n| get(&crowd, n, &[])).collect();
    let sleep_until = |seconds| {
        let left = Duration::from_secs_f64(seconds).saturating_sub(began.elapsed());
        thread::sleep(left);
    };
    let tcp = thread::scope(|scope| {
        scope.spawn(|| {
            until("the slow client to join", LIMIT, || !on_slow.stdout().is_empty());
            // It ends by itself: a failure beside it must not wait for ever.
            while on_slow.is_alive() && (began.elapsed() + 2 * PAUSE).as_secs_f64() < SPAN {
                for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
                    on_slow.kill(signal);
                    thread::sleep(PAUSE);
                }
            }
        });
        sleep_until(20.0);
        let bulks = shared.each_ref().map(|(_, (host, addr))| Bulk::start(&t, host, *addr));
        sleep_until(45.0);
        let (before, at) = (bulks.each_ref().map(Bulk::delivered), Instant::now());
        sleep_until(SPAN);
        let after = bulks.each_ref().map(Bulk::delivered);
        let seconds = at.elapsed().as_secs_f64();
        [0, 1].map(|n| (after[n] - before[n]) as f64 * 8.0 / seconds)
    });
    let course = |client: &Running| {
        client.kill(Signal::SIGTERM);
        client.finish(LIMIT);
        Course::new(client)
    };
    let mut faults = String::new();
    let mut demand = |fulfilled: bool, what: String, client: &Running| {
        if !fulfilled {
            let _ = write!(faults, "\n*** {what}\n{client}");
        }
    };
    let mut drawn = Vec::new();

    for ((times, tier, _), client) in necks.iter().zip(&alone) {
        let course = course(client);
        let name = format!("bottleneck of {times} × base");
        let reached = course.reached(*tier);
        let failed: Vec<_> = course.above(*tier);
        let (share, expected) = wasted(&failed);
        figures::row(
            &name,
            &[
                ("tier", tier),
                ("kept after", &format!("{reached:.0} s")),
                ("failed joins at (for)", &listed(&failed)),
                ("of the time from 60 s on", &format!("{:.1} %", share * 100.0)),
                ("of half an hour, expected", &format!("{:.2} %", expected * 100.0)),
            ],
        );
        demand(
            reached <= SETTLED && course.keeps(*tier, SETTLED),
            format!("{name}: not tier {tier}"),
            client,
        );
        demand(!failed.is_empty(), format!("{name}: it does not try"), client);
        let short = failed.iter().all(|(_, long)| *long < 5.0);
        // The pauses double, give or take a quarter, and a few seconds of weather.
        let rarer = failed.windows(3).all(|w| w[2].0 - w[1].0 > w[1].0 - w[0].0);
        demand(short && rarer && expected < 0.02, format!("{name}: failed joins {failed:?}"), client);
        drawn.push(course.series(&name));
    }

    let on_radio_course = course(&on_radio);
    let reached = on_radio_course.reached(3);
    let lost = radio.loss_count("eth0");
    figures::row(
        "10 % random loss",
        &[
            ("tier", &3),
            ("kept after", &format!("{reached:.0} s")),
            ("lost", &format!("{:.1} %", lost.lost as f64 / lost.seen as f64 * 100.0)),
        ],
    );
    let high = on_radio_course.kept.iter().filter(|(at, _)| *at >= SETTLED).all(|(_, tier)| *tier >= Some(2));
    demand(reached <= SPAN && high, "10 % random loss: does not climb, or collapses".into(), &on_radio);
    drawn.push(on_radio_course.series("10 % random loss"));

    let slow_course = course(&on_slow);
    let (failed, full) = (slow_course.above(1), slow.snmp6().buffer_losses());
    figures::row(
        "full socket buffer",
        &[
            ("tier", &1),
            ("kept after", &format!("{:.0} s", slow_course.reached(1))),
            ("failed joins at (for)", &listed(&failed)),
            ("dropped by the socket", &full),
        ],
    );
    // A cap holds for 45 s at least; what is lost in the network is tried again after 12 s.
    let capped = !failed.is_empty() && failed.windows(2).all(|w| w[1].0 - w[0].0 > 45.0);
    demand(full > 0 && slow_course.keeps(1, SETTLED) && capped, format!("full buffer: {failed:?}"), &on_slow);
    drawn.push(slow_course.series("full socket buffer"));

    for (n, (times, _)) in shared.iter().enumerate() {
        let (course, fair) = (course(&beside[n]), times * BASE / 2.0);
        let name = format!("TCP behind {times} × base");
        let tier = course.kept.last().and_then(|(_, tier)| *tier);
        figures::row(
            &name,
            &[
                ("tier", &tier.map_or("none".to_owned(), |tier| tier.to_string())),
                ("TCP (Reno)", &format!("{:.2} Mbit/s", tcp[n] / 1e6)),
                ("of its fair share", &format!("{:.0} %", tcp[n] / fair * 100.0)),
            ],
        );
        demand(tcp[n] >= 0.1 * fair, format!("{name}: {:.0} bit/s", tcp[n]), &beside[n]);
        drawn.push(course.series(&name));
    }

    let courses: Vec<_> = twenty.iter().map(course).collect();
    let agreed = courses.iter().filter(|course| course.keeps(1, SPAN - 20.0)).count();
    let attempts: Vec<_> = courses.iter().flat_map(|course| course.above(1)).collect();
    let last = courses.iter().map(|course| course.reached(1)).fold(0.0, f64::max);
    let late = late(&attempts);
    figures::row(
        "twenty behind 3 × base",
        &[
            ("tier", &1),
            ("kept after", &format!("{last:.0} s (the last)")),
            ("failed joins at (for)", &format!("{} of all", attempts.len())),
            ("of the time from 60 s on", &format!("{:.1} % each", late / (SPAN - SETTLED) / 20.0 * 100.0)),
            ("agree in the last 20 s", &agreed),
        ],
    );
    for (client, course) in twenty.iter().zip(&courses) {
        demand(course.keeps(1, SPAN - 20.0), "one of twenty does not agree".into(), client);
    }

    let (x, y) = ("time in s", "highest level joined");
    let plot = |title, apart, series| Plot { title, x, y, apart, series };
    plot("Stacked tiers of 1, 1, 2, 4 Mbit/s", 4.0, drawn).write("choice-hosts");
    let series = (1..).zip(&courses).map(|(n, course)| course.series(&format!("client {n}"))).collect();
    plot("Twenty clients behind 3 Mbit/s", 2.5, series).write("choice-twenty");

    assert!(server.is_alive(), "{server}");
    if !faults.is_empty() && softnet_drops() != drops {
        return lab::skip(test, "inconclusive: the machine dropped packets");
    }
    assert!(faults.is_empty(), "{faults}");
}
