//! A batch into the destination: what the destination refuses climbs the ladder of [`Attempt`](crate::rules::ladder::Attempt)
//! until it is applied, or parked as a dead letter.
//!
//! Promise: the link's mark never passes a change that is neither applied nor parked.

pub(crate) mod attempt;
pub(crate) mod transaction;
pub(crate) mod work;

use std::collections::HashMap;
use std::ops::Range;

use bson::Timestamp;
use bson::raw::{RawBson, RawDocumentBuf};

use crate::link::REMEMBERED_DOCUMENTS;
use crate::link::apply::attempt::{Later, Progress};
use crate::link::apply::transaction::{Committed, Outcome, Part, RefusedChange, RefusedStep, Written, transact};
use crate::link::apply::work::{Commit, Load, Mark, Origin, Side};
use crate::link::batch_size::Way;
use crate::mongo::destination::Destination;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{Checkpoint, Identity};
use crate::mongo::metadata::dead_letters::{self, DeadLetter, Kept};
use crate::mongo::server::Server;
use crate::mongo::transaction as mongo_transaction;
use crate::rules::ahead::Ahead;
use crate::rules::key::Key;
use crate::rules::ladder::Next;
use crate::rules::position::Position;
use crate::rules::queue::Weight;
use crate::rules::step::Step;

/// Applies a link's batches at its destination.
pub(crate) struct Applier {
    destination: Destination,
    ahead: Ahead,
    parked: HashMap<Key, Kept>,
    /// How many bytes a document has that is read at the source, as the newest of them tell.
    read_bytes: usize,
}

/// What is taken for that before any was read: so many that few are read at first.
const UNKNOWN_READ_BYTES: usize = 100_000;

impl Applier {
    /// Goes on where the link that was taken over there stands.
    ///
    /// # Errors
    /// If the destination does not answer.
    pub(crate) async fn new(destination: Destination) -> Result<Self, Error> {
        let ahead = Ahead::new(destination.checkpoint().ahead.clone(), REMEMBERED_DOCUMENTS);
        let parked = dead_letters::kept(destination.server(), destination.link()).await?;
        Ok(Self { destination, ahead, parked, read_bytes: UNKNOWN_READ_BYTES })
    }

    /// The checkpoint as it is saved.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        self.destination.checkpoint()
    }

    /// The destination.
    pub(super) fn server(&self) -> &Server {
        self.destination.server()
    }

    /// Which collections the source and the destination have, to be saved with the next checkpoint.
    pub(super) fn set_collections(&mut self, source: Vec<Identity>, here: Vec<Identity>) {
        self.destination.set_collections(source, here);
    }

    /// The destination's time when the link was taken over.
    pub(crate) fn claimed_at(&self) -> Timestamp {
        self.destination.claimed_at()
    }

    /// How much one batch may hold.
    pub(super) fn batch_size(&self) -> Weight {
        Way::to(self.server()).batch()
    }

    /// What the destination has ahead of the link's position.
    pub(crate) fn ahead(&self) -> &Ahead {
        &self.ahead
    }

    /// The documents that have a dead letter.
    pub(crate) fn parked(&self) -> &HashMap<Key, Kept> {
        &self.parked
    }

    /// The document's changes flow again. Its dead letter stays where it is kept.
    pub(super) fn unpark(&mut self, key: &Key) {
        self.parked.remove(key);
    }

    /// Takes the dead letter of a document away.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub(super) async fn remove_letter(&mut self, side: &mut impl Side, letter: &Kept) -> Result<(), Error> {
        let namespace = &self.destination.server().namespaces()[usize::from(letter.namespace)];
        let ours = vec![dead_letters::remove(self.destination.link(), namespace, letter.id.as_raw_bson_ref())];
        self.apply(side, Load { ours, ..Load::empty(&Nowhere) }).await.map(drop)
    }

    /// Saves where the link stands, without any change.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub(crate) async fn save(&mut self, side: &mut impl Side, end: Mark) -> Result<(), Error> {
        self.apply(side, Load { end: Some(end), ..Load::empty(&Nowhere) }).await.map(drop)
    }

    /// Applies a batch: all of it, or an error, after which the saved checkpoint tells how much. Tells the documents that the
    /// destination did not have as it was expected, and whose steps were left out.
    ///
    /// # Errors
    /// If a server fails, or another process has taken the link over.
    pub(crate) async fn apply(&mut self, side: &mut impl Side, mut load: Load<'_>) -> Result<Vec<Key>, Error> {
        let mut progress = Progress::new(std::mem::take(&mut load.read_at));
        let mut later = Later::default();
        later.take(&mut load.steps, 0, &self.parked);
        let mut skipped = Vec::new();
        loop {
            let range = progress.part(load.steps.len());
            let range = one_transaction(&load.steps, range, self.batch_size().bytes, self.read_bytes);
            let is_last = range.end == load.steps.len();
            let (mark, ours) = if is_last {
                let later = later.statement(self.destination.link(), self.destination.server().namespaces());
                (load.end.clone(), later.into_iter().chain(load.ours.iter().cloned()).collect())
            } else {
                (load.origin.before(load.steps[range.end].event), Vec::new())
            };
            let steps = &load.steps[range.clone()];
            let part = Part { steps, last: load.last, mark, ours, expected: load.expected.as_ref() };
            let outcome = self.transact(side, &part, &mut progress).await?;
            self.read_bytes = progress.bytes_of_a_read().unwrap_or(self.read_bytes);
            match outcome {
                Outcome::Committed(mut committed) => {
                    skipped.append(&mut committed.written.skipped);
                    progress.has_brought(std::mem::take(&mut committed.brought));
                    let mut commit = self.remember(committed, part.mark);
                    if is_last {
                        commit.changes = load.changes;
                        commit.foreign += load.foreign;
                        side.committed(commit);
                        return Ok(skipped);
                    }
                    side.committed(commit);
                    progress.go_on_from(range.end);
                }
                Outcome::Refused(refused) => {
                    let is_delta = refused.step.as_ref().is_some_and(|step| step.is_delta);
                    let next = progress.attempt.after(refused.refusal, is_delta);
                    tracing::debug!(link = %self.destination.link(), ?refused, ?next, "batch refused");
                    match (next, &refused.step) {
                        (Next::Try(attempt), _) => progress.attempt = attempt,
                        (Next::ReadWhole, Some(step)) => progress.refuse(step.key.clone()),
                        (Next::Park | Next::ReadWhole, step) => {
                            let index = range.start + culprit(part.steps, step.as_ref());
                            if index > range.start {
                                progress.stop_before(index);
                                continue;
                            }
                            self.park(side, &load, index, &refused).await?;
                            load.steps.remove(index);
                            later.take(&mut load.steps, index, &self.parked);
                            progress.go_on_from(index);
                        }
                    }
                }
            }
        }
    }

    /// One transaction, tried again as long as the server says that this is safe.
    async fn transact(
        &mut self,
        side: &mut impl Side,
        part: &Part<'_, '_>,
        progress: &mut Progress,
    ) -> Result<Outcome, Error> {
        let mut delays = mongo_transaction::delays();
        loop {
            let error = match transact(&mut self.destination, &self.ahead, side, part, progress).await {
                Ok(Outcome::Committed(committed)) => return Ok(Outcome::Committed(committed)),
                Ok(refused) => {
                    self.destination.abort().await;
                    return Ok(refused);
                }
                Err(error) if error.is_again() => error,
                Err(error) => return Err(error),
            };
            self.destination.abort().await;
            let Some(delay) = delays.next() else { return Err(error) };
            tracing::debug!(%error, ?delay, "transaction is tried again");
            tokio::time::sleep(delay).await;
        }
    }

    /// Remembers what a committed transaction leaves behind.
    fn remember(&mut self, committed: Committed, mark: Option<Mark>) -> Commit {
        let Committed { at, number, written, .. } = committed;
        for (key, zones, at) in written.read_at {
            self.ahead.has_read(key, zones.iter().map(String::as_str), at);
        }
        let position = self.advance(mark);
        let (foreign, has_own_note) = (written.foreign, written.has_own_note);
        let hub_edits = Written::hub_edits(written.edits);
        Commit { at, position, hub_edits, number, has_own_note, changes: 0, foreign, parked: 0 }
    }

    /// Makes the step a dead letter. The link's mark stays before it; what follows in the batch moves it past.
    async fn park(
        &mut self,
        side: &mut impl Side,
        load: &Load<'_>,
        index: usize,
        refused: &RefusedChange,
    ) -> Result<(), Error> {
        let step = &load.steps[index];
        let (event, cluster_time) = load.origin.event(step.event);
        let server = self.destination.server();
        let namespace = &server.namespaces()[usize::from(step.key.namespace())];
        let code = refused.refusal.code;
        let letter =
            DeadLetter { namespace, id: step.id, code, message: &refused.message, event: &event, cluster_time };
        let statement = dead_letters::park(self.destination.link(), &letter);
        tracing::error!(
            link = %self.destination.link(), ns = %namespace, id = ?step.id, error = refused.message,
            "change refused, kept as a dead letter"
        );
        let mark = load.origin.before(step.event);
        let part = Part { steps: &[], last: load.last, mark, ours: vec![statement], expected: None };
        let Outcome::Committed(committed) = self.transact(side, &part, &mut Progress::new(HashMap::new())).await?
        else {
            let server = self.destination.server();
            return Err(server.failed("parking a change", code, "the dead letter itself is refused"));
        };
        let kept = Kept {
            namespace: step.key.namespace(),
            id: RawBson::from(step.id),
            code,
            message: refused.message.clone(),
            parked_at: bson::DateTime::now(),
            later_changes: 0,
        };
        self.parked.insert(step.key.clone(), kept);
        let commit = self.remember(committed, part.mark);
        side.committed(Commit { parked: 1, ..commit });
        Ok(())
    }

    fn advance(&mut self, mark: Option<Mark>) -> Option<Position> {
        match mark {
            Some(Mark::Streamed(position)) => {
                self.ahead.advance(position.cluster_time());
                Some(position)
            }
            Some(Mark::Restarted(position)) => {
                self.ahead.advance(position.cluster_time());
                None
            }
            Some(Mark::Finished { part, until: Some(until), .. }) => {
                self.ahead.has_copied(&part.zone, until);
                None
            }
            _ => None,
        }
    }
}

/// Of these steps the first, if all of them have far more bytes than one batch should have: one reply can, and what is read for it.
fn one_transaction(steps: &[Step<'_>], range: Range<usize>, bytes: usize, read: usize) -> Range<usize> {
    let sizes = || steps[range.clone()].iter().map(|step| step.write.bytes(read));
    if sizes().sum::<usize>() <= 2 * bytes {
        return range;
    }
    let mut sum = 0;
    let fitting = sizes().take_while(|size| {
        sum += size;
        sum <= bytes
    });
    range.start..range.start + fitting.count().max(1)
}

/// The place of a refused step among those that were tried. Where the server does not tell the step: half of them, so that
/// in the end it stands alone.
fn culprit(steps: &[Step<'_>], refused: Option<&RefusedStep>) -> usize {
    match refused {
        Some(refused) => steps.iter().take_while(|step| step.event < refused.event).count(),
        None => steps.len() / 2,
    }
}

/// The origin of a batch without steps.
struct Nowhere;

impl Origin for Nowhere {
    fn before(&self, _: usize) -> Option<Mark> {
        None
    }

    fn event(&self, _: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        (RawDocumentBuf::new(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::step::{Read, Write, Zones};
    use bson::raw::RawBsonRef;

    fn steps<'a>(write: impl Fn(usize) -> Write<'a>) -> Vec<Step<'a>> {
        let id = RawBsonRef::Int32(1);
        let step = |event| Step {
            event,
            key: Key::new(0, id),
            id,
            zones: Zones::One("DFW"),
            write: write(event),
            hub_edit: None,
        };
        (0..10).map(step).collect()
    }

    #[test]
    fn what_one_reply_has_too_much_of_goes_into_several_transactions() {
        let document = bson::rawdoc! { "_id": 1, "text": "x".repeat(1_000) };
        let steps = steps(|_| Write::Insert(&document));
        let part = |range, bytes| one_transaction(&steps, range, bytes, 0);
        assert_eq!(part(0..10, 6_000), 0..10, "not much too much");
        assert_eq!(part(0..10, 2_500), 0..2);
        assert_eq!(part(2..10, 2_500), 2..4);
        assert_eq!(part(8..10, 100), 8..9, "one is always done");
        assert_eq!(one_transaction(&[], 0..0, 100, 0), 0..0);
    }

    #[test]
    fn documents_that_must_be_read_count_as_much_as_the_newest_of_them_had() {
        let document = bson::rawdoc! { "_id": 1 };
        let steps = steps(|event| if event < 5 { Write::Read(Read::Whole) } else { Write::Insert(&document) });
        assert_eq!(one_transaction(&steps, 0..10, 1_000, 100), 0..10);
        assert_eq!(one_transaction(&steps, 0..10, 1_000, 500), 0..2);
        assert_eq!(one_transaction(&steps, 4..10, 1_000, 500), 4..10);
    }
}
