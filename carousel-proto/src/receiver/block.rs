//! The map of one block: K places and what stands where.
//!
//! A source symbol prefers its own place. A repair symbol, or a source symbol whose place is taken, is parked
//! in a place that is still free, so the file never holds more than the object and one spare symbol per
//! block. *Verified* symbols push *unverified* ones out, never the other way round.

use super::Standing;
use crate::geometry::{Esi, Geometry, Sbn};
use blake3::hazmat::ChainingValue;

/// Content of a place in which nothing stands.
pub const EMPTY_PLACE: u16 = u16::MAX;

/// Bytes in the work file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// First byte.
    pub offset: u64,
    /// How many bytes of the symbol belong there: all, but for the last source symbol of a block.
    pub len: usize,
}

impl Place {
    /// Where the symbol `content` lies when it stands in `place` of block `sbn`. The last place of a block is
    /// mostly too short for a whole symbol, so anything but its own lies in the block's spare place behind
    /// the object, which the final truncation removes.
    pub fn new(geometry: &Geometry, sbn: Sbn, place: u16, content: Esi) -> Self {
        let t = geometry.symbol_len();
        let at = usize::from(place) * t;
        let room = geometry.block_len(sbn) - at;
        if room >= t || content.0 == place {
            Self { offset: geometry.block_offset(sbn) + at as u64, len: room.min(t) }
        } else {
            Self { offset: geometry.size() + u64::from(sbn.0) * t as u64, len: t }
        }
    }
}

/// A block that can be decoded.
#[derive(Debug, Clone)]
pub struct BlockJob {
    /// Which.
    pub sbn: Sbn,
    /// ESI of what stands in each of the K places; [`EMPTY_PLACE`] nowhere.
    pub places: Vec<u16>,
    /// Source symbols.
    pub k: u16,
    /// Repair symbols that exist.
    pub r: u16,
    /// What [`crate::pages::block_value`] of the finished block must be.
    pub expected: ChainingValue,
    /// Whether all K symbols were verified one by one; then a wrong hash is a second preimage or our fault.
    pub verified: bool,
}

/// What to do with a symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Write it into this place.
    Store(u16),
    /// It brings nothing new.
    Duplicate,
    /// It cannot be judged, and there is no room or no trust for such.
    Refused,
}

/// One block in work.
pub(super) struct Block {
    k: u16,
    r: u16,
    places: Vec<u16>,
    free: Bits,
    verified: Bits,
    held: Bits,
    verified_count: u32,
    unverified_count: u32,
    /// No tentative decoding with fewer verified symbols than this.
    attempt_at: u32,
    failed: bool,
}

impl Block {
    pub(super) fn new(geometry: &Geometry, sbn: Sbn) -> Self {
        let k = geometry.source_symbols(sbn);
        let mut free = Bits::new(u32::from(k));
        (0..u32::from(k)).for_each(|place| free.set(place));
        Self {
            k,
            r: geometry.repair_symbols(sbn),
            places: vec![EMPTY_PLACE; usize::from(k)],
            free,
            verified: Bits::new(u32::from(k)),
            held: Bits::new(geometry.symbols(sbn)),
            verified_count: 0,
            unverified_count: 0,
            attempt_at: u32::from(k) / 4,
            failed: false,
        }
    }

    /// Symbols held, verified or not.
    pub(super) fn held(&self) -> u32 {
        self.verified_count + self.unverified_count
    }

    pub(super) fn has_verified(&self, esi: Esi) -> bool {
        self.held.get(u32::from(esi.0))
            && self.place_of(esi).is_some_and(|place| self.verified.get(u32::from(place)))
    }

    /// A symbol whose leaf was right. The caller has asked [`Self::has_verified`].
    pub(super) fn admit_verified(&mut self, esi: Esi) -> Admission {
        let place = if self.held.get(u32::from(esi.0)) {
            // An unverified copy stands there: what is written now replaces it.
            let Some(place) = self.place_of(esi) else { return Admission::Duplicate };
            self.remove(place);
            place
        } else {
            // Nothing is pushed out while there is room: an unverified symbol is most likely a good one.
            match self.vacant_place(esi).or_else(|| self.unverified_place()) {
                Some(place) => {
                    self.remove(place);
                    place
                }
                None => return Admission::Duplicate, // K verified symbols: ready, or being decoded
            }
        };
        self.put(place, esi);
        self.verified.set(u32::from(place));
        self.verified_count += 1;
        Admission::Store(place)
    }

    /// A symbol whose page is not known.
    pub(super) fn admit_unverified(&mut self, esi: Esi) -> Admission {
        if self.held.get(u32::from(esi.0)) {
            return Admission::Duplicate;
        }
        if self.failed && self.verified_count < self.attempt_at {
            return Admission::Refused; // somebody forges: wait for proven symbols first
        }
        match self.vacant_place(esi) {
            Some(place) => {
                self.put(place, esi);
                self.unverified_count += 1;
                Admission::Store(place)
            }
            None => Admission::Refused,
        }
    }

    /// A symbol that stands in this place since an earlier run; whether both were free.
    pub(super) fn restore(&mut self, esi: Esi, place: u16, verified: bool) -> bool {
        let free = place < self.k && self.free.get(u32::from(place)) && !self.held.get(u32::from(esi.0));
        if free {
            self.put(place, esi);
        }
        if free && verified {
            self.verified.set(u32::from(place));
            self.verified_count += 1;
        } else {
            self.unverified_count += u32::from(free);
        }
        free
    }

    /// What became of a symbol that was stored there.
    pub(super) fn standing(&self, esi: Esi, place: u16) -> Standing {
        match self.places.get(usize::from(place)) {
            Some(content) if *content != esi.0 => Standing::Gone,
            Some(_) if self.verified.get(u32::from(place)) => Standing::Proven,
            Some(_) => Standing::Unproven,
            None => Standing::Gone,
        }
    }

    /// The page of an unverified symbol has come. Returns whether the symbol was thrown out.
    pub(super) fn resolve(&mut self, esi: Esi, proven: bool) -> bool {
        let Some(place) = self.place_of(esi).filter(|place| !self.verified.get(u32::from(*place))) else {
            return false; // meanwhile verified, or pushed out
        };
        if proven {
            self.unverified_count -= 1;
            self.verified.set(u32::from(place));
            self.verified_count += 1;
        } else {
            self.remove(place);
        }
        !proven
    }

    /// K symbols, and either all are verified or a tentative decoding is allowed.
    pub(super) fn is_ready(&self) -> bool {
        self.held() == u32::from(self.k)
            && (self.unverified_count == 0 || self.verified_count >= self.attempt_at)
    }

    /// A decoding gave the wrong hash. Forgets the unverified symbols (or, if there were none, all of them);
    /// the next tentative decoding waits for a quarter of the block more in verified symbols. Returns how many
    /// symbols were forgotten.
    pub(super) fn handle_failure(&mut self, job: BlockJob) -> u32 {
        self.places = job.places;
        let before = self.held();
        let all = self.unverified_count == 0;
        for place in 0..self.k {
            if all || !self.verified.get(u32::from(place)) {
                self.remove(place);
            }
        }
        self.failed = true;
        self.attempt_at = self.verified_count + (u32::from(self.k) / 4).max(1);
        before - self.held()
    }

    /// The map goes with the job, and comes back with [`Self::handle_failure`] if the hash was wrong.
    pub(super) fn job(&mut self, sbn: Sbn, expected: ChainingValue) -> BlockJob {
        let verified = self.unverified_count == 0;
        BlockJob { sbn, places: std::mem::take(&mut self.places), k: self.k, r: self.r, expected, verified }
    }

    fn put(&mut self, place: u16, esi: Esi) {
        self.places[usize::from(place)] = esi.0;
        self.held.set(u32::from(esi.0));
        self.free.clear(u32::from(place));
    }

    /// Empties a place, whatever stands there.
    fn remove(&mut self, place: u16) {
        let content = std::mem::replace(&mut self.places[usize::from(place)], EMPTY_PLACE);
        if content == EMPTY_PLACE {
            return;
        }
        self.held.clear(u32::from(content));
        self.free.set(u32::from(place));
        if self.verified.get(u32::from(place)) {
            self.verified.clear(u32::from(place));
            self.verified_count -= 1;
        } else {
            self.unverified_count -= 1;
        }
    }

    fn place_of(&self, esi: Esi) -> Option<u16> {
        if esi.0 < self.k && self.places[usize::from(esi.0)] == esi.0 {
            return Some(esi.0);
        }
        if !self.held.get(u32::from(esi.0)) {
            return None;
        }
        self.places.iter().position(|content| *content == esi.0).map(|place| place as u16)
    }

    /// A free place: a source symbol's own, else preferably one whose own symbol will not come. In the usual
    /// order the quarter of the source symbols before or after (in pairs) is the farthest away in time, hence
    /// the exclusive or.
    fn vacant_place(&self, esi: Esi) -> Option<u16> {
        let k = u32::from(self.k);
        let start = if esi.0 < self.k {
            u32::from(esi.0)
        } else {
            let scaled = u32::from(esi.0 - self.k) * k / u32::from(self.r.max(1));
            let quarter = (k / 4).max(1);
            let other = ((scaled / quarter) ^ 1) * quarter + scaled % quarter;
            if other < k { other } else { scaled % k }
        };
        self.free.next(start).or_else(|| self.free.next(0)).map(|place| place as u16)
    }

    fn unverified_place(&self) -> Option<u16> {
        (0..self.k).find(|place| !self.verified.get(u32::from(*place)))
    }
}

/// A fixed set of small numbers.
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: u32) -> Self {
        Self(vec![0; len.div_ceil(64) as usize])
    }

    fn get(&self, at: u32) -> bool {
        self.0[at as usize / 64] >> (at % 64) & 1 == 1
    }

    fn set(&mut self, at: u32) {
        self.0[at as usize / 64] |= 1 << (at % 64);
    }

    fn clear(&mut self, at: u32) {
        self.0[at as usize / 64] &= !(1 << (at % 64));
    }

    /// The least member from `at` on.
    fn next(&self, at: u32) -> Option<u32> {
        let first = at as usize / 64;
        let mut mask = u64::MAX << (at % 64);
        for (index, word) in self.0.iter().enumerate().skip(first) {
            let word = word & mask;
            if word != 0 {
                return Some(index as u32 * 64 + word.trailing_zeros());
            }
            mask = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry() -> Geometry {
        Geometry::new(65_536, 1188, 16, 56, 0).unwrap()
    }

    #[test]
    fn the_last_place_overflows_into_the_spare() {
        let g = geometry();
        let own = Place::new(&g, Sbn(0), 55, Esi(55));
        assert_eq!(own, Place { offset: 55 * 1188, len: 65_536 - 55 * 1188 });
        assert_eq!(Place::new(&g, Sbn(0), 55, Esi(60)), Place { offset: 65_536, len: 1188 });
        assert_eq!(Place::new(&g, Sbn(0), 54, Esi(60)), Place { offset: 54 * 1188, len: 1188 });
    }

    #[test]
    fn a_failed_attempt_keeps_the_verified_and_raises_the_bar() {
        let mut block = Block::new(&geometry(), Sbn(0));
        (0..20).for_each(|e| assert!(matches!(block.admit_verified(Esi(e)), Admission::Store(_))));
        (20..56).for_each(|e| assert!(matches!(block.admit_unverified(Esi(e)), Admission::Store(_))));
        assert!(block.is_ready());
        let job = block.job(Sbn(0), [0; 32]);
        assert_eq!(block.handle_failure(job), 36);
        assert_eq!((block.verified_count, block.unverified_count), (20, 0));
        assert_eq!(block.admit_unverified(Esi(30)), Admission::Refused);
        (56..70).for_each(|e| assert!(matches!(block.admit_verified(Esi(e)), Admission::Store(_))));
        assert!(matches!(block.admit_unverified(Esi(30)), Admission::Store(_)));
    }

    #[test]
    fn nothing_is_pushed_out_while_there_is_room() {
        let mut block = Block::new(&geometry(), Sbn(0));
        (56..84).for_each(|e| assert!(matches!(block.admit_unverified(Esi(e)), Admission::Store(_))));
        (0..28).for_each(|e| assert!(matches!(block.admit_verified(Esi(e)), Admission::Store(_))));
        assert_eq!((block.verified_count, block.unverified_count), (28, 28));
    }

    #[test]
    fn forgeries_never_keep_a_verified_symbol_out() {
        let mut block = Block::new(&geometry(), Sbn(0));
        (56..112).for_each(|e| assert!(matches!(block.admit_unverified(Esi(e)), Admission::Store(_))));
        assert!(!block.is_ready(), "nothing is verified yet");
        for e in 0..56 {
            assert_eq!(block.admit_verified(Esi(e)), Admission::Store(e));
        }
        assert!(block.is_ready() && block.unverified_count == 0);
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_itself(steps in proptest::collection::vec((0u16..112, 0u8..5), 1..400)) {
            let mut block = Block::new(&geometry(), Sbn(0));
            for (esi, what) in steps {
                let esi = Esi(esi);
                match what {
                    0 | 1 if !block.has_verified(esi) => {
                        if let Admission::Store(p) = block.admit_verified(esi) {
                            prop_assert_eq!(block.places[usize::from(p)], esi.0);
                        }
                    }
                    2 | 3 => {
                        if let Admission::Store(p) = block.admit_unverified(esi) {
                            prop_assert_eq!(block.places[usize::from(p)], esi.0);
                        }
                    }
                    4 => { block.resolve(esi, esi.0.is_multiple_of(2)); }
                    _ => {}
                }
                let standing: Vec<u16> =
                    block.places.iter().copied().filter(|c| *c != EMPTY_PLACE).collect();
                prop_assert_eq!(standing.len() as u32, block.held());
                for content in standing {
                    prop_assert!(block.held.get(u32::from(content)));
                    prop_assert_eq!(block.places.iter().filter(|c| **c == content).count(), 1);
                }
                let verified = (0..56).filter(|p| block.verified.get(*p)).count() as u32;
                prop_assert_eq!(verified, block.verified_count);
                if block.held() == 56 && block.unverified_count == 0 { break; }
            }
        }
    }
}
