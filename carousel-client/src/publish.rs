//! The files that others read while a transfer runs. A thread of its own writes them: a disk that is slow must not keep
//! packets waiting.

use carousel_proto::outcome::Failure;
use carousel_published::Published;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Who must know that contents are written waits so long for it: longer than a disk that is busy with others.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What the files shall contain, in their order.
pub type Contents = Vec<String>;

/// Contents, and whom to tell when they are written.
type Order = (Contents, Option<Sender<()>>);

/// The files and who writes them.
pub struct Publisher {
    files: Vec<Published>,
    thread: Option<(Sender<Order>, Receiver<()>)>,
}

impl Publisher {
    /// Writes each of the files, so that a wrong path is found before the transfer.
    pub fn new(paths: &[&Path], contents: &[String]) -> Result<Self, Failure> {
        let files = paths.iter().zip(contents).map(|(path, text)| Published::new(path, text));
        Ok(Self { files: files.collect::<Result<_, _>>()?, thread: None })
    }

    /// Has a thread write from now on. Within the sandbox, for the thread is in whatever this one is in.
    pub fn start(&mut self) -> io::Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        let (sender, inbox) = bounded::<Order>(1);
        let (alive, ended) = bounded(0);
        let mut files = self.files.clone();
        std::thread::Builder::new().spawn(move || {
            let _alive: Sender<()> = alive;
            for (contents, tell) in inbox {
                write_all(&mut files, &contents);
                drop(tell); // which ends the waiting
            }
        })?;
        self.thread = Some((sender, ended));
        Ok(())
    }

    /// Has them written. If the ones before are not written yet, these never are.
    pub fn publish(&mut self, contents: Contents) {
        match &self.thread {
            Some((sender, _)) => drop(sender.try_send((contents, None))),
            None => write_all(&mut self.files, &contents),
        }
    }

    /// Has them written and waits for it, but not for ever: somebody is about to look.
    pub fn settle(&mut self, contents: Contents) {
        let Some((sender, _)) = &self.thread else { return write_all(&mut self.files, &contents) };
        let (tell, told) = bounded(0);
        if sender.send_timeout((contents, Some(tell)), LAST_WAIT).is_ok() {
            let _ = told.recv_timeout(LAST_WAIT); // an error in any case: that it is done, or that the disk hangs
        }
    }

    /// The last ones, which are waited for, but not for ever.
    pub fn finish(&mut self, contents: Contents) {
        let Some((sender, ended)) = self.thread.take() else { return write_all(&mut self.files, &contents) };
        let _ = sender.send_timeout((contents, None), LAST_WAIT);
        drop(sender);
        let _ = ended.recv_timeout(LAST_WAIT); // an error in any case: that the thread has ended, or that it hangs
    }
}

fn write_all(files: &mut [Published], contents: &[String]) {
    files.iter_mut().zip(contents).for_each(|(file, text)| file.replace(text.as_bytes()));
}
