//! Copies a part, a zone of a collection, from a source to a destination: the first copy, and the reconcile after a
//! lost position in the change stream. Only differences are written.
//!
//! The stream's new start is saved before the first read, and the source is read causally after the start. A change
//! before the read of a document is therefore in the document, and a later change is in the stream. The checkpoint
//! holds the last finished `_id`: an interrupted copy continues after the `_id`.
//!
//! A copy may take longer than the oplog goes back, so a long copy applies the stream's changes between two pages
//! ([`Source::keep_up`]). Every page saves the time up to which its documents may be ahead of the stream.
//!
//! - [`rules::copy`](crate::rules::copy): the decision to write, overwrite, delete or leave a document
//! - [`found`]: converts differences into work; [`two_way`]: differences in a zone with writes at both sides
//! - [`purge`]: the end of a zone no longer watched; [`empty`]: collections with nothing to copy

mod empty;
mod found;
mod purge;
mod two_way;

use std::collections::{HashMap, HashSet};

use bson::Timestamp;
use futures_util::future;
use tokio_util::sync::CancellationToken;

use self::found::{Found, Mode};
use self::two_way::Unsettled;
use super::apply::mark::Mark;
use super::lifecycle::{Link, Stopped};
use super::reached::Waited;
use super::shared::Shared;
use super::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{CopiedUpTo, Part};
use crate::mongo::scan::{self, Area, Which};
use crate::mongo::server::Server;
use crate::mongo::walk::{self, Difference, End, Lead, Walk};
use crate::rules::copy::Policy;
use crate::rules::names::{Direction, Zone};
use crate::rules::step::Zones;

/// A part to copy, with both ends.
pub(super) struct Job {
    pub(super) source: Server,
    pub(super) destination: Server,
    /// The collection's number.
    pub(super) namespace: u16,
    pub(super) zone: Zone,
    /// The possible zones of the part's documents at the destination.
    pub(super) within: Vec<Zone>,
    pub(super) policy: Policy,
    /// An operator asked for the copy, so the copy can wait for the opposite link.
    pub(super) can_wait: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    Stopped,
    /// The copy must wait for the opposite link; the progress is saved.
    Postponed,
}

impl<S: Source> Link<'_, S> {
    /// Copies a part, or the rest of a part by the checkpoint. After a failure, the next attempt continues from the
    /// checkpoint.
    pub(super) async fn copy_part(&mut self, job: &Job, stop: &CancellationToken) -> Result<Ended, Error> {
        // An interrupted copy of the same part resumes.
        let part = Part::new(&job.source.namespaces()[usize::from(job.namespace)], &job.zone);
        let resumed = self.checkpoint().copying.clone().filter(|up_to| up_to.part == part);
        let start = self.position().seen_until();
        tracing::info!(ns = part.namespace, zone = %job.zone, policy = ?job.policy, resumed = resumed.is_some(), "copying");
        // In a collection new to the link, a missing document does not count as deleted: the stream brings the deletes.
        // A restored server lacks what came after the backup: nothing counts as deleted.
        let spares = self.checkpoint().reconciling.is_restored();
        let mut may_delete = self.is_the_same_collection(job.namespace).await? && !spares;
        let cell = self.cell();
        cell.begin_copying(&part.namespace, &job.zone, scan::estimate(&job.source, job.source_end().area).await);
        // In the spoke's own zone, only documents that came down are newer at the spoke, and each document is
        // remembered individually. After a restore, the stream brings changes again that all documents contain.
        let is_bound = job.policy != Policy::HubReconciles || spares;
        // A server that has nothing of the zone says so soonest in the order on disk.
        if resumed.is_none() {
            let looking = cell.pulse().while_waiting(empty::is_empty(job, start));
            let Some(is_empty) = stop.run_until_cancelled(looking).await.transpose()? else {
                return Ok(Ended::Stopped);
            };
            if is_empty {
                return self.finish(job, Copied::none(start), is_bound).await;
            }
        }
        let mut walk = Walk::new(job.source_end(), job.destination_end(), resumed.map(|up_to| up_to.after));
        let mut copied = Copied::none(start);
        let mut read_ahead = None;
        // A server may look through a whole collection for the last documents of a zone. `None`: the copy must stop.
        let read = async |page: Lead<'_>| {
            let reading = async { page.read(job.source.now().await?.max(start)).await };
            stop.run_until_cancelled(cell.pulse().while_waiting(reading)).await.transpose()
        };
        while !walk.is_finished() {
            // Between two pages, so that no change comes between the reads of both sides.
            if self.must_keep_up() {
                read_ahead = None;
                if self.keep_up(None, stop).await? == Some(Stopped) {
                    return Ok(Ended::Stopped);
                }
                // The stream may have brought the drop of the collection.
                may_delete = may_delete && self.is_the_same_collection(job.namespace).await?;
            }
            // One page of the source, then the destination's pages over the same range.
            let page = match read_ahead.take() {
                Some(page) => Some(page),
                None => read(walk.lead()).await?,
            };
            let Some(page) = page else { return Ok(Ended::Stopped) };
            let source_at = page.at();
            copied.latest = copied.latest.max(source_at);
            walk.begin(page);
            // The next page of the source is read while this one is worked on.
            let next = walk.next_lead();
            let reading = async {
                match next {
                    Some(next) => read(next).await,
                    None => Ok(None),
                }
            };
            let page = Page { part: &part, source_at, is_bound, may_delete };
            let working = self.copy_page(job, page, &mut walk, &mut copied, stop);
            let (next, worked) = future::join(reading, working).await;
            match worked? {
                Paged::Ended(ended) => return Ok(ended),
                Paged::Done => read_ahead = next?,
                // The stream may have brought newer versions than the next page has.
                Paged::Followed => {}
            }
        }
        // The rest of the collected differences must be settled before the part counts as copied.
        if let Some(ended) = copied.unsettled.settle(self, job, may_delete, stop).await? {
            return Ok(ended);
        }
        self.finish(job, copied, is_bound).await
    }

    /// Saves that the part is copied.
    async fn finish(&mut self, job: &Job, copied: Copied, is_bound: bool) -> Result<Ended, Error> {
        let Copied { latest, documents, differed, unsettled } = copied;
        let part = Part::new(&job.source.namespaces()[usize::from(job.namespace)], &job.zone);
        let until = is_bound.then_some(latest.max(unsettled.latest()));
        tracing::info!(ns = part.namespace, zone = %job.zone, documents, differed, "copied");
        self.save(Some(Mark::Finished { part, until })).await?;
        self.learn_collections(&HashSet::from([job.namespace])).await?;
        self.cell().end_copying();
        Ok(Ended::Done)
    }

    /// Copies the present page of the walk's source.
    async fn copy_page(
        &mut self,
        job: &Job,
        page: Page<'_>,
        walk: &mut Walk<'_>,
        copied: &mut Copied,
        stop: &CancellationToken,
    ) -> Result<Paged, Error> {
        let Page { part, source_at, is_bound, may_delete } = page;
        let cell = self.cell();
        let destination_from = job.destination.now().await?;
        // The stream has passed the read of the source's page.
        let mut is_overtaken = false;
        while let Some((chunk, followed_at)) = cell.pulse().while_waiting(walk.follow(destination_from)).await? {
            if stop.is_cancelled() {
                return Ok(Paged::Ended(Ended::Stopped));
            }
            copied.documents += chunk.documents;
            cell.copied(chunk.documents);
            copied.differed += chunk.differences.len();
            for id in chunk.left_out {
                self.park_left_out(job.namespace, id).await?;
            }
            let up_to = chunk.done_up_to.map(|after| CopiedUpTo { part: part.clone(), after });
            let mark = |latest| up_to.map(|up_to| Mark::Copied { up_to, until: is_bound.then_some(latest) });
            // With writes at both sides, differences are collected and settled together.
            if job.policy.is_two_way() {
                // The opposite link is about to be waited for.
                job.destination.hasten();
                copied.unsettled.add(chunk.differences, mark(copied.latest));
                if copied.unsettled.is_due()
                    && let Some(ended) = copied.unsettled.settle(self, job, may_delete, stop).await?
                {
                    return Ok(Paged::Ended(ended));
                }
                continue;
            }
            let (mut may_delete, mut source_at) = (may_delete, source_at);
            let has_extras = chunk.differences.iter().any(|difference| difference.lead.is_none());
            let ahead = is_bound.then(|| job.zone.clone());
            let mut found = Found { differences: chunk.differences, source_at, ahead };
            if job.policy == Policy::WatchAgain && has_extras {
                // The uplink must first register the foreign documents of the spoke: only the register distinguishes a
                // foreign document from a document deleted at the hub.
                match uplink_has_carried(self.spoke, &job.destination, followed_at, stop).await? {
                    Waited::Done => source_at = job.source.now().await?,
                    Waited::Incomplete if job.can_wait => return Ok(Paged::Ended(Ended::Postponed)),
                    Waited::Incomplete => may_delete = false,
                    Waited::Stopped => return Ok(Paged::Ended(Ended::Stopped)),
                }
            }
            if has_extras && job.policy.registers(may_delete) && self.has_followed {
                if self.keep_up(Some(source_at), stop).await? == Some(Stopped) {
                    return Ok(Paged::Ended(Ended::Stopped));
                }
                is_overtaken = true;
            }
            if is_overtaken {
                found = look_again(job, found).await?;
                copied.latest = copied.latest.max(found.source_at);
            }
            // Under other policies, the chunk's differences are written immediately, together with the progress.
            let mode = Mode { may_delete, policy: job.policy, leaves_taken: false };
            let protected =
                if has_extras { job.protected(job.policy, &found.differences).await? } else { Default::default() };
            let mark = mark(copied.latest).or_else(|| found.bound());
            self.bring(&found, job, mode, &protected, mark).await?;
        }
        Ok(if is_overtaken { Paged::Followed } else { Paged::Done })
    }
}

/// A page of the source.
struct Page<'p> {
    part: &'p Part,
    /// The source's cluster time of the page.
    source_at: Timestamp,
    /// The copied documents may be newer than the link's position, as a whole.
    is_bound: bool,
    may_delete: bool,
}

/// What a copy has done.
struct Copied {
    /// The source's cluster time of the newest read.
    latest: Timestamp,
    documents: usize,
    differed: usize,
    /// Differences in a zone with writes at both sides.
    unsettled: Unsettled,
}

impl Copied {
    fn none(start: Timestamp) -> Self {
        Self { latest: start, documents: 0, differed: 0, unsettled: Unsettled::new() }
    }
}

/// The end of the work on a page.
enum Paged {
    Done,
    /// Done, and the link has followed the stream meanwhile.
    Followed,
    /// The copy ends.
    Ended(Ended),
}

/// Looks at the documents again after the stream has passed the page: those that the stream has brought may be newer,
/// and extras that only the stream had brought are gone by then.
async fn look_again(job: &Job, found: Found) -> Result<Found, Error> {
    let (mut ids, mut extras) = (HashMap::new(), HashSet::new());
    for Difference { key, id, lead, .. } in found.differences {
        if lead.is_none() {
            extras.insert(key.clone());
        }
        ids.insert(key, id);
    }
    let (there, _) = walk::these(job.destination_end(), &ids, job.destination.now().await?).await?;
    let (here, source_at) = walk::these(job.source_end(), &ids, job.source.now().await?).await?;
    let mut differences = walk::compare(ids, here, there);
    // What the source has lost or got since the page was read comes with the stream.
    differences.retain(|difference| difference.lead.is_none() == extras.contains(&difference.key));
    Ok(Found { differences, source_at, ahead: found.ahead })
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

    /// Waits until the opposite link has carried everything from the destination as of `at` to the source.
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

/// Waits until the uplink has carried everything from the spoke as of `at`.
async fn uplink_has_carried(
    spoke: &Shared,
    server: &Server,
    at: Timestamp,
    stop: &CancellationToken,
) -> Result<Waited, Error> {
    server.tick().await?;
    let pair = &spoke.pair;
    loop {
        let carried = pair.carried(Direction::Uplink).at_least(at, stop);
        let waited = spoke.patiently(Direction::Downlink, carried).await;
        // An uplink with a lost position may wait for the downlink, unless the downlink has lost its position as
        // well.
        if waited != Waited::Incomplete || pair.carried(Direction::Downlink).is_complete() {
            return Ok(waited);
        }
        let complete = pair.carried(Direction::Uplink).complete(stop);
        if spoke.patiently(Direction::Downlink, complete).await == Waited::Stopped {
            return Ok(Waited::Stopped);
        }
    }
}
