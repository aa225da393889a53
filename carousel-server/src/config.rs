//! The configuration file. What is wrong with it is told in one line that names the file, the line and the remedy.

use crate::cli::{parse_address, parse_dscp, parse_life};
use crate::plan::{DEFAULT_RATE, Plan, Session, Way};
use crate::sandbox;
use crate::statements::Files;
use crate::status;
use carousel_dns::records::{MAX_CHANNELS, derived_group};
use carousel_dns::{Ladder, Name, Source};
use carousel_proto::outcome::Failure;
use carousel_proto::schedule::{MAX_ROUNDS_LOG2, Tier};
use carousel_proto::units::parse_rate;
use serde::Deserialize;
use std::fmt::Display;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use toml::{Spanned, Value};

/// Most levels of a ladder: those that a bundle with the most cosets has.
const MAX_LEVELS: usize = MAX_ROUNDS_LOG2 as usize + 1;

/// What a file says.
#[derive(Debug)]
pub struct Config {
    pub plan: Plan,
    /// Who sends it, for DNS; the port is that of each session.
    pub servers: Vec<Source>,
}

/// The file as it stands. Every option of `run` has its key, and holds for all sessions that have none of their own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    interface: Option<String>,
    port: Option<Port>,
    source: Option<Ipv6Addr>,
    phase: Option<u32>,
    hops: Option<Hops>,
    dscp: Option<Dscp>,
    rate: Option<Rate>,
    #[serde(default)]
    keys: Vec<PathBuf>,
    heartbeat_key: Option<PathBuf>,
    heartbeat_life: Option<Life>,
    status: Option<PathBuf>,
    metrics: Option<PathBuf>,
    #[serde(default)]
    session: Vec<Spanned<SessionTable>>,
    #[serde(default)]
    server: Vec<Spanned<ServerTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionTable {
    bundle: PathBuf,
    service: Option<Spanned<Service>>,
    #[serde(default)]
    tiers: Tiers,
    rate: Option<Spanned<Rate>>,
    levels: Option<Spanned<u8>>,
    rates: Option<Spanned<Vec<Rate>>>,
    groups: Option<Spanned<Vec<Group>>>,
    url: Option<String>,
    interface: Option<String>,
    port: Option<Port>,
    source: Option<Ipv6Addr>,
    phase: Option<u32>,
    hops: Option<Hops>,
    dscp: Option<Dscp>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerTable {
    host: Host,
    #[serde(default)]
    address: Addresses,
    #[serde(default)]
    priority: u16,
    #[serde(default = "default_weight")]
    weight: u16,
}

fn default_weight() -> u16 {
    10
}

#[derive(Deserialize, Clone, Copy, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Tiers {
    #[default]
    Separate,
    Stacked,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "Value")]
struct Rate(u64);

#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "Value")]
struct Dscp(u8);

#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "Value")]
struct Life(u64);

#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "i64")]
struct Port(u16);

#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "i64")]
struct Hops(u8);

#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "String")]
struct Group(Ipv6Addr);

#[derive(Deserialize, Clone)]
#[serde(try_from = "String")]
struct Service(Name);

#[derive(Deserialize, Clone)]
#[serde(try_from = "String")]
struct Host(Name);

#[derive(Deserialize, Default)]
#[serde(try_from = "Value")]
struct Addresses(Vec<Ipv6Addr>);

/// What a flag would have been given: numbers need no quotes.
fn word(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        other => {
            Err(format!("{other} is neither text in quotes nor a whole number", other = other.type_str()))
        }
    }
}

impl TryFrom<Value> for Rate {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        parse_rate(&word(value)?).map(Self)
    }
}

impl TryFrom<Value> for Life {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        parse_life(&word(value)?).map(Self)
    }
}

impl TryFrom<Value> for Dscp {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        parse_dscp(&word(value)?).map(Self)
    }
}

impl TryFrom<i64> for Port {
    type Error = String;
    fn try_from(number: i64) -> Result<Self, String> {
        let port = u16::try_from(number).ok().filter(|port| *port > 0);
        port.map(Self).ok_or_else(|| format!("{number} is no port; a port is 1 to 65535, like 5004"))
    }
}

impl TryFrom<i64> for Hops {
    type Error = String;
    fn try_from(number: i64) -> Result<Self, String> {
        let hops = u8::try_from(number).ok().filter(|hops| *hops > 0);
        hops.map(Self).ok_or_else(|| format!("{number} is no hop limit; it is 1 to 255, usually 32"))
    }
}

impl TryFrom<String> for Group {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        parse_address(&text).map(Self)
    }
}

impl TryFrom<String> for Service {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let name: Name = text.parse().map_err(|e: carousel_dns::name::NameError| e.to_string())?;
        let whole = name.with_whole_instance().filter(|name| name.instance().is_some());
        let whole = whole.filter(|name| name.domain().is_some_and(|domain| !domain.is_root()));
        whole.map(Self).ok_or_else(|| {
            format!(
                "{text:?} is no service of ours; a service looks like gateway-fw._carousel._udp.example.net"
            )
        })
    }
}

impl TryFrom<String> for Host {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let name: Name = text.parse().map_err(|e: carousel_dns::name::NameError| e.to_string())?;
        match name.is_root() {
            false => Ok(Self(name)),
            true => Err("the root is no host; a host looks like s1.example.net".to_owned()),
        }
    }
}

impl TryFrom<Value> for Addresses {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        let list = match value {
            Value::Array(list) => list,
            one => vec![one],
        };
        let address = |value: Value| {
            let text = word(value)?;
            let good =
                |a: &Ipv6Addr| !a.is_multicast() && !a.is_unspecified() && a.to_ipv4_mapped().is_none();
            let address = text.parse().ok().filter(good);
            address.ok_or_else(|| format!("{text:?} is no IPv6 address of a host, like \"2001:db8:1::a\""))
        };
        list.into_iter().map(address).collect::<Result<_, _>>().map(Self)
    }
}

/// A file's text and its name, for messages.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn place(&self, at: usize) -> String {
        let line = self.text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1;
        format!("{}: line {line}", self.path.display())
    }

    fn fail(&self, at: usize, what: impl Display) -> Failure {
        Failure::usage(format!("{}: {what}", self.place(at)))
    }
}

impl Config {
    /// Reads a file. What `flags` say goes before what it says.
    pub fn read(path: &Path, flags: &Way) -> Result<Self, Failure> {
        let bytes = sandbox::read(path).map_err(|e| Failure::reading(path, &e))?;
        let text = str::from_utf8(&bytes).map_err(|_| {
            Failure::usage(format!("{}: is no text in UTF-8; is it the right file?", path.display()))
        })?;
        Self::parse(&File { path, text }, flags)
    }

    /// Whether a text is a configuration.
    pub fn check(text: &str) -> Result<(), Failure> {
        Self::parse(&File { path: Path::new("configuration"), text }, &Way::default()).map(drop)
    }

    fn parse(file: &File<'_>, flags: &Way) -> Result<Self, Failure> {
        let document: Document = toml::from_str(file.text).map_err(|e| {
            let what = e.message().lines().collect::<Vec<_>>().join(", ");
            file.fail(e.span().map_or(0, |span| span.start), what)
        })?;
        let whole = format!("{}: ", file.path.display());
        if document.session.is_empty() {
            return Err(Failure::usage(whole + "nothing to send; add a [[session]] with its bundle"));
        }
        let mut sessions: Vec<Session> = Vec::new();
        for table in &document.session {
            let session = document.session(file, flags, table)?;
            if let (Some(name), Some(at)) = (&session.service, &table.get_ref().service)
                && sessions.iter().any(|known| known.service.as_ref() == Some(name))
            {
                let what = format_args!("{name} is there twice; give each session its own name");
                return Err(file.fail(at.span().start, what));
            }
            sessions.push(session);
        }
        let mut servers: Vec<Source> = Vec::new();
        for table in &document.server {
            let server = table.get_ref().source();
            if servers.iter().any(|known| known.host == server.host) {
                let what =
                    format_args!("{} is there twice; give it all its addresses in one place", server.host);
                return Err(file.fail(table.span().start, what));
            }
            servers.push(server);
        }
        let folder = file.path.parent().unwrap_or(Path::new(""));
        let statements = Files {
            keys: document.keys.iter().map(|path| folder.join(path)).collect(),
            heartbeat_key: document.heartbeat_key.as_ref().map(|path| folder.join(path)),
            heartbeat_life: document.heartbeat_life.map(|Life(seconds)| seconds),
        };
        let published = status::Files {
            status: document.status.as_ref().map(|path| folder.join(path)),
            metrics: document.metrics.as_ref().map(|path| folder.join(path)),
        };
        let plan = Plan { sessions, statements, published };
        plan.check()?;
        Ok(Self { plan, servers })
    }
}

impl Document {
    fn way(&self) -> Way {
        Way {
            interface: self.interface.clone(),
            port: self.port.map(|Port(number)| number),
            source: self.source,
            phase: self.phase,
            hops: self.hops.map(|Hops(number)| number),
            dscp: self.dscp.map(|Dscp(number)| number),
        }
    }

    fn session(
        &self,
        file: &File<'_>,
        flags: &Way,
        table: &Spanned<SessionTable>,
    ) -> Result<Session, Failure> {
        let (at, session) = (table.span().start, table.get_ref());
        let way = flags.clone().or(&session.way()).or(&self.way());
        let rates = session.rates(file, at, self.rate)?;
        let service = session.service.as_ref().map(|service| service.get_ref().0.clone());
        let groups: Vec<Ipv6Addr> = match (&session.groups, &service) {
            (Some(groups), _) if groups.get_ref().len() != rates.len() => {
                let (g, r) = (groups.get_ref().len(), rates.len());
                let what = format_args!("groups: {g} for {r} channels; give one for each rate");
                return Err(file.fail(groups.span().start, what));
            }
            (Some(groups), _) => groups.get_ref().iter().map(|Group(address)| *address).collect(),
            (None, Some(name)) => (0..rates.len() as u8).map(|tier| derived_group(name, tier)).collect(),
            (None, None) => {
                return Err(
                    file.fail(at, "neither groups nor service; add a service, from which groups follow")
                );
            }
        };
        let ladder = match session.tiers {
            Tiers::Separate => Ladder::Separate,
            Tiers::Stacked => Ladder::Stacked,
        };
        let channel = |((level, rate), group): ((u8, u64), Ipv6Addr)| {
            let tier = if ladder == Ladder::Stacked { Tier::Level(level) } else { Tier::Alone };
            way.channel(group, tier, rate).map_err(|what| file.fail(at, what))
        };
        Ok(Session {
            place: file.place(at),
            bundle: file.path.parent().unwrap_or(Path::new("")).join(&session.bundle),
            ladder,
            channels: (0..).zip(rates).zip(groups).map(channel).collect::<Result<_, _>>()?,
            service,
            url: session.url.clone(),
        })
    }
}

impl SessionTable {
    fn way(&self) -> Way {
        Way {
            interface: self.interface.clone(),
            port: self.port.map(|Port(number)| number),
            source: self.source,
            phase: self.phase,
            hops: self.hops.map(|Hops(number)| number),
            dscp: self.dscp.map(|Dscp(number)| number),
        }
    }

    /// The rate of each channel.
    fn rates(&self, file: &File<'_>, at: usize, default: Option<Rate>) -> Result<Vec<u64>, Failure> {
        let stacked = self.tiers == Tiers::Stacked;
        if let (Some(rates), true) = (&self.rates, self.rate.is_some() || self.levels.is_some()) {
            let what = "rates says it all; leave out rate and levels, or rates";
            return Err(file.fail(rates.span().start, what));
        }
        if let (Some(levels), false) = (&self.levels, stacked) {
            let what = "levels are those of a ladder; add tiers = \"stacked\", or give rates instead";
            return Err(file.fail(levels.span().start, what));
        }
        let one =
            self.rate.as_ref().map(|rate| *rate.get_ref()).or(default).map_or(DEFAULT_RATE, |Rate(r)| r);
        let groups = self.groups.as_ref().map(|groups| (groups.span().start, groups.get_ref().len()));
        let levels = self.levels.as_ref().map(|levels| (levels.span().start, usize::from(*levels.get_ref())));
        let given = self
            .rates
            .as_ref()
            .map(|rates| (rates.span().start, rates.get_ref().iter().map(|Rate(r)| *r).collect::<Vec<_>>()));
        let count = given.as_ref().map(|(at, rates)| (*at, rates.len())).or(levels).or(groups);
        let most = if stacked { MAX_LEVELS } else { MAX_CHANNELS };
        let (at, count) = match count {
            Some((at, count)) if !(1..=most).contains(&count) => {
                let what = format_args!("{count} channels; a {} of tiers has 1 to {most}", self.tiers.word());
                return Err(file.fail(at, what));
            }
            Some(known) => known,
            None if stacked => return Err(file.fail(at, "how many levels? add levels = 4, or rates")),
            None => (at, 1),
        };
        let Some(base) = given.as_ref().map_or(Some(&one), |(_, rates)| rates.first()).filter(|_| stacked)
        else {
            return Ok(given.map_or_else(|| vec![one; count], |(_, rates)| rates));
        };
        let ladder: Vec<u64> = (0..count).map(|level| base << level.saturating_sub(1)).collect();
        let written = ladder.iter().map(|rate| write_rate(*rate)).collect::<Vec<_>>().join(", ");
        if let Some(error) = ladder.iter().find_map(|rate| parse_rate(&rate.to_string()).err()) {
            return Err(file.fail(at, format_args!("the ladder's rates would be {written}: {error}")));
        }
        match given {
            Some((at, rates)) if rates != ladder => {
                Err(file
                    .fail(at, format_args!("rates of a ladder double: from this base they are {written}")))
            }
            _ => Ok(ladder),
        }
    }
}

impl Tiers {
    fn word(self) -> &'static str {
        match self {
            Self::Separate => "row",
            Self::Stacked => "ladder",
        }
    }
}

impl ServerTable {
    fn source(&self) -> Source {
        let Host(host) = self.host.clone();
        Source {
            host,
            addresses: self.address.0.clone(),
            port: 0,
            priority: self.priority,
            weight: self.weight,
        }
    }
}

/// A rate as one writes it in the file.
fn write_rate(rate: u64) -> String {
    let units = [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    let unit = units.into_iter().find(|(unit, _)| rate.is_multiple_of(*unit));
    unit.map_or_else(|| rate.to_string(), |(unit, letter)| format!("{}{letter}", rate / unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use carousel_proto::outcome::Outcome;

    const HEAD: &str = "interface = \"eth0\"\nport = 5004\n[[session]]\nbundle = \"fw.carousel\"\n";

    fn parse(text: &str) -> Result<Config, Failure> {
        Config::parse(&File { path: Path::new("/etc/server.toml"), text }, &Way::default())
    }

    fn rates(session: &Session) -> Vec<u64> {
        session.channels.iter().map(|channel| channel.rate).collect()
    }

    #[test]
    fn the_example_that_we_deploy() {
        let Config { plan, servers } = parse(include_str!("../../deploy/server.toml")).unwrap();
        let [ladder, separate] = &plan.sessions[..] else { panic!("{plan:?}") };
        assert_eq!(ladder.bundle, Path::new("/var/lib/carousel-server/gateway-fw.carousel"));
        assert_eq!(
            (ladder.ladder, rates(ladder)),
            (Ladder::Stacked, vec![1_000_000, 1_000_000, 2_000_000, 4_000_000])
        );
        let tiers: Vec<Tier> = ladder.channels.iter().map(|channel| channel.tier).collect();
        assert_eq!(tiers, [0, 1, 2, 3].map(Tier::Level));
        let name: Name = "gateway-fw._carousel._udp.example.net".parse().unwrap();
        for (tier, channel) in (0..).zip(&ladder.channels) {
            assert_eq!(channel.target.group, derived_group(&name, tier));
            assert_eq!((channel.target.port, channel.target.hops, channel.target.dscp), (5004, 32, 1));
        }
        assert_eq!((separate.ladder, rates(separate)), (Ladder::Separate, vec![1_000_000, 10_000_000]));
        assert!(separate.channels.iter().all(|channel| channel.tier == Tier::Alone));
        assert_eq!(separate.channels[1].target.group.to_string(), "ff3e::8000:2");
        let seen: Vec<_> = servers.iter().map(|s| (s.addresses.len(), s.priority, s.weight)).collect();
        assert_eq!(seen, [(1, 0, 10), (1, 10, 10)]);
    }

    #[test]
    fn every_flag_of_run_has_a_key_in_the_example() {
        let program = <crate::cli::Arguments as clap::CommandFactory>::command();
        let run = program.find_subcommand("run").unwrap();
        let example = include_str!("../../deploy/server.toml");
        for flag in run.get_arguments().filter_map(|argument| argument.get_long()) {
            let key = if flag == "group" { "groups".to_owned() } else { flag.replace('-', "_") };
            let begin = format!("{key} = ");
            let has_key = example.lines().any(|line| line.trim_start_matches('#').starts_with(&begin));
            assert_ne!(has_key, ["config", "once", "no_sandbox"].contains(&&*key), "{key}");
        }
    }

    #[test]
    fn flags_go_before_sessions_and_sessions_before_the_file() {
        let text = "interface = \"a\"\nport = 1\nphase = 1\nrate = 64000\n[[session]]\nbundle = \"/x/y\"\n\
                    groups = [\"ff3e::1\"]\nport = 2\nphase = 2\ndscp = 46\nhops = 2\nsource = \"fd00::1\"\n";
        let flags = Way { interface: Some("c".into()), phase: Some(3), ..Way::default() };
        let config = Config::parse(&File { path: Path::new("server.toml"), text }, &flags).unwrap();
        let session = &config.plan.sessions[0];
        assert_eq!((session.bundle.as_path(), rates(session)), (Path::new("/x/y"), vec![64_000]));
        let channel = &session.channels[0];
        assert_eq!((channel.target.interface.as_str(), channel.target.port, channel.phase), ("c", 2, 3));
        assert_eq!((channel.target.hops, channel.target.dscp), (2, 46));
        assert_eq!(channel.target.source, "fd00::1".parse().ok());
    }

    #[test]
    fn keys_and_heartbeats_lie_beside_the_file() {
        let text = "keys = [\"a.keys\", \"/b.keys\"]\nheartbeat_key = \"h.key\"\nheartbeat_life = \"2h\"\n";
        let said = parse(&(text.to_owned() + HEAD + "groups = [\"ff3e::1\"]")).unwrap().plan.statements;
        assert_eq!(said.keys, [Path::new("/etc/a.keys"), Path::new("/b.keys")]);
        assert_eq!(
            (said.heartbeat_key.unwrap().as_path(), said.heartbeat_life),
            (Path::new("/etc/h.key"), Some(7200))
        );
        let failure = parse(&("heartbeat_life = \"5ms\"\n".to_owned() + HEAD)).unwrap_err();
        assert!(failure.message.contains("line 1: \"5ms\" is too short"), "{failure}");
    }

    #[test]
    fn rates_as_they_may_be_said() {
        let stacked = "tiers = \"stacked\"\nservice = \"x._carousel._udp.y\"\n";
        let two = "groups = [\"ff3e::1\", \"ff3e::2\"]\n";
        for (more, expected) in [
            (two.to_owned(), &[DEFAULT_RATE; 2][..]),
            (two.to_owned() + "rate = \"2M\"", &[2_000_000; 2]),
            (two.to_owned() + "rates = [\"2M\", 3000]", &[2_000_000, 3000]),
            (two.to_owned() + stacked, &[DEFAULT_RATE; 2]),
            (stacked.to_owned() + "levels = 3\nrate = \"1.001k\"", &[1001, 1001, 2002]),
            (
                stacked.to_owned() + "rates = [\"64k\", \"64k\", \"128k\", \"256k\"]",
                &[64_000, 64_000, 128_000, 256_000],
            ),
            ("service = \"x._carousel._udp.y\"".to_owned(), &[DEFAULT_RATE]),
        ] {
            let config = parse(&(HEAD.to_owned() + &more)).unwrap_or_else(|e| panic!("{more}: {e}"));
            assert_eq!(rates(&config.plan.sessions[0]), expected, "{more}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_in_one_line_with_its_place_and_a_remedy() {
        let second = "groups = [\"ff3e::1\"]\n[[session]]\nbundle = \"other.carousel\"\n";
        let server = "groups = [\"ff3e::1\"]\n[[server]]\n";
        // What stands behind HEAD, which has four lines; the line that is named; what is said.
        for (more, line, says) in [
            ("groups = [\"ff3e::1\"", 5, "]"),
            ("grups = []", 5, "`groups`"),
            ("interface = 5", 5, "string"),
            ("", 3, "service"),
            ("port = 0\n", 5, "1 to 65535"),
            ("port = 65536\n", 5, "1 to 65535"),
            ("hops = 256\n", 5, "1 to 255"),
            ("phase = -1\n", 5, "u32"),
            ("source = \"x\"\n", 5, "IPv6"),
            ("dscp = 64\n", 5, "0 … 63"),
            ("rate = 1.5\n", 5, "quotes"),
            ("rate = \"1X\"\n", 5, "10M"),
            ("tiers = \"both\"\n", 5, "`stacked`"),
            ("groups = [\n  \"ff3e::1\",\n  \"fe80::1\",\n]\n", 5, "ff3e::8000:1"),
            ("groups = []\n", 5, "1 to 16"),
            ("groups = [\"ff3e::1\"]\nrates = [\"1M\", \"2M\"]\n", 5, "one for each"),
            ("groups = [\"ff3e::1\"]\nlevels = 4\n", 6, "stacked"),
            ("groups = [\"ff3e::1\"]\nrates = [\"1M\"]\nrate = \"1M\"\n", 6, "leave out"),
            ("groups = [\"ff3e::1\", \"ff3e::1\"]\n", 3, "[ff3e::1]:5004 on eth0 is there twice"),
            (
                &(second.to_owned() + "groups = [\"ff3e::1\"]"),
                6,
                "for /etc/fw.carousel and for /etc/other.carousel",
            ),
            ("service = \"fw.example.net\"\n", 5, "gateway-fw._carousel._udp.example.net"),
            ("service = \"_carousel._udp.example.net\"\n", 5, "gateway-fw"),
            ("service = \"a._carousel._udp.\"\n", 5, "gateway-fw"),
            ("service = \"a..b\"\n", 5, "empty"),
            ("tiers = \"stacked\"\nservice = \"a._carousel._udp.b\"\n", 3, "levels = 4"),
            ("tiers = \"stacked\"\nlevels = 8\n", 6, "1 to 7"),
            ("tiers = \"stacked\"\nlevels = 0\n", 6, "1 to 7"),
            ("tiers = \"stacked\"\nrates = [\"1M\", \"2M\", \"4M\"]\n", 6, "1M, 1M, 2M"),
            ("tiers = \"stacked\"\nlevels = 7\nrate = \"50G\"\n", 6, "100G"),
            (&(server.to_owned() + "host = \"a\"\naddress = \"ff3e::1\"\n"), 8, "2001:db8:1::a"),
            (&(server.to_owned() + "host = \"a\"\naddress = [\"fd00::1\", 5]\n"), 8, "2001:db8:1::a"),
            (&(server.to_owned() + "address = \"fd00::1\"\n"), 6, "host"),
            (&(server.to_owned() + "host = \".\"\n"), 7, "s1.example.net"),
            (&(server.to_owned() + "host = \"a\"\n[[server]]\nhost = \"A.\"\n"), 8, "twice"),
        ] {
            let failure = parse(&(HEAD.to_owned() + more)).err().unwrap_or_else(|| panic!("{more} is taken"));
            let message = &failure.message;
            assert_eq!(failure.outcome, Outcome::Usage, "{more}: {message}");
            assert!(message.starts_with(&format!("/etc/server.toml: line {line}: ")), "{more}: {message}");
            assert!(message.contains(says) && !message.contains('\n'), "{more}: {message}");
        }
        let twice = "service = \"a._carousel._udp.b\"\n";
        let failure =
            parse(&format!("{HEAD}{twice}[[session]]\nbundle = \"y\"\nport = 7\n{twice}")).unwrap_err();
        assert!(failure.message.contains("line 9: a._carousel._udp.b is there twice"), "{failure}");
        for (text, says) in [
            ("", "[[session]]"),
            ("[[session]]\nport = 1\n", "line 1: missing field `bundle`"),
            ("port = 1\n[[session]]\nbundle = \"x\"\ngroups = [\"ff3e::1\"]", "line 2: no interface"),
            ("interface = \"x\"\n[[session]]\nbundle = \"x\"\ngroups = [\"ff3e::1\"]", "line 2: no port"),
        ] {
            let failure = parse(text).unwrap_err();
            assert!(failure.message.contains(says), "{text}: {failure}");
        }
    }
}
