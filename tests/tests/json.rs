//! What `--json` prints, against docs/json.md: nothing more, nothing less.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::Lab;
use carousel_tests::scene::{self, AsOsString, SOURCE, args};
use carousel_tests::{bins, figures};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// Objects whose keys are names that somebody gave.
const NAMES: [&str; 1] = ["least"];

/// The keys of each section of the document. A heading or a row may have several names.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let mut all = BTreeMap::<String, BTreeSet<String>>::new();
    let mut sections = Vec::new();
    for line in fs::read_to_string(path).unwrap().lines() {
        if let Some(title) = line.strip_prefix("### ").or_else(|| line.strip_prefix("## ")) {
            sections = title.split(", ").map(str::to_owned).collect();
        } else if let Some((names, _)) = line.strip_prefix("| `").and_then(|row| row.split_once("` |")) {
            for section in &sections {
                let names = names.split("`, `").map(str::to_owned);
                all.entry(section.clone()).or_default().extend(names);
            }
        }
    }
    all
}

/// Every key of an object, and of those in it.
fn keys(prefix: &str, value: &Value, all: &mut BTreeSet<String>) {
    let Value::Object(object) = value else { return }; // of a list of words or numbers
    for (key, value) in object {
        let name = format!("{prefix}{key}");
        match value {
            Value::Object(_) if !NAMES.contains(&&*name) => keys(&format!("{name}."), value, all),
            Value::Array(list) => list.iter().for_each(|one| keys(&format!("{name}[]."), one, all)),
            _ => {}
        }
        all.insert(name);
    }
}

/// All keys that are printed are documented, and all that are documented and always there are printed.
#[track_caller]
fn check(documented: &BTreeMap<String, BTreeSet<String>>, section: &str, line: &str) {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let mut printed = BTreeSet::new();
    keys("", &value, &mut printed);
    if value.get("event").is_some() {
        assert!(printed.remove("event") && printed.remove("seconds"), "{line}");
    }
    let Some(known) = documented.get(section) else { panic!("docs/json.md has no section {section}") };
    let unknown: Vec<_> = printed.difference(known).collect();
    assert!(unknown.is_empty(), "printed by {section}, and not in docs/json.md: {unknown:?}");
    let missing = |key: &&String| !key.contains(['.', '[']) && !printed.contains(*key);
    let missing: Vec<_> = known.iter().filter(missing).collect();
    assert!(missing.is_empty(), "in docs/json.md, and not printed by {section}: {missing:?}");
}

/// Runs the server program to a good end; what it printed.
#[track_caller]
fn says(words: &[&dyn AsOsString]) -> String {
    let out = bins::run(bins::server(), args(words));
    assert!(out.status.success(), "{:?}: {}", args(words), String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn document_lists_what_get_prints() {
    let Some(lab) = Lab::enter("document_lists_what_get_prints") else { return };
    let documented = documented();
    let (s, c) = scene::pair(&lab);
    let options = ["--compatible", "board-a", "--apply-not-before", "@5", "--apply-jitter", "1h"];
    let packed = scene::pack(lab.dir(), 8 * MIB, &options);
    let server = scene::serve(&s, &packed, "20M", &[]);
    scene::wait_sending(&s, &server);
    let folder = lab.fresh_dir("target");
    let out = folder.join("got");
    let mut lines = String::new();

    let refused = scene::get(&c, &[SOURCE], &packed, &out, &["--compatible", "board-b", "--timeout", "3s"]);
    assert_eq!(refused.finish(LIMIT).code(), 2, "{refused}");
    lines += &refused.stdout();
    let looked = scene::get(&c, &[SOURCE], &packed, &out, &["--look"]);
    assert_eq!(looked.finish(LIMIT).code(), 0, "{looked}");
    lines += &looked.stdout();
    let quarter = packed.size / 1188 / 4;
    let killed = scene::get_part(&c, &packed, &out, quarter, &[]);
    scene::wait_logged(&killed, &folder.join(".got.carousel-log"), quarter / 2, LIMIT);
    killed.kill(Signal::SIGTERM);
    assert_eq!(killed.finish(LIMIT).code(), 1, "{killed}");
    lines += &killed.stdout();
    c.let_in("eth0", None);
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    scene::arrive(&client, &packed, &out, LIMIT);
    lines += &client.stdout();

    let mut seen = BTreeSet::new();
    for line in lines.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let event = value["event"].as_str().unwrap_or_default().to_owned();
        check(&documented, &event, line);
        seen.insert(event);
    }
    let events = ["join", "refused", "offer", "started", "resumed", "progress", "done"];
    assert!(events.iter().all(|event| seen.contains(*event)), "{seen:?}");
    figures::row("get", &[("events", &seen.len()), ("lines", &lines.lines().count())]);
}

#[test]
fn document_lists_what_inspect_prints() {
    let Some(lab) = Lab::enter("document_lists_what_inspect_prints") else { return };
    let documented = documented();
    let packed = scene::pack(lab.dir(), 20_000, &["--rollout", "@5=10%,@6=100%", "--apply-jitter", "1h"]);
    check(&documented, "inspect --json", &says(&[&"inspect", &packed.bundle, &"--json"]));

    let (tree, bundle) = (lab.fresh_dir("tree"), lab.file("tree.carousel"));
    fs::create_dir(tree.join("folder")).unwrap();
    fs::write(tree.join("file"), "contents").unwrap();
    std::os::unix::fs::symlink("file", tree.join("link")).unwrap();
    let (secret, public) = (&packed.keys.secret, &packed.keys.public);
    says(&[&"pack", &tree, &"--key", secret, &"--out", &bundle]);
    let of_folder = says(&[&"inspect", &bundle, &"--key", public, &"--json"]);
    assert!(of_folder.contains("\"target\":\"file\""), "{of_folder}");
    check(&documented, "inspect --json", &of_folder);

    let keys = [lab.file("1.keys"), lab.file("2.keys")];
    for (version, path) in ["1", "2"].iter().zip(&keys) {
        let create: [&dyn AsOsString; 6] = [&"keys", &"create", &"--out", path, &"--version", version];
        let names: [&dyn AsOsString; 4] = [&"--root", public, &"--least", &"object=3"];
        says(&[&create[..], &names].concat());
        says(&[&"keys", &"sign", path, &"--key", secret]);
    }
    check(&documented, "keys inspect --json", &says(&[&"keys", &"inspect", &keys[0], &"--json"]));
    // Devices that have the first would take the second, and not the other way round.
    says(&[&"keys", &"inspect", &keys[1], &"--after", &keys[0]]);
    let back = bins::run(bins::server(), args(&[&"keys", &"inspect", &keys[0], &"--after", &keys[1]]));
    assert_eq!(back.status.code(), Some(3), "{back:?}");
}
