//! The groups that are joined, their sockets, and waiting for what comes from them.
//!
//! There is no thread for this: the kernel's receive buffer holds far more than a queue of ours could, so it is what
//! bridges the pauses of a slow disk.

use crate::ssm::{Batch, Subscription};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, PipeReader, PipeWriter, Read, pipe};
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::time::Duration;

/// After taking what was there, packets are let gather for so long: waking up costs more than several packets do.
const GATHER_MS: u16 = 4;
/// … unless a receive buffer is smaller than this: 4 ms at 1 Gbit/s must fit in.
const GATHER_BUFFER: usize = 1 << 20;

/// How to open sockets.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Index of the interface to join on.
    pub interface: u32,
    /// Receive buffer to ask for, in bytes.
    pub rcvbuf: usize,
    /// Per cent of the packets to lose in the kernel.
    pub test_loss: u8,
}

/// The groups that are joined. Dropping it leaves every group.
pub struct Reception {
    settings: Settings,
    places: Vec<Place>,
    bell: (PipeReader, PipeWriter),
    /// Packets came when they were last asked for.
    lively: bool,
}

/// One group and port.
struct Place {
    group: Ipv6Addr,
    port: u16,
    open: Option<Open>,
}

struct Open {
    subscription: Subscription,
    /// Sources joined; `None`: any.
    sources: Vec<Option<Ipv6Addr>>,
}

impl Reception {
    /// Nothing is joined yet.
    pub fn new(settings: Settings) -> io::Result<Self> {
        Ok(Self { settings, places: Vec::new(), bell: pipe()?, lively: false })
    }

    /// Joins a source (`None`: any) of a group and port. Returns the place's number, which stays the same for ever,
    /// and the receive buffer that the system granted.
    pub fn join(
        &mut self,
        group: Ipv6Addr,
        port: u16,
        source: Option<Ipv6Addr>,
    ) -> io::Result<(usize, usize)> {
        let known = self.places.iter().position(|place| (place.group, place.port) == (group, port));
        let number = known.unwrap_or_else(|| {
            self.places.push(Place { group, port, open: None });
            self.places.len() - 1
        });
        let mut open = match self.places[number].open.take() {
            Some(open) => open,
            None => Open { subscription: self.open(group, port)?, sources: Vec::new() },
        };
        let (joined, granted) = (open.subscription.join(source), open.subscription.granted);
        if joined.is_ok() {
            open.sources.push(source);
        }
        self.keep(number, open);
        joined.map(|()| (number, granted))
    }

    /// Leaves a source of a group and port. Returns whether it was joined.
    pub fn leave(&mut self, group: Ipv6Addr, port: u16, source: Option<Ipv6Addr>) -> bool {
        let known = self.places.iter().position(|place| (place.group, place.port) == (group, port));
        let Some(number) = known else { return false };
        let Some(mut open) = self.places[number].open.take() else { return false };
        let was_joined = open.sources.contains(&source);
        if was_joined {
            open.sources.retain(|joined| *joined != source);
            // If the interface has gone, so has the membership.
            let _ = open.subscription.leave(source);
        }
        self.keep(number, open);
        was_joined
    }

    /// Places there are: numbers below this one may be given to [`Self::receive`].
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// Fills a batch with what has come to a place, which may be nothing.
    pub fn receive(&mut self, place: usize, batch: &mut Batch) -> io::Result<()> {
        batch.clear();
        if let Some(open) = &self.places[place].open {
            open.subscription.receive(batch)?;
        }
        self.lively |= !batch.is_empty();
        Ok(())
    }

    /// Whoever writes a byte into this ends [`Self::wait`].
    pub fn bell(&self) -> io::Result<PipeWriter> {
        self.bell.1.try_clone()
    }

    /// Waits for packets, for the bell, for a signal, or for so long. Where packets come all the time, it lets some
    /// gather and does not look whether they did.
    pub fn wait(&mut self, limit: Duration) -> io::Result<()> {
        let all =
            || self.places.iter().filter_map(|place| place.open.as_ref()).map(|open| &open.subscription);
        let gather = self.lively && all().all(|subscription| subscription.granted >= GATHER_BUFFER);
        let mut waiting_for = vec![PollFd::new(self.bell.0.as_fd(), PollFlags::POLLIN)];
        if !gather {
            waiting_for.extend(all().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        }
        // Rounded up: rounding down would spin through the last millisecond.
        let limit_ms = (limit.as_millis() + 1).try_into().unwrap_or(u16::MAX);
        match poll(&mut waiting_for, PollTimeout::from(if gather { GATHER_MS } else { limit_ms })) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let rung = waiting_for[0].any().unwrap_or(false);
        drop(waiting_for);
        self.lively = false;
        if rung {
            let _ = self.bell.0.read(&mut [0; 64])?;
        }
        Ok(())
    }

    fn open(&self, group: Ipv6Addr, port: u16) -> io::Result<Subscription> {
        let settings = self.settings;
        let subscription = Subscription::open(group, port, settings.interface, settings.rcvbuf)?;
        if settings.test_loss > 0 {
            subscription.impair(settings.test_loss)?;
        } else {
            subscription.take_trains();
        }
        Ok(subscription)
    }

    /// Puts an open place back, unless nothing is joined there any more.
    fn keep(&mut self, number: usize, open: Open) {
        if !open.sources.is_empty() {
            self.places[number].open = Some(open);
        }
    }
}
