//! Converts differences between the two sides of a copy into work.

use std::collections::{HashMap, HashSet};

use bson::Timestamp;
use bson::raw::{RawDocument, RawDocumentBuf, cstr};
use bson::rawdoc;

use super::Job;
use crate::link::apply::mark::Mark;
use crate::link::apply::work::{Expected, Origin, Work};
use crate::link::lifecycle::Link;
use crate::link::source::Source;
use crate::mongo::error::Error;
use crate::mongo::metadata::{dead_letters, foreign};
use crate::mongo::read::{self, Wanted, When};
use crate::mongo::walk::Difference;
use crate::rules::copy::{Differing, Lead, Policy, Protection, Treatment};
use crate::rules::fields::Fields;
use crate::rules::inference::Inference;
use crate::rules::key::Key;
use crate::rules::lookup;
use crate::rules::names::{Direction, LinkName, Zone};
use crate::rules::step::{Read, Step, Write, Zones};

/// The settings for writing differences.
#[derive(Clone, Copy)]
pub(super) struct Mode {
    pub(super) policy: Policy,
    pub(super) may_delete: bool,
    /// A document whose `_id` is taken in another zone is left for a later round: the opposite link may be about to
    /// bring the move that explains it.
    pub(super) leaves_taken: bool,
}

/// Differences. The lead side is the source as of `source_at`.
pub(super) struct Found {
    pub(super) differences: Vec<Difference>,
    pub(super) source_at: Timestamp,
    /// The zone of which documents may be newer than the link's position from now on; `None` if each is remembered.
    pub(super) ahead: Option<Zone>,
}

impl Found {
    /// The link's mark as soon as some of the differences are written. The copy may follow the stream before it has
    /// reached a place to go on from.
    pub(super) fn bound(&self) -> Option<Mark> {
        let zone = self.ahead.clone().filter(|_| !self.differences.is_empty())?;
        Some(Mark::Ahead { zone, until: self.source_at })
    }
}

impl Job {
    /// Those of the documents to keep at the destination although the source lacks them.
    pub(super) async fn protected(&self, policy: Policy, differences: &[Difference]) -> Result<HashSet<Key>, Error> {
        match policy.protection() {
            Protection::DeadLetters(direction) => {
                let name = |direction| match direction {
                    Direction::Uplink => LinkName::uplink(&self.zone),
                    Direction::Downlink => LinkName::downlink(&self.zone),
                };
                let wanted: Wanted<'_> =
                    differences.iter().map(|one| (one.key.clone(), one.id.as_raw_bson_ref())).collect();
                let (there, here) = (name(direction), name(direction.opposite()));
                let mut protected = dead_letters::open_among(&self.source, &there, &wanted).await?;
                protected.extend(dead_letters::dropped_among(&self.source, &there, &wanted).await?);
                // A change that the destination refused, and that an operator has dropped, is not tried again.
                protected.extend(dead_letters::dropped_among(&self.destination, &here, &wanted).await?);
                Ok(protected)
            }
            Protection::Foreign => {
                let extras = differences.iter().filter(|difference| difference.lead.is_none());
                let wanted: Wanted<'_> = extras.map(|one| (one.key.clone(), one.id.as_raw_bson_ref())).collect();
                foreign::among(&self.destination, &wanted).await
            }
            Protection::None => Ok(HashSet::new()),
        }
    }
}

impl<S: Source> Link<'_, S> {
    /// Settles the differences by the policy. The policy leaves [protected](Job::protected) documents at the
    /// destination. Returns the documents left alone because of a change at the destination.
    pub(super) async fn bring(
        &mut self,
        found: &Found,
        job: &Job,
        mode: Mode,
        protected: &HashSet<Key>,
        end: Option<Mark>,
    ) -> Result<Vec<Key>, Error> {
        if found.differences.is_empty() && end.is_none() {
            return Ok(Vec::new());
        }
        let namespace = &job.source.namespaces()[usize::from(job.namespace)];
        let adopted = self.adopted(found, job).await?;
        // The policy decides on each difference; steps are written, other documents registered.
        let (mut steps, mut registered, mut inferred) = (Vec::new(), Vec::new(), HashMap::new());
        for (event, difference) in found.differences.iter().enumerate() {
            let (key, id) = (difference.key.clone(), difference.id.as_raw_bson_ref());
            let document = Differing {
                lead: lead(difference.lead.as_deref(), job.source.partition_key()),
                is_at_destination: difference.follow.is_some(),
                is_protected: protected.contains(&key),
                is_refused_at_hub: self.spoke.pair.evidence(Direction::Uplink, &key).is_some(),
                may_delete: mode.may_delete,
            };
            let treatment = mode.policy.decide(document);
            let write = match (treatment, difference.lead.as_deref()) {
                (Treatment::Register, _) => {
                    // Known before it is registered, so that the stream takes it out again with the hub's document.
                    self.spoke.pair.foreign.add(std::iter::once(key));
                    registered.push((namespace, id));
                    continue;
                }
                (Treatment::ReadAgain, _) => Write::Read(Read::Gone),
                (Treatment::Stamp { fresh }, document) => {
                    Write::Read(Read::Stamp { fresh: fresh && !adopted.contains(&key), document })
                }
                (Treatment::Insert, Some(document)) => Write::Insert(document),
                (Treatment::Replace, Some(document)) => Write::Replace { document, upsert: true },
                (Treatment::Leave | Treatment::Insert | Treatment::Replace, _) => continue,
            };
            let hub_edit = mode.policy.makes_hub_edits().then_some(Fields::All);
            if difference.follow.is_some() {
                inferred.insert(key.clone(), Inference::Copy);
            }
            let zones = if adopted.contains(&key) { Zones::OrNone(job.zone.as_str()) } else { job.zones() };
            steps.push(Step { event, key, id, zones, write, hub_edit });
        }
        // Where both sides write, each document is remembered as newer than the link's place says, in its transaction.
        let read_at = match mode.policy {
            policy if policy.is_two_way() => steps.iter().map(|step| (step.key.clone(), found.source_at)).collect(),
            _ => HashMap::new(),
        };
        // Registrations and the mark are saved in the transaction of the last step.
        let there = found.differences.iter().map(|difference| (difference.key.clone(), difference.follow.clone()));
        self.apply(Work {
            steps,
            end,
            last: found.source_at,
            read_at,
            changes: found.differences.len(),
            // Where both sides write, a document is written only if the destination still has the version read.
            expected: job
                .policy
                .is_two_way()
                .then(|| Expected { zone: Some(job.zone.clone()), documents: there.collect() }),
            inferred,
            // A resync that an operator asked for has seen every change of the spoke, so a document that the hub never
            // accepted has a dead letter. A first copy, or one after a gap, finds such documents itself.
            leaves_undecided: job.can_wait,
            leaves_taken: mode.leaves_taken,
            ours: (!registered.is_empty()).then(|| foreign::register_found(&registered)).into_iter().collect(),
            ..Work::empty(found)
        })
        .await
    }
}

impl<S: Source> Link<'_, S> {
    /// The documents without partition key that both sides have with the same bytes, as after a load of the spoke from
    /// the hub's dump. They become the spoke's at both sides.
    async fn adopted(&self, found: &Found, job: &Job) -> Result<HashSet<Key>, Error> {
        let partition_key = job.source.partition_key();
        let is_without = |difference: &&Difference| {
            S::DIRECTION == Direction::Uplink
                && lead(difference.lead.as_deref(), partition_key) == Lead::WithoutPartitionKey
                && difference.follow.is_none()
        };
        let without: Vec<&Difference> = found.differences.iter().filter(is_without).collect();
        if without.is_empty() {
            return Ok(HashSet::new());
        }
        let wanted: Wanted<'_> = without.iter().map(|one| (one.key.clone(), one.id.as_raw_bson_ref())).collect();
        let hub = &job.destination;
        let there = read::documents(hub, &wanted, None, When::NotBefore(hub.now().await?)).await?.documents;
        let is_same = |one: &&&Difference| there.get(&one.key).is_some_and(|there| *there == one.lead);
        Ok(without.iter().filter(is_same).map(|one| one.key.clone()).collect())
    }
}

fn lead(document: Option<&RawDocument>, partition_key: &str) -> Lead {
    match document {
        None => Lead::Missing,
        Some(document) if lookup::value(document, partition_key).is_some() => Lead::Present,
        Some(_) => Lead::WithoutPartitionKey,
    }
}

impl Origin for Found {
    fn is_copy(&self) -> bool {
        true
    }

    fn before(&self, _: usize) -> Option<Mark> {
        // The place moves with the last difference only.
        self.bound()
    }

    fn event(&self, event: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        let mut copied = rawdoc! { "operationType": "copy" };
        if let Some(document) = &self.differences[event].lead {
            copied.append(cstr!("fullDocument"), document);
        }
        (copied, None)
    }
}
