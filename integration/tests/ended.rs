//! Leaves, the issuer, and at last the root have ended under proxies that run: each error names which certificate ended
//! when and what the clock says, and what docs/guide/certificates.md says leads out ("Everything has ended").

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::time::Duration;

use integration::ring::{PODS, Ring, Spoken};
use integration::{DEADLINE, ring};
use record::key;
use serde_json::Value;
use testkit::{Clock, Record, Stream, until};
use time::OffsetDateTime;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// Longer than the longest pause between two attempts of a proxy, on a loaded machine.
const NEXT_ATTEMPT: Duration = Duration::from_secs(90);

struct Test {
    ring: Ring,
    clock: Clock,
}

impl Test {
    /// Every pod reaches the next one over a new connection.
    fn is_served(&self) {
        for (from, pod) in PODS.into_iter().enumerate() {
            self.ring.exchange(from, 1).unwrap();
            let url = format!("http://{}/hello.txt", self.ring.next(from, Spoken::Http1));
            let got = self.ring.run(pod, "curl", &["--silent", "--show-error", "--fail", &url]).unwrap();
            assert_eq!(got, ring::HELLO);
        }
    }

    /// The serial number of a proxy's certificate, as its log tells.
    fn serial(&self, pod: &str) -> String {
        let log = self.ring.mesh.pod(pod).unwrap().proxy.as_ref().unwrap().output(Stream::Err).unwrap();
        let line = log.lines().rfind(|line| line.contains("new certificate identity=")).unwrap().to_owned();
        line.split_once("serial=").unwrap().1.split(' ').next().unwrap().to_owned()
    }

    /// Moves the clock, and waits until every proxy says that its certificate has ended, when, and what the clock says.
    fn moves_to(&self, ahead: Duration) {
        let serials = PODS.map(|pod| self.serial(pod));
        self.clock.set_ahead(ahead).unwrap();
        let today = (OffsetDateTime::now_utc() + ahead).date();
        for (pod, serial) in PODS.into_iter().zip(serials) {
            let ended = format!("the certificate {serial} of spiffe://demo.picket.dev/ns/demo/sa/{pod} ended 20");
            let clock = format!("this machine's clock says {today}");
            self.says(pod, 503, &[&ended, &clock, "no new certificate: "]);
        }
    }

    /// Waits until `/readyz` of a proxy has this status and says all parts.
    fn says(&self, pod: &str, status: u16, parts: &[&str]) {
        let mut last = (0, String::new());
        until("what /readyz says", NEXT_ATTEMPT, || {
            last = self.ring.mesh.admin(pod, "/readyz").unwrap_or_default();
            Ok((last.0 == status && parts.iter().all(|part| last.1.contains(part))).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{pod}: {error:#}: {last:?} is not {status} {parts:?}"));
    }

    /// Waits until every proxy is ready and follows the CA again, and every pod is served.
    fn recovers(&self) {
        for pod in PODS {
            self.says(pod, 200, &[]);
            until("the trust bundle", NEXT_ATTEMPT, || {
                Ok((self.ring.metrics(pod, "picket_trust_following")?[0].1 == 1).then_some(()))
            })
            .unwrap();
        }
        self.is_served();
        let status = self.status();
        assert_eq!((&status["proxies"]["connected"], &status["proxies"]["behind"]), (&3.into(), &0.into()), "{status}");
    }

    fn status(&self) -> Value {
        self.ring.certs_done(&["status"]).unwrap()
    }

    /// A new connection is refused by name, and says why.
    fn is_refused(&self) {
        let seen = self.ring.collector.records().len();
        assert!(self.ring.exchange(0, 1).is_err());
        let is_it =
            |record: &&Record| record.event() == "picket.connection" && record.is(key::CODE, "credentials_unavailable");
        let refused = until("the record of the refusal", DEADLINE, || {
            Ok(self.ring.collector.records()[seen..].iter().find(is_it).cloned())
        });
        let refused = refused.unwrap();
        let detail = refused.text(key::DETAIL).unwrap_or_default();
        assert!(detail.contains(" ended 20") && detail.contains("this machine's clock says 20"), "{refused}");
    }

    fn alert(&self, name: &str, parts: &[&str]) {
        let is_it = |record: &Record| {
            let detail = record.text(key::DETAIL).unwrap_or_default();
            record.is(key::ALERT_NAME, name) && parts.iter().all(|part| detail.contains(part))
        };
        let found = |records: &[Record]| records.iter().any(is_it);
        self.ring.collector.wait_until(name, DEADLINE, found).unwrap();
    }
}

#[test]
fn what_has_ended_is_named_and_the_guide_leads_out() {
    let clock = Clock::new().unwrap();
    let test = Test { ring: Ring::start(Vec::new(), Some(clock.clone())).unwrap(), clock };
    test.is_served();
    let first = test.status();

    // Leaves: proxies need only their tokens.
    test.moves_to(25 * HOUR);
    test.is_refused();
    test.ring.mesh.renew_tokens().unwrap();
    test.recovers();
    let status = test.status();
    assert_eq!((&status["roots"], &status["issuers"]), (&first["roots"], &first["issuers"]));

    // The issuer: the CA makes a new one by itself.
    test.moves_to(400 * DAY);
    test.ring.mesh.renew_tokens().unwrap();
    test.recovers();
    let status = test.status();
    assert_eq!(status["roots"], first["roots"], "nobody needs another bundle");
    assert_ne!(status["issuers"], first["issuers"]);

    // The root: a person looks at the clock, rotates it, and gives the new bundle to the proxies.
    test.moves_to(4000 * DAY);
    test.is_refused();
    let today = (OffsetDateTime::now_utc() + 4000 * DAY).date().to_string();
    for alert in ["issuer_ending", "root_ending"] {
        test.alert(alert, &[" ended 20", &format!("this machine's clock says {today}")]);
    }
    test.ring.mesh.renew_tokens().unwrap();
    let (code, reason) = test.ring.certs(&["rotate", "--issuer"]).unwrap();
    assert!(code == Some(1) && reason.contains("root 1 has ended"), "{code:?} {reason}");
    assert_eq!(test.status()["generation"], status["generation"], "nothing happens by itself");
    test.ring.certs_done(&["rotate", "--root"]).unwrap();
    until("the rotation's end", NEXT_ATTEMPT, || {
        if test.status()["rotation"].is_null() {
            return Ok(Some(()));
        }
        // It may have ended just now.
        test.ring.certs(&["acknowledge", "--override"])?;
        Ok(None)
    })
    .unwrap();
    let status = test.status();
    assert!(status["roots"].as_array().unwrap().len() == 1 && status["roots"][0]["id"] != 1, "{status}");
    for pod in PODS {
        test.says(pod, 503, &["no new certificate: "]);
    }
    let file = test.ring.mesh.trust_bundle();
    fs::copy(test.ring.ca_dir().join("root.pem"), file).unwrap();
    test.recovers();
}
