//! Wrong settings and wrong usage of picket-proxy: one clear error that names the key, and exit code 64; what is right is
//! printed in the form of the file.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
};

use integration::DEADLINE;
use testkit::{Namespace, Process, RunDir, Stream, binaries};

/// A place to run the program in: a network of its own, so that no port is taken, and its files.
struct Place {
    namespace: Namespace,
    directory: RunDir,
    program: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = RunDir::new("configuration").unwrap();
        directory.write("discovery.yaml", "services: []").unwrap();
        directory.write("roots.pem", "").unwrap();
        Self { namespace: Namespace::new().unwrap(), directory, program: binaries().unwrap().join("picket-proxy") }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// A configuration with which the proxy would run.
    fn good(&self) -> String {
        let (discovery, roots) = (self.path("discovery.yaml"), self.path("roots.pem"));
        format!(
            "trustDomain: example.org\noutbound:\n  port: 15001\ninbound:\n  plaintext: strict\nidentity:\n  \
             caAddress: 127.0.0.1:1\n  caRoots: {roots}\n  caIdentity: spiffe://example.org/ns/a/sa/b\n  \
             tokenFile: {roots}\ndiscovery:\n  file: {discovery}\nlog:\n  level: info\n"
        )
    }

    /// Runs the program to its end: exit code, standard output and standard error.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = self.namespace.command(0, &self.program);
        command.args(arguments);
        let mut process = Process::spawn("proxy", command, &self.directory).unwrap();
        let status = process.wait(DEADLINE).unwrap();
        (status.code(), process.output(Stream::Out).unwrap(), process.output(Stream::Err).unwrap())
    }

    /// Holds a run that must be refused: exit code 64, nothing on the standard output, and an error with these parts.
    fn refused(&self, arguments: &[&str], parts: &[&str]) {
        let (code, out, error) = self.run(arguments);
        assert_eq!((code, out.as_str()), (Some(64), ""), "{arguments:?}: {error}");
        assert!(!error.contains("panicked"), "{error}");
        for part in parts {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }

    /// As [`Self::refused`], for `run` with a file of this content.
    fn refused_file(&self, content: &str, parts: &[&str]) {
        let file = self.directory.write("proxy.yaml", content).unwrap();
        self.refused(&["run", "--config", file.to_str().unwrap()], &[&["picket-proxy: "], parts].concat());
    }
}

#[test]
fn a_wrong_file_is_refused_with_the_path_of_each_key_and_the_nearest_name() {
    let place = Place::new();
    let with = |from: &str, to: &str| {
        let good = place.good();
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    let unknown = with("plaintext: strict", "plaintxt: strict");
    place.refused_file(&unknown, &["inbound.plaintxt", "did you mean `plaintext`?"]);
    let unknown = with("outbound:", "outbond:");
    place.refused_file(&unknown, &["outbond: unknown key, did you mean `outbound`?"]);
    place.refused_file(&with("15001", "many"), &["outbound.port", "a whole number", "\"many\""]);
    place.refused_file(&with("15001", "15006"), &["inbound.port", "outbound.port"]);
    place.refused_file(&with("strict", "strickt"), &["inbound.plaintext", "strict"]);
    place.refused_file(&with("level: info", "level: inof"), &["log.level", "`inof`", "info"]);
    place.refused_file(&with("trustDomain: example.org\n", ""), &["trustDomain: missing"]);
    place.refused_file("a: [", &["proxy.yaml", "line 1"]);
    // All mistakes at once.
    let two = with("15001", "many").replace("strict", "loose");
    place.refused_file(&two, &["outbound.port", "inbound.plaintext", "2 mistakes"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let place = Place::new();
    let missing = place.path("missing.yaml");
    place.refused(&["run", "--config", &missing], &[&missing, "No such file"]);
    let directory = place.directory.path().to_str().unwrap();
    place.refused(&["run", "--config", directory], &[directory, "Is a directory"]);
    let discovery = place.path("discovery.yaml");
    place.refused_file(&place.good().replace(&discovery, &missing), &["discovery.file", &missing, "No such file"]);
    for key in ["caRoots", "tokenFile"] {
        let roots = place.path("roots.pem");
        let without = place.good().replace(&format!("{key}: {roots}"), &format!("{key}: {missing}"));
        place.refused_file(&without, &[&format!("identity.{key}"), &missing, "No such file"]);
    }
    let roots = format!("{}export: {{endpoint: 'https://c:1', roots: {missing}}}\n", place.good());
    place.refused_file(&roots, &["export.roots", &missing, "No such file"]);
    place.directory.write("discovery.yaml", "services: [{nme: a, namespace: b}]").unwrap();
    place.refused_file(&place.good(), &["discovery.file", "services[0].nme", "did you mean `name`?"]);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let place = Place::new();
    let taken = |address: &str| place.namespace.inside(|| Ok(TcpListener::bind(address)?)).unwrap();
    for (address, key, port) in [
        ("[::]:15001", "outbound.port", "15001"),
        ("0.0.0.0:15006", "inbound.port", "15006"),
        ("[::]:15020", "admin.address", "15020"),
    ] {
        let _taken = taken(address);
        place.refused_file(&place.good(), &[key, port, "Address already in use"]);
    }
    let socket = "/nowhere/admin.sock";
    let content = format!("{}admin: {{socket: {socket}}}\n", place.good());
    place.refused_file(&content, &["admin.socket", socket, "No such file"]);
}

#[test]
fn wrong_usage_is_refused() {
    let place = Place::new();
    place.refused(&["redirect", "--proxy-uid", "0"], &["--proxy-uid 0", "bypass"]);
    place.refused(&["redirect", "--inbound-port", "15001"], &["--outbound-port", "--inbound-port", "15001"]);
    place.refused(&["redirect", "--inbound-port", "0"], &["--inbound-port", "0"]);
    place.refused(&["redirect", "--inbund-port", "1"], &["--inbund-port", "--inbound-port"]);
    place.refused(&["run", "--confg", "x"], &["--confg", "--config"]);
    place.refused(&["rum"], &["rum", "run"]);
    place.refused(&[], &["Usage"]);
}

#[test]
fn what_is_in_force_is_printed_as_a_file_without_secrets() {
    let place = Place::new();
    let content = format!(
        "{}drainTimeout: 1500ms\nexport: {{endpoint: 'http://c:1', headers: {{x-api-key: sesame}}}}\n",
        place.good()
    );
    let first = place.directory.write("proxy.yaml", &content).unwrap();
    let print = |file: &Path| {
        let (code, out, error) = place.run(&["run", "--print-config", "--config", file.to_str().unwrap()]);
        assert_eq!((code, error.as_str()), (Some(0), ""));
        out
    };
    let printed = print(&first);
    for line in ["trustDomain: example.org", "  port: 15001", "  plaintext: strict", "drainTimeout: 1500ms"] {
        assert!(printed.lines().any(|found| found == line), "`{line}` is not in: {printed}");
    }
    assert!(printed.contains("x-api-key") && !printed.contains("sesame"), "{printed}");
    let again = place.directory.write("again.yaml", &printed).unwrap();
    assert_eq!(print(&again), printed);
}
