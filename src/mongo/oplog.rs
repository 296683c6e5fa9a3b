//! The oplog window: the time span in which a change stream of the server can start.

use bson::{Timestamp, doc};

use super::error::Error;
use super::server::{Server, first_batch};
use crate::rules::standstill::Writes;

/// The span of the operations in an oplog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) earliest: Timestamp,
    pub(crate) latest: Timestamp,
}

/// Reads the oplog window: from `serverStatus`, or where that lacks the oplog, as on small Atlas clusters, from the
/// oplog itself. `None` if the user may read neither.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn window(server: &Server) -> Result<Option<Window>, Error> {
    match reported(server).await? {
        Some(window) => Ok(Some(window)),
        None => read(server).await,
    }
}

/// The sections of `serverStatus` that every server adds unless told otherwise, half of its work and of the reply.
const UNNEEDED: [&str; 20] = [
    "asserts",
    "catalogStats",
    "connections",
    "electionMetrics",
    "extra_info",
    "flowControl",
    "globalLock",
    "indexStats",
    "locks",
    "mem",
    "metrics",
    "network",
    "opLatencies",
    "opcounters",
    "readConcernCounters",
    "repl",
    "security",
    "tcmalloc",
    "transactions",
    "wiredTiger",
];

async fn reported(server: &Server) -> Result<Option<Window>, Error> {
    let mut command = doc! { "serverStatus": 1, "oplog": 1 };
    command.extend(UNNEEDED.map(|section| (section.to_owned(), bson::Bson::Int32(0))));
    let reply = match server.run("reading the oplog window", &server.client().database("admin"), command).await {
        Err(error) if error.code().is_some() => return Ok(None),
        reply => reply?,
    };
    let oplog = reply.get_document("oplog").ok();
    let time = |name: &str| oplog.and_then(|oplog| oplog.get_timestamp(name).ok());
    Ok(time("earliestOptime").zip(time("latestOptime")).map(|(earliest, latest)| Window { earliest, latest }))
}

/// Reads the first and the last operation of the oplog.
async fn read(server: &Server) -> Result<Option<Window>, Error> {
    let mut times = Vec::new();
    for direction in [1, -1] {
        let find = doc! {
            "find": "oplog.rs", "sort": { "$natural": direction }, "limit": 1, "singleBatch": true,
            "projection": { "ts": 1 },
        };
        let reply = match server.run("reading the oplog window", &server.client().database("local"), find).await {
            Ok(reply) => reply,
            // Without the privilege, or in a database that the provider hides.
            Err(error) if error.code().is_some() => return Ok(None),
            Err(error) => return Err(error),
        };
        times.extend(first_batch(&reply).filter_map(|operation| operation.get_timestamp("ts").ok()));
    }
    Ok(match times[..] {
        [earliest, latest] => Some(Window { earliest, latest }),
        _ => None,
    })
}

/// The newest writes of the replica set, as the primary knows them. `None` if the reply does not say.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn writes(server: &Server) -> Result<Option<Writes>, Error> {
    let reply = server.hello().await?;
    let time = |name: &str| reply.get_document("lastWrite").ok()?.get_document(name).ok()?.get_timestamp("ts").ok();
    let (newest, confirmed) = (time("opTime"), time("majorityOpTime"));
    Ok(newest.zip(confirmed).map(|(newest, confirmed)| Writes { newest, confirmed }))
}
