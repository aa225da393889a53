//! A look at the interface before the firewall has its say, for those who may (CAP_NET_RAW): is it the network that
//! does not bring the packets, or this host that throws them away? And a look at the queries of MLD.
//!
//! The kernel's filter lets nothing else in, and hands over the headers only. What it hands over is not believed: it is
//! counted, in lists that end.

#![allow(unsafe_code)]

use nix::libc;
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};
use std::io::{self, Read};
use std::net::Ipv6Addr;

/// Bytes of a packet that are looked at.
const SNAP: u32 = 128;
/// Groups that the filter can tell from others.
const MAX_GROUPS: usize = 32;
/// Kinds of packets, and queriers, that are remembered.
const MAX_KINDS: usize = 64;
/// Packets taken at a time: the rest has to wait, or is lost.
const AT_ONCE: usize = 512;

/// Where `linux/filter.h` puts what is not in the packet: its protocol, and to whom it was sent.
const AD_PROTOCOL: u32 = (-0x1000i32) as u32;
const AD_PKTTYPE: u32 = (-0x1000i32 + 4) as u32;
/// Above this, packets are our own.
const PACKET_OTHERHOST: u32 = 3;

const IPV6_LEN: usize = 40;
/// Next header numbers.
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ICMPV6: u8 = 58;
/// An MLD query (RFC 3810, 5.1).
const MLD_QUERY: u8 = 130;

/// Sockets that may see everything and see nothing yet.
pub struct Closed {
    data: Socket,
    queries: Socket,
}

/// A look at packets for some groups, and at MLD queries.
pub struct Tap {
    data: Socket,
    queries: Socket,
    pub seen: Seen,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Kinds of packets for the groups, and how many.
    pub packets: Vec<(Kind, u64)>,
    /// Who asks, by which version of MLD.
    pub queriers: Vec<(Ipv6Addr, u8)>,
}

/// Packets of one source to one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub source: Ipv6Addr,
    pub group: Ipv6Addr,
    pub port: u16,
    /// Routers that they could still have crossed, and one.
    pub hops: u8,
}

impl Closed {
    /// Before privileges are dropped. `None`: this process may not look.
    pub fn open() -> Option<Self> {
        // Without a protocol nothing is seen before `look`.
        let socket = || Socket::new(Domain::PACKET, Type::DGRAM, None);
        Some(Self { data: socket().ok()?, queries: socket().ok()? })
    }

    /// Looks at an interface from now on.
    pub fn look(self, interface: u32, groups: &[Ipv6Addr]) -> io::Result<Tap> {
        for (socket, filter) in [(&self.data, data_filter(groups)), (&self.queries, query_filter())] {
            socket.set_nonblocking(true)?;
            socket.attach_filter(&filter)?;
            let _ = socket.set_recv_buffer_size(1 << 20);
            socket.bind(&everything_at(interface)?)?;
        }
        Ok(Tap { data: self.data, queries: self.queries, seen: Seen::default() })
    }
}

impl Tap {
    /// Takes note of what came since.
    pub fn drain(&mut self) {
        let mut bytes = [0; SNAP as usize];
        for _ in 0..AT_ONCE {
            let Ok(len) = (&self.data).read(&mut bytes) else { break };
            self.seen.handle_packet(&bytes[..len]);
        }
        for _ in 0..AT_ONCE {
            let Ok(len) = (&self.queries).read(&mut bytes) else { break };
            self.seen.handle_query(&bytes[..len]);
        }
    }
}

impl Seen {
    fn handle_packet(&mut self, bytes: &[u8]) {
        let Some(kind) = parse_packet(bytes) else { return };
        match self.packets.iter().position(|(known, _)| *known == kind) {
            Some(at) => self.packets[at].1 += 1,
            None if self.packets.len() < MAX_KINDS => self.packets.push((kind, 1)),
            None => {}
        }
    }

    fn handle_query(&mut self, bytes: &[u8]) {
        let Some(querier) = parse_query(bytes) else { return };
        if !self.queriers.contains(&querier) && self.queriers.len() < MAX_KINDS {
            self.queriers.push(querier);
        }
    }
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from)
}

/// A UDP packet to a group.
fn parse_packet(bytes: &[u8]) -> Option<Kind> {
    if bytes.len() < IPV6_LEN + 8 || bytes[0] >> 4 != 6 || bytes[6] != UDP || bytes[24] != 0xff {
        return None;
    }
    Some(Kind {
        source: address(&bytes[8..24])?,
        group: address(&bytes[24..40])?,
        port: u16::from_be_bytes([bytes[42], bytes[43]]),
        hops: bytes[7],
    })
}

/// A query, behind the hop-by-hop header that tells routers to look at it: who asks, and the version.
fn parse_query(bytes: &[u8]) -> Option<(Ipv6Addr, u8)> {
    if bytes.len() < IPV6_LEN + 8 || bytes[0] >> 4 != 6 || bytes[6] != HOP_BY_HOP || bytes[40] != ICMPV6 {
        return None;
    }
    let skip = 8 + usize::from(bytes[41]) * 8;
    let len = usize::from(u16::from_be_bytes([bytes[4], bytes[5]])).checked_sub(skip)?;
    let source = address(&bytes[8..24])?;
    let is_query = bytes.get(IPV6_LEN + skip) == Some(&MLD_QUERY);
    // RFC 3810, 8.1: 24 bytes are version 1, 28 and more are version 2. It comes from this link.
    match len {
        _ if !is_query || !source.is_unicast_link_local() => None,
        24 => Some((source, 1)),
        28.. => Some((source, 2)),
        _ => None,
    }
}

/// BPF: load absolute word or byte, jump if equal or greater, return.
fn load_word(at: u32) -> SockFilter {
    SockFilter::new((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, at)
}

fn load_byte(at: u32) -> SockFilter {
    SockFilter::new((libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, 0, 0, at)
}

fn jump(code: u32, value: u32, yes: u8, no: u8) -> SockFilter {
    SockFilter::new((libc::BPF_JMP | libc::BPF_K | code) as u16, yes, no, value)
}

fn give(bytes: u32) -> SockFilter {
    SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, bytes)
}

/// Frames of IPv6 that are not our own, with this next header; everything else is `no` steps away.
fn head(next: u8, no: u8) -> Vec<SockFilter> {
    vec![
        load_word(AD_PROTOCOL),
        jump(libc::BPF_JEQ, libc::ETH_P_IPV6 as u32, 0, no),
        load_word(AD_PKTTYPE),
        jump(libc::BPF_JGT, PACKET_OTHERHOST, no - 2, 0),
        load_byte(6),
        jump(libc::BPF_JEQ, next.into(), 0, no - 4),
    ]
}

/// UDP to one of these groups, as far as the last four bytes tell; to any, if there are too many.
fn data_filter(groups: &[Ipv6Addr]) -> Vec<SockFilter> {
    let mut ends: Vec<u32> = groups.iter().map(|group| (u128::from(*group) & 0xffff_ffff) as u32).collect();
    ends.sort_unstable();
    ends.dedup();
    let ends = if ends.len() > MAX_GROUPS { Vec::new() } else { ends };
    let count = ends.len() as u8;
    // After the head: load, jump, [load, a jump for each], drop, give.
    let tests = if count == 0 { 0 } else { count + 1 };
    let mut filter = head(UDP, 4 + 2 + tests);
    filter.push(load_byte(24));
    filter.push(jump(libc::BPF_JEQ, 0xff, if count == 0 { 1 } else { 0 }, tests));
    if count > 0 {
        filter.push(load_word(36));
        filter.extend((0..count).zip(ends).map(|(n, end)| jump(libc::BPF_JEQ, end, count - n, 0)));
    }
    filter.extend([give(0), give(SNAP)]);
    filter
}

/// Hop-by-hop header, and behind it ICMPv6.
fn query_filter() -> Vec<SockFilter> {
    let mut filter = head(HOP_BY_HOP, 4 + 2);
    filter.push(load_byte(40));
    filter.push(jump(libc::BPF_JEQ, ICMPV6.into(), 1, 0));
    filter.extend([give(0), give(SNAP)]);
    filter
}

/// All protocols of an interface: before ingress rules, where other programs that look look.
fn everything_at(interface: u32) -> io::Result<SockAddr> {
    // SAFETY: a sockaddr_ll is smaller than the storage, which is zeroed and aligned for every kind of address; the
    // length is set to what was written.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let place = storage.cast::<libc::sockaddr_ll>();
            (*place).sll_family = libc::AF_PACKET as u16;
            (*place).sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            (*place).sll_ifindex = interface as libc::c_int;
            *len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next: u8, to: &str, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, rest.len() as u8, next, 31];
        bytes.extend("fe80::9".parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend(to.parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend(rest);
        bytes
    }

    fn query(len: usize) -> Vec<u8> {
        let mut rest = vec![ICMPV6, 0, 5, 2, 0, 0, 1, 0, MLD_QUERY];
        rest.resize(8 + len, 0);
        packet(HOP_BY_HOP, "ff02::1", &rest)
    }

    #[test]
    fn packets_and_queries_are_read() {
        let bytes = packet(UDP, "ff3e::8000:1", &[0x12, 0x34, 0x13, 0x8c, 0, 8, 0, 0]);
        let kind = parse_packet(&bytes).unwrap();
        assert_eq!((kind.group, kind.port, kind.hops), ("ff3e::8000:1".parse().unwrap(), 5004, 31));
        assert_eq!(parse_query(&query(28)).unwrap().1, 2);
        assert_eq!(parse_query(&query(24)).unwrap().1, 1);
        assert_eq!(parse_query(&query(44)).unwrap().1, 2);
    }

    #[test]
    fn what_is_cut_or_something_else_is_not() {
        let udp = packet(UDP, "ff3e::8000:1", &[0; 8]);
        let query = query(28);
        for cut in 0..udp.len() {
            assert_eq!(parse_packet(&udp[..cut]), None);
        }
        for cut in 0..query.len() {
            let _ = parse_query(&query[..cut]); // no panic
        }
        assert_eq!(parse_packet(&packet(UDP, "fd00::1", &[0; 8])), None, "not to a group");
        assert_eq!(parse_packet(&query), None);
        assert_eq!(parse_query(&udp), None);
        let mut strange = query.clone();
        strange[41] = 255; // a hop-by-hop header longer than the packet
        assert_eq!(parse_query(&strange), None);
        let mut other = query.clone();
        other[48] = 143; // a report
        assert_eq!(parse_query(&other), None);
        let mut far = query;
        far[8] = 0x20; // from another link
        assert_eq!(parse_query(&far), None);
    }

    #[test]
    fn lists_end() {
        let mut seen = Seen::default();
        for port in 0..1000u16 {
            let [a, b] = port.to_be_bytes();
            seen.handle_packet(&packet(UDP, "ff3e::8000:1", &[0, 0, a, b, 0, 8, 0, 0]));
            seen.handle_query(&query(28));
        }
        assert_eq!((seen.packets.len(), seen.queriers.len()), (MAX_KINDS, 1));
    }

    /// What the kernel's filter does, for its few instructions.
    fn run(filter: &[SockFilter], bytes: &[u8], protocol: u32, kind: u32) -> u32 {
        // SAFETY: SockFilter is a transparent wrapper of this.
        let filter: &[libc::sock_filter] =
            unsafe { std::slice::from_raw_parts(filter.as_ptr().cast(), filter.len()) };
        let (mut at, mut value) = (0, 0);
        loop {
            let libc::sock_filter { code, jt, jf, k } = filter[at];
            let (code, index) = (u32::from(code), k as usize);
            at += 1;
            if code & 7 == libc::BPF_RET {
                return k;
            } else if code & 7 == libc::BPF_JMP {
                let yes = if code & 0xf0 == libc::BPF_JGT { value > k } else { value == k };
                at += usize::from(if yes { jt } else { jf });
            } else if k == AD_PROTOCOL {
                value = protocol;
            } else if k == AD_PKTTYPE {
                value = kind;
            } else if code & 0x18 == libc::BPF_B {
                value = bytes[index].into();
            } else {
                value = u32::from_be_bytes(bytes[index..index + 4].try_into().unwrap());
            }
        }
    }

    #[test]
    fn the_filters_take_what_they_should() {
        let groups: Vec<Ipv6Addr> =
            ["ff3e::8000:1", "ff3e::8000:2", "ff3e::8000:3"].map(|g| g.parse().unwrap()).to_vec();
        let many: Vec<Ipv6Addr> = (0..100u128).map(|n| Ipv6Addr::from((0xff3e << 112) + n)).collect();
        let to = |group: &str| packet(UDP, group, &[0; 8]);
        let ipv6 = libc::ETH_P_IPV6 as u32;
        for some in 1..=3 {
            for (n, group) in ["ff3e::8000:1", "ff3e::8000:2", "ff3e::8000:3"].into_iter().enumerate() {
                let taken = run(&data_filter(&groups[..some]), &to(group), ipv6, 2);
                assert_eq!(taken, if n < some { SNAP } else { 0 }, "{some} {group}");
            }
        }
        assert_eq!(run(&data_filter(&many), &to("ff3e::8000:1"), ipv6, 2), SNAP, "too many to tell");
        assert_eq!(run(&data_filter(&groups), &to("fd00::8000:1"), ipv6, 0), 0, "no group");
        assert_eq!(run(&data_filter(&groups), &to("ff3e::8000:1"), ipv6, 4), 0, "our own");
        assert_eq!(run(&data_filter(&groups), &to("ff3e::8000:1"), 0x0800, 2), 0, "IPv4");
        assert_eq!(run(&data_filter(&groups), &query(28), ipv6, 2), 0);
        assert_eq!(run(&query_filter(), &query(28), ipv6, 2), SNAP);
        assert_eq!(run(&query_filter(), &to("ff3e::8000:1"), ipv6, 2), 0);
        assert_eq!(run(&query_filter(), &query(28), ipv6, 4), 0);
    }
}
