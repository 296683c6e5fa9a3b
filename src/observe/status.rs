//! The status board: one cell per link, written by the loops, read by whoever asks. Reading never waits for a server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bson::Timestamp;
use dashmap::DashMap;
use serde::Serialize;

use super::pulse::Pulse;
use crate::sync::names::{Direction, Zone};

/// What a link, or the hub's stream, is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It looks for its servers.
    #[default]
    Connecting,
    /// It copies what was there before it began.
    InitialSync,
    /// It follows the change stream.
    Streaming,
    /// It follows a change stream of its own, to where the others are.
    CatchingUp,
    /// It compares both sides, because its place in the change stream is gone, or an operator wants it.
    Reconciling,
    /// It waits before it starts again.
    Backoff,
    /// Somebody paused it.
    Paused,
    /// It cannot work before somebody changes something, or failed again and again. It is tried once a minute.
    Halted,
}

/// A quiet source answers at least this often; after that it counts as not read.
const ANSWERS_WITHIN: Duration = Duration::from_secs(4);

/// What is known of one link, or of the hub's stream.
#[derive(Debug, Default)]
struct Facts {
    state: State,
    applied: u64,
    foreign: u64,
    /// The source's time up to which everything is applied and saved.
    checkpoint: Option<Timestamp>,
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
    dead_letters: u64,
    letters: Vec<Letter>,
    copying: Option<Copying>,
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
pub struct Letter {
    /// The document's collection.
    pub ns: String,
    /// Its `_id`, as relaxed extended JSON.
    pub id: serde_json::Value,
    /// The server's error code.
    pub code: i32,
    /// The server's words.
    pub reason: String,
    /// When it was parked (RFC 3339).
    pub parked_at: String,
    /// How many later changes of the document wait with it, as far as this was known when the link began.
    pub later_changes: i64,
}

/// One link's cell, or that of the hub's stream.
#[derive(Debug, Default)]
pub struct Cell {
    facts: Mutex<Facts>,
    pulse: Arc<Pulse>,
}

impl Cell {
    /// It is doing this now.
    pub fn set_state(&self, state: State) {
        self.pulse.beat();
        self.facts().state = state;
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.facts().state
    }

    /// Signs of life of the loop.
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Changes were received from the source.
    pub fn received(&self) {
        self.pulse.beat();
        let mut facts = self.facts();
        facts.waiting = true;
        facts.answered_at = Some(Instant::now());
    }

    /// Changes were applied, with a checkpoint at this time of the source; the newest of them was made at `wall_time`, in
    /// milliseconds since 1970.
    pub fn applied(&self, changes: usize, foreign: usize, checkpoint: Option<Timestamp>, wall_time: Option<i64>) {
        self.pulse.beat();
        let mut facts = self.facts();
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
    pub fn quiet(&self, position: Timestamp) {
        self.pulse.beat();
        let mut facts = self.facts();
        facts.waiting = false;
        facts.answered_at = Some(Instant::now());
        facts.current_until = Some(now_millis());
        facts.position = Some(position);
    }

    /// It goes on from a checkpoint of this time of the source.
    pub fn resumes_at(&self, checkpoint: Option<Timestamp>) {
        let mut facts = self.facts();
        facts.checkpoint = checkpoint.or(facts.checkpoint);
    }

    /// It begins to copy a zone of a collection, which has about so many documents.
    pub fn begin_copying(&self, ns: &str, zone: &Zone, estimated: Option<u64>) {
        let (zone, ns, begun) = (zone.to_string(), ns.to_owned(), Instant::now());
        self.facts().copying = Some(Copying { zone, ns, documents: 0, estimated, begun });
    }

    /// So many documents more are copied, or compared.
    pub fn copied(&self, more: usize) {
        self.pulse.beat();
        if let Some(copying) = &mut self.facts().copying {
            copying.documents += more as u64;
        }
    }

    /// The zone is done, or given up for now.
    pub fn end_copying(&self) {
        self.facts().copying = None;
    }

    /// It failed, for this reason, and will start again.
    pub fn failed(&self, error: &str) {
        let mut facts = self.facts();
        facts.copying = None;
        facts.restarts += 1;
        facts.last_error = Some(error.to_owned());
    }

    /// Something happened that whoever watches it should know.
    pub fn set_error(&self, error: &str) {
        self.facts().last_error = Some(error.to_owned());
    }

    /// So many documents have a dead letter, these among them.
    pub fn set_dead_letters(&self, number: usize, letters: impl Iterator<Item = Letter>) {
        let mut facts = self.facts();
        if number != 0 || facts.dead_letters != 0 {
            facts.dead_letters = number as u64;
            facts.letters = letters.take(SHOWN_LETTERS).collect();
        }
    }

    /// The dead letters, up to a number.
    pub fn letters(&self) -> Vec<Letter> {
        self.facts().letters.clone()
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lag_seconds(facts: &Facts) -> Option<f64> {
        let answers = facts.answered_at.is_some_and(|at| at.elapsed() < ANSWERS_WITHIN);
        if answers && !facts.waiting {
            return Some(0.0);
        }
        let behind = now_millis().saturating_sub(facts.current_until?).max(0);
        Some(Duration::from_millis(behind.unsigned_abs()).as_secs_f64())
    }

    fn link_view(&self) -> LinkView {
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
            restarts: facts.restarts,
            last_error: facts.last_error.clone(),
        }
    }

    fn hub_view(&self) -> HubView {
        let facts = self.facts();
        HubView {
            state: facts.state,
            lag_seconds: Self::lag_seconds(&facts),
            events_total: facts.applied,
            open_streams: 0,
            restarts: facts.restarts,
            last_error: facts.last_error.clone(),
        }
    }
}

/// What is shown of one spoke.
#[derive(Debug)]
pub struct SpokeCell {
    zone: Zone,
    watch: Mutex<Vec<Zone>>,
    uplink: Cell,
    downlink: Cell,
    window: Window,
    hub_window: Window,
}

impl SpokeCell {
    /// The cell of one of its links.
    pub fn link(&self, direction: Direction) -> &Cell {
        match direction {
            Direction::Uplink => &self.uplink,
            Direction::Downlink => &self.downlink,
        }
    }

    /// The spoke's oplog window.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// How close one of its links is to losing its place, if that is known.
    pub fn time_to_loss(&self, direction: Direction) -> Option<TimeToLoss> {
        let source = match direction {
            Direction::Uplink => &self.window,
            Direction::Downlink => &self.hub_window,
        };
        TimeToLoss::of(self.link(direction).facts().checkpoint, source.get())
    }

    /// One of its links in numbers, for the log: changes applied, seconds of lag.
    pub fn progress(&self, direction: Direction) -> (u64, Option<f64>) {
        let facts = self.link(direction).facts();
        (facts.applied, Cell::lag_seconds(&facts))
    }

    fn view(&self) -> SpokeView {
        let letters = self.uplink.facts().dead_letters + self.downlink.facts().dead_letters;
        let [uplink, downlink] = Direction::BOTH.map(|direction| LinkView {
            time_to_loss_seconds: self.time_to_loss(direction).map(|time| time.seconds),
            ..self.link(direction).link_view()
        });
        SpokeView {
            zone: self.zone.to_string(),
            watch: self.watch.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Zone::to_string).collect(),
            state: worse(uplink.state, downlink.state),
            uplink,
            downlink,
            dead_letters: letters,
        }
    }
}

/// Of two links' states, the one that says more about the spoke.
fn worse(one: State, other: State) -> State {
    let rank = |state: State| match state {
        State::Streaming => 0,
        State::CatchingUp => 1,
        State::InitialSync => 2,
        State::Reconciling => 3,
        State::Connecting => 4,
        State::Backoff => 5,
        State::Paused => 6,
        State::Halted => 7,
    };
    if rank(one) >= rank(other) { one } else { other }
}

/// The oplog window of a source: from when, and until when.
#[derive(Clone, Debug, Default)]
pub struct Window(Arc<Mutex<Option<(Timestamp, Timestamp)>>>);

impl Window {
    /// It is this now; `None` if that is not known.
    pub fn set(&self, window: Option<(Timestamp, Timestamp)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = window;
    }

    fn get(&self) -> Option<(Timestamp, Timestamp)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How close a link is to losing its place in its source's change stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeToLoss {
    /// How long it takes until its checkpoint has left the oplog, if the source goes on as it did.
    pub seconds: f64,
    /// Whether that is less than a quarter of the oplog window.
    pub is_short: bool,
}

impl TimeToLoss {
    fn of(checkpoint: Option<Timestamp>, window: Option<(Timestamp, Timestamp)>) -> Option<Self> {
        let ((earliest, latest), checkpoint) = (window?, checkpoint?);
        let seconds = f64::from(checkpoint.time.saturating_sub(earliest.time));
        let whole = f64::from(latest.time.saturating_sub(earliest.time));
        Some(Self { seconds, is_short: seconds < whole / 4.0 })
    }
}

/// Counts things that are there for a while.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicUsize>);

/// One of the things that a [`Gauge`] counts, until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<AtomicUsize>);

impl Gauge {
    /// One more.
    pub fn counted(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.0.clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All cells of the process.
#[derive(Debug)]
pub struct Board {
    started: Instant,
    hub: Arc<Cell>,
    hub_streams: Gauge,
    hub_window: Window,
    configuration_error: Mutex<Option<String>>,
    spokes: DashMap<Zone, Arc<SpokeCell>>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            hub: Arc::default(),
            hub_streams: Gauge::default(),
            hub_window: Window::default(),
            configuration_error: Mutex::default(),
            spokes: DashMap::new(),
        }
    }
}

impl Board {
    /// The cell of the hub's change stream.
    pub fn hub(&self) -> &Arc<Cell> {
        &self.hub
    }

    /// The hub's oplog window.
    pub fn hub_window(&self) -> &Window {
        &self.hub_window
    }

    /// Counts the change streams that are open at the hub.
    pub fn hub_streams(&self) -> &Gauge {
        &self.hub_streams
    }

    /// Why the file, as it is now, cannot be used; `None` if it can.
    pub fn set_configuration_error(&self, error: Option<String>) {
        *self.configuration_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// The cell of a spoke, which it keeps for as long as it is configured.
    pub fn add(&self, zone: &Zone, watch: &[Zone]) -> Arc<SpokeCell> {
        let cell = self.spokes.entry(zone.clone()).or_insert_with(|| {
            let (uplink, downlink) = (Cell::default(), Cell::default());
            let (window, hub_window) = (Window::default(), self.hub_window.clone());
            Arc::new(SpokeCell { zone: zone.clone(), watch: Mutex::default(), uplink, downlink, window, hub_window })
        });
        *cell.watch.lock().unwrap_or_else(PoisonError::into_inner) = watch.to_vec();
        cell.clone()
    }

    /// The dead letters of all spokes, with the zone and the direction of their link.
    pub fn letters(&self) -> Vec<LetterView> {
        let mut views = Vec::new();
        for spoke in &self.spokes {
            for direction in Direction::BOTH {
                let letters = spoke.link(direction).letters().into_iter();
                let view = |letter| LetterView { zone: spoke.zone.to_string(), link: direction.as_str(), letter };
                views.extend(letters.map(view));
            }
        }
        views.sort_by(|one, other| (&one.zone, &one.letter.parked_at).cmp(&(&other.zone, &other.letter.parked_at)));
        views
    }

    /// A spoke is no longer configured.
    pub fn remove(&self, zone: &str) {
        self.spokes.remove(zone);
    }

    /// Everything, as `/api/v1/status` answers it.
    pub fn view(&self) -> StatusView {
        let spokes: BTreeMap<String, SpokeView> =
            self.spokes.iter().map(|cell| (cell.zone.to_string(), cell.view())).collect();
        StatusView {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            configuration_error: self.configuration_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            hub: HubView { open_streams: self.hub_streams.count(), ..self.hub.hub_view() },
            spokes: spokes.into_values().collect(),
        }
    }
}

/// One of `/api/v1/dead-letters`
#[derive(Clone, Debug, Serialize)]
pub struct LetterView {
    zone: String,
    link: &'static str,
    #[serde(flatten)]
    letter: Letter,
}

/// `/api/v1/status`
#[derive(Clone, Debug, Serialize)]
pub struct StatusView {
    version: &'static str,
    uptime_seconds: f64,
    /// What is wrong with the file that was to be read again.
    configuration_error: Option<String>,
    hub: HubView,
    spokes: Vec<SpokeView>,
}

impl StatusView {
    /// What is not streaming both ways, as `DFW downlink: initial_sync`.
    pub fn not_ready(&self) -> Vec<String> {
        let name = |state: State| {
            serde_json::to_value(state).map_or_else(|_| String::new(), |value| value.as_str().unwrap_or("").to_owned())
        };
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

#[derive(Clone, Debug, Serialize)]
struct HubView {
    state: State,
    lag_seconds: Option<f64>,
    events_total: u64,
    open_streams: usize,
    restarts: u64,
    last_error: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct SpokeView {
    zone: String,
    watch: Vec<String>,
    state: State,
    uplink: LinkView,
    downlink: LinkView,
    dead_letters: u64,
}

#[derive(Clone, Debug, Serialize)]
struct LinkView {
    state: State,
    applied_total: u64,
    foreign_total: u64,
    lag_seconds: Option<f64>,
    /// The source's time up to which everything is applied; the checkpoint of a quiet link is a little older.
    position: Option<String>,
    checkpoint: Option<CheckpointView>,
    time_to_loss_seconds: Option<f64>,
    /// How far an initial sync or a reconcile is.
    copying: Option<CopyingView>,
    restarts: u64,
    last_error: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct CopyingView {
    zone: String,
    ns: String,
    documents: u64,
    /// How many there are, if the source could count them quickly.
    documents_estimated: Option<u64>,
    documents_per_second: f64,
    seconds_remaining: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
struct CheckpointView {
    cluster_time: String,
    age_seconds: Option<f64>,
}

/// A cluster time as `seconds.increment`.
fn show(time: Timestamp) -> String {
    format!("{}.{}", time.time, time.increment)
}

fn now_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
