//! `get`: what is set up before the first packet, and in which order; then the [`Engine`] runs.

use crate::belief;
use crate::cli;
use crate::engine::{Engine, Files};
use crate::hook::Hook;
use crate::interface;
use crate::receive::{Reception, Settings};
use crate::sandbox::{self, Dns, Reach};
use crate::state::State;
use crate::status::Status;
use crate::target::Target;
use crate::tuner::{Choice, Offer, Origin, Tuner};
use carousel_proto::outcome::{Failure, Outcome, plain};
use carousel_proto::tiers::{Kind, Mode};
use carousel_published::folder_of;
use crossbeam_channel::{Receiver as Queue, never};
use nix::libc;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Where nameservers answer that have no port of their own.
pub const DNS_PORT: u16 = 53;

/// `get`. However it ends, the status says so.
pub fn get(arguments: &cli::Get) -> Result<(), Failure> {
    let (file, metrics) = (arguments.status.as_deref(), arguments.metrics.as_deref());
    let mut status = Status::new(file, metrics, arguments.service.as_deref())?;
    let ended = fetch(arguments, &mut status);
    status.end(ended.as_ref().err());
    ended
}

fn fetch(arguments: &cli::Get, status: &mut Status) -> Result<(), Failure> {
    let state = arguments.state.as_deref().map(State::open).transpose()?;
    let trust = belief::trust(arguments, state.as_ref())?;
    let target = Target::new(arguments)?;
    // While there is nothing else that it could inherit: no lock, no thread.
    let hook = arguments.on_complete.as_deref().map(Hook::new).transpose()?;
    let seed = arguments.seed.as_deref().map(open_seed).transpose()?;
    // Found out now rather than after the transfer: target exists, folder missing or not writable.
    let early = if arguments.look { None } else { target.early(arguments, state.as_ref())? };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        if signal == libc::SIGHUP && is_ignored(signal) {
            continue; // nohup: it is to outlive its terminal
        }
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|e| Failure::new(Outcome::Failed, format!("signals cannot be caught: {e}")))?;
    }
    let settings = Settings {
        interface: interface::index(arguments.interface.as_deref())?,
        rcvbuf: arguments.rcvbuf as usize,
        test_loss: arguments.test_loss,
    };
    enter_sandbox(arguments, &target);
    status.start()?;
    let (tuner, updates) = what_to_join(arguments)?;
    let files = Files { state, target, early, seed, status, stop };
    let mut engine = Engine::new(arguments, trust, files, tuner, updates);
    let failed = |e| Failure::new(Outcome::Failed, format!("a pipe cannot be made: {}", plain(&e)));
    let reception = Reception::new(settings).map_err(failed)?;
    let ended = engine.run(reception).map_err(|failure| engine.put_away(failure));
    engine.handle_end();
    let manifest = ended?;
    if arguments.look {
        return Ok(());
    }
    let path = engine.finish(&manifest)?;
    hook.map_or(Ok(()), |hook| hook.run(&path, &manifest))?;
    engine.handed_over()
}

/// Whether whoever started us had a signal ignored.
fn is_ignored(signal: libc::c_int) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// Gives up what will not be needed again: before the first byte from the network, and before there are threads.
fn enter_sandbox(arguments: &cli::Get, target: &Target) {
    if arguments.no_sandbox {
        tracing::warn!("--no-sandbox: a fault in this program could do whatever its user may");
        return;
    }
    let port = arguments.dns.nameserver.map_or(DNS_PORT, |address| address.port());
    let dns = Dns { trust_anchor: arguments.dns.trust_anchor.as_deref(), port };
    let state = arguments.state.as_deref();
    let published = arguments.status.iter().chain(&arguments.metrics).map(|file| folder_of(file)).collect();
    let (folder, replaced) = (target.folder(), target.replaced(arguments));
    let dns = arguments.service.is_some().then_some(dns);
    sandbox::enter(&Reach { folder, replaced, state, published, dns });
}

/// Sources and groups, as the command line names them or as DNS knows them.
fn what_to_join(arguments: &cli::Get) -> Result<(Tuner, Queue<Offer>), Failure> {
    let seed = RandomState::new().build_hasher().finish();
    if let Some(service) = &arguments.service {
        #[cfg(feature = "dns")]
        return crate::discovery::find(service, arguments, seed);
        #[cfg(not(feature = "dns"))]
        return Err(Failure::usage(format!(
            "{service}: this program was built without DNS; name --source, --group and --port"
        )));
    }
    let port = arguments.port.unwrap_or_default();
    let addresses: Vec<_> = match &arguments.source[..] {
        [] if arguments.tier.is_some() => {
            return Err(Failure::usage(
                "--tier needs a --source: without one, loss cannot be told from the others'",
            ));
        }
        [] => {
            tracing::warn!(
                "no --source: taking from any source that sends to the group (any-source multicast)"
            );
            vec![None]
        }
        sources => sources.iter().copied().map(Some).collect(),
    };
    let choice = match arguments.tier {
        None => Choice::All,
        Some(cli::Tier::Number(tier)) if tier >= arguments.group.len() => {
            return Err(Failure::usage(format!(
                "there is no tier {tier}: each --group is one, and the highest is {}",
                arguments.group.len().saturating_sub(1)
            )));
        }
        Some(cli::Tier::Auto) => Choice::Tier(Kind::Separate, Mode::Auto),
        Some(cli::Tier::Number(tier)) => Choice::Tier(Kind::Separate, Mode::Fixed(tier)),
        Some(cli::Tier::Stacked) => Choice::Tier(Kind::Stacked, Mode::Auto),
    };
    let offer = Offer {
        tiers: arguments.group.iter().map(|group| (*group, 0)).collect(),
        sources: addresses.into_iter().map(|address| (Origin { address, port }, 0)).collect(),
    };
    Ok((Tuner::new(offer, choice, usize::MAX, seed), never()))
}

/// An older file, opened while it may be.
fn open_seed(path: &Path) -> Result<Arc<File>, Failure> {
    let file = File::open(path).map_err(|e| Failure::reading(path, &e))?;
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            Err(Failure::usage(format!("{}: is a folder; --seed takes an older file", path.display())))
        }
        _ => Ok(Arc::new(file)),
    }
}
