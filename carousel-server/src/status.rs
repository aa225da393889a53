//! `--status` and `--metrics`: what a server does, for other programs to read. The same numbers in two languages: an
//! object for scripts, and metrics for Prometheus by way of node_exporter. docs/metrics.md lists both.

use crate::plan::Work;
use crate::publish::Publisher;
use crate::tally::{Counts, Tally, Trouble};
use carousel_proto::outcome::{Failure, Outcome};
use carousel_proto::schedule::Tier;
use carousel_proto::textfile::{Labels, Metric, Textfile};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The files are written so often.
const EVERY: Duration = Duration::from_secs(1);
/// The rate shown is that of about so long.
const RATE_OVER: Duration = Duration::from_secs(3);

const INFO: Metric = Metric::gauge("carousel_server_info", "Always 1. The version is a label.");
const STATE: Metric =
    Metric::gauge("carousel_server_state", "1 for the state the server is in, 0 for the others.");
const START: Metric = Metric::gauge(
    "carousel_server_start_time_seconds",
    "When the server was started, in seconds since 1970.",
);
const UPDATE: Metric =
    Metric::gauge("carousel_server_update_time_seconds", "When this was written, in seconds since 1970.");
const EXIT: Metric = Metric::gauge("carousel_server_exit_code", "The exit code, once the server has ended.");
const RELOADS: Metric = Metric::counter(
    "carousel_server_reloads_total",
    "Configurations that were taken up on SIGHUP, and those that were refused.",
);
const CHANNELS: Metric = Metric::gauge("carousel_server_channels", "Channels that are sent.");
const CHANNEL_INFO: Metric = Metric::gauge(
    "carousel_server_channel_info",
    "Always 1. What the channel sends, from where and as which level of a ladder, are labels.",
);
const SIZE: Metric =
    Metric::gauge("carousel_server_channel_object_size_bytes", "Size of the object that a channel sends.");
const RATE: Metric = Metric::gauge(
    "carousel_server_channel_rate_bytes_per_second",
    "The rate that a channel is to have, in bytes of whole IPv6 packets.",
);
const REAL_RATE: Metric =
    Metric::gauge("carousel_server_channel_real_rate_bytes_per_second", "The rate that it has at present.");
const PACKETS: Metric =
    Metric::counter("carousel_server_channel_packets_sent_total", "Packets that the kernel took.");
const BYTES: Metric =
    Metric::counter("carousel_server_channel_sent_bytes_total", "Bytes of these, whole IPv6 packets.");
const UNSENT: Metric = Metric::counter(
    "carousel_server_channel_packets_unsent_total",
    "Packets that were due and could not be sent.",
);
const ERRORS: Metric =
    Metric::counter("carousel_server_channel_send_errors_total", "Calls that failed to send, by kind.");
const CYCLES: Metric =
    Metric::counter("carousel_server_channel_cycles_total", "Carousel cycles sent, in whole and parts.");
const POSITION: Metric = Metric::gauge(
    "carousel_server_channel_cycle_position_ratio",
    "Where in its cycle a channel is, from 0 to 1.",
);
const LAST_SENT: Metric = Metric::gauge(
    "carousel_server_channel_last_sent_time_seconds",
    "When a channel last sent something, in seconds since 1970.",
);
const LATE: Metric = Metric::histogram(
    "carousel_server_channel_late_seconds",
    "How late bursts left, by the pace of the rate.",
);

/// The files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    pub status: Option<PathBuf>,
    pub metrics: Option<PathBuf>,
}

impl Files {
    /// These, and for what they leave open, the others.
    pub fn or(self, other: Self) -> Self {
        Self { status: self.status.or(other.status), metrics: self.metrics.or(other.metrics) }
    }
}

/// What a server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Bundles are being opened.
    Starting,
    Sending,
    /// It was told to, or has sent the one cycle.
    Ended,
    Failed,
}

impl State {
    const ALL: [Self; 4] = [Self::Starting, Self::Sending, Self::Ended, Self::Failed];

    fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Sending => "sending",
            Self::Ended => "ended",
            Self::Failed => "failed",
        }
    }
}

/// A channel and what it has done.
pub struct Shown<'a> {
    pub work: &'a Work,
    pub tally: &'a Tally,
    pub meter: &'a mut Meter,
}

/// A channel's rate as it is.
#[derive(Debug, Default)]
pub struct Meter {
    last: Option<(Instant, u64)>,
    /// Bits per second.
    rate: f64,
}

impl Meter {
    /// So many bytes until now.
    fn take(&mut self, bytes: u64) -> f64 {
        let now = Instant::now();
        if let Some((since, before)) = self.last.replace((now, bytes)) {
            let span = now.duration_since(since).as_secs_f64().max(0.001);
            let rate = bytes.saturating_sub(before) as f64 * 8.0 / span;
            let weight = (span / RATE_OVER.as_secs_f64()).min(1.0);
            self.rate = if self.rate == 0.0 { rate } else { self.rate + (rate - self.rate) * weight };
        }
        self.rate
    }
}

/// All that is told of a server.
pub struct Status {
    files: Files,
    publisher: Option<Publisher>,
    /// What tells this server from others of the same host: the name of the metrics file.
    server: String,
    began: (Instant, SystemTime),
    written: Instant,
    state: State,
    /// Taken up and refused.
    reloads: [u64; 2],
    /// How it ended: exit code and what went wrong.
    end: Option<(u8, Option<String>)>,
    /// As last shown.
    channels: Vec<Entry>,
}

/// A channel in words.
struct Entry {
    labels: Labels,
    info: Labels,
    status: Map<String, Value>,
    counts: Counts,
    size: u64,
    rate: u64,
    real_rate: f64,
}

impl Status {
    /// Writes the files for the first time, if there are any. This process must have one thread only, and not much to
    /// inherit.
    pub fn new(files: Files, is_open: bool) -> Result<Self, Failure> {
        if files.status.is_some() && files.status == files.metrics {
            return Err(Failure::usage("status and metrics name the same file; name two"));
        }
        let now = Instant::now();
        let stem = files.metrics.as_deref().and_then(Path::file_stem).unwrap_or_default();
        let mut new = Self {
            server: stem.to_string_lossy().into_owned(),
            files,
            publisher: None,
            began: (now, SystemTime::now()),
            written: now,
            state: State::Starting,
            reloads: [0; 2],
            end: None,
            channels: Vec::new(),
        };
        let paths: Vec<&Path> = new.files.status.iter().chain(&new.files.metrics).map(|p| &**p).collect();
        if !paths.is_empty() {
            new.publisher = Some(Publisher::new(&paths, &new.contents(), is_open)?);
        }
        Ok(new)
    }

    /// The files, which stay what they are until a restart.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// How long until somebody who reads wants to be told again.
    pub fn due(&self) -> Option<Duration> {
        self.publisher.as_ref().map(|_| EVERY.saturating_sub(self.written.elapsed()))
    }

    /// SIGHUP was heeded, well or not.
    pub fn reloaded(&mut self, taken_up: bool) {
        self.reloads[usize::from(!taken_up)] += 1;
    }

    /// These channels are sent.
    pub fn show<'a>(&mut self, channels: impl Iterator<Item = Shown<'a>>) {
        if self.publisher.is_none() {
            return;
        }
        self.written = Instant::now();
        self.state = State::Sending;
        let own = Labels::new("server", &self.server);
        self.channels = channels.map(|channel| Entry::new(&own, channel)).collect();
        let contents = self.contents();
        if let Some(publisher) = &mut self.publisher {
            publisher.publish(&contents);
        }
    }

    /// The program ends.
    pub fn end(mut self, failure: Option<&Failure>) {
        let end = |failure: &Failure| (failure.outcome as u8, Some(failure.message.clone()));
        self.end = Some(failure.map_or((Outcome::Done as u8, None), end));
        self.state = if failure.is_some() { State::Failed } else { State::Ended };
        let contents = self.contents();
        if let Some(publisher) = self.publisher {
            publisher.finish(&contents);
        }
    }

    fn contents(&self) -> Vec<String> {
        let status = self.files.status.as_ref().map(|_| format!("{}\n", self.status()));
        let metrics = self.files.metrics.as_ref().map(|_| self.metrics());
        status.into_iter().chain(metrics).collect()
    }

    fn status(&self) -> Value {
        json!({
            "version": 1, "program": "carousel-server", "program_version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(), "state": self.state.word(),
            "started": unix(self.began.1), "updated": unix(SystemTime::now()),
            "seconds": self.began.0.elapsed().as_secs_f64(),
            "exit_code": self.end.as_ref().map(|(code, _)| code),
            "error": self.end.as_ref().and_then(|(_, message)| message.as_ref()),
            "reloads_done": self.reloads[0], "reloads_refused": self.reloads[1],
            "channels": self.channels.iter().map(|channel| &channel.status).collect::<Vec<_>>(),
        })
    }

    fn metrics(&self) -> String {
        let own = Labels::new("server", &self.server);
        let mut file = Textfile::new();
        file.one(&INFO, &own.and("version", env!("CARGO_PKG_VERSION")), 1.0);
        let state = |state: State| (own.and("state", state.word()), f64::from(u8::from(state == self.state)));
        file.add(&STATE, State::ALL.map(state));
        file.one(&START, &own, unix(self.began.1));
        file.one(&UPDATE, &own, unix(SystemTime::now()));
        file.one(&EXIT, &own, self.end.as_ref().map(|(code, _)| f64::from(*code)));
        let results = ["done", "refused"].into_iter().zip(self.reloads);
        file.add(&RELOADS, results.map(|(result, count)| (own.and("result", result), count as f64)));
        file.one(&CHANNELS, &own, self.channels.len() as f64);
        file.add(&CHANNEL_INFO, self.channels.iter().map(|channel| (channel.info.clone(), 1.0)));
        let mut each = |metric, value: &dyn Fn(&Entry) -> Option<f64>| {
            let samples =
                self.channels.iter().filter_map(|entry| Some((entry.labels.clone(), value(entry)?)));
            file.add(metric, samples);
        };
        each(&SIZE, &|entry| Some(entry.size as f64));
        each(&RATE, &|entry| Some(entry.rate as f64 / 8.0));
        each(&REAL_RATE, &|entry| Some(entry.real_rate / 8.0));
        each(&PACKETS, &|entry| Some(entry.counts.packets as f64));
        each(&BYTES, &|entry| Some(entry.counts.bytes as f64));
        each(&UNSENT, &|entry| Some(entry.counts.unsent as f64));
        each(&CYCLES, &|entry| Some(entry.counts.cycles));
        each(&POSITION, &|entry| Some(entry.counts.position));
        each(&LAST_SENT, &|entry| entry.counts.last_sent);
        let errors = self.channels.iter().flat_map(|entry| {
            let kinds = Trouble::ALL.into_iter().zip(entry.counts.troubles);
            kinds.map(|(kind, count)| (entry.labels.and("kind", kind.word()), count as f64))
        });
        file.add(&ERRORS, errors);
        file.add_sizes(&LATE, self.channels.iter().map(|entry| (entry.labels.clone(), entry.counts.late())));
        file.finish()
    }
}

impl Entry {
    fn new(own: &Labels, Shown { work, tally, meter }: Shown<'_>) -> Self {
        let (channel, manifest) = (&work.channel, &work.bundle.manifest);
        let target = &channel.target;
        let counts = tally.counts();
        let real_rate = meter.take(counts.bytes);
        let level = match channel.tier {
            Tier::Alone => None,
            Tier::Level(level) => Some(level),
        };
        let labels = own
            .and("group", &target.group.to_string())
            .and("port", &target.port.to_string())
            .and("interface", &target.interface);
        let info = labels
            .and("source", &counts.source.map(|address| address.to_string()).unwrap_or_default())
            .and("level", &level.map(|level| level.to_string()).unwrap_or_default())
            .and("name", &manifest.name)
            .and("seq", &manifest.seq.to_string());
        let sizes = counts.late();
        let bounds = sizes.bounds.iter().map(f64::to_string).chain(["more".to_owned()]);
        let late: Map<_, _> = bounds.zip(sizes.counts.iter().map(|count| json!(count))).collect();
        let errors = Trouble::ALL.into_iter().zip(counts.troubles);
        let errors: Map<_, _> = errors.map(|(kind, count)| (kind.word().to_owned(), json!(count))).collect();
        let status = json!({
            "group": target.group, "port": target.port, "interface": target.interface,
            "source": counts.source, "level": level, "phase": channel.phase,
            "bundle": work.bundle.path.to_string_lossy(), "name": manifest.name, "seq": manifest.seq, "size": manifest.size,
            "digest": blake3::Hash::from_bytes(manifest.digest).to_hex().as_str(),
            "rate": channel.rate, "real_rate": real_rate.round(),
            "packets_sent": counts.packets, "bytes_sent": counts.bytes, "packets_unsent": counts.unsent,
            "errors": errors, "cycles": counts.cycles, "cycle_position": counts.position,
            "last_sent": counts.last_sent, "late_seconds": sizes.sum, "late_bursts": late,
        });
        let status = if let Value::Object(status) = status { status } else { Map::new() };
        let (size, rate) = (manifest.size, channel.rate);
        Self { labels, info, status, size, rate, real_rate, counts }
    }
}

/// Seconds since 1970, to the millisecond.
fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_millis() as f64 / 1000.0)
}
