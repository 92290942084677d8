//! What the engine says, as records (`picket.deviation`, `picket.rollout`) and in the log.

use baseline::{Deviation, Difference, EdgeKey, Event, digits};
use export::Events;
use record::{EventName, Severity, Value, key, line};

use super::Baseline;

/// Differences that a rollout report names; the rest is a number.
const DIFFERENCES_MAX: usize = 12;

/// Writes one event.
pub(super) fn write(event: &Event, baseline: &Baseline, events: &Events) {
    match event {
        Event::Opened(deviation) => {
            tracing::warn!(id = deviation.id, kind = deviation.kind.as_str(), "{}", sentence(deviation));
            deviated(deviation, "opened", None, events);
        }
        Event::Updated(deviation) => {
            tracing::warn!(id = deviation.id, kind = deviation.kind.as_str(), "more of it: {}", sentence(deviation));
            deviated(deviation, "updated", None, events);
        }
        Event::Closed { deviation, ending, .. } => {
            let (id, kind) = (deviation.id, deviation.kind.as_str());
            tracing::info!(id, kind, "over ({}): {}", ending.as_str(), sentence(deviation));
            deviated(deviation, "closed", Some(ending.as_str()), events);
        }
        Event::RolledOut { differences, .. } => rolled_out(differences, baseline, events),
    }
}

fn deviated(deviation: &Deviation, state: &str, ending: Option<&str>, events: &Events) {
    let (since, detail, others) = (rfc3339(deviation.since), sentence(deviation), others(deviation));
    let mut attributes = vec![
        (key::DEVIATION_ID, Value::Int(deviation.id)),
        (key::DEVIATION_STATE, Value::Text(state)),
        (key::DEVIATION_KIND, Value::Text(deviation.kind.as_str())),
        (key::DEVIATION_EXPECTED_MIN, Value::Double(deviation.expected.0)),
        (key::DEVIATION_EXPECTED_MAX, Value::Double(deviation.expected.1)),
        (key::DEVIATION_OBSERVED, Value::Double(deviation.observed)),
        (key::DEVIATION_UNIT, Value::Text(deviation.kind.unit())),
        (key::DEVIATION_SINCE, Value::Text(&since)),
        (key::DEVIATION_RECORDS, Value::Int(deviation.records)),
        (key::DEVIATION_PEERS, Value::Int(u64::from(deviation.peers))),
        (key::DEVIATION_SCORE, Value::Double(deviation.score)),
        (key::DETAIL, Value::Text(&detail)),
    ];
    if let Some(edge) = &deviation.edge {
        attributes.extend([
            (key::DIRECTION, Value::Text(edge.direction.as_str())),
            (key::DEVIATION_PEER, Value::Text(&edge.peer)),
            (key::SERVICE, Value::Text(&edge.service)),
            (key::DESTINATION_PORT, Value::Int(u64::from(edge.port))),
            (key::NETWORK_PROTOCOL_NAME, Value::Text(edge.protocol.as_str())),
        ]);
    }
    if !others.is_empty() {
        attributes.push((key::DEVIATION_OTHERS, Value::Text(&others)));
    }
    if let Some(ending) = ending {
        attributes.push((key::DEVIATION_ENDING, Value::Text(ending)));
    }
    let severity = if ending.is_some() { Severity::Info } else { Severity::Warn };
    events.emit(EventName::Deviation, severity, &attributes);
}

fn rolled_out(differences: &[Difference], baseline: &Baseline, events: &Events) {
    let named = differences.iter().take(DIFFERENCES_MAX).map(|difference| {
        let Difference { edge, kind, before, after } = difference;
        format!("{} of {}: {} -> {} {}", kind.as_str(), describe(edge), digits(*before), digits(*after), kind.unit())
    });
    let detail = named.collect::<Vec<_>>().join("; ");
    let previous = baseline.previous.as_deref().unwrap_or_default();
    let count = differences.len() as u64;
    tracing::info!(template = baseline.template, previous, differences = count, "rollout compared: {detail}");
    let attributes = [
        (key::ROLLOUT_TEMPLATE, Value::Text(&baseline.template)),
        (key::ROLLOUT_PREVIOUS, Value::Text(previous)),
        (key::ROLLOUT_DIFFERENCES, Value::Int(count)),
        (key::DETAIL, Value::Text(&detail)),
    ];
    let severity = if differences.is_empty() { Severity::Info } else { Severity::Warn };
    events.emit(EventName::Rollout, severity, &attributes);
}

/// An edge for people.
pub(super) fn describe(edge: &EdgeKey) -> String {
    let service = if edge.service.is_empty() { String::new() } else { format!(" as {}", edge.service) };
    format!("{} {}{service} port {} {}", edge.direction.as_str(), edge.peer, edge.port, edge.protocol.as_str())
}

/// A deviation for people.
fn sentence(deviation: &Deviation) -> String {
    let (low, high) = deviation.expected;
    let edge = deviation.edge.as_ref().map_or_else(|| "the pod".to_owned(), describe);
    let unnamed = (deviation.peers as usize).saturating_sub(1 + deviation.others.len());
    let company = match (others(deviation), unnamed) {
        (others, _) if others.is_empty() => others,
        (others, 0) => format!(", with {others}"),
        (others, unnamed) => format!(", with {others}, and {unnamed} more"),
    };
    format!(
        "{} on {edge}{company}: expected {} to {} {unit}, observed {} {unit}, since {}, {} records",
        deviation.kind.as_str(),
        digits(low),
        digits(high),
        digits(deviation.observed),
        rfc3339(deviation.since),
        deviation.records,
        unit = deviation.kind.unit(),
    )
}

/// The other peers that a deviation names: each by its edge, as far as that differs.
fn others(deviation: &Deviation) -> String {
    let alike = |other: &EdgeKey| {
        let edge = deviation.edge.as_ref();
        edge.is_some_and(|edge| EdgeKey { peer: other.peer.clone(), ..edge.clone() } == *other)
    };
    let name = |other: &EdgeKey| if alike(other) { other.peer.clone() } else { describe(other) };
    deviation.others.iter().map(name).collect::<Vec<_>>().join("; ")
}

/// A time in milliseconds since 1970 UTC, as RFC 3339 has it.
pub(super) fn rfc3339(millis: u64) -> String {
    let mut text = Vec::new();
    line::rfc3339(millis.saturating_mul(1_000_000), &mut text);
    String::from_utf8(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_peers_that_came_together_are_named() {
        let edge = |peer: &str, port| EdgeKey {
            direction: baseline::Direction::Inbound,
            peer: peer.to_owned(),
            service: "web.demo".to_owned(),
            port,
            protocol: baseline::Protocol::Http,
        };
        let deviation = Deviation {
            id: 1,
            kind: baseline::Kind::NewPeer,
            edge: Some(edge("spiffe://td/a", 80)),
            others: vec![edge("spiffe://td/b", 80), edge("spiffe://td/c", 81)],
            since: 0,
            opened: 0,
            expected: (0.0, 0.0),
            observed: 5.0,
            records: 5,
            peers: 5,
            score: 1.0,
        };
        let text = sentence(&deviation);
        let named = "a as web.demo port 80 http, with spiffe://td/b; inbound spiffe://td/c as web.demo port 81 http, and 2 more: ";
        assert!(text.contains(named), "{text}");
        let alone = Deviation { others: Vec::new(), peers: 1, ..deviation };
        assert!(sentence(&alone).contains("port 80 http: expected"), "{}", sentence(&alone));
    }
}
