//! Step 4: keeps our own key, certificate and trust bundle fresh.
//!
//! The key is made here, stays in memory and changes with every certificate. A certificate is renewed at a random point
//! between 60 % and 66 % of its life; connections that use the old one go on. Until the CA is followed (`trust`), the bundle is taken as soon as its file
//! changes, so that a new root is trusted long before the next renewal; a bad one changes nothing. A failure is tried again with growing
//! pauses and logged with what ends when.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use export::Alerts;
use identity::{Store, TrustBundle};
use record::Severity;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use tokio::sync::{Notify, watch};

use crate::{config::Identity, trust_state::Certificate};

/// Pauses between two attempts, growing.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// One attempt, all in all.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the trust bundle's file is looked at.
const BUNDLE_INTERVAL: Duration = Duration::from_secs(5);
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

/// The alert while there is no new certificate though one is due.
const RENEWAL_FAILING: &str = "certificate_renewal_failing";

/// Keeps a store fresh, and knows how that goes.
#[derive(Debug)]
pub struct Credentials {
    config: Identity,
    store: Arc<Store>,
    alerts: Arc<Alerts>,
    /// What the process before this one had, as far as it is known.
    before: ArcSwapOption<Certificate>,
    due: Notify,
    changed: watch::Sender<u64>,
    succeeded: AtomicU64,
    failed: AtomicU64,
    renewed_at: AtomicU64,
}

impl Credentials {
    /// For this store, by these settings.
    pub fn new(config: &Identity, store: Arc<Store>, alerts: Arc<Alerts>) -> Arc<Self> {
        let (before, due, succeeded, failed, renewed_at) = Default::default();
        let (changed, _) = watch::channel(0);
        Arc::new(Self { config: config.clone(), store, alerts, before, due, changed, succeeded, failed, renewed_at })
    }

    /// Notes what the process before this one had.
    pub fn remember(&self, certificate: Option<Certificate>) {
        self.before.store(certificate.map(Arc::new));
    }

    /// Asks for a new certificate at once, whatever the life of the present one.
    pub fn renew_now(&self) {
        self.due.notify_one();
    }

    /// Tells of each new certificate, and of the first roots.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// When the last certificate came, in seconds since 1970 UTC; 0 before the first.
    pub fn renewed_at(&self) -> u64 {
        self.renewed_at.load(Relaxed)
    }

    /// What ends, or ended, when, and what the clock says.
    fn stake(&self) -> String {
        let clock = utc(clock().as_secs());
        match (self.store.current(), &*self.before.load()) {
            (Some(current), _) => {
                let ends = current.not_after.as_secs();
                format!(
                    "the certificate {} of {} ends {}, this machine's clock says {clock}",
                    current.serial,
                    current.id,
                    utc(ends)
                )
            }
            (None, Some(before)) => format!(
                "there is no certificate; that of the process before this one, {} of {}, ends {}, and its key is gone; this machine's clock says {clock}",
                before.serial,
                before.identity,
                utc(before.not_after)
            ),
            (None, None) => format!("there is no certificate yet; this machine's clock says {clock}"),
        }
    }

    /// Seconds until our certificate ends; 0 when it has, `None` without one.
    pub fn remaining_seconds(&self) -> Option<u64> {
        let current = self.store.current()?;
        Some(current.not_after.as_secs().saturating_sub(clock().as_secs()))
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
        // Where saved trust is in force, the file has been compared with it already: only a change of it counts.
        let in_force = self.store.bundle().is_some();
        let seen = if in_force { read(&self.config.ca_roots).unwrap_or_default() } else { Vec::new() };
        let (mut pause, mut bundle) = (PAUSE_MIN, seen);
        loop {
            let attempt =
                tokio::time::timeout(ATTEMPT_TIMEOUT, self.renew(&mut bundle)).await.unwrap_or(Err(Error::Timeout));
            match attempt {
                Ok(until_renewal) => {
                    self.succeeded.fetch_add(1, Relaxed);
                    self.renewed_at.store(clock().as_secs(), Relaxed);
                    self.alerts.resolve(RENEWAL_FAILING, "a new certificate came");
                    pause = PAUSE_MIN;
                    self.rest(until_renewal, &mut bundle).await;
                }
                Err(error) => {
                    self.failed.fetch_add(1, Relaxed);
                    let (reason, stake) = (telemetry::chain(&error).to_string(), self.stake());
                    self.alerts.fire(RENEWAL_FAILING, Severity::Warn, &format!("{reason}; {stake}"));
                    tracing::warn!(error = reason, "no new certificate: {stake}; trying again in {pause:?}");
                    tokio::time::sleep(pause.mul_f64(0.5 + random() / 2.0)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Waits until the next certificate is due, and follows the bundle meanwhile.
    async fn rest(&self, until_renewal: Duration, bundle: &mut Vec<u8>) {
        let mut left = until_renewal;
        while !left.is_zero() {
            let pause = left.min(BUNDLE_INTERVAL);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.due.notified() => return,
            }
            left -= pause;
            if let Err(error) = self.follow_bundle(bundle) {
                tracing::warn!(error = %telemetry::chain(&error), "keeping the trust bundle that was good last");
            }
        }
    }

    /// Takes the trust bundle when its file is not what was `seen` last. Bad content is an error once, and again for as
    /// long as there is no bundle at all.
    fn follow_bundle(&self, seen: &mut Vec<u8>) -> Result<(), Error> {
        let found = read(&self.config.ca_roots)?;
        if found == *seen && self.store.bundle().is_some() {
            return Ok(());
        }
        *seen = found;
        self.store.set_bundle(TrustBundle::from_pem(seen).map_err(Error::Bundle)?);
        self.changed.send_modify(|count| *count += 1);
        tracing::info!(file = %self.config.ca_roots.display(), "trust bundle taken");
        Ok(())
    }

    /// One attempt; how long until the next certificate is due.
    async fn renew(&self, bundle: &mut Vec<u8>) -> Result<Duration, Error> {
        self.follow_bundle(bundle)?;
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(Error::Request)?;
        let request = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .map_err(Error::Request)?;
        let chain = crate::ca_client::create_certificate(&self.config, &self.store, request).await?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let credentials = identity::Credentials::from_pem(chain.as_bytes(), key).map_err(Error::Answer)?;
        let bundle = self.store.bundle();
        if let Some(bundle) = bundle {
            let now = UnixTime::since_unix_epoch(clock());
            credentials.verify(&bundle, self.store.trust_domain(), now).map_err(Error::Verify)?;
        }
        let life = Duration::from_secs(credentials.not_after.as_secs().saturating_sub(clock().as_secs()));
        tracing::info!(identity = %credentials.id, serial = %credentials.serial, remaining = ?life, "new certificate");
        self.store.set(credentials);
        self.changed.send_modify(|count| *count += 1);
        Ok(life.mul_f64(0.60 + 0.06 * random()).max(Duration::from_secs(1)))
    }
}

/// Reads a token or a bundle.
///
/// # Errors
/// When it cannot be read, or is over 1 MiB.
pub fn read(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    let read = || {
        if std::fs::metadata(path)?.len() > FILE_BYTES_MAX {
            return Err(io::Error::other("the file is over 1 MiB"));
        }
        std::fs::read(path)
    };
    read().map_err(|error| Error::File(path.display().to_string(), error))
}

/// Time since 1970 UTC, by this machine's clock.
pub fn clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn utc(seconds: u64) -> identity::Utc {
    identity::Utc(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

/// Between 0 and 1; spreads load, keeps no secret.
pub fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> String {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn the_bundle_follows_its_file_and_a_bad_one_changes_nothing() {
        let path = std::env::temp_dir().join(format!("picket-bundle-{}.pem", std::process::id()));
        let config = Identity {
            ca_address: "[::1]:1".to_owned(),
            ca_roots: path.clone(),
            state_dir: None,
            ca_identity: "spiffe://t/ns/picket-system/sa/picket-ca".parse().unwrap(),
            token_file: path.clone(),
        };
        let store = Arc::new(Store::new("t".parse().unwrap()));
        let (credentials, mut seen) = (
            Credentials::new(&config, Arc::clone(&store), Arc::new(Alerts::new(export::Events::new(Vec::new())))),
            Vec::new(),
        );
        for _again in 0..2 {
            std::fs::write(&path, "no roots").unwrap();
            assert!(matches!(credentials.follow_bundle(&mut seen), Err(Error::Bundle(_))));
        }
        let mut taken = Vec::new();
        for _rotation in 0..2 {
            std::fs::write(&path, root()).unwrap();
            credentials.follow_bundle(&mut seen).unwrap();
            taken.push(store.bundle().unwrap());
        }
        assert!(!Arc::ptr_eq(&taken[0], &taken[1]), "the new root is in force");
        std::fs::write(&path, "no roots").unwrap();
        assert!(matches!(credentials.follow_bundle(&mut seen), Err(Error::Bundle(_))));
        credentials.follow_bundle(&mut seen).unwrap();
        assert!(Arc::ptr_eq(&taken[1], &store.bundle().unwrap()), "what was good stays");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn renewals_are_spread() {
        let all: Vec<f64> = (0..100).map(|_| random()).collect();
        assert!(all.iter().all(|one| (0.0..1.0).contains(one)));
        assert!(all.iter().any(|one| *one < 0.5) && all.iter().any(|one| *one > 0.5));
    }
}
