//! What the whole-system tests share: a mesh of a client and a server pod, a stranger beside it, and the records of both.
//!
//! Everything is real: picket-ca, picket-proxy with its redirect, and stock programs as applications. A test needs root
//! (or a user namespace) and fails, not skips, without it. Servers and raw peers are in `apps` and `wire`, what every
//! record must say in `judge`.

pub mod envoy;
pub mod foreign;
pub mod pki;
mod apps;
mod wire;
pub mod load;
pub mod judge;
pub mod rsyslog;
pub mod ring;
pub mod steady;
pub mod streams;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use record::key;
use testkit::{
    Collector, Endpoint, LINK_IPV4, Mesh, Net, Process, Record, Service, ServicePort, Settings, Workload, run,
};

pub use apps::{peer, python};
pub use wire::{Wire, accept, dial, listen};

/// How long anything may take on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// The user that applications run as.
pub const APP_UID: u32 = 1000;
/// Port of the web service.
pub const WEB_PORT: u16 = 80;
/// Port on which the web server itself listens.
pub const WEB_TARGET: u16 = 8080;

/// A running mesh: `client` and `server` in it, `stranger` outside.
#[derive(Debug)]
pub struct Stage {
    /// Receives all records.
    pub collector: Collector,
    /// The web server's process.
    pub web: Process,
    /// The mesh.
    pub mesh: Mesh,
}

/// A service of the pod `server`, at 10.96.0.`number` and fd00:96::`number`.
pub fn service(name: &str, number: u8, port: u16, target: u16, app_protocol: Option<&str>) -> Service {
    let ports = vec![ServicePort { port, target, app_protocol: app_protocol.map(str::to_owned) }];
    Service { name: name.to_owned(), number, ports, endpoints: vec![Endpoint::of("server")] }
}

impl Stage {
    /// Starts everything; a web server (Python's) serves files of the run directory on the pod `server`.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start(settings: &Settings) -> Result<Self> {
        Self::with_services(settings, &[])
    }

    /// As [`Self::start`], with more services than the web; who serves them is the caller's to start.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn with_services(settings: &Settings, more: &[Service]) -> Result<Self> {
        let net = Net::new()?;
        let collector = Collector::start(&net.link, SocketAddr::from((LINK_IPV4, 4317)))?;
        let settings = Settings { collector: settings.collector.or(Some(collector.address())), ..settings.clone() };
        let workloads = [Workload::meshed("client"), Workload::meshed("server"), Workload::plain("stranger")];
        let mut services = vec![service("web", 10, WEB_PORT, WEB_TARGET, Some("http"))];
        services.extend_from_slice(more);
        let mesh = Mesh::start(net, &settings, &workloads, &services)?;
        mesh.directory.write("hello.txt", "hello from the server\n")?;
        // As root: where Python comes from a version manager, other users may not execute it.
        let mut command = mesh.pod("server")?.pod.command(0, "python3");
        command.args([
            "-u",
            "-m",
            "http.server",
            &WEB_TARGET.to_string(),
            "--bind",
            "::",
            "--protocol",
            "HTTP/1.1",
            "--directory",
        ]);
        command.arg(mesh.directory.path());
        let mut web = Process::spawn("web", command, &mesh.directory)?;
        web.wait_for_line(testkit::Stream::Out, "Serving HTTP", DEADLINE)?;
        Ok(Self { collector, web, mesh })
    }

    /// Runs a short program in a pod and gives its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, pod: &str, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.mesh.pod(pod)?.pod.command(APP_UID, program).args(arguments))
    }

    /// Waits until at least `count` records match, and gives all that do.
    ///
    /// # Errors
    /// When fewer came in time.
    pub fn records(&self, count: usize, matches: impl Fn(&Record) -> bool) -> Result<Vec<Record>> {
        let enough = |received: &[Record]| received.iter().filter(|record| matches(record)).count() >= count;
        self.collector.wait_until("records at the collector", DEADLINE, enough).with_context(|| {
            let codes: Vec<_> = self
                .collector
                .select(|_| true)
                .iter()
                .map(|record| (record.event().to_owned(), record.text(key::CODE).map(str::to_owned)))
                .collect();
            format!("records that came: {codes:?}")
        })?;
        Ok(self.collector.select(matches))
    }

    /// All records that match of everything that ended before this call: none is missing because it is still on its
    /// way, and none too many is overlooked because it comes late.
    ///
    /// A proxy's records arrive in the order in which it wrote them (with one worker, as here), so a request that is
    /// sent now marks the end of what was written before on both sides.
    ///
    /// # Errors
    /// When the mark does not arrive in time.
    pub fn settled(&self, matches: impl Fn(&Record) -> bool) -> Result<Vec<Record>> {
        static MARKS: AtomicUsize = AtomicUsize::new(0);
        let path = format!("/mark-{}", MARKS.fetch_add(1, Ordering::Relaxed));
        self.run("client", "curl", &["--silent", "--show-error", &format!("http://10.96.0.10{path}")])?;
        self.records(2, |record| record.is(key::URL_PATH, &path))?;
        // A mark's connection on the client's side carries nothing else.
        let is_mark = |record: &Record| record.text(key::URL_PATH).is_some_and(|path| path.starts_with("/mark-"));
        let marks = self.collector.select(|record| is_mark(record) && record.is(key::DIRECTION, "outbound"));
        let connections: Vec<_> = marks.iter().filter_map(|record| record.text(key::CONNECTION_UID)).collect();
        let of_mark = |record: &Record| {
            is_mark(record) || record.text(key::LOG_RECORD_UID).is_some_and(|uid| connections.contains(&uid))
        };
        Ok(self.collector.select(|record| matches(record) && !of_mark(record)))
    }

    /// The value of a sample at `/metrics` of a pod's proxy, such as `picket_connections_open{direction="inbound"}`.
    ///
    /// # Errors
    /// When the proxy does not answer or shows no such sample.
    pub fn metric(&self, pod: &str, sample: &str) -> Result<u64> {
        let (status, text) = self.mesh.admin(pod, "/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        match line {
            Some(value) if status == 200 => Ok(value.trim().parse()?),
            Some(_) | None => bail!("{sample} is not in {pod}'s metrics: {status} {text}"),
        }
    }
}
