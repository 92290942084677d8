//! Step 3: from hints and first bytes to the protocol, without consuming them.
//!
//! Bytes that were read are handed on with the answer. A stream that says nothing for too long, or nothing that we
//! know, is opaque: detection never refuses and never waits longer than its limit.

use std::{io, time::Duration};

use record::{DetectedBy, Protocol};
use tokio::{net::TcpStream, time::timeout};

use crate::stream::{Prefixed, Stream};

/// Bytes in which a protocol must show itself.
const OPENING_BYTES_MAX: usize = 16 * 1024;
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a stream opened with.
#[derive(Debug)]
pub struct Opening {
    /// The protocol.
    pub protocol: Protocol,
    /// How we know.
    pub detected_by: DetectedBy,
    /// Of a ClientHello: the application protocols offered, and the server's name.
    pub hello: Option<Hello>,
    /// What was read so far.
    pub bytes: Vec<u8>,
    /// The client ended its stream already.
    pub ended: bool,
}

/// What a ClientHello says in clear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// Application protocols (RFC 7301).
    pub alpn: Vec<Vec<u8>>,
    /// The server's name (RFC 6066).
    pub server_name: Option<String>,
}

impl Hello {
    /// True when the client is a proxy of a mesh like ours.
    pub fn is_mesh(&self) -> bool {
        self.alpn.iter().any(|protocol| protocol.starts_with(b"picket/"))
    }
}

/// A stream that is not read: its port says that the server speaks first, or discovery says that it is opaque.
pub fn unread(detected_by: DetectedBy) -> Opening {
    Opening { protocol: Protocol::Tcp, detected_by, hello: None, bytes: Vec::new(), ended: false }
}

/// Reads until the protocol is known, or `limit` has passed.
///
/// # Errors
/// Those of the socket.
///
/// # Cancellation
/// Bytes that were read are lost; the connection must then be closed.
pub async fn opening(stream: TcpStream, limit: Duration) -> io::Result<(TcpStream, Opening)> {
    let mut stream = Stream::Plain(Prefixed::new(Vec::new(), stream));
    let mut bytes = Vec::new();
    let (mut ended, mut late) = (false, false);
    let deadline = tokio::time::Instant::now() + limit;
    let guess = loop {
        if let Some(guess) = guess(&bytes, ended || late) {
            break guess;
        }
        match timeout(deadline.saturating_duration_since(tokio::time::Instant::now()), stream.fill(&mut bytes)).await {
            Ok(read) => ended = read? == 0,
            Err(_) => late = true,
        }
    };
    let detected_by = if late && guess.0 == Protocol::Tcp { DetectedBy::Timeout } else { DetectedBy::FirstBytes };
    let Stream::Plain(plain) = stream else { return Err(io::ErrorKind::InvalidInput.into()) };
    Ok((plain.into_socket(), Opening { protocol: guess.0, detected_by, hello: guess.1, bytes, ended }))
}

/// The protocol that `bytes` open, or `None` when more are needed; with `last`, an answer always.
fn guess(bytes: &[u8], last: bool) -> Option<(Protocol, Option<Hello>)> {
    let tcp = Some((Protocol::Tcp, None));
    let full = bytes.len() >= OPENING_BYTES_MAX;
    if bytes.is_empty() {
        return if last { tcp } else { None };
    }
    if bytes[0] == 0x16 {
        return match hello(bytes) {
            Ok(Some(hello)) => Some((Protocol::Tls, Some(hello))),
            Ok(None) if !last && !full => None,
            Ok(None) | Err(()) => tcp,
        };
    }
    let preface = bytes.len().min(HTTP2_PREFACE.len());
    if bytes[..preface] == HTTP2_PREFACE[..preface] {
        // 18 bytes: nothing else begins like that.
        return if preface >= 18 {
            Some((Protocol::Http2, None))
        } else if last {
            tcp
        } else {
            None
        };
    }
    match http1(bytes) {
        Some(true) => Some((Protocol::Http1, None)),
        Some(false) => tcp,
        None if full => Some((Protocol::Http1, None)),
        None if last => tcp,
        None => None,
    }
}

/// Whether a first line is one of HTTP/1, as far as it has come.
fn http1(bytes: &[u8]) -> Option<bool> {
    let bytes = bytes.trim_ascii_start();
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = bytes.iter().take_while(|byte| is_token(byte)).count();
    if method > 32 || (method < bytes.len() && (method == 0 || bytes[method] != b' ')) {
        return Some(false);
    }
    let line = bytes.split(|&byte| byte == b'\n').next().filter(|line| line.len() < bytes.len())?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Some(line.len() >= 9 && line[line.len() - 9..].starts_with(b" HTTP/") && line[line.len() - 3].is_ascii_digit())
}

/// Reads a ClientHello with rustls: `Ok(None)` while it is not complete.
fn hello(bytes: &[u8]) -> Result<Option<Hello>, ()> {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).map_err(|_| ())? == 0 {
            break;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let alpn = hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect()).unwrap_or_default();
                return Ok(Some(Hello { alpn, server_name: hello.server_name().map(str::to_owned) }));
            }
            Ok(None) => {}
            Err(_) => return Err(()),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: Option<Protocol>) {
        assert_eq!(guess(bytes, false).map(|guess| guess.0), expected, "{:?}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn first_bytes_tell_the_protocol() {
        check(b"GET / HTTP/1.1\r\n", Some(Protocol::Http1));
        check(b"\r\nGET / HTTP/1.1\r\n", Some(Protocol::Http1));
        check(b"BREW /pot HTTP/1.1\n", Some(Protocol::Http1));
        check(b"GET / HTTP/1.1", None);
        check(b"PRI * HT", None);
        check(HTTP2_PREFACE, Some(Protocol::Http2));
        check(b"SET key value\r\n", Some(Protocol::Tcp));
        check(b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Tcp));
        check(b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Protocol::Tcp));
        check(b"", None);
    }

    #[test]
    fn what_stays_unclear_is_opaque() {
        assert_eq!(guess(b"GET /", true).map(|guess| guess.0), Some(Protocol::Tcp));
        assert_eq!(guess(&[0x16, 3, 1], true).map(|guess| guess.0), Some(Protocol::Tcp));
    }

    #[test]
    fn a_client_hello_is_read_also_in_pieces() {
        let config = rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
        let mut config = config;
        config.alpn_protocols = vec![b"picket/h2".to_vec()];
        let mut client = rustls::ClientConnection::new(config.into(), "web.demo".try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        for cut in 1..bytes.len() {
            assert_eq!(hello(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
        let hello = hello(&bytes).unwrap().unwrap();
        assert!(hello.is_mesh());
        assert_eq!(hello.server_name.as_deref(), Some("web.demo"));
    }
}
