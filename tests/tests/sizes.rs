//! Objects of every awkward size, and of awkward contents, arrive exact.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{Lab, Loss};
use carousel_tests::scene::{self, SOURCE};
use carousel_tests::{bins, object};
use std::fs;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn every_size_arrives_exact() {
    let Some(lab) = Lab::enter("every_size_arrives_exact") else { return };
    let (s, c) = scene::pair(&lab);
    // Around one symbol (1,188 bytes at the default MTU) and around one block.
    for size in [0, 1, 1187, 1188, 1189, 4 * MIB, 4 * MIB + 1] {
        let dir = lab.file(&format!("size-{size}"));
        fs::create_dir(&dir).unwrap();
        let packed = scene::pack(&dir, size, &[]);
        let _server = scene::serve(&s, &packed, "100M", &[]);
        let out = dir.join("got");
        let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
        scene::arrive(&client, &packed, &out, LIMIT).row("sizes", "100M");
    }
    assert_eq!((s.snmp6().fragments(), c.snmp6().fragments()), (0, 0));
}

#[test]
fn symbols_of_other_lengths_arrive() {
    let Some(lab) = Lab::enter("symbols_of_other_lengths_arrive") else { return };
    let (s, c) = scene::pair(&lab);
    for (number, more) in [["--symbol-size", "1160"], ["--mtu", "1244"]].iter().enumerate() {
        let dir = lab.fresh_dir(&format!("{number}"));
        let packed = scene::pack(&dir, MIB, more);
        let _server = scene::serve(&s, &packed, "50M", &[]);
        let out = dir.join("got");
        let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
        let got = scene::arrive(&client, &packed, &out, LIMIT);
        let len = [1160, 1152][number];
        assert_eq!(got.done.symbols_needed, MIB.div_ceil(len), "{got:?}");
    }
}

/// Every symbol, and every block of the same length, has the same contents: whatever tells packets apart by what
/// they carry mixes them up here.
#[test]
fn a_hundred_mebibytes_of_zeros() {
    let Some(lab) = Lab::enter("a_hundred_mebibytes_of_zeros") else { return };
    let (s, c) = scene::pair(&lab);
    c.loss("eth0", Loss::PerMille(20));
    let mut packed = scene::unpacked(lab.dir(), 0);
    packed.size = 100 * MIB;
    fs::File::options().write(true).open(&packed.object).unwrap().set_len(packed.size).unwrap();
    packed.digest = object::digest(&packed.object).unwrap();
    let out = bins::run_line(&scene::pack_line(&packed, &[]));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let server = scene::serve(&s, &packed, "200M", &[]);
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    got.row("zeros", &format!("200M, p = 0.02: {:.3} x ideal", got.over_ideal(200e6, 0.02)));
    // Whoever mixes them up has to take them again. The time is the machine's as well: 200 Mbit/s are work.
    assert!(got.packets_per_symbol() <= 1.3, "{got:?}");
}
