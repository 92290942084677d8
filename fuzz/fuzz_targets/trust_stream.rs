//! What comes over a trust bundle stream: whatever it is, nothing panics, only what a peer has sealed is opened, and no more
//! than one message is kept.

#![no_main]

use api::frames::Frames;
use api::trust::Status;
use ca::sealed::{RECORD_BYTES_MAX, Sealed};
use libfuzzer_sys::fuzz_target;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::{CipherSuite, ConnectionTrafficSecrets, ExtractedSecrets};

const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// The two ends of a connection.
fn ends() -> (Sealed, Sealed) {
    let provider = identity::provider();
    let suite = |suite: &&rustls::SupportedCipherSuite| suite.suite() == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;
    let suite = *provider.cipher_suites.iter().find(suite).expect("the suite is there");
    let secrets = |byte| ConnectionTrafficSecrets::Chacha20Poly1305 {
        key: AeadKey::from([byte; 32]),
        iv: Iv::from([byte; 12]),
    };
    let end = |tx, rx| {
        let secrets = ExtractedSecrets { tx: (0, secrets(tx)), rx: (0, secrets(rx)) };
        Sealed::new(suite, secrets).expect("keys of 256 bits")
    };
    (end(1, 2), end(2, 1))
}

// Pieces, each with two bytes before it: what is done with it, and its length (in eights).
fuzz_target!(|bytes: &[u8]| {
    let (mut ours, mut theirs) = ends();
    let (mut rest, mut input, mut frames) = (bytes, Vec::new(), Frames::default());
    // While all is well, what must come out.
    let (mut expected, mut honest) = (Vec::new(), true);
    while let Some((&[what, length], behind)) = rest.split_first_chunk::<2>() {
        let (piece, behind) = behind.split_at((usize::from(length) * 8).min(behind.len()));
        rest = behind;
        match what % 4 {
            0 => {
                honest = false;
                input.extend_from_slice(piece);
            }
            1 => {
                honest = false;
                let mut record = theirs.seal(piece).expect("few records");
                let at = usize::from(what) % record.len();
                record[at] ^= 1 << (length % 8);
                input.extend_from_slice(&record);
            }
            _ => {
                expected.extend_from_slice(piece);
                input.extend_from_slice(&theirs.seal(piece).expect("few records"));
            }
        }
        loop {
            let (plain, used) = match ours.open(&mut input) {
                Ok(Some((plain, used))) => (plain.to_vec(), used),
                Ok(None) => break,
                Err(_) => {
                    assert!(!honest, "an honest record does not open");
                    return;
                }
            };
            input.drain(..used);
            assert!(!honest || expected.starts_with(&plain));
            expected.drain(..plain.len().min(expected.len()));
            frames.push(&plain);
            loop {
                match frames.next(MESSAGE_BYTES_MAX) {
                    Ok(Some(message)) => drop(<Status as prost::Message>::decode(&*message)),
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
        assert!(!honest || expected.is_empty());
        assert!(input.len() <= RECORD_BYTES_MAX + 5 + 8 * 255 + 64);
    }
});
