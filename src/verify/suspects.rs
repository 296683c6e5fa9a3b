//! Finds suspects, documents that seem to differ. Both sides of a zone are walked as fast as the servers can be read,
//! or digests are compared first. The change of a suspect may only have been in transit.

use bson::raw::RawBson;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Run;
use super::examine::{self, Ids, Moment};
use super::part::Part;
use super::reading::{self, Pages};
use super::report::TOLD;
use super::wait::{self, Waited};
use crate::mongo::digest;
use crate::mongo::error::Error;
use crate::mongo::metadata::verifications::{self, Saved};
use crate::mongo::scan::{self, Area, PageSize, Range, Which};
use crate::mongo::walk::{End, Walk};
use crate::rules::key::Key;
use crate::rules::names::Zone;

/// Number of new suspects after which all suspects are examined, to drop documents that were only in transit.
const SIEVED_EVERY: usize = 1_000;

/// Maximum number of suspects examined per part.
pub(super) const SUSPECTS: usize = TOLD;

/// Maximum number of differing buckets to walk individually. Above, the whole zone is walked.
const FEW_BUCKETS: usize = 64;

/// Number of documents compared between two saves of the progress.
const SAVED_EVERY: u64 = 50_000;

impl Part<'_> {
    /// Walks both sides of a zone, in a quick verification only the buckets with different digests.
    pub(super) async fn walk(&self, zone: &Zone, saved: &mut Saved, run: &Run<'_>) -> Result<(), Error> {
        // Equal digests end a quick verification. A few different buckets narrow the walk.
        let scope = run.scope;
        let area = Area::of(self.namespace, Which::Of(zone));
        let buckets = if scope.quick { Some(self.unequal_buckets(area, saved, run).await?) } else { None };
        let buckets = match &buckets {
            Some(buckets) if buckets.is_empty() => {
                saved.is_walked = true;
                return Ok(());
            }
            Some(buckets) if buckets.len() <= FEW_BUCKETS => Some(buckets.as_slice()),
            _ => None,
        };
        // Reading runs ahead of the comparison, to keep both servers busy.
        let end = |server| End { server, area: Area { buckets, ..area }, secondary: scope.secondary };
        let (hub, spoke) = (end(self.hub), end(self.spoke));
        let (sender, pages) = mpsc::channel(1);
        let reading = reading::read(hub, spoke, saved.after.clone(), sender);
        let comparing = self.compare(Walk::new(hub, spoke, saved.after.clone()), pages, saved, run);
        futures_util::future::try_join(reading, comparing).await.map(drop)
    }

    async fn compare(
        &self,
        mut walk: Walk<'_>,
        mut pages: mpsc::Receiver<Pages>,
        saved: &mut Saved,
        run: &Run<'_>,
    ) -> Result<(), Error> {
        let mut noted = saved.documents;
        while !walk.is_finished() {
            let next = run.stop.run_until_cancelled(pages.recv()).await;
            let Some(Some(Pages { lead, followed })) = next else { return Ok(()) };
            if let Some(lead) = lead {
                walk.begin(lead);
            }
            // Suspects, count and place of the walk change together and are saved together, so a resumed walk misses
            // none.
            let chunk = walk.compare(followed)?;
            let differing = chunk.differences.into_iter().map(|difference| (difference.key, difference.id)).collect();
            self.suspect(differing, saved, run.stop).await?;
            saved.documents += chunk.documents as u64;
            saved.unreadable += chunk.unreadable as u64;
            run.counted.set(self, saved.documents);
            saved.after = chunk.done_up_to.or(saved.after.take());
            if saved.documents - noted >= SAVED_EVERY {
                noted = saved.documents;
                verifications::save(self.hub, &self.saved, saved).await?;
            }
            run.pace.wait(chunk.documents).await;
        }
        saved.is_walked = true;
        Ok(())
    }

    /// Buckets of the zone with different digests on the two sides.
    async fn unequal_buckets(&self, area: Area<'_>, saved: &mut Saved, run: &Run<'_>) -> Result<Vec<i32>, Error> {
        let (hub, spoke) =
            futures_util::future::try_join(digest::digests(self.hub, area), digest::digests(self.spoke, area)).await?;
        let documents = hub.values().map(digest::Digest::documents).sum();
        let unequal = digest::unequal(&hub, &spoke);
        if unequal.is_empty() {
            saved.documents = documents;
            run.counted.set(self, documents);
        }
        Ok(unequal)
    }

    /// Finds the spoke's documents in zones not held by the spoke. Every document found is a suspect.
    pub(super) async fn scan(&self, saved: &mut Saved, run: &Run<'_>) -> Result<(), Error> {
        let area = Area::of(self.namespace, Which::OfNone(self.held));
        let now = self.spoke.now().await?;
        let mut size = PageSize::default();
        loop {
            let after = saved.after.clone();
            let range = Range { size, ..Range::from(after.as_ref().map(RawBson::as_raw_bson_ref), now) };
            let page = scan::page(self.spoke, area, range).await?;
            size.learn(&page);
            let mut found = Ids::new();
            for document in page.documents() {
                let id = scan::id_of(self.spoke, document)?;
                found.insert(Key::new(self.namespace, id.as_raw_bson_ref()), id);
            }
            let Some(last) = page.documents().next_back() else { break };
            saved.after = Some(scan::id_of(self.spoke, last)?);
            let documents = found.len();
            self.suspect(found, saved, run.stop).await?;
            run.pace.wait(documents).await;
            if run.stop.is_cancelled() {
                return Ok(());
            }
        }
        saved.is_walked = true;
        Ok(())
    }

    /// Adds suspects, and drops documents that were only in transit after every [`SIEVED_EVERY`] additions.
    async fn suspect(&self, ids: Ids, saved: &mut Saved, stop: &CancellationToken) -> Result<(), Error> {
        let before = saved.suspects.len();
        saved.suspects.extend(ids.into_values());
        let after = saved.suspects.len();
        // Beyond the maximum, `Part::verify` examines only the first [`SUSPECTS`], so sieving is not worth the reads.
        if before / SIEVED_EVERY == after / SIEVED_EVERY || before > SUSPECTS {
            return Ok(());
        }
        let moment = Moment::now(self).await?;
        let suspects = self.by_key(saved.suspects.clone());
        if wait::pass_for(self, &suspects, moment, stop).await? == Waited::Passed {
            saved.suspects.clear();
            let look = examine::look(self, &suspects, moment).await?;
            saved.suspects.extend(look.differing.into_values().map(|seen| seen.id));
        }
        Ok(())
    }

    pub(super) fn by_key(&self, ids: Vec<RawBson>) -> Ids {
        ids.into_iter().map(|id| (Key::new(self.namespace, id.as_raw_bson_ref()), id)).collect()
    }
}
