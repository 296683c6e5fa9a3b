//! Concurrent edits of one document at the hub and at the spoke that owns it: *the hub's order is the truth*.
//!
//! A spoke's own change comes back from the hub. Normally the spoke has it, or something newer, and it is skipped. It must
//! not be skipped where a *hub edit* of the same document (a change by a hub application, or our own refresh) reached the
//! spoke after the spoke made its change, yet stands before it in the hub's order: the two sides then hold the edits in
//! opposite order. The rule that tells:
//!
//! - a hub edit applied at the spoke is remembered with the fields it touched and the spoke's cluster time of that commit;
//! - once the uplink has pushed everything the spoke had up to that time, the hub's cluster time of the push is the entry's
//!   *end*: own changes after it were made on top of the hub edit;
//! - an own change that comes back meets every entry of its document that has no end yet, or an end not before it. If their
//!   fields meet, the document is refreshed from the hub. If they do not, both edits stand, and only the order of the
//!   fields may differ: it is taken from the hub, without touching a value;
//! - past its end an entry is dropped;
//! - a hub edit that is only about to be applied, in one batch with the own change, counts as an entry without an end.
//!
//! Entries are saved in the transaction that applies the hub edits, as one *note* a transaction, so a restart knows them;
//! only their times are then unknown, and the time of the restart serves. Thus a spoke's documents that no hub application
//! edits are never touched, whatever happens: an application's read-modify-write at the spoke is not undone by a restart.

use std::collections::{HashMap, VecDeque};

use bson::Timestamp;

use super::fields::Fields;
use super::key::Key;

/// What to do with an own change that comes back from the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnChange {
    /// The spoke has it, or something newer.
    Skip,
    /// Write the hub's present version of the document at the spoke.
    Refresh,
    /// Bring the document's fields at the spoke into the hub's order.
    Reorder,
}

/// How far the uplink has pushed.
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
}

/// A saved note of hub edits; all its entries have the same times.
#[derive(Debug)]
struct Note {
    number: i64,
    spoke_time: Timestamp,
    end: Option<Timestamp>,
}

/// The hub edits at one spoke that own changes may still have to be held against.
#[derive(Debug)]
pub(crate) struct Conflicts {
    entries: HashMap<Key, Entry>,
    /// One entry for all documents and all fields, where single ones are not known.
    everything: Option<Entry>,
    /// Keys by the spoke's time of their entry, as long as it has no end.
    open: VecDeque<(Timestamp, Key)>,
    /// Keys by the end of their entry.
    ended: VecDeque<(Timestamp, Key)>,
    /// What is saved of them, by number.
    notes: VecDeque<Note>,
    pushed: Option<Pushed>,
    limit: usize,
}

impl Conflicts {
    /// No hub edit is known. At most `limit` documents are remembered by themselves.
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

    /// A hub edit of these fields was committed at the spoke at `spoke_time`.
    pub(crate) fn record(&mut self, key: Key, fields: Fields, spoke_time: Timestamp) {
        if self.entries.len() >= self.limit && !self.entries.contains_key(&key) {
            self.record_everything(spoke_time);
            return;
        }
        let end = self.end_of(spoke_time);
        let earlier = self.entries.remove(&key);
        // One place in each line is enough: an open entry keeps its place when it is renewed.
        match end {
            Some(end) => self.ended.push_back((end, key.clone())),
            None if earlier.as_ref().is_some_and(|entry| entry.end.is_none()) => {}
            None => self.open.push_back((spoke_time, key.clone())),
        }
        let fields = match earlier {
            Some(earlier) => earlier.fields.union(fields),
            None => fields,
        };
        self.entries.insert(key, Entry { fields, spoke_time, end });
    }

    /// Hub edits committed at `spoke_time` were saved as the note with this number; numbers ascend.
    pub(crate) fn record_note(&mut self, number: i64, spoke_time: Timestamp) {
        self.notes.push_back(Note { number, spoke_time, end: self.end_of(spoke_time) });
    }

    /// Any document of the spoke may have had a hub edit up to `spoke_time`: nothing better is known.
    pub(crate) fn record_everything(&mut self, spoke_time: Timestamp) {
        self.entries.clear();
        self.open.clear();
        self.ended.clear();
        self.everything = Some(Entry { fields: Fields::All, spoke_time, end: self.end_of(spoke_time) });
    }

    /// The uplink has pushed all that the spoke had up to `spoke_time`; its last push was committed at the hub at
    /// `hub_time`.
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
                // It was renewed since. Out of order here it may end later than it could, which only costs a read.
                None => self.open.push_back((entry.spoke_time, key)),
            }
        }
    }

    /// The downlink stands at this time of the hub: entries that ended before it can meet nothing any more. Tells the
    /// number up to which saved notes can be deleted, if there are any.
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

    /// All that is known is void: the downlink starts again from what was saved. How far the uplink has pushed stays known.
    pub(crate) fn restart(&mut self) {
        *self = Self { pushed: self.pushed, ..Self::new(self.limit) };
    }

    /// What to do with the spoke's own change of these fields, which stands at `hub_time` in the hub's order. `pending` are
    /// the fields of the document that hub edits before it, in the same batch, touch.
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

    /// True if no own change can meet anything, so that nothing needs to be remembered of this spoke.
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
    fn a_hub_edit_in_the_same_batch_counts() {
        let conflicts = Conflicts::new(10);
        assert_eq!(conflicts.own_change(&key(1), &field("a"), at(5), Some(&field("a"))), OwnChange::Refresh);
        assert_eq!(conflicts.own_change(&key(1), &field("a"), at(5), Some(&field("b"))), OwnChange::Reorder);
    }

    #[test]
    fn an_entry_made_after_the_push_that_covers_it_has_its_end_at_once() {
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
    fn what_the_downlink_has_passed_is_forgotten() {
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
    fn a_note_can_be_deleted_once_its_edits_can_meet_nothing_any_more() {
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
    fn too_many_documents_become_one_entry_for_all() {
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
