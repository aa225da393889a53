//! From pack to verified file through real namespaces. Each scenario prints its figures as Markdown table rows:
//! `cargo test --release -p carousel-tests --test e2e -- --nocapture`.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_tests::lab::{Lab, Loss, until};
use carousel_tests::scene::{self, AsOsString, CLIENT, Got, SOURCE, SOURCE_2, args};
use carousel_tests::{bins, lab, object};
use nix::sys::signal::Signal;
use std::fs;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// `20M`, and the same as a number.
const RATE: (&str, f64) = ("20M", 20e6);
const LIMIT: Duration = Duration::from_secs(60);

/// Gets the object once under each loss, joining at a random moment; `bar` is the most that it may take.
fn late_joins(test: &str, size: u64, (rate, bits): (&str, f64), losses: &[u32], bar: f64) {
    let Some(lab) = Lab::enter(test) else { return };
    let (s, c) = scene::pair(&lab);
    c.bill_apart("eth0");
    let packed = scene::pack(lab.dir(), size, &[]);
    let server = scene::serve(&s, &packed, rate, &[]);
    scene::wait_sending(&s, &server);
    // Time has the machine in it, which others may use too; and a decoder that waits for its turn lets packets pass.
    let within =
        |got: &Got, loss| got.over_ideal(bits, loss) <= bar + 0.05 && got.packets_per_symbol() <= bar;
    for &per_mille in losses {
        let loss = f64::from(per_mille) / 1000.0;
        c.loss("eth0", Loss::PerMille(per_mille));
        let get = || {
            std::thread::sleep(scene::random_moment(Duration::from_millis(500)));
            let out = lab.file("got");
            let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
            let got = scene::arrive(&client, &packed, &out, LIMIT);
            fs::remove_file(&out).unwrap();
            got.row(test, &format!("{rate}, p = {loss}: {:.3} x ideal", got.over_ideal(bits, loss)));
            got
        };
        let Some(mut got) = lab::conclusive(test, get) else { return };
        // A product that is too slow is so each time.
        for _ in 1..3 {
            if !within(&got, loss) {
                got = get();
            }
        }
        assert!(within(&got, loss), "three times above {bar} at p = {loss}: {got:?}");
        assert_eq!(got.done.packets_rejected, 0);
        assert!(got.exit.peak_rss <= 32 * MIB, "{got:?}");
    }
    // The link is exactly as wide as the packets.
    assert_eq!((s.snmp6().fragments(), c.snmp6().fragments()), (0, 0), "fragments on a 1,280-byte link");
    assert_eq!(s.snmp6().get("Icmp6InPktTooBigs"), 0);
}

/// 20 MiB, where joining and waiting for the manifest weigh five times what they do at 100 MiB; the table of the
/// closing note is measured by `matrix`.
#[test]
fn late_join_at_loss() {
    late_joins("late_join_at_loss", 20 * MIB, RATE, &[100], 1.06);
}

/// 100 Mbit/s, where the decoder must keep up while packets still come. On an idle machine it takes 1.04; `matrix`
/// measures that.
#[test]
fn late_join_at_100_mbit() {
    late_joins("late_join_at_100_mbit", 100 * MIB, ("100M", 100e6), &[0, 100], 1.10);
}

#[test]
fn two_servers_halve_the_time_and_one_may_die() {
    let name = "two_servers_halve_the_time_and_one_may_die";
    let Some(lab) = Lab::enter(name) else { return };
    let (s1, s2, c) = (lab.host("s1"), lab.host("s2"), lab.host("c"));
    let address = |a: &str| format!("{a}/64");
    let (a1, a2, ac) = (address(SOURCE), address(SOURCE_2), address(CLIENT));
    let _switch = lab.lan(&[(&s1, &a1), (&s2, &a2), (&c, &ac)], 1280);
    let packed = scene::pack(lab.dir(), 12 * MIB, &[]);
    let server_1 = scene::serve(&s1, &packed, RATE.0, &["--phase", "0"]);
    let server_2 = scene::serve(&s2, &packed, RATE.0, &["--phase", "1"]);
    scene::wait_sending(&s1, &server_1);
    scene::wait_sending(&s2, &server_2);
    let out = lab.file("got");
    let get = |sources: &[&str]| {
        lab::conclusive(name, || {
            let client = scene::get(&c, sources, &packed, &out, &["--force"]);
            scene::arrive(&client, &packed, &out, LIMIT)
        })
    };

    let Some(one) = get(&[SOURCE]) else { return };
    fs::remove_file(&out).unwrap();
    one.row("one of two servers", "");
    // Others may use the machine too. Servers that send the same do so each time.
    let mut ratios: Vec<f64> = Vec::new();
    while ratios.len() < 4 && ratios.iter().all(|ratio| *ratio > 0.56) {
        let Some(two) = get(&[SOURCE, SOURCE_2]) else { return };
        fs::remove_file(&out).unwrap();
        let ratio = two.exit.seconds / one.exit.seconds;
        two.row("two servers", &format!("{ratio:.3} of one server's time"));
        ratios.push(ratio);
    }
    assert!(ratios.iter().any(|ratio| *ratio <= 0.56), "{ratios:?} of {one:?}");

    let client = scene::get(&c, &[SOURCE, SOURCE_2], &packed, &out, &[]);
    scene::wait_received(&c, &client, packed.size / 2, LIMIT);
    server_2.kill(Signal::SIGKILL);
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    got.row("two servers, one killed", "");
    // What the dead one had sent lies ahead of the other: in the worst case it saved nothing, but it must not cost.
    // A client that began again would take twice as long, one that waited for the dead one twenty seconds.
    assert!(got.exit.seconds <= 1.05 * one.exit.seconds + 3.0, "{got:?}");
}

#[test]
fn killed_client_leaves_no_target_and_the_target_is_never_partial() {
    let Some(lab) = Lab::enter("killed_client_leaves_no_target_and_the_target_is_never_partial") else {
        return;
    };
    let (s, c) = scene::pair(&lab);
    let packed = scene::pack(lab.dir(), 8 * MIB, &[]);
    let server = scene::serve(&s, &packed, RATE.0, &[]);
    scene::wait_sending(&s, &server);
    let folder = lab.file("target");
    fs::create_dir(&folder).unwrap();
    let out = folder.join("got");

    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    // Far from its end: it must not get there before the signal gets to it.
    scene::wait_received(&c, &client, packed.size / 4, LIMIT);
    let works = || fs::read_dir(&folder).unwrap().next().is_some();
    until("the client to work beside the target", LIMIT, || works() || !client.is_alive());
    client.kill(Signal::SIGKILL);
    assert_eq!(client.finish(LIMIT).code(), -9);
    assert!(!out.exists(), "a killed client left a target");

    // Whatever the first one left, the second finishes; the target is whole from the first moment it is there.
    let client = scene::get(&c, &[SOURCE], &packed, &out, &[]);
    until("the target", LIMIT, || out.exists() || !client.is_alive());
    assert_eq!(object::digest(&out).unwrap_or_default(), packed.digest, "{client}");
    let got = scene::arrive(&client, &packed, &out, LIMIT);
    got.row("after a killed client", "");
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["got"], "work files remain");
}

#[test]
fn the_demonstration_ends_with_three_identical_files() {
    let Some(lab) = Lab::enter("the_demonstration_ends_with_three_identical_files") else { return };
    let packed = scene::unpacked(lab.dir(), 4 * MIB);
    let (server, object) = (bins::server(), packed.object.display().to_string());
    let out = bins::run(&server, ["demo", &object, "--rate", "20M", "--loss", "20"]);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(said.matches("identical").count(), 3, "{said}");
    assert!(said.contains("DNS") && said.contains(&packed.digest), "{said}");
}

/// Where a private network is forbidden, or is given and cannot be set up, it uses the one that is there, and says so.
#[test]
fn the_demonstration_works_where_a_private_network_is_forbidden() {
    let test = "the_demonstration_works_where_a_private_network_is_forbidden";
    let Some(lab) = Lab::enter(test) else { return };
    let (s, _c) = scene::pair(&lab);
    let packed = scene::unpacked(lab.dir(), MIB);
    for (own, forbid) in [
        ("-Ur", "echo 0 >/proc/sys/user/max_net_namespaces"),
        ("-m", "mount --bind /proc /proc && mount -o remount,bind,ro /proc"),
    ] {
        let script = format!("{{ {forbid}; }} || exit 99; exec \"$0\" demo \"$1\"");
        let before = s.traffic("eth0").tx_bytes;
        let server = bins::server();
        let words: [&dyn AsOsString; 7] = [&"unshare", &own, &"sh", &"-c", &script, &server, &packed.object];
        let demo = s.spawn(&args(&words));
        let code = demo.finish(2 * LIMIT).code();
        if code == 99 {
            lab::skip(test, &format!("{forbid}: {}", demo.stderr().trim()));
            continue;
        }
        let said = demo.stdout();
        assert_eq!((code, said.matches("identical").count()), (0, 3), "{demo}");
        assert!(said.contains("so it uses eth0") && said.contains(&packed.digest), "{said}");
        let sent = s.traffic("eth0").tx_bytes - before;
        assert!(sent < packed.size / 10, "no packet leaves this machine, it says: {sent} bytes did");
    }
}
