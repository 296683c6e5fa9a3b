//! Small updates of large documents. The program carries only the changed fields, compared with whole documents.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::application::{Batch, Load};
use super::figures::{Figure, median};
use super::floors::Carried;
use super::site::{Route, Site};
use super::throughput::{fill, program};
use super::{check, floors};

/// Approximate size of a document in bytes.
pub const BYTES: usize = 20_000;

/// Counted rounds, after one round for warm-up.
const ROUNDS: usize = 3;

/// Updated documents per replaced document. Updates are much faster, and rounds of both kinds should take about as
/// long.
const MORE: usize = 4;

/// Time per document in one round, in each way.
struct Round {
    /// Updates, carried by the program.
    synced: Duration,
    /// Replacements, carried by the program.
    replaced: Duration,
    directly: Duration,
    replaced_directly: Duration,
    /// Updates, carried as whole documents by a simple tool.
    carried: Duration,
}

/// Changes one field of documents at the source, and carries the changes to all destinations in every way, in turn.
pub async fn measure(site: &Site, route: &Route<'_>, load: &Load) -> Result<Vec<Figure>> {
    fill(site, route, load, MORE).await?;
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        rounds.push(measure_once(site, route, load, round).await?);
    }
    rounds.remove(0);
    check::same(route, &load.filter(), MORE * load.documents).await?;
    let name = format!("{}: small updates of documents of {}", route.name, load.size());
    let ratio = |of: fn(&Round) -> Duration, to: fn(&Round) -> Duration| {
        let mut ratios: Vec<f64> =
            rounds.iter().map(|round| of(round).as_secs_f64() / to(round).as_secs_f64()).collect();
        median(&mut ratios)
    };
    let times = |of: fn(&Round) -> Duration| ratio(of, |round| round.synced);
    let mut rates: Vec<f64> = rounds.iter().map(|round| 1.0 / round.synced.as_secs_f64()).collect();
    Ok(vec![
        Figure::at_least(&name, "times carrying whole documents", times(|round| round.carried), 3.0),
        Figure::plain(
            &name,
            "doing it directly, times carrying whole documents",
            ratio(|round| round.carried, |round| round.directly),
        ),
        Figure::plain(&name, "of the rate of doing it directly", times(|round| round.directly)),
        Figure::plain(&name, "times replacing whole documents directly", times(|round| round.replaced_directly)),
        Figure::plain(&name, "times replacements by the program", times(|round| round.replaced)),
        Figure::plain(&name, "changes/s in all destinations", median(&mut rates)),
    ])
}

async fn measure_once(site: &Site, route: &Route<'_>, load: &Load, round: usize) -> Result<Round> {
    // Every write must change its document.
    let value = |way: usize| (round * 5 + way) as i32;
    let part = round % MORE;
    let updates = |way| load.updates(part, value(way));
    let replacements = |way| Arc::new(load.replacements(part, value(way)));
    let more_updates = |way| -> Vec<Batch> { (0..MORE).flat_map(|part| load.updates(part, value(way))).collect() };
    let (same, whole) = (Arc::new(more_updates(1)), replacements(2));
    let (few, many) = (load.documents as u32, (MORE * load.documents) as u32);
    Ok(Round {
        directly: floors::pipelined(route, &same, &same).await? / many,
        replaced_directly: floors::pipelined(route, &updates(2), &whole).await? / few,
        carried: floors::carried(route, &Arc::new(updates(3)), Carried::Replacements).await? / few,
        synced: program(site, route, &more_updates(4)).await? / many,
        replaced: program(site, route, &replacements(5)).await? / few,
    })
}
