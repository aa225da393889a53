//! A crowd: one Ethernet with a server's host and hundreds of others behind a switch that snoops MLDv2.
//!
//! `Lab::lan` would take minutes for it: a dozen programs for each port, and a probe for each pair. Here it is three
//! programs for each host and one probe for all of them.

use super::receiver::join;
use super::{Host, Lab, Switch, bare, until};
use std::fmt::Write as _;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::time::Duration;

/// What the probe is sent to; no scenario uses it.
const PROBED: SocketAddrV6 = SocketAddrV6::new(Ipv6Addr::new(0xff3e, 0, 0, 0, 0, 0, 0x8000, 0xfffe), 9, 0, 0);
const LIMIT: Duration = Duration::from_secs(20);

/// A server's host, a switch, and a crowd of hosts, each with an `eth0`.
pub struct Crowd {
    /// The sender's host; a kernel thread of its own receives at its port.
    pub server: Host,
    /// Between all; its ports are `p-s` for the server and `p1`, `p2`, … for the members.
    pub switch: Switch,
    /// The others. The first is `fd00:6::1:1`, the second `fd00:6::1:2`, counted in hexadecimal.
    pub members: Vec<Host>,
}

impl Lab {
    /// One Ethernet for a server's host (address with prefix length) and `size` others. When it returns, each of them
    /// has heard the server over a group, and the switch forwards a group only to those that joined it.
    pub fn crowd(&self, server_addr: &str, size: usize, mtu: u32) -> Crowd {
        let (server, switch) = (self.host("s"), self.switch("switch", mtu));
        // A port needs no address, and 200 of them would report memberships of their own.
        switch.host().sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        switch.plug(&server, "eth0", server_addr);
        switch.host().bill_apart(&switch.port(&server));

        let members: Vec<Host> = (1..=size).map(|i| self.host(&format!("m{i}"))).collect();
        let mut ports = String::new();
        for (i, member) in members.iter().enumerate().map(|(i, member)| (i + 1, member)) {
            let there = member.path();
            let _ = writeln!(
                ports,
                "link add p{i} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {there}\nlink set p{i} master br0 up"
            );
        }
        switch.host().ip_batch(&ports);
        for (i, member) in members.iter().enumerate().map(|(i, member)| (i + 1, member)) {
            member.ip_batch(&format!("addr add fd00:6::1:{i:x}/64 dev eth0 nodad\nlink set eth0 up\n"));
        }

        let crowd = Crowd { server, switch, members };
        crowd.switch.query();
        crowd.switch.settle();
        crowd.probe(bare(server_addr));
        crowd
    }
}

impl Crowd {
    /// Waits until every member hears the server.
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
    }
}
