//! The proxy's end of the trust bundle stream, over whatever connection it was given.
//!
//! Promises: an authority that says nothing is noticed, and one that takes nothing. Leaves to others: the connection
//! itself, and what follows from a bundle.

use std::io;
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Code;

use crate::frames::{Frames, frame, length};
use crate::trust::{Answer, Bundle, Open, Status, answer};

/// How often the authority is asked whether it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long it may take to answer that, and to take what is said.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A bundle with ten thousand denials has less than a quarter of this.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Bytes that are read at once.
const READ_BYTES: usize = 2 << 10;

/// A trust bundle stream.
#[derive(Debug)]
pub struct Stream<S> {
    connection: S,
    frames: Frames,
    read: Vec<u8>,
    /// When the authority is asked, or its silence is its end.
    next: Instant,
    asked: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream<S> {
    /// Begins to follow.
    ///
    /// # Errors
    /// When the connection breaks. What the authority thinks of the token comes from [`Self::bundle`].
    pub async fn open(connection: S, token: &str, status: Status) -> Result<Self, tonic::Status> {
        let next = Instant::now() + KEEP_ALIVE;
        let mut stream = Self { connection, frames: Frames::default(), read: Vec::new(), next, asked: false };
        let open = Open { token: token.to_owned(), status: Some(status) };
        stream.send(&frame(&open)).await?;
        Ok(stream)
    }

    /// The next bundle; `None` when the connection ended without a word.
    ///
    /// # Errors
    /// What the authority said last, or what is wrong with the connection.
    ///
    /// # Cancellation
    /// Nothing is lost.
    pub async fn bundle(&mut self) -> Result<Option<Bundle>, tonic::Status> {
        loop {
            let message = self.frames.next(ANSWER_BYTES_MAX);
            if let Some(message) = message.map_err(|error| tonic::Status::out_of_range(error.to_string()))? {
                if message.is_empty() {
                    continue;
                }
                return understand(&message).map(Some);
            }
            tokio::select! {
                read = read(&mut self.connection, &mut self.read) => {
                    let count = read.map_err(broken)?;
                    self.frames.push(&std::mem::take(&mut self.read));
                    if count == 0 {
                        return Ok(None);
                    }
                    if self.asked {
                        (self.asked, self.next) = (false, Instant::now() + KEEP_ALIVE);
                    }
                }
                () = sleep_until(self.next) => {
                    if self.asked {
                        return Err(tonic::Status::deadline_exceeded("the authority has fallen silent"));
                    }
                    // First: if this call is dropped while it writes, the question counts as asked.
                    (self.asked, self.next) = (true, Instant::now() + KEEP_ALIVE_TIMEOUT);
                    self.send(&length(0)).await?;
                }
            }
        }
    }

    /// Says what is in use; not before the first bundle.
    ///
    /// # Errors
    /// When the connection breaks, or the authority takes nothing.
    ///
    /// # Cancellation
    /// The stream cannot be used any more.
    pub async fn say(&mut self, status: &Status) -> Result<(), tonic::Status> {
        self.send(&frame(status)).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), tonic::Status> {
        let write = async {
            self.connection.write_all(bytes).await?;
            self.connection.flush().await
        };
        let written = timeout(KEEP_ALIVE_TIMEOUT, write).await;
        written.map_err(|_| tonic::Status::deadline_exceeded("the authority takes nothing"))?.map_err(broken)
    }
}

async fn read<S: AsyncRead + Unpin>(connection: &mut S, into: &mut Vec<u8>) -> io::Result<usize> {
    into.reserve(READ_BYTES);
    connection.read_buf(into).await
}

fn understand(message: &[u8]) -> Result<Bundle, tonic::Status> {
    let answer = Answer::decode(message).map_err(|error| tonic::Status::internal(error.to_string()))?;
    match answer.what {
        Some(answer::What::Bundle(bundle)) => Ok(bundle),
        Some(answer::What::End(end)) => Err(tonic::Status::new(Code::from_i32(end.code), end.message)),
        None => Err(tonic::Status::internal("an answer without anything in it")),
    }
}

fn broken(error: io::Error) -> tonic::Status {
    tonic::Status::unavailable(format!("the connection broke: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    async fn opened() -> (Stream<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (ours, mut theirs) = duplex(1 << 10);
        let stream = Stream::open(ours, "token", Status::default()).await.unwrap();
        let mut open = vec![0; frame(&Open { token: "token".into(), status: Some(Status::default()) }).len()];
        theirs.read_exact(&mut open).await.unwrap();
        (stream, theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_and_answers_to_questions_keep_the_stream() {
        let (mut stream, mut theirs) = opened().await;
        let authority = tokio::spawn(async move {
            let mut question = [1; 4];
            for _ in 0..3 {
                theirs.read_exact(&mut question).await.unwrap();
                assert_eq!(question, [0; 4]);
                theirs.write_all(&length(0)).await.unwrap();
            }
            theirs
        });
        let begun = Instant::now();
        let error = stream.bundle().await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
        assert_eq!(begun.elapsed(), KEEP_ALIVE * 4 + KEEP_ALIVE_TIMEOUT);
        drop(authority.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_noticed() {
        let (mut stream, _theirs) = opened().await;
        let status = Status { refused: "x".repeat(2 << 10), ..Status::default() };
        assert_eq!(stream.say(&status).await.unwrap_err().code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn bundles_and_the_last_word_come_as_they_were_sent() {
        let (mut stream, mut theirs) = opened().await;
        let bundle = Bundle { generation: 7, ..Bundle::default() };
        let answers = [
            answer::What::Bundle(bundle.clone()),
            answer::What::End(crate::trust::End { code: Code::PermissionDenied.into(), message: "no".into() }),
        ];
        for what in answers {
            theirs.write_all(&frame(&Answer { what: Some(what) })).await.unwrap();
        }
        assert_eq!(stream.bundle().await.unwrap(), Some(bundle));
        let end = stream.bundle().await.unwrap_err();
        assert_eq!((end.code(), end.message()), (Code::PermissionDenied, "no"));
        drop(theirs);
        assert_eq!(stream.bundle().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_huge_answer_is_refused_at_its_length() {
        let (mut stream, mut theirs) = opened().await;
        theirs.write_all(&length(ANSWER_BYTES_MAX + 1)).await.unwrap();
        assert_eq!(stream.bundle().await.unwrap_err().code(), Code::OutOfRange);
    }
}
