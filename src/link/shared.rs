//! What the two links of one spoke share.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::hub::fanout::Fanout;
use super::pair::Pair;
use crate::config::OnUnwatch;
use crate::mongo::server::Endpoint;
use crate::observe::status::SpokeCell;
use crate::rules::names::{Direction, Zone};

/// What the loops of one spoke need.
pub(crate) struct Shared {
    /// The zone that the spoke owns.
    pub(crate) zone: Zone,
    pub(crate) hub: Arc<Endpoint>,
    /// The spoke's own servers.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The hub's change stream, for all spokes.
    pub(crate) fanout: Arc<Fanout>,
    pub(crate) pair: Pair,
    pub(crate) status: Arc<SpokeCell>,
    /// The treatment of documents in a zone that the spoke no longer watches.
    pub(crate) on_unwatch: OnUnwatch,
    /// Permits for links that begin, so that not all of them read the hub's metadata at the same time.
    pub(crate) starting: Arc<Semaphore>,
    /// The name of this process in checkpoints.
    pub(crate) holder: String,
}

impl Shared {
    /// Asks both links to compare everything as soon as they can.
    pub(crate) fn ask_for_resync(&self) {
        self.pair.ask_for_resync();
        for direction in Direction::BOTH {
            self.status.link(direction).set_comparing(true);
        }
    }

    /// Awaits something without a time limit, such as the opposite link. Meanwhile this link does not count as silent.
    pub(super) async fn patiently<T>(&self, link: Direction, something: impl Future<Output = T>) -> T {
        self.status.link(link).pulse().while_waiting(something).await
    }

    /// A permit to begin. Ask once the spoke itself has answered, so that an unreachable spoke holds none.
    pub(super) async fn starting(&self, link: Direction) -> SemaphorePermit<'_> {
        self.patiently(link, self.starting.acquire()).await.expect("it is never closed")
    }
}
