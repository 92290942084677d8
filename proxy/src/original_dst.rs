//! Step 2: where the client meant to go, or why we cannot know.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::error::ConnectionError;

/// Removes the mapping of IPv4 into IPv6 that a dual-stack listener sees.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Asks the kernel where the client at `source` wanted to go before it was redirected to us.
///
/// # Errors
/// When the kernel does not know, or when the client dialled one of `own_ports` at this very address: forwarding it
/// would come back to us.
pub fn resolve(stream: &TcpStream, source: SocketAddr, own_ports: &[u16]) -> Result<SocketAddr, ConnectionError> {
    let local = || stream.local_addr().map(unmapped).map_err(ConnectionError::OriginalDestination);
    let socket = SockRef::from(stream);
    let found = if unmapped(source).is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let address = match found.map(|address| address.as_socket().map(unmapped)) {
        Ok(Some(address)) => address,
        Ok(None) => local()?,
        // Without a redirect of this connection there is no entry: it was dialled as it is.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => local()?,
        Err(error) => return Err(ConnectionError::OriginalDestination(error)),
    };
    // Of the port alone, because our own address costs one more question.
    let is_own = own_ports.contains(&address.port()) && address.ip() == local()?.ip();
    if is_own { Err(ConnectionError::Loop(address)) } else { Ok(address) }
}
