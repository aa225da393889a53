//! The receiving threads: nothing but system calls, so that a slow disk does not cost packets.
//!
//! A thread per group and port, for as long as something is joined there. Batches go round: from the pool to a
//! thread, filled to the engine, and back to the pool.

use crate::ssm::{Batch, Subscription};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Batches in circulation: so many, and two more for each thread. Together with the sockets' buffers this is what a
/// stall may cost.
const BATCHES: usize = 6;
const BATCHES_PER_THREAD: usize = 2;

/// What a receiving thread hands on.
pub enum Arrival {
    /// Packets. Give the batch back when it is done with.
    Packets(Batch),
    /// The socket failed for good.
    Failed(io::Error),
}

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

/// The groups that are joined and their threads. Dropping it leaves every group, without waiting for the threads.
pub struct Reception {
    /// What arrives.
    pub arrivals: Receiver<Arrival>,
    settings: Settings,
    arrived: Sender<Arrival>,
    pool: (Sender<Batch>, Receiver<Batch>),
    /// Index by [`Batch::place`].
    places: Vec<Place>,
}

/// One group and port.
struct Place {
    group: Ipv6Addr,
    port: u16,
    open: Option<Open>,
}

struct Open {
    subscription: Arc<Subscription>,
    _stop: Stop,
    /// Sources joined; `None`: any.
    sources: Vec<Option<Ipv6Addr>>,
}

impl Reception {
    /// Nothing is joined yet.
    pub fn new(settings: Settings) -> Self {
        let (arrived, arrivals) = unbounded(); // the pool bounds it
        let reception = Self { arrivals, settings, arrived, pool: unbounded(), places: Vec::new() };
        reception.fill_pool(BATCHES);
        reception
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
            None => self.open(number)?,
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

    /// Takes an empty batch back.
    pub fn give_back(&self, batch: Batch) {
        let _ = self.pool.0.send(batch); // the other end is here too
    }

    fn fill_pool(&self, batches: usize) {
        (0..batches).for_each(|_| self.give_back(Batch::new()));
    }

    fn open(&self, number: usize) -> io::Result<Open> {
        let (place, settings) = (&self.places[number], self.settings);
        let subscription = Subscription::open(place.group, place.port, settings.interface, settings.rcvbuf)?;
        if settings.test_loss > 0 {
            subscription.impair(settings.test_loss)?;
        }
        let (subscription, stop) = (Arc::new(subscription), Arc::new(AtomicBool::new(false)));
        let open =
            Open { subscription: Arc::clone(&subscription), _stop: Stop(Arc::clone(&stop)), sources: vec![] };
        let (empty, arrived) = (self.pool.1.clone(), self.arrived.clone());
        self.fill_pool(BATCHES_PER_THREAD);
        std::thread::spawn(move || receive(number, &subscription, &empty, &arrived, &stop));
        Ok(open)
    }

    /// Puts an open place back, unless nothing is joined there any more.
    fn keep(&mut self, number: usize, open: Open) {
        if open.sources.is_empty() {
            // Its thread takes one batch along; here goes the other.
            drop(self.pool.1.try_recv());
        } else {
            self.places[number].open = Some(open);
        }
    }
}

/// Tells a thread to end.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A thread that waits for an empty batch is woken when the pool goes away.
fn receive(
    place: usize,
    subscription: &Subscription,
    empty: &Receiver<Batch>,
    arrived: &Sender<Arrival>,
    stop: &AtomicBool,
) {
    while let Ok(mut batch) = empty.recv() {
        batch.place = place;
        batch.overflowed = 0;
        loop {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            match subscription.receive(&mut batch) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    let _ = arrived.send(Arrival::Failed(error));
                    return;
                }
            }
        }
        if arrived.send(Arrival::Packets(batch)).is_err() {
            return;
        }
    }
}
