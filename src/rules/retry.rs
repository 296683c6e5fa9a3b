//! The retry of a change that the hub refused: the meaning of both sides' present versions.

/// The spoke's present version of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Present {
    Absent,
    /// In the spoke's own zone.
    Own,
    /// Without a partition key.
    Unstamped,
    /// In another zone.
    Elsewhere,
}

/// The document of a dead letter, with the evidence about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RefusedDocument {
    pub(crate) present: Present,
    /// The hub refused the insert, so the hub's document of the same `_id`, if any, is another one.
    pub(crate) never_accepted: bool,
    /// An application of the spoke has deleted the refused document. What the spoke has in another zone came later.
    pub(crate) is_deleted: bool,
    /// Both sides have a document in the same zone.
    pub(crate) is_same_zone: bool,
    /// The spoke's version is registered as foreign.
    pub(crate) is_foreign: bool,
}

/// The write at the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Nothing: the spoke no longer has the document, or another document has taken its place. The refused change is
    /// set aside.
    GiveUp,
    /// The document is deleted in the spoke's zone.
    Delete,
    /// The document replaces the hub's, or is inserted.
    Put,
    /// The document first gets a partition key.
    Stamp,
    /// The hub's document moves to the other zone.
    Move,
    /// The document is inserted in the spoke's zone, and moves to the other zone.
    InsertAndMove,
}

/// Decides about the retry of a refused change. Pure: the caller reads both versions and the evidence.
pub(crate) fn retry(found: RefusedDocument) -> Retry {
    let RefusedDocument { present, never_accepted, is_deleted, is_same_zone, is_foreign } = found;
    match present {
        Present::Absent if never_accepted => Retry::GiveUp,
        Present::Absent => Retry::Delete,
        Present::Own => Retry::Put,
        Present::Unstamped => Retry::Stamp,
        // Of two documents in one zone of another owner, the hub's is the zone's.
        Present::Elsewhere if is_same_zone || is_foreign || (never_accepted && is_deleted) => Retry::GiveUp,
        Present::Elsewhere if never_accepted => Retry::InsertAndMove,
        Present::Elsewhere => Retry::Move,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(present: Present) -> RefusedDocument {
        RefusedDocument { present, never_accepted: true, is_deleted: false, is_same_zone: false, is_foreign: false }
    }

    #[test]
    fn every_row_of_the_table() {
        use Present::{Absent, Elsewhere, Own, Unstamped};
        let table = [
            (Absent, [Retry::Delete, Retry::GiveUp]),
            (Own, [Retry::Put, Retry::Put]),
            (Unstamped, [Retry::Stamp, Retry::Stamp]),
            (Elsewhere, [Retry::Move, Retry::InsertAndMove]),
        ];
        for (present, [accepted, never_accepted]) in table {
            assert_eq!(retry(RefusedDocument { never_accepted: false, ..found(present) }), accepted, "{present:?}");
            assert_eq!(retry(found(present)), never_accepted, "{present:?}");
        }
    }

    #[test]
    fn another_document_in_another_zone_ends_the_letter() {
        let elsewhere = found(Present::Elsewhere);
        let accepted = RefusedDocument { never_accepted: false, ..elsewhere };
        let table = [
            (RefusedDocument { is_same_zone: true, ..elsewhere }, Retry::GiveUp),
            (RefusedDocument { is_same_zone: true, ..accepted }, Retry::GiveUp),
            (RefusedDocument { is_foreign: true, ..elsewhere }, Retry::GiveUp),
            (RefusedDocument { is_deleted: true, ..elsewhere }, Retry::GiveUp),
            // The hub has the document that the spoke deleted, and moves it: the delete waits in the stream.
            (RefusedDocument { is_deleted: true, ..accepted }, Retry::Move),
        ];
        for (found, expected) in table {
            assert_eq!(retry(found), expected, "{found:?}");
        }
    }

    #[test]
    fn a_document_inserted_again_after_its_delete_is_the_spokes() {
        assert_eq!(retry(RefusedDocument { is_deleted: true, is_same_zone: true, ..found(Present::Own) }), Retry::Put);
    }
}
