//! Each issuance, refusal and alert arrives at a collector, and says what there is to know.

use std::net::TcpListener;

use api::istio_ca::IstioCertificateRequest;
use api::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use ca::state::Stage;
use record::key;
use testkit::{Collector, Record};

use crate::support::proxy::{Proxy, channel, key_and_csr, store, with_token};
use crate::support::{Place, Running, WAIT, command, until_async};

fn find(records: &[Record], event: &str, attribute: &str, value: &str) -> Option<Record> {
    records.iter().find(|record| record.event() == event && record.is(attribute, value)).cloned()
}

#[tokio::test]
async fn what_the_authority_does_is_recorded() {
    let place = Place::new("records");
    let collector = Collector::serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let export = format!(
        "leafLifetime: 1h\nissuer: {{lifetime: 2h}}\nroot: {{lifetime: 3h, rotateBelow: 0s}}\n\
         export: {{endpoint: 'http://{}', resource: {{k8s.node.name: here}}}}",
        collector.address()
    );
    let mut running = Running::start(&place.config("ca", "127.0.0.1:0", &export), &[]);
    let channel = channel(running.address, &store(&place.root())).await.unwrap();
    let mut client = IstioCertificateServiceClient::new(channel);
    let (_, csr) = key_and_csr();
    let asked = IstioCertificateRequest { csr, ..Default::default() };
    client.create_certificate(with_token(asked.clone(), &place.pod_token("web-0"))).await.unwrap();
    client.create_certificate(with_token(asked.clone(), "x.y.z")).await.unwrap_err();
    let wrong = IstioCertificateRequest { csr: "nonsense".into(), ..asked };
    client.create_certificate(with_token(wrong, &place.pod_token("web-0"))).await.unwrap_err();
    let proxy = Proxy::start(&place, &[running.address], "ahead").await;
    proxy.set_clock_ahead(3600);
    until_async("the alert", || running.try_line("clock_skew")).await;
    drop(proxy);
    running.signal("TERM");
    until_async("the end", || running.ended()).await;

    let all = collector
        .wait_until("the alert", WAIT, |all| find(all, "picket.alert", key::ALERT_NAME, "clock_skew").is_some());
    let all = all.unwrap();
    let issued = find(&all, "picket.issuance", key::ISSUANCE_RESULT, "issued").unwrap();
    let expected = [
        (key::CERTIFICATE_IDENTITY, "spiffe://demo.picket.dev/ns/demo/sa/web"),
        (key::K8S_NAMESPACE, "demo"),
        (key::SERVICE_ACCOUNT, "web"),
        (key::K8S_POD_NAME, "web-0"),
        (key::K8S_POD_UID, "uid-of-web-0"),
        (key::SOURCE_ADDRESS, "127.0.0.1"),
    ];
    for (attribute, value) in expected {
        assert!(issued.is(attribute, value), "{attribute}: {:?}", issued.text(attribute));
    }
    let state = place.state();
    assert!(issued.is(key::CERTIFICATE_ISSUER, &state.signing().sha256.to_string()));
    assert_eq!(issued.text(key::CERTIFICATE_SERIAL).unwrap().len(), 32);
    for attribute in [key::CERTIFICATE_NOT_AFTER, key::CERTIFICATE_KEY, key::LOG_RECORD_UID] {
        assert!(issued.text(attribute).is_some(), "{attribute}");
    }
    let stranger = find(&all, "picket.issuance", key::ERROR_TYPE, "token_malformed").unwrap();
    assert!(stranger.text(key::K8S_NAMESPACE).is_none() && stranger.is(key::ISSUANCE_RESULT, "refused"));
    let malformed = find(&all, "picket.issuance", key::ERROR_TYPE, "csr_malformed").unwrap();
    assert!(malformed.is(key::K8S_POD_NAME, "web-0"), "who sent it is known");
    assert!(malformed.text(key::DETAIL).unwrap().contains("not PEM"));
    let skew = find(&all, "picket.alert", key::ALERT_NAME, "clock_skew").unwrap();
    assert!(skew.is(key::ALERT_STATE, "firing"));
    for clock in [key::CLOCK_AUTHORITY, key::CLOCK_PROXY] {
        assert!(skew.text(clock).unwrap().ends_with('Z'), "{clock}");
    }
    assert!(all.iter().all(|record| !format!("{record:?}").contains("Bearer")));
}

#[tokio::test]
async fn a_root_that_an_operator_drops_is_recorded() {
    let place = Place::new("records-drop");
    let collector = Collector::serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let config = format!(
        "leafLifetime: 1h\nrotation: {{absenceWindow: 0s}}\nexport: {{endpoint: 'http://{}'}}",
        collector.address()
    );
    let _running = Running::start(&place.config("ca", "127.0.0.1:0", &config), &[]);
    let (old, socket) = (place.state().signing_root().sha256, place.socket("ca"));
    command(&socket, "/certs/rotate", r#"{"what":"root"}"#);
    let signs = || (place.state().rotation?.stage == Stage::Sign).then_some(());
    until_async("the new root to sign", signs).await;
    command(&socket, "/certs/drop", &format!(r#"{{"root":"{old}","override":true}}"#));
    let told = |all: &[Record]| {
        let dropped = find(all, "picket.issuance", key::ISSUANCE_RESULT, "root_dropped")?;
        Some((dropped, find(all, "picket.alert", key::ALERT_NAME, "root_dropped")?))
    };
    let all = collector.wait_until("record and alert", WAIT, |all| told(all).is_some()).unwrap();
    let (dropped, alert) = told(&all).unwrap();
    assert!(dropped.is(key::CERTIFICATE_ISSUER, &old.to_string()));
    assert!(alert.is(key::ALERT_STATE, "firing") && alert.is(key::ALERT_SUBJECT, "root 1"));
    assert!(alert.text(key::DETAIL).unwrap().contains(&old.to_string()));
}
