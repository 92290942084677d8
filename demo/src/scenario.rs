//! The demo from beginning to end: set the stage, send traffic, show what was recorded, check it.

use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testkit::{
    Capture, Collector, Endpoint, LINK_IPV4, Mesh, Net, PROXY_UID, Process, Record, Service, ServicePort, Settings,
    Stream, Workload, run as run_command, until,
};

use crate::apps::Sent;
use crate::checks::{self, Check, Seen, Traffic};
use crate::deviations;
use crate::edges::{self, Side, Unit};
use crate::screen::Screen;

/// User of the applications.
const APP_UID: u32 = 1000;
const OTLP_PORT: u16 = 4317;
/// How long an application or the last records may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// What clients send in every request, in clear.
const MARKER: &str = "marker-7e0a1f5c93d2";
/// What is sent in clear across the link on purpose, to show that the capture would see it.
const CONTROL: &str = "control-58b06d4ee1fa";
/// How long the client of orders goes on at most: until the last fault was found.
const ORDERS_TIME: Duration = Duration::from_secs(600);
/// Access-log lines shown for each service.
const LINES: usize = 2;

/// Everything that runs. Fields are dropped in order.
struct Stage {
    applications: Vec<Process>,
    mesh: Mesh,
    collector: Collector,
    program: PathBuf,
    redis: bool,
}

/// Runs the whole demo inside fresh namespaces; gives whether everything that it showed is true.
pub(crate) fn run(keep: bool, time: Duration) -> Result<bool> {
    let screen = Screen::new();
    screen.heading("Picket: three pods, real redirect rules, mutual TLS, one record per connection and request");
    let mut stage = Stage::set(screen)?;
    screen.step(&format!("sending traffic for {} s, capturing packets on the link", time.as_secs()));
    let orders = stage.start_load("frontend", "orders", "steady", ORDERS_TIME)?;
    let since = Instant::now();
    let (traffic, seen) = stage.play(time)?;
    let records = stage.await_records(&traffic);
    let metrics = stage.metrics()?;

    show_graph(screen, &records)?;
    stage.show_access_log(screen, &traffic)?;
    let mut all = checks::complete(&traffic, &records);
    all.push(checks::identities(&traffic, &records));
    all.push(checks::decisions(&traffic, &records));
    all.push(checks::encryption(&traffic, &records));
    all.extend(checks::secrecy(&seen));
    all.push(checks::nothing_dropped(&metrics));
    let holds = show_checks(screen, &all);
    let scene = deviations::Scene { screen, mesh: &stage.mesh, collector: &stage.collector, since };
    let found = scene.play()?;
    drop(orders);
    let holds = show_checks(screen, &found) && holds;
    if keep {
        stage.keep(screen)?;
    }
    Ok(holds)
}

fn services() -> Vec<Service> {
    let service = |name: &str, number, port, target, pod: &str| Service {
        name: name.to_owned(),
        number,
        ports: vec![ServicePort { port, target, app_protocol: None }],
        endpoints: vec![Endpoint::of(pod)],
    };
    let mut inventory = service("inventory", 11, 50051, 50051, "data");
    inventory.ports[0].app_protocol = Some("http2".to_owned());
    // The web service leaves its protocol to detection; Redis is declared, as its name would on Kubernetes.
    let mut cache = service("cache", 12, 6379, 6379, "data");
    cache.ports[0].app_protocol = Some("tcp".to_owned());
    let orders = service("orders", 13, 80, deviations::PORT, "backend");
    vec![service("web", 10, 80, 8080, "backend"), inventory, cache, orders]
}

impl Stage {
    fn set(screen: Screen) -> Result<Self> {
        let net = Net::new()?;
        let collector = Collector::start(&net.link, SocketAddr::from((LINK_IPV4, OTLP_PORT)))?;
        screen.step("starting picket-ca, and in each pod `picket-proxy redirect` and `picket-proxy run`");
        let baseline = json!({ "learn": format!("{}s", deviations::LEARN.as_secs()) });
        let settings = Settings { collector: Some(collector.address()), baseline, ..Settings::default() };
        let workloads = ["frontend", "backend", "data"].map(Workload::meshed);
        let mesh = Mesh::start(net, &settings, &workloads, &services())?;
        let program = mesh.directory.install(&std::env::current_exe()?)?;
        let redis = installed("redis-server") && installed("redis-cli");
        let mut stage = Self { applications: Vec::new(), mesh, collector, program, redis };
        screen.step(&format!("starting the applications: HTTP/1.1, gRPC, {}", stage.store_name()));
        stage.start_applications()?;
        Ok(stage)
    }

    fn store_name(&self) -> &'static str {
        if self.redis { "redis-server" } else { "a line server (redis-server and redis-cli are not installed)" }
    }

    fn start_applications(&mut self) -> Result<()> {
        self.serve("backend", "http", 8080)?;
        self.serve("backend", "steady", deviations::PORT)?;
        self.serve("data", "grpc", 50051)?;
        if self.redis {
            let mut command = self.mesh.pod("data")?.pod.command(APP_UID, "redis-server");
            command.args([
                "--port",
                "6379",
                "--bind",
                "*",
                "-::*",
                "--save",
                "",
                "--protected-mode",
                "no",
                "--dir",
                "/",
            ]);
            self.applications.push(Process::spawn("redis", command, &self.mesh.directory)?);
        } else {
            self.serve("data", "tcp", 6379)?;
        }
        for (pod, port) in [("backend", 8080), ("backend", deviations::PORT), ("data", 50051), ("data", 6379)] {
            self.await_listener(pod, port)?;
        }
        Ok(())
    }

    fn serve(&mut self, pod: &str, protocol: &str, port: u16) -> Result<()> {
        let mut command = self.mesh.pod(pod)?.pod.command(APP_UID, &self.program);
        let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        command.args(["serve", protocol, "--listen", &listen.to_string()]);
        self.applications.push(Process::spawn(&format!("{pod}-{protocol}"), command, &self.mesh.directory)?);
        Ok(())
    }

    /// Connects from inside the pod to its own address, which the redirect leaves alone.
    fn await_listener(&mut self, pod: &str, port: u16) -> Result<()> {
        let address = SocketAddr::from((self.mesh.pod(pod)?.pod.ipv4, port));
        until(&format!("an application on {address}"), PATIENCE, || {
            self.applications.iter_mut().try_for_each(Process::ensure_running)?;
            let namespace = &self.mesh.pod(pod)?.pod.namespace;
            let connected = namespace.inside(|| Ok(TcpStream::connect_timeout(&address, PATIENCE).is_ok()))?;
            Ok(connected.then_some(()))
        })
    }

    /// Sends all traffic while three captures watch.
    fn play(&mut self, time: Duration) -> Result<(Vec<Traffic>, Seen)> {
        let client_pod = Capture::start(&self.mesh.pod("frontend")?.pod.namespace, &[MARKER])?;
        let server_pod = Capture::start(&self.mesh.pod("backend")?.pod.namespace, &[MARKER])?;
        let link = Capture::start(&self.mesh.net.link, &[MARKER, CONTROL])?;
        let loads = [
            ("frontend", "web", "http", Unit::Request),
            ("backend", "inventory", "grpc", Unit::Request),
            ("frontend", "cache", "tcp", Unit::Connection),
        ];
        let mut running = Vec::new();
        for (client, service, protocol, _) in loads {
            running.push(self.start_load(client, service, protocol, time)?);
        }
        self.send_control()?;
        let mut traffic = Vec::new();
        for ((client, service, protocol, unit), mut process) in loads.into_iter().zip(running) {
            let line = process.wait_for_line(Stream::Out, "{", time + PATIENCE);
            let sent = Sent::from_json(&line.with_context(|| format!("the {protocol} client failed"))?)?;
            traffic.push(self.traffic(client, service, unit, sent)?);
        }
        self.use_stock_clients(&mut traffic)?;
        let seen = Seen { client_pod: client_pod.stop()?, server_pod: server_pod.stop()?, link: link.stop()? };
        Ok((traffic, seen))
    }

    fn start_load(&self, client: &str, service: &str, protocol: &str, time: Duration) -> Result<Process> {
        let service = find(service)?;
        let to = SocketAddr::from((service.ipv4(), service.ports[0].port)).to_string();
        let mut command = self.mesh.pod(client)?.pod.command(APP_UID, &self.program);
        command.args(["load", protocol, "--to", &to, "--seconds", &time.as_secs().to_string(), "--marker", MARKER]);
        Process::spawn(&format!("{client}-load-{protocol}"), command, &self.mesh.directory)
    }

    fn traffic(&self, client: &str, service: &str, unit: Unit, sent: Sent) -> Result<Traffic> {
        let found = find(service)?;
        let server = found.endpoints[0].pod.clone();
        let dialled = ([found.ipv4().into(), found.ipv6().into()], found.ports[0].port);
        let endpoint = (self.mesh.pod(&server)?.pod.addresses(), found.ports[0].target);
        let identity = |pod: &str| -> Result<String> {
            self.mesh.pod(pod)?.identity.clone().with_context(|| format!("{pod} is not in the mesh"))
        };
        let service = format!("{service}.demo");
        Ok(Traffic { service, dialled, endpoint, unit, client: identity(client)?, server: identity(&server)?, sent })
    }

    /// UDP is not carried by the mesh: what is sent crosses the link as it is.
    fn send_control(&self) -> Result<()> {
        self.mesh.pod("frontend")?.pod.namespace.inside(|| {
            UdpSocket::bind("0.0.0.0:0")?.send_to(CONTROL.as_bytes(), (LINK_IPV4, 9))?;
            Ok(())
        })
    }

    /// curl over IPv6 and redis-cli, where they are installed: one request, one connection.
    fn use_stock_clients(&self, traffic: &mut [Traffic]) -> Result<()> {
        let pod = &self.mesh.pod("frontend")?.pod;
        if installed("curl") {
            let url = format!("http://[{}]/ok", find("web")?.ipv6());
            let mut curl = pod.command(APP_UID, "curl");
            curl.args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "10",
                "--header",
                &format!("x-demo: {MARKER}"),
            ]);
            let answer = run_command(curl.arg(url))?;
            ensure!(answer == "all is well\n", "curl was answered {answer:?}");
            traffic[0].sent.requests += 1;
            traffic[0].sent.connections += 1;
        }
        if self.redis {
            let mut cli = pod.command(APP_UID, "redis-cli");
            let answer = run_command(cli.args(["-h", &find("cache")?.ipv6().to_string(), "ECHO", MARKER]))?;
            ensure!(answer.trim() == MARKER, "redis-cli was answered {answer:?}");
            traffic[2].sent.requests += 1;
            traffic[2].sent.connections += 1;
        }
        Ok(())
    }

    /// All records, as soon as there are as many as were promised, or what there is after some seconds: the checks judge.
    fn await_records(&self, traffic: &[Traffic]) -> Vec<Record> {
        let complete = |records: &[Record]| {
            let enough = |traffic: &Traffic, side| traffic.recorded(records, side) >= traffic.expected();
            traffic.iter().all(|traffic| enough(traffic, Side::Client) && enough(traffic, Side::Server))
        };
        let waited = self.collector.wait_until("all records", PATIENCE, complete);
        waited.unwrap_or_else(|_| self.collector.records())
    }

    fn metrics(&self) -> Result<Vec<String>> {
        let text = |name: &String| Ok(self.mesh.admin(name, "/metrics")?.1);
        self.mesh.pods.keys().map(text).collect()
    }

    /// Some lines of the clients' proxies, as `kubectl logs` would show them.
    fn show_access_log(&self, screen: Screen, traffic: &[Traffic]) -> Result<()> {
        screen.heading("access log of the sidecars");
        let mut lines = Vec::new();
        for pod in self.mesh.pods.values() {
            if let Some(proxy) = &pod.proxy {
                lines.extend(proxy.output(Stream::Out)?.lines().map(str::to_owned));
            }
        }
        for traffic in traffic {
            let dialled = traffic.dialled.0[0].to_string();
            let mine = |line: &&String| line.contains(&dialled) || line.contains(&traffic.service);
            for line in lines.iter().filter(mine).take(LINES) {
                screen.line(line);
            }
        }
        Ok(())
    }

    /// Waits for Ctrl-C.
    fn keep(&mut self, screen: Screen) -> Result<()> {
        screen.heading("everything keeps running until Ctrl-C");
        let user_namespace =
            std::fs::read_to_string("/proc/self/uid_map")?.split_whitespace().nth(2) != Some("4294967295");
        let enter = if user_namespace { "nsenter --user --preserve-credentials" } else { "nsenter" };
        for (name, pod) in &self.mesh.pods {
            let pid = pod.pod.namespace.pid();
            screen.line(&format!("{name:<9} {:<12} {enter} --target {pid} --net", pod.pod.ipv4));
        }
        screen.line(&format!("{:<9} {LINK_IPV4:<12} {enter} --target {} --net", "link", self.mesh.net.link.pid()));
        for service in services() {
            screen.line(&format!("service   {:<12} {}:{}", service.name, service.ipv4(), service.ports[0].port));
        }
        screen.line(&format!("files     {}", self.mesh.directory.path().display()));
        screen.line(&format!("users     applications {APP_UID}, proxies {PROXY_UID}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(tokio::signal::ctrl_c()).context("cannot wait for Ctrl-C")
    }
}

fn find(name: &str) -> Result<Service> {
    services().into_iter().find(|service| service.name == name).with_context(|| format!("there is no service {name}"))
}

fn installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn show_graph(screen: Screen, records: &[Record]) -> Result<()> {
    screen.heading("service graph, from the records");
    let head = ["client", "", "server", "service", "protocol", "TLS", "requests", "errors", "p50", "p99"];
    let right = [false, false, false, false, false, false, true, true, true, true];
    let rows: Vec<Vec<String>> = edges::edges(records)?.iter().map(row).collect();
    screen.table(&head, &right, &rows);
    Ok(())
}

fn row(edge: &edges::Edge) -> Vec<String> {
    let tls: Vec<&str> = edge.tls.iter().map(String::as_str).collect();
    vec![
        edges::short(&edge.client),
        "→".to_owned(),
        edges::short(&edge.server),
        edge.service.clone(),
        edge.protocol.clone(),
        tls.join(", "),
        edge.count.to_string(),
        format!("{:.1} %", 100.0 * edge.errors as f64 / edge.count as f64),
        format!("{:.1} ms", edge.quantile_ms(0.5)),
        format!("{:.1} ms", edge.quantile_ms(0.99)),
    ]
}

fn show_checks(screen: Screen, checks: &[Check]) -> bool {
    screen.heading("checks");
    for check in checks {
        screen.check(check.holds, &check.claim, &check.evidence);
    }
    checks.iter().all(|check| check.holds)
}
