//! A download of 1 GiB arrives unchanged on either address family, and the records count each of its bytes.

use integration::{Stage, judge};
use record::key;
use testkit::{Settings, run};

const BYTES: i64 = 1 << 30;

#[test]
fn a_gibibyte_arrives_unchanged_and_is_counted() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let file = stage.mesh.directory.path().join("large");
    let make = format!("head -c {BYTES} /dev/urandom > '{}' && chmod 0644 '{0}' && sha256sum < '{0}'", file.display());
    let expected = run(std::process::Command::new("bash").args(["-c", &make])).unwrap();
    for address in ["10.96.0.10", "[fd00:96::a]"] {
        let fetch = format!("set -o pipefail; curl --silent --show-error --fail http://{address}/large | sha256sum");
        assert_eq!(stage.run("client", "bash", &["-c", &fetch]).unwrap(), expected);
    }
    let records =
        stage.settled(|record| record.event() == "picket.request" && record.is(key::URL_PATH, "/large")).unwrap();
    judge::went_well(&records).unwrap();
    for family in judge::FAMILIES {
        for direction in judge::DIRECTIONS {
            let record = judge::only(&records, direction, family).unwrap();
            judge::integers(record, &[(key::HTTP_RESPONSE_BODY_SIZE, BYTES), (key::HTTP_REQUEST_BODY_SIZE, 0)])
                .unwrap();
        }
    }
}
