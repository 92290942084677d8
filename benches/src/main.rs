//! `picket-bench`: the same load through direct, nginx, Envoy and Picket, in one run.
//!
//! Promises: every request succeeded and was recorded by every log and the collector, or the run is void (exit code 1).
//! The variants take turns in short rounds, so that a change of the machine's mood meets all of them; figures are medians.
//! Leaves to the reader: what the figures mean on another machine; the ratios travel better than the figures.

mod authority;
mod away;
mod certificates;
mod envoy;
mod handshake;
mod idle;
mod issuance;
mod load;
mod logs;
mod machine;
mod measure;
mod nginx;
mod reconnect;
mod report;
mod sink;
mod stage;
mod usage;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use testkit::RunDir;

use crate::{
    load::Load,
    report::{Memory, Rounds, Verdict},
    stage::{Stage, Subject, Variant},
};

const METHOD: &str = "\
All variants run side by side and take turns: each round sends the same load through each of them, in an order that
rotates; a figure is the median of its rounds, a ratio the median of the ratios within each round. CPU is the time that
all threads of both proxies used (utime + stime from /proc), from before the load until its last record is in the log
and at the collector. Every request succeeded, and every request has its line in the log of each proxy and, for Picket
with OTLP, its two records at the collector: otherwise there would be no result. Proxies have one worker thread each and
mutual TLS 1.3 between them with P-256 certificates, TLS_AES_128_GCM_SHA256, both sides verified. Picket takes traffic
over by its redirect; clients of nginx and Envoy dial their proxy. The application is nginx without a log. `nginx pair,
log` writes each line at once (nginx's default); `buffered` gathers 64 KiB for at most a second, Envoy does likewise.
Latency is that of a client which sends the next request when it has the answer: with more than one connection it is
mostly waiting for a core.
";

/// The same load through direct, nginx, Envoy and Picket.
#[derive(Debug, Parser)]
#[command(name = "picket-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Few and short rounds: to see that it works.
    #[arg(long)]
    quick: bool,
    /// Only these loads.
    #[arg(long, value_enum)]
    only: Vec<Load>,
    /// Only these variants.
    #[arg(long, value_enum)]
    variant: Vec<Variant>,
    /// Where other `picket-proxy` and `picket-ca` are, to be compared with: what a change costs or saves.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Rounds for each load.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each load in a round, about.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Exit code 1 when a goal is missed.
    #[arg(long)]
    assert: bool,
    /// Write the result there as well.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Measurements that are not of load through proxies.
#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// CPU of full handshakes with our configurations, against resumed ones.
    Handshake(handshake::Arguments),
    /// CPU of the CA for a certificate, against the bare cryptography.
    Issuance(issuance::Arguments),
    /// Memory of proxies at full rate while the collector is away.
    Away(away::Arguments),
    /// Many proxies come back to the CA at once: how long each waits, and what the CA holds.
    Reconnect(reconnect::Arguments),
}

impl Command {
    fn run(&self) -> Result<()> {
        match self {
            Self::Handshake(arguments) => handshake::run(arguments),
            Self::Issuance(arguments) => issuance::run(arguments),
            Self::Away(arguments) => away::run(arguments),
            Self::Reconnect(arguments) => reconnect::run(arguments),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Some(command) => command.run().map(|()| true),
        None => bench(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) if arguments.assert => ExitCode::FAILURE,
        Ok(false) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("picket-bench: void: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How much is sent.
struct Plan {
    rounds: usize,
    time: Duration,
    large_bytes: u64,
    idle_connections: u64,
}

impl Plan {
    fn of(arguments: &Arguments) -> Self {
        if arguments.quick {
            Self { rounds: 2, time: Duration::from_secs(1), large_bytes: 64 << 20, idle_connections: 500 }
        } else {
            Self {
                rounds: arguments.rounds.clamp(1, 100) as usize,
                time: Duration::from_secs(arguments.seconds.clamp(1, 60)),
                large_bytes: 256 << 20,
                idle_connections: 2000,
            }
        }
    }
}

/// Runs everything; true when all goals hold.
fn bench(arguments: &Arguments) -> Result<bool> {
    let plan = Plan::of(arguments);
    let chosen = |load: &Load| arguments.only.is_empty() || arguments.only.contains(load);
    let wanted = |variant: &Variant| {
        if *variant == Variant::PicketBaseline {
            return arguments.baseline.is_some();
        }
        arguments.variant.is_empty() || arguments.variant.contains(variant)
    };
    let variants: Vec<Variant> = Variant::ALL.into_iter().filter(wanted).collect();
    let machine = machine::describe();
    eprintln!("bench: starting {}", variants.iter().map(|variant| variant.title()).collect::<Vec<_>>().join("; "));
    let stage = Stage::start(&variants, plan.large_bytes, arguments.baseline.as_ref())?;
    let subjects = stage.subjects(&variants)?;
    let fresh = fresh(&subjects)?;
    let scratch = RunDir::new("bench-scratch")?;

    let mut tables = Vec::new();
    let mut verdicts = Vec::new();
    for load in Load::ALL.into_iter().filter(chosen) {
        if load == Load::Idle {
            let memory = idle_connections(&subjects, &fresh, plan.idle_connections)?;
            tables.push(report::memory_table(&memory));
            verdicts.extend(report::memory_verdict(&memory));
        } else {
            let rounds = rounds(&subjects, load, &plan, &scratch).with_context(|| load.title())?;
            tables.push(rounds.table());
            verdicts.extend(rounds.verdicts());
        }
        eprintln!("{}", tables[tables.len() - 1]);
    }
    let text = result(&machine, &plan, &tables, &verdicts);
    println!("{text}");
    if let Some(path) = &arguments.output {
        std::fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(verdicts.iter().all(|verdict| verdict.holds))
}

/// Memory of each pair before its first request.
fn fresh(subjects: &[Subject<'_>]) -> Result<Vec<(Variant, [u64; 2])>> {
    let pairs = subjects.iter().filter(|subject| !subject.proxies.is_empty());
    pairs.map(|subject| Ok((subject.variant, idle::resident(subject)?))).collect()
}

fn idle_connections(subjects: &[Subject<'_>], fresh: &[(Variant, [u64; 2])], connections: u64) -> Result<Vec<Memory>> {
    let mut memory = Vec::new();
    for (variant, fresh) in fresh {
        let subject = subjects.iter().find(|subject| subject.variant == *variant).context("it was there before")?;
        memory.push(idle::measure(subject, *fresh, connections).with_context(|| variant.title())?);
    }
    Ok(memory)
}

/// All rounds of one load through all subjects that can carry it.
fn rounds(subjects: &[Subject<'_>], load: Load, plan: &Plan, scratch: &RunDir) -> Result<Rounds> {
    let able: Vec<&Subject<'_>> = subjects.iter().filter(|subject| measure::address(subject, load).is_some()).collect();
    let mut amounts = Vec::new();
    for subject in &able {
        let first = measure::measure(subject, load, load.first(Duration::from_secs(1)), scratch)
            .with_context(|| format!("first run through {}", subject.variant.title()))?;
        amounts.push(load.amount(&first.done, plan.time));
    }
    let mut rounds = Vec::new();
    for round in 0..plan.rounds {
        let mut samples = Vec::new();
        for turn in 0..able.len() {
            let at = (turn + round) % able.len();
            let sample = measure::measure(able[at], load, amounts[at], scratch)
                .with_context(|| format!("round {round} through {}", able[at].variant.title()))?;
            eprintln!(
                "bench: {load:?} round {round} {}: {:.0}/s, {:.1} µs",
                able[at].variant.title(),
                sample.rate(),
                sample.cpu_per_request()
            );
            samples.push((able[at].variant, sample));
        }
        rounds.push(samples);
    }
    Ok(Rounds { load, bytes: (load == Load::Bulk).then_some(plan.large_bytes), rounds })
}

/// The result as markdown.
fn result(machine: &str, plan: &Plan, tables: &[String], verdicts: &[Verdict]) -> String {
    let mut out = format!(
        "{machine}- {} rounds of about {} s for each load and variant\n\n{}\n",
        plan.rounds,
        plan.time.as_secs(),
        tables.join("\n")
    );
    if !verdicts.is_empty() {
        out.push_str("\n### Goals\n\n");
    }
    for verdict in verdicts {
        out.push_str(&format!("- {}: {}\n", if verdict.holds { "holds" } else { "missed" }, verdict.claim));
    }
    out.push_str("\n### Method\n\n");
    out.push_str(METHOD);
    out
}
