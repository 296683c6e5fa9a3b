//! How much goes into one transaction: more where the way to the destination is long.

use std::time::Duration;

use crate::mongo::statement;
use crate::sync::distance::times;
use crate::sync::queue::Weight;

/// What a batch holds at most where the destination is near; one reply of a server more may still be in it.
const NEAR: Weight = Weight { events: 10_000, bytes: 5_000_000 };

/// How many bytes one command to a near destination has at most: it is copied several times on its way.
const NEAR_COMMAND: usize = 1_000_000;

/// What a batch may hold, where a round trip takes so long.
pub(super) fn limit(round_trip: Duration) -> Weight {
    let times = times(round_trip);
    Weight { events: NEAR.events * times, bytes: NEAR.bytes * times }
}

/// How many bytes one command of a batch may have: to a near destination a round trip more costs less than the memory.
pub(super) fn command_bytes(round_trip: Duration) -> usize {
    if times(round_trip) == 1 { NEAR_COMMAND } else { statement::MOST_BYTES }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_and_commands_grow_with_the_way() {
        let near = Duration::from_millis(1);
        assert_eq!((limit(near), command_bytes(near)), (NEAR, NEAR_COMMAND));
        let far = Duration::from_millis(60);
        let times = times(far);
        assert_eq!(limit(far), Weight { events: times * NEAR.events, bytes: times * NEAR.bytes });
        assert_eq!(command_bytes(far), statement::MOST_BYTES);
    }
}
