//! `make bench`: what the program does end to end, against what the same servers do by themselves in the same run.
//!
//! Figures are ratios; rounds of both ways are interleaved, the first is thrown away, and the median counts.
//! `docs/benchmarks.md` tells the method.
//!
//! - [`parts`]: what is measured; [`figures`]: what came out
//! - [`place`], [`site`], [`crowd`], [`running`], [`usage`]: the servers, and the program between them
//! - [`application`]: what is written; [`floors`]: the same directly; [`check`]: whether all arrived
//! - [`throughput`], [`updates`], [`latency`], [`loaded`]: how fast changes arrive
//! - [`wire`], [`bytes`]: between the program and the servers
//! - [`copies`]: [`initial`], [`catch_up`], [`reconcile`], [`verify`]: many documents that are there already
//! - [`scale`]: what spokes cost; [`reference`]: the way of working that this program replaces

mod application;
mod bytes;
mod catch_up;
mod check;
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
mod running;
mod scale;
mod site;
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
    // What was measured before something failed is worth showing.
    println!("{}", figures::table(&figures));
    println!("what has a goal:\n{}", figures::table(figures.iter().filter(|figure| figure.has_goal())));
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
    if parts.have("scale") {
        add(figures, "scale", scale::measure(parts)).await?;
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
