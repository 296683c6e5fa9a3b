//! The retry of a change that the hub refused: the meaning of the spoke's present version.

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
    /// Another document has taken its place: the hub's, or a foreign one.
    Replaced,
}

/// The write at the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Nothing: the spoke no longer has the document. The refused change is set aside.
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

/// `never_accepted`: the hub refused the insert, so the hub's document of the same `_id`, if any, is another one.
pub(crate) fn retry(never_accepted: bool, present: Present) -> Retry {
    match (present, never_accepted) {
        (Present::Absent, true) | (Present::Replaced, _) => Retry::GiveUp,
        (Present::Absent, false) => Retry::Delete,
        (Present::Own, _) => Retry::Put,
        (Present::Unstamped, _) => Retry::Stamp,
        (Present::Elsewhere, true) => Retry::InsertAndMove,
        (Present::Elsewhere, false) => Retry::Move,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table() {
        use Present::{Absent, Elsewhere, Own, Replaced, Unstamped};
        let table = [
            (Absent, [Retry::Delete, Retry::GiveUp]),
            (Own, [Retry::Put, Retry::Put]),
            (Unstamped, [Retry::Stamp, Retry::Stamp]),
            (Elsewhere, [Retry::Move, Retry::InsertAndMove]),
            (Replaced, [Retry::GiveUp, Retry::GiveUp]),
        ];
        for (present, [accepted, never_accepted]) in table {
            assert_eq!(retry(false, present), accepted, "{present:?}");
            assert_eq!(retry(true, present), never_accepted, "{present:?}");
        }
    }
}
