//! What a spoke's change event does at the hub.
//!
//! Only documents of the spoke's own zone go up. The zone stands in the filter of every write, and that is what enforces
//! ownership: whatever an application at the spoke writes, it can neither overwrite nor delete another zone's document.

use bson::raw::{RawBsonRef, RawDocument};

use super::ahead::Standing;
use super::delta::{FieldChange, Update, field_change};
use super::names::Zone;
use super::reply::{EventRef, Kind, Malformed};
use super::step::{Meaning, Read, Write};

/// The rules of one uplink.
#[derive(Clone, Debug)]
pub(crate) struct Uplink {
    /// The zone that the spoke owns.
    pub(crate) zone: Zone,
    /// The field that names a document's zone.
    pub(crate) partition_key: String,
    /// Whether the spoke's server says how to read paths with dots.
    pub(crate) precise: bool,
}

/// Whose document this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The spoke's.
    Own,
    /// Another zone's.
    Other,
    /// It has no partition key yet, and so will be the spoke's.
    Unstamped,
}

/// What is to be done about an event.
#[derive(Clone, Debug)]
pub(crate) enum Decision<'a> {
    /// This.
    Write(Write<'a>),
    /// Nothing: it is no change of a document, or the hub has it.
    Nothing,
    /// Nothing: another zone's document was written at this spoke. It stays local.
    Foreign,
}

impl Uplink {
    /// Decides about one event, where the hub's document stands to it as `standing` says.
    ///
    /// # Errors
    /// If the event lacks what events of its type have.
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
            (Standing::Unknown, _) => Decision::Write(Write::Read(Read::Whole)),
            (Standing::Behind, write) => Decision::Write(write),
        })
    }

    /// True if the document is another zone's after this change of it. What the spoke does to it from then on stays there.
    pub(crate) fn leaves(&self, event: EventRef<'_>) -> bool {
        event.kind() != Kind::Insert && self.owner_after(event) == Some(Owner::Other)
    }

    /// True if the event makes the document the spoke's own, whosever it was.
    pub(crate) fn claims(&self, event: EventRef<'_>) -> bool {
        matches!(self.owner_after(event), Some(Owner::Own | Owner::Unstamped))
    }

    /// Whose the document is after the event, as far as that tells: an update need not touch the partition key.
    fn owner_after(&self, event: EventRef<'_>) -> Option<Owner> {
        if let Some(document) = event.full_document() {
            return Some(self.owner(document));
        }
        match field_change(event.update_description()?, &self.partition_key) {
            FieldChange::Unset => Some(Owner::Unstamped),
            FieldChange::Set(key) => Some(self.owner_by(key)),
            FieldChange::None => None,
        }
    }

    /// What a document that was read at the spoke means at the hub; `absent` if the hub has none of the spoke's zone.
    ///
    /// The document must have its partition key.
    pub(crate) fn meaning<'a>(&self, document: Option<&'a RawDocument>, absent: bool) -> Meaning<'a> {
        match document.map(|document| (document, self.owner(document))) {
            None => Meaning::Write(Write::Delete),
            Some((document, Owner::Own)) => Meaning::Write(Write::Replace { document, upsert: true }),
            Some((_, Owner::Other | Owner::Unstamped)) if absent => Meaning::Foreign,
            // It was the spoke's own, and an application moved it to another zone.
            Some((document, _)) => Meaning::Write(Write::Replace { document, upsert: false }),
        }
    }

    /// Whose document this is.
    pub(crate) fn owner(&self, document: &RawDocument) -> Owner {
        match document.get(&self.partition_key) {
            Ok(None) => Owner::Unstamped,
            Ok(Some(key)) => self.owner_by(key),
            Err(_) => Owner::Other,
        }
    }

    fn owner_by(&self, key: RawBsonRef<'_>) -> Owner {
        if key.as_str() == Some(self.zone.as_str()) { Owner::Own } else { Owner::Other }
    }

    fn put<'a>(&self, event: EventRef<'a>) -> Option<Write<'a>> {
        let document = event.full_document()?;
        let fresh = event.kind() == Kind::Insert;
        match self.owner(document) {
            Owner::Unstamped => Some(Write::Read(Read::Stamp { fresh, document: Some(document) })),
            Owner::Own if fresh => Some(Write::Insert(document)),
            Owner::Own => Some(Write::Replace { document, upsert: true }),
            Owner::Other if fresh => None,
            // Either the spoke's own document was moved to another zone, or another zone's was replaced: the filter on the
            // zone tells them apart at the hub.
            Owner::Other => Some(Write::Replace { document, upsert: false }),
        }
    }

    fn update<'a>(&self, event: EventRef<'a>) -> Write<'a> {
        let Some(description) = event.update_description() else { return Write::Read(Read::Whole) };
        match self.owner_after(event) {
            Some(Owner::Unstamped) => return Write::Read(Read::Stamp { fresh: false, document: None }),
            Some(Owner::Own) => return Write::Read(Read::Whole),
            // A zone move: the filter holds the old zone.
            Some(Owner::Other) | None => {}
        }
        match Update::read(description, self.precise) {
            Update::Delta(delta) => Write::Update(delta),
            Update::Whole => Write::Read(Read::Whole),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::reply::tests::batch;
    use bson::{Document, doc, rawdoc};

    fn uplink() -> Uplink {
        Uplink { zone: Zone::new("DFW"), partition_key: "_pk".to_owned(), precise: false }
    }

    fn decide(event: Document, standing: Standing) -> String {
        let mut whole = doc! { "documentKey": { "_id": 1 } };
        whole.extend(event);
        let batch = batch(&[whole]);
        match uplink().decide(batch.event(0), standing).expect("valid") {
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
    fn what_the_hub_may_have_already_is_read_again_and_what_it_has_is_skipped() {
        let event = put("insert", doc! { "_id": 1, "_pk": "DFW" });
        assert_eq!(decide(event.clone(), Standing::Unknown), "Read(Whole)");
        assert_eq!(decide(event, Standing::Ahead), "nothing");
        assert_eq!(decide(doc! { "operationType": "delete" }, Standing::Unknown), "Read(Whole)");
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
}
