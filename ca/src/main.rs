//! `picket-ca`: arguments, configuration, runtime and exit code around the `ca` library.
//!
//! Promises: wrong usage or configuration ends with 64 and one message, every other failure with 2.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use ca::config::Config;
use ca::keeper::{BUNDLE_FILE, Found, Keeper};
use ca::lifecycle::Rules;
use ca::store::Directory;
use ca::token::{Claim, TokenKey};
use clap::{Parser, Subcommand};
use identity::TrustDomain;
use settings::{Scalar, Setting};
use telemetry::{Exit, chain};
use time::OffsetDateTime;

// The system's leaves gaps between streams that stay and handshakes that end: docs/decisions/0012.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEY_SET: &str = "jwks.json";
const TOKEN_KEY: &str = "token-key.pem";

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
            Ok(config) => ca::app::run(config),
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
    let keeper = Keeper::new(directory.clone(), trust_domain.clone(), Rules::default());
    let (_, found) = keeper.open(None, ca::tend::now())?;
    if directory.read(TOKEN_KEY)?.is_none() {
        let key = TokenKey::generate()?;
        directory.write(KEY_SET, &key.key_set())?;
        // Last: with the key there, the set is, too.
        directory.write(TOKEN_KEY, key.pem())?;
    }
    let what = match found {
        Found::Made => "made a new root",
        Found::TakenOver | Found::Kept => "kept the root that is there",
    };
    println!("{}: {what}; the trust bundle is {}", trust_domain, directory.file(BUNDLE_FILE).display());
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
