//! The parts for a spoke that already holds many documents: initial sync, reconcile, verification and catching up.

use anyhow::Result;

use super::application::{self, Load};
use super::figures::Figure;
use super::parts::Parts;
use super::site::{Site, Wires};
use super::{catch_up, initial, reconcile, verify};

/// Documents at the spoke.
const DOCUMENTS: usize = 200_000;

/// Size of a document in bytes.
const BYTES: usize = 500;

/// Measures the requested parts.
pub async fn measure(parts: &Parts) -> Result<Vec<Figure>> {
    let mut site = Site::prepare(1, Wires::None).await?;
    let load = Load::new(site.uplink().zone, parts.share_of(DOCUMENTS, 1_000), BYTES);
    application::write(&site.spokes[0].messages(), &load.inserts(0)).await?;
    let mut figures = Vec::new();
    if parts.have("initial") {
        figures.extend(initial::measure(&mut site, &load).await?);
    }
    site.stop_program().await?;
    site.start_program().await?;
    site.settle(&site.uplink()).await?;
    if parts.have("reconcile") {
        figures.extend(reconcile::measure(&site, &load).await?);
    }
    if parts.have("verify") {
        figures.extend(verify::measure(parts, &site).await?);
    }
    // Catching up comes last, because the added documents would count in the other parts.
    if parts.have("catch-up") {
        figures.extend(catch_up::measure(parts, &mut site).await?);
    }
    Ok(figures)
}
