//! Documents that a reconcile takes for deleted at the hub and deletes at a spoke. That is a conclusion, not an event: an application
//! may have written one while the spoke's change stream was lost. So each is kept for some weeks in `_syncmetadata.set_aside` of the
//! spoke, from where a person can take it back.

use std::time::Duration;

use bson::raw::{RawArrayBuf, RawBsonRef, RawDocument};
use bson::{DateTime, Document, doc, rawdoc};

use crate::mongo::error::Error;
use crate::mongo::server::{Server, majority};
use crate::rules::names::Namespace;

/// How long a document is kept: 30 days.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);

/// A document that leaves no room for what is said about it is kept without its fields: only its `_id`.
const LARGEST: usize = 16_000_000;

/// A command holds at most so many bytes of documents.
const COMMAND_BYTES: usize = 15_000_000;

/// Keeps these documents, majority-committed.
///
/// # Errors
/// If the spoke does not take them; they may then be kept in part, and it can be done again.
pub(crate) async fn keep(spoke: &Server, namespace: &Namespace, documents: &[&RawDocument]) -> Result<(), Error> {
    let mut waiting = documents;
    while !waiting.is_empty() {
        let mut bytes = 0;
        let fits = waiting.iter().take_while(|document| {
            bytes += document.as_bytes().len();
            bytes <= COMMAND_BYTES
        });
        let (now, later) = waiting.split_at(fits.count().max(1));
        waiting = later;
        let updates: RawArrayBuf = now.iter().filter_map(|document| update(namespace, document)).collect();
        let command = rawdoc! { "update": "set_aside", "updates": updates, "writeConcern": crate::mongo::server::raw(&majority()) };
        let command = Document::try_from(command).map_err(|error| spoke.malformed(error))?;
        spoke.run("setting documents aside", &spoke.metadata(), command).await?;
    }
    Ok(())
}

fn update(namespace: &Namespace, document: &RawDocument) -> Option<bson::RawDocumentBuf> {
    let id = document.get("_id").ok()??;
    let mut kept = rawdoc! { "at": DateTime::now() };
    if document.as_bytes().len() <= LARGEST {
        kept.append(bson::raw::cstr!("document"), RawBsonRef::Document(document));
    }
    let query = rawdoc! { "_id": { "ns": namespace.to_string(), "document": id } };
    Some(rawdoc! { "q": query, "u": { "$set": kept }, "upsert": true })
}

/// Forgets what was set aside long ago.
///
/// # Errors
/// If the spoke does not answer.
pub(crate) async fn forget_old(spoke: &Server) -> Result<(), Error> {
    let kept = i64::try_from(KEPT.as_millis()).unwrap_or(i64::MAX);
    let long_ago = DateTime::from_millis(DateTime::now().timestamp_millis().saturating_sub(kept));
    let forget = doc! { "delete": "set_aside", "deletes": [{ "q": { "at": { "$lt": long_ago } }, "limit": 0 }] };
    spoke.run("forgetting what was set aside", &spoke.metadata(), forget).await.map(drop)
}
