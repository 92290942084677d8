//! What a worker counts, and how it is shown at `/metrics`.
//!
//! Each worker has its own counters, which only it writes; a scrape adds them up. Labels come from closed lists.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::journal::unix_nanos;
use record::{Code, Direction};
use telemetry::metrics::{Exposition, Family, Kind, Metric};

const DIRECTIONS: [Direction; 2] = [Direction::Inbound, Direction::Outbound];
const STATUS_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The catalogue, in the order of the documented table (docs/reference/metrics.md).
pub const CATALOGUE: &[Metric] = &[
    metric("picket_connections_opened_total", Kind::Counter, "{connection}", &["direction"], "Connections accepted."),
    metric(
        "picket_connections_closed_total",
        Kind::Counter,
        "{connection}",
        &["direction", "code"],
        "Connections that ended, by code.",
    ),
    metric("picket_connections_open", Kind::Gauge, "{connection}", &["direction"], "Connections that are open now."),
    metric("picket_connections_limit", Kind::Gauge, "{connection}", &[], "Connections that may be open at once."),
    metric(
        "picket_requests_total",
        Kind::Counter,
        "{request}",
        &["direction", "status_class"],
        "Requests, by class of their status.",
    ),
    metric(
        "picket_request_endings_total",
        Kind::Counter,
        "{request}",
        &["direction", "code"],
        "Requests that ended, by code.",
    ),
    metric("picket_client_bytes_total", Kind::Counter, "By", &["direction"], "Bytes of applications towards servers."),
    metric("picket_server_bytes_total", Kind::Counter, "By", &["direction"], "Bytes of applications towards clients."),
    metric("picket_records_written_total", Kind::Counter, "{record}", &[], "Records made."),
    metric(
        "picket_records_dropped_total",
        Kind::Counter,
        "{record}",
        &["sink"],
        "Records lost because a queue was full.",
    ),
    metric(
        "picket_records_sent_total",
        Kind::Counter,
        "{record}",
        &["sink"],
        "Records that were sent to the sink, each counted once.",
    ),
    metric(
        "picket_records_acknowledged_total",
        Kind::Counter,
        "{record}",
        &["sink"],
        "Records that the sink has taken.",
    ),
    metric(
        "picket_records_rejected_total",
        Kind::Counter,
        "{record}",
        &["sink"],
        "Records that the collector refused for good.",
    ),
    metric(
        "picket_records_skipped_total",
        Kind::Counter,
        "{record}",
        &["sink"],
        "Records that the sink was told to leave out: those without a line in the access log.",
    ),
    metric(
        "picket_records_set_aside_total",
        Kind::Counter,
        "{record}",
        &["sink"],
        "Of the rejected records, those that are kept in the set-aside file.",
    ),
    metric(
        "picket_records_acknowledged_timestamp_seconds",
        Kind::Gauge,
        "s",
        &["sink"],
        "When the sink took records last, in seconds since 1970 UTC; 0 before the first.",
    ),
    metric("picket_record_queue_bytes", Kind::Gauge, "By", &["sink"], "Bytes that wait in a queue."),
    metric("picket_record_queue_limit_bytes", Kind::Gauge, "By", &["sink"], "Bytes that may wait in a queue."),
    metric(
        "picket_spool_records_written_total",
        Kind::Counter,
        "{record}",
        &[],
        "Records written to the spool and synced.",
    ),
    metric(
        "picket_spool_records_lost_total",
        Kind::Counter,
        "{record}",
        &["reason"],
        "Records that a gap record reports as lost.",
    ),
    metric("picket_spool_bytes", Kind::Gauge, "By", &[], "Bytes of the spool's segments."),
    metric("picket_spool_limit_bytes", Kind::Gauge, "By", &[], "Bytes that they may have."),
    metric(
        "picket_spool_oldest_unsent_seconds",
        Kind::Gauge,
        "s",
        &[],
        "Age of the oldest record that some sink of the spool has not acknowledged; 0 when there is none.",
    ),
    metric(
        "picket_spool_full",
        Kind::Gauge,
        "{spool}",
        &[],
        "1 while connections are refused because the spool is full.",
    ),
    metric("picket_baseline_edges", Kind::Gauge, "{edge}", &[], "Edges whose baseline is kept."),
    metric("picket_baseline_edges_limit", Kind::Gauge, "{edge}", &[], "Edges whose baseline may be kept."),
    metric(
        "picket_baseline_edges_evicted_total",
        Kind::Counter,
        "{edge}",
        &[],
        "Edges that were forgotten because the limit was reached.",
    ),
    metric(
        "picket_baseline_deviations_open",
        Kind::Gauge,
        "{deviation}",
        &["kind"],
        "Deviations from the baseline that are open now.",
    ),
    metric(
        "picket_baseline_deviations_total",
        Kind::Counter,
        "{deviation}",
        &["kind"],
        "Deviations from the baseline that were opened.",
    ),
    metric(
        "picket_baseline_deviations_unopened_total",
        Kind::Counter,
        "{deviation}",
        &[],
        "Deviations that were not opened because too many were open.",
    ),
    metric(
        "picket_certificate_remaining_seconds",
        Kind::Gauge,
        "s",
        &[],
        "Time until our certificate ends; 0 without one.",
    ),
    metric(
        "picket_certificate_renewals_total",
        Kind::Counter,
        "{renewal}",
        &["result"],
        "Attempts to get a certificate.",
    ),
    metric(
        "picket_certificate_renewed_timestamp_seconds",
        Kind::Gauge,
        "s",
        &[],
        "When the last certificate came, in seconds since 1970 UTC; 0 before the first.",
    ),
    metric(
        "picket_trust_generation",
        Kind::Gauge,
        "{generation}",
        &[],
        "Generation of the trust bundle that is in force; 0 when it came from the file.",
    ),
    metric("picket_trust_following", Kind::Gauge, "{stream}", &[], "1 while the CA's trust bundle is followed."),
    metric("picket_trust_denials", Kind::Gauge, "{entry}", &[], "Entries of the deny list."),
    metric(
        "picket_discovery_age_seconds",
        Kind::Gauge,
        "s",
        &[],
        "Time since the discovery file was last read without a mistake.",
    ),
];

const fn metric(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, help }
}

/// The counters of one worker.
#[derive(Debug, Default)]
pub struct WorkerMetrics {
    directions: [DirectionMetrics; 2],
    records_written: AtomicU64,
}

#[derive(Debug)]
struct DirectionMetrics {
    opened: AtomicU64,
    closed: [AtomicU64; Code::ALL.len()],
    request_endings: [AtomicU64; Code::ALL.len()],
    requests: [AtomicU64; STATUS_CLASSES.len()],
    from_client: AtomicU64,
    from_server: AtomicU64,
}

impl Default for DirectionMetrics {
    fn default() -> Self {
        let codes = || std::array::from_fn(|_| AtomicU64::new(0));
        let (opened, from_client, from_server) = Default::default();
        Self {
            opened,
            closed: codes(),
            request_endings: codes(),
            requests: Default::default(),
            from_client,
            from_server,
        }
    }
}

impl WorkerMetrics {
    fn of(&self, direction: Direction) -> &DirectionMetrics {
        &self.directions[direction as usize]
    }

    /// A connection was accepted.
    pub fn connection_opened(&self, direction: Direction) {
        self.of(direction).opened.fetch_add(1, Relaxed);
    }

    /// A connection ended.
    pub fn connection_closed(&self, direction: Direction, code: Code) {
        self.of(direction).closed[code as usize].fetch_add(1, Relaxed);
    }

    /// A request ended.
    pub fn request(&self, direction: Direction, status: Option<u16>, code: Code) {
        let class = status.map_or(0, |status| usize::from(status / 100).min(5));
        self.of(direction).requests[class].fetch_add(1, Relaxed);
        self.of(direction).request_endings[code as usize].fetch_add(1, Relaxed);
    }

    /// Bytes of the application that a connection moved.
    pub fn bytes(&self, direction: Direction, from_client: u64, from_server: u64) {
        self.of(direction).from_client.fetch_add(from_client, Relaxed);
        self.of(direction).from_server.fetch_add(from_server, Relaxed);
    }

    /// Records were made.
    pub fn records_written(&self, records: u64) {
        self.records_written.fetch_add(records, Relaxed);
    }
}

/// What is shown besides the workers' counters.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// `limits.connections`.
    pub connections_max: u64,
    /// The record queues, by name of their sink.
    pub sinks: &'a [(&'static str, Arc<export::Counters>)],
    /// The spool, where there is one.
    pub spool: Option<&'a spool::Status>,
    /// What is normal, where that is learnt.
    pub baseline: Option<crate::baseline::Numbers>,
    /// Seconds until our certificate ends.
    pub certificate_remaining: u64,
    /// Attempts to get a certificate: succeeded, failed.
    pub renewals: (u64, u64),
    /// When the last certificate came.
    pub renewed_at: u64,
    /// The trust bundle.
    pub trust: TrustNumbers,
    /// Seconds since the discovery file was read.
    pub discovery_age: u64,
}

/// What is shown of the trust bundle.
#[derive(Debug, Clone, Copy, Default)]
pub struct TrustNumbers {
    /// The generation in force.
    pub generation: u64,
    /// The CA is followed.
    pub following: bool,
    /// Entries of the deny list.
    pub denials: u64,
}

/// Appends all metrics to `out`, in the order of the catalogue.
pub fn render(workers: &[Arc<WorkerMetrics>], around: &Surroundings<'_>, out: &mut String) {
    let mut text = Exposition::new(out);
    for metric in CATALOGUE {
        let mut family = text.family(metric);
        match metric.name {
            "picket_records_written_total" => {
                family.sample(&[], workers.iter().map(|worker| worker.records_written.load(Relaxed)).sum::<u64>());
            }
            "picket_connections_limit" => {
                family.sample(&[], around.connections_max);
            }
            "picket_certificate_remaining_seconds" => {
                family.sample(&[], around.certificate_remaining);
            }
            "picket_certificate_renewals_total" => {
                family.sample(&["succeeded"], around.renewals.0).sample(&["failed"], around.renewals.1);
            }
            "picket_certificate_renewed_timestamp_seconds" => {
                family.sample(&[], around.renewed_at);
            }
            "picket_trust_generation" => {
                family.sample(&[], around.trust.generation);
            }
            "picket_trust_following" => {
                family.sample(&[], u64::from(around.trust.following));
            }
            "picket_trust_denials" => {
                family.sample(&[], around.trust.denials);
            }
            "picket_discovery_age_seconds" => {
                family.sample(&[], around.discovery_age);
            }
            name if name.starts_with("picket_spool_") => {
                if let Some(status) = around.spool {
                    of_spool(&mut family, name, status);
                }
            }
            name if name.starts_with("picket_baseline_") => {
                if let Some(numbers) = &around.baseline {
                    of_baseline(&mut family, name, numbers);
                }
            }
            name if metric.labels == ["sink"] => {
                for (sink, counters) in around.sinks {
                    family.sample(&[sink], queue_number(name, counters));
                }
            }
            name => {
                for direction in DIRECTIONS {
                    of_direction(&mut family, name, workers, direction);
                }
            }
        }
    }
}

/// Appends the samples of one direction.
fn of_direction(family: &mut Family<'_>, name: &str, workers: &[Arc<WorkerMetrics>], direction: Direction) {
    let label = direction.as_str();
    let sum =
        |of: &dyn Fn(&DirectionMetrics) -> u64| -> u64 { workers.iter().map(|worker| of(worker.of(direction))).sum() };
    let load = |count: &AtomicU64| count.load(Relaxed);
    match name {
        "picket_connections_opened_total" => {
            family.sample(&[label], sum(&|of| load(&of.opened)));
        }
        "picket_connections_open" => {
            let open = |of: &DirectionMetrics| load(&of.opened).saturating_sub(of.closed.iter().map(load).sum());
            family.sample(&[label], sum(&open));
        }
        "picket_client_bytes_total" => {
            family.sample(&[label], sum(&|of| load(&of.from_client)));
        }
        "picket_server_bytes_total" => {
            family.sample(&[label], sum(&|of| load(&of.from_server)));
        }
        "picket_requests_total" => {
            for (at, class) in STATUS_CLASSES.iter().enumerate() {
                family.sample(&[label, class], sum(&|of| load(&of.requests[at])));
            }
        }
        _ => {
            let closing = name == "picket_connections_closed_total";
            for (at, code) in Code::ALL.iter().enumerate() {
                let count = sum(&|of| load(if closing { &of.closed[at] } else { &of.request_endings[at] }));
                // Codes that never happened would be most of the page.
                if count > 0 || *code == Code::Ok {
                    family.sample(&[label, code.as_str()], count);
                }
            }
        }
    }
}

/// Appends the samples of the spool.
fn of_spool(family: &mut Family<'_>, name: &str, status: &spool::Status) {
    let number = match name {
        "picket_spool_records_lost_total" => {
            // What is set aside is not at the collector, but it is not lost.
            for reason in spool::Reason::ALL.into_iter().filter(|reason| *reason != spool::Reason::SetAside) {
                family.sample(&[reason.as_str()], status.lost(reason));
            }
            return;
        }
        "picket_spool_records_written_total" => status.spooled(),
        "picket_spool_bytes" => status.bytes(),
        "picket_spool_limit_bytes" => status.limit_bytes(),
        "picket_spool_full" => u64::from(status.is_full()),
        _ => status.oldest_unsent().map_or(0, |since| unix_nanos().saturating_sub(since) / 1_000_000_000),
    };
    family.sample(&[], number);
}

/// Appends the samples of the baseline.
fn of_baseline(family: &mut Family<'_>, name: &str, numbers: &crate::baseline::Numbers) {
    let mut by_kind = |counts: &[u64]| {
        for (kind, count) in baseline::Kind::ALL.iter().zip(counts) {
            family.sample(&[kind.as_str()], *count);
        }
    };
    let number = match name {
        "picket_baseline_deviations_open" => return by_kind(&numbers.open),
        "picket_baseline_deviations_total" => return by_kind(&numbers.opened),
        "picket_baseline_edges" => numbers.edges,
        "picket_baseline_edges_limit" => numbers.limit,
        "picket_baseline_edges_evicted_total" => numbers.counters.evicted,
        _ => numbers.counters.unopened,
    };
    family.sample(&[], number);
}

fn queue_number(name: &str, counters: &export::Counters) -> u64 {
    match name {
        "picket_records_dropped_total" => counters.dropped(),
        "picket_records_sent_total" => counters.sent(),
        "picket_records_acknowledged_total" => counters.acknowledged(),
        "picket_records_rejected_total" => counters.rejected(),
        "picket_records_skipped_total" => counters.skipped(),
        "picket_records_set_aside_total" => counters.set_aside(),
        "picket_records_acknowledged_timestamp_seconds" => counters.acknowledged_at(),
        "picket_record_queue_bytes" => counters.queued_bytes(),
        _ => counters.limit_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_follows_the_grammar_and_its_page_is_fresh() {
        telemetry::metrics::check(CATALOGUE).unwrap();
        let page = include_str!("../../docs/reference/metrics.md");
        let table = telemetry::metrics::table(CATALOGUE);
        assert!(page.contains(&table), "docs/reference/metrics.md wants:\n{table}");
    }

    #[test]
    fn what_was_counted_is_shown() {
        let worker = Arc::new(WorkerMetrics::default());
        worker.connection_opened(Direction::Inbound);
        worker.connection_opened(Direction::Inbound);
        worker.connection_closed(Direction::Inbound, Code::ServerReset);
        worker.request(Direction::Outbound, Some(503), Code::NoEndpoint);
        let around = Surroundings {
            connections_max: 5,
            sinks: &[],
            spool: None,
            baseline: None,
            certificate_remaining: 7,
            renewals: (1, 2),
            renewed_at: 8,
            trust: TrustNumbers { generation: 9, ..TrustNumbers::default() },
            discovery_age: 3,
        };
        let mut text = String::new();
        render(&[worker], &around, &mut text);
        for line in [
            "picket_connections_open{direction=\"inbound\"} 1",
            "picket_connections_closed_total{direction=\"inbound\",code=\"server_reset\"} 1",
            "picket_requests_total{direction=\"outbound\",status_class=\"5xx\"} 1",
            "picket_certificate_remaining_seconds 7",
            "picket_trust_generation 9",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
