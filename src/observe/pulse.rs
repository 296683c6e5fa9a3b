//! Signs of life of a loop, for whoever must notice that there are none.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a loop that waits for something else says that it is well.
const WAITING: Duration = Duration::from_secs(10);

/// When a loop last gave a sign of life.
#[derive(Debug)]
pub(crate) struct Pulse(Mutex<Instant>);

impl Default for Pulse {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Pulse {
    /// The loop goes on.
    pub(crate) fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Awaits something that may take as long as it likes, such as another link.
    pub(crate) async fn while_waiting<T>(&self, something: impl Future<Output = T>) -> T {
        tokio::pin!(something);
        loop {
            tokio::select! {
                done = &mut something => return done,
                () = tokio::time::sleep(WAITING) => self.beat(),
            }
        }
    }

    /// Ends when there was no sign of life for so long, and tells for how long.
    pub(crate) async fn stopped(&self, limit: Duration) -> Duration {
        loop {
            let silent = self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            match limit.checked_sub(silent) {
                Some(rest) if !rest.is_zero() => tokio::time::sleep(rest).await,
                _ => return silent,
            }
        }
    }
}
