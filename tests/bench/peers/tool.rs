//! The contenders and how each is started. Why these options: `tests/bench/README.md`.

use crate::net::{Net, SENDER};
use carousel_tests::lab::{Host, Running, until};
use carousel_tests::scene::{self, Packed, SOURCE, args};
use carousel_tests::{bins, object};
use clap::ValueEnum;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The group of our second tier.
const UPPER_GROUP: &str = "ff3e::8000:2";
/// Our tiers for receivers behind links of different rates, in bit/s.
pub const TIERS: [&str; 2] = ["16M", "80M"];
/// Of the others' sockets, where they let us choose: as much as the kernel gives.
const BUFFER: &str = "4194304";

/// A way to bring a file to many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tool {
    /// What all this is about.
    Carousel,
    /// UFTP: passes, and NAKs between them.
    Uftp,
    /// UDPcast: slices, each acknowledged by everybody.
    Udpcast,
    /// NORM: NACKs, answered with parity.
    Norm,
    /// NORM without any feedback: file and parity again and again.
    NormLoop,
    /// Our own packets without repair symbols: the file in a loop, as iotupd and its kin do it.
    Uncoded,
    /// nginx and curl: everybody gets a copy of his own.
    Unicast,
}

/// A file as all of them get it.
pub struct Load {
    /// The file, its digest, and our bundle.
    pub packed: Packed,
    /// The bundle without repair symbols.
    pub uncoded: Packed,
}

/// What a run is about.
pub struct Setting<'a> {
    /// What is sent.
    pub load: &'a Load,
    /// How many receive it.
    pub receivers: usize,
    /// Told to the sender, in Mbit/s.
    pub rate: u32,
    /// Ours only, instead of the rate: the first receiver takes the upper tier, the others the lower one.
    pub tiers: bool,
}

/// A receiver that was started.
pub struct Receiver {
    /// Its program.
    pub running: Running,
    /// When it was started.
    pub started: SystemTime,
    out: PathBuf,
    /// Where a daemon says that it has the file: it does not end.
    status: Option<PathBuf>,
}

impl Load {
    /// Makes and packs a file in a folder of the lab.
    pub fn new(net: &Net, name: &str, size: u64) -> Self {
        let mtu = crate::net::MTU.to_string();
        let packed = scene::pack(&net.lab.fresh_dir(name), size, &["--mtu", &mtu]);
        let uncoded = Packed { bundle: packed.bundle.with_file_name("uncoded.carousel"), ..packed.clone() };
        let line = scene::pack_line(&uncoded, &["--mtu", &mtu, "--repair", "0"]);
        let out = bins::run_line(&line);
        assert!(out.status.success(), "pack --repair 0: {}", String::from_utf8_lossy(&out.stderr));
        Self { packed, uncoded }
    }

    /// Bytes of the file.
    pub fn size(&self) -> f64 {
        self.packed.size as f64
    }

    /// Bytes of the packets that the file needs at least, each with its IPv6 header.
    pub fn packet_bytes(&self) -> f64 {
        let line = args(&[&bins::server(), &"inspect", &self.packed.bundle, &"--json"]);
        let said: serde_json::Value =
            serde_json::from_slice(&bins::run_line(&line).stdout).unwrap_or_default();
        let needed = said["symbols_needed"].as_f64().unwrap_or_else(|| panic!("inspect says {said}"));
        needed * f64::from(crate::net::MTU)
    }
}

impl Tool {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Carousel => "carousel",
            Self::Uftp => "UFTP",
            Self::Udpcast => "UDPcast",
            Self::Norm => "NORM",
            Self::NormLoop => "NORM, silent receivers",
            Self::Uncoded => "uncoded loop",
            Self::Unicast => "nginx, unicast",
        }
    }

    /// In every chart; the colour-blind can tell them apart.
    pub fn colour(self) -> &'static str {
        match self {
            Self::Carousel => "#0072b2",
            Self::Uftp => "#d55e00",
            Self::Udpcast => "#e69f00",
            Self::Norm => "#009e73",
            Self::NormLoop => "#cc79a7",
            Self::Uncoded => "#56b4e9",
            Self::Unicast => "#000000",
        }
    }

    /// Whether it is there before its receivers; the others begin with those that wait.
    pub fn is_server(self) -> bool {
        matches!(self, Self::Carousel | Self::Uncoded | Self::Unicast)
    }

    /// Starts the sender.
    pub fn send(self, net: &Net, setting: &Setting) -> Running {
        let (file, rate, receivers) = (&setting.load.packed.object, setting.rate, setting.receivers);
        let line = match self {
            Self::Carousel if setting.tiers => {
                let upper = format!("{UPPER_GROUP}@{}", TIERS[1]);
                scene::serve_line(&setting.load.packed, TIERS[0], &["--group", &upper])
            }
            Self::Carousel => scene::serve_line(&setting.load.packed, &format!("{rate}M"), &[]),
            Self::Uncoded => scene::serve_line(&setting.load.uncoded, &format!("{rate}M"), &[]),
            Self::Uftp => {
                let line = format!(
                    "uftp -B {BUFFER} -I eth0 -M 230.4.4.1 -P 230.5.5.7 -U 0x00000002 -R {rate}000 -r 0.1:0.01:15"
                );
                words(&line, file)
            }
            Self::Udpcast => {
                let line = format!(
                    "udp-sender --interface eth0 --nokbd --nopointopoint --full-duplex --max-bitrate {rate}m \
                     --mcast-data-address 239.9.9.9 --min-receivers {receivers} --min-wait 2 \
                     --rexmit-hello-interval 500 --file"
                );
                words(&line, file)
            }
            Self::Norm | Self::NormLoop => {
                let what = if self == Self::Norm { "send" } else { "loop" };
                let norm = net.lab.file("norm");
                let (rate, receivers) = (format!("{rate}e6"), receivers.to_string());
                args(&[&norm, &what, &"239.7.7.7", &"6003", &"eth0", &rate, &receivers, file])
            }
            Self::Unicast => words("nginx -e stderr -c", &nginx_conf(file)),
        };
        net.s.spawn(&line)
    }

    /// Waits until a server serves.
    pub fn wait_serving(self, net: &Net, sender: &Running) {
        match self {
            Self::Unicast => wait_socket(&net.s, "tcp", sender),
            _ => scene::wait_sending(&net.s, sender),
        }
    }

    /// Starts the `n`-th receiver, which puts the file somewhere below `dir`.
    pub fn receive(self, net: &Net, setting: &Setting, n: usize, dir: &Path) -> Receiver {
        let host = &net.r[n];
        let folder = dir.join(format!("r{n}"));
        fs::create_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let out = folder.join("object"); // UFTP calls it as it was called
        let status = folder.join("status");
        let line = match self {
            Self::Carousel if setting.tiers => {
                let tier = if n == 0 { "1" } else { "0" };
                let more = ["--group", UPPER_GROUP, "--tier", tier];
                scene::get_line(&[SOURCE], &setting.load.packed, &out, &more)
            }
            Self::Carousel => scene::get_line(&[SOURCE], &setting.load.packed, &out, &[]),
            Self::Uncoded => scene::get_line(&[SOURCE], &setting.load.uncoded, &out, &[]),
            Self::Uftp => args(&[
                &"uftpd",
                &"-d",
                &"-q",
                &"-B",
                &BUFFER,
                &"-I",
                &"eth0",
                &"-M",
                &"230.4.4.1",
                &"-D",
                &folder,
                &"-F",
                &status,
            ]),
            Self::Udpcast => words("udp-receiver --interface eth0 --nokbd --file", &out),
            Self::Norm | Self::NormLoop => {
                let what = if self == Self::Norm { "receive" } else { "listen" };
                args(&[&net.lab.file("norm"), &what, &"239.7.7.7", &"6003", &"eth0", &out])
            }
            Self::Unicast => {
                args(&[&"curl", &"-sS", &"--fail", &"-o", &out, &format!("http://{SENDER}/object")])
            }
        };
        let started = SystemTime::now();
        let running = host.spawn(&line);
        Receiver { running, started, out, status: (self == Self::Uftp).then_some(status) }
    }

    /// Waits until a receiver listens.
    pub fn wait_listening(self, host: &Host, receiver: &Receiver) {
        wait_socket(host, "udp", &receiver.running);
    }
}

impl Receiver {
    /// Whether there is nothing to wait for any more.
    pub fn has_ended(&self) -> bool {
        let reported =
            |status: &PathBuf| fs::read_to_string(status).is_ok_and(|text| text.contains("RESULT;"));
        !self.running.is_alive() || self.status.as_ref().is_some_and(reported)
    }

    /// Since when it has the whole file, if it has: what the program says does not count. No program can set this time
    /// of a file, and a rename does.
    pub fn whole_since(&self, load: &Load) -> Option<SystemTime> {
        let about = fs::metadata(&self.out).ok()?;
        let whole = object::digest(&self.out).is_ok_and(|digest| digest == load.packed.digest);
        let since = Duration::new(about.ctime().cast_unsigned(), about.ctime_nsec() as u32);
        whole.then(|| UNIX_EPOCH + since)
    }
}

/// A line of words with a path behind it.
fn words(line: &str, path: &Path) -> Vec<std::ffi::OsString> {
    line.split_ascii_whitespace().map(Into::into).chain([path.into()]).collect()
}

/// Waits until some program of a host has a socket: `/proc/net/PROTOCOL` has a line for each below its heading.
fn wait_socket(host: &Host, protocol: &str, program: &Running) {
    let table = format!("/proc/thread-self/net/{protocol}");
    until("a socket to listen", Duration::from_secs(10), || {
        assert!(program.is_alive(), "it ended: {program}");
        host.within(|| fs::read_to_string(&table)).is_ok_and(|text| text.lines().count() > 1)
    });
}

/// One process that serves the file's folder and leaves nothing on the machine.
fn nginx_conf(file: &Path) -> PathBuf {
    let dir = file.parent().unwrap_or(file);
    let (conf, dir) = (dir.join("nginx.conf"), dir.display());
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/nginx-{kind};"))
        .join(" ");
    let text = format!(
        "daemon off; master_process off; user root; pid {dir}/nginx.pid; error_log stderr;
events {{ worker_connections 256; }}
http {{ access_log off; sendfile on; tcp_nopush on; {temp}
  server {{ listen {SENDER}:80; root {dir}; }} }}\n"
    );
    fs::write(&conf, text).unwrap_or_else(|e| panic!("{}: {e}", conf.display()));
    conf
}
