//! The interface to join on.

use carousel_proto::outcome::{Failure, Outcome, plain};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use std::collections::BTreeSet;

/// The index of the interface of that name; without a name, of the only one that is up and can do multicast.
pub fn index(name: Option<&str>) -> Result<u32, Failure> {
    let name = choose(name)?;
    if_nametoindex(name.as_str())
        .map_err(|_| Failure::usage(format!("no such interface: {name}; `ip link` lists those there are")))
}

/// The name that was given, or that of the only one that will do.
pub fn choose(name: Option<&str>) -> Result<String, Failure> {
    name.map_or_else(only, |name| Ok(name.to_owned()))
}

fn only() -> Result<String, Failure> {
    let all = getifaddrs().map_err(|e| {
        Failure::new(Outcome::Failed, format!("interfaces cannot be listed: {}", plain(&e.into())))
    })?;
    let useful = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_MULTICAST;
    let fits =
        |flags: InterfaceFlags| flags.contains(useful) && !flags.contains(InterfaceFlags::IFF_LOOPBACK);
    // An address of IPv4 may have a label, `eth0:1`, which stands here in the interface's place; no name has a colon.
    let name = |label: String| label.split(':').next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = all.filter(|i| fits(i.flags)).map(|i| name(i.interface_name)).collect();
    let listed = names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        1 => Ok(listed),
        0 => Err(Failure::usage(
            "no interface is up that can do multicast; bring one up, or name it by --interface",
        )),
        _ => Err(Failure::usage(format!("several interfaces are up ({listed}); choose one by --interface"))),
    }
}
