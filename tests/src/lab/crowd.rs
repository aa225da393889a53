//! A crowd: one Ethernet with a server's host and hundreds of others behind a switch that snoops MLDv2.
//!
//! `Lab::lan` would take minutes for it: a dozen programs for each port, and a probe for each pair. Here it is three
//! programs for each host and one probe for all of them.

use super::receiver::join;
use super::{Host, Lab, address, bare, cable, until};
use std::fmt::Write as _;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::Duration;

/// What the probe is sent to; no scenario uses it.
const PROBED: SocketAddrV6 = SocketAddrV6::new(Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 0, 0x8000, 0xfffe), 9, 0, 0);
/// A group that nobody joins.
const UNWANTED: SocketAddrV6 =
    SocketAddrV6::new(Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 0, 0x8000, 0xffff), 9, 0, 0);
/// Few enough that 200 copies of each fit into the kernel's backlog of 1,000 packets.
const UNWANTED_COUNT: u64 = 4;
const LIMIT: Duration = Duration::from_secs(20);

/// A server's host, a switch, and a crowd of hosts, each with an `eth0`.
pub struct Crowd {
    /// The sender's host; its port on the switch is `p0`, received on by a thread of its own.
    pub server: Host,
    /// The bridge `br0` with its ports: `p0` for the server, `p1` for the first member, and so on.
    pub switch: Host,
    /// The others. The first is `fd00:6::1:1`, the second `fd00:6::1:2`, counted in hexadecimal.
    pub members: Vec<Host>,
}

impl Lab {
    /// One Ethernet for a server's host (address with prefix length) and `size` others. When it returns, each of them
    /// has heard the server over a group, and the switch forwards a group only to those that joined it.
    pub fn crowd(&self, server_addr: &str, size: usize, mtu: u32) -> Crowd {
        let (server, switch) = (self.host("s"), self.host("switch"));
        // The times are hundredths of a second: the kernel's own would take ten seconds to find out who listens.
        switch.ip(&format!(
            "link add br0 mtu {mtu} type bridge forward_delay 0 mcast_snooping 1 mcast_querier 1 mcast_mld_version 2 \
             mcast_query_response_interval 20 mcast_startup_query_interval 100 mcast_query_interval 1000 \
             mcast_membership_interval 2100"
        ));
        switch.ip("link set br0 up");
        // A port needs no address, and 200 of them would report memberships of their own.
        switch.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        cable(&server, "eth0", &switch, "p0", mtu);
        switch.ip("link set p0 master br0");
        switch.bill_apart("p0");
        address(&server, "eth0", server_addr);

        let members: Vec<Host> = (1..=size).map(|i| self.host(&format!("m{i}"))).collect();
        let mut ports = String::new();
        for (i, member) in members.iter().enumerate().map(|(i, member)| (i + 1, member)) {
            let there = member.path();
            let _ = writeln!(
                ports,
                "link add p{i} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {there}\nlink set p{i} master br0 up"
            );
        }
        switch.ip_batch(&ports);
        for (i, member) in members.iter().enumerate().map(|(i, member)| (i + 1, member)) {
            member.ip_batch(&format!("addr add fd00:6::1:{i:x}/64 dev eth0 nodad\nlink set eth0 up\n"));
        }

        let crowd = Crowd { server, switch, members };
        crowd.arm_querier();
        crowd.probe(bare(server_addr));
        crowd
    }
}

impl Crowd {
    /// A querier needs a link-local address. One that had none when it was switched on waits for its next turn, and
    /// until then the switch floods.
    fn arm_querier(&self) {
        until("the switch's link-local address", LIMIT, || {
            let text = self.switch.ip("addr show dev br0 scope link");
            text.contains("inet6 fe80") && !text.contains("tentative")
        });
        self.switch
            .ip_batch("link set br0 type bridge mcast_querier 0\nlink set br0 type bridge mcast_querier 1\n");
    }

    /// Waits until every member hears the server and none hears what it did not ask for.
    fn probe(&self, source: Ipv6Addr) {
        let out = self.server.within(|| {
            let socket = UdpSocket::bind((source, 0))?;
            let eth0 = nix::net::if_::if_nametoindex("eth0")?;
            socket2::SockRef::from(&socket).set_multicast_if_v6(eth0)?;
            Ok::<_, std::io::Error>(socket)
        });
        let out = out.unwrap_or_else(|e| panic!("the crowd's server cannot send: {e}"));
        let listen = |member| {
            let socket = join(member, "eth0", source, PROBED);
            socket.set_nonblocking(true).unwrap_or_else(|e| panic!("probe: {e}"));
            socket
        };
        let sockets: Vec<UdpSocket> = self.members.iter().map(listen).collect();
        let send = |group| drop(out.send_to(b"?", group));
        let heard = |socket: &UdpSocket| socket.recv(&mut [0; 8]).is_ok();
        let mut deaf: Vec<&UdpSocket> = sockets.iter().collect();
        until("every member to hear the server", LIMIT, || {
            send(PROBED);
            deaf.retain(|socket| !heard(socket));
            deaf.is_empty()
        });
        let (Some(last), Some(socket)) = (self.members.last(), sockets.last()) else { return };
        until("the switch to stop flooding", LIMIT, || {
            while heard(socket) {}
            let before = last.traffic("eth0").rx_packets;
            (0..UNWANTED_COUNT).for_each(|_| send(UNWANTED));
            // Packets stay in order: what was flooded came before this one. The others' MLD reports come too, now and
            // then, and cost another round.
            until("the next probe", LIMIT, || {
                send(PROBED);
                heard(socket)
            });
            last.traffic("eth0").rx_packets < before + UNWANTED_COUNT
        });
    }
}
