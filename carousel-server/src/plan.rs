//! What a server sends: sessions and their channels, whether flags said so or a file.

use crate::bundle::Bundle;
use crate::cli;
use crate::config::Config;
use crate::socket::Target;
use crate::statements::{Files, Statements};
use crate::status;
use carousel_dns::{Ladder, Name};
use carousel_proto::outcome::Failure;
use carousel_proto::schedule::{Layout, Tier};
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::Arc;

/// Bits per second where nobody says another.
pub const DEFAULT_RATE: u64 = 10_000_000;

/// All sessions of a server.
#[derive(Debug)]
pub struct Plan {
    pub sessions: Vec<Session>,
    /// What is sent along with all of them.
    pub statements: Files,
    /// Where it is told what is sent.
    pub published: status::Files,
}

/// All channels of one bundle.
#[derive(Debug)]
pub struct Session {
    /// Where it was said, for messages: `server.toml: line 7`.
    pub place: String,
    pub bundle: PathBuf,
    pub ladder: Ladder,
    /// Tier 0, tier 1, …
    pub channels: Vec<Channel>,
    /// Its name in DNS.
    pub service: Option<Name>,
    /// The bundle over HTTP.
    pub url: Option<String>,
}

/// One group, and what of the bundle goes there how fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    pub target: Target,
    pub tier: Tier,
    pub rate: u64,
    pub phase: u32,
}

/// How packets leave, as far as it was said.
#[derive(Debug, Clone, Default)]
pub struct Way {
    pub interface: Option<String>,
    pub port: Option<u16>,
    pub source: Option<Ipv6Addr>,
    pub phase: Option<u32>,
    pub hops: Option<u8>,
    pub dscp: Option<u8>,
}

/// A channel and its bundle, opened: all that a sending thread needs to know.
#[derive(Clone)]
pub struct Work {
    pub channel: Channel,
    pub bundle: Arc<Bundle>,
    pub statements: Arc<Statements>,
}

impl Plan {
    /// What is read, now and whenever it is taken up anew.
    pub fn files(&self) -> Vec<PathBuf> {
        let bundles = self.sessions.iter().map(|session| &session.bundle);
        bundles.chain(self.statements.paths()).cloned().collect()
    }

    /// What a command line wants. Called again, it reads the file again.
    pub fn new(arguments: &cli::Run) -> Result<Self, Failure> {
        let way = Way::of(arguments);
        let mut plan = match &arguments.config {
            Some(path) => Config::read(path, &way)?.plan,
            None => Self::from_flags(arguments, &way)?,
        };
        let flags = Files {
            keys: arguments.keys.clone(),
            heartbeat_key: arguments.heartbeat_key.clone(),
            heartbeat_life: arguments.heartbeat_life,
        };
        plan.statements = flags.or(plan.statements);
        let flags = status::Files { status: arguments.status.clone(), metrics: arguments.metrics.clone() };
        plan.published = flags.or(plan.published);
        Ok(plan)
    }

    fn from_flags(arguments: &cli::Run, way: &Way) -> Result<Self, Failure> {
        let (bundles, groups) = (&arguments.bundles, &arguments.group);
        if bundles.len() != 1 && bundles.len() != groups.len() {
            return Err(Failure::usage(format!(
                "{} bundles for {} groups: give one bundle, or one for each group",
                bundles.len(),
                groups.len()
            )));
        }
        let rate = |group: &cli::Group| group.rate.or(arguments.rate).unwrap_or(DEFAULT_RATE);
        let channel = |group: &cli::Group| way.channel(group.address, Tier::Alone, rate(group));
        let groups_of = groups.chunks(groups.len().div_ceil(bundles.len()).max(1));
        let session = |(bundle, groups): (&PathBuf, &[cli::Group])| {
            Ok(Session {
                place: "--group".to_owned(),
                bundle: bundle.clone(),
                ladder: Ladder::Separate,
                channels: groups.iter().map(channel).collect::<Result<_, _>>()?,
                service: None,
                url: None,
            })
        };
        let sessions: Result<_, String> = bundles.iter().zip(groups_of).map(session).collect();
        let sessions = sessions.map_err(Failure::usage)?;
        let plan = Self { sessions, statements: Files::default(), published: status::Files::default() };
        plan.check().map(|()| plan)
    }

    /// Refuses two channels in one place: no client could tell them apart.
    pub fn check(&self) -> Result<(), Failure> {
        let mut known: Vec<(&Target, &Session)> = Vec::new();
        for session in &self.sessions {
            for target in session.channels.iter().map(|channel| &channel.target) {
                if let Some((_, other)) = known.iter().find(|(known, _)| known.is_same_place(target)) {
                    return Err(Failure::usage(format!(
                        "{}: {target} is there twice, for {} and for {}; give each channel its own group or port",
                        session.place,
                        other.bundle.display(),
                        session.bundle.display()
                    )));
                }
                known.push((target, session));
            }
        }
        Ok(())
    }

    /// Opens all bundles and checks that they fit.
    pub fn open(self) -> Result<Vec<Work>, Failure> {
        let mut bundles: Vec<Arc<Bundle>> = Vec::new();
        let mut works = Vec::new();
        let signed = self.statements.read()?;
        for session in self.sessions {
            // A file that is renamed over meanwhile must not be there in two versions.
            let bundle = match bundles.iter().find(|known| known.path == session.bundle) {
                Some(known) => Arc::clone(known),
                None => Arc::new(Bundle::open(&session.bundle)?),
            };
            session.check(&bundle.layout)?;
            let statements = Arc::new(signed.statements(&bundle)?);
            let work =
                |channel| Work { channel, bundle: Arc::clone(&bundle), statements: Arc::clone(&statements) };
            works.extend(session.channels.into_iter().map(work));
            bundles.push(bundle);
        }
        Ok(works)
    }
}

impl Session {
    /// Whether the bundle has as many levels as the ladder.
    pub fn check(&self, layout: &Layout) -> Result<(), Failure> {
        let levels = usize::from(layout.rounds_log2()) + 1;
        if self.ladder == Ladder::Stacked && self.channels.len() > levels {
            return Err(Failure::usage(format!(
                "{}: a ladder of {} levels, but {} has {levels}; make it one of {levels}, or fewer",
                self.place,
                self.channels.len(),
                self.bundle.display()
            )));
        }
        Ok(())
    }
}

impl Work {
    /// Whether a channel that does this need not change to do the other.
    pub fn is_same(&self, other: &Self) -> bool {
        self.channel == other.channel
            && self.bundle.is_same(&other.bundle)
            && self.statements.is_same(&other.statements)
    }
}

impl Way {
    /// What a command line says.
    pub fn of(arguments: &cli::Run) -> Self {
        Self {
            interface: arguments.interface.clone(),
            port: arguments.port,
            source: arguments.source,
            phase: arguments.phase,
            hops: arguments.hops,
            dscp: arguments.dscp,
        }
    }

    /// This, and for what it leaves open, the other.
    pub fn or(self, other: &Self) -> Self {
        Self {
            interface: self.interface.or_else(|| other.interface.clone()),
            port: self.port.or(other.port),
            source: self.source.or(other.source),
            phase: self.phase.or(other.phase),
            hops: self.hops.or(other.hops),
            dscp: self.dscp.or(other.dscp),
        }
    }

    /// A channel that leaves this way.
    pub fn channel(&self, group: Ipv6Addr, tier: Tier, rate: u64) -> Result<Channel, String> {
        let target = Target {
            group,
            port: self.port.ok_or("no port is given; add port = 5004")?,
            interface: self.interface.clone().ok_or("no interface is given; add interface = \"eth0\"")?,
            source: self.source,
            hops: self.hops.unwrap_or(32),
            dscp: self.dscp.unwrap_or(1), // le: RFC 8622
        };
        Ok(Channel { target, tier, rate, phase: self.phase.unwrap_or(0) })
    }
}
