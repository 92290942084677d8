//! `picket-demo`: shows Picket at work on this machine, and proves what it shows.
//!
//! Promises: exit code 0 only if every check that it prints holds; everything happens in network namespaces of its own and
//! ends with it.
//! Leaves to others: pods, processes and packet capture (`testkit`), building the programs (`xtask`).

mod isolate;
mod scenario;
mod edges;
mod checks;
mod screen;
mod apps;
mod deviations;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Three pods, real redirect rules, mutual TLS, one record per connection and request
#[derive(Debug, Parser)]
#[command(name = "picket-demo", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    show: Show,
    #[command(subcommand)]
    app: Option<App>,
}

/// Options of the demo itself.
#[derive(Args, Debug)]
struct Show {
    /// Leave everything running and print how to enter each pod, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// How long traffic is sent
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// This process is inside its own namespaces already
    #[arg(long, hide = true)]
    inside: bool,
}

/// The programs that run in the pods. They know nothing of Picket.
#[derive(Debug, Subcommand)]
enum App {
    /// Serve one protocol until killed
    Serve {
        /// What to serve
        protocol: Protocol,
        /// Where
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Send requests for some time, then print how many as JSON
    Load {
        /// What to send
        protocol: Protocol,
        /// To whom
        #[arg(long)]
        to: SocketAddr,
        /// For how long
        #[arg(long)]
        seconds: u64,
        /// Text that every request carries in clear
        #[arg(long)]
        marker: String,
    },
}

/// What the demo's programs speak.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Protocol {
    /// HTTP/1.1
    Http,
    /// HTTP/1.1, always the same request, whatever the answer
    Steady,
    /// gRPC, unary and bidirectional streaming
    Grpc,
    /// Lines of text over TCP, as Redis understands them
    Tcp,
}

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("picket-demo: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// `false`: it ran, but not everything that it shows is true.
fn start(cli: Cli) -> Result<bool> {
    match cli.app {
        Some(App::Serve { protocol, listen }) => serve(protocol, listen).map(|()| true),
        Some(App::Load { protocol, to, seconds, marker }) => {
            let sent = load(protocol, to, Duration::from_secs(seconds), &marker)?;
            println!("{}", sent.to_json());
            Ok(true)
        }
        None if cli.show.inside => scenario::run(cli.show.keep, Duration::from_secs(cli.show.seconds)),
        None => Err(isolate::enter(cli.show.keep, cli.show.seconds)),
    }
}

fn serve(protocol: Protocol, listen: SocketAddr) -> Result<()> {
    match protocol {
        Protocol::Http | Protocol::Steady => apps::http::serve(listen),
        Protocol::Grpc => apps::grpc::serve(listen),
        Protocol::Tcp => apps::line::serve(listen),
    }
}

fn load(protocol: Protocol, to: SocketAddr, time: Duration, marker: &str) -> Result<apps::Sent> {
    match protocol {
        Protocol::Http => apps::http::load(to, time, marker),
        Protocol::Steady => apps::http::load_steadily(to, time, marker),
        Protocol::Grpc => apps::grpc::load(to, time, marker),
        Protocol::Tcp => apps::line::load(to, time, marker),
    }
}
