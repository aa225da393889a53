//! Power cuts and failing disks. One real transfer is recorded, system call by system call; then it is cut off wherever
//! one likes, with whatever was not synced by then lost, late or torn, and a real client goes on with what is left.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{self, Lab};
use carousel_tests::scene::{self, Packed, SOURCE, args};
use carousel_tests::{figures, object};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// Clients at a time.
const AT_ONCE: usize = 8;
const TARGET: &str = "got";
const PART: &str = ".got.carousel-part";
const LOG: &str = ".got.carousel-log";

/// `CAROUSEL_CRASHES=10000` is the long run that is made by hand.
fn crashes() -> usize {
    std::env::var("CAROUSEL_CRASHES").ok().and_then(|text| text.parse().ok()).unwrap_or(240)
}

/// What a program did to the folder.
#[derive(Debug)]
enum Step {
    Write { file: String, at: u64, bytes: Vec<u8> },
    Length { file: String, len: u64 },
    Sync { file: String },
    Rename { from: String, to: String },
    Remove { file: String },
    SyncFolder,
}

/// Takes strace's files (`-ff -ttt -y -xx`), one for each thread, in the order of time.
fn recorded(folder: &Path, prefix: &str, target: &Path) -> Vec<Step> {
    let mut lines: Vec<(String, String)> = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            let text = fs::read_to_string(entry.path()).unwrap();
            fs::remove_file(entry.path()).unwrap();
            let split =
                |line: &str| line.split_once(' ').map(|(time, call)| (time.to_owned(), call.to_owned()));
            lines.extend(text.lines().filter_map(split));
        }
    }
    lines.sort();
    lines.iter().filter_map(|(_, call)| step(call, target)).collect()
}

/// `pwrite64(7</lab/target/.got.carousel-part>, "\x…", 1188, 0) = 1188`
fn step(line: &str, target: &Path) -> Option<Step> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    if result.starts_with('-') || result.starts_with('?') {
        return None;
    }
    let folder = target.display().to_string();
    // The descriptor's path, if that is in the folder.
    let hex = |text: &str| -> Vec<u8> {
        text.split("\\x").skip(1).map(|digits| u8::from_str_radix(&digits[..2], 16).unwrap()).collect()
    };
    let of_descriptor = || {
        let path = arguments.split_once('<')?.1.split_once('>')?.0;
        let path = String::from_utf8(hex(path)).unwrap();
        Some(path.strip_prefix(&folder)?.trim_start_matches('/').to_owned())
    };
    // A path as an argument, in quotes and hexadecimal.
    let paths = || -> Vec<String> {
        let quoted =
            arguments.split('"').skip(1).step_by(2).map(|text| String::from_utf8(hex(text)).unwrap());
        quoted.filter_map(|path| Some(Path::new(&path).file_name()?.to_str()?.to_owned())).collect()
    };
    match name.trim() {
        "pwrite64" => {
            let file = of_descriptor()?;
            let mut parts = arguments.split('"');
            let bytes = hex(parts.nth(1)?);
            let at = parts.next()?.trim_end_matches(')').rsplit(", ").next()?.parse().unwrap();
            let written: usize = result.trim().parse().unwrap();
            assert_eq!(written, bytes.len(), "strace cut the bytes off, or the write was short: {result}");
            Some(Step::Write { file, at, bytes })
        }
        "ftruncate" => {
            let len = arguments.trim_end_matches(')').rsplit(", ").next()?.parse().unwrap();
            Some(Step::Length { file: of_descriptor()?, len })
        }
        "fsync" | "fdatasync" => {
            let file = of_descriptor()?;
            Some(if file.is_empty() { Step::SyncFolder } else { Step::Sync { file } })
        }
        "renameat2" | "rename" | "renameat" => {
            let [from, to] = paths().try_into().unwrap();
            Some(Step::Rename { from, to })
        }
        "unlinkat" | "unlink" => Some(Step::Remove { file: paths().pop()? }),
        _ => None,
    }
}

/// Small numbers that follow from a seed.
struct Dice(blake3::OutputReader);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }

    fn below(&mut self, end: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % end.max(1) as u64) as usize
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// The folder as a disk may have it when the power goes after so many steps.
fn after_crash(steps: &[Step], dice: &mut Dice) -> BTreeMap<String, Vec<u8>> {
    let synced = |name: &str| {
        steps
            .iter()
            .rposition(|step| matches!(step, Step::Sync { file } if file == name))
            .map_or(0, |at| at + 1)
    };
    let folder_synced =
        steps.iter().rposition(|step| matches!(step, Step::SyncFolder)).map_or(0, |at| at + 1);
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for name in [PART, LOG] {
        let mut content = Vec::new();
        let mut late: Vec<(&Step, bool)> = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            let is_mine =
                matches!(step, Step::Write { file, .. } | Step::Length { file, .. } if file == name);
            if is_mine && number < synced(name) {
                apply(&mut content, step, false);
            } else if is_mine && dice.coin() {
                late.push((step, dice.below(4) == 0));
            }
        }
        // What was not synced comes in any order, or not at all, or torn.
        while !late.is_empty() {
            let (step, torn) = late.swap_remove(dice.below(late.len()));
            apply(&mut content, step, torn);
        }
        // Never synced, a file may not even have its name.
        if !content.is_empty() || dice.coin() {
            files.insert(name.to_owned(), content);
        }
    }
    for (number, step) in steps.iter().enumerate() {
        let happened = number < folder_synced || dice.coin();
        match step {
            Step::Rename { from, to } if happened => {
                if let Some(content) = files.remove(from) {
                    files.insert(to.clone(), content);
                }
            }
            Step::Remove { file } if happened => drop(files.remove(file)),
            Step::Rename { .. } | Step::Remove { .. } => break, // in their order
            _ => {}
        }
    }
    files
}

fn apply(content: &mut Vec<u8>, step: &Step, torn: bool) {
    match step {
        Step::Write { at, bytes, .. } => {
            let len = if torn { bytes.len() / 2 / 512 * 512 } else { bytes.len() };
            let (begin, end) = (*at as usize, *at as usize + len);
            if content.len() < end {
                content.resize(end, 0);
            }
            content[begin..end].copy_from_slice(&bytes[..len]);
        }
        Step::Length { len, .. } => content.resize(*len as usize, 0),
        _ => {}
    }
}

fn strace(lab: &Lab, how: &[&str], packed: &Packed, out: &Path) -> Vec<std::ffi::OsString> {
    let log = lab.file("strace");
    let mut line = args(&[&"strace", &"-f", &"-ff", &"-ttt", &"-y", &"-xx", &"-s", &"200000", &"-o", &log]);
    line.extend(how.iter().map(Into::into));
    line.extend(scene::get_line(&[SOURCE], packed, out, &["--threads", "1", "--timeout", "30s"]));
    line
}

fn is_missing(test: &str) -> bool {
    if !lab::have("strace") {
        lab::skip(test, "the program strace is missing");
    }
    !lab::have("strace")
}

#[test]
fn wherever_the_power_goes_the_next_client_ends_in_the_exact_file() {
    let test = "wherever_the_power_goes_the_next_client_ends_in_the_exact_file";
    if is_missing(test) {
        return;
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 300_000, &["--block-size", "64KiB"]);
    let object = fs::read(&packed.object).unwrap();
    // Slow enough that the recorded client writes and logs many times.
    let server = scene::serve(&s, &packed, "4M", &[]);
    scene::wait_sending(&s, &server);
    let calls = "trace=pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat";
    let record = || {
        let target = lab.fresh_dir("recorded");
        let out = target.join(TARGET);
        let client = c.spawn(&strace(&lab, &["-e", calls], &packed, &out));
        scene::arrive(&client, &packed, &out, LIMIT);
        recorded(lab.dir(), "strace.", &target)
    };
    // Where the manifest came late, or the thread that reserves the room had no CPU, the log begins when most is
    // written. Power cuts before it leave nothing to go on with: then once more.
    let begins = |steps: &[Step]| {
        let is_entry = |step: &Step| matches!(step, Step::Write { file, at, .. } if file == LOG && *at > 0);
        steps.iter().position(is_entry).unwrap_or(steps.len())
    };
    let steps = (0..20).map(|_| record()).find(|steps| begins(steps) * 2 < steps.len());
    let steps = steps.unwrap_or_else(|| panic!("twenty times the log began when half was done"));
    drop(server);
    let count = |of: fn(&Step) -> bool| steps.iter().filter(|step| of(step)).count();
    let writes = count(|step| matches!(step, Step::Write { .. }));
    assert!(writes > 30 && count(|step| matches!(step, Step::Sync { .. })) > 0, "{writes} writes recorded");
    assert!(count(|step| matches!(step, Step::Rename { .. })) == 1, "one rename");
    // The record is true: with nothing lost it ends in the object.
    let mut whole = Vec::new();
    steps.iter().for_each(|step| {
        if matches!(step, Step::Write { file, .. } | Step::Length { file, .. } if file == PART) {
            apply(&mut whole, step, false);
        }
    });
    assert!(whole == object, "the recorded writes do not make up the object");

    let server = scene::serve(&s, &packed, "200M", &[]);
    scene::wait_sending(&s, &server);
    let (mut done, mut whole_at_once, mut resumed) = (0, 0, 0);
    while done < crashes() {
        let mut clients = Vec::new();
        for number in done..(done + AT_ONCE).min(crashes()) {
            let mut dice = Dice::new(number as u64);
            let cut = 1 + number * 7919 % steps.len();
            let files = after_crash(&steps[..cut], &mut dice);
            let folder = lab.fresh_dir(&format!("crash-{}", number % AT_ONCE));
            files.iter().for_each(|(name, content)| fs::write(folder.join(name), content).unwrap());
            let out = folder.join(TARGET);
            if let Some(target) = files.get(TARGET) {
                assert!(*target == object, "crash {number} after step {cut}: a target that is not whole");
                whole_at_once += 1;
                continue;
            }
            clients.push((number, scene::get(&c, &[SOURCE], &packed, &out, &[]), out));
        }
        for (number, client, out) in &clients {
            let exit = client.finish(LIMIT);
            assert_eq!(exit.code(), 0, "crash {number}: {client}");
            assert!(fs::read(out).unwrap() == object, "crash {number}: another file");
            resumed += usize::from(client.stdout().contains("\"resumed\""));
            assert_eq!(
                fs::read_dir(out.parent().unwrap()).unwrap().count(),
                1,
                "crash {number}: work remains"
            );
        }
        done += AT_ONCE;
    }
    // A log is of use where the disk has its first bytes, a fourth of the time, and none is in a part of the steps.
    assert!(resumed * 20 > crashes(), "hardly anything to go on with: {resumed}");
    figures::row(
        "power cuts",
        &[
            ("points", &crashes()),
            ("steps recorded", &steps.len()),
            ("target was there, whole", &whole_at_once),
            ("went on with what was left", &resumed),
        ],
    );
}

#[test]
fn a_disk_that_fails_ends_the_client_and_not_the_work() {
    let test = "a_disk_that_fails_ends_the_client_and_not_the_work";
    if is_missing(test) {
        return;
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    // What is heard before the manifest is written in one go, up to a thousand packets: the faults come later.
    let packed = scene::pack(lab.dir(), 8_000_000, &["--block-size", "256KiB"]);
    let _server = scene::serve(&s, &packed, "60M", &[]);
    scene::wait_sending(&s, &_server);
    for (what, fault, code) in [
        ("a write fails", "pwrite64:error=EIO:when=500", 6),
        ("no room from some moment on", "pwrite64:error=ENOSPC:when=600+", 6),
        ("fsync fails", "fsync:error=EIO", 6),
        ("the rename fails", "renameat2:error=EIO", 6),
        ("writes are interrupted", "pwrite64:error=EINTR:when=3+5", 0),
        ("reservation is interrupted", "fallocate:error=EINTR:when=1", 0),
        ("reservation is not known", "fallocate:error=EOPNOTSUPP", 0),
        ("a slow disk", "pwrite64:delay_enter=1000", 0),
        ("reading fails", "pread64:error=EIO:when=5", 6),
    ] {
        let call = fault.split(':').next().unwrap();
        let attempt = || {
            let folder = lab.fresh_dir("target");
            let out = folder.join(TARGET);
            let how = [
                "-e",
                &format!("trace={call}"),
                "-P",
                &folder.join(PART).display().to_string(),
                "-e",
                &format!("inject={fault}"),
            ];
            // Only what is done to the work file; a rename is no matter of descriptors.
            let how: Vec<&str> =
                if call == "renameat2" { vec![how[0], how[1], how[4], how[5]] } else { how.to_vec() };
            let client = c.spawn(&strace(&lab, &how, &packed, &out));
            let exit = client.finish(LIMIT);
            (folder, out, client, exit)
        };
        let (mut folder, mut out, mut client, mut exit) = attempt();
        // Before there is room for all of the object nothing is worth to be kept, and where the thread that reserves it
        // gets no CPU, a write may fail as early as that. It does not do so four times.
        for _ in 0..3 {
            if call == "pwrite64" && exit.code() != 0 && !folder.join(PART).exists() {
                (folder, out, client, exit) = attempt();
            }
        }
        figures::row(what, &[("exit code", &exit.code())]);
        assert_eq!(exit.code(), code, "{what}: {client}");
        if code != 0 {
            assert!(!out.exists(), "{what}: a target in spite of it");
            assert!(folder.join(PART).exists(), "{what}: the work is gone: {client}");
            let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
            scene::arrive(&client, &packed, &out, LIMIT);
            assert!(client.stdout().contains("\"resumed\""), "{what}: {client}");
        }
        assert_eq!(object::digest(&out).unwrap(), packed.digest, "{what}");
    }
}
