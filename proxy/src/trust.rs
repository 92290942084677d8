//! Step 4: follows the trust bundle from the CA, generation by generation, and says what is in use here.
//!
//! A generation is in force for the next handshake as soon as it came; then it is acknowledged. When another issuer signs
//! than the one of our certificate, a new certificate is asked for at a random moment of the time that the CA gives. Who
//! is denied loses the connections that stand. While the CA is away, the last good generation stays, also over a restart.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use api::trust::{
    Bundle, Denial as WireDenial, Status, denial::Subject, trust_bundle_service_client::TrustBundleServiceClient,
};
use export::Alerts;
use identity::{BundleError, Denial, DenyList, Store, TooManyDenials, TrustBundle, sha256};
use record::Severity;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    ca_client,
    config::Identity,
    credentials::{self, Credentials, clock, random},
    trust_state::{Certificate, Denied, StateDirectory, TrustState, hex, unhex},
};

/// Pauses between two attempts to follow, growing.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Connecting and the first answer, all in all.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Clocks further apart than this are an alert: certificates are backdated by more, tokens are not.
const SKEW_MAX: Duration = Duration::from_secs(5);
/// Statuses that wait to be sent; a new one is only made when the last was taken.
const STATUSES_MAX: usize = 1;

/// Why following ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Before it began.
    #[error(transparent)]
    Connect(#[from] credentials::Error),
    /// The CA said no, or the connection broke.
    #[error("the CA answered {}: {}", .0.code(), .0.message())]
    Stream(Box<tonic::Status>),
    /// The CA ended the stream.
    #[error("the CA ended the stream")]
    Ended,
    /// The first answer did not come.
    #[error("the CA did not answer within {BEGIN_TIMEOUT:?}")]
    Timeout,
}

/// Why a generation cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Roots(#[from] BundleError),
    #[error(transparent)]
    Denied(#[from] TooManyDenials),
    #[error("entry {0} of the deny list names nothing that can be denied")]
    Denial(usize),
}

/// The trust of this proxy, and how it is kept.
#[derive(Debug)]
pub struct Trust {
    config: Identity,
    store: Arc<Store>,
    credentials: Arc<Credentials>,
    alerts: Arc<Alerts>,
    state: StateDirectory,
    denied: watch::Sender<Arc<DenyList>>,
    generation: AtomicU64,
    following: AtomicBool,
}

impl Trust {
    /// Puts the trust that was saved last in force, unless the operators' file has changed since.
    pub fn start(
        config: &Identity,
        store: Arc<Store>,
        credentials: Arc<Credentials>,
        alerts: Arc<Alerts>,
        denied: watch::Sender<Arc<DenyList>>,
    ) -> Arc<Self> {
        let state = StateDirectory::new(config.state_dir.clone());
        let (generation, following) = Default::default();
        let trust = Self { config: config.clone(), store, credentials, alerts, state, denied, generation, following };
        if let Some(saved) = trust.state.load(trust.store.trust_domain().as_str()) {
            trust.restore(&saved);
        }
        Arc::new(trust)
    }

    /// The generation in force; 0 when it came from the operators' file.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// True while the CA is followed.
    pub fn is_following(&self) -> bool {
        self.following.load(Relaxed)
    }

    /// How many are denied.
    pub fn denials(&self) -> u64 {
        self.denied.borrow().len() as u64
    }

    fn restore(&self, saved: &TrustState) {
        self.credentials.remember(saved.certificate.clone());
        if self.ca_roots_sha256() != saved.ca_roots_sha256 {
            tracing::info!(file = %self.config.ca_roots.display(), "the roots' file has changed since the trust was saved, and is used");
            return;
        }
        let roots: Option<Vec<_>> = saved.roots.iter().map(|root| unhex(root)).collect();
        let denied: Option<Vec<_>> = saved.denied.iter().map(read_saved).collect();
        let (Some(Ok(bundle)), Some(Ok(denied))) = (roots.map(TrustBundle::from_der), denied.map(DenyList::new)) else {
            tracing::warn!("the saved trust is damaged, and is not used");
            return;
        };
        self.put_in_force(bundle, denied, saved.generation);
        tracing::info!(generation = saved.generation, "the trust that was saved last is in force");
    }

    /// SHA-256 of the operators' file; of nothing when it cannot be read.
    fn ca_roots_sha256(&self) -> String {
        hex(&sha256(&credentials::read(&self.config.ca_roots).unwrap_or_default()))
    }

    fn put_in_force(&self, bundle: TrustBundle, denied: DenyList, generation: u64) {
        let denied = Arc::new(denied);
        self.store.set_bundle(bundle);
        self.store.set_denied(Arc::clone(&denied));
        self.generation.store(generation, Relaxed);
        self.denied.send_if_modified(|current| {
            let changed = **current != *denied;
            *current = denied;
            changed
        });
    }

    /// Follows the CA for ever.
    ///
    /// # Cancellation
    /// Safe: what is in force stays.
    pub async fn run(self: Arc<Self>) {
        let mut pause = PAUSE_MIN;
        loop {
            let Err(error) = self.follow().await;
            if self.following.swap(false, Relaxed) {
                pause = PAUSE_MIN;
            }
            tracing::warn!(
                error = %telemetry::chain(&error),
                generation = self.generation(),
                "the trust bundle is not followed; trying again in {pause:?}"
            );
            sleep(pause.mul_f64(0.5 + random() / 2.0)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn follow(&self) -> Result<std::convert::Infallible, Error> {
        // Without roots nobody can be trusted, the CA included: they come with the first attempt to get a certificate.
        let mut changed = self.credentials.changed();
        while self.store.bundle().is_none() {
            changed.changed().await.map_err(|_| Error::Ended)?;
        }
        let (statuses, outgoing) = mpsc::channel(STATUSES_MAX);
        statuses.try_send(self.status("")).map_err(|_| Error::Ended)?;
        let begin = async {
            let channel = ca_client::connect(&self.config, &self.store).await?;
            let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
            ca_client::authorize(&self.config, &mut request)?;
            let answer = TrustBundleServiceClient::new(channel).follow(request).await;
            Ok::<_, Error>(answer.map_err(|status| Error::Stream(Box::new(status)))?.into_inner())
        };
        let mut bundles = timeout(BEGIN_TIMEOUT, begin).await.map_err(|_| Error::Timeout)??;
        let mut renew_at = None;
        loop {
            let due = renew_at;
            let refused = tokio::select! {
                bundle = bundles.message() => {
                    let bundle = bundle.map_err(|status| Error::Stream(Box::new(status)))?.ok_or(Error::Ended)?;
                    self.following.store(true, Relaxed);
                    let taken = self.take(&bundle);
                    renew_at = self.renewal(&bundle, renew_at);
                    taken.err().map(|error| telemetry::chain(&error).to_string())
                }
                certificate = changed.changed() => {
                    certificate.map_err(|_| Error::Ended)?;
                    renew_at = None;
                    self.save();
                    None
                }
                () = until(due) => {
                    renew_at = None;
                    self.credentials.renew_now();
                    continue;
                }
            };
            statuses.send(self.status(refused.as_deref().unwrap_or_default())).await.map_err(|_| Error::Ended)?;
        }
    }

    /// Puts a generation in force.
    fn take(&self, bundle: &Bundle) -> Result<(), Unusable> {
        self.compare_clocks(bundle.time_unix_nanos);
        let taken = self.read(bundle);
        match &taken {
            Ok(()) => tracing::info!(generation = bundle.generation, denied = self.denials(), "trust bundle taken"),
            Err(error) => tracing::error!(
                generation = bundle.generation,
                in_force = self.generation(),
                error = %telemetry::chain(error),
                "a generation of the trust bundle cannot be used; the last good one stays"
            ),
        }
        taken
    }

    fn read(&self, bundle: &Bundle) -> Result<(), Unusable> {
        let denied = bundle.denied.iter().enumerate();
        let denied = denied.map(|(at, denial)| read_denial(denial).ok_or(Unusable::Denial(at)));
        let denied = DenyList::new(denied.collect::<Result<Vec<_>, _>>()?)?;
        let roots = TrustBundle::from_der(bundle.roots.iter().cloned())?;
        self.put_in_force(roots, denied, bundle.generation);
        self.save();
        Ok(())
    }

    /// When a new certificate is due because another issuer signs now.
    fn renewal(&self, bundle: &Bundle, planned: Option<Instant>) -> Option<Instant> {
        let current = self.store.current()?;
        if bundle.issuer_sha256.is_empty()
            || current.issuer_sha256.is_some_and(|ours| ours[..] == bundle.issuer_sha256[..])
        {
            return None;
        }
        let within = Duration::from_secs(bundle.renew_within_seconds.into());
        Some(planned.unwrap_or_else(|| Instant::now() + within.mul_f64(random())))
    }

    fn status(&self, refused: &str) -> Status {
        let current = self.store.current();
        Status {
            generation: self.generation(),
            refused: refused.to_owned(),
            certificate_serial: current.as_ref().map(|current| current.serial.clone()).unwrap_or_default(),
            issuer_sha256: current
                .as_ref()
                .and_then(|current| current.issuer_sha256)
                .map(Vec::from)
                .unwrap_or_default(),
            certificate_not_after: current.map_or(0, |current| current.not_after.as_secs() as i64),
            time_unix_nanos: clock().as_nanos() as i64,
        }
    }

    fn compare_clocks(&self, theirs: i64) {
        let (ours, theirs) = (clock(), Duration::from_nanos(u64::try_from(theirs).unwrap_or(0)));
        let text = |time: Duration| identity::Utc(rustls_pki_types::UnixTime::since_unix_epoch(time)).to_string();
        let detail = format!("this machine's clock says {}, the CA's says {}", text(ours), text(theirs));
        if ours.abs_diff(theirs) > SKEW_MAX {
            self.alerts.fire("clock_skew", Severity::Warn, &detail);
        } else {
            self.alerts.resolve("clock_skew", &detail);
        }
    }

    /// Saves what is in force.
    fn save(&self) {
        let roots = self.store.bundle().map(|bundle| bundle.roots().iter().map(|root| hex(root)).collect());
        let certificate = self.store.current().map(|current| Certificate {
            serial: current.serial.clone(),
            identity: current.id.to_string(),
            not_after: current.not_after.as_secs(),
        });
        self.state.save(&TrustState {
            trust_domain: self.store.trust_domain().as_str().to_owned(),
            generation: self.generation(),
            roots: roots.unwrap_or_default(),
            denied: self.denied.borrow().iter().map(save_denial).collect(),
            ca_roots_sha256: self.ca_roots_sha256(),
            certificate,
        });
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn read_denial(denial: &WireDenial) -> Option<Denial> {
    Some(match denial.subject.as_ref()? {
        Subject::Serial(serial) if !serial.is_empty() => Denial::Serial(serial.to_ascii_lowercase()),
        Subject::Identity(id) => Denial::Identity(id.parse().ok()?),
        Subject::KeySha256(digest) => Denial::Key(digest.as_slice().try_into().ok()?),
        Subject::Serial(_) => return None,
    })
}

fn read_saved(denied: &Denied) -> Option<Denial> {
    Some(match denied {
        Denied::Serial(serial) => Denial::Serial(serial.clone()),
        Denied::Identity(id) => Denial::Identity(id.parse().ok()?),
        Denied::Key(digest) => Denial::Key(unhex(digest)?.try_into().ok()?),
    })
}

fn save_denial(denial: &Denial) -> Denied {
    match denial {
        Denial::Serial(serial) => Denied::Serial(serial.clone()),
        Denial::Identity(id) => Denied::Identity(id.to_string()),
        Denial::Key(digest) => Denied::Key(hex(digest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn root() -> (String, Vec<u8>) {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let c = params.self_signed(&key).unwrap();
        (c.pem(), c.der().to_vec())
    }
    #[tokio::test]
    async fn saved_roots_survive_the_first_attempt_to_get_a_certificate() {
        let dir = std::env::temp_dir().join(format!("review-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (old, new) = (root(), root());
        let file = dir.join("root.pem");
        std::fs::write(&file, &old.0).unwrap();
        let config = Identity {
            ca_address: "127.0.0.1:1".into(),
            ca_roots: file.clone(),
            state_dir: Some(dir.clone()),
            ca_identity: "spiffe://t/ns/p/sa/ca".parse().unwrap(),
            token_file: file.clone(),
        };
        let store = Store::new("t".parse().unwrap());
        let alerts = Arc::new(Alerts::new(export::Events::new(vec![])));
        let credentials = Credentials::new(&config, Arc::clone(&store), Arc::clone(&alerts));
        StateDirectory::new(Some(dir.clone())).save(&TrustState {
            trust_domain: "t".into(),
            generation: 7,
            roots: vec![hex(&new.1)],
            denied: vec![],
            ca_roots_sha256: hex(&sha256(old.0.as_bytes())),
            certificate: None,
        });
        let trust = Trust::start(
            &config,
            Arc::clone(&store),
            Arc::clone(&credentials),
            alerts,
            watch::channel(Arc::default()).0,
        );
        assert_eq!((trust.generation(), store.bundle().unwrap().roots()[0].to_vec()), (7, new.1.clone()));
        let run = tokio::spawn(Arc::clone(&credentials).run());
        sleep(Duration::from_millis(500)).await;
        run.abort();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(store.bundle().unwrap().roots()[0].to_vec(), new.1);
    }
}
