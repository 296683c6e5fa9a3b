//! Applies work at the destination. A refused batch climbs the [ladder](crate::rules::ladder), until the batch is
//! applied or the refused change is parked as a dead letter.
//!
//! Promise: the link's mark passes a change only after the change is applied or parked.

mod aside;
mod attempt;
pub(super) mod mark;
mod order;
mod transaction;
pub(super) mod work;

use std::collections::HashMap;
use std::time::Instant;

use bson::raw::{RawBson, RawDocumentBuf};
use bson::{Timestamp, rawdoc};

use self::attempt::Attempt;
use self::mark::Mark;
use self::transaction::{Batch, Committed};
use self::work::{Commit, Nowhere, Unreadable, Work};
use super::lifecycle::Link;
use super::pair::Evidence;
use super::parked::{self, Parked};
use super::slow;
use super::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::Reconciling;
use crate::mongo::metadata::dead_letters::{self, DeadLetter, Keeping, Kept, Later};
use crate::mongo::metadata::unsettled;
use crate::mongo::transaction::delays;
use crate::rules::held_back::HeldBack;
use crate::rules::inference::Inference;
use crate::rules::key::Key;
use crate::rules::ladder::{Next, Refusal};
use crate::rules::names::Direction;
use crate::rules::opaque;
use crate::rules::past::Restored;
use crate::rules::position::Position;
use crate::rules::shown_id::Told;
use crate::rules::size;
use crate::rules::step::Step;
use crate::rules::uplink::Cut;

/// The error code and the message in the dead letter of a document whose `_id` cannot be carried.
const FAILED_TO_PARSE: i32 = 9;
const UNREADABLE: &str = "the document's _id cannot be carried (text that is no UTF-8, a damaged binary, or more than \
                          1.6 MB): write the document under another _id";

impl<S: Source> Link<'_, S> {
    /// Saves the link's mark, without any change. `None`: saves the present checkpoint.
    pub(super) async fn save(&mut self, end: Option<Mark>) -> Result<(), Error> {
        self.apply(Work { end, ..Work::empty(&Nowhere) }).await.map(drop)
    }

    /// Applies a work. Returns the documents left out because the destination did not have the expected version. Fails
    /// if a server fails, or if another process has taken the link over; the saved checkpoint then shows the progress.
    pub(super) async fn apply(&mut self, mut work: Work<'_>) -> Result<Vec<Key>, Error> {
        // Applications of a restored server have not seen the newer versions that their changes replace.
        if work.origin.is_live() && self.is_source_restored() {
            let changed = work.steps.iter().map(|step| step.key.clone());
            work.inferred.extend(changed.map(|key| (key, Inference::Restored)));
        }
        // Nor have applications at the hub seen a change that the hub refused, and whose letter was dropped.
        if S::DIRECTION == Direction::Downlink && work.origin.is_live() {
            let evidence = self.spoke.pair.evidence_of(Direction::Uplink);
            if !evidence.is_empty() {
                let is_dropped = |key: &&Key| evidence.get(*key).is_some_and(|letter| letter.is_dropped);
                let dropped = work.steps.iter().map(|step| &step.key).filter(is_dropped);
                work.inferred.extend(dropped.map(|key| (key.clone(), Inference::Dropped)));
            }
        }
        for unreadable in std::mem::take(&mut work.unreadable) {
            self.park_unreadable(&work, unreadable).await?;
        }
        let mut attempt = Attempt::new(std::mem::take(&mut work.read_at));
        let mut held_back = HeldBack::default();
        held_back.take(&mut work.steps, 0, |key| !work.decides && self.is_held_back(key));
        let mut skipped = Vec::new();
        loop {
            // The next batch: as many of the present steps as a transaction should hold. The last batch carries the
            // work's end. An earlier batch ends just before the event of the next step.
            let bytes = self.destination.server().line().batch().bytes;
            let mut range = attempt.range(work.steps.len());
            range.end = range.end.min(range.start.saturating_add(self.spoke.pair.pressure(S::DIRECTION).most()));
            let cut = cut_after(&work, range.start);
            if let Some(cut) = cut {
                let end = work.steps.partition_point(|step| step.event < cut.event);
                range.end = range.end.min(end);
            }
            let range = size::one_batch(&work.steps, range, bytes, self.read_bytes);
            let is_last = range.end == work.steps.len();
            let (mark, ours) = if is_last {
                let later = self.count_later(&work, &held_back);
                (work.end.clone(), later.into_iter().chain(work.ours.iter().cloned()).collect())
            } else {
                (work.origin.before(work.steps[range.end].event), Vec::new())
            };
            // Notes come with the first batch: its mark may pass their events.
            let to_settle = work.to_settle.clone();
            let steps = &work.steps[range.clone()];
            let last = cut.map_or(work.last, |cut| cut.after);
            let (expected, inferred, origin) = (work.expected.as_ref(), &work.inferred, work.origin);
            let batch = Batch { steps, last, mark, ours, to_settle, expected, inferred, origin };
            let committed = self.commit(&batch, &mut attempt).await;
            self.read_bytes = attempt.bytes_of_a_read().unwrap_or(self.read_bytes);
            match committed {
                Ok(mut committed) => {
                    self.spoke.pair.pressure(S::DIRECTION).committed(batch.steps.len());
                    // The committed batch is recorded immediately: the link's memory must match the saved checkpoint.
                    work.to_settle.clear();
                    skipped.append(&mut committed.written.skipped);
                    attempt.has_brought(std::mem::take(&mut committed.brought));
                    let (changes, foreign) = if is_last { (work.changes, work.foreign) } else { (0, 0) };
                    self.has_committed(committed, batch.mark, changes, foreign);
                    if is_last {
                        self.has_counted(&held_back);
                        return Ok(skipped);
                    }
                    attempt.continue_from(range.end);
                    attempt.forget_much();
                    if let Some(cut) = cut.filter(|cut| work.steps[range.end].event >= cut.event) {
                        // A document read too late contains some of the steps that follow.
                        let newer = attempt.forget_reads(cut.after);
                        let origin = work.origin;
                        let is_contained = |step: &mut Step<'_>| {
                            let (_, at) = origin.event(step.event);
                            newer.get(&step.key).is_some_and(|read| at.is_some_and(|at| at <= *read))
                        };
                        if !newer.is_empty() {
                            work.steps.extract_if(range.end.., is_contained).for_each(drop);
                        }
                    }
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
                            let is_undecided = self.spoke.pair.unsettled.contains(&work.steps[index].key);
                            if work.leaves_undecided && refusal.is_id_taken && is_undecided {
                                // The decision about the document comes once this link streams.
                            } else if work.leaves_taken && refusal.is_id_taken {
                                skipped.push(work.steps[index].key.clone());
                            } else if self.is_replaced(&work, index, &refusal) {
                                self.unsettle(&work, index, true).await?;
                                let key = work.steps[index].key.clone();
                                work.steps.extract_if(index + 1.., |step| step.key == key).for_each(drop);
                            } else if self.is_crossing(&work, index, &refusal) {
                                self.unsettle(&work, index, false).await?;
                            } else {
                                self.park(&work, index, &refusal).await?;
                            }
                            work.steps.remove(index);
                            held_back.take(&mut work.steps, index, |key| !work.decides && self.is_held_back(key));
                            attempt.continue_from(index);
                        }
                    }
                }
                // The batch is tried once more, and then in halves.
                Err(error) if error.is_rolled_back() && batch.steps.len() > 1 => {
                    self.has_rolled_back(&error, batch.steps.len());
                }
                Err(error) => {
                    if error.is_too_slow() {
                        self.has_rolled_back(&error, batch.steps.len());
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Records the rollback of a batch of so many steps.
    fn has_rolled_back(&self, error: &Error, steps: usize) {
        let mut pressure = self.spoke.pair.pressure(S::DIRECTION);
        if pressure.rolled_back(steps, error.is_too_large()) {
            let (link, most) = (self.destination.link(), pressure.most());
            tracing::info!(%link, %error, steps, most, "transaction rolled back, going on with smaller ones");
        }
    }

    /// True until the link has compared after a restore of its source.
    fn is_source_restored(&self) -> bool {
        let restored = match S::DIRECTION {
            Direction::Uplink => Restored::Spoke,
            Direction::Downlink => Restored::Hub,
        };
        [Reconciling::Restored(restored), Reconciling::RestoredLost].contains(&self.checkpoint().reconciling)
    }

    /// True if changes of the document wait: for a dead letter of this link or of the opposite one, or, on their way to
    /// the spoke, for the decision about the document, which will contain them.
    fn is_held_back(&self, key: &Key) -> bool {
        let pair = &self.spoke.pair;
        let waits_for_opposite =
            || pair.evidence(S::DIRECTION.opposite(), key).is_some_and(|letter| !letter.is_dropped);
        self.parked.contains(key)
            || waits_for_opposite()
            || (S::DIRECTION == Direction::Downlink && pair.unsettled.contains(key))
    }

    /// True if the refusal comes from a document in another zone than the step expects, which both links may still be
    /// about to change. The insert of a spoke's own document is no crossing: the hub never had the document.
    fn is_crossing(&self, work: &Work<'_>, index: usize, refusal: &Refusal) -> bool {
        let is_fresh = || {
            let (event, _) = work.origin.event(work.steps[index].event);
            event.get_str("operationType").is_ok_and(dead_letters::is_fresh)
        };
        let may_cross = !work.decides || work.origin.is_retry();
        refusal.is_id_taken && may_cross && (S::DIRECTION == Direction::Downlink || !is_fresh())
    }

    /// True if the downlink has replaced the spoke's document since the refused change, because the hub had another one
    /// of the same `_id`. A dead letter would be about a document that nobody has. A delete that may have found
    /// nothing does not count: a retry ends the letter of a document that is gone.
    fn is_replaced(&self, work: &Work<'_>, index: usize, refusal: &Refusal) -> bool {
        let step = &work.steps[index];
        let (_, at) = work.origin.event(step.event);
        S::DIRECTION == Direction::Uplink
            && refusal.is_id_taken
            && work.origin.is_live()
            && at.is_some_and(|at| self.spoke.pair.conflicts().is_written_after(&step.key, at))
    }

    /// Leaves the step out, or with later steps of its document, and notes the document for a decision. The link's mark
    /// stays before the step; the rest of the work moves the mark past it.
    async fn unsettle(&mut self, work: &Work<'_>, index: usize, with_later: bool) -> Result<(), Error> {
        let step = &work.steps[index];
        let namespace = &self.destination.server().namespaces()[usize::from(step.key.namespace())];
        tracing::info!(link = %self.destination.link(), ns = %namespace, id = %Told(step.id), "document not as expected, to be settled");
        let mut ours = vec![unsettled::note(self.destination.link(), &[(namespace, step.id)])];
        // The spoke may lose the change before the decision, by the hub change that crosses it.
        if S::DIRECTION == Direction::Uplink && work.origin.is_live() {
            let is_lost = |later: &&Step<'_>| later.key == step.key && (later.event == step.event || with_later);
            let lost = work.steps[index..].iter().filter(is_lost);
            ours.extend(aside::overtaken(self.destination.server(), work.origin, lost));
        }
        let mark = work.origin.before(step.event);
        let batch = Batch::without_steps(work, mark, ours);
        let mut committed = self.commit(&batch, &mut Attempt::new(HashMap::new())).await?;
        committed.written.unsettled.push((step.key.clone(), RawBson::from(step.id)));
        self.has_committed(committed, batch.mark, 0, 0);
        Ok(())
    }

    /// The statement that counts the changes held back by dead letters, if there are any. The uplink keeps the events,
    /// because the hub's version, on its way meanwhile, may replace the spoke's.
    fn count_later(&self, work: &Work<'_>, held_back: &HeldBack<'_>) -> Option<RawDocumentBuf> {
        let server = self.destination.server();
        let is_kept = S::DIRECTION == Direction::Uplink && work.origin.is_live();
        let counts = held_back.counts().into_iter().filter(|(key, ..)| self.parked.contains(key));
        let later = counts.map(|(key, id, changes)| {
            let events: Vec<usize> = held_back.events(key).filter(|_| is_kept).collect();
            let newest = &events[events.len().saturating_sub(dead_letters::LATER_EVENTS)..];
            let events = newest.iter().map(|&event| work.origin.event(event).0).collect();
            Later { namespace: server.namespace(key.namespace()), id, changes, events }
        });
        let later: Vec<Later<'_>> = later.collect();
        (!later.is_empty()).then(|| dead_letters::count_later(self.destination.link(), &later))
    }

    /// Records the changes held back. If the spoke's application has deleted a document that the hub never accepted, a
    /// retry ends the letter at once.
    fn has_counted(&mut self, held_back: &HeldBack<'_>) {
        for (key, _, changes) in held_back.counts() {
            let Some(letter) = self.parked.get_mut(key) else { continue };
            letter.is_deleted = held_back.ends_with_delete(key);
            if S::DIRECTION == Direction::Uplink && letter.is_fresh && letter.is_deleted {
                self.spoke.pair.letters(S::DIRECTION).retry(key);
            }
            self.parked.count(key, changes);
        }
    }

    /// Commits a batch, and shows if that takes long.
    async fn commit(&mut self, batch: &Batch<'_, '_>, attempt: &mut Attempt) -> Result<Committed, Error> {
        let (cell, server) = (self.cell(), self.destination.server().name().clone());
        let what = || format!("{server}: a batch is not confirmed");
        slow::shown(cell, what, self.commit_again_and_again(batch, attempt)).await
    }

    /// Retries after errors that left nothing behind, as declared by the server.
    async fn commit_again_and_again(
        &mut self,
        batch: &Batch<'_, '_>,
        attempt: &mut Attempt,
    ) -> Result<Committed, Error> {
        let mut delays = delays();
        loop {
            // A process that was frozen finds out here that others run its spokes by now.
            let tenure = self.spoke.tenure.wait(self.destination.link());
            self.spoke.patiently(S::DIRECTION, tenure).await?;
            let error = match self.transact(batch, attempt).await {
                Ok(committed) => return Ok(committed),
                Err(error) if error.is_again() || error.is_rolled_back() || matches!(error, Error::Refused { .. }) => {
                    error
                }
                // The transaction would lock its documents for a minute, if nobody else knows its session.
                Err(error @ Error::Fenced { .. }) => {
                    self.destination.abort().await;
                    self.spoke.tenure.doubt();
                    return Err(error);
                }
                Err(error) => return Err(error),
            };
            self.destination.abort().await;
            // A batch of several steps may become smaller.
            if error.is_rolled_back() && batch.steps.len() > 1 {
                return Err(error);
            }
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
        for (key, id) in written.unsettled {
            self.spoke.pair.unsettled.add(key, id);
        }
        for key in &written.no_longer_foreign {
            self.spoke.pair.foreign.remove(key);
        }
        for key in &written.accepted {
            self.spoke.pair.evidence_of(S::DIRECTION).remove(key);
        }
        let position = mark.and_then(|mark| mark.advance(&mut self.ahead));
        let foreign = written.foreign + foreign;
        // The uplink's insert of the document was refused while this transaction was on its way.
        if S::DIRECTION == Direction::Downlink {
            let is_refused =
                |key: &&Key| self.spoke.pair.evidence(Direction::Uplink, key).is_some_and(|it| it.is_fresh);
            let writes = written.edits.iter().filter(|edit| !edit.is_uncertain);
            let replaced: Vec<Key> = writes.map(|edit| &edit.key).filter(is_refused).cloned().collect();
            replaced.into_iter().for_each(|key| self.spoke.pair.has_replaced(key));
        }
        let commit = Commit { at, position, hub_edits: written.edits, number, changes, foreign };
        let outlived = self.source.committed(self.spoke, &commit);
        if let Some(ledger) = &mut self.ledger {
            ledger.outlive(outlived);
        }
        if let Some(position) = &commit.position {
            self.has_carried(position);
        }
        let cluster_time = commit.position.as_ref().map(Position::cluster_time);
        self.cell().applied(commit.changes, commit.foreign, cluster_time, self.wall_time);
    }

    /// Saves the step as a dead letter. The link's mark stays before the step; the rest of the work moves the mark on.
    async fn park(&mut self, work: &Work<'_>, index: usize, refusal: &Refusal) -> Result<(), Error> {
        self.has_room_for_a_letter()?;
        self.retries.add(work.steps[index].key.clone(), Instant::now());
        let step = &work.steps[index];
        let (event, cluster_time) = work.origin.event(step.event);
        let server = self.destination_server();
        let namespace = server.namespace(step.key.namespace());
        let Refusal { code, message, .. } = refusal;
        let kept_event = (!work.origin.is_retry()).then_some(&event);
        let (id, is_unnamed) = (step.id, false);
        let letter = DeadLetter { namespace, id, code: *code, message, event: kept_event, cluster_time, is_unnamed };
        let mut noted = Vec::new();
        // The `_id` belongs to another zone's document: the spoke's downlink decides whether the spoke should hold that
        // one.
        let is_collision = S::DIRECTION == Direction::Uplink && refusal.is_id_taken;
        if is_collision {
            noted.push(unsettled::note(self.destination.link(), &[(namespace, step.id)]));
        }
        tracing::error!(
            link = %self.destination.link(), ns = %namespace, id = %Told(step.id), error = message,
            "change refused, kept as a dead letter"
        );
        let mark = work.origin.before(step.event);
        let committed = self.commit_letter(work, mark.clone(), &letter, noted).await?;
        let kept = Kept {
            namespace: step.key.namespace(),
            id: RawBson::from(step.id),
            code: *code,
            message: message.clone(),
            parked_at: bson::DateTime::now(),
            later_changes: 0,
            is_fresh: event.get_str("operationType").is_ok_and(dead_letters::is_fresh),
            is_deleted: false,
            is_unnamed: false,
        };
        if is_collision {
            self.spoke.pair.unsettled.add(step.key.clone(), kept.id.clone());
        }
        self.has_parked(step.key.clone(), kept);
        self.has_committed(committed, mark, 0, 0);
        Ok(())
    }

    /// Saves a change of a document whose `_id` cannot be carried as a dead letter. The link's mark stays: the work
    /// moves the mark past the change.
    async fn park_unreadable(&mut self, work: &Work<'_>, unreadable: Unreadable) -> Result<(), Error> {
        let Unreadable { event, namespace, id } = unreadable;
        let (event, cluster_time) = work.origin.event(event);
        self.park_unnamed(namespace, id, &opaque::in_bytes(&event), cluster_time).await
    }

    /// Saves a document that a copy leaves out, because its `_id` cannot be carried, as a dead letter.
    pub(super) async fn park_left_out(&mut self, namespace: u16, id: RawBson) -> Result<(), Error> {
        self.park_unnamed(namespace, id, &rawdoc! { "operationType": "copy" }, None).await
    }

    async fn park_unnamed(
        &mut self,
        namespace: u16,
        id: RawBson,
        event: &RawDocumentBuf,
        cluster_time: Option<Timestamp>,
    ) -> Result<(), Error> {
        let key = Key::new(namespace, id.as_raw_bson_ref());
        let kept = Kept {
            namespace,
            code: FAILED_TO_PARSE,
            message: UNREADABLE.to_owned(),
            parked_at: bson::DateTime::now(),
            later_changes: 0,
            is_fresh: false,
            is_deleted: false,
            is_unnamed: true,
            id,
        };
        self.save_letter(key, kept, event, cluster_time).await
    }

    /// Takes the dead letter of a document away, in a transaction with more statements on our own collections.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub(super) async fn remove_letter(
        &mut self,
        key: &Key,
        letter: &Parked,
        mut ours: Vec<RawDocumentBuf>,
    ) -> Result<(), Error> {
        let (link, id) = (self.destination.link(), letter.id.as_raw_bson_ref());
        let namespace = &self.destination.server().namespaces()[usize::from(letter.namespace)];
        // Changes that waited at the opposite link are looked at now.
        ours.extend([dead_letters::remove(link, namespace, id), unsettled::note(link, &[(namespace, id)])]);
        self.apply(Work { ours, ..Work::empty(&Nowhere) }).await?;
        self.spoke.pair.evidence_of(S::DIRECTION).remove(key);
        self.spoke.pair.unsettled.add(key.clone(), letter.id.clone());
        // A collision at the spoke is over as well.
        if S::DIRECTION == Direction::Uplink {
            self.spoke.pair.letters(Direction::Downlink).retry(key);
        }
        Ok(())
    }

    /// Marks the dead letter of a document as dropped: changes of the document flow again, and the mark protects what
    /// either side has.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub(super) async fn drop_letter(&mut self, key: &Key, letter: &Parked) -> Result<(), Error> {
        let (link, id) = (self.destination.link(), letter.id.as_raw_bson_ref());
        let namespace = &self.destination.server().namespaces()[usize::from(letter.namespace)];
        let ours = dead_letters::drop_letter(link, namespace, id, letter.is_fresh).into();
        self.apply(Work { ours, ..Work::empty(&Nowhere) }).await?;
        let evidence = Evidence { is_fresh: letter.is_fresh, is_dropped: true };
        self.spoke.pair.evidence_of(S::DIRECTION).insert(key.clone(), evidence);
        Ok(())
    }

    /// Saves a dead letter that no refusal made, with its event.
    ///
    /// # Errors
    /// If a server fails, or if another process has taken the link over.
    pub(super) async fn save_letter(
        &mut self,
        key: Key,
        kept: Kept,
        event: &RawDocumentBuf,
        cluster_time: Option<Timestamp>,
    ) -> Result<(), Error> {
        self.has_room_for_a_letter()?;
        let namespace = self.destination.server().namespace(kept.namespace).clone();
        let (id, message) = (kept.id.as_raw_bson_ref(), kept.message.as_str());
        let (code, is_unnamed) = (kept.code, kept.is_unnamed);
        let letter =
            DeadLetter { namespace: &namespace, id, code, message, event: Some(event), cluster_time, is_unnamed };
        tracing::error!(
            link = %self.destination.link(), %namespace, id = %Told(kept.id.as_raw_bson_ref()), error = message,
            "change refused, kept as a dead letter"
        );
        let committed = self.commit_letter(&Work::empty(&Nowhere), None, &letter, Vec::new()).await?;
        self.retries.add(key.clone(), Instant::now());
        self.has_parked(key, kept);
        self.has_committed(committed, None, 0, 0);
        Ok(())
    }

    /// Commits a dead letter at this mark of the work, with further statements on our own collections. An event that
    /// the server refuses in the letter is kept in another way.
    async fn commit_letter(
        &mut self,
        work: &Work<'_>,
        mark: Option<Mark>,
        letter: &DeadLetter<'_>,
        others: Vec<RawDocumentBuf>,
    ) -> Result<Committed, Error> {
        let mut keeping = Keeping::AsItIs;
        loop {
            let mut ours = others.clone();
            ours.push(dead_letters::park(self.destination.link(), letter, keeping));
            let batch = Batch::without_steps(work, mark.clone(), ours);
            match self.commit(&batch, &mut Attempt::new(HashMap::new())).await {
                Ok(committed) => return Ok(committed),
                Err(error) => keeping = keeping.after(&error).ok_or(error)?,
            }
            self.destination.abort().await;
        }
    }

    /// Fails if the link has too many dead letters already.
    fn has_room_for_a_letter(&self) -> Result<(), Error> {
        match self.parked.is_full() {
            true => Err(parked::too_many(self.destination.server(), self.destination.link())),
            false => Ok(()),
        }
    }

    fn has_parked(&mut self, key: Key, kept: Kept) {
        let evidence = Evidence { is_fresh: kept.is_fresh, is_dropped: false };
        self.spoke.pair.evidence_of(S::DIRECTION).insert(key.clone(), evidence);
        self.parked.add(key, kept);
    }
}

/// The first cut of the work after the step with this index.
fn cut_after(work: &Work<'_>, index: usize) -> Option<Cut> {
    let start = work.steps.get(index)?.event;
    work.cuts.iter().find(|cut| cut.event > start).copied()
}
