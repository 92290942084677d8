//! What people and their tools ask of a running authority: its state as JSON, and the commands that change it.
//!
//! Promises: a command is done before it is answered, or refused with its reason; the JSON is that of `api::certs`.
//! Leaves to others: who may ask (a Unix socket in a private directory: `telemetry`), and the change itself (`keeper`).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::SyncSender;

use api::certs;
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use telemetry::admin::Admin;
use telemetry::chain;

use crate::alerts::{describe, time};
use crate::followers::{Followers, Known};
use crate::journal::Journal;
use crate::keeper::{Command, KeeperError};
use crate::lifecycle::{self, Rules, View, Wait};
use crate::state::{Outcome, RootUse, Rotation, Seconds, State, Subject};
use crate::tend::{Tended, now};
use crate::trust::Trust;

/// A reason of an operator is not longer than this, in bytes.
const REASON_BYTES_MAX: usize = 256;

/// What answers.
#[derive(Clone)]
pub struct Desk {
    /// The state.
    pub trust: Arc<Trust>,
    /// Who follows here.
    pub followers: Arc<Followers>,
    /// What the directory's thread knows.
    pub tended: Arc<Tended>,
    /// Wakes that thread.
    pub nudge: SyncSender<()>,
    /// Where what must be provable later is told.
    pub journal: Arc<Journal>,
}

/// Why a request is not done.
enum Refused {
    /// It cannot be read.
    Request(String),
    /// The rules say no.
    Rule(String),
    /// It failed.
    Failure(String),
}

impl From<KeeperError> for Refused {
    fn from(error: KeeperError) -> Self {
        if let KeeperError::Refused(refusal) = &error {
            return Self::Rule(refusal.to_string());
        }
        Self::Failure(chain(&error).to_string())
    }
}

impl Desk {
    /// Adds all requests to the admin server.
    pub fn serve(self, admin: Admin) -> Admin {
        let with = |admin: Admin, path, command: fn(&str) -> Result<Command, Refused>| {
            let desk = self.clone();
            admin.with_action(Method::POST, path, move |body| desk.clone().answer(move || command(&body).map(Some)))
        };
        let admin = with(admin, "/certs/rotate", |body| {
            Ok(match parse::<certs::Rotate>(body)?.what {
                certs::Rotated::Issuer => Command::RotateIssuer,
                certs::Rotated::Root => Command::RotateRoot,
            })
        });
        let admin = with(admin, "/certs/rollback", |_| Ok(Command::Rollback));
        let admin = with(admin, "/certs/acknowledge", |body| match parse::<certs::Acknowledge>(body)?.r#override {
            true => Ok(Command::Override),
            false => Err(Refused::Request("override must be true".into())),
        });
        let admin = with(admin, "/certs/drop", |body| {
            let certs::Drop { root, r#override } = parse(body)?;
            match (r#override, root.parse()) {
                (false, _) => Err(Refused::Request("override must be true".into())),
                (true, Ok(sha256)) => Ok(Command::DropRoot(sha256)),
                (true, Err(())) => {
                    Err(Refused::Request("a root is given by its SHA-256, 64 hexadecimal digits".into()))
                }
            }
        });
        let admin = with(admin, "/certs/deny", |body| {
            let certs::Deny { subject, reason } = parse(body)?;
            if reason.len() > REASON_BYTES_MAX || reason.contains(char::is_control) {
                return Err(Refused::Request(format!("a reason is one line of at most {REASON_BYTES_MAX} bytes")));
            }
            Ok(Command::Deny(read_subject(&subject)?, reason))
        });
        let admin = with(admin, "/certs/undeny", |body| {
            Ok(Command::Undeny(read_subject(&parse::<certs::Deny>(body)?.subject)?))
        });
        admin.with_action(Method::GET, "/certs", move |_body| self.clone().answer(|| Ok(None)))
    }

    /// Does it on a thread that may wait for the disk.
    async fn answer(
        self,
        command: impl FnOnce() -> Result<Option<Command>, Refused> + Send + 'static,
    ) -> (StatusCode, String) {
        let done = tokio::task::spawn_blocking(move || {
            if let Some(command) = command()? {
                self.change(&command)?;
            }
            self.status()
        });
        let done = done.await.unwrap_or_else(|_| Err(Refused::Failure("the request was dropped".into())));
        let (status, error) = match done {
            Ok(status) => return (StatusCode::OK, json(&status)),
            Err(Refused::Request(error)) => (StatusCode::BAD_REQUEST, error),
            Err(Refused::Rule(error)) => (StatusCode::CONFLICT, error),
            Err(Refused::Failure(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error),
        };
        (status, json(&certs::Failure { error }))
    }

    fn change(&self, command: &Command) -> Result<(), Refused> {
        let state = self.trust.keeper().command(command, now())?;
        tracing::info!(?command, generation = state.generation, "done for an operator");
        if let (Command::DropRoot(_), Some(dropped)) = (command, state.dropped.last()) {
            self.journal.root_dropped(dropped, &time(dropped.leaves_end));
        }
        self.trust.refresh(now()).map_err(|error| Refused::Failure(chain(&error).to_string()))?;
        // When it is full, the thread is about to look anyway.
        let _full = self.nudge.try_send(());
        Ok(())
    }

    fn status(&self) -> Result<certs::Status, Refused> {
        let now = now();
        // When the disk cannot be read, what is in use is what can be told; the thread makes an alert of it.
        let _unread = self.trust.refresh(now);
        let snapshot = self.trust.current();
        let known = self.tended.all(&self.followers, now);
        let known = known.map_err(|error| Refused::Failure(chain(&error).to_string()))?;
        let process = certs::Process { pid: std::process::id(), leader: self.tended.leads.load(Relaxed) };
        let observing_since = self.tended.observing_since.load(Relaxed);
        Ok(status(&snapshot.state, known, observing_since, self.trust.keeper().rules(), process, now))
    }
}

fn parse<T: DeserializeOwned>(body: &str) -> Result<T, Refused> {
    serde_json::from_str(body).map_err(|error| Refused::Request(error.to_string()))
}

fn json(value: &impl serde::Serialize) -> String {
    let text = serde_json::to_string(value).expect("text, numbers and lists have a JSON form");
    text + "\n"
}

fn read_subject(subject: &certs::Subject) -> Result<Subject, Refused> {
    let refused = |what: &str| Err(Refused::Request(what.into()));
    match subject {
        certs::Subject::Serial(serial) => {
            let digits: String = serial.chars().filter(|digit| *digit != ':').collect();
            let good = (1..=40).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            if good { Ok(Subject::Serial(digits.to_lowercase())) } else { refused("a serial number is hexadecimal") }
        }
        certs::Subject::Identity(identity) => match identity.parse::<identity::SpiffeId>() {
            Ok(id) => Ok(Subject::Identity(id.as_str().into())),
            Err(error) => refused(&format!("not a SPIFFE ID: {error}")),
        },
        certs::Subject::Key(key) => match key.parse() {
            Ok(digest) => Ok(Subject::Key(digest)),
            Err(()) => refused("a key is given by its SHA-256, 64 hexadecimal digits"),
        },
        certs::Subject::PodUid(uid) if uid.is_empty() || uid.len() > 64 || uid.contains(char::is_control) => {
            refused("a uid has 1 to 64 characters")
        }
        certs::Subject::PodUid(uid) => Ok(Subject::PodUid(uid.clone())),
    }
}

/// All there is to tell.
pub fn status(
    state: &State,
    known: impl Iterator<Item = Known>,
    observing_since: Seconds,
    rules: &Rules,
    process: certs::Process,
    now: Seconds,
) -> certs::Status {
    let (mut proxies, mut counts) = (Vec::new(), certs::Proxies { connected: 0, behind: 0, absent: 0 });
    for known in known {
        counts.connected += usize::from(known.connected);
        counts.behind += usize::from(known.connected && known.report.generation != state.generation);
        counts.absent += usize::from(!known.connected && now < known.report.not_after);
        // Only a rotation waits for proxies.
        if state.rotation.is_some() {
            proxies.push(known.proxy());
        }
    }
    let view = View { proxies: &proxies, observing_since };
    let waits = lifecycle::waits(state, &view, rules, now);
    certs::Status {
        trust_domain: state.trust_domain.clone(),
        time: time(now),
        generation: state.generation,
        process,
        roots: state.roots.iter().map(root).collect(),
        issuers: state.issuers.iter().map(issuer).collect(),
        rotation: state.rotation.as_ref().map(|rotation| {
            let stuck = lifecycle::is_stuck(state, rules, now);
            told_rotation(rotation, &waits, stuck)
        }),
        last_rotation: state.last_rotation.map(|ended| {
            let outcome = match ended.outcome {
                Outcome::IssuerRotated => "issuerRotated",
                Outcome::RootRotated => "rootRotated",
                Outcome::RootRolledBack => "rootRolledBack",
                Outcome::RootDropped => "rootDropped",
            };
            certs::Ended { outcome: outcome.into(), at: time(ended.at) }
        }),
        proxies: counts,
        denied: state.denied.iter().map(denied).collect(),
    }
}

fn root(root: &crate::state::Root) -> certs::Root {
    let r#use = match root.r#use {
        RootUse::Trusted => "trusted",
        RootUse::Signing => "signing",
        RootUse::Old => "old",
    };
    certs::Root {
        id: root.id,
        r#use: r#use.into(),
        sha256: root.sha256.to_string(),
        not_before: time(root.not_before),
        not_after: time(root.not_after),
        brought: root.key_file.is_none(),
    }
}

fn issuer(issuer: &crate::state::Issuer) -> certs::Issuer {
    certs::Issuer {
        id: issuer.id,
        root: issuer.root,
        signing: issuer.leaves_end.is_none(),
        sha256: issuer.sha256.to_string(),
        not_before: time(issuer.not_before),
        not_after: time(issuer.not_after),
        brought: issuer.brought,
        leaves_end: issuer.leaves_end.map(time),
    }
}

fn told_rotation(rotation: &Rotation, waits: &[Wait<'_>], stuck: bool) -> certs::Rotation {
    let is_proxy = |wait: &&Wait<'_>| matches!(wait, Wait::Acknowledgement { .. } | Wait::Renewal { .. });
    let others = waits.iter().filter(|wait| !is_proxy(wait));
    let named = waits.iter().filter(is_proxy).take(certs::WAITS_MAX);
    certs::Rotation {
        stage: rotation.stage.as_str().into(),
        from: rotation.from,
        to: rotation.to,
        started: time(rotation.started),
        since: time(rotation.since),
        overridden: rotation.overridden,
        rolling_back: rotation.rolling_back,
        stuck,
        waits: others.chain(named).map(told_wait).collect(),
        waits_for_proxies: waits.iter().filter(is_proxy).count(),
    }
}

fn told_wait(wait: &Wait<'_>) -> certs::Wait {
    let (kind, proxy, since, until) = match wait {
        Wait::Return { until } => ("return", None, None, Some(*until)),
        Wait::Acknowledgement { proxy, since, .. } => ("acknowledgement", Some(&proxy.name), Some(*since), None),
        Wait::Renewal { proxy, since } => ("renewal", Some(&proxy.name), Some(*since), None),
        Wait::Leaves { until } => ("leaves", None, None, Some(*until)),
    };
    let (since, until) = (since.map(time), until.map(time));
    certs::Wait { kind: kind.into(), proxy: proxy.cloned(), since, until, detail: describe(wait) }
}

fn denied(denied: &crate::state::Denied) -> certs::Denied {
    let subject = match &denied.subject {
        Subject::Serial(serial) => certs::Subject::Serial(serial.clone()),
        Subject::Identity(identity) => certs::Subject::Identity(identity.clone()),
        Subject::Key(key) => certs::Subject::Key(key.to_string()),
        Subject::PodUid(uid) => certs::Subject::PodUid(uid.clone()),
    };
    let (since, until) = (time(denied.since), denied.until.map(time));
    certs::Denied { subject, reason: denied.reason.clone(), since, until }
}
