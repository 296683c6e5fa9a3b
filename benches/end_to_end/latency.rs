//! Latency of a single change while nothing else happens, compared with direct writes at each server on the route.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bson::{Document, doc};

use super::figures::{Figure, median, percentile};
use super::loaded;
use super::parts::Parts;
use super::place::{Place, majority};
use super::site::{Route, Site, Wires};

/// Timed changes.
const CHANGES: usize = 1_000;

/// Changes for warm-up, before the timed changes.
const WARM_UP: usize = 50;

/// Time limit for one change.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Measures every route, idle and while an application writes at half the route's maximum rate.
pub async fn measure(parts: &Parts) -> Result<Vec<Figure>> {
    let site = Site::start(3, Wires::None).await?;
    let mut figures = Vec::new();
    let changes = parts.share_of(CHANGES, 20);
    figures.extend(idle(&site.downlink(), changes).await?.figures("idle, hub → spoke", true));
    figures.extend(idle(&site.uplink(), changes).await?.figures("idle, spoke → hub", false));
    figures.extend(idle(&onward(&site), changes).await?.figures("idle, spoke → hub → spoke", false));
    for (route, name) in [
        (site.downlink(), "half the maximum, hub → spoke"),
        (site.uplink(), "half the maximum, spoke → hub"),
        (onward(&site), "half the maximum, spoke → hub → spoke"),
    ] {
        figures.extend(loaded::measure(parts, &site, &route).await?.figures(name, false));
    }
    Ok(figures)
}

/// The route from a spoke through the hub to one other spoke. The change is awaited at the last destination only.
fn onward(site: &Site) -> Route<'_> {
    let mut route = site.onward();
    route.destinations.truncate(2);
    route
}

/// Times a change until the last destination shows the change, and in turn one majority write at each server.
async fn idle(route: &Route<'_>, changes: usize) -> Result<Latency> {
    let mut latency = Latency::default();
    for number in 0..WARM_UP + changes {
        let id = format!("idle {} {number}", route.name);
        let (directly, synced) = (directly(route, &id).await?, synced(route, &id).await?);
        if number >= WARM_UP {
            latency.directly.push(directly);
            latency.synced.push(synced);
        }
    }
    Ok(latency)
}

/// Milliseconds for one majority write at each server on the route, in sequence.
pub async fn directly(route: &Route<'_>, id: &str) -> Result<f64> {
    let begun = Instant::now();
    for place in std::iter::once(&route.source).chain(&route.destinations) {
        majority(&place.floor()).insert_one(doc! { "_id": id, "_pk": route.zone }).await?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Milliseconds from before a majority write at the source until the last destination shows the document.
pub async fn synced(route: &Route<'_>, id: &str) -> Result<f64> {
    let begun = Instant::now();
    majority(&route.source.messages()).insert_one(probe(route, id)).await?;
    seen(route.last()?, id).await?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// A document whose arrival is timed.
pub fn probe(route: &Route<'_>, id: &str) -> Document {
    doc! { "_id": id, "_pk": route.zone, "is_probe": true }
}

async fn seen(place: &Place, id: &str) -> Result<()> {
    let begun = Instant::now();
    while place.messages().find_one(doc! { "_id": id }).await?.is_none() {
        ensure!(begun.elapsed() < LIMIT, "{id} did not arrive at {}", place.name);
    }
    Ok(())
}

/// Measured times in milliseconds.
#[derive(Default)]
pub struct Latency {
    /// Majority writes at each server.
    pub directly: Vec<f64>,
    /// From the write at the source to the arrival at the last destination.
    pub synced: Vec<f64>,
}

impl Latency {
    fn figures(mut self, name: &str, has_goals: bool) -> Vec<Figure> {
        let (floor, floor_p99) = (median(&mut self.directly), percentile(&mut self.directly, 0.99));
        let mut at = |share| percentile(&mut self.synced, share);
        let (p50, p95, p99) = (at(0.5), at(0.95), at(0.99));
        let usual = Figure::plain(name, "times direct majority writes, p50", p50 / floor);
        let worst = Figure::plain(name, "times the median of direct majority writes, p99", p99 / floor);
        vec![
            if has_goals { usual.should_be_at_most(2.5) } else { usual },
            if has_goals { worst.should_be_at_most(4.0) } else { worst },
            Figure::plain(name, "ms, p50", p50),
            Figure::plain(name, "ms, p95", p95),
            Figure::plain(name, "ms, p99", p99),
            Figure::plain(name, "ms for direct majority writes, p50", floor),
            Figure::plain(name, "ms for direct majority writes, p99", floor_p99),
        ]
    }
}
