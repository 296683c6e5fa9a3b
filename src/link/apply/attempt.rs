//! The progress of a work: the steps in the present attempt, the rung of the ladder, and the documents read.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use bson::Timestamp;
use bson::raw::CStr;

use crate::mongo::read::{FITTING_BYTES, Snapshot, Wanted};
use crate::rules::key::Key;
use crate::rules::ladder::Rung;
use crate::rules::lookup;
use crate::rules::step::{Read, Reads, Step, Write};

/// Documents missing at the destination, and read whole at the source.
#[derive(Default)]
pub(super) struct Brought {
    pub(super) reads: Reads,
    /// The source's cluster time of each read.
    pub(super) read_at: HashMap<Key, Timestamp>,
}

impl Brought {
    pub(super) fn add(&mut self, snapshot: Snapshot) {
        for key in snapshot.documents.keys() {
            self.read_at.insert(key.clone(), snapshot.at);
            self.reads.whole.insert(key.clone());
        }
        self.reads.documents.extend(snapshot.documents);
    }
}

/// The present attempt at a work. The first attempt tries all steps, in the fastest way.
pub(super) struct Attempt {
    pub(super) rung: Rung,
    /// The steps before this index are done.
    from: usize,
    to: Option<usize>,
    /// Documents read at the source for this work.
    pub(super) reads: Reads,
    read_at: HashMap<Key, Timestamp>,
    /// Documents to read whole because the destination refused their deltas, or already has a newer version.
    to_read_whole: HashSet<Key>,
}

impl Attempt {
    pub(super) fn new(read_at: HashMap<Key, Timestamp>) -> Self {
        Self { rung: Rung::FIRST, from: 0, to: None, reads: Reads::default(), read_at, to_read_whole: HashSet::new() }
    }

    /// The indices of the steps in the attempt, for a work of `steps` steps.
    pub(super) fn range(&self, steps: usize) -> Range<usize> {
        self.from..self.to.unwrap_or(steps)
    }

    /// Tries only the steps before this index.
    pub(super) fn stop_before(&mut self, step: usize) {
        self.to = Some(step);
    }

    /// Marks the steps before the index as done, and tries all others.
    pub(super) fn continue_from(&mut self, step: usize) {
        self.from = step;
        self.to = None;
    }

    /// Forgets all reads, because the steps that follow are later. Returns the documents that could only be read as of
    /// a later time than `until`, with that time: they contain the steps up to then.
    pub(super) fn forget_reads(&mut self, until: Timestamp) -> HashMap<Key, Timestamp> {
        self.reads = Reads::default();
        let mut read_at = std::mem::take(&mut self.read_at);
        read_at.retain(|_, at| *at > until);
        read_at
    }

    /// Forgets the content of the documents read if it takes much memory. Later steps of the documents read them again.
    pub(super) fn forget_much(&mut self) {
        let bytes: usize = self.reads.documents.values().flatten().map(|document| document.as_bytes().len()).sum();
        if bytes > FITTING_BYTES {
            self.to_read_whole.extend(self.reads.documents.drain().map(|(key, _)| key));
        }
    }

    /// Makes the next attempt bring the document whole, because the destination refused the shape of the change.
    pub(super) fn read_whole(&mut self, key: Key) {
        self.to_read_whole.insert(key);
    }

    /// The documents still to be read for the steps, and the documents that first need a partition key.
    pub(super) fn wanted<'a>(&mut self, steps: &[Step<'a>]) -> (Wanted<'a>, HashSet<Key>) {
        let mut wanted = Wanted::new();
        let mut unstamped = HashSet::new();
        for step in steps {
            let reason = match &step.write {
                Write::Read(reason) => *reason,
                _ if self.to_read_whole.contains(&step.key) => Read::Whole,
                _ => continue,
            };
            if reason != Read::Order {
                self.reads.whole.insert(step.key.clone());
            }
            if matches!(reason, Read::Stamp { .. }) {
                unstamped.insert(step.key.clone());
            }
            if !self.reads.documents.contains_key(&step.key) {
                wanted.insert(step.key.clone(), step.id);
            }
        }
        (wanted, unstamped)
    }

    /// Keeps documents brought whole beyond the needs of the steps, so that later steps of the work do not bring back
    /// an older version.
    pub(super) fn has_brought(&mut self, brought: Brought) {
        self.reads.whole.extend(brought.reads.whole);
        self.reads.documents.extend(brought.reads.documents);
        self.read_at.extend(brought.read_at);
    }

    /// Keeps the documents read for the steps.
    pub(super) fn has_read(&mut self, snapshot: Snapshot, steps: &[Step<'_>], partition_key: &CStr) {
        for (key, document) in &snapshot.documents {
            let last = steps.iter().rev().find(|step| step.key == *key);
            let as_expected = last.is_some_and(|last| last.expects(document.as_deref(), partition_key));
            // A document equal to the document of the last event is no newer than the event.
            if self.reads.whole.contains(key) && !as_expected {
                self.read_at.insert(key.clone(), snapshot.at);
            }
        }
        // A stamp that came too late: the document has another owner by now. It goes to the hub as it was inserted, and
        // leaves.
        for step in steps {
            let Write::Read(Read::Stamp { fresh: true, document: Some(inserted) }) = step.write else { continue };
            let Some(Some(read)) = snapshot.documents.get(&step.key) else { continue };
            let is_own = |zone: &&str| lookup::text(read, partition_key.as_str()) == Some(*zone);
            if let Some(zone) = step.zones.names().next().filter(|zone| !is_own(zone)) {
                let mut stamped = inserted.to_owned();
                stamped.append(partition_key, zone);
                self.reads.inserted.insert(step.key.clone(), stamped);
            }
        }
        self.reads.documents.extend(snapshot.documents);
    }

    /// The collections of documents that were missing at the source.
    pub(super) fn missing(&self) -> HashSet<u16> {
        let missing = self.reads.documents.iter().filter(|(_, document)| document.is_none());
        missing.map(|(key, _)| key.namespace()).collect()
    }

    /// Records that these collections were dropped: their missing documents were not deleted, and are as before the
    /// read.
    pub(super) fn has_lost(&mut self, dropped: HashSet<u16>) {
        self.reads.dropped = dropped;
        self.read_at.retain(|key, _| !self.reads.is_lost(key));
    }

    /// True for a delta that the destination has refused, of a document that is missing since a drop.
    pub(super) fn is_refused_and_lost(&self, step: &Step<'_>) -> bool {
        matches!(step.write, Write::Update(_))
            && self.to_read_whole.contains(&step.key)
            && self.reads.is_lost(&step.key)
    }

    /// Average bytes of the documents read; `None` without documents.
    pub(super) fn bytes_of_a_read(&self) -> Option<usize> {
        let bytes: usize = self.reads.documents.values().flatten().map(|document| document.as_bytes().len()).sum();
        bytes.checked_div(self.reads.documents.values().flatten().count())
    }

    /// The source's cluster time of the document's read, if the document may be newer than the document's last change
    /// in the work.
    pub(super) fn read_at(&self, key: &Key) -> Option<Timestamp> {
        self.read_at.get(key).copied()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::rules::step::Zones;
    use bson::raw::{RawBsonRef, RawDocumentBuf, cstr};
    use bson::rawdoc;

    pub(in crate::link::apply) fn key(id: i32) -> Key {
        Key::new(0, RawBsonRef::Int32(id))
    }

    pub(in crate::link::apply) fn step(id: i32, write: Write<'_>) -> Step<'_> {
        Step { event: 0, key: key(id), id: RawBsonRef::Int32(id), zones: Zones::One("DFW"), write, hub_edit: None }
    }

    pub(in crate::link::apply) fn snapshot(documents: Vec<(i32, Option<RawDocumentBuf>)>) -> Snapshot {
        let documents = documents.into_iter().map(|(id, document)| (key(id), document)).collect();
        Snapshot { at: Timestamp { time: 9, increment: 1 }, documents }
    }

    fn attempt() -> Attempt {
        Attempt::new(HashMap::new())
    }

    #[test]
    fn an_attempt_begins_with_all_steps_and_continues_behind_what_is_done() {
        let mut attempt = attempt();
        assert_eq!((attempt.range(5), attempt.rung), (0..5, Rung::FIRST));
        attempt.stop_before(3);
        assert_eq!(attempt.range(5), 0..3);
        attempt.continue_from(3);
        assert_eq!(attempt.range(5), 3..5);
    }

    #[test]
    fn each_document_is_read_once_however_many_steps_need_it() {
        let mut attempt = attempt();
        let steps = [step(1, Write::Read(Read::Whole)), step(1, Write::Read(Read::Whole)), step(2, Write::Delete)];
        let (wanted, unstamped) = attempt.wanted(&steps);
        assert_eq!((wanted.len(), unstamped.len()), (1, 0));
        attempt.has_read(snapshot(vec![(1, None)]), &steps, cstr!("_pk"));
        assert_eq!(attempt.wanted(&steps).0.len(), 0, "a retry reads nothing twice");
    }

    #[test]
    fn a_document_whose_delta_was_refused_is_read_whole() {
        let mut attempt = attempt();
        let steps = [step(1, Write::Update(crate::rules::delta::Delta::default())), step(2, Write::Delete)];
        assert_eq!(attempt.wanted(&steps).0.len(), 0);
        attempt.read_whole(key(1));
        assert_eq!(attempt.wanted(&steps).0.into_keys().collect::<Vec<_>>(), [key(1)]);
        assert!(attempt.reads.whole.contains(&key(1)));
    }

    #[test]
    fn only_a_stamp_asks_for_a_partition_key_and_an_order_does_not_need_the_whole_document() {
        let mut attempt = attempt();
        let stamp = Write::Read(Read::Stamp { fresh: true, document: None });
        let (wanted, unstamped) = attempt.wanted(&[step(1, stamp), step(2, Write::Read(Read::Order))]);
        assert_eq!((wanted.len(), unstamped), (2, HashSet::from([key(1)])));
        assert_eq!(attempt.reads.whole, HashSet::from([key(1)]));
    }

    #[test]
    fn a_document_just_stamped_is_no_newer_than_its_event() {
        let event = rawdoc! { "_id": 1, "a": 1 };
        let steps = [step(1, Write::Read(Read::Stamp { fresh: true, document: Some(&event) }))];
        let read = |document: RawDocumentBuf| {
            let mut attempt = attempt();
            attempt.wanted(&steps);
            attempt.has_read(snapshot(vec![(1, Some(document))]), &steps, cstr!("_pk"));
            attempt.read_at(&key(1)).is_some()
        };
        assert!(!read(rawdoc! { "_id": 1, "a": 1, "_pk": "DFW" }));
        assert!(read(rawdoc! { "_id": 1, "a": 2, "_pk": "DFW" }), "somebody has changed it since");
    }

    #[test]
    fn what_was_brought_whole_stands_for_the_documents_later_steps() {
        let mut brought = Brought::default();
        brought.add(snapshot(vec![(1, Some(rawdoc! { "_id": 1 }))]));
        let mut attempt = attempt();
        attempt.has_brought(brought);
        assert_eq!(attempt.read_at(&key(1)), Some(Timestamp { time: 9, increment: 1 }));
        assert!(attempt.reads.whole.contains(&key(1)));
        assert_eq!(attempt.wanted(&[step(1, Write::Read(Read::Whole))]).0.len(), 0);
    }

    #[test]
    fn the_size_of_a_read_is_the_average_of_what_was_there() {
        let mut attempt = attempt();
        assert_eq!(attempt.bytes_of_a_read(), None);
        let document = rawdoc! { "_id": 1 };
        let bytes = document.as_bytes().len();
        attempt.has_read(snapshot(vec![(1, Some(document)), (2, None)]), &[], cstr!("_pk"));
        assert_eq!(attempt.bytes_of_a_read(), Some(bytes));
    }

    #[test]
    fn behind_a_cut_only_a_document_read_too_late_is_remembered() {
        let mut attempt = attempt();
        let steps = [step(1, Write::Read(Read::Whole)), step(2, Write::Read(Read::Whole))];
        attempt.wanted(&steps);
        let read = |id: i32| snapshot(vec![(id, Some(rawdoc! { "_id": id }))]);
        let (exact, late) = (read(1), read(2));
        attempt.has_read(Snapshot { at: Timestamp { time: 5, increment: 1 }, ..exact }, &steps, cstr!("_pk"));
        attempt.has_read(late, &steps, cstr!("_pk"));
        let newer = attempt.forget_reads(Timestamp { time: 5, increment: 1 });
        assert_eq!(newer, HashMap::from([(key(2), Timestamp { time: 9, increment: 1 })]));
        assert_eq!(attempt.wanted(&steps).0.len(), 2, "both are read again for later steps");
    }
}
