//! How far a link has come, for the other link of the same spoke.

use bson::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How far a link has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// It has not begun.
    Nothing,
    /// It has a place in its source's change stream, but not all that lies before that: it copies, or has lost its place.
    Incomplete,
    /// Everything that its source had at this time is at its destination.
    Until(Timestamp),
}

/// What became of waiting for a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// It is so.
    Done,
    /// It will not be so before the link has copied what it missed.
    Incomplete,
    /// Whoever waited was told to stop.
    Stopped,
}

/// A link's place, which outlives its loops.
#[derive(Debug)]
pub(crate) struct Carried(watch::Sender<Reached>);

impl Default for Carried {
    fn default() -> Self {
        Self(watch::Sender::new(Reached::Nothing))
    }
}

impl Carried {
    /// The link is here now.
    pub(crate) fn set(&self, reached: Reached) {
        self.0.send_replace(reached);
    }

    /// True if the link has everything up to its place.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(*self.0.borrow(), Reached::Until(_))
    }

    /// Waits until the link has a place in its source's change stream: whatever changes there from now on will be carried.
    pub(crate) async fn anchored(&self, stop: &CancellationToken) -> Waited {
        self.wait(stop, |reached| (reached != Reached::Nothing).then_some(Waited::Done)).await
    }

    /// Waits until the link has everything up to its place.
    pub(crate) async fn complete(&self, stop: &CancellationToken) -> Waited {
        self.wait(stop, |reached| matches!(reached, Reached::Until(_)).then_some(Waited::Done)).await
    }

    /// Waits until the link has carried everything that its source had at this time.
    pub(crate) async fn at_least(&self, time: Timestamp, stop: &CancellationToken) -> Waited {
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
