//! Arguments and exit codes: 0 done, 2 failed, 64 wrong usage or configuration.

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use telemetry::Exit;

use crate::{app, config::Config, redirect};

/// The sidecar of the Picket service mesh
#[derive(Debug, Parser)]
#[command(name = "picket-proxy", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the connections of the workload beside it
    Run {
        /// The configuration, YAML
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Checks the configuration, prints what is in force, and exits
        #[arg(long)]
        print_config: bool,
    },
    /// Programs nftables in this network namespace so that TCP passes through the proxy, and exits
    Redirect(redirect::Options),
}

/// The program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // What cannot be printed has nobody to read it.
            let _printed = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() };
        }
    };
    match arguments.command {
        Command::Run { config, print_config } => match Config::load(config.as_deref(), std::env::vars()) {
            Err(error) => failed(&error, Exit::Usage),
            Ok(config) if print_config => {
                print!("{}", config.to_yaml());
                Exit::Success.into()
            }
            Ok(config) => match app::run(config) {
                Ok(()) => Exit::Success.into(),
                Err(error) if error.is_configuration() => failed(&error, Exit::Usage),
                Err(error) => failed(&error, Exit::Failed),
            },
        },
        Command::Redirect(options) => match redirect::run(&options) {
            Ok(installed) => {
                eprintln!("picket-proxy: {installed}");
                Exit::Success.into()
            }
            Err(error) if error.is_usage() => failed(&error, Exit::Usage),
            Err(error) => failed(&error, Exit::Failed),
        },
    }
}

fn failed(error: &dyn Error, exit: Exit) -> ExitCode {
    eprintln!("picket-proxy: {}", telemetry::chain(error));
    exit.into()
}
