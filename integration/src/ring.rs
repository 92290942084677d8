//! Three pods in a ring: each calls the next one, over HTTP/1.1, HTTP/2 and opaque TCP, at a pace.
//!
//! Promises: a load ends with the first thing that does not go well, and says what; otherwise it goes on until it is told
//! to stop and gives what it did. Every answer and every echoed byte is compared. A load that fell behind its pace catches
//! up, so that the rate is what was asked for. Leaves to others: what happens to the mesh meanwhile.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::{
    Clock, Collector, Endpoint, LINK_IPV4, Mesh, Net, Process, Service, ServicePort, Settings, Workload, run,
};

use crate::{APP_UID, Wire, apps, wire};

/// The pods; each one calls the next, the last one the first.
pub const PODS: [&str; 3] = ["one", "two", "three"];
/// Port of all services.
pub const PORT: u16 = 80;
/// Port of the pods for HTTP/1.1.
pub const HTTP1: u16 = 8081;
/// Port of the pods for HTTP/2.
pub const HTTP2: u16 = 8082;
/// Port of the pods for opaque bytes, which come back.
pub const ECHO: u16 = 7000;
/// What `/hello.txt` holds.
pub const HELLO: &str = "hello from the ring\n";
/// Bytes of a stream that are on their way at once.
const CHUNK: usize = 16 << 10;

/// What a service speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Opaque bytes.
    Tcp,
}

impl Spoken {
    fn service(self, number: u8, pod: &str) -> Service {
        let (name, base, target, protocol) = match self {
            Self::Http1 => ("http1", 30, HTTP1, "http"),
            Self::Http2 => ("http2", 40, HTTP2, "http2"),
            Self::Tcp => ("echo", 50, ECHO, "tcp"),
        };
        let ports = vec![ServicePort { port: PORT, target, app_protocol: Some(protocol.to_owned()) }];
        let endpoints = vec![Endpoint::of(pod)];
        Service { name: format!("{name}-{pod}"), number: base + number, ports, endpoints }
    }
}

/// A running mesh of three pods with their applications.
#[derive(Debug)]
pub struct Ring {
    /// Receives the records of all proxies and of the CA.
    pub collector: Collector,
    _applications: Vec<Process>,
    _echoes: Vec<Echo>,
    /// The mesh.
    pub mesh: Mesh,
}

impl Ring {
    /// Starts everything; `authority` are more keys of the CA's configuration.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start(authority: Vec<(&'static str, Value)>, clock: Option<Clock>) -> Result<Self> {
        let net = Net::new()?;
        let collector = Collector::start(&net.link, SocketAddr::from((LINK_IPV4, 4317)))?;
        let mut authority = authority;
        authority.push(("export", json!({ "endpoint": format!("http://{}", collector.address()) })));
        let settings = Settings { collector: Some(collector.address()), authority, clock, ..Settings::default() };
        let spoken = [Spoken::Http1, Spoken::Http2, Spoken::Tcp];
        let services: Vec<_> = spoken
            .into_iter()
            .flat_map(|spoken| (0..).zip(PODS).map(move |(number, pod)| spoken.service(number, pod)))
            .collect();
        let mesh = Mesh::start(net, &settings, &PODS.map(Workload::meshed), &services)?;
        mesh.directory.write("hello.txt", HELLO)?;
        // A file that takes minutes at the pace of /slow/.
        std::fs::create_dir(mesh.directory.path().join("slow"))?;
        mesh.directory.write("slow/file", &"0123456789abcdef".repeat(1 << 20))?;
        // By default nginx retires a connection after 1000 requests.
        let more = "keepalive_requests 1000000; location /slow/ { limit_rate 10k; }";
        let ports = [(HTTP1, ""), (HTTP2, "http2")];
        let (mut applications, mut echoes) = (Vec::new(), Vec::new());
        for pod in PODS {
            applications.push(apps::nginx(&mesh, pod, &format!("nginx-{pod}"), &ports, more)?);
            echoes.push(Echo::start(wire::listen(mesh.pod(pod)?, ECHO)?));
        }
        Ok(Self { collector, _applications: applications, _echoes: echoes, mesh })
    }

    /// Runs a short program in a pod and gives its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, pod: &str, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.mesh.pod(pod)?.pod.command(APP_UID, program).args(arguments))
    }

    /// The value of each sample of a family at a proxy's `/metrics`, with its labels.
    ///
    /// # Errors
    /// When the proxy does not answer.
    pub fn metrics(&self, pod: &str, family: &str) -> Result<Vec<(String, u64)>> {
        let (status, text) = self.mesh.admin(pod, "/metrics")?;
        ensure!(status == 200, "{pod}: {status} {text}");
        let samples = text.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(family)?.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then(|| (labels.to_owned(), value.parse()))
        });
        samples.map(|(labels, value)| Ok((labels, value?))).collect()
    }

    /// Where the pod `from` finds the next one.
    pub fn next(&self, from: usize, spoken: Spoken) -> SocketAddr {
        let to = (from + 1) % PODS.len();
        let number = u8::try_from(to).unwrap_or_default();
        SocketAddr::from((spoken.service(number, PODS[to]).ipv4(), PORT))
    }

    /// A connection from the pod with this number to the next one.
    ///
    /// # Errors
    /// When nobody takes it.
    pub fn dial(&self, from: usize, spoken: Spoken) -> Result<Wire> {
        wire::dial(self.mesh.pod(PODS[from])?, self.next(from, spoken))
    }

    /// Requests on one connection that is kept: how many were answered.
    ///
    /// # Errors
    /// With the first that was not.
    pub fn http1(&self, from: usize, rate: u32, stop: &AtomicBool) -> Result<u64> {
        let (mut wire, mut pace, mut count) = (self.dial(from, Spoken::Http1)?, Pace::new(rate), 0);
        while !stop.load(SeqCst) {
            let (status, goes_on) = wire.get("/hello.txt").with_context(|| format!("request {count}"))?;
            ensure!(status == 200 && goes_on, "request {count}: {status}, the connection goes on: {goes_on}");
            count += 1;
            pace.wait();
        }
        Ok(count)
    }

    /// Requests in bursts of a second each, on two new connections each: how many were answered.
    ///
    /// # Errors
    /// With the first report of h2load that is not perfect.
    pub fn http2(&self, from: usize, rate: u32, stop: &AtomicBool) -> Result<u64> {
        let (to, mut count) = (self.next(from, Spoken::Http2), 0);
        let (burst, each) = (rate.to_string(), (rate / 2).to_string());
        let url = format!("http://{to}/hello.txt");
        let mut pace = Pace::new(1);
        while !stop.load(SeqCst) {
            let report = self.run(PODS[from], "h2load", &["-n", &burst, "-c", "2", "-m", "4", "--rps", &each, &url])?;
            let all = format!("requests: {rate} total, {rate} started, {rate} done, {rate} succeeded, 0 failed");
            ensure!(report.contains(&all) && report.contains(&format!("status codes: {rate} 2xx")), "{report}");
            count += u64::from(rate);
            pace.wait();
        }
        Ok(count)
    }

    /// A short exchange on a connection of its own each, so each with a handshake: how many went well.
    ///
    /// # Errors
    /// With the first that did not.
    pub fn handshakes(&self, from: usize, rate: u32, stop: &AtomicBool) -> Result<u64> {
        let (mut pace, mut count) = (Pace::new(rate), 0);
        while !stop.load(SeqCst) {
            let exchange = || {
                let mut wire = self.dial(from, Spoken::Tcp)?;
                let sent = pattern(count * 64, 64);
                wire.send(&sent)?;
                ensure!(wire.exactly(64)? == sent, "other bytes came back");
                wire.end()?;
                ensure!(wire.rest()?.is_empty(), "more came back than was sent");
                Ok(())
            };
            exchange().with_context(|| format!("connection {count}"))?;
            count += 1;
            pace.wait();
        }
        Ok(count)
    }

    /// One stream whose every byte comes back: how many there were.
    ///
    /// # Errors
    /// When it breaks, or another byte comes back than was sent.
    pub fn stream(&self, from: usize, rate: u32, stop: &AtomicBool) -> Result<u64> {
        let (mut wire, mut pace, mut position) = (self.dial(from, Spoken::Tcp)?, Pace::new(rate), 0);
        while !stop.load(SeqCst) {
            let sent = pattern(position, CHUNK);
            wire.send(&sent)?;
            let back = wire.exactly(CHUNK).with_context(|| format!("after {position} bytes"))?;
            ensure!(back == sent, "other bytes came back after {position}");
            position += CHUNK as u64;
            pace.wait();
        }
        wire.end()?;
        ensure!(wire.rest()?.is_empty(), "more came back than was sent");
        Ok(position)
    }
}

/// Bytes that are different at each position, within a stream and among neighbours.
fn pattern(position: u64, count: usize) -> Vec<u8> {
    // The finalizer of SplitMix64.
    let mix = |mut word: u64| {
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    let words = (position / 8..).take(count.div_ceil(8));
    let mut bytes: Vec<u8> = words.flat_map(|word| mix(word.wrapping_add(1)).to_le_bytes()).collect();
    bytes.truncate(count);
    bytes
}

/// So many turns in a second, counted from the beginning.
struct Pace {
    next: Instant,
    step: Duration,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self { next: Instant::now(), step: Duration::from_secs(1) / rate.max(1) }
    }

    fn wait(&mut self) {
        self.next += self.step;
        std::thread::sleep(self.next.saturating_duration_since(Instant::now()));
    }
}

/// Gives back what it gets, on each connection, until dropped.
#[derive(Debug)]
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(listener: TcpListener) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(SeqCst) {
                match listener.accept() {
                    // It ends with its connection, at the latest when the mesh is gone.
                    Ok((stream, _)) => drop(std::thread::spawn(move || drop(echo(stream)))),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            // It does nothing that could fail.
            let _ = thread.join();
        }
    }
}

fn echo(stream: std::net::TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    std::io::copy(&mut &stream, &mut &stream)?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// The address of a pod's application.
///
/// # Errors
/// When there is no such pod.
pub fn address(mesh: &Mesh, pod: &str, port: u16) -> Result<(Ipv4Addr, u16)> {
    Ok((mesh.pod(pod)?.pod.ipv4, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_depends_on_the_position_alone() {
        let whole = pattern(0, 4 * CHUNK);
        assert_eq!(whole[CHUNK..2 * CHUNK], pattern(CHUNK as u64, CHUNK));
        assert_ne!(whole[..64], whole[64..128]);
        assert_eq!(pattern(8, 3).len(), 3);
    }
}
