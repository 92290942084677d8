//! HTTP/1 bodies: says how many of the bytes at hand belong to the body, and refuses chunks that servers read differently.
//!
//! The bytes themselves are forwarded unchanged: what passes has exactly one meaning (RFC 9112 section 7.1).

use super::head::Framing;

/// Bytes that one line of chunked framing (size with extensions, or one trailer field) may have.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes that all trailer fields may have together.
const TRAILER_BYTES_MAX: usize = 64 * 1024;

/// A body that cannot be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Where in a body we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    SizeFirst,
    Size { digits: u8 },
    Extension,
    SizeLf,
    Data(u64),
    DataCr,
    DataLf,
    TrailerFirst,
    Trailer,
    TrailerLf,
    LastLf,
    Done,
}

/// Follows one body from its first byte to its last.
#[derive(Debug)]
pub struct Body {
    state: State,
    size: u64,
    line: usize,
    trailers: usize,
    content_bytes: u64,
}

impl Body {
    /// A body that is delimited like that.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::SizeFirst,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, size: 0, line: 0, trailers: 0, content_bytes: 0 }
    }

    /// True when the last byte has been taken.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// True when the end of the stream is the end of this body.
    pub fn ends_with_stream(&self) -> bool {
        self.state == State::UntilClose
    }

    /// Bytes of content so far, without chunked framing.
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Takes as many of `bytes` as belong to this body and returns how many.
    ///
    /// # Errors
    /// When the framing is not exactly that of RFC 9112; the bytes of this call must then not be forwarded.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            let rest = (bytes.len() - at) as u64;
            match self.state {
                State::UntilClose => {
                    self.content_bytes += rest;
                    return Ok(bytes.len());
                }
                State::Length(left) | State::Data(left) => {
                    let n = left.min(rest);
                    self.content_bytes += n;
                    at += n as usize;
                    self.state = match (self.state, left - n) {
                        (State::Length(_), 0) => State::Done,
                        (State::Length(_), left) => State::Length(left),
                        (_, 0) => State::DataCr,
                        (_, left) => State::Data(left),
                    };
                }
                State::SizeFirst
                | State::Size { .. }
                | State::Extension
                | State::SizeLf
                | State::DataCr
                | State::DataLf
                | State::TrailerFirst
                | State::Trailer
                | State::TrailerLf
                | State::LastLf
                | State::Done => {
                    self.framing_byte(bytes[at])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    fn framing_byte(&mut self, byte: u8) -> Result<(), Malformed> {
        self.line += 1;
        if self.line > LINE_BYTES_MAX {
            return Err(Malformed("a line of chunked framing over 8 KiB"));
        }
        self.state = match (self.state, byte) {
            (State::SizeFirst, _) => self.size_digit(byte, 0)?,
            (State::Size { .. } | State::Extension, b'\r') => State::SizeLf,
            (State::Size { .. }, b';') => State::Extension,
            (State::Size { digits }, _) => self.size_digit(byte, digits)?,
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => State::Extension,
            (State::SizeLf, b'\n') if self.size > 0 => State::Data(std::mem::take(&mut self.size)),
            (State::SizeLf, b'\n') => State::TrailerFirst,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::SizeFirst,
            (State::TrailerFirst, b'\r') => State::LastLf,
            (State::TrailerFirst, b'!'..=b'9' | b';'..=b'~') | (State::Trailer, b'\t' | b' '..=b'~' | 0x80..) => {
                self.trailer_byte()?
            }
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') => State::TrailerFirst,
            (State::LastLf, b'\n') => State::Done,
            _ => return Err(Malformed("a byte that chunked framing does not allow here")),
        };
        if matches!(self.state, State::Data(_) | State::SizeFirst | State::TrailerFirst) {
            self.line = 0;
        }
        Ok(())
    }

    fn size_digit(&mut self, byte: u8, digits: u8) -> Result<State, Malformed> {
        let Some(digit) = char::from(byte).to_digit(16) else {
            return Err(Malformed("a chunk size that is not hexadecimal"));
        };
        if digits == 15 {
            return Err(Malformed("a chunk size of more than 15 digits"));
        }
        self.size = self.size * 16 + u64::from(digit);
        Ok(State::Size { digits: digits + 1 })
    }

    fn trailer_byte(&mut self) -> Result<State, Malformed> {
        self.trailers += 1;
        if self.trailers > TRAILER_BYTES_MAX {
            Err(Malformed("trailer fields over 64 KiB"))
        } else {
            Ok(State::Trailer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `input` whole and byte by byte; both must agree.
    fn check(input: &str) -> Result<(usize, u64, bool), Malformed> {
        let mut whole = Body::new(Framing::Chunked);
        let taken = whole.take(input.as_bytes());
        let mut single = Body::new(Framing::Chunked);
        let stepwise = input.as_bytes().iter().try_fold(0, |sum, byte| Ok(sum + single.take(&[*byte])?));
        assert_eq!(taken, stepwise, "{input:?}");
        Ok((taken?, whole.content_bytes(), whole.is_done()))
    }

    #[test]
    fn chunks_end_where_they_say() {
        assert_eq!(check("5\r\nhello\r\n0\r\n\r\nGET /"), Ok((15, 5, true)));
        assert_eq!(check("5;a=\"b\"\r\nhello\r\n0\r\nX: y\r\n\r\n"), Ok((27, 5, true)));
        assert_eq!(check("a\r\n12345"), Ok((8, 5, false)));
    }

    #[test]
    fn chunks_in_doubt_are_refused() {
        for input in [
            "5\nhello",
            "\r\n",
            "5 \r\nhello",
            "-5\r\n",
            "0x5\r\n",
            "5\r\nhelloX\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5;a\nb\r\nhello",
            "5;a\rb",
            "ffffffffffffffff\r\n",
            "0\r\n X: y\r\n\r\n",
            "0\r\nX: y\n\r\n",
            "0\r\n:\r\n\r\n",
        ] {
            assert!(check(input).is_err(), "{input:?}");
        }
    }

    #[test]
    fn lengths_stop_exactly() {
        let mut body = Body::new(Framing::Length(3));
        assert_eq!(body.take(b"abcdef"), Ok(3));
        assert!(body.is_done());
    }
}
