//! The Debian packages: built by cargo-deb, installed by dpkg, run as they lie there, upgraded, removed.
//!
//! Where they are installed is a throw-away copy of this machine: its own root folder below a layer in memory
//! (overlayfs), in a mount namespace that ends with the test. A bare Debian instead (mmdebstrap) would take a minute and
//! a network each time, and say no more about the packages but that what they depend on can be installed. systemd is not
//! running in there, nor on the machines that run these tests: programs are started by the units' `ExecStart` as the
//! units' `User`, by hand. What the units add to that, `deploy.rs` looks at.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{self, Host, Lab, Output, Running, have, until};
use carousel_tests::scene::{self, AsOsString, SOURCE, args};
use carousel_tests::{bins, figures, object};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// One line may install packages, with all that this machine's other packages do then, or show thirty manual pages.
const LIMIT: Duration = Duration::from_secs(180);
/// For the package's builder: it compresses.
const BUILD_LIMIT: Duration = Duration::from_secs(300);
const PACKAGES: [&str; 2] = ["carousel-server", "carousel-client"];
const SERVER_UNIT: &str = "/usr/lib/systemd/system/carousel-server.service";
const AGENT_UNIT: &str = "/usr/lib/systemd/system/carousel-agent.service";
/// What our packages may leave behind: dpkg's own notes of what it did, and the users, whose numbers stay taken.
const DPKG_S: [&str; 4] = ["var/lib/dpkg/", "var/log/", "var/cache/", "var/backups/"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The folder that has cargo-deb, if there is one: what `run.sh` put beside the build, or one in `PATH`.
fn cargo_deb() -> Option<PathBuf> {
    let own = std::env::current_exe().unwrap_or_default();
    let near = own.ancestors().map(|dir| dir.join("lab-tools/cargo-deb/bin")).collect::<Vec<_>>();
    let path = std::env::var_os("PATH").unwrap_or_default();
    near.into_iter().chain(std::env::split_paths(&path)).find(|dir| dir.join("cargo-deb").is_file())
}

/// Enters the lab if packages can be built and installed here; otherwise says that the test is skipped.
fn enter(test: &str) -> Option<Lab> {
    // A user namespace made by an ordinary user has one user in it; packages have more.
    if nix::unistd::geteuid().as_raw() != 0 || fs::metadata("/").unwrap().uid() != 0 {
        lab::skip(test, "only root can make a copy of this machine in which there are other users");
        return None;
    }
    if cargo_deb().is_none() {
        lab::skip(
            test,
            "the program cargo-deb is missing: run tests/run.sh, or `cargo install --locked cargo-deb`",
        );
        return None;
    }
    let tools = [
        ("dpkg", "dpkg"),
        ("dpkg-shlibdeps", "dpkg-dev"),
        ("systemd-sysusers", "systemd"),
        ("systemd-tmpfiles", "systemd"),
        ("systemd-analyze", "systemd"),
        ("setpriv", "util-linux"),
    ];
    if let Some((tool, package)) = tools.into_iter().find(|(tool, _)| !have(tool)) {
        lab::skip(test, &format!("the program {tool} is missing: {package}"));
        return None;
    }
    Lab::enter(test)
}

/// Builds both packages of the programs that are under test, as a user would after `cargo build`.
fn build(lab: &Lab, here: &Host, version: &str, out: &Path, more: &[&str]) {
    let target = lab.file("target");
    let release = target.join("release");
    fs::create_dir_all(&release).unwrap();
    for program in [bins::server(), bins::client(), PathBuf::from(env!("CARGO_BIN_EXE_documents"))] {
        fs::copy(&program, release.join(program.file_name().unwrap())).unwrap();
    }
    let mut path = OsString::from(cargo_deb().unwrap());
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(workspace().join("deploy/build-deb.sh"));
    command.args(args(&[&"--built", &out, &"--deb-version", &version]));
    command.args(more);
    command.env("PATH", path).env("CARGO_TARGET_DIR", &target).env("SOURCE_DATE_EPOCH", "1790000000");
    let builder = here.spawn_command(command);
    assert_eq!(builder.finish(BUILD_LIMIT).code(), 0, "{builder}");
}

/// A throw-away copy of this machine.
struct Machine {
    /// The process whose mount namespace it lives in.
    holder: Running,
    dir: PathBuf,
}

impl Machine {
    /// Makes it, or says why it cannot be made here. The lab's folder is in there as `/mnt`.
    fn new(lab: &Lab, here: &Host) -> Option<Self> {
        const SCRIPT: &str = "
            dir=$1 lab=$2
            mount -t tmpfs -o mode=755 tmpfs \"$dir\"
            mkdir \"$dir/upper\" \"$dir/work\" \"$dir/root\"
            mount -t overlay overlay -o \"lowerdir=/,upperdir=$dir/upper,workdir=$dir/work\" \"$dir/root\"
            cd \"$dir/root\"
            mount --rbind /proc proc
            mount --rbind /dev dev
            # Nobody in there shall set up the machine outside.
            mount --rbind proc/sys proc/sys
            mount -o remount,bind,ro proc/sys
            for place in run tmp; do mount -t tmpfs -o mode=1777 tmpfs $place; done
            chmod 755 run
            # Container images have dpkg leave out manuals.
            rm -f etc/dpkg/dpkg.cfg.d/*
            mkdir -p mnt; mount --bind \"$lab\" mnt
            : >\"$lab/ready\"
            exec sleep infinity";
        let dir = lab.fresh_dir("machine");
        let line: [&dyn AsOsString; 9] =
            [&"unshare", &"-m", &"--propagation=private", &"sh", &"-ec", &SCRIPT, &"sh", &dir, &lab.dir()];
        let holder = here.spawn(&args(&line));
        until("a copy of this machine", LIMIT, || !holder.is_alive() || lab.file("ready").exists());
        if !holder.is_alive() {
            lab::skip(lab.name(), &format!("no copy of this machine: {}", holder.stderr().trim()));
            return None;
        }
        Some(Self { holder, dir })
    }

    /// A command line that does this in the copy, on the host that starts it.
    fn line(&self, words: &[&dyn AsOsString]) -> Vec<OsString> {
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.holder.pid());
        let mut line = args(&[&"nsenter", &namespace, &"chroot", &self.dir.join("root")]);
        line.extend(args(&[&"env", &"LC_ALL=C.UTF-8", &"DEBIAN_FRONTEND=noninteractive"]));
        line.extend(args(words));
        line
    }

    /// Runs a line of shell, whatever comes of it.
    fn run(&self, here: &Host, script: &str) -> Output {
        let running = here.spawn(&self.line(&[&"sh", &"-c", &script]));
        let exit = running.finish(LIMIT);
        Output { exit, stdout: running.stdout(), stderr: running.stderr() }
    }

    /// Runs a line of shell that must succeed, and returns what it said on stdout.
    fn shell(&self, here: &Host, script: &str) -> String {
        let out = self.run(here, script);
        assert!(out.exit.status.success(), "{script}: {}{}", out.stdout, out.stderr);
        out.stdout
    }

    /// What is in the copy and not on the machine, or other than there, by its path without a slash before it.
    fn changed(&self, here: &Host) -> Vec<String> {
        let upper = self.dir.join("upper");
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.holder.pid());
        let out = here.run(&args(&[
            &"nsenter",
            &namespace,
            &"find",
            &upper,
            &"-mindepth",
            &"1",
            &"-printf",
            &"%P\\n",
        ]));
        assert!(out.exit.status.success(), "{}", out.stderr);
        out.stdout.lines().map(str::to_owned).collect()
    }

    /// Starts a unit's program as the unit's user, without any privilege, on a host.
    fn start(&self, host: &Host, unit: &str, text: &str) -> Running {
        let (user, command) = (setting(text, "User"), setting(text, "ExecStart"));
        let runtime = setting(text, "RuntimeDirectory");
        self.shell(host, &format!("install -d -o {user} -g {user} -m 755 /run/{runtime}"));
        let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
        let mut words: Vec<&dyn AsOsString> = vec![&"setpriv", &uid, &gid];
        words.extend(
            [&"--clear-groups", &"--no-new-privs", &"--bounding-set=-all"].map(|w| w as &dyn AsOsString),
        );
        let command: Vec<&str> = command.split(' ').collect();
        assert!(command[0].starts_with("/usr/bin/carousel-"), "{unit}: {command:?}");
        words.extend(command.iter().map(|word| word as &dyn AsOsString));
        host.spawn(&self.line(&words))
    }
}

/// The one value of a setting in a unit.
fn setting(unit: &str, name: &str) -> String {
    let values: Vec<&str> =
        unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect();
    let [value] = values[..] else { panic!("{name} is there {} times in {unit}", values.len()) };
    value.to_owned()
}

#[test]
fn packages_install_run_upgrade_and_go() {
    let test = "packages_install_run_upgrade_and_go";
    let Some(lab) = enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let began = Instant::now();
    let [old, again, new] = ["old", "again", "new"].map(|name| lab.file(name));
    // One of them as users build it; the others need not be small.
    let haste: [&str; 2] = ["--fast", "--no-strip"];
    build(&lab, &s, "0.9-1", &old, &[]);
    build(&lab, &s, "0.9-2", &new, &haste);
    build(&lab, &s, "0.9-2", &again, &haste);
    let deb = |package: &str, version: &str| {
        format!("{package}_{version}_{}.deb", s.tool("dpkg --print-architecture").trim())
    };
    for package in PACKAGES {
        let name = deb(package, "0.9-2");
        let [first, second] = [&new, &again].map(|dir| fs::read(dir.join(&name)).unwrap());
        assert!(first == second, "{name} is not the same when it is built again");
        let size = fs::metadata(old.join(deb(package, "0.9-1"))).unwrap().len();
        figures::row(package, &[("package", &format!("{:.2} MB", size as f64 / 1e6))]);
    }
    let built = began.elapsed();

    let Some(machine) = Machine::new(&lab, &s) else { return };
    let shell = |script: &str| machine.shell(&s, script);
    let install = |folder: &str, version: &str| {
        let files = PACKAGES.map(|package| format!("/mnt/{folder}/{}", deb(package, version)));
        shell(&format!("dpkg -i {}", files.join(" ")))
    };
    install("old", "0.9-1");
    is_installed_well(test, &machine, &s);
    runs(&lab, &machine, &s, &c);

    // An upgrade leaves alone what was changed, also while it is in use.
    shell("echo '# mine' >>/etc/carousel/server.toml; cp /etc/carousel/server.toml /tmp/before");
    install("new", "0.9-2");
    shell("cmp /etc/carousel/server.toml /tmp/before");
    assert_eq!(shell("dpkg-query -W -f '${Version}\\n' carousel-server carousel-client"), "0.9-2\n0.9-2\n");
    shell("dpkg --verify carousel-server carousel-client | (! grep .)");

    let ours = || -> Vec<String> {
        let all = machine.changed(&s).into_iter();
        all.filter(|path| path.contains("carousel") && !DPKG_S.iter().any(|dir| path.starts_with(dir)))
            .collect()
    };
    shell("dpkg -r carousel-server carousel-client");
    let left = ours();
    // Debian's way to keep the unit from being started is a mask, which purging takes away.
    let kept =
        ["etc/carousel", "var/lib/carousel-server", "var/lib/carousel", "etc/systemd", "var/lib/systemd"];
    for path in &left {
        assert!(kept.iter().any(|dir| Path::new(path).starts_with(dir)), "removed, and yet there: {path}");
    }
    for path in ["etc/carousel/server.toml", "var/lib/carousel-server/maps.carousel", "var/lib/carousel/maps"]
    {
        assert!(left.iter().any(|l| l == path), "{path} should be left: {left:?}");
    }
    // Again, and gone for good.
    install("new", "0.9-2");
    shell("dpkg -P carousel-server carousel-client");
    assert_eq!(ours(), [""; 0], "purged, and yet there");
    let users = shell("grep ^carousel /etc/passwd");
    assert_eq!(users.lines().count(), 2, "users stay: {users}");
    figures::row(
        "both packages",
        &[
            ("built three times", &format!("{:.1} s", built.as_secs_f64())),
            ("all", &format!("{:.1} s", began.elapsed().as_secs_f64())),
        ],
    );
}

/// Files, users, folders, units, documents.
fn is_installed_well(test: &str, machine: &Machine, s: &Host) {
    let shell = |script: &str| machine.shell(s, script);
    let version = env!("CARGO_PKG_VERSION");
    for program in PACKAGES {
        assert_eq!(shell(&format!("{program} --version")), format!("{program} {version}\n"));
    }
    assert_eq!(shell("dpkg --audit"), "");
    shell("dpkg --verify carousel-server carousel-client | (! grep .)");

    // name, password, number, group, words, home, shell
    for (user, home) in [("carousel-server", "/"), ("carousel", "/var/lib/carousel")] {
        let entry = shell(&format!("getent passwd {user}"));
        let fields: Vec<&str> = entry.trim().split(':').collect();
        assert_eq!((fields[5], fields[6]), (home, "/usr/sbin/nologin"), "{entry}");
        assert!((1..1000).contains(&fields[2].parse::<u32>().unwrap()), "{entry}");
    }
    shell("systemd-tmpfiles --create carousel-server.conf carousel-agent.conf");
    for dir in ["/etc/carousel", "/var/lib/carousel-server"] {
        assert_eq!(shell(&format!("stat -c '%U %G %a' {dir}")), "root root 755\n", "{dir}");
    }

    // With the pages that the units name. What it says of the machine's other units is not ours.
    let said = machine.run(s, &format!("systemd-analyze verify {SERVER_UNIT} {AGENT_UNIT}"));
    let said = said.stdout + &said.stderr;
    assert!(!said.contains("carousel"), "{said}");
    let enabled = shell("find /etc/systemd/system -name 'carousel*'");
    assert_eq!(enabled, "", "nothing starts before it is set up");

    let files = shell("dpkg -L carousel-server carousel-client");
    let of =
        |part: &str| files.lines().filter(|file| file.contains(part)).map(str::to_owned).collect::<Vec<_>>();
    let pages: Vec<String> = [of("/man1/"), of("/man5/")].concat();
    for name in [
        "carousel-server.1",
        "carousel-server-run.1",
        "carousel-server-keys-create.1",
        "carousel-client-get.1",
    ] {
        assert!(
            pages.iter().any(|page| page.ends_with(&format!("/{name}.gz")) || page.ends_with(name)),
            "{pages:?}"
        );
    }
    assert!(pages.iter().any(|page| page.contains("/man5/carousel-server.toml.5")), "{pages:?}");
    check_each(test, machine, s, "mandoc", &pages, "mandoc -T lint -W warning");
    check_each(test, machine, s, "man", &pages, "man --warnings --local-file --pager=cat");
    check_each(test, machine, s, "bash", &of("/bash-completion/completions/"), "bash -n");
    check_each(test, machine, s, "zsh", &of("/vendor-completions/"), "zsh -n");
    check_each(test, machine, s, "fish", &of("/vendor_completions.d/"), "fish --no-execute");
    let complete = ". /usr/share/bash-completion/completions/carousel-server; COMP_WORDS=(carousel-server in); COMP_CWORD=1; \
                    set -- $(complete -p carousel-server); while [ \"$1\" != -F ]; do shift; done; \
                    $2 carousel-server in carousel-server; echo \"${COMPREPLY[@]}\"";
    assert_eq!(shell(&format!("bash -c '{complete}'")), "inspect\n");
}

/// A checker that must have nothing to say of these files, of which there must be some.
fn check_each(test: &str, machine: &Machine, s: &Host, tool: &str, files: &[String], command: &str) {
    assert!(files.len() >= 2, "{command}: {files:?}");
    if !have(tool) {
        return lab::skip(test, &format!("the program {tool} is missing"));
    }
    let quiet = if tool == "man" { ">/dev/null" } else { "" };
    let each =
        format!("for file in {}; do {command} $file {quiet} || echo \"$file: $?\"; done", files.join(" "));
    let out = machine.run(s, &each);
    let said = out.stdout + &out.stderr;
    assert!(said.is_empty(), "{command}: {said}");
}

/// The names of the problems that a doctor found.
fn problems(said: &Output) -> Vec<String> {
    let json: serde_json::Value =
        serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", said.stdout, said.stderr));
    let findings = json["findings"].as_array().unwrap_or_else(|| panic!("{json}"));
    let bad = findings.iter().filter(|finding| finding["level"] == "problem");
    bad.map(|finding| finding["id"].to_string()).collect()
}

/// The programs as installed, by the lines of their units.
fn runs(lab: &Lab, machine: &Machine, s: &Host, c: &Host) {
    let shell = |script: &str| machine.shell(s, script);
    let can_say = shell("carousel-server run --help").contains(" --status ");
    let says = if can_say { "status = \"/run/carousel-server/status.json\"\n" } else { "" };
    shell(&format!(
        "(printf '{says}'; sed s/2001:db8:1::a/{SOURCE}/ /usr/share/carousel-server/server.toml) >/etc/carousel/server.toml"
    ));
    let packed = scene::pack(&lab.fresh_dir("maps"), 1 << 20, &[]);
    let bundle = packed.bundle.strip_prefix(lab.dir()).unwrap().display();
    for name in ["gateway-fw", "maps"] {
        shell(&format!("install -m 644 /mnt/{bundle} /var/lib/carousel-server/{name}.carousel"));
    }
    let unit = shell(&format!("cat {SERVER_UNIT}"));
    let server = machine.start(s, SERVER_UNIT, &unit);
    scene::wait_sending(s, &server);
    let uid = shell("id -u carousel-server");
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let who = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap().split_ascii_whitespace();
    assert!(who.clone().count() == 4 && who.clone().all(|id| id == uid.trim()), "{status}");
    server.kill(Signal::SIGHUP);
    until("the server to look at its configuration again", LIMIT, || {
        server.stderr().contains("taken up: 0 changed")
    });
    if can_say {
        until("the server's status", LIMIT, || {
            machine.run(s, "test -s /run/carousel-server/status.json").exit.status.success()
        });
    }
    assert!(!server.stderr().contains("WARN"), "{server}");

    // What the agent's unit makes for it.
    let unit = shell(&format!("cat {AGENT_UNIT}"));
    let (user, state) = (setting(&unit, "User"), setting(&unit, "StateDirectory"));
    shell(&format!("install -d -o {user} -g {user} -m 755 /var/lib/{state}"));
    let key = packed.keys.public.strip_prefix(lab.dir()).unwrap().display();
    shell(&format!("install -m 644 /mnt/{key} /etc/carousel/release.pub"));
    let get = format!(
        "exec setpriv --reuid={user} --regid={user} --clear-groups --no-new-privs --bounding-set=-all \
         carousel-client get --source {SOURCE} --group ff3e::8000:2 --port 5004 --interface eth0 --timeout 20s \
         --key /etc/carousel/release.pub --out /var/lib/{state}/maps --state /var/lib/{state} --rcvbuf 128KiB"
    );
    let client = c.spawn(&machine.line(&[&"sh", &"-c", &get]));
    assert_eq!(client.finish(LIMIT).code(), 0, "{client}");
    shell(&format!("cp /var/lib/{state}/maps /mnt/got"));
    assert_eq!(object::digest(&lab.file("got")).unwrap(), packed.digest);

    // The doctors, as far as these programs have them. A cable has no querier, and says so.
    if shell("carousel-client --help").contains("\n  doctor ") {
        let here = "carousel-server doctor --config /etc/carousel/server.toml --json";
        assert_eq!(problems(&machine.run(s, here)), [""; 0]);
        let there = format!(
            "carousel-client doctor --source {SOURCE} --group ff3e::8000:2 --port 5004 --interface eth0 \
             --key /etc/carousel/release.pub --timeout 5s --json"
        );
        assert_eq!(problems(&machine.run(c, &there)), [""; 0]);
    }

    // The agent by its example, which names releases that nobody sends here: it says so in its status, and waits.
    shell("cp /usr/share/carousel-client/client.toml /etc/carousel/");
    if shell("carousel-client --help").contains("\n  watch ") {
        shell("carousel-client watch --config /etc/carousel/client.toml --check");
        let agent = machine.start(c, AGENT_UNIT, &unit);
        until("the agent to say how it is", LIMIT, || {
            assert!(agent.is_alive(), "{agent}");
            machine.run(c, "grep -q waiting /run/carousel/status.json").exit.status.success()
        });
        agent.kill(Signal::SIGTERM);
        assert_eq!(agent.finish(LIMIT).code(), 0, "{agent}");
    }
    shell("rm /etc/carousel/release.pub");
    assert!(server.is_alive(), "{server}");
    server.kill(Signal::SIGTERM);
    assert_eq!(server.finish(LIMIT).code(), 0, "{server}");
}
