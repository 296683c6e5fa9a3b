//! The status board, with all cells of the process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dashmap::DashMap;

use super::cell::Cell;
use super::cluster::ClusterCell;
use super::history::{self, BoardHistoryView};
use super::spoke::{SpokeCell, Window};
use super::state::State;
use super::verification::VerificationCell;
use super::view::{HubView, LetterView, SpokeView, StatusView};
use crate::rules::names::{Direction, Zone};

/// Counts things that exist for a while, such as open change streams.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauge(Arc<AtomicUsize>);

/// A thing that a [`Gauge`] counts until the value is dropped.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Gauge {
    pub(crate) fn counted(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.0.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(crate) struct Board {
    started: Instant,
    hub: Arc<Cell>,
    hub_streams: Gauge,
    hub_window: Window,
    configuration_error: Mutex<Option<String>>,
    verification: VerificationCell,
    cluster: ClusterCell,
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
            verification: VerificationCell::default(),
            cluster: ClusterCell::default(),
            spokes: DashMap::new(),
        }
    }
}

impl Board {
    /// The cell of the hub's change stream.
    pub(crate) fn hub(&self) -> &Arc<Cell> {
        &self.hub
    }

    pub(crate) fn hub_window(&self) -> &Window {
        &self.hub_window
    }

    /// Counts the change streams that are open at the hub.
    pub(crate) fn hub_streams(&self) -> &Gauge {
        &self.hub_streams
    }

    /// Sets the error of the configuration file; `None` if the file is valid.
    pub(crate) fn set_configuration_error(&self, error: Option<String>) {
        *self.configuration_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// Sets the watched zones of a spoke and returns the spoke's cell. The cell exists for as long as the spoke is
    /// configured.
    pub(crate) fn add(&self, zone: &Zone, watch: &[Zone]) -> Arc<SpokeCell> {
        let new = || Arc::new(SpokeCell::new(zone, self.hub_window.clone()));
        let cell = self.spokes.entry(zone.clone()).or_insert_with(new);
        cell.set_watch(watch);
        cell.clone()
    }

    pub(crate) fn get(&self, zone: &str) -> Option<Arc<SpokeCell>> {
        self.spokes.get(zone).map(|cell| cell.clone())
    }

    /// The cells of all spokes, in the order of their zones.
    pub(crate) fn spokes(&self) -> BTreeMap<String, Arc<SpokeCell>> {
        self.spokes.iter().map(|cell| (cell.zone().to_string(), cell.clone())).collect()
    }

    pub(crate) fn verification(&self) -> &VerificationCell {
        &self.verification
    }

    pub(crate) fn cluster(&self) -> &ClusterCell {
        &self.cluster
    }

    /// Adds a sample of all cells to the history. Call it every [`history::INTERVAL`].
    pub(crate) fn sample(&self) {
        self.hub.sample();
        for spoke in &self.spokes {
            spoke.sample();
        }
    }

    /// The last ten minutes: the answer of `/api/v1/history`.
    pub(crate) fn history(&self) -> BoardHistoryView {
        let spokes = self.spokes().into_iter().map(|(zone, cell)| (zone, cell.history())).collect();
        BoardHistoryView { interval_seconds: history::INTERVAL.as_secs(), hub: self.hub.history(), spokes }
    }

    /// The shown dead letters of all spokes, or of one zone's, each with zone and direction of the link.
    pub(crate) fn letters(&self, zone: Option<&str>) -> Vec<LetterView> {
        let mut views = Vec::new();
        for spoke in self.spokes.iter().filter(|spoke| zone.is_none_or(|zone| spoke.zone().as_str() == zone)) {
            for direction in Direction::BOTH {
                let letters = spoke.link(direction).letters().into_iter();
                let view = |letter| LetterView { zone: spoke.zone().to_string(), link: direction.as_str(), letter };
                views.extend(letters.map(view));
            }
        }
        views.sort_by(|one, other| (&one.zone, &one.letter.parked_at).cmp(&(&other.zone, &other.letter.parked_at)));
        views
    }

    /// Removes the cell of a spoke that is no longer configured.
    pub(crate) fn remove(&self, zone: &str) {
        self.spokes.remove(zone);
    }

    /// The view of a spoke, with what is known of it elsewhere if another process runs it.
    fn with_holder(&self, mut view: SpokeView) -> SpokeView {
        if view.state == State::Standby {
            view.elsewhere = self.cluster.elsewhere(&view.zone);
        }
        view
    }

    /// The whole status: the answer of `/api/v1/status`.
    pub(crate) fn view(&self) -> StatusView {
        let spokes = self.spokes();
        StatusView {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            configuration_error: self.configuration_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            hub: HubView { open_streams: self.hub_streams.count(), ..self.hub.hub_view() },
            verification: self.verification.view(),
            cluster: self.cluster.view(),
            spokes: spokes.values().map(|cell| self.with_holder(cell.view())).collect(),
        }
    }
}
