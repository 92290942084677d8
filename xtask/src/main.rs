//! What `./x` does once a toolchain is there: builds, tests, checks, and the tools that the tests need.
//!
//! Promises no dependency beyond std, so that it compiles in a second on a bare machine.

mod process;
mod tools;
mod supply;

use process::{Command, Failure};
use std::{path::Path, process::ExitCode};

const USAGE: &str = "usage: ./x <command>
  demo [--keep …]   builds Picket and shows it at work in three network namespaces
  test              unit tests, then the integration tests with real programs
  bench [--quick …] the same load through nginx, Envoy and Picket; see --help
  check             formatting, clippy, documentation, house rules, licences and bans
  fmt               formats the sources
  tools             builds or installs the tools of the integration tests and prints where they are";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", arguments.as_slice()),
    };
    let done = match command {
        "demo" => demo(rest),
        "test" => test(rest),
        "bench" => bench(rest),
        "check" => check(),
        "fmt" => Command::new("cargo").args(["fmt", "--all"]).run(),
        "tools" => tools::ready().map(|tools| tools.print()),
        "help" | "--help" => {
            println!("{USAGE}");
            Ok(())
        }
        unknown => {
            eprintln!("x: unknown command `{unknown}`\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("x: {failure}");
            ExitCode::from(2)
        }
    }
}

fn demo(arguments: &[String]) -> Result<(), Failure> {
    let packages = ["--package", "ca", "--package", "proxy", "--package", "demo"];
    Command::new("cargo").args(["build", "--quiet", "--bins"]).args(packages).run()?;
    Command::new(process::target_dir().join("debug/picket-demo")).args(arguments).run()
}

/// The unit tests first: they need nothing but the sources, and say most about what is wrong.
fn test(arguments: &[String]) -> Result<(), Failure> {
    Command::new("cargo").args(["test", "--workspace", "--exclude", "integration"]).run()?;
    Command::new("cargo").args(["build", "--workspace", "--bins"]).run()?;
    let tools = tools::ready()?;
    // One at a time: each makes namespaces, and several measure what a process uses.
    let integration = Command::new("cargo")
        .args(["test", "--package", "integration", "--"])
        .args(["--test-threads=1"])
        .args(arguments)
        .env("PICKET_BIN_DIR", process::target_dir().join("debug"));
    tools.variables().into_iter().fold(integration, |command, (name, path)| command.env(name, path)).run()
}

/// What is measured is built as it is released; what measures is not.
fn bench(arguments: &[String]) -> Result<(), Failure> {
    let cargo = || Command::new("cargo").args(["build", "--quiet"]);
    cargo().args(["--release", "--package", "ca", "--package", "proxy", "--bins"]).run()?;
    cargo().args(["--package", "benches"]).run()?;
    Command::new(process::target_dir().join("debug/picket-bench"))
        .args(arguments)
        .env("PICKET_BIN_DIR", process::target_dir().join("release"))
        .env("PICKET_ENVOY", tools::envoy_ready()?)
        .run()
}

/// What is quick comes first, so that most mistakes show at once.
fn check() -> Result<(), Failure> {
    let cargo = || Command::new("cargo");
    cargo().args(["fmt", "--all", "--check"]).run()?;
    supply::check(Path::new("deny.toml"))?;
    cargo().args(["test", "--quiet", "--package", "xtask"]).run()?;
    cargo().args(["run", "--quiet", "--package", "api-codegen", "--", "--check"]).run()?;
    cargo().args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]).run()?;
    cargo().args(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings").run()
}
