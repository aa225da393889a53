//! The networks that scenarios run in, ready when they are returned. `tests/README.md` draws them.

use crate::lab::{Host, Lab, Role, Router, Switch, reach};
use crate::scene::SOURCE;

/// Address of the sender behind routers, without prefix length.
pub const SENDER: &str = "fd00:a::2";
/// Address of the host `dns`.
pub const DNS: &str = "fd00:d::2";

/// A sender and four receivers on a snooping switch.
pub struct Switched {
    /// Between all of them.
    pub switch: Switch,
    /// The sender, [`SOURCE`].
    pub s: Host,
    /// The receivers.
    pub r: [Host; 4],
}

impl Switched {
    /// Raises it.
    pub fn new(lab: &Lab) -> Self {
        let switch = lab.switch("sw", 1280);
        let s = lab.host("s");
        let r = ["r1", "r2", "r3", "r4"].map(|name| lab.host(name));
        switch.plug(&s, "eth0", &format!("{SOURCE}/64"));
        for (n, host) in (1..).zip(&r) {
            let addr = format!("fd00:6::1{n}");
            switch.plug(host, "eth0", &format!("{addr}/64"));
            reach(host, &addr, &s, SOURCE);
        }
        switch.query();
        switch.settle();
        Self { switch, s, r }
    }
}

/// A sender on a snooping switch behind its router, and four receivers on another one behind theirs.
pub struct Routed {
    /// The sender, [`SENDER`].
    pub s: Host,
    /// A host beside it, for what is not multicast: [`DNS`].
    pub dns: Host,
    /// Between the sender and its router.
    pub first: Switch,
    /// The sender's router: `lan`, `dns` and `wan`.
    pub r1: Router,
    /// The receivers' router: `wan` and `lan`.
    pub r2: Router,
    /// Between their router and the receivers.
    pub last: Switch,
    /// The receivers.
    pub r: [Host; 4],
}

impl Routed {
    /// Raises it. Ask `lab::routers_missing` first.
    pub fn new(lab: &Lab, mtu: u32) -> Self {
        Self::configured(lab, mtu, None)
    }

    /// The same with other configurations of `r1` and `r2` than those with short timers.
    pub fn configured(lab: &Lab, mtu: u32, configs: Option<[&str; 2]>) -> Self {
        let (s, dns) = (lab.host("s"), lab.host("dns"));
        let (mut r1, mut r2) = (lab.router("R1"), lab.router("R2"));
        let (first, last) = (lab.switch("sw1", mtu), lab.switch("sw2", mtu));
        first.plug(&s, "eth0", &format!("{SENDER}/64"));
        first.plug(r1.host(), "lan", "fd00:a::1/64");
        lab.link(&dns, "eth0", &format!("{DNS}/64"), r1.host(), "dns", "fd00:d::1/64", mtu);
        lab.link(r1.host(), "wan", "fd00:12::1/64", r2.host(), "wan", "fd00:12::2/64", mtu);
        last.plug(r2.host(), "lan", "fd00:b::1/64");
        s.ip("route add default via fd00:a::1");
        dns.ip("route add default via fd00:d::1");
        r1.host().ip("route add default via fd00:12::2");
        r2.host().ip("route add default via fd00:12::1");
        let r = ["r1", "r2", "r3", "r4"].map(|name| lab.host(name));
        for (n, host) in (1..).zip(&r) {
            let addr = format!("fd00:b::1{n}");
            last.plug(host, "eth0", &format!("{addr}/64"));
            host.ip("route add default via fd00:b::1");
            reach(host, &addr, &s, SENDER);
            reach(host, &addr, &dns, DNS);
        }
        let (first_hop, last_hop) = (
            [("lan", Role::Source), ("wan", Role::Uplink)],
            [("wan", Role::Uplink), ("lan", Role::Receivers)],
        );
        match configs {
            None => {
                // It asks every 5 s, at which the switch, made for questions every 2 s, would forget it and flood for
                // almost two of them. RFC 3810, sections 9.4 and 9.5: two questions and the time to answer.
                let memory = "mcast_querier_interval 1100 mcast_membership_interval 1100";
                last.host().ip(&format!("link set br0 type bridge {memory}"));
                r1.start(&first_hop);
                r2.start(&last_hop);
            }
            Some([config1, config2]) => {
                r1.start_with(config1, &first_hop);
                r2.start_with(config2, &last_hop);
            }
        }
        r1.wait_ready();
        r2.wait_ready();
        // The sender's router does not join on its side, so its switch queries itself and is told where the router
        // is. The receivers' router queries, and its switch learns all by listening.
        first.query();
        first.router_port(r1.host());
        first.settle();
        match configs {
            None => last.silence(),
            // A router that asks every two minutes is no querier to a switch that forgets after seconds.
            Some(_) => {
                last.query();
                last.router_port(r2.host());
            }
        }
        last.settle();
        Self { s, dns, first, r1, r2, last, r }
    }

    /// Another sender beside the first one, at an address below fd00:a::/64.
    pub fn plug_sender(&self, lab: &Lab, name: &str, addr: &str) -> Host {
        let host = lab.host(name);
        self.first.plug(&host, "eth0", &format!("{addr}/64"));
        host.ip("route add default via fd00:a::1");
        reach(&host, addr, &self.r[0], "fd00:b::11");
        host
    }
}
