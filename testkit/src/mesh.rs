//! A whole mesh on one machine: the CA on the link, and in each pod the redirect and a proxy.
//!
//! Promises: [`Mesh::start`] returns when every proxy says that it is ready; all processes run with the privileges they
//! have in production (the redirect as root, proxies as [`PROXY_UID`] without capabilities); dropping ends everything.
//! Leaves to others: the applications, and where records go ([`crate::Collector`]).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{Clock, LINK_IPV4, Net, Pod, Process, RunDir, binaries, run, until};

/// The user that proxies run as.
pub const PROXY_UID: u32 = 15002;
/// Trust domain of every mesh made here.
pub const TRUST_DOMAIN: &str = "demo.picket.dev";
const PROXY: &str = "picket-proxy";
const AUTHORITY: &str = "picket-ca";
const ADMIN_PORT: u16 = 15020;
const CA_PORT: u16 = 15012;
const CA_IDENTITY: &str = "spiffe://demo.picket.dev/ns/picket-system/sa/picket-ca";
const TOKEN_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const TOKEN_AUDIENCE: &str = "picket-ca";
/// Generous: a loaded machine with two cores makes keys and starts a dozen processes in it.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// What an inbound proxy does with connections that are not from the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plaintext {
    /// Forwards and records them.
    Permissive,
    /// Refuses and records them.
    Strict,
}

/// What is the same for all proxies of a mesh.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Inbound plaintext rule.
    pub plaintext: Plaintext,
    /// Where records go by OTLP/gRPC; `None` exports nothing.
    pub collector: Option<SocketAddr>,
    /// Each proxy keeps its records in a spool of its own, with these keys of its section besides `dir`.
    pub spool: Option<Value>,
    /// Keys of each proxy's section `baseline`.
    pub baseline: Value,
    /// Directives of the proxies' own log, for example `info`.
    pub log_level: String,
    /// Worker threads per proxy.
    pub workers: u16,
    /// Where our programs are; `None` leaves it to [`binaries`].
    pub programs: Option<PathBuf>,
    /// How long a proxy that stops lets go on what is in flight.
    pub drain_timeout: Duration,
    /// The wall clock of the CA and of all proxies; `None` is the machine's.
    pub clock: Option<Clock>,
    /// More keys of the CA's configuration, such as `leafLifetime`.
    pub authority: Vec<(&'static str, Value)>,
    /// More keys of the proxies' configuration, such as `syslog`; a section that is there already is replaced.
    pub proxy: Vec<(&'static str, Value)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            plaintext: Plaintext::Strict,
            collector: None,
            spool: None,
            baseline: json!({}),
            log_level: "info".to_owned(),
            workers: 1,
            programs: None,
            drain_timeout: Duration::from_secs(30),
            clock: None,
            authority: Vec::new(),
            proxy: Vec::new(),
        }
    }
}

/// One pod to be made: who it is.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Name of the pod.
    pub pod: String,
    /// Its namespace and service account make its identity.
    pub namespace: String,
    /// See `namespace`.
    pub service_account: String,
    /// Without a proxy a pod is plain: no redirect, no identity.
    pub meshed: bool,
    /// More options for `picket-proxy redirect`.
    pub redirect: Vec<String>,
}

impl Workload {
    /// A meshed workload of the namespace `demo` whose service account has the pod's name.
    pub fn meshed(pod: &str) -> Self {
        Self {
            pod: pod.to_owned(),
            namespace: "demo".to_owned(),
            service_account: pod.to_owned(),
            meshed: true,
            redirect: Vec::new(),
        }
    }

    /// As [`Workload::meshed`], but without a proxy.
    pub fn plain(pod: &str) -> Self {
        Self { meshed: false, ..Self::meshed(pod) }
    }

    fn identity(&self) -> Option<String> {
        let (namespace, account) = (&self.namespace, &self.service_account);
        self.meshed.then(|| format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}"))
    }
}

/// A service: a name and addresses that lead to pods.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name in the namespace `demo`.
    pub name: String,
    /// Last number of its addresses: 10.96.0.x and fd00:96::x.
    pub number: u8,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

impl Service {
    /// 10.96.0.x
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, 0, self.number)
    }

    /// fd00:96::x
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, self.number.into())
    }
}

/// One port of a service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Port of the service.
    pub port: u16,
    /// Port of the pods.
    pub target: u16,
    /// `http`, `http2`, `tcp` or `tls`; `None` leaves it to detection.
    pub app_protocol: Option<String>,
}

/// One endpoint of a service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Name of a pod of the mesh.
    pub pod: String,
    /// Which identity discovery names for it; `None` is the pod's own.
    pub identity: Option<String>,
}

impl Endpoint {
    /// The pod with its own identity.
    pub fn of(pod: &str) -> Self {
        Self { pod: pod.to_owned(), identity: None }
    }
}

/// A pod of a running mesh.
#[derive(Debug)]
pub struct MeshPod {
    /// The pod.
    pub pod: Pod,
    /// Who it is.
    pub workload: Workload,
    /// Its SPIFFE id, if it is in the mesh.
    pub identity: Option<String>,
    /// Its proxy, if it is in the mesh.
    pub proxy: Option<Process>,
}

/// A running mesh. Fields are dropped in order: proxies, the CA, the network, the files.
#[derive(Debug)]
pub struct Mesh {
    /// All pods by name.
    pub pods: BTreeMap<String, MeshPod>,
    /// The certificate authority, in the link namespace.
    pub ca: Process,
    /// The network.
    pub net: Net,
    /// Configuration, programs and output of everything.
    pub directory: RunDir,
    clock: Option<Clock>,
}

impl Mesh {
    /// Makes the pods in `net`, starts the CA, and in each meshed pod the redirect and the proxy; waits until all are ready.
    ///
    /// # Errors
    /// When a program is missing, a step fails, or something is not ready in time; the error says what and why.
    pub fn start(mut net: Net, settings: &Settings, workloads: &[Workload], services: &[Service]) -> Result<Self> {
        let directory = RunDir::new("mesh")?;
        let programs = settings.programs.clone().map_or_else(binaries, Ok)?;
        for program in [PROXY, AUTHORITY] {
            directory.install(&programs.join(program))?;
        }
        let clock = settings.clock.clone();
        initialize_ca(&net, &directory, settings)?;
        let ca = run_ca(&net, &directory, clock.as_ref())?;

        let mut pods = BTreeMap::new();
        for workload in workloads {
            let (pod, identity) = (net.pod(&workload.pod)?, workload.identity());
            pods.insert(workload.pod.clone(), MeshPod { pod, workload: workload.clone(), identity, proxy: None });
        }
        let mut mesh = Self { pods, ca, net, directory, clock };
        mesh.discover(services)?;
        for workload in workloads.iter().filter(|workload| workload.meshed) {
            mesh.prepare_pod(settings, workload)
                .and_then(|()| mesh.run_proxy(&workload.pod))
                .with_context(|| format!("cannot bring pod {} into the mesh", workload.pod))?;
        }
        for workload in workloads.iter().filter(|workload| workload.meshed) {
            mesh.wait_ready(&workload.pod)?;
        }
        Ok(mesh)
    }

    /// Ends the CA as a crash does.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill_ca(&mut self) -> Result<()> {
        self.ca.signal(Signal::KILL)?;
        self.ca.wait(START_DEADLINE).map(drop)
    }

    /// Starts the CA again after its end, on what it left; gives proxies new tokens, as Kubernetes does before they end.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_ca(&mut self) -> Result<()> {
        self.renew_tokens()?;
        self.ca = run_ca(&self.net, &self.directory, self.clock.as_ref())?;
        Ok(())
    }

    /// Gives all proxies new tokens, as Kubernetes does before they end.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn renew_tokens(&self) -> Result<()> {
        let mut meshed = self.pods.values().filter(|pod| pod.workload.meshed);
        meshed.try_for_each(|pod| self.write_token(&pod.workload).map(drop))
    }

    /// Ends a pod's proxy as a crash does, and runs `meanwhile` before it is started again. Its output begins anew; whether
    /// it becomes ready is the caller's question.
    ///
    /// # Errors
    /// When the pod has no proxy, or it does not start.
    pub fn restart_proxy(&mut self, name: &str, meanwhile: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let proxy = self.pods.get_mut(name).and_then(|pod| pod.proxy.as_mut());
        let proxy = proxy.with_context(|| format!("{name} has no proxy"))?;
        proxy.signal(Signal::KILL)?;
        proxy.wait(START_DEADLINE)?;
        meanwhile(self)?;
        self.run_proxy(name)
    }

    /// Ends a pod's proxy as Kubernetes does, changes its configuration, and starts it again; waits until it is ready.
    ///
    /// # Errors
    /// When the pod has no proxy, it does not end within `deadline`, or does not come back.
    pub fn reconfigure(&mut self, name: &str, deadline: Duration, change: impl FnOnce(&mut Value)) -> Result<()> {
        self.terminate(name)?;
        self.wait_for_end(name, deadline)?;
        let file = format!("{name}.yaml");
        let mut config = serde_json::from_str(&fs::read_to_string(self.directory.path().join(&file))?)?;
        change(&mut config);
        self.directory.write(&file, &serde_json::to_string_pretty(&config)?)?;
        self.run_proxy(name)?;
        self.wait_ready(name)
    }

    /// Kills a pod's proxy without a warning, starts it again with the same configuration, and waits until it is ready.
    ///
    /// # Errors
    /// When the pod has no proxy, or it does not come back.
    pub fn kill_and_restart(&mut self, name: &str) -> Result<()> {
        self.restart_proxy(name, |_| Ok(()))?;
        self.wait_ready(name)
    }

    /// Writes the discovery file, which proxies watch; it is replaced atomically.
    ///
    /// # Errors
    /// When an endpoint names an unknown pod, or the file cannot be written.
    pub fn discover(&self, services: &[Service]) -> Result<()> {
        let services = services.iter().map(|service| self.describe(service)).collect::<Result<Vec<_>>>()?;
        let text = serde_json::to_string_pretty(&json!({ "services": services }))?;
        let fresh = self.directory.write("discovery.yaml.new", &text)?;
        fs::rename(fresh, self.discovery_file())?;
        Ok(())
    }

    /// The pod of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<&MeshPod> {
        self.pods.get(name).with_context(|| format!("there is no pod {name}"))
    }

    /// The trust bundle, PEM.
    pub fn trust_bundle(&self) -> PathBuf {
        self.directory.path().join("root.pem")
    }

    /// Asks a pod's proxy to stop, as Kubernetes does.
    ///
    /// # Errors
    /// When the pod has no proxy, or it has ended.
    pub fn terminate(&self, pod: &str) -> Result<()> {
        self.pod(pod)?.proxy.as_ref().with_context(|| format!("{pod} has no proxy"))?.signal(Signal::TERM)
    }

    /// Waits until a pod's proxy has ended.
    ///
    /// # Errors
    /// When the pod has no proxy, or after `deadline`.
    pub fn wait_for_end(&mut self, pod: &str, deadline: Duration) -> Result<ExitStatus> {
        let proxy = self.pods.get_mut(pod).and_then(|entry| entry.proxy.as_mut());
        proxy.with_context(|| format!("{pod} has no proxy"))?.wait(deadline)
    }

    /// GETs `path` from the admin port of a pod's proxy: status and body.
    ///
    /// # Errors
    /// When nobody answers within some seconds.
    pub fn admin(&self, pod: &str, path: &str) -> Result<(u16, String)> {
        let address = SocketAddr::from((self.pod(pod)?.pod.ipv4, ADMIN_PORT));
        self.net.link.inside(|| get(address, path))
    }

    fn discovery_file(&self) -> PathBuf {
        self.directory.path().join("discovery.yaml")
    }

    fn describe(&self, service: &Service) -> Result<Value> {
        let endpoint = |endpoint: &Endpoint| {
            let pod = self.pod(&endpoint.pod)?;
            let mut value = json!({ "addresses": pod.pod.addresses(), "workload": endpoint.pod });
            if let Some(identity) = endpoint.identity.as_ref().or(pod.identity.as_ref()) {
                value["identity"] = json!(identity);
            }
            Ok(value)
        };
        let port = |port: &ServicePort| {
            let mut value = json!({ "port": port.port, "targetPort": port.target });
            if let Some(protocol) = &port.app_protocol {
                value["appProtocol"] = json!(protocol);
            }
            value
        };
        Ok(json!({
            "name": service.name,
            "namespace": "demo",
            "addresses": [IpAddr::from(service.ipv4()), IpAddr::from(service.ipv6())],
            "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
            "endpoints": service.endpoints.iter().map(endpoint).collect::<Result<Vec<_>>>()?,
        }))
    }

    /// The directory, token, settings and redirect of a proxy.
    fn prepare_pod(&self, settings: &Settings, workload: &Workload) -> Result<()> {
        let name = &workload.pod;
        let own = self.directory.path().join(name);
        fs::create_dir(&own)?;
        chown(&own, Some(PROXY_UID), Some(PROXY_UID)).context("cannot give a directory to the proxy's user")?;
        let token = self.write_token(workload)?;
        let mut baseline = settings.baseline.clone();
        baseline["dir"] = json!(own.join("baseline"));
        let config = json!({
            "trustDomain": TRUST_DOMAIN,
            "inbound": { "plaintext": match settings.plaintext {
                Plaintext::Permissive => "permissive",
                Plaintext::Strict => "strict",
            } },
            "admin": { "address": format!("0.0.0.0:{ADMIN_PORT}"), "socket": own.join("admin.sock") },
            "identity": {
                "caAddress": format!("{LINK_IPV4}:{CA_PORT}"),
                "caRoots": self.trust_bundle(),
                "caIdentity": CA_IDENTITY,
                "tokenFile": token,
                "stateDir": own,
            },
            "discovery": { "file": self.discovery_file() },
            "baseline": baseline,
            "accessLog": { "mode": "all", "format": "text" },
            "log": { "level": settings.log_level, "format": "text" },
            "workers": settings.workers,
            "drainTimeout": format!("{}ms", settings.drain_timeout.as_millis()),
        });
        let mut config = with_export(config, settings.collector);
        if let Some(spool) = &settings.spool {
            config["spool"] = spool.clone();
            config["spool"]["dir"] = json!(own.join("spool"));
        }
        for (key, value) in &settings.proxy {
            config[*key] = value.clone();
        }
        self.directory.write(&format!("{name}.yaml"), &serde_json::to_string_pretty(&config)?)?;
        let mut redirect = self.pod(name)?.pod.command(0, self.directory.path().join(PROXY));
        redirect.args(["redirect", "--proxy-uid", &PROXY_UID.to_string()]).args(&workload.redirect);
        run(&mut redirect).map(drop)
    }

    fn run_proxy(&mut self, name: &str) -> Result<()> {
        let directory = self.directory.path();
        let entry = self.pods.get_mut(name).context("the pod was made before")?;
        let (program, rest) = by(self.clock.as_ref(), directory.join(PROXY));
        let mut command = entry.pod.namespace.command_with_mounts(PROXY_UID, program);
        command.args(rest).arg("run").arg("--config").arg(directory.join(format!("{name}.yaml")));
        entry.proxy = Some(Process::spawn(&format!("{name}-proxy"), command, &self.directory)?);
        Ok(())
    }

    /// A token like the one that Kubernetes projects into a pod.
    fn write_token(&self, workload: &Workload) -> Result<PathBuf> {
        let directory = self.directory.path();
        let (program, rest) = by(self.clock.as_ref(), directory.join(AUTHORITY));
        let mut command = Command::new(program);
        command
            .args(rest)
            .arg("token")
            .arg("--key")
            .arg(directory.join("ca/token-key.pem"))
            .args(["--namespace", &workload.namespace, "--service-account", &workload.service_account])
            .args(["--pod", &workload.pod, "--pod-uid", "00000000-0000-4000-8000-000000000001"])
            .args(["--audience", TOKEN_AUDIENCE, "--ttl", "1h"]);
        self.directory.write(&format!("{}.token", workload.pod), &run(&mut command)?)
    }

    /// Waits until a pod's proxy is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time; the error holds what it said last.
    pub fn wait_ready(&mut self, name: &str) -> Result<()> {
        let address = {
            let entry = self.pods.get(name).context("the pod was made before")?;
            SocketAddr::from((entry.pod.ipv4, ADMIN_PORT))
        };
        let mut last = String::from("no answer");
        until(&format!("readiness of {name}'s proxy"), START_DEADLINE, || {
            if let Some(proxy) = self.pods.get_mut(name).and_then(|entry| entry.proxy.as_mut()) {
                proxy.ensure_running()?;
            }
            match self.net.link.inside(|| get(address, "/readyz")) {
                Ok((200, _)) => return Ok(Some(())),
                Ok((status, body)) => last = format!("{status}: {}", body.trim()),
                // It does not listen yet.
                Err(error) => last = format!("{error:#}"),
            }
            Ok(None)
        })
        .with_context(|| format!("{name}'s proxy last said: {last}"))
    }
}

fn with_export(mut config: Value, collector: Option<SocketAddr>) -> Value {
    if let Some(address) = collector {
        config["export"] = json!({ "endpoint": format!("http://{address}") });
    }
    config
}

/// A program with the words that let it run by this clock: the first one, and the rest.
fn by(clock: Option<&Clock>, program: PathBuf) -> (OsString, Vec<OsString>) {
    let mut words: Vec<OsString> = clock.map(Clock::words).unwrap_or_default().into_iter().map(Into::into).collect();
    words.push(program.into());
    (words.remove(0), words)
}

fn initialize_ca(net: &Net, directory: &RunDir, settings: &Settings) -> Result<()> {
    let state = directory.path().join("ca");
    let (program, rest) = by(settings.clock.as_ref(), directory.path().join(AUTHORITY));
    let mut init = net.link.command(0, program);
    init.args(rest).arg("init").arg("--dir").arg(&state).args(["--trust-domain", TRUST_DOMAIN]);
    run(&mut init)?;
    // The CA's own directory stays private (0700); the bundle is for everybody.
    let root = fs::read_to_string(state.join("root.pem")).context("picket-ca init left no root.pem")?;
    directory.write("root.pem", &root)?;
    let mut config = json!({
        "trustDomain": TRUST_DOMAIN,
        "dir": state,
        "listen": format!("{LINK_IPV4}:{CA_PORT}"),
        "tokens": { "jwks": state.join("jwks.json"), "issuer": TOKEN_ISSUER, "audience": TOKEN_AUDIENCE },
        "log": { "level": "info", "format": "text" },
    });
    for (key, value) in &settings.authority {
        config[*key] = value.clone();
    }
    directory.write("ca.yaml", &serde_json::to_string_pretty(&config)?).map(drop)
}

fn run_ca(net: &Net, directory: &RunDir, clock: Option<&Clock>) -> Result<Process> {
    let (program, rest) = by(clock, directory.path().join(AUTHORITY));
    let mut command = net.link.command(0, program);
    command.args(rest).arg("run").arg("--config").arg(directory.path().join("ca.yaml"));
    let mut ca = Process::spawn("ca", command, directory)?;
    let address = SocketAddr::from((LINK_IPV4, CA_PORT));
    until("the CA to listen", START_DEADLINE, || {
        ca.ensure_running()?;
        let connected = net.link.inside(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()))?;
        Ok(connected.then_some(()))
    })?;
    Ok(ca)
}

/// One GET over HTTP/1.1 with a fresh connection: status and body.
fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(16 << 20).read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    ensure!(head.starts_with("HTTP/1.1 "), "not HTTP/1.1: {head}");
    Ok((status.context("the answer has no status")?, body.to_owned()))
}
