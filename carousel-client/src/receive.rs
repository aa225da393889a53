//! The receiving threads: nothing but system calls, so that a slow disk does not cost packets.

use crate::ssm::{Batch, Subscription};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Batches in circulation per subscription; together with the socket's buffer this is what a stall may cost.
const BATCHES: usize = 8;

/// What a receiving thread hands on.
pub enum Arrival {
    /// Packets. Give the batch back when it is done with.
    Packets(Batch),
    /// The socket failed for good.
    Failed(io::Error),
}

/// The receiving threads of one transfer. Dropping it leaves every group, without waiting for the threads to end.
pub struct Reception {
    /// What arrives.
    pub arrivals: Receiver<Arrival>,
    /// Where batches go back to; index by [`Batch::subscription`].
    returns: Vec<Sender<Batch>>,
    stop: Arc<AtomicBool>,
}

impl Reception {
    /// Starts a thread per subscription.
    pub fn start(subscriptions: Vec<Subscription>) -> Self {
        let (arrived, arrivals) = bounded(BATCHES * subscriptions.len().max(1));
        let stop = Arc::new(AtomicBool::new(false));
        let mut returns = Vec::new();
        for (index, subscription) in subscriptions.into_iter().enumerate() {
            let (give_back, empty) = bounded(BATCHES);
            for _ in 0..BATCHES {
                let mut batch = Batch::new();
                batch.subscription = index;
                let _ = give_back.send(batch);
            }
            returns.push(give_back);
            let (arrived, stop) = (arrived.clone(), Arc::clone(&stop));
            std::thread::spawn(move || receive(&subscription, &empty, &arrived, &stop));
        }
        Self { arrivals, returns, stop }
    }

    /// Hands an empty batch back to its thread.
    pub fn give_back(&self, batch: Batch) {
        // There is always room: the batch came from there.
        let _ = self.returns[batch.subscription].send(batch);
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        // A thread that waits for an empty batch is woken by `returns` going away.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn receive(
    subscription: &Subscription,
    empty: &Receiver<Batch>,
    arrivals: &Sender<Arrival>,
    stop: &AtomicBool,
) {
    while let Ok(mut batch) = empty.recv() {
        loop {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            match subscription.receive(&mut batch) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    let _ = arrivals.send(Arrival::Failed(error));
                    return;
                }
            }
        }
        if arrivals.send(Arrival::Packets(batch)).is_err() {
            return;
        }
    }
}
