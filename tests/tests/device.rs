//! A block device as the target: ours alone, long enough, left as it was where it must be, and read back from the disk
//! before anybody is told.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::Argument::{Number, Text};
use carousel_tests::lab::{self, CAN_INJECT, Disk, Fate, Host, Lab, Loss, Running, inject, until};
use carousel_tests::scene::{self, AsOsString, Packed, SOURCE, args};
use carousel_tests::{bins, figures, object};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// What is on a device before, and must be there after where the object is not.
const BEFORE: u8 = 0xa5;

/// A device of so many bytes.
fn disk(lab: &Lab, size: u64) -> Option<Disk> {
    let image = lab.fresh_dir("disk").join("image");
    fs::write(&image, vec![BEFORE; size as usize]).unwrap();
    Disk::over(lab, &image)
}

/// What is on the disk itself, whatever the kernel has in memory of the device.
fn on_disk(disk: &Disk) -> Vec<u8> {
    fs::read(disk.image()).unwrap()
}

fn is_untouched(disk: &Disk) -> bool {
    on_disk(disk).iter().all(|byte| *byte == BEFORE)
}

/// A get onto a device.
fn get(c: &Host, packed: &Packed, disk: &Disk, more: &[&str]) -> Running {
    scene::get(c, &[SOURCE], packed, disk.path(), &[&["--device"], more].concat())
}

/// The last event of that name that a client told.
fn event(client: &Running, name: &str) -> Option<Value> {
    let text = client.stdout();
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.rev().find(|event| event["event"] == name)
}

/// The symbols that a client told of, second after second.
fn progress(client: &Running) -> impl Iterator<Item = u64> {
    let events = client.stdout();
    let events: Vec<Value> = events.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    events
        .into_iter()
        .filter(|event| event["event"] == "progress")
        .filter_map(|event| event["symbols_received"].as_u64())
}

fn number(client: &Running, event_name: &str, name: &str) -> u64 {
    event(client, event_name).and_then(|event| event[name].as_u64()).unwrap_or_default()
}

/// Waits for a get and checks what is on the disk: the object, and behind it what was there before.
fn arrive(client: &Running, packed: &Packed, disk: &Disk) {
    let exit = client.finish(LIMIT);
    assert_eq!(exit.code(), 0, "{client}");
    assert_eq!(number(client, "done", "size"), packed.size, "{client}");
    let bytes = on_disk(disk);
    let (object, behind) = bytes.split_at(packed.size as usize);
    assert!(object == fs::read(&packed.object).unwrap(), "the device differs from the object");
    assert!(behind.iter().all(|byte| *byte == BEFORE), "something was written behind the object");
}

/// The object is a file system that fills the device to the last byte: what has to be parked behind its end, as in a
/// file, has no room there. The hook mounts it, which the kernel allows nobody while somebody else has it for himself.
#[test]
fn whole_device_is_there_and_free_when_the_hook_runs() {
    let test = "whole_device_is_there_and_free_when_the_hook_runs";
    if !lab::have("mkfs.ext2") {
        return lab::skip(test, "the program mkfs.ext2 is missing");
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let contents = lab.fresh_dir("contents");
    object::write(&contents.join("file"), 3 * MIB, 1).unwrap();
    let packed = Packed { size: 8 * MIB, ..scene::unpacked(lab.dir(), 0) };
    let words: [&dyn AsOsString; 8] =
        [&"mkfs.ext2", &"-q", &"-d", &contents, &"-r", &"1", &packed.object, &"8M"];
    let made = bins::run_line(&args(&words));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let packed = Packed { digest: object::digest(&packed.object).unwrap(), ..packed };
    assert!(bins::run_line(&scene::pack_line(&packed, &["--block-size", "1MiB"])).status.success());
    let Some(disk) = disk(&lab, 8 * MIB) else { return };
    c.loss("eth0", Loss::PerMille(100));
    let server = scene::serve(&s, &packed, "40M", &[]);
    scene::wait_sending(&s, &server);

    let (mount, there) = (lab.fresh_dir("mount"), contents.join("file"));
    let look = format!(
        "unshare -m sh -c 'mount -o ro \"$CAROUSEL_PATH\" {0} && cmp {0}/file {1}'",
        mount.display(),
        there.display()
    );
    let client = get(&c, &packed, &disk, &["--on-complete", &look]);
    let got = scene::arrive(&client, &packed, disk.path(), LIMIT);
    got.row("a device, 10 % loss", "mounted by the hook");
    assert!(number(&client, "done", "blocks_decoded") > 0, "nothing was restored: {client}");
    assert!(on_disk(&disk) == fs::read(&packed.object).unwrap());
    // And once more from itself: what is there already need not come. The exclusive descriptor is not in the way.
    let seed = disk.path().to_str().unwrap();
    let client = get(&c, &packed, &disk, &["--seed", seed, "--on-complete", &look]);
    let got = scene::arrive(&client, &packed, disk.path(), LIMIT);
    got.row("the same again, with itself as seed", "");
    assert_eq!(number(&client, "done", "blocks_found"), 8, "{client}");
}

#[test]
fn odd_sizes_leave_alone_what_is_behind() {
    let Some(lab) = Lab::enter("odd_sizes_leave_alone_what_is_behind") else { return };
    let (s, c) = scene::pair(&lab);
    c.loss("eth0", Loss::PerMille(200));
    for size in [1, 511, 4097, MIB - 1, 2 * MIB + 1189] {
        let packed = scene::pack(&lab.fresh_dir("packed"), size, &["--block-size", "64KiB"]);
        let Some(disk) = disk(&lab, size.next_multiple_of(512) + 8192) else { return };
        let _server = scene::serve(&s, &packed, "20M", &[]);
        arrive(&get(&c, &packed, &disk, &[]), &packed, &disk);
    }
}

#[test]
fn devices_that_cannot_be_had_are_refused_and_left_alone() {
    let Some(lab) = Lab::enter("devices_that_cannot_be_had_are_refused_and_left_alone") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 4 * MIB, &[]);
    let server = scene::serve(&s, &packed, "20M", &[]);
    scene::wait_sending(&s, &server);
    let refused = |out: &Path, more: &[&str], code: i32, words: &str| {
        let client = scene::get(&c, &[SOURCE], &packed, out, more);
        assert_eq!(client.finish(LIMIT).code(), code, "{client}");
        let said = client.stderr();
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains(words) && last.contains(&out.display().to_string()), "{client}");
    };
    let file = lab.file("file");
    fs::write(&file, "x").unwrap();
    refused(&file, &["--device"], 2, "leave --device out");
    refused(&lab.file("none"), &["--device"], 2, "check the path");
    refused(lab.dir(), &["--device"], 2, "leave --device out");
    refused(Path::new("/dev/null"), &["--device"], 2, "leave --device out");
    // It would have been renamed over.
    refused(Path::new("/dev/null"), &["--force"], 2, "neither a file nor a folder");
    assert!(!File::open("/dev/null").unwrap().metadata().unwrap().is_file());

    let Some(small) = disk(&lab, 4 * MIB - 512) else { return };
    refused(small.path(), &[], 2, "with --device");
    refused(small.path(), &["--force"], 2, "with --device");
    refused(small.path(), &["--device"], 6, "4194304 bytes");
    assert!(is_untouched(&small));

    // Who has joined has the device, and who gets nothing keeps it until the other one was refused.
    let Some(ours) = disk(&lab, 5 * MIB) else { return };
    c.let_in("eth0", Some(0));
    let first = get(&c, &packed, &ours, &[]);
    scene::wait_joined(&c);
    refused(ours.path(), &["--device"], 75, "another client is at work on it");
    c.let_in("eth0", None);
    arrive(&first, &packed, &ours);

    // What is mounted is in use, whoever mounted it, and wherever.
    if !lab::have("mkfs.ext2") {
        return lab::skip(lab.name(), "the program mkfs.ext2 is missing");
    }
    let used = lab.fresh_dir("disk").join("image");
    fs::write(&used, vec![0; 8 << 20]).unwrap();
    let made = bins::run_line(&args(&[&"mkfs.ext2", &"-q", &"-F", &used]));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let Some(used) = Disk::over(&lab, &used) else { return };
    let mount = lab.fresh_dir("mount");
    let script = "mount -o ro \"$0\" \"$1\" && echo mounted && exec sleep 120";
    let words: [&dyn AsOsString; 7] = [&"unshare", &"-m", &"sh", &"-c", &script, &used.path(), &mount];
    let holder = c.spawn(&args(&words));
    until("the device to be mounted", LIMIT, || {
        assert!(holder.is_alive(), "{holder}");
        holder.stdout().contains("mounted")
    });
    let before = on_disk(&used);
    refused(used.path(), &["--device"], 6, "in use: mounted");
    assert!(on_disk(&used) == before);
}

/// The log of the only device that a folder for `--state` has one of; or a name that nothing has.
fn journal(state: &Path) -> PathBuf {
    let mut files = fs::read_dir(state).into_iter().flatten().map(|entry| entry.unwrap().path());
    let is_journal = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("device-");
    files.find(is_journal).unwrap_or_else(|| state.join("device-none"))
}

#[test]
fn killed_on_a_device_it_goes_on_where_it_has_a_state() {
    let Some(lab) = Lab::enter("killed_on_a_device_it_goes_on_where_it_has_a_state") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &["--block-size", "1MiB"]);
    let server = scene::serve(&s, &packed, "40M", &[]);
    scene::wait_sending(&s, &server);
    c.loss("eth0", Loss::PerMille(100));
    let state = lab.file("state");
    let with_state = ["--state", state.to_str().unwrap()];
    for (more, keeps) in [(&with_state[..], true), (&[], false)] {
        let Some(disk) = disk(&lab, 9 * MIB) else { return };
        let half = packed.size / 1188 / 2;
        let client = scene::get_part(&c, &packed, disk.path(), half, &[&["--device"], more].concat());
        until("half of the object", LIMIT, || {
            assert!(client.is_alive(), "{client}");
            number(&client, "progress", "symbols_received") > half * 9 / 10
        });
        if keeps {
            scene::wait_logged(&client, &journal(&state), half * 9 / 10, LIMIT);
        }
        client.kill(Signal::SIGKILL);
        client.finish(LIMIT);
        c.let_in("eth0", None);
        let again = get(&c, &packed, &disk, more);
        arrive(&again, &packed, &disk);
        let (had, needed) =
            (number(&again, "resumed", "symbols_received"), number(&again, "done", "symbols_needed"));
        let came = number(&again, "done", "symbols_received");
        let what = if keeps { "killed at half, with --state" } else { "killed at half, without" };
        figures::row(what, &[("had", &had), ("came", &came), ("needed", &needed)]);
        assert_eq!(had > needed / 4, keeps, "{had} of {needed} {again}");
        assert!(!keeps || came < needed * 3 / 4, "{came} of {needed} {again}");
        assert!(!journal(&state).exists(), "the journal is left behind");
    }
}

/// Half of the object comes from a seed and is on the disk, and in the kernel's memory, when the disk goes bad. Nothing
/// but reading from the disk itself shows that.
#[test]
fn disk_that_forgets_is_found_out_before_the_hook_runs() {
    let Some(lab) = Lab::enter("disk_that_forgets_is_found_out_before_the_hook_runs") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 4 * MIB, &["--block-size", "1MiB"]);
    let seed = lab.file("seed");
    let mut bytes = fs::read(&packed.object).unwrap();
    bytes[2 * MIB as usize..].fill(0);
    fs::write(&seed, bytes).unwrap();
    let Some(disk) = disk(&lab, 4 * MIB) else { return };
    let (state, ran) = (lab.file("state"), lab.file("ran"));
    let hook = format!("touch {}", ran.display());
    let more = [
        "--state",
        state.to_str().unwrap(),
        "--seed",
        seed.to_str().unwrap(),
        "--on-complete",
        hook.as_str(),
    ];
    let client = get(&c, &packed, &disk, &more);
    scene::wait_joined(&c);
    let server = scene::serve(&s, &packed, "3M", &[]);
    let half = packed.size / 2 / 1188;
    until("the seed's half", LIMIT, || {
        assert!(client.is_alive(), "{client}");
        number(&client, "progress", "symbols_received") > half + half / 10
    });
    File::open(disk.path()).unwrap().sync_all().unwrap();
    let rotten = File::options().write(true).open(disk.image()).unwrap();
    rotten.write_all_at(b"rotten", MIB / 2).unwrap();
    assert_eq!(client.finish(LIMIT).code(), 6, "{client}");
    assert!(client.stderr().contains("gives back other bytes"), "{client}");
    assert!(!ran.exists(), "handed over all the same");
    // The disk was to blame, and is well again: what is right is kept, what is not comes once more.
    drop(server);
    let _server = scene::serve(&s, &packed, "20M", &[]);
    let again = get(&c, &packed, &disk, &more[..2]);
    arrive(&again, &packed, &disk);
    let (found, decoded) = (number(&again, "done", "blocks_found"), number(&again, "done", "blocks_decoded"));
    figures::row("after the disk forgot", &[("blocks kept", &found), ("blocks that came again", &decoded)]);
    assert_eq!((found, decoded), (3, 1), "{again}");
}

/// The device is opened before the first packet, and no other is: from then on the client reaches no file at all.
#[test]
fn client_on_a_device_can_open_nothing() {
    let test = "client_on_a_device_can_open_nothing";
    if !CAN_INJECT {
        return lab::skip(test, "no calls can be injected on this machine");
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 4 * MIB, &[]);
    let Some(disk) = disk(&lab, 4 * MIB) else { return };
    let server = scene::serve(&s, &packed, "2M", &[]);
    scene::wait_sending(&s, &server);
    let open = |client: &Running, path: &Path, flags: libc::c_int| {
        let path = path.to_str().unwrap();
        let arguments = [Number(libc::AT_FDCWD.into()), Text(path), Number(flags.into()), Number(0o600)];
        inject(client, libc::SYS_openat, &arguments)
    };
    let refused = Fate::Returned(-i64::from(libc::EACCES));
    for (more, closed) in [(&[][..], true), (&["--no-sandbox"], false)] {
        let client = get(&c, &packed, &disk, more);
        scene::wait_joined(&c); // in its sandbox
        let (beside, created) = (lab.file("beside"), libc::O_WRONLY | libc::O_CREAT);
        for (path, flags) in
            [(disk.path(), libc::O_RDONLY), (&beside, created), (Path::new("/dev/null"), libc::O_WRONLY)]
        {
            let fate = open(&client, path, flags);
            assert_eq!(fate == refused, closed, "{} {fate:?} {client}", path.display());
        }
        assert_eq!(beside.exists(), !closed);
        // And room for it, which is looked for by a thread that may have to wait for a CPU: one second, then, or two.
        until("something of the object to be there", LIMIT, || {
            assert!(client.is_alive(), "{client}");
            progress(&client).filter(|symbols| *symbols > 0).count() > 2
        });
        client.kill(Signal::SIGTERM);
        assert_eq!(client.finish(LIMIT).code(), 1, "{client}");
        assert!(client.stderr().contains("interrupted; the device holds a part of the object"), "{client}");
    }
}
