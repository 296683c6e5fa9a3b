//! What is known of one link, or of the hub's stream.

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

/// A quiet source answers at least this often; after that it counts as not read.
const ANSWERS_WITHIN: Duration = Duration::from_secs(4);

/// What is known of one link, or of the hub's stream.
#[derive(Debug, Default)]
pub(super) struct Facts {
    state: State,
    pub(super) applied: u64,
    foreign: u64,
    /// The source's time up to which everything is applied and saved.
    pub(super) checkpoint: Option<Timestamp>,
    saved_at: Option<Instant>,
    /// The source's time up to which everything is applied.
    position: Option<Timestamp>,
    /// Everything that happened at the source before this moment, in milliseconds since 1970, is applied.
    current_until: Option<i64>,
    /// When the source last answered.
    answered_at: Option<Instant>,
    /// Changes were received and are not applied yet.
    waiting: bool,
    restarts: u64,
    last_error: Option<String>,
    pub(super) dead_letters: u64,
    letters: Vec<Letter>,
    copying: Option<Copying>,
    last_error_at: Option<String>,
    /// When the changes that are not applied yet were received.
    received_at: Option<Instant>,
    /// Everything is to be compared, or is being compared, because an operator wants it.
    comparing: bool,
    history: History,
}

/// How far an initial sync or a reconcile is, in one zone of one collection.
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

/// How many dead letters of one link are shown one by one.
const SHOWN_LETTERS: usize = 1_000;

/// A dead letter as it is shown.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Letter {
    /// The document's collection.
    pub(crate) ns: String,
    /// Its `_id`, as relaxed extended JSON.
    pub(crate) id: serde_json::Value,
    /// The server's error code.
    pub(crate) code: i32,
    /// The server's words.
    pub(crate) reason: String,
    /// When it was parked (RFC 3339).
    pub(crate) parked_at: String,
    /// How many later changes of the document wait with it, as far as this was known when the link began.
    pub(crate) later_changes: i64,
}

/// One link's cell, or that of the hub's stream.
#[derive(Debug, Default)]
pub(crate) struct Cell {
    facts: Mutex<Facts>,
    pulse: Arc<Pulse>,
    timings: Timings,
}

impl Cell {
    /// It is doing this now.
    pub(crate) fn set_state(&self, state: State) {
        self.pulse.beat();
        let former = std::mem::replace(&mut self.facts().state, state);
        if former != state {
            tracing::info!(from = former.as_str(), to = state.as_str(), "state");
        }
    }

    /// What it is doing.
    pub(crate) fn state(&self) -> State {
        self.facts().state
    }

    /// Signs of life of the loop.
    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Changes were received from the source.
    pub(crate) fn received(&self) {
        self.pulse.beat();
        let mut facts = self.facts();
        facts.waiting = true;
        facts.answered_at = Some(Instant::now());
        facts.received_at.get_or_insert_with(Instant::now);
    }

    /// Changes were applied, with a checkpoint at this time of the source; the newest of them was made at `wall_time`, in
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

    /// The source answered that there is nothing new up to this time of it.
    pub(crate) fn quiet(&self, position: Timestamp) {
        self.pulse.beat();
        let mut facts = self.facts();
        facts.waiting = false;
        facts.answered_at = Some(Instant::now());
        facts.current_until = Some(now_millis());
        facts.position = Some(position);
    }

    /// It goes on from a checkpoint of this time of the source.
    pub(crate) fn resumes_at(&self, checkpoint: Option<Timestamp>) {
        let mut facts = self.facts();
        facts.checkpoint = checkpoint.or(facts.checkpoint);
    }

    /// It begins to copy a zone of a collection, which has about so many documents.
    pub(crate) fn begin_copying(&self, ns: &str, zone: &Zone, estimated: Option<u64>) {
        let (zone, ns, begun) = (zone.to_string(), ns.to_owned(), Instant::now());
        self.facts().copying = Some(Copying { zone, ns, documents: 0, estimated, begun });
    }

    /// So many documents more are copied, or compared.
    pub(crate) fn copied(&self, more: usize) {
        self.pulse.beat();
        if let Some(copying) = &mut self.facts().copying {
            copying.documents += more as u64;
        }
    }

    /// The zone is done, or given up for now.
    pub(crate) fn end_copying(&self) {
        self.facts().copying = None;
    }

    /// It failed, for this reason, and will start again.
    pub(crate) fn failed(&self, error: &str) {
        let mut facts = self.facts();
        facts.copying = None;
        facts.restarts += 1;
        facts.last_error = Some(error.to_owned());
        facts.last_error_at = Some(super::now_text());
    }

    /// Something happened that whoever watches it should know.
    pub(crate) fn set_error(&self, error: &str) {
        let mut facts = self.facts();
        facts.last_error = Some(error.to_owned());
        facts.last_error_at = Some(super::now_text());
    }

    /// Everything is to be compared, as an operator wants it; or that is done.
    pub(crate) fn set_comparing(&self, comparing: bool) {
        self.facts().comparing = comparing;
    }

    /// How long its work takes.
    pub(crate) fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Notes how it is now.
    pub(super) fn sample(&self) {
        let mut facts = self.facts();
        let lag = Self::lag_seconds(&facts);
        let applied = facts.applied;
        facts.history.sample(applied, lag);
    }

    /// How it was in the last minutes.
    pub(super) fn history(&self) -> HistoryView {
        self.facts().history.view()
    }

    /// So many documents have a dead letter, these among them.
    pub(crate) fn set_dead_letters(&self, number: usize, letters: impl Iterator<Item = Letter>) {
        let mut facts = self.facts();
        if number != 0 || facts.dead_letters != 0 {
            facts.dead_letters = number as u64;
            facts.letters = letters.take(SHOWN_LETTERS).collect();
        }
    }

    /// The dead letters, up to a number.
    pub(crate) fn letters(&self) -> Vec<Letter> {
        self.facts().letters.clone()
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lag_seconds(facts: &Facts) -> Option<f64> {
        let answers = facts.answered_at.is_some_and(|at| at.elapsed() < ANSWERS_WITHIN);
        if answers && !facts.waiting {
            return Some(0.0);
        }
        // What was not read since the start is as old as what is saved.
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
            events_total: facts.applied,
            open_streams: 0,
            restarts: facts.restarts,
            last_error: facts.last_error.clone(),
            last_error_at: facts.last_error_at.clone(),
        }
    }
}
