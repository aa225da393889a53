//! The agent: `carousel-client watch`. It learns of releases, takes only what is meant for it, and hands each over once,
//! when it may, whatever happens to it on the way.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_proto::rollout::{Rollout, Step, salt_from};
use carousel_tests::lab::{Host, Knot, Lab, Running, Signing, Zone, until, zone_file};
use carousel_tests::scene::{self, GROUP, Keys, PORT, Packed, SOURCE, args};
use carousel_tests::{bins, figures, object};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LIMIT: Duration = Duration::from_secs(90);
/// Small enough to arrive in a second, with several manifests in each.
const SIZE: u64 = 100_000;
const RATE: &str = "4M";
/// The announce channel.
const ANNOUNCE: &str = "ff3e::8000:2";
const ZONE: &str = "example.test";
/// Beside a command that fails or waits when a file says so, it notes which release came when.
const HANDOVER: &str = r#"
    echo "$CAROUSEL_SEQ $(date +%s) $CAROUSEL_NAME $CAROUSEL_SIZE $CAROUSEL_DIGEST" >>DIR/handed
    if test -p DIR/hang; then exec 3>DIR/hang; rm DIR/hang; echo >&3; exec sleep 1000; fi
    ! test -e DIR/fail
"#;

/// A device, and who sends to it.
struct Scene {
    lab: Lab,
    server: Host,
    host: Host,
    keys: Keys,
}

impl Scene {
    fn enter(test: &str) -> Option<Self> {
        let lab = Lab::enter(test)?;
        let (server, host) = scene::pair(&lab);
        let keys = scene::keygen(lab.dir(), "release");
        Some(Self { lab, server, host, keys })
    }

    /// A release of fw.img; each has other contents.
    fn release(&self, seq: u64, more: &[&str]) -> Packed {
        self.release_of(SIZE + seq, seq, more)
    }

    fn release_of(&self, size: u64, seq: u64, more: &[&str]) -> Packed {
        let folder = self.lab.fresh_dir("release");
        let mut packed = scene::unpacked(&folder, size);
        packed.keys = self.keys.clone();
        let seq = seq.to_string();
        let line = scene::pack_line(&packed, &[&["--name", "fw.img", "--seq", &seq], more].concat());
        let out = bins::run_line(&line);
        assert!(out.status.success(), "{line:?}: {}", String::from_utf8_lossy(&out.stderr));
        packed
    }

    fn serve(&self, packed: &Packed, more: &[&str]) -> Running {
        let server = scene::serve(&self.server, packed, RATE, more);
        scene::wait_sending(&self.server, &server);
        server
    }

    fn device(&self, name: &str) -> Device<'_> {
        let dir = self.lab.fresh_dir(name);
        Device { scene: self, dir, id: name.to_owned() }
    }
}

/// What one device has on its disk.
struct Device<'a> {
    scene: &'a Scene,
    dir: PathBuf,
    id: String,
}

/// What an item at the fixed place has.
fn fixed() -> String {
    format!("source = [\"{SOURCE}\"]\ngroup = [\"{GROUP}\"]\nport = {PORT}\n")
}

impl Device<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn out(&self) -> PathBuf {
        self.file("fw.img")
    }

    /// Writes client.toml: lines for the whole, and lines for its one item.
    fn configure(&self, all: &str, item: &str) {
        let key = self.scene.keys.public.display();
        let handover = HANDOVER.replace("DIR", &self.dir.display().to_string());
        let text = format!(
            "device_id = \"{}\"\nkey = [\"{key}\"]\nstate = \"state\"\nstatus = \"status.json\"\ninhibit = \"inhibit\"\n\
             interface = \"eth0\"\npoll = \"1s\"\nlisten = \"2s\"\ntimeout = \"20s\"\nbackoff = \"200ms\"\ntries = 3\n\
             compatible = [\"board-a\"]\n{all}\n[[watch]]\nname = \"fw\"\nout = \"fw.img\"\nhandover = '''{handover}'''\n\
             {item}\n",
            self.id
        );
        fs::write(self.file("client.toml"), text).unwrap();
    }

    fn start(&self) -> Running {
        let _ = fs::remove_file(self.file("status.json")); // the word of the last one
        self.scene.host.spawn(&args(&[&bins::client(), &"watch", &"--config", &self.file("client.toml")]))
    }

    /// The one item of the status file, which is always whole.
    fn status(&self) -> Option<Value> {
        let text = fs::read_to_string(self.file("status.json")).ok()?;
        let status: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(status["device_id"], self.id.as_str());
        Some(status["watch"][0].clone())
    }

    fn state(&self) -> String {
        self.status().map_or(String::new(), |item| item["state"].as_str().unwrap().to_owned())
    }

    #[track_caller]
    fn wait(&self, agent: &Running, what: &str, holds: impl Fn(&Value) -> bool) {
        until(&format!("{}: {what}", self.id), LIMIT, || {
            assert!(agent.is_alive(), "the agent ended: {agent}");
            self.status().is_some_and(|item| holds(&item))
        });
    }

    /// Waits until it is in a state with a release.
    #[track_caller]
    fn reach(&self, agent: &Running, state: &str, seq: u64) {
        self.wait(agent, &format!("{state} with release {seq}"), |item| {
            item["state"] == state && item["release"]["seq"] == seq
        });
    }

    /// Waits until it says why it does nothing.
    #[track_caller]
    fn says(&self, agent: &Running, words: &str) {
        self.wait(agent, words, |item| {
            item["message"].as_str().is_some_and(|m| m.contains(words)) || item["waits_for"] == words
        });
    }

    /// The releases for which the command was run.
    fn handed(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.file("handed")).unwrap_or_default();
        text.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect()
    }

    fn touch(&self, name: &str) {
        fs::write(self.file(name), "").unwrap();
    }

    /// The next command hangs. What it returns brings a byte when the command does, and ends with it: numbers of
    /// processes are others in the lab than here.
    fn hang(&self) -> File {
        let path = self.file("hang");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).unwrap();
    }

    /// The agent loses its power. Nothing of what it started lives on.
    fn cut(&self, agent: &Running) {
        agent.kill(Signal::SIGKILL);
        agent.finish(LIMIT);
        until("the transfer to die with it", LIMIT, || scene::joined(&self.scene.host) == 0);
    }

    /// What it has is this.
    #[track_caller]
    fn has(&self, packed: &Packed) {
        assert_eq!(object::digest(&self.out()).unwrap(), packed.digest);
        let text = fs::read_to_string(self.file("handed")).unwrap();
        let last: Vec<&str> = text.lines().last().unwrap().split(' ').collect();
        assert_eq!(last[2..], ["fw.img", &packed.size.to_string(), &packed.digest]);
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A window that is closed for hours yet.
fn closed() -> String {
    let clock = |hours: u64| format!("{:02}:00", (unix_time() / 3_600 + hours) % 24);
    format!("{}-{}", clock(4), clock(6))
}

#[test]
fn a_release_in_dns_is_fetched_and_handed_over_and_an_older_one_never() {
    let test = "a_release_in_dns_is_fetched_and_handed_over_and_an_older_one_never";
    let Some(s) = Scene::enter(test) else { return };
    if !Knot::is_here(&s.lab) {
        return;
    }
    let config = s.lab.file("server.toml");
    let zone = |packed: &Packed| {
        let text = format!(
            "interface = \"eth0\"\nport = {PORT}\n[[session]]\nservice = \"fw._carousel._udp.{ZONE}\"\n\
             bundle = \"{}\"\nrates = [\"{RATE}\"]\n[[server]]\nhost = \"s1.{ZONE}\"\naddress = \"{SOURCE}\"\n",
            packed.bundle.display()
        );
        fs::write(&config, text).unwrap();
        let out = bins::run(bins::server(), args(&[&"zone", &"--config", &config, &"--ttl", &"1"]));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        zone_file(ZONE, &String::from_utf8(out.stdout).unwrap())
    };
    let [old, first, second] = [41, 42, 43].map(|seq| s.release(seq, &["--compatible", "board-a"]));
    let text = zone(&first);
    let knot =
        Knot::start(&s.lab, &s.server, &[Zone { name: ZONE, text: &text, signing: Signing::Unsigned }]);
    let server = s.server.spawn(&args(&[&bins::server(), &"run", &"--config", &config]));
    scene::wait_sending(&s.server, &server);

    let d = s.device("device");
    d.configure(
        &format!("nameserver = \"{SOURCE}\"\nget = [\"--rcvbuf=1MiB\"]"),
        &format!("service = \"{ZONE}\"\n"),
    );
    let agent = d.start();
    d.reach(&agent, "ok", 42);
    d.has(&first);
    d.says(&agent, "release 42 is the newest");
    // In between it is joined to nothing.
    until("the groups to be left", LIMIT, || scene::joined(&s.host) == 0);

    let publish = |packed: &Packed| {
        knot.reload(ZONE, &zone(packed));
        server.kill(Signal::SIGHUP);
    };
    publish(&second);
    d.reach(&agent, "ok", 43);
    d.has(&second);
    publish(&old);
    d.says(&agent, "nothing below 43 is taken");
    assert_eq!((d.handed(), d.state().as_str()), (vec![42, 43], "ok"));
    // Also `get` would know, which has the same memory.
    let state = d.file("state");
    let memory = fs::read_dir(&state)
        .unwrap()
        .flatten()
        .find(|f| f.file_name().to_str().unwrap().starts_with("release-"));
    let memory = fs::read_to_string(memory.unwrap().path()).unwrap();
    assert!(memory.starts_with("fw.img\n") && memory.trim_end().ends_with(" 43"), "{memory}");
    agent.kill(Signal::SIGTERM);
    let exit = agent.finish(LIMIT);
    assert_eq!(exit.code(), 0, "{agent}");
    exit.row("the agent and all that it started: two releases by name");
}

#[test]
fn an_announce_channel_is_looked_at_and_the_data_taken_elsewhere() {
    let Some(s) = Scene::enter("an_announce_channel_is_looked_at_and_the_data_taken_elsewhere") else {
        return;
    };
    let serve = |packed: &Packed| {
        let line = args(&[
            &bins::server(),
            &"run",
            &packed.bundle,
            &"--group",
            &format!("{GROUP}@{RATE}"),
            &"--group",
            &format!("{ANNOUNCE}@100k"),
            &"--port",
            &PORT.to_string(),
            &"--interface",
            &"eth0",
        ]);
        let server = s.server.spawn(&line);
        scene::wait_sending(&s.server, &server);
        server
    };
    let d = s.device("device");
    d.configure("", &format!("{}announce_group = \"{ANNOUNCE}\"\n", fixed()));
    let first = s.release(1, &[]);
    let server = serve(&first);
    let agent = d.start();
    d.reach(&agent, "ok", 1);
    d.has(&first);
    // With nothing newer it listens to the announcements only, which are a fortieth of what is sent.
    d.says(&agent, "only what is newer than 1 is wanted");
    let before = s.host.traffic("eth0").rx_bytes;
    d.wait(&agent, "several looks", |_| s.host.traffic("eth0").rx_bytes > before + 20_000);
    assert_eq!(scene::joined(&s.host), 0, "joined to the data");
    drop(server);
    let second = s.release(2, &[]);
    let _server = serve(&second);
    d.reach(&agent, "ok", 2);
    assert_eq!(d.handed(), [1, 2]);
    d.has(&second);
}

#[test]
fn a_folder_is_swapped_in_for_the_one_before() {
    let Some(s) = Scene::enter("a_folder_is_swapped_in_for_the_one_before") else { return };
    let release = |seq: u64| {
        let folder = s.lab.fresh_dir("release");
        let mut packed = scene::unpacked(&folder, 1);
        packed.keys = s.keys.clone();
        packed.object = folder.join("tree");
        fs::create_dir(&packed.object).unwrap();
        fs::write(packed.object.join("number"), seq.to_string()).unwrap();
        fs::write(packed.object.join(format!("only-{seq}")), vec![7; 50_000]).unwrap();
        let out =
            bins::run_line(&scene::pack_line(&packed, &["--name", "fw.img", "--seq", &seq.to_string()]));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        packed
    };
    let d = s.device("device");
    d.configure("", &fixed());
    let server = s.serve(&release(1), &[]);
    let agent = d.start();
    d.reach(&agent, "ok", 1);
    drop(server);
    let _server = s.serve(&release(2), &[]);
    d.reach(&agent, "ok", 2);
    assert_eq!(fs::read_to_string(d.out().join("number")).unwrap(), "2");
    let mut there = names(&d.out());
    there.sort();
    assert_eq!(there, ["number", "only-2"]);
    assert_eq!(d.handed(), [1, 2]);
}

#[test]
fn only_what_is_for_this_kind_of_device_is_taken() {
    let Some(s) = Scene::enter("only_what_is_for_this_kind_of_device_is_taken") else { return };
    let d = s.device("device");
    d.configure("", &fixed());
    let other = s.release(9, &["--compatible", "board-b", "--compatible", "board-ab"]);
    let _other = s.serve(&other, &[]);
    let agent = d.start();
    d.says(&agent, "is for board-b, board-ab, not for board-a");
    assert_eq!(d.state(), "waiting");
    // On the same group, beside the other one.
    let ours = s.release(5, &["--compatible", "board-b", "--compatible", "board-a"]);
    let _ours = s.serve(&ours, &[]);
    d.reach(&agent, "ok", 5);
    assert_eq!(d.handed(), [5]);
    d.has(&ours);
}

#[test]
fn a_rollout_takes_devices_in_at_their_turns() {
    let Some(s) = Scene::enter("a_rollout_takes_devices_in_at_their_turns") else { return };
    // Long after all of them must have looked, on a busy machine, too.
    let later = unix_time() + 40;
    let steps = vec![Step { time: 1_000, share: 3_000 }, Step { time: later, share: 6_000 }];
    let rollout = Rollout { salt: salt_from("word"), steps };
    // Devices by their draw.
    let named = |from: u16, to: u16| {
        let mut names = (0..).map(|n| format!("device{n}"));
        names.find(|id| (from..to).contains(&rollout.draw(id))).unwrap()
    };
    let [now, then, never] =
        [(0, 3_000), (3_000, 6_000), (6_000, 10_000)].map(|(a, b)| s.device(&named(a, b)));
    let packed = s.release(7, &["--rollout", &format!("@1000=30%,@{later}=60%"), "--rollout-salt", "word"]);
    let _server = s.serve(&packed, &[]);
    let agents = [&now, &then, &never].map(|device| {
        device.configure("", &fixed());
        device.start()
    });
    // Its word ends with its turn, so it is the first to be asked.
    then.says(&agents[1], "this device has its turn on");
    now.reach(&agents[0], "ok", 7);
    never.says(&agents[2], "no step takes this device in");
    then.reach(&agents[1], "ok", 7);
    // Once, and not before its turn, however long this took.
    assert_eq!(then.handed(), [7]);
    let at = fs::read_to_string(then.file("handed")).unwrap();
    let at: u64 = at.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(at >= later, "{at} {later}");
    assert_eq!((never.handed(), never.state().as_str()), (vec![], "waiting"));
    figures::row("a turn in a rollout", &[("handed over after its moment", &format!("{} s", at - later))]);
}

#[test]
fn windows_the_inhibit_file_and_the_publisher_s_moment_hold_it_back() {
    let Some(s) = Scene::enter("windows_the_inhibit_file_and_the_publisher_s_moment_hold_it_back") else {
        return;
    };
    let d = s.device("device");
    let windows = |receive: &str, apply: &str| {
        let list = |window: &str| if window.is_empty() { String::new() } else { format!("\"{window}\"") };
        d.configure(&format!("receive = [{}]\napply = [{}]", list(receive), list(apply)), &fixed());
    };
    let first = s.release(1, &[]);
    let server = s.serve(&first, &[]);
    windows(&closed(), "");
    let agent = d.start();
    d.says(&agent, "the receive window");
    assert_eq!((d.state().as_str(), scene::joined(&s.host)), ("waiting", 0));
    // SIGHUP takes up the file.
    windows("", &closed());
    agent.kill(Signal::SIGHUP);
    d.reach(&agent, "ready", 1);
    d.says(&agent, "the apply window");
    // What is wrong with the file is said, and it goes on.
    fs::write(d.file("client.toml"), "pol = 1\n").unwrap();
    agent.kill(Signal::SIGHUP);
    until("the complaint", LIMIT, || agent.stderr().contains("client.toml: line 1: unknown field `pol`"));
    d.touch("inhibit");
    windows("", "");
    agent.kill(Signal::SIGHUP);
    d.says(&agent, "the inhibit file");
    assert_eq!((d.state().as_str(), d.handed()), ("ready", vec![]));
    d.remove("inhibit");
    d.reach(&agent, "ok", 1);
    d.has(&first);
    // It also holds back what has not begun, what a look has just found included.
    d.touch("inhibit");
    drop(server);
    let moment = unix_time() + 25;
    let second = s.release(2, &["--apply-not-before", &format!("@{moment}"), "--apply-jitter", "3s"]);
    let _server = s.serve(&second, &[]);
    d.says(&agent, "the inhibit file");
    assert_eq!((d.state().as_str(), scene::joined(&s.host)), ("ok", 0));
    d.remove("inhibit");
    d.reach(&agent, "ready", 2);
    d.says(&agent, "the moment that its publisher set");
    let apply_at = d.status().unwrap()["release"]["apply_at"].as_u64().unwrap();
    assert!((moment..=moment + 3).contains(&apply_at), "{apply_at} {moment}");
    d.reach(&agent, "ok", 2);
    let text = fs::read_to_string(d.file("handed")).unwrap();
    let at: u64 = text.lines().last().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    assert!(at >= apply_at, "{at} {apply_at}");
    figures::row("apply-not-before", &[("handed over after its moment", &format!("{} s", at - apply_at))]);
}

#[test]
fn a_command_that_fails_has_its_tries_and_a_newer_release_its_own() {
    let Some(s) = Scene::enter("a_command_that_fails_has_its_tries_and_a_newer_release_its_own") else {
        return;
    };
    let d = s.device("device");
    d.configure("", &fixed());
    d.touch("fail");
    let server = s.serve(&s.release(1, &[]), &[]);
    let agent = d.start();
    d.reach(&agent, "failed", 1);
    assert_eq!(d.handed(), [1, 1, 1]);
    d.says(&agent, "only what is newer than 1 is wanted");
    d.cut(&agent);
    let agent = d.start();
    d.says(&agent, "only what is newer than 1 is wanted");
    assert_eq!((d.state().as_str(), d.handed()), ("failed", vec![1, 1, 1]));
    d.remove("fail");
    drop(server);
    let second = s.release(2, &[]);
    let server = s.serve(&second, &[]);
    d.reach(&agent, "ok", 2);
    d.has(&second);
    // Somebody spoils what waits to be handed over: it is fetched anew.
    drop(server);
    d.touch("inhibit");
    d.says(&agent, "the inhibit file");
    d.remove("inhibit");
    // It looks at the file every five seconds, and the moment below must be one that it waits for.
    d.wait(&agent, "no inhibit file", |item| item["inhibited"] == false);
    let third = s.release(3, &["--apply-not-before", &format!("@{}", unix_time() + 20)]);
    let _server = s.serve(&third, &[]);
    d.reach(&agent, "ready", 3);
    let mut spoilt = fs::read(d.out()).unwrap();
    spoilt[7] ^= 1;
    fs::write(d.out(), spoilt).unwrap();
    // In the status that stands for a moment only: then it is on the way again.
    until("it to be noticed", LIMIT, || agent.stderr().contains("is not what was received any more"));
    d.reach(&agent, "ok", 3);
    d.has(&third);
    assert_eq!(d.handed(), [1, 1, 1, 2, 3]);
}

#[test]
fn it_goes_on_where_the_power_went_in_every_state() {
    let Some(s) = Scene::enter("it_goes_on_where_the_power_went_in_every_state") else { return };
    let d = s.device("device");
    let confirm = format!("{}confirm = \"test -e {} || exit 75\"\n", fixed(), d.file("healthy").display());
    d.configure("", &confirm);

    // Waiting: nobody sends.
    let agent = d.start();
    d.says(&agent, "no packet arrived");
    assert_eq!(d.state(), "waiting");
    d.cut(&agent);

    // Receiving: some 20 s long. The status follows every two seconds, and it is a part that has to be seen, three times.
    let packed = s.release_of(10_000_000, 1, &["--block-size", "256KiB"]);
    let _server = s.serve(&packed, &[]);
    let agent = d.start();
    let half = |item: &Value| {
        let count = |key: &str| item["progress"][key].as_u64().unwrap_or(0);
        item["state"] == "receiving"
            && count("symbols_received") * 3 > count("symbols_needed")
            && count("symbols_needed") > 0
    };
    d.wait(&agent, "a third of it", half);
    d.cut(&agent);
    assert!(d.file(".fw.img.carousel-part").exists());
    d.touch("inhibit");
    let agent = d.start();
    d.says(&agent, "the inhibit file");
    d.remove("inhibit");
    // Beginning anew it would have nothing at first; and it stops at once, also by the inhibit file.
    d.wait(&agent, "more than a quarter, at its first word", |item| {
        let count = |key: &str| item["progress"][key].as_u64().unwrap_or(0);
        let begun = count("symbols_needed") > 0;
        assert!(!begun || count("symbols_received") * 4 > count("symbols_needed"), "begun anew: {item}");
        begun
    });
    d.touch("inhibit");
    d.says(&agent, "the inhibit file");
    assert_eq!((d.state().as_str(), scene::joined(&s.host)), ("waiting", 0));
    // Ready, and the hand over does not begin.
    d.remove("inhibit");
    d.configure(&format!("apply = [\"{}\"]", closed()), &confirm);
    agent.kill(Signal::SIGHUP);
    d.reach(&agent, "ready", 1);
    d.cut(&agent);
    let agent = d.start();
    d.reach(&agent, "ready", 1);
    d.cut(&agent);

    // Verified: it is recorded for a moment only, so the disk is made to look like it.
    let record = d.file("state/watch-fw.json");
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.contains("\"ready\""), "{text}");
    fs::write(&record, text.replace("\"ready\"", "\"verified\"")).unwrap();
    let agent = d.start();
    d.reach(&agent, "ready", 1);
    assert_eq!(d.handed(), [0; 0]);
    d.cut(&agent);

    // In the middle of the command, which dies, too.
    d.configure("", &confirm);
    let mut hanging = d.hang();
    let agent = d.start();
    until("the command to run", LIMIT, || matches!(hanging.read(&mut [0; 8]), Ok(1..)));
    d.cut(&agent);
    until("the command to die", LIMIT, || matches!(hanging.read(&mut [0; 8]), Ok(0)));
    // It was not confirmed, so it is run again. Then: handed over.
    let agent = d.start();
    d.reach(&agent, "handed-over", 1);
    assert_eq!((d.handed(), d.status().unwrap()["tries"].clone()), (vec![1, 1], 2.into()));
    d.has(&packed);
    d.cut(&agent);
    let agent = d.start();
    d.says(&agent, "not confirmed yet");
    d.reach(&agent, "handed-over", 1);
    d.touch("healthy");
    d.reach(&agent, "ok", 1);
    d.cut(&agent);
    // Ok.
    let agent = d.start();
    d.says(&agent, "only what is newer than 1 is wanted");
    assert_eq!((d.state().as_str(), d.handed()), ("ok", vec![1, 1]));
}

#[test]
fn sigterm_ends_it_soon_and_keeps_the_work() {
    let Some(s) = Scene::enter("sigterm_ends_it_soon_and_keeps_the_work") else { return };
    let d = s.device("device");
    d.configure("", &fixed());
    let packed = s.release_of(6_000_000, 1, &["--block-size", "256KiB"]);
    let _server = s.serve(&packed, &[]);
    let agent = d.start();
    d.wait(&agent, "some of it", |item| {
        item["progress"]["symbols_received"].as_u64().is_some_and(|n| n > 500)
    });
    // Nobody else may use its memory.
    let second = d.start();
    assert_eq!(second.finish(LIMIT).code(), 75, "{second}");
    assert!(second.stderr().contains("another agent is at work with it"), "{second}");
    agent.kill(Signal::SIGTERM);
    let exit = agent.finish(Duration::from_secs(20));
    assert_eq!(exit.code(), 0, "{agent}");
    assert_eq!(scene::joined(&s.host), 0);
    assert!(d.file(".fw.img.carousel-part").exists() && d.file(".fw.img.carousel-log").exists());
    let agent = d.start();
    d.reach(&agent, "ok", 1);
    d.has(&packed);
    // A command is asked to end, and its try counts.
    let mut hanging = d.hang();
    let newer = s.release(2, &[]);
    drop(_server);
    let _server = s.serve(&newer, &[]);
    until("the command to run", LIMIT, || matches!(hanging.read(&mut [0; 8]), Ok(1..)));
    agent.kill(Signal::SIGTERM);
    assert_eq!(agent.finish(Duration::from_secs(20)).code(), 0, "{agent}");
    let agent = d.start();
    d.reach(&agent, "ok", 2);
    assert_eq!((d.handed(), d.status().unwrap()["tries"].clone()), (vec![1, 2, 2], 2.into()));
}

#[test]
fn get_takes_only_what_is_meant_for_it() {
    let Some(s) = Scene::enter("get_takes_only_what_is_meant_for_it") else { return };
    let soon = unix_time() + 15;
    let rollout = format!("@{soon}=100%");
    let more = [
        "--compatible",
        "board-a",
        "--rollout",
        &rollout,
        "--apply-not-before",
        "@5",
        "--apply-jitter",
        "1m",
    ];
    let packed = s.release(7, &more);
    let _server = s.serve(&packed, &[]);
    let out = s.lab.file("got");
    let get = |more: &[&str]| {
        let patience = if more.contains(&"--timeout") { &[][..] } else { &["--timeout", "2s"] };
        let line = scene::get_line(&[SOURCE], &packed, &out, &[patience, more].concat());
        let client = s.host.spawn(&line);
        (client.finish(LIMIT).code(), client)
    };
    let key_id = |client: &Running| {
        let text = client.stdout();
        let line = text.lines().find(|line| line.contains("key_id")).unwrap_or_default();
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {client}"))
    };
    // First of all, for it takes three of these seconds and must end before the turn has come.
    let (code, client) = get(&["--device-id", "somebody"]);
    assert_eq!(code, 75, "{client}");
    assert!(client.stderr().contains("this device has its turn on"), "{client}");
    let (code, client) = get(&["--compatible", "board-b"]);
    assert_eq!(code, 2, "{client}");
    assert!(client.stderr().contains("is for board-a, not for board-b"), "{client}");
    let (code, client) = get(&["--newer-than", "7"]);
    assert_eq!(code, 4, "{client}");
    assert!(client.stdout().contains("\"reason\":\"not-newer\""), "{client}");
    // A look takes nothing, and says what there is.
    let (code, client) = get(&["--look", "--compatible", "board-a"]);
    assert_eq!((code, out.exists()), (0, false), "{client}");
    let offer = key_id(&client);
    assert_eq!(
        (&offer["event"], &offer["seq"], &offer["compatible"][0]),
        (&"offer".into(), &7.into(), &"board-a".into())
    );
    assert_eq!((&offer["apply"]["not_before"], &offer["apply"]["jitter"]), (&5.into(), &60.into()));
    let by = offer["key_id"].as_str().unwrap().to_owned();
    let (code, _) = get(&["--newer-than", &format!("7@{by}")]);
    assert_eq!(code, 4);
    // It waits for its turn, if it has the patience; and who knows nothing of rollouts takes it at once.
    let state = s.lab.file("state");
    let state = state.to_str().unwrap();
    let (code, client) = get(&["--device-id", "somebody", "--timeout", "0", "--stage", "--state", state]);
    assert_eq!((code, unix_time() >= soon), (0, true), "{client}");
    assert_eq!(object::digest(&out).unwrap(), packed.digest);
    assert!(names(Path::new(state)).iter().all(|name| !name.starts_with("release-")), "it was only staged");
    fs::remove_file(&out).unwrap();
    let (code, client) = get(&["--state", state, "--newer-than", "6"]);
    assert_eq!(code, 0, "{client}");
    assert!(names(Path::new(state)).iter().any(|name| name.starts_with("release-")));
    // What the packer said is what is shown.
    let out = bins::run(bins::server(), args(&[&"inspect", &packed.bundle]));
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("rollout     100 % from 20"), "{text}");
    assert!(text.contains("apply       from 1970-01-01 00:00:05 UTC on, spread over 1 min 00 s"), "{text}");
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().flatten().map(|f| f.file_name().into_string().unwrap()).collect()
}

#[test]
fn what_is_wrong_is_told_in_one_line() {
    let dir = carousel_tests::lab::Folder::new();
    let packed = scene::pack(dir.path(), 2_000, &[]);
    let ends = |out: std::process::Output, code: i32, words: &str| {
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!((out.status.code(), text.lines().count()), (Some(code), 1), "{text}");
        assert!(text.contains(words), "{words:?} is not said: {text}");
    };
    let says = |out, words: &str| ends(out, 2, words);
    for (option, value, words) in [
        ("--rollout", "soon=5%", "2027-01-31T06:00:00Z"),
        ("--rollout", "@2=50%,@1=60%", "after the one before it"),
        ("--rollout", "@1=50%,@2=50%", "with a greater share"),
        ("--rollout", "@1=0%", "more than 0 %"),
        ("--rollout-salt", "word", "--rollout"),
        ("--apply-not-before", "2027-13-01", "2027-01-31"),
        ("--apply-jitter", "29d", "28d"),
    ] {
        says(bins::run_line(&scene::pack_line(&packed, &["--force", option, value])), words);
    }
    let config = dir.path().join("client.toml");
    let watch = |more: &[&str]| {
        let line = args(&[&"watch", &"--config", &config]).into_iter().chain(more.iter().map(Into::into));
        bins::run(bins::client(), line)
    };
    says(watch(&[]), "check the path");
    let good = "state = \"s\"\nkey = [\"k.pub\"]\ndevice_id = \"d\"\n[[watch]]\nname = \"a\"\nservice = \"b\"\nout = \"c\"\n";
    fs::write(&config, good.replace("out", "oout")).unwrap();
    says(watch(&["--check"]), "client.toml: line 7: unknown field `oout`");
    fs::write(&config, good).unwrap();
    assert!(watch(&["--check"]).status.success());
    let state = dir.path().join("s");
    assert!(!state.exists(), "it only looks");
    // It does not forget what it did because a disk did.
    fs::create_dir(&state).unwrap();
    fs::write(state.join("watch-a.json"), "{\"stage\": \"o").unwrap();
    ends(watch(&[]), 6, "watch-a.json: damaged; remove it");
}
