//! How messages of the trust bundle stream follow each other: four bytes of length, then so many of the message.
//!
//! Promises: no more is kept than one message of the allowed length and what was pushed with it; nothing while no message
//! is half there. Leaves to others: what the messages say.

use prost::Message;

/// Bytes before each message.
const LENGTH_BYTES: usize = 4;

/// A message longer than any that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong(pub usize);

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a message of {} bytes is longer than any that is taken", self.0)
    }
}

impl std::error::Error for TooLong {}

/// `message` with its length before it.
pub fn frame(message: &impl Message) -> Vec<u8> {
    let mut bytes = length(message.encoded_len()).to_vec();
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes
}

/// What stands before a message of so many bytes.
pub fn length(bytes: usize) -> [u8; LENGTH_BYTES] {
    // Nobody takes one of 4 GiB, so nobody need be able to say so.
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

/// Messages out of bytes, however these were cut.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// Takes bytes that came. [`Self::next`] is to be called until it has nothing.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// When it says that it is longer, before it is here.
    pub fn next(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, TooLong> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > bytes_max {
            return Err(TooLong(length));
        }
        let Some(message) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
        if rest.len() == length {
            self.bytes = Vec::new();
        } else {
            self.bytes.drain(..LENGTH_BYTES + length);
        }
        Ok(Some(message))
    }

    /// True when nothing of a message is here.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Bundle;

    #[test]
    fn messages_come_out_as_they_went_in_however_the_bytes_are_cut() {
        let message = |generation| Bundle { generation, roots: vec![vec![7; 300]], ..Bundle::default() };
        let mut bytes = frame(&message(1));
        bytes.extend_from_slice(&length(0));
        bytes.extend_from_slice(&frame(&message(2)));
        for step in 1..bytes.len() {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(step) {
                frames.push(piece);
                while let Some(message) = frames.next(400).unwrap() {
                    found.push(message);
                }
            }
            assert!(frames.is_empty() && frames.bytes.capacity() == 0, "{step}");
            let expected = [message(1).encode_to_vec(), Vec::new(), message(2).encode_to_vec()];
            assert_eq!(found, expected, "{step}");
        }
    }

    #[test]
    fn a_long_message_is_refused_before_it_is_here() {
        let mut frames = Frames::default();
        frames.push(&length(401)[..3]);
        assert_eq!(frames.next(400), Ok(None));
        frames.push(&length(401)[3..]);
        assert_eq!(frames.next(400), Err(TooLong(401)));
        assert_eq!(frames.next(401), Ok(None), "as long as allowed");
    }
}
