//! Step 4: follows the trust bundle from the CA, generation by generation, and says what is in use here.
//!
//! A generation is in force for the next handshake before it is acknowledged; one that cannot be used is refused with a
//! reason, whole, and the last good one stays. When another issuer signs than that of our certificate, a new one is
//! asked for at a random moment of the time that the CA gives. Clocks that are apart are an alert.
//!
//! A generation with a lower number than the one in force comes from a CA process that is behind the others on the same
//! store, or from a CA that was restored from a backup. The first catches up in seconds, and going back for that long
//! could refuse certificates that are signed already; so a lower generation is refused, with an alert. When the CA stays
//! with it for five minutes, it is the second, and is taken.
//!
//! Leaves to others: what is in force and kept (`trust`), the certificate (`credentials`), closing what is denied (`worker`).

use std::{sync::Arc, time::Duration};

use api::trust::{Bundle, Denial as WireDenial, Status, denial::Subject};
use export::Alerts;
use identity::{BundleError, Denial, DenyList, SpiffeId, TooManyDenials, TrustBundle, Utc};
use record::Severity;
use rustls_pki_types::UnixTime;
use tokio::{
    sync::watch,
    time::{Instant, interval_at, sleep, sleep_until, timeout},
};

use crate::{
    ca_client,
    clock::{self, Moment, Pauses},
    config::Identity,
    credentials::{self, Credentials},
    trust::Trust,
};

/// Pauses between two attempts to follow, growing. Who followed for the longest of them begins again with the shortest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Connecting and the first bundle, all in all.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the CA must stay with a generation that is older than ours.
const OLDER_PATIENCE: Duration = Duration::from_secs(300);
/// Clocks further apart than this are an alert: certificates are backdated by more, tokens are not.
const SKEW_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether the clocks have to be compared again, and how often they are while they are apart.
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);
/// A CA that goes on to sign with another issuer than it says is not asked more often than this.
const RENEW_AGAIN_MIN: Duration = Duration::from_secs(60);

/// The alert while the clocks are apart.
const CLOCK_SKEW: &str = "clock_skew";
/// The alert while what the CA sends is refused.
const BUNDLE_REFUSED: &str = "trust_bundle_refused";

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
    /// The first bundle did not come.
    #[error("the CA sent no trust bundle within {BEGIN_TIMEOUT:?}")]
    Timeout,
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Stream(Box::new(status))
    }
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
    #[error("the deny list names the CA itself, {0}: nothing could be taken from it any more")]
    Authority(SpiffeId),
    #[error(
        "generation {offered} is older than {in_force}, which is in force: a CA restored from a backup? It is taken when the \
         CA stays with it for {patience:?}"
    )]
    Older { offered: u64, in_force: u64, patience: Duration },
}

/// Keeps the trust as the CA says.
#[derive(Debug)]
pub struct Follower {
    config: Identity,
    trust: Arc<Trust>,
    credentials: Arc<Credentials>,
    alerts: Arc<Alerts>,
    older_patience: Duration,
    clock_interval: Duration,
}

/// What outlives a stream.
#[derive(Debug, Default)]
struct Progress {
    /// When the first bundle came of the streams that followed each other without an error.
    began: Option<Instant>,
    /// Since when the CA offers nothing but generations older than ours.
    older_since: Option<Instant>,
    /// The issuer that signs now, and how soon certificates of others are to be replaced.
    issuer: Option<([u8; 32], Duration)>,
    /// When ours is.
    renew_at: Option<Instant>,
}

/// One stream.
struct Stream {
    said: watch::Sender<Status>,
    /// Why the newest bundle is not used.
    refused: String,
    /// It, if it is taken when the CA stays with it.
    older: Option<Bundle>,
    /// When the clocks were compared.
    compared: Moment,
}

impl Follower {
    /// By these settings, for the trust that `credentials` are used with.
    pub fn new(config: &Identity, credentials: Arc<Credentials>) -> Self {
        let (older_patience, clock_interval) = (OLDER_PATIENCE, CLOCK_INTERVAL);
        let (trust, alerts) = (Arc::clone(credentials.trust()), Arc::clone(credentials.alerts()));
        Self { config: config.clone(), trust, credentials, alerts, older_patience, clock_interval }
    }

    #[cfg(test)]
    pub(crate) fn with_older_patience(self, older_patience: Duration) -> Self {
        Self { older_patience, ..self }
    }

    #[cfg(test)]
    pub(crate) fn with_clock_interval(self, clock_interval: Duration) -> Self {
        Self { clock_interval, ..self }
    }

    /// Follows the CA for ever.
    ///
    /// # Cancellation
    /// Safe: what is in force stays.
    pub async fn run(self) {
        let (mut pauses, mut progress) = (Pauses::new(PAUSES.0, PAUSES.1), Progress::default());
        loop {
            let Err(error) = self.follow(&mut progress).await else { continue };
            self.trust.set_followed(false);
            if progress.began.take().is_some_and(|began| began.elapsed() >= PAUSES.1) {
                pauses.reset();
            }
            let (error, pause) = (telemetry::chain(&error).to_string(), pauses.next_pause());
            let generation = self.trust.generation();
            tracing::warn!(error, generation, "the trust bundle is not followed; trying again in {pause:?}");
            sleep(pause).await;
        }
    }

    /// One stream; it ends without an error when another one is to be opened, to compare the clocks.
    async fn follow(&self, progress: &mut Progress) -> Result<(), Error> {
        let mut changed = self.trust.changed();
        // Without roots nobody can be trusted, the CA included.
        while self.trust.store().bundle().is_none() {
            changed.changed().await.map_err(|_| Error::Ended)?;
        }
        changed.mark_unchanged();
        let (said, mut outgoing) = watch::channel(self.status(""));
        let begin = async {
            // The CA compares the time with its own: in a rush, dialling alone takes seconds.
            let status = || now(&mut outgoing);
            let mut connection = ca_client::follow(&self.config, self.trust.store(), status).await?;
            let first = connection.bundle().await?.ok_or(Error::Ended)?;
            Ok::<_, Error>((connection, first))
        };
        let (mut connection, first) = timeout(BEGIN_TIMEOUT, begin).await.map_err(|_| Error::Timeout)??;
        progress.began.get_or_insert_with(Instant::now);
        let (refused, older) = Default::default();
        let mut stream = Stream { said, refused, older, compared: Moment::now() };
        self.receive(&mut stream, progress, first);
        let mut look = interval_at(Instant::now() + self.clock_interval, self.clock_interval);
        loop {
            let taken_at = progress.older_since.filter(|_| stream.older.is_some());
            tokio::select! {
                bundle = connection.bundle() => self.receive(&mut stream, progress, bundle?.ok_or(Error::Ended)?),
                _said = outgoing.changed() => connection.say(&now(&mut outgoing)).await?,
                certificate = changed.changed() => {
                    certificate.map_err(|_| Error::Ended)?;
                    self.plan_renewal(progress, RENEW_AGAIN_MIN);
                    self.say(&stream, false);
                }
                () = until(progress.renew_at) => {
                    progress.renew_at = None;
                    self.credentials.renew_now();
                }
                () = until(taken_at.map(|since| since + self.older_patience)) => {
                    if let Some(bundle) = stream.older.take() {
                        self.settle(&mut stream, progress, bundle);
                    }
                }
                _ = look.tick() => {
                    if self.alerts.is_firing(CLOCK_SKEW) || stream.compared.moved() > SKEW_MAX {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn receive(&self, stream: &mut Stream, progress: &mut Progress, bundle: Bundle) {
        stream.compared = Moment::now();
        self.compare_clocks(bundle.time_unix_nanos);
        self.settle(stream, progress, bundle);
    }

    /// Puts a generation in force, or says why not.
    fn settle(&self, stream: &mut Stream, progress: &mut Progress, bundle: Bundle) {
        let generation = bundle.generation;
        (stream.older, stream.refused) = Default::default();
        match self.take(&bundle, progress) {
            Ok(()) => {
                self.trust.set_followed(true);
                progress.older_since = None;
                self.alerts.resolve(BUNDLE_REFUSED, &format!("generation {generation} is in force"));
                tracing::info!(generation, denied = self.trust.denials(), "trust bundle taken");
                let issuer = <[u8; 32]>::try_from(bundle.issuer_sha256.as_slice()).ok();
                let within = Duration::from_secs(bundle.renew_within_seconds.into());
                progress.issuer = issuer.map(|issuer| (issuer, within));
                self.plan_renewal(progress, Duration::ZERO);
            }
            Err(error) => {
                let (in_force, reason) = (self.trust.generation(), telemetry::chain(&error).to_string());
                let detail = format!("generation {generation} is refused, {in_force} stays in force: {reason}");
                self.alerts.fire(BUNDLE_REFUSED, Severity::Warn, &detail);
                tracing::error!("the trust bundle: {detail}");
                stream.refused = reason;
                stream.older = matches!(error, Unusable::Older { .. }).then_some(bundle);
            }
        }
        self.say(stream, true);
    }

    fn take(&self, bundle: &Bundle, progress: &mut Progress) -> Result<(), Unusable> {
        let (offered, in_force) = (bundle.generation, self.trust.generation());
        if offered < in_force {
            let since = *progress.older_since.get_or_insert_with(Instant::now);
            if since.elapsed() < self.older_patience {
                return Err(Unusable::Older { offered, in_force, patience: self.older_patience });
            }
        }
        let denied = bundle.denied.iter().enumerate();
        let denied = denied.map(|(at, denial)| read_denial(denial).ok_or(Unusable::Denial(at)));
        let denied = denied.collect::<Result<Vec<_>, _>>()?;
        let authority = &self.config.ca_identity;
        if denied.iter().any(|denial| matches!(denial, Denial::Identity(id) if id == authority)) {
            return Err(Unusable::Authority(authority.clone()));
        }
        let roots = TrustBundle::from_der(bundle.roots.iter().cloned())?;
        self.trust.take(roots, DenyList::new(denied)?, bundle.generation);
        Ok(())
    }

    /// Plans a new certificate while another issuer signs than that of ours, not before `pause` has passed. A plan stays
    /// when the bundle comes again.
    fn plan_renewal(&self, progress: &mut Progress, pause: Duration) {
        // Without a certificate one is on its way; without its issuer there is nothing to compare.
        let ours = self.trust.store().current().and_then(|current| current.issuer_sha256);
        progress.renew_at = match (ours, progress.issuer) {
            (Some(ours), Some((issuer, within))) if ours != issuer => {
                let by_chance = || Instant::now() + pause + within.mul_f64(clock::random());
                Some(progress.renew_at.unwrap_or_else(by_chance))
            }
            (Some(_) | None, _) => None,
        };
    }

    /// Tells the CA what is in use here, if that has changed or is an `answer` that it waits for.
    fn say(&self, stream: &Stream, answer: bool) {
        let status = self.status(&stream.refused);
        stream.said.send_if_modified(|said| {
            let is_news = answer || *said != status;
            if is_news {
                *said = status;
            }
            is_news
        });
    }

    /// What is to be said, without the time.
    fn status(&self, refused: &str) -> Status {
        let current = self.trust.store().current();
        let current = current.as_ref();
        Status {
            generation: self.trust.generation(),
            refused: refused.to_owned(),
            certificate_serial: current.map(|current| current.serial.clone()).unwrap_or_default(),
            issuer_sha256: current.and_then(|current| current.issuer_sha256).map(Vec::from).unwrap_or_default(),
            certificate_not_after: current.map_or(0, |current| current.not_after.as_secs() as i64),
            time_unix_nanos: 0,
        }
    }

    fn compare_clocks(&self, theirs: i64) {
        let (ours, theirs) = (clock::wall(), Duration::from_nanos(u64::try_from(theirs).unwrap_or(0)));
        let text = |time| Utc(UnixTime::since_unix_epoch(time)).to_string();
        let detail = format!("this machine's clock says {}, the CA's says {}", text(ours), text(theirs));
        if ours.abs_diff(theirs) > SKEW_MAX {
            self.alerts.fire(CLOCK_SKEW, Severity::Warn, &detail);
        } else {
            self.alerts.resolve(CLOCK_SKEW, &detail);
        }
    }
}

/// What is to be said, at the moment of saying it.
fn now(said: &mut watch::Receiver<Status>) -> Status {
    Status { time_unix_nanos: clock::wall().as_nanos() as i64, ..said.borrow_and_update().clone() }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn read_denial(denial: &WireDenial) -> Option<Denial> {
    Some(match denial.subject.as_ref()? {
        Subject::Serial(serial) => Denial::serial(serial)?,
        Subject::Identity(id) => Denial::Identity(id.parse().ok()?),
        Subject::KeySha256(digest) => Denial::Key(digest.as_slice().try_into().ok()?),
    })
}
