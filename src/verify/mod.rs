//! Proves that hub and spokes hold the same documents, or names what differs, and mends it.
//!
//! Both sides of every zone that a spoke holds are walked in the order of `_id`, and compared byte by byte. What does not seem equal
//! may only be on its way, so it is looked at again, as both sides had it at one exact place of the links ([`examine`]), until the
//! links have passed the first look. What persists is reported. No `spokesync run` is needed for that, and one that runs is not
//! disturbed: how far the links are is read from their checkpoints.
//!
//! - [`scope`]: what is compared, and how; [`report`]: what was found
//! - [`part`]: one zone of one collection at one spoke; [`reading`]: both sides of it; [`suspects`]: what does not seem equal there
//! - [`examine`]: a look at single documents; [`findings`]: what persists, and what it is called
//! - [`carried`]: waiting for the links, and what is on its way where nobody carries it
//! - [`repair`]: mending what differs; [`pace`]: not too fast

mod examine;
mod findings;
mod pace;
mod part;
mod reading;
mod repair;
pub(crate) mod report;
pub(crate) mod scope;
mod suspects;
mod wait;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config};
use crate::mongo::error::{Error, Failure};
use crate::mongo::metadata;
use crate::mongo::metadata::verifications::{self, PartName};
use crate::mongo::scan::{self, Area, Which};
use crate::mongo::server::{Endpoint, Server};
use crate::observe::status::verification::VerificationCell;
use crate::rules::names::Zone;
use pace::Pace;
use part::Part;
use report::{PartReport, Report, Untold};
use scope::Scope;

/// So many parts are walked at once, each with a few pages in memory.
const WALKING: usize = 2;

/// So many parts are under way at once: most of them wait for the links.
const PARALLEL: usize = 32;

/// Commands that run at once at one server.
const CONNECTIONS: u32 = 8;

/// A spoke that could be reached.
struct ConnectedSpoke {
    zone: Zone,
    held: Vec<Zone>,
    server: Server,
}

/// Compares what the scope select. How far it is, is shown in `progress`; `name` is that of whoever runs it, for going on after an
/// interruption.
///
/// # Errors
/// If the hub cannot be used. What a spoke fails at is in the report.
pub(crate) async fn run(
    config: &Config,
    scope: &Scope,
    name: &str,
    progress: &VerificationCell,
    stop: &CancellationToken,
) -> Result<Report, Error> {
    let sync = Arc::new(config.sync.clone());
    let endpoint = |name: &str, uri| Endpoint::new(name, uri, sync.clone(), CONNECTIONS);
    let hub = endpoint("hub", config.hub.clone()).connect().await?;
    metadata::prepare(&hub).await?;
    let name = format!("{name} {}", scope.name());
    verifications::forget_stale(&hub).await?;
    if scope.afresh {
        verifications::forget(&hub, &name).await?;
    }
    let mut report = Report::default();
    let mut spokes = Vec::new();
    for spoke in config.spokes.iter().filter(|spoke| scope.selects(spoke)) {
        let name = format!("spoke {}", spoke.zone);
        match endpoint(&name, spoke.uri.clone()).connect().await {
            Ok(server) => spokes.push(ConnectedSpoke { zone: spoke.zone.clone(), held: held(spoke), server }),
            Err(error) => {
                report.untold.push(Untold { spoke: spoke.zone.to_string(), zone: None, reason: error.to_string() })
            }
        }
    }
    let parts: Vec<Part<'_>> = spokes.iter().flat_map(|spoke| parts(&hub, spoke, scope, &name)).collect();
    let estimated = estimate(&parts).await;
    let run = Run {
        scope,
        counted: Counted { progress, estimated, documents: AtomicU64::new(0) },
        walking: Semaphore::new(WALKING),
        pace: Pace::new(scope.documents_per_second),
        stop,
    };
    let mut verifying = Vec::new();
    for part in &parts {
        verifying.push(told(part, &run));
    }
    let mut reports = futures_util::stream::iter(verifying).buffer_unordered(PARALLEL);
    while let Some(part) = reports.next().await {
        report.add(part);
    }
    drop(reports);
    report.finish(stop.is_cancelled());
    if !stop.is_cancelled() {
        verifications::forget(&hub, &name).await?;
    }
    Ok(report)
}

/// What a part comes to, or why that cannot be told.
async fn told(part: &Part<'_>, run: &Run<'_>) -> PartReport {
    let mut delays = delays();
    loop {
        let error = match part.verify(run).await {
            Ok(report) => return report,
            Err(error) => error,
        };
        // A server that restarts is back in a moment, and the part goes on where it was.
        let can_pass = matches!(error.failure(), Failure::Unreachable | Failure::Transient) && !run.stop.is_cancelled();
        let Some(delay) = delays.next().filter(|_| can_pass) else {
            return PartReport::untold(part.untold(error.to_string()));
        };
        tracing::debug!(%error, ?delay, "a part is compared again");
        tokio::time::sleep(delay).await;
    }
}

/// How long to wait for a server that fails: some twenty seconds in all.
fn delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default().with_min_delay(Duration::from_millis(300)).with_max_times(6).with_jitter().build()
}

/// The zones that a spoke holds, its own first.
fn held(spoke: &config::Spoke) -> Vec<Zone> {
    std::iter::once(&spoke.zone).chain(&spoke.watch).cloned().collect()
}

fn parts<'a>(hub: &'a Server, spoke: &'a ConnectedSpoke, scope: &Scope, run: &str) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    for (namespace, name) in (0u16..).zip(hub.namespaces()) {
        let zones = spoke.held.iter().filter(|zone| scope.zone.as_ref().is_none_or(|wanted| wanted == *zone)).map(Some);
        // Documents of zones that it does not hold belong to none that was asked for.
        let others = scope.zone.is_none().then_some(None);
        for zone in zones.chain(others) {
            let saved = PartName::new(run, &spoke.zone, name, zone);
            parts.push(Part {
                hub,
                spoke: &spoke.server,
                own: &spoke.zone,
                held: &spoke.held,
                namespace,
                zone,
                saved,
                counted: AtomicU64::new(0),
            });
        }
    }
    parts
}

/// About how many documents there are to compare, if all could be counted quickly.
async fn estimate(parts: &[Part<'_>]) -> Option<u64> {
    let mut sum = 0;
    for part in parts {
        let Some(zone) = part.zone else { continue };
        sum += scan::estimate(part.hub, Area::of(part.namespace, Which::Of(zone))).await?;
    }
    Some(sum)
}

/// What all parts share.
struct Run<'r> {
    scope: &'r Scope,
    counted: Counted<'r>,
    /// Places for those who walk.
    walking: Semaphore,
    pace: Pace,
    stop: &'r CancellationToken,
}

/// How far all parts are together.
struct Counted<'p> {
    progress: &'p VerificationCell,
    estimated: Option<u64>,
    documents: AtomicU64,
}

impl Counted<'_> {
    /// A part has compared so many documents in all.
    fn set(&self, part: &Part<'_>, documents: u64) {
        let more = documents.wrapping_sub(part.counted.swap(documents, Ordering::Relaxed));
        let all = self.documents.fetch_add(more, Ordering::Relaxed).wrapping_add(more);
        self.progress.progress(all, self.estimated);
    }
}
