//! What `picket certs` and the authority's admin socket say to each other: JSON over HTTP/1.1 on a Unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /certs` | | [`Status`] |
//! | `POST /certs/rotate` | [`Rotate`] | [`Status`] |
//! | `POST /certs/rollback` | | [`Status`] |
//! | `POST /certs/acknowledge` | [`Acknowledge`] | [`Status`] |
//! | `POST /certs/drop` | [`Drop`] | [`Status`] |
//! | `POST /certs/deny` | [`Deny`] | [`Status`] |
//! | `POST /certs/undeny` | [`Deny`] | [`Status`] |
//!
//! What is refused is answered with [`Failure`]: 400 when it cannot be read, 409 when it cannot be done now, 500 when it
//! failed. Fields are only ever added. Times are RFC 3339 in UTC, digests hexadecimal.

use serde::{Deserialize, Serialize};

/// The authority's certificates, rotation and proxies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whose authority this is.
    pub trust_domain: String,
    /// The authority's clock.
    pub time: String,
    /// The generation that proxies get.
    pub generation: u64,
    /// The process that answered.
    pub process: Process,
    /// The trust bundle, oldest first.
    pub roots: Vec<Root>,
    /// Issuers under which leaves may be valid, oldest first.
    pub issuers: Vec<Issuer>,
    /// The root rotation under way.
    pub rotation: Option<Rotation>,
    /// The last rotation that ended.
    pub last_rotation: Option<Ended>,
    /// The proxies of all processes.
    pub proxies: Proxies,
    /// The deny list.
    pub denied: Vec<Denied>,
}

/// One of the authority's processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// True when it is the one that rotates.
    pub leader: bool,
}

/// A root of the trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Root {
    /// Its number.
    pub id: u32,
    /// `trusted`, `signing` or `old`.
    pub r#use: String,
    /// Digest of its certificate.
    pub sha256: String,
    /// First second of validity.
    pub not_before: String,
    /// Last second of validity.
    pub not_after: String,
    /// True when its key is not here.
    pub brought: bool,
}

/// An issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issuer {
    /// Its number.
    pub id: u32,
    /// The root above it.
    pub root: u32,
    /// True for the one that signs.
    pub signing: bool,
    /// Digest of its certificate.
    pub sha256: String,
    /// First second of validity.
    pub not_before: String,
    /// Last second of validity.
    pub not_after: String,
    /// True when an operator brought it.
    pub brought: bool,
    /// When its last leaf ends, once it signs no more.
    pub leaves_end: Option<String>,
}

/// A root rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// `distribute` or `sign`.
    pub stage: String,
    /// The root that goes.
    pub from: u32,
    /// The root that comes.
    pub to: u32,
    /// When it began.
    pub started: String,
    /// When the stage began.
    pub since: String,
    /// True when an operator said not to wait for proxies.
    pub overridden: bool,
    /// True when it goes back.
    pub rolling_back: bool,
    /// True when the stage takes longer than it should.
    pub stuck: bool,
    /// What the stage waits for; proxies at most [`WAITS_MAX`].
    pub waits: Vec<Wait>,
    /// How many proxies it waits for in all.
    pub waits_for_proxies: usize,
}

/// The longest list of proxies in a status.
pub const WAITS_MAX: usize = 100;

/// One thing that a stage waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wait {
    /// `return`, `acknowledgement`, `renewal` or `leaves`.
    pub kind: String,
    /// The proxy: identity and pod.
    pub proxy: Option<String>,
    /// Since when the proxy is behind.
    pub since: Option<String>,
    /// When the wait is over by itself.
    pub until: Option<String>,
    /// What there is to know, for people.
    pub detail: String,
}

/// The end of a rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// `issuerRotated`, `rootRotated`, `rootRolledBack` or `rootDropped`.
    pub outcome: String,
    /// When.
    pub at: String,
}

/// Proxies in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxies {
    /// With a stream.
    pub connected: usize,
    /// Of these, not at the present generation.
    pub behind: usize,
    /// Without a stream, but with a certificate that may be valid.
    pub absent: usize,
}

/// An entry of the deny list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Denied {
    /// Who.
    pub subject: Subject,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: String,
    /// When it is lifted by itself, if it is.
    pub until: Option<String>,
}

/// Who is denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// A certificate, by its serial number (hexadecimal).
    Serial(String),
    /// A SPIFFE ID.
    Identity(String),
    /// A public key, by the SHA-256 of its SubjectPublicKeyInfo.
    Key(String),
    /// A pod, by its uid; only for new certificates.
    PodUid(String),
}

/// What to rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rotate {
    /// Which kind.
    pub what: Rotated,
}

/// See [`Rotate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rotated {
    /// The issuer.
    Issuer,
    /// The root.
    Root,
}

/// Says that the stage need not wait for proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Acknowledge {
    /// Must be true: who is behind may lose connections.
    pub r#override: bool,
}

/// Takes a root out of the trust bundle before its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drop {
    /// SHA-256 of its certificate.
    pub root: String,
    /// Must be true: certificates under it are of no use from then on.
    pub r#override: bool,
}

/// Denies, or lifts a denial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deny {
    /// Who.
    pub subject: Subject,
    /// Why; not looked at when it is lifted.
    #[serde(default)]
    pub reason: String,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// For people.
    pub error: String,
}
