//! Figures held against bars: what the benchmark programs print, and write into `bench` in the target folder.
//!
//! A figure is the median of its runs. A bar that was missed is a line in a table, never a failed program: whoever
//! reads it decides.

use crate::figures;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a figure is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// Only for information.
    None,
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// One figure: what it is, in which unit, and its runs.
#[derive(Clone, Debug)]
pub struct Figure {
    what: String,
    unit: &'static str,
    bar: Bar,
    runs: Vec<f64>,
    /// What the spoilt runs measured.
    spoilt: Vec<f64>,
    note: String,
}

impl Figure {
    /// A figure without runs.
    pub fn new(what: impl Into<String>, unit: &'static str, bar: Bar) -> Self {
        Self { what: what.into(), unit, bar, runs: Vec::new(), spoilt: Vec::new(), note: String::new() }
    }

    /// The same with these runs.
    pub fn with(mut self, runs: impl IntoIterator<Item = f64>) -> Self {
        self.runs.extend(runs);
        self
    }

    /// Adds what a run measured; a run that the machine spoilt counts as such, and its value is shown but not used.
    pub fn add(&mut self, run: Run, value: f64) {
        match run {
            Run::Clean => self.runs.push(value),
            Run::Spoilt => self.spoilt.push(value),
        }
    }

    /// Adds a remark for the last column.
    pub fn note(&mut self, note: impl AsRef<str>) {
        if !self.note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(note.as_ref());
    }

    /// The middle of its runs, if there are any.
    pub fn median(&self) -> Option<f64> {
        median(&self.runs)
    }

    /// What is to be said of it.
    pub fn verdict(&self) -> &'static str {
        match (self.bar, self.median()) {
            (Bar::None, Some(_)) => "",
            (_, None) if !self.spoilt.is_empty() => "inconclusive",
            (_, None) => "not measured",
            // Half of the runs were no use: what is left may be luck.
            _ if self.spoilt.len() > self.runs.len() => "inconclusive",
            (Bar::AtMost(bar), Some(median)) if median <= bar => "met",
            (Bar::AtLeast(bar), Some(median)) if median >= bar => "met",
            _ => "**missed**",
        }
    }

    fn line(&self) -> String {
        let number = |value: f64| format!("{} {}", significant(value), self.unit).trim_end().to_owned();
        let bar = match self.bar {
            Bar::None => String::new(),
            Bar::AtMost(bar) => format!("≤ {}", number(bar)),
            Bar::AtLeast(bar) => format!("≥ {}", number(bar)),
        };
        let least = self.runs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let range = if self.runs.len() > 1 {
            format!("{} – {}", significant(least), significant(most))
        } else {
            String::new()
        };
        let spoilt: Vec<String> = self.spoilt.iter().copied().map(significant).collect();
        let runs = match &spoilt[..] {
            [] => self.runs.len().to_string(),
            spoilt => format!("{}, spoilt: {}", self.runs.len(), spoilt.join(", ")),
        };
        format!(
            "| {} | {} | {range} | {runs} | {bar} | {} | {} |",
            self.what,
            self.median().map_or("–".into(), number),
            self.verdict(),
            self.note,
        )
    }
}

/// Whether a run says anything about the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// It does.
    Clean,
    /// The machine got in the way: it dropped packets, or had no CPU for them.
    Spoilt,
}

/// The tables of one program.
pub struct Bars {
    file: String,
    text: String,
}

impl Bars {
    /// Begins to print `title` and what machine this is. In the end `FILE.md` has it, too.
    pub fn new(file: &str, title: &str) -> Self {
        let mut bars = Self { file: format!("{file}.md"), text: String::new() };
        bars.say(&format!("# {title}\n\n{}", machine()));
        bars
    }

    /// Prints a paragraph.
    pub fn say(&mut self, text: &str) {
        println!("{text}\n");
        let _ = writeln!(self.text, "{text}\n");
    }

    /// Prints a table under a title.
    pub fn table(&mut self, title: &str, figures: &[Figure]) {
        let mut text = format!(
            "## {title}\n\n| | median | range | runs | bar | verdict | note |\n|---|--:|--:|--:|--:|---|---|\n"
        );
        figures.iter().for_each(|figure| text += &format!("{}\n", figure.line()));
        self.say(text.trim_end());
    }

    /// Writes the file, and with `record` the one in capitals beside the benchmarks, too. That it cannot is said, and
    /// no more: everything was printed.
    pub fn finish(self, record: bool) {
        let mut files = vec![figures::folder().join("bench").join(&self.file)];
        if record {
            let name = self.file.trim_end_matches(".md").to_uppercase();
            files.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("bench").join(format!("{name}.md")));
        }
        let text = format!("{}\n", self.text.trim_end());
        for file in files {
            let folder = file.parent().unwrap_or(Path::new("/"));
            match fs::create_dir_all(folder).and_then(|()| fs::write(&file, &text)) {
                Ok(()) => println!("written to {}", file.display()),
                Err(e) => eprintln!("{}: {e}", file.display()),
            }
        }
    }
}

/// The middle one, or between the two middle ones.
fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// Three significant digits, without an exponent.
fn significant(value: f64) -> String {
    if value.is_nan() {
        return "?".into(); // a run that was spoilt before there was a value
    }
    let digits = if value == 0.0 { 0 } else { (2 - value.abs().log10().floor() as i32).clamp(0, 9) };
    format!("{value:.*}", digits as usize)
}

fn machine() -> String {
    let word = |program: &str, args: &[&str]| {
        let out = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let commit = word("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]);
    format!(
        "{}, Linux {}, {} cores ({}), carousel {}{}.",
        word("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_default(),
        fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        std::thread::available_parallelism().map_or(0, usize::from),
        model.map_or("unknown", |(_, name)| name.trim()),
        env!("CARGO_PKG_VERSION"),
        commit.map(|commit| format!(", commit {commit}")).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_decides_and_spoilt_runs_do_not() {
        let figure = |bar, runs: &[f64]| Figure::new("x", "ms", bar).with(runs.iter().copied());
        assert_eq!(figure(Bar::AtMost(2.0), &[9.0, 1.0, 2.0]).verdict(), "met");
        assert_eq!(figure(Bar::AtMost(2.0), &[9.0, 1.0, 2.1]).verdict(), "**missed**");
        assert_eq!(figure(Bar::AtLeast(2.0), &[1.0, 4.0]).verdict(), "met");
        assert_eq!(figure(Bar::None, &[1.0]).verdict(), "");
        assert_eq!(figure(Bar::AtMost(2.0), &[]).verdict(), "not measured");
        let mut spoilt = figure(Bar::AtMost(2.0), &[]);
        spoilt.add(Run::Spoilt, 1.0);
        assert_eq!(spoilt.verdict(), "inconclusive");
        spoilt.add(Run::Clean, 3.0);
        assert_eq!(spoilt.verdict(), "**missed**");
    }

    #[test]
    fn a_line_says_it_all() {
        let mut figure = Figure::new("burst", "ms", Bar::AtMost(2.0)).with([1.0, 0.123_45, 1234.5]);
        figure.note("one");
        figure.note("two");
        assert_eq!(figure.line(), "| burst | 1.00 ms | 0.123 – 1234 | 3 | ≤ 2.00 ms | met | one; two |");
    }
}
