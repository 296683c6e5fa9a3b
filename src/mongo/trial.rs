//! Tries the writes that links make, in a transaction that is aborted: a missing privilege is better found by `check`
//! than by the first change.

use bson::oid::ObjectId;
use bson::rawdoc;

use super::error::{Error, codes};
use super::metadata;
use super::server::Server;
use super::transaction::{self, Transaction};

/// An action that the server does not allow.
pub(crate) struct Missing {
    /// The name of the action in a role, such as `insert`.
    pub(crate) action: &'static str,
    pub(crate) database: String,
    pub(crate) collection: String,
}

/// Tries to insert, update and remove a document in every synced collection and in our own.
///
/// # Errors
/// If the server does not answer, or has no transactions.
pub(crate) async fn writes(server: &Server) -> Result<Vec<Missing>, Error> {
    let mut session = server.bounded("starting a session", async { server.client().start_session().await }).await?;
    let mut missing = Vec::new();
    let metadata = server.metadata();
    let synced =
        server.namespaces().iter().map(|namespace| (namespace.database.as_str(), namespace.collection.as_str()));
    for (database, collection) in synced.chain([(metadata.name(), metadata::TRIED)]) {
        let id = rawdoc! { "_id": ObjectId::new() };
        let update = rawdoc! { "q": id.clone(), "u": { "$set": { "n": 1 } } };
        let tries = [
            ("insert", rawdoc! { "insert": collection, "documents": [id.clone()] }),
            ("update", rawdoc! { "update": collection, "updates": [update] }),
            ("remove", rawdoc! { "delete": collection, "deletes": [{ "q": id, "limit": 1 }] }),
        ];
        // Each in a transaction of its own, because an error ends a transaction.
        for (action, command) in tries {
            let mut open = Transaction::start(server, &mut session).await?;
            let tried = open.write("trying a write", database, command, |_| None).await;
            transaction::abort(server, &mut session).await;
            // A validator may refuse a document without fields: the link has no such document.
            match tried {
                Err(error) if error.code() == Some(codes::UNAUTHORIZED) => {
                    missing.push(Missing { action, database: database.to_owned(), collection: collection.to_owned() });
                }
                Err(error) if error.code().is_none() && !matches!(error, Error::Refused { .. }) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(missing)
}
