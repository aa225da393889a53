//! `inspect`: says what a bundle is and checks every hash in it, the slow and thorough way.

use crate::bundle::{Bundle, read_head};
use crate::cli;
use crate::keys::{read_public_key, with_suffix};
use carousel_proto::apply::Apply;
use carousel_proto::geometry::{Esi, Sbn};
use carousel_proto::manifest::Manifest;
use carousel_proto::outcome::Failure;
use carousel_proto::pages::{
    LEAF_LEN, PageNumber, block_hasher, block_pages, block_value, leaf, object_digest, verify_block_page,
};
use carousel_proto::rollout::{Rollout, Step};
use carousel_proto::schedule::{Content, Coset, Item, RecordIndex};
use carousel_proto::table::{Kind, Shown, Table};
use carousel_proto::trust::{Trust, key_id};
use carousel_proto::units::{show_moment, show_seconds, show_size};
use carousel_proto::wire::{RECORD_HEADER_LEN, Slot, record_header};
use std::io::Write;
use std::path::Path;

/// `inspect`.
pub fn inspect(arguments: &cli::Inspect) -> Result<(), Failure> {
    let head = read_head(&arguments.bundle)?;
    let envelope = head.envelope()?;
    let trusted = match &arguments.key {
        None => None,
        Some(path) => {
            let mut trust = Trust::Keys(vec![read_public_key(path)?]);
            trust
                .check(&envelope, 0)
                .map_err(|e| Failure::untrusted(format!("{}: {e}", arguments.bundle.display())))?;
            Some(true)
        }
    };
    let bundle = Bundle::open(&arguments.bundle)?;
    let table = check(&bundle).map_err(|what| {
        Failure::untrusted(format!("{}: damaged: {what}; fetch or pack it again", arguments.bundle.display()))
    })?;
    let table =
        table.as_deref().map(|bytes| Table::parse(bytes, bundle.manifest.size)).transpose().map_err(|e| {
            Failure::untrusted(format!(
                "{}: no client would unpack this folder: {e}",
                arguments.bundle.display()
            ))
        })?;
    if let Some(prefix) = &arguments.export {
        for (suffix, bytes) in [(".manifest", envelope.manifest), (".manifest.minisig", envelope.signature)] {
            let path = with_suffix(prefix, suffix);
            std::fs::write(&path, bytes).map_err(|e| Failure::writing(&path, &e))?;
        }
    }
    let text = describe(&bundle, key_id(envelope.signature), trusted, table.as_ref(), arguments.json);
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| Failure::writing(Path::new("standard output"), &e))
}

/// Every record against its page, every page against the cap, the object against its digest. Returns the bytes of a
/// folder's file table.
pub fn check(bundle: &Bundle) -> Result<Option<Vec<u8>>, String> {
    let layout = &bundle.layout;
    let geometry = layout.geometry();
    let shape = bundle.manifest.tree_shape(geometry).map_err(|e| e.to_string())?;
    for coset in (0..layout.cosets()).map(Coset) {
        let mut symbols = layout.walk(coset);
        let mut leaves: &[u8] = &[];
        for record in (0..layout.coset_records(coset) as u32).map(RecordIndex) {
            let bytes = bundle.record(Item::Record(coset, record));
            let (header, body) = bytes.split_at(RECORD_HEADER_LEN);
            match layout.record(record) {
                Content::HashPage(page) => {
                    let number = PageNumber(coset.0 * layout.pages_per_coset() + page as u32);
                    if header != record_header(geometry.size(), 0, Slot(number.0))
                        || !shape.verify(number, body, &bundle.manifest.cap)
                    {
                        return Err(format!("hash page {}", number.0));
                    }
                    leaves = &body[..shape.leaves_len()];
                }
                Content::Symbol(index) => {
                    let Some((sbn, esi)) = symbols.next() else { return Err("too many symbols".into()) };
                    let slot = Slot(layout.slot(coset, index));
                    let at = (index % u64::from(layout.page_len())) as usize * LEAF_LEN;
                    if header != record_header(geometry.size(), geometry.offset(sbn, esi), slot)
                        || leaf(bytes)[..] != leaves[at..at + LEAF_LEN]
                    {
                        return Err(format!("symbol {} of block {}", esi.0, sbn.0));
                    }
                }
            }
        }
    }
    let mut values = Vec::with_capacity(geometry.blocks() as usize);
    let mut table = bundle.manifest.table.map(|len| (bundle.manifest.size - len, Vec::new()));
    for sbn in (0..geometry.blocks()).map(Sbn) {
        values.push(check_block(bundle, sbn, &mut table)?);
    }
    if object_digest(&values) != bundle.manifest.digest {
        return Err("the object's hash".into());
    }
    for number in 0..block_pages(geometry) {
        let body = &bundle.record(Item::BlockPage(number))[RECORD_HEADER_LEN..];
        if verify_block_page(geometry, PageNumber(number), body, &bundle.manifest.digest).is_none() {
            return Err(format!("block page {number}"));
        }
    }
    Ok(table.map(|(_, bytes)| bytes))
}

/// BLAKE3 value of a block, from its source symbols as they lie in the bundle. Of the `table`, which begins at a byte of
/// the object, this adds what lies in the block.
fn check_block(
    bundle: &Bundle,
    sbn: Sbn,
    table: &mut Option<(u64, Vec<u8>)>,
) -> Result<blake3::hazmat::ChainingValue, String> {
    let layout = &bundle.layout;
    let geometry = layout.geometry();
    let (k, t, len) =
        (u32::from(geometry.source_symbols(sbn)), geometry.symbol_len(), geometry.block_len(sbn));
    let mut hasher = block_hasher(geometry, sbn);
    // Cosets are runs of ESIs and rows are runs within them: the source symbols come in order.
    for coset in (0..layout.cosets()).map(Coset) {
        for row in 0..layout.rows() {
            let order = layout.row(coset, row);
            let start = layout.visit_start(sbn, coset, row, &order);
            for (index, esi) in (start..).zip(layout.visit(sbn, coset, row)).filter(|(_, esi)| *esi < k) {
                let record = bundle.record(Item::Record(coset, layout.slot_record(index)));
                let at = esi as usize * t;
                let (symbol, padding) = record[RECORD_HEADER_LEN..].split_at((len - at).min(t));
                if padding.iter().any(|byte| *byte != 0) {
                    return Err(format!("padding of block {}", sbn.0));
                }
                hasher.update(symbol);
                if let Some((begin, bytes)) = table {
                    let offset = geometry.block_offset(sbn) + at as u64;
                    let before = begin.saturating_sub(offset).min(symbol.len() as u64);
                    bytes.extend_from_slice(&symbol[before as usize..]);
                }
            }
        }
    }
    debug_assert!(geometry.symbol_at(geometry.offset(sbn, Esi(0))).is_some());
    Ok(block_value(geometry, &hasher))
}

/// What a bundle is, for people or as one JSON object.
fn describe(
    bundle: &Bundle,
    key_id: Option<String>,
    trusted: Option<bool>,
    table: Option<&Table<'_>>,
    json: bool,
) -> String {
    let m = &bundle.manifest;
    let digest = blake3::Hash::from_bytes(m.digest).to_hex();
    let layout = &bundle.layout;
    let geometry = layout.geometry();
    let instance: String = bundle.instance.0.iter().map(|b| format!("{b:02x}")).collect();
    if json {
        let object = serde_json::json!({
            "name": m.name, "media_type": m.media_type, "size": m.size, "digest": digest.as_str(),
            "seq": m.seq, "created": m.created, "expires": m.expires, "compatible": m.compatible,
            "rollout": rollout_in_json(m), "apply": apply_in_json(m),
            "instance": instance, "signed": bundle.signed, "key_id": key_id, "signature_checked": trusted,
            "symbol_size": m.symbol_len, "block_size": 1u64 << m.block_log2, "blocks": geometry.blocks(),
            "symbols_needed": geometry.symbols_needed(), "repair_full": m.repair_full,
            "repair_last": m.repair_last, "hash_pages": m.pages, "page_length": m.page_len,
            "cosets": layout.cosets(), "kind": if table.is_some() { "folder" } else { "file" },
            "table_size": m.table, "entries": table.map(entries_json),
        });
        return format!("{object}\n");
    }
    let signature = match (bundle.signed, trusted) {
        (false, _) => "none: clients need --digest".to_owned(),
        (true, Some(_)) => format!("good, key {}", key_id.unwrap_or_default()),
        (true, None) => format!("by key {}, not checked (give --key K.pub)", key_id.unwrap_or_default()),
    };
    let repair = match (geometry.full_blocks(), m.repair_last) {
        (0, last) => format!("{last} in the one block"),
        (_, 0) => format!("{} per block", m.repair_full),
        (_, last) => format!("{} per block, {last} in the short one", m.repair_full),
    };
    let block = show_size(1 << m.block_log2);
    let folder = table.map(|table| {
        let count = |what: fn(&Kind<'_>) -> bool| table.entries().iter().filter(|e| what(&e.kind)).count();
        format!(
            "{} files, {} folders, {} links; table of {}",
            count(|kind| matches!(kind, Kind::File { .. })),
            count(|kind| matches!(kind, Kind::Folder)),
            count(|kind| matches!(kind, Kind::Link { .. })),
            show_size(m.table.unwrap_or_default())
        )
    });
    let rows = [
        ("name", Some(m.name.clone())),
        ("folder", folder),
        ("size", Some(format!("{} bytes ({})", m.size, show_size(m.size)))),
        ("digest", Some(digest.to_string())),
        ("seq", Some(m.seq.to_string())),
        ("created", Some(show_moment(m.created))),
        ("expires", m.expires.map(show_moment)),
        // One row, whatever its maker wrote into it.
        ("compatible", m.compatible.as_ref().map(|kinds| Shown(kinds.join(" ").into_bytes()).to_string())),
        ("rollout", m.rollout.as_deref().map(show_rollout)),
        ("apply", m.apply.as_ref().map(|_| show_apply(m))),
        ("signature", Some(signature)),
        ("instance", Some(instance)),
        (
            "symbols",
            Some(format!(
                "{} of {} bytes needed, in {} blocks of {block}",
                geometry.symbols_needed(),
                m.symbol_len,
                geometry.blocks()
            )),
        ),
        ("repair", Some(repair)),
        ("hashes", Some(format!("all right: {} pages of {} slots", m.pages, m.page_len))),
    ];
    let rows = rows.into_iter().filter_map(|(name, value)| Some(format!("{name:<12}{}\n", value?)));
    rows.chain(table.into_iter().flat_map(entries_text)).collect()
}

/// A folder's contents, a line each: mode, size, time, path.
fn entries_text(table: &Table<'_>) -> impl Iterator<Item = String> {
    table.entries().iter().map(|entry| {
        let (letter, size, more) = match &entry.kind {
            Kind::Folder => ('d', String::new(), "/".to_owned()),
            Kind::File { size, .. } => ('-', size.to_string(), String::new()),
            Kind::Link { target } => ('l', String::new(), format!(" -> {}", Shown(target.to_vec()))),
        };
        let a = &entry.attributes;
        let moment = u64::try_from(a.seconds).map_or_else(|_| format!("@{}", a.seconds), show_moment);
        format!("{letter} {:04o} {size:>12}  {moment}  {}{more}\n", a.mode, Shown(entry.path.to_vec()))
    })
}

/// The same for programs. A path that is no text is also given in hexadecimal.
fn entries_json(table: &Table<'_>) -> Vec<serde_json::Value> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let entry = |entry: &carousel_proto::table::Entry<'_>| {
        let a = &entry.attributes;
        let mut value = serde_json::json!({
            "path": text(entry.path), "mode": a.mode, "seconds": a.seconds, "nanoseconds": a.nanos,
        });
        if str::from_utf8(entry.path).is_err() {
            value["path_hex"] = hex(entry.path).into();
        }
        match &entry.kind {
            Kind::Folder => value["kind"] = "folder".into(),
            Kind::File { size, extents } => {
                value["kind"] = "file".into();
                value["size"] = (*size).into();
                value["data"] = extents.iter().map(|extent| extent.len).sum::<u64>().into();
            }
            Kind::Link { target } => {
                value["kind"] = "link".into();
                value["target"] = text(target).into();
                if str::from_utf8(target).is_err() {
                    value["target_hex"] = hex(target).into();
                }
            }
        }
        value
    };
    table.entries().iter().map(entry).collect()
}

fn show_rollout(bytes: &[u8]) -> String {
    match Rollout::parse(bytes) {
        Ok(rollout) => {
            let share = |share: u16| f64::from(share) / 100.0;
            let step = |step: &Step| format!("{} % from {}", share(step.share), show_moment(step.time));
            rollout.steps.iter().map(step).collect::<Vec<_>>().join(", ")
        }
        Err(why) => format!("{why}: devices that go by rollouts leave it alone"),
    }
}

fn show_apply(manifest: &Manifest) -> String {
    match Apply::of(manifest) {
        Ok(Apply { not_before, jitter }) => {
            let moment =
                not_before.map_or("at any time".to_owned(), |t| format!("from {} on", show_moment(t)));
            let over = |s: u32| format!(", spread over {}", show_seconds(f64::from(s)));
            moment + &jitter.map_or(String::new(), over)
        }
        Err(why) => format!("{why}: devices that go by it leave it alone"),
    }
}

/// `null` where there is none, and where it cannot be read.
fn rollout_in_json(manifest: &Manifest) -> serde_json::Value {
    let rollout = manifest.rollout.as_deref().and_then(|bytes| Rollout::parse(bytes).ok());
    rollout.map_or(serde_json::Value::Null, |rollout| {
        let salt: String = rollout.salt.iter().map(|byte| format!("{byte:02x}")).collect();
        let step =
            |step: &Step| serde_json::json!({"time": step.time, "percent": f64::from(step.share) / 100.0});
        serde_json::json!({"salt": salt, "steps": rollout.steps.iter().map(step).collect::<Vec<_>>()})
    })
}

/// See [`rollout_in_json`].
fn apply_in_json(manifest: &Manifest) -> serde_json::Value {
    let apply = manifest.apply.as_deref().and_then(|bytes| Apply::parse(bytes).ok());
    apply.map_or(
        serde_json::Value::Null,
        |apply| serde_json::json!({"not_before": apply.not_before, "jitter": apply.jitter}),
    )
}
