//! The version of the metadata at the hub, so that an old program does not work on what it cannot read.
//!
//! ```text
//! _id      string  always `format`
//! version  int64   the newest version that a program has written
//! ```
//!
//! Kept at the hub, in the collection of the [identity](super::identity). Without the document the metadata is of
//! version 1, which 0.1.0 wrote. A program reads its own version and the one before.
//!
//! Index: only `_id`.

use bson::doc;

use super::{IDENTITY, majority};
use crate::mongo::error::{Error, codes};
use crate::mongo::server::{Server, first_batch};

/// The version of this program. Version 2 adds members, leases, wishes and identities.
const VERSION: i64 = 2;

/// Checks that the program can read the metadata, and notes its version.
///
/// # Errors
/// If a newer program has written the metadata, or the server does not answer.
pub(crate) async fn check(hub: &Server) -> Result<(), Error> {
    let doing = "reading the version of the metadata";
    let find = doc! {
        "find": IDENTITY, "filter": { "_id": "format" }, "limit": 1, "readConcern": { "level": "majority" },
    };
    let reply = hub.run(doing, &hub.metadata(), find).await?;
    let saved = first_batch(&reply).next().and_then(|saved| saved.get_i64("version").ok()).unwrap_or(1);
    if saved > VERSION {
        return Err(hub.unsuitable(&format!(
            "its metadata is of version {saved}, and this program reads version {VERSION} at most: run the newer \
             program on every machine"
        )));
    }
    if saved == VERSION {
        return Ok(());
    }
    let note = doc! {
        "update": IDENTITY, "writeConcern": majority(),
        "updates": [{ "q": { "_id": "format" }, "u": { "$max": { "version": VERSION } }, "upsert": true }],
    };
    match hub.run(doing, &hub.metadata(), note).await {
        // Another member notes it at the same moment.
        Err(error) if error.code() == Some(codes::DUPLICATE_KEY) => Ok(()),
        noted => noted.map(drop),
    }
}
