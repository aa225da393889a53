//! The arithmetic of the erasure code on x86-64 CPUs with GFNI: the transforms of `reed-solomon-simd`, to the
//! bit, in less than half the time. CPUs without GFNI get the library's own.
//!
//! A product with a constant of GF(2^16) is linear in the 16 bits of the other factor. Cut into bytes, it is
//! four matrices of 8 x 8 bits, and `gf2p8affineqb` multiplies bytes by such a matrix:
//!
//! ```text
//!   low  half of the product = A x low half + B x high half     A B  = the
//!   high half of the product = C x low half + D x high half     C D  = constant
//! ```
//!
//! The transform is the one of Lin, Chung and Han, "Novel Polynomial Basis and Its Application to Reed-Solomon
//! Erasure Codes" (2014): log2(n) layers of butterflies over n symbols. Two layers are done at a time, so that
//! symbols are loaded half as often; and what has been split into parts that fit the cache is finished part by
//! part. Order does not matter to the result, for field arithmetic is exact.

// Vector loads and stores, and calls of what needs CPU features.
#![allow(unsafe_code)]

use std::sync::OnceLock;

use reed_solomon_simd::engine::tables::{self, Exp};
use reed_solomon_simd::engine::{DefaultEngine, Engine, GF_ORDER, GfElement, ShardsRefMut};

use super::decoder;

/// A group: 32 low bytes and 32 high bytes of as many field elements.
type Group = [u8; 64];

/// Parts of so many bytes are not cut further: half of a common second-level cache.
const CACHED: usize = 256 << 10;

/// The fastest arithmetic that this CPU can do.
pub(super) enum Fastest {
    Gfni(Gfni),
    Library(DefaultEngine),
}

impl Fastest {
    pub(super) fn new() -> Self {
        match Gfni::detect() {
            Some(gfni) => Self::Gfni(gfni),
            None => Self::Library(DefaultEngine::new()),
        }
    }
}

impl Engine for Fastest {
    fn fft(&self, data: &mut ShardsRefMut<'_>, pos: usize, size: usize, truncated: usize, skew_delta: usize) {
        match self {
            Self::Gfni(gfni) => gfni.fft(data, &Part { pos, size, truncated, skew_delta }),
            Self::Library(library) => library.fft(data, pos, size, truncated, skew_delta),
        }
    }

    fn ifft(
        &self,
        data: &mut ShardsRefMut<'_>,
        pos: usize,
        size: usize,
        truncated: usize,
        skew_delta: usize,
    ) {
        match self {
            Self::Gfni(gfni) => gfni.ifft(data, &Part { pos, size, truncated, skew_delta }),
            Self::Library(library) => library.ifft(data, pos, size, truncated, skew_delta),
        }
    }

    fn mul(&self, x: &mut [Group], log_m: GfElement) {
        match self {
            Self::Gfni(gfni) => gfni.mul(x, log_m),
            Self::Library(library) => library.mul(x, log_m),
        }
    }
}

/// The decoder's other work on all rows: the same code for any CPU, but with the longest vectors there are.
pub(super) fn add_derivative(rows: &mut [Group], groups: usize, other: Option<&[Group]>) {
    #[target_feature(enable = "avx512f")]
    fn wide(rows: &mut [Group], groups: usize, other: Option<&[Group]>) {
        decoder::add_derivative(rows, groups, other);
    }

    #[target_feature(enable = "avx2")]
    fn narrow(rows: &mut [Group], groups: usize, other: Option<&[Group]>) {
        decoder::add_derivative(rows, groups, other);
    }

    if is_x86_feature_detected!("avx512f") {
        // SAFETY: just detected.
        unsafe { wide(rows, groups, other) }
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: just detected.
        unsafe { narrow(rows, groups, other) }
    } else {
        decoder::add_derivative(rows, groups, other);
    }
}

/// What a transform is done on: symbols `pos .. pos + size`, of which those from `truncated` on are zeros
/// before the inverse transform, and of no interest after the forward one.
#[derive(Clone, Copy)]
struct Part {
    pos: usize,
    size: usize,
    truncated: usize,
    skew_delta: usize,
}

impl Part {
    /// Its four quarters, as far as there is something to do.
    fn quarters(self) -> impl Iterator<Item = Self> {
        let size = self.size / 4;
        (0..4).map(move |i| i * size).filter(move |at| *at < self.truncated).map(move |at| Self {
            pos: self.pos + at,
            size,
            truncated: (self.truncated - at).min(size),
            skew_delta: self.skew_delta + at,
        })
    }
}

/// Proof that the CPU has GFNI and AVX2; `wide` if it has AVX-512, too.
#[derive(Clone, Copy)]
pub(super) struct Gfni {
    factors: &'static [Factor],
    exp: &'static Exp,
    wide: bool,
}

impl Gfni {
    fn detect() -> Option<Self> {
        let has_gfni = is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx2");
        has_gfni.then(|| Self {
            factors: factors(),
            exp: &tables::get_exp_log().exp,
            wide: is_x86_feature_detected!("avx512f"),
        })
    }

    /// From coefficients to values: the wide layers first, so that parts become independent.
    fn fft(&self, data: &mut ShardsRefMut<'_>, part: &Part) {
        if part.size >= 16 && part.size * size_of_val(&data[part.pos]) > CACHED {
            self.layers::<false>(data, part, part.size / 4);
            part.quarters().for_each(|quarter| self.fft(data, &quarter));
        } else {
            self.layers::<false>(data, part, 1);
        }
    }

    /// From values to coefficients: the same, backwards.
    fn ifft(&self, data: &mut ShardsRefMut<'_>, part: &Part) {
        if part.size >= 16 && part.size * size_of_val(&data[part.pos]) > CACHED {
            part.quarters().for_each(|quarter| self.ifft(data, &quarter));
            self.layers::<true>(data, part, part.size / 4);
        } else {
            self.layers::<true>(data, part, 1);
        }
    }

    /// The layers of a part whose butterflies are at least `least` symbols wide.
    fn layers<const INVERSE: bool>(&self, data: &mut ShardsRefMut<'_>, part: &Part, least: usize) {
        if self.wide {
            // SAFETY: `detect` found the features.
            unsafe { wide::layers::<INVERSE>(self, data, part, least) }
        } else {
            // SAFETY: `detect` found the features.
            unsafe { narrow::layers::<INVERSE>(self, data, part, least) }
        }
    }

    fn mul(&self, x: &mut [Group], log_m: GfElement) {
        let factor = &self.factors[usize::from(self.exp[usize::from(log_m)])];
        if self.wide {
            // SAFETY: `detect` found the features.
            unsafe { wide::mul(x, factor) }
        } else {
            // SAFETY: `detect` found the features.
            unsafe { narrow::mul(x, factor) }
        }
    }
}

/// A constant as four matrices: what it makes of low bytes to low bytes, of high to low, of low to high, and
/// of high to high.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Factor([u64; 4]);

impl Factor {
    const ZERO: Self = Self([0; 4]);

    /// The constant whose products with the 16 elements of one bit are these.
    fn new(products: [GfElement; 16]) -> Self {
        let matrix = |products: &[GfElement], shift: usize| {
            // Column j is the product with bit j; `gf2p8affineqb` wants rows, the one of bit 7 first.
            let mut rows = [0; 8];
            for (i, row) in rows.iter_mut().enumerate() {
                let bit = |(j, product): (usize, &GfElement)| ((product >> (shift + 7 - i)) as u8 & 1) << j;
                *row = products.iter().enumerate().map(bit).fold(0, |a, b| a | b);
            }
            u64::from_le_bytes(rows)
        };
        let (of_low, of_high) = products.split_at(8);
        Self([matrix(of_low, 0), matrix(of_high, 0), matrix(of_low, 8), matrix(of_high, 8)])
    }
}

/// Every constant: 2 MiB.
fn factors() -> &'static [Factor] {
    static FACTORS: OnceLock<Vec<Factor>> = OnceLock::new();
    FACTORS.get_or_init(|| {
        let tables::ExpLog { exp, log } = tables::get_exp_log();
        let bits: [Factor; 16] = std::array::from_fn(|i| {
            Factor::new(std::array::from_fn(|j| tables::mul(1 << j, log[1 << i], exp, log)))
        });
        let mut factors = vec![Factor::ZERO; GF_ORDER];
        for m in 1..GF_ORDER {
            // Matrices add as their constants do.
            let (bit, rest) = (&bits[m.trailing_zeros() as usize].0, &factors[m & (m - 1)].0);
            factors[m] = Factor(std::array::from_fn(|i| bit[i] ^ rest[i]));
        }
        factors
    })
}

/// The transforms, once for each width: they differ in what a group in registers is.
macro_rules! transforms {
    ($features:tt) => {
        /// See [`Gfni::layers`].
        #[target_feature(enable = $features)]
        pub(super) fn layers<const INVERSE: bool>(
            gfni: &Gfni,
            data: &mut ShardsRefMut<'_>,
            part: &Part,
            least: usize,
        ) {
            // With an odd number of layers one is left over: the narrowest, which are neighbours.
            let is_odd = !part.size.ilog2().is_multiple_of(2);
            let narrowest = if is_odd { 2 } else { 1 };
            if INVERSE {
                if is_odd && least == 1 {
                    pairs::<INVERSE>(gfni, data, part);
                }
                let mut dist = narrowest.max(least);
                while dist * 4 <= part.size {
                    fours::<INVERSE>(gfni, data, part, dist);
                    dist *= 4;
                }
            } else {
                let mut dist = part.size / 4;
                while dist >= narrowest.max(least) {
                    fours::<INVERSE>(gfni, data, part, dist);
                    dist /= 4;
                }
                if is_odd && least == 1 {
                    pairs::<INVERSE>(gfni, data, part);
                }
            }
        }

        /// Two layers: of butterflies 2 x `dist` wide and of those `dist` wide.
        #[target_feature(enable = $features)]
        fn fours<const INVERSE: bool>(gfni: &Gfni, data: &mut ShardsRefMut<'_>, part: &Part, dist: usize) {
            for first in (0..part.truncated).step_by(dist * 4) {
                // In this basis, what a butterfly multiplies by is its place in its layer.
                let at = (first + part.skew_delta) / dist;
                let (near, far, other) = (&gfni.factors[at], &gfni.factors[at / 2], &gfni.factors[at + 2]);
                let factors = [constant(near), constant(far), constant(other)];
                for place in part.pos + first..part.pos + first + dist {
                    let symbols = data.dist4_mut(place, dist);
                    if at == 0 {
                        four::<INVERSE, true>(symbols, factors);
                    } else {
                        four::<INVERSE, false>(symbols, factors);
                    }
                }
            }
        }

        /// Butterflies among four symbols. `FIRST` says that two factors are zero, as they are where a transform
        /// without skew begins.
        #[inline]
        #[target_feature(enable = $features)]
        fn four<const INVERSE: bool, const FIRST: bool>(
            (a, b, c, d): (&mut [Group], &mut [Group], &mut [Group], &mut [Group]),
            [near, far, other]: [Constant; 3],
        ) {
            for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                let (mut w, mut x, mut y, mut z) = (load(a), load(b), load(c), load(d));
                if INVERSE {
                    x = add(x, w);
                    z = add(z, y);
                    if !FIRST {
                        w = add_product(w, x, near);
                    }
                    y = add_product(y, z, other);
                    y = add(y, w);
                    z = add(z, x);
                    if !FIRST {
                        w = add_product(w, y, far);
                        x = add_product(x, z, far);
                    }
                } else {
                    if !FIRST {
                        w = add_product(w, y, far);
                        x = add_product(x, z, far);
                    }
                    y = add(y, w);
                    z = add(z, x);
                    if !FIRST {
                        w = add_product(w, x, near);
                    }
                    y = add_product(y, z, other);
                    x = add(x, w);
                    z = add(z, y);
                }
                store(a, w);
                store(b, x);
                store(c, y);
                store(d, z);
            }
        }

        /// The layer of butterflies between neighbours.
        #[target_feature(enable = $features)]
        fn pairs<const INVERSE: bool>(gfni: &Gfni, data: &mut ShardsRefMut<'_>, part: &Part) {
            for first in (0..part.truncated).step_by(2) {
                let factor = constant(&gfni.factors[first + part.skew_delta]);
                let (a, b) = data.dist2_mut(part.pos + first, 1);
                for (a, b) in a.iter_mut().zip(b) {
                    let (mut x, mut y) = (load(a), load(b));
                    if INVERSE {
                        y = add(y, x);
                        x = add_product(x, y, factor);
                    } else {
                        x = add_product(x, y, factor);
                        y = add(y, x);
                    }
                    store(a, x);
                    store(b, y);
                }
            }
        }

        #[target_feature(enable = $features)]
        pub(super) fn mul(x: &mut [Group], factor: &Factor) {
            let factor = constant(factor);
            for group in x {
                let product = add_product(zero(), load(group), factor);
                store(group, product);
            }
        }
    };
}

/// A group is one register of 512 bits.
mod wide {
    use std::arch::x86_64::*;

    use super::*;

    /// A and D for the halves where they are, B and C for the halves swapped.
    type Constant = (__m512i, __m512i);

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn constant(&Factor([a, b, c, d]): &Factor) -> Constant {
        let [a, b, c, d] = [a, b, c, d].map(u64::cast_signed);
        (_mm512_setr_epi64(a, a, a, a, d, d, d, d), _mm512_setr_epi64(b, b, b, b, c, c, c, c))
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn load(group: &Group) -> __m512i {
        // SAFETY: a group has 64 bytes, wherever they lie.
        unsafe { _mm512_loadu_si512(group.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn store(group: &mut Group, x: __m512i) {
        // SAFETY: a group has 64 bytes, wherever they lie.
        unsafe { _mm512_storeu_si512(group.as_mut_ptr().cast(), x) }
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn zero() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn add(x: __m512i, y: __m512i) -> __m512i {
        _mm512_xor_si512(x, y)
    }

    /// x + y times the constant.
    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    fn add_product(x: __m512i, y: __m512i, (straight, crossed): Constant) -> __m512i {
        const SWAP_HALVES: i32 = 0b01_00_11_10;
        const XOR: i32 = 0b1001_0110;
        let swapped = _mm512_shuffle_i64x2::<SWAP_HALVES>(y, y);
        let straight = _mm512_gf2p8affine_epi64_epi8::<0>(y, straight);
        let crossed = _mm512_gf2p8affine_epi64_epi8::<0>(swapped, crossed);
        _mm512_ternarylogic_epi64::<XOR>(x, straight, crossed)
    }

    transforms!("gfni,avx512f");
}

/// A group is two registers of 256 bits: low and high bytes.
mod narrow {
    use std::arch::x86_64::*;

    use super::*;

    type Constant = [__m256i; 4];

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn constant(factor: &Factor) -> Constant {
        let [a, b, c, d] = factor.0.map(u64::cast_signed);
        [_mm256_set1_epi64x(a), _mm256_set1_epi64x(b), _mm256_set1_epi64x(c), _mm256_set1_epi64x(d)]
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn load(group: &Group) -> (__m256i, __m256i) {
        let at = group.as_ptr().cast::<__m256i>();
        // SAFETY: a group has 64 bytes, wherever they lie.
        unsafe { (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))) }
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn store(group: &mut Group, (low, high): (__m256i, __m256i)) {
        let at = group.as_mut_ptr().cast::<__m256i>();
        // SAFETY: a group has 64 bytes, wherever they lie.
        unsafe {
            _mm256_storeu_si256(at, low);
            _mm256_storeu_si256(at.add(1), high);
        }
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn zero() -> (__m256i, __m256i) {
        (_mm256_setzero_si256(), _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn add(x: (__m256i, __m256i), y: (__m256i, __m256i)) -> (__m256i, __m256i) {
        (_mm256_xor_si256(x.0, y.0), _mm256_xor_si256(x.1, y.1))
    }

    /// x + y times the constant.
    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    fn add_product(
        x: (__m256i, __m256i),
        (low, high): (__m256i, __m256i),
        [a, b, c, d]: Constant,
    ) -> (__m256i, __m256i) {
        let to_low =
            (_mm256_gf2p8affine_epi64_epi8::<0>(low, a), _mm256_gf2p8affine_epi64_epi8::<0>(high, b));
        let to_high =
            (_mm256_gf2p8affine_epi64_epi8::<0>(low, c), _mm256_gf2p8affine_epi64_epi8::<0>(high, d));
        let product = (_mm256_xor_si256(to_low.0, to_low.1), _mm256_xor_si256(to_high.0, to_high.1));
        add(x, product)
    }

    transforms!("gfni,avx2");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reed_solomon_simd::engine::NoSimd;

    use super::*;

    /// Every width that this CPU has; none without GFNI.
    fn engines() -> Vec<Gfni> {
        let Some(gfni) = Gfni::detect() else {
            eprintln!("NOT TESTED: this CPU has no GFNI, so only the library's arithmetic runs here");
            return Vec::new();
        };
        if !gfni.wide {
            eprintln!("NOT TESTED: this CPU has no AVX-512, so only the narrow arithmetic runs here");
        }
        let narrow = Gfni { wide: false, ..gfni };
        if gfni.wide { vec![gfni, narrow] } else { vec![narrow] }
    }

    fn random(groups: usize, seed: u64) -> Vec<Group> {
        let mut bytes = vec![[0; 64]; groups];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(bytes.as_flattened_mut());
        bytes
    }

    /// Both transforms of the symbols from `pos` on, by both engines.
    fn compare(part: Part, groups: usize, seed: u64) {
        let Part { pos, size, truncated, skew_delta } = part;
        let count = pos + size + 1; // the last one must stay as it is
        let before = random(count * groups, seed);
        let slow = NoSimd::new();
        let run = |transform: &dyn Fn(&mut ShardsRefMut<'_>), zeros: bool| {
            let mut data = before.clone();
            let mut shards = ShardsRefMut::new(count, groups, &mut data);
            if zeros {
                shards.zero(pos + truncated..pos + size);
            }
            transform(&mut shards);
            data
        };
        for engine in engines() {
            for zeros in [false, true] {
                let wanted = run(&|data| slow.fft(data, pos, size, truncated, skew_delta), zeros);
                let got = run(&|data| engine.fft(data, &part), zeros);
                let of_interest = |data: &[Group]| {
                    [&data[..(pos + truncated) * groups], &data[(pos + size) * groups..]].concat()
                };
                assert!(of_interest(&wanted) == of_interest(&got), "FFT of {size}, {truncated}");
            }
            let wanted = run(&|data| slow.ifft(data, pos, size, truncated, skew_delta), true);
            assert!(wanted == run(&|data| engine.ifft(data, &part), true), "IFFT of {size}, {truncated}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn transforms_are_the_librarys(
            log in 0..=9_u32, pos in 0..5_usize, part in 0.0..=1.0, skew in 0..20_usize,
            groups in 1..=4_usize, seed: u64,
        ) {
            let size = 1 << log;
            let truncated = ((size as f64 * part) as usize).max(1);
            compare(Part { pos, size, truncated, skew_delta: skew * size }, groups, seed);
        }

        #[test]
        fn products_are_the_librarys(log_m: u16, groups in 0..=5_usize, seed: u64) {
            for log_m in [log_m, 0, 1, u16::MAX - 1, u16::MAX] {
                let mut wanted = random(groups, seed);
                NoSimd::new().mul(&mut wanted, log_m);
                for engine in engines() {
                    let mut got = random(groups, seed);
                    engine.mul(&mut got, log_m);
                    prop_assert!(got == wanted);
                }
            }
        }
    }

    #[test]
    fn parts_that_do_not_fit_the_cache() {
        for (log, groups) in [(10, 9), (11, 3), (12, 2), (13, 1), (14, 1), (15, 1)] {
            let size = 1 << log;
            for truncated in [size, size * 7 / 10, size / 4 + 1, 1] {
                compare(Part { pos: 1, size, truncated, skew_delta: 0 }, groups, 1);
            }
            compare(Part { pos: 0, size, truncated: size, skew_delta: size }, groups, 2);
        }
    }

    #[test]
    fn the_derivative_is_the_same_with_any_vectors() {
        for (rows, groups) in [(1, 1), (2, 3), (64, 1), (128, 5)] {
            let (mut wanted, other) = (random(rows * groups, 3), random(rows * groups, 4));
            let mut got = wanted.clone();
            add_derivative(&mut got, groups, Some(&other));
            // As PROTOCOL.md section 10.5 puts it.
            for i in 1..rows {
                let width = 1 << i.trailing_zeros();
                let from = wanted[i * groups..(i + width) * groups].to_vec();
                let to = &mut wanted[(i - width) * groups..i * groups];
                to.as_flattened_mut().iter_mut().zip(from.as_flattened()).for_each(|(a, b)| *a ^= b);
            }
            wanted.as_flattened_mut().iter_mut().zip(other.as_flattened()).for_each(|(a, b)| *a ^= b);
            assert!(got == wanted);
        }
    }
}
