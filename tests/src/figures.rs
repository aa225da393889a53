//! What the scenarios measured, written down by the run itself: `lab-figures.md` in the target folder.
//!
//! A section for each test, in alphabetical order; a test that runs again replaces its section and no other. Several
//! processes may write at once: each takes its turn, and a reader always finds a whole file.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

/// The file's name.
const FILE: &str = "lab-figures.md";

/// A measurement's name and its figures, each by the name of its column.
type Row = (String, Vec<(String, String)>);

/// Notes one measurement of the test that runs, as a row of its table, and prints it on stdout.
///
/// `figures::row("two routers", &[("join to first packet", &"23 ms"), ("lost", &count)])`
///
/// The test's table has the columns of all its rows. Note only what counts: no measurement that is then repeated.
pub fn row(name: &str, figures: &[(&str, &dyn Display)]) {
    static NOTED: Mutex<BTreeMap<String, Vec<Row>>> = Mutex::new(BTreeMap::new());
    let shown: Vec<String> = figures.iter().map(|(column, figure)| format!("{column}: {figure}")).collect();
    println!("| {name} | {} |", shown.join(" | "));

    let mut noted = NOTED.lock().unwrap_or_else(PoisonError::into_inner);
    let exe = std::env::current_exe().unwrap_or_default();
    let title = title(&exe);
    let rows = noted.entry(title.clone()).or_default();
    let owned = figures.iter().map(|(column, figure)| ((*column).to_owned(), figure.to_string()));
    rows.push((name.to_owned(), owned.collect()));
    let done = write(target(&exe), header(), &title, &table(rows));
    // A figure that cannot be written down fails no test: another user's folder, for instance.
    if let Err(e) = done {
        eprintln!("{FILE}: {title}: {e}");
    }
}

/// Tells which test runs, for threads whose name is not the test's.
pub(crate) fn set_test(name: &str) {
    name.clone_into(&mut TEST.lock().unwrap_or_else(PoisonError::into_inner));
}

static TEST: Mutex<String> = Mutex::new(String::new());

/// `e2e: late_join`. The harness names a test's thread after it, unless it uses a single thread.
fn title(exe: &Path) -> String {
    let program = exe.file_stem().unwrap_or_default().to_string_lossy();
    // Cargo's `e2e-0123456789abcdef`.
    let program = match program.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => name,
        _ => &program,
    };
    match thread::current().name() {
        Some(test) if test != "main" => format!("{program}: {test}"),
        _ => match &*TEST.lock().unwrap_or_else(PoisonError::into_inner) {
            nameless if nameless.is_empty() => program.to_owned(),
            test => format!("{program}: {test}"),
        },
    }
}

/// The folder of the file: the target folder.
pub fn folder() -> PathBuf {
    target(&std::env::current_exe().unwrap_or_default()).to_owned()
}

/// The target folder: above the profile's, which is the program's own or has it in `deps`.
fn target(exe: &Path) -> &Path {
    let profile = exe.ancestors().skip(1).find(|dir| !dir.ends_with("deps"));
    profile.and_then(Path::parent).unwrap_or(Path::new("."))
}

/// The head of the file.
fn header() -> &'static str {
    static HEADER: OnceLock<String> = OnceLock::new();
    HEADER.get_or_init(|| {
        format!("# Figures\n\nMeasured by the tests themselves, last on {}.\n", circumstances())
    })
}

/// When, where and what is measured.
pub fn circumstances() -> &'static str {
    static CIRCUMSTANCES: OnceLock<String> = OnceLock::new();
    CIRCUMSTANCES.get_or_init(|| {
        let word = |program: &str, args: &[&str]| {
            let out = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
            let said = String::from_utf8(out.stdout).ok()?;
            out.status.success().then(|| said.trim().to_owned())
        };
        let date = word("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = thread::available_parallelism().map_or(0, usize::from);
        let git = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"];
        let commit = word("git", &git).map(|commit| format!(", commit {commit}")).unwrap_or_default();
        let profile = if cfg!(debug_assertions) { ", tests built without --release" } else { "" };
        format!(
            "{date}: Linux {}, {cores} cores, carousel {}{commit}{profile}",
            kernel.trim(),
            env!("CARGO_PKG_VERSION"),
        )
    })
}

/// Replaces one section of the file in `folder`. The lock is on the folder, so that it leaves no file of its own.
fn write(folder: &Path, header: &str, title: &str, table: &str) -> io::Result<()> {
    let turn = File::open(folder)?;
    turn.lock()?;
    let file = folder.join(FILE);
    let old = match fs::read_to_string(&file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let new: PathBuf = folder.join(format!("{FILE}.new"));
    fs::write(&new, merge(&old, header, title, table))?;
    fs::rename(new, file)
}

/// The file with a new header and one section put in its place, whether it was there before or not.
fn merge(old: &str, header: &str, title: &str, table: &str) -> String {
    let sections = old.split("\n## ").skip(1).filter_map(|section| section.split_once("\n\n"));
    let mut sections: BTreeMap<&str, &str> =
        sections.map(|(title, table)| (title, table.trim_end())).collect();
    sections.insert(title, table.trim_end());
    let sections = sections.iter().map(|(title, table)| format!("\n## {title}\n\n{table}\n"));
    format!("{header}{}", sections.collect::<String>())
}

/// The columns of all rows, in the order in which they first appear; what a row has no figure for stays empty.
fn table(rows: &[Row]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    for (column, _) in rows.iter().flat_map(|(_, figures)| figures) {
        if !columns.contains(&&**column) {
            columns.push(column);
        }
    }
    let line = |cells: &[&str]| {
        let cells = cells.iter().map(|cell| format!(" {} |", cell.replace('|', "\\|").replace('\n', " ")));
        format!("|{}\n", cells.collect::<String>())
    };
    let mut text = line(&[&["measurement"], &columns[..]].concat());
    text += &format!("|---|{}\n", "---|".repeat(columns.len()));
    for (name, figures) in rows {
        let figure =
            |column: &&str| figures.iter().find(|(c, _)| c == column).map_or("", |(_, figure)| figure);
        let figures: Vec<&str> = columns.iter().map(figure).collect();
        text += &line(&[&[&**name], &figures[..]].concat());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Folder;

    fn row(name: &str, figures: &[(&str, &str)]) -> Row {
        (name.into(), figures.iter().map(|&(column, figure)| (column.into(), figure.into())).collect())
    }

    #[test]
    fn a_table_has_the_columns_of_all_its_rows() {
        let rows = [
            row("one", &[("time", "1 s"), ("loss", "2 %")]),
            row("a|b", &[("peak", "3\nMiB"), ("time", "4 s")]),
        ];
        let text = "| measurement | time | loss | peak |\n|---|---|---|---|\n\
                    | one | 1 s | 2 % |  |\n| a\\|b | 4 s |  | 3 MiB |\n";
        assert_eq!(table(&rows), text);
    }

    #[test]
    fn a_section_replaces_itself_only_and_all_are_sorted() {
        let text = merge("", "# F\n\nnew\n", "e2e: b", "B\n");
        assert_eq!(text, "# F\n\nnew\n\n## e2e: b\n\nB\n");
        let text = merge(&text, "# F\n\nnewer\n", "lab: a", "A\nA\n");
        let text = merge(&text, "# F\n\nnewer\n", "e2e: a", "C\n");
        let whole = "# F\n\nnewer\n\n## e2e: a\n\nC\n\n## e2e: b\n\nB\n\n## lab: a\n\nA\nA\n";
        assert_eq!(text, whole);
        assert_eq!(merge(whole, "# F\n\nnewer\n", "e2e: b", "B\n"), whole);
        assert_eq!(merge(whole, "# F\n\nnewer\n", "e2e: b", "D"), whole.replace("B\n", "D\n"));
    }

    #[test]
    fn many_write_at_once_and_none_is_lost() {
        let folder = Folder::new();
        let target = folder.path().join("target"); // the folder itself is locked already
        fs::create_dir(&target).unwrap();
        let titles: Vec<String> = (0..20).map(|i| format!("t: {i:02}")).collect();
        thread::scope(|s| {
            for title in &titles {
                s.spawn(|| (0..5).for_each(|n| write(&target, "# F\n", title, &format!("{n}\n")).unwrap()));
            }
        });
        let text = fs::read_to_string(target.join(FILE)).unwrap();
        let sections: String = titles.iter().map(|title| format!("\n## {title}\n\n4\n")).collect();
        assert_eq!(text, format!("# F\n{sections}"));
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    }

    #[test]
    fn programs_and_threads_tell_where_a_figure_belongs() {
        for exe in ["/t/release/deps/e2e-0123456789abcdef", "/t/release/e2e"].map(Path::new) {
            assert_eq!(target(exe), Path::new("/t"));
            let test = thread::Builder::new().name("late_join".into());
            assert_eq!(test.spawn(|| title(exe)).unwrap().join().unwrap(), "e2e: late_join");
        }
    }
}
