//! What foreign peers show: certificates of the mesh's own issuer, and certificates with exactly one thing wrong.
//!
//! Promises one table for all peers and both roles: each [`Case`] says what a proxy must make of it when the peer dials
//! and when it is dialled. Signs with the key in the CA's directory: what picket-ca itself would never sign, its issuer
//! must still not be able to make good.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Eku,
    IsCa, Issuer, KeyPair, KeyUsagePurpose as Usage, SanType,
};
use testkit::{Mesh, RunDir};
use time::{Duration, OffsetDateTime};

/// Whom foreign peers are: a workload of the mesh.
pub const FOREIGN: &str = "spiffe://demo.picket.dev/ns/demo/sa/foreign";
/// Another workload of the mesh.
pub const OTHER: &str = "spiffe://demo.picket.dev/ns/demo/sa/other";

/// What a proxy must make of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is served, as this identity.
    Served(&'static str),
    /// It is refused.
    Refused {
        /// `picket.code`.
        code: &'static str,
        /// A part of `picket.detail`.
        detail: &'static str,
    },
}

/// A certificate and what must come of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// For files, paths and messages.
    pub name: &'static str,
    /// When the peer that shows it dials.
    pub as_client: Verdict,
    /// When it is dialled as [`FOREIGN`].
    pub as_server: Verdict,
    /// Where it is.
    pub shown: Shown,
}

/// The files of a certificate.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The leaf alone.
    pub leaf: PathBuf,
    /// What is sent with the leaf, if anything.
    pub issuers: Option<PathBuf>,
    /// Leaf and issuers.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// An authority with its certificate, PEM.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// A root of its own.
    fn root(params: CertificateParams) -> Result<Self> {
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }
}

/// A leaf with its key, PEM.
struct Leaf {
    pem: String,
    key: KeyPair,
}

/// Makes the certificates of one mesh.
struct Pki<'a> {
    directory: &'a RunDir,
    /// The mesh's own issuer.
    ours: Authority,
    root_pem: String,
    cases: Vec<Case>,
}

/// All cases, in files of the mesh's directory.
///
/// # Errors
/// When the CA's directory cannot be read, or a certificate cannot be made.
pub fn cases(mesh: &Mesh) -> Result<Vec<Case>> {
    let authority = mesh.directory.path().join("ca");
    let read = |name: &str| read(&authority, name);
    let pem = read("issuer.pem")?;
    let key = KeyPair::from_pem(&read(&issuer_key(&authority)?)?)?;
    let issuer = Issuer::from_ca_cert_pem(&pem, key)?;
    let ours = Authority { issuer, pem };
    let mut pki = Pki { directory: &mesh.directory, ours, root_pem: read("root.pem")?, cases: Vec::new() };
    pki.served()?;
    pki.strangers()?;
    pki.chains()?;
    pki.times()?;
    pki.usages()?;
    pki.names()?;
    Ok(pki.cases)
}

/// A trust bundle that is not the mesh's, for peers that trust somebody else.
///
/// # Errors
/// When it cannot be made.
pub fn other_bundle(directory: &RunDir) -> Result<PathBuf> {
    directory.write("other-root.pem", &Authority::root(authority_params("stranger"))?.pem)
}

/// The name of the only issuer's key: it carries the issuer's number.
fn issuer_key(directory: &Path) -> Result<String> {
    let mut names = std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let is_key = |name: &Result<String>| {
        name.as_ref().is_ok_and(|name| name.starts_with("issuer-") && name.ends_with("-key.pem"))
    };
    names.find(is_key).context("the CA's directory has no issuer key")?
}

fn read(directory: &Path, name: &str) -> Result<String> {
    std::fs::read_to_string(directory.join(name)).with_context(|| format!("cannot read the CA's {name}"))
}

impl Pki<'_> {
    fn served(&mut self) -> Result<()> {
        let served = Verdict::Served(FOREIGN);
        self.leaf("good", served, served, |_| ())?;
        self.leaf("no-extended-key-usage", served, served, |params| params.extended_key_usages.clear())?;
        self.leaf("a-dns-name-too", served, served, |params| params.subject_alt_names.push(dns_name("foreign")))?;
        let leaf = issue(&self.ours, &leaf_params())?;
        let issuers = [self.ours.pem.clone(), self.root_pem.clone()];
        self.add("root-sent-too", served, served, &leaf, &issuers)?;
        let mismatch = refused("peer_identity_mismatch", "expected was spiffe://demo.picket.dev/ns/demo/sa/foreign");
        self.leaf("another-workload", Verdict::Served(OTHER), mismatch, |params| named(params, OTHER))
    }

    fn strangers(&mut self) -> Result<()> {
        let untrusted = refused("peer_certificate_untrusted", "does not lead to a root of the trust bundle");
        let stranger = Authority::root(authority_params("stranger"))?;
        let leaf = issue(&stranger, &leaf_params())?;
        self.add("wrong-root", untrusted, untrusted, &leaf, std::slice::from_ref(&stranger.pem))?;
        // It names our issuer, which is sent with it, and was signed with another key.
        let forger = Issuer::from_ca_cert_pem(&self.ours.pem, KeyPair::generate()?)?;
        let forger = Authority { issuer: forger, pem: self.ours.pem.clone() };
        let leaf = issue(&forger, &leaf_params())?;
        self.add("forged-signature", untrusted, untrusted, &leaf, &[forger.pem])?;
        let key = KeyPair::generate()?;
        let self_signed = Leaf { pem: leaf_params().self_signed(&key)?.pem(), key };
        self.add("self-signed", untrusted, untrusted, &self_signed, &[])?;
        let leaf = issue(&self.ours, &leaf_params())?;
        self.add("issuer-not-sent", untrusted, untrusted, &leaf, &[])?;
        // 1.3.6.1.4.1.55555.1: nobody's.
        let unknown = critical(&[1, 3, 6, 1, 4, 1, 55555, 1], &[5, 0]);
        self.leaf("unknown-critical-extension", untrusted, untrusted, |params| params.custom_extensions.push(unknown))?;
        let foreign_domain = refused("peer_trust_domain_mismatch", "only the trust domain demo.picket.dev is trusted");
        for (name, uri) in [
            ("wrong-trust-domain", "spiffe://other.example/ns/demo/sa/foreign"),
            ("longer-trust-domain", "spiffe://demo.picket.dev.example/ns/demo/sa/foreign"),
            ("shorter-trust-domain", "spiffe://picket.dev/ns/demo/sa/foreign"),
        ] {
            self.leaf(name, foreign_domain, foreign_domain, |params| named(params, uri))?;
        }
        Ok(())
    }

    fn chains(&mut self) -> Result<()> {
        let no_authority = refused("peer_certificate_usage", "an issuer of the chain is no certificate authority");
        // A workload that signs for others with its own good certificate.
        let key = KeyPair::generate()?;
        let params = leaf_params();
        let pem = params.signed_by(&key, &self.ours.issuer)?.pem();
        let workload = Authority { issuer: Issuer::new(params, key), pem };
        let leaf = issue(&workload, &leaf_params())?;
        let issuers = [workload.pem, self.ours.pem.clone()];
        self.add("signed-by-a-workload", no_authority, no_authority, &leaf, &issuers)?;
        let too_long = refused("peer_certificate_usage", "5 certificates, more than 4");
        let leaf = issue(&self.ours, &leaf_params())?;
        let root = || self.root_pem.clone();
        let issuers = [self.ours.pem.clone(), root(), root(), root()];
        self.add("chain-too-long", too_long, too_long, &leaf, &issuers)
    }

    fn times(&mut self) -> Result<()> {
        let expired = refused("peer_certificate_expired", "a certificate of the peer ended 2");
        self.leaf("expired", expired, expired, |params| valid(params, -7200, -60))?;
        let early = refused("peer_certificate_not_yet_valid", "a certificate of the peer begins 2");
        self.leaf("not-yet-valid", early, early, |params| valid(params, 3600, 7200))
    }

    fn usages(&mut self) -> Result<()> {
        let served = Verdict::Served(FOREIGN);
        let usage = |detail| refused("peer_certificate_usage", detail);
        let server_only = usage("the extended key usage does not allow clientAuth");
        self.leaf("server-auth-only", server_only, served, |params| {
            params.extended_key_usages = vec![Eku::ServerAuth]
        })?;
        let client_only = usage("the extended key usage does not allow serverAuth");
        self.leaf("client-auth-only", served, client_only, |params| {
            params.extended_key_usages = vec![Eku::ClientAuth]
        })?;
        let purposes = [Eku::CodeSigning, Eku::EmailProtection, Eku::Any];
        for (name, purpose) in ["code-signing", "email-protection", "any-purpose"].into_iter().zip(purposes) {
            self.leaf(name, server_only, client_only, |params| params.extended_key_usages = vec![purpose])?;
        }
        let authority = usage("the leaf is a certificate authority");
        let unconstrained = IsCa::Ca(BasicConstraints::Unconstrained);
        self.leaf("leaf-is-an-authority", authority, authority, |params| params.is_ca = unconstrained)?;
        let signs = usage("the leaf may sign certificates or revocation lists");
        let usages = vec![Usage::DigitalSignature, Usage::KeyCertSign];
        self.leaf("leaf-may-sign-certificates", signs, signs, |params| params.key_usages = usages)?;
        let silent = usage("the leaf may not sign handshakes");
        self.leaf("no-digital-signature", silent, silent, |params| params.key_usages = vec![Usage::KeyAgreement])
    }

    fn names(&mut self) -> Result<()> {
        let ambiguous = refused("peer_identity_ambiguous", "2 URIs in its subject alternative name");
        for (name, second) in [("two-identities", OTHER), ("two-uris", "https://example.org/")] {
            self.leaf(name, ambiguous, ambiguous, |params| params.subject_alt_names.push(uri_name(second)))?;
        }
        let missing = refused("peer_identity_missing", "no SPIFFE ID");
        self.leaf("common-name-only", missing, missing, |params| {
            params.subject_alt_names.clear();
            params.distinguished_name.push(DnType::CommonName, FOREIGN);
        })?;
        self.leaf("dns-name-only", missing, missing, |params| params.subject_alt_names = vec![dns_name("foreign")])?;
        let malformed = refused("peer_identity_malformed", "is not a SPIFFE ID");
        for (name, uri) in [
            ("upper-case-trust-domain", "spiffe://DEMO.picket.dev/ns/demo/sa/foreign"),
            ("upper-case-scheme", "SPIFFE://demo.picket.dev/ns/demo/sa/foreign"),
            ("other-scheme", "https://demo.picket.dev/ns/demo/sa/foreign"),
            ("port-in-trust-domain", "spiffe://demo.picket.dev:443/ns/demo/sa/foreign"),
            ("user-in-trust-domain", "spiffe://foreign@demo.picket.dev/ns/demo/sa/foreign"),
            ("no-trust-domain", "spiffe:///ns/demo/sa/foreign"),
            ("trailing-slash", "spiffe://demo.picket.dev/ns/demo/sa/foreign/"),
            ("dot-segment", "spiffe://demo.picket.dev/ns/demo/sa/../foreign"),
            ("percent-encoded", "spiffe://demo.picket.dev/ns/demo/sa/%66oreign"),
            ("query", "spiffe://demo.picket.dev/ns/demo/sa/foreign?a=b"),
            ("null-byte", "spiffe://demo.picket.dev/ns/demo/sa/foreign\0.example"),
            ("path-of-another-shape", "spiffe://demo.picket.dev/workload/foreign"),
        ] {
            self.leaf(name, malformed, malformed, |params| named(params, uri))?;
        }
        let unreadable = refused("peer_certificate_malformed", "a certificate of the peer is malformed");
        // A subject alternative name that ends in the middle of its first name.
        let cut = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0x04, 0x86, 0x20, b's', b'p']);
        self.leaf("unreadable-name", unreadable, unreadable, |params| {
            params.subject_alt_names.clear();
            params.custom_extensions.push(cut);
        })
    }

    /// Adds a leaf of our own issuer after one change.
    fn leaf(
        &mut self,
        name: &'static str,
        as_client: Verdict,
        as_server: Verdict,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<()> {
        let mut params = leaf_params();
        change(&mut params);
        let leaf = issue(&self.ours, &params)?;
        let issuers = [self.ours.pem.clone()];
        self.add(name, as_client, as_server, &leaf, &issuers)
    }

    fn add(
        &mut self,
        name: &'static str,
        as_client: Verdict,
        as_server: Verdict,
        leaf: &Leaf,
        issuers: &[String],
    ) -> Result<()> {
        let write = |suffix: &str, content: &str| self.directory.write(&format!("{name}.{suffix}.pem"), content);
        let issuers = issuers.concat();
        let shown = Shown {
            leaf: write("leaf", &leaf.pem)?,
            issuers: if issuers.is_empty() { None } else { Some(write("issuers", &issuers)?) },
            chain: write("chain", &format!("{}{issuers}", leaf.pem))?,
            key: write("key", &leaf.key.serialize_pem())?,
        };
        self.cases.push(Case { name, as_client, as_server, shown });
        Ok(())
    }
}

fn refused(code: &'static str, detail: &'static str) -> Verdict {
    Verdict::Refused { code, detail }
}

fn issue(authority: &Authority, params: &CertificateParams) -> Result<Leaf> {
    let key = KeyPair::generate()?;
    Ok(Leaf { pem: params.signed_by(&key, &authority.issuer)?.pem(), key })
}

/// As picket-ca makes them.
fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    named(&mut params, FOREIGN);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![Usage::DigitalSignature];
    params.extended_key_usages = vec![Eku::ClientAuth, Eku::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params, -60, 3600);
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![Usage::KeyCertSign];
    valid(&mut params, -60, 3600);
    params
}

fn named(params: &mut CertificateParams, uri: &str) {
    params.subject_alt_names = vec![uri_name(uri)];
}

/// Sets the validity in seconds around the current time.
fn valid(params: &mut CertificateParams, from: i64, to: i64) {
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now + Duration::seconds(from), now + Duration::seconds(to));
}

fn critical(oid: &[u64], content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(true);
    extension
}

fn uri_name(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("the names above are ASCII"))
}

fn dns_name(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("the names above are ASCII"))
}

/// Credentials of a workload that a new root vouches for, as picket-ca makes them; and that root, PEM.
///
/// # Errors
/// When a key or a certificate cannot be made.
pub fn workload(id: &str) -> Result<(String, identity::Credentials)> {
    let key = KeyPair::generate()?;
    let params = authority_params("root");
    let root = params.self_signed(&key)?.pem();
    let authority = Authority { issuer: Issuer::new(params, key), pem: root.clone() };
    let mut params = leaf_params();
    named(&mut params, id);
    let leaf = issue(&authority, &params)?;
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(leaf.key.serialize_der().into());
    Ok((root, identity::Credentials::from_pem(leaf.pem.as_bytes(), key)?))
}
