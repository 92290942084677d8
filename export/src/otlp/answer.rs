//! What a collector's answer means: the rules of the OTLP specification ("OTLP/gRPC Response", "OTLP/HTTP Response").
//!
//! Promises: what may be tried again is told from what must not; nothing that a collector answers causes a panic or a wait
//! of more than [`PAUSE_MAX`]; an answer that is no OTLP answer does not count as one.
//!
//! One thing is added to the specification. It knows two kinds of failure; we tell a third from those that must not be
//! tried again: the endpoint refuses *us* (no or wrong credentials, no such service), whatever we send. That says nothing
//! about the records, so they wait, and the endpoint counts as away.

use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use prost::Message;
use tonic::Code;

/// A collector may ask for a pause of this much.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Characters of a collector's message that are repeated to people.
const MESSAGE_CHARS_MAX: usize = 512;

/// What to do with the records of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// All but `refused` of them are the collector's now; which these are it does not say.
    Taken {
        /// How many it will never take.
        refused: u64,
        /// What it says about them.
        message: String,
    },
    /// Try again after the pause, or elsewhere.
    Away {
        /// Why.
        why: String,
        /// What the collector asked for.
        pause: Duration,
    },
    /// They are too many at once.
    TooLarge(String),
    /// They must not be tried again as they are: at least one of them is refused for good.
    Refused(String),
}

impl Answer {
    fn away(why: String) -> Self {
        Self::Away { why, pause: Duration::ZERO }
    }
}

/// A whole answer, whatever the protocol.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) trailers: HeaderMap,
    pub(super) body: Bytes,
}

impl Response {
    /// By the rules for OTLP/gRPC.
    pub(super) fn of_grpc(&self) -> Answer {
        if self.status != StatusCode::OK {
            return from_proxy(self.status);
        }
        // A failure without a message has its status in the headers.
        let from = if self.trailers.contains_key("grpc-status") { &self.trailers } else { &self.headers };
        let Some(code) = from.get("grpc-status") else {
            return Answer::away("the answer ended without a status".to_owned());
        };
        let code = Code::from_bytes(code.as_bytes());
        if code == Code::Ok {
            return match self.body.split_first_chunk::<5>() {
                // Not compressed: we accept no compression.
                Some(([0, ..], message)) => taken(ExportLogsServiceResponse::decode(message).ok()),
                Some(_) | None => taken(None),
            };
        }
        let message = from.get("grpc-message").map(|text| percent_decode(text.as_bytes())).unwrap_or_default();
        let details = from.get("grpc-status-details-bin").map(|text| text.as_bytes());
        let details = details.and_then(|text| STANDARD_NO_PAD.decode(text.trim_ascii_end_of(b'=')).ok());
        let retry_info = details.and_then(|details| retry_info(&details));
        of_code(code, &shown(&message), retry_info)
    }

    /// By the rules for OTLP/HTTP.
    pub(super) fn of_http(&self) -> Answer {
        if self.status.is_success() {
            let is_json = self.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().ends_with(b"json"));
            return taken(match is_json {
                true => from_json(&self.body),
                false => ExportLogsServiceResponse::decode(self.body.clone()).ok(),
            });
        }
        let message = RpcStatus::decode(self.body.clone()).map(|status| status.message).unwrap_or_default();
        let why = format!("HTTP {} {}", self.status.as_u16(), shown(&message)).trim_end().to_owned();
        match self.status.as_u16() {
            429 | 502 | 503 | 504 => Answer::Away { why, pause: retry_after(&self.headers).unwrap_or_default() },
            413 => Answer::TooLarge(why),
            300..=399 | 401 | 403 | 404 | 405 | 407 | 421 | 501 | 505 => Answer::away(format!("it refuses us: {why}")),
            _ => Answer::Refused(why),
        }
    }
}

/// An answer in JSON, which some give to protobuf, too.
fn from_json(body: &[u8]) -> Option<ExportLogsServiceResponse> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let partial = answer.as_object()?.get("partialSuccess").filter(|partial| !partial.is_null());
    let partial_success = partial.map(|partial| {
        let rejected = &partial["rejectedLogRecords"];
        ExportLogsPartialSuccess {
            // 64-bit numbers are text there, or not.
            rejected_log_records: rejected.as_i64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or_default(),
            error_message: partial["errorMessage"].as_str().unwrap_or_default().to_owned(),
        }
    });
    Some(ExportLogsServiceResponse { partial_success })
}

trait TrimEnd {
    fn trim_ascii_end_of(&self, byte: u8) -> &[u8];
}

impl TrimEnd for [u8] {
    fn trim_ascii_end_of(&self, byte: u8) -> &[u8] {
        let end = self.iter().rposition(|found| *found != byte).map_or(0, |last| last + 1);
        &self[..end]
    }
}

fn taken(response: Option<ExportLogsServiceResponse>) -> Answer {
    let Some(response) = response else {
        return Answer::away("it says OK, but not as an OTLP collector does".to_owned());
    };
    let partial = response.partial_success.unwrap_or_default();
    Answer::Taken { refused: partial.rejected_log_records.max(0) as u64, message: shown(&partial.error_message) }
}

/// Something between us and the collector answers (gRPC, "HTTP to gRPC Status Code Mapping").
fn from_proxy(status: StatusCode) -> Answer {
    let why = format!("HTTP {}", status.as_u16());
    match status.as_u16() {
        429 | 502 | 503 | 504 => Answer::away(why),
        413 => Answer::TooLarge(why),
        400 => Answer::Refused(why),
        _ => Answer::away(format!("it refuses us: {why}")),
    }
}

fn of_code(code: Code, message: &str, retry_info: Option<Duration>) -> Answer {
    let why = format!("{code:?}: {message}").trim_end_matches(": ").to_owned();
    if matches!(code, Code::ResourceExhausted | Code::OutOfRange) && is_about_size(message) {
        return Answer::TooLarge(why);
    }
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Answer::Away { why, pause: retry_info.unwrap_or_default() },
        Code::ResourceExhausted => match retry_info {
            Some(pause) => Answer::Away { why, pause },
            None => Answer::Refused(why),
        },
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::NotFound => {
            Answer::away(format!("it refuses us: {why}"))
        }
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Internal => Answer::Refused(why),
    }
}

/// Go: "received message larger than max", Java: "exceeds maximum size", tonic (as OUT_OF_RANGE, which OTLP would have
/// us try again for ever): "decoded message length too large".
fn is_about_size(message: &str) -> bool {
    ["larger than max", "exceeds maximum", "length too large", "message too large"]
        .iter()
        .any(|words| message.contains(words))
}

/// Seconds or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).unwrap_or_default(),
    };
    Some(pause.min(PAUSE_MAX))
}

/// `google.rpc.Status`.
#[derive(Message)]
struct RpcStatus {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

#[derive(Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// `google.rpc.RetryInfo` in the details of a status.
fn retry_info(details: &[u8]) -> Option<Duration> {
    let details = RpcStatus::decode(details).ok()?.details;
    let info = details.into_iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay.unwrap_or_default();
    let delay = Duration::new(delay.seconds.max(0) as u64, delay.nanos.clamp(0, 999_999_999) as u32);
    Some(delay.min(PAUSE_MAX))
}

fn percent_decode(text: &[u8]) -> String {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A collector's message as people get to see it.
fn shown(message: &str) -> String {
    message.chars().take(MESSAGE_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Response {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let status = StatusCode::from_u16(status).unwrap();
        Response { status, trailers: headers.clone(), headers, body: Bytes::copy_from_slice(body) }
    }

    fn word(answer: &Answer) -> &'static str {
        match answer {
            Answer::Taken { .. } => "taken",
            Answer::Away { .. } => "away",
            Answer::TooLarge(_) => "too large",
            Answer::Refused(_) => "refused",
        }
    }

    #[test]
    fn each_grpc_code_means_what_the_specification_says() {
        let expected = |code: i32| match code {
            1 | 4 | 10 | 11 | 14 | 15 => "away",
            // Not about the records.
            5 | 7 | 12 | 16 => "away",
            _ => "refused",
        };
        for code in 1..=17 {
            let answer = response(200, &[("grpc-status", &code.to_string())], b"").of_grpc();
            assert_eq!(word(&answer), expected(code), "{code}");
        }
        for (code, message) in [
            ("8", "grpc: received message larger than max (5 vs. 4)"),
            ("11", "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes"),
        ] {
            let answer = response(200, &[("grpc-status", code), ("grpc-message", message)], b"").of_grpc();
            assert_eq!(word(&answer), "too large", "{message}");
        }
    }

    #[test]
    fn a_pause_is_kept_within_bounds() {
        let details = |seconds: i64| {
            let value = RetryInfo { retry_delay: Some(Delay { seconds, nanos: 5 }) }.encode_to_vec();
            let any = Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(), value };
            let status = RpcStatus { message: String::new(), details: vec![any] }.encode_to_vec();
            STANDARD_NO_PAD.encode(status)
        };
        for (seconds, pause) in [(3, Duration::new(3, 5)), (i64::MAX, PAUSE_MAX), (-1, Duration::from_nanos(5))] {
            let headers = [("grpc-status", "8"), ("grpc-status-details-bin", &details(seconds))];
            let answer = response(200, &headers, b"").of_grpc();
            assert!(matches!(answer, Answer::Away { pause: found, .. } if found == pause), "{answer:?}");
        }
        for (text, pause) in
            [("7", 7), ("999999999999", 300), ("Sun, 06 Nov 1994 08:49:37 GMT", 0), ("-1", 0), ("soon", 0)]
        {
            let answer = response(503, &[("retry-after", text)], b"").of_http();
            let pause = Duration::from_secs(pause);
            assert!(matches!(answer, Answer::Away { pause: found, .. } if found == pause), "{text}: {answer:?}");
        }
    }

    #[test]
    fn each_http_status_means_what_the_specification_says() {
        for status in (200..600).filter(|status| StatusCode::from_u16(*status).is_ok()) {
            let expected = match status {
                200..300 => "taken",
                429 | 502 | 503 | 504 => "away",
                300..=399 | 401 | 403 | 404 | 405 | 407 | 421 | 501 | 505 => "away",
                413 => "too large",
                _ => "refused",
            };
            assert_eq!(word(&response(status, &[], b"").of_http()), expected, "{status}");
        }
    }

    #[test]
    fn ok_from_somebody_else_is_no_acknowledgement() {
        let page = response(200, &[("content-type", "text/html")], b"<html>please log in</html>");
        assert_eq!(word(&page.of_http()), "away");
        for body in [&b""[..], b"\x00\x00\x00", b"\x01\x00\x00\x00\x00", b"\x00\x00\x00\x00\x02\xff\xff"] {
            assert_eq!(word(&response(200, &[("grpc-status", "0")], body).of_grpc()), "away", "{body:?}");
        }
        assert_eq!(word(&response(200, &[("grpc-status", "0")], b"\x00\x00\x00\x00\x00").of_grpc()), "taken");
        let json = [("content-type", "application/json")];
        let body = br#"{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"no"}}"#;
        let answer = response(200, &json, body).of_http();
        assert_eq!(answer, Answer::Taken { refused: 2, message: "no".to_owned() });
        assert_eq!(word(&response(200, &json, b"{}").of_http()), "taken");
    }

    #[test]
    fn nothing_in_a_status_panics() {
        for (name, value) in [
            ("grpc-status-details-bin", "!!!"),
            ("grpc-status-details-bin", "AAAA===="),
            ("grpc-message", "%"),
            ("grpc-message", "%ff%0"),
        ] {
            let answer = response(200, &[("grpc-status", "14"), (name, value)], b"").of_grpc();
            assert_eq!(word(&answer), "away", "{value}");
        }
        assert_eq!(percent_decode(b"a%20b%4"), "a b%4");
    }
}
