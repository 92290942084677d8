//! Certificates for this crate's tests: good ones, and ones with exactly one thing wrong.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use time::{Duration, OffsetDateTime};

pub(crate) const TRUST_DOMAIN: &str = "demo.picket.dev";

pub(crate) fn now() -> UnixTime {
    UnixTime::now()
}

/// `text` as a SPIFFE ID of the test's trust domain.
pub(crate) fn id(namespace: &str, service_account: &str) -> crate::SpiffeId {
    crate::SpiffeId::new(&TRUST_DOMAIN.parse().unwrap(), namespace, service_account).unwrap()
}

/// A root or an issuer with its key.
pub(crate) struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority(name);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// An issuer signed by `self`, after `change` was made to a good one.
    pub(crate) fn issuer(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = authority(name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(crate) fn bundle(&self) -> crate::TrustBundle {
        crate::TrustBundle::from_pem(self.pem().as_bytes()).unwrap()
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    valid(&mut params, -3600, 86400);
    params
}

/// Sets the validity in seconds around the current time.
pub(crate) fn valid(params: &mut CertificateParams, from: i64, to: i64) {
    params.not_before = OffsetDateTime::now_utc() + Duration::seconds(from);
    params.not_after = OffsetDateTime::now_utc() + Duration::seconds(to);
}

/// A leaf that is about to be issued; all of it may be changed.
pub(crate) struct Leaf {
    pub(crate) params: CertificateParams,
}

/// A leaf with its key.
pub(crate) struct Issued {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) pem: String,
    key: KeyPair,
}

impl Leaf {
    /// A good leaf for one URI, which need not be good.
    pub(crate) fn new(uri: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri_name(uri)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        valid(&mut params, -60, 3600);
        Self { params }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        change(&mut self.params);
        self
    }

    pub(crate) fn issue(&self, authority: &Authority) -> Issued {
        let key = KeyPair::generate().unwrap();
        let certificate = self.params.signed_by(&key, &authority.issuer).unwrap();
        Issued { der: certificate.der().clone(), pem: certificate.pem(), key }
    }
}

impl Issued {
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }
}

pub(crate) fn uri_name(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}
