//! A thousand spokes in one process: the start, the rest, a hub application that writes for all, and the end.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::crowd::{Crowd, Pace, Watch};
use super::figures::Figure;
use super::parts::Parts;

/// Spokes.
const SPOKES: usize = 1_000;

/// Servers that play the spokes. They share the machine with the program and the hub, and every write to one of them
/// wakes all change streams there, which no real spoke does: so they take most of the CPU.
const PLAYERS: usize = 4;

/// Duration of the idle measurement.
const REST: Duration = Duration::from_secs(10);

/// A hub application: 240 documents of 0.5 kB a second, for ten seconds.
const PACE: Pace = Pace { documents: 24, bytes: 500, interval: Duration::from_millis(100), batches: 100 };

/// Measures one process with all spokes.
pub async fn measure(parts: &Parts) -> Result<Vec<Figure>> {
    let spokes = parts.share_of(SPOKES, 10);
    let mut crowd = Crowd::prepare(PLAYERS).await?;
    let begun = Instant::now();
    crowd.start(spokes, Watch::Same).await?;
    let (until_all_stream, started) = (begun.elapsed(), crowd.usage()?);
    let idle = crowd.rest(REST).await?;
    let (resting, connections) = (crowd.usage()?, crowd.connections().await?);
    let pace = Pace { batches: parts.share_of(PACE.batches, 5), ..PACE };
    crowd.work(spokes, Watch::Same, &pace).await?;
    let busy = crowd.usage()?;
    let begun = Instant::now();
    crowd.stop().await?;
    let stopping = begun.elapsed();
    let name = |what: &str| format!("{spokes} spokes in one process: {what}");
    let percent = |cpu: Duration| cpu.as_secs_f64() * 100.0 / REST.as_secs_f64();
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    Ok(vec![
        Figure::at_most(&name("until all stream"), "s", until_all_stream.as_secs_f64(), 20.0),
        Figure::at_most(&name("until all stream"), "s of the program's CPU", started.cpu.as_secs_f64(), 8.0),
        Figure::at_most(&name("idle"), "MB of memory", megabytes(resting.memory), 500.0),
        Figure::at_most(&name("idle"), "% of a core for the program", percent(idle.program), 8.0),
        Figure::at_most(&name("idle"), "% of a core for the hub", percent(idle.hub), 5.0),
        Figure::at_most(&name("idle"), "connections at the hub", f64::from(connections), 128.0),
        Figure::at_most(&name("240 documents a second for all"), "MB of memory", megabytes(busy.peak_memory), 700.0),
        Figure::at_most(&name("from SIGTERM to exit 0"), "s", stopping.as_secs_f64(), 5.0),
    ])
}
