//! A switch that snoops: it forwards a group to the ports that asked for it, and by MLDv2 only from the sources they
//! asked for. The kernel's bridge, which is what most access switches and boxes with several ports are made of.
//!
//! Two traps (both cost an evening): `mcast_mld_version` is 1 by default, and then a join of one source opens the
//! port for all; and the querier counts from the moment it can speak, so it is switched on again once the bridge has
//! its link-local address. Until then every port is flooded.

use super::host::Host;
use super::{Lab, address, cable, process::until};
use serde_json::Value;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::Duration;

/// Nobody joins this group, so what is sent to it shows whether the switch still floods.
const NOBODYS_GROUP: Ipv6Addr = Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 0, 0x8fff, 0xfffe);

/// A snooping switch. Its ports are named `p-HOST`.
pub struct Switch {
    host: Host,
    mtu: u32,
}

/// One entry of the switch's table: who gets what from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The port.
    pub port: String,
    /// The group.
    pub group: Ipv6Addr,
    /// The source; `None`: any.
    pub source: Option<Ipv6Addr>,
}

impl Lab {
    /// A switch without ports that will be the querier of its Ethernet. Its timers are a sixtieth of the usual ones.
    pub fn switch(&self, name: &str, mtu: u32) -> Switch {
        let host = self.host(name);
        // Times in hundredths of a second: queries every 2 s, answered within 0.2 s; members and queriers that were
        // not heard twice are forgotten; a port that leaves is asked twice in 0.2 s whether anybody is left.
        host.ip(&format!(
            "link add br0 mtu {mtu} type bridge forward_delay 0 mcast_snooping 1 mcast_querier 1 \
             mcast_mld_version 2 mcast_startup_query_interval 50 mcast_query_interval 200 \
             mcast_query_response_interval 20 mcast_membership_interval 420 mcast_querier_interval 410 \
             mcast_last_member_interval 10"
        ));
        host.ip("link set br0 up");
        Switch { host, mtu }
    }
}

impl Switch {
    /// The host that is the switch.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Connects a host's new interface to a port and gives it an address with prefix length.
    pub fn plug(&self, host: &Host, interface: &str, addr: &str) {
        cable(host, interface, &self.host, &self.port(host), self.mtu);
        address(host, interface, addr);
        self.adopt(&self.port(host));
    }

    /// Connects two switches: both then are one Ethernet, and one of them is its querier.
    pub fn connect(&self, other: &Self) {
        cable(&self.host, &self.port(&other.host), &other.host, &other.port(&self.host), self.mtu);
        self.adopt(&self.port(&other.host));
        other.adopt(&other.port(&self.host));
    }

    /// Makes an interface of the switch's host a port.
    pub fn adopt(&self, port: &str) {
        self.host.ip(&format!("link set {port} master br0"));
    }

    /// The name of a host's port.
    pub fn port(&self, host: &Host) -> String {
        format!("p-{}", host.name())
    }

    /// Everything goes to this port, as to one where a router was heard: a router between sender and receivers must
    /// see all groups, and PIM snooping is not done.
    pub fn router_port(&self, host: &Host) {
        self.host.tool(&format!("bridge link set dev {} mcast_router 2", self.port(host)));
    }

    /// Waits until unasked multicast goes to no port but those where a router was heard. A switch floods until it
    /// has heard a querier.
    pub fn settle(&self) {
        let table = "bridge settle";
        self.host.nft(&format!(
            "table {table} {{
  counter copies {{ }}
  chain output {{
    type filter hook output priority 0; policy accept;
    ip6 daddr {NOBODYS_GROUP} counter name copies
  }}
}}\n"
        ));
        let socket = self.host.within(|| {
            let socket = UdpSocket::bind("[::]:0")?;
            let bridge = nix::net::if_::if_nametoindex("br0")?;
            socket2::SockRef::from(&socket).set_multicast_if_v6(bridge)?;
            std::io::Result::Ok(socket)
        });
        let socket = socket.unwrap_or_else(|e| panic!("switch {}: no probe: {e}", self.host.name()));
        let probe = SocketAddrV6::new(NOBODYS_GROUP, 9, 0, 0);
        let copies = || self.host.counters(table)("copies");
        until("the switch to stop flooding", Duration::from_secs(20), || {
            let (before, routers) = (copies(), self.routers().len() as u64);
            socket.send_to(b"?", probe).is_ok() && copies() - before <= routers
        });
        self.host.tool(&format!("nft delete table {table}"));
    }

    /// The ports where a router is known.
    fn routers(&self) -> Vec<String> {
        let table = self.table();
        let ports = table["router"]["br0"].as_array().into_iter().flatten();
        ports.filter_map(|entry| Some(entry["port"].as_str()?.to_owned())).collect()
    }

    fn table(&self) -> Value {
        let text = self.host.tool("bridge -j -d mdb show dev br0");
        serde_json::from_str(&text).map(|mut all: Value| all[0].take()).unwrap_or_default()
    }

    /// The link-local address that its queries come from. Of two queriers the one with the lower address goes on.
    pub fn address(&self) -> Ipv6Addr {
        let mut address = None;
        until("the switch's link-local address", Duration::from_secs(5), || {
            let line = self.host.ip("-o addr show dev br0 scope link -tentative");
            let word = line.split_ascii_whitespace().find(|word| word.starts_with("fe80::"));
            address = word.and_then(|word| word.split('/').next()?.parse().ok());
            address.is_some()
        });
        address.unwrap_or_else(|| panic!("switch {} has no address", self.host.name()))
    }

    /// Becomes the querier, by asking at once.
    pub fn query(&self) {
        self.address();
        self.silence();
        self.host.ip("link set br0 type bridge mcast_querier 1");
    }

    /// Stops being the querier.
    pub fn silence(&self) {
        self.host.ip("link set br0 type bridge mcast_querier 0");
    }

    /// Who has joined what, by port.
    pub fn members(&self) -> Vec<Member> {
        let table = self.table();
        let entries = table["mdb"].as_array().into_iter().flatten();
        let member = |entry: &Value| {
            Some(Member {
                port: entry["port"].as_str()?.to_owned(),
                group: entry["grp"].as_str()?.parse().ok()?,
                source: entry["src"].as_str().and_then(|text| text.parse().ok()),
            })
        };
        entries.filter_map(member).collect()
    }
}
