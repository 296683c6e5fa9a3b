//! The reference way of working, made again: one change stream a spoke, one document at a time, its position saved after each.

use std::time::Instant;

use anyhow::{Context, Result};
use bson::{Document, doc};
use futures_util::StreamExt;
use mongodb::options::WriteConcern;

use super::figures::{Figure, median};
use super::inserts::{self, Load};
use super::site::Site;

/// How many documents it carries in each round.
const DOCUMENTS: usize = 1_000;

/// How often it is measured.
const ROUNDS: usize = 3;

/// From one spoke to the hub, in both ways, in turn.
pub async fn measure(site: &Site, load: &Load) -> Result<Vec<Figure>> {
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let reference = one_by_one(site).await?;
        let begun = Instant::now();
        inserts::insert(&site.source.messages(), load, load.rounds + 1 + round).await?;
        site.settle().await?;
        let program = load.documents as f64 / begun.elapsed().as_secs_f64();
        if round > 0 {
            ratios.push(program / reference);
            rates.push(reference);
        }
    }
    Ok(vec![
        Figure::at_least(
            "inserts, the program with 3 watching spokes",
            "times the reference way",
            median(&mut ratios),
            100.0,
        ),
        Figure::plain("inserts, the reference way, 1 spoke up", "documents/s", median(&mut rates)),
    ])
}

/// Documents a second, from the change stream of the source to the hub.
async fn one_by_one(site: &Site) -> Result<f64> {
    let source = site.source.floor().clone_with_type::<Document>();
    let hub = site.hub.floor();
    let mut options = mongodb::options::CollectionOptions::default();
    options.write_concern = Some(WriteConcern::majority());
    let hub = hub.client().database(&hub.namespace().db).collection_with_options::<Document>("reference", options);
    source.delete_many(doc! { "_id": { "$type": "string" } }).await?;
    let mut stream = source.watch().await?;
    let text = "x".repeat(380);
    source
        .insert_many((0..DOCUMENTS).map(|number| doc! { "_id": format!("reference {number}"), "text": &text }))
        .await?;
    let begun = Instant::now();
    for _ in 0..DOCUMENTS {
        let event = stream.next().await.context("the change stream ended")??;
        let document = event.full_document.context("an insert has its document")?;
        hub.replace_one(doc! { "_id": document.get("_id") }, &document).upsert(true).await?;
        let position = doc! { "_id": "position", "token": bson::serialize_to_bson(&event.id)? };
        hub.replace_one(doc! { "_id": "position" }, position).upsert(true).await?;
    }
    Ok(DOCUMENTS as f64 / begun.elapsed().as_secs_f64())
}
