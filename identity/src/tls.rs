//! The TLS of the mesh: configurations for rustls, and the reasons read back out of its errors.
//!
//! Promises: TLS 1.3 only; both sides show a certificate; X25519MLKEM768 is preferred; no tickets, no resumption and
//! no early data, so that every connection is verified against the certificates and roots of its own time; resolvers
//! and verifiers read the [`Store`] at each handshake, so a renewal needs no new configuration. A server name is
//! neither sent nor looked at: the expected identity is part of the client's configuration. Leaves to others: sockets,
//! timeouts, and what is done with a connection after its handshake.

use std::io;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, PeerIncompatible, ServerConfig, SignatureScheme, SupportedCipherSuite,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::peer::{self, PeerError, Role};
use crate::{Leaf, SpiffeId, Store, TrustBundle};

/// The hop carries HTTP/2.
pub const ALPN_H2: &[u8] = b"picket/h2";
/// The hop carries HTTP/1.1 or HTTP/1.0.
pub const ALPN_HTTP1: &[u8] = b"picket/http1";
/// The hop carries bytes that nobody looks into.
pub const ALPN_TCP: &[u8] = b"picket/tcp";
/// The trust bundle stream between a proxy and the CA.
pub const ALPN_TRUST: &[u8] = b"picket/trust";

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        // AES-128 first: a tenth less work in bulk, and the hybrid key exchange does not depend on it.
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// The cryptography of the mesh (aws-lc-rs), the same in all of Picket.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// The configuration of the called side. `alpn` lists what is spoken, best first.
pub fn server_config(store: &Arc<Store>, alpn: &[&[u8]]) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider above has suites for TLS 1.3")
        .with_client_cert_verifier(Arc::new(Verifier { store: store.clone(), expected: None }))
        .with_cert_resolver(Arc::new(Resolver(store.clone())));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}

/// The configuration of the calling side, for one expected identity and one protocol.
pub fn client_config(store: &Arc<Store>, expected: &SpiffeId, alpn: &[u8]) -> ClientConfig {
    client(provider(), store, expected, alpn)
}

/// As [`client_config`], for the trust bundle stream: the CA keeps it with suites alone whose keys have 256 bits.
pub fn trust_client_config(store: &Arc<Store>, expected: &SpiffeId) -> ClientConfig {
    let mut provider = CryptoProvider::clone(&PROVIDER);
    let has_long_keys =
        |suite: &SupportedCipherSuite| suite.tls13().is_some_and(|suite| suite.aead_alg.key_len() == 32);
    provider.cipher_suites.retain(has_long_keys);
    client(Arc::new(provider), store, expected, ALPN_TRUST)
}

fn client(provider: Arc<CryptoProvider>, store: &Arc<Store>, expected: &SpiffeId, alpn: &[u8]) -> ClientConfig {
    let verifier = Verifier { store: store.clone(), expected: Some(expected.clone()) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider above has suites for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(Resolver(store.clone())));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    config
}

/// The certificate of the peer, which plays `role`, of a finished handshake. `before` are the roots of before it; when they
/// were replaced meanwhile, the peer is verified again. Who was denied meanwhile is for the caller to see.
///
/// # Errors
/// Why it is refused now.
pub fn peer_leaf(
    session: &CommonState,
    store: &Store,
    before: Option<&Arc<TrustBundle>>,
    role: Role,
) -> Result<Leaf, PeerError> {
    store.leaf(session.peer_certificates().unwrap_or_default(), before, role, UnixTime::now())
}

/// Why *we* refused the peer, when `error` says that we did.
pub fn peer_error(error: &Error) -> Option<&PeerError> {
    if let Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) = error {
        return reason.downcast_ref();
    }
    matches!(error, Error::NoCertificatesPresented).then_some(&PeerError::CertificateMissing)
}

/// As [`peer_error`], for the error of a tokio-rustls stream.
pub fn peer_failure(error: &io::Error) -> Option<&PeerError> {
    peer_error(tls_error(error)?)
}

/// True when the peer ended the handshake because of *our* certificate, or for the want of one (RFC 8446, section
/// 6.2). With TLS 1.3 a client learns this only at its first read after the handshake.
pub fn refused_by_peer(error: &io::Error) -> bool {
    let Some(Error::AlertReceived(alert)) = tls_error(error) else { return false };
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

/// True when the two sides share no version: the peer offers no TLS 1.3, or refuses it.
pub fn version_unsupported(error: &io::Error) -> bool {
    matches!(
        tls_error(error),
        Some(
            Error::AlertReceived(AlertDescription::ProtocolVersion)
                | Error::PeerIncompatible(
                    PeerIncompatible::SupportedVersionsExtensionRequired
                        | PeerIncompatible::ServerDoesNotSupportTls12Or13
                        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                        | PeerIncompatible::Tls12NotOffered
                        | PeerIncompatible::Tls12NotOfferedOrEnabled
                )
        )
    )
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Shows the certificate of the moment.
#[derive(Debug)]
struct Resolver(Arc<Store>);

impl Resolver {
    fn certified_key(&self) -> Option<Arc<CertifiedKey>> {
        self.0.current().map(|credentials| credentials.certified_key.clone())
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified_key()
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified_key()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A handshake came before the first trust bundle: nobody can be trusted, and it is not the peer's fault.
#[derive(Debug, thiserror::Error)]
#[error("no trust bundle has been set yet")]
struct NoTrustBundle;

/// Verifies peers of either role against the store of the moment.
#[derive(Debug)]
struct Verifier {
    store: Arc<Store>,
    expected: Option<SpiffeId>,
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), Error> {
        let Some(bundle) = self.store.bundle() else { return Err(Error::Other(OtherError(Arc::new(NoTrustBundle)))) };
        let found = peer::verify(leaf, issuers, &bundle, self.store.trust_domain(), role, now).map_err(refuse)?;
        if let Some(expected) = self.expected.as_ref().filter(|expected| **expected != found) {
            return Err(refuse(PeerError::IdentityMismatch { expected: expected.clone(), found }));
        }
        let denied = self.store.denied();
        // The chain is read a second time only while somebody is denied.
        let read = || Leaf::read(leaf, issuers, &bundle);
        match (!denied.is_empty()).then(read).flatten().and_then(|leaf| denied.find(&leaf)) {
            Some(denial) => Err(refuse(PeerError::Denied { id: found, denial })),
            None => Ok(()),
        }
    }

    fn algorithms() -> &'static WebPkiSupportedAlgorithms {
        &PROVIDER.signature_verification_algorithms
    }
}

fn refuse(reason: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}

/// TLS 1.2 is never offered, so a signature of it is a fault of the library.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, Role::Server, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, Self::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A workload has one certificate; naming our roots would tell strangers about them and help nobody.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, Role::Client, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, Self::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::algorithms().supported_schemes()
    }
}
