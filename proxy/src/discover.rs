//! Step 5: who is where. Answers from a snapshot that is replaced as a whole; the last good one is kept.
//!
//! The first source is a YAML file, watched for changes of its content however they are made (rename, symbolic link as
//! ConfigMaps have them, writing in place). No lookup allocates or waits.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use identity::SpiffeId;
use settings::{Document, Noted, Section};

/// How often the file is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// Addresses that a snapshot may hold.
const ADDRESSES_MAX: usize = 100_000;

/// What discovery says of a port's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppProtocol {
    /// HTTP; the first bytes tell the version.
    Http,
    /// HTTP/2 without TLS, gRPC included.
    Http2,
    /// TLS of the application itself.
    Tls,
    /// Opaque.
    Tcp,
}

/// One place where a service is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// The workload there.
    pub workload: Option<Arc<str>>,
    /// Whom it must prove to be; `None` outside the mesh.
    pub identity: Option<SpiffeId>,
}

/// What is behind an address that a client dialled.
#[derive(Debug, Clone)]
pub struct Destination {
    /// `name.namespace`.
    pub service: Option<Arc<str>>,
    /// What is spoken there, where discovery knows.
    pub protocol: Option<AppProtocol>,
    /// Who answers, in the destination's address family.
    pub endpoints: Arc<[Arc<Endpoint>]>,
}

/// Who has an address.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Its name.
    pub name: Arc<str>,
    /// Its identity, as discovery says.
    pub identity: Option<SpiffeId>,
}

/// All that discovery knew at one time.
#[derive(Debug, Default)]
pub struct Snapshot {
    destinations: HashMap<SocketAddr, Destination>,
    workloads: HashMap<IpAddr, Workload>,
}

impl Snapshot {
    /// What is behind this address: a service, or one pod of the mesh by its own address.
    pub fn lookup(&self, address: SocketAddr) -> Option<Destination> {
        if let Some(destination) = self.destinations.get(&address) {
            return Some(destination.clone());
        }
        // A pod on a port that no service names: still in the mesh, still who it must be.
        let workload = self.workloads.get(&address.ip()).filter(|workload| workload.identity.is_some())?;
        let endpoint = Endpoint { address, workload: Some(workload.name.clone()), identity: workload.identity.clone() };
        Some(Destination { service: None, protocol: None, endpoints: Arc::new([Arc::new(endpoint)]) })
    }

    /// Who has this address.
    pub fn workload(&self, address: IpAddr) -> Option<&Workload> {
        self.workloads.get(&address)
    }
}

/// A source of snapshots.
pub trait Discovery {
    /// The newest one; cheap.
    fn snapshot(&self) -> Arc<Snapshot>;
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("the discovery file {} cannot be read", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// It is not YAML.
    #[error("the discovery file is refused")]
    Document(#[source] settings::Error),
    /// Its content is wrong.
    #[error("the discovery file is refused")]
    Mistakes(#[source] settings::Mistakes),
}

/// Discovery from a watched file.
#[derive(Debug)]
pub struct FileDiscovery {
    path: PathBuf,
    snapshot: ArcSwap<Snapshot>,
    read_at: ArcSwap<Instant>,
}

impl Discovery for FileDiscovery {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }
}

impl FileDiscovery {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// When it cannot be read or is refused: a proxy does not start on that.
    pub fn start(path: PathBuf) -> Result<Arc<Self>, Error> {
        let text = read(&path)?;
        let snapshot = ArcSwap::from_pointee(parse(&path, &text)?);
        Ok(Arc::new(Self { path, snapshot, read_at: ArcSwap::from_pointee(Instant::now()) }))
    }

    /// Time since the file was last seen without a mistake.
    pub fn age(&self) -> Duration {
        self.read_at.load().elapsed()
    }

    /// Follows the file for ever. What is wrong is logged once per content and changes nothing.
    ///
    /// # Cancellation
    /// Safe at any time.
    pub async fn watch(self: Arc<Self>) {
        let mut seen = read(&self.path).ok();
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            let now = match read(&self.path) {
                Ok(text) => Some(text),
                Err(error) => {
                    if seen.take().is_some() {
                        tracing::warn!(error = %telemetry::chain(&error), "keeping what discovery said last");
                    }
                    continue;
                }
            };
            if now == seen {
                if self.is_good(&now) {
                    self.read_at.store(Arc::new(Instant::now()));
                }
                continue;
            }
            match parse(&self.path, now.as_deref().unwrap_or_default()) {
                Ok(snapshot) => {
                    self.snapshot.store(Arc::new(snapshot));
                    self.read_at.store(Arc::new(Instant::now()));
                    tracing::info!(file = %self.path.display(), "discovery changed");
                }
                Err(error) => {
                    tracing::warn!(error = %telemetry::chain(&error), "keeping what discovery said last");
                    self.read_at.store(Arc::new(*self.read_at.load_full()));
                }
            }
            seen = now;
        }
    }

    /// True when the content that was seen last is the one that is in force.
    fn is_good(&self, text: &Option<String>) -> bool {
        text.as_deref().is_some_and(|text| parse(&self.path, text).is_ok())
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let read = || {
        let length = std::fs::metadata(path)?.len();
        if length > settings::FILE_LIMIT_BYTES {
            return Err(std::io::Error::other(format!("{length} bytes, more than {}", settings::FILE_LIMIT_BYTES)));
        }
        std::fs::read_to_string(path)
    };
    read().map_err(|error| Error::Read(path.to_owned(), error))
}

/// Reads a whole document into a snapshot.
fn parse(path: &Path, text: &str) -> Result<Snapshot, Error> {
    let name = path.display().to_string();
    let document = Document::parse(&name, text, "PICKET_DISCOVERY_FILE_", []).map_err(Error::Document)?;
    document
        .read(|root| {
            let mut snapshot = Snapshot::default();
            for service in root.sections("services") {
                // Every service is read, so that all mistakes are reported together.
                let _noted = read_service(&service, &mut snapshot);
            }
            Ok(snapshot)
        })
        .map_err(Error::Mistakes)
}

struct Port {
    port: u16,
    target: u16,
    protocol: Option<AppProtocol>,
}

fn read_service(section: &Section<'_>, snapshot: &mut Snapshot) -> Result<(), Noted> {
    let (name, namespace) = (section.required::<String>("name"), section.required::<String>("namespace"));
    let addresses = section.list::<IpAddr>("addresses");
    let ports: Vec<_> = section.sections("ports").iter().map(read_port).collect();
    let endpoints: Vec<_> = section.sections("endpoints").iter().map(read_endpoint).collect();
    let service: Arc<str> = format!("{}.{}", name?, namespace?).into();
    let ports = ports.into_iter().collect::<Result<Vec<_>, _>>()?;
    let endpoints = endpoints.into_iter().collect::<Result<Vec<_>, _>>()?;
    for (addresses, workload) in &endpoints {
        for address in addresses {
            snapshot.workloads.insert(*address, workload.clone());
        }
    }
    for port in &ports {
        let at = |family_of: &IpAddr| -> Arc<[Arc<Endpoint>]> {
            let family = |address: &&IpAddr| address.is_ipv4() == family_of.is_ipv4();
            let all = endpoints
                .iter()
                .flat_map(|(addresses, workload)| addresses.iter().filter(family).map(move |a| (a, workload)));
            all.map(|(address, workload)| Arc::new(endpoint(*address, port.target, workload))).collect()
        };
        for address in &addresses {
            let destination =
                Destination { service: Some(service.clone()), protocol: port.protocol, endpoints: at(address) };
            snapshot.destinations.insert(SocketAddr::new(*address, port.port), destination);
        }
        for (address, workload) in endpoints.iter().flat_map(|(all, workload)| all.iter().map(move |a| (a, workload))) {
            let endpoints: Arc<[Arc<Endpoint>]> = Arc::new([Arc::new(endpoint(*address, port.target, workload))]);
            let destination = Destination { service: Some(service.clone()), protocol: port.protocol, endpoints };
            snapshot.destinations.entry(SocketAddr::new(*address, port.target)).or_insert(destination);
        }
    }
    if snapshot.destinations.len() + snapshot.workloads.len() > ADDRESSES_MAX {
        return Err(section.refuse("endpoints", "at most 100000 addresses in the whole file"));
    }
    Ok(())
}

fn endpoint(address: IpAddr, port: u16, workload: &Workload) -> Endpoint {
    let address = SocketAddr::new(address, port);
    Endpoint { address, workload: Some(workload.name.clone()), identity: workload.identity.clone() }
}

fn read_port(section: &Section<'_>) -> Result<Port, Noted> {
    const PROTOCOLS: [(&str, Option<AppProtocol>); 8] = [
        ("http", Some(AppProtocol::Http)),
        ("http2", Some(AppProtocol::Http2)),
        ("h2c", Some(AppProtocol::Http2)),
        ("kubernetes.io/h2c", Some(AppProtocol::Http2)),
        ("grpc", Some(AppProtocol::Http2)),
        ("tls", Some(AppProtocol::Tls)),
        ("https", Some(AppProtocol::Tls)),
        ("tcp", Some(AppProtocol::Tcp)),
    ];
    let port = section.required::<u16>("port");
    let target = section.optional::<u16>("targetPort");
    let protocol = section.one_of("appProtocol", &PROTOCOLS, None);
    let port = port?;
    Ok(Port { port, target: target.unwrap_or(port), protocol })
}

fn read_endpoint(section: &Section<'_>) -> Result<(Vec<IpAddr>, Workload), Noted> {
    let addresses = section.list::<IpAddr>("addresses");
    let name = section.optional::<String>("workload");
    let identity =
        section.optional_with("identity", "a SPIFFE ID such as spiffe://example.org/ns/demo/sa/web", |scalar| {
            scalar.text()?.parse().ok()
        });
    let first = addresses.first().ok_or_else(|| section.refuse("addresses", "at least one IP address"))?;
    let name = name.unwrap_or_else(|| first.to_string()).into();
    Ok((addresses, Workload { name, identity }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
services:
  - name: web
    namespace: demo
    addresses: [10.96.0.7, "fd00:96::7"]
    ports: [{port: 80, targetPort: 8080, appProtocol: http}]
    endpoints:
      - {addresses: [10.244.0.3, "fd00:244::3"], workload: web-0, identity: "spiffe://t/ns/demo/sa/web"}
      - {addresses: [10.244.0.4]}
"#;

    fn snapshot() -> Snapshot {
        parse(Path::new("test.yaml"), FILE).unwrap()
    }

    #[test]
    fn a_service_leads_to_the_endpoints_of_its_family() {
        let found = snapshot().lookup("10.96.0.7:80".parse().unwrap()).unwrap();
        assert_eq!((found.service.as_deref(), found.protocol), (Some("web.demo"), Some(AppProtocol::Http)));
        assert_eq!(found.endpoints.len(), 2);
        let found = snapshot().lookup("[fd00:96::7]:80".parse().unwrap()).unwrap();
        assert_eq!(found.endpoints[0].address, "[fd00:244::3]:8080".parse().unwrap());
        assert!(snapshot().lookup("10.96.0.7:81".parse().unwrap()).is_none());
    }

    #[test]
    fn a_pod_that_is_dialled_itself_must_still_be_who_it_is() {
        for (address, service) in [("10.244.0.3:8080", Some("web.demo")), ("10.244.0.3:9", None)] {
            let found = snapshot().lookup(address.parse().unwrap()).unwrap();
            assert_eq!(found.service.as_deref(), service);
            assert_eq!(found.endpoints[0].identity.as_ref().unwrap().as_str(), "spiffe://t/ns/demo/sa/web");
        }
        assert!(snapshot().lookup("10.244.0.4:9".parse().unwrap()).is_none());
    }

    #[test]
    fn mistakes_are_named_with_their_path() {
        let bad = FILE.replace("port: 80,", "prot: 80,").replace("spiffe://t/ns/demo/sa/web", "spiffe://T");
        let error = parse(Path::new("test.yaml"), &bad).unwrap_err();
        let text = telemetry::chain(&error).to_string();
        for part in ["services[0].ports[0].port", "services[0].endpoints[0].identity", "prot"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let error = FileDiscovery::start("/nonexistent/discovery.yaml".into()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/discovery.yaml"));
    }
}
