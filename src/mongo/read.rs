//! Documents as they were at one cluster time.
//!
//! A read with `readConcern: snapshot` can be told its cluster time, and says it in the reply (`atClusterTime`, MongoDB 5.0
//! and later). A majority read says only a time that it is not newer than, which is not enough to leave out an event.

use std::collections::HashMap;

use bson::raw::{CStr, RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{Timestamp, rawdoc};
use futures_util::StreamExt;

use super::error::{Error, codes};
use super::server::Server;
use crate::rules::key::Key;

/// Documents read together.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// When they were like this.
    pub(crate) at: Timestamp,
    /// The documents, by key; `None` for those that are not there.
    pub(crate) documents: HashMap<Key, Option<RawDocumentBuf>>,
}

/// Which documents to read.
pub(crate) type Wanted<'a> = HashMap<Key, RawBsonRef<'a>>;

/// Reads documents as they were at this time; or, if the server no longer knows that (it does for five minutes,
/// `minSnapshotHistoryWindowInSeconds`) or the collection is younger, as they are now.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn documents_at(server: &Server, wanted: &Wanted<'_>, time: Timestamp) -> Result<Snapshot, Error> {
    match documents(server, wanted, None, When::At(time)).await {
        Err(error) if matches!(error.code(), Some(codes::SNAPSHOT_TOO_OLD | codes::SNAPSHOT_UNAVAILABLE)) => {
            documents(server, wanted, None, When::NotBefore(time)).await
        }
        result => result,
    }
}

/// Which of a document's versions is read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    /// That of this time.
    At(Timestamp),
    /// The present one, or any that is not older than this time.
    NotBefore(Timestamp),
}

/// Reads documents as they all are at one time; of each only this field if one is given.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn documents(
    server: &Server,
    wanted: &Wanted<'_>,
    field: Option<&CStr>,
    when: When,
) -> Result<Snapshot, Error> {
    let (mut at, not_before) = match when {
        When::At(time) => (Some(time), time),
        When::NotBefore(time) => (None, time),
    };
    let mut snapshot = Snapshot { at: not_before, documents: wanted.keys().map(|key| (key.clone(), None)).collect() };
    for (number, namespace) in (0u16..).zip(server.namespaces()) {
        let ids: RawArrayBuf = wanted.iter().filter(|(key, _)| key.namespace() == number).map(|(_, id)| *id).collect();
        if ids.is_empty() {
            continue;
        }
        let mut find = rawdoc! { "find": namespace.collection.as_str(), "filter": { "_id": { "$in": ids } } };
        if let Some(field) = field {
            find.append(cstr!("projection"), rawdoc! { "_id": 1, field: 1 });
        }
        // All collections as they are at the time of the first.
        find.append(
            cstr!("readConcern"),
            match at {
                Some(at) => rawdoc! { "level": "snapshot", "atClusterTime": RawBsonRef::Timestamp(at) },
                None => rawdoc! { "level": "snapshot", "afterClusterTime": RawBsonRef::Timestamp(not_before) },
            },
        );
        let read_at = find_all(server, &namespace.database, find, |document| {
            let id = document.get("_id").map_err(|error| server.malformed(error))?;
            let id = id.ok_or_else(|| server.unsuitable("it gave a document without _id"))?;
            snapshot.documents.insert(Key::new(number, id), Some(document.to_owned()));
            Ok(())
        });
        at = at.or(read_at.await?);
    }
    snapshot.at = at.unwrap_or(not_before);
    Ok(snapshot)
}

/// Runs a `find` to its end, and tells the cluster time at which it read, unless there is no such collection.
async fn find_all(
    server: &Server,
    database: &str,
    find: RawDocumentBuf,
    mut take: impl FnMut(&RawDocument) -> Result<(), Error>,
) -> Result<Option<Timestamp>, Error> {
    let database = server.client().database(database);
    let mut cursor = server.bounded("reading documents", database.run_raw_cursor_command(find).batch()).await?;
    let (mut at, mut found) = (None, false);
    while let Some(reply) = server.bounded("reading documents", async { cursor.next().await.transpose() }).await? {
        let whole = reply.as_raw_document();
        if let Ok(cursor) = whole.get_document("cursor")
            && let Ok(time) = cursor.get_timestamp("atClusterTime")
        {
            at = Some(time);
        }
        let documents =
            reply.doc_slices().map_err(|error| Error::of_driver(server.name(), "reading documents", &error))?;
        for document in documents {
            if let RawBsonRef::Document(document) = document.map_err(|error| server.malformed(error))? {
                take(document)?;
                found = true;
            }
        }
    }
    if found && at.is_none() { Err(no_read_time(server)) } else { Ok(at) }
}

/// The server read, but does not say of when.
pub(super) fn no_read_time(server: &Server) -> Error {
    server.unsuitable("it does not say at which cluster time it read (atClusterTime)")
}
