//! Brings one zone of one collection from a source to a destination: the first copy, and the reconcile after a link has
//! lost its place in the change stream. Only differences are written.
//!
//! The stream's new start was saved before anything is read, and the source is read causally after that start. So a
//! change made before a document is read is in the document, and a later change is in the stream. The checkpoint holds
//! the last `_id` that is done: an interrupted copy continues there.
//!
//! - [`rules::copy`](crate::rules::copy): which documents may be written, deleted or overwritten
//! - [`found`]: differences as the work that they mean; [`two_way`]: differences of a zone in which both sides write
//! - [`purge`]: the end of a zone that a spoke no longer watches

mod found;
mod purge;
mod two_way;

use bson::Timestamp;
use tokio_util::sync::CancellationToken;

use self::found::{Found, Mode};
use self::two_way::Unsettled;
use super::apply::mark::Mark;
use super::lifecycle::Link;
use super::reached::Waited;
use super::shared::Shared;
use super::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{CopiedUpTo, Part};
use crate::mongo::scan::{self, Area, Which};
use crate::mongo::server::Server;
use crate::mongo::walk::{End, Walk};
use crate::rules::copy::Policy;
use crate::rules::names::{Direction, Zone};
use crate::rules::step::Zones;

/// One zone of one collection to bring, and from where to where.
pub(super) struct Job {
    pub(super) source: Server,
    pub(super) destination: Server,
    /// The collection's number.
    pub(super) namespace: u16,
    pub(super) zone: Zone,
    /// The zones in which the destination may have a document that the source has in this zone.
    pub(super) within: Vec<Zone>,
    pub(super) policy: Policy,
    /// An operator asked for the copy, so it can wait until the opposite link works.
    pub(super) can_wait: bool,
}

/// The end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    Stopped,
    /// The copy must wait for the opposite link; what is done is saved.
    Postponed,
}

impl<S: Source> Link<'_, S> {
    /// Brings one part, from the place that the checkpoint says. Fails if a server fails; the next attempt continues
    /// from the checkpoint.
    pub(super) async fn copy_part(&mut self, job: &Job, stop: &CancellationToken) -> Result<Ended, Error> {
        let part = Part::new(&job.source.namespaces()[usize::from(job.namespace)], &job.zone);
        let resumed = self.checkpoint().copying.clone().filter(|up_to| up_to.part == part);
        let start = self.position().seen_until();
        tracing::info!(ns = part.namespace, zone = %job.zone, policy = ?job.policy, resumed = resumed.is_some(), "copying");
        // In a collection that the link does not know, a missing document was never deleted: the stream brings deletes.
        let may_delete = self.is_the_same_collection(job.namespace).await?;
        let cell = self.cell();
        cell.begin_copying(&part.namespace, &job.zone, scan::estimate(&job.source, job.source_end().area).await);
        let mut walk = Walk::new(job.source_end(), job.destination_end(), resumed.map(|up_to| up_to.after));
        let (mut latest, mut documents, mut written) = (start, 0, 0);
        let mut unsettled = Unsettled::new(may_delete);
        while !walk.is_finished() {
            // One page of the source, then the destination's pages over the same range.
            let source_at = walk.lead(start.max(job.source.now().await?)).await?;
            latest = latest.max(source_at);
            let destination_from = job.destination.now().await?;
            while let Some((chunk, followed_at)) = walk.follow(destination_from).await? {
                if stop.is_cancelled() {
                    return Ok(Ended::Stopped);
                }
                documents += chunk.documents;
                cell.copied(chunk.documents);
                written += chunk.differences.len();
                let mark = chunk.done_up_to.map(|after| Mark::Copied(CopiedUpTo { part: part.clone(), after }));
                // Where both sides write, differences wait until it is worthwhile to settle them together.
                if job.policy.is_two_way() {
                    unsettled.add(chunk.differences, mark);
                    if unsettled.is_due()
                        && let Some(ended) = unsettled.settle(self, job, stop).await?
                    {
                        return Ok(ended);
                    }
                    continue;
                }
                let (mut may_delete, mut source_at) = (may_delete, source_at);
                let has_extras = chunk.differences.iter().any(|difference| difference.lead.is_none());
                if job.policy == Policy::WatchAgain && has_extras {
                    // A document that an application wrote at the spoke in another zone, or moved there, must be
                    // registered first: nothing else distinguishes it from a deleted one.
                    match job.uplink_has_carried(self.spoke, followed_at, stop).await? {
                        Waited::Done => source_at = job.source.now().await?,
                        Waited::Incomplete if job.can_wait => return Ok(Ended::Postponed),
                        Waited::Incomplete => may_delete = false,
                        Waited::Stopped => return Ok(Ended::Stopped),
                    }
                }
                let found = Found { differences: chunk.differences, source_at };
                let mode = Mode { may_delete, policy: job.policy, is_guarded: false };
                let protected = if has_extras { job.protected(job.policy).await? } else { Default::default() };
                self.bring(&found, job, mode, &protected, mark).await?;
            }
        }
        if let Some(ended) = unsettled.settle(self, job, stop).await? {
            return Ok(ended);
        }
        // In the spoke's own zone, only documents that came down are newer at the spoke, and those are known one by
        // one.
        let until = (job.policy != Policy::HubReconciles).then_some(latest.max(unsettled.latest()));
        tracing::info!(ns = part.namespace, zone = %job.zone, documents, differed = written, "copied");
        self.save(Some(Mark::Finished { part, until })).await?;
        self.learn_collections().await?;
        cell.end_copying();
        Ok(Ended::Done)
    }
}

impl Job {
    pub(super) fn source_end(&self) -> End<'_> {
        let is_up = self.policy.direction() == Direction::Uplink;
        let which = if is_up { Which::OfOrUnstamped(&self.zone) } else { Which::Of(&self.zone) };
        End { server: &self.source, area: Area::of(self.namespace, which), secondary: false }
    }

    pub(super) fn destination_end(&self) -> End<'_> {
        let area = Area::of(self.namespace, Which::Of(&self.zone));
        End { server: &self.destination, area, secondary: false }
    }

    fn zones(&self) -> Zones<'_> {
        Zones::of(&self.within)
    }

    /// Waits until the uplink has carried what the spoke had at this time.
    async fn uplink_has_carried(
        &self,
        spoke: &Shared,
        at: Timestamp,
        stop: &CancellationToken,
    ) -> Result<Waited, Error> {
        self.destination.tick().await?;
        let pair = &spoke.pair;
        loop {
            let carried = pair.carried(Direction::Uplink).at_least(at, stop);
            let waited = spoke.patiently(Direction::Downlink, carried).await;
            // An uplink that has lost its place may wait for this link, unless this link has lost its place as well.
            if waited != Waited::Incomplete || pair.carried(Direction::Downlink).is_complete() {
                return Ok(waited);
            }
            let complete = pair.carried(Direction::Uplink).complete(stop);
            if spoke.patiently(Direction::Downlink, complete).await == Waited::Stopped {
                return Ok(Waited::Stopped);
            }
        }
    }

    /// Waits until the opposite link has brought to the source what the destination had at this time.
    async fn opposite_link_has_carried(
        &self,
        spoke: &Shared,
        at: Timestamp,
        stop: &CancellationToken,
    ) -> Result<Waited, Error> {
        self.destination.tick().await?;
        let pair = &spoke.pair;
        if self.policy.direction() == Direction::Uplink {
            let carried = pair.carried(Direction::Downlink).at_least(at, stop);
            return Ok(spoke.patiently(Direction::Uplink, carried).await);
        }
        loop {
            let carried = pair.carried(Direction::Uplink).at_least(at, stop);
            match spoke.patiently(Direction::Downlink, carried).await {
                Waited::Incomplete if !self.can_wait => {}
                waited => return Ok(waited),
            }
            // The owner's documents must be at the hub first.
            let complete = pair.carried(Direction::Uplink).complete(stop);
            if spoke.patiently(Direction::Downlink, complete).await == Waited::Stopped {
                return Ok(Waited::Stopped);
            }
        }
    }
}
