//! The vectors of PROTOCOL.md are true: read out of its text, computed again, compared word by word.
//!
//! A vector stands in a block fenced by ```` ```vector NAME ````. Each of its lines is `input = output`; an indented
//! line goes on with the one before it, a line that begins with `#` is a remark. What the words of an input mean
//! stands in the text above the block and at the rule below. The files in `carousel-proto/vectors` are what the built
//! programs write.
//!
//! After a change of the protocol: `CAROUSEL_VECTORS=write cargo test --test vectors` puts the new outputs into the
//! text and makes the files anew (it needs minisign). Read the difference before you believe it.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use carousel_proto::apply::{Apply, ApplyError};
use carousel_proto::bundle::{BundleHeader, Places, layout_of};
use carousel_proto::fec::BlockEncoder;
use carousel_proto::geometry::{Esi, Geometry, GeometryError, Sbn};
use carousel_proto::heartbeat::Heartbeat;
use carousel_proto::keys::{Keys, KeysError, SignedKeys};
use carousel_proto::manifest::{Envelope, Manifest, ManifestError, instance_of, is_plain_name};
use carousel_proto::pacer::{Pacer, Step};
use carousel_proto::pages::{
    LEAF_LEN, NODE_LEN, PageNumber, Subtree, TreeShape, block_hasher, block_pages, block_value,
    emit_block_pages, leaf, object_digest, verify_block_page,
};
use carousel_proto::rollout::{Rollout, RolloutError, Step as RolloutStep, salt_from, salt_of};
use carousel_proto::schedule::{
    Content, Coset, Item, Layout, Order, Position, Statement, Tier, phase, statement,
};
use carousel_proto::signature::Signature;
use carousel_proto::table::{Attributes, Entry, Extent, Kind as Made, Table, TableError};
use carousel_proto::wire::{HEADER_LEN, Kind, PREFIX_LEN, Packet, Sequence, Slot, WireError, emit_prefix};
use carousel_tests::lab::Folder;
use carousel_tests::scene::{AsOsString, args};
use carousel_tests::{bins, lab, sim};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Computes the outputs of a vector from its inputs.
type Rule = fn(&[String]) -> Vec<String>;

const RULES: [(&str, Rule); 37] = [
    ("header-parse", |lines| each(lines, header_parse)),
    ("header-emit", |lines| each(lines, header_emit)),
    ("cut", |lines| each(lines, cut)),
    ("offset", |lines| each(lines, offset)),
    ("symbol-at", |lines| each(lines, symbol_at)),
    ("manifest", |lines| each(lines, manifest_part)),
    ("manifest-edits", |lines| each(lines, manifest_edit)),
    ("names", |lines| each(lines, name)),
    ("envelope", |lines| each(lines, envelope)),
    ("signature", |lines| each(lines, signature)),
    ("tree-shape", |lines| each(lines, tree_shape)),
    ("tree", |lines| each(lines, tree)),
    ("leaf", |lines| each(lines, tiny_leaf)),
    ("block-value", |lines| each(lines, block)),
    ("block-page", |lines| each(lines, block_page)),
    ("mix", |lines| each(lines, |line| format!("{:#018x}", mix(number(line))))),
    ("layout", |lines| each(lines, layout)),
    ("rows", |lines| each(lines, row)),
    ("control", |lines| each(lines, control)),
    ("order", |lines| each(lines, order)),
    ("order-hash", |lines| each(lines, order_hash)),
    ("channel", |lines| each(lines, channel)),
    ("phase", |lines| each(lines, |line| phase(word(line, 0), word(line, 1)).to_string())),
    ("position", |lines| each(lines, position)),
    ("pacer", pacer),
    ("repair", |lines| each(lines, repair)),
    ("field", |lines| each(lines, field)),
    ("code", |lines| each(lines, code)),
    ("tiny", |lines| each(lines, tiny_bytes)),
    ("keys", |lines| each(lines, keys_part)),
    ("keys-edits", |lines| each(lines, keys_edit)),
    ("heartbeat", |lines| each(lines, heartbeat_part)),
    ("statements", |lines| each(lines, statements)),
    ("table", |lines| each(lines, table_part)),
    ("table-edits", |lines| each(lines, table_edit)),
    ("rollout", |lines| each(lines, rollout)),
    ("apply", |lines| each(lines, apply)),
];

fn each(lines: &[String], rule: impl Fn(&str) -> String) -> Vec<String> {
    lines.iter().map(|line| rule(line)).collect()
}

// --- reading and writing the text -------------------------------------------------------------------------------

fn proto(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../carousel-proto").join(path)
}

fn file(name: &str) -> Vec<u8> {
    let path = proto("vectors").join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A line of a vector without its remarks, in one piece.
struct Line {
    input: String,
    output: String,
}

/// The vectors of a text; and the same text, where each line of a vector has the output that `fix` gives it.
fn vectors(text: &str, fix: impl Fn(&str, &[Line]) -> Vec<String>) -> (BTreeMap<String, Vec<Line>>, String) {
    let (mut found, mut out) = (BTreeMap::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        out += &format!("{line}\n");
        let Some(name) = line.strip_prefix("```vector ") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let mut vector: Vec<Line> = Vec::new();
        for line in block.iter().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            match (line.split_once(" ="), vector.last_mut()) {
                (_, Some(last)) if line.starts_with(' ') => last.output += line,
                (Some((input, output)), _) => {
                    vector.push(Line { input: words(input), output: output.into() });
                }
                _ => panic!("{name}: {line:?} is no line of a vector"),
            }
        }
        vector.iter_mut().for_each(|line| line.output = words(&line.output));
        let outputs = fix(name, &vector);
        let mut fixed = vector.iter().zip(&outputs);
        for line in block.iter().filter(|line| !line.starts_with(' ')) {
            match line.split_once(" =").filter(|_| !line.starts_with('#')) {
                Some((input, _)) => {
                    let (_, output) = fixed.next().unwrap();
                    let mut row = format!("{input} =");
                    for word in output.split(' ') {
                        if row.chars().count() + word.chars().count() + 1 > 110 {
                            out += &format!("{row}\n");
                            row = "   ".into();
                        }
                        row += &format!(" {word}");
                    }
                    out += &format!("{row}\n");
                }
                None => out += &format!("{line}\n"),
            }
        }
        out += "```\n";
        assert!(found.insert(name.to_owned(), vector).is_none(), "vector {name} stands there twice");
    }
    (found, out)
}

#[test]
fn every_vector_of_the_text_is_true() {
    renew();
    let text = fs::read_to_string(proto("PROTOCOL.md")).unwrap();
    let compute = |name: &str, lines: &[Line]| {
        let (_, rule) = RULES.iter().find(|(known, _)| *known == name).unwrap_or_else(|| {
            panic!("no rule for the vector {name}");
        });
        let inputs: Vec<String> = lines.iter().map(|line| line.input.clone()).collect();
        rule(&inputs)
    };
    let (found, corrected) = vectors(&text, compute);
    let missing: Vec<&str> = RULES
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| found.get(*name).is_none_or(Vec::is_empty))
        .collect();
    assert!(missing.is_empty(), "PROTOCOL.md has no vector {missing:?}");
    if writing() {
        return fs::write(proto("PROTOCOL.md"), corrected).unwrap();
    }
    let mut wrong = String::new();
    for (name, lines) in &found {
        for (line, computed) in lines.iter().zip(compute(name, lines)) {
            if line.output != computed {
                let _ = write!(
                    wrong,
                    "\n{name}: {}\n  the text says {}\n  it is         {computed}",
                    line.input, line.output
                );
            }
        }
    }
    assert!(wrong.is_empty(), "PROTOCOL.md is wrong (or the code is):{wrong}");
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn number(text: &str) -> u64 {
    let found = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    found.unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// The so-many-th word of a line, as a number.
fn word<T: TryFrom<u64>>(line: &str, at: usize) -> T {
    let text = line.split(' ').nth(at).unwrap_or_else(|| panic!("{line:?} has no word {at}"));
    T::try_from(number(text)).unwrap_or_else(|_| panic!("{line:?}: word {at} is too large"))
}

/// What stands behind the first `count` words.
fn behind(line: &str, count: usize) -> &str {
    line.splitn(count + 1, ' ').nth(count).unwrap_or_default()
}

/// In pieces of 32 bytes, so that lines can be broken.
fn hex(bytes: &[u8]) -> String {
    let pieces: Vec<String> = bytes
        .chunks(32)
        .map(|piece| piece.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        .collect();
    if pieces.is_empty() { "nothing".into() } else { pieces.join(" ") }
}

/// Hexadecimal; a word `00*7` is seven bytes of 0.
fn unhex(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        let (digits, times) = word.split_once('*').map_or((word, 1), |(d, n)| (d, number(n) as usize));
        let piece: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect();
        bytes.extend(piece.repeat(times));
    }
    bytes
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<usize> = text.trim_end_matches('=').chars().map(|c| DIGITS.find(c).unwrap()).collect();
    let bits =
        |four: &[usize]| four.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - four.len()));
    let three = |four: &[usize]| bits(four).to_be_bytes()[5..5 + four.len() * 6 / 8].to_vec();
    digits.chunks(4).flat_map(three).collect()
}

/// Byte i of every example object: (i mod 251)³ mod 251.
fn example_object(size: usize) -> Vec<u8> {
    (0..size as u64).map(|i| ((i % 251).pow(3) % 251) as u8).collect()
}

// --- packets and geometry (section 3) ---------------------------------------------------------------------------

fn header_parse(line: &str) -> String {
    let bytes = unhex(line);
    let packet = match Packet::parse(&bytes) {
        Ok(packet) => packet,
        Err(WireError::Short(len)) => return format!("short {len}"),
        Err(WireError::Long(len)) => return format!("long {len}"),
        Err(WireError::Version(version)) => return format!("version {version}"),
        Err(WireError::Kind(kind)) => return format!("kind {kind}"),
        Err(WireError::Flags(flags)) => return format!("flags {flags:#06x}"),
    };
    format!(
        "{:?} sequence {} checksum {} instance {} size {} offset {} slot {} body {}",
        packet.kind(),
        packet.sequence().0,
        hex(&packet.checksum().0),
        hex(&packet.instance().0),
        packet.size(),
        packet.offset(),
        packet.slot().0,
        packet.body().len()
    )
}

/// `KIND SEQUENCE RECORD`: the header of the packet that carries a record of the tiny bundle.
fn header_emit(line: &str) -> String {
    let tiny = Tiny::read();
    let kind = match line.split(' ').next() {
        Some("manifest") => Kind::Manifest,
        Some("page") => Kind::HashPage,
        Some("symbol") => Kind::Symbol,
        _ => panic!("{line:?}: no such kind"),
    };
    let mut prefix = [0; PREFIX_LEN];
    let instance = instance_of(tiny.envelope().manifest);
    emit_prefix(&mut prefix, kind, Sequence(word(line, 1)), tiny.manifest.checksum(), instance);
    let packet = [&prefix[..], tiny.record(word(line, 2))].concat();
    assert_eq!(Packet::parse(&packet).unwrap().kind(), kind);
    hex(&packet[..HEADER_LEN])
}

/// `S T b R_full R_last`
fn geometry(line: &str) -> Result<Geometry, GeometryError> {
    Geometry::new(word(line, 0), word(line, 1), word(line, 2), word(line, 3), word(line, 4))
}

fn cut(line: &str) -> String {
    let Ok(g) = geometry(line) else { return "refused".into() };
    let of = |sbn: u32| {
        let sbn = Sbn(sbn);
        let (k, r) = (g.source_symbols(sbn), g.repair_symbols(sbn));
        format!("{} bytes K {k} R {r} N {}", g.block_len(sbn), g.symbols(sbn))
    };
    let mut out = format!("B {} full {} needed {}", g.blocks(), g.full_blocks(), g.symbols_needed());
    if g.blocks() > 0 {
        out += &format!("; first {}; last {}", of(0), of(g.blocks() - 1));
    }
    out
}

fn offset(line: &str) -> String {
    let g = geometry(line).unwrap();
    let (sbn, esi) = (Sbn(word(line, 5)), Esi(word(line, 6)));
    let found = g.offset(sbn, esi);
    assert_eq!(g.symbol_at(found), Some((sbn, esi)));
    format!("{found:#014x}")
}

fn symbol_at(line: &str) -> String {
    let found = geometry(line).unwrap().symbol_at(word(line, 5));
    found.map_or("none".into(), |(sbn, esi)| format!("{} {}", sbn.0, esi.0))
}

// --- manifest (section 4) -----------------------------------------------------------------------------------------

/// The bundle that `pack` made of the tiny object.
struct Tiny {
    file: Vec<u8>,
    header: BundleHeader,
    manifest: Manifest,
    places: Places,
    layout: Layout,
}

impl Tiny {
    fn read() -> Self {
        let file = file("tiny.carousel");
        let header = BundleHeader::parse(&file).unwrap();
        let at = 16 + usize::from(header.symbol_len);
        let envelope = Envelope::parse(&file[at + 16..2 * at]).unwrap();
        let manifest = Manifest::parse(envelope.manifest).unwrap();
        let layout = layout_of(&header, &manifest, file.len() as u64).unwrap();
        Self { header, manifest, places: Places::new(&layout), layout, file }
    }

    fn record(&self, number: usize) -> &[u8] {
        let len = self.places.record_len();
        &self.file[number * len..][..len]
    }

    fn envelope(&self) -> Envelope<'_> {
        Envelope::parse(&self.record(1)[16..]).unwrap()
    }

    /// Its manifest with every key filled.
    fn full_manifest(&self) -> Manifest {
        let (rollout, apply) = (Some(b"rollout".to_vec()), Some(b"apply".to_vec()));
        Manifest { rollout, apply, ..self.manifest.clone() }
    }
}

/// Bytes of the CBOR item that stands first: the few forms a manifest needs.
fn cbor_len(bytes: &[u8]) -> usize {
    let (major, small) = (bytes[0] >> 5, bytes[0] & 31);
    let (head, value) = match small {
        0..=23 => (1, u64::from(small)),
        24..=27 => {
            let len = 1usize << (small - 24);
            (1 + len, bytes[1..=len].iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        }
        _ => panic!("no definite length"),
    };
    match major {
        0 | 1 => head,
        2 | 3 => head + value as usize,
        4 => (0..value).fold(head, |at, _| at + cbor_len(&bytes[at..])),
        5 => (0..2 * value).fold(head, |at, _| at + cbor_len(&bytes[at..])),
        7 => head,
        _ => panic!("type {major} is none of ours"),
    }
}

/// The key and its value, of a map.
fn pair_of(bytes: &[u8], key: u8) -> &[u8] {
    let mut at = 1;
    while bytes[at] != key {
        at += 1;
        at += cbor_len(&bytes[at..]);
    }
    &bytes[at..][..1 + cbor_len(&bytes[at + 1..])]
}

/// `map`, `key 5`, `instance`, `checksum`, `bytes`: of the manifest with every key filled.
fn manifest_part(line: &str) -> String {
    let manifest = Tiny::read().full_manifest();
    let bytes = manifest.emit();
    assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
    match line.split(' ').next() {
        Some("map") => hex(&bytes[..1]),
        Some("key") => hex(pair_of(&bytes, word(line, 1))),
        Some("bytes") => format!("{} BLAKE3 {}", bytes.len(), blake3::hash(&bytes)),
        Some("instance") => hex(&instance_of(&bytes).0),
        Some("checksum") => hex(&manifest.checksum().0),
        _ => panic!("{line:?}: no such part"),
    }
}

/// `change OLD to NEW` or `append BYTES`, in hexadecimal: what becomes of the full manifest.
fn manifest_edit(line: &str) -> String {
    let changed = changed(line, Tiny::read().full_manifest().emit());
    match Manifest::parse(&changed) {
        Ok(_) => format!("accepted, instance {}", hex(&instance_of(&changed).0)),
        Err(ManifestError::Cbor(_)) => "refused: CBOR".into(),
        Err(ManifestError::Version(_)) => "refused: version".into(),
        Err(ManifestError::Name) => "refused: name".into(),
        Err(ManifestError::Geometry(_)) => "refused: geometry".into(),
        Err(ManifestError::Tree { .. }) => "refused: tree".into(),
        Err(other) => panic!("{line:?}: {other}"),
    }
}

/// Bytes after what a line says was done to them.
fn changed(line: &str, bytes: Vec<u8>) -> Vec<u8> {
    if let Some(more) = line.strip_prefix("append ") {
        [bytes, unhex(more)].concat()
    } else {
        let (old, new) = line.strip_prefix("change ").unwrap().split_once(" to ").unwrap();
        let old = unhex(old);
        let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&old)).collect();
        assert_eq!(places.len(), 1, "{line:?} does not stand there once");
        [&bytes[..places[0]], &unhex(new), &bytes[places[0] + old.len()..]].concat()
    }
}

fn name(line: &str) -> String {
    let name = if line == "nothing" { String::new() } else { String::from_utf8(unhex(line)).unwrap() };
    if is_plain_name(&name) { "plain".into() } else { "refused".into() }
}

/// The body of a manifest packet.
fn envelope(line: &str) -> String {
    match Envelope::parse(&unhex(line)) {
        Ok(e) => {
            format!("manifest {} algorithm {} signature {}", hex(e.manifest), e.algorithm, hex(e.signature))
        }
        Err(_) => "refused".into(),
    }
}

// --- file tables (section 4.11) -------------------------------------------------------------------------------------

/// The folder of section 13.11.
fn example_table() -> Table<'static> {
    let at = |mode| Attributes { mode, seconds: 1_700_000_000, nanos: 5 };
    let file = |path, mode, size, extents: &[(u64, u64)]| Entry {
        path,
        attributes: at(mode),
        kind: Made::File {
            size,
            extents: extents.iter().map(|(offset, len)| Extent { offset: *offset, len: *len }).collect(),
        },
    };
    let entries = vec![
        Entry { path: b"bin", attributes: at(0o755), kind: Made::Folder },
        file(b"bin/tool", 0o755, 9, &[(0, 9)]),
        Entry { path: b"latest", attributes: at(0o777), kind: Made::Link { target: b"bin/tool" } },
        file(b"log", 0o644, 200_000, &[(65_536, 65_536)]),
        file(b"zoo", 0o644, 20, &[(0, 20)]),
    ];
    Table::new(Attributes { mode: 0o755, seconds: -1, nanos: 999_999_999 }, entries).unwrap()
}

/// `head`, `entry 1`, `bytes`, `run 1`: of that folder's table.
fn table_part(line: &str) -> String {
    let table = example_table();
    let bytes = table.emit();
    // The array of three, its text and the folder's own attributes; then the array of entries.
    let mut at = 1;
    at += cbor_len(&bytes[at..]);
    at += cbor_len(&bytes[at..]) + 1;
    let mut entries = vec![&bytes[..at]];
    while at < bytes.len() {
        let len = cbor_len(&bytes[at..]);
        entries.push(&bytes[at..at + len]);
        at += len;
    }
    match line.split(' ').next() {
        Some("head") => hex(entries[0]),
        Some("entry") => hex(entries[word::<usize>(line, 1)]),
        Some("bytes") => format!("{} BLAKE3 {}", bytes.len(), blake3::hash(&bytes)),
        Some("object") => (table.data_len() + bytes.len() as u64).to_string(),
        Some("run") => {
            let run = table.runs()[word::<usize>(line, 1) - 1];
            format!("{} to {}: entry {} from {}", run.start, run.end(), run.entry + 1, run.offset)
        }
        _ => panic!("{line:?}: no such part"),
    }
}

/// As for manifests. The object is as long as the files were, and the table is now.
fn table_edit(line: &str) -> String {
    let table = example_table();
    let changed = changed(line, table.emit());
    let refused = match Table::parse(&changed, table.data_len() + changed.len() as u64) {
        Ok(_) => return "accepted".into(),
        Err(TableError::Cbor(_)) => "CBOR",
        Err(TableError::TooLong) => "long",
        Err(TableError::Path(..)) => "path",
        Err(TableError::Order(_)) => "order",
        Err(TableError::Parent(_)) => "parent",
        Err(TableError::Attributes(_)) => "attributes",
        Err(TableError::Target(_)) => "target",
        Err(TableError::Extents(_)) => "extents",
        Err(TableError::Size { .. }) => "size",
    };
    format!("refused: {refused}")
}

// --- keys objects and heartbeats (sections 4.7 to 4.9) -----------------------------------------------------------

/// `map`, `key 5`, `bytes`, `envelope`, `signature id`, `signature A`, `signature B`, `signature comment`: of test.keys.
fn keys_part(line: &str) -> String {
    let whole = file("test.keys");
    let signed = SignedKeys::parse(&whole).unwrap();
    assert_eq!((signed.emit().unwrap(), signed.keys.emit()), (whole.clone(), signed.bytes().to_vec()));
    let signature = &Signature::emit_all(signed.signatures());
    match line {
        "map" => hex(&signed.bytes()[..1]),
        "bytes" => format!("{} BLAKE3 {}", signed.bytes().len(), blake3::hash(signed.bytes())),
        "envelope" => hex(&whole[..6]),
        _ if line.starts_with("key ") => hex(pair_of(signed.bytes(), word(line, 1))),
        _ => signature_part(signature, line),
    }
}

fn signature_part(signature: &[u8], line: &str) -> String {
    match line {
        "signature id" => hex(&signature[..8]),
        "signature A" => hex(&signature[8..72]),
        "signature B" => hex(&signature[72..136]),
        "signature comment" => {
            let comment = &signature[137..];
            assert_eq!(usize::from(signature[136]), comment.len());
            format!("{} bytes: {}", comment.len(), String::from_utf8_lossy(comment))
        }
        _ => panic!("{line:?}: no such part"),
    }
}

/// The bytes of the keys object, changed.
fn keys_edit(line: &str) -> String {
    let signed = SignedKeys::parse(&file("test.keys")).unwrap();
    match Keys::parse(&changed(line, signed.bytes().to_vec())) {
        Ok(_) => "accepted".into(),
        Err(KeysError::Cbor(_)) => "refused: CBOR".into(),
        Err(KeysError::Impossible { .. }) => "refused: impossible".into(),
        Err(other) => panic!("{line:?}: {other}"),
    }
}

/// The heartbeat of the tiny bundle, which counts for a day from its making on.
fn tiny_heartbeat() -> Heartbeat {
    Heartbeat::new(Tiny::read().envelope().manifest, 1_800_000_000, 86_400)
}

fn heartbeat_part(line: &str) -> String {
    let (whole, bytes) = (file("tiny.heartbeat"), tiny_heartbeat().emit());
    let envelope = Envelope::parse(&whole).unwrap();
    assert_eq!(envelope.manifest, bytes);
    let keys = SignedKeys::parse(&file("test.keys")).unwrap().keys;
    assert_eq!(Heartbeat::open(&envelope, &keys.heartbeat).unwrap().0, tiny_heartbeat());
    assert!(Heartbeat::open(&envelope, &keys.release).is_none());
    match line {
        "bytes" => hex(&bytes),
        "envelope" => hex(&whole[..6]),
        _ => signature_part(envelope.signature, line),
    }
}

/// A schedule with the salt of the full manifest: `TIME:SHARE …`.
fn schedule(steps: &str) -> Rollout {
    let manifest = Tiny::read().manifest;
    let step = |step: &str| {
        let (time, share) = step.split_once(':').unwrap();
        RolloutStep { time: number(time), share: number(share) as u16 }
    };
    Rollout {
        salt: salt_of(&manifest.digest, manifest.seq),
        steps: steps.split_whitespace().map(step).collect(),
    }
}

fn rollout(line: &str) -> String {
    let (what, rest) = (line.split(' ').next().unwrap(), behind(line, 1));
    match what {
        "salt" if rest.is_empty() => hex(&schedule("").salt),
        "salt" => hex(&salt_from(rest)),
        "bytes" => hex(&schedule(rest).emit()),
        "draw" => schedule("").draw(rest).to_string(),
        "begins" => {
            let id = rest.split(' ').next().unwrap();
            schedule(behind(rest, 1)).begins(id).map_or("never".into(), |time| time.to_string())
        }
        "parse" => match Rollout::parse(&unhex(rest)) {
            Ok(_) => "accepted".into(),
            Err(RolloutError::Cbor(_)) => "refused: CBOR".into(),
            Err(RolloutError::Steps(_)) => "refused: steps".into(),
            Err(RolloutError::Share(_)) => "refused: share".into(),
            Err(RolloutError::Order(_)) => "refused: order".into(),
        },
        _ => panic!("{line:?}: no such part"),
    }
}

fn apply(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let given = |word: &str| (word != "-").then(|| number(word));
    let of = |words: &[&str]| Apply {
        not_before: given(words[0]),
        jitter: given(words[1]).map(|jitter| jitter as u32),
    };
    match words[..] {
        ["bytes", ..] => hex(&of(&words[1..]).emit()),
        ["moment", _, _, ready, id] => {
            let manifest = Tiny::read().manifest;
            of(&words[1..]).moment((&manifest.digest, manifest.seq), id, number(ready)).to_string()
        }
        ["parse", bytes] => match Apply::parse(&unhex(bytes)) {
            Ok(_) => "accepted".into(),
            Err(ApplyError::Cbor(_)) => "refused: CBOR".into(),
            Err(ApplyError::Jitter(_)) => "refused: jitter".into(),
        },
        _ => panic!("{line:?}: no such part"),
    }
}

/// `HEARTBEATS KEYS COUNT`: what stands at the places of manifests 0, 1, 2, …
fn statements(line: &str) -> String {
    let (heartbeat, keys): (u8, u64) = (word(line, 0), word(line, 1));
    let what = |number| match statement(number, heartbeat > 0, keys as usize) {
        Statement::Manifest => "M".to_owned(),
        Statement::Heartbeat => "H".to_owned(),
        Statement::Keys(index) => format!("K{index}"),
    };
    (0..word::<u64>(line, 2)).map(what).collect::<Vec<_>>().join(" ")
}

/// Pieces of the key files, and of the signature of `tiny` or `full`.
fn signature(line: &str) -> String {
    let line_of =
        |name: &str, at: usize| String::from_utf8(file(name)).unwrap().lines().nth(at).unwrap().to_owned();
    let (name, piece) = line.split_once(' ').unwrap();
    if name == "key" {
        let (secret, public) = (base64(&line_of("test.key", 1)), base64(&line_of("test.pub", 1)));
        assert_eq!((secret.len(), &secret[..6], &secret[6..54]), (158, &b"Ed\0\0B2"[..], &[0; 48][..]));
        assert_eq!(
            (&public[..2], &public[2..10], &public[10..]),
            (&b"Ed"[..], &secret[54..62], &secret[94..126])
        );
        return match piece {
            "id" => hex(&secret[54..62]),
            "seed" => hex(&secret[62..94]),
            "public" => hex(&public[10..]),
            "check" => hex(&secret[126..]),
            "secret file" => hex(blake3::hash(&file("test.key")).as_bytes()),
            "public file" => hex(blake3::hash(&file("test.pub")).as_bytes()),
            _ => panic!("{line:?}: no such piece"),
        };
    }
    let text = match name {
        "tiny" => Tiny::read().envelope().signature.to_vec(),
        _ => file("full.manifest.minisig"),
    };
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[0], text.ends_with('\n')), (4, "untrusted comment: carousel", true));
    let first = base64(lines[1]);
    match piece {
        "line 1" => lines[0].into(),
        "line 2" => lines[1].into(),
        "line 3" => lines[2].into(),
        "line 4" => lines[3].into(),
        "letters and key id" => hex(&first[..10]),
        "A" => hex(&first[10..]),
        "B" => hex(&base64(lines[3])),
        _ => panic!("{line:?}: no such piece"),
    }
}

// --- hashes (section 5) -------------------------------------------------------------------------------------------

/// `PAGES P T`
fn tree_shape(line: &str) -> String {
    let t: usize = word::<u64>(line, 2) as usize;
    match TreeShape::new(word(line, 0), word(line, 1), t) {
        None => "refused".into(),
        Some(s) => {
            let path = s.pages_per_cap_node().trailing_zeros();
            let cap = s.cap_nodes();
            format!("depth {} cap {cap} path {path} body {}", path + cap.trailing_zeros(), s.body_len())
        }
    }
}

/// The example tree: byte i of the leaves of page g is (31·g + i) mod 256.
fn tree(line: &str) -> String {
    let (pages, page_len) = (word(line, 0), word(line, 1));
    let shape = TreeShape::new(pages, page_len, 1188).unwrap();
    let leaves = |page: PageNumber| -> Vec<u8> {
        (0..shape.leaves_len()).map(|i| (31 * page.0 as usize + i) as u8).collect()
    };
    let subtree = |first: u32| Subtree::build(&shape, PageNumber(first), |p| Ok::<_, ()>(leaves(p))).unwrap();
    let step = shape.pages_per_cap_node() as u32;
    let cap: Vec<u8> =
        (0..shape.cap_nodes() as u32).flat_map(|node| subtree(node * step).cap_node()).collect();
    let keyed = |text: &str, bytes: &[u8]| {
        let key: [u8; 32] = format!("{text:32}").into_bytes().try_into().unwrap();
        blake3::keyed_hash(&key, bytes).as_bytes()[..NODE_LEN].to_vec()
    };
    let node = |page: u32| {
        keyed("carousel v1 hash page", &[&page.to_be_bytes()[..], &leaves(PageNumber(page))].concat())
    };
    match behind(line, 2).split(' ').next() {
        Some("cap") => hex(&cap),
        Some("node") => hex(&node(word(line, 3))),
        Some("inner") => {
            let (left, right) = (word(line, 3), word::<u32>(line, 4));
            let right = if right < pages { node(right) } else { vec![0; NODE_LEN] };
            hex(&keyed("carousel v1 tree node", &[node(left), right].concat()))
        }
        Some("body") => {
            let page: u32 = word(line, 3);
            let number = PageNumber(page);
            let body = [leaves(number), subtree(page / step * step).path(number)].concat();
            assert!(shape.verify(number, &body, &cap));
            hex(&body)
        }
        _ => panic!("{line:?}: no such part"),
    }
}

/// `RECORD`: the leaf of this record of the tiny bundle, which must stand in its page.
fn tiny_leaf(line: &str) -> String {
    let tiny = Tiny::read();
    let record = tiny.record(word(line, 0));
    let found = leaf(record);
    let slot = Slot(u32::from_be_bytes(record[12..16].try_into().unwrap()));
    let shape = tiny.manifest.tree_shape(tiny.layout.geometry()).unwrap();
    let (page, index) = shape.page_of(slot).unwrap();
    let coset = Coset(page.0 / tiny.layout.pages_per_coset());
    let at = tiny.places.record(coset, tiny.layout.page_record(0)) as usize;
    let body = &tiny.file[at + 16..][..1188];
    assert!(shape.verify(page, body, &tiny.manifest.cap));
    assert_eq!(found, body[index * LEAF_LEN..][..LEAF_LEN]);
    format!("slot {} page {} index {index} leaf {}", slot.0, page.0, hex(&found))
}

/// The block values of the example object of `size` bytes.
fn block_values(size: u64, log2: u8) -> (Geometry, [u8; 32], Vec<[u8; 32]>) {
    let (g, object) = (Geometry::new(size, 1188, log2, 0, 0).unwrap(), example_object(size as usize));
    let value = |sbn| {
        let mut hasher = block_hasher(&g, sbn);
        hasher.update(&object[g.block_offset(sbn) as usize..][..g.block_len(sbn)]);
        block_value(&g, &hasher)
    };
    let values: Vec<_> = (0..g.blocks()).map(Sbn).map(value).collect();
    let digest = *blake3::hash(&object).as_bytes();
    assert_eq!(object_digest(&values), digest);
    (g, digest, values)
}

/// `S b digest`, `S b SBN`
fn block(line: &str) -> String {
    let (_, digest, values) = block_values(word(line, 0), word(line, 1));
    match behind(line, 2) {
        "digest" => hex(&digest),
        _ => hex(&values[word::<u32>(line, 2) as usize]),
    }
}

/// `S b PAGE`
fn block_page(line: &str) -> String {
    let (g, digest, values) = block_values(word(line, 0), word(line, 1));
    let number = PageNumber(word(line, 2));
    let body = &emit_block_pages(&values)[number.0 as usize];
    let proven = verify_block_page(&g, number, body, &digest).unwrap().len();
    let siblings = hex(&body[proven * 32..]);
    format!("{proven} values, BLAKE3 {} siblings {siblings}", blake3::hash(&body[..proven * 32]))
}

// --- schedule (section 6) -----------------------------------------------------------------------------------------

fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// `S T b R_full R_last L`
fn layout_for(line: &str) -> Option<Layout> {
    Layout::new(geometry(line).unwrap(), word(line, 5))
}

fn layout(line: &str) -> String {
    let Some(l) = layout_for(line) else { return "none".into() };
    let order = Order::new(&l, Tier::Alone).unwrap();
    format!(
        "rows {} P {} pages per coset {} pages {} block pages {} I {} length {} file {}",
        l.rows(),
        l.page_len(),
        l.pages_per_coset(),
        l.pages(),
        block_pages(l.geometry()),
        order.interval(),
        order.cycle(),
        Places::new(&l).file_len()
    )
}

/// `B COSET ROW`
fn row(line: &str) -> String {
    let blocks: u32 = word(line, 0);
    let l = Layout::new(Geometry::new(u64::from(blocks) << 16, 1188, 16, 56, 0).unwrap(), 3).unwrap();
    let row = l.row(Coset(word(line, 1)), word(line, 2));
    let order: Vec<u32> = (0..blocks).map(|rank| row.block(rank).0).collect();
    assert!(order.iter().zip(0..).all(|(sbn, rank)| row.rank(Sbn(*sbn)) == rank));
    list(&order)
}

/// `I FIRST COUNT`: the places of the control packets.
fn control(line: &str) -> String {
    let (interval, first, count): (u64, u64, u64) = (word(line, 0), word(line, 1), word(line, 2));
    list(&(first..first + count).map(|turn| mix(turn) % interval).collect::<Vec<_>>())
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}

fn tier(text: &str) -> Tier {
    if text == "alone" { Tier::Alone } else { Tier::Level(number(text) as u8) }
}

/// What stands at each position of a channel: kind, slot field, SBN, ESI.
fn items(line: &str) -> impl Iterator<Item = (u8, u32, u32, u16)> {
    let l = layout_for(line).unwrap();
    let order = Order::new(&l, tier(line.split(' ').nth(6).unwrap())).unwrap();
    let symbols: Vec<Vec<(Sbn, Esi)>> = (0..l.cosets()).map(|coset| l.walk(Coset(coset)).collect()).collect();
    (word::<u64>(line, 7)..).take(word::<u64>(line, 8) as usize).map(move |position| {
        match order.item(Position(position)) {
            Item::Manifest => (0, 0, 0, 0),
            Item::BlockPage(page) => (2, page, 0, 0),
            Item::Record(coset, record) => match l.record(record) {
                Content::HashPage(page) => (1, coset.0 * l.pages_per_coset() + page as u32, 0, 0),
                Content::Symbol(index) => {
                    let (sbn, esi) = symbols[coset.0 as usize][index as usize];
                    (3, l.slot(coset, index), sbn.0, esi.0)
                }
            },
        }
    })
}

/// `S T b R_full R_last L TIER FIRST COUNT`
fn order(line: &str) -> String {
    let show = |item: (u8, u32, u32, u16)| match item {
        (0, ..) => "M".into(),
        (1, page, ..) => format!("H{page}"),
        (2, page, ..) => format!("B{page}"),
        (_, slot, sbn, esi) => format!("{slot}:{sbn}.{esi}"),
    };
    list(&items(line).map(show).collect::<Vec<String>>())
}

fn order_hash(line: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for (kind, slot, sbn, esi) in items(line) {
        hasher.update(format!("{kind},{slot},{sbn},{esi};").as_bytes());
    }
    hasher.finalize().to_string()
}

/// `S T b R_full R_last L TIER`: cosets in order, and the channel's length.
fn channel(line: &str) -> String {
    let l = layout_for(line).unwrap();
    let Some(order) = Order::new(&l, tier(behind(line, 6))) else { return "none".into() };
    let mut cosets: Vec<u32> = Vec::new();
    for position in (0..order.cycle()).map(Position) {
        if let Item::Record(coset, record) = order.item(position)
            && record.0 == 0
        {
            cosets.push(coset.0);
        }
    }
    format!("cosets {} length {}", list(&cosets), order.cycle())
}

/// `NOW RATE T LENGTH SERVER`: the position before and after the phase is added.
fn position(line: &str) -> String {
    let (now, rate, t, length): (u64, u64, u64, u64) =
        (word(line, 0), word(line, 1), word(line, 2), word(line, 3));
    let due = u128::from(now) * u128::from(rate) / (u128::from(92 + t) * 8 * 1_000_000_000);
    // A pacer made at this moment begins there.
    let mut pacer = Pacer::new(rate, 92 + t as usize, now);
    let Step::Wait(until) = pacer.poll(now) else { panic!("{line:?}: nothing is due yet") };
    let Step::Send(first, _) = pacer.poll(until) else { panic!("{line:?}: something is due") };
    assert_eq!(u128::from(first.0), due);
    format!("{due} {}", first.0 + phase(word(line, 4), length))
}

// --- pacing (section 9) -------------------------------------------------------------------------------------------

/// `begin RATE PACKET NOW`, then `NOW` again and again.
fn pacer(lines: &[String]) -> Vec<String> {
    let mut pacer = Pacer::new(1_000, 1280, 0);
    each_mut(lines, |line| {
        if line.starts_with("begin") {
            pacer = Pacer::new(word(line, 1), word::<u64>(line, 2) as usize, word(line, 3));
            return format!("bursts of {}", pacer.burst());
        }
        match pacer.poll(word(line, 0)) {
            Step::Send(first, count) => format!("send {count} from {}", first.0),
            Step::Wait(until) => format!("wait until {until}"),
        }
    })
}

fn each_mut(lines: &[String], mut rule: impl FnMut(&str) -> String) -> Vec<String> {
    lines.iter().map(|line| rule(line)).collect()
}

// --- erasure code (sections 7 and 10) -----------------------------------------------------------------------------

/// `S b PERCENT`, with T = 1,188: what the packer chooses.
fn repair(line: &str) -> String {
    let g = sim::cut(word(line, 0), word(line, 1), word(line, 2)).unwrap();
    format!("R_full {} R_last {}", g.repair_full(), g.repair_last())
}

/// The Cantor basis of section 10.2.
const BASIS: [u32; 16] = [
    0x0001, 0xacca, 0x3c0e, 0x163e, 0xc582, 0xed2e, 0x914c, 0x4012, 0x6c98, 0x10d8, 0x6a72, 0xb900, 0xfdb8,
    0xfb34, 0xff38, 0x991e,
];

/// The element of a label.
fn element(label: u32) -> u32 {
    (0..16).filter(|i| label >> i & 1 == 1).fold(0, |sum, i| sum ^ BASIS[i])
}

fn product(a: u32, b: u32) -> u32 {
    (0..16).rev().fold(0, |sum, i| {
        let doubled = if sum & 0x8000 == 0 { sum << 1 } else { sum << 1 ^ 0x1_002d };
        if b >> i & 1 == 1 { doubled ^ a } else { doubled }
    })
}

fn label(wanted: u32) -> u32 {
    (0..1 << 16).find(|label| element(*label) == wanted).unwrap()
}

fn inverse(a: u32) -> u32 {
    (0..15).fold((1, a), |(sum, power), _| (product(sum, product(power, power)), product(power, power))).0
}

fn field(line: &str) -> String {
    format!("{:#06x}", label(product(element(word(line, 0)), element(word(line, 1)))))
}

/// The repair elements of one column straight from the definition in section 10.3.
fn interpolated(source: &[u32], repair: usize) -> Vec<u32> {
    let (k, r) = (source.len(), repair);
    let (pow_k, pow_r) = (k.next_power_of_two(), r.next_power_of_two());
    let high = pow_k > pow_r || pow_k == pow_r && k <= r;
    let (first, len) = if high { (pow_r, (pow_r + k).next_power_of_two() - pow_r) } else { (0, pow_k) };
    let known: Vec<(u32, u32)> = (0..len)
        .map(|i| (element((first + i) as u32), source.get(i).map_or(0, |label| element(*label))))
        .collect();
    let at = |x: u32| {
        known.iter().fold(0, |sum, (xi, yi)| {
            let others = known.iter().filter(|(xj, _)| xj != xi);
            let term = others.fold(*yi, |term, (xj, _)| product(product(term, x ^ xj), inverse(xi ^ xj)));
            sum ^ term
        })
    };
    (0..r).map(|j| label(at(element(if high { j } else { pow_k + j } as u32)))).collect()
}

/// `K R T`, with the bytes of the example object as source: the repair symbols, or their BLAKE3.
fn code(line: &str) -> String {
    let [k, r, t] = [0, 1, 2].map(|at| word::<u64>(line, at) as usize);
    let (source, mut repair) = (example_object(k * t), vec![0; r * t]);
    BlockEncoder::new().encode(k, r, t, &source, &mut repair).unwrap();
    if r * t > 100 {
        return format!("BLAKE3 {}", blake3::hash(&repair));
    }
    // Symbols as short as these are one group: the halves hold the low and the high bytes.
    let column = |bytes: &[u8], i: usize| -> Vec<u32> {
        bytes.chunks(t).map(|s| u32::from(s[i]) | u32::from(s[t / 2 + i]) << 8).collect()
    };
    (0..t / 2).for_each(|i| assert_eq!(interpolated(&column(&source, i), r), column(&repair, i), "{line}"));
    repair.chunks(t).map(hex).collect::<Vec<_>>().join(" ")
}

// --- the bundle (section 7) ---------------------------------------------------------------------------------------

/// `FIRST END` of the tiny bundle's bytes; `BLAKE3 FILE`.
fn tiny_bytes(line: &str) -> String {
    if let Some(name) = line.strip_prefix("BLAKE3 ") {
        return blake3::hash(&file(name)).to_string();
    }
    let tiny = Tiny::read();
    assert_eq!(tiny.header.rounds_log2, tiny.layout.rounds_log2());
    hex(&tiny.file[word::<u64>(line, 0) as usize..word::<u64>(line, 1) as usize])
}

/// What the tiny bundle was packed with, besides --key and --out.
const PACK: [&str; 18] = [
    "--name",
    "tiny.bin",
    "--media-type",
    "application/octet-stream",
    "--seq",
    "42",
    "--created",
    "@1800000000",
    "--expires",
    "2030-01-01T00:00Z",
    "--compatible",
    "board-a",
    "--compatible",
    "board-b",
    "--block-size",
    "64KiB",
    "--repair",
    "30",
];

#[track_caller]
fn ends_well(program: impl AsRef<Path>, words: &[&dyn AsOsString]) {
    let out = bins::run(program.as_ref(), args(words));
    let said = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{} {:?}: {said:?}", program.as_ref().display(), args(words));
}

/// Packs the tiny object.
fn pack_tiny(out: &Path) {
    let (object, key) = (proto("vectors/tiny.object"), proto("vectors/test.key"));
    let mut words: Vec<&dyn AsOsString> = vec![&"pack", &object, &"--key", &key, &"--out", &out, &"--force"];
    PACK.iter().for_each(|word| words.push(word));
    ends_well(bins::server(), &words);
}

/// Signs as our packer does, with the real program: `PATH.minisig`.
fn minisign(path: &Path) -> Vec<u8> {
    let (key, comment) = (proto("vectors/test.key"), "carousel manifest seq:42");
    ends_well("minisign", &[&"-S", &"-H", &"-s", &key, &"-c", &"carousel", &"-t", &comment, &"-m", &path]);
    fs::read(path.with_extension("manifest.minisig")).unwrap()
}

/// As section 13.10 says.
fn make_keys(out: &Path) {
    let key = |name: &str| proto("vectors").join(name);
    let (root, release, heartbeat) = (key("test.pub"), key("second.pub"), key("third.pub"));
    ends_well(
        bins::server(),
        &[
            &"keys",
            &"create",
            &"--out",
            &out,
            &"--version",
            &"2",
            &"--root",
            &root,
            &"--release",
            &release,
            &"--heartbeat",
            &heartbeat,
            &"--revoke",
            &"0123456789ABCDEF",
            &"--least",
            &"tiny.bin=42",
            &"--created",
            &"@1800000000",
            &"--expires",
            &"2030-01-01T00:00Z",
            &"--force",
        ],
    );
    ends_well(bins::server(), &[&"keys", &"sign", &out, &"--key", &key("test.key")]);
}

/// The heartbeat, signed by the real program.
fn make_heartbeat() -> Vec<u8> {
    let dir = Folder::new();
    let (path, key) = (dir.path().join("heartbeat"), proto("vectors/third.key"));
    fs::write(&path, tiny_heartbeat().emit()).unwrap();
    ends_well("minisign", &[&"-S", &"-H", &"-s", &key, &"-t", &"carousel heartbeat", &"-m", &path]);
    let text = fs::read(path.with_extension("minisig")).unwrap();
    tiny_heartbeat().seal(Signature::from_minisign(&text).unwrap())
}

fn writing() -> bool {
    std::env::var_os("CAROUSEL_VECTORS").is_some_and(|what| what == "write")
}

/// Makes the files anew, if that was asked for. Every test begins with it.
fn renew() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if writing() {
            pack_tiny(&proto("vectors/tiny.carousel"));
            let full = proto("vectors/full.manifest");
            fs::write(&full, Tiny::read().full_manifest().emit()).unwrap();
            minisign(&full);
            make_keys(&proto("vectors/test.keys"));
            let _ = fs::remove_file(proto("vectors/test.keys.cbor"));
            fs::write(proto("vectors/tiny.heartbeat"), make_heartbeat()).unwrap();
        }
    });
}

#[test]
fn the_packer_writes_the_tiny_bundle_to_the_last_bit() {
    renew();
    assert!(file("tiny.object") == example_object(3000), "tiny.object is another one");
    let dir = Folder::new();
    let out = dir.path().join("tiny.carousel");
    pack_tiny(&out);
    let (packed, expected) = (fs::read(&out).unwrap(), file("tiny.carousel"));
    let first = packed.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!((packed.len(), first), (expected.len(), None), "another bundle (length, first difference)");
    let public = proto("vectors/test.pub");
    ends_well(bins::server(), &[&"inspect", &out, &"--key", &public]);
}

/// The full manifest and its signature, judged by minisign-verify (which `inspect` uses) in the tiny bundle.
#[test]
fn the_full_manifest_is_signed() {
    renew();
    let tiny = Tiny::read();
    let (manifest, signature) = (tiny.full_manifest().emit(), file("full.manifest.minisig"));
    assert!(file("full.manifest") == manifest, "full.manifest is another one");
    let body = Envelope { manifest: &manifest, algorithm: 1, signature: &signature }.emit(1188).unwrap();
    let len = tiny.places.record_len();
    let bundle = [&tiny.file[..len + 16], &body, &tiny.file[2 * len..]].concat();
    let dir = Folder::new();
    let (path, public) = (dir.path().join("full.carousel"), proto("vectors/test.pub"));
    fs::write(&path, bundle).unwrap();
    ends_well(bins::server(), &[&"inspect", &path, &"--key", &public]);
}

/// minisign itself verifies both signatures, and makes the same ones with the test key.
#[test]
fn minisign_makes_the_same_signatures() {
    if !lab::have("minisign") {
        return lab::skip("minisign_makes_the_same_signatures", "the program minisign is missing");
    }
    renew();
    let (dir, tiny) = (Folder::new(), Tiny::read());
    let (e, public) = (tiny.envelope(), proto("vectors/test.pub"));
    for (manifest, signature) in
        [(e.manifest.to_vec(), e.signature.to_vec()), (file("full.manifest"), file("full.manifest.minisig"))]
    {
        let path = dir.path().join("F.manifest");
        fs::write(&path, manifest).unwrap();
        let made = minisign(&path);
        assert_eq!(String::from_utf8_lossy(&made), String::from_utf8_lossy(&signature));
        ends_well("minisign", &[&"-V", &"-H", &"-p", &public, &"-m", &path]);
    }
}

#[test]
fn the_program_makes_the_keys_object_to_the_last_bit() {
    renew();
    let dir = Folder::new();
    let out = dir.path().join("test.keys");
    make_keys(&out);
    assert_eq!(fs::read(&out).unwrap(), file("test.keys"));
}

/// What is short on the wire is minisign's own signature all the same.
#[test]
fn minisign_verifies_keys_objects_and_heartbeats() {
    if !lab::have("minisign") {
        return lab::skip("minisign_verifies_keys_objects_and_heartbeats", "the program minisign is missing");
    }
    renew();
    assert_eq!(make_heartbeat(), file("tiny.heartbeat"));
    let dir = Folder::new();
    for (whole, key) in [(file("test.keys"), "test.pub"), (file("tiny.heartbeat"), "third.pub")] {
        let envelope = Envelope::parse(&whole).unwrap();
        let signatures = Signature::parse_all(envelope.signature).unwrap();
        let path = dir.path().join("signed");
        fs::write(&path, envelope.manifest).unwrap();
        fs::write(dir.path().join("signed.minisig"), signatures[0].to_minisign()).unwrap();
        ends_well("minisign", &[&"-V", &"-H", &"-p", &proto("vectors").join(key), &"-m", &path]);
    }
}
