//! How the board is told, as `/api/v1/status` and `/api/v1/dead-letters` answer it. These names are a contract.

use bson::Timestamp;
use serde::Serialize;

use super::cell::Letter;
use super::state::State;
use super::verification::VerificationView;

/// One of `/api/v1/dead-letters`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LetterView {
    pub(crate) zone: String,
    pub(crate) link: &'static str,
    #[serde(flatten)]
    pub(crate) letter: Letter,
}

/// `/api/v1/status`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StatusView {
    pub(crate) version: &'static str,
    pub(crate) uptime_seconds: f64,
    /// What is wrong with the file that was to be read again.
    pub(crate) configuration_error: Option<String>,
    pub(crate) hub: HubView,
    /// The last comparison of everything, if there was one since the start.
    pub(crate) verification: Option<VerificationView>,
    pub(crate) spokes: Vec<SpokeView>,
}

impl StatusView {
    /// What is not streaming both ways, as `DFW downlink: initial_sync`.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        let name = State::as_str;
        let mut waiting = Vec::new();
        if self.hub.state != State::Streaming {
            waiting.push(format!("hub: {}", name(self.hub.state)));
        }
        for spoke in &self.spokes {
            for (link, state) in [("uplink", spoke.uplink.state), ("downlink", spoke.downlink.state)] {
                // A paused spoke is not missed: somebody wants it so.
                if state != State::Streaming && state != State::Paused {
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
    pub(crate) events_total: u64,
    pub(crate) open_streams: usize,
    pub(crate) restarts: u64,
    pub(crate) last_error: Option<String>,
    pub(crate) last_error_at: Option<String>,
}

/// One spoke.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SpokeView {
    pub(crate) zone: String,
    pub(crate) watch: Vec<String>,
    pub(crate) state: State,
    pub(crate) uplink: LinkView,
    pub(crate) downlink: LinkView,
    pub(crate) dead_letters: u64,
    pub(crate) queue: QueueView,
}

/// One link.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LinkView {
    pub(crate) state: State,
    pub(crate) applied_total: u64,
    pub(crate) foreign_total: u64,
    pub(crate) lag_seconds: Option<f64>,
    /// The source's time up to which everything is applied; the checkpoint of a quiet link is a little older.
    pub(crate) position: Option<String>,
    pub(crate) checkpoint: Option<CheckpointView>,
    pub(crate) time_to_loss_seconds: Option<f64>,
    /// How far an initial sync or a reconcile is.
    pub(crate) copying: Option<CopyingView>,
    /// Everything is to be compared, or is being compared, because an operator wants it.
    pub(crate) comparing: bool,
    pub(crate) restarts: u64,
    pub(crate) last_error: Option<String>,
    pub(crate) last_error_at: Option<String>,
}

/// What waits for the spoke's writer at the fan-out, and what may wait there.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct QueueView {
    pub(crate) events: usize,
    pub(crate) events_capacity: usize,
    pub(crate) bytes: usize,
    pub(crate) bytes_capacity: usize,
}

/// How far an initial sync or a reconcile is.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CopyingView {
    pub(crate) zone: String,
    pub(crate) ns: String,
    pub(crate) documents: u64,
    /// How many there are, if the source could count them quickly.
    pub(crate) documents_estimated: Option<u64>,
    pub(crate) documents_per_second: f64,
    pub(crate) seconds_remaining: Option<f64>,
}

/// What is saved of a link.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CheckpointView {
    pub(crate) cluster_time: String,
    pub(crate) age_seconds: Option<f64>,
}

/// A cluster time as `seconds.increment`.
pub(super) fn show(time: Timestamp) -> String {
    format!("{}.{}", time.time, time.increment)
}
