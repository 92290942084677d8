//! The section `records`: what records hold besides the schema. It is empty by default: a field of a head, and a query, leave only when
//! somebody asks for them by name.

use serde_json::{Value, json};
use settings::Section;

use crate::capture::{CREDENTIALS, Capture};

/// Names in one list, at most.
const NAMES_MAX: usize = 16;
/// Bytes of a name, at most.
const NAME_BYTES_MAX: usize = 64;

/// What records hold besides the schema.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// Fields of requests, in lower case.
    pub request_headers: Vec<String>,
    /// Fields of answers, in lower case.
    pub response_headers: Vec<String>,
    /// The whole query, but for known signatures.
    pub query: bool,
    /// Parameters whose values are shown.
    pub query_parameters: Vec<String>,
}

impl Records {
    pub(super) fn read(section: &Section<'_>) -> Self {
        // A star may be in a name, and would be taken for all of them.
        let header = |text: &str| {
            let name = text.parse::<http::HeaderName>().ok().filter(|_| !text.contains('*'))?;
            Some(name.as_str().to_owned())
        };
        let parameter = |text: &str| (!text.contains(['&', '=', '%'])).then(|| text.to_owned());
        Self {
            request_headers: names(section, "requestHeaders", "the name of a header field", header),
            response_headers: names(section, "responseHeaders", "the name of a header field", header),
            query: section.default("query", false),
            query_parameters: names(section, "queryParameters", "the name of a parameter, not encoded", parameter),
        }
    }

    /// Names that were asked for and stand for credentials.
    pub fn credentials(&self) -> impl Iterator<Item = &str> {
        let all = self.request_headers.iter().chain(&self.response_headers).map(String::as_str);
        all.filter(|name| CREDENTIALS.contains(name))
    }

    /// What the workers take.
    pub fn capture(&self) -> Capture {
        Capture::new(&self.request_headers, &self.response_headers, self.query, &self.query_parameters)
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "requestHeaders": self.request_headers,
            "responseHeaders": self.response_headers,
            "query": self.query,
            "queryParameters": self.query_parameters,
        })
    }
}

/// A short list of short names, each once.
fn names(section: &Section<'_>, key: &str, what: &str, parse: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let expected = format!("{what}, of at most {NAME_BYTES_MAX} bytes");
    let short = |text: &&str| !text.is_empty() && text.len() <= NAME_BYTES_MAX;
    let mut found = section.list_with(key, &expected, |scalar| parse(scalar.text().filter(short)?));
    if found.len() > NAMES_MAX {
        section.refuse(key, &format!("at most {NAMES_MAX} names"));
    }
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|name| seen.insert(name.clone()));
    found
}
