//! The status of one link, or of the hub's change stream.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bson::Timestamp;
use serde::Serialize;

use super::history::{History, HistoryView};
use super::now_millis;
use super::state::State;
use super::view::{CheckpointView, CopyingView, HubView, LinkView, show};
use crate::observe::metrics::Timings;
use crate::observe::pulse::Pulse;
use crate::rules::names::Zone;

/// Longest time between two answers of a quiet source. After a longer silence, the lag grows.
const ANSWERS_WITHIN: Duration = Duration::from_secs(4);

/// The status of one link, or of the hub's change stream.
#[derive(Debug, Default)]
pub(super) struct Facts {
    state: State,
    pub(super) applied: u64,
    foreign: u64,
    /// Cluster time up to which the source's changes are applied and the checkpoint is saved.
    pub(super) checkpoint: Option<Timestamp>,
    saved_at: Option<Instant>,
    /// Cluster time up to which the source's changes are applied.
    position: Option<Timestamp>,
    /// Wall time up to which the source's changes are applied, in milliseconds since 1970.
    current_until: Option<i64>,
    /// Time of the source's last answer.
    answered_at: Option<Instant>,
    /// True if changes are received but not applied yet.
    waiting: bool,
    restarts: u64,
    last_error: Option<String>,
    pub(super) dead_letters: u64,
    letters: Vec<Letter>,
    copying: Option<Copying>,
    last_error_at: Option<String>,
    /// Time of receipt of the oldest change that is not applied yet.
    received_at: Option<Instant>,
    /// True if a comparison requested by an operator is due or in progress.
    comparing: bool,
    /// Times since which the link waits for a server, by [`Waits`].
    standing: [Option<Instant>; 2],
    history: History,
}

/// What a link that stands still waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Changes that the source does not deliver, although there are some.
    Source,
    /// The destination's confirmation of a batch.
    Destination,
}

/// Progress of an initial sync or a reconcile in one zone of one collection.
#[derive(Clone, Debug)]
struct Copying {
    zone: String,
    ns: String,
    documents: u64,
    estimated: Option<u64>,
    begun: Instant,
}

impl Copying {
    fn view(&self) -> CopyingView {
        let rate = self.documents as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        let left = self.estimated.map(|estimated| estimated.saturating_sub(self.documents) as f64);
        CopyingView {
            zone: self.zone.clone(),
            ns: self.ns.clone(),
            documents: self.documents,
            documents_estimated: self.estimated,
            documents_per_second: rate,
            seconds_remaining: left.filter(|_| rate > 0.0).map(|left| left / rate),
        }
    }
}

/// Maximum number of dead letters shown per link.
pub(crate) const SHOWN_LETTERS: usize = 1_000;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Letter {
    pub(crate) ns: String,
    /// `_id` of the document, as relaxed extended JSON.
    pub(crate) id: serde_json::Value,
    pub(crate) code: i32,
    pub(crate) reason: String,
    /// Time at which the change was parked (RFC 3339).
    pub(crate) parked_at: String,
    /// Number of later changes that wait with the dead letter, as counted when the link began.
    pub(crate) later_changes: i64,
}

/// The cell of one link, or of the hub's change stream.
#[derive(Debug, Default)]
pub(crate) struct Cell {
    facts: Mutex<Facts>,
    pulse: Arc<Pulse>,
    timings: Timings,
}

impl Cell {
    pub(crate) fn set_state(&self, state: State) {
        self.pulse.beat();
        let former = std::mem::replace(&mut self.facts().state, state);
        if former != state {
            tracing::info!(from = former.as_str(), to = state.as_str(), "state");
        }
    }

    pub(crate) fn state(&self) -> State {
        self.facts().state
    }

    /// Signs of life of the loop.
    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Another process runs the link from now on: what was known of it is of no use any more, except its totals.
    pub(super) fn stands_by(&self) {
        self.set_state(State::Standby);
        let mut facts = self.facts();
        let (history, state) = (std::mem::take(&mut facts.history), facts.state);
        let (applied, foreign, restarts) = (facts.applied, facts.foreign, facts.restarts);
        *facts = Facts { state, applied, foreign, restarts, history, ..Facts::default() };
    }

    /// Records the receipt of changes from the source.
    pub(crate) fn received(&self) {
        self.pulse.beat();
        let mut facts = self.facts();
        facts.waiting = true;
        facts.answered_at = Some(Instant::now());
        facts.received_at.get_or_insert_with(Instant::now);
    }

    /// Records applied changes with the cluster time of their checkpoint. The newest change was made at `wall_time`, in
    /// milliseconds since 1970.
    pub(crate) fn applied(
        &self,
        changes: usize,
        foreign: usize,
        checkpoint: Option<Timestamp>,
        wall_time: Option<i64>,
    ) {
        self.pulse.beat();
        let mut facts = self.facts();
        self.timings.applied(changes, facts.received_at.take().map(|at| at.elapsed()), wall_time);
        facts.applied += changes as u64;
        facts.foreign += foreign as u64;
        facts.waiting = false;
        facts.current_until = wall_time.or(facts.current_until);
        if checkpoint.is_some() {
            facts.saved_at = Some(Instant::now());
            facts.checkpoint = checkpoint;
            facts.position = checkpoint;
        }
    }

    /// Records an answer of the source without new changes up to a cluster time.
    pub(crate) fn quiet(&self, position: Timestamp) {
        self.pulse.beat();
        let mut facts = self.facts();
        facts.waiting = false;
        facts.answered_at = Some(Instant::now());
        facts.current_until = Some(now_millis());
        facts.position = Some(position);
    }

    /// Records the cluster time of the checkpoint from which the link resumes.
    pub(crate) fn resumes_at(&self, checkpoint: Option<Timestamp>) {
        let mut facts = self.facts();
        facts.checkpoint = checkpoint.or(facts.checkpoint);
    }

    /// Begins the copy of a zone of a collection, with the estimated number of documents.
    pub(crate) fn begin_copying(&self, ns: &str, zone: &Zone, estimated: Option<u64>) {
        let (zone, ns, begun) = (zone.to_string(), ns.to_owned(), Instant::now());
        self.facts().copying = Some(Copying { zone, ns, documents: 0, estimated, begun });
    }

    pub(crate) fn copied(&self, more: usize) {
        self.pulse.beat();
        if let Some(copying) = &mut self.facts().copying {
            copying.documents += more as u64;
        }
    }

    pub(crate) fn end_copying(&self) {
        self.facts().copying = None;
    }

    /// Records a failure that causes a restart.
    pub(crate) fn failed(&self, error: &str) {
        let mut facts = self.facts();
        facts.copying = None;
        facts.standing[Waits::Destination as usize] = None;
        facts.restarts += 1;
        facts.last_error = Some(error.to_owned());
        facts.last_error_at = Some(super::now_text());
    }

    /// Shows an error that causes no restart.
    pub(crate) fn set_error(&self, error: &str) {
        let mut facts = self.facts();
        facts.last_error = Some(error.to_owned());
        facts.last_error_at = Some(super::now_text());
    }

    /// Shows that the link waits for a server since this time, and what for. Logs a warning once, until the link
    /// [moves](Self::moves) again.
    pub(crate) fn stands_still(&self, waits: Waits, since: Instant, what: &str) {
        if self.facts().standing[waits as usize].replace(since).is_none() {
            tracing::warn!("{what}");
            self.set_error(what);
        }
    }

    /// Shows that the link no longer waits.
    pub(crate) fn moves(&self, waits: Waits) {
        let since = self.facts().standing[waits as usize].take();
        if let Some(since) = since {
            tracing::info!(seconds = since.elapsed().as_secs(), "the wait is over");
        }
    }

    /// Sets whether a comparison requested by an operator is due or in progress.
    pub(crate) fn set_comparing(&self, comparing: bool) {
        self.facts().comparing = comparing;
    }

    /// Histograms of batch sizes, apply times and delays.
    pub(crate) fn timings(&self) -> &Timings {
        &self.timings
    }

    pub(super) fn sample(&self) {
        let mut facts = self.facts();
        let lag = Self::lag_seconds(&facts);
        let applied = facts.applied;
        facts.history.sample(applied, lag);
    }

    pub(super) fn history(&self) -> HistoryView {
        self.facts().history.view()
    }

    /// Sets the number of documents with a dead letter, and the dead letters to show.
    pub(crate) fn set_dead_letters(&self, number: usize, letters: impl Iterator<Item = Letter>) {
        let mut facts = self.facts();
        if number != 0 || facts.dead_letters != 0 {
            facts.dead_letters = number as u64;
            facts.letters = letters.take(SHOWN_LETTERS).collect();
        }
    }

    /// The dead letters, at most [`SHOWN_LETTERS`].
    pub(crate) fn letters(&self) -> Vec<Letter> {
        self.facts().letters.clone()
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds for which the link has waited for a server without progress.
    pub(super) fn standstill_seconds(facts: &Facts) -> Option<f64> {
        let longest = facts.standing.iter().flatten().map(Instant::elapsed).max()?;
        Some(longest.as_secs_f64())
    }

    pub(super) fn lag_seconds(facts: &Facts) -> Option<f64> {
        let standing = Self::standstill_seconds(facts);
        let lag = Self::lag_by_changes(facts);
        if standing > lag { standing } else { lag }
    }

    fn lag_by_changes(facts: &Facts) -> Option<f64> {
        let answers = facts.answered_at.is_some_and(|at| at.elapsed() < ANSWERS_WITHIN);
        if answers && !facts.waiting {
            return Some(0.0);
        }
        // Without any change since the start, unread changes may be as old as the checkpoint.
        let saved = facts.checkpoint.map(|time| i64::from(time.time) * 1_000);
        let behind = now_millis().saturating_sub(facts.current_until.or(saved)?).max(0);
        Some(Duration::from_millis(behind.unsigned_abs()).as_secs_f64())
    }

    pub(super) fn link_view(&self) -> LinkView {
        let facts = self.facts();
        let checkpoint = facts.checkpoint.map(|time| CheckpointView {
            cluster_time: show(time),
            age_seconds: facts.saved_at.map(|at| at.elapsed().as_secs_f64()),
        });
        LinkView {
            state: facts.state,
            applied_total: facts.applied,
            foreign_total: facts.foreign,
            lag_seconds: Self::lag_seconds(&facts),
            standstill_seconds: Self::standstill_seconds(&facts),
            position: facts.position.map(show),
            checkpoint,
            time_to_loss_seconds: None,
            copying: facts.copying.as_ref().map(Copying::view),
            comparing: facts.comparing,
            restarts: facts.restarts,
            last_error: facts.last_error.clone(),
            last_error_at: facts.last_error_at.clone(),
        }
    }

    pub(super) fn hub_view(&self) -> HubView {
        let facts = self.facts();
        HubView {
            state: facts.state,
            lag_seconds: Self::lag_seconds(&facts),
            standstill_seconds: Self::standstill_seconds(&facts),
            events_total: facts.applied,
            open_streams: 0,
            restarts: facts.restarts,
            last_error: facts.last_error.clone(),
            last_error_at: facts.last_error_at.clone(),
        }
    }
}
