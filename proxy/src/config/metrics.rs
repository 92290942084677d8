//! The section `metrics`: rate, errors and duration of each edge, made from the records.

use std::time::Duration;

use export::red;
use serde_json::{Value, json};
use settings::{Noted, Section};

use super::export::{Export, Variables, millis};

/// What is measured, and how often it is pushed.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// How often they go to the collector.
    pub interval: Duration,
    /// The collector: that of `export`, but for what variables of OpenTelemetry say of metrics alone.
    pub collector: Option<Export>,
    /// Label sets at most.
    pub series_max: usize,
    /// Metrics by name.
    pub include: Vec<String>,
    /// Attributes by name.
    pub attributes: Vec<String>,
}

impl Metrics {
    pub(super) fn read(section: &Section<'_>, export: &Section<'_>, variables: &Variables) -> Result<Self, Noted> {
        let collector = Export::read_for_metrics(export, &variables.for_metrics());
        let variable = variables.theirs("PICKET_METRICS_INTERVAL", "OTEL_METRIC_EXPORT_INTERVAL");
        let interval = millis(section, "interval", variable, Duration::from_secs(60));
        Ok(Self {
            interval: interval.max(Duration::from_secs(1)),
            series_max: super::at_least_one(section, "maxSeries", 500),
            include: some_of(section, "include", &red::NAMES),
            attributes: some_of(section, "attributes", &red::ATTRIBUTES),
            collector: collector?,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "interval": super::print::duration(self.interval),
            "maxSeries": self.series_max,
            "include": self.include,
            "attributes": self.attributes,
        })
    }

    /// What the crate `export` takes.
    pub fn red(&self) -> red::Config {
        let (include, attributes) = (self.include.clone(), self.attributes.clone());
        red::Config { series_max: self.series_max, include, attributes }
    }
}

/// A list of known names; all of them without one.
fn some_of(section: &Section<'_>, name: &str, known: &[&str]) -> Vec<String> {
    if !section.is_set(name) {
        return known.iter().map(|name| (*name).to_owned()).collect();
    }
    let found: Vec<String> = section.list(name);
    if found.iter().any(|found| !known.contains(&found.as_str())) {
        section.refuse(name, &format!("names out of {}", known.join(", ")));
    }
    found
}
