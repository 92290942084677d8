//! Messages in a syslog server's file: as they should be, and after each kind of tampering.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use record::structured;

use super::*;

/// A message as `export/src/syslog/encode.rs` makes it; `integration/tests/syslog.rs` has a real server write those.
fn message(stream: &str, content: &[u8]) -> String {
    let (time, event) = line::time_and_name(content);
    let priority = 128 + structured::severity(line::severity(content));
    let mut out = format!("<{priority}>1 ").into_bytes();
    line::rfc3339(time, &mut out);
    out.extend_from_slice(format!(" host app 7 {event} [picket@32473").as_bytes());
    for (name, value) in structured::attributes(content) {
        assert!(structured::parameter(name, value, usize::MAX, usize::MAX, &mut out));
    }
    let encoded = STANDARD.encode(content);
    let more = format!("][resource@32473 stream.id=\"{stream}\" a=\"b\"][record@32473 otlp=\"{encoded}\"] \u{feff}");
    out.extend_from_slice(more.as_bytes());
    let mut text = Vec::new();
    line::summary(content, &mut text);
    out.extend_from_slice(text.trim_ascii_start());
    String::from_utf8(out).unwrap()
}

/// What was sent so far, a message for each number from 1.
fn sent(stream: &mut Stream) -> Vec<String> {
    let (id, mut messages) = (stream.id(), Vec::new());
    while let Some(chunk) = stream.reader.next(1 << 20).unwrap() {
        messages.extend(field::contents(&chunk.fields).map(|content| message(&id, content.unwrap())));
        stream.reader.acknowledge(&chunk).unwrap();
    }
    messages
}

fn three_sent() -> (Authority, Stream, Vec<String>) {
    let authority = Authority::new("root");
    let mut stream = three(&authority);
    let messages = sent(&mut stream);
    assert_eq!(messages.len(), 63);
    (authority, stream, messages)
}

fn joined(messages: &[String]) -> String {
    messages.iter().map(|message| message.clone() + "\n").collect()
}

fn report(authority: &Authority, stream: &Stream, messages: &[String]) -> StreamReport {
    of_lines(&authority.root, &joined(messages)).remove(&stream.id()).unwrap()
}

#[test]
fn what_a_server_wrote_is_intact_and_complete_in_any_order_and_twice() {
    let (authority, stream, mut messages) = three_sent();
    let found = report(&authority, &stream, &messages);
    check(&found, INTACT, COMPLETE);
    assert_eq!((found.records, found.sealed, found.checkpoints), (63, 62, 3));
    assert_eq!(found.identity.as_deref(), Some(WEB));
    messages.reverse();
    messages.extend_from_within(10..40);
    let found = report(&authority, &stream, &messages);
    check(&found, INTACT, COMPLETE);
    assert_eq!(found.duplicates, 30);
    // In another format, and with the time in another zone and with other digits.
    for message in &mut messages {
        let (_, rest) = message.split_once(" host ").unwrap();
        *message = format!("Nov 24 16:00:00 host {rest}");
    }
    check(&report(&authority, &stream, &messages), INTACT, COMPLETE);
    let mut messages = sent(&mut three(&authority));
    for (from, to) in [("T16:00:00.000Z", "T18:30:00.000000+02:30"), ("T18:30:00.000000+02:30", "T10:30:00-05:30")] {
        messages.iter_mut().for_each(|message| *message = message.replace(from, to));
        assert!(messages[0].contains(to), "{}", messages[0]);
        let reports = of_lines(&authority.root, &joined(&messages));
        check(reports.values().next().unwrap(), INTACT, COMPLETE);
    }
}

#[test]
fn what_is_missing_is_missed() {
    let (authority, stream, messages) = three_sent();
    let without = [&messages[..29], &messages[30..]].concat();
    check(&report(&authority, &stream, &without), (Integrity::Unproven, 21), (Completeness::Incomplete, 30));
    let mut cut = evidence(&authority.root);
    cut.read_lines("syslog.log", joined(&messages[..42]).as_bytes()).unwrap();
    cut.read_checkpoint(&stream.directory.0.join("checkpoint")).unwrap();
    let report = cut.judge(None).unwrap().remove(0);
    check(&report, (Integrity::Unproven, 42), (Completeness::Incomplete, 43));
}

#[test]
fn two_streams_that_were_swapped_are_told_apart() {
    let (authority, web, messages) = three_sent();
    let mut other = Stream::new(1 << 20);
    other.write(62, OTHER);
    other.seal(&authority.leaf(OTHER));
    let text = joined(&messages) + &joined(&sent(&mut other));
    let swapped = text.replace(&web.id(), "SWAP").replace(&other.id(), &web.id()).replace("SWAP", &other.id());
    let reports = of_lines(&authority.root, &swapped);
    assert_eq!(reports.len(), 2);
    for (_, report) in reports {
        assert_eq!(report.integrity, Integrity::Broken, "{report:#?}");
        assert!(report.integrity_findings.iter().any(|finding| finding.what.contains("it seals the stream")));
    }
}

#[test]
fn what_people_read_has_to_be_what_the_record_says() {
    let (authority, stream, messages) = three_sent();
    let changes = [
        ("detail=\"number 8 ", "detail=\"number 9 ", "the structured data"),
        (" n=\"8\"", "", "the structured data"),
        (" client.identity=\"spiffe://td/ns/demo/sa/web\"", "", "the structured data"),
        (" n=\"8\"]", " n=\"8\" truncated=\"true\"]", "the structured data"),
        (" picket.detail=number 8", " picket.detail=number 9", "the text"),
        ("<134>1", "<133>1", "the header"),
        ("T16:00:00.000Z", "T16:00:00.001Z", "the header"),
        ("T16:00:00.000Z", "T16:00:00.000+00:01", "the header"),
        (" picket.alert ", " picket.request ", "the header"),
    ];
    for (from, to, part) in changes {
        let mut changed = messages.clone();
        changed[29] = messages[29].replacen(from, to, 1);
        assert_ne!(changed, messages, "{from} in {}", messages[29]);
        let report = report(&authority, &stream, &changed);
        check(&report, (Integrity::Broken, 30), COMPLETE);
        let found = &report.integrity_findings[..];
        assert_eq!((found.len(), found[0].last), (1, 30), "{found:?}");
        assert!(found[0].what.starts_with(part), "{found:?}");
    }
    // What the encoder leaves out when there is no room may be left out, and no more is proven by it.
    for (from, to) in [(" n=\"8\"]", " truncated=\"true\"]"), ("\u{feff}", "")] {
        let mut left = messages.clone();
        left[29] = left[29].replacen(from, to, 1);
        check(&report(&authority, &stream, &left), INTACT, COMPLETE);
    }
}

#[test]
fn no_byte_of_what_the_record_says_can_be_changed() {
    let (authority, _, messages) = three_sent();
    let whole = messages[29].as_bytes();
    let at = |what: &str| messages[29].find(what).unwrap();
    // Facility, host, program and process id are the server's word.
    let free = at(" host ") + 1..at(" picket.alert");
    let resource = at(" a=\"b\"") + 1..at(" a=\"b\"") + 6;
    let positions = (5..whole.len()).filter(|at| !free.contains(at) && !resource.contains(at));
    for position in positions.step_by(3) {
        let mut changed = whole.to_vec();
        changed[position] ^= 1;
        let text = [joined(&messages[..29]).as_bytes(), &changed, b"\n", joined(&messages[30..]).as_bytes()].concat();
        let mut evidence = evidence(&authority.root);
        evidence.read_lines("syslog.log", text.as_slice()).unwrap();
        let unreadable = evidence.unreadable_lines();
        let good = evidence.judge(None).unwrap().iter().all(StreamReport::is_good);
        assert!(!good || unreadable > 0, "{position}: {}", String::from_utf8_lossy(&changed));
    }
}

#[test]
fn messages_without_evidence_prove_nothing_and_it_is_told_what_to_set() {
    let (authority, stream, messages) = three_sent();
    let without = |with: &str| {
        let cut = |message: &String| {
            let (before, rest) = message.split_once("[record@32473 otlp=").unwrap();
            format!("{before}{with}{}", rest.split_once("\"]").unwrap().1)
        };
        messages.iter().map(cut).collect::<Vec<_>>()
    };
    for (with, what) in [("", "`syslog.evidence`"), ("[record@32473 left_out=\"true\"]", "`syslog.messageBytes`")] {
        let all = report(&authority, &stream, &without(with));
        check(&all, (Integrity::Unproven, 1), (Completeness::Incomplete, 1));
        let found = &all.integrity_findings[0];
        assert!(found.what.contains("63 messages") && found.what.contains(what) && found.last == 63, "{found:?}");
        let mut one = messages.clone();
        one[29].clone_from(&without(with)[29]);
        let report = report(&authority, &stream, &one);
        assert_eq!((report.integrity, report.completeness), (Integrity::Unproven, Completeness::Incomplete));
        assert!(report.integrity_findings.iter().any(|found| found.first == 30 && found.what.contains(what)));
    }
}

#[test]
fn other_messages_are_passed_over_and_what_cannot_be_read_of_ours_is_told() {
    let (authority, stream, messages) = three_sent();
    let mut lines = vec![
        "<13>1 2025-11-24T16:00:00.000Z host sshd 1 - - hello [picket@32473 is not mine".to_owned(),
        "<13>1 2025-11-24T16:00:00.000Z host app 1 - [origin@1 a=\"\\\"]\"] hello".to_owned(),
        "Nov 24 16:00:00 host cron: hello".to_owned(),
        String::new(),
    ];
    lines.extend_from_slice(&messages);
    // A server died while it wrote one, and began the next behind it; the last one is cut, too.
    lines[20] = messages[33][..messages[33].len() / 2].to_owned() + &lines[20];
    let text = joined(&lines) + &messages[3][..300];
    let mut evidence = evidence(&authority.root);
    evidence.read_lines("syslog.log", text.as_bytes()).unwrap();
    assert_eq!((evidence.unreadable_lines(), evidence.remarks().len()), (0, 3), "{:?}", evidence.remarks());
    assert!(evidence.remarks()[2].contains("3 lines are no messages of a proxy"), "{:?}", evidence.remarks());
    check(&evidence.judge(None).unwrap()[0], INTACT, COMPLETE);
    for (from, to) in [("otlp=\"", "otlp=\"*"), ("stream.id=\"", "stream.id=\"x"), ("\"][record@", "[record@")] {
        let mut evidence = self::evidence(&authority.root);
        let mut changed = messages.clone();
        changed[29] = changed[29].replacen(from, to, 1);
        evidence.read_lines("syslog.log", joined(&changed).as_bytes()).unwrap();
        assert_eq!(evidence.unreadable_lines(), 1, "{from}: {:?}", evidence.remarks());
        let report = evidence.judge(None).unwrap().remove(0);
        assert_eq!((report.stream.clone(), report.completeness), (stream.id(), Completeness::Incomplete));
        assert_eq!(report.completeness_findings[0].first, 30);
    }
}

#[test]
fn what_the_syslog_server_alone_lacks_is_explained_for_it_and_for_nobody_else() {
    let authority = Authority::new("root");
    for (refusing, explained) in [(Sink::Syslog, true), (Sink::Otlp, false)] {
        let (mut stream, others) = Stream::with(1 << 20, &[Sink::Otlp, Sink::Syslog]);
        stream.write(20, WEB);
        stream.seal(&authority.leaf(WEB));
        let reader = if refusing == Sink::Syslog { &others[0] } else { &stream.reader };
        reader.refuse((5, 7), 3, NOW, Reason::SetAside);
        stream.write(5, WEB);
        stream.seal(&authority.leaf(WEB));
        let mut messages = sent(&mut stream);
        messages.drain(4..7);
        let report = report(&authority, &stream, &messages);
        let gaps: Vec<_> = report.explained.iter().map(|gap| (gap.first, gap.last, gap.sink)).collect();
        assert_eq!(gaps == [(5, 7, Some("syslog"))], explained, "{report:#?}");
        assert_eq!(report.completeness == Completeness::Complete, explained, "{report:#?}");
    }
}

proptest! {
    #[test]
    fn whatever_is_read_there_is_a_verdict(
        at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..20), cut in any::<bool>(),
    ) {
        static MESSAGES: std::sync::LazyLock<(String, Vec<u8>)> = std::sync::LazyLock::new(|| {
            let (authority, _, messages) = three_sent();
            (authority.root, joined(&messages).into_bytes())
        });
        let (root, whole) = &*MESSAGES;
        prop_assert!(is_judged("syslog.log", root, whole.clone(), at.index(whole.len()), bytes, cut));
    }
}
