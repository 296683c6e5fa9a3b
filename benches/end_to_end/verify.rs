//! How long a verification takes, against reading the same documents once from both sides, and how much memory.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bson::{Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use mongodb::Collection;

use super::figures::{Figure, median};
use super::inserts::{self, Load};
use super::site::{Place, SOURCE, Site, Usage};

/// How many documents there should be; `BENCH_VERIFY_DOCUMENTS` says otherwise.
const DOCUMENTS: u64 = 1_000_000;

/// How often it is measured.
const ROUNDS: usize = 3;

/// How often the process's memory is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Compares the zone of the source at hub and spoke in both ways, in turn.
pub async fn measure(site: &Site, load: &Load) -> Result<Vec<Figure>> {
    let wanted =
        std::env::var("BENCH_VERIFY_DOCUMENTS").ok().and_then(|number| number.parse().ok()).unwrap_or(DOCUMENTS);
    let documents = fill(site, load, wanted).await?;
    let (mut ratios, mut rates, mut peak) = (Vec::new(), Vec::new(), 0);
    for round in 0..=ROUNDS {
        let begun = Instant::now();
        let read = futures_util::future::try_join(read(&site.hub), read(&site.source)).await?;
        let floor = begun.elapsed();
        ensure!(read == (documents, documents), "{read:?} documents were read, of {documents}");
        let (taken, memory) = verify(site, documents).await?;
        if round > 0 {
            ratios.push(taken.as_secs_f64() / floor.as_secs_f64());
            rates.push(documents as f64 / taken.as_secs_f64());
            peak = peak.max(memory);
        }
    }
    let name = format!("verify of {documents} documents of {} bytes", load.bytes);
    Ok(vec![
        Figure::at_most(&name, "times reading them once from both sides", median(&mut ratios), 1.5),
        Figure::plain(&name, "documents/s", median(&mut rates)),
        Figure::at_most(&name, "MB of memory", peak as f64 / 1e6, 100.0),
    ])
}

/// Inserts until there are so many documents, and tells how many there are.
async fn fill(site: &Site, load: &Load, wanted: u64) -> Result<u64> {
    let messages = site.source.messages();
    let mut number = messages.count_documents(doc! {}).await?;
    let mut round = usize::try_from(number)?.div_ceil(load.documents);
    while number < wanted {
        inserts::insert(&messages, load, round).await?;
        round += 1;
        number = messages.count_documents(doc! {}).await?;
    }
    site.settle().await?;
    Ok(number)
}

/// Reads every document of the zone once, and tells how many there are.
async fn read(place: &Place) -> Result<u64> {
    let messages: Collection<Document> = place.messages();
    let mut documents = messages.clone_with_type::<RawDocumentBuf>().find(doc! { "_pk": SOURCE }).await?;
    let mut number = 0;
    while documents.try_next().await?.is_some() {
        number += 1;
    }
    Ok(number)
}

/// Runs `spokesync verify`, and tells how long it took, and how much memory at most.
async fn verify(site: &Site, documents: u64) -> Result<(Duration, u64)> {
    let begun = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_spokesync"));
    command
        .args(["verify", "--afresh", "--json", "--spoke", SOURCE, "--zone", SOURCE])
        .arg("--config")
        .arg(&site.config);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("cannot start spokesync verify")?;
    let (mut peak, id) = (0, child.id());
    while child.try_wait()?.is_none() {
        // It may end between the two.
        peak = Usage::of(id).map_or(peak, |usage| usage.peak_memory.max(peak));
        tokio::time::sleep(LOOK).await;
    }
    let (taken, output) = (begun.elapsed(), child.wait_with_output()?);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.code() == Some(0) && report["documents"] == documents, "not equal: {report}");
    Ok((taken, peak))
}
