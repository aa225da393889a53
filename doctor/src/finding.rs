//! Findings: what was looked at, how it stands, what to do. People get a line each, programs one JSON object.

use carousel_proto::outcome::{Failure, Outcome};
use serde_json::{Map, Value, json};

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and somebody should know.
    Note,
    /// It keeps the file from arriving, or soon will.
    Problem,
}

impl Level {
    /// As it is printed and written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What a finding is about. Programs rely on these names; docs/doctor.md lists them all.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Id { $($(#[$doc])* $name,)* }

        impl Id {
            /// Every one there is.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

ids! {
    /// Whether it is there, or which of several.
    Interface = "interface",
    /// Up, with a cable, able to do multicast.
    LinkState = "link-state",
    /// IPv6 at all.
    Ipv6 = "ipv6",
    /// Addresses of the interface.
    Addresses = "addresses",
    /// Bytes of an IPv6 packet.
    Mtu = "mtu",
    /// The kernel's own route for multicast.
    MulticastRoute = "multicast-route",
    /// A port of a bridge, or a bridge.
    Bridge = "bridge",
    /// A radio.
    Wifi = "wifi",
    /// Where the source is.
    SourceRoute = "source-route",
    /// What DNS knows.
    Dns = "dns",
    /// The kernel took the join.
    Join = "join",
    /// How many sources a socket may join.
    SourceLimit = "source-limit",
    /// The network was told of the join.
    MldReport = "mld-report",
    /// By which version of MLD.
    MldVersion = "mld-version",
    /// Somebody asks who has joined what.
    Querier = "querier",
    /// Packets arrive.
    Signal = "signal",
    /// They reach the host and not the program.
    Firewall = "firewall",
    /// Somebody else sends.
    OtherSource = "other-source",
    /// They go to another port.
    OtherPort = "other-port",
    /// The network ignores the source in a join.
    SourceSpecific = "source-specific",
    /// What arrives is a carousel, of a known key.
    Manifest = "manifest",
    /// Packets that never came.
    Loss = "loss",
    /// Packets that came twice.
    Duplicates = "duplicates",
    /// Packets that were damaged on the way.
    Damage = "damage",
    /// Room for packets in this host.
    ReceiveBuffer = "receive-buffer",
    /// What time it is.
    Clock = "clock",
    /// The address that packets come from.
    Source = "source",
    /// That DNS and the configuration name it, too.
    SourceInDns = "source-in-dns",
    /// What kind of group it is.
    Group = "group",
    /// How many routers packets may cross.
    HopLimit = "hop-limit",
    /// What is to be sent.
    Bundle = "bundle",
    /// How fast, and what the link carries.
    Rate = "rate",
    /// Room for bursts in this host.
    SendQueue = "send-queue",
    /// Trains of packets.
    Segmentation = "segmentation",
    /// Servers that send in turn.
    Phase = "phase",
    /// Open files.
    Limits = "limits",
    /// What this kernel can take from the server.
    Sandbox = "sandbox",
    /// That the server listens to nothing.
    Listens = "listens",
    /// That packets leave.
    Sending = "sending",
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub id: Id,
    /// How it stands.
    pub level: Level,
    /// One line for a person.
    pub what: String,
    /// What to do about it, unless it is as it should be.
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(id: Id, what: impl Into<String>) -> Self {
        Self { id, level: Level::Ok, what: printable(what), remedy: None }
    }

    /// It works, and somebody should know.
    pub fn note(id: Id, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { id, level: Level::Note, what: printable(what), remedy: Some(printable(remedy)) }
    }

    /// It does not work, or soon will not.
    pub fn problem(id: Id, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { id, level: Level::Problem, what: printable(what), remedy: Some(printable(remedy)) }
    }
}

/// Names and remarks may come from the network: one line, and nothing that a terminal obeys.
fn printable(text: impl Into<String>) -> String {
    text.into().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// All findings of one run, and what follows from them.
#[derive(Debug)]
pub struct Report {
    findings: Vec<Finding>,
    outcome: Outcome,
    summary: String,
}

impl Report {
    /// `ended` is how it ends if it is not the findings alone that decide: nothing arrived, or a wrong command line.
    pub fn new(findings: Vec<Finding>, ended: Option<Outcome>) -> Self {
        let problems = names(&findings, Level::Problem);
        let notes = names(&findings, Level::Note);
        let outcome = ended.unwrap_or(match problems.len() {
            0 => Outcome::Done,
            _ => Outcome::Failed,
        });
        let begin = match outcome {
            Outcome::NoSignal => "nothing arrives; ",
            _ => "",
        };
        let summary = match (problems.len(), notes.len()) {
            (0, 0) => format!("{begin}everything is fine"),
            (0, _) => format!("{begin}no problem, and to be noted: {}", notes.join(", ")),
            (_, 0) => format!("{begin}look at: {}", problems.join(", ")),
            (..) => {
                format!("{begin}look at: {}; to be noted: {}", problems.join(", "), notes.join(", "))
            }
        };
        Self { findings, outcome, summary }
    }

    /// How the program ends. Everything has been said by then.
    pub fn end(&self) -> Result<(), Failure> {
        match self.outcome {
            Outcome::Done => Ok(()),
            outcome => Err(Failure::new(outcome, "")),
        }
    }

    /// A line for each finding, and the summary.
    pub fn text(&self) -> String {
        let wide = self.findings.iter().map(|f| f.id.as_str().len()).max().unwrap_or(0);
        let line = |f: &Finding| {
            let remedy = f.remedy.as_ref().map_or(String::new(), |remedy| format!(" -> {remedy}"));
            format!("{:<8} {:<wide$}  {}{remedy}\n", f.level.as_str(), f.id.as_str(), f.what)
        };
        let lines: String = self.findings.iter().map(line).collect();
        format!("{lines}{}\n", self.summary)
    }

    /// One JSON object; `more` are further keys of it.
    pub fn json(&self, more: Map<String, Value>) -> String {
        let findings: Vec<Value> = self
            .findings
            .iter()
            .map(|f| {
                json!({"id": f.id.as_str(), "level": f.level.as_str(), "what": f.what, "remedy": f.remedy})
            })
            .collect();
        let mut object = more;
        object.insert("findings".to_owned(), findings.into());
        object.insert("summary".to_owned(), self.summary.clone().into());
        object.insert("exit_code".to_owned(), (self.outcome as u8).into());
        format!("{}\n", Value::Object(object))
    }
}

/// What is at this level, each once.
fn names(findings: &[Finding], level: Level) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for name in findings.iter().filter(|f| f.level == level).map(|f| f.id.as_str()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_plain() {
        let names: BTreeSet<_> = Id::ALL.iter().map(|id| id.as_str()).collect();
        assert_eq!(names.len(), Id::ALL.len());
        assert!(
            names
                .iter()
                .all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
        );
    }

    #[test]
    fn the_document_names_every_finding_and_no_other() {
        let text = include_str!("../../docs/doctor.md");
        let row = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
        let documented: Vec<String> = text.lines().filter_map(row).collect();
        let known: Vec<&str> = Id::ALL.iter().map(|id| id.as_str()).collect();
        assert_eq!(documented, known, "docs/doctor.md and Id must have the same names in the same order");
    }

    #[test]
    fn the_worst_decides_unless_there_is_no_signal() {
        let fine = || Finding::ok(Id::Mtu, "1280");
        let note = || Finding::note(Id::Wifi, "radio", "cable");
        let bad = || Finding::problem(Id::Loss, "9 %", "slower");
        let code = |findings, ended| Report::new(findings, ended).outcome as u8;
        assert_eq!(code(vec![fine()], None), 0);
        assert_eq!(code(vec![fine(), note()], None), 0);
        assert_eq!(code(vec![fine(), note(), bad()], None), 1);
        assert_eq!(code(vec![bad()], Some(Outcome::NoSignal)), 5);
        assert!(Report::new(vec![fine()], None).end().is_ok());
        assert!(Report::new(vec![bad()], None).end().is_err_and(|f| f.message.is_empty()));
        let report = Report::new(vec![bad(), note(), bad()], Some(Outcome::NoSignal));
        assert_eq!(report.summary, "nothing arrives; look at: loss; to be noted: wifi");
    }

    #[test]
    fn a_finding_is_one_line_whatever_it_quotes() {
        let report = Report::new(vec![Finding::problem(Id::Manifest, "a\n\u{1b}[31mb", "c\rd")], None);
        let text = report.text();
        assert_eq!(text.lines().count(), 2, "{text:?}");
        assert!(!text.contains('\u{1b}') && !text.contains('\r'));
        let json: Value = serde_json::from_str(&report.json(Map::new())).unwrap();
        assert_eq!(json["findings"][0]["what"], "a??[31mb");
        assert_eq!((&json["exit_code"], &json["findings"][0]["level"]), (&json!(1), &json!("problem")));
    }
}
