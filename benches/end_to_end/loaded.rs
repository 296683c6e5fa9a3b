//! How long a single change takes while an application writes at half of what the route can take.
//!
//! Arrival is seen by a change stream at the last destination, opened before: reading again and again would take the
//! CPU that is to be measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bson::doc;
use futures_util::StreamExt;
use mongodb::Collection;

use super::application::{self, Batch, Load};
use super::check;
use super::latency::{LIMIT, Latency, directly, probe};
use super::parts::Parts;
use super::place::majority;
use super::site::{Route, Site};
use super::throughput::{load, program};

/// How many changes are timed.
const CHANGES: usize = 150;

/// How long it is quiet between them.
const PAUSE: Duration = Duration::from_millis(20);

/// How often the application writes a batch.
const INTERVAL: Duration = Duration::from_millis(20);

/// The size of what the application writes.
const BYTES: usize = 500;

/// A change until it is visible at the last destination, against one majority write at each server under the same load,
/// in turn.
pub async fn measure(parts: &Parts, site: &Site, route: &Route<'_>) -> Result<Latency> {
    let per_second = most(parts, site, route).await? / 2.0;
    let together = ((per_second * INTERVAL.as_secs_f64()) as usize).max(1);
    let background = Load::new(route.zone, together, BYTES);
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn(write(route.source.messages(), background, stop.clone()));
    let timed = timed(route, parts.share_of(CHANGES, 10)).await;
    stop.store(true, Ordering::Relaxed);
    let (written, background) = writing.await??;
    site.settle(route).await?;
    check::same(route, &background.filter(), written).await?;
    timed
}

/// How many documents a second the route takes, once it is warm.
async fn most(parts: &Parts, site: &Site, route: &Route<'_>) -> Result<f64> {
    let load = load(parts, route, BYTES);
    program(site, route, &load.inserts(0)).await?;
    let taken = program(site, route, &load.inserts(1)).await?;
    Ok(load.documents as f64 / taken.as_secs_f64())
}

/// Writes one round of the load in each interval until it is told to stop. Tells how many documents that were.
async fn write(messages: Collection<bson::RawDocumentBuf>, load: Load, stop: Arc<AtomicBool>) -> Result<(usize, Load)> {
    let mut interval = tokio::time::interval(INTERVAL);
    let mut written = 0;
    for round in 0.. {
        interval.tick().await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let batches = load.inserts(round);
        application::write(&messages, &batches).await?;
        written += batches.iter().map(Batch::changes).sum::<usize>();
    }
    Ok((written, load))
}

async fn timed(route: &Route<'_>, changes: usize) -> Result<Latency> {
    let last = route.last()?.messages().clone_with_type::<bson::Document>();
    let mut arrivals = last.watch().pipeline([doc! { "$match": { "fullDocument.is_probe": true } }]).await?;
    let mut latency = Latency::default();
    for number in 0..changes {
        let id = format!("loaded {} {number}", route.name);
        let begun = Instant::now();
        majority(&route.source.messages()).insert_one(probe(route, &id)).await?;
        let event = tokio::time::timeout(LIMIT, arrivals.next()).await.context("it does not arrive")?;
        let key = event.context("the change stream ended")??.document_key.context("a key")?;
        latency.synced.push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!(key.get_str("_id")? == id, "{key} came instead of {id}");
        tokio::time::sleep(PAUSE).await;
        latency.directly.push(directly(route, &id).await?);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(latency)
}
