//! TLS towards a collector: its certificate against our roots, and one of our own where it asks for one.
//!
//! Promises: TLS 1.2 or 1.3 and nothing older; no resumption, so that every connection is verified; what is in the files
//! counts, not when they were read: a change of their content is seen within [`super::endpoint::RELOAD_INTERVAL`].

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// What we show to a collector that asks for a certificate.
#[derive(Debug, Clone)]
pub enum ClientCertificate {
    /// A chain and its key, PEM.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The key of the leaf.
        key: PathBuf,
    },
    /// The workload's own certificate, as it is at the time of the handshake.
    Workload(Arc<identity::Store>),
}

/// Why files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{0:?} cannot be read")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// It holds nothing of what it should.
    #[error("{0:?} holds no usable {1}")]
    Content(PathBuf, &'static str),
    /// The key does not fit, or the settings contradict each other.
    #[error("the client certificate is refused")]
    Certificate(#[source] rustls::Error),
}

/// The settings, and what they led to.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    pub(super) roots: PathBuf,
    pub(super) client: Option<ClientCertificate>,
    pub(super) alpn: &'static [&'static [u8]],
}

impl Tls {
    /// Stands for the content of all files and the workload's certificate: it changes when one of them does.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut file = |path: &Path| std::fs::read(path).ok().hash(&mut hasher);
        file(&self.roots);
        match &self.client {
            Some(ClientCertificate::Files { certificate, key }) => {
                file(certificate);
                file(key);
            }
            Some(ClientCertificate::Workload(store)) => {
                store.current().map(|current| current.serial.clone()).hash(&mut hasher);
            }
            None => {}
        }
        hasher.finish()
    }

    /// Reads the files.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        let mut roots = RootCertStore::empty();
        let (_, ignored) = roots.add_parsable_certificates(certificates(&self.roots)?);
        if ignored > 0 {
            return Err(Error::Content(self.roots.clone(), "root certificate"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(Error::Certificate)?
            .with_root_certificates(roots);
        let mut config = match &self.client {
            None => builder.with_no_client_auth(),
            Some(ClientCertificate::Workload(store)) => {
                builder.with_client_cert_resolver(Arc::new(Workload(Arc::clone(store))))
            }
            Some(ClientCertificate::Files { certificate, key }) => {
                let pem = read(key)?;
                let secret = PrivateKeyDer::from_pem_slice(&pem);
                let secret = secret.map_err(|_| Error::Content(key.clone(), "private key"))?;
                builder.with_client_auth_cert(certificates(certificate)?, secret).map_err(Error::Certificate)?
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::Unreadable(path.to_owned(), error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    let found = found.ok().filter(|found| !found.is_empty());
    found.ok_or_else(|| Error::Content(path.to_owned(), "certificate"))
}

/// Shows the workload's certificate of the moment.
#[derive(Debug)]
struct Workload(Arc<identity::Store>);

impl ResolvesClientCert for Workload {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.current().map(|current| Arc::clone(&current.certified_key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
