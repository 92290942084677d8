//! What this workload is, right now: its own certificate and key, and the roots that it trusts.
//!
//! Promises: readers take no lock and see either the old or the new state, never a mixture of key and certificate;
//! a replacement is seen by the next handshake and leaves running connections alone. Leaves to others: getting and
//! renewing certificates, and the decision whether credentials are good enough to use ([`Credentials::verify`]).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::peer::{self, PeerError, Role};
use crate::{DenyList, Leaf, SpiffeId, TrustBundle, TrustDomain, deny, tls};

/// Why a chain and a key are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The text is not well-formed PEM (RFC 7468).
    #[error("the certificate chain is not PEM: {0}")]
    Pem(String),
    /// The chain is empty.
    #[error("the certificate chain is empty")]
    Empty,
    /// The leaf cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    /// The leaf names no usable identity.
    #[error("the certificate names no usable identity")]
    Identity(#[source] PeerError),
    /// The key cannot be read, or is not the one in the certificate.
    #[error("the private key does not fit the certificate")]
    Key(#[source] rustls::Error),
}

/// A certificate of this workload with its private key.
#[derive(Clone)]
pub struct Credentials {
    /// Whom the certificate names.
    pub id: SpiffeId,
    /// Chain (leaf first) and key, as TLS uses them.
    pub certified_key: Arc<CertifiedKey>,
    /// First second of validity.
    pub not_before: UnixTime,
    /// Last second of validity of the leaf.
    pub not_after: UnixTime,
    /// The serial number in hexadecimal, as it stands in the CA's issuance records.
    pub serial: String,
    /// SHA-256 of the DER of the issuer that signed it, where the chain has one.
    pub issuer_sha256: Option<[u8; 32]>,
}

impl fmt::Debug for Credentials {
    // Written by hand so that the key can never be printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, serial) = (&self.id, &self.serial);
        write!(f, "Credentials({id}, serial {serial}, until {})", peer::Utc(self.not_after))
    }
}

impl Credentials {
    /// Puts a chain (leaf first) and its key together. A self-signed root at the end of the chain is left out: peers
    /// have it, and it would only make every handshake longer.
    ///
    /// # Errors
    /// See [`CredentialsError`]. Trust and time are not checked here, see [`Credentials::verify`].
    pub fn new(mut chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, CredentialsError> {
        if chain.len() > 1 && chain.last().is_some_and(is_self_issued) {
            chain.pop();
        }
        let leaf = chain.first().ok_or(CredentialsError::Empty)?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| CredentialsError::Certificate(error.to_string()))?;
        let id = peer::read_identity(&parsed).map_err(CredentialsError::Identity)?;
        let not_before = unix_time(parsed.validity().not_before.timestamp());
        let not_after = unix_time(parsed.validity().not_after.timestamp());
        let serial = deny::serial_of(&parsed);
        let issuer_sha256 = chain.get(1).map(|issuer| deny::sha256(issuer));
        let certified_key = CertifiedKey::from_der(chain, key, &tls::provider()).map_err(CredentialsError::Key)?;
        Ok(Self { id, certified_key: Arc::new(certified_key), not_before, not_after, serial, issuer_sha256 })
    }

    /// As [`Credentials::new`], from the concatenated PEM certificates that a CA answers with.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn from_pem(chain: &[u8], key: PrivateKeyDer<'static>) -> Result<Self, CredentialsError> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        Self::new(chain.map_err(|error| CredentialsError::Pem(error.to_string()))?, key)
    }

    /// Checks these credentials as a peer will: in both roles, against `bundle`, at `now`.
    ///
    /// # Errors
    /// The reason for which a peer would refuse them.
    pub fn verify(&self, bundle: &TrustBundle, trust_domain: &TrustDomain, now: UnixTime) -> Result<(), PeerError> {
        for role in [Role::Client, Role::Server] {
            peer::verify_peer(&self.certified_key.cert, bundle, trust_domain, role, now)?;
        }
        Ok(())
    }
}

fn is_self_issued(certificate: &CertificateDer<'static>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| parsed.is_ca() && parsed.subject().as_raw() == parsed.issuer().as_raw())
}

fn unix_time(seconds: i64) -> UnixTime {
    // Before 1970 is before every time we compare with: zero says the same.
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Why there is nothing to show to a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// None came so far.
    #[error("there is no certificate yet")]
    Missing,
    /// None came so far, and the one that was there ended with the process that held its key.
    #[error(
        "there is no certificate: {} of {} would have been valid until {}, but its key was lost with the process before \
         this one; this machine's clock says {}",
        .previous.serial, .previous.id, peer::Utc(.previous.not_after), peer::Utc(*.now)
    )]
    Lost {
        /// What is known of it.
        previous: Arc<Previous>,
        /// The time of asking.
        now: UnixTime,
    },
    /// It was not renewed in time.
    #[error("the certificate {serial} of {id} ended {}, this machine's clock says {}", peer::Utc(*.ended), peer::Utc(*.now))]
    Ended {
        /// Whom it names.
        id: SpiffeId,
        /// Its serial number.
        serial: String,
        /// Its notAfter.
        ended: UnixTime,
        /// The time it was compared with.
        now: UnixTime,
    },
}

/// What is known of the certificate that the process before this one had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    /// Whom it names.
    pub id: SpiffeId,
    /// Its serial number.
    pub serial: String,
    /// Its notAfter.
    pub not_after: UnixTime,
}

/// The current credentials and trust bundle, shared by all threads.
#[derive(Debug)]
pub struct Store {
    trust_domain: TrustDomain,
    credentials: ArcSwapOption<Credentials>,
    previous: ArcSwapOption<Previous>,
    bundle: ArcSwapOption<TrustBundle>,
    denied: ArcSwap<DenyList>,
    generation: AtomicU64,
}

impl Store {
    /// An empty store: until both halves are set, every handshake fails closed.
    pub fn new(trust_domain: TrustDomain) -> Arc<Self> {
        Arc::new(Self {
            trust_domain,
            credentials: ArcSwapOption::empty(),
            previous: ArcSwapOption::empty(),
            bundle: ArcSwapOption::empty(),
            denied: ArcSwap::default(),
            generation: AtomicU64::new(0),
        })
    }

    /// The only trust domain whose identities are accepted.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Replaces our own certificate; the next handshake uses it.
    pub fn set(&self, credentials: Credentials) {
        self.credentials.store(Some(Arc::new(credentials)));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Notes what the process before this one had, to be named until there is a certificate again.
    pub fn set_previous(&self, previous: Previous) {
        self.previous.store(Some(Arc::new(previous)));
    }

    /// What the process before this one had, as far as it is known.
    pub fn previous(&self) -> Option<Arc<Previous>> {
        self.previous.load_full()
    }

    /// Replaces the roots; the next handshake uses them.
    pub fn set_bundle(&self, bundle: TrustBundle) {
        self.bundle.store(Some(Arc::new(bundle)));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Replaces the deny list; the next handshake uses it.
    pub fn set_denied(&self, denied: Arc<DenyList>) {
        self.denied.store(denied);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Who is denied.
    pub fn denied(&self) -> Arc<DenyList> {
        self.denied.load_full()
    }

    /// Our own credentials; `None` before the first certificate came.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.credentials.load_full()
    }

    /// Our own credentials, if peers will take them now.
    ///
    /// # Errors
    /// That there are none, or that they ended.
    pub fn usable(&self, now: UnixTime) -> Result<Arc<Credentials>, Unusable> {
        let Some(current) = self.current() else {
            return Err(self.previous().map_or(Unusable::Missing, |previous| Unusable::Lost { previous, now }));
        };
        if current.not_after < now {
            let (id, serial, ended) = (current.id.clone(), current.serial.clone(), current.not_after);
            return Err(Unusable::Ended { id, serial, ended, now });
        }
        Ok(current)
    }

    /// The roots; `None` before they were set.
    pub fn bundle(&self) -> Option<Arc<TrustBundle>> {
        self.bundle.load_full()
    }

    /// What is kept of a chain (leaf first) that a handshake has verified since the roots were `before`. When they were
    /// replaced meanwhile, it is verified again: a peer may hold its last flight back for as long as a root is there.
    ///
    /// # Errors
    /// Why the peer is refused by the present roots.
    pub fn leaf(
        &self,
        chain: &[CertificateDer<'_>],
        before: Option<&Arc<TrustBundle>>,
        role: Role,
        now: UnixTime,
    ) -> Result<Leaf, PeerError> {
        let (leaf, issuers) = chain.split_first().ok_or(PeerError::CertificateMissing)?;
        let bundle = self.bundle().ok_or(PeerError::Untrusted { source: webpki::Error::UnknownIssuer })?;
        if !before.is_some_and(|before| Arc::ptr_eq(before, &bundle)) {
            peer::verify(leaf, issuers, &bundle, &self.trust_domain, role, now)?;
        }
        let malformed = || PeerError::Malformed { detail: "it cannot be read again".to_owned() };
        Leaf::read(leaf, issuers, &bundle).ok_or_else(malformed)
    }

    /// Grows by one with every replacement.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}
