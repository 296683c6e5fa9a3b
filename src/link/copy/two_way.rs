//! Settles differences in a zone with possible writes at both sides during the copy.
//!
//! First the destination's document is read. Then the opposite link must carry everything up to the time of the read.
//! Then the source's document is read. A remaining difference is a change of the source, and is written only if the
//! transaction still finds the same document at the destination.
//!
//! On a quiet server, the opposite link reaches the time of the read only with the stream's next reply. Differences are
//! therefore collected and settled together.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bson::Timestamp;
use bson::raw::RawBson;
use tokio_util::sync::CancellationToken;

use super::found::{Found, Mode};
use super::{Ended, Job};
use crate::link::apply::mark::Mark;
use crate::link::apply::work::{Nowhere, Work};
use crate::link::lifecycle::Link;
use crate::link::reached::Waited;
use crate::link::source::Source;
use crate::mongo::error::Error;
use crate::mongo::walk::{self, Difference};
use crate::rules::copy::Policy;
use crate::rules::key::Key;

/// Maximum number of rounds. A document that changes in every round at the destination is then left to the decision
/// about it, and an `_id` that is taken in another zone in every round is a collision.
const ROUNDS: u32 = 10;

/// Approximate maximum of documents settled together.
const DOCUMENTS: usize = 5_000;

/// Approximate maximum of bytes of both sides held for unsettled differences.
const BYTES: usize = 4_000_000;

/// Documents per guarded transaction. A concurrent write to any of them aborts it, so larger transactions abort more
/// often.
const DOCUMENTS_PER_TRANSACTION: usize = 100;

/// Time for which finished work may stay unsaved.
const UNSAVED: Duration = Duration::from_secs(5);

pub(super) struct Unsettled {
    ids: HashMap<Key, RawBson>,
    bytes: usize,
    /// The link's mark after the differences are settled.
    mark: Option<Mark>,
    saved: Instant,
    latest: Timestamp,
}

impl Unsettled {
    pub(super) fn new() -> Self {
        let latest = Timestamp { time: 0, increment: 0 };
        Self { ids: HashMap::new(), bytes: 0, mark: None, saved: Instant::now(), latest }
    }

    /// The newest cluster time of the source in the reads of settled documents.
    pub(super) fn latest(&self) -> Timestamp {
        self.latest
    }

    /// Adds differences found before the mark.
    pub(super) fn add(&mut self, differences: Vec<Difference>, mark: Option<Mark>) {
        for difference in differences {
            let sides = [difference.lead, difference.follow];
            self.bytes += sides.iter().flatten().map(|document| document.as_bytes().len()).sum::<usize>();
            self.ids.insert(difference.key, difference.id);
        }
        self.mark = mark.or(self.mark.take());
    }

    pub(super) fn is_due(&self) -> bool {
        self.ids.len() >= DOCUMENTS || self.bytes >= BYTES || self.saved.elapsed() >= UNSAVED
    }

    /// Settles all differences, and saves the link's mark. `may_delete`: a document missing at the source may have been
    /// deleted. Returns the reason if the copy must end instead.
    pub(super) async fn settle<S: Source>(
        &mut self,
        link: &mut Link<'_, S>,
        job: &Job,
        may_delete: bool,
        stop: &CancellationToken,
    ) -> Result<Option<Ended>, Error> {
        for round in 1.. {
            if self.ids.is_empty() {
                break;
            }
            // The destination first: the opposite link must bring the documents read here to the source.
            let (there, at) = walk::these(job.destination_end(), &self.ids, job.destination.now().await?).await?;
            let mut mode = Mode { may_delete, policy: job.policy, leaves_taken: round <= ROUNDS };
            // The wait: afterwards, no difference can be an unseen change of the destination.
            match job.opposite_link_has_carried(link.spoke, at, stop).await? {
                Waited::Done => {}
                Waited::Incomplete if job.can_wait => return Ok(Some(Ended::Postponed)),
                Waited::Incomplete => {
                    tracing::warn!(zone = %job.zone, "the downlink has lost its place as well: data wins over deletion");
                    mode.policy = Policy::OwnerPushes;
                }
                Waited::Stopped => return Ok(Some(Ended::Stopped)),
            }
            // Then the source: a remaining difference is the source's change.
            let (here, source_at) = walk::these(job.source_end(), &self.ids, job.source.now().await?).await?;
            self.latest = self.latest.max(source_at);
            let mut differences = walk::compare(self.ids.clone(), here, there);
            let protected = job.protected(mode.policy, &differences).await?;
            // In small transactions. A document changed at the destination goes into the next round.
            let mut changed = HashSet::new();
            while !differences.is_empty() {
                let rest = differences.split_off(differences.len().min(DOCUMENTS_PER_TRANSACTION));
                let differences = std::mem::replace(&mut differences, rest);
                let found = Found { differences, source_at, ahead: None };
                changed.extend(link.bring(&found, job, mode, &protected, None).await?);
            }
            self.ids.retain(|key, _| changed.contains(key));
            if round > ROUNDS {
                let to_settle = self.ids.drain().collect();
                link.apply(Work { to_settle, ..Work::empty(&Nowhere) }).await?;
            }
        }
        // The mark is saved only after all differences before the mark are settled.
        self.bytes = 0;
        if let Some(mut mark) = self.mark.take() {
            // The documents settled here are newer than their pages.
            if let Mark::Copied { until: Some(until), .. } = &mut mark {
                *until = self.latest.max(*until);
            }
            link.save(Some(mark)).await?;
        }
        self.saved = Instant::now();
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mongo::metadata::checkpoints::Reconciling;
    use bson::raw::RawBsonRef;
    use bson::rawdoc;

    fn difference(id: i32, bytes: usize) -> Difference {
        let key = Key::new(0, RawBsonRef::Int32(id));
        let lead = Some(rawdoc! { "_id": id, "text": "x".repeat(bytes) });
        Difference { key, id: RawBson::Int32(id), lead, follow: None }
    }

    #[test]
    fn differences_are_settled_once_there_are_many_or_large_ones() {
        let mut unsettled = Unsettled::new();
        unsettled.add(vec![difference(1, 10)], None);
        assert!(!unsettled.is_due());
        unsettled.add(vec![difference(2, BYTES)], None);
        assert!(unsettled.is_due());
        let mut many = Unsettled::new();
        many.add((0..i32::try_from(DOCUMENTS).expect("few")).map(|id| difference(id, 1)).collect(), None);
        assert!(many.is_due());
    }

    #[test]
    fn a_document_found_twice_is_settled_once() {
        let mut unsettled = Unsettled::new();
        unsettled.add(vec![difference(1, 10), difference(1, 20)], None);
        assert_eq!(unsettled.ids.len(), 1);
    }

    #[test]
    fn the_newest_mark_is_saved_and_a_page_without_one_keeps_the_last() {
        let compares = Mark::Compares { reason: Reconciling::Asked, parts: None, answers: 0 };
        let mut unsettled = Unsettled::new();
        unsettled.add(Vec::new(), Some(compares.clone()));
        unsettled.add(vec![difference(1, 10)], None);
        assert!(matches!(unsettled.mark, Some(Mark::Compares { .. })));
        unsettled.add(Vec::new(), Some(Mark::Reconciled));
        assert!(matches!(unsettled.mark, Some(Mark::Reconciled)));
    }
}
