//! What a channel has done so far. Its thread counts, once for each burst; the supervisor looks now and then. One of them
//! writes and one reads, so plain loads and stores do: no lock, no locked instruction.

use carousel_proto::textfile::Histogram;
use nix::libc;
use std::io;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Upper ends of the classes of lateness but the last, in seconds.
const LATE_BOUNDS: [f64; 5] = [0.0001, 0.001, 0.01, 0.1, 1.0];
/// The same in nanoseconds.
const LATE_BOUNDS_NS: [u64; 5] = [100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];

/// What keeps packets from being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The interface is down, has gone, or has no address.
    NoNetwork,
    /// Packets are longer than the interface allows.
    TooLong,
    /// A queue of this host is full.
    NoBuffers,
    /// Somebody's ICMPv6 message made a call fail; the packet is sent again.
    Refused,
    /// A packet filter of this host forbids it.
    Forbidden,
    /// Anything else.
    Other,
}

impl Trouble {
    pub const ALL: [Self; 6] =
        [Self::NoNetwork, Self::TooLong, Self::NoBuffers, Self::Refused, Self::Forbidden, Self::Other];

    /// Its name for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::NoNetwork => "no_network",
            Self::TooLong => "too_long",
            Self::NoBuffers => "no_buffers",
            Self::Refused => "refused",
            Self::Forbidden => "forbidden",
            Self::Other => "other",
        }
    }

    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::ENETDOWN | libc::ENODEV | libc::ENXIO) => {
                Self::NoNetwork
            }
            Some(libc::EMSGSIZE) => Self::TooLong,
            Some(libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN) => Self::NoBuffers,
            Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::EACCES | libc::EINTR | libc::EPROTO) => {
                Self::Refused
            }
            Some(libc::EPERM) => Self::Forbidden,
            _ => Self::Other,
        }
    }
}

/// The counts of one channel.
#[derive(Debug, Default)]
pub struct Tally {
    packets: AtomicU64,
    bytes: AtomicU64,
    unsent: AtomicU64,
    troubles: [AtomicU64; Trouble::ALL.len()],
    /// Carousel cycles, the bits of a float.
    cycles: AtomicU64,
    /// Where in the cycle it is, from 0 to 1, in the same way.
    position: AtomicU64,
    /// Nanoseconds since 1970.
    last_sent: AtomicU64,
    late: [AtomicU64; LATE_BOUNDS.len() + 1],
    late_ns: AtomicU64,
    /// The address that it sends from, once it is known.
    source: Mutex<Option<Ipv6Addr>>,
}

/// One burst.
pub struct Burst {
    /// When it was sent, in nanoseconds since 1970, and how long after it was due.
    pub at: u64,
    pub late: u64,
    /// Packets in it, those of them that the kernel took, and bytes of one.
    pub count: u64,
    pub sent: u64,
    pub packet_len: u64,
    /// Its place, and packets in the cycle.
    pub position: u64,
    pub cycle: u64,
}

/// The counts at a moment.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub packets: u64,
    pub bytes: u64,
    pub unsent: u64,
    pub troubles: [u64; Trouble::ALL.len()],
    pub cycles: f64,
    pub position: f64,
    pub last_sent: Option<f64>,
    pub source: Option<Ipv6Addr>,
    late: [u64; LATE_BOUNDS.len() + 1],
    late_seconds: f64,
}

impl Counts {
    /// How late bursts were.
    pub fn late(&self) -> Histogram<'_> {
        Histogram { bounds: &LATE_BOUNDS, counts: &self.late, sum: self.late_seconds }
    }
}

impl Tally {
    /// For the channel's thread alone.
    pub fn note(&self, burst: &Burst) {
        add(&self.packets, burst.sent);
        add(&self.bytes, burst.sent * burst.packet_len);
        add(&self.unsent, burst.count - burst.sent);
        add(&self.late[LATE_BOUNDS_NS.partition_point(|bound| *bound < burst.late)], 1);
        add(&self.late_ns, burst.late);
        let cycle = burst.cycle.max(1);
        let cycles = f64::from_bits(self.cycles.load(Relaxed)) + burst.count as f64 / cycle as f64;
        self.cycles.store(cycles.to_bits(), Relaxed);
        self.position.store(((burst.position % cycle) as f64 / cycle as f64).to_bits(), Relaxed);
        if burst.sent > 0 {
            self.last_sent.store(burst.at, Relaxed);
        }
    }

    /// For the channel's thread alone.
    pub fn note_trouble(&self, error: &io::Error) {
        add(&self.troubles[Trouble::of(error) as usize], 1);
    }

    /// It sends from there from now on.
    pub fn set_source(&self, source: Option<Ipv6Addr>) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = source;
    }

    /// For anybody.
    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let last_sent = get(&self.last_sent);
        Counts {
            packets: get(&self.packets),
            bytes: get(&self.bytes),
            unsent: get(&self.unsent),
            troubles: self.troubles.each_ref().map(get),
            cycles: f64::from_bits(get(&self.cycles)),
            position: f64::from_bits(get(&self.position)),
            last_sent: (last_sent > 0).then(|| (last_sent / 1_000_000) as f64 / 1000.0),
            source: *self.source.lock().unwrap_or_else(PoisonError::into_inner),
            late: self.late.each_ref().map(get),
            late_seconds: get(&self.late_ns) as f64 / 1e9,
        }
    }
}

/// Nobody else writes.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed) + more, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_add_up() {
        let tally = Tally::default();
        let burst =
            Burst { at: 5_000_000, late: 0, count: 10, sent: 8, packet_len: 100, position: 95, cycle: 40 };
        tally.note(&burst);
        tally.note(&Burst { late: 1_000_001, sent: 0, position: 105, at: 9_000_000, ..burst });
        tally.note_trouble(&io::Error::from_raw_os_error(libc::ENETDOWN));
        tally.note_trouble(&io::Error::other("?"));
        let counts = tally.counts();
        assert_eq!((counts.packets, counts.bytes, counts.unsent), (8, 800, 12));
        assert_eq!((counts.cycles, counts.position, counts.last_sent), (0.5, 25.0 / 40.0, Some(0.005)));
        assert_eq!(counts.late().counts, [1, 0, 1, 0, 0, 0]);
        assert_eq!(counts.troubles, [1, 0, 0, 0, 0, 1]);
        assert!(Trouble::ALL.iter().enumerate().all(|(index, trouble)| *trouble as usize == index));
    }
}
