//! `picket baseline`: what a proxy holds for normal, what has left it, and what an operator says about that.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use api::baseline::{Accept, EdgeName, Pin, Range, Status};
use baseline::{EdgeKey, State, digits};
use clap::{Args, Subcommand};
use serde_json::json;
use telemetry::Exit;

use crate::output::{self, Format, table};
use crate::socket;

/// A proxy's admin socket.
#[derive(Args)]
pub(crate) struct Proxy {
    /// The admin socket of picket-proxy (`admin.socket`).
    #[arg(long)]
    socket: PathBuf,
}

/// One edge, as `show` prints it.
#[derive(Args)]
pub(crate) struct Edge {
    /// `inbound` or `outbound`.
    #[arg(long, value_parser = ["inbound", "outbound"])]
    direction: String,
    /// SPIFFE ID of the peer, or the class of its address.
    #[arg(long)]
    peer: String,
    /// `name.namespace` of the service; nothing where none is shown.
    #[arg(long, default_value = "")]
    service: String,
    /// Port of the service.
    #[arg(long)]
    port: u16,
    /// `http`, `grpc` or `tcp`.
    #[arg(long, value_parser = ["http", "grpc", "tcp", "udp"])]
    protocol: String,
}

impl Edge {
    fn name(&self) -> EdgeName {
        EdgeName {
            direction: self.direction.clone(),
            peer: self.peer.clone(),
            service: self.service.clone(),
            port: self.port,
            protocol: self.protocol.clone(),
        }
    }
}

/// What can be asked.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Edges with what is normal on each, and the deviations that are open.
    Show {
        #[command(flatten)]
        proxy: Proxy,
    },
    /// Take what a deviation is about as the new normal.
    Accept {
        /// Number of the deviation.
        id: u64,
        #[command(flatten)]
        proxy: Proxy,
    },
    /// Keep an edge's baseline as it is, whatever lasts.
    Pin {
        #[command(flatten)]
        edge: Edge,
        /// Let it adapt again.
        #[arg(long)]
        remove: bool,
        #[command(flatten)]
        proxy: Proxy,
    },
    /// What differs between two baselines that were kept: 0 if nothing does, 1 if something does.
    Diff {
        /// The file of the one before.
        before: PathBuf,
        /// The file of the one after.
        after: PathBuf,
    },
    /// Merge what siblings have learnt into the baseline of their workload.
    Merge {
        /// Files of the siblings.
        #[arg(required = true)]
        siblings: Vec<PathBuf>,
        /// Where it goes: `workloadDir`/TEMPLATE.baseline.
        #[arg(long)]
        to: PathBuf,
    },
    /// What the engine would have said of stored records: spools, and files of OTLP JSON.
    Replay(crate::replay::Options),
}

/// Runs one command; `No` when the proxy refuses it, or baselines differ.
///
/// # Errors
/// When nobody answers, or a file cannot be used.
pub(crate) fn run(command: &Command, format: Format) -> Result<Exit> {
    match command {
        Command::Show { proxy } => ask(proxy, "GET", "/baseline", "", format),
        Command::Accept { id, proxy } => {
            ask(proxy, "POST", "/baseline/accept", &serde_json::to_string(&Accept { id: *id })?, format)
        }
        Command::Pin { edge, remove, proxy } => {
            let pin = Pin { edge: edge.name(), pinned: !remove };
            ask(proxy, "POST", "/baseline/pin", &serde_json::to_string(&pin)?, format)
        }
        Command::Diff { before, after } => diff(before, after, format),
        Command::Merge { siblings, to } => merge(siblings, to),
        Command::Replay(options) => crate::replay::run(options, format),
    }
}

fn ask(proxy: &Proxy, method: &str, path: &str, body: &str, format: Format) -> Result<Exit> {
    socket::ask(&proxy.socket, (method, path, body), format, show)
}

fn show(status: &Status) -> String {
    let mut edges = vec![
        ["DIRECTION", "PEER", "SERVICE", "PORT", "PROTOCOL", "STATE", "RATE/S", "ERRORS", "FIRST", "P50", "P99"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for edge in &status.edges {
        let name = &edge.name;
        let quantile = |at: usize| edge.duration_quantiles.map_or_else(|| "-".to_owned(), |found| seconds(found[at]));
        let state = if edge.pinned { format!("{}, pinned", edge.phase) } else { edge.phase.clone() };
        edges.push(vec![
            name.direction.clone(),
            name.peer.clone(),
            if name.service.is_empty() { "-".to_owned() } else { name.service.clone() },
            name.port.to_string(),
            name.protocol.clone(),
            state,
            range(edge.requests_per_second),
            format!("{:.2}%", edge.error_share * 100.0),
            edge.first_byte.map_or_else(|| "-".to_owned(), seconds),
            quantile(0),
            quantile(2),
        ]);
    }
    let mut text = format!("template {}, clock {}\n", status.template, status.time);
    text += &table(&edges);
    if !status.deviations.is_empty() {
        text += "\n";
        text += &deviations(status);
    }
    text
}

fn deviations(status: &Status) -> String {
    let mut rows = vec![
        ["ID", "DEVIATION", "EDGE", "EXPECTED", "OBSERVED", "UNIT", "RECORDS", "SINCE"].map(str::to_owned).to_vec(),
    ];
    for deviation in &status.deviations {
        rows.push(vec![
            deviation.id.to_string(),
            deviation.kind.clone(),
            deviation.edge.as_ref().map_or_else(|| "the pod".to_owned(), edge),
            range(deviation.expected),
            digits(deviation.observed),
            deviation.unit.clone(),
            deviation.records.to_string(),
            deviation.since.clone(),
        ]);
        rows.extend(others(&deviation.others, deviation.peers).map(|edge| row(edge, 2, 8)));
    }
    table(&rows)
}

/// A line for each of the other peers of a deviation, and one for those that are not named.
pub(crate) fn others(others: &[EdgeName], peers: u32) -> impl Iterator<Item = String> {
    let unnamed = (peers as usize).saturating_sub(1 + others.len());
    let more = (unnamed > 0).then(|| format!("and {unnamed} more"));
    others.iter().map(edge).chain(more)
}

/// A row of a table with `columns`, empty but for one.
pub(crate) fn row(text: String, at: usize, columns: usize) -> Vec<String> {
    let mut row = vec![String::new(); columns];
    row[at] = text;
    row
}

/// An edge of the engine, as people and programs name it.
pub(crate) fn name(edge: &EdgeKey) -> EdgeName {
    EdgeName {
        direction: edge.direction.as_str().to_owned(),
        peer: edge.peer.clone(),
        service: edge.service.clone(),
        port: edge.port,
        protocol: edge.protocol.as_str().to_owned(),
    }
}

pub(crate) fn edge(name: &EdgeName) -> String {
    let service = if name.service.is_empty() { String::new() } else { format!(" {}", name.service) };
    format!("{} {}{service}:{} {}", name.direction, name.peer, name.port, name.protocol)
}

pub(crate) fn range(range: Range) -> String {
    let (min, max) = (digits(range.min), digits(range.max));
    if min == max { min } else { format!("{min}..{max}") }
}

fn seconds(value: f64) -> String {
    if value < 1.0 { format!("{:.1}ms", value * 1e3) } else { format!("{value:.2}s") }
}

pub(crate) fn read(file: &Path) -> Result<State> {
    let bytes = fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    State::decode(&bytes).with_context(|| format!("{} is no baseline", file.display()))
}

fn diff(before: &Path, after: &Path, format: Format) -> Result<Exit> {
    let differences = read(before)?.diff(&read(after)?);
    let text = match format {
        Format::Json => {
            let list = differences.iter().map(|difference| {
                json!({
                    "edge": name(&difference.edge),
                    "kind": difference.kind.as_str(), "unit": difference.kind.unit(),
                    "before": difference.before, "after": difference.after,
                })
            });
            format!("{}\n", json!(list.collect::<Vec<_>>()))
        }
        Format::Table if differences.is_empty() => "no differences\n".to_owned(),
        Format::Table => {
            let mut rows = vec![["DIFFERENCE", "EDGE", "BEFORE", "AFTER", "UNIT"].map(str::to_owned).to_vec()];
            for difference in &differences {
                let name = name(&difference.edge);
                let (before, after) = (digits(difference.before), digits(difference.after));
                rows.push(vec![
                    difference.kind.as_str().to_owned(),
                    edge(&name),
                    before,
                    after,
                    difference.kind.unit().to_owned(),
                ]);
            }
            table(&rows)
        }
    };
    output::write(&text)?;
    Ok(if differences.is_empty() { Exit::Success } else { Exit::No })
}

fn merge(siblings: &[PathBuf], to: &Path) -> Result<Exit> {
    let mut merged = State::default();
    for sibling in siblings {
        merged.merge(&read(sibling)?);
    }
    let fresh = to.with_extension("new");
    let write = || {
        let mut file = fs::File::create(&fresh)?;
        std::io::Write::write_all(&mut file, &merged.encode())?;
        file.sync_all()?;
        fs::rename(&fresh, to)
    };
    let written = write();
    written.with_context(|| format!("{} cannot be written", to.display()))?;
    Ok(Exit::Success)
}
