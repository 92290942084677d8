//! The section `export`: where records go, and metrics; and OpenTelemetry's own variables for it.
//!
//! For records, a `PICKET_EXPORT_*` variable wins over `OTEL_EXPORTER_OTLP_LOGS_*`, that over `OTEL_EXPORTER_OTLP_*`, and that
//! over the file. For metrics, `OTEL_EXPORTER_OTLP_METRICS_*` comes first, because nothing else speaks of them alone, and
//! `OTEL_EXPORTER_OTLP_LOGS_*` does not count. Promises that no header's value is in a message or printed: these are often credentials.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use export::otlp::{self, Compression, Protocol};
use serde_json::{Map, Value, json};
use settings::{Noted, Section};

use super::print::{duration, word};

const PROTOCOLS: [(&str, Protocol); 2] = [("grpc", Protocol::Grpc), ("http/protobuf", Protocol::HttpProtobuf)];
const COMPRESSIONS: [(&str, Compression); 3] =
    [("none", Compression::None), ("gzip", Compression::Gzip), ("zstd", Compression::Zstd)];

/// Stands in place of a header's value.
const HIDDEN: &str = "(hidden)";
const URL: &str = "https://host:port, or http://host:port for clear text";

/// What the proxy shows to a collector that asks who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCertificate {
    /// Chain and key, PEM.
    Files(PathBuf, PathBuf),
    /// The workload's own certificate.
    Workload,
}

/// An OTLP collector.
#[derive(Clone)]
pub struct Export {
    /// The preferred endpoint, and those that serve when it is away. For HTTP without the signal's own path.
    pub endpoints: Vec<String>,
    /// What goes there.
    signal: Signal,
    /// The first endpoint is the whole URL.
    whole_url: bool,
    /// How requests look.
    pub protocol: Protocol,
    /// How they are compressed.
    pub compression: Compression,
    /// Roots of the collector's certificate, PEM; `https` needs them.
    pub roots: Option<PathBuf>,
    /// What we show to it.
    pub client: Option<ClientCertificate>,
    /// Headers for every call, such as an API key.
    pub headers: Vec<(String, String)>,
    /// How long one call may take.
    pub timeout: Duration,
    /// How long no endpoint takes records before that is an alert.
    pub away_after: Duration,
    /// Attributes of the resource, such as `k8s.pod.name`.
    pub resource: Vec<(String, String)>,
}

impl std::fmt::Debug for Export {
    /// Header values are often credentials: only their names are shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_json().to_string())
    }
}

/// What OpenTelemetry has endpoints of its own for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Logs,
    Metrics,
}

/// OpenTelemetry's variables for one signal, as far as ours do not override them.
#[derive(Debug, Clone)]
pub(super) struct Variables {
    of: BTreeMap<String, String>,
    signal: Signal,
}

impl Variables {
    /// Those for logs.
    pub(super) fn new(environment: &[(String, String)]) -> Self {
        let ours = |(name, value): &&(String, String)| {
            // An empty one counts as absent (OpenTelemetry, "Environment Variable Specification").
            let theirs = name.starts_with("OTEL_") && !value.is_empty();
            theirs || name.starts_with("PICKET_EXPORT_") || name.starts_with("PICKET_METRICS_")
        };
        Self { of: environment.iter().filter(ours).cloned().collect(), signal: Signal::Logs }
    }

    /// Those for metrics.
    pub(super) fn for_metrics(&self) -> Self {
        Self { signal: Signal::Metrics, ..self.clone() }
    }

    /// True when they alone ask for an export.
    pub(super) fn enable(&self) -> bool {
        self.get("ENDPOINT", "ENDPOINT").is_some()
    }

    /// A variable of OpenTelemetry, unless ours is set.
    pub(super) fn theirs(&self, ours: &str, theirs: &str) -> Option<(String, &str)> {
        if self.of.contains_key(ours) {
            return None;
        }
        self.of.get(theirs).map(|value| (theirs.to_owned(), value.trim()))
    }

    /// The one for this signal, or the one for all signals; `None` where ours says something that comes before.
    fn get(&self, ours: &str, suffix: &str) -> Option<(String, &str)> {
        let ours = format!("PICKET_EXPORT_{ours}");
        let of_all = format!("OTEL_EXPORTER_OTLP_{suffix}");
        let own = match self.signal {
            Signal::Logs => self.theirs(&ours, &format!("OTEL_EXPORTER_OTLP_LOGS_{suffix}")),
            Signal::Metrics => self.theirs("", &format!("OTEL_EXPORTER_OTLP_METRICS_{suffix}")),
        };
        own.or_else(|| self.theirs(&ours, &of_all))
    }
}

/// A setting under its three names.
struct Named<'a> {
    key: &'a str,
    ours: &'a str,
    suffix: &'a str,
    expected: &'a str,
}

/// The key `key` of the section, or the variable with that suffix.
fn read<T>(
    section: &Section<'_>,
    variables: &Variables,
    named: &Named<'_>,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let Named { key, ours, suffix, expected } = named;
    let Some((variable, text)) = variables.get(ours, suffix) else {
        return section.optional_with(key, expected, |scalar| parse(scalar.text()?));
    };
    section.is_set(key);
    let value = parse(text);
    if value.is_none() {
        section.refuse_from(key, &variable, text, expected);
    }
    value
}

fn one_of<T: Copy>(words: &[(&str, T)], text: &str) -> Option<T> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
}

impl Export {
    /// Where metrics go; `None` where nothing says so.
    pub(super) fn read_for_metrics(section: &Section<'_>, variables: &Variables) -> Result<Option<Self>, Noted> {
        let any = variables.enable() || section.is_set("endpoint");
        any.then(|| Self::read(section, variables)).transpose()
    }

    pub(super) fn read(section: &Section<'_>, variables: &Variables) -> Result<Self, Noted> {
        let at = |key, ours, suffix, expected| Named { key, ours, suffix, expected };
        let named = at("protocol", "PROTOCOL", "PROTOCOL", "grpc or http/protobuf");
        let protocol = read(section, variables, &named, |text| one_of(&PROTOCOLS, text)).unwrap_or(Protocol::Grpc);
        let named = at("compression", "COMPRESSION", "COMPRESSION", "one of none, gzip, zstd");
        let compression = read(section, variables, &named, |text| one_of(&COMPRESSIONS, text));
        let path = |text: &str| Some(PathBuf::from(text)).filter(|path| !path.as_os_str().is_empty());
        let named = at("roots", "ROOTS", "CERTIFICATE", "the path of a file with PEM certificates");
        let roots = read(section, variables, &named, path);
        let endpoint = endpoint(section, variables, protocol);
        let fallback = section.list_with("fallbackEndpoints", URL, |scalar| url(scalar.text()?));
        let (client, headers) = (client(section, variables), headers(section, variables));
        let resource = section.map::<String>("resource");
        let (away_after, timeout) =
            (section.default("awayAfter", Duration::from_secs(300)), timeout(section, variables));
        let (endpoint, whole_url) = endpoint?;
        Ok(Self {
            endpoints: std::iter::once(endpoint).chain(fallback).collect(),
            signal: variables.signal,
            whole_url,
            protocol,
            compression: compression.unwrap_or(Compression::None),
            roots,
            client: client?,
            headers,
            timeout,
            away_after,
            resource: resource.into_iter().collect(),
        })
    }

    /// The URLs that requests go to.
    pub fn urls(&self) -> Vec<String> {
        let whole = |(at, url): (usize, &String)| match self.protocol {
            Protocol::HttpProtobuf if !(at == 0 && self.whole_url) => match self.signal {
                Signal::Logs => otlp::logs_url(url),
                Signal::Metrics => otlp::metrics_url(url),
            },
            Protocol::HttpProtobuf | Protocol::Grpc => url.clone(),
        };
        self.endpoints.iter().enumerate().map(whole).collect()
    }

    /// What the crate `export` takes, with more attributes of the resource before ours.
    pub fn shipping(&self, resource: Vec<(String, String)>, store: &Arc<identity::Store>) -> otlp::Config {
        let client = self.client.as_ref().map(|client| match client {
            ClientCertificate::Workload => otlp::ClientCertificate::Workload(Arc::clone(store)),
            ClientCertificate::Files(certificate, key) => {
                otlp::ClientCertificate::Files { certificate: certificate.clone(), key: key.clone() }
            }
        });
        otlp::Config {
            endpoints: self.urls(),
            protocol: self.protocol,
            compression: self.compression,
            headers: self.headers.clone(),
            timeout: self.timeout,
            roots: self.roots.clone(),
            client,
            resource: resource.into_iter().chain(self.resource.iter().cloned()).collect(),
            away_after: self.away_after,
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let hidden: Map<_, _> = self.headers.iter().map(|(name, _)| (name.clone(), json!(HIDDEN))).collect();
        let resource: Map<_, _> = self.resource.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let mut section = json!({
            "endpoint": self.endpoints.first(),
            "fallbackEndpoints": self.endpoints.get(1..),
            "protocol": word(&PROTOCOLS, self.protocol),
            "compression": word(&COMPRESSIONS, self.compression),
            "headers": hidden,
            "timeout": duration(self.timeout),
            "awayAfter": duration(self.away_after),
            "resource": resource,
        });
        if let Some(roots) = &self.roots {
            section["roots"] = json!(roots);
        }
        match &self.client {
            Some(ClientCertificate::Files(certificate, key)) => {
                section["clientCertificate"] = json!(certificate);
                section["clientKey"] = json!(key);
            }
            Some(ClientCertificate::Workload) => section["clientCertificate"] = json!("workload"),
            None => {}
        }
        section
    }
}

fn url(text: &str) -> Option<String> {
    (text.starts_with("https://") || text.starts_with("http://")).then(|| text.to_owned())
}

/// The preferred endpoint, and whether it is the whole URL.
fn endpoint(section: &Section<'_>, variables: &Variables, protocol: Protocol) -> Result<(String, bool), Noted> {
    let Some((variable, text)) = variables.get("ENDPOINT", "ENDPOINT") else {
        let endpoint = section.required_with("endpoint", URL, |scalar| url(scalar.text()?));
        return endpoint.map(|endpoint| (endpoint, false));
    };
    section.is_set("endpoint");
    let whole_url = variable != "OTEL_EXPORTER_OTLP_ENDPOINT";
    if let Some(url) = url(text) {
        return Ok((url, whole_url));
    }
    // For gRPC the scheme may be a variable of its own.
    let expected = "true or false";
    let named = Named { key: "endpoint", ours: "ENDPOINT", suffix: "INSECURE", expected };
    let insecure = match variables.get(named.ours, named.suffix) {
        Some((_, "true")) => Some("http"),
        Some((_, "false")) | None => Some("https"),
        Some((variable, text)) => return Err(section.refuse_from("endpoint", &variable, text, expected)),
    };
    match insecure.filter(|_| protocol == Protocol::Grpc && !text.contains("://") && text.contains(':')) {
        Some(scheme) => Ok((format!("{scheme}://{text}"), whole_url)),
        None => Err(section.refuse_from("endpoint", &variable, text, URL)),
    }
}

/// Certificate and key, or the word `workload`.
fn client(section: &Section<'_>, variables: &Variables) -> Result<Option<ClientCertificate>, Noted> {
    let expected = "workload, or the path of a file with a PEM certificate";
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let named = Named { key: "clientCertificate", ours: "CLIENT_CERTIFICATE", suffix: "CLIENT_CERTIFICATE", expected };
    let certificate = read(section, variables, &named, text);
    let expected = "the path of a file with a PEM private key";
    let named = Named { key: "clientKey", ours: "CLIENT_KEY", suffix: "CLIENT_KEY", expected };
    let key = read(section, variables, &named, text);
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(word), None) if word == "workload" => Ok(Some(ClientCertificate::Workload)),
        (Some(word), Some(_)) if word == "workload" => {
            Err(section.refuse("clientKey", "no key beside clientCertificate: workload"))
        }
        (Some(certificate), Some(key)) => Ok(Some(ClientCertificate::Files(certificate.into(), key.into()))),
        (Some(_), None) => Err(section.refuse("clientKey", "the key of clientCertificate")),
        (None, Some(_)) => Err(section.refuse("clientCertificate", "the certificate of clientKey")),
    }
}

/// Milliseconds in OpenTelemetry's variables, a duration in ours and in the file.
fn timeout(section: &Section<'_>, variables: &Variables) -> Duration {
    millis(section, "timeout", variables.get("TIMEOUT", "TIMEOUT"), Duration::from_secs(10))
}

/// The milliseconds of a variable, or the key `key` of the section.
pub(super) fn millis(
    section: &Section<'_>,
    key: &str,
    variable: Option<(String, &str)>,
    default: Duration,
) -> Duration {
    let Some((variable, text)) = variable else { return section.default(key, default) };
    section.is_set(key);
    match text.parse::<u64>().ok().filter(|millis| *millis > 0) {
        Some(millis) => Duration::from_millis(millis),
        None => {
            section.refuse_from(key, &variable, text, "a whole number of milliseconds from 1");
            default
        }
    }
}

/// `name=value,name=value`, values percent-encoded, in OpenTelemetry's variables; a map in the file.
fn headers(section: &Section<'_>, variables: &Variables) -> Vec<(String, String)> {
    let in_file = section.map::<String>("headers");
    let Some((variable, text)) = variables.get("HEADERS", "HEADERS") else { return in_file.into_iter().collect() };
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let parsed: Option<Vec<_>> = pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let name = name.trim().to_ascii_lowercase();
            let valid = !name.is_empty() && name.parse::<http::HeaderName>().is_ok();
            valid.then_some((name, percent_decode(value.trim())?))
        })
        .collect();
    parsed.unwrap_or_else(|| {
        section.refuse_from("headers", &variable, HIDDEN, "name=value,name=value with percent-encoded values");
        Vec::new()
    })
}

fn percent_decode(text: &str) -> Option<String> {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use settings::Document;

    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Option<Export>, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Vec<_> = environment.iter().map(owned).collect();
        let variables = Variables::new(&environment);
        let document = Document::parse("proxy.yaml", text, "PICKET_", environment).unwrap();
        let export = document.read(|root| {
            let section =
                root.optional_section("export").or_else(|| variables.enable().then(|| root.section("export")));
            section.map(|section| Export::read(&section, &variables)).transpose()
        });
        export.map_err(|mistakes| mistakes.to_string())
    }

    fn export(text: &str, environment: &[(&str, &str)]) -> Export {
        load(text, environment).unwrap().unwrap()
    }

    const FILE: &str = "export: {endpoint: 'https://file:4317', roots: /file.pem, headers: {a: b}}";

    #[test]
    fn variables_win_in_their_order() {
        let (ours, logs, all) = (
            ("PICKET_EXPORT_ENDPOINT", "https://ours:1"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "https://logs:1"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://all:1"),
        );
        for (environment, url) in [
            (&[all, logs, ours][..], "https://ours:1"),
            (&[all, logs], "https://logs:1"),
            (&[all], "https://all:1"),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], "https://file:4317"),
        ] {
            assert_eq!(export(FILE, environment).urls(), [url]);
        }
        assert!(load("", &[]).unwrap().is_none());
        assert_eq!(export("", &[all]).urls(), ["https://all:1"], "they alone ask for an export");
    }

    #[test]
    fn every_variable_is_honoured() {
        let all = export(
            FILE,
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://all:4318/base/"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/protobuf"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "X-Key=a%20b%3D, other = c"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
                ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/r.pem"),
                ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/c.pem"),
                ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem"),
            ],
        );
        assert_eq!(all.urls(), ["https://all:4318/base/v1/logs"]);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(all.headers, [pair("x-key", "a b="), pair("other", "c")]);
        assert_eq!((all.timeout, all.compression), (Duration::from_millis(2500), Compression::Gzip));
        assert_eq!(all.roots, Some("/r.pem".into()));
        assert_eq!(all.client, Some(ClientCertificate::Files("/c.pem".into(), "/k.pem".into())));
    }

    #[test]
    fn paths_follow_the_specification() {
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        let whole = ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://c:1/own");
        assert_eq!(export("", &[http, whole]).urls(), ["http://c:1/own"]);
        assert_eq!(export("", &[http, ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1")]).urls(), ["http://c:1/v1/logs"]);
        let file = "export: {endpoint: 'http://c:1', fallbackEndpoints: ['http://d:1/x'], protocol: http/protobuf}";
        assert_eq!(export(file, &[]).urls(), ["http://c:1/v1/logs", "http://d:1/x/v1/logs"]);
        let bare = ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317");
        assert_eq!(export("", &[bare]).urls(), ["https://c:4317"], "clear text must be asked for");
        assert_eq!(export("", &[bare, ("OTEL_EXPORTER_OTLP_INSECURE", "true")]).urls(), ["http://c:4317"]);
    }

    /// The first URL of metrics, and what else their calls have.
    fn metrics(text: &str, environment: &[(&str, &str)]) -> Result<Option<Export>, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Vec<_> = environment.iter().map(owned).collect();
        let variables = Variables::new(&environment).for_metrics();
        let document = Document::parse("proxy.yaml", text, "PICKET_", environment).unwrap();
        let read = document.read(|root| Export::read_for_metrics(&root.section("export"), &variables));
        read.map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn metrics_have_variables_of_their_own() {
        let (ours, logs, own, all) = (
            ("PICKET_EXPORT_ENDPOINT", "https://ours:1"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "https://logs:1"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://metrics:1"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://all:1"),
        );
        for (environment, of_metrics, of_logs) in [
            (&[all, logs, ours, own][..], "https://metrics:1", "https://ours:1"),
            (&[all, logs, ours], "https://ours:1", "https://ours:1"),
            (&[all, logs, own], "https://metrics:1", "https://logs:1"),
            (&[all, logs], "https://all:1", "https://logs:1"),
            (&[logs], "https://file:4317", "https://logs:1"),
            (&[own], "https://metrics:1", "https://file:4317"),
        ] {
            let found = metrics(FILE, environment).unwrap().unwrap();
            assert_eq!(
                (found.urls(), export(FILE, environment).urls()),
                (vec![of_metrics.into()], vec![of_logs.into()])
            );
        }
        assert!(metrics("", &[logs]).unwrap().is_none(), "what is for logs is not for metrics");
        assert_eq!(metrics("", &[own]).unwrap().unwrap().urls(), ["https://metrics:1"]);
        assert!(load("", &[own]).unwrap().is_none(), "what is for metrics asks for no records");
        let http = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf");
        let urls = |environment: &[(&str, &str)]| metrics(FILE, environment).unwrap().unwrap().urls();
        assert_eq!(urls(&[http, own]), ["https://metrics:1"], "used as it is");
        assert_eq!(urls(&[http, all]), ["https://all:1/v1/metrics"]);
        assert_eq!(urls(&[http]), ["https://file:4317/v1/metrics"]);
    }

    #[test]
    fn every_variable_of_metrics_is_honoured_and_its_mistakes_are_named() {
        let set = [
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://m:4318/own"),
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "x-key=m"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "1500"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", "/m.pem"),
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", "/mc.pem"),
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", "/mk.pem"),
        ];
        let found = metrics(FILE, &set).unwrap().unwrap();
        assert_eq!((found.urls(), found.protocol), (vec!["https://m:4318/own".to_owned()], Protocol::HttpProtobuf));
        assert_eq!(found.headers, [("x-key".to_owned(), "m".to_owned())]);
        assert_eq!((found.timeout, found.compression), (Duration::from_millis(1500), Compression::Gzip));
        assert_eq!(found.roots, Some("/m.pem".into()));
        assert_eq!(found.client, Some(ClientCertificate::Files("/mc.pem".into(), "/mk.pem".into())));
        let records = export(FILE, &set);
        assert_eq!((records.urls(), records.roots), (vec!["https://file:4317".to_owned()], Some("/file.pem".into())));
        assert_eq!((records.protocol, records.timeout), (Protocol::Grpc, Duration::from_secs(10)));
        for (name, value) in [
            ("ENDPOINT", "ftp://m"),
            ("PROTOCOL", "http/json"),
            ("HEADERS", "sesame"),
            ("TIMEOUT", "soon"),
            ("COMPRESSION", "brotli"),
        ] {
            let variable = format!("OTEL_EXPORTER_OTLP_METRICS_{name}");
            let text = metrics(FILE, &[(&variable, value)]).unwrap_err();
            assert!(text.contains(&variable) && !text.contains("sesame"), "{text}");
        }
        let text = metrics(FILE, &[("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", "/k.pem")]).unwrap_err();
        assert!(text.contains("export.clientCertificate"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_is_shown() {
        for (variable, value, key) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://c", "export.endpoint"),
            ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/json", "export.protocol"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli", "export.compression"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "export.timeout"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "sesame", "export.headers"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=%zzsesame", "export.headers"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/c.pem", "export.clientKey"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem", "export.clientCertificate"),
        ] {
            let text = load(FILE, &[(variable, value)]).unwrap_err();
            assert!(text.contains(key) && !text.contains("sesame"), "{text}");
        }
        let bare = ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317");
        let text = load("", &[bare, ("OTEL_EXPORTER_OTLP_INSECURE", "yes")]).unwrap_err();
        assert!(text.contains("OTEL_EXPORTER_OTLP_INSECURE"), "{text}");
        let text =
            load("export: {endpoint: 'http://c:1', clientCertificate: workload, clientKey: /k}", &[]).unwrap_err();
        assert!(text.contains("export.clientKey"), "{text}");
        let shown = format!("{:?}", export(FILE, &[("OTEL_EXPORTER_OTLP_HEADERS", "key=sesame")]));
        assert!(shown.contains("key") && !shown.contains("sesame"), "{shown}");
    }
}
