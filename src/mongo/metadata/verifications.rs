//! The saved progress of verifications. A verification with the same name resumes an interrupted one.
//!
//! ```text
//! _id        document  { run: string, spoke: string, ns: string, zone: string or null }, see [`PartName`]
//! begun_at   date      time of the first save, by the process's clock
//! after      any       last compared `_id`, as in [`opaque::nested_id`]; absent before the first
//! documents  int64     number of compared documents
//! unreadable int64     number of documents left out, because their `_id` cannot be read
//! suspects   array     `_id`s of documents that seemed to differ, to be examined again, as in [`opaque::nested_id`]
//! is_walked  bool      true once all documents of the part are compared
//! ```
//!
//! Kept at the hub.
//!
//! - A verification saves the progress of a part every 50,000 documents and at the end of the part, with write concern
//!   majority.
//! - A finished verification deletes the progress under the same name. `--afresh` does so at the start.
//! - Every verification first deletes all progress that began more than 24 hours ago.
//!
//! Index: only `_id`. The deletes by `_id.run` and by `begun_at` scan the collection.

use std::time::Duration;

use bson::raw::RawBson;
use bson::{Bson, DateTime, Document, doc};

use super::{VERIFICATIONS, ago, delete_all, majority, raw};
use crate::mongo::error::Error;
use crate::mongo::server::{Server, first_batch};
use crate::rules::names::{Namespace, Zone};
use crate::rules::opaque;

/// Time after which a part is compared again from the start.
const STALE: Duration = Duration::from_secs(24 * 3_600);

/// A zone of a collection at a spoke, within a verification.
#[derive(Clone, Debug)]
pub(crate) struct PartName {
    /// The verification: the name of the caller, such as `process`, and the scope, such as `DFW/* quick`.
    pub(crate) run: String,
    pub(crate) spoke: Zone,
    /// The collection, as `database.collection`.
    pub(crate) namespace: String,
    /// The zone; `None` for the documents of all zones that the spoke does not hold.
    pub(crate) zone: Option<Zone>,
}

impl PartName {
    pub(crate) fn new(run: &str, spoke: &Zone, namespace: &Namespace, zone: Option<&Zone>) -> Self {
        Self { run: run.to_owned(), spoke: spoke.clone(), namespace: namespace.to_string(), zone: zone.cloned() }
    }

    fn id(&self) -> Document {
        let zone = self.zone.as_ref().map(Zone::as_str);
        doc! { "run": &self.run, "spoke": self.spoke.as_str(), "ns": &self.namespace, "zone": zone }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Saved {
    /// The last compared `_id`.
    pub(crate) after: Option<RawBson>,
    pub(crate) documents: u64,
    /// Number of documents left out, because their `_id` cannot be read.
    pub(crate) unreadable: u64,
    /// The `_id`s of documents that seemed to differ.
    pub(crate) suspects: Vec<RawBson>,
    pub(crate) is_walked: bool,
}

/// Reads the progress of a part. Without saved progress, nothing is compared yet.
pub(crate) async fn load(hub: &Server, part: &PartName) -> Result<Saved, Error> {
    let find = doc! { "find": VERIFICATIONS, "filter": { "_id": part.id() }, "limit": 1 };
    let reply = hub.run("reading the progress of a verification", &hub.metadata(), find).await?;
    Ok(first_batch(&reply).next().map(read).unwrap_or_default())
}

fn read(saved: &Document) -> Saved {
    let whole = raw(saved);
    let suspects = whole.get_array("suspects").ok().into_iter().flatten().flatten().filter_map(opaque::id_of_nested);
    let number = |name| saved.get_i64(name).ok().and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
    Saved {
        after: whole.get("after").ok().flatten().and_then(opaque::id_of_nested),
        documents: number("documents"),
        unreadable: number("unreadable"),
        suspects: suspects.collect(),
        is_walked: saved.get_bool("is_walked").unwrap_or(false),
    }
}

pub(crate) async fn save(hub: &Server, part: &PartName, saved: &Saved) -> Result<(), Error> {
    let update = doc! { "$set": fields(saved), "$setOnInsert": { "begun_at": DateTime::now() } };
    let command = doc! {
        "update": VERIFICATIONS, "updates": [{ "q": { "_id": part.id() }, "u": update, "upsert": true }],
        "writeConcern": majority(),
    };
    hub.run("saving the progress of a verification", &hub.metadata(), command).await.map(drop)
}

fn fields(saved: &Saved) -> Document {
    let bson = |id: &RawBson| Bson::try_from(opaque::nested_id(id.as_raw_bson_ref())).unwrap_or(Bson::Null);
    let mut fields = doc! {
        "documents": i64::try_from(saved.documents).unwrap_or(i64::MAX),
        "unreadable": i64::try_from(saved.unreadable).unwrap_or(i64::MAX), "is_walked": saved.is_walked,
        "suspects": saved.suspects.iter().map(bson).collect::<Vec<_>>(),
    };
    if let Some(after) = &saved.after {
        fields.insert("after", bson(after));
    }
    fields
}

/// Deletes the progress of verifications that began more than 24 hours ago.
pub(crate) async fn forget_stale(hub: &Server) -> Result<(), Error> {
    let delete = delete_all(VERIFICATIONS, doc! { "begun_at": { "$lt": ago(STALE) } });
    hub.run("deleting old verifications", &hub.metadata(), delete).await.map(drop)
}

/// Deletes the progress of a verification that is finished or shall begin again.
pub(crate) async fn forget(hub: &Server, run: &str) -> Result<(), Error> {
    let delete = delete_all(VERIFICATIONS, doc! { "_id.run": run });
    hub.run("deleting the progress of a verification", &hub.metadata(), delete).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_as_it_was_saved() {
        let ids = [RawBson::Int32(7), RawBson::String("a".to_owned())];
        let (after, suspects) = (Some(ids[0].clone()), ids.to_vec());
        let begun = Saved { after, documents: 9, unreadable: 2, suspects, is_walked: true };
        for saved in [Saved::default(), begun] {
            assert_eq!(read(&fields(&saved)), saved);
        }
    }
}
