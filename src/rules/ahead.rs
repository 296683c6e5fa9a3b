//! Which documents a destination already has in a newer version than the stream's position says.
//!
//! A copy, or a document read whole at its source, is newer than the event that asked for it. The events between are then
//! in the document already; to apply them once more would take it back in time. Reads have an exact cluster time
//! (`readConcern: snapshot`), so for a document read by itself this is a comparison. For what a whole copy brought, and
//! after a restart, only an upper bound by zone is known (it is saved with the checkpoint), and such a document is read
//! again instead.

use std::collections::HashMap;

use bson::Timestamp;

use super::key::Key;
use super::names::Zone;

/// How a document at the destination stands to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The destination's document is older: the event applies.
    Behind,
    /// The destination's document has the event in it.
    Ahead,
    /// It may or may not: the document must be read again.
    Unknown,
}

/// What a link's destination has ahead of the link's position.
#[derive(Debug)]
pub(crate) struct Ahead {
    documents: HashMap<Key, Timestamp>,
    zones: HashMap<Zone, Timestamp>,
    /// By zone, the latest of `documents`: what must be known of them after a restart.
    reads: HashMap<Zone, Timestamp>,
    limit: usize,
}

impl Ahead {
    /// Nothing is known of single documents; whole zones may be ahead until these times. At most `limit` documents are
    /// remembered by themselves; with more of them, only their zones are.
    pub(crate) fn new(zones: HashMap<Zone, Timestamp>, limit: usize) -> Self {
        Self { documents: HashMap::new(), zones, reads: HashMap::new(), limit }
    }

    /// How the document stands to an event of this time, if it is or was in one of these zones.
    pub(crate) fn standing<'z>(&self, key: &Key, mut zones: impl Iterator<Item = &'z str>, at: Timestamp) -> Standing {
        if let Some(&until) = self.documents.get(key) {
            return if at <= until { Standing::Ahead } else { Standing::Behind };
        }
        if self.zones.is_empty() {
            return Standing::Behind;
        }
        let unknown = zones.any(|zone| self.zones.get(zone).is_some_and(|&until| at <= until));
        if unknown { Standing::Unknown } else { Standing::Behind }
    }

    /// Of when documents are read for a batch whose last change was made at `last`: as that left them, so that none gets
    /// ahead; but not before any time until which one may be ahead already, so that none goes back.
    pub(crate) fn read_from(&self, last: Timestamp) -> Timestamp {
        self.zones.values().fold(last, |latest, until| latest.max(*until))
    }

    /// The destination now has this document as it was at its source at `until`.
    pub(crate) fn has_read<'z>(&mut self, key: Key, zones: impl Iterator<Item = &'z str>, until: Timestamp) {
        for zone in zones {
            raise(&mut self.reads, zone, until);
        }
        self.documents.insert(key, until);
        if self.documents.len() > self.limit {
            self.forget_documents();
        }
    }

    /// The destination now has documents of this zone as they were at some time up to `until`.
    pub(crate) fn has_copied(&mut self, zone: &Zone, until: Timestamp) {
        raise(&mut self.zones, zone.as_str(), until);
    }

    /// The link stands at this time now: what was ahead until before it no longer is.
    pub(crate) fn advance(&mut self, position: Timestamp) {
        let still = |_: &Zone, until: &mut Timestamp| *until >= position;
        self.zones.retain(still);
        self.reads.retain(still);
        if !self.documents.is_empty() {
            self.documents.retain(|_, until| *until >= position);
        }
    }

    /// What must be saved with a checkpoint, when also documents of these zones are ahead until these times: by zone, the
    /// time until which something of it may be ahead.
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
    fn a_document_that_was_read_has_the_events_up_to_the_read() {
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
    fn what_the_position_has_passed_is_forgotten() {
        let mut ahead = Ahead::new(HashMap::from([(Zone::new("DFW"), at(4))]), 10);
        ahead.has_read(key(1), ["DFW"].into_iter(), at(5));
        ahead.advance(at(5));
        assert_eq!(standing(&ahead, 1, 5), Standing::Ahead, "an event of the same time may still come");
        ahead.advance(at(6));
        assert!(ahead.documents.is_empty() && ahead.zones.is_empty() && ahead.reads.is_empty());
    }

    #[test]
    fn too_many_documents_become_a_bound_on_their_zone() {
        let mut ahead = Ahead::new(HashMap::new(), 2);
        for id in 0..3 {
            ahead.has_read(key(id), ["DFW"].into_iter(), at(5));
        }
        assert!(ahead.documents.is_empty());
        assert_eq!(standing(&ahead, 9, 5), Standing::Unknown);
    }
}
