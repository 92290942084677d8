//! Records against rustls itself as the peer: what it writes is read, what we write it reads, and nothing else passes.

use std::io::{Read, Write};
use std::sync::Arc;

use identity::{Store, TrustBundle};
use proptest::prelude::*;
use rustls::{ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;

use crate::sealed::{PLAIN_BYTES_MAX, RECORD_BYTES_MAX, SealError, Sealed};
use crate::test_support::serving;

/// A finished handshake of a proxy with us, by its settings.
fn shaken(trust: bool) -> (ClientConnection, ServerConnection) {
    let (root, key, id) = serving();
    let mut server = ServerConfig::builder_with_provider(identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
    server.enable_secret_extraction = true;
    server.send_tls13_tickets = 0;
    server.alpn_protocols = vec![identity::ALPN_TRUST.to_vec()];
    let store = Store::new("td".parse().unwrap());
    store.set_bundle(TrustBundle::from_pem(root.as_bytes()).unwrap());
    let client = match trust {
        true => identity::trust_client_config(&store, &id),
        false => identity::client_config(&store, &id, identity::ALPN_TRUST),
    };
    let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from("ca").unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        feed(&mut bytes.as_slice(), |from| server.read_tls(from));
        server.process_new_packets().unwrap();
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        feed(&mut bytes.as_slice(), |from| client.read_tls(from));
        client.process_new_packets().unwrap();
    }
    (client, server)
}

fn feed(bytes: &mut &[u8], mut read: impl FnMut(&mut &[u8]) -> std::io::Result<usize>) {
    while !bytes.is_empty() {
        read(bytes).unwrap();
    }
}

fn pair() -> (ClientConnection, Sealed) {
    let (client, server) = shaken(true);
    (client, Sealed::take(server).unwrap())
}

fn written(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn said(client: &mut ClientConnection, text: &[u8]) -> Vec<u8> {
    client.writer().write_all(text).unwrap();
    written(client)
}

fn read(client: &mut ClientConnection, mut record: &[u8], bytes: usize) -> Vec<u8> {
    let mut plain = vec![0; bytes];
    let mut at = 0;
    while !record.is_empty() {
        client.read_tls(&mut record).unwrap();
        client.process_new_packets().unwrap();
        at += client.reader().read(&mut plain[at..]).unwrap_or(0);
    }
    plain.truncate(at);
    plain
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_one_side_says_the_other_side_reads(
        messages in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..6000)), 1..12)
    ) {
        let (mut client, mut sealed) = pair();
        for (ours, message) in messages {
            if ours {
                let record = sealed.seal(&message).unwrap();
                prop_assert_eq!(read(&mut client, &record, message.len()), message);
            } else {
                let mut record = said(&mut client, &message);
                for end in [0, 4, 5, record.len() - 1] {
                    prop_assert!(sealed.open(&mut record[..end]).unwrap().is_none(), "{} bytes are no record", end);
                }
                let length = record.len();
                let (plain, used) = sealed.open(&mut record).unwrap().unwrap();
                prop_assert_eq!((plain, used), (&*message, length));
            }
        }
    }

    #[test]
    fn nothing_that_was_touched_opens(
        message in prop::collection::vec(any::<u8>(), 0..2000), at in any::<prop::sample::Index>(), bit in 0..8_u8
    ) {
        let (mut client, mut sealed) = pair();
        let mut record = said(&mut client, &[&b"x"[..], &message].concat());
        let at = at.index(record.len());
        record[at] ^= 1 << bit;
        match sealed.open(&mut record) {
            // The version says nothing (RFC 8446, section 5.1), and is not looked at; a longer length is not whole.
            Ok(Some(_)) => prop_assert!(at == 1 || at == 2, "byte {}", at),
            Ok(None) => prop_assert!(at == 3 || at == 4),
            Err(_) => {}
        }
    }
}

#[test]
fn a_large_answer_is_records_that_the_peer_takes() {
    let (mut client, mut sealed) = pair();
    let plain = vec![7; PLAIN_BYTES_MAX];
    for _ in 0..3 {
        let record = sealed.seal(&plain).unwrap();
        assert_eq!(read(&mut client, &record, plain.len()), plain);
    }
}

#[test]
fn records_come_in_their_order_and_once() {
    let (mut client, mut sealed) = pair();
    let (first, second) = (said(&mut client, b"one"), said(&mut client, b"two"));
    assert!(matches!(sealed.open(&mut second.clone()), Err(SealError::Tls(_))), "the first is missing");
    let (mut client, mut sealed) = pair();
    let one = said(&mut client, b"one");
    assert_eq!(sealed.open(&mut one.clone()).unwrap().unwrap().0, b"one");
    assert!(matches!(sealed.open(&mut one.clone()), Err(SealError::Tls(_))), "again");
    assert!(first != one, "another connection has other keys");
}

#[test]
fn anything_but_application_data_of_a_sane_size_is_the_end() {
    let (mut client, mut sealed) = pair();
    client.send_close_notify();
    assert!(matches!(sealed.open(&mut written(&mut client)), Err(SealError::Closed)));

    let (mut client, mut sealed) = pair();
    client.refresh_traffic_keys().unwrap();
    assert!(matches!(sealed.open(&mut written(&mut client)), Err(SealError::Content(_))), "a key update");

    let (mut client, mut sealed) = pair();
    let mut large = said(&mut client, &vec![1; RECORD_BYTES_MAX]);
    assert!(matches!(sealed.open(&mut large), Err(SealError::Header { content_type: 23, .. })));
    assert!(matches!(sealed.open(&mut large[..5]), Err(SealError::Header { .. })), "before it is here");
    for content_type in [0, 20, 21, 22, 24, 255] {
        let mut record = [content_type, 3, 3, 0, 1, 0];
        assert!(matches!(sealed.open(&mut record), Err(SealError::Header { length: 1, .. })), "{content_type}");
    }
    for length in 0..17_u8 {
        let mut record = vec![0; 5 + usize::from(length)];
        record[..5].copy_from_slice(&[23, 3, 3, 0, length]);
        assert!(matches!(sealed.open(&mut record), Err(SealError::Tls(_))), "shorter than its tag");
    }
}

#[test]
fn the_end_that_we_say_is_one_for_the_peer() {
    let (mut client, mut sealed) = pair();
    let record = sealed.seal_end().unwrap();
    client.read_tls(&mut &*record).unwrap();
    assert!(client.process_new_packets().unwrap().peer_has_closed());
}

#[test]
fn suites_with_short_keys_are_not_taken() {
    let (_client, server) = shaken(false);
    assert!(matches!(Sealed::take(server), Err(SealError::Suite)));
}

#[test]
fn a_connection_with_something_unread_is_not_taken() {
    let (mut client, mut server) = shaken(true);
    let more = said(&mut client, b"more");
    feed(&mut more.as_slice(), |from| server.read_tls(from));
    // Whether rustls has opened it already or not.
    assert!(matches!(Sealed::take(server), Err(SealError::Unread)));
    let (mut client, mut server) = shaken(true);
    let more = said(&mut client, b"more");
    feed(&mut more.as_slice(), |from| server.read_tls(from));
    server.process_new_packets().unwrap();
    assert!(matches!(Sealed::take(server), Err(SealError::Unread)));
}
