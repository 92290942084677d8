//! The numbers as text for Prometheus: classic histograms, whose bounds are borders of buckets of the exponential ones, so that
//! both say the same.

use std::fmt::Write;

use super::{Instrument, Red, Series};

/// The bounds, as exponents of two: from a quarter of a millisecond to a minute, each four times the one before.
const EXPONENTS: [i32; 10] = [-12, -10, -8, -6, -4, -2, 0, 2, 4, 6];
const OVERFLOWED: &str = "picket_metric_overflow_total";

impl Red {
    /// Appends all metrics to `out`.
    pub fn prometheus(&self, out: &mut String) {
        let table = self.lock();
        for instrument in Instrument::ALL {
            let name = format!("{}_seconds", underscored(instrument.name()));
            push(out, format_args!("# HELP {name} {}\n# TYPE {name} histogram\n", instrument.description()));
            table.of(instrument).into_iter().for_each(|series| histogram(&name, series, out));
        }
        push(
            out,
            format_args!(
                "# HELP {OVERFLOWED} Observations beyond the limit of label sets.\n# TYPE {OVERFLOWED} counter\n{OVERFLOWED} {}\n",
                table.overflowed
            ),
        );
    }
}

fn histogram(name: &str, series: &Series, out: &mut String) {
    let mut labels = String::new();
    for (label, value) in &series.attributes {
        push(&mut labels, format_args!("{}=\"", underscored(label)));
        for c in value.chars() {
            match c {
                '\\' | '"' => labels.extend(['\\', c]),
                '\n' => labels.push_str("\\n"),
                c => labels.push(c),
            }
        }
        labels.push_str("\",");
    }
    let of = &series.histogram;
    for exponent in EXPONENTS {
        let bound = 2f64.powi(exponent);
        push(out, format_args!("{name}_bucket{{{labels}le=\"{bound}\"}} {}\n", of.at_most(exponent)));
    }
    push(out, format_args!("{name}_bucket{{{labels}le=\"+Inf\"}} {}\n", of.count));
    let labels = labels.trim_end_matches(',');
    push(out, format_args!("{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {}\n", of.sum, of.count));
}

fn underscored(name: &str) -> String {
    name.replace('.', "_")
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}
