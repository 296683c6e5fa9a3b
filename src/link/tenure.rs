//! Whether the process may run a spoke, as far as it knows: the links ask before they claim a checkpoint, and before
//! they commit.
//!
//! The answer saves time and traffic. It does not protect data: that is the checkpoint's compare-and-swap.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::mongo::error::Error;
use crate::rules::names::{LinkName, Zone};

/// Time for which a link waits for a word of the hub.
const PATIENCE: Duration = Duration::from_secs(5);

/// The leases that the process holds, shared by all links.
#[derive(Debug)]
pub(crate) struct Tenure {
    known: watch::Sender<Known>,
    doubts: Notify,
    /// The process ends: nothing waits for the hub any more.
    is_ending: AtomicBool,
}

#[derive(Clone, Debug)]
enum Known {
    /// The hub has not answered yet.
    Nothing,
    Leases {
        held: Arc<BTreeSet<Zone>>,
        /// The other members may take the process for dead from this moment on.
        until: Instant,
    },
}

impl Default for Tenure {
    fn default() -> Self {
        let known = watch::Sender::new(Known::Nothing);
        Self { known, doubts: Notify::new(), is_ending: AtomicBool::new(false) }
    }
}

impl Tenure {
    /// Sets the zones whose leases the process holds. The others take the process for dead at `until` at the earliest,
    /// unless it beats before.
    pub(crate) fn set(&self, held: BTreeSet<Zone>, until: Instant) {
        self.known.send_replace(Known::Leases { held: Arc::new(held), until });
    }

    /// True if the hub has said lately which leases the process holds.
    pub(crate) fn is_known(&self) -> bool {
        matches!(*self.known.borrow(), Known::Leases { until, .. } if Instant::now() < until)
    }

    /// Waits until the process knows that it holds the spoke's lease, and that nobody takes it for dead, for at most
    /// [`PATIENCE`]: a link that waits must be able to stop, and to say what is wrong with the hub.
    ///
    /// # Errors
    /// [`Error::Standby`] if another process may run the spoke, [`Error::Unconfirmed`] if the hub does not say.
    pub(crate) async fn wait(&self, link: &LinkName) -> Result<(), Error> {
        self.wait_for(link, PATIENCE).await
    }

    async fn wait_for(&self, link: &LinkName, patience: Duration) -> Result<(), Error> {
        match tokio::time::timeout(patience, self.wait_for_word(link)).await {
            Ok(known) => known,
            Err(_) => Err(Error::Unconfirmed { link: link.to_string(), after: patience }),
        }
    }

    async fn wait_for_word(&self, link: &LinkName) -> Result<(), Error> {
        let mut known = self.known.subscribe();
        loop {
            match &*known.borrow_and_update() {
                Known::Leases { held, .. } if !held.contains(&link.zone) => {
                    return Err(Error::Standby { link: link.to_string() });
                }
                Known::Leases { until, .. } if Instant::now() < *until => return Ok(()),
                _ => {}
            }
            if self.is_ending.load(Ordering::Relaxed) || known.changed().await.is_err() {
                return Err(Error::Standby { link: link.to_string() });
            }
        }
    }

    /// The process ends. A link that knows that it may commit finishes its batch; no link waits any more.
    pub(crate) fn end(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
        self.known.send_modify(|_| {});
    }

    /// Another process has a checkpoint that should be ours: nothing is known until the hub has answered again.
    pub(crate) fn doubt(&self) {
        self.known.send_if_modified(|known| {
            if let Known::Leases { until, .. } = known {
                *until = Instant::now();
            }
            false
        });
        self.doubts.notify_one();
    }

    /// Waits for the next doubt.
    pub(crate) async fn doubted(&self) {
        self.doubts.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const HOUR: Duration = Duration::from_secs(3_600);

    async fn is_waiting(tenure: &Tenure, link: &LinkName) -> bool {
        tokio::time::timeout(SOON, tenure.wait(link)).await.is_err()
    }

    #[tokio::test]
    async fn a_link_waits_for_what_is_not_known_and_ends_when_another_process_has_its_lease() {
        let (tenure, zone) = (Tenure::default(), Zone::new("DFW"));
        let (link, held) = (LinkName::uplink(&zone), || BTreeSet::from([Zone::new("DFW")]));
        assert!(is_waiting(&tenure, &link).await, "the hub has not answered");
        tenure.set(held(), Instant::now() + HOUR);
        assert!(tenure.wait(&link).await.is_ok());
        tenure.set(held(), Instant::now());
        assert!(is_waiting(&tenure, &link).await, "the others may take the process for dead");
        tenure.set(held(), Instant::now() + HOUR);
        tenure.doubt();
        assert!(is_waiting(&tenure, &link).await, "another process has the checkpoint");
        tenure.set(BTreeSet::new(), Instant::now() + HOUR);
        assert!(matches!(tenure.wait(&link).await, Err(Error::Standby { .. })));
        tenure.set(held(), Instant::now());
        assert!(matches!(tenure.wait_for(&link, SOON).await, Err(Error::Unconfirmed { .. })), "the hub says nothing");
        tenure.end();
        assert!(matches!(tenure.wait(&link).await, Err(Error::Standby { .. })), "the process ends");
    }
}
