//! Us and the others, side by side: the same file, the same network, the same run, taking turns.
//!
//! `tests/bench/run.sh peers` is the command; `tests/bench/README.md` says what is measured and how the others are
//! started. It measures and asserts nothing: who is not served, and who falls short, stands in the tables.

mod contest;
mod measure;
mod net;
mod report;
mod tool;

use carousel_tests::lab::Lab;
use clap::{Parser, ValueEnum};
use net::Net;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tool::{Load, Tool};

#[derive(Parser)]
#[command(about = "Carousel beside UFTP, UDPcast, NORM, an uncoded loop and unicast")]
struct Options {
    /// Only this; may be repeated.
    #[arg(long)]
    only: Vec<Part>,
    /// Only with this contender; may be repeated.
    #[arg(long)]
    tool: Vec<Tool>,
    /// Size of the file in MiB; some parts take a quarter or a tenth of it.
    #[arg(long, default_value_t = 100)]
    mebibytes: u64,
    /// Rounds, of which the medians are taken. What takes long and changes little has one.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// One round with a small file, to see whether everything works: no figures to keep.
    #[arg(long)]
    quick: bool,
    /// Keep tables and charts beside the benchmark.
    #[arg(long, conflicts_with_all = ["only", "tool", "quick"])]
    record: bool,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be asked for alone.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Eight receivers that lose packets: time, bytes, CPU, and who is done when.
    Loss,
    /// A receiver that comes late.
    Late,
    /// A receiver behind a slow link, beside a fast one.
    Slow,
    /// Bytes by the number of receivers.
    Receivers,
}

/// How much of everything.
struct Plan {
    rounds: u32,
    tools: Vec<Tool>,
    /// In per cent.
    losses: &'static [u32],
    receivers: &'static [usize],
    /// Who is not done by then will hardly be.
    limit: Duration,
}

impl Plan {
    /// Those of them that take part.
    fn of(&self, tools: &[Tool]) -> Vec<Tool> {
        tools.iter().copied().filter(|tool| self.tools.contains(tool)).collect()
    }
}

fn main() {
    let options = Options::parse();
    let Some(lab) = Lab::enter("peers") else { std::process::exit(77) };
    let began = Instant::now();
    compile_norm(&lab);
    let net = Net::new(lab);
    let tools = if options.tool.is_empty() { Tool::value_variants().to_vec() } else { options.tool.clone() };
    let (rounds, losses, receivers, seconds, mebibytes): (u32, &[u32], &[usize], u64, u64) = if options.quick
    {
        (1, &[0, 10], &[1, 4, 16], 15, 16)
    } else {
        (options.runs, &[0, 1, 5, 10, 20], &[1, 2, 4, 8, 16], 90, options.mebibytes)
    };
    let plan = Plan { rounds, tools, losses, receivers, limit: Duration::from_secs(seconds) };
    let size = mebibytes << 20;
    let large = Load::new(&net, "large", size);
    // What must run at a slow rate, too, has a smaller file.
    let (medium, small) = (Load::new(&net, "medium", size / 4), Load::new(&net, "small", size / 10));

    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let (mut notes, mut sections) = (Vec::new(), Vec::new());
    if wanted(Part::Loss) {
        sections.push(contest::loss(&net, &large, &plan, &mut notes));
    }
    if wanted(Part::Late) {
        sections.push(contest::late(&net, &large, &plan, &mut notes));
    }
    if wanted(Part::Slow) {
        sections.push(contest::slow(&net, &medium, &plan, &mut notes));
    }
    if wanted(Part::Receivers) {
        sections.push(contest::receivers(&net, &small, &plan, &mut notes));
    }
    report::write(&sections, &notes, began.elapsed(), options.quick, options.record);
}

/// NORM is a library: this makes a program of it.
fn compile_norm(lab: &Lab) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/norm.cpp");
    let mut compiler = Command::new("c++");
    compiler.args(["-O2", "-o"]).arg(lab.file("norm")).arg(source).arg("-lnorm");
    let out = compiler.output().unwrap_or_else(|e| panic!("no c++: {e}: run tests/bench/get-peers.sh"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "norm.cpp: {said}\nrun tests/bench/get-peers.sh");
}
