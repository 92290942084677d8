//! The section `baseline`: what is normal for the workload, how it is learnt, and where it is kept.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use settings::{Section, Setting};

/// Names of templates are parts of file names: Kubernetes label values (63 characters of a few kinds).
const TEMPLATE_BYTES_MAX: usize = 63;

/// What is normal for the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline {
    /// Whether anything is learnt at all.
    pub enabled: bool,
    /// Where what was learnt is kept over restarts; this proxy's own.
    pub dir: Option<PathBuf>,
    /// Where baselines of the workload are found, one file per template.
    pub workload_dir: Option<PathBuf>,
    /// Template of this pod, such as its pod-template-hash.
    pub template: String,
    /// How long a new pod or edge is only watched.
    pub learn: Duration,
    /// What lasts that long becomes normal.
    pub adopt: Duration,
    /// Edges at most.
    pub edges: usize,
    /// The pod's cgroup, whose CPU and memory are watched.
    pub cgroup: Option<PathBuf>,
}

impl Baseline {
    pub(super) fn read(section: &Section<'_>) -> Self {
        let template = section.optional_with("template", "a Kubernetes label value", |scalar| {
            scalar.text().filter(|text| is_label_value(text)).map(str::to_owned)
        });
        let long = |name: &str, default: u64, least: u64| {
            let expected = format!("a time from {least}s");
            let found = section.optional_with(name, &expected, |scalar| {
                Duration::from_scalar(scalar).filter(|time| *time >= Duration::from_secs(least))
            });
            found.unwrap_or(Duration::from_secs(default))
        };
        let edges = section.optional_with("edges", "a whole number from 1 to 4096", |scalar| {
            usize::from_scalar(scalar).filter(|edges| (1..=4096).contains(edges))
        });
        Self {
            enabled: section.default("enabled", true),
            dir: section.optional("dir"),
            workload_dir: section.optional("workloadDir"),
            template: template.unwrap_or_else(|| "none".to_owned()),
            // Half an hour shows a workload's minutes: cron jobs, caches that warm, deploys of a neighbour.
            learn: long("learn", 30 * 60, 10),
            adopt: long("adopt", 3 * 3600, 60),
            edges: edges.unwrap_or(1024),
            cgroup: section.optional("cgroup"),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "enabled": self.enabled,
            "dir": self.dir,
            "workloadDir": self.workload_dir,
            "template": self.template,
            "learn": super::print::duration(self.learn),
            "adopt": super::print::duration(self.adopt),
            "edges": self.edges,
            "cgroup": self.cgroup,
        })
    }

    /// What the engine takes.
    pub fn limits(&self) -> baseline::Limits {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        baseline::Limits {
            edges: self.edges,
            learn_ms: millis(self.learn),
            adopt_ms: millis(self.adopt),
            ..baseline::Limits::default()
        }
    }
}

/// Letters, digits, `-`, `_` and `.`, the first and the last of them a letter or digit (Kubernetes, "Labels and Selectors").
fn is_label_value(text: &str) -> bool {
    let ends =
        text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    let inside = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    ends && inside && text.len() <= TEMPLATE_BYTES_MAX
}
