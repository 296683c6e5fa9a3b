//! Small updates of large documents: they travel as what has changed, which is held against replacing the whole documents.

use std::sync::Arc;

use anyhow::Result;

use super::application::Load;
use super::figures::{Figure, median};
use super::floors::Carried;
use super::site::{Route, Site};
use super::throughput::{fill, program};
use super::{check, floors};

/// About how large each document is.
pub const BYTES: usize = 20_000;

/// How often it is measured; the first round, which only warms up, is not counted here.
const ROUNDS: i32 = 3;

/// Changes one field of every document at the source, and brings that to all destinations in four ways, in turn.
pub async fn measure(site: &Site, route: &Route<'_>, load: &Load) -> Result<Vec<Figure>> {
    fill(site, route, load, 1).await?;
    let (mut ratios, mut times, mut carried_times, mut rates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let change = |way: i32| load.updates(0, 1 + round * 3 + way);
        let (deltas, more, most) = (Arc::new(change(0)), change(1), Arc::new(change(2)));
        let directly = floors::pipelined(route, &deltas, &deltas).await?;
        let whole = Arc::new(load.replacements(0, 2 + round * 3));
        let replaced = floors::pipelined(route, &more, &whole).await?;
        let carried = floors::carried(route, &most, Carried::Replacements).await?;
        let synced = program(site, route, &deltas).await?;
        if round > 0 {
            ratios.push(directly.as_secs_f64() / synced.as_secs_f64());
            carried_times.push(carried.as_secs_f64() / synced.as_secs_f64());
            times.push(replaced.as_secs_f64() / synced.as_secs_f64());
            rates.push(load.documents as f64 / synced.as_secs_f64());
        }
    }
    check::same(route, &load.filter(), load.documents).await?;
    let name = format!("{}: small updates of documents of {}", route.name, load.size());
    Ok(vec![
        Figure::plain(&name, "of the rate of doing it directly", median(&mut ratios)),
        Figure::plain(&name, "times replacing whole documents directly", median(&mut times)),
        Figure::at_least(&name, "times carrying whole documents", median(&mut carried_times), 3.0),
        Figure::plain(&name, "changes/s in all destinations", median(&mut rates)),
    ])
}
