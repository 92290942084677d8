//! From records to numbers: names, labels, the limit, and that both forms say the same.

use std::time::Duration;

use opentelemetry_proto::tonic::{collector::metrics::v1::ExportMetricsServiceRequest, metrics::v1::metric::Data};
use prost::Message;
use record::{
    Code, Context, Decision, DetectedBy, Direction, EstablishedBy, HttpVersion, Protocol, Request, UidSource,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::otlp;

fn request(direction: Direction, client: &str, status: u16, grpc: Option<u32>, millis: u64) -> Vec<u8> {
    let address = ([10, 0, 0, 1], 80).into();
    let context = Context {
        direction,
        source: address,
        destination: address,
        upstream: None,
        service: Some("web.demo"),
        client_workload: None,
        server_workload: None,
        client_identity: Some((client, EstablishedBy::MutualTls)),
        server_identity: Some(("spiffe://a/server", EstablishedBy::OwnCertificate)),
        tls: None,
        server_name: None,
        protocol: Protocol::Http2,
        detected_by: DetectedBy::Alpn,
        decision: Decision::Meshed,
        decision_reason: "",
    };
    let context = context.encode(UidSource::new(2).next(1));
    let mut uids = UidSource::new(1);
    let mut out = Vec::new();
    let request = Request {
        uid: uids.next(1),
        context: &context,
        started_unix_nanos: 1,
        ended_unix_nanos: 2,
        method: "GET",
        path: "/",
        authority: None,
        http_version: HttpVersion::Http2,
        status: Some(status),
        grpc_status: grpc,
        is_grpc: grpc.is_some(),
        request_body_bytes: 0,
        response_body_bytes: 0,
        first_byte: None,
        duration: Duration::from_millis(millis),
        resends: 0,
        trace: None,
        code: Code::Ok,
        detail: None,
        upgraded: None,
        captured: None,
    };
    request.encode(&mut out);
    out
}

fn red(series_max: usize, attributes: &[&str]) -> Arc<Red> {
    let names = |of: &[&str]| of.iter().map(|name| (*name).to_owned()).collect();
    Red::new(Config { series_max, include: names(&NAMES), attributes: names(attributes) })
}

fn text(red: &Red) -> String {
    let mut text = String::new();
    red.prometheus(&mut text);
    text
}

/// Count and attributes of each data point.
fn points(red: &Red, name: &str) -> Vec<(u64, usize)> {
    let request = red.request(&[]);
    let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
    let found = metrics.iter().find(|metric| metric.name == name).and_then(|metric| metric.data.clone());
    let Some(Data::ExponentialHistogram(histogram)) = found else { return Vec::new() };
    assert_eq!(histogram.aggregation_temporality, 2, "cumulative");
    let count = |point: &opentelemetry_proto::tonic::metrics::v1::ExponentialHistogramDataPoint| {
        let counts: u64 = point.positive.iter().flat_map(|buckets| &buckets.bucket_counts).sum();
        assert_eq!(counts + point.zero_count, point.count);
        (point.count, point.attributes.len())
    };
    histogram.data_points.iter().map(count).collect()
}

#[test]
fn requests_become_histograms_with_the_labels_of_their_edge() {
    let red = red(10, &ATTRIBUTES);
    for (status, millis) in [(200, 3), (204, 30), (503, 300)] {
        red.take(&request(Direction::Inbound, "spiffe://a/client", status, None, millis));
    }
    red.take(&request(Direction::Outbound, "spiffe://a/client", 200, Some(5), 2));
    assert_eq!(points(&red, "http.server.request.duration"), [(2, 3), (1, 3)]);
    assert_eq!(points(&red, "rpc.client.call.duration"), [(1, 4)]);
    assert!(points(&red, "http.client.request.duration").is_empty(), "a gRPC call is counted once");
    let text = text(&red);
    let labels = "picket_client_identity=\"spiffe://a/client\",picket_service_name=\"web.demo\",picket_http_status_class=\"2xx\"";
    for line in [
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"0.00390625\"}} 1"),
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"0.0625\"}} 2"),
        format!("http_server_request_duration_seconds_count{{{labels}}} 2"),
        "picket_metric_overflow_total 0".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[test]
fn what_is_over_the_limit_goes_to_the_rest_and_is_counted() {
    let red = red(20, &ATTRIBUTES);
    for n in 0..1000 {
        red.take(&request(Direction::Inbound, &format!("spiffe://a/{n}"), 200, None, 1));
    }
    let found = points(&red, "http.server.request.duration");
    assert_eq!((found.len(), found.iter().map(|(count, _)| count).sum::<u64>()), (21, 1000));
    assert_eq!(found.last(), Some(&(980, 1)));
    assert!(text(&red).contains("picket_metric_overflow_total 980"));
}

#[test]
fn what_is_not_on_the_list_is_in_no_metric() {
    let red = red(20, &[STATUS_CLASS]);
    for n in 0..50 {
        red.take(&request(Direction::Inbound, &format!("spiffe://a/{n}"), 200, None, 1));
    }
    assert_eq!(points(&red, "http.server.request.duration"), [(50, 1)]);
    assert!(!text(&red).contains("spiffe"));
}

#[tokio::test]
async fn metrics_go_to_their_own_url_compressed_and_with_their_headers() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = otlp::Config {
        protocol: otlp::Protocol::HttpProtobuf,
        compression: otlp::Compression::Gzip,
        headers: vec![("x-key".to_owned(), "of-metrics".to_owned())],
        ..otlp::Config::to(format!("http://{}/own/path", listener.local_addr().unwrap()))
    };
    let red = red(10, &ATTRIBUTES);
    red.take(&request(Direction::Inbound, "spiffe://a/b", 200, None, 3));
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let pushing = push(red, config, Duration::from_secs(3600), async { drop(ended.await) }).unwrap();
    let pushing = tokio::spawn(pushing);
    end.send(()).unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    let (head, body) = loop {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the request is not whole");
        seen.extend_from_slice(&buffer[..count]);
        let Some(at) = seen.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(seen[..at].to_vec()).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if seen.len() - at - 4 == length.parse::<usize>().unwrap() {
            break (head, seen.split_off(at + 4));
        }
    };
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    pushing.await.unwrap();
    assert!(head.starts_with("post /own/path http/1.1"), "{head}");
    assert!(head.contains("\r\nx-key: of-metrics") && head.contains("\r\ncontent-encoding: gzip"), "{head}");
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*body), &mut plain).unwrap();
    let sent = ExportMetricsServiceRequest::decode(&*plain).unwrap();
    let names: Vec<_> = sent.resource_metrics[0].scope_metrics[0].metrics.iter().map(|of| of.name.as_str()).collect();
    assert_eq!(names, ["http.server.request.duration", "picket.metric.overflow"]);
}
