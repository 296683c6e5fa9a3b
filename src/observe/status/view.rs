//! The answers of `/api/v1/status` and `/api/v1/dead-letters`. Field names are a contract with clients.

use bson::Timestamp;
use serde::Serialize;

use super::cell::Letter;
use super::cluster::{ClusterView, ElsewhereView};
use super::state::State;
use super::verification::VerificationView;

/// A dead letter in `/api/v1/dead-letters`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LetterView {
    pub(crate) zone: String,
    pub(crate) link: &'static str,
    #[serde(flatten)]
    pub(crate) letter: Letter,
}

/// The answer of `/api/v1/status`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StatusView {
    pub(crate) version: &'static str,
    pub(crate) uptime_seconds: f64,
    /// Error of the last reload, if the configuration file is invalid.
    pub(crate) configuration_error: Option<String>,
    pub(crate) hub: HubView,
    /// The last verification since the start of the process.
    pub(crate) verification: Option<VerificationView>,
    pub(crate) cluster: ClusterView,
    pub(crate) spokes: Vec<SpokeView>,
}

impl StatusView {
    /// The spokes that this process runs, or is about to run.
    pub(crate) fn own_spokes(&self) -> impl Iterator<Item = &SpokeView> {
        self.spokes.iter().filter(|spoke| spoke.state != State::Standby)
    }

    /// The hub and the links that are not ready, with their state, such as `DFW downlink: initial_sync`.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        let name = State::as_str;
        let mut waiting = Vec::new();
        // A process without a spoke opens no stream at the hub, and is ready to run one.
        let is_idle = !self.cluster.members.is_empty() && self.own_spokes().next().is_none();
        if self.hub.state != State::Streaming && !is_idle {
            waiting.push(format!("hub: {}", name(self.hub.state)));
        }
        for spoke in &self.spokes {
            for (link, state) in [("uplink", spoke.uplink.state), ("downlink", spoke.downlink.state)] {
                // A paused link is ready, because an operator paused the spoke on purpose. Another process runs a spoke
                // on standby.
                if !matches!(state, State::Streaming | State::Paused | State::Standby) {
                    waiting.push(format!("{} {link}: {}", spoke.zone, name(state)));
                }
            }
        }
        waiting
    }
}

/// The hub and its change stream.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HubView {
    pub(crate) state: State,
    pub(crate) lag_seconds: Option<f64>,
    /// Time for which the hub has had changes that no majority confirms; absent while there is none.
    pub(crate) standstill_seconds: Option<f64>,
    pub(crate) events_total: u64,
    pub(crate) open_streams: usize,
    pub(crate) restarts: u64,
    pub(crate) last_error: Option<String>,
    pub(crate) last_error_at: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct SpokeView {
    pub(crate) zone: String,
    pub(crate) watch: Vec<String>,
    pub(crate) state: State,
    pub(crate) uplink: LinkView,
    pub(crate) downlink: LinkView,
    pub(crate) dead_letters: u64,
    pub(crate) queue: QueueView,
    /// The process that runs the spoke, and what it reports; absent if this process does.
    pub(crate) elsewhere: Option<ElsewhereView>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct LinkView {
    pub(crate) state: State,
    pub(crate) applied_total: u64,
    pub(crate) foreign_total: u64,
    pub(crate) lag_seconds: Option<f64>,
    /// Time for which the link has waited for a server that delivers or confirms nothing; absent while it does not.
    pub(crate) standstill_seconds: Option<f64>,
    /// Cluster time up to which the source's changes are applied. The checkpoint of a quiet link is a little older.
    pub(crate) position: Option<String>,
    pub(crate) checkpoint: Option<CheckpointView>,
    pub(crate) time_to_loss_seconds: Option<f64>,
    /// Progress of an initial sync or a reconcile.
    pub(crate) copying: Option<CopyingView>,
    /// True if a comparison requested by an operator is due or in progress.
    pub(crate) comparing: bool,
    pub(crate) restarts: u64,
    pub(crate) last_error: Option<String>,
    pub(crate) last_error_at: Option<String>,
}

/// Content and capacity of the queue between the fan-out and the spoke's writer.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct QueueView {
    pub(crate) events: usize,
    pub(crate) events_capacity: usize,
    pub(crate) bytes: usize,
    pub(crate) bytes_capacity: usize,
}

/// Progress of an initial sync or a reconcile in one zone of one collection.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CopyingView {
    pub(crate) zone: String,
    pub(crate) ns: String,
    pub(crate) documents: u64,
    /// Approximate number of all documents, if the source could count within one second.
    pub(crate) documents_estimated: Option<u64>,
    pub(crate) documents_per_second: f64,
    pub(crate) seconds_remaining: Option<f64>,
}

/// The saved checkpoint of a link.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CheckpointView {
    pub(crate) cluster_time: String,
    pub(crate) age_seconds: Option<f64>,
}

/// A cluster time as `seconds.increment`.
pub(super) fn show(time: Timestamp) -> String {
    format!("{}.{}", time.time, time.increment)
}
