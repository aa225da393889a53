//! How the programs end: by themselves, by a signal, for want of room, beside one another. Exit codes of the contract.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{self, Host, Lab, Running, until};
use carousel_tests::object;
use carousel_tests::scene::{self, AsOsString, PACKET_BYTES, Packed, SOURCE, args};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// Who was told to end is given so long: on a busy machine even that which takes no time may take seconds.
const PROMPT: Duration = Duration::from_secs(10);

/// What lies in a folder, hidden files included.
fn contents(folder: &Path) -> Vec<OsString> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// A server that sends an object of 8 MiB, and an empty folder.
fn scenery(lab: &Lab, rate: &str) -> (Host, Host, Packed, Running, std::path::PathBuf) {
    let (s, c) = scene::pair(lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &[]);
    let server = scene::serve(&s, &packed, rate, &[]);
    scene::wait_sending(&s, &server);
    let folder = lab.file("target");
    fs::create_dir(&folder).unwrap();
    (s, c, packed, server, folder)
}

#[test]
fn once_sends_a_cycle_and_ends() {
    let Some(lab) = Lab::enter("once_sends_a_cycle_and_ends") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 4 * MIB, &[]);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    scene::wait_joined(&c);
    let before = s.traffic("eth0");
    let server = scene::serve(&s, &packed, "20M", &["--once"]);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    let exit = server.finish(LIMIT);
    let after = s.traffic("eth0");
    // 14 bytes of every packet are Ethernet's.
    let sent = (after.tx_bytes - before.tx_bytes) - 14 * (after.tx_packets - before.tx_packets);
    let (times, ideal) = (sent as f64 / packed.size as f64, sent as f64 * 8.0 / 20e6);
    got.row(
        "one cycle",
        &format!("{times:.3} objects sent in {:.3} s, {ideal:.3} s by the rate", exit.seconds),
    );
    assert_eq!(exit.code(), 0, "{server}");
    // 105 % repair, headers, pages.
    assert!((2.1..2.5).contains(&times), "{times}");
    // Never faster than the rate; slower only where it had no CPU.
    assert!(exit.seconds > 0.98 * ideal - 0.2 && exit.seconds < 2.0 * ideal + 5.0, "{} s", exit.seconds);
}

#[test]
fn sigterm_ends_the_server_well() {
    let Some(lab) = Lab::enter("sigterm_ends_the_server_well") else { return };
    let (s, _c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), MIB, &[]);
    for (signal, rate) in [(Signal::SIGTERM, "20M"), (Signal::SIGINT, "20k")] {
        let before = s.traffic("eth0").tx_bytes;
        let server = scene::serve(&s, &packed, rate, &[]);
        // The slow one sends two packets a second; one is enough.
        until("the server to send", LIMIT, || s.traffic("eth0").tx_bytes > before + PACKET_BYTES as u64);
        server.kill(signal);
        assert_eq!(server.finish(PROMPT).code(), 0, "{signal} {server}");
        assert_eq!(server.stdout(), "", "{server}");
    }
}

#[test]
fn sigterm_ends_the_client_and_leaves_no_more_than_its_work() {
    let Some(lab) = Lab::enter("sigterm_ends_the_client_and_leaves_no_more_than_its_work") else { return };
    let (_s, c, packed, server, folder) = scenery(&lab, "20M");
    let out = folder.join("got");
    for (signal, quarters) in [(Signal::SIGTERM, 1), (Signal::SIGINT, 2)] {
        let quarter = packed.size / 1188 / 4;
        let client = scene::get_part(&c, &packed, &out, quarter, &[]);
        let (log, logged) = (folder.join(".got.carousel-log"), quarter * (quarters - 1) + quarter / 2);
        scene::wait_logged(&client, &log, logged, LIMIT);
        assert!(folder.join(".got.carousel-part").exists(), "no work file beside the target");
        client.kill(signal);
        assert_eq!(client.finish(PROMPT).code(), 1, "{signal} {client}");
        let mut left = contents(&folder);
        left.sort();
        assert_eq!(left, [".got.carousel-log", ".got.carousel-part"], "left by {signal}");
    }
    // And nothing, where nothing came at all.
    drop(server);
    c.let_in("eth0", None);
    for file in contents(&folder) {
        fs::remove_file(folder.join(file)).unwrap();
    }
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    scene::wait_joined(&c);
    client.kill(Signal::SIGTERM);
    assert_eq!(client.finish(PROMPT).code(), 1, "{client}");
    assert_eq!(contents(&folder), [""; 0]);
}

#[test]
fn second_client_on_a_target_comes_again_later() {
    let Some(lab) = Lab::enter("second_client_on_a_target_comes_again_later") else { return };
    let (_s, c, packed, _server, folder) = scenery(&lab, "20M");
    let out = folder.join("got");
    // Who has joined has the work file, and who gets nothing is still at work when the second one has ended.
    c.let_in("eth0", Some(0));
    let first = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    scene::wait_joined(&c);
    for more in [&[][..], &["--force"]] {
        let second = scene::get(&c, &[SOURCE], &packed, &out, more);
        assert_eq!(second.finish(PROMPT).code(), 75, "{second}");
        assert!(first.is_alive(), "{first}");
    }
    c.let_in("eth0", None);
    let got = scene::arrive(&first, &packed, &out, LIMIT);
    got.row("first of two clients on one target", "");
    assert_eq!(contents(&folder), ["got"]);
}

/// What a person sees meanwhile: a bar on a terminal, and lines elsewhere, also on one that cannot move its cursor.
#[test]
fn progress_is_a_bar_on_a_terminal_and_lines_elsewhere() {
    let test = "progress_is_a_bar_on_a_terminal_and_lines_elsewhere";
    if !lab::have("script") {
        return lab::skip(test, "the program script is missing");
    }
    let Some(lab) = Lab::enter(test) else { return };
    // Some seven seconds; a line comes every five.
    let (_s, c, packed, _server, folder) = scenery(&lab, "10M");
    let out = folder.join("got");
    let line = scene::get_line(&[SOURCE], &packed, &out, &["--force"]);
    let words: Vec<&str> = line.iter().map(|word| word.to_str().unwrap()).collect();
    for (term, has_bar) in [("xterm", true), ("dumb", false)] {
        let term = format!("TERM={term}");
        let quoted = words.join(" ");
        let words: [&dyn AsOsString; 6] = [&"env", &term, &"script", &"-qec", &quoted, &"/dev/null"];
        let client = c.spawn(&args(&words));
        assert_eq!(client.finish(LIMIT).code(), 0, "{client}");
        let said = client.stdout();
        assert_eq!(said.contains("█"), has_bar, "{said}");
        assert_eq!(said.contains("receiving object (8.0 MiB)"), !has_bar, "{said}");
        assert!(said.contains("% ") && said.contains(" left") && said.contains("loss "), "{said}");
    }
    let client = c.spawn(&line);
    scene::arrive(&client, &packed, &out, LIMIT);
    let said = client.stderr();
    let is_progress =
        |line: &str| line.starts_with("object ") && line.contains(" %  ") && line.ends_with("left");
    assert!(said.lines().any(is_progress) && !said.contains("█"), "{client}");
}

/// Runs a get whose target lies in a file system of its own, which `mount` mounts on `$0`. Its stdout is that of
/// the client and then what lies in the folder.
fn get_into(c: &Host, packed: &Packed, folder: &Path, mount: &str) -> Running {
    let script = format!("{{ {mount}; }} || exit 99; \"$@\"; code=$?; ls -A \"$0\"; exit $code");
    let words: [&dyn AsOsString; 6] = [&"unshare", &"-m", &"sh", &"-c", &script, &folder];
    let mut line = args(&words);
    line.extend(scene::get_line(&[SOURCE], packed, &folder.join("got"), &[]));
    c.spawn(&line)
}

/// Everything a client says on stdout on its way to failure is progress.
fn left_behind(client: &Running) -> Vec<String> {
    client
        .stdout()
        .lines()
        .filter(|line| !line.starts_with('{') && *line != "lost+found")
        .map(str::to_owned)
        .collect()
}

#[test]
fn full_disk_shows_at_once() {
    let Some(lab) = Lab::enter("full_disk_shows_at_once") else { return };
    // It would be full after 13 seconds, if the client found out by filling it.
    let (_s, c, packed, _server, folder) = scenery(&lab, "4M");
    let client = get_into(&c, &packed, &folder, "mount -t tmpfs -o size=6m tmpfs \"$0\"");
    let exit = client.finish(LIMIT);
    exit.row(&format!("full disk, reserved: code {}", exit.code()));
    assert_eq!(exit.code(), 6, "{client}");
    assert!(left_behind(&client).is_empty(), "{client}");
    assert!(exit.seconds < 10.0, "it should show before the transfer: {exit:?}");
}

/// ext2 cannot reserve room; the client looks whether there is any.
#[test]
fn full_disk_shows_where_room_cannot_be_reserved() {
    let test = "full_disk_shows_where_room_cannot_be_reserved";
    if !lab::have("mkfs.ext2") {
        return lab::skip(test, "the program mkfs.ext2 is missing");
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (_s, c, packed, _server, folder) = scenery(&lab, "20M");
    let image = lab.file("image");
    let mount =
        format!("truncate -s 6M {0} && mkfs.ext2 -q -F {0} && mount -o loop {0} \"$0\"", image.display());
    let client = get_into(&c, &packed, &folder, &mount);
    let exit = client.finish(LIMIT);
    if exit.code() == 99 {
        return lab::skip(test, &format!("no loop mount: {}", client.stderr().trim()));
    }
    exit.row(&format!("full disk, not reserved: code {}", exit.code()));
    assert_eq!(exit.code(), 6, "{client}");
    assert!(left_behind(&client).is_empty(), "{client}");
}

#[test]
fn a_bundle_that_is_cut_short_is_named_and_replaced() {
    let Some(lab) = Lab::enter("a_bundle_that_is_cut_short_is_named_and_replaced") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 4 << 20, &[]);
    let whole = lab.file("whole");
    fs::copy(&packed.bundle, &whole).unwrap();
    let server = scene::serve(&s, &packed, "20M", &[]);
    scene::wait_sending(&s, &server);
    fs::OpenOptions::new().write(true).open(&packed.bundle).unwrap().set_len(8192).unwrap();
    until("the server to notice", LIMIT, || server.stderr().contains("became shorter"));
    fs::rename(&whole, &packed.bundle).unwrap();
    server.kill(Signal::SIGHUP);
    let out = lab.file("got");
    scene::arrive(&scene::get(&c, &[SOURCE], &packed, &out, &[]), &packed, &out, LIMIT);
    assert!(server.is_alive(), "{server}");
}

#[test]
fn stale_object_and_failing_hook_have_codes_of_their_own() {
    let Some(lab) = Lab::enter("stale_object_and_failing_hook_have_codes_of_their_own") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 20_000, &["--expires", "2020-01-01"]);
    let server = scene::serve(&s, &packed, "20M", &[]);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    assert_eq!(client.finish(LIMIT).code(), 4, "{client}");
    assert!(!out.exists());
    drop(server);

    let fresh = lab.file("fresh");
    fs::create_dir(&fresh).unwrap();
    let packed = scene::pack(&fresh, 20_000, &["--seq", "7"]);
    let _server = scene::serve(&s, &packed, "20M", &[]);
    let client = scene::get(&c, &[SOURCE], &packed, &out, &["--on-complete", "exit 3"]);
    assert_eq!(client.finish(LIMIT).code(), 7, "{client}");
    // The hook failed, the object did not.
    assert_eq!(object::digest(&out).unwrap(), packed.digest);

    let said = lab.file("said");
    let hook = format!(
        "echo $CAROUSEL_PATH $CAROUSEL_NAME $CAROUSEL_SEQ $CAROUSEL_DIGEST $CAROUSEL_SIZE >{}",
        said.display()
    );
    let client = scene::get(&c, &[SOURCE], &packed, &out, &["--force", "--on-complete", &hook]);
    scene::arrive(&client, &packed, &out, LIMIT);
    let expected = format!("{} object 7 {} 20000\n", out.display(), packed.digest);
    assert_eq!(fs::read_to_string(&said).unwrap(), expected);
}

#[test]
fn digest_and_insecure_need_no_key() {
    let Some(lab) = Lab::enter("digest_and_insecure_need_no_key") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 20_000, &[]);
    let _server = scene::serve(&s, &packed, "20M", &[]);
    let out = lab.file("got");
    for more in [&["--digest", &packed.digest][..], &["--insecure", "--force"]] {
        let client = scene::get(&c, &[SOURCE], &packed, &out, more);
        scene::arrive(&client, &packed, &out, LIMIT);
        assert_eq!(client.stderr().contains("insecure"), more[0] == "--insecure", "it says so: {client}");
    }
    fs::remove_file(&out).unwrap();
    let wrong = "5a".repeat(32);
    let client = scene::get(&c, &[SOURCE], &packed, &out, &["--digest", &wrong, "--timeout", "3s"]);
    assert_eq!(client.finish(LIMIT).code(), 3, "{client}");
    assert!(!out.exists());
}
