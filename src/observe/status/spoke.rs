//! The status of one spoke: both links with their time to loss, and the queue for the spoke's writer.

use std::sync::{Arc, Mutex, PoisonError};

use bson::Timestamp;

use super::cell::Cell;
use super::history::SpokeHistoryView;
use super::state::worse;
use super::view::{LinkView, QueueView, SpokeView};
use crate::rules::names::{Direction, Zone};
use crate::rules::queue::Weight;

#[derive(Debug)]
pub(crate) struct SpokeCell {
    zone: Zone,
    watch: Mutex<Vec<Zone>>,
    uplink: Arc<Cell>,
    downlink: Arc<Cell>,
    window: Window,
    hub_window: Window,
    queue: Depth,
}

impl SpokeCell {
    pub(crate) fn link(&self, direction: Direction) -> &Arc<Cell> {
        match direction {
            Direction::Uplink => &self.uplink,
            Direction::Downlink => &self.downlink,
        }
    }

    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Content and capacity of the queue between the fan-out and the spoke's writer.
    pub(crate) fn queue(&self) -> &Depth {
        &self.queue
    }

    pub(super) fn new(zone: &Zone, hub_window: Window) -> Self {
        Self {
            zone: zone.clone(),
            watch: Mutex::default(),
            uplink: Arc::default(),
            downlink: Arc::default(),
            window: Window::default(),
            hub_window,
            queue: Depth::default(),
        }
    }

    pub(super) fn set_watch(&self, watch: &[Zone]) {
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = watch.to_vec();
    }

    pub(super) fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Another process runs the spoke from now on.
    pub(crate) fn stands_by(&self) {
        self.uplink.stands_by();
        self.downlink.stands_by();
    }

    /// Adds a sample of both links to the history.
    pub(super) fn sample(&self) {
        self.uplink.sample();
        self.downlink.sample();
    }

    pub(super) fn history(&self) -> SpokeHistoryView {
        SpokeHistoryView { uplink: self.uplink.history(), downlink: self.downlink.history() }
    }

    /// Time until one link loses its place in the change stream, if known.
    pub(crate) fn time_to_loss(&self, direction: Direction) -> Option<TimeToLoss> {
        let source = match direction {
            Direction::Uplink => &self.window,
            Direction::Downlink => &self.hub_window,
        };
        TimeToLoss::of(self.link(direction).facts().checkpoint, source.get())
    }

    /// Number of applied changes and lag in seconds of one link, for the log.
    pub(crate) fn progress(&self, direction: Direction) -> (u64, Option<f64>) {
        let facts = self.link(direction).facts();
        (facts.applied, Cell::lag_seconds(&facts))
    }

    pub(super) fn view(&self) -> SpokeView {
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
            queue: self.queue.view(),
            elsewhere: None,
        }
    }
}

/// The oplog window of a source: the oldest and the newest cluster time in the oplog.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window(Arc<Mutex<Option<(Timestamp, Timestamp)>>>);

impl Window {
    /// Sets the window; `None` if unknown.
    pub(crate) fn set(&self, window: Option<(Timestamp, Timestamp)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = window;
    }

    fn get(&self) -> Option<(Timestamp, Timestamp)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Time until a link loses its place in the change stream of the source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TimeToLoss {
    /// Seconds until the checkpoint leaves the oplog, if the source continues to write at the same rate.
    pub(crate) seconds: f64,
    /// True if less than a quarter of the oplog window remains.
    pub(crate) is_short: bool,
}

impl TimeToLoss {
    fn of(checkpoint: Option<Timestamp>, window: Option<(Timestamp, Timestamp)>) -> Option<Self> {
        let ((earliest, latest), checkpoint) = (window?, checkpoint?);
        let seconds = f64::from(checkpoint.time.saturating_sub(earliest.time));
        let whole = f64::from(latest.time.saturating_sub(earliest.time));
        Some(Self { seconds, is_short: seconds < whole / 4.0 })
    }
}

/// Content and capacity of a queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Depth(Arc<Mutex<(Weight, Weight)>>);

impl Depth {
    pub(crate) fn set(&self, waiting: Weight, capacity: Weight) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (waiting, capacity);
    }

    fn view(&self) -> QueueView {
        let (waiting, capacity) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        QueueView {
            events: waiting.events,
            events_capacity: capacity.events,
            bytes: waiting.bytes,
            bytes_capacity: capacity.bytes,
        }
    }
}
