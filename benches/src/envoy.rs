//! Envoy as a peer: a pair that speaks towards servers the version that its client spoke, as a mesh does.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Pod, Process, RunDir, until};

use crate::{
    certificates::{Certificates, Leaf},
    nginx::{APP_HTTP1, APP_HTTP2},
};

/// Where a client's Envoy takes HTTP/1.1.
pub(crate) const HTTP1: u16 = 10080;
/// Where it takes HTTP/2.
pub(crate) const HTTP2: u16 = 10081;
const TLS_SHIFT: u16 = 100;
const DEADLINE: Duration = Duration::from_secs(20);
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// One side: who it is, whom it expects, and each of its ports with where that leads.
struct Side<'a> {
    name: &'static str,
    leaf: &'a Leaf,
    peer: &'a Leaf,
    ports: [(u16, SocketAddr); 2],
}

/// The client's side and the server's side, with mutual TLS 1.3 between them.
#[derive(Debug)]
pub(crate) struct EnvoyPair {
    pub(crate) client: Process,
    pub(crate) server: Process,
}

impl EnvoyPair {
    /// Starts both.
    pub(crate) fn start(
        program: &Path,
        (client, server): (&Pod, &Pod),
        certificates: &Certificates,
        directory: &RunDir,
    ) -> Result<Self> {
        let at = |port: u16| SocketAddr::from((server.ipv4, port));
        let server_side = Side {
            name: "server",
            leaf: &certificates.server,
            peer: &certificates.client,
            ports: [(HTTP1 + TLS_SHIFT, at(APP_HTTP1)), (HTTP2 + TLS_SHIFT, at(APP_HTTP2))],
        };
        let client_side = Side {
            name: "client",
            leaf: &certificates.client,
            peer: &certificates.server,
            ports: [(HTTP1, at(HTTP1 + TLS_SHIFT)), (HTTP2, at(HTTP2 + TLS_SHIFT))],
        };
        Ok(Self {
            server: start(program, server, &server_side, directory)?,
            client: start(program, client, &client_side, directory)?,
        })
    }
}

fn start(program: &Path, pod: &Pod, side: &Side<'_>, directory: &RunDir) -> Result<Process> {
    let log = directory.path().join(format!("envoy-{}.log", side.name));
    let listeners: Vec<_> = side.ports.iter().map(|(port, _)| listener(side, *port, &log)).collect();
    let clusters: Vec<_> = side.ports.iter().map(|(port, to)| cluster(side, *port, *to)).collect();
    let config = json!({ "static_resources": { "listeners": listeners, "clusters": clusters } });
    let config = directory.write(&format!("envoy-{}.json", side.name), &serde_json::to_string_pretty(&config)?)?;
    let mut command = pod.command(0, program);
    command.arg("-c").arg(config).args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"]);
    command.args(["--file-flush-interval-msec", "1000"]);
    let mut process = Process::spawn(&format!("envoy-{}", side.name), command, directory)?;
    for (port, _) in side.ports {
        until(&format!("Envoy of the {} to listen", side.name), DEADLINE, || {
            process.ensure_running()?;
            Ok(pod.namespace.inside(|| Ok(std::net::TcpStream::connect((pod.ipv4, port)).ok()))?.map(drop))
        })
        .with_context(|| process.output(testkit::Stream::Err).unwrap_or_default())?;
    }
    Ok(process)
}

/// TLS with both sides verified: of the client's side towards the server's side, or the other way round.
fn tls(side: &Side<'_>) -> Value {
    json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{
            "certificate_chain": { "filename": side.leaf.certificate },
            "private_key": { "filename": side.leaf.key },
        }],
        "validation_context": {
            "trusted_ca": { "filename": side.leaf.root },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": side.peer.identity } }],
        },
        "alpn_protocols": if side.name == "server" { json!(["h2", "http/1.1"]) } else { json!([]) },
    })
}

fn listener(side: &Side<'_>, port: u16, log: &Path) -> Value {
    let line = format!(
        "%START_TIME% request {} %REQ(:METHOD)% %REQ(:AUTHORITY)%%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %DURATION%ms \
         %BYTES_RECEIVED%B/%BYTES_SENT%B %DOWNSTREAM_REMOTE_ADDRESS% -> %UPSTREAM_HOST% %DOWNSTREAM_PEER_URI_SAN% \
         %DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER% %PROTOCOL% %CONNECTION_ID% %REQ(X-REQUEST-ID)%\n",
        side.name
    );
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "AUTO",
        "http2_protocol_options": { "max_concurrent_streams": 1024 },
        "route_config": { "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": format!("to-{port}"), "timeout": "0s" } }],
        }] },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
        "access_log": [{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": log,
                "log_format": { "text_format_source": { "inline_string": line } },
            },
        }],
    });
    let mut chain = json!({ "filters": [{
        "name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
    }] });
    if side.name == "server" {
        chain["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": tls(side),
            },
        });
    }
    json!({
        "name": format!("listener-{port}"),
        "address": { "socket_address": { "address": ANY, "port_value": port } },
        "filter_chains": [chain],
    })
}

fn cluster(side: &Side<'_>, port: u16, to: SocketAddr) -> Value {
    let name = format!("to-{port}");
    let address = json!({ "socket_address": { "address": to.ip(), "port_value": to.port() } });
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [{ "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 }] },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "use_downstream_protocol_config": {
                    "http_protocol_options": {},
                    "http2_protocol_options": { "max_concurrent_streams": 1024 },
                },
            },
        },
    });
    if side.name == "client" {
        cluster["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": tls(side),
            },
        });
    }
    cluster
}
