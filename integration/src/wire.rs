//! Peers that a test plays itself, byte by byte: blocking streams inside a pod, on which no wait is without a deadline.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
};

use anyhow::{Context, Result};
use testkit::{MeshPod, until};

use crate::{DEADLINE, Stage};

/// One end of a connection.
#[derive(Debug)]
pub struct Wire(BufReader<TcpStream>);

impl Stage {
    /// Listens on a port of a pod, for both families.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn listen(&self, pod: &str, port: u16) -> Result<TcpListener> {
        listen(self.mesh.pod(pod)?, port)
    }

    /// Connects from a pod.
    ///
    /// # Errors
    /// When nobody takes the connection.
    pub fn dial(&self, pod: &str, to: impl Into<SocketAddr>) -> Result<Wire> {
        dial(self.mesh.pod(pod)?, to)
    }
}

/// Listens on a port of a pod, for both families.
///
/// # Errors
/// When the port cannot be had.
pub fn listen(pod: &MeshPod, port: u16) -> Result<TcpListener> {
    let listener = pod.pod.namespace.inside(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects from a pod.
///
/// # Errors
/// When nobody takes the connection.
pub fn dial(pod: &MeshPod, to: impl Into<SocketAddr>) -> Result<Wire> {
    let to = to.into();
    Wire::new(pod.pod.namespace.inside(|| Ok(TcpStream::connect_timeout(&to, DEADLINE)?))?)
}

/// Waits for the next connection.
///
/// # Errors
/// When none comes in time.
pub fn accept(listener: &TcpListener) -> Result<Wire> {
    let stream = until("a connection", DEADLINE, || match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    })?;
    stream.set_nonblocking(false)?;
    Wire::new(stream)
}

impl Wire {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends all of it.
    ///
    /// # Errors
    /// When the other end has gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.0.get_mut().write_all(bytes.as_ref())?)
    }

    /// The next line with its end.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).context("no further line")?;
        Ok(line)
    }

    /// A head of HTTP/1 with its empty line.
    ///
    /// # Errors
    /// When it does not come in time, or the stream ends in it.
    pub fn head(&mut self) -> Result<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let line = self.line()?;
            anyhow::ensure!(!line.is_empty(), "the stream ended in a head: {head:?}");
            head += &line;
        }
        Ok(head)
    }

    /// GETs a path and takes the answer, whose length must be told: its status, and whether the connection goes on.
    ///
    /// # Errors
    /// When no whole answer comes.
    pub fn get(&mut self, path: &str) -> Result<(u16, bool)> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: wire\r\n\r\n"))?;
        let head = self.head()?.to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
        self.exactly(length.trim().parse()?)?;
        Ok((status, !head.contains("connection: close\r\n")))
    }

    /// Exactly so many bytes.
    ///
    /// # Errors
    /// When they do not come in time.
    pub fn exactly(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).with_context(|| format!("no further {count} bytes"))?;
        Ok(bytes)
    }

    /// All bytes until the other end has ended its side.
    ///
    /// # Errors
    /// When it does not end in time, or resets.
    pub fn rest(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).context("the stream did not end well")?;
        Ok(bytes)
    }

    /// Ends our side; the other may go on.
    ///
    /// # Errors
    /// When the other end has gone.
    pub fn end(&mut self) -> Result<()> {
        Ok(self.0.get_mut().shutdown(Shutdown::Write)?)
    }
}
