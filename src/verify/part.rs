//! One zone of one collection at one spoke: what does not seem equal there, and what of it persists.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;

use bson::Timestamp;
use bson::raw::{RawBson, RawDocument};
use tokio_util::sync::CancellationToken;

use super::carried::{self, Waited};
use super::examine::{self, Ids, Moment, Seen};
use super::options::Options;
use super::pace::Pace;
use super::report::{Finding, Kind, PartReport, TOLD, Untold};
use super::{Counted, repair};
use crate::link::walk::{self, End, Walk};
use crate::mongo::checkpoint;
use crate::mongo::digest;
use crate::mongo::error::Error;
use crate::mongo::repair::shown_id;
use crate::mongo::scan::{self, Area, PageSize, Range, Which};
use crate::mongo::server::Server;
use crate::mongo::verifications::{self, PartName, Saved};
use crate::mongo::{dead_letters, foreign};
use crate::sync::difference;
use crate::sync::key::Key;
use crate::sync::names::{Link, Zone};

/// How often a document is looked at that changes all the time.
const ROUNDS: u32 = 12;

/// Each time so many more documents did not seem equal, it is looked which of them only were on their way.
const SIEVED_EVERY: usize = 1_000;

/// More documents of a part than this are not looked at again one by one.
const SUSPECTS: usize = TOLD;

/// If more buckets than this differ, the whole zone is walked.
const FEW_BUCKETS: usize = 64;

/// How many documents are compared between two notes of how far it is.
const SAVED_EVERY: u64 = 50_000;

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

/// Who watches how far a part is.
struct Watched<'w> {
    counted: &'w Counted<'w>,
    pace: &'w Pace,
    stop: &'w CancellationToken,
}

/// What persists of what did not seem equal.
#[derive(Default)]
pub(super) struct Persisting {
    pub(super) differing: HashMap<Key, Seen>,
    /// Changes of these are on their way, and nobody carries them.
    pub(super) under_way: usize,
    /// These change all the time at both sides.
    pub(super) unsettled: usize,
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

    fn namespace_name(&self) -> String {
        self.hub.namespaces()[usize::from(self.namespace)].to_string()
    }

    /// Compares it, and mends what differs if that is wanted.
    pub(super) async fn verify(
        &self,
        options: &Options,
        counted: &Counted<'_>,
        pace: &Pace,
        stop: &CancellationToken,
    ) -> Result<PartReport, Error> {
        if let Some(reason) = self.not_copied().await? {
            return Ok(PartReport::untold(self.untold(reason)));
        }
        let mut saved = verifications::load(self.hub, &self.saved).await?;
        counted.set(self, saved.documents);
        if !saved.is_walked {
            let _place = counted.walking.acquire().await.expect("it is never closed");
            match self.zone {
                Some(zone) => self.walk(zone, options, &mut saved, counted, pace, stop).await?,
                None => self.scan(&mut saved, pace, stop).await?,
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
        let persisting = self.persisting(suspects, stop).await?;
        self.tell(persisting, options, pace, stop, &mut report).await?;
        Ok(report)
    }

    /// Why it cannot be compared yet.
    async fn not_copied(&self) -> Result<Option<String>, Error> {
        let namespace = &self.hub.namespaces()[usize::from(self.namespace)];
        let zone = self.zone.unwrap_or(self.own);
        let part = checkpoint::Part::new(namespace, zone);
        let mut links = vec![(self.spoke, self.downlink())];
        if zone == self.own {
            links.push((self.hub, self.uplink()));
        }
        for (destination, link) in links {
            let Some(checkpoint) = checkpoint::peek(destination, &link).await? else {
                return Ok(Some("it was never synced: `spokesync run` must have copied it first".to_owned()));
            };
            if !checkpoint.copied.contains(&part) && !checkpoint.left.contains(&part) {
                return Ok(Some(format!("{link} has not copied {namespace} zone {zone} yet")));
            }
        }
        Ok(None)
    }

    /// Walks both sides of a zone.
    async fn walk(
        &self,
        zone: &Zone,
        options: &Options,
        saved: &mut Saved,
        counted: &Counted<'_>,
        pace: &Pace,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let area = Area::of(self.namespace, Which::Of(zone));
        let buckets = if options.quick { Some(self.unequal_buckets(area, saved, counted).await?) } else { None };
        let buckets = match &buckets {
            Some(buckets) if buckets.is_empty() => {
                saved.is_walked = true;
                return Ok(());
            }
            Some(buckets) if buckets.len() <= FEW_BUCKETS => Some(buckets.as_slice()),
            _ => None,
        };
        let end = |server| End { server, area: Area { buckets, ..area }, secondary: options.secondary };
        let mut walk = Walk::new(end(self.hub), end(self.spoke), saved.after.clone());
        let (hub_now, spoke_now) = (self.hub.now().await?, self.spoke.now().await?);
        let mut noted = saved.documents;
        let watched = Watched { counted, pace, stop };
        let mut next = Some(walk::read_ahead(end(self.hub), walk.lead_size(), saved.after.as_ref(), hub_now).await?);
        while let Some(page) = next {
            // One page is read ahead at the hub while the spoke's is read and compared.
            let (size, last) = (walk.lead_size(), page.last().cloned());
            let reading = async {
                let Some(last) = &last else { return Ok(None) };
                walk::read_ahead(end(self.hub), size, Some(last), hub_now).await.map(Some)
            };
            walk.begin(page);
            let comparing = self.compare(&mut walk, spoke_now, saved, &watched);
            (next, ()) = futures_util::future::try_join(reading, comparing).await?;
            if stop.is_cancelled() {
                return Ok(());
            }
            if saved.documents - noted >= SAVED_EVERY {
                noted = saved.documents;
                verifications::save(self.hub, &self.saved, saved).await?;
            }
        }
        saved.is_walked = true;
        Ok(())
    }

    /// Compares one page of the hub's.
    async fn compare(
        &self,
        walk: &mut Walk<'_>,
        not_before: Timestamp,
        saved: &mut Saved,
        watched: &Watched<'_>,
    ) -> Result<(), Error> {
        let Watched { counted, pace, stop } = watched;
        while let Some((chunk, _)) = walk.follow(not_before).await? {
            let differing = chunk.differences.into_iter().map(|difference| (difference.key, difference.id)).collect();
            self.suspect(differing, saved, stop).await?;
            saved.documents += chunk.documents as u64;
            counted.set(self, saved.documents);
            saved.after = chunk.done_up_to.or(saved.after.take());
            pace.wait(chunk.documents).await;
        }
        Ok(())
    }

    /// The buckets of the zone that do not come to the same at both sides.
    async fn unequal_buckets(
        &self,
        area: Area<'_>,
        saved: &mut Saved,
        counted: &Counted<'_>,
    ) -> Result<Vec<i32>, Error> {
        let (hub, spoke) =
            futures_util::future::try_join(digest::digests(self.hub, area), digest::digests(self.spoke, area)).await?;
        let documents = hub.values().map(digest::Digest::documents).sum();
        let unequal = digest::unequal(&hub, &spoke);
        if unequal.is_empty() {
            saved.documents = documents;
            counted.set(self, documents);
        }
        Ok(unequal)
    }

    /// Finds the documents of zones that the spoke does not hold.
    async fn scan(&self, saved: &mut Saved, pace: &Pace, stop: &CancellationToken) -> Result<(), Error> {
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
            self.suspect(found, saved, stop).await?;
            pace.wait(documents).await;
            if stop.is_cancelled() {
                return Ok(());
            }
        }
        saved.is_walked = true;
        Ok(())
    }

    /// Keeps these documents; now and then those are left out that only were on their way.
    async fn suspect(&self, ids: Ids, saved: &mut Saved, stop: &CancellationToken) -> Result<(), Error> {
        let before = saved.suspects.len();
        saved.suspects.extend(ids.into_values());
        let after = saved.suspects.len();
        // Nobody will look at each of very many again.
        if before / SIEVED_EVERY == after / SIEVED_EVERY || before > SUSPECTS {
            return Ok(());
        }
        let moment = Moment::now(self).await?;
        if carried::pass(self, moment, stop).await? == Waited::Passed {
            let suspects = self.by_key(std::mem::take(&mut saved.suspects));
            let look = examine::look(self, &suspects, moment).await?;
            saved.suspects.extend(look.differing.into_values().map(|seen| seen.id));
        }
        Ok(())
    }

    fn by_key(&self, ids: Vec<RawBson>) -> Ids {
        ids.into_iter().map(|id| (Key::new(self.namespace, id.as_raw_bson_ref()), id)).collect()
    }

    /// Looks at documents once the links have passed the present moment, and longer at those that go on changing.
    pub(super) async fn persisting(&self, mut ids: Ids, stop: &CancellationToken) -> Result<Persisting, Error> {
        let mut persisting = Persisting::default();
        let mut before: HashMap<Key, Seen> = HashMap::new();
        for _ in 0..ROUNDS {
            if ids.is_empty() || stop.is_cancelled() {
                return Ok(persisting);
            }
            let moment = Moment::now(self).await?;
            let waited = carried::pass(self, moment, stop).await?;
            let look = examine::look(self, &ids, moment).await?;
            ids.retain(|key, _| look.differing.contains_key(key));
            if waited == Waited::StandsStill && !ids.is_empty() {
                let under_way: HashSet<Key> = carried::under_way(self, &ids, &look).await?;
                persisting.under_way = under_way.len();
                let rest = look.differing.into_iter().filter(|(key, _)| !under_way.contains(key));
                persisting.differing.extend(rest);
                return Ok(persisting);
            }
            // What both sides still have as they had it, though all that was on its way then has come.
            for (key, seen) in &look.differing {
                let persists =
                    before.get(key).is_some_and(|before| seen.is_as(before) || (seen.is_exact && before.is_exact));
                if persists {
                    ids.remove(key);
                    persisting.differing.insert(key.clone(), seen.clone());
                }
            }
            before = look.differing;
        }
        persisting.unsettled = ids.len();
        Ok(persisting)
    }

    /// Puts into words what persists, and mends it if that is wanted.
    async fn tell(
        &self,
        persisting: Persisting,
        options: &Options,
        pace: &Pace,
        stop: &CancellationToken,
        report: &mut PartReport,
    ) -> Result<(), Error> {
        if persisting.under_way > 0 {
            let number = persisting.under_way;
            let reason = format!(
                "changes of {number} documents are on their way, and nobody carries them: start `spokesync run`"
            );
            report.untold.push(self.untold(reason));
        }
        if persisting.unsettled > 0 {
            let number = persisting.unsettled;
            report.untold.push(self.untold(format!("{number} documents change all the time at both sides")));
        }
        let mut found = Vec::new();
        if !persisting.differing.is_empty() {
            let known = Known::load(self).await?;
            for (key, seen) in persisting.differing {
                // What the hub has in a zone that the spoke holds is told there.
                if self.zone.is_none() && seen.hub.as_deref().is_some_and(|document| self.holds(document)) {
                    continue;
                }
                let kind = self.kind(&key, &seen, &known);
                found.push((key, self.finding(&seen, kind), seen));
            }
        }
        if options.repair && !found.is_empty() {
            repair::repair(self, &mut found, options.purge_foreign, pace, stop).await?;
        }
        report.findings.extend(found.into_iter().map(|(_, finding, _)| finding));
        Ok(())
    }

    fn kind(&self, key: &Key, seen: &Seen, known: &Known) -> Kind {
        let has_zone = |document: &RawDocument| document.get(self.hub.partition_key()).is_ok_and(|zone| zone.is_some());
        let expected = seen.hub.as_deref().filter(|document| self.holds(document));
        match (expected, seen.spoke.as_deref()) {
            _ if known.parked.contains(key) => Kind::Parked,
            (_, None) => Kind::Missing,
            (_, Some(document)) if !has_zone(document) => Kind::Unstamped,
            (Some(_), Some(_)) => Kind::Different,
            (None, Some(document)) if !self.holds(document) || known.foreign.contains_key(key) => Kind::Foreign,
            (None, Some(_)) => Kind::Extra,
        }
    }

    fn finding(&self, seen: &Seen, kind: Kind) -> Finding {
        let paths = match (&seen.hub, &seen.spoke) {
            (Some(hub), Some(spoke)) => difference::paths(hub, spoke),
            _ => Vec::new(),
        };
        Finding {
            spoke: self.own.to_string(),
            ns: self.namespace_name(),
            zone: self.zone.map(Zone::to_string),
            id: shown_id(seen.id.as_raw_bson_ref()),
            kind,
            paths,
            repair: None,
            repaired: false,
        }
    }
}

/// Documents of which it is known why they differ.
struct Known {
    parked: HashSet<Key>,
    foreign: HashMap<Key, RawBson>,
}

impl Known {
    async fn load(part: &Part<'_>) -> Result<Self, Error> {
        let mut parked = dead_letters::parked(part.spoke, &part.downlink()).await?;
        parked.extend(dead_letters::parked(part.hub, &part.uplink()).await?);
        Ok(Self { parked, foreign: foreign::registered(part.spoke).await? })
    }
}
