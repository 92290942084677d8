//! What `picket baseline` asks a running proxy over its admin socket; the JSON is that of `api::baseline`.

use std::sync::Arc;

use api::baseline::{Accept, Deviation, Edge, EdgeName, Pin, Status};
use baseline::{Direction, EdgeRef, Phase, Protocol, Summary};
use http::{Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use telemetry::admin::Admin;

use super::{Baseline, now, report::rfc3339};

/// Adds the requests to the admin server.
pub fn serve(admin: Admin, baseline: &Arc<Baseline>) -> Admin {
    let shown = Arc::clone(baseline);
    let admin = admin.with_action(Method::GET, "/baseline", move |_body| {
        let answer = ok(&status(&shown));
        async { answer }
    });
    let accepting = Arc::clone(baseline);
    let admin = admin.with_action(Method::POST, "/baseline/accept", move |body| {
        let answer = parse::<Accept>(&body).and_then(|accept| {
            let accepted = accepting.engine().accept(accept.id);
            let unknown = || refused(StatusCode::CONFLICT, &format!("no deviation {} is open", accept.id));
            if accepted { Ok(ok(&status(&accepting))) } else { Err(unknown()) }
        });
        async { answer.unwrap_or_else(|refused| refused) }
    });
    let pinning = Arc::clone(baseline);
    admin.with_action(Method::POST, "/baseline/pin", move |body| {
        let answer = parse::<Pin>(&body).and_then(|pin| {
            let edge =
                edge_of(&pin.edge).ok_or_else(|| refused(StatusCode::BAD_REQUEST, "no such direction or protocol"))?;
            let known = pinning.engine().pin(edge, pin.pinned);
            let unknown = || refused(StatusCode::CONFLICT, "there is no such edge; `picket baseline show` lists them");
            if known { Ok(ok(&status(&pinning))) } else { Err(unknown()) }
        });
        async { answer.unwrap_or_else(|refused| refused) }
    })
}

type Answer = (StatusCode, String);

fn ok(body: &impl Serialize) -> Answer {
    (StatusCode::OK, json!(body).to_string())
}

fn refused(status: StatusCode, error: &str) -> Answer {
    (status, json!({ "error": error }).to_string())
}

fn parse<T: DeserializeOwned>(body: &str) -> Result<T, Answer> {
    serde_json::from_str(body).map_err(|error| refused(StatusCode::BAD_REQUEST, &error.to_string()))
}

fn edge_of(name: &EdgeName) -> Option<EdgeRef<'_>> {
    let directions = [Direction::Inbound, Direction::Outbound];
    let protocols = [Protocol::Http, Protocol::Grpc, Protocol::Tcp, Protocol::Udp];
    Some(EdgeRef {
        direction: directions.into_iter().find(|direction| direction.as_str() == name.direction)?,
        peer: &name.peer,
        service: &name.service,
        port: name.port,
        protocol: protocols.into_iter().find(|protocol| protocol.as_str() == name.protocol)?,
    })
}

fn name_of(edge: &baseline::EdgeKey) -> EdgeName {
    EdgeName {
        direction: edge.direction.as_str().to_owned(),
        peer: edge.peer.clone(),
        service: edge.service.clone(),
        port: edge.port,
        protocol: edge.protocol.as_str().to_owned(),
    }
}

fn status(baseline: &Baseline) -> Status {
    let engine = baseline.engine();
    let mut edges: Vec<_> = engine.summaries().map(|summary| edge(&summary)).collect();
    edges.sort_by(|a, b| a.name.cmp(&b.name));
    Status {
        time: rfc3339(now()),
        template: baseline.template.clone(),
        previous_template: baseline.previous.clone(),
        edges,
        deviations: engine.open_deviations().map(deviation).collect(),
    }
}

fn edge(summary: &Summary) -> Edge {
    Edge {
        name: name_of(&summary.edge),
        phase: match summary.phase {
            Phase::Learning => "learning",
            Phase::Watching => "watching",
        }
        .to_owned(),
        pinned: summary.pinned,
        last_seen: rfc3339(summary.last),
        requests_per_second: summary.rate.into(),
        error_share: summary.errors,
        duration_quantiles: summary.duration,
        first_byte: summary.first_byte,
        bytes: summary.bytes.into(),
        open: summary.open.iter().map(|kind| kind.as_str().to_owned()).collect(),
    }
}

fn deviation(deviation: &baseline::Deviation) -> Deviation {
    Deviation {
        id: deviation.id,
        kind: deviation.kind.as_str().to_owned(),
        edge: deviation.edge.as_ref().map(name_of),
        others: deviation.others.iter().map(name_of).collect(),
        since: rfc3339(deviation.since),
        opened: rfc3339(deviation.opened),
        expected: deviation.expected.into(),
        observed: deviation.observed,
        unit: deviation.kind.unit().to_owned(),
        records: deviation.records,
        peers: deviation.peers,
        score: deviation.score,
    }
}
