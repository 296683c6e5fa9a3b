//! How long a single change takes while nothing else happens.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bson::{Document, doc};
use mongodb::Collection;
use mongodb::options::WriteConcern;

use super::figures::{Figure, median, percentile};
use super::site::{Place, SOURCE, Site};

/// How many changes are timed.
const CHANGES: i64 = 200;

/// How long one change may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A write at the hub until it is visible at the spoke, against writing both by hand.
pub async fn measure(site: &Site) -> Result<Vec<Figure>> {
    let (hub, spoke) = (&site.hub, &site.source);
    let (mut direct, mut synced) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let begun = Instant::now();
        for place in [hub, spoke] {
            majority(&place.floor()).insert_one(doc! { "_id": format!("latency {number}") }).await?;
        }
        direct.push(begun.elapsed().as_secs_f64() * 1e3);
        let id = format!("latency {number}");
        let begun = Instant::now();
        majority(&hub.messages()).insert_one(doc! { "_id": &id, "_pk": SOURCE }).await?;
        seen(spoke, &id).await?;
        synced.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let name = "idle, hub to spoke";
    let (floor, taken) = (median(&mut direct), median(&mut synced));
    Ok(vec![
        Figure::at_most(name, "times two majority writes, p50", taken / floor, 2.5),
        Figure::at_most(name, "times two majority writes, p99", percentile(&mut synced, 0.99) / floor, 4.0),
        Figure::plain(name, "ms, p50", taken),
        Figure::plain(name, "ms for two majority writes", floor),
    ])
}

/// The collection, written with write concern majority.
pub fn majority(collection: &Collection<Document>) -> Collection<Document> {
    let mut options = mongodb::options::CollectionOptions::default();
    options.write_concern = Some(WriteConcern::majority());
    collection.client().database(&collection.namespace().db).collection_with_options(collection.name(), options)
}

/// Waits until the document is there.
pub async fn seen(place: &Place, id: &str) -> Result<()> {
    let begun = Instant::now();
    while place.messages().find_one(doc! { "_id": id }).await?.is_none() {
        ensure!(begun.elapsed() < LIMIT, "{id} does not arrive at {}", place.name);
    }
    Ok(())
}
