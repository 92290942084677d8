//! What `picket baseline` and a proxy's admin socket say to each other: JSON over HTTP/1.1 on a Unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /baseline` | | [`Status`] |
//! | `POST /baseline/accept` | [`Accept`] | [`Status`] |
//! | `POST /baseline/pin` | [`Pin`] | [`Status`] |
//!
//! What is refused is answered with an `error`: 400 when it cannot be read, 409 when there is no such thing. Fields are only
//! ever added. Times are RFC 3339 in UTC, durations seconds.

use serde::{Deserialize, Serialize};

/// What is normal for a pod, and what is not as it should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The proxy's clock.
    pub time: String,
    /// Template of the pod.
    pub template: String,
    /// The template whose baseline it was started from, if that is another one.
    pub previous_template: Option<String>,
    /// The edges, by name.
    pub edges: Vec<Edge>,
    /// What is open.
    pub deviations: Vec<Deviation>,
}

/// Which edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeName {
    /// `inbound` or `outbound`.
    pub direction: String,
    /// SPIFFE ID of the peer, or the class of its address.
    pub peer: String,
    /// `name.namespace` of the service, empty if unknown.
    #[serde(default)]
    pub service: String,
    /// Port of the service.
    pub port: u16,
    /// `http`, `grpc` or `tcp`.
    pub protocol: String,
}

/// A range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// Its lower end.
    pub min: f64,
    /// Its upper end.
    pub max: f64,
}

impl From<(f64, f64)> for Range {
    fn from((min, max): (f64, f64)) -> Self {
        Self { min, max }
    }
}

/// Bytes of one request, geometric means.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bytes {
    /// Towards the workload.
    pub r#in: f64,
    /// From it.
    pub out: f64,
}

impl From<(f64, f64)> for Bytes {
    fn from((r#in, out): (f64, f64)) -> Self {
        Self { r#in, out }
    }
}

/// What is normal on an edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Edge {
    /// Which one.
    #[serde(flatten)]
    pub name: EdgeName,
    /// `learning` or `watching`.
    pub phase: String,
    /// True where what lasts does not become normal.
    pub pinned: bool,
    /// When it was last used.
    pub last_seen: String,
    /// Expected requests per second.
    pub requests_per_second: Range,
    /// Expected share of errors.
    pub error_share: f64,
    /// Median, 90th and 99th percentile of the duration.
    pub duration_quantiles: Option<[f64; 3]>,
    /// Time to the first byte, geometric mean.
    #[serde(default)]
    pub first_byte: Option<f64>,
    /// Bytes of one request.
    pub bytes: Bytes,
    /// Kinds of deviation that are open.
    pub open: Vec<String>,
}

/// A deviation that is open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deviation {
    /// Its number.
    pub id: u64,
    /// What is not as it was.
    pub kind: String,
    /// On which edge; none if it is about the pod.
    pub edge: Option<EdgeName>,
    /// Other edges that it is about (new peers that came with it, or what most edges do together), at most seven; `peers`
    /// counts all.
    #[serde(default)]
    pub others: Vec<EdgeName>,
    /// When it began, as far as can be told.
    pub since: String,
    /// When it was found.
    pub opened: String,
    /// What was expected, in `unit`.
    pub expected: Range,
    /// What was observed.
    pub observed: f64,
    /// As UCUM has it.
    pub unit: String,
    /// How many records say so.
    pub records: u64,
    /// How many edges it is about.
    pub peers: u32,
    /// Test statistic over its limit.
    pub score: f64,
}

/// Take what a deviation is about as the new normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// The deviation.
    pub id: u64,
}

/// Keep an edge's baseline as it is, whatever lasts; or let it adapt again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The edge.
    pub edge: EdgeName,
    /// Which of both.
    pub pinned: bool,
}
