//! A trust bundle stream that is kept alive beside the test: what is to be said goes in here, bundles come out there.
//!
//! Promises: the stream ends when either end is dropped. Leaves to others: the connection under it.

use api::follow::Stream;
use api::trust::{Bundle, Status};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Bundles of a stream.
#[derive(Debug)]
pub struct Bundles(mpsc::Receiver<Result<Bundle, tonic::Status>>);

impl Bundles {
    /// The next one; `None` when the stream ended without a word.
    ///
    /// # Errors
    /// The last word, or what is wrong with the connection.
    pub async fn message(&mut self) -> Result<Option<Bundle>, tonic::Status> {
        self.0.recv().await.transpose()
    }
}

/// Keeps `stream` on a task.
pub fn follow<S>(mut stream: Stream<S>) -> (mpsc::Sender<Status>, Bundles)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (say, mut said) = mpsc::channel::<Status>(8);
    let (heard, bundles) = mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                bundle = stream.bundle() => bundle.transpose(),
                status = said.recv() => match status {
                    Some(status) => match stream.say(&status).await {
                        Ok(()) => continue,
                        Err(error) => Some(Err(error)),
                    },
                    None => return,
                },
            };
            let Some(next) = next else { return };
            let last = next.is_err();
            if heard.send(next).await.is_err() || last {
                return;
            }
        }
    });
    (say, Bundles(bundles))
}
