//! Counters: each spoke's application counts in one document of its own, which nobody else changes. Wherever the
//! counter is carried, it never goes back, and at rest it says how often the application counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bson::{Document, Timestamp, doc};
use mongodb::Collection;
use mongodb::change_stream::event::ChangeStreamEvent;
use mongodb::error::Result;

use super::judge::Finding;
use super::programme::{PHASE, SITES};
use crate::support::Site;
use crate::support::site::HUB;

/// Milliseconds between two counts.
const INTERVAL: u64 = 50;

/// What an application counted.
#[derive(Debug, Default)]
pub struct Count {
    /// Counts that the server confirmed.
    written: AtomicI64,
    /// Counts without an answer.
    unknown: AtomicI64,
}

/// The counts of a programme so far, by spoke.
pub type Counts = BTreeMap<&'static str, Count>;

pub fn new() -> Counts {
    SITES.into_iter().filter(|name| *name != HUB).map(|name| (name, Count::default())).collect()
}

fn id(spoke: &str) -> String {
    format!("counter of {spoke}")
}

/// Creates the counters.
pub async fn create(site: &Site, counts: &Counts) {
    for spoke in counts.keys() {
        site.at(spoke).insert_one(doc! { "_id": id(spoke), "_pk": *spoke, "count": 0_i64 }).await.unwrap();
    }
}

/// Counts for the time of a phase, while the document is there.
pub async fn count(spoke: &str, collection: &Collection<Document>, count: &Count) {
    let end = Instant::now() + Duration::from_millis(PHASE);
    while Instant::now() < end {
        match collection.update_one(doc! { "_id": id(spoke) }, doc! { "$inc": { "count": 1_i64 } }).await {
            Ok(done) => count.written.fetch_add(done.modified_count.try_into().unwrap(), Ordering::Relaxed),
            Err(_) => count.unknown.fetch_add(1, Ordering::Relaxed),
        };
        tokio::time::sleep(Duration::from_millis(INTERVAL)).await;
    }
}

/// The present times of all servers.
pub async fn now(site: &Site) -> BTreeMap<&'static str, Timestamp> {
    let mut times = BTreeMap::new();
    for name in SITES {
        let reply = site.nodes[name].admin(doc! { "ping": 1 }).await.unwrap();
        times.insert(name, reply.get_timestamp("operationTime").unwrap());
    }
    times
}

/// Judges the counters at rest: what each server shows now, and what it has shown since these times.
pub async fn judge(site: &Site, counts: &Counts, since: &BTreeMap<&'static str, Timestamp>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (spoke, count) in counts {
        let mut finding = |kind, what| findings.push(Finding { kind, document: id(spoke), what });
        let (written, unknown) = (count.written.load(Ordering::Relaxed), count.unknown.load(Ordering::Relaxed));
        for name in [HUB, spoke] {
            let found = site.at(name).find_one(doc! { "_id": id(spoke) }).await.unwrap();
            let shown = found.and_then(|found| found.get_i64("count").ok()).unwrap_or(0);
            if !(written..=written + unknown).contains(&shown) {
                let what = format!("{shown} at {name}, {written} were counted, and {unknown} perhaps");
                finding("a counter is wrong", what);
            }
        }
        for (name, since) in since.iter().filter(|(name, _)| *name != spoke) {
            // A server that no longer has its history tells nothing.
            let Ok(shown) = history(&site.at(name), &id(spoke), *since).await else { continue };
            if let Some(steps) = shown.windows(2).find(|steps| steps[1] < steps[0]) {
                finding("a counter went back", format!("at {name}, from {} to {}", steps[0], steps[1]));
            }
        }
    }
    findings
}

/// The values of a counter at a server since this time, in order.
async fn history(collection: &Collection<Document>, id: &str, since: Timestamp) -> Result<Vec<i64>> {
    let only = doc! { "$match": { "documentKey._id": id } };
    let mut stream = collection.watch().pipeline([only]).start_at_operation_time(since).await?;
    let (mut values, mut quiet) = (Vec::new(), 0);
    while quiet < 2 {
        let Some(ChangeStreamEvent { full_document, update_description, .. }) = stream.next_if_any().await? else {
            quiet += 1;
            continue;
        };
        let changed = update_description.map(|description| description.updated_fields);
        let fields = full_document.or(changed).unwrap_or_default();
        values.extend(fields.get_i64("count"));
    }
    Ok(values)
}
