//! Small updates of large documents: they travel as what has changed, which is held against replacing the whole documents.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bson::{Document, doc};
use mongodb::Collection;

use super::figures::{Figure, median};
use super::site::{SOURCE, Site};

/// How many documents there are.
const DOCUMENTS: usize = 2_000;

/// About how large each of them is, in bytes.
const BYTES: usize = 20_000;

/// How many are changed by one command.
const TOGETHER: usize = 500;

/// How often it is measured.
const ROUNDS: i32 = 5;

/// Changes one field of every document at the source, and brings that to all destinations in both ways, in turn.
pub async fn measure(site: &Site) -> Result<Vec<Figure>> {
    for collection in
        [site.source.messages(), site.source.floor()].into_iter().chain(site.destinations().map(|place| place.floor()))
    {
        for start in (0..DOCUMENTS).step_by(TOGETHER) {
            collection.insert_many((start..start + TOGETHER).map(|number| whole(number, 0))).await?;
        }
    }
    site.settle().await?;
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS + 1 {
        let replaced = replace(site, round).await?;
        let begun = Instant::now();
        set(&site.source.messages(), round).await?;
        site.settle().await?;
        let synced = begun.elapsed();
        if round > 1 {
            ratios.push(replaced.as_secs_f64() / synced.as_secs_f64());
            rates.push(DOCUMENTS as f64 / synced.as_secs_f64());
        }
    }
    let last = doc! { "_id": { "$regex": "^update" }, "n": ROUNDS + 1 };
    for place in site.destinations() {
        let found = place.messages().count_documents(last.clone()).await?;
        ensure!(found == DOCUMENTS as u64, "{} has {found} of the updated documents", place.name);
    }
    let name = format!("small updates of {BYTES} bytes, 1 spoke up, 3 down");
    Ok(vec![
        Figure::at_least(&name, "times replacing whole documents", median(&mut ratios), 3.0),
        Figure::plain(&name, "documents/s end to end", median(&mut rates)),
    ])
}

/// The same by hand: the field at the source, then the whole documents at every destination, side by side.
async fn replace(site: &Site, round: i32) -> Result<Duration> {
    let begun = Instant::now();
    set(&site.source.floor(), round).await?;
    let replacing = site.destinations().map(async |place| {
        let whole = |number| doc! { "q": { "_id": id(number) }, "u": whole(number, round) };
        run(&place.floor(), whole).await
    });
    futures_util::future::try_join_all(replacing).await?;
    Ok(begun.elapsed())
}

async fn set(collection: &Collection<Document>, round: i32) -> Result<()> {
    run(collection, |number| doc! { "q": { "_id": id(number) }, "u": { "$set": { "n": round } } }).await
}

/// Runs an update statement for every document.
async fn run(collection: &Collection<Document>, statement: impl Fn(usize) -> Document) -> Result<()> {
    let database = collection.client().database(&collection.namespace().db);
    for start in (0..DOCUMENTS).step_by(TOGETHER) {
        let updates: Vec<Document> = (start..start + TOGETHER).map(&statement).collect();
        let reply = database.run_command(doc! { "update": collection.name(), "updates": updates }).await?;
        ensure!(reply.get_i32("n")? == i32::try_from(TOGETHER)?, "{reply}");
    }
    Ok(())
}

fn id(number: usize) -> String {
    format!("update {number}")
}

fn whole(number: usize, n: i32) -> Document {
    doc! { "_id": id(number), "_pk": SOURCE, "n": n, "text": "x".repeat(BYTES) }
}
