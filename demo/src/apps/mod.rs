//! The programs that run in the demo's pods: servers and load generators that know nothing of Picket.

pub(crate) mod http;
pub(crate) mod grpc;
pub(crate) mod line;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Pause between two requests of a load generator.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// What a load generator did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Connections opened.
    pub(crate) connections: u64,
    /// Requests sent: all were answered, or the load generator fails.
    pub(crate) requests: u64,
    /// Of these, answered with an error by the application.
    pub(crate) errors: u64,
}

impl Sent {
    /// One line for whoever started the load generator.
    pub(crate) fn to_json(self) -> String {
        json!({ "connections": self.connections, "requests": self.requests, "errors": self.errors }).to_string()
    }

    /// Reads [`Sent::to_json`].
    pub(crate) fn from_json(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text.trim()).with_context(|| format!("not a load report: {text}"))?;
        let number = |key: &str| value[key].as_u64().with_context(|| format!("no {key} in {text}"));
        Ok(Self { connections: number("connections")?, requests: number("requests")?, errors: number("errors")? })
    }
}

/// Calls `once` with 0, 1, 2 … until `time` is over.
fn repeat(time: Duration, mut once: impl FnMut(u64) -> Result<()>) -> Result<()> {
    let end = Instant::now() + time;
    for number in 0.. {
        if Instant::now() >= end {
            break;
        }
        once(number)?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use super::*;

    fn free_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
    }

    fn check(serve: fn(SocketAddr) -> Result<()>, load: fn(SocketAddr, Duration, &str) -> Result<Sent>) -> Sent {
        let address = free_address();
        std::thread::spawn(move || serve(address));
        testkit::until("the server", Duration::from_secs(5), || {
            Ok(std::net::TcpStream::connect(address).is_ok().then_some(()))
        })
        .unwrap();
        let sent = load(address, Duration::from_millis(300), "marker").unwrap();
        assert!(sent.requests > 2 && sent.connections > 0, "{sent:?}");
        assert_eq!(Sent::from_json(&sent.to_json()).unwrap(), sent);
        sent
    }

    #[test]
    fn each_load_generator_is_answered_by_its_server() {
        assert!(check(http::serve, http::load).errors > 0, "some requests are meant to fail");
        assert_eq!(check(grpc::serve, grpc::load).errors, 0);
        assert_eq!(check(line::serve, line::load).errors, 0);
    }
}
