//! Where the CPU time goes: the functions in which `perf` finds each program most often, its own and the kernel's.
//!
//! `perf` only sees a program from outside (`apt-get install linux-perf`); a share is of the samples of one run.

use crate::Bench;
use carousel_tests::bars::{Bar, Bars, Figure};
use carousel_tests::lab::{self, Host};
use carousel_tests::scene::{self, SOURCE, args};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Functions shown of each program.
const SHOWN: usize = 8;
/// Of a server's sending.
const SPAN: &str = "10";
const LIMIT: Duration = Duration::from_secs(120);

pub fn measure(bench: &Bench, bars: &mut Bars) {
    if !lab::have("perf") {
        return bars.say("`perf` is missing, so no profile was made: `apt-get install linux-perf`.");
    }
    let (s, c) = bench.cable(true);
    let packed = bench.pack(bench.pick(512, 100) << 20);
    let file = bench.lab.file("perf.data");

    let mut line = recording(&file);
    line.extend(args(&[&"timeout", &"--signal=INT", &SPAN]));
    line.extend(scene::serve_line(&packed, "1G", &[]));
    table(bars, "carousel-server at 1 Gbit/s, offload on", &s, &line, &file);

    let out = bench.lab.file("got");
    for rate in ["100M", "1G"] {
        let server = scene::serve(&s, &packed, rate, &[]);
        scene::wait_sending(&s, &server);
        let mut line = recording(&file);
        line.extend(scene::get_line(&[SOURCE], &packed, &out, &[]));
        let title = format!("carousel-client at {rate}bit/s, offload on, {} MiB", packed.size >> 20);
        table(bars, &title, &c, &line, &file);
        let _ = fs::remove_file(&out);
    }
}

/// What a program's line begins with to be looked at. `perf` wants the `/proc` of its own process numbers, and the lab
/// has numbers of its own.
fn recording(file: &Path) -> Vec<OsString> {
    let own_proc = "mount -t proc proc /proc && exec \"$@\"";
    let mut line = args(&[&"unshare", &"-m", &"sh", &"-c", &own_proc, &"sh"]);
    line.extend(args(&[&"perf", &"record", &"-q", &"-F", &"2000", &"-o", &file, &"--"]));
    line
}

fn table(bars: &mut Bars, title: &str, host: &Host, line: &[OsString], file: &Path) {
    let _ = fs::remove_file(file);
    let program = host.spawn(line);
    program.finish(LIMIT);
    let report = args(&[
        &"perf",
        &"report",
        &"--stdio",
        &"--sort=sym",
        &"--percent-limit=0.1",
        &"-i",
        &file,
        &"--comm",
        &if title.starts_with("carousel-server") { "carousel-server" } else { "carousel-client" },
    ]);
    let report = host.run(&report);
    let figures: Vec<Figure> = report.stdout.lines().filter_map(share).take(SHOWN).collect();
    if figures.is_empty() {
        let said = format!("{} {}", program.stderr().trim(), report.stderr.trim());
        bars.say(&format!("{title}: `perf` saw nothing: {}", said.trim()));
    } else {
        bars.table(&format!("Where the CPU time goes: {title}"), &figures);
    }
}

/// A line of the report: `12.34%  [k] function`.
fn share(line: &str) -> Option<Figure> {
    let (percent, function) = line.trim().split_once('%')?;
    let (place, name) = function.trim().split_once("] ")?;
    let place = if place == "[k" { "kernel" } else { "program" };
    Some(Figure::new(format!("`{}`, {place}", name.trim()), "%", Bar::None).with([percent.parse().ok()?]))
}
