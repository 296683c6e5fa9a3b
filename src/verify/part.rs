//! One zone of one collection at one spoke: it is walked, what does not seem equal is looked at again, and what persists is told.

use std::sync::atomic::AtomicU64;

use bson::raw::RawDocument;

use super::Run;
use super::report::{PartReport, Untold};
use super::suspects::SUSPECTS;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints;
use crate::mongo::metadata::verifications::{self, PartName};
use crate::mongo::scan::Which;
use crate::mongo::server::Server;
use crate::rules::names::{Link, Zone};

/// One zone of one collection at one spoke; or there the documents of zones that it does not hold.
pub(super) struct Part<'a> {
    pub(super) hub: &'a Server,
    pub(super) spoke: &'a Server,
    /// The zone that the spoke owns.
    pub(super) own: &'a Zone,
    /// All that it holds.
    pub(super) held: &'a [Zone],
    /// The collection's number.
    pub(super) namespace: u16,
    /// `None`: what the spoke does not hold.
    pub(super) zone: Option<&'a Zone>,
    /// The name under which it is noted how far it is.
    pub(super) saved: PartName,
    /// How many documents of it are counted in the progress.
    pub(super) counted: AtomicU64,
}

impl Part<'_> {
    /// The link that brings the hub's changes.
    pub(super) fn downlink(&self) -> Link {
        Link::downlink(self.own)
    }

    /// The link that brings the spoke's.
    pub(super) fn uplink(&self) -> Link {
        Link::uplink(self.own)
    }

    /// True if the spoke holds the document's zone.
    pub(super) fn holds(&self, document: &RawDocument) -> bool {
        let zone = document.get_str(self.hub.partition_key());
        zone.is_ok_and(|zone| self.held.iter().any(|held| held.as_str() == zone))
    }

    /// True if it is one of the spoke's own zone, or without one.
    pub(super) fn is_own(&self, document: Option<&RawDocument>) -> bool {
        let key = document.map(|document| document.get(self.hub.partition_key()).ok().flatten());
        key.is_some_and(|key| Which::OfOrUnstamped(self.own).includes(key))
    }

    pub(super) fn untold(&self, reason: String) -> Untold {
        Untold { spoke: self.own.to_string(), zone: self.zone.map(Zone::to_string), reason }
    }

    pub(super) fn namespace_name(&self) -> String {
        self.hub.namespace(self.namespace).to_string()
    }

    /// Compares it, and mends what differs if that is wanted.
    pub(super) async fn verify(&self, run: &Run<'_>) -> Result<PartReport, Error> {
        if let Some(reason) = self.not_copied().await? {
            return Ok(PartReport::untold(self.untold(reason)));
        }
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
        let mut report = PartReport { documents: saved.documents, ..PartReport::default() };
        if saved.suspects.len() > SUSPECTS {
            report.more = (saved.suspects.len() - SUSPECTS) as u64;
            saved.suspects.truncate(SUSPECTS);
            let reason =
                "too many documents differ to look at each again: `spokesync resync` brings all of them".to_owned();
            report.untold.push(self.untold(reason));
        }
        let suspects = self.by_key(saved.suspects);
        let persisting = self.persisting(suspects, run.stop).await?;
        self.tell(persisting, run, &mut report).await?;
        Ok(report)
    }

    /// Why it cannot be compared yet.
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
                return Ok(Some("it was never synced: `spokesync run` must have copied it first".to_owned()));
            };
            if !checkpoint.copied.contains(&part) && !checkpoint.left.contains(&part) {
                return Ok(Some(format!("{link} has not copied {namespace} zone {zone} yet")));
            }
        }
        Ok(None)
    }
}
