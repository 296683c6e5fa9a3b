//! The cost of spokes for the hub and the program: CPU, change streams, memory.

use std::time::Duration;

use anyhow::Result;

use super::crowd::{Crowd, Pace, Spent, Watch};
use super::figures::Figure;
use super::parts::Parts;

/// Numbers of spokes.
const SPOKES: [usize; 4] = [1, 4, 16, 48];

/// The cost of an idle spoke is the difference between `MANY` and `FEW` spokes.
const FEW: usize = 4;
const MANY: usize = 48;

/// Duration of an idle measurement.
const REST: Duration = Duration::from_secs(5);

/// Batches of the hub application. The kernel counts CPU in hundredths of a second, and the hub should use dozens.
const BATCHES: usize = 150;

/// Documents per batch: 300 a second.
const TOGETHER: usize = 30;

/// Time between two batches.
const INTERVAL: Duration = Duration::from_millis(100);

/// Size of a document in bytes.
const BYTES: usize = 500;

/// Measurements with one number of spokes.
struct Cost {
    spokes: usize,
    streams: usize,
    memory: u64,
    idle: Spent,
    busy: Spent,
}

/// Measures each number of spokes on one zone, and the largest number on disjoint zones.
pub async fn measure(parts: &Parts) -> Result<Vec<Figure>> {
    let batches = parts.share_of(BATCHES, 5);
    let pace = Pace { documents: TOGETHER, bytes: BYTES, interval: INTERVAL, batches };
    let changes = (batches * TOGETHER) as f64;
    let mut crowd = Crowd::prepare(1).await?;
    let mut costs = Vec::new();
    for spokes in SPOKES {
        costs.push(cost(&mut crowd, spokes, Watch::Same, &pace).await?);
    }
    let mut figures = Vec::new();
    for cost in &costs {
        let watched_by = cost.spokes as f64;
        figures.extend(figures_of(cost, &costs[0], "watching one zone", changes, changes * watched_by));
    }
    figures.extend(idle_spoke(&costs));
    let disjoint = cost(&mut crowd, MANY, Watch::Disjoint, &pace).await?;
    figures.extend(figures_of(&disjoint, &costs[0], "watching disjoint zones", changes, changes));
    Ok(figures)
}

async fn cost(crowd: &mut Crowd, spokes: usize, watch: Watch, pace: &Pace) -> Result<Cost> {
    crowd.start(spokes, watch).await?;
    let idle = crowd.rest(REST).await?;
    let memory = crowd.usage()?.memory;
    let streams = crowd.open_streams().await?;
    let busy = crowd.work(spokes, watch, pace).await?;
    Ok(Cost { spokes, streams, memory, idle, busy })
}

fn figures_of(cost: &Cost, one: &Cost, watching: &str, changes: f64, delivered: f64) -> Vec<Figure> {
    let name = format!("{} {} {watching}", cost.spokes, if cost.spokes == 1 { "spoke" } else { "spokes" });
    let streams = Figure::plain(&name, "change streams at the hub", cost.streams as f64);
    let hub = cost.busy.hub.as_secs_f64();
    let relative = Figure::plain(&name, "times the hub's CPU with 1 spoke", hub / one.busy.hub.as_secs_f64());
    let has_goal = cost.spokes == MANY && delivered > changes;
    vec![
        if has_goal { streams.should_be_at_most(1.0) } else { streams },
        if has_goal { relative.should_be_at_most(1.2) } else { relative },
        Figure::plain(&name, "ms of the hub's CPU per 1,000 changes", hub * 1e6 / changes),
        Figure::plain(&name, "ms of the hub's CPU per 1,000 delivered", hub * 1e6 / delivered),
        Figure::plain(
            &name,
            "ms of the hub's CPU per second, idle",
            cost.idle.hub.as_secs_f64() * 1e3 / REST.as_secs_f64(),
        ),
        Figure::plain(
            &name,
            "ms of the program's CPU per 1,000 changes",
            cost.busy.program.as_secs_f64() * 1e6 / changes,
        ),
    ]
}

/// The cost of each further idle spoke for the program.
fn idle_spoke(costs: &[Cost]) -> Vec<Figure> {
    let with = |spokes: usize| costs.iter().find(|cost| cost.spokes == spokes);
    let (Some(few), Some(many)) = (with(FEW), with(MANY)) else { return Vec::new() };
    let further = (MANY - FEW) as f64;
    let cpu = many.idle.program.as_secs_f64() - few.idle.program.as_secs_f64();
    let name = "each further idle spoke";
    vec![
        Figure::at_most(name, "MB of memory", (many.memory as f64 - few.memory as f64) / 1e6 / further, 1.0),
        Figure::plain(name, "ms of the program's CPU per second", cpu * 1e3 / REST.as_secs_f64() / further),
    ]
}
