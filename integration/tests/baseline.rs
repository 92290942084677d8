//! The baseline beside real traffic: it learns, says who is new, does what an operator says, and outlives a restart and a
//! rollout.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use integration::{DEADLINE, Stage, service, steady::LOCATION};
use record::key;
use serde_json::{Value, json};
use testkit::{PROXY_UID, Plaintext, Record, Settings, binaries, until};

const TARGET: u16 = 8100;
/// What a new pod only watches; the least that the settings take is 10 s.
const LEARN: &str = "12s";
/// How long learning, and what a rollout is compared by, may take.
const PATIENCE: Duration = Duration::from_secs(180);

fn file(stage: &Stage, pod: &str, name: &str) -> PathBuf {
    stage.mesh.directory.path().join(pod).join(name)
}

/// `picket baseline …` against a pod's proxy: its exit code, and what it printed.
fn picket(stage: &Stage, pod: &str, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(binaries().unwrap().join("picket"));
    command.args(["--output", "json", "baseline"]).args(arguments);
    let output = command.arg("--socket").arg(file(stage, pod, "admin.sock")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
}

fn edge<'a>(status: &'a Value, direction: &str) -> Option<&'a Value> {
    let edges = status["edges"].as_array()?;
    edges.iter().find(|edge| edge["direction"] == direction && edge["peer"].as_str().unwrap().starts_with("spiffe://"))
}

/// Waits until the proxy of a pod holds its edge against what it has learnt.
fn wait_until_watching(stage: &Stage, pod: &str, direction: &str) -> Value {
    until(&format!("{pod} to have learnt"), PATIENCE, || {
        let (code, status) = picket(stage, pod, &["show"]);
        assert_eq!(code, Some(0));
        let watching = edge(&status, direction).is_some_and(|edge| edge["phase"] == "watching");
        Ok(watching.then(|| edge(&status, direction).unwrap().clone()))
    })
    .unwrap()
}

fn is_deviation(record: &Record, kind: &str, state: &str) -> bool {
    record.event() == "picket.deviation"
        && record.is(key::DEVIATION_KIND, kind)
        && record.is(key::DEVIATION_STATE, state)
}

#[test]
fn a_baseline_learns_says_who_is_new_and_outlives_a_rollout() {
    let baseline = json!({ "learn": LEARN, "template": "v1" });
    let steady = service("steady", 19, 80, TARGET, Some("http"));
    let mut stage =
        Stage::with_services(&Settings { baseline, ..Settings::default() }, std::slice::from_ref(&steady)).unwrap();
    let _web = stage.nginx(TARGET, "", LOCATION).unwrap();
    let to: SocketAddr = (IpAddr::from(steady.ipv4()), 80).into();
    let load = stage.steady_load(1, to, Duration::from_millis(10)).unwrap();

    let learnt = wait_until_watching(&stage, "client", "outbound");
    assert!(learnt["durationQuantiles"][0].as_f64().unwrap() > 0.0, "{learnt}");
    let (first, last) = (learnt["firstByte"].as_f64().unwrap(), learnt["durationQuantiles"][2].as_f64().unwrap());
    assert!(0.0 < first && first <= last, "{learnt}");
    assert!(learnt["requestsPerSecond"]["max"].as_f64().unwrap() > 1.0, "{learnt}");
    wait_until_watching(&stage, "server", "inbound");
    a_stranger_is_reported_and_accepted(&stage);
    an_edge_is_pinned(&stage, &learnt);

    // The next template starts from what the one before has learnt, and is compared with it.
    load.stop().unwrap();
    stage.mesh.reconfigure("client", DEADLINE, |config| config["baseline"]["template"] = json!("v2")).unwrap();
    let (_, status) = picket(&stage, "client", &["show"]);
    assert_eq!((&status["template"], &status["previousTemplate"]), (&json!("v2"), &json!("v1")));
    assert!(edge(&status, "outbound").is_some(), "what was learnt is there at once: {status}");
    let load = stage.steady_load(1, to, Duration::from_millis(10)).unwrap();
    let rollout = |records: &[Record]| records.iter().any(|record| record.event() == "picket.rollout");
    let records = stage.collector.wait_until("the rollout report", PATIENCE, rollout).unwrap();
    load.stop().unwrap();
    let reports: Vec<_> = records.iter().filter(|record| record.event() == "picket.rollout").collect();
    assert_eq!(reports.len(), 1);
    assert!(reports[0].is(key::ROLLOUT_TEMPLATE, "v2") && reports[0].is(key::ROLLOUT_PREVIOUS, "v1"));
    let new: Vec<_> = records.iter().filter(|record| is_deviation(record, "new_peer", "opened")).collect();
    assert_eq!(new.len(), 1, "nobody was new but the stranger");

    // Two files of the same workload can be compared and merged without a proxy.
    let files = ["v1", "v2"].map(|template| file(&stage, "client", &format!("baseline/{template}.baseline")));
    until("the second template's file", PATIENCE, || Ok(files[1].exists().then_some(()))).unwrap();
    let picket = binaries().unwrap().join("picket");
    let workload = stage.mesh.directory.path().join("workload");
    std::fs::create_dir(&workload).unwrap();
    let merged = workload.join("v3.baseline");
    let mut merge = Command::new(&picket);
    assert!(merge.args(["baseline", "merge"]).args(&files).arg("--to").arg(&merged).status().unwrap().success());
    let same = Command::new(&picket).args(["baseline", "diff"]).args([&files[0], &files[0]]).status().unwrap();
    assert_eq!(same.code(), Some(0));

    // A restart of the same template goes on; a pod that has nothing of its own starts from its workload's file.
    let known = |status: &Value| edge(status, "outbound").is_some_and(|edge| !edge["durationQuantiles"].is_null());
    stage.mesh.reconfigure("client", DEADLINE, |_| ()).unwrap();
    let (_, status) = self::picket(&stage, "client", &["show"]);
    assert!(known(&status) && status["previousTemplate"].is_null(), "{status}");
    let fresh = file(&stage, "client", "fresh");
    let third = json!({ "learn": LEARN, "template": "v3", "dir": fresh, "workloadDir": workload });
    stage.mesh.reconfigure("client", DEADLINE, |config| config["baseline"] = third).unwrap();
    let (_, status) = self::picket(&stage, "client", &["show"]);
    assert!(known(&status) && status["previousTemplate"].is_null(), "{status}");
    assert_eq!(status["template"], "v3");
}

/// Probes have always come in plaintext, so plaintext as such is nothing new: who spoke mutual TLS until now is told from them.
#[test]
fn a_meshed_client_that_comes_in_plaintext_is_told_from_probes() {
    let baseline = json!({ "learn": LEARN });
    let spool = Some(json!({ "minFreeBytes": "1MiB" }));
    let settings = Settings { baseline, spool, plaintext: Plaintext::Permissive, ..Settings::default() };
    let steady = service("steady", 19, 80, TARGET, Some("http"));
    let stage = Stage::with_services(&settings, std::slice::from_ref(&steady)).unwrap();
    let _web = stage.nginx(TARGET, "", LOCATION).unwrap();
    let pod = SocketAddr::from((stage.mesh.pod("server").unwrap().pod.ipv4, TARGET));
    let probes = stage.steady_load_from("stranger", 1, pod, Duration::from_millis(200)).unwrap();
    let meshed = stage.steady_load(1, (IpAddr::from(steady.ipv4()), 80).into(), Duration::from_millis(10)).unwrap();
    let known = wait_until_watching(&stage, "server", "inbound");
    let class = |status: &Value| {
        let of_probes = |edge: &&Value| edge["direction"] == "inbound" && edge["peer"] == "private";
        status["edges"].as_array().unwrap().iter().find(of_probes).cloned()
    };
    let (_, status) = picket(&stage, "server", &["show"]);
    assert!(class(&status).is_some(), "probes are known: {status}");
    let plaintext = |records: &[Record]| records.iter().any(|record| is_deviation(record, "plaintext", "opened"));
    assert!(!plaintext(&stage.collector.select(|_| true)), "nobody has changed yet");

    // The proxy's own user is not redirected: what it sends leaves the pod as it is.
    meshed.stop().unwrap();
    let url = format!("http://{pod}/steady/bypass-[1-40]");
    let mut past = stage.mesh.pod("client").unwrap().pod.command(PROXY_UID, "curl");
    testkit::run(past.args(["--silent", "--show-error", "--fail", &url])).unwrap();
    let records = stage.collector.wait_until("the deviation", PATIENCE, plaintext).unwrap();
    probes.stop().unwrap();
    let found = records.iter().find(|record| is_deviation(record, "plaintext", "opened")).unwrap();
    assert!(found.is(key::DIRECTION, "inbound"), "{found:?}");
    assert!(found.is(key::DEVIATION_PEER, known["peer"].as_str().unwrap()), "{found:?}");
    assert!(records.iter().all(|record| !is_deviation(record, "new_peer", "opened")), "nobody was new");

    // What is stored says the same, to whoever asks later.
    let mut replay = Command::new(binaries().unwrap().join("picket"));
    replay.args(["--output", "json", "baseline", "replay", "--learn", LEARN]).arg(file(&stage, "server", "spool"));
    let output = replay.output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let told =
        |one: &&Value| one["kind"] == "plaintext" && one["state"] == "opened" && one["edge"]["peer"] == known["peer"];
    assert_eq!(said.as_array().unwrap().iter().filter(told).count(), 1, "{said}");
}

/// A client without an identity, which the strict proxy refuses: its record is one of a peer that was never seen.
fn a_stranger_is_reported_and_accepted(stage: &Stage) {
    let address = stage.mesh.pod("server").unwrap().pod.ipv4;
    let url = format!("http://{address}:{TARGET}/steady/stranger");
    let refused = stage.run("stranger", "curl", &["--silent", "--max-time", "5", "--output", "/dev/null", &url]);
    // It is refused, or answered with 403: the baseline sees it either way.
    drop(refused);
    let opened = |records: &[Record]| records.iter().any(|record| is_deviation(record, "new_peer", "opened"));
    let records = stage.collector.wait_until("the deviation", PATIENCE, opened).unwrap();
    let found = records.iter().find(|record| is_deviation(record, "new_peer", "opened")).unwrap();
    assert!(found.is(key::DIRECTION, "inbound") && found.is(key::DEVIATION_PEER, "private"), "{found:?}");
    assert!(found.text(key::DETAIL).unwrap().contains("private"), "{found:?}");

    let (_, status) = picket(stage, "server", &["show"]);
    let id = status["deviations"][0]["id"].to_string();
    assert_eq!(status["deviations"][0]["kind"], "new_peer", "{status}");
    assert_eq!(stage.metric("server", "picket_baseline_deviations_open{kind=\"new_peer\"}").unwrap(), 1);
    let (code, status) = picket(stage, "server", &["accept", &id]);
    assert_eq!((code, &status["deviations"]), (Some(0), &json!([])));
    assert_eq!(picket(stage, "server", &["accept", &id]).0, Some(1), "it is not open any more");
    let closed = |records: &[Record]| {
        let closed = |record: &&Record| is_deviation(record, "new_peer", "closed");
        records.iter().find(closed).is_some_and(|record| record.is(key::DEVIATION_ENDING, "accepted"))
    };
    stage.collector.wait_until("the end of the deviation", DEADLINE, closed).unwrap();
}

fn an_edge_is_pinned(stage: &Stage, learnt: &Value) {
    let text = |name: &str| learnt[name].as_str().unwrap().to_owned();
    let port = learnt["port"].to_string();
    let (direction, peer, service, protocol) = (text("direction"), text("peer"), text("service"), text("protocol"));
    let mut arguments = vec!["pin", "--direction", &direction, "--peer", &peer, "--service", &service];
    arguments.extend(["--port", &port, "--protocol", &protocol]);
    let pinned = |status: &Value| edge(status, "outbound").unwrap()["pinned"].clone();
    let (code, status) = picket(stage, "client", &arguments);
    assert_eq!((code, pinned(&status)), (Some(0), json!(true)));
    arguments.push("--remove");
    let (code, status) = picket(stage, "client", &arguments);
    assert_eq!((code, pinned(&status)), (Some(0), json!(false)));
    let nobody = ["pin", "--direction", "inbound", "--peer", "nobody", "--port", "1", "--protocol", "tcp"];
    assert_eq!(picket(stage, "client", &nobody).0, Some(1));
}
