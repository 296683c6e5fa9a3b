//! Haste: somebody waits until the change streams of a server pass a moment.
//!
//! A quiet stream reports its position only with the server's next reply, after a second. While somebody waits, streams
//! ask for replies much sooner.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time for which streams stay hasty: the waits of a comparison follow each other.
const LASTS: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Haste(Mutex<Option<Instant>>);

impl Haste {
    pub(super) fn ask(&self, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now + LASTS);
    }

    pub(super) fn is_asked(&self, now: Instant) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haste_ends_some_time_after_it_was_last_asked_for() {
        let (haste, now) = (Haste::default(), Instant::now());
        assert!(!haste.is_asked(now));
        haste.ask(now);
        assert!(haste.is_asked(now) && !haste.is_asked(now + LASTS));
        haste.ask(now + LASTS);
        assert!(haste.is_asked(now + LASTS));
    }
}
