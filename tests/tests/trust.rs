//! Trust that lasts: keys that come and go over the air, releases that never go back, networks that withhold. Every
//! attack here is made with real packets, and ends with the exit code of the contract.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_proto::keys::SignedKeys;
use carousel_proto::signature::{Key, Signature};
use carousel_tests::forgery::{self, Channel, Lie};
use carousel_tests::lab::{self, Host, Lab, Running};
use carousel_tests::scene::{self, AsOsString, GROUP, Keys, PORT, Packed, SOURCE};
use carousel_tests::{bins, object};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const RATE: &str = "4M";
/// Small enough to arrive in a second, with manifests and what takes their turn several times a second.
const SIZE: u64 = 100_000;

/// A fleet: its keys, one device with its state, and the hosts.
struct Fleet {
    lab: Lab,
    server: Host,
    device: Host,
    serial: Cell<u64>,
}

impl Fleet {
    fn enter(test: &str) -> Option<Self> {
        let lab = Lab::enter(test)?;
        let (server, device) = scene::pair(&lab);
        Some(Self { lab, server, device, serial: Cell::new(0) })
    }

    fn number(&self) -> u64 {
        self.serial.set(self.serial.get() + 1);
        self.serial.get()
    }

    fn pair(&self, name: &str) -> Keys {
        scene::keygen(self.lab.dir(), name)
    }

    fn pairs<const N: usize>(&self, names: [&str; N]) -> [Keys; N] {
        names.map(|name| self.pair(name))
    }

    fn state(&self) -> PathBuf {
        self.lab.file("state")
    }

    /// A keys object with these root and release keys and what `more` says, signed by some.
    fn keys(
        &self,
        version: u64,
        of: (u8, &[&Keys]),
        release: &[&Keys],
        more: &[&str],
        by: &[&Keys],
    ) -> PathBuf {
        let out = self.lab.file(&format!("{version}-{}.keys", self.number()));
        let (version, threshold) = (version.to_string(), of.0.to_string());
        let mut line =
            scene::args(&[&bins::server(), &"keys", &"create", &"--out", &out, &"--version", &version]);
        line.extend(scene::args(&[&"--threshold", &threshold]));
        of.1.iter().for_each(|keys| line.extend(scene::args(&[&"--root", &keys.public])));
        release.iter().for_each(|keys| line.extend(scene::args(&[&"--release", &keys.public])));
        line.extend(more.iter().map(|word| word.os()));
        well(&line);
        for keys in by {
            well(&scene::args(&[&bins::server(), &"keys", &"sign", &out, &"--key", &keys.secret]));
        }
        out
    }

    /// A release of fw.img.
    fn release(&self, seq: u64, by: &Keys, more: &[&str]) -> Packed {
        let number = self.number();
        let folder = self.lab.fresh_dir("release");
        let mut packed = scene::unpacked(&folder, SIZE + 2 * number);
        packed.keys = by.clone();
        let seq = seq.to_string();
        let name = if more.contains(&"--name") { vec![] } else { vec!["--name", "fw.img"] };
        let options = [&name[..], &["--block-size", "64KiB", "--seq", &seq], more].concat();
        well(&scene::pack_line(&packed, &options));
        packed
    }

    /// A release that takes a while: 6 MiB.
    fn large(&self, by: &Keys) -> Packed {
        let mut packed = scene::unpacked(&self.lab.fresh_dir("release"), 6 << 20);
        packed.keys = by.clone();
        well(&scene::pack_line(&packed, &["--name", "fw.img"]));
        packed
    }

    fn serve(&self, packed: &Packed, more: &[&str]) -> Running {
        let server = scene::serve(&self.server, packed, RATE, more);
        scene::wait_sending(&self.server, &server);
        server
    }

    fn line(&self, packed: &Packed, more: &[&str]) -> Vec<std::ffi::OsString> {
        let state = self.state();
        let wait = if more.contains(&"--timeout") { vec![] } else { vec!["--timeout", "3s"] };
        let options = [&wait[..], &["--force", "--state", state.to_str().unwrap()], more].concat();
        scene::get_line(&[SOURCE], packed, &self.out(), &options)
    }

    fn out(&self) -> PathBuf {
        self.lab.file("fw.img")
    }

    /// The device takes what a server sends.
    #[track_caller]
    fn takes(&self, packed: &Packed, serve: &[&str], get: &[&str]) -> String {
        let _server = self.serve(packed, serve);
        let client = self.device.spawn(&self.line(packed, get));
        scene::arrive(&client, packed, &self.out(), LIMIT);
        client.stdout() + &client.stderr()
    }

    /// The device refuses what a server sends, says why, and leaves alone what it has.
    #[track_caller]
    fn refuses(&self, packed: &Packed, serve: &[&str], get: &[&str], code: i32, says: &str) -> String {
        let _server = self.serve(packed, serve);
        let before = fs::read(self.out()).ok();
        let client = self.device.spawn(&self.line(packed, get));
        let exit = client.finish(LIMIT);
        assert_eq!(exit.code(), code, "{client}");
        assert!(client.stderr().contains(says), "{says:?} is not said: {client}");
        assert_eq!(fs::read(self.out()).ok(), before, "the target was touched");
        assert!(!self.lab.file(".fw.img.carousel-part").exists(), "something was left behind");
        client.stderr()
    }
}

#[track_caller]
fn well(line: &[std::ffi::OsString]) {
    let out = bins::run_line(line);
    assert!(out.status.success(), "{line:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Runs the server program; its exit code and what it said.
fn server_says(words: &[&dyn AsOsString]) -> (Option<i32>, String) {
    let out = bins::run(bins::server(), scene::args(words));
    (
        out.status.code(),
        String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout),
    )
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn keys_come_and_go_over_the_air() {
    let Some(fleet) = Fleet::enter("keys_come_and_go_over_the_air") else { return };
    let [r1, r2, r3, r4, r5, a, b, c] = &fleet.pairs(["r1", "r2", "r3", "r4", "r5", "a", "b", "c"]);
    let one = fleet.keys(1, (2, &[r1, r2, r3]), &[a], &[], &[r1, r3]);
    let keys = ["--keys", text(&one)];
    fleet.takes(&fleet.release(1, a, &[]), &[], &keys);
    // A release by a key that this device does not know yet, and the object that makes it known: another root key
    // too, and the old release key is no good any more.
    let revoke = ["--revoke", text(&a.public)];
    let two = fleet.keys(2, (2, &[r2, r3, r4]), &[b], &revoke, &[r2, r3]);
    let second = fleet.release(2, b, &[]);
    fleet.refuses(&second, &[], &keys, 3, "is not by a key we trust");
    let said = fleet.takes(&second, &["--keys", text(&two)], &keys);
    assert!(said.contains(r#""event":"keys","seconds""#) && said.contains(r#""version":2"#), "{said}");
    assert_eq!(fs::read(fleet.state().join("keys")).unwrap(), fs::read(&two).unwrap());
    // It stays so, without the server's help.
    fleet.refuses(&fleet.release(3, a, &[]), &[], &keys, 3, "was revoked");
    fleet.takes(&fleet.release(3, b, &[]), &[], &keys);
    // One old root key that went, and one new one, are not two.
    let evil = fleet.keys(3, (2, &[r1, r4]), &[c], &[], &[r1, r4]);
    let third = fleet.release(4, c, &[]);
    let said = fleet.refuses(&third, &["--keys", text(&evil)], &keys, 3, "is not by a key we trust");
    assert!(said.contains("keys object 3 is signed by 1 of 2 root keys of the version before"), "{said}");
    // Who slept through a change of root keys follows them one by one.
    let three = fleet.keys(3, (1, &[r5]), &[c], &[], &[r3, r4, r5]);
    let sleeper = fleet.lab.fresh_dir("sleeper");
    let line = |objects: &[&PathBuf]| {
        let _server =
            fleet.serve(&third, &objects.iter().flat_map(|path| ["--keys", text(path)]).collect::<Vec<_>>());
        let line = scene::get_line(
            &[SOURCE],
            &third,
            &sleeper.join("x"),
            &["--keys", text(&one), "--timeout", "3s"],
        );
        let client = fleet.device.spawn(&line);
        client.finish(LIMIT).code()
    };
    assert_eq!(line(&[&three]), 3, "only r3 of its own root keys has signed");
    assert_eq!(line(&[&two, &three]), 0);
    // An older object than the one in the state folder is as good as none.
    fleet.refuses(&fleet.release(9, a, &[]), &["--keys", text(&one)], &keys, 3, "was revoked");
}

#[test]
fn a_key_that_is_revoked_ends_what_it_began() {
    let Some(fleet) = Fleet::enter("a_key_that_is_revoked_ends_what_it_began") else { return };
    let [r, a, b] = &fleet.pairs(["r", "a", "b"]);
    let one = fleet.keys(1, (1, &[r]), &[a], &[], &[r]);
    let two = fleet.keys(2, (1, &[r]), &[b], &["--revoke", text(&a.public)], &[r]);
    let first = fleet.large(a);
    let before = fleet.serve(&first, &[]);
    let client = fleet.device.spawn(&fleet.line(&first, &["--keys", text(&one), "--timeout", "20s"]));
    lab::until("the transfer to begin", LIMIT, || client.stdout().contains("started"));
    drop(before);
    let _server = fleet.serve(&first, &["--keys", text(&two)]);
    assert_eq!(client.finish(LIMIT).code(), 3, "{client}");
    assert!(client.stderr().contains("given up on the way"), "{client}");
    assert!(!fleet.out().exists() && !fleet.lab.file(".fw.img.carousel-part").exists());
}

#[test]
fn no_release_comes_back() {
    let Some(fleet) = Fleet::enter("no_release_comes_back") else { return };
    let a = &fleet.pair("a");
    // The object's own place in the state: another name has its own numbers.
    let (old, new) = (fleet.release(41, a, &[]), fleet.release(42, a, &[]));
    fleet.takes(&old, &[], &[]);
    fleet.takes(&new, &[], &[]);
    fleet.refuses(&old, &[], &[], 4, "nothing below 42 is taken");
    fleet.takes(&new, &[], &[]);
    fleet.takes(&fleet.release(1, a, &["--name", "other.img"]), &[], &[]);
    // Back on purpose: the old contents under a new number.
    let mut back = old.clone();
    back.bundle = fleet.lab.file("back.carousel");
    well(&scene::pack_line(&back, &["--name", "fw.img", "--block-size", "64KiB", "--seq", "43"]));
    fleet.takes(&back, &[], &[]);
    assert_eq!(object::digest(&fleet.out()).unwrap(), old.digest);
    // Only what was handed over counts.
    let failed = fleet.release(44, a, &[]);
    let server = fleet.serve(&failed, &[]);
    let client = fleet.device.spawn(&fleet.line(&failed, &["--on-complete", "false"]));
    assert_eq!(client.finish(LIMIT).code(), 7, "{client}");
    drop(server);
    fleet.takes(&back, &[], &[]);
    // A keys object may forbid what a device that never had a release cannot know.
    let r = &fleet.pair("r");
    let floor = fleet.keys(1, (1, &[r]), &[a], &["--least", "fw.img=100"], &[r]);
    let fresh = fleet.lab.file("fresh");
    let options = ["--keys", text(&floor), "--state", text(&fresh)];
    let _server = fleet.serve(&failed, &[]);
    let line = scene::get_line(
        &[SOURCE],
        &failed,
        &fleet.lab.file("y"),
        &[&options[..], &["--timeout", "3s"]].concat(),
    );
    assert_eq!(fleet.device.spawn(&line).finish(LIMIT).code(), 4);
    // A damaged memory is said, and not taken for an empty one.
    for entry in fs::read_dir(fleet.state()).unwrap().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with("release-")) {
            fs::write(entry.path(), "?").unwrap();
        }
    }
    let client = fleet.device.spawn(&fleet.line(&failed, &[]));
    assert_eq!(client.finish(LIMIT).code(), 6, "{client}");
}

#[test]
fn a_network_that_withholds_is_noticed() {
    let Some(fleet) = Fleet::enter("a_network_that_withholds_is_noticed") else { return };
    let [r, a, h, x] = &fleet.pairs(["r", "a", "h", "x"]);
    let one = fleet.keys(1, (1, &[r]), &[a], &["--heartbeat", text(&h.public), "--require-heartbeat"], &[r]);
    let keys = ["--keys", text(&one)];
    let beats = ["--heartbeat-key", text(&h.secret)];
    let first = fleet.release(1, a, &[]);
    let nothing = "no fresh heartbeat says";
    fleet.refuses(&first, &[], &keys, 4, nothing);
    fleet.refuses(&first, &["--heartbeat-key", text(&x.secret)], &keys, 4, nothing);
    fleet.refuses(&first, &["--heartbeat-key", text(&a.secret)], &keys, 4, nothing);
    fleet.takes(&first, &beats, &keys);
    // Two bundles on one group: the heartbeat of the one is none for the other, which this device had not yet; and
    // the one that lives is too old.
    let (second, third) = (fleet.release(2, a, &[]), fleet.release(3, a, &[]));
    fleet.takes(&second, &beats, &keys);
    let _mixed = fleet.serve(&first, &beats);
    fleet.refuses(&third, &[], &keys, 4, "");
    // The server itself says it if nobody would believe its heartbeats.
    let (code, said) = server_says(&[
        &"run",
        &first.bundle,
        &"--group",
        &GROUP,
        &"--port",
        &PORT.to_string(),
        &"--interface",
        &"lo",
        &"--keys",
        &one,
        &"--heartbeat-key",
        &x.secret,
    ]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no device would believe it"), "{said}");
}

/// The library that shifts a program's clock, where Debian puts it.
fn faketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?;
    folders.flatten().map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|path| path.exists())
}

/// A command line with another clock. What the library leaves in /dev/shm goes with its own one.
fn at(time: &str, line: Vec<std::ffi::OsString>) -> Option<Vec<std::ffi::OsString>> {
    let private = "mount -t tmpfs tmpfs /dev/shm && time=$1 && shift && \
                   exec env LD_PRELOAD=\"$0\" FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME=\"$time\" \"$@\"";
    let mut words = scene::args(&[&"unshare", &"--mount", &"sh", &"-c", &private, &faketime()?, &time]);
    words.extend(line);
    Some(words)
}

#[test]
fn a_recorded_heartbeat_is_too_old() {
    let test = "a_recorded_heartbeat_is_too_old";
    let Some(fleet) = Fleet::enter(test) else { return };
    let [r, a, h] = &fleet.pairs(["r", "a", "h"]);
    let one = fleet.keys(1, (1, &[r]), &[a], &["--heartbeat", text(&h.public)], &[r]);
    let first = fleet.release(1, a, &[]);
    let options = ["--keys", text(&one), "--require-heartbeat"];
    // What was on the air two days ago, as somebody who recorded it would send it.
    let recorded = |life: &str| {
        let more = ["--heartbeat-key", text(&h.secret), "--heartbeat-life", life];
        let server = fleet.server.spawn(&at("-2d", scene::serve_line(&first, RATE, &more))?);
        scene::wait_sending(&fleet.server, &server);
        Some(server)
    };
    let Some(server) = recorded("1d") else {
        return lab::skip(test, "the library of the program faketime is missing");
    };
    let client = fleet.device.spawn(&fleet.line(&first, &options));
    assert_eq!(client.finish(LIMIT).code(), 4, "{client}");
    drop(server);
    // Whose heartbeats count for three days, for him it is not.
    let server = recorded("3d");
    let client = fleet.device.spawn(&fleet.line(&first, &options));
    scene::arrive(&client, &first, &fleet.out(), LIMIT);
    drop(server);
    fleet.takes(&first, &["--heartbeat-key", text(&h.secret)], &options);
}

#[test]
fn a_device_without_a_clock_knows_how_late_it_is_at_least() {
    let test = "a_device_without_a_clock_knows_how_late_it_is_at_least";
    let Some(fleet) = Fleet::enter(test) else { return };
    let [r, a] = &fleet.pairs(["r", "a"]);
    let one = fleet.keys(1, (1, &[r]), &[a], &["--created", "@1000"], &[r]);
    let keys = ["--keys", text(&one)];
    let ended = |packed: &Packed| {
        let _server = fleet.serve(packed, &[]);
        let client = fleet.device.spawn(&at("@1970-01-02 00:00:00", fleet.line(packed, &keys))?);
        Some((client.finish(LIMIT).code(), client.stderr()))
    };
    // Ended long ago, but how should it know?
    let over = |seq, created| fleet.release(seq, a, &["--created", created, "--expires", "2020-01-01"]);
    let Some((code, said)) = ended(&over(1, "2019-01-01")) else {
        return lab::skip(test, "the library of the program faketime is missing");
    };
    assert_eq!(code, 0, "{said}");
    let (code, said) = ended(&fleet.release(2, a, &["--created", "2026-01-01"])).unwrap();
    assert_eq!(code, 0, "{said}");
    // Now it knows that 2026 has begun, and does not forget it.
    let (code, said) = ended(&over(3, "2019-01-01")).unwrap();
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("expired on 2020-01-01"), "{said}");
}

#[test]
fn expired_keys_begin_nothing_and_can_be_renewed() {
    let Some(fleet) = Fleet::enter("expired_keys_begin_nothing_and_can_be_renewed") else { return };
    let [r, a] = &fleet.pairs(["r", "a"]);
    let one = fleet.keys(1, (1, &[r]), &[a], &["--expires", "2020-01-01"], &[r]);
    let two = fleet.keys(2, (1, &[r]), &[a], &[], &[r]);
    let (first, keys) = (fleet.release(1, a, &[]), ["--keys", text(&one)]);
    fs::write(fleet.out(), "what was there before").unwrap();
    fleet.refuses(&first, &[], &keys, 4, "keys object 1 expired on 2020-01-01");
    fleet.takes(&first, &["--keys", text(&two)], &keys);
}

#[test]
fn what_is_no_keys_object_is_said_in_one_line() {
    let Some(fleet) = Fleet::enter("what_is_no_keys_object_is_said_in_one_line") else { return };
    let [r1, r2, a] = &fleet.pairs(["r1", "r2", "a"]);
    let half = fleet.keys(1, (2, &[r1, r2]), &[a], &[], &[r1]);
    let first = fleet.release(1, a, &[]);
    let got = |keys: &Path, more: &[&str]| {
        let client = fleet.device.spawn(&fleet.line(&first, &[&["--keys", text(keys)], more].concat()));
        (client.finish(LIMIT).code(), client.stderr())
    };
    let (code, said) = got(&half, &[]);
    assert!(code == 3 && said.contains("signed by 1 of 2 root keys"), "{code} {said}");
    let (code, said) = got(&a.public, &[]);
    assert!(code == 2 && said.contains("goes with --key"), "{code} {said}");
    assert_eq!(got(&fleet.lab.file("none"), &[]).0, 2);
    let served = |keys: &Path| {
        let port = PORT.to_string();
        server_says(&[
            &"run",
            &first.bundle,
            &"--group",
            &GROUP,
            &"--port",
            &port,
            &"--interface",
            &"lo",
            &"--keys",
            &keys,
        ])
    };
    assert_eq!(served(&half).0, Some(3));
    assert_eq!(served(&a.public).0, Some(2));
    let (code, said) = server_says(&[&"keys", &"inspect", &half]);
    assert!(code == Some(3) && said.contains("2 of 2 root keys"), "{said}");
    // minisign itself signs, and something else than this object is noticed.
    if !lab::have("minisign") {
        return lab::skip("what_is_no_keys_object_is_said_in_one_line", "the program minisign is missing");
    }
    let bytes = PathBuf::from(format!("{}.cbor", text(&half)));
    let signature = fleet.lab.file("r2.minisig");
    let sign = |bytes: &Path| {
        let out =
            bins::run("minisign", scene::args(&[&"-S", &"-s", &r2.secret, &"-x", &signature, &"-m", &bytes]));
        assert!(out.status.success(), "{out:?}");
    };
    sign(&a.public);
    let (code, said) = server_says(&[&"keys", &"seal", &half, &"--signature", &signature]);
    assert!(code == Some(3) && said.contains("sign ") && said.lines().count() == 1, "{code:?} {said}");
    sign(&bytes);
    assert_eq!(server_says(&[&"keys", &"seal", &half, &"--signature", &signature]).0, Some(0));
    assert_eq!(server_says(&[&"keys", &"inspect", &half, &"--json"]).0, Some(0));
    fleet.takes(&first, &["--keys", text(&half)], &["--keys", text(&half)]);
}

/// Forged keys objects and heartbeats, thousands a second from the server's own address, each signed by one root key
/// and, so it says, by another: they cost processor time, and no more than a share of it. What has begun goes on, and
/// what begins is only late.
#[test]
fn a_flood_of_forged_statements_stops_nothing() {
    let Some(fleet) = Fleet::enter("a_flood_of_forged_statements_stops_nothing") else { return };
    let [r1, r2, x, y, a, h] = &fleet.pairs(["r1", "r2", "x", "y", "a", "h"]);
    let one = fleet.keys(1, (2, &[r1, r2]), &[a], &["--heartbeat", text(&h.public)], &[r1, r2]);
    let evil = fs::read(fleet.keys(9, (1, &[x]), &[y], &[], &[r1, x])).unwrap();
    let mut evil = SignedKeys::parse(&evil).unwrap();
    let second = Key::parse(&fs::read_to_string(&r2.public).unwrap()).unwrap();
    let mut forged: Signature = evil.signatures()[1].clone();
    forged.id = second.id();
    evil.add(forged).unwrap();
    let evil = evil.emit().unwrap();
    let large = fleet.large(a);
    let server = scene::serve(&fleet.server, &large, "20M", &["--heartbeat-key", text(&h.secret)]);
    scene::wait_sending(&fleet.server, &server);
    let channel = Channel { source: SOURCE.parse().unwrap(), group: GROUP.parse().unwrap(), port: PORT };
    let (mut keys, heartbeat) = fleet.server.within(|| {
        // Every two thousandth is a heartbeat, and what comes while we have no CPU is not recorded.
        let mut real = (0..5).flat_map(|_| forgery::record(&channel, 8_000, LIMIT).unwrap());
        (real.next().unwrap(), real.find(|packet| packet[1] == 5).unwrap())
    });
    keys[1] = 4;
    keys[34..].fill(0);
    keys[44..44 + evil.len()].copy_from_slice(&evil);
    let options = ["--keys", text(&one), "--require-heartbeat", "--timeout", "90s", "--force"];
    let get = || scene::get(&fleet.device, &[SOURCE], &large, &fleet.out(), &options);
    let before = get();
    lab::until("the transfer to begin", LIMIT, || before.stdout().contains("started"));
    let stop = AtomicBool::new(false);
    let (first, late) = std::thread::scope(|scope| {
        scope.spawn(|| {
            fleet.server.within(|| {
                let interface = nix::net::if_::if_nametoindex("eth0").unwrap();
                let own = SOURCE.parse().unwrap();
                let templates = [keys.clone(), heartbeat.clone()];
                let go_on = |_| !stop.load(Ordering::Relaxed);
                forgery::flood(&templates, Lie::Byte, &channel, own, interface, 50e6, go_on).unwrap();
            });
        });
        let ends = |client: Running| client.wait(2 * LIMIT).map(|_| client);
        let ended = (ends(before), ends(get()));
        stop.store(true, Ordering::Relaxed);
        ended
    });
    let arrive = |client: Option<Running>, when| {
        let got = scene::arrive(&client.unwrap(), &large, &fleet.out(), LIMIT);
        got.row(when, &format!("{:.3} x ideal", got.over_ideal(20e6, 0.0)));
        assert!(got.done.packets_rejected > 100 && got.exit.peak_rss <= 32 << 20, "{when}: {got:?}");
        got
    };
    let first = arrive(first, "forged keys and heartbeats, 2.5 x the rate, after the beginning");
    arrive(late, "the same from before the beginning");
    // 1.03 on an idle machine. Five seconds more are for a disk and processors that are busy with others.
    assert!(first.over_ideal(20e6, 0.0) <= 3.0, "{first:?}");
    assert!(server.is_alive(), "{server}");
}
