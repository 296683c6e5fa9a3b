//! Catching up after a stop of the program: ten minutes of 300 documents a second.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bson::{RawDocumentBuf, Timestamp, doc};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::application::{self, Load};
use super::check;
use super::figures::{Figure, median};
use super::initial::{WAITING, insert};
use super::parts::Parts;
use super::site::Site;

/// Documents inserted during the stop.
const DOCUMENTS: usize = 10 * 60 * 300;

/// Size of a document in bytes.
const BYTES: usize = 500;

/// Counted rounds, after one round for warm-up.
const ROUNDS: usize = 3;

/// Measures from the start of the program until the hub has all documents. The floor, measured in turn, reads the
/// change stream and inserts each reply.
pub async fn measure(parts: &Parts, site: &mut Site) -> Result<Vec<Figure>> {
    let load = Load::new(site.uplink().zone, parts.share_of(DOCUMENTS, 1_000), BYTES);
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        site.stop_program().await?;
        let floor = directly(site, &load, round).await?;
        application::write(&site.spokes[0].messages(), &load.inserts(round)).await?;
        let begun = Instant::now();
        site.start_program().await?;
        site.settle(&site.uplink()).await?;
        let synced = begun.elapsed();
        if round > 0 {
            ratios.push(synced.as_secs_f64() / floor.as_secs_f64());
            rates.push(load.documents as f64 / synced.as_secs_f64());
        }
    }
    check::same(&site.uplink(), &load.filter(), load.documents * (ROUNDS + 1)).await?;
    let name = format!("catching up with {} inserts of {}, with the start", load.documents, load.size());
    Ok(vec![
        Figure::plain(&name, "times reading the stream and inserting", median(&mut ratios)),
        Figure::plain(&name, "documents/s", median(&mut rates)),
    ])
}

async fn directly(site: &Site, load: &Load, round: usize) -> Result<Duration> {
    let source = &site.spokes[0];
    let since = source.time().await?;
    application::write(&source.floor(), &load.inserts(round)).await?;
    let begun = Instant::now();
    let (replies, waiting) = mpsc::channel(WAITING);
    let inserting = tokio::spawn(insert(waiting, site.hub.floor()));
    // `since` is the time of a write before the inserts, so the stream starts after that write.
    let since = Timestamp { increment: since.increment + 1, ..since };
    let stream = doc! { "$changeStream": { "startAtOperationTime": since } };
    let mut events = source.floor().aggregate([stream]).batch_size(1_000).batch().await?;
    let mut read = 0;
    while read < load.documents {
        let reply = events.next().await.context("the change stream ended")??;
        let mut documents: Vec<RawDocumentBuf> = Vec::new();
        for event in reply.doc_slices()? {
            let event = event?.as_document().context("an event is no document")?;
            documents.push(event.get_document("fullDocument")?.to_owned());
        }
        read += documents.len();
        replies.send(documents).await.context("inserting failed")?;
    }
    drop(replies);
    inserting.await??;
    Ok(begun.elapsed())
}
