//! `picket-ca`: arguments, configuration, runtime and exit code around the `ca` library.
//!
//! Promises: wrong usage or configuration ends with 64 and one message, every other failure with 2.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use ca::attest::Attestor;
use ca::config::{self, Config};
use ca::issue::utc;
use ca::policy::Policy;
use ca::root::Authority;
use ca::serve::{Counters, Service, serve};
use ca::store::Directory;
use ca::token::{Claim, TokenKey};
use clap::{Parser, Subcommand};
use identity::TrustDomain;
use settings::{Scalar, Setting};
use telemetry::admin::{Admin, Server};
use telemetry::log::LevelHandle;
use telemetry::metrics::{Exposition, Kind, Metric};
use telemetry::{Exit, chain};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

const KEY_SET: &str = "jwks.json";
const TOKEN_KEY: &str = "token-key.pem";
/// After SIGTERM, calls in progress get this long.
const DRAIN: Duration = Duration::from_secs(10);

const ISSUED: Metric = Metric {
    name: "picket_ca_certificates_issued_total",
    kind: Kind::Counter,
    unit: "{certificate}",
    labels: &[],
    help: "Certificates issued to workloads.",
};
const REFUSED: Metric = Metric {
    name: "picket_ca_certificates_refused_total",
    kind: Kind::Counter,
    unit: "{request}",
    labels: &[],
    help: "Requests for certificates that were refused.",
};

/// The certificate authority of a Picket mesh.
#[derive(Parser)]
#[command(name = "picket-ca", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a root, an issuer and a key for tokens in a private directory; what is there already stays.
    Init {
        /// The directory; made with mode 0700 if it is not there.
        #[arg(long)]
        dir: PathBuf,
        /// The trust domain of all identities.
        #[arg(long)]
        trust_domain: TrustDomain,
    },
    /// Serve; makes the root first if the directory has none.
    Run {
        /// The YAML file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Print a token as Kubernetes projects it into pods, for tests and places without Kubernetes.
    Token(TokenArguments),
}

#[derive(clap::Args)]
struct TokenArguments {
    /// The key that `init` made (token-key.pem).
    #[arg(long)]
    key: PathBuf,
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    service_account: String,
    #[arg(long)]
    pod: Option<String>,
    #[arg(long, requires = "pod")]
    pod_uid: Option<String>,
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local")]
    issuer: String,
    #[arg(long)]
    audience: String,
    /// How long it is good for, such as 1h.
    #[arg(long, default_value = "1h", value_parser = duration)]
    ttl: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    Duration::from_scalar(Scalar::Variable(text)).ok_or_else(|| format!("expected {}", Duration::expected()))
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(message) => {
            // Nobody is left to tell when the terminal is gone.
            let _ = message.print();
            return if message.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() };
        }
    };
    let outcome = match arguments.command {
        Command::Init { dir, trust_domain } => init(&dir, &trust_domain),
        Command::Token(arguments) => token(&arguments),
        Command::Run { config } => match Config::load(&config) {
            Ok(config) => run(config),
            Err(error) => {
                eprintln!("picket-ca: {}", chain(&error));
                return Exit::Usage.into();
            }
        },
    };
    match outcome {
        Ok(()) => Exit::Success.into(),
        Err(error) => {
            eprintln!("picket-ca: {}", chain(error.as_ref()));
            Exit::Failed.into()
        }
    }
}

fn init(dir: &Path, trust_domain: &TrustDomain) -> Result<()> {
    let directory = Directory::open(dir)?;
    let (_, made) = Authority::open(&directory, trust_domain, OffsetDateTime::now_utc())?;
    if directory.read(TOKEN_KEY)?.is_none() {
        let key = TokenKey::generate()?;
        directory.write(KEY_SET, &key.key_set())?;
        // Last: with the key there, the set is, too.
        directory.write(TOKEN_KEY, key.pem())?;
    }
    let what = if made { "made a new root" } else { "kept the root that is there" };
    println!("{}: {what}; the trust bundle is {}", trust_domain, directory.file("root.pem").display());
    Ok(())
}

fn token(arguments: &TokenArguments) -> Result<()> {
    let pem = std::fs::read_to_string(&arguments.key);
    let key = TokenKey::from_pem(pem.with_context(|| format!("cannot read {}", arguments.key.display()))?)?;
    let claim = Claim {
        issuer: &arguments.issuer,
        audience: &arguments.audience,
        namespace: &arguments.namespace,
        service_account: &arguments.service_account,
        pod: arguments.pod.as_deref(),
        pod_uid: arguments.pod_uid.as_deref(),
        issued: u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0),
        lifetime: arguments.ttl,
    };
    println!("{}", key.issue(&claim)?);
    Ok(())
}

fn run(config: Config) -> Result<()> {
    let level = telemetry::log::init(config.log_format, &config.log_level)?;
    let directory = Directory::open(&config.dir)?;
    let now = OffsetDateTime::now_utc();
    let (authority, made) = Authority::open(&directory, &config.trust_domain, now)?;
    tracing::info!(
        trust_domain = config.trust_domain.as_str(),
        made,
        issuer_not_after = utc(authority.not_after),
        "authority ready"
    );
    let key_set = std::fs::read_to_string(&config.token_keys)
        .with_context(|| format!("cannot read the key set {}", config.token_keys.display()))?;
    let attestor = Attestor::new(&key_set, config.token_issuer, config.token_audience)?;
    let policy = Policy { trust_domain: config.trust_domain, leaf_lifetime: config.leaf_lifetime };
    let counters = Arc::new(Counters::default());
    let issuer_ends = authority.not_after;
    let service = Service::new(authority, attestor, policy, counters.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let admin = admin(config.admin, level, counters, issuer_ends).await?;
        tokio::select! {
            served = listen(service, config.listen, config.dns_names) => served,
            () = admin => Ok(()),
        }
    })
}

/// Serves until SIGTERM or SIGINT, and for a bounded time after.
async fn listen(service: Arc<Service>, address: SocketAddr, dns_names: Vec<String>) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
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
        served = serve(service, listener, dns_names, stop) => Ok(served?),
        () = deadline => Ok(()),
    }
}

/// The admin server's future; one that never ends when none is configured.
async fn admin(
    config: Option<config::Admin>,
    level: LevelHandle,
    counters: Arc<Counters>,
    issuer_ends: OffsetDateTime,
) -> Result<impl Future<Output = ()>> {
    let server = match &config {
        Some(config) => Some(Server::bind(config.address, config.socket.as_deref()).await?),
        None => None,
    };
    let ready = move || {
        let now = OffsetDateTime::now_utc();
        let ended =
            || format!("the issuer's certificate ended {}, this machine's clock says {}", utc(issuer_ends), utc(now));
        if now < issuer_ends { Ok(()) } else { Err(ended()) }
    };
    let metrics = move |out: &mut String| {
        let mut text = Exposition::new(out);
        text.family(&ISSUED).sample(&[], counters.issued.load(Ordering::Relaxed));
        text.family(&REFUSED).sample(&[], counters.refused.load(Ordering::Relaxed));
    };
    Ok(async move {
        match server {
            Some(server) => server.run(Admin::new(ready, metrics).with_log_level(level)).await,
            None => std::future::pending().await,
        }
    })
}
