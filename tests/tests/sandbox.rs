//! The sandboxes of both programs, judged from inside: what a running program could do if it were no longer itself.
//! Calls are injected into the real programs; the same calls into programs without a sandbox show that they work.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::Argument::{Number, Text};
use carousel_tests::lab::{self, Argument, CAN_INJECT, Fate, Host, Lab, Running, inject, until, without};
use carousel_tests::scene::{self, PACKET_BYTES, PORT, Packed, SOURCE, args};
use carousel_tests::{bins, figures, object};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(30);
/// What a command without a sandbox is told from.
const OPEN: &str = "--no-sandbox";
const KILLED: Fate = Fate::Killed(Signal::SIGSYS);

/// A system call to try: its name for people, its number, its arguments.
type Attempt<'a> = (&'a str, libc::c_long, Vec<Argument<'a>>);

fn numbers(values: &[i32]) -> Vec<Argument<'static>> {
    values.iter().map(|value| Number(i64::from(*value))).collect()
}

/// Opens a file by its whole path.
fn open(path: &str, flags: libc::c_int) -> Vec<Argument<'_>> {
    vec![Number(libc::AT_FDCWD.into()), Text(path), Number(flags.into()), Number(0o600)]
}

fn error(number: libc::c_int) -> Fate {
    Fate::Returned(-i64::from(number))
}

fn succeeded(fate: Fate) -> bool {
    matches!(fate, Fate::Returned(answer) if answer >= 0)
}

/// A field of `/proc/PID/status` of each thread.
fn of_threads(program: &Running, field: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap();
    let status = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).ok();
    threads.filter_map(|thread| value(&status(thread.ok()?)?, field)).collect()
}

/// A field of the text of `/proc/PID/status`.
fn value(status: &str, field: &str) -> Option<String> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Every thread of a program that is confined says so.
fn assert_confined(program: &Running) {
    for (field, expected) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
        let found = of_threads(program, field);
        assert!(
            !found.is_empty() && found.iter().all(|value| value == expected),
            "{field}: {found:?} {program}"
        );
    }
    assert!(!program.stderr().contains("WARN"), "{program}");
}

/// A slow server, which waits for most of its time.
fn serve(s: &Host, packed: &Packed, more: &[&str]) -> Running {
    let server = scene::serve(s, packed, "200k", more);
    scene::wait_sending(s, &server);
    server
}

#[test]
fn server_dies_of_what_it_must_not_do() {
    let test = "server_dies_of_what_it_must_not_do";
    if !CAN_INJECT {
        return lab::skip(test, "no calls can be injected on this machine");
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, _c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 100_000, &[]);
    let (beside, bundle) = (lab.file("beside"), packed.bundle.to_str().unwrap());
    let beside = beside.to_str().unwrap();
    let no_descriptor = || numbers(&[-1, 0, 0, 0, 0, 0]);
    let socket = |name, family, kind| (name, libc::SYS_socket, numbers(&[family, kind, 0]));
    let deadly: [Attempt<'_>; 17] = [
        ("bind", libc::SYS_bind, no_descriptor()),
        ("listen", libc::SYS_listen, no_descriptor()),
        ("accept", libc::SYS_accept, no_descriptor()),
        ("accept4", libc::SYS_accept4, no_descriptor()),
        ("recvfrom", libc::SYS_recvfrom, no_descriptor()),
        ("recvmsg", libc::SYS_recvmsg, no_descriptor()),
        ("recvmmsg", libc::SYS_recvmmsg, no_descriptor()),
        ("io_uring_setup", libc::SYS_io_uring_setup, numbers(&[0, 0])),
        ("execve", libc::SYS_execve, vec![Text("/nowhere"), Number(0), Number(0)]),
        ("open to write", libc::SYS_openat, open(bundle, libc::O_WRONLY)),
        ("open for both", libc::SYS_openat, open(bundle, libc::O_RDWR)),
        ("create", libc::SYS_openat, open(beside, libc::O_CREAT)),
        ("open and empty", libc::SYS_openat, open(beside, libc::O_TRUNC)),
        socket("TCP socket", libc::AF_INET6, libc::SOCK_STREAM),
        socket("raw socket", libc::AF_INET6, libc::SOCK_RAW),
        socket("IPv4 socket", libc::AF_INET, libc::SOCK_DGRAM),
        socket("netlink socket", libc::AF_NETLINK, libc::SOCK_DGRAM),
    ];
    let open_server = serve(&s, &packed, &[OPEN]);
    assert!(open_server.stderr().contains(OPEN), "it says so: {open_server}");
    for (name, call, arguments) in &deadly {
        let server = serve(&s, &packed, &[]);
        assert_eq!(inject(&server, *call, arguments), KILLED, "{name} {arguments:?}");
        assert_eq!(server.finish(LIMIT).code(), -libc::SIGSYS, "{server}");
        let fate = inject(&open_server, *call, arguments);
        assert!(matches!(fate, Fate::Returned(_)), "{name} without a sandbox: {fate:?}");
    }
    assert!(open_server.is_alive(), "{open_server}");
    let names: Vec<&str> = deadly.iter().map(|(name, ..)| *name).collect();
    figures::row("a server dies of", &[("system calls", &names.join(", "))]);
}

#[test]
fn server_reaches_nothing_but_its_files() {
    let test = "server_reaches_nothing_but_its_files";
    if !CAN_INJECT {
        return lab::skip(test, "no calls can be injected on this machine");
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, _c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 100_000, &[]);
    let bundle = packed.bundle.to_str().unwrap();
    let (server, open_server) = (serve(&s, &packed, &[]), serve(&s, &packed, &[OPEN]));
    assert_confined(&server);
    assert!(of_threads(&server, "CapPrm").iter().all(|set| set.trim_matches('0').is_empty()), "{server}");

    let foreign = open("/etc/passwd", libc::O_RDONLY);
    assert_eq!(inject(&server, libc::SYS_openat, &foreign), error(libc::EACCES));
    assert!(succeeded(inject(&open_server, libc::SYS_openat, &foreign)));
    let own = inject(&server, libc::SYS_openat, &open(bundle, libc::O_RDONLY));
    let Fate::Returned(own @ 0..) = own else { panic!("its own bundle: {own:?}") };
    // A way to receive that a list of the socket calls forgets. For files there is another one.
    let stack = "0123456789abcdef";
    let read = |call| inject(&server, call, &[Number(own), Text(stack), Number(16), Number(0)]);
    assert_eq!(read(libc::SYS_read), error(libc::ENOSYS));
    assert_eq!(read(libc::SYS_pread64), Fate::Returned(16));
    // What nobody thought of is not there: no other process, no name of a file, no way into the terminal.
    for (name, call, arguments) in [
        ("unlink", libc::SYS_unlinkat, vec![Number(libc::AT_FDCWD.into()), Text(bundle), Number(0)]),
        ("kill", libc::SYS_kill, numbers(&[1, 0])),
        ("TIOCSTI", libc::SYS_ioctl, numbers(&[2, libc::TIOCSTI as i32, 0])),
        ("code", libc::SYS_mmap, numbers(&[0, 4096, libc::PROT_READ | libc::PROT_EXEC, 0x22, -1, 0])),
    ] {
        assert_eq!(inject(&server, call, &arguments), error(libc::ENOSYS), "{name}");
    }
    assert!(packed.bundle.exists() && server.is_alive() && open_server.is_alive(), "{server}");
    let after = s.traffic("eth0").tx_bytes;
    until("both to go on sending", LIMIT, || s.traffic("eth0").tx_bytes > after + 100 * PACKET_BYTES as u64);
}

/// Packs an object into NAME of the lab's folder.
fn bundle(lab: &Lab, name: &str, seq: &str) -> Packed {
    let packed = scene::pack(&lab.fresh_dir("packed"), 200_000, &["--seq", seq]);
    fs::create_dir_all(lab.file(name).parent().unwrap()).unwrap();
    fs::rename(&packed.bundle, lab.file(name)).unwrap();
    Packed { bundle: lab.file(name), ..packed }
}

#[test]
fn server_works_in_its_sandbox() {
    let Some(lab) = Lab::enter("server_works_in_its_sandbox") else { return };
    let (s, c) = scene::pair(&lab);
    bundle(&lab, "releases/fw.carousel", "1");
    let configure = |bundle: &str, groups: &str| {
        let text = format!(
            "interface = \"eth0\"\nport = {PORT}\nrate = \"5M\"\n[[session]]\nbundle = \"{bundle}\"\ngroups = [{groups}]\n"
        );
        fs::write(lab.file("new.toml"), text).unwrap();
        fs::create_dir_all(lab.file("etc")).unwrap();
        fs::rename(lab.file("new.toml"), lab.file("etc/server.toml")).unwrap();
    };
    let group = "\"ff3e::8000:1\"";
    configure("../releases/fw.carousel", group);
    let server = s.spawn(&args(&[&bins::server(), &"run", &"--config", &lab.file("etc/server.toml")]));
    scene::wait_sending(&s, &server);
    assert_confined(&server);
    let says = |what: &str| {
        until(&format!("{what}: {server}"), LIMIT, || server.stderr().contains(what) || !server.is_alive());
    };
    let reload = |what: &str| {
        server.kill(Signal::SIGHUP);
        says(what);
        assert!(server.is_alive(), "{server}");
    };

    // A new release and a second channel, whose thread is in the sandbox, too.
    let packed = bundle(&lab, "releases/fw.carousel", "2");
    configure("../releases/fw.carousel", &format!("{group}, \"ff3e::8000:2\""));
    reload("taken up: 1 changed, 1 new");
    until("its thread", LIMIT, || of_threads(&server, "Seccomp").len() == 4);
    assert_confined(&server);
    // A folder that was not there before: said, and everything goes on.
    bundle(&lab, "elsewhere/fw.carousel", "3");
    configure("../elsewhere/fw.carousel", group);
    reload("elsewhere/fw.carousel: the server was not started with a file in that folder");
    assert!(server.stderr().contains("restart it; everything goes on as before"), "{server}");
    // So it does when a link leads there.
    std::os::unix::fs::symlink(lab.file("elsewhere/fw.carousel"), lab.file("releases/link")).unwrap();
    configure("../releases/link", group);
    reload("releases/link: the server was not started");
    // The network goes and comes.
    s.ip("link set eth0 down");
    says("is the interface up");
    s.ip("link set eth0 up");
    s.ip(&format!("addr add {SOURCE}/64 dev eth0 nodad"));
    scene::wait_sending(&s, &server);
    let out = lab.file("got");
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    scene::arrive(&client, &packed, &out, LIMIT).row("a server in its sandbox", "");
    server.kill(Signal::SIGTERM);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
}

/// A client in the middle of a transfer that takes long.
fn get(c: &Host, packed: &Packed, out: &Path, more: &[&str]) -> Running {
    let client = scene::get(c, &[SOURCE], packed, out, more);
    // The packets pass its host's interface also before; it is in its sandbox when it tells of its join.
    until("the client to join", LIMIT, || {
        assert!(client.is_alive(), "{client}");
        client.stdout().contains("\"join\"")
    });
    scene::wait_received(c, &client, 20_000, LIMIT);
    client
}

#[test]
fn client_writes_nowhere_else_and_runs_nothing() {
    let test = "client_writes_nowhere_else_and_runs_nothing";
    if !CAN_INJECT {
        return lab::skip(test, "no calls can be injected on this machine");
    }
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 4 * MIB, &[]);
    let _server = serve(&s, &packed, &[]);
    let (closed, free) = (lab.fresh_dir("target"), lab.fresh_dir("target"));
    let client = get(&c, &packed, &closed.join("got"), &[]);
    let open_client = get(&c, &packed, &free.join("got"), &[OPEN]);
    assert_confined(&client);
    assert!(open_client.stderr().contains(OPEN), "it says so: {open_client}");
    // In a lab without root there are fewer; none must be one that does harm.
    let kept = u64::from_str_radix(&of_threads(&client, "CapPrm")[0], 16).unwrap();
    let (bind_service, admin) = (1 << 10, 1 << 12); // linux/capability.h
    assert_eq!(kept & !(bind_service | admin), 0, "capabilities {kept:x}");

    let creating = libc::O_WRONLY | libc::O_CREAT;
    let [outside, inside] =
        [lab.file("outside"), closed.join("inside")].map(|path| path.to_str().unwrap().to_owned());
    let (outside, inside) = (open(&outside, creating), open(&inside, creating));
    assert_eq!(inject(&client, libc::SYS_openat, &outside), error(libc::EACCES));
    assert!(!lab.file("outside").exists());
    assert!(succeeded(inject(&open_client, libc::SYS_openat, &outside)));
    assert!(succeeded(inject(&client, libc::SYS_openat, &inside)));
    let passwords = open("/etc/passwd", libc::O_RDONLY);
    assert_eq!(inject(&client, libc::SYS_openat, &passwords), error(libc::EACCES));
    assert!(succeeded(inject(&open_client, libc::SYS_openat, &passwords)));
    drop(client);

    let deadly: [Attempt<'_>; 5] = [
        ("execve", libc::SYS_execve, vec![Text("/nowhere"), Number(0), Number(0)]),
        ("execve of x32", 0x4000_0000 | 520, vec![Text("/nowhere"), Number(0), Number(0)]),
        ("listen", libc::SYS_listen, numbers(&[-1, 0])),
        ("raw socket", libc::SYS_socket, numbers(&[libc::AF_INET6, libc::SOCK_RAW, 58])),
        ("netlink", libc::SYS_socket, numbers(&[libc::AF_NETLINK, libc::SOCK_DGRAM, 0])),
    ];
    for (name, call, arguments) in &deadly {
        let client = get(&c, &packed, &closed.join(name), &[]);
        assert_eq!(inject(&client, *call, arguments), KILLED, "{name}");
        assert_eq!(client.finish(LIMIT).code(), -libc::SIGSYS, "{client}");
        let fate = inject(&open_client, *call, arguments);
        assert!(matches!(fate, Fate::Returned(_)), "{name} without a sandbox: {fate:?}");
    }
    assert!(open_client.is_alive(), "{open_client}");
}

/// What root drops must not be missed at the end of a transfer, when the object gets its name.
#[test]
fn root_still_writes_into_the_folders_of_others() {
    let test = "root_still_writes_into_the_folders_of_others";
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 200_000, &[]);
    let _server = scene::serve(&s, &packed, "5M", &[]);
    let (theirs, below) = (lab.fresh_dir("theirs"), lab.fresh_dir("theirs"));
    let ours = below.join("ours");
    fs::create_dir(&ours).unwrap();
    for folder in [&theirs, &below] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
        if let Err(error) = chown(folder, Some(65534), Some(65534)) {
            return lab::skip(test, &format!("there is no other user here: {error}"));
        }
    }
    for out in [theirs.join("got"), ours.join("got")] {
        let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
        scene::arrive(&client, &packed, &out, LIMIT);
    }
}

#[test]
fn hook_is_outside_and_ends_with_the_client() {
    let Some(lab) = Lab::enter("hook_is_outside_and_ends_with_the_client") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 200_000, &[]);
    let server = scene::serve(&s, &packed, "5M", &[]);
    scene::wait_sending(&s, &server);
    let (folder, status) = (lab.fresh_dir("target"), lab.file("status"));
    let hook = format!("cat /proc/self/status >{}", status.display());
    let client = scene::get(&c, &[SOURCE], &packed, &folder.join("got"), &["--on-complete", &hook]);
    scene::arrive(&client, &packed, &folder.join("got"), LIMIT).row("with a hook", "");
    let status = fs::read_to_string(status).unwrap();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    for field in ["Seccomp", "NoNewPrivs", "CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(value(&status, field), value(&own, field), "{field} of the hook");
    }

    // However the client ends, what waited for it does, without having run the command.
    drop(server);
    let never = lab.file("never");
    let hook = format!("touch {}", never.display());
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let client = scene::get(&c, &[SOURCE], &packed, &folder.join("other"), &["--on-complete", &hook]);
        scene::wait_joined(&c);
        let children = format!("/proc/{0}/task/{0}/children", client.pid());
        let children = fs::read_to_string(children).unwrap();
        let [child] = children.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{children:?}") };
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap();
        let memory = |field| value(&status, field).unwrap();
        let cost = format!("{} resident, {} of it its own", memory("VmRSS"), memory("RssAnon"));
        figures::row("what waits to run the hook", &[("memory", &cost)]);
        client.kill(signal);
        client.finish(LIMIT);
        until("what waited to end", LIMIT, || {
            fs::read_to_string(format!("/proc/{child}/status"))
                .map_or(true, |status| value(&status, "State").is_some_and(|state| state.starts_with('Z')))
        });
        assert!(!never.exists(), "{signal}");
    }
}

/// A command on a kernel without these calls.
fn lacking(line: &[OsString], calls: &[libc::c_long]) -> Command {
    let mut cmd = Command::new(&line[0]);
    cmd.args(&line[1..]);
    without(&mut cmd, calls);
    cmd
}

#[test]
fn older_kernels_cost_a_line_each() {
    let Some(lab) = Lab::enter("older_kernels_cost_a_line_each") else { return };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 200_000, &[]);
    let (landlock, seccomp) = (libc::SYS_landlock_create_ruleset, libc::SYS_seccomp);
    for (calls, lines) in [(&[landlock][..], 1), (&[seccomp], 1), (&[landlock, seccomp], 2)] {
        let server = s.spawn_command(lacking(&scene::serve_line(&packed, "5M", &[]), calls));
        scene::wait_sending(&s, &server);
        let out = lab.fresh_dir("target").join("got");
        let client = c.spawn_command(lacking(&scene::get_line(&[SOURCE], &packed, &out, &[]), calls));
        scene::arrive(&client, &packed, &out, LIMIT);
        assert_eq!(object::digest(&out).unwrap(), packed.digest);
        // A reload does not mind either.
        server.kill(Signal::SIGHUP);
        until("the server to reload", LIMIT, || server.stderr().contains("taken up"));
        for program in [&server, &client] {
            let warnings: Vec<String> =
                program.stderr().lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect();
            assert_eq!(warnings.len(), lines, "{warnings:?} {program}");
            assert_eq!(warnings.iter().any(|line| line.contains("Landlock")), calls.contains(&landlock));
            assert_eq!(warnings.iter().any(|line| line.contains("seccomp")), calls.contains(&seccomp));
        }
    }
}
