//! What people and programs get to see while a transfer runs, and at its end.

use crate::tuner::Step;
use carousel_proto::apply::Apply;
use carousel_proto::device::Unfit;
use carousel_proto::keys::Keys;
use carousel_proto::manifest::Manifest;
use carousel_proto::receiver::{Bursts, ChannelCount, Counters};
use carousel_proto::signature::KeyId;
use carousel_proto::tiers::State;
use carousel_proto::trust::TrustError;
use carousel_proto::units::{show_rate, show_seconds, show_size};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Without a terminal: a line every so often.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// JSON progress: one object every so often.
const JSON_EVERY: Duration = Duration::from_secs(1);
/// The rate shown is that of about so long.
const RATE_OVER: Duration = Duration::from_secs(3);

/// Where it stands.
#[derive(Default)]
pub struct Standing {
    pub symbols: u64,
    pub needed: u64,
    pub counters: Counters,
    pub lost: u64,
    /// Of the lost ones, those that this host dropped because the receive buffer was full.
    pub overflowed: u64,
    /// Blocks that were there already, from an earlier run or an older file.
    pub found: u64,
    /// The highest tier that is kept, where tiers are chosen.
    pub tier: Option<usize>,
}

/// A source that was heard in a group.
pub struct Heard {
    /// Its number, which stays the same.
    pub number: usize,
    pub source: Ipv6Addr,
    pub group: Ipv6Addr,
    pub port: u16,
    pub tier: usize,
    /// From the join to its first packet: what the network took to set the path up, or how long it was silent.
    pub first_packet: Duration,
    pub count: ChannelCount,
    pub bursts: Bursts,
}

impl Standing {
    /// How much of the object is there, from 0 to 1.
    pub fn share(&self) -> f64 {
        self.symbols as f64 / self.needed.max(1) as f64
    }
}

/// Tells of one transfer.
pub struct Report {
    json: bool,
    quiet: bool,
    bar: Option<ProgressBar>,
    began: Instant,
    packet_bits: f64,
    name: String,
    size: u64,
    key_id: Option<String>,
    last_line: Instant,
    last_json: Instant,
    /// Start of the window over which the rate is taken, and the packets until then.
    window: (Instant, u64),
    rate: f64,
}

impl Report {
    pub fn new(json: bool, quiet: bool) -> Self {
        let now = Instant::now();
        Self {
            json,
            quiet,
            bar: None,
            began: now,
            packet_bits: 1280.0 * 8.0,
            name: String::new(),
            size: 0,
            key_id: None,
            last_line: now,
            last_json: now,
            window: (now, 0),
            rate: 0.0,
        }
    }

    /// Joined; nothing has arrived yet.
    pub fn waiting(&self) {
        if !self.quiet {
            say("joined, waiting for the first packets");
        }
    }

    /// A channel is joined or left, by the tuner's decision.
    pub fn step(&self, step: Step, group: Ipv6Addr, state: Option<State>) {
        let (event, origin, tier) = match step {
            Step::Join(origin, tier) => ("join", origin, tier),
            Step::Leave(origin, tier) => ("leave", origin, tier),
        };
        let source = origin.address.map_or("any source".to_owned(), |address| address.to_string());
        tracing::debug!("{event} tier {tier}: {source} on [{group}]:{}", origin.port);
        if self.json {
            emit(&json!({
                "event": event, "seconds": self.began.elapsed().as_secs_f64(), "source": origin.address,
                "group": group, "tier": tier, "loss": state.map(|s| s.loss), "baseline": state.map(|s| s.baseline),
            }));
        }
    }

    /// Other keys count from now on.
    pub fn keys(&self, keys: &Keys) {
        tracing::info!("keys object {} is taken up", keys.version);
        if self.json {
            emit(
                &json!({"event": "keys", "version": keys.version, "seconds": self.began.elapsed().as_secs_f64()}),
            );
        }
    }

    /// Whose signature made the manifest acceptable.
    pub fn signed_by(&mut self, key: Option<KeyId>) {
        self.key_id = key.map(|id| id.to_string());
    }

    /// There is something to take.
    pub fn offered(&self, manifest: &Manifest) {
        if self.json {
            emit(&json!({
                "event": "offer", "name": manifest.name, "size": manifest.size, "seq": manifest.seq,
                "digest": hex(&manifest.digest), "seconds": self.began.elapsed().as_secs_f64(),
                "key_id": self.key_id, "compatible": manifest.compatible, "apply": apply(manifest),
            }));
        }
        if !self.quiet {
            say(format_args!("{} ({}), release {}", manifest.name, show_size(manifest.size), manifest.seq));
        }
    }

    /// A manifest was not accepted: when that may change by itself, seconds since 1970, and how it would end the
    /// program.
    pub fn refused(&self, refusal: &TrustError) {
        let again = match refusal {
            TrustError::Unfit(Unfit::NotYet { begins, .. }) => *begins,
            _ => None,
        };
        if self.json {
            emit(&json!({
                "event": "refused", "seconds": self.began.elapsed().as_secs_f64(), "reason": reason(refusal),
                "code": refusal.outcome() as u8, "message": refusal.to_string(), "again": again,
            }));
        }
    }

    /// A manifest was accepted.
    pub fn started(&mut self, manifest: &Manifest, packet_len: usize) {
        self.packet_bits = packet_len as f64 * 8.0;
        self.name.clone_from(&manifest.name);
        self.size = manifest.size;
        if self.json {
            emit(&json!({
                "event": "started", "name": manifest.name, "kind": kind(manifest), "size": manifest.size, "seq": manifest.seq,
                "digest": hex(&manifest.digest), "seconds": self.began.elapsed().as_secs_f64(),
                "key_id": self.key_id, "compatible": manifest.compatible, "apply": apply(manifest),
            }));
        }
        if self.quiet {
            return;
        }
        let template = "{prefix} {wide_bar} {percent}%  {msg}";
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr_with_hz(8));
        // No bar can be drawn without a terminal, nor on one that only writes on (TERM is dumb, or unset): lines can.
        if std::io::stderr().is_terminal() && !bar.is_hidden() {
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(self.name.clone());
            self.bar = Some(bar);
        } else {
            let size = show_size(self.size);
            say(format_args!("receiving {} ({size}), release {}", self.name, manifest.seq));
        }
    }

    /// An earlier client left something. Blocks that were whole are counted when their hashes are known.
    pub fn resumed(&self, symbols: u64, needed: u64) {
        tracing::info!(symbols, needed, "going on with what an earlier client left");
        if self.json {
            emit(&json!({
                "event": "resumed", "seconds": self.began.elapsed().as_secs_f64(),
                "symbols_received": symbols, "symbols_needed": needed,
            }));
        }
        if !self.quiet && self.bar.is_none() {
            say("going on with what an earlier client left");
        }
    }

    /// A folder is whole, and is put together.
    pub fn unpacking(&self) {
        if let Some(bar) = &self.bar {
            bar.set_position(1000);
            bar.set_message("unpacking");
        } else if !self.quiet {
            say(format_args!("unpacking {}", self.name));
        }
    }

    /// Called some times a second.
    pub fn progress(&mut self, standing: &Standing) {
        let now = Instant::now();
        let (since, packets) = self.window;
        let span = now.duration_since(since);
        if span >= RATE_OVER / 6 {
            let rate = (standing.counters.received - packets) as f64 * self.packet_bits / span.as_secs_f64();
            let weight = (span.as_secs_f64() / RATE_OVER.as_secs_f64()).min(1.0);
            self.rate =
                if self.rate == 0.0 || rate == 0.0 { rate } else { self.rate + (rate - self.rate) * weight };
            self.window = (now, standing.counters.received);
        }
        let share = standing.share();
        if self.json && now.duration_since(self.last_json) >= JSON_EVERY {
            self.last_json = now;
            emit(&json!({
                "event": "progress", "seconds": self.began.elapsed().as_secs_f64(),
                "symbols_received": standing.symbols, "symbols_needed": standing.needed,
                "rate": self.rate.round(), "loss": loss(standing), "seconds_left": self.left(standing),
                "packets_overflowed": standing.overflowed, "tier": standing.tier,
            }));
        }
        if let Some(bar) = &self.bar {
            bar.set_position((share * 1000.0) as u64);
            bar.set_message(self.line(standing));
        } else if !self.quiet && now.duration_since(self.last_line) >= LINE_EVERY {
            self.last_line = now;
            if standing.needed == 0 {
                say("still waiting for the first packets");
            } else {
                say(format_args!("{} {:.0} %  {}", self.name, share * 100.0, self.line(standing)));
            }
        }
    }

    fn line(&self, standing: &Standing) -> String {
        let done = self.size as f64 * standing.symbols as f64 / standing.needed.max(1) as f64;
        let left = self.left(standing).map_or("stalled".to_owned(), |s| format!("{} left", show_seconds(s)));
        format!(
            "{} of {}  {}  loss {:.1} %  {left}",
            show_size(done as u64),
            show_size(self.size),
            show_rate(self.rate),
            loss(standing) * 100.0
        )
    }

    /// Bits per second at present.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Seconds to the end at the present rate.
    pub fn left(&self, standing: &Standing) -> Option<f64> {
        let missing = standing.needed.saturating_sub(standing.symbols) as f64;
        (self.rate > 0.0).then(|| missing * self.packet_bits / self.rate)
    }

    /// The object has its name. The `tail` is what that took after the last packet that was needed.
    pub fn done(
        &self,
        manifest: &Manifest,
        path: &Path,
        standing: &Standing,
        sources: &[Heard],
        tail: Duration,
    ) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.began.elapsed().as_secs_f64();
        let c = &standing.counters;
        if self.json {
            let sources: Vec<Value> = sources
                .iter()
                .map(|heard| {
                    json!({"source": heard.source, "group": heard.group, "tier": heard.tier,
                           "first_packet_seconds": heard.first_packet.as_secs_f64(),
                           "packets_received": heard.count.received, "packets_lost": heard.count.lost})
                })
                .collect();
            emit(&json!({
                "event": "done", "name": manifest.name, "kind": kind(manifest), "path": path.to_string_lossy(),
                "size": manifest.size,
                "digest": hex(&manifest.digest), "seq": manifest.seq, "seconds": seconds,
                "tail_seconds": tail.as_secs_f64(), "packets_received": c.received, "packets_lost": standing.lost,
                "packets_duplicate": c.duplicate, "packets_rejected": c.rejected,
                "packets_overflowed": standing.overflowed, "packets_unjudged": c.unjudged,
                "packets_foreign": c.foreign, "packets_unknown": c.unknown,
                "symbols_needed": standing.needed, "symbols_received": c.symbols,
                "blocks_decoded": c.decoded, "blocks_refused": c.decode_failed, "blocks_found": standing.found,
                "sources": sources, "tier": standing.tier,
                "key_id": self.key_id, "compatible": manifest.compatible, "apply": apply(manifest),
            }));
        }
        if !self.quiet {
            if standing.overflowed > 0 {
                // The kernel's count is of both, and of nothing else.
                say(format_args!(
                    "{} packets were dropped in this host before they could be read: its receive buffer was full \
                     (--rcvbuf enlarges it), or they were damaged on the way",
                    standing.overflowed
                ));
            }
            let rejected = if c.rejected > 0 { format!(", {} rejected", c.rejected) } else { String::new() };
            say(format_args!(
                "{}: {} in {}, loss {:.1} %{rejected}, BLAKE3 {}",
                path.display(),
                show_size(manifest.size),
                show_seconds(seconds),
                loss(standing) * 100.0,
                hex(&manifest.digest)
            ));
        }
    }
}

fn kind(manifest: &Manifest) -> &'static str {
    if manifest.table.is_some() { "folder" } else { "file" }
}

/// The share of the packets that never came.
pub fn loss(standing: &Standing) -> f64 {
    standing.lost as f64 / (standing.lost + standing.counters.received).max(1) as f64
}

/// When to apply it, for programs; `null` where that is left to the device.
fn apply(manifest: &Manifest) -> Option<Value> {
    let apply = manifest.apply.as_deref().and_then(|bytes| Apply::parse(bytes).ok())?;
    Some(json!({"not_before": apply.not_before, "jitter": apply.jitter}))
}

/// A word for programs.
fn reason(refusal: &TrustError) -> &'static str {
    match refusal {
        TrustError::Manifest(_) => "unreadable",
        TrustError::Unsigned { .. } | TrustError::Signature { .. } => "signature",
        TrustError::Expired { .. } => "expired",
        TrustError::Revoked { .. } => "revoked",
        TrustError::Rollback { .. } => "rollback",
        TrustError::KeysExpired { .. } => "keys-expired",
        TrustError::NoHeartbeat { .. } => "heartbeat",
        TrustError::NotNewer { .. } => "not-newer",
        TrustError::Unfit(Unfit::Compatible { .. }) => "compatible",
        TrustError::Unfit(Unfit::NotYet { .. }) => "rollout",
        TrustError::Unfit(Unfit::Rollout { .. } | Unfit::Apply { .. }) => "not-understood",
        TrustError::Digest { .. } => "digest",
    }
}

/// A digest for people and programs.
pub fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

/// A line on stderr. `eprintln!` would panic where nobody reads it any more, or the disk that it goes to is full.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn emit(value: &Value) {
    let mut out = std::io::stdout().lock();
    // Nobody may be reading any more; the transfer goes on.
    let _ = writeln!(out, "{value}");
    let _ = out.flush();
}
