//! The ladder after a refusal: the next attempt at a refused batch.
//!
//! A refusal aborts the whole transaction. The batch then climbs a ladder, and each rung gives up speed for certainty.
//! First, inserts become upserts, because the document may exist already. Then the statements follow exactly the
//! source's order: a source with the same unique index has proved the order possible. A change refused on the last rung
//! becomes a dead letter.

use super::key::Key;
use super::plan::Inserts;
use super::step::Step;

/// The form of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rung {
    /// Folded into few commands.
    Folded(Inserts),
    /// In the source's order.
    InSequence,
}

/// The permanent refusal of a change by a server. The transaction is aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The server's error code, as in `error_codes.yml`.
    pub(crate) code: i32,
    /// The server's reason, shortened, for people.
    pub(crate) message: String,
    /// The `_id` is taken: the destination has a document of the same `_id` outside of the zones of the step.
    pub(crate) is_id_taken: bool,
    /// The refused change, if the server names one.
    pub(crate) step: Option<RefusedStep>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedStep {
    pub(crate) key: Key,
    /// The number of the step's event; `None` if the source refuses the document itself.
    pub(crate) event: Option<usize>,
    /// The statement changes single fields, so the whole document may be accepted instead.
    pub(crate) is_delta: bool,
}

/// The answer to a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Send the batch on this rung.
    Try(Rung),
    /// Read this document whole at the source, and send the batch again.
    ReadWhole(Key),
    /// Apply the steps before the refused step, park the refused step as a dead letter, and continue with the next
    /// step.
    Park,
}

impl Rung {
    pub(crate) const FIRST: Self = Self::Folded(Inserts::Plain);

    pub(crate) fn after(self, refusal: &Refusal) -> Next {
        let is_duplicate = refusal.code == DUPLICATE_KEY;
        // The shape of the delta may be at fault, rather than the values: for example a path into a field without
        // subdocument.
        if !is_duplicate
            && refusal.code != VALIDATION_FAILURE
            && let Some(step) = refusal.step.as_ref().filter(|step| step.is_delta)
        {
            return Next::ReadWhole(step.key.clone());
        }
        match self {
            Self::Folded(Inserts::Plain) if is_duplicate => Next::Try(Self::Folded(Inserts::Upserts)),
            Self::Folded(_) => Next::Try(Self::InSequence),
            Self::InSequence => Next::Park,
        }
    }
}

impl Refusal {
    /// The refusal of a move out of the spoke's zone, by configuration.
    pub(crate) fn of_move(key: Key, event: usize) -> Self {
        let message = "the spoke may not move documents into other zones (moves = \"refuse\")".to_owned();
        let step = Some(RefusedStep { key, event: Some(event), is_delta: false });
        Self { code: UNAUTHORIZED, message, is_id_taken: false, step }
    }

    /// The index of the refused step among the sent steps. If the server names no step, the middle: repeated halving
    /// isolates the refused step.
    pub(crate) fn place_among(&self, steps: &[Step<'_>]) -> usize {
        let is_before = |step: &&Step<'_>| match &self.step {
            Some(RefusedStep { event: Some(event), .. }) => step.event < *event,
            Some(RefusedStep { key, .. }) => step.key != *key,
            None => false,
        };
        match &self.step {
            Some(_) => steps.iter().take_while(is_before).count(),
            None => steps.len() / 2,
        }
    }
}

const DUPLICATE_KEY: i32 = 11000;
const VALIDATION_FAILURE: i32 = 121;
const UNAUTHORIZED: i32 = 13;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::step::{Write, Zones};
    use bson::raw::RawBsonRef;

    fn refusal(code: i32, is_delta: bool) -> Refusal {
        let step = RefusedStep { key: Key::new(0, RawBsonRef::Int32(7)), event: Some(7), is_delta };
        Refusal { code, message: String::new(), is_id_taken: false, step: Some(step) }
    }

    #[test]
    fn a_duplicate_key_climbs_the_whole_ladder() {
        let duplicate = refusal(DUPLICATE_KEY, false);
        let mut rung = Rung::FIRST;
        let mut rungs = vec![rung];
        while let Next::Try(next) = rung.after(&duplicate) {
            rung = next;
            rungs.push(rung);
        }
        assert_eq!(rungs, [Rung::FIRST, Rung::Folded(Inserts::Upserts), Rung::InSequence]);
        assert_eq!(rung.after(&refusal(DUPLICATE_KEY, true)), Next::Park);
    }

    #[test]
    fn a_delta_of_a_refused_shape_brings_the_whole_document() {
        let path_not_viable = refusal(28, true);
        let whole = Next::ReadWhole(Key::new(0, RawBsonRef::Int32(7)));
        assert_eq!(Rung::FIRST.after(&path_not_viable), whole);
        assert_eq!(Rung::InSequence.after(&path_not_viable), whole);
        assert_eq!(Rung::InSequence.after(&refusal(VALIDATION_FAILURE, true)), Next::Park);
    }

    #[test]
    fn a_refusal_that_no_upsert_can_heal_goes_in_sequence_immediately() {
        assert_eq!(Rung::FIRST.after(&refusal(VALIDATION_FAILURE, false)), Next::Try(Rung::InSequence));
    }

    #[test]
    fn a_refusal_without_a_step_climbs_by_its_code_alone() {
        let unnamed = |code| Refusal { code, message: String::new(), is_id_taken: false, step: None };
        assert_eq!(Rung::FIRST.after(&unnamed(17280)), Next::Try(Rung::InSequence));
        assert_eq!(Rung::InSequence.after(&unnamed(17280)), Next::Park);
        assert_eq!(Rung::FIRST.after(&unnamed(DUPLICATE_KEY)), Next::Try(Rung::Folded(Inserts::Upserts)));
    }

    #[test]
    fn the_refused_step_is_found_by_event_or_by_document_or_by_halving() {
        let ids = [1, 2, 1, 3].map(RawBsonRef::Int32);
        let step = |(event, id): (usize, &RawBsonRef<'static>)| Step {
            event: event * 10,
            key: Key::new(0, *id),
            id: *id,
            zones: Zones::One("DFW"),
            write: Write::Delete,
            hub_edit: None,
        };
        let steps: Vec<Step<'_>> = ids.iter().enumerate().map(step).collect();
        let at = |event, id| {
            let step = RefusedStep { key: Key::new(0, RawBsonRef::Int32(id)), event, is_delta: false };
            Refusal { code: 2, message: String::new(), is_id_taken: false, step: Some(step) }.place_among(&steps)
        };
        assert_eq!(at(Some(20), 1), 2);
        assert_eq!(at(Some(0), 1), 0);
        assert_eq!(at(None, 3), 3);
        assert_eq!(at(None, 1), 0, "the document's first step");
        assert_eq!(Refusal { code: 2, message: String::new(), is_id_taken: false, step: None }.place_among(&steps), 2);
        assert_eq!(
            Refusal { code: 2, message: String::new(), is_id_taken: false, step: None }.place_among(&steps[..1]),
            0
        );
    }
}
