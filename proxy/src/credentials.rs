//! Step 4: keeps our own key and certificate fresh.
//!
//! The key is made here, stays in memory and changes with every certificate. A certificate is renewed at a random point
//! between 60 % and 66 % of its life, by the wall clock or by the time that has passed, whichever is first; connections
//! that use the old one go on. A failure is tried again with growing pauses; from the first one on an alert says what
//! ends when.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use export::Alerts;
use identity::PeerError;
use record::Severity;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::Notify;

use crate::{
    clock::{self, Pauses},
    config::Identity,
    trust::{self, Trust},
};

/// Pauses between two attempts, growing.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// One attempt, all in all.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are no roots by which the CA could be known.
    #[error("there are no roots by which the CA could be known")]
    Roots(#[source] trust::Error),
    /// The token cannot be read.
    #[error(transparent)]
    File(trust::Error),
    /// The token cannot stand in a header.
    #[error("the token holds bytes that a header cannot")]
    Token,
    /// The key or the request could not be made.
    #[error("the certificate request could not be made")]
    Request(#[source] rcgen::Error),
    /// The CA's address is none.
    #[error("identity.caAddress is not an address")]
    Address(#[source] tonic::transport::Error),
    /// The CA cannot be reached.
    #[error("the CA cannot be reached")]
    Connect(#[source] io::Error),
    /// Who answers is not the CA.
    #[error("who answers for the CA was refused")]
    Peer(#[source] PeerError),
    /// There was no TLS.
    #[error("the TLS handshake with the CA failed")]
    Handshake(#[source] io::Error),
    /// There was no HTTP/2.
    #[error("HTTP/2 with the CA failed")]
    Http2(#[source] tonic::transport::Error),
    /// The CA said no.
    #[error("the CA answered {}: {}", .0.code(), .0.message())]
    Refused(Box<tonic::Status>),
    /// What the CA sent is not usable.
    #[error("what the CA sent is not usable")]
    Answer(#[source] identity::CredentialsError),
    /// What the CA sent would be refused by peers.
    #[error("peers would refuse what the CA sent")]
    Verify(#[source] PeerError),
    /// It took too long.
    #[error("the CA did not answer within {ATTEMPT_TIMEOUT:?}")]
    Timeout,
}

/// The alert while there is no new certificate though one is due.
const RENEWAL_FAILING: &str = "certificate_renewal_failing";

/// Keeps our certificate fresh, and knows how that goes.
#[derive(Debug)]
pub struct Credentials {
    config: Identity,
    trust: Arc<Trust>,
    alerts: Arc<Alerts>,
    due: Notify,
    failure: ArcSwapOption<String>,
    succeeded: AtomicU64,
    failed: AtomicU64,
    renewed_at: AtomicU64,
}

impl Credentials {
    /// By these settings, for the store of `trust`.
    pub fn new(config: &Identity, trust: Arc<Trust>, alerts: Arc<Alerts>) -> Arc<Self> {
        let (due, failure, succeeded, failed, renewed_at) = Default::default();
        Arc::new(Self { config: config.clone(), trust, alerts, due, failure, succeeded, failed, renewed_at })
    }

    /// The trust that they are used with.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// The alerts that tell how that goes.
    pub fn alerts(&self) -> &Arc<Alerts> {
        &self.alerts
    }

    /// Asks for a new certificate at once, whatever the life of the present one.
    pub fn renew_now(&self) {
        self.due.notify_one();
    }

    /// When the last certificate came, in seconds since 1970 UTC; 0 before the first.
    pub fn renewed_at(&self) -> u64 {
        self.renewed_at.load(Relaxed)
    }

    /// Seconds until our certificate ends; 0 when it has, `None` without one.
    pub fn remaining_seconds(&self) -> Option<u64> {
        let current = self.trust.store().current()?;
        Some(current.not_after.as_secs().saturating_sub(clock::wall().as_secs()))
    }

    /// Attempts that succeeded and that failed.
    pub fn attempts(&self) -> (u64, u64) {
        (self.succeeded.load(Relaxed), self.failed.load(Relaxed))
    }

    /// Whether peers will take our certificate now.
    ///
    /// # Errors
    /// Which certificate is missing or ended when, what the clock says, and why there is no new one.
    pub fn check(&self) -> Result<(), String> {
        let Err(unusable) = self.trust.store().usable(clock::unix_time()) else { return Ok(()) };
        Err(match &*self.failure.load() {
            Some(reason) => format!("{unusable}; no new certificate: {reason}"),
            None => unusable.to_string(),
        })
    }

    /// What ends, or ended, when, and what the clock says.
    fn stake(&self) -> String {
        let now = clock::unix_time();
        match self.trust.store().usable(now) {
            Ok(current) => format!(
                "the certificate {} of {} ends {}, this machine's clock says {}",
                current.serial,
                current.id,
                identity::Utc(current.not_after),
                identity::Utc(now)
            ),
            Err(unusable) => unusable.to_string(),
        }
    }

    /// Gets a certificate and renews it, for ever.
    ///
    /// # Cancellation
    /// Safe: the store keeps what it has.
    pub async fn run(self: Arc<Self>) {
        let mut pauses = Pauses::new(PAUSES.0, PAUSES.1);
        loop {
            match tokio::time::timeout(ATTEMPT_TIMEOUT, self.renew()).await.unwrap_or(Err(Error::Timeout)) {
                Ok(until_renewal) => {
                    self.succeeded.fetch_add(1, Relaxed);
                    self.renewed_at.store(clock::wall().as_secs(), Relaxed);
                    self.failure.store(None);
                    self.alerts.resolve(RENEWAL_FAILING, &format!("a new certificate came: {}", self.stake()));
                    pauses.reset();
                    tokio::select! {
                        () = clock::pass(until_renewal) => {}
                        () = self.due.notified() => {}
                    }
                }
                Err(error) => {
                    self.failed.fetch_add(1, Relaxed);
                    let (reason, stake, pause) =
                        (telemetry::chain(&error).to_string(), self.stake(), pauses.next_pause());
                    self.alerts.fire(RENEWAL_FAILING, Severity::Warn, &format!("{reason}; {stake}"));
                    tracing::warn!(error = reason, "no new certificate: {stake}; trying again in {pause:?}");
                    self.failure.store(Some(Arc::new(reason)));
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// One attempt; how long until the next certificate is due.
    async fn renew(&self) -> Result<Duration, Error> {
        let store = self.trust.store();
        if store.bundle().is_none() {
            self.trust.look_at_file().map_err(Error::Roots)?;
        }
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(Error::Request)?;
        let request = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(Error::Request)?;
        let chain = crate::ca_client::create_certificate(&self.config, store, request).await?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let credentials = identity::Credentials::from_pem(chain.as_bytes(), key).map_err(Error::Answer)?;
        if let Some(bundle) = store.bundle() {
            credentials.verify(&bundle, store.trust_domain(), clock::unix_time()).map_err(Error::Verify)?;
        }
        let life = Duration::from_secs(credentials.not_after.as_secs()).saturating_sub(clock::wall());
        tracing::info!(identity = %credentials.id, serial = %credentials.serial, remaining = ?life, "new certificate");
        self.trust.set_certificate(credentials);
        Ok(life.mul_f64(0.60 + 0.06 * clock::random()).max(Duration::from_secs(1)))
    }
}
