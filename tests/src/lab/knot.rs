//! A nameserver in a host: knot, with a zone that it may sign.

use super::host::Host;
use super::process::{Running, until};
use super::{Lab, have, skip};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Knot takes a tenth of a second for anything; a busy machine takes longer.
const LIMIT: Duration = Duration::from_secs(20);

/// A running knotd on port 53 of all addresses of its host. Dropping it stops it.
pub struct Knot {
    host: Host,
    dir: PathBuf,
    server: Running,
}

/// A zone to serve.
#[derive(Clone, Copy, Debug)]
pub struct Zone<'a> {
    /// `example.test`, no dot at the end.
    pub name: &'a str,
    /// The zone file, SOA and NS included; see [`zone_file`].
    pub text: &'a str,
    /// What knot does to it.
    pub signing: Signing,
}

/// What knot does to its zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signing {
    /// Nothing.
    Unsigned,
    /// A key-signing key, and a zone-signing key for the records.
    TwoKeys,
    /// One key for both.
    OneKey,
}

impl Knot {
    /// Whether knot is installed; otherwise says that the test is skipped.
    pub fn is_here(lab: &Lab) -> bool {
        let missing = ["knotd", "knotc", "keymgr"].into_iter().find(|program| !have(program));
        if let Some(program) = missing {
            skip(lab.name(), &format!("the program {program} is missing: knot, knot-dnssecutils"));
        }
        missing.is_none()
    }

    /// Starts it. Returns when the zones are there, and signed.
    pub fn start(lab: &Lab, host: &Host, zones: &[Zone<'_>]) -> Self {
        let dir = lab.fresh_dir("knot");
        write(&dir.join("knot.conf"), &configuration(&dir, zones));
        zones.iter().for_each(|zone| write(&dir.join(zone.name), zone.text));
        let server = host.spawn(&["knotd".to_owned(), "-c".to_owned(), file(&dir, "knot.conf")]);
        let knot = Self { host: host.clone(), dir, server };
        for zone in zones {
            let ready = if zone.signing == Signing::Unsigned { "SOA" } else { "RRSIG" };
            until(&format!("knot to serve {}", zone.name), LIMIT, || {
                assert!(knot.server.is_alive(), "{}", knot.server);
                knot.knotc(&["zone-read", zone.name, "@", ready]).is_some()
            });
        }
        knot
    }

    /// Takes up another file for a zone, and returns when it is served. Serial numbers look after themselves.
    pub fn reload(&self, zone: &str, text: &str) {
        write(&self.dir.join(zone), text);
        let done = self.knotc(&["-b", "zone-reload", zone]);
        assert!(done.is_some(), "knot does not take {zone}: {}\n{text}", self.server);
    }

    /// A file with a zone's key-signing key, as `--trust-anchor` takes it.
    pub fn trust_anchor(&self, zone: &str) -> PathBuf {
        self.keymgr(zone, "dnskey")
    }

    /// The same with digests of the key, as a parent zone holds them.
    pub fn trust_anchor_digest(&self, zone: &str) -> PathBuf {
        self.keymgr(zone, "ds")
    }

    /// A zone as it is served, signatures included, in the form of a zone file.
    pub fn dump(&self, zone: &str) -> String {
        let text = self.knotc(&["zone-read", zone]).unwrap_or_default();
        let prefix = format!("[{zone}.] ");
        text.lines().map(|line| format!("{}\n", line.strip_prefix(&prefix).unwrap_or(line))).collect()
    }

    fn keymgr(&self, zone: &str, what: &str) -> PathBuf {
        let out = self.host.tool(&format!("keymgr -c {} {zone} {what}", file(&self.dir, "knot.conf")));
        let path = self.dir.join(format!("{zone}.{what}"));
        write(&path, &out);
        path
    }

    /// Runs a command of knotc; `None` when it fails.
    fn knotc(&self, words: &[&str]) -> Option<String> {
        let socket = file(&self.dir, "knot.sock");
        let out = self.host.run(&[&["knotc", "-s", &socket], words].concat());
        out.exit.status.success().then_some(out.stdout)
    }
}

/// A zone file from its records: adds what every zone needs. Names without a dot at the end are below the zone.
pub fn zone_file(zone: &str, records: &str) -> String {
    format!(
        "$ORIGIN {zone}.
$TTL 60
@ SOA ns hostmaster 1 3600 600 86400 30
@ NS ns
ns AAAA fd00:6::53
{records}\n"
    )
}

/// Has the checkers of knot, BIND and NSD read a zone file: none may complain, and one that is missing is a skip.
pub fn check_zone_file(lab: &Lab, host: &Host, zone: &str, text: &str) {
    let path = lab.file("checked.zone");
    write(&path, text);
    for line in ["kzonecheck -o ZONE FILE", "named-checkzone -i none ZONE FILE", "nsd-checkzone ZONE FILE"] {
        let line = line.replace("FILE", &path.display().to_string()).replace("ZONE", zone);
        let words: Vec<&str> = line.split(' ').collect();
        if !have(words[0]) {
            skip(lab.name(), &format!("the program {} is missing", words[0]));
            continue;
        }
        let out = host.run(&words);
        let said = out.stdout + &out.stderr;
        assert!(out.exit.status.success() && !said.contains("warning"), "{line}: {said}\n{text}");
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn file(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

fn configuration(dir: &Path, zones: &[Zone<'_>]) -> String {
    let dir = dir.display();
    let of_zone = |zone: &Zone<'_>| {
        let (name, (signs, policy)) = (
            zone.name,
            match zone.signing {
                Signing::Unsigned => ("off", "two-keys"),
                Signing::TwoKeys => ("on", "two-keys"),
                Signing::OneKey => ("on", "one-key"),
            },
        );
        format!(
            "  - domain: {name}
    storage: {dir}
    file: {name}
    zonefile-sync: -1
    zonefile-load: difference-no-serial
    journal-content: all
    dnssec-signing: {signs}
    dnssec-policy: {policy}
"
        )
    };
    format!(
        "server:
    rundir: {dir}
    listen: [0.0.0.0@53, ::@53]
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
control:
    listen: knot.sock
database:
    storage: {dir}
log:
  - target: stderr
    any: info
policy:
  - id: two-keys
    algorithm: ecdsap256sha256
  - id: one-key
    algorithm: ecdsap256sha256
    single-type-signing: on
zone:
{}",
        zones.iter().map(of_zone).collect::<String>()
    )
}
