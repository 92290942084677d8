//! The calls to the CA: TLS to a server that must prove the CA's identity, the token in the header.
//!
//! Leaves to others: what is asked for, and when.

use std::{sync::Arc, time::Duration};

use api::istio_ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use hyper_util::rt::TokioIo;
use identity::Store;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

use crate::{config::Identity, credentials::Error, trust};

/// How often a connection on which nothing happens is tried.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long the answer may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the CA.
///
/// # Errors
/// When it cannot be reached, or is not who it should be.
///
/// # Cancellation
/// A connection half made is closed.
pub async fn connect(config: &Identity, store: &Arc<Store>) -> Result<Channel, Error> {
    // Its own errors say more than those of a connection that is made inside the channel.
    let mut stream = Some(TokioIo::new(dial(config, store).await?));
    let connect = tower::service_fn(move |_: Uri| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| std::io::Error::other("the connection has ended")) }
    });
    let endpoint = Endpoint::from_shared(format!("http://{}", config.ca_address))
        .map_err(Error::Address)?
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector(connect).await.map_err(Error::Http2)
}

async fn dial(config: &Identity, store: &Arc<Store>) -> Result<TlsStream<TcpStream>, Error> {
    let socket = TcpStream::connect(&config.ca_address).await.map_err(Error::Connect)?;
    socket.set_nodelay(true).map_err(Error::Connect)?;
    // The identity is checked by our own verifier; the address is only what TLS wants to be given.
    let name = ServerName::from(socket.peer_addr().map_err(Error::Connect)?.ip());
    let tls = TlsConnector::from(Arc::new(identity::client_config(store, &config.ca_identity, b"h2")));
    tls.connect(name, socket).await.map_err(|error| match identity::peer_failure(&error) {
        Some(reason) => Error::Peer(reason.clone()),
        None => Error::Handshake(error),
    })
}

/// Puts the token into a call's header.
///
/// # Errors
/// When it cannot be read, or cannot stand there.
pub fn authorize<T>(config: &Identity, request: &mut Request<T>) -> Result<(), Error> {
    let token = trust::read(&config.token_file).map_err(Error::File)?;
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
