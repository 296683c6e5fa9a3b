//! Documents that a link did not find as expected, until the [decision](crate::rules::settle) about each is taken.
//!
//! ```text
//! _id       document  { link: string, ns: string, document: any }: link, collection, and `_id` of the document
//! found_at  date      time at which the link found it, by the process's clock
//! ```
//!
//! Kept at the link's destination. The link writes an entry in the transaction of the batch that found the document;
//! the spoke's downlink deletes the entries of both links after the decision.
//!
//! Index: only `_id`. The entries of a link and a collection follow each other, because `link` and `ns` come first.

use std::collections::HashSet;

use bson::raw::{RawArrayBuf, RawBson, RawBsonRef, RawDocumentBuf};
use bson::{DateTime, doc, rawdoc};

use super::UNSETTLED;
use super::by_document::{self, Kind, id, named};
use crate::mongo::error::Error;
use crate::mongo::read::Wanted;
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::names::{LinkName, Namespace};

/// The command that notes documents, given by collection and `_id`.
pub(crate) fn note(link: &LinkName, documents: &[(&Namespace, RawBsonRef<'_>)]) -> RawDocumentBuf {
    let mut updates = RawArrayBuf::new();
    for (namespace, document) in documents {
        updates.push(rawdoc! {
            "q": id(Some(link), namespace, *document), "u": { "$set": { "found_at": DateTime::now() } }, "upsert": true,
        });
    }
    rawdoc! { "update": UNSETTLED, "updates": updates }
}

/// The command that deletes entries, given by collection and `_id`.
pub(crate) fn remove(link: &LinkName, documents: &[(&Namespace, RawBsonRef<'_>)]) -> RawDocumentBuf {
    let mut deletes = RawArrayBuf::new();
    for (namespace, document) in documents {
        deletes.push(rawdoc! { "q": id(Some(link), namespace, *document), "limit": 1 });
    }
    rawdoc! { "delete": UNSETTLED, "deletes": deletes }
}

/// Documents of one collection that are read, at most. The next start of the link reads the rest.
const MOST: usize = 10_000;

/// The `_id`s of the documents that a link has noted.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn load(server: &Server, link: &LinkName) -> Result<Vec<(Key, RawBson)>, Error> {
    let kind = Kind { collection: UNSETTLED, fields: doc! { "_id": 1 }, read: named };
    let (mut pages, mut found) = (kind.pages(server, Some(link)), Vec::new());
    while let Some(page) = pages.next().await? {
        let last = page.last().map(|(key, _): &(Key, RawBson)| key.namespace());
        found.extend(page);
        let of_last = found.iter().rev().take_while(|(key, _)| Some(key.namespace()) == last);
        if of_last.count() >= MOST {
            pages.leave_collection();
        }
    }
    Ok(found)
}

/// Those of these documents that a link has noted.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn among(server: &Server, link: &LinkName, wanted: &Wanted<'_>) -> Result<HashSet<Key>, Error> {
    by_document::among(server, UNSETTLED, Some(link), wanted, &doc! {}).await
}

#[cfg(test)]
mod tests {
    use super::super::by_document::document_id;
    use super::super::saved::{first, upserted};
    use super::*;
    use crate::rules::names::Zone;

    #[test]
    fn an_entry_is_found_and_deleted_by_the_id_under_which_it_was_noted() {
        let (link, namespace) = (LinkName::uplink(&Zone::new("DFW")), Namespace::parse("app.orders").expect("valid"));
        let documents = [(&namespace, RawBsonRef::Int32(7))];
        let saved = upserted(&note(&link, &documents));
        assert_eq!(document_id(&saved), Some(RawBson::Int32(7)));
        let condition = first(&remove(&link, &documents), "deletes");
        let condition = condition.get_document("q").and_then(|condition| condition.get_document("_id"));
        assert_eq!(condition.ok(), saved.get_document("_id").ok());
    }
}
