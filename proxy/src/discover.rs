//! Step 5: who is where. Answers from a snapshot that is replaced as a whole; the last good one is kept.
//!
//! The first source is a YAML file, watched for changes of its content however they are made (rename, symbolic link as
//! ConfigMaps have them, writing in place). No lookup waits; only that of a pod's own address on a port that no service
//! names allocates.

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
/// Addresses with a port, and endpoints behind them, that a snapshot may hold: services multiply ports by endpoints, so
/// a small file could otherwise ask for all memory.
const ENTRIES_MAX: usize = 1_000_000;

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
    entries: usize,
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
    /// The content behind the first snapshot: a change before [`FileDiscovery::watch`] starts must not be missed.
    first: String,
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
        Ok(Arc::new(Self { path, first: text, snapshot, read_at: ArcSwap::from_pointee(Instant::now()) }))
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
        // What was seen last, and whether it is the content in force.
        let (mut seen, mut good) = (Some(self.first.clone()), true);
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            let found = match read(&self.path) {
                Ok(text) if seen.as_ref() == Some(&text) => Ok(()),
                Ok(text) => {
                    let taken = self.take(&text);
                    (seen, good) = (Some(text), taken.is_ok());
                    taken
                }
                Err(_) if seen.is_none() => Ok(()),
                Err(error) => {
                    (seen, good) = (None, false);
                    Err(error)
                }
            };
            if let Err(error) = found {
                tracing::warn!(error = %telemetry::chain(&error), "keeping what discovery said last");
            }
            if good {
                self.read_at.store(Arc::new(Instant::now()));
            }
        }
    }

    /// Puts this content in force, if it has no mistake.
    fn take(&self, text: &str) -> Result<(), Error> {
        self.snapshot.store(Arc::new(parse(&self.path, text)?));
        tracing::info!(file = %self.path.display(), "discovery changed");
        Ok(())
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
    snapshot.entries = snapshot.entries.saturating_add(entries(&addresses, &ports, &endpoints));
    if snapshot.entries > ENTRIES_MAX {
        return Err(section.refuse("endpoints", "at most 1000000 pairs of an address with a port and an endpoint"));
    }
    note_workloads(section, &endpoints, snapshot)?;
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
            let before = snapshot.destinations.insert(SocketAddr::new(*address, port.port), destination);
            if before.and_then(|before| before.service).is_some_and(|before| before != service) {
                return Err(section.refuse("addresses", "addresses with a port that no other service has"));
            }
        }
        for (address, workload) in endpoints.iter().flat_map(|(all, workload)| all.iter().map(move |a| (a, workload))) {
            let endpoints: Arc<[Arc<Endpoint>]> = Arc::new([Arc::new(endpoint(*address, port.target, workload))]);
            let destination = Destination { service: Some(service.clone()), protocol: port.protocol, endpoints };
            snapshot.destinations.entry(SocketAddr::new(*address, port.target)).or_insert(destination);
        }
    }
    Ok(())
}

/// What a service will add to the snapshot, computed before anything is made.
fn entries(addresses: &[IpAddr], ports: &[Port], endpoints: &[(Vec<IpAddr>, Workload)]) -> usize {
    let pods: usize = endpoints.iter().map(|(addresses, _)| addresses.len()).sum();
    addresses.len().saturating_add(1).saturating_mul(pods.saturating_add(1)).saturating_mul(ports.len().max(1))
}

/// Notes who has which address. One address may stand in many services, but only ever with one identity: which of two
/// is right cannot be guessed.
fn note_workloads(
    section: &Section<'_>,
    endpoints: &[(Vec<IpAddr>, Workload)],
    snapshot: &mut Snapshot,
) -> Result<(), Noted> {
    for (addresses, workload) in endpoints {
        for address in addresses {
            let before = snapshot.workloads.insert(*address, workload.clone());
            if before.is_some_and(|before| before.identity != workload.identity) {
                return Err(section.refuse("endpoints", "each address with the same identity wherever it stands"));
            }
        }
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

    #[test]
    fn an_address_has_one_identity_and_one_service() {
        let second = FILE.replace("services:\n", "");
        let other = second.replace("name: web", "name: api").replace("[10.96.0.7, \"fd00:96::7\"]", "[10.96.0.8]");
        for (other, at) in [
            (other.replace("sa/web", "sa/api"), "services[1].endpoints"),
            (other.replace("10.96.0.8", "10.96.0.7"), "services[1].addresses"),
        ] {
            let error = parse(Path::new("test.yaml"), &format!("{FILE}{other}")).unwrap_err();
            let text = telemetry::chain(&error).to_string();
            assert!(text.contains(at), "{at} is not in {text}");
        }
        parse(Path::new("test.yaml"), &format!("{FILE}{other}")).unwrap();
    }

    #[test]
    fn a_small_file_cannot_ask_for_all_memory() {
        let ports = vec!["{port: 1}"; 2000].join(",");
        let pods: Vec<_> = (0..2000).map(|n| format!("{{addresses: [10.0.{}.{}]}}", n / 250, n % 250)).collect();
        let text = format!(
            "services: [{{name: a, namespace: b, addresses: [10.1.0.1], ports: [{ports}], endpoints: [{}]}}]",
            pods.join(",")
        );
        let error = parse(Path::new("test.yaml"), &text).unwrap_err();
        assert!(telemetry::chain(&error).to_string().contains("at most 1000000"));
    }

    /// Waits until the snapshot knows port 80 or does not.
    async fn until_known(discovery: &FileDiscovery, known: bool) {
        let address = "10.96.0.7:80".parse().unwrap();
        let changed = async {
            while discovery.snapshot().lookup(address).is_some() != known {
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        };
        tokio::time::timeout(WATCH_INTERVAL * 20, changed).await.expect("the change is seen");
    }

    #[tokio::test]
    async fn changes_are_followed_and_mistakes_change_nothing() {
        let folder = std::env::temp_dir().join(format!("picket-discover-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, next) = (folder.join("discovery.yaml"), folder.join("next.yaml"));
        let without = FILE.replace("port: 80,", "port: 81,");
        std::fs::write(&path, FILE).unwrap();
        let discovery = FileDiscovery::start(path.clone()).unwrap();
        // Changed before anybody watches.
        std::fs::write(&path, &without).unwrap();
        let watch = tokio::spawn(Arc::clone(&discovery).watch());
        until_known(&discovery, false).await;
        // Replaced by renaming.
        std::fs::write(&next, FILE).unwrap();
        std::fs::rename(&next, &path).unwrap();
        until_known(&discovery, true).await;
        // A mistake: the last good one stays in force, and grows old.
        std::fs::write(&path, "services: 7").unwrap();
        let old = WATCH_INTERVAL * 3;
        let aged = async {
            while discovery.age() < old {
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        };
        tokio::time::timeout(WATCH_INTERVAL * 20, aged).await.expect("a bad file is not taken as fresh");
        until_known(&discovery, true).await;
        // A symbolic link that is turned elsewhere.
        std::fs::write(folder.join("other.yaml"), &without).unwrap();
        std::os::unix::fs::symlink(folder.join("other.yaml"), &next).unwrap();
        std::fs::rename(&next, &path).unwrap();
        until_known(&discovery, false).await;
        watch.abort();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
