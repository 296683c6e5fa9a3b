//! Limits the read rate.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

pub(super) struct Pace {
    /// Time per document.
    each: Duration,
    /// Time of the next permitted read.
    next: Mutex<Instant>,
}

impl Pace {
    /// A limit in documents per second. 0 means unlimited.
    pub(super) fn new(documents_per_second: u32) -> Self {
        let each = Duration::from_secs(1).checked_div(documents_per_second).unwrap_or_default();
        Self { each, next: Mutex::new(Instant::now()) }
    }

    /// Accounts for a read of `documents` documents, and waits until the next read is permitted.
    pub(super) async fn wait(&self, documents: usize) {
        if self.each.is_zero() {
            return;
        }
        let until = {
            let mut next = self.next.lock().await;
            *next = (*next).max(Instant::now()) + self.each * u32::try_from(documents).unwrap_or(u32::MAX);
            *next
        };
        tokio::time::sleep_until(until.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn documents_are_read_no_faster_than_asked() {
        let pace = Pace::new(1_000);
        let begun = Instant::now();
        pace.wait(50).await;
        pace.wait(50).await;
        assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
        let free = Pace::new(0);
        for _ in 0..1_000 {
            free.wait(1_000_000).await;
        }
    }
}
