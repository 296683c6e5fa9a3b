//! The progress of a link, for the opposite link of the same spoke to wait for.

use bson::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// The link has not begun.
    Nothing,
    /// The link has a position in the source's change stream, but the destination lacks earlier changes: the link
    /// copies, or has lost the former position.
    Incomplete,
    /// The destination has everything from the source as of this cluster time.
    Until(Timestamp),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    Done,
    /// The link must copy first; waiting longer may never end.
    Incomplete,
    /// The waiting link must stop.
    Stopped,
}

/// A link's progress, which outlives the link's loops.
#[derive(Debug)]
pub(crate) struct Carried(watch::Sender<Reached>);

impl Default for Carried {
    fn default() -> Self {
        Self(watch::Sender::new(Reached::Nothing))
    }
}

impl Carried {
    pub(super) fn set(&self, reached: Reached) {
        self.0.send_replace(reached);
    }

    /// Records that the link has a position in the source's change stream. What was known of its progress stays.
    pub(super) fn begin(&self) {
        self.0.send_if_modified(|reached| {
            let is_new = *reached == Reached::Nothing;
            if is_new {
                *reached = Reached::Incomplete;
            }
            is_new
        });
    }

    /// True if the destination has everything up to the link's position.
    pub(super) fn is_complete(&self) -> bool {
        matches!(*self.0.borrow(), Reached::Until(_))
    }

    /// True if the link has carried everything that its source had at this time.
    pub(super) fn has(&self, time: Timestamp) -> bool {
        matches!(*self.0.borrow(), Reached::Until(until) if until >= time)
    }

    /// Waits until the link has a position in the source's change stream: the link will carry all later changes.
    pub(super) async fn anchored(&self, stop: &CancellationToken) -> Waited {
        self.wait(stop, |reached| (reached != Reached::Nothing).then_some(Waited::Done)).await
    }

    /// Waits until the destination has everything up to the link's position.
    pub(super) async fn complete(&self, stop: &CancellationToken) -> Waited {
        self.wait(stop, |reached| matches!(reached, Reached::Until(_)).then_some(Waited::Done)).await
    }

    /// Waits until the link has carried everything from the source as of `time`.
    pub(super) async fn at_least(&self, time: Timestamp, stop: &CancellationToken) -> Waited {
        self.wait(stop, |reached| match reached {
            Reached::Nothing => None,
            Reached::Incomplete => Some(Waited::Incomplete),
            Reached::Until(until) => (until >= time).then_some(Waited::Done),
        })
        .await
    }

    async fn wait(&self, stop: &CancellationToken, mut done: impl FnMut(Reached) -> Option<Waited>) -> Waited {
        let mut reached = self.0.subscribe();
        let mut waited = Waited::Stopped;
        let is_done = reached.wait_for(|reached| match done(*reached) {
            Some(result) => {
                waited = result;
                true
            }
            None => false,
        });
        match stop.run_until_cancelled(is_done).await {
            Some(_) => waited,
            None => Waited::Stopped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(time: u32) -> Timestamp {
        Timestamp { time, increment: 1 }
    }

    #[test]
    fn a_position_is_known_before_anything_is_complete() {
        let carried = Carried::default();
        carried.begin();
        assert_eq!(*carried.0.borrow(), Reached::Incomplete);
        let until = Reached::Until(Timestamp { time: 5, increment: 0 });
        carried.set(until);
        carried.begin();
        assert_eq!(*carried.0.borrow(), until, "a new loop of the same link");
    }

    #[tokio::test]
    async fn a_link_that_has_lost_its_place_is_not_waited_for() {
        let (carried, stop) = (Carried::default(), CancellationToken::new());
        carried.set(Reached::Incomplete);
        assert_eq!(carried.at_least(at(1), &stop).await, Waited::Incomplete);
        assert_eq!(carried.anchored(&stop).await, Waited::Done);
        carried.set(Reached::Until(at(2)));
        assert_eq!(carried.at_least(at(2), &stop).await, Waited::Done);
        assert_eq!(carried.complete(&stop).await, Waited::Done);
    }

    #[tokio::test]
    async fn waiting_ends_when_it_is_told_to() {
        let (carried, stop) = (Carried::default(), CancellationToken::new());
        stop.cancel();
        assert_eq!(carried.anchored(&stop).await, Waited::Stopped);
        carried.set(Reached::Until(at(2)));
        assert_eq!(carried.at_least(at(3), &stop).await, Waited::Stopped);
    }
}
