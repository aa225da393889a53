//! Metrics as text, in the format that Prometheus and the textfile collector of its node_exporter read (version 0.0.4):
//! for each metric what it is, and below that its samples. Only the words; who writes the file is the programs' affair.

use std::fmt::Write;

/// What a metric's numbers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Grows, and begins at 0 with the program.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many of a thing there were of which size.
    Histogram,
}

/// A metric: all of its samples have one meaning and differ in their labels.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name, with the unit, and `_total` where it counts.
    pub name: &'static str,
    /// What its numbers do.
    pub kind: Kind,
    /// One line for people.
    pub help: &'static str,
}

impl Metric {
    /// One that counts.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Counter, help }
    }

    /// One that goes up and down.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, help }
    }

    /// One of sizes.
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Histogram, help }
    }
}

/// What tells samples of a metric apart. Values may be anything: they come from manifests and file names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(String);

impl Labels {
    /// One label.
    pub fn new(name: &str, value: &str) -> Self {
        Self::default().and(name, value)
    }

    /// These and one more.
    #[must_use]
    pub fn and(&self, name: &str, value: &str) -> Self {
        let mut text = self.0.clone();
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                _ => text.push(c),
            }
        }
        text.push('"');
        Self(text)
    }
}

/// Sizes of things, by class.
#[derive(Debug, Clone, Copy)]
pub struct Histogram<'a> {
    /// The upper end of each class but the last, which has none.
    pub bounds: &'a [f64],
    /// How many things are in each class: one number more than there are bounds.
    pub counts: &'a [u64],
    /// All sizes together.
    pub sum: f64,
}

/// A file in the making.
#[derive(Debug, Default)]
pub struct Textfile(String);

impl Textfile {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A metric and its samples. Without a sample it is not there at all.
    pub fn add(&mut self, metric: &Metric, samples: impl IntoIterator<Item = (Labels, f64)>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.describe(metric);
        }
        samples.for_each(|(labels, value)| self.sample(metric.name, "", &labels, value));
    }

    /// The same for one sample, which may be unknown.
    pub fn one(&mut self, metric: &Metric, labels: &Labels, value: impl Into<Option<f64>>) {
        self.add(metric, value.into().map(|value| (labels.clone(), value)));
    }

    /// A metric of sizes.
    pub fn add_sizes<'a>(
        &mut self,
        metric: &Metric,
        samples: impl IntoIterator<Item = (Labels, Histogram<'a>)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.describe(metric);
        }
        for (labels, sizes) in samples {
            let mut below = 0;
            let bounds = sizes.bounds.iter().copied().chain([f64::INFINITY]);
            for (bound, count) in bounds.zip(sizes.counts) {
                below += count; // each class has those below it, too
                self.sample(metric.name, "_bucket", &labels.and("le", &number(bound)), below as f64);
            }
            self.sample(metric.name, "_sum", &labels, sizes.sum);
            self.sample(metric.name, "_count", &labels, below as f64);
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }

    fn describe(&mut self, metric: &Metric) {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let Metric { name, help, .. } = metric;
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}"); // into a string: cannot fail
    }

    fn sample(&mut self, name: &str, suffix: &str, Labels(labels): &Labels, value: f64) {
        let value = number(value);
        let _ = match labels.is_empty() {
            true => writeln!(self.0, "{name}{suffix} {value}"),
            false => writeln!(self.0, "{name}{suffix}{{{labels}}} {value}"),
        };
    }
}

/// A number as Prometheus writes it.
fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Metric = Metric::counter("sent_total", "Packets sent.");

    #[test]
    fn a_metric_is_described_once_and_its_samples_follow() {
        let mut file = Textfile::new();
        let labels = Labels::new("group", "ff3e::1").and("level", "0");
        file.add(&SENT, [(Labels::default(), 3.0), (labels, 1e15)]);
        file.one(&Metric::gauge("share", "Done."), &Labels::default(), 0.25);
        file.one(&Metric::gauge("left", "To do."), &Labels::default(), None);
        assert_eq!(
            file.finish(),
            "# HELP sent_total Packets sent.\n# TYPE sent_total counter\nsent_total 3\n\
             sent_total{group=\"ff3e::1\",level=\"0\"} 1000000000000000\n\
             # HELP share Done.\n# TYPE share gauge\nshare 0.25\n"
        );
    }

    #[test]
    fn a_label_cannot_end_itself() {
        let labels = Labels::new("name", "a\"} 1\nsent_total 9 \\").and("x", "\\n");
        let mut file = Textfile::new();
        file.one(&SENT, &labels, 1.0);
        let text = file.finish();
        let expected = r#"sent_total{name="a\"} 1\nsent_total 9 \\",x="\\n"} 1"#;
        assert_eq!(text.lines().nth(2), Some(expected));
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn sizes_are_counted_from_below() {
        let mut file = Textfile::new();
        let sizes = Histogram { bounds: &[0.5, 2.0], counts: &[3, 0, 1], sum: 9.5 };
        file.add_sizes(&Metric::histogram("late_seconds", "Late."), [(Labels::new("a", "b"), sizes)]);
        let text = file.finish();
        let samples: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            samples,
            [
                "late_seconds_bucket{a=\"b\",le=\"0.5\"} 3",
                "late_seconds_bucket{a=\"b\",le=\"2\"} 3",
                "late_seconds_bucket{a=\"b\",le=\"+Inf\"} 4",
                "late_seconds_sum{a=\"b\"} 9.5",
                "late_seconds_count{a=\"b\"} 4",
            ]
        );
    }
}
