//! What must be true of the demo, decided from evidence: records, captures and metrics.
//!
//! Promises: pure; every check can fail, and an absent piece of evidence is a failure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use testkit::{Counts, Record};

use crate::apps::Sent;
use crate::edges::{Side, Unit, is_closed, key};

/// One claim with its verdict and the numbers behind it.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) holds: bool,
    pub(crate) claim: String,
    pub(crate) evidence: String,
}

/// Traffic that a load generator sent, and who should be in its records.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    /// Name of the service.
    pub(crate) service: String,
    /// Addresses and port of the service: the destination in the records of the client's proxy.
    pub(crate) dialled: ([IpAddr; 2], u16),
    /// Addresses and port of the server's pod: the destination in the records of its proxy.
    pub(crate) endpoint: ([IpAddr; 2], u16),
    /// What is counted.
    pub(crate) unit: Unit,
    /// Expected identity of the client.
    pub(crate) client: String,
    /// Expected identity of the server.
    pub(crate) server: String,
    /// What was sent.
    pub(crate) sent: Sent,
}

impl Traffic {
    /// How many records each of the two proxies owes for it.
    pub(crate) fn expected(&self) -> usize {
        let count = match self.unit {
            Unit::Request => self.sent.requests,
            Unit::Connection => self.sent.connections,
        };
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    fn is_mine(&self, record: &Record, side: Side) -> bool {
        let counts = match self.unit {
            Unit::Request => true,
            Unit::Connection => is_closed(record),
        };
        let (addresses, port) = match side {
            Side::Client => &self.dialled,
            Side::Server => &self.endpoint,
        };
        let address = record.text(key::DESTINATION_ADDRESS).and_then(|text| text.parse().ok());
        let same = address.is_some_and(|address| addresses.contains(&address))
            && record.integer(key::DESTINATION_PORT) == Some(i64::from(*port));
        record.event() == self.unit.event() && counts && record.is(key::DIRECTION, side.direction()) && same
    }

    fn is_either(&self, record: &Record) -> bool {
        self.is_mine(record, Side::Client) || self.is_mine(record, Side::Server)
    }

    /// How many records one side's proxy made of it.
    pub(crate) fn recorded(&self, records: &[Record], side: Side) -> usize {
        records.iter().filter(|record| self.is_mine(record, side)).count()
    }
}

/// The markers that captures look for.
#[derive(Debug)]
pub(crate) struct Seen {
    /// In the pod of the client: its proxy takes the marker over loopback.
    pub(crate) client_pod: Counts,
    /// In the pod of the server.
    pub(crate) server_pod: Counts,
    /// Between the pods: first the marker, then the control that was sent in clear on purpose.
    pub(crate) link: Counts,
}

/// One record from each side for everything that was sent.
pub(crate) fn complete(traffic: &[Traffic], records: &[Record]) -> Vec<Check> {
    traffic.iter().map(|traffic| complete_one(traffic, records)).collect()
}

fn complete_one(traffic: &Traffic, records: &[Record]) -> Check {
    let expected = traffic.expected();
    let [outbound, inbound] = [Side::Client, Side::Server].map(|side| traffic.recorded(records, side));
    let unit = match traffic.unit {
        Unit::Request => "request",
        Unit::Connection => "connection",
    };
    Check {
        holds: expected > 0 && outbound == expected && inbound == expected,
        claim: format!("every {unit} to {} has its two records", traffic.service),
        evidence: format!("{expected} sent, {outbound} by the client's proxy, {inbound} by the server's"),
    }
}

/// Both identities in every record.
pub(crate) fn identities(traffic: &[Traffic], records: &[Record]) -> Check {
    let mut total = 0;
    let mut wrong = 0;
    for traffic in traffic {
        for record in records.iter().filter(|record| traffic.is_either(record)) {
            total += 1;
            let right =
                record.is(key::CLIENT_IDENTITY, &traffic.client) && record.is(key::SERVER_IDENTITY, &traffic.server);
            wrong += u64::from(!right);
        }
    }
    Check {
        holds: total > 0 && wrong == 0,
        claim: "every record names the right client and the right server".to_owned(),
        evidence: format!("{total} records, {wrong} with another identity"),
    }
}

/// What the proxies say they did: all this traffic was carried inside the mesh.
pub(crate) fn decisions(traffic: &[Traffic], records: &[Record]) -> Check {
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for record in records.iter().filter(|record| traffic.iter().any(|traffic| traffic.is_either(record))) {
        *found.entry(record.text(key::DECISION).unwrap_or("none").to_owned()).or_default() += 1;
    }
    let evidence: Vec<String> = found.iter().map(|(decision, count)| format!("{count} {decision}")).collect();
    Check {
        holds: found.len() == 1 && found.contains_key("meshed"),
        claim: "every record says that the mesh carried it".to_owned(),
        evidence: if evidence.is_empty() { "no records".to_owned() } else { evidence.join(", ") },
    }
}

/// The one TLS version and group.
pub(crate) fn encryption(traffic: &[Traffic], records: &[Record]) -> Check {
    let mine: Vec<&Record> =
        records.iter().filter(|record| traffic.iter().any(|traffic| traffic.is_either(record))).collect();
    let right = mine
        .iter()
        .filter(|record| record.is(key::TLS_PROTOCOL_VERSION, "1.3") && record.is(key::TLS_CURVE, "X25519MLKEM768"))
        .count();
    Check {
        holds: !mine.is_empty() && right == mine.len(),
        claim: "all of it was TLS 1.3 with a post-quantum key exchange".to_owned(),
        evidence: format!("{right} of {} records say 1.3 X25519MLKEM768", mine.len()),
    }
}

/// The marker was in clear inside the pods and not between them.
pub(crate) fn secrecy(seen: &Seen) -> Vec<Check> {
    let hits = |counts: &Counts, index: usize| counts.hits.get(index).copied().unwrap_or_default();
    let (client, server) = (hits(&seen.client_pod, 0), hits(&seen.server_pod, 0));
    let (marker, control) = (hits(&seen.link, 0), hits(&seen.link, 1));
    vec![
        Check {
            holds: client > 0 && server > 0,
            claim: "the marker that clients send was in clear inside the pods".to_owned(),
            evidence: format!("{client} frames at the client, {server} at the server"),
        },
        Check {
            holds: marker == 0 && control > 0 && seen.link.frames > 0,
            claim: "the marker never crossed the link between the pods".to_owned(),
            evidence: format!(
                "{marker} of {} frames; a control sent in clear was seen {}",
                seen.link.frames,
                if control > 0 { "as it should" } else { "not at all: the capture proves nothing" },
            ),
        },
    ]
}

/// No proxy lost a record, by its own count. `metrics` holds each proxy's metrics text.
pub(crate) fn nothing_dropped(metrics: &[String]) -> Check {
    let counters = |text: &String| -> Vec<f64> { text.lines().filter_map(dropped).collect() };
    let all: Vec<Vec<f64>> = metrics.iter().map(counters).collect();
    let lost: f64 = all.iter().flatten().sum();
    Check {
        holds: !all.is_empty() && all.iter().all(|counters| !counters.is_empty()) && lost == 0.0,
        claim: "no proxy dropped a record".to_owned(),
        evidence: format!("{lost} by the counters of {} proxies", all.iter().filter(|found| !found.is_empty()).count()),
    }
}

/// The value of one line of metrics text, if it counts dropped records.
fn dropped(line: &str) -> Option<f64> {
    let (name, value) = line.rsplit_once(' ')?;
    let counts = !line.starts_with('#') && name.contains("record") && name.contains("dropped");
    counts.then(|| value.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::logs::v1::LogRecord;

    use super::*;

    fn counts(frames: u64, hits: &[u64]) -> Counts {
        Counts { frames, bytes: 100 * frames, hits: hits.to_vec() }
    }

    #[test]
    fn secrecy_fails_without_evidence_and_with_a_leak() {
        let verdict = |client, server, link| {
            let seen = Seen { client_pod: counts(9, &[client]), server_pod: counts(9, &[server]), link };
            secrecy(&seen).iter().map(|check| check.holds).collect::<Vec<_>>()
        };
        assert_eq!(verdict(3, 3, counts(9, &[0, 1])), [true, true]);
        assert_eq!(verdict(3, 3, counts(9, &[1, 1])), [true, false], "a leak");
        assert_eq!(verdict(3, 3, counts(9, &[0, 0])), [true, false], "a capture that sees nothing");
        assert_eq!(verdict(0, 3, counts(9, &[0, 1])), [false, true], "a marker that was never sent");
    }

    #[test]
    fn dropping_is_noticed_and_so_is_a_missing_counter() {
        let text = |value: u32| format!("# HELP x\npicket_records_dropped_total{{sink=\"otlp\"}} {value}\n");
        assert!(nothing_dropped(&[text(0), text(0)]).holds);
        assert!(!nothing_dropped(&[text(0), text(2)]).holds);
        assert!(!nothing_dropped(&[text(0), "up 1\n".to_owned()]).holds);
        assert!(!nothing_dropped(&[]).holds);
    }

    fn traffic() -> Traffic {
        Traffic {
            service: "web.demo".to_owned(),
            dialled: (["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()], 80),
            endpoint: (["10.244.0.3".parse().unwrap(), "fd00:244::3".parse().unwrap()], 8080),
            unit: Unit::Request,
            client: "a".to_owned(),
            server: "b".to_owned(),
            sent: Sent { connections: 1, requests: 2, errors: 0 },
        }
    }

    fn request(direction: &str, address: &str, port: i64, group: &str) -> Record {
        let texts = [
            (key::DIRECTION, direction),
            (key::DESTINATION_ADDRESS, address),
            (key::SERVICE, "web.demo"),
            (key::CLIENT_IDENTITY, "a"),
            (key::SERVER_IDENTITY, "b"),
            (key::TLS_PROTOCOL_VERSION, "1.3"),
            (key::TLS_CURVE, group),
            (key::NETWORK_PROTOCOL_NAME, "http"),
            (key::CODE, "ok"),
            (key::DECISION, "meshed"),
        ];
        let mut values = texts.map(|(key, text)| (key, Value::StringValue(text.to_owned()))).to_vec();
        values.push((key::DESTINATION_PORT, Value::IntValue(port)));
        values.push((key::DURATION, Value::DoubleValue(0.75)));
        let attribute = |(key, value): (&str, Value)| KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        };
        let attributes = values.into_iter().map(attribute).collect();
        let event_name = Unit::Request.event().to_owned();
        Record { resource: Arc::new([]), log: LogRecord { event_name, attributes, ..LogRecord::default() } }
    }

    fn both_sides(group: &str) -> [Record; 2] {
        [request("outbound", "10.96.0.10", 80, group), request("inbound", "fd00:244::3", 8080, group)]
    }

    #[test]
    fn two_records_per_request_with_the_right_content_pass() {
        let records = [both_sides("X25519MLKEM768"), both_sides("X25519MLKEM768")].concat();
        let traffic = [traffic()];
        assert!(complete(&traffic, &records)[0].holds);
        assert!(identities(&traffic, &records).holds);
        assert!(encryption(&traffic, &records).holds);
        assert!(decisions(&traffic, &records).holds);
        let edges = crate::edges::edges(&records).unwrap();
        assert_eq!((edges.len(), edges[0].count, edges[0].errors), (1, 2, 0));
        assert!((edges[0].quantile_ms(0.5) - 750.0).abs() < 1.0, "{}", edges[0].quantile_ms(0.5));

        assert!(!complete(&traffic, &records[..3])[0].holds, "one is missing");
        let doubled = [records.clone(), records[..1].to_vec()].concat();
        assert!(!complete(&traffic, &doubled)[0].holds, "one is there twice");
        let classical = [both_sides("X25519MLKEM768"), both_sides("X25519")].concat();
        assert!(!encryption(&traffic, &classical).holds, "another group");
        let mut refused = records.clone();
        let decision = refused[0].log.attributes.iter_mut().find(|attribute| attribute.key == key::DECISION).unwrap();
        decision.value = Some(AnyValue { value: Some(Value::StringValue("refused".to_owned())) });
        let check = decisions(&traffic, &refused);
        assert!(!check.holds);
        assert_eq!(check.evidence, "3 meshed, 1 refused");
        let stranger = Traffic { client: "c".to_owned(), ..traffic[0].clone() };
        assert!(!identities(&[stranger], &records).holds, "another client");
    }

    #[test]
    fn traffic_without_records_is_incomplete() {
        let traffic = [traffic()];
        assert!(!complete(&traffic, &[])[0].holds);
        assert!(!identities(&traffic, &[]).holds);
        assert!(!encryption(&traffic, &[]).holds);
        assert!(!decisions(&traffic, &[]).holds);
    }
}
