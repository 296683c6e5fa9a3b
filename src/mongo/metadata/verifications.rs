//! How far a verification is, in `_syncmetadata.verifications` of the hub: so one that was interrupted goes on where it was.

use std::time::Duration;

use bson::raw::RawBson;
use bson::{Bson, DateTime, Document, doc};

use crate::mongo::error::Error;
use crate::mongo::server::{Server, majority, raw};
use crate::rules::names::{Namespace, Zone};

/// What was compared longer ago is compared again.
const STALE: Duration = Duration::from_secs(24 * 3_600);

/// A zone of a collection at a spoke, within one verification.
#[derive(Clone, Debug)]
pub(crate) struct PartName {
    /// Which verification: whoever runs it, and how.
    pub(crate) run: String,
    /// The spoke.
    pub(crate) spoke: Zone,
    /// The collection, as `database.collection`.
    pub(crate) namespace: String,
    /// The zone; `None` for the documents of zones that the spoke does not hold.
    pub(crate) zone: Option<Zone>,
}

impl PartName {
    /// Names a part.
    pub(crate) fn new(run: &str, spoke: &Zone, namespace: &Namespace, zone: Option<&Zone>) -> Self {
        Self { run: run.to_owned(), spoke: spoke.clone(), namespace: namespace.to_string(), zone: zone.cloned() }
    }

    fn id(&self) -> Document {
        let zone = self.zone.as_ref().map(Zone::as_str);
        doc! { "run": &self.run, "spoke": self.spoke.as_str(), "ns": &self.namespace, "zone": zone }
    }
}

/// How far a part is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Saved {
    /// The last `_id` that is compared.
    pub(crate) after: Option<RawBson>,
    /// How many documents are.
    pub(crate) documents: u64,
    /// The documents that did not seem equal, by `_id`.
    pub(crate) suspects: Vec<RawBson>,
    /// All of it is compared.
    pub(crate) is_walked: bool,
}

/// How far the part was when it was interrupted.
///
/// # Errors
/// If the hub does not answer.
pub(crate) async fn load(hub: &Server, part: &PartName) -> Result<Saved, Error> {
    let find = doc! { "find": "verifications", "filter": { "_id": part.id() }, "limit": 1 };
    let reply = hub.run("reading how far a verification is", &hub.metadata(), find).await?;
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let Some(saved) = batch.ok().and_then(|batch| batch.first()?.as_document()) else { return Ok(Saved::default()) };
    let whole = raw(saved);
    let suspects = whole.get_array("suspects").ok().into_iter().flatten().flatten().map(RawBson::from);
    Ok(Saved {
        after: whole.get("after").ok().flatten().map(RawBson::from),
        documents: saved.get_i64("documents").ok().and_then(|number| u64::try_from(number).ok()).unwrap_or(0),
        suspects: suspects.collect(),
        is_walked: saved.get_bool("is_walked").unwrap_or(false),
    })
}

/// Saves how far the part is.
///
/// # Errors
/// If the hub does not answer.
pub(crate) async fn save(hub: &Server, part: &PartName, saved: &Saved) -> Result<(), Error> {
    let bson = |value: &RawBson| Bson::try_from(value.clone()).unwrap_or(Bson::Null);
    let mut set = doc! {
        "documents": i64::try_from(saved.documents).unwrap_or(i64::MAX), "is_walked": saved.is_walked,
        "suspects": saved.suspects.iter().map(bson).collect::<Vec<_>>(),
    };
    if let Some(after) = &saved.after {
        set.insert("after", bson(after));
    }
    let update = doc! { "$set": set, "$setOnInsert": { "begun_at": DateTime::now() } };
    let command = doc! {
        "update": "verifications", "updates": [{ "q": { "_id": part.id() }, "u": update, "upsert": true }],
        "writeConcern": majority(),
    };
    hub.run("saving how far a verification is", &hub.metadata(), command).await.map(drop)
}

/// Forgets what was compared too long ago.
///
/// # Errors
/// If the hub does not answer.
pub(crate) async fn forget_stale(hub: &Server) -> Result<(), Error> {
    let stale = i64::try_from(STALE.as_millis()).unwrap_or(i64::MAX);
    let since = DateTime::from_millis(DateTime::now().timestamp_millis().saturating_sub(stale));
    let delete = doc! { "delete": "verifications", "deletes": [{ "q": { "begun_at": { "$lt": since } }, "limit": 0 }] };
    hub.run("forgetting old verifications", &hub.metadata(), delete).await.map(drop)
}

/// Forgets how far a verification was: it is done, or is to begin anew.
///
/// # Errors
/// If the hub does not answer.
pub(crate) async fn forget(hub: &Server, run: &str) -> Result<(), Error> {
    let delete = doc! { "delete": "verifications", "deletes": [{ "q": { "_id.run": run }, "limit": 0 }] };
    hub.run("forgetting how far a verification was", &hub.metadata(), delete).await.map(drop)
}
