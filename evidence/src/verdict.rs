//! What is found about a stream.

use serde::Serialize;

/// Whether what is there is what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Integrity {
    /// All that is sealed is proven.
    Intact,
    /// Nothing contradicts, and not all of it can be proven.
    Unproven,
    /// Something is not what was written.
    Broken,
}

/// Whether all is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Completeness {
    /// Each number is there, or in a sealed gap record.
    Complete,
    /// Some are missing without a word.
    Incomplete,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The first number that it is about.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// What is wrong.
    pub what: String,
}

/// A stretch of records that are not here, as the mesh reported itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// The first number.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// How many records were lost.
    pub records: u64,
    /// Why.
    pub reason: &'static str,
    /// Which sink alone lacks them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<&'static str>,
}

/// What is found about one stream; findings are in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamReport {
    /// Whose numbers, hexadecimal.
    pub stream: String,
    /// Whose key sealed them.
    pub identity: Option<String>,
    /// Different records that are there.
    pub records: u64,
    /// Copies beyond them.
    pub duplicates: u64,
    /// The lowest number that should be there.
    pub first: u64,
    /// The greatest one.
    pub last: u64,
    /// How many checkpoints are good.
    pub checkpoints: u64,
    /// The greatest number that is sealed; 0 when none is.
    pub sealed: u64,
    /// Records behind it, which nothing proves yet.
    pub unsealed: u64,
    /// The first verdict.
    pub integrity: Integrity,
    /// Why, unless it is intact.
    pub integrity_findings: Vec<Finding>,
    /// The second verdict.
    pub completeness: Completeness,
    /// Why, unless it is complete.
    pub completeness_findings: Vec<Finding>,
    /// Gaps that the mesh reported.
    pub explained: Vec<Explained>,
}

impl StreamReport {
    /// Both verdicts are good.
    pub fn is_good(&self) -> bool {
        self.integrity == Integrity::Intact && self.completeness == Completeness::Complete
    }
}
