//! Changes held back by a dead letter: after a refused change, the document's later changes wait as well.
//!
//! A later change applied alone would build on a state that the destination never had. The dead letter therefore only
//! counts later changes, until the letter is retried or dropped. Changes of other documents flow.

use std::collections::BTreeMap;

use bson::raw::RawBsonRef;

use super::key::Key;
use super::step::Step;

/// The steps of a batch waiting with a dead letter.
#[derive(Debug, Default)]
pub(crate) struct HeldBack<'a> {
    steps: Vec<Step<'a>>,
}

/// A document with the number of changes held back.
pub(crate) type Count<'c, 'a> = (&'c Key, RawBsonRef<'a>, i64);

impl<'a> HeldBack<'a> {
    /// Takes the steps of documents with a dead letter out of `steps`, from this index on. Steps before the index are
    /// applied already.
    pub(crate) fn take(&mut self, steps: &mut Vec<Step<'a>>, from: usize, has_letter: impl Fn(&Key) -> bool) {
        self.steps.extend(steps.extract_if(from.., |step| has_letter(&step.key)));
    }

    /// The numbers of the events of a document's changes held back.
    pub(crate) fn events(&self, key: &Key) -> impl Iterator<Item = usize> {
        self.steps.iter().filter(move |step| step.key == *key).map(|step| step.event)
    }

    /// True if the newest of the document's changes deletes the document.
    pub(crate) fn ends_with_delete(&self, key: &Key) -> bool {
        self.steps.iter().rev().find(|step| step.key == *key).is_some_and(Step::removes)
    }

    /// The number of changes held back, by document, in the order of the keys.
    pub(crate) fn counts(&self) -> Vec<Count<'_, 'a>> {
        let mut counts: BTreeMap<&Key, (RawBsonRef<'a>, i64)> = BTreeMap::new();
        for step in &self.steps {
            counts.entry(&step.key).or_insert((step.id, 0)).1 += 1;
        }
        counts.into_iter().map(|(key, (id, changes))| (key, id, changes)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::step::{Write, Zones};

    fn key(id: i32) -> Key {
        Key::new(0, RawBsonRef::Int32(id))
    }

    fn steps(ids: &[i32]) -> Vec<Step<'static>> {
        let step = |(event, &id): (usize, &i32)| Step {
            event,
            key: key(id),
            id: RawBsonRef::Int32(id),
            zones: Zones::One("DFW"),
            write: Write::Delete,
            hub_edit: None,
        };
        ids.iter().enumerate().map(step).collect()
    }

    fn left(steps: &[Step<'_>]) -> Vec<usize> {
        steps.iter().map(|step| step.event).collect()
    }

    #[test]
    fn later_changes_of_a_refused_document_wait_and_others_flow() {
        let (mut batch, mut held) = (steps(&[1, 2, 1, 3, 1]), HeldBack::default());
        held.take(&mut batch, 0, |document| *document == key(1));
        assert_eq!(left(&batch), [1, 3]);
        assert_eq!(held.counts(), [(&key(1), RawBsonRef::Int32(1), 3)]);
        assert_eq!(held.events(&key(1)).collect::<Vec<_>>(), [0, 2, 4]);
    }

    #[test]
    fn only_a_delete_as_the_newest_change_means_that_the_document_is_gone() {
        let (mut batch, mut held) = (steps(&[1, 1, 2, 3]), HeldBack::default());
        batch[1].write = Write::Read(crate::rules::step::Read::Whole);
        held.take(&mut batch, 0, |document| *document != key(3));
        assert!(!held.ends_with_delete(&key(1)) && held.ends_with_delete(&key(2)) && !held.ends_with_delete(&key(3)));
    }

    #[test]
    fn what_was_applied_before_the_refusal_is_not_counted() {
        let (mut batch, mut held) = (steps(&[1, 2, 1, 2]), HeldBack::default());
        held.take(&mut batch, 2, |document| *document == key(1));
        assert_eq!(left(&batch), [0, 1, 3]);
        assert_eq!(held.counts(), [(&key(1), RawBsonRef::Int32(1), 1)]);
    }

    #[test]
    fn several_letters_of_one_batch_are_counted_together() {
        let (mut batch, mut held) = (steps(&[1, 2, 1, 2, 2]), HeldBack::default());
        held.take(&mut batch, 1, |document| *document == key(1));
        held.take(&mut batch, 1, |document| *document == key(2));
        assert_eq!(left(&batch), [0]);
        let counts: Vec<i64> = held.counts().into_iter().map(|(.., changes)| changes).collect();
        assert_eq!(counts, [1, 3]);
    }

    #[test]
    fn without_a_letter_nothing_is_held_back() {
        let (mut batch, mut held) = (steps(&[1, 2]), HeldBack::default());
        held.take(&mut batch, 0, |_| false);
        assert_eq!((left(&batch), held.counts().len()), (vec![0, 1], 0));
    }
}
