//! What sending costs: the server that idles along, and the server at speed beside UFTP's sender.

use crate::uftp::Uftp;
use crate::{Bench, called, ip_bytes, of_threads, watched};
use carousel_tests::bars::{Bar, Bars, Figure};
use carousel_tests::lab::{Host, Running};
use carousel_tests::scene::{self, Packed};
use nix::time::{ClockId, clock_gettime};
use std::fs;
use std::net::{Ipv6Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

const GB: f64 = 1e9;
/// Nobody has joined it.
const NOBODYS: Ipv6Addr = Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 0, 0x8000, 0xffff);

/// A server at 1 Mbit/s.
pub fn idle(bench: &Bench, bars: &mut Bars) {
    let (s, _c) = bench.cable(false);
    let packed = bench.pack(16 << 20);
    let server = scene::serve(&s, &packed, "1M", &[]);
    scene::wait_sending(&s, &server);
    let mut cpu = Figure::new("CPU at 1 Mbit/s", "% of a core", Bar::AtMost(0.5));
    let mut wakes = Figure::new("wake-ups at 1 Mbit/s", "/s", Bar::None);
    for _ in 0..bench.runs {
        let (run, spent) = watched(|| spend(&s, &server, Duration::from_secs(bench.pick(5, 3))));
        cpu.add(run, spent.cpu / spent.seconds * 100.0);
        wakes.add(run, spent.wakes / spent.seconds);
    }
    wakes.note("83 packets a second");
    drop(server);
    let mut bare = Figure::new("the least: a loop that sleeps and sends", "% of a core", Bar::None);
    bare.note("83 packets a second from one buffer, by clock_nanosleep and send");
    for _ in 0..bench.runs {
        let (run, share) = watched(|| sleep_and_send(&s, bench.pick(5, 3)));
        bare.add(run, share * 100.0);
    }
    bars.table("Idling", &[cpu, bare, wakes]);
}

/// A server at 100 Mbit/s and at 1 Gbit/s beside UFTP's sender.
pub fn measure(bench: &Bench, bars: &mut Bars) {
    let mut figures = Vec::new();
    for offload in [false, true] {
        let (s, c) = bench.cable(offload);
        let uftp = Uftp::start(bench, bars, &s, &c);
        for (rate, size) in [(100, bench.pick(50, 25)), (1000, bench.pick(200, 100))] {
            let packed = bench.pack(size << 20);
            figures.extend(at_rate(bench, &s, uftp.as_ref(), &packed, rate, called(offload)));
        }
    }
    bars.table("CPU time of sending, per GB of IP packets", &figures);
}

/// In turns, so that what the machine does besides hits both.
fn at_rate(
    bench: &Bench,
    s: &Host,
    uftp: Option<&Uftp>,
    packed: &Packed,
    mbit: i64,
    how: &str,
) -> Vec<Figure> {
    let name = |what: &str| format!("{what} at {mbit} Mbit/s, {how}");
    let mut ours = Figure::new(name("carousel-server"), "s/GB", Bar::None);
    let mut theirs = Figure::new(name("uftp"), "s/GB", Bar::None);
    let mut ratio = Figure::new(name("ratio"), "", Bar::AtMost(0.2));
    let mut memory = Figure::new(name("memory beside the mapped file"), "MiB", Bar::AtMost(16.0));
    let mut reached = Figure::new(name("rate that was reached"), "Mbit/s", Bar::None);
    for _ in 0..bench.runs {
        let (run, spent) = {
            let server = scene::serve(s, packed, &format!("{mbit}M"), &[]);
            scene::wait_sending(s, &server);
            let result = watched(|| spend(s, &server, Duration::from_secs(bench.pick(3, 2))));
            memory = memory.with([own_memory(&server)]);
            result
        };
        ours.add(run, spent.cpu / spent.ip_bytes * GB);
        reached.add(run, spent.ip_bytes * 8e-6 / spent.seconds);
        match uftp.map(|uftp| uftp.send(packed, mbit * 1000)) {
            Some(Some(sent)) => {
                theirs.add(sent.run, sent.sender.cpu_seconds / sent.ip_bytes * GB);
                ratio.add(run, spent.cpu / sent.sender.cpu_seconds * sent.ip_bytes / spent.ip_bytes);
            }
            Some(None) => theirs.note("a file did not arrive whole"),
            None => {}
        }
    }
    vec![ours, theirs, ratio, reached, memory]
}

/// What the machine takes for nothing but waking up and handing a packet over, 83 times a second: share of a core.
fn sleep_and_send(s: &Host, seconds: u64) -> f64 {
    s.within(|| {
        let socket = UdpSocket::bind("[::]:0").unwrap_or_else(|e| panic!("a socket: {e}"));
        socket.connect((NOBODYS, scene::PORT)).unwrap_or_else(|e| panic!("a route to the group: {e}"));
        let (packet, gap) = ([0; 1452], Duration::from_micros(12_000));
        let (began, spent) = (Instant::now(), thread_nanos());
        for number in 1..=seconds * 1_000_000 / 12_000 {
            thread::sleep((began + gap * number as u32).saturating_duration_since(Instant::now()));
            let _ = socket.send(&packet);
        }
        (thread_nanos() - spent) as f64 / began.elapsed().as_nanos() as f64
    })
}

/// What a server did in a stretch of time.
struct Spent {
    seconds: f64,
    cpu: f64,
    wakes: f64,
    ip_bytes: f64,
}

/// CPU time of this thread.
fn thread_nanos() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap_or_else(|e| panic!("a clock: {e}"));
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Watches a server for this long.
fn spend(s: &Host, server: &Running, time: Duration) -> Spent {
    let wakes = || {
        of_threads(server, "status", |text| {
            text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
        })
    };
    let now = || (Instant::now(), server.cpu_nanos(), wakes(), s.traffic("eth0"));
    let before = now();
    thread::sleep(time); // what is measured, not a wait for anything
    let after = now();
    Spent {
        seconds: (after.0 - before.0).as_secs_f64(),
        cpu: (after.1 - before.1) as f64 / 1e9,
        wakes: (after.2 - before.2) as f64,
        ip_bytes: ip_bytes(&after.3, &before.3).max(1.0),
    }
}

/// In MiB, what is not a page of the bundle. A bundle in `/dev/shm` counts as shared memory, of which the server has
/// none of its own.
fn own_memory(server: &Running) -> f64 {
    let text = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap_or_default();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_ascii_whitespace().next()?.parse::<f64>().ok()
    };
    kib("RssAnon").unwrap_or(f64::NAN) / 1024.0
}
