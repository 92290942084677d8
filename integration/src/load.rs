//! A small load generator with one request on each connection, and what a proxy's process holds while and after it is loaded.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context, Result, ensure};
use testkit::until;

use crate::{DEADLINE, Stage};

/// A request after which the server ends the connection, in two parts: the first shows what is spoken.
pub const GET_ONCE: [&str; 2] = ["GET /hello.txt HTTP/1.1\r\n", "Host: load\r\nConnection: close\r\n\r\n"];

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Resident memory in KiB.
    pub resident_kib: usize,
}

impl Stage {
    /// Opens, uses and closes so many connections, one after the other.
    ///
    /// # Errors
    /// With the first connection that did not go well.
    pub fn sequential(&self, count: usize, to: SocketAddr) -> Result<()> {
        self.mesh.pod("client")?.pod.namespace.inside(|| {
            for number in 0..count {
                let served = connect(to).and_then(|mut stream| {
                    stream.write_all(GET_ONCE[1].as_bytes())?;
                    answered(&mut stream)
                });
                served.with_context(|| format!("connection {number}"))?;
            }
            Ok(())
        })
    }

    /// Opens so many connections and keeps them until the client's proxy shows all of them as open; only then the
    /// requests on them are completed, and only then the answers are read.
    ///
    /// # Errors
    /// With the first connection that did not go well.
    pub fn concurrent(&self, count: usize, to: SocketAddr) -> Result<()> {
        let open = r#"picket_connections_open{direction="outbound"}"#;
        let connect_all = || (0..count).map(|_| connect(to)).collect::<Result<Vec<_>>>();
        let mut streams = self.mesh.pod("client")?.pod.namespace.inside(connect_all)?;
        until(
            "all connections at once",
            DEADLINE,
            || Ok((self.metric("client", open)? >= count as u64).then_some(())),
        )?;
        for stream in &mut streams {
            stream.write_all(GET_ONCE[1].as_bytes())?;
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            answered(stream).with_context(|| format!("connection {number}"))?;
        }
        Ok(())
    }

    /// What a pod's proxy holds now.
    ///
    /// # Errors
    /// When the pod has no proxy, or the proxy has gone.
    pub fn held(&self, pod: &str) -> Result<Held> {
        let pid = self.mesh.pod(pod)?.proxy.as_ref().context("the pod has no proxy")?.pid();
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"));
        Ok(Held { descriptors, resident_kib: resident.context("no VmRSS")?.trim().parse()? })
    }
}

/// Connects and begins a request.
fn connect(to: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(GET_ONCE[0].as_bytes())?;
    Ok(stream)
}

/// Takes the answer, to the end of the connection.
fn answered(stream: &mut TcpStream) -> Result<()> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let is_right = answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(b"hello from the server\n");
    ensure!(is_right, "the answer is {:?}", String::from_utf8_lossy(&answer));
    Ok(())
}
