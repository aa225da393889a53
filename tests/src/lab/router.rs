//! Routers: hosts that forward, with FRR's zebra, mgmtd and pim6d, for source-specific multicast over more than
//! one link. Unicast routes are the kernel's; the topology sets them with `Host::ip`.
//!
//! The daemons want a user and a group of their own and write below `/run` and `/var`. Each gets a root folder in
//! which that is so: a tmpfs in a mount namespace, over FRR's `usr` (the machine's, or what `get-pim6d.sh` unpacked).
//! The machine outside sees nothing of it, and root inside a user namespace is root enough.

use super::{Host, Lab, Running, until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Ipv6Addr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// FRR's daemons take a second; on a machine that does other things too, more.
const LIMIT: Duration = Duration::from_secs(30);

/// What an interface of a router is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Senders are here.
    Source,
    /// Another router is here.
    Uplink,
    /// Hosts that join groups are here: the router asks them, with MLDv2 and short timers.
    Receivers,
}

impl Role {
    fn config(self) -> &'static str {
        match self {
            Self::Source => " ipv6 pim\n ipv6 pim passive\n",
            Self::Uplink => " ipv6 pim\n ipv6 pim hello 1 4\n",
            // The response time must be below the interval that is in force when it is set; hence this order.
            Self::Receivers => {
                " ipv6 pim\n ipv6 pim passive\n ipv6 mld\n ipv6 mld version 2\n \
                 ipv6 mld query-max-response-time 10\n ipv6 mld query-interval 5\n \
                 ipv6 mld last-member-query-interval 2\n ipv6 mld last-member-query-count 2\n"
            }
        }
    }
}

/// A kernel entry for forwarding one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mroute {
    /// The sender.
    pub source: Ipv6Addr,
    /// The group.
    pub group: Ipv6Addr,
    /// Where packets come in.
    pub iif: String,
    /// Where they go out; nowhere when nobody has joined.
    pub oifs: Vec<String>,
    /// Packets that came in.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A router: a host that forwards, with FRR's zebra and pim6d.
pub struct Router {
    host: Host,
    frr: PathBuf,
    /// Holds `run`, which is the daemons' `/run/frr`, and `root`, where their root folder is mounted.
    dir: PathBuf,
    interfaces: Vec<(String, Role)>,
    /// Instead of what follows from the interfaces.
    config: Option<String>,
    daemons: Vec<Running>,
}

/// Why there can be no routers here.
pub fn routers_missing() -> Option<String> {
    if find_frr().is_some() {
        return None;
    }
    Some("no pim6d: run tests/run.sh, or tests/get-pim6d.sh DIR and set CAROUSEL_FRR=DIR".into())
}

/// The folder that has FRR in its `usr`: the one asked for, or what `run.sh` put beside the build, or the machine.
fn find_frr() -> Option<PathBuf> {
    let has_it = |dir: &PathBuf| dir.join("usr/lib/frr/pim6d").is_file();
    if let Some(asked) = std::env::var_os("CAROUSEL_FRR") {
        return fs::canonicalize(asked).ok().filter(has_it);
    }
    let own = std::env::current_exe().unwrap_or_default();
    let near = own.ancestors().map(|dir| dir.join("lab-tools/frr"));
    near.chain([PathBuf::from("/")]).find(has_it)
}

impl Lab {
    /// A new router, not yet started. Ask `routers_missing` first.
    pub fn router(&self, name: &str) -> Router {
        let frr = find_frr().unwrap_or_else(|| panic!("router {name}: {:?}", routers_missing()));
        let dir = self.file(&format!("router-{name}"));
        for sub in ["run", "root"] {
            fs::create_dir_all(dir.join(sub)).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        }
        let host = self.host(name);
        host.sysctl("net/ipv6/conf/all/forwarding", "1");
        Router { host, frr, dir, interfaces: Vec::new(), config: None, daemons: Vec::new() }
    }
}

impl Router {
    /// The host, for links, routes and counters.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Starts the daemons. `wait_ready` tells when they work.
    pub fn start(&mut self, interfaces: &[(&str, Role)]) {
        self.interfaces = interfaces.iter().map(|&(name, role)| (name.to_owned(), role)).collect();
        self.start_again();
    }

    /// The same with a configuration of pim6d that somebody else wrote. The roles only say what `wait_ready` waits for.
    pub fn start_with(&mut self, config: &str, interfaces: &[(&str, Role)]) {
        self.config = Some(config.to_owned());
        self.start(interfaces);
    }

    /// Starts the daemons with the interfaces they had before.
    pub fn start_again(&mut self) {
        assert!(self.daemons.is_empty(), "router {} runs already", self.host.name());
        let sections =
            self.interfaces.iter().map(|(name, role)| format!("interface {name}\n{}", role.config()));
        // FRR means to join again when its neighbour comes back without memory, but puts it off until the next regular
        // join (seen with 10.3): a minute by default.
        let joins = ["router pim6\n join-prune-interval 3\n".to_owned()];
        let config = self.dir.join("run/pim6d.conf");
        let text = self.config.clone().unwrap_or_else(|| sections.chain(joins).collect());
        fs::write(&config, text).unwrap_or_else(|e| panic!("{}: {e}", config.display()));
        // Each looks for the one before as it starts, and comes back for it only after seconds. Without mgmtd, which
        // old versions do not have, new ones complain a hundred times a second.
        for daemon in ["mgmtd", "zebra", "pim6d"] {
            if self.frr.join("usr/lib/frr").join(daemon).is_file() {
                let running = self.spawn(daemon);
                until(&format!("router {}: {daemon}", self.host.name()), LIMIT, || {
                    assert!(running.is_alive(), "router {}: {daemon} ended: {running}", self.host.name());
                    self.ask(daemon, "show version").is_ok()
                });
                self.daemons.push(running);
            }
        }
    }

    /// Ends the daemons as a crash does: no farewell to the neighbours. The kernel forgets their multicast routes.
    pub fn stop(&mut self) {
        for daemon in &self.daemons {
            daemon.kill(Signal::SIGKILL);
        }
        self.daemons.clear(); // and waits
    }

    /// What pim6d answers to a `show …` command.
    pub fn show(&self, command: &str) -> String {
        self.ask("pim6d", command).unwrap_or_else(|e| panic!("router {}: {command}: {e}", self.host.name()))
    }

    /// What the daemons logged, for instance about lines of their configuration that they did not understand.
    pub fn log(&self) -> String {
        self.daemons.iter().map(Running::stdout).collect()
    }

    /// Waits until every uplink has a neighbour and every receivers' interface asks its hosts.
    pub fn wait_ready(&self) {
        for (interface, role) in &self.interfaces {
            until(&format!("router {}: {interface}, {role:?}", self.host.name()), LIMIT, || {
                self.check_alive();
                self.is_ready(interface, *role)
            });
        }
    }

    /// The kernel's multicast routes.
    pub fn mroutes(&self) -> Vec<Mroute> {
        let tables = self.host.within(|| {
            let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
            read("ip6_mr_vif").and_then(|vifs| Ok((vifs, read("ip6_mr_cache")?)))
        });
        let (vifs, cache) =
            tables.unwrap_or_else(|e| panic!("router {}: multicast routes: {e}", self.host.name()));
        parse_mroutes(&vifs, &cache)
    }

    fn is_ready(&self, interface: &str, role: Role) -> bool {
        let json = |command: &str| -> Value { serde_json::from_str(&self.show(command)).unwrap_or_default() };
        match role {
            Role::Source => json("show ipv6 pim interface json")[interface]["state"] == "up",
            Role::Uplink => {
                let neighbours = &json("show ipv6 pim neighbor json")[interface];
                neighbours.as_object().is_some_and(|all| !all.is_empty())
            }
            // Not necessarily this router: a switch in between may ask in its place.
            Role::Receivers => {
                let state = &json("show ipv6 mld interface json")["default"][interface];
                state["state"] == "up" && state["querierIp"].as_str().is_some_and(|ip| ip != "::")
            }
        }
    }

    fn check_alive(&self) {
        for daemon in &self.daemons {
            assert!(daemon.is_alive(), "router {}: a daemon ended: {daemon}", self.host.name());
        }
    }

    /// Starts one daemon in the foreground, in a root folder of its own.
    fn spawn(&self, daemon: &str) -> Running {
        const SCRIPT: &str = "
            PATH=$PATH:/usr/sbin:/sbin
            usr=$1 run=$2 root=$3; shift 3
            mount -t tmpfs tmpfs \"$root\"; cd \"$root\"
            mkdir -p usr etc proc run/frr var/lib var/tmp
            for dir in bin sbin lib lib64; do ln -s usr/$dir $dir; done
            printf '%s:x:0:0::/:/bin/false\\n' root frr >etc/passwd
            printf '%s:x:0:frr\\n' frr frrvty >etc/group
            mount --rbind \"$usr\" usr; mount --rbind /proc proc; mount --bind \"$run\" run/frr
            exec chroot . \"$@\"";
        let mut line: Vec<OsString> =
            ["unshare", "-m", "sh", "-ec", SCRIPT, "sh"].into_iter().map(OsString::from).collect();
        line.extend([self.frr.join("usr"), self.dir.join("run"), self.dir.join("root")].map(OsString::from));
        line.push(format!("/usr/lib/frr/{daemon}").into());
        line.extend(["-P", "0", "--log", "stdout"].map(OsString::from));
        if daemon == "pim6d" {
            line.extend(["-f", "/run/frr/pim6d.conf"].map(OsString::from));
        }
        self.host.spawn(&line)
    }

    /// A question over a daemon's socket. It goes there with a zero byte; the answer ends with three and its code.
    fn ask(&self, daemon: &str, command: &str) -> io::Result<String> {
        let mut socket = UnixStream::connect(self.dir.join("run").join(format!("{daemon}.vty")))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(format!("{command}\0").as_bytes())?;
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let n = socket.read(&mut buffer)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(&buffer[..n]);
            if let [text @ .., 0, 0, 0, code] = &answer[..] {
                let text = String::from_utf8_lossy(text).into_owned();
                return if *code == 0 { Ok(text) } else { Err(io::Error::other(text)) };
            }
        }
    }
}

/// Reads `/proc/net/ip6_mr_vif` (index, name, …) and `/proc/net/ip6_mr_cache` (group, source, incoming index, packets,
/// bytes, packets on the wrong interface, then `index:threshold` for each way out).
fn parse_mroutes(vifs: &str, cache: &str) -> Vec<Mroute> {
    let name = |index: &str| {
        let rows = vifs.lines().skip(1).map(|line| line.split_ascii_whitespace());
        let found =
            rows.filter_map(|mut words| Some((words.next()?, words.next()?))).find(|row| row.0 == index);
        found.map_or_else(|| format!("?{index}"), |row| row.1.to_owned())
    };
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        Some(Mroute {
            group: words.first()?.parse().ok()?,
            source: words.get(1)?.parse().ok()?,
            iif: name(words.get(2)?),
            packets: words.get(3)?.parse().ok()?,
            bytes: words.get(4)?.parse().ok()?,
            oifs: words.iter().skip(6).filter_map(|out| Some(name(out.split(':').next()?))).collect(),
        })
    };
    cache.lines().skip(1).filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multicast_routes_name_their_interfaces() {
        let vifs = "Interface      BytesIn  PktsIn  BytesOut PktsOut Flags\n 0 pim6reg 0 0 0 0 00008\n 1 wan 9 9 9 9 00000\n 2 lan1 0 0 9 9 00000\n";
        let cache = "Group                            Origin                           Iif      Pkts  Bytes     Wrong  Oifs\nff3e:0000:0000:0000:0000:0000:8000:0001 fd00:000a:0000:0000:0000:0000:0000:0002 1 7 8960 0 2:1   3:1  \nff3e:0000:0000:0000:0000:0000:8000:0002 fd00:000a:0000:0000:0000:0000:0000:0002 65535 0 0 0\n";
        let routes = parse_mroutes(vifs, cache);
        let (first, second) = (&routes[0], &routes[1]);
        assert_eq!(first.group, "ff3e::8000:1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(first.source, "fd00:a::2".parse::<Ipv6Addr>().unwrap());
        assert_eq!((first.iif.as_str(), first.packets, first.bytes), ("wan", 7, 8960));
        assert_eq!(first.oifs, ["lan1", "?3"]);
        assert!(second.oifs.is_empty());
    }
}
