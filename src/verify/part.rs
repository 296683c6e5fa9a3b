//! Verification of a zone of a collection at a spoke: walk both sides, examine suspects, report what persists.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;

use bson::raw::RawDocument;

use super::Run;
use super::examine::Ids;
use super::report::{PartReport, Untold};
use super::suspects::SUSPECTS;
use super::wait;
use crate::mongo::error::Error;
use crate::mongo::metadata::verifications::{self, PartName};
use crate::mongo::metadata::{self, checkpoints, dead_letters, unsettled};
use crate::mongo::read::Wanted;
use crate::mongo::scan::Which;
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::lookup;
use crate::rules::names::{LinkName, Zone};

/// A zone of a collection at a spoke, or the spoke's documents in zones not held by the spoke.
pub(super) struct Part<'a> {
    pub(super) hub: &'a Server,
    pub(super) spoke: &'a Server,
    pub(super) own: &'a Zone,
    pub(super) held: &'a [Zone],
    pub(super) namespace: u16,
    /// `None`: documents in zones not held by the spoke.
    pub(super) zone: Option<&'a Zone>,
    /// Name under which progress is saved.
    pub(super) saved: PartName,
    /// Number of the part's documents already counted in the overall progress.
    pub(super) counted: AtomicU64,
}

impl Part<'_> {
    pub(super) fn downlink(&self) -> LinkName {
        LinkName::downlink(self.own)
    }

    pub(super) fn uplink(&self) -> LinkName {
        LinkName::uplink(self.own)
    }

    /// True if the spoke holds the document's zone.
    pub(super) fn holds(&self, document: &RawDocument) -> bool {
        let zone = lookup::text(document, self.hub.partition_key());
        zone.is_some_and(|zone| self.held.iter().any(|held| held.as_str() == zone))
    }

    /// True for a document of the spoke's own zone, or without a partition key.
    pub(super) fn is_own(&self, document: Option<&RawDocument>) -> bool {
        let key = document.map(|document| lookup::value(document, self.hub.partition_key()));
        key.is_some_and(|key| Which::OfOrUnstamped(self.own).includes(key))
    }

    pub(super) fn untold(&self, reason: String) -> Untold {
        Untold { spoke: self.own.to_string(), zone: self.zone.map(Zone::to_string), reason }
    }

    pub(super) fn namespace_name(&self) -> String {
        self.hub.namespace(self.namespace).to_string()
    }

    /// Compares both sides, and repairs differences if requested.
    pub(super) async fn verify(&self, run: &Run<'_>) -> Result<PartReport, Error> {
        if let Some(reason) = self.not_copied().await? {
            return Ok(PartReport::untold(self.untold(reason)));
        }
        // An interrupted walk resumes, and a finished walk is not repeated.
        let mut saved = verifications::load(self.hub, &self.saved).await?;
        run.counted.set(self, saved.documents);
        if !saved.is_walked {
            let _place = run.walking.acquire().await.expect("it is never closed");
            match self.zone {
                Some(zone) => self.walk(zone, &mut saved, run).await?,
                None => self.scan(&mut saved, run).await?,
            }
            verifications::save(self.hub, &self.saved, &saved).await?;
        }
        // A limit on suspects bounds memory and the reads that examine suspects.
        let mut report = PartReport { documents: saved.documents, ..PartReport::default() };
        if saved.suspects.len() > SUSPECTS {
            report.more = (saved.suspects.len() - SUSPECTS) as u64;
            saved.suspects.truncate(SUSPECTS);
            let reason =
                "too many documents differ to examine each of them: `spokesync resync` brings all of them".to_owned();
            report.untold.push(self.untold(reason));
        }
        if saved.unreadable > 0 {
            let number = saved.unreadable;
            report.untold.push(self.untold(format!("{number} documents have an _id that cannot be read")));
        }
        // Most suspects were only in transit. The rest persists.
        let suspects = self.by_key(saved.suspects);
        let persisting = self.persisting(suspects, run.stop).await?;
        self.tell(persisting, run, &mut report).await?;
        Ok(report)
    }

    /// Reason why the part cannot be compared yet, if any.
    async fn not_copied(&self) -> Result<Option<String>, Error> {
        let namespace = self.hub.namespace(self.namespace);
        let zone = self.zone.unwrap_or(self.own);
        let part = checkpoints::Part::new(namespace, zone);
        let mut links = vec![(self.spoke, self.downlink())];
        if zone == self.own {
            links.push((self.hub, self.uplink()));
        }
        for (destination, link) in links {
            let Some(checkpoint) = checkpoints::peek(destination, &link).await? else {
                return Ok(Some("the spoke was never synced: `spokesync run` must copy it first".to_owned()));
            };
            if !checkpoint.copied.contains(&part) && !checkpoint.left.contains(&part) {
                return Ok(Some(format!("{link} has not copied {namespace} zone {zone} yet")));
            }
        }
        Ok(None)
    }

    /// True if the hub's collection is the one that the downlink knows. In another collection, a missing document was
    /// never deleted.
    pub(super) async fn is_the_same_collection(&self) -> Result<bool, Error> {
        let name = self.namespace_name();
        let checkpoint = checkpoints::peek(self.spoke, &self.downlink()).await?;
        let known = checkpoint.and_then(|checkpoint| {
            checkpoint.collections.into_iter().find(|known| known.namespace == name).map(|known| known.uuid)
        });
        let present = self.hub.collections().await?;
        let present = present.and_then(|present| present.get(usize::from(self.namespace)).copied().flatten());
        // Without the privilege to list collections nothing is known of either.
        Ok(known.is_none() || known == present)
    }

    /// Those of these documents that an application has changed at the spoke behind the uplink's place.
    pub(super) async fn changed_at_spoke(&self, ids: &Ids) -> Result<HashSet<Key>, Error> {
        let checkpoint = checkpoints::peek(self.hub, &self.uplink()).await?;
        let Some(position) = checkpoint.and_then(|checkpoint| checkpoint.position) else {
            return Ok(ids.keys().cloned().collect());
        };
        wait::changed_at_spoke(self, ids, &position).await
    }

    /// Leaves documents to the decision that the spoke's downlink takes once it runs.
    pub(super) async fn leave_to_run(&self, ids: &Ids, changed: &HashSet<Key>) -> Result<(), Error> {
        let namespace = self.spoke.namespace(self.namespace);
        let documents: Vec<_> = ids
            .iter()
            .filter(|(key, _)| changed.contains(*key))
            .map(|(_, id)| (namespace, id.as_raw_bson_ref()))
            .collect();
        if documents.is_empty() {
            return Ok(());
        }
        metadata::run(self.spoke, "noting documents to be settled", &unsettled::note(&self.downlink(), &documents))
            .await
    }

    /// Those of the documents whose dead letter, of either link, was dropped.
    pub(super) async fn dropped_letters(&self, wanted: &Wanted<'_>) -> Result<HashSet<Key>, Error> {
        let mut dropped = dead_letters::dropped_among(self.spoke, &self.downlink(), wanted).await?;
        dropped.extend(dead_letters::dropped_among(self.hub, &self.uplink(), wanted).await?);
        Ok(dropped)
    }
}
