//! From the end of a request to its record in the worker's buffer no memory is allocated; a batch that leaves takes what it
//! is copied into. Counted by the crate `allocation-counter`, which stands in for the allocator in this program.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{rc::Rc, time::Duration};

use allocation_counter::measure;
use proxy::{
    account::{Account, RequestAccount, TlsFacts, Upstream},
    journal::Journal,
};
use record::{Code, Decision, Direction, EstablishedBy, HttpVersion};

const REQUESTS: usize = 5_000;

fn upstream() -> Rc<Upstream> {
    let tls = TlsFacts {
        version: "1.3",
        cipher: "TLS_AES_128_GCM_SHA256",
        group: "X25519MLKEM768",
        alpn: "picket/http1".into(),
    };
    Rc::new(Upstream {
        address: ([10, 244, 0, 3], 8080).into(),
        workload: Some("orders-5f7d8c9b4-abcde".into()),
        identity: Some(("spiffe://example.org/ns/shop/sa/orders".parse().unwrap(), EstablishedBy::MutualTls)),
        tls: Some(tls),
        leaf: None,
        decision: Decision::Meshed,
        reason: "proved",
        connect: Duration::from_micros(100),
        handshake: Some(Duration::from_micros(900)),
    })
}

fn requests(connection: &Rc<Account>, upstream: &Rc<Upstream>) -> Vec<RequestAccount> {
    let open = |_| {
        let (path, authority) = ("/api/v1/orders/4711", Some("orders.shop:8080"));
        let mut request = RequestAccount::open(connection, "GET", path, authority, HttpVersion::Http11);
        request.note_upstream(upstream);
        request.status.set(Some(200));
        request
    };
    (0..REQUESTS).map(open).collect()
}

#[test]
fn the_end_of_a_request_allocates_nothing() {
    let (sender, mut receiver) = export::queue(64 << 20);
    let journal = Journal::new(vec![sender], std::sync::Arc::default(), 1);
    let (source, destination) = (([10, 0, 0, 1], 40_000).into(), ([10, 96, 0, 7], 80).into());
    let (connection, upstream) =
        (Account::open(Rc::clone(&journal), Direction::Outbound, source, destination), upstream());
    // Until the buffer and the queue have grown.
    requests(&connection, &upstream).iter_mut().for_each(|request| request.finish(Code::Ok, None));
    journal.flush();
    let mut batches = std::iter::from_fn(|| receiver.try_recv()).count() as u64;
    let mut ended = requests(&connection, &upstream);
    let (first, rest) = ended.split_at_mut(100);
    let counted = measure(|| first.iter_mut().for_each(|request| request.finish(Code::Ok, None)));
    assert_eq!(counted.count_total, 0, "{counted:?}");
    let counted = measure(|| rest.iter_mut().for_each(|request| request.finish(Code::Ok, None)));
    assert!(batches > 10);
    batches = std::iter::from_fn(|| receiver.try_recv()).count() as u64;
    assert!(counted.count_total <= 2 * batches, "{counted:?} for {batches} batches");
}
