//! One measurement: a load through a subject, with what its proxies used for it, and proof that all of it was recorded.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::{RunDir, until};

use crate::{
    load::{Amount, Done, Load},
    stage::Subject,
    usage::{self, Cpu},
};

/// How long records may take to their sinks after the load.
const SETTLE_DEADLINE: Duration = Duration::from_secs(15);

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) done: Done,
    /// CPU time of both proxies.
    pub(crate) cpu: Cpu,
}

impl Sample {
    /// CPU microseconds of both proxies for each request.
    pub(crate) fn cpu_per_request(&self) -> f64 {
        self.cpu.total() as f64 / self.done.requests as f64
    }

    /// How much of it in the programs themselves.
    pub(crate) fn user_per_request(&self) -> f64 {
        self.cpu.user as f64 / self.done.requests as f64
    }

    /// Requests in a second.
    pub(crate) fn rate(&self) -> f64 {
        self.done.requests as f64 / self.done.seconds
    }
}

/// Where the load goes, if the subject can carry it.
pub(crate) fn address(subject: &Subject<'_>, load: Load) -> Option<std::net::SocketAddr> {
    match load {
        Load::Http2 => subject.http2,
        Load::Http1 | Load::OneConnection | Load::ConnectionPerRequest | Load::Bulk | Load::Idle => Some(subject.http1),
    }
}

/// Sends the load and waits until every log and the collector have what they must have.
///
/// # Errors
/// When a request failed or a record is missing.
pub(crate) fn measure(subject: &Subject<'_>, load: Load, amount: Amount, scratch: &RunDir) -> Result<Sample> {
    let to = address(subject, load).context("the subject carries this load")?;
    let recorded_before = Recorded::of(subject)?;
    let cpu_before = cpu(subject)?;
    let done = load.send(subject.client, to, amount, scratch)?;
    if let Err(error) = settle(subject, &recorded_before, &done) {
        // If the proxies know what became of the records, that says more.
        subject.ensure_nothing_lost()?;
        return Err(error);
    }
    let cpu = cpu(subject)?.since(cpu_before);
    // Only now, because to ask costs them time.
    subject.ensure_nothing_lost()?;
    for proxy in &subject.proxies {
        proxy.lines.borrow_mut().empty()?;
    }
    Ok(Sample { done, cpu })
}

/// CPU time of all proxies of a subject.
fn cpu(subject: &Subject<'_>) -> Result<Cpu> {
    subject.proxies.iter().map(|proxy| usage::cpu(proxy.pid)).sum()
}

/// Requests that were recorded so far: by each proxy's log, and at the collector.
#[derive(Debug)]
struct Recorded {
    logs: Vec<u64>,
    sink: Option<u64>,
}

impl Recorded {
    fn of(subject: &Subject<'_>) -> Result<Self> {
        let logs = subject.proxies.iter().map(|proxy| proxy.lines.borrow_mut().count()).collect::<Result<_>>()?;
        Ok(Self { logs, sink: subject.sink.map(|sink| sink.requests()).transpose()? })
    }

    /// What has come since `before`.
    fn since(&self, before: &Self) -> Vec<u64> {
        let logs = self.logs.iter().zip(&before.logs).map(|(now, before)| now - before);
        let half = |(now, before): (u64, u64)| [(now - before) / 2, (now - before).div_ceil(2)];
        // Both proxies send to one collector.
        logs.chain(self.sink.zip(before.sink).into_iter().flat_map(half)).collect()
    }
}

/// Waits until each place holds a record of each request, and checks that it holds no more.
fn settle(subject: &Subject<'_>, before: &Recorded, done: &Done) -> Result<()> {
    let what = || format!("the records of {} requests through {}", done.requests, subject.variant.title());
    let complete = |since: &[u64]| since.iter().all(|count| *count >= done.requests);
    let mut last = Vec::new();
    until(&what(), SETTLE_DEADLINE, || {
        let since = Recorded::of(subject)?.since(before);
        // What was cut is recorded, too, a moment later: wait until nothing moves.
        let moves = done.cut > 0 && since != last;
        last = since;
        if !complete(&last) || moves {
            std::thread::sleep(Duration::from_millis(40));
            return Ok(None);
        }
        Ok(Some(()))
    })
    .with_context(|| format!("recorded by the logs and the collector: {last:?}"))?;
    let limit = done.requests + done.cut;
    ensure!(last.iter().all(|count| *count <= limit), "{}: recorded {last:?}, at most {limit}", what());
    Ok(())
}
