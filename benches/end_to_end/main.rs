//! `make bench`: what the program does end to end, against what the same servers do by themselves in the same run.
//!
//! Figures are ratios; rounds of both ways are interleaved, and the median counts. `docs/benchmarks.md` tells the method.

mod figures;
mod inserts;
mod latency;
mod reference;
mod site;
mod updates;
mod verify;
mod wire;

use anyhow::Result;
use figures::Figure;
use site::Site;

#[tokio::main]
async fn main() -> Result<()> {
    let site = Site::start(3).await?;
    let mut figures = latency::measure(&site).await?;
    let load = inserts::Load { documents: 60_000, bytes: 500, rounds: 5 };
    figures.extend(inserts::measure(&site, &load).await?);
    figures.extend(updates::measure(&site).await?);
    let memory = site.usage()?.peak_memory as f64 / 1e6;
    figures.push(Figure::at_most("the program under full load, 4 spokes", "MB of memory", memory, 120.0));
    figures.extend(reference::measure(&site, &load).await?);
    figures.extend(verify::measure(&site, &load).await?);
    drop(site);
    let far = Site::start_by_wires(3).await?;
    figures.extend(wire::measure(&far, &load).await?);

    println!("{}", figures::table(&figures));
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("benchmarks.json");
    std::fs::write(&file, serde_json::to_string_pretty(&figures::json(&figures))?)?;
    println!("the same as JSON: {}", file.display());
    Ok(())
}
