//! UFTP beside us, on the same cable: <https://uftp-multicast.sourceforge.net>, Debian's package `uftp`.

use crate::Bench;
use carousel_tests::bars::{Bars, Run};
use carousel_tests::lab::{self, Exit, Host, Running, until};
use carousel_tests::object;
use carousel_tests::scene::{self, Packed};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// As it is in the table of groups: the kernel prints the address byte by byte from the right.
const GROUP: (&str, &str) = ("230.4.4.1", "010404E6");
/// It gives up long before.
const LIMIT: Duration = Duration::from_secs(180);

/// A receiver that waits on the client's host, and a place to send to it from.
pub struct Uftp {
    s: Host,
    receiver: Running,
    folder: PathBuf,
}

/// What one transfer cost.
pub struct Sent {
    pub run: Run,
    /// The sender, from start to exit.
    pub sender: Exit,
    /// Bytes of the IP packets that left the sender.
    pub ip_bytes: f64,
    /// CPU time of the receiver.
    pub receiver_seconds: f64,
    /// From the first data to the last, as the sender says; the whole time if it does not say.
    pub seconds: f64,
}

impl Uftp {
    /// Starts the receiver; `None`, and a line in the report, without UFTP.
    pub fn start(bench: &Bench, bars: &mut Bars, s: &Host, c: &Host) -> Option<Self> {
        if let Some(missing) = ["uftp", "uftpd"].into_iter().find(|program| !lab::have(program)) {
            bars.say(&format!(
                "`{missing}` is missing, so nothing was compared with UFTP: `apt-get install uftp`."
            ));
            return None;
        }
        for (host, address) in [(s, "10.6.0.1/24"), (c, "10.6.0.10/24")] {
            host.tool(&format!("ip address replace {address} dev eth0"));
        }
        let folder = bench.lab.fresh_dir("uftp");
        let receiver = c.spawn(&scene::args(&[
            &"uftpd", &"-d", &"-B", &"4194304", &"-I", &"eth0", &"-M", &GROUP.0, &"-D", &folder,
        ]));
        until("uftpd to join", Duration::from_secs(10), || {
            assert!(receiver.is_alive(), "it ended: {receiver}");
            let table = c.within(|| fs::read_to_string("/proc/thread-self/net/igmp"));
            table.is_ok_and(|table| table.contains(GROUP.1))
        });
        Some(Self { s: s.clone(), receiver, folder })
    }

    /// Sends an object at this many kbit/s, or -1 for as fast as it can. `None` when it did not arrive whole.
    pub fn send(&self, packed: &Packed, kbit: i64) -> Option<Sent> {
        let (cpu, wire) = (self.receiver.cpu_nanos(), self.s.traffic("eth0").tx_bytes);
        let rate = kbit.to_string();
        let (run, sender) = crate::watched(|| {
            let line: &[&dyn scene::AsOsString] = &[
                &"uftp",
                &"-B",
                &"4194304",
                &"-I",
                &"eth0",
                &"-M",
                &GROUP.0,
                &"-P",
                &"230.5.5.7",
                &"-U",
                &"0x00000002",
                &"-R",
                &rate,
                &packed.object,
            ];
            self.s.spawn(&scene::args(line))
        });
        let exit = sender.wait(LIMIT)?;
        let arrived = self.folder.join("object");
        let whole = object::digest(&arrived).is_ok_and(|digest| digest == packed.digest);
        let _ = fs::remove_file(&arrived);
        let said = sender.stdout();
        let elapsed = said.lines().filter_map(|line| line.trim().strip_prefix("Total elapsed time:"));
        let elapsed =
            elapsed.filter_map(|rest| rest.split_ascii_whitespace().next()?.parse::<f64>().ok()).next();
        whole.then(|| Sent {
            run,
            sender: exit,
            ip_bytes: (self.s.traffic("eth0").tx_bytes - wire) as f64,
            receiver_seconds: (self.receiver.cpu_nanos() - cpu) as f64 / 1e9,
            seconds: elapsed.unwrap_or(exit.seconds),
        })
    }
}
