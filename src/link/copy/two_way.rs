//! Settles differences of documents that both sides may be changing while a zone is copied or compared.
//!
//! First the destination's document is read, then the opposite link must have carried everything up to that moment, then the
//! source's document is read. What still differs, the source has changed; and it is written only if the destination's document is
//! still the one that was read, which the transaction itself sees.
//!
//! On a quiet server the opposite link comes to that moment only with its stream's next reply, after a second. So differences are
//! kept until it is worth while to settle them together.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bson::Timestamp;
use bson::raw::RawBson;
use tokio_util::sync::CancellationToken;

use crate::link::apply::Applier;
use crate::link::apply::work::{Mark, Side};
use crate::link::copy::{Ended, Found, Job, Mode, Policy};
use crate::link::reached::Waited;
use crate::mongo::error::Error;
use crate::mongo::walk::{self, Difference};
use crate::rules::key::Key;

/// How often a document that changes all the time at the destination is looked at again before it is written all the same.
const ROUNDS: u32 = 10;

/// So many documents are settled at once, at most about.
const DOCUMENTS: usize = 5_000;

/// So many bytes of both sides are held for that, at most about.
const BYTES: usize = 4_000_000;

/// So many of them are in one transaction: the more, the more often an application writes one of them meanwhile, and it is void.
const TOGETHER: usize = 100;

/// How long what is done may stay unsaved.
const UNSAVED: Duration = Duration::from_secs(5);

/// Differences that were found and are not settled yet.
pub(super) struct Unsettled {
    ids: HashMap<Key, RawBson>,
    bytes: usize,
    /// Where the link stands once they are.
    mark: Option<Mark>,
    may_delete: bool,
    saved: Instant,
    latest: Timestamp,
}

impl Unsettled {
    /// None so far.
    pub(super) fn new(may_delete: bool) -> Self {
        let latest = Timestamp { time: 0, increment: 0 };
        Self { ids: HashMap::new(), bytes: 0, mark: None, may_delete, saved: Instant::now(), latest }
    }

    /// All that is settled is as the source had it at this time at the latest.
    pub(super) fn latest(&self) -> Timestamp {
        self.latest
    }

    /// These were found, on the way to this mark.
    pub(super) fn add(&mut self, differences: Vec<Difference>, mark: Option<Mark>) {
        for difference in differences {
            let sides = [difference.lead, difference.follow];
            self.bytes += sides.iter().flatten().map(|document| document.as_bytes().len()).sum::<usize>();
            self.ids.insert(difference.key, difference.id);
        }
        self.mark = mark.or(self.mark.take());
    }

    /// Whether they should be settled now.
    pub(super) fn is_due(&self) -> bool {
        self.ids.len() >= DOCUMENTS || self.bytes >= BYTES || self.saved.elapsed() >= UNSAVED
    }

    /// Settles all of them, and saves where the link stands then; or tells why it could not.
    ///
    /// # Errors
    /// If a server fails, or another process has taken the link over.
    pub(super) async fn settle(
        &mut self,
        applier: &mut Applier,
        side: &mut impl Side,
        job: &Job<'_>,
        stop: &CancellationToken,
    ) -> Result<Option<Ended>, Error> {
        for round in 1.. {
            if self.ids.is_empty() {
                break;
            }
            let (there, at) = walk::these(job.destination_end(), &self.ids, job.destination.now().await?).await?;
            let mut mode = Mode { may_delete: self.may_delete, policy: job.policy, is_guarded: round <= ROUNDS };
            match job.opposite_link_has_carried(at, stop).await? {
                Waited::Done => {}
                Waited::Incomplete if job.can_wait => return Ok(Some(Ended::Postponed)),
                Waited::Incomplete => {
                    tracing::warn!(zone = %job.zone, "the downlink has lost its place as well: data wins over deletion");
                    mode.policy = Policy::OwnerPushes;
                }
                Waited::Stopped => return Ok(Some(Ended::Stopped)),
            }
            let (here, source_at) = walk::these(job.source_end(), &self.ids, job.source.now().await?).await?;
            self.latest = self.latest.max(source_at);
            let mut differences = walk::compare(self.ids.clone(), here, there);
            let protected = job.protected(mode.policy).await?;
            let mut changed = HashSet::new();
            while !differences.is_empty() {
                let rest = differences.split_off(differences.len().min(TOGETHER));
                let found = Found { differences: std::mem::replace(&mut differences, rest), source_at };
                changed.extend(found.apply(applier, side, job, mode, &protected, None).await?);
            }
            self.ids.retain(|key, _| changed.contains(key));
        }
        self.bytes = 0;
        if let Some(mark) = self.mark.take() {
            applier.save(side, mark).await?;
        }
        self.saved = Instant::now();
        Ok(None)
    }
}
