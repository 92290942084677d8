//! Load that goes on while proxies come and go: requests one after the other on kept connections, each for a path of its
//! own, and what was answered.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use crate::{DEADLINE, Stage};

/// What the server has to answer with: `204`, so that an answer ends with its head.
pub const LOCATION: &str = "location /steady/ { return 204; }";
/// Between a failed try to connect and the next one.
const PAUSE: Duration = Duration::from_millis(2);

/// One request that was answered with 204.
#[derive(Debug, Clone)]
pub struct Answered {
    /// Its path.
    pub path: String,
    /// The life of the proxy that served it: see [`Shared::life`].
    pub life: u64,
    /// When the answer had come.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
}

/// What the load and its owner share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Which process takes the connections; whoever ends one and starts the next counts it up between the two.
    pub life: AtomicU64,
    /// Requests answered so far.
    pub answered: AtomicU64,
    /// Requests sent so far.
    pub sent: AtomicU64,
    stop: AtomicBool,
}

/// Clients that send one request after the other.
#[derive(Debug)]
pub struct Load {
    /// Its counters.
    pub shared: Arc<Shared>,
    clients: Vec<JoinHandle<Result<Vec<Answered>>>>,
}

impl Stage {
    /// Starts so many clients in the pod `client`; each waits `pause` after an answer.
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn steady_load(&self, clients: usize, to: SocketAddr, pause: Duration) -> Result<Load> {
        self.steady_load_from("client", clients, to, pause)
    }

    /// The same in any pod.
    ///
    /// # Errors
    /// When the pod is gone.
    pub fn steady_load_from(&self, pod: &str, clients: usize, to: SocketAddr, pause: Duration) -> Result<Load> {
        let shared = Arc::<Shared>::default();
        let namespace = &self.mesh.pod(pod)?.pod.namespace;
        let clients = (0..clients).map(|client| {
            let shared = Arc::clone(&shared);
            namespace.spawn(move || run(client, to, pause, &shared))
        });
        Ok(Load { clients: clients.collect::<Result<_>>()?, shared })
    }
}

impl Load {
    /// Ends it; what was answered, for each client in its order.
    ///
    /// # Errors
    /// When a client got an answer that it must not get.
    pub fn stop(self) -> Result<Vec<Vec<Answered>>> {
        self.shared.stop.store(true, SeqCst);
        let ended = self.clients.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client panicked"))?);
        ended.collect()
    }
}

fn run(client: usize, to: SocketAddr, pause: Duration, shared: &Shared) -> Result<Vec<Answered>> {
    let (mut answered, mut number) = (Vec::new(), 0);
    while !shared.stop.load(SeqCst) {
        let life = shared.life.load(SeqCst);
        let Ok(mut stream) = TcpStream::connect_timeout(&to, DEADLINE) else {
            std::thread::sleep(PAUSE);
            continue;
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        // Else it is not known whose connection it is.
        while shared.life.load(SeqCst) == life && !shared.stop.load(SeqCst) {
            let path = format!("/steady/{client}-{number}");
            number += 1;
            shared.sent.fetch_add(1, SeqCst);
            let begun = Instant::now();
            let Some(status) = ask(&mut stream, &path).with_context(|| path.clone())? else { break };
            // A proxy that has no certificate yet refuses; that is on record, too, and not what is counted here.
            if status == 204 {
                let at = Instant::now();
                answered.push(Answered { path, life, at, took: at - begun });
                shared.answered.fetch_add(1, SeqCst);
            }
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    }
    Ok(answered)
}

/// One request and its answer's status; `None` when the connection ended instead.
fn ask(stream: &mut TcpStream, path: &str) -> Result<Option<u16>> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: steady\r\n\r\n");
    if stream.write_all(request.as_bytes()).is_err() {
        return Ok(None);
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(anyhow!("no answer within {DEADLINE:?}"));
            }
            Err(_) => return Ok(None),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let status: u16 = text.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    // The text of other answers is not read: the connection is of no more use.
    Ok(if status == 204 || text.contains("content-length: 0") { Some(status) } else { None })
}
