//! The floor: the same work on the same servers, done directly and pipelined. And the work of a tool that carries whole documents.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bson::raw::{RawArrayBuf, RawDocumentBuf};
use bson::{doc, rawdoc};
use futures_util::StreamExt;
use mongodb::raw_batch_cursor::RawBatch;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::application::{self, Batch};
use super::site::Route;

/// Writes each batch at the source, and what belongs to it at all destinations side by side, once the source has acknowledged
/// it. Nobody waits for a destination but at the end.
pub async fn pipelined(route: &Route<'_>, written: &[Batch], applied: &Arc<Vec<Batch>>) -> Result<Duration> {
    let begun = Instant::now();
    let acknowledged = watch::Sender::new(0);
    let mut following = JoinSet::new();
    for place in &route.destinations {
        let (floor, applied, acknowledged) = (place.floor(), applied.clone(), acknowledged.subscribe());
        following.spawn(async move {
            let mut acknowledged = acknowledged;
            for (number, batch) in applied.iter().enumerate() {
                drop(acknowledged.wait_for(|acknowledged| *acknowledged > number).await.context("the source failed")?);
                batch.write(&floor).await?;
            }
            anyhow::Ok(())
        });
    }
    let floor = route.source.floor();
    for (number, batch) in written.iter().enumerate() {
        batch.write(&floor).await?;
        acknowledged.send_replace(number + 1);
    }
    while let Some(done) = following.join_next().await {
        done??;
    }
    Ok(begun.elapsed())
}

/// How many events are in one reply of [`carried_whole`]: 8 MB with documents of 20 kB.
const REPLY_EVENTS: u32 = 400;

/// Writes at the source, and carries the documents whole: its change stream looks them up, and each reply replaces them at all
/// destinations side by side, while the next one is read.
pub async fn carried_whole(route: &Route<'_>, written: &Arc<Vec<Batch>>) -> Result<Duration> {
    let source = route.source.floor();
    let stage = doc! { "$changeStream": { "fullDocument": "updateLookup" } };
    let stream = source.aggregate([stage]).batch_size(REPLY_EVENTS).max_await_time(Duration::from_secs(1));
    let mut replies = stream.batch().await?;
    let begun = Instant::now();
    let writing = tokio::spawn({
        let (source, written) = (source.clone(), written.clone());
        async move { application::write(&source, &written).await }
    });
    let mut left = written.iter().map(Batch::changes).sum::<usize>();
    let (sender, mut ahead) = tokio::sync::mpsc::channel(1);
    let reading = tokio::spawn(async move {
        while left > 0 {
            let reply = replies.next().await.context("the change stream ended")??;
            let (replacements, changes) = replacements(&reply)?;
            left -= changes;
            if changes > 0 {
                sender.send(replacements).await?;
            }
        }
        anyhow::Ok(())
    });
    while let Some(replacements) = ahead.recv().await {
        let applying = route.destinations.iter().map(async |place| {
            let database = place.client().database(&place.floor().namespace().db);
            database.run_raw_command(replacements.clone()).await
        });
        futures_util::future::try_join_all(applying).await?;
    }
    writing.await??;
    reading.await??;
    Ok(begun.elapsed())
}

/// The command that replaces the documents of these events, and how many there are.
fn replacements(reply: &RawBatch) -> Result<(RawDocumentBuf, usize)> {
    let mut updates = RawArrayBuf::new();
    let mut changes = 0;
    for event in reply.doc_slices()? {
        let event = event?;
        let document = event.as_document().context("an event")?.get_document("fullDocument")?;
        updates.push(rawdoc! { "q": { "_id": document.get("_id")?.context("its _id")? }, "u": document.to_owned() });
        changes += 1;
    }
    Ok((rawdoc! { "update": "messages", "ordered": false, "updates": updates }, changes))
}
