//! Charts as SVG for comparisons: lines with markers, steps, and groups of bars. Every contender has its own colour,
//! the same in all charts. The same numbers give the same file, to the byte.
//!
//! What was not reached is shown, not left out: a cross at the upper edge says that there is no value.

use std::fmt::Write as _;

/// Of the picture, in pixels.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
/// Of the axes' box; the legend stands at its right.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 610.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 400.0;
/// Room above the highest value, so that no marker touches the edge.
const AIR: f64 = 1.06;
/// Lines of the legend.
const LEADING: f64 = 20.0;
/// Of a marker, from its middle.
const MARKER: f64 = 4.5;

/// How an axis runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From 0 on.
    Linear,
    /// In powers of two, from 1 on at most.
    Doubling,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it is, with its unit.
    pub name: String,
    /// How it runs.
    pub scale: Scale,
}

impl Axis {
    /// From 0 on.
    pub fn linear(name: &str) -> Self {
        Self { name: name.to_owned(), scale: Scale::Linear }
    }

    /// In powers of two.
    pub fn doubling(name: &str) -> Self {
        Self { name: name.to_owned(), scale: Scale::Doubling }
    }
}

/// How the points of a line are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// Straight, with a marker at each.
    Straight,
    /// Straight and dashed, without markers: for what was not measured but computed.
    Dashed,
    /// In steps: from each x on the value is y.
    Steps,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// For the legend.
    pub name: String,
    /// As SVG knows it.
    pub colour: &'static str,
    /// How its points are joined.
    pub joined: Joined,
    /// By x; `None`: it did not get there.
    pub points: Vec<(f64, Option<f64>)>,
}

/// Lines over one pair of axes.
#[derive(Clone, Debug)]
pub struct Lines {
    /// Above it.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// In the order of the legend.
    pub lines: Vec<Line>,
}

/// One kind of bar, once in each group.
#[derive(Clone, Debug)]
pub struct Bar {
    /// For the legend.
    pub name: String,
    /// As SVG knows it.
    pub colour: &'static str,
    /// For each group; `None`: it did not get there.
    pub values: Vec<Option<f64>>,
}

/// Groups of bars over one axis.
#[derive(Clone, Debug)]
pub struct Bars {
    /// Above it.
    pub title: String,
    /// What stands below the groups.
    pub groups: Vec<String>,
    /// The vertical axis.
    pub y: Axis,
    /// In the order of the legend, and within each group.
    pub bars: Vec<Bar>,
}

impl Lines {
    /// The file.
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = Range::new(self.x.scale, points().map(|point| point.0), 1.0, LEFT, RIGHT - MARKER);
        let y = Range::new(self.y.scale, points().filter_map(|point| point.1), AIR, BOTTOM, TOP);
        let mut out = Picture::new(&self.title, &self.y, &y, self.lines.len());
        out.text(((LEFT + RIGHT) / 2.0, BOTTOM + 44.0), "text-anchor=\"middle\"", &self.x.name);
        for (value, at) in x.ticks() {
            out.polyline(&[(at, BOTTOM), (at, BOTTOM + 5.0)], "stroke=\"#333\"");
            out.text((at, BOTTOM + 21.0), "text-anchor=\"middle\"", &value);
        }
        // The first is the one the chart is about: it is drawn last, above the others.
        for (n, line) in self.lines.iter().enumerate().rev() {
            let dash = if line.joined == Joined::Dashed { " stroke-dasharray=\"7 4\"" } else { "" };
            let style = format!("stroke=\"{}\" stroke-width=\"2.2\"{dash}", line.colour);
            for run in line.points.split(|point| point.1.is_none()) {
                let at = run.iter().filter_map(|&(px, py)| Some((x.at(px), y.at(py?))));
                let at: Vec<_> = if line.joined == Joined::Steps { steps(at) } else { at.collect() };
                out.polyline(&at, &style);
            }
            for &(px, py) in &line.points {
                match (py, line.joined) {
                    (None, _) => {
                        // Side by side, and never in the legend.
                        let beside = if x.at(px) > (LEFT + RIGHT) / 2.0 { -10.0 } else { 10.0 };
                        out.cross((x.at(px) + beside * n as f64, TOP + MARKER), line.colour);
                    }
                    (Some(py), Joined::Straight) => out.marker((x.at(px), y.at(py)), line.colour, n),
                    (Some(_), _) => {}
                }
            }
            let at = (RIGHT + 22.0, TOP + LEADING * n as f64);
            out.polyline(&[at, (at.0 + 26.0, at.1)], &style);
            if line.joined == Joined::Straight {
                out.marker((at.0 + 13.0, at.1), line.colour, n);
            }
            out.text((at.0 + 34.0, at.1 + 4.5), "", &line.name);
        }
        let missing = points().any(|point| point.1.is_none());
        out.end(missing, self.lines.len())
    }
}

impl Bars {
    /// The file.
    pub fn svg(&self) -> String {
        let values = self.bars.iter().flat_map(|bar| &bar.values).filter_map(|value| *value);
        // The values stand above the bars.
        let y = Range::new(self.y.scale, values, AIR * 1.04, BOTTOM, TOP);
        let mut out = Picture::new(&self.title, &self.y, &y, self.bars.len());
        let group = (RIGHT - LEFT) / self.groups.len().max(1) as f64;
        let wide = (group * 0.84 / self.bars.len().max(1) as f64).min(60.0);
        for (g, name) in self.groups.iter().enumerate() {
            let middle = LEFT + group * (g as f64 + 0.5);
            out.text((middle, BOTTOM + 21.0), "text-anchor=\"middle\"", name);
            let from = middle - wide * self.bars.len() as f64 / 2.0;
            for (n, bar) in self.bars.iter().enumerate() {
                let left = from + wide * n as f64;
                let centre = left + wide / 2.0;
                match bar.values.get(g).copied().flatten() {
                    None => out.cross((centre, BOTTOM - 10.0), bar.colour),
                    Some(value) => {
                        out.rectangle(left + 1.0, y.at(value), wide - 2.0, BOTTOM, bar.colour);
                        let style = "text-anchor=\"middle\" font-size=\"11\"";
                        out.text((centre, y.at(value) - 5.0), style, &short(value));
                    }
                }
            }
        }
        for (n, bar) in self.bars.iter().enumerate() {
            let at = (RIGHT + 22.0, TOP + LEADING * n as f64);
            out.rectangle(at.0 + 4.0, at.1 - 7.0, 18.0, at.1 + 7.0, bar.colour);
            out.text((at.0 + 34.0, at.1 + 4.5), "", &bar.name);
        }
        let missing = self.bars.iter().any(|bar| bar.values.iter().any(Option::is_none));
        out.end(missing, self.bars.len())
    }
}

/// Three digits, as far as they say something.
fn short(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// The corners of a line that goes in steps.
fn steps(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut corners: Vec<(f64, f64)> = Vec::new();
    for (x, y) in points {
        if let Some(&(_, before)) = corners.last() {
            corners.push((x, before));
        }
        corners.push((x, y));
    }
    corners
}

/// From numbers to pixels.
struct Range {
    scale: Scale,
    most: f64,
    from: f64,
    to: f64,
}

impl Range {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, air: f64, from: f64, to: f64) -> Self {
        let most = values.fold(0.0, f64::max);
        let most = match scale {
            Scale::Linear if most > 0.0 => most * air,
            Scale::Linear => 1.0,
            Scale::Doubling => most.max(2.0) * if air > 1.0 { 1.25 } else { 1.0 },
        };
        Self { scale, most, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => value / self.most,
            Scale::Doubling => value.max(1.0).log2() / self.most.log2(),
        };
        self.from + (self.to - self.from) * share
    }

    /// What is written beside the axis, and where.
    fn ticks(&self) -> Vec<(String, f64)> {
        let values: Vec<f64> = match self.scale {
            Scale::Doubling => {
                std::iter::successors(Some(1.0), |v| Some(v * 2.0)).take_while(|v| *v <= self.most).collect()
            }
            Scale::Linear => {
                // At most eight, 1, 2 or 5 times a power of ten apart.
                let least = self.most / 8.0;
                let power = 10_f64.powf(least.log10().floor());
                let step = [1.0, 2.0, 5.0].map(|n| n * power).into_iter().find(|step| *step >= least);
                let step = step.unwrap_or(10.0 * power);
                (0..=8).map(|n| f64::from(n) * step).take_while(|v| *v <= self.most * 1.0001).collect()
            }
        };
        let digits = values.iter().map(|v| {
            if v.fract().abs() < 1e-9 { 0 } else { 2 - usize::from((v * 10.0).fract().abs() < 1e-6) }
        });
        let digits = digits.max().unwrap_or(0);
        values.into_iter().map(|v| (format!("{v:.digits$}"), self.at(v))).collect()
    }
}

/// What is drawn so far.
struct Picture(String);

impl Picture {
    fn new(title: &str, name: &Axis, y: &Range, legend: usize) -> Self {
        let height = HEIGHT.max(TOP + LEADING * (legend as f64 + 2.0));
        let mut out = Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        ));
        let centre = (TOP + BOTTOM) / 2.0;
        out.text((LEFT, TOP - 26.0), "font-size=\"16\" font-weight=\"bold\"", title);
        for (value, at) in y.ticks() {
            out.polyline(&[(LEFT, at), (RIGHT, at)], "stroke=\"#ddd\"");
            out.text((LEFT - 8.0, at + 4.5), "text-anchor=\"end\"", &value);
        }
        let upright = format!("text-anchor=\"middle\" transform=\"rotate(-90 20 {centre})\"");
        out.text((20.0, centre), &upright, &name.name);
        out.polyline(&[(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)], "stroke=\"#333\"");
        out
    }

    fn end(mut self, missing: bool, legend: usize) -> String {
        if missing {
            let at = (RIGHT + 22.0, TOP + LEADING * (legend as f64 + 0.6));
            self.cross((at.0 + 13.0, at.1), "#222");
            self.text((at.0 + 34.0, at.1 + 4.5), "", "not everybody was served");
        }
        self.0 + "</svg>\n"
    }

    fn polyline(&mut self, points: &[(f64, f64)], style: &str) {
        if points.len() < 2 {
            return;
        }
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(self.0, "<polyline fill=\"none\" {style} points=\"{}\"/>", points.join(" "));
    }

    fn rectangle(&mut self, left: f64, top: f64, wide: f64, bottom: f64, colour: &str) {
        let high = bottom - top;
        let _ = writeln!(
            self.0,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\" fill=\"{colour}\"/>"
        );
    }

    /// Its shape, too, says whose it is.
    fn marker(&mut self, (x, y): (f64, f64), colour: &str, n: usize) {
        let r = MARKER;
        let corners: &[(f64, f64)] = match n % 4 {
            0 => {
                let _ = writeln!(self.0, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\" fill=\"{colour}\"/>");
                return;
            }
            1 => &[(-r, -r), (r, -r), (r, r), (-r, r)],
            2 => &[(0.0, -r - 1.0), (r + 1.0, r), (-r - 1.0, r)],
            _ => &[(0.0, -r - 1.5), (r + 1.5, 0.0), (0.0, r + 1.5), (-r - 1.5, 0.0)],
        };
        let corners: Vec<String> =
            corners.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        let _ = writeln!(self.0, "<polygon fill=\"{colour}\" points=\"{}\"/>", corners.join(" "));
    }

    fn cross(&mut self, (x, y): (f64, f64), colour: &str) {
        let style = format!("stroke=\"{colour}\" stroke-width=\"2.2\"");
        self.polyline(&[(x - MARKER, y - MARKER), (x + MARKER, y + MARKER)], &style);
        self.polyline(&[(x - MARKER, y + MARKER), (x + MARKER, y - MARKER)], &style);
    }

    fn text(&mut self, (x, y): (f64, f64), style: &str, words: &str) {
        let words = words.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(self.0, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{words}</text>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(range: &Range) -> String {
        range.ticks().into_iter().map(|tick| tick.0).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ticks_are_round_and_few() {
        let linear = |most: f64| words(&Range::new(Scale::Linear, [most].into_iter(), 1.0, 0.0, 100.0));
        assert_eq!(linear(20.0), "0 5 10 15 20");
        assert_eq!(linear(2.3), "0.0 0.5 1.0 1.5 2.0");
        assert_eq!(linear(0.4), "0.00 0.05 0.10 0.15 0.20 0.25 0.30 0.35 0.40");
        assert_eq!(words(&Range::new(Scale::Doubling, [16.0].into_iter(), 1.0, 0.0, 1.0)), "1 2 4 8 16");
    }

    #[test]
    fn doublings_are_equally_far_apart() {
        let range = Range::new(Scale::Doubling, [16.0].into_iter(), 1.0, 0.0, 100.0);
        assert_eq!([1.0, 2.0, 4.0, 16.0].map(|v| range.at(v)), [0.0, 25.0, 50.0, 100.0]);
    }

    #[test]
    fn what_is_missing_is_shown_and_breaks_the_line() {
        let points =
            vec![(0.0, Some(1.0)), (1.0, Some(1.0)), (2.0, None), (3.0, Some(1.0)), (4.0, Some(1.0))];
        let line = Line { name: "a < b".into(), colour: "#0072b2", joined: Joined::Dashed, points };
        let (x, y) = (Axis::linear("loss in %"), Axis::linear("time in s"));
        let svg = Lines { title: "T".into(), x, y, lines: vec![line] }.svg();
        for word in [">T<", ">loss in %<", ">time in s<", ">a &lt; b<", "not everybody was served"] {
            assert!(svg.contains(word), "{word}: {svg}");
        }
        assert_eq!(svg.matches("stroke-dasharray").count(), 3, "two parts and the legend: {svg}");
    }

    #[test]
    fn bars_show_their_values() {
        let bar =
            |values: &[Option<f64>]| Bar { name: "us".into(), colour: "#0072b2", values: values.to_vec() };
        let groups = vec!["sender".into(), "receiver".into()];
        let mut bars = Bars {
            title: "T".into(),
            groups,
            y: Axis::linear("s"),
            bars: vec![bar(&[Some(1.234), Some(56.78)])],
        };
        let svg = bars.svg();
        for word in [">sender<", ">receiver<", ">1.23<", ">56.8<"] {
            assert!(svg.contains(word), "{word}: {svg}");
        }
        assert!(!svg.contains("not everybody"));
        bars.bars.push(bar(&[Some(1.0), None]));
        assert!(bars.svg().contains("not everybody was served"));
    }
}
