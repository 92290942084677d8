//! Records to a syslog server: RFC 5424 with structured data, over TLS (RFC 5425) or, when asked for, plain TCP (RFC 6587),
//! both with octet counts.
//!
//! Syslog has no acknowledgement. What is promised instead: a record counts as delivered when its bytes were written, the
//! server's kernel has acknowledged them, and the connection was whole for the settle time after that; or when the server
//! ended the connection in order after we did, with everything in its kernel. After a reset everything that was not delivered in this sense is sent again,
//! with the same `log.record.uid`. A server that takes bytes, and dies later than the settle time without having stored them,
//! loses them unseen; nothing in the protocol can show that.

mod encode;
mod connection;
mod deliver;
mod unacknowledged;

use std::{path::PathBuf, time::Duration};

use crate::{Spooled, backoff::Backoff};
use connection::Target;
use deliver::{Delivery, Fed};
pub use encode::Format;

/// How long to wait at most before the server is tried again.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A syslog server and what it is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `tls://host:port`, or `tcp://host:port` for clear text.
    pub endpoint: String,
    /// Roots of the server's certificate, PEM; `tls` needs them.
    pub roots: Option<PathBuf>,
    /// Our certificate chain and its key, PEM, where the server asks for one.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// How long connecting with its handshake may take.
    pub timeout: Duration,
    /// How long a connection must be whole after the bytes of a record were acknowledged.
    pub settle: Duration,
    /// How long nothing is delivered before that is an alert.
    pub away_after: Duration,
    /// How messages look.
    pub format: Format,
}

/// Why a configuration cannot be used, or a server not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The scheme is missing or unknown, or there is no port; clear text must be asked for.
    #[error("endpoint {0:?} must be tls://host:port or, for clear text, tcp://host:port")]
    Endpoint(String),
    /// `tls` without roots.
    #[error("endpoint {0:?} needs `roots`, the certificates to trust")]
    NoRoots(String),
    /// A file cannot be read, or is not what it should be.
    #[error("{0:?} cannot be used: {1}")]
    File(PathBuf, String),
    /// The TLS settings are refused.
    #[error("the TLS settings are refused")]
    Tls(#[source] rustls::Error),
    /// The server cannot be reached, or the connection broke.
    #[error("{0}")]
    Connection(&'static str, #[source] std::io::Error),
}

/// Sends what a spool holds to a syslog server.
#[derive(Debug)]
pub struct Syslog {
    target: Target,
    config: Config,
}

impl Syslog {
    /// Checks the configuration, its files included; connects at the first record.
    ///
    /// # Errors
    /// Names what is wrong.
    pub fn new(config: Config) -> Result<Self, Error> {
        let target = Target::new(&config)?;
        Ok(Self { target, config })
    }

    /// Sends until all senders are gone and everything was delivered; after `drain` it goes on for at most `deadline`, and
    /// what is left then stays for the next start.
    ///
    /// # Cancellation
    /// Nothing is lost: what was not delivered is sent again after the next start.
    pub async fn run(self, mut spooled: Spooled, drain: impl Future<Output = ()>, deadline: Duration) {
        let late = async {
            drain.await;
            tokio::time::sleep(deadline).await;
        };
        tokio::select! {
            () = self.send_all(&mut spooled) => {}
            () = late => tracing::info!("the syslog server did not take the last records in time; they stay in the spool"),
        }
        // The writer ends when the last sender is gone, which is after the drain.
        let _joined = tokio::task::spawn_blocking(move || spooled.join()).await;
    }

    /// Connects again and again, until all is delivered.
    async fn send_all(&self, spooled: &mut Spooled) {
        let mut delivery = Delivery::new(&self.config);
        let mut backoff = Backoff::default();
        loop {
            let Some(waited) = spooled.wait_for_records().await else { return };
            if waited {
                delivery.had_nothing();
            }
            let error = match self.target.connect().await {
                Ok(connection) => {
                    let before = delivery.delivered();
                    match delivery.feed(connection, spooled).await {
                        Ok(Fed::All) => return,
                        Ok(Fed::Idle) => {
                            backoff = Backoff::default();
                            continue;
                        }
                        Err(error) => {
                            // One that resets every connection at once is not asked without a pause either.
                            if delivery.delivered() > before {
                                backoff = Backoff::default();
                            }
                            error
                        }
                    }
                }
                Err(error) => error,
            };
            if let Some(reader) = &mut spooled.reader {
                reader.rewind();
            }
            delivery.is_away(&error, spooled);
            tokio::time::sleep(backoff.next(PAUSE_MAX)).await;
        }
    }
}
