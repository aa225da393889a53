//! Step plots as SVG, for what is better seen than read. The same numbers give the same file, to the byte.

use crate::figures;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

/// Colours that also the colour-blind tell apart.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9"];
/// Where the colours begin again, the lines are dashed.
const DASHES: [&str; 3] = ["", " stroke-dasharray=\"8 3\"", " stroke-dasharray=\"2 2\""];
/// Of the picture, in pixels.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 480.0;
/// Of the axes' box: what is outside of it is for the words.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 700.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 420.0;
/// Ticks are at least so far apart.
const APART: f64 = 64.0;
/// Lines of the legend.
const LEADING: f64 = 18.0;

/// Several series over one pair of axes. Both axes begin at 0.
#[derive(Clone, Debug)]
pub struct Plot<'a> {
    /// Above it.
    pub title: &'a str,
    /// What the axes are, with their unit.
    pub x: &'a str,
    /// See `x`.
    pub y: &'a str,
    /// Pixels by which each line is drawn above the one before it, where equal values would hide each other.
    pub apart: f64,
    /// In the order of the legend.
    pub series: Vec<Series>,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// From each x on the value is y, until the next; `None`: there is none. The last only ends the line.
    pub points: Vec<(f64, Option<f64>)>,
}

impl Plot<'_> {
    /// Writes it as `NAME.svg` beside the figures, and returns the path.
    pub fn write(&self, name: &str) -> PathBuf {
        let path = figures::folder().join(format!("{name}.svg"));
        fs::write(&path, self.svg()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// The file.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(points().map(|point| point.0), LEFT, RIGHT);
        let above = self.apart * self.series.len().saturating_sub(1) as f64;
        let y = Axis::new(points().filter_map(|point| point.1), BOTTOM, TOP + above);
        let legend = TOP + LEADING * self.series.len() as f64;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
            height = HEIGHT.max(legend + LEADING)
        );
        let (middle, centre) = ((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0);
        text(&mut out, (middle, TOP - 22.0), "text-anchor=\"middle\" font-size=\"16\"", self.title);
        text(&mut out, (middle, BOTTOM + 42.0), "text-anchor=\"middle\"", self.x);
        let upright = format!("text-anchor=\"middle\" transform=\"rotate(-90 18 {centre})\"");
        text(&mut out, (18.0, centre), &upright, self.y);
        for (value, at) in x.ticks() {
            line(&mut out, &[(at, TOP), (at, BOTTOM)], "stroke=\"#ddd\"");
            text(&mut out, (at, BOTTOM + 20.0), "text-anchor=\"middle\"", &value);
        }
        for (value, at) in y.ticks() {
            line(&mut out, &[(LEFT, at), (RIGHT, at)], "stroke=\"#ddd\"");
            text(&mut out, (LEFT - 8.0, at + 4.0), "text-anchor=\"end\"", &value);
        }
        line(&mut out, &[(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)], "stroke=\"#000\"");
        for (n, series) in self.series.iter().enumerate() {
            let dash = DASHES[n / COLOURS.len() % DASHES.len()];
            let style = format!("stroke=\"{}\" stroke-width=\"2\"{dash}", COLOURS[n % COLOURS.len()]);
            let up = self.apart * n as f64;
            for run in runs(&series.points) {
                let at: Vec<_> = run.iter().map(|(px, py)| (x.at(*px), y.at(*py) - up)).collect();
                line(&mut out, &at, &style);
            }
            let at = TOP + LEADING * n as f64;
            line(&mut out, &[(RIGHT + 16.0, at), (RIGHT + 40.0, at)], &style);
            text(&mut out, (RIGHT + 48.0, at + 4.0), "", &series.name);
        }
        out + "</svg>\n"
    }
}

/// From numbers to pixels.
struct Axis {
    most: f64,
    step: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (most, whole) = values
            .fold((0.0, true), |(most, whole), value| (f64::max(most, value), whole && value.fract() == 0.0));
        let most = if most > 0.0 { most } else { 1.0 };
        // 1, 2 or 5 times a power of ten; there is no tier one and a half.
        let least = (most * APART / (to - from).abs()).max(if whole { 1.0 } else { 0.0 });
        let power = 10_f64.powf(least.log10().floor());
        let step = [1.0, 2.0, 5.0].map(|n| n * power).into_iter().find(|step| *step >= least);
        Self { most, step: step.unwrap_or(10.0 * power), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * value / self.most
    }

    /// What is written beside the axis, and where.
    fn ticks(&self) -> impl Iterator<Item = (String, f64)> {
        let count = (self.most / self.step + 1e-9) as u32;
        let digits = -self.step.log10().floor().min(0.0) as usize;
        let value = |n| f64::from(n) * self.step;
        (0..=count).map(move |n| (format!("{:.digits$}", value(n)), self.at(value(n))))
    }
}

/// The corners of each part of a series that has values.
fn runs(points: &[(f64, Option<f64>)]) -> Vec<Vec<(f64, f64)>> {
    let mut runs: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut before = None;
    for pair in points.windows(2) {
        let ((from, Some(value)), (to, _)) = (pair[0], pair[1]) else {
            before = None;
            continue;
        };
        match (before, runs.last_mut()) {
            (Some(_), Some(run)) => run.extend([(from, value), (to, value)]),
            _ => runs.push(vec![(from, value), (to, value)]),
        }
        before = Some(value);
    }
    runs
}

fn line(out: &mut String, points: &[(f64, f64)], style: &str) {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(out, "<polyline fill=\"none\" {style} points=\"{}\"/>", points.join(" "));
}

fn text(out: &mut String, (x, y): (f64, f64), style: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_steps_and_gaps() {
        let points = [(0.0, Some(1.0)), (2.0, Some(3.0)), (4.0, None), (5.0, Some(0.0)), (6.0, Some(0.0))];
        let steps = vec![(0.0, 1.0), (2.0, 1.0), (2.0, 3.0), (4.0, 3.0)];
        assert_eq!(runs(&points), [steps, vec![(5.0, 0.0), (6.0, 0.0)]]);
    }

    #[test]
    fn ticks_are_round_and_few() {
        for (most, ticks) in
            [(2.0, "0 1 2"), (3.0, "0 1 2 3"), (92.0, "0 20 40 60 80"), (0.4, "0.0 0.1 0.2 0.3 0.4")]
        {
            let axis = Axis::new([most].into_iter(), 0.0, 370.0);
            assert_eq!(axis.ticks().map(|tick| tick.0).collect::<Vec<_>>().join(" "), ticks);
        }
    }

    #[test]
    fn a_plot_says_what_it_shows() {
        let series = Series { name: "a < b".into(), points: vec![(0.0, Some(0.0)), (10.0, Some(2.0))] };
        let plot = Plot { title: "T", x: "time in s", y: "tier", apart: 3.0, series: vec![series] };
        let svg = plot.svg();
        assert_eq!(svg, plot.svg());
        for word in [">T<", ">time in s<", ">tier<", ">a &lt; b<", "60.0,420.0 700.0,420.0"] {
            assert!(svg.contains(word), "{word}: {svg}");
        }
    }
}
