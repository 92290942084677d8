//! The second part of the demo: three things go wrong, and the baselines say so.
//!
//! Promises: each fault is found by its kind and on its edge, in a `picket.deviation` record that went through the collector,
//! or the check fails; so does anything that was reported on that edge before the first fault.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use record::key;
use testkit::{Collector, Mesh, Record, until};

use crate::apps::http;
use crate::checks::Check;
use crate::screen::Screen;

/// A proxy only watches for so long. Short, so that the demo ends within minutes: in production it is half an hour.
pub(crate) const LEARN: Duration = Duration::from_secs(30);
/// How long a fault may go unnoticed, and its end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Port of the service's application in its pod.
pub(crate) const PORT: u16 = 8082;
/// Its name.
pub(crate) const SERVICE: &str = "orders.demo";

/// What goes wrong, and by which names the engine may call it.
struct Fault {
    path: &'static str,
    what: &'static str,
    kinds: &'static [&'static str],
}

const FAULTS: [Fault; 2] = [
    Fault { path: "/fault/slow", what: "orders answers 10 ms later", kinds: &["latency", "latency_tail"] },
    Fault { path: "/fault/failing", what: "one answer of three from orders is an error", kinds: &["errors"] },
];

/// Where the faults happen and are looked for.
pub(crate) struct Scene<'a> {
    pub(crate) screen: Screen,
    pub(crate) mesh: &'a Mesh,
    pub(crate) collector: &'a Collector,
    /// Since when there was traffic.
    pub(crate) since: Instant,
}

impl Scene<'_> {
    /// Waits until the proxies have learnt, then brings each fault and takes it back.
    pub(crate) fn play(&self) -> Result<Vec<Check>> {
        self.screen.heading("baselines: three things go wrong");
        self.screen.step(&format!("the proxies have learnt for {} s what is normal", LEARN.as_secs()));
        // Time itself is what is waited for here: a baseline is made of it. Two blocks of tests are left to chance.
        std::thread::sleep((LEARN + Duration::from_secs(15)).saturating_sub(self.since.elapsed()));
        let early = self.opened(0);
        let mut checks = vec![Check {
            holds: early.is_empty(),
            claim: "nothing was reported of orders before the first fault".to_owned(),
            evidence: format!("{} deviations", early.len()),
        }];
        for fault in &FAULTS {
            checks.push(self.bring(fault)?);
        }
        checks.push(self.stranger()?);
        Ok(checks)
    }

    /// One fault, until it is found; then it is taken back, until the deviation is over.
    fn bring(&self, fault: &Fault) -> Result<Check> {
        let began = unix_nanos();
        self.command(fault.path)?;
        let found = self.await_kind(fault.kinds, began);
        self.command("/fault/none")?;
        if found.is_some() {
            let over = |record: &Record| is_deviation(record, "closed", began) && is_kind(record, fault.kinds);
            // A deviation that does not end is shown as one.
            let ended = until("the end of the deviation", PATIENCE, || {
                Ok(self.collector.records().iter().any(over).then_some(()))
            });
            self.screen.step(if ended.is_ok() {
                "it is as it was, and the deviation is closed"
            } else {
                "the deviation is still open"
            });
        }
        Ok(self.judge(fault.what, found, began))
    }

    /// A client that was never seen before.
    fn stranger(&self) -> Result<Check> {
        let began = unix_nanos();
        let service = SocketAddr::from((Ipv4Addr::new(10, 96, 0, 13), 80));
        let status = self.mesh.pod("data")?.pod.namespace.inside(|| http::get(service, "/ok"))?;
        ensure!(status == 200, "orders answered {status}");
        let found = self.await_kind(&["new_peer"], began);
        Ok(self.judge("data talks to orders, which it never did", found, began))
    }

    /// Tells the application what is wrong with it, from inside its pod, past the proxies.
    fn command(&self, path: &str) -> Result<()> {
        let pod = &self.mesh.pod("backend")?.pod;
        let address = SocketAddr::new(IpAddr::V4(pod.ipv4), PORT);
        let status = pod.namespace.inside(|| http::get(address, path))?;
        ensure!(status == 200, "{path} was answered with {status}");
        Ok(())
    }

    fn await_kind(&self, kinds: &[&str], began: u64) -> Option<Record> {
        let found = || self.opened(began).into_iter().find(|record| is_kind(record, kinds));
        until("the deviation", PATIENCE, || Ok(found())).ok()
    }

    /// Deviations about orders that were opened since then.
    fn opened(&self, since: u64) -> Vec<Record> {
        let records = self.collector.records().into_iter();
        let about = |record: &Record| {
            record.is(key::SERVICE, SERVICE) || record.integer(key::DESTINATION_PORT) == Some(i64::from(PORT))
        };
        records.filter(|record| is_deviation(record, "opened", since) && about(record)).collect()
    }

    fn judge(&self, what: &str, found: Option<Record>, began: u64) -> Check {
        let evidence = match &found {
            None => format!("not reported within {} s", PATIENCE.as_secs()),
            Some(record) => {
                let after = Duration::from_nanos(record.log.time_unix_nano.saturating_sub(began));
                self.screen.line(record.text(key::DETAIL).unwrap_or_default());
                let kind = record.text(key::DEVIATION_KIND).unwrap_or_default();
                format!("picket.deviation {kind} after {:.1} s", after.as_secs_f64())
            }
        };
        Check { holds: found.is_some(), claim: format!("found: {what}"), evidence }
    }
}

fn is_deviation(record: &Record, state: &str, since: u64) -> bool {
    record.event() == "picket.deviation" && record.is(key::DEVIATION_STATE, state) && record.log.time_unix_nano >= since
}

fn is_kind(record: &Record, kinds: &[&str]) -> bool {
    record.text(key::DEVIATION_KIND).is_some_and(|kind| kinds.contains(&kind))
}

fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
