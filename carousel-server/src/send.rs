//! A channel's thread, a corridor: clock, pacer, schedule, bundle, header, socket.

use crate::bundle::{Bundle, ReadAhead};
use crate::plan::Work;
use crate::socket::{Outgoing, Sender, Target, sharpen_timers};
use crate::tally::{Burst, Tally};
use carousel_proto::outcome::plain;
use carousel_proto::pacer::{Pacer, Step};
use carousel_proto::schedule::{Content, Item, Order, Position, RUN, phase};
use carousel_proto::wire::{Kind, PREFIX_LEN, Sequence, emit_prefix};
use nix::errno::Errno;
use nix::libc;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

/// Longest sleep: how soon a change is heard of at very low rates.
const LONGEST_WAIT: Duration = Duration::from_millis(200);
/// How long to wait before the network is tried again after it has gone.
const RETRY: Duration = Duration::from_millis(100);
/// How often to look for a better address than a link-local one.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How a complaint ends that the network has gone, in whichever of its ways.
const GONE: &str = "is the interface up, and has it an IPv6 address?";
/// How many nanoseconds before it is sent a record is read from disk: more than a disk takes to come round to it.
const READ_AHEAD_NS: u64 = 250_000_000;
/// Every channel hears of a change within this time.
pub const NOTICE: Duration = Duration::from_millis(400);

/// What a channel does from a moment on. All levels of a ladder get the same moment.
pub struct Change {
    pub at: Instant,
    /// Nothing: the end.
    pub to: Option<Work>,
}

/// What goes on through all changes.
struct Channel {
    link: Link,
    sequence: Option<u32>,
    sent: u64,
}

/// Does what the changes say, the latest of them, until one says to end; with `once` for one cycle. The number of
/// packets.
pub fn run(changes: &Receiver<Change>, once: bool, tally: &Arc<Tally>) -> u64 {
    sharpen_timers();
    let Ok(mut change) = changes.recv() else { return 0 };
    let Some(first) = &change.to else { return 0 };
    let link = |target: &Target| Link::new(target.clone(), Arc::clone(tally));
    let mut channel = Channel { link: link(&first.channel.target), sequence: None, sent: 0 };
    std::thread::sleep(change.at.saturating_duration_since(Instant::now()));
    while let Some(work) = change.to {
        if channel.link.target != work.channel.target {
            channel.link = link(&work.channel.target);
        }
        match channel.send(&work, changes, once) {
            Some(next) => change = next,
            None => break,
        }
    }
    channel.sent
}

impl Channel {
    /// Sends one bundle until the change that it returns, or to its end. That change comes between two bursts, and
    /// the clock says where the next bundle or rate begins: nothing is waited for.
    fn send(&mut self, work: &Work, changes: &Receiver<Change>, once: bool) -> Option<Change> {
        let bundle = &work.bundle;
        let order = Order::new(&bundle.layout, work.channel.tier)?; // which `Plan::open` has checked
        let phase = phase(work.channel.phase, order.cycle());
        let mut left = once.then(|| order.cycle() + order.interval());
        let mut pacer = Pacer::new(work.channel.rate, bundle.packet_len(), now());
        let ahead = pacer.packets_in(READ_AHEAD_NS);
        let mut reader = ReadAhead::new(bundle);
        let mut next: Option<Change> = None;
        while left != Some(0) {
            match changes.try_recv() {
                Ok(change) => {
                    next = Some(change);
                    continue;
                }
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            let rest = next.as_ref().map(|change| change.at.saturating_duration_since(Instant::now()));
            if rest == Some(Duration::ZERO) {
                return next;
            }
            let at = now();
            let (first, count) = match pacer.poll(at) {
                Step::Wait(until) => {
                    sleep_until(until, rest.unwrap_or(LONGEST_WAIT));
                    continue;
                }
                Step::Send(first, count) => (first, count),
            };
            // Outlives the burst; it is another one from time to time.
            let heartbeat = work.statements.heartbeat();
            let mut burst: Vec<Outgoing<'_>> = Vec::with_capacity(count as usize);
            for position in (first.0..).take(count as usize) {
                // The sequence goes on from the clock too, then counts what is really sent.
                let number = self.sequence.map_or(position as u32, |s: u32| s.wrapping_add(1));
                self.sequence = Some(number);
                let position = Position(position.wrapping_add(phase));
                let item = order.item(position);
                let statement = (item == Item::Manifest)
                    .then(|| work.statements.instead(order.manifest_number(position), heartbeat.as_deref()));
                let (kind, record) =
                    statement.flatten().unwrap_or_else(|| (kind(bundle, item), bundle.record(item)));
                let mut prefix = [0; PREFIX_LEN];
                emit_prefix(&mut prefix, kind, Sequence(number), bundle.checksum, bundle.instance);
                burst.push(Outgoing { prefix, record });
            }
            tracing::trace!(position = first.0, count, "burst");
            let sent = self.link.send(&burst);
            self.sent += sent;
            self.link.tally.note(&Burst {
                at,
                late: pacer.late(at),
                count: count.into(),
                sent,
                packet_len: bundle.packet_len() as u64,
                position: first.0.wrapping_add(phase),
                cycle: order.cycle(),
            });
            // After the burst: the time until the next one is free. One record of each run stands for all of it.
            for position in (first.0..).take(count as usize).step_by(RUN as usize) {
                reader.want(order.item(Position(position.wrapping_add(phase).wrapping_add(ahead))));
            }
            left = left.map(|left| left.saturating_sub(u64::from(count)));
        }
        None
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
    /// Whether packets came from an address that is not link-local.
    widely_known: bool,
    /// When to look whether there is such an address by now.
    look_at: Instant,
    /// Whether packets go out in trains: until the kernel or the interface proves unable to.
    trains: bool,
    /// What is wrong at the moment, so that it is said once.
    trouble: Option<String>,
    tally: Arc<Tally>,
}

impl Link {
    fn new(target: Target, tally: Arc<Tally>) -> Self {
        let look_at = Instant::now() + LOOK_EVERY;
        Self { target, sender: None, widely_known: false, look_at, trains: true, trouble: None, tally }
    }

    /// Sends a burst as far as possible; how many packets went out.
    fn send(&mut self, burst: &[Outgoing<'_>]) -> u64 {
        let mut rest = burst;
        let mut refused = 0;
        let mut trains = self.trains;
        if !self.widely_known && self.target.source.is_none() && Instant::now() >= self.look_at {
            self.look_again();
        }
        while !rest.is_empty() {
            // Whether it is shows when the packets are sent each by itself.
            let about_trains = |error: &io::Error| trains && rest.len() > 1 && may_be_about_trains(error);
            let sender = match self.sender.take() {
                Some(sender) => Ok(sender),
                None => self.open(),
            };
            let result = sender.and_then(|mut sender| {
                let sent = sender.send(rest, trains);
                // A socket keeps its source address for ever; after the network was gone a new one is needed.
                let keep = sent.as_ref().err().is_none_or(|e| is_passing(e) || about_trains(e));
                self.sender = keep.then_some(sender);
                sent
            });
            match result {
                Ok(sent) => {
                    if self.trouble.take().is_some() {
                        tracing::info!("{}: sending again", self.target);
                    }
                    if self.trains && !trains {
                        tracing::debug!("{}: no segmentation offload here", self.target);
                        self.trains = false;
                    }
                    rest = &rest[sent..];
                }
                Err(error) if about_trains(&error) => trains = false,
                // A forged or stray ICMPv6 message fails one send; the packet itself was not sent.
                Err(error) if is_refused(&error) && refused < burst.len() => {
                    self.tally.note_trouble(&error);
                    refused += 1;
                }
                Err(error) => {
                    self.tally.note_trouble(&error);
                    self.complain(&error);
                    if !is_passing(&error) {
                        std::thread::sleep(RETRY);
                    }
                    break; // what could not be sent is lost, like any packet
                }
            }
        }
        (burst.len() - rest.len()) as u64
    }

    /// A socket, which keeps its source address for ever. An interface that comes up has a link-local address first, and
    /// the one that clients know later: until then the network is still gone.
    fn open(&mut self) -> io::Result<Sender> {
        let sender = Sender::open(&self.target)?;
        let source = sender.source();
        let wide = source.is_some_and(|source| !source.is_unicast_link_local());
        if self.widely_known && !wide {
            return Err(io::Error::from_raw_os_error(libc::ENETUNREACH));
        }
        self.widely_known |= wide;
        self.tally.set_source(source);
        Ok(sender)
    }

    /// A server that started before its host had an address that clients know begins with a link-local one. Where there
    /// never is another, it stays with that.
    fn look_again(&mut self) {
        self.look_at = Instant::now() + LOOK_EVERY;
        let Ok(sender) = Sender::open(&self.target) else { return };
        if let Some(source) = sender.source().filter(|source| !source.is_unicast_link_local()) {
            tracing::info!("{}: from {source} from now on", self.target);
            self.tally.set_source(Some(source));
            (self.widely_known, self.sender) = (true, Some(sender));
        }
    }

    fn complain(&mut self, error: &io::Error) {
        let text = match error.raw_os_error() {
            Some(libc::EMSGSIZE) => {
                "packets are too long for this interface: pack with a smaller --mtu".to_owned()
            }
            Some(libc::EINVAL) if self.target.source.is_some() => {
                "this host does not have the --source address on that interface".to_owned()
            }
            // The kernel found no page where the mapped file no longer is.
            Some(libc::EFAULT) => {
                "the bundle became shorter while it is sent: put a whole one in its place with mv, not cp, and \
                 send SIGHUP"
                    .to_owned()
            }
            Some(libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::ENETDOWN | libc::ENODEV) => {
                format!("{}: {GONE}", plain(error))
            }
            _ => plain(error),
        };
        let said = |before: &String| *before == text || (before.ends_with(GONE) && text.ends_with(GONE));
        if !self.trouble.as_ref().is_some_and(said) {
            tracing::warn!("{}: {text}; going on", self.target);
            self.trouble = Some(text);
        }
    }
}

/// Too old a kernel or an unusual one, an interface without checksum offload, IPsec; before Linux 6.14 also packets that
/// are too long for the interface.
fn may_be_about_trains(error: &io::Error) -> bool {
    let errors = [libc::EINVAL, libc::EIO, libc::EOPNOTSUPP, libc::ENOPROTOOPT];
    error.raw_os_error().is_some_and(|error| errors.contains(&error))
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

/// Sleeps until the wall clock says `until`, but for no more than `most`, and never long: the clock may be set meanwhile.
fn sleep_until(until: u64, most: Duration) {
    let Ok(monotonic) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return };
    let wait = Duration::from_nanos(until.saturating_sub(now())).min(most).min(LONGEST_WAIT);
    let deadline = TimeSpec::from(Duration::from(monotonic) + wait);
    while clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &deadline)
        == Err(Errno::EINTR)
    {}
}
