//! What the record of anything that went from `client` to `server` through the mesh must say, whatever it was.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use record::key;
use testkit::Record;

/// Who calls.
pub const CLIENT: &str = "spiffe://demo.picket.dev/ns/demo/sa/client";
/// Who answers.
pub const SERVER: &str = "spiffe://demo.picket.dev/ns/demo/sa/server";
/// Both sides of the mesh, as records name them.
pub const DIRECTIONS: [&str; 2] = ["outbound", "inbound"];
/// Both address families, as records name them.
pub const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];

/// Whether a record is about a request.
pub fn is_request(record: &Record) -> bool {
    record.event() == "picket.request"
}

/// Whether a record is the closing one of a connection.
pub fn is_connection(record: &Record) -> bool {
    record.event() == "picket.connection" && record.is(key::CONNECTION_STATE, "closed")
}

/// The one record of this direction and family.
///
/// # Errors
/// When there are none or several.
pub fn only<'a>(records: &'a [Record], direction: &str, family: &str) -> Result<&'a Record> {
    let found: Vec<_> = of(records, direction, family).collect();
    ensure!(found.len() == 1, "{} records are {direction} and {family}: {}", found.len(), list(&found));
    Ok(found[0])
}

fn list(records: &[&Record]) -> String {
    records.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The records of this direction and family.
pub fn of<'a>(records: &'a [Record], direction: &str, family: &str) -> impl Iterator<Item = &'a Record> {
    let wanted = move |record: &&Record| record.is(key::DIRECTION, direction) && record.is(key::NETWORK_TYPE, family);
    records.iter().filter(wanted)
}

/// Holds every record against what is the same for all traffic of the mesh that went well: who, how, and how long.
///
/// # Errors
/// With the first attribute that is wrong.
pub fn went_well(records: &[Record]) -> Result<()> {
    ensure!(!records.is_empty(), "there is no record to judge");
    for record in records {
        meshed(record)?;
        texts(record, &[(key::CODE, "ok")])?;
        durations(record)?;
    }
    Ok(())
}

/// Both identities are proven and right, and the hop was TLS 1.3 with a post-quantum group.
///
/// # Errors
/// With the first attribute that is wrong.
pub fn meshed(record: &Record) -> Result<()> {
    let (client_by, server_by) = match record.text(key::DIRECTION) {
        Some("outbound") => ("own_certificate", "mutual_tls"),
        _ => ("mutual_tls", "own_certificate"),
    };
    texts(
        record,
        &[
            (key::CLIENT_IDENTITY, CLIENT),
            (key::CLIENT_IDENTITY_BY, client_by),
            (key::SERVER_IDENTITY, SERVER),
            (key::SERVER_IDENTITY_BY, server_by),
            (key::SERVER_WORKLOAD, "server"),
            (key::TLS_PROTOCOL_VERSION, "1.3"),
            (key::TLS_CURVE, "X25519MLKEM768"),
            (key::DECISION, "meshed"),
        ],
    )
}

/// These attributes have these texts.
///
/// # Errors
/// With the first that has not.
pub fn texts(record: &Record, expected: &[(&str, &str)]) -> Result<()> {
    for (name, text) in expected {
        ensure!(record.is(name, text), "{name} is {:?}, not {text}, in {record}", record.text(name));
    }
    Ok(())
}

/// These attributes have these numbers.
///
/// # Errors
/// With the first that has not.
pub fn integers(record: &Record, expected: &[(&str, i64)]) -> Result<()> {
    for (name, number) in expected {
        ensure!(
            record.integer(name) == Some(*number),
            "{name} is {:?}, not {number}, in {record}",
            record.integer(name)
        );
    }
    Ok(())
}

/// Durations are there, not zero, and fit into each other.
fn durations(record: &Record) -> Result<()> {
    let total = record.number(key::DURATION).context("there is no duration")?;
    ensure!(total > 0.0 && total < 300.0, "the duration is {total} s");
    for part in [key::FIRST_BYTE_DURATION, key::CONNECT_DURATION, key::HANDSHAKE_DURATION] {
        if let Some(seconds) = record.number(part) {
            // A server connection that was made for an earlier request of another client is older than this record.
            let may_be_older = part != key::FIRST_BYTE_DURATION;
            ensure!(seconds > 0.0, "{part} is {seconds} s in {record}");
            ensure!(seconds <= total || may_be_older, "{part} is {seconds} s of {total} s in {record}");
        }
    }
    if is_request(record) {
        ensure!(record.number(key::FIRST_BYTE_DURATION).is_some(), "no first byte in {record}");
    }
    Ok(())
}

/// Each connection counts its requests, names no more than there are, and lasted at least as long as each of them.
///
/// `records` holds requests and closing connections of one direction.
///
/// # Errors
/// With the first connection for which that is wrong.
pub fn connections_hold_their_requests(records: &[Record]) -> Result<()> {
    let mut requests: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records.iter().filter(|record| is_request(record)) {
        requests.entry(record.text(key::CONNECTION_UID).context("no connection")?).or_default().push(record);
    }
    for connection in records.iter().filter(|record| is_connection(record)) {
        let uid = connection.text(key::LOG_RECORD_UID).context("no uid")?;
        let own = requests.remove(uid).unwrap_or_default();
        integers(connection, &[(key::REQUESTS, own.len() as i64)])?;
        for (total, part) in [
            (key::BYTES_FROM_CLIENT, key::HTTP_REQUEST_BODY_SIZE),
            (key::BYTES_FROM_SERVER, key::HTTP_RESPONSE_BODY_SIZE),
        ] {
            let bodies: i64 = own.iter().filter_map(|request| request.integer(part)).sum();
            let bytes = connection.integer(total).context("no bytes")?;
            ensure!(bytes >= bodies, "{total} is {bytes}, the bodies have {bodies}");
        }
        let longest = own.iter().filter_map(|request| request.number(key::DURATION)).fold(0.0, f64::max);
        let lasted = connection.number(key::DURATION).context("no duration")?;
        ensure!(lasted >= longest, "the connection lasted {lasted} s, one of its requests {longest} s");
    }
    ensure!(requests.is_empty(), "requests of connections without a record: {:?}", requests.keys());
    Ok(())
}
