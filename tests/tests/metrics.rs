//! What both programs tell in files: that it is true, whole whenever somebody looks, and the same in all places; that
//! nothing which happens to these files does harm; and that Prometheus and the dashboard understand it.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::Argument::{Number, Text};
use carousel_tests::lab::{
    self, Argument, CAN_INJECT, Fate, Host, Impairment, Lab, Loss, Running, WireLoss, inject, inject_into,
    until,
};
use carousel_tests::scene::{self, PACKET_BYTES, PORT, Packed, SOURCE, args};
use carousel_tests::{bins, figures, object};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// A name that tries to be another sample; no name of an object may have a backslash or a line feed, but a file's may.
const HOSTILE_NAME: &str = "x\"} 1 carousel_client_info{a=\"";
const HOSTILE_FILE: &str = "a\\\"} 1\nb{c=\".prom";

/// One sample of a metric.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Metrics as this test reads them: strictly, and without a library that would forgive something.
#[derive(Debug, Default)]
struct Metrics {
    /// Name and type.
    types: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

impl Metrics {
    fn read(file: &Path) -> Self {
        Self::parse(&fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display())))
    }

    fn parse(text: &str) -> Self {
        let mut all = Self::default();
        assert!(text.ends_with('\n') && !text.contains("\n\n"), "cut off: {text:?}");
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert!(all.types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            } else if !line.starts_with("# HELP ") {
                all.samples.push(sample(line));
            }
        }
        all
    }

    /// The value of the one sample with this name and labels.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |sample: &&Sample| {
            sample.name == name && labels.iter().all(|(k, v)| sample.labels.get(*k).is_some_and(|l| l == v))
        };
        let found: Vec<&Sample> = self.samples.iter().filter(fits).collect();
        let [one] = found[..] else { panic!("{name} {labels:?}: {found:?}") };
        one.value
    }

    /// The metric that a sample is of.
    fn metric<'a>(&self, sample: &'a Sample) -> &'a str {
        let parts = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| sample.name.strip_suffix(end));
        let histogram = parts.filter(|name| self.types.get(*name).is_some_and(|kind| kind == "histogram"));
        histogram.unwrap_or(&sample.name)
    }
}

fn sample(line: &str) -> Sample {
    let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap_or_else(|| panic!("{line:?}")));
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    while let Some(inside) = rest.strip_prefix(['{', ',']) {
        let (key, value) = inside.split_once("=\"").unwrap_or_else(|| panic!("{line:?}"));
        let mut text = String::new();
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().unwrap_or_else(|| panic!("no end of {key}: {line:?}")) {
                (end, '"') => break end,
                (_, '\\') => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, c @ ('\\' | '"'))) => text.push(c),
                    other => panic!("{other:?} escaped: {line:?}"),
                },
                (_, c) => text.push(c),
            }
        };
        labels.insert(key.to_owned(), text);
        rest = value[end + 1..].strip_prefix('}').unwrap_or(&value[end + 1..]);
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line:?}"));
    let value = value.parse().unwrap_or_else(|e| panic!("{e}: {line:?}"));
    Sample { name: name.to_owned(), labels, value }
}

fn status(file: &Path) -> Value {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    assert!(text.ends_with("}\n"), "cut off: {text:?}");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Waits until a status file has this in it.
fn wait_status(file: &Path, program: &Running, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    until(&format!("{what}: {program}"), LIMIT, || fs::exists(file).unwrap() && holds(&status(file)));
    status(file)
}

/// What lies in a folder, hidden files included.
fn contents(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// A status file and a metrics file in a folder of their own, and the options that name them.
struct Files {
    folder: PathBuf,
    status: PathBuf,
    metrics: PathBuf,
}

impl Files {
    fn new(lab: &Lab, name: &str) -> Self {
        Self::within(&lab.fresh_dir("files"), name)
    }

    fn within(folder: &Path, name: &str) -> Self {
        let [status, metrics] = ["json", "prom"].map(|end| folder.join(format!("{name}.{end}")));
        Self { folder: folder.to_owned(), status, metrics }
    }

    fn options(&self) -> [&str; 4] {
        ["--status", self.status.to_str().unwrap(), "--metrics", self.metrics.to_str().unwrap()]
    }
}

/// Reads files over and over, as fast as it can, until the guard is dropped; a part of one would be a panic.
fn read_over_and_over(files: Vec<PathBuf>) -> impl FnOnce() -> u64 {
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let reader = thread::spawn(move || {
        let mut read = 0;
        while !stopped.load(Ordering::Relaxed) {
            for file in files.iter().filter(|file| file.exists()) {
                match file.extension().is_some_and(|end| end == "json") {
                    true => drop(status(file)),
                    false => drop(Metrics::read(file)),
                }
                read += 1;
            }
            thread::sleep(Duration::from_micros(200));
        }
        read
    });
    move || {
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    }
}

/// Prometheus' own judgement, and that of its linter.
fn promtool_likes(host: &Host, file: &Path) {
    let out = host.run(&args(&[&"sh", &"-c", &"promtool check metrics <\"$0\"", &file]));
    assert_eq!((out.exit.code(), &*out.stdout, &*out.stderr), (0, "", ""), "{}", file.display());
}

#[test]
fn files_tell_what_happened() {
    let test = "files_tell_what_happened";
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 6 * MIB, &["--name", HOSTILE_NAME, "--seq", "7"]);
    let of_server = Files::new(&lab, "server");
    let folder = lab.fresh_dir("files");
    let of_client = Files { status: folder.join("get.json"), metrics: folder.join(HOSTILE_FILE), folder };
    // Somebody has put a link where the new contents will be made.
    let victim = lab.file("victim");
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, of_server.folder.join(".server.json.new")).unwrap();
    std::os::unix::fs::symlink(&victim, of_client.folder.join(".get.json.new")).unwrap();
    let stop_reading = read_over_and_over(vec![
        of_server.status.clone(),
        of_server.metrics.clone(),
        of_client.status.clone(),
        of_client.metrics.clone(),
    ]);

    let (quiet, dropped) = (s.traffic("eth0"), lab::softnet_drops());
    let server = scene::serve(&s, &packed, "10M", &of_server.options());
    scene::wait_sending(&s, &server);
    c.loss("eth0", Loss::PerMille(80));
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &of_client.options());
    wait_status(&of_client.status, &client, "the client to receive", |status| {
        status["state"] == "receiving" && status["share"].as_f64().unwrap() > 0.1
    });
    wait_status(&of_server.status, &server, "the server to send", |status| status["state"] == "sending");
    server.kill(Signal::SIGHUP);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    let count = c.loss_count("eth0");
    wait_status(&of_server.status, &server, "the reload to be told", |s| s["reloads_done"] == 1);
    server.kill(Signal::SIGTERM);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
    let read = stop_reading();
    assert!(!client.stderr().contains("WARN") && !server.stderr().contains("WARN"), "{client} {server}");
    assert_eq!(contents(&of_client.folder), [HOSTILE_FILE, "get.json"], "no more than the files");
    assert_eq!(contents(&of_server.folder), ["server.json", "server.prom"]);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "a link was followed");
    for file in [&of_server.status, &of_client.metrics] {
        let mode = fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "everybody may read {}", file.display());
    }

    // The client: its last event, its status and its metrics say the same.
    let last = client.stdout();
    let done: Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
    let (told, metrics) = (status(&of_client.status), Metrics::read(&of_client.metrics));
    assert_eq!((&told["state"], &told["exit_code"], &told["error"]), (&"ok".into(), &0.into(), &Value::Null));
    let same = [
        "name",
        "size",
        "seq",
        "digest",
        "path",
        "packets_received",
        "packets_lost",
        "packets_duplicate",
        "packets_rejected",
        "packets_overflowed",
        "packets_unjudged",
        "packets_foreign",
        "packets_unknown",
        "symbols_needed",
        "symbols_received",
        "blocks_decoded",
        "blocks_refused",
        "blocks_found",
        "tier",
    ];
    for key in same {
        assert_eq!(told[key], done[key], "{key}");
    }
    let stem = HOSTILE_FILE.strip_suffix(".prom").unwrap();
    assert!(metrics.samples.iter().all(|sample| sample.labels["transfer"] == stem), "{metrics:?}");
    for name in ["received", "lost", "duplicate", "rejected", "overflowed"] {
        let metric = metrics.value(&format!("carousel_client_packets_{name}_total"), &[]);
        assert_eq!(Some(metric), told[format!("packets_{name}")].as_f64(), "{name}");
    }
    metrics.value("carousel_client_object_info", &[("name", HOSTILE_NAME), ("seq", "7")]);
    assert_eq!(metrics.value("carousel_client_state", &[("state", "ok")]), 1.0);
    assert_eq!(metrics.samples.iter().filter(|s| s.name == "carousel_client_info").count(), 1);
    let source = &told["sources"][0];
    let join = metrics.value("carousel_client_channel_join_latency_seconds", &[("source", SOURCE)]);
    assert_eq!((Some(join), &source["source"]), (source["first_packet_seconds"].as_f64(), &SOURCE.into()));
    assert_eq!(source["packets_lost"], told["packets_lost"]);

    // And the network agrees. It also counts what came before the join and after the last packet that was needed.
    let came = count.seen - count.lost;
    let received = got.done.packets_received;
    assert!((came / 2..=came).contains(&received), "{received} of {came} packets");
    let lost = got.done.packets_lost;
    // What a machine without CPU time drops is lost too, and no rule of ours has counted it.
    let dropped = lab::softnet_drops() - dropped + told["packets_overflowed"].as_u64().unwrap();
    assert!((count.lost / 2..=count.lost + dropped).contains(&lost), "{lost} of {} lost", count.lost);
    let bytes = told["bytes_received"].as_f64().unwrap();
    assert_eq!(bytes, received as f64 * PACKET_BYTES, "every packet is that long");
    let cycles = told["cycles"].as_f64().unwrap();
    let expected = (received + lost) as f64 / (2.05 * got.done.symbols_needed as f64 * 1.02);
    assert!((cycles / expected - 1.0).abs() < 0.05, "{cycles} cycles, {expected} expected");
    assert!((0.45..2.0).contains(&cycles), "{cycles}");
    let total =
        |name: &str| metrics.value(&format!("carousel_client_channel_loss_burst_packets_{name}"), &[]);
    let mean = total("sum") / total("count");
    assert_eq!(total("sum"), lost as f64, "the bursts are all that was lost");
    let longest = 1.35 + dropped as f64 / total("count");
    assert!((1.0..longest).contains(&mean), "bursts of {mean} packets by chance");

    // The server: its interface has counted, too. Some packets are the kernel's own.
    let (told, metrics) = (status(&of_server.status), Metrics::read(&of_server.metrics));
    let after = s.traffic("eth0");
    assert_eq!(
        (&told["state"], &told["exit_code"], &told["reloads_done"]),
        (&"ended".into(), &0.into(), &1.into())
    );
    let [channel] = &told["channels"].as_array().unwrap()[..] else { panic!("{told}") };
    let sent = channel["packets_sent"].as_u64().unwrap();
    // A cable's end does not count what the other end drops for want of CPU time.
    let on_the_wire = after.tx_packets - quiet.tx_packets + after.tx_dropped - quiet.tx_dropped;
    assert!((sent..=sent + 30 + dropped).contains(&on_the_wire), "{sent} told, {on_the_wire} sent");
    assert_eq!(channel["bytes_sent"].as_f64().unwrap(), sent as f64 * PACKET_BYTES);
    assert_eq!((&channel["name"], &channel["seq"]), (&HOSTILE_NAME.into(), &7.into()));
    assert_eq!((&channel["source"], &channel["rate"]), (&SOURCE.into(), &10_000_000.into()));
    let real = channel["real_rate"].as_f64().unwrap();
    assert!((1e5..13e6).contains(&real), "{real} bit/s"); // a busy machine may starve it
    let labels = [("group", scene::GROUP), ("server", "server"), ("interface", "eth0")];
    assert_eq!(metrics.value("carousel_server_channel_packets_sent_total", &labels), sent as f64);
    let late = metrics.value("carousel_server_channel_late_seconds_count", &labels);
    assert!(late > 100.0 && late <= sent as f64, "{late} bursts of {sent} packets");
    let cycles = channel["cycles"].as_f64().unwrap();
    let expected = sent as f64 / (2.05 * got.done.symbols_needed as f64 * 1.02);
    assert!((cycles / expected - 1.0).abs() < 0.05, "{cycles} cycles, {expected} expected");

    if !lab::have("promtool") {
        return lab::skip(test, "the program promtool is missing");
    }
    promtool_likes(&s, &of_server.metrics);
    promtool_likes(&s, &of_client.metrics);
    got.row(test, &format!("{read} times read meanwhile, mean burst {mean:.2}, {cycles:.2} cycles sent"));
}

/// Bursts on the wire, and what the client makes of them.
#[test]
fn bursts_are_those_of_the_wire() {
    let test = "bursts_are_those_of_the_wire";
    let Some(lab) = Lab::enter_with_wires(test) else { return };
    let (s, c) = (lab.host("s"), lab.host("c"));
    let wire =
        lab.wire(&s, "eth0", &format!("{SOURCE}/64"), &c, "eth0", &format!("{}/64", scene::CLIENT), 1280);
    let packed = scene::pack(lab.dir(), 8 * MIB, &[]);
    let server = scene::serve(&s, &packed, "16M", &[]);
    scene::wait_sending(&s, &server);
    let reordered = Duration::from_millis(20); // 30 packets
    let bursts = |mean_burst| WireLoss::GilbertElliott { mean_burst, loss: 0.1 };
    for (name, loss, delay_up_to) in [
        ("every 10th", WireLoss::EveryNth(10), Duration::ZERO),
        ("every 10th, reordered", WireLoss::EveryNth(10), reordered),
        ("bursts of 10", bursts(10.0), Duration::ZERO),
        ("bursts of 10, reordered", bursts(10.0), reordered),
        ("bursts of 100", bursts(100.0), Duration::ZERO),
    ] {
        let transfer = || {
            wire.set(Impairment { loss, delay_up_to, ..Impairment::default() });
            let (files, out) = (Files::new(&lab, "get"), lab.file("got"));
            let client = scene::get(&c, &[SOURCE], &packed, &out, &files.options());
            let got = scene::arrive(&client, &packed, &out, LIMIT);
            let counts = wire.counts();
            fs::remove_file(&out).unwrap();
            (files, got, counts)
        };
        let mut done = transfer();
        // A wire that got no CPU time for a while holds hundreds of packets, not 30; if the object is complete just then,
        // all of those that have not come are losses.
        for _ in 0..3 {
            if !delay_up_to.is_zero() && wire.most_held() > 100 {
                done = transfer();
            }
        }
        let (files, got, counts) = done;
        let metrics = Metrics::read(&files.metrics);
        let value = |what: &str, labels: &[(&str, &str)]| {
            metrics.value(&format!("carousel_client_channel_loss_burst_packets_{what}"), labels)
        };
        let (number, lost) = (value("count", &[]), value("sum", &[]));
        let (mean, set) = (lost / number, counts.lost as f64 / counts.bursts as f64);
        let told = status(&files.status);
        figures::row(
            name,
            &[
                ("bursts", &number),
                ("mean", &format!("{mean:.2}")),
                ("wire's bursts", &counts.bursts),
                ("wire's mean", &format!("{set:.2}")),
                ("histogram", &told["sources"][0]["loss_bursts"]),
            ],
        );
        assert_eq!(lost, got.done.packets_lost as f64, "{name}: the bursts are all that was lost");
        assert!(counts.overrun == 0 && c.snmp6().buffer_losses() == 0, "{name}: {counts:?}");
        // The wire also counts what came before the join and after the end.
        // What it still held when the object was complete is lost as well.
        // That is up to 30 packets, each with its own chance: some eight bursts of one, give or take three.
        let (held, near) = if delay_up_to.is_zero() { (1.0, 0.2) } else { (24.0, 0.3) };
        let (least, most) = (counts.bursts as f64 * 0.5 - 3.0, counts.bursts as f64 + held);
        let few = if counts.bursts < 50 { 2.5 } else { 1.0 }; // of which one more or less makes a difference
        assert!((least..=most).contains(&number), "{name}: {number} bursts, {counts:?}");
        assert!((mean / set - 1.0).abs() < near * few, "{name}: {mean} instead of {set}");
        if let WireLoss::EveryNth(_) = loss {
            // What the wire still held when the object was complete never came.
            let others = number - value("bucket", &[("le", "1")]);
            assert!(
                others <= if delay_up_to.is_zero() { 0.0 } else { 0.05 * number },
                "{name}: {others} longer than one"
            );
        } else {
            // Lengths are geometrically distributed: of mean 10, 39 % are at most 5, of mean 100, 5 %.
            let share = value("bucket", &[("le", "5")]) / number;
            let expected = 1.0 - (1.0 - 1.0 / set).powi(5);
            assert!((share - expected).abs() < 0.2 * few, "{name}: {share} up to 5, not {expected}");
        }
    }
}

/// Lines that complain about a file.
fn warnings(program: &Running) -> usize {
    program.stderr().lines().filter(|line| line.contains("WARN")).count()
}

#[test]
fn trouble_with_the_files_harms_nobody() {
    let test = "trouble_with_the_files_harms_nobody";
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 4 * MIB, &[]);

    // Folders that vanish.
    let (of_server, of_client) = (Files::new(&lab, "server"), Files::new(&lab, "get"));
    let server = scene::serve(&s, &packed, "8M", &of_server.options());
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &of_client.options());
    wait_status(&of_client.status, &client, "the client to receive", |s| s["state"] == "receiving");
    // Whoever writes may be about to make a file in it.
    for folder in [&of_server.folder, &of_client.folder] {
        until("the folder to go", LIMIT, || fs::remove_dir_all(folder).is_ok());
    }
    until(&format!("the server to complain: {server}"), LIMIT, || warnings(&server) == 2);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    got.row("folders that vanish", "");
    assert_eq!(warnings(&client), 2, "one for each file: {client}");
    scene::wait_sending(&s, &server);
    assert_eq!(warnings(&server), 2, "{server}");
    server.kill(Signal::SIGTERM);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");

    // A disk that is full from the beginning, and has room later.
    let room = lab.file("room");
    let disk = |line: Vec<std::ffi::OsString>, folder: &Path| {
        let script = "mount -t tmpfs -o size=64k tmpfs \"$0\" || exit 99
            head -c 60k /dev/zero >\"$0/filler\"; head -c 9k /dev/zero >\"$0/more\" 2>/dev/null
            (while ! [ -e \"$1\" ]; do sleep 0.05; done; rm \"$0/filler\") & shift; exec \"$@\"";
        let mut all = args(&[&"unshare", &"-m", &"sh", &"-c", &script, &folder, &room]);
        all.extend(line);
        all
    };
    let (of_server, of_client) = (Files::new(&lab, "server"), Files::new(&lab, "get"));
    let line = scene::serve_line(&packed, "8M", &of_server.options());
    let server = s.spawn(&disk(line, &of_server.folder));
    scene::wait_sending(&s, &server);
    let out = lab.file("got-2");
    let line = scene::get_line(&[SOURCE], &packed, &out, &of_client.options());
    let client = c.spawn(&disk(line, &of_client.folder));
    scene::wait_received(&c, &client, MIB, LIMIT);
    for program in [&server, &client] {
        until(&format!("a complaint: {program}"), LIMIT, || program.stderr().contains("no space left"));
    }
    fs::write(&room, "").unwrap();
    scene::arrive(&client, &packed, &out, LIMIT).row("full disks", "");
    assert!(client.stderr().contains("written again"), "{client}");
    until(&format!("the server to write again: {server}"), LIMIT, || {
        server.stderr().contains("written again")
    });
    for program in [&server, &client] {
        assert!((1..=2).contains(&warnings(program)), "{program}");
    }
    server.kill(Signal::SIGTERM);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
}

#[test]
fn every_end_is_told() {
    let Some(lab) = Lab::enter("every_end_is_told") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 2 * MIB, &[]);
    let files = Files::new(&lab, "get");
    let out = lab.file("got");
    let get = |more: &[&str]| {
        let more = [&files.options()[..], more].concat();
        scene::get(&c, &[SOURCE], &packed, &out, &more)
    };
    let ended = |client: &Running, code: i32| {
        assert_eq!(client.finish(LIMIT).code(), code, "{client}");
        let (told, metrics) = (status(&files.status), Metrics::read(&files.metrics));
        assert_eq!((&told["state"], &told["exit_code"]), (&"failed".into(), &code.into()), "{told}");
        assert_eq!(metrics.value("carousel_client_exit_code", &[]), f64::from(code));
        assert_eq!(metrics.value("carousel_client_state", &[("state", "failed")]), 1.0);
        let said = client.stderr();
        assert!(said.contains(told["error"].as_str().unwrap()), "{told} {said}");
        told
    };
    // Before anything came, and before anything was tried.
    let told = ended(&get(&["--timeout", "1s"]), 5);
    assert_eq!((&told["name"], &told["sources"]), (&Value::Null, &Value::Array(vec![])));
    ended(&get(&["--seed", "/nowhere/there"]), 2);
    let client = get(&[]);
    scene::wait_joined(&c); // until then a signal ends it at once
    assert_eq!(status(&files.status)["state"], "waiting");
    client.kill(Signal::SIGTERM);
    ended(&client, 1);

    // On the way.
    let server = scene::serve(&s, &packed, "4M", &[]);
    scene::wait_sending(&s, &server);
    let client = get(&[]);
    wait_status(&files.status, &client, "a part to arrive", |s| s["share"].as_f64().unwrap() > 0.2);
    client.kill(Signal::SIGTERM);
    let told = ended(&client, 1);
    assert!(told["share"].as_f64().unwrap() > 0.2 && told["path"].is_null(), "{told}");
    // The hook finds the object verified, and its failure is the client's.
    let copy = lab.file("copy");
    let hook = format!("cp {} {} && exit 3", files.status.display(), copy.display());
    let told = ended(&get(&["--on-complete", &hook]), 7);
    assert_eq!(told["path"], out.to_str().unwrap());
    assert_eq!(status(&copy)["state"], "verified", "what the hook found");
    // A path that is no text.
    let odd = lab.dir().join(std::ffi::OsStr::from_bytes(b"got-\xff"));
    let client = scene::get(&c, &[SOURCE], &packed, &odd, &files.options());
    scene::arrive(&client, &packed, &odd, LIMIT);
    assert!(status(&files.status)["path"].as_str().unwrap().ends_with("got-\u{fffd}"), "{client}");
    drop(server);

    // The server's ends: one cycle; a bundle that is none; and what nobody could tell.
    let files = Files::new(&lab, "server");
    let server = scene::serve(&s, &packed, "100M", &[&files.options()[..], &["--once"]].concat());
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
    let told = status(&files.status);
    assert_eq!((&told["state"], &told["exit_code"]), (&"ended".into(), &0.into()));
    let cycles = told["channels"][0]["cycles"].as_f64().unwrap();
    assert!((0.99..1.2).contains(&cycles), "{cycles} cycles with --once");
    let none = Packed { bundle: packed.object.clone(), ..packed.clone() };
    let server = scene::serve(&s, &none, "1M", &files.options());
    assert_eq!(server.finish(LIMIT).code(), 2, "{server}");
    let told = status(&files.status);
    assert_eq!((&told["state"], &told["exit_code"]), (&"failed".into(), &2.into()));
    let server = scene::serve(&s, &packed, "1M", &files.options());
    wait_status(&files.status, &server, "the server to send", |status| status["state"] == "sending");
    let writer = child_of(server.pid(), "carousel-status");
    server.kill(Signal::SIGKILL);
    until("the writer to end", LIMIT, || !is_running(writer));
    assert_eq!(status(&files.status)["state"], "sending", "what SIGKILL leaves");

    // Wrong paths.
    let folder = lab.fresh_dir("folder");
    let (folder, same) = (folder.to_str().unwrap(), lab.file("same"));
    let same = same.to_str().unwrap();
    for (code, more) in [
        (6, &["--status", "/nowhere/there"][..]),
        (2, &["--metrics", folder]),
        (2, &["--status", same, "--metrics", same]),
    ] {
        let client = scene::get(&c, &[SOURCE], &packed, &lab.file("never"), more);
        let server = scene::serve(&s, &packed, "1M", more);
        for program in [client, server] {
            assert_eq!(program.finish(LIMIT).code(), code, "{program}");
            assert_eq!(program.stderr().lines().count(), 1, "{program}");
        }
    }
}

/// The child of this name.
fn child_of(pid: u32, name: &str) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let children: Vec<&str> = children.split_whitespace().collect();
    let is_it = |child: &&&str| {
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let [child] = children.iter().filter(is_it).collect::<Vec<_>>()[..] else {
        panic!("{name} of {children:?}")
    };
    child.parse().unwrap()
}

fn is_running(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

fn numbers(values: &[i32]) -> Vec<Argument<'static>> {
    values.iter().map(|value| Number(i64::from(*value))).collect()
}

/// Opens a file by its whole path.
fn open(path: &str, flags: libc::c_int) -> Vec<Argument<'_>> {
    vec![Number(libc::AT_FDCWD.into()), Text(path), Number(flags.into()), Number(0o600)]
}

fn error(number: libc::c_int) -> Fate {
    Fate::Returned(-i64::from(number))
}

/// Judged from inside, like the sandboxes in `sandbox.rs`.
#[test]
fn who_writes_can_do_nothing_else() {
    let test = "who_writes_can_do_nothing_else";
    if !CAN_INJECT {
        return lab::skip(test, "no calls can be injected on this machine");
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 4 * MIB, &[]);
    let serve = |files: &Files| {
        let server = scene::serve(&s, &packed, "1M", &files.options());
        wait_status(&files.status, &server, "the server to send", |status| status["state"] == "sending");
        server
    };
    let files = Files::new(&lab, "server");
    let path = |folder: &Path, name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (inside, outside) = (path(&files.folder, "new"), path(lab.dir(), "outside"));
    let (own, bundle) = (path(&files.folder, "server.json"), packed.bundle.to_str().unwrap());
    let creating = libc::O_WRONLY | libc::O_CREAT;
    let server = serve(&files);
    let writer = child_of(server.pid(), "carousel-status");
    let of_writer = fs::read_to_string(format!("/proc/{writer}/status")).unwrap();
    for line in [
        "Seccomp:\t2",
        "NoNewPrivs:\t1",
        "CapPrm:\t0000000000000000",
        "Threads:\t1",
        "Name:\tcarousel-status",
    ] {
        assert!(of_writer.lines().any(|l| l == line), "{line}: {of_writer}");
    }
    let memory = |field: &str| {
        let line = of_writer.lines().find(|line| line.starts_with(field)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cost = format!("{} resident, {} of it its own", memory("VmRSS"), memory("RssAnon"));
    figures::row("who writes for a server", &[("memory", &cost)]);
    let maps = fs::read_to_string(format!("/proc/{writer}/maps")).unwrap();
    assert!(!maps.contains(".carousel"), "it holds no bundle: {maps}");
    let denied = [
        ("create elsewhere", libc::SYS_openat, open(&outside, creating)),
        ("read a bundle", libc::SYS_openat, open(bundle, libc::O_RDONLY)),
        ("read what is there", libc::SYS_openat, open(&own, libc::O_RDONLY)),
        ("read passwords", libc::SYS_openat, open("/etc/passwd", libc::O_RDONLY)),
        ("remove elsewhere", libc::SYS_unlink, vec![Text(bundle)]),
        ("take away", libc::SYS_rename, vec![Text(bundle), Text(&inside)]),
    ];
    for (name, call, arguments) in &denied {
        let fate = inject_into(writer, &server, *call, arguments);
        assert!([error(libc::EACCES), error(libc::EXDEV)].contains(&fate), "{name}: {fate:?}");
    }
    let absent = [
        ("a folder", libc::SYS_mkdir, vec![Text(&inside), Number(0o700)]),
        ("a link", libc::SYS_symlink, vec![Text("/etc"), Text(&inside)]),
        ("kill", libc::SYS_kill, numbers(&[1, 0])),
        ("connect", libc::SYS_connect, numbers(&[0, 0, 0])),
        ("sendto", libc::SYS_sendto, numbers(&[0, 0, 0, 0, 0, 0])),
        ("fork", libc::SYS_clone, numbers(&[17, 0, 0, 0, 0])),
        ("code", libc::SYS_mmap, numbers(&[0, 4096, libc::PROT_READ | libc::PROT_EXEC, 0x22, -1, 0])),
    ];
    for (name, call, arguments) in &absent {
        assert_eq!(inject_into(writer, &server, *call, arguments), error(libc::ENOSYS), "{name}");
    }
    let made = inject_into(writer, &server, libc::SYS_openat, &open(&inside, creating));
    assert!(matches!(made, Fate::Returned(0..)), "its own folder: {made:?}");
    // And it goes on.
    let before = status(&files.status)["updated"].as_f64().unwrap();
    wait_status(&files.status, &server, "it to go on", |s| s["updated"].as_f64().unwrap() > before + 1.0);
    for (name, call, arguments) in [
        ("socket", libc::SYS_socket, numbers(&[libc::AF_INET6, libc::SOCK_DGRAM, 0])),
        ("execve", libc::SYS_execve, vec![Text("/nowhere"), Number(0), Number(0)]),
        ("recvfrom", libc::SYS_recvfrom, numbers(&[0, 0, 0, 0, 0, 0])),
    ] {
        let files = Files::new(&lab, "server");
        let server = serve(&files);
        let writer = child_of(server.pid(), "carousel-status");
        assert_eq!(inject_into(writer, &server, call, &arguments), Fate::Killed(Signal::SIGSYS), "{name}");
        // The server does not mind.
        until(&format!("the server to notice: {server}"), LIMIT, || warnings(&server) == 1);
        scene::wait_sending(&s, &server);
        server.kill(Signal::SIGTERM);
        assert_eq!(server.finish(LIMIT).code(), 0, "{name}: {server}");
    }

    // The server itself still dies of writing, its own status included.
    assert_eq!(inject(&server, libc::SYS_openat, &open(&own, libc::O_WRONLY)), Fate::Killed(Signal::SIGSYS));
    assert_eq!(server.finish(LIMIT).code(), -libc::SIGSYS, "{server}");
    until("the writer to end, too", LIMIT, || !is_running(writer));

    // The client writes there, and reads nothing.
    let files = Files::new(&lab, "server");
    let _server = serve(&files);
    let files = Files::new(&lab, "get");
    let client = scene::get(&c, &[SOURCE], &packed, &lab.fresh_dir("target").join("got"), &files.options());
    wait_status(&files.status, &client, "the client to receive", |s| s["state"] == "receiving");
    let (inside, own) = (path(&files.folder, "new"), path(&files.folder, "get.json"));
    assert!(matches!(inject(&client, libc::SYS_openat, &open(&inside, creating)), Fate::Returned(0..)));
    for (name, call, arguments) in [
        ("read what is there", libc::SYS_openat, open(&own, libc::O_RDONLY)),
        ("create elsewhere", libc::SYS_openat, open(&outside, creating)),
        ("a folder", libc::SYS_mkdir, vec![Text(&path(&files.folder, "sub")), Number(0o700)]),
        ("a link", libc::SYS_symlink, vec![Text("/etc"), Text(&path(&files.folder, "link"))]),
    ] {
        assert_eq!(inject(&client, call, &arguments), error(libc::EACCES), "{name}");
    }
}

/// Its pipe is full before long; the server drops what does not go in.
#[test]
fn a_writer_that_hangs_holds_nobody_up() {
    let Some(lab) = Lab::enter("a_writer_that_hangs_holds_nobody_up") else { return };
    let (s, _c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 200_000, &[]);
    let files = Files::new(&lab, "server");
    let groups: Vec<String> = (2..=64).map(|number| format!("ff3e::8000:{number:x}")).collect();
    let groups = groups.iter().flat_map(|group| ["--group", group]);
    let more: Vec<&str> = files.options().into_iter().chain(groups).collect();
    let server = scene::serve(&s, &packed, "100k", &more);
    let all = |told: &Value| told["channels"].as_array().is_some_and(|channels| channels.len() == 64);
    wait_status(&files.status, &server, "64 channels", all);
    let writer = child_of(server.pid(), "carousel-status");
    let writer = nix::unistd::Pid::from_raw(writer.cast_signed());
    nix::sys::signal::kill(writer, Signal::SIGSTOP).unwrap();
    // A second lasts for at least as many packets as the rate has in it.
    let size: u64 =
        [&files.status, &files.metrics].map(|file| fs::metadata(file).unwrap().len()).iter().sum();
    let seconds = MIB / size + 3;
    let before = s.traffic("eth0").tx_bytes;
    until(&format!("{seconds} times {size} bytes: {server}"), LIMIT, || {
        s.traffic("eth0").tx_bytes > before + seconds * 64 * 100_000 / 8
    });
    server.kill(Signal::SIGHUP);
    until(&format!("the reload: {server}"), LIMIT, || server.stderr().contains("taken up"));
    server.kill(Signal::SIGTERM);
    assert_eq!(server.finish(Duration::from_secs(20)).code(), 0, "{server}");
    // It finds the pipe closed, and what was in it.
    nix::sys::signal::kill(writer, Signal::SIGCONT).unwrap();
    until("the writer to end", LIMIT, || !is_running(writer.as_raw().cast_unsigned()));
    assert_eq!(status(&files.status)["state"], "sending");
    figures::row("64 channels", &[("bytes each second", &size)]);
}

/// Debian's node_exporter owns the folder that it reads.
#[test]
fn root_writes_into_the_folders_of_others() {
    let test = "root_writes_into_the_folders_of_others";
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 200_000, &[]);
    let (of_server, of_client) = (Files::new(&lab, "server"), Files::new(&lab, "get"));
    for folder in [&of_server.folder, &of_client.folder] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        if let Err(error) = chown(folder, Some(65534), Some(65534)) {
            return lab::skip(test, &format!("there is no other user here: {error}"));
        }
    }
    let server = scene::serve(&s, &packed, "5M", &of_server.options());
    wait_status(&of_server.status, &server, "the server to send", |s| s["state"] == "sending");
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &of_client.options());
    scene::arrive(&client, &packed, &out, LIMIT);
    assert_eq!(status(&of_client.status)["state"], "ok", "{client}");
    server.kill(Signal::SIGTERM);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
    assert_eq!(status(&of_server.status)["state"], "ended", "{server}");
    assert_eq!(warnings(&client) + warnings(&server), 0, "{client} {server}");
}

/// The calls of a server that tells how it does, and of the process that writes it down: none receives.
#[test]
fn no_call_receives() {
    let test = "no_call_receives";
    if !lab::have("strace") {
        return lab::skip(test, "the program strace is missing");
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, _c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 100_000, &[]);
    let files = Files::new(&lab, "server");
    let trace = lab.fresh_dir("trace");
    let mut line = args(&[&"strace", &"-ff", &"-qq", &"-o", &trace.join("calls")]);
    line.extend(scene::serve_line(&packed, "200k", &files.options()));
    let strace = s.spawn(&line);
    wait_status(&files.status, &strace, "the server to send", |s| {
        s["channels"][0]["packets_sent"].as_u64() > Some(10)
    });
    // Its number in the status is that of its own namespace.
    let server = child_of(strace.pid(), "carousel-server");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.cast_signed()), Signal::SIGTERM).unwrap();
    strace.finish(LIMIT);
    assert_eq!(status(&files.status)["state"], "ended", "{strace}");
    let (mut processes, mut reading) = (0, 0);
    for file in fs::read_dir(&trace).unwrap() {
        let calls = fs::read_to_string(file.unwrap().path()).unwrap();
        let name = |line: &str| line.split('(').next().unwrap_or_default().to_owned();
        let made: BTreeSet<String> = calls.lines().map(name).collect();
        processes += 1;
        for call in ["bind", "listen", "accept", "accept4", "recvfrom", "recvmsg", "recvmmsg"] {
            assert!(!made.contains(call), "{call}: {calls}");
        }
        // Behind its sandbox, which ends with a second filter, a thread that sends reads nothing.
        let filter = calls.rmatch_indices("seccomp(").next().map_or(0, |(at, _)| at);
        let reads = calls[filter..].lines().filter(|line| line.starts_with("read(")).count();
        let sends = made.contains("sendmmsg");
        assert!(!sends || reads == 0, "{calls}");
        reading += usize::from(reads > 0);
    }
    assert!(processes >= 4 && reading == 1, "{processes} threads, of which {reading} read");
}

/// The rows of a document's tables: section, name in the first column, the other columns.
fn rows(text: &str) -> Vec<(String, String, Vec<String>)> {
    let mut section = String::new();
    let mut rows = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_owned();
        } else if let Some(row) = line.strip_prefix("| `") {
            let (name, rest) = row.split_once("` |").unwrap();
            let columns = rest.trim_end_matches('|').split('|').map(|column| column.trim().to_owned());
            rows.push((section.clone(), name.to_owned(), columns.collect()));
        }
    }
    rows
}

/// Every key of a status, with the kind of its value.
fn keys(prefix: &str, value: &Value, all: &mut BTreeMap<String, String>) {
    let Value::Object(object) = value else { panic!("{prefix}: {value}") };
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        let kind = match value {
            Value::Null => continue,
            Value::String(_) => "text",
            Value::Number(_) => "number",
            Value::Array(list) => {
                list.iter().for_each(|entry| keys(&format!("{key}[]."), entry, all));
                "list"
            }
            Value::Object(counts) if counts.values().all(Value::is_u64) => "counts",
            other => panic!("{key}: {other}"),
        };
        all.insert(key, kind.to_owned());
    }
}

/// docs/metrics.md, against all that the programs write: nothing more, nothing less.
#[test]
fn document_lists_what_is_written() {
    let Some(lab) = Lab::enter("document_lists_what_is_written") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), MIB, &[]);
    // A ladder, so that there are levels and tiers.
    let (of_server, of_client) = (Files::new(&lab, "server"), Files::new(&lab, "get"));
    let config = of_server.folder.join("server.toml");
    let text = format!(
        "interface = \"eth0\"\nport = {PORT}\nstatus = \"server.json\"\nmetrics = \"server.prom\"\n[[session]]\n\
         bundle = \"{}\"\ntiers = \"stacked\"\nrates = [\"4M\", \"4M\"]\ngroups = [\"ff3e::8000:1\", \"ff3e::8000:2\"]\n",
        packed.bundle.display()
    );
    fs::write(&config, text).unwrap();
    let server = s.spawn(&args(&[&bins::server(), &"run", &"--config", &config]));
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let more = ["--group", "ff3e::8000:2", "--tier", "stacked"];
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[&of_client.options()[..], &more].concat());
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    server.kill(Signal::SIGHUP);
    wait_status(&of_server.status, &server, "the reload to be told", |s| s["reloads_done"] == 1);
    server.kill(Signal::SIGTERM);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
    got.row("a ladder", "");

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let rows = rows(&fs::read_to_string(path).unwrap());
    for (program, files) in [("server", &of_server), ("client", &of_client)] {
        let metrics = Metrics::read(&files.metrics);
        // Name, type, labels.
        let mut written: BTreeSet<(String, String, String)> = BTreeSet::new();
        for sample in &metrics.samples {
            let name = metrics.metric(sample);
            let labels: BTreeSet<&str> =
                sample.labels.keys().map(String::as_str).filter(|label| *label != "le").collect();
            let labels = labels.into_iter().collect::<Vec<_>>().join(", ");
            written.insert((name.to_owned(), metrics.types[name].clone(), labels));
        }
        assert_eq!(written.len(), metrics.types.len(), "every metric has samples with the same labels");
        let sorted = |labels: &str| {
            let labels: BTreeSet<&str> = labels.split(", ").collect();
            labels.into_iter().collect::<Vec<_>>().join(", ")
        };
        let section = format!("Metrics of the {program}");
        let documented = rows.iter().filter(|(title, ..)| *title == section);
        let documented: BTreeSet<_> =
            documented.map(|(_, name, c)| (name.clone(), c[0].clone(), sorted(&c[2]))).collect();
        let differ: Vec<_> = documented.symmetric_difference(&written).collect();
        assert!(differ.is_empty(), "documented or written, not both: {differ:?}");
        assert!(documented.len() > 15, "{documented:?}");
        let prefix = format!("carousel_{program}_");
        assert!(documented.iter().all(|(name, ..)| name.starts_with(&prefix)), "{documented:?}");

        let mut written = BTreeMap::new();
        let told = status(&files.status);
        keys("", &told, &mut written);
        let section = format!("Status of the {program}");
        let documented = rows.iter().filter(|(title, ..)| *title == section);
        let documented: BTreeMap<_, _> =
            documented.map(|(_, name, c)| (name.clone(), c[0].clone())).collect();
        for (key, kind) in &written {
            assert_eq!(documented.get(key), Some(kind), "{key} is written");
        }
        // What is null here is there all the same.
        let text = fs::read_to_string(&files.status).unwrap();
        for key in documented.keys().filter(|key| !written.contains_key(*key)) {
            let name = key.rsplit('.').next().unwrap();
            assert!(text.contains(&format!("\"{name}\":null")), "{key} is documented: {text}");
        }
        figures::row(program, &[("metrics", &metrics.types.len()), ("keys", &documented.len())]);
    }
}

/// Asks a server on a host's loopback; the body of its answer, if there is one and it is a good one.
fn ask(host: &Host, port: u16, path: &str) -> Option<String> {
    host.within(|| {
        let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.split(' ').nth(1).filter(|code| *code == "200").map(|_| body.to_owned())
    })
}

/// Asks Prometheus.
fn query(host: &Host, query: &str) -> Vec<Value> {
    let coded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let answer = ask(host, 9090, &format!("/api/v1/query?query={coded}"));
    let answer = answer.unwrap_or_else(|| panic!("Prometheus refuses {query}"));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["data"]["result"].as_array().unwrap().clone()
}

/// The same, until it has data: when the exporter did not answer within its second, there is none until the next one.
fn data(host: &Host, expression: &str) -> Vec<Value> {
    let mut answer = Vec::new();
    until(&format!("data for {expression}"), LIMIT, || {
        answer = query(host, expression);
        !answer.is_empty()
    });
    answer
}

/// Two words that belong together.
type Pair = (String, String);

/// The file that Grafana gets: its queries, each behind the panel that asks it, and its variables, metric and label.
fn dashboard() -> (Vec<Pair>, Vec<Pair>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana-carousel.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut queries = Vec::new();
    for panel in list(&dashboard["panels"]) {
        for target in list(&panel["targets"]) {
            queries.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    // label_values(METRIC, LABEL)
    let variable = |variable: &Value| {
        let inner = text(&variable["query"]["query"]);
        let inner = inner.strip_prefix("label_values(")?.strip_suffix(')')?.to_owned();
        let (metric, label) = inner.split_once(", ")?;
        Some((metric.to_owned(), label.to_owned()))
    };
    let variables = list(&dashboard["templating"]["list"]).iter().filter_map(variable).collect();
    (queries, variables)
}

#[test]
fn prometheus_answers_every_query_of_the_dashboard() {
    let test = "prometheus_answers_every_query_of_the_dashboard";
    let programs = ["prometheus", "promtool", "prometheus-node-exporter"];
    if let Some(program) = programs.into_iter().find(|program| !lab::have(program)) {
        return lab::skip(test, &format!("the program {program} is missing"));
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let folder = lab.fresh_dir("textfiles");
    let packed = scene::pack(lab.dir(), 8 * MIB, &["--name", HOSTILE_NAME]);
    // All in one folder, as on a host that does both; and a client that fails, by a link.
    let files = ["server", "get"].map(|name| Files::within(&folder, name));
    let ([of_server, of_client], of_failed) = (&files, Files::new(&lab, "failed"));
    std::os::unix::fs::symlink(&of_failed.metrics, folder.join("failed.prom")).unwrap();
    let failed = scene::get(&c, &["fd00:6::99"], &packed, &lab.file("never"), &{
        let options = of_failed.options();
        [&options[..], &["--timeout", "1s"]].concat()
    });

    let config = lab.file("prometheus.yml");
    let text = "global: {scrape_interval: 1s}\nscrape_configs: [{job_name: node, static_configs: [{targets: ['[::1]:9100']}]}]\n";
    fs::write(&config, text).unwrap();
    let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
    let exporter = s.spawn(&[
        "prometheus-node-exporter",
        "--collector.disable-defaults",
        "--collector.textfile",
        &flag("collector.textfile.directory", &folder),
        "--web.disable-exporter-metrics",
        "--web.listen-address=[::1]:9100",
    ]);
    let prometheus = s.spawn(&[
        "prometheus",
        &flag("config.file", &config),
        &flag("storage.tsdb.path", &lab.fresh_dir("tsdb")),
        "--web.listen-address=[::1]:9090",
    ]);
    until(&format!("Prometheus to be ready: {prometheus} {exporter}"), LIMIT, || {
        ask(&s, 9090, "/-/ready").is_some()
    });
    assert_eq!(failed.finish(LIMIT).code(), 5, "{failed}");

    let more = ["--group", "ff3e::8000:2@12M"];
    let server = scene::serve(&s, &packed, "6M", &[&of_server.options()[..], &more].concat());
    scene::wait_sending(&s, &server);
    c.loss("eth0", Loss::PerMille(50));
    let out = lab.file("got");
    let more = ["--group", "ff3e::8000:2", "--tier", "auto"];
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[&of_client.options()[..], &more].concat());
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    let told = status(&of_client.status);
    let ended = "carousel_client_exit_code{transfer=\"get\"} == 0";
    until("Prometheus to hear of the end", LIMIT, || !query(&s, ended).is_empty());
    data(&s, "carousel_client_exit_code{transfer=\"failed\"} == 5");
    assert_eq!(data(&s, "node_textfile_scrape_error")[0]["value"][1], "0", "{exporter}");

    let (queries, variables) = dashboard();
    assert!(queries.len() > 20 && variables.len() == 2, "{queries:?} {variables:?}");
    for (metric, label) in &variables {
        assert!(
            data(&s, metric).iter().all(|series| series["metric"][label].is_string()),
            "{metric} {label}"
        );
    }
    for (panel, expression) in &queries {
        let mut plain = expression.replace("$__rate_interval", "1m");
        for (_, label) in &variables {
            plain = plain.replace(&format!("${label}"), ".*");
        }
        assert!(!plain.contains('$'), "{panel}: a variable that this test does not know: {expression}");
        // One that divides may have nothing but NaN while a series is missing. A minute later there are no rates.
        until(&format!("{panel}: data for {expression}"), Duration::from_secs(20), || {
            let answer = query(&s, &plain);
            let mut values =
                answer.iter().filter_map(|series| series["value"][1].as_str()?.parse::<f64>().ok());
            values.any(f64::is_finite)
        });
    }
    // What it says is what the client said; and all that was lost shows in the heat map's buckets.
    let value = |expression: &str| -> f64 {
        let answer = data(&s, expression);
        answer[0]["value"][1].as_str().unwrap().parse().unwrap_or_else(|e| panic!("{e}: {answer:?}"))
    };
    let lost = value("sum(carousel_client_channel_packets_lost_total{transfer=\"get\"})");
    assert_eq!(Some(lost), told["packets_lost"].as_f64());
    assert_eq!(value("sum(carousel_client_channel_loss_burst_packets_sum{transfer=\"get\"})"), lost);
    let named = data(&s, "carousel_client_object_info{transfer=\"get\"}");
    assert_eq!(named[0]["metric"]["name"], HOSTILE_NAME, "{named:?}");
    let whole = data(
        &s,
        "carousel_client_cycles * on (instance, transfer) group_left (name, seq) carousel_client_object_info",
    );
    assert_eq!(whole[0]["metric"]["name"], HOSTILE_NAME, "the example of docs/metrics.md");
    got.row("with Prometheus beside it", &format!("{} queries answered", queries.len()));
    assert_eq!(object::digest(&out).unwrap(), packed.digest);
    figures::row("the dashboard", &[("queries", &queries.len()), ("variables", &variables.len())]);
}
