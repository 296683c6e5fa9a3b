//! The identity of a replica set: a random number, made once. Two addresses with one identity lead to the same replica
//! set. A replica set with another identity than before is another one: it was initiated anew, or the connection string
//! leads elsewhere.
//!
//! ```text
//! _id      string  `replica_set`
//! id       binary  random UUID
//! made_at  date    time at which it was made, by the process's clock
//! ```
//!
//! The first process to connect makes the identity, with write concern majority. Nothing changes or deletes it. A copy
//! of a server's data files or a dump of the metadata database has the identity of the original: a server that is set
//! up from the data of another one must lose the metadata database first.
//!
//! Index: only `_id`.

use bson::{DateTime, Uuid, doc};

use super::{IDENTITY, majority};
use crate::mongo::error::{Error, codes};
use crate::mongo::server::Server;

/// The identity of the replica set. Makes it if there is none.
///
/// # Errors
/// If the server does not answer, or the saved identity is damaged.
pub(crate) async fn of(server: &Server) -> Result<Uuid, Error> {
    let command = doc! {
        "findAndModify": IDENTITY,
        "query": { "_id": "replica_set" },
        "update": { "$setOnInsert": { "id": Uuid::new(), "made_at": DateTime::now() } },
        "new": true,
        "upsert": true,
        "writeConcern": majority(),
    };
    let (doing, metadata) = ("reading the identity of the replica set", server.metadata());
    // Another process may make the identity at the same moment.
    let reply = match server.run(doing, &metadata, command.clone()).await {
        Err(error) if error.code() == Some(codes::DUPLICATE_KEY) => server.run(doing, &metadata, command).await?,
        reply => reply?,
    };
    let saved = reply.get_document("value").ok().and_then(|saved| match saved.get("id") {
        Some(bson::Bson::Binary(id)) => id.to_uuid().ok(),
        _ => None,
    });
    let damaged = "its identity is damaged: delete the document in the metadata collection identity";
    saved.ok_or_else(|| server.unsuitable(damaged))
}
