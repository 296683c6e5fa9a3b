//! How much goes into one transaction: more where the way to the destination is long.

use std::time::Duration;

use crate::mongo::statement;
use crate::sync::distance::times;
use crate::sync::queue::Weight;

/// What a batch holds at most where the destination is near; one reply of a server more may still be in it.
const NEAR: Weight = Weight { events: 10_000, bytes: 5_000_000 };

/// How many bytes one command to a near destination has at most: it is copied several times on its way.
const NEAR_COMMAND: usize = 1_000_000;

/// The size of a link's batches, learnt from the round trips to its destination.
#[derive(Debug, Default)]
pub(super) struct BatchSize {
    round_trip: Duration,
}

impl BatchSize {
    /// A statement that is little work has taken so long.
    pub(super) fn learn(&mut self, round_trip: Duration) {
        const WEIGHT: u32 = 4;
        self.round_trip = (self.round_trip * (WEIGHT - 1) + round_trip) / WEIGHT;
    }

    /// What a batch may hold.
    pub(super) fn limit(&self) -> Weight {
        let times = times(self.round_trip);
        Weight { events: NEAR.events * times, bytes: NEAR.bytes * times }
    }

    /// How many bytes one command of a batch may have: to a near destination a round trip more costs less than the memory.
    pub(super) fn command_bytes(&self) -> usize {
        if times(self.round_trip) == 1 { NEAR_COMMAND } else { statement::MOST_BYTES }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_with_the_way_and_shrink_again() {
        let mut size = BatchSize::default();
        assert_eq!((size.limit(), size.command_bytes()), (NEAR, NEAR_COMMAND));
        for _ in 0..20 {
            size.learn(Duration::from_millis(60));
        }
        let times = times(Duration::from_millis(59));
        assert_eq!(size.limit(), Weight { events: times * NEAR.events, bytes: times * NEAR.bytes });
        assert_eq!(size.command_bytes(), statement::MOST_BYTES);
        for _ in 0..40 {
            size.learn(Duration::from_millis(1));
        }
        assert_eq!(size.limit(), NEAR);
    }

    #[test]
    fn one_slow_answer_changes_little() {
        let mut size = BatchSize::default();
        size.learn(Duration::from_millis(50));
        assert_eq!(size.limit(), NEAR);
    }
}
