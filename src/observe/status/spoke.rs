//! What is shown of one spoke: its two links, how close each is to losing its place, and what waits for it.

use std::sync::{Arc, Mutex, PoisonError};

use bson::Timestamp;

use super::cell::Cell;
use super::history::SpokeHistoryView;
use super::state::worse;
use super::view::{LinkView, QueueView, SpokeView};
use crate::rules::names::{Direction, Zone};
use crate::rules::queue::Weight;

/// What is shown of one spoke.
#[derive(Debug)]
pub(crate) struct SpokeCell {
    zone: Zone,
    watch: Mutex<Vec<Zone>>,
    uplink: Cell,
    downlink: Cell,
    window: Window,
    hub_window: Window,
    queue: Depth,
}

impl SpokeCell {
    /// The cell of one of its links.
    pub(crate) fn link(&self, direction: Direction) -> &Cell {
        match direction {
            Direction::Uplink => &self.uplink,
            Direction::Downlink => &self.downlink,
        }
    }

    /// The spoke's oplog window.
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// What waits for the spoke's writer at the fan-out.
    pub(crate) fn queue(&self) -> &Depth {
        &self.queue
    }

    /// A spoke of which nothing is known yet.
    pub(super) fn new(zone: &Zone, hub_window: Window) -> Self {
        Self {
            zone: zone.clone(),
            watch: Mutex::default(),
            uplink: Cell::default(),
            downlink: Cell::default(),
            window: Window::default(),
            hub_window,
            queue: Depth::default(),
        }
    }

    /// These are the zones that it watches.
    pub(super) fn set_watch(&self, watch: &[Zone]) {
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = watch.to_vec();
    }

    /// The zone that it owns.
    pub(super) fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Notes how both links are now.
    pub(super) fn sample(&self) {
        self.uplink.sample();
        self.downlink.sample();
    }

    /// How both links were in the last minutes.
    pub(super) fn history(&self) -> SpokeHistoryView {
        SpokeHistoryView { uplink: self.uplink.history(), downlink: self.downlink.history() }
    }

    /// How close one of its links is to losing its place, if that is known.
    pub(crate) fn time_to_loss(&self, direction: Direction) -> Option<TimeToLoss> {
        let source = match direction {
            Direction::Uplink => &self.window,
            Direction::Downlink => &self.hub_window,
        };
        TimeToLoss::of(self.link(direction).facts().checkpoint, source.get())
    }

    /// One of its links in numbers, for the log: changes applied, seconds of lag.
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
        }
    }
}

/// The oplog window of a source: from when, and until when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window(Arc<Mutex<Option<(Timestamp, Timestamp)>>>);

impl Window {
    /// It is this now; `None` if that is not known.
    pub(crate) fn set(&self, window: Option<(Timestamp, Timestamp)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = window;
    }

    fn get(&self) -> Option<(Timestamp, Timestamp)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How close a link is to losing its place in its source's change stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TimeToLoss {
    /// How long it takes until its checkpoint has left the oplog, if the source goes on as it did.
    pub(crate) seconds: f64,
    /// Whether that is less than a quarter of the oplog window.
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

/// What waits in a queue, and what may wait there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Depth(Arc<Mutex<(Weight, Weight)>>);

impl Depth {
    /// So much waits now, of so much that may.
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
