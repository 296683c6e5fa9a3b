//! The loops that carry changes: from a change stream, by the rules of [`crate::rules`], into transactions.
//!
//! - [`uplink`]: a spoke's changes to the hub
//! - [`feed`]: the hub's change stream, with what routing needs; [`fanout`]: one feed for all spokes
//! - [`downlink`]: what a feed brings to a spoke; [`deliveries`]: as one batch
//! - [`copy`]: the first copy of a zone, and the reconcile; [`walk`]: where two sides differ; [`settle`]: what it means where both write
//! - [`collections`]: whether the collections are still the same; [`foreign`]: what applications wrote in zones that are not theirs
//! - [`carried`]: how far each link of a spoke has come, for the other one
//! - [`load`]: what passes between the two halves of a link; [`apply`]: a batch into a transaction, up the ladder if need be
//! - [`batch_size`]: how much goes into one transaction
//! - [`inbox`]: what the fan-out has for one spoke; [`progress`], [`transact`]: one batch on its way, one transaction of it
//! - [`letters`]: what an operator wants done about dead letters
//! - [`window`]: how far back a source's stream can begin
//! - [`stamp`]: partition keys for documents that have none
//!
//! A loop ends by an error or because it is told to stop. It never retries by itself: whoever runs it starts a new one,
//! which goes on from the checkpoint.

pub(crate) mod apply;
mod batch_size;
mod collections;
mod copy;
pub(crate) mod downlink;
mod foreign;
pub(crate) mod hub;
pub(crate) mod letters;
pub(crate) mod reached;
pub(crate) mod uplink;
mod watch_oplog;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use letters::Requests;
use reached::{Carried, Reached};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::mongo::metadata::checkpoints::Reconciling;
use crate::mongo::metadata::sessions::Slot;
use crate::mongo::server::Endpoint;
use crate::observe::status::SpokeCell;
use crate::rules::conflicts::Conflicts;
use crate::rules::names::{Direction, Zone};
use crate::rules::position::Position;

/// A loop ended because it was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

/// Why a link no longer follows its change stream, though nothing failed.
enum Turn {
    /// It was told to stop.
    Stopped,
    /// Everything is to be compared.
    Compare,
    /// It must look whether the collections are still the same.
    Look,
}

/// How often the checkpoint of a quiet link follows the stream's position, so that it stays in the oplog window.
pub(crate) const QUIET_CHECKPOINT: Duration = Duration::from_secs(5);

/// At most so many documents are remembered by themselves, in each map of each link.
pub(crate) const REMEMBERED_DOCUMENTS: usize = 50_000;

/// What the loops of one spoke need.
pub(crate) struct Spoke {
    /// The zone that it owns.
    pub(crate) zone: Zone,
    /// The hub.
    pub(crate) hub: Arc<Endpoint>,
    /// The spoke itself.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The hub's change stream, for all spokes.
    pub(crate) fanout: Arc<hub::fanout::Fanout>,
    /// What both links must know of each other.
    pub(crate) links: Links,
    /// What is shown of it.
    pub(crate) status: Arc<SpokeCell>,
    /// What becomes of a zone's documents that it watches no longer.
    pub(crate) on_unwatch: crate::config::OnUnwatch,
    /// Places for links that begin, so that not all of them do at once.
    pub(crate) starting: Arc<Semaphore>,
    /// Who this process is, in checkpoints.
    pub(crate) holder: String,
}

impl Spoke {
    /// Both links shall compare everything, as soon as they can.
    pub(crate) fn ask_for_resync(&self) {
        self.links.ask_for_resync();
        for direction in Direction::BOTH {
            self.status.link(direction).set_comparing(true);
        }
    }

    /// Awaits something that may take as long as it likes, such as the other link, and is no standstill of this one.
    async fn patiently<T>(&self, link: Direction, something: impl Future<Output = T>) -> T {
        self.status.link(link).pulse().while_waiting(something).await
    }

    /// A place among the links that begin, once the spoke itself has answered: so one that is away takes none.
    async fn starting(&self, link: Direction) -> SemaphorePermit<'_> {
        self.patiently(link, self.starting.acquire()).await.expect("it is never closed")
    }
}

/// What both links of a spoke must know of each other, and what they keep. It outlives the loops.
pub(crate) struct Links {
    /// The uplink's session at the hub.
    pub(crate) uplink_session: Slot,
    /// The uplink's session at the hub for transactions in which documents leave the zone.
    pub(crate) moves_session: Slot,
    /// The uplink's session at the spoke, for stamps.
    pub(crate) stamp_session: Slot,
    /// The downlink's session at the spoke.
    pub(crate) downlink_session: Slot,
    conflicts: Mutex<Conflicts>,
    uplink: Carried,
    downlink: Carried,
    resync: [AtomicBool; 2],
    /// What each link must look at: whether the collections are still the same.
    looking: [Mutex<Looking>; 2],
    /// Documents of other zones at the spoke.
    foreign: foreign::Known,
    /// Both links must not compare the spoke's own zone at once: each needs the other to go on meanwhile.
    comparing: Semaphore,
    letters: [Requests; 2],
}

/// What a link must look at.
#[derive(Debug, Default)]
struct Looking {
    is_wanted: bool,
    /// Namespaces whose collections were seen to go.
    lost: BTreeSet<u16>,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            uplink_session: Slot::default(),
            moves_session: Slot::default(),
            stamp_session: Slot::default(),
            downlink_session: Slot::default(),
            conflicts: Mutex::new(Conflicts::new(REMEMBERED_DOCUMENTS)),
            uplink: Carried::default(),
            downlink: Carried::default(),
            resync: Default::default(),
            looking: Default::default(),
            foreign: foreign::Known::default(),
            comparing: Semaphore::new(1),
            letters: Default::default(),
        }
    }
}

impl Links {
    /// The hub edits that own changes must be held against.
    pub(crate) fn conflicts(&self) -> MutexGuard<'_, Conflicts> {
        // It holds plain values: one that was left in the middle of a change is no worse than a restart.
        self.conflicts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both links shall compare everything, from their next turn on.
    fn ask_for_resync(&self) {
        for asked in &self.resync {
            asked.store(true, Ordering::Relaxed);
        }
    }

    /// What an operator wants done about the dead letters of one of the links.
    pub(crate) fn letters(&self, direction: Direction) -> &Requests {
        &self.letters[direction as usize]
    }

    /// The link must look whether the collections are still the same. Until it has, nobody may rely on how far it has come.
    fn must_look(&self, direction: Direction) {
        self.looking(direction).is_wanted = true;
        self.carried(direction).set(Reached::Incomplete);
    }

    /// The collections of these namespaces were dropped or renamed at one of the ends.
    fn have_lost_collections(&self, namespaces: &[u16]) {
        for direction in Direction::BOTH {
            self.looking(direction).lost.extend(namespaces);
            self.must_look(direction);
        }
    }

    /// The namespaces whose collections were seen to go, whatever is there now.
    fn lost_collections(&self, direction: Direction) -> BTreeSet<u16> {
        self.looking(direction).lost.clone()
    }

    /// The link has looked, and knows that these were lost.
    fn has_looked(&self, direction: Direction, lost: &BTreeSet<u16>) {
        let mut looking = self.looking(direction);
        looking.lost.retain(|namespace| !lost.contains(namespace));
        looking.is_wanted = !looking.lost.is_empty();
    }

    fn looking(&self, direction: Direction) -> MutexGuard<'_, Looking> {
        self.looking[direction as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link, which lacks nothing, has come so far.
    fn has_carried(&self, direction: Direction, position: &Position) {
        if !self.looking(direction).is_wanted {
            self.carried(direction).set(Reached::Until(position.seen_until()));
        }
    }

    /// What this link should do instead of following its change stream: look at the collections; or compare everything, if that
    /// is wanted and the other link is in a state to go on meanwhile.
    fn turn(&self, direction: Direction, reconciling: Reconciling) -> Option<Turn> {
        if self.looking(direction).is_wanted {
            return Some(Turn::Look);
        }
        let is_wanted = self.resync[direction as usize].load(Ordering::Relaxed) || reconciling == Reconciling::Asked;
        let can =
            is_wanted && self.comparing.available_permits() > 0 && self.carried(direction.opposite()).is_complete();
        can.then_some(Turn::Compare)
    }

    /// Begins to compare, unless the other link does.
    fn compare(&self, direction: Direction) -> Option<SemaphorePermit<'_>> {
        let permit = self.comparing.try_acquire().ok()?;
        self.resync[direction as usize].store(false, Ordering::Relaxed);
        Some(permit)
    }

    /// How far one of the links has come.
    pub(crate) fn carried(&self, direction: Direction) -> &Carried {
        match direction {
            Direction::Uplink => &self.uplink,
            Direction::Downlink => &self.downlink,
        }
    }
}
