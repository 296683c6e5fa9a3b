//! Whether a server's majority stands still: applications write, and no majority of the replica set confirms it. A
//! change stream then brings nothing, and looks like that of a quiet server.

use std::time::{Duration, Instant};

use bson::Timestamp;

/// Time without progress after which the majority counts as standing still.
const LIMIT: Duration = Duration::from_secs(3);

/// The newest writes of a replica set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Writes {
    /// The newest write at the primary.
    pub(crate) newest: Timestamp,
    /// The newest write that a majority has confirmed.
    pub(crate) confirmed: Timestamp,
}

/// What was seen of a replica set's writes so far.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    confirmed: Option<Timestamp>,
    /// Time at which unconfirmed writes were seen first, since the newest confirmation.
    waiting_since: Option<Instant>,
}

impl Watch {
    /// Returns the time since which the majority stands still, if it does.
    pub(crate) fn see(&mut self, writes: Writes, now: Instant) -> Option<Instant> {
        let has_moved = self.confirmed.replace(writes.confirmed) != Some(writes.confirmed);
        if writes.newest <= writes.confirmed {
            self.waiting_since = None;
        } else if has_moved || self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
        self.waiting_since.filter(|since| now.duration_since(*since) >= LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_that_wait_while_nothing_is_confirmed_are_a_standstill() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        let mut see = |seconds: u64, newest, confirmed| {
            let at = |time| Timestamp { time, increment: 0 };
            let writes = Writes { newest: at(newest), confirmed: at(confirmed) };
            let since = watch.see(writes, begun + Duration::from_secs(seconds));
            since.map(|since| since.duration_since(begun).as_secs())
        };
        // A quiet server, and a busy one whose confirmations are always a little behind.
        assert_eq!((see(0, 5, 5), see(60, 5, 5)), (None, None));
        assert_eq!((see(64, 9, 8), see(68, 12, 11), see(72, 15, 14)), (None, None, None));
        // Nothing is confirmed any more.
        assert_eq!((see(76, 18, 14), see(80, 20, 14)), (Some(72), Some(72)));
        // The majority is back.
        assert_eq!((see(84, 20, 20), see(88, 21, 20), see(92, 21, 20)), (None, None, Some(88)));
    }
}
