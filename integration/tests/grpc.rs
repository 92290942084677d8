//! gRPC through two proxies, by grpcio on both ends: unary and bidirectional calls with trailers on both address families,
//! and the status of each call, of failing ones too, in its record.

use integration::{Stage, judge, peer, python, service};
use record::key;
use testkit::{Settings, run};

const TARGET: u16 = 50051;
/// Bytes in front of each message: a flag and a length.
const FRAME: i64 = 5;

/// Method, status, bytes of the request's body, bytes of the answer's body: as `grpc_client.py` calls them. Where nobody
/// reads the request, the answer may come before it.
const CALLS: [(&str, i64, Option<i64>, i64); 5] = [
    ("Unary", 0, Some(FRAME + 1000), FRAME + 1006),
    ("Chat", 0, Some(5 * (FRAME + 1)), 5 * (FRAME + 6)),
    ("Refuse", 9, Some(FRAME), 0),
    ("Fail", 15, Some(FRAME), FRAME + 3),
    ("Missing", 12, None, 0),
];

#[test]
fn calls_of_every_kind_are_served_on_both_families_and_their_status_is_recorded() {
    let stage = Stage::with_services(&Settings::default(), &[service("peer", 12, 80, TARGET, None)]).unwrap();
    let mut command = stage.command("server", python().unwrap()).unwrap();
    command.arg(peer("grpc_server.py")).arg(TARGET.to_string());
    let _server = stage.serve("grpc", command, TARGET).unwrap();
    for address in ["10.96.0.12:80", "[fd00:96::c]:80"] {
        let mut client = stage.command("client", python().unwrap()).unwrap();
        run(client.arg(peer("grpc_client.py")).arg(address)).unwrap();
    }
    let calls = stage.settled(|record| judge::is_request(record) && record.is(key::RPC_SYSTEM, "grpc")).unwrap();
    judge::went_well(&calls).unwrap();
    assert_eq!(calls.len(), CALLS.len() * 4);
    for (method, status, sent, received) in CALLS {
        let method = format!("picket.test.Peer/{method}");
        let of_method: Vec<_> = calls.iter().filter(|record| record.is(key::RPC_METHOD, &method)).cloned().collect();
        for family in judge::FAMILIES {
            for direction in judge::DIRECTIONS {
                let record = judge::only(&of_method, direction, family).unwrap();
                let numbers = [
                    (key::RPC_GRPC_STATUS_CODE, status),
                    (key::HTTP_RESPONSE_STATUS_CODE, 200),
                    (key::HTTP_RESPONSE_BODY_SIZE, received),
                ];
                judge::integers(record, &numbers).unwrap();
                if let Some(sent) = sent {
                    judge::integers(record, &[(key::HTTP_REQUEST_BODY_SIZE, sent)]).unwrap();
                }
                let texts = [(key::HTTP_REQUEST_METHOD, "POST"), (key::NETWORK_PROTOCOL_VERSION, "2")];
                judge::texts(record, &texts).unwrap();
            }
        }
    }
}
