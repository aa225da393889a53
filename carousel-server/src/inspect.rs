//! `inspect`: says what a bundle is and checks every hash in it, the slow and thorough way.

use crate::bundle::{Bundle, read_head};
use crate::cli;
use crate::keys::{read_public_key, with_suffix};
use carousel_proto::geometry::{Esi, Sbn};
use carousel_proto::outcome::Failure;
use carousel_proto::pages::{
    LEAF_LEN, PageNumber, block_hasher, block_pages, block_value, leaf, object_digest, verify_block_page,
};
use carousel_proto::schedule::{Content, Coset, Item, RecordIndex};
use carousel_proto::trust::{Trust, key_id};
use carousel_proto::units::{show_moment, show_size};
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
    check(&bundle).map_err(|what| {
        Failure::untrusted(format!("{}: damaged: {what}; fetch or pack it again", arguments.bundle.display()))
    })?;
    if let Some(prefix) = &arguments.export {
        for (suffix, bytes) in [(".manifest", envelope.manifest), (".manifest.minisig", envelope.signature)] {
            let path = with_suffix(prefix, suffix);
            std::fs::write(&path, bytes).map_err(|e| Failure::writing(&path, &e))?;
        }
    }
    let text = describe(&bundle, key_id(envelope.signature), trusted, arguments.json);
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| Failure::writing(Path::new("standard output"), &e))
}

/// Every record against its page, every page against the cap, the object against its digest.
pub fn check(bundle: &Bundle) -> Result<(), String> {
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
    for sbn in (0..geometry.blocks()).map(Sbn) {
        values.push(check_block(bundle, sbn)?);
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
    Ok(())
}

/// BLAKE3 value of a block, from its source symbols as they lie in the bundle.
fn check_block(bundle: &Bundle, sbn: Sbn) -> Result<blake3::hazmat::ChainingValue, String> {
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
            }
        }
    }
    debug_assert!(geometry.symbol_at(geometry.offset(sbn, Esi(0))).is_some());
    Ok(block_value(geometry, &hasher))
}

/// What a bundle is, for people or as one JSON object.
fn describe(bundle: &Bundle, key_id: Option<String>, trusted: Option<bool>, json: bool) -> String {
    let m = &bundle.manifest;
    let digest = blake3::Hash::from_bytes(m.digest).to_hex();
    let layout = &bundle.layout;
    let geometry = layout.geometry();
    let instance: String = bundle.instance.0.iter().map(|b| format!("{b:02x}")).collect();
    if json {
        let object = serde_json::json!({
            "name": m.name, "media_type": m.media_type, "size": m.size, "digest": digest.as_str(),
            "seq": m.seq, "created": m.created, "expires": m.expires, "compatible": m.compatible,
            "instance": instance, "signed": bundle.signed, "key_id": key_id, "signature_checked": trusted,
            "symbol_size": m.symbol_len, "block_size": 1u64 << m.block_log2, "blocks": geometry.blocks(),
            "symbols_needed": geometry.symbols_needed(), "repair_full": m.repair_full,
            "repair_last": m.repair_last, "hash_pages": m.pages, "page_length": m.page_len,
            "cosets": layout.cosets(),
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
    let rows = [
        ("name", Some(m.name.clone())),
        ("size", Some(format!("{} bytes ({})", m.size, show_size(m.size)))),
        ("digest", Some(digest.to_string())),
        ("seq", Some(m.seq.to_string())),
        ("created", Some(show_moment(m.created))),
        ("expires", m.expires.map(show_moment)),
        ("compatible", m.compatible.as_ref().map(|kinds| kinds.join(" "))),
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
    rows.into_iter().filter_map(|(name, value)| Some(format!("{name:<12}{}\n", value?))).collect()
}
