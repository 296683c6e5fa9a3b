//! Documents that live at a spoke in a zone that the spoke does not own: applications wrote them there, they stay, and nothing
//! that the hub lacks may delete them. Registered at the spoke, in `_syncmetadata.foreign`.

use std::collections::HashMap;

use bson::raw::{RawArrayBuf, RawBson, RawBsonRef, RawDocumentBuf};
use bson::{doc, rawdoc};

use crate::mongo::error::Error;
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::names::Namespace;

/// A statement that registers these documents, given by namespace and `_id`.
pub(crate) fn register(documents: &[(&Namespace, RawBsonRef<'_>)]) -> RawDocumentBuf {
    let mut updates = RawArrayBuf::new();
    for (namespace, document) in documents {
        updates.push(rawdoc! {
            "q": id(namespace, *document),
            "u": { "$setOnInsert": { "seen_at": bson::DateTime::now() } },
            "upsert": true,
        });
    }
    rawdoc! { "update": "foreign", "updates": updates }
}

/// A statement that takes these documents out of the register.
pub(crate) fn forget(documents: &[(&Namespace, RawBsonRef<'_>)]) -> RawDocumentBuf {
    let mut deletes = RawArrayBuf::new();
    for (namespace, document) in documents {
        deletes.push(rawdoc! { "q": id(namespace, *document), "limit": 1 });
    }
    rawdoc! { "delete": "foreign", "deletes": deletes }
}

/// All documents that are registered.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn registered(server: &Server) -> Result<HashMap<Key, RawBson>, Error> {
    let mut found = HashMap::new();
    for (number, namespace) in (0u16..).zip(server.namespaces()) {
        let filter = doc! { "_id.ns": namespace.to_string() };
        for saved in server.all_of("foreign", filter, doc! { "_id": 1 }).await? {
            let saved = crate::mongo::server::raw(&saved);
            let id = saved.get_document("_id").ok().and_then(|id| id.get("document").ok().flatten());
            found.extend(id.map(|id| (Key::new(number, id), RawBson::from(id))));
        }
    }
    Ok(found)
}

/// Runs such a statement by itself.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn run(server: &Server, statement: &RawDocumentBuf) -> Result<(), Error> {
    let mut command = bson::Document::try_from(statement).map_err(|error| server.malformed(error))?;
    command.insert("writeConcern", crate::mongo::server::majority());
    server.run("registering foreign documents", &server.metadata(), command).await.map(drop)
}

fn id(namespace: &Namespace, document: RawBsonRef<'_>) -> RawDocumentBuf {
    rawdoc! { "_id": { "ns": namespace.to_string(), "document": document } }
}
