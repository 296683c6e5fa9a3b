//! Rate of changes from an application to all destinations, compared with the same work done directly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::application::{self, Batch, Load};
use super::figures::{Figure, median};
use super::floors::Carried;
use super::parts::Parts;
use super::site::{Route, Site, Wires};
use super::{check, floors, updates};

/// Counted rounds, after one round for warm-up.
const ROUNDS: usize = 3;

/// Counted rounds of inserts of the size with a goal.
const MORE_ROUNDS: usize = 5;

/// Document size in bytes with a goal. Documents of this size are inserted, updated, deleted and mixed.
const USUAL_BYTES: usize = 500;

/// Document sizes in bytes that are only inserted.
const OTHER_BYTES: [usize; 3] = [200, 5_000, 100_000];

/// Documents changed per round, at source and destinations together, unless the documents are large.
const DOCUMENTS: usize = 90_000;

/// Bytes changed per round, at source and destinations together, at most.
const BYTES: usize = 180_000_000;

/// Factor of documents for inserts, unless the documents are large. Inserts are faster than other changes, and in a
/// shorter round the travel time of the last documents would count too much.
const MORE_INSERTS: usize = 3;

/// Measures every route of a site with this number of spokes.
pub async fn measure(parts: &Parts, spokes: usize) -> Result<Vec<Figure>> {
    let site = Site::start(spokes, Wires::None).await?;
    let mut figures = Vec::new();
    if spokes == 1 {
        figures.extend(usual(parts, &site, &site.uplink(), true).await?);
        figures.extend(others(parts, &site, &site.uplink()).await?);
    }
    figures.extend(usual(parts, &site, &site.fan_out(), spokes == 3).await?);
    if spokes == 3 {
        if parts.have("inserts") {
            let route = site.onward();
            figures.extend(inserts(parts, &site, &route, USUAL_BYTES, ROUNDS, false).await?);
        }
        figures.push(memory(&site, "after changes of documents of 0.5 kB")?);
    }
    figures.extend(others(parts, &site, &site.fan_out()).await?);
    if spokes == 3 {
        figures.push(memory(&site, "after all loads")?);
    }
    Ok(figures)
}

/// Measures inserts, updates, deletes and the mix of documents of the usual size.
async fn usual(parts: &Parts, site: &Site, route: &Route<'_>, has_goals: bool) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if parts.have("inserts") {
        figures.extend(inserts(parts, site, route, USUAL_BYTES, MORE_ROUNDS, has_goals).await?);
    }
    let load = load(parts, route, USUAL_BYTES);
    if parts.have_any(&["updates", "deletes"]) {
        fill(site, route, &load, ROUNDS + 1).await?;
    }
    if parts.have("updates") {
        let measured = in_turn(site, route, ROUNDS, |round| load.updates(round, 1), None).await?;
        check::same(route, &load.filter(), load.documents * (ROUNDS + 1)).await?;
        figures.extend(measured.figures(route, "updates", &load, false));
    }
    if parts.have("deletes") {
        let measured = in_turn(site, route, ROUNDS, |round| load.deletes(round), None).await?;
        check::same(route, &load.filter(), 0).await?;
        figures.extend(measured.figures(route, "deletes", &load, false));
    }
    if parts.have("mix") {
        let load = self::load(parts, route, USUAL_BYTES);
        let measured = in_turn(site, route, ROUNDS, |round| load.mix(round), None).await?;
        check::same(route, &load.filter(), (ROUNDS + 1) * load.left_by_mix()).await?;
        figures.extend(measured.figures(route, "inserts, updates, deletes 70:25:5", &load, false));
    }
    Ok(figures)
}

/// Measures inserts of other sizes, and small updates of large documents.
async fn others(parts: &Parts, site: &Site, route: &Route<'_>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if parts.have("inserts") {
        for bytes in OTHER_BYTES {
            figures.extend(inserts(parts, site, route, bytes, ROUNDS, false).await?);
        }
    }
    if parts.have("updates") {
        figures.extend(updates::measure(site, route, &load(parts, route, updates::BYTES)).await?);
    }
    Ok(figures)
}

/// A load whose rounds of changes take about a second.
pub fn load(parts: &Parts, route: &Route<'_>, bytes: usize) -> Load {
    times(1, parts, route, bytes)
}

fn times(factor: usize, parts: &Parts, route: &Route<'_>, bytes: usize) -> Load {
    let documents = (factor * DOCUMENTS).min(BYTES / bytes) / (route.destinations.len() + 1);
    Load::new(route.zone, parts.share_of(documents, 20), bytes)
}

/// Measures inserts of one size. Inserts with goals are also compared with a simple tool.
async fn inserts(
    parts: &Parts,
    site: &Site,
    route: &Route<'_>,
    bytes: usize,
    rounds: usize,
    has_goals: bool,
) -> Result<Vec<Figure>> {
    let [load, others] = [(); 2].map(|()| times(MORE_INSERTS, parts, route, bytes));
    let measured = in_turn(site, route, rounds, |round| load.inserts(round), has_goals.then_some(&others)).await?;
    check::same(route, &load.filter(), load.documents * (rounds + 1)).await?;
    Ok(measured.figures(route, "inserts", &load, has_goals))
}

/// Writes documents to all servers, for the program and for the floor.
pub async fn fill(site: &Site, route: &Route<'_>, load: &Load, rounds: usize) -> Result<()> {
    for round in 0..rounds {
        let batches = Arc::new(load.inserts(round));
        floors::pipelined(route, &batches, &batches).await?;
        program(site, route, &batches).await?;
    }
    check::same(route, &load.filter(), load.documents * rounds).await
}

/// Measurements from rounds of both ways.
#[derive(Default)]
pub struct Measured {
    ratios: Vec<f64>,
    rates: Vec<f64>,
    floors: Vec<f64>,
    /// The program's rate as a share of a simple tool's, by round.
    simple: Vec<f64>,
    /// CPU time of the program for `delivered` changes.
    cpu: Duration,
    delivered: f64,
    /// CPU time of all servers on the route for `changes` changes: directly, with the program, with a simple tool.
    servers: [Duration; 3],
    changes: f64,
}

/// Does the same work directly and with the program, in turn. A simple tool inserts the documents of `simple`, too.
pub async fn in_turn(
    site: &Site,
    route: &Route<'_>,
    rounds: usize,
    changes: impl Fn(usize) -> Vec<Batch>,
    simple: Option<&Load>,
) -> Result<Measured> {
    let mut measured = Measured::default();
    // The first round is for warm-up.
    for round in 0..=rounds {
        let batches = Arc::new(changes(round));
        let at_first = route.cpu()?;
        let floor = floors::pipelined(route, &batches, &batches).await?;
        let (between, before) = (route.cpu()?, site.cpu()?);
        let synced = program(site, route, &batches).await?;
        let (after, cpu) = (route.cpu()?, site.cpu()? - before);
        let carried = match simple {
            Some(load) => Some(floors::carried(route, &Arc::new(load.inserts(round)), Carried::Inserts).await?),
            None => None,
        };
        let at_last = route.cpu()?;
        if round > 0 {
            let changes = batches.iter().map(Batch::changes).sum::<usize>() as f64;
            measured.ratios.push(floor.as_secs_f64() / synced.as_secs_f64());
            measured.rates.push(changes / synced.as_secs_f64());
            measured.floors.push(changes / floor.as_secs_f64());
            measured.cpu += cpu;
            measured.delivered += changes * route.destinations.len() as f64;
            measured.servers[0] += between - at_first;
            measured.servers[1] += after - between;
            measured.servers[2] += at_last - after;
            measured.simple.extend(carried.map(|carried| carried.as_secs_f64() / synced.as_secs_f64()));
            measured.changes += changes;
        }
    }
    Ok(measured)
}

/// Writes at the source, and waits until every destination has all changes.
pub async fn program(site: &Site, route: &Route<'_>, batches: &[Batch]) -> Result<Duration> {
    let begun = Instant::now();
    application::write(&route.source.messages(), batches).await?;
    site.settle(route).await?;
    Ok(begun.elapsed())
}

impl Measured {
    fn figures(mut self, route: &Route<'_>, what: &str, load: &Load, has_goals: bool) -> Vec<Figure> {
        let name = format!("{}: {what} of {}", route.name, load.size());
        let ratio = Figure::plain(&name, "of the rate of doing it directly", median(&mut self.ratios));
        let cost = self.cpu.as_secs_f64() * 1e6 / self.delivered;
        let cost = Figure::plain(&name, "s of CPU per million delivered", cost);
        let servers = self.servers.map(|cpu| cpu.as_secs_f64() * 1e6 / self.changes);
        let mut figures = vec![
            if has_goals { ratio.should_be_at_least(0.85) } else { ratio },
            Figure::plain(&name, "changes/s in all destinations", median(&mut self.rates)),
            Figure::plain(&name, "changes/s directly", median(&mut self.floors)),
            if has_goals { cost.should_be_at_most(4.0) } else { cost },
            Figure::plain(&name, "s of the servers' CPU per million changes", servers[1]),
            Figure::plain(&name, "s of the servers' CPU per million changes directly", servers[0]),
        ];
        if !self.simple.is_empty() {
            let rate = median(&mut self.simple);
            figures.push(Figure::plain(&name, "of the rate of a change stream and inserts alone", rate));
            let unit = "s of the servers' CPU per million changes by a change stream and inserts alone";
            figures.push(Figure::plain(&name, unit, servers[2]));
        }
        figures
    }
}

fn memory(site: &Site, when: &str) -> Result<Figure> {
    let peak = site.usage()?.peak_memory as f64 / 1e6;
    Ok(Figure::at_most(&format!("the program with 3 spokes under full load, {when}"), "MB of memory", peak, 120.0))
}
