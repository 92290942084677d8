//! Packet capture in a namespace: counts frames and looks for byte strings in them.
//!
//! Promises: sees every frame of every device of the namespace in both directions, so a frame that crosses a bridge counts
//! several times; [`Capture::stop`] returns after all frames that were sent before it have been looked at.
//! Leaves to others: a string is searched frame by frame. One that is split between two frames is not found: keep it short
//! and send it often. A burst larger than the socket's buffer loses frames, as with any capture.

use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Namespace;

/// `ETH_P_ALL` (linux/if_ether.h), in network byte order as packet(7) wants it.
const ALL_PROTOCOLS: i32 = 0x0003_u16.to_be() as i32;
/// Larger than any frame, segmentation offload included.
const LARGEST_FRAME: usize = 128 * 1024;
/// How long a silence must last, after the stop, before nothing more is expected.
const SILENCE: Duration = Duration::from_millis(100);

/// What a capture has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames, each once per device it passed.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// For each marker, in the order given, the number of frames that contain it.
    pub hits: Vec<u64>,
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Counts>>,
}

impl Capture {
    /// Starts to capture in `namespace`; when this returns, frames are being seen.
    ///
    /// # Errors
    /// Without CAP_NET_RAW in the user namespace that owns `namespace`.
    pub fn start(namespace: &Namespace, markers: &[&str]) -> Result<Self> {
        let socket = namespace.inside(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL_PROTOCOLS)))
                .context("cannot open a packet socket")?;
            // As much as the system allows; the default holds some hundred frames only.
            socket.set_recv_buffer_size(8 << 20)?;
            socket.set_read_timeout(Some(SILENCE))?;
            Ok(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let markers = markers.iter().map(|marker| marker.as_bytes().to_vec()).collect();
        let stopped = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("capture".to_owned()).spawn(move || capture(socket, markers, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Ends the capture and gives what it saw.
    ///
    /// # Errors
    /// When reading failed; an incomplete capture proves nothing.
    pub fn stop(self) -> Result<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn capture(mut socket: Socket, markers: Vec<Vec<u8>>, stop: &AtomicBool) -> Result<Counts> {
    let mut counts = Counts { hits: vec![0; markers.len()], ..Counts::default() };
    let mut frame = vec![0; LARGEST_FRAME];
    // After the stop we read until a silence, but others may keep sending: not longer than this.
    let mut end = None;
    loop {
        if stop.load(Ordering::Relaxed) {
            let end = *end.get_or_insert_with(|| Instant::now() + Duration::from_secs(2));
            if Instant::now() > end {
                return Ok(counts);
            }
        }
        match socket.read(&mut frame) {
            Ok(length) => count(&mut counts, &markers, &frame[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(counts);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot capture"),
        }
    }
}

fn count(counts: &mut Counts, markers: &[Vec<u8>], frame: &[u8]) {
    counts.frames += 1;
    counts.bytes += frame.len() as u64;
    for (hits, marker) in counts.hits.iter_mut().zip(markers) {
        if contains(frame, marker) {
            *hits += 1;
        }
    }
}

/// Whether `frame` contains `marker`; looks for the first byte before it compares, which keeps up with fast links.
fn contains(mut frame: &[u8], marker: &[u8]) -> bool {
    let Some(first) = marker.first() else { return false };
    while let Some(at) = frame.iter().position(|byte| byte == first) {
        if frame[at..].starts_with(marker) {
            return true;
        }
        frame = &frame[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::{LINK_IPV4, Net};

    #[test]
    fn what_crosses_the_link_is_seen_and_what_does_not_is_not() {
        let mut net = Net::new().unwrap();
        let pod = net.pod("one").unwrap();
        let capture = Capture::start(&net.link, &["on-the-link", "on-loopback"]).unwrap();
        pod.namespace
            .inside(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.send_to(b"...on-the-link...", (LINK_IPV4, 9))?;
                socket.send_to(b"on-loopback", "127.0.0.1:9")?;
                Ok(())
            })
            .unwrap();
        let counts = capture.stop().unwrap();
        assert!(counts.frames > 0 && counts.bytes > 0, "{counts:?}");
        assert!(counts.hits[0] > 0, "{counts:?}");
        assert_eq!(counts.hits[1], 0, "{counts:?}");
    }
}
