//! The kernel's own texts: what stands below `/proc/net`. Pure. A line that cannot be read is left out, never fatal:
//! every kernel writes a little more than the one before.

use std::collections::HashMap;
use std::net::Ipv6Addr;

/// Not usable yet: nobody knows whether somebody else has it (linux/if_addr.h).
const TENTATIVE: u32 = 0x40;
/// Somebody else has it.
const DUPLICATE: u32 = 0x08;
/// Made for a day, for privacy.
const TEMPORARY: u32 = 0x01;
/// The route is in force (linux/route.h).
const ROUTE_UP: u32 = 1;

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// It.
    pub address: Ipv6Addr,
    /// The interface's name.
    pub interface: String,
    /// `linux/if_addr.h`.
    pub flags: u32,
}

impl Address {
    /// Whether packets may come from it.
    pub fn is_usable(&self) -> bool {
        self.flags & (TENTATIVE | DUPLICATE) == 0
    }

    /// Whether somebody else has it.
    pub fn is_duplicate(&self) -> bool {
        self.flags & DUPLICATE != 0
    }

    /// Whether it will be replaced before long.
    pub fn is_temporary(&self) -> bool {
        self.flags & TEMPORARY != 0
    }

    /// Whether it is known on this link only.
    pub fn is_link_local(&self) -> bool {
        self.address.is_unicast_link_local()
    }
}

/// `/proc/net/if_inet6`: address, index, prefix length, scope, flags, name.
pub fn addresses(text: &str) -> Vec<Address> {
    let address = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [address, _index, _prefix, _scope, flags, interface] = words[..] else { return None };
        Some(Address {
            address: hex_address(address)?,
            interface: interface.to_owned(),
            flags: u32::from_str_radix(flags, 16).ok()?,
        })
    };
    text.lines().filter_map(address).collect()
}

/// `/proc/net/ipv6_route`: whether multicast that comes in on this interface is taken in.
pub fn has_multicast_route(text: &str, interface: &str) -> bool {
    let fits = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [to, len, _, _, _, _, _, _, flags, name] = words[..] else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        // ff00::/8, or a default route to everywhere in the kernel's table of its own, which nobody has.
        let is_multicast = hex_address(to)?.octets()[0] == 0xff && u8::from_str_radix(len, 16).ok()? <= 8;
        Some(is_multicast && name == interface && flags & ROUTE_UP != 0)
    };
    text.lines().filter_map(fits).any(|fits| fits)
}

/// `/proc/net/mcfilter6`: whether some socket of this interface has joined a source of a group. (The names of
/// interfaces are cut off there; their numbers are not.)
pub fn has_joined(text: &str, index: u32, group: Ipv6Addr, source: Ipv6Addr) -> bool {
    let fits = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [number, _, of, from, included, _] = words[..] else { return None };
        let included: u64 = included.parse().ok()?;
        let same = hex_address(of)? == group && hex_address(from)? == source;
        Some(same && number.parse::<u32>().ok()? == index && included > 0)
    };
    text.lines().filter_map(fits).any(|fits| fits)
}

/// `/proc/net/igmp6`: whether some socket of this interface has joined a group, from whomever.
pub fn is_member(text: &str, index: u32, group: Ipv6Addr) -> bool {
    let fits = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let number: u32 = words.next()?.parse().ok()?;
        Some(number == index && hex_address(words.nth(1)?)? == group)
    };
    text.lines().filter_map(fits).any(|fits| fits)
}

/// A UDP socket of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpSocket {
    /// Its own address and port.
    pub local: (Ipv6Addr, u16),
    /// Whom it talks to.
    pub remote: (Ipv6Addr, u16),
    /// Connected: it talks to one place and hears nobody else.
    pub connected: bool,
}

/// `/proc/net/udp6`. An address is four numbers of the machine's own byte order.
pub fn udp_sockets(text: &str) -> Vec<UdpSocket> {
    let socket = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let place = |word: &str| {
            let (address, port) = word.split_once(':')?;
            Some((native_address(address)?, u16::from_str_radix(port, 16).ok()?))
        };
        let [_, local, remote, state, ..] = words[..] else { return None };
        Some(UdpSocket { local: place(local)?, remote: place(remote)?, connected: state == "01" })
    };
    text.lines().filter_map(socket).collect()
}

/// Name and number in each line: `/proc/net/snmp6` and `/proc/net/dev_snmp6/…`.
pub fn counts(text: &str) -> HashMap<String, u64> {
    let pair = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// 32 hexadecimal digits.
fn hex_address(word: &str) -> Option<Ipv6Addr> {
    (word.len() == 32).then(|| u128::from_str_radix(word, 16).ok().map(Ipv6Addr::from)).flatten()
}

fn native_address(word: &str) -> Option<Ipv6Addr> {
    if word.len() != 32 || !word.is_ascii() {
        return None;
    }
    let mut octets = [0; 16];
    for (at, four) in octets.chunks_exact_mut(4).enumerate() {
        let number = u32::from_str_radix(&word[at * 8..at * 8 + 8], 16).ok()?;
        four.copy_from_slice(&number.to_ne_bytes());
    }
    Some(octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_and_their_flags() {
        let text = "fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n\
                    fd000000000000000000000000000002 104 40 00 c8 enp0s31f6.100\n\
                    20010db8000000000000000000000001 04 40 00 01 eth0\n";
        let all = addresses(text);
        assert_eq!(all.len(), 3);
        assert!(all[0].is_link_local() && all[0].is_usable() && all[0].interface == "eth0");
        assert!(!all[1].is_usable() && all[1].is_duplicate() && all[1].interface == "enp0s31f6.100");
        assert!(all[2].is_temporary() && all[2].is_usable() && !all[2].is_link_local());
    }

    #[test]
    fn odd_lines_are_left_out() {
        for text in ["", "\n\n", "zz 1 2 3 4 eth0", "fe80 04 40 20 80 eth0", "\u{e4}\u{f6} : \u{fc}"] {
            assert!(addresses(text).is_empty() && udp_sockets(text).is_empty(), "{text:?}");
            assert!(!has_multicast_route(text, "eth0") && !has_joined(text, 1, ip("ff3e::1"), ip("::1")));
            assert!(!is_member(text, 1, ip("ff02::1")));
        }
        assert!(counts("Ip6InReceives -1\nIp6\n\nUdp6 99999999999999999999999\n").is_empty());
        // 32 bytes, but not of digits.
        assert!(
            udp_sockets(&format!("0: {}:0001 {}:0002 07", "\u{e4}".repeat(16), "0".repeat(32))).is_empty()
        );
    }

    #[test]
    fn the_route_for_multicast() {
        let line = |to: &str, len: &str, flags: &str| {
            let zero = "0".repeat(32);
            format!("{to:0<32} {len} {zero} 00 {zero} 00000100 00000001 00000000 {flags}     eth0\n")
        };
        let other = line("fd", "40", "00000001");
        assert!(has_multicast_route(&(other.clone() + &line("ff", "08", "00000001")), "eth0"));
        assert!(!has_multicast_route(&line("ff", "08", "00000001"), "eth1"));
        assert!(!has_multicast_route(&line("ff", "08", "00000200"), "eth0"), "not in force");
        assert!(!has_multicast_route(&line("ff02", "80", "00000001"), "eth0"), "one group only");
        assert!(!has_multicast_route(&other, "eth0"));
    }

    #[test]
    fn joins() {
        let text = "Idx Device                Multicast Address                   Source Address    INC    EXC\n\
                    \x20 2   eth0 ff3e0000000000000000000080000001 fd000006000000000000000000000001      1      0\n\
                    \x20 3 longna ff3e0000000000000000000080000001 fd000006000000000000000000000002      0      1\n";
        let group = ip("ff3e::8000:1");
        assert!(has_joined(text, 2, group, ip("fd00:6::1")));
        assert!(!has_joined(text, 3, group, ip("fd00:6::1")) && !has_joined(text, 2, group, ip("fd00:6::2")));
        assert!(!has_joined(text, 3, group, ip("fd00:6::2")), "excluded, not included");
        let text = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n";
        assert!(is_member(text, 1, ip("ff02::1")) && !is_member(text, 2, ip("ff02::1")));
    }

    #[test]
    fn sockets_that_send_and_sockets_that_hear() {
        let word = |a: &str| -> String {
            let octets = ip(a).octets();
            octets.chunks(4).map(|b| format!("{:08X}", u32::from_ne_bytes(b.try_into().unwrap()))).collect()
        };
        let text = format!(
            "  sl  local_address remote_address st tx_queue\n 12: {}:8B1C {}:138C 01 00000000:00000000 00:00000000\n \
             13: {}:138C {}:0000 07 0:0\n",
            word("fd00:6::1"),
            word("ff3e::8000:1"),
            word("ff3e::8000:1"),
            word("::")
        );
        let sockets = udp_sockets(&text);
        assert_eq!(sockets.len(), 2);
        assert_eq!(sockets[0].remote, (ip("ff3e::8000:1"), 5004));
        assert!(sockets[0].connected && !sockets[1].connected);
        assert_eq!(sockets[1].local, (ip("ff3e::8000:1"), 5004));
    }
}
