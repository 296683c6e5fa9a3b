//! The effect of a spoke's change event at the hub.
//!
//! Only documents of the spoke's own zone go up. Every write has the zone in its filter, and the filter enforces
//! ownership: no application at the spoke can overwrite or delete another zone's document at the hub.

use std::collections::HashSet;

use bson::Timestamp;
use bson::raw::{RawBsonRef, RawDocument};

use super::ahead::Standing;
use super::delta::{FieldChange, Update, field_change};
use super::key::Key;
use super::lookup;
use super::names::Zone;
use super::reply::{EventRef, Kind, Malformed};
use super::step::{Meaning, Read, Rules, Step, Write};

#[derive(Clone, Debug)]
pub(crate) struct Uplink {
    /// The spoke's own zone.
    pub(crate) zone: Zone,
    /// The field that names a document's zone.
    pub(crate) partition_key: String,
    /// The spoke's change events disambiguate paths with dots (`disambiguatedPaths`, MongoDB 6.1 and later).
    pub(crate) precise: bool,
}

/// The owner of a document, by the partition key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Own,
    Other,
    /// No partition key yet: the document will become the spoke's.
    Unstamped,
}

#[derive(Clone, Debug)]
pub(crate) enum Decision<'a> {
    Write(Write<'a>),
    /// The event changes no document, or the hub has the change already.
    Nothing,
    /// Another zone's document was written at the spoke. The document stays local.
    Foreign,
}

/// Documents that left the spoke's zone earlier in the same batch. The spoke's later changes of such a document belong
/// to another zone and stay at the spoke, until a change claims the document back.
#[derive(Debug, Default)]
pub(crate) struct Departures(HashSet<Key>);

impl Departures {
    /// True if the event's document has left the zone, so the event stays at the spoke. Call for every event, in the
    /// stream's order.
    pub(crate) fn hold_back(&mut self, rules: &Uplink, event: EventRef<'_>, key: &Key) -> bool {
        if self.0.contains(key) {
            if !rules.claims(event) {
                return true;
            }
            self.0.remove(key);
        }
        if rules.leaves(event) {
            self.0.insert(key.clone());
        }
        false
    }
}

/// The places at which a batch must end: before an event that gives a document to another owner, or creates it again,
/// while an earlier step of the document still has to be read. The read then shows the document as the step left it.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    /// Documents with a step since the last cut that has to be read.
    to_read: HashSet<Key>,
    cuts: Vec<Cut>,
}

/// The end of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The number of the event before which the batch ends.
    pub(crate) event: usize,
    /// The cluster time of the event before: the batch's documents are read as of this time.
    pub(crate) after: Timestamp,
}

impl Cuts {
    /// Cuts before this event if necessary. `after` is the cluster time of the event before.
    pub(crate) fn before(&mut self, rules: &Uplink, number: usize, event: EventRef<'_>, key: &Key, after: Timestamp) {
        if self.to_read.contains(key) && rules.changes_owner(event) {
            self.cuts.push(Cut { event: number, after });
            self.to_read.clear();
        }
    }

    pub(crate) fn add(&mut self, step: &Step<'_>) {
        if matches!(step.write, Write::Read(_)) {
            self.to_read.insert(step.key.clone());
        }
    }

    /// The document is deleted: earlier steps need not be read any more. True if there are any.
    pub(crate) fn delete(&mut self, key: &Key) -> bool {
        self.to_read.remove(key)
    }

    pub(crate) fn into_cuts(self) -> Vec<Cut> {
        self.cuts
    }
}

/// True if a change that gives a document to `new_zone` is the change of a copy: the hub has the document in that zone,
/// which the spoke watches. Such a change stays at the spoke. In any other zone, the hub has moved the spoke's document
/// meanwhile, and the two moves cross. If the hub moved the document to the same watched zone, the hub's move comes
/// down with the whole document.
pub(crate) fn changes_a_copy(new_zone: Option<&str>, at_hub: &str, held: &[Zone]) -> bool {
    new_zone == Some(at_hub) && held.iter().any(|zone| zone.as_str() == at_hub)
}

impl Uplink {
    /// True if the event creates the document, or gives it to another owner.
    fn changes_owner(&self, event: EventRef<'_>) -> bool {
        event.kind() == Kind::Insert || matches!(self.owner_after(event), Some(Owner::Other | Owner::Unstamped))
    }

    /// Decides about an event. `standing` compares the hub's document with the event. Fails if the event lacks a
    /// mandatory part.
    pub(crate) fn decide<'a>(&self, event: EventRef<'a>, standing: Standing) -> Result<Decision<'a>, Malformed> {
        let write = match event.kind() {
            Kind::Insert | Kind::Replace => match self.put(event) {
                Some(write) => write,
                None => return Ok(Decision::Foreign),
            },
            Kind::Update => self.update(event),
            Kind::Delete => Write::Delete,
            Kind::CollectionLost | Kind::Other => return Ok(Decision::Nothing),
        };
        Ok(match (standing, write) {
            (Standing::Ahead, _) => Decision::Nothing,
            (Standing::Unknown, Write::Read(Read::Stamp { document, .. })) => {
                Decision::Write(Write::Read(Read::Stamp { fresh: false, document }))
            }
            (Standing::Unknown, Write::Delete) => Decision::Write(Write::Read(Read::Gone)),
            (Standing::Unknown, _) => Decision::Write(Write::Read(Read::Whole)),
            (Standing::Behind, write) => Decision::Write(write),
        })
    }

    /// True if the event gives the document to another zone.
    fn leaves(&self, event: EventRef<'_>) -> bool {
        event.kind() != Kind::Insert && self.owner_after(event) == Some(Owner::Other)
    }

    /// True if the event makes the document the spoke's own, from any zone before.
    pub(crate) fn claims(&self, event: EventRef<'_>) -> bool {
        matches!(self.owner_after(event), Some(Owner::Own | Owner::Unstamped))
    }

    /// The document's owner after the event. `None` if the event says nothing of the partition key.
    fn owner_after(&self, event: EventRef<'_>) -> Option<Owner> {
        if let Some(document) = event.zoned() {
            return Some(self.owner(document));
        }
        match field_change(event.update_description()?, &self.partition_key) {
            FieldChange::Unset => Some(Owner::Unstamped),
            FieldChange::Set(key) => Some(self.owner_by(key)),
            FieldChange::None => None,
        }
    }

    pub(crate) fn owner(&self, document: &RawDocument) -> Owner {
        lookup::value(document, &self.partition_key).map_or(Owner::Unstamped, |key| self.owner_by(key))
    }

    fn owner_by(&self, key: RawBsonRef<'_>) -> Owner {
        if key.as_str() == Some(self.zone.as_str()) { Owner::Own } else { Owner::Other }
    }

    fn put<'a>(&self, event: EventRef<'a>) -> Option<Write<'a>> {
        let fresh = event.kind() == Kind::Insert;
        let Some(document) = event.full_document() else {
            // The document did not fit into its event.
            return match self.owner(event.zoned()?) {
                Owner::Unstamped => Some(Write::Read(Read::Stamp { fresh, document: None })),
                Owner::Other if fresh => None,
                Owner::Own | Owner::Other => Some(Write::Read(Read::Whole)),
            };
        };
        match self.owner(document) {
            Owner::Unstamped => Some(Write::Read(Read::Stamp { fresh, document: Some(document) })),
            Owner::Own if fresh => Some(Write::Insert(document)),
            Owner::Own => Some(Write::Replace { document, upsert: true }),
            Owner::Other if fresh => None,
            // Either the spoke's own document moved to another zone, or an application replaced another zone's
            // document: the zone in the filter distinguishes the two at the hub.
            Owner::Other => Some(Write::Replace { document, upsert: false }),
        }
    }

    fn update<'a>(&self, event: EventRef<'a>) -> Write<'a> {
        match self.owner_after(event) {
            Some(Owner::Unstamped) => return Write::Read(Read::Stamp { fresh: false, document: None }),
            Some(Owner::Own) => return Write::Read(Read::Whole),
            // A move to another zone: the filter holds the old zone.
            Some(Owner::Other) | None => {}
        }
        match Update::of(event, self.precise) {
            Some(Update::Delta(delta)) => Write::Update(delta),
            Some(Update::Whole) | None => Write::Read(Read::Whole),
        }
    }
}

impl Rules for Uplink {
    /// The document must have its partition key.
    fn meaning<'a>(&self, document: Option<&'a RawDocument>, absent: bool) -> Meaning<'a> {
        match document.map(|document| (document, self.owner(document))) {
            None => Meaning::Write(Write::Delete),
            Some((document, Owner::Own)) => Meaning::Write(Write::Replace { document, upsert: true }),
            Some((_, Owner::Other | Owner::Unstamped)) if absent => Meaning::Foreign,
            // The spoke's own document, which an application moved to another zone.
            Some((document, _)) => Meaning::Write(Write::Replace { document, upsert: false }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::reply::tests::reply;
    use bson::{Document, doc, rawdoc};

    fn uplink() -> Uplink {
        Uplink { zone: Zone::new("DFW"), partition_key: "_pk".to_owned(), precise: false }
    }

    fn decide(event: Document, standing: Standing) -> String {
        let mut whole = doc! { "documentKey": { "_id": 1 } };
        whole.extend(event);
        let reply = reply(&[whole]);
        match uplink().decide(reply.event(0), standing).expect("valid") {
            Decision::Write(Write::Replace { upsert, .. }) => format!("replace, upsert {upsert}"),
            Decision::Write(Write::Insert(_)) => "insert".to_owned(),
            Decision::Write(Write::Update(_)) => "update".to_owned(),
            Decision::Write(Write::Read(Read::Stamp { fresh, .. })) => format!("stamp, fresh {fresh}"),
            Decision::Write(other) => format!("{other:?}"),
            Decision::Nothing => "nothing".to_owned(),
            Decision::Foreign => "foreign".to_owned(),
        }
    }

    fn put(operation: &str, document: Document) -> Document {
        doc! { "operationType": operation, "fullDocument": document }
    }

    fn update(set: Document, unset: &[&str]) -> Document {
        doc! { "operationType": "update", "updateDescription": { "updatedFields": set, "removedFields": unset } }
    }

    #[test]
    fn every_row_of_the_uplinks_table() {
        let table = [
            (put("insert", doc! { "_id": 1, "_pk": "DFW" }), "insert"),
            (put("replace", doc! { "_id": 1, "_pk": "DFW" }), "replace, upsert true"),
            (put("insert", doc! { "_id": 1 }), "stamp, fresh true"),
            (put("replace", doc! { "_id": 1 }), "stamp, fresh false"),
            (put("insert", doc! { "_id": 1, "_pk": "HOU" }), "foreign"),
            (put("insert", doc! { "_id": 1, "_pk": 7 }), "foreign"),
            (put("replace", doc! { "_id": 1, "_pk": "HOU" }), "replace, upsert false"),
            (update(doc! { "a": 1 }, &[]), "update"),
            (update(doc! { "a.b": 1 }, &[]), "Read(Whole)"),
            (update(doc! { "_pk": "HOU" }, &[]), "update"),
            (update(doc! { "_pk": "DFW" }, &[]), "Read(Whole)"),
            (update(doc! {}, &["_pk"]), "stamp, fresh false"),
            (doc! { "operationType": "delete" }, "Delete"),
            (doc! { "operationType": "drop" }, "nothing"),
        ];
        for (event, expected) in table {
            assert_eq!(decide(event.clone(), Standing::Behind), expected, "{event}");
        }
    }

    #[test]
    fn a_change_of_a_copy_is_told_from_a_move_that_crosses_another_one() {
        let held = [Zone::new("DFW"), Zone::new("HOU")];
        let table = [
            ("HOU", "HOU", true),
            ("HOU", "BOS", false),
            ("BOS", "HOU", false),
            // The spoke does not watch the zone: the document would stay at the spoke.
            ("BOS", "BOS", false),
        ];
        for (new_zone, at_hub, expected) in table {
            assert_eq!(changes_a_copy(Some(new_zone), at_hub, &held), expected, "{new_zone}, {at_hub}");
        }
        assert!(!changes_a_copy(None, "HOU", &held));
    }

    #[test]
    fn what_the_hub_may_have_already_is_read_again_and_what_it_has_is_skipped() {
        let event = put("insert", doc! { "_id": 1, "_pk": "DFW" });
        assert_eq!(decide(event.clone(), Standing::Unknown), "Read(Whole)");
        assert_eq!(decide(event, Standing::Ahead), "nothing");
        assert_eq!(decide(doc! { "operationType": "delete" }, Standing::Unknown), "Read(Gone)");
    }

    #[test]
    fn a_document_that_was_read_is_pushed_only_if_it_is_or_was_the_spokes() {
        let uplink = uplink();
        let (own, other) = (rawdoc! { "_pk": "DFW" }, rawdoc! { "_pk": "HOU" });
        assert!(matches!(uplink.meaning(Some(&own), true), Meaning::Write(Write::Replace { upsert: true, .. })));
        assert!(matches!(uplink.meaning(Some(&other), false), Meaning::Write(Write::Replace { upsert: false, .. })));
        assert!(matches!(uplink.meaning(Some(&other), true), Meaning::Foreign));
        assert!(matches!(uplink.meaning(None, true), Meaning::Write(Write::Delete)));
    }

    /// The events of one document, in order, and whether each is held back.
    fn held_back(events: &[Document]) -> Vec<bool> {
        let whole = |event: &Document| {
            let mut whole = doc! { "documentKey": { "_id": 1 } };
            whole.extend(event.clone());
            whole
        };
        let reply = reply(&events.iter().map(whole).collect::<Vec<_>>());
        let (rules, mut departures) = (uplink(), Departures::default());
        let event = |event: EventRef<'_>| departures.hold_back(&rules, event, &event.key().expect("valid"));
        reply.events().map(event).collect()
    }

    #[test]
    fn what_the_spoke_does_to_a_document_that_left_its_zone_stays_at_the_spoke() {
        let leave = || update(doc! { "_pk": "HOU" }, &[]);
        let delete = || doc! { "operationType": "delete" };
        assert_eq!(held_back(&[leave(), delete()]), [false, true]);
        assert_eq!(held_back(&[leave(), update(doc! { "a": 1 }, &[]), delete()]), [false, true, true]);
        assert_eq!(held_back(&[put("replace", doc! { "_id": 1, "_pk": "HOU" }), delete()]), [false, true]);
        assert_eq!(held_back(&[leave(), update(doc! { "_pk": "BOS" }, &[]), delete()]), [false, true, true]);
    }

    #[test]
    fn a_document_that_comes_back_is_the_spokes_again() {
        let leave = || update(doc! { "_pk": "HOU" }, &[]);
        let delete = || doc! { "operationType": "delete" };
        for back in [
            update(doc! { "_pk": "DFW" }, &[]),
            update(doc! {}, &["_pk"]),
            put("replace", doc! { "_id": 1, "_pk": "DFW" }),
            put("replace", doc! { "_id": 1 }),
            put("insert", doc! { "_id": 1, "_pk": "DFW" }),
        ] {
            assert_eq!(held_back(&[leave(), back.clone(), delete()]), [false, false, false], "{back}");
        }
    }

    #[test]
    fn an_insert_into_another_zone_and_an_ordinary_change_take_nothing_out_of_the_zone() {
        let delete = || doc! { "operationType": "delete" };
        assert_eq!(held_back(&[put("insert", doc! { "_id": 1, "_pk": "HOU" }), delete()]), [false, false]);
        assert_eq!(held_back(&[update(doc! { "a": 1 }, &[]), delete()]), [false, false]);
        assert_eq!(held_back(&[put("replace", doc! { "_id": 1, "_pk": "DFW" }), delete()]), [false, false]);
    }

    /// The numbers of the events before which a batch ends.
    fn cuts(events: &[Document]) -> Vec<usize> {
        let whole = |event: &Document| {
            let mut whole = doc! { "documentKey": { "_id": 1 } };
            whole.extend(event.clone());
            whole
        };
        let reply = reply(&events.iter().map(whole).collect::<Vec<_>>());
        let (rules, mut cuts) = (uplink(), Cuts::default());
        for (number, event) in reply.events().enumerate() {
            let key = event.key().expect("valid");
            cuts.before(&rules, number, event, &key, event.cluster_time());
            if let Decision::Write(write) = rules.decide(event, Standing::Behind).expect("valid") {
                let (id, zones) = (event.id().expect("valid"), crate::rules::step::Zones::One("DFW"));
                cuts.add(&Step { event: number, key, id, zones, write, hub_edit: None });
            }
        }
        cuts.into_cuts().into_iter().map(|cut| cut.event).collect()
    }

    #[test]
    fn a_batch_ends_before_a_change_of_ownership_that_a_read_would_hide() {
        let nested = || update(doc! { "n.a": 1 }, &[]);
        let give = || update(doc! { "_pk": "HOU" }, &[]);
        let own = || put("insert", doc! { "_id": 1, "_pk": "DFW" });
        assert_eq!(cuts(&[own(), nested(), give()]), [2]);
        assert_eq!(cuts(&[put("insert", doc! { "_id": 1 }), give()]), [1], "a stamp is a read");
        assert_eq!(cuts(&[nested(), update(doc! {}, &["_pk"])]), [1]);
        assert_eq!(cuts(&[nested(), put("replace", doc! { "_id": 1, "_pk": "HOU" })]), [1]);
        let delete = || doc! { "operationType": "delete" };
        assert_eq!(cuts(&[nested(), delete(), put("insert", doc! { "_id": 1, "_pk": "HOU" })]), [2]);
        assert_eq!(cuts(&[nested(), give(), nested(), give()]), [1, 3]);
    }

    #[test]
    fn a_batch_goes_on_where_a_read_hides_nothing() {
        let nested = || update(doc! { "n.a": 1 }, &[]);
        let own = || put("insert", doc! { "_id": 1, "_pk": "DFW" });
        let own_again = put("replace", doc! { "_id": 1, "_pk": "DFW" });
        assert!(cuts(&[own(), nested(), nested(), own_again]).is_empty());
        assert!(cuts(&[own(), update(doc! { "_pk": "HOU" }, &[])]).is_empty(), "no read");
        assert!(cuts(&[nested(), doc! { "operationType": "delete" }]).is_empty());
    }
}
