//! Child processes that cannot outlive their owner, and the directory where a run keeps its files.
//!
//! Promises: a process is killed and reaped when its value is dropped; its output goes to files, so that it never blocks
//! on a full pipe and can be read after the end; every wait has a deadline.
//! Leaves to others: which namespace and user a process gets (`net`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::until;

/// A directory for one run (mode 0755, so that all users of a run can read it), removed when dropped.
#[derive(Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// Makes a fresh directory below the temporary directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("picket-{name}-{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file that everybody may read, and gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        Ok(path)
    }

    /// Puts a program into the directory, where other users can execute it (a target directory may be private).
    ///
    /// # Errors
    /// When the program is not there.
    pub fn install(&self, program: &Path) -> Result<PathBuf> {
        let name = program.file_name().context("a program has a file name")?;
        let path = self.0.join(name);
        if path.exists() {
            return Ok(path);
        }
        // A hard link costs nothing; across file systems it has to be a copy.
        if fs::hard_link(program, &path).is_err() {
            fs::copy(program, &path).with_context(|| format!("cannot copy {}", program.display()))?;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // Nothing depends on it any more; a leftover below the temporary directory is not worth a panic.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where our programs are: `PICKET_BIN_DIR`, or the target directory that the running program came from.
///
/// # Errors
/// When neither has a `picket-proxy`.
pub fn binaries() -> Result<PathBuf> {
    let candidates: Vec<PathBuf> = match std::env::var_os("PICKET_BIN_DIR") {
        Some(directory) => vec![directory.into()],
        None => std::env::current_exe()?.ancestors().skip(1).take(2).map(Path::to_owned).collect(),
    };
    match candidates.iter().find(|directory| directory.join("picket-proxy").is_file()) {
        Some(directory) => Ok(directory.clone()),
        None => bail!("picket-proxy is not in {candidates:?}: build the workspace first or set PICKET_BIN_DIR"),
    }
}

/// Runs a short command to its end and gives its standard output.
///
/// # Errors
/// When it cannot start or fails; the error holds its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, stderr.trim_end());
    Ok(String::from_utf8(output.stdout)?)
}

/// One of the two output streams of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A running child process.
#[derive(Debug)]
pub struct Process {
    /// The name it was started with; its files carry it.
    pub name: String,
    child: Child,
    directory: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `NAME.out` and `NAME.err` of `directory`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &str, mut command: Command, directory: &RunDir) -> Result<Self> {
        // Appending, so that a file which has been read can be emptied while the program runs.
        let file = |suffix: &str| {
            let path = directory.path().join(format!("{name}.{suffix}"));
            fs::File::create(&path)?;
            fs::OpenOptions::new().append(true).open(path)
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(file("out")?)
            .stderr(file("err")?)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, directory: directory.path().to_owned() })
    }

    /// Its process id (nsenter and setpriv replace themselves by the program).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn output(&self, stream: Stream) -> Result<String> {
        let suffix = match stream {
            Stream::Out => "out",
            Stream::Err => "err",
        };
        let bytes = fs::read(self.directory.join(format!("{}.{suffix}", self.name)))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits for a whole line that contains `text`.
    ///
    /// # Errors
    /// When the process ends first, or after `deadline`.
    pub fn wait_for_line(&mut self, stream: Stream, text: &str, deadline: Duration) -> Result<String> {
        let what = format!("`{text}` from {}", self.name);
        until(&what, deadline, || {
            // Asked before reading, so that the last line of a process that just ended is still found.
            let ended = self.child.try_wait()?;
            let output = self.output(stream)?;
            let complete = output.rfind('\n').map_or("", |end| &output[..end]);
            match (complete.lines().find(|line| line.contains(text)), ended) {
                (Some(line), _) => Ok(Some(line.to_owned())),
                (None, None) => Ok(None),
                (None, Some(status)) => bail!("{} ended with {status}: {}", self.name, self.last_words()),
            }
        })
    }

    /// Fails when the process has ended; the error holds its last words.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}: {}", self.name, self.last_words());
        }
        Ok(())
    }

    /// The end of its standard error, for error messages.
    fn last_words(&self) -> String {
        let output = self.output(Stream::Err).unwrap_or_default();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process has been reaped.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("process ids are positive")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// When the process has been reaped.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// After `deadline`; the process keeps running then.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        until(&what, deadline, || Ok(self.child.try_wait()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; both calls are harmless then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_line_is_waited_for_and_an_early_end_is_an_error() {
        let directory = RunDir::new("process").unwrap();
        let mut process = Process::spawn("one", shell("echo ready to serve; sleep 60"), &directory).unwrap();
        let line = process.wait_for_line(Stream::Out, "ready", Duration::from_secs(5)).unwrap();
        assert_eq!(line, "ready to serve");

        let mut failing = Process::spawn("two", shell("echo why >&2; exit 3"), &directory).unwrap();
        let error = failing.wait_for_line(Stream::Out, "ready", Duration::from_secs(5)).unwrap_err();
        assert!(format!("{error:#}").contains("exit status: 3: why"), "{error:#}");
    }

    #[test]
    fn dropping_ends_the_process() {
        let directory = RunDir::new("process").unwrap();
        let process = Process::spawn("one", shell("exec sleep 60"), &directory).unwrap();
        let entry = format!("/proc/{}", process.pid());
        assert!(Path::new(&entry).exists());
        drop(process);
        assert!(!Path::new(&entry).exists());
    }
}
