//! Certificates for the peers' mutual TLS: P-256, one root, one leaf for each side, as close to Picket's as they take.

use std::path::PathBuf;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use testkit::RunDir;

/// The DNS name by which nginx verifies the server's side.
pub(crate) const SERVER_NAME: &str = "server.bench";

/// One side's files.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) root: PathBuf,
    /// The URI of the certificate.
    pub(crate) identity: String,
}

/// Both sides' files.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    pub(crate) client: Leaf,
    pub(crate) server: Leaf,
}

impl Certificates {
    /// Makes them in `directory`.
    pub(crate) fn make(directory: &RunDir) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "bench root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        validity(&mut params);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?;
        let file = directory.write("bench-root.pem", &root.pem())?;
        let leaf = |name: &str| -> Result<Leaf> {
            let identity = format!("spiffe://bench/ns/bench/sa/{name}");
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![
                SanType::URI(identity.as_str().try_into()?),
                SanType::DnsName(format!("{name}.bench").try_into()?),
            ];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            validity(&mut params);
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let certificate = params.signed_by(&key, &root)?;
            Ok(Leaf {
                certificate: directory.write(&format!("bench-{name}.pem"), &certificate.pem())?,
                key: directory.write(&format!("bench-{name}.key"), &key.serialize_pem())?,
                root: file.clone(),
                identity,
            })
        };
        Ok(Self { client: leaf("client")?, server: leaf("server")? })
    }
}

/// A day around now, as short as Picket's.
fn validity(params: &mut CertificateParams) {
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::hours(1);
    params.not_after = now + time::Duration::hours(24);
}
