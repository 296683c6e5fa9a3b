//! Documents that a link of the spoke did not find as expected. They wait here until the uplink has carried everything
//! up to the moment at which they were seen; then the [decision](crate::rules::settle) is taken.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bson::Timestamp;
use bson::raw::{RawBson, RawDocumentBuf};

use crate::rules::key::Key;

/// Documents that wait, of both links.
#[derive(Debug, Default)]
pub(super) struct Unsettled(Mutex<HashMap<Key, Waiting>>);

#[derive(Debug)]
struct Waiting {
    id: RawBson,
    stage: Stage,
}

/// The progress towards a decision.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// The spoke's version is still to be seen.
    Found,
    /// The spoke's version was seen at this cluster time of the spoke; the uplink must pass it.
    Seen { at: Timestamp, version: Option<RawDocumentBuf> },
}

impl Unsettled {
    /// Adds a document. A document that waits already begins again: what was seen of it may no longer be so.
    pub(super) fn add(&self, key: Key, id: RawBson) {
        self.waiting().insert(key, Waiting { id, stage: Stage::Found });
    }

    pub(super) fn remove(&self, key: &Key) {
        self.waiting().remove(key);
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        let waiting = self.waiting();
        !waiting.is_empty() && waiting.contains_key(key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting().is_empty()
    }

    /// The documents of one stage, at most `most` of them.
    pub(super) fn of_stage(&self, is_such: impl Fn(&Stage) -> bool, most: usize) -> Vec<(Key, RawBson, Stage)> {
        let waiting = self.waiting();
        let such = waiting.iter().filter(|(_, waiting)| is_such(&waiting.stage));
        such.map(|(key, waiting)| (key.clone(), waiting.id.clone(), waiting.stage.clone())).take(most).collect()
    }

    /// Bytes of the versions that were seen.
    pub(super) fn seen_bytes(&self) -> usize {
        let bytes = |waiting: &Waiting| match &waiting.stage {
            Stage::Seen { version: Some(version), .. } => version.as_bytes().len(),
            _ => 0,
        };
        self.waiting().values().map(bytes).sum()
    }

    /// The document has come to its next stage, unless it was found again meanwhile.
    pub(super) fn advance(&self, key: &Key, stage: Stage) {
        if let Some(waiting) = self.waiting().get_mut(key) {
            waiting.stage = stage;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Key, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::raw::RawBsonRef;

    #[test]
    fn a_document_found_again_begins_again() {
        let (unsettled, id) = (Unsettled::default(), RawBson::Int32(1));
        let key = Key::new(0, RawBsonRef::Int32(1));
        unsettled.add(key.clone(), id.clone());
        let at = Timestamp { time: 1, increment: 1 };
        unsettled.advance(&key, Stage::Seen { at, version: None });
        assert!(unsettled.of_stage(|stage| matches!(stage, Stage::Found), 9).is_empty());
        unsettled.add(key.clone(), id);
        assert_eq!(unsettled.of_stage(|stage| matches!(stage, Stage::Found), 9).len(), 1);
        unsettled.remove(&key);
        assert!(unsettled.is_empty() && !unsettled.contains(&key));
    }
}
