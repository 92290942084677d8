//! The loads, and the stock programs that make them: h2load, wrk, curl.
//!
//! A load fails if one request fails. Where a program sends an exact number of requests (h2load, curl), exactly as many
//! must be recorded; wrk stops by time, so that up to one more for each connection may be.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use testkit::{Namespace, RunDir, run};

use crate::nginx::LARGE;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Load {
    /// Small GETs over 32 kept connections.
    Http1,
    /// Small GETs over one kept connection, one after the other: what a proxy adds when nothing waits.
    OneConnection,
    /// A new connection for each small GET, 32 at once.
    ConnectionPerRequest,
    /// Small GETs over 8 connections with 32 streams each.
    Http2,
    /// Large files, one after the other.
    Bulk,
    /// Kept connections on which nothing happens.
    Idle,
}

impl Load {
    /// All of them.
    pub(crate) const ALL: [Self; 6] =
        [Self::Http1, Self::OneConnection, Self::ConnectionPerRequest, Self::Http2, Self::Bulk, Self::Idle];

    /// As headings show it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1, 32 kept connections",
            Self::OneConnection => "HTTP/1.1, one connection, one request at a time",
            Self::ConnectionPerRequest => "HTTP/1.1, a connection per request, 32 at once",
            Self::Http2 => "HTTP/2, 8 connections with 32 streams each",
            Self::Bulk => "Bulk, one large download after the other",
            Self::Idle => "Idle connections",
        }
    }

    /// Requests in flight at once.
    fn concurrency(self) -> u64 {
        match self {
            Self::Http1 | Self::ConnectionPerRequest => 32,
            Self::Http2 => 8 * 32,
            Self::OneConnection | Self::Bulk | Self::Idle => 1,
        }
    }
}

/// How much of a load to send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Amount {
    /// That many requests.
    Requests(u64),
    /// That long.
    Time(Duration),
}

/// What was sent and answered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// Requests that were answered with success.
    pub(crate) requests: u64,
    /// Requests that may have been begun beyond them.
    pub(crate) cut: u64,
    pub(crate) seconds: f64,
    /// Latency in microseconds, where it is measured.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
}

/// A URL of HTTP without TLS.
struct Url<'a>(SocketAddr, &'a str);

impl fmt::Display for Url<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.0, self.1)
    }
}

impl Load {
    /// Sends it from `client` to `to`.
    ///
    /// # Errors
    /// When a request failed.
    pub(crate) fn send(self, client: &Namespace, to: SocketAddr, amount: Amount, scratch: &RunDir) -> Result<Done> {
        match (self, amount) {
            (Self::Http1, Amount::Requests(n)) => h2load(client, to, &["--h1", "-c32"], n, scratch),
            (Self::OneConnection, Amount::Requests(n)) => h2load(client, to, &["--h1", "-c1"], n, scratch),
            (Self::Http2, Amount::Requests(n)) => h2load(client, to, &["-c8", "-m32"], n, scratch),
            (Self::Bulk, Amount::Requests(n)) => curl(client, to, n),
            (Self::ConnectionPerRequest, Amount::Time(time)) => {
                let done = wrk(client, to, time, scratch)?;
                Ok(Done { cut: self.concurrency(), ..done })
            }
            (Self::Idle, _)
            | (Self::Http1 | Self::OneConnection | Self::Http2 | Self::Bulk, Amount::Time(_))
            | (Self::ConnectionPerRequest, Amount::Requests(_)) => {
                anyhow::bail!("{self:?} is not sent by {amount:?}")
            }
        }
    }

    /// The amount that should take that long, at the rate of a first run.
    pub(crate) fn amount(self, first: &Done, time: Duration) -> Amount {
        match self {
            Self::ConnectionPerRequest => Amount::Time(time),
            Self::Http1 | Self::OneConnection | Self::Http2 | Self::Bulk | Self::Idle => {
                let requests = (first.requests as f64 / first.seconds * time.as_secs_f64()) as u64;
                let step = self.concurrency();
                Amount::Requests((requests / step).max(1) * step)
            }
        }
    }

    /// What a first run sends, to warm up and to find the rate.
    pub(crate) fn first(self, time: Duration) -> Amount {
        match self {
            Self::ConnectionPerRequest => Amount::Time(time),
            Self::Http1 | Self::Http2 => Amount::Requests(40 * 256),
            Self::OneConnection => Amount::Requests(2000),
            Self::Bulk | Self::Idle => Amount::Requests(1),
        }
    }
}

fn h2load(client: &Namespace, to: SocketAddr, shape: &[&str], requests: u64, scratch: &RunDir) -> Result<Done> {
    let log = scratch.path().join("h2load.log");
    // It appends.
    let _none_yet = std::fs::remove_file(&log);
    let mut command = client.command(0, "h2load");
    command.args(shape).args(["-t1", "-n", &requests.to_string(), "--log-file"]).arg(&log);
    let output = run(command.arg(Url(to, "/").to_string()))?;
    ensure!(
        output.contains(&format!("{requests} succeeded, 0 failed, 0 errored, 0 timeout"))
            && output.contains(&format!("status codes: {requests} 2xx, ")),
        "h2load: requests failed: {output}"
    );
    let line = output.lines().find_map(|line| line.strip_prefix("finished in ")).context("h2load: no summary")?;
    let seconds = duration(line.split(',').next().unwrap_or_default()).context("h2load: no duration")?;
    let text = std::fs::read_to_string(&log)?;
    let mut latencies: Vec<u64> = text.lines().filter_map(|line| line.split('\t').nth(2)?.parse().ok()).collect();
    ensure!(latencies.len() as u64 == requests, "h2load: {} of {requests} latencies", latencies.len());
    latencies.sort_unstable();
    let quantile = |q: f64| latencies.get((latencies.len() as f64 * q) as usize).map(|micros| *micros as f64);
    Ok(Done { requests, cut: 0, seconds, p50: quantile(0.5), p99: quantile(0.99) })
}

/// `3.02s`, `845.12ms`, `91us`.
fn duration(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..split].parse().ok()?;
    let unit = match &text[split..] {
        "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        _ => return None,
    };
    Some(number * unit)
}

/// Prints what wrk found, as numbers.
const WRK_REPORT: &str = r#"function done(summary, latency, requests)
  local e = summary.errors
  print(string.format("bench %d %d %d %f %f", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"#;

fn wrk(client: &Namespace, to: SocketAddr, time: Duration, scratch: &RunDir) -> Result<Done> {
    let script = scratch.write("wrk.lua", WRK_REPORT)?;
    let mut command = client.command(0, "wrk");
    command.args(["-t1", "-c32", "--timeout", "10s", "-H", "Connection: close"]);
    command.arg(format!("-d{}s", time.as_secs().max(1))).arg("-s").arg(script);
    let output = run(command.arg(Url(to, "/").to_string()))?;
    let line = output.lines().find_map(|line| line.strip_prefix("bench ")).context("wrk: no report")?;
    let numbers: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [requests, micros, errors, p50, p99] = numbers[..] else { anyhow::bail!("wrk: {line}") };
    ensure!(errors == 0.0 && requests > 0.0, "wrk: requests failed: {output}");
    Ok(Done { requests: requests as u64, cut: 0, seconds: micros / 1e6, p50: Some(p50), p99: Some(p99) })
}

fn curl(client: &Namespace, to: SocketAddr, files: u64) -> Result<Done> {
    let mut command = client.command(0, "curl");
    command.args(["--silent", "--show-error", "--fail", "--write-out", "%{http_code}\n"]);
    for _ in 0..files {
        command.args(["--output", "/dev/null"]).arg(Url(to, LARGE).to_string());
    }
    let started = Instant::now();
    let output = run(&mut command)?;
    let seconds = started.elapsed().as_secs_f64();
    let served = output.lines().filter(|line| *line == "200").count() as u64;
    ensure!(served == files, "curl: {served} of {files} downloads succeeded");
    Ok(Done { requests: files, cut: 0, seconds, p50: None, p99: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_their_units() {
        assert_eq!(duration("3.5s"), Some(3.5));
        assert_eq!(duration("250ms"), Some(0.25));
        assert_eq!(duration("soon"), None);
    }

    #[test]
    fn amounts_keep_the_load_even() {
        let first = Done { requests: 1000, seconds: 0.1, ..Done::default() };
        let Amount::Requests(n) = Load::Http2.amount(&first, Duration::from_secs(1)) else { panic!("by number") };
        assert_eq!(n % 256, 0);
        assert!((9_000..=10_000).contains(&n));
    }
}
