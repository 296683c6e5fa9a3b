//! Who runs a spoke. A lease lives as long as its holder is a [member](super::members), so it is written only when it
//! changes hands.
//!
//! ```text
//! _id       string  the zone
//! holder    string  the `_id` of the member; absent while nobody holds it
//! term      int64   grows with each change of the holder: the compare-and-swap
//! taken_at  date    time of the newest change, by the hub's clock
//! paused    bool    true if an operator has paused the spoke; outlives holders
//! ```
//!
//! Kept at the hub. A lease decides who *tries*: the checkpoint's own compare-and-swap decides whose transaction
//! commits, so a wrong lease costs time and never data.
//!
//! - A member takes a lease that has no living holder, and gives up a lease after the spoke's loops have ended.
//! - A lease that leaves all configurations keeps its document, without the pause.
//!
//! Index: only `_id`.

use std::collections::{BTreeMap, BTreeSet};

use bson::{Document, doc};

use super::{LEASES, all_of, majority};
use crate::mongo::error::{Error, codes};
use crate::mongo::server::Server;
use crate::rules::names::Zone;
use crate::rules::share::MemberId;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) holder: Option<MemberId>,
    pub(crate) term: i64,
    pub(crate) is_paused: bool,
}

/// All leases.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn all(hub: &Server) -> Result<BTreeMap<Zone, Lease>, Error> {
    Ok(all_of(hub, LEASES, doc! {}, doc! {}).await?.iter().filter_map(read).collect())
}

fn read(saved: &Document) -> Option<(Zone, Lease)> {
    let lease = Lease {
        holder: saved.get_str("holder").ok().map(str::to_owned),
        term: saved.get_i64("term").unwrap_or(0),
        is_paused: saved.get_bool("paused").unwrap_or(false),
    };
    Some((Zone::new(saved.get_str("_id").ok()?), lease))
}

/// Takes leases, each of which is as read before. Another member may be quicker: read the leases afterwards.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn take(
    hub: &Server,
    me: &str,
    zones: &BTreeSet<Zone>,
    known: &BTreeMap<Zone, Lease>,
) -> Result<(), Error> {
    let statement = |zone: &Zone| {
        let term = known.get(zone).map_or(0, |lease| lease.term);
        let take = doc! { "$set": { "holder": me }, "$inc": { "term": 1_i64 }, "$currentDate": { "taken_at": true } };
        // The insert of a lease that exists, with another term, is refused.
        doc! { "q": { "_id": zone.as_str(), "term": term }, "u": take, "upsert": term == 0 }
    };
    match update(hub, "taking leases", zones.iter().map(statement).collect()).await {
        Err(error) if error.code() == Some(codes::DUPLICATE_KEY) => Ok(()),
        done => done.map(drop),
    }
}

/// Gives up leases. `with_pause`: also the pause, because the zones have left the configuration.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn give(hub: &Server, me: &str, zones: &BTreeSet<Zone>, with_pause: bool) -> Result<(), Error> {
    let statement = |zone: &Zone| {
        let mut unset = doc! { "holder": "" };
        if with_pause {
            unset.insert("paused", "");
        }
        let give = doc! { "$unset": unset, "$inc": { "term": 1_i64 }, "$currentDate": { "taken_at": true } };
        doc! { "q": { "_id": zone.as_str(), "holder": me }, "u": give }
    };
    update(hub, "giving up leases", zones.iter().map(statement).collect()).await.map(drop)
}

/// Saves that an operator has paused or resumed the spoke. False if the member does not hold the lease.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn set_paused(hub: &Server, me: &str, zone: &Zone, is_paused: bool) -> Result<bool, Error> {
    let set = doc! { "$set": { "paused": is_paused } };
    let statement = doc! { "q": { "_id": zone.as_str(), "holder": me }, "u": set };
    Ok(update(hub, "saving a pause", vec![statement]).await? > 0)
}

/// Runs the statements in no order, and returns the number of leases that they found or made.
async fn update(hub: &Server, doing: &'static str, statements: Vec<Document>) -> Result<i32, Error> {
    if statements.is_empty() {
        return Ok(0);
    }
    let command = doc! { "update": LEASES, "updates": statements, "ordered": false, "writeConcern": majority() };
    let reply = hub.run(doing, &hub.metadata(), command).await?;
    Ok(reply.get_i32("n").unwrap_or(0))
}
