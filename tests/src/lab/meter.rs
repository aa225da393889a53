//! Counts the data packets that pass an interface: UDP to multicast groups, so that neighbour discovery, MLD and PIM
//! do not blur the difference between little and nothing.

use super::host::Host;

/// Counts on one interface from now on.
pub struct Meter {
    host: Host,
    table: String,
}

/// Data packets since the meter began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Came in.
    pub received: u64,
    /// Went out.
    pub sent: u64,
}

impl Meter {
    /// Begins to count at an interface of a host. A second one on the same interface takes the first one's place.
    pub fn new(host: &Host, interface: &str) -> Self {
        let table = format!("netdev meter-{interface}");
        let chain = |hook: &str, counter: &str| {
            format!(
                "chain {hook} {{
    type filter hook {hook} device \"{interface}\" priority -10; policy accept;
    ip6 daddr ff00::/8 meta l4proto udp counter name {counter}
  }}"
            )
        };
        host.nft(&format!(
            "add table {table}\ndelete table {table}\ntable {table} {{
  counter received {{ }}
  counter sent {{ }}
  {}
  {}
}}\n",
            chain("ingress", "received"),
            chain("egress", "sent"),
        ));
        Self { host: host.clone(), table }
    }

    /// What has passed so far.
    pub fn read(&self) -> Passed {
        let counters = self.host.counters(&self.table);
        Passed { received: counters("received"), sent: counters("sent") }
    }
}
