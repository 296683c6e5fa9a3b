//! How much more is sent at once where the way is long, so that more changes share its round trips. What is sent at once is in memory, so
//! it is no more than that takes.

use std::time::Duration;

/// For each such time of a round trip once more is sent at once.
const STEP: Duration = Duration::from_millis(15);

/// At most so many times what is sent to a near place.
const MOST: usize = 4;

/// How many times as much as to a near place, where a round trip takes so long.
pub(crate) fn times(round_trip: Duration) -> usize {
    let steps = usize::try_from(round_trip.as_nanos() / STEP.as_nanos()).unwrap_or(MOST);
    (1 + steps).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_the_way_the_more_up_to_a_limit() {
        let times_of = |milliseconds| times(Duration::from_millis(milliseconds));
        assert_eq!([0, 1, 14, 15, 31, 50, 5_000].map(times_of), [1, 1, 1, 2, 3, 4, 4]);
        assert_eq!(times(Duration::MAX), MOST);
    }
}
