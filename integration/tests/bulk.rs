//! A download of 1 GiB arrives unchanged, and the records count each of its bytes.

use integration::Stage;
use record::key;
use testkit::{Settings, run};

const BYTES: i64 = 1 << 30;

#[test]
fn a_gibibyte_arrives_unchanged_and_is_counted() {
    let stage = Stage::start(&Settings::default()).unwrap();
    let file = stage.mesh.directory.path().join("large");
    let make = format!("head -c {BYTES} /dev/urandom > '{}' && chmod 0644 '{0}' && sha256sum < '{0}'", file.display());
    let expected = run(std::process::Command::new("bash").args(["-c", &make])).unwrap();
    let fetch = "set -o pipefail; curl --silent --show-error --fail http://10.96.0.10/large | sha256sum";
    assert_eq!(stage.run("client", "bash", &["-c", fetch]).unwrap(), expected);
    let records =
        stage.records(2, |record| record.event() == "picket.request" && record.is(key::URL_PATH, "/large")).unwrap();
    for record in &records {
        assert_eq!(record.integer(key::HTTP_RESPONSE_BODY_SIZE), Some(BYTES));
        assert_eq!(record.text(key::CODE), Some("ok"));
    }
    assert_eq!(records.len(), 2);
}
