//! Documents whose `_id` is too large for change events ([`LARGEST_ID`]). No reply of a change stream can hold an event
//! of such a document, so a stream goes past the event, and the documents are looked for in the collections.

use bson::raw::{RawBson, RawDocument, RawDocumentBuf};
use bson::rawdoc;
use futures_util::StreamExt;

use super::error::Error;
use super::server::Server;
use crate::rules::lookup;
use crate::rules::opaque::{self, LARGEST_ID};

/// A document whose `_id` is too large.
#[derive(Debug)]
pub(super) struct Large {
    /// Number of the collection in the configuration.
    pub(super) namespace: u16,
    /// The [stand-in](opaque::stand_in) for the `_id`.
    pub(super) id: RawBson,
    /// The value of the partition key.
    pub(super) zone: Option<RawBson>,
}

/// Documents looked for in one collection, at most.
const MOST: i32 = 100;

/// Additional bytes of the document `{ i: _id }`, generously: what the server calls large, [`opaque`] does as well.
const AROUND: usize = 100;

/// Longest search of one collection, in milliseconds.
const LONGEST_MS: i32 = 60_000;

/// The documents of a collection that match the filter and have too large an `_id`.
///
/// # Errors
/// If the server does not answer, or not in time.
pub(super) async fn of(server: &Server, namespace: u16, filter: RawDocumentBuf) -> Result<Vec<Large>, Error> {
    const SEARCHING: &str = "searching for large _ids";
    let name = server.namespace(namespace);
    let mut fields = rawdoc! { "_id": 1 };
    fields.append(server.partition_field(), 1);
    // One document a reply: several would not fit.
    let find = rawdoc! {
        "find": name.collection.as_str(), "filter": { "$and": [filter, { "$expr": is_large() }] },
        "projection": fields, "limit": MOST, "batchSize": 1, "maxTimeMS": LONGEST_MS,
        "readConcern": { "level": "majority" },
    };
    let database = server.client().database(&name.database);
    let mut cursor = server.patiently(SEARCHING, database.run_raw_cursor_command(find).batch()).await?;
    let mut found = Vec::new();
    loop {
        let next = cursor.next();
        let Some(reply) = server.patiently(SEARCHING, async { next.await.transpose() }).await? else {
            return Ok(found);
        };
        let documents = reply.doc_slices().map_err(|error| Error::of_driver(server.name(), SEARCHING, &error))?;
        let documents = documents.into_iter().flatten().filter_map(|document| document.as_document());
        found.extend(documents.filter_map(|document| read(server, namespace, document)));
    }
}

/// The condition that the `_id` is too large, for `$expr`.
pub(super) fn is_large() -> RawDocumentBuf {
    let largest = i64::try_from(LARGEST_ID + AROUND).unwrap_or(i64::MAX);
    rawdoc! { "$gt": [{ "$bsonSize": { "i": "$_id" } }, largest] }
}

fn read(server: &Server, namespace: u16, document: &RawDocument) -> Option<Large> {
    let id = opaque::stand_in(&opaque::document_key(document)?);
    let zone = lookup::value(document, server.partition_key()).map(RawBson::from);
    Some(Large { namespace, id, zone })
}
