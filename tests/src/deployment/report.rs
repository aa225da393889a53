//! What a deployment came to, in words and as a picture.

use super::{Deployment, Joining, Life};
use crate::figures;
use crate::plot::{Plot, Series};
use crate::sim::Loss;
use carousel_proto::tiers::Kind;
use carousel_proto::units::{show_rate, show_seconds};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

/// Points of a curve in the picture.
const POINTS: usize = 200;

/// Times of completion, sorted; those who never got it are infinite and stand last.
#[derive(Debug, Clone)]
pub struct Times(Vec<f64>);

impl Times {
    /// The times of these lives.
    pub fn new<'a>(lives: impl Iterator<Item = &'a Life>) -> Self {
        let mut times: Vec<f64> = lives.map(|life| life.took).collect();
        times.sort_unstable_by(f64::total_cmp);
        Self(times)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Mean time.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.len() as f64
    }

    /// After so many seconds this share of them, 0 to 1, had it.
    pub fn percentile(&self, share: f64) -> f64 {
        let index = (share * self.len() as f64).ceil() as usize;
        self.0.get(index.clamp(1, self.len().max(1)) - 1).copied().unwrap_or(0.0)
    }

    /// The share that had it after each time, as a step curve in per cent, with time in `unit` seconds.
    fn curve(&self, unit: f64) -> Vec<(f64, Option<f64>)> {
        let step = |n: usize| {
            let share = n as f64 / POINTS as f64;
            (self.percentile(share) / unit, Some(share * 100.0))
        };
        let steps = (1..=POINTS).map(step).filter(|(time, _)| time.is_finite());
        // Not from 0 on: one could not see which lines lie on the axis.
        std::iter::once((self.percentile(0.0) / unit, Some(0.0))).chain(steps).collect()
    }
}

fn rates(deployment: &Deployment) -> Vec<String> {
    deployment.tiers.iter().map(|rate| show_rate(*rate as f64)).collect()
}

fn seconds(time: f64) -> String {
    if time.is_finite() { show_seconds(time) } else { "never".into() }
}

fn loss(loss: Loss) -> String {
    let share = loss.share() * 100.0;
    match loss {
        Loss::Bursts { mean, .. } => format!("{share} % in bursts of {mean}"),
        _ => format!("{share} %"),
    }
}

/// Lives of one class, or of all.
fn of_class(lives: &[Life], class: Option<usize>) -> impl Iterator<Item = &Life> {
    lives.iter().filter(move |life| class.is_none_or(|class| usize::from(life.class) == class))
}

/// Seconds from the beginning until the last receiver that got it had it.
fn end(lives: &[Life]) -> f64 {
    lives.iter().map(|life| life.joined + life.took).filter(|end| end.is_finite()).fold(0.0, f64::max)
}

/// The tables, as Markdown.
pub fn tables(deployment: &Deployment, lives: &[Life]) -> String {
    let (mut out, end) = (String::new(), end(lives));
    let rates = rates(deployment);
    let joining = match deployment.joining {
        Joining::Once => "all join at once".to_owned(),
        Joining::Evenly(span) => format!("they join evenly over {}", show_seconds(span)),
        Joining::Randomly(span) => format!("they join at random over {}", show_seconds(span)),
    };
    let _ = writeln!(
        out,
        "{} to {} receivers at {}{}; {joining}; seed {}.\n",
        show_size(deployment.geometry.size() as f64),
        thousands(lives.len() as u64),
        rates.join(", "),
        if deployment.kind == Kind::Stacked { " stacked" } else { "" },
        deployment.seed
    );
    out += "| receivers | number | loss | line | tier at the end | median | 99 % | 99.99 % | last | received / needed |\n";
    out += "|---|--:|---|--:|---|--:|--:|--:|--:|--:|\n";
    let needed = deployment.geometry.symbols_needed() as f64;
    let classes =
        (0..deployment.classes.len()).map(Some).chain((deployment.classes.len() > 1).then_some(None));
    for class in classes {
        let times = Times::new(of_class(lives, class));
        if times.is_empty() {
            continue;
        }
        let (name, lost, line) = match class.map(|class| &deployment.classes[class]) {
            Some(class) => {
                let rate = class.rate.map_or("–".into(), |rate| show_rate(rate as f64));
                (&*class.name, loss(class.loss), rate)
            }
            None => ("all", String::new(), String::new()),
        };
        let mut kept = vec![0; deployment.tiers.len()];
        of_class(lives, class).for_each(|life| kept[usize::from(life.tier)] += 1);
        let tier = |(count, rate): (usize, &String)| match count as f64 / times.len() as f64 * 100.0 {
            share if share >= 99.95 => Some(rate.clone()),
            share => (share >= 0.05).then(|| format!("{rate}: {share:.1} %")),
        };
        let kept: Vec<_> = kept.into_iter().zip(&rates).filter_map(tier).collect();
        let received = of_class(lives, class).map(|life| f64::from(life.received)).sum::<f64>();
        let _ = writeln!(
            out,
            "| {name} | {} | {lost} | {line} | {} | {} | {} | {} | {} | {:.3} |",
            thousands(times.len() as u64),
            kept.join(", "),
            seconds(times.percentile(0.5)),
            seconds(times.percentile(0.99)),
            seconds(times.percentile(0.9999)),
            seconds(times.percentile(1.0)),
            received / times.len() as f64 / needed,
        );
    }
    let never = lives.iter().filter(|life| life.took.is_infinite()).count() as u64;
    if never > 0 {
        let _ = writeln!(out, "\n{} receivers never got it.", thousands(never));
    }

    if end == 0.0 {
        return out; // to send for ever is not an answer
    }
    out += "\n| who | sends | until the last one has it |\n|---|---|--:|\n";
    let mut total = 0.0;
    for (server, number) in deployment.servers.iter().zip(1..) {
        for rate in &deployment.tiers {
            let sends = server.sends(end);
            total += *rate as f64 * sends / 8.0;
            let _ = writeln!(
                out,
                "| server {number}, phase {} | {} for {} | {} |",
                server.number,
                show_rate(*rate as f64),
                show_seconds(sends),
                show_size(*rate as f64 * sends / 8.0)
            );
        }
    }
    if deployment.servers.len() * deployment.tiers.len() > 1 {
        let _ = writeln!(out, "| together | | {} |", show_size(total));
    }
    // Without headers and repetitions: unicast needs more.
    let unicast = deployment.geometry.size() as f64 * lives.len() as f64;
    let _ = writeln!(
        out,
        "| unicast | {} each, headers and repetitions apart | {}: {:.1} times as much, {} at the same rate |",
        show_size(deployment.geometry.size() as f64),
        show_size(unicast),
        unicast / total,
        long(unicast / total * end)
    );
    out
}

/// Seconds for people, days if there are many.
fn long(seconds: f64) -> String {
    if seconds < 2.0 * 86_400.0 { show_seconds(seconds) } else { format!("{:.0} days", seconds / 86_400.0) }
}

/// Bytes for people, decimal as the rates are: `7.6 GB`.
fn show_size(bytes: f64) -> String {
    let power = (bytes.max(1.0).log10() / 3.0).floor().clamp(0.0, 4.0);
    let unit = ["B", "kB", "MB", "GB", "TB"][power as usize];
    format!("{} {unit}", (bytes / 1e3f64.powf(power) * 10.0).round() / 10.0)
}

/// `1,000,000`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// Draws the share of receivers that have it over the time since each one's own join, into
/// `bench/deployment-NAME.svg` in the target folder, and returns the path. `marks` are moments to compare with.
pub fn draw(deployment: &Deployment, lives: &[Life], name: &str, marks: &[(String, f64)]) -> PathBuf {
    let folder = figures::folder().join("bench");
    fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let longest = lives.iter().map(|life| life.took).filter(|took| took.is_finite()).fold(0.0, f64::max);
    let (unit, x) = match longest {
        took if took > 600.0 => (60.0, "time since the receiver joined, in min"),
        _ => (1.0, "time since the receiver joined, in s"),
    };
    let mut series: Vec<_> = (deployment.classes.iter().enumerate())
        .map(|(n, class)| (class.name.clone(), Times::new(of_class(lives, Some(n)))))
        .collect();
    if series.len() > 1 {
        series.insert(0, ("all".into(), Times::new(lives.iter())));
    }
    let curves = series.into_iter().map(|(name, times)| Series { name, points: times.curve(unit) });
    let mut marks = marks.to_vec();
    if let ([rate], [class], [_]) = (&deployment.tiers[..], &deployment.classes[..], &deployment.servers[..])
    {
        let ideal = deployment.ideal(*rate, class.loss.share());
        marks.insert(0, (format!("ideal: {}", show_seconds(ideal)), ideal));
    }
    let marks = marks.iter().map(|(name, at)| Series {
        name: name.clone(),
        points: vec![(at / unit, Some(0.0)), (at / unit, Some(100.0)), (at / unit, Some(100.0))],
    });
    let title = format!(
        "{} to {} receivers at {}",
        show_size(deployment.geometry.size() as f64),
        thousands(lives.len() as u64),
        rates(deployment).join(", ")
    );
    let y = "receivers that have the object, in per cent";
    let plot = Plot { title: &title, x, y, apart: 0.0, series: curves.chain(marks).collect() };
    plot.write(&format!("bench/deployment-{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_of_somebody() {
        let lives: Vec<_> =
            (1..=1_000).rev().map(|n| Life { took: f64::from(n), ..Life::default() }).collect();
        let times = Times::new(lives.iter());
        assert_eq!([0.5, 0.99, 0.9999, 1.0].map(|p| times.percentile(p)), [500.0, 990.0, 1_000.0, 1_000.0]);
        assert_eq!(times.mean(), 500.5);
        let one = Times::new(lives[..1].iter());
        assert_eq!((one.percentile(0.0), one.percentile(1.0)), (1_000.0, 1_000.0));
    }

    #[test]
    fn sizes_are_decimal() {
        assert_eq!(
            [0.0, 999.0, 5e7, 7.56e9, 5e13].map(show_size),
            ["0 B", "999 B", "50 MB", "7.6 GB", "50 TB"]
        );
    }

    #[test]
    fn numbers_have_commas() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
