//! `picket-bench-baseline`: how good and how dear baselines are, in one run.
//!
//! `score --yardstick DIRECTORY` runs the yardstick's harness (Python 3, standard library) against this program as its
//! detector, then measures the cost in this process. `records` and `series` are the detector: they speak the harness's two
//! line protocols. `cost` alone takes seconds. Promises: one set of constants for all of it, the library's own; the detector
//! sees what the harness sends and nothing else. Leaves to the harness: data, labels, rules.

mod cost;
mod records;
mod series;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

/// How good and how dear baselines are.
#[derive(Debug, Parser)]
#[command(name = "picket-bench-baseline")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Everything: recorded series, generated records, cost.
    Score {
        /// Where the yardstick is: its `harness` and `data`.
        #[arg(long)]
        yardstick: PathBuf,
        /// Only the recorded series and the cost, which takes a minute or two.
        #[arg(long)]
        series_only: bool,
        /// How many workloads are scored at a time.
        #[arg(long, default_value_t = 1)]
        jobs: u32,
        /// Handed on to `score_stream.py`, for instance `--seeds=1,2` or `--config=FILE`.
        #[arg(last = true)]
        more: Vec<String>,
    },
    /// Nanoseconds per record and bytes per edge, in this process.
    Cost,
    /// A detector of records on stdin and stdout.
    Records,
    /// A detector of one series on stdin and stdout.
    Series,
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Score { yardstick, series_only, jobs, more } => score(&yardstick, series_only, jobs, &more),
        Task::Cost => cost::measure(),
        Task::Records => records::serve(),
        Task::Series => series::serve(),
    }
}

fn score(yardstick: &Path, series_only: bool, jobs: u32, more: &[String]) -> Result<()> {
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    let program = program.to_str().context("the path of this program is not text")?;
    harness(yardstick, "score_series.py", &[], &[program, "series"])?;
    if !series_only {
        let jobs = jobs.to_string();
        let options: Vec<&str> = ["--jobs", &jobs].into_iter().chain(more.iter().map(String::as_str)).collect();
        harness(yardstick, "score_stream.py", &options, &[program, "records"])?;
    }
    cost::measure()
}

fn harness(yardstick: &Path, script: &str, options: &[&str], detector: &[&str]) -> Result<()> {
    let script = yardstick.join("harness").join(script);
    ensure!(script.is_file(), "{} is not there: --yardstick is where `harness` and `data` are", script.display());
    let mut command = Command::new("python3");
    command.arg("-B").arg(&script).args(options).arg("--").args(detector);
    let status = command.status().with_context(|| format!("cannot run python3 {}", script.display()))?;
    ensure!(status.success(), "{} ended with {status}", script.display());
    Ok(())
}
