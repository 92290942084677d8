//! What is left of TLS 1.3 on a connection on which little happens: two keys, two counters, records one by one (RFC 8446,
//! section 5.2).
//!
//! A connection of rustls has some KiB, of which a stream that speaks once in half a minute needs a hundred bytes. So the
//! traffic secrets are taken out of it after the handshake, in the way that rustls has for TLS in the kernel, and its own
//! encrypter and decrypter are made anew for each record: nonces, associated data, padding and the cipher itself stay
//! rustls's. Ours is the header of a record and the counting.
//!
//! Promises: a record that is not whole and genuine, longer than [`RECORD_BYTES_MAX`], or anything but application data is an
//! error, after which nothing more is opened: there are no key updates, no tickets, no renegotiation. No number is used
//! twice. Leaves to others: the socket, and what is in the records.

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, OutboundChunks, OutboundPlainMessage, Tls13AeadAlgorithm,
};
use rustls::server::ServerConnection;
use rustls::{ConnectionTrafficSecrets, ContentType, ExtractedSecrets, ProtocolVersion, SupportedCipherSuite};

/// Bytes of a sealed record, without its header, that are opened: more than any message of a proxy, less than TLS allows.
pub const RECORD_BYTES_MAX: usize = 8 << 10;
/// Bytes that are sealed into one record.
pub const PLAIN_BYTES_MAX: usize = 16 << 10;
/// Below the limits of all suites (RFC 8446, section 5.5; 2^24.5 for AES-GCM): nobody gets there honestly.
const RECORDS_MAX: u32 = 1 << 24;
const HEADER_BYTES: usize = 5;
const KEY_BYTES: usize = 32;
/// What the peer says last (RFC 8446, section 6.1): a warning, of close_notify.
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// Why there is nothing more to be had from a connection.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Its suite has other keys than ours.
    #[error("the suite has no keys of 256 bits")]
    Suite,
    /// rustls does not give the secrets away, or does not take a record.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// Not application data outside, or longer than allowed.
    #[error("a record of type {content_type} with {length} bytes")]
    Header {
        /// The first byte.
        content_type: u8,
        /// By the header.
        length: usize,
    },
    /// The peer has ended the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// Not application data inside.
    #[error("a record that holds {0:?}")]
    Content(ContentType),
    /// The peer has said more than was read.
    #[error("something follows the first message")]
    Unread,
    /// As many records as one key is good for.
    #[error("{RECORDS_MAX} records under one key")]
    Worn,
}

/// One direction.
struct Direction {
    key: AeadKey,
    iv: Iv,
    records: u32,
}

impl Direction {
    #[expect(clippy::wildcard_enum_match_arm, reason = "rustls's enum is not ours and not exhaustive")]
    fn new((records, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, SealError> {
        let records = u32::try_from(records).map_err(|_| SealError::Worn)?;
        match secrets {
            ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok(Self { key, iv, records }),
            _ => Err(SealError::Suite),
        }
    }

    /// The key, the nonce's fixed part, and the number of the next record, which no other one gets.
    fn next(&mut self) -> Result<(AeadKey, Iv, u64), SealError> {
        let key = <[u8; KEY_BYTES]>::try_from(self.key.as_ref()).map_err(|_| SealError::Suite)?;
        let number = self.records;
        if number >= RECORDS_MAX {
            return Err(SealError::Worn);
        }
        self.records += 1;
        Ok((AeadKey::from(key), Iv::copy(self.iv.as_ref()), number.into()))
    }
}

/// The server's end of a connection whose handshake is over.
pub struct Sealed {
    algorithm: &'static dyn Tls13AeadAlgorithm,
    ours: Direction,
    theirs: Direction,
}

impl Sealed {
    /// Takes over from rustls. The peer must have said nothing beyond what was read: whole records are an error, and with a
    /// part of one, which is lost with rustls, the next does not open.
    ///
    /// # Errors
    /// When more was said, the suite is not one of ours, or the configuration keeps the secrets.
    pub fn take(mut connection: ServerConnection) -> Result<Self, SealError> {
        if connection.process_new_packets()?.plaintext_bytes_to_read() > 0 {
            return Err(SealError::Unread);
        }
        let suite = connection.negotiated_cipher_suite().ok_or(SealError::Suite)?;
        Self::new(suite, connection.dangerous_extract_secrets()?)
    }

    /// Of secrets of this suite.
    ///
    /// # Errors
    /// When it is not one of ours.
    pub fn new(suite: SupportedCipherSuite, secrets: ExtractedSecrets) -> Result<Self, SealError> {
        let suite = suite.tls13().ok_or(SealError::Suite)?;
        let (ours, theirs) = (Direction::new(secrets.tx)?, Direction::new(secrets.rx)?);
        Ok(Self { algorithm: suite.aead_alg, ours, theirs })
    }

    /// A record with these bytes, [`PLAIN_BYTES_MAX`] of them at most.
    ///
    /// # Errors
    /// After very many records.
    pub fn seal(&mut self, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        self.seal_as(ContentType::ApplicationData, plain)
    }

    /// The last record.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn seal_end(&mut self) -> Result<Vec<u8>, SealError> {
        self.seal_as(ContentType::Alert, &CLOSE_NOTIFY)
    }

    fn seal_as(&mut self, typ: ContentType, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        debug_assert!(plain.len() <= PLAIN_BYTES_MAX, "{} bytes", plain.len());
        let (key, iv, number) = self.ours.next()?;
        let payload = OutboundChunks::Single(plain);
        let plain = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload };
        Ok(self.algorithm.encrypter(key, iv).encrypt(plain, number)?.encode())
    }

    /// The bytes of the next record, which is at the beginning of `bytes` with its header; how long it was comes with them.
    /// `None` while it is not whole.
    ///
    /// # Errors
    /// See [`SealError`]; after one, the connection is of no use any more.
    #[expect(clippy::wildcard_enum_match_arm, reason = "rustls's enum is not ours and not exhaustive")]
    pub fn open<'a>(&mut self, bytes: &'a mut [u8]) -> Result<Option<(&'a [u8], usize)>, SealError> {
        let Some((&mut [content_type, _, _, high, low], rest)) = bytes.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let typ = ContentType::from(content_type);
        if typ != ContentType::ApplicationData || length > RECORD_BYTES_MAX {
            return Err(SealError::Header { content_type, length });
        }
        let Some(sealed) = rest.get_mut(..length) else { return Ok(None) };
        let (key, iv, number) = self.theirs.next()?;
        let sealed = InboundOpaqueMessage::new(typ, ProtocolVersion::TLSv1_2, sealed);
        let plain = self.algorithm.decrypter(key, iv).decrypt(sealed, number)?;
        match plain.typ {
            ContentType::ApplicationData => Ok(Some((plain.payload, HEADER_BYTES + length))),
            ContentType::Alert => Err(SealError::Closed),
            other => Err(SealError::Content(other)),
        }
    }
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealed").finish_non_exhaustive()
    }
}
