//! One decision for one document that was not found as expected: a taken `_id`, a filter that missed, a document in
//! another zone than thought, a crossing of the two links.
//!
//! The decision is taken at the spoke, once both links have carried everything up to the moment at which the document
//! was seen. Then the hub's version is the truth, with three exceptions: a spoke's own document that the hub never
//! accepted (a dead letter says so), a document that an application of the spoke wrote in another zone (the register of
//! foreign documents says so), and a document of a zone that the spoke has left.

/// The zone of one side's version, as the spoke sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Absent,
    /// In the spoke's own zone.
    Own,
    /// In a zone that the spoke watches.
    Watched,
    /// In a zone that the spoke does not hold, or in none.
    Elsewhere,
}

/// One document, with the evidence about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) hub: Version,
    pub(crate) spoke: Version,
    /// Both versions have equal bytes.
    pub(crate) is_equal: bool,
    /// The uplink's dead letter, open or dropped.
    pub(crate) letter: Letter,
    /// The downlink has a dead letter, open or dropped: the spoke refuses the hub's version.
    pub(crate) is_refused: bool,
    /// Both versions are in the same zone.
    pub(crate) is_same_zone: bool,
    /// The spoke's version is registered as foreign.
    pub(crate) is_foreign: bool,
    /// The spoke had the registered version before a first copy: no application has written it since.
    pub(crate) is_found: bool,
    /// The spoke's version is in a zone that the spoke has left, and whose documents stay.
    pub(crate) is_left: bool,
}

/// A dead letter of the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Letter {
    None,
    /// The hub refused the document's insert: the hub never had the spoke's document.
    NeverAccepted,
    /// The hub refused a change of a document that it had.
    RefusedChange,
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Both sides stay as they are.
    Leave,
    /// The hub's version replaces the spoke's. A version that is replaced is set aside.
    Write,
    /// The spoke's version is set aside and removed.
    Remove,
    /// Two documents of different zones have the same `_id`: an operator is told, and neither is touched.
    Collide,
}

/// Decides about a document. Pure: the caller reads both versions and the evidence.
pub(crate) fn settle(document: Document) -> Settlement {
    use Version::{Absent, Elsewhere, Own, Watched};
    let Document { hub, spoke, is_equal, letter, is_refused, is_same_zone, is_foreign, is_found, is_left } = document;
    // Equal versions are right where the spoke holds their zone. If the spoke refuses the hub's version for another
    // reason, a retry of that letter decides.
    if (is_equal && matches!(spoke, Absent | Own | Watched)) || is_refused {
        return Settlement::Leave;
    }
    match (letter, hub, spoke) {
        // The spoke's changes wait with the letter: whatever either side has stays until the retry.
        (Letter::RefusedChange, ..) => Settlement::Leave,
        // The spoke's document is another one than the hub's. The retry decides where both are in the spoke's zone.
        (Letter::NeverAccepted, Own, Own) => Settlement::Leave,
        (Letter::NeverAccepted, Own | Watched, Own | Watched | Elsewhere) => Settlement::Collide,
        (Letter::NeverAccepted, Absent | Elsewhere, _) => Settlement::Leave,
        // The hub had the document in the spoke's zone, and a hub application changed, moved or deleted it.
        (Letter::None, Own | Watched, Own) => Settlement::Write,
        (Letter::None, Absent | Elsewhere, Own) => Settlement::Remove,
        (_, Own | Watched, Absent) => Settlement::Write,
        (_, Absent | Elsewhere, Absent) => Settlement::Leave,
        (_, Own | Watched, Watched | Elsewhere) if is_foreign && !is_found && !is_same_zone => Settlement::Collide,
        (_, Own | Watched, Watched | Elsewhere) => Settlement::Write,
        (_, Absent | Elsewhere, Watched | Elsewhere) if is_foreign || is_left => Settlement::Leave,
        (_, Absent | Elsewhere, Watched | Elsewhere) => Settlement::Remove,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Version::{Absent, Elsewhere, Own, Watched};

    const VERSIONS: [Version; 4] = [Absent, Own, Watched, Elsewhere];
    const LETTERS: [Letter; 3] = [Letter::None, Letter::NeverAccepted, Letter::RefusedChange];

    const PLAIN: Document = Document {
        hub: Absent,
        spoke: Absent,
        is_equal: false,
        letter: Letter::None,
        is_refused: false,
        is_same_zone: false,
        is_foreign: false,
        is_found: false,
        is_left: false,
    };

    fn all() -> impl Iterator<Item = Document> {
        let flags = (0..64u8).map(|bits| [1, 2, 4, 8, 16, 32].map(|bit| bits & bit != 0));
        flags.flat_map(|[is_equal, is_refused, is_same_zone, is_foreign, is_found, is_left]| {
            VERSIONS.into_iter().flat_map(move |hub| {
                VERSIONS.into_iter().flat_map(move |spoke| {
                    LETTERS.into_iter().map(move |letter| Document {
                        hub,
                        spoke,
                        is_equal,
                        letter,
                        is_refused,
                        is_same_zone,
                        is_foreign,
                        is_found,
                        is_left,
                    })
                })
            })
        })
    }

    #[test]
    fn every_row_without_evidence_follows_the_hub() {
        use Settlement::{Leave, Remove, Write};
        // By hub version: the spoke's version absent, own, watched, elsewhere.
        let table = [
            (Absent, [Leave, Remove, Remove, Remove]),
            (Own, [Write, Write, Write, Write]),
            (Watched, [Write, Write, Write, Write]),
            (Elsewhere, [Leave, Remove, Remove, Remove]),
        ];
        for (hub, row) in table {
            for (spoke, expected) in VERSIONS.into_iter().zip(row) {
                assert_eq!(settle(Document { hub, spoke, ..PLAIN }), expected, "hub {hub:?}, spoke {spoke:?}");
            }
        }
    }

    #[test]
    fn a_document_with_a_letter_is_never_written_or_removed() {
        for document in all().filter(|document| document.spoke != Absent && document.letter != Letter::None) {
            let settlement = settle(document);
            assert!(matches!(settlement, Settlement::Leave | Settlement::Collide), "{document:?}: {settlement:?}");
        }
    }

    #[test]
    fn the_hubs_document_comes_where_only_another_one_was_refused_and_a_refused_change_waits() {
        for hub in [Own, Watched] {
            let absent = Document { hub, ..PLAIN };
            assert_eq!(settle(Document { letter: Letter::NeverAccepted, ..absent }), Settlement::Write);
            assert_eq!(settle(Document { letter: Letter::RefusedChange, ..absent }), Settlement::Leave);
        }
    }

    #[test]
    fn a_foreign_document_of_another_zone_is_never_removed_and_written_only_if_a_copy_found_it() {
        let is_foreign = |document: &Document| {
            document.is_foreign && !document.is_same_zone && matches!(document.spoke, Watched | Elsewhere)
        };
        for document in all().filter(is_foreign) {
            let settlement = settle(document);
            let is_kept = matches!(settlement, Settlement::Leave | Settlement::Collide);
            let gives_way = document.is_found && settlement == Settlement::Write;
            assert!(is_kept || gives_way, "{document:?}: {settlement:?}");
        }
    }

    #[test]
    fn a_document_of_a_zone_that_was_left_stays_unless_the_hubs_version_comes_to_a_held_zone() {
        let left = Document { spoke: Elsewhere, is_left: true, ..PLAIN };
        assert_eq!(settle(left), Settlement::Leave);
        assert_eq!(settle(Document { hub: Elsewhere, ..left }), Settlement::Leave);
        assert_eq!(settle(Document { hub: Own, ..left }), Settlement::Write);
    }

    #[test]
    fn a_collision_is_told_where_the_spoke_should_hold_the_hubs_document() {
        let own = Document { spoke: Own, letter: Letter::NeverAccepted, ..PLAIN };
        assert_eq!(settle(Document { hub: Watched, ..own }), Settlement::Collide);
        assert_eq!(settle(Document { hub: Elsewhere, ..own }), Settlement::Leave, "the uplink's letter tells");
        let foreign = Document { spoke: Elsewhere, is_foreign: true, ..PLAIN };
        assert_eq!(settle(Document { hub: Own, ..foreign }), Settlement::Collide);
        assert_eq!(settle(Document { hub: Own, is_found: true, ..foreign }), Settlement::Write);
    }

    #[test]
    fn nothing_is_done_where_both_are_equal_or_the_spoke_refuses_the_hubs_version() {
        for document in all() {
            if document.is_refused || (document.is_equal && document.spoke != Elsewhere) {
                assert_eq!(settle(document), Settlement::Leave, "{document:?}");
            }
        }
    }

    #[test]
    fn a_document_that_the_spoke_does_not_hold_leaves_it_even_if_the_hub_has_the_same() {
        let same = Document { hub: Elsewhere, spoke: Elsewhere, is_equal: true, ..PLAIN };
        assert_eq!(settle(same), Settlement::Remove);
        assert_eq!(settle(Document { is_foreign: true, ..same }), Settlement::Leave);
        assert_eq!(settle(Document { is_left: true, ..same }), Settlement::Leave);
    }

    /// The state after the decision was carried out.
    fn after(document: Document) -> Document {
        match settle(document) {
            Settlement::Leave | Settlement::Collide => document,
            Settlement::Write => Document { spoke: document.hub, is_equal: true, is_foreign: false, ..document },
            Settlement::Remove => Document { spoke: Absent, is_equal: document.hub == Absent, ..document },
        }
    }

    #[test]
    fn a_decision_that_was_carried_out_is_not_taken_again() {
        for document in all() {
            let settled = after(document);
            assert!(matches!(settle(settled), Settlement::Leave | Settlement::Collide), "{document:?}, {settled:?}");
        }
    }

    #[test]
    fn the_sides_end_equal_in_every_held_zone_unless_somebody_is_told() {
        for document in
            all().filter(|document| !document.is_refused && document.is_equal == (document.hub == document.spoke))
        {
            let settled = after(document);
            let is_told =
                settled.letter != Letter::None || settled.is_foreign || settle(document) == Settlement::Collide;
            let holds = |version| matches!(version, Own | Watched);
            let is_equal = settled.is_equal || (!holds(settled.hub) && !holds(settled.spoke));
            assert!(is_equal || is_told || settled.is_left, "{document:?}, {settled:?}");
        }
    }
}
