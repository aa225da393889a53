//! The networks that scenarios run in, ready when they are returned. `tests/README.md` draws them.

use crate::lab::{Host, Lab, Switch};
use crate::scene::SOURCE;

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
        let mut members = vec![(&s, format!("{SOURCE}/64"))];
        members.extend(r.iter().enumerate().map(|(i, host)| (host, format!("fd00:6::{}/64", 10 + i))));
        for (host, addr) in &members {
            switch.plug(host, "eth0", addr);
        }
        let members: Vec<(&Host, &str)> = members.iter().map(|(host, addr)| (*host, &**addr)).collect();
        switch.ready(&members);
        Self { switch, s, r }
    }
}
