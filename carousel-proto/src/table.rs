//! The file table: what of an object's bytes becomes which file, when the object is a folder laid end to end.
//!
//! PROTOCOL.md section 4.11. A table stands at the object's end; the manifest says how long it is. It was signed with
//! the object, and is judged all the same: whoever signs may be careless, and a table that reached out of its folder
//! would be the end of all care elsewhere. It refuses whatever is not a path within the folder, stands twice, lies in
//! something that is no folder of the table, or does not account for every byte of the object; and it believes no
//! number before it has seen what it counts.

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};
use std::fmt;
use std::ops::Range;

/// The longest table, in bytes. It is read into memory.
pub const MAX_TABLE_LEN: u64 = 64 << 20;
/// The most entries, and the most extents of all of them.
pub const MAX_ENTRIES: usize = 1 << 20;
/// The longest path and the longest target of a link, in bytes: what Linux takes.
pub const MAX_PATH_LEN: usize = 4095;
/// The longest name within a path, in bytes.
pub const MAX_COMPONENT_LEN: usize = 255;
/// The deepest nesting, in names of a path.
pub const MAX_DEPTH: usize = 128;
/// The largest file, in bytes: that of an object.
pub const MAX_FILE_LEN: u64 = (1 << 47) - 1;
/// Permissions and the sticky bit. Neither setuid nor setgid: owners do not travel, and bits that lend an owner's
/// rights must not travel without one.
pub const MODE_MASK: u16 = 0o1777;
/// A packer leaves out whole blocks of this length, counted from the file's beginning, that are nothing but zeros.
pub const HOLE_LEN: u64 = 1 << 16;

/// What a table begins with.
const FORMAT: &str = "carousel folder 1";
const FOLDER: u8 = 0;
const FILE: u8 = 1;
const LINK: u8 = 2;

/// Permissions and time of modification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permissions, within [`MODE_MASK`]; of a link 0o777.
    pub mode: u16,
    /// Seconds since 1970-01-01 UTC.
    pub seconds: i64,
    /// … and nanoseconds more, below 10^9.
    pub nanos: u32,
}

/// One name in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// From the folder on: names between slashes, any bytes but zero.
    pub path: &'a [u8],
    /// Permissions and time.
    pub attributes: Attributes,
    /// What it is.
    pub kind: Kind<'a>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A folder.
    Folder,
    /// A regular file.
    File {
        /// Its length, holes included.
        size: u64,
        /// Where it has data, in ascending order; between and behind them are holes.
        extents: Vec<Extent>,
    },
    /// A symbolic link.
    Link {
        /// Where it leads to; never followed.
        target: &'a [u8],
    },
}

/// A range of a file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length, not 0.
    pub len: u64,
}

/// An extent and where its bytes lie in the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where it begins in the object.
    pub start: u64,
    /// Its length.
    pub len: u64,
    /// The entry that it belongs to.
    pub entry: usize,
    /// Where it begins in the file.
    pub offset: u64,
}

impl Run {
    /// Where it ends in the object.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// A folder's file table, in which everything is as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table<'a> {
    root: Attributes,
    entries: Vec<Entry<'a>>,
    /// In the order of the object.
    runs: Vec<Run>,
}

/// Why something is no file table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Not the CBOR that is expected, or not its one deterministic form.
    #[error("file table is not readable: {0}")]
    Cbor(String),
    /// More than anybody should have to hold in memory.
    #[error(
        "file table is too long: at most {MAX_TABLE_LEN} bytes, {MAX_ENTRIES} entries and extents are allowed"
    )]
    TooLong,
    /// A path that is none, or leads out of the folder.
    #[error("{0}: no safe path within a folder: {1}")]
    Path(Shown, &'static str),
    /// Twice there, or not in its place.
    #[error("{0}: stands twice in the file table, or out of order")]
    Order(Shown),
    /// Its parent is missing, or is a file or a link.
    #[error("{0}: does not lie in a folder of the file table")]
    Parent(Shown),
    /// A mode with other bits than permissions, or a time that does not exist.
    #[error("{0}: mode or time is out of range")]
    Attributes(Shown),
    /// A link to nowhere.
    #[error("{0}: the link's target is empty, too long, or holds a zero byte")]
    Target(Shown),
    /// Data beyond the end of its file, twice, or in pieces without a hole between them.
    #[error("{0}: size and data of the file do not fit together")]
    Extents(Shown),
    /// Files and table do not add up to the object.
    #[error("files of {files} bytes and a table of {table} do not add up to an object of {object}")]
    Size {
        /// Data of all files.
        files: u64,
        /// The table itself.
        table: u64,
        /// What they should add up to.
        object: u64,
    },
}

/// A path as a person may see it: whatever is not text is escaped, and there is no second line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(pub Vec<u8>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.utf8_chunks() {
            write!(
                f,
                "{}",
                part.valid().escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")
            )?;
            part.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

impl<'a> Table<'a> {
    /// A table of these entries, which are in the order of their paths' bytes.
    ///
    /// # Errors
    /// What is wrong with them; see [`TableError`].
    pub fn new(root: Attributes, entries: Vec<Entry<'a>>) -> Result<Self, TableError> {
        check_attributes(b".", &root)?;
        let mut extents = 0;
        for (index, entry) in entries.iter().enumerate() {
            check(entry, &entries[..index])?;
            extents += match &entry.kind {
                Kind::File { extents, .. } => extents.len(),
                _ => 0,
            };
        }
        if entries.len() > MAX_ENTRIES || extents > MAX_ENTRIES {
            return Err(TableError::TooLong);
        }
        let runs = lay(&entries).ok_or(TableError::TooLong)?;
        Ok(Self { root, entries, runs })
    }

    /// Reads the table of an object of so many bytes, which are these at its end and the files' before.
    ///
    /// # Errors
    /// What is wrong with it; see [`TableError`].
    pub fn parse(bytes: &'a [u8], object: u64) -> Result<Self, TableError> {
        if bytes.len() as u64 > MAX_TABLE_LEN {
            return Err(TableError::TooLong);
        }
        let mut decoder = Decoder::new(bytes);
        let table = read(&mut decoder)?;
        if decoder.position() != bytes.len() {
            return Err(TableError::Cbor("something follows it".into()));
        }
        // One table, one form: nobody can hide anything in another, and equal folders are equal objects.
        if table.emit() != bytes {
            return Err(TableError::Cbor("not in its deterministic form".into()));
        }
        let (files, table_len) = (table.data_len(), bytes.len() as u64);
        if files.checked_add(table_len) != Some(object) {
            return Err(TableError::Size { files, table: table_len, object });
        }
        Ok(table)
    }

    /// The bytes at the object's end.
    pub fn emit(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        // Writing into a Vec cannot fail.
        let _ = self.write(&mut encoder);
        encoder.into_writer()
    }

    /// Permissions and time of the folder itself.
    pub fn root(&self) -> &Attributes {
        &self.root
    }

    /// What is in the folder, in the order of the paths' bytes: a folder comes before what is in it.
    pub fn entries(&self) -> &[Entry<'a>] {
        &self.entries
    }

    /// Bytes of all files together: where the table begins in the object.
    pub fn data_len(&self) -> u64 {
        self.runs.last().map_or(0, Run::end)
    }

    /// Where the bytes of the files lie in the object, from its beginning on without a gap.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// What of the files lies in a range of the object.
    pub fn runs_in(&self, range: Range<u64>) -> impl Iterator<Item = Run> {
        runs_in(&self.runs, range)
    }

    /// The file whose bytes the object begins with, if it is one without holes: the object's beginning is this file,
    /// and who received it in a file need not copy it.
    pub fn first(&self) -> Option<Run> {
        let run = self.runs.first()?;
        let whole = matches!(self.entries.get(run.entry)?.kind, Kind::File { size, .. } if size == run.len);
        whole.then_some(*run)
    }

    fn write(
        &self,
        e: &mut Encoder<Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        let attributes = |e: &mut Encoder<Vec<u8>>, a: &Attributes| {
            e.u16(a.mode)?.i64(a.seconds)?.u32(a.nanos)?;
            Ok(())
        };
        e.array(3)?.str(FORMAT)?.array(3)?;
        attributes(e, &self.root)?;
        e.array(self.entries.len() as u64)?;
        for entry in &self.entries {
            let (kind, len) = match &entry.kind {
                Kind::Folder => (FOLDER, 5),
                Kind::File { size, extents } => (FILE, if is_whole(*size, extents) { 6 } else { 7 }),
                Kind::Link { .. } => (LINK, 6),
            };
            e.array(len)?.u8(kind)?.bytes(entry.path)?;
            attributes(e, &entry.attributes)?;
            match &entry.kind {
                Kind::Folder => {}
                Kind::File { size, extents } => {
                    e.u64(*size)?;
                    if !is_whole(*size, extents) {
                        e.array(2 * extents.len() as u64)?;
                        for extent in extents {
                            e.u64(extent.offset)?.u64(extent.len)?;
                        }
                    }
                }
                Kind::Link { target } => {
                    e.bytes(target)?;
                }
            }
        }
        Ok(())
    }
}

/// What of some runs, which follow one another in the object, lies in a range of it.
pub fn runs_in(runs: &[Run], range: Range<u64>) -> impl Iterator<Item = Run> {
    let first = runs.partition_point(|run| run.end() <= range.start);
    runs[first..].iter().take_while(move |run| run.start < range.end).map(move |run| {
        let (start, end) = (run.start.max(range.start), run.end().min(range.end));
        Run { start, len: end - start, entry: run.entry, offset: run.offset + (start - run.start) }
    })
}

/// No holes: there is one extent, the whole file, or nothing in an empty one.
fn is_whole(size: u64, extents: &[Extent]) -> bool {
    match extents {
        [] => size == 0,
        [extent] => (extent.offset, extent.len) == (0, size),
        _ => false,
    }
}

/// The order of the object: first the largest file without holes, then the others by their paths.
fn lay(entries: &[Entry<'_>]) -> Option<Vec<Run>> {
    let mut first: Option<(usize, u64)> = None;
    for (index, entry) in entries.iter().enumerate() {
        if let Kind::File { size, extents } = &entry.kind
            && is_whole(*size, extents)
            && first.is_none_or(|(_, most)| *size > most)
        {
            first = Some((index, *size));
        }
    }
    let first = first.map(|(index, _)| index);
    let mut runs = Vec::new();
    let mut start: u64 = 0;
    let others = (0..entries.len()).filter(|index| Some(*index) != first);
    for index in first.into_iter().chain(others) {
        let Kind::File { extents, .. } = &entries[index].kind else { continue };
        for extent in extents {
            runs.push(Run { start, len: extent.len, entry: index, offset: extent.offset });
            start = start.checked_add(extent.len)?;
        }
    }
    Some(runs)
}

/// An entry by itself, and among those before it.
fn check(entry: &Entry<'_>, before: &[Entry<'_>]) -> Result<(), TableError> {
    let path = entry.path;
    let shown = || Shown(path.to_vec());
    check_path(path)?;
    check_attributes(path, &entry.attributes)?;
    if before.last().is_some_and(|last| last.path >= path) {
        return Err(TableError::Order(shown()));
    }
    if let Some(slash) = path.iter().rposition(|byte| *byte == b'/') {
        let parent = before.binary_search_by(|other| other.path.cmp(&path[..slash]));
        if !parent.is_ok_and(|index| before[index].kind == Kind::Folder) {
            return Err(TableError::Parent(shown()));
        }
    }
    match &entry.kind {
        Kind::Folder => {}
        Kind::File { size, extents } => {
            let mut end = None;
            for extent in extents {
                // Between two of them is a hole, or they would be one.
                let fits = extent.len > 0
                    && end.is_none_or(|end| extent.offset > end)
                    && extent.offset.checked_add(extent.len).is_some_and(|end| end <= *size);
                if !fits {
                    return Err(TableError::Extents(shown()));
                }
                end = Some(extent.offset + extent.len);
            }
            if *size > MAX_FILE_LEN {
                return Err(TableError::Extents(shown()));
            }
        }
        Kind::Link { target } => {
            if target.is_empty() || target.len() > MAX_PATH_LEN || target.contains(&0) {
                return Err(TableError::Target(shown()));
            }
            if entry.attributes.mode != 0o777 {
                return Err(TableError::Attributes(shown()));
            }
        }
    }
    Ok(())
}

/// Whether it stays where it is put.
pub fn check_path(path: &[u8]) -> Result<(), TableError> {
    let refuse = |why| Err(TableError::Path(Shown(path.to_vec()), why));
    if path.len() > MAX_PATH_LEN {
        return refuse("longer than 4,095 bytes");
    }
    for (depth, name) in path.split(|byte| *byte == b'/').enumerate() {
        match name {
            b"" if depth == 0 && path.len() > 1 => return refuse("it is absolute"),
            b"" => return refuse("an empty name"),
            b"." | b".." => return refuse("a name that leads elsewhere"),
            _ if name.contains(&0) => return refuse("a zero byte"),
            _ if name.len() > MAX_COMPONENT_LEN => return refuse("a name longer than 255 bytes"),
            _ if depth >= MAX_DEPTH => return refuse("more than 128 folders deep"),
            _ => {}
        }
    }
    Ok(())
}

fn check_attributes(path: &[u8], attributes: &Attributes) -> Result<(), TableError> {
    if attributes.mode & !MODE_MASK != 0 || attributes.nanos >= 1_000_000_000 {
        return Err(TableError::Attributes(Shown(path.to_vec())));
    }
    Ok(())
}

fn read<'a>(d: &mut Decoder<'a>) -> Result<Table<'a>, TableError> {
    let cbor = |e: minicbor::decode::Error| TableError::Cbor(e.to_string());
    expect_array(d, &[3])?;
    if d.str().map_err(cbor)? != FORMAT {
        return Err(TableError::Cbor(format!("it does not begin with {FORMAT:?}")));
    }
    expect_array(d, &[3])?;
    let root = read_attributes(d).map_err(cbor)?;
    let count = array(d)?;
    if count > MAX_ENTRIES as u64 {
        return Err(TableError::TooLong);
    }
    let (mut entries, mut extents) = (Vec::new(), 0);
    for _ in 0..count {
        entries.push(read_entry(d, &mut extents)?);
    }
    Table::new(root, entries)
}

fn read_attributes(d: &mut Decoder<'_>) -> Result<Attributes, minicbor::decode::Error> {
    Ok(Attributes { mode: d.u16()?, seconds: d.i64()?, nanos: d.u32()? })
}

/// `extents`: how many there were in the table so far.
fn read_entry<'a>(d: &mut Decoder<'a>, extents: &mut usize) -> Result<Entry<'a>, TableError> {
    let cbor = |e: minicbor::decode::Error| TableError::Cbor(e.to_string());
    let len = expect_array(d, &[5, 6, 7])?;
    let kind = d.u8().map_err(cbor)?;
    let path = d.bytes().map_err(cbor)?;
    let attributes = read_attributes(d).map_err(cbor)?;
    let kind = match (kind, len) {
        (FOLDER, 5) => Kind::Folder,
        (FILE, 6) => {
            let size = d.u64().map_err(cbor)?;
            Kind::File {
                size,
                extents: if size == 0 { vec![] } else { vec![Extent { offset: 0, len: size }] },
            }
        }
        (FILE, 7) => {
            let size = d.u64().map_err(cbor)?;
            let count = array(d)?;
            let mut found = Vec::new();
            for _ in 0..count / 2 {
                *extents += 1;
                if *extents > MAX_ENTRIES {
                    return Err(TableError::TooLong);
                }
                found.push(Extent { offset: d.u64().map_err(cbor)?, len: d.u64().map_err(cbor)? });
            }
            Kind::File { size, extents: found }
        }
        (LINK, 6) => Kind::Link { target: d.bytes().map_err(cbor)? },
        (kind, len) => return Err(TableError::Cbor(format!("no entry has kind {kind} and {len} values"))),
    };
    Ok(Entry { path, attributes, kind })
}

/// The length that an array claims to have. Nothing is made room for because of it.
fn array(d: &mut Decoder<'_>) -> Result<u64, TableError> {
    let cbor = |e: minicbor::decode::Error| TableError::Cbor(e.to_string());
    if d.datatype().map_err(cbor)? != Type::Array {
        return Err(TableError::Cbor("an array is missing".into()));
    }
    d.array().map_err(cbor)?.ok_or_else(|| TableError::Cbor("an array without length".into()))
}

fn expect_array(d: &mut Decoder<'_>, lens: &[u64]) -> Result<u64, TableError> {
    let len = array(d)?;
    if lens.contains(&len) { Ok(len) } else { Err(TableError::Cbor(format!("an array of {len} values"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Attributes = Attributes { mode: 0o644, seconds: 1_700_000_000, nanos: 5 };

    fn folder(path: &[u8]) -> Entry<'_> {
        Entry { path, attributes: Attributes { mode: 0o755, ..PLAIN }, kind: Kind::Folder }
    }

    fn sparse<'a>(path: &'a [u8], size: u64, extents: &[(u64, u64)]) -> Entry<'a> {
        let extents = extents.iter().map(|(offset, len)| Extent { offset: *offset, len: *len }).collect();
        Entry { path, attributes: PLAIN, kind: Kind::File { size, extents } }
    }

    fn file(path: &[u8], size: u64) -> Entry<'_> {
        if size == 0 { sparse(path, 0, &[]) } else { sparse(path, size, &[(0, size)]) }
    }

    fn link<'a>(path: &'a [u8], target: &'a [u8]) -> Entry<'a> {
        Entry { path, attributes: Attributes { mode: 0o777, ..PLAIN }, kind: Kind::Link { target } }
    }

    fn sample() -> Vec<Entry<'static>> {
        vec![
            folder(b"a"),
            file(b"a-b", 3), // '-' sorts before '/'
            file(b"a/b", 100),
            folder(b"a/c"),
            file(b"a/c/d", 0),
            link(b"link", b"../nowhere"),
            file(b"m", 100), // as large as a/b, and behind it
            sparse(b"s", 1 << 40, &[(0, 50), (1 << 20, 200)]),
            sparse(b"z", 1 << 20, &[]),
        ]
    }

    fn mirrored(entries: Vec<Entry<'_>>) -> Result<(), TableError> {
        let table = Table::new(PLAIN, entries)?;
        let bytes = table.emit();
        let size = table.data_len() + bytes.len() as u64;
        assert_eq!(Table::parse(&bytes, size).as_ref(), Ok(&table));
        Ok(())
    }

    #[test]
    fn emit_and_parse_mirror_each_other() {
        mirrored(sample()).unwrap();
        mirrored(vec![]).unwrap();
    }

    #[test]
    fn the_largest_file_without_holes_lies_first_and_the_others_follow() {
        let table = Table::new(PLAIN, sample()).unwrap();
        let laid: Vec<_> =
            table.runs().iter().map(|run| (run.start, run.len, run.entry, run.offset)).collect();
        assert_eq!(
            laid,
            [(0, 100, 2, 0), (100, 3, 1, 0), (103, 100, 6, 0), (203, 50, 7, 0), (253, 200, 7, 1 << 20)]
        );
        assert_eq!(table.first().map(|run| run.entry), Some(2));
        let some: Vec<_> =
            table.runs_in(102..254).map(|run| (run.start, run.len, run.entry, run.offset)).collect();
        assert_eq!(some, [(102, 1, 1, 2), (103, 100, 6, 0), (203, 50, 7, 0), (253, 1, 7, 1 << 20)]);
        assert_eq!(table.runs_in(453..1000).count(), 0);
        assert_eq!(Table::new(PLAIN, vec![sparse(b"s", 9, &[(0, 3)])]).unwrap().first(), None);
        assert_eq!(Table::new(PLAIN, vec![file(b"empty", 0)]).unwrap().first(), None);
    }

    #[test]
    fn what_reaches_out_or_stands_wrong_is_refused() {
        let long = [b'x'; 256];
        let deep = [&b"d/"[..]; 128].concat();
        let deep = [&deep[..], b"f"].concat();
        let very_long = [&[b'y'; 255][..], b"/"].concat().repeat(17);
        let paths: [&[u8]; 12] = [
            b"",
            b"/",
            b"/etc/passwd",
            b"..",
            b"../x",
            b"a/../b",
            b"a//b",
            b"a/",
            b"./a",
            b"a\0b",
            &long,
            &very_long,
        ];
        for path in paths {
            assert!(
                matches!(mirrored(vec![file(path, 1)]), Err(TableError::Path(..))),
                "{}",
                Shown(path.to_vec())
            );
        }
        assert!(matches!(check_path(&deep), Err(TableError::Path(..))));
        assert!(check_path(&deep[2..]).is_ok());
        let order = |entries| assert!(matches!(mirrored(entries), Err(TableError::Order(_))));
        order(vec![file(b"a", 1), file(b"a", 1)]);
        order(vec![file(b"b", 1), file(b"a", 1)]);
        order(vec![folder(b"a"), file(b"a", 1)]);
        let parent = |entries| assert!(matches!(mirrored(entries), Err(TableError::Parent(_))));
        parent(vec![file(b"a/b", 1)]);
        parent(vec![file(b"a", 1), file(b"a/b", 1)]);
        parent(vec![link(b"a", b"/etc"), file(b"a/passwd", 1)]);
        let extents = |entry| assert!(matches!(mirrored(vec![entry]), Err(TableError::Extents(_))));
        extents(sparse(b"f", 10, &[(5, 6)]));
        extents(sparse(b"f", 10, &[(5, 0)]));
        extents(sparse(b"f", 10, &[(0, 5), (5, 2)]));
        extents(sparse(b"f", 10, &[(6, 2), (1, 2)]));
        extents(sparse(b"f", u64::MAX, &[(u64::MAX, 2)]));
        extents(sparse(b"f", 1 << 47, &[]));
        let target = |entry| assert!(matches!(mirrored(vec![entry]), Err(TableError::Target(_))));
        target(link(b"l", b""));
        target(link(b"l", b"a\0"));
        target(link(b"l", &[b'x'; 4096]));
        let attributes = |mode, nanos| {
            let entry = Entry { attributes: Attributes { mode, nanos, ..PLAIN }, ..file(b"f", 1) };
            assert!(matches!(mirrored(vec![entry]), Err(TableError::Attributes(_))));
        };
        attributes(0o4755, 0);
        attributes(0o2755, 0);
        attributes(0o100_644, 0);
        attributes(0o644, 1_000_000_000);
        assert!(matches!(
            mirrored(vec![Entry { attributes: PLAIN, ..link(b"l", b"x") }]),
            Err(TableError::Attributes(_))
        ));
    }

    #[test]
    fn sums_that_overflow_are_no_sums() {
        let bytes = Table::new(PLAIN, vec![file(b"f", 10)]).unwrap().emit();
        for wrong in [0, 10, 11 + bytes.len() as u64, u64::MAX] {
            assert!(matches!(Table::parse(&bytes, wrong), Err(TableError::Size { .. })));
        }
    }

    #[test]
    fn claimed_numbers_cost_nothing() {
        let mut bytes = Table::new(PLAIN, vec![]).unwrap().emit();
        assert_eq!(bytes.pop(), Some(0x80)); // the empty array of entries
        for claim in
            [&[0x9a, 0x3b, 0x9a, 0xca, 0x00][..], &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]]
        {
            assert_eq!(Table::parse(&[&bytes, claim].concat(), 100), Err(TableError::TooLong));
        }
        assert!(matches!(
            Table::parse(&[&bytes[..], &[0x9a, 0, 0x0f, 0xff, 0xff]].concat(), 100),
            Err(TableError::Cbor(_))
        ));
    }

    #[test]
    fn another_form_of_the_same_is_refused() {
        let bytes = Table::new(PLAIN, vec![file(b"f", 10)]).unwrap().emit();
        let size = bytes.len() as u64 + 10;
        assert_eq!(bytes.last(), Some(&10));
        let longer = [&bytes[..bytes.len() - 1], &[0x18, 10]].concat();
        assert!(matches!(Table::parse(&longer, size + 1), Err(TableError::Cbor(_))));
        assert!(matches!(Table::parse(&[&bytes[..], &[0]].concat(), size + 1), Err(TableError::Cbor(_))));
    }

    #[test]
    fn what_is_no_text_is_shown_in_one_line() {
        assert_eq!(Shown(b"it's a \xff\nname".to_vec()).to_string(), "it's a \\xff\\nname");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in any::<u64>()) {
            let _ = Table::parse(&bytes, size);
        }

        #[test]
        fn a_flipped_bit_never_panics(at in 0usize..2000, bit in 0u8..8) {
            let table = Table::new(PLAIN, sample()).unwrap();
            let mut bytes = table.emit();
            let size = table.data_len() + bytes.len() as u64;
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(table) = Table::parse(&bytes, size) {
                prop_assert_eq!(table.emit(), bytes);
            }
        }
    }
}
