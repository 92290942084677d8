//! The trust bundle stream: each generation out, what proxies use back in.
//!
//! Promises: a stream begins with the present bundle and gets each later one, or the newest when it was slow; one bundle
//! is on its way at a time, and the next follows when the proxy has said something about it. A generation is encoded
//! once for all streams. A stream of somebody who is denied ends, and so does one of whom nothing is heard, that does not
//! finish a message, does not take one, or says too much. Between messages a stream keeps two keys and no buffer. A clock that is far from
//! ours is an alert. Leaves to others: connections and their limits (`serve`), records (`sealed`), what follows from what a
//! proxy says (`lifecycle`).

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use api::follow::KEEP_ALIVE;
use api::frames::{self, Frames, TooLong, frame};
use api::trust::{self, Answer, Open, Status as Said, answer};
use bytes::Buf;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, int64};
use record::{Value, key};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};
use tokio_rustls::server::TlsStream;

use crate::followers::{self, Report, Who};
use crate::issue::utc;
use crate::journal::{Alert, unix_nanos};
use crate::refusal::CallError;
use crate::sealed::{PLAIN_BYTES_MAX, SealError, Sealed};
use crate::serve::Places;
use crate::service::Service;
use crate::state::State;

/// A token and a status; longer tokens are refused anyway.
const OPEN_BYTES_MAX: usize = 32 << 10;
/// What a proxy says later has some hundred bytes.
const SAID_BYTES_MAX: usize = 4 << 10;
/// Bytes that are read at once.
const READ_BYTES: usize = 2 << 10;
/// By then a proxy has said who it is.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A message that was begun is whole by then.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// A record is taken by then.
const RECORD_TIMEOUT: Duration = Duration::from_secs(10);
/// A bundle is.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// The last word is.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// A proxy speaks each [`KEEP_ALIVE`]: one of which nothing is heard for this long is gone.
const SILENCE_MAX: Duration = KEEP_ALIVE.saturating_add(Duration::from_secs(20));
/// Records and messages of one proxy within [`TICK`]. It says something about each generation, and more would be a flood.
const TALK_MAX: u32 = 5000;
/// How often all streams look at the time: one timer for each would cost more than its keys.
pub(crate) const TICK: Duration = Duration::from_secs(5);
/// Who says nothing about a bundle gets the next one all the same, after this long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clocks further apart than this are an alert.
const SKEW_MAX: Duration = Duration::from_secs(5);

/// Why a stream ends.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The proxy is told so.
    #[error("it was refused")]
    Refused(#[from] CallError),
    #[error("the connection")]
    Io(#[from] io::Error),
    #[error("the connection")]
    Seal(#[from] SealError),
    #[error("{0}")]
    Rude(&'static str),
    /// The program ends.
    #[error("the authority stops")]
    Stopped,
    /// It ends in the middle of a record, behind which nothing can be said.
    #[error("the authority stops, and it does not take what is sent")]
    Cut,
}

impl From<Elapsed> for End {
    fn from(_: Elapsed) -> Self {
        Self::Rude("it did not take what was sent")
    }
}

impl From<TooLong> for End {
    fn from(error: TooLong) -> Self {
        Self::Refused(CallError::Call(error.to_string()))
    }
}

impl From<prost::DecodeError> for End {
    fn from(error: prost::DecodeError) -> Self {
        Self::Refused(CallError::Call(error.to_string()))
    }
}

/// Admits who says the right things on a new connection; `None` when the connection is of no use any more.
pub(crate) async fn begin(
    service: Arc<Service>,
    mut connection: Box<TlsStream<TcpStream>>,
    places: &Places,
    source: SocketAddr,
) -> Option<Follower> {
    let opened = tokio::select! {
        opened = timeout(OPEN_TIMEOUT, read_open(&mut connection)) => opened,
        () = service.trust.stopped() => return None,
    };
    let opened = match opened {
        Ok(Ok(open)) => admit(&service, &open, places, source).await.map(|admitted| (open, admitted)),
        Ok(Err(End::Refused(error))) => Err(service.refuse(None, source, error)),
        Ok(Err(error)) => {
            tracing::debug!(%source, reason = %telemetry::chain(&error), "a stream did not begin");
            return None;
        }
        Err(_) => {
            tracing::debug!(%source, "a stream did not begin in time");
            return None;
        }
    };
    let (open, (who, place)) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let last = async {
                connection.write_all(&last_word(&error)).await?;
                connection.shutdown().await
            };
            // Who does not take it has the connection's end.
            let _told = timeout(END_TIMEOUT, last).await;
            return None;
        }
    };
    let (socket, connection) = connection.into_inner();
    let sealed = Sealed::take(connection);
    let sealed = sealed.inspect_err(|error| tracing::debug!(%source, reason = %telemetry::chain(error), "not a proxy"));
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mut follower = Follower {
        stream: service.followers.open(who, now),
        socket,
        sealed: sealed.ok()?,
        sent: 0,
        looked: service.trust.wakes(),
        unanswered_until: None,
        silent_until: Instant::now() + SILENCE_MAX,
        talk: 0,
        input: None,
        service,
        _place: place,
    };
    // Its clock is compared when it answers: in a rush this may have waited here.
    follower.heard(&open.status.unwrap_or_default());
    Some(follower)
}

/// The first message; nothing may come behind it.
async fn read_open(connection: &mut TlsStream<TcpStream>) -> Result<Open, End> {
    let (mut frames, mut bytes) = (Frames::default(), Vec::with_capacity(READ_BYTES));
    loop {
        if connection.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        frames.push(&bytes);
        bytes.clear();
        if let Some(message) = frames.next(OPEN_BYTES_MAX)? {
            if !frames.is_empty() {
                return Err(CallError::Call("something follows the first message".to_owned()).into());
            }
            return Ok(Open::decode(&*message)?);
        }
    }
}

async fn admit(
    service: &Service,
    open: &Open,
    places: &Places,
    source: SocketAddr,
) -> Result<(Who, OwnedSemaphorePermit), CallError> {
    let (caller, who) = service.admit(&open.token, source).await?;
    let place = places.take().map_err(|error| service.refuse(Some(&caller), source, error))?;
    Ok((who, place))
}

fn last_word(error: &CallError) -> Vec<u8> {
    let status = error.status();
    let end = trust::End { code: status.code().into(), message: status.message().to_owned() };
    frame(&Answer { what: Some(answer::What::End(end)) })
}

/// One stream. It is all that a connected proxy costs here, beside its entry in [`followers`].
pub(crate) struct Follower {
    service: Arc<Service>,
    stream: followers::Stream,
    socket: TcpStream,
    sealed: Sealed,
    /// The generation that was sent last.
    sent: u64,
    /// The wake at which it looked last.
    looked: u32,
    /// The proxy has the word: until then a bundle on its way counts as not arrived.
    unanswered_until: Option<Instant>,
    silent_until: Instant,
    /// Records and messages since the last look at the time.
    talk: u32,
    /// What is here of a message that is not whole.
    input: Option<Box<Input>>,
    /// Last: who gets it back knows that all else is gone.
    _place: OwnedSemaphorePermit,
}

/// What a stream does next.
enum Next {
    Stop,
    Send,
    Hear,
    Look,
}

#[derive(Debug)]
struct Input {
    sealed: Vec<u8>,
    frames: Frames,
    /// When its patience ends.
    until: Instant,
}

impl Follower {
    /// Serves it to its end.
    ///
    /// # Cancellation
    /// The connection is cut.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` would keep a place for `self` twice")]
    pub(crate) fn run(mut self) -> impl Future<Output = ()> + Send {
        async move {
            loop {
                // Only the waiting has its place here, for it is most of its life.
                let next = self.wait().await;
                let done = match next {
                    Next::Stop => Err(End::Stopped),
                    Next::Send => Box::pin(self.send_bundle()).await,
                    Next::Hear => Box::pin(self.hear()).await,
                    Next::Look => self.look(),
                };
                if let Err(end) = done {
                    break Box::pin(self.end(end));
                }
            }
            .await;
        }
    }

    /// Until something is to be done.
    async fn wait(&self) -> Next {
        let trust = &self.service.trust;
        // Before anything is looked at: what changes from here on wakes it.
        let mut woken = pin!(trust.woken());
        if trust.is_stopping() {
            return Next::Stop;
        }
        if trust.wakes() != self.looked {
            return Next::Look;
        }
        if self.unanswered_until.is_none() && trust.current().state.generation != self.sent {
            return Next::Send;
        }
        // Not `select!` and `readable()`, which are larger.
        poll_fn(|context| match self.socket.poll_read_ready(context) {
            // An error is one of the reading, too.
            Poll::Ready(_) => Poll::Ready(Next::Hear),
            Poll::Pending => woken.as_mut().poll(context).map(|()| Next::Look),
        })
        .await
    }

    /// At the time.
    fn look(&mut self) -> Result<(), End> {
        let now = Instant::now();
        self.looked = self.service.trust.wakes();
        self.talk = 0;
        if self.silent_until <= now {
            return Err(End::Rude("nothing was heard of it"));
        }
        if self.input.as_ref().is_some_and(|input| input.until <= now) {
            return Err(End::Rude("it did not finish a message"));
        }
        if self.unanswered_until.is_some_and(|until| until <= now) {
            self.unanswered_until = None;
        }
        let snapshot = self.service.trust.current();
        // Who does not answer gets no bundle now, which is where it is looked at otherwise.
        if snapshot.state.generation == self.sent { Ok(()) } else { self.admit_still(&snapshot.state) }
    }

    fn admit_still(&self, state: &State) -> Result<(), End> {
        let who = self.stream.who();
        let admitted = self.service.policy.admit_still(&who.identity, who.pod_uid.as_deref(), state);
        Ok(admitted.map_err(CallError::from)?)
    }

    /// The newest bundle.
    async fn send_bundle(&mut self) -> Result<(), End> {
        let snapshot = self.service.trust.current();
        self.admit_still(&snapshot.state)?;
        self.sent = snapshot.state.generation;
        self.unanswered_until = Some(Instant::now() + PATIENCE);
        let head = head(&snapshot.bundle, i64::try_from(unix_nanos()).unwrap_or(0));
        self.send_or_stop(Buf::chain(head, &*snapshot.bundle)).await
    }

    /// Sends, unless the program ends meanwhile.
    async fn send_or_stop(&mut self, plain: impl Buf) -> Result<(), End> {
        let trust = self.service.trust.clone();
        tokio::select! {
            biased;
            sent = self.send(plain) => sent,
            () = trust.stopped() => Err(End::Cut),
        }
    }

    async fn send(&mut self, mut plain: impl Buf) -> Result<(), End> {
        let Self { socket, sealed, .. } = self;
        let send = async {
            while plain.has_remaining() {
                let record = sealed.seal(&plain.copy_to_bytes(plain.remaining().min(PLAIN_BYTES_MAX)))?;
                timeout(RECORD_TIMEOUT, socket.write_all(&record)).await??;
            }
            Ok(())
        };
        timeout(SEND_TIMEOUT, send).await?
    }

    /// Reads once, and does what was said.
    async fn hear(&mut self) -> Result<(), End> {
        let mut input = self.input.take().unwrap_or_else(Input::new);
        input.sealed.reserve(READ_BYTES);
        match self.socket.try_read_buf(&mut input.sealed) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(_) => {}
            // The readiness was of before.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        let (mut opened, mut asked, mut heard) = (0, false, false);
        while let Some((plain, length)) = self.sealed.open(&mut input.sealed[opened..])? {
            opened += length;
            if plain.is_empty() {
                return Err(End::Rude("it sent an empty record"));
            }
            self.count()?;
            input.frames.push(plain);
            while let Some(message) = input.frames.next(SAID_BYTES_MAX)? {
                (asked, heard) = (asked || message.is_empty(), true);
                self.count()?;
                if !message.is_empty() {
                    self.take(&Said::decode(&*message)?);
                }
            }
        }
        input.sealed.drain(..opened);
        if heard {
            self.silent_until = Instant::now() + SILENCE_MAX;
            input.until = Instant::now() + MESSAGE_TIMEOUT;
        }
        self.input = (!input.is_empty()).then_some(input);
        if asked {
            self.send_or_stop(&frames::length(0)[..]).await?;
        }
        // Who says much does not keep the others from being heard.
        tokio::task::yield_now().await;
        Ok(())
    }

    fn count(&mut self) -> Result<(), End> {
        self.talk += 1;
        if self.talk > TALK_MAX { Err(End::Rude("it says too much")) } else { Ok(()) }
    }

    /// Tells the proxy why, if there is something to tell, and that nothing follows.
    async fn end(&mut self, end: End) {
        let reason = telemetry::chain(&end).to_string();
        tracing::debug!(who = %self.stream.who(), reason, "a stream ends");
        let last = match &end {
            End::Refused(error) => last_word(error),
            End::Stopped => Vec::new(),
            // There is nobody to tell, or nothing can be told any more.
            End::Io(_) | End::Seal(_) | End::Rude(_) | End::Cut => return,
        };
        let say = async {
            self.send(&*last).await?;
            self.socket.write_all(&self.sealed.seal_end()?).await?;
            self.socket.shutdown().await.map_err(End::from)
        };
        let _told = timeout(END_TIMEOUT, say).await;
    }

    fn take(&mut self, said: &Said) {
        self.heard(said);
        self.compare_clocks(said.time_unix_nanos);
    }

    fn heard(&mut self, said: &Said) {
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

impl Input {
    fn new() -> Box<Self> {
        let until = Instant::now() + MESSAGE_TIMEOUT;
        Box::new(Self { sealed: Vec::new(), frames: Frames::default(), until })
    }

    fn is_empty(&self) -> bool {
        self.sealed.is_empty() && self.frames.is_empty()
    }
}

/// What stands before the bytes of a bundle that all streams share.
fn head(bundle: &[u8], time_unix_nanos: i64) -> io::Cursor<Vec<u8>> {
    let (mut time, mut field) = (Vec::new(), Vec::new());
    // Bundle.time_unix_nanos = 6; a field may stand anywhere.
    int64::encode(6, &time_unix_nanos, &mut time);
    let length = time.len() + bundle.len();
    // Answer.bundle = 1
    encode_key(1, WireType::LengthDelimited, &mut field);
    encode_varint(length as u64, &mut field);
    let mut head = frames::length(field.len() + length).to_vec();
    head.extend(field);
    head.extend(time);
    io::Cursor::new(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::trust::Bundle;

    #[test]
    fn the_state_of_a_stream_is_small() {
        fn size_of_run<F>(_: impl Fn(Follower) -> F) -> usize {
            size_of::<F>()
        }
        let sizes = (size_of::<Follower>(), size_of_run(Follower::run));
        // With a task's own 104 bytes it is 512: the next size that tokio allocates is 640, and 768 for most allocators.
        assert!(sizes.0 <= 280 && sizes.1 <= 408, "{sizes:?} bytes");
    }

    #[test]
    fn the_shared_bytes_and_the_time_are_one_message() {
        let bundle = Bundle { generation: 7, roots: vec![vec![1, 2, 3]], ..Bundle::default() };
        let shared = bundle.encode_to_vec();
        let mut frames = Frames::default();
        frames.push(head(&shared, 5).get_ref());
        frames.push(&shared);
        let message = frames.next(100).unwrap().unwrap();
        let what = Some(answer::What::Bundle(Bundle { time_unix_nanos: 5, ..bundle }));
        assert_eq!(Answer::decode(&*message).unwrap(), Answer { what });
        assert!(frames.is_empty());
    }
}
