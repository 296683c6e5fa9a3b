//! Throughput of inserts: an application at one spoke, the hub, and the spokes that watch it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bson::{Document, doc};
use mongodb::Collection;

use super::figures::{Figure, median};
use super::site::{SOURCE, Site};

/// How many documents an application sends at once.
const TOGETHER: usize = 1_000;

/// What is inserted.
pub struct Load {
    /// How many documents in each round.
    pub documents: usize,
    /// About how large each of them is.
    pub bytes: usize,
    /// How often it is measured.
    pub rounds: usize,
}

/// Measures both ways of doing the same work, in turn, and puts them into proportion.
pub async fn measure(site: &Site, load: &Load) -> Result<Vec<Figure>> {
    let destinations = site.destinations().count();
    let (mut ratios, mut rates, mut floors, mut costs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // The first round only warms everything up.
    for round in 0..=load.rounds {
        let floor = directly(site, load, round).await?;
        let before = site.usage()?.cpu;
        let synced = synced(site, load, round).await?;
        let cpu = site.usage()?.cpu - before;
        if round > 0 {
            let per_second = |taken: Duration| load.documents as f64 / taken.as_secs_f64();
            ratios.push(floor.as_secs_f64() / synced.as_secs_f64());
            rates.push(per_second(synced));
            floors.push(per_second(floor));
            costs.push(cpu.as_secs_f64() * 1e6 / (load.documents * destinations) as f64);
        }
    }
    for place in site.destinations() {
        let found = place.messages().count_documents(doc! { "_id": { "$type": "long" } }).await?;
        let expected = load.documents * (load.rounds + 1);
        ensure!(found == expected as u64, "{} holds {found} of {expected} documents", place.name);
    }
    let watchers = destinations - 1;
    let name = format!("inserts of {} bytes, 1 spoke up, {watchers} down", load.bytes);
    Ok(vec![
        Figure::at_least(&name, "of the rate of insert_many", median(&mut ratios), 0.85),
        Figure::plain(&name, "documents/s end to end", median(&mut rates)),
        Figure::plain(&name, "documents/s by insert_many", median(&mut floors)),
        Figure::at_most(&name, "s of CPU per million delivered", median(&mut costs), 4.0),
    ])
}

/// The same documents into the same servers by `insert_many`: the source first, then the destinations side by side.
async fn directly(site: &Site, load: &Load, round: usize) -> Result<Duration> {
    let begun = Instant::now();
    insert(&site.source.floor(), load, round).await?;
    let inserting = site.destinations().map(async |place| insert(&place.floor(), load, round).await);
    futures_util::future::try_join_all(inserting).await?;
    Ok(begun.elapsed())
}

async fn synced(site: &Site, load: &Load, round: usize) -> Result<Duration> {
    let begun = Instant::now();
    insert(&site.source.messages(), load, round).await?;
    site.settle().await?;
    Ok(begun.elapsed())
}

/// Inserts the documents of one round.
pub async fn insert(collection: &Collection<Document>, load: &Load, round: usize) -> Result<()> {
    let text = "x".repeat(load.bytes.saturating_sub(120));
    let first = round * load.documents;
    let document = |number: usize| {
        doc! {
            "_id": number as i64, "_pk": SOURCE, "vehicle": format!("vehicle-{}", number % 1_000), "speed": 61.5,
            "position": [32.9, -97.04], "text": &text,
        }
    };
    for start in (first..first + load.documents).step_by(TOGETHER) {
        let end = (start + TOGETHER).min(first + load.documents);
        collection.insert_many((start..end).map(document)).await?;
    }
    Ok(())
}
