//! Everything that is measured, running side by side: a plain network for direct traffic, nginx and Envoy, and a mesh for
//! each Picket.
//!
//! Each network has a pod `client` and a pod `server` with the same application; what differs is what stands between.

use std::{cell::RefCell, net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use testkit::{Endpoint, LINK_IPV4, Mesh, Namespace, Net, Pod, RunDir, Service, ServicePort, Settings, Workload};

use crate::{
    certificates::Certificates,
    envoy::{self, EnvoyPair},
    logs::Lines,
    nginx::{self, APP_HTTP1, APP_HTTP2, Log, Nginx, NginxPair},
    sink::Sink,
};

/// What stands between the load and the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Variant {
    /// Nothing.
    Direct,
    /// An nginx pair that writes each line of its access log at once, as nginx does if it is not told otherwise.
    Nginx,
    /// An nginx pair that gathers lines.
    NginxBuffered,
    /// An Envoy pair with its access log.
    Envoy,
    /// A Picket pair with its access log and export to a collector.
    Picket,
    /// A Picket pair with its access log only.
    PicketNoOtlp,
    /// As `picket`, with the programs that `--baseline` names.
    PicketBaseline,
}

impl Variant {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Direct,
        Self::Nginx,
        Self::NginxBuffered,
        Self::Envoy,
        Self::Picket,
        Self::PicketNoOtlp,
        Self::PicketBaseline,
    ];

    /// As tables show it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx pair, log",
            Self::NginxBuffered => "nginx pair, buffered log",
            Self::Envoy => "Envoy pair, log",
            Self::Picket => "Picket pair, log and OTLP",
            Self::PicketNoOtlp => "Picket pair, log only",
            Self::PicketBaseline => "Picket baseline, log and OTLP",
        }
    }
}

/// One proxy of a pair.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) pid: u32,
    /// Its access log, as far as it was read.
    pub(crate) lines: RefCell<Lines>,
}

/// One of the things that are measured.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) variant: Variant,
    /// Where the load comes from.
    pub(crate) client: &'a Namespace,
    /// Where HTTP/1.1 goes.
    pub(crate) http1: SocketAddr,
    /// Where HTTP/2 goes, if it can be carried.
    pub(crate) http2: Option<SocketAddr>,
    /// The client's proxy and the server's proxy.
    pub(crate) proxies: Vec<Proxy>,
    /// Where records go.
    pub(crate) sink: Option<&'a Sink>,
    mesh: Option<&'a Mesh>,
}

impl Subject<'_> {
    /// What its proxies say they lost; a bench that loses records is void.
    pub(crate) fn ensure_nothing_lost(&self) -> Result<()> {
        let Some(mesh) = self.mesh else { return Ok(()) };
        for pod in ["client", "server"] {
            let (status, text) = mesh.admin(pod, "/metrics")?;
            ensure!(status == 200, "/metrics of {pod} says {status}");
            let lost: Vec<&str> = text.lines().filter(|line| is_loss(line)).collect();
            ensure!(lost.is_empty(), "{}: the proxy of {pod} lost records: {lost:?}", self.variant.title());
        }
        Ok(())
    }
}

/// A line of metrics text that counts records which got lost.
fn is_loss(line: &str) -> bool {
    let counts = line.starts_with("picket_records_dropped_total") || line.starts_with("picket_records_rejected_total");
    counts && !line.ends_with(" 0")
}

/// The plain network. Fields are dropped in order.
struct Plain {
    nginx: Vec<(Variant, NginxPair)>,
    envoy: Option<EnvoyPair>,
    _application: Nginx,
    client: Pod,
    server: Pod,
    _net: Net,
    directory: RunDir,
}

/// A Picket pair in its own network. Fields are dropped in order.
pub(crate) struct Meshed {
    variant: Variant,
    _application: Nginx,
    mesh: Mesh,
    sink: Option<Sink>,
}

/// All that runs.
pub(crate) struct Stage {
    plain: Plain,
    meshes: Vec<Meshed>,
}

/// Where collectors listen.
const COLLECTOR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(LINK_IPV4), 4317);
/// Last number of the service's address, and its ports.
const SERVICE: u8 = 10;
const SERVICE_HTTP1: u16 = 80;
const SERVICE_HTTP2: u16 = 81;

impl Stage {
    /// Starts what `variants` need; the application's large file has `large_bytes`, and `baseline` is where the programs
    /// of the baseline are.
    pub(crate) fn start(variants: &[Variant], large_bytes: u64, baseline: Option<&PathBuf>) -> Result<Self> {
        let plain = Plain::start(variants, large_bytes)?;
        let mut meshes = Vec::new();
        for variant in variants {
            match variant {
                Variant::Direct | Variant::Nginx | Variant::NginxBuffered | Variant::Envoy => {}
                Variant::Picket | Variant::PicketNoOtlp => meshes.push(Meshed::start(*variant, large_bytes, None)?),
                Variant::PicketBaseline => meshes.push(Meshed::start(*variant, large_bytes, baseline)?),
            }
        }
        Ok(Self { plain, meshes })
    }

    /// What can be measured.
    pub(crate) fn subjects(&self, variants: &[Variant]) -> Result<Vec<Subject<'_>>> {
        let mut subjects = Vec::new();
        for variant in variants {
            subjects.push(match variant {
                Variant::Direct => self.plain.direct(),
                Variant::Nginx | Variant::NginxBuffered => self.plain.nginx(*variant)?,
                Variant::Envoy => self.plain.envoy()?,
                Variant::Picket | Variant::PicketNoOtlp | Variant::PicketBaseline => {
                    let meshed = self.meshes.iter().find(|meshed| meshed.variant == *variant);
                    meshed.context("the mesh was started")?.subject()?
                }
            });
        }
        Ok(subjects)
    }
}

impl Plain {
    fn start(variants: &[Variant], large_bytes: u64) -> Result<Self> {
        let directory = RunDir::new("bench")?;
        let certificates = Certificates::make(&directory)?;
        let mut net = Net::new()?;
        let (client, server) = (net.pod("client")?, net.pod("server")?);
        let application = Nginx::application(&server, large_bytes, &directory)?;
        let pods = (&client, &server);
        let mut nginx = Vec::new();
        for (variant, name, shift, log) in
            [(Variant::Nginx, "nginx", 0, Log::Each), (Variant::NginxBuffered, "nginx-buffered", 1, Log::Buffered)]
        {
            if variants.contains(&variant) {
                nginx.push((variant, NginxPair::start(pods, (name, shift, log), &certificates, &directory)?));
            }
        }
        let envoy = if variants.contains(&Variant::Envoy) {
            let program = std::env::var_os("PICKET_ENVOY").context("PICKET_ENVOY names Envoy: run `./x bench`")?;
            Some(EnvoyPair::start(&PathBuf::from(program), pods, &certificates, &directory)?)
        } else {
            None
        };
        Ok(Self { nginx, envoy, _application: application, client, server, _net: net, directory })
    }

    fn subject(&self, variant: Variant, http1: SocketAddr, http2: Option<SocketAddr>) -> Subject<'_> {
        let (client, proxies) = (&self.client.namespace, Vec::new());
        Subject { variant, client, http1, http2, proxies, sink: None, mesh: None }
    }

    fn direct(&self) -> Subject<'_> {
        let at = |port: u16| SocketAddr::from((self.server.ipv4, port));
        self.subject(Variant::Direct, at(APP_HTTP1), Some(at(APP_HTTP2)))
    }

    fn proxy(&self, pid: u32, log: &str) -> Proxy {
        Proxy { pid, lines: RefCell::new(Lines::new(self.directory.path().join(log), b" request ")) }
    }

    fn nginx(&self, variant: Variant) -> Result<Subject<'_>> {
        let found = self.nginx.iter().enumerate().find(|(_, (of, _))| *of == variant);
        let (_, (_, pair)) = found.context("the pair was started")?;
        let (name, shift) = if variant == Variant::Nginx { ("nginx", 0) } else { ("nginx-buffered", 1) };
        let mut subject = self.subject(variant, SocketAddr::from((self.client.ipv4, nginx::PORT + shift)), None);
        subject.proxies = vec![
            self.proxy(pair.client.pid(), &format!("{name}-client.log")),
            self.proxy(pair.server.pid(), &format!("{name}-server.log")),
        ];
        Ok(subject)
    }

    fn envoy(&self) -> Result<Subject<'_>> {
        let pair = self.envoy.as_ref().context("the pair was started")?;
        let at = |port: u16| SocketAddr::from((self.client.ipv4, port));
        let mut subject = self.subject(Variant::Envoy, at(envoy::HTTP1), Some(at(envoy::HTTP2)));
        subject.proxies =
            vec![self.proxy(pair.client.pid(), "envoy-client.log"), self.proxy(pair.server.pid(), "envoy-server.log")];
        Ok(subject)
    }
}

impl Meshed {
    fn start(variant: Variant, large_bytes: u64, programs: Option<&PathBuf>) -> Result<Self> {
        let settings = Settings { programs: programs.cloned(), ..Settings::default() };
        let has_sink = match variant {
            Variant::Picket | Variant::PicketBaseline => true,
            Variant::Direct | Variant::Nginx | Variant::NginxBuffered | Variant::Envoy | Variant::PicketNoOtlp => false,
        };
        Self::with(variant, large_bytes, has_sink, settings)
    }

    /// A pair that keeps its records in spools.
    pub(crate) fn spooled() -> Result<Self> {
        let spool = serde_json::json!({ "maxBytes": "64MiB", "minFreeBytes": "1MiB" });
        Self::with(Variant::Picket, 1, true, Settings { spool: Some(spool), ..Settings::default() })
    }

    /// Lets the collector come, or go.
    pub(crate) fn collector(&mut self, there: bool) -> Result<()> {
        match (there, &self.sink) {
            (true, None) => self.sink = Some(Sink::start(&self.mesh.net.link, COLLECTOR)?),
            (false, Some(_)) => self.sink = None,
            (true, Some(_)) | (false, None) => {}
        }
        Ok(())
    }

    fn with(variant: Variant, large_bytes: u64, has_sink: bool, settings: Settings) -> Result<Self> {
        let net = Net::new()?;
        let sink = if has_sink { Some(Sink::start(&net.link, COLLECTOR)?) } else { None };
        let port = |port, target, protocol: &str| ServicePort { port, target, app_protocol: Some(protocol.to_owned()) };
        let service = Service {
            name: "bench".to_owned(),
            number: SERVICE,
            ports: vec![port(SERVICE_HTTP1, APP_HTTP1, "http"), port(SERVICE_HTTP2, APP_HTTP2, "http2")],
            endpoints: vec![Endpoint::of("server")],
        };
        let settings = Settings { collector: sink.as_ref().map(Sink::address), ..settings };
        let workloads = [Workload::meshed("client"), Workload::meshed("server")];
        let mesh = Mesh::start(net, &settings, &workloads, &[service])?;
        let application = Nginx::application(&mesh.pod("server")?.pod, large_bytes, &mesh.directory)?;
        Ok(Self { variant, _application: application, mesh, sink })
    }

    /// What can be measured.
    pub(crate) fn subject(&self) -> Result<Subject<'_>> {
        let proxy = |pod: &str| {
            let pid = self.mesh.pod(pod)?.proxy.as_ref().context("a meshed pod has a proxy")?.pid();
            let log = self.mesh.directory.path().join(format!("{pod}-proxy.out"));
            Ok(Proxy { pid, lines: RefCell::new(Lines::new(log, b" picket.request ")) })
        };
        let at = |port: u16| SocketAddr::from(([10, 96, 0, SERVICE], port));
        Ok(Subject {
            variant: self.variant,
            client: &self.mesh.pod("client")?.pod.namespace,
            http1: at(SERVICE_HTTP1),
            http2: Some(at(SERVICE_HTTP2)),
            proxies: ["client", "server"].into_iter().map(proxy).collect::<Result<_>>()?,
            sink: self.sink.as_ref(),
            mesh: Some(&self.mesh),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_found_in_metrics() {
        assert!(is_loss("picket_records_dropped_total{sink=\"otlp\"} 3"));
        assert!(is_loss("picket_records_rejected_total{sink=\"otlp\"} 10"));
        assert!(!is_loss("picket_records_dropped_total{sink=\"otlp\"} 0"));
        assert!(!is_loss("picket_records_written_total 7"));
    }
}
