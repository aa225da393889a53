//! The same input gives the same bundle, byte for byte: anybody may check what was signed.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{Folder, Lab};
use carousel_tests::scene::{self, AsOsString, Packed, SOURCE, args};
use carousel_tests::{bins, object};
use std::ffi::OsString;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

const MIB: u64 = 1 << 20;

fn runs(line: &[OsString]) {
    let out = bins::run_line(line);
    assert!(out.status.success(), "{line:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn same(one: &Path, other: &Path) -> bool {
    object::digest(one).unwrap() == object::digest(other).unwrap()
}

/// The same object and key in another folder, with the same time.
fn copy(of: &Packed, folder: &Path) -> Packed {
    fs::create_dir(folder).unwrap();
    let mut copy = of.clone();
    copy.object = folder.join("object");
    copy.bundle = folder.join("other-name.carousel");
    copy.keys.secret = folder.join("other-name.key");
    fs::copy(&of.object, &copy.object).unwrap();
    fs::copy(&of.keys.secret, &copy.keys.secret).unwrap();
    touch(&copy.object, fs::metadata(&of.object).unwrap().modified().unwrap());
    copy
}

fn touch(path: &Path, modified: SystemTime) {
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_times(FileTimes::new().set_modified(modified))
        .unwrap();
}

#[test]
fn same_input_gives_the_same_bundle() {
    let dir = Folder::new();
    // Many blocks and a short one, so that several threads work.
    let packed = scene::pack(dir.path(), 30 * MIB + 12_345, &["--block-size", "1MiB"]);
    let other = copy(&packed, &dir.path().join("elsewhere"));
    let line = scene::pack_line(&other, &["--block-size", "1MiB"]);
    // One processor, another order of work. Which of them are ours is the machine's choice.
    let ours = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let one = (0..nix::sched::CpuSet::count()).find(|cpu| ours.is_set(*cpu).unwrap()).unwrap().to_string();
    let alone: [&dyn AsOsString; 3] = [&"taskset", &"-c", &one];
    runs(&[args(&alone), line.clone()].concat());
    assert!(same(&packed.bundle, &other.bundle), "place or number of processors show in the bundle");

    // The time does show, unless it is stated.
    touch(&other.object, SystemTime::UNIX_EPOCH + Duration::from_secs(86_400));
    let again = |more: &[&str], epoch: Option<&str>| {
        let environment = epoch.map(|e| format!("SOURCE_DATE_EPOCH={e}"));
        let mut whole = args(&[&"env"]);
        whole.extend(environment.map(OsString::from));
        whole.extend(line.iter().cloned().chain(["--force".into()]).chain(more.iter().map(OsString::from)));
        runs(&whole);
        object::digest(&other.bundle).unwrap()
    };
    let by_file = again(&[], None);
    assert_ne!(by_file, object::digest(&packed.bundle).unwrap());
    assert_eq!(by_file, again(&[], Some("86400")));
    assert_eq!(by_file, again(&["--created", "1970-01-02"], Some("5")));
}

#[test]
fn refused_pack_leaves_nothing() {
    let dir = Folder::new();
    let packed = scene::pack(dir.path(), MIB, &[]);
    let before = object::digest(&packed.bundle).unwrap();
    let out = bins::run_line(&scene::pack_line(&packed, &[]));
    assert_eq!(out.status.code(), Some(2), "an existing bundle is not replaced");
    assert_eq!(object::digest(&packed.bundle).unwrap(), before);
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["F.carousel", "object", "release.key", "release.pub"]);
}

/// A disk that lies: a few symbols of the bundle are not what was signed. They are as good as lost, and no worse.
#[test]
fn damaged_symbols_are_as_good_as_lost() {
    let Some(lab) = Lab::enter("damaged_symbols_are_as_good_as_lost") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 4 * MIB, &[]);
    let bundle = File::options().read(true).write(true).open(&packed.bundle).unwrap();
    let len = bundle.metadata().unwrap().len();
    for at in (1..40).map(|n| n * len / 40) {
        let mut byte = [0];
        bundle.read_exact_at(&mut byte, at).unwrap();
        bundle.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
    }
    let _server = scene::serve(&s, &packed, "20M", &[]);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    let got = scene::arrive(&client, &packed, &out, Duration::from_secs(30));
    got.row("39 damaged records", &format!("{:.3} x ideal", got.over_ideal(20e6, 0.0)));
    // 1.1, and more where an attempt to decode what the damage spoils takes long.
    assert!(got.packets_per_symbol() <= 2.5, "{got:?}");
}

#[test]
fn bundle_is_served_from_anywhere() {
    let Some(lab) = Lab::enter("bundle_is_served_from_anywhere") else { return };
    let (s, c) = scene::pair(&lab);
    let mut packed = scene::pack(lab.dir(), MIB, &[]);
    let moved = lab.file("moved.bin");
    fs::rename(&packed.bundle, &moved).unwrap();
    // Neither the original nor the key is needed any more.
    fs::remove_file(&packed.object).unwrap();
    fs::remove_file(&packed.keys.secret).unwrap();
    packed.bundle = moved;
    let _server = scene::serve(&s, &packed, "20M", &[]);
    let folder = lab.file("target");
    fs::create_dir(&folder).unwrap();
    // Into a folder: the object keeps its own name.
    let client = scene::get(&c, &[SOURCE], &packed, &folder, &[]);
    scene::arrive(&client, &packed, &folder.join("object"), Duration::from_secs(30)).row("moved bundle", "");
}
