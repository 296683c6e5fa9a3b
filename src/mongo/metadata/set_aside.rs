//! Copies of versions of documents that a link deleted or replaced, for a person to restore: in a reconcile, in a
//! repair, in a decision about an unsettled document, or, at the hub, in a retry of a dead letter. A reconcile, for
//! example, deletes documents of watched zones that the hub does not have: either the hub deleted a document, or an
//! application wrote the document at the spoke while the spoke's change stream was lost.
//!
//! ```text
//! _id       document  { ns: string, document: any }: collection as `database.collection`, and `_id` of the document
//! at        date      time at which the copy was made, by the process's clock
//! reason    string    why the document was deleted or replaced
//! document  document  the whole document; absent if larger than 16,000,000 bytes
//! ```
//!
//! A reconcile and a repair write the copies with write concern majority, before the transaction that deletes the
//! originals. A decision and a retry write the copies in the same transaction. Every start of a link deletes copies
//! older than 30 days at the link's destination.
//!
//! Index: only `_id`. The delete by `at` scans the collection.

use std::time::Duration;

use bson::raw::{RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{DateTime, Document, doc, rawdoc};

use super::{SET_ASIDE, ago, delete_all, majority, raw};
use crate::mongo::error::Error;
use crate::mongo::server::Server;
use crate::rules::names::Namespace;

/// Age at which a copy is deleted: 30 days.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Size in bytes above which only the `_id` is kept. With the fields around it, a larger document could exceed the
/// server's limit of 16 MiB.
const LARGEST: usize = 16_000_000;

/// Most bytes of documents in one command, unless a single document has more. A line of 10 Mbit/s carries 15 MB in 12
/// s, well within [`CALL_LIMIT`](crate::mongo::server::CALL_LIMIT).
const COMMAND_BYTES: usize = 15_000_000;

/// The command that saves a copy of one document, with the reason, in a transaction.
pub(crate) fn keep_one(namespace: &Namespace, document: &RawDocument, reason: &str) -> Option<RawDocumentBuf> {
    let updates: RawArrayBuf = [update(namespace, document, reason)?].into_iter().collect();
    Some(rawdoc! { "update": SET_ASIDE, "updates": updates })
}

/// Saves copies of documents, with the reason, majority-committed.
///
/// # Errors
/// If the spoke refuses a document or does not answer. Some copies may be saved by then; a repeated call is safe.
pub(crate) async fn keep(
    spoke: &Server,
    namespace: &Namespace,
    documents: &[&RawDocument],
    reason: &str,
) -> Result<(), Error> {
    let mut waiting = documents;
    while !waiting.is_empty() {
        let mut bytes = 0;
        let fits = waiting.iter().take_while(|document| {
            bytes += document.as_bytes().len();
            bytes <= COMMAND_BYTES
        });
        let (now, later) = waiting.split_at(fits.count().max(1));
        waiting = later;
        let updates: RawArrayBuf = now.iter().filter_map(|document| update(namespace, document, reason)).collect();
        let command = rawdoc! { "update": SET_ASIDE, "updates": updates, "writeConcern": raw(&majority()) };
        let command = Document::try_from(command).map_err(|error| spoke.malformed(error))?;
        spoke.run("setting documents aside", &spoke.metadata(), command).await?;
    }
    Ok(())
}

fn update(namespace: &Namespace, document: &RawDocument, reason: &str) -> Option<RawDocumentBuf> {
    let id = document.get("_id").ok()??;
    let mut kept = rawdoc! { "at": DateTime::now(), "reason": reason };
    if document.as_bytes().len() <= LARGEST {
        kept.append(cstr!("document"), RawBsonRef::Document(document));
    }
    let query = rawdoc! { "_id": { "ns": namespace.to_string(), "document": id } };
    Some(rawdoc! { "q": query, "u": { "$set": kept }, "upsert": true })
}

/// Deletes copies older than 30 days.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn forget_old(server: &Server) -> Result<(), Error> {
    let delete = delete_all(SET_ASIDE, doc! { "at": { "$lt": ago(KEPT) } });
    server.run("deleting old documents that were set aside", &server.metadata(), delete).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::document_id;
    use super::super::saved::upserted;
    use super::*;
    use bson::raw::RawBson;

    #[test]
    fn a_document_is_kept_whole_unless_the_copy_could_exceed_the_servers_limit() {
        let namespace = Namespace { database: "app".to_owned(), collection: "orders".to_owned() };
        let kept = |document: &RawDocument| {
            upserted(&rawdoc! { "updates": [update(&namespace, document, "deleted").expect("it has an `_id`")] })
        };
        let small = rawdoc! { "_id": 7, "text": "a" };
        let saved = kept(&small);
        assert_eq!(document_id(&saved), Some(RawBson::Int32(7)));
        assert_eq!(saved.get_document("document").ok(), Document::try_from(small).ok().as_ref());
        let saved = kept(&rawdoc! { "_id": 7, "text": "a".repeat(LARGEST) });
        assert_eq!((document_id(&saved), saved.contains_key("document")), (Some(RawBson::Int32(7)), false));
    }
}
