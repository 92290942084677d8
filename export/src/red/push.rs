//! Pushes the numbers to a collector, over and over. What a collector misses is in the next request: numbers are cumulative.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use tonic::{Request, transport::Channel};

use super::Red;
use crate::otlp::{Config, Error, Shipper};

/// Pushes every `interval`, and once more when `drain` is over.
///
/// # Errors
/// When the configuration cannot be used.
pub fn push(
    red: Arc<Red>,
    config: Config,
    interval: Duration,
    drain: impl Future<Output = ()> + Send,
) -> Result<impl Future<Output = ()> + Send, Error> {
    let resource = config.resource.clone();
    let shipper = Shipper::new(config)?;
    Ok(async move {
        let client = MetricsServiceClient::new(shipper.channel());
        tokio::pin!(drain);
        let mut away = false;
        loop {
            let is_over = tokio::select! {
                () = tokio::time::sleep(interval) => false,
                () = &mut drain => true,
            };
            let done = call(&shipper, client.clone(), &red, &resource).await;
            match (&done, away) {
                (Err(error), false) => {
                    tracing::warn!(error, "the collector does not take metrics; the next ones will make up for it")
                }
                (Ok(()), true) => tracing::info!("the collector takes metrics again"),
                (Ok(()), false) | (Err(_), true) => {}
            }
            away = done.is_err();
            if is_over {
                return;
            }
        }
    })
}

async fn call(
    shipper: &Shipper,
    mut client: MetricsServiceClient<Channel>,
    red: &Red,
    resource: &[(String, String)],
) -> Result<(), String> {
    let mut request = Request::new(red.request(resource));
    *request.metadata_mut() = shipper.metadata().clone();
    match tokio::time::timeout(shipper.timeout(), client.export(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(format!("{:?}: {}", status.code(), status.message())),
        Err(_) => Err("no answer in time".to_owned()),
    }
}
