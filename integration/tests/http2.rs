//! HTTP/2 with prior knowledge through two proxies, by nghttp and h2load against nginx: served on both address families,
//! and each of many concurrent streams is one record on both sides.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use integration::{Stage, judge, service};
use record::key;
use testkit::{Process, Record, Settings};

const TARGET: u16 = 8081;
const ADDRESSES: [(&str, &str); 2] = [("ipv4", "10.96.0.11"), ("ipv6", "[fd00:96::b]")];
/// What nginx serves.
const BODY: &str = "hello from the server\n";
const REQUESTS: usize = 2000;

fn stage() -> (Stage, Process) {
    let stage = Stage::with_services(&Settings::default(), &[service("h2", 11, 80, TARGET, None)]).unwrap();
    // By default nginx retires a connection after 1000 requests, while more are on their way.
    let nginx = stage.nginx(TARGET, "http2", "").unwrap();
    (stage, nginx)
}

fn of_service(record: &Record) -> bool {
    record.is(key::SERVICE, "h2.demo") || record.integer(key::DESTINATION_PORT) == Some(TARGET.into())
}

/// What every one of these requests' records says.
fn check_requests(requests: &[Record], path: &str) {
    judge::went_well(requests).unwrap();
    for record in requests {
        let texts = [
            (key::HTTP_REQUEST_METHOD, "GET"),
            (key::URL_PATH, path),
            (key::NETWORK_PROTOCOL_NAME, "http"),
            (key::NETWORK_PROTOCOL_VERSION, "2"),
            (key::TLS_NEXT_PROTOCOL, "picket/h2"),
        ];
        judge::texts(record, &texts).unwrap();
        let numbers = [
            (key::HTTP_RESPONSE_STATUS_CODE, 200),
            (key::HTTP_REQUEST_BODY_SIZE, 0),
            (key::HTTP_RESPONSE_BODY_SIZE, BODY.len() as i64),
        ];
        judge::integers(record, &numbers).unwrap();
    }
}

#[test]
fn nghttp_is_served_on_both_families_and_recorded_on_both_sides() {
    let (stage, _nginx) = stage();
    for (_, address) in ADDRESSES {
        assert_eq!(stage.run("client", "nghttp", &[&format!("http://{address}/hello.txt?secret=1")]).unwrap(), BODY);
    }
    let records = stage.settled(of_service).unwrap();
    let requests: Vec<_> = records.iter().filter(|record| judge::is_request(record)).cloned().collect();
    check_requests(&requests, "/hello.txt");
    for family in judge::FAMILIES {
        for direction in judge::DIRECTIONS {
            judge::only(&requests, direction, family).unwrap();
        }
    }
    let outbound: Vec<_> = records.into_iter().filter(|record| record.is(key::DIRECTION, "outbound")).collect();
    assert_eq!(outbound.iter().filter(|record| judge::is_connection(record)).count(), 2);
    judge::connections_hold_their_requests(&outbound).unwrap();
}

#[test]
fn each_of_many_concurrent_streams_is_one_record_on_both_sides() {
    let (stage, _nginx) = stage();
    for (family, address) in ADDRESSES {
        // Not in the URL: of an IPv6 address there, h2load makes an `:authority` without brackets, which is refused.
        let to = format!("--connect-to={address}:80");
        let load = ["-n", &REQUESTS.to_string(), "-c", "4", "-m", "16", &to, "http://h2.demo/hello.txt"];
        let report = stage.run("client", "h2load", &load).unwrap();
        let all = format!("requests: {REQUESTS} total, {REQUESTS} started, {REQUESTS} done, {REQUESTS} succeeded");
        assert!(report.contains(&all), "{report}");
        let records = stage.settled(|record| of_service(record) && record.is(key::NETWORK_TYPE, family)).unwrap();
        let of = |direction: &str| judge::of(&records, direction, family).cloned().collect::<Vec<_>>();
        for direction in judge::DIRECTIONS {
            let requests: Vec<_> = of(direction).into_iter().filter(judge::is_request).collect();
            assert_eq!(requests.len(), REQUESTS, "{family} {direction}");
            check_requests(&requests, "/hello.txt");
        }
        let outbound = of("outbound");
        assert_eq!(outbound.iter().filter(|record| judge::is_connection(record)).count(), 4, "{family}");
        judge::connections_hold_their_requests(&outbound).unwrap();
    }
}
