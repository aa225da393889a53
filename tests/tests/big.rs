//! 5 GiB: offsets and lengths beyond 32 bits. A file of its own, because it takes more than a minute, most of which
//! the disk spends.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{self, Lab};
use carousel_tests::object;
use carousel_tests::scene::{self, CLIENT, SOURCE};
use std::fs;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
const SIZE: u64 = 5 * GIB;
/// Of a disk that is slow and busy.
const LIMIT: Duration = Duration::from_secs(600);
/// Bundle, work file and change.
const ROOM: u64 = 12 * GIB;

#[test]
fn five_gibibytes_arrive_exact() {
    let test = "five_gibibytes_arrive_exact";
    let room = nix::sys::statvfs::statvfs(&std::env::temp_dir()).unwrap();
    let room = room.blocks_available() * room.fragment_size();
    if room < ROOM {
        let dir = std::env::temp_dir();
        return lab::skip(test, &format!("{} GiB free in {}, not 12", room / GIB, dir.display()));
    }
    let Some(lab) = Lab::enter(test) else { return };
    // Jumbo packets: the kernel bills by the packet, and this is about the bytes.
    let (s, c) = (lab.host("s"), lab.host("c"));
    lab.link(&s, "eth0", &format!("{SOURCE}/64"), &c, "eth0", &format!("{CLIENT}/64"), 9000);
    c.bill_apart("eth0");

    let mut packed = scene::unpacked(lab.dir(), 0);
    packed.size = SIZE;
    packed.digest = object::write_sparse(&packed.object, SIZE, &[4 * GIB - 5000, GIB + 1]).unwrap();
    // Repair in proportion to a link that loses nothing; 105 % would only make the disk work.
    let line = scene::pack_line(&packed, &["--mtu", "9000", "--repair", "10"]);
    let pack = s.spawn(&line);
    let exit = pack.finish(LIMIT);
    assert_eq!(exit.code(), 0, "{pack}");
    exit.row("pack 5 GiB");
    assert!(exit.peak_rss <= 64 << 20, "{exit:?}");

    let server = scene::serve(&s, &packed, "1500M", &[]);
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    let began = Instant::now();
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    let hashing = began.elapsed().as_secs_f64() - got.exit.seconds;
    let lost = c.snmp6().buffer_losses();
    got.row(
        "5 GiB sparse",
        &format!("1500M, 9,000 bytes, {lost} buffer losses, then {hashing:.1} s to hash"),
    );
    assert!(got.exit.peak_rss <= 48 << 20, "{got:?}");
    fs::remove_file(&out).unwrap();
}
