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
use bson::raw::{RawBson, RawDocumentBuf};
use futures_util::future;
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

/// Approximate maximum of documents settled after one wait.
const DOCUMENTS: usize = 20_000;

/// Approximate maximum of bytes of the destination's documents held during the wait.
const HELD: usize = 4_000_000;

/// Approximate maximum of bytes of the source's documents settled after one wait: they bound the bytes of the `_id`s.
const SETTLED: usize = 20_000_000;

/// Approximate maximum of documents, and of their bytes, read at the source together.
const GROUP: (usize, usize) = (1_000, 4_000_000);

/// Documents that the destination has, per guarded transaction. A concurrent write to any of them aborts it, so larger
/// transactions abort more often.
const CHANGED_PER_TRANSACTION: usize = 100;

/// Time for which finished work may stay unsaved.
const UNSAVED: Duration = Duration::from_secs(5);

pub(super) struct Unsettled {
    /// The `_id`s, with the approximate bytes of the source's documents.
    ids: HashMap<Key, (RawBson, usize)>,
    /// The bytes of the destination's documents.
    held: usize,
    /// The bytes of the source's documents.
    settled: usize,
    /// The link's mark after the differences are settled.
    mark: Option<Mark>,
    saved: Instant,
    latest: Timestamp,
}

impl Unsettled {
    pub(super) fn new() -> Self {
        let latest = Timestamp { time: 0, increment: 0 };
        Self { ids: HashMap::new(), held: 0, settled: 0, mark: None, saved: Instant::now(), latest }
    }

    /// The newest cluster time of the source in the reads of settled documents.
    pub(super) fn latest(&self) -> Timestamp {
        self.latest
    }

    /// Adds differences found before the mark.
    pub(super) fn add(&mut self, differences: Vec<Difference>, mark: Option<Mark>) {
        let bytes = |document: Option<RawDocumentBuf>| document.map_or(0, |document| document.as_bytes().len());
        for Difference { key, id, lead, follow } in differences {
            let (of_source, of_destination) = (bytes(lead), bytes(follow));
            self.held += of_destination;
            self.settled += of_source;
            self.ids.insert(key, (id, of_source));
        }
        self.mark = mark.or(self.mark.take());
    }

    pub(super) fn is_due(&self) -> bool {
        let is_much = self.held >= HELD || self.settled >= SETTLED;
        is_much || self.ids.len() >= DOCUMENTS || self.saved.elapsed() >= UNSAVED
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
            let groups = self.groups();
            let (mut there, mut at) = (Vec::new(), job.destination.now().await?);
            for ids in &groups {
                let (found, read_at) = walk::these(job.destination_end(), ids, at).await?;
                there.push(found);
                at = at.max(read_at);
            }
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
            // Then the source, a group while the one before is written: a remaining difference is the source's change.
            let from = job.source.now().await?;
            let read = async |ids: Option<&Ids>| match ids {
                Some(ids) => walk::these(job.source_end(), ids, from).await.map(Some),
                None => Ok(None),
            };
            let mut changed = HashSet::new();
            let mut here = read(groups.first()).await?;
            for (number, (ids, there)) in groups.iter().zip(there).enumerate() {
                if stop.is_cancelled() {
                    return Ok(Some(Ended::Stopped));
                }
                let (found, source_at) = here.take().expect("each group is read while the one before is written");
                self.latest = self.latest.max(source_at);
                let differences = walk::compare(ids.clone(), found, there);
                let writing = link.bring_in_parts(differences, source_at, job, mode);
                let (next, written) = future::join(read(groups.get(number + 1)), writing).await;
                changed.extend(written?);
                here = next?;
            }
            // A document changed at the destination goes into the next round.
            self.ids.retain(|key, _| changed.contains(key));
            if round > ROUNDS {
                let to_settle = self.ids.drain().map(|(key, (id, _))| (key, id)).collect();
                link.apply(Work { to_settle, ..Work::empty(&Nowhere) }).await?;
            }
        }
        // The mark is saved only after all differences before the mark are settled.
        (self.held, self.settled) = (0, 0);
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

    /// The documents in groups that can be read together, in the order of their keys.
    fn groups(&self) -> Vec<Ids> {
        let mut sorted: Vec<_> = self.ids.iter().collect();
        sorted.sort_unstable_by_key(|(key, _)| *key);
        let (mut groups, mut read) = (Vec::<Ids>::new(), 0);
        for (key, (id, bytes)) in sorted {
            match groups.last_mut().filter(|group| group.len() < GROUP.0 && read + bytes <= GROUP.1) {
                Some(group) => drop(group.insert(key.clone(), id.clone())),
                None => {
                    groups.push(Ids::from([(key.clone(), id.clone())]));
                    read = 0;
                }
            }
            read += bytes;
        }
        groups
    }
}

/// `_id`s, by document.
type Ids = HashMap<Key, RawBson>;

impl<S: Source> Link<'_, S> {
    /// Settles the differences of a group: those that the destination lacks in one transaction, all others in small
    /// ones. Returns the documents left alone because of a change at the destination.
    async fn bring_in_parts(
        &mut self,
        differences: Vec<Difference>,
        source_at: Timestamp,
        job: &Job,
        mode: Mode,
    ) -> Result<Vec<Key>, Error> {
        let protected = job.protected(mode.policy, &differences).await?;
        let (mut present, missing): (Vec<_>, Vec<_>) =
            differences.into_iter().partition(|difference| difference.follow.is_some());
        let mut parts = vec![missing];
        while !present.is_empty() {
            let rest = present.split_off(present.len().min(CHANGED_PER_TRANSACTION));
            parts.push(std::mem::replace(&mut present, rest));
        }
        let mut changed = Vec::new();
        for differences in parts {
            let found = Found { differences, source_at, ahead: None };
            changed.extend(self.bring(&found, job, mode, &protected, None).await?);
        }
        Ok(changed)
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
        unsettled.add(vec![difference(2, SETTLED)], None);
        assert!(unsettled.is_due());
        let mut many = Unsettled::new();
        many.add((0..i32::try_from(DOCUMENTS).expect("few")).map(|id| difference(id, 1)).collect(), None);
        assert!(many.is_due());
    }

    #[test]
    fn documents_are_read_in_groups_of_few_or_small_ones() {
        let mut unsettled = Unsettled::new();
        let differences = [10, GROUP.1 - 500, 600, GROUP.1 + 1, 1, 2].into_iter().zip(0..);
        unsettled.add(differences.map(|(bytes, id)| difference(id, bytes)).collect(), None);
        let sizes: Vec<_> = unsettled.groups().iter().map(HashMap::len).collect();
        assert_eq!(sizes, [2, 1, 1, 2]);
        let many = i32::try_from(GROUP.0).expect("few") + 1;
        let mut unsettled = Unsettled::new();
        unsettled.add((0..many).map(|id| difference(id, 1)).collect(), None);
        let groups = unsettled.groups();
        assert_eq!(groups.iter().map(HashMap::len).collect::<Vec<_>>(), [GROUP.0, 1]);
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
