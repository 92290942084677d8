//! How many bytes of a TCP connection the peer's kernel has not acknowledged, and whether both sides still have it open: asked
//! of our own kernel through `NETLINK_SOCK_DIAG` (sock_diag(7)), which needs no privilege.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto, socket_with};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
const HEADER_BYTES: usize = 16;
/// Where `idiag_state` is in `struct inet_diag_msg`.
const STATE_AT: usize = 1;
/// Where `idiag_wqueue` is in it.
const WRITE_QUEUE_AT: usize = 4 + 48 + 8;
/// `TCP_ESTABLISHED`.
const ESTABLISHED: u8 = 1;

/// What our kernel knows of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// Bytes that were given to it and not acknowledged by the peer.
    pub(super) waiting: u64,
    /// Neither side has ended it.
    pub(super) is_whole: bool,
}

/// Asks about one connection.
pub(super) fn ask(local: SocketAddr, peer: SocketAddr) -> io::Result<Known> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::SOCK_DIAG))?;
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    sendto(&socket, &request(local, peer), SendFlags::empty(), &kernel)?;
    let mut answer = vec![0; 4096];
    // The kernel has answered when the request returns.
    let (length, _) = recv(&socket, answer.as_mut_slice(), RecvFlags::DONTWAIT)?;
    read(&answer[..length.min(4096)])
}

fn request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + 56);
    out.extend_from_slice(&(HEADER_BYTES as u32 + 56).to_ne_bytes());
    for half in [BY_FAMILY, REQUEST] {
        out.extend_from_slice(&half.to_ne_bytes());
    }
    // Sequence and port.
    out.extend_from_slice(&[0; 8]);
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    // struct inet_diag_req_v2: family, IPPROTO_TCP, no extensions, all states.
    out.extend_from_slice(&[family.as_raw() as u8, 6, 0, 0]);
    out.extend_from_slice(&u32::MAX.to_ne_bytes());
    out.extend_from_slice(&local.port().to_be_bytes());
    out.extend_from_slice(&peer.port().to_be_bytes());
    for address in [local.ip(), peer.ip()] {
        let mut bytes = [0; 16];
        match address {
            IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => bytes = address.octets(),
        }
        out.extend_from_slice(&bytes);
    }
    // Any interface, no cookie.
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(&[0xff; 8]);
    out
}

fn read(answer: &[u8]) -> io::Result<Known> {
    let number = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, number(HEADER_BYTES + WRITE_QUEUE_AT)) {
        (Some(BY_FAMILY), Some(waiting)) => {
            let is_whole = answer.get(HEADER_BYTES + STATE_AT) == Some(&ESTABLISHED);
            Ok(Known { waiting: u64::from(waiting), is_whole })
        }
        _ => {
            let code = number(HEADER_BYTES).map_or(0, |code| (code as i32).saturating_neg());
            Err(io::Error::from_raw_os_error(code))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net,
    };

    use super::*;

    #[test]
    fn what_the_peers_kernel_cannot_take_is_counted() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = net::TcpListener::bind(address).unwrap();
            let mut stream = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (local, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            assert_eq!(ask(local, peer).unwrap(), Known { waiting: 0, is_whole: true });
            let (mut accepted, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            // Until both kernels are full.
            let mut written = 0;
            while let Ok(count) = stream.write(&[7; 65536]) {
                written += count as u64;
            }
            let waiting = ask(local, peer).unwrap().waiting;
            assert!(waiting > 0 && waiting < written, "{waiting} of {written}");
            io::copy(&mut (&mut accepted).take(written), &mut io::sink()).unwrap();
            // The acknowledgement of the last bytes may be on its way.
            let soon = |done: &dyn Fn(Known) -> bool| {
                let is = || done(ask(local, peer).unwrap());
                (0..1000).any(|_| is() || (std::thread::sleep(std::time::Duration::from_millis(5)), false).1)
            };
            assert!(soon(&|known| known == Known { waiting: 0, is_whole: true }));
            accepted.shutdown(net::Shutdown::Write).unwrap();
            assert!(soon(&|known| !known.is_whole));
            let nobody = SocketAddr::new(local.ip(), 1);
            assert!(ask(nobody, nobody).is_err(), "there is no such connection");
        }
    }
}
