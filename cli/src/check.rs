//! `picket check certs`: the exit code says whether a certificate that is in use ends soon.
//!
//! Promises: whatever cannot be read is a failure and never a yes. Of the trust bundle, only the root that signs counts:
//! an old one that is about to go is what a rotation is for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use api::certs::Status;
use clap::Args;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use telemetry::Exit;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::output::{self, Format, long, table};
use crate::socket::{Answer, request};

/// What is checked.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Source {
    /// A running authority, by its admin socket.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The directory of an authority: its root.pem and issuer.pem. It need not run.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Any certificates in PEM; may be given more than once, and each counts.
    #[arg(long)]
    file: Vec<PathBuf>,
}

/// One certificate and when it is valid.
#[derive(Debug, PartialEq, Eq)]
struct Certificate {
    name: String,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    counts: bool,
}

/// The verdict, as JSON has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    ok: bool,
    time: String,
    fail_within_seconds: u64,
    certificates: Vec<Checked>,
}

/// One certificate's verdict.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    name: String,
    not_after: String,
    remaining_seconds: i64,
    /// `ok`, `ends soon`, `ended`, `not yet valid` or `not in use`.
    verdict: &'static str,
}

/// Checks and tells.
///
/// # Errors
/// When something cannot be read.
pub(crate) fn certs(fail_within: Duration, source: &Source, format: Format) -> Result<Exit> {
    let certificates = match (&source.socket, &source.dir) {
        (Some(socket), _) => of_socket(socket)?,
        (None, Some(dir)) => of_directory(dir)?,
        (None, None) => of_files(&source.file)?,
    };
    let verdict = judge(&certificates, fail_within, OffsetDateTime::now_utc())?;
    let text = match format {
        Format::Json => serde_json::to_string(&verdict)? + "\n",
        Format::Table => show(&verdict),
    };
    output::write(&text)?;
    Ok(if verdict.ok { Exit::Success } else { Exit::No })
}

fn judge(certificates: &[Certificate], fail_within: Duration, now: OffsetDateTime) -> Result<Verdict> {
    ensure!(certificates.iter().any(|certificate| certificate.counts), "there is no certificate to check");
    let judged: Vec<_> =
        certificates.iter().map(|certificate| (certificate, word(certificate, fail_within, now))).collect();
    let checked = judged.iter().map(|(certificate, verdict)| {
        Ok(Checked {
            name: certificate.name.clone(),
            not_after: certificate.not_after.format(&Rfc3339)?,
            remaining_seconds: (certificate.not_after - now).whole_seconds(),
            verdict,
        })
    });
    Ok(Verdict {
        ok: judged.iter().all(|(_, verdict)| matches!(*verdict, "ok" | "not in use")),
        time: now.replace_nanosecond(0)?.format(&Rfc3339)?,
        fail_within_seconds: fail_within.as_secs(),
        certificates: checked.collect::<Result<_>>()?,
    })
}

fn word(certificate: &Certificate, fail_within: Duration, now: OffsetDateTime) -> &'static str {
    let left = certificate.not_after - now;
    if !certificate.counts {
        "not in use"
    } else if left <= time::Duration::ZERO {
        "ended"
    } else if certificate.not_before > now {
        "not yet valid"
    } else if left < fail_within {
        "ends soon"
    } else {
        "ok"
    }
}

fn show(verdict: &Verdict) -> String {
    let mut rows = vec![["CERTIFICATE", "ENDS", "IN", "VERDICT"].map(str::to_owned).to_vec()];
    for certificate in &verdict.certificates {
        let sign = if certificate.remaining_seconds < 0 { "-" } else { "" };
        let left = long(Duration::from_secs(certificate.remaining_seconds.unsigned_abs()));
        let (name, end) = (certificate.name.clone(), certificate.not_after.clone());
        rows.push(vec![name, end, format!("{sign}{left}"), certificate.verdict.to_owned()]);
    }
    table(&rows)
}

fn of_socket(socket: &Path) -> Result<Vec<Certificate>> {
    let status: Status = match request(socket, "GET", "/certs", "")? {
        Answer::Done(json) => serde_json::from_str(&json).context("the authority's answer is not understood")?,
        Answer::Refused(reason) => bail!("the authority refuses to tell: {reason}"),
    };
    let read = |name: String, begins: &str, ends: &str, counts| {
        let at = |text| OffsetDateTime::parse(text, &Rfc3339).with_context(|| format!("{text:?} is no time"));
        Ok(Certificate { name, not_before: at(begins)?, not_after: at(ends)?, counts })
    };
    let roots = status
        .roots
        .iter()
        .map(|root| read(format!("root {}", root.id), &root.not_before, &root.not_after, root.r#use != "old"));
    let issuers = status
        .issuers
        .iter()
        .map(|issuer| read(format!("issuer {}", issuer.id), &issuer.not_before, &issuer.not_after, issuer.signing));
    roots.chain(issuers).collect()
}

fn of_directory(dir: &Path) -> Result<Vec<Certificate>> {
    let (roots, issuers) = (read(&dir.join("root.pem"))?, read(&dir.join("issuer.pem"))?);
    let parse = |der: &CertificateDer<'static>| certificate(&parsed(der)?, true);
    let mut found = issuers.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let last = issuers.last().context("issuer.pem is empty")?;
    let last = parsed(last)?;
    for root in &roots {
        let root = parsed(root)?;
        let signs = last.verify_signature(Some(root.public_key())).is_ok();
        found.push(certificate(&root, signs)?);
    }
    ensure!(found.iter().skip(issuers.len()).any(|root| root.counts), "no root of root.pem has signed issuer.pem");
    Ok(found)
}

fn of_files(files: &[PathBuf]) -> Result<Vec<Certificate>> {
    let mut found = Vec::new();
    for file in files {
        for der in read(file)? {
            found.push(certificate(&parsed(&der)?, true)?);
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let all = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    ensure!(!all.is_empty(), "{} has no certificate", path.display());
    Ok(all)
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>> {
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => bail!("a certificate has bytes after its end"),
        Err(error) => bail!("a certificate cannot be read: {error}"),
    }
}

/// Named by its subject, or, as a workload's has none, by its serial number.
fn certificate(parsed: &X509Certificate<'_>, counts: bool) -> Result<Certificate> {
    let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).context("a time beyond the year 9999");
    let subject = parsed.subject().to_string();
    Ok(Certificate {
        name: if subject.is_empty() { format!("serial {}", parsed.raw_serial_as_string()) } else { subject },
        not_before: at(parsed.validity().not_before.timestamp())?,
        not_after: at(parsed.validity().not_after.timestamp())?,
        counts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    fn valid(not_before: i64, not_after: i64, counts: bool) -> Certificate {
        Certificate { name: String::new(), not_before: at(not_before), not_after: at(not_after), counts }
    }

    #[test]
    fn an_end_within_the_limit_is_a_no() {
        let within = Duration::from_secs(100);
        let cases = [
            (valid(0, 1100, true), "ok"),
            (valid(0, 1099, true), "ends soon"),
            (valid(0, 1000, true), "ended"),
            (valid(0, 1, true), "ended"),
            (valid(1001, 5000, true), "not yet valid"),
            (valid(0, 1, false), "not in use"),
        ];
        for (certificate, expected) in cases {
            assert_eq!(word(&certificate, within, at(1000)), expected, "{certificate:?}");
        }
        let good = || valid(0, 5000, true);
        assert!(judge(&[good(), valid(0, 1, false)], within, at(1000)).unwrap().ok);
        assert!(!judge(&[good(), valid(0, 1, true)], within, at(1000)).unwrap().ok);
        assert!(judge(&[], within, at(1000)).is_err(), "nothing to check is no yes");
        assert!(judge(&[valid(0, 5000, false)], within, at(1000)).is_err());
    }
}
