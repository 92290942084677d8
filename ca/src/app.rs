//! Builds each part of `picket-ca run` once, and connects them.
//!
//! Two threads: one serves, one tends the directory and may wait for the disk. Order at the end: stop accepting, finish
//! or cut what is in flight, write down who followed, send the last records.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use telemetry::admin::{Admin, Server};
use telemetry::chain;
use telemetry::log::LevelHandle;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::Desk;
use crate::alerts::time;
use crate::attest::key_set::KeySet;
use crate::brought::{self, Brought, Files};
use crate::config::{Config, Export};
use crate::followers::Followers;
use crate::journal::Journal;
use crate::keeper::Keeper;
use crate::metrics::{self, Numbers};
use crate::policy::Policy;
use crate::roster::Roster;
use crate::serve::serve;
use crate::service::Service;
use crate::store::Directory;
use crate::tend::{Tended, Tender, now};
use crate::trust::Trust;

/// How long the last records may take.
const EXPORT_DEADLINE: Duration = Duration::from_secs(5);
/// After SIGTERM, everything in flight gets this long.
const DRAIN: Duration = Duration::from_secs(12);
/// Descriptors for everything but streams: callers, files, the collector.
const OTHER_DESCRIPTORS: u64 = 1024 + 128;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When a part cannot be set up; nothing is served then.
pub fn run(config: Config) -> Result<()> {
    let level = telemetry::log::init(config.log_format, &config.log_level)?;
    let directory = Directory::open(&config.dir)?;
    let keeper = Arc::new(Keeper::new(directory, config.trust_domain.clone(), config.rules.clone()));
    let (state, found) = keeper.open(brought(&config, &keeper)?.as_ref(), now())?;
    tracing::info!(
        trust_domain = config.trust_domain.as_str(),
        ?found,
        generation = state.generation,
        issuer_not_after = time(state.signing().not_after),
        "authority ready"
    );
    let streams_max = make_room(config.streams_max);
    let trust = Arc::new(Trust::load(keeper.clone(), config.renew_within, now())?);
    let key_set = Arc::new(KeySet::open(config.token_keys.clone(), config.tokens.clone())?);
    let (sink, records) = match &config.export {
        Some(export) => Some(export::queue(export.queue_bytes)).unzip(),
        None => (None, None),
    };
    let service = Service {
        trust,
        attestor: key_set.clone(),
        policy: Policy { trust_domain: config.trust_domain.clone(), leaf_lifetime: config.leaf_lifetime },
        followers: Followers::new(streams_max.saturating_mul(2), now),
        journal: Arc::new(Journal::new(sink)),
    };
    let tended = Tended::new(Roster::join(keeper.directory())?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(threads(&config, Arc::new(service), key_set, tended, streams_max, level, records))
}

/// The brought issuer, if the directory needs one now.
fn brought(config: &Config, keeper: &Keeper) -> Result<Option<Brought>> {
    let Some(directory) = &config.issuer_directory else { return Ok(None) };
    let state = if keeper.directory().read(crate::state::FILE)?.is_some() { Some(keeper.read()?) } else { None };
    let roots = state.as_ref().map_or(&[][..], |state| &state.roots);
    let found = Files::read(directory).and_then(|files| brought::validate(&files, roots, &config.trust_domain, now()));
    match found {
        Ok(brought) => Ok(Some(brought)),
        // The last good one is kept; what is wrong is an alert for as long as it is.
        Err(_) if state.is_some_and(|state| state.signing().brought) => Ok(None),
        Err(error) => Err(error).context("issuer.directory: nothing is signed in its place"),
    }
}

async fn threads(
    config: &Config,
    service: Arc<Service>,
    key_set: Arc<KeySet>,
    tended: Arc<Tended>,
    streams_max: usize,
    level: LevelHandle,
    records: Option<export::Receiver>,
) -> Result<()> {
    let (nudge, nudges) = sync_channel(1);
    let desk = Desk {
        trust: service.trust.clone(),
        followers: service.followers.clone(),
        tended: tended.clone(),
        nudge: nudge.clone(),
    };
    let admin = admin_server(config).await?;
    let admin = tokio::spawn(admin.run(desk.serve(admin_of(&service, &tended, streams_max, level))));
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let shipper =
        records.zip(config.export.as_ref()).map(|(records, export)| ship(records, export, end)).transpose()?;
    let tender = Tender {
        trust: service.trust.clone(),
        followers: service.followers.clone(),
        tended,
        key_set,
        journal: service.journal.clone(),
        issuer_directory: config.issuer_directory.clone(),
    };
    let thread = std::thread::Builder::new().name("tender".into()).spawn(move || tender.run(&nudges))?;
    let served = listen(service, config, streams_max).await;
    admin.abort();
    // Its desk has the other sender.
    let _aborted = admin.await;
    drop(nudge);
    let joined = tokio::task::spawn_blocking(move || thread.join()).await;
    if !matches!(joined, Ok(Ok(()))) {
        tracing::error!("the thread that tends the directory failed");
    }
    drop(ended);
    if let Some(shipper) = shipper {
        // It ends by itself at its deadline.
        let _shipped = shipper.await;
    }
    served
}

fn ship(
    records: export::Receiver,
    export: &Export,
    end: tokio::sync::oneshot::Receiver<()>,
) -> Result<tokio::task::JoinHandle<()>> {
    let shipper = export::otlp::Shipper::new(shipping(export)).context("export")?;
    Ok(tokio::spawn(async move {
        let end = async { drop(end.await) };
        shipper.run(records, end, EXPORT_DEADLINE).await;
    }))
}

fn shipping(export: &Export) -> export::otlp::Config {
    let mut resource = vec![("service.name".to_owned(), "picket-ca".to_owned())];
    resource.extend(export.resource.iter().cloned());
    export::otlp::Config {
        headers: export.headers.clone(),
        timeout: export.timeout,
        roots: export.roots.clone(),
        resource,
        ..export::otlp::Config::to(export.endpoint.clone())
    }
}

/// Serves until SIGTERM or SIGINT, and for a bounded time after.
async fn listen(service: Arc<Service>, config: &Config, streams_max: usize) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let address = config.listen;
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let (stopping, mut stopped) = tokio::sync::watch::channel(false);
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        stopping.send_replace(true);
    };
    let deadline = async move {
        // The sender lives in `stop`; whether it sent or is gone, the end has begun.
        let _ = stopped.wait_for(|stopped| *stopped).await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serve(service, listener, config.dns_names.clone(), streams_max, stop) => Ok(served?),
        () = deadline => Ok(()),
    }
}

/// The admin server on its socket and, when asked for, over TCP.
async fn admin_server(config: &Config) -> Result<Server> {
    let socket = &config.admin_socket;
    if UnixStream::connect(socket).is_ok() {
        bail!("another process answers at {}: give each its own admin.socket", socket.display());
    }
    let directory = socket.parent().unwrap_or(Path::new("."));
    Directory::open(directory).context("admin.socket: its directory must be private")?;
    Ok(match config.admin_address {
        Some(address) => Server::bind(address, Some(socket)).await?,
        None => Server::on_socket(socket)?,
    })
}

fn admin_of(service: &Arc<Service>, tended: &Arc<Tended>, streams_max: usize, level: LevelHandle) -> Admin {
    let (of_ready, of_metrics, tended) = (service.trust.clone(), Arc::downgrade(service), tended.clone());
    let ready = move || {
        let now = now();
        let snapshot = of_ready.signing(now).map_err(|error| chain(&error).to_string())?;
        let end = snapshot.signing.not_after.unix_timestamp();
        if now < end {
            return Ok(());
        }
        Err(format!("the issuer's certificate ended {}, this machine's clock says {}", time(end), time(now)))
    };
    let metrics = move |out: &mut String| {
        // It is gone when the program ends.
        let Some(service) = of_metrics.upgrade() else { return };
        let snapshot = service.trust.current();
        let (state, followers, journal) = (&snapshot.state, &*service.followers, &*service.journal);
        let leads = tended.leads.load(Relaxed);
        metrics::write(out, &Numbers { state, followers, journal, streams_max, leads, now: now() });
    };
    Admin::new(ready, metrics).with_log_level(level)
}

/// Raises the limit of descriptors as far as it goes, and says how many streams fit.
fn make_room(wanted: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = OTHER_DESCRIPTORS.saturating_add(wanted as u64);
    let limit = maximum.map_or(needed, |maximum| maximum.min(needed)).max(current.unwrap_or(u64::MAX));
    if current.is_some_and(|current| current < limit) {
        // When it is refused, the limit stays what it was, and that is what counts below.
        let _refused = setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum });
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = usize::try_from(current.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX).max(1);
    if room < wanted {
        tracing::warn!(wanted, room, descriptors = current, "fewer proxies may follow than follow.streams says");
    }
    wanted.min(room)
}
