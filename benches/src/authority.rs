//! A picket-ca that is measured, as its clients meet it: TLS, HTTP/2, tokens of many pods.
//!
//! Promises: the program is the one that `testkit::binaries` finds, with its defaults, on loopback; clients verify it as
//! proxies do. Leaves to others: what is asked of it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use api::{follow::Stream, trust::Status};
use ca::token::{Claim, TokenKey};
use hyper_util::rt::TokioIo;
use identity::{Store, TrustBundle};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::json;
use testkit::{Process, RunDir, binaries, run};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request,
    transport::{Channel, Endpoint, Uri},
};

const DOMAIN: &str = "bench.picket.dev";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const AUDIENCE: &str = "picket-ca";
const START: Duration = Duration::from_secs(30);

/// A running CA.
pub(crate) struct Authority {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    key: TokenKey,
    tls: Arc<ClientConfig>,
    trust: Arc<ClientConfig>,
    pub(crate) directory: RunDir,
}

impl Authority {
    /// Starts it for so many streams.
    pub(crate) fn start(streams: usize) -> Result<Self> {
        let (directory, program) = (RunDir::new("bench-ca")?, binaries()?.join("picket-ca"));
        let dir = directory.path().join("ca");
        let mut init = std::process::Command::new(&program);
        run(init.arg("init").arg("--dir").arg(&dir).args(["--trust-domain", DOMAIN]))?;
        let config = json!({
            "trustDomain": DOMAIN,
            "dir": dir,
            "listen": "127.0.0.1:0",
            "follow": { "streams": streams },
            "tokens": { "jwks": dir.join("jwks.json"), "issuer": ISSUER, "audience": AUDIENCE },
        });
        let config = directory.write("ca.yaml", &config.to_string())?;
        let mut command = std::process::Command::new(&program);
        command.arg("run").arg("--config").arg(config);
        let mut process = Process::spawn("ca", command, &directory)?;
        let line = process.wait_for_line(testkit::Stream::Err, "listening", START)?;
        let address = line.split_once("address=").context("no address")?.1.trim().trim_matches('"').parse()?;
        let root = std::fs::read(dir.join("root.pem"))?;
        let key = TokenKey::from_pem(std::fs::read_to_string(dir.join("token-key.pem"))?)?;
        let store = Store::new(DOMAIN.parse()?);
        store.set_bundle(TrustBundle::from_pem(&root)?);
        let authority = format!("spiffe://{DOMAIN}/ns/picket-system/sa/picket-ca").parse()?;
        let tls = Arc::new(identity::client_config(&store, &authority, b"h2"));
        let trust = Arc::new(identity::trust_client_config(&store, &authority));
        Ok(Self { process, address, key, tls, trust, directory })
    }

    /// A token of the pod with this number.
    pub(crate) fn token(&self, pod: usize) -> Result<String> {
        // As long as names of pods are in a cluster.
        let name = format!("some-deployment-{pod:010}-abcde");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let claim = Claim {
            issuer: ISSUER,
            audience: AUDIENCE,
            namespace: "bench",
            service_account: "web",
            pod: Some(&name),
            pod_uid: Some(&format!("00000000-0000-4000-8000-{pod:012}")),
            issued: now,
            lifetime: Duration::from_secs(3600),
        };
        Ok(self.key.issue(&claim)?)
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Result<Channel> {
        let mut stream = Some(TokioIo::new(self.dial(&self.tls).await?));
        let connect = tower::service_fn(move |_: Uri| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| std::io::Error::other("the connection has ended")) }
        });
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))?;
        Ok(endpoint.connect_with_connector(connect).await?)
    }

    /// A new trust bundle stream.
    pub(crate) async fn follow(&self, token: &str, status: Status) -> Result<Stream<TlsStream<TcpStream>>> {
        Ok(Stream::open(self.dial(&self.trust).await?, token, status).await?)
    }

    async fn dial(&self, tls: &Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        Ok(TlsConnector::from(Arc::clone(tls)).connect(name, socket).await?)
    }
}

/// A call with its token.
pub(crate) fn with_token<T>(message: T, token: &str) -> Result<Request<T>> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    Ok(request)
}
