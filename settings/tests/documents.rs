//! Bad documents and the exact mistakes that they are answered with, through the public interface.

use settings::{Bytes, Document, Error, FILE_LIMIT_BYTES, HostPort, Noted, Section};
use std::{error::Error as _, net::SocketAddr, time::Duration};

/// A configuration with one key of most kinds.
#[derive(Debug, PartialEq)]
struct Config {
    trust_domain: String,
    port: u16,
    buffer: Bytes,
    idle: Duration,
    strict: bool,
    admin: Option<SocketAddr>,
    ca: Option<HostPort>,
    tags: Vec<String>,
    ports: Vec<u16>,
}

fn config(root: &Section<'_>) -> Result<Config, Noted> {
    let outbound = root.section("outbound");
    let trust_domain = root.required("trustDomain");
    let port = outbound.default("port", 15001);
    let buffer = outbound.default("buffer", Bytes(65_536));
    let idle = outbound.default("idleTimeout", Duration::from_secs(60));
    let strict = root.one_of("plaintext", &[("permissive", false), ("strict", true)], false);
    let admin = root.section("admin").optional("address");
    let ca = root.optional_section("identity").map(|identity| identity.required("caAddress")).transpose();
    let tags = root.list("tags");
    let ports: Vec<Result<u16, Noted>> = root.sections("ports").iter().map(|port| port.required("port")).collect();
    let ports = ports.into_iter().collect::<Result<_, _>>();
    Ok(Config { trust_domain: trust_domain?, port, buffer, idle, strict, admin, ca: ca?, tags, ports: ports? })
}

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, Error> {
    let variables = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Ok(Document::parse("proxy.yaml", text, "PICKET_", variables)?.read(config)?)
}

/// Checks that `text` is refused with exactly these mistakes, each as `path: what is wrong`.
fn check_mistakes(text: &str, variables: &[(&str, &str)], expected: &[&str]) {
    match read(text, variables) {
        Err(Error::Mistakes(mistakes)) => {
            let found: Vec<String> = mistakes.mistakes.iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{text}");
        }
        other => panic!("{text}: expected mistakes, got {other:?}"),
    }
}

#[test]
fn a_good_document_is_read_with_its_defaults() {
    let text = "trustDomain: a.example\noutbound: {port: 15002, buffer: 1MiB}\nplaintext: strict\n\
                admin: {address: '[::1]:15020'}\nidentity: {caAddress: 'ca.system:15012'}\ntags: [a, b]\nports: [{port: 80}]";
    let expected = Config {
        trust_domain: "a.example".into(),
        port: 15002,
        buffer: Bytes(1 << 20),
        idle: Duration::from_secs(60),
        strict: true,
        admin: Some("[::1]:15020".parse().unwrap()),
        ca: Some(HostPort { host: "ca.system".into(), port: 15012 }),
        tags: vec!["a".into(), "b".into()],
        ports: vec![80],
    };
    assert_eq!(read(text, &[]).unwrap(), expected);
}

#[test]
fn each_bad_document_is_answered_with_its_mistake() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["trustDomain: missing, expected text"]),
        ("trustDomain:", &["trustDomain: missing, expected text"]),
        ("[]", &["(document): expected a map of settings, found a list", "trustDomain: missing, expected text"]),
        ("trustDomain: 7", &["trustDomain: expected text, found 7"]),
        ("trustDomain: [a]", &["trustDomain: expected text, found a list"]),
        ("{trustDomain: a, outbound: 1}", &["outbound: expected a map, found 1"]),
        (
            "{trustDomain: a, outbound: {port: 65536}}",
            &["outbound.port: expected a whole number from 0 to 65535, found 65536"],
        ),
        (
            "{trustDomain: a, outbound: {port: '80'}}",
            &["outbound.port: expected a whole number from 0 to 65535, found \"80\""],
        ),
        (
            "{trustDomain: a, outbound: {port: 1.5}}",
            &["outbound.port: expected a whole number from 0 to 65535, found 1.5"],
        ),
        (
            "{trustDomain: a, outbound: {idleTimeout: 10}}",
            &["outbound.idleTimeout: expected a duration such as 250ms, 10s, 5m, 24h or 30d, found 10"],
        ),
        ("{trustDomain: a, plaintext: never}", &["plaintext: expected one of permissive, strict, found \"never\""]),
        (
            "{trustDomain: a, admin: {address: localhost}}",
            &[
                "admin.address: expected an address and port such as 127.0.0.1:15020 or [::1]:15020, found \"localhost\"",
            ],
        ),
        (
            "{trustDomain: a, identity: {}}",
            &[
                "identity.caAddress: missing, expected host:port such as picket-ca.picket-system:15012 or [fd00::1]:15012",
            ],
        ),
        ("{trustDomain: a, tags: [x, {y: 1}]}", &["tags[1]: expected text, found a map"]),
        ("{trustDomain: a, tags: x}", &["tags: expected a list, found \"x\""]),
        (
            "{trustDomain: a, ports: [{port: 1}, {prot: 2}]}",
            &[
                "ports[1].port: missing, expected a whole number from 0 to 65535",
                "ports[1].prot: unknown key, did you mean `port`?",
            ],
        ),
        ("{trustDomain: a, outbond: {port: 1}}", &["outbond: unknown key, did you mean `outbound`?"]),
        (
            "{trustDomain: a, outbound: {qqqqqq: 1}}",
            &["outbound.qqqqqq: unknown key, known here: buffer, idleTimeout, port"],
        ),
    ];
    for (text, expected) in cases {
        check_mistakes(text, &[], expected);
    }
}

#[test]
fn all_mistakes_are_reported_together() {
    check_mistakes(
        "{trustdomain: a, outbound: {port: x, idleTimeout: 1w}, plaintext: off}",
        &[],
        &[
            "outbound.idleTimeout: expected a duration such as 250ms, 10s, 5m, 24h or 30d, found \"1w\"",
            "outbound.port: expected a whole number from 0 to 65535, found \"x\"",
            "plaintext: expected one of permissive, strict, found \"off\"",
            "trustDomain: missing, expected text",
            "trustdomain: unknown key, did you mean `trustDomain`?",
        ],
    );
}

#[test]
fn variables_override_the_file() {
    let variables = [
        ("PICKET_TRUST_DOMAIN", "b.example"),
        ("PICKET_OUTBOUND_PORT", "16001"),
        ("PICKET_OUTBOUND_IDLE_TIMEOUT", "5s"),
        ("PICKET_IDENTITY_CA_ADDRESS", "ca:1"),
        ("PICKET_TAGS", "x, y"),
        ("OTHER_OUTBOUND_PORT", "1"),
    ];
    let config = read("{trustDomain: a, outbound: {port: 1}, tags: [a]}", &variables).unwrap();
    assert_eq!((config.trust_domain.as_str(), config.port), ("b.example", 16001));
    assert_eq!(config.idle, Duration::from_secs(5));
    assert_eq!(config.ca, Some(HostPort { host: "ca".into(), port: 1 }));
    assert_eq!(config.tags, ["x", "y"]);
}

#[test]
fn a_bad_variable_is_named() {
    check_mistakes(
        "trustDomain: a",
        &[("PICKET_OUTBOUND_PORT", "many")],
        &["outbound.port: expected a whole number from 0 to 65535, found \"many\" in PICKET_OUTBOUND_PORT"],
    );
}

#[test]
fn variables_that_nothing_reads_are_listed() {
    let variables = [("PICKET_OUTBOND_PORT", "1"), ("PICKET_OUTBOUND_PORT", "2")];
    let variables = variables.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let document = Document::parse("proxy.yaml", "trustDomain: a", "PICKET_", variables).unwrap();
    assert_eq!(document.read(config).unwrap().port, 2);
    assert_eq!(document.unused_variables(), ["PICKET_OUTBOND_PORT"]);
}

#[test]
fn a_refusal_by_the_caller_carries_the_value() {
    let document = Document::parse("proxy.yaml", "{a: 1}", "PICKET_", []).unwrap();
    document.root().refuse("a", "something else");
    assert_eq!(document.finish().unwrap_err().to_string(), "proxy.yaml: a: expected something else, found 1");
}

#[test]
fn text_that_is_not_yaml_is_refused_with_its_place() {
    for text in ["a: [", "a: 1\na: 2", "a: 1\n---\nb: 2", "a: \"b", "{a: *missing}"] {
        match read(text, &[]) {
            Err(error @ Error::Syntax { .. }) => {
                assert_eq!(error.to_string(), "proxy.yaml is not a usable YAML document");
                assert!(error.source().is_some(), "{text}");
            }
            other => panic!("{text:?}: expected a syntax error, got {other:?}"),
        }
    }
}

#[test]
fn documents_that_would_grow_without_bound_are_refused() {
    let mut laughs = "l0: &l0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*l{}", level - 1); 9].join(", ");
        laughs.push_str(&format!("l{level}: &l{level} [{aliases}]\n"));
    }
    let deep = format!("a: {}{}", "[".repeat(10_000), "]".repeat(10_000));
    let wide = format!("a: [{}]", "1,".repeat(400_000));
    for text in [laughs, deep, wide] {
        assert!(matches!(read(&text, &[]), Err(Error::Syntax { .. })), "{}…", &text[..40]);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let path = std::env::temp_dir().join("picket-settings-no-such-file.yaml");
    let error = Document::load(Some(&path), "PICKET_", []).unwrap_err();
    assert!(error.to_string().contains("picket-settings-no-such-file.yaml"), "{error}");
    assert!(matches!(error, Error::Unreadable { .. }));
    assert!(matches!(Document::load(Some(&std::env::temp_dir()), "PICKET_", []), Err(Error::Unreadable { .. })));
}

#[test]
fn a_file_over_the_limit_is_refused_and_one_at_the_limit_is_read() {
    let path = std::env::temp_dir().join(format!("picket-settings-{}.yaml", std::process::id()));
    let limit = usize::try_from(FILE_LIMIT_BYTES).unwrap();
    std::fs::write(&path, format!("trustDomain: a{}", " ".repeat(limit - 14))).unwrap();
    let at_limit = Document::load(Some(&path), "PICKET_", []).unwrap().read(config);
    std::fs::write(&path, vec![b' '; limit + 1]).unwrap();
    let over = Document::load(Some(&path), "PICKET_", []);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(at_limit.unwrap().trust_domain, "a");
    assert!(matches!(over, Err(Error::TooLarge { .. })));
}
