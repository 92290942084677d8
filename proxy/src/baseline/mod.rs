//! Step 8: every record, off the path of requests, into the baseline engine; what leaves its baseline becomes a record.
//!
//! Promises: the workers only push their batches into one more bounded queue; what does not fit there is counted, and is lost
//! to the baseline alone. What was learnt survives a restart. Leaves to others: what is normal (crate `baseline`).

mod admin;
mod cgroup;
mod report;
mod store;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use baseline::{Counters, Engine, Event, Gauge, Kind, State};
use export::{Batch, Events, Receiver};
use record::line;
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{config, journal::unix_nanos};

pub use admin::serve;

/// How often the engine looks at the clock: it tests when a block of five seconds ends.
const TICK: Duration = Duration::from_secs(1);
/// How often what was learnt is written; what a crash may cost.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long after learning a comparison with the template before waits for traffic, in milliseconds.
const ROLLOUT_PATIENCE_MS: u64 = 24 * 3_600_000;
/// How often CPU and memory are measured.
const GAUGE_INTERVAL: Duration = Duration::from_secs(60);

/// The workload's baseline.
#[derive(Debug)]
pub struct Baseline {
    engine: Mutex<Engine>,
    limit: usize,
    /// Deviations that were opened, by kind.
    opened: [AtomicU64; Kind::ALL.len()],
    template: String,
    /// The template that it was started from, if it was another one.
    previous: Option<String>,
    /// What is learnt beside, without what was inherited, until it was compared.
    rollout: Mutex<Option<Rollout>>,
}

/// A comparison with the template before: what this pod does itself, since what it inherited would hide the difference.
#[derive(Debug)]
struct Rollout {
    engine: Engine,
    /// When it is given up, in milliseconds since 1970 UTC.
    due: u64,
}

impl Baseline {
    /// A baseline that goes on where this proxy, or its siblings, have left off. What cannot be read is said in the log, and
    /// learning begins anew.
    pub fn start(config: &config::Baseline) -> Arc<Self> {
        let (limits, now) = (config.limits(), now());
        let found = store::find(config);
        let engine = match &found {
            Some(found) => Engine::from_state(limits, now, &found.state),
            None => Engine::new(limits, now),
        };
        let (mut previous, mut rollout) = (None, None);
        if let Some(found) = found {
            tracing::info!(file = ?found.file, edges = found.state.edges(), "the baseline goes on from what was learnt");
            if found.template != config.template {
                let mut engine = Engine::new(limits, now);
                engine.compare_with(found.state);
                rollout = Some(Rollout {
                    engine,
                    due: now.saturating_add(limits.learn_ms.saturating_add(ROLLOUT_PATIENCE_MS)),
                });
                previous = Some(found.template);
            }
        }
        Arc::new(Self {
            engine: Mutex::new(engine),
            limit: config.edges,
            opened: Default::default(),
            template: config.template.clone(),
            previous,
            rollout: Mutex::new(rollout),
        })
    }

    /// The engine; nothing waits while it holds it.
    fn engine(&self) -> MutexGuard<'_, Engine> {
        // The engine promises that it does not panic.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self) -> MutexGuard<'_, Option<Rollout>> {
        self.rollout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be said of the rollout, once.
    fn compared(&self, now: u64) -> Option<Event> {
        let mut rollout = self.fresh();
        let fresh = rollout.as_mut()?;
        fresh.engine.advance(now);
        let said = fresh.engine.drain_events().into_iter().find(|event| matches!(event, Event::RolledOut { .. }));
        if said.is_some() || now >= fresh.due {
            *rollout = None;
        }
        said
    }

    /// Takes in the records of one batch.
    fn take(&self, batch: &Batch, receiver: &Receiver) {
        let mut engine = self.engine();
        let mut fresh = self.fresh();
        for observation in line::records(&batch.fields).filter_map(baseline::observation) {
            engine.observe(&observation);
            if let Some(rollout) = fresh.as_mut() {
                rollout.engine.observe(&observation);
            }
        }
        receiver.counters().acknowledge(u64::from(batch.records));
    }

    /// Ends the blocks that are over, and writes what happened.
    fn tick(&self, events: &Events) {
        let mut happened = {
            let mut engine = self.engine();
            engine.advance(now());
            engine.drain_events()
        };
        happened.extend(self.compared(now()));
        for event in &happened {
            if let Event::Opened(deviation) = event {
                self.opened[deviation.kind as usize].fetch_add(1, Relaxed);
            }
            report::write(event, self, events);
        }
    }

    /// What is shown at `/metrics`.
    pub fn numbers(&self) -> Numbers {
        let engine = self.engine();
        let mut open = [0; Kind::ALL.len()];
        for deviation in engine.open_deviations() {
            open[deviation.kind as usize] += 1;
        }
        Numbers {
            counters: engine.counters(),
            edges: engine.edge_count() as u64,
            limit: self.limit as u64,
            open,
            opened: self.opened.each_ref().map(|count| count.load(Relaxed)),
        }
    }

    fn state(&self) -> State {
        self.engine().state()
    }

    /// Feeds the engine until all senders of records are gone, then keeps what was learnt.
    ///
    /// # Cancellation
    /// What was learnt since it was last written is lost.
    pub async fn run(self: Arc<Self>, mut receiver: Receiver, config: config::Baseline, events: Events) {
        let mut ticks = interval_at(Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut saves = interval_at(Instant::now() + SAVE_INTERVAL, SAVE_INTERVAL);
        let mut gauges = interval_at(Instant::now() + GAUGE_INTERVAL, GAUGE_INTERVAL);
        let mut saving: Option<JoinHandle<()>> = None;
        let mut usage = config.cgroup.as_deref().map(cgroup::Usage::new);
        loop {
            tokio::select! {
                batch = receiver.recv() => match batch {
                    Some(batch) => self.take(&batch, &receiver),
                    None => break,
                },
                _ = ticks.tick() => {
                    // Records that wait are of a time before: without them it would look silent.
                    while let Some(batch) = receiver.try_recv() {
                        self.take(&batch, &receiver);
                    }
                    self.tick(&events);
                }
                _ = gauges.tick() => usage.iter_mut().for_each(|usage| self.measure(usage)),
                _ = saves.tick() => {
                    // Beside the records: a disk may take its time.
                    if saving.as_ref().is_none_or(JoinHandle::is_finished) {
                        let (baseline, config) = (Arc::clone(&self), config.clone());
                        saving = Some(tokio::spawn(async move { baseline.save(&config).await }));
                    }
                }
            }
        }
        self.tick(&events);
        if let Some(saving) = saving {
            // Its panic was logged by the runtime.
            let _saved = saving.await;
        }
        self.save(&config).await;
    }

    fn measure(&self, usage: &mut cgroup::Usage) {
        let (cpu, memory) = usage.measure(now());
        let mut engine = self.engine();
        for (gauge, value) in [(Gauge::Cpu, cpu), (Gauge::Memory, memory)] {
            if let Some(value) = value {
                engine.gauge(gauge, now(), value);
            }
        }
    }

    /// Writes what was learnt, on a thread that may wait for the disk.
    async fn save(&self, config: &config::Baseline) {
        let Some(dir) = config.dir.clone() else { return };
        let (template, state) = (config.template.clone(), self.state());
        let saved = tokio::task::spawn_blocking(move || store::save(&dir, &template, &state)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(dir = ?config.dir, %error, "the baseline cannot be kept: a restart goes back to what was written last");
        }
    }
}

/// What is shown of the baseline.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    /// What the engine has counted.
    pub counters: Counters,
    /// Edges that it knows.
    pub edges: u64,
    /// Edges that it may know.
    pub limit: u64,
    /// Deviations that are open, by kind.
    pub open: [u64; Kind::ALL.len()],
    /// Deviations that were opened, by kind.
    pub opened: [u64; Kind::ALL.len()],
}

/// Milliseconds since 1970 UTC.
fn now() -> u64 {
    unix_nanos() / 1_000_000
}
