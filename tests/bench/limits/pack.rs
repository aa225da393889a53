//! `pack`: how fast, and in how much memory.
//!
//! The bundle is twice the object and is synced to the disk in the end, so most disks are slower than the two cores.
//! The bar is about the cores: there the bundle goes into memory.

use crate::Bench;
use carousel_tests::bars::{Bar, Bars, Figure, Run};
use carousel_tests::lab::{Folder, Host};
use carousel_tests::scene::{self, Packed};
use nix::sys::statvfs::statvfs;
use std::fs;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);
/// A file system in memory.
const MEMORY: &str = "/dev/shm";
const SPEED: Bar = Bar::AtLeast(300.0);

pub fn measure(bench: &Bench, bars: &mut Bars) {
    let host = bench.lab.host("packer");
    let mut figures = Vec::new();
    let mut peaks = Vec::new();
    for mib in [100, bench.pick(1024, 400)] {
        let mut packed = scene::unpacked(&bench.lab.fresh_dir("pack"), mib << 20);
        let [on_disk, cpu, peak] =
            packs(bench, &host, &packed, &format!("{mib} MiB onto the disk"), Bar::None);
        peaks.extend(peak.median());
        let _ = fs::remove_file(&packed.bundle);
        let mut speed = Figure::new(format!("{mib} MiB into memory"), "MiB/s", SPEED);
        // The bundle is a little more than twice as large.
        if room(MEMORY) > packed.size * 3 {
            let folder = Folder::new_in(Path::new(MEMORY));
            packed.bundle = folder.path().join("F.carousel");
            [speed, ..] = packs(bench, &host, &packed, &format!("{mib} MiB into memory"), SPEED);
        } else {
            speed.note(format!("{MEMORY} is too small"));
        }
        let _ = fs::remove_file(&packed.object);
        figures.extend([speed, on_disk, cpu, peak]);
    }
    if let [small, large] = peaks[..] {
        let growth = Figure::new("growth of the peak with the object", "×", Bar::AtMost(1.1));
        figures.push(growth.with([large / small]));
    }
    bars.table("Packing, on all cores", &figures);
}

/// Speed, CPU time and peak memory.
fn packs(bench: &Bench, host: &Host, packed: &Packed, name: &str, bar: Bar) -> [Figure; 3] {
    let [mut speed, mut cpu, mut peak] = [
        Figure::new(name, "MiB/s", bar),
        Figure::new(format!("{name}: CPU"), "s/GiB", Bar::None),
        Figure::new(format!("{name}: peak memory"), "MiB", Bar::AtMost(64.0)),
    ];
    let mib = packed.size as f64 / f64::from(1 << 20);
    for _ in 0..bench.runs {
        let packer = host.spawn(&scene::pack_line(packed, &["--mtu", "1500", "--force"]));
        match packer.wait(LIMIT) {
            Some(exit) if exit.code() == 0 => {
                speed.add(Run::Clean, mib / exit.seconds);
                cpu.add(Run::Clean, exit.cpu_seconds * 1024.0 / mib);
                peak.add(Run::Clean, exit.peak_mib());
            }
            _ => speed.note(format!("failed: {}", packer.stderr().trim())),
        }
    }
    [speed, cpu, peak]
}

/// Free bytes of a file system, 0 if there is none.
fn room(place: &str) -> u64 {
    statvfs(place).map_or(0, |about| about.blocks_available() * about.fragment_size())
}
