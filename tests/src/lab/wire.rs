//! A wire that is bad: a box with two ports that carries Ethernet frames between two hosts and loses, doubles, holds
//! back or damages those with UDP to a multicast group, in one direction. All else passes as it came, both ways: MLD
//! reports, neighbour discovery, unicast. So whatever stands beyond it (a snooping switch, a router) still works.
//!
//! The ports are TAPs: the interface is the host's, the descriptor ours. The kernel finishes checksums and cuts
//! trains into packets before we read them, and checks what we write as if a cable had brought it. One thread for
//! each direction; good for about 5,000 packets a second. The descriptors are all that holds the ports, so SIGKILL
//! removes them too.
//!
//! Unlike a cable, one end does not notice that the other is down. A fragment of a datagram passes untouched.
#![allow(unsafe_code)]

use super::host::Host;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const DEVICE: &str = "/dev/net/tun";
/// Frames that wait for us at a port, enough for a second without CPU time.
const QUEUE: usize = 10_000;
const ETHERNET: usize = 14;
const IPV6: usize = 40;
const UDP: usize = 8;

/// What a wire does to UDP multicast. The default does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// Packets that vanish.
    pub loss: WireLoss,
    /// Fraction that comes twice, each copy with a delay of its own.
    pub duplicate: f64,
    /// Each packet is held for a time of its own, uniform from nothing to this: packets overtake each other.
    pub delay_up_to: Duration,
    /// Packets that are damaged.
    pub flip: Option<Flip>,
}

/// Which packets a wire loses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum WireLoss {
    /// None.
    #[default]
    None,
    /// This fraction, each packet by itself.
    Independent(f64),
    /// Gilbert and Elliott: runs of packets are lost whole, and nothing between them.
    GilbertElliott {
        /// Packets in a burst, on average; the lengths are geometrically distributed.
        mean_burst: f64,
        /// The fraction lost in the long run.
        loss: f64,
    },
    /// Exactly every n-th packet.
    EveryNth(u64),
}

/// Damage: one bit of the UDP payload, anywhere in it, is inverted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flip {
    /// Fraction of the packets that are damaged.
    pub fraction: f64,
    /// Whether the UDP checksum is made to match, so that the application gets the packet. Otherwise the receiving
    /// kernel drops it.
    pub mend_checksum: bool,
}

/// What a wire did since `Wire::set`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireCounts {
    /// UDP multicast packets that came in.
    pub seen: u64,
    /// Those that were lost.
    pub lost: u64,
    /// Runs of packets lost one after the other.
    pub bursts: u64,
    /// Those that were sent twice.
    pub duplicated: u64,
    /// Those that were damaged.
    pub flipped: u64,
    /// Those that were held, copies included.
    pub delayed: u64,
    /// Packets sent on, copies included.
    pub forwarded: u64,
    /// Frames of any kind that found our queue full: then the run is inconclusive.
    pub overrun: u64,
}

impl WireCounts {
    /// The fraction that was lost.
    pub fn loss(&self) -> f64 {
        self.lost as f64 / self.seen.max(1) as f64
    }
}

/// A bad wire between two hosts; good until it is told otherwise. Dropping it pulls it out at both ends.
pub struct Wire {
    ends: [(Host, String); 2],
    seed: u64,
    fates: Arc<Mutex<Fates>>,
    /// Overruns before `set`.
    overrun: Mutex<u64>,
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Makes an interface in each host, up and without addresses. What goes from the first to the second may be
    /// impaired. The same seed and impairment have the same effect on the n-th packet.
    pub(super) fn new(a: (&Host, &str), b: (&Host, &str), mtu: u32, seed: u64) -> Self {
        let (port_a, port_b) = (Arc::new(port(a, mtu)), Arc::new(port(b, mtu)));
        let fates = Arc::new(Mutex::new(Fates::new(Impairment::default(), seed)));
        let (stopped, stop) = io::pipe().unwrap_or_else(|e| panic!("no pipe: {e}"));
        let stopped = Arc::new(stopped);
        let there = Direction { from: port_a.clone(), to: port_b.clone(), stopped: stopped.clone() };
        let back = Direction { from: port_b, to: port_a, stopped };
        let impaired = fates.clone();
        let threads = vec![
            thread::spawn(move || there.carry(Some(&impaired))),
            thread::spawn(move || back.carry(None)),
        ];
        let ends = [a, b].map(|(host, interface)| (host.clone(), interface.to_owned()));
        Self { ends, seed, fates, overrun: Mutex::new(0), stop: Some(stop), threads }
    }

    /// Impairs from now on, instead of what was set before; counts start at 0. What is being held still comes.
    pub fn set(&self, impairment: Impairment) {
        *lock(&self.overrun) = self.overruns();
        *lock(&self.fates) = Fates::new(impairment, self.seed);
    }

    /// What it did since `set`.
    pub fn counts(&self) -> WireCounts {
        let overrun = self.overruns() - *lock(&self.overrun);
        WireCounts { overrun, ..lock(&self.fates).counts }
    }

    /// Most packets that it held back at a moment since `set`. Where it had no CPU time for a while, what came meanwhile
    /// is held all at once, and leaves in another order altogether.
    pub fn most_held(&self) -> usize {
        lock(&self.fates).most_held
    }

    /// A TAP counts as dropped what it could not queue for us.
    fn overruns(&self) -> u64 {
        self.ends.iter().map(|(host, interface)| host.traffic(interface).tx_dropped).sum()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            let end = thread.join();
            // What the thread had to say is on stderr already; a second panic would abort the whole test program.
            assert!(end.is_ok() || thread::panicking(), "the wire broke");
        }
    }
}

/// Why there can be no wire here.
pub(super) fn obstacle() -> Option<String> {
    let error = OpenOptions::new().read(true).write(true).open(DEVICE).err()?;
    Some(format!("{DEVICE}: {error} (load the module tun, or give this user and container the device)"))
}

/// A TAP in a host, up.
fn port((host, interface): (&Host, &str), mtu: u32) -> File {
    // The device belongs to the namespace of the thread that opens it.
    let tap = host.within(|| tap(interface));
    let tap = tap.unwrap_or_else(|e| panic!("host {}: no TAP {interface}: {e}", host.name()));
    host.ip(&format!("link set {interface} mtu {mtu} txqueuelen {QUEUE} up"));
    tap
}

fn tap(interface: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(ErrorKind::InvalidFilename.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    // SAFETY: the descriptor is open and the request a valid ifreq that outlives the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// From one port to the other, until the pipe is closed.
struct Direction {
    from: Arc<File>,
    to: Arc<File>,
    stopped: Arc<PipeReader>,
}

impl Direction {
    fn carry(&self, fates: Option<&Mutex<Fates>>) {
        // The earliest first; the number keeps packets with one due time in order.
        let mut held = BinaryHeap::<Reverse<(Instant, u64, Vec<u8>)>>::new();
        let (mut number, mut buffer) = (0, vec![0; 1 << 16]);
        while self.wait(held.peek().map(|Reverse((due, ..))| *due)) {
            match (&*self.from).read(&mut buffer) {
                Ok(len) => {
                    let frame = &mut buffer[..len];
                    match fates.filter(|_| is_udp_multicast(frame)) {
                        None => _ = self.send(frame),
                        Some(fates) => {
                            let now = Instant::now();
                            for hold in lock(fates).decide(frame).into_iter().flatten() {
                                number += 1;
                                held.push(Reverse((now + hold, number, frame.to_vec())));
                            }
                            let mut fates = lock(fates);
                            fates.most_held = fates.most_held.max(held.len());
                        }
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // Somebody deleted the interface: nothing comes from there any more.
                Err(_) => return,
            }
            let now = Instant::now();
            while held.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
                let Some(Reverse((.., frame))) = held.pop() else { break };
                let sent = self.send(&frame);
                if let Some(fates) = fates {
                    lock(fates).counts.forwarded += u64::from(sent);
                }
            }
        }
    }

    /// Waits for a frame, or until a held one is due. False when it is over.
    fn wait(&self, due: Option<Instant>) -> bool {
        let mut ready =
            [&self.from.as_fd(), &self.stopped.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
        // poll's milliseconds would be too coarse.
        let limit = due.map(|due| TimeSpec::from(due.saturating_duration_since(Instant::now())));
        if let Err(e) = ppoll(&mut ready, limit, None) {
            assert!(e == nix::Error::EINTR, "the wire cannot poll: {e}");
        }
        ready[1].any() != Some(true)
    }

    /// False where a cable would have lost it too: the interface at the other end is down.
    fn send(&self, frame: &[u8]) -> bool {
        (&*self.to).write(frame).is_ok()
    }
}

fn is_udp_multicast(frame: &[u8]) -> bool {
    frame.len() >= ETHERNET + IPV6 + UDP
        && frame[12..14] == [0x86, 0xdd]
        && frame[ETHERNET + 6] == libc::IPPROTO_UDP as u8
        && frame[ETHERNET + 24] == 0xff
}

/// Decides over one packet after the other.
struct Fates {
    impairment: Impairment,
    dice: Dice,
    /// Gilbert and Elliott's bad state.
    bad: bool,
    /// Whether the last packet was lost.
    losing: bool,
    counts: WireCounts,
    most_held: usize,
}

impl Fates {
    fn new(impairment: Impairment, seed: u64) -> Self {
        let counts = WireCounts::default();
        Self { impairment, dice: Dice(seed), bad: false, losing: false, counts, most_held: 0 }
    }

    /// Damages the frame, perhaps, and says how long each of its copies is held.
    fn decide(&mut self, frame: &mut [u8]) -> [Option<Duration>; 2] {
        self.counts.seen += 1;
        let lost = self.lost();
        self.counts.bursts += u64::from(lost && !self.losing);
        self.losing = lost;
        if lost {
            self.counts.lost += 1;
            return [None; 2];
        }
        if let Some(flip) = self.impairment.flip
            && frame.len() > ETHERNET + IPV6 + UDP
            && self.dice.chance(flip.fraction)
        {
            self.counts.flipped += 1;
            let bits = (frame.len() - ETHERNET - IPV6 - UDP) * 8;
            let bit = (self.dice.fraction() * bits as f64) as usize;
            flip_payload_bit(&mut frame[ETHERNET + IPV6..], bit, flip.mend_checksum);
        }
        let twice = self.dice.chance(self.impairment.duplicate);
        self.counts.duplicated += u64::from(twice);
        [Some(self.hold()), twice.then(|| self.hold())]
    }

    fn lost(&mut self) -> bool {
        match self.impairment.loss {
            WireLoss::None => false,
            WireLoss::Independent(fraction) => self.dice.chance(fraction),
            WireLoss::EveryNth(n) => self.counts.seen.is_multiple_of(n),
            WireLoss::GilbertElliott { mean_burst, loss } => {
                let lost = self.bad;
                // As many packets per visit, on average, as the two fractions demand.
                let leave = if lost { 1.0 / mean_burst } else { loss / (1.0 - loss) / mean_burst };
                self.bad ^= self.dice.chance(leave);
                lost
            }
        }
    }

    fn hold(&mut self) -> Duration {
        let hold = self.impairment.delay_up_to.mul_f64(self.dice.fraction());
        self.counts.delayed += u64::from(!hold.is_zero());
        hold
    }
}

/// Inverts a bit of the payload of a UDP datagram, header included in `datagram`.
fn flip_payload_bit(datagram: &mut [u8], bit: usize, mend_checksum: bool) {
    let at = UDP + bit / 8;
    let mask = 0x80 >> (bit % 8);
    let word = |byte: u8| if at.is_multiple_of(2) { u16::from(byte) << 8 } else { u16::from(byte) };
    let before = word(datagram[at]);
    datagram[at] ^= mask;
    if mend_checksum {
        // RFC 1624, equation 3. Adding ones' complement, 0 and 0xffff are one number, and UDP has no use for 0.
        let old = u16::from_be_bytes([datagram[6], datagram[7]]);
        let sum = u32::from(!old) + u32::from(!before) + u32::from(word(datagram[at]));
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let new = match !(sum as u16) {
            0 => 0xffff,
            sum => sum,
        };
        datagram[6..8].copy_from_slice(&new.to_be_bytes());
    }
}

/// SplitMix64: small, seeded, and good enough for weather.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn chance(&mut self, fraction: f64) -> bool {
        self.fraction() < fraction
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(impairment: Impairment) -> Fates {
        Fates::new(impairment, 1)
    }

    /// Counts after this many packets of 100 bytes.
    fn after(packets: usize, impairment: Impairment) -> WireCounts {
        let mut fates = fates(impairment);
        for _ in 0..packets {
            fates.decide(&mut [0; 162]);
        }
        fates.counts
    }

    #[test]
    fn bursts_have_the_length_and_the_share_asked_for() {
        for (mean_burst, loss) in [(50.0, 0.01), (50.0, 0.1), (5.0, 0.4), (1.0, 0.1)] {
            let loss_model = WireLoss::GilbertElliott { mean_burst, loss };
            let c = after(5_000_000, Impairment { loss: loss_model, ..Impairment::default() });
            // At 1 % there are 1,000 bursts, the length of one has a deviation of 50, of the mean 3 %: five of them.
            let burst = c.lost as f64 / c.bursts as f64;
            assert!((burst / mean_burst - 1.0).abs() < 0.16, "{loss_model:?}: {c:?}");
            assert!((c.loss() / loss - 1.0).abs() < 0.23, "{loss_model:?}: {c:?}");
        }
    }

    #[test]
    fn independent_loss_has_no_memory() {
        let loss = WireLoss::Independent(0.1);
        let c = after(1_000_000, Impairment { loss, ..Impairment::default() });
        assert!(c.lost.abs_diff(100_000) < 1500, "{c:?}");
        assert!(c.bursts.abs_diff(90_000) < 1500, "{c:?}");
    }

    #[test]
    fn mended_checksum_is_the_one_computed_afresh() {
        // The sum over the datagram only: the pseudo-header adds a constant.
        let fold = |bytes: &[u8]| {
            let words = bytes.chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0)));
            let sum: u64 = words.sum();
            sum % 0xffff // ones' complement, with one zero
        };
        let mut dice = Dice(3);
        for len in [9, 10, 108, 109, 1232] {
            let mut datagram: Vec<u8> = (0..len).map(|_| dice.next() as u8).collect();
            let whole = fold(&datagram);
            for bit in 0..(len - UDP) * 8 {
                let before = datagram.clone();
                flip_payload_bit(&mut datagram, bit, true);
                assert_eq!(fold(&datagram), whole, "{bit} of {len}");
                let changed: u32 =
                    before[8..].iter().zip(&datagram[8..]).map(|(a, b)| (a ^ b).count_ones()).sum();
                assert_eq!(changed, 1);
                assert_ne!(datagram[6..8], [0, 0]);
            }
        }
    }
}
