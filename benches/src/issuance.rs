//! `picket-bench issuance`: what the CA takes for a certificate, beside what the cryptography of it alone takes.
//!
//! Promises: certificates come over the real interface from the real program; each one is looked at; the bare figures are
//! of the same library in the same run, and all take turns. Leaves out: the CPU of clients.

use std::{io::Write as _, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use api::istio_ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
    },
};
use clap::Args;
use rcgen::{CertificateParams, KeyPair};

use crate::{
    authority::{Authority, with_token},
    handshake::{median, timed},
    machine, usage,
};

const METHOD: &str = "\
CPU of picket-ca is that of all its threads (utime + stime from /proc): TLS, HTTP/2, gRPC, the token, the signing request,
the certificate, its log line, and all else that the program does meanwhile. `bare` is one ECDSA P-256 verification of a
signing request's size and one signature of a leaf's size by the same library (aws-lc), the thread's own CPU time; `bare,
new token` is that with a second verification, which such a token needs, and so the most that its row can come to. Eight
calls are in flight. `new token`: each call has a token that was never seen, of another pod. `connection each`: with a TLS 1.3 handshake
(X25519MLKEM768) and an HTTP/2 connection for each certificate, which are no part of issuing. Figures are medians of the
rounds, ratios medians of the ratios within each round.
";
/// Calls on their way at once; the CA takes as many on one connection.
const IN_FLIGHT: usize = 8;
/// Bytes that are signed: about those of a leaf, and of a signing request.
const SIGNED_BYTES: [usize; 2] = [400, 200];

/// How much is measured.
#[derive(Clone, Debug, Args)]
pub(crate) struct Arguments {
    /// Rounds.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Certificates of each kind in a round.
    #[arg(long, default_value_t = 4000)]
    certificates: usize,
}

/// Measures, and prints what came out.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let authority = Arc::new(Authority::start(100)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate()?)?.pem()?;
    let count = arguments.certificates.clamp(IN_FLIGHT, 1_000_000);
    let bench = Bench { authority, csr, count };
    let known = bench.tokens(0, IN_FLIGHT)?;
    // Caches, and the first sight of these tokens.
    runtime.block_on(bench.issue(&known, Connections::One, IN_FLIGHT * 50))?;
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds.clamp(1, 100) {
        let [bare, with_token] = [bare(count, 1)?, bare(count, 2)?];
        let seen = bench.measured(&runtime, &known, Connections::One)?;
        let new = bench.tokens(1000 + round * count, count)?;
        let new = bench.measured(&runtime, &new, Connections::One)?;
        let each = bench.measured(&runtime, &known, Connections::Each)?;
        rounds.push([bare, with_token, seen, new, each]);
        eprintln!("bench: issuance round {round}: {:?} µs", rounds[round]);
    }
    std::io::stdout().write_all(report(&rounds, count).as_bytes()).context("cannot print the result")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connections {
    One,
    Each,
}

struct Bench {
    authority: Arc<Authority>,
    csr: String,
    count: usize,
}

impl Bench {
    fn tokens(&self, first: usize, count: usize) -> Result<Vec<String>> {
        (first..first + count).map(|pod| self.authority.token(pod)).collect()
    }

    /// CPU of the CA for each certificate, µs.
    fn measured(&self, runtime: &tokio::runtime::Runtime, tokens: &[String], connections: Connections) -> Result<f64> {
        let pid = self.authority.process.pid();
        // A handshake costs several certificates.
        let count = if connections == Connections::Each { self.count / 4 } else { self.count };
        let before = usage::cpu(pid)?;
        runtime.block_on(self.issue(tokens, connections, count))?;
        Ok(usage::cpu(pid)?.since(before).total() as f64 / count as f64)
    }

    async fn issue(&self, tokens: &[String], connections: Connections, count: usize) -> Result<()> {
        let channel = self.authority.connect().await?;
        let lane = |lane: usize| {
            let channel = channel.clone();
            async move {
                for number in (lane..count).step_by(IN_FLIGHT) {
                    let channel = match connections {
                        Connections::One => channel.clone(),
                        Connections::Each => self.authority.connect().await?,
                    };
                    let asked = IstioCertificateRequest { csr: self.csr.clone(), ..Default::default() };
                    let asked = with_token(asked, &tokens[number % tokens.len()])?;
                    let answer = IstioCertificateServiceClient::new(channel).create_certificate(asked).await?;
                    ensure!(answer.into_inner().cert_chain.len() == 3, "a chain has three certificates");
                }
                Ok(())
            }
        };
        let lanes = (0..IN_FLIGHT).map(lane);
        let mut lanes: Vec<_> = lanes.map(Box::pin).collect();
        // All at once on this thread.
        std::future::poll_fn(|cx| {
            let mut error = None;
            lanes.retain_mut(|lane| match lane.as_mut().poll(cx) {
                std::task::Poll::Ready(Err(failed)) => {
                    error = Some(failed);
                    false
                }
                std::task::Poll::Ready(Ok(())) => false,
                std::task::Poll::Pending => true,
            });
            match error {
                Some(error) => std::task::Poll::Ready(Err(error)),
                None if lanes.is_empty() => std::task::Poll::Ready(Ok(())),
                None => std::task::Poll::Pending,
            }
        })
        .await
    }
}

/// CPU of so many verifications and one signature, µs.
fn bare(count: usize, verifications: usize) -> Result<f64> {
    let (random, [leaf, csr]) = (SystemRandom::new(), SIGNED_BYTES.map(|bytes| vec![7; bytes]));
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).ok().context("no key")?;
    let signature = key.sign(&random, &csr).ok().context("no signature")?;
    let public = key.public_key().as_ref().to_vec();
    let mut spent = Duration::ZERO;
    timed(&mut spent, || {
        for _ in 0..count {
            for _ in 0..verifications {
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &public);
                ensure!(key.verify(&csr, signature.as_ref()).is_ok(), "the library fails");
            }
            ensure!(key.sign(&random, &leaf).is_ok(), "the library fails");
        }
        Ok(())
    })?;
    Ok(spent.as_secs_f64() * 1e6 / count as f64)
}

fn report(rounds: &[[f64; 5]], count: usize) -> String {
    let mut out = String::from("# Issuance\n\n");
    machine::describe().lines().take(2).for_each(|line| out += &format!("{line}\n"));
    out += &format!("- {} rounds of {count} certificates of each kind\n\n{METHOD}\n", rounds.len());
    out += "| | CPU, µs each | of the bare limit |\n|---|---:|---:|\n";
    let names = ["bare", "bare, new token", "one connection", "one connection, new token", "connection each"];
    for (at, name) in names.into_iter().enumerate() {
        let cost = median(rounds.iter().map(|round| round[at]).collect());
        let ratio = median(rounds.iter().map(|round| round[0] / round[at]).collect());
        out += &format!("| {name} | {cost:.0} | {ratio:.2} |\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bare_limit_is_a_figure() {
        assert!(bare(5, 1).unwrap() > 1.0);
        let text = report(&[[60.0, 90.0, 120.0, 180.0, 600.0]], 5);
        assert!(text.contains("| one connection | 120 | 0.50 |"), "{text}");
    }
}
