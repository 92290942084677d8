//! What of heads and queries gets into records: what settings name, and nothing else.
//!
//! Promises: without names nothing is kept and nothing is allocated; a value that goes into a record is bounded
//! (`record::Captured`). Leaves to others: which names there are (`config`).

use record::{Captured, key, otlp::TEXT_BYTES_MAX};

/// Parameters that hold signatures or keys of stores, which OpenTelemetry wants redacted where queries are recorded (semantic
/// conventions, `url.query`).
const SENSITIVE: [&str; 4] = ["AWSAccessKeyId", "Signature", "sig", "X-Goog-Signature"];
/// Stands in place of a value.
const REDACTED: &str = "REDACTED";
/// Fields that hold credentials.
pub const CREDENTIALS: [&str; 4] = ["authorization", "cookie", "proxy-authorization", "set-cookie"];

/// The fields of a head, each shown to whoever asks: name and value.
pub type Fields<'a> = &'a dyn Fn(&mut See<'_>);
/// Who asks.
pub type See<'a> = dyn FnMut(&str, &[u8]) + 'a;

/// A field that is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    name: String,
    key: String,
}

/// What is recorded besides the schema.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capture {
    request: Vec<Field>,
    response: Vec<Field>,
    query: bool,
    parameters: Vec<String>,
}

impl Capture {
    /// Fields by their names in lower case; of the query all parameters (`query`), or these.
    pub fn new(request: &[String], response: &[String], query: bool, parameters: &[String]) -> Self {
        let fields = |prefix: &str, names: &[String]| {
            let field = |name: &String| Field { name: name.clone(), key: format!("{prefix}{name}") };
            names.iter().map(field).collect()
        };
        Self {
            request: fields(key::HTTP_REQUEST_HEADER, request),
            response: fields(key::HTTP_RESPONSE_HEADER, response),
            query,
            parameters: parameters.to_vec(),
        }
    }

    /// Nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty() && !self.query && self.parameters.is_empty()
    }

    /// Takes what is wanted of a request's head and its query.
    pub fn request(&self, fields: Fields<'_>, query: Option<&str>, into: &mut Captured) {
        if let Some(query) = query.filter(|_| self.query || !self.parameters.is_empty()) {
            self.take_query(query, into);
        }
        take(&self.request, fields, into);
    }

    /// Takes what is wanted of an answer's head.
    pub fn response(&self, fields: Fields<'_>, into: &mut Captured) {
        take(&self.response, fields, into);
    }

    /// Each value that is not asked for is `REDACTED`; so is a parameter without a value, whose name may be one. Some servers take
    /// ';' for '&': it ends a parameter too.
    fn take_query(&self, query: &str, into: &mut Captured) {
        let mut kept = String::new();
        for piece in query.split_inclusive(['&', ';']) {
            if kept.len() > TEXT_BYTES_MAX {
                break;
            }
            let parameter = piece.trim_end_matches(['&', ';']);
            match parameter.split_once('=') {
                Some((name, _)) if !self.shows(name) => kept.extend([name, "=", REDACTED]),
                None if !self.query && !parameter.is_empty() => kept.push_str(REDACTED),
                Some(_) | None => kept.push_str(parameter),
            }
            kept.push_str(&piece[parameter.len()..]);
        }
        into.text(key::URL_QUERY, &kept);
    }

    fn shows(&self, name: &str) -> bool {
        let is = |known: &str| decoded(name.as_bytes()).eq(known.bytes());
        self.parameters.iter().any(|known| is(known)) || (self.query && !SENSITIVE.iter().any(|known| is(known)))
    }
}

/// Takes each of the fields that is there; several of one name are one list (RFC 9110 section 5.3), and pieces of a cookie one cookie
/// (RFC 9113 section 8.2.3).
fn take(wanted: &[Field], fields: Fields<'_>, into: &mut Captured) {
    for Field { name, key } in wanted {
        let mut all: Option<String> = None;
        fields(&mut |of, value| {
            // One byte more than is kept shows that something was cut.
            if !of.eq_ignore_ascii_case(name) || all.as_ref().is_some_and(|all| all.len() > TEXT_BYTES_MAX) {
                return;
            }
            if let Some(all) = &mut all {
                all.push_str(if name == "cookie" { "; " } else { ", " });
            }
            all.get_or_insert_default().push_str(&String::from_utf8_lossy(value));
        });
        if let Some(value) = all {
            into.text(key, &value);
        }
    }
}

/// The bytes that a name in a query stands for: the same name may be written in many ways.
fn decoded(name: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = name;
    std::iter::from_fn(move || {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        match (byte, after) {
            (b'%', [high, low, end @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => {
                    rest = end;
                    Some((high << 4 | low) as u8)
                }
                _ => Some(byte),
            },
            _ => Some(byte),
        }
    })
}

#[cfg(test)]
mod tests {
    use record::line;

    use super::*;

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    fn shown(captured: &Captured) -> Vec<(String, String)> {
        let text = |(name, value): (&str, line::Attribute<'_>)| {
            let line::Attribute::Text(text) = value else { panic!("{name} is {value:?}") };
            (name.to_owned(), text.to_owned())
        };
        line::attributes(captured.bytes()).map(text).collect()
    }

    #[test]
    fn what_is_named_is_taken_and_nothing_else() {
        let capture = Capture::new(&names(&["x-request-id", "cookie", "x-bytes"]), &names(&["server"]), false, &[]);
        let fields: [(&str, &[u8]); 7] = [
            ("X-Request-ID", b"one"),
            ("Authorization", b"Bearer sesame"),
            ("x-request-id", b"two"),
            ("Cookie", b"a=1"),
            ("cookie", b"b=2"),
            ("X-Bytes", b"\xff!"),
            ("Server", b"of a request"),
        ];
        let mut captured = Captured::default();
        let shows = |see: &mut See<'_>| fields.iter().for_each(|(name, value)| see(name, value));
        capture.request(&shows, Some("q=sesame"), &mut captured);
        let of = |name: &str, value: &str| (format!("http.request.header.{name}"), value.to_owned());
        let expected = [of("x-request-id", "one, two"), of("cookie", "a=1; b=2"), of("x-bytes", "\u{fffd}!")];
        assert_eq!(shown(&captured), expected);
        let mut captured = Captured::default();
        capture.response(&shows, &mut captured);
        assert_eq!(shown(&captured), [("http.response.header.server".to_owned(), "of a request".to_owned())]);
        let (mut captured, nothing) = (Captured::default(), Capture::default());
        nothing.request(&shows, Some("q=sesame"), &mut captured);
        nothing.response(&shows, &mut captured);
        assert!(captured.is_empty() && nothing.is_empty() && !capture.is_empty());
    }

    #[test]
    fn of_a_query_only_values_that_are_asked_for_are_shown() {
        let check = |all: bool, parameters: &[&str], query: &str, expected: &str| {
            let mut captured = Captured::default();
            let capture = Capture::new(&[], &[], all, &names(parameters));
            capture.request(&|_| (), Some(query), &mut captured);
            assert_eq!(shown(&captured), [("url.query".to_owned(), expected.to_owned())], "{query}");
        };
        check(false, &["page"], "page=2&token=sesame", "page=2&token=REDACTED");
        check(false, &["page"], "sesame", "REDACTED");
        check(false, &["page"], "page&sesame&=sesame&&page=a=b", "REDACTED&REDACTED&=REDACTED&&page=a=b");
        check(false, &["page"], "p%61ge=2&Page=sesame&page%=sesame", "p%61ge=2&Page=REDACTED&page%=REDACTED");
        check(true, &[], "a=1&b&sig=sesame&s%69g=sesame", "a=1&b&sig=REDACTED&s%69g=REDACTED");
        check(
            true,
            &[],
            "AWSAccessKeyId=s&Signature=s&X-Goog-Signature=s",
            "AWSAccessKeyId=REDACTED&Signature=REDACTED&X-Goog-Signature=REDACTED",
        );
        check(true, &["sig"], "sig=1", "sig=1");
        check(false, &["page"], "page=2;token=sesame", "page=2;token=REDACTED");
        check(false, &["page"], "page=2;sesame;&page=3&;", "page=2;REDACTED;&page=3&;");
        check(true, &[], "a=1;sig=sesame&b", "a=1;sig=REDACTED&b");
        check(true, &[], "", "");
    }

    #[test]
    fn what_is_long_is_cut() {
        let capture = Capture::new(&names(&["a"]), &[], true, &[]);
        let (long, mut captured) = ("x".repeat(60_000), Captured::default());
        let shows = |see: &mut See<'_>| (0..128).for_each(|_| see("a", long.as_bytes()));
        capture.request(&shows, Some(&format!("q={long}")), &mut captured);
        assert!(shown(&captured).iter().all(|(_, value)| value.len() == TEXT_BYTES_MAX));
        assert!(captured.is_truncated());
    }
}
