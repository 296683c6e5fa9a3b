//! Duration and memory of a verification, compared with one read of the same documents from both sides.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bson::doc;
use futures_util::StreamExt;

use super::application::Load;
use super::figures::{Figure, median};
use super::parts::Parts;
use super::place::Place;
use super::site::Site;
use super::throughput::program;
use super::usage::Usage;

/// Documents to verify, at least; `BENCH_VERIFY_DOCUMENTS` overrides the number.
const DOCUMENTS: usize = 1_000_000;

/// Size in bytes of the documents added to reach the number.
const BYTES: usize = 500;

/// Documents inserted between two waits for the hub.
const TOGETHER: usize = 50_000;

/// Counted rounds, after one round for warm-up.
const ROUNDS: usize = 3;

/// Time between two readings of the process's memory.
const LOOK: Duration = Duration::from_millis(20);

/// Verifies the zone of the first spoke at hub and spoke, and in turn reads both sides directly.
pub async fn measure(parts: &Parts, site: &Site) -> Result<Vec<Figure>> {
    let asked = std::env::var("BENCH_VERIFY_DOCUMENTS").ok().and_then(|number| number.parse().ok());
    fill(site, asked.unwrap_or(parts.share_of(DOCUMENTS, 1_000))).await?;
    let (mut ratios, mut ordered, mut rates, mut peak, mut documents) = (Vec::new(), Vec::new(), Vec::new(), 0, 0);
    for round in 0..=ROUNDS {
        let floor = read_both(site, Order::None).await?;
        let in_order = read_both(site, Order::Id).await?;
        let (taken, memory) = verify(site, floor.documents).await?;
        documents = floor.documents;
        peak = peak.max(memory);
        if round > 0 {
            ratios.push(taken.as_secs_f64() / floor.taken.as_secs_f64());
            ordered.push(taken.as_secs_f64() / in_order.taken.as_secs_f64());
            rates.push(documents as f64 / taken.as_secs_f64());
        }
    }
    let name = format!("verify of {documents} documents of {} kB", BYTES as f64 / 1e3);
    Ok(vec![
        Figure::at_most(
            &name,
            "times reading them once from both sides in the order of _id",
            median(&mut ordered),
            1.5,
        ),
        Figure::plain(&name, "times reading them once from both sides in no order", median(&mut ratios)),
        Figure::plain(&name, "documents/s", median(&mut rates)),
        Figure::at_most(&name, "MB of memory", peak as f64 / 1e6, 100.0),
    ])
}

/// Inserts documents until the spoke holds the wanted number.
async fn fill(site: &Site, wanted: usize) -> Result<()> {
    let route = site.uplink();
    let found = usize::try_from(route.source.messages().count_documents(doc! { "_pk": route.zone }).await?)?;
    let mut missing = wanted.saturating_sub(found);
    while missing > 0 {
        let load = Load::new(route.zone, missing.min(TOGETHER), BYTES);
        program(site, &route, &load.inserts(0)).await?;
        missing -= load.documents;
    }
    Ok(())
}

/// The result of a read of both sides.
pub struct Read {
    /// Number of documents at each side.
    pub documents: usize,
    /// Duration of the read.
    pub taken: Duration,
}

/// Order in which documents are read.
#[derive(Clone, Copy)]
pub enum Order {
    /// No order: as the documents lie on disk.
    None,
    /// By the index of `_id`.
    Id,
}

/// Reads every document of the zone once at both sides, in parallel.
pub async fn read_both(site: &Site, order: Order) -> Result<Read> {
    let route = site.uplink();
    let begun = Instant::now();
    let reading = [&site.hub, route.source].map(async |place| read(place, route.zone, order).await);
    let read = futures_util::future::try_join_all(reading).await?;
    ensure!(read[0] == read[1], "the hub holds {} documents, and the spoke {}", read[0], read[1]);
    Ok(Read { documents: read[0], taken: begun.elapsed() })
}

async fn read(place: &Place, zone: &str, order: Order) -> Result<usize> {
    let messages = place.messages();
    let find = messages.find(doc! { "_pk": zone });
    let mut replies = match order {
        Order::None => find.batch().await?,
        Order::Id => find.sort(doc! { "_id": 1 }).batch().await?,
    };
    let mut number = 0;
    while let Some(reply) = replies.next().await {
        number += reply?.doc_slices()?.into_iter().count();
    }
    Ok(number)
}

/// Runs `spokesync verify`, and returns the duration, and the peak memory in bytes.
async fn verify(site: &Site, documents: usize) -> Result<(Duration, u64)> {
    let zone = site.uplink().zone;
    let begun = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
    command.args(["verify", "--afresh", "--json", "--spoke", zone, "--zone", zone]);
    command.arg("--config").arg(&site.running()?.config).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("cannot start spokesync verify")?;
    // The process blocks until its output is read, so a thread reads the output in parallel.
    let mut output = child.stdout.take().context("the process has no output")?;
    let reading = std::thread::spawn(move || std::io::read_to_string(&mut output));
    let (mut peak, id) = (0, child.id());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        // The process may have ended since `try_wait`.
        peak = Usage::of(id).map_or(peak, |usage| usage.peak_memory.max(peak));
        tokio::time::sleep(LOOK).await;
    };
    let taken = begun.elapsed();
    let output = reading.join().map_err(|_| anyhow!("the output was not read"))??;
    let report: serde_json::Value = serde_json::from_str(&output)?;
    ensure!(status.code() == Some(0) && report["documents"] == documents, "not equal: {report}");
    Ok((taken, peak))
}
