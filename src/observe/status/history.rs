//! How a link was in the last minutes: its rate and its lag, for the small charts of the dashboard. What is older is for a
//! monitoring system to keep.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

/// How often it is noted.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

/// How often it is remembered: ten minutes.
const KEPT: usize = 120;

/// One link's last minutes.
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
    /// So many changes are applied in all, and so far behind it is.
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

/// One link's last minutes, the oldest first.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HistoryView {
    /// Changes per second.
    rate: Vec<Option<f32>>,
    /// Seconds.
    lag: Vec<Option<f32>>,
}

/// Those of both links of a spoke.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SpokeHistoryView {
    pub(super) uplink: HistoryView,
    pub(super) downlink: HistoryView,
}

/// Those of all, as `/api/v1/history` answers it.
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
    fn only_the_last_minutes_are_kept_and_the_first_sample_has_no_rate() {
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
