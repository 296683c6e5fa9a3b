//! What an operator has asked one member of the cluster to do to a spoke that another member runs.
//!
//! ```text
//! _id      string  random
//! zone     string  the spoke
//! action   string  `pause`, `resume`, `restart`, `resync`, or `retry` and `drop` for dead letters
//! ids      string  for dead letters: the chosen `_id`s as a JSON array; absent: all
//! made_at  date    time of the wish, by the hub's clock
//! answer   string  absent until the holder has answered: empty if carried out, or the reason why not
//! ```
//!
//! Kept at the hub. The member that was asked deletes the wish after the answer. Wishes older than a minute are deleted
//! by the next member that makes one.
//!
//! Index: only `_id`.

use bson::{Document, doc};

use super::{WISHES, all_of, delete_all, majority};
use crate::mongo::error::Error;
use crate::mongo::server::{Server, first_batch};

/// Time for which somebody waits for an answer, in milliseconds.
const FRESH_MILLISECONDS: i64 = 10_000;

/// Time after which a wish without an answer is of no use any more, in milliseconds.
const STALE_MILLISECONDS: i64 = 60_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) id: String,
    pub(crate) zone: String,
    pub(crate) action: String,
    pub(crate) ids: Option<String>,
}

/// Saves a wish for its holder, and forgets old ones.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn make(hub: &Server, wish: &Wish) -> Result<(), Error> {
    let literal = |value: &str| doc! { "$literal": value };
    let mut set = doc! { "zone": literal(&wish.zone), "action": literal(&wish.action), "made_at": "$$NOW" };
    if let Some(ids) = &wish.ids {
        set.insert("ids", literal(ids));
    }
    let make = doc! {
        "update": WISHES, "updates": [{ "q": { "_id": &wish.id }, "u": [{ "$set": set }], "upsert": true }],
        "writeConcern": majority(),
    };
    hub.run("passing a wish on", &hub.metadata(), make).await?;
    let is_old = doc! { "$lt": ["$made_at", { "$subtract": ["$$NOW", STALE_MILLISECONDS] }] };
    hub.run("forgetting old wishes", &hub.metadata(), delete_all(WISHES, doc! { "$expr": is_old })).await.map(drop)
}

/// The wishes without an answer, in no particular order.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn open(hub: &Server) -> Result<Vec<Wish>, Error> {
    // Whoever has made an older one does not wait any more.
    let is_fresh = doc! { "$gt": ["$made_at", { "$subtract": ["$$NOW", FRESH_MILLISECONDS] }] };
    let open = doc! { "answer": { "$exists": false }, "$expr": is_fresh };
    let open = all_of(hub, WISHES, open, doc! {}).await?;
    Ok(open.iter().filter_map(read).collect())
}

fn read(saved: &Document) -> Option<Wish> {
    let text = |field: &str| saved.get_str(field).ok().map(str::to_owned);
    Some(Wish { id: text("_id")?, zone: text("zone")?, action: text("action")?, ids: text("ids") })
}

/// Saves the holder's answer: empty if the wish is carried out.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn answer(hub: &Server, id: &str, answer: &str) -> Result<(), Error> {
    let statement = doc! { "q": { "_id": id }, "u": { "$set": { "answer": answer } } };
    let command = doc! { "update": WISHES, "updates": [statement], "writeConcern": majority() };
    hub.run("answering a wish", &hub.metadata(), command).await.map(drop)
}

/// The holder's answer, if there is one.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn answered(hub: &Server, id: &str) -> Result<Option<String>, Error> {
    let find = doc! { "find": WISHES, "filter": { "_id": id }, "limit": 1, "readConcern": { "level": "majority" } };
    let reply = hub.run("waiting for the answer to a wish", &hub.metadata(), find).await?;
    Ok(first_batch(&reply).next().and_then(|saved| saved.get_str("answer").ok()).map(str::to_owned))
}

/// Deletes a wish, answered or given up.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn forget(hub: &Server, id: &str) -> Result<(), Error> {
    hub.run("forgetting a wish", &hub.metadata(), delete_all(WISHES, doc! { "_id": id })).await.map(drop)
}
