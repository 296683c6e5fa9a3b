//! The times of a cluster, all of which follow from the time of a lease.

use std::time::Duration;

/// Interval at which a member with others looks at the hub. Members without a common spoke are no others.
const LOOK: Duration = Duration::from_millis(300);

/// The same for a member alone, at most: another one may join.
const LONE_LOOK: Duration = Duration::from_secs(5);

/// The same while the member waits for a lease that another gives up: the spoke stands still meanwhile.
const EAGER_LOOK: Duration = Duration::from_millis(50);

/// The times of a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    lease: Duration,
}

impl Pace {
    /// `lease`: the time within which the spokes of a dead process stream elsewhere.
    pub(crate) fn new(lease: Duration) -> Self {
        Self { lease }
    }

    /// Age of a heartbeat from which the member counts as dead. The rest of the lease is for the takeover itself.
    pub(crate) fn dead_after(self) -> Duration {
        self.lease * 3 / 4
    }

    /// Interval of the heartbeats: a member may miss two.
    pub(crate) fn beat(self) -> Duration {
        self.lease / 4
    }

    /// Time for which a member must have beaten regularly before it declares others dead: after an outage of the hub
    /// every heartbeat is old, and each living member beats within this time.
    pub(crate) fn steady(self) -> Duration {
        self.beat() * 2
    }

    /// Interval between two looks at the hub. `missing`: the number of leases that the member waits for.
    pub(crate) fn look(self, has_others: bool, missing: usize) -> Duration {
        match (has_others, missing) {
            (false, _) => self.beat().min(LONE_LOOK),
            (true, 0) => LOOK,
            (true, _) => EAGER_LOOK,
        }
    }

    /// Time for the hub to answer a heartbeat.
    pub(crate) fn answer(self) -> Duration {
        self.dead_after() / 2
    }

    /// Time for one round of the loop. A hub that does not answer on one connection may answer on another, before the
    /// others take the process for dead.
    pub(crate) fn round(self) -> Duration {
        self.dead_after() * 2 / 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_takeover_fits_into_the_time_of_a_lease() {
        for seconds in [3, 10, 300] {
            let lease = Duration::from_secs(seconds);
            let pace = Pace::new(lease);
            assert!(pace.dead_after() + pace.look(true, 0) < lease);
            assert!(pace.beat() * 2 < pace.dead_after(), "a single late heartbeat is no death");
            assert!(pace.steady() > pace.beat() && pace.steady() < pace.dead_after());
            assert!(
                pace.beat() + pace.look(true, 0) + pace.answer() < pace.dead_after(),
                "there is time for another try"
            );
        }
    }
}
