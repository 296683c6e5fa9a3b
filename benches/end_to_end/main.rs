//! `make bench`: speed and cost of the program end to end, compared with the same servers alone in the same run.
//!
//! Figures are ratios. Rounds of both ways alternate, the first round is discarded, and the median of the others
//! counts. `docs/benchmarks.md` describes the method.
//!
//! - [`parts`]: the parts to measure; [`figures`]: the results
//! - [`place`], [`site`], [`crowd`], [`running`], [`usage`]: the servers, and the program between them
//! - [`application`]: the writes; [`floors`]: the same work without the program; [`check`]: comparison of the documents
//! - [`throughput`], [`updates`], [`latency`], [`loaded`]: rates and latencies of changes
//! - [`wire`], [`bytes`]: a long wire to the servers, and the bytes on the wires
//! - [`copies`]: [`initial`], [`catch_up`], [`reconcile`], [`verify`]: many documents from before the start
//! - [`refill`]: a spoke that has lost its disk
//! - [`small`]: a destination with little memory
//! - [`scale`]: the cost of each spoke; [`thousand`]: many spokes in one process
//! - [`cluster`]: several processes that share the spokes
//! - [`reference`]: the way of working that this program replaces

mod application;
mod bytes;
mod catch_up;
mod check;
mod cluster;
mod copies;
mod crowd;
mod figures;
mod floors;
mod initial;
mod latency;
mod loaded;
mod parts;
mod place;
mod reconcile;
mod reference;
mod refill;
mod running;
mod scale;
mod site;
mod small;
mod thousand;
mod throughput;
mod updates;
mod usage;
mod verify;
mod wire;

use std::time::Instant;

use anyhow::{Context, Result};
use figures::Figure;
use parts::Parts;

#[tokio::main]
async fn main() -> Result<()> {
    let parts = Parts::asked()?;
    let mut figures = Vec::new();
    let measured = measure(&parts, &mut figures).await;
    // Figures from before a failure are worth showing, too.
    println!("{}", figures::table(&figures));
    println!("figures with a goal:\n{}", figures::table(figures.iter().filter(|figure| figure.has_goal())));
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("benchmarks.json");
    std::fs::write(&file, serde_json::to_string_pretty(&figures::json(&figures))?)?;
    println!("the same as JSON: {}", file.display());
    measured
}

async fn measure(parts: &Parts, figures: &mut Vec<Figure>) -> Result<()> {
    if parts.have_any(&["inserts", "updates", "deletes", "mix"]) {
        for &spokes in &parts.fan_outs {
            let name = format!("throughput, fan-out to {spokes}");
            add(figures, &name, throughput::measure(parts, spokes)).await?;
        }
    }
    if parts.have("latency") {
        add(figures, "latency", latency::measure(parts)).await?;
    }
    if parts.have("wire") {
        add(figures, "wire", wire::measure(parts)).await?;
    }
    if parts.have("bytes") {
        add(figures, "bytes", bytes::measure(parts)).await?;
    }
    if parts.have_any(&["initial", "catch-up", "reconcile", "verify"]) {
        add(figures, "copies", copies::measure(parts)).await?;
    }
    if parts.have("refill") {
        add(figures, "refill", refill::measure(parts)).await?;
    }
    if parts.have("small") {
        add(figures, "small", small::measure(parts)).await?;
    }
    if parts.have("scale") {
        add(figures, "scale", scale::measure(parts)).await?;
    }
    // Needs more than a small machine has, so it runs only by its name.
    if parts.name("thousand") {
        add(figures, "thousand", thousand::measure(parts)).await?;
    }
    // Takes a quarter of an hour, most of which it waits for leases to run out.
    if parts.name("cluster") {
        add(figures, "cluster", cluster::measure(parts)).await?;
    }
    if parts.have("reference") {
        add(figures, "reference", reference::measure(parts)).await?;
    }
    Ok(())
}

async fn add(
    figures: &mut Vec<Figure>,
    name: &str,
    measuring: impl Future<Output = Result<Vec<Figure>>>,
) -> Result<()> {
    let begun = Instant::now();
    figures.extend(measuring.await.with_context(|| format!("measuring {name}"))?);
    eprintln!("{name}: measured in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}
