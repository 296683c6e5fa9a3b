//! When a child that ended is started again.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use super::Outcome;
use crate::mongo::error::Failure;

/// The first delay; each is twice the one before.
const FIRST: Duration = Duration::from_millis(100);

/// No delay is longer, but for jitter.
const LONGEST: Duration = Duration::from_secs(30);

/// A child that ran for so long was well: the next delay is the first one again.
const HEALTHY: Duration = Duration::from_secs(60);

/// A child that cannot work before somebody changes something is tried all the same, as the change may not be told to us.
const HALTED: Duration = Duration::from_secs(60);

/// What to do about a child that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It was told to stop.
    Nothing,
    /// It is started again after this delay.
    After(Duration),
    /// It cannot work; it is tried again after this long delay.
    Halt(Duration),
}

/// The restarts of one child.
#[derive(Debug)]
pub(super) struct Restarts {
    delays: ExponentialBackoff,
    started: Instant,
}

impl Default for Restarts {
    fn default() -> Self {
        Self { delays: delays(), started: Instant::now() }
    }
}

impl Restarts {
    /// The child starts now.
    pub(super) fn start(&mut self, now: Instant) {
        self.started = now;
    }

    /// The child ended now.
    pub(super) fn end(&mut self, outcome: &Outcome, now: Instant) -> Next {
        if now.duration_since(self.started) >= HEALTHY {
            self.delays = delays();
        }
        match outcome {
            Outcome::Stopped => Next::Nothing,
            Outcome::Failed(Failure::Fatal | Failure::HistoryLost, _) => Next::Halt(HALTED),
            Outcome::Failed(Failure::Transient, _) | Outcome::Panicked(_) => {
                Next::After(self.delays.next().unwrap_or(LONGEST))
            }
        }
    }
}

fn delays() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST)
        .with_max_delay(LONGEST)
        .without_max_times()
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Outcome {
        Outcome::Failed(Failure::Transient, String::new())
    }

    fn delay(next: Next) -> Duration {
        match next {
            Next::After(delay) => delay,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn delays_grow_until_a_healthy_period_resets_them() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        restarts.start(now);
        let first = delay(restarts.end(&failed(), now));
        assert!((FIRST..2 * FIRST + Duration::from_millis(1)).contains(&first), "{first:?}");
        for _ in 0..20 {
            restarts.start(now);
            restarts.end(&failed(), now);
        }
        let late = delay(restarts.end(&failed(), now));
        assert!((LONGEST..=2 * LONGEST).contains(&late), "{late:?}");
        assert!(delay(restarts.end(&failed(), now + HEALTHY)) <= 2 * FIRST);
    }

    #[test]
    fn what_nobody_can_heal_by_trying_halts() {
        let mut restarts = Restarts::default();
        let fatal = Outcome::Failed(Failure::Fatal, String::new());
        assert_eq!(restarts.end(&fatal, Instant::now()), Next::Halt(HALTED));
        assert_eq!(restarts.end(&Outcome::Stopped, Instant::now()), Next::Nothing);
    }
}
