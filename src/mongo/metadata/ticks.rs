//! A counter. Writes to the counter advance the server's cluster time.
//!
//! ```text
//! _id  string  always `tick`
//! n    int64   number of ticks so far
//! ```
//!
//! [`Server::tick`] writes the document with write concern majority. A copy ticks before a wait for the opposite link,
//! `verify` before a wait for both links, and `spokesync check` as a test of the privileges. Nothing deletes the
//! document.
//!
//! Index: only `_id`.

use bson::{Timestamp, doc};

use super::{TICKS, majority};
use crate::mongo::error::Error;
use crate::mongo::server::Server;

impl Server {
    /// Advances the cluster time by a write, and returns the new time. Once a change stream of the server has reached
    /// the new time, all earlier events are known, even on a quiet server. Streams of this process hurry to reach it.
    pub(crate) async fn tick(&self) -> Result<Timestamp, Error> {
        let tick = doc! {
            "update": TICKS, "updates": [{ "q": { "_id": "tick" }, "u": { "$inc": { "n": 1_i64 } }, "upsert": true }],
            "writeConcern": majority(),
        };
        let reply = self.run("advancing the cluster time", &self.metadata(), tick).await?;
        self.hasten();
        self.operation_time(&reply)
    }
}
