//! Hash pages that were verified lately, and symbols that came before theirs. Both are bounded; the oldest go.

use super::{Esi, Sbn};
use crate::pages::{LEAF_LEN, Leaf, PageNumber};
use std::collections::{BTreeMap, VecDeque};

/// Pages kept: with some 100 slots each, 25,000 packets of reordering, or many servers in different phases.
const PAGES: usize = 256;
/// Pages for which symbols may wait. A page comes just before its symbols: only reordering needs this.
const WAITING_PAGES: usize = 32;
/// Symbols that may wait for one page: no page has more slots.
const WAITING_SYMBOLS: usize = 255;

/// Leaves of the pages that were verified lately.
pub(super) struct PageCache {
    leaves_len: usize,
    /// Place of each page in `store`.
    index: BTreeMap<PageNumber, usize>,
    store: Vec<u8>,
    owners: Vec<PageNumber>,
    /// Pages that judged a symbol since the hand passed. They stay for another turn: whoever replays old pages
    /// cannot drive out those in use, because symbols of old pages are known and not judged again.
    used: Vec<bool>,
    hand: usize,
}

impl PageCache {
    pub(super) fn new(leaves_len: usize) -> Self {
        Self {
            leaves_len,
            index: BTreeMap::new(),
            store: Vec::new(),
            owners: Vec::new(),
            used: Vec::new(),
            hand: 0,
        }
    }

    pub(super) fn get(&self, page: PageNumber) -> Option<&[u8]> {
        let at = *self.index.get(&page)? * self.leaves_len;
        self.store.get(at..at + self.leaves_len)
    }

    pub(super) fn leaf(&self, page: PageNumber, index: usize) -> Option<&Leaf> {
        self.get(page)?.get(index * LEAF_LEN..(index + 1) * LEAF_LEN)?.try_into().ok()
    }

    /// A leaf of this page has judged a symbol.
    pub(super) fn mark(&mut self, page: PageNumber) {
        if let Some(place) = self.index.get(&page) {
            self.used[*place] = true;
        }
    }

    pub(super) fn insert(&mut self, page: PageNumber, leaves: &[u8]) {
        if self.owners.len() < PAGES {
            // All at once: growing would leave holes behind.
            self.store.reserve_exact(PAGES * self.leaves_len - self.store.len());
            self.index.insert(page, self.owners.len());
            self.owners.push(page);
            self.used.push(false);
            self.store.extend_from_slice(leaves);
            return;
        }
        while std::mem::replace(&mut self.used[self.hand], false) {
            self.hand = (self.hand + 1) % PAGES;
        }
        let place = self.hand;
        self.hand = (place + 1) % PAGES;
        self.index.remove(&self.owners[place]);
        self.owners[place] = page;
        self.index.insert(page, place);
        self.store[place * self.leaves_len..(place + 1) * self.leaves_len].copy_from_slice(leaves);
    }
}

/// A symbol that was stored before its page was known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub(super) index: usize,
    pub(super) leaf: Leaf,
    pub(super) sbn: Sbn,
    pub(super) esi: Esi,
}

/// The symbols that wait for a page. A symbol of the same block and ESI that is stored later takes the place
/// of the earlier one here too: a page must never vouch for bytes that were overwritten meanwhile.
#[derive(Default)]
pub(super) struct Waiting {
    pages: BTreeMap<PageNumber, Vec<(u64, Pending)>>,
    order: VecDeque<PageNumber>,
    /// Which entry speaks for the bytes on disk.
    current: BTreeMap<(Sbn, Esi), u64>,
    entries: u64,
}

impl Waiting {
    /// A symbol was stored unverified.
    pub(super) fn push(&mut self, page: PageNumber, pending: Pending) {
        if !self.pages.contains_key(&page) {
            if self.order.len() == WAITING_PAGES
                && let Some(oldest) = self.order.front().copied()
            {
                self.take(oldest);
            }
            self.order.push_back(page);
        }
        let symbols = self.pages.entry(page).or_default();
        if symbols.len() < WAITING_SYMBOLS {
            self.entries += 1;
            symbols.push((self.entries, pending));
            self.current.insert((pending.sbn, pending.esi), self.entries);
        } else {
            self.current.remove(&(pending.sbn, pending.esi));
        }
    }

    /// The symbols that waited for this page and still stand where they were stored.
    pub(super) fn take(&mut self, page: PageNumber) -> Vec<Pending> {
        let Some(mut symbols) = self.pages.remove(&page) else { return Vec::new() };
        self.order.retain(|other| *other != page);
        symbols.retain(|(entry, pending)| {
            let key = (pending.sbn, pending.esi);
            let speaks = self.current.get(&key) == Some(entry);
            if speaks {
                self.current.remove(&key);
            }
            speaks
        });
        symbols.into_iter().map(|(_, pending)| pending).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_keeps_the_latest_pages() {
        let mut cache = PageCache::new(LEAF_LEN);
        for n in 0..PAGES as u32 + 10 {
            cache.insert(PageNumber(n), &[n as u8; LEAF_LEN]);
        }
        assert!(cache.get(PageNumber(9)).is_none());
        assert_eq!(cache.leaf(PageNumber(10), 0), Some(&[10; LEAF_LEN]));
        assert_eq!(cache.leaf(PageNumber(265), 0), Some(&[9; LEAF_LEN]));
        assert_eq!(cache.leaf(PageNumber(265), 1), None);
        assert_eq!(cache.store.len(), PAGES * LEAF_LEN);
    }

    #[test]
    fn replayed_pages_do_not_drive_out_the_one_in_use() {
        let mut cache = PageCache::new(LEAF_LEN);
        cache.insert(PageNumber(7), &[7; LEAF_LEN]);
        for n in 1000..10_000 {
            cache.mark(PageNumber(7));
            cache.insert(PageNumber(n), &[0; LEAF_LEN]);
        }
        assert!(cache.get(PageNumber(7)).is_some());
    }

    #[test]
    fn waiting_is_bounded() {
        let mut waiting = Waiting::default();
        let pending = Pending { index: 0, leaf: [0; LEAF_LEN], sbn: Sbn(0), esi: Esi(0) };
        for n in 0..100_000u32 {
            waiting.push(PageNumber(n % 100), pending);
        }
        assert!(waiting.pages.len() <= WAITING_PAGES && waiting.order.len() == waiting.pages.len());
        assert!(waiting.pages.values().all(|s| s.len() <= WAITING_SYMBOLS));
        assert!(waiting.current.len() <= 1);
    }

    #[test]
    fn a_page_speaks_only_for_what_was_stored_last() {
        let mut waiting = Waiting::default();
        let honest = Pending { index: 3, leaf: [1; LEAF_LEN], sbn: Sbn(0), esi: Esi(5) };
        let forged = Pending { index: 9, leaf: [2; LEAF_LEN], ..honest };
        waiting.push(PageNumber(1), honest);
        waiting.push(PageNumber(2), forged); // the honest one was pushed out, then this was stored
        assert!(waiting.take(PageNumber(1)).is_empty());
        assert_eq!(waiting.take(PageNumber(2)).len(), 1);
        assert!(waiting.take(PageNumber(2)).is_empty() && waiting.current.is_empty());
    }
}
