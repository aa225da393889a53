//! The obvious receiver: it keeps every packet for ever, judges all of them anew whenever it is asked, and believes
//! nothing that is not proven. Slow, and without a bound on its memory; what it gets, the real one has to get as well.

#![allow(clippy::expect_used)] // what cannot be is a failed test

use carousel_proto::fec::StripeDecoder;
use carousel_proto::geometry::{Geometry, Sbn};
use carousel_proto::manifest::{Envelope, Manifest, instance_of};
use carousel_proto::pages::{
    BLOCKS_PER_PAGE, LEAF_LEN, PageNumber, TreeShape, block_hasher, block_value, leaf, verify_block_page,
};
use carousel_proto::trust::Trust;
use carousel_proto::wire::{Kind, Packet};
use std::collections::BTreeMap;

/// See the head of this file.
pub struct Reference {
    trust: Trust,
    packets: Vec<Vec<u8>>,
}

impl Reference {
    /// One that has heard nothing yet.
    pub fn new(trust: Trust) -> Self {
        Self { trust, packets: Vec::new() }
    }

    /// One datagram.
    pub fn handle_packet(&mut self, bytes: &[u8]) {
        self.packets.push(bytes.to_vec());
    }

    /// The object, if what has come determines it and proves all of it.
    pub fn object(&mut self) -> Option<Vec<u8>> {
        let packets: Vec<Packet<'_>> =
            self.packets.iter().filter_map(|bytes| Packet::parse(bytes).ok()).collect();
        // The first manifest that is believed decides.
        let (manifest, instance) =
            packets.iter().filter(|p| p.kind() == Kind::Manifest).find_map(|packet| {
                let envelope = Envelope::parse(packet.body()).ok()?;
                let instance = instance_of(envelope.manifest);
                let manifest = self.trust.check(&envelope, 0).ok()?;
                (packet.instance() == instance).then_some((manifest, instance))
            })?;
        let geometry = manifest.geometry().ok()?;
        let ours: Vec<_> = packets
            .into_iter()
            .filter(|p| p.instance() == instance && p.checksum() == manifest.checksum())
            .filter(|p| p.size() == geometry.size() && p.body().len() == geometry.symbol_len())
            .collect();
        let shape = manifest.tree_shape(&geometry).ok()?;
        let leaves = proven_leaves(&ours, &shape, &manifest);
        let symbols = proven_symbols(&ours, &shape, &geometry, &leaves);
        let values = proven_values(&ours, &geometry, &manifest);
        let mut object = Vec::new();
        for sbn in (0..geometry.blocks()).map(Sbn) {
            let block = decode(&geometry, sbn, symbols.get(&sbn.0)?)?;
            let mut hasher = block_hasher(&geometry, sbn);
            hasher.update(&block);
            let value = if geometry.blocks() == 1 { &manifest.digest } else { values.get(&sbn.0)? };
            assert_eq!(&block_value(&geometry, &hasher), value, "proven symbols make up another block");
            object.extend(block);
        }
        Some(object)
    }
}

/// Of each page, its leaves.
fn proven_leaves(ours: &[Packet<'_>], shape: &TreeShape, manifest: &Manifest) -> BTreeMap<u32, Vec<u8>> {
    let pages = ours.iter().filter(|p| p.kind() == Kind::HashPage);
    let proven = pages.filter(|p| shape.verify(PageNumber(p.slot().0), p.body(), &manifest.cap));
    proven.map(|p| (p.slot().0, p.body()[..shape.leaves_len()].to_vec())).collect()
}

/// Of each block, its symbols.
fn proven_symbols(
    ours: &[Packet<'_>],
    shape: &TreeShape,
    geometry: &Geometry,
    leaves: &BTreeMap<u32, Vec<u8>>,
) -> BTreeMap<u32, BTreeMap<u16, Vec<u8>>> {
    let mut symbols: BTreeMap<u32, BTreeMap<u16, Vec<u8>>> = BTreeMap::new();
    for packet in ours.iter().filter(|p| p.kind() == Kind::Symbol) {
        let Some((sbn, esi)) = geometry.symbol_at(packet.offset()) else { continue };
        let Some((page, index)) = shape.page_of(packet.slot()) else { continue };
        let Some(page) = leaves.get(&page.0) else { continue };
        if page[index * LEAF_LEN..][..LEAF_LEN] == leaf(packet.record()) {
            symbols.entry(sbn.0).or_default().insert(esi.0, packet.body().to_vec());
        }
    }
    symbols
}

/// The values of blocks.
fn proven_values(ours: &[Packet<'_>], geometry: &Geometry, manifest: &Manifest) -> BTreeMap<u32, [u8; 32]> {
    let mut values = BTreeMap::new();
    for packet in ours.iter().filter(|p| p.kind() == Kind::BlockPage) {
        let number = PageNumber(packet.slot().0);
        let page = verify_block_page(geometry, number, packet.body(), &manifest.digest);
        let first = number.0.wrapping_mul(BLOCKS_PER_PAGE);
        values.extend((first..).zip(page.into_iter().flatten()));
    }
    values
}

/// A block from any K of its symbols.
fn decode(geometry: &Geometry, sbn: Sbn, symbols: &BTreeMap<u16, Vec<u8>>) -> Option<Vec<u8>> {
    let (k, r) = (usize::from(geometry.source_symbols(sbn)), usize::from(geometry.repair_symbols(sbn)));
    let t = geometry.symbol_len();
    if symbols.len() < k {
        return None;
    }
    let mut block = vec![0; k * t];
    for (esi, symbol) in symbols.range(..k as u16) {
        block[usize::from(*esi) * t..][..t].copy_from_slice(symbol);
    }
    if symbols.range(..k as u16).count() < k {
        let mut decoder = StripeDecoder::new();
        decoder.begin(k, r, t).expect("a code that was checked with the manifest");
        for (esi, symbol) in symbols.iter().take(k) {
            decoder.add(*esi, symbol).expect("a symbol of this block, once");
        }
        // Symbols that were there beyond the first K are right as they are.
        let had: Vec<u16> = symbols.keys().copied().collect();
        let put = |esi: u16, bytes: &[u8]| {
            if !had.contains(&esi) {
                block[usize::from(esi) * t..][..t].copy_from_slice(bytes);
            }
        };
        decoder.finish(put).expect("K symbols");
    }
    block.truncate(geometry.block_len(sbn));
    Some(block)
}
