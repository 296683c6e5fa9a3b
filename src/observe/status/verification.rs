//! The status of the last verification, or of a verification in progress.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Running,
    /// All documents were compared.
    Done,
    /// Ended by an error, without a result.
    Failed,
}

#[derive(Debug)]
struct Shown {
    phase: Phase,
    started_at: String,
    begun: Instant,
    finished_at: Option<String>,
    documents: u64,
    estimated: Option<u64>,
    differences: u64,
    error: Option<String>,
    /// The whole report as JSON.
    report: Option<String>,
}

/// The status of the last verification; empty before the first.
#[derive(Debug, Default)]
pub(crate) struct VerificationCell(Mutex<Option<Shown>>);

impl VerificationCell {
    /// Begins a verification. Returns `false` if another verification is in progress.
    pub(crate) fn begin(&self) -> bool {
        let mut facts = self.facts();
        if facts.as_ref().is_some_and(|facts| facts.phase == Phase::Running) {
            return false;
        }
        *facts = Some(Shown {
            phase: Phase::Running,
            started_at: super::now_text(),
            begun: Instant::now(),
            finished_at: None,
            documents: 0,
            estimated: None,
            differences: 0,
            error: None,
            report: None,
        });
        true
    }

    /// Sets the number of compared documents, and the estimated number of all.
    pub(crate) fn progress(&self, documents: u64, estimated: Option<u64>) {
        if let Some(facts) = self.facts().as_mut() {
            facts.documents = documents;
            facts.estimated = estimated;
        }
    }

    /// Ends the verification with the number of differences. After an error, further differences may exist.
    pub(crate) fn end(&self, differences: u64, error: Option<String>) {
        if let Some(facts) = self.facts().as_mut() {
            facts.phase = if error.is_some() { Phase::Failed } else { Phase::Done };
            facts.finished_at = Some(super::now_text());
            facts.differences = differences;
            facts.error = error;
        }
    }

    pub(crate) fn set_report(&self, report: String) {
        if let Some(facts) = self.facts().as_mut() {
            facts.report = Some(report);
        }
    }

    /// The whole report of the last verification, as JSON.
    pub(crate) fn report(&self) -> Option<String> {
        self.facts().as_ref().and_then(|facts| facts.report.clone())
    }

    pub(crate) fn view(&self) -> Option<VerificationView> {
        self.facts().as_ref().map(|facts| {
            let is_running = facts.phase == Phase::Running;
            let rate = facts.documents as f64 / facts.begun.elapsed().as_secs_f64().max(0.001);
            let left = facts.estimated.map(|estimated| estimated.saturating_sub(facts.documents) as f64);
            VerificationView {
                state: facts.phase,
                started_at: facts.started_at.clone(),
                finished_at: facts.finished_at.clone(),
                documents: facts.documents,
                documents_estimated: facts.estimated,
                documents_per_second: if is_running { rate } else { 0.0 },
                seconds_remaining: left.filter(|_| is_running && rate > 0.0).map(|left| left / rate),
                differences: facts.differences,
                error: facts.error.clone(),
            }
        })
    }

    fn facts(&self) -> MutexGuard<'_, Option<Shown>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The verification in `/api/v1/status`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct VerificationView {
    pub(crate) state: Phase,
    pub(crate) started_at: String,
    pub(crate) finished_at: Option<String>,
    pub(crate) documents: u64,
    pub(crate) documents_estimated: Option<u64>,
    pub(crate) documents_per_second: f64,
    pub(crate) seconds_remaining: Option<f64>,
    pub(crate) differences: u64,
    pub(crate) error: Option<String>,
}
