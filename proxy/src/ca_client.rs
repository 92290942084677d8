//! The calls to the CA: TLS to a server that must prove the CA's identity, the token in the header.
//!
//! Leaves to others: what is asked for, and when.

use std::sync::Arc;

use api::istio_ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use hyper_util::rt::TokioIo;
use identity::Store;
use tokio::net::TcpStream;
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    config::Identity,
    credentials::{self, Error},
};

/// How often a connection on which nothing happens is tried, and how long the answer may take.
const KEEP_ALIVE: (std::time::Duration, std::time::Duration) =
    (std::time::Duration::from_secs(30), std::time::Duration::from_secs(10));

/// A connection to the CA.
///
/// # Errors
/// When it cannot be reached, or is not who it should be.
///
/// # Cancellation
/// A connection half made is closed.
pub async fn connect(config: &Identity, store: &Arc<Store>) -> Result<Channel, Error> {
    let tls = Arc::new(identity::client_config(store, &config.ca_identity, b"h2"));
    let address = config.ca_address.clone();
    let connect = tower::service_fn(move |_: Uri| {
        let (tls, address) = (tokio_rustls::TlsConnector::from(Arc::clone(&tls)), address.clone());
        async move {
            let socket = TcpStream::connect(&address).await?;
            // The identity is checked by our own verifier; the address is only what TLS wants to be given.
            let name = rustls_pki_types::ServerName::from(socket.peer_addr()?.ip());
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, socket).await?))
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{}", config.ca_address))
        .map_err(Error::Address)?
        .http2_keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1)
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector(connect).await.map_err(Error::Connect)
}

/// Puts the token into a call's header.
///
/// # Errors
/// When it cannot be read, or cannot stand there.
pub fn authorize<T>(config: &Identity, request: &mut Request<T>) -> Result<(), Error> {
    let token = credentials::read(&config.token_file)?;
    let mut bearer = b"Bearer ".to_vec();
    bearer.extend_from_slice(token.trim_ascii());
    let bearer = std::str::from_utf8(&bearer).ok().and_then(|text| MetadataValue::try_from(text).ok());
    let mut bearer: MetadataValue<_> = bearer.ok_or(Error::Token)?;
    bearer.set_sensitive(true);
    request.metadata_mut().insert("authorization", bearer);
    Ok(())
}

/// Asks the CA for a certificate: the chain, PEM, leaf first.
///
/// # Errors
/// What the connection or the CA says.
pub async fn create_certificate(config: &Identity, store: &Arc<Store>, csr: String) -> Result<String, Error> {
    let channel = connect(config, store).await?;
    let mut request = Request::new(IstioCertificateRequest { csr, ..Default::default() });
    authorize(config, &mut request)?;
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
    Ok(answer.map_err(|status| Error::Refused(Box::new(status)))?.into_inner().cert_chain.join("\n"))
}
