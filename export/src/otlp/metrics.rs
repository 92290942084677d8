//! The way of metrics to a collector: the endpoint of the records that is preferred, with its TLS and its headers.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use prost::Message;

use super::{Compression, Config, Error, Protocol, answer::Answer, endpoint::Endpoint, message::Parts};

const GRPC_PATH: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// Sends metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    endpoint: Endpoint,
    protocol: Protocol,
}

impl Metrics {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names what is wrong.
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let url = config.endpoints.first().ok_or(Error::NoEndpoint)?;
        // OpenTelemetry, "Endpoint URLs for OTLP/HTTP": the signals differ in their last word.
        let url = match url.strip_suffix("/v1/logs") {
            Some(base) if config.protocol == Protocol::HttpProtobuf => format!("{base}/v1/metrics"),
            Some(_) | None => url.clone(),
        };
        let config = Config { compression: Compression::None, ..config.clone() };
        let endpoint = Endpoint::of_service(&url, &config, GRPC_PATH)?;
        Ok(Self { endpoint, protocol: config.protocol })
    }

    /// Sends one request, once.
    ///
    /// # Errors
    /// With what the collector said, when it did not take all of it.
    pub(crate) async fn send(&mut self, request: &ExportMetricsServiceRequest) -> Result<(), String> {
        let body = Parts::of(request.encode_to_vec(), self.protocol);
        // The answer has the same form as that to records.
        match self.endpoint.call(body).await.answer {
            Answer::Taken { refused: 0, .. } => Ok(()),
            Answer::Taken { message: why, .. }
            | Answer::Away { why, .. }
            | Answer::TooLarge(why)
            | Answer::Refused(why) => Err(why),
        }
    }
}
