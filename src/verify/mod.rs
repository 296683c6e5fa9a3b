//! Verification: proves that hub and spokes hold the same documents, or reports and repairs the differences.
//!
//! Both sides of every zone held by a spoke are walked in the order of `_id`, and compared byte by byte. A difference
//! may only be a change in transit. Each suspect is therefore examined again at one exact position of the links
//! ([`examine`]), once the links have passed the moment of the first look. Persistent differences are reported.
//! Verification works without `spokesync run`, and does not disturb a running process: the links' progress is read from
//! their checkpoints.
//!
//! - [`scope`]: selection and options. [`report`]: the result
//! - [`part`]: a zone of a collection at a spoke. [`reading`]: reads both sides. [`suspects`]: finds documents
//!   that seem to differ
//! - [`examine`]: examines single documents. [`findings`]: persistent differences and their kinds
//! - [`wait`]: waits for the links, and finds changes in transit while no process carries the links
//! - [`repair`]: repairs differences. [`pace`]: limits the read rate

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
use crate::mongo::endpoint::Endpoint;
use crate::mongo::error::{Error, Failure};
use crate::mongo::metadata;
use crate::mongo::metadata::verifications::{self, PartName};
use crate::mongo::scan::{self, Area, Which};
use crate::mongo::server::Server;
use crate::observe::status::verification::VerificationCell;
use crate::rules::names::Zone;
use pace::Pace;
use part::Part;
use report::{PartReport, Report, Untold};
use scope::Scope;

/// Parts walked concurrently. Each keeps a few pages in memory.
const WALKING: usize = 2;

/// Parts verified concurrently. Most only wait for the links.
const PARALLEL: usize = 32;

const CONNECTIONS: u32 = 8;

struct ConnectedSpoke {
    zone: Zone,
    held: Vec<Zone>,
    server: Server,
}

/// Verifies everything selected by `scope`, and shows the progress in `progress`.
///
/// Progress is also saved at the hub under `name` and the scope. After an interruption, a verification with the same
/// name and scope resumes. Fails if the hub is unusable. Failures of a spoke are in the report.
pub(crate) async fn run(
    config: &Config,
    scope: &Scope,
    name: &str,
    progress: &VerificationCell,
    stop: &CancellationToken,
) -> Result<Report, Error> {
    // The hub is one side of every comparison, and keeps the saved progress.
    let sync = Arc::new(config.sync.clone());
    let endpoint = |name: &str, uri| Endpoint::new(name, uri, sync.clone(), CONNECTIONS);
    let hub = endpoint("hub", config.hub.clone()).connect().await?;
    metadata::prepare(&hub).await?;
    // Progress older than a day is outdated. `afresh` also discards the progress of this verification.
    let name = format!("{name} {}", scope.name());
    verifications::forget_stale(&hub).await?;
    if scope.afresh {
        verifications::forget(&hub, &name).await?;
    }
    // An unreachable spoke goes into the report, so the other spokes are still verified.
    let mut report = Report::default();
    let mut spokes = Vec::new();
    let connecting = config.spokes.iter().filter(|spoke| scope.selects(spoke)).map(|spoke| {
        let endpoint = endpoint(&format!("spoke {}", spoke.zone), spoke.uri.clone());
        async move { (spoke, connected(&endpoint).await) }
    });
    let mut connecting = futures_util::stream::iter(connecting.collect::<Vec<_>>()).buffered(PARALLEL);
    while let Some((spoke, connected)) = connecting.next().await {
        match connected {
            Ok(server) => spokes.push(ConnectedSpoke { zone: spoke.zone.clone(), held: held(spoke), server }),
            Err(error) => {
                report.untold.push(Untold { spoke: spoke.zone.to_string(), zone: None, reason: error.to_string() })
            }
        }
    }
    // The estimate only scales the displayed progress.
    let parts: Vec<Part<'_>> = spokes.iter().flat_map(|spoke| parts(&hub, spoke, scope, &name)).collect();
    let estimated = estimate(&parts).await;
    let run = Run {
        scope,
        counted: Counted { progress, estimated, documents: AtomicU64::new(0) },
        walking: Semaphore::new(WALKING),
        pace: Pace::new(scope.documents_per_second),
        stop,
    };
    // Parts wait for the links most of the time, so many run concurrently. Results are added as parts finish.
    let mut verifying = Vec::new();
    for part in &parts {
        verifying.push(told(part, &run));
    }
    let mut reports = futures_util::stream::iter(verifying).buffer_unordered(PARALLEL);
    while let Some(part) = reports.next().await {
        report.add(part);
    }
    // A stopped verification keeps its progress for the next run. A finished verification has nothing to resume.
    drop(reports);
    report.finish(stop.is_cancelled());
    if !stop.is_cancelled() {
        verifications::forget(&hub, &name).await?;
    }
    Ok(report)
}

/// Connects to a spoke. A spoke that may be restarting gets a second chance.
async fn connected(endpoint: &Endpoint) -> Result<Server, Error> {
    match endpoint.connect().await {
        Err(error) if error.failure() == Failure::Unreachable => endpoint.connect().await,
        connected => connected,
    }
}

/// Verifies a part. Failures go into the report; a transient failure is retried first.
async fn told(part: &Part<'_>, run: &Run<'_>) -> PartReport {
    let mut delays = delays();
    loop {
        let error = match part.verify(run).await {
            Ok(report) => return report,
            Err(error) => error,
        };
        // A restarting server is back within seconds, and the part resumes from its saved progress.
        let can_pass = matches!(error.failure(), Failure::Unreachable | Failure::Transient) && !run.stop.is_cancelled();
        let Some(delay) = delays.next().filter(|_| can_pass) else {
            return PartReport::untold(part.untold(error.to_string()));
        };
        tracing::debug!(%error, ?delay, "verifying a part again after a failure");
        tokio::time::sleep(delay).await;
    }
}

/// Delays between attempts at a failing server: about 20 seconds in total, enough for a restart.
fn delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default().with_min_delay(Duration::from_millis(300)).with_max_times(6).with_jitter().build()
}

/// Zones held by a spoke, the own zone first.
fn held(spoke: &config::Spoke) -> Vec<Zone> {
    std::iter::once(&spoke.zone).chain(&spoke.watch).cloned().collect()
}

fn parts<'a>(hub: &'a Server, spoke: &'a ConnectedSpoke, scope: &Scope, run: &str) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    for (namespace, name) in (0u16..).zip(hub.namespaces()) {
        let zones = spoke.held.iter().filter(|zone| scope.zone.as_ref().is_none_or(|wanted| wanted == *zone)).map(Some);
        // Documents of zones not held by the spoke are outside a scope with a zone.
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

/// Estimated number of documents to compare. `None` if a server cannot count quickly.
async fn estimate(parts: &[Part<'_>]) -> Option<u64> {
    let mut sum = 0;
    for part in parts {
        let Some(zone) = part.zone else { continue };
        sum += scan::estimate(part.hub, Area::of(part.namespace, Which::Of(zone))).await?;
    }
    Some(sum)
}

struct Run<'r> {
    scope: &'r Scope,
    counted: Counted<'r>,
    /// Permits for walking, at most [`WALKING`].
    walking: Semaphore,
    pace: Pace,
    stop: &'r CancellationToken,
}

struct Counted<'p> {
    progress: &'p VerificationCell,
    estimated: Option<u64>,
    documents: AtomicU64,
}

impl Counted<'_> {
    fn set(&self, part: &Part<'_>, documents: u64) {
        let more = documents.wrapping_sub(part.counted.swap(documents, Ordering::Relaxed));
        let all = self.documents.fetch_add(more, Ordering::Relaxed).wrapping_add(more);
        self.progress.progress(all, self.estimated);
    }
}
