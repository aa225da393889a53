//! From a name to its services, through nameservers: the I/O of this crate. The runtime that hickory needs lives
//! only inside [`Resolver::lookup`], which blocks, never longer than its timeout. Every lookup starts afresh, so that
//! a machine that has moved to another network, or a zone to other keys, needs no restart.

use crate::error::{LookupError, RETRY};
use crate::name::{Name, NameError};
use crate::records::{RecordError, Remarks, Service, Srv, Txt};
use crate::trust::Anchors;
use carousel_proto::outcome::plain;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::dnssec::DnssecDnsHandle;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer, RetryDnsHandle};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::dnssec::rdata::DNSSECRData;
use hickory_resolver::proto::dnssec::{Proof, TrustAnchors};
use hickory_resolver::proto::op::{DnsRequestOptions, DnsResponse, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name as DnsName, RData, Record, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use std::collections::VecDeque;
use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Services taken of a domain.
const MAX_SERVICES: usize = 256;
/// Hosts asked for their addresses in one lookup.
const MAX_HOSTS: usize = 256;
/// Aliases (CNAME) followed for one record.
const MAX_ALIASES: usize = 8;
/// Questions under way at once.
const AT_ONCE: usize = 16;
/// How long an answer is believed, whatever its TTL says.
pub(crate) const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// How to ask.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whom; without it, those of the system.
    pub nameserver: Option<SocketAddr>,
    /// A file with DNSKEY or DS records. Names below their zones are validated, others are not.
    pub trust_anchor: Option<PathBuf>,
    /// For a whole lookup, however many questions it takes.
    pub timeout: Duration,
}

/// What DNSSEC says about an answer: the least of what it says about its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Validation {
    /// Nobody checked: there is no trust anchor above the name.
    Unchecked,
    /// There is a trust anchor, and proof that this part of the tree is not signed.
    Insecure,
    /// Signed, and the signatures lead to a trust anchor.
    Secure,
}

/// What a name led to.
#[derive(Clone, Debug)]
pub struct Answer {
    /// At least one, in the order of their names; each with at least one source, each source with an address.
    pub services: Vec<Service>,
    /// Whether it can be believed, as far as anything from DNS can.
    pub validation: Validation,
    /// When to ask again: the smallest TTL of all records, from 1 s to 1 h.
    pub ttl: Duration,
    /// What was left out and why.
    pub remarks: Vec<String>,
}

/// Finds services.
#[derive(Clone, Debug)]
pub struct Resolver {
    settings: Settings,
}

impl Resolver {
    /// Sees whether the trust anchor is one; asks nobody yet.
    pub fn new(settings: Settings) -> Result<Self, LookupError> {
        let resolver = Self { settings };
        resolver.anchors()?;
        Ok(resolver)
    }

    /// Read for each lookup: keys of zones change, and transfers may last.
    fn anchors(&self) -> Result<Anchors, LookupError> {
        let anchors = self.settings.trust_anchor.as_deref().map(Anchors::read).transpose()?;
        Ok(anchors.unwrap_or_default())
    }

    /// Finds what can be received under a name: an instance (`NAME._carousel._udp.DOMAIN`), the only or all services
    /// of a domain, or a name with nothing but SRV records. Blocks; not to be called from within a runtime.
    pub fn lookup(&self, name: &str) -> Result<Answer, LookupError> {
        let deadline = Instant::now() + self.settings.timeout;
        let name: Name = name.parse::<Name>()?;
        let too_long = || NameError::TooLong(name.to_string());
        let name = name.clone().with_whole_instance().ok_or_else(too_long)?;
        let anchors = self.anchors()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| LookupError::Unreachable { name: name.clone(), why: plain(&error) })?;
        let answer = runtime.block_on(async {
            let asking = Asking::new(&self.settings, &anchors, &name, deadline).await?;
            asking.search(name).await
        });
        runtime.shutdown_background();
        answer
    }
}

type Plain = RetryDnsHandle<NameServerPool<TokioRuntimeProvider>>;

/// One lookup.
#[derive(Clone)]
struct Asking {
    plain: Plain,
    /// Validates names in these zones.
    secure: Option<(Arc<Vec<DnsName>>, DnssecDnsHandle<Plain>)>,
    options: DnsRequestOptions,
    timeout: Duration,
    deadline: Instant,
}

/// Records of one name and kind; none if there are none.
struct Records {
    data: Vec<RData>,
    /// Why there are none.
    code: &'static str,
    ttl: Duration,
    validation: Validation,
}

/// What a lookup learns on its way, beside services.
struct Learned {
    validation: Validation,
    ttl: Duration,
    remarks: Remarks,
    worst: Option<LookupError>,
}

impl Learned {
    fn new() -> Self {
        Self { validation: Validation::Secure, ttl: TTL.1, remarks: Remarks::default(), worst: None }
    }

    fn take<T>(&mut self, (ttl, validation, value): (Duration, Validation, T)) -> T {
        self.ttl = self.ttl.min(ttl);
        self.validation = self.validation.min(validation);
        value
    }

    /// Something of several failed: the others count, and it is asked again soon.
    fn lose(&mut self, name: &Name, error: LookupError) {
        self.remarks.add(name, format_args!("left out: {}", error.why()));
        self.ttl = self.ttl.min(error.retry_after());
        if self.worst.as_ref().is_none_or(|worst| error.severity() > worst.severity()) {
            self.worst = Some(error);
        }
    }
}

impl Asking {
    async fn new(
        settings: &Settings,
        anchors: &Anchors,
        name: &Name,
        deadline: Instant,
    ) -> Result<Self, LookupError> {
        let (config, mut resolver) = nameservers(settings.nameserver)?;
        // Three attempts, and time left to say that they were in vain.
        resolver.timeout = resolver.timeout.min(settings.timeout.mul_f64(0.3));
        resolver.attempts = 2;
        let mut options = DnsRequestOptions::default();
        options.use_edns = true;
        let tls = TlsConfig::new().map_err(|error| unreachable(name, &error))?;
        let context = Arc::new(PoolContext::new(resolver, tls));
        let pool = NameServerPool::from_config(config.name_servers, context, TokioRuntimeProvider::default());
        let plain = RetryDnsHandle::new(pool, 2);
        let mut asking = Self { plain, secure: None, options, timeout: settings.timeout, deadline };

        let mut trusted = TrustAnchors::empty();
        let mut zones = Vec::new();
        asking.options.edns_set_dnssec_ok = anchors.zones().next().is_some();
        for zone in anchors.zones() {
            let answers = asking.ask(&asking.plain, zone, RecordType::DNSKEY).await;
            let answers = answers.map_err(|trouble| trouble.about(name, &asking))?.answers;
            anchors
                .vouch(zone, &answers, &mut trusted)
                .map_err(|why| LookupError::Bogus { name: name.clone(), why })?;
            zones.push(zone.clone());
        }
        if !zones.is_empty() {
            let handle = DnssecDnsHandle::with_trust_anchor(asking.plain.clone(), Arc::new(trusted));
            asking.secure = Some((Arc::new(zones), handle));
        }
        Ok(asking)
    }

    /// The services behind a name, of whatever sort it is.
    async fn search(&self, name: Name) -> Result<Answer, LookupError> {
        let mut learned = Learned::new();
        let mut services = match name.service_at() {
            Some(1..) => vec![self.service(&name, &mut learned).await?],
            Some(0) => self.list(&name, &mut learned).await?,
            None if name.labels().any(|label| label.starts_with(b"_")) => {
                vec![self.service(&name, &mut learned).await?]
            }
            None => match Name::service_list(&name) {
                None => vec![self.service(&name, &mut learned).await?],
                Some(list) => match self.list(&list, &mut learned).await {
                    // Not a domain with services, then; perhaps SRV records stand here.
                    Err(LookupError::Nothing { .. }) => vec![self.service(&name, &mut learned).await?],
                    found => found?,
                },
            },
        };
        self.locate(&mut services, &mut learned).await;
        services.retain(|service| !service.sources.is_empty());
        if services.is_empty() {
            let why = "none of its hosts has an IPv6 address (AAAA)".into();
            return Err(learned.worst.unwrap_or(LookupError::Unusable { name, why }));
        }
        Ok(Answer {
            services,
            validation: learned.validation,
            ttl: learned.ttl.clamp(TTL.0, TTL.1),
            remarks: learned.remarks.into_lines(),
        })
    }

    /// All services that a domain lists; without a list, what stands at the name of the list itself.
    async fn list(&self, list: &Name, learned: &mut Learned) -> Result<Vec<Service>, LookupError> {
        let records = self.records(list, RecordType::PTR).await?;
        let pointers = learned.take((records.ttl, records.validation, records.data));
        if pointers.is_empty() {
            return Ok(vec![self.service(list, learned).await?]);
        }
        let mut names: Vec<Name> = Vec::new();
        for pointer in &pointers {
            let RData::PTR(target) = pointer else { continue };
            match own(target) {
                Some(name) if name.instance().is_none() => {
                    learned.remarks.add(list, format_args!("{name} ignored: no carousel"));
                }
                Some(name) if !names.contains(&name) => names.push(name),
                _ => {}
            }
        }
        names.sort_by_key(Name::lower_text);
        if names.len() > MAX_SERVICES {
            learned.remarks.add(list, format_args!("only {MAX_SERVICES} services taken"));
            names.truncate(MAX_SERVICES);
        }
        let found = all(names.iter().map(|name| {
            let (asking, name) = (self.clone(), name.clone());
            async move {
                let mut learned = Learned::new();
                let service = asking.service(&name, &mut learned).await;
                (service, learned)
            }
        }));
        let mut services = Vec::new();
        for (name, (service, of_it)) in names.iter().zip(found.await) {
            learned.take((of_it.ttl, of_it.validation, ()));
            learned.remarks.append(of_it.remarks);
            match service {
                Ok(service) => services.push(service),
                Err(error) => learned.lose(name, error),
            }
        }
        match learned.worst.take() {
            Some(error) if services.is_empty() => Err(error),
            worst => {
                learned.worst = worst;
                let why = "it lists services, but none of ours".into();
                let nothing = || LookupError::Unusable { name: list.clone(), why };
                if services.is_empty() { Err(nothing()) } else { Ok(services) }
            }
        }
    }

    /// The service of a name: its SRV and TXT records.
    async fn service(&self, name: &Name, learned: &mut Learned) -> Result<Service, LookupError> {
        let found = self.records(name, RecordType::SRV).await?;
        if found.data.is_empty() {
            return Err(LookupError::Nothing { name: name.clone(), code: found.code, ttl: found.ttl });
        }
        let srv = learned.take((found.ttl, found.validation, found.data));
        let srv: Vec<Srv> = srv.iter().filter_map(parse_srv).collect();
        // That there is no TXT must be said by somebody: groups depend on it.
        let found = self.records(name, RecordType::TXT).await?;
        let txt = learned.take((found.ttl, found.validation, found.data));
        let strings = |data: &RData| match data {
            RData::TXT(txt) => Some(txt.txt_data.iter().map(|string| string.to_vec()).collect::<Txt>()),
            _ => None,
        };
        let txt: Vec<Txt> = txt.iter().filter_map(strings).collect();
        Service::parse(name, &srv, &txt, &mut learned.remarks).map_err(|error| match error {
            RecordError::NotOffered => {
                LookupError::Nothing { name: name.clone(), code: "not offered", ttl: found.ttl }
            }
            other => LookupError::Unusable { name: name.clone(), why: other.to_string() },
        })
    }

    /// Finds the addresses of all sources, and drops those that have none.
    async fn locate(&self, services: &mut [Service], learned: &mut Learned) {
        let mut hosts: Vec<Name> = Vec::new();
        for source in services.iter().flat_map(|service| &service.sources) {
            if hosts.len() < MAX_HOSTS && !hosts.contains(&source.host) {
                hosts.push(source.host.clone());
            }
        }
        let found = all(hosts.iter().map(|host| {
            let (asking, host) = (self.clone(), host.clone());
            async move { asking.records(&host, RecordType::AAAA).await }
        }));
        for (host, found) in hosts.iter().zip(found.await) {
            let addresses: Vec<Ipv6Addr> = match found {
                Err(error) => {
                    learned.lose(host, error);
                    continue;
                }
                Ok(records) => {
                    let address = |data: &RData| match data {
                        RData::AAAA(address) => Some(address.0),
                        _ => None,
                    };
                    if records.data.is_empty() {
                        learned.remarks.add(host, format_args!("left out: no AAAA ({})", records.code));
                    }
                    let data = learned.take((records.ttl, records.validation, records.data));
                    data.iter().filter_map(address).collect()
                }
            };
            let sources = services.iter_mut().flat_map(|service| &mut service.sources);
            sources.filter(|s| s.host == *host).for_each(|s| s.accept(&addresses, &mut learned.remarks));
        }
        services.iter_mut().for_each(|service| service.sources.retain(|source| !source.addresses.is_empty()));
    }

    /// The records of a name, through aliases.
    async fn records(&self, name: &Name, kind: RecordType) -> Result<Records, LookupError> {
        let mut at = foreign(name)?;
        let (mut ttl, mut validation) = (TTL.1, Validation::Secure);
        for _ in 0..=MAX_ALIASES {
            let handle = self.secure.as_ref().filter(|(zones, _)| zones.iter().any(|zone| zone.zone_of(&at)));
            let answer = match handle {
                Some((_, handle)) => self.ask(handle, &at, kind).await,
                None => self.ask(&self.plain, &at, kind).await,
            };
            let answer = answer.map_err(|trouble| trouble.about(name, self))?;
            // Every alias is asked for by itself: one answer may cross zones with different anchors.
            let here: Vec<&Record> = answer.answers.iter().filter(|record| record.name == at).collect();
            let of = |kind| here.iter().filter(move |record| record.record_type() == kind);
            let used = if of(kind).next().is_some() { kind } else { RecordType::CNAME };
            for record in of(used) {
                ttl = ttl.min(Duration::from_secs(record.ttl.into()));
                validation = validation.min(match (handle, record.proof) {
                    (None, _) => Validation::Unchecked,
                    (_, Proof::Secure) => Validation::Secure,
                    (_, Proof::Insecure) => Validation::Insecure,
                    _ => {
                        let why = format!("no valid signature over {at} {used}");
                        return Err(LookupError::Bogus { name: name.clone(), why });
                    }
                });
            }
            if used == kind {
                let data = of(kind).map(|record| record.data.clone()).collect();
                return Ok(Records { data, code: answer.code, ttl, validation });
            }
            match of(RecordType::CNAME).next().map(|record| &record.data) {
                Some(RData::CNAME(target)) => at = target.0.clone(),
                _ => {
                    let ttl = ttl.min(answer.negative_ttl);
                    let validation = if handle.is_none() { Validation::Unchecked } else { validation };
                    return Ok(Records { data: Vec::new(), code: answer.code, ttl, validation });
                }
            }
        }
        let why = format!("more than {MAX_ALIASES} aliases (CNAME) in a row, or a circle of them");
        Err(LookupError::Unusable { name: name.clone(), why })
    }

    /// One question, with all attempts that hickory makes of it.
    async fn ask(&self, handle: &impl DnsHandle, name: &DnsName, kind: RecordType) -> Result<Reply, Trouble> {
        let query = Query::query(name.clone(), kind);
        let response = timeout_at(self.deadline, handle.lookup(query, self.options).first_answer()).await;
        match response.map_err(|_| Trouble::Silence)? {
            Ok(response) => Ok(Reply::new(response)),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Ok(Reply {
                answers: Vec::new(),
                code: word(none.response_code),
                negative_ttl: none.negative_ttl.map_or(RETRY, |ttl| Duration::from_secs(ttl.into())),
            }),
            Err(NetError::Dns(DnsError::Nsec { response, proof, .. }))
                if proof == Proof::Insecure || is_signed_alias(&response, name) =>
            {
                Ok(Reply::new(*response))
            }
            Err(NetError::Dns(DnsError::Nsec { .. } | DnsError::DnssecBogus)) => {
                Err(Trouble::Bogus(format!("no proof that {name} {kind} is absent")))
            }
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Err(Trouble::Code(code)),
            Err(NetError::Timeout) => Err(Trouble::Silence),
            Err(other) => Err(Trouble::Net(other)),
        }
    }
}

/// What a question brought.
struct Reply {
    answers: Vec<Record>,
    code: &'static str,
    negative_ttl: Duration,
}

impl Reply {
    fn new(response: DnsResponse) -> Self {
        let negative_ttl = response.negative_ttl().map_or(RETRY, |ttl| Duration::from_secs(ttl.into()));
        let message = response.into_message();
        Self { code: word(message.metadata.response_code), answers: message.answers, negative_ttl }
    }
}

/// Whether the answer to a question is a signed alias, not one made up from a wildcard. hickory calls it bogus when
/// the end of the chain is missing, whose proof is about another name; we ask about that name anyway.
fn is_signed_alias(response: &DnsResponse, name: &DnsName) -> bool {
    let here =
        || response.answers.iter().filter(|record| record.name == *name && record.proof == Proof::Secure);
    let covers_it_whole = |record: &Record| match &record.data {
        RData::DNSSEC(DNSSECRData::RRSIG(signature)) => {
            let input = signature.input();
            input.type_covered == RecordType::CNAME && input.num_labels == name.num_labels()
        }
        _ => false,
    };
    here().any(|record| record.record_type() == RecordType::CNAME) && here().any(covers_it_whole)
}

/// What a question ended with instead.
enum Trouble {
    Silence,
    Bogus(String),
    Code(ResponseCode),
    Net(NetError),
}

impl Trouble {
    fn about(self, name: &Name, asking: &Asking) -> LookupError {
        let after = asking.timeout;
        let name = name.clone();
        match self {
            Self::Silence => LookupError::Timeout { name, after },
            Self::Bogus(why) => LookupError::Bogus { name, why },
            Self::Code(ResponseCode::ServFail) => LookupError::Failed { name, code: "SERVFAIL".into() },
            Self::Code(ResponseCode::Refused) => LookupError::Failed { name, code: "REFUSED".into() },
            Self::Code(code) => LookupError::Failed { name, code: format!("{code:?}") },
            Self::Net(error) => unreachable(&name, &error),
        }
    }
}

fn unreachable(name: &Name, error: &NetError) -> LookupError {
    let why = match error {
        NetError::Io(error) => plain(error),
        // What is left when every attempt of every nameserver was turned down.
        NetError::NoConnections => "nothing listens there, or no way leads there".to_owned(),
        other => other.to_string(),
    };
    LookupError::Unreachable { name: name.clone(), why }
}

fn word(code: ResponseCode) -> &'static str {
    if code == ResponseCode::NXDomain { "NXDOMAIN" } else { "no such records" }
}

/// Whom to ask, by UDP first and by TCP when that is not enough.
fn nameservers(only: Option<SocketAddr>) -> Result<(ResolverConfig, ResolverOpts), LookupError> {
    let Some(address) = only else {
        return read_system_conf().map_err(|error| {
            LookupError::NoNameserver(match error {
                NetError::Io(error) => format!("/etc/resolv.conf: {}", plain(&error)),
                other => other.to_string(),
            })
        });
    };
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    let server = NameServerConfig::new(address.ip(), true, connections.into());
    Ok((ResolverConfig::from_parts(None, Vec::new(), vec![server]), ResolverOpts::default()))
}

/// Runs many questions, a few at once; the results in the order of the questions.
async fn all<F: Future<Output: Send + 'static> + Send + 'static>(
    questions: impl Iterator<Item = F>,
) -> Vec<F::Output> {
    let mut waiting: VecDeque<(usize, F)> = questions.enumerate().collect();
    let mut results: Vec<Option<F::Output>> = waiting.iter().map(|_| None).collect();
    let mut running = JoinSet::new();
    loop {
        while running.len() < AT_ONCE
            && let Some((i, question)) = waiting.pop_front()
        {
            running.spawn(async move { (i, question.await) });
        }
        match running.join_next().await {
            None => return results.into_iter().flatten().collect(),
            Some(Ok((i, result))) => results[i] = Some(result),
            // Nobody cancels them, so it panicked; so do we.
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

fn parse_srv(data: &RData) -> Option<Srv> {
    match data {
        RData::SRV(srv) => Some(Srv {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: own(&srv.target)?,
        }),
        _ => None,
    }
}

fn own(name: &DnsName) -> Option<Name> {
    Name::from_labels(name.iter())
}

fn foreign(name: &Name) -> Result<DnsName, LookupError> {
    let labels = DnsName::from_labels(name.labels());
    labels.map_err(|_| NameError::TooLong(name.to_string()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trust_anchor_is_read_for_every_lookup() {
        let path = std::env::temp_dir().join(format!("carousel-anchor-{}", std::process::id()));
        let root = ". IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D\n";
        std::fs::write(&path, root).unwrap();
        let timeout = Duration::from_secs(1);
        let settings = Settings { nameserver: None, trust_anchor: Some(path.clone()), timeout };
        let resolver = Resolver::new(settings).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(resolver.lookup("example.test"), Err(LookupError::AnchorFile(..))));
    }
}
