//! A counter whose only purpose is to advance the server's cluster time.
//!
//! ```text
//! _id  string  always `tick`
//! n    int64   number of ticks so far
//! ```
//!
//! [`Server::tick`] writes the document with write concern majority: a link while a copy waits for the opposite link, `verify`
//! while it waits for both links, and `spokesync check` as a test of the privilege. Nothing deletes it. Index: only `_id`.

use bson::{Timestamp, doc};

use super::{TICKS, majority};
use crate::mongo::error::Error;
use crate::mongo::server::Server;

impl Server {
    /// Advances the cluster time by one write, and returns the new time. A change stream of the server that has reached that
    /// time has brought all earlier events, even if no application writes.
    ///
    /// # Errors
    /// If the server does not answer.
    pub(crate) async fn tick(&self) -> Result<Timestamp, Error> {
        let tick = doc! {
            "update": TICKS, "updates": [{ "q": { "_id": "tick" }, "u": { "$inc": { "n": 1_i64 } }, "upsert": true }],
            "writeConcern": majority(),
        };
        let reply = self.run("advancing the cluster time", &self.metadata(), tick).await?;
        self.operation_time(&reply)
    }
}
