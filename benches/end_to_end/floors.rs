//! The floor: the same work on the same servers, done directly and pipelined.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::application::Batch;
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
