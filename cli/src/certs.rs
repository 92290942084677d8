//! `picket certs`: asks the authority, and shows what it says.

use anyhow::{Context, Result};
use api::certs::{Acknowledge, Deny, Drop, Rotate, Rotated, Status, Subject};
use telemetry::Exit;

use crate::output::{Format, table, until};
use crate::socket;
use crate::{Authority, Certs};

/// Runs one command; `No` when the authority refuses it.
///
/// # Errors
/// When nobody answers.
pub(crate) fn run(command: &Certs, format: Format) -> Result<Exit> {
    let (authority, method, path, body) = match command {
        Certs::Status { authority } => (authority, "GET", "/certs", String::new()),
        Certs::Rotate { what, authority } => {
            let what = if what.root { Rotated::Root } else { Rotated::Issuer };
            (authority, "POST", "/certs/rotate", serde_json::to_string(&Rotate { what })?)
        }
        Certs::Rollback { authority } => (authority, "POST", "/certs/rollback", String::new()),
        Certs::Acknowledge { r#override, authority } => {
            (authority, "POST", "/certs/acknowledge", serde_json::to_string(&Acknowledge { r#override: *r#override })?)
        }
        Certs::Drop { root, r#override, authority } => {
            let body = Drop { root: root.clone(), r#override: *r#override };
            (authority, "POST", "/certs/drop", serde_json::to_string(&body)?)
        }
        Certs::Deny { subject, reason, authority } => (authority, "POST", "/certs/deny", deny(subject, reason)?),
        Certs::Undeny { subject, authority } => (authority, "POST", "/certs/undeny", deny(subject, "")?),
    };
    ask(authority, method, path, &body, format)
}

fn deny(subject: &crate::Subject, reason: &str) -> Result<String> {
    let crate::Subject { serial, identity, key, pod_uid } = subject;
    let subject = serial
        .clone()
        .map(Subject::Serial)
        .or(identity.clone().map(Subject::Identity))
        .or(key.clone().map(Subject::Key))
        .or(pod_uid.clone().map(Subject::PodUid))
        .context("somebody must be named")?;
    Ok(serde_json::to_string(&Deny { subject, reason: reason.to_owned() })?)
}

fn ask(authority: &Authority, method: &str, path: &str, body: &str, format: Format) -> Result<Exit> {
    socket::ask(&authority.socket(), (method, path, body), format, show)
}

fn show(status: &Status) -> String {
    let role = if status.process.leader { "leads" } else { "follows; another process leads" };
    let proxies = &status.proxies;
    let mut facts = vec![
        ("trust domain", status.trust_domain.clone()),
        ("generation", status.generation.to_string()),
        ("clock", status.time.clone()),
        ("process", format!("{} ({role})", status.process.pid)),
        ("proxies", format!("{} connected, {} behind, {} absent", proxies.connected, proxies.behind, proxies.absent)),
    ];
    if let Some(ended) = &status.last_rotation {
        facts.push(("last rotation", format!("{} at {}", ended.outcome, ended.at)));
    }
    let facts: Vec<_> = facts.into_iter().map(|(name, fact)| vec![name.to_owned(), fact]).collect();
    let parts = [table(&facts), certificates(status), rotation(status), denied(status)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn certificates(status: &Status) -> String {
    let mut rows = vec![["CERTIFICATE", "USE", "ENDS", "IN", "SHA-256"].map(str::to_owned).to_vec()];
    let whose = |brought: bool| if brought { ", brought" } else { "" };
    for root in &status.roots {
        rows.push(vec![
            format!("root {}", root.id),
            format!("{}{}", root.r#use, whose(root.brought)),
            root.not_after.clone(),
            until(&root.not_after, &status.time),
            root.sha256.clone(),
        ]);
    }
    for issuer in &status.issuers {
        let usage = match &issuer.leaves_end {
            None => format!("signing{}", whose(issuer.brought)),
            Some(end) => format!("until {end}{}", whose(issuer.brought)),
        };
        rows.push(vec![
            format!("issuer {} of root {}", issuer.id, issuer.root),
            usage,
            issuer.not_after.clone(),
            until(&issuer.not_after, &status.time),
            issuer.sha256.clone(),
        ]);
    }
    table(&rows)
}

fn rotation(status: &Status) -> String {
    let Some(rotation) = &status.rotation else { return String::new() };
    let mut text = format!(
        "root rotation from {} to {}, begun {}{}\nstage {} since {}{}{}\n",
        rotation.from,
        rotation.to,
        rotation.started,
        if rotation.rolling_back { ", rolling back" } else { "" },
        rotation.stage,
        rotation.since,
        if rotation.overridden { ", not waiting for proxies" } else { "" },
        if rotation.stuck { ", LONGER THAN IT SHOULD" } else { "" },
    );
    for wait in &rotation.waits {
        text += &format!("  waits: {}\n", wait.detail);
    }
    let named = rotation.waits.iter().filter(|wait| wait.proxy.is_some()).count();
    if rotation.waits_for_proxies > named {
        text += &format!("  and {} more proxies\n", rotation.waits_for_proxies - named);
    }
    text
}

fn denied(status: &Status) -> String {
    if status.denied.is_empty() {
        return String::new();
    }
    let mut rows = vec![["DENIED", "SINCE", "UNTIL", "REASON"].map(str::to_owned).to_vec()];
    for denied in &status.denied {
        let subject = match &denied.subject {
            Subject::Serial(serial) => format!("serial {serial}"),
            Subject::Identity(identity) => identity.clone(),
            Subject::Key(key) => format!("key {key}"),
            Subject::PodUid(uid) => format!("pod uid {uid}"),
        };
        let until = denied.until.clone().unwrap_or_else(|| "lifted".into());
        rows.push(vec![subject, denied.since.clone(), until, denied.reason.clone()]);
    }
    table(&rows)
}
