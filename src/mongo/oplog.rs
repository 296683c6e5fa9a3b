//! How far back a server's change streams can begin: its oplog window.

use bson::{Timestamp, doc};

use super::error::{Error, codes};
use super::server::Server;

/// What the oplog holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The oldest operation in it.
    pub(crate) earliest: Timestamp,
    /// The newest one.
    pub(crate) latest: Timestamp,
}

/// Asks for the oplog window. `None` if the user may not run `serverStatus`.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn window(server: &Server) -> Result<Option<Window>, Error> {
    let command = doc! { "serverStatus": 1, "oplog": 1, "metrics": 0, "wiredTiger": 0, "tcmalloc": 0, "locks": 0 };
    let reply = match server.run("asking for its oplog window", &server.client().database("admin"), command).await {
        Err(error) if error.code() == Some(codes::UNAUTHORIZED) => return Ok(None),
        reply => reply?,
    };
    let oplog = reply.get_document("oplog").ok();
    let time = |name: &str| oplog.and_then(|oplog| oplog.get_timestamp(name).ok());
    Ok(time("earliestOptime").zip(time("latestOptime")).map(|(earliest, latest)| Window { earliest, latest }))
}
