//! Compares source and destinations after a measurement: a fast but wrong result fails.

use anyhow::{Context, Result, ensure};
use bson::{Document, RawDocumentBuf, doc};
use mongodb::Cursor;

use super::place::Place;
use super::site::Route;

/// Checks that every destination holds the same `documents` documents as the source, byte by byte.
pub async fn same(route: &Route<'_>, filter: &Document, documents: usize) -> Result<()> {
    for destination in &route.destinations {
        let mut theirs = read(destination, filter).await?;
        let mut ours = read(route.source, filter).await?;
        let mut number = 0;
        while ours.advance().await? {
            let differs = || format!("{} differs from {} at {:?}", destination.name, route.source.name, ours.current());
            ensure!(theirs.advance().await? && ours.current() == theirs.current(), differs());
            number += 1;
        }
        ensure!(!theirs.advance().await?, "{} has more documents than {}", destination.name, route.source.name);
        ensure!(number == documents, "{number} of {documents} documents are at {}", destination.name);
    }
    Ok(())
}

async fn read(place: &Place, filter: &Document) -> Result<Cursor<RawDocumentBuf>> {
    place.messages().find(filter.clone()).sort(doc! { "_id": 1 }).await.context("cannot read")
}
