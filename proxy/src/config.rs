//! What operators write, checked into what modules take.
//!
//! All mistakes are reported together by the crate `settings`, each with its key's path; environment variables
//! (`PICKET_OUTBOUND_PORT` for `outbound.port`) override the file. An example with every key and its default is
//! deploy/proxy.example.yaml.

mod baseline;
mod export;
mod metrics;
mod print;
mod records;
mod spool;
mod syslog;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use self::export::Variables;
pub use self::{
    baseline::Baseline,
    export::{ClientCertificate, Export},
    metrics::Metrics,
    records::Records,
    spool::Spool,
    syslog::Syslog,
};
use ::export::access_log::{Format as LineFormat, Mode};
use identity::{SpiffeId, TrustDomain};
use settings::{Document, HostPort, Noted, Section, Setting};
use telemetry::log::Format as LogFormat;

/// The whole configuration of `picket-proxy run`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whose identities count.
    pub trust_domain: TrustDomain,
    /// Away from our workload.
    pub outbound: Outbound,
    /// Towards our workload.
    pub inbound: Inbound,
    /// Probes, metrics, run-time changes.
    pub admin: Admin,
    /// How we get our certificate.
    pub identity: Identity,
    /// Who is where.
    pub discovery: PathBuf,
    /// Where records go, if anywhere.
    pub export: Option<Export>,
    /// What they hold besides the schema.
    pub records: Records,
    /// Metrics that are made from them, if any.
    pub metrics: Option<Metrics>,
    /// A syslog server that gets them, too, if there is one.
    pub syslog: Option<Syslog>,
    /// Where they wait on disk for the collector and the syslog server, if anywhere.
    pub spool: Option<Spool>,
    /// What is normal for the workload.
    pub baseline: Baseline,
    /// The log of connections and requests on stdout.
    pub access_log: AccessLog,
    /// The program's own log on stderr.
    pub log: Log,
    /// Threads that serve connections.
    pub workers: usize,
    /// How long what is in flight may take at shutdown.
    pub drain_timeout: Duration,
    /// What the proxy may cost.
    pub limits: Limits,
    /// How protocols are found.
    pub detect: Detect,
}

/// Away from our workload.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Where redirected connections arrive.
    pub port: u16,
}

/// What happens to clients that are not in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plaintext {
    /// They are served and recorded.
    Permissive,
    /// They are refused and recorded.
    Strict,
}

/// Towards our workload.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Where redirected connections arrive.
    pub port: u16,
    /// Clients outside the mesh.
    pub plaintext: Plaintext,
}

/// Probes, metrics, run-time changes.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Probes and metrics.
    pub address: SocketAddr,
    /// Run-time changes.
    pub socket: Option<PathBuf>,
}

/// How we get our certificate.
#[derive(Debug, Clone)]
pub struct Identity {
    /// `host:port` of the CA.
    pub ca_address: String,
    /// The trust bundle, PEM.
    pub ca_roots: PathBuf,
    /// Whom the CA must prove to be.
    pub ca_identity: SpiffeId,
    /// Our ServiceAccount token.
    pub token_file: PathBuf,
    /// Where the trust that was good last is kept over restarts.
    pub state_dir: Option<PathBuf>,
}

/// The log of connections and requests on stdout.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// Which records.
    pub mode: Mode,
    /// The pod's annotations, one of which may change the mode.
    pub annotations: Option<PathBuf>,
    /// How a line looks.
    pub format: LineFormat,
}

/// The program's own log on stderr.
#[derive(Debug, Clone)]
pub struct Log {
    /// As for the admin socket's `/log-level`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// What the proxy may cost.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// How long a client may wait between two requests.
    pub keep_alive_timeout: Duration,
    /// A TLS handshake.
    pub tls_handshake_timeout: Duration,
    /// A request's head, from its first byte.
    pub request_head_timeout: Duration,
    /// TCP to an endpoint.
    pub connect_timeout: Duration,
    /// A request's head.
    pub request_head_bytes: usize,
    /// Records that wait for their sink.
    pub record_queue_bytes: usize,
}

/// How protocols are found.
#[derive(Debug, Clone)]
pub struct Detect {
    /// How long the first bytes may take.
    pub timeout: Duration,
    /// Ports where the server speaks first.
    pub server_first_ports: Vec<u16>,
}

/// Words of the file, by what they mean.
const PLAINTEXT: [(&str, Plaintext); 2] = [("permissive", Plaintext::Permissive), ("strict", Plaintext::Strict)];
const ACCESS_LOG_FORMATS: [(&str, LineFormat); 2] = [("text", LineFormat::Text), ("json", LineFormat::Json)];
const LOG_FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];

/// SMTP, SMTP submission, MySQL, Galera, PostgreSQL, Redis, Elasticsearch transport, memcached: Linkerd's default list of
/// opaque ports (linkerd.io, "Protocol detection"), which are known to speak first or to be slow to speak.
const SERVER_FIRST_PORTS: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or is not YAML.
    #[error("the configuration is refused")]
    Document(#[from] settings::Error),
    /// Its content is wrong.
    #[error("the configuration is refused")]
    Mistakes(#[from] settings::Mistakes),
}

impl Config {
    /// Reads the file, with the process's variables over it.
    ///
    /// # Errors
    /// All mistakes together.
    pub fn load(path: Option<&Path>, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let environment: Vec<_> = environment.into_iter().collect();
        let variables = Variables::new(&environment);
        Ok(Document::load(path, "PICKET_", environment)?.read(|root| Self::read(root, &variables))?)
    }

    fn read(root: &Section<'_>, variables: &Variables) -> Result<Self, Noted> {
        let trust_domain = root
            .required_with("trustDomain", "a trust domain such as example.org", |scalar| scalar.text()?.parse().ok());
        let outbound = Outbound { port: root.section("outbound").default("port", 15001) };
        let inbound = Inbound::read(&root.section("inbound"), &outbound);
        let identity = Identity::read(&root.section("identity"));
        let discovery = root.section("discovery").required("file");
        let export = root.optional_section("export").or_else(|| variables.enable().then(|| root.section("export")));
        let export = export.map(|section| Export::read(&section, variables)).transpose();
        let metrics = root.optional_section("metrics");
        let metrics = metrics.map(|section| Metrics::read(&section, &root.section("export"), variables)).transpose();
        let spool = root.optional_section("spool").map(|section| Spool::read(&section)).transpose();
        let syslog = root.optional_section("syslog").map(|section| Syslog::read(&section)).transpose();
        if matches!((&export, &syslog, &spool), (Ok(None), Ok(None), Ok(Some(_)))) {
            root.refuse("spool", "a section `export` or `syslog` beside it: who else would take the records");
        }
        if matches!((&syslog, &spool), (Ok(Some(_)), Ok(None))) {
            root.refuse(
                "syslog",
                "a section `spool` beside it: syslog has no acknowledgement, and sends again what is in doubt",
            );
        }
        Ok(Self {
            outbound,
            inbound,
            admin: Admin::read(&root.section("admin")),
            baseline: Baseline::read(&root.section("baseline")),
            access_log: AccessLog::read(&root.section("accessLog")),
            log: Log::read(&root.section("log")),
            workers: at_least_one(root, "workers", default_workers()),
            drain_timeout: root.default("drainTimeout", Duration::from_secs(30)),
            limits: Limits::read(&root.section("limits")),
            detect: Detect::read(&root.section("detect")),
            trust_domain: trust_domain?,
            identity: identity?,
            discovery: discovery?,
            export: export?,
            metrics: metrics?,
            records: Records::read(&root.section("records")),
            syslog: syslog?,
            spool: spool?,
        })
    }
}

/// At most two: a sidecar shares its cores with the workload, and one worker already serves tens of thousands of
/// requests each second.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(2)
}

/// A number that must not be 0: a proxy without workers or connections would start and serve nobody.
fn at_least_one(section: &Section<'_>, name: &str, default: usize) -> usize {
    let expected = "a whole number from 1";
    let found = section.optional_with(name, expected, |scalar| usize::from_scalar(scalar).filter(|found| *found > 0));
    found.unwrap_or(default)
}

impl Inbound {
    fn read(section: &Section<'_>, outbound: &Outbound) -> Self {
        let port = section.default("port", 15006);
        if port == outbound.port {
            section.refuse("port", "a port other than outbound.port");
        }
        Self { port, plaintext: section.one_of("plaintext", &PLAINTEXT, Plaintext::Permissive) }
    }
}

impl Admin {
    fn read(section: &Section<'_>) -> Self {
        let all = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15020);
        Self { address: section.default("address", all), socket: section.optional("socket") }
    }
}

impl Identity {
    fn read(section: &Section<'_>) -> Result<Self, Noted> {
        let ca_address = section.required::<HostPort>("caAddress");
        let ca_roots = section.required("caRoots");
        let expected = "a SPIFFE ID such as spiffe://example.org/ns/picket-system/sa/picket-ca";
        let ca_identity = section.required_with("caIdentity", expected, |scalar| scalar.text()?.parse().ok());
        let token_file = section.required("tokenFile");
        let state_dir = section.optional("stateDir");
        Ok(Self {
            ca_address: ca_address?.to_string(),
            ca_roots: ca_roots?,
            ca_identity: ca_identity?,
            token_file: token_file?,
            state_dir,
        })
    }
}

impl AccessLog {
    fn read(section: &Section<'_>) -> Self {
        let expected = "off, errors, all, or sampled:RATE with a rate from 0.000001 to 1";
        let mode = section.optional_with("mode", expected, |scalar| scalar.text()?.parse().ok());
        Self {
            mode: mode.unwrap_or(Mode::Errors),
            annotations: section.optional("annotations"),
            format: section.one_of("format", &ACCESS_LOG_FORMATS, LineFormat::Text),
        }
    }
}

impl Log {
    fn read(section: &Section<'_>) -> Self {
        Self {
            level: section.default("level", "info".to_owned()),
            format: section.one_of("format", &LOG_FORMATS, LogFormat::Text),
        }
    }
}

impl Limits {
    fn read(section: &Section<'_>) -> Self {
        let seconds = |name: &str, default: u64| section.default(name, Duration::from_secs(default));
        let bytes = |name: &str, default: u64| section.default(name, settings::Bytes(default)).0 as usize;
        Self {
            connections: at_least_one(section, "connections", 10_000),
            keep_alive_timeout: seconds("keepAliveTimeout", 300),
            tls_handshake_timeout: seconds("tlsHandshakeTimeout", 5),
            request_head_timeout: seconds("requestHeadTimeout", 10),
            connect_timeout: seconds("connectTimeout", 5),
            request_head_bytes: bytes("requestHeadBytes", 64 << 10),
            record_queue_bytes: bytes("recordQueueBytes", 8 << 20),
        }
    }
}

impl Detect {
    fn read(section: &Section<'_>) -> Self {
        let ports = section.list("serverFirstPorts");
        Self {
            timeout: section.default("timeout", Duration::from_secs(2)),
            // An empty list in the file is a choice, not an absence.
            server_first_ports: if section.is_set("serverFirstPorts") { ports } else { SERVER_FIRST_PORTS.to_vec() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../deploy/proxy.example.yaml");

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, Error> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Vec<_> = environment.iter().map(owned).collect();
        let variables = Variables::new(&environment);
        let document = Document::parse("proxy.yaml", text, "PICKET_", environment)?;
        Ok(document.read(|root| Config::read(root, &variables))?)
    }

    #[test]
    fn the_example_is_whole_and_valid() {
        let config = load(EXAMPLE, &[]).unwrap();
        assert_eq!(
            (config.outbound.port, config.inbound.port, config.inbound.plaintext),
            (15001, 15006, Plaintext::Permissive)
        );
        assert_eq!(config.detect.server_first_ports, SERVER_FIRST_PORTS);
        assert_eq!(config.limits.request_head_bytes, 65536);
    }

    #[test]
    fn a_spool_needs_an_export_and_sensible_limits() {
        let with = |more: &str| load(&format!("{EXAMPLE}{more}"), &[]);
        let export = "export: {endpoint: 'http://c:1'}\n";
        let spool = with(&format!("{export}spool: {{dir: /s, sync: 50ms}}\n")).unwrap().spool.unwrap();
        assert_eq!((spool.max_bytes, spool.sync), (256 << 20, ::spool::Sync::Interval(Duration::from_millis(50))));
        for (more, path) in [
            ("spool: {dir: /s}\n".to_owned(), "spool"),
            (format!("{export}spool: {{}}\n"), "spool.dir"),
            (format!("{export}spool: {{dir: /s, maxBytes: 5KiB}}\n"), "spool.maxBytes"),
            (format!("{export}spool: {{dir: /s, sync: 0ms}}\n"), "spool.sync"),
            (format!("{export}spool: {{dir: /s, onFull: wait}}\n"), "spool.onFull"),
            (format!("{export}spool: {{dir: /s, checkpointInterval: 10ms}}\n"), "spool.checkpointInterval"),
        ] {
            let text = telemetry::chain(&with(&more).unwrap_err()).to_string();
            assert!(text.contains(path), "{path} is not in {text}");
        }
    }

    #[test]
    fn a_syslog_server_needs_a_spool_and_a_scheme() {
        let with = |more: &str| load(&format!("{EXAMPLE}{more}"), &[]);
        let spool = "spool: {dir: /s}\n";
        let syslog = with(&format!("{spool}syslog: {{endpoint: 'tcp://s:601'}}\n")).unwrap().syslog.unwrap();
        assert_eq!((syslog.facility, syslog.enterprise_number, syslog.message_bytes_max), (16, 32473, 8192));
        assert!(!syslog.evidence && !syslog.delivery(Vec::new()).format.evidence);
        let proven = with(&format!("{spool}syslog: {{endpoint: 'tcp://s:601', evidence: true}}\n")).unwrap();
        assert!(proven.syslog.unwrap().delivery(Vec::new()).format.evidence);
        for (more, path) in [
            ("syslog: {endpoint: 'tcp://s:601'}\n".to_owned(), "syslog"),
            (format!("{spool}syslog: {{endpoint: 's:601'}}\n"), "syslog.endpoint"),
            (format!("{spool}syslog: {{endpoint: 'tcp://s:601', messageBytes: 1KiB}}\n"), "syslog.messageBytes"),
            (format!("{spool}syslog: {{endpoint: 'tcp://s:601', facility: loud}}\n"), "syslog.facility"),
            (format!("{spool}syslog: {{endpoint: 'tls://s:6514', privateKey: /k}}\n"), "syslog.certificate"),
        ] {
            let text = telemetry::chain(&with(&more).unwrap_err()).to_string();
            assert!(text.contains(path), "{path} is not in {text}");
        }
    }

    #[test]
    fn metrics_are_named_from_closed_lists() {
        let with = |more: &str| load(&format!("{EXAMPLE}{more}"), &[]);
        let all = with("metrics: {maxSeries: 7}\n").unwrap().metrics.unwrap();
        assert_eq!((all.series_max, all.include.len()), (7, ::export::red::NAMES.len()));
        let one =
            with("metrics: {include: [http.server.request.duration], attributes: []}\n").unwrap().metrics.unwrap();
        assert_eq!((one.include.len(), one.attributes.len()), (1, 0));
        for (more, path) in [("{include: [a]}", "metrics.include"), ("{maxSeries: 0}", "metrics.maxSeries")] {
            let text = telemetry::chain(&with(&format!("metrics: {more}\n")).unwrap_err()).to_string();
            assert!(text.contains(path), "{path} is not in {text}");
        }
    }

    #[test]
    fn fields_of_heads_are_recorded_by_name() {
        let with = |more: &str| load(&format!("{EXAMPLE}{more}\n"), &[]);
        assert!(load(EXAMPLE, &[]).unwrap().records.capture().is_empty());
        let records =
            with("records: {requestHeaders: [X-Id, x-id, Cookie], responseHeaders: [set-cookie], query: true}");
        let records = records.unwrap().records;
        assert_eq!(records.request_headers, ["x-id", "cookie"]);
        assert_eq!(records.credentials().collect::<Vec<_>>(), ["cookie", "set-cookie"]);
        let many: Vec<_> = (0..17).map(|number| format!("x-{number}")).collect();
        for (more, path) in [
            ("requestHeaders: ['a b']".to_owned(), "records.requestHeaders"),
            ("requestHeaders: ['*']".to_owned(), "records.requestHeaders"),
            (format!("responseHeaders: [{}]", many.join(",")), "records.responseHeaders"),
            (format!("responseHeaders: [{}]", "x".repeat(65)), "records.responseHeaders"),
            ("queryParameters: ['a=b']".to_owned(), "records.queryParameters"),
            ("query: some".to_owned(), "records.query"),
        ] {
            let text = telemetry::chain(&with(&format!("records: {{{more}}}")).unwrap_err()).to_string();
            assert!(text.contains(path), "{path} is not in {text}");
        }
    }

    #[test]
    fn a_variable_overrides_the_file() {
        let interval = |environment: &[(&str, &str)]| {
            load(&format!("{EXAMPLE}metrics: {{interval: 7s}}\n"), environment).map(|of| of.metrics.unwrap().interval)
        };
        let (ours, theirs) = (("PICKET_METRICS_INTERVAL", "9s"), ("OTEL_METRIC_EXPORT_INTERVAL", "8000"));
        assert_eq!(interval(&[]).unwrap(), Duration::from_secs(7));
        assert_eq!(interval(&[theirs]).unwrap(), Duration::from_secs(8));
        assert_eq!(interval(&[theirs, ours]).unwrap(), Duration::from_secs(9));
        let text = telemetry::chain(&interval(&[("OTEL_METRIC_EXPORT_INTERVAL", "8s")]).unwrap_err()).to_string();
        assert!(text.contains("metrics.interval") && text.contains("OTEL_METRIC_EXPORT_INTERVAL"), "{text}");
        assert_eq!(load(EXAMPLE, &[("PICKET_OUTBOUND_PORT", "7")]).unwrap().outbound.port, 7);
    }

    #[test]
    fn an_empty_list_is_a_choice_and_zero_is_a_mistake() {
        let list = EXAMPLE.find("serverFirstPorts:").expect("the example has every key");
        let end = EXAMPLE[list..].find('\n').map_or(EXAMPLE.len(), |end| list + end);
        let none = format!("{}serverFirstPorts: []{}", &EXAMPLE[..list], &EXAMPLE[end..]);
        assert!(load(&none, &[]).unwrap().detect.server_first_ports.is_empty());
        let error = load(EXAMPLE, &[("PICKET_WORKERS", "0"), ("PICKET_LIMITS_CONNECTIONS", "0")]).unwrap_err();
        let text = telemetry::chain(&error).to_string();
        for part in ["workers", "limits.connections"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn one_port_for_both_directions_is_a_mistake() {
        let error = load(EXAMPLE, &[("PICKET_OUTBOUND_PORT", "7"), ("PICKET_INBOUND_PORT", "7")]).unwrap_err();
        assert!(
            telemetry::chain(&error).to_string().contains("inbound.port: expected a port other than outbound.port")
        );
    }

    #[test]
    fn all_mistakes_come_at_once_with_path_and_nearest_name() {
        let bad = EXAMPLE.replace("plaintext: permissive", "plaintxt: strict").replace("port: 15001", "port: many");
        let error = load(&bad, &[]).unwrap_err();
        let text = telemetry::chain(&error).to_string();
        for part in ["inbound.plaintxt", "plaintext", "outbound.port"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
