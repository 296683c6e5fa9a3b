//! The reference way of working, rebuilt for comparison: one change stream per spoke, one document at a time, with the
//! position saved after each document.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bson::{Document, doc};
use futures_util::StreamExt;
use mongodb::Collection;

use super::application::{self, Load};
use super::check;
use super::figures::{Figure, median};
use super::parts::Parts;
use super::place::majority;
use super::site::{Site, Wires};
use super::throughput::{load, program};

/// Documents per round in the reference way.
const DOCUMENTS: usize = 1_000;

/// Size of a document in bytes.
const BYTES: usize = 500;

/// Counted rounds, after one round for warm-up.
const ROUNDS: usize = 3;

/// Measures inserts from one spoke to the hub, in both ways in turn.
pub async fn measure(parts: &Parts) -> Result<Vec<Figure>> {
    let site = Site::start(1, Wires::None).await?;
    let route = site.uplink();
    let (many, few) = (load(parts, &route, BYTES), Load::new(route.zone, parts.share_of(DOCUMENTS, 50), BYTES));
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let reference = one_by_one(&site, &few, round).await?;
        let taken = program(&site, &route, &many.inserts(round)).await?;
        if round > 0 {
            ratios.push(many.documents as f64 / taken.as_secs_f64() / reference);
            rates.push(reference);
        }
    }
    check::same(&route, &many.filter(), many.documents * (ROUNDS + 1)).await?;
    let name = format!("{}: inserts of {}", route.name, many.size());
    Ok(vec![
        Figure::at_least(&name, "times the reference way", median(&mut ratios), 100.0),
        Figure::plain(&name, "documents/s in the reference way", median(&mut rates)),
    ])
}

/// Documents per second in the reference way, from the source's change stream to the hub.
async fn one_by_one(site: &Site, load: &Load, round: usize) -> Result<f64> {
    let source = site.spokes[0].floor();
    let hub = majority(&site.hub.floor());
    let positions: Collection<Document> = hub.client().database(&hub.namespace().db).collection("positions");
    let mut events = source.clone_with_type::<Document>().watch().await?;
    application::write(&source, &load.inserts(round)).await?;
    let begun = Instant::now();
    for _ in 0..load.documents {
        let event = events.next().await.context("the change stream ended")??;
        let document = event.full_document.context("an insert has no document")?;
        hub.replace_one(doc! { "_id": document.get("_id") }, &document).upsert(true).await?;
        let position = doc! { "_id": "position", "token": bson::serialize_to_bson(&event.id)? };
        positions.replace_one(doc! { "_id": "position" }, position).upsert(true).await?;
    }
    let taken = begun.elapsed();
    let found = hub.count_documents(load.filter()).await?;
    ensure!(found == (load.documents * (round + 1)) as u64, "the hub holds {found} documents");
    Ok(load.documents as f64 / taken.as_secs_f64())
}
