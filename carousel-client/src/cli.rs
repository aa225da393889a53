//! The command line, as definitions only. Other programs rely on these names.

use carousel_proto::device::MAX_ID_LEN;
use carousel_proto::signature::KeyId;
use carousel_proto::units::{parse_duration_ms, parse_size};
use clap::{Args, Parser, Subcommand};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Take a file or a folder from a carousel: join at any moment, stop when the hashes match.
#[derive(Parser, Debug)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  carousel-client get example.net --key release.pub --out firmware.img
  carousel-client discover example.net
  carousel-client doctor example.net
  carousel-client get --source 2001:db8::1 --group ff3e::8000:1 --port 5004 --interface eth0 \\
      --key release.pub --out firmware.img
  carousel-client get --source 2001:db8::1 --source 2001:db8::2 --group ff3e::8000:1 --port 5004 \\
      --interface eth0 --digest 8f3c… --out firmware.img --json
  carousel-client watch --config /etc/carousel/client.toml

Exit codes: 0 done, 1 failed, 2 usage, 3 bad signature or digest, 4 rollback or expired, 5 no signal,
6 storage, 7 hook failed, 75 DNS does not answer, another client is at work on the same target, or it
is not this device's turn: try again later."
)]
pub struct Arguments {
    /// More remarks on stderr (-v: every block, -vv: every batch)
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
#[allow(clippy::large_enum_variant)] // there is one of it
pub enum Command {
    /// Fetch one object and end
    Get(Get),
    /// Say what DNS offers under a name: sources, channels, rates, release
    #[cfg(feature = "dns")]
    Discover(Discover),
    /// Wait for newer releases for ever, fetch them, and hand them over when it is time: the agent of a device
    #[cfg(feature = "watch")]
    Watch(Watch),
    /// Find out why nothing arrives, or that everything is fine: interface, MLD, firewall, loss, clock
    Doctor(Doctor),
}

#[cfg(feature = "watch")]
#[derive(Args, Debug)]
#[command(after_help = "\
SIGHUP takes up a changed file; transfers go on with what they had. SIGTERM ends it and keeps all work.
The states in the status file: waiting, receiving, verified, ready, handed-over, ok, failed.

Examples:
  carousel-client watch --config /etc/carousel/client.toml --check
  carousel-client watch --config /etc/carousel/client.toml")]
pub struct Watch {
    /// What to watch, and what to do with it: TOML
    #[arg(long, value_name = "client.toml")]
    pub config: PathBuf,
    /// Only read the file, and say what is wrong with it
    #[arg(long)]
    pub check: bool,
}

/// How DNS is asked.
#[derive(Args, Debug)]
pub struct Dns {
    /// Nameserver to ask, with or without a port [default: the system's]
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse_nameserver)]
    pub nameserver: Option<SocketAddr>,
    /// File with DNSKEY or DS records: names below their zones must be signed (DNSSEC)
    #[arg(long, value_name = "FILE")]
    pub trust_anchor: Option<PathBuf>,
}

#[cfg(feature = "dns")]
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes: 0 something is offered, 2 nothing is, or usage, 3 DNSSEC says that the answer is false,
75 DNS does not answer.

Examples:
  carousel-client discover example.net
  carousel-client discover gateway-fw._carousel._udp.example.net --nameserver 2001:db8::53 --json")]
pub struct Discover {
    /// Service (gateway-fw._carousel._udp.example.net) or domain (example.net)
    #[arg(value_name = "SERVICE")]
    pub service: String,
    #[command(flatten)]
    pub dns: Dns,
    /// Give up after so long without an answer
    #[arg(long, default_value = "10s", value_parser = parse_duration_ms)]
    pub timeout: u64,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Each finding is a line: ok, note or problem, what it is about, what was found, and what to do. The
names are explained in docs/doctor.md. As root it also sees what this host's firewall drops. It sends
nothing but its joins.

Exit codes: 0 nothing is wrong, 1 something is, 2 usage, or DNS knows nothing, 3 DNSSEC says that it
is false, 5 nothing arrives, 75 DNS does not answer.

Examples:
  carousel-client doctor example.net --key release.pub
  carousel-client doctor --source 2001:db8::1 --group ff3e::8000:1 --port 5004 --interface eth0")]
pub struct Doctor {
    /// Service or domain to look up in DNS, as for `get`
    #[arg(value_name = "SERVICE", conflicts_with_all = ["source", "group", "port"])]
    pub service: Option<String>,
    #[command(flatten)]
    pub dns: Dns,
    /// Address of a server; may be repeated. Without it: any source
    #[arg(long)]
    pub source: Vec<Ipv6Addr>,
    /// IPv6 multicast group, e.g. ff3e::8000:1; may be repeated
    #[arg(long, required_unless_present = "service", value_parser = parse_group)]
    pub group: Vec<Ipv6Addr>,
    /// UDP port of the groups
    #[arg(long, required_unless_present = "service", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Network interface to join on [default: the only one that is up]
    #[arg(long)]
    pub interface: Option<String>,
    /// Tier of a service to listen to
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub tier: usize,
    /// Public key that should have signed what is sent (minisign's format); may be repeated
    #[arg(long, value_name = "K.pub")]
    pub key: Vec<PathBuf>,
    /// Receive buffer to ask the kernel for
    #[arg(long, default_value = "8MiB", value_parser = parse_size)]
    pub rcvbuf: u64,
    /// Listen for so long at most, 1s to 10m; DNS has the same time before
    #[arg(long, default_value = "10s", value_parser = parse_listening)]
    pub timeout: u64,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Who chooses the tier, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// The client, from loss.
    Auto,
    /// The user: this one, and those below it if they are stacked.
    Number(usize),
    /// The client, from loss; the groups are a ladder.
    Stacked,
}

/// A release, and who vouched for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newer {
    pub than: u64,
    pub by: Option<KeyId>,
}

#[derive(Args, Debug)]
#[command(after_help = "\
What was there when it ended is kept beside the target: the same command goes on with it.
The exit codes are those of `carousel-client --help`.

Examples:
  carousel-client get example.net --key release.pub --out firmware.img
  carousel-client get --source 2001:db8::1 --group ff3e::8000:1 --port 5004 --interface eth0 \\
      --key release.pub --seed firmware.img --out firmware.img --force
  carousel-client get example.net --keys fleet.keys --state /var/lib/carousel --out /srv/maps/ \\
      --on-complete ./install --json")]
#[command(group = clap::ArgGroup::new("trust").required(true).multiple(false).args(["key", "keys", "digest", "insecure"]))]
pub struct Get {
    /// Service or domain to look up in DNS, e.g. gateway-fw._carousel._udp.example.net or example.net
    #[arg(value_name = "SERVICE", conflicts_with_all = ["source", "group", "port"])]
    pub service: Option<String>,
    #[command(flatten)]
    pub dns: Dns,
    /// Address of a server: the S of (S,G); may be repeated, a client takes from all of them.
    /// Without it: any source
    #[arg(long)]
    pub source: Vec<Ipv6Addr>,
    /// IPv6 multicast group, e.g. ff3e::8000:1; may be repeated: tiers from the lowest to the highest
    #[arg(long, required_unless_present = "service", value_parser = parse_group)]
    pub group: Vec<Ipv6Addr>,
    /// UDP port of the groups
    #[arg(long, required_unless_present = "service", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Network interface to join on [default: the only one that is up]
    #[arg(long)]
    pub interface: Option<String>,
    /// Rate to take: auto (by loss), a number (0 is the lowest), or stacked (by loss; the groups are a ladder)
    /// [default: auto for a service, all groups otherwise]
    #[arg(long, value_name = "auto|N|stacked", value_parser = parse_tier)]
    pub tier: Option<Tier>,
    /// Sources of a service to take from at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub sources: u8,
    /// Public key that must have signed the manifest (minisign's format); may be repeated
    #[arg(long, value_name = "K.pub")]
    pub key: Vec<PathBuf>,
    /// Keys object that says which keys count, as this device was given it; newer ones are taken from the carousel
    #[arg(long, value_name = "F.keys")]
    pub keys: Option<PathBuf>,
    /// Folder that remembers: newer keys objects, the releases that this device had, and how late it is at least.
    /// Older releases are refused
    #[arg(long, value_name = "DIR", conflicts_with_all = ["digest", "insecure"])]
    pub state: Option<PathBuf>,
    /// Begin nothing before a heartbeat says that it is still the release to take
    #[arg(long, requires = "keys")]
    pub require_heartbeat: bool,
    /// Take only what is meant for this kind of device, or for all kinds; may be repeated
    #[arg(long, value_name = "KIND")]
    pub compatible: Vec<String>,
    /// Go by rollouts, as the device of this name: begin with nothing before its turn
    #[arg(long, value_name = "ID", value_parser = parse_device_id)]
    pub device_id: Option<String>,
    /// Take only a newer release than this one, whatever its name; where a key is named, as long as that is not revoked.
    /// May be repeated
    #[arg(long, value_name = "SEQ[@KEYID]", value_parser = parse_newer, conflicts_with_all = ["digest", "insecure"])]
    pub newer_than: Vec<Newer>,
    /// Only find out whether there is something to take, and take nothing
    #[arg(long)]
    pub look: bool,
    /// Leave it to the caller to put the object to use: --state does not remember the release as one that was
    #[arg(long, conflicts_with = "on_complete")]
    pub stage: bool,
    /// Trust this BLAKE3 of the object, in hexadecimal, instead of a key
    #[arg(long, value_name = "BLAKE3HEX", value_parser = parse_digest)]
    pub digest: Option<[u8; 32]>,
    /// Trust the first manifest that arrives, whoever sent it
    #[arg(long)]
    pub insecure: bool,
    /// Where to put the object: its name, or a folder to keep its own (end it with a slash if the object is a
    /// folder too)
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// --out is a block device: write straight onto it. It must not be in use, and what is on it is lost from the
    /// first packet on. With --state a client that was killed goes on
    #[arg(long)]
    pub device: bool,
    /// Replace an existing file; or with -T an existing folder, in one step
    #[arg(long)]
    pub force: bool,
    /// --out is the object's own name, also where a folder of that name is
    #[arg(short = 'T', long)]
    pub no_target_directory: bool,
    /// An older version of the object: blocks that are the same, in the same place, are taken from it and not from the
    /// network
    #[arg(long, value_name = "OLDFILE")]
    pub seed: Option<PathBuf>,
    /// Give up after so long without progress; 0 waits for ever
    #[arg(long, default_value = "60s", value_parser = parse_duration_ms)]
    pub timeout: u64,
    /// Receive buffer to ask the kernel for
    #[arg(long, default_value = "8MiB", value_parser = parse_size)]
    pub rcvbuf: u64,
    /// Decoding threads [default: one per processor, at most 2]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub threads: Option<u8>,
    /// One JSON object per line on stdout: join, leave, keys, refused, offer, started, resumed, progress, done
    #[arg(long)]
    pub json: bool,
    /// No progress on stderr
    #[arg(long, short)]
    pub quiet: bool,
    /// Where the transfer stands, as one JSON object in a file that is replaced every second
    #[arg(long, value_name = "FILE")]
    pub status: Option<PathBuf>,
    /// The same as metrics for Prometheus, for the textfile collector of node_exporter: FOLDER/NAME.prom. The name
    /// tells transfers apart
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Run this by `sh -c` when the object is complete (environment: CAROUSEL_PATH, _NAME, _SEQ, _DIGEST, _SIZE)
    #[arg(long, value_name = "CMD")]
    pub on_complete: Option<String>,
    /// Do not let the kernel keep the client from writing outside the target's folder and from running programs
    #[arg(long)]
    pub no_sandbox: bool,
    /// Lose so many per cent of the packets in the kernel before they arrive: for demonstrations and tests
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=90))]
    pub test_loss: u8,
}

pub fn parse_group(text: &str) -> Result<Ipv6Addr, String> {
    let address: Ipv6Addr =
        text.parse().map_err(|_| format!("{text:?} is no IPv6 address; a group looks like ff3e::8000:1"))?;
    if !address.is_multicast() {
        return Err(format!("{address} is no multicast group; use one from ff3e::/32, like ff3e::8000:1"));
    }
    Ok(address)
}

pub fn parse_tier(text: &str) -> Result<Tier, String> {
    match text {
        "auto" => Ok(Tier::Auto),
        "stacked" => Ok(Tier::Stacked),
        _ => text
            .parse()
            .map(Tier::Number)
            .map_err(|_| format!("{text:?} is no tier: use auto, stacked or a number")),
    }
}

/// How long a doctor listens, in milliseconds.
fn parse_listening(text: &str) -> Result<u64, String> {
    parse_duration_ms(text).and_then(|ms| match ms {
        1_000..=600_000 => Ok(ms),
        _ => Err(format!("{text:?}: a doctor listens for 1s to 10m")),
    })
}

pub fn parse_nameserver(text: &str) -> Result<SocketAddr, String> {
    let with_port = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53));
    text.parse().ok().or_else(with_port).ok_or_else(|| {
        format!(
            "{text:?} is no nameserver: use an address like 2001:db8::53, or with a port [2001:db8::53]:5353"
        )
    })
}

fn parse_device_id(text: &str) -> Result<String, String> {
    match text.len() {
        1..=MAX_ID_LEN => Ok(text.to_owned()),
        _ => Err(format!("a device id has 1 to {MAX_ID_LEN} bytes")),
    }
}

fn parse_newer(text: &str) -> Result<Newer, String> {
    let bad = || format!("{text:?} is no release: write it like 42, or 42@0123456789ABCDEF with a key id");
    let (seq, by) = match text.split_once('@') {
        Some((seq, id)) => (seq, Some(KeyId::parse(id).ok_or_else(bad)?)),
        None => (text, None),
    };
    Ok(Newer { than: seq.parse().map_err(|_| bad())?, by })
}

fn parse_digest(text: &str) -> Result<[u8; 32], String> {
    blake3::Hash::from_hex(text)
        .map(|hash| *hash.as_bytes())
        .map_err(|_| "a digest is 64 hexadecimal digits, as `carousel-server inspect` prints it".to_owned())
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
        for command in Arguments::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let (_, examples) =
                help.split_once("Examples:\n").unwrap_or_else(|| panic!("{}", command.get_name()));
            for line in examples.replace("\\\n", " ").lines() {
                let parsed = Arguments::try_parse_from(line.split_whitespace());
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn releases_to_be_newer_than() {
        assert_eq!(parse_newer("42"), Ok(Newer { than: 42, by: None }));
        let id = KeyId::parse("0123456789ABCDEF");
        assert_eq!(parse_newer("42@0123456789abcdef"), Ok(Newer { than: 42, by: id }));
        for bad in ["", "@", "42@", "x@0123456789ABCDEF", "42@0123", "-1"] {
            assert!(parse_newer(bad).is_err(), "{bad}");
        }
    }
}
