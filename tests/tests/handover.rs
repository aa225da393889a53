//! What the carousel brought, handed over to the real RAUC, SWUpdate and systemd-sysupdate by the recipes of
//! `deploy/handover`: two late clients behind routers, a tenth of the packets lost. Slots are ordinary files.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{self, Host, Lab, Loss, Running, until};
use carousel_tests::scene::{self, AsOsString, Packed, SOURCE, args};
use carousel_tests::topology::{Routed, SENDER};
use carousel_tests::{bins, figures, object};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// The recipes sync, which waits for all that anybody on this machine has written.
const LIMIT: Duration = Duration::from_secs(180);
const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/handover");
const SLOT: u64 = 8 * MIB;
/// What is in a slot before.
const BEFORE: u8 = 0xa5;
/// The image that a bundle installs.
const IMAGE: u64 = 6 * MIB;

/// Runs a tool in a folder; it must succeed.
fn tool(folder: &Path, script: &str) {
    let line = format!("cd \"$0\" && {script}");
    let said = bins::run_line(&args(&[&"sh", &"-euc", &line, &folder]));
    assert!(said.status.success(), "{script}: {}", String::from_utf8_lossy(&said.stderr));
}

/// Says that a test is skipped when a program is missing.
fn have(test: &str, programs: &[(&str, &str)]) -> bool {
    let missing = programs.iter().find(|(program, _)| !lab::have(program));
    if let Some((program, package)) = missing {
        lab::skip(test, &format!("the program {program} is missing: {package}"));
    }
    missing.is_none()
}

/// A file as an object, with keys of its own.
fn pack(folder: &Path, file: &Path, seq: &str) -> Packed {
    let packed = Packed {
        object: file.to_owned(),
        size: file.metadata().unwrap().len(),
        digest: object::digest(file).unwrap(),
        bundle: folder.join("F.carousel"),
        keys: scene::keygen(folder, "release"),
    };
    assert!(bins::run_line(&scene::pack_line(&packed, &["--seq", seq])).status.success());
    packed
}

/// A device with two slots, and an installer for them.
struct Device {
    host: Host,
    folder: PathBuf,
    /// What `--on-complete` is given.
    hook: String,
    environment: Vec<(&'static str, String)>,
    /// What must run meanwhile.
    running: Vec<Running>,
}

impl Device {
    fn new(lab: &Lab, host: &Host, hook: &str) -> Self {
        let folder = lab.fresh_dir("device");
        for slot in ["slot-a", "slot-b"] {
            fs::write(folder.join(slot), vec![BEFORE; SLOT as usize]).unwrap();
        }
        let environment = vec![
            ("CAROUSEL_HANDOVER_STATE", folder.join("handed-over").display().to_string()),
            ("CAROUSEL_HANDOVER_TIMEOUT", "150".to_owned()),
        ];
        let hook = format!("cd {} && {RECIPES}/{hook}", folder.display());
        Self { host: host.clone(), folder, hook, environment, running: Vec::new() }
    }

    fn slot_is(&self, slot: &str, expected: &[u8]) -> bool {
        let slot = fs::read(self.folder.join(slot)).unwrap();
        let (image, rest) = slot.split_at(expected.len());
        image == expected && rest.iter().all(|byte| *byte == BEFORE)
    }

    /// Starts a program that knows where the bus and the state are.
    fn spawn(&self, line: &[OsString]) -> Running {
        let mut words = vec![OsString::from("env")];
        words.extend(self.environment.iter().map(|(key, value)| OsString::from(format!("{key}={value}"))));
        words.extend_from_slice(line);
        self.host.spawn(&words)
    }

    fn shell(&self, script: &str) -> Running {
        self.spawn(&args(&[&"sh", &"-c", &script]))
    }

    /// A get of a new file, and then the hook.
    fn get(&self, packed: &Packed, out: &Path, more: &[&str]) -> Running {
        let state = self.folder.join("state");
        let more = [&["--state", state.to_str().unwrap(), "--on-complete", &self.hook], more].concat();
        self.spawn(&scene::get_line(&[SENDER], packed, out, &more))
    }
}

/// The bar of RAUC and SWUpdate. `make` makes the update of an image in a folder; `raise` a device that installs it, or
/// says these words if the update is not what was signed.
fn bar(
    test: &str,
    make: impl Fn(&Path) -> PathBuf,
    raise: impl Fn(&Lab, &Host) -> Device,
    words: &str,
) -> Option<(Lab, Routed, Vec<Device>)> {
    if let Some(why) = lab::routers_missing() {
        lab::skip(test, &why);
        return None;
    }
    let lab = Lab::enter(test)?;
    let net = Routed::new(&lab, 1280);
    let source = lab.fresh_dir("source");
    object::write(&source.join("rootfs.img"), IMAGE, 7).unwrap();
    let image = fs::read(source.join("rootfs.img")).unwrap();
    let update = make(&source);
    let devices: Vec<Device> = net.r[..2].iter().map(|host| raise(&lab, host)).collect();
    for device in &devices {
        device.host.loss("eth0", Loss::PerMille(100));
    }
    let serve = |packed: &Packed| {
        let server = scene::serve(&net.s, packed, "20M", &[]);
        scene::wait_sending(&net.s, &server);
        server
    };
    let untouched = |device: &Device| device.slot_is("slot-a", &[]) && device.slot_is("slot-b", &[]);

    // A bundle that was changed on the server: a byte of every record behind the manifest's.
    let packed = pack(&lab.fresh_dir("packed"), &update, "7");
    let foul = Packed { bundle: lab.file("foul.carousel"), ..packed.clone() };
    let mut bytes = fs::read(&packed.bundle).unwrap();
    bytes.iter_mut().skip(4000).step_by(600).for_each(|byte| *byte ^= 0x55);
    fs::write(&foul.bundle, bytes).unwrap();
    // One that a stranger signed, and one that is signed well and carries an update that was changed before.
    let foreign = Packed { keys: scene::keygen(&lab.fresh_dir("stranger"), "stranger"), ..packed.clone() };
    let changed = lab.file("changed");
    fs::copy(&update, &changed).unwrap();
    File::options().write(true).open(&changed).unwrap().write_all_at(b"changed", IMAGE / 2).unwrap();
    let ours = pack(&lab.fresh_dir("packed"), &changed, "8");
    for (name, served, trusted, code) in [
        ("changed on the server", &foul, &packed, 5),
        ("signed by a stranger", &packed, &foreign, 3),
        ("changed before it was packed", &ours, &ours, 7),
    ] {
        let server = serve(served);
        let clients: Vec<(&Device, Running, PathBuf)> = devices
            .iter()
            .map(|device| {
                let out = device.folder.join(format!("update of code {code}"));
                // As long as routers need for a join, and a manifest that came through.
                (device, device.get(trusted, &out, &["--timeout", "7s"]), out)
            })
            .collect();
        for (device, client, out) in clients {
            let exit = client.finish(LIMIT);
            assert_eq!(exit.code(), code, "{name}: {client}");
            exit.row(&format!("{name}: code {code}"));
            assert!(untouched(device), "{name}: {client}");
            assert!(code != 7 || client.stderr().contains(words), "{name}: {client}");
            // The object is the carousel's: whole and there, or not at all.
            assert_eq!(out.exists(), code == 7, "{name}: {client}");
            let handed_over = fs::read_dir(device.folder.join("handed-over")).map_or(0, Iterator::count);
            assert_eq!(handed_over, 0, "{name}: {client}");
        }
        drop(server);
    }

    let _server = serve(&packed);
    let mut clients = Vec::new();
    for device in &devices {
        sleep(scene::random_moment(Duration::from_secs(2))); // the moment of joining is what is drawn at random
        let out = device.folder.join("update");
        clients.push((device, device.get(&packed, &out, &[]), out));
    }
    for (device, client, out) in clients {
        let got = scene::arrive(&client, &packed, &out, LIMIT);
        got.row(&format!("installed on {}, 10 % loss", device.host.name()), "");
        assert!(got.done.packets_lost > 0, "{got:?}");
        assert!(device.slot_is("slot-b", &image), "{client}");
        assert!(device.slot_is("slot-a", &[]), "the slot that runs was written to: {client}");
        let last = client.stdout();
        assert!(last.lines().all(|line| line.starts_with('{')), "the recipe spoke in between: {client}");
        // Whoever hands over twice finds it done, and the slot is not written again.
        fs::write(device.folder.join("slot-b"), vec![BEFORE; SLOT as usize]).unwrap();
        let again = device.get(&packed, &out, &["--force", "--seed", out.to_str().unwrap()]);
        scene::arrive(&again, &packed, &out, LIMIT);
        assert!(again.stderr().contains("is installed already"), "{again}");
        assert!(again.stdout().contains("\"blocks_decoded\":0,"), "the object came again: {again}");
        assert!(device.slot_is("slot-b", &[]), "{again}");
    }
    Some((lab, net, devices))
}

// --- RAUC ---------------------------------------------------------------------------------------------------------

/// A bundle in RAUC's plain format: the others need dm-verity of the kernel.
fn raucb(folder: &Path) -> PathBuf {
    fs::create_dir(folder.join("content")).unwrap();
    fs::hard_link(folder.join("rootfs.img"), folder.join("content/rootfs.img")).unwrap();
    let manifest = "[update]\ncompatible=Lab Device\nversion=7\n[bundle]\nformat=plain\n[image.rootfs]\nfilename=rootfs.img\n";
    fs::write(folder.join("content/manifest.raucm"), manifest).unwrap();
    tool(folder, "rauc bundle --cert cert.pem --key key.pem content update.raucb");
    folder.join("update.raucb")
}

/// The bootloader, as RAUC sees it: a file for what it boots first, one for each slot's state, and a log.
const BOOTLOADER: &str = r#"#!/bin/sh
cd "${0%/*}" || exit 1
echo "$*" >>boot.log
case $1 in
  get-primary) cat boot.primary 2>/dev/null || echo A ;;
  set-primary) echo "$2" >boot.primary ;;
  get-state) cat "boot.state.$2" 2>/dev/null || echo good ;;
  set-state) echo "$3" >"boot.state.$2" ;;
esac
"#;

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=FOLDER/bus</listen>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy>
</busconfig>
"#;

impl Device {
    /// A bus of its own and RAUC's service on it, in a mount namespace of its own: it mounts what it installs.
    fn with_rauc(lab: &Lab, host: &Host, cert: &Path) -> Self {
        let mut device = Self::new(lab, host, "rauc");
        let folder = device.folder.clone();
        let file = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        file("bootloader", BOOTLOADER);
        fs::set_permissions(folder.join("bootloader"), fs::Permissions::from_mode(0o755)).unwrap();
        file("bus.conf", &BUS.replace("FOLDER", &folder.display().to_string()));
        fs::create_dir(folder.join("mount")).unwrap();
        file(
            "system.conf",
            &format!(
                "[system]\ncompatible=Lab Device\nbootloader=custom\nmountprefix={0}/mount\nstatusfile={0}/status\n\
                 [handlers]\nbootloader-custom-backend={0}/bootloader\n[keyring]\npath={1}\n\
                 [slot.rootfs.0]\ndevice={0}/slot-a\ntype=raw\nbootname=A\n\
                 [slot.rootfs.1]\ndevice={0}/slot-b\ntype=raw\nbootname=B\n",
                folder.display(),
                cert.display()
            ),
        );
        device.environment.push(("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}/bus", folder.display())));
        let configuration = format!("--config-file={}/bus.conf", folder.display());
        let bus = device.spawn(&args(&[&"dbus-daemon", &"--nofork", &configuration]));
        until("a bus", LIMIT, || {
            assert!(bus.is_alive(), "{bus}");
            UnixStream::connect(folder.join("bus")).is_ok() // its file is there before it listens
        });
        device.running.push(bus);
        device.boot("A");
        device
    }

    /// Starts RAUC's service as after booting this slot.
    fn boot(&mut self, slot: &str) {
        self.running.truncate(1); // all but the bus
        let (configuration, slot) = (self.folder.join("system.conf"), format!("--override-boot-slot={slot}"));
        let words: [&dyn AsOsString; 7] =
            [&"unshare", &"-m", &"rauc", &"--conf", &configuration, &slot, &"service"];
        let service = self.spawn(&args(&words));
        until("RAUC's service", LIMIT, || {
            assert!(service.is_alive(), "{service}");
            self.shell("rauc status").finish(LIMIT).code() == 0
        });
        self.running.push(service);
    }

    fn bootloader(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(format!("boot.{file}"))).unwrap_or_default().trim().to_owned()
    }
}

#[test]
fn rauc_installs_on_two_late_clients_and_nothing_tampered() {
    let test = "rauc_installs_on_two_late_clients_and_nothing_tampered";
    let programs = [
        ("rauc", "rauc"),
        ("dbus-daemon", "dbus-daemon"),
        ("mksquashfs", "squashfs-tools"),
        ("openssl", "openssl"),
    ];
    if !have(test, &programs) || !can_mount(test) {
        return;
    }
    let certs = lab::Folder::new();
    certificate(certs.path());
    let cert = certs.path().join("cert.pem");
    let make = |folder: &Path| {
        fs::copy(&cert, folder.join("cert.pem")).unwrap();
        fs::copy(certs.path().join("key.pem"), folder.join("key.pem")).unwrap();
        raucb(folder)
    };
    let raise = |lab: &Lab, host: &Host| Device::with_rauc(lab, host, &cert);
    let Some((_lab, _net, mut devices)) = bar(test, make, raise, "signature verification failed") else {
        return;
    };
    for device in &mut devices {
        assert_eq!(device.bootloader("primary"), "B", "what was installed is to be booted");
        assert_eq!(device.bootloader("log").matches("set-primary").count(), 1);
        // After the reboot: a check that is content, and one that is not.
        device.boot("B");
        for (check, code, state) in [("true", 0, "good"), ("false", 1, "bad")] {
            let confirm = device.shell(&format!("{RECIPES}/rauc-confirm {check}"));
            assert_eq!(confirm.finish(LIMIT).code(), code, "{confirm}");
            assert_eq!(device.bootloader("state.B"), state, "{confirm}");
        }
    }
    figures::row("RAUC", &[("after the reboot", &"marked good, then bad")]);
}

/// RAUC mounts the bundle's file system from a loop device.
fn can_mount(test: &str) -> bool {
    let Some(lab) = Lab::enter(test) else { return false };
    let image = lab.file("image");
    fs::write(&image, [0; 4096]).unwrap();
    lab::Disk::over(&lab, &image).is_some()
}

/// `cert.pem` and `key.pem`, good for signing mail and code.
fn certificate(folder: &Path) {
    tool(
        folder,
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /O=lab/CN=lab -days 3650 \
         -addext keyUsage=digitalSignature -addext extendedKeyUsage=emailProtection,codeSigning",
    );
}

// --- SWUpdate -----------------------------------------------------------------------------------------------------

/// An archive for either slot. What is installed directly goes into the slot as it is read.
fn swu(folder: &Path) -> PathBuf {
    let slot = |slot: &str| {
        format!(
            "copy-{slot}: {{ images: ( {{ filename = \"rootfs.img\"; device = \"slot-{slot}\"; type = \"raw\"; \
             sha256 = \"HASH\"; installed-directly = true; }} ); }};"
        )
    };
    let description = format!(
        "software = {{ version = \"7.0.0\"; hardware-compatibility: [ \"1.0\" ]; stable = {{ {} {} }}; }};\n",
        slot("a"),
        slot("b")
    );
    fs::write(folder.join("sw-description"), description).unwrap();
    tool(
        folder,
        "sed -i s/HASH/$(sha256sum rootfs.img | cut -d ' ' -f 1)/g sw-description
         openssl cms -sign -in sw-description -out sw-description.sig -signer cert.pem -inkey key.pem \
             -outform DER -nosmimecap -binary
         printf '%s\\n' sw-description sw-description.sig rootfs.img | cpio -o -H crc >update.swu",
    );
    folder.join("update.swu")
}

#[test]
fn swupdate_installs_on_two_late_clients_and_nothing_tampered() {
    let test = "swupdate_installs_on_two_late_clients_and_nothing_tampered";
    if !have(test, &[("swupdate", "swupdate"), ("cpio", "cpio"), ("openssl", "openssl")]) {
        return;
    }
    let certs = lab::Folder::new();
    certificate(certs.path());
    let cert = certs.path().join("cert.pem");
    let make = |folder: &Path| {
        fs::copy(&cert, folder.join("cert.pem")).unwrap();
        fs::copy(certs.path().join("key.pem"), folder.join("key.pem")).unwrap();
        swu(folder)
    };
    let hook = format!("swupdate -k {} -H lab:1.0 -e stable,copy-b", cert.display());
    let Some((_lab, _net, devices)) =
        bar(test, make, |lab, host| Device::new(lab, host, &hook), "HASH mismatch")
    else {
        return;
    };
    for device in devices {
        let left = fs::read_dir(&device.folder).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<OsString> = left.filter(|name| name.to_string_lossy().contains("handover.")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

// --- systemd-sysupdate --------------------------------------------------------------------------------------------

/// What the real program does in a root folder of its own, in which `$1` is `/usr` and `$2` is where it is elsewhere.
const IN_ITS_ROOT: &str = r#"set -eu
usr=$1 device=$2
mount -t tmpfs tmpfs "$device/root"
cd "$device/root"
mkdir -p usr proc dev run tmp "./$device"
for place in bin sbin lib lib64; do ln -s "usr/$place" "$place"; done
mount --bind "$usr" usr
mount -t proc proc proc
mount --rbind /dev dev
mount --bind "$device" "./$device"
exec chroot . /usr/lib/systemd/systemd-sysupdate --definitions="$device/sysupdate.d" update
"#;

/// The `usr` that has the program: what `get-sysupdate.sh` unpacked beside the build, or the machine's.
fn sysupdate_usr() -> Option<PathBuf> {
    let has_it = |usr: &PathBuf| usr.join("lib/systemd/systemd-sysupdate").is_file();
    let own = std::env::current_exe().unwrap_or_default();
    let near = own.ancestors().map(|dir| dir.join("lab-tools/sysupdate/usr")).find(has_it);
    near.or_else(|| Some(PathBuf::from("/usr")).filter(has_it))
}

/// Releases 9 and 10: as text, the second would be the older one.
#[test]
fn sysupdate_installs_the_newest_release() {
    let test = "sysupdate_installs_the_newest_release";
    let Some(usr) = sysupdate_usr() else {
        return lab::skip(
            test,
            "no systemd-sysupdate: run tests/run.sh, or install systemd-container 257 or newer",
        );
    };
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    let mut device = Device::new(&lab, &c, "sysupdate updates");
    let folder = device.folder.clone();
    let (updates, installed) = (folder.join("updates"), folder.join("installed"));
    for name in ["updates", "installed", "root", "sysupdate.d"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    let transfer = format!(
        "[Source]\nType=regular-file\nPath={0}/updates\nMatchPattern=firmware_@v.raw\n\
         [Target]\nType=regular-file\nPath={0}/installed\nMatchPattern=system-@v.img\nInstancesMax=2\n",
        folder.display()
    );
    fs::write(folder.join("sysupdate.d/50-firmware.transfer"), transfer).unwrap();
    fs::write(folder.join("update.sh"), IN_ITS_ROOT).unwrap();
    device.hook += &format!(" && unshare -mpf sh update.sh {} {} >&2", usr.display(), folder.display());
    let names = |folder: &Path| {
        let names =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    // Neither may be taken for a release, nor be removed.
    fs::write(updates.join("firmware_old.raw"), "").unwrap();
    fs::write(updates.join("firmware_2.raw.xz"), "").unwrap();
    let object = lab.file("firmware.raw");
    for (seq, all) in [("9", &["system-9.img"][..]), ("10", &["system-10.img", "system-9.img"])] {
        object::write(&object, 300_000, seq.parse().unwrap()).unwrap();
        let packed = pack(&lab.fresh_dir("packed"), &object, seq);
        let _server = scene::serve(&s, &packed, "20M", &[]);
        let out = folder.join("got");
        let more = ["--force", "--on-complete", &device.hook];
        let client = device.spawn(&scene::get_line(&[SOURCE], &packed, &out, &more));
        scene::arrive(&client, &packed, &out, LIMIT)
            .row(&format!("release {seq} through systemd-sysupdate"), "");
        let ready = format!("firmware_{seq}.raw");
        let mut expected = [ready.as_str(), "firmware_2.raw.xz", "firmware_old.raw"];
        expected.sort_unstable();
        assert_eq!(names(&updates), expected, "{client}");
        assert_eq!(names(&installed), all, "{client}");
        let newest = installed.join(format!("system-{seq}.img"));
        assert!(fs::read(newest).unwrap() == fs::read(&object).unwrap(), "{client}");
    }
    // What cannot be a file of theirs is refused, and the object stays.
    let refused = device.shell(&format!(
        "CAROUSEL_PATH=/dev/null CAROUSEL_NAME=x CAROUSEL_SEQ=1 {RECIPES}/sysupdate {}",
        updates.display()
    ));
    assert_eq!(refused.finish(LIMIT).code(), 1, "{refused}");
}
