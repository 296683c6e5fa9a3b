//! The facts of a hub event for routing: the document's place before and after, and the form of the content.
//!
//! Some events lack facts: an update without pre-image names no zone, and an update that moves a document does not
//! bring the whole document. The facts then name the reads needed at the hub, and take the results.

use bson::raw::{RawBsonRef, RawDocument};

use super::delta::{FieldChange, Update, field_change};
use super::lookup;
use super::names::Zone;
use super::reply::{EventRef, Kind, Malformed};
use super::route::{Action, Before, Change, Content, Place, Routes, SpokeId};

/// The rules for the events of the hub's change stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HubEvents<'r> {
    pub(crate) routes: &'r Routes,
    /// The field that names a document's zone.
    pub(crate) partition_key: &'r str,
    /// The hub's change events disambiguate paths with dots (`disambiguatedPaths`, MongoDB 6.1 and later).
    pub(crate) precise: bool,
}

/// The document's place after a change, as far as the event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    At(Place),
    AsBefore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    before: Before,
    after: After,
    deleted: bool,
    origin: Option<SpokeId>,
    content: Content,
    /// The holders of the document's zone need the whole document, but the event lacks the document.
    pub(crate) must_read: bool,
}

impl HubEvents<'_> {
    /// The facts that the event itself states. `origin`: the zone of the uplink (or repair) that made the change.
    /// `known`: the document's place after an earlier event of the same reply. `None` if the event changes no document.
    /// Fails if the event lacks a mandatory part.
    pub(crate) fn facts(
        &self,
        event: EventRef<'_>,
        origin: Option<&Zone>,
        known: Option<Place>,
    ) -> Result<Option<Facts>, Malformed> {
        if matches!(event.kind(), Kind::Other | Kind::CollectionLost) {
            return Ok(None);
        }
        // A spoke's uplink changes only documents of the spoke's zone. A hub application's change is in the zone of its
        // pre-image, if the collection keeps pre-images.
        let before = match (event.kind(), origin, event.before(), known) {
            (Kind::Insert, ..) => Before::At(Place::Elsewhere),
            (_, Some(zone), ..) => Before::At(self.routes.place(zone.as_str())),
            (_, None, Some(document), _) => Before::At(self.place_of(document)),
            (_, None, None, Some(place)) => Before::At(place),
            (_, None, None, None) => Before::Unknown,
        };
        let mut facts = Facts {
            before,
            after: After::AsBefore,
            deleted: event.kind() == Kind::Delete,
            origin: origin.map(Zone::as_str).and_then(|zone| self.routes.owner(zone)),
            content: Content::Updated,
            must_read: false,
        };
        // The kind of the event gives the document's place after the change, and the form of the content.
        match event.kind() {
            Kind::Delete => facts.after = After::At(Place::Elsewhere),
            Kind::Insert | Kind::Replace => {
                facts.after = After::At(event.zoned().map_or(Place::Elsewhere, |document| self.place_of(document)));
                // A bare event lacks the document: the zone has a new holder since the stream was opened.
                facts.must_read = event.is_bare();
                facts.content = if event.kind() == Kind::Insert { Content::Inserted } else { Content::Replaced };
            }
            _ => {
                let description = event.update_description();
                let description = description.ok_or_else(|| Malformed::new("an update says nothing".to_owned()))?;
                facts.after = match field_change(description, self.partition_key) {
                    FieldChange::None => After::AsBefore,
                    FieldChange::Set(value) => After::At(self.place_by(Some(value))),
                    FieldChange::Unset => After::At(Place::Elsewhere),
                };
                // New holders lack the document, so a move needs the whole document.
                let moves = matches!(facts.after, After::At(after) if facts.before != Before::At(after));
                facts.must_read = moves || matches!(Update::of(event, self.precise), Some(Update::Whole));
            }
        }
        Ok(Some(facts))
    }

    /// The facts of an event with an [unknown](Facts::needs_zone) zone, after a look-up of the document. `None` if the
    /// document was deleted meanwhile: the delete event reaches every holder.
    pub(crate) fn with_zone(&self, facts: Facts, document: Option<&RawDocument>) -> Option<Facts> {
        Some(Facts { before: Before::LookedUp(self.place_of(document?)), ..facts })
    }

    fn place_of(&self, document: &RawDocument) -> Place {
        self.place_by(lookup::value(document, self.partition_key))
    }

    fn place_by(&self, value: Option<RawBsonRef<'_>>) -> Place {
        match value {
            Some(RawBsonRef::String(zone)) => self.routes.place(zone),
            _ => Place::Elsewhere,
        }
    }
}

impl Facts {
    /// True if the document's zone is unknown, and must be looked up at the hub.
    pub(crate) fn needs_zone(&self) -> bool {
        self.before == Before::Unknown && self.after == After::AsBefore
    }

    /// The document's place after the event, if that is certain.
    pub(crate) fn place_after(&self) -> Option<Place> {
        match (self.after, self.before) {
            (After::At(place), _) | (After::AsBefore, Before::At(place)) => Some(place),
            (After::AsBefore, Before::LookedUp(_) | Before::Unknown) => None,
        }
    }

    /// Records the read of the whole document, under `number` among the documents read with the reply.
    pub(crate) fn was_read(&mut self, number: u32) {
        self.content = Content::Read(number);
    }

    /// The change as routing sees it.
    pub(crate) fn change(&self) -> Change {
        let after = match (self.after, self.before) {
            (After::At(place), _) | (After::AsBefore, Before::At(place) | Before::LookedUp(place)) => place,
            (After::AsBefore, Before::Unknown) => Place::Elsewhere,
        };
        let Self { before, deleted, origin, content, .. } = *self;
        Change { before, after, deleted, origin, content }
    }

    /// True if a spoke (of `only`, if given) will apply the document.
    pub(crate) fn has_takers(&self, routes: &Routes, only: Option<SpokeId>) -> bool {
        let mut has_takers = false;
        routes.route(&self.change(), |spoke, action| {
            has_takers |= matches!(action, Action::Apply(..)) && only.is_none_or(|only| only == spoke);
        });
        has_takers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::reply::BARE;
    use crate::rules::reply::tests::reply;
    use bson::{Document, doc, rawdoc};

    const DFW: SpokeId = 0;
    const HOU: SpokeId = 1;

    /// DFW and HOU watch each other; BOS is nobody's.
    fn routes() -> Routes {
        let (dfw, hou) = ([Zone::new("HOU")], [Zone::new("DFW")]);
        let spokes = [(Zone::new("DFW"), dfw.as_slice()), (Zone::new("HOU"), hou.as_slice())];
        Routes::new(spokes.iter().map(|(zone, watch)| (zone, *watch)))
    }

    fn rules(routes: &Routes) -> HubEvents<'_> {
        HubEvents { routes, partition_key: "_pk", precise: false }
    }

    fn facts(routes: &Routes, event: Document, origin: Option<&str>) -> Facts {
        let mut whole = doc! { "documentKey": { "_id": 1 } };
        whole.extend(event);
        let origin = origin.map(Zone::new);
        let reply = reply(&[whole]);
        rules(routes).facts(reply.event(0), origin.as_ref(), None).expect("valid").expect("a change of a document")
    }

    /// The places before and after by the names of their zones, and whether the document must be read.
    fn places(event: Document, origin: Option<&str>) -> (String, String, bool) {
        let routes = routes();
        let facts = facts(&routes, event, origin);
        let name = |place| match place {
            Place::Zone(id) => routes.zone(id).to_string(),
            Place::Elsewhere => "elsewhere".to_owned(),
        };
        let before = match facts.before {
            Before::At(place) => name(place),
            Before::LookedUp(place) => format!("perhaps {}", name(place)),
            Before::Unknown => "unknown".to_owned(),
        };
        let after = if facts.needs_zone() { "unknown".to_owned() } else { name(facts.change().after) };
        (before, after, facts.must_read)
    }

    fn put(operation: &str, zone: &str) -> Document {
        doc! { "operationType": operation, "fullDocument": { "_id": 1, "_pk": zone } }
    }

    fn update(set: Document, unset: &[&str]) -> Document {
        doc! { "operationType": "update", "updateDescription": { "updatedFields": set, "removedFields": unset } }
    }

    fn with_pre_image(mut event: Document, zone: &str) -> Document {
        event.insert("fullDocumentBeforeChange", doc! { "_pk": zone });
        event
    }

    fn delete() -> Document {
        doc! { "operationType": "delete" }
    }

    #[test]
    fn every_row_of_a_hub_applications_changes() {
        let table = [
            (put("insert", "DFW"), ("elsewhere", "DFW", false)),
            (put("insert", "NOWHERE"), ("elsewhere", "elsewhere", false)),
            (put("replace", "DFW"), ("unknown", "DFW", false)),
            (with_pre_image(put("replace", "DFW"), "HOU"), ("HOU", "DFW", false)),
            (update(doc! { "a": 1 }, &[]), ("unknown", "unknown", false)),
            (with_pre_image(update(doc! { "a": 1 }, &[]), "HOU"), ("HOU", "HOU", false)),
            (update(doc! { "_pk": "HOU" }, &[]), ("unknown", "HOU", true)),
            (with_pre_image(update(doc! { "_pk": "HOU" }, &[]), "DFW"), ("DFW", "HOU", true)),
            (update(doc! {}, &["_pk"]), ("unknown", "elsewhere", true)),
            (delete(), ("unknown", "elsewhere", false)),
            (with_pre_image(delete(), "DFW"), ("DFW", "elsewhere", false)),
        ];
        for (event, (before, after, must_read)) in table {
            assert_eq!(places(event.clone(), None), (before.to_owned(), after.to_owned(), must_read), "{event}");
        }
    }

    #[test]
    fn every_row_of_an_uplinks_changes() {
        let table = [
            (put("insert", "DFW"), ("elsewhere", "DFW", false)),
            (put("replace", "DFW"), ("DFW", "DFW", false)),
            (put("replace", "HOU"), ("DFW", "HOU", false)),
            (update(doc! { "a": 1 }, &[]), ("DFW", "DFW", false)),
            (update(doc! { "_pk": "HOU" }, &[]), ("DFW", "HOU", true)),
            (update(doc! { "_pk": "NOWHERE" }, &[]), ("DFW", "elsewhere", true)),
            (delete(), ("DFW", "elsewhere", false)),
        ];
        for (event, (before, after, must_read)) in table {
            let found = places(event.clone(), Some("DFW"));
            assert_eq!(found, (before.to_owned(), after.to_owned(), must_read), "{event}");
        }
    }

    #[test]
    fn a_change_of_no_document_has_no_facts() {
        let routes = routes();
        for event in [doc! { "operationType": "drop" }, doc! { "operationType": "reshardCollection" }] {
            let reply = reply(&[event]);
            assert!(rules(&routes).facts(reply.event(0), None, None).expect("valid").is_none());
        }
    }

    #[test]
    fn an_update_whose_paths_are_ambiguous_is_read_whole() {
        assert!(places(update(doc! { "a.b": 1 }, &[]), Some("DFW")).2);
        let (routes, update) = (routes(), update(doc! { "a.b": 1 }, &[]));
        let mut whole = doc! { "documentKey": { "_id": 1 } };
        whole.extend(update);
        let reply = reply(&[whole]);
        let precise = HubEvents { precise: true, ..rules(&routes) };
        let facts = precise.facts(reply.event(0), None, None).expect("valid").expect("a change of a document");
        assert!(!facts.must_read);
    }

    #[test]
    fn a_bare_event_names_its_zone_and_is_read_if_somebody_takes_it() {
        let routes = routes();
        let event = doc! { "operationType": "insert", BARE: { "_pk": "DFW" } };
        let facts = facts(&routes, event, Some("DFW"));
        assert!(facts.must_read && facts.has_takers(&routes, None));
        assert!(facts.has_takers(&routes, Some(HOU)) && !facts.has_takers(&routes, Some(DFW)));
    }

    #[test]
    fn a_zone_that_was_looked_up_stands_before_and_after() {
        let routes = routes();
        let unknown = facts(&routes, update(doc! { "a": 1 }, &[]), None);
        assert!(unknown.needs_zone());
        let known = rules(&routes).with_zone(unknown, Some(&rawdoc! { "_pk": "HOU" })).expect("it is there");
        assert!(!known.needs_zone());
        assert_eq!((known.before, known.change().after), (Before::LookedUp(routes.place("HOU")), routes.place("HOU")));
        let elsewhere = rules(&routes).with_zone(unknown, Some(&rawdoc! {})).expect("it is there");
        assert_eq!(elsewhere.change().after, Place::Elsewhere);
    }

    #[test]
    fn a_document_deleted_since_its_update_needs_no_routing() {
        let routes = routes();
        let unknown = facts(&routes, update(doc! { "a": 1 }, &[]), None);
        assert_eq!(rules(&routes).with_zone(unknown, None), None);
    }

    #[test]
    fn an_uplinks_change_names_its_spoke_as_origin_and_a_hub_applications_change_names_none() {
        let routes = routes();
        assert_eq!(facts(&routes, put("insert", "HOU"), Some("HOU")).change().origin, Some(HOU));
        assert_eq!(facts(&routes, put("insert", "HOU"), None).change().origin, None);
        assert_eq!(facts(&routes, put("insert", "BOS"), Some("BOS")).change().origin, None, "no spoke owns BOS");
    }

    #[test]
    fn content_says_how_the_document_travels() {
        let routes = routes();
        assert_eq!(facts(&routes, put("insert", "DFW"), None).change().content, Content::Inserted);
        assert_eq!(facts(&routes, put("replace", "DFW"), None).change().content, Content::Replaced);
        let mut read = facts(&routes, update(doc! { "a": 1 }, &[]), None);
        assert_eq!(read.change().content, Content::Updated);
        read.was_read(3);
        assert_eq!(read.change().content, Content::Read(3));
    }

    #[test]
    fn a_zone_named_by_another_type_than_a_string_is_nobodys() {
        let event = doc! { "operationType": "insert", "fullDocument": { "_id": 1, "_pk": 7 } };
        assert_eq!(places(event, None).1, "elsewhere");
        assert_eq!(places(update(doc! { "_pk": 7 }, &[]), Some("DFW")).1, "elsewhere");
    }

    #[test]
    fn an_update_that_touches_nothing_moves_nothing() {
        assert_eq!(places(update(doc! {}, &[]), Some("DFW")), ("DFW".to_owned(), "DFW".to_owned(), false));
    }

    #[test]
    fn an_earlier_event_of_the_reply_says_where_the_document_is() {
        let routes = routes();
        let mut whole = doc! { "documentKey": { "_id": 1 } };
        whole.extend(update(doc! { "a": 1 }, &[]));
        let reply = reply(&[whole]);
        let known = Some(routes.place("DFW"));
        let facts = rules(&routes).facts(reply.event(0), None, known).expect("valid").expect("a change");
        assert_eq!((facts.before, facts.place_after()), (Before::At(routes.place("DFW")), known));
        let unknown = rules(&routes).facts(reply.event(0), None, None).expect("valid").expect("a change");
        assert_eq!(unknown.place_after(), None);
    }
}
