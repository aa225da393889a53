//! The network of the contest: a sender and receivers on one snooping switch, which every tool gets as it is.

use carousel_tests::lab::{Crowd, Host, Lab, offload};
use carousel_tests::scene::SOURCE;

/// The sender's IPv4 address: most of the others know nothing newer.
pub const SENDER: &str = "10.6.0.1";
/// Hosts beside the sender.
pub const RECEIVERS: usize = 16;
/// Of every link.
pub const MTU: u32 = 1500;
/// What the sender's link carries, with Ethernet headers: a little more than what the tools are told to send, so that
/// it limits only who has no rate of its own. Its queue is worth 0.2 s.
const LINK: u64 = 104_000_000;
const QUEUE: u64 = LINK / 8 / 5;

/// The hosts and what is between them.
pub struct Net {
    /// Who made it.
    pub lab: Lab,
    /// The sender's host.
    pub s: Host,
    /// The receivers' hosts.
    pub r: Vec<Host>,
    crowd: Crowd,
}

impl Net {
    /// Raises it.
    pub fn new(lab: Lab) -> Self {
        let crowd = lab.crowd(&format!("{SOURCE}/64"), RECEIVERS, MTU);
        let s = crowd.server.clone();
        s.tool(&format!("ip addr add {SENDER}/16 brd + dev eth0"));
        s.limit("eth0", LINK, QUEUE);
        let r = crowd.members.clone();
        for (n, host) in (1..).zip(&r) {
            host.tool(&format!("ip addr add 10.6.1.{n}/16 brd + dev eth0"));
            // Loss must act on packets of TCP as they are on a wire.
            offload(crowd.switch.host(), &format!("p{n}"), "tso", false);
        }
        Self { lab, s, r, crowd }
    }

    /// From now on every receiver loses so many of 1,000 packets, each on its own, of what the sender's programs
    /// send: data and control, multicast and unicast.
    pub fn lose(&self, per_mille: u32) {
        let draw = format!("meta l4proto {{ udp, tcp }} numgen random mod 1000 < {per_mille} drop");
        for host in &self.r {
            host.nft(&format!(
                "add table netdev loss\ndelete table netdev loss\ntable netdev loss {{
  chain ingress {{
    type filter hook ingress device \"eth0\" priority 0; policy accept;
    ip6 saddr {SOURCE} {draw}
    ip saddr {SENDER} {draw}
  }}
}}\n"
            ));
        }
    }

    /// Puts a slow link before a receiver, with a queue of 80 ms.
    pub fn slow_down(&self, receiver: usize, bits_per_second: u64) {
        self.crowd.switch.host().limit(&port(receiver), bits_per_second, bits_per_second * 8 / 800);
    }

    /// Takes it away.
    pub fn speed_up(&self, receiver: usize) {
        self.crowd.switch.host().tool(&format!("tc qdisc del dev {} root", port(receiver)));
    }
}

fn port(receiver: usize) -> String {
    format!("p{}", receiver + 1)
}
