//! What is fuzzed: a function for each parser, and one for the whole receiver. Each of them panics if what it was given
//! is handled wrongly, which for a parser means more than not to crash: what it accepts it must emit again as it was.
//!
//! The fuzzer is in `tests/fuzz`; `tests/oracle.rs` runs all that it ever found interesting, and random input besides.

#![allow(clippy::expect_used)] // what cannot be is a finding

use crate::reference::Reference;
use crate::sim::{self, Bundle, Client};
use carousel_dns::records::{Remarks, Srv};
use carousel_dns::{Ladder, Name, Service};
use carousel_proto::apply::Apply;
use carousel_proto::bundle::{BundleHeader, Places, layout_of};
use carousel_proto::geometry::Geometry;
use carousel_proto::heartbeat::Heartbeat;
use carousel_proto::journal::{ENTRY_LEN, Entry};
use carousel_proto::keys::{Keys, SignedKeys};
use carousel_proto::manifest::{Envelope, Manifest};
use carousel_proto::pages::{LANES, PageNumber, TreeShape, record_len, verify_block_page};
use carousel_proto::receiver::ChannelId;
use carousel_proto::rollout::{EVERYBODY, Rollout};
use carousel_proto::signature::{Key, KeyId, Signature};
use carousel_proto::table::{Kind, Table};
use carousel_proto::units::{parse_duration_ms, parse_rate, parse_size};
use carousel_proto::wire::{PREFIX_LEN, Packet, emit_prefix, record_header};
use std::sync::OnceLock;

/// What is tried on some bytes.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 13] = [
    ("packet", packet),
    ("manifest", manifest),
    ("table", table),
    ("page", page),
    ("keys", keys),
    ("heartbeat", heartbeat),
    ("signature", signature),
    ("bundle", bundle),
    ("journal", journal),
    ("dns", dns),
    ("configuration", configuration),
    ("units", units),
    ("receiver", receiver),
];

/// A header that is accepted says the same when it is written again.
pub fn packet(data: &[u8]) {
    let Ok(packet) = Packet::parse(data) else { return };
    let mut prefix = [0; PREFIX_LEN];
    emit_prefix(&mut prefix, packet.kind(), packet.sequence(), packet.checksum(), packet.instance());
    let record = record_header(packet.size(), packet.offset(), packet.slot());
    assert_eq!([&prefix[..], &record, packet.body()].concat(), data);
}

/// Also what follows from a manifest: its geometry and the shape of its tree.
pub fn manifest(data: &[u8]) {
    if let Ok(envelope) = Envelope::parse(data) {
        assert!(envelope.len() <= data.len());
        let again = envelope.emit(envelope.len()).expect("as long as it was");
        assert_eq!(Envelope::parse(&again), Ok(envelope));
        inner_manifest(envelope.manifest);
    }
    inner_manifest(data);
    if let Ok(rollout) = Rollout::parse(data) {
        assert_eq!(Rollout::parse(&rollout.emit()), Ok(rollout.clone()));
        assert!(rollout.draw("somebody") < EVERYBODY);
    }
    if let Ok(apply) = Apply::parse(data) {
        assert_eq!(Apply::parse(&apply.emit()), Ok(apply));
    }
}

fn inner_manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::parse(data) else { return };
    let geometry = manifest.geometry().expect("a manifest that was accepted has a geometry");
    let shape = manifest.tree_shape(&geometry).expect("… and a tree");
    assert!(shape.leaves_len() <= shape.body_len());
    assert!(!manifest.name.contains('/') && manifest.name != ".." && !manifest.name.is_empty());
    assert_eq!(Manifest::parse(&manifest.emit()).as_ref(), Ok(&manifest));
}

/// A folder's file table, of an object whose size is in the first bytes.
pub fn table(data: &[u8]) {
    let Some((size, data)) = data.split_first_chunk::<8>() else { return };
    let size = u64::from_be_bytes(*size);
    let Ok(table) = Table::parse(data, size) else { return };
    assert_eq!(table.emit(), data);
    let mut end = 0;
    for run in table.runs() {
        assert_eq!(run.start, end, "the files have a gap, or share bytes");
        end = run.end();
        let Kind::File { size, .. } = table.entries()[run.entry].kind else { panic!("bytes of no file") };
        assert!(run.len > 0 && run.offset + run.len <= size);
    }
    assert_eq!(end + data.len() as u64, size);
    assert!(table.entries().is_sorted_by(|a, b| a.path < b.path));
    for entry in table.entries() {
        let mut names = entry.path.split(|byte| *byte == b'/');
        assert!(!names.any(|name| name.is_empty() || name == b"." || name == b".." || name.contains(&0)));
        assert_eq!(entry.attributes.mode & 0o6000, 0);
    }
}

/// Hash page and block page, against trees of every shape.
pub fn page(data: &[u8]) {
    let Some((shape_bytes, body)) = data.split_first_chunk::<12>() else { return };
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *shape_bytes;
    let number = PageNumber(u32::from_be_bytes([a, b, c, d]));
    let pages = u32::from_be_bytes([0, e, f, g]);
    if let Some(shape) = TreeShape::new(pages, h, body.len()) {
        let cap = vec![i; shape.cap_nodes() * carousel_proto::pages::NODE_LEN];
        assert!(!shape.verify(number, body, &cap), "a page without its cap was believed");
    }
    let size = u64::from_be_bytes([0, 0, 0, 0, i, j, k, l]);
    if let Ok(geometry) = Geometry::new(size, 1188, 16 + (h % 9), 10, 5) {
        let values = verify_block_page(&geometry, number, body, &[7; 32]);
        assert!(values.is_none(), "a block page of another object was believed");
    }
}

/// Keys objects, sealed and bare.
pub fn keys(data: &[u8]) {
    if let Ok(keys) = Keys::parse(data) {
        assert_eq!(Keys::parse(&keys.emit()).as_ref(), Ok(&keys));
    }
    if let Ok(signed) = SignedKeys::parse(data) {
        assert!(signed.is_signed().is_err() || !signed.signatures().is_empty());
        if let Ok(again) = signed.emit() {
            let again = SignedKeys::parse(&again).expect("what was sealed");
            assert_eq!((again.bytes(), again.signatures()), (signed.bytes(), signed.signatures()));
        }
    }
}

/// Heartbeats.
pub fn heartbeat(data: &[u8]) {
    if let Some(heartbeat) = Heartbeat::parse(data) {
        assert_eq!(Heartbeat::parse(&heartbeat.emit()), Some(heartbeat));
    }
    if let Ok(envelope) = Envelope::parse(data) {
        assert!(Heartbeat::open(&envelope, &[]).is_none(), "believed without a key");
    }
}

/// Signatures and keys in all their forms.
pub fn signature(data: &[u8]) {
    if let Some(all) = Signature::parse_all(data) {
        assert_eq!(Signature::parse_all(&Signature::emit_all(&all)), Some(all));
    }
    if let Some(signature) = Signature::from_minisign(data) {
        assert_eq!(Signature::from_minisign(signature.to_minisign().as_bytes()), Some(signature));
    }
    if let Ok(text) = str::from_utf8(data) {
        if let Some(id) = KeyId::parse(text) {
            assert_eq!(KeyId::parse(&id.to_string()), Some(id));
        }
        if let Some(key) = Key::parse(text) {
            let _ = (key.id(), key.public());
        }
    }
}

/// The beginning of a bundle: header, manifest, and how long the file must be.
pub fn bundle(data: &[u8]) {
    let Ok(header) = BundleHeader::parse(data) else { return };
    let len = record_len(usize::from(header.symbol_len));
    assert_eq!(header.emit().len(), len);
    let Some(record) = data.get(len..2 * len) else { return };
    let Ok(envelope) = Envelope::parse(&record[16..]) else { return };
    let Ok(manifest) = Manifest::parse(envelope.manifest) else { return };
    if let Ok(layout) = layout_of(&header, &manifest, data.len() as u64) {
        assert_eq!(Places::new(&layout).file_len(), data.len() as u64);
    }
}

/// Entries of a client's log.
pub fn journal(data: &[u8]) {
    let Some((shape, entries)) = data.split_first_chunk::<6>() else { return };
    let [a, b, c, d, e, f] = *shape;
    let size = u64::from(u32::from_be_bytes([a, b, c, d]));
    let log2 = 16 + e % 9;
    let last = sim::repair_last(size, 1188, log2, u16::from(f));
    let Ok(geometry) = Geometry::new(size, 1188, log2, u16::from(f), last) else { return };
    let (entries, _) = entries.as_chunks::<ENTRY_LEN>();
    for bytes in entries {
        let Some(entry) = Entry::parse(bytes, &geometry) else { continue };
        match entry {
            Entry::Symbol { stored, .. } => {
                assert!(stored.place < geometry.source_symbols(stored.sbn));
                assert_eq!(entry.emit(&geometry), *bytes);
            }
            Entry::Block(sbn) => assert!(sbn.0 < geometry.blocks()),
        }
    }
}

/// SRV and TXT records.
pub fn dns(data: &[u8]) {
    let Some((numbers, rest)) = data.split_first_chunk::<8>() else { return };
    let [a, b, c, d, e, f, strings, sources] = *numbers;
    let mut words = rest.split(|byte| *byte == 0);
    let Some(name) = Name::from_labels(words.by_ref().take(5).map(<[u8]>::to_vec)) else { return };
    let target = Name::from_labels(words.by_ref().take(3).map(<[u8]>::to_vec));
    let srv: Vec<Srv> = target
        .into_iter()
        .flat_map(|target| {
            (0..u16::from(sources % 80)).map(move |i| Srv {
                priority: u16::from_be_bytes([a, b]) ^ i,
                weight: u16::from_be_bytes([c, d]),
                port: u16::from_be_bytes([e, f]),
                target: target.clone(),
            })
        })
        .collect();
    let words: Vec<Vec<u8>> = words.map(<[u8]>::to_vec).collect();
    let txt: Vec<_> = words.chunks(usize::from(strings).max(1)).map(<[_]>::to_vec).collect();
    let mut remarks = Remarks::default();
    if let Ok(mut service) = Service::parse(&name, &srv, &txt, &mut remarks) {
        if service.channels.len() == 1 {
            service.ladder = Ladder::Separate; // a ladder of one is none
        }
        // What was understood is understood again, and then without remarks.
        let mut none = Remarks::default();
        let again = Service::parse(&name, &service.srv(), &[service.txt()], &mut none);
        assert_eq!(again.as_ref(), Ok(&service), "{:?}", service.txt());
    }
}

/// The server's configuration.
pub fn configuration(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data)
        && let Err(failure) = carousel_server::check_configuration(text)
    {
        assert!(!failure.message.contains('\n') && !failure.message.is_empty(), "{failure:?}");
    }
}

/// Sizes, rates and times of command lines.
pub fn units(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        let _ = (parse_size(text), parse_rate(text), parse_duration_ms(text));
    }
}

/// Two small bundles, to be mixed: of 5 blocks and of 1.
fn bundles() -> &'static [(Bundle, Vec<u8>); 2] {
    static BUNDLES: OnceLock<[(Bundle, Vec<u8>); 2]> = OnceLock::new();
    BUNDLES.get_or_init(|| {
        [300_000, 40_000].map(|size| {
            let mut object = vec![0; size as usize];
            blake3::Hasher::new().update(&[1]).finalize_xof().fill(&mut object);
            let geometry = sim::cut(size, 16, 105).expect("a geometry");
            (Bundle::pack(&object, geometry), object)
        })
    })
}

/// A receiver that is told anything: true packets in any order, twice or never, cut off, damaged, and those of another
/// object. It must never complete anything but the object, and what the obvious receiver completes, it must complete
/// after one more cycle.
pub fn receiver(data: &[u8]) {
    let [(bundle, object), (other, _)] = bundles();
    let cycle = bundle.positions();
    let mut client = Client::new(bundle.trust());
    let mut reference = Reference::new(bundle.trust());
    let (mut now, mut position) = (0, 0);
    for step in data.as_chunks::<4>().0 {
        let [what, a, b, c] = *step;
        let number = u64::from(u16::from_be_bytes([a, b]));
        // Mostly as they are sent, from anywhere.
        let mut packets: Vec<Vec<u8>> = match what % 8 {
            0 => {
                position = number % cycle;
                Vec::new()
            }
            1..=3 => (0..u64::from(c)).map(|i| bundle.packet((position + i) % cycle)).collect(),
            4 => vec![bundle.packet(number % cycle)],
            5 => vec![other.packet(number % other.positions())],
            6 => (0..u64::from(c)).map(|i| bundle.packet((position + i * (1 + number)) % cycle)).collect(),
            _ => vec![bundle.manifest(number)],
        };
        position += packets.len() as u64;
        match what / 8 {
            0..=15 => {}
            // One wrong byte.
            16..=19 => packets.iter_mut().for_each(|packet| {
                let at = usize::from(c) * 7919 % packet.len();
                packet[at] ^= b | 1;
            }),
            // Cut off, and longer.
            20 => packets.iter_mut().for_each(|packet| packet.truncate(usize::from(c) * 5)),
            21 => packets.iter_mut().for_each(|packet| packet.extend([0; 3])),
            // Backwards.
            22..=24 => packets.reverse(),
            // All but every n-th.
            25..=28 => {
                let mut count = 0;
                packets.retain(|_| {
                    count += 1;
                    count % (2 + usize::from(b % 14)) != 0
                });
            }
            // Twice.
            29 => packets.extend(packets.clone()),
            // Another kind than it is.
            _ => packets.iter_mut().for_each(|packet| packet[1] = c % 7),
        }
        // Few or many of them come together.
        for group in packets.chunks(1 + usize::from(a) % LANES) {
            now += 100_000 * group.len() as u64;
            let group: Vec<&[u8]> = group.iter().map(|packet| &packet[..]).collect();
            client.handle_group(now, ChannelId(u16::from(what >> 6)), &group);
            group.iter().for_each(|packet| reference.handle_packet(packet));
            if let Some(found) = client.object() {
                assert!(found == object, "another object than the one that was sent");
                return;
            }
        }
    }
    let expected = reference.object();
    assert!(expected.as_ref().is_none_or(|found| found == object), "even the obvious receiver was fooled");
    // However it was confused, the network becoming kind must be enough: soon, if all was there already.
    let patience = if expected.is_some() { cycle + 2 * sim::DECODING } else { 6 * cycle };
    for more in 0..patience {
        now += 100_000;
        client.handle_packet(now, ChannelId(0), &bundle.packet((position + more) % cycle));
        if let Some(found) = client.object() {
            assert!(found == object, "another object than the one that was sent");
            return;
        }
    }
    panic!("not complete after {patience} more packets in order; all there before: {}", expected.is_some());
}
