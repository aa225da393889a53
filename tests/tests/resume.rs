//! Clients that end too early, and clients that come after them: nothing is lost, and little is taken twice.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{self, Host, Lab, Running, until};
use carousel_tests::scene::{self, AsOsString, Packed, SOURCE, args};
use carousel_tests::{figures, object};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
const RATE: &str = "80M";

/// What lies in a folder, hidden files included.
fn contents(folder: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// The last event of that name that a client told.
fn event(client: &Running, name: &str) -> Option<Value> {
    let text = client.stdout();
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.rev().find(|event| event["event"] == name)
}

fn number(event: &Value, name: &str) -> u64 {
    event[name].as_u64().unwrap_or_else(|| panic!("no {name} in {event}"))
}

/// Datagrams that programs of a host have read.
fn datagrams(host: &Host) -> u64 {
    host.snmp6().get("Udp6InDatagrams")
}

/// A get that stands when it has so many packets, and its log tells of nearly all of them: a few are pages.
fn stopped_after(c: &Host, packed: &Packed, out: &Path, packets: u64) -> Running {
    let client = scene::get_part(c, packed, out, packets, &[]);
    let log = out.with_file_name(".got.carousel-log");
    scene::wait_logged(&client, &log, packets * 9 / 10, LIMIT);
    client
}

/// The same, killed there.
fn killed_after(c: &Host, packed: &Packed, out: &Path, packets: u64) {
    let client = stopped_after(c, packed, out, packets);
    client.kill(Signal::SIGKILL);
    client.finish(LIMIT);
    c.let_in("eth0", None);
}

/// Symbols of an object.
fn symbols(packed: &Packed) -> u64 {
    packed.size.div_ceil(1188)
}

/// `CAROUSEL_KILLS=500` is the long run that is made by hand.
fn kills() -> u64 {
    std::env::var("CAROUSEL_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

#[test]
fn killed_at_any_moment_it_goes_on_and_takes_little_twice() {
    let Some(lab) = Lab::enter("killed_at_any_moment_it_goes_on_and_takes_little_twice") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 32 * MIB, &["--block-size", "1MiB"]);
    let server = scene::serve(&s, &packed, "200M", &[]);
    scene::wait_sending(&s, &server);
    let folder = lab.fresh_dir("target");
    let out = folder.join("got");
    let transfer = |deaths: u64| {
        let before = datagrams(&c);
        let mut killed = 0;
        while killed < deaths && !out.exists() {
            let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
            thread::sleep(scene::random_moment(Duration::from_millis(1200)));
            client.kill(Signal::SIGKILL);
            client.finish(LIMIT);
            killed += 1;
        }
        let mut needed = 0;
        if out.exists() {
            assert_eq!(object::digest(&out).unwrap(), packed.digest, "a killed client left a wrong target");
            // It may have died between the name and tidying up.
            let _ = fs::remove_file(folder.join(".got.carousel-log"));
        } else {
            let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
            needed = scene::arrive(&client, &packed, &out, LIMIT).done.symbols_needed;
        }
        assert_eq!(contents(&folder), ["got"], "work files remain");
        fs::remove_file(&out).unwrap();
        (killed, datagrams(&c) - before, needed)
    };
    let mut undisturbed: Vec<_> = (0..5).map(|_| transfer(0)).collect();
    undisturbed.sort_by_key(|one| one.1);
    let (_, whole, needed) = undisturbed[2];
    let (mut killed, mut read, mut transfers) = (0, 0, 0);
    while killed < kills() {
        let (deaths, packets, _) = transfer(1 + killed % 4);
        killed += deaths;
        read += packets;
        transfers += 1;
    }
    let again = (read as f64 - (transfers * whole) as f64) / killed as f64 / needed as f64;
    figures::row(
        "SIGKILL at random moments",
        &[
            ("kills", &killed),
            ("transfers", &transfers),
            (
                "packets of one that was left alone, per symbol",
                &format!("{:.3}", whole as f64 / needed as f64),
            ),
            ("taken again after a kill, of the object", &format!("{:.2} %", again * 100.0)),
        ],
    );
    // The bar is 2 %, on a machine with nothing else to do. On a busy one a kill finds megabytes in the receive buffer,
    // and nothing is logged before a thread that can wait has reserved the room. Without a log it would be a third.
    assert!(again < 0.12, "{again:.4} of the object again after each kill");
}

#[test]
fn what_ends_a_client_leaves_its_work_and_says_so() {
    let Some(lab) = Lab::enter("what_ends_a_client_leaves_its_work_and_says_so") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &[]);
    let server = scene::serve(&s, &packed, "20M", &[]);
    scene::wait_sending(&s, &server);
    let folder = lab.fresh_dir("target");
    let out = folder.join("got");
    let client = stopped_after(&c, &packed, &out, symbols(&packed) / 3);
    client.kill(Signal::SIGTERM);
    assert_eq!(client.finish(LIMIT).code(), 1, "{client}");
    assert!(client.stderr().contains("is kept, the same command goes on with it"), "{client}");
    // Nothing comes: that changes nothing.
    drop(server);
    c.let_in("eth0", None);
    let client = scene::get(&c, &[SOURCE], &packed, &out, &["--timeout", "1s"]);
    assert_eq!(client.finish(LIMIT).code(), 5, "{client}");
    assert!(client.stderr().contains("what an earlier client had is kept"), "{client}");
    let _server = scene::serve(&s, &packed, "20M", &[]);
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    scene::arrive(&client, &packed, &out, LIMIT).row("after SIGTERM at a third, and a silence", "");
    let resumed = event(&client, "resumed").unwrap();
    let share = number(&resumed, "symbols_received") as f64 / number(&resumed, "symbols_needed") as f64;
    assert!((0.28..0.45).contains(&share), "{resumed}");
    assert_eq!(contents(&folder), ["got"]);
}

#[test]
fn work_that_was_damaged_meanwhile_is_not_believed() {
    let Some(lab) = Lab::enter("work_that_was_damaged_meanwhile_is_not_believed") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 4 * MIB, &["--block-size", "256KiB"]);
    let server = scene::serve(&s, &packed, RATE, &[]);
    scene::wait_sending(&s, &server);
    let folder = lab.fresh_dir("target");
    let out = folder.join("got");
    type Damage = fn(&File, &File);
    let damages: [(&str, Damage); 5] = [
        ("zeros in the file", |part, _| {
            (0..40).for_each(|i| part.write_all_at(&[0; 4096], i * 65_536).unwrap());
        }),
        ("the file is empty", |part, _| part.set_len(0).unwrap()),
        ("zeros in the log", |_, log| log.write_all_at(&[0; 3000], 1000).unwrap()),
        ("the log is cut within an entry", |_, log| {
            log.set_len(log.metadata().unwrap().len() / 2 + 5).unwrap()
        }),
        ("the log is of nothing", |_, log| log.write_all_at(&[0xff; 20], 10).unwrap()),
    ];
    for (name, damage) in damages {
        killed_after(&c, &packed, &out, symbols(&packed) / 2);
        let open = |name: &str| File::options().write(true).open(folder.join(name)).unwrap();
        damage(&open(".got.carousel-part"), &open(".got.carousel-log"));
        let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
        scene::arrive(&client, &packed, &out, LIMIT).row(name, "");
        assert_eq!(contents(&folder), ["got"]);
        fs::remove_file(&out).unwrap();
    }
}

/// An object, the same with one byte changed as the next release, and both packed.
fn releases(lab: &Lab, size: u64, block: &str) -> (Packed, Packed) {
    let old = scene::pack(&lab.fresh_dir("old"), size, &["--seq", "1", "--block-size", block]);
    let mut new = scene::unpacked(&lab.fresh_dir("new"), size);
    new.keys = old.keys.clone();
    let file = File::options().read(true).write(true).open(&new.object).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, size / 2).unwrap();
    file.write_all_at(&[byte[0] ^ 1], size / 2).unwrap();
    new.digest = object::digest(&new.object).unwrap();
    let line = scene::pack_line(&new, &["--seq", "2", "--block-size", block]);
    let packing = carousel_tests::bins::run_line(&line);
    assert!(packing.status.success(), "{}", String::from_utf8_lossy(&packing.stderr));
    (old, new)
}

#[test]
fn a_seed_saves_all_but_the_changed_block() {
    let Some(lab) = Lab::enter("a_seed_saves_all_but_the_changed_block") else { return };
    let (s, c) = scene::pair(&lab);
    let (old, new) = releases(&lab, 100 * MIB, "4MiB");
    let out = lab.fresh_dir("target").join("got");
    let server = scene::serve(&s, &new, "200M", &[]);
    scene::wait_sending(&s, &server);
    let seed = old.object.display().to_string();
    let client = scene::get(&c, &[SOURCE], &new, &out, &["--seed", &seed]);
    let got = scene::arrive(&client, &new, &out, LIMIT);
    let done = event(&client, "done").unwrap();
    let (found, needed) = (number(&done, "blocks_found"), got.done.symbols_needed);
    let taken = got.done.symbols_received - got.done.packets_duplicate;
    got.row(
        "one byte of 100 MiB changed",
        &format!("{found} blocks found, {taken} of {needed} symbols taken"),
    );
    assert_eq!(found, 24, "{done}");
    assert!(taken as f64 <= needed as f64 / 25.0 * 1.05, "{taken} symbols of new ones");
    // A seed of another length, or of nothing, is of no use and of no harm.
    for seed in [&new.bundle, Path::new("/dev/null")].map(|path| path.display().to_string()) {
        let client = scene::get(&c, &[SOURCE], &new, &out, &["--force", "--seed", &seed]);
        scene::arrive(&client, &new, &out, LIMIT);
        assert_eq!(number(&event(&client, "done").unwrap(), "blocks_found"), 0);
    }
}

#[test]
fn a_newer_release_supersedes_what_was_begun() {
    let Some(lab) = Lab::enter("a_newer_release_supersedes_what_was_begun") else { return };
    let (s, c) = scene::pair(&lab);
    let (old, new) = releases(&lab, 8 * MIB, "256KiB");
    let folder = lab.fresh_dir("target");
    let out = folder.join("got");
    let server = scene::serve(&s, &old, RATE, &[]);
    killed_after(&c, &old, &out, symbols(&old) * 9 / 10);
    drop(server);
    let _server = scene::serve(&s, &new, RATE, &[]);
    let client = scene::get(&c, &[SOURCE], &new, &out, &[]);
    let got = scene::arrive(&client, &new, &out, LIMIT);
    got.row("another release on the old one's work", "");
    assert_eq!(contents(&folder), ["got"]);
}

#[test]
fn a_newer_release_on_the_air_takes_the_place_of_the_one_on_its_way() {
    let Some(lab) = Lab::enter("a_newer_release_on_the_air_takes_the_place_of_the_one_on_its_way") else {
        return;
    };
    let (s, c) = scene::pair(&lab);
    let (old, new) = releases(&lab, 8 * MIB, "256KiB");
    let folder = lab.fresh_dir("target");
    let out = folder.join("got");
    let server = scene::serve(&s, &old, RATE, &[]);
    let client = stopped_after(&c, &old, &out, symbols(&old) / 2);
    drop(server);
    c.let_in("eth0", None);
    // The older one again, under the newer one's nose: it stays with what is newest.
    let server = scene::serve(&s, &new, RATE, &[]);
    until("the newer release to begin", LIMIT, || {
        client.stdout().matches(r#""event":"started""#).count() == 2
    });
    let _older = scene::serve(&s, &old, RATE, &["--phase", "1"]);
    let got = scene::arrive(&client, &new, &out, LIMIT);
    assert!(server.is_alive() && client.stderr().contains("no longer sent as it was"), "{client}");
    got.row("a newer release on the air", "");
    assert_eq!(contents(&folder), ["got"]);
}

/// A disk of its own, which something else fills in the middle of the transfer.
#[test]
fn after_a_full_disk_it_goes_on() {
    let test = "after_a_full_disk_it_goes_on";
    if !lab::have("mkfs.ext2") {
        return lab::skip(test, "the program mkfs.ext2 is missing");
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &["--block-size", "256KiB"]);
    // Slow enough that the disk is full long before the object is whole.
    let server = scene::serve(&s, &packed, "10M", &[]);
    scene::wait_sending(&s, &server);
    let folder = lab.fresh_dir("target");
    let image = lab.file("image");
    // ext2 cannot reserve room: it only looks whether there is any. The log tells of 22 bytes for each symbol, and of
    // 2,000 of 7,064 when the disk is filled.
    let script = format!(
        "{{ truncate -s 24M {0} && mkfs.ext2 -q -F {0} && mount -o loop {0} \"$0\"; }} || exit 99
         \"$@\" &
         until [ \"$(stat -c %s \"$0/.got.carousel-log\" 2>/dev/null || echo 0)\" -ge 44048 ]; do sleep 0.02; done
         dd if=/dev/zero of=\"$0/filler\" bs=64k status=none 2>/dev/null
         wait $!; echo \"ended $?\"; ls -A \"$0\"; rm \"$0/filler\"
         \"$@\"; echo \"then $?\"; ls -A \"$0\"; b3=$(cat \"$0/got\" | wc -c); echo \"size $b3\"",
        image.display()
    );
    let words: [&dyn AsOsString; 6] = [&"unshare", &"-m", &"sh", &"-c", &script, &folder];
    let mut line = args(&words);
    line.extend(scene::get_line(&[SOURCE], &packed, &folder.join("got"), &[]));
    let shell = c.spawn(&line);
    if shell.finish(LIMIT).code() == 99 {
        return lab::skip(test, &format!("no loop mount: {}", shell.stderr().trim()));
    }
    let said = shell.stdout();
    let words: Vec<&str> = said.lines().filter(|line| !line.starts_with('{')).collect();
    assert!(words.contains(&"ended 6") && words.contains(&".got.carousel-log"), "{shell}");
    assert!(words.contains(&"then 0") && words.contains(&"size 8388608"), "{shell}");
    let resumed = event(&shell, "resumed").unwrap();
    let done = event(&shell, "done").unwrap();
    assert_eq!(done["digest"], packed.digest.as_str());
    let share = number(&resumed, "symbols_received") as f64 / number(&resumed, "symbols_needed") as f64;
    figures::row("a disk that was full", &[("kept", &format!("{:.0} %", share * 100.0))]);
    assert!(share > 0.2, "{resumed}");
}

#[test]
fn nohup_lets_it_outlive_its_terminal() {
    let Some(lab) = Lab::enter("nohup_lets_it_outlive_its_terminal") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &[]);
    let server = scene::serve(&s, &packed, "20M", &[]);
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let mut line = args(&[&"sh", &"-c", &"trap '' HUP; exec \"$0\" \"$@\""]);
    line.extend(scene::get_line(&[SOURCE], &packed, &out, &[]));
    let client = c.spawn(&line);
    until("some progress", LIMIT, || event(&client, "progress").is_some());
    client.kill(Signal::SIGHUP);
    scene::arrive(&client, &packed, &out, LIMIT);
}
