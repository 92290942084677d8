//! What the whole-system tests share: a mesh of a client and a server pod, a stranger beside it, and the records of both.
//!
//! Everything is real: picket-ca, picket-proxy with its redirect, and stock programs as applications. A test needs root
//! (or a user namespace) and fails, not skips, without it.

pub mod envoy;
pub mod foreign;
pub mod pki;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use record::key;
use testkit::{
    Collector, Endpoint, LINK_IPV4, Mesh, Net, Process, Record, Service, ServicePort, Settings, Workload, run, until,
};

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
        let service = Service {
            name: "web".to_owned(),
            number: 10,
            ports: vec![ServicePort { port: WEB_PORT, target: WEB_TARGET, app_protocol: Some("http".to_owned()) }],
            endpoints: vec![Endpoint::of("server")],
        };
        let mesh = Mesh::start(net, &settings, &workloads, &[&[service], more].concat())?;
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
        until("records at the collector", DEADLINE, || {
            let found: Vec<_> = self.collector.records().into_iter().filter(|record| matches(record)).collect();
            Ok((found.len() >= count).then_some(found))
        })
        .with_context(|| {
            let all = self.collector.records();
            let codes: Vec<_> = all
                .iter()
                .map(|record| (record.event().to_owned(), record.text(key::CODE).map(str::to_owned)))
                .collect();
            format!("records that came: {codes:?}")
        })
    }
}
