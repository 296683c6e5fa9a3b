//! Applies work at the destination. A refused batch climbs the [ladder](crate::rules::ladder), until the batch is
//! applied or the refused change is parked as a dead letter.
//!
//! Promise: the link's mark passes a change only after the change is applied or parked.

mod attempt;
pub(super) mod mark;
mod transaction;
pub(super) mod work;

use std::collections::HashMap;

use bson::raw::{RawBson, RawDocumentBuf};

use self::attempt::Attempt;
use self::mark::Mark;
use self::transaction::{Batch, Committed};
use self::work::{Commit, Nowhere, Work};
use super::lifecycle::Link;
use super::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::dead_letters::{self, DeadLetter, Kept};
use crate::mongo::metadata::hub_edits::Edit;
use crate::mongo::transaction::delays;
use crate::rules::held_back::HeldBack;
use crate::rules::key::Key;
use crate::rules::ladder::{Next, Refusal};
use crate::rules::size;

impl<S: Source> Link<'_, S> {
    /// Saves the link's mark, without any change. `None`: saves the present checkpoint.
    pub(super) async fn save(&mut self, end: Option<Mark>) -> Result<(), Error> {
        self.apply(Work { end, ..Work::empty(&Nowhere) }).await.map(drop)
    }

    /// Applies a work. Returns the documents left out because the destination did not have the expected version. Fails
    /// if a server fails, or if another process has taken the link over; the saved checkpoint then shows the progress.
    pub(super) async fn apply(&mut self, mut work: Work<'_>) -> Result<Vec<Key>, Error> {
        let mut attempt = Attempt::new(std::mem::take(&mut work.read_at));
        let mut held_back = HeldBack::default();
        // Changes of documents with a dead letter are held back from the first batch on.
        held_back.take(&mut work.steps, 0, |key| self.parked.contains_key(key));
        let mut skipped = Vec::new();
        loop {
            // The next batch: as many of the present steps as a transaction should hold. The last batch carries the
            // work's end. An earlier batch ends just before the event of the next step.
            let bytes = self.destination.server().line().batch().bytes;
            let range = size::one_batch(&work.steps, attempt.range(work.steps.len()), bytes, self.read_bytes);
            let is_last = range.end == work.steps.len();
            let (mark, ours) = if is_last {
                let later = self.count_later(&held_back);
                (work.end.clone(), later.into_iter().chain(work.ours.iter().cloned()).collect())
            } else {
                (work.origin.before(work.steps[range.end].event), Vec::new())
            };
            let steps = &work.steps[range.clone()];
            let batch = Batch { steps, last: work.last, mark, ours, expected: work.expected.as_ref() };
            let committed = self.commit(&batch, &mut attempt).await;
            self.read_bytes = attempt.bytes_of_a_read().unwrap_or(self.read_bytes);
            match committed {
                Ok(mut committed) => {
                    // The committed batch is recorded immediately: the link's memory must match the saved checkpoint.
                    skipped.append(&mut committed.written.skipped);
                    attempt.has_brought(std::mem::take(&mut committed.brought));
                    let (changes, foreign) = if is_last { (work.changes, work.foreign) } else { (0, 0) };
                    self.has_committed(committed, batch.mark, changes, foreign);
                    if is_last {
                        return Ok(skipped);
                    }
                    attempt.continue_from(range.end);
                }
                Err(Error::Refused { refusal, .. }) => {
                    // A refusal has aborted the batch: the ladder chooses the next attempt.
                    let next = attempt.rung.after(&refusal);
                    tracing::debug!(link = %self.destination.link(), ?refusal, ?next, "batch refused");
                    match next {
                        Next::Try(rung) => attempt.rung = rung,
                        Next::ReadWhole(key) => attempt.read_whole(key),
                        Next::Park => {
                            let index = range.start + refusal.place_among(batch.steps);
                            // Steps before the refused step are applied first; then the refused step stands first, and
                            // is parked.
                            if index > range.start {
                                attempt.stop_before(index);
                                continue;
                            }
                            self.park(&work, index, &refusal).await?;
                            work.steps.remove(index);
                            held_back.take(&mut work.steps, index, |key| self.parked.contains_key(key));
                            attempt.continue_from(index);
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The statement that counts the changes held back by dead letters, if any.
    fn count_later(&self, held_back: &HeldBack<'_>) -> Option<RawDocumentBuf> {
        let counts = held_back.counts();
        let namespaces = self.destination.server().namespaces();
        let named = counts.into_iter().map(|(key, id, n)| (&namespaces[usize::from(key.namespace())], id, n));
        let later: Vec<_> = named.collect();
        (!later.is_empty()).then(|| dead_letters::count_later(self.destination.link(), &later))
    }

    /// Commits a batch. Retries after errors that left nothing behind, as declared by the server.
    async fn commit(&mut self, batch: &Batch<'_, '_>, attempt: &mut Attempt) -> Result<Committed, Error> {
        let mut delays = delays();
        loop {
            let error = match self.transact(batch, attempt).await {
                Ok(committed) => return Ok(committed),
                Err(error) if error.is_again() || matches!(error, Error::Refused { .. }) => error,
                Err(error) => return Err(error),
            };
            self.destination.abort().await;
            let Some(delay) = delays.next().filter(|_| error.is_again()) else { return Err(error) };
            tracing::debug!(%error, ?delay, "transaction is tried again");
            tokio::time::sleep(delay).await;
        }
    }

    /// Records the results of a committed transaction, and informs the source, the opposite link and the status.
    fn has_committed(&mut self, committed: Committed, mark: Option<Mark>, changes: usize, foreign: usize) {
        let Committed { at, number, written, .. } = committed;
        for (key, zones, at) in written.read_at {
            self.ahead.has_read(key, zones.iter().map(String::as_str), at);
        }
        let position = mark.and_then(|mark| mark.advance(&mut self.ahead));
        let foreign = written.foreign + foreign;
        let hub_edits = written.edits.into_iter().map(|Edit { key, fields, .. }| (key, fields)).collect();
        let commit = Commit { at, position, hub_edits, number, changes, foreign };
        let outlived = self.source.committed(self.spoke, &commit);
        if let Some(ledger) = &mut self.ledger {
            ledger.outlive(outlived);
        }
        if let Some(position) = &commit.position {
            self.has_carried(position);
        }
        let cluster_time = commit.position.as_ref().map(crate::rules::position::Position::cluster_time);
        self.cell().applied(commit.changes, commit.foreign, cluster_time, self.wall_time);
    }

    /// Saves the step as a dead letter. The link's mark stays before the step; the rest of the work moves the mark on.
    async fn park(&mut self, work: &Work<'_>, index: usize, refusal: &Refusal) -> Result<(), Error> {
        let step = &work.steps[index];
        let (event, cluster_time) = work.origin.event(step.event);
        let server = self.destination.server();
        let namespace = &server.namespaces()[usize::from(step.key.namespace())];
        let Refusal { code, message, .. } = refusal;
        let letter = DeadLetter { namespace, id: step.id, code: *code, message, event: &event, cluster_time };
        let statement = dead_letters::park(self.destination.link(), &letter);
        tracing::error!(
            link = %self.destination.link(), ns = %namespace, id = ?step.id, error = message,
            "change refused, kept as a dead letter"
        );
        let mark = work.origin.before(step.event);
        let batch = Batch { steps: &[], last: work.last, mark, ours: vec![statement], expected: None };
        let committed = match self.commit(&batch, &mut Attempt::new(HashMap::new())).await {
            Err(Error::Refused { .. }) => {
                let server = self.destination.server();
                return Err(server.failed("parking a change", *code, "the dead letter itself is refused"));
            }
            committed => committed?,
        };
        let kept = Kept {
            namespace: step.key.namespace(),
            id: RawBson::from(step.id),
            code: *code,
            message: message.clone(),
            parked_at: bson::DateTime::now(),
            later_changes: 0,
        };
        self.parked.insert(step.key.clone(), kept);
        self.has_committed(committed, batch.mark, 0, 0);
        Ok(())
    }

    pub(super) async fn remove_letter(&mut self, letter: &Kept) -> Result<(), Error> {
        let namespace = &self.destination.server().namespaces()[usize::from(letter.namespace)];
        let ours = vec![dead_letters::remove(self.destination.link(), namespace, letter.id.as_raw_bson_ref())];
        self.apply(Work { ours, ..Work::empty(&Nowhere) }).await.map(drop)
    }
}
