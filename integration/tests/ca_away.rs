//! The CA is away: proxies go on with what they have, say from the first failed renewal on what ends when, refuse by name
//! what they cannot serve any more, and recover by themselves. A restart finds the last good trust again.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{fs, time::Duration};

use integration::{DEADLINE, Stage, WEB_PORT, WEB_TARGET, pki::other_bundle, service};
use record::key;
use testkit::{Clock, Record, Settings, Stream, until};
use time::{OffsetDateTime, macros::format_description};

const HELLO: &str = "hello from the server\n";
const HOUR: Duration = Duration::from_secs(3600);
/// Longer than the longest pause between two attempts of a proxy, on a loaded machine.
const NEXT_ATTEMPT: Duration = Duration::from_secs(60);

fn stage(settings: &Settings) -> Stage {
    // Through `opaque` each connection is a handshake of its own.
    Stage::with_services(settings, &[service("opaque", 21, WEB_PORT, WEB_TARGET, Some("tcp"))]).unwrap()
}

/// What a client in the pod `client` gets through each of the two services.
fn gets(stage: &Stage, number: u8) -> String {
    let url = format!("http://10.96.0.{number}/hello.txt");
    stage.run("client", "curl", &["--silent", "--show-error", "--fail", "--max-time", "10", &url]).unwrap_or_default()
}

fn is_served(stage: &Stage) {
    assert_eq!((gets(stage, 10), gets(stage, 21)), (HELLO.to_owned(), HELLO.to_owned()));
}

/// Waits until a proxy follows the CA (or not) with a generation of its trust bundle in force, and gives that.
fn generation(stage: &Stage, pod: &str, followed: bool) -> u64 {
    until("the trust bundle", NEXT_ATTEMPT, || {
        // A process that has just begun does not listen yet.
        let Ok(following) = stage.metric(pod, "picket_trust_following") else { return Ok(None) };
        let generation = stage.metric(pod, "picket_trust_generation")?;
        Ok((following == u64::from(followed) && generation > 0).then_some(generation))
    })
    .unwrap()
}

fn identity_of(pod: &str) -> String {
    format!("spiffe://demo.picket.dev/ns/demo/sa/{pod}")
}

/// The serial number of a proxy's certificate, as its log tells.
fn serial(stage: &Stage, pod: &str) -> String {
    let log = log(stage, pod);
    let line = log.lines().rfind(|line| line.contains("new certificate identity=")).unwrap();
    line.split_once("serial=").unwrap().1.split(' ').next().unwrap().to_owned()
}

fn log(stage: &Stage, pod: &str) -> String {
    stage.mesh.pod(pod).unwrap().proxy.as_ref().unwrap().output(Stream::Err).unwrap()
}

/// Serial number and end of the certificate that the server's proxy shows, as openssl reads them.
fn shown_by_the_server(stage: &Stage) -> (String, String) {
    let script = format!(
        "openssl s_client -connect {}:{WEB_TARGET} -alpn picket/http1 </dev/null 2>/dev/null \
         | openssl x509 -noout -serial -enddate -dateopt iso_8601",
        stage.mesh.pod("server").unwrap().pod.ipv4
    );
    let text = stage.run("stranger", "sh", &["-c", &script]).unwrap();
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    (value("serial=").to_lowercase(), value("notAfter=").replace(' ', "T"))
}

/// Waits until a proxy is not ready and says all of `parts`.
fn is_not_ready(stage: &Stage, pod: &str, parts: &[&str]) {
    let mut last = (0, String::new());
    until("what /readyz says", NEXT_ATTEMPT, || {
        // A process that has just begun does not listen yet.
        last = stage.mesh.admin(pod, "/readyz").unwrap_or_default();
        Ok((last.0 == 503 && parts.iter().all(|part| last.1.contains(part))).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {last:?} does not say {parts:?}"));
}

/// The alert of the failing renewal, about the certificate of this identity.
fn alerts(stage: &Stage, count: usize, state: &str, identity: &str) -> Vec<Record> {
    let matches = |record: &Record| {
        record.event() == "picket.alert"
            && record.is(key::ALERT_NAME, "certificate_renewal_failing")
            && record.is(key::ALERT_STATE, state)
            && record.text(key::DETAIL).is_some_and(|detail| detail.contains(identity))
    };
    stage.records(count, matches).unwrap()
}

fn says(record: &Record, parts: &[&str]) {
    let detail = record.text(key::DETAIL).unwrap_or_default();
    assert!(parts.iter().all(|part| detail.contains(part)), "{record} does not say {parts:?}");
}

/// Waits for a connection that ended with credentials_unavailable, and holds its detail against `parts`.
fn is_refused(stage: &Stage, direction: &str, parts: &[&str]) {
    let refused = stage.records(1, |record| {
        record.event() == "picket.connection"
            && record.is(key::DIRECTION, direction)
            && record.is(key::CODE, "credentials_unavailable")
    });
    let refused = refused.unwrap();
    says(&refused[0], parts);
    assert!(refused[0].is(key::CLOSED_BY, "us") && refused[0].is(key::DECISION, "refused"), "{}", refused[0]);
}

/// 20 h pass by the wall clock; the machine's timers do not see them, as when a machine sleeps.
#[test]
fn a_proxy_serves_for_20_hours_without_the_ca_and_says_what_ends_when() {
    let clock = Clock::new().unwrap();
    let mut stage = stage(&Settings { clock: Some(clock.clone()), ..Settings::default() });
    is_served(&stage);
    let (shown, end) = shown_by_the_server(&stage);
    let serials = [serial(&stage, "client"), serial(&stage, "server")];
    assert_eq!(shown, serials[1], "the log and openssl name the same certificate");
    let began = OffsetDateTime::now_utc();
    stage.mesh.kill_ca().unwrap();

    for hours in 1..=20 {
        clock.set_ahead(HOUR * hours).unwrap();
        is_served(&stage);
        if hours == 16 {
            // Renewal is due between 60 and 66 % of 24 h: the first to fail was just before.
            for (pod, serial) in ["client", "server"].into_iter().zip(&serials) {
                let identity = identity_of(pod);
                let alert = alerts(&stage, 1, "firing", &identity).remove(0);
                let unreachable = "the CA cannot be reached";
                says(&alert, &[unreachable, &format!("the certificate {serial} of {identity} ends ")]);
                let hour = format_description!("[year]-[month]-[day]T[hour]:");
                // The test itself takes part of an hour.
                let clocks: Vec<_> = (14..=17)
                    .map(|hours| (began + HOUR * hours).format(hour).unwrap())
                    .map(|hour| format!("this machine's clock says {hour}"))
                    .collect();
                let detail = alert.text(key::DETAIL).unwrap();
                assert!(clocks.iter().any(|clock| detail.contains(clock)), "{detail} does not say {clocks:?}");
                assert_eq!(stage.mesh.admin(pod, "/readyz").unwrap().0, 200, "it serves");
            }
            says(&alerts(&stage, 1, "firing", &identity_of("server"))[0], &[&format!("ends {end}")]);
        }
    }
    for pod in ["client", "server"] {
        assert_eq!(alerts(&stage, 1, "firing", &identity_of(pod)).len(), 1, "an alert is said once");
        assert!(stage.metric(pod, "picket_certificate_renewals_total{result=\"failed\"}").unwrap() > 0);
    }

    clock.set_ahead(HOUR * 25).unwrap();
    let ended = |pod: &str, serial: &str| format!("the certificate {serial} of {} ended ", identity_of(pod));
    let [client, server] = [ended("client", &serials[0]), ended("server", &serials[1]) + &end];
    let clock_says = format!("this machine's clock says {}", (began + HOUR * 25).date());
    is_not_ready(&stage, "client", &[&client, &clock_says, "no new certificate: the CA cannot be reached"]);
    is_not_ready(&stage, "server", &[&server, &clock_says, "no new certificate: the CA cannot be reached"]);
    assert_eq!(gets(&stage, 21), "", "a new connection is refused");
    is_refused(&stage, "outbound", &[&client, &clock_says]);
    // Whoever dials the server learns no more from it than that it closes.
    let address = format!("{}:{WEB_TARGET}", stage.mesh.pod("server").unwrap().pod.ipv4);
    let arguments = ["10", "openssl", "s_client", "-alpn", "picket/http1", "-connect", &address];
    assert!(stage.run("stranger", "timeout", &arguments).is_err());
    is_refused(&stage, "inbound", &[&server, &clock_says]);

    stage.mesh.restart_ca().unwrap();
    for pod in ["client", "server"] {
        generation(&stage, pod, true);
        until("the recovery", NEXT_ATTEMPT, || Ok((stage.mesh.admin(pod, "/readyz")?.0 == 200).then_some(()))).unwrap();
        let over = alerts(&stage, 1, "resolved", &identity_of(pod)).remove(0);
        says(&over, &["a new certificate came", &serial(&stage, pod)]);
    }
    is_served(&stage);
}

/// The next process has the last good roots and no certificate; then what it finds is damaged, or the operators' file is
/// another one.
#[test]
fn a_restart_finds_the_last_good_trust_and_recovers_when_the_ca_is_back() {
    let mut stage = stage(&Settings::default());
    is_served(&stage);
    let (lost, identity) = (serial(&stage, "client"), identity_of("client"));
    let in_force = generation(&stage, "client", true);
    stage.mesh.kill_ca().unwrap();
    stage.mesh.restart_proxy("client", |_| Ok(())).unwrap();
    let parts = [&format!("{lost} of {identity} would have been valid until ") as &str, "this machine's clock says "];
    is_not_ready(&stage, "client", &[&parts[..], &["no new certificate: the CA cannot be reached"]].concat());
    let saved = "the trust that was saved last is in force";
    assert!(log(&stage, "client").contains(saved), "{}", log(&stage, "client"));
    assert_eq!(generation(&stage, "client", false), in_force);
    says(&alerts(&stage, 1, "firing", &identity)[0], &parts);
    assert_eq!(gets(&stage, 21), "");
    is_refused(&stage, "outbound", &parts);
    let arguments = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code} %header{picket-error}"];
    let answer = stage.run("client", "curl", &[&arguments[..], &["http://10.96.0.10/hello.txt"]].concat()).unwrap();
    assert_eq!(answer, "503 credentials_unavailable");

    stage.mesh.restart_ca().unwrap();
    stage.mesh.wait_ready("client").unwrap();
    let renewed = serial(&stage, "client");
    assert_ne!(renewed, lost);
    says(&alerts(&stage, 1, "resolved", &identity)[0], &["a new certificate came", &renewed]);
    is_served(&stage);
    assert_eq!(generation(&stage, "client", true), in_force);

    // What was saved is damaged: it is reported, and the file that operators give is used.
    stage
        .mesh
        .restart_proxy("client", |mesh| Ok(fs::write(mesh.directory.path().join("client/trust.json"), "{\"trust")?))
        .unwrap();
    stage.mesh.wait_ready("client").unwrap();
    let said = log(&stage, "client");
    assert!(said.contains("the saved trust cannot be read, and is not used") && !said.contains(saved), "{said}");
    is_served(&stage);

    // The file is of no use: what was saved is.
    let (file, roots) = (stage.mesh.trust_bundle(), fs::read_to_string(stage.mesh.trust_bundle()).unwrap());
    stage.mesh.restart_proxy("client", |_| Ok(fs::write(&file, "no roots\n")?)).unwrap();
    stage.mesh.wait_ready("client").unwrap();
    let said = log(&stage, "client");
    assert!(said.contains(saved) && said.contains("keeping the roots that were good last"), "{said}");
    is_served(&stage);

    // The file has other roots than when the trust was saved: it wins, and by it the CA is a stranger.
    let other = other_bundle(&stage.mesh.directory).unwrap();
    stage.mesh.restart_proxy("client", |_| Ok(fs::copy(other, &file).map(drop)?)).unwrap();
    is_not_ready(
        &stage,
        "client",
        &["no new certificate: ", "who answers for the CA was refused: the peer's certificate does not lead to a root"],
    );
    assert!(log(&stage, "client").contains("the roots of the file are in force"));
    fs::write(&file, roots).unwrap();
    stage.mesh.wait_ready("client").unwrap();
    generation(&stage, "client", true);
    until("the roots of the file in both proxies", DEADLINE, || {
        Ok((gets(&stage, 21) == HELLO && gets(&stage, 10) == HELLO).then_some(()))
    })
    .unwrap();
}
