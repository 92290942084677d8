//! Envoy as a foreign peer: as a client with a certificate of its own behind a plain listener, or as a TLS server; and as
//! an application that speaks HTTP/2.
//!
//! Promises that Envoy runs with what its documentation offers for SPIFFE: the SPIFFE validator with the mesh's trust
//! bundle and the one name that is expected. Every peer is a listener of its own, so that one process is many peers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{MeshPod, Process, RunDir, Stream};

use crate::pki::Shown;
use crate::{APP_UID, DEADLINE};

/// Cases whose certificates Envoy refuses to load as its own.
pub const CANNOT_SHOW: [&str; 1] = ["no-digital-signature"];

/// TLS of one of Envoy's peers.
#[derive(Clone, Copy, Debug)]
pub struct Tls<'a> {
    /// Its certificate, if it shows one.
    pub shown: Option<&'a Shown>,
    /// The one application protocol it speaks, if it names one.
    pub alpn: Option<&'a str>,
    /// The highest version it speaks, as `TLSv1_3`.
    pub version: &'a str,
    /// Whom it trusts.
    pub bundle: &'a Path,
    /// The only name it accepts of the other side; any of the trust domain without one.
    pub expected: Option<&'a str>,
}

impl Tls<'_> {
    fn http2(&self) -> bool {
        self.alpn == Some("picket/h2")
    }

    fn common(&self) -> Value {
        let validator = json!({
            "name": "envoy.tls.cert_validator.spiffe",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
                "trust_domains": [{ "name": testkit::TRUST_DOMAIN, "trust_bundle": { "filename": self.bundle } }],
            },
        });
        let certificate =
            |shown: &Shown| json!({ "certificate_chain": file(&shown.chain), "private_key": file(&shown.key) });
        let expect = |name: &str| json!({ "san_type": "URI", "matcher": { "exact": name } });
        json!({
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": self.version },
            "tls_certificates": self.shown.iter().map(|shown| certificate(shown)).collect::<Vec<_>>(),
            "alpn_protocols": self.alpn.iter().collect::<Vec<_>>(),
            "validation_context": {
                "custom_validator_config": validator,
                "match_typed_subject_alt_names": self.expected.iter().map(|name| expect(name)).collect::<Vec<_>>(),
            },
        })
    }
}

/// What an Envoy does in its pod.
#[derive(Debug, Default)]
pub struct Envoy {
    listeners: Vec<Value>,
    clusters: Vec<Value>,
}

impl Envoy {
    /// Sends what comes in clear to `listen` on loopback to `server` as a TLS client, from `source`.
    pub fn client(&mut self, listen: u16, source: SocketAddr, server: SocketAddr, tls: &Tls<'_>) {
        let name = format!("cluster-{listen}");
        let http = if tls.http2() { "http2_protocol_options" } else { "http_protocol_options" };
        let mut cluster = cluster(&name, server);
        cluster["upstream_bind_config"] = json!({ "source_address": socket(source) });
        cluster["transport_socket"] = transport("UpstreamTlsContext", json!({ "common_tls_context": tls.common() }));
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { http: {} },
                // So that its connection ends, and is recorded, with its request.
                "common_http_protocol_options": { "max_requests_per_connection": 1 },
            },
        });
        self.clusters.push(cluster);
        self.listeners.push(listener((Ipv4Addr::LOCALHOST, listen).into(), "HTTP1", &to(&name)));
    }

    /// Serves `listen` as a TLS server that asks for a certificate, and hands requests to `backend`.
    pub fn server(&mut self, listen: SocketAddr, backend: SocketAddr, tls: &Tls<'_>) {
        let name = format!("cluster-{}", listen.port());
        self.clusters.push(cluster(&name, backend));
        let mut listener = listener(listen, if tls.http2() { "HTTP2" } else { "HTTP1" }, &to(&name));
        let context = json!({ "common_tls_context": tls.common(), "require_client_certificate": true });
        listener["filter_chains"][0]["transport_socket"] = transport("DownstreamTlsContext", context);
        self.listeners.push(listener);
    }

    /// Answers every request for itself, in HTTP/2 without TLS, and names it in its output as Python's web server does.
    pub fn application(&mut self, listen: SocketAddr, body: &str) {
        let answer = json!({ "direct_response": { "status": 200, "body": { "inline_string": body } } });
        let mut listener = listener(listen, "HTTP2", &answer);
        listener["filter_chains"][0]["filters"][0]["typed_config"]["access_log"] = json!([{
            "name": "envoy.access_loggers.stdout",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
                "log_format": { "text_format_source": { "inline_string": "\"%REQ(:METHOD)% %REQ(:PATH)% HTTP/2\"\n" } },
            },
        }]);
        self.listeners.push(listener);
    }

    /// Starts it in a pod.
    ///
    /// # Errors
    /// When `PICKET_ENVOY` does not name it, or it refuses its configuration.
    pub fn start(self, pod: &MeshPod, directory: &RunDir) -> Result<Process> {
        let program = std::env::var_os("PICKET_ENVOY").context("PICKET_ENVOY names Envoy: run `./x test`")?;
        let program = directory.install(Path::new(&program))?;
        let name = format!("{}-envoy", pod.pod.name);
        let bootstrap = json!({ "static_resources": { "listeners": self.listeners, "clusters": self.clusters } });
        let config = directory.write(&format!("{name}.json"), &serde_json::to_string_pretty(&bootstrap)?)?;
        let mut command = pod.pod.command(APP_UID, program);
        command.args(["--concurrency", "1", "--disable-hot-restart", "--file-flush-interval-msec", "10"]);
        command.arg("--config-path").arg(config);
        let mut process = Process::spawn(&name, command, directory)?;
        process.wait_for_line(Stream::Err, "starting workers", DEADLINE)?;
        Ok(process)
    }
}

fn file(path: &Path) -> Value {
    json!({ "filename": path })
}

fn socket(address: SocketAddr) -> Value {
    json!({ "address": address.ip().to_string(), "port_value": address.port() })
}

fn transport(context: &str, mut config: Value) -> Value {
    let name = format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}");
    config["@type"] = json!(name);
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": config })
}

fn cluster(name: &str, address: SocketAddr) -> Value {
    let endpoint = json!({ "endpoint": { "address": { "socket_address": socket(address) } } });
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
    })
}

fn to(cluster: &str) -> Value {
    json!({ "route": { "cluster": cluster } })
}

fn listener(address: SocketAddr, codec: &str, action: &Value) -> Value {
    let mut route = action.clone();
    route["match"] = json!({ "prefix": "/" });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "codec_type": codec,
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    let filter = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    json!({
        "name": format!("listener-{}", address.port()),
        "address": { "socket_address": socket(address) },
        "filter_chains": [{ "filters": [filter] }],
    })
}

/// The address of a pod on the link.
pub fn of(pod: &MeshPod, port: u16) -> SocketAddr {
    (IpAddr::from(pod.pod.ipv4), port).into()
}
