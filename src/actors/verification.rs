//! The verification job: compares hub and spokes, on request or at an interval, never twice at the same time.

use std::time::Duration;

use actix::prelude::*;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::commands::Refused;
use super::coordinator::Coordinator;
use super::panic_message;
use crate::config::Config;
use crate::verify::report::{Report, Verdict};
use crate::verify::scope::{Scope, ScopeRequest};

/// Progress is saved under this name; a verification with the same name resumes it.
const RUN: &str = "process";

/// Sent by the HTTP interface when an operator asks for a comparison of hub and spokes.
#[derive(Message)]
#[rtype(result = "Result<(), Refused>")]
pub(crate) struct Verify(pub(crate) ScopeRequest);

pub(super) fn schedule(config: &Config, context: &mut Context<Coordinator>) {
    if let Some(interval) = scheduled(config) {
        context.run_interval(interval, |coordinator, context| {
            // One member is enough, and all agree which.
            if coordinator.handles.board.cluster().view().members.first().is_some_and(|first| !first.is_this) {
                return;
            }
            let scope = Scope::scheduled(&coordinator.config);
            if coordinator.verify(scope, context).is_err() {
                tracing::warn!("scheduled verification skipped, the previous one is still running");
            }
        });
    }
}

fn scheduled(config: &Config) -> Option<Duration> {
    let hours = config.verify.every_hours;
    (hours > 0).then(|| Duration::from_secs(u64::from(hours) * 3_600))
}

impl Coordinator {
    /// Starts a verification on the thread pool. Refused while another verification is running.
    fn verify(&self, scope: Scope, context: &mut Context<Self>) -> Result<(), Refused> {
        if !self.handles.board.verification().begin() {
            return Err(Refused::Senseless("a verification is already running".to_owned()));
        }
        tracing::info!(?scope, "verification begins");
        let (config, board, stop) = (self.config.clone(), self.handles.board.clone(), self.stop.clone());
        let work = async move { crate::verify::run(&config, &scope, RUN, board.verification(), &stop).await };
        let task = AbortOnDropHandle::new(tokio::spawn(work.in_current_span()));
        let ended = async move {
            match task.await {
                Ok(ended) => ended.map_err(|error| error.to_string()),
                Err(panicked) if panicked.is_panic() => Err(panic_message(panicked.into_panic())),
                Err(_) => Err("stopped".to_owned()),
            }
        };
        context.spawn(ended.into_actor(self).map(|ended, coordinator: &mut Self, _| coordinator.verified(ended)));
        Ok(())
    }

    /// Shows the report of a verification that ended, or the reason for its failure.
    fn verified(&self, ended: Result<Report, String>) {
        let cell = self.handles.board.verification();
        let report = match ended {
            Ok(report) => report,
            Err(error) => {
                tracing::error!(error, "verification failed");
                return cell.end(0, Some(error));
            }
        };
        cell.set_report(serde_json::to_string(&report).unwrap_or_default());
        let untold = report.untold.first().map(|untold| format!("spoke {}: {}", untold.spoke, untold.reason));
        match report.verdict() {
            Verdict::Equal => {
                tracing::info!(documents = report.documents, repaired = report.repaired, "verified: equal")
            }
            Verdict::Different => tracing::error!(differences = report.differences, "verified: not equal"),
            Verdict::Untold => tracing::warn!(reason = untold, "verification inconclusive"),
        }
        cell.end(report.differences, untold);
    }
}

impl Handler<Verify> for Coordinator {
    type Result = Result<(), Refused>;

    fn handle(&mut self, Verify(wanted): Verify, context: &mut Self::Context) -> Self::Result {
        let scope = Scope::of(&wanted, &self.config);
        match scope.problem(&self.config) {
            Some(problem) => Err(Refused::Senseless(problem)),
            None => self.verify(scope, context),
        }
    }
}
