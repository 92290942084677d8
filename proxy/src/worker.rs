//! Step 1, and one worker: a thread with its own listeners, runtime, pools and journal. Workers share no lock on the way
//! of a connection.
//!
//! A connection is one task; whatever happens to it, its account ends in one closing record.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use identity::DenyList;
use record::{ClosedBy, Code, Direction};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    account::Account,
    config::Config,
    connect::{Connector, Target, tune},
    discover::FileDiscovery,
    drain::Drain,
    error::ConnectionError,
    forward::{Hop, http2::Servers},
    inbound,
    journal::{BATCH_INTERVAL, Journal},
    original_dst, outbound,
};

/// How often a connection that goes on is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// How often kept connections are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How long accepting pauses when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const BACKLOG: i32 = 4096;

/// What one worker's connections share.
pub struct Worker {
    /// The settings.
    pub config: Arc<Config>,
    /// Who is where.
    pub discovery: Arc<FileDiscovery>,
    /// Who we are, and whom we trust.
    pub store: Arc<identity::Store>,
    /// TLS for clients of the mesh.
    pub acceptor: TlsAcceptor,
    connector: Rc<Connector>,
    /// HTTP/2 connections that all clients share.
    servers: Rc<Servers>,
    journal: Rc<Journal>,
    drain: Drain,
    connections: RefCell<HashMap<u64, Entry>>,
    accepted: Cell<u64>,
    connections_max: usize,
    spool: Option<Arc<spool::Status>>,
    denied: watch::Receiver<Arc<DenyList>>,
}

/// A connection that is open: its task, and its account once there is one.
#[derive(Debug)]
struct Entry {
    task: AbortHandle,
    account: Weak<Account>,
}

/// The two listeners of one worker; those of all workers share their ports.
#[derive(Debug)]
pub struct Listeners {
    outbound: std::net::TcpListener,
    inbound: std::net::TcpListener,
}

impl Listeners {
    /// Binds both ports, for IPv4 and IPv6, before any thread starts.
    ///
    /// # Errors
    /// With the port that could not be had.
    pub fn bind(config: &Config) -> Result<Self, (u16, io::Error)> {
        let bind = |port: u16| listen(port).map_err(|error| (port, error));
        Ok(Self { outbound: bind(config.outbound.port)?, inbound: bind(config.inbound.port)? })
    }
}

fn listen(port: u16) -> io::Result<std::net::TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV6, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    tune(&socket);
    socket.bind(&SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// True when some other process listens on the port already; `SO_REUSEPORT` alone would share it with us in silence.
///
/// # Errors
/// That the port is taken, or may not be bound.
pub fn check_port_is_free(port: u16) -> io::Result<()> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV6, Type::STREAM.cloexec(), None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0)).into())?;
    socket.listen(1)
}

/// What a worker needs from the rest of the proxy.
#[derive(Debug)]
pub struct Parts {
    /// The settings.
    pub config: Arc<Config>,
    /// Who is where.
    pub discovery: Arc<FileDiscovery>,
    /// Who we are, and whom we trust.
    pub store: Arc<identity::Store>,
    /// TLS settings for clients of the mesh.
    pub tls: Arc<rustls::ServerConfig>,
    /// Where records go.
    pub sinks: Vec<export::Sender>,
    /// The worker's counters.
    pub metrics: Arc<crate::metrics::WorkerMetrics>,
    /// Makes record uids unlike those of other workers.
    pub seed: u128,
    /// Tells when to stop.
    pub drain: Drain,
    /// How the spool fares, where there is one.
    pub spool: Option<Arc<spool::Status>>,
    /// Who is denied from now on.
    pub denied: watch::Receiver<Arc<DenyList>>,
}

/// Runs a worker on the current thread until it has drained.
///
/// # Errors
/// When the runtime or a listener cannot be set up.
pub fn run(parts: Parts, listeners: Listeners) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let capture = parts.config.records.capture();
    let journal = Journal::capturing(parts.sinks.clone(), Arc::clone(&parts.metrics), parts.seed, capture);
    let worker = Worker::new(parts, Rc::clone(&journal));
    let result = local.block_on(&runtime, serve(worker, listeners));
    // Tasks that were cut write their records when they are dropped.
    drop(local);
    drop(runtime);
    journal.flush();
    result
}

async fn serve(worker: Rc<Worker>, listeners: Listeners) -> io::Result<()> {
    let outbound = TcpListener::from_std(listeners.outbound)?;
    let inbound = TcpListener::from_std(listeners.inbound)?;
    let chores = tokio::task::spawn_local(chores(Rc::clone(&worker)));
    let denials = tokio::task::spawn_local(denials(Rc::clone(&worker)));
    let mut drain = worker.drain.clone();
    tokio::select! {
        () = accept(&worker, &outbound, Direction::Outbound) => {}
        () = accept(&worker, &inbound, Direction::Inbound) => {}
        () = drain.wait() => {}
    }
    worker.journal.drain();
    take_pending(&worker, outbound, Direction::Outbound)?;
    take_pending(&worker, inbound, Direction::Inbound)?;
    worker.connector.close_idle();
    worker.servers.close_idle();
    let deadline = Instant::now() + worker.config.drain_timeout;
    while !worker.connections.borrow().is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    chores.abort();
    denials.abort();
    Ok(())
}

/// Hands records on in time, and lets go of what nobody uses.
async fn chores(worker: Rc<Worker>) {
    let mut swept = Instant::now();
    loop {
        tokio::time::sleep(BATCH_INTERVAL).await;
        worker.journal.flush();
        if swept.elapsed() >= SWEEP_INTERVAL {
            swept = Instant::now();
            worker.connector.sweep(swept);
            worker.servers.sweep(swept);
        }
    }
}

async fn accept(worker: &Rc<Worker>, listener: &TcpListener, direction: Direction) {
    loop {
        match listener.accept().await {
            Ok((stream, source)) => spawn(worker, direction, stream, source),
            Err(error) => {
                tracing::warn!(%error, ?direction, "could not accept a connection; raise the limit of open files");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves what the kernel has accepted for us already, and stops listening.
fn take_pending(worker: &Rc<Worker>, listener: TcpListener, direction: Direction) -> io::Result<()> {
    let listener = listener.into_std()?;
    // The first error says that nothing is there, or that there is no descriptor for it.
    while let Ok((stream, source)) = listener.accept() {
        stream.set_nonblocking(true)?;
        spawn(worker, direction, TcpStream::from_std(stream)?, source);
    }
    Ok(())
}

fn spawn(worker: &Rc<Worker>, direction: Direction, stream: TcpStream, source: SocketAddr) {
    let number = worker.accepted.replace(worker.accepted.get() + 1);
    let open = Open(Rc::clone(worker), number);
    let task = tokio::task::spawn_local(async move { connection(&open.0, number, direction, stream, source).await });
    // In the list from now on, not from its first turn: whoever waits for the last one must see it.
    let entry = Entry { task: task.abort_handle(), account: Weak::new() };
    worker.connections.borrow_mut().insert(number, entry);
}

/// Keeps a connection in the worker's list while it lives.
struct Open(Rc<Worker>, u64);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.borrow_mut().remove(&self.1);
    }
}

/// Cuts what connects us with a peer from the moment on that it is denied, for ever.
async fn denials(worker: Rc<Worker>) {
    let mut denied = worker.denied.clone();
    // An error means that the proxy stops.
    while denied.changed().await.is_ok() {
        let list = Arc::clone(&denied.borrow_and_update());
        worker.connector.deny(&list);
        worker.servers.deny(&list);
        for Entry { task, account } in worker.connections.borrow().values() {
            let Some(account) = account.upgrade() else { continue };
            if let Some((id, denial)) = account.denial(&list) {
                account.cut(&ConnectionError::Denied(id, denial));
                task.abort();
            }
        }
    }
}

/// A connection's life: address, permit, the steps of its direction, and its closing record.
async fn connection(worker: &Worker, number: u64, direction: Direction, stream: TcpStream, source: SocketAddr) {
    let own_ports = [worker.config.outbound.port, worker.config.inbound.port];
    let resolved = original_dst::resolve(&stream, source, &own_ports);
    let destination = match &resolved {
        Ok(address) | Err(ConnectionError::Loop(address)) => *address,
        Err(_) => stream.local_addr().map_or(source, original_dst::unmapped),
    };
    let account = Account::open(Rc::clone(&worker.journal), direction, original_dst::unmapped(source), destination);
    if let Some(entry) = worker.connections.borrow_mut().get_mut(&number) {
        entry.account = Rc::downgrade(&account);
    }
    let result = match resolved {
        Err(error) => Err(error),
        Ok(_) if worker.connections.borrow().len() > worker.connections_max => Err(ConnectionError::ConnectionLimit),
        Ok(_) if worker.spool.as_ref().is_some_and(|spool| spool.is_full()) => Err(ConnectionError::SpoolFull),
        Ok(_) => reported(&account, steps(worker, direction, &account, stream)).await,
    };
    match result {
        Ok(closed_by) => account.finish(closed_by, Code::Ok, None),
        Err(error) => {
            let closed_by = error.closed_by(direction);
            account.finish(closed_by, error.code(), Some(&telemetry::chain(&error).to_string()));
        }
    }
}

async fn steps(
    worker: &Worker,
    direction: Direction,
    account: &Rc<Account>,
    stream: TcpStream,
) -> Result<ClosedBy, ConnectionError> {
    match direction {
        Direction::Inbound => Box::pin(inbound::serve(worker, account, stream)).await,
        Direction::Outbound => Box::pin(outbound::serve(worker, account, stream)).await,
    }
}

/// Runs `steps` and writes a record each minute while they go on.
async fn reported<T>(account: &Account, steps: impl Future<Output = T>) -> T {
    let mut steps = std::pin::pin!(steps);
    loop {
        match tokio::time::timeout(REPORT_INTERVAL, &mut steps).await {
            Ok(done) => return done,
            Err(_) => account.report(),
        }
    }
}

impl Worker {
    fn new(parts: Parts, journal: Rc<Journal>) -> Rc<Self> {
        let limits = &parts.config.limits;
        let connector = Connector::new(Arc::clone(&parts.store), limits.connect_timeout, limits.tls_handshake_timeout);
        Rc::new(Self {
            connections_max: limits.connections.div_ceil(parts.config.workers).max(1),
            acceptor: TlsAcceptor::from(parts.tls),
            discovery: parts.discovery,
            store: parts.store,
            connector: Rc::new(connector),
            servers: Rc::default(),
            journal,
            drain: parts.drain,
            connections: RefCell::default(),
            accepted: Cell::default(),
            spool: parts.spool,
            denied: parts.denied,
            config: parts.config,
        })
    }

    /// What forwarding needs for this connection.
    pub fn hop(&self, account: &Rc<Account>, target: Target, shared: bool) -> Hop {
        let limits = &self.config.limits;
        Hop {
            account: Rc::clone(account),
            connector: Rc::clone(&self.connector),
            target,
            shared,
            servers: if shared { Rc::clone(&self.servers) } else { Rc::default() },
            drain: self.drain.clone(),
            head_bytes_max: limits.request_head_bytes,
            head_timeout: limits.request_head_timeout,
            keep_alive_timeout: limits.keep_alive_timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use identity::{Denial, Leaf, TrustBundle};
    use socket2::SockRef;

    use super::*;
    use crate::test_ca::{Authority, DEADLINE, id, no_discovery};

    /// A worker of the example's settings, its records, and the way to deny.
    fn worker() -> (Rc<Worker>, export::Receiver, watch::Sender<Arc<DenyList>>) {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/proxy.example.yaml");
        let store = identity::Store::new("td".parse().unwrap());
        let (sender, records) = export::queue(1 << 20);
        let (deny, denied) = watch::channel(Arc::default());
        let parts = Parts {
            config: Arc::new(Config::load(Some(example.as_ref()), []).unwrap()),
            discovery: no_discovery(),
            tls: Arc::new(identity::server_config(&store, &[])),
            store,
            sinks: vec![sender],
            metrics: Arc::default(),
            seed: 1,
            drain: crate::drain::channel().1,
            spool: None,
            denied,
        };
        let journal = Journal::new(parts.sinks.clone(), Arc::clone(&parts.metrics), parts.seed);
        (Worker::new(parts, journal), records, deny)
    }

    /// What is kept of a client's certificate under `root`.
    fn leaf(client: &str, root: &Authority) -> Leaf {
        let chain = root.issuer("issuer").credentials(client).certified_key.cert.clone();
        let bundle = TrustBundle::from_der([root.der.clone()]).unwrap();
        Leaf::read(&chain[0], &chain[1..], &bundle).unwrap()
    }

    /// A connection of this client that would go on for ever.
    fn standing(worker: &Rc<Worker>, number: u64, client: Leaf) -> tokio::task::JoinHandle<()> {
        let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let account = Account::open(Rc::clone(&worker.journal), Direction::Inbound, address(1), address(2));
        account.note_client(Some(client));
        let noted = Rc::downgrade(&account);
        let served = Rc::clone(worker);
        let task = tokio::task::spawn_local(async move {
            let (_open, _account) = (Open(served, number), account);
            std::future::pending().await
        });
        worker.connections.borrow_mut().insert(number, Entry { task: task.abort_handle(), account: noted });
        task
    }

    #[test]
    fn who_is_denied_loses_the_connections_that_stand_and_nobody_else_does() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (worker, mut records, deny) = worker();
        let [root, dropped] = ["root", "dropped"].map(Authority::root);
        let [gone, stays] = ["spiffe://td/ns/demo/sa/gone", "spiffe://td/ns/demo/sa/stays"];
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let under = leaf(stays, &dropped);
            let root_key = Denial::Key(*under.above_sha256.last().unwrap());
            let cut = [standing(&worker, 1, leaf(gone, &root)), standing(&worker, 2, under)];
            let other = standing(&worker, 3, leaf(stays, &root));
            let watching = tokio::task::spawn_local(denials(Rc::clone(&worker)));
            tokio::task::yield_now().await;
            deny.send(Arc::new(DenyList::new([Denial::Identity(id(gone)), root_key]).unwrap())).unwrap();
            for task in cut {
                let ended = tokio::time::timeout(DEADLINE, task).await.expect("it is cut");
                assert!(ended.unwrap_err().is_cancelled());
            }
            assert_eq!(worker.connections.borrow().keys().collect::<Vec<_>>(), [&3]);
            assert!(!other.is_finished());
            watching.abort();
            other.abort();
        });
        worker.journal.flush();
        let mut lines = Vec::new();
        while let Some(batch) = records.try_recv() {
            record::line::records(&batch.fields).for_each(|record| record::line::json(record, &mut lines));
        }
        let lines = String::from_utf8(lines).unwrap();
        let said: Vec<_> = lines.lines().filter(|line| line.contains("peer_denied")).collect();
        for (peer, what) in [(gone, &*format!("identity {gone}")), (stays, "key, or one above it, with SHA-256 ")] {
            let words = format!("the peer {peer}, at the other end of this connection, was denied: its {what}");
            assert_eq!(said.iter().filter(|line| line.contains(&words)).count(), 1, "{lines}");
        }
        assert_eq!(said.len(), 2, "{lines}");
    }

    #[test]
    fn an_accepted_connection_has_the_options_of_its_listener() {
        let listener = listen(0).unwrap();
        listener.set_nonblocking(false).unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    }
}
