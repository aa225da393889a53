//! How far the two programs go: pace, idle load, cost, highest speed, tail and packing, each held against its bar and,
//! where that is the bar, against UFTP on the same cable in the same run.
//!
//! `cargo bench --profile lab -p carousel-tests --bench limits -- --quick`; without `--quick` it takes a quarter of an
//! hour. The machine should do nothing else meanwhile.

mod cost;
mod pace;
mod pack;
mod profile;
mod speed;
mod tail;
mod uftp;

use carousel_tests::bars::{Bars, Run};
use carousel_tests::lab::{self, Host, Lab, Running, Traffic, softnet_drops};
use carousel_tests::scene::{self, CLIENT, Packed, SOURCE};
use clap::Parser;
use std::fs;

/// Measures and prints a table.
type Measure = fn(&Bench, &mut Bars);

/// All of them, and what `--only` calls them.
const TABLES: [(&str, Measure); 7] = [
    ("pace", pace::measure),
    ("idle", cost::idle),
    ("cost", cost::measure),
    ("speed", speed::measure),
    ("tail", tail::measure),
    ("pack", pack::measure),
    ("profile", profile::measure),
];

/// Interfaces are as wide as Ethernet's.
const MTU: u32 = 1500;
/// IPv6 and UDP.
const HEADERS: u64 = 48;

#[derive(Parser)]
#[command(about = "How far server and client go, against their bars and against UFTP")]
struct Options {
    /// Two or three minutes instead of a quarter of an hour: short runs, few of them.
    #[arg(long)]
    quick: bool,
    /// Runs of each measurement, of which the median counts [default: 5, or 2 with --quick].
    #[arg(long)]
    runs: Option<usize>,
    /// Only these tables; then the file is `limits-NAME.md`.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(TABLES.map(|(name, _)| name)))]
    only: Vec<String>,
    /// Keep the tables beside the benchmark, as LIMITS.md.
    #[arg(long, conflicts_with_all = ["quick", "only"])]
    record: bool,
    /// What `cargo bench` passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What every table needs.
struct Bench {
    lab: Lab,
    runs: usize,
    quick: bool,
}

fn main() {
    let options = Options::parse();
    let Some(lab) = Lab::enter("limits") else { return }; // said why on stderr
    let runs = options.runs.unwrap_or(if options.quick { 2 } else { 5 }).max(1);
    let bench = Bench { lab, runs, quick: options.quick };
    let file = match &options.only[..] {
        [] => "limits".to_owned(),
        names => format!("limits-{}", names.join("-")),
    };
    let mut bars = Bars::new(&file, "Limits");
    if bench.quick {
        bars.say("Measured with `--quick`: for a look, not for the record.");
    }
    for (name, measure) in TABLES {
        if options.only.is_empty() || options.only.iter().any(|only| only == name) {
            measure(&bench, &mut bars);
        }
    }
    bars.finish(options.record);
}

impl Bench {
    /// One of two, by `--quick`.
    fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// A sender's and a receiver's host and a cable. A kernel thread of its own receives, so that the sender is not
    /// billed for it. With `offload` trains of packets cross the cable whole.
    fn cable(&self, offload: bool) -> (Host, Host) {
        let (s, c) = (self.lab.host("s"), self.lab.host("c"));
        self.lab.link(&s, "eth0", &format!("{SOURCE}/64"), &c, "eth0", &format!("{CLIENT}/64"), MTU);
        c.bill_apart("eth0");
        if offload {
            for feature in ["gso", "tso", "tx-udp-segmentation"] {
                lab::offload(&s, "eth0", feature, true);
            }
            lab::offload(&c, "eth0", "rx-udp-gro-forwarding", true);
        }
        (s, c)
    }

    /// An object and its bundle, for packets as wide as the cable.
    fn pack(&self, size: u64) -> Packed {
        scene::pack(&self.lab.fresh_dir("packed"), size, &["--mtu", &MTU.to_string()])
    }
}

/// Does something, and says whether the machine dropped packets meanwhile.
fn watched<T>(measure: impl FnOnce() -> T) -> (Run, T) {
    let before = softnet_drops();
    let result = measure();
    (if softnet_drops() == before { Run::Clean } else { Run::Spoilt }, result)
}

/// Sums a number over a program's threads, from a file each has below `/proc/PID/task`.
fn of_threads(program: &Running, file: &str, number: impl Fn(&str) -> Option<u64>) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", program.pid())).into_iter().flatten().flatten();
    threads.filter_map(|thread| number(&fs::read_to_string(thread.path().join(file)).ok()?)).sum()
}

/// Nanoseconds in which a program could have run and had no CPU.
fn waited_for_cpu(program: &Running) -> u64 {
    of_threads(program, "schedstat", |text| text.split(' ').nth(1)?.parse().ok())
}

/// Bytes of the IP packets that we sent after `before`. The interface counts a train as one packet with the headers of
/// one, and no Ethernet headers, because it is `bill_apart`.
fn ip_bytes(now: &Traffic, before: &Traffic) -> f64 {
    let headers = (now.tx_packets - before.tx_packets) * HEADERS;
    let payload = (now.tx_bytes - before.tx_bytes).saturating_sub(headers) as f64;
    payload / f64::from(MTU - HEADERS as u32) * f64::from(MTU)
}

/// `with_offload`, for the notes.
fn called(offload: bool) -> &'static str {
    if offload { "offload on" } else { "offload off" }
}
