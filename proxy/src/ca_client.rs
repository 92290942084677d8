//! The ways to the CA: TLS to a server that must prove the CA's identity, the token in the header of a call or in the first
//! message of a stream.
//!
//! Leaves to others: what is asked for, and when.

use std::{sync::Arc, time::Duration};

use api::{
    follow::Stream,
    istio_ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
    trust::Status,
};
use hyper_util::rt::TokioIo;
use identity::Store;
use rustls::ClientConfig;
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

/// A connection for calls.
async fn connect(config: &Identity, store: &Arc<Store>) -> Result<Channel, Error> {
    // Its own errors say more than those of a connection that is made inside the channel.
    let tls = identity::client_config(store, &config.ca_identity, b"h2");
    let mut stream = Some(TokioIo::new(dial(config, tls).await?));
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

async fn dial(config: &Identity, tls: ClientConfig) -> Result<TlsStream<TcpStream>, Error> {
    let socket = TcpStream::connect(&config.ca_address).await.map_err(Error::Connect)?;
    socket.set_nodelay(true).map_err(Error::Connect)?;
    // The identity is checked by our own verifier; the address is only what TLS wants to be given.
    let name = ServerName::from(socket.peer_addr().map_err(Error::Connect)?.ip());
    TlsConnector::from(Arc::new(tls)).connect(name, socket).await.map_err(|error| {
        match identity::peer_failure(&error) {
            Some(reason) => Error::Peer(reason.clone()),
            None => Error::Handshake(error),
        }
    })
}

/// A trust bundle stream that begins with what `status` says once the connection stands.
///
/// # Errors
/// When the CA cannot be reached, or is not who it should be; when the token cannot be read.
///
/// # Cancellation
/// A connection half made is closed.
pub async fn follow(
    config: &Identity,
    store: &Arc<Store>,
    status: impl FnOnce() -> Status,
) -> Result<Stream<TlsStream<TcpStream>>, Error> {
    let token = token(config)?;
    let connection = dial(config, identity::trust_client_config(store, &config.ca_identity)).await?;
    Stream::open(connection, &token, status()).await.map_err(|status| Error::Refused(Box::new(status)))
}

fn token(config: &Identity) -> Result<String, Error> {
    let token = trust::read(&config.token_file).map_err(Error::File)?;
    let token = std::str::from_utf8(token.trim_ascii()).map_err(|_| Error::Token)?;
    Ok(token.to_owned())
}

/// Puts the token into a call's header.
fn authorize<T>(config: &Identity, request: &mut Request<T>) -> Result<(), Error> {
    let bearer = format!("Bearer {}", token(config)?);
    let mut bearer: MetadataValue<_> = MetadataValue::try_from(bearer).map_err(|_| Error::Token)?;
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
