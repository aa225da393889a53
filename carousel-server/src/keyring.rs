//! `keys`: makes, signs and reads keys objects. Each root key may lie on another desk: an object goes from one to the
//! next, or its bytes do, and `minisign` itself signs them.

use crate::cli;
use crate::keys::{read_secret_key, sign_text, with_suffix};
use crate::sandbox;
use carousel_proto::keys::{Floor, KEYS_FORMAT, Keys, KeysError, SignedKeys};
use carousel_proto::outcome::Failure;
use carousel_proto::signature::{Key, KeyId, Signature};
use carousel_proto::trust::not_a_public_key;
use carousel_proto::units::show_moment;
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// `keys`.
pub fn keys(command: &cli::Keys) -> Result<(), Failure> {
    match command {
        cli::Keys::Create(arguments) => create(arguments),
        cli::Keys::Sign(arguments) => sign(arguments),
        cli::Keys::Seal(arguments) => seal(arguments),
        cli::Keys::Inspect(arguments) => inspect(arguments),
    }
}

/// Reads a keys object, whoever signed it.
pub fn read_keys(path: &Path) -> Result<SignedKeys, Failure> {
    let bytes = sandbox::read(path).map_err(|e| Failure::reading(path, &e))?;
    SignedKeys::parse(&bytes).map_err(|e| match e {
        KeysError::Impossible { .. } => Failure::usage(format!("{}: {e}", path.display())),
        _ => Failure::usage(format!(
            "{}: not a keys object; make one with `carousel-server keys create`",
            path.display()
        )),
    })
}

fn create(arguments: &cli::KeysCreate) -> Result<(), Failure> {
    let out = &arguments.out;
    if out.exists() && !arguments.force {
        return Err(Failure::usage(format!("{} exists; choose another --out, or --force", out.display())));
    }
    let read =
        |paths: &[std::path::PathBuf]| paths.iter().map(|path| read_key(path)).collect::<Result<_, _>>();
    let floor = |(name, seq): &(String, u64)| Floor { name: name.clone(), seq: *seq };
    let keys = Keys {
        format: KEYS_FORMAT.to_owned(),
        version: arguments.version,
        created: arguments.created.unwrap_or_else(now),
        expires: arguments.expires,
        threshold: arguments.threshold,
        roots: read(&arguments.root)?,
        release: read(&arguments.release)?,
        heartbeat: read(&arguments.heartbeat)?,
        revoked: arguments.revoke.iter().map(|text| key_id(text)).collect::<Result<_, _>>()?,
        floors: arguments.least.iter().map(floor).collect(),
        needs_heartbeat: arguments.require_heartbeat,
    };
    let signed = SignedKeys::new(keys).map_err(|e| Failure::usage(e.to_string()))?;
    write(out, &signed)?;
    let unsigned = with_suffix(out, ".cbor");
    std::fs::write(&unsigned, signed.bytes()).map_err(|e| Failure::writing(&unsigned, &e))?;
    println!("{}\n{}", out.display(), unsigned.display());
    Ok(())
}

fn sign(arguments: &cli::KeysSign) -> Result<(), Failure> {
    let mut signed = read_keys(&arguments.object)?;
    let key = read_secret_key(&arguments.key)?;
    if !signed.keys.roots.iter().any(|root| root.id() == key.id()) {
        tracing::warn!("{} is no root key of this object: it counts only for what came before", key.id());
    }
    let comment = format!("carousel keys {}", signed.keys.version);
    let text = sign_text(signed.bytes(), &comment, &key)?;
    add(&mut signed, text.as_bytes(), &arguments.key)?;
    write(&arguments.object, &signed)?;
    println!("{}", arguments.object.display());
    Ok(())
}

fn seal(arguments: &cli::KeysSeal) -> Result<(), Failure> {
    let mut signed = read_keys(&arguments.object)?;
    for path in &arguments.signature {
        let text = std::fs::read(path).map_err(|e| Failure::reading(path, &e))?;
        add(&mut signed, &text, path)?;
        // Not every signature can be checked here: it may be by a key of the object before.
        let signature = signed.signatures().last();
        let root = signature.and_then(|s| signed.keys.roots.iter().find(|root| root.id() == s.id));
        if root.zip(signature).is_some_and(|(root, s)| !root.has_signed(signed.bytes(), s)) {
            return Err(Failure::untrusted(format!(
                "{}: signs something else than this object; sign {} anew",
                path.display(),
                with_suffix(&arguments.object, ".cbor").display()
            )));
        }
    }
    write(&arguments.object, &signed)?;
    println!("{}", arguments.object.display());
    Ok(())
}

fn add(signed: &mut SignedKeys, text: &[u8], path: &Path) -> Result<(), Failure> {
    let signature = Signature::from_minisign(text).ok_or_else(|| {
        Failure::untrusted(format!(
            "{}: not a minisign signature; sign the .cbor file with minisign -S",
            path.display()
        ))
    })?;
    signed.add(signature).map_err(|e| {
        Failure::usage(format!(
            "{}: {e}; sign with a shorter comment (minisign -t), or with fewer keys",
            path.display()
        ))
    })
}

fn inspect(arguments: &cli::KeysInspect) -> Result<(), Failure> {
    let signed = read_keys(&arguments.object)?;
    let untrusted = |e: KeysError| Failure::untrusted(format!("{}: {e}", arguments.object.display()));
    let mut out = std::io::stdout();
    let said = out.write_all(describe(&signed, arguments.json).as_bytes());
    said.map_err(|e| Failure::writing(Path::new("standard output"), &e))?;
    match &arguments.after {
        Some(path) => signed.follows(&read_keys(path)?.keys).map_err(untrusted),
        None => signed.is_signed().map_err(untrusted),
    }
}

fn describe(signed: &SignedKeys, json: bool) -> String {
    let keys = &signed.keys;
    let ids = |keys: &[Key]| keys.iter().map(|key| key.id().to_string()).collect::<Vec<_>>();
    let revoked: Vec<String> = keys.revoked.iter().map(KeyId::to_string).collect();
    let by: Vec<String> = signed.signatures().iter().map(|signature| signature.id.to_string()).collect();
    let good = signed.signed_by(&keys.roots);
    if json {
        let least: serde_json::Map<String, serde_json::Value> =
            keys.floors.iter().map(|floor| (floor.name.clone(), floor.seq.into())).collect();
        let object = json!({
            "version": keys.version, "created": keys.created, "expires": keys.expires,
            "threshold": keys.threshold, "roots": ids(&keys.roots), "release": ids(&keys.release),
            "heartbeat": ids(&keys.heartbeat), "revoked": revoked, "least": least,
            "require_heartbeat": keys.needs_heartbeat, "signed_by": by, "signatures_good": good,
        });
        return format!("{object}\n");
    }
    let list = |ids: &[String]| (!ids.is_empty()).then(|| ids.join(" "));
    let least: Vec<String> =
        keys.floors.iter().map(|floor| format!("{}={}", floor.name, floor.seq)).collect();
    let threshold = format!("{} of {} root keys", keys.threshold, keys.roots.len());
    let needed = if keys.needs_heartbeat { "needed to begin" } else { "not needed to begin" };
    let rows = [
        ("version", Some(keys.version.to_string())),
        ("created", Some(show_moment(keys.created))),
        ("expires", keys.expires.map(show_moment)),
        ("threshold", Some(threshold)),
        ("roots", list(&ids(&keys.roots))),
        ("release", list(&ids(&keys.release))),
        ("heartbeat", list(&ids(&keys.heartbeat)).map(|ids| format!("{ids} ({needed})"))),
        ("revoked", list(&revoked)),
        ("least", list(&least)),
        ("signed by", list(&by)),
        ("good", Some(format!("{good} signatures by its own root keys"))),
    ];
    rows.into_iter().filter_map(|(name, value)| Some(format!("{name:<12}{}\n", value?))).collect()
}

/// Written beside and renamed: a device must not be given half of one.
fn write(path: &Path, signed: &SignedKeys) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::writing(path, &e);
    let bytes = signed.emit().map_err(|e| Failure::usage(e.to_string()))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(failed)?;
    file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(path).map(drop).map_err(|e| failed(e.error))
}

fn read_key(path: &Path) -> Result<Key, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::reading(path, &e))?;
    Key::parse(&text)
        .ok_or_else(|| Failure::usage(format!("{}: {}", path.display(), not_a_public_key(&text))))
}

fn key_id(text: &str) -> Result<KeyId, Failure> {
    match KeyId::parse(text) {
        Some(id) => Ok(id),
        None => read_key(Path::new(text)).map(|key| key.id()),
    }
}

fn now() -> u64 {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|t| t.parse().ok());
    epoch.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()))
}
