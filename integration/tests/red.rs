//! Metrics made from records: a real collector gets them by OTLP, `/metrics` shows the same, and both agree with the records.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::net::SocketAddr;

use integration::{DEADLINE, Stage};
use serde_json::{Value, json};
use testkit::{LINK_IPV4, Process, Settings, until};

const PORT: u16 = 4320;
const REQUESTS: u64 = 40;

/// The last state of one histogram in the collector's file: data points of both proxies.
fn points(text: &str, name: &str) -> Vec<Value> {
    let mut last = std::collections::BTreeMap::new();
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let batch: Value = serde_json::from_str(line).unwrap();
        for resource in batch["resourceMetrics"].as_array().into_iter().flatten() {
            for metric in resource["scopeMetrics"][0]["metrics"].as_array().into_iter().flatten() {
                for point in metric["exponentialHistogram"]["dataPoints"].as_array().into_iter().flatten() {
                    assert_eq!(metric["exponentialHistogram"]["aggregationTemporality"], 2);
                    if metric["name"] == name {
                        let whose = (resource["resource"].to_string(), point["attributes"].to_string());
                        last.insert((whose, point["startTimeUnixNano"].to_string()), point.clone());
                    }
                }
            }
        }
    }
    last.into_values().collect()
}

fn attribute<'a>(point: &'a Value, name: &str) -> Option<&'a str> {
    let attributes = point["attributes"].as_array()?;
    attributes.iter().find(|attribute| attribute["key"] == name)?["value"]["stringValue"].as_str()
}

/// How many observations points with this class of status have.
fn count(points: &[Value], class: &str) -> u64 {
    let of = points.iter().filter(|point| attribute(point, "picket.http.status_class") == Some(class));
    of.map(|point| point["count"].as_str().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_collector_gets_the_numbers_of_the_records_and_metrics_shows_the_same() {
    let collector = SocketAddr::from((LINK_IPV4, PORT));
    let settings = Settings {
        collector: Some(collector),
        proxy: vec![("metrics", json!({ "interval": "1s" }))],
        ..Settings::default()
    };
    let stage = Stage::start(&settings).unwrap();
    let program = std::env::var_os("PICKET_COLLECTOR").expect("PICKET_COLLECTOR names the collector: run `./x test`");
    let directory = &stage.mesh.directory;
    let (metrics, logs) = (directory.path().join("metrics.json"), directory.path().join("logs.json"));
    let config = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '{collector}'}}}}}}}}\n\
         exporters: {{file/metrics: {{path: '{}'}}, file/logs: {{path: '{}'}}}}\n\
         service:\n  telemetry: {{metrics: {{level: none}}}}\n  pipelines:\n    \
         metrics: {{receivers: [otlp], exporters: [file/metrics]}}\n    logs: {{receivers: [otlp], exporters: [file/logs]}}\n",
        metrics.display(),
        logs.display()
    );
    let mut command = stage.mesh.net.link.command(0, program);
    command.arg("--config").arg(directory.write("collector.yaml", &config).unwrap());
    let mut process = Process::spawn("collector", command, directory).unwrap();
    process.wait_for_line(testkit::Stream::Err, "Everything is ready", DEADLINE).unwrap();

    for n in 0..REQUESTS {
        let path = if n % 4 == 0 { "not-there" } else { "hello.txt" };
        stage.run("client", "curl", &["--silent", &format!("http://10.96.0.10/{path}")]).unwrap();
    }
    for name in ["http.client.request.duration", "http.server.request.duration"] {
        let found = until(&format!("{name} at the collector"), DEADLINE, || {
            let found = points(&std::fs::read_to_string(&metrics).unwrap_or_default(), name);
            Ok((count(&found, "2xx") + count(&found, "4xx") >= REQUESTS).then_some(found))
        })
        .unwrap();
        assert_eq!((count(&found, "2xx"), count(&found, "4xx")), (REQUESTS * 3 / 4, REQUESTS / 4));
        for point in &found {
            assert_eq!(attribute(point, "picket.service.name"), Some("web.demo"));
            let peer = if name.contains("client") { "picket.server.identity" } else { "picket.client.identity" };
            assert!(attribute(point, peer).is_some_and(|id| id.starts_with("spiffe://demo.picket.dev/")), "{point}");
            let buckets = point["positive"]["bucketCounts"].as_array().unwrap();
            let sum: u64 = buckets.iter().map(|count| count.as_str().unwrap().parse::<u64>().unwrap()).sum();
            assert_eq!(sum.to_string(), point["count"].as_str().unwrap());
        }
    }
    // The records say the same.
    let is_request = "\"eventName\":\"picket.request\"";
    until("the records at the collector", DEADLINE, || {
        let text = std::fs::read_to_string(&logs).unwrap_or_default();
        Ok((text.matches(is_request).count() as u64 == 2 * REQUESTS).then_some(()))
    })
    .unwrap();
    // So does /metrics, of each side.
    for (pod, name) in [("client", "http_client_request_duration"), ("server", "http_server_request_duration")] {
        let (_, text) = stage.mesh.admin(pod, "/metrics").unwrap();
        let counts = text.lines().filter(|line| line.starts_with(&format!("{name}_seconds_count{{")));
        let sum: u64 = counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(sum, REQUESTS, "{pod}");
        assert!(text.contains("picket_metric_overflow_total 0"));
        assert_eq!(stage.metric(pod, "picket_records_dropped_total{sink=\"metrics\"}").unwrap(), 0);
    }
}
