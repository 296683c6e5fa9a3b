//! Dead letters: changes that the destination refuses. A dead letter keeps the change with the reason, while the link
//! continues with all other documents.
//!
//! ```text
//! _id                  document   { link: string, ns: string, document: any }: link, collection as
//!                                 `database.collection`, and `_id` of the document
//! zone                 string     zone that the link's spoke owns
//! reason               document   { code: int32, message: string }: the server's error
//! parked_at            date       time of the refusal, by the process's clock
//! is_fresh             bool       the change would have created the document: the destination never had it
//! is_unnamed           bool       `_id.document` only stands for the `_id`, which cannot be carried; else absent
//! event                document   refused change event, or { operationType: "copy" or "retry", … }; absent if larger
//!                                 than 8,000,000 bytes, or if the server refuses it even as bytes
//! event_omitted_bytes  int64      size of an event that is absent
//! cluster_time         timestamp  cluster time of the change at the source; absent for copies and retries
//! later_changes        int64      number of later changes of the document, which the link left out
//! last_change_at       date       time of the newest later change, by the server's clock
//! later_events         array      at the hub: the newest 20 events of later changes; of an event larger than 200,000
//!                                 bytes only `operationType`
//! ```
//!
//! A dropped letter leaves a mark in `dropped_letters`, under the same `_id`:
//!
//! ```text
//! is_fresh             bool       the destination never had the document
//! dropped_at           date       time of an operator's `drop`, by the process's clock
//! ```
//!
//! Kept at the destination, at most one for a document and a link.
//!
//! - The link writes a dead letter in a transaction of its own before its checkpoint passes the change, and counts
//!   later changes in the transactions of their batches. A refused retry overwrites the dead letter.
//! - The link deletes a dead letter after a retry that the destination takes. After an operator's `drop`,
//!   changes flow again, and the mark protects the document from being deleted or overwritten by inference, until a
//!   change of the document is taken.
//!
//! Index: only `_id`. The letters of a link and a collection follow each other, because `link` and `ns` come first.

use std::collections::HashSet;

use bson::raw::{RawBson, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{Bson, DateTime, Document, RawArrayBuf, Timestamp, doc, rawdoc};
use futures_util::StreamExt;

use super::by_document::{Kind, Pages, among, document_id, id};
use super::{DEAD_LETTERS, DROPPED_LETTERS};
use crate::mongo::error::Error;
use crate::mongo::read::Wanted;
use crate::mongo::server::Server;
use crate::mongo::words;
use crate::rules::key::Key;
use crate::rules::names::{LinkName, Namespace};
use crate::rules::opaque;

/// Size in bytes above which an event is left out of the dead letter. The source still has the document.
const LARGEST_EVENT: usize = 8_000_000;

/// Size in bytes above which the event of a later change is not kept.
const LARGEST_LATER_EVENT: usize = 200_000;

/// Newest events of later changes kept with a letter.
pub(crate) const LATER_EVENTS: usize = 20;

/// A refused change, to be saved.
#[derive(Debug)]
pub(crate) struct DeadLetter<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) id: RawBsonRef<'a>,
    pub(crate) code: i32,
    pub(crate) message: &'a str,
    /// The change event; for a copy, a document with the copied document as `fullDocument`. `None` for a retry, which
    /// keeps the event of the first refusal.
    pub(crate) event: Option<&'a RawDocumentBuf>,
    /// The cluster time of the change event; `None` for a copy.
    pub(crate) cluster_time: Option<Timestamp>,
    /// The `_id` only stands for another one.
    pub(crate) is_unnamed: bool,
}

/// How a letter keeps its event. Should a server refuse the event as it is, the next way is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// As it is, or as bytes if it is nested too deeply.
    AsItIs,
    InBytes,
    /// Only its size.
    Size,
}

impl Keeping {
    /// The way after this one, if this error is the server's refusal of the letter.
    pub(crate) fn after(self, error: &Error) -> Option<Self> {
        error.refusal()?;
        match self {
            Self::AsItIs => Some(Self::InBytes),
            Self::InBytes => Some(Self::Size),
            Self::Size => None,
        }
    }
}

/// The command that saves a letter.
pub(crate) fn park(link: &LinkName, letter: &DeadLetter<'_>, keeping: Keeping) -> RawDocumentBuf {
    let mut set = rawdoc! {
        "zone": link.zone.as_str(),
        "reason": { "code": letter.code, "message": letter.message },
        "parked_at": DateTime::now(),
    };
    if let Some(event) = letter.event {
        set.append(cstr!("is_fresh"), event.get_str("operationType").is_ok_and(is_fresh));
    }
    match letter.event {
        Some(event) if event.as_bytes().len() <= LARGEST_EVENT && keeping != Keeping::Size => {
            let in_bytes = || RawBson::Document(opaque::in_bytes(event));
            let kept = if keeping == Keeping::InBytes { in_bytes() } else { opaque::storable(event) };
            set.append(cstr!("event"), kept);
        }
        Some(event) => {
            let bytes = i64::try_from(event.as_bytes().len()).unwrap_or(i64::MAX);
            set.append(cstr!("event_omitted_bytes"), bytes);
        }
        None => {}
    }
    if letter.is_unnamed {
        set.append(cstr!("is_unnamed"), true);
    }
    if let Some(time) = letter.cluster_time {
        set.append(cstr!("cluster_time"), time);
    }
    rawdoc! {
        "update": DEAD_LETTERS,
        "updates": [{
            "q": id(Some(link), letter.namespace, letter.id),
            "u": { "$set": set, "$setOnInsert": { "later_changes": 0_i64 } },
            "upsert": true,
        }],
    }
}

/// Changes of a document held back by its dead letter.
pub(crate) struct Later<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) id: RawBsonRef<'a>,
    pub(crate) changes: i64,
    /// The change events to keep with the letter.
    pub(crate) events: Vec<RawDocumentBuf>,
}

/// The command that adds later changes to the dead letters of documents.
pub(crate) fn count_later(link: &LinkName, later: &[Later<'_>]) -> RawDocumentBuf {
    let mut updates = RawArrayBuf::new();
    for Later { namespace, id: document, changes, events } in later {
        let mut update = rawdoc! { "$inc": { "later_changes": *changes }, "$currentDate": { "last_change_at": true } };
        let mut kept = RawArrayBuf::new();
        for event in events {
            if event.as_bytes().len() <= LARGEST_LATER_EVENT {
                kept.push(opaque::storable(event));
            } else {
                kept.push(rawdoc! { "operationType": event.get_str("operationType").unwrap_or_default() });
            }
        }
        if !events.is_empty() {
            update.append(cstr!("$push"), rawdoc! { "later_events": { "$each": kept, "$slice": -i32::try_from(LATER_EVENTS).unwrap_or(i32::MAX) } });
        }
        updates.push(rawdoc! { "q": id(Some(link), namespace, *document), "u": update });
    }
    rawdoc! { "update": DEAD_LETTERS, "updates": updates }
}

pub(crate) fn remove(link: &LinkName, namespace: &Namespace, document: RawBsonRef<'_>) -> RawDocumentBuf {
    rawdoc! { "delete": DEAD_LETTERS, "deletes": [{ "q": id(Some(link), namespace, document), "limit": 1 }] }
}

/// The commands that replace a dead letter by the mark of a dropped one.
pub(crate) fn drop_letter(
    link: &LinkName,
    namespace: &Namespace,
    document: RawBsonRef<'_>,
    is_fresh: bool,
) -> [RawDocumentBuf; 2] {
    let mark = rawdoc! { "$set": { "is_fresh": is_fresh, "dropped_at": DateTime::now() } };
    let query = id(Some(link), namespace, document);
    let save = rawdoc! { "update": DROPPED_LETTERS, "updates": [{ "q": query, "u": mark, "upsert": true }] };
    [save, remove(link, namespace, document)]
}

/// The command that deletes the mark of a dropped letter.
pub(crate) fn remove_mark(link: &LinkName, namespace: &Namespace, document: RawBsonRef<'_>) -> RawDocumentBuf {
    rawdoc! { "delete": DROPPED_LETTERS, "deletes": [{ "q": id(Some(link), namespace, document), "limit": 1 }] }
}

/// A saved dead letter without its event.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) namespace: u16,
    pub(crate) id: RawBson,
    pub(crate) code: i32,
    pub(crate) message: String,
    pub(crate) parked_at: DateTime,
    pub(crate) later_changes: i64,
    /// The refused change was an insert or a copy, so the destination never had the document.
    pub(crate) is_fresh: bool,
    /// The newest later change has deleted the document at the source. Known only while the letter keeps later events,
    /// or while the link runs.
    pub(crate) is_deleted: bool,
    /// The `_id` only stands for another one, which cannot be carried.
    pub(crate) is_unnamed: bool,
}

/// True for a refused change, as an event, that would have created the document.
pub(crate) fn is_fresh(operation: &str) -> bool {
    matches!(operation, "insert" | "copy")
}

/// Open letters of a link, by document, a page at a time.
pub(crate) fn open<'s>(server: &'s Server, link: &'s LinkName) -> Pages<'s, Kept> {
    letters(DEAD_LETTERS).pages(server, Some(link))
}

/// The marks of a link's dropped letters, by document, a page at a time.
pub(crate) fn dropped<'s>(server: &'s Server, link: &'s LinkName) -> Pages<'s, Kept> {
    letters(DROPPED_LETTERS).pages(server, Some(link))
}

/// Documents with an open letter of the link, among these.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn open_among(server: &Server, link: &LinkName, wanted: &Wanted<'_>) -> Result<HashSet<Key>, Error> {
    among(server, DEAD_LETTERS, Some(link), wanted, &doc! {}).await
}

/// Documents with a dropped letter of the link, among these.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn dropped_among(
    server: &Server,
    link: &LinkName,
    wanted: &Wanted<'_>,
) -> Result<HashSet<Key>, Error> {
    among(server, DROPPED_LETTERS, Some(link), wanted, &doc! {}).await
}

/// Letters without their events.
fn letters(collection: &'static str) -> Kind<Kept> {
    let fields = doc! {
        "reason": 1, "parked_at": 1, "later_changes": 1, "is_fresh": 1, "is_unnamed": 1, "event.operationType": 1,
        "later_events.operationType": 1,
    };
    Kind { collection, fields, read }
}

const READING: &str = "reading a dead letter";

/// The events of a dead letter: the refused change, and later changes as far as the letter has them.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn events(
    server: &Server,
    link: &LinkName,
    namespace: &Namespace,
    document: RawBsonRef<'_>,
) -> Result<Vec<RawDocumentBuf>, Error> {
    let find = rawdoc! { "find": DEAD_LETTERS, "filter": id(Some(link), namespace, document), "singleBatch": true };
    // As bytes, because an event may hold text that is no UTF-8.
    let metadata = server.metadata();
    let mut cursor = server.bounded(READING, metadata.run_raw_cursor_command(find).batch()).await?;
    let reply = server.bounded(READING, async { cursor.next().await.transpose() }).await?;
    let Some(reply) = reply else { return Ok(Vec::new()) };
    let saved = reply.doc_slices().map_err(|error| Error::of_driver(server.name(), READING, &error))?;
    let saved = saved.get_document(0);
    let Ok(saved) = saved else { return Ok(Vec::new()) };
    let later = saved.get_array("later_events").ok().into_iter().flatten().flatten();
    let later = later.filter_map(|event| event.as_document().map(RawDocument::to_owned));
    Ok(saved.get_document("event").ok().map(RawDocument::to_owned).into_iter().chain(later).collect())
}

fn read(namespace: u16, saved: &Document) -> Option<(Key, Kept)> {
    let id = document_id(saved)?;
    let reason = saved.get_document("reason").ok();
    let kept = Kept {
        namespace,
        code: reason.and_then(|reason| reason.get_i32("code").ok()).unwrap_or(0),
        // Letters of 0.1.0 may quote values.
        message: words::of_command(reason.and_then(|reason| reason.get_str("message").ok()).unwrap_or_default()),
        parked_at: saved.get_datetime("parked_at").copied().unwrap_or(DateTime::MIN),
        later_changes: saved.get_i64("later_changes").unwrap_or(0),
        // Letters of 0.1.0 have no such field.
        is_fresh: saved.get_bool("is_fresh").unwrap_or_else(|_| {
            saved.get_document("event").is_ok_and(|event| event.get_str("operationType").is_ok_and(is_fresh))
        }),
        is_deleted: saved.get_array("later_events").is_ok_and(|later| {
            let newest = later.last().and_then(Bson::as_document);
            newest.is_some_and(|event| event.get_str("operationType").is_ok_and(|kind| kind == "delete"))
        }),
        is_unnamed: saved.get_bool("is_unnamed").unwrap_or(false),
        id,
    };
    Some((Key::new(namespace, kept.id.as_raw_bson_ref()), kept))
}

#[cfg(test)]
mod tests {
    use super::super::saved::{first, upserted};
    use super::*;
    use crate::rules::names::Zone;

    const ID: RawBsonRef<'_> = RawBsonRef::Int32(7);

    fn link() -> LinkName {
        LinkName::uplink(&Zone::new("DFW"))
    }

    fn namespace() -> Namespace {
        Namespace { database: "app".to_owned(), collection: "orders".to_owned() }
    }

    fn parked(event: &RawDocumentBuf) -> Document {
        let (namespace, message, cluster_time) = (namespace(), "no", Some(Timestamp { time: 5, increment: 6 }));
        upserted(&park(
            &link(),
            &DeadLetter {
                namespace: &namespace,
                id: ID,
                code: 121,
                message,
                event: Some(event),
                cluster_time,
                is_unnamed: false,
            },
            Keeping::AsItIs,
        ))
    }

    #[test]
    fn a_dead_letter_is_read_as_it_was_saved() {
        let saved = parked(&rawdoc! { "operationType": "insert" });
        let (key, letter) = read(3, &saved).expect("a dead letter");
        assert_eq!((key, letter.namespace, letter.id), (Key::new(3, ID), 3, RawBson::from(ID)));
        assert_eq!((letter.code, letter.message.as_str(), letter.later_changes), (121, "no", 0));
        assert_eq!(Some(&letter.parked_at), saved.get_datetime("parked_at").ok());
    }

    #[test]
    fn later_changes_and_the_removal_find_the_dead_letter() {
        let saved = parked(&rawdoc! { "operationType": "insert" });
        let counted = first(
            &count_later(&link(), &[Later { namespace: &namespace(), id: ID, changes: 2, events: Vec::new() }]),
            "updates",
        );
        let removed = first(&remove(&link(), &namespace(), ID), "deletes");
        for statement in [counted, removed] {
            let condition = statement.get_document("q").and_then(|condition| condition.get_document("_id"));
            assert_eq!(condition.ok(), saved.get_document("_id").ok());
        }
    }

    #[test]
    fn a_large_event_is_left_out() {
        let event = rawdoc! { "text": "a".repeat(LARGEST_EVENT) };
        let saved = parked(&event);
        assert_eq!(saved.get_i64("event_omitted_bytes").ok(), i64::try_from(event.as_bytes().len()).ok());
        assert!(!saved.contains_key("event"));
    }
}
