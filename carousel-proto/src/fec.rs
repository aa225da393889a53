//! The erasure code of one source block: K source symbols in, R repair symbols out, and any K of these
//! N = K + R give the rest back.
//!
//! Reed-Solomon over GF(2^16) as `reed-solomon-simd` builds it. No RFC describes this code: its definition is
//! that library, and the vectors at the end of this file hold it still. (RFC 5510 is the place to learn what
//! such a code does for multicast; the bytes differ.)
//!
//! A block is a matrix, a symbol is a row, and the code works down the columns. So a *stripe* (a byte range
//! of every symbol) decodes without its neighbours, which keeps memory small and lets several threads share a
//! block:
//!
//! ```text
//!          | stripe 0   | stripe 1   | last stripe |
//!   ESI 0  | 64 x a ... | 64 x b ... | the rest    |   bytes of one symbol
//!   ESI 1  |            |            |             |
//! ```
//!
//! Cuts lie at multiples of 64 bytes, because a 16-bit element pairs a byte of the low half with one of the
//! high half of its 64-byte group; the last group of a symbol may be short and halves what there is.
//!
//! This room refuses to know whether a symbol is genuine. One forged symbol ruins the block: verify first.

use std::ops::Range;

use reed_solomon_simd::Error as RsError;
#[cfg(not(target_arch = "x86_64"))]
use reed_solomon_simd::engine::DefaultEngine as Fastest;
use reed_solomon_simd::rate::{DefaultRate, DefaultRateEncoder, Rate, RateEncoder};

use self::decoder::Decoder;
#[cfg(target_arch = "x86_64")]
use self::gfni::Fastest;

mod decoder;
#[cfg(target_arch = "x86_64")]
mod gfni;

/// Most source symbols a block may have.
pub const MAX_SOURCE_SYMBOLS: usize = 32_768;
/// Most repair symbols a block may have.
pub const MAX_REPAIR_SYMBOLS: usize = 32_768;
/// Longest symbol in bytes: even, and no UDP packet carries more.
pub const MAX_SYMBOL_LEN: usize = 65_534;

/// Stripes start and end at multiples of this many bytes.
const GROUP: usize = 64;

/// Why a block was not encoded or decoded. None of these is fatal to the encoder or decoder that returned it.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum FecError {
    /// No code of this size, see [`supported`].
    #[error("no code for {k} source and {r} repair symbols")]
    Geometry {
        /// Source symbols asked for.
        k: usize,
        /// Repair symbols asked for.
        r: usize,
    },
    /// Symbols and stripes are an even number of bytes, from 2 to [`MAX_SYMBOL_LEN`].
    #[error("symbol length of {len} bytes is not an even number from 2 to {MAX_SYMBOL_LEN}")]
    SymbolLen {
        /// Bytes asked for.
        len: usize,
    },
    /// The work memory would not fit the address space (small machines only).
    #[error("{k}+{r} symbols of {len} bytes exceed the address space")]
    TooLarge {
        /// Source symbols asked for.
        k: usize,
        /// Repair symbols asked for.
        r: usize,
        /// Bytes per symbol asked for.
        len: usize,
    },
    /// A buffer or a column does not have the length its geometry demands.
    #[error("{got} bytes given where {wanted} belong")]
    Length {
        /// Bytes that belong there.
        wanted: usize,
        /// Bytes given.
        got: usize,
    },
    /// `add` or `finish` without a `begin`.
    #[error("no stripe was begun")]
    NotBegun,
    /// The symbol number does not belong to this block.
    #[error("symbol {esi} is not one of {n}")]
    OutOfRange {
        /// The symbol's number.
        esi: u16,
        /// Symbols of the block, source and repair.
        n: usize,
    },
    /// The symbol was added before.
    #[error("symbol {esi} was added before")]
    Double {
        /// The symbol's number.
        esi: u16,
    },
    /// K symbols are there already, and more cannot help.
    #[error("symbol {esi} is surplus, all {k} needed are there")]
    Surplus {
        /// The symbol's number.
        esi: u16,
        /// Source symbols of the block.
        k: usize,
    },
    /// Too few symbols to decode.
    #[error("{have} symbols of {k} needed")]
    TooFew {
        /// Symbols added so far.
        have: usize,
        /// Source symbols of the block.
        k: usize,
    },
    /// The library found a fault that the checks of this room missed.
    #[error("Reed-Solomon library: {0}")]
    Library(#[from] RsError),
}

/// Whether a block may have `k` source and `r` repair symbols: 1 to 32,768 and 0 to 32,768.
#[must_use]
pub fn supported(k: usize, r: usize) -> bool {
    (1..=MAX_SOURCE_SYMBOLS).contains(&k)
        && r <= MAX_REPAIR_SYMBOLS
        && (r == 0 || DefaultRate::<Fastest>::supports(k, r))
}

/// Cuts a symbol of `symbol_len` bytes into column stripes, in order and as even as 64-byte groups allow.
///
/// Gives `wanted` byte ranges, or fewer (never less than one) if the symbol has fewer groups. All but the
/// last are multiples of 64 bytes long; the last is even if the symbol is. A symbol of no bytes has no
/// stripes.
pub fn stripes(symbol_len: usize, wanted: usize) -> impl ExactSizeIterator<Item = Range<usize>> + Clone {
    let groups = symbol_len.div_ceil(GROUP);
    let count = wanted.max(1).min(groups);
    // The longer ones first, so that a decoder's work memory has its full size from the start.
    let cut = move |i: usize| {
        let whole = i * (groups / count) + i.min(groups % count);
        whole.saturating_mul(GROUP).min(symbol_len)
    };
    (0..count).map(move |i| cut(i)..cut(i + 1))
}

/// Computes the repair symbols of one block after another and keeps its work memory in between.
#[derive(Default)]
pub struct BlockEncoder {
    rs: Option<DefaultRateEncoder<Fastest>>,
}

impl BlockEncoder {
    /// An encoder without work memory; the first block brings it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes one block: `source` holds `k` symbols of `symbol_len` bytes end to end (the last one padded by
    /// the caller), `repair` receives `r` of them, ESI `k` first. With `r` = 0 there is nothing to do.
    ///
    /// Both `k` and `r` define the code: with another `r` the repair symbols may be others, not merely more
    /// or fewer.
    ///
    /// # Errors
    /// [`FecError::Geometry`], [`FecError::SymbolLen`], [`FecError::TooLarge`], and [`FecError::Length`] if a
    /// buffer has another size. `repair` is then untouched.
    pub fn encode(
        &mut self,
        k: usize,
        r: usize,
        symbol_len: usize,
        source: &[u8],
        repair: &mut [u8],
    ) -> Result<(), FecError> {
        check_geometry(k, r, symbol_len)?;
        check_len(source.len(), k * symbol_len)?;
        check_len(repair.len(), r * symbol_len)?;
        if r == 0 {
            return Ok(());
        }
        // Taken out, so that a failure drops it: the library panics when used after a failed reset.
        let mut rs = match self.rs.take() {
            None => DefaultRateEncoder::new(k, r, symbol_len, Fastest::new(), None)?,
            Some(mut rs) => {
                rs.reset(k, r, symbol_len)?;
                rs
            }
        };
        for symbol in source.chunks_exact(symbol_len) {
            rs.add_original_shard(symbol)?;
        }
        let encoded = rs.encode()?;
        for (symbol, computed) in repair.chunks_exact_mut(symbol_len).zip(encoded.recovery_iter()) {
            symbol.copy_from_slice(computed);
        }
        drop(encoded);
        self.rs = Some(rs);
        Ok(())
    }
}

/// Restores the missing source symbols of one column stripe after another and keeps its work memory in
/// between.
///
/// Work memory is the next power of two above N, times the stripe length: about twice the stripe's share of
/// the N symbols at worst.
#[derive(Default)]
pub struct StripeDecoder {
    decoder: Option<Decoder>,
    stripe: Option<Stripe>,
}

/// The stripe being collected.
#[derive(Clone, Copy)]
struct Stripe {
    k: usize,
    r: usize,
    len: usize,
    have: usize,
}

impl StripeDecoder {
    /// A decoder without work memory; the first stripe brings it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a stripe of `stripe_len` bytes of a block with `k` source and `r` repair symbols. A stripe that
    /// was begun and not finished is forgotten.
    ///
    /// # Errors
    /// [`FecError::Geometry`], [`FecError::SymbolLen`], [`FecError::TooLarge`]: then no stripe is begun.
    pub fn begin(&mut self, k: usize, r: usize, stripe_len: usize) -> Result<(), FecError> {
        self.stripe = None;
        check_geometry(k, r, stripe_len)?;
        // There is no code without repair. Nothing to restore, so any code will do for counting.
        self.decoder.get_or_insert_with(Decoder::new).begin(k, r.max(1), stripe_len);
        self.stripe = Some(Stripe { k, r, len: stripe_len, have: 0 });
        Ok(())
    }

    /// Adds the stripe's bytes of the symbol `esi`: a source symbol below K, a repair symbol from K on.
    ///
    /// # Errors
    /// [`FecError::NotBegun`], [`FecError::OutOfRange`], [`FecError::Length`], [`FecError::Surplus`] and
    /// [`FecError::Double`]. Nothing changes then, and the stripe can go on.
    pub fn add(&mut self, esi: u16, column: &[u8]) -> Result<(), FecError> {
        let (Some(stripe), Some(decoder)) = (&mut self.stripe, &mut self.decoder) else {
            return Err(FecError::NotBegun);
        };
        let Stripe { k, r, len, have } = *stripe;
        let index = usize::from(esi);
        if index >= k + r {
            return Err(FecError::OutOfRange { esi, n: k + r });
        }
        check_len(column.len(), len)?;
        if have == k {
            return Err(FecError::Surplus { esi, k });
        }
        if !decoder.add(index, column) {
            return Err(FecError::Double { esi });
        }
        stripe.have += 1;
        Ok(())
    }

    /// Decodes the stripe and hands every source symbol that was not added to `restored`, as its ESI and the
    /// stripe's bytes, in ascending order. The stripe is over then; the next one wants a `begin`.
    ///
    /// # Errors
    /// [`FecError::NotBegun`], and [`FecError::TooFew`], after which more symbols can be added.
    pub fn finish(&mut self, restored: impl FnMut(u16, &[u8])) -> Result<(), FecError> {
        let (Some(Stripe { k, have, .. }), Some(decoder)) = (self.stripe, &mut self.decoder) else {
            return Err(FecError::NotBegun);
        };
        if have < k {
            return Err(FecError::TooFew { have, k });
        }
        self.stripe = None;
        decoder.restore(restored);
        Ok(())
    }
}

/// Checks a block's geometry and gives the decoder's work memory in bytes: an upper bound for the encoder's
/// and for the block itself, so that after this check no product of these numbers overflows.
fn check_geometry(k: usize, r: usize, len: usize) -> Result<usize, FecError> {
    if !supported(k, r) {
        return Err(FecError::Geometry { k, r });
    }
    if len == 0 || !len.is_multiple_of(2) || len > MAX_SYMBOL_LEN {
        return Err(FecError::SymbolLen { len });
    }
    // As the library counts: the smaller one is rounded up to a power of two, then the sum is.
    let rows = (k.min(r).next_power_of_two() + k.max(r)).next_power_of_two();
    let bytes = rows.checked_mul(len.next_multiple_of(GROUP));
    bytes.filter(|&bytes| isize::try_from(bytes).is_ok()).ok_or(FecError::TooLarge { k, r, len })
}

fn check_len(got: usize, wanted: usize) -> Result<(), FecError> {
    if got == wanted { Ok(()) } else { Err(FecError::Length { wanted, got }) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use reed_solomon_simd::engine::Naive;

    use super::*;

    const LENGTHS: [usize; 10] = [2, 4, 62, 64, 66, 126, 128, 130, 1188, 1408];

    fn source(k: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; k * len];
        blake3::Hasher::new().update(&[k as u8, len as u8]).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn encode(k: usize, r: usize, len: usize, source: &[u8]) -> Vec<u8> {
        let mut repair = vec![0xee; r * len];
        BlockEncoder::new().encode(k, r, len, source, &mut repair).unwrap();
        repair
    }

    fn column(symbols: &[u8], len: usize, stripe: Range<usize>) -> Vec<u8> {
        symbols.chunks_exact(len).flat_map(|symbol| &symbol[stripe.clone()]).copied().collect()
    }

    /// The slow, obvious version: the library's plain engine.
    fn encode_slowly(k: usize, r: usize, len: usize, source: &[u8]) -> Vec<u8> {
        let mut rs = DefaultRateEncoder::new(k, r, len, Naive::new(), None).unwrap();
        source.chunks_exact(len).for_each(|symbol| rs.add_original_shard(symbol).unwrap());
        rs.encode().unwrap().recovery_iter().flatten().copied().collect()
    }

    /// Encodes whole, decodes from `esis` in `cuts` stripes, and compares.
    fn round_trip(decoder: &mut StripeDecoder, k: usize, r: usize, len: usize, cuts: usize, esis: &[u16]) {
        let source = source(k, len);
        let all = [&source[..], &encode(k, r, len, &source)].concat();
        let added: BTreeSet<_> = esis.iter().collect();
        let wanted: Vec<u16> = (0..k as u16).filter(|esi| !added.contains(esi)).collect();
        for stripe in stripes(len, cuts) {
            decoder.begin(k, r, stripe.len()).unwrap();
            for &esi in esis {
                decoder.add(esi, &all[usize::from(esi) * len..][..len][stripe.clone()]).unwrap();
            }
            let mut restored = Vec::new();
            let compare = |esi: u16, bytes: &[u8]| {
                assert_eq!(bytes, &source[usize::from(esi) * len..][..len][stripe.clone()], "ESI {esi}");
                restored.push(esi);
            };
            decoder.finish(compare).unwrap();
            assert_eq!(restored, wanted);
        }
    }

    fn any_k_of_n() -> impl Strategy<Value = (usize, usize, Vec<u16>)> {
        (1..=150_usize, 0..=150_usize).prop_flat_map(|(k, r)| {
            let all = Just((0..(k + r) as u16).collect::<Vec<_>>()).prop_shuffle();
            all.prop_map(move |esis| (k, r, esis[..k].to_vec()))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_k_symbols_restore_the_block(
            first in any_k_of_n(), second in any_k_of_n(), half in 1..=160_usize, cuts in 1..=6_usize,
        ) {
            // The second block finds the first one's leavings in the work memory.
            let mut decoder = StripeDecoder::new();
            for (k, r, esis) in [first, second] {
                round_trip(&mut decoder, k, r, half * 2, cuts, &esis);
            }
        }

        #[test]
        fn the_fast_encoder_agrees_with_the_slow_one(
            k in 1..=40_usize, r in 1..=40_usize, half in 1..=70_usize,
        ) {
            let source = source(k, half * 2);
            prop_assert_eq!(encode(k, r, half * 2, &source), encode_slowly(k, r, half * 2, &source));
        }

        #[test]
        fn stripes_tile_the_symbol(half in 1..=4096_usize, wanted in 0..=80_usize) {
            let len = half * 2;
            let cut: Vec<_> = stripes(len, wanted).collect();
            prop_assert_eq!(cut.len(), wanted.clamp(1, len.div_ceil(GROUP)));
            let mut at = 0;
            for stripe in &cut {
                prop_assert!(stripe.start == at && stripe.start % GROUP == 0 && !stripe.is_empty());
                at = stripe.end;
            }
            prop_assert_eq!(at, len);
            let groups = || cut.iter().map(|stripe| stripe.len().div_ceil(GROUP));
            prop_assert!(groups().max().unwrap() - groups().min().unwrap() <= 1);
        }
    }

    /// The library with its own arithmetic, on blocks for which the slow version is too slow.
    #[test]
    fn the_library_agrees() {
        let sizes = [(1, 1), (2979, 3128), (2979, 600), (600, 2979), (1000, 1024), (1025, 1024), (100, 5000)];
        for ((k, r), len) in sizes.into_iter().zip([2, 66, 130, 64, 1408, 62, 190]) {
            let source = source(k, len);
            let mut library = reed_solomon_simd::ReedSolomonEncoder::new(k, r, len).unwrap();
            source.chunks_exact(len).for_each(|symbol| library.add_original_shard(symbol).unwrap());
            let repair = encode(k, r, len, &source);
            assert!(library.encode().unwrap().recovery_iter().flatten().eq(&repair), "{k}+{r}");

            // Half of it from the last repair symbols, the rest from source symbols here and there.
            let repairs = r.min(k.div_ceil(2));
            let sources = (0..k - repairs).map(|i| (i * 7919 % k) as u16);
            let esis: Vec<_> = (0..repairs).map(|i| (k + r - 1 - i) as u16).chain(sources).collect();
            round_trip(&mut StripeDecoder::new(), k, r, len, 3, &esis);
        }
    }

    #[test]
    fn code_of_a_stripe_is_the_stripe_of_the_code() {
        let mut decoder = StripeDecoder::new();
        for len in LENGTHS {
            // The high-rate code, the low-rate code, and K = R.
            for (k, r) in [(21, 5), (5, 21), (13, 13)] {
                let source = source(k, len);
                let repair = encode(k, r, len, &source);
                let esis: Vec<u16> = (k.min(r) as u16..(k + k.min(r)) as u16).collect();
                for cuts in [1, 2, 3, 19, 99] {
                    for stripe in stripes(len, cuts) {
                        let of_stripe = encode(k, r, stripe.len(), &column(&source, len, stripe.clone()));
                        assert_eq!(of_stripe, column(&repair, len, stripe), "{k}+{r}, {len} bytes");
                    }
                    round_trip(&mut decoder, k, r, len, cuts, &esis);
                }
            }
        }
    }

    #[test]
    fn repair_alone_restores_everything() {
        for (k, r) in [(1, 1), (1, 2), (1, 1000), (2, 2), (3, 5), (16, 16), (17, 40), (883, 883)] {
            let last: Vec<u16> = (r as u16..(k + r) as u16).collect();
            round_trip(&mut StripeDecoder::new(), k, r, 66, 2, &last);
        }
    }

    #[test]
    fn without_repair_there_is_nothing_to_restore() {
        round_trip(&mut StripeDecoder::new(), 5, 0, 130, 2, &[4, 0, 2, 1, 3]);
        assert_eq!(encode(5, 0, 130, &source(5, 130)), []);
    }

    #[test]
    fn the_largest_block() {
        let half = (16_384..49_152).collect::<Vec<u16>>();
        round_trip(&mut StripeDecoder::new(), MAX_SOURCE_SYMBOLS, MAX_REPAIR_SYMBOLS, 2, 1, &half);
        assert!(supported(MAX_SOURCE_SYMBOLS, 0) && supported(1, MAX_REPAIR_SYMBOLS));
        assert!(
            !supported(0, 1) && !supported(MAX_SOURCE_SYMBOLS + 1, 1) && !supported(usize::MAX, usize::MAX)
        );
        assert!(!supported(1, MAX_REPAIR_SYMBOLS + 1));
    }

    /// These bytes freeze the code, because no RFC does. If they change, every bundle ever packed is void.
    /// Source byte i of a block is i^3 mod 251; a counting pattern would continue in the repair symbols.
    #[test]
    fn golden_vectors() {
        fn vector(k: usize, r: usize, len: usize) -> Vec<u8> {
            let cubes: Vec<u8> = (0..k * len).map(|i| (i * i * i % 251) as u8).collect();
            encode(k, r, len, &cubes)
        }
        fn hex(bytes: &[u8]) -> String {
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        }
        assert_eq!(hex(&vector(3, 3, 8)), "43222af691d70938df50fd8fb52caa841411614f9dea55f0");
        assert_eq!(hex(&vector(2, 3, 8)), "c772d5358d29ce60cd902a6213e9fc4cccbed43c7d6a26e2");
        assert_eq!(hex(&vector(6, 2, 4)), "9a994ac585cad69b");
        // With a short last group: K = R, the high-rate code, the low-rate code.
        let hash = |k, r| blake3::hash(&vector(k, r, 130)).to_hex().to_string();
        assert_eq!(hash(100, 100), "66eca9ca6b5f7d86a66dff61e512b9d5dd8523250c134d9b73b8569c076abd41");
        assert_eq!(hash(100, 30), "72cd8f6f94e4a54ed47fba30cb8c97296cfd629b9539bb249d88ff62c0e79d54");
        assert_eq!(hash(30, 100), "1619e5b6fbfb6313b3beac8ce5f8ef830a7c05ab6e9350275843a97b90ee9621");
    }

    #[test]
    fn another_r_may_be_another_code() {
        let source = source(6, 8);
        assert_ne!(encode(6, 2, 8, &source), encode(6, 8, 8, &source)[..16]);
        assert_ne!(encode(6, 2, 8, &source), encode(6, 4, 8, &source)[..16]);
        // From the power of two at or above K on (5..=8 repair symbols here) more is merely more.
        assert_eq!(encode(6, 5, 8, &source), encode(6, 100, 8, &source)[..40]);
    }

    #[test]
    fn the_encoder_refuses_and_lives_on() {
        let mut encoder = BlockEncoder::new();
        let mut repair = [0; 16];
        let bad = [
            (0, 2, 8, 0, FecError::Geometry { k: 0, r: 2 }),
            (2, 32_769, 8, 16, FecError::Geometry { k: 2, r: 32_769 }),
            (2, 2, 7, 14, FecError::SymbolLen { len: 7 }),
            (2, 2, 0, 0, FecError::SymbolLen { len: 0 }),
            (2, 2, 65_536, 16, FecError::SymbolLen { len: 65_536 }),
            (2, 2, 8, 15, FecError::Length { wanted: 16, got: 15 }),
            (2, 3, 8, 16, FecError::Length { wanted: 24, got: 16 }),
        ];
        for (k, r, len, given, error) in bad {
            assert_eq!(encoder.encode(k, r, len, &[1; 16][..given], &mut repair), Err(error));
            assert_eq!(repair, [0; 16]);
            encoder.encode(2, 2, 8, &[1; 16], &mut repair).unwrap();
            assert_eq!(repair[..], encode(2, 2, 8, &[1; 16]));
            repair = [0; 16];
        }
    }

    #[test]
    fn the_decoder_refuses_and_lives_on() {
        let (source, mut decoder) = (source(3, 8), StripeDecoder::new());
        let repair = encode(3, 2, 8, &source);
        assert_eq!(decoder.add(0, &[0; 8]), Err(FecError::NotBegun));
        assert_eq!(decoder.finish(|_, _| ()), Err(FecError::NotBegun));
        assert_eq!(decoder.begin(0, 2, 8), Err(FecError::Geometry { k: 0, r: 2 }));
        decoder.begin(3, 2, 8).unwrap();
        assert_eq!(decoder.begin(3, 2, 9), Err(FecError::SymbolLen { len: 9 }));
        assert_eq!(decoder.add(0, &[0; 8]), Err(FecError::NotBegun));
        decoder.begin(3, 2, 8).unwrap();
        decoder.add(4, &repair[8..]).unwrap();
        assert_eq!(decoder.add(4, &[0; 8]), Err(FecError::Double { esi: 4 }));
        assert_eq!(decoder.add(5, &[0; 8]), Err(FecError::OutOfRange { esi: 5, n: 5 }));
        assert_eq!(decoder.add(u16::MAX, &[0; 8]), Err(FecError::OutOfRange { esi: u16::MAX, n: 5 }));
        assert_eq!(decoder.add(1, &[0; 6]), Err(FecError::Length { wanted: 8, got: 6 }));
        decoder.add(1, &source[8..16]).unwrap();
        assert_eq!(decoder.add(1, &[0; 8]), Err(FecError::Double { esi: 1 }));
        assert_eq!(decoder.finish(|_, _| ()), Err(FecError::TooFew { have: 2, k: 3 }));
        decoder.add(3, &repair[..8]).unwrap();
        assert_eq!(decoder.add(2, &[0; 8]), Err(FecError::Surplus { esi: 2, k: 3 }));
        let mut restored = Vec::new();
        decoder.finish(|esi, bytes| restored.push((esi, bytes.to_vec()))).unwrap();
        assert_eq!(restored, [(0, source[..8].to_vec()), (2, source[16..].to_vec())]);
        assert_eq!(decoder.finish(|_, _| ()), Err(FecError::NotBegun));
    }
}
