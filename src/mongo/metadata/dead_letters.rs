//! Dead letters: changes that the destination refuses, kept with their reason, out of the way of the others.
//!
//! There is at most one for a document and a link, in `_syncmetadata.dead_letters` of the destination. It is written in a
//! transaction with the checkpoint that goes past the change; later changes of the document are counted in it.

use std::collections::{HashMap, HashSet};

use bson::raw::{RawBson, RawBsonRef, RawDocumentBuf, cstr};
use bson::{DateTime, RawArrayBuf, Timestamp, doc, rawdoc};

use crate::mongo::error::Error;
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::names::{Link, Namespace};

/// A change event larger than this is kept without its document, which the source still has.
const LARGEST_EVENT: usize = 8_000_000;

/// A refused change.
#[derive(Debug)]
pub(crate) struct DeadLetter<'a> {
    /// The document's collection.
    pub(crate) namespace: &'a Namespace,
    /// The document's `_id`.
    pub(crate) id: RawBsonRef<'a>,
    /// The server's error code.
    pub(crate) code: i32,
    /// The server's words.
    pub(crate) message: &'a str,
    /// The change event, or the document of a copy.
    pub(crate) event: &'a RawDocumentBuf,
    /// The source's time of the change, if it was one.
    pub(crate) cluster_time: Option<Timestamp>,
}

/// The statement that parks a change.
pub(crate) fn park(link: &Link, letter: &DeadLetter<'_>) -> RawDocumentBuf {
    let mut set = rawdoc! {
        "zone": link.zone.as_str(),
        "reason": { "code": letter.code, "message": letter.message },
        "parked_at": bson::DateTime::now(),
    };
    if letter.event.as_bytes().len() <= LARGEST_EVENT {
        set.append(cstr!("event"), letter.event);
    } else {
        set.append(cstr!("event_omitted_bytes"), i64::try_from(letter.event.as_bytes().len()).unwrap_or(i64::MAX));
    }
    if let Some(time) = letter.cluster_time {
        set.append(cstr!("cluster_time"), time);
    }
    rawdoc! {
        "update": "dead_letters",
        "updates": [{
            "q": id(link, letter.namespace, letter.id),
            "u": { "$set": set, "$setOnInsert": { "later_changes": 0_i64 } },
            "upsert": true,
        }],
    }
}

/// The statement that counts later changes of parked documents, as pairs of a namespace and an `_id` with their number.
pub(crate) fn count_later(link: &Link, later: &[(&Namespace, RawBsonRef<'_>, i64)]) -> RawDocumentBuf {
    let mut updates = RawArrayBuf::new();
    for (namespace, document, changes) in later {
        updates.push(rawdoc! {
            "q": id(link, namespace, *document),
            "u": { "$inc": { "later_changes": *changes }, "$currentDate": { "last_change_at": true } },
        });
    }
    rawdoc! { "update": "dead_letters", "updates": updates }
}

/// The statement that takes a dead letter away.
pub(crate) fn remove(link: &Link, namespace: &Namespace, document: RawBsonRef<'_>) -> RawDocumentBuf {
    rawdoc! { "delete": "dead_letters", "deletes": [{ "q": id(link, namespace, document), "limit": 1 }] }
}

/// A dead letter as it is kept, without the event.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// The number of the document's collection.
    pub(crate) namespace: u16,
    /// The document's `_id`.
    pub(crate) id: RawBson,
    /// The server's error code.
    pub(crate) code: i32,
    /// The server's words.
    pub(crate) message: String,
    /// When it was parked.
    pub(crate) parked_at: DateTime,
    /// How many later changes of the document wait with it.
    pub(crate) later_changes: i64,
}

/// The dead letters of a link, by document.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn kept(server: &Server, link: &Link) -> Result<HashMap<Key, Kept>, Error> {
    let mut letters = HashMap::new();
    for (number, namespace) in (0u16..).zip(server.namespaces()) {
        let filter = doc! { "_id.link": link.to_string(), "_id.ns": namespace.to_string() };
        let saved = server.all_of("dead_letters", filter, doc! { "event": 0 }).await?;
        letters.extend(saved.iter().filter_map(|saved| read(number, saved)));
    }
    Ok(letters)
}

/// The documents of a link that have a dead letter.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn parked(server: &Server, link: &Link) -> Result<HashSet<Key>, Error> {
    Ok(kept(server, link).await?.into_keys().collect())
}

fn read(namespace: u16, saved: &bson::Document) -> Option<(Key, Kept)> {
    let raw = crate::mongo::server::raw(saved);
    let id = RawBson::from(raw.get_document("_id").ok()?.get("document").ok()??);
    let reason = saved.get_document("reason").ok();
    let kept = Kept {
        namespace,
        code: reason.and_then(|reason| reason.get_i32("code").ok()).unwrap_or(0),
        message: reason.and_then(|reason| reason.get_str("message").ok()).unwrap_or_default().to_owned(),
        parked_at: saved.get_datetime("parked_at").copied().unwrap_or(DateTime::MIN),
        later_changes: saved.get_i64("later_changes").unwrap_or(0),
        id,
    };
    Some((Key::new(namespace, kept.id.as_raw_bson_ref()), kept))
}

fn id(link: &Link, namespace: &Namespace, document: RawBsonRef<'_>) -> RawDocumentBuf {
    rawdoc! { "_id": { "link": link.to_string(), "ns": namespace.to_string(), "document": document } }
}
