//! The resources shared by both links of a spoke.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::hub::fanout::Fanout;
use super::pair::Pair;
use super::servers::ReplicaSets;
use super::tenure::Tenure;
use crate::config::{Moves, OnUnwatch};
use crate::mongo::endpoint::Endpoint;
use crate::observe::status::SpokeCell;
use crate::rules::names::{Direction, Zone};

pub(crate) struct Shared {
    pub(crate) zone: Zone,
    pub(crate) hub: Arc<Endpoint>,
    /// The spoke's servers.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The hub's change stream, for all spokes.
    pub(crate) fanout: Arc<Fanout>,
    pub(crate) pair: Pair,
    pub(crate) status: Arc<SpokeCell>,
    /// The treatment of documents in zones no longer watched.
    pub(crate) on_unwatch: OnUnwatch,
    /// The treatment of documents that an application of the spoke moves into another zone.
    pub(crate) moves: Moves,
    /// Permits to begin: limit the number of links that read the hub's metadata at the same time.
    pub(crate) starting: Arc<Semaphore>,
    /// The replica sets of all spokes.
    pub(crate) sets: Arc<ReplicaSets>,
    /// The leases that the process holds.
    pub(crate) tenure: Arc<Tenure>,
    /// The name of the process in checkpoints.
    pub(crate) holder: String,
}

impl Shared {
    /// Asks both links to compare everything as soon as possible.
    pub(crate) fn ask_for_resync(&self) {
        self.pair.ask_for_resync();
        for direction in Direction::BOTH {
            self.status.link(direction).set_comparing(true);
        }
    }

    /// Awaits `something` without a time limit, for example the opposite link. Meanwhile the link does not count as
    /// silent.
    pub(super) async fn patiently<T>(&self, link: Direction, something: impl Future<Output = T>) -> T {
        self.status.link(link).pulse().while_waiting(something).await
    }

    /// Waits for a permit to begin. Call only after the spoke has answered: an unreachable spoke must not hold a
    /// permit.
    pub(super) async fn starting(&self, link: Direction) -> SemaphorePermit<'_> {
        self.patiently(link, self.starting.acquire()).await.expect("it is never closed")
    }
}
