//! The highest rate at which nothing is lost: a server and one client that verifies and writes, on this machine.
//!
//! Lossless means that every block was complete from 1.05 packets a symbol at most, that no buffer overflowed, and that
//! the server really sent at the rate it was told. The rate is doubled until it fails, then halved in between, then
//! tried again and again: it has to hold in most of the runs.

use crate::uftp::{Sent, Uftp};
use crate::{Bench, called, ip_bytes, watched};
use carousel_proto::units::show_rate;
use carousel_tests::bars::{Bar, Bars, Figure, Run};
use carousel_tests::lab::{Host, until};
use carousel_tests::scene::{self, Packed, SOURCE};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

const MBIT: f64 = 1e6;
/// Packets a symbol: the rest is what the order of sending costs, and hash pages.
const PACKETS: f64 = 1.05;
/// So much of its rate the server has to reach.
const REACHED: f64 = 0.97;
/// The first rate tried; and how close the search gets, as a factor.
const START: f64 = 300.0 * MBIT;
const CLOSE: f64 = 1.1;
const QUICKLY_CLOSE: f64 = 1.3;
/// No cable of ours is faster.
const END: f64 = 20_000.0 * MBIT;
/// Beyond the time that the rate asks for: to start, to sync the disk, and to be late.
const LIMIT: Duration = Duration::from_secs(20);

pub fn measure(bench: &Bench, bars: &mut Bars) {
    let packed = bench.pack(bench.pick(512, 64) << 20);
    let mut figures = Vec::new();
    for offload in [false, true] {
        let (s, c) = bench.cable(offload);
        figures.extend(highest(bench, bars, (&s, &c), &packed, offload));
    }
    bars.table(&format!("Highest lossless speed, {} MiB", packed.size >> 20), &figures);
}

fn highest(
    bench: &Bench,
    bars: &mut Bars,
    (s, c): (&Host, &Host),
    packed: &Packed,
    offload: bool,
) -> Vec<Figure> {
    let how = called(offload);
    let name = |what: &str| format!("{what}, {how}");
    let mut rate = Figure::new(
        name("highest lossless rate"),
        "Mbit/s",
        if offload { Bar::AtLeast(2000.0) } else { Bar::None },
    );
    let (found, limit) = search(bench, (s, c), packed);
    let (found, tries) = hold(bench, (s, c), packed, found);
    let good: Vec<&Try> = tries.iter().filter(|one| one.trouble.is_none()).collect();
    rate.note(format!("held in {} of {} runs; above it: {limit}", good.len(), tries.len()));
    if good.len() * 2 > tries.len() {
        rate = rate.with([found / MBIT]);
    }
    let of = |value: fn(&Try) -> f64| good.iter().map(|one| value(one)).collect::<Vec<_>>();
    let goodput = Figure::new(name("its goodput"), "Mbit/s", Bar::None).with(of(|one| one.goodput / MBIT));
    let whole = Figure::new(name("its start to exit"), "s", Bar::None).with(of(|one| one.seconds));
    let cpu = Figure::new(name("carousel-client"), "CPU s/GB", Bar::None).with(of(|one| one.client_cpu));
    let mut figures = vec![rate, goodput, whole, cpu];
    if let Some(uftp) = Uftp::start(bench, bars, s, c) {
        figures.extend(beside(bench, &uftp, packed, how, &figures));
    }
    figures
}

/// UFTP at the best of some rates, and what we are beside it.
fn beside(bench: &Bench, uftp: &Uftp, packed: &Packed, how: &str, ours: &[Figure]) -> Vec<Figure> {
    let name = |what: &str| format!("{what}, {how}");
    // It knows no loss but what it asks for again: the best rate is the one that delivers most.
    let rates: &[i64] = bench.pick(&[-1, 500_000, 1_000_000, 1_500_000, 2_500_000], &[-1, 1_000_000]);
    let speed = |sent: &Sent| packed.size as f64 * 8.0 / sent.seconds / MBIT;
    let tried = rates.iter().filter_map(|&kbit| Some((kbit, speed(&uftp.send(packed, kbit)?))));
    let Some((best, _)) = tried.max_by(|a, b| a.1.total_cmp(&b.1)) else { return Vec::new() };
    let sent: Vec<Sent> = (0..bench.runs).filter_map(|_| uftp.send(packed, best)).collect();
    let figure = |what: &str, unit, value: &dyn Fn(&Sent) -> f64| {
        let mut figure = Figure::new(name(what), unit, Bar::None);
        sent.iter().for_each(|one| figure.add(one.run, value(one)));
        figure
    };
    let mut goodput = figure("uftp, goodput of its data phase", "Mbit/s", &speed);
    goodput.note(format!("best of -R {rates:?}: {best}"));
    let whole = figure("uftp, start to exit", "s", &|sent| sent.sender.seconds);
    let gb = packed.size as f64 / 1e9;
    let cpu = figure("uftpd", "CPU s/GB", &|sent| sent.receiver_seconds / gb);
    let ratio = |what: &str, bar, over: Option<f64>, under: Option<f64>| {
        let ratio = over.zip(under).map(|(over, under)| over / under);
        Figure::new(name(what), "×", bar).with(ratio)
    };
    let ratios = [
        ratio("goodput, of uftp's data phase", Bar::AtLeast(3.0), ours[1].median(), goodput.median()),
        ratio("speed by whole times, of uftp's", Bar::AtLeast(3.0), whole.median(), ours[2].median()),
        ratio("client's CPU, of uftpd's", Bar::None, ours[3].median(), cpu.median()),
    ];
    [goodput, whole, cpu].into_iter().chain(ratios).collect()
}

/// Up in steps, then in between: the highest rate that went well, and what went wrong above it.
fn search(bench: &Bench, hosts: (&Host, &Host), packed: &Packed) -> (f64, String) {
    let (mut good, mut bad) = (START / 2.0, END);
    let mut trouble = "nothing".to_owned();
    let mut rate = START;
    while bad / good > bench.pick(CLOSE, QUICKLY_CLOSE) && rate < END {
        // A second chance: anything may have happened.
        match attempt(hosts, packed, rate).trouble.and_then(|_| attempt(hosts, packed, rate).trouble) {
            None => good = rate,
            Some(why) => (bad, trouble) = (rate, why),
        }
        rate = if bad == END { good * bench.pick(1.5, 2.0) } else { (good * bad).sqrt() };
    }
    (good, format!("{trouble} at {:.0}", bad / MBIT))
}

/// The rate at which most of the runs go well, this one or one of a few lower ones.
fn hold(bench: &Bench, hosts: (&Host, &Host), packed: &Packed, mut rate: f64) -> (f64, Vec<Try>) {
    for lower in 0.. {
        let tries: Vec<Try> = (0..bench.runs).map(|_| attempt(hosts, packed, rate)).collect();
        let good = tries.iter().filter(|one| one.trouble.is_none()).count();
        if good * 2 > tries.len() || lower == 3 {
            return (rate, tries);
        }
        rate /= CLOSE;
    }
    unreachable!("an endless range")
}

/// A whole transfer.
struct Try {
    trouble: Option<String>,
    /// Bits of the file per second from the first packet to the leave.
    goodput: f64,
    /// Of the client.
    seconds: f64,
    /// Of the client, per GB of the file.
    client_cpu: f64,
}

fn attempt(hosts: (&Host, &Host), packed: &Packed, rate: f64) -> Try {
    let one = transfer(hosts, packed, rate);
    let said = one.trouble.as_deref().unwrap_or("nothing lost");
    eprintln!("{}: {said}", show_rate(rate)); // it is a long wait
    one
}

fn transfer((s, c): (&Host, &Host), packed: &Packed, rate: f64) -> Try {
    let out = packed.bundle.with_file_name("got");
    let _ = fs::remove_file(&out);
    let before = (c.snmp6().buffer_losses(), s.traffic("eth0"));
    let client = scene::get(c, &[SOURCE], packed, &out, &["--timeout", "10s"]);
    scene::wait_joined(c);
    let server = scene::serve(s, packed, &(rate.round() as u64).to_string(), &[]);
    let sent = || ip_bytes(&s.traffic("eth0"), &before.1);
    let limit = LIMIT + Duration::from_secs_f64(packed.size as f64 * 8.0 / rate);
    let (run, (time, bytes)) = watched(|| {
        until("the first packets", LIMIT, || sent() > 1e5);
        let (began, first) = (Instant::now(), sent());
        while scene::joined(c) > 0 && client.is_alive() && began.elapsed() < limit {
            thread::sleep(Duration::from_millis(2));
        }
        (began.elapsed().as_secs_f64(), sent() - first)
    });
    drop(server);
    let failed =
        |trouble: String| Try { trouble: Some(trouble), goodput: 0.0, seconds: 0.0, client_cpu: 0.0 };
    match client.wait(LIMIT) {
        Some(exit) if exit.code() == 0 => {}
        Some(exit) => return failed(format!("the client ended with {}", exit.code())),
        None => return failed("the client did not finish".to_owned()),
    }
    let got = scene::arrive(&client, packed, &out, LIMIT);
    let _ = fs::remove_file(&out);
    let reached = bytes * 8.0 / time / rate;
    let losses = c.snmp6().buffer_losses() - before.0;
    let trouble = if losses > 0 {
        Some(format!("{losses} packets found the client's buffer full"))
    } else if run == Run::Spoilt {
        Some("the machine dropped packets".to_owned())
    } else if got.packets_per_symbol() > PACKETS {
        Some(format!("{:.3} packets a symbol", got.packets_per_symbol()))
    } else if reached < REACHED {
        Some(format!("the server reached {:.0} %", reached * 100.0))
    } else {
        None
    };
    Try {
        trouble,
        goodput: packed.size as f64 * 8.0 / time,
        seconds: got.exit.seconds,
        client_cpu: got.exit.cpu_seconds * 1e9 / packed.size as f64,
    }
}
