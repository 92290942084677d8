//! Stock programs as applications: nginx, Redis, and Python programs on published libraries.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use testkit::{Mesh, Process, until};

use crate::{DEADLINE, Stage};

/// The Python that has the libraries of `xtask/src/tools.rs`: grpcio and websockets.
///
/// # Errors
/// When the environment does not name it.
pub fn python() -> Result<OsString> {
    std::env::var_os("PICKET_PYTHON").context("PICKET_PYTHON names Python with its libraries: run `./x test`")
}

/// A program of `integration/programs`.
pub fn peer(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}

impl Stage {
    /// A command in a pod, as root: what comes from a version manager, other users may not execute.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn command(&self, pod: &str, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        Ok(self.mesh.pod(pod)?.pod.command(0, program))
    }

    /// Starts a program of the pod `server` and waits until it listens on `port`.
    ///
    /// # Errors
    /// When it ends, or does not listen in time.
    pub fn serve(&self, name: &str, command: Command, port: u16) -> Result<Process> {
        serve(&self.mesh, "server", name, command, port)
    }

    /// nginx on the pod `server`, with the files of the run directory and its access log in `nginx.log`.
    ///
    /// `listen` is what follows the port, such as `http2`; `more` goes into the server's block.
    ///
    /// # Errors
    /// When it does not start.
    pub fn nginx(&self, port: u16, listen: &str, more: &str) -> Result<Process> {
        nginx(&self.mesh, "server", "nginx", &[(port, listen)], more)
    }
}

/// Starts a program of a pod and waits until it listens on `port`.
///
/// # Errors
/// When it ends, or does not listen in time.
pub(crate) fn serve(mesh: &Mesh, pod: &str, name: &str, command: Command, port: u16) -> Result<Process> {
    let mut process = Process::spawn(name, command, &mesh.directory)?;
    let namespace = mesh.pod(pod)?.pod.namespace.pid();
    until(&format!("{name} on port {port}"), DEADLINE, || {
        process.ensure_running()?;
        Ok(listens(namespace, port)?.then_some(()))
    })?;
    Ok(process)
}

/// nginx on a pod, with the files of the run directory. It listens on each of the ports, with what follows the port, such
/// as `http2`; its files carry its name, `more` goes into the server's block.
///
/// # Errors
/// When it does not start.
pub(crate) fn nginx(mesh: &Mesh, pod: &str, name: &str, ports: &[(u16, &str)], more: &str) -> Result<Process> {
    let root = mesh.directory.path().display().to_string();
    let listen: String =
        ports.iter().map(|(port, listen)| format!("    listen [::]:{port} ipv6only=off {listen};\n")).collect();
    let config = format!(
        "user root; daemon off; master_process off; pid {root}/{name}.pid; error_log stderr;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log {root}/{name}.log;\n  server {{\n{listen}    \
         root {root};\n    {more}\n  }}\n}}\n"
    );
    let file = mesh.directory.write(&format!("{name}.conf"), &config)?;
    let mut command = mesh.pod(pod)?.pod.command(0, "nginx");
    command.arg("-p").arg(&root).arg("-c").arg(file).args(["-e", "stderr"]);
    let (port, _) = ports.first().context("it listens nowhere")?;
    serve(mesh, pod, name, command, *port)
}

/// Whether somebody in the network namespace of process `pid` listens on `port` (proc(5): state 0A is LISTEN).
fn listens(pid: u32, port: u16) -> Result<bool> {
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        let mut sockets = text.lines().skip(1).map(|line| line.split_whitespace().skip(1));
        let is_ours = |local: &str| local.ends_with(&format!(":{port:04X}"));
        if sockets.any(|mut fields| fields.next().is_some_and(is_ours) && fields.nth(1) == Some("0A")) {
            return Ok(true);
        }
    }
    Ok(false)
}
