//! What the admin server answers from: liveness, readiness with its reason, metrics, and the two run-time settings.

use std::sync::Arc;

use export::access_log::ModeHandle;
use telemetry::{admin::Admin, log::LevelHandle};

use crate::{
    baseline::{self, Baseline},
    config::Config,
    credentials::Credentials,
    discover::FileDiscovery,
    drain::Drain,
    metrics::{self, Surroundings, TrustNumbers, WorkerMetrics},
    trust::Trust,
};

/// The parts whose state is shown.
#[derive(Debug)]
pub struct State {
    /// The settings.
    pub config: Arc<Config>,
    /// Who is where.
    pub discovery: Arc<FileDiscovery>,
    /// The workers' counters.
    pub workers: Vec<Arc<WorkerMetrics>>,
    /// The queues' counters.
    pub sinks: Vec<(&'static str, Arc<export::Counters>)>,
    /// How the spool fares, where there is one.
    pub spool: Option<Arc<spool::Status>>,
    /// Metrics that are made from the records, where they are.
    pub red: Option<Arc<export::red::Red>>,
    /// How our certificate fares.
    pub credentials: Arc<Credentials>,
    /// Whom we trust.
    pub trust: Arc<Trust>,
    /// What is normal for the workload.
    pub baseline: Option<Arc<Baseline>>,
    /// Whether we are stopping.
    pub drain: Drain,
}

impl State {
    fn ready(&self) -> Result<(), String> {
        if self.drain.is_draining() {
            return Err("the proxy is stopping".to_owned());
        }
        self.credentials.check()
    }

    fn metrics(&self, out: &mut String) {
        let around = Surroundings {
            connections_max: self.config.limits.connections as u64,
            sinks: &self.sinks,
            spool: self.spool.as_deref(),
            baseline: self.baseline.as_ref().map(|baseline| baseline.numbers()),
            certificate_remaining: self.credentials.remaining_seconds().unwrap_or(0),
            renewals: self.credentials.attempts(),
            renewed_at: self.credentials.renewed_at(),
            trust: TrustNumbers {
                generation: self.trust.generation(),
                following: self.trust.is_followed(),
                denials: self.trust.denials(),
            },
            discovery_age: self.discovery.age().as_secs(),
        };
        metrics::render(&self.workers, &around, out);
        if let Some(red) = &self.red {
            red.prometheus(out);
        }
    }
}

/// Connects the state and the run-time settings with the server.
pub fn admin(state: State, level: LevelHandle, mode: ModeHandle) -> Admin {
    let state = Arc::new(state);
    let shown = Arc::clone(&state);
    let current = mode.clone();
    let watched = state.baseline.clone();
    let admin = Admin::new(move || state.ready(), move |out| shown.metrics(out)).with_log_level(level).with_control(
        "/access-log",
        move || current.get().to_string(),
        move |text| {
            mode.set(text.parse().map_err(|error: export::access_log::NoMode| error.to_string())?);
            Ok(())
        },
    );
    match watched {
        Some(watched) => baseline::serve(admin, &watched),
        None => admin,
    }
}
