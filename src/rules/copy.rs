//! The treatment of each document of a copy: write, overwrite, delete or leave.
//!
//! A copy compares a zone of a collection at the source (the *lead*) and at the destination (the *follow* side). The
//! policy follows from the direction, from the zone's owner, and from an earlier copy of the zone.

use super::names::Direction;

/// The treatment of differences between the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// A spoke's own zone, up, while hub edits of the zone may not have come down: the owner's documents win, and
    /// nothing is deleted.
    OwnerPushes,
    /// A spoke's own zone, up, while the downlink works: brings the spoke's changes and deletes.
    OwnerReconciles,
    /// A spoke's own zone, down, while the uplink works: brings the changes and deletes of hub applications.
    HubReconciles,
    /// A watched zone, down, for the first time: the hub's documents win, and documents of the spoke alone stay.
    Watch,
    /// A watched zone, down, once more: documents missing at the hub are deleted, unless registered as foreign.
    WatchAgain,
}

/// The record of documents to keep although only the destination has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// The dead letters of the link in this direction: the copy's source refused the changes.
    DeadLetters(Direction),
    /// The spoke's register of foreign documents.
    Foreign,
    None,
}

/// A differing document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Differing {
    pub(crate) lead: Lead,
    pub(crate) is_at_destination: bool,
    /// [`Policy::protection`] names the document.
    pub(crate) is_protected: bool,
    /// The hub has refused a change of the document by the spoke's application, such as the move into this zone.
    pub(crate) is_refused_at_hub: bool,
    /// The link knows the source's collection, so a missing document may have been deleted.
    pub(crate) may_delete: bool,
}

/// The document at the copy's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    Missing,
    WithoutPartitionKey,
    Present,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// Both sides stay unchanged.
    Leave,
    /// The document stays, and is registered as foreign: no later reconcile deletes a foreign document.
    Register,
    Insert,
    Replace,
    /// The document first gets a partition key at the source, and is then written. `fresh`: the destination has no
    /// document.
    Stamp {
        fresh: bool,
    },
    /// The source lacks the document: read again, in any zone. A document found in another zone has moved. A document
    /// not found was deleted, and is deleted at the destination as well.
    ReadAgain,
}

impl Policy {
    /// The policy for a spoke's own zone on the way up.
    pub(crate) fn up(was_copied: bool) -> Self {
        if was_copied { Self::OwnerReconciles } else { Self::OwnerPushes }
    }

    /// The policy for a zone on the way down.
    pub(crate) fn down(is_own: bool, was_copied: bool) -> Self {
        match (is_own, was_copied) {
            (true, _) => Self::HubReconciles,
            (false, true) => Self::WatchAgain,
            (false, false) => Self::Watch,
        }
    }

    pub(crate) fn direction(self) -> Direction {
        match self {
            Self::OwnerPushes | Self::OwnerReconciles => Direction::Uplink,
            Self::HubReconciles | Self::Watch | Self::WatchAgain => Direction::Downlink,
        }
    }

    /// True if both sides write during the copy: every document is settled individually.
    pub(crate) fn is_two_way(self) -> bool {
        matches!(self, Self::OwnerReconciles | Self::HubReconciles)
    }

    /// True if the copy's writes count as hub edits of the spoke's own documents.
    pub(crate) fn makes_hub_edits(self) -> bool {
        self == Self::HubReconciles
    }

    pub(crate) fn protection(self) -> Protection {
        match self {
            Self::OwnerReconciles => Protection::DeadLetters(Direction::Downlink),
            Self::HubReconciles => Protection::DeadLetters(Direction::Uplink),
            Self::WatchAgain => Protection::Foreign,
            Self::OwnerPushes | Self::Watch => Protection::None,
        }
    }

    /// True if documents that the source lacks are registered as foreign.
    pub(crate) fn registers(self, may_delete: bool) -> bool {
        self == Self::Watch || (self == Self::WatchAgain && !may_delete)
    }

    /// True if a first copy of a collection has nothing to do, and the stream may go on at once. On the way down, the
    /// owner's documents must be at the hub before the stream brings the hub's.
    pub(crate) fn has_nothing_to_copy(self, is_source_empty: bool, is_destination_empty: bool) -> bool {
        is_source_empty && (is_destination_empty || self.direction() == Direction::Uplink)
    }

    pub(crate) fn decide(self, document: Differing) -> Treatment {
        let Differing { lead, is_at_destination, is_protected, is_refused_at_hub, may_delete } = document;
        // The source lacks refused changes of the document: the difference is no change of the source.
        if self.is_two_way() && is_protected {
            return Treatment::Leave;
        }
        match lead {
            Lead::WithoutPartitionKey if self.direction() == Direction::Uplink => {
                Treatment::Stamp { fresh: !is_at_destination }
            }
            Lead::Present | Lead::WithoutPartitionKey if is_at_destination => Treatment::Replace,
            Lead::Present | Lead::WithoutPartitionKey => Treatment::Insert,
            Lead::Missing => match self {
                Self::OwnerPushes => Treatment::Leave,
                // A retry may still bring the change to the hub.
                Self::Watch | Self::WatchAgain if is_refused_at_hub => Treatment::Leave,
                Self::Watch => Treatment::Register,
                Self::WatchAgain if is_protected || !may_delete => Treatment::Register,
                Self::WatchAgain => Treatment::ReadAgain,
                Self::OwnerReconciles | Self::HubReconciles if !may_delete => Treatment::Leave,
                Self::OwnerReconciles | Self::HubReconciles => Treatment::ReadAgain,
            },
        }
    }
}

/// The memory of a link about a part (a zone of a collection).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    /// The part is copied.
    pub(crate) copied: bool,
    /// The part was copied before, so documents missing at the source may have been deleted.
    pub(crate) left: bool,
}

impl Remembered {
    /// True if the part must be copied now. With `only_new`, parts copied before wait for their comparison.
    pub(crate) fn is_due(self, only_new: bool) -> bool {
        !(self.copied || (only_new && self.left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Policy::{HubReconciles, OwnerPushes, OwnerReconciles, Watch, WatchAgain};

    const ALL: [Policy; 5] = [OwnerPushes, OwnerReconciles, HubReconciles, Watch, WatchAgain];

    fn decide(policy: Policy, lead: Lead, is_at_destination: bool, is_protected: bool, may_delete: bool) -> Treatment {
        policy.decide(Differing { lead, is_at_destination, is_protected, is_refused_at_hub: false, may_delete })
    }

    #[test]
    fn a_watched_zones_document_stays_as_it_is_while_its_move_waits_as_a_dead_letter() {
        for (policy, is_protected, may_delete) in
            [(Watch, false, false), (WatchAgain, false, true), (WatchAgain, true, true), (WatchAgain, false, false)]
        {
            let (lead, is_at_destination, is_refused_at_hub) = (Lead::Missing, true, true);
            let document = Differing { lead, is_at_destination, is_protected, is_refused_at_hub, may_delete };
            assert_eq!(policy.decide(document), Treatment::Leave);
            // What the hub has of the zone is newer than a refused move.
            assert_eq!(policy.decide(Differing { lead: Lead::Present, ..document }), Treatment::Replace);
        }
    }

    #[test]
    fn a_document_of_the_source_is_inserted_or_replaces_the_destinations() {
        for policy in ALL {
            assert_eq!(decide(policy, Lead::Present, false, false, true), Treatment::Insert, "{policy:?}");
            assert_eq!(decide(policy, Lead::Present, true, false, true), Treatment::Replace, "{policy:?}");
        }
    }

    #[test]
    fn a_document_without_partition_key_is_stamped_on_its_way_up_only() {
        for policy in [OwnerPushes, OwnerReconciles] {
            assert_eq!(decide(policy, Lead::WithoutPartitionKey, false, false, true), Treatment::Stamp { fresh: true });
            assert_eq!(decide(policy, Lead::WithoutPartitionKey, true, false, true), Treatment::Stamp { fresh: false });
        }
        for policy in [HubReconciles, Watch, WatchAgain] {
            assert_eq!(decide(policy, Lead::WithoutPartitionKey, true, false, true), Treatment::Replace);
        }
    }

    #[test]
    fn every_row_for_a_document_that_the_source_lacks() {
        let (leave, register) = (Treatment::Leave, Treatment::Register);
        let again = Treatment::ReadAgain;
        // By policy: with and without permission to delete, then the same for a protected document.
        let table = [
            (OwnerPushes, [leave, leave, leave, leave]),
            (OwnerReconciles, [again, leave, leave, leave]),
            (HubReconciles, [again, leave, leave, leave]),
            (Watch, [register, register, register, register]),
            (WatchAgain, [again, register, register, register]),
        ];
        for (policy, treatments) in table {
            let cases = [(false, true), (false, false), (true, true), (true, false)];
            for ((is_protected, may_delete), treatment) in cases.into_iter().zip(treatments) {
                let decided = decide(policy, Lead::Missing, true, is_protected, may_delete);
                assert_eq!(decided, treatment, "{policy:?}, protected {is_protected}, may delete {may_delete}");
            }
        }
    }

    #[test]
    fn a_policy_registers_what_it_says_it_registers() {
        for (policy, may_delete) in ALL.into_iter().flat_map(|policy| [(policy, false), (policy, true)]) {
            let treatment = decide(policy, Lead::Missing, true, false, may_delete);
            assert_eq!(treatment == Treatment::Register, policy.registers(may_delete), "{policy:?} {may_delete}");
        }
    }

    #[test]
    fn an_empty_source_has_nothing_to_copy_up_and_nothing_down_to_an_empty_destination() {
        for policy in ALL {
            assert!(policy.has_nothing_to_copy(true, true), "{policy:?}");
            assert!(!policy.has_nothing_to_copy(false, true), "{policy:?}");
            let is_up = matches!(policy, OwnerPushes | OwnerReconciles);
            assert_eq!(policy.has_nothing_to_copy(true, false), is_up, "{policy:?}");
        }
    }

    #[test]
    fn nothing_is_deleted_by_a_first_copy_or_without_permission() {
        for policy in ALL {
            for is_protected in [false, true] {
                let treatment = decide(policy, Lead::Missing, true, is_protected, false);
                assert_ne!(treatment, Treatment::ReadAgain, "{policy:?}");
            }
        }
        for policy in [OwnerPushes, Watch] {
            assert_ne!(decide(policy, Lead::Missing, true, false, true), Treatment::ReadAgain);
        }
    }

    #[test]
    fn a_protected_document_of_a_two_way_zone_is_never_written() {
        for policy in [OwnerReconciles, HubReconciles] {
            for lead in [Lead::Missing, Lead::WithoutPartitionKey, Lead::Present] {
                for is_at_destination in [false, true] {
                    assert_eq!(decide(policy, lead, is_at_destination, true, true), Treatment::Leave);
                }
            }
        }
    }

    #[test]
    fn in_a_watched_zone_the_hubs_document_wins_over_a_registered_one() {
        assert_eq!(decide(WatchAgain, Lead::Present, true, true, true), Treatment::Replace);
    }

    #[test]
    fn the_policy_follows_from_direction_owner_and_history() {
        assert_eq!([Policy::up(false), Policy::up(true)], [OwnerPushes, OwnerReconciles]);
        assert_eq!([Policy::down(true, false), Policy::down(true, true)], [HubReconciles, HubReconciles]);
        assert_eq!([Policy::down(false, false), Policy::down(false, true)], [Watch, WatchAgain]);
        let up = ALL.into_iter().filter(|policy| policy.direction() == Direction::Uplink);
        assert_eq!(up.collect::<Vec<_>>(), [OwnerPushes, OwnerReconciles]);
    }

    #[test]
    fn both_sides_write_where_a_zone_with_an_owner_is_compared_again() {
        assert_eq!(ALL.map(Policy::is_two_way), [false, true, true, false, false]);
        assert_eq!(ALL.map(Policy::makes_hub_edits), [false, false, true, false, false]);
    }

    #[test]
    fn documents_that_the_source_refused_are_protected_at_the_destination() {
        let letters = Protection::DeadLetters;
        let expected = [
            Protection::None,
            letters(Direction::Downlink),
            letters(Direction::Uplink),
            Protection::None,
            Protection::Foreign,
        ];
        assert_eq!(ALL.map(Policy::protection), expected);
    }

    #[test]
    fn a_copied_part_is_not_copied_again_and_a_part_copied_before_waits_where_only_new_ones_are_due() {
        let due = |copied, left, only_new| Remembered { copied, left }.is_due(only_new);
        assert!(due(false, false, false) && due(false, false, true) && due(false, true, false));
        assert!(!due(false, true, true));
        assert!(!due(true, false, false) && !due(true, true, false) && !due(true, false, true));
    }
}
