//! What `deploy/` has for the hosts around the programs: units, routers' and nameservers' configurations. They are tried
//! as they lie there, with the real systemd-analyze, FRR, knot, BIND and dnsmasq.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{self, Host, Knot, Lab, Running, Signing, Zone, have, until};
use carousel_tests::scene::{self, AsOsString, GROUP, PORT, SOURCE, args};
use carousel_tests::topology::{Routed, SENDER};
use carousel_tests::{bins, figures};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const ZONE: &str = "example.net";
/// Most that systemd may have to say against a unit, of ten.
const EXPOSURE: f64 = 2.0;
const UNITS: [&str; 2] = ["carousel-server.service", "carousel-agent.service"];

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(deploy(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Whether systemd-analyze is there; otherwise says that the test is skipped.
fn can_analyze(test: &str) -> bool {
    let here = have("systemd-analyze");
    if !here {
        lab::skip(test, "the program systemd-analyze is missing: systemd");
    }
    here
}

#[test]
fn units_are_hardened() {
    let test = "units_are_hardened";
    if !can_analyze(test) {
        return;
    }
    let Some(lab) = Lab::enter(test) else { return };
    let here = lab.host("here");
    let exposure = |name: &str, text: &str| -> f64 {
        let dir = lab.fresh_dir("unit");
        let unit = dir.join(name);
        fs::write(&unit, text).unwrap();
        let out =
            here.run(&args(&[&"systemd-analyze", &"security", &"--offline=true", &"--no-pager", &unit]));
        // → Overall exposure level for carousel-server.service: 1.0 OK
        let line = out.stdout.lines().find(|line| line.contains("Overall exposure level"));
        let words = line.unwrap_or_else(|| panic!("{name}: {}{}", out.stdout, out.stderr)).split(": ");
        words.last().unwrap().split(' ').next().unwrap().parse().unwrap()
    };
    let mut cases: Vec<(String, String, &str)> =
        UNITS.map(|unit| (unit.to_owned(), read(unit), unit)).into_iter().collect();
    // With what makes a handover possible, as if it were in a drop-in.
    for entry in fs::read_dir(deploy("handover")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("agent-") && name.ends_with(".conf") {
            let text = read(UNITS[1]) + &read(&format!("handover/{name}"));
            cases.push((format!("{} with {name}", UNITS[1]), text, UNITS[1]));
        }
    }
    for (what, text, unit) in &cases {
        let found = exposure(unit, text);
        figures::row(what, &[("exposure", &found)]);
        assert!(found <= EXPOSURE, "{what}: {found}");
    }
    assert!(cases.len() >= 4 && exposure("bare.service", "[Service]\nExecStart=/bin/true\n") > 8.0);
}

/// A set of system calls as systemd knows it, or the one that it is.
fn system_calls(here: &Host, word: &str) -> BTreeSet<String> {
    if !word.starts_with('@') {
        return [word.to_owned()].into();
    }
    let listed = here.tool(&format!("systemd-analyze --no-pager syscall-filter {word}"));
    let words =
        listed.lines().skip(1).map(str::trim).filter(|word| !word.is_empty() && !word.starts_with('#'));
    words.flat_map(|word| system_calls(here, word)).collect()
}

/// What a unit lets its program do.
fn allowed(here: &Host, unit: &str) -> BTreeSet<String> {
    let mut all = system_calls(here, "@default");
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (takes, words) = line.strip_prefix('~').map_or((false, line), |words| (true, words));
        for call in words.split(' ').flat_map(|word| system_calls(here, word)) {
            if takes {
                all.remove(&call)
            } else {
                all.insert(call)
            };
        }
    }
    all
}

/// The names of the system calls in what strace wrote.
fn calls(log: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
    // 4711  setpriority(PRIO_PROCESS, 0, 10) = 0
    let name = |line: &str| Some(line.split_ascii_whitespace().nth(1)?.split_once('(')?.0.to_owned());
    let is_name = |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    text.lines().filter_map(name).filter(is_name).collect()
}

/// Signals what strace runs, for strace itself heeds none.
fn signal_child(strace: &Running, signal: Signal) {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", strace.pid())).unwrap();
    let child: i32 = children.split_ascii_whitespace().next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), signal).unwrap();
}

/// systemd would kill a program at the first call that its unit does not allow, or refuse it; which these are changes
/// with libraries. So real programs are watched doing their work, and each call is looked up.
#[test]
fn units_allow_what_the_programs_do() {
    let test = "units_allow_what_the_programs_do";
    if !can_analyze(test) {
        return;
    }
    if !have("strace") {
        return lab::skip(test, "the program strace is missing");
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 2 << 20, &["--block-size", "256KiB"]);
    let config = lab.file("server.toml");
    let session = format!("[[session]]\nbundle = {:?}\ngroups = [{:?}]\n", packed.bundle, GROUP);
    // And what it says of itself, as far as this server does.
    let can_say = s.run(&args(&[&bins::server(), &"run", &"--help"])).stdout.contains(" --status ");
    let status = lab.file("server.json");
    let says = if can_say {
        format!("status = {status:?}\nmetrics = {:?}\n", lab.file("s.prom"))
    } else {
        String::new()
    };
    let head = format!("interface = \"eth0\"\nport = {PORT}\nrate = \"10M\"\n");
    fs::write(&config, head + &says + &session).unwrap();
    // Without privileges, as there: a program that has some gives them back, by calls that it makes for nothing else.
    let watch = |log: &Path| {
        let plain: [&dyn AsOsString; 3] = [&"setpriv", &"--bounding-set=-all", &"--no-new-privs"];
        args(&[&plain[..], &[&"strace", &"-f", &"-qq", &"-s", &"0", &"-o", &log]].concat())
    };
    let (server_log, client_log) = (lab.file("server.strace"), lab.file("client.strace"));
    let mut line = watch(&server_log);
    line.extend(args(&[&bins::server(), &"run", &"--config", &config]));
    let server = s.spawn(&line);
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let mut line = watch(&client_log);
    let state = lab.fresh_dir("state");
    let more =
        ["--state", state.to_str().unwrap(), "--on-complete", "cp \"$CAROUSEL_PATH\" \"$CAROUSEL_PATH.2\""];
    line.extend(scene::get_line(&[SOURCE], &packed, &out, &more));
    let client = c.spawn(&line);
    scene::arrive(&client, &packed, &out, LIMIT);
    // Asking DNS takes a runtime of its own. Nobody answers here.
    let dns_log = lab.file("dns.strace");
    let mut line = watch(&dns_log);
    let ask = ["discover", ZONE, "--nameserver", SOURCE, "--timeout", "1s"];
    line.extend(args(&[&bins::client()]).into_iter().chain(ask.map(OsString::from)));
    let asked = c.spawn(&line);
    assert_eq!(asked.finish(LIMIT).code(), 75, "{asked}");
    // The agent, as far as this client has one.
    let agent_log = lab.file("agent.strace");
    if c.run(&args(&[&bins::client(), &"--help"])).stdout.contains("\n  watch ") {
        let (config, fetched) = (lab.file("client.toml"), lab.file("handed-over"));
        let text = format!(
            "key = [{key:?}]\nstate = {state:?}\nstatus = {status:?}\n[[watch]]\nname = \"firmware\"\n\
             source = [{SOURCE:?}]\ngroup = [{GROUP:?}]\nport = {PORT}\nout = {out:?}\nhandover = \"cp $CAROUSEL_PATH {}\"\n",
            fetched.display(),
            key = packed.keys.public,
            state = lab.fresh_dir("state"),
            status = lab.file("status.json"),
            out = lab.file("fetched"),
        );
        fs::write(&config, text).unwrap();
        let mut line = watch(&agent_log);
        line.extend(args(&[&bins::client(), &"watch", &"--config", &config]));
        let agent = c.spawn(&line);
        until("the agent to hand over", LIMIT, || {
            assert!(agent.is_alive(), "{agent}");
            fs::metadata(&fetched).is_ok_and(|file| file.len() == packed.size)
        });
        signal_child(&agent, Signal::SIGHUP);
        signal_child(&agent, Signal::SIGTERM);
        assert_eq!(agent.finish(LIMIT).code(), 0, "{agent}");
    } else {
        fs::write(&agent_log, "").unwrap();
    }
    until("the server to say how it is", LIMIT, || !can_say || status.exists());
    signal_child(&server, Signal::SIGHUP);
    until("the server to take up what changed", LIMIT, || server.stderr().contains("taken up"));
    signal_child(&server, Signal::SIGTERM);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
    for (unit, logs) in UNITS.into_iter().zip([vec![server_log], vec![client_log, dns_log, agent_log]]) {
        let allowed = allowed(&s, &read(unit));
        let called: BTreeSet<String> = logs.iter().flat_map(|log| calls(log)).collect();
        let refused: Vec<&String> = called.difference(&allowed).collect();
        assert!(called.len() > 20 && refused.is_empty(), "{unit} does not allow {refused:?} of {called:?}");
        figures::row(unit, &[("system calls used", &called.len()), ("allowed", &allowed.len())]);
    }
}

/// A text with what differs from bundle to bundle left out.
fn without_release(text: &str) -> String {
    let hint = |word: &str| ["\"seq=", "\"h=", "\"k="].iter().any(|key| word.starts_with(key));
    let words = |line: &str| line.split(' ').filter(|word| !hint(word)).collect::<Vec<_>>().join(" ");
    text.lines().map(|line| words(line) + "\n").collect()
}

#[test]
fn the_zone_is_what_the_example_s_server_prints() {
    let test = "the_zone_is_what_the_example_s_server_prints";
    let Some(lab) = Lab::enter(test) else { return };
    // The example as it is, but for the folder of the bundles.
    let config =
        read("server.toml").replace("/var/lib/carousel-server/", &format!("{}/", lab.dir().display()));
    fs::write(lab.file("server.toml"), &config).unwrap();
    for (name, seq) in [("gateway-fw", "42"), ("maps", "7")] {
        let packed = scene::pack(&lab.fresh_dir(name), 100_000, &["--seq", seq]);
        fs::rename(&packed.bundle, lab.file(&format!("{name}.carousel"))).unwrap();
    }
    let out = bins::run(bins::server(), args(&[&"zone", &"--config", &lab.file("server.toml")]));
    let (printed, said) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.is_empty(), "{said}");
    let example = read("zone/carousel.zone");
    assert_eq!(without_release(&printed), without_release(&example), "print deploy/zone/carousel.zone anew");
    assert!(without_release(&example).len() + 100 < example.len(), "{example}");

    // What the nameservers' own checkers say, in the folder where the included file is.
    let ns = lab.host("ns");
    let folder = deploy("zone");
    for line in [
        "kzonecheck -o example.net example.net.zone",
        "named-checkzone -i local example.net example.net.zone",
        "nsd-checkzone example.net example.net.zone",
        "knotc -c knot.conf conf-check",
        "named-checkconf named.conf",
        "dnsmasq --test -C dnsmasq.conf",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        if !have(words[0]) {
            lab::skip(test, &format!("the program {} is missing", words[0]));
            continue;
        }
        let script = format!("cd '{}' && exec {line}", folder.display());
        let out = ns.run(&["sh", "-c", &script]);
        let said = out.stdout + &out.stderr;
        assert!(out.exit.status.success() && !said.contains("warning"), "{line}: {said}");
    }
}

#[test]
fn knot_and_dnsmasq_say_the_same() {
    let test = "knot_and_dnsmasq_say_the_same";
    let Some(lab) = Lab::enter(test) else { return };
    if !Knot::is_here(&lab) {
        return;
    }
    if !have("dnsmasq") {
        return lab::skip(test, "the program dnsmasq is missing: dnsmasq-base");
    }
    let (knot, other, c) = (lab.host("knot"), lab.host("dnsmasq"), lab.host("c"));
    lab.lan(&[(&knot, "fd00:6::53/64"), (&other, "fd00:6::54/64"), (&c, "fd00:6::10/64")], 1280);
    let text = read("zone/example.net.zone").replace("$INCLUDE carousel.zone", &read("zone/carousel.zone"));
    let _knot = Knot::start(&lab, &knot, &[Zone { name: ZONE, text: &text, signing: Signing::Unsigned }]);
    let config = format!("--conf-file={}", deploy("zone/dnsmasq.conf").display());
    let quiet =
        ["--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root", "--group=", "--pid-file="];
    let dnsmasq = other.spawn(&[&["dnsmasq", &config], &quiet[..]].concat());
    let found = |nameserver: &str| -> serde_json::Value {
        let line = args(&[&bins::client(), &"discover", &ZONE, &"--nameserver", &nameserver, &"--json"]);
        let mut answer = serde_json::Value::Null;
        until(&format!("{nameserver} to answer"), LIMIT, || {
            assert!(dnsmasq.is_alive(), "{dnsmasq}");
            let out = c.run(&line);
            answer = serde_json::from_str(&out.stdout).unwrap_or_default();
            out.exit.status.success()
        });
        answer
    };
    let said = [found("fd00:6::53"), found("fd00:6::54")].map(comparable);
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0].len(), 2, "{said:?}");
}

/// The services of an answer, in one order, without the hints that change with a release.
fn comparable(answer: serde_json::Value) -> Vec<String> {
    let mut services: Vec<serde_json::Value> =
        answer["services"].as_array().unwrap_or_else(|| panic!("{answer}")).clone();
    for service in &mut services {
        let service = service.as_object_mut().unwrap();
        ["seq", "digest_prefix", "key_id"].iter().for_each(|hint| drop(service.remove(*hint)));
    }
    let mut texts: Vec<String> = services.iter().map(ToString::to_string).collect();
    texts.sort();
    texts
}

#[test]
fn routers_with_the_files_that_we_deploy() {
    let test = "routers_with_the_files_that_we_deploy";
    if let Some(why) = lab::routers_missing() {
        return lab::skip(test, &why);
    }
    let Some(lab) = Lab::enter(test) else { return };
    let files = ["frr/first-hop.conf", "frr/last-hop.conf"].map(read);
    let net = Routed::configured(&lab, 1280, Some([&files[0], &files[1]]));
    // What a router did not understand it leaves out: "No such command on config line 16".
    for router in [&net.r1, &net.r2] {
        assert!(!router.log().contains(" on config line "), "{}", router.log());
    }
    let mld: serde_json::Value = serde_json::from_str(&net.r2.show("show ipv6 mld interface json")).unwrap();
    assert_eq!(mld["default"]["lan"]["version"], "2", "{mld}");
    let packed = scene::pack(lab.dir(), 1 << 20, &[]);
    let server = scene::serve(&net.s, &packed, "10M", &[]);
    scene::wait_sending(&net.s, &server);
    let out = lab.file("got");
    let client = scene::get(&net.r[0], &[SENDER], &packed, &out, &[]);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    got.row(test, "default timers");
    let left = || net.r1.mroutes().iter().all(|route| route.oifs.is_empty());
    until("the first router to stop when nobody is left", LIMIT, left);
}
