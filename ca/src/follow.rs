//! The trust bundle stream: each generation out, what proxies use back in.
//!
//! Promises: a stream begins with the present bundle and gets each later one, or the newest when it was slow; one message
//! is on its way at a time, and the next follows when the proxy has said something about it. A generation is encoded
//! once for all streams. A stream of somebody who is denied ends. A clock that is far from ours is an alert. Leaves to
//! others: connections and their limits (`serve`), what follows from what a proxy says (`lifecycle`).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::trust::Status as Said;
use bytes::{BufMut, Bytes};
use prost::Message as _;
use prost::encoding::int64;
use record::{Value, key};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_stream::Stream;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::{Request, Response, Status};

use crate::attest::Caller;
use crate::followers::{self, Report};
use crate::issue::utc;
use crate::journal::{Alert, unix_nanos};
use crate::refusal::CallError;
use crate::serve::{Connection, Following};
use crate::service::Service;

/// The path of the call.
pub(crate) const PATH: &str = "/picket.trust.v1.TrustBundleService/Follow";
/// What a proxy says has some hundred bytes.
const MESSAGE_BYTES_MAX: usize = 4 << 10;
/// Who says nothing about a bundle gets the next one all the same, after this long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clocks further apart than this are an alert.
const SKEW_MAX: Duration = Duration::from_secs(5);

/// One generation on its way: the bytes that all streams share, and the time of sending.
#[derive(Debug)]
pub(crate) struct Message {
    bundle: Bytes,
    time_unix_nanos: i64,
}

type Messages = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

/// The gRPC face of the stream.
pub(crate) struct Follow(pub(crate) Arc<Service>);

impl tonic::server::StreamingService<Said> for Follow {
    type Response = Message;
    type ResponseStream = Messages;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Messages>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Said>>) -> Self::Future {
        Box::pin(follow(self.0.clone(), request))
    }
}

/// Answers one call with the codec of this module.
pub(crate) async fn answer<B>(service: Arc<Service>, request: http::Request<B>) -> http::Response<tonic::body::Body>
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let mut grpc = tonic::server::Grpc::new(Shared).max_decoding_message_size(MESSAGE_BYTES_MAX);
    grpc.streaming(Follow(service), request).await
}

async fn follow(service: Arc<Service>, request: Request<Streaming<Said>>) -> Result<Response<Messages>, Status> {
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let connection = connection.ok_or_else(|| Status::internal("a call without a connection"))?;
    let admitted = service.admit(request.metadata(), connection.source).await;
    let (caller, who) = admitted.map_err(|error| error.status())?;
    connection.admit();
    let following = connection.follow();
    let following = following.map_err(|error| service.refuse(Some(&caller), connection.source, error).status())?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let (stream, generations) = (service.followers.open(who, now), service.trust.subscribe());
    let state = Streamed {
        caller,
        stream,
        generations,
        inbound: request.into_inner(),
        begun: false,
        sent: 0,
        unanswered_until: Some(Instant::now() + PATIENCE),
        _following: following,
        service,
    };
    let messages = futures_util::stream::unfold(state, Streamed::next);
    Ok(Response::new(Box::pin(messages)))
}

/// One stream.
struct Streamed {
    service: Arc<Service>,
    caller: Caller,
    stream: followers::Stream,
    generations: watch::Receiver<u64>,
    inbound: Streaming<Said>,
    /// The proxy has said something.
    begun: bool,
    /// The generation that was sent last.
    sent: u64,
    /// The proxy has the word: until then a message on its way counts as not arrived, and a silent stream as alive.
    unanswered_until: Option<Instant>,
    _following: Following,
}

impl Streamed {
    /// The next message; `None` when the stream ends.
    async fn next(mut self) -> Option<(Result<Message, Status>, Self)> {
        loop {
            if self.begun && self.unanswered_until.is_none() {
                match self.message() {
                    Ok(Some(message)) => return Some((Ok(message), self)),
                    Ok(None) => {}
                    Err(error) => return Some((Err(error.status()), self)),
                }
            }
            let patience = self.unanswered_until;
            tokio::select! {
                said = self.inbound.message() => self.take(&said.ok().flatten()?),
                changed = self.generations.changed(), if self.begun => changed.ok()?,
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                    if !self.begun {
                        return None;
                    }
                    self.unanswered_until = None;
                }
            }
        }
    }

    /// The newest bundle, if it was not sent yet.
    fn message(&mut self) -> Result<Option<Message>, CallError> {
        let snapshot = self.service.trust.current();
        if snapshot.state.generation == self.sent {
            return Ok(None);
        }
        let admitted = self.service.policy.admit(&self.caller, &snapshot.state);
        admitted.map_err(CallError::from)?;
        self.sent = snapshot.state.generation;
        self.unanswered_until = Some(Instant::now() + PATIENCE);
        let time_unix_nanos = i64::try_from(unix_nanos()).unwrap_or(0);
        Ok(Some(Message { bundle: snapshot.bundle.clone(), time_unix_nanos }))
    }

    fn take(&mut self, said: &Said) {
        self.begun = true;
        self.unanswered_until = None;
        let trust = &self.service.trust;
        if said.generation > trust.current().state.generation {
            // It comes from another process that knew sooner: nobody is led back. When the disk cannot be read, what is
            // in use is what there is; the thread that tends it makes an alert of it.
            let _unread = trust.refresh(crate::tend::now());
        }
        self.stream.report(Report::new(
            said.generation,
            &said.refused,
            &said.certificate_serial,
            &said.issuer_sha256,
            said.certificate_not_after,
        ));
        self.compare_clocks(said.time_unix_nanos);
    }

    /// Once for each change of state.
    fn compare_clocks(&self, theirs: i64) {
        let ours = i64::try_from(unix_nanos()).unwrap_or(0);
        let apart = Duration::from_nanos(ours.abs_diff(theirs));
        let skewed = apart > SKEW_MAX;
        if !self.stream.clock_is_apart(skewed) {
            return;
        }
        let [ours, theirs] = [ours, theirs].map(|nanos| {
            OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).map_or_else(|_| nanos.to_string(), utc)
        });
        let who = self.stream.who().to_string();
        let apart = apart.as_secs_f64();
        let detail = format!("the clock of {who} says {theirs}, the authority's says {ours}: {apart:.1} s apart");
        let clocks = [(key::CLOCK_AUTHORITY, Value::Text(&ours)), (key::CLOCK_PROXY, Value::Text(&theirs))];
        self.service.journal.alert(Alert::ClockSkew, &who, skewed, &detail, &clocks);
    }
}

/// Writes bundles that are encoded already, reads what proxies say with prost; keeps no buffers while nothing happens.
#[derive(Clone, Copy, Debug)]
struct Shared;

impl Codec for Shared {
    type Encode = Message;
    type Decode = Said;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Shared {
    type Item = Message;
    type Error = Status;

    fn encode(&mut self, item: Message, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.bundle.len() + 16);
        out.put(item.bundle);
        // Bundle.time_unix_nanos = 6; a field may stand anywhere.
        int64::encode(6, &item.time_unix_nanos, out);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(0, 64 << 10)
    }
}

impl Decoder for Shared {
    type Item = Said;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Said>, Status> {
        Said::decode(from).map(Some).map_err(|error| Status::invalid_argument(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(256, 64 << 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::trust::Bundle;

    #[test]
    fn the_state_of_a_stream_is_small() {
        assert!(size_of::<Streamed>() <= 640, "{} bytes", size_of::<Streamed>());
    }

    #[test]
    fn the_shared_bytes_and_the_time_are_one_message() {
        let bundle = Bundle { generation: 7, roots: vec![vec![1, 2, 3]], ..Bundle::default() };
        let mut bytes = bundle.encode_to_vec();
        int64::encode(6, &5, &mut bytes);
        assert_eq!(Bundle::decode(&*bytes).unwrap(), Bundle { time_unix_nanos: 5, ..bundle });
    }
}
