//! Listening for some seconds: joins as `get` does, and takes notes. If nothing comes it joins any source as well, to
//! hear who else sends.

use super::facts::{Channel, Described, Heard, Joined, Voice};
use super::meter::Meter;
use super::tap::Tap;
use crate::receive::{Reception, Settings};
use crate::ssm::{Batch, Subscription};
use carousel_doctor::{Counters, Link, kernel};
use carousel_proto::manifest::{Envelope, Manifest, instance_of};
use carousel_proto::outcome::plain;
use carousel_proto::trust::{Trust, TrustError, key_id};
use carousel_proto::wire::{IP_UDP_LEN, Kind, Packet};
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

/// How long the host is watched before anything is joined: what comes then comes without us.
const QUIET: Duration = Duration::from_millis(500);
/// How long what arrives is measured; at most half of the time there is.
const MEASURE: Duration = Duration::from_secs(5);
/// A first packet has this share of the time; then it is looked who else sends.
const PATIENCE: f64 = 0.4;
/// When the querier is provoked after the join, if nothing comes, and after the first packet.
const PROVOKE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(300));
/// How long the provocation lasts.
const PROVOCATION: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(20);
/// Batches taken in one go: the clock must be looked at, whatever comes.
const AT_ONCE: usize = 64;
/// Senders that are told apart.
const MAX_VOICES: usize = 64;
/// Different manifests that are looked at.
const MAX_MANIFESTS: usize = 8;
/// MLD queries that this host has taken in.
pub const QUERIES: &str = "Icmp6InGroupMembQueries";

/// What to listen for.
pub struct Plan<'a> {
    pub link: &'a Link,
    pub wanted: &'a [Channel],
    pub rcvbuf: usize,
    /// For all of it.
    pub limit: Duration,
}

/// Listens. What a signature is good for, `trust` says.
pub fn listen(plan: &Plan<'_>, mut tap: Option<Tap>, trust: &mut Trust, now: u64) -> io::Result<Heard> {
    let settings = Settings { interface: plan.link.index, rcvbuf: plan.rcvbuf, test_loss: 0 };
    let mut reception = Reception::new(settings)?;
    let name = plan.link.name.as_str();
    let began = Instant::now();
    let first = Counters::read(name);
    reception.wait(QUIET.min(plan.limit / 10))?;
    let quiet_seconds = began.elapsed().as_secs_f64();
    let before = Counters::read(name);
    let was_known: Vec<bool> = plan.wanted.iter().map(|channel| is_joined(plan.link, channel)).collect();
    let joined_at = Instant::now();
    let mut ear = Ear::new(plan, trust, now);
    let mut joins = Vec::new();
    for (channel, was_known) in plan.wanted.iter().zip(was_known) {
        let joined = reception.join(channel.group, channel.port, channel.source);
        if let Ok((_, granted)) = &joined {
            ear.heard.granted = Some(*granted as u64);
        }
        let error = joined.as_ref().err().map(plain);
        joins.push(Joined { error, is_known: is_joined(plan.link, channel), was_known });
    }
    let mut any: Option<Reception> = None;
    let mut provocation = Provocation::new(plan);
    let mut batch = Batch::new();
    let mut overflowed = Vec::new();
    loop {
        let since = joined_at.elapsed();
        take(&mut reception, &mut batch, |place, batch| {
            overflowed.resize(overflowed.len().max(place + 1), 0);
            overflowed[place] = u64::from(batch.overflowed).max(overflowed[place]);
            ear.handle(place, batch, since);
        })?;
        if let Some(any) = &mut any {
            take(any, &mut batch, |place, batch| ear.handle_any(place, batch))?;
        }
        tap.iter_mut().for_each(Tap::drain);
        let first_packet = ear.heard.voices.iter().map(|voice| voice.first).reduce(f64::min);
        let provoke_at = first_packet.map_or(PROVOKE.0, |first| Duration::from_secs_f64(first) + PROVOKE.1);
        provocation.handle_time(since, provoke_at);
        if began.elapsed() >= plan.limit {
            break;
        }
        let is_silent = ear.is_anybody_silent();
        if is_silent && any.is_none() && since >= plan.limit.mul_f64(PATIENCE) {
            let mut all = Reception::new(settings)?;
            for place in &ear.places {
                // Refused like the other join, perhaps; then that has been noted.
                let _ = all.join(place.0, place.1, None);
            }
            any = Some(all);
            ear.heard.any_after = Some(since.as_secs_f64());
        }
        if !is_silent && ear.is_measured(plan.limit) && provocation.is_over(since) {
            let asked = Counters::read(name).link(QUERIES) > 0;
            if asked || tap.as_ref().is_some_and(|tap| !tap.seen.queriers.is_empty()) {
                break;
            }
        }
        reception.wait(TICK)?;
    }
    let mut heard = ear.heard;
    heard.joins = joins;
    heard.seconds = joined_at.elapsed().as_secs_f64();
    heard.overflowed = overflowed.iter().sum();
    heard.quiet_seconds = quiet_seconds;
    heard.counters = [first, before, Counters::read(name)];
    heard.seen = tap.map(|tap| tap.seen);
    Ok(heard)
}

/// Hands over what has come, so much at most.
fn take(
    reception: &mut Reception,
    batch: &mut Batch,
    mut handle: impl FnMut(usize, &Batch),
) -> io::Result<()> {
    for place in 0..reception.places() {
        for _ in 0..AT_ONCE {
            reception.receive(place, batch)?;
            handle(place, batch);
            if !batch.is_full() {
                break;
            }
        }
    }
    Ok(())
}

/// Whether the kernel knows of a join, whoever made it.
fn is_joined(link: &Link, channel: &Channel) -> bool {
    let table = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    match channel.source {
        Some(source) => kernel::has_joined(&table("mcfilter6"), link.index, channel.group, source),
        None => kernel::is_member(&table("igmp6"), link.index, channel.group),
    }
}

/// A querier asks every two minutes, which is too long to wait for. But it also asks when a source is left, whether
/// anybody else still wants it, and it asks the whole group: so one of two sources of a group is left, and the question
/// reaches us. The second source is this host itself, from which no router has to fetch anything.
struct Provocation {
    subscription: Option<(Subscription, Ipv6Addr)>,
    /// Since when the source has been joined.
    began: Option<Duration>,
    ended: Option<Duration>,
}

impl Provocation {
    fn new(plan: &Plan<'_>) -> Self {
        let own = plan.link.addresses.iter().filter(|a| a.is_usable());
        let own = own.map(|a| a.address).max_by_key(|a| !a.is_unicast_link_local());
        let channel = plan.wanted.first().copied();
        // Who has joined any source has joined every one.
        let all_named = plan.wanted.iter().all(|c| c.source.is_some() && c.source != own);
        let open = |(channel, own): (Channel, Ipv6Addr)| {
            let socket = Subscription::open(channel.group, channel.port, plan.link.index, 1 << 12).ok()?;
            Some((socket, own))
        };
        let subscription = channel.zip(own).filter(|_| all_named).and_then(open);
        Self { subscription, began: None, ended: None }
    }

    fn handle_time(&mut self, now: Duration, begin: Duration) {
        let Some((subscription, source)) = &self.subscription else { return };
        match (self.began, self.ended) {
            (None, _) if now >= begin => {
                self.began = Some(now);
                if subscription.join(Some(*source)).is_err() {
                    self.subscription = None;
                }
            }
            (Some(began), None) if now >= began + PROVOCATION => {
                let _ = subscription.leave(Some(*source));
                self.ended = Some(now);
            }
            _ => {}
        }
    }

    /// Whether there has been time for an answer.
    fn is_over(&self, now: Duration) -> bool {
        self.subscription.is_none() || self.ended.is_some_and(|ended| now >= ended + 3 * PROVOCATION)
    }
}

/// Takes notes of packets.
struct Ear<'a> {
    wanted: &'a [Channel],
    /// Group and port of each place, in the order in which the reception numbers them.
    places: Vec<(Ipv6Addr, u16)>,
    trust: &'a mut Trust,
    /// Seconds since 1970.
    now: u64,
    /// Manifests that were looked at.
    known: Vec<blake3::Hash>,
    heard: Heard,
}

impl<'a> Ear<'a> {
    fn new(plan: &Plan<'a>, trust: &'a mut Trust, now: u64) -> Self {
        let mut places = Vec::new();
        for channel in plan.wanted {
            if !places.contains(&(channel.group, channel.port)) {
                places.push((channel.group, channel.port));
            }
        }
        Self { wanted: plan.wanted, places, trust, now, known: Vec::new(), heard: Heard::default() }
    }

    fn handle(&mut self, place: usize, batch: &Batch, since: Duration) {
        let Some(&(group, port)) = self.places.get(place) else { return };
        for (bytes, source) in batch.packets() {
            let Ok(packet) = Packet::parse(bytes) else {
                self.heard.foreign += 1;
                continue;
            };
            let channel = Channel { source: Some(source), group, port };
            let Some(voice) = self.voice(channel, since.as_secs_f64()) else { continue };
            voice.lasted = since.as_secs_f64() - voice.first;
            voice.meter.handle(packet.sequence(), bytes.len() + IP_UDP_LEN);
            if packet.kind() == Kind::Manifest {
                self.handle_manifest(&packet, source);
            }
        }
    }

    fn voice(&mut self, channel: Channel, first: f64) -> Option<&mut Voice> {
        let voices = &mut self.heard.voices;
        let known = voices.iter().position(|voice| voice.channel == channel);
        if known.is_none() && voices.len() < MAX_VOICES {
            voices.push(Voice { channel, meter: Meter::new(), first, lasted: 0.0 });
        }
        let last = voices.len().checked_sub(1)?;
        let at = known.unwrap_or(last);
        voices.get_mut(at).filter(|voice| voice.channel == channel)
    }

    fn handle_any(&mut self, place: usize, batch: &Batch) {
        let Some(&(group, port)) = self.places.get(place) else { return };
        let strangers = &mut self.heard.strangers;
        for (_, source) in batch.packets() {
            let channel = Channel { source: Some(source), group, port };
            match strangers.iter().position(|(known, _)| *known == channel) {
                Some(at) => strangers[at].1 += 1,
                None if strangers.len() < MAX_VOICES => strangers.push((channel, 1)),
                None => {}
            }
        }
    }

    fn handle_manifest(&mut self, packet: &Packet<'_>, source: Ipv6Addr) {
        let Ok(envelope) = Envelope::parse(packet.body()) else { return };
        let hash = blake3::hash(&packet.body()[..envelope.len()]);
        let is_new = !self.known.contains(&hash) && self.known.len() < MAX_MANIFESTS;
        if !is_new || packet.instance() != instance_of(envelope.manifest) {
            return;
        }
        self.known.push(hash);
        let Ok(manifest) = Manifest::parse(envelope.manifest) else { return };
        let refusal = match self.trust.check(&envelope, self.now) {
            // That it has expired is told beside the clock.
            Ok(_) | Err(TrustError::Expired { .. }) => None,
            Err(refusal) => Some(refusal.to_string()),
        };
        self.heard.manifests.push(Described {
            source,
            name: manifest.name,
            seq: manifest.seq,
            size: manifest.size,
            created: manifest.created,
            expires: manifest.expires,
            key_id: key_id(envelope.signature),
            refusal,
        });
    }

    fn is_anybody_silent(&self) -> bool {
        self.wanted.iter().any(|wanted| !self.heard.voices.iter().any(|voice| wanted.is(&voice.channel)))
    }

    fn is_measured(&self, limit: Duration) -> bool {
        let enough = MEASURE.min(limit / 2).as_secs_f64();
        self.heard.voices.iter().all(|voice| voice.lasted >= enough) && !self.known.is_empty()
    }
}

impl Channel {
    /// Whether a packet of `other` is one of these.
    pub fn is(&self, other: &Self) -> bool {
        (self.group, self.port) == (other.group, other.port)
            && (self.source.is_none() || self.source == other.source)
    }
}
