//! The numbers as an OTLP request: cumulative, as the specification has it by default.

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    metrics::v1::{
        AggregationTemporality, ExponentialHistogram, ExponentialHistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, exponential_histogram_data_point::Buckets, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};
use record::key;

use super::{Instrument, Red, Series, histogram, now};

impl Red {
    /// All metrics as of now, of a resource with these attributes.
    pub fn request(&self, resource: &[(String, String)]) -> ExportMetricsServiceRequest {
        let (table, time) = (self.lock(), now());
        let temporality = AggregationTemporality::Cumulative.into();
        let mut metrics: Vec<Metric> = Vec::new();
        for instrument in Instrument::ALL {
            let data_points: Vec<_> =
                table.of(instrument).into_iter().map(|series| self.data_point(series, time)).collect();
            if !data_points.is_empty() {
                metrics.push(Metric {
                    name: instrument.name().to_owned(),
                    description: instrument.description().to_owned(),
                    unit: "s".to_owned(),
                    data: Some(Data::ExponentialHistogram(ExponentialHistogram {
                        data_points,
                        aggregation_temporality: temporality,
                    })),
                    ..Metric::default()
                });
            }
        }
        let overflowed = NumberDataPoint {
            start_time_unix_nano: self.started_unix_nanos,
            time_unix_nano: time,
            value: Some(number_data_point::Value::AsInt(table.overflowed as i64)),
            ..NumberDataPoint::default()
        };
        metrics.push(Metric {
            name: "picket.metric.overflow".to_owned(),
            description: "Observations beyond the limit of label sets.".to_owned(),
            unit: "{observation}".to_owned(),
            data: Some(Data::Sum(Sum {
                data_points: vec![overflowed],
                aggregation_temporality: temporality,
                is_monotonic: true,
            })),
            ..Metric::default()
        });
        let attributes = resource.iter().map(|(name, value)| attribute(name, value)).collect();
        let scope = InstrumentationScope { name: "picket".to_owned(), ..InstrumentationScope::default() };
        ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(Resource { attributes, ..Resource::default() }),
                scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }],
                ..ResourceMetrics::default()
            }],
        }
    }

    fn data_point(&self, series: &Series, time: u64) -> ExponentialHistogramDataPoint {
        let of = &series.histogram;
        let system = |instrument| matches!(instrument, Instrument::RpcServer | Instrument::RpcClient);
        let system = system(series.instrument).then(|| attribute(key::RPC_SYSTEM, "grpc"));
        ExponentialHistogramDataPoint {
            attributes: series.attributes.iter().map(|(name, value)| attribute(name, value)).chain(system).collect(),
            start_time_unix_nano: self.started_unix_nanos,
            time_unix_nano: time,
            count: of.count,
            sum: Some(of.sum),
            scale: histogram::SCALE,
            zero_count: of.zeros,
            zero_threshold: histogram::ZERO_THRESHOLD,
            positive: Some(Buckets { offset: of.offset, bucket_counts: of.buckets.clone() }),
            min: Some(of.min),
            max: Some(of.max),
            ..ExponentialHistogramDataPoint::default()
        }
    }
}

fn attribute(name: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: name.to_owned(), value, ..KeyValue::default() }
}
