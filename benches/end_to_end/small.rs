//! A small destination: a spoke with the smallest cache of a server and an index on every field. A transaction of the
//! usual size does not fit the cache.

use std::time::{Duration, Instant};

use anyhow::Result;
use bson::raw::CStr;
use bson::{RawDocumentBuf, doc, rawdoc};
use mongodb::{Collection, IndexModel};
use testbed::node::Options;

use super::check;
use super::figures::{Figure, median};
use super::parts::Parts;
use super::site::{SHARED, Site, Wires};

/// Documents of a round.
const DOCUMENTS: usize = 4_000;

/// Fields of a document, of about 1 kB together.
const FIELDS: i64 = 100;

/// Documents in a command.
const TOGETHER: usize = 1_000;

/// The smallest cache that a server accepts.
const CACHE_GIGABYTES: f32 = 0.25;

/// Rounds that count.
const ROUNDS: usize = 2;

/// Measures how fast a hub application's documents reach the spoke, as a share of ordered bulk writes at the spoke.
pub async fn measure(parts: &Parts) -> Result<Vec<Figure>> {
    let options = Options { cache_gigabytes: Some(CACHE_GIGABYTES), ..Options::default() };
    let mut site = Site::prepare_with(1, Wires::None, &options).await?;
    let spoke = &site.spokes[0];
    let every_field = || IndexModel::builder().keys(doc! { "$**": 1 }).build();
    spoke.messages().create_index(every_field()).await?;
    spoke.floor().create_index(every_field()).await?;
    site.start_program().await?;
    let number = parts.share_of(DOCUMENTS, TOGETHER);
    let (mut shares, mut rates) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let documents: Vec<RawDocumentBuf> = (round * number..(round + 1) * number).map(document).collect();
        let floor = written(&site.spokes[0].floor(), &documents).await?;
        let begun = Instant::now();
        written(&site.hub.messages(), &documents).await?;
        site.settle(&site.fan_out()).await?;
        let synced = begun.elapsed();
        if round > 0 {
            shares.push(floor.as_secs_f64() / synced.as_secs_f64());
            rates.push(number as f64 / synced.as_secs_f64());
        }
    }
    check::same(&site.fan_out(), &doc! { "_pk": SHARED }, (ROUNDS + 1) * number).await?;
    let name = "hub → spoke with 0.25 GB of cache and an index on 100 fields: inserts of 1 kB";
    Ok(vec![
        Figure::at_least(name, "of the rate of ordered bulk writes", median(&mut shares), 0.5),
        Figure::plain(name, "changes/s", median(&mut rates)),
    ])
}

async fn written(collection: &Collection<RawDocumentBuf>, documents: &[RawDocumentBuf]) -> Result<Duration> {
    let begun = Instant::now();
    for command in documents.chunks(TOGETHER) {
        collection.insert_many(command).ordered(true).await?;
    }
    Ok(begun.elapsed())
}

fn document(number: usize) -> RawDocumentBuf {
    let number = i64::try_from(number).unwrap_or(i64::MAX);
    let mut document = rawdoc! { "_id": number, "_pk": SHARED };
    for field in 0..FIELDS {
        let name = format!("f{field}");
        let name: &CStr = name.as_str().try_into().expect("a name without zero bytes");
        // Different in every document, and in no order.
        document.append(name, (number * 7_919 + field * 104_729) % 1_000_003);
    }
    document
}
