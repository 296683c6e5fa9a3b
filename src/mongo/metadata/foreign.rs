//! Foreign documents: documents that applications wrote at a spoke, in zones that other spokes own. A foreign document
//! stays at the spoke. A reconcile must not mistake a foreign document for a document deleted at the hub.
//!
//! ```text
//! _id      document  { ns: string, document: any }: collection as `database.collection`, and `_id` of the document
//! seen_at  date      time of the registration, by the process's clock
//! found    bool      true if a first copy found the document, and no application is known to have written it since
//! ```
//!
//! Kept at the spoke.
//!
//! - The uplink registers a document after an insert event if the hub does not have the document with the same bytes,
//!   with write concern majority, before the uplink's checkpoint passes the event. A delete event removes the entry.
//! - The downlink registers documents of a watched zone that a copy finds only at the spoke, and leaves there, in the
//!   transaction that saves the copy's progress. The downlink removes the entry in the transaction that brings the
//!   hub's document of the same `_id`, or at the start of a reconcile if the hub has the same document by then.
//! - A repair removes the entries of all documents that its transaction writes or deletes at the spoke.
//!
//! Index: only `_id`. The entries of a collection follow each other, because `ns` comes first.

use std::collections::HashSet;

use bson::raw::{RawArrayBuf, RawBson, RawBsonRef, RawDocumentBuf};
use bson::{DateTime, doc, rawdoc};

use super::FOREIGN;
use super::by_document::{self, Kind, Pages, id, named};
use crate::mongo::error::Error;
use crate::mongo::read::Wanted;
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::names::Namespace;

/// The command that registers documents that an application has written, given by collection and `_id`.
pub(crate) fn register(documents: &[(&Namespace, RawBsonRef<'_>)]) -> RawDocumentBuf {
    upsert(documents, &rawdoc! { "$setOnInsert": { "seen_at": DateTime::now() }, "$unset": { "found": "" } })
}

/// The command that registers documents that a copy has found. What an application has written stays so.
pub(crate) fn register_found(documents: &[(&Namespace, RawBsonRef<'_>)]) -> RawDocumentBuf {
    upsert(documents, &rawdoc! { "$setOnInsert": { "seen_at": DateTime::now(), "found": true } })
}

fn upsert(documents: &[(&Namespace, RawBsonRef<'_>)], update: &RawDocumentBuf) -> RawDocumentBuf {
    let mut updates = RawArrayBuf::new();
    for (namespace, document) in documents {
        updates.push(rawdoc! { "q": id(None, namespace, *document), "u": update.clone(), "upsert": true });
    }
    rawdoc! { "update": FOREIGN, "updates": updates }
}

pub(crate) fn forget(documents: &[(&Namespace, RawBsonRef<'_>)]) -> RawDocumentBuf {
    let mut deletes = RawArrayBuf::new();
    for (namespace, document) in documents {
        deletes.push(rawdoc! { "q": id(None, namespace, *document), "limit": 1 });
    }
    rawdoc! { "delete": FOREIGN, "deletes": deletes }
}

/// The register, by document, a page at a time.
pub(crate) fn pages(server: &Server) -> Pages<'_, RawBson> {
    Kind { collection: FOREIGN, fields: doc! { "_id": 1 }, read: named }.pages(server, None)
}

/// Those of these documents that are registered.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn among(server: &Server, wanted: &Wanted<'_>) -> Result<HashSet<Key>, Error> {
    by_document::among(server, FOREIGN, None, wanted, &doc! {}).await
}

/// Those of these documents that are registered, and that a copy has found.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn found_among(server: &Server, wanted: &Wanted<'_>) -> Result<HashSet<Key>, Error> {
    by_document::among(server, FOREIGN, None, wanted, &doc! { "found": true }).await
}

#[cfg(test)]
mod tests {
    use super::super::saved::{first, upserted};
    use super::*;

    #[test]
    fn an_entry_is_read_as_it_was_registered_and_forgotten_by_the_same_id() {
        let namespace = Namespace { database: "app".to_owned(), collection: "orders".to_owned() };
        for id in [RawBson::Int32(7), RawBson::String("a".to_owned()), RawBson::Document(rawdoc! { "a": 1, "b": [2] })]
        {
            let documents = [(&namespace, id.as_raw_bson_ref())];
            let saved = upserted(&register(&documents));
            assert!(!saved.contains_key("found"));
            assert_eq!(upserted(&register_found(&documents)).get_bool("found").ok(), Some(true));
            assert_eq!(named(3, &saved), Some((Key::new(3, id.as_raw_bson_ref()), id.clone())));
            let condition = first(&forget(&documents), "deletes");
            let condition = condition.get_document("q").and_then(|condition| condition.get_document("_id"));
            assert_eq!(condition.ok(), saved.get_document("_id").ok());
        }
    }
}
