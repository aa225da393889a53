//! What was measured, as tables and charts: `bench/peers.md`, `bench/peers-*.svg` in the target folder, and every
//! single run in `bench/peers-runs.csv`.

use crate::contest::Note;
use carousel_tests::figures;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Of the file with all results beside the benchmark, of which this part is ours.
const HEADING: &str = "# Peers\n";
/// Whose versions count.
const PACKAGES: [&str; 5] = ["uftp", "udpcast", "libnorm1", "nginx-light", "curl"];

/// A table with its charts.
pub struct Section {
    text: String,
    charts: Vec<(String, String)>,
}

impl Section {
    /// One without rows.
    pub fn new(title: &str, words: &str, columns: &[&str]) -> Self {
        let mut section = Self { text: format!("\n## {title}\n\n{words}\n\n"), charts: Vec::new() };
        section.row(columns);
        section.row(&columns.iter().map(|_| "---").collect::<Vec<_>>());
        section
    }

    /// Adds a row.
    pub fn row(&mut self, cells: &[&str]) {
        let _ = writeln!(self.text, "| {} |", cells.join(" | "));
    }

    /// Adds a chart.
    pub fn chart(&mut self, name: &str, svg: String) {
        self.charts.push((format!("peers-{name}.svg"), svg));
    }
}

/// The middle one; what was not reached counts as endless.
pub fn median(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut values: Vec<f64> = values.map(|value| value.unwrap_or(f64::INFINITY)).collect();
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values.get((values.len() - 1) / 2)?;
    Some((lower + upper) / 2.0).filter(|middle| middle.is_finite())
}

/// Time for a table.
pub fn seconds(value: Option<f64>) -> String {
    value.map_or("never".to_owned(), |value| format!("{value:.2}"))
}

/// A ratio for a table.
pub fn bytes(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.3}"))
}

/// A verdict on us.
pub fn judge(well: bool, what: &str) -> String {
    let word = if well { "**yes**" } else { "**NO**" };
    if what.is_empty() { word.to_owned() } else { format!("{word} {what}") }
}

/// Writes everything down, and with `record` beside the benchmark, too.
pub fn write(sections: &[Section], notes: &[Note], took: Duration, quick: bool, record: bool) {
    let folder = figures::folder().join("bench");
    fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut text = format!(
        "{HEADING}\nMeasured on {}, in {:.0} minutes. {}.\n{}",
        figures::circumstances(),
        took.as_secs_f64() / 60.0,
        versions(),
        if quick {
            "**Quick: one round with a small file, only to see whether everything works.**\n"
        } else {
            ""
        }
    );
    for section in sections {
        text += &section.text;
        for (name, svg) in &section.charts {
            save(&folder.join(name), svg);
            let _ = write!(text, "\n![{name}]({name})\n");
        }
    }
    let table = folder.join("peers.md");
    save(&table, &text);
    save(&folder.join("peers-runs.csv"), &runs(notes));
    println!("{text}\n{}", table.display());
    if record {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench");
        let results = folder.join("RESULTS.md");
        let old = fs::read_to_string(&results).unwrap_or_default();
        save(&results, &replace(&old, &text));
        for (name, svg) in sections.iter().flat_map(|section| &section.charts) {
            save(&folder.join(name), svg);
        }
        println!("recorded in {}", results.display());
    }
}

fn save(path: &PathBuf, text: &str) {
    fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Every run, one a line.
fn runs(notes: &[Note]) -> String {
    let mut text =
        "case,tool,sent,sender CPU s,receiver CPU s,overflowed,exit code,seconds of each receiver\n"
            .to_owned();
    for Note { case, tool, outcome } in notes {
        let each: Vec<String> = outcome.seconds.iter().map(|time| seconds(*time)).collect();
        let code = outcome.gave_up.map_or(String::new(), |code| code.to_string());
        let _ = writeln!(
            text,
            "{case},\"{}\",{},{:.3},{:.3},{},{code},{}",
            tool.name(),
            bytes(outcome.sent),
            outcome.sender_cpu,
            outcome.receiver_cpu,
            outcome.overflowed,
            each.join(" ")
        );
    }
    text
}

/// Puts our part of the results in the old one's place: it goes from its heading to the next of the same rank.
fn replace(old: &str, new: &str) -> String {
    let rank = |text: &str| text.find("\n# ").map_or(text.len(), |at| at + 1);
    let Some(from) = old.find(HEADING).filter(|at| *at == 0 || old[..*at].ends_with('\n')) else {
        return if old.is_empty() { new.to_owned() } else { format!("{}\n\n{new}", old.trim_end()) };
    };
    let rest = &old[from + rank(&old[from..])..];
    let gap = if rest.is_empty() { "" } else { "\n" };
    format!("{}{new}{gap}{rest}", &old[..from])
}

/// What the packages are.
fn versions() -> String {
    let mut ask = Command::new("dpkg-query");
    ask.args(["-W", "-f", "${Package} ${Version}, "]).args(PACKAGES);
    let said = ask.output().map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    said.trim_end_matches(", ").to_owned()
}
