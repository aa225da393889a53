//! `zone`: the DNS records that make a configuration findable.

use crate::bundle::read_head;
use crate::cli;
use crate::config::Config;
use crate::plan::{Session, Way};
use carousel_dns::{Channel, Name, Service, Source, emit_zone};
use carousel_proto::outcome::Failure;
use carousel_proto::trust::key_id;
use std::io::Write;
use std::path::Path;

/// `zone`.
pub fn zone(arguments: &cli::Zone) -> Result<(), Failure> {
    let path = arguments.config.display();
    let Config { plan, servers } = Config::read(&arguments.config, &Way::default())?;
    if servers.is_empty() {
        return Err(Failure::usage(format!(
            "{path}: nobody sends; add a [[server]] with its host and address"
        )));
    }
    let mut sections: Vec<(Name, Vec<Service>)> = Vec::new();
    for session in &plan.sessions {
        let Some((name, domain)) = session.service.as_ref().and_then(|name| Some((name, name.domain()?)))
        else {
            tracing::warn!("{}: it has no service name and is left out", session.place);
            continue;
        };
        let service = service(session, name, &servers)?;
        match sections.iter_mut().find(|(known, _)| *known == domain) {
            Some((_, services)) => services.push(service),
            None => sections.push((domain, vec![service])),
        }
    }
    if sections.is_empty() {
        return Err(Failure::usage(format!("{path}: no session has a name; add a service to one")));
    }
    let mut text = String::new();
    for (domain, services) in &sections {
        text += &emit_zone(services, domain, arguments.ttl)
            .map_err(|e| Failure::usage(format!("{path}: {e}")))?;
    }
    let domains: Vec<&Name> = sections.iter().map(|(domain, _)| domain).collect();
    servers.iter().for_each(|server| remark(server, &domains));
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| Failure::writing(Path::new("standard output"), &e))
}

/// What DNS says of a session: the plan's channels, the bundle's release, and everybody who sends.
fn service(session: &Session, name: &Name, servers: &[Source]) -> Result<Service, Failure> {
    let head = read_head(&session.bundle)?;
    session.check(&head.layout)?;
    let envelope = head.envelope()?;
    let key_id = key_id(envelope.signature);
    if key_id.is_none() {
        tracing::warn!("{} is not signed: only clients with --digest will take it", session.bundle.display());
    }
    let targets = || session.channels.iter().map(|channel| &channel.target);
    let known = |source| servers.iter().any(|s| s.addresses.is_empty() || s.addresses.contains(&source));
    if let Some(source) = targets().filter_map(|target| target.source).find(|source| !known(*source)) {
        tracing::warn!("{}: {source} sends, and no [[server]] has that address", session.place);
    }
    if let Some(rate) = session.channels.iter().map(|c| c.rate).find(|rate| !rate.is_multiple_of(1000)) {
        tracing::warn!("{}: DNS has whole kbit/s: {rate} bit/s are rounded up there", session.place);
    }
    let port = targets().next().map_or(0, |target| target.port);
    Ok(Service {
        name: name.clone(),
        sources: servers.iter().map(|server| Source { port, ..server.clone() }).collect(),
        channels: session
            .channels
            .iter()
            .map(|channel| Channel { group: channel.target.group, rate: Some(channel.rate) })
            .collect(),
        ladder: session.ladder,
        seq: Some(head.manifest.seq),
        digest_prefix: Some(blake3::Hash::from_bytes(head.manifest.digest).to_hex()[..16].to_owned()),
        key_id,
        url: session.url.clone(),
    })
}

/// Says what is left to do by hand.
fn remark(server: &Source, domains: &[&Name]) {
    if server.addresses.is_empty() {
        tracing::warn!("{}: see to its AAAA record: no address is given here", server.host);
    } else if !domains.iter().any(|domain| server.host.is_within(domain)) {
        tracing::warn!("{}: see to its AAAA record: it is in another zone", server.host);
    }
}
