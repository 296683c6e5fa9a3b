//! Signs of life of a loop. Without a sign of life for too long, the loop's actor gives the loop up.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Interval between signs of life while a loop waits for something else.
const WAITING: Duration = Duration::from_secs(10);

/// Time of a loop's last sign of life.
#[derive(Debug)]
pub(crate) struct Pulse(Mutex<Instant>);

impl Default for Pulse {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Pulse {
    pub(crate) fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Awaits something without a time limit, such as another link, and records signs of life meanwhile.
    pub(crate) async fn while_waiting<T>(&self, something: impl Future<Output = T>) -> T {
        tokio::pin!(something);
        loop {
            tokio::select! {
                done = &mut something => return done,
                () = tokio::time::sleep(WAITING) => self.beat(),
            }
        }
    }

    /// Waits until the last sign of life is at least `limit` ago. Returns the duration of the silence.
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
