//! Bytes per document that the program reads from a source and writes to a destination.

use anyhow::Result;
use testbed::proxy::Bytes;

use super::application::{Batch, Load};
use super::figures::Figure;
use super::parts::Parts;
use super::site::{Route, Site, Wires};
use super::throughput::program;
use super::{check, updates};

/// Documents per measurement.
const DOCUMENTS: usize = 2_000;

/// Size of an inserted document in bytes.
const INSERTED_BYTES: usize = 500;

/// Measures inserts of small documents and small updates of large documents, on an uplink and on a downlink.
pub async fn measure(parts: &Parts) -> Result<Vec<Figure>> {
    let site = Site::start(1, Wires::All).await?;
    let documents = parts.share_of(DOCUMENTS, 100);
    let mut figures = Vec::new();
    for route in [site.uplink(), site.downlink()] {
        let load = Load::new(route.zone, documents, INSERTED_BYTES);
        let carried = carried(&site, &route, &load.inserts(0)).await?;
        check::same(&route, &load.filter(), documents).await?;
        let name = format!("{}: inserts of {}", route.name, load.size());
        figures.push(Figure::plain(&name, "bytes read from the source, per document", carried.read));
        figures.push(Figure::plain(&name, "bytes written to the destination, per document", carried.written));

        let load = Load::new(route.zone, documents, updates::BYTES);
        program(&site, &route, &load.inserts(0)).await?;
        let carried = self::carried(&site, &route, &load.updates(0, 1)).await?;
        check::same(&route, &load.filter(), documents).await?;
        let whole = load.document(0, 1).as_bytes().len() as f64;
        let name = format!("{}: small updates of documents of {}", route.name, load.size());
        figures.push(Figure::plain(&name, "bytes written to the destination, per document", carried.written));
        figures.push(Figure::at_most(&name, "of the bytes of a whole document", carried.written / whole, 0.1));
    }
    Ok(figures)
}

/// Bytes per document: read from the source, and written to the destination.
struct Carried {
    read: f64,
    written: f64,
}

async fn carried(site: &Site, route: &Route<'_>, batches: &[Batch]) -> Result<Carried> {
    let before = site.wire_bytes()?;
    program(site, route, batches).await?;
    let after = site.wire_bytes()?;
    let (hub, spoke) = (since(before.0, after.0), since(before.1, after.1));
    let (source, destination) = if route.source.name == site.hub.name { (hub, spoke) } else { (spoke, hub) };
    let documents = batches.iter().map(Batch::changes).sum::<usize>() as f64;
    Ok(Carried { read: source.from_server as f64 / documents, written: destination.to_server as f64 / documents })
}

fn since(before: Bytes, after: Bytes) -> Bytes {
    Bytes { to_server: after.to_server - before.to_server, from_server: after.from_server - before.from_server }
}
