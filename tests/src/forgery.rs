//! The forger: records real packets of a channel and floods altered ones, or complains about them to their source.
//!
//! It records with a packet socket, which sees what leaves its own host as well as what passes on its LAN, so it
//! does not depend on the server letting its multicast loop back. Offsets are stated here once more on purpose:
//! an attacker reads PROTOCOL.md, not our constants.

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io::{self, Read};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::{Duration, Instant};

/// Bytes of the header every packet begins with.
const HEADER: usize = 44;
/// Where its kind stands, and where its slot.
const AT_KIND: usize = 1;
const AT_SLOT: usize = 40;
/// Manifest, hash page, block page, keys object, heartbeat.
const STATEMENTS: [u8; 5] = [0, 1, 2, 4, 5];
const IPV6: usize = 40;
const UDP: usize = 8;

/// What is wrong with the forged packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Lie {
    /// Nothing: real packets once more.
    Replay,
    /// Real headers, random bodies.
    Contents,
    /// Real packets with one wrong byte, anywhere.
    Byte,
    /// Nothing but noise.
    Noise,
    /// Manifests, pages, keys objects and heartbeats, by their headers; some well-formed, none genuine.
    Statements,
}

/// One channel: whose packets, to where.
#[derive(Clone, Copy, Debug)]
pub struct Channel {
    /// The real source.
    pub source: Ipv6Addr,
    /// The group.
    pub group: Ipv6Addr,
    /// The port.
    pub port: u16,
}

/// Records the payloads of `count` real packets that leave or pass this host, giving up after `limit`.
pub fn record(channel: &Channel, count: usize, limit: Duration) -> io::Result<Vec<Vec<u8>>> {
    let mut packets = capture(channel, count, limit)?;
    packets.iter_mut().for_each(|packet| drop(packet.drain(..IPV6 + UDP)));
    Ok(packets)
}

/// The same with their IPv6 and UDP headers.
fn capture(channel: &Channel, count: usize, limit: Duration) -> io::Result<Vec<Vec<u8>>> {
    let every_protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
    let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(every_protocol)))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    // Room for bursts; what is lost nevertheless is merely not copied.
    let _ = socket.set_recv_buffer_size(4 << 20);
    let (start, mut templates, mut buffer) = (Instant::now(), Vec::with_capacity(count), [0; 2048]);
    while templates.len() < count {
        if start.elapsed() > limit {
            return Err(io::Error::other(format!("{} of {count} packets in {limit:?}", templates.len())));
        }
        let Ok(len) = socket.read(&mut buffer) else { continue };
        if is_of(channel, &buffer[..len]) {
            templates.push(buffer[..len].to_vec());
        }
    }
    Ok(templates)
}

/// Whether this is an IPv6 packet of this channel, whole.
fn is_of(channel: &Channel, packet: &[u8]) -> bool {
    let plain_udp = packet.len() >= IPV6 + UDP + HEADER && packet[0] >> 4 == 6 && packet[6] == 17;
    plain_udp
        && packet[8..24] == channel.source.octets()
        && packet[24..40] == channel.group.octets()
        && packet[42..44] == channel.port.to_be_bytes()
}

/// Floods altered templates from `own` address at `rate` bit/s (headers counted) until `go_on` says no; it is asked
/// every few milliseconds with the number sent so far.
pub fn flood(
    templates: &[Vec<u8>],
    lie: Lie,
    channel: &Channel,
    own: Ipv6Addr,
    interface: u32,
    rate: f64,
    mut go_on: impl FnMut(u64) -> bool,
) -> io::Result<()> {
    let socket = UdpSocket::bind(SocketAddr::from((own, 0)))?;
    SockRef::from(&socket).set_multicast_if_v6(interface)?;
    SockRef::from(&socket).set_multicast_hops_v6(32)?;
    socket.connect(SocketAddrV6::new(channel.group, channel.port, 0, 0))?;
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (start, mut bits, mut sent) = (Instant::now(), 0.0, 0);
    while go_on(sent) {
        while bits < start.elapsed().as_secs_f64() * rate {
            let mut packet = templates[dice.below(templates.len())].clone();
            alter(&mut packet, lie, &mut dice);
            bits += ((packet.len() + IPV6 + UDP) * 8) as f64;
            // ENOBUFS and a forged ICMP error are somebody else's problem.
            sent += u64::from(socket.send(&packet).is_ok());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What the network is made to say about the server's packets.
#[derive(Clone, Copy, Debug)]
pub enum Complaint {
    /// Nobody has that port open (RFC 4443 section 3.1, code 4). True multicast is never answered so.
    PortUnreachable,
    /// A link on the way carries only so many bytes (RFC 4443 section 3.2).
    PacketTooBig(u32),
}

/// Sends ICMPv6 errors about a real packet of the channel to its source, one a millisecond, until `go_on` says no.
/// It needs a host that sees the packets; anybody between server and receivers does.
pub fn complain(
    channel: &Channel,
    complaint: Complaint,
    mut go_on: impl FnMut(u64) -> bool,
) -> io::Result<()> {
    let victim = capture(channel, 1, Duration::from_secs(10))?.swap_remove(0);
    let (kind, code, word) = match complaint {
        Complaint::PortUnreachable => (1, 4, 0),
        Complaint::PacketTooBig(mtu) => (2, 0, mtu),
    };
    // Bytes 2 and 3 are the checksum, which the kernel fills in on a raw ICMPv6 socket.
    let mut message = vec![kind, code, 0, 0];
    message.extend(word.to_be_bytes());
    // An error carries as much of the packet as fits into 1,280 bytes.
    message.extend(&victim[..victim.len().min(1280 - IPV6 - message.len())]);
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    let server = SocketAddrV6::new(channel.source, 0, 0, 0).into();
    let mut sent = 0;
    while go_on(sent) {
        sent += u64::from(socket.send_to(&message, &server).is_ok());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn alter(packet: &mut [u8], lie: Lie, dice: &mut Dice) {
    match lie {
        Lie::Replay => {}
        Lie::Contents => packet[HEADER..].iter_mut().for_each(|byte| *byte = dice.next() as u8),
        Lie::Byte => packet[dice.below(packet.len())] ^= 1 + dice.below(255) as u8,
        Lie::Noise => packet.iter_mut().for_each(|byte| *byte = dice.next() as u8),
        Lie::Statements => {
            packet[AT_KIND] = STATEMENTS[dice.below(STATEMENTS.len())];
            let slot = AT_SLOT + 2 + dice.below(2);
            packet[slot] = dice.next() as u8;
            // A byte somewhere near the beginning, where lengths, numbers and names stand.
            packet[HEADER + dice.below(200)] ^= 1 + dice.below(255) as u8;
        }
    }
}

/// xorshift64: a forger needs variety, not quality.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lies_are_what_they_are_called() {
        let (real, mut dice) = (vec![0x55_u8; 1232], Dice(1));
        let mut lied = |lie| {
            let mut packet = real.clone();
            alter(&mut packet, lie, &mut dice);
            packet
        };
        assert_eq!(lied(Lie::Replay), real);
        assert!(lied(Lie::Noise)[..HEADER] != real[..HEADER]);
        assert!(STATEMENTS.contains(&lied(Lie::Statements)[AT_KIND]));
        for _ in 0..1000 {
            let byte = lied(Lie::Byte);
            assert_eq!(byte.iter().zip(&real).filter(|(a, b)| a != b).count(), 1);
        }
        let contents = lied(Lie::Contents);
        assert!(contents[..HEADER] == real[..HEADER] && contents[HEADER..] != real[HEADER..]);
    }
}
