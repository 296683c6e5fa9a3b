//! Reads documents as of one cluster time.
//!
//! A read with `readConcern: snapshot` accepts a cluster time, and its reply names the time of the read
//! (`atClusterTime`, MongoDB 5.0 and later). A majority read names only an upper bound of its time. The exact time is
//! needed to leave out change events that a read already includes.

use std::collections::HashMap;

use bson::raw::{CStr, RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{Timestamp, rawdoc};
use futures_util::StreamExt;

use super::error::{Error, codes};
use super::server::Server;
use crate::rules::key::Key;

/// Documents read at the same cluster time.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Cluster time of the read.
    pub(crate) at: Timestamp,
    /// Documents by key; `None` for a missing document.
    pub(crate) documents: HashMap<Key, Option<RawDocumentBuf>>,
}

/// Documents to read: `_id` by key.
pub(crate) type Wanted<'a> = HashMap<Key, RawBsonRef<'a>>;

/// Bytes of documents that are in memory together, at most; or one document.
pub(crate) const FITTING_BYTES: usize = 32_000_000;

/// Reads documents as of `time`, or the present documents if the server has no snapshot of that time. A server keeps
/// snapshots for five minutes (`minSnapshotHistoryWindowInSeconds`), and has none from before the collection was
/// created.
///
/// # Errors
/// [`Error::TooMuch`] if the documents do not fit into memory together; otherwise if the server does not answer.
pub(crate) async fn fitting_documents_at(
    server: &Server,
    wanted: &Wanted<'_>,
    time: Timestamp,
) -> Result<Snapshot, Error> {
    match find_documents(server, wanted, None, When::At(time), FITTING_BYTES).await {
        Err(error) if matches!(error.code(), Some(codes::SNAPSHOT_TOO_OLD | codes::SNAPSHOT_UNAVAILABLE)) => {
            fitting_documents(server, wanted, When::NotBefore(time)).await
        }
        result => result,
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    At(Timestamp),
    /// At the present, or at any time not before this one.
    NotBefore(Timestamp),
}

/// Reads documents, all at the same cluster time. If `field` is given, reads only that field and `_id`.
pub(crate) async fn documents(
    server: &Server,
    wanted: &Wanted<'_>,
    field: Option<&CStr>,
    when: When,
) -> Result<Snapshot, Error> {
    find_documents(server, wanted, field, when, usize::MAX).await
}

/// As [`documents`], if the documents fit into memory together.
///
/// # Errors
/// [`Error::TooMuch`] if they do not; other errors as [`documents`].
pub(crate) async fn fitting_documents(server: &Server, wanted: &Wanted<'_>, when: When) -> Result<Snapshot, Error> {
    find_documents(server, wanted, None, when, FITTING_BYTES).await
}

async fn find_documents(
    server: &Server,
    wanted: &Wanted<'_>,
    field: Option<&CStr>,
    when: When,
    most_bytes: usize,
) -> Result<Snapshot, Error> {
    let (mut read, mut bytes) = (0, 0);
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
        // The first collection's read sets the cluster time for all others.
        find.append(
            cstr!("readConcern"),
            match at {
                Some(at) => rawdoc! { "level": "snapshot", "atClusterTime": RawBsonRef::Timestamp(at) },
                None => rawdoc! { "level": "snapshot", "afterClusterTime": RawBsonRef::Timestamp(not_before) },
            },
        );
        let read_at = find_all(server, &namespace.database, find, |document| {
            let id = document.get("_id").map_err(|error| server.malformed(error))?;
            let id = id.ok_or_else(|| server.unsuitable("it returned a document without _id"))?;
            bytes += document.as_bytes().len();
            if bytes > most_bytes && read > 0 {
                return Err(Error::TooMuch { server: server.name().clone(), fitting: read });
            }
            read += 1;
            snapshot.documents.insert(Key::new(number, id), Some(document.to_owned()));
            Ok(())
        });
        at = at.or(read_at.await?);
    }
    snapshot.at = at.unwrap_or(not_before);
    Ok(snapshot)
}

/// Runs a `find` to its end and returns the cluster time of the read, or `None` if the collection does not exist.
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

/// The error for a reply without the cluster time of its read.
pub(super) fn no_read_time(server: &Server) -> Error {
    server.unsuitable("its reply does not name the cluster time of the read (atClusterTime)")
}
