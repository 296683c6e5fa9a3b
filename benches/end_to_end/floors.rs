//! The floor: the same work on the same servers, done directly and pipelined. Also the work of a simple tool that reads
//! a change stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bson::raw::{RawArrayBuf, RawDocumentBuf};
use bson::{Document, doc, rawdoc};
use futures_util::StreamExt;
use mongodb::raw_batch_cursor::RawBatch;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::application::{self, Batch};
use super::site::Route;

/// Writes each batch at the source, and the corresponding batch at all destinations in parallel, as soon as the source
/// has acknowledged the batch. Only the end of the round waits for the destinations.
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

/// The write that a simple tool makes of each event.
#[derive(Clone, Copy)]
pub enum Carried {
    /// An insert of the event's document.
    Inserts,
    /// A replacement with the document that the stream looks up for the event.
    Replacements,
}

impl Carried {
    fn stage(self) -> Document {
        match self {
            Self::Inserts => doc! { "$changeStream": {} },
            Self::Replacements => doc! { "$changeStream": { "fullDocument": "updateLookup" } },
        }
    }

    /// Events per reply: a few megabytes with the documents of these measurements.
    fn reply_events(self) -> u32 {
        match self {
            Self::Inserts => 5_000,
            Self::Replacements => 400,
        }
    }

    /// The command that carries a reply to a destination, and the number of events in the reply.
    fn command(self, reply: &RawBatch) -> Result<(RawDocumentBuf, usize)> {
        let mut statements = RawArrayBuf::new();
        let mut changes = 0;
        for event in reply.doc_slices()? {
            let event = event?;
            let document = event.as_document().context("an event is no document")?.get_document("fullDocument")?;
            match self {
                Self::Inserts => statements.push(document),
                Self::Replacements => {
                    let id = document.get("_id")?.context("a document has no _id")?;
                    statements.push(rawdoc! { "q": { "_id": id }, "u": document.to_owned() });
                }
            }
            changes += 1;
        }
        let command = match self {
            Self::Inserts => rawdoc! { "insert": "messages", "ordered": false, "documents": statements },
            Self::Replacements => rawdoc! { "update": "messages", "ordered": false, "updates": statements },
        };
        Ok((command, changes))
    }
}

/// Writes at the source, and carries whole documents as a simple tool does: each reply of the source's change stream
/// goes to all destinations in parallel, during the read of the next reply.
pub async fn carried(route: &Route<'_>, written: &Arc<Vec<Batch>>, how: Carried) -> Result<Duration> {
    let source = route.source.floor();
    let stream = source.aggregate([how.stage()]).batch_size(how.reply_events()).max_await_time(Duration::from_secs(1));
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
            let (command, changes) = how.command(&reply)?;
            left -= changes;
            if changes > 0 {
                sender.send(command).await?;
            }
        }
        anyhow::Ok(())
    });
    while let Some(command) = ahead.recv().await {
        let applying = route.destinations.iter().map(async |place| {
            let database = place.client().database(&place.floor().namespace().db);
            let reply = database.run_raw_command(command.clone()).await?;
            ensure!(reply.get("writeErrors").is_none(), "{reply}");
            anyhow::Ok(())
        });
        futures_util::future::try_join_all(applying).await?;
    }
    writing.await??;
    reading.await??;
    Ok(begun.elapsed())
}
