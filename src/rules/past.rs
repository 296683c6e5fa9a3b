//! The past of a spoke's two servers: whether one of them was restored from a backup.
//!
//! Every save of a checkpoint raises its number, and remembers the number of the opposite link's checkpoint, which is
//! saved at the other server. A server whose checkpoint has a smaller number than the other server remembers has lost
//! saves that were confirmed by a majority: it was restored from a backup. The same follows from a position in a change
//! stream beyond the present cluster time of its server, and from an applied change that its server's history lacks.

use super::names::Direction;

/// The server that was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restored {
    Spoke,
    Hub,
}

impl Restored {
    /// The link that compares first: the one that brings the other server's newer documents to the restored one.
    pub(crate) fn first(self) -> Direction {
        match self {
            Self::Spoke => Direction::Downlink,
            Self::Hub => Direction::Uplink,
        }
    }
}

/// What a saved checkpoint says. All numbers are 0 without a checkpoint, and in one of an earlier version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// The number of the newest save.
    pub(crate) number: i64,
    /// The number of the opposite link's newest save, at the time of this one.
    pub(crate) opposite: i64,
    /// The link's source has not reached the position, or lacks the newest applied change.
    pub(crate) is_unknown: bool,
}

/// A restored server, with the number that shows it; 0 if a position shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Restore {
    pub(crate) restored: Restored,
    pub(crate) number: i64,
}

/// Judges by both checkpoints of a spoke: the uplink's at the hub, and the downlink's at the spoke. The order of the
/// questions is the same for both links, so that both come to the same answer. `answered`: the number for which the
/// asking link has compared, or is to compare. The number stays in the other checkpoint until the other link has
/// compared as well.
pub(crate) fn restored(uplink: Numbers, downlink: Numbers, answered: i64) -> Option<Restore> {
    let has_lost = |number: i64, remembered: i64| number != 0 && number < remembered && remembered != answered;
    let (restored, number) = if has_lost(downlink.number, uplink.opposite) {
        (Restored::Spoke, uplink.opposite)
    } else if has_lost(uplink.number, downlink.opposite) {
        (Restored::Hub, downlink.opposite)
    } else if uplink.is_unknown {
        (Restored::Spoke, 0)
    } else if downlink.is_unknown {
        (Restored::Hub, 0)
    } else {
        return None;
    };
    Some(Restore { restored, number })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(number: i64, opposite: i64) -> Numbers {
        Numbers { number, opposite, is_unknown: false }
    }

    #[test]
    fn every_row_of_the_table() {
        let table = [
            // In step, or one ahead of what the other remembers.
            (saved(7, 5), saved(5, 7), None),
            (saved(9, 5), saved(6, 7), None),
            // The spoke has fewer saves than the hub remembers, and the other way round.
            (saved(7, 5), saved(4, 3), Some(Restored::Spoke)),
            (saved(4, 3), saved(5, 7), Some(Restored::Hub)),
            // An operator has deleted a checkpoint, or the link is new, or the checkpoint is of an earlier version.
            (saved(7, 5), Numbers::default(), None),
            (Numbers::default(), saved(5, 7), None),
            (saved(7, 0), saved(5, 0), None),
            // A position that its server has not reached, or a change that it lacks.
            (Numbers { is_unknown: true, ..saved(7, 5) }, saved(5, 7), Some(Restored::Spoke)),
            (saved(7, 5), Numbers { is_unknown: true, ..saved(5, 7) }, Some(Restored::Hub)),
        ];
        for (uplink, downlink, expected) in table {
            let found = restored(uplink, downlink, 0).map(|evidence| evidence.restored);
            assert_eq!(found, expected, "{uplink:?}, {downlink:?}");
        }
    }

    #[test]
    fn a_restore_is_answered_once_and_another_one_again() {
        let evidence = Restore { restored: Restored::Spoke, number: 5 };
        assert_eq!(restored(saved(7, 5), saved(4, 3), 0), Some(evidence));
        assert_eq!(restored(saved(7, 5), saved(4, 3), 5), None);
        assert_eq!(restored(saved(7, 5), saved(4, 3), 9), Some(evidence));
    }

    #[test]
    fn the_newer_side_brings_its_documents_first() {
        assert_eq!(Restored::Spoke.first(), Direction::Downlink);
        assert_eq!(Restored::Hub.first(), Direction::Uplink);
    }
}
