//! How much goes into one transaction: more where the way to the destination is long, and no more than it carries in time.

use std::time::Duration;

use crate::mongo::server::{CALL_LIMIT, Server};
use crate::mongo::statement;
use crate::rules::distance::times;
use crate::rules::queue::Weight;

/// What a batch holds at most where the destination is near; one reply of a server more may still be in it.
const NEAR: Weight = Weight { events: 10_000, bytes: 5_000_000 };

/// How many bytes one command to a near destination has at most: it is copied several times on its way.
const NEAR_COMMAND: usize = 1_000_000;

/// However narrow the way is, so many bytes are sent at once: it can be measured by them.
const LEAST: usize = 200_000;

/// A command should be there within this, of the time that it has.
const COMMAND_TIME: Duration = CALL_LIMIT.checked_div(10).expect("10 is not 0");

/// The commands of a transaction should be there within this, of the minute that a server gives a transaction by default
/// (`transactionLifetimeLimitSeconds`). It may have twice as many bytes.
const TRANSACTION_TIME: Duration = Duration::from_secs(12);

/// The way to a destination at present.
#[derive(Clone, Copy)]
pub(super) struct Way {
    /// How long a round trip takes.
    round_trip: Duration,
    /// How many bytes a second it carries, if that was measured.
    throughput: Option<u64>,
}

impl Way {
    /// The way to this one.
    pub(super) fn to(server: &Server) -> Self {
        Self { round_trip: server.round_trip(), throughput: server.throughput() }
    }

    /// What a batch may hold.
    pub(super) fn batch(self) -> Weight {
        let times = times(self.round_trip);
        Weight { events: NEAR.events * times, bytes: self.carried_in(TRANSACTION_TIME).min(NEAR.bytes * times) }
    }

    /// How many bytes one command of a batch may have: to a near destination a round trip more costs less than the memory.
    pub(super) fn command_bytes(self) -> usize {
        let most = if times(self.round_trip) == 1 { NEAR_COMMAND } else { statement::MOST_BYTES };
        self.carried_in(COMMAND_TIME).min(most)
    }

    fn carried_in(self, time: Duration) -> usize {
        let Some(throughput) = self.throughput else { return NEAR_COMMAND };
        usize::try_from(throughput.saturating_mul(time.as_secs())).unwrap_or(usize::MAX).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(milliseconds: u64, throughput: u64) -> Way {
        Way { round_trip: Duration::from_millis(milliseconds), throughput: Some(throughput) }
    }

    #[test]
    fn batches_and_commands_grow_with_the_way() {
        let near = way(1, 100_000_000);
        assert_eq!((near.batch(), near.command_bytes()), (NEAR, NEAR_COMMAND));
        let far = way(60, 100_000_000);
        let times = times(far.round_trip);
        assert_eq!(far.batch(), Weight { events: times * NEAR.events, bytes: times * NEAR.bytes });
        assert_eq!(far.command_bytes(), statement::MOST_BYTES);
    }

    #[test]
    fn a_narrow_way_is_given_what_it_carries_in_time_and_an_unknown_one_little() {
        let narrow = way(60, 250_000);
        assert_eq!((narrow.batch().bytes, narrow.command_bytes()), (3_000_000, 750_000));
        let stuck = way(60, 1);
        assert_eq!((stuck.batch().bytes, stuck.command_bytes()), (LEAST, LEAST));
        let unknown = Way { throughput: None, ..narrow };
        assert_eq!((unknown.batch().bytes, unknown.command_bytes()), (NEAR_COMMAND, NEAR_COMMAND));
    }
}
