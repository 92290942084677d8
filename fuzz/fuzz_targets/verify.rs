//! Lines of OTLP JSON or of syslog messages, and bytes that should be a kept checkpoint: whatever comes, there is a verdict or an error, and nothing
//! is proven without a checkpoint that counts.

#![no_main]

use std::sync::LazyLock;

use ca::pki;
use evidence::{Evidence, Integrity};
use identity::TrustBundle;
use libfuzzer_sys::fuzz_target;

static BUNDLE: LazyLock<TrustBundle> = LazyLock::new(|| {
    let (domain, now) = ("td".parse().expect("a trust domain"), ca::tend::now());
    let (root, _) = pki::new_root(&domain, 1, 3650 * 86400, now).expect("a root");
    TrustBundle::from_pem(root.certificate.as_bytes()).expect("a bundle")
});

fuzz_target!(|bytes: &[u8]| {
    let mut evidence = Evidence::new(BUNDLE.clone()).expect("the temporary directory can be used");
    evidence.read_lines("fuzz", bytes).expect("a slice can be read");
    for report in evidence.judge(None).expect("what waits can be read again") {
        // Nobody has a key under this root.
        assert!(report.integrity != Integrity::Intact && report.checkpoints == 0);
    }
    let _none = spool::Kept::decode(bytes);
});
