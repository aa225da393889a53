//! The kernel's own counts, read inside a host: what the scenarios argue with.

use std::collections::HashMap;
use std::fs;

/// Packets and bytes of one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received. Ethernet headers count, but not where [`super::Host::bill_apart`] is at one of the ends.
    pub rx_bytes: u64,
    /// Packets received and dropped by the device.
    pub rx_dropped: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent: as received.
    pub tx_bytes: u64,
    /// Packets the device could not send.
    pub tx_dropped: u64,
}

/// A host's IPv6 and UDP counters (`/proc/net/snmp6`), by the kernel's names; a name it lacks reads as 0.
#[derive(Clone, Debug, Default)]
pub struct Snmp6(HashMap<String, u64>);

impl Snmp6 {
    /// One counter, e.g. `Udp6RcvbufErrors`.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Everything that would show a fragment, made or received, refused or reassembled.
    pub fn fragments(&self) -> u64 {
        let names =
            ["Ip6FragCreates", "Ip6FragOKs", "Ip6FragFails", "Ip6ReasmReqds", "Ip6ReasmOKs", "Ip6ReasmFails"];
        names.iter().map(|name| self.get(name)).sum()
    }

    /// Datagrams that found the receive buffer full: the machine's loss, not the network's.
    pub fn buffer_losses(&self) -> u64 {
        self.get("Udp6RcvbufErrors")
    }
}

/// Reads `/proc/net/dev` of the calling thread's namespace (`/proc/net` would show the main thread's).
pub(super) fn traffic(interface: &str) -> Option<Traffic> {
    parse_traffic(&fs::read_to_string("/proc/thread-self/net/dev").ok()?, interface)
}

/// Reads `/proc/net/snmp6` of the calling thread's namespace.
pub(super) fn snmp6() -> Snmp6 {
    parse_snmp6(&fs::read_to_string("/proc/thread-self/net/snmp6").unwrap_or_default())
}

/// Packets the kernel dropped because a CPU's backlog was full, machine-wide. A run during which this grows is
/// inconclusive, not failed.
pub fn softnet_drops() -> u64 {
    let text = fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    text.lines().filter_map(|line| u64::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok()).sum()
}

fn parse_traffic(text: &str, interface: &str) -> Option<Traffic> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    let n: Vec<u64> = line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    Some(Traffic {
        rx_bytes: *n.first()?,
        rx_packets: *n.get(1)?,
        rx_dropped: *n.get(3)?,
        tx_bytes: *n.get(8)?,
        tx_packets: *n.get(9)?,
        tx_dropped: *n.get(11)?,
    })
}

fn parse_snmp6(text: &str) -> Snmp6 {
    let pair = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    Snmp6(text.lines().filter_map(pair).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_lines_are_found_by_whole_name() {
        let text = "Inter-| Receive\n face |bytes\n  eth01: 9 9 9 9 9 9 9 9 9 9 9 9\n  eth0: 1 2 3 4 5 6 7 8 10 11 0 13 0 0 0 0\n";
        let t = parse_traffic(text, "eth0").unwrap();
        assert_eq!((t.rx_bytes, t.rx_packets, t.rx_dropped), (1, 2, 4));
        assert_eq!((t.tx_bytes, t.tx_packets, t.tx_dropped), (10, 11, 13));
        assert!(parse_traffic(text, "eth1").is_none());
    }

    #[test]
    fn missing_counters_read_as_zero() {
        let s = parse_snmp6("Ip6FragCreates \t3\nUdp6RcvbufErrors 4\n");
        assert_eq!((s.fragments(), s.buffer_losses(), s.get("nonsense")), (3, 4, 0));
    }
}
