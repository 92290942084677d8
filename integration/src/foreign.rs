//! Foreign TLS peers of a mesh, and what the proxy's records must say about each of them.
//!
//! A peer is known by the source port of its connection. Promises that a [`Ledger`] finds exactly one closing record for
//! each, and reports everything that is wrong with all of them together. Leaves to others: the certificates (`pki`), and
//! which peers there are (the tests).

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use record::key;
use testkit::{Process, Record, Stream};

use crate::pki::{FOREIGN, Shown, Verdict};
use crate::{APP_UID, DEADLINE, Stage};

/// The identity of the pod `client`.
pub const CLIENT: &str = "spiffe://demo.picket.dev/ns/demo/sa/client";
/// The identity of the pod `server`.
pub const SERVER: &str = "spiffe://demo.picket.dev/ns/demo/sa/server";

/// Which proxy's records count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The peer dialled the pod `server`.
    Inbound,
    /// The peer was dialled for the pod `client`.
    Outbound,
}

/// What is expected of the connections made so far.
#[derive(Debug)]
pub struct Ledger {
    side: Side,
    next_port: u16,
    expected: BTreeMap<u16, Expected>,
}

#[derive(Debug)]
struct Expected {
    name: String,
    verdict: Verdict,
    protocol: &'static str,
}

impl Ledger {
    /// An empty one; its ports are below those that the kernel gives out by itself.
    pub fn new(side: Side) -> Self {
        Self { side, next_port: 20_000, expected: BTreeMap::new() }
    }

    /// Notes a connection that is about to be made, and gives the port that it must come from. `protocol` is the ALPN
    /// name of the hop.
    pub fn expect(&mut self, name: &str, verdict: Verdict, protocol: &'static str) -> u16 {
        let port = self.next_port;
        self.next_port += 1;
        self.expected.insert(port, Expected { name: name.to_owned(), verdict, protocol });
        port
    }

    /// Waits for the records of all connections and holds them against what was expected.
    ///
    /// # Errors
    /// When a record does not come, there is one too many, or one says something else; all are named.
    pub fn check(&self, stage: &Stage) -> Result<()> {
        ensure!(!self.expected.is_empty(), "nothing was expected");
        for (port, expected) in &self.expected {
            stage
                .records(1, |record| self.is_of(record, *port) && is_closing(record))
                .with_context(|| format!("the closing record of {}", expected.name))?;
        }
        // A worker's records arrive in order: what a worker wrote before this one's record is there when this one is.
        self.barrier(stage)?;
        let all = stage.collector.records();
        let mut wrong = Vec::new();
        for (port, expected) in &self.expected {
            let of_port: Vec<_> = all.iter().filter(|record| self.is_of(record, *port)).collect();
            if let Err(error) = self.check_one(expected, &of_port) {
                wrong.push(format!("{}: {error:#}", expected.name));
            }
        }
        ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), self.expected.len(), wrong.join("\n"));
        Ok(())
    }

    fn barrier(&self, stage: &Stage) -> Result<()> {
        let direction = self.direction();
        let is_last = |record: &Record| {
            record.is(key::DIRECTION, direction)
                && record.is(key::URL_PATH, "/hello.txt")
                && record.is(key::CLIENT_IDENTITY, CLIENT)
        };
        let before = stage.collector.records().iter().filter(|record| is_last(record)).count();
        stage.run("client", "curl", &["--silent", "--fail", "http://10.96.0.10/hello.txt"])?;
        stage.records(before + 1, is_last).map(|_| ())
    }

    fn direction(&self) -> &'static str {
        match self.side {
            Side::Inbound => "inbound",
            Side::Outbound => "outbound",
        }
    }

    fn is_of(&self, record: &Record, port: u16) -> bool {
        record.is(key::DIRECTION, self.direction()) && record.integer(key::SOURCE_PORT) == Some(port.into())
    }

    fn check_one(&self, expected: &Expected, records: &[&Record]) -> Result<()> {
        let closing: Vec<_> = records.iter().filter(|record| is_closing(record)).collect();
        let requests: Vec<_> = records.iter().filter(|record| record.event() == "picket.request").collect();
        ensure!(closing.len() == 1, "{} closing records", closing.len());
        ensure!(records.len() == closing.len() + requests.len(), "other records");
        match expected.verdict {
            Verdict::Served(identity) => {
                self.check_served(closing[0], identity, expected.protocol)?;
                let count = if expected.protocol == "picket/tcp" { 0 } else { 1 };
                ensure!(requests.len() == count, "{} requests", requests.len());
                for request in requests {
                    self.check_served(request, identity, expected.protocol)?;
                    let status = request.integer(key::HTTP_RESPONSE_STATUS_CODE);
                    ensure!(status == Some(200), "status {status:?}");
                }
                Ok(())
            }
            Verdict::Refused { code, detail } => self.check_refused(expected, closing[0], &requests, code, detail),
        }
    }

    fn check_served(&self, record: &Record, peer: &str, protocol: &str) -> Result<()> {
        let identities = match self.side {
            Side::Inbound => [(peer, "mutual_tls"), (SERVER, "own_certificate")],
            Side::Outbound => [(CLIENT, "own_certificate"), (peer, "mutual_tls")],
        };
        let [(client, client_by), (server, server_by)] = identities;
        has(record, key::CODE, "ok")?;
        has(record, key::DECISION, "meshed")?;
        has(record, key::TLS_PROTOCOL_VERSION, "1.3")?;
        has(record, key::TLS_NEXT_PROTOCOL, protocol)?;
        has(record, key::CLIENT_IDENTITY, client)?;
        has(record, key::CLIENT_IDENTITY_BY, client_by)?;
        has(record, key::SERVER_IDENTITY, server)?;
        has(record, key::SERVER_IDENTITY_BY, server_by)
    }

    fn check_refused(
        &self,
        expected: &Expected,
        closing: &Record,
        requests: &[&&Record],
        code: &str,
        detail: &str,
    ) -> Result<()> {
        let (count, peer) = match (self.side, expected.protocol) {
            (Side::Inbound, _) => (0, key::CLIENT_IDENTITY),
            (Side::Outbound, "picket/tcp") => (0, key::SERVER_IDENTITY),
            (Side::Outbound, _) => (1, key::SERVER_IDENTITY),
        };
        ensure!(requests.len() == count, "{} requests", requests.len());
        // A server that refuses us has proved itself before: with TLS 1.3 a client comes last.
        let has_proved = self.side == Side::Outbound && code == "peer_refused_us";
        let identity = has_proved.then_some(FOREIGN);
        ensure!(closing.text(peer) == identity, "{peer} is {:?}", closing.text(peer));
        // A stream of HTTP/2 whose server is refused does not end the connection of its client.
        let goes_on = self.side == Side::Outbound && expected.protocol == "picket/h2";
        let of_connection = (!goes_on).then_some(closing);
        for record in requests.iter().map(|record| **record).chain(of_connection) {
            has(record, key::CODE, code)?;
            has(record, key::DECISION, if has_proved { "meshed" } else { "refused" })?;
            let said = record.text(key::DETAIL).unwrap_or_default();
            ensure!(said.contains(detail), "{said:?} does not say {detail:?}");
        }
        if let Some(closing) = of_connection {
            let closed_by = match (self.side, code) {
                (_, "plaintext_refused") => "us",
                (Side::Inbound, _) => "client",
                (Side::Outbound, _) => "server",
            };
            has(closing, key::CLOSED_BY, closed_by)?;
        }
        Ok(())
    }
}

fn is_closing(record: &Record) -> bool {
    record.event() == "picket.connection" && record.is(key::CONNECTION_STATE, "closed")
}

fn has(record: &Record, key: &str, expected: &str) -> Result<()> {
    let found = record.text(key);
    let detail = record.text(key::DETAIL).unwrap_or_default();
    ensure!(found == Some(expected), "{} has {key} {found:?}, expected {expected:?} ({detail})", record.event());
    Ok(())
}

/// A connection of `openssl s_client` from the pod `stranger` to the web server's own port. The request for `path`
/// is sent whatever happens; its output and status say what came of it.
///
/// # Errors
/// When it cannot be started.
pub fn s_client(stage: &Stage, port: u16, path: &str, shown: Option<&Shown>, options: &[&str]) -> Result<Output> {
    let server = (stage.mesh.pod("server")?.pod.ipv4, crate::WEB_TARGET).into();
    s_client_to(stage, server, port, path, shown, options)
}

/// As [`s_client`], to any server.
///
/// # Errors
/// When it cannot be started.
pub fn s_client_to(
    stage: &Stage,
    server: SocketAddr,
    port: u16,
    path: &str,
    shown: Option<&Shown>,
    options: &[&str],
) -> Result<Output> {
    let stranger = &stage.mesh.pod("stranger")?.pod;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
    let request = stage.mesh.directory.write("request", &request)?;
    let mut command = stranger.command(APP_UID, "timeout");
    command.args(["10", "openssl", "s_client", "-ign_eof", "-brief"]);
    command.args(["-connect", &server.to_string()]);
    command.args(["-bind", &format!("{}:{port}", stranger.ipv4)]).args(options).stdin(File::open(request)?);
    show(&mut command, shown);
    command.output().context("cannot run openssl")
}

/// `openssl s_server` on the pod `stranger`: takes one connection and answers its GET with a file of the run directory
/// that holds a whole answer.
///
/// # Errors
/// When it does not start.
pub fn s_server(stage: &Stage, name: &str, port: u16, shown: &Shown, options: &[&str]) -> Result<Process> {
    let mut command = stage.mesh.pod("stranger")?.pod.command(APP_UID, "openssl");
    command.args(["s_server", "-HTTP", "-naccept", "1", "-accept", &port.to_string()]).args(options);
    command.current_dir(stage.mesh.directory.path());
    show(&mut command, Some(shown));
    let mut process = Process::spawn(name, command, &stage.mesh.directory)?;
    process.wait_for_line(Stream::Out, "ACCEPT", DEADLINE)?;
    Ok(process)
}

/// Waits for the end of an [`s_server`] and tells whether it saw a request: only at its end is all of its output there.
///
/// # Errors
/// When its one connection did not come to its end.
pub fn saw_request(mut server: Process) -> Result<bool> {
    server.wait(DEADLINE)?;
    Ok(server.output(Stream::Err)?.contains("FILE:"))
}

/// Gives openssl a certificate to show.
pub fn show(command: &mut Command, shown: Option<&Shown>) {
    if let Some(shown) = shown {
        command.arg("-cert").arg(&shown.leaf).arg("-key").arg(&shown.key);
        if let Some(issuers) = &shown.issuers {
            command.arg("-cert_chain").arg(issuers);
        }
    }
}

/// Python's web server on a pod: serves the files of the run directory and names each request in its output.
///
/// # Errors
/// When it does not start.
pub fn web_server(stage: &Stage, pod: &str, address: &str, port: u16) -> Result<Process> {
    // As root: where Python comes from a version manager, other users may not execute it.
    let mut command = stage.mesh.pod(pod)?.pod.command(0, "python3");
    command.args(["-u", "-m", "http.server", &port.to_string(), "--bind", address, "--protocol", "HTTP/1.1"]);
    command.arg("--directory").arg(stage.mesh.directory.path());
    let mut process = Process::spawn(&format!("{pod}-web"), command, &stage.mesh.directory)?;
    process.wait_for_line(Stream::Out, "Serving HTTP", DEADLINE)?;
    Ok(process)
}
