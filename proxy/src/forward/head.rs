//! HTTP/1 heads: parsed once, refused where the grammar or the framing is in doubt, written again from the parsed form.
//!
//! `httparse` splits; the rules of RFC 9112 about framing, targets, Host and hop-by-hop fields are ours. What passes
//! here means the same to every server behind us.

use std::mem::MaybeUninit;

use record::Code;

use crate::capture::{Fields, See};

/// Fields that one head may have.
pub const FIELDS_MAX: usize = 128;

/// How a body is delimited (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// That many bytes.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// All bytes until the stream ends (responses only).
    UntilClose,
}

/// Why a head is not forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// How the record ends.
    pub code: Code,
    /// What was wrong, for a person.
    pub detail: &'static str,
}

fn refuse<T>(code: Code, detail: &'static str) -> Result<T, Refusal> {
    Err(Refusal { code, detail })
}

/// A trace parent (W3C Trace Context): trace id, span id, flags.
pub type TraceParent = ([u8; 16], [u8; 8], u8);

/// What we keep of a request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// The method, as sent.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The Host field or the authority of the target.
    pub authority: Option<String>,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub minor_version: u8,
    /// How the body is delimited.
    pub framing: Framing,
    /// The client wants to use the connection again.
    pub keep_alive: bool,
    /// The protocol that the client wants to switch to.
    pub upgrade: Option<String>,
    /// The trace that this request belongs to.
    pub trace: Option<TraceParent>,
}

impl RequestHead {
    /// May be sent again when nothing of an answer came (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }
}

/// What we keep of a response's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// How the body is delimited.
    pub framing: Framing,
    /// The server will take another request on this connection.
    pub keep_alive: bool,
}

impl ResponseHead {
    /// True for 1xx answers that are followed by another one.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

/// Finds the end of a head: the length with the empty line, or `None` while it is not complete.
///
/// # Errors
/// A line that ends without CR, or a CR without LF, which servers read differently; a head over `limit` bytes.
pub fn find_end(bytes: &[u8], limit: usize) -> Result<Option<usize>, Refusal> {
    let mut line_start = 0;
    while let Some(at) = bytes[line_start..].iter().position(|&byte| byte == b'\n' || byte == b'\r') {
        let at = line_start + at;
        if bytes[at] == b'\n' {
            return refuse(Code::RequestMalformed, "a line of the head ends without CR");
        }
        match bytes.get(at + 1) {
            None => break,
            Some(b'\n') => {}
            Some(_) => return refuse(Code::RequestMalformed, "a bare CR in the head"),
        }
        let empty = at == line_start;
        line_start = at + 2;
        if line_start > limit {
            return refuse(Code::RequestHeadTooLarge, "the head is over the limit");
        }
        // Empty lines in front of a request are skipped (RFC 9112 section 2.2).
        if empty && at != 0 && bytes[..at].iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
            return Ok(Some(line_start));
        }
    }
    if bytes.len() > limit { refuse(Code::RequestHeadTooLarge, "the head is over the limit") } else { Ok(None) }
}

/// Parses a complete request head and appends to `out` the head to forward. `see` gets the fields and the query of a head that is
/// forwarded.
///
/// # Errors
/// With the code of the refusal; `out` may then hold a part of a head.
pub fn request(
    bytes: &[u8],
    out: &mut Vec<u8>,
    see: impl FnOnce(Fields<'_>, Option<&str>),
) -> Result<RequestHead, Refusal> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return refuse(Code::RequestMalformed, "the head is not complete"),
        Err(httparse::Error::TooManyHeaders) => return refuse(Code::RequestHeadTooLarge, "more than 128 fields"),
        Err(httparse::Error::Version) => return refuse(Code::RequestVersionUnsupported, "not HTTP/1.0 or HTTP/1.1"),
        Err(_) => return refuse(Code::RequestMalformed, "the head does not follow the grammar of RFC 9112"),
    }
    let (Some(method), Some(target), Some(minor_version)) = (parsed.method, parsed.path, parsed.version) else {
        return refuse(Code::RequestMalformed, "the request line is not complete");
    };
    let fields = Framed::read(parsed.headers)?;
    let (path, target_authority) = check_target(method, target)?;
    let host = fields.host(minor_version)?;
    if let (Some(authority), Some(host)) = (target_authority, host)
        && !authority.eq_ignore_ascii_case(host)
    {
        return refuse(Code::RequestAmbiguous, "the target and Host name different authorities");
    }
    let framing = fields.request_framing(minor_version)?;
    let upgrade = fields.upgrade();
    if upgrade.is_some() && framing != Framing::None && framing != Framing::Length(0) {
        return refuse(Code::RequestAmbiguous, "an upgrade with a body");
    }
    for part in [method, " ", target, if minor_version == 0 { " HTTP/1.0\r\n" } else { " HTTP/1.1\r\n" }] {
        out.extend_from_slice(part.as_bytes());
    }
    fields.write(parsed.headers, upgrade, out);
    see(&shown(parsed.headers), target.split_once('?').map(|(_, query)| query));
    Ok(RequestHead {
        method: method.to_owned(),
        path: path.to_owned(),
        authority: target_authority.or(host).map(str::to_owned),
        minor_version,
        framing,
        keep_alive: minor_version == 1 && !fields.close,
        upgrade: upgrade.map(str::to_owned),
        trace: fields.trace,
    })
}

/// Parses a complete response head to `request` and appends to `out` the head to forward.
///
/// `close` adds `Connection: close`, for a client connection that ends with this answer. `see` gets the fields of a final answer.
///
/// # Errors
/// With the code of the refusal; `out` may then hold a part of a head.
pub fn response(
    bytes: &[u8],
    request: &RequestHead,
    close: bool,
    out: &mut Vec<u8>,
    see: impl FnOnce(Fields<'_>),
) -> Result<ResponseHead, Refusal> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return refuse(Code::ResponseMalformed, "the head is not complete"),
        Err(httparse::Error::TooManyHeaders) => return refuse(Code::ResponseHeadTooLarge, "more than 128 fields"),
        Err(_) => return refuse(Code::ResponseMalformed, "the head does not follow the grammar of RFC 9112"),
    }
    let (Some(status), Some(minor_version)) = (parsed.code, parsed.version) else {
        return refuse(Code::ResponseMalformed, "the status line is not complete");
    };
    let as_response = |refusal: Refusal| Refusal { code: Code::ResponseMalformed, detail: refusal.detail };
    let fields = Framed::read(parsed.headers).map_err(as_response)?;
    let framing = fields.response_framing(status, request).map_err(as_response)?;
    let upgrade = if status == 101 { fields.upgrade() } else { None };
    if status == 101 && (request.upgrade.is_none() || upgrade.is_none()) {
        return refuse(Code::ResponseMalformed, "101 without a request for an upgrade");
    }
    out.extend_from_slice(if minor_version == 0 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(&[
        b'0' + (status / 100) as u8,
        b'0' + (status / 10 % 10) as u8,
        b'0' + (status % 10) as u8,
        b' ',
    ]);
    out.extend_from_slice(parsed.reason.unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    if close && status >= 200 {
        out.extend_from_slice(b"connection: close\r\n");
    }
    fields.write(parsed.headers, upgrade, out);
    let keep_alive = minor_version == 1 && !fields.close && framing != Framing::UntilClose;
    let head = ResponseHead { status, framing, keep_alive };
    if !head.is_interim() {
        see(&shown(parsed.headers));
    }
    Ok(head)
}

/// Checks a request target (RFC 9112 section 3.2): the path without query, and the authority of an absolute form.
fn check_target<'a>(method: &str, target: &'a str) -> Result<(&'a str, Option<&'a str>), Refusal> {
    if target.bytes().any(|byte| byte == b'#' || byte <= b' ' || byte >= 0x7f) {
        return refuse(Code::RequestMalformed, "a byte in the target that RFC 3986 does not allow");
    }
    let (path, authority) = if method == "CONNECT" {
        if target.contains(['@', '/', '?']) {
            return refuse(Code::RequestMalformed, "the target of CONNECT is not host and port alone");
        }
        return Ok((target, Some(target)));
    } else if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        (target, None)
    } else if let Some(rest) = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://")) {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        if end == 0 || rest[..end].contains('@') {
            return refuse(Code::RequestMalformed, "an absolute target without authority, or with user information");
        }
        (if rest[end..].is_empty() { "/" } else { &rest[end..] }, Some(&rest[..end]))
    } else {
        return refuse(Code::RequestMalformed, "the target has no form of RFC 9112 section 3.2");
    };
    Ok((path.split('?').next().unwrap_or(path), authority))
}

/// The fields, for whoever records them.
fn shown(fields: &[httparse::Header<'_>]) -> impl Fn(&mut See<'_>) {
    |see| fields.iter().for_each(|field| see(field.name, field.value))
}

/// The fields that decide about framing and about the hop.
#[derive(Default)]
struct Framed<'a> {
    host: Option<&'a [u8]>,
    content_length: Option<u64>,
    chunked: bool,
    close: bool,
    connection: Vec<&'a str>,
    upgrade: Option<&'a str>,
    trace: Option<TraceParent>,
}

impl<'a> Framed<'a> {
    fn read(fields: &[httparse::Header<'a>]) -> Result<Self, Refusal> {
        let mut read = Self::default();
        for field in fields {
            read.note(field.name, field.value)?;
        }
        if read.chunked && read.content_length.is_some() {
            return refuse(Code::RequestAmbiguous, "both Transfer-Encoding and Content-Length");
        }
        Ok(read)
    }

    fn note(&mut self, name: &str, value: &'a [u8]) -> Result<(), Refusal> {
        if name.eq_ignore_ascii_case("host") {
            if self.host.replace(value).is_some() {
                return refuse(Code::RequestAmbiguous, "more than one Host");
            }
        } else if name.eq_ignore_ascii_case("content-length") {
            if self.content_length.replace(decimal(value)?).is_some() {
                return refuse(Code::RequestAmbiguous, "more than one Content-Length");
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return refuse(Code::RequestAmbiguous, "a Transfer-Encoding that is not one chunked");
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            self.note_connection(value)?;
        } else if name.eq_ignore_ascii_case("upgrade") {
            self.upgrade = std::str::from_utf8(value).ok().map(str::trim);
        } else if name.eq_ignore_ascii_case("traceparent") {
            self.trace = trace_parent(value);
        }
        Ok(())
    }

    fn note_connection(&mut self, value: &'a [u8]) -> Result<(), Refusal> {
        let Ok(value) = std::str::from_utf8(value) else {
            return refuse(Code::RequestMalformed, "Connection is not a list of tokens");
        };
        for option in value.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            const FRAMING: [&str; 4] = ["host", "content-length", "transfer-encoding", "authorization"];
            if FRAMING.iter().any(|name| option.eq_ignore_ascii_case(name)) {
                return refuse(Code::RequestAmbiguous, "Connection names a field that must be forwarded");
            }
            self.close |= option.eq_ignore_ascii_case("close");
            self.connection.push(option);
        }
        Ok(())
    }

    fn host(&self, minor_version: u8) -> Result<Option<&'a str>, Refusal> {
        let Some(host) = self.host else {
            return if minor_version == 0 { Ok(None) } else { refuse(Code::RequestMalformed, "no Host") };
        };
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(byte);
        match std::str::from_utf8(host) {
            Ok(text) if host.iter().all(allowed) => Ok(Some(text)),
            Ok(_) | Err(_) => refuse(Code::RequestMalformed, "Host is not an authority"),
        }
    }

    fn request_framing(&self, minor_version: u8) -> Result<Framing, Refusal> {
        match (self.chunked, self.content_length) {
            (true, _) if minor_version == 0 => refuse(Code::RequestAmbiguous, "Transfer-Encoding in HTTP/1.0"),
            (true, _) => Ok(Framing::Chunked),
            (false, Some(length)) => Ok(Framing::Length(length)),
            (false, None) => Ok(Framing::None),
        }
    }

    fn response_framing(&self, status: u16, request: &RequestHead) -> Result<Framing, Refusal> {
        let connected = request.method == "CONNECT" && (200..300).contains(&status);
        Ok(if request.method == "HEAD" || status < 200 || status == 204 || status == 304 || connected {
            Framing::None
        } else if self.chunked {
            if request.minor_version == 0 {
                return refuse(Code::ResponseMalformed, "Transfer-Encoding to a client of HTTP/1.0");
            }
            Framing::Chunked
        } else {
            self.content_length.map_or(Framing::UntilClose, Framing::Length)
        })
    }

    /// The protocol to switch to; h2c is not honoured (RFC 9113 section 3.1 removed it).
    fn upgrade(&self) -> Option<&'a str> {
        let asked = self.connection.iter().any(|option| option.eq_ignore_ascii_case("upgrade"));
        self.upgrade.filter(|protocol| asked && !protocol.is_empty() && !protocol.to_ascii_lowercase().contains("h2c"))
    }

    fn is_hop_by_hop(&self, name: &str) -> bool {
        const ALWAYS: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "upgrade", "http2-settings"];
        ALWAYS.iter().any(|known| name.eq_ignore_ascii_case(known))
            || (self.connection.iter().any(|option| name.eq_ignore_ascii_case(option))
                && !name.eq_ignore_ascii_case("te"))
    }

    fn write(&self, fields: &[httparse::Header<'_>], upgrade: Option<&str>, out: &mut Vec<u8>) {
        for field in fields {
            if self.is_hop_by_hop(field.name) {
                continue;
            }
            // Of TE only what every hop of ours can do goes on.
            if field.name.eq_ignore_ascii_case("te") && !field.value.eq_ignore_ascii_case(b"trailers") {
                continue;
            }
            for part in [field.name.as_bytes(), b": ", field.value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        if let Some(protocol) = upgrade {
            for part in ["connection: upgrade\r\nupgrade: ", protocol, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Digits only: no sign, no list, no space (RFC 9110 section 8.6).
fn decimal(value: &[u8]) -> Result<u64, Refusal> {
    let number =
        std::str::from_utf8(value).ok().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    match number.and_then(|text| text.parse().ok()) {
        Some(number) => Ok(number),
        None => refuse(Code::RequestAmbiguous, "Content-Length is not one decimal number"),
    }
}

/// Reads a `traceparent` field of version 00 (W3C Trace Context section 3.2).
pub fn trace_parent(value: &[u8]) -> Option<TraceParent> {
    fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
        let mut out = [0; N];
        for (byte, pair) in out.iter_mut().zip(text.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        (text.len() == 2 * N).then_some(out)
    }
    let mut parts = value.split(|&byte| byte == b'-');
    let version = parts.next()?;
    let (trace, span, flags) = (hex::<16>(parts.next()?)?, hex::<8>(parts.next()?)?, hex::<1>(parts.next()?)?);
    (version == b"00" && trace != [0; 16] && span != [0; 8]).then_some((trace, span, flags[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str) -> Result<(RequestHead, String), Code> {
        let end = find_end(input.as_bytes(), 65536).map_err(|refusal| refusal.code)?.ok_or(Code::RequestMalformed)?;
        let mut out = Vec::new();
        let head = request(&input.as_bytes()[..end], &mut out, |_, _| ()).map_err(|refusal| refusal.code)?;
        Ok((head, String::from_utf8(out).unwrap()))
    }

    #[test]
    fn what_is_in_doubt_is_refused() {
        let cases: &[(&str, Code)] = &[
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                Code::RequestAmbiguous,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
                Code::RequestAmbiguous,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", Code::RequestAmbiguous),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: cow, chunked\r\n\r\n", Code::RequestAmbiguous),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                Code::RequestAmbiguous,
            ),
            ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Code::RequestAmbiguous),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", Code::RequestAmbiguous),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n", Code::RequestAmbiguous),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n", Code::RequestAmbiguous),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n", Code::RequestAmbiguous),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Code::RequestAmbiguous),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", Code::RequestMalformed),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Code::RequestMalformed),
            ("GET / HTTP/1.1\r\n\r\n", Code::RequestMalformed),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", Code::RequestAmbiguous),
            ("GET /#f HTTP/1.1\r\nHost: a\r\n\r\n", Code::RequestMalformed),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", Code::RequestMalformed),
            ("GET / HTTP/1.1\nHost: a\n\n", Code::RequestMalformed),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", Code::RequestMalformed),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", Code::RequestMalformed),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", Code::RequestMalformed),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Code::RequestMalformed),
            ("GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n", Code::RequestMalformed),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Code::RequestVersionUnsupported),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\n\r\n", Code::RequestAmbiguous),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 4\r\n\r\n",
                Code::RequestAmbiguous,
            ),
        ];
        for (input, code) in cases {
            assert_eq!(check(input).map(|(head, _)| head).unwrap_err(), *code, "{input:?}");
        }
    }

    #[test]
    fn hop_by_hop_fields_stay_behind() {
        let (head, out) = check(
            "GET /a?b=c HTTP/1.1\r\nHost: web:80\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nAccept: */*\r\n\r\n",
        )
        .unwrap();
        assert_eq!(out, "GET /a?b=c HTTP/1.1\r\nHost: web:80\r\nTE: trailers\r\nAccept: */*\r\n\r\n");
        assert_eq!((head.path.as_str(), head.authority.as_deref(), head.keep_alive), ("/a", Some("web:80"), true));
    }

    #[test]
    fn an_upgrade_goes_on_but_h2c_does_not() {
        let (head, out) =
            check("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
        assert_eq!(head.upgrade.as_deref(), Some("websocket"));
        assert!(out.ends_with("connection: upgrade\r\nupgrade: websocket\r\n\r\n"));
        let (head, out) =
            check("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n").unwrap();
        assert_eq!((head.upgrade, out.as_str()), (None, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    }

    #[test]
    fn a_head_over_the_limit_is_refused_before_it_ends() {
        let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(70_000));
        assert_eq!(find_end(long.as_bytes(), 65536).unwrap_err().code, Code::RequestHeadTooLarge);
    }

    #[test]
    fn responses_are_framed_as_their_request_asks() {
        let (get, _) = check("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let framing =
            |text: &str| response(text.as_bytes(), &get, false, &mut Vec::new(), |_| ()).map(|head| head.framing);
        assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), Ok(Framing::Length(5)));
        assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\n"), Ok(Framing::UntilClose));
        assert_eq!(framing("HTTP/1.1 204 No Content\r\n\r\n"), Ok(Framing::None));
        assert!(framing("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").is_err());
        assert!(framing("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
