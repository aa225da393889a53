//! One interface: what the system says of it, and what to think of that.

use crate::finding::{Finding, Id};
use crate::kernel::{self, Address};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The least that an IPv6 link must carry (RFC 8200, 5), and what packets are made for.
pub const LEAST_MTU: u64 = 1280;

/// The facts of one interface.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// `eth0`.
    pub name: String,
    /// The kernel's number for it.
    pub index: u32,
    /// Somebody switched it on.
    pub is_up: bool,
    /// There is a cable, or a radio cell.
    pub has_carrier: bool,
    /// It can do multicast.
    pub has_multicast: bool,
    /// All its addresses.
    pub addresses: Vec<Address>,
    /// The kernel has IPv6.
    pub has_ipv6: bool,
    /// IPv6 is switched off here.
    pub is_disabled: bool,
    /// The longest IPv6 packet.
    pub mtu: Option<u64>,
    /// MLD version that is prescribed; 0: none.
    pub forced_mld: u64,
    /// Whether the kernel has a route for multicast here.
    pub has_multicast_route: bool,
    /// What only `/sys` tells. It may be missing, or that of another network namespace.
    pub device: Option<Device>,
}

/// What only `/sys` tells of an interface.
#[derive(Debug, Clone, Default)]
pub struct Device {
    /// A radio.
    pub is_wireless: bool,
    /// Mbit/s, where the card knows.
    pub speed: Option<u64>,
    /// Packets that wait at most.
    pub queue: Option<u64>,
    /// The bridge that it is a port of.
    pub bridge: Option<String>,
    /// It is a bridge: whether it snoops, and whether it asks.
    pub snooping: Option<(bool, bool)>,
}

impl Link {
    /// Reads all of it. `None`: there is no such interface.
    ///
    /// # Errors
    /// The system lists no interfaces.
    pub fn read(name: &str) -> io::Result<Option<Self>> {
        let mut found = None;
        let mut hardware = None;
        for entry in getifaddrs()?.filter(|entry| entry.interface_name == name) {
            found = Some(entry.flags);
            let link = entry.address.as_ref().and_then(|address| address.as_link_addr().copied());
            hardware = hardware.or(link);
        }
        let Some(flags) = found else { return Ok(None) };
        let Ok(index) = nix::net::if_::if_nametoindex(name) else { return Ok(None) };
        let setting = |key: &str| number(&format!("/proc/sys/net/ipv6/conf/{name}/{key}"));
        let everywhere = |key: &str| number(&format!("/proc/sys/net/ipv6/conf/all/{key}"));
        let table = |name: &str| fs::read_to_string(format!("/proc/net/{name}"));
        let all = table("if_inet6");
        let mut addresses = all.as_deref().map(kernel::addresses).unwrap_or_default();
        addresses.retain(|address| address.interface == name);
        // What is prescribed for all goes before what is for one.
        let forced = |key| everywhere(key).filter(|n| *n > 0).or_else(|| setting(key)).unwrap_or(0);
        let mac = hardware.and_then(|link| link.addr());
        Ok(Some(Self {
            name: name.to_owned(),
            index,
            is_up: flags.contains(InterfaceFlags::IFF_UP),
            has_carrier: flags.contains(InterfaceFlags::IFF_RUNNING),
            has_multicast: flags.contains(InterfaceFlags::IFF_MULTICAST),
            addresses,
            has_ipv6: all.is_ok(),
            is_disabled: setting("disable_ipv6") == Some(1),
            mtu: setting("mtu"),
            forced_mld: forced("force_mld_version"),
            has_multicast_route: kernel::has_multicast_route(&table("ipv6_route").unwrap_or_default(), name),
            device: Device::read(name, index, mac),
        }))
    }

    /// What is right and wrong with it, for somebody who sends or receives multicast here.
    pub fn judge(&self) -> Vec<Finding> {
        let name = &self.name;
        let mut findings = vec![self.judge_state()];
        if !self.has_ipv6 {
            findings.push(Finding::problem(
                Id::Ipv6,
                "this kernel has no IPv6",
                "remove ipv6.disable=1 from the kernel's command line, or load the module ipv6",
            ));
            return findings;
        }
        if self.is_disabled {
            findings.push(Finding::problem(
                Id::Ipv6,
                format!("IPv6 is switched off on {name}"),
                format!("sysctl -w {}=0, and look for it in /etc/sysctl.d", sysctl(name, "disable_ipv6")),
            ));
            return findings;
        }
        findings.push(Finding::ok(Id::Ipv6, format!("IPv6 is switched on on {name}")));
        findings.push(self.judge_addresses());
        findings.extend(self.mtu.map(|mtu| match mtu {
            LEAST_MTU.. => Finding::ok(Id::Mtu, format!("{name} carries packets of {mtu} bytes")),
            _ => Finding::problem(
                Id::Mtu,
                format!("{name} carries packets of {mtu} bytes, and IPv6 needs {LEAST_MTU}"),
                format!("ip link set {name} mtu 1500, or what the network below carries"),
            ),
        }));
        if self.is_up {
            findings.push(match self.has_multicast_route {
                true => Finding::ok(Id::MulticastRoute, format!("there is a route for multicast on {name}")),
                false => Finding::problem(
                    Id::MulticastRoute,
                    format!("the kernel has no route ff00::/8 on {name}, and drops all multicast there"),
                    format!("ip -6 route add multicast ff00::/8 dev {name} table local"),
                ),
            });
        }
        findings.extend(self.device.as_ref().into_iter().flat_map(|device| device.judge(name)));
        findings
    }

    fn judge_state(&self) -> Finding {
        let name = &self.name;
        if !self.is_up {
            let remedy = format!("ip link set {name} up");
            return Finding::problem(Id::LinkState, format!("{name} is down"), remedy);
        }
        if !self.has_carrier {
            return Finding::problem(
                Id::LinkState,
                format!("{name} is up and has no carrier"),
                "look at the cable, the switch's port, or the radio",
            );
        }
        if !self.has_multicast {
            return Finding::problem(
                Id::LinkState,
                format!("{name} cannot do multicast"),
                format!("ip link set {name} multicast on, or choose another interface"),
            );
        }
        Finding::ok(Id::LinkState, format!("{name} is up and can do multicast"))
    }

    fn judge_addresses(&self) -> Finding {
        let name = &self.name;
        if let Some(taken) = self.addresses.iter().find(|a| a.is_duplicate()) {
            return Finding::problem(
                Id::Addresses,
                format!("somebody else on this link has {}, too", taken.address),
                format!("give {name} another address"),
            );
        }
        let usable: Vec<&Address> = self.addresses.iter().filter(|a| a.is_usable()).collect();
        if !usable.iter().any(|a| a.is_link_local()) {
            // MLD comes from it; routers and switches take no report from elsewhere (RFC 3810, 5.2.13).
            return Finding::problem(
                Id::Addresses,
                format!("{name} has no link-local address: switches and routers take no join from it"),
                format!(
                    "sysctl -w {}=0; ip link set {name} down; ip link set {name} up",
                    sysctl(name, "addr_gen_mode")
                ),
            );
        }
        let all: Vec<String> = usable.iter().map(|a| a.address.to_string()).collect();
        Finding::ok(Id::Addresses, format!("{name} has {}", all.join(", ")))
    }
}

impl Device {
    /// Whether this is our interface or one of the same name elsewhere, number and hardware address tell.
    fn read(name: &str, index: u32, mac: Option<[u8; 6]>) -> Option<Self> {
        let folder = Path::new("/sys/class/net").join(name);
        let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
        let count = |file: &str| read(file)?.trim().parse::<u64>().ok();
        let has = |file: &str| folder.join(file).exists();
        let same_number = count("ifindex")? == u64::from(index);
        let written = mac.map(|m| m.map(|byte| format!("{byte:02x}")).join(":"));
        let same_mac = written.is_none_or(|mac| read("address").is_some_and(|text| text.trim() == mac));
        if !same_number || !same_mac {
            return None;
        }
        let bridge: Option<PathBuf> = fs::read_link(folder.join("brport/bridge")).ok();
        let snoops = count("bridge/multicast_snooping").map(|n| n > 0);
        let asks = count("bridge/multicast_querier").is_some_and(|n| n > 0);
        Some(Self {
            is_wireless: has("wireless") || has("phy80211"),
            speed: count("speed").filter(|speed| (1..=10_000_000).contains(speed)), // without a cable: 2^32 - 1
            queue: count("tx_queue_len"),
            bridge: bridge.and_then(|path| Some(path.file_name()?.to_str()?.to_owned())),
            snooping: snoops.map(|snoops| (snoops, asks)),
        })
    }

    fn judge(&self, name: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(bridge) = &self.bridge {
            findings.push(Finding::problem(
                Id::Bridge,
                format!("{name} is a port of the bridge {bridge}, which takes its packets"),
                format!("use {bridge} as the interface"),
            ));
        }
        match self.snooping {
            Some((true, false)) => findings.push(Finding::note(
                Id::Bridge,
                format!(
                    "the bridge {name} snoops and does not ask: it needs a querier elsewhere on the link"
                ),
                format!(
                    "if there is none: ip link set {name} type bridge mcast_querier 1 mcast_mld_version 2"
                ),
            )),
            Some((snoops, _)) => {
                let how = if snoops { "snoops and asks" } else { "does not snoop" };
                findings.push(Finding::ok(Id::Bridge, format!("the bridge {name} {how}")));
            }
            None => {}
        }
        if self.is_wireless {
            findings.push(Finding::note(
                Id::Wifi,
                format!("{name} is a radio: access points send multicast at the lowest rate, unacknowledged"),
                "use a cable, a low rate, or an access point that turns multicast into unicast for each station",
            ));
        }
        findings
    }
}

/// The kernel's counts at one moment; a name it lacks reads as 0.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    link: HashMap<String, u64>,
    host: HashMap<String, u64>,
}

impl Counters {
    /// Reads them: those of an interface, and those of the host.
    pub fn read(interface: &str) -> Self {
        let read = |path: String| kernel::counts(&fs::read_to_string(path).unwrap_or_default());
        Self {
            link: read(format!("/proc/net/dev_snmp6/{interface}")),
            host: read("/proc/net/snmp6".to_owned()),
        }
    }

    /// Of these numbers, for tests.
    pub fn of(link: &[(&str, u64)], host: &[(&str, u64)]) -> Self {
        let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        Self { link: map(link), host: map(host) }
    }

    /// A count of the interface.
    pub fn link(&self, name: &str) -> u64 {
        self.link.get(name).copied().unwrap_or(0)
    }

    /// A count of the whole host.
    pub fn host(&self, name: &str) -> u64 {
        self.host.get(name).copied().unwrap_or(0)
    }

    /// By how much a count of the interface has grown since.
    pub fn link_since(&self, before: &Self, name: &str) -> u64 {
        self.link(name).saturating_sub(before.link(name))
    }

    /// By how much a count of the host has grown since.
    pub fn host_since(&self, before: &Self, name: &str) -> u64 {
        self.host(name).saturating_sub(before.host(name))
    }
}

/// A setting of an interface, as sysctl takes it: it has a slash for each dot in `eth0.100` (sysctl.d(5)).
pub fn sysctl(interface: &str, key: &str) -> String {
    format!("net.ipv6.conf.{}.{key}", interface.replace('.', "/"))
}

/// The number in a file of the kernel's.
pub fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    fn address(text: &str, flags: u32) -> Address {
        Address { address: text.parse().unwrap(), interface: "eth0".into(), flags }
    }

    fn healthy() -> Link {
        Link {
            name: "eth0".into(),
            index: 2,
            is_up: true,
            has_carrier: true,
            has_multicast: true,
            addresses: vec![address("fe80::1", 0x80), address("2001:db8::1", 0)],
            has_ipv6: true,
            mtu: Some(1500),
            has_multicast_route: true,
            ..Link::default()
        }
    }

    /// What is not as it should be.
    fn trouble(link: &Link) -> Vec<(&'static str, Level)> {
        let bad = link.judge().into_iter().filter(|f| f.level != Level::Ok);
        bad.map(|f| (f.id.as_str(), f.level)).collect()
    }

    #[test]
    fn a_healthy_interface_has_no_trouble() {
        assert_eq!(trouble(&healthy()), []);
        assert_eq!(trouble(&Link { mtu: Some(1280), ..healthy() }), []);
        assert_eq!(trouble(&Link { mtu: None, ..healthy() }), []);
    }

    #[test]
    fn each_trouble_has_its_name() {
        use Level::Problem;
        let of = |link: Link| trouble(&link);
        assert_eq!(
            of(Link { is_up: false, has_multicast_route: false, ..healthy() }),
            [("link-state", Problem)]
        );
        assert_eq!(of(Link { has_carrier: false, ..healthy() }), [("link-state", Problem)]);
        assert_eq!(of(Link { has_multicast: false, ..healthy() }), [("link-state", Problem)]);
        assert_eq!(of(Link { has_ipv6: false, ..healthy() }), [("ipv6", Problem)]);
        assert_eq!(of(Link { is_disabled: true, addresses: vec![], ..healthy() }), [("ipv6", Problem)]);
        assert_eq!(of(Link { mtu: Some(1279), ..healthy() }), [("mtu", Problem)]);
        assert_eq!(of(Link { has_multicast_route: false, ..healthy() }), [("multicast-route", Problem)]);
    }

    #[test]
    fn a_link_needs_a_link_local_address_of_its_own() {
        let of = |addresses: Vec<Address>| trouble(&Link { addresses, ..healthy() });
        let bad = [("addresses", Level::Problem)];
        assert_eq!(of(vec![]), bad);
        assert_eq!(of(vec![address("2001:db8::1", 0)]), bad);
        assert_eq!(of(vec![address("fe80::1", 0x40)]), bad, "tentative");
        assert_eq!(of(vec![address("fe80::1", 0x88)]), bad, "duplicate");
        assert_eq!(of(vec![address("fe80::1", 0x80)]), [], "enough for joining");
    }

    #[test]
    fn bridges_and_radios() {
        let of = |device: Device| trouble(&Link { device: Some(device), ..healthy() });
        assert_eq!(of(Device::default()), []);
        assert_eq!(
            of(Device { bridge: Some("br0".into()), ..Device::default() }),
            [("bridge", Level::Problem)]
        );
        assert_eq!(
            of(Device { snooping: Some((true, false)), ..Device::default() }),
            [("bridge", Level::Note)]
        );
        assert_eq!(of(Device { snooping: Some((true, true)), ..Device::default() }), []);
        assert_eq!(of(Device { snooping: Some((false, false)), ..Device::default() }), []);
        assert_eq!(of(Device { is_wireless: true, ..Device::default() }), [("wifi", Level::Note)]);
    }

    #[test]
    fn sysctl_gets_names_that_it_understands() {
        assert_eq!(sysctl("eth0", "disable_ipv6"), "net.ipv6.conf.eth0.disable_ipv6");
        let vlan = Link { name: "eth0.100".into(), is_disabled: true, ..healthy() };
        let remedies: String = vlan.judge().into_iter().filter_map(|finding| finding.remedy).collect();
        assert!(remedies.contains("-w net.ipv6.conf.eth0/100.disable_ipv6=0,"), "{remedies}");
    }

    #[test]
    fn counts_that_are_missing_or_began_anew_have_not_grown() {
        let (before, after) =
            (Counters::of(&[("a", 7)], &[]), Counters::of(&[("a", 3), ("b", 1)], &[("a", 2)]));
        assert_eq!((after.link_since(&before, "a"), after.link_since(&before, "b")), (0, 1));
        assert_eq!((after.host_since(&before, "a"), after.host_since(&before, "zz")), (2, 0));
    }
}
