//! Brings one zone of one collection from a source to a destination: the first copy, and the reconcile after a link has lost
//! its place in the change stream. Only what differs is written.
//!
//! The stream's new start was saved before anything is read, and the source is read causally after it: what changes before a
//! document is read is in the document, and what changes later is in the stream. The checkpoint holds the last `_id` that is
//! done, so whatever interrupts this, it goes on there.
//!
//! In a spoke's own zone both sides write, and changes are under way in both directions. There each difference is [settled by
//! itself](two_way).

pub(crate) mod two_way;

use std::collections::HashMap;

use bson::raw::{RawBson, RawDocument, RawDocumentBuf, cstr};
use bson::{Timestamp, rawdoc};
use tokio_util::sync::CancellationToken;

use crate::link::apply::Applier;
use crate::link::apply::work::{Expected, Load, Mark, Origin, Side};
use crate::link::collections;
use crate::link::copy::two_way::Unsettled;
use crate::link::reached::Waited;
use crate::link::{Spoke, Stopped};
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{CopiedUpTo, Part};
use crate::mongo::metadata::{dead_letters, foreign, set_aside};
use crate::mongo::scan::{self, Area, Range, Which};
use crate::mongo::server::Server;
use crate::mongo::walk::{Difference, End, Walk};
use crate::rules::fields::Fields;
use crate::rules::key::Key;
use crate::rules::names::{Direction, Link, Zone};
use crate::rules::step::{Read, Step, Write, Zones};

/// What is brought, and from where to where.
pub(super) struct Job<'a> {
    pub(super) spoke: &'a Spoke,
    pub(super) source: &'a Server,
    pub(super) destination: &'a Server,
    /// The collection's number.
    pub(super) namespace: u16,
    pub(super) zone: &'a Zone,
    /// Where the destination may have a document that the source has in this zone.
    pub(super) within: Zones<'a>,
    pub(super) policy: Policy,
    /// An operator wants it. It can wait until the opposite link works.
    pub(super) can_wait: bool,
}

/// How bringing a part ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It is done.
    Done,
    /// It was told to.
    Stopped,
    /// It must wait for the opposite link; what is done is done.
    Postponed,
}

/// What is done about differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// A spoke's own zone, up, while the hub's changes of it are not known to have come down: the owner's documents win, and
    /// nothing is deleted.
    OwnerPushes,
    /// A spoke's own zone, up, while the downlink works: what the spoke changed or deleted.
    OwnerReconciles,
    /// A spoke's own zone, down, while the uplink works: what hub applications changed or deleted.
    HubReconciles,
    /// A watched zone, down, for the first time: the hub's documents win. What the spoke alone has is not ours.
    Watch,
    /// A watched zone, down, once more: what the hub does not have is deleted, unless it is known not to be ours.
    WatchAgain,
}

impl Policy {
    /// Both sides write, and each document is settled by itself.
    fn is_two_way(self) -> bool {
        matches!(self, Self::OwnerReconciles | Self::HubReconciles)
    }

    fn is_up(self) -> bool {
        matches!(self, Self::OwnerPushes | Self::OwnerReconciles)
    }
}

/// Brings one part, from where the checkpoint says.
///
/// # Errors
/// If a server fails; it can then go on from its checkpoint.
pub(super) async fn part(
    applier: &mut Applier,
    side: &mut impl Side,
    job: &Job<'_>,
    stop: &CancellationToken,
) -> Result<Ended, Error> {
    let part = Part::new(&job.source.namespaces()[usize::from(job.namespace)], job.zone);
    let resumed = applier.checkpoint().copying.clone().filter(|progress| progress.part == part);
    let start = applier.checkpoint().position.as_ref().expect("it is saved before anything is copied").seen_until();
    tracing::info!(ns = part.namespace, zone = %job.zone, policy = ?job.policy, resumed = resumed.is_some(), "copying");
    // What a first copy finds missing is no deletion: the stream brings those.
    let may_delete = collections::is_the_same(applier, job.source, job.namespace).await?;
    let cell = job.spoke.status.link(if job.policy.is_up() { Direction::Uplink } else { Direction::Downlink });
    cell.begin_copying(&part.namespace, job.zone, scan::estimate(job.source, job.source_end().area).await);
    let mut walk = Walk::new(job.source_end(), job.destination_end(), resumed.map(|progress| progress.after));
    let (mut latest, mut documents, mut written) = (start, 0, 0);
    let mut unsettled = Unsettled::new(may_delete);
    while !walk.is_finished() {
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
            if job.policy.is_two_way() {
                unsettled.add(chunk.differences, mark);
                if unsettled.is_due()
                    && let Some(ended) = unsettled.settle(applier, side, job, stop).await?
                {
                    return Ok(ended);
                }
            } else {
                let (mut may_delete, mut source_at) = (may_delete, source_at);
                let has_extras = chunk.differences.iter().any(|difference| difference.lead.is_none());
                if job.policy == Policy::WatchAgain && has_extras {
                    // Whatever applications wrote at the spoke in another zone, or moved there, must be known first.
                    match job.uplink_has_carried(followed_at, stop).await? {
                        Waited::Done => source_at = job.source.now().await?,
                        Waited::Incomplete if job.can_wait => return Ok(Ended::Postponed),
                        Waited::Incomplete => may_delete = false,
                        Waited::Stopped => return Ok(Ended::Stopped),
                    }
                }
                let found = Found { differences: chunk.differences, source_at };
                let mode = Mode { may_delete, policy: job.policy, is_guarded: false };
                let protected = if has_extras { job.protected(job.policy).await? } else { HashMap::new() };
                found.apply(applier, side, job, mode, &protected, mark).await?;
            }
        }
    }
    if let Some(ended) = unsettled.settle(applier, side, job, stop).await? {
        return Ok(ended);
    }
    // Of a spoke's own zone only the documents that came down are newer at the spoke, and those are known.
    let until = (job.policy != Policy::HubReconciles).then_some(latest.max(unsettled.latest()));
    tracing::info!(ns = part.namespace, zone = %job.zone, documents, differed = written, "copied");
    applier.save(side, Mark::Finished { part, until }).await?;
    collections::learn(applier, side, job.source).await?;
    cell.end_copying();
    Ok(Ended::Done)
}

/// Deletes what the spoke holds of a zone that it does not watch any more, but for what is known not to be ours.
///
/// # Errors
/// If a server fails; the next attempt goes on with what is left.
pub(super) async fn purge(
    applier: &mut Applier,
    side: &mut impl Side,
    spoke: &Server,
    part: &Part,
    stop: &CancellationToken,
) -> Result<Option<Stopped>, Error> {
    let number = spoke.namespaces().iter().position(|namespace| namespace.to_string() == part.namespace);
    let foreign = foreign::registered(spoke).await?;
    let mut after = None;
    while let Some(namespace) = number.and_then(|number| u16::try_from(number).ok()) {
        if stop.is_cancelled() {
            return Ok(Some(Stopped));
        }
        let area = Area::of(namespace, Which::Of(&part.zone));
        let from = after.as_ref().map(RawBson::as_raw_bson_ref);
        let page = scan::page(spoke, area, Range::from(from, spoke.now().await?)).await?;
        let Some(last) = page.documents().next_back() else { break };
        after = Some(scan::id_of(spoke, last)?);
        let mut differences = Vec::new();
        for document in page.documents() {
            let id = scan::id_of(spoke, document)?;
            let key = Key::new(namespace, id.as_raw_bson_ref());
            if !foreign.contains_key(&key) {
                differences.push(Difference { key, id, lead: None, follow: Some(document.to_owned()) });
            }
        }
        let found = Found { differences, source_at: Timestamp { time: 0, increment: 0 } };
        let steps = found.differences.iter().enumerate().map(|(event, difference)| Step {
            event,
            key: difference.key.clone(),
            id: difference.id.as_raw_bson_ref(),
            zones: Zones::One(part.zone.as_str()),
            write: Write::Delete,
            hub_edit: None,
        });
        let load = Load {
            steps: steps.collect(),
            origin: &found,
            end: None,
            last: found.source_at,
            read_at: HashMap::new(),
            changes: found.differences.len(),
            foreign: 0,
            expected: None,
            ours: Vec::new(),
        };
        applier.apply(side, load).await?;
    }
    tracing::info!(ns = part.namespace, zone = %part.zone, "no longer watched, and purged");
    applier.save(side, Mark::Left { kept: Vec::new(), purged: vec![part.clone()] }).await?;
    Ok(None)
}

impl<'a> Job<'a> {
    pub(super) fn source_end(&self) -> End<'a> {
        let which = if self.policy.is_up() { Which::OfOrUnstamped(self.zone) } else { Which::Of(self.zone) };
        End { server: self.source, area: Area::of(self.namespace, which), secondary: false }
    }

    pub(super) fn destination_end(&self) -> End<'a> {
        let area = Area::of(self.namespace, Which::Of(self.zone));
        End { server: self.destination, area, secondary: false }
    }

    /// Waits until the uplink has gone past what the spoke had at this time.
    async fn uplink_has_carried(&self, at: Timestamp, stop: &CancellationToken) -> Result<Waited, Error> {
        self.destination.tick().await?;
        let links = &self.spoke.links;
        loop {
            let carried = links.carried(Direction::Uplink).at_least(at, stop);
            let waited = self.spoke.patiently(Direction::Downlink, carried).await;
            // An uplink that has lost its place may be waiting for this link, unless that has lost its own as well.
            if waited != Waited::Incomplete || links.carried(Direction::Downlink).is_complete() {
                return Ok(waited);
            }
            let complete = links.carried(Direction::Uplink).complete(stop);
            if self.spoke.patiently(Direction::Downlink, complete).await == Waited::Stopped {
                return Ok(Waited::Stopped);
            }
        }
    }

    /// Waits until the opposite link has brought to the source whatever the destination had at this time.
    pub(super) async fn opposite_link_has_carried(
        &self,
        at: Timestamp,
        stop: &CancellationToken,
    ) -> Result<Waited, Error> {
        self.destination.tick().await?;
        let links = &self.spoke.links;
        if self.policy.is_up() {
            let carried = links.carried(Direction::Downlink).at_least(at, stop);
            return Ok(self.spoke.patiently(Direction::Uplink, carried).await);
        }
        loop {
            let carried = links.carried(Direction::Uplink).at_least(at, stop);
            match self.spoke.patiently(Direction::Downlink, carried).await {
                Waited::Incomplete if !self.can_wait => {}
                waited => return Ok(waited),
            }
            // The owner's documents must be at the hub first.
            let complete = links.carried(Direction::Uplink).complete(stop);
            if self.spoke.patiently(Direction::Downlink, complete).await == Waited::Stopped {
                return Ok(Waited::Stopped);
            }
        }
    }

    /// Documents that the destination alone has, and that must stay there all the same.
    pub(super) async fn protected(&self, policy: Policy) -> Result<HashMap<Key, RawBson>, Error> {
        let parked = async |server: &Server, link: Link| -> Result<HashMap<Key, RawBson>, Error> {
            let parked = dead_letters::parked(server, &link).await?;
            Ok(parked.into_iter().map(|key| (key, RawBson::Null)).collect())
        };
        match policy {
            // The source refused them.
            Policy::OwnerReconciles => parked(self.source, Link::downlink(self.zone)).await,
            Policy::HubReconciles => parked(self.source, Link::uplink(self.zone)).await,
            Policy::WatchAgain => foreign::registered(self.destination).await,
            Policy::OwnerPushes | Policy::Watch => Ok(HashMap::new()),
        }
    }
}

/// How differences are written.
#[derive(Clone, Copy)]
pub(super) struct Mode {
    pub(super) policy: Policy,
    pub(super) may_delete: bool,
    /// Only where the destination still has what was read.
    pub(super) is_guarded: bool,
}

/// Differences, the source leading, as the source was at one time.
pub(super) struct Found {
    pub(super) differences: Vec<Difference>,
    pub(super) source_at: Timestamp,
}

impl Found {
    /// Writes what they mean, but for documents that are [protected](Job::protected). Tells the documents that have changed at the
    /// destination and were left alone.
    pub(super) async fn apply(
        &self,
        applier: &mut Applier,
        side: &mut impl Side,
        job: &Job<'_>,
        mode: Mode,
        protected: &HashMap<Key, RawBson>,
        end: Option<Mark>,
    ) -> Result<Vec<Key>, Error> {
        if self.differences.is_empty() && end.is_none() {
            return Ok(Vec::new());
        }
        let mut steps = Vec::new();
        let mut not_ours = Vec::new();
        for (event, difference) in self.differences.iter().enumerate() {
            let is_protected = !mode.may_delete || protected.contains_key(&difference.key);
            let write = match (difference.lead.as_deref(), difference.follow.as_deref()) {
                // The source is not what it should be: the other link could not bring this document's changes there.
                _ if mode.policy.is_two_way() && protected.contains_key(&difference.key) => None,
                (Some(document), there) => Some(put(job, mode.policy, document, there)),
                (None, _) if mode.policy == Policy::OwnerPushes => None,
                (None, _) if mode.policy == Policy::Watch || is_protected => {
                    not_ours
                        .push((&job.source.namespaces()[usize::from(job.namespace)], difference.id.as_raw_bson_ref()));
                    None
                }
                // It may have been moved to another zone: the document itself tells.
                (None, _) => Some(Write::Read(Read::Whole)),
            };
            let Some(write) = write else { continue };
            let hub_edit = (mode.policy == Policy::HubReconciles).then_some(Fields::All);
            let (key, id) = (difference.key.clone(), difference.id.as_raw_bson_ref());
            steps.push(Step { event, key, id, zones: job.within.clone(), write, hub_edit });
        }
        if mode.policy == Policy::WatchAgain {
            // What is missing at the hub may also be what an application wrote here while nobody watched.
            let doubtful = steps.iter().filter(|step| matches!(step.write, Write::Read(_)));
            let follow = doubtful.filter_map(|step| self.differences[step.event].follow.as_deref());
            let namespace = &job.source.namespaces()[usize::from(job.namespace)];
            set_aside::keep(job.destination, namespace, &follow.collect::<Vec<_>>()).await?;
        }
        let registers = matches!(mode.policy, Policy::Watch | Policy::WatchAgain) && !not_ours.is_empty();
        let read_at = match mode.policy {
            Policy::HubReconciles => steps.iter().map(|step| (step.key.clone(), self.source_at)).collect(),
            _ => HashMap::new(),
        };
        let there = self.differences.iter().map(|difference| (difference.key.clone(), difference.follow.clone()));
        let load = Load {
            steps,
            origin: self,
            end,
            last: self.source_at,
            read_at,
            changes: self.differences.len(),
            foreign: 0,
            expected: mode.is_guarded.then(|| Expected { zone: job.zone.clone(), documents: there.collect() }),
            ours: registers.then(|| foreign::register(&not_ours)).into_iter().collect(),
        };
        applier.apply(side, load).await
    }
}

impl Origin for Found {
    fn before(&self, _: usize) -> Option<Mark> {
        // The mark moves with the last of them only.
        None
    }

    fn event(&self, event: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        let mut copied = rawdoc! { "operationType": "copy" };
        if let Some(document) = &self.differences[event].lead {
            copied.append(cstr!("fullDocument"), document);
        }
        (copied, None)
    }
}

/// What is written for a document that the source has, and the destination has otherwise or not at all.
fn put<'a>(job: &Job<'_>, policy: Policy, document: &'a RawDocument, there: Option<&RawDocument>) -> Write<'a> {
    let stamped = document.get(job.source.partition_key()).is_ok_and(|value| value.is_some());
    match there {
        _ if policy.is_up() && !stamped => {
            Write::Read(Read::Stamp { fresh: there.is_none(), document: Some(document) })
        }
        None => Write::Insert(document),
        Some(_) => Write::Replace { document, upsert: true },
    }
}
