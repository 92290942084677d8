//! Memory of a pair of proxies at full rate while the collector is away, beside the same load while it takes everything: what waits
//! has to wait on disk.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use testkit::RunDir;

use crate::{
    load::{Done, Load},
    machine,
    stage::{Meshed, Subject},
};

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(10);
const METHOD: &str = "\
Two real proxies with their spools (64 MiB each, synced each 100 ms) and access logs; HTTP/1.1 over 32 kept connections as fast as
it goes. Memory is RssAnon of each process, the greatest of looks each 10 ms during the load. `There`: a collector takes all
records. `Away`: nobody listens at its address, which refuses each connection; the spools are full long before the load ends, so
that the oldest records go. Each half of a round has proxies of its own; figures are medians. What is extra is `away` less `there`.
";

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Seconds of load in each half of a round.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Rounds, each with the collector there and away.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Bytes of the client's and of the server's proxy.
type Pair = [u64; 2];

/// Runs it and prints the result.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let time = Duration::from_secs(arguments.seconds.clamp(1, 600));
    let scratch = RunDir::new("bench-away")?;
    let (mut idle, mut there, mut away, mut rates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..arguments.rounds.clamp(1, 100) {
        for is_there in [true, false] {
            // Of its own, because a heap does not forget what it once held.
            let mut meshed = Meshed::spooled()?;
            meshed.collector(is_there)?;
            let subject = meshed.subject()?;
            idle.push(held(&subject)?);
            let (most, done) = loaded(&subject, time, &scratch)?;
            let rate = (done.requests as f64 / done.seconds) as u64;
            eprintln!("bench: round {round}, collector there: {is_there}: {most:?} bytes, {rate} requests/s");
            if is_there {
                there.push(most)
            } else {
                away.push(most)
            }
            rates.push(rate);
        }
    }
    println!("{}- {} rounds of {} s and {} s\n", machine::describe(), there.len(), time.as_secs(), time.as_secs());
    println!("| MiB | idle | there | away | extra |\n|---|--:|--:|--:|--:|");
    for (at, name) in ["client's proxy", "server's proxy"].into_iter().enumerate() {
        let of = |rounds: &[Pair]| median(rounds.iter().map(|pair| pair[at]).collect()) as f64 / f64::from(1 << 20);
        let (idle, there, away) = (of(&idle), of(&there), of(&away));
        println!("| {name} | {idle:.1} | {there:.1} | {away:.1} | {:.1} |", away - there);
    }
    println!("\n{} requests/s (median)\n\n### Method\n\n{METHOD}", median(rates));
    Ok(())
}

/// The most that each proxy held while it was loaded for so long.
fn loaded(subject: &Subject<'_>, time: Duration, scratch: &RunDir) -> Result<(Pair, Done)> {
    let send = |amount| Load::Http1.send(subject.client, subject.http1, amount, scratch);
    let first = send(Load::Http1.first(time))?;
    let watch = Watch::start(subject);
    let done = send(Load::Http1.amount(&first, time))?;
    Ok((watch.end()?, done))
}

fn held(subject: &Subject<'_>) -> Result<Pair> {
    let [client, server] = &subject.proxies[..] else { anyhow::bail!("a pair has two proxies") };
    Ok([anonymous(client.pid)?, anonymous(server.pid)?])
}

/// Memory that is no file's, in bytes.
fn anonymous(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("a proxy has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Looks at the memory of both proxies until it is ended.
struct Watch {
    stop: Arc<AtomicBool>,
    most: Arc<[AtomicU64; 2]>,
    thread: JoinHandle<Result<()>>,
}

impl Watch {
    fn start(subject: &Subject<'_>) -> Self {
        let pids: Vec<u32> = subject.proxies.iter().map(|proxy| proxy.pid).collect();
        let (stop, most) = (Arc::<AtomicBool>::default(), Arc::<[AtomicU64; 2]>::default());
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&most));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                for (pid, most) in pids.iter().zip(seen.iter()) {
                    most.fetch_max(anonymous(*pid)?, Relaxed);
                }
                std::thread::sleep(LOOK);
            }
            Ok(())
        });
        Self { stop, most, thread }
    }

    fn end(self) -> Result<Pair> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow!("the watch panicked"))??;
        Ok([0, 1].map(|at: usize| self.most[at].load(Relaxed)))
    }
}

fn median(mut of: Vec<u64>) -> u64 {
    of.sort_unstable();
    of.get(of.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_memory_is_seen() {
        let before = anonymous(std::process::id()).unwrap();
        let block = std::hint::black_box(vec![1u8; 32 << 20]);
        assert!(anonymous(std::process::id()).unwrap() >= before + (30 << 20));
        drop(block);
        assert_eq!((median(vec![3, 1, 2]), median(vec![])), (2, 0));
    }
}
