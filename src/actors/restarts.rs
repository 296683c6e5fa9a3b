//! Decides when a child that has ended starts again: after a growing delay, or as halted once a minute.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use super::Outcome;
use crate::mongo::error::Failure;

/// The first delay. Each further delay is twice as long as the one before.
const FIRST: Duration = Duration::from_millis(100);

/// The longest delay, without jitter. Jitter adds at most the delay once more.
const LONGEST: Duration = Duration::from_secs(30);

/// A child that ran for 60 s counts as healthy: delay and failure count start again from the beginning.
const HEALTHY: Duration = Duration::from_secs(60);

/// Failures without a healthy period before a child halts; an unreachable server does not count. With the delays in
/// between, 15 failures take about five minutes.
const BUDGET: u32 = 15;

/// Delay of a halted child. Only a change by a person helps, but spokesync may not learn of the change, so it keeps
/// trying.
const HALTED: Duration = Duration::from_secs(60);

/// The supervisor's next step after a child has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The child stopped on request.
    Nothing,
    /// Start the child again after the delay.
    After(Duration),
    /// Show the child as halted, with the reason, and start it again after the delay.
    Halt(String, Duration),
}

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
    pub(super) fn start(&mut self, now: Instant) {
        self.started = now;
    }

    /// Forgets all failures, after an operator's command or a reload.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Records the end of the child, and returns the next step.
    pub(super) fn end(&mut self, outcome: &Outcome, now: Instant) -> Next {
        if now.duration_since(self.started) >= HEALTHY {
            self.forget();
        }
        match outcome {
            Outcome::Stopped => return Next::Nothing,
            Outcome::Failed(Failure::Fatal, reason) => return Next::Halt(reason.clone(), HALTED),
            // An outage ends without help from a person as soon as the server is back, so it never halts a child. Nor
            // does another process that runs the link.
            Outcome::Failed(Failure::Unreachable | Failure::Displaced, _) => {}
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
