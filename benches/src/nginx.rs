//! nginx: the application behind everything that is measured, and one of the peers.
//!
//! A pair speaks HTTP/1.1 only: nginx has no HTTP/2 towards servers.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use testkit::{Pod, Process, RunDir, until};

use crate::certificates::{Certificates, SERVER_NAME};

/// Port of the application for HTTP/1.1.
pub(crate) const APP_HTTP1: u16 = 8080;
/// Port of the application for HTTP/2 with prior knowledge.
pub(crate) const APP_HTTP2: u16 = 8081;
/// Where a client's nginx takes requests.
pub(crate) const PORT: u16 = 10180;
const PORT_TLS: u16 = 10143;
/// Path of the large file.
pub(crate) const LARGE: &str = "/large";

const DEADLINE: Duration = Duration::from_secs(10);
/// No request of a bench ends a connection.
const UNLIMITED: u32 = 2_000_000_000;

/// A running nginx: the master, its worker goes with it.
#[derive(Debug)]
pub(crate) struct Nginx {
    process: Process,
}

impl Nginx {
    fn start(pod: &Pod, name: &str, http: &str, port: u16, directory: &RunDir) -> Result<Self> {
        let scratch = directory.path().join(format!("{name}.scratch"));
        std::fs::create_dir(&scratch)?;
        let scratch = scratch.display();
        let config = format!(
            "user root; worker_processes 1; worker_rlimit_nofile 20000; daemon off; pid '{scratch}/pid'; error_log stderr warn;\n\
             events {{ worker_connections 8192; }}\n\
             http {{\n  keepalive_requests {UNLIMITED}; keepalive_timeout 300s;\n  client_body_temp_path '{scratch}/body'; proxy_temp_path '{scratch}/proxy';\n  \
             fastcgi_temp_path '{scratch}/fastcgi'; uwsgi_temp_path '{scratch}/uwsgi'; scgi_temp_path '{scratch}/scgi';\n{http}}}\n"
        );
        let config = directory.write(&format!("{name}.conf"), &config)?;
        // If we are killed, the master gets the signal that makes it end its worker, too.
        let mut command = pod.command(0, "setpriv");
        command.args(["--pdeathsig", "TERM", "nginx", "-e", "stderr", "-c"]).arg(config);
        let mut process = Process::spawn(name, command, directory)?;
        let address = (pod.ipv4, port);
        until(&format!("{name} to listen"), DEADLINE, || {
            process.ensure_running()?;
            Ok(pod.namespace.inside(|| Ok(std::net::TcpStream::connect(address).ok()))?.map(drop))
        })?;
        Ok(Self { process })
    }

    /// The master's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The application: a small answer at `/`, a large file at [`LARGE`], both versions of HTTP.
    pub(crate) fn application(pod: &Pod, large_bytes: u64, directory: &RunDir) -> Result<Self> {
        let large = directory.path().join("files/large");
        std::fs::create_dir_all(large.parent().context("a file has a directory")?)?;
        // Not a hole: pages of a hole are shared and would stay in the processor's cache.
        let mut file = std::fs::File::create(&large)?;
        let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for _ in 0..large_bytes >> 20 {
            std::io::Write::write_all(&mut file, &block)?;
        }
        let root = directory.path().join("files");
        let http = format!(
            "access_log off; sendfile on; tcp_nopush on; http2_max_concurrent_streams 1024;\n\
             server {{ listen {APP_HTTP1}; listen {APP_HTTP2} http2;\n  location = / {{ default_type text/plain; return 200 '{}'; }}\n  \
             location {LARGE} {{ root '{}'; }}\n}}\n",
            "picket ".repeat(16),
            root.display(),
        );
        Self::start(pod, "application", &http, APP_HTTP1, directory)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // A master that is killed leaves its worker behind; one that is asked ends it first.
        if self.process.signal(Signal::TERM).is_ok() {
            let _ended = self.process.wait(DEADLINE);
        }
    }
}

/// How a pair writes its access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    /// Each line at once: nginx's default.
    Each,
    /// 64 KiB at a time, at least each second.
    Buffered,
}

/// The client's side and the server's side, with mutual TLS 1.3 between them.
#[derive(Debug)]
pub(crate) struct NginxPair {
    pub(crate) client: Nginx,
    pub(crate) server: Nginx,
}

impl NginxPair {
    /// Starts both; `shift` keeps two pairs apart.
    pub(crate) fn start(
        (client, server): (&Pod, &Pod),
        (name, shift, log): (&str, u16, Log),
        certificates: &Certificates,
        directory: &RunDir,
    ) -> Result<Self> {
        let (plain, tls) = (PORT + shift, PORT_TLS + shift);
        let buffer = match log {
            Log::Each => "",
            Log::Buffered => " buffer=64k flush=1s",
        };
        let log = |side: &str| {
            format!(
                "log_format mesh '$time_iso8601 request {side} $request_method $host$uri $status ${{request_time}}s \
                 ${{request_length}}B/${{body_bytes_sent}}B $remote_addr:$remote_port -> $upstream_addr $ssl_protocol $ssl_cipher \
                 $ssl_client_s_dn $server_protocol $connection $connection_requests $request_id';\n\
                 access_log '{}/{name}-{side}.log' mesh{buffer};\n",
                directory.path().display()
            )
        };
        let forward = "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $http_host; proxy_max_temp_file_size 0;";
        let side = |leaf: &crate::certificates::Leaf, prefix: &str| {
            format!(
                "{prefix}certificate '{}'; {prefix}certificate_key '{}'; {prefix}protocols TLSv1.3; {prefix}conf_command Ciphersuites TLS_AES_128_GCM_SHA256;",
                leaf.certificate.display(),
                leaf.key.display()
            )
        };
        let upstream = |name: &str, address: String| {
            format!(
                "upstream {name} {{ server {address}; keepalive 64; keepalive_requests {UNLIMITED}; keepalive_timeout 300s; }}\n"
            )
        };
        let server_http = format!(
            "{}{}server {{ listen {tls} ssl; {} ssl_verify_client on; ssl_client_certificate '{}'; ssl_verify_depth 2;\n  \
             location / {{ proxy_pass http://app; {forward} }}\n}}\n",
            log("server"),
            upstream("app", format!("{}:{APP_HTTP1}", server.ipv4)),
            side(&certificates.server, "ssl_"),
            certificates.server.root.display(),
        );
        let client_http = format!(
            "{}{}server {{ listen {plain};\n  location / {{ proxy_pass https://peer; {forward} {} proxy_ssl_verify on; proxy_ssl_verify_depth 2; \
             proxy_ssl_trusted_certificate '{}'; proxy_ssl_name {SERVER_NAME}; proxy_ssl_server_name on; }}\n}}\n",
            log("client"),
            upstream("peer", format!("{}:{tls}", server.ipv4)),
            side(&certificates.client, "proxy_ssl_"),
            certificates.client.root.display(),
        );
        Ok(Self {
            server: Nginx::start(server, &format!("{name}-server"), &server_http, tls, directory)?,
            client: Nginx::start(client, &format!("{name}-client"), &client_http, plain, directory)?,
        })
    }
}
