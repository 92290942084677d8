//! A segment whose short records stand for far more than a spool ever writes.

use record::{UidSource, field, key, otlp::Attributes};
use spool::HEADER_BYTES;

use crate::{Authority, evidence, segment, three};

const HOLDER: u8 = 4;
const SHORT: u8 = 5;

/// One entry, as docs/formats/segment.md has it.
fn entry(out: &mut Vec<u8>, epoch: u64, kind: u8, sequence: u64, payload: &[u8]) {
    let head = ((payload.len() as u32) | u32::from(kind) << 24).to_le_bytes();
    let sequence = sequence.to_le_bytes();
    let parts = [&head[..], &sequence, payload];
    let checksum =
        parts.iter().fold(crc32c::crc32c(&epoch.to_le_bytes()), |sum, part| crc32c::crc32c_append(sum, part));
    [&head[..], &checksum.to_le_bytes(), &sequence, payload].iter().for_each(|part| out.extend_from_slice(part));
}

#[test]
fn a_segment_that_unfolds_without_end_is_refused() {
    let authority = Authority::new("root");
    let stream = three(&authority);
    let file = segment(&stream.directory.0);
    let (first, epoch) = spool::parse_name(file.file_name().unwrap().to_str().unwrap()).unwrap();
    let mut content = Vec::new();
    let mut attributes = Attributes::new(&mut content);
    (0..2).for_each(|_| attributes.text(key::DETAIL, &"x".repeat(950)));
    let context = 0..content.len();
    Attributes::new(&mut content)
        .text(key::LOG_RECORD_UID, std::str::from_utf8(&UidSource::new(1).next(1).text()).unwrap());
    let mut bytes = std::fs::read(&file).unwrap()[..HEADER_BYTES].to_vec();
    let mut payload = Vec::new();
    field::append_numbered(&mut payload, &content, first).unwrap();
    entry(&mut bytes, epoch, HOLDER, first, &payload);
    // 256 MiB of records may be in one segment; these are more, in 20 MiB.
    for sequence in first + 1..first + 140_000 {
        payload.clear();
        [first, first].iter().for_each(|holder| payload.extend_from_slice(&holder.to_le_bytes()));
        payload.push(field::HEAD_BYTES as u8);
        field::append_numbered_without(&mut payload, &content, context.clone(), sequence).unwrap();
        entry(&mut bytes, epoch, SHORT, sequence, &payload);
    }
    assert!(bytes.len() < 20 << 20, "{} bytes", bytes.len());
    std::fs::write(&file, &bytes).unwrap();
    let error = evidence(&authority.root).read(&stream.directory.0).unwrap_err().to_string();
    assert!(error.contains("records are longer than 256 MiB") && error.contains(".seg"), "{error}");
}
