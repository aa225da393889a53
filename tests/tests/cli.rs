//! Wrong inputs: each gives one line on stderr that begins with the program's name, and the exit code of the
//! contract. No line is compared word for word; people may improve them.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::bins;
use carousel_tests::lab::{Folder, Lab, until};
use carousel_tests::object;
use carousel_tests::scene::{self, AsOsString, Packed, args};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

struct Desk {
    dir: Folder,
    packed: Packed,
}

/// A folder with a packed object of a few symbols.
fn desk() -> Desk {
    let dir = Folder::new();
    let packed = scene::pack(dir.path(), 20_000, &[]);
    Desk { dir, packed }
}

impl Desk {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A copy of the bundle, changed.
    fn spoilt(&self, name: &str, spoil: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
        let mut bytes = fs::read(&self.packed.bundle).unwrap();
        spoil(&mut bytes);
        let path = self.file(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// Checks a refusal: code, silence on stdout, one line with the name in front. Only who waited in vain (5) has told
/// before what it waits for.
fn refusal(program: &str, line: &[OsString], code: Option<i32>, stdout: &str, stderr: &str, expected: i32) {
    let said = format!("{program} {line:?}\ncode {code:?}\n--- stdout\n{stdout}--- stderr\n{stderr}");
    assert_eq!(code, Some(expected), "{said}");
    assert_eq!(stdout, "", "{said}");
    let is_ours = |line: &&str| line.starts_with(&format!("{program}: "));
    assert_eq!(stderr.lines().filter(is_ours).count(), 1, "not one line of ours: {said}");
    let last = stderr.lines().last();
    assert!(stderr.ends_with('\n') && last.is_some_and(|line| is_ours(&line)), "not the last line: {said}");
    assert!(expected == 5 || stderr.lines().count() == 1, "more than one line: {said}");
}

#[track_caller]
fn server_refuses(words: &[&dyn AsOsString], expected: i32) {
    let line = args(words);
    let out = bins::run(bins::server(), &line);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    refusal("carousel-server", &line, out.status.code(), &text(&out.stdout), &text(&out.stderr), expected);
}

/// A full disk takes no remarks.
#[test]
fn what_nobody_can_be_told_changes_nothing() {
    let desk = desk();
    let code_of = |program: PathBuf, words: &[&dyn AsOsString]| {
        let shell = args(&[&"-c", &"\"$@\" 2>/dev/full", &"sh", &program]);
        bins::run("sh", shell.into_iter().chain(args(words))).status.code()
    };
    let code = |words: &[&dyn AsOsString]| code_of(bins::server(), words);
    assert_eq!(code_of(bins::client(), &[&"--nosuch"]), Some(2));
    let (key, out) = (&desk.packed.keys.secret, desk.file("again.carousel"));
    assert_eq!(code(&[&"pack", &desk.packed.object, &"--key", key, &"--out", &out]), Some(0));
    assert_eq!(code(&[&"inspect", &desk.file("nothing")]), Some(2));
    assert_eq!(code(&[&"inspect"]), Some(2));
}

#[test]
fn pack_refuses_what_is_missing() {
    let desk = desk();
    let (nothing, out) = (desk.file("nothing"), desk.file("out.carousel"));
    server_refuses(&[&"pack", &nothing, &"--key", &desk.packed.keys.secret, &"--out", &out], 2);
    server_refuses(&[&"pack", &desk.packed.object, &"--key", &nothing, &"--out", &out], 2);
    assert!(!out.exists(), "a refused pack left something");
}

#[test]
fn an_interrupted_pack_leaves_nothing_behind() {
    let dir = Folder::new();
    let keys = scene::keygen(dir.path(), "release");
    let (object, out) = (dir.path().join("object"), dir.path().join("F.carousel"));
    fs::File::create(&object).unwrap().set_len(64 << 20).unwrap();
    let names = || fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let half = || names().any(|name| name.to_string_lossy().starts_with(".carousel-pack-"));
    let mut pack = Command::new(bins::server())
        .args(args(&[&"pack", &object, &"--key", &keys.secret, &"--out", &out]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("it to begin", Duration::from_secs(60), || half() || out.exists());
    kill(Pid::from_raw(pack.id() as i32), Signal::SIGINT).unwrap(); // which it is still there to get: nobody has waited
    let code = pack.wait().unwrap().code();
    assert!(!half(), "{code:?}");
    // On a busy machine it may have been faster.
    assert_eq!(code, Some(if out.exists() { 0 } else { 1 }));
}

#[test]
fn pack_refuses_a_folder_it_cannot_write() {
    let desk = desk();
    let (key, out) = (&desk.packed.keys.secret, Path::new("/sys/out.carousel"));
    server_refuses(&[&"pack", &desk.packed.object, &"--key", key, &"--out", &out], 6);
}

#[test]
fn inspect_accepts_a_whole_bundle_and_its_key() {
    let desk = desk();
    let line = args(&[&"inspect", &desk.packed.bundle, &"--key", &desk.packed.keys.public, &"--json"]);
    let out = bins::run(bins::server(), line);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(json.is_object());
}

#[test]
fn inspect_refuses_the_wrong_key() {
    let desk = desk();
    let other = scene::keygen(desk.dir.path(), "other");
    server_refuses(&[&"inspect", &desk.packed.bundle, &"--key", &other.public], 3);
}

#[test]
fn inspect_refuses_truncated_bundles() {
    let desk = desk();
    let size = fs::metadata(&desk.packed.bundle).unwrap().len() as usize;
    for keep in [size - 1, size / 2, 2000, 100] {
        let path = desk.spoilt("cut.carousel", |bytes| bytes.truncate(keep));
        server_refuses(&[&"inspect", &path], 3);
    }
}

#[test]
fn inspect_refuses_flipped_bits() {
    let desk = desk();
    // In the manifest (second record of 1,204 bytes), in the middle, near the end and in the last byte.
    let size = fs::metadata(&desk.packed.bundle).unwrap().len() as usize;
    for at in [1204 + 60, size / 2, size - 1204 / 2, size - 1] {
        let path = desk.spoilt("flipped.carousel", |bytes| bytes[at] ^= 0x10);
        server_refuses(&[&"inspect", &path, &"--key", &desk.packed.keys.public], 3);
    }
}

#[test]
fn unknown_bundle_version_is_named_as_such() {
    let desk = desk();
    // Bytes 8 and 9 are the version.
    let path = desk.spoilt("future.carousel", |bytes| bytes[9] = 99);
    server_refuses(&[&"inspect", &path], 2);
    run_refuses(&path, "ff3e::8000:1", "5004", "lo", 2);
    server_refuses(&[&"inspect", &desk.packed.object], 2);
}

#[track_caller]
fn run_refuses(bundle: &Path, group: &str, port: &str, interface: &str, expected: i32) {
    let channel: [&dyn AsOsString; 6] = [&"--group", &group, &"--port", &port, &"--interface", &interface];
    let words: Vec<&dyn AsOsString> =
        [&"run" as &dyn AsOsString, &bundle].into_iter().chain(channel).collect();
    server_refuses(&words, expected);
}

#[test]
fn run_refuses_what_it_cannot_send() {
    let desk = desk();
    let (good, nothing) = (&desk.packed.bundle, desk.file("nothing.carousel"));
    run_refuses(&nothing, "ff3e::8000:1", "5004", "lo", 2);
    run_refuses(good, "ff3e::8000:1", "5004", "nosuch0", 2);
    run_refuses(good, "fd00:6::1", "5004", "lo", 2);
    run_refuses(good, "ff3e::8000:1", "0", "lo", 2);
}

#[test]
fn run_and_zone_refuse_configurations() {
    let desk = desk();
    let (config, bundle) = (desk.file("server.toml"), desk.packed.bundle.display());
    let good = format!("interface = \"lo\"\nport = 5004\n[[session]]\nbundle = \"{bundle}\"\n");
    for (more, expected) in [
        ("groups = [\"ff3e::8000:1\"", 2),
        ("groups = [\"ff3e::8000:1\"]\nspeed = 5", 2),
        ("groups = [\"ff3e::8000:1\", \"ff3e::8000:1\"]", 2),
        ("groups = [\"ff3e::8000:1\"]\ninterface = \"nosuch0\"", 2),
        // The bundle has four levels, which only who opens it knows.
        ("service = \"x._carousel._udp.example.test\"\ntiers = \"stacked\"\nlevels = 5", 2),
        ("groups = [\"ff3e::8000:2\"]\n[[session]]\nbundle = \"nothing\"\ngroups = [\"ff3e::8000:1\"]", 2),
    ] {
        fs::write(&config, good.clone() + more).unwrap();
        server_refuses(&[&"run", &"--config", &config], expected);
        // Nobody sends, or what is wrong above.
        server_refuses(&[&"zone", &"--config", &config], expected);
    }
    let cut = desk.spoilt("cut.carousel", |bytes| bytes.truncate(2000));
    let text = good.replace(&bundle.to_string(), "cut.carousel") + "groups = [\"ff3e::8000:1\"]\n";
    fs::write(&config, text).unwrap();
    assert!(cut.exists());
    server_refuses(&[&"run", &"--config", &config], 3);
    // Sent by somebody, but nameless; and with a name that fits no DNS record.
    let server = "[[server]]\nhost = \"s1.example.test\"\n";
    fs::write(
        &config,
        good.clone()
            + "groups = [\"ff3e::8000:1\"]\nurl = \"x\"\nservice = \"x._carousel._udp.a\"\n"
            + server,
    )
    .unwrap();
    server_refuses(&[&"zone", &"--config", &config], 2);
    server_refuses(&[&"zone", &"--config", &config, &"--ttl", &"0"], 2);
    for missing in ["nothing.toml", "nothing/server.toml"] {
        server_refuses(&[&"run", &"--config", &desk.file(missing)], 2);
        server_refuses(&[&"zone", &"--config", &desk.file(missing)], 2);
    }
    fs::write(&config, [0xff, 0xfe]).unwrap();
    server_refuses(&[&"run", &"--config", &config], 2);
    // A file says it all, or flags do.
    server_refuses(&[&"run", &desk.packed.bundle, &"--config", &config], 2);
    server_refuses(&[&"run", &"--config", &config, &"--rate", &"1M"], 2);
    server_refuses(&[&"run", &"--interface", &"lo", &"--port", &"5004"], 2);
}

#[test]
fn run_refuses_one_group_twice() {
    let desk = desk();
    let words: [&dyn AsOsString; 10] = [
        &"run",
        &desk.packed.bundle,
        &"--group",
        &"ff3e::8000:1@1M",
        &"--group",
        &"ff3e::8000:1@2M",
        &"--port",
        &"5004",
        &"--interface",
        &"lo",
    ];
    server_refuses(&words, 2);
}

/// One host with an `eth0` on which nobody sends.
#[test]
fn get_refuses_what_it_cannot_do() {
    let Some(lab) = Lab::enter("get_refuses_what_it_cannot_do") else { return };
    let (_s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 20_000, &[]);
    let (fresh, key) = (lab.file("fresh"), packed.keys.public.clone());
    let refuses = |group: &str, port: &str, interface: &str, key: &Path, out: &Path, expected: i32| {
        let head: [&dyn AsOsString; 8] =
            [&"get", &"--source", &scene::SOURCE, &"--group", &group, &"--port", &port, &"--interface"];
        let tail: [&dyn AsOsString; 7] = [&interface, &"--key", &key, &"--out", &out, &"--timeout", &"2s"];
        let (mut line, mut tail) = (args(&head), args(&tail));
        line.append(&mut tail);
        let argv: Vec<OsString> = [bins::client().into()].into_iter().chain(line.iter().cloned()).collect();
        let client = c.spawn(&argv);
        let exit = client.finish(Duration::from_secs(20));
        refusal("carousel-client", &line, Some(exit.code()), &client.stdout(), &client.stderr(), expected);
        exit.seconds
    };
    refuses("ff3e::8000:1", "5004", "nosuch0", &key, &fresh, 2);
    refuses("fd00:6::1", "5004", "eth0", &key, &fresh, 2);
    refuses("ff3e::8000:1", "0", "eth0", &key, &fresh, 2);
    refuses("ff3e::8000:1", "5004", "eth0", &lab.file("nothing.pub"), &fresh, 2);
    refuses("ff3e::8000:1", "5004", "eth0", &key, Path::new("/sys/fresh"), 6);
    let client = scene::get(&c, &[scene::SOURCE], &packed, &fresh, &["--tier", "1"]);
    assert_eq!(client.finish(Duration::from_secs(20)).code(), 2, "one group is one tier: {client}");
    // An existing target stays what it is.
    refuses("ff3e::8000:1", "5004", "eth0", &key, &packed.object, 2);
    assert_eq!(object::digest(&packed.object).unwrap(), packed.digest);
    // So does a link that leads nowhere, and it is found before the transfer.
    let link = lab.file("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    refuses("ff3e::8000:1", "5004", "eth0", &key, &link, 2);
    let seconds = refuses("ff3e::8000:1", "5004", "eth0", &key, &fresh, 5);
    assert!((2.0..15.0).contains(&seconds), "--timeout 2s took {seconds} s");
    assert!(!fresh.exists());
}

#[test]
fn get_does_not_believe_another_key() {
    let Some(lab) = Lab::enter("get_does_not_believe_another_key") else { return };
    let (s, c) = scene::pair(&lab);
    let mut packed = scene::pack(lab.dir(), 20_000, &[]);
    let server = scene::serve(&s, &packed, "20M", &[]);
    scene::wait_sending(&s, &server); // or three seconds may be too short
    packed.keys = scene::keygen(lab.dir(), "other");
    let out = lab.file("got");
    let client = scene::get(&c, &[scene::SOURCE], &packed, &out, &["--timeout", "3s"]);
    assert_eq!(client.finish(Duration::from_secs(20)).code(), 3, "{client}");
    assert!(!out.exists());
}

#[test]
fn force_replaces_an_existing_target() {
    let Some(lab) = Lab::enter("force_replaces_an_existing_target") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 20_000, &[]);
    let _server = scene::serve(&s, &packed, "20M", &[]);
    let out = lab.file("got");
    fs::write(&out, "older").unwrap();
    let client = scene::get(&c, &[scene::SOURCE], &packed, &out, &["--force"]);
    scene::arrive(&client, &packed, &out, Duration::from_secs(30));
}

/// Remarks and events go to a disk that is full: the file arrives all the same, and a failure keeps its code.
#[test]
fn a_get_that_can_tell_nobody_does_its_work() {
    let Some(lab) = Lab::enter("a_get_that_can_tell_nobody_does_its_work") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 20_000, &[]);
    let _server = scene::serve(&s, &packed, "20M", &[]);
    let out = lab.file("got");
    for expected in [0, 2] {
        let mut line = args(&[&"sh", &"-c", &"exec \"$0\" \"$@\" >/dev/full 2>&1"]);
        line.extend(scene::get_line(&[scene::SOURCE], &packed, &out, &["-v"]));
        let client = c.spawn(&line);
        assert_eq!(client.finish(Duration::from_secs(30)).code(), expected, "{client}"); // 2: it is there already
        assert_eq!(object::digest(&out).unwrap(), packed.digest);
    }
}
