//! SIGTERM under load, to the proxy of either side: what is in flight ends well, what outlives the time is cut, and
//! everything has its record.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use integration::{DEADLINE, Stage, Wire, accept, judge, service};
use record::key;
use testkit::{Process, Record, Settings, until};

const LOAD: u16 = 8083;
const SLOW: u16 = 7083;
const OPAQUE: u16 = 7084;
const THREADS: usize = 8;
/// Longer than the time that these tests give, shorter than the 5 s that the export may take when the collector does not
/// answer: here it does.
const PROMPT: Duration = Duration::from_secs(4);
/// Answers that must have come before the signal.
const BEFORE: usize = 400;

fn stage(settings: &Settings) -> Stage {
    let services = [
        service("load", 19, 80, LOAD, Some("http")),
        service("slow", 20, 80, SLOW, Some("http")),
        service("opaque", 21, 80, OPAQUE, Some("tcp")),
    ];
    Stage::with_services(settings, &services).unwrap()
}

fn at(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 96, 0, number], 80))
}

/// What became of each request, by its path: the status of the answer, or none.
type Outcomes = BTreeMap<String, Option<u16>>;

/// Sends one request after the other, each with a path of its own, until nobody takes connections or a proxy answers in
/// place of the server.
fn send(stage: &Stage, thread: usize, answers: &AtomicUsize) -> Outcomes {
    let (mut outcomes, mut wire) = (Outcomes::new(), None::<Wire>);
    loop {
        let Some(mut open) = wire.take().or_else(|| stage.dial("client", at(19)).ok()) else { return outcomes };
        let path = format!("/load/{thread}/{}", outcomes.len());
        let answer = open.get(&path).ok();
        outcomes.insert(path, answer.map(|(status, _)| status));
        match answer {
            Some((200, goes_on)) => {
                answers.fetch_add(1, Ordering::Relaxed);
                // Every fourth request opens a connection, so that some are new when the signal comes.
                wire = (goes_on && outcomes.len() % 4 != 0).then_some(open);
            }
            Some(_) => return outcomes,
            None => {}
        }
    }
}

/// Stops the proxy of `pod` while requests are on their way, waits for its end, and gives what became of the requests.
fn stop_under_load(stage: &mut Stage, pod: &str) -> Outcomes {
    let listener = stage.listen("server", SLOW).unwrap();
    let mut slow_client = stage.dial("client", at(20)).unwrap();
    slow_client.send("GET /slow HTTP/1.1\r\nHost: slow\r\n\r\n").unwrap();
    let mut slow_server = accept(&listener).unwrap();
    slow_server.head().unwrap();

    let answers = AtomicUsize::new(0);
    let outcomes = thread::scope(|scope| {
        let (stage, answers) = (&*stage, &answers);
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || send(stage, thread, answers))).collect();
        let enough = || Ok((answers.load(Ordering::Relaxed) >= BEFORE).then_some(()));
        until("answers before the signal", DEADLINE, enough).unwrap();
        stage.mesh.terminate(pod).unwrap();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // All threads have met the end of service: only now is the slow request answered.
    slow_server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow").unwrap();
    assert!(slow_client.head().unwrap().starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(slow_client.exactly(4).unwrap(), b"slow");
    drop((slow_client, slow_server));
    assert_eq!(stage.mesh.wait_for_end(pod, DEADLINE).unwrap().code(), Some(0));
    outcomes
}

/// How often nginx has served each path.
fn served(stage: &Stage) -> BTreeMap<String, usize> {
    let log = std::fs::read_to_string(stage.mesh.directory.path().join("nginx.log")).unwrap();
    let mut served = BTreeMap::new();
    for line in log.lines() {
        let path = line.split(' ').find(|word| word.starts_with("/load/")).unwrap();
        *served.entry(path.to_owned()).or_default() += 1;
    }
    served
}

/// The records of the load's requests in one direction, by path: the status of each.
fn recorded(stage: &Stage, direction: &str) -> BTreeMap<String, Vec<Option<i64>>> {
    let of_load = |record: &Record| {
        judge::is_request(record) && record.is(key::DIRECTION, direction) && record.is(key::SERVICE, "load.demo")
    };
    let mut recorded: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for record in stage.collector.select(of_load) {
        let path = record.text(key::URL_PATH).unwrap().to_owned();
        recorded.entry(path).or_default().push(record.integer(key::HTTP_RESPONSE_STATUS_CODE));
    }
    recorded
}

/// Waits until both sides have as many records of the load as there must be at least, and holds each request to them.
fn check(stage: &Stage, outcomes: &Outcomes) {
    let served = served(stage);
    let answered = outcomes.values().flatten().count();
    until("the records of the load", DEADLINE, || {
        let complete =
            recorded(stage, "outbound").len() >= answered && recorded(stage, "inbound").len() >= served.len();
        Ok(complete.then_some(()))
    })
    .unwrap();
    let (outbound, inbound) = (recorded(stage, "outbound"), recorded(stage, "inbound"));
    for (path, status) in outcomes {
        // Who got an answer finds it in the one record of its side.
        if let Some(status) = status {
            assert_eq!(outbound.get(path), Some(&vec![Some(i64::from(*status))]), "{path}");
        }
        if *status == Some(200) {
            assert_eq!(inbound.get(path), Some(&vec![Some(200)]), "{path}");
        }
    }
    for (path, times) in &served {
        // What a server has seen is recorded on both sides, whether or not its client got the answer.
        assert!(outbound.contains_key(path), "{path} has no record of the client's side");
        assert_eq!(inbound.get(path).map(Vec::len), Some(*times), "{path}");
    }
    // A request may cross with the end of its connection, which nobody can prevent in HTTP/1.1; most must not.
    let lost = outcomes.values().filter(|status| status.is_none()).count();
    assert!(lost <= THREADS / 4, "{lost} requests have no answer");
    // The slow request, on both sides.
    let slow = |record: &Record| judge::is_request(record) && record.is(key::URL_PATH, "/slow");
    let slow = stage.records(2, slow).unwrap();
    judge::went_well(&slow).unwrap();
    for direction in judge::DIRECTIONS {
        let numbers = [(key::HTTP_RESPONSE_STATUS_CODE, 200), (key::HTTP_RESPONSE_BODY_SIZE, 4)];
        judge::integers(judge::only(&slow, direction, "ipv4").unwrap(), &numbers).unwrap();
    }
}

#[test]
fn the_clients_proxy_finishes_what_it_has_begun() {
    let mut stage = stage(&Settings::default());
    let _nginx = stage.nginx(LOAD, "", "location /load/ { return 200 'served'; }").unwrap();
    let outcomes = stop_under_load(&mut stage, "client");
    assert!(outcomes.values().all(|status| matches!(status, Some(200) | None)), "{outcomes:?}");
    check(&stage, &outcomes);
}

#[test]
fn the_servers_proxy_finishes_what_it_has_begun() {
    let mut stage = stage(&Settings::default());
    let _nginx = stage.nginx(LOAD, "", "location /load/ { return 200 'served'; }").unwrap();
    let outcomes = stop_under_load(&mut stage, "server");
    check(&stage, &outcomes);
}

#[test]
fn streams_of_http2_end_well() {
    let mut stage = stage(&Settings::default());
    let _nginx = stage.nginx(LOAD, "http2", "location /load/ { return 200 'served'; }").unwrap();
    let mut command = stage.command("client", "h2load").unwrap();
    // More than there is time for: the signal ends it.
    command.args(["-n", "1000000", "-c", "4", "-m", "8", "http://10.96.0.19/load/"]);
    let mut load = Process::spawn("h2load", command, &stage.mesh.directory).unwrap();
    let of_load = |record: &Record| judge::is_request(record) && record.is(key::DIRECTION, "outbound");
    stage.records(BEFORE, of_load).unwrap();
    stage.mesh.terminate("client").unwrap();
    load.wait(DEADLINE).unwrap();
    assert_eq!(stage.mesh.wait_for_end("client", DEADLINE).unwrap().code(), Some(0));
    let report = load.output(testkit::Stream::Out).unwrap();
    let succeeded = report.split(' ').zip(report.split(' ').skip(1)).find(|(_, what)| *what == "succeeded,").unwrap().0;
    let records = stage.collector.select(of_load);
    let well = records.iter().filter(|record| record.is(key::CODE, "ok")).count();
    assert_eq!(succeeded.parse::<usize>().unwrap(), well, "{report}");
    assert_eq!(records.len(), well, "a request was begun and not finished");
    stage.records(well, |record| judge::is_request(record) && record.is(key::DIRECTION, "inbound")).unwrap();
}

/// Cuts an opaque stream, half a request with half an answer, and an upgraded connection at the proxy of `pod`.
fn cut(pod: &str, direction: &str) {
    let mut stage = stage(&Settings { drain_timeout: Duration::from_millis(500), ..Settings::default() });
    let (slow, opaque) = (stage.listen("server", SLOW).unwrap(), stage.listen("server", OPAQUE).unwrap());
    let mut stream = (stage.dial("client", at(21)).unwrap(), accept(&opaque).unwrap());
    stream.0.send("hello").unwrap();
    assert_eq!(stream.1.exactly(5).unwrap(), b"hello");
    stream.1.send("hi").unwrap();
    assert_eq!(stream.0.exactly(2).unwrap(), b"hi");

    let mut answer = stage.dial("client", at(20)).unwrap();
    answer.send("POST /half HTTP/1.1\r\nHost: slow\r\nContent-Length: 10\r\n\r\n1234567").unwrap();
    let mut server = accept(&slow).unwrap();
    server.head().unwrap();
    assert_eq!(server.exactly(7).unwrap(), b"1234567");
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123").unwrap();
    answer.head().unwrap();
    assert_eq!(answer.exactly(3).unwrap(), b"123");

    let mut socket = stage.dial("client", at(20)).unwrap();
    socket.send("GET /socket HTTP/1.1\r\nHost: slow\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n").unwrap();
    let mut switched = accept(&slow).unwrap();
    switched.head().unwrap();
    switched.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\nfrom").unwrap();
    socket.head().unwrap();
    assert_eq!(socket.exactly(4).unwrap(), b"from");
    socket.send("towards").unwrap();
    assert_eq!(switched.exactly(7).unwrap(), b"towards");

    stage.mesh.terminate(pod).unwrap();
    assert_eq!(stage.mesh.wait_for_end(pod, PROMPT).unwrap().code(), Some(0));
    // What is opaque must not look whole, on either side.
    for wire in [&mut stream.0, &mut stream.1, &mut socket, &mut switched] {
        assert!(wire.reset().unwrap().is_empty());
    }
    let (other, reset) =
        if direction == "outbound" { ("inbound", "client_reset") } else { ("outbound", "server_reset") };
    let is_opaque = |record: &Record| record.is(key::SERVICE, "opaque.demo") || record.is(key::URL_PATH, "/socket");
    let seen = |record: &Record| record.is(key::DIRECTION, other) && record.is(key::CODE, reset) && is_opaque(record);
    stage.records(2, seen).unwrap();
    // What follows is about the proxy that stopped, whose records have all arrived.
    let cut = stage.collector.select(|record| record.is(key::DIRECTION, direction) && record.is(key::CODE, "draining"));
    let only = |name: &str, value: &str| {
        let found: Vec<_> = cut.iter().filter(|record| record.is(name, value)).collect();
        assert_eq!(found.len(), 1, "{name} {value}");
        judge::meshed(found[0]).unwrap();
        found[0]
    };
    let bytes = |record: &Record, from_client, from_server| {
        let (up, down) = if judge::is_request(record) {
            (key::HTTP_REQUEST_BODY_SIZE, key::HTTP_RESPONSE_BODY_SIZE)
        } else {
            (key::BYTES_FROM_CLIENT, key::BYTES_FROM_SERVER)
        };
        judge::integers(record, &[(up, from_client), (down, from_server)]).unwrap();
    };
    bytes(only(key::SERVICE, "opaque.demo"), 5, 2);
    let half = only(key::URL_PATH, "/half");
    bytes(half, 7, 3);
    judge::integers(half, &[(key::HTTP_RESPONSE_STATUS_CODE, 200)]).unwrap();
    let socket = only(key::URL_PATH, "/socket");
    bytes(socket, 7, 4);
    judge::texts(socket, &[(key::UPGRADED, "test")]).unwrap();
    let connections: Vec<_> = cut.iter().filter(|record| judge::is_connection(record)).collect();
    assert_eq!((cut.len(), connections.len()), (5, 3));
    assert!(connections.iter().all(|record| record.is(key::CLOSED_BY, "us")));
    for request in [half, socket] {
        let own = request.text(key::CONNECTION_UID).unwrap();
        let connection = connections.iter().find(|record| record.is(key::LOG_RECORD_UID, own)).unwrap();
        bytes(connection, 7, if request.is(key::URL_PATH, "/half") { 3 } else { 4 });
    }
}

#[test]
fn what_outlives_the_time_at_the_clients_proxy_is_cut_and_counted() {
    cut("client", "outbound");
}

#[test]
fn what_outlives_the_time_at_the_servers_proxy_is_cut_and_counted() {
    cut("server", "inbound");
}
