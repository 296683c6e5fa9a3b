//! When a child that ended is started again.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use super::Outcome;
use crate::mongo::error::Failure;

/// The first delay; each is twice the one before.
const FIRST: Duration = Duration::from_millis(100);

/// No delay is longer, but for jitter.
const LONGEST: Duration = Duration::from_secs(30);

/// A child that ran for so long was well: the next delay is the first one again, and the budget is full.
const HEALTHY: Duration = Duration::from_secs(60);

/// So many failures without a healthy period, of servers that do answer, are a storm. With the delays between them that takes
/// some five minutes.
const BUDGET: u32 = 15;

/// A child that cannot work before somebody changes something is tried all the same, as the change may not be told to us.
const HALTED: Duration = Duration::from_secs(60);

/// What to do about a child that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It was told to stop.
    Nothing,
    /// It is started again after this delay.
    After(Duration),
    /// It cannot work, for this reason; it is tried again after this long delay.
    Halt(String, Duration),
}

/// The restarts of one child.
#[derive(Debug)]
pub(super) struct Restarts {
    delays: ExponentialBackoff,
    started: Instant,
    failures: u32,
}

impl Default for Restarts {
    fn default() -> Self {
        Self { delays: delays(), started: Instant::now(), failures: 0 }
    }
}

impl Restarts {
    /// The child starts now.
    pub(super) fn start(&mut self, now: Instant) {
        self.started = now;
    }

    /// Somebody wants it to be tried as if it had never failed.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The child ended now.
    pub(super) fn end(&mut self, outcome: &Outcome, now: Instant) -> Next {
        if now.duration_since(self.started) >= HEALTHY {
            self.forget();
        }
        match outcome {
            Outcome::Stopped => return Next::Nothing,
            Outcome::Failed(Failure::Fatal, reason) => return Next::Halt(reason.clone(), HALTED),
            // That ends by itself when the server is back, however long it takes.
            Outcome::Failed(Failure::Unreachable, _) => {}
            _ => self.failures += 1,
        }
        if self.failures >= BUDGET {
            let reason = format!("{} failures without a healthy minute, the last: {}", self.failures, outcome.reason());
            return Next::Halt(reason, HALTED);
        }
        Next::After(self.delays.next().unwrap_or(LONGEST))
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
        Outcome::Failed(Failure::Transient, "no".to_owned())
    }

    fn unreachable() -> Outcome {
        Outcome::Failed(Failure::Unreachable, "away".to_owned())
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
        let first = delay(restarts.end(&unreachable(), now));
        assert!((FIRST..2 * FIRST + Duration::from_millis(1)).contains(&first), "{first:?}");
        for _ in 0..20 {
            restarts.start(now);
            restarts.end(&unreachable(), now);
        }
        let late = delay(restarts.end(&unreachable(), now));
        assert!((LONGEST..=2 * LONGEST).contains(&late), "{late:?}");
        assert!(delay(restarts.end(&unreachable(), now + HEALTHY)) <= 2 * FIRST);
    }

    #[test]
    fn what_nobody_can_heal_by_trying_halts() {
        let mut restarts = Restarts::default();
        let fatal = Outcome::Failed(Failure::Fatal, "wrong password".to_owned());
        assert_eq!(restarts.end(&fatal, Instant::now()), Next::Halt("wrong password".to_owned(), HALTED));
        assert_eq!(restarts.end(&Outcome::Stopped, Instant::now()), Next::Nothing);
    }

    #[test]
    fn a_storm_of_restarts_halts_until_a_healthy_period_or_a_person_ends_it() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        restarts.start(now);
        for _ in 1..BUDGET {
            delay(restarts.end(&failed(), now));
        }
        for outcome in [failed(), Outcome::Panicked("oh".to_owned()), Outcome::NoProgress(HEALTHY)] {
            assert!(matches!(restarts.end(&outcome, now), Next::Halt(reason, HALTED) if reason.contains("failures")));
        }
        delay(restarts.end(&failed(), now + HEALTHY));
        for _ in 0..BUDGET {
            restarts.end(&failed(), now);
        }
        restarts.forget();
        delay(restarts.end(&failed(), now));
    }

    #[test]
    fn a_server_that_is_away_for_long_is_no_storm() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        restarts.start(now);
        for _ in 0..10 * BUDGET {
            delay(restarts.end(&unreachable(), now));
        }
    }
}
