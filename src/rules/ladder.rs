//! What to try next when a destination refuses a batch.
//!
//! A refusal aborts the whole transaction, so the batch climbs a ladder, and each rung gives up speed for certainty:
//! inserts as upserts (the document may be there already); then exactly the source's order (which a source with the same
//! unique index has proved possible); there the change that is refused is refused for good, and becomes a dead letter.

use super::plan::Inserts;

/// How a batch is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Folded into few commands.
    Folded(Inserts),
    /// In the source's order.
    InSequence,
}

/// Why the destination refused a statement: the server's error code of the write error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// As in the server's `error_codes.yml`.
    pub(crate) code: i32,
}

/// What to do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Send the batch like this.
    Try(Attempt),
    /// Bring the refused document whole, and send the batch again.
    ReadWhole,
    /// Send what came before the refused change, make that a dead letter, and go on behind it.
    Park,
}

impl Attempt {
    /// The fastest way.
    pub(crate) const FIRST: Self = Self::Folded(Inserts::Plain);

    /// The next rung, after a write was refused that may be a delta.
    pub(crate) fn after(self, refusal: Refusal, is_delta: bool) -> Next {
        let duplicate = refusal.code == DUPLICATE_KEY;
        match self {
            // Not the values but the shape of the delta is refused, such as a path into a field that is no document.
            _ if is_delta && !duplicate && refusal.code != VALIDATION_FAILURE => Next::ReadWhole,
            Self::Folded(Inserts::Plain) if duplicate => Next::Try(Self::Folded(Inserts::Upserts)),
            Self::Folded(_) => Next::Try(Self::InSequence),
            Self::InSequence => Next::Park,
        }
    }
}

const DUPLICATE_KEY: i32 = 11000;
const VALIDATION_FAILURE: i32 = 121;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duplicate_key_climbs_the_whole_ladder() {
        let refusal = Refusal { code: DUPLICATE_KEY };
        let mut attempt = Attempt::FIRST;
        let mut rungs = vec![attempt];
        while let Next::Try(next) = attempt.after(refusal, false) {
            attempt = next;
            rungs.push(attempt);
        }
        assert_eq!(rungs, [Attempt::FIRST, Attempt::Folded(Inserts::Upserts), Attempt::InSequence]);
        assert_eq!(attempt.after(refusal, true), Next::Park);
    }

    #[test]
    fn a_delta_of_a_refused_shape_brings_the_whole_document() {
        let path_not_viable = Refusal { code: 28 };
        assert_eq!(Attempt::FIRST.after(path_not_viable, true), Next::ReadWhole);
        assert_eq!(Attempt::InSequence.after(path_not_viable, true), Next::ReadWhole);
        let validator = Refusal { code: VALIDATION_FAILURE };
        assert_eq!(Attempt::InSequence.after(validator, true), Next::Park);
    }

    #[test]
    fn what_no_upsert_can_heal_goes_in_sequence_at_once() {
        let validator = Refusal { code: VALIDATION_FAILURE };
        assert_eq!(Attempt::FIRST.after(validator, false), Next::Try(Attempt::InSequence));
    }
}
