//! What most scenarios share: an object packed with a fresh key, a server that sends it, a client that gets it.
//! Everything goes through the command line, by the contract (names, `--json` keys, exit codes).

use crate::lab::{Exit, Host, Lab, Running, until};
use crate::{bins, figures, object};
use carousel_proto::journal::{ENTRY_LEN, JOURNAL_HEADER_LEN};
use serde::Deserialize;
use std::ffi::OsString;
use std::iter;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// The group of all scenarios.
pub const GROUP: &str = "ff3e::8000:1";
/// The port of all scenarios.
pub const PORT: u16 = 5004;
/// Address of the (first) server's host, without prefix length.
pub const SOURCE: &str = "fd00:6::1";
/// Address of the second server's host.
pub const SOURCE_2: &str = "fd00:6::2";
/// Address of the client's host.
pub const CLIENT: &str = "fd00:6::10";
/// One data packet on the wire, headers included.
pub const PACKET_BYTES: f64 = 1280.0;

/// A program is ready after tenths of a second; on a busy machine after seconds.
const READY: Duration = Duration::from_secs(30);

/// A key pair in minisign's formats, the secret one without password.
#[derive(Clone, Debug)]
pub struct Keys {
    /// `PREFIX.key`.
    pub secret: PathBuf,
    /// `PREFIX.pub`.
    pub public: PathBuf,
}

/// An object and its bundle.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The original.
    pub object: PathBuf,
    /// Its size.
    pub size: u64,
    /// Its BLAKE3 in hex.
    pub digest: String,
    /// `F.carousel`.
    pub bundle: PathBuf,
    /// Who signed it.
    pub keys: Keys,
}

/// The last line of `get --json`. Keys the contract adds later are ignored.
#[derive(Clone, Debug, Deserialize)]
pub struct Done {
    /// Always `done`.
    pub event: String,
    /// Bytes of the object.
    pub size: u64,
    /// Its BLAKE3 in hex.
    pub digest: String,
    /// The client's own idea of the time it took.
    pub seconds: f64,
    /// Packets that reached the socket.
    pub packets_received: u64,
    /// Gaps in the channels' sequence numbers.
    pub packets_lost: u64,
    /// Packets that carried nothing new.
    pub packets_duplicate: u64,
    /// Packets that were not the sender's.
    pub packets_rejected: u64,
    /// Source symbols of the object: the least that has to arrive.
    pub symbols_needed: u64,
    /// Symbols that arrived.
    pub symbols_received: u64,
    /// Who sent something to the group; with `--source` nobody else can.
    pub sources: Vec<Source>,
}

/// One of `get --json`'s sources.
#[derive(Clone, Debug, Deserialize)]
pub struct Source {
    /// Its address.
    pub source: String,
    /// Packets that came from it, were of our bundle by their headers, and could not be proven wrong.
    pub packets_received: u64,
    /// From the join to its first packet.
    pub first_packet_seconds: f64,
}

/// A get that ended well.
#[derive(Clone, Debug)]
pub struct Got {
    /// Time and cost as the kernel saw them.
    pub exit: Exit,
    /// What the client said.
    pub done: Done,
}

impl Got {
    /// Time from exec to exit over the ideal: needed symbols, each a full packet, at `rate` bit/s and this loss.
    pub fn over_ideal(&self, rate: f64, loss: f64) -> f64 {
        self.exit.seconds / (self.done.symbols_needed as f64 * PACKET_BYTES * 8.0 / rate / (1.0 - loss))
    }

    /// Packets received for each symbol needed.
    pub fn packets_per_symbol(&self) -> f64 {
        self.done.packets_received as f64 / self.done.symbols_needed.max(1) as f64
    }

    /// Notes the figures, with what `more` says, as a row of the test's table.
    pub fn row(&self, name: &str, more: &str) {
        figures::row(
            name,
            &[
                ("object", &format!("{} B", self.done.size)),
                ("start to exit", &format!("{:.2} s", self.exit.seconds)),
                ("packets/symbol", &format!("{:.3}", self.packets_per_symbol())),
                ("rejected", &self.done.packets_rejected),
                ("peak memory", &format!("{:.1} MiB", self.exit.peak_mib())),
                ("CPU", &format!("{:.2} s", self.exit.cpu_seconds)),
                ("more", &more),
            ],
        );
    }
}

/// Makes a key pair `NAME.key`, `NAME.pub` in a folder.
pub fn keygen(dir: &Path, name: &str) -> Keys {
    let prefix = dir.join(name);
    well(bins::run(bins::server(), args(&[&"keygen", &"--out", &prefix])), "keygen");
    Keys { secret: dir.join(format!("{name}.key")), public: dir.join(format!("{name}.pub")) }
}

/// Makes an object of `size` bytes and packs it with a fresh key; `more` are further options of `pack`.
pub fn pack(dir: &Path, size: u64, more: &[&str]) -> Packed {
    let packed = unpacked(dir, size);
    well(bins::run_line(&pack_line(&packed, more)), "pack");
    packed
}

/// The same before `pack` has run: object and keys are there, the bundle is not.
pub fn unpacked(dir: &Path, size: u64) -> Packed {
    let object = dir.join("object");
    let digest = object::write(&object, size, size).unwrap_or_else(|e| panic!("{}: {e}", object.display()));
    Packed { object, size, digest, bundle: dir.join("F.carousel"), keys: keygen(dir, "release") }
}

/// The command line that packs it.
pub fn pack_line(packed: &Packed, more: &[&str]) -> Vec<OsString> {
    let key = &packed.keys.secret;
    let mut line = args(&[&bins::server(), &"pack", &packed.object, &"--key", key, &"--out", &packed.bundle]);
    line.extend(more.iter().map(OsString::from));
    line
}

/// Starts a server on `eth0` of a host.
pub fn serve(host: &Host, packed: &Packed, rate: &str, more: &[&str]) -> Running {
    host.spawn(&serve_line(packed, rate, more))
}

/// The command line of a server.
pub fn serve_line(packed: &Packed, rate: &str, more: &[&str]) -> Vec<OsString> {
    let port = PORT.to_string();
    let mut line = args(&[&bins::server(), &"run", &packed.bundle, &"--group", &GROUP, &"--port", &port]);
    line.extend(args(&[&"--interface", &"eth0", &"--rate", &rate]));
    line.extend(more.iter().map(OsString::from));
    line
}

/// Waits until a host has sent ten data packets' worth of bytes from now on.
pub fn wait_sending(host: &Host, server: &Running) {
    let before = host.traffic("eth0").tx_bytes;
    until("the server to send", READY, || {
        assert!(server.is_alive(), "the server ended: {server}");
        host.traffic("eth0").tx_bytes > before + 10 * PACKET_BYTES as u64
    });
}

/// Waits until a client of this host has joined the group.
pub fn wait_joined(host: &Host) {
    let group: Ipv6Addr = GROUP.parse().unwrap_or(Ipv6Addr::UNSPECIFIED);
    let digits = format!("{:032x}", u128::from(group));
    let joined = || std::fs::read_to_string("/proc/thread-self/net/mcfilter6");
    until("the client to join", READY, || host.within(joined).is_ok_and(|table| table.contains(&digits)));
}

/// How many sockets of a host have joined (SOURCE, GROUP).
pub fn joined(host: &Host) -> usize {
    let digits =
        |text: &str| text.parse().map_or(String::new(), |a: Ipv6Addr| format!("{:032x}", u128::from(a)));
    let (group, source) = (digits(GROUP), digits(SOURCE));
    let table =
        host.within(|| std::fs::read_to_string("/proc/thread-self/net/mcfilter6")).unwrap_or_default();
    // Index, device, group, source, and how many sockets include it.
    let lines = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    lines
        .filter(|w| w.get(2..4) == Some(&[&group, &source]))
        .filter_map(|w| usize::from_str(w.get(4)?).ok())
        .sum()
}

/// Waits until a host has received so many bytes more than it has now.
pub fn wait_received(host: &Host, client: &Running, bytes: u64, limit: Duration) {
    let before = host.traffic("eth0").rx_bytes;
    until("a part of the object to arrive", limit, || {
        assert!(client.is_alive(), "the client ended: {client}");
        host.traffic("eth0").rx_bytes > before + bytes
    });
}

/// Waits until the log of a get's work tells of so many symbols: with those the next client goes on, whatever ends
/// this one. The log of a file is `.NAME.carousel-log`, beside it.
pub fn wait_logged(client: &Running, log: &Path, symbols: u64, limit: Duration) {
    let len = JOURNAL_HEADER_LEN as u64 + symbols * ENTRY_LEN as u64;
    until("the client's log to tell of what came", limit, || {
        assert!(client.is_alive(), "the client ended: {client}");
        log.metadata().is_ok_and(|log| log.len() >= len)
    });
}

/// Starts a get on `eth0` of a host.
pub fn get(host: &Host, sources: &[&str], packed: &Packed, out: &Path, more: &[&str]) -> Running {
    host.spawn(&get_line(sources, packed, out, more))
}

/// Starts a get that gets no more than so many packets, and waits until they came and it knows of what. Then it stands, for
/// as long as a client waits in silence: however slow the machine is, what a test does next is neither too early nor too
/// late. `Host::let_in` lets it go on.
pub fn get_part(host: &Host, packed: &Packed, out: &Path, packets: u64, more: &[&str]) -> Running {
    let limit = Duration::from_secs(60);
    host.let_in("eth0", Some(0));
    let client = get(host, &[SOURCE], packed, out, more);
    wait_joined(host);
    host.let_in("eth0", Some(packets as u32));
    wait_received(host, &client, packets * PACKET_BYTES as u64, limit);
    // There is a manifest among any 1,536 packets, unless the server had no CPU when it was due: then some more.
    let mut asked = Instant::now();
    until("the client to know what comes", limit, || {
        if asked.elapsed() > Duration::from_secs(2) {
            host.let_in("eth0", Some(512));
            asked = Instant::now();
        }
        client.stdout().contains(r#""event":"started""#)
    });
    client
}

/// Starts a get on each of the hosts, each to its own file, as one program: it ends when all have ended, with exit
/// code 0 if all of them did, and its CPU time is the sum of theirs. (A program of the lab costs the test process a
/// thread that looks at it every 10 ms, and a thousand of those would be the load.)
pub fn get_each(lab: &Lab, gets: &[(&Host, PathBuf)], packed: &Packed, more: &[&str]) -> Running {
    let Some((first, _)) = gets.first() else { panic!("nothing to get") };
    let mut words = Vec::new();
    let mut each = 0;
    for (host, out) in gets {
        let line = get_line(&[SOURCE], packed, out, more);
        each = line.len() + 1;
        for word in iter::once(OsString::from(format!("--net={}", host.path()))).chain(line) {
            words.extend_from_slice(word.as_bytes());
            words.push(0);
        }
    }
    let list = lab.file("gets");
    std::fs::write(&list, words).unwrap_or_else(|e| panic!("{}: {e}", list.display()));
    let (each, all) = (each.to_string(), gets.len().to_string());
    first.spawn(&args(&[&"xargs", &"-0", &"-n", &each, &"-P", &all, &"-a", &list, &"nsenter"]))
}

/// The command line of a get. It trusts the packer's key unless `more` says otherwise.
pub fn get_line(sources: &[&str], packed: &Packed, out: &Path, more: &[&str]) -> Vec<OsString> {
    let port = PORT.to_string();
    let mut line =
        args(&[&bins::client(), &"get", &"--group", &GROUP, &"--port", &port, &"--interface", &"eth0"]);
    for source in sources {
        line.extend(args(&[&"--source", source]));
    }
    line.extend(args(&[&"--out", &out, &"--json"]));
    if !more.iter().any(|word| ["--digest", "--insecure", "--keys"].contains(word)) {
        line.extend(args(&[&"--key", &packed.keys.public]));
    }
    if !more.contains(&"--timeout") {
        line.extend(args(&[&"--timeout", &"20s"]));
    }
    line.extend(more.iter().map(OsString::from));
    line
}

/// Waits for a get and checks that it promised and delivered the object, whole.
pub fn arrive(client: &Running, packed: &Packed, out: &Path, limit: Duration) -> Got {
    let exit = client.finish(limit);
    assert_eq!(exit.code(), 0, "{client}");
    let text = client.stdout();
    let last = text.lines().last().unwrap_or_default();
    let done: Done =
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{e} in the last line of {client}"));
    assert_eq!((done.event.as_str(), done.size, &done.digest), ("done", packed.size, &packed.digest));
    let digest = object::digest(out).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
    assert_eq!(digest, packed.digest, "the file differs from the object");
    Got { exit, done }
}

/// Two hosts and a cable of 1,280 bytes between them: the server's and the client's.
pub fn pair(lab: &Lab) -> (Host, Host) {
    let (s, c) = (lab.host("s"), lab.host("c"));
    lab.link(&s, "eth0", &format!("{SOURCE}/64"), &c, "eth0", &format!("{CLIENT}/64"), 1280);
    (s, c)
}

/// A moment in `[0, limit)` that differs from run to run.
pub fn random_moment(limit: Duration) -> Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let hash = blake3::hash(&now.as_nanos().to_le_bytes());
    limit.mul_f64(f64::from(hash.as_bytes()[0]) / 256.0)
}

/// A command line of mixed words and paths.
pub fn args(words: &[&dyn AsOsString]) -> Vec<OsString> {
    words.iter().map(|word| word.os()).collect()
}

/// What `args` takes: text and paths side by side.
pub trait AsOsString {
    /// The word as the kernel gets it.
    fn os(&self) -> OsString;
}

impl<T: AsRef<std::ffi::OsStr> + ?Sized> AsOsString for T {
    fn os(&self) -> OsString {
        self.as_ref().to_owned()
    }
}

fn well(output: std::process::Output, what: &str) {
    assert!(
        output.status.success(),
        "{what}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
