//! Decoding, as PROTOCOL.md section 10.5 says: locator, inverse transform, derivative, transform, division.
//!
//! `reed-solomon-simd` has all of it but knows three things less. Stripes of a block lack the same symbols, so
//! one locator serves them all. The locator needs no more points than the block has. And where the points are two halves, as with the usual K and R they are, only
//! one half is wanted of the last transform. With values a, b of the halves, each transformed back by itself
//! to a', b', and D for the derivative:
//!
//! ```text
//!   coefficients  a'             a' + b'
//!   derivative    Da' + a' + b'  D(a' + b')
//!   and halved    Da' + a' + b'  Db' + a' + b'
//! ```
//!
//! So neither half needs the derivative of the other, and three transforms of half the size do instead of two
//! whole ones.

use std::ops::Range;

use reed_solomon_simd::engine::tables::get_exp_log;
use reed_solomon_simd::engine::{Engine, GF_MODULUS, GF_ORDER, GfElement, ShardsRefMut};

use super::{Fastest, GROUP};

type Group = [u8; GROUP];

/// The work memory of one stripe after another.
pub(super) struct Decoder {
    engine: Fastest,
    code: Code,
    /// Bytes of a symbol, and groups that these take.
    len: usize,
    groups: usize,
    /// A row for each point.
    work: Vec<Group>,
    /// Which points have a value.
    known: Vec<bool>,
    /// Logarithms of what the values are multiplied by, and for which known points of which code.
    locator: Vec<GfElement>,
    located: Option<(Code, Vec<bool>)>,
    /// The Walsh-Hadamard transform of the logarithms of as many elements as there are points.
    logs: Vec<GfElement>,
}

/// Where the points lie: `first` of them from zero on, `second` from `half` on.
#[derive(Clone, Copy, PartialEq)]
struct Code {
    is_high: bool,
    k: usize,
    r: usize,
    half: usize,
}

impl Code {
    fn new(k: usize, r: usize) -> Self {
        let (k2, r2) = (k.next_power_of_two(), r.next_power_of_two());
        let is_high = k2 > r2 || (k2 == r2 && k <= r);
        Self { is_high, k, r, half: if is_high { r2 } else { k2 } }
    }

    fn counts(&self) -> (usize, usize) {
        if self.is_high { (self.r, self.k) } else { (self.k, self.r) }
    }

    /// Points of both, without the rest of a transform.
    fn end(&self) -> usize {
        self.half + self.counts().1
    }

    fn size(&self) -> usize {
        self.end().next_power_of_two()
    }

    /// The points of the source symbols.
    fn source(&self) -> Range<usize> {
        if self.is_high { self.half..self.half + self.k } else { 0..self.k }
    }

    fn point(&self, esi: usize) -> usize {
        match (self.is_high, esi.checked_sub(self.k)) {
            (true, None) => self.half + esi,
            (true, Some(repair)) => repair,
            (false, None) => esi,
            (false, Some(repair)) => self.half + repair,
        }
    }
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            engine: Fastest::new(),
            code: Code::new(1, 1),
            len: 0,
            groups: 0,
            work: Vec::new(),
            known: Vec::new(),
            locator: Vec::new(),
            located: None,
            logs: Vec::new(),
        }
    }

    /// Forgets all symbols. `k`, `r` and `len` are known to be possible.
    pub(super) fn begin(&mut self, k: usize, r: usize, len: usize) {
        self.code = Code::new(k, r);
        (self.len, self.groups) = (len, len.div_ceil(GROUP));
        let wanted = self.code.size() * self.groups;
        if wanted > self.work.len() {
            // Growing in place would copy the old contents, and may reserve twice what is needed.
            self.work = Vec::new();
            self.work = vec![[0; GROUP]; wanted];
        }
        self.known.clear();
        self.known.resize(self.code.size(), false);
    }

    /// Whether the symbol was not there before.
    pub(super) fn add(&mut self, esi: usize, column: &[u8]) -> bool {
        let point = self.code.point(esi);
        if self.known[point] {
            return false;
        }
        self.known[point] = true;
        let row = &mut self.work[point * self.groups..][..self.groups];
        let (whole, rest) = column.split_at(column.len() - column.len() % GROUP);
        let (groups, last) = row.split_at_mut(whole.len() / GROUP);
        groups.as_flattened_mut().copy_from_slice(whole);
        if let Some(last) = last.first_mut() {
            let (low, high) = rest.split_at(rest.len() / 2);
            last[..low.len()].copy_from_slice(low);
            last[GROUP / 2..][..high.len()].copy_from_slice(high);
        }
        true
    }

    /// Hands out the source symbols that were not added. K symbols were.
    pub(super) fn restore(&mut self, mut restored: impl FnMut(u16, &[u8])) {
        let source = self.code.source();
        if self.known[source.clone()].iter().all(|known| *known) {
            return;
        }
        self.locate();
        for (point, row) in self.work.chunks_exact_mut(self.groups).take(self.known.len()).enumerate() {
            if self.known[point] {
                self.engine.mul(row, self.locator[point]);
            } else {
                row.fill([0; GROUP]);
            }
        }
        self.transform();
        for (esi, point) in source.enumerate().filter(|(_, point)| !self.known[*point]) {
            let row = &mut self.work[point * self.groups..][..self.groups];
            self.engine.mul(row, GF_MODULUS - self.locator[point]);
            let bytes = row.as_flattened_mut();
            let (short, whole) = (self.len % GROUP, self.len - self.len % GROUP);
            if short != 0 {
                bytes.copy_within(whole + GROUP / 2..whole + GROUP / 2 + short / 2, whole + short / 2);
            }
            restored(esi as u16, &bytes[..self.len]); // esi < k <= 32,768
        }
    }

    /// Evaluates the locator, unless the stripe before had the same one.
    fn locate(&mut self) {
        let code = self.code;
        if self.located.as_ref().is_some_and(|(of, known)| *of == code && *known == self.known) {
            return;
        }
        let size = code.size();
        if self.logs.len() != size {
            self.logs = get_exp_log().log[..size].to_vec();
            self.logs[0] = 0; // a point is not a factor of its own value
            walsh_hadamard(&mut self.logs);
        }
        // The locator's logarithm at x is the sum of log(x + y) over unknown points y: a convolution. Over all
        // 65,535 elements but zero, logarithms add up to zero. So the points of low rate that are not unknown,
        // few of all 65,536, give the same sum with its sign changed.
        let zeros = if code.is_high { code.end()..size } else { code.k..code.half };
        let is_factor = |(y, known): (usize, &bool)| (*known || zeros.contains(&y)) != code.is_high;
        self.locator.clear();
        self.locator.extend(self.known.iter().enumerate().map(is_factor).map(GfElement::from));
        walsh_hadamard(&mut self.locator);
        for (sum, log) in self.locator.iter_mut().zip(&self.logs) {
            *sum = reduce(u32::from(*sum) * u32::from(*log));
        }
        walsh_hadamard(&mut self.locator);
        // Forth and back multiplies by the size; and 2^16 is one.
        let share = (GF_ORDER / size) as u32;
        for sum in &mut self.locator {
            *sum = reduce(u32::from(*sum) * share);
            if !code.is_high {
                *sum = GF_MODULUS - *sum;
            }
        }
        self.located = Some((code, self.known.clone()));
    }

    /// From known values, multiplied, to the values wanted.
    fn transform(&mut self) {
        #[cfg(target_arch = "x86_64")]
        use super::gfni::add_derivative;

        let Self { engine, code, groups, .. } = self;
        let (size, half, (first, second)) = (code.size(), code.half, code.counts());
        let work = &mut self.work[..size * *groups];
        if size > half * 2 {
            let mut work = ShardsRefMut::new(size, *groups, work);
            engine.ifft(&mut work, 0, size, code.end(), 0);
            add_derivative(&mut self.work[..size * *groups], *groups, None);
            let mut work = ShardsRefMut::new(size, *groups, &mut self.work);
            engine.fft(&mut work, 0, size, code.source().end, 0);
            return;
        }
        let (low, high) = work.split_at_mut(half * *groups);
        engine.ifft(&mut ShardsRefMut::new(half, *groups, low), 0, half, first, 0);
        engine.ifft(&mut ShardsRefMut::new(half, *groups, high), 0, half, second, half);
        let (wanted, other, delta) = if code.is_high { (high, low, half) } else { (low, high, 0) };
        add_derivative(wanted, *groups, Some(other));
        engine.fft(&mut ShardsRefMut::new(half, *groups, wanted), 0, half, code.k, delta);
    }
}

/// Modulo 65,535, of which zero has two forms.
fn reduce(x: u32) -> GfElement {
    let sum = (x & 0xffff) + (x >> 16);
    ((sum & 0xffff) + (sum >> 16)) as GfElement
}

/// Sums and differences of all pairs, for each bit of their numbers; modulo 65,535.
fn walsh_hadamard(values: &mut [GfElement]) {
    let mut width = 1;
    while width < values.len() {
        for pair in values.chunks_exact_mut(width * 2) {
            let (low, high) = pair.split_at_mut(width);
            for (a, b) in low.iter_mut().zip(high) {
                let (sum, carry) = a.overflowing_add(*b);
                let (difference, borrow) = a.overflowing_sub(*b);
                (*a, *b) = (sum + u16::from(carry), difference - u16::from(borrow));
            }
        }
        width *= 2;
    }
}

/// Adds to the rows the derivative of the polynomial whose coefficients they are, and other rows.
///
/// That the rows themselves stay in the sum is wanted above; and of a whole transform it does no harm, because
/// there they were zero where values are wanted. Inlined, to be compiled for the CPU features of its caller.
#[inline(always)]
pub(super) fn add_derivative(rows: &mut [Group], groups: usize, other: Option<&[Group]>) {
    for number in 1..rows.len() / groups {
        // What is read was not changed before, and most of it is near.
        let width = (1 << number.trailing_zeros()) * groups;
        let (before, from) = rows.split_at_mut(number * groups);
        add(&mut before[number * groups - width..], &from[..width]);
    }
    if let Some(other) = other {
        add(rows, other);
    }
}

#[inline(always)]
fn add(rows: &mut [Group], others: &[Group]) {
    for (a, b) in rows.iter_mut().zip(others) {
        a.iter_mut().zip(b).for_each(|(a, b)| *a ^= b);
    }
}
