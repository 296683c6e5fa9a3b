//! Takes the decisions about unsettled documents, at the spoke, between two batches of the downlink.
//!
//! A document's version at the spoke is read, and the uplink must pass that moment. Then the hub's version is read, and
//! both versions with the evidence give the [decision](crate::rules::settle). The transaction carries it out only if
//! the spoke's version is still the one that was read; a document that has changed meanwhile begins again. The hub's
//! later events apply on top.

use std::collections::{HashMap, HashSet};

use bson::raw::{RawBson, RawBsonRef, RawDocument, RawDocumentBuf};
use bson::{Timestamp, rawdoc};

use super::HubSource;
use crate::link::apply::mark::Mark;
use crate::link::apply::work::{Expected, Origin, Work};
use crate::link::lifecycle::Link;
use crate::link::source::Source;
use crate::link::unsettled::Stage;
use crate::mongo::error::Error;
use crate::mongo::metadata::dead_letters::{self, Kept};
use crate::mongo::metadata::{self, foreign, unsettled};
use crate::mongo::read::{self, FITTING_BYTES, Snapshot, Wanted, When};
use crate::mongo::server::Server;
use crate::rules::fields::Fields;
use crate::rules::inference::Inference;
use crate::rules::key::Key;
use crate::rules::lookup;
use crate::rules::names::{Direction, LinkName, Zone};
use crate::rules::settle::{self, Letter, Settlement, Version};
use crate::rules::shown_id::Told;
use crate::rules::step::{Step, Write, Zones};

/// Documents decided together, at most.
const DOCUMENTS: usize = 100;

/// The error code in the dead letter of a collision: `DuplicateKey`.
const COLLISION: i32 = 11000;

/// A document that comes to its decision.
struct Candidate {
    key: Key,
    id: RawBson,
    /// The spoke's version, as both links have passed it.
    spoke: Option<RawDocumentBuf>,
    hub: Option<RawDocumentBuf>,
    settlement: Settlement,
    is_equal: bool,
}

impl Link<'_, HubSource> {
    /// Brings every unsettled document one stage further, if the links have come far enough.
    ///
    /// # Errors
    /// If a server fails.
    pub(super) async fn settle(&mut self) -> Result<(), Error> {
        let unsettled = &self.spoke.pair.unsettled;
        if unsettled.is_empty() {
            return Ok(());
        }
        // Versions that were seen stay in memory until the decision.
        if unsettled.seen_bytes() < FITTING_BYTES {
            let found = unsettled.of_stage(|stage| matches!(stage, Stage::Found), DOCUMENTS);
            self.look_at(found).await?;
        }
        let uplink = self.spoke.pair.carried(Direction::Uplink);
        let is_carried = |stage: &Stage| matches!(stage, Stage::Seen { at, .. } if uplink.has(*at));
        let due = self.spoke.pair.unsettled.of_stage(is_carried, DOCUMENTS);
        self.decide(due).await
    }

    /// Reads the spoke's versions, and makes the spoke's cluster time go on, so that the uplink passes them soon.
    async fn look_at(&mut self, mut found: Vec<Waiting>) -> Result<(), Error> {
        if found.is_empty() {
            return Ok(());
        }
        let spoke = self.destination_server();
        let mut seen = read_fitting(&spoke, &mut found).await?;
        spoke.tick().await?;
        for (key, ..) in &found {
            let version = seen.documents.remove(key).flatten();
            self.spoke.pair.unsettled.advance(key, Stage::Seen { at: seen.at, version });
        }
        Ok(())
    }

    async fn decide(&mut self, mut due: Vec<Waiting>) -> Result<(), Error> {
        if due.is_empty() {
            return Ok(());
        }
        let (hub, spoke) = (self.source.server.clone(), self.destination_server());
        let mut at_hub = read_fitting(&hub, &mut due).await?;
        let ids: Vec<(Key, RawBson)> = due.iter().map(|(key, id, _)| (key.clone(), id.clone())).collect();
        let wanted: Wanted<'_> = ids.iter().map(|(key, id)| (key.clone(), id.as_raw_bson_ref())).collect();
        let foreign = foreign::among(&spoke, &wanted).await?;
        let found = if foreign.is_empty() { HashSet::new() } else { foreign::found_among(&spoke, &wanted).await? };
        let left: HashSet<Zone> = self.checkpoint().left.iter().map(|part| part.zone.clone()).collect();
        let mut candidates = Vec::new();
        for (key, id, stage) in due {
            let Stage::Seen { version: spoke, .. } = stage else { continue };
            let hub = at_hub.documents.remove(&key).flatten();
            let document = settle::Document {
                hub: self.version(hub.as_deref()),
                spoke: self.version(spoke.as_deref()),
                is_equal: hub.as_deref().map(RawDocument::as_bytes) == spoke.as_deref().map(RawDocument::as_bytes),
                letter: match self.spoke.pair.evidence(Direction::Uplink, &key) {
                    None => Letter::None,
                    // A dropped letter protects what the spoke has, and the spoke has nothing any more.
                    Some(evidence) if evidence.is_dropped && spoke.is_none() => Letter::None,
                    Some(evidence) if evidence.is_fresh => Letter::NeverAccepted,
                    Some(_) => Letter::RefusedChange,
                },
                is_refused: self.spoke.pair.evidence(Direction::Downlink, &key).is_some()
                    && !self.retries.is_deciding(&key),
                is_same_zone: self.zone_of(hub.as_deref()) == self.zone_of(spoke.as_deref()),
                is_foreign: foreign.contains(&key),
                is_found: found.contains(&key),
                is_left: self.zone_of(spoke.as_deref()).is_some_and(|zone| left.contains(&Zone::new(zone))),
            };
            // The refused document is gone from the spoke: first a retry ends the letter, then the decision comes.
            if document.letter == Letter::NeverAccepted && document.spoke == Version::Absent {
                self.spoke.pair.letters(Direction::Uplink).retry(&key);
                self.spoke.pair.unsettled.advance(&key, Stage::Found);
                continue;
            }
            let (settlement, is_equal) = (settle::settle(document), document.is_equal);
            tracing::info!(ns = %hub_name(self, &key), id = %Told(id.as_raw_bson_ref()), ?settlement, "document settled");
            candidates.push(Candidate { key, id, spoke, hub, settlement, is_equal });
        }
        let changed = self.carry_out(&candidates, at_hub.at).await?;
        for candidate in candidates.iter().filter(|candidate| candidate.settlement == Settlement::Collide) {
            self.tell_collision(candidate).await?;
        }
        let settled: Vec<&Candidate> =
            candidates.iter().filter(|candidate| !changed.contains(&candidate.key)).collect();
        self.forget_settled(&settled).await?;
        // A retried letter ends, unless the spoke refuses the document again.
        for candidate in settled {
            if !self.retries.is_deciding(&candidate.key) {
                continue;
            }
            if let Some(letter) = self.parked.remove(&candidate.key) {
                self.remove_letter(&candidate.key, &letter, Vec::new()).await?;
            }
            self.retries.forget(&candidate.key);
        }
        for key in changed {
            self.spoke.pair.unsettled.advance(&key, Stage::Found);
        }
        Ok(())
    }

    /// Writes and removes documents. Returns those that have changed at the spoke and were left alone.
    async fn carry_out(&mut self, candidates: &[Candidate], read_at: Timestamp) -> Result<Vec<Key>, Error> {
        let spoke = self.destination_server();
        let field = spoke.partition_key();
        let held = self.source.zones();
        let held: Vec<&str> = held.iter().map(Zone::as_str).collect();
        let own = self.spoke.zone.as_str();
        let mut steps = Vec::new();
        for (event, candidate) in candidates.iter().enumerate() {
            let write = match (candidate.settlement, candidate.hub.as_deref()) {
                (Settlement::Write, Some(document)) => Write::Replace { document, upsert: true },
                (Settlement::Remove, _) => Write::Delete,
                _ => continue,
            };
            // The document is looked for where it was seen. An absent one may be written in any zone that is held.
            let zones = match candidate.spoke.as_deref().map(|document| lookup::value(document, field)) {
                Some(value) => Zones::Value(value.unwrap_or(RawBsonRef::Null)),
                None => Zones::Any(held.clone()),
            };
            let touches_own = [&candidate.hub, &candidate.spoke]
                .into_iter()
                .any(|document| self.zone_of(document.as_deref()) == Some(own));
            steps.push(Step {
                event,
                key: candidate.key.clone(),
                id: candidate.id.as_raw_bson_ref(),
                zones,
                write,
                hub_edit: touches_own.then_some(Fields::All),
            });
        }
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let seen = candidates.iter().map(|candidate| (candidate.key.clone(), candidate.spoke.clone())).collect();
        let origin = Decided(candidates);
        let read_at: HashMap<Key, Timestamp> = steps.iter().map(|step| (step.key.clone(), read_at)).collect();
        let expected = Some(Expected { zone: None, documents: seen });
        let inferred = steps.iter().map(|step| (step.key.clone(), Inference::Decision)).collect();
        let work = Work { steps, read_at, expected, inferred, decides: true, ..Work::empty(&origin) };
        self.apply(work).await
    }

    /// Makes a dead letter of the hub's version, which the spoke cannot hold beside its own document of the same `_id`.
    async fn tell_collision(&mut self, candidate: &Candidate) -> Result<(), Error> {
        let kept = Kept {
            namespace: candidate.key.namespace(),
            id: candidate.id.clone(),
            code: COLLISION,
            message: "a document of another zone has the same _id at the spoke: rename one of them".to_owned(),
            parked_at: bson::DateTime::now(),
            later_changes: 0,
            is_fresh: true,
            is_deleted: false,
            is_unnamed: false,
        };
        let mut event = rawdoc! { "operationType": "copy" };
        if let Some(document) = &candidate.hub {
            event.append(bson::raw::cstr!("fullDocument"), document);
        }
        self.save_letter(candidate.key.clone(), kept, &event, None).await
    }

    async fn forget_settled(&mut self, settled: &[&Candidate]) -> Result<(), Error> {
        if settled.is_empty() {
            return Ok(());
        }
        let (hub, spoke) = (self.source.server.clone(), self.destination_server());
        let documents: Vec<_> = settled
            .iter()
            .map(|candidate| (spoke.namespace(candidate.key.namespace()), candidate.id.as_raw_bson_ref()))
            .collect();
        let (zone, doing) = (&self.spoke.zone, "deleting settled documents");
        metadata::run(&spoke, doing, &unsettled::remove(&LinkName::downlink(zone), &documents)).await?;
        metadata::run(&hub, doing, &unsettled::remove(&LinkName::uplink(zone), &documents)).await?;
        let mut equal = Vec::new();
        for candidate in settled {
            self.spoke.pair.unsettled.remove(&candidate.key);
            if candidate.is_equal {
                self.forget_dropped(candidate, &Direction::BOTH).await?;
                equal.push((spoke.namespace(candidate.key.namespace()), candidate.id.as_raw_bson_ref()));
            } else if candidate.spoke.is_none() {
                self.forget_dropped(candidate, &[Direction::Uplink]).await?;
            }
        }
        // What the hub has as well is not foreign.
        self.spoke.pair.foreign.end(&spoke, &equal).await
    }

    /// Deletes the marks of dropped letters: there is nothing to protect any more.
    async fn forget_dropped(&self, candidate: &Candidate, links: &[Direction]) -> Result<(), Error> {
        let pair = &self.spoke.pair;
        for &direction in links {
            if !pair.evidence(direction, &candidate.key).is_some_and(|letter| letter.is_dropped) {
                continue;
            }
            let (server, link) = match direction {
                Direction::Uplink => (self.source.server.clone(), LinkName::uplink(&self.spoke.zone)),
                Direction::Downlink => (self.destination_server(), LinkName::downlink(&self.spoke.zone)),
            };
            let namespace = server.namespace(candidate.key.namespace());
            let mark = dead_letters::remove_mark(&link, namespace, candidate.id.as_raw_bson_ref());
            metadata::run(&server, "deleting the mark of a dropped letter", &mark).await?;
            pair.evidence_of(direction).remove(&candidate.key);
        }
        Ok(())
    }

    fn zone_of<'d>(&self, document: Option<&'d RawDocument>) -> Option<&'d str> {
        lookup::text(document?, self.source.server.partition_key())
    }

    fn version(&self, document: Option<&RawDocument>) -> Version {
        let zones = self.source.zones();
        match (document, self.zone_of(document)) {
            (None, _) => Version::Absent,
            (_, Some(zone)) if zone == self.spoke.zone.as_str() => Version::Own,
            (_, Some(zone)) if zones.iter().any(|held| held.as_str() == zone) => Version::Watched,
            _ => Version::Elsewhere,
        }
    }
}

/// A document that waits for its decision.
type Waiting = (Key, RawBson, Stage);

/// Reads documents, and leaves only those in the list that fit into memory together.
async fn read_fitting(server: &Server, documents: &mut Vec<Waiting>) -> Result<Snapshot, Error> {
    loop {
        let wanted: Wanted<'_> = documents.iter().map(|(key, id, _)| (key.clone(), id.as_raw_bson_ref())).collect();
        match read::fitting_documents(server, &wanted, When::NotBefore(server.now().await?)).await {
            Err(Error::TooMuch { fitting, .. }) => documents.truncate(fitting),
            read => return read,
        }
    }
}

fn hub_name<'l>(link: &'l Link<'_, HubSource>, key: &Key) -> &'l crate::rules::names::Namespace {
    link.source.server.namespace(key.namespace())
}

/// Decided documents, for a dead letter of one that the spoke refuses.
struct Decided<'c>(&'c [Candidate]);

impl Origin for Decided<'_> {
    fn before(&self, _: usize) -> Option<Mark> {
        None
    }

    fn event(&self, event: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        let mut settled = rawdoc! { "operationType": "settle" };
        if let Some(document) = &self.0[event].hub {
            settled.append(bson::raw::cstr!("fullDocument"), document);
        }
        (settled, None)
    }
}
