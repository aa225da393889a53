//! The agent's configuration. What is wrong with it is told in one line that names the file, the line and the remedy.

use super::agent::Rules;
use super::command;
use super::record::Record;
use super::window::{Windows, parse_offset};
use crate::cli;
use carousel_proto::device::MAX_ID_LEN;
use carousel_proto::outcome::{Failure, one_line};
use carousel_proto::units::parse_duration_ms;
use clap::Parser;
use serde::Deserialize;
use std::fmt::Display;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use toml::{Spanned, Value};

/// Where systemd keeps a number that is this machine's alone.
const MACHINE_ID: &str = "/etc/machine-id";
/// It must not be shown to anybody as it is.
const ID_CONTEXT: &str = "carousel 2026-11-21 device id from /etc/machine-id";
/// Longest name of an item.
const MAX_NAME_LEN: usize = 64;

/// What a file says.
#[derive(Debug)]
pub struct Config {
    pub device_id: String,
    /// Files with public keys, or one with a keys object.
    pub key: Vec<PathBuf>,
    pub keys: Option<PathBuf>,
    pub require_heartbeat: bool,
    pub state: PathBuf,
    pub status: Option<PathBuf>,
    pub inhibit: Option<PathBuf>,
    pub nameserver: Option<SocketAddr>,
    pub trust_anchor: Option<PathBuf>,
    pub items: Vec<Item>,
}

/// Something to watch.
#[derive(Debug)]
pub struct Item {
    pub name: String,
    pub place: Place,
    pub interface: Option<String>,
    pub compatible: Vec<String>,
    pub out: PathBuf,
    pub seed: Option<PathBuf>,
    /// Where transfers write their metrics. Looks do not: they would replace them.
    pub metrics: Option<PathBuf>,
    pub tier: Option<String>,
    /// Further options of `get`.
    pub get: Vec<String>,
    pub handover: Option<String>,
    pub confirm: Option<String>,
    /// Milliseconds for either command.
    pub command_timeout: u64,
    /// Milliseconds for a look, and of silence during a transfer.
    pub listen: u64,
    pub timeout: u64,
    pub rules: Rules,
}

/// Where it is sent.
#[derive(Debug)]
pub enum Place {
    /// DNS says it.
    Service(String),
    /// Always there: sources, groups, port. Looks go to the announce channel, if there is one.
    Static { sources: Vec<Ipv6Addr>, groups: Vec<Ipv6Addr>, port: u16, announce: Option<(Ipv6Addr, u16)> },
}

/// The file as it stands. What has a key in an item, too, holds for all items that have none of their own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    device_id: Option<Spanned<String>>,
    #[serde(default)]
    key: Vec<PathBuf>,
    keys: Option<PathBuf>,
    #[serde(default)]
    require_heartbeat: bool,
    state: PathBuf,
    status: Option<PathBuf>,
    inhibit: Option<PathBuf>,
    nameserver: Option<Nameserver>,
    trust_anchor: Option<PathBuf>,
    #[serde(default)]
    utc_offset: Offset,
    interface: Option<String>,
    #[serde(default)]
    compatible: Vec<String>,
    poll: Option<Duration>,
    listen: Option<Duration>,
    timeout: Option<Duration>,
    backoff: Option<Duration>,
    tries: Option<Tries>,
    command_timeout: Option<Duration>,
    confirm_within: Option<Duration>,
    receive: Option<Spanned<Vec<String>>>,
    apply: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    get: Vec<String>,
    #[serde(default)]
    watch: Vec<Spanned<WatchTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WatchTable {
    name: Spanned<String>,
    service: Option<String>,
    #[serde(default)]
    source: Vec<Ipv6Addr>,
    #[serde(default)]
    group: Vec<Group>,
    port: Option<Port>,
    announce_group: Option<Group>,
    announce_port: Option<Port>,
    out: PathBuf,
    seed: Option<PathBuf>,
    metrics: Option<PathBuf>,
    tier: Option<Tier>,
    handover: Option<String>,
    confirm: Option<String>,
    interface: Option<String>,
    compatible: Option<Vec<String>>,
    poll: Option<Duration>,
    listen: Option<Duration>,
    timeout: Option<Duration>,
    backoff: Option<Duration>,
    tries: Option<Tries>,
    command_timeout: Option<Duration>,
    confirm_within: Option<Duration>,
    receive: Option<Spanned<Vec<String>>>,
    apply: Option<Spanned<Vec<String>>>,
    get: Option<Vec<String>>,
}

/// Milliseconds, at least one.
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "Value")]
struct Duration(u64);

#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "i64")]
struct Port(u16);

#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "i64")]
struct Tries(u32);

#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "String")]
struct Group(Ipv6Addr);

#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "String")]
struct Nameserver(SocketAddr);

#[derive(Deserialize, Clone)]
#[serde(try_from = "Value")]
struct Tier(String);

/// Minutes.
#[derive(Deserialize, Clone, Copy, Default)]
#[serde(try_from = "String")]
struct Offset(i32);

/// What a flag would have been given: numbers need no quotes.
fn word(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        other => Err(format!("{} is neither text in quotes nor a whole number", other.type_str())),
    }
}

impl TryFrom<Value> for Duration {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        match parse_duration_ms(&word(value)?)? {
            0 => Err("no time at all; write it like \"30s\"".to_owned()),
            ms => Ok(Self(ms)),
        }
    }
}

impl TryFrom<i64> for Port {
    type Error = String;
    fn try_from(number: i64) -> Result<Self, String> {
        let port = u16::try_from(number).ok().filter(|port| *port > 0);
        port.map(Self).ok_or_else(|| format!("{number} is no port; a port is 1 to 65535, like 5004"))
    }
}

impl TryFrom<i64> for Tries {
    type Error = String;
    fn try_from(number: i64) -> Result<Self, String> {
        let tries = u32::try_from(number).ok().filter(|tries| (1..=1_000).contains(tries));
        tries.map(Self).ok_or_else(|| format!("{number} tries; 1 to 1000 are possible, usually 5"))
    }
}

impl TryFrom<String> for Group {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        cli::parse_group(&text).map(Self)
    }
}

impl TryFrom<String> for Nameserver {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        cli::parse_nameserver(&text).map(Self)
    }
}

impl TryFrom<Value> for Tier {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        let text = word(value)?;
        cli::parse_tier(&text).map(|_| Self(text))
    }
}

impl TryFrom<String> for Offset {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        parse_offset(&text).map(Self)
    }
}

/// A file's text and its name, for messages.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn fail(&self, at: usize, what: impl Display) -> Failure {
        let line = self.text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1;
        Failure::usage(format!("{}: line {line}: {what}", self.path.display()))
    }

    fn fail_whole(&self, what: impl Display) -> Failure {
        Failure::usage(format!("{}: {what}", self.path.display()))
    }

    /// Paths in it are meant from its folder.
    fn beside(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }
}

impl Config {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let bytes = std::fs::read(path).map_err(|e| Failure::reading(path, &e))?;
        let text = str::from_utf8(&bytes).map_err(|_| {
            Failure::usage(format!("{}: is no text in UTF-8; is it the right file?", path.display()))
        })?;
        Self::parse(&File { path, text })
    }

    fn parse(file: &File<'_>) -> Result<Self, Failure> {
        let document: Document = toml::from_str(file.text).map_err(|e| {
            let what = e.message().lines().collect::<Vec<_>>().join(", ");
            file.fail(e.span().map_or(0, |span| span.start), what)
        })?;
        if document.watch.is_empty() {
            return Err(file.fail_whole("nothing to watch; add a [[watch]] with name, service and out"));
        }
        if document.key.is_empty() == document.keys.is_none() {
            return Err(file.fail_whole(
                "say whom to believe, in one way: key = [\"release.pub\"] or keys = \"fleet.keys\"",
            ));
        }
        let device_id = device_id(file, document.device_id.as_ref())?;
        let mut items: Vec<Item> = Vec::new();
        for table in &document.watch {
            let item = document.item(file, table, &device_id)?;
            let known = |other: &&Item| other.name == item.name || other.out == item.out;
            if let Some(other) = items.iter().find(known) {
                let what = if other.name == item.name { "name" } else { "out" };
                let what = format_args!("{}: its {what} is there twice; give each its own", item.name);
                return Err(file.fail(table.span().start, what));
            }
            items.push(item);
        }
        let beside = |path: &Option<PathBuf>| path.as_deref().map(|path| file.beside(path));
        let config = Self {
            device_id,
            key: document.key.iter().map(|path| file.beside(path)).collect(),
            keys: beside(&document.keys),
            require_heartbeat: document.require_heartbeat,
            state: file.beside(&document.state),
            status: beside(&document.status),
            inhibit: beside(&document.inhibit),
            nameserver: document.nameserver.map(|Nameserver(address)| address),
            trust_anchor: beside(&document.trust_anchor),
            items,
        };
        // Now, and not at the first look, which may be in the night.
        for (item, table) in config.items.iter().zip(&document.watch) {
            let command =
                command::get(Path::new("carousel-client"), &config, item, &Record::default(), false);
            let line = std::iter::once(command.get_program()).chain(command.get_args());
            if let Err(error) = cli::Arguments::try_parse_from(line) {
                let what = format_args!("{}: {}", item.name, one_line(&error.render().to_string()));
                return Err(file.fail(table.span().start, what));
            }
        }
        Ok(config)
    }
}

/// As the file says, or from the machine's own number.
fn device_id(file: &File<'_>, given: Option<&Spanned<String>>) -> Result<String, Failure> {
    if let Some(id) = given {
        let fits = (1..=MAX_ID_LEN).contains(&id.get_ref().len());
        let what = format_args!("a device_id has 1 to {MAX_ID_LEN} bytes");
        return if fits { Ok(id.get_ref().clone()) } else { Err(file.fail(id.span().start, what)) };
    }
    let machine = std::fs::read_to_string(MACHINE_ID).unwrap_or_default();
    derived_id(&machine).ok_or_else(|| {
        file.fail_whole(format_args!("{MACHINE_ID} says nothing; give this device a device_id of its own"))
    })
}

/// Never the number itself: systemd asks everybody to keep it to himself.
fn derived_id(machine: &str) -> Option<String> {
    let machine = machine.trim();
    let is_id = machine.len() == 32 && machine.bytes().all(|c| c.is_ascii_hexdigit());
    is_id.then(|| {
        let hash = blake3::Hash::from_bytes(blake3::derive_key(ID_CONTEXT, machine.as_bytes()));
        hash.to_hex()[..32].to_owned()
    })
}

impl Document {
    fn item(&self, file: &File<'_>, table: &Spanned<WatchTable>, device_id: &str) -> Result<Item, Failure> {
        let (at, t) = (table.span().start, table.get_ref());
        let name = t.name.get_ref();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > MAX_NAME_LEN || !name.chars().all(plain) {
            let what = format_args!("{name:?}: a name has 1 to {MAX_NAME_LEN} letters, digits, - _ and .");
            return Err(file.fail(t.name.span().start, what));
        }
        let windows = |own: &Option<Spanned<Vec<String>>>, all: &Option<Spanned<Vec<String>>>| {
            let Some(list) = own.as_ref().or(all.as_ref()) else { return Ok(Windows::default()) };
            Windows::parse(list.get_ref(), self.utc_offset.0).map_err(|e| file.fail(list.span().start, e))
        };
        let ms = |own: Option<Duration>, all: Option<Duration>, default: u64| {
            own.or(all).map_or(default, |Duration(ms)| ms)
        };
        let rules = Rules {
            by_name: t.service.is_some(),
            poll: ms(t.poll, self.poll, 3_600_000),
            backoff: ms(t.backoff, self.backoff, 60_000),
            tries: t.tries.or(self.tries).map_or(5, |Tries(n)| n),
            receive: windows(&t.receive, &self.receive)?,
            apply: windows(&t.apply, &self.apply)?,
            confirms: t.confirm.is_some(),
            confirm_within: ms(t.confirm_within, self.confirm_within, 86_400_000),
            device_id: device_id.to_owned(),
        };
        let place = t.place().map_err(|what| file.fail(at, format_args!("{name}: {what}")))?;
        Ok(Item {
            name: name.clone(),
            place,
            interface: t.interface.clone().or_else(|| self.interface.clone()),
            compatible: t.compatible.clone().unwrap_or_else(|| self.compatible.clone()),
            out: file.beside(&t.out),
            seed: t.seed.as_deref().map(|path| file.beside(path)),
            metrics: t.metrics.as_deref().map(|path| file.beside(path)),
            tier: t.tier.clone().map(|Tier(text)| text),
            get: t.get.clone().unwrap_or_else(|| self.get.clone()),
            handover: t.handover.clone(),
            confirm: t.confirm.clone(),
            command_timeout: ms(t.command_timeout, self.command_timeout, 3_600_000),
            listen: ms(t.listen, self.listen, 10_000),
            timeout: ms(t.timeout, self.timeout, 60_000),
            rules,
        })
    }
}

impl WatchTable {
    fn place(&self) -> Result<Place, &'static str> {
        let number = |port: Option<Port>| port.map(|Port(number)| number);
        let anything = !self.source.is_empty()
            || !self.group.is_empty()
            || self.port.is_some()
            || self.announce_group.is_some()
            || self.announce_port.is_some();
        match (&self.service, number(self.port)) {
            (Some(_), _) if anything => {
                Err("service says where it is sent; leave out source, group, port and announce_…")
            }
            (Some(_), _) if !cfg!(feature = "dns") => {
                Err("this program was built without DNS; name source, group and port")
            }
            (Some(service), _) => Ok(Place::Service(service.clone())),
            (None, Some(port)) if !self.group.is_empty() => {
                if self.announce_port.is_some() && self.announce_group.is_none() {
                    return Err("announce_port without announce_group");
                }
                let announce_port = number(self.announce_port).unwrap_or(port);
                Ok(Place::Static {
                    sources: self.source.clone(),
                    groups: self.group.iter().map(|Group(address)| *address).collect(),
                    port,
                    announce: self.announce_group.map(|Group(address)| (address, announce_port)),
                })
            }
            (None, _) => Err("say where it is sent: service, or source, group and port"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carousel_proto::outcome::Outcome;

    const HEAD: &str = "device_id = \"d\"\nkey = [\"r.pub\"]\nstate = \"/s\"\n";
    const ITEM: &str = "[[watch]]\nname = \"fw\"\nout = \"fw.img\"\n";

    fn parse(text: &str) -> Result<Config, Failure> {
        Config::parse(&File { path: Path::new("/etc/client.toml"), text })
    }

    #[test]
    fn the_example_is_one() {
        let text = include_str!("../../../deploy/client.toml");
        let config = parse(&text.replace("#device_id", "device_id")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.state, Path::new("/var/lib/carousel"));
        assert!(matches!(&config.items[0].place, Place::Service(name) if name.contains("_carousel._udp")));
        assert!(config.items.iter().any(|item| matches!(item.place, Place::Static { .. })));
        // What is commented out must be right, too.
        let all: String = text
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| rest.contains(" = ") && !rest.starts_with(' '))
                    .unwrap_or(line)
                    .to_owned()
                    + "\n"
            })
            .collect();
        let with_keys = all.replace("\nkey = ", "\n#key = ");
        parse(&with_keys).unwrap_or_else(|e| panic!("{e}\n{with_keys}"));
    }

    #[test]
    fn items_go_before_the_file_and_defaults_come_last() {
        let text = format!(
            "{HEAD}interface = \"eth0\"\npoll = \"30m\"\ntries = 3\ncompatible = [\"a\"]\nutc_offset = \"+01:00\"\n\
             apply = [\"02:00-03:00\"]\n{ITEM}service = \"example.net\"\n\
             [[watch]]\nname = \"b\"\nout = \"/b\"\nsource = [\"fd00::1\"]\ngroup = [\"ff3e::8000:1\"]\nport = 5004\n\
             poll = 10\ncompatible = []\napply = []\ninterface = \"eth1\"\nannounce_group = \"ff3e::8000:2\"\ntier = 1\n"
        );
        let config = parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let [a, b] = &config.items[..] else { panic!("two items") };
        assert_eq!((a.rules.poll, b.rules.poll), (1_800_000, 10_000));
        assert_eq!((a.interface.as_deref(), b.interface.as_deref()), (Some("eth0"), Some("eth1")));
        assert_eq!((a.compatible.len(), b.compatible.len(), a.rules.tries), (1, 0, 3));
        assert_eq!(a.out, Path::new("/etc/fw.img"));
        assert!(a.rules.apply.is_open(5_400) && !a.rules.apply.is_open(0), "02:00 there is 01:00 in UTC");
        assert!(b.rules.apply.is_open(0));
        assert_eq!((a.listen, a.timeout, a.rules.backoff), (10_000, 60_000, 60_000));
        assert!(a.rules.by_name && !b.rules.by_name);
        let Place::Static { announce, port, .. } = &b.place else { panic!("{b:?}") };
        assert_eq!((announce.map(|(_, port)| port), *port), (Some(5004), 5004));
    }

    #[test]
    fn what_is_wrong_is_told_in_one_line_with_its_place_and_a_remedy() {
        let item = format!("{ITEM}service = \"example.net\"\n");
        // What stands behind HEAD, which has three lines; the line that is named; what is said.
        for (more, line, says) in [
            ("[[watch]", 4, "]"),
            ("pol = 5", 4, "`poll`"),
            (&format!("{ITEM}servise = \"x\""), 7, "`service`"),
            ("poll = \"5 x\"", 4, "30s"),
            ("poll = 0", 4, "30s"),
            ("tries = 0", 4, "1 to 1000"),
            ("nameserver = \"x\"", 4, "2001:db8::53"),
            ("utc_offset = \"CET\"", 4, "+01:00"),
            (&format!("receive = [\"22-06\"]\n{item}"), 4, "22:00-06:00"),
            (&format!("{item}apply = [\"\"]"), 8, "22:00-06:00"),
            (ITEM, 4, "service, or source"),
            (&format!("{item}port = 5"), 4, "leave out"),
            (&format!("{ITEM}port = 70000"), 7, "1 to 65535"),
            (&format!("{ITEM}group = [\"fd00::1\"]"), 7, "multicast"),
            (&format!("{ITEM}group = [\"ff3e::1\"]\n"), 4, "port"),
            (&format!("{ITEM}group = [\"ff3e::1\"]\nport = 1\nannounce_port = 2"), 4, "announce_group"),
            (&format!("{item}tier = \"fast\""), 8, "stacked"),
            (&item.replace("fw\"", "f/w\""), 5, "letters"),
            (&format!("{item}get = [\"--rcvbuf=x\"]"), 4, "fw: invalid value 'x' for '--rcvbuf"),
            (&format!("get = [\"--insecure\"]\n{item}"), 5, "cannot be used with"),
            (&format!("{item}{item}"), 8, "name is there twice"),
            (&format!("{item}{}", item.replace("\"fw\"", "\"x\"")), 8, "out is there twice"),
        ] {
            let failure = parse(&(HEAD.to_owned() + more)).err().unwrap_or_else(|| panic!("{more} is taken"));
            let message = &failure.message;
            assert_eq!(failure.outcome, Outcome::Usage, "{more}: {message}");
            assert!(message.starts_with(&format!("/etc/client.toml: line {line}: ")), "{more}: {message}");
            assert!(message.contains(says) && !message.contains('\n'), "{more}: {message}");
        }
        for (text, says) in [
            (HEAD.to_owned(), "[[watch]]"),
            (format!("state = \"/s\"\n{item}"), "whom to believe"),
            (format!("{HEAD}keys = \"f.keys\"\n{item}"), "whom to believe"),
            (format!("key = [\"k\"]\n{item}"), "`state`"),
            (
                format!("device_id = \"\"\nkey = [\"k\"]\nstate = \"s\"\n{item}"),
                "line 1: a device_id has 1 to",
            ),
        ] {
            let failure = parse(&text).unwrap_err();
            assert!(failure.message.contains(says), "{text}: {failure}");
        }
    }

    #[test]
    fn further_options_of_get_are_taken() {
        let text = format!(
            "{HEAD}get = [\"--threads=1\"]\n{ITEM}service = \"a\"\n[[watch]]\nname = \"b\"\nservice = \"b\"\n\
                            out = \"b\"\nget = [\"--rcvbuf\", \"1MiB\", \"--sources=2\"]\n"
        );
        let config = parse(&text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.items[0].get, ["--threads=1"]);
        assert_eq!(config.items[1].get, ["--rcvbuf", "1MiB", "--sources=2"]);
    }

    #[test]
    fn looks_leave_the_metrics_of_transfers_alone() {
        let config = parse(&format!("{HEAD}{ITEM}service = \"a\"\nmetrics = \"fw.prom\"\n")).unwrap();
        let writes = |look| {
            let command = command::get(Path::new("x"), &config, &config.items[0], &Record::default(), look);
            command.get_args().any(|word| word == "/etc/fw.prom")
        };
        assert!(writes(false) && !writes(true));
    }

    #[test]
    fn the_machine_s_number_is_not_shown() {
        let machine = "0123456789abcdef0123456789abcdef";
        let id = derived_id(&format!("{machine}\n")).unwrap();
        assert!(id.len() == 32 && id != machine && derived_id(machine).as_ref() == Some(&id));
        assert_ne!(derived_id("1123456789abcdef0123456789abcdef"), Some(id));
        assert_eq!((derived_id(""), derived_id("uninitialized\n")), (None, None));
    }
}
