//! The hashes that let a receiver judge every packet on arrival. PROTOCOL.md section 5.
//!
//! ```text
//!   manifest:  cap node … cap node        (1 to 16 nodes of 16 bytes, signed)
//!                   / \
//!                 node node               16 bytes each
//!                   …
//!   hash page:  leaf leaf leaf … leaf     (10 bytes each, one per slot, then the path to the cap)
//! ```
//!
//! A second, independent proof hangs on the object's own BLAKE3: *block pages* carry the subtree values of
//! its blocks, so a block that was decoded from symbols whose page was lost is still judged, with 256 bits.

use crate::geometry::{Geometry, Sbn};
use crate::lanes::keyed_hashes;
use crate::wire::{RECORD_HEADER_LEN, Slot};
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Bytes of a leaf. 80 bits: a second preimage (for one slot, whose number is hashed too) would cost one block's
/// time once, because the block's own hash (256 bits) reveals it; longer leaves cost every receiver 0.2 % of the rate per two bytes.
pub const LEAF_LEN: usize = 10;
/// Bytes of an inner node.
pub const NODE_LEN: usize = 16;
/// Most nodes in a cap.
pub const CAP_LEN_MAX: usize = 16;
/// Subtree values in a full block page.
pub const BLOCKS_PER_PAGE: u32 = 16;
/// Bytes of a BLAKE3 chaining value.
pub const CV_LEN: usize = 32;

const LEAF_KEY: &[u8; 32] = b"carousel v1 symbol leaf         ";
const PAGE_KEY: &[u8; 32] = b"carousel v1 hash page           ";
const NODE_KEY: &[u8; 32] = b"carousel v1 tree node           ";

pub use crate::lanes::LANES;

/// Hash of one slot.
pub type Leaf = [u8; LEAF_LEN];
/// A node of the hash tree.
pub type Node = [u8; NODE_LEN];

/// Number of a hash page or of a block page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageNumber(pub u32);

/// The leaf of a record: keyed BLAKE3 over size, offset, slot number and symbol, as they lie on the wire.
pub fn leaf(record: &[u8]) -> Leaf {
    first_bytes(blake3::keyed_hash(LEAF_KEY, record).as_bytes())
}

/// The leaves of up to [`LANES`] records, which costs less than one after the other when they are of one length.
pub fn leaves(records: &[&[u8]]) -> [Leaf; LANES] {
    keyed_hashes(LEAF_KEY, records).map(|hash| first_bytes(&hash))
}

fn page_node(number: PageNumber, leaves: &[u8]) -> Node {
    let mut hasher = blake3::Hasher::new_keyed(PAGE_KEY);
    hasher.update(&number.0.to_be_bytes()).update(leaves);
    first_bytes(hasher.finalize().as_bytes())
}

fn inner_node(left: &Node, right: &Node) -> Node {
    let mut both = [0; 2 * NODE_LEN];
    both[..NODE_LEN].copy_from_slice(left);
    both[NODE_LEN..].copy_from_slice(right);
    first_bytes(blake3::keyed_hash(NODE_KEY, &both).as_bytes())
}

fn first_bytes<const N: usize>(hash: &[u8; 32]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&hash[..N]);
    out
}

/// Shape of the hash tree: `pages` leaves' pages under a cap. Its numbers fit each other and the symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeShape {
    pages: u32,
    page_len: u8,
    /// Levels between the pages and the cap: the number of nodes in a path.
    path_len: u8,
    cap_log2: u8,
}

impl TreeShape {
    /// `None` if a page of `page_len` leaves and its path do not fit into a symbol's place, or if slot
    /// numbers would not fit 32 bits.
    pub fn new(pages: u32, page_len: u8, symbol_len: usize) -> Option<Self> {
        let depth = pages.checked_next_power_of_two()?.trailing_zeros() as u8;
        let cap_log2 = depth.min(CAP_LEN_MAX.trailing_zeros() as u8);
        let path_len = depth - cap_log2;
        let body = usize::from(page_len) * LEAF_LEN + usize::from(path_len) * NODE_LEN;
        let slots = u64::from(pages) * u64::from(page_len);
        (page_len > 0 && body <= symbol_len && slots <= 1 << 32).then_some(Self {
            pages,
            page_len,
            path_len,
            cap_log2,
        })
    }

    /// Number of hash pages.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Slots per page.
    pub fn page_len(&self) -> usize {
        usize::from(self.page_len)
    }

    /// Nodes in the cap.
    pub fn cap_nodes(&self) -> usize {
        1 << self.cap_log2
    }

    /// Pages below one node of the cap, a power of two.
    pub fn pages_per_cap_node(&self) -> usize {
        1 << self.path_len
    }

    /// Bytes of leaves in a page.
    pub fn leaves_len(&self) -> usize {
        self.page_len() * LEAF_LEN
    }

    /// Bytes of a page's body that carry anything.
    pub fn body_len(&self) -> usize {
        self.leaves_len() + usize::from(self.path_len) * NODE_LEN
    }

    /// The page that vouches for a slot, and the slot's index in it; `None` beyond the last page.
    pub fn page_of(&self, slot: Slot) -> Option<(PageNumber, usize)> {
        let page = slot.0 / u32::from(self.page_len);
        (page < self.pages).then_some((PageNumber(page), (slot.0 % u32::from(self.page_len)) as usize))
    }

    /// Whether this is page `number` of the tree with this cap.
    pub fn verify(&self, number: PageNumber, body: &[u8], cap: &[u8]) -> bool {
        if number.0 >= self.pages || body.len() < self.body_len() {
            return false;
        }
        let (leaves, path) = body[..self.body_len()].split_at(self.leaves_len());
        let mut node = page_node(number, leaves);
        let mut index = number.0 as usize;
        for sibling in path.chunks_exact(NODE_LEN) {
            let mut other = [0; NODE_LEN];
            other.copy_from_slice(sibling);
            node = if index & 1 == 0 { inner_node(&node, &other) } else { inner_node(&other, &node) };
            index >>= 1;
        }
        cap.get(index * NODE_LEN..(index + 1) * NODE_LEN) == Some(&node[..])
    }
}

/// The part of the hash tree below one node of the cap; the packer builds one after the other.
pub struct Subtree {
    /// levels[0] are the pages' nodes, the last level is the cap node alone.
    levels: Vec<Vec<Node>>,
    first: u32,
}

impl Subtree {
    /// Builds the subtree of pages `first ..`; `leaves(page)` yields the leaf bytes of a page, or `None`
    /// where the tree has no such page any more.
    pub fn build<E>(
        shape: &TreeShape,
        first: PageNumber,
        mut leaves: impl FnMut(PageNumber) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let mut level = Vec::with_capacity(shape.pages_per_cap_node());
        for number in (first.0..).take(shape.pages_per_cap_node()).map(PageNumber) {
            level.push(if number.0 < shape.pages {
                page_node(number, &leaves(number)?)
            } else {
                [0; NODE_LEN] // a place without a page
            });
        }
        let mut levels = vec![level];
        while let Some(below) = levels.last()
            && below.len() > 1
        {
            let above = below.chunks_exact(2).map(|pair| inner_node(&pair[0], &pair[1])).collect();
            levels.push(above);
        }
        Ok(Self { levels, first: first.0 })
    }

    /// The node that goes into the cap.
    pub fn cap_node(&self) -> Node {
        self.levels[self.levels.len() - 1][0]
    }

    /// The path of a page of this subtree, nearest sibling first.
    pub fn path(&self, number: PageNumber) -> Vec<u8> {
        let mut index = (number.0 - self.first) as usize;
        let mut path = Vec::with_capacity(self.levels.len() * NODE_LEN);
        for level in &self.levels[..self.levels.len() - 1] {
            path.extend_from_slice(&level[index ^ 1]);
            index >>= 1;
        }
        path
    }
}

/// BLAKE3 subtree value of one block, or the object's hash itself if it has only one block.
pub fn block_hasher(geometry: &Geometry, sbn: Sbn) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(geometry.block_offset(sbn));
    hasher
}

/// Ends what [`block_hasher`] began.
pub fn block_value(geometry: &Geometry, hasher: &blake3::Hasher) -> ChainingValue {
    if geometry.blocks() > 1 { hasher.finalize_non_root() } else { *hasher.finalize().as_bytes() }
}

/// The object's BLAKE3 from the values of all its blocks (of which there is at least one).
pub fn object_digest(blocks: &[ChainingValue]) -> [u8; 32] {
    match blocks {
        [] => *blake3::hash(b"").as_bytes(),
        [only] => *only,
        many => {
            let (left, right) = many.split_at(left_len(many.len()));
            *merge_subtrees_root(&subtree_value(left), &subtree_value(right), Mode::Hash).as_bytes()
        }
    }
}

fn subtree_value(blocks: &[ChainingValue]) -> ChainingValue {
    match blocks {
        [] => [0; CV_LEN],
        [only] => *only,
        many => {
            let (left, right) = many.split_at(left_len(many.len()));
            merge_subtrees_non_root(&subtree_value(left), &subtree_value(right), Mode::Hash)
        }
    }
}

/// BLAKE3's tree is left-balanced: the left part is the greatest power of two below `len` (≥ 2).
fn left_len(len: usize) -> usize {
    len.next_power_of_two() / 2
}

/// Number of block pages: none for an object of one block, whose value the manifest carries.
pub fn block_pages(geometry: &Geometry) -> u32 {
    if geometry.blocks() < 2 { 0 } else { geometry.blocks().div_ceil(BLOCKS_PER_PAGE) }
}

/// All block pages in order: each holds the values of its blocks, then the siblings on the way down from the
/// root.
pub fn emit_block_pages(blocks: &[ChainingValue]) -> Vec<Vec<u8>> {
    let groups: Vec<&[ChainingValue]> = blocks.chunks(BLOCKS_PER_PAGE as usize).collect();
    let values: Vec<ChainingValue> = groups.iter().map(|group| subtree_value(group)).collect();
    let mut pages = Vec::with_capacity(groups.len());
    descend(&groups, &values, &mut Vec::new(), &mut pages);
    pages
}

fn descend(
    groups: &[&[ChainingValue]],
    values: &[ChainingValue],
    siblings: &mut Vec<ChainingValue>,
    pages: &mut Vec<Vec<u8>>,
) {
    if let [group] = groups {
        pages.push([group.concat(), siblings.concat()].concat());
    } else if !groups.is_empty() {
        let middle = left_len(groups.len());
        let (left, right) = values.split_at(middle);
        for (here, there, groups) in [(left, right, &groups[..middle]), (right, left, &groups[middle..])] {
            siblings.push(subtree_value(there));
            descend(groups, here, siblings, pages);
            siblings.pop();
        }
    }
}

/// The values in a block page, first block of the page first, if they belong to the object with this digest.
pub fn verify_block_page(
    geometry: &Geometry,
    number: PageNumber,
    body: &[u8],
    digest: &[u8; 32],
) -> Option<Vec<ChainingValue>> {
    let pages = block_pages(geometry);
    if number.0 >= pages {
        return None;
    }
    let first = number.0 * BLOCKS_PER_PAGE;
    let count = (geometry.blocks() - first).min(BLOCKS_PER_PAGE) as usize;
    let (values, siblings) = body.split_at_checked(count * CV_LEN)?;
    let values: Vec<ChainingValue> = values.chunks_exact(CV_LEN).map(to_cv).collect();
    // The way down tells on which side each sibling stands; the proof then climbs back.
    let mut sides = Vec::new();
    let (mut low, mut high) = (0, pages);
    while high - low > 1 {
        let middle = low + left_len((high - low) as usize) as u32;
        let left = number.0 < middle;
        sides.push(left);
        if left { high = middle } else { low = middle }
    }
    let siblings = siblings.get(..sides.len() * CV_LEN)?;
    let root = if sides.is_empty() {
        object_digest(&values)
    } else {
        let mut value = subtree_value(&values);
        let mut root = [0; CV_LEN];
        for (depth, (left, sibling)) in sides.iter().zip(siblings.chunks_exact(CV_LEN)).enumerate().rev() {
            let sibling = to_cv(sibling);
            let (l, r) = if *left { (value, sibling) } else { (sibling, value) };
            if depth == 0 {
                root = *merge_subtrees_root(&l, &r, Mode::Hash).as_bytes();
            } else {
                value = merge_subtrees_non_root(&l, &r, Mode::Hash);
            }
        }
        root
    };
    (root == *digest).then_some(values)
}

fn to_cv(bytes: &[u8]) -> ChainingValue {
    first_bytes_of(bytes)
}

fn first_bytes_of(bytes: &[u8]) -> ChainingValue {
    let mut out = [0; CV_LEN];
    out.copy_from_slice(&bytes[..CV_LEN]);
    out
}

/// Bytes of a record (what lies in the bundle for one packet) for symbols of this length.
pub fn record_len(symbol_len: usize) -> usize {
    RECORD_HEADER_LEN + symbol_len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves_of(shape: &TreeShape, page: u32) -> Vec<u8> {
        (0..shape.leaves_len()).map(|i| (page as usize * 31 + i) as u8).collect()
    }

    fn whole_tree(shape: &TreeShape) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (mut bodies, mut cap) = (Vec::new(), Vec::new());
        for node in 0..shape.cap_nodes() {
            let first = (node * shape.pages_per_cap_node()) as u32;
            let tree =
                Subtree::build(shape, PageNumber(first), |p| Ok::<_, ()>(leaves_of(shape, p.0))).unwrap();
            cap.extend_from_slice(&tree.cap_node());
            for p in (first..shape.pages()).take(shape.pages_per_cap_node()) {
                let mut body = leaves_of(shape, p);
                body.extend_from_slice(&tree.path(PageNumber(p)));
                bodies.push(body);
            }
        }
        (bodies, cap)
    }

    #[test]
    fn every_page_verifies_and_no_changed_one_does() {
        for pages in [1, 2, 15, 16, 17, 33, 100] {
            let shape = TreeShape::new(pages, 8, 1188).unwrap();
            let (bodies, cap) = whole_tree(&shape);
            assert_eq!((bodies.len(), cap.len()), (pages as usize, shape.cap_nodes() * NODE_LEN));
            for (i, body) in bodies.iter().enumerate() {
                let number = PageNumber(i as u32);
                assert_eq!(body.len(), shape.body_len());
                assert!(shape.verify(number, body, &cap), "{pages} {i}");
                assert!(!shape.verify(PageNumber(i as u32 ^ 1), body, &cap));
                for at in [0, body.len() / 2, body.len() - 1] {
                    let mut wrong = body.clone();
                    wrong[at] ^= 1;
                    assert!(!shape.verify(number, &wrong, &cap));
                }
                assert!(!shape.verify(number, &body[1..], &cap));
            }
        }
    }

    #[test]
    fn a_shape_that_does_not_fit_is_none() {
        assert!(TreeShape::new(u32::MAX, 8, 1188).is_none());
        assert!(TreeShape::new(1, 0, 1188).is_none());
        assert!(TreeShape::new(1, 255, 1188).is_none());
        assert!(TreeShape::new(1 << 30, 88, 1188).is_none());
        assert!(TreeShape::new(0, 88, 1188).is_some()); // an empty object has no page
    }

    #[test]
    fn block_values_make_the_ordinary_hash() {
        for blocks in [1usize, 2, 3, 16, 17, 31, 32, 33, 49, 80] {
            let size = blocks * 65_536 - 1000;
            let data: Vec<u8> = (0..size).map(|i| (i * 7 / 3) as u8).collect();
            let g = Geometry::new(size as u64, 1188, 16, 56, 56).unwrap();
            let values: Vec<_> = (0..g.blocks())
                .map(|b| {
                    let at = g.block_offset(Sbn(b)) as usize;
                    let mut hasher = block_hasher(&g, Sbn(b));
                    hasher.update(&data[at..at + g.block_len(Sbn(b))]);
                    block_value(&g, &hasher)
                })
                .collect();
            let digest = *blake3::hash(&data).as_bytes();
            assert_eq!(object_digest(&values), digest, "{blocks}");
            for (p, body) in (0..block_pages(&g)).map(PageNumber).zip(emit_block_pages(&values)) {
                assert!(body.len() <= 1152);
                let first = (p.0 * BLOCKS_PER_PAGE) as usize;
                let found = verify_block_page(&g, p, &body, &digest).unwrap();
                assert_eq!(found[..], values[first..first + found.len()]);
                for at in [0, body.len() - 1] {
                    let mut wrong = body.clone();
                    wrong[at] ^= 1;
                    assert!(verify_block_page(&g, p, &wrong, &digest).is_none());
                }
                assert!(verify_block_page(&g, p, &body[..body.len() - 1], &digest).is_none());
                assert!(verify_block_page(&g, PageNumber(p.0 + 1), &body, &digest).is_none());
            }
        }
    }
}
