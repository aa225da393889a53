//! The lab proves itself: what the scenarios rely on, shown with sockets and programs of its own.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{self, Capture, Host, Lab, Loss, Running, until};
use carousel_tests::{bins, figures};
use nix::sys::signal::Signal;
use std::fs;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const GROUP: SocketAddrV6 = SocketAddrV6::new(Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 0, 0x8000, 1), 5004, 0, 0);

fn sender(host: &Host, source: &str) -> UdpSocket {
    let source: Ipv6Addr = source.parse().unwrap();
    host.within(|| {
        let socket = UdpSocket::bind(SocketAddr::from((source, 0))).unwrap();
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        socket2::SockRef::from(&socket).set_multicast_if_v6(index).unwrap();
        socket.connect(GROUP).unwrap();
        socket
    })
}

fn join(host: &Host, source: &str) -> UdpSocket {
    let socket = lab::join(host, "eth0", source.parse().unwrap(), GROUP);
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

fn drain(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec())).collect()
}

#[test]
fn source_specific_join_hears_only_its_source() {
    let Some(lab) = Lab::enter("source_specific_join_hears_only_its_source") else { return };
    let (s, x, c) = (lab.host("s"), lab.host("x"), lab.host("c"));
    let _switch = lab.lan(&[(&s, "fd00:6::1/64"), (&x, "fd00:6::66/64"), (&c, "fd00:6::10/64")], 1280);
    c.loss("eth0", Loss::PerMille(0));
    let before = c.snmp6().get("Udp6InDatagrams");
    let socket = join(&c, "fd00:6::1");
    let (honest, foreign) = (sender(&s, "fd00:6::1"), sender(&x, "fd00:6::66"));
    for _ in 0..50 {
        foreign.send(b"foreign").unwrap();
        honest.send(b"honest").unwrap();
    }
    until("all of them to reach the host", Duration::from_secs(5), || c.loss_count("eth0").seen >= 100);
    let heard = drain(&socket);
    assert_eq!(heard.len(), 50);
    assert!(heard.iter().all(|packet| packet == b"honest"));
    assert_eq!(c.loss_count("eth0").seen, 100, "the foreign packets did reach the host");
    assert_eq!(c.snmp6().get("Udp6InDatagrams") - before, 50, "and none of them a socket");
}

#[test]
fn random_loss_is_random_and_exact_loss_exact() {
    let Some(lab) = Lab::enter("random_loss_is_random_and_exact_loss_exact") else { return };
    let (s, c) = (lab.host("s"), lab.host("c"));
    lab.link(&s, "eth0", "fd00:6::1/64", &c, "eth0", "fd00:6::2/64", 1280);
    let out = sender(&s, "fd00:6::1");
    for (loss, low, high) in [(Loss::PerMille(100), 850, 1150), (Loss::EveryNth(10), 1000, 1000)] {
        c.loss("eth0", loss);
        for n in 0..10_000 {
            out.send(&[0; 100]).unwrap();
            if n % 100 == 99 {
                // On a busy machine the kernel delivers when it gets a CPU, and lets only a thousand packets wait.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        until("all of them", Duration::from_secs(5), || c.loss_count("eth0").seen == 10_000);
        let count = c.loss_count("eth0");
        // Five standard deviations (30 each) of the random one.
        assert!((low..=high).contains(&count.lost), "{loss:?}: {count:?}");
    }
}

#[test]
fn offloaded_trains_meet_the_loss_as_single_packets() {
    let Some(lab) = Lab::enter("offloaded_trains_meet_the_loss_as_single_packets") else { return };
    let (s, c) = (lab.host("s"), lab.host("c"));
    lab.link(&s, "eth0", "fd00:6::1/64", &c, "eth0", "fd00:6::2/64", 1280);
    c.loss("eth0", Loss::PerMille(0));
    let before = c.traffic("eth0").rx_packets;
    let out = sender(&s, "fd00:6::1");
    nix::sys::socket::setsockopt(&out, nix::sys::socket::sockopt::UdpGsoSegment, &1232).unwrap();
    out.send(&vec![7; 1232 * 40]).unwrap();
    until("forty packets", Duration::from_secs(5), || c.loss_count("eth0").seen == 40);
    // The same with a receiving thread of its own, which is allowed to merge packets.
    c.bill_apart("eth0");
    out.send(&vec![7; 1232 * 40]).unwrap();
    until("the other 40", Duration::from_secs(5), || c.loss_count("eth0").seen == 80);
    assert!(c.traffic("eth0").rx_packets - before >= 40);
    assert_eq!((s.snmp6().fragments(), c.snmp6().fragments()), (0, 0));
}

#[test]
fn too_large_a_datagram_shows_in_the_fragment_counters() {
    let Some(lab) = Lab::enter("too_large_a_datagram_shows_in_the_fragment_counters") else { return };
    let (s, c) = (lab.host("s"), lab.host("c"));
    lab.link(&s, "eth0", "fd00:6::1/64", &c, "eth0", "fd00:6::2/64", 1280);
    sender(&s, "fd00:6::1").send(&[0; 1233]).unwrap();
    assert!(s.snmp6().fragments() > 0 && s.snmp6().get("Ip6FragCreates") == 2);
}

#[test]
fn programs_are_measured() {
    let Some(lab) = Lab::enter("programs_are_measured") else { return };
    let host = lab.host("h");
    let dd = host.run(&["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=40"]).exit;
    assert!(dd.status.success() && dd.cpu_seconds > 0.0);
    assert!((64 << 20..80 << 20).contains(&dd.peak_rss), "{dd:?}");
    // A small program must not be billed for our own size: make this process large first.
    let ballast = std::hint::black_box(vec![1_u8; 100 << 20]);
    // A second: who looks at it may have to wait for a CPU.
    let sleep = host.run(&["sleep", "1"]).exit;
    assert!(sleep.peak_rss < 20 << 20 && sleep.peak_rss > 0, "{sleep:?} beside {}", ballast.len());
    let orphans = host.run(&["sh", "-c", "sleep 1000 & readlink /proc/self/ns/net"]);
    until("its orphan to be gone", Duration::from_secs(5), || {
        holders(&[orphans.stdout.trim().to_owned()]) == 0
    });
    let sleep = host.spawn(&["sleep", "100"]);
    sleep.kill(Signal::SIGTERM);
    assert_eq!(sleep.finish(Duration::from_secs(5)).code(), -15);
}

/// Processes inside one of these network namespaces, given as `/proc/PID/ns/net` shows them.
fn holders(nets: &[String]) -> usize {
    let inside = |process: &fs::DirEntry| {
        let net = fs::read_link(process.path().join("ns/net")).unwrap_or_default();
        nets.iter().any(|n| net.as_os_str() == &**n)
    };
    fs::read_dir("/proc").unwrap().flatten().filter(inside).count()
}

#[test]
fn the_forger_copies_what_its_host_sends() {
    let Some(lab) = Lab::enter("the_forger_copies_what_its_host_sends") else { return };
    let (s, c) = (lab.host("s"), lab.host("c"));
    lab.link(&s, "eth0", "fd00:6::1/64", &c, "eth0", "fd00:6::2/64", 1280);
    let socket = join(&c, "fd00:6::1");
    let line =
        "--interface eth0 --source fd00:6::1 --own fd00:6::1 --group ff3e::8000:1 --port 5004 --lie byte";
    let forger = [env!("CARGO_BIN_EXE_forger")].into_iter().chain(line.split(' '));
    let forger = s.spawn(&forger.chain(["--rate", "10e6", "--templates", "20"]).collect::<Vec<_>>());
    let out = sender(&s, "fd00:6::1");
    until("the forger to have recorded", Duration::from_secs(10), || {
        out.send(&[0x55; 1232]).unwrap();
        forger.stdout().contains("READY 20\n")
    });
    let mut buffer = [0; 2048];
    until("a forged packet", Duration::from_secs(5), || {
        let n = socket.recv(&mut buffer).unwrap_or(0);
        n == 1232 && buffer[..n].iter().filter(|&&byte| byte != 0x55).count() == 1
    });
}

#[test]
fn two_hundred_hosts_are_cheap() {
    let Some(lab) = Lab::enter("two_hundred_hosts_are_cheap") else { return };
    let began = Instant::now();
    let hosts: Vec<Host> = (0..200).map(|i| lab.host(&format!("h{i}"))).collect();
    let sleeps: Vec<Running> = hosts.iter().map(|host| host.spawn(&["sleep", "1000"])).collect();
    let raised = began.elapsed();
    let (began, cpu) = (Instant::now(), own_cpu());
    // Not readiness: the span that is measured.
    std::thread::sleep(Duration::from_secs(3));
    let share = (own_cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    figures::row(
        "200 hosts with a program each",
        &[("raised in", &format!("{raised:.1?}")), ("CPU to watch them", &format!("{:.1} %", share * 100.0))],
    );
    assert!(raised < Duration::from_secs(60), "{raised:?}"); // half a second where there is nothing else to do
    assert!(share < 0.06, "{share}");
    for sleep in sleeps {
        sleep.kill(Signal::SIGTERM);
        let exit = sleep.finish(Duration::from_secs(5));
        assert!(exit.code() == -15 && exit.peak_rss > 0, "{exit:?}");
    }
}

/// What this process has used so far.
fn own_cpu() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}

/// Not a test: it is started in a process of its own, under a low limit of open files, to be ended as
/// `CAROUSEL_VICTIM` says, or from outside.
#[test]
#[ignore = "run by the tests about its end"]
fn victim() {
    let Some(lab) = Lab::enter("victim") else { return };
    let (s, c) = (lab.host("s"), lab.host("c"));
    lab.link(&s, "eth0", "fd00:6::1/64", &c, "eth0", "fd00:6::2/64", 1280);
    c.loss("eth0", Loss::PerMille(1));
    // Not in a host, as `pack` is not. When asked to end it writes into the folder instead, until it is killed.
    let outside = lab.file("outside");
    let write = "exec 2>/dev/null; trap 'while : >$0.$((n += 1)); do :; done' TERM; echo $$ >$0; while :; do sleep 1; done";
    let line = ["sh".into(), "-c".into(), write.into(), outside.clone().into_os_string()];
    std::thread::spawn(move || bins::run_line(&line));
    let running = [
        s.spawn(&["sleep", "1000"]),
        c.spawn(&["sh", "-c", "sleep 1000; true"]),
        c.spawn(&["strace", "-f", "-o", "/dev/null", "sleep", "1000"]),
    ];
    for program in &running {
        println!("PID {}", program.pid());
    }
    let nets = [&s, &c].map(|host| host.tool("readlink /proc/self/ns/net").trim().to_owned());
    println!("NET {}\nNET {}", nets[0], nets[1]);
    until("sleep, sh, its sleep, strace and its sleep to run", Duration::from_secs(10), || {
        holders(&nets) == 5
    });
    let mut pid = String::new();
    until("the program outside of the hosts", Duration::from_secs(10), || {
        pid = fs::read_to_string(&outside).unwrap_or_default();
        pid.ends_with('\n')
    });
    print!("PID {pid}");
    println!("DIR {}", lab.dir().display());
    let _many: Vec<fs::File> = (0..200).map(|_| fs::File::open("/dev/null").unwrap()).collect();
    assert_eq!(s.run(&["sh", "-c", "ulimit -Sn"]).stdout, "100\n", "ours is raised, theirs is the user's");
    println!("READY");
    match std::env::var("CAROUSEL_VICTIM").as_deref() {
        Ok("return") => {}
        Ok("panic") => panic!("as asked"),
        _ => std::thread::sleep(Duration::from_secs(1000)),
    }
}

/// A running `victim`, leader of a process group.
struct Victim {
    child: Child,
    /// Nobody else's turn meanwhile, and a folder for what it says.
    lab: Lab,
}

impl Victim {
    fn start(test: &str, env: &[(&str, &str)]) -> Option<Self> {
        let lab = Lab::enter(test)?;
        let file = |name: &str| fs::File::create(lab.file(name)).unwrap();
        let mut child = Command::new("sh");
        child.args(["-c", "ulimit -Sn 100 && exec \"$0\" --exact victim --ignored --nocapture"]);
        child.arg(std::env::current_exe().unwrap()).envs(env.iter().copied()).process_group(0);
        lab::die_with_us(&mut child, Signal::SIGKILL);
        let child = child.stdout(file("stdout")).stderr(file("stderr")).spawn().unwrap();
        let mut victim = Self { child, lab };
        let mut ended = false;
        until("the victim's lab", Duration::from_secs(60), || {
            ended = victim.child.try_wait().unwrap().is_some();
            ended || victim.stdout().contains("READY\n")
        });
        assert!(victim.stdout().contains("READY\n"), "{}{}", victim.stdout(), victim.stderr());
        Some(victim)
    }

    fn stdout(&self) -> String {
        fs::read_to_string(self.lab.file("stdout")).unwrap()
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.lab.file("stderr")).unwrap()
    }

    fn words(&self, key: &str) -> Vec<String> {
        let text = self.stdout();
        text.lines().filter_map(|l| Some(l.strip_prefix(key)?.strip_prefix(' ')?.to_owned())).collect()
    }

    fn signal_group(&self, signal: Signal) {
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its end, and for the end of everything it had.
    fn leaves_nothing(mut self) {
        until("the victim's end", Duration::from_secs(10), || self.child.try_wait().unwrap().is_some());
        let (pids, nets, dir) = (self.words("PID"), self.words("NET"), self.words("DIR").remove(0));
        assert_eq!((pids.len(), nets.len()), (4, 2));
        until("its programs to be gone", Duration::from_secs(10), || {
            pids.iter().all(|pid| !fs::exists(format!("/proc/{pid}")).unwrap()) && holders(&nets) == 0
        });
        // By the janitor: nobody entered a lab since, and nothing as young as this is swept.
        until("its folder to be gone", Duration::from_secs(15), || !fs::exists(&dir).unwrap());
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

#[test]
fn sigkill_leaves_nothing() {
    let Some(mut victim) = Victim::start("sigkill_leaves_nothing", &[]) else { return };
    victim.child.kill().unwrap();
    victim.leaves_nothing();
}

#[test]
fn signals_to_the_group_leave_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let Some(victim) = Victim::start("signals_to_the_group_leave_nothing", &[]) else { return };
        victim.signal_group(signal);
        victim.leaves_nothing();
    }
}

#[test]
fn a_panic_leaves_nothing() {
    let panic = [("CAROUSEL_VICTIM", "panic")];
    let Some(victim) = Victim::start("a_panic_leaves_nothing", &panic) else { return };
    victim.leaves_nothing();
}

#[test]
fn a_kept_lab_lives_until_it_is_interrupted() {
    for (end, how) in [("return", "ended well"), ("panic", "failed")] {
        let env = [("CAROUSEL_VICTIM", end), ("CAROUSEL_LAB_KEEP", "1")];
        let Some(victim) = Victim::start("a_kept_lab_lives_until_it_is_interrupted", &env) else { return };
        until("the scenario's end", Duration::from_secs(10), || victim.stderr().contains("Ctrl-C ends it"));
        let (text, nets) = (victim.stderr(), victim.words("NET"));
        // What strace starts to try itself out may have stood for one of them when the victim counted.
        until("its programs to be there", Duration::from_secs(10), || holders(&nets) == 5);
        let (before, after) = text.split_once(how).unwrap();
        for (host, net) in ["s", "c"].iter().zip(&nets) {
            let line = |text: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(&format!("host {host}: ")));
                line.unwrap_or_else(|| panic!("no line of host {host} in {text}")).to_owned()
            };
            assert_eq!(line(before), line(after));
            if std::env::var_os("CAROUSEL_LAB_INSIDE").is_some() {
                continue; // the line is for people outside of our user namespace
            }
            let look = format!("{} readlink /proc/self/ns/net", line(after));
            let seen = Command::new("sh").args(["-c", &look]).output().unwrap().stdout;
            assert_eq!(String::from_utf8(seen).unwrap().trim(), net);
        }
        for pid in &victim.words("PID")[..3] {
            assert!(after.contains(&format!("pid {pid}: ")), "{pid} in {after}");
        }
        assert_eq!(after.matches(".stderr\n").count(), 3, "{after}");
        victim.signal_group(Signal::SIGINT);
        victim.leaves_nothing();
    }
}

#[test]
fn an_ordinary_user_has_a_lab_too() {
    if !nix::unistd::geteuid().is_root() || std::env::var_os("CAROUSEL_LAB_INSIDE").is_some() {
        return; // then every other test shows it
    }
    let exe = std::env::current_exe().unwrap();
    let nobody = |args: &[&str]| {
        let ids = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
        Command::new("setpriv").args(ids).arg(args[0]).args(&args[1..]).output()
    };
    let exe = exe.to_str().unwrap();
    if !nobody(&["test", "-x", exe]).is_ok_and(|o| o.status.success()) {
        return lab::skip("an_ordinary_user_has_a_lab_too", "no setpriv, or the build folder is private");
    }
    let out = nobody(&[exe, "--exact", "random_loss_is_random_and_exact_loss_exact", "--nocapture"]).unwrap();
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
    if text.contains("SKIPPED") {
        lab::skip("an_ordinary_user_has_a_lab_too", "user namespaces are forbidden here");
    }
}

#[test]
fn a_capture_sees_what_leaves_for_a_group_and_when() {
    let Some(lab) = Lab::enter("a_capture_sees_what_leaves_for_a_group_and_when") else { return };
    let (s, c) = (lab.host("s"), lab.host("c"));
    lab.link(&s, "eth0", "fd00:6::1/64", &c, "eth0", "fd00:6::10/64", 1500);
    let nanos = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let socket = sender(&s, "fd00:6::1");
    let other = s.within(|| UdpSocket::bind("[fd00:6::1]:0")).unwrap();
    let capture = Capture::start(&s, "eth0", Vec::new(), |seen: &mut Vec<_>, frame| {
        seen.push((frame.at, frame.len, frame.head[62]));
    });
    let mut times = vec![nanos()];
    for n in 0..100 {
        other.send_to(&[n; 200], "[fd00:6::10]:9").unwrap();
        socket.send(&vec![n; 100 + usize::from(n)]).unwrap();
        times.push(nanos());
    }
    let (seen, missed) = capture.finish();
    socket.send(b"too late").unwrap();
    assert_eq!((seen.len(), missed), (100, 0));
    for (n, (at, len, byte)) in seen.into_iter().enumerate() {
        assert_eq!((len, usize::from(byte)), (14 + 48 + 100 + n, n));
        assert!((times[n]..=times[n + 1]).contains(&at), "packet {n}: {at} of {times:?}");
    }
}
