//! `pack`: how fast, and in how much memory.

use crate::Bench;
use carousel_tests::bars::{Bar, Bars, Figure};
use carousel_tests::scene;
use std::fs;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);

pub fn measure(bench: &Bench, bars: &mut Bars) {
    let host = bench.lab.host("packer");
    let mut figures = Vec::new();
    let mut peaks = Vec::new();
    for mib in [100, bench.pick(1024, 400)] {
        let mut speed = Figure::new(format!("pack, {mib} MiB, to the disk"), "MiB/s", Bar::AtLeast(300.0));
        let mut cpu = Figure::new(format!("pack, {mib} MiB, CPU"), "s/GiB", Bar::None);
        let mut peak = Figure::new(format!("pack, {mib} MiB, peak memory"), "MiB", Bar::AtMost(64.0));
        let packed = scene::unpacked(&bench.lab.fresh_dir("pack"), mib << 20);
        for _ in 0..bench.runs {
            let packer = host.spawn(&scene::pack_line(&packed, &["--mtu", "1500", "--force"]));
            let exit = packer.finish(LIMIT);
            if exit.code() != 0 {
                speed.note(format!("failed: {}", packer.stderr().trim()));
                continue;
            }
            speed = speed.with([mib as f64 / exit.seconds]);
            cpu = cpu.with([exit.cpu_seconds * 1024.0 / mib as f64]);
            peak = peak.with([exit.peak_mib()]);
        }
        let _ = fs::remove_file(&packed.object).and_then(|()| fs::remove_file(&packed.bundle));
        peaks.extend(peak.median());
        figures.extend([speed, cpu, peak]);
    }
    if let [small, large] = peaks[..] {
        let mut growth = Figure::new("growth of the peak with the object", "×", Bar::AtMost(1.1));
        growth = growth.with([large / small]);
        figures.push(growth);
    }
    bars.table("Packing, on all cores", &figures);
}
