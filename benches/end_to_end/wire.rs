//! What a long wire between the program and the spokes costs: 25 ms each way.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bson::doc;
use testbed::proxy::Wire;

use super::figures::{Figure, median};
use super::inserts::{self, Load};
use super::latency::{majority, seen};
use super::site::{SOURCE, Site};

/// How long a byte takes, one way.
const ONE_WAY: Duration = Duration::from_millis(25);

/// How many single changes are timed.
const CHANGES: usize = 40;

/// How often throughput is measured.
const ROUNDS: usize = 4;

/// With the delay and without, in turn. The site's program must reach its spokes by wires.
pub async fn measure(site: &Site, load: &Load) -> Result<Vec<Figure>> {
    let (mut ratios, mut bytes) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (near, carried) = timed(site, load, 2 * round, Wire::Open).await?;
        let (far, _) = timed(site, load, 2 * round + 1, Wire::Slow(ONE_WAY)).await?;
        if round > 0 {
            ratios.push(near.as_secs_f64() / far.as_secs_f64());
            bytes.push(carried as f64 / load.documents as f64);
        }
    }
    site.set_wires(Wire::Slow(ONE_WAY));
    let mut round_trips = Vec::new();
    for number in 0..CHANGES {
        let id = format!("wire {number}");
        let begun = Instant::now();
        majority(&site.hub.messages()).insert_one(doc! { "_id": &id, "_pk": SOURCE }).await?;
        seen(&site.source, &id).await?;
        round_trips.push(begun.elapsed().as_secs_f64() / (2 * ONE_WAY).as_secs_f64());
    }
    site.set_wires(Wire::Open);
    let name = "50 ms of round trip to every spoke";
    let wires = site.watchers.len() + 1;
    Ok(vec![
        Figure::at_least(name, "of the rate without, 1 up, 3 down", median(&mut ratios), 0.8),
        Figure::at_most(name, "round trips idle, hub to spoke, p50", median(&mut round_trips), 4.0),
        Figure::plain(
            &format!("inserts of {} bytes, over {wires} wires", load.bytes),
            "bytes per document",
            median(&mut bytes),
        ),
    ])
}

/// How long a round takes with such wires, and how many bytes they carry.
async fn timed(site: &Site, load: &Load, round: usize, wire: Wire) -> Result<(Duration, u64)> {
    site.set_wires(wire);
    let (before, begun) = (site.wire_bytes(), Instant::now());
    inserts::insert(&site.source.messages(), load, round).await?;
    site.settle().await?;
    let (taken, carried) = (begun.elapsed(), site.wire_bytes() - before);
    let expected = load.documents * (round + 1);
    for place in site.destinations() {
        let found = place.messages().count_documents(doc! {}).await?;
        ensure!(found == expected as u64, "{} holds {found} of {expected} documents", place.name);
    }
    Ok((taken, carried))
}
