//! Documents of which the destination holds a newer version than the stream's position suggests.
//!
//! A copied document, or a document read whole at the source, is newer than the event that caused the read. The
//! document already contains the events in between. Applying them again would take the document back in time. Snapshot
//! reads (`readConcern: snapshot`) have an exact cluster time, so for an individually read document a comparison
//! decides. For copied documents, and after a restart, only an upper bound per zone is known. The bound is saved with
//! the checkpoint, and a document within the bound is read again.

use std::collections::HashMap;

use bson::Timestamp;

use super::key::Key;
use super::names::Zone;

/// State of a destination's document relative to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The document is older than the event. The event applies.
    Behind,
    /// The document already contains the event.
    Ahead,
    /// The document may or may not contain the event, and must be read again.
    Unknown,
}

/// Documents and zones at a link's destination that are ahead of the link's position.
#[derive(Debug)]
pub(crate) struct Ahead {
    documents: HashMap<Key, Timestamp>,
    zones: HashMap<Zone, Timestamp>,
    /// Latest time in `documents` by zone: the bounds to save for a restart.
    reads: HashMap<Zone, Timestamp>,
    limit: usize,
}

impl Ahead {
    /// Starts with the upper bounds of whole zones, and no individual document. Beyond `limit` individual documents,
    /// only bounds for their zones are kept.
    pub(crate) fn new(zones: HashMap<Zone, Timestamp>, limit: usize) -> Self {
        Self { documents: HashMap::new(), zones, reads: HashMap::new(), limit }
    }

    /// Compares the document with an event of cluster time `at`. The document is, or was, in one of `zones`.
    pub(crate) fn standing<'z>(&self, key: &Key, mut zones: impl Iterator<Item = &'z str>, at: Timestamp) -> Standing {
        // A page of a copy may have brought a newer version since the document was read by itself.
        if self.documents.get(key).is_some_and(|&until| at <= until) {
            return Standing::Ahead;
        }
        if self.zones.is_empty() {
            return Standing::Behind;
        }
        let unknown = zones.any(|zone| self.zones.get(zone).is_some_and(|&until| at <= until));
        if unknown { Standing::Unknown } else { Standing::Behind }
    }

    /// Cluster time at which to read a batch's documents: the time of the batch's last change (`last`), to keep
    /// documents from getting ahead of the batch, but never below a recorded bound, to keep documents from going back
    /// in time.
    pub(crate) fn read_from(&self, last: Timestamp) -> Timestamp {
        self.zones.values().fold(last, |latest, until| latest.max(*until))
    }

    /// Records a read: the destination now holds the document as of source time `until`.
    pub(crate) fn has_read<'z>(&mut self, key: Key, zones: impl Iterator<Item = &'z str>, until: Timestamp) {
        for zone in zones {
            raise(&mut self.reads, zone, until);
        }
        self.documents.insert(key, until);
        if self.documents.len() > self.limit {
            self.forget_documents();
        }
    }

    /// Records a copy: the destination now holds documents of this zone as of source times up to `until`.
    pub(crate) fn has_copied(&mut self, zone: &Zone, until: Timestamp) {
        raise(&mut self.zones, zone.as_str(), until);
    }

    /// Moves the link to `position`. Documents and zones with an earlier time are no longer ahead.
    pub(crate) fn advance(&mut self, position: Timestamp) {
        let still = |_: &Zone, until: &mut Timestamp| *until >= position;
        self.zones.retain(still);
        self.reads.retain(still);
        if !self.documents.is_empty() {
            self.documents.retain(|_, until| *until >= position);
        }
    }

    /// Bounds to save with a checkpoint: by zone, the time up to which a document may be ahead. `reads` adds the
    /// documents read for the batch of the checkpoint.
    pub(crate) fn bounds<'z>(&self, reads: impl Iterator<Item = (&'z str, Timestamp)>) -> HashMap<Zone, Timestamp> {
        let mut bounds = self.zones.clone();
        for (zone, &until) in &self.reads {
            raise(&mut bounds, zone.as_str(), until);
        }
        for (zone, until) in reads {
            raise(&mut bounds, zone, until);
        }
        bounds
    }

    fn forget_documents(&mut self) {
        for (zone, until) in self.reads.drain() {
            raise(&mut self.zones, zone.as_str(), until);
        }
        self.documents.clear();
    }
}

fn raise(bounds: &mut HashMap<Zone, Timestamp>, zone: &str, until: Timestamp) {
    match bounds.get_mut(zone) {
        Some(bound) => *bound = until.max(*bound),
        None => {
            bounds.insert(Zone::new(zone), until);
        }
    }
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

    fn standing(ahead: &Ahead, id: i32, time: u32) -> Standing {
        ahead.standing(&key(id), ["DFW"].into_iter(), at(time))
    }

    #[test]
    fn a_read_document_contains_the_events_up_to_the_read() {
        let mut ahead = Ahead::new(HashMap::new(), 10);
        ahead.has_read(key(1), ["DFW"].into_iter(), at(5));
        assert_eq!(standing(&ahead, 1, 5), Standing::Ahead);
        assert_eq!(standing(&ahead, 1, 6), Standing::Behind);
        assert_eq!(standing(&ahead, 2, 5), Standing::Behind);
    }

    #[test]
    fn after_a_restart_the_documents_of_the_zone_are_read_again_up_to_the_bound() {
        let mut before = Ahead::new(HashMap::new(), 10);
        before.has_read(key(1), ["DFW"].into_iter(), at(5));
        let mut after = Ahead::new(before.bounds([("HOU", at(9))].into_iter()), 10);
        assert_eq!(standing(&after, 2, 5), Standing::Unknown);
        assert_eq!(standing(&after, 2, 6), Standing::Behind);
        after.has_read(key(2), ["DFW"].into_iter(), at(7));
        assert_eq!(standing(&after, 2, 5), Standing::Ahead);
        assert_eq!(standing(&after, 2, 8), Standing::Behind);
        assert_eq!(after.standing(&key(3), ["HOU"].into_iter(), at(9)), Standing::Unknown);
    }

    #[test]
    fn a_document_read_by_itself_may_be_newer_since_a_copy() {
        let mut ahead = Ahead::new(HashMap::new(), 10);
        ahead.has_read(key(1), ["DFW"].into_iter(), at(5));
        ahead.has_copied(&Zone::new("DFW"), at(8));
        assert_eq!(standing(&ahead, 1, 5), Standing::Ahead);
        assert_eq!(standing(&ahead, 1, 8), Standing::Unknown);
        assert_eq!(standing(&ahead, 1, 9), Standing::Behind);
    }

    #[test]
    fn bounds_behind_the_position_are_forgotten() {
        let mut ahead = Ahead::new(HashMap::from([(Zone::new("DFW"), at(4))]), 10);
        ahead.has_read(key(1), ["DFW"].into_iter(), at(5));
        ahead.advance(at(5));
        assert_eq!(standing(&ahead, 1, 5), Standing::Ahead, "an event of the same time may still come");
        ahead.advance(at(6));
        assert!(ahead.documents.is_empty() && ahead.zones.is_empty() && ahead.reads.is_empty());
    }

    #[test]
    fn documents_beyond_the_limit_become_a_bound_on_their_zone() {
        let mut ahead = Ahead::new(HashMap::new(), 2);
        for id in 0..3 {
            ahead.has_read(key(id), ["DFW"].into_iter(), at(5));
        }
        assert!(ahead.documents.is_empty());
        assert_eq!(standing(&ahead, 9, 5), Standing::Unknown);
    }
}
