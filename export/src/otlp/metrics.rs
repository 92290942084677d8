//! The way of metrics to a collector: the preferred endpoint of their configuration.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use prost::Message;

use super::{Compression, Config, Error, Protocol, answer::Answer, endpoint::Endpoint, message::Parts};

const GRPC_PATH: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// Sends metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    endpoint: Endpoint,
    protocol: Protocol,
    compression: Compression,
}

impl Metrics {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names what is wrong.
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let url = config.endpoints.first().ok_or(Error::NoEndpoint)?;
        let endpoint = Endpoint::of_service(url, config, GRPC_PATH)?;
        Ok(Self { endpoint, protocol: config.protocol, compression: config.compression })
    }

    /// Sends one request, once.
    ///
    /// # Errors
    /// With what the collector said, when it did not take all of it.
    pub(crate) async fn send(&mut self, request: &ExportMetricsServiceRequest) -> Result<(), String> {
        let (message, protocol, compression) = (request.encode_to_vec(), self.protocol, self.compression);
        // This thread also answers probes.
        let body = tokio::task::spawn_blocking(move || Parts::of(vec![message.into()], protocol, compression));
        let body = body.await.map_err(|error| error.to_string())?;
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
