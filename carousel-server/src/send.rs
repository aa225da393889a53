//! `run`: one thread per channel, each a corridor: clock, pacer, schedule, bundle, header, socket.

use crate::bundle::Bundle;
use crate::cli;
use crate::socket::{Outgoing, Sender, Target, sharpen_timers};
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::pacer::{Pacer, Step};
use carousel_proto::pages::record_len;
use carousel_proto::schedule::{Content, Item, Order, Position, Tier, phase};
use carousel_proto::units::{show_rate, show_seconds, show_size};
use carousel_proto::wire::{IP_UDP_LEN, Kind, PREFIX_LEN, Sequence, emit_prefix};
use nix::errno::Errno;
use nix::libc;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longest sleep: how soon a signal ends the program at very low rates.
const LONGEST_WAIT_NS: u64 = 200_000_000;
/// How long to wait before the network is tried again after it has gone.
const RETRY_NS: u64 = 100_000_000;

/// `run`.
pub fn run(arguments: &cli::Run) -> Result<(), Failure> {
    nix::net::if_::if_nametoindex(arguments.interface.as_str()).map_err(|_| {
        Failure::usage(format!("no such interface: {}; `ip link` lists those there are", arguments.interface))
    })?;
    let (bundles, groups) = (&arguments.bundles, &arguments.group);
    if bundles.len() != 1 && bundles.len() != groups.len() {
        return Err(Failure::usage(format!(
            "{} bundles for {} groups: give one bundle, or one for each group",
            bundles.len(),
            groups.len()
        )));
    }
    let bundles = bundles.iter().map(|p| Bundle::open(p).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
    for bundle in bundles.iter().filter(|b| !b.signed) {
        tracing::warn!("{} is not signed: only clients with --digest will take it", bundle.path.display());
    }
    let mut channels = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        let bundle = Arc::clone(bundles.get(index).unwrap_or(&bundles[0]));
        let target = Target {
            group: group.address,
            port: arguments.port,
            interface: arguments.interface.clone(),
            source: arguments.source,
            hops: arguments.hops,
            dscp: arguments.dscp,
        };
        let rate = group.rate.unwrap_or(arguments.rate);
        channels.push(Channel::new(bundle, target, rate, arguments)?);
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|e| Failure::new(Outcome::Failed, format!("signals cannot be caught: {e}")))?;
    }
    let sent: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = channels.into_iter().map(|c| scope.spawn(|| c.run(&stop))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    });
    tracing::info!("ended after {sent} packets");
    Ok(())
}

/// One (source, group) pair and what it sends.
struct Channel {
    bundle: Arc<Bundle>,
    target: Target,
    order: Order,
    pacer: Pacer,
    phase: u64,
    /// Packets left to send, with `--once`.
    left: Option<u64>,
}

impl Channel {
    fn new(bundle: Arc<Bundle>, target: Target, rate: u64, arguments: &cli::Run) -> Result<Self, Failure> {
        let order = Order::new(&bundle.layout, Tier::Alone)
            .ok_or_else(|| Failure::usage(format!("{}: no such tier", bundle.path.display())))?;
        let packet_len = IP_UDP_LEN + PREFIX_LEN + record_len(bundle.layout.geometry().symbol_len());
        let pacer = Pacer::new(rate, packet_len, now());
        let m = &bundle.manifest;
        let from = Sender::open(&target).ok().and_then(|sender| sender.source());
        let from = from.map_or("no address yet".to_owned(), |address| address.to_string());
        if target.group.segments()[0] & 0xfff0 != 0xff30 || target.group.segments()[1] != 0 {
            tracing::warn!(
                "{} is no source-specific group (ff3x::/32): clients must join any source",
                target.group
            );
        }
        let needed = bundle.layout.geometry().symbols_needed() as f64 * packet_len as f64 * 8.0;
        tracing::info!(
            "{} ({}, seq {}) from {from} to [{}]:{} at {}: at best {} for a client without loss",
            m.name,
            show_size(m.size),
            m.seq,
            target.group,
            target.port,
            show_rate(rate as f64),
            show_seconds(needed / rate as f64)
        );
        let phase = phase(arguments.phase, order.cycle());
        let left = arguments.once.then(|| order.cycle() + order.interval());
        Ok(Self { bundle, target, order, pacer, phase, left })
    }

    /// Sends until told to stop; returns the number of packets.
    fn run(mut self, stop: &AtomicBool) -> u64 {
        sharpen_timers();
        let bundle = Arc::clone(&self.bundle);
        let mut link = Link::new(self.target.clone());
        let mut burst: Vec<Outgoing<'_>> = Vec::with_capacity(self.pacer.burst() as usize);
        let mut sequence: Option<u32> = None;
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) && self.left != Some(0) {
            let (first, count) = match self.pacer.poll(now()) {
                Step::Wait(until) => {
                    sleep_until(until);
                    continue;
                }
                Step::Send(first, count) => (first, count),
            };
            burst.clear();
            for position in (first.0..).take(count as usize) {
                // The sequence goes on from the clock too, then counts what is really sent.
                let number = sequence.map_or(position as u32, |s: u32| s.wrapping_add(1));
                sequence = Some(number);
                let item = self.order.item(Position(position.wrapping_add(self.phase)));
                let mut prefix = [0; PREFIX_LEN];
                emit_prefix(
                    &mut prefix,
                    kind(&bundle, item),
                    Sequence(number),
                    bundle.checksum,
                    bundle.instance,
                );
                burst.push(Outgoing { prefix, record: bundle.record(item) });
            }
            tracing::trace!(position = first.0, count, "burst");
            sent += link.send(&burst);
            self.left = self.left.map(|left| left.saturating_sub(u64::from(count)));
        }
        sent
    }
}

fn kind(bundle: &Bundle, item: Item) -> Kind {
    match item {
        Item::Manifest => Kind::Manifest,
        Item::BlockPage(_) => Kind::BlockPage,
        Item::Record(_, record) => match bundle.layout.record(record) {
            Content::HashPage(_) => Kind::HashPage,
            Content::Symbol(_) => Kind::Symbol,
        },
    }
}

/// The way to the network, which may vanish and come back. Nothing that goes wrong here ends the server.
struct Link {
    target: Target,
    sender: Option<Sender>,
    /// What is wrong at the moment, so that it is said once.
    trouble: Option<String>,
}

impl Link {
    fn new(target: Target) -> Self {
        Self { target, sender: None, trouble: None }
    }

    /// Sends a burst as far as possible; how many packets went out.
    fn send(&mut self, burst: &[Outgoing<'_>]) -> u64 {
        let mut rest = burst;
        let mut refused = 0;
        while !rest.is_empty() {
            let sender = match self.sender.take() {
                Some(sender) => Ok(sender),
                None => Sender::open(&self.target),
            };
            let result = sender.and_then(|mut sender| {
                let sent = sender.send(rest);
                // A socket keeps its source address for ever; after the network was gone a new one is needed.
                let keep = sent.as_ref().err().is_none_or(is_passing);
                self.sender = keep.then_some(sender);
                sent
            });
            match result {
                Ok(sent) => {
                    if self.trouble.take().is_some() {
                        tracing::info!("[{}]:{}: sending again", self.target.group, self.target.port);
                    }
                    rest = &rest[sent..];
                }
                // A forged or stray ICMPv6 message fails one send; the packet itself was not sent.
                Err(error) if is_refused(&error) && refused < burst.len() => refused += 1,
                Err(error) => {
                    self.complain(&error);
                    if !is_passing(&error) {
                        sleep_until(now() + RETRY_NS);
                    }
                    break; // what could not be sent is lost, like any packet
                }
            }
        }
        (burst.len() - rest.len()) as u64
    }

    fn complain(&mut self, error: &io::Error) {
        let text = match error.raw_os_error() {
            Some(libc::EMSGSIZE) => {
                "packets are too long for this interface: pack with a smaller --mtu".to_owned()
            }
            Some(libc::EINVAL) if self.target.source.is_some() => {
                "this host does not have the --source address on that interface".to_owned()
            }
            Some(libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::ENETDOWN | libc::ENODEV) => {
                format!("{}: is the interface up, and has it an IPv6 address?", plain(error))
            }
            _ => plain(error),
        };
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!("[{}]:{}: {text}; going on", self.target.group, self.target.port);
            self.trouble = Some(text);
        }
    }
}

fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::EACCES | libc::EINTR))
}

/// The socket itself is in order, only this burst did not go out.
fn is_passing(error: &io::Error) -> bool {
    is_refused(error)
        || matches!(
            error.raw_os_error(),
            Some(libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN | libc::EMSGSIZE | libc::EPERM | libc::EPROTO)
        )
}

/// Wall clock in ns since 1970.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// Sleeps until the wall clock says `until`, but never long: the clock may be set meanwhile.
fn sleep_until(until: u64) {
    let Ok(monotonic) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return };
    let wait = until.saturating_sub(now()).min(LONGEST_WAIT_NS);
    let deadline = TimeSpec::from(Duration::from(monotonic) + Duration::from_nanos(wait));
    while clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &deadline)
        == Err(Errno::EINTR)
    {}
}
