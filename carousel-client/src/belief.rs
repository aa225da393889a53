//! Whom a client believes and what it is, as its command line and its memory say.

use crate::cli;
use crate::clock::unix_time;
use crate::state::State;
use carousel_proto::authority::{Authority, Memory};
use carousel_proto::device::Device;
use carousel_proto::keys::SignedKeys;
use carousel_proto::outcome::Failure;
use carousel_proto::signature::Key;
use carousel_proto::trust::{Trust, not_a_public_key};
use std::path::Path;

pub fn trust(arguments: &cli::Get, state: Option<&State>) -> Result<Trust, Failure> {
    if let Some(digest) = arguments.digest {
        return Ok(Trust::Digest(digest));
    }
    if arguments.insecure {
        tracing::warn!("--insecure: whoever sends first decides what arrives");
        return Ok(Trust::Anyone);
    }
    let memory = state.map_or_else(|| Ok(Memory::default()), State::memory)?;
    let mut authority = match &arguments.keys {
        Some(path) => Authority::new(newest_keys(path, state)?, memory, unix_time()),
        None => {
            let keys = arguments.key.iter().map(|path| read_key(path)).collect::<Result<_, _>>()?;
            Authority::pinned(keys, memory, unix_time())
        }
    };
    if arguments.require_heartbeat {
        authority.require_heartbeat();
    }
    arguments.newer_than.iter().for_each(|newer| authority.require_newer(newer.than, newer.by));
    Ok(Trust::Authority(Box::new(authority)))
}

/// What the user says that this device is.
pub fn device(arguments: &cli::Get) -> Device {
    Device { compatible: arguments.compatible.clone(), id: arguments.device_id.clone() }
}

/// The keys object that this device was given, or a newer one that came later.
fn newest_keys(path: &Path, state: Option<&State>) -> Result<carousel_proto::keys::Keys, Failure> {
    let bytes = std::fs::read(path).map_err(|e| Failure::reading(path, &e))?;
    let given = SignedKeys::parse(&bytes).map_err(|_| {
        Failure::usage(format!("{}: not a keys object; a public key goes with --key", path.display()))
    })?;
    given.is_signed().map_err(|e| Failure::untrusted(format!("{}: {e}", path.display())))?;
    let kept = state.map_or(Ok(None), State::keys)?;
    let kept = kept.filter(|kept| kept.keys.version > given.keys.version);
    Ok(kept.unwrap_or(given).keys)
}

pub fn read_key(path: &Path) -> Result<Key, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::reading(path, &e))?;
    Key::parse(&text)
        .ok_or_else(|| Failure::usage(format!("{}: {}", path.display(), not_a_public_key(&text))))
}
