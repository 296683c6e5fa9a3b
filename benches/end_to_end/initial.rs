//! The initial sync of a spoke, compared with one read of the spoke's documents and their insertion at the hub.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bson::RawDocumentBuf;
use futures_util::StreamExt;
use mongodb::Collection;
use tokio::sync::mpsc;

use super::application::Load;
use super::check;
use super::figures::{Figure, median};
use super::site::Site;

/// Counted rounds, after one round for warm-up.
const ROUNDS: usize = 3;

/// Replies that may wait between the reader and the inserter, at most.
pub const WAITING: usize = 4;

/// Measures from the start of the program until the hub has all documents of the spoke. The floor, measured in turn,
/// reads and inserts the documents directly.
pub async fn measure(site: &mut Site, load: &Load) -> Result<Vec<Figure>> {
    let (mut ratios, mut rates, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let floor = directly(site, load).await?;
        let synced = synced(site).await?;
        check::same(&site.uplink(), &load.filter(), load.documents).await?;
        if round > 0 {
            ratios.push(synced.as_secs_f64() / floor.as_secs_f64());
            rates.push(load.documents as f64 / synced.as_secs_f64());
            starts.push(restart(site).await?.as_secs_f64());
        }
    }
    let name = format!("initial sync of {} documents of {}, with the start", load.documents, load.size());
    Ok(vec![
        Figure::plain(&name, "times reading and inserting them once", median(&mut ratios)),
        Figure::plain(&name, "documents/s", median(&mut rates)),
        Figure::plain("a start with nothing to copy", "s", median(&mut starts)),
    ])
}

async fn synced(site: &mut Site) -> Result<Duration> {
    site.forget().await?;
    site.hub.messages().drop().await.context("emptying the hub")?;
    let begun = Instant::now();
    site.start_program().await?;
    site.settle(&site.uplink()).await?;
    Ok(begun.elapsed())
}

async fn restart(site: &mut Site) -> Result<Duration> {
    site.stop_program().await?;
    let begun = Instant::now();
    site.start_program().await?;
    Ok(begun.elapsed())
}

async fn directly(site: &Site, load: &Load) -> Result<Duration> {
    let (source, floor) = (site.spokes[0].messages(), site.hub.floor());
    floor.drop().await?;
    let begun = Instant::now();
    let (replies, waiting) = mpsc::channel(WAITING);
    let inserting = tokio::spawn(insert(waiting, floor));
    let mut found = source.find(load.filter()).batch_size(1_000).batch().await?;
    while let Some(reply) = found.next().await {
        let documents = reply?;
        let documents: Result<Vec<RawDocumentBuf>> = documents
            .doc_slices()?
            .into_iter()
            .map(|document| Ok(document?.as_document().context("an element of a reply is no document")?.to_owned()))
            .collect();
        replies.send(documents?).await.context("inserting failed")?;
    }
    drop(replies);
    inserting.await??;
    Ok(begun.elapsed())
}

/// Inserts each reply as soon as the reply arrives.
pub async fn insert(mut replies: mpsc::Receiver<Vec<RawDocumentBuf>>, at: Collection<RawDocumentBuf>) -> Result<()> {
    while let Some(documents) = replies.recv().await {
        if !documents.is_empty() {
            at.insert_many(documents).await?;
        }
    }
    Ok(())
}
