//! Step 4: keeps our own key, certificate and trust bundle fresh.
//!
//! The key is made here, stays in memory and changes with every certificate. A certificate is renewed at a random point
//! between 60 % and 66 % of its life; connections that use the old one go on. A failure is tried again with growing
//! pauses and logged with what ends when.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use identity::{Store, TrustBundle};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::config::Identity;

/// Pauses between two attempts, growing.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// One attempt, all in all.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a token or a bundle file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{0} cannot be read")]
    File(String, #[source] io::Error),
    /// The trust bundle is refused.
    #[error("the trust bundle is refused")]
    Bundle(#[source] identity::BundleError),
    /// The token cannot stand in a header.
    #[error("the token holds bytes that a header cannot")]
    Token,
    /// The key or the request could not be made.
    #[error("the certificate request could not be made")]
    Request(#[source] rcgen::Error),
    /// The CA's address is none.
    #[error("identity.caAddress is not an address")]
    Address(#[source] tonic::transport::Error),
    /// The CA cannot be reached, or is not who it should be.
    #[error("the CA cannot be reached, or is not who it should be")]
    Connect(#[source] tonic::transport::Error),
    /// The CA said no.
    #[error("the CA answered {}: {}", .0.code(), .0.message())]
    Refused(Box<tonic::Status>),
    /// What the CA sent is not usable.
    #[error("what the CA sent is not usable")]
    Answer(#[source] identity::CredentialsError),
    /// What the CA sent would be refused by peers.
    #[error("peers would refuse what the CA sent")]
    Verify(#[source] identity::PeerError),
    /// It took too long.
    #[error("the CA did not answer within {ATTEMPT_TIMEOUT:?}")]
    Timeout,
}

/// Keeps a store fresh, and knows how that goes.
#[derive(Debug)]
pub struct Credentials {
    config: Identity,
    store: Arc<Store>,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl Credentials {
    /// For this store, by these settings.
    pub fn new(config: &Identity, store: Arc<Store>) -> Arc<Self> {
        let (succeeded, failed) = Default::default();
        Arc::new(Self { config: config.clone(), store, succeeded, failed })
    }

    /// Seconds until our certificate ends; 0 when it has, `None` without one.
    pub fn remaining_seconds(&self) -> Option<u64> {
        let current = self.store.current()?;
        Some(current.not_after.as_secs().saturating_sub(now().as_secs()))
    }

    /// Attempts that succeeded and that failed.
    pub fn attempts(&self) -> (u64, u64) {
        (self.succeeded.load(Relaxed), self.failed.load(Relaxed))
    }

    /// Gets a certificate and renews it, for ever.
    ///
    /// # Cancellation
    /// Safe: the store keeps what it has.
    pub async fn run(self: Arc<Self>) {
        let mut pause = PAUSE_MIN;
        loop {
            let attempt = tokio::time::timeout(ATTEMPT_TIMEOUT, self.renew()).await.unwrap_or(Err(Error::Timeout));
            match attempt {
                Ok(until_renewal) => {
                    self.succeeded.fetch_add(1, Relaxed);
                    pause = PAUSE_MIN;
                    tokio::time::sleep(until_renewal).await;
                }
                Err(error) => {
                    self.failed.fetch_add(1, Relaxed);
                    let remaining = self.remaining_seconds();
                    tracing::warn!(
                        error = %telemetry::chain(&error),
                        certificate_remaining_seconds = remaining,
                        clock_unix_seconds = now().as_secs(),
                        "no new certificate; trying again in {pause:?}"
                    );
                    tokio::time::sleep(pause.mul_f64(0.5 + random() / 2.0)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// One attempt; how long until the next certificate is due.
    async fn renew(&self) -> Result<Duration, Error> {
        let bundle = TrustBundle::from_pem(&read(&self.config.ca_roots)?).map_err(Error::Bundle)?;
        self.store.set_bundle(bundle);
        let token = read(&self.config.token_file)?;
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(Error::Request)?;
        let request = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(Error::Request)?;
        let chain = crate::ca_client::create_certificate(&self.config, &self.store, request, &token).await?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let credentials = identity::Credentials::from_pem(chain.as_bytes(), key).map_err(Error::Answer)?;
        let bundle = self.store.bundle();
        if let Some(bundle) = bundle {
            let now = UnixTime::since_unix_epoch(now());
            credentials.verify(&bundle, self.store.trust_domain(), now).map_err(Error::Verify)?;
        }
        let life = Duration::from_secs(credentials.not_after.as_secs().saturating_sub(now().as_secs()));
        tracing::info!(identity = %credentials.id, serial = %credentials.serial, remaining = ?life, "new certificate");
        self.store.set(credentials);
        Ok(life.mul_f64(0.60 + 0.06 * random()).max(Duration::from_secs(1)))
    }
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    let read = || {
        if std::fs::metadata(path)?.len() > FILE_BYTES_MAX {
            return Err(io::Error::other("the file is over 1 MiB"));
        }
        std::fs::read(path)
    };
    read().map_err(|error| Error::File(path.display().to_string(), error))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Between 0 and 1; spreads load, keeps no secret.
fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
