//! `picket-bench reconnect`: many proxies come back to the CA's trust stream at the same moment, again and again.
//!
//! Promises: every one of them gets its bundle, or there is no result; an attempt ends and is tried again when a proxy would
//! do so. Prints how long each waited for its first bundle, and what the CA holds: before, with all of them, after new
//! generations, and after each further wave. Leaves out: certificates, which have a bench of their own.

use std::{
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use api::trust::Status;
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use testkit::{Bundles, binaries, until};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use crate::{authority::Authority, machine, usage};

const METHOD: &str = "\
All clients begin at once, on one thread of another process; each makes TCP, TLS 1.3 (X25519MLKEM768) and the first
message as a proxy does, gives an attempt 10 s, and pauses 0.5 s and longer after one that failed. The time is from the common
beginning to the first bundle. Memory is RssAnon of picket-ca. A wave ends when all have said what they use; then all
connections are dropped at once and the next wave begins.
";
const ATTEMPT: Duration = Duration::from_secs(10);
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
const ATTEMPTS_MAX: usize = 20;
/// Both processes need a descriptor for each connection, and some more.
const DESCRIPTORS_SPARE: u64 = 200;
const GENERATIONS: usize = 3;

/// How much is measured.
#[derive(Clone, Debug, Args)]
pub(crate) struct Arguments {
    /// Proxies; the limit of open files must be higher.
    #[arg(long, default_value_t = 10_000)]
    proxies: usize,
    /// How often they come.
    #[arg(long, default_value_t = 3)]
    waves: usize,
}

/// One proxy that follows.
struct Follower {
    say: mpsc::Sender<Status>,
    bundles: Bundles,
    waited: Duration,
    attempts: usize,
}

/// Measures, and prints what came out.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let count = arguments.proxies.clamp(1, 1_000_000);
    raise_limit(count as u64 + DESCRIPTORS_SPARE)?;
    let authority = Arc::new(Authority::start(count + 100)?);
    let pid = authority.process.pid();
    let tokens = (0..count).map(|pod| authority.token(pod)).collect::<Result<Vec<_>>>()?;
    let tokens: Arc<[String]> = tokens.into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Connections are driven all the time, also while this thread waits for something else; it ends with the process.
    let clients = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    let mut out = String::from("# Proxies that come back at once\n\n");
    machine::describe().lines().take(2).for_each(|line| out += &format!("{line}\n"));
    let before = anonymous_bytes(pid)?;
    out += &format!(
        "- {count} proxies\n\n{METHOD}\n| | first bundle: p50 | p90 | p99 | last | attempts | CA's CPU, s | RssAnon, MiB | KiB each |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    let row = |name: &str, rest: &str, bytes: u64| {
        let each = bytes.saturating_sub(before) as f64 / 1024.0 / count as f64;
        format!("| {name} | {rest} | {:.1} | {each:.1} |\n", bytes as f64 / f64::from(1 << 20))
    };
    out += &row("before", "| | | | |", before);
    for wave in 1..=arguments.waves.clamp(1, 100) {
        let cpu = usage::cpu(pid)?;
        let mut followers = clients.block_on(come(&authority, &tokens))?;
        heard(&authority)?;
        let cpu = usage::cpu(pid)?.since(cpu).total() as f64 / 1e6;
        let mut waited: Vec<_> = followers.iter().map(|follower| follower.waited.as_secs_f64()).collect();
        waited.sort_by(f64::total_cmp);
        let at = |share: f64| waited[((waited.len() - 1) as f64 * share) as usize];
        let attempts: usize = followers.iter().map(|follower| follower.attempts).sum();
        let times = [0.5, 0.9, 0.99, 1.0].map(|share| format!("{:.1} s", at(share))).join(" | ");
        let times = format!("{times} | {attempts} | {cpu:.1}");
        out += &row(&format!("wave {wave}"), &times, anonymous_bytes(pid)?);
        for generation in 0..GENERATIONS {
            deny(&authority, &format!("{wave:x}{generation:02x}"))?;
            clients.block_on(next_generation(&mut followers))?;
            heard(&authority)?;
        }
        out += &row(&format!("after {GENERATIONS} generations"), "| | | | |", anonymous_bytes(pid)?);
        drop(followers);
        until("the end of all streams", Duration::from_secs(60), || {
            Ok((picket(&authority, &["status"])?["proxies"]["connected"] == 0).then_some(()))
        })?;
        out += &row("all gone", "| | | | |", anonymous_bytes(pid)?);
        eprintln!("{out}");
    }
    std::io::stdout().write_all(out.as_bytes()).context("cannot print the result")
}

fn raise_limit(needed: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    ensure!(maximum >= needed, "{needed} open files are needed in each process, {maximum} are allowed");
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

/// All come at once.
async fn come(authority: &Arc<Authority>, tokens: &Arc<[String]>) -> Result<Vec<Follower>> {
    let (began, mut coming) = (Instant::now(), JoinSet::new());
    for pod in 0..tokens.len() {
        let (authority, tokens) = (Arc::clone(authority), Arc::clone(tokens));
        coming.spawn(async move {
            let mut pause = PAUSES.0;
            for attempt in 1..=ATTEMPTS_MAX {
                if let Ok(Ok((say, bundles))) = timeout(ATTEMPT, follow(&authority, &tokens[pod])).await {
                    return Ok(Follower { say, bundles, waited: began.elapsed(), attempts: attempt });
                }
                // Spread by the number, as proxies do it by chance.
                tokio::time::sleep(pause.mul_f64(0.5 + (pod % 97) as f64 / 194.0)).await;
                pause = (pause * 2).min(PAUSES.1);
            }
            anyhow::bail!("proxy {pod} was not served in {ATTEMPTS_MAX} attempts")
        });
    }
    let mut followers = Vec::with_capacity(tokens.len());
    while let Some(follower) = coming.join_next().await {
        followers.push(follower??);
    }
    Ok(followers)
}

async fn follow(authority: &Authority, token: &str) -> Result<(mpsc::Sender<Status>, Bundles)> {
    let (say, mut bundles) = testkit::follow(authority.follow(token, uses(0)).await?);
    let bundle = bundles.message().await?.context("the stream ended")?;
    say.send(uses(bundle.generation)).await?;
    Ok((say, bundles))
}

async fn next_generation(followers: &mut [Follower]) -> Result<()> {
    for follower in followers {
        let bundle = timeout(ATTEMPT, follower.bundles.message()).await??.context("the stream ended")?;
        follower.say.send(uses(bundle.generation)).await?;
    }
    Ok(())
}

fn uses(generation: u64) -> Status {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Status {
        generation,
        time_unix_nanos: now.as_nanos() as i64,
        certificate_serial: "f".repeat(32),
        issuer_sha256: vec![7; 32],
        certificate_not_after: now.as_secs() as i64 + 3600,
        ..Status::default()
    }
}

fn picket(authority: &Authority, arguments: &[&str]) -> Result<serde_json::Value> {
    let mut command = std::process::Command::new(binaries()?.join("picket"));
    command.args(["--output", "json", "certs"]).args(arguments).arg("--dir").arg(authority.directory.path().join("ca"));
    Ok(serde_json::from_str(&testkit::run(&mut command)?)?)
}

fn deny(authority: &Authority, serial: &str) -> Result<()> {
    picket(authority, &["deny", "--serial", serial]).map(drop)
}

/// Waits until the CA has heard from everybody who is connected what it uses.
fn heard(authority: &Authority) -> Result<()> {
    until("all acknowledgements", Duration::from_secs(60), || {
        Ok((picket(authority, &["status"])?["proxies"]["behind"] == 0).then_some(()))
    })
}

fn anonymous_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the CA has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
