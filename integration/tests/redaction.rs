//! A secret that is planted anywhere in traffic appears nowhere: not in records, logs, metrics or the files of a spool. What settings
//! name appears in records, and in nothing that is not made of them.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hasher, RandomState},
    net::SocketAddr,
};

use integration::{DEADLINE, Stage, WEB_PORT, accept, service};
use serde_json::json;
use testkit::{Settings, Stream, until};

/// Where the secret of each case stands.
const SECRET: &str = "{S}";
/// How often each case runs, with other secrets and other surroundings.
const ROUNDS: usize = 4;
/// In a path, where it may be seen: what the search below does find.
const MARK: &str = "seen-on-purpose";

/// Bytes of clients that speak HTTP/1, or do not.
const HTTP1: &[&str] = &[
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\nAuthorization: Bearer {S}\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\nCookie: session={S}\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\nProxy-Authorization: Basic {S}\r\nX-Api-Key: {S}\r\n\r\n",
    "GET /hello.txt?token={S} HTTP/1.1\r\nHost: web\r\nReferer: http://a/?{S}\r\n\r\n",
    "GET http://web/hello.txt?token={S} HTTP/1.1\r\nHost: web\r\n\r\n",
    "GET http://web?{S} HTTP/1.1\r\nHost: web\r\n\r\n",
    "GET http://user:{S}@web/hello.txt HTTP/1.1\r\nHost: web\r\n\r\n",
    "GET ftp://user:{S}@web/ HTTP/1.1\r\nHost: web\r\n\r\n",
    "GET {S} HTTP/1.1\r\nHost: web\r\n\r\n",
    "GET /hello.txt#{S} HTTP/1.1\r\nHost: web\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: user:{S}@web\r\n\r\n",
    "CONNECT user:{S}@web:80 HTTP/1.1\r\nHost: web\r\n\r\n",
    "CONNECT web:80?{S} HTTP/1.1\r\nHost: web\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: web\r\nCookie: {S}\r\n\r\n",
    "POST /hello.txt HTTP/1.1\r\nHost: web\r\nContent-Length: 24\r\n\r\n{S}",
    "POST /hello.txt HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody{S} GET / HTTP/1.1\r\n\r\n",
    "POST /hello.txt HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\n{S}",
    "POST /hello.txt HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n{S}\r\n",
    "POST /hello.txt HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: {S}\r\n\r\n",
    "Authorization: Bearer {S}\r\n\r\n",
    "password={S} /{S} HTTP/1.1\r\n\r\n",
    "AUTH {S}\r\n",
    "{S}\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\nX: {S}\rb\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\nAuthorization: {S}\r\n {S}\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\nCookie: {S}",
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\n{S}: a\r\n{S}\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: {S}/a\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\nContent-Length: {S}\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: {S}\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\nConnection: {S}\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: {S}\r\n\r\n",
    "GET /hello.txt HTTP/1.1\r\nHost: web\r\ntraceparent: 00-{S}-{S}-01\r\n\r\n",
    "GET /hello.txt HTTP/3.{S}\r\nHost: web\r\n\r\n",
    "GET /hello.txt?{S} HTTP/9.9\r\nHost: web\r\nCookie: {S}\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{S}",
    // Beside what is named, and in a head that is not forwarded.
    "GET /hello.txt?page=1&token={S}&{S}&Page={S} HTTP/1.1\r\nHost: web\r\nX-Named: 1\r\nX-Named-Too: {S}\r\nX-Answer: {S}\r\n\r\n",
    "GET /hello.txt?page={S} HTTP/1.1\r\nHost: web\r\nX-Named: {S}\r\nContent-Length: x\r\n\r\n",
];

/// Where a secret is asked for by name, over each version and in an answer.
const NAMED_HTTP1: &str = "GET /hello.txt?page={S} HTTP/1.1\r\nHost: web\r\nX-Named: {S}\r\nX-NAMED: more-{S}\r\n\r\n";
const NAMED_HTTP2: &[&str] = &["--header", "X-Named: {S}", "http://WEB/hello.txt?page={S}"];
const NAMED_ANSWER: &str = "HTTP/1.1 200 OK\r\nX-Answer: {S}\r\nContent-Length: 0\r\n\r\n";

/// Options of curl that speaks HTTP/2 without TLS.
const HTTP2: &[&[&str]] = &[
    &["--header", "Authorization: Bearer {S}", "http://WEB/hello.txt"],
    &["--header", "Cookie: {S}", "--header", "X-Api-Key: {S}", "http://WEB/hello.txt?{S}"],
    &["--header", "Host: user:{S}@web", "http://WEB/hello.txt"],
    &["--header", "X-Named: 1", "--header", "X-Named-Too: {S}", "http://WEB/hello.txt?page=1&token={S}"],
    &["--data", "password={S}", "--user", "user:{S}", "http://WEB/hello.txt"],
];

/// What servers answer.
const ANSWERS: &[&str] = &[
    "HTTP/1.1 200 OK\r\nSet-Cookie: session={S}\r\nLocation: http://u:{S}@web/?{S}\r\nContent-Length: 24\r\n\r\n{S}",
    "HTTP/1.1 302 {S}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "HTTP/1.1 200 OK\r\nSet-Cookie: {S}\rb\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: {S}\r\n\r\n",
    "{S}\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{S}\r\n",
];

/// Makes secrets, and knows where each was planted.
#[derive(Default)]
struct Secrets(BTreeMap<String, String>);

impl Secrets {
    /// The case with a secret of its own: 24 characters that nothing else has.
    fn plant(&mut self, case: &str) -> String {
        let random = || RandomState::new().build_hasher().finish();
        let secret = format!("{:016x}{:08x}", random(), random() as u32);
        self.0.insert(secret.clone(), case.to_owned());
        case.replace(SECRET, &secret)
    }

    /// Fails with the case whose secret, or its first half, is in the text.
    fn assert_absent(&self, from: &str, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
        for (secret, case) in &self.0 {
            let found = text.find(&secret[..12]);
            let around = found.map(|at| text.chars().skip(at.saturating_sub(300)).take(600).collect::<String>());
            assert_eq!(around, None, "{from} tells the secret of {case:?}");
        }
    }
}

#[test]
fn a_planted_secret_appears_nowhere() {
    let settings = Settings {
        spool: Some(json!({ "minFreeBytes": "1MiB" })),
        log_level: "debug".to_owned(),
        plaintext: testkit::Plaintext::Permissive,
        proxy: vec![(
            "records",
            json!({
                "requestHeaders": ["X-Named"], "responseHeaders": ["x-answer"], "queryParameters": ["page"]
            }),
        )],
        ..Settings::default()
    };
    // Nobody serves the one, and a test the other.
    let more = [service("dead", 11, 81, 9, Some("http")), service("raw", 12, 82, 8082, Some("http"))];
    let stage = Stage::with_services(&settings, &more).unwrap();
    let mut secrets = Secrets::default();
    let to = |number, port| SocketAddr::from(([10, 96, 0, number], port));
    let server = stage.mesh.pod("server").unwrap().pod.ipv4;
    for round in 0..ROUNDS {
        for (at, case) in HTTP1.iter().enumerate() {
            // Through both proxies, to a server that is not there, and from outside the mesh.
            let (pod, target) = match (at + round) % 3 {
                0 => ("client", to(10, WEB_PORT)),
                1 => ("client", to(11, 81)),
                _ => ("stranger", SocketAddr::from((server, integration::WEB_TARGET))),
            };
            let mut bytes = secrets.plant(case);
            if round == 3 {
                // A head that is too long, with the secret at its beginning.
                bytes = bytes.replacen("\r\nHost", &format!("\r\nX: {}\r\nHost", "a".repeat(70_000)), 1);
            }
            let mut wire = stage.dial(pod, target).unwrap();
            // Who refuses may close before everything was sent.
            let _sent = wire.send(&bytes);
            let _ended = wire.end();
            let _answer = wire.rest();
        }
        for case in HTTP2 {
            let planted: Vec<_> = case.iter().map(|word| secrets.plant(word).replace("WEB", "10.96.0.10")).collect();
            let mut arguments = vec!["--silent", "--http2-prior-knowledge", "--max-time", "10"];
            arguments.extend(planted.iter().map(String::as_str));
            // The server speaks HTTP/1 alone: most of these end in an error, which is recorded.
            let _answer = stage.run("client", "curl", &arguments);
        }
    }
    let mut named = Secrets::default();
    let mut wire = stage.dial("client", to(10, WEB_PORT)).unwrap();
    wire.send(named.plant(NAMED_HTTP1)).unwrap();
    wire.head().unwrap();
    drop(wire);
    let planted: Vec<_> = {
        let all = named.plant(&NAMED_HTTP2.join("\n"));
        all.split('\n').map(|word| word.replace("WEB", "10.96.0.10")).collect()
    };
    let mut arguments = vec!["--silent", "--http2-prior-knowledge", "--max-time", "10"];
    arguments.extend(planted.iter().map(String::as_str));
    let _answer = stage.run("client", "curl", &arguments);
    let listener = stage.listen("server", 8082).unwrap();
    let answers: Vec<_> = ANSWERS.iter().map(|case| secrets.plant(case)).chain([named.plant(NAMED_ANSWER)]).collect();
    for answer in answers {
        let mut client = stage.dial("client", to(12, 82)).unwrap();
        client.send("GET /raw HTTP/1.1\r\nHost: raw\r\nConnection: close\r\n\r\n").unwrap();
        let mut served = accept(&listener).unwrap();
        served.head().unwrap();
        served.send(&answer).unwrap();
        drop(served);
        let _answer = client.rest();
    }
    let mark = stage.run("client", "curl", &["--silent", &format!("http://10.96.0.10/{MARK}")]);
    mark.unwrap();
    let records = stage.settled(|_| true).unwrap();
    assert!(records.len() > 2 * ROUNDS * HTTP1.len(), "{} records", records.len());
    let text: String = records.iter().map(|record| format!("{:?}\n", record.log)).collect();
    assert!(text.contains(MARK));
    secrets.assert_absent("a record", text.as_bytes());
    for (secret, case) in &named.0 {
        assert!(text.contains(secret), "no record has what is asked for in {case:?}");
    }
    assert!(text.contains("page=1&token=REDACTED&REDACTED&Page=REDACTED"));
    for pod in ["client", "server"] {
        let proxy = stage.mesh.pod(pod).unwrap().proxy.as_ref().unwrap();
        until("the mark in the access log", DEADLINE, || Ok(proxy.output(Stream::Out)?.contains(MARK).then_some(())))
            .unwrap();
        secrets.assert_absent("the access log", proxy.output(Stream::Out).unwrap().as_bytes());
        for secrets in [&secrets, &named] {
            secrets.assert_absent("the log", proxy.output(Stream::Err).unwrap().as_bytes());
            secrets.assert_absent("/metrics", stage.mesh.admin(pod, "/metrics").unwrap().1.as_bytes());
        }
        let files = std::fs::read_dir(stage.mesh.directory.path().join(pod).join("spool")).unwrap();
        let spool: Vec<u8> = files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        assert!(String::from_utf8_lossy(&spool).contains(MARK), "the spool is searched");
        secrets.assert_absent("the spool", &spool);
    }
}
