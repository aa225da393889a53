//! What the hot functions cost, one by one: time by divan, and instructions by callgrind, which are the same in every
//! run and on a busy machine, too.
//!
//! `cargo bench --profile lab -p carousel-tests --bench micro`. The program starts itself again: once for divan, and
//! once under valgrind for each function. What valgrind sees is not quite what runs: it knows neither AVX-512 nor GFNI,
//! so what asks the CPU chooses AVX2 there.

mod cases;

use carousel_tests::bars::{Bar, Bars, Figure};
use carousel_tests::lab;
use cases::{CASES, Case};
use std::any::Any;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

/// In the environment of what we start: the name of a case to count, or [`TIME`].
const JOB: &str = "CAROUSEL_MICRO";
const TIME: &str = "time";

/// Keep the tables beside the benchmark, as MICRO.md. Ours, not divan's.
const RECORD: &str = "--record";
/// Means something to the other benchmarks; this one is always quick.
const QUICK: &str = "--quick";

fn main() {
    match env::var(JOB) {
        Ok(job) if job == TIME => divan::main(),
        Ok(job) => {
            for case in CASES.iter().filter(|case| case.name == job) {
                let mut prepare = (case.prepare)();
                prepare()(); // tables are made, and CPUs looked at, the first time
                drop(counted_by_callgrind(prepare()));
            }
        }
        Err(_) => report(),
    }
}

/// Callgrind counts from entering to leaving this.
#[inline(never)]
fn counted_by_callgrind(work: cases::Work) -> Box<dyn Any> {
    work()
}

#[divan::bench(args = CASES)]
fn time(bencher: divan::Bencher<'_, '_>, case: &Case) {
    let prepare = (case.prepare)();
    bencher
        .counter(divan::counter::ItemsCount::new(case.items))
        .with_inputs(prepare)
        .bench_local_values(|work| work());
}

fn report() {
    let mut bars = Bars::new("micro", "Hot functions");
    match times() {
        Ok(text) => bars.say(&format!(
            "Time by divan, of as many items at once as the next table says:\n\n```text\n{}\n```",
            text.trim_end()
        )),
        Err(e) => bars.say(&format!("No times: {e}.")),
    }
    if lab::have("valgrind") {
        let figures: Vec<Figure> = CASES.iter().map(count).collect();
        bars.table("Instructions for each item, by callgrind", &figures);
    } else {
        bars.say("`valgrind` is missing, so no instructions were counted: `apt-get install valgrind`.");
    }
    bars.finish(env::args().any(|arg| arg == RECORD));
}

/// Runs divan, and passes on what was asked of it, for instance part of a name.
fn times() -> io::Result<String> {
    let mut divan = Command::new(env::current_exe()?);
    divan
        .args(env::args_os().skip(1).filter(|arg| arg != RECORD && arg != QUICK))
        .env(JOB, TIME)
        .stderr(Stdio::inherit());
    let out = divan.output()?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        io::stdout().write_all(&out.stdout)?;
        Err(io::Error::other(format!("divan ended with {}", out.status)))
    }
}

fn count(case: &Case) -> Figure {
    let mut figure = Figure::new(case.name, "instructions", Bar::None);
    figure.note(format!("of {} at once", case.items));
    let folder = lab::Folder::new();
    match instructions(case, &folder.path().join("callgrind")) {
        Ok(count) => figure.with([count as f64 / case.items as f64]),
        Err(e) => {
            figure.note(e.to_string());
            figure
        }
    }
}

/// Instructions of one piece of work.
fn instructions(case: &Case, file: &Path) -> io::Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*counted_by_callgrind*"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(env::current_exe()?)
        .env(JOB, case.name)
        .stdin(Stdio::null());
    let out = valgrind.output()?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(io::Error::other(format!("valgrind: {}", said.lines().last().unwrap_or_default())));
    }
    let text = fs::read_to_string(file)?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    totals.filter(|count| *count > 0).ok_or_else(|| io::Error::other("callgrind counted nothing"))
}
