//! Gaps of one sink alone: they explain what that sink lacks, and nothing that another one lacks.

use super::*;

/// A stream that the collector and a syslog server read; of the two, `behind` takes nothing until enough has gone. What the
/// collector got.
fn with_one_behind(authority: &Authority, behind: Sink) -> (Stream, Vec<serde_json::Value>) {
    let (mut stream, mut others) = Stream::with(256 << 10, &[Sink::Otlp, Sink::Syslog]);
    let mut syslog = others.remove(0);
    let credentials = authority.leaf(WEB);
    let mut records = Vec::new();
    for round in 0..60 {
        stream.write(25, WEB);
        if round % 7 == 6 {
            stream.seal(&credentials);
        }
        stream.spool.sync().unwrap();
        match behind {
            Sink::Syslog => records.extend(stream.export()),
            Sink::Otlp => {
                while let Some(chunk) = syslog.next(1 << 20).unwrap() {
                    syslog.acknowledge(&chunk).unwrap();
                }
            }
        }
    }
    assert!(stream.spool.status().lost(Reason::SpoolFull) > 100);
    (stream, records)
}

fn number(record: &serde_json::Value) -> u64 {
    let attributes = record["attributes"].as_array().unwrap();
    attributes.last().unwrap()["value"]["intValue"].as_str().unwrap().parse().unwrap()
}

fn of(authority: &Authority, stream: &Stream, records: &[serde_json::Value]) -> StreamReport {
    of_lines(&authority.root, &lines(&stream.id(), records)).remove(&stream.id()).unwrap()
}

#[test]
fn what_the_syslog_server_alone_lacks_is_no_loss_of_the_collector() {
    let authority = Authority::new("root");
    let (mut stream, mut records) = with_one_behind(&authority, Sink::Syslog);
    // First with gap records that nothing seals yet, then with sealed ones.
    for sealed in [false, true] {
        if sealed {
            stream.seal(&authority.leaf(WEB));
            records.extend(stream.export());
        }
        let report = of(&authority, &stream, &records);
        check(&report, INTACT, COMPLETE);
        assert_eq!((report.explained.len(), report.unsealed > 0), (0, !sealed), "{report:#?}");
    }
    check(&of_spool(&authority.root, &stream.directory.0), INTACT, COMPLETE);
    // One is taken away of those that a gap record names, for the syslog server.
    let at = records.iter().position(|record| number(record) == 40).unwrap();
    records.remove(at);
    let report = of(&authority, &stream, &records);
    assert_eq!((report.completeness, report.explained.len()), (Completeness::Incomplete, 0), "{report:#?}");
    let missing: Vec<_> = report.completeness_findings.iter().map(|found| (found.first, found.last)).collect();
    assert_eq!(missing, [(40, 40)]);
    assert_eq!(report.completeness_findings[0].what, "missing");
    assert_eq!(report.integrity, Integrity::Unproven);
}

#[test]
fn what_the_collector_alone_lacks_is_explained() {
    let authority = Authority::new("root");
    let (mut stream, none) = with_one_behind(&authority, Sink::Otlp);
    assert_eq!(none.len(), 0);
    stream.seal(&authority.leaf(WEB));
    let records = stream.export();
    let report = of(&authority, &stream, &records);
    check(&report, INTACT, COMPLETE);
    let lost: u64 = report.explained.iter().map(|gap| gap.records).sum();
    assert_eq!(lost + report.records, report.last, "{report:#?}");
    assert!(lost > 100 && report.explained.iter().all(|gap| gap.sink == Some("otlp")), "{report:#?}");
}

#[test]
fn what_the_collector_refused_is_explained_though_it_is_said_twice() {
    let authority = Authority::new("root");
    let (mut stream, others) = Stream::with(1 << 20, &[Sink::Otlp, Sink::Syslog]);
    let credentials = authority.leaf(WEB);
    stream.write(20, WEB);
    stream.seal(&credentials);
    let mut records = stream.export();
    records.retain(|record| !(5..=7).contains(&number(record)));
    for _ in 0..2 {
        stream.reader.refuse((5, 7), 3, NOW, Reason::SetAside);
        stream.write(5, WEB);
        stream.seal(&credentials);
    }
    // The syslog server will not have one of them, either; that is none of the collector's.
    others[0].refuse((6, 6), 1, NOW, Reason::Refused);
    stream.write(5, WEB);
    stream.seal(&credentials);
    records.extend(stream.export());
    let report = of(&authority, &stream, &records);
    check(&report, (Integrity::Unproven, 1), COMPLETE);
    let gap: Vec<_> = report.explained.iter().map(|gap| (gap.first, gap.last, gap.reason, gap.sink)).collect();
    assert_eq!(gap, [(5, 7, "set_aside", Some("otlp"))]);
    // The spool has them all.
    let report = of_spool(&authority.root, &stream.directory.0);
    check(&report, INTACT, COMPLETE);
    assert_eq!(report.explained, []);
}

#[test]
fn of_a_request_that_was_taken_in_part_no_more_may_be_missing_than_its_answer_said() {
    let authority = Authority::new("root");
    let (mut stream, _others) = Stream::with(1 << 20, &[Sink::Otlp]);
    let credentials = authority.leaf(WEB);
    stream.write(20, WEB);
    stream.seal(&credentials);
    let mut records = stream.export();
    // The collector said of a request with the numbers 3 to 12 that it did not take one of them.
    stream.reader.refuse((3, 12), 1, NOW, Reason::PartlyRefused);
    stream.spool.report(NOW).unwrap();
    stream.seal(&credentials);
    records.extend(stream.export());
    records.retain(|record| number(record) != 5);
    assert_eq!(of(&authority, &stream, &records).completeness, Completeness::Complete);
    records.retain(|record| number(record) != 9);
    let report = of(&authority, &stream, &records);
    assert_eq!(report.completeness, Completeness::Incomplete, "{report:#?}");
    assert_eq!((report.completeness_findings[0].first, report.completeness_findings[0].last), (3, 12));
}
