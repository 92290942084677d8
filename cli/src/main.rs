//! `picket`: what people ask of a mesh, from a terminal or a script.
//!
//! Data goes to stdout (a table for people, `--output json` for programs, whose fields are only ever added), remarks to
//! stderr. Exit codes: 0 done, or the answer is yes; 1 the answer is no; 2 it failed; 64 wrong usage.

mod baseline;
mod replay;
mod certs;
mod check;
mod output;
mod socket;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use settings::{Scalar, Setting};
use telemetry::{Exit, chain};

/// Picket, a service mesh that can say who talked to whom.
#[derive(Parser)]
#[command(name = "picket", version)]
struct Arguments {
    /// How data is written.
    #[arg(short, long, global = true, value_enum, default_value_t = output::Format::Table)]
    output: output::Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Certificates of the authority: see them, rotate them, deny somebody.
    Certs {
        #[command(subcommand)]
        command: Certs,
    },
    /// What is normal for a workload, and what has left it.
    Baseline {
        #[command(subcommand)]
        command: baseline::Command,
    },
    /// Whether records are what was written, and all there: of spools, and of files of OTLP JSON that collectors wrote.
    Verify(verify::Options),
    /// Checks whose answer is the exit code.
    Check {
        #[command(subcommand)]
        command: Check,
    },
}

/// Where the authority is.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Authority {
    /// The admin socket of picket-ca.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The directory of picket-ca, with its socket in the usual place.
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Authority {
    fn socket(&self) -> PathBuf {
        let in_dir = || self.dir.clone().unwrap_or_default().join("admin.sock");
        self.socket.clone().unwrap_or_else(in_dir)
    }
}

#[derive(Subcommand)]
enum Certs {
    /// Roots, issuers, the rotation and what it waits for, the deny list.
    Status {
        #[command(flatten)]
        authority: Authority,
    },
    /// Begin a rotation; the issuer's is done at once, the root's goes on by itself.
    Rotate {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        authority: Authority,
    },
    /// Roll the root rotation back; possible until the old root is gone.
    Rollback {
        #[command(flatten)]
        authority: Authority,
    },
    /// Let the rotation's stage go on without the proxies that it waits for: they may lose connections.
    Acknowledge {
        /// Must be said.
        #[arg(long, required = true)]
        r#override: bool,
        #[command(flatten)]
        authority: Authority,
    },
    /// Take a root whose key is in wrong hands out of the trust bundle now: certificates under it are of no use any more,
    /// and connections that were proved with them are cut.
    Drop {
        /// The root, by the SHA-256 of its certificate; not the one that signs.
        #[arg(long)]
        root: String,
        /// Must be said.
        #[arg(long, required = true)]
        r#override: bool,
        #[command(flatten)]
        authority: Authority,
    },
    /// Refuse somebody from now on, though certificates say otherwise.
    Deny {
        #[command(flatten)]
        subject: Subject,
        /// Why, for people.
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        authority: Authority,
    },
    /// Take somebody off the deny list.
    Undeny {
        #[command(flatten)]
        subject: Subject,
        #[command(flatten)]
        authority: Authority,
    },
}

/// What is rotated.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct What {
    /// The issuer, under the same root.
    #[arg(long)]
    issuer: bool,
    /// The root, in stages.
    #[arg(long)]
    root: bool,
}

/// Who is denied.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Subject {
    /// A certificate, by its serial number in hexadecimal.
    #[arg(long)]
    serial: Option<String>,
    /// A SPIFFE ID.
    #[arg(long)]
    identity: Option<String>,
    /// A public key, by the SHA-256 of its SubjectPublicKeyInfo; of an issuer that signs no more, with all under it.
    #[arg(long)]
    key: Option<String>,
    /// A pod, by its uid: it gets no certificate any more. Peers do not know pods: deny its serial, too.
    #[arg(long)]
    pod_uid: Option<String>,
}

#[derive(Subcommand)]
enum Check {
    /// 0 when no certificate in use ends soon, 1 when one does or has.
    Certs {
        /// How soon is too soon, such as 30d.
        #[arg(long, value_parser = duration)]
        fail_within: Duration,
        #[command(flatten)]
        source: check::Source,
    },
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
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
    let done = match arguments.command {
        Command::Verify(options) => verify::run(&options, arguments.output),
        Command::Certs { command } => certs::run(&command, arguments.output),
        Command::Baseline { command } => baseline::run(&command, arguments.output),
        Command::Check { command: Check::Certs { fail_within, source } } => {
            check::certs(fail_within, &source, arguments.output)
        }
    };
    match done {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("picket: {}", chain(error.as_ref()));
            Exit::Failed.into()
        }
    }
}
