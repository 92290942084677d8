//! Verdicts about a spool and about what was exported from it: as it should be, and after each kind of tampering.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

mod short;
mod sinks;
mod syslog;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use evidence::{Completeness, Evidence, Integrity, StreamReport};
use identity::{Credentials, TrustBundle};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Eku,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use record::{Event, EventName, Severity, UidSource, Value, field, key, line};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use spool::{Config, Disk, OnFull, Reader, Reason, Signed, Sink, Spool, Sync};
use time::OffsetDateTime;

const SECOND: u64 = 1_000_000_000;
/// In the life of the certificates below.
const NOW: u64 = 1_764_000_000 * SECOND;
const WEB: &str = "spiffe://td/ns/demo/sa/web";
const OTHER: &str = "spiffe://td/ns/demo/sa/other";

/// Good from a minute before [`NOW`] for an hour.
fn params(name: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let begin = OffsetDateTime::from_unix_timestamp((NOW / SECOND) as i64 - 60).unwrap();
    (params.not_before, params.not_after) = (begin, begin + Duration::from_secs(3600));
    if let Some(name) = name {
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    }
    params
}

/// A root with an issuer below it.
struct Authority {
    root: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let root = CertifiedIssuer::self_signed(params(Some(name)), KeyPair::generate().unwrap()).unwrap();
        let issuer = CertifiedIssuer::signed_by(params(Some("issuer")), KeyPair::generate().unwrap(), &root).unwrap();
        Self { root: root.pem(), issuer }
    }

    fn leaf(&self, id: &str) -> Credentials {
        let mut params = params(None);
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![Eku::ClientAuth, Eku::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Credentials::new(vec![leaf.der().clone(), self.issuer.der().clone()], key).unwrap()
    }
}

fn sign(credentials: &Credentials) -> impl Fn(&[u8]) -> Option<Signed> {
    |message| {
        let chain = credentials.certified_key.cert.iter().map(|der| der.to_vec()).collect();
        Some(Signed { signature: credentials.sign(message)?, chain })
    }
}

/// A directory of its own, removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("picket-evidence-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left in the temporary directory fails no test.
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// A spool with its writer, and where it is.
struct Stream {
    directory: Directory,
    spool: Spool,
    reader: Reader,
    uids: UidSource,
}

impl Stream {
    fn new(max_bytes: u64) -> Self {
        Self::with(max_bytes, &[Sink::Otlp]).0
    }

    /// The collector reads, which is the first of these; and the readers of the others.
    fn with(max_bytes: u64, sinks: &[Sink]) -> (Self, Vec<Reader>) {
        let directory = Directory::new();
        let config = Config {
            max_bytes,
            max_age: Duration::from_secs(3600),
            min_free_bytes: 0,
            sync: Sync::Interval(Duration::from_millis(100)),
            on_full: OnFull::DropOldest,
            uid_seed: 3,
        };
        let disk = Arc::new(Disk::open(&directory.0).unwrap());
        let (spool, mut readers, _) = Spool::open_for(sinks, disk, config, NOW).unwrap();
        let reader = readers.remove(0);
        (Self { directory, spool, reader, uids: UidSource::new(1) }, readers)
    }

    /// Records that name `own` as the workload itself.
    fn write(&mut self, count: u64, own: &str) {
        let mut fields = Vec::new();
        for number in 0..count {
            let detail = format!("number {number} \"\\\n\u{1}<>&\u{2028}é😀");
            let attributes = [
                (key::CLIENT_IDENTITY, Value::Text(own)),
                (key::CLIENT_IDENTITY_BY, Value::Text("own_certificate")),
                (key::DETAIL, Value::Text(&detail)),
                ("n", Value::Int(number)),
            ];
            let (uid, name, severity) = (self.uids.next(1), EventName::Alert, Severity::Info);
            Event { uid, name, time_unix_nanos: NOW + number, severity, attributes: &attributes }.encode(&mut fields);
        }
        self.spool.append(NOW, count as u32, &fields).unwrap();
    }

    fn seal(&mut self, credentials: &Credentials) {
        self.seal_at(NOW, credentials);
    }

    fn seal_at(&mut self, now: u64, credentials: &Credentials) {
        self.spool.checkpoint(now, &sign(credentials)).unwrap().unwrap();
    }

    /// What was exported so far, as records of OTLP JSON by their numbers.
    fn export(&mut self) -> Vec<serde_json::Value> {
        let mut records = Vec::new();
        while let Some(chunk) = self.reader.next(1 << 20).unwrap() {
            records.extend(field::contents(&chunk.fields).map(|content| otlp_json(content.unwrap())));
            self.reader.acknowledge(&chunk).unwrap();
        }
        records
    }

    fn id(&self) -> String {
        self.spool.stream().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A record as collectors write it; `integration/tests/evidence.rs` has a real one do it.
fn otlp_json(content: &[u8]) -> serde_json::Value {
    let (time, name) = line::time_and_name(content);
    let (severity, word) = if line::is_error(content) { (13, "WARN") } else { (9, "INFO") };
    let attributes: Vec<_> = line::attributes(content)
        .map(|(name, value)| {
            let value = match value {
                line::Attribute::Text(text) => json!({ "stringValue": text }),
                line::Attribute::Int(number) => json!({ "intValue": number.to_string() }),
                line::Attribute::Double(number) => json!({ "doubleValue": number }),
                line::Attribute::Bool(truth) => json!({ "boolValue": truth }),
            };
            json!({ "key": name, "value": value })
        })
        .collect();
    json!({
        "timeUnixNano": time.to_string(), "observedTimeUnixNano": time.to_string(), "severityNumber": severity,
        "severityText": word, "body": {}, "attributes": attributes, "eventName": name, "traceId": "", "spanId": "",
    })
}

/// Some lines of a collector's file.
fn lines(stream: &str, records: &[serde_json::Value]) -> String {
    let line = |records: &[serde_json::Value]| {
        let resource = json!({ "attributes": [
            { "key": "service.name", "value": { "stringValue": "picket-proxy" } },
            { "key": key::STREAM, "value": { "stringValue": stream } },
        ] });
        let scope = json!({ "scope": { "name": "picket" }, "logRecords": records });
        json!({ "resourceLogs": [{ "resource": resource, "scopeLogs": [scope] }] }).to_string() + "\n"
    };
    records.chunks(7).map(line).collect()
}

fn evidence(root: &str) -> Evidence {
    Evidence::new(TrustBundle::from_pem(root.as_bytes()).unwrap()).unwrap()
}

fn of_lines(root: &str, text: &str) -> BTreeMap<String, StreamReport> {
    let mut evidence = evidence(root);
    evidence.read_lines("records.json", text.as_bytes()).unwrap();
    assert_eq!(evidence.unreadable_lines(), 0, "{:?}", evidence.remarks());
    evidence.judge(None).unwrap().into_iter().map(|report| (report.stream.clone(), report)).collect()
}

fn of_spool(root: &str, directory: &Path) -> StreamReport {
    let mut evidence = evidence(root);
    evidence.read(directory).unwrap();
    evidence.judge(None).unwrap().remove(0)
}

/// The only report is this pair of verdicts, and the first findings are about these numbers.
#[track_caller]
fn check(report: &StreamReport, integrity: (Integrity, u64), completeness: (Completeness, u64)) {
    let first = |findings: &[evidence::Finding]| findings.first().map_or(0, |finding| finding.first);
    let found = (report.integrity, first(&report.integrity_findings));
    assert_eq!(found, integrity, "{report:#?}");
    assert_eq!((report.completeness, first(&report.completeness_findings)), completeness, "{report:#?}");
}

const INTACT: (Integrity, u64) = (Integrity::Intact, 0);
const COMPLETE: (Completeness, u64) = (Completeness::Complete, 0);

/// Three sealed stretches: 1 to 20 with its checkpoint 21, 21 to 41 with 42, 42 to 62 with 63.
fn three(authority: &Authority) -> Stream {
    let mut stream = Stream::new(1 << 20);
    for _ in 0..3 {
        // Each with a certificate of its own: the leaf was renewed.
        let credentials = authority.leaf(WEB);
        stream.write(20, WEB);
        stream.seal(&credentials);
    }
    stream
}

fn exported() -> (Authority, String, Vec<serde_json::Value>) {
    let authority = Authority::new("root");
    let mut stream = three(&authority);
    let records = stream.export();
    assert_eq!(records.len(), 63);
    (authority, stream.id(), records)
}

#[test]
fn what_was_exported_is_intact_and_complete_in_any_order_and_twice() {
    let (authority, id, mut records) = exported();
    let check_all = |records: &[serde_json::Value]| {
        let report = of_lines(&authority.root, &lines(&id, records)).remove(&id).unwrap();
        check(&report, INTACT, COMPLETE);
        assert_eq!((report.records, report.sealed, report.unsealed, report.checkpoints), (63, 62, 0, 3));
        assert_eq!(report.identity.as_deref(), Some(WEB));
        report.duplicates
    };
    assert_eq!(check_all(&records), 0);
    records.reverse();
    records.rotate_left(17);
    assert_eq!(check_all(&records), 0);
    records.extend_from_within(10..40);
    assert_eq!(check_all(&records), 30);
}

#[test]
fn a_spool_is_intact_and_complete_from_its_first_segment_on_and_what_is_not_sealed_is_told() {
    let authority = Authority::new("root");
    let mut stream = three(&authority);
    check(&of_spool(&authority.root, &stream.directory.0), INTACT, COMPLETE);
    stream.write(5, WEB);
    stream.spool.sync().unwrap();
    let report = of_spool(&authority.root, &stream.directory.0);
    check(&report, INTACT, COMPLETE);
    assert_eq!((report.sealed, report.unsealed, report.last), (62, 5, 68));
}

#[test]
fn without_a_checkpoint_nothing_is_proven() {
    let mut stream = Stream::new(1 << 20);
    stream.write(5, WEB);
    stream.spool.sync().unwrap();
    let report = of_spool(&Authority::new("root").root, &stream.directory.0);
    check(&report, (Integrity::Unproven, 1), COMPLETE);
}

#[test]
fn a_deleted_record_is_missed() {
    let (authority, id, mut records) = exported();
    records.remove(29);
    let report = of_lines(&authority.root, &lines(&id, &records)).remove(&id).unwrap();
    check(&report, (Integrity::Unproven, 21), (Completeness::Incomplete, 30));
}

#[test]
fn a_changed_attribute_shows_in_its_stretch() {
    let (authority, id, records) = exported();
    for change in ["\"stringValue\":\"number 5", "\"timeUnixNano\":\"1764", "\"eventName\":\"picket.alert"] {
        let mut changed = records.clone();
        let text = changed[29].to_string();
        let other = match change {
            _ if change.contains("time") => "\"timeUnixNano\":\"1765",
            _ if change.contains("event") => "\"eventName\":\"picket.alerx",
            _ => "\"stringValue\":\"lumber 5",
        };
        let change = change.replace("number 5", "number 8");
        changed[29] = serde_json::from_str(&text.replace(&change, &other.replace("lumber 5", "lumber 8"))).unwrap();
        assert_ne!(changed, records);
        let report = of_lines(&authority.root, &lines(&id, &changed)).remove(&id).unwrap();
        check(&report, (Integrity::Broken, 21), COMPLETE);
        assert_eq!(report.integrity_findings[0].last, 41);
    }
    // What no record of ours holds.
    for (name, value) in [("body", json!({ "stringValue": "x" })), ("more", json!(1))] {
        let mut changed = records.clone();
        changed[29][name] = value;
        let report = of_lines(&authority.root, &lines(&id, &changed)).remove(&id).unwrap();
        assert_eq!((report.integrity, report.completeness), (Integrity::Broken, Completeness::Incomplete));
    }
}

#[test]
fn a_cut_tail_shows_by_what_was_kept_outside() {
    let authority = Authority::new("root");
    let mut stream = three(&authority);
    let (id, records) = (stream.id(), stream.export());
    // Up to the second checkpoint: by itself that is a whole story.
    let cut = lines(&id, &records[..42]);
    check(&of_lines(&authority.root, &cut)[&id], INTACT, COMPLETE);
    let mut with = evidence(&authority.root);
    with.read_lines("records.json", cut.as_bytes()).unwrap();
    with.read_checkpoint(&stream.directory.0.join("checkpoint")).unwrap();
    let report = with.judge(None).unwrap().remove(0);
    // What is left of the last stretch cannot be proven alone.
    check(&report, (Integrity::Unproven, 42), (Completeness::Incomplete, 43));
    // And in the spool itself.
    let file = segment(&stream.directory.0);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let report = of_spool(&authority.root, &stream.directory.0);
    assert_eq!((report.completeness, report.last), (Completeness::Incomplete, 63), "{report:#?}");
}

fn segment(directory: &Path) -> PathBuf {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.into_iter().find(|path| path.extension().is_some_and(|end| end == "seg")).unwrap()
}

#[test]
fn a_changed_byte_of_a_segment_is_damage_and_a_forged_record_breaks_the_chain() {
    let authority = Authority::new("root");
    let stream = three(&authority);
    let file = segment(&stream.directory.0);
    let bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(9).position(|window| window == b"number 7 ").unwrap();
    let mut damaged = bytes.clone();
    damaged[at] = b'N';
    std::fs::write(&file, &damaged).unwrap();
    let report = of_spool(&authority.root, &stream.directory.0);
    check(&report, (Integrity::Broken, 1), (Completeness::Incomplete, 8));
    // Who knows the format makes the checksum good again.
    let (first, epoch) = spool::parse_name(file.file_name().unwrap().to_str().unwrap()).unwrap();
    let mut scan = spool::Scan::new(&bytes[spool::HEADER_BYTES..], epoch, first - 1);
    let begin = loop {
        let begin = spool::HEADER_BYTES + scan.offset();
        scan.advance().unwrap();
        if spool::HEADER_BYTES + scan.offset() > at {
            break begin;
        }
    };
    let end = spool::HEADER_BYTES + scan.offset();
    let head = crc32c::crc32c_append(crc32c::crc32c(&epoch.to_le_bytes()), &damaged[begin..begin + 4]);
    let checksum = crc32c::crc32c_append(head, &damaged[begin + 8..end]).to_le_bytes();
    damaged[begin + 4..begin + 8].copy_from_slice(&checksum);
    std::fs::write(&file, &damaged).unwrap();
    check(&of_spool(&authority.root, &stream.directory.0), (Integrity::Broken, 1), COMPLETE);
}

#[test]
fn two_streams_that_were_swapped_are_told_apart() {
    let authority = Authority::new("root");
    let (mut web, mut other) = (three(&authority), Stream::new(1 << 20));
    other.write(62, OTHER);
    other.seal(&authority.leaf(OTHER));
    let (web_records, other_records) = (web.export(), other.export());
    let swapped = lines(&other.id(), &web_records) + &lines(&web.id(), &other_records);
    for (_, report) in of_lines(&authority.root, &swapped) {
        assert_eq!(report.integrity, Integrity::Broken, "{report:#?}");
        assert!(report.integrity_findings.iter().any(|finding| finding.what.contains("it seals the stream")));
    }
    // One record alone: it is missed here, and a second one there.
    let text = lines(&web.id(), &[&web_records[..29], &web_records[30..]].concat())
        + &lines(&other.id(), &[&other_records[..], &web_records[29..30]].concat());
    let reports = of_lines(&authority.root, &text);
    check(&reports[&web.id()], (Integrity::Unproven, 21), (Completeness::Incomplete, 30));
    check(&reports[&other.id()], (Integrity::Broken, 30), COMPLETE);
    // A workload that signs for another: its records name somebody else.
    let mut forged = Stream::new(1 << 20);
    forged.write(5, WEB);
    forged.seal(&authority.leaf(OTHER));
    check(&of_spool(&authority.root, &forged.directory.0), (Integrity::Broken, 1), COMPLETE);
}

#[test]
fn a_checkpoint_counts_only_with_the_right_key_the_right_root_and_in_its_time() {
    let authority = Authority::new("root");
    let stranger = Authority::new("root");
    let cases = [
        (authority.leaf(OTHER), NOW, "not by"),
        (stranger.leaf(WEB), NOW, "does not lead to a root"),
        (authority.leaf(WEB), NOW + 4000 * SECOND, "ended"),
        (authority.leaf(WEB), NOW - 4000 * SECOND, "begins"),
    ];
    for (credentials, time, what) in cases {
        let mut stream = three(&authority);
        stream.write(3, WEB);
        stream.seal_at(time, &credentials);
        let report = of_spool(&authority.root, &stream.directory.0);
        check(&report, (Integrity::Broken, 67), COMPLETE);
        assert!(report.integrity_findings[0].what.contains(what), "{report:#?}");
        assert_eq!((report.sealed, report.unsealed), (62, 4));
    }
    // The whole stream by somebody else than expected.
    let stream = three(&authority);
    let mut evidence = evidence(&authority.root);
    evidence.read(&stream.directory.0).unwrap();
    let report = evidence.judge(Some(&OTHER.parse().unwrap())).unwrap().remove(0);
    assert_eq!((report.integrity, report.checkpoints), (Integrity::Broken, 0));
}

#[test]
fn an_old_checkpoint_in_the_place_of_a_new_one_does_not_count() {
    let (authority, id, mut records) = exported();
    let number = |records: &mut [serde_json::Value], at: usize, number: u64| {
        let attribute = records[at]["attributes"].as_array_mut().unwrap().last_mut().unwrap();
        assert_eq!(attribute["key"], key::SEQUENCE);
        attribute["value"]["intValue"] = json!(number.to_string());
    };
    records[62] = records[41].clone();
    number(&mut records, 62, 63);
    let report = of_lines(&authority.root, &lines(&id, &records)).remove(&id).unwrap();
    check(&report, (Integrity::Broken, 63), COMPLETE);
    assert!(report.integrity_findings[0].what.contains("an old one was put there"));
    assert_eq!((report.sealed, report.unsealed), (41, 21));
    // A record under another number is not what was written either.
    let (authority, id, mut records) = exported();
    number(&mut records, 29, 31);
    number(&mut records, 30, 30);
    let report = of_lines(&authority.root, &lines(&id, &records)).remove(&id).unwrap();
    check(&report, (Integrity::Broken, 21), COMPLETE);
}

/// A stream of which retention dropped some segments, and what was exported of it.
fn with_gaps(authority: &Authority) -> (Stream, Vec<serde_json::Value>) {
    let mut stream = Stream::new(256 << 10);
    let credentials = authority.leaf(WEB);
    let mut records = Vec::new();
    for round in 0..60 {
        stream.write(25, WEB);
        if round % 7 == 6 {
            stream.seal(&credentials);
        }
        stream.spool.sync().unwrap();
        // The collector takes one chunk of the first segment, so that it goes in part.
        if round == 1
            && let Some(chunk) = stream.reader.next(9000).unwrap()
        {
            records.extend(field::contents(&chunk.fields).map(|content| otlp_json(content.unwrap())));
            stream.reader.acknowledge(&chunk).unwrap();
        }
        if round == 30 {
            stream.spool.lose(NOW, 9, Reason::QueueFull);
        }
    }
    stream.seal(&credentials);
    records.extend(stream.export());
    (stream, records)
}

#[test]
fn gaps_that_retention_made_are_explained_and_the_rest_is_proven() {
    let authority = Authority::new("root");
    let (stream, records) = with_gaps(&authority);
    let report = of_lines(&authority.root, &lines(&stream.id(), &records)).remove(&stream.id()).unwrap();
    check(&report, INTACT, COMPLETE);
    assert!(report.explained.iter().any(|gap| gap.reason == "spool_full"), "{report:#?}");
    assert!(report.explained.iter().any(|gap| gap.reason == "queue_full" && gap.records == 9), "{report:#?}");
    check(&of_spool(&authority.root, &stream.directory.0), INTACT, COMPLETE);
    // The gap says how many, and nobody may say more.
    let forged = lines(&stream.id(), &records).replace("spool_full", "age");
    let report = of_lines(&authority.root, &forged).remove(&stream.id()).unwrap();
    assert_eq!((report.integrity, report.completeness), (Integrity::Broken, Completeness::Incomplete), "{report:#?}");
}

#[test]
fn a_gap_record_that_no_checkpoint_seals_explains_nothing() {
    let authority = Authority::new("root");
    let mut stream = three(&authority);
    stream.spool.lose(NOW, 4, Reason::QueueFull);
    stream.write(2, WEB);
    stream.spool.sync().unwrap();
    let report = of_spool(&authority.root, &stream.directory.0);
    check(&report, INTACT, (Completeness::Incomplete, 64));
    assert!(report.completeness_findings[0].what.contains("no checkpoint seals"));
    stream.seal(&authority.leaf(WEB));
    let report = of_spool(&authority.root, &stream.directory.0);
    check(&report, INTACT, COMPLETE);
    let gap: Vec<_> = report.explained.iter().map(|gap| (gap.first, gap.last, gap.records)).collect();
    assert_eq!(gap, [(64, 67, 4)]);
}

#[test]
fn what_is_no_record_of_ours_is_passed_over_and_what_cannot_be_read_is_told() {
    let (authority, id, records) = exported();
    let foreign = json!({ "resourceLogs": [{ "resource": {}, "scopeLogs": [{ "logRecords": [
        { "body": { "stringValue": "hello" }, "unknown": 1 } ] }] }] });
    let text = format!("{foreign}\n\n{}not json\n{{\"resourceLogs\":[{{\"res", lines(&id, &records));
    let mut evidence = evidence(&authority.root);
    evidence.read_lines("records.json", text.as_bytes()).unwrap();
    assert_eq!((evidence.unreadable_lines(), evidence.remarks().len()), (1, 2), "{:?}", evidence.remarks());
    check(&evidence.judge(None).unwrap()[0], INTACT, COMPLETE);
}

/// Puts `bytes` into a file at a place, before or instead of what is there, and has it judged: whether what was not changed is
/// good. Some bytes of a line mean nothing (white space, other attributes of the resource); what is good holds all records.
fn is_judged(name: &str, root: &str, mut text: Vec<u8>, at: usize, bytes: Vec<u8>, instead: bool) -> bool {
    let end = if instead { (at + bytes.len()).min(text.len()) } else { at };
    let changed = text[at..end] != bytes;
    text.splice(at..end, bytes);
    let mut evidence = evidence(root);
    evidence.read_lines(name, text.as_slice()).unwrap();
    let unreadable = evidence.unreadable_lines();
    let good = evidence.judge(None).unwrap().iter().all(StreamReport::is_good);
    changed || (good && unreadable == 0)
}

proptest! {
    #[test]
    fn whatever_is_read_there_is_a_verdict(
        at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..20), cut in any::<bool>(),
    ) {
        static LINES: std::sync::LazyLock<(String, Vec<u8>)> = std::sync::LazyLock::new(|| {
            let (authority, id, records) = exported();
            (authority.root, lines(&id, &records).into_bytes())
        });
        let (root, whole) = &*LINES;
        prop_assert!(is_judged("records.json", root, whole.clone(), at.index(whole.len()), bytes, cut));
    }
}
