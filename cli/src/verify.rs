//! `picket verify`: two verdicts about each stream of records, and an exit code that says whether both are good.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use evidence::{Completeness, Evidence, Finding, Integrity, StreamReport};
use identity::{SpiffeId, TrustBundle};
use serde::Serialize;
use telemetry::Exit;

use crate::output::{self, Format, table};

/// What is verified, and by what.
#[derive(Args)]
pub(crate) struct Options {
    /// Directories of spools, and files of OTLP JSON lines or of syslog messages, in any order.
    #[arg(required = true)]
    path: Vec<PathBuf>,
    /// The roots that vouch for workloads, PEM; those of the time of the records.
    #[arg(long, value_name = "FILE")]
    trust_bundle: PathBuf,
    /// Whose records these have to be, a SPIFFE ID; otherwise each stream's first checkpoint says so.
    #[arg(long, value_name = "SPIFFE_ID")]
    identity: Option<SpiffeId>,
    /// A checkpoint that was kept outside, as the file `checkpoint` of a spool; may be given more than once.
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
}

/// All verdicts, as JSON has them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict<'a> {
    ok: bool,
    unreadable_lines: u64,
    streams: &'a [StreamReport],
    remarks: &'a [String],
}

/// Verifies and tells.
///
/// # Errors
/// When something cannot be read.
pub(crate) fn run(options: &Options, format: Format) -> Result<Exit> {
    let name = options.trust_bundle.display();
    let pem = std::fs::read(&options.trust_bundle).with_context(|| format!("cannot read {name}"))?;
    let bundle = TrustBundle::from_pem(&pem).with_context(|| name.to_string())?;
    let mut evidence = Evidence::new(bundle)?;
    for path in &options.path {
        evidence.read(path)?;
    }
    for path in &options.checkpoint {
        evidence.read_checkpoint(path)?;
    }
    let (remarks, unreadable_lines) = (evidence.remarks().to_vec(), evidence.unreadable_lines());
    let streams = evidence.judge(options.identity.as_ref())?;
    // Where there is nothing, nothing is proven.
    let ok = !streams.is_empty() && unreadable_lines == 0 && streams.iter().all(StreamReport::is_good);
    let text = match format {
        Format::Json => {
            serde_json::to_string(&Verdict { ok, unreadable_lines, streams: &streams, remarks: &remarks })? + "\n"
        }
        Format::Table => show(&streams),
    };
    output::write(&text)?;
    if format == Format::Table {
        remarks.iter().for_each(|remark| eprintln!("picket: {remark}"));
        if streams.is_empty() {
            eprintln!("picket: no record with a stream was found");
        }
    }
    Ok(if ok { Exit::Success } else { Exit::No })
}

fn show(streams: &[StreamReport]) -> String {
    let head = ["STREAM", "IDENTITY", "NUMBERS", "RECORDS", "INTEGRITY", "COMPLETENESS", "NOT SEALED YET"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for stream in streams {
        let integrity = match stream.integrity {
            Integrity::Intact => "intact",
            Integrity::Unproven => "UNPROVEN",
            Integrity::Broken => "BROKEN",
        };
        let completeness = match stream.completeness {
            Completeness::Complete => "complete",
            Completeness::Incomplete => "INCOMPLETE",
        };
        rows.push(vec![
            stream.stream.clone(),
            stream.identity.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{}-{}", stream.first, stream.last),
            stream.records.to_string(),
            first(integrity, &stream.integrity_findings),
            first(completeness, &stream.completeness_findings),
            stream.unsealed.to_string(),
        ]);
    }
    let details = streams.iter().flat_map(|stream| {
        let finding = |finding: &Finding| format!("  {}: {}\n", numbers(finding.first, finding.last), finding.what);
        let explained = stream.explained.iter().map(|gap| {
            let (numbers, records, reason) = (numbers(gap.first, gap.last), gap.records, gap.reason);
            let to = gap.sink.map_or_else(String::new, |sink| format!(" to {sink} alone"));
            format!("  {numbers}: {records} records lost{to}, as a gap record says: {reason}\n")
        });
        let lines: String = stream
            .integrity_findings
            .iter()
            .chain(&stream.completeness_findings)
            .map(finding)
            .chain(explained)
            .collect();
        (!lines.is_empty()).then(|| format!("\n{}\n{lines}", stream.stream))
    });
    table(&rows) + &details.collect::<String>()
}

fn first(verdict: &str, findings: &[Finding]) -> String {
    findings.first().map_or_else(|| verdict.to_owned(), |finding| format!("{verdict} from {}", finding.first))
}

fn numbers(first: u64, last: u64) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}
