//! Concurrent edits of one document at the hub and at the owning spoke: *the hub's order is the truth*.
//!
//! A spoke's own change returns from the hub as an echo. Normally the spoke holds the change or a newer version, and
//! skips the echo. Skipping is wrong after a *hub edit* of the same document (a change by a hub application, or our own
//! refresh) that reached the spoke after the spoke's change, yet precedes the change in the hub's order. Hub and spoke
//! then hold the two edits in opposite order. The rule:
//!
//! - A hub edit applied at the spoke becomes an entry: the fields touched, and the spoke's cluster time of the commit.
//! - Once the uplink has pushed everything the spoke had up to the commit, the hub's cluster time of the push becomes
//!   the *end* of the entry. Own changes after the end were made on top of the hub edit.
//! - An echo is compared with every entry of the document without an end, or with an end not before the echo. If the
//!   touched fields overlap, the document is refreshed from the hub. If not, both edits stand and only the order of the
//!   fields may differ. The spoke then takes the hub's order, without a change to any value.
//! - An entry past the end is dropped.
//! - A hub edit about to be applied in the same batch as the echo counts as an entry without an end.
//!
//! The transaction that applies hub edits saves their entries as one *note*, so a restart knows them. A note has no
//! times, so the time of the restart serves instead. A document never edited by a hub application is therefore never
//! touched: a restart does not undo an application's read-modify-write at the spoke.

use std::collections::{HashMap, VecDeque};

use bson::Timestamp;

use super::fields::Fields;
use super::key::Key;

/// Treatment of an echo: the spoke's own change, returned by the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnChange {
    /// The spoke holds the change, or a newer version.
    Skip,
    /// Write the hub's current version of the document at the spoke.
    Refresh,
    /// Bring the fields of the spoke's document into the hub's order.
    Reorder,
}

/// Progress of the uplink: everything up to `spoke_time` reached the hub by `hub_time`.
#[derive(Clone, Copy, Debug)]
struct Pushed {
    spoke_time: Timestamp,
    hub_time: Timestamp,
}

#[derive(Debug)]
struct Entry {
    fields: Fields,
    spoke_time: Timestamp,
    end: Option<Timestamp>,
    /// The spoke's time of the newest edit that is known to have written or removed the document.
    written: Option<Timestamp>,
}

/// A saved note of hub edits. All entries of a note have the same times.
#[derive(Debug)]
struct Note {
    number: i64,
    spoke_time: Timestamp,
    end: Option<Timestamp>,
}

/// Hub edits at one spoke, kept as long as an echo may conflict with them.
#[derive(Debug)]
pub(crate) struct Conflicts {
    entries: HashMap<Key, Entry>,
    /// Stands for all documents and all fields when individual entries are unknown.
    everything: Option<Entry>,
    /// Keys of entries without an end, by the spoke's time of the entry.
    open: VecDeque<(Timestamp, Key)>,
    /// Keys of entries with an end, by end.
    ended: VecDeque<(Timestamp, Key)>,
    /// Saved notes in ascending order of their numbers.
    notes: VecDeque<Note>,
    pushed: Option<Pushed>,
    limit: usize,
}

impl Conflicts {
    /// Starts without hub edits. Beyond `limit` documents, a single entry for all documents takes over.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            everything: None,
            open: VecDeque::new(),
            ended: VecDeque::new(),
            notes: VecDeque::new(),
            pushed: None,
            limit,
        }
    }

    /// Records a hub edit of these fields, committed at the spoke at `spoke_time`.
    pub(crate) fn record(&mut self, key: Key, fields: Fields, spoke_time: Timestamp) {
        if self.entries.len() >= self.limit && !self.entries.contains_key(&key) {
            self.record_everything(spoke_time);
            return;
        }
        let end = self.end_of(spoke_time);
        let earlier = self.entries.remove(&key);
        // A renewed open entry keeps its place: the queue needs each key only once.
        match end {
            Some(end) => self.ended.push_back((end, key.clone())),
            None if earlier.as_ref().is_some_and(|entry| entry.end.is_none()) => {}
            None => self.open.push_back((spoke_time, key.clone())),
        }
        let (fields, written) = match earlier {
            Some(earlier) => (earlier.fields.union(fields), earlier.written),
            None => (fields, None),
        };
        self.entries.insert(key, Entry { fields, spoke_time, end, written });
    }

    /// Records that a hub edit has written or removed the spoke's document, and did not find nothing.
    pub(crate) fn record_write(&mut self, key: &Key, spoke_time: Timestamp) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.written = Some(spoke_time);
        }
    }

    /// True if a hub edit of the document is remembered, or if individual documents are no longer remembered.
    pub(crate) fn has_hub_edit(&self, key: &Key) -> bool {
        self.everything.is_some() || self.entries.contains_key(key)
    }

    /// True if a hub edit has written or removed the spoke's document after this time of the spoke.
    pub(crate) fn is_written_after(&self, key: &Key, spoke_time: Timestamp) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.written.is_some_and(|written| written > spoke_time))
    }

    /// Records the number of the note that saves the hub edits committed at `spoke_time`. Numbers ascend.
    pub(crate) fn record_note(&mut self, number: i64, spoke_time: Timestamp) {
        self.notes.push_back(Note { number, spoke_time, end: self.end_of(spoke_time) });
    }

    /// Assumes a hub edit of every document of the spoke up to `spoke_time`, for lack of better knowledge.
    pub(crate) fn record_everything(&mut self, spoke_time: Timestamp) {
        self.entries.clear();
        self.open.clear();
        self.ended.clear();
        let end = self.end_of(spoke_time);
        self.everything = Some(Entry { fields: Fields::All, spoke_time, end, written: None });
    }

    /// Records the uplink's progress: everything the spoke had up to `spoke_time` is pushed, and the last push
    /// committed at the hub at `hub_time`.
    pub(crate) fn uplink_pushed(&mut self, spoke_time: Timestamp, hub_time: Timestamp) {
        self.pushed = Some(Pushed { spoke_time, hub_time });
        if let Some(everything) = &mut self.everything
            && everything.end.is_none()
            && everything.spoke_time <= spoke_time
        {
            everything.end = Some(hub_time);
        }
        for note in self.notes.iter_mut().filter(|note| note.end.is_none() && note.spoke_time <= spoke_time) {
            note.end = Some(hub_time);
        }
        while let Some(key) = pop_until(&mut self.open, |time| time <= spoke_time) {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            match entry.end {
                Some(_) => {}
                None if entry.spoke_time <= spoke_time => {
                    entry.end = Some(hub_time);
                    self.ended.push_back((hub_time, key));
                }
                // Renewed since. Out of order in the queue, the entry may end later than necessary, at the cost of a
                // read.
                None => self.open.push_back((entry.spoke_time, key)),
            }
        }
    }

    /// Records the downlink's position: an entry with an end before `hub_time` can no longer conflict. Returns the
    /// number up to which saved notes can be deleted, if any.
    pub(crate) fn downlink_passed(&mut self, hub_time: Timestamp) -> Option<i64> {
        let passed = |end: Option<Timestamp>| end.is_some_and(|end| end < hub_time);
        if self.everything.as_ref().is_some_and(|everything| passed(everything.end)) {
            self.everything = None;
        }
        while let Some(key) = pop_until(&mut self.ended, |end| end < hub_time) {
            if self.entries.get(&key).is_some_and(|entry| passed(entry.end)) {
                self.entries.remove(&key);
            }
        }
        let mut deletable = None;
        while let Some(note) = self.notes.pop_front() {
            if !passed(note.end) {
                self.notes.push_front(note);
                break;
            }
            deletable = Some(note.number);
        }
        deletable
    }

    /// Forgets all entries and notes when the downlink restarts from the saved notes. The uplink's progress stays
    /// known.
    pub(crate) fn restart(&mut self) {
        *self = Self { pushed: self.pushed, ..Self::new(self.limit) };
    }

    /// Decides about an echo with these fields at `hub_time` in the hub's order. `pending` holds the fields of the
    /// document touched by earlier hub edits in the same batch.
    pub(crate) fn own_change(
        &self,
        key: &Key,
        fields: &Fields,
        hub_time: Timestamp,
        pending: Option<&Fields>,
    ) -> OwnChange {
        let entries = self.everything.iter().chain(self.entries.get(key));
        let standing = entries.filter(|entry| entry.end.is_none_or(|end| end >= hub_time)).map(|entry| &entry.fields);
        let mut verdict = OwnChange::Skip;
        for edited in standing.chain(pending) {
            if edited.meet(fields) {
                return OwnChange::Refresh;
            }
            if edited.may_reorder(fields) {
                verdict = OwnChange::Reorder;
            }
        }
        verdict
    }

    /// True if no hub edit is known, and no echo can conflict.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.everything.is_none()
    }

    fn end_of(&self, spoke_time: Timestamp) -> Option<Timestamp> {
        let pushed = self.pushed?;
        (spoke_time <= pushed.spoke_time).then_some(pushed.hub_time)
    }
}

fn pop_until(line: &mut VecDeque<(Timestamp, Key)>, due: impl Fn(Timestamp) -> bool) -> Option<Key> {
    let (time, _) = line.front()?;
    if due(*time) { line.pop_front().map(|(_, key)| key) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: u32) -> Timestamp {
        Timestamp { time, increment: 0 }
    }

    fn key(id: i32) -> Key {
        Key::new(0, bson::raw::RawBsonRef::Int32(id))
    }

    fn field(name: &str) -> Fields {
        Fields::Some { names: [name.into()].into(), may_add: true }
    }

    #[test]
    fn an_own_change_without_a_hub_edit_is_skipped() {
        let mut conflicts = Conflicts::new(10);
        assert_eq!(conflicts.own_change(&key(1), &Fields::All, at(5), None), OwnChange::Skip);
        conflicts.record(key(1), Fields::All, at(3));
        assert_eq!(conflicts.own_change(&key(2), &Fields::All, at(5), None), OwnChange::Skip);
    }

    #[test]
    fn an_own_change_is_refreshed_until_the_end_of_a_hub_edit() {
        let mut conflicts = Conflicts::new(10);
        conflicts.record(key(1), field("a"), at(3));
        assert_eq!(conflicts.own_change(&key(1), &field("a"), at(99), None), OwnChange::Refresh, "no end is known yet");
        conflicts.uplink_pushed(at(2), at(49));
        assert_eq!(
            conflicts.own_change(&key(1), &field("a"), at(99), None),
            OwnChange::Refresh,
            "not pushed far enough"
        );
        conflicts.uplink_pushed(at(3), at(50));
        assert_eq!(conflicts.own_change(&key(1), &field("a"), at(50), None), OwnChange::Refresh);
        assert_eq!(conflicts.own_change(&key(1), &field("a"), at(51), None), OwnChange::Skip);
    }

    #[test]
    fn edits_of_different_fields_both_stand_in_the_hubs_order() {
        let mut conflicts = Conflicts::new(10);
        conflicts.record(key(1), field("a"), at(3));
        assert_eq!(conflicts.own_change(&key(1), &field("b"), at(5), None), OwnChange::Reorder);
        let removal = Fields::Some { names: ["b".into()].into(), may_add: false };
        assert_eq!(conflicts.own_change(&key(1), &removal, at(5), None), OwnChange::Skip);
    }

    #[test]
    fn a_delete_that_may_have_found_nothing_has_not_replaced_the_document() {
        let mut conflicts = Conflicts::new(10);
        conflicts.record(key(1), Fields::All, at(3));
        assert!(conflicts.has_hub_edit(&key(1)) && !conflicts.is_written_after(&key(1), at(2)));
        conflicts.record_write(&key(1), at(3));
        conflicts.record(key(1), Fields::All, at(5));
        assert!(conflicts.is_written_after(&key(1), at(2)) && !conflicts.is_written_after(&key(1), at(3)));
    }

    #[test]
    fn a_hub_edit_in_the_same_batch_counts() {
        let conflicts = Conflicts::new(10);
        assert_eq!(conflicts.own_change(&key(1), &field("a"), at(5), Some(&field("a"))), OwnChange::Refresh);
        assert_eq!(conflicts.own_change(&key(1), &field("a"), at(5), Some(&field("b"))), OwnChange::Reorder);
    }

    #[test]
    fn an_entry_recorded_after_its_covering_push_ends_immediately() {
        let mut conflicts = Conflicts::new(10);
        conflicts.uplink_pushed(at(9), at(50));
        conflicts.record(key(1), field("a"), at(8));
        assert_eq!(conflicts.own_change(&key(1), &field("a"), at(51), None), OwnChange::Skip);
    }

    #[test]
    fn a_second_hub_edit_of_a_document_keeps_the_first() {
        let mut conflicts = Conflicts::new(10);
        conflicts.record(key(1), field("a"), at(3));
        conflicts.record(key(1), field("b"), at(6));
        conflicts.uplink_pushed(at(3), at(50));
        assert_eq!(conflicts.own_change(&key(1), &field("a"), at(51), None), OwnChange::Refresh);
        conflicts.uplink_pushed(at(6), at(52));
        assert_eq!(conflicts.own_change(&key(1), &field("b"), at(53), None), OwnChange::Skip);
    }

    #[test]
    fn entries_behind_the_downlink_are_forgotten() {
        let mut conflicts = Conflicts::new(10);
        conflicts.record(key(1), field("a"), at(3));
        conflicts.downlink_passed(at(99));
        assert!(!conflicts.is_empty(), "an entry without an end stays");
        conflicts.uplink_pushed(at(3), at(50));
        conflicts.downlink_passed(at(50));
        assert!(!conflicts.is_empty(), "an own change of the same time may still come");
        conflicts.downlink_passed(at(51));
        assert!(conflicts.is_empty() && conflicts.ended.is_empty());
    }

    #[test]
    fn a_note_is_deletable_once_its_edits_can_no_longer_conflict() {
        let mut conflicts = Conflicts::new(10);
        conflicts.record_note(7, at(3));
        conflicts.record_note(8, at(5));
        assert_eq!(conflicts.downlink_passed(at(99)), None);
        conflicts.uplink_pushed(at(4), at(50));
        assert_eq!(conflicts.downlink_passed(at(50)), None);
        assert_eq!(conflicts.downlink_passed(at(51)), Some(7));
        conflicts.uplink_pushed(at(5), at(60));
        assert_eq!(conflicts.downlink_passed(at(61)), Some(8));
        assert_eq!(conflicts.downlink_passed(at(62)), None);
    }

    #[test]
    fn documents_beyond_the_limit_become_one_entry_for_all() {
        let mut conflicts = Conflicts::new(2);
        for id in 0..3 {
            conflicts.record(key(id), field("a"), at(3));
        }
        assert_eq!(conflicts.own_change(&key(77), &field("b"), at(5), None), OwnChange::Refresh);
        conflicts.uplink_pushed(at(3), at(50));
        conflicts.downlink_passed(at(51));
        assert!(conflicts.is_empty());
    }
}
