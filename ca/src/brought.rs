//! An issuer that an operator brings: a directory with `tls.crt`, `tls.key` and, if need be, `ca.crt`, as cert-manager
//! writes a Secret and Kubernetes mounts it.
//!
//! Promises: what [`validate`] returns signs leaves that peers accept, because one was signed and verified as they do it;
//! each refusal has its reason, and nothing else is used in its place. Files are compared by content, so no replacement
//! is missed, and never mixed: a set that changes while it is read is read again. Time is an argument. Leaves to others:
//! when it is taken (`keeper`), and that the last good one stays (`leader`).

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use identity::{CHAIN_MAX, PeerError, Role, TrustBundle, TrustDomain, verify_peer};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;

use crate::authority::Authority;
use crate::issue::{self, IssueError, utc};
use crate::pki::{self, PkiError};
use crate::policy;
use crate::state::{Issuer, Root, RootUse, Seconds, Sha256};

/// A file of the directory is not larger than this.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// Reading is tried again this often while the files change.
const READS_MAX: u32 = 5;
/// An RSA key below this is broken with money.
const RSA_BITS_MIN: usize = 2048;

/// Why a brought issuer is refused.
#[derive(Debug, thiserror::Error)]
pub enum BroughtError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is too large.
    #[error("{} has more than {FILE_BYTES_MAX} bytes", .0.display())]
    TooLarge(PathBuf),
    /// The files changed with every reading.
    #[error("the files of {} do not stop changing", .0.display())]
    Restless(PathBuf),
    /// A file holds no certificate, or one that cannot be read.
    #[error("{0} has no certificate that can be read")]
    NoCertificate(&'static str),
    /// A certificate or the key cannot be read.
    #[error("it cannot be read")]
    Pki(#[from] PkiError),
    /// Too many certificates for peers.
    #[error("tls.crt has {0} certificates, peers take a chain of at most {CHAIN_MAX} with leaf and root")]
    ChainTooLong(usize),
    /// The key is another one's.
    #[error("tls.key is not the key of the first certificate in tls.crt")]
    KeyMismatch,
    /// The key is too short.
    #[error("the RSA key has {0} bits, at least {RSA_BITS_MIN} are needed")]
    WeakKey(usize),
    /// Not a certificate authority.
    #[error("{0} is not a certificate authority (no CA:TRUE)")]
    NotAnAuthority(String),
    /// May not sign certificates.
    #[error("{0} may not sign certificates (no keyCertSign)")]
    NoCertSign(String),
    /// The path length does not allow what stands below.
    #[error("{what} allows {allowed} authorities below it, there are {found}")]
    PathLength {
        /// Which certificate.
        what: String,
        /// Its path length.
        allowed: u32,
        /// What it would need.
        found: u32,
    },
    /// The next certificate did not sign this one.
    #[error("{0} is not signed by the certificate after it")]
    Disorder(String),
    /// Leads to no root that is trusted.
    #[error("the chain ends below {issuer:?}, which is neither in ca.crt nor in the trust bundle")]
    NoRoot {
        /// Who signed the last certificate.
        issuer: String,
    },
    /// Has ended.
    #[error("{what} ended {}, this machine's clock says {}", time(*.ended), time(*.now))]
    Ended {
        /// Which certificate.
        what: String,
        /// Its end.
        ended: Seconds,
        /// Our clock.
        now: Seconds,
    },
    /// Has not begun.
    #[error("{what} begins {}, this machine's clock says {}", time(*.begins), time(*.now))]
    NotBegun {
        /// Which certificate.
        what: String,
        /// Its beginning.
        begins: Seconds,
        /// Our clock.
        now: Seconds,
    },
    /// No leaf could be signed.
    #[error("it signs no leaf")]
    Issue(#[from] IssueError),
    /// Peers would refuse its leaves.
    #[error("peers would refuse the leaves that it signs")]
    Peers(#[source] PeerError),
    /// The root cannot stand in a trust bundle.
    #[error("its root cannot stand in a trust bundle")]
    Bundle(#[from] identity::BundleError),
}

fn time(at: Seconds) -> String {
    pki::at(at).map_or_else(|_| at.to_string(), utc)
}

/// What the directory holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Files {
    certificates: Vec<u8>,
    key: Vec<u8>,
    roots: Option<Vec<u8>>,
}

impl fmt::Debug for Files {
    /// The key is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("bytes", &self.certificates.len()).finish_non_exhaustive()
    }
}

impl Files {
    /// Reads the directory, all of it from one moment.
    ///
    /// # Errors
    /// See [`BroughtError`].
    pub fn read(directory: &Path) -> Result<Self, BroughtError> {
        let mut last = Self::read_once(directory);
        for _again in 0..READS_MAX {
            let next = Self::read_once(directory);
            match (last, next) {
                (Ok(one), Ok(two)) if one == two => return Ok(two),
                // A file that is missing in the middle of a replacement may be there in a moment.
                (Err(_), Err(error)) => return Err(error),
                (_, next) => last = next,
            }
        }
        Err(BroughtError::Restless(directory.into()))
    }

    fn read_once(directory: &Path) -> Result<Self, BroughtError> {
        let (certificates, key) = (read(&directory.join("tls.crt"))?, read(&directory.join("tls.key"))?);
        let roots = match read(&directory.join("ca.crt")) {
            Ok(roots) => Some(roots),
            Err(BroughtError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { certificates, key, roots })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BroughtError> {
    let failed = |source| BroughtError::Io { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err(BroughtError::TooLarge(path.into())) } else { Ok(bytes) }
}

/// An issuer that was found good.
#[derive(Clone)]
pub struct Brought {
    /// Digest of the issuer's certificate.
    pub sha256: Sha256,
    /// Digest of its root's.
    pub root_sha256: Sha256,
    /// The issuer's key, PEM.
    pub(crate) key_pem: String,
    chain: Vec<String>,
    valid: (Seconds, Seconds),
    root_pem: String,
    root_valid: (Seconds, Seconds),
}

impl fmt::Debug for Brought {
    /// The key is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Brought").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

impl Brought {
    /// As an issuer of the state.
    pub(crate) fn issuer(&self, id: u32, root: u32, longest_leaf: Seconds, now: Seconds) -> Issuer {
        Issuer {
            id,
            root,
            chain: self.chain.clone(),
            sha256: self.sha256,
            not_before: self.valid.0,
            not_after: self.valid.1,
            key_file: format!("issuer-{id}-key.pem"),
            created: now,
            brought: true,
            longest_leaf,
            leaves_end: None,
        }
    }

    /// The digests of the keys in its chain and of its root's, with names.
    pub(crate) fn keys(&self) -> Result<Vec<(String, Sha256)>, PkiError> {
        let chain = self.chain.iter().enumerate().map(|(at, pem)| (format!("certificate {} of tls.crt", at + 1), pem));
        let all = chain.chain([("the root of the brought issuer".to_owned(), &self.root_pem)]);
        all.map(|(name, pem)| pki::key_of(&name, pem).map(|key| (name, key))).collect()
    }

    /// Its root, as one of the state.
    pub(crate) fn root(&self, id: u32) -> Root {
        Root {
            id,
            r#use: RootUse::Trusted,
            certificate: self.root_pem.clone(),
            sha256: self.root_sha256,
            not_before: self.root_valid.0,
            not_after: self.root_valid.1,
            key_file: None,
        }
    }
}

/// One certificate, in both forms.
struct Certificate {
    name: String,
    der: CertificateDer<'static>,
}

impl Certificate {
    fn parse(&self) -> Result<X509Certificate<'_>, PkiError> {
        pki::parse(&self.name, &self.der)
    }
}

/// Checks a brought issuer at `now`: `trusted` are the roots that are in the bundle already.
///
/// # Errors
/// See [`BroughtError`]; the first broken rule is reported.
pub fn validate(files: &Files, trusted: &[Root], domain: &TrustDomain, now: Seconds) -> Result<Brought, BroughtError> {
    let mut chain = certificates("tls.crt", &files.certificates)?;
    let key_pem = String::from_utf8_lossy(&files.key).into_owned();
    let key = pki::read_key("tls.key", &key_pem)?;
    let root = find_root(&mut chain, files, trusted)?;
    // With the leaf and the root; a root that signs leaves itself stands there once.
    let itself = chain.len() == 1 && chain.iter().all(|only| only.der == root.der);
    if chain.len() + usize::from(!itself) >= CHAIN_MAX {
        return Err(BroughtError::ChainTooLong(chain.len()));
    }
    check_chain(&chain, &root, itself, now)?;
    let own = chain.first().ok_or(BroughtError::NoCertificate("tls.crt"))?;
    check_key(&own.parse()?, &key)?;
    let brought = Brought {
        sha256: pki::sha256(&own.der),
        root_sha256: pki::sha256(&root.der),
        key_pem,
        valid: validity(&own.parse()?),
        chain: chain.iter().map(|certificate| to_pem(&certificate.der)).collect(),
        root_valid: validity(&root.parse()?),
        root_pem: to_pem(&root.der),
    };
    try_a_leaf(&brought, domain, now)?;
    Ok(brought)
}

fn certificates(file: &'static str, pem: &[u8]) -> Result<Vec<Certificate>, BroughtError> {
    let read = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|_| BroughtError::NoCertificate(file))?;
    if read.is_empty() {
        return Err(BroughtError::NoCertificate(file));
    }
    let name = |at: usize| format!("certificate {} of {file}", at + 1);
    Ok(read.into_iter().enumerate().map(|(at, der)| Certificate { name: name(at), der }).collect())
}

/// The root that the chain leads to: one that is trusted, by ca.crt or already. A root at the end of `chain` is taken
/// off, unless it is all there is.
fn find_root(chain: &mut Vec<Certificate>, files: &Files, trusted: &[Root]) -> Result<Certificate, BroughtError> {
    let mut roots = match &files.roots {
        Some(pem) => certificates("ca.crt", pem)?,
        None => Vec::new(),
    };
    for root in trusted {
        let name = format!("root {}", root.id);
        let der = pki::read_certificate(&name, &root.certificate)?;
        roots.push(Certificate { name, der });
    }
    let last = chain.last().ok_or(BroughtError::NoCertificate("tls.crt"))?;
    if let Some(at) = roots.iter().position(|root| root.der == last.der) {
        if chain.len() > 1 {
            chain.pop();
        }
        return Ok(roots.swap_remove(at));
    }
    let parsed = last.parse()?;
    let signed_by = |root: &Certificate| {
        let root = root.parse().ok()?;
        let fits = root.subject().as_raw() == parsed.issuer().as_raw();
        (fits && parsed.verify_signature(Some(root.public_key())).is_ok()).then_some(())
    };
    match roots.iter().position(|root| signed_by(root).is_some()) {
        Some(at) => Ok(roots.swap_remove(at)),
        None => Err(BroughtError::NoRoot { issuer: parsed.issuer().to_string() }),
    }
}

fn check_chain(chain: &[Certificate], root: &Certificate, itself: bool, now: Seconds) -> Result<(), BroughtError> {
    let above_chain = if itself { None } else { Some(root) };
    let all: Vec<&Certificate> = chain.iter().chain(above_chain).collect();
    for (below, certificate) in all.iter().enumerate() {
        let parsed = certificate.parse()?;
        check_authority(&certificate.name, &parsed, u32::try_from(below).unwrap_or(u32::MAX))?;
        check_time(&certificate.name, &parsed, now)?;
        if let Some(above) = all.get(below + 1)
            && parsed.verify_signature(Some(above.parse()?.public_key())).is_err()
        {
            return Err(BroughtError::Disorder(certificate.name.clone()));
        }
    }
    Ok(())
}

fn check_authority(name: &str, parsed: &X509Certificate<'_>, below: u32) -> Result<(), BroughtError> {
    let constraints = parsed.basic_constraints().ok().flatten().map(|constraints| constraints.value);
    let Some(constraints) = constraints.filter(|constraints| constraints.ca) else {
        return Err(BroughtError::NotAnAuthority(name.into()));
    };
    let usage = parsed.key_usage().ok().flatten();
    if !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err(BroughtError::NoCertSign(name.into()));
    }
    match constraints.path_len_constraint {
        Some(allowed) if allowed < below => Err(BroughtError::PathLength { what: name.into(), allowed, found: below }),
        Some(_) | None => Ok(()),
    }
}

fn check_time(name: &str, parsed: &X509Certificate<'_>, now: Seconds) -> Result<(), BroughtError> {
    let (begins, ended) = validity(parsed);
    let what = name.to_owned();
    if now >= ended {
        return Err(BroughtError::Ended { what, ended, now });
    }
    if now < begins { Err(BroughtError::NotBegun { what, begins, now }) } else { Ok(()) }
}

fn check_key(own: &X509Certificate<'_>, key: &KeyPair) -> Result<(), BroughtError> {
    if !pki::is_pair(own, key) {
        return Err(BroughtError::KeyMismatch);
    }
    match own.public_key().parsed() {
        Ok(x509_parser::public_key::PublicKey::RSA(rsa)) if rsa.key_size() < RSA_BITS_MIN => {
            Err(BroughtError::WeakKey(rsa.key_size()))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

fn validity(parsed: &X509Certificate<'_>) -> (Seconds, Seconds) {
    (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp())
}

/// Signs a leaf as it would for a caller and looks at it as a peer would, in both roles.
fn try_a_leaf(brought: &Brought, domain: &TrustDomain, now: Seconds) -> Result<(), BroughtError> {
    let (issuer, root) = (brought.issuer(2, 1, 3600, now), brought.root(1));
    let authority = Authority::assemble(&issuer, &root, &brought.key_pem)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::from)?;
    let id = policy::own_identity(domain).map_err(IssueError::Identity)?;
    let issued = issue::sign(&authority, &key, &id, &[], authority.longest_leaf, pki::at(now)?)?;
    let above = authority.above.iter().map(|pem| pki::read_certificate("tls.crt", pem));
    let chain = std::iter::once(Ok(issued.der)).chain(above).collect::<Result<Vec<_>, _>>()?;
    let bundle = TrustBundle::from_pem(brought.root_pem.as_bytes())?;
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(now).unwrap_or(0)));
    for role in [Role::Client, Role::Server] {
        verify_peer(&chain, &bundle, domain, role, at).map_err(BroughtError::Peers)?;
    }
    Ok(())
}

fn to_pem(der: &CertificateDer<'_>) -> String {
    pem::encode_config(
        &pem::Pem::new("CERTIFICATE", der.as_ref()),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}
