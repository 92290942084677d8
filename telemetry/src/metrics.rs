//! Metrics as text for Prometheus, and the catalogue that documents them.
//!
//! Promises that the text is valid (exposition format 0.0.4) whatever label values hold: names come from a catalogue
//! that a test checks with [`check`], values are escaped here.
//!
//! Left to others: the counting. A component keeps atomics where it works, without a registry or a lock on its path,
//! and writes them out when it is asked.

use std::fmt::{self, Write};

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of observations below each of several bounds.
    Histogram,
}

impl Kind {
    /// The word of the exposition format.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One line of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// `picket_`, what is measured, the unit, and `_total` for a counter: `picket_records_written_total`.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// The unit in the singular as UCUM spells it (`s`, `By`), or `{record}` for things that are counted.
    pub unit: &'static str,
    /// Names of the labels, in the order in which values are given. Their values come from closed lists.
    pub labels: &'static [&'static str],
    /// One sentence for the person who reads the dashboard.
    pub help: &'static str,
}

/// A number that a sample can hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// A whole number.
    Whole(u64),
    /// Any other; infinities and NaN are allowed by the format.
    Real(f64),
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Whole(value) => write!(f, "{value}"),
            Self::Real(value) if value.is_nan() => f.write_str("NaN"),
            Self::Real(value) if value == f64::INFINITY => f.write_str("+Inf"),
            Self::Real(value) if value == f64::NEG_INFINITY => f.write_str("-Inf"),
            Self::Real(value) => write!(f, "{value}"),
        }
    }
}

/// Writes metrics, family by family.
#[derive(Debug)]
pub struct Exposition<'a> {
    out: &'a mut String,
}

impl<'a> Exposition<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut String) -> Self {
        Self { out }
    }

    /// Opens a family. Each metric is opened once per text; all its samples follow.
    pub fn family<'f>(&'f mut self, metric: &'f Metric) -> Family<'f> {
        push(self.out, format_args!("# HELP {} {}\n", metric.name, Escaped { text: metric.help, quotes: false }));
        push(self.out, format_args!("# TYPE {} {}\n", metric.name, metric.kind.as_str()));
        Family { out: self.out, metric }
    }
}

/// One metric whose samples are being written.
#[derive(Debug)]
pub struct Family<'f> {
    out: &'f mut String,
    metric: &'f Metric,
}

impl Family<'_> {
    /// Writes one sample; `values` are those of the metric's labels, in their order.
    pub fn sample(&mut self, values: &[&str], number: impl Into<Number>) -> &mut Self {
        debug_assert_eq!(values.len(), self.metric.labels.len(), "{}: a value for each label", self.metric.name);
        self.line("", values, None, number.into());
        self
    }

    /// Writes one histogram: `counts[i]` observations were at most `bounds[i]` and above the bound before, and the
    /// last of `counts`, one more than there are bounds, is of those above all bounds.
    pub fn histogram(&mut self, values: &[&str], bounds: &[f64], counts: &[u64], sum: f64) -> &mut Self {
        debug_assert_eq!(counts.len(), bounds.len() + 1, "{}: a count for each bucket", self.metric.name);
        let mut below = 0_u64;
        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
        for (bound, count) in bounds.zip(counts) {
            below = below.saturating_add(*count);
            self.line("_bucket", values, Some(bound), Number::Whole(below));
        }
        self.line("_sum", values, None, Number::Real(sum));
        self.line("_count", values, None, Number::Whole(below));
        self
    }

    fn line(&mut self, suffix: &str, values: &[&str], bound: Option<f64>, number: Number) {
        self.out.push_str(self.metric.name);
        self.out.push_str(suffix);
        let mut separator = '{';
        for (label, text) in self.metric.labels.iter().zip(values) {
            push(self.out, format_args!("{separator}{label}=\"{}\"", Escaped { text, quotes: true }));
            separator = ',';
        }
        if let Some(bound) = bound {
            push(self.out, format_args!("{separator}le=\"{}\"", Number::Real(bound)));
            separator = ',';
        }
        if separator == ',' {
            self.out.push('}');
        }
        push(self.out, format_args!(" {number}\n"));
    }
}

/// Text with what the format gives a meaning to escaped.
struct Escaped<'a> {
    text: &'a str,
    quotes: bool,
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '\n' => f.write_str("\\n"),
            '"' if self.quotes => f.write_str("\\\""),
            c => f.write_char(c),
        })
    }
}

fn push(out: &mut String, text: fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String cannot fail");
}

/// Says what is wrong with a catalogue: names that break the grammar, are used twice, or have no help.
///
/// For a test beside each catalogue; the exposition relies on it.
///
/// # Errors
/// The first problem, with the metric's name.
pub fn check(catalogue: &[Metric]) -> Result<(), String> {
    for (index, metric) in catalogue.iter().enumerate() {
        let name = metric.name;
        let refuse = |what: &str| Err(format!("{name}: {what}"));
        if !name.starts_with("picket_") || !is_name(name) {
            return refuse("a name is picket_ and lower-case words joined by underscores");
        }
        if name.ends_with("_total") != (metric.kind == Kind::Counter) {
            return refuse("counters, and only counters, end in _total");
        }
        let suffix = match metric.unit {
            "s" => "_seconds",
            "By" => "_bytes",
            _ => "",
        };
        if !name.trim_end_matches("_total").ends_with(suffix) {
            return refuse("the unit is part of the name");
        }
        if metric.labels.iter().any(|label| !is_name(label) || *label == "le") {
            return refuse("a label is lower-case words joined by underscores, and never `le`");
        }
        if metric.help.is_empty() || metric.unit.is_empty() {
            return refuse("help and unit are given");
        }
        if catalogue[..index].iter().any(|earlier| earlier.name == name) {
            return refuse("each name stands once in the catalogue");
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The catalogue as a Markdown table, for `docs/reference`.
pub fn table(catalogue: &[Metric]) -> String {
    let mut table = String::from("| name | kind | unit | labels | meaning |\n|---|---|---|---|---|\n");
    for metric in catalogue {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, unit, help) = (metric.name, metric.kind.as_str(), metric.unit, metric.help);
        push(&mut table, format_args!("| `{name}` | {kind} | `{unit}` | {} | {help} |\n", labels.join(", ")));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTS: Metric = Metric {
        name: "picket_requests_total",
        kind: Kind::Counter,
        unit: "{request}",
        labels: &["direction", "code"],
        help: "Requests that ended.",
    };
    const UPTIME: Metric =
        Metric { name: "picket_uptime_seconds", kind: Kind::Gauge, unit: "s", labels: &[], help: "Since\nstart." };
    const DURATION: Metric = Metric {
        name: "picket_wait_seconds",
        kind: Kind::Histogram,
        unit: "s",
        labels: &["queue"],
        help: "Time spent waiting.",
    };

    #[test]
    fn text_is_exact() {
        let mut out = String::new();
        let mut exposition = Exposition::new(&mut out);
        exposition.family(&REQUESTS).sample(&["inbound", "ok"], 7).sample(&["a\"b\\c\nd", ""], 0);
        exposition.family(&UPTIME).sample(&[], 1.5);
        exposition.family(&DURATION).histogram(&["q"], &[0.1, 1.0], &[2, 1, 4], 12.5);
        let expected = "# HELP picket_requests_total Requests that ended.\n\
            # TYPE picket_requests_total counter\n\
            picket_requests_total{direction=\"inbound\",code=\"ok\"} 7\n\
            picket_requests_total{direction=\"a\\\"b\\\\c\\nd\",code=\"\"} 0\n\
            # HELP picket_uptime_seconds Since\\nstart.\n\
            # TYPE picket_uptime_seconds gauge\n\
            picket_uptime_seconds 1.5\n\
            # HELP picket_wait_seconds Time spent waiting.\n\
            # TYPE picket_wait_seconds histogram\n\
            picket_wait_seconds_bucket{queue=\"q\",le=\"0.1\"} 2\n\
            picket_wait_seconds_bucket{queue=\"q\",le=\"1\"} 3\n\
            picket_wait_seconds_bucket{queue=\"q\",le=\"+Inf\"} 7\n\
            picket_wait_seconds_sum{queue=\"q\"} 12.5\n\
            picket_wait_seconds_count{queue=\"q\"} 7\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn numbers_that_are_not_finite_have_their_spelling() {
        let written = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(|value| Number::from(value).to_string());
        assert_eq!(written, ["NaN", "+Inf", "-Inf"]);
    }

    #[test]
    fn catalogues_that_break_the_grammar_are_refused() {
        assert_eq!(check(&[REQUESTS, UPTIME, DURATION]), Ok(()));
        let bad = [
            Metric { name: "requests_total", ..REQUESTS },
            Metric { name: "picket_Requests_total", ..REQUESTS },
            Metric { name: "picket_requests", ..REQUESTS },
            Metric { name: "picket_uptime", ..UPTIME },
            Metric { name: "picket_uptime_total", ..UPTIME },
            Metric { labels: &["le"], ..DURATION },
            Metric { labels: &["a-b"], ..DURATION },
            Metric { help: "", ..REQUESTS },
        ];
        for metric in bad {
            assert!(check(&[metric]).is_err(), "{metric:?}");
        }
        assert!(check(&[REQUESTS, REQUESTS]).is_err());
    }

    #[test]
    fn table_has_a_line_per_metric() {
        let line = "| `picket_requests_total` | counter | `{request}` | `direction`, `code` | Requests that ended. |";
        assert_eq!(table(&[REQUESTS]).lines().nth(2), Some(line));
    }
}
