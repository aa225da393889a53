//! `demo`: the whole thing on one machine, with the real programs. Packs a file, sends it, says in DNS where, and
//! lets three clients find it and join late that lose packets, in a private network that vanishes with the process.

use crate::cli;
use crate::{nameserver, namespace};
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::units::{show_rate, show_seconds, show_size};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader, IsTerminal};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: usize = 3;
/// Its name in DNS.
const SERVICE: &str = "demo._carousel._udp.example";
/// One round without loss takes about so long, unless --rate says otherwise.
const ROUND_SECONDS: f64 = 6.0;
/// Packets, headers and hashes make this much of the file's bytes.
const OVERHEAD: f64 = 1.08;

/// `demo`.
pub fn demo(arguments: &cli::Demo) -> Result<(), Failure> {
    let stage = Stage::find()?;
    let file = arguments.file.clone().unwrap_or_else(|| stage.server.clone());
    let metadata = std::fs::metadata(&file).map_err(|e| Failure::reading(&file, &e))?;
    if metadata.is_dir() {
        return Err(Failure::usage(format!(
            "{}: is a folder; the demonstration takes a file",
            file.display()
        )));
    }
    let size = metadata.len();
    let fitting = (size as f64 * 8.0 * OVERHEAD / ROUND_SECONDS).clamp(500e3, 200e6);
    let rate = arguments.rate.unwrap_or(fitting.round() as u64);
    println!("carousel demo: one file, one server, {CLIENTS} clients. {}\n", stage.place);

    println!("1. Pack {} ({}) into a signed bundle with repair symbols.", file.display(), show_size(size));
    let key = stage.path("demo");
    let bundle = stage.path("demo.carousel");
    stage.tool(&["keygen", "--out", &key])?;
    stage.tool(&["pack", &text(&file), "--key", &format!("{key}.key"), "--out", &bundle])?;

    let at_best = size as f64 * 8.0 * OVERHEAD / rate as f64;
    println!("2. Send it round and round at {}. The server listens to nothing:", show_rate(rate as f64));
    println!("   no client ever sends it a packet. One round takes about {}.", show_seconds(at_best));
    let config = stage.config(rate)?;
    let server = stage.serve(&config)?;

    println!("3. Say in DNS where it is: {SERVICE}");
    let nameserver = nameserver::start(&stage.tool(&["zone", "--config", &config])?)
        .map_err(|e| Failure::new(Outcome::Failed, format!("no nameserver can be started: {}", plain(&e))))?;

    println!("4. Three clients, who know that name and the public key, join late, at different moments.");
    println!(
        "   Each loses {} % of the packets, each different ones; every packet is checked as it arrives.\n",
        arguments.loss
    );
    let clients = stage.receive(&key, nameserver, at_best, arguments.loss)?;
    drop(server);

    println!("   client   joined after   took       packets lost   file");
    let expected = digest(&file)?;
    for (index, client) in clients.iter().enumerate() {
        let same = digest(&client.path)? == expected;
        println!(
            "   {}        {:<12}   {:<8}   {:<12}   {}",
            index + 1,
            show_seconds(client.joined),
            show_seconds(client.seconds),
            format!("{:.1} %", client.lost * 100.0),
            if same { "identical" } else { "DIFFERENT" }
        );
        if !same {
            return Err(Failure::untrusted(format!(
                "client {} got another file: please report this",
                index + 1
            )));
        }
    }
    println!("\n   BLAKE3 {}", expected.to_hex());
    let limit = at_best / (1.0 - f64::from(arguments.loss) / 100.0);
    println!(
        "\nWith {} % loss the limit set by physics is about {}. More clients would not",
        arguments.loss,
        show_seconds(limit)
    );
    println!("cost the server one packet more. For two real hosts see the quick start in README.md.");
    Ok(())
}

/// What one client reported, and what we saw.
struct Arrived {
    path: PathBuf,
    joined: f64,
    seconds: f64,
    lost: f64,
}

/// Where the demonstration takes place.
struct Stage {
    folder: tempfile::TempDir,
    server: PathBuf,
    client: PathBuf,
    interface: String,
    source: Ipv6Addr,
    group: &'static str,
    /// In words.
    place: String,
    stop: Arc<AtomicBool>,
}

/// A child that does not outlive this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

impl Stage {
    fn find() -> Result<Self, Failure> {
        let failed =
            |what: &str, e: &std::io::Error| Failure::new(Outcome::Failed, format!("{what}: {}", plain(e)));
        let server = std::env::current_exe().map_err(|e| failed("this program cannot find itself", &e))?;
        let client = server.with_file_name("carousel-client");
        if !client.exists() {
            return Err(Failure::usage(format!(
                "{} is missing: build both programs with `cargo build --release`",
                client.display()
            )));
        }
        // Before anything else: a process with a second thread cannot change its namespaces.
        let (interface, source, group, place) = match namespace::enter() {
            Ok(()) => (
                "lo".to_owned(),
                Ipv6Addr::LOCALHOST,
                "ff3e::8000:1",
                "It all happens in a private\nnetwork inside this machine, with real source-specific multicast.".to_owned(),
            ),
            Err(error) => {
                let (interface, source) = own_interface().ok_or_else(|| {
                    Failure::new(
                        Outcome::TryAgain,
                        format!(
                            "a private network is forbidden here ({}) and no interface has IPv6: run it as root, \
                             or allow user namespaces",
                            plain(&error)
                        ),
                    )
                })?;
                let place = format!(
                    "A private network is\nforbidden here ({}), so it uses {interface} with an interface-local \
                     group:\nno packet leaves this machine.",
                    plain(&error)
                );
                (interface, source, "ff31::8000:1", place)
            }
        };
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [nix::libc::SIGTERM, nix::libc::SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&stop))
                .map_err(|e| failed("signals cannot be caught", &e))?;
        }
        let folder = tempfile::Builder::new()
            .prefix("carousel-demo-")
            .tempdir()
            .map_err(|e| Failure::storage(format!("no temporary folder: {}", plain(&e))))?;
        Ok(Self { folder, server, client, interface, source, group, place, stop })
    }

    fn path(&self, name: &str) -> String {
        text(&self.folder.path().join(name))
    }

    /// Runs this program with other arguments, to its end. What it printed.
    fn tool(&self, arguments: &[&str]) -> Result<String, Failure> {
        let output = Command::new(&self.server)
            .args(arguments)
            .output()
            .map_err(|e| cannot_start(&self.server, &e))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        Err(Failure::new(Outcome::Failed, message.trim().trim_start_matches("carousel-server: ")))
    }

    /// What the server is to send, and what DNS says of it.
    fn config(&self, rate: u64) -> Result<String, Failure> {
        let path = self.path("demo.toml");
        let Self { interface, source, group, .. } = self;
        let text = format!(
            "interface = \"{interface}\"\nport = 5004\nsource = \"{source}\"\n\n\
             [[session]]\nservice = \"{SERVICE}\"\nbundle = \"demo.carousel\"\n\
             groups = [\"{group}\"]\nrates = [\"{rate}\"]\n\n\
             [[server]]\nhost = \"server.example\"\naddress = \"{source}\"\n"
        );
        std::fs::write(&path, text).map_err(|e| Failure::writing(Path::new(&path), &e))?;
        Ok(path)
    }

    fn serve(&self, config: &str) -> Result<Running, Failure> {
        Command::new(&self.server)
            .args(["run", "--config", config])
            .stderr(Stdio::null())
            .spawn()
            .map(Running)
            .map_err(|e| cannot_start(&self.server, &e))
    }

    /// Starts the clients one after the other while the server is under way, and waits for all of them.
    fn receive(
        &self,
        key: &str,
        nameserver: SocketAddr,
        at_best: f64,
        loss: u8,
    ) -> Result<Vec<Arrived>, Failure> {
        let began = Instant::now();
        let bars = MultiProgress::with_draw_target(if std::io::stdout().is_terminal() {
            ProgressDrawTarget::stdout_with_hz(8)
        } else {
            ProgressDrawTarget::hidden()
        });
        let mut clients = Vec::new();
        let mut readers = Vec::new();
        for index in 0..CLIENTS {
            let join_at = Duration::from_secs_f64(at_best * (0.21 + 0.27 * index as f64));
            while began.elapsed() < join_at {
                self.look_out()?;
                std::thread::sleep(Duration::from_millis(20));
            }
            let joined = began.elapsed().as_secs_f64();
            let path = self.folder.path().join(format!("client-{}", index + 1));
            let mut child = Command::new(&self.client)
                .args(["get", SERVICE, "--nameserver", &nameserver.to_string()])
                .args(["--interface", &self.interface, "--key", &format!("{key}.pub"), "--out", &text(&path)])
                .args(["--json", "--quiet", "--timeout", "20s", "--test-loss", &loss.to_string()])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|e| cannot_start(&self.client, &e))?;
            let bar = bars.add(progress_bar(index + 1));
            if !std::io::stdout().is_terminal() {
                println!("   client {} joins after {}", index + 1, show_seconds(joined));
            }
            let output = child.stdout.take();
            readers.push(std::thread::spawn(move || follow(output, &bar)));
            clients.push((Running(child), path, joined));
        }
        let mut arrived = Vec::new();
        for (index, ((mut client, path, joined), reader)) in clients.into_iter().zip(readers).enumerate() {
            let status = loop {
                self.look_out()?;
                match client.0.try_wait() {
                    Ok(Some(status)) => break status,
                    Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                    Err(e) => return Err(cannot_start(&self.client, &e)),
                }
            };
            let done = reader.join().ok().flatten().filter(|_| status.success());
            let Some(done) = done else {
                let mut message = String::new();
                if let Some(mut stderr) = client.0.stderr.take() {
                    let _ = std::io::Read::read_to_string(&mut stderr, &mut message);
                }
                let message = message.lines().last().unwrap_or("no message").to_owned();
                return Err(Failure::new(Outcome::Failed, format!("client {}: {message}", index + 1)));
            };
            let number = |name: &str| done[name].as_f64().unwrap_or(0.0);
            let (received, lost) = (number("packets_received"), number("packets_lost"));
            let lost = lost / (received + lost).max(1.0);
            arrived.push(Arrived { path, joined, seconds: number("seconds"), lost });
        }
        let _ = bars.clear();
        if !std::io::stdout().is_terminal() {
            println!();
        }
        Ok(arrived)
    }

    fn look_out(&self) -> Result<(), Failure> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Failure::new(Outcome::Failed, "interrupted; nothing was left behind"));
        }
        Ok(())
    }
}

/// Reads a client's JSON lines, moves its bar, and returns the last one.
fn follow(output: Option<std::process::ChildStdout>, bar: &ProgressBar) -> Option<Value> {
    let mut done = None;
    for line in BufReader::new(output?).lines().map_while(Result::ok) {
        let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
        match event["event"].as_str() {
            Some("progress") => {
                let share = event["symbols_received"].as_f64()? / event["symbols_needed"].as_f64()?.max(1.0);
                bar.set_position((share * 100.0) as u64);
            }
            Some("done") => {
                bar.set_position(100);
                bar.finish();
                done = Some(event);
            }
            _ => {}
        }
    }
    done
}

fn progress_bar(client: usize) -> ProgressBar {
    let bar = ProgressBar::new(100);
    if let Ok(style) = ProgressStyle::with_template("   {prefix} {bar:40} {percent:>3} %") {
        bar.set_style(style);
    }
    bar.set_prefix(format!("client {client}"));
    bar
}

/// An interface that carries multicast, and an IPv6 address on it; one that is not link-local, if possible.
fn own_interface() -> Option<(String, Ipv6Addr)> {
    let mut found: Vec<(String, Ipv6Addr)> = getifaddrs()
        .ok()?
        .filter(|i| i.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_MULTICAST))
        .filter(|i| !i.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|i| Some((i.interface_name, i.address?.as_sockaddr_in6()?.ip())))
        .collect();
    found.sort_by_key(|(_, address)| address.is_unicast_link_local());
    found.into_iter().next()
}

fn digest(path: &Path) -> Result<blake3::Hash, Failure> {
    let failed = |e: std::io::Error| Failure::reading(path, &e);
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path).map_err(failed)?).map_err(failed)?;
    Ok(hasher.finalize())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn cannot_start(program: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Outcome::Failed, format!("{}: cannot be started: {}", program.display(), plain(error)))
}
