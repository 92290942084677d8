//! Memory of connections on which nothing happens: each has had one request, and waits for the next.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{report::Memory, stage::Subject, usage};

/// After this time all that is released is released.
const REST: Duration = Duration::from_millis(500);

/// Resident bytes of both proxies.
pub(crate) fn resident(subject: &Subject<'_>) -> Result<[u64; 2]> {
    let [client, server] = &subject.proxies[..] else { anyhow::bail!("a pair has two proxies") };
    Ok([usage::resident_bytes(client.pid)?, usage::resident_bytes(server.pid)?])
}

/// Opens the connections, each with one request, and measures while they are open.
pub(crate) fn measure(subject: &Subject<'_>, fresh: [u64; 2], connections: u64) -> Result<Memory> {
    let before = resident(subject)?;
    let to = subject.http1;
    let open = subject.client.inside(|| {
        let one = |number| connect(to).with_context(|| format!("idle connection {number}"));
        (0..connections).map(one).collect::<Result<Vec<_>>>()
    })?;
    // Not for a state: what is released meanwhile is what is measured.
    std::thread::sleep(REST);
    let with = resident(subject)?;
    drop(open);
    Ok(Memory { variant: subject.variant, fresh, before, with, connections })
}

/// A connection that has had its first answer.
fn connect(to: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    let (mut answer, mut block) = (Vec::new(), [0; 2048]);
    while !answer.ends_with(b"picket ") {
        let n = stream.read(&mut block)?;
        ensure!(n > 0, "closed before the answer: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&block[..n]);
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "not served: {}", String::from_utf8_lossy(&answer));
    Ok(stream)
}
