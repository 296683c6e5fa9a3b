//! The cluster, as the process sees it: the members, and what others report of the spokes that they run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

/// The cluster in `/api/v1/status`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ClusterView {
    /// The living processes, this one included; empty until the hub has answered.
    pub(crate) members: Vec<MemberView>,
    /// Spokes that this process took over from dead ones.
    pub(crate) takeovers_total: u64,
    /// Time from the last sign of life of a dead process to the newest takeover; absent before the first.
    pub(crate) last_takeover_seconds: Option<f64>,
    /// Leases that this process lost, because the others took it for dead.
    pub(crate) leases_lost_total: u64,
    /// Members that should be alive, if configured.
    pub(crate) expected_members: Option<usize>,
    pub(crate) last_error: Option<String>,
}

/// One process of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct MemberView {
    pub(crate) id: String,
    pub(crate) host: String,
    pub(crate) pid: i64,
    pub(crate) version: String,
    pub(crate) http: String,
    /// True for the process that answers.
    pub(crate) is_this: bool,
    pub(crate) is_leaving: bool,
    /// False if its configuration differs from this process's.
    pub(crate) has_same_configuration: bool,
    pub(crate) up_seconds: f64,
    pub(crate) heartbeat_age_seconds: f64,
    /// Number of spokes that it runs.
    pub(crate) spokes: usize,
}

/// What is known of a spoke that another process runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ElsewhereView {
    /// The process that runs it, as `host process id`.
    pub(crate) holder: String,
    /// Its state there, at the process's newest heartbeat.
    pub(crate) state: Option<String>,
    pub(crate) lag_seconds: Option<f64>,
    /// True if a comparison requested by an operator is due or in progress there.
    pub(crate) comparing: bool,
}

/// The part of the status board about the cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterCell {
    seen: Mutex<Seen>,
    takeovers: AtomicU64,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Seen {
    members: Vec<MemberView>,
    elsewhere: BTreeMap<String, ElsewhereView>,
    expected: Option<usize>,
    last_takeover: Option<Duration>,
    last_error: Option<String>,
}

impl ClusterCell {
    /// Shows the members that a look at the hub has found.
    pub(crate) fn show_members(&self, members: Vec<MemberView>) {
        let mut seen = self.seen();
        (seen.members, seen.last_error) = (members, None);
    }

    /// Shows what is known of the spokes that other processes run.
    pub(crate) fn show_elsewhere(&self, elsewhere: BTreeMap<String, ElsewhereView>) {
        self.seen().elsewhere = elsewhere;
    }

    pub(crate) fn expect(&self, members: Option<usize>) {
        self.seen().expected = members;
    }

    /// Shows an error of the membership, until the hub answers again.
    pub(crate) fn failed(&self, error: &str) {
        self.seen().last_error = Some(error.to_owned());
    }

    /// Counts spokes taken over from a process whose last sign of life was `after` ago.
    pub(crate) fn took_over(&self, spokes: usize, after: Duration) {
        self.takeovers.fetch_add(spokes as u64, Ordering::Relaxed);
        self.seen().last_takeover = Some(after);
    }

    /// Counts leases lost because the others took the process for dead.
    pub(crate) fn has_lost(&self, leases: usize) {
        self.lost.fetch_add(leases as u64, Ordering::Relaxed);
    }

    /// What is known of a spoke that another process runs.
    pub(crate) fn elsewhere(&self, zone: &str) -> Option<ElsewhereView> {
        self.seen().elsewhere.get(zone).cloned()
    }

    pub(crate) fn view(&self) -> ClusterView {
        let seen = self.seen();
        ClusterView {
            members: seen.members.clone(),
            takeovers_total: self.takeovers.load(Ordering::Relaxed),
            last_takeover_seconds: seen.last_takeover.map(|after| after.as_secs_f64()),
            leases_lost_total: self.lost.load(Ordering::Relaxed),
            expected_members: seen.expected,
            last_error: seen.last_error.clone(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
