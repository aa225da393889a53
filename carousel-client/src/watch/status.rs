//! The status file: what the agent is doing, for whoever looks.

use super::agent::{Agent, Now, State};
use carousel_published::Published;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// While only progress changes: this often.
const EVERY: Duration = Duration::from_secs(2);

/// While nothing changes: this often, so that others can tell that it is alive.
const AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// How far a transfer is.
#[derive(Debug, Default)]
pub struct Progress {
    pub seq: Option<u64>,
    symbols_received: u64,
    symbols_needed: u64,
    rate: f64,
    seconds_left: Option<f64>,
}

impl Progress {
    /// An event of the transfer: `started` or `progress`.
    pub fn handle(&mut self, event: &Value) {
        self.seq = event["seq"].as_u64().or(self.seq);
        if event["event"] == "progress" {
            self.symbols_received = event["symbols_received"].as_u64().unwrap_or(0);
            self.symbols_needed = event["symbols_needed"].as_u64().unwrap_or(0);
            self.rate = event["rate"].as_f64().unwrap_or(0.0);
            self.seconds_left = event["seconds_left"].as_f64();
        }
    }
}

/// One item, for the file: what it is, apart from its progress, and its progress.
pub fn item(name: &str, agent: &Agent, since: u64, now: Now, progress: Option<&Progress>) -> (Value, Value) {
    let record = agent.record();
    let release = record.release.as_ref().map(|release| {
        json!({"name": release.name, "seq": release.seq, "digest": release.digest, "size": release.size,
               "path": release.path, "received": release.received, "apply_at": agent.moment()})
    });
    let installed = record.installed.values().max();
    let what = json!({
        "name": name, "state": agent.state().name(), "since": since, "message": agent.message(),
        "waits_for": agent.waits_for(now), "release": release, "installed": installed,
        "tries": record.attempts, "inhibited": agent.is_inhibited(),
    });
    let progress = progress.filter(|_| agent.state() == State::Receiving).map(|p| {
        json!({"seq": p.seq, "symbols_received": p.symbols_received, "symbols_needed": p.symbols_needed,
               "rate": p.rate, "seconds_left": p.seconds_left})
    });
    (what, progress.unwrap_or(Value::Null))
}

/// The file, if there is to be one.
pub struct Status {
    path: Option<PathBuf>,
    /// Once it could be written.
    file: Option<Published>,
    device_id: String,
    shown: Vec<Value>,
    at: Option<Instant>,
    failed: bool,
}

impl Status {
    pub fn new(path: Option<PathBuf>, device_id: String) -> Self {
        Self { path, file: None, device_id, shown: Vec::new(), at: None, failed: false }
    }

    /// Writes it, if there is something new.
    pub fn show(&mut self, items: Vec<(Value, Value)>, unix: u64) {
        let Some(path) = &self.path else { return };
        let (what, progress): (Vec<Value>, Vec<Value>) = items.into_iter().unzip();
        let every = if progress.iter().any(|p| !p.is_null()) { EVERY } else { AT_LEAST_EVERY };
        let due = self.at.is_none_or(|at| at.elapsed() >= every);
        if what == self.shown && !due {
            return;
        }
        let join = |(mut what, progress): (Value, Value)| {
            what["progress"] = progress;
            what
        };
        let watch: Vec<Value> = what.iter().cloned().zip(progress).map(join).collect();
        let text = json!({"version": env!("CARGO_PKG_VERSION"), "device_id": self.device_id, "updated": unix, "watch": watch});
        let text = format!("{text:#}\n");
        match &mut self.file {
            Some(file) => file.replace(text.as_bytes()),
            // Nobody sees what it does; that is no reason not to do it. The folder may be made yet.
            None => match Published::new(path, &text) {
                Ok(file) => self.file = Some(file),
                Err(failure) if !std::mem::replace(&mut self.failed, true) => tracing::error!("{failure}"),
                Err(_) => {}
            },
        }
        (self.shown, self.at) = (what, Some(Instant::now()));
    }
}
