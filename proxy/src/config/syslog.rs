//! The section `syslog`: a syslog server that gets the records of the spool, too.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use settings::{Bytes, Noted, Section, Setting};

/// The words of `facility` (RFC 5424 table 1; the names are those of syslog(3) and rsyslog).
const FACILITIES: [(&str, u8); 24] = [
    ("kern", 0),
    ("user", 1),
    ("mail", 2),
    ("daemon", 3),
    ("auth", 4),
    ("syslog", 5),
    ("lpr", 6),
    ("news", 7),
    ("uucp", 8),
    ("cron", 9),
    ("authpriv", 10),
    ("ftp", 11),
    ("ntp", 12),
    ("audit", 13),
    ("alert", 14),
    ("clock", 15),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

/// A syslog server.
#[derive(Debug, Clone)]
pub struct Syslog {
    /// `tls://host:port`, or `tcp://host:port` for clear text.
    pub endpoint: String,
    /// Roots of the server's certificate, PEM; `tls` needs them.
    pub roots: Option<PathBuf>,
    /// Our certificate chain, PEM, where the server asks for one.
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub private_key: Option<PathBuf>,
    /// How long connecting with its handshake may take.
    pub timeout: Duration,
    /// How long a connection must be whole before what it carried counts as delivered.
    pub settle: Duration,
    /// How long nothing is delivered before that is an alert.
    pub away_after: Duration,
    /// The facility's number.
    pub facility: u8,
    /// Private enterprise number of the structured data's names.
    pub enterprise_number: u32,
    /// Bytes of one message at most.
    pub message_bytes_max: u64,
    /// Whether messages hold the bytes of their records, too, for `picket verify`.
    pub evidence: bool,
    /// Name of the machine or the pod in messages; without it the system's.
    pub host_name: Option<String>,
}

impl Syslog {
    pub(super) fn read(section: &Section<'_>) -> Result<Self, Noted> {
        let expected = "tls://host:port, or tcp://host:port for clear text";
        let endpoint = section.required_with("endpoint", expected, |scalar| {
            let is_endpoint = |text: &&str| text.starts_with("tls://") || text.starts_with("tcp://");
            scalar.text().filter(is_endpoint).map(str::to_owned)
        });
        let size = |scalar: settings::Scalar<'_>| {
            Bytes::from_scalar(scalar).map(|bytes| bytes.0).filter(|bytes| (2048..=65536).contains(bytes))
        };
        let bytes = section.optional_with("messageBytes", "a size from 2KiB to 64KiB", size);
        let (certificate, private_key): (Option<PathBuf>, Option<PathBuf>) =
            (section.optional("certificate"), section.optional("privateKey"));
        if certificate.is_some() != private_key.is_some() {
            section.refuse("certificate", "a `privateKey` with it, and the other way round");
        }
        Ok(Self {
            roots: section.optional("roots"),
            certificate,
            private_key,
            timeout: section.default("timeout", Duration::from_secs(10)),
            settle: section.default("settle", Duration::from_secs(5)),
            away_after: section.default("awayAfter", Duration::from_secs(300)),
            facility: section.one_of("facility", &FACILITIES, 16),
            enterprise_number: section.default("enterpriseNumber", 32473),
            message_bytes_max: bytes.unwrap_or(8192),
            evidence: section.default("evidence", false),
            host_name: section.optional("hostName"),
            endpoint: endpoint?,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        let mut section = json!({
            "endpoint": self.endpoint,
            "timeout": super::print::duration(self.timeout),
            "settle": super::print::duration(self.settle),
            "awayAfter": super::print::duration(self.away_after),
            "facility": super::print::word(&FACILITIES, self.facility),
            "enterpriseNumber": self.enterprise_number,
            "messageBytes": self.message_bytes_max,
            "evidence": self.evidence,
        });
        let texts = [("hostName", self.host_name.as_ref())];
        let paths = [("roots", &self.roots), ("certificate", &self.certificate), ("privateKey", &self.private_key)];
        for (key, text) in texts.into_iter().filter_map(|(key, text)| Some((key, text?))) {
            section[key] = json!(text);
        }
        for (key, path) in paths.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
            section[key] = json!(path);
        }
        section
    }

    /// What the crate `export` takes.
    pub fn delivery(&self, resource: Vec<(String, String)>) -> export::syslog::Config {
        let host_name = self.host_name.clone();
        export::syslog::Config {
            endpoint: self.endpoint.clone(),
            roots: self.roots.clone(),
            certificate: self.certificate.clone().zip(self.private_key.clone()),
            timeout: self.timeout,
            settle: self.settle,
            away_after: self.away_after,
            format: export::syslog::Format {
                facility: self.facility,
                host_name: host_name
                    .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned()),
                app_name: "picket-proxy".to_owned(),
                process_id: std::process::id(),
                enterprise_number: self.enterprise_number,
                message_bytes_max: self.message_bytes_max as usize,
                resource,
                evidence: self.evidence,
            },
        }
    }
}
