//! The first copy of a spoke that has lost its disk: documents of its own zone, which both sides may write, compared
//! with documents of a watched zone.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::application::{self, Load};
use super::check;
use super::figures::{Figure, median};
use super::parts::Parts;
use super::site::{SHARED, Site, Wires};

/// Documents at the hub.
const DOCUMENTS: usize = 100_000;

/// Size of a document in bytes.
const BYTES: usize = 500;

/// Counted rounds, after one round for warm-up.
const ROUNDS: usize = 2;

/// Measures from the start of the program until the spoke has all documents of the hub, for each zone in turn.
pub async fn measure(parts: &Parts) -> Result<Vec<Figure>> {
    let mut site = Site::prepare(1, Wires::None).await?;
    let documents = parts.share_of(DOCUMENTS, 1_000);
    let own = Load::new(site.uplink().zone, documents, BYTES);
    let watched = Load::new(SHARED, documents, BYTES);
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let others = filled(&mut site, &watched).await?;
        let taken = filled(&mut site, &own).await?;
        if round > 0 {
            ratios.push(others.as_secs_f64() / taken.as_secs_f64());
            rates.push(documents as f64 / taken.as_secs_f64());
        }
    }
    let name = format!("a spoke's own zone of {documents} documents of {}, refilled from the hub", own.size());
    Ok(vec![
        Figure::at_least(&name, "times the rate of a watched zone", median(&mut ratios), 0.8),
        Figure::plain(&name, "documents/s", median(&mut rates)),
    ])
}

async fn filled(site: &mut Site, load: &Load) -> Result<Duration> {
    site.forget().await?;
    for place in std::iter::once(&site.hub).chain(&site.spokes) {
        place.messages().drop().await?;
    }
    application::write(&site.hub.messages(), &load.inserts(0)).await?;
    let begun = Instant::now();
    site.start_program().await?;
    site.settle(&site.downlink()).await?;
    let taken = begun.elapsed();
    check::same(&site.downlink(), &load.filter(), load.documents).await?;
    Ok(taken)
}
