//! Builds each part once and connects them: the control thread, the workers, the sinks of records.
//!
//! Order at the end: stop accepting, finish or cut what is in flight, hand over the last records, send them.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use export::{
    Alerts, Events,
    access_log::{self, ModeHandle},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    admin,
    baseline::Baseline,
    clock,
    config::Config,
    credentials::Credentials,
    discover::{self, FileDiscovery},
    drain::{self, DrainSignal},
    follow::Follower,
    journal::unix_nanos,
    metrics::WorkerMetrics,
    trust::{self, Trust},
    worker::{self, Listeners, Parts},
};

/// How long the export may take after the last connection.
const EXPORT_DEADLINE: Duration = Duration::from_secs(5);

/// Why the proxy does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port cannot be had.
    #[error("{key}: port {port} cannot be listened on")]
    Port {
        /// The setting.
        key: &'static str,
        /// Its value.
        port: u16,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file that must be there from the beginning.
    #[error("{key}")]
    File {
        /// The setting.
        key: &'static str,
        /// Why it cannot be read.
        #[source]
        source: trust::Error,
    },
    /// The discovery file.
    #[error("discovery.file")]
    Discovery(#[source] discover::Error),
    /// The log level.
    #[error("log.level")]
    Log(#[source] telemetry::log::Error),
    /// The admin server.
    #[error("{}", admin_key(.0))]
    Admin(#[source] telemetry::admin::Error),
    /// The collector's settings.
    #[error("{}", export_key(.0))]
    Export(#[source] export::otlp::Error),
    /// The syslog server's settings.
    #[error("syslog")]
    Syslog(#[source] export::syslog::Error),
    /// The spool.
    #[error("spool.dir")]
    Spool(#[source] spool::Error),
    /// A thread or a runtime cannot be had.
    #[error("the system refuses a thread, a runtime or a signal handler")]
    System(#[source] io::Error),
}

/// The setting that an error of the admin server is about.
fn admin_key(error: &telemetry::admin::Error) -> &'static str {
    match error {
        telemetry::admin::Error::Address { .. } => "admin.address",
        telemetry::admin::Error::Socket { .. } => "admin.socket",
        _ => "admin",
    }
}

/// The setting that an error of the export is about.
fn export_key(error: &export::otlp::Error) -> &'static str {
    use export::otlp::Error as E;
    match error {
        E::NoEndpoint | E::Endpoint(..) | E::Scheme(_) | E::Path(_) | E::UserInfo | E::Query => "export.endpoint",
        E::NoRoots(_) | E::Roots(_) => "export.roots",
        E::Header(_) => "export.headers",
        E::Tls(_) => "export.clientCertificate",
    }
}

impl Error {
    /// True when the operator's settings are to blame: another try without a change is of no use.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Port { .. }
            | Self::File { .. }
            | Self::Discovery(_)
            | Self::Log(_)
            | Self::Admin(_)
            | Self::Export(_)
            | Self::Syslog(_) => true,
            // Another process may still be on its way out, and a disk may come back.
            Self::Spool(_) | Self::System(_) => false,
        }
    }
}

/// Runs the proxy until SIGTERM or SIGINT.
///
/// # Errors
/// When a part cannot be set up; nothing is served then.
pub fn run(config: Config) -> Result<(), Error> {
    let level = telemetry::log::init(config.log.format, &config.log.level).map_err(Error::Log)?;
    for header in config.records.credentials() {
        tracing::warn!(
            header,
            "records will hold this header, which is a credential: whoever may read them may use it"
        );
    }
    let config = Arc::new(config);
    let discovery = FileDiscovery::start(config.discovery.clone()).map_err(Error::Discovery)?;
    for (key, file) in
        [("identity.caRoots", &config.identity.ca_roots), ("identity.tokenFile", &config.identity.token_file)]
    {
        trust::read(file).map_err(|source| Error::File { key, source })?;
    }
    for (key, port) in [("outbound.port", config.outbound.port), ("inbound.port", config.inbound.port)] {
        worker::check_port_is_free(port).map_err(|source| Error::Port { key, port, source })?;
    }
    let store = identity::Store::new(config.trust_domain.clone());
    let mode = ModeHandle::new(config.access_log.mode);
    let (mut sinks, sources) = Sinks::start(&config, &mode, &store)?;
    let (signal, drain) = drain::channel();
    let metrics: Vec<_> = (0..config.workers).map(|_| Arc::new(WorkerMetrics::default())).collect();
    let (denied, denials) = tokio::sync::watch::channel(Arc::default());
    let trust = Trust::start(&config.identity, Arc::clone(&store), denied);
    let mut record_sinks = sinks.senders.clone();
    let watching = sinks.watch(&config, &mut record_sinks);
    let parts = |at: usize| Parts {
        config: Arc::clone(&config),
        discovery: Arc::clone(&discovery),
        store: Arc::clone(&store),
        tls: Arc::new(identity::server_config(&store, &[identity::ALPN_H2, identity::ALPN_HTTP1, identity::ALPN_TCP])),
        sinks: record_sinks.clone(),
        metrics: Arc::clone(&metrics[at]),
        seed: seed(),
        drain: drain.clone(),
        spool: sinks.spool.clone(),
        denied: denials.clone(),
    };
    let mut workers = Vec::new();
    for at in 0..config.workers {
        workers.push(start_worker(at, parts(at), &config)?);
    }
    // With the workers go the last senders to the baseline, which then ends.
    drop(record_sinks);
    let watching = watching.map(|(baseline, receiver)| (baseline, receiver, Events::new(sinks.senders.clone())));
    let alerts = Arc::new(Alerts::new(Events::new(sinks.senders)));
    let red = sources.red.as_ref().map(|(red, _)| Arc::clone(red));
    let baseline = watching.as_ref().map(|(baseline, ..)| Arc::clone(baseline));
    let takers = Takers::new(&config, sources, watching, &store, &alerts)?;
    let credentials = Credentials::new(&config.identity, Arc::clone(&trust), alerts);
    let state = admin::State {
        config: Arc::clone(&config),
        discovery: Arc::clone(&discovery),
        workers: metrics.clone(),
        sinks: sinks.counters.clone(),
        spool: sinks.spool.clone(),
        red,
        credentials,
        trust,
        drain: drain.clone(),
        baseline,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::System)?;
    runtime.block_on(control(&config, state, level, mode, signal, workers, takers))?;
    // With the background tasks go the last senders of records.
    drop(runtime);
    if let Some(access_log) = sinks.access_log {
        // It has nothing left to write once the workers are gone; a panic there was logged by the runtime.
        let _ended = access_log.join();
    }
    Ok(())
}

/// The queues of records and who empties them.
struct Sinks {
    senders: Vec<export::Sender>,
    counters: Vec<(&'static str, Arc<export::Counters>)>,
    spool: Option<Arc<spool::Status>>,
    access_log: Option<JoinHandle<()>>,
}

/// Where those who ship records take them from.
#[derive(Default)]
struct Sources {
    otlp: Option<Source>,
    /// With the stream's id.
    syslog: Option<(export::Spooled, String)>,
    red: Option<(Arc<export::red::Red>, export::Receiver)>,
}

/// Where the shipper takes records from.
enum Source {
    Queue(export::Receiver),
    /// With the stream's id.
    Spool(export::Spooled, String),
}

impl Sinks {
    fn start(config: &Config, mode: &ModeHandle, store: &Arc<identity::Store>) -> Result<(Self, Sources), Error> {
        let mut sinks = Self { senders: Vec::new(), counters: Vec::new(), spool: None, access_log: None };
        let (sender, receiver) = export::queue(config.limits.record_queue_bytes);
        sinks.counters.push(("access_log", Arc::clone(sender.counters())));
        sinks.senders.push(sender);
        sinks.access_log =
            Some(access_log::spawn(receiver, mode.clone(), config.access_log.format).map_err(Error::System)?);
        let red = config.metrics.as_ref().map(|metrics| {
            let (sender, receiver) = export::queue(config.limits.record_queue_bytes);
            sinks.counters.push(("metrics", Arc::clone(sender.counters())));
            sinks.senders.push(sender);
            (export::red::Red::new(metrics.red()), receiver)
        });
        if config.export.is_none() && config.syslog.is_none() {
            return Ok((sinks, Sources { red, ..Sources::default() }));
        }
        let (sender, receiver) = export::queue(config.limits.record_queue_bytes);
        // With a spool it is the way to all of its readers, and counted with the first of them.
        let first = if config.export.is_some() { spool::Sink::Otlp } else { spool::Sink::Syslog };
        sinks.counters.push((first.as_str(), Arc::clone(sender.counters())));
        sinks.senders.push(sender);
        let sources = match &config.spool {
            Some(spool) => sinks.spool(receiver, spool, config, store)?,
            None => Sources { otlp: Some(Source::Queue(receiver)), ..Sources::default() },
        };
        Ok((sinks, Sources { red, ..sources }))
    }

    /// Puts the baseline's queue beside those of `senders`.
    fn watch(
        &mut self,
        config: &Config,
        senders: &mut Vec<export::Sender>,
    ) -> Option<(Arc<Baseline>, export::Receiver)> {
        if !config.baseline.enabled {
            return None;
        }
        let (sender, receiver) = export::queue(config.limits.record_queue_bytes);
        self.counters.push(("baseline", Arc::clone(sender.counters())));
        senders.push(sender);
        Some((Baseline::start(&config.baseline), receiver))
    }

    /// Opens the spool, says what was found in it, and puts it behind the queue.
    fn spool(
        &mut self,
        receiver: export::Receiver,
        config: &crate::config::Spool,
        all: &Config,
        store: &Arc<identity::Store>,
    ) -> Result<Sources, Error> {
        let disk = Arc::new(spool::Disk::open(&config.dir).map_err(Error::Spool)?);
        let otlp = all.export.as_ref().map(|_| spool::Sink::Otlp);
        let syslog = all.syslog.as_ref().map(|_| spool::Sink::Syslog);
        let readers: Vec<_> = otlp.into_iter().chain(syslog).collect();
        let (spool, readers, found) =
            spool::Spool::open_for(&readers, disk, config.limits(seed()), unix_nanos()).map_err(Error::Spool)?;
        for torn in &found.torn {
            let (segment, offset, bytes) = (&torn.segment, torn.offset, torn.bytes);
            tracing::warn!(segment, offset, bytes, "the end of the spool was not whole; it was cut off");
        }
        for gap in found.gaps() {
            tracing::error!(
                first = gap.first,
                last = gap.last,
                sink = gap.sink.map(spool::Sink::as_str),
                "records are missing in the spool; a gap record says so"
            );
        }
        tracing::info!(dir = ?config.dir, segments = found.segments, bytes = found.bytes, "the spool is open");
        self.spool = Some(Arc::clone(spool.status()));
        let stream: String = spool.stream().iter().map(|byte| format!("{byte:02x}")).collect();
        let sealing = Some(sealing(config, store));
        let spooled = export::Spooled::spawn_all(receiver, spool, readers, config.sync, sealing);
        let mut spooled = spooled.map_err(Error::System)?.into_iter();
        let otlp = otlp.and_then(|_| spooled.next()).map(|spooled| Source::Spool(spooled, stream.clone()));
        let syslog = spooled.next();
        if let Some(syslog) = syslog.as_ref().filter(|_| otlp.is_some()) {
            self.counters.push((spool::Sink::Syslog.as_str(), Arc::clone(syslog.counters())));
        }
        Ok(Sources { otlp, syslog: syslog.map(|syslog| (syslog, stream)), red: None })
    }
}

/// Signs for us, with the certificate of the moment: never with one that has ended.
fn sealing(config: &crate::config::Spool, store: &Arc<identity::Store>) -> export::Sealing {
    let store = Arc::clone(store);
    let sign = move |message: &[u8]| {
        let credentials = store.usable(clock::unix_time()).ok()?;
        let chain = credentials.certified_key.cert.iter().map(|der| der.to_vec()).collect();
        Some(spool::Signed { signature: credentials.sign(message)?, chain })
    };
    export::Sealing { interval: config.checkpoint_interval, sign: Box::new(sign) }
}

fn start_worker(at: usize, parts: Parts, config: &Config) -> Result<JoinHandle<io::Result<()>>, Error> {
    let listeners = Listeners::bind(config).map_err(|(port, source)| {
        let key = if port == config.outbound.port { "outbound.port" } else { "inbound.port" };
        Error::Port { key, port, source }
    })?;
    std::thread::Builder::new()
        .name(format!("worker-{at}"))
        .spawn(move || worker::run(parts, listeners))
        .map_err(Error::System)
}

/// The control thread: everything that is not on the way of a connection.
async fn control(
    config: &Config,
    state: admin::State,
    level: telemetry::log::LevelHandle,
    mode: ModeHandle,
    signal: DrainSignal,
    workers: Vec<JoinHandle<io::Result<()>>>,
    takers: Takers,
) -> Result<(), Error> {
    let Takers { otlp, syslog, red, watching } = takers;
    let server = telemetry::admin::Server::bind(config.admin.address, config.admin.socket.as_deref())
        .await
        .map_err(Error::Admin)?;
    let access_log = &config.access_log;
    let annotations = access_log
        .annotations
        .clone()
        .map(|file| tokio::spawn(crate::annotations::follow(file, access_log.mode, mode.clone())));
    let background = [
        tokio::spawn(Arc::clone(&state.discovery).watch()),
        tokio::spawn(Arc::clone(&state.credentials).run()),
        tokio::spawn(Arc::clone(&state.trust).watch_file()),
        tokio::spawn(Follower::new(&config.identity, Arc::clone(&state.credentials)).run()),
        tokio::spawn(server.run(admin::admin(state, level, mode))),
    ];
    let measuring = red.map(|measured| measure(config, measured)).transpose()?;
    let (workers_gone, mut gone) = tokio::sync::watch::channel(());
    let mut gone_too = gone.clone();
    let delivering = syslog.map(|(syslog, spooled)| {
        let gone = async move { while gone_too.changed().await.is_ok() {} };
        tokio::spawn(syslog.run(spooled, gone, EXPORT_DEADLINE))
    });
    let shipping = otlp.map(|(source, shipper)| {
        tokio::spawn(async move {
            let gone = async move { while gone.changed().await.is_ok() {} };
            match source {
                Source::Queue(receiver) => shipper.run(receiver, gone, EXPORT_DEADLINE).await,
                Source::Spool(spooled, _) => shipper.run_spooled(spooled, gone, EXPORT_DEADLINE).await,
            }
        })
    });
    let watching = watching
        .map(|(baseline, receiver, events)| tokio::spawn(baseline.run(receiver, config.baseline.clone(), events)));
    let stopped = async {
        let mut terminate = signal_of(SignalKind::terminate())?;
        let mut interrupt = signal_of(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok::<(), Error>(())
    };
    tracing::info!(outbound = config.outbound.port, inbound = config.inbound.port, admin = %config.admin.address, "serving");
    stopped.await?;
    tracing::info!(timeout = ?config.drain_timeout, "draining");
    // The receivers are gone only when every worker is.
    let _drained = signal.send(true);
    let joined =
        tokio::task::spawn_blocking(move || workers.into_iter().map(JoinHandle::join).collect::<Vec<_>>()).await;
    for worker in joined.unwrap_or_default() {
        if let Ok(Err(error)) = worker {
            tracing::error!(%error, "a worker failed");
        }
    }
    if let Some(watching) = watching {
        // It ends with the last record; a disk that is stuck must not keep the records from leaving.
        let _ended = tokio::time::timeout(EXPORT_DEADLINE, watching).await;
    }
    // These hold the last senders of records: while one is left, the export would wait for more until its deadline.
    for task in background.into_iter().chain(annotations) {
        task.abort();
        let _aborted = task.await;
    }
    drop(workers_gone);
    if let Some(measuring) = measuring {
        // What it could not push is told by the records.
        let _late = tokio::time::timeout(EXPORT_DEADLINE, measuring).await;
    }
    for shipping in [shipping, delivering].into_iter().flatten() {
        // Each ends by itself at its deadline.
        let _shipped = shipping.await;
    }
    Ok(())
}

/// Who takes records on the control thread, each with where it takes them from.
struct Takers {
    otlp: Option<(Source, export::otlp::Shipper)>,
    syslog: Option<(export::syslog::Syslog, export::Spooled)>,
    red: Option<Measured>,
    watching: Option<Watching>,
}

/// What is normal, the records that show it, and where deviations go.
type Watching = (Arc<Baseline>, export::Receiver, Events);

/// Metrics, what they are made from, and the collector that they are pushed to.
struct Measured {
    red: Arc<export::red::Red>,
    receiver: export::Receiver,
    collector: Option<export::otlp::Config>,
}

impl Takers {
    fn new(
        config: &Config,
        sources: Sources,
        watching: Option<Watching>,
        store: &Arc<identity::Store>,
        alerts: &Arc<Alerts>,
    ) -> Result<Self, Error> {
        let collector = config.metrics.as_ref().and_then(|metrics| metrics.collector.as_ref());
        let collector = collector.map(|export| export.shipping(vec![service_name(), instance()], store));
        let red = sources.red.map(|(red, receiver)| Measured { red, receiver, collector });
        let syslog = sources.syslog.map(|source| syslog_of(config, source, alerts)).transpose()?;
        let otlp = sources.otlp.map(|source| shipping(config, source, store, alerts)).transpose()?;
        Ok(Self { otlp, syslog: syslog.flatten(), red, watching })
    }
}

/// Whose cumulative numbers these are: two proxies must not write the same series (OpenTelemetry, "Single-Writer").
fn instance() -> (String, String) {
    ("service.instance.id".to_owned(), format!("{:032x}", seed()))
}

fn service_name() -> (String, String) {
    ("service.name".to_owned(), "picket-proxy".to_owned())
}

/// Makes metrics from the records until the last sender is gone, and pushes them where there is a collector.
fn measure(config: &Config, measured: Measured) -> Result<tokio::task::JoinHandle<()>, Error> {
    let Measured { red, receiver, collector } = measured;
    let made = tokio::spawn(Arc::clone(&red).run(receiver));
    let (Some(collector), Some(metrics)) = (collector, &config.metrics) else {
        tracing::info!("metrics are at /metrics alone: no endpoint is for them");
        return Ok(made);
    };
    let over = async { drop(made.await) };
    let pushing = export::red::push(red, collector, metrics.interval, over).map_err(Error::Export)?;
    Ok(tokio::spawn(pushing))
}

/// The syslog server with what it reads.
fn syslog_of(
    config: &Config,
    (spooled, stream): (export::Spooled, String),
    alerts: &Arc<Alerts>,
) -> Result<Option<(export::syslog::Syslog, export::Spooled)>, Error> {
    let Some(settings) = &config.syslog else { return Ok(None) };
    spooled.alert_through(alerts);
    let resource = config.export.iter().flat_map(|export| export.resource.iter().cloned());
    let resource = std::iter::once((record::key::STREAM.to_owned(), stream)).chain(resource).collect();
    let syslog = export::syslog::Syslog::new(settings.delivery(resource)).map_err(Error::Syslog)?;
    Ok(Some((syslog, spooled)))
}

fn signal_of(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Error> {
    signal(kind).map_err(Error::System)
}

/// Puts a shipper behind the source of its records.
fn shipping(
    config: &Config,
    source: Source,
    store: &Arc<identity::Store>,
    alerts: &Arc<Alerts>,
) -> Result<(Source, export::otlp::Shipper), Error> {
    let mut resource = vec![service_name()];
    if let Source::Spool(spooled, stream) = &source {
        resource.push((record::key::STREAM.to_owned(), stream.clone()));
        spooled.alert_through(alerts);
    }
    let none = export::otlp::Error::NoEndpoint;
    let export = config.export.as_ref().ok_or(Error::Export(none))?;
    let mut shipper = export::otlp::Shipper::new(export.shipping(resource, store)).map_err(Error::Export)?;
    shipper.alert_through(alerts);
    Ok((source, shipper))
}

/// Unlike in any other process or worker; not a secret.
fn seed() -> u128 {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    half() << 64 | half()
}
