//! Messages are read back with a strict parser of RFC 5424's grammar.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use record::{
    Event, EventName, Severity, UidSource, Value, field, key,
    structured::{NAME_BYTES_MAX, name},
};

use super::*;

/// A message, read back.
#[derive(Debug, Default, PartialEq)]
struct Message {
    priority: u32,
    time: String,
    header: Vec<String>,
    data: BTreeMap<String, Vec<(String, String)>>,
    text: Option<String>,
}

/// Takes off what satisfies `is`.
fn take<'a>(rest: &mut &'a str, is: impl Fn(char) -> bool) -> &'a str {
    let end = rest.find(|c| !is(c)).unwrap_or(rest.len());
    let (taken, after) = rest.split_at(end);
    *rest = after;
    taken
}

fn expect(rest: &mut &str, what: &str) {
    *rest = rest.strip_prefix(what).unwrap_or_else(|| panic!("no {what:?} before {rest:?}"));
}

/// `SYSLOG-MSG = HEADER SP STRUCTURED-DATA [SP MSG]`, and nothing that the grammar does not have.
fn parse(mut rest: &str) -> Message {
    let mut message = Message::default();
    expect(&mut rest, "<");
    let priority = take(&mut rest, |c| c.is_ascii_digit());
    assert!(priority == "0" || (!priority.starts_with('0') && priority.len() <= 3), "{priority}");
    message.priority = priority.parse().unwrap();
    assert!(message.priority <= 191);
    expect(&mut rest, ">1 ");
    message.time = take(&mut rest, |c| c != ' ').to_owned();
    for max in [255, 48, 128, 32] {
        expect(&mut rest, " ");
        let field = take(&mut rest, |c| c.is_ascii_graphic());
        assert!((1..=max).contains(&field.len()), "{field}");
        message.header.push(field.to_owned());
    }
    expect(&mut rest, " [");
    loop {
        let id = sd_name(&mut rest);
        let mut parameters = Vec::new();
        while rest.starts_with(' ') {
            expect(&mut rest, " ");
            let name = sd_name(&mut rest);
            expect(&mut rest, "=\"");
            parameters.push((name, value(&mut rest)));
        }
        expect(&mut rest, "]");
        assert_eq!(message.data.insert(id, parameters), None, "an element comes once");
        if rest.starts_with('[') {
            expect(&mut rest, "[");
        } else {
            break;
        }
    }
    if !rest.is_empty() {
        expect(&mut rest, " \u{feff}");
        assert!(!rest.chars().any(char::is_control));
        message.text = Some(rest.to_owned());
    }
    message
}

fn sd_name(rest: &mut &str) -> String {
    let name = take(rest, |c| c.is_ascii_graphic() && !matches!(c, '=' | ']' | '"'));
    assert!((1..=32).contains(&name.len()), "{name}");
    name.to_owned()
}

/// `PARAM-VALUE`: in it `"`, `\` and `]` must be escaped, and nothing else may be.
fn value(rest: &mut &str) -> String {
    let mut found = String::new();
    let mut characters = rest.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => {
                *rest = &rest[at + 1..];
                return found;
            }
            ']' => panic!("a bare ] in {rest}"),
            '\\' => {
                let (_, escaped) = characters.next().unwrap();
                assert!(matches!(escaped, '"' | '\\' | ']'), "\\{escaped}");
                found.push(escaped);
            }
            c => {
                assert!(!c.is_control(), "{c:?}");
                found.push(c);
            }
        }
    }
    panic!("no end of the value {rest}");
}

/// Exactly one message with its octet count.
fn unframe(bytes: &[u8]) -> &str {
    let text = std::str::from_utf8(bytes).unwrap();
    let (count, message) = text.split_once(' ').unwrap();
    assert!(!count.starts_with('0'));
    assert_eq!(count.parse::<usize>().unwrap(), message.len());
    message
}

fn format(limit: usize) -> Format {
    Format {
        facility: 13,
        host_name: "web-1".to_owned(),
        app_name: "picket-proxy".to_owned(),
        process_id: 7,
        enterprise_number: 32473,
        message_bytes_max: limit,
        resource: vec![("k8s.pod.name".to_owned(), "web-1".to_owned())],
        evidence: false,
    }
}

fn record(attributes: &[(&str, Value<'_>)], severity: Severity) -> Vec<u8> {
    let mut fields = Vec::new();
    let uid = UidSource::new(3).next(951_868_799_999);
    let event = Event { uid, name: EventName::Alert, time_unix_nanos: 951_868_799_999_000_000, severity, attributes };
    event.encode(&mut fields);
    let content = field::contents(&fields).next().unwrap().unwrap();
    let mut numbered = Vec::new();
    field::append_numbered(&mut numbered, content, u64::MAX >> 1).unwrap();
    numbered
}

fn message(format: &Format, fields: &[u8]) -> Message {
    let mut out = Vec::new();
    Encoder::new(format).frame(field::contents(fields).next().unwrap().unwrap(), &mut out);
    let text = unframe(&out);
    assert!(text.len() <= format.message_bytes_max, "{} bytes", text.len());
    parse(text)
}

#[test]
fn a_record_is_a_message_that_says_the_same() {
    let attributes = [("picket.code", Value::Text("a \"b\" [c\\]\n")), ("n", Value::Int(5)), ("t", Value::Bool(true))];
    let found = message(&format(8192), &record(&attributes, Severity::Warn));
    assert_eq!((found.priority, found.time.as_str()), (13 * 8 + 4, "2000-02-29T23:59:59.999Z"));
    assert_eq!(found.header, ["web-1", "picket-proxy", "7", "picket.alert"]);
    let uid = UidSource::new(3).next(951_868_799_999).to_string();
    let expected = [
        ("log.record.uid", uid.as_str()),
        ("sequence", "9223372036854775807"),
        ("code", "a \"b\" [c\\]\\u000a"),
        ("n", "5"),
        ("t", "true"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(found.data["picket@32473"], expected);
    assert_eq!(found.data["resource@32473"], [("k8s.pod.name".to_owned(), "web-1".to_owned())]);
    assert!(found.text.unwrap().contains("n=5"));
    assert_eq!(message(&format(8192), &record(&[], Severity::Info)).priority, 13 * 8 + 6);
}

#[test]
fn every_attribute_of_the_schema_has_a_name_of_its_own() {
    let mut names: Vec<String> =
        key::ALL.iter().map(|(key, _)| String::from_utf8(name(key).collect()).unwrap()).collect();
    // The attribute of the resource has an element of its own, and `truncated` is the encoder's own word for the same.
    names.sort();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "{names:?}");
    for (key, _) in key::ALL {
        assert!(key.strip_prefix("picket.").unwrap_or(key).len() <= NAME_BYTES_MAX, "{key}");
    }
}

proptest! {
    #[test]
    fn whatever_values_hold_the_message_is_valid_and_within_its_limit(
        values in vec(("[ -~é]{0,60}", "(?s).{0,1500}"), 0..40),
        host in ".{0,300}",
        limit in 2048usize..9000,
    ) {
        let attributes: Vec<_> = values.iter().map(|(name, value)| (name.as_str(), Value::Text(value))).collect();
        let format = Format { host_name: host, ..format(limit) };
        let found = message(&format, &record(&attributes, Severity::Info));
        let data = &found.data["picket@32473"];
        prop_assert_eq!(data[0].0.as_str(), "log.record.uid");
        prop_assert_eq!(data[0].1.len(), 26);
        prop_assert_eq!(data[1].0.as_str(), "sequence");
        let left_out = data.len() < values.len() + 2;
        let is_cut = data.last().is_some_and(|(name, _)| name == "truncated");
        prop_assert!(is_cut || !left_out, "what is left out is said");
    }
}

#[test]
fn the_bytes_of_a_record_go_before_what_people_read_and_what_is_left_out_is_said() {
    let format = Format { evidence: true, ..format(8192) };
    let long = "l".repeat(900);
    let with = |count: usize| {
        let names: Vec<String> = (0..count).map(|nth| format!("a{nth}")).collect();
        let mut values: Vec<_> = names.iter().map(|name| (name.as_str(), Value::Text(&long))).collect();
        values.push(("b", Value::Int(1)));
        message(&format, &record(&values, Severity::Info))
    };
    let names = |of: &Message| of.data["picket@32473"].iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    // All of it, and the text; then without the text, and without one parameter; then without the bytes.
    let found = with(2);
    assert_eq!(names(&found), ["log.record.uid", "sequence", "a0", "a1", "b"]);
    assert!(found.data["record@32473"][0].1.len() > 2400 && found.text.is_some());
    let found = with(4);
    assert_eq!(names(&found), ["log.record.uid", "sequence", "a0", "a1", "a2", "b", "truncated"]);
    assert_eq!((found.data["record@32473"][0].0.as_str(), found.text), ("otlp", None));
    let found = with(7);
    assert_eq!(found.data["record@32473"], [("left_out".to_owned(), "true".to_owned())]);
    assert_eq!(names(&found).len(), 2 + 7 + 1);
}

proptest! {
    #[test]
    fn whatever_values_hold_the_record_comes_back_and_what_people_read_agrees(
        values in vec(("[ -~é]{0,60}", "(?s).{0,200}"), 0..30),
        number in any::<u64>(),
        limit in 2048usize..9000,
    ) {
        let mut attributes: Vec<_> = values.iter().map(|(name, value)| (name.as_str(), Value::Text(value))).collect();
        attributes.extend([("n", Value::Int(number)), ("t", Value::Bool(number % 2 == 0))]);
        let format = Format { evidence: true, ..format(limit) };
        let fields = record(&attributes, Severity::Info);
        let content = field::contents(&fields).next().unwrap().unwrap();
        let mut out = Vec::new();
        Encoder::new(&format).frame(content, &mut out);
        let text = unframe(&out);
        let found = parse(text);
        prop_assert!(text.len() <= limit);
        let (name, value) = &found.data["record@32473"][0];
        if name == "left_out" {
            // There was no room, indeed: with them, uid and number it would not have fitted.
            prop_assert!(content.len() * 4 / 3 + 400 > limit);
            return Ok(());
        }
        let mut again = Vec::new();
        field::append(&mut again, &STANDARD.decode(value).unwrap()).unwrap();
        prop_assert_eq!(&again, &fields);
        let (_, said) = text.split_once("[picket@32473").unwrap();
        let (said, _) = said.split_once("][resource@32473 ").unwrap();
        prop_assert!(structured::agrees(content, said.as_bytes(), &mut Vec::new()), "{}", said);
        if let Some(text) = found.text {
            let mut summary = Vec::new();
            line::summary(content, &mut summary);
            prop_assert_eq!(text.as_bytes(), summary.trim_ascii_start());
        }
    }
}
