//! A real rsyslog as a program of its own: its configuration, files and port are the test's, and the system's service is
//! not touched. It writes every message as it came, one a line, and beside that in the format that its users choose for RFC 5424.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use testkit::{Process, RunDir, until};

/// Certificates for rsyslog and its clients, PEM, in the files of a run.
#[derive(Debug)]
pub struct Certificates {
    /// Whom both sides trust.
    pub roots: PathBuf,
    /// Chain and key of the server.
    pub server: (PathBuf, PathBuf),
    /// Chain and key of clients.
    pub client: (PathBuf, PathBuf),
}

impl Certificates {
    /// Makes them; the server's holds for `address`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn new(directory: &RunDir, address: SocketAddr) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "a root for syslog");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let roots = directory.write("syslog-roots.pem", &params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);
        let leaf = |name: &str, host: String| {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new([host])?;
            params.distinguished_name.push(DnType::CommonName, name);
            let chain = directory.write(&format!("{name}.pem"), &params.signed_by(&key, &issuer)?.pem())?;
            Ok::<_, anyhow::Error>((chain, directory.write(&format!("{name}-key.pem"), &key.serialize_pem())?))
        };
        let server = leaf("syslog-server", address.ip().to_string())?;
        Ok(Self { server, client: leaf("syslog-client", "client.example".to_owned())?, roots })
    }
}

/// A running rsyslog.
#[derive(Debug)]
pub struct Rsyslog {
    process: Process,
    file: PathBuf,
    formatted: PathBuf,
}

impl Rsyslog {
    /// Starts it with what `command` makes of a program's name (in the network where it is to listen); with certificates it
    /// speaks TLS and asks clients for theirs. Its file goes on where one before it ended.
    ///
    /// # Errors
    /// When it is not installed (Debian packages rsyslog and rsyslog-openssl) or does not listen.
    pub fn start(
        directory: &RunDir,
        mut command: Command,
        address: SocketAddr,
        tls: Option<&Certificates>,
    ) -> Result<Self> {
        let (file, formatted) = (directory.path().join("syslog.log"), directory.path().join("syslog-formatted.log"));
        let (mut global, mut module) = (String::new(), String::new());
        if let Some(certificates) = tls {
            let (chain, key) = (certificates.server.0.display(), certificates.server.1.display());
            global = format!(
                "DefaultNetstreamDriverCAFile=\"{}\" DefaultNetstreamDriverCertFile=\"{chain}\" DefaultNetstreamDriverKeyFile=\"{key}\"",
                certificates.roots.display()
            );
            module = "StreamDriver.Name=\"ossl\" StreamDriver.Mode=\"1\" StreamDriver.AuthMode=\"x509/certvalid\""
                .to_owned();
        }
        let config = format!(
            "global(workDirectory=\"{0}\" maxMessageSize=\"64k\" {global})\n\
             main_queue(queue.type=\"FixedArray\" queue.size=\"2000\")\n\
             module(load=\"imtcp\" {module})\n\
             template(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\n\
             input(type=\"imtcp\" address=\"{1}\" port=\"{2}\")\n\
             action(type=\"omfile\" file=\"{4}\" template=\"RSYSLOG_SyslogProtocol23Format\")\n\
             action(type=\"omfile\" file=\"{3}\" template=\"raw\")\n",
            directory.path().display(),
            address.ip(),
            address.port(),
            file.display(),
            formatted.display()
        );
        let config = directory.write("rsyslog.conf", &config)?;
        command.arg("-n").arg("-f").arg(config).arg("-i").arg(directory.path().join("rsyslog.pid"));
        let mut process = Process::spawn("rsyslog", command, directory)?;
        until("rsyslog to listen", Duration::from_secs(10), || {
            process.ensure_running()?;
            // Readable in the namespace that it runs in: a connection would be one more of its clients.
            let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", process.pid()))?;
            let port = format!(":{:04X} 00000000:0000 0A", address.port());
            Ok(sockets.contains(&port).then_some(()))
        })
        .context("rsyslog does not start (Debian packages rsyslog and rsyslog-openssl)")?;
        Ok(Self { process, file, formatted })
    }

    /// Ends it without a warning.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(Duration::from_secs(10)).map(drop)
    }

    /// Bytes that it has written.
    pub fn written(&self) -> u64 {
        std::fs::metadata(&self.file).map_or(0, |found| found.len())
    }

    /// What it writes in its own format `RSYSLOG_SyslogProtocol23Format`.
    pub fn formatted(&self) -> &Path {
        &self.formatted
    }

    /// Everything that it has written; nothing before the first message.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn text(&self) -> Result<String> {
        match std::fs::read(&self.file) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The values of one parameter in all messages, in their order.
pub fn values<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!(" {name}=\"");
    text.split(begin.as_str()).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}
