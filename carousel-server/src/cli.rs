//! The command line, as definitions only. Other programs rely on these names.

use carousel_proto::apply::MAX_JITTER;
use carousel_proto::rollout::Step;
use carousel_proto::units::{parse_duration_ms, parse_rate, parse_size};
use clap::{Args, Parser, Subcommand};
use std::net::Ipv6Addr;
use std::path::PathBuf;

/// Put one file on any number of devices at once: send it for ever over IPv6 multicast.
#[derive(Parser, Debug)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  carousel-server keygen --out release
  carousel-server keys --help
  carousel-server pack firmware.img --key release.key --out firmware.carousel
  carousel-server pack folder --key release.key --out folder.carousel
  carousel-server run firmware.carousel --group ff3e::8000:1 --port 5004 --interface eth0 --rate 20M
  carousel-server zone --config server.toml
  carousel-server doctor --config server.toml
  carousel-server demo

Exit codes: 0 done, 1 failed, 2 usage, 3 bad signature or digest, 6 storage, 75 a file or folder
changed while it was packed: try again."
)]
pub struct Arguments {
    /// More remarks on stderr (-v: details, -vv: every burst)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    pub fn log_level(&self) -> tracing::Level {
        match self.verbose {
            0 => tracing::Level::INFO,
            1 => tracing::Level::DEBUG,
            _ => tracing::Level::TRACE,
        }
    }
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a key pair: PREFIX.key (secret) and PREFIX.pub, in minisign's formats
    Keygen(Keygen),
    /// Pack a file or a folder into a bundle: blocks, repair symbols, hashes, signed manifest, in sending order
    Pack(Pack),
    /// Put a signature that minisign made elsewhere into an unsigned bundle
    Seal(Seal),
    /// Say which keys devices shall believe: make, sign and read keys objects
    #[command(subcommand)]
    Keys(Keys),
    /// Say what a bundle is, and check every hash in it
    Inspect(Inspect),
    /// Send bundles for ever
    Run(Run),
    /// Print the DNS records that make a configuration findable, for the zone file
    Zone(Zone),
    /// Find out what keeps a server from sending, or clients from hearing it. Sends nothing
    Doctor(Doctor),
    /// Try it all on this machine: no root, no network
    Demo(Demo),
}

#[derive(Args, Debug)]
#[command(after_help = "\
The secret key has no password: guard the file. `minisign -G` makes one that has.

Examples:
  carousel-server keygen --out release")]
pub struct Keygen {
    /// Where to: PREFIX.key and PREFIX.pub
    #[arg(long, value_name = "PREFIX")]
    pub out: PathBuf,
    /// Overwrite existing keys
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
The same contents, times and options make the same bundle, to the last bit.

Examples:
  carousel-server pack firmware.img --key release.key --seq 42 --out firmware.carousel
  carousel-server pack folder --key release.key --mtu 1500 --expires 2027-12-31 --out folder.carousel
  carousel-server pack firmware.img --key release.key --seq 43 --compatible board-a --out firmware.carousel \\
      --rollout 2027-01-31T06:00:00Z=5%,2027-02-02=100% --apply-jitter 2h
  carousel-server pack firmware.img --unsigned --out firmware.carousel")]
pub struct Pack {
    /// The file or folder to send. Of a folder: files, folders and symbolic links, with modes and times
    pub path: PathBuf,
    /// Secret key that signs the manifest (minisign's format)
    #[arg(long, required_unless_present = "unsigned", value_name = "K.key")]
    pub key: Option<PathBuf>,
    /// Do not sign; write OUT.manifest to be signed elsewhere with minisign, then `seal`
    #[arg(long, conflicts_with = "key")]
    pub unsigned: bool,
    /// The bundle to write
    #[arg(long, value_name = "F.carousel")]
    pub out: PathBuf,
    /// Name that clients see [default: that of the file or folder]
    #[arg(long)]
    pub name: Option<String>,
    /// Media type, e.g. application/octet-stream
    #[arg(long)]
    pub media_type: Option<String>,
    /// Release sequence number: raise it with every release
    #[arg(long, default_value_t = 1)]
    pub seq: u64,
    /// Kinds of device it is for; may be repeated
    #[arg(long)]
    pub compatible: Vec<String>,
    /// Last day on which a client starts with it, as YYYY-MM-DD (UTC), or @SECONDS since 1970
    #[arg(long, value_parser = parse_last_moment)]
    pub expires: Option<u64>,
    /// From a moment on, this share of the devices may begin: 2027-01-31T06:00:00Z=5%. May be repeated, or be a list
    /// with commas; shares grow
    #[arg(long, value_name = "TIME=PERCENT", value_delimiter = ',', value_parser = parse_step)]
    pub rollout: Vec<Step>,
    /// Releases with the same word pick the same devices first [default: each release picks others]
    #[arg(long, value_name = "WORD", requires = "rollout")]
    pub rollout_salt: Option<String>,
    /// No device applies it before this moment, as for --rollout
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub apply_not_before: Option<u64>,
    /// Devices spread over so long when they apply it, up to 28d
    #[arg(long, value_name = "DURATION", value_parser = parse_jitter)]
    pub apply_jitter: Option<u32>,
    /// When it was made, as for --expires [default: SOURCE_DATE_EPOCH, else when the file, or the
    /// newest one in the folder, was modified]
    #[arg(long, value_parser = parse_moment)]
    pub created: Option<u64>,
    /// Largest IPv6 packet that every link on the way carries
    #[arg(long, default_value_t = 1280, value_parser = clap::value_parser!(u16).range(1244..=9000))]
    pub mtu: u16,
    /// Symbol length in bytes instead of --mtu: even, 1152 to 8908
    #[arg(long, conflicts_with = "mtu", value_parser = parse_size)]
    pub symbol_size: Option<u64>,
    /// Block length, a power of two from 64KiB to 16MiB; 1MiB for devices with little memory
    #[arg(long, default_value = "4MiB", value_parser = parse_size)]
    pub block_size: u64,
    /// Repair symbols in per cent of the source symbols; 0 is a plain carousel. 105 serves clients that lose
    /// every second packet without a repetition
    #[arg(long, default_value_t = 105, value_parser = clap::value_parser!(u32).range(0..=900))]
    pub repair: u32,
    /// Overwrite an existing bundle
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  carousel-server pack firmware.img --unsigned --out firmware.carousel
  minisign -S -s release.key -m firmware.carousel.manifest
  carousel-server seal firmware.carousel --signature firmware.carousel.manifest.minisig --key release.pub")]
pub struct Seal {
    /// The unsigned bundle
    pub bundle: PathBuf,
    /// The file minisign wrote: F.carousel.manifest.minisig
    #[arg(long)]
    pub signature: PathBuf,
    /// Check the signature with this public key first
    #[arg(long, value_name = "K.pub")]
    pub key: Option<PathBuf>,
}

/// The keys object tells devices which keys count. It is signed by root keys, some of those that devices believe
/// already, and reaches them on the carousel.
#[derive(Subcommand, Debug)]
#[command(after_help = "\
A fleet whose keys objects need two of three root keys:
  carousel-server keys create --out fleet.keys --version 1 --threshold 2 \\
      --root r1.pub --root r2.pub --root r3.pub --release release.pub
  carousel-server keys sign fleet.keys --key r1.key
  minisign -S -s r2.key -m fleet.keys.cbor && carousel-server keys seal fleet.keys --signature fleet.keys.cbor.minisig
  carousel-server keys inspect fleet.keys
Devices get fleet.keys at the factory. For a new release key: version 2, signed in the same way, and
  carousel-server run … --keys fleet-2.keys")]
pub enum Keys {
    /// Write a keys object that nobody has signed yet, and OUT.cbor, the bytes to be signed
    Create(KeysCreate),
    /// Sign a keys object with a root key
    Sign(KeysSign),
    /// Put signatures that minisign made of OUT.cbor into a keys object
    Seal(KeysSeal),
    /// Say what a keys object is, and check its signatures
    Inspect(KeysInspect),
}

#[derive(Args, Debug)]
pub struct KeysCreate {
    /// The keys object to write
    #[arg(long, value_name = "F.keys")]
    pub out: PathBuf,
    /// Its number: devices take only greater ones than they have
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub version: u64,
    /// How many root keys must sign the next keys object, and this one
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub threshold: u8,
    /// Key that signs keys objects, 8 at most; may be repeated
    #[arg(long, value_name = "K.pub", required = true)]
    pub root: Vec<PathBuf>,
    /// Key that signs manifests; may be repeated
    #[arg(long, value_name = "K.pub")]
    pub release: Vec<PathBuf>,
    /// Key that signs heartbeats, on a server; may be repeated
    #[arg(long, value_name = "K.pub")]
    pub heartbeat: Vec<PathBuf>,
    /// Key whose word is void from now on, as its file or its id; may be repeated
    #[arg(long, value_name = "K.pub|ID")]
    pub revoke: Vec<String>,
    /// No release of this name below this sequence number; may be repeated
    #[arg(long, value_name = "NAME=SEQ", value_parser = parse_floor)]
    pub least: Vec<(String, u64)>,
    /// Last day on which devices begin anything under it, as YYYY-MM-DD (UTC), or @SECONDS since 1970
    #[arg(long, value_parser = parse_last_moment)]
    pub expires: Option<u64>,
    /// When it was made, as for --expires [default: SOURCE_DATE_EPOCH, else now]
    #[arg(long, value_parser = parse_moment)]
    pub created: Option<u64>,
    /// Devices begin nothing without a fresh heartbeat
    #[arg(long)]
    pub require_heartbeat: bool,
    /// Overwrite an existing keys object
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct KeysSign {
    /// The keys object
    #[arg(value_name = "F.keys")]
    pub object: PathBuf,
    /// Secret root key (minisign's format)
    #[arg(long, value_name = "K.key")]
    pub key: PathBuf,
}

#[derive(Args, Debug)]
pub struct KeysSeal {
    /// The keys object
    #[arg(value_name = "F.keys")]
    pub object: PathBuf,
    /// A file that minisign wrote: F.keys.cbor.minisig; may be repeated
    #[arg(long, required = true)]
    pub signature: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub struct KeysInspect {
    /// The keys object
    #[arg(value_name = "F.keys")]
    pub object: PathBuf,
    /// Check that devices which have this one would take it
    #[arg(long, value_name = "OLD.keys")]
    pub after: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes: 0 all is right, 2 usage, 3 damaged, or not signed by that key, 6 it cannot be read.

Examples:
  carousel-server inspect firmware.carousel --key release.pub
  carousel-server inspect firmware.carousel --json
  carousel-server inspect firmware.carousel --export firmware")]
pub struct Inspect {
    /// The bundle
    pub bundle: PathBuf,
    /// Check the signature with this public key
    #[arg(long, value_name = "K.pub")]
    pub key: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
    /// Write PREFIX.manifest and PREFIX.manifest.minisig, for minisign -V
    #[arg(long, value_name = "PREFIX")]
    pub export: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(after_help = "\
SIGHUP reads the configuration and the bundles anew: what did not change is sent on without a gap, and if anything
is wrong, all of it is. Replace a bundle by renaming the new one over it. SIGTERM and SIGINT end the program.
Once it has started, the server can read nothing outside the folders of the configuration and the bundles.

Examples:
  carousel-server run firmware.carousel --group ff3e::8000:1 --port 5004 --interface eth0 --rate 20M
  carousel-server run firmware.carousel --group ff3e::8000:1@10M --group ff3e::8000:2@100M --port 5004 --interface eth0
  carousel-server run --config server.toml")]
pub struct Run {
    /// The bundles to send: one for all groups, or as many as there are groups
    #[arg(required_unless_present = "config", value_name = "F.carousel")]
    pub bundles: Vec<PathBuf>,
    /// What to send, as a file: several bundles, tiers, ladders. deploy/server.toml is an example
    #[arg(long, value_name = "server.toml", conflicts_with_all = ["bundles", "group", "rate"])]
    pub config: Option<PathBuf>,
    /// IPv6 multicast group, e.g. ff3e::8000:1, or with its own rate ff3e::8000:1@20M; may be repeated
    #[arg(long, required_unless_present = "config", value_parser = parse_group)]
    pub group: Vec<Group>,
    /// UDP port of the groups. This and the following options, but for --rate, override the --config file
    #[arg(long, required_unless_present = "config", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Network interface to send through
    #[arg(long, required_unless_present = "config")]
    pub interface: Option<String>,
    /// Bits per second of whole IPv6 packets, for groups without a rate of their own [default: 10M]
    #[arg(long, value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// This server's number among those that send the same bundle: 0, 1, 2, … [default: 0]
    #[arg(long)]
    pub phase: Option<u32>,
    /// Hop limit: packets cross one router less at most [default: 32]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    pub hops: Option<u8>,
    /// Differentiated services code point: le, cs0 … cs7, af11 … af43, ef, or a number [default: le]
    #[arg(long, value_parser = parse_dscp)]
    pub dscp: Option<u8>,
    /// Source address [default: the kernel's choice for the group]
    #[arg(long)]
    pub source: Option<Ipv6Addr>,
    /// Keys object to send along; may be repeated: the newest, and those before it that changed the root keys
    #[arg(long, value_name = "F.keys")]
    pub keys: Vec<PathBuf>,
    /// Secret key that signs heartbeats: the only secret a server may hold. Whoever steals it can hold devices back
    /// at a release, and install nothing
    #[arg(long, value_name = "K.key")]
    pub heartbeat_key: Option<PathBuf>,
    /// How long a heartbeat counts: so long can a network withhold a new release unnoticed [default: 1d]
    #[arg(long, value_name = "DURATION", value_parser = parse_life)]
    pub heartbeat_life: Option<u64>,
    /// What is sent, as one JSON object in a file that is replaced every second
    #[arg(long, value_name = "FILE")]
    pub status: Option<PathBuf>,
    /// The same as metrics for Prometheus, for the textfile collector of node_exporter: FOLDER/NAME.prom
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Send one cycle and end
    #[arg(long)]
    pub once: bool,
    /// Do not let the kernel keep the server from listening, writing and reading other files
    #[arg(long)]
    pub no_sandbox: bool,
}

/// Find out what keeps a server from sending, or clients from hearing it. Sends nothing
#[derive(Args, Debug)]
#[command(after_help = "\
It takes the command line of `run`. Each finding is a line: ok, note or problem, what it is about,
what was found, and what to do. The names are explained in docs/doctor.md.

Exit codes: 0 nothing is wrong, 1 something is, 2 usage.

Examples:
  carousel-server doctor firmware.carousel --group ff3e::8000:1 --port 5004 --interface eth0
  carousel-server doctor --config server.toml --json")]
pub struct Doctor {
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub run: Run,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  carousel-server zone --config server.toml --ttl 300")]
pub struct Zone {
    /// The file that `run` takes; its [[server]] tables say who sends
    #[arg(long, value_name = "server.toml")]
    pub config: PathBuf,
    /// How many seconds resolvers may keep the records: so long it takes until a change is seen everywhere
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..1 << 31))]
    pub ttl: u32,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  carousel-server demo
  carousel-server demo firmware.img --rate 20M --loss 20")]
pub struct Demo {
    /// The file to send [default: this program itself]
    pub file: Option<PathBuf>,
    /// Bits per second [default: so that one round takes about 6 s]
    #[arg(long, value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// Per cent of the packets that each client loses
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=60))]
    pub loss: u8,
}

/// A group and, perhaps, its own rate.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    pub address: Ipv6Addr,
    pub rate: Option<u64>,
}

fn parse_group(text: &str) -> Result<Group, String> {
    let (address, rate) = match text.split_once('@') {
        Some((address, rate)) => (address, Some(parse_rate(rate)?)),
        None => (text, None),
    };
    Ok(Group { address: parse_address(address)?, rate })
}

/// The address of a group.
pub fn parse_address(text: &str) -> Result<Ipv6Addr, String> {
    let address: Ipv6Addr =
        text.parse().map_err(|_| format!("{text:?} is no IPv6 address; a group looks like ff3e::8000:1"))?;
    if !address.is_multicast() {
        return Err(format!("{address} is no multicast group; use one from ff3e::/32, like ff3e::8000:1"));
    }
    Ok(address)
}

/// A code point by its name or number.
pub fn parse_dscp(text: &str) -> Result<u8, String> {
    let digits: Vec<u8> = text.bytes().filter(|&c| c.is_ascii_digit()).map(|c| c - b'0').collect();
    let value = match (text.to_ascii_lowercase().as_str(), &digits[..]) {
        ("le", _) => Some(1), // RFC 8622
        ("ef", _) => Some(46),
        ("be" | "default", _) => Some(0),
        (t, [c]) if t.starts_with("cs") && t.len() == 3 && *c < 8 => Some(c * 8),
        (t, [class @ 1..=4, drop @ 1..=3]) if t.starts_with("af") && t.len() == 4 => {
            Some(class * 8 + drop * 2)
        }
        (t, _) => t.parse().ok().filter(|v| *v < 64),
    };
    value.ok_or_else(|| format!("{text:?} is no code point: use le, ef, cs0 … cs7, af11 … af43, or 0 … 63"))
}

/// How many seconds a heartbeat counts.
pub fn parse_life(text: &str) -> Result<u64, String> {
    match parse_duration_ms(text)? / 1000 {
        0 => Err(format!("{text:?} is too short for a heartbeat: give it a minute at least, usually 1d")),
        seconds => Ok(seconds),
    }
}

fn parse_floor(text: &str) -> Result<(String, u64), String> {
    let (name, seq) = text.rsplit_once('=').unwrap_or((text, ""));
    let seq =
        seq.parse().map_err(|_| format!("{text:?} is no least release: write it like firmware.img=42"))?;
    Ok((name.to_owned(), seq))
}

/// `TIME=PERCENT`, to a hundredth of a per cent.
fn parse_step(text: &str) -> Result<Step, String> {
    let bad = || format!("{text:?} is no step: write it like 2027-01-31T06:00:00Z=5%");
    let (time, share) = text.rsplit_once('=').ok_or_else(bad)?;
    let share = share.strip_suffix('%').unwrap_or(share);
    let (whole, part) = share.split_once('.').unwrap_or((share, ""));
    let digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    if whole.is_empty() || whole.len() > 3 || part.len() > 2 || !digits(whole) || !digits(part) {
        return Err(bad());
    }
    let share = format!("{whole}{part:0<2}").parse().map_err(|_| bad())?;
    Ok(Step { time: parse_moment(time)?, share })
}

fn parse_jitter(text: &str) -> Result<u32, String> {
    let seconds = parse_duration_ms(text)? / 1000;
    let fits = u32::try_from(seconds).ok().filter(|seconds| *seconds <= MAX_JITTER);
    fits.ok_or_else(|| format!("{text:?} is too long: at most 28d"))
}

/// `YYYY-MM-DD` at 0:00 UTC, with a time of day `YYYY-MM-DDTHH:MM:SSZ` (RFC 3339, or `+01:00` for Z), or `@SECONDS`, as
/// seconds since 1970.
fn parse_moment(text: &str) -> Result<u64, String> {
    let bad =
        || format!("{text:?} is no date: write it like 2027-01-31, 2027-01-31T06:00:00Z or @1800000000");
    if let Some(seconds) = text.strip_prefix('@') {
        return seconds.parse().map_err(|_| bad());
    }
    let (date, time) = text.split_once(['T', 't', ' ']).unwrap_or((text, ""));
    let parts: Vec<u64> = date.split('-').map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
    let [year @ 1970..=9999, month @ 1..=12, day @ 1..=31] = parts[..] else { return Err(bad()) };
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_in_month = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if day > days_in_month {
        return Err(bad());
    }
    // Days since 1970 by the civil calendar, years counted from March (Howard Hinnant's algorithm).
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    let seconds = (days - 719_468) * 86_400;
    match time {
        "" if date.len() == text.len() => Ok(seconds),
        _ => seconds.checked_add_signed(seconds_of_day(time).ok_or_else(bad)?).ok_or_else(bad),
    }
}

/// The same, but a day without a time means its last second: it counts.
fn parse_last_moment(text: &str) -> Result<u64, String> {
    let is_day = !text.starts_with('@') && !text.contains(['T', 't', ' ']);
    parse_moment(text).map(|moment| if is_day { moment + 86_399 } else { moment })
}

/// `HH:MM`, `HH:MM:SS`, and behind it `Z` or an offset from UTC: seconds since 0:00 UTC.
fn seconds_of_day(text: &str) -> Option<i64> {
    let two = |text: &str, limit: i64| {
        let digits = text.len() == 2 && text.bytes().all(|c| c.is_ascii_digit());
        text.parse().ok().filter(|n: &i64| digits && *n < limit)
    };
    let at = text.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = text.split_at(at);
    let parts: Vec<&str> = clock.split(':').collect();
    let (hour, minute, second) = match parts[..] {
        [h, m] => (two(h, 24)?, two(m, 60)?, 0),
        [h, m, s] => (two(h, 24)?, two(m, 60)?, two(s, 60)?),
        _ => return None,
    };
    let offset = match zone {
        "Z" | "z" => 0,
        _ => {
            let (h, m) = zone[1..].split_once(':')?;
            (two(h, 24)? * 3600 + two(m, 60)? * 60) * if zone.starts_with('-') { -1 } else { 1 }
        }
    };
    Some(hour * 3600 + minute * 60 + second - offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    /// Of every command; and whoever types them is understood.
    #[test]
    fn every_help_has_examples() {
        let program = Arguments::command();
        for command in program.get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines = help.replace("\\\n", " ");
            let own = lines.lines().filter(|line| line.starts_with("  carousel-server "));
            let examples: Vec<&str> = own.filter(|line| !line.contains('…')).collect();
            assert!(!examples.is_empty(), "{}", command.get_name());
            for line in examples {
                let parsed = Arguments::try_parse_from(line.split_whitespace());
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn dscp_names() {
        assert_eq!(parse_dscp("le"), Ok(1));
        assert_eq!(parse_dscp("CS5"), Ok(40));
        assert_eq!(parse_dscp("af41"), Ok(34));
        assert_eq!(parse_dscp("63"), Ok(63));
        assert!(parse_dscp("64").is_err() && parse_dscp("af44").is_err() && parse_dscp("cs8").is_err());
    }

    #[test]
    fn moments() {
        assert_eq!(parse_moment("1970-01-01"), Ok(0));
        assert_eq!(parse_moment("2000-03-01"), Ok(951_868_800));
        assert_eq!(parse_moment("@17"), Ok(17));
        assert_eq!(parse_last_moment("2000-03-01"), Ok(951_868_800 + 86_399));
        assert_eq!(parse_last_moment("2000-03-01T01:02Z"), Ok(951_868_800 + 3_720));
        assert_eq!(parse_last_moment("@17"), Ok(17));
        assert!(parse_moment("2000-13-01").is_err() && parse_moment("soon").is_err());
        assert_eq!(parse_moment("2000-03-01T01:02:03Z"), Ok(951_868_800 + 3_723));
        assert_eq!(parse_moment("2000-03-01T01:02Z"), Ok(951_868_800 + 3_720));
        assert_eq!(parse_moment("2000-03-01 00:30:00+01:00"), Ok(951_868_800 - 1_800));
        assert_eq!(parse_moment("2000-02-29T23:30:00-01:00"), Ok(951_868_800 + 1_800));
        for bad in ["2000-03-01T", "2000-03-01T1:02Z", "2000-03-01T24:00Z", "2000-03-01T01:02", "2000-03-01Z"]
        {
            assert!(parse_moment(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_moment("2028-02-29").map(|t| t / 86_400), Ok(21_243));
        for bad in ["2027-02-29", "2100-02-29", "2027-06-31", "2027-04-00", "2000-02-30T01:00Z"] {
            assert!(parse_moment(bad).is_err(), "{bad}");
        }
        for bad in ["2000-03-01T01:60Z", "1970-01-01T00:00:00+01:00", "2000-03-01T01:02:03+1", "2000-03-01TZ"]
        {
            assert!(parse_moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn steps_of_a_rollout() {
        for (text, time, share) in [
            ("2000-03-01=10%", 951_868_800, 1_000),
            ("@5=0.01", 5, 1),
            ("@5=100%", 5, 10_000),
            ("@5=2.5%", 5, 250),
            ("2000-03-01T01:00:00Z=99.99%", 951_872_400, 9_999),
        ] {
            assert_eq!(parse_step(text), Ok(Step { time, share }), "{text}");
        }
        for bad in ["10%", "@5", "@5=", "@5=%", "@5=1.234%", "@5=-1%", "@5=x", "soon=5%", "@5=1000000%"] {
            assert!(parse_step(bad).is_err(), "{bad}");
        }
        assert_eq!((parse_jitter("1h"), parse_jitter("28d")), (Ok(3_600), Ok(MAX_JITTER)));
        assert!(parse_jitter("29d").is_err() && parse_jitter("soon").is_err());
    }

    #[test]
    fn groups() {
        assert_eq!(parse_group("ff3e::8000:1@20M").unwrap().rate, Some(20_000_000));
        assert!(parse_group("2001:db8::1").is_err() && parse_group("x").is_err());
    }
}
