//! `--status` and `--metrics`: where a transfer stands, for other programs to read. The same numbers in two languages:
//! an object for scripts, and metrics for Prometheus by way of node_exporter. docs/metrics.md lists both.

use crate::publish::Publisher;
use crate::report::{Heard, Standing, hex, loss};
use carousel_proto::geometry::Geometry;
use carousel_proto::manifest::Manifest;
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::receiver::{Bursts, ChannelCount};
use carousel_proto::schedule::{Layout, MAX_ROUNDS_LOG2, Order, Tier};
use carousel_proto::textfile::{Labels, Metric, Textfile};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The files are written so often.
const EVERY: Duration = Duration::from_secs(1);
/// Channels that are metrics of their own, by their number. Where any source may send, strangers decide how many there are; what is
/// above is one channel more.
const MOST_CHANNELS: usize = 32;

const INFO: Metric = Metric::gauge("carousel_client_info", "Always 1. The version is a label.");
const STATE: Metric =
    Metric::gauge("carousel_client_state", "1 for the state the transfer is in, 0 for the others.");
const START: Metric = Metric::gauge(
    "carousel_client_start_time_seconds",
    "When the client was started, in seconds since 1970.",
);
const UPDATE: Metric =
    Metric::gauge("carousel_client_update_time_seconds", "When this was written, in seconds since 1970.");
const DURATION: Metric =
    Metric::gauge("carousel_client_duration_seconds", "How long the transfer has taken, or took.");
const EXIT: Metric = Metric::gauge("carousel_client_exit_code", "The exit code, once the client has ended.");
const OBJECT_INFO: Metric =
    Metric::gauge("carousel_client_object_info", "Always 1. Name and release of the object are labels.");
const OBJECT_SIZE: Metric = Metric::gauge("carousel_client_object_size_bytes", "Size of the object.");
const NEEDED: Metric = Metric::gauge("carousel_client_symbols_needed", "Symbols that the object needs.");
const HELD: Metric = Metric::gauge("carousel_client_symbols_held", "Symbols of these that are there.");
const SYMBOLS: Metric =
    Metric::counter("carousel_client_symbols_received_total", "Symbols of the object that arrived.");
const CYCLES: Metric = Metric::gauge(
    "carousel_client_cycles",
    "Carousel cycles that the transfer has taken, or took: packets sent to it, lost ones too, over those of a cycle.",
);
const RATE: Metric = Metric::gauge(
    "carousel_client_rate_bytes_per_second",
    "What arrives at present, in bytes of whole IPv6 packets.",
);
const BYTES: Metric =
    Metric::counter("carousel_client_received_bytes_total", "Bytes of whole IPv6 packets that arrived.");
const RECEIVED: Metric = Metric::counter("carousel_client_packets_received_total", "Packets that arrived.");
const LOST: Metric = Metric::counter("carousel_client_packets_lost_total", "Packets that never came.");
const DUPLICATE: Metric =
    Metric::counter("carousel_client_packets_duplicate_total", "Packets that brought nothing new.");
const REJECTED: Metric =
    Metric::counter("carousel_client_packets_rejected_total", "Packets that were forged or damaged.");
const OVERFLOWED: Metric = Metric::counter(
    "carousel_client_packets_overflowed_total",
    "Packets that this host dropped because the receive buffer was full.",
);
const UNJUDGED: Metric = Metric::counter(
    "carousel_client_packets_unjudged_total",
    "Packets that could not be judged and were dropped.",
);
const FOREIGN: Metric =
    Metric::counter("carousel_client_packets_foreign_total", "Packets of another object or packing.");
const UNKNOWN: Metric =
    Metric::counter("carousel_client_packets_unknown_total", "Packets that are none of this protocol.");
const DECODED: Metric =
    Metric::counter("carousel_client_blocks_decoded_total", "Blocks that the decoder completed.");
const REFUSED: Metric =
    Metric::counter("carousel_client_blocks_refused_total", "Decodings whose result was wrong.");
const FOUND: Metric = Metric::counter(
    "carousel_client_blocks_found_total",
    "Blocks that were there already, from an earlier run or an older file.",
);
const TIER: Metric =
    Metric::gauge("carousel_client_tier", "The highest tier that is kept, where tiers are chosen.");
const CHANNEL_RECEIVED: Metric = Metric::counter(
    "carousel_client_channel_packets_received_total",
    "Packets of the object that arrived on a channel.",
);
const CHANNEL_LOST: Metric =
    Metric::counter("carousel_client_channel_packets_lost_total", "Packets of a channel that never came.");
const JOIN: Metric = Metric::gauge(
    "carousel_client_channel_join_latency_seconds",
    "From joining a channel to its first packet.",
);
const BURSTS: Metric = Metric::histogram(
    "carousel_client_channel_loss_burst_packets",
    "Packets of a channel lost in a row, counted when they can no longer come late.",
);

/// How far a transfer is. The agent has the same words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No manifest was accepted yet.
    Waiting,
    /// It is on its way.
    Receiving,
    /// It has its name; the hook may be running.
    Verified,
    Ok,
    Failed,
}

impl State {
    const ALL: [Self; 5] = [Self::Waiting, Self::Receiving, Self::Verified, Self::Ok, Self::Failed];

    fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Receiving => "receiving",
            Self::Verified => "verified",
            Self::Ok => "ok",
            Self::Failed => "failed",
        }
    }
}

/// What the engine knows at a moment.
#[derive(Default)]
pub struct View {
    pub standing: Standing,
    pub heard: Vec<Heard>,
    /// Bytes of whole IPv6 packets so far.
    pub bytes: u64,
    /// Bits per second at present.
    pub rate: f64,
    /// Seconds to the end, if anything comes.
    pub left: Option<f64>,
}

/// The object.
struct Object {
    name: String,
    size: u64,
    seq: u64,
    digest: String,
    blocks: u32,
    /// Packets in a carousel cycle.
    cycle: u64,
}

/// All that is told of a transfer.
pub struct Status {
    publisher: Option<Publisher>,
    /// Which of the files there are: status, metrics.
    wanted: [bool; 2],
    /// What tells this transfer from others of the same host: the name of the metrics file.
    transfer: String,
    service: Option<String>,
    began: (Instant, SystemTime),
    written: Instant,
    state: State,
    object: Option<Object>,
    path: Option<PathBuf>,
    view: View,
    /// Packets lost, on all channels and on each by its number, as metrics have them. They must not go down, and so what
    /// comes late after all stays counted.
    lost: (u64, Vec<u64>),
    /// How it ended: exit code and what went wrong.
    end: Option<(u8, Option<String>)>,
}

impl Status {
    /// Writes the files for the first time, if there are any.
    pub fn new(
        status: Option<&Path>,
        metrics: Option<&Path>,
        service: Option<&str>,
    ) -> Result<Self, Failure> {
        if status.is_some() && status == metrics {
            return Err(Failure::usage("--status and --metrics name the same file; name two"));
        }
        let now = Instant::now();
        let stem = metrics.and_then(Path::file_stem).unwrap_or_default();
        let mut new = Self {
            publisher: None,
            wanted: [status, metrics].map(|path| path.is_some()),
            transfer: stem.to_string_lossy().into_owned(),
            service: service.map(str::to_owned),
            began: (now, SystemTime::now()),
            written: now,
            state: State::Waiting,
            object: None,
            path: None,
            view: View::default(),
            lost: (0, Vec::new()),
            end: None,
        };
        let paths: Vec<&Path> = status.into_iter().chain(metrics).collect();
        if !paths.is_empty() {
            new.publisher = Some(Publisher::new(&paths, &new.contents())?);
        }
        Ok(new)
    }

    /// From now on writing keeps nobody waiting.
    pub fn start(&mut self) -> Result<(), Failure> {
        let failed = |e| Failure::new(Outcome::Failed, format!("no thread can be started: {}", plain(&e)));
        self.publisher.as_mut().map_or(Ok(()), Publisher::start).map_err(failed)
    }

    /// A manifest was accepted.
    pub fn started(&mut self, manifest: &Manifest, geometry: &Geometry) {
        self.object = Some(Object {
            name: manifest.name.clone(),
            size: manifest.size,
            seq: manifest.seq,
            digest: hex(&manifest.digest),
            blocks: geometry.blocks(),
            cycle: cycle(manifest, *geometry),
        });
        self.state = State::Receiving;
    }

    /// Whether somebody reads and the last time is long ago.
    pub fn is_due(&self) -> bool {
        self.publisher.is_some() && self.written.elapsed() >= EVERY
    }

    /// Where it stands now.
    pub fn show(&mut self, view: View) {
        let (all, each) = &mut self.lost;
        *all = view.standing.lost.max(*all);
        for heard in &view.heard {
            each.resize(each.len().max(heard.number + 1), 0);
            each[heard.number] = heard.count.lost.max(each[heard.number]);
        }
        self.view = view;
        self.publish();
    }

    /// The object has its name. When this returns, whoever is told so finds it in the files.
    pub fn verified(&mut self, path: &Path) {
        self.path = Some(path.to_owned());
        self.state = State::Verified;
        let contents = self.contents();
        if let Some(publisher) = &mut self.publisher {
            publisher.settle(contents);
        }
    }

    /// The program ends.
    pub fn end(&mut self, failure: Option<&Failure>) {
        let end = |failure: &Failure| (failure.outcome as u8, Some(failure.message.clone()));
        self.end = Some(failure.map_or((Outcome::Done as u8, None), end));
        self.state = if failure.is_some() { State::Failed } else { State::Ok };
        self.view.rate = 0.0;
        self.view.left = None;
        let contents = self.contents();
        if let Some(publisher) = &mut self.publisher {
            publisher.finish(contents);
        }
    }

    fn publish(&mut self) {
        self.written = Instant::now();
        let contents = self.contents();
        if let Some(publisher) = &mut self.publisher {
            publisher.publish(contents);
        }
    }

    fn contents(&self) -> Vec<String> {
        let status = self.wanted[0].then(|| format!("{}\n", self.status()));
        let metrics = self.wanted[1].then(|| self.metrics());
        status.into_iter().chain(metrics).collect()
    }

    /// Cycles so far.
    fn cycles(&self) -> Option<f64> {
        let packets: u64 = self.view.heard.iter().map(|heard| heard.count.received + heard.count.lost).sum();
        self.object.as_ref().map(|object| packets as f64 / object.cycle.max(1) as f64)
    }

    fn status(&self) -> Value {
        let View { standing, heard, bytes, rate, left } = &self.view;
        let c = &standing.counters;
        let object = self.object.as_ref();
        let source = |heard: &Heard| {
            let sizes = heard.bursts.histogram();
            let bounds = sizes.bounds.iter().map(f64::to_string).chain(["more".to_owned()]);
            let bursts: serde_json::Map<_, _> =
                bounds.zip(sizes.counts.iter().map(|count| json!(count))).collect();
            json!({
                "source": heard.source, "group": heard.group, "port": heard.port, "tier": heard.tier,
                "first_packet_seconds": heard.first_packet.as_secs_f64(),
                "packets_received": heard.count.received, "packets_lost": heard.count.lost,
                "loss_bursts": bursts,
            })
        };
        json!({
            "version": 1, "program": "carousel-client", "program_version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(), "state": self.state.word(), "service": self.service,
            "started": unix(self.began.1), "updated": unix(SystemTime::now()),
            "seconds": self.began.0.elapsed().as_secs_f64(),
            "exit_code": self.end.as_ref().map(|(code, _)| code),
            "error": self.end.as_ref().and_then(|(_, message)| message.as_ref()),
            "name": object.map(|o| &o.name), "size": object.map(|o| o.size), "seq": object.map(|o| o.seq),
            "digest": object.map(|o| &o.digest), "path": self.path.as_deref().map(Path::to_string_lossy),
            "share": standing.share(), "rate": rate.round(), "loss": loss(standing), "seconds_left": left,
            "cycles": self.cycles(), "tier": standing.tier, "bytes_received": bytes,
            "packets_received": c.received, "packets_lost": standing.lost, "packets_duplicate": c.duplicate,
            "packets_rejected": c.rejected, "packets_overflowed": standing.overflowed,
            "packets_unjudged": c.unjudged, "packets_foreign": c.foreign, "packets_unknown": c.unknown,
            "symbols_needed": standing.needed, "symbols_held": standing.symbols, "symbols_received": c.symbols,
            "blocks": object.map(|o| o.blocks), "blocks_decoded": c.decoded, "blocks_refused": c.decode_failed,
            "blocks_found": standing.found, "sources": heard.iter().map(source).collect::<Vec<_>>(),
        })
    }

    fn metrics(&self) -> String {
        let View { standing, bytes, rate, .. } = &self.view;
        let c = &standing.counters;
        let object = self.object.as_ref();
        let own = Labels::new("transfer", &self.transfer);
        let mut file = Textfile::new();
        file.one(&INFO, &own.and("version", env!("CARGO_PKG_VERSION")), 1.0);
        file.add(
            &STATE,
            State::ALL.map(|s| (own.and("state", s.word()), f64::from(u8::from(s == self.state)))),
        );
        file.one(&START, &own, unix(self.began.1));
        file.one(&UPDATE, &own, unix(SystemTime::now()));
        file.one(&DURATION, &own, self.began.0.elapsed().as_secs_f64());
        file.one(&EXIT, &own, self.end.as_ref().map(|(code, _)| f64::from(*code)));
        let info = object.map(|o| (own.and("name", &o.name).and("seq", &o.seq.to_string()), 1.0));
        file.add(&OBJECT_INFO, info);
        file.one(&OBJECT_SIZE, &own, object.map(|o| o.size as f64));
        file.one(&CYCLES, &own, self.cycles());
        file.one(&RATE, &own, rate / 8.0);
        file.one(&TIER, &own, standing.tier.map(|tier| tier as f64));
        for (metric, count) in [
            (&NEEDED, standing.needed),
            (&HELD, standing.symbols),
            (&SYMBOLS, c.symbols),
            (&BYTES, *bytes),
            (&RECEIVED, c.received),
            (&LOST, self.lost.0),
            (&DUPLICATE, c.duplicate),
            (&REJECTED, c.rejected),
            (&OVERFLOWED, standing.overflowed),
            (&UNJUDGED, c.unjudged),
            (&FOREIGN, c.foreign),
            (&UNKNOWN, c.unknown),
            (&DECODED, c.decoded),
            (&REFUSED, c.decode_failed),
            (&FOUND, standing.found),
        ] {
            file.one(metric, &own, count as f64);
        }
        let channels = self.channels(&own);
        file.add(&CHANNEL_RECEIVED, channels.iter().map(|ch| (ch.labels.clone(), ch.count.received as f64)));
        file.add(&CHANNEL_LOST, channels.iter().map(|ch| (ch.labels.clone(), ch.count.lost as f64)));
        let join = channels.iter().filter_map(|ch| Some((ch.labels.clone(), ch.first_packet?.as_secs_f64())));
        file.add(&JOIN, join);
        file.add_sizes(&BURSTS, channels.iter().map(|ch| (ch.labels.clone(), ch.bursts.histogram())));
        file.finish()
    }

    /// A bounded number of channels. Which are by themselves stays the same.
    fn channels(&self, own: &Labels) -> Vec<Channel> {
        let labels = |source: &str, group: &str, port: &str, tier: &str| {
            own.and("source", source).and("group", group).and("port", port).and("tier", tier)
        };
        let lost = |h: &Heard| self.lost.1.get(h.number).copied().unwrap_or_default();
        let (first, others): (Vec<_>, Vec<_>) =
            self.view.heard.iter().partition(|heard| heard.number < MOST_CHANNELS);
        let mut channels: Vec<Channel> = first
            .iter()
            .map(|h| Channel {
                labels: labels(
                    &h.source.to_string(),
                    &h.group.to_string(),
                    &h.port.to_string(),
                    &h.tier.to_string(),
                ),
                count: ChannelCount { lost: lost(h), ..h.count },
                first_packet: Some(h.first_packet),
                bursts: h.bursts,
            })
            .collect();
        if !others.is_empty() {
            let labels = labels("other", "other", "other", "other");
            let mut all = Channel { labels, ..Channel::default() };
            for other in others {
                all.count.received += other.count.received;
                all.count.lost += lost(other);
                all.bursts.merge(&other.bursts);
            }
            channels.push(all);
        }
        channels
    }
}

/// What the metrics say of a channel.
#[derive(Default)]
struct Channel {
    labels: Labels,
    count: ChannelCount,
    first_packet: Option<Duration>,
    bursts: Bursts,
}

/// Packets that a server sends in a carousel cycle. How many rounds it has does not stand in the manifest, but follows.
fn cycle(manifest: &Manifest, geometry: Geometry) -> u64 {
    let layouts = (0..=MAX_ROUNDS_LOG2).filter_map(|log2| Layout::new(geometry, log2));
    let is_ours =
        |layout: &Layout| (layout.page_len(), layout.pages()) == (manifest.page_len, manifest.pages);
    let order = layouts.into_iter().find(is_ours).and_then(|layout| Order::new(&layout, Tier::Alone));
    order.map_or(geometry.symbols_needed(), |order| order.cycle())
}

/// Seconds since 1970, to the millisecond.
fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_millis() as f64 / 1000.0)
}
