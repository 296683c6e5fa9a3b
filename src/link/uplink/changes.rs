//! Converts replies of a spoke's change stream into work for the hub.

use std::collections::HashMap;

use bson::Timestamp;
use bson::raw::RawDocumentBuf;

use crate::link::apply::mark::Mark;
use crate::link::apply::work::{Origin, Unreadable, Work};
use crate::rules::ahead::Ahead;
use crate::rules::reply::{EventRef, Kind, Malformed, Reply};
use crate::rules::step::{Step, Write, Zones};
use crate::rules::uplink::{Cuts, Decision, Departures, Uplink};

/// One or more replies, applied together. Event numbers continue from reply to reply.
pub(super) struct Changes(pub(super) Vec<Reply>);

impl Changes {
    pub(super) fn events(&self) -> impl Iterator<Item = EventRef<'_>> {
        self.0.iter().flat_map(Reply::events)
    }

    /// The work for the hub.
    pub(super) fn work<'a>(&'a self, rules: &'a Uplink, ahead: &Ahead) -> Result<Work<'a>, Malformed> {
        let zone = rules.zone.as_str();
        let (mut steps, mut unreadable) = (Vec::new(), Vec::new());
        let mut foreign = 0;
        let mut last = Timestamp { time: 0, increment: 0 };
        let (mut departures, mut cuts) = (Departures::default(), Cuts::default());
        for (number, event) in self.events().enumerate() {
            let before = std::mem::replace(&mut last, event.cluster_time());
            if matches!(event.kind(), Kind::CollectionLost) {
                tracing::warn!(zone, cluster_time = %last, "a synced collection was dropped or renamed at the spoke; the hub keeps its documents");
            }
            if matches!(event.kind(), Kind::CollectionLost | Kind::Other) {
                continue;
            }
            // Another zone's document stays at the spoke in any case.
            if !event.is_readable() {
                match rules.claims(event) {
                    true => unreadable.extend(Unreadable::of(number, event)),
                    false => foreign += 1,
                }
                continue;
            }
            let key = event.key()?;
            cuts.before(rules, number, event, &key, before);
            if departures.hold_back(rules, event, &key) {
                foreign += 1;
                continue;
            }
            let standing = ahead.standing(&key, [zone].into_iter(), last);
            match rules.decide(event, standing)? {
                Decision::Write(write) => {
                    // Within one transaction at the spoke no batch can end, and a read would show a document inserted
                    // after the delete.
                    if matches!(write, Write::Delete) && cuts.delete(&key) {
                        steps.retain(|step: &Step<'_>| step.key != key || !matches!(step.write, Write::Read(_)));
                    }
                    let (id, zones) = (event.id()?, Zones::One(zone));
                    let step = Step { event: number, key, id, zones, write, hub_edit: None };
                    cuts.add(&step);
                    steps.push(step);
                }
                Decision::Foreign => foreign += 1,
                Decision::Nothing => {}
            }
        }
        let end = self.0.last().expect("there is at least one reply").end().clone();
        let end = Mark::Streamed { end, change: self.events().last().and_then(|event| event.time_of_change()) };
        let changes = self.events().count();
        let (end, read_at) = (Some(end), HashMap::new());
        Ok(Work {
            steps,
            cuts: cuts.into_cuts(),
            end,
            last,
            read_at,
            changes,
            foreign,
            unreadable,
            ..Work::empty(self)
        })
    }

    /// The number of the event's reply, and the event's number within the reply.
    fn find(&self, event: usize) -> (usize, usize) {
        let mut index = event;
        for (number, reply) in self.0.iter().enumerate() {
            if index < reply.len() {
                return (number, index);
            }
            index -= reply.len();
        }
        unreachable!("steps are made of these events")
    }
}

impl Origin for Changes {
    fn before(&self, event: usize) -> Option<Mark> {
        let (number, index) = self.find(event);
        let in_reply = self.0[number].before(index);
        let position = in_reply.or_else(|| Some(self.0[number.checked_sub(1)?].end().clone()));
        position.map(Mark::quiet)
    }

    fn is_live(&self) -> bool {
        true
    }

    fn event(&self, event: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        let (number, index) = self.find(event);
        let event = self.0[number].event(index);
        (event.raw(), Some(event.cluster_time()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::names::Zone;
    use crate::rules::reply::tests::reply;
    use bson::{Document, doc};

    fn rules() -> Uplink {
        Uplink { zone: Zone::new("DFW"), partition_key: "_pk".to_owned(), precise: false }
    }

    fn insert(id: i32, zone: &str) -> Document {
        doc! { "operationType": "insert", "documentKey": { "_id": id }, "fullDocument": { "_id": id, "_pk": zone } }
    }

    fn delete(id: i32) -> Document {
        doc! { "operationType": "delete", "documentKey": { "_id": id } }
    }

    fn nothing_ahead() -> Ahead {
        Ahead::new(HashMap::new(), 10)
    }

    #[test]
    fn the_events_of_several_replies_are_numbered_through() {
        let changes = Changes(vec![reply(&[insert(1, "DFW"), delete(2)]), reply(&[delete(3)])]);
        let rules = rules();
        let work = changes.work(&rules, &nothing_ahead()).expect("valid");
        assert_eq!(work.steps.iter().map(|step| step.event).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((work.changes, work.foreign), (3, 0));
        assert_eq!(changes.event(2).0.get_document("documentKey").expect("valid").get_i32("_id").ok(), Some(3));
    }

    #[test]
    fn other_zones_documents_are_counted_and_have_no_step() {
        let changes = Changes(vec![reply(&[insert(1, "HOU"), insert(2, "DFW")])]);
        let rules = rules();
        let work = changes.work(&rules, &nothing_ahead()).expect("valid");
        assert_eq!((work.steps.len(), work.changes, work.foreign), (1, 2, 1));
        assert!(matches!(work.steps[0].write, Write::Insert(_)));
    }

    #[test]
    fn a_dropped_collection_moves_the_place_alone() {
        let changes = Changes(vec![reply(&[doc! { "operationType": "drop" }])]);
        let rules = rules();
        let work = changes.work(&rules, &nothing_ahead()).expect("valid");
        assert!(work.steps.is_empty() && matches!(work.end, Some(Mark::Streamed { .. })));
    }

    #[test]
    fn the_mark_before_an_event_is_the_end_of_the_one_before() {
        let changes = Changes(vec![reply(&[delete(1), delete(2)]), reply(&[delete(3)])]);
        assert!(changes.before(0).is_none(), "the mark before the work");
        let position = |mark| match mark {
            Some(Mark::Streamed { end, .. }) => end,
            _ => panic!("a place in the stream"),
        };
        assert_eq!(Some(position(changes.before(1))), changes.0[0].event(0).position());
        assert_eq!(position(changes.before(2)), *changes.0[0].end());
    }
}
