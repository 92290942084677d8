//! `picket-bench handshake`: what it costs that nothing is resumed (docs/decisions/0004-no-resumption.md).
//!
//! Promises: the handshakes are those of our own configurations, in memory, on one thread, and in the same run those of the
//! same configurations with tickets switched on; each one is looked at: who was proved, and whether it was resumed. The
//! two take turns in short rounds; figures are medians. Leaves out: sockets and the kernel, which are the same for both.

use std::{io::Write as _, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use identity::{Credentials, SpiffeId, Store, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustix::time::{ClockId, clock_gettime};
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, ServerConfig, ServerConnection, client::Resumption,
    crypto::aws_lc_rs::Ticketer,
};
use rustls_pki_types::{PrivateKeyDer, ServerName};

use crate::machine;

const METHOD: &str = "\
Both ends on one thread, in memory: no sockets. CPU is the thread's own (CLOCK_THREAD_CPUTIME_ID), read around each end's
part, from the ClientHello until both ends are done and what follows the handshake has arrived. `full` is Picket's own
client and server configuration: TLS 1.3, X25519MLKEM768, TLS_AES_128_GCM_SHA256, P-256 leaf and issuer from both sides,
each verified against the root. `resumed` is the same with one ticket for each connection (psk_dhe_ke: the key exchange is
made anew, no certificate is shown or verified). The two take turns; figures are medians of the rounds, the ratio is the
median of the ratios within each round.
";
/// Handshakes before the first round: caches, and the first ticket.
const WARM_UP: usize = 50;

/// How much is measured.
#[derive(Clone, Debug, Args)]
pub(crate) struct Arguments {
    /// Rounds.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Handshakes of each kind in a round.
    #[arg(long, default_value_t = 400)]
    handshakes: usize,
}

/// Measures, and prints what came out.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // Here what is measured is part of what measures.
    ensure!(!cfg!(debug_assertions), "only a release build is measured: cargo run --release -p benches -- handshake");
    let report = report(arguments)?;
    std::io::stdout().write_all(report.as_bytes()).context("cannot print the result")
}

/// One kind of handshake.
struct Kind {
    name: &'static str,
    expected: HandshakeKind,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// What one handshake took.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    client: Duration,
    server: Duration,
    bytes: usize,
}

impl Cost {
    fn both(self) -> Duration {
        self.client + self.server
    }
}

fn report(arguments: &Arguments) -> Result<String> {
    let [full, resumed] = kinds()?;
    for _ in 0..WARM_UP {
        handshake(&full, HandshakeKind::Full)?;
        // The first one has no ticket yet.
        handshake_of_any_kind(&resumed)?;
    }
    let mut rounds = Vec::new();
    for _ in 0..arguments.rounds.clamp(1, 1000) {
        rounds.push([round(&full, arguments)?, round(&resumed, arguments)?]);
    }
    let mut out = String::from("# Full handshakes against resumed ones\n\n");
    machine::describe().lines().take(2).for_each(|line| out += &format!("{line}\n"));
    out += &format!("- {} rounds of {} handshakes of each kind\n\n{METHOD}\n", rounds.len(), arguments.handshakes);
    out += "| handshake | client, µs | server, µs | both, µs | bytes |\n|---|---:|---:|---:|---:|\n";
    for (at, kind) in [&full, &resumed].into_iter().enumerate() {
        let of = |cost: fn(Cost) -> Duration| {
            median(rounds.iter().map(|round| cost(round[at]).as_secs_f64() * 1e6).collect())
        };
        let (client, server, both) = (of(|cost| cost.client), of(|cost| cost.server), of(Cost::both));
        let bytes = rounds.first().map_or(0, |round| round[at].bytes);
        out += &format!("| {} | {client:.0} | {server:.0} | {both:.0} | {bytes} |\n", kind.name);
    }
    let ratio = |cost: fn(Cost) -> Duration| {
        median(rounds.iter().map(|[full, resumed]| cost(*full).as_secs_f64() / cost(*resumed).as_secs_f64()).collect())
    };
    let (client, server, both) = (ratio(|cost| cost.client), ratio(|cost| cost.server), ratio(Cost::both));
    out += &format!("| ratio, full to resumed | {client:.2} | {server:.2} | {both:.2} | |\n");
    Ok(out)
}

/// Ours, and ours with tickets.
fn kinds() -> Result<[Kind; 2]> {
    let authority = Authority::new()?;
    let [client, server] = ["client", "server"].map(|name| authority.store(name));
    let (client, (server, expected)) = (client?.0, server?);
    let client = identity::client_config(&client, &expected, identity::ALPN_H2);
    let server = identity::server_config(&server, &[identity::ALPN_H2]);
    let (mut with_tickets, mut giving_tickets) = (client.clone(), server.clone());
    with_tickets.resumption = Resumption::in_memory_sessions(16);
    giving_tickets.ticketer = Ticketer::new().context("the library has no tickets")?;
    giving_tickets.send_tls13_tickets = 1;
    let kind = |name, expected, client, server| {
        let (client, server) = (Arc::new(client), Arc::new(server));
        Kind { name, expected, client, server }
    };
    Ok([
        kind("full (Picket)", HandshakeKind::Full, client, server),
        kind("resumed", HandshakeKind::Resumed, with_tickets, giving_tickets),
    ])
}

/// The mean of a round.
fn round(kind: &Kind, arguments: &Arguments) -> Result<Cost> {
    let count = arguments.handshakes.clamp(1, 1_000_000);
    let mut sum = Cost::default();
    for _ in 0..count {
        let cost = handshake(kind, kind.expected)?;
        sum =
            Cost { client: sum.client + cost.client, server: sum.server + cost.server, bytes: sum.bytes + cost.bytes };
    }
    let (client, server) = (sum.client.div_f64(count as f64), sum.server.div_f64(count as f64));
    Ok(Cost { client, server, bytes: sum.bytes / count })
}

fn handshake(kind: &Kind, expected: HandshakeKind) -> Result<Cost> {
    let (cost, found) = handshake_of_any_kind(kind)?;
    ensure!(found == Some(expected), "{}: the handshake was {found:?}", kind.name);
    Ok(cost)
}

fn handshake_of_any_kind(kind: &Kind) -> Result<(Cost, Option<HandshakeKind>)> {
    let mut cost = Cost::default();
    let name = ServerName::try_from("ignored.example").context("a name")?;
    let client = timed(&mut cost.client, || ClientConnection::new(Arc::clone(&kind.client), name));
    let server = timed(&mut cost.server, || ServerConnection::new(Arc::clone(&kind.server)));
    let (mut client, mut server) = (Connection::Client(client?), Connection::Server(server?));
    loop {
        let to_server = carry(&mut client, &mut server, &mut cost.client, &mut cost.server)?;
        let to_client = carry(&mut server, &mut client, &mut cost.server, &mut cost.client)?;
        cost.bytes += to_server + to_client;
        if to_server + to_client == 0 {
            break;
        }
    }
    for end in [&client, &server] {
        ensure!(!end.is_handshaking() && end.peer_certificates().is_some(), "{}: a peer is not proved", kind.name);
    }
    let found = client.handshake_kind();
    timed(&mut cost.client, || drop(client));
    timed(&mut cost.server, || drop(server));
    Ok((cost, found))
}

/// Brings what one end has to say to the other; how many bytes that were.
fn carry(from: &mut Connection, to: &mut Connection, writing: &mut Duration, reading: &mut Duration) -> Result<usize> {
    let mut bytes = Vec::new();
    timed(writing, || {
        while from.wants_write() {
            from.write_tls(&mut bytes)?;
        }
        Ok::<_, std::io::Error>(())
    })?;
    let mut rest = bytes.as_slice();
    timed(reading, || {
        while !rest.is_empty() {
            to.read_tls(&mut rest)?;
            to.process_new_packets()?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(bytes.len())
}

/// Adds the CPU time that this thread takes for `work`.
pub(crate) fn timed<T>(sum: &mut Duration, work: impl FnOnce() -> T) -> T {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    };
    let before = now();
    let result = work();
    *sum += now().saturating_sub(before);
    result
}

pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A root and an issuer, as in a mesh.
struct Authority {
    root: Vec<u8>,
    issuer_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Result<Self> {
        let params = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params
        };
        let (root_key, issuer_key) = (KeyPair::generate()?, KeyPair::generate()?);
        let root = params("root").self_signed(&root_key)?.der().to_vec();
        let issuer = params("issuer");
        let issuer_pem = issuer.signed_by(&issuer_key, &Issuer::new(params("root"), root_key))?.pem();
        Ok(Self { root, issuer_pem, issuer: Issuer::new(issuer, issuer_key) })
    }

    /// The store of a workload with its certificate, and whom that names.
    fn store(&self, name: &str) -> Result<(Arc<Store>, SpiffeId)> {
        let id: SpiffeId = format!("spiffe://bench.picket.dev/ns/bench/sa/{name}").parse()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let chain = params.signed_by(&key, &self.issuer)?.pem() + &self.issuer_pem;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let store = Store::new("bench.picket.dev".parse()?);
        store.set_bundle(TrustBundle::from_der([self.root.clone()])?);
        store.set(Credentials::from_pem(chain.as_bytes(), key)?);
        Ok((store, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_what_they_are_called_and_have_figures() {
        let text = report(&Arguments { rounds: 1, handshakes: 5 }).unwrap();
        for kind in ["full (Picket)", "resumed"] {
            let row = text.lines().find_map(|line| line.strip_prefix(&format!("| {kind} |"))).unwrap();
            let figures: Vec<u32> = row.split('|').filter_map(|figure| figure.trim().parse().ok()).collect();
            assert!(figures.len() == 4 && figures.iter().all(|figure| *figure > 0), "{text}");
        }
        let [full, resumed] = kinds().unwrap();
        assert!(handshake(&full, HandshakeKind::Resumed).is_err(), "ours is never resumed");
        assert!(handshake(&resumed, HandshakeKind::Resumed).is_err(), "the first one is not");
        handshake(&resumed, HandshakeKind::Resumed).unwrap();
    }
}
