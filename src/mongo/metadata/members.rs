//! The processes of the cluster. A member lives as long as its document: whoever removes the document has declared the
//! member dead, and all its leases are free from then on.
//!
//! ```text
//! _id         string  random; new each time the process joins
//! host        string  name of the host
//! pid         int64   process id
//! birth       string  tells whether a process of this machine has ended, see [`Card::birth`]
//! version     string  version of the program
//! http        string  address of the HTTP interface
//! config      string  hash of the configuration, as far as the sync depends on it
//! zones       array   zones of the spokes in the process's configuration
//! lease       int64   `cluster.lease_seconds` in milliseconds; the heartbeat may be three quarters as old
//! started_at  date    time of joining
//! heartbeat   date    time of the newest sign of life
//! leaving     bool    true while the process gives up all spokes before an end
//! changes     int64   grows with each change of leases and wishes by the process, so that the others look
//! spokes      array   { zone, state, lag, comparing } of each spoke of the process
//! ```
//!
//! Kept at the hub. All times are the hub's (`$$NOW`), so the clocks of the processes do not matter.
//!
//! - A process joins with a new `_id`, and beats several times in the time of a lease. A beat that finds no document
//!   tells a process that it was declared dead.
//! - A process that ends deletes its document. Any other member deletes it if the heartbeat is too old.
//!
//! Index: only `_id`.

use std::collections::BTreeSet;
use std::time::Duration;

use bson::{Bson, Document, doc};

use super::{MEMBERS, majority};
use crate::mongo::error::Error;
use crate::mongo::server::{Server, first_batch};
use crate::rules::names::Zone;
use crate::rules::share::MemberId;

/// What a process says of itself when it joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) host: String,
    pub(crate) pid: i64,
    /// Names the boot of the machine, the namespace of process ids, the process id and the time of its start. A process
    /// that finds its own boot and namespace here can look whether that process has ended.
    pub(crate) birth: String,
    pub(crate) version: String,
    pub(crate) http: String,
    pub(crate) config: String,
    pub(crate) zones: BTreeSet<Zone>,
    /// The time of a lease. Members may be configured with different ones.
    pub(crate) lease: Duration,
}

impl Card {
    /// Names the process for people and in checkpoints.
    pub(crate) fn process(&self) -> String {
        format!("{} process {}", self.host, self.pid)
    }
}

/// A member as read at the hub.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Saved {
    pub(crate) id: MemberId,
    pub(crate) card: Card,
    /// Time since the newest heartbeat, by the hub's clock.
    pub(crate) age: Duration,
    /// Time since it joined, by the hub's clock.
    pub(crate) since: Duration,
    pub(crate) leaving: bool,
    pub(crate) changes: i64,
    pub(crate) spokes: Vec<Report>,
}

/// What a member reports of a spoke that it runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) zone: String,
    /// The state of the spoke, as in the status.
    pub(crate) state: String,
    /// The larger lag of the two links in seconds, if known.
    pub(crate) lag: Option<f64>,
    /// True if a comparison requested by an operator is due or in progress.
    pub(crate) comparing: bool,
}

/// What a heartbeat says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beat {
    pub(crate) leaving: bool,
    pub(crate) changes: i64,
    /// `None` leaves the former reports.
    pub(crate) spokes: Option<Vec<Report>>,
}

/// Adds a member.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn join(hub: &Server, id: &str, card: &Card) -> Result<(), Error> {
    let mut set = said(card);
    set.extend(doc! { "started_at": "$$NOW", "heartbeat": "$$NOW", "leaving": false, "changes": 0_i64, "spokes": [] });
    let command = doc! {
        "update": MEMBERS, "updates": [{ "q": { "_id": id }, "u": [{ "$set": set }], "upsert": true }],
        "writeConcern": majority(),
    };
    hub.run("joining the cluster", &hub.metadata(), command).await.map(drop)
}

/// The fields of the card for a pipeline, in which a text may begin with `$`.
fn said(card: &Card) -> Document {
    let zones: Vec<&str> = card.zones.iter().map(Zone::as_str).collect();
    let literal = |value: &str| doc! { "$literal": value };
    doc! {
        "host": literal(&card.host), "pid": card.pid, "birth": literal(&card.birth),
        "version": literal(&card.version), "http": literal(&card.http), "config": literal(&card.config),
        "zones": { "$literal": zones }, "lease": milliseconds(card.lease),
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Beats. False if the member was declared dead. `card`: what has changed since the member joined.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn beat(hub: &Server, id: &str, beat: &Beat, card: Option<&Card>) -> Result<bool, Error> {
    let mut set = card.map(said).unwrap_or_default();
    set.extend(doc! { "heartbeat": "$$NOW", "leaving": beat.leaving, "changes": beat.changes });
    if let Some(spokes) = &beat.spokes {
        let report = |report: &Report| {
            doc! {
                "zone": &report.zone, "state": &report.state, "lag": report.lag, "comparing": report.comparing,
            }
        };
        set.insert("spokes", doc! { "$literal": spokes.iter().map(report).collect::<Vec<_>>() });
    }
    let command = doc! {
        "update": MEMBERS, "updates": [{ "q": { "_id": id }, "u": [{ "$set": set }] }], "writeConcern": majority(),
    };
    let reply = hub.run("beating", &hub.metadata(), command).await?;
    Ok(reply.get_i32("n").is_ok_and(|found| found > 0))
}

/// All members, in the order of `_id`. `whole`: with their zones and reports, which may be long.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn all(hub: &Server, whole: bool) -> Result<Vec<Saved>, Error> {
    let since = |field: &str| doc! { "$subtract": ["$$NOW", field] };
    let mut stages = vec![doc! { "$sort": { "_id": 1 } }];
    if !whole {
        stages.push(doc! { "$project": { "zones": 0, "spokes": 0 } });
    }
    stages.push(doc! { "$addFields": { "age": since("$heartbeat"), "since": since("$started_at") } });
    let command = doc! {
        "aggregate": MEMBERS, "pipeline": stages, "cursor": { "batchSize": 100_000 }, "hint": { "_id": 1 },
        "readConcern": { "level": "majority" },
    };
    let reply = hub.run("reading the members of the cluster", &hub.metadata(), command).await?;
    Ok(first_batch(&reply).filter_map(read).collect())
}

fn read(saved: &Document) -> Option<Saved> {
    let text = |field: &str| saved.get_str(field).unwrap_or_default().to_owned();
    let time = |field: &str| {
        let milliseconds = saved.get_i64(field).unwrap_or(0);
        Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
    };
    let list = |field: &str| saved.get_array(field).into_iter().flatten();
    let report = |report: &Document| Report {
        zone: report.get_str("zone").unwrap_or_default().to_owned(),
        state: report.get_str("state").unwrap_or_default().to_owned(),
        lag: report.get_f64("lag").ok(),
        comparing: report.get_bool("comparing").unwrap_or(false),
    };
    Some(Saved {
        id: saved.get_str("_id").ok()?.to_owned(),
        card: Card {
            host: text("host"),
            pid: saved.get_i64("pid").unwrap_or(0),
            birth: text("birth"),
            version: text("version"),
            http: text("http"),
            config: text("config"),
            zones: list("zones").filter_map(Bson::as_str).map(Zone::new).collect(),
            lease: time("lease"),
        },
        age: time("age"),
        since: time("since"),
        leaving: saved.get_bool("leaving").unwrap_or(false),
        changes: saved.get_i64("changes").unwrap_or(0),
        spokes: list("spokes").filter_map(Bson::as_document).map(report).collect(),
    })
}

/// Removes a member whose heartbeat is older than `older_than` by the hub's clock; a heartbeat that has come meanwhile
/// keeps it. True if it was removed.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn remove_dead(hub: &Server, id: &str, older_than: Duration) -> Result<bool, Error> {
    let is_old = doc! { "$lt": ["$heartbeat", { "$subtract": ["$$NOW", milliseconds(older_than)] }] };
    remove(hub, doc! { "_id": id, "$expr": is_old }).await
}

/// Removes a member that has ended.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn leave(hub: &Server, id: &str) -> Result<(), Error> {
    remove(hub, doc! { "_id": id }).await.map(drop)
}

async fn remove(hub: &Server, which: Document) -> Result<bool, Error> {
    let command = doc! { "delete": MEMBERS, "deletes": [{ "q": which, "limit": 1 }], "writeConcern": majority() };
    let reply = hub.run("removing a member of the cluster", &hub.metadata(), command).await?;
    Ok(reply.get_i32("n").is_ok_and(|removed| removed > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_read_as_the_hub_keeps_it() {
        let saved = doc! {
            "_id": "a", "host": "box", "pid": 7_i64, "birth": "b", "version": "1", "http": "h", "config": "c",
            "zones": ["DFW"], "lease": 10_000_i64, "leaving": true, "changes": 3_i64, "age": 1_500_i64, "since": 2_000_i64,
            "spokes": [
                { "zone": "DFW", "state": "streaming", "lag": 0.5, "comparing": true }, { "zone": "HOU", "state": "paused" },
            ],
        };
        let report = |zone: &str, state: &str, lag| Report {
            zone: zone.to_owned(),
            state: state.to_owned(),
            lag,
            comparing: lag.is_some(),
        };
        let [host, birth, version, http, config] = ["box", "b", "1", "h", "c"].map(str::to_owned);
        let (zones, lease) = (BTreeSet::from([Zone::new("DFW")]), Duration::from_secs(10));
        let card = Card { host, pid: 7, birth, version, http, config, zones, lease };
        let wanted = Saved {
            id: "a".to_owned(),
            card,
            age: Duration::from_millis(1_500),
            since: Duration::from_secs(2),
            leaving: true,
            changes: 3,
            spokes: vec![report("DFW", "streaming", Some(0.5)), report("HOU", "paused", None)],
        };
        assert_eq!(read(&saved), Some(wanted));
        // A heartbeat in the future, after a failover to a server whose clock is behind, is a fresh one.
        assert_eq!(read(&doc! { "_id": "a", "age": -5_i64 }).map(|saved| saved.age), Some(Duration::ZERO));
    }
}
