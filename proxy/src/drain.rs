//! Shutdown, as connections see it: polite first (finish what is in flight), firm later (the worker cuts the rest).

use tokio::sync::watch;

/// Tells a connection when to take no further request.
#[derive(Debug, Clone)]
pub struct Drain(watch::Receiver<bool>);

/// The other end of [`Drain`]; to drop it means to drain.
pub type DrainSignal = watch::Sender<bool>;

/// A signal and what waits for it.
pub fn channel() -> (DrainSignal, Drain) {
    let (signal, drain) = watch::channel(false);
    (signal, Drain(drain))
}

impl Drain {
    /// True once the proxy is stopping.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the proxy stops.
    ///
    /// # Cancellation
    /// Safe: nothing is lost.
    pub async fn wait(&mut self) {
        // An error means that the signal is gone, which is a shutdown too.
        let _gone = self.0.wait_for(|draining| *draining).await;
    }
}
