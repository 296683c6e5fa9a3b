//! Throughput and latency over a long wire between the program and the spokes: 25 ms each way.

use std::time::Duration;

use anyhow::Result;
use testbed::proxy::Wire;

use super::application::Load;
use super::check;
use super::figures::{Figure, median, percentile};
use super::latency::synced;
use super::parts::Parts;
use super::site::{Route, Site, Wires};
use super::throughput::{load, program};

/// Delay of every byte, one way.
const ONE_WAY: Duration = Duration::from_millis(25);

/// Size of a document in bytes.
const BYTES: usize = 500;

/// Timed changes.
const CHANGES: usize = 40;

/// Counted rounds of throughput, after one round for warm-up.
const ROUNDS: usize = 3;

/// Factor of a round's length compared with other parts, because the travel time of the last documents is long here.
const LONGER: usize = 6;

/// Measures throughput and latency of uplink and fan-out.
pub async fn measure(parts: &Parts) -> Result<Vec<Figure>> {
    let site = Site::start(3, Wires::Spokes).await?;
    let mut figures = Vec::new();
    for route in [site.uplink(), site.fan_out()] {
        figures.push(throughput(parts, &site, &route).await?);
    }
    site.set_wires(Wire::Slow(ONE_WAY)).await;
    let changes = parts.share_of(CHANGES, 10);
    let [usual, worst] = latency(&site.downlink(), changes).await?;
    figures.push(usual.should_be_at_most(4.0));
    figures.push(worst);
    figures.extend(latency(&site.uplink(), changes).await?);
    Ok(figures)
}

/// Measures throughput with the delay and without, in turn.
async fn throughput(parts: &Parts, site: &Site, route: &Route<'_>) -> Result<Figure> {
    let load = Load::new(route.zone, LONGER * load(parts, route, BYTES).documents, BYTES);
    let mut ratios = Vec::new();
    for round in 0..=ROUNDS {
        site.set_wires(Wire::Open).await;
        let near = program(site, route, &load.inserts(2 * round)).await?;
        site.set_wires(Wire::Slow(ONE_WAY)).await;
        let far = program(site, route, &load.inserts(2 * round + 1)).await?;
        if round > 0 {
            ratios.push(near.as_secs_f64() / far.as_secs_f64());
        }
    }
    check::same(route, &load.filter(), load.documents * 2 * (ROUNDS + 1)).await?;
    let name = format!("50 ms of round trip, {}: inserts of {}", route.name, load.size());
    Ok(Figure::at_least(&name, "of the rate without", median(&mut ratios), 0.8))
}

async fn latency(route: &Route<'_>, changes: usize) -> Result<[Figure; 2]> {
    let mut round_trips = Vec::new();
    for number in 0..changes {
        let milliseconds = synced(route, &format!("wire {} {number}", route.name)).await?;
        round_trips.push(milliseconds / (2 * ONE_WAY).as_millis() as f64);
    }
    let name = format!("50 ms of round trip, idle, {}", route.name);
    let usual = Figure::plain(&name, "round trips, p50", median(&mut round_trips));
    Ok([usual, Figure::plain(&name, "round trips, p95", percentile(&mut round_trips, 0.95))])
}
