//! From a name to sources and tiers, through DNS, and again whenever its answer has aged. `discover` shows it.

use crate::cli;
use crate::tuner::{Choice, Offer, Origin, Tuner};
use carousel_dns::{Answer, Ladder, Resolver, Service, Settings, Validation, pick};
use carousel_proto::outcome::Failure;
use carousel_proto::tiers::{Kind, Mode};
use carousel_proto::units::show_rate;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// For one answer from DNS, before a transfer and during it, unless the user is less patient.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Nanoseconds in which one packet of 1,280 bytes goes out at 1 bit/s.
const PACKET_NS: u64 = 1280 * 8 * 1_000_000_000;

/// Looks a service up, for `get`; what comes out later is what DNS says then.
pub fn find(name: &str, arguments: &cli::Get, seed: u64) -> Result<(Tuner, Receiver<Offer>), Failure> {
    let timeout = match Duration::from_millis(arguments.timeout) {
        Duration::ZERO => LOOKUP_TIMEOUT,
        timeout => timeout.min(LOOKUP_TIMEOUT),
    };
    let resolver = resolver(&arguments.dns, timeout)?;
    let answer = resolver.lookup(name)?;
    remark(&answer);
    let service = the_only(name, &answer)?;
    let kind = match service.ladder {
        Ladder::Stacked => Kind::Stacked,
        Ladder::Separate => Kind::Separate,
    };
    let tiers = service.channels.len();
    let mode = match arguments.tier {
        Some(cli::Tier::Number(tier)) if tier >= tiers => {
            return Err(Failure::usage(format!(
                "{}: there is no tier {tier}; the highest is {}",
                service.name,
                tiers - 1
            )));
        }
        Some(cli::Tier::Number(tier)) => Mode::Fixed(tier),
        Some(cli::Tier::Stacked) if kind == Kind::Separate && tiers > 1 => {
            return Err(Failure::usage(format!(
                "{}: its tiers are separate; use --tier auto or a number",
                service.name
            )));
        }
        _ => Mode::Auto,
    };
    tracing::info!(
        "{}: release {}, {} sources, {tiers} tiers, DNSSEC: {}",
        service.name,
        service.seq.map_or("unknown".to_owned(), |seq| seq.to_string()),
        service.sources.len(),
        validation(answer.validation)
    );
    let (updates, later) = bounded(1);
    let watch = Watch { resolver, name: service.name.to_string(), seed };
    let (offer, ttl) = (offer(service, seed), answer.ttl);
    std::thread::spawn(move || watch.run(ttl, &updates));
    Ok((Tuner::new(offer, Choice::Tier(kind, mode), usize::from(arguments.sources), seed), later))
}

/// `discover`.
pub fn discover(arguments: &cli::Discover) -> Result<(), Failure> {
    let timeout = Duration::from_millis(arguments.timeout);
    let answer = resolver(&arguments.dns, timeout)?.lookup(&arguments.service)?;
    let (validation, ttl) = (validation(answer.validation), answer.ttl.as_secs());
    let text = if arguments.json {
        let services: Vec<Value> = answer.services.iter().map(in_json).collect();
        let all = json!({
            "services": services, "validation": validation, "ttl": ttl, "remarks": answer.remarks,
        });
        format!("{all}\n")
    } else {
        remark(&answer);
        let services: String = answer.services.iter().map(|service| show(service) + "\n").collect();
        format!("{services}DNSSEC: {validation}; to be asked again in {ttl} s\n")
    };
    // Not println, which panics where nobody reads or the disk is full.
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| Failure::writing(Path::new("standard output"), &e))
}

/// What DNS offers under a name, for `doctor`: one service.
pub fn look(name: &str, dns: &cli::Dns, timeout: Duration) -> Result<(Service, Answer), Failure> {
    let answer = resolver(dns, timeout)?.lookup(name)?;
    let service = the_only(name, &answer)?.clone();
    Ok((service, answer))
}

fn resolver(dns: &cli::Dns, timeout: Duration) -> Result<Resolver, Failure> {
    let trust_anchor: Option<PathBuf> = dns.trust_anchor.clone();
    Ok(Resolver::new(Settings { nameserver: dns.nameserver, trust_anchor, timeout })?)
}

fn remark(answer: &Answer) {
    for remark in &answer.remarks {
        tracing::warn!("{remark}");
    }
}

fn the_only<'a>(asked_for: &str, answer: &'a Answer) -> Result<&'a Service, Failure> {
    match &answer.services[..] {
        [service] => Ok(service),
        services => {
            let names: Vec<String> = services.iter().map(|service| service.name.to_string()).collect();
            Err(Failure::usage(format!(
                "{asked_for}: there are {} services; name one of them: {}",
                names.len(),
                names.join(", ")
            )))
        }
    }
}

/// The sources in the order in which this client wants them, and the tiers.
fn offer(service: &Service, seed: u64) -> Offer {
    let picked = pick(&service.sources, usize::MAX, seed);
    let ordered = picked.together.into_iter().chain(picked.spares);
    let sources = ordered.flat_map(|source| {
        let origin = |address| (Origin { address: Some(address), port: source.port }, source.priority);
        source.addresses.iter().copied().map(origin)
    });
    let gap = |rate: Option<u64>| rate.map_or(0, |rate| PACKET_NS / rate.max(1));
    Offer {
        sources: sources.collect(),
        tiers: service.channels.iter().map(|channel| (channel.group, gap(channel.rate))).collect(),
    }
}

/// Asks again while a transfer runs.
struct Watch {
    resolver: Resolver,
    name: String,
    seed: u64,
}

impl Watch {
    fn run(&self, mut wait: Duration, updates: &Sender<Offer>) {
        loop {
            std::thread::sleep(wait);
            let answer = self.resolver.lookup(&self.name);
            wait = answer.as_ref().map_or_else(|error| error.retry_after(), |answer| answer.ttl);
            match answer.as_ref().map(|answer| the_only(&self.name, answer)) {
                Ok(Ok(service)) => {
                    if updates.send(offer(service, self.seed)).is_err() {
                        return;
                    }
                }
                Ok(Err(failure)) => tracing::warn!("{failure}; going on with what was known"),
                Err(error) => tracing::warn!("{error}; going on with what was known"),
            }
        }
    }
}

pub fn validation(validation: Validation) -> &'static str {
    match validation {
        Validation::Unchecked => "unchecked",
        Validation::Insecure => "insecure",
        Validation::Secure => "secure",
    }
}

fn ladder(service: &Service) -> &'static str {
    match service.ladder {
        Ladder::Separate => "separate",
        Ladder::Stacked => "stacked",
    }
}

fn in_json(service: &Service) -> Value {
    let channels: Vec<Value> =
        service.channels.iter().map(|c| json!({"group": c.group, "rate": c.rate})).collect();
    let source = |s: &carousel_dns::Source| {
        json!({"host": s.host.to_string(), "addresses": s.addresses, "port": s.port,
               "priority": s.priority, "weight": s.weight})
    };
    let sources: Vec<Value> = service.sources.iter().map(source).collect();
    json!({
        "name": service.name.to_string(), "instance": service.name.instance(), "seq": service.seq,
        "digest_prefix": service.digest_prefix, "key_id": service.key_id, "url": service.url,
        "tiers": ladder(service), "channels": channels, "sources": sources,
    })
}

fn show(service: &Service) -> String {
    let mut lines = vec![service.name.to_string()];
    let optional = [
        ("release", service.seq.map(|seq| seq.to_string())),
        ("BLAKE3", service.digest_prefix.as_ref().map(|prefix| format!("{prefix}…"))),
        ("key", service.key_id.clone()),
        ("HTTP", service.url.clone()),
    ];
    let line = |(label, value): (&str, Option<String>)| Some(format!("  {label:<8} {}", value?));
    lines.extend(optional.into_iter().filter_map(line));
    if service.channels.len() > 1 {
        let how = match service.ladder {
            Ladder::Separate => "each carries everything",
            Ladder::Stacked => "each adds to the lower ones",
        };
        lines.push(format!("  {:<8} {}: {how}", "tiers", ladder(service)));
    }
    let groups: Vec<String> = service.channels.iter().map(|channel| channel.group.to_string()).collect();
    let wide = widest(&groups);
    for (tier, (channel, group)) in service.channels.iter().zip(&groups).enumerate() {
        let rate = channel.rate.map_or("rate unknown".to_owned(), |rate| show_rate(rate as f64));
        lines.push(format!("  {:<8} {group:<wide$}  {rate}", format!("tier {tier}")));
    }
    let of_source = |source: &carousel_dns::Source| {
        let who = format!("{}  priority {}, weight {}", source.host, source.priority, source.weight);
        let place = |address| (format!("[{address}]:{}", source.port), who.clone());
        source.addresses.iter().map(place).collect::<Vec<_>>()
    };
    let (places, who): (Vec<String>, Vec<String>) = service.sources.iter().flat_map(of_source).unzip();
    let wide = widest(&places);
    for (place, who) in places.iter().zip(who) {
        lines.push(format!("  {:<8} {place:<wide$}  {who}", "source"));
    }
    lines.join("\n") + "\n"
}

/// How wide a column of these is.
fn widest(words: &[String]) -> usize {
    words.iter().map(String::len).max().unwrap_or(0)
}
