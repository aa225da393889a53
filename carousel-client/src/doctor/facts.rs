//! What was found out, before anybody judges it.

use super::meter::Meter;
use super::tap::Seen;
use carousel_doctor::{Counters, Link};
use std::net::Ipv6Addr;

/// All of it.
#[derive(Debug)]
pub struct Facts {
    pub link: Link,
    /// What DNS said, in words, if it was asked.
    pub dns: Option<Found>,
    /// What should arrive. Without a source: from anybody.
    pub wanted: Vec<Channel>,
    /// Where packets to a source would go: the address they would have, if there is a way.
    pub ways: Vec<(Ipv6Addr, Option<Ipv6Addr>)>,
    /// Sources that a socket may join, where the kernel says.
    pub source_limit: Option<u64>,
    /// Receive buffer asked for, and the most that the kernel gives to ordinary users.
    pub rcvbuf: u64,
    pub rcvbuf_limit: Option<u64>,
    /// Seconds since 1970.
    pub now: u64,
    /// Whether a manifest's signature was looked at.
    pub has_key: bool,
    pub heard: Heard,
}

/// One (source, group) pair and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channel {
    pub source: Option<Ipv6Addr>,
    pub group: Ipv6Addr,
    pub port: u16,
}

/// A service in DNS.
#[derive(Debug, Clone)]
pub struct Found {
    pub name: String,
    pub sources: usize,
    pub spares: usize,
    pub tiers: usize,
    pub tier: usize,
    /// `unchecked`, `insecure` or `secure`.
    pub validation: &'static str,
    pub remarks: Vec<String>,
}

/// What listening brought.
#[derive(Debug, Default)]
pub struct Heard {
    pub seconds: f64,
    /// For each wanted channel: what the kernel said to the join, whether it then knew of it, and whether it had
    /// known before.
    pub joins: Vec<Joined>,
    /// Receive buffer that the system granted.
    pub granted: Option<u64>,
    /// Who was heard through these joins.
    pub voices: Vec<Voice>,
    /// After how many seconds any source was joined as well, since some were silent.
    pub any_after: Option<f64>,
    /// Who was heard through that.
    pub strangers: Vec<(Channel, u64)>,
    /// What passed the interface, before the firewall; `None`: this process may not look.
    pub seen: Option<Seen>,
    /// The kernel's counts: at first, before the join a moment later, and at the end.
    pub counters: [Counters; 3],
    /// Seconds between the first and the second.
    pub quiet_seconds: f64,
    /// Messages that the socket dropped because its buffer was full, or they were damaged.
    pub overflowed: u64,
    /// Packets that were none of a carousel.
    pub foreign: u64,
    pub manifests: Vec<Described>,
}

#[derive(Debug, Clone, Default)]
pub struct Joined {
    pub error: Option<String>,
    pub is_known: bool,
    pub was_known: bool,
}

/// What one source sent to one group.
#[derive(Debug, Clone)]
pub struct Voice {
    pub channel: Channel,
    pub meter: Meter,
    /// Seconds from the join to its first packet.
    pub first: f64,
    /// Seconds from the first packet to the last.
    pub lasted: f64,
}

impl Voice {
    /// Bits per second.
    pub fn rate(&self) -> Option<f64> {
        (self.lasted > 0.5).then(|| self.meter.bytes as f64 * 8.0 / self.lasted)
    }
}

/// A manifest that came.
#[derive(Debug, Clone)]
pub struct Described {
    pub source: Ipv6Addr,
    pub name: String,
    pub seq: u64,
    pub size: u64,
    pub created: u64,
    pub expires: Option<u64>,
    /// Key id as claimed.
    pub key_id: Option<String>,
    /// Why it would be refused.
    pub refusal: Option<String>,
}
