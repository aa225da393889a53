//! Records real packets of a channel, prints `READY`, then floods forged ones until it is killed.

use carousel_tests::forgery::{self, Channel, Lie};
use clap::Parser;
use std::net::Ipv6Addr;
use std::time::Duration;

#[derive(Parser)]
struct Options {
    /// Interface to send on.
    #[arg(long)]
    interface: String,
    /// The real source, whose packets are recorded.
    #[arg(long)]
    source: Ipv6Addr,
    /// Our own address; the real source's for a forger in its host.
    #[arg(long)]
    own: Ipv6Addr,
    #[arg(long)]
    group: Ipv6Addr,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    lie: Lie,
    /// Real packets to record before flooding.
    #[arg(long, default_value_t = 1000)]
    templates: usize,
    /// Bits per second, headers included.
    #[arg(long)]
    rate: f64,
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let channel = Channel { source: options.source, group: options.group, port: options.port };
    let interface = nix::net::if_::if_nametoindex(options.interface.as_str())?;
    let templates = forgery::record(&channel, options.templates, Duration::from_secs(60))?;
    println!("READY {}", templates.len());
    forgery::flood(&templates, options.lie, &channel, options.own, interface, options.rate, |_| true)
}
