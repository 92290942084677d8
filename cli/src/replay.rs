//! `picket baseline replay`: runs the engine over stored records, each stream by itself, in the order of their numbers.
//!
//! Promises: the same records give the same answer; nothing is asked of a running proxy. Leaves to others: whether the records
//! are what was written (`picket verify`).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use baseline::{Deviation, Engine, Event, Limits, State, digits};
use clap::Args;
use evidence::Evidence;
use record::line;
use serde_json::{Value, json};
use telemetry::Exit;

use crate::baseline::{edge, name, others, range, read, row};
use crate::output::{self, Format, table};

/// How often the engine looks at the clock between two records.
const TICK_MS: u64 = 5000;
/// Whoever was silent for longer was stopped.
const QUIET_MS_MAX: u64 = 24 * 3_600_000;

/// What is replayed, and from what baseline.
#[derive(Args)]
pub(crate) struct Options {
    /// Directories of spools, and files of OTLP JSON lines, in any order.
    #[arg(required = true)]
    path: Vec<PathBuf>,
    /// How long a new pod or edge is only watched.
    #[arg(long, value_parser = crate::duration, default_value = "30m")]
    learn: Duration,
    /// What lasts that long becomes normal.
    #[arg(long, value_parser = crate::duration, default_value = "3h")]
    adopt: Duration,
    /// The baseline to start from; otherwise the records themselves are learnt from.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
}

/// One thing that the engine said.
struct Said {
    stream: String,
    state: &'static str,
    at: u64,
    deviation: Deviation,
    ending: Option<&'static str>,
}

/// Replays and tells; `No` when something would have been reported.
///
/// # Errors
/// When something cannot be read, or holds no request or connection.
pub(crate) fn run(options: &Options, format: Format) -> Result<Exit> {
    let state = options.baseline.as_deref().map(read).transpose()?;
    let mut evidence = Evidence::unproven()?;
    for path in &options.path {
        evidence.read(path)?;
    }
    evidence.remarks().iter().for_each(|remark| eprintln!("picket: {remark}"));
    let mut replays: Vec<Replay> = Vec::new();
    evidence.replay(|stream, content| {
        let Some(observation) = baseline::observation(content) else { return };
        if replays.last().is_none_or(|replay| replay.stream != *stream) {
            replays.push(Replay::new(*stream, options, state.as_ref(), observation.at));
        }
        if let Some(replay) = replays.last_mut() {
            replay.take(&observation);
        }
    })?;
    // Nothing that could be asked is no answer: exit code 0 would say that all was well.
    ensure!(!replays.is_empty(), "no request or connection was found");
    let streams = replays.len();
    let said: Vec<Said> = replays.into_iter().flat_map(|replay| replay.said).collect();
    output::write(&match format {
        Format::Json => format!("{}\n", json!(said.iter().map(as_json).collect::<Vec<_>>())),
        Format::Table if said.is_empty() => format!("nothing would have been reported of {streams} streams\n"),
        Format::Table => as_table(&said),
    })?;
    Ok(if said.is_empty() { Exit::Success } else { Exit::No })
}

/// The engine of one stream.
struct Replay {
    stream: [u8; 16],
    engine: Engine,
    /// The latest record so far, in milliseconds.
    at: u64,
    said: Vec<Said>,
}

impl Replay {
    fn new(stream: [u8; 16], options: &Options, state: Option<&State>, at: u64) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let limits = Limits { learn_ms: millis(options.learn), adopt_ms: millis(options.adopt), ..Limits::default() };
        let engine = match state {
            Some(state) => Engine::from_state(limits, at, state),
            None => Engine::new(limits, at),
        };
        Self { stream, engine, at, said: Vec::new() }
    }

    fn take(&mut self, observation: &baseline::Observation<'_>) {
        // A proxy looks at the clock while nothing happens; a stop of a day is one step.
        let mut at = self.at;
        while at.saturating_add(TICK_MS) < observation.at && observation.at - self.at < QUIET_MS_MAX {
            at += TICK_MS;
            self.engine.advance(at);
        }
        self.at = self.at.max(observation.at);
        self.engine.observe(observation);
        let stream = || self.stream.iter().map(|byte| format!("{byte:02x}")).collect();
        for event in self.engine.drain_events() {
            let (state, at, deviation, ending) = match event {
                Event::Opened(deviation) => ("opened", deviation.opened, deviation, None),
                Event::Updated(deviation) => ("updated", self.at, deviation, None),
                Event::Closed { deviation, at, ending } => ("closed", at, deviation, Some(ending.as_str())),
                // Nothing is compared here: `picket baseline diff` does.
                Event::RolledOut { .. } => continue,
            };
            self.said.push(Said { stream: stream(), state, at, deviation, ending });
        }
    }
}

fn rfc3339(millis: u64) -> String {
    let mut text = Vec::new();
    line::rfc3339(millis.saturating_mul(1_000_000), &mut text);
    String::from_utf8(text).unwrap_or_default()
}

fn as_json(said: &Said) -> Value {
    let Said { stream, state, at, deviation, ending } = said;
    json!({
        "stream": stream, "state": state, "at": rfc3339(*at), "ending": ending,
        "kind": deviation.kind.as_str(), "edge": deviation.edge.as_ref().map(name),
        "others": deviation.others.iter().map(name).collect::<Vec<_>>(), "since": rfc3339(deviation.since),
        "expected": { "min": deviation.expected.0, "max": deviation.expected.1 },
        "observed": deviation.observed, "unit": deviation.kind.unit(),
        "records": deviation.records, "peers": deviation.peers, "score": deviation.score,
    })
}

fn as_table(said: &[Said]) -> String {
    let mut rows =
        vec![["TIME", "STATE", "DEVIATION", "EDGE", "EXPECTED", "OBSERVED", "UNIT"].map(str::to_owned).to_vec()];
    for Said { state, at, deviation, ending, .. } in said {
        rows.push(vec![
            rfc3339(*at),
            ending.map_or_else(|| (*state).to_owned(), |ending| format!("{state}, {ending}")),
            deviation.kind.as_str().to_owned(),
            deviation.edge.as_ref().map_or_else(|| "the pod".to_owned(), |key| edge(&name(key))),
            range(deviation.expected.into()),
            digits(deviation.observed),
            deviation.kind.unit().to_owned(),
        ]);
        let names: Vec<_> = deviation.others.iter().map(name).collect();
        rows.extend(others(&names, deviation.peers).map(|edge| row(edge, 3, 7)));
    }
    table(&rows)
}
