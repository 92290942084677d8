//! Running other programs: says what runs, and fails with the command that failed.

use std::{
    ffi::OsStr,
    fmt, io,
    path::{Path, PathBuf},
    process::{self, ExitStatus, Stdio},
};

/// Why a command of `./x` did not succeed; printed as it is.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// A program to run, with its output passed on.
#[derive(Debug)]
pub(crate) struct Command(process::Command);

impl Command {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self(process::Command::new(program))
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.0.args(arguments);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    pub(crate) fn directory(mut self, directory: &Path) -> Self {
        self.0.current_dir(directory);
        self
    }

    /// Runs it with our own output; anything but success is a failure.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        eprintln!("x: {}", self.shown());
        let status = self.0.status().map_err(|error| self.failed(error))?;
        self.succeeded(status)
    }

    /// Runs it and returns what it printed; anything but success is a failure.
    pub(crate) fn output(mut self) -> Result<String, Failure> {
        self.0.stderr(Stdio::inherit());
        let output = self.0.output().map_err(|error| self.failed(error))?;
        self.succeeded(output.status)?;
        String::from_utf8(output.stdout).map_err(|error| self.failed(error))
    }

    fn succeeded(&self, status: ExitStatus) -> Result<(), Failure> {
        if status.success() { Ok(()) } else { Err(self.failed(status)) }
    }

    fn failed(&self, why: impl fmt::Display) -> Failure {
        Failure(format!("`{}` failed: {why}", self.shown()))
    }

    fn shown(&self) -> String {
        let words = [self.0.get_program()].into_iter().chain(self.0.get_args());
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }
}

/// Where cargo puts what it builds, as seen from the workspace's root.
pub(crate) fn target_dir() -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    std::path::absolute(&chosen).unwrap_or(chosen)
}
