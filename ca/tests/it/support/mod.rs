//! What the tests of the real program share: its directory, its process, its admin socket, and proxies that follow it.

pub(crate) mod proxy;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::certs;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_picket-ca");
pub(crate) const DOMAIN: &str = "demo.picket.dev";
/// Generous: a loaded machine makes keys and waits for its disk in it.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

/// A runtime for one test.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Polls until `state` gives a value.
pub(crate) fn until<T>(what: &str, mut state: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + WAIT;
    loop {
        if let Some(value) = state() {
            return value;
        }
        assert!(Instant::now() < end, "not within {WAIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As [`until`], between other tasks.
pub(crate) async fn until_async<T>(what: &str, mut state: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + WAIT;
    loop {
        if let Some(value) = state() {
            return value;
        }
        assert!(Instant::now() < end, "not within {WAIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A private directory for an authority; gone with the test.
pub(crate) struct Place(pub(crate) PathBuf);

impl Place {
    /// With an initialised authority.
    pub(crate) fn new(name: &str) -> Self {
        let place = Self::empty(name);
        let made = place.init();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        place
    }

    /// Without one.
    pub(crate) fn empty(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("picket-ca-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn init(&self) -> Output {
        let mut command = Command::new(PROGRAM);
        command.arg("init").arg("--dir").arg(self.dir()).args(["--trust-domain", DOMAIN]).output().unwrap()
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.0.join("ca")
    }

    pub(crate) fn root(&self) -> String {
        std::fs::read_to_string(self.dir().join("root.pem")).unwrap()
    }

    pub(crate) fn state(&self) -> ca::state::State {
        ca::state::State::parse(&std::fs::read_to_string(self.dir().join("state.json")).unwrap()).unwrap()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn token(&self, extra: &[&str]) -> String {
        let mut command = Command::new(PROGRAM);
        command.arg("token").arg("--key").arg(self.dir().join("token-key.pem"));
        command.args(["--namespace", "demo", "--service-account", "web"]).args(extra);
        if !extra.contains(&"--pod") {
            command.args(["--pod", "web-0", "--pod-uid", "42"]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn pod_token(&self, pod: &str) -> String {
        self.token(&["--audience", "picket-ca", "--pod", pod, "--pod-uid", &format!("uid-of-{pod}")])
    }

    /// The configuration of an instance, with more lines of YAML.
    pub(crate) fn config(&self, instance: &str, listen: &str, more: &str) -> PathBuf {
        let config = format!(
            "trustDomain: {DOMAIN}\ndir: {dir}\nlisten: '{listen}'\ndnsNames: [picket-ca.test]\n\
             admin: {{socket: {socket}}}\n\
             tokens: {{jwks: {dir}/jwks.json, issuer: 'https://kubernetes.default.svc.cluster.local', audience: picket-ca}}\n\
             {more}\n",
            dir = self.dir().display(),
            socket = self.socket(instance).display(),
        );
        self.write(&format!("{instance}.yaml"), &config)
    }

    pub(crate) fn socket(&self, instance: &str) -> PathBuf {
        self.dir().join(format!("{instance}.sock"))
    }

    /// One instance with an hour's leaves on any port.
    pub(crate) fn start(&self) -> Running {
        Running::start(&self.config("ca", "127.0.0.1:0", "leafLifetime: 1h"), &[])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What stays behind in the temporary place harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An address that stays free while a process is restarted on it: not of the range that clients get their ports from.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 12_000 + u16::try_from(std::process::id() % 18_000).unwrap();
    until("a free port", || {
        let address = SocketAddr::from(([127, 0, 0, 1], base + NEXT.fetch_add(1, SeqCst)));
        TcpListener::bind(address).is_ok().then_some(address)
    })
}

/// What a process has said so far.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    read: usize,
}

impl Log {
    /// The next line that has `text`; those before it count as read.
    fn next(&mut self, text: &str) -> Option<String> {
        while let Some(line) = self.lines.get(self.read) {
            self.read += 1;
            if line.contains(text) {
                return Some(line.clone());
            }
        }
        None
    }
}

/// `picket-ca run`, killed with the test.
pub(crate) struct Running {
    child: Child,
    log: Arc<Mutex<Log>>,
    pub(crate) address: SocketAddr,
}

impl Running {
    /// Starts it and waits until it listens.
    pub(crate) fn start(config: &Path, variables: &[(&str, &str)]) -> Self {
        let mut running = Self::spawn(Command::new(PROGRAM), config, variables);
        let line = running.line("listening");
        let (_, address) = line.split_once("address=").unwrap();
        running.address = address.trim().trim_matches('"').parse().unwrap();
        running
    }

    /// Starts it.
    pub(crate) fn spawn(mut command: Command, config: &Path, variables: &[(&str, &str)]) -> Self {
        command.arg("run").arg("--config").arg(config).envs(variables.iter().copied());
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let kept: Arc<Mutex<Log>> = Arc::default();
        let sink = kept.clone();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                sink.lock().unwrap().lines.push(line);
            }
        });
        Self { child, log: kept, address: SocketAddr::from(([0, 0, 0, 0], 0)) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next log line that has `text`. Nothing else happens in the test meanwhile.
    pub(crate) fn line(&self, text: &str) -> String {
        self.wait_for(text, |log| log.next(text))
    }

    /// As [`Self::line`], if it is there.
    pub(crate) fn try_line(&self, text: &str) -> Option<String> {
        self.log.lock().unwrap().next(text)
    }

    /// Any log line that has `text`, from the beginning.
    pub(crate) fn said(&self, text: &str) -> String {
        self.wait_for(text, |log| log.lines.iter().find(|line| line.contains(text)).cloned())
    }

    fn wait_for(&self, text: &str, find: impl Fn(&mut Log) -> Option<String>) -> String {
        let end = Instant::now() + WAIT;
        loop {
            let mut log = self.log.lock().unwrap();
            if let Some(line) = find(&mut log) {
                return line;
            }
            assert!(Instant::now() < end, "no log line with {text:?} within {WAIT:?}: {:?}", log.lines.last());
            drop(log);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How the process ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request to the admin socket.
pub(crate) fn ask(socket: &Path, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(WAIT))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no head"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| std::io::Error::other("no status"))?, body.to_owned()))
}

/// The status that an instance tells, if it answers.
pub(crate) fn status(socket: &Path) -> Option<certs::Status> {
    let (code, body) = ask(socket, "GET", "/certs", "").ok()?;
    assert_eq!(code, 200, "{body}");
    Some(serde_json::from_str(&body).unwrap())
}

/// A command that must be done.
pub(crate) fn command(socket: &Path, path: &str, body: &str) -> certs::Status {
    let (code, answer) = ask(socket, "POST", path, body).unwrap();
    assert_eq!(code, 200, "{path} {body}: {answer}");
    serde_json::from_str(&answer).unwrap()
}

/// What openssl prints; it must succeed.
pub(crate) fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
