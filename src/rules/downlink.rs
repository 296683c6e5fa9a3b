//! Effect of a hub event at a spoke, after routing has given the event to the spoke.

use bson::raw::{RawBsonRef, RawDocument};

use super::ahead::Standing;
use super::conflicts::{Conflicts, OwnChange};
use super::delta::{FieldChange, Update, field_change};
use super::fields::Fields;
use super::key::Key;
use super::lookup;
use super::reply::{EventRef, Kind};
use super::route::{Action, Content, Reach, Routes, SpokeId};
use super::step::{Meaning, Read, Write, Zones};

/// Rules of a downlink.
#[derive(Clone, Debug)]
pub(crate) struct Downlink<'r> {
    /// Zones held by every spoke.
    pub(crate) routes: &'r Routes,
    /// The destination of the downlink.
    pub(crate) spoke: SpokeId,
    /// Name of the field with a document's zone.
    pub(crate) partition_key: &'r str,
    /// True if the hub's server disambiguates dotted paths.
    pub(crate) precise: bool,
}

/// A hub event routed to the spoke.
#[derive(Clone, Copy)]
pub(crate) struct Incoming<'a> {
    /// The spoke's action, decided by routing.
    pub(crate) action: Action,
    pub(crate) event: EventRef<'a>,
    /// Documents read whole for the event's reply.
    pub(crate) documents: &'a [Option<bson::RawDocumentBuf>],
}

/// Effect of a hub event at the spoke.
#[derive(Clone, Debug)]
pub(crate) struct Decision<'a> {
    pub(crate) write: Write<'a>,
    /// Zones in which the spoke's document may be for the write to apply.
    pub(crate) zones: Zones<'a>,
    /// Fields touched by a hub edit of the spoke's own document.
    pub(crate) hub_edit: Option<Fields>,
}

impl<'r> Downlink<'r> {
    /// Translates a reach into the names of zones.
    pub(crate) fn zones(&self, reach: Reach) -> Zones<'r> {
        match reach {
            Reach::Zone(zone) => Zones::One(self.routes.zone(zone).as_str()),
            Reach::Either(one, other) => {
                Zones::Any(vec![self.routes.zone(one).as_str(), self.routes.zone(other).as_str()])
            }
            Reach::Into(zone) => {
                let zone = self.routes.zone(zone).as_str();
                Zones::Any(self.held().filter(|held| *held != self.own_zone() || *held == zone).collect())
            }
            Reach::Held => Zones::Any(self.held().collect()),
        }
    }

    /// Decides about an event. `pending` holds the fields of the document touched by earlier hub edits in the same
    /// batch. Returns `None` if nothing is to be done.
    pub(crate) fn decide<'a>(
        &self,
        incoming: Incoming<'a>,
        key: &Key,
        standing: impl Fn(&Zones<'_>) -> Standing,
        conflicts: &Conflicts,
        pending: Option<&Fields>,
    ) -> Option<Decision<'a>>
    where
        'r: 'a,
    {
        let own = self.own_zone();
        let (write, zones) = match incoming.action {
            Action::Own if standing(&Zones::One(own)) == Standing::Ahead => return None,
            Action::Own => return self.own_change(incoming, key, conflicts, pending),
            // A hub edit may have replaced the spoke's document before it left, so the document may be in either zone.
            Action::Leave if conflicts.has_hub_edit(key) || pending.is_some() => {
                let new = self.new_zone(incoming.event)?;
                let zones = Zones::Any(new.names().chain([own]).collect());
                return Some(Decision { write: Write::Read(Read::Gone), zones, hub_edit: Some(Fields::All) });
            }
            Action::Leave => (Write::Delete, self.new_zone(incoming.event)?),
            Action::Delete(reach) => (Write::Delete, self.zones(reach)),
            Action::Apply(content, reach) => (self.apply(content, incoming)?, self.zones(reach)),
        };
        let write = match standing(&zones) {
            Standing::Ahead => return None,
            Standing::Behind => write,
            Standing::Unknown if matches!(write, Write::Delete) => Write::Read(Read::Gone),
            Standing::Unknown => Write::Read(Read::Whole),
        };
        let fields = |write: &Write<'_>| match write {
            Write::Update(delta) => delta.fields(),
            _ => Fields::All,
        };
        let hub_edit = self.routes.is_hub_edit(self.spoke, incoming.action).then(|| fields(&write));
        Some(Decision { write, zones, hub_edit })
    }

    /// Effect at the spoke of a document read at the hub.
    pub(crate) fn meaning<'a>(&self, document: Option<&'a RawDocument>) -> Meaning<'a> {
        let held = |document: &RawDocument| {
            let zone = lookup::text(document, self.partition_key);
            zone.is_some_and(|zone| self.held().any(|held| held == zone))
        };
        match document {
            Some(document) if held(document) => Meaning::Write(Write::Replace { document, upsert: true }),
            _ => Meaning::Write(Write::Delete),
        }
    }

    fn held(&self) -> impl Iterator<Item = &'r str> {
        self.routes.held(self.spoke).map(super::names::Zone::as_str)
    }

    fn own_zone(&self) -> &'r str {
        self.held().next().expect("a spoke holds its own zone")
    }

    fn apply<'a>(&self, content: Content, incoming: Incoming<'a>) -> Option<Write<'a>> {
        let event = incoming.event;
        Some(match content {
            Content::Inserted => Write::Insert(event.full_document()?),
            Content::Replaced => Write::Replace { document: event.full_document()?, upsert: true },
            Content::Updated => match Update::of(event, self.precise)? {
                Update::Delta(delta) => Write::Update(delta),
                Update::Whole => Write::Read(Read::Whole),
            },
            Content::Read(number) => match incoming.documents.get(number as usize)?.as_deref() {
                // The stream brings the delete, if there was one: a dropped collection has none.
                None if self.new_zone(event).is_none() => return None,
                document => match self.meaning(document) {
                    Meaning::Write(write) => write,
                    Meaning::Foreign => return None,
                },
            },
        })
    }

    fn own_change<'a>(
        &self,
        incoming: Incoming<'a>,
        key: &Key,
        conflicts: &Conflicts,
        pending: Option<&Fields>,
    ) -> Option<Decision<'a>>
    where
        'r: 'a,
    {
        let event = incoming.event;
        // A hub edit that crossed the move may have reached the spoke as an edit of a watched document.
        if self.hands_over(event) {
            let (write, zones) = (Write::Read(Read::Gone), Zones::One(self.own_zone()));
            return Some(Decision { write, zones, hub_edit: Some(Fields::All) });
        }
        if conflicts.is_empty() && pending.is_none() {
            return None;
        }
        let fields = match Update::of(event, self.precise) {
            Some(Update::Delta(delta)) => delta.fields(),
            Some(Update::Whole) | None => Fields::All,
        };
        let (read, edited) = match conflicts.own_change(key, &fields, event.cluster_time(), pending) {
            OwnChange::Skip => return None,
            OwnChange::Refresh if event.kind() == Kind::Delete => (Read::Gone, Fields::All),
            OwnChange::Refresh => (Read::Whole, Fields::All),
            OwnChange::Reorder => (Read::Order, Fields::order()),
        };
        Some(Decision { write: Write::Read(read), zones: Zones::One(self.own_zone()), hub_edit: Some(edited) })
    }

    /// True if the spoke's own change moved the document to another zone.
    pub(crate) fn hands_over(&self, event: EventRef<'_>) -> bool {
        event.kind() != Kind::Insert
            && self.new_zone(event).is_some_and(|zone| zone != Zones::Value(RawBsonRef::String(self.own_zone())))
    }

    /// The zone to which the spoke's own change moved the document: the current zone of the spoke's document.
    fn new_zone<'a>(&self, event: EventRef<'a>) -> Option<Zones<'a>> {
        let value = match event.update_description().map(|update| field_change(update, self.partition_key)) {
            Some(FieldChange::Set(value)) => value,
            Some(_) => return None,
            None => event.zoned()?.get(self.partition_key).ok()?.unwrap_or(RawBsonRef::Null),
        };
        Some(Zones::Value(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::names::Zone;
    use crate::rules::reply::Reply;
    use crate::rules::reply::tests::reply;
    use bson::{Timestamp, doc, rawdoc};

    fn routes() -> Routes {
        let (dfw, watch) = (Zone::new("DFW"), [Zone::new("HOU")]);
        Routes::new([(&dfw, watch.as_slice())].into_iter())
    }

    fn reach(routes: &Routes, zone: &str) -> Reach {
        match routes.place(zone) {
            crate::rules::route::Place::Zone(id) => Reach::Zone(id),
            crate::rules::route::Place::Elsewhere => panic!("{zone} is not held"),
        }
    }

    fn decide<'a>(routes: &'a Routes, action: Action, reply: &'a Reply, conflicts: &Conflicts) -> Option<Decision<'a>> {
        let downlink = Downlink { routes, spoke: 0, partition_key: "_pk", precise: false };
        let event = reply.event(0);
        let incoming = Incoming { action, event, documents: &[] };
        let key = event.key().expect("valid");
        downlink.decide(incoming, &key, |_| Standing::Behind, conflicts, None)
    }

    fn update(set: bson::Document) -> Reply {
        reply(&[doc! {
            "operationType": "update", "documentKey": { "_id": 1 },
            "updateDescription": { "updatedFields": set, "removedFields": [] },
        }])
    }

    #[test]
    fn only_hub_edits_of_own_documents_are_remembered() {
        let (routes, reply, none) = (routes(), update(doc! { "a": 1 }), Conflicts::new(9));
        let watched = decide(&routes, Action::Apply(Content::Updated, reach(&routes, "HOU")), &reply, &none);
        assert_eq!(watched.expect("a write").hub_edit, None);
        let own = decide(&routes, Action::Apply(Content::Updated, reach(&routes, "DFW")), &reply, &none);
        assert_eq!(own.expect("a write").hub_edit, Some(Fields::Some { names: ["a".into()].into(), may_add: true }));
        let delete = decide(&routes, Action::Delete(Reach::Held), &reply, &none);
        assert_eq!(delete.expect("a write").hub_edit, Some(Fields::All));
    }

    #[test]
    fn an_own_change_that_meets_a_hub_edit_is_read_again() {
        let (routes, reply) = (routes(), update(doc! { "a": 1 }));
        let mut conflicts = Conflicts::new(9);
        assert!(decide(&routes, Action::Own, &reply, &conflicts).is_none());
        let other = Fields::Some { names: ["b".into()].into(), may_add: true };
        conflicts.record(reply.event(0).key().expect("valid"), other, Timestamp { time: 1, increment: 1 });
        let reorder = decide(&routes, Action::Own, &reply, &conflicts).expect("a step");
        assert!(matches!(reorder.write, Write::Read(Read::Order)));
        conflicts.record(reply.event(0).key().expect("valid"), Fields::All, Timestamp { time: 1, increment: 1 });
        let refresh = decide(&routes, Action::Own, &reply, &conflicts).expect("a step");
        assert!(matches!(refresh.write, Write::Read(Read::Whole)));
    }

    #[test]
    fn a_document_that_the_spoke_hands_over_to_a_watched_zone_is_read_again() {
        let (routes, none) = (routes(), Conflicts::new(9));
        let moved = update(doc! { "_pk": "HOU" });
        let refresh = decide(&routes, Action::Own, &moved, &none).expect("a step");
        assert!(matches!(refresh.write, Write::Read(Read::Gone)));
        assert!(decide(&routes, Action::Own, &update(doc! { "_pk": "DFW" }), &none).is_none());
    }

    #[test]
    fn a_document_moved_away_is_deleted_only_in_its_new_zone() {
        let (routes, reply, none) = (routes(), update(doc! { "_pk": "BOS" }), Conflicts::new(9));
        let leave = decide(&routes, Action::Leave, &reply, &none).expect("a write");
        assert!(matches!(leave.write, Write::Delete));
        assert_eq!(leave.zones, Zones::Value(RawBsonRef::String("BOS")));
        assert_eq!(leave.hub_edit, None);
        let mut edited = Conflicts::new(9);
        edited.record(reply.event(0).key().expect("valid"), Fields::All, Timestamp { time: 1, increment: 1 });
        let leave = decide(&routes, Action::Leave, &reply, &edited).expect("a write");
        assert!(matches!(leave.write, Write::Read(Read::Gone)));
        assert_eq!(leave.zones, Zones::Any(vec!["BOS", "DFW"]), "the hub edit may have replaced the document");
    }

    #[test]
    fn a_document_of_a_zone_not_held_is_deleted() {
        let routes = routes();
        let downlink = Downlink { routes: &routes, spoke: 0, partition_key: "_pk", precise: false };
        let meaning = |document: &bson::RawDocumentBuf| match downlink.meaning(Some(document)) {
            Meaning::Write(Write::Replace { upsert: true, .. }) => "replace",
            Meaning::Write(Write::Delete) => "delete",
            _ => "other",
        };
        assert_eq!(meaning(&rawdoc! { "_pk": "HOU" }), "replace");
        assert_eq!(meaning(&rawdoc! { "_pk": "BOS" }), "delete");
        assert_eq!(meaning(&rawdoc! {}), "delete");
    }

    #[test]
    fn an_event_from_an_unknown_zone_touches_own_documents_only_where_they_may_be_meant() {
        let routes = routes();
        let downlink = Downlink { routes: &routes, spoke: 0, partition_key: "_pk", precise: false };
        let into = |zone: &str| match routes.place(zone) {
            crate::rules::route::Place::Zone(id) => downlink.zones(Reach::Into(id)),
            crate::rules::route::Place::Elsewhere => panic!("{zone} is not held"),
        };
        assert_eq!(into("DFW"), Zones::Any(vec!["DFW", "HOU"]));
        assert_eq!(into("HOU"), Zones::Any(vec!["HOU"]), "an own document of the same _id is another document");
        assert_eq!(downlink.zones(Reach::Held), Zones::Any(vec!["DFW", "HOU"]));
    }
}
