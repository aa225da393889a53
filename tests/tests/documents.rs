//! Every command in the documents, run where they say, and ending and speaking as they say.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::document::{self, Action, End, Step, steps, unsaid};
use carousel_tests::lab::{Host, Knot, Lab, Running, Signing, Zone, reach, until, zone_file};
use carousel_tests::{bins, figures};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Longer than anything in a document takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
/// The documents that have commands, and the test that runs each; below is one for each.
const DOCUMENTS: [&str; 7] = [
    "README.md",
    "docs/quick-start.md",
    "docs/operators.md",
    "docs/keys.md",
    "docs/folders.md",
    "docs/agent.md",
    "docs/doctor.md",
];
/// Hosts of a document, and their addresses. `desk` has a network, too, and does not need it.
const HOSTS: [(&str, &str); 6] = [
    ("desk", "2001:db8::d"),
    ("server", "2001:db8::1"),
    ("server2", "2001:db8::2"),
    ("device", "2001:db8::a"),
    ("device2", "2001:db8::b"),
    ("ns", "2001:db8::53"),
];
const DOMAIN: &str = "example.net";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(document: &str) -> Vec<Step> {
    let text = fs::read_to_string(root().join(document)).unwrap_or_else(|e| panic!("{document}: {e}"));
    steps(&text).unwrap_or_else(|e| panic!("{document}, {e}"))
}

/// Some hosts on one switch, a nameserver among them, and a folder for each.
struct Stage {
    hosts: BTreeMap<&'static str, Host>,
    _switch: carousel_tests::lab::Switch,
    knot: Knot,
    folder: PathBuf,
    /// What stays: since which line, where, and the program.
    staying: Vec<(usize, String, Running)>,
}

impl Stage {
    fn new(lab: &Lab) -> Self {
        let switch = lab.switch("sw", 1500);
        let hosts: BTreeMap<_, _> = HOSTS.into_iter().map(|(name, _)| (name, lab.host(name))).collect();
        let folder = lab.fresh_dir("document");
        for (name, address) in HOSTS {
            switch.plug(&hosts[name], "eth0", &format!("{address}/64"));
            fs::create_dir(folder.join(name)).unwrap();
        }
        for (name, address) in HOSTS.into_iter().filter(|(name, _)| *name != "server") {
            reach(&hosts[name], address, &hosts["server"], HOSTS[1].1);
        }
        switch.query();
        switch.settle();
        fs::write(folder.join("resolv.conf"), format!("nameserver {}\n", HOSTS[5].1)).unwrap();
        let empty = zone_file(DOMAIN, "");
        let zone = Zone { name: DOMAIN, text: &empty, signing: Signing::TwoKeys };
        let knot = Knot::start(lab, &hosts["ns"], &[zone]);
        fs::copy(knot.trust_anchor(DOMAIN), folder.join("trust-anchor")).unwrap();
        Self { hosts, _switch: switch, knot, folder, staying: Vec::new() }
    }

    fn play(&mut self, document: &str, step: &Step) {
        let at_line = format!("{document}, line {}", step.line);
        let (at, commands, end, says) = match &step.action {
            Action::Run { at, commands, end, says } => (at, commands, end, says),
            Action::Signal { at, what: document::Signal::Stop } => return self.stop(at),
            Action::Signal { at, what: document::Signal::Reload } => {
                let there = self.staying.iter().filter(|(_, host, _)| host == at);
                return there.for_each(|(_, _, program)| program.kill(Signal::SIGHUP));
            }
            Action::Zone { commands } => return self.publish(commands),
            Action::NotRun { .. } => return,
        };
        for (line, _, program) in &self.staying {
            assert!(program.is_alive(), "{at_line}: what began in line {line} has ended: {program}");
        }
        let program = self.shell(at, commands);
        let said = || program.stdout() + &program.stderr();
        match end {
            End::Code(code) => {
                let exit = program.finish(LIMIT);
                assert_eq!(exit.code(), *code, "{at_line}: {program}");
                assert_eq!(
                    unsaid(says, &said()),
                    None,
                    "{at_line}: not said, or not in this order, by {program}"
                );
            }
            End::Stays => {
                if says.is_empty() {
                    // Whatever it is, it has begun when it has said something.
                    until(&at_line, LIMIT, || !said().is_empty() || !program.is_alive());
                } else {
                    until(&at_line, LIMIT, || unsaid(says, &said()).is_none() || !program.is_alive());
                }
                assert!(program.is_alive(), "{at_line}: {program}");
                self.staying.push((step.line, at.clone(), program));
            }
        }
    }

    fn publish(&self, commands: &str) {
        let records = self.shell("server", commands);
        assert_eq!(records.finish(LIMIT).code(), 0, "{records}");
        self.knot.reload(DOMAIN, &zone_file(DOMAIN, &records.stdout()));
    }

    fn stop(&mut self, at: &str) {
        let (gone, rest) = std::mem::take(&mut self.staying).into_iter().partition(|(_, host, _)| host == at);
        self.staying = rest;
        for (line, _, program) in gone {
            program.kill(Signal::SIGTERM);
            let exit = program.finish(LIMIT);
            assert_eq!(exit.code(), 0, "what began in line {line}: {program}");
        }
    }

    /// Runs commands in a host's folder, with our programs at hand and with this network's nameserver.
    fn shell(&self, at: &str, commands: &str) -> Running {
        let host = self.hosts.get(at).unwrap_or_else(|| panic!("there is no host {at}: {HOSTS:?}"));
        let script = format!(
            "mount --bind '{}' /etc/resolv.conf && cd '{}' && exec bash -euo pipefail -c \"$0\"",
            self.folder.join("resolv.conf").display(),
            self.folder.join(at).display(),
        );
        let mut command = Command::new("unshare");
        let programs = bins::server().parent().unwrap().to_owned();
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(["-m", "sh", "-c", &script, commands]);
        command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", programs.display()));
        command.env("HOME", self.folder.join(at));
        host.spawn_command(command)
    }
}

fn run(test: &str, document: &str) {
    let Some(lab) = Lab::enter(test) else { return };
    if !Knot::is_here(&lab) {
        return;
    }
    let all = read(document);
    let mut stage = Stage::new(&lab);
    for step in &all {
        stage.play(document, step);
    }
    for (host, _) in HOSTS {
        stage.stop(host);
    }
    let not_run = all.iter().filter(|step| matches!(step.action, Action::NotRun { .. })).count();
    figures::row(document, &[("blocks run", &(all.len() - not_run)), ("not run", &not_run)]);
}

#[test]
fn the_readme() {
    run("the_readme", DOCUMENTS[0]);
}

#[test]
fn the_quick_start() {
    run("the_quick_start", DOCUMENTS[1]);
}

#[test]
fn the_operators_guide() {
    run("the_operators_guide", DOCUMENTS[2]);
}

#[test]
fn the_key_ceremony() {
    run("the_key_ceremony", DOCUMENTS[3]);
}

#[test]
fn the_folders() {
    run("the_folders", DOCUMENTS[4]);
}

#[test]
fn the_agent() {
    run("the_agent", DOCUMENTS[5]);
}

#[test]
fn the_doctor() {
    run("the_doctor", DOCUMENTS[6]);
}

/// Whoever adds a document adds a test.
#[test]
fn every_document_is_run() {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let names = docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()));
    for name in names.filter(|name| name.ends_with(".md")).chain(["README.md".to_owned()]) {
        if read(&name).iter().any(|step| matches!(step.action, Action::Run { .. })) {
            assert!(DOCUMENTS.contains(&&*name), "{name} has commands, and no test runs them");
        }
    }
}

/// The options of a command and of those below it: command, option, and what `--help` says of it.
fn options(path: &str, command: &clap::Command, all: &mut BTreeMap<(String, String), String>) {
    for below in command.get_subcommands() {
        options(&format!("{path} {}", below.get_name()), below, all);
    }
    for argument in command.get_arguments() {
        if let Some(long) = argument.get_long() {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            all.insert((path.to_owned(), long.to_owned()), help);
        }
    }
}

/// `docs/options.md` has every option with the words of `--help`, and no other.
#[test]
fn every_option_is_documented() {
    let mut documented = BTreeMap::new();
    let mut section = String::new();
    for line in fs::read_to_string(root().join("docs/options.md")).unwrap().lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_owned();
        } else if let Some((name, says)) = line.strip_prefix("| `--").and_then(|row| row.split_once("` | ")) {
            let name = name.split([' ', '`']).next().unwrap_or_default();
            documented.insert((section.clone(), name.to_owned()), says.replace("\\|", "|"));
        }
    }
    let mut known = BTreeMap::new();
    options("carousel-server", &carousel_server::command(), &mut known);
    options("carousel-client", &carousel_client::command(), &mut known);
    // All commands have --verbose, and the server's doctor has all that `run` has.
    known.retain(|(command, name), _| {
        let is_doctor = command == "carousel-server doctor" && name != "json";
        command.contains(' ') && !is_doctor
    });
    for (place, help) in &known {
        let says = documented.get(place).unwrap_or_else(|| panic!("docs/options.md lacks {place:?}: {help}"));
        assert!(says.starts_with(help.as_str()), "{place:?}: docs/options.md has {says}, and --help {help}");
    }
    let unknown: Vec<_> = documented.keys().filter(|place| !known.contains_key(*place)).collect();
    assert!(unknown.is_empty(), "in docs/options.md, and no options: {unknown:?}");
}
