//! Requests: spliced from records that are encoded already, compressed once, and put into the frame of their protocol.
//!
//! Promises that records are copied only to be compressed. Leaves to others: how large a request may be.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::Write,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::ResourceLogs,
    resource::v1::Resource,
};
use prost::Message;
use record::field;

use super::{Compression, Protocol};

/// Bytes of the scope and of the tags and lengths around resource, scope and records: at most.
const ENVELOPE_BYTES_MAX: usize = 64;
/// Fast rather than small: records repeat themselves, and what is left to gain costs several times the CPU.
const ZSTD_LEVEL: i32 = 1;

/// Records that are sent together.
#[derive(Debug, Clone, Default)]
pub(super) struct Piece {
    /// Finished `log_records` fields.
    pub(super) fields: Vec<Bytes>,
    /// How many.
    pub(super) records: u64,
}

impl Piece {
    /// Bytes of the records.
    pub(super) fn bytes(&self) -> usize {
        self.fields.iter().map(Bytes::len).sum()
    }

    /// Two halves. What is no record any more stays in the second.
    pub(super) fn split(mut self) -> (Self, Self) {
        let records = self.records / 2;
        let (mut first, mut left) = (Self { fields: Vec::new(), records }, records);
        let mut rest = VecDeque::from(std::mem::take(&mut self.fields));
        while let Some(mut fields) = rest.pop_front() {
            let mut end = 0;
            for content in field::contents(&fields).take(usize::try_from(left).unwrap_or(usize::MAX)) {
                let Ok(content) = content else { break };
                end = content.as_ptr() as usize + content.len() - fields.as_ptr() as usize;
                left -= 1;
            }
            let whole = fields.split_to(end);
            if !whole.is_empty() {
                first.fields.push(whole);
            }
            if !fields.is_empty() {
                rest.push_front(fields);
                break;
            }
        }
        (first, Self { fields: rest.into(), records: self.records - records })
    }

    /// The contents of its records.
    pub(super) fn contents(&self) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().flat_map(|fields| field::contents(fields).flatten())
    }
}

/// What stands around the records of each request.
#[derive(Debug)]
pub(super) struct Envelope {
    resource: Vec<u8>,
}

impl Envelope {
    /// With these attributes of the resource.
    pub(super) fn new(attributes: &[(String, String)]) -> Self {
        let attributes = attributes.iter().map(|(key, value)| KeyValue {
            key: key.clone(),
            value: Some(AnyValue { value: Some(Value::StringValue(value.clone())) }),
            ..Default::default()
        });
        let resource = Resource { attributes: attributes.collect(), ..Default::default() };
        Self { resource: ResourceLogs { resource: Some(resource), ..Default::default() }.encode_to_vec() }
    }

    /// Bytes it adds at most.
    pub(super) fn bytes_max(&self) -> usize {
        self.resource.len() + ENVELOPE_BYTES_MAX
    }

    /// `ExportLogsServiceRequest { resource_logs: [{ resource, scope_logs: [{ scope, log_records }] }] }`, in parts.
    fn splice(&self, piece: &Piece) -> Vec<Bytes> {
        const SCOPE: &[u8] = b"\x0a\x08\x0a\x06picket";
        let scope_logs = SCOPE.len() + piece.bytes();
        let resource_logs = self.resource.len() + 1 + prost::length_delimiter_len(scope_logs) + scope_logs;
        let mut head = Vec::with_capacity(self.bytes_max());
        head.push(0x0a);
        varint(&mut head, resource_logs);
        head.extend_from_slice(&self.resource);
        head.push(0x12);
        varint(&mut head, scope_logs);
        head.extend_from_slice(SCOPE);
        std::iter::once(head.into()).chain(piece.fields.iter().cloned()).collect()
    }

    /// The body of a request with the records of `piece`. Compressing blocks for milliseconds.
    pub(super) fn body(&self, piece: &Piece, protocol: Protocol, compression: Compression) -> Parts {
        Parts::of(self.splice(piece), protocol, compression)
    }

    /// The records as one line of OTLP/JSON, as collectors write it to files; `None` when they are none.
    pub(super) fn json_line(&self, piece: &Piece) -> Option<Vec<u8>> {
        let request = ExportLogsServiceRequest::decode(Parts(self.splice(piece).into())).ok()?;
        Some(super::json::line(&request))
    }
}

fn varint(out: &mut Vec<u8>, value: usize) {
    // A vector grows as needed.
    let _fits = prost::encode_length_delimiter(value, out);
}

fn compress(parts: Vec<Bytes>, compression: Compression) -> Vec<Bytes> {
    let bytes: usize = parts.iter().map(Bytes::len).sum();
    let squeezed = match compression {
        Compression::None => return parts,
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(bytes / 4), flate2::Compression::fast());
            parts.iter().try_for_each(|part| encoder.write_all(part)).and_then(|()| encoder.finish())
        }
        Compression::Zstd => {
            zstd::stream::write::Encoder::new(Vec::with_capacity(bytes / 4), ZSTD_LEVEL).and_then(|mut encoder| {
                parts.iter().try_for_each(|part| encoder.write_all(part))?;
                encoder.finish()
            })
        }
    };
    vec![squeezed.expect("writing to memory does not fail").into()]
}

/// A body in its parts, which are one message when they stand one after the other.
#[derive(Debug, Clone)]
pub(super) struct Parts(VecDeque<Bytes>);

impl Parts {
    /// The body of a request with the message that these parts are. Compressing blocks for milliseconds.
    pub(super) fn of(message: Vec<Bytes>, protocol: Protocol, compression: Compression) -> Self {
        let mut parts: VecDeque<Bytes> = compress(message, compression).into();
        if protocol == Protocol::Grpc {
            let length = parts.iter().map(Bytes::len).sum::<usize>() as u32;
            let mut prefix = [0; 5];
            prefix[0] = u8::from(compression != Compression::None);
            prefix[1..].copy_from_slice(&length.to_be_bytes());
            parts.push_front(Bytes::copy_from_slice(&prefix));
        }
        Self(parts)
    }
}

impl Buf for Parts {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.iter().find(|part| !part.is_empty()).map_or(&[], |part| part)
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.0.front_mut().filter(|_| count > 0) {
            let step = count.min(part.len());
            part.advance(step);
            count -= step;
            if part.is_empty() {
                self.0.pop_front();
            }
        }
        while self.0.front().is_some_and(Bytes::is_empty) {
            self.0.pop_front();
        }
    }
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining() as u64)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, ScopeLogs};

    use super::*;

    fn piece(buffers: &[&[&str]]) -> Piece {
        let record = |name: &&str| LogRecord { event_name: (*name).to_owned(), ..LogRecord::default() };
        let fields = |names: &&[&str]| {
            let log_records = names.iter().map(record).collect();
            ScopeLogs { log_records, ..ScopeLogs::default() }.encode_to_vec().into()
        };
        let records = buffers.iter().map(|names| names.len() as u64).sum();
        Piece { fields: buffers.iter().map(fields).collect(), records }
    }

    fn names(piece: &Piece) -> Vec<String> {
        piece.contents().map(|content| LogRecord::decode(content).unwrap().event_name).collect()
    }

    #[test]
    fn halves_are_the_whole() {
        for buffers in [&[&["a", "b", "c"][..]][..], &[&["a"], &["b", "c", "d"], &["e"]], &[&["a"], &["b"]]] {
            let whole = piece(buffers);
            let (first, second) = whole.clone().split();
            assert_eq!((first.records, names(&first).len() as u64), (whole.records / 2, whole.records / 2));
            assert_eq!(names(&second).len() as u64, second.records);
            assert_eq!([names(&first), names(&second)].concat(), names(&whole));
        }
    }

    #[test]
    fn a_body_is_one_message_in_every_compression() {
        let envelope = Envelope::new(&[("service.name".to_owned(), "x".to_owned())]);
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mut body = envelope.body(&piece(&[&["a"], &["b", "c"]]), Protocol::Grpc, compression);
            let mut bytes = body.copy_to_bytes(body.remaining()).to_vec();
            let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            assert_eq!((bytes[0], length + 5), (u8::from(compression != Compression::None), bytes.len()));
            bytes.drain(..5);
            let mut plain = Vec::new();
            match compression {
                Compression::None => plain = bytes,
                Compression::Gzip => {
                    let _read = std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*bytes), &mut plain);
                }
                Compression::Zstd => plain = zstd::stream::decode_all(&*bytes).unwrap(),
            }
            let request = ExportLogsServiceRequest::decode(&*plain).unwrap();
            assert_eq!(request.resource_logs[0].scope_logs[0].log_records.len(), 3);
            assert_eq!(request.resource_logs[0].scope_logs[0].scope.as_ref().unwrap().name, "picket");
        }
    }

    #[test]
    fn what_is_set_aside_is_otlp_json() {
        let line = Envelope::new(&[]).json_line(&piece(&[&["picket.request"]])).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["eventName"], "picket.request");
    }
}
