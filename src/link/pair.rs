//! The state shared by both links of a spoke. The pair outlives the loops.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::foreign;
use super::letters::Requests;
use super::reached::{Carried, Reached};
use super::unsettled::Unsettled;
use crate::mongo::metadata::checkpoints::Reconciling;
use crate::mongo::metadata::sessions::Slot;
use crate::rules::conflicts::Conflicts;
use crate::rules::key::Key;
use crate::rules::names::Direction;
use crate::rules::position::Position;
use crate::rules::pressure::Pressure;

/// Maximum number of documents remembered individually, in each map of each link. Beyond the maximum, only zones are
/// remembered.
pub(crate) const REMEMBERED_DOCUMENTS: usize = 50_000;

/// The reason for a link to leave the change stream without a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Stopped,
    /// Everything must be compared, for this reason.
    Compare(Reconciling),
    /// The collections may have been replaced.
    Look,
}

pub(crate) struct Pair {
    /// The uplink's session at the hub.
    pub(crate) uplink_session: Slot,
    /// The uplink's session at the hub for transactions that move documents out of the zone.
    pub(crate) moves_session: Slot,
    /// The uplink's session at the spoke, for stamps.
    pub(crate) stamp_session: Slot,
    /// The downlink's session at the spoke.
    pub(crate) downlink_session: Slot,
    conflicts: Mutex<Conflicts>,
    carried: [Carried; 2],
    /// By link: the reason for which everything must be compared.
    asked: [Mutex<Option<Reconciling>>; 2],
    /// By link: a comparison is under way or still to come, or may be, because the link has not begun.
    is_due: [AtomicBool; 2],
    /// By link: the number of the checkpoint's newest save by this process; 0 before the first one.
    saved: [AtomicI64; 2],
    looking: [Mutex<Looking>; 2],
    pub(super) foreign: foreign::Known,
    /// Documents that one of the links did not find as expected.
    pub(super) unsettled: Unsettled,
    /// The dead letters of each link, open or dropped.
    evidence: [Mutex<HashMap<Key, Evidence>>; 2],
    /// Documents whose refused insert is void: the downlink has replaced them by the hub's document of the same `_id`
    /// while the insert was on its way.
    replaced: Mutex<Vec<Key>>,
    /// Held by the comparing link: the opposite link must carry changes meanwhile.
    comparing: Semaphore,
    letters: [Requests; 2],
    /// The size of transactions that each link's destination takes.
    pressure: [Mutex<Pressure>; 2],
}

/// What a dead letter says about its document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Evidence {
    /// The destination never had the document.
    pub(super) is_fresh: bool,
    /// An operator has dropped the letter: the document's changes flow again.
    pub(super) is_dropped: bool,
}

/// A pending check of a link's collections.
#[derive(Debug, Default)]
struct Looking {
    is_needed: bool,
    /// The namespaces of dropped or renamed collections.
    lost: BTreeSet<u16>,
}

impl Default for Pair {
    fn default() -> Self {
        Self {
            uplink_session: Slot::default(),
            moves_session: Slot::default(),
            stamp_session: Slot::default(),
            downlink_session: Slot::default(),
            conflicts: Mutex::new(Conflicts::new(REMEMBERED_DOCUMENTS)),
            carried: Default::default(),
            asked: Default::default(),
            is_due: Direction::BOTH.map(|_| AtomicBool::new(true)),
            saved: Default::default(),
            looking: Default::default(),
            foreign: foreign::Known::default(),
            unsettled: Unsettled::default(),
            evidence: Default::default(),
            replaced: Mutex::default(),
            comparing: Semaphore::new(1),
            letters: Default::default(),
            pressure: Default::default(),
        }
    }
}

impl Pair {
    /// The hub edits that the spoke's own changes may meet on the way back from the hub.
    pub(super) fn conflicts(&self) -> MutexGuard<'_, Conflicts> {
        // Plain values: a half-made change is no worse than a restart.
        self.conflicts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks both links to compare everything at the next turn.
    pub(super) fn ask_for_resync(&self) {
        for direction in Direction::BOTH {
            self.ask(direction, Reconciling::Asked);
        }
    }

    /// Asks a link to compare everything. A restored server is the stronger reason: nothing is deleted then.
    pub(super) fn ask(&self, direction: Direction, reason: Reconciling) {
        let mut asked = self.asked(direction);
        if !asked.is_some_and(Reconciling::is_restored) {
            *asked = Some(reason);
        }
        self.is_due[direction as usize].store(true, Ordering::Relaxed);
    }

    /// The reason for which a link was asked to compare everything, until the comparison begins.
    pub(super) fn asked(&self, direction: Direction) -> MutexGuard<'_, Option<Reconciling>> {
        self.asked[direction as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records whether a link that begins, or has copied, still has a comparison to make.
    pub(super) fn has_due(&self, direction: Direction, reconciling: Reconciling) {
        let is_due = reconciling != Reconciling::No || self.asked(direction).is_some();
        self.is_due[direction as usize].store(is_due, Ordering::Relaxed);
    }

    /// Records the number of a link's newest save.
    pub(super) fn has_saved(&self, direction: Direction, number: i64) {
        self.saved[direction as usize].store(number, Ordering::Relaxed);
    }

    /// The number of a link's newest save by this process; 0 before the first one.
    pub(super) fn saved(&self, direction: Direction) -> i64 {
        self.saved[direction as usize].load(Ordering::Relaxed)
    }

    /// The dead letter of a document in one of the links, open or dropped.
    pub(super) fn evidence(&self, direction: Direction, key: &Key) -> Option<Evidence> {
        let evidence = self.evidence_of(direction);
        if evidence.is_empty() { None } else { evidence.get(key).copied() }
    }

    /// True if the spoke has a document that the hub never accepted: the hub's document of the same `_id` is another
    /// one.
    pub(super) fn has_another(&self, key: &Key) -> bool {
        self.evidence(Direction::Uplink, key).is_some_and(|letter| letter.is_fresh)
    }

    /// The dead letters of one of the links.
    pub(super) fn evidence_of(&self, direction: Direction) -> MutexGuard<'_, HashMap<Key, Evidence>> {
        self.evidence[direction as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the hub's document has replaced one whose insert the hub refused.
    pub(super) fn has_replaced(&self, key: Key) {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).push(key);
    }

    /// The documents recorded by [`Self::has_replaced`] since the last call.
    pub(super) fn take_replaced(&self) -> Vec<Key> {
        std::mem::take(&mut *self.replaced.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The size of transactions that the link's destination takes.
    pub(super) fn pressure(&self, direction: Direction) -> MutexGuard<'_, Pressure> {
        self.pressure[direction as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests about the link's dead letters, by an operator or by the other link.
    pub(crate) fn letters(&self, direction: Direction) -> &Requests {
        &self.letters[direction as usize]
    }

    /// Asks the link to check the collections. Until the check, the link counts as incomplete.
    pub(super) fn must_look(&self, direction: Direction) {
        self.looking(direction).is_needed = true;
        self.carried(direction).set(Reached::Incomplete);
    }

    /// Records the namespaces of collections dropped or renamed at either end.
    pub(super) fn have_lost_collections(&self, namespaces: &[u16]) {
        for direction in Direction::BOTH {
            self.looking(direction).lost.extend(namespaces);
            self.must_look(direction);
        }
    }

    /// The namespaces of dropped or renamed collections, even if the collections exist again.
    pub(super) fn lost_collections(&self, direction: Direction) -> BTreeSet<u16> {
        self.looking(direction).lost.clone()
    }

    /// Records a finished check. The link knows of the `lost` collections now.
    pub(super) fn has_looked(&self, direction: Direction, lost: &BTreeSet<u16>) {
        let mut looking = self.looking(direction);
        looking.lost.retain(|namespace| !lost.contains(namespace));
        looking.is_needed = !looking.lost.is_empty();
    }

    fn looking(&self, direction: Direction) -> MutexGuard<'_, Looking> {
        self.looking[direction as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the position of a link with a complete destination.
    pub(super) fn has_carried(&self, direction: Direction, position: &Position) {
        if !self.looking(direction).is_needed {
            self.carried(direction).set(Reached::Until(position.seen_until()));
        }
    }

    /// The link's next task instead of the change stream, if any: a check of the collections, or a comparison as soon
    /// as the opposite link can carry changes meanwhile. `reconciling` is the reason saved in the link's checkpoint.
    pub(super) fn turn(&self, direction: Direction, reconciling: Reconciling) -> Option<Turn> {
        if self.looking(direction).is_needed {
            return Some(Turn::Look);
        }
        // After a restore nothing may count as deleted, whoever asks for a comparison meanwhile.
        let saved = Some(reconciling).filter(|reason| reason.keeps_position());
        let reason = saved.filter(|reason| reason.is_restored()).or(*self.asked(direction)).or(saved)?;
        let can = self.may_compare(direction, reason) && self.carried(direction.opposite()).is_complete();
        can.then_some(Turn::Compare(reason))
    }

    /// Begins a comparison for this reason, unless the opposite link compares, or must compare first.
    pub(super) fn compare(&self, direction: Direction, reason: Reconciling) -> Option<SemaphorePermit<'_>> {
        let permit = self.comparing.try_acquire().ok().filter(|_| !self.waits_for_opposite(direction, reason))?;
        // A stronger reason, from meanwhile, stays for the next turn.
        self.asked(direction).take_if(|newest| *newest == reason);
        Some(permit)
    }

    fn may_compare(&self, direction: Direction, reason: Reconciling) -> bool {
        self.comparing.available_permits() > 0 && !self.waits_for_opposite(direction, reason)
    }

    fn waits_for_opposite(&self, direction: Direction, reason: Reconciling) -> bool {
        reason.first() == Some(direction.opposite())
            && self.is_due[direction.opposite() as usize].load(Ordering::Relaxed)
    }

    pub(super) fn carried(&self, direction: Direction) -> &Carried {
        &self.carried[direction as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::past::Restored;
    use Direction::{Downlink, Uplink};
    use bson::rawdoc;

    fn position() -> Position {
        Position::from_token(&rawdoc! { "_data": "8200000001000000012B0229296E04" }).expect("a token")
    }

    /// A pair of two complete links.
    fn complete() -> Pair {
        let pair = Pair::default();
        for direction in Direction::BOTH {
            pair.has_carried(direction, &position());
            pair.has_due(direction, Reconciling::No);
        }
        pair
    }

    const ASKED: Option<Turn> = Some(Turn::Compare(Reconciling::Asked));

    #[test]
    fn a_link_follows_its_stream_until_somebody_asks_for_more() {
        assert_eq!(complete().turn(Uplink, Reconciling::No), None);
        assert_eq!(complete().turn(Downlink, Reconciling::Lost), None);
    }

    #[test]
    fn a_comparison_waits_until_the_opposite_link_lacks_nothing() {
        let pair = Pair::default();
        pair.ask_for_resync();
        assert_eq!(pair.turn(Downlink, Reconciling::No), None);
        pair.has_carried(Uplink, &position());
        assert_eq!(pair.turn(Downlink, Reconciling::No), ASKED);
        pair.carried(Uplink).set(Reached::Incomplete);
        assert_eq!(pair.turn(Downlink, Reconciling::No), None);
    }

    #[test]
    fn the_hubs_versions_come_down_first_and_one_link_compares_at_a_time() {
        let pair = complete();
        pair.ask_for_resync();
        assert_eq!(pair.turn(Uplink, Reconciling::No), None);
        assert!(pair.compare(Uplink, Reconciling::Asked).is_none());
        let comparing = pair.compare(Downlink, Reconciling::Asked);
        assert!(comparing.is_some() && pair.compare(Uplink, Reconciling::Asked).is_none());
        assert_eq!(pair.turn(Downlink, Reconciling::No), None, "this one has begun");
        drop(comparing);
        assert_eq!(pair.turn(Uplink, Reconciling::No), None, "the downlink has not ended");
        pair.has_due(Downlink, Reconciling::No);
        assert_eq!(pair.turn(Uplink, Reconciling::No), ASKED);
    }

    #[test]
    fn the_newer_server_brings_its_documents_first_and_a_resync_does_not_change_that() {
        for (restored, first) in [(Restored::Spoke, Downlink), (Restored::Hub, Uplink)] {
            let (pair, reason) = (complete(), Reconciling::Restored(restored));
            Direction::BOTH.into_iter().for_each(|direction| pair.ask(direction, reason));
            pair.ask_for_resync();
            assert_eq!(pair.turn(first.opposite(), Reconciling::No), None);
            assert_eq!(pair.turn(first, Reconciling::No), Some(Turn::Compare(reason)));
            // After a restart, the checkpoint knows the reason.
            let pair = complete();
            pair.ask_for_resync();
            assert_eq!(pair.turn(first, reason), Some(Turn::Compare(reason)));
        }
    }

    #[test]
    fn a_comparison_asked_for_before_a_restart_is_known_by_the_checkpoint() {
        assert_eq!(complete().turn(Uplink, Reconciling::Asked), ASKED);
        let pair = complete();
        pair.has_due(Downlink, Reconciling::Asked);
        assert_eq!(pair.turn(Uplink, Reconciling::Asked), None);
    }

    #[test]
    fn a_lost_collection_makes_both_links_look_before_they_count_as_complete() {
        let pair = complete();
        pair.have_lost_collections(&[3]);
        for direction in Direction::BOTH {
            assert_eq!(pair.turn(direction, Reconciling::Asked), Some(Turn::Look));
            pair.has_carried(direction, &position());
            assert!(!pair.carried(direction).is_complete());
            assert_eq!(pair.lost_collections(direction), BTreeSet::from([3]));
        }
        pair.has_looked(Uplink, &BTreeSet::from([3]));
        assert_eq!(pair.turn(Uplink, Reconciling::No), None);
        assert_eq!(pair.turn(Downlink, Reconciling::No), Some(Turn::Look));
    }

    #[test]
    fn a_collection_lost_while_a_link_looks_makes_the_link_look_again() {
        let pair = complete();
        pair.have_lost_collections(&[3]);
        let seen = pair.lost_collections(Uplink);
        pair.have_lost_collections(&[4]);
        pair.has_looked(Uplink, &seen);
        assert_eq!(pair.turn(Uplink, Reconciling::No), Some(Turn::Look));
        assert_eq!(pair.lost_collections(Uplink), BTreeSet::from([4]));
    }
}
