//! The functions, each with something real to work on.

#![allow(clippy::unwrap_used)] // what is set up here is right, or the program is wrong

use carousel_proto::fec::{BlockEncoder, StripeDecoder, stripes};
use carousel_proto::geometry::Geometry;
use carousel_proto::manifest::{Envelope, Manifest};
use carousel_proto::pacer::Pacer;
use carousel_proto::pages::{LANES, PageNumber, TreeShape, leaf, leaves};
use carousel_proto::receiver::{ChannelId, Receiver, Verdict};
use carousel_proto::schedule::{DEFAULT_ROUNDS_LOG2, Layout, Order, Position, Tier};
use carousel_proto::wire::{Kind, Packet};
use carousel_tests::sim::{self, Bundle, Dice};
use std::any::Any;
use std::cell::RefCell;
use std::fmt::{self, Display, Formatter};
use std::hint::black_box;
use std::rc::Rc;

/// One piece of work, ready to begin; what it leaves is freed outside the measurement.
pub type Work = Box<dyn FnOnce() -> Box<dyn Any>>;
/// Makes one piece of work after the other.
pub type Prepare = Box<dyn FnMut() -> Work>;

/// A function.
pub struct Case {
    pub name: &'static str,
    /// How often a piece of work calls it, or how many bytes or symbols that has.
    pub items: usize,
    pub prepare: fn() -> Prepare,
}

impl Display for Case {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const MANY: usize = 1000;
/// A block as `pack` cuts it for Ethernet: 4 MiB of symbols of 1,408 bytes, and 5 % more of repair.
const SYMBOL_LEN: usize = 1408;
const SOURCE: usize = 2979;
const REPAIR: usize = 3128;

pub const CASES: [Case; 9] = [
    Case { name: "parse a header", items: MANY, prepare: parse },
    Case { name: "hash a leaf", items: MANY, prepare: hash },
    Case { name: "hash a leaf, of sixteen at once", items: MANY.next_multiple_of(LANES), prepare: hash_many },
    Case { name: "verify a hash page", items: MANY, prepare: verify },
    Case { name: "take a symbol whose page is known", items: MANY, prepare: take },
    Case { name: "find what stands at a position", items: MANY, prepare: step },
    Case { name: "ask the pacer", items: MANY, prepare: pace },
    Case { name: "encode a block, for each source symbol", items: SOURCE, prepare: encode },
    Case {
        name: "decode a block of which half was lost, for each source symbol",
        items: SOURCE,
        prepare: decode,
    },
];

/// Work that only looks at what it is given.
fn repeat<T: 'static>(with: T, work: impl Fn(&T, usize) + Copy + 'static) -> Prepare {
    let with = Rc::new(with);
    Box::new(move || {
        let with = with.clone();
        Box::new(move || {
            (0..MANY).for_each(|i| work(black_box(&with), i));
            Box::new(())
        })
    })
}

/// An object of two blocks, packed.
fn bundle() -> Bundle {
    let mut object = vec![0; 8 << 20];
    Dice::new(1).fill(&mut object);
    Bundle::pack(&object, sim::cut(object.len() as u64, 22, 105).unwrap())
}

/// The packets at the beginning of the carousel, as many as have so many symbols among them.
fn packets(bundle: &Bundle, symbols: usize) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut others, mut found) = (vec![bundle.manifest(0)], Vec::new());
    for position in 0.. {
        let packet = bundle.packet(position);
        let is_symbol = Packet::parse(&packet).unwrap().kind() == Kind::Symbol;
        if is_symbol { &mut found } else { &mut others }.push(packet);
        if found.len() == symbols {
            break;
        }
    }
    (others, found)
}

fn parse() -> Prepare {
    repeat(packets(&bundle(), 1).1.remove(0), |packet, _| {
        let packet = Packet::parse(packet).unwrap();
        black_box((packet.checksum(), packet.instance(), packet.size(), packet.offset(), packet.slot()));
    })
}

fn hash() -> Prepare {
    repeat(vec![7; SYMBOL_LEN + 16], |record: &Vec<u8>, _| {
        black_box(leaf(record));
    })
}

fn hash_many() -> Prepare {
    repeat(vec![vec![7; SYMBOL_LEN + 16]; LANES], |records: &Vec<Vec<u8>>, index| {
        if index.is_multiple_of(LANES) {
            let records: [&[u8]; LANES] = std::array::from_fn(|lane| &records[lane][..]);
            black_box(leaves(&records));
        }
    })
}

fn verify() -> Prepare {
    let bundle = bundle();
    let (others, _) = packets(&bundle, MANY);
    let manifest = bundle.manifest(0);
    let envelope = Envelope::parse(Packet::parse(&manifest).unwrap().body()).unwrap();
    let manifest = Manifest::parse(envelope.manifest).unwrap();
    let shape = manifest.tree_shape(&manifest.geometry().unwrap()).unwrap();
    let page = others.iter().find(|packet| Packet::parse(packet).unwrap().kind() == Kind::HashPage).unwrap();
    let packet = Packet::parse(page).unwrap();
    let with: (TreeShape, PageNumber, Vec<u8>, Vec<u8>) =
        (shape, PageNumber(packet.slot().0), packet.body().to_vec(), manifest.cap);
    repeat(with, |(shape, number, body, cap), _| assert!(shape.verify(*number, body, cap)))
}

fn take() -> Prepare {
    let bundle = bundle();
    let (others, symbols) = packets(&bundle, MANY);
    let symbols = Rc::new(symbols);
    Box::new(move || {
        let mut receiver = Receiver::new(bundle.trust(), 0);
        for packet in &others {
            receiver.handle_packet(0, ChannelId(0), packet);
        }
        drop(receiver.take_early());
        // The second time: before the manifest, packets are only kept.
        for packet in &others {
            receiver.handle_packet(0, ChannelId(0), packet);
        }
        let symbols = symbols.clone();
        Box::new(move || {
            for packet in symbols.iter() {
                let verdict = receiver.handle_packet(0, ChannelId(0), black_box(packet));
                assert!(matches!(verdict, Verdict::Store(..)));
            }
            Box::new(receiver)
        })
    })
}

fn step() -> Prepare {
    let geometry = Geometry::new(1 << 30, SYMBOL_LEN as u16, 22, REPAIR as u16, 0).unwrap();
    let layout = Layout::new(geometry, DEFAULT_ROUNDS_LOG2).unwrap();
    // Far in, and in stretches of one position after the other, as a server goes.
    repeat(Order::new(&layout, Tier::Alone).unwrap(), |order, i| {
        black_box(order.item(Position(123_456_789_012 + i as u64)));
    })
}

fn pace() -> Prepare {
    const START: u64 = 1_800_000_000_000_000_000;
    let pacer = Rc::new(RefCell::new((Pacer::new(1_000_000_000, 1500, START), START)));
    Box::new(move || {
        let pacer = pacer.clone();
        Box::new(move || {
            let (pacer, now) = &mut *pacer.borrow_mut();
            for _ in 0..MANY {
                // Every second time there is something to send.
                *now += 250_000;
                black_box(pacer.poll(*now));
            }
            Box::new(())
        })
    })
}

fn source() -> Vec<u8> {
    let mut source = vec![0; SOURCE * SYMBOL_LEN];
    Dice::new(2).fill(&mut source);
    source
}

fn encode() -> Prepare {
    let source = Rc::new(source());
    let with = Rc::new(RefCell::new((BlockEncoder::new(), vec![0; REPAIR * SYMBOL_LEN])));
    Box::new(move || {
        let (source, with) = (source.clone(), with.clone());
        Box::new(move || {
            let (encoder, repair) = &mut *with.borrow_mut();
            encoder.encode(SOURCE, REPAIR, SYMBOL_LEN, &source, repair).unwrap();
            Box::new(())
        })
    })
}

/// As the client does it, in four column stripes.
fn decode() -> Prepare {
    let source = source();
    let mut repair = vec![0; REPAIR * SYMBOL_LEN];
    BlockEncoder::new().encode(SOURCE, REPAIR, SYMBOL_LEN, &source, &mut repair).unwrap();
    let symbols = [source, repair].concat();
    let with = Rc::new((symbols, RefCell::new(StripeDecoder::new())));
    Box::new(move || {
        let with = with.clone();
        Box::new(move || {
            let (symbols, decoder) = &*with;
            let mut decoder = decoder.borrow_mut();
            let mut restored = 0;
            for columns in stripes(SYMBOL_LEN, 4) {
                decoder.begin(SOURCE, REPAIR, columns.len()).unwrap();
                // Every second source symbol, and as many repair symbols as that leaves to be found.
                let here = (0..SOURCE).step_by(2).chain(SOURCE..SOURCE + SOURCE / 2);
                for esi in here {
                    decoder.add(esi as u16, &symbols[esi * SYMBOL_LEN..][columns.clone()]).unwrap();
                }
                decoder.finish(|_, column| restored += black_box(column).len()).unwrap();
            }
            assert_eq!(restored, SOURCE / 2 * SYMBOL_LEN);
            Box::new(())
        })
    })
}
