//! What the SRV and TXT records of a service say: sources, channels, and hints about the release. Pure: a resolver or
//! a test brings the records. Whatever a zone holds, the result is bounded, and what was left out is remarked.
//! Read RFC 6763, section 6, and RFC 2782 first; this crate's README lists the keys.

use crate::name::Name;
use std::fmt::Write;
use std::net::Ipv6Addr;

/// SRV records taken of a service.
pub const MAX_SOURCES: usize = 64;
/// Addresses taken of a source.
pub const MAX_ADDRESSES: usize = 8;
/// Channels of a service.
pub const MAX_CHANNELS: usize = 16;
/// Bytes of TXT taken of a service.
pub const MAX_TXT: usize = 10 * 1024;
/// Bytes of one TXT string.
pub const MAX_STRING: usize = 255;
/// Remarks about one lookup; the rest would say the same.
const MAX_REMARKS: usize = 32;
/// What `r` may hold, in kbit/s.
const RATES: std::ops::RangeInclusive<u64> = 1..=100_000_000;

/// A service: what can be received under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its full name.
    pub name: Name,
    /// Who sends it, best priority first.
    pub sources: Vec<Source>,
    /// Where it is sent to: tier 0, tier 1, … At least one.
    pub channels: Vec<Channel>,
    /// How the channels belong together.
    pub ladder: Ladder,
    /// Release sequence number.
    pub seq: Option<u64>,
    /// The beginning of the object's BLAKE3, hexadecimal, lower case.
    pub digest_prefix: Option<String>,
    /// The signing key's id as minisign prints it: 16 hexadecimal digits, upper case.
    pub key_id: Option<String>,
    /// The bundle over HTTP.
    pub url: Option<String>,
}

/// One SRV record and its target's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The SRV target.
    pub host: Name,
    /// The S of (S,G); several if the host has several, none if they are not known.
    pub addresses: Vec<Ipv6Addr>,
    /// UDP port of all channels.
    pub port: u16,
    /// Sources of the lowest number are received together; the others are spares.
    pub priority: u16,
    /// Share among those of one priority when they are more than are wanted.
    pub weight: u16,
}

/// One group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// The G of (S,G).
    pub group: Ipv6Addr,
    /// Bits per second, if known; records hold whole kbit/s.
    pub rate: Option<u64>,
}

/// How the channels of a service belong together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ladder {
    /// Each channel carries everything: take one of them.
    #[default]
    Separate,
    /// Tier l adds to tiers 0..l: take the lowest ones together.
    Stacked,
}

/// An SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srv {
    /// Lower is better.
    pub priority: u16,
    /// Share among equals.
    pub weight: u16,
    /// UDP port.
    pub port: u16,
    /// Host.
    pub target: Name,
}

/// A TXT record: its strings.
pub type Txt = Vec<Vec<u8>>;

/// Why records are of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The only SRV target is the root, which means just that.
    #[error("its SRV record says that the service is not offered")]
    NotOffered,
    /// No usable SRV record.
    #[error("no SRV record names a host and a port")]
    NoSource,
    /// The layout of the TXT record is a later one.
    #[error("its TXT record is of layout txtvers={0}, and this program knows 1")]
    Version(String),
    /// `g` does not begin with a group.
    #[error("{key} in its TXT record begins with {value}, which is no IPv6 multicast group")]
    NoGroup {
        /// The key, `g`.
        key: &'static str,
        /// What stands there, quoted.
        value: String,
    },
}

/// What was left out and why, a line each, for a person; bounded.
#[derive(Clone, Debug, Default)]
pub struct Remarks(Vec<String>);

impl Remarks {
    /// One more, unless there are many.
    pub fn add(&mut self, name: &Name, line: impl std::fmt::Display) {
        let line = format!("{name}: {line}");
        if self.0.len() < MAX_REMARKS && !self.0.contains(&line) {
            self.0.push(line);
        }
    }

    /// Those of a part.
    pub fn append(&mut self, part: Self) {
        self.0.extend(part.0);
        self.0.truncate(MAX_REMARKS);
    }

    /// All of them.
    pub fn lines(&self) -> &[String] {
        &self.0
    }

    /// All of them, to keep.
    pub fn into_lines(self) -> Vec<String> {
        self.0
    }
}

impl Service {
    /// Reads the SRV and TXT records of `name`. The sources have no addresses yet.
    pub fn parse(name: &Name, srv: &[Srv], txt: &[Txt], remarks: &mut Remarks) -> Result<Self, RecordError> {
        let sources = parse_sources(name, srv, remarks)?;
        let keys = Keys::parse(name, txt, remarks);
        if let Some(version) = keys.get("txtvers").filter(|v| v != b"1") {
            return Err(RecordError::Version(quoted(&version)));
        }
        let channels = parse_channels(name, &keys, remarks)?;
        let ladder = match keys.text("m").as_deref() {
            None | Some("separate") => Ladder::Separate,
            Some("stacked") => Ladder::Stacked,
            Some(other) => {
                remarks
                    .add(name, format_args!("m={} is unknown: taken as separate", quoted(other.as_bytes())));
                Ladder::Separate
            }
        };
        let mut hint = |key: &str, is_good: fn(&str) -> bool| {
            let value = keys.text(key)?;
            let good = is_good(&value);
            if !good {
                remarks.add(name, format_args!("{key}={} ignored: malformed", quoted(value.as_bytes())));
            }
            good.then_some(value)
        };
        let decimal = |v: &str| v.bytes().all(|b| b.is_ascii_digit()) && v.parse::<u64>().is_ok();
        Ok(Self {
            seq: hint("seq", decimal).and_then(|v| v.parse().ok()),
            digest_prefix: hint("h", |v| (16..=64).contains(&v.len()) && is_hex(v))
                .map(|v| v.to_ascii_lowercase()),
            key_id: hint("k", |v| v.len() == 16 && is_hex(v)).map(|v| v.to_ascii_uppercase()),
            url: hint("u", is_url),
            name: name.clone(),
            sources,
            channels,
            ladder,
        })
    }

    /// The SRV records.
    pub fn srv(&self) -> Vec<Srv> {
        let srv =
            |s: &Source| Srv { priority: s.priority, weight: s.weight, port: s.port, target: s.host.clone() };
        self.sources.iter().map(srv).collect()
    }

    /// The TXT record. `g` goes on in `g2`, `g3` when a string is full; rates are rounded up to kbit/s.
    pub fn txt(&self) -> Txt {
        let mut strings = vec!["txtvers=1".to_owned()];
        let mut list = String::new();
        for (i, channel) in self.channels.iter().enumerate() {
            let group = channel.group.to_string();
            // The longest key of a list is "g3=".
            if i > 0 && list.len() + 1 + group.len() > MAX_STRING {
                strings.push(std::mem::take(&mut list));
            }
            match list.is_empty() {
                true => {
                    let lists = strings.len(); // txtvers and those before
                    let number = if lists == 1 { String::new() } else { lists.to_string() };
                    let _ = write!(list, "g{number}={group}"); // writing to a String cannot fail
                }
                false => {
                    let _ = write!(list, ",{group}");
                }
            }
        }
        strings.push(list);
        if self.channels.iter().any(|channel| channel.rate.is_some()) {
            let rate = |c: &Channel| c.rate.map_or_else(String::new, |rate| rate.div_ceil(1000).to_string());
            strings.push(format!("r={}", self.channels.iter().map(rate).collect::<Vec<_>>().join(",")));
        }
        if self.channels.len() > 1 {
            strings.push(format!("m={}", self.ladder.word()));
        }
        strings.extend(self.seq.map(|seq| format!("seq={seq}")));
        strings.extend(self.digest_prefix.as_ref().map(|h| format!("h={h}")));
        strings.extend(self.key_id.as_ref().map(|k| format!("k={k}")));
        strings.extend(self.url.as_ref().map(|u| format!("u={u}")));
        strings.into_iter().map(String::into_bytes).collect()
    }
}

impl Ladder {
    /// As `m` in TXT has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Separate => "separate",
            Self::Stacked => "stacked",
        }
    }
}

impl Source {
    /// Takes over what the AAAA records of its host hold, as far as it can be the S of (S,G).
    pub fn accept(&mut self, addresses: &[Ipv6Addr], remarks: &mut Remarks) {
        for address in addresses {
            if address.is_multicast() || address.is_unspecified() || address.to_ipv4_mapped().is_some() {
                remarks.add(&self.host, format_args!("AAAA {address} ignored: nobody sends from it"));
            } else if self.addresses.len() == MAX_ADDRESSES {
                remarks.add(&self.host, format_args!("only {MAX_ADDRESSES} addresses taken"));
                break;
            } else if !self.addresses.contains(address) {
                self.addresses.push(*address);
            }
        }
    }
}

/// The group of a tier when no record names it: `ff3e::/96` and a group id that RFC 4607 leaves to hosts, high bit
/// set, from the BLAKE3 of the service name, a zero and the tier. Ethernet uses just these 32 bits (RFC 2464).
pub fn derived_group(name: &Name, tier: u8) -> Ipv6Addr {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&name.lower_text());
    hasher.update(&[0, tier]);
    let mut id = [0; 4];
    hasher.finalize_xof().fill(&mut id);
    let id = u32::from_be_bytes(id) | 0x8000_0000;
    Ipv6Addr::from_bits(
        u128::from_be_bytes([0xff, 0x3e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) | u128::from(id),
    )
}

fn parse_sources(name: &Name, srv: &[Srv], remarks: &mut Remarks) -> Result<Vec<Source>, RecordError> {
    if let [only] = srv
        && only.target.is_root()
    {
        return Err(RecordError::NotOffered);
    }
    let mut srv: Vec<&Srv> = srv.iter().collect();
    // Answers come in any order; all clients shall see, and cut off, the same.
    srv.sort_by_key(|s| (s.priority, s.target.lower_text(), s.port));
    let mut sources: Vec<Source> = Vec::new();
    for s in srv {
        if s.target.is_root() || s.port == 0 {
            remarks.add(name, format_args!("SRV to {} port {} ignored: nobody is there", s.target, s.port));
        } else if sources.iter().any(|known| known.host == s.target && known.port == s.port) {
            // The same again, at best with a worse priority.
        } else if sources.len() == MAX_SOURCES {
            remarks.add(name, format_args!("only {MAX_SOURCES} SRV records taken"));
            break;
        } else {
            sources.push(Source {
                host: s.target.clone(),
                addresses: Vec::new(),
                port: s.port,
                priority: s.priority,
                weight: s.weight,
            });
        }
    }
    if sources.is_empty() { Err(RecordError::NoSource) } else { Ok(sources) }
}

fn parse_channels(name: &Name, keys: &Keys, remarks: &mut Remarks) -> Result<Vec<Channel>, RecordError> {
    let rates = keys.list("r");
    let mut groups = Vec::new();
    let named = keys.get("g").is_some();
    if named {
        for value in keys.long_list("g") {
            let group = value.parse::<Ipv6Addr>().ok().filter(Ipv6Addr::is_multicast);
            match group {
                // Numbers of tiers must stay true: nothing is taken from behind a gap.
                None if groups.is_empty() => {
                    return Err(RecordError::NoGroup { key: "g", value: quoted(value.as_bytes()) });
                }
                None => {
                    let value = quoted(value.as_bytes());
                    remarks.add(name, format_args!("g: {value} is no IPv6 multicast group: cut off there"));
                    break;
                }
                Some(group) if groups.contains(&group) => {
                    remarks.add(name, format_args!("g: {group} is there twice: cut off there"));
                    break;
                }
                Some(_) if groups.len() == MAX_CHANNELS => {
                    remarks.add(name, format_args!("g: only {MAX_CHANNELS} channels taken"));
                    break;
                }
                Some(group) => groups.push(group),
            }
        }
    } else {
        let tiers = rates.len().clamp(1, MAX_CHANNELS) as u8;
        groups.extend((0..tiers).map(|tier| derived_group(name, tier)));
    }
    if !rates.is_empty() && rates.len() != groups.len() {
        let (r, g) = (rates.len(), groups.len());
        remarks.add(name, format_args!("r: {r} rates for {g} channels"));
    }
    let mut rate = |tier: usize| {
        let value = rates.get(tier).filter(|value| !value.is_empty())?;
        let kbit: Option<u64> = value.parse().ok().filter(|kbit| RATES.contains(kbit));
        if kbit.is_none() {
            remarks.add(name, format_args!("r: {} is no rate in kbit/s", quoted(value.as_bytes())));
        }
        kbit.map(|kbit| kbit * 1000)
    };
    Ok(groups.iter().enumerate().map(|(i, group)| Channel { group: *group, rate: rate(i) }).collect())
}

/// The keys of a TXT record: lower case, the first of each, at most [`MAX_TXT`] bytes.
struct Keys(Vec<(String, Option<Vec<u8>>)>);

impl Keys {
    fn parse(name: &Name, txt: &[Txt], remarks: &mut Remarks) -> Self {
        // Several TXT records come in any order. Ours begins with txtvers; the rest of the order only has to be one.
        let mut txt: Vec<&Txt> = txt.iter().collect();
        let is_ours = |record: &Txt| {
            record.first().is_some_and(|s| s.get(..8).is_some_and(|k| k.eq_ignore_ascii_case(b"txtvers=")))
        };
        txt.sort_by_key(|record| (!is_ours(record), *record));
        let mut keys: Vec<(String, Option<Vec<u8>>)> = Vec::new();
        let mut size = 0;
        for string in txt.into_iter().flatten() {
            size += string.len() + 1;
            if size > MAX_TXT {
                remarks.add(name, format_args!("only {MAX_TXT} bytes of TXT taken"));
                break;
            }
            let mut halves = string.splitn(2, |&byte| byte == b'=');
            let key = String::from_utf8_lossy(halves.next().unwrap_or_default()).to_ascii_lowercase();
            let value = halves.next().map(<[u8]>::to_vec);
            // A string without a key means nothing (RFC 6763, section 6.4), and of a key the first counts.
            if !key.is_empty() && !keys.iter().any(|(known, _)| *known == key) {
                keys.push((key, value));
            }
        }
        Self(keys)
    }

    /// The value of a key; a key without one is as good as absent.
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.iter().find(|(known, _)| known == key)?.1.clone().filter(|value| !value.is_empty())
    }

    fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(|value| String::from_utf8_lossy(&value).into_owned())
    }

    /// The values of a list, nothing if the key is absent.
    fn list(&self, key: &str) -> Vec<String> {
        self.text(key).iter().flat_map(|text| text.split(',')).map(|value| value.trim().to_owned()).collect()
    }

    /// A list that goes on in the keys with 2, 3, … behind.
    fn long_list(&self, key: &str) -> Vec<String> {
        let parts = std::iter::once(key.to_owned()).chain((2..=9).map(|n| format!("{key}{n}")));
        parts.map(|key| self.list(&key)).take_while(|values| !values.is_empty()).flatten().collect()
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// A value of a stranger, safe to print and not too long.
fn quoted(value: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(value).chars().take(60).collect();
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn srv(target: &str, priority: u16, port: u16) -> Srv {
        Srv { priority, weight: 1, port, target: name(target) }
    }

    fn strings(text: &[&str]) -> Txt {
        text.iter().map(|string| string.as_bytes().to_vec()).collect()
    }

    /// The service of one SRV record and these strings, and how many remarks there were.
    fn parse(text: &[&str]) -> Result<(Service, usize), RecordError> {
        let mut remarks = Remarks::default();
        let service = Service::parse(
            &name("fw._carousel._udp.example.net"),
            &[srv("s1", 0, 5004)],
            &[strings(text)],
            &mut remarks,
        );
        Ok((service?, remarks.lines().len()))
    }

    fn groups(service: &Service) -> Vec<String> {
        service.channels.iter().map(|channel| channel.group.to_string()).collect()
    }

    #[test]
    fn the_example_of_the_design() {
        let text = [
            "txtvers=1",
            "g=ff3e::9c41:a7d0,ff3e::9c5b:e213",
            "r=1000,1000",
            "m=stacked",
            "seq=42",
            "h=0123456789abcdef",
            "k=E7620F1842B4E81F",
            "u=https://example.net/fw.carousel",
        ];
        let (service, remarks) = parse(&text).unwrap();
        assert_eq!(groups(&service), ["ff3e::9c41:a7d0", "ff3e::9c5b:e213"]);
        assert_eq!(service.channels[1].rate, Some(1_000_000));
        assert_eq!((service.ladder, service.seq, remarks), (Ladder::Stacked, Some(42), 0));
        assert_eq!(service.url.as_deref(), Some("https://example.net/fw.carousel"));
        assert_eq!(service.txt(), strings(&text));
    }

    #[test]
    fn keys_as_the_rfc_has_them() {
        let odd = ["TxtVers=1", "", "=nothing", "SEQ=1", "seq=2", "unknown=x", "flag", "m", "G=ff3e::8000:1"];
        let (service, remarks) = parse(&odd).unwrap();
        assert_eq!((service.seq, groups(&service), remarks), (Some(1), vec!["ff3e::8000:1".into()], 0));
        // Of several records ours counts first, whatever their order.
        let (ours, other) = (strings(&["txtvers=1", "seq=5"]), strings(&["a=b", "seq=6", "txtvers=9"]));
        for txt in [[ours.clone(), other.clone()], [other, ours]] {
            let service =
                Service::parse(&name("x"), &[srv("s", 0, 1)], &txt, &mut Remarks::default()).unwrap();
            assert_eq!(service.seq, Some(5));
        }
        assert_eq!(parse(&["txtvers=2"]).unwrap_err(), RecordError::Version("\"2\"".into()));
        assert_eq!(parse(&[""]).unwrap().0.channels.len(), 1);
    }

    #[test]
    fn what_is_malformed_is_left_out() {
        for bad in [
            "seq=-1",
            "seq=1e3",
            "seq=18446744073709551616",
            "h=abc",
            "h=0123456789abcdeg",
            "k=12",
            "u=ftp://x",
            "u=https://",
            "u=https://a b",
            "m=both",
            "r=0",
            "r=x",
            "r=100000001",
            "seq=\u{1b}[2J",
        ] {
            let (service, remarks) = parse(&[bad]).unwrap();
            assert_eq!(remarks, 1, "{bad}");
            let plain = parse(&[]).unwrap().0;
            assert_eq!(service, plain, "{bad}");
        }
        // Escape sequences do not reach a terminal.
        let mut remarks = Remarks::default();
        let _ = Service::parse(&name("x"), &[srv("s", 0, 1)], &[strings(&["seq=\u{1b}[2J"])], &mut remarks);
        assert_eq!(remarks.lines(), [r#"x: seq="\u{1b}[2J" ignored: malformed"#]);
    }

    #[test]
    fn a_bad_group_cuts_the_list_off() {
        for (g, good) in [
            ("g=ff3e::8000:1,2001:db8::1,ff3e::8000:3", 1),
            ("g=ff3e::8000:1,ff3e::8000:2,,ff3e::8000:3", 2),
            ("g=ff3e::8000:1,ff3e::8000:2,ff3e::8000:1", 2),
        ] {
            let (service, remarks) = parse(&[g]).unwrap();
            assert_eq!((service.channels.len(), remarks), (good, 1), "{g}");
        }
        let none = RecordError::NoGroup { key: "g", value: "\"232.1.1.1\"".into() };
        assert_eq!(parse(&["g=232.1.1.1,ff3e::8000:1"]), Err(none));
        let many: Vec<String> = (1..=17).map(|n| format!("ff3e::8000:{n:x}")).collect();
        let (many, more) = (format!("g={}", many[..9].join(",")), format!("g2={}", many[9..].join(",")));
        let (service, remarks) = parse(&[&more, &many]).unwrap();
        assert_eq!((service.channels.len(), remarks), (MAX_CHANNELS, 1));
    }

    #[test]
    fn groups_derived_from_the_name() {
        let (service, _) = parse(&["r=1000,1000,2000", "m=stacked"]).unwrap();
        assert_eq!(service.channels.len(), 3);
        for (tier, channel) in service.channels.iter().enumerate() {
            assert_eq!(channel.group, derived_group(&name("FW._Carousel._udp.example.NET."), tier as u8));
        }
        // The vector of the README.
        let vector = name("gateway-fw._carousel._udp.example.net");
        let groups = [0, 1, 2].map(|tier| derived_group(&vector, tier).to_string());
        assert_eq!(groups, ["ff3e::f606:c4ec", "ff3e::fd03:e3c8", "ff3e::f5a0:66e6"]);
    }

    #[test]
    fn sources() {
        let of = |srv: &[Srv]| {
            let mut remarks = Remarks::default();
            let service = Service::parse(&name("x"), srv, &[], &mut remarks);
            service.map(|service| (service.sources, remarks.lines().len()))
        };
        assert_eq!(of(&[]), Err(RecordError::NoSource));
        assert_eq!(of(&[srv(".", 0, 0)]), Err(RecordError::NotOffered));
        assert_eq!(of(&[srv("a", 0, 0)]), Err(RecordError::NoSource));
        let (sources, remarks) =
            of(&[srv("b", 9, 1), srv("A", 0, 1), srv("a", 5, 1), srv("a", 0, 2), srv(".", 0, 1)]).unwrap();
        let seen: Vec<_> = sources.iter().map(|s| (s.priority, s.host.to_string(), s.port)).collect();
        assert_eq!(seen, [(0, "A".into(), 1), (0, "a".into(), 2), (9, "b".into(), 1)]);
        assert_eq!(remarks, 1);
        let many: Vec<Srv> = (0..500).map(|n| srv(&format!("h{n}"), 500 - n, 1)).collect();
        let (sources, remarks) = of(&many).unwrap();
        // The best stay.
        assert_eq!((sources.len(), sources[0].priority, remarks), (MAX_SOURCES, 1, 1));
    }

    #[test]
    fn addresses() {
        let mut source = Source { host: name("h"), addresses: vec![], port: 1, priority: 0, weight: 0 };
        let mut remarks = Remarks::default();
        let bad = ["::", "ff3e::1", "::ffff:192.0.2.1"].map(|a| a.parse().unwrap());
        source.accept(&bad, &mut remarks);
        assert_eq!((source.addresses.len(), remarks.lines().len()), (0, 3));
        let good: Vec<Ipv6Addr> =
            (0..1000).map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n / 2)).collect();
        source.accept(&good, &mut remarks);
        assert_eq!((source.addresses.len(), remarks.lines().len()), (MAX_ADDRESSES, 4));
    }

    #[test]
    fn the_fullest_txt_is_small() {
        let group =
            |n: u16| Ipv6Addr::new(0xff3e, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xfff0 + n);
        let channels = (0..16).map(|n| Channel { group: group(n), rate: Some(100_000_000_000) }).collect();
        let (mut service, _) = parse(&["seq=18446744073709551615"]).unwrap();
        service.channels = channels;
        service.ladder = Ladder::Stacked;
        service.digest_prefix = Some("f".repeat(64));
        service.key_id = Some("F".repeat(16));
        service.url = Some(format!("https://{}", "x".repeat(245)));
        let txt = service.txt();
        assert!(txt.iter().all(|string| string.len() <= MAX_STRING), "{txt:?}");
        assert_eq!(txt.iter().filter(|string| string.starts_with(b"g")).count(), 3);
        // RFC 6763, section 6.2, wants no more than 1,300 bytes.
        let size = txt.iter().map(|string| string.len() + 1).sum::<usize>();
        assert!((1_100..=1_300).contains(&size), "{size}");
        let mut remarks = Remarks::default();
        assert_eq!(Service::parse(&service.name, &service.srv(), &[txt], &mut remarks), Ok(service));
    }

    prop_compose! {
        fn channels()(ids in prop::collection::btree_set(any::<u128>(), 1..=16), rate in prop::option::of(1..=100_000_000u64))
            -> Vec<Channel> {
            let group = |id: u128| Ipv6Addr::from_bits(id | 0xff << 120);
            let groups: std::collections::BTreeSet<_> = ids.into_iter().map(group).collect();
            groups.into_iter().map(|group| Channel { group, rate: rate.map(|kbit| kbit * 1000) }).collect()
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(channels in channels(), stacked: bool, seq: Option<u64>,
            h in prop::option::of("[0-9a-f]{16,64}"), k in prop::option::of("[0-9A-F]{16}"),
            u in prop::option::of("https?://[!-~]{1,245}"), hosts in prop::collection::btree_set("[a-z]{1,9}", 1..=64)) {
            let ladder = if stacked && channels.len() > 1 { Ladder::Stacked } else { Ladder::Separate };
            let source = |host: &String| Source { host: name(host), addresses: vec![], port: 1, priority: 2, weight: 3 };
            let service = Service { name: name("x._carousel._udp.y"), sources: hosts.iter().map(source).collect(),
                channels, ladder, seq, digest_prefix: h, key_id: k, url: u };
            let mut remarks = Remarks::default();
            let read = Service::parse(&service.name, &service.srv(), &[service.txt()], &mut remarks);
            prop_assert_eq!(read, Ok(service));
            prop_assert_eq!(remarks.lines().len(), 0);
        }

        #[test]
        fn whatever_a_zone_holds_is_bounded(
            srv in prop::collection::vec(("[a-z.]{0,5}", any::<u16>(), any::<u16>()), 0..200),
            txt in prop::collection::vec(prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..=255),
                "(g|g2|r|m|h|k|u|seq|txtvers)=[0-9a-f:,.]{0,200}".prop_map(String::into_bytes),
            ], 0..30), 0..5)) {
            let srv: Vec<Srv> = srv.into_iter().filter_map(|(host, priority, port)| {
                Some(Srv { priority, weight: 0, port, target: host.parse().ok()? })
            }).collect();
            let mut remarks = Remarks::default();
            if let Ok(service) = Service::parse(&name("x"), &srv, &txt, &mut remarks) {
                prop_assert!((1..=MAX_SOURCES).contains(&service.sources.len()));
                prop_assert!((1..=MAX_CHANNELS).contains(&service.channels.len()));
            }
            prop_assert!(remarks.lines().len() <= MAX_REMARKS);
            prop_assert!(remarks.lines().iter().all(|line| line.len() < 1000 && !line.contains(char::is_control)));
        }
    }
}
