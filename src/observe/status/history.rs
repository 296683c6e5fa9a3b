//! Rate and lag of a link in the last ten minutes, for the small charts of the dashboard. Older values are left to a
//! monitoring system.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

/// Number of samples kept: ten minutes.
const KEPT: usize = 120;

#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
    last: Option<(Instant, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    rate: Option<f32>,
    lag: Option<f32>,
}

impl History {
    /// Adds a sample of the lag and of the rate, computed from the number of all changes applied so far.
    pub(super) fn sample(&mut self, applied: u64, lag_seconds: Option<f64>) {
        let now = Instant::now();
        let rate = self.last.map(|(at, before)| {
            applied.saturating_sub(before) as f64 / now.duration_since(at).as_secs_f64().max(0.001)
        });
        self.last = Some((now, applied));
        #[expect(clippy::cast_possible_truncation, reason = "a chart needs no more digits")]
        let short = |value: f64| value as f32;
        self.samples.push_back(Sample { rate: rate.map(short), lag: lag_seconds.map(short) });
        if self.samples.len() > KEPT {
            self.samples.pop_front();
        }
    }

    pub(super) fn view(&self) -> HistoryView {
        HistoryView {
            rate: self.samples.iter().map(|sample| sample.rate).collect(),
            lag: self.samples.iter().map(|sample| sample.lag).collect(),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct HistoryView {
    /// Changes per second.
    rate: Vec<Option<f32>>,
    /// Lag in seconds.
    lag: Vec<Option<f32>>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct SpokeHistoryView {
    pub(super) uplink: HistoryView,
    pub(super) downlink: HistoryView,
}

/// The samples of the hub and of all spokes: the answer of `/api/v1/history`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BoardHistoryView {
    pub(super) interval_seconds: u64,
    pub(super) hub: HistoryView,
    pub(super) spokes: BTreeMap<String, SpokeHistoryView>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_ten_minutes_are_kept_and_the_first_sample_has_no_rate() {
        let mut history = History::default();
        for number in 0..=KEPT as u64 {
            history.sample(number * 10, Some(0.5));
            assert_eq!(history.view().rate[0].is_none(), number < KEPT as u64);
        }
        let view = history.view();
        assert_eq!((view.rate.len(), view.lag.len()), (KEPT, KEPT));
        assert!(view.rate.iter().all(|rate| rate.is_some_and(|rate| rate > 0.0)));
    }
}
