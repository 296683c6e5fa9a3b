//! Latency of a single change while an application writes at half the route's maximum rate.
//!
//! A change stream at the last destination, opened beforehand, reports the arrival: repeated reads would use the CPU
//! that is measured.

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

/// Timed changes.
const CHANGES: usize = 150;

/// Pause after each timed write.
const PAUSE: Duration = Duration::from_millis(20);

/// Time between two batches of the application.
const INTERVAL: Duration = Duration::from_millis(20);

/// Size of the application's documents in bytes.
const BYTES: usize = 500;

/// Times a change until the last destination reports the change, and in turn one majority write at each server under
/// the same load.
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

/// Maximum rate of the warm route, in documents per second.
async fn most(parts: &Parts, site: &Site, route: &Route<'_>) -> Result<f64> {
    let load = load(parts, route, BYTES);
    program(site, route, &load.inserts(0)).await?;
    let taken = program(site, route, &load.inserts(1)).await?;
    Ok(load.documents as f64 / taken.as_secs_f64())
}

/// Writes one round of the load per interval until `stop` is set. Returns the number of written documents, and the
/// load.
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
        let event = tokio::time::timeout(LIMIT, arrivals.next()).await.context("a change did not arrive")?;
        let key = event.context("the change stream ended")??.document_key.context("an event has no document key")?;
        latency.synced.push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!(key.get_str("_id")? == id, "{key} arrived instead of {id}");
        tokio::time::sleep(PAUSE).await;
        latency.directly.push(directly(route, &id).await?);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(latency)
}
