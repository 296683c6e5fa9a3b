//! Mends documents that differ: the hub's order is the truth, and so the spoke gets what the hub has. What only the owner has goes up:
//! data wins over deletion.
//!
//! Each is written in a transaction in which the link stands still, and only if it still is as it was seen, once all that its
//! owner did to it until then is at the hub. So a repair never undoes a newer change.

use std::collections::HashMap;

use bson::Document;
use bson::doc;
use bson::raw::{RawBson, RawDocumentBuf};
use tokio_util::sync::CancellationToken;

use super::Run;
use super::examine::{Ids, Moment, Seen};
use super::part::Part;
use super::report::{Finding, Kind};
use super::wait::{self, Waited};
use crate::mongo::error::Error;
use crate::mongo::metadata::foreign;
use crate::mongo::read::{self, Wanted, When};
use crate::mongo::repair::{Held, Repairer, zone_value};
use crate::mongo::server::Server;
use crate::mongo::statement;
use crate::mongo::transaction::delays;
use crate::rules::key::Key;
use crate::rules::plan::{self, Inserts};
use crate::rules::step::{Step, Write, Zones};

/// How many documents are mended in one transaction.
const TOGETHER: usize = 100;

/// How often it is tried to mend a document that goes on changing.
const ATTEMPTS: u32 = 8;

/// A document that differs, how that is told, and how it was seen.
pub(super) type Found = (Key, Finding, Seen);

/// How a document is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The spoke gets what the hub has, or loses it.
    Down,
    /// The hub gets what its owner has.
    Up,
    /// The spoke's document gets its partition key, and the uplink sees to the rest.
    Stamp,
    /// Not here.
    None(&'static str),
}

fn way(part: &Part<'_>, finding: &Finding, seen: &Seen, purge_foreign: bool) -> Way {
    let hub_has = seen.hub.as_deref().is_some_and(|document| part.holds(document));
    match finding.kind {
        Kind::Parked => Way::None("it is refused: see `spokesync dead-letters`"),
        Kind::Foreign if !purge_foreign => Way::None("an application wrote it there: --purge-foreign removes it"),
        Kind::Unstamped if !hub_has => Way::Stamp,
        Kind::Extra if part.is_own(seen.spoke.as_deref()) && seen.hub.is_none() => Way::Up,
        Kind::Missing | Kind::Different | Kind::Extra | Kind::Foreign | Kind::Unstamped => Way::Down,
    }
}

/// Mends what can be mended, and notes it in the findings.
pub(super) async fn repair(part: &Part<'_>, found: &mut [Found], run: &Run<'_>) -> Result<(), Error> {
    let (purge_foreign, stop) = (run.scope.purge_foreign, run.stop);
    let mut done: HashMap<Key, String> = HashMap::new();
    for wanted in [Way::Down, Way::Up, Way::Stamp] {
        let ids = found.iter().filter(|(_, finding, seen)| way(part, finding, seen, purge_foreign) == wanted);
        let ids: Vec<(Key, RawBson)> = ids.map(|(key, _, seen)| (key.clone(), seen.id.clone())).collect();
        for ids in ids.chunks(TOGETHER) {
            let ids: Ids = ids.iter().cloned().collect();
            let number = ids.len();
            match wanted {
                Way::Down => done.extend(Mender::new(part, part.spoke).await?.mend(ids, wanted, stop).await?),
                Way::Up => done.extend(Mender::new(part, part.hub).await?.mend(ids, wanted, stop).await?),
                _ => done.extend(stamp(part, ids).await?),
            }
            run.pace.wait(number).await;
            if stop.is_cancelled() {
                return Ok(());
            }
        }
    }
    let ids: Ids = found
        .iter()
        .filter(|(key, ..)| done.contains_key(key))
        .map(|(key, _, seen)| (key.clone(), seen.id.clone()))
        .collect();
    let left = part.persisting(ids, stop).await?;
    let is_told = left.under_way == 0 && left.unsettled == 0 && !stop.is_cancelled();
    for (key, finding, seen) in found.iter_mut() {
        finding.repair = match (done.remove(key), way(part, finding, seen, purge_foreign)) {
            (Some(what), _) => {
                finding.repaired = is_told && !left.differing.contains_key(key);
                Some(what)
            }
            (None, Way::None(reason)) => Some(reason.to_owned()),
            (None, _) => Some("it went on changing".to_owned()),
        };
        if let Some(what) = &finding.repair {
            tracing::info!(spoke = finding.spoke, ns = finding.ns, id = %finding.id, kind = finding.kind.as_str(), repair = what, repaired = finding.repaired, "repair");
        }
    }
    Ok(())
}

/// Gives the spoke's documents their partition key, as an application would.
async fn stamp(part: &Part<'_>, ids: Ids) -> Result<HashMap<Key, String>, Error> {
    let namespace = part.spoke.namespace(part.namespace);
    let (spoke, field) = (part.spoke, part.spoke.partition_key());
    let mut done = HashMap::new();
    for (key, id) in ids {
        let query = bson::rawdoc! { "_id": { "$eq": id } };
        let mut query = Document::try_from(query).map_err(|error| spoke.malformed(error))?;
        query.insert(field, doc! { "$exists": false });
        let set = doc! { "$set": { field: part.own.as_str() } };
        let command = doc! { "update": &namespace.collection, "updates": [{ "q": query, "u": set }] };
        let what = match spoke.run("stamping a document", &spoke.client().database(&namespace.database), command).await
        {
            Ok(_) => "it got its partition key".to_owned(),
            Err(error) if error.refusal().is_some() => format!("refused: {error}"),
            Err(error) => return Err(error),
        };
        done.insert(key, what);
    }
    Ok(done)
}

/// Whoever mends documents at one of the two servers.
struct Mender<'p> {
    part: &'p Part<'p>,
    server: &'p Server,
    repairer: Repairer,
}

/// What became of one transaction.
enum Outcome {
    /// These are done; the others have changed meanwhile.
    Done(HashMap<Key, String>),
    /// The destination refuses one of them.
    Refused(String),
}

impl<'p> Mender<'p> {
    async fn new(part: &'p Part<'_>, server: &'p Server) -> Result<Self, Error> {
        Ok(Self { part, server, repairer: Repairer::new(server, part.own).await? })
    }

    async fn mend(mut self, ids: Ids, way: Way, stop: &CancellationToken) -> Result<HashMap<Key, String>, Error> {
        let mut done = HashMap::new();
        let mut batches = vec![ids];
        while let Some(mut ids) = batches.pop() {
            for _ in 0..ATTEMPTS {
                if ids.is_empty() || stop.is_cancelled() {
                    break;
                }
                match self.transaction(&ids, way, stop).await? {
                    Outcome::Done(some) => {
                        ids.retain(|key, _| !some.contains_key(key));
                        done.extend(some);
                    }
                    Outcome::Refused(reason) if ids.len() == 1 => {
                        let key = ids.keys().next().expect("there is one").clone();
                        tracing::warn!(%reason, "a repair is refused");
                        done.insert(key, format!("refused: {reason}"));
                        break;
                    }
                    // One of them: each by itself.
                    Outcome::Refused(_) => {
                        batches.extend(ids.drain().map(|one| Ids::from([one])));
                        break;
                    }
                }
            }
        }
        self.repairer.end().await?;
        Ok(done)
    }

    /// One transaction, tried again as long as the link keeps coming between.
    async fn transaction(&mut self, ids: &Ids, way: Way, stop: &CancellationToken) -> Result<Outcome, Error> {
        let wanted: Wanted<'_> = ids.iter().map(|(key, id)| (key.clone(), id.as_raw_bson_ref())).collect();
        let now = self.server.now().await?;
        let seen = read::documents(self.server, &wanted, None, When::NotBefore(now)).await?;
        // What the owner did until then must be at the hub, and what the hub had then must have come down.
        let moment = Moment::now(self.part).await?;
        if wait::pass(self.part, moment, stop).await? == Waited::Passed && way == Way::Down {
            let moment = Moment { hub: self.part.hub.now().await?, ..moment };
            wait::pass(self.part, moment, stop).await?;
        }
        let mut delays = delays();
        loop {
            match self.attempt(&wanted, &seen.documents, way).await {
                Err(error) if error.is_again() => {
                    self.repairer.give_up().await;
                    let Some(delay) = delays.next() else { return Err(error) };
                    tokio::time::sleep(delay).await;
                }
                Ok(Outcome::Refused(reason)) => {
                    self.repairer.give_up().await;
                    return Ok(Outcome::Refused(reason));
                }
                result => return result,
            }
        }
    }

    async fn attempt(
        &mut self,
        wanted: &Wanted<'_>,
        seen: &HashMap<Key, Option<RawDocumentBuf>>,
        way: Way,
    ) -> Result<Outcome, Error> {
        let (part, server) = (self.part, self.server);
        let zone_of = |document| Zones::Value(zone_value(document, server.partition_key()));
        let (link, source) = match way {
            Way::Up => (part.uplink(), part.spoke),
            _ => (part.downlink(), part.hub),
        };
        let mut held = self.repairer.hold(&link).await?;
        let present = held.documents(wanted).await?;
        let bytes = |document: Option<&RawDocumentBuf>| document.map(|document| document.as_bytes().to_vec());
        let is_as_seen = |key: &Key| bytes(present.get(key)) == bytes(seen.get(key).and_then(Option::as_ref));
        let unchanged: Wanted<'_> =
            wanted.iter().filter(|(key, _)| is_as_seen(key)).map(|(key, id)| (key.clone(), *id)).collect();
        let place = held.checkpoint().position.as_ref().map(|position| position.moment());
        let place = place.ok_or_else(|| server.unsuitable("a checkpoint has no position"))?;
        let source = read::documents_at(source, &unchanged, place).await?;
        let mut steps = Vec::new();
        let mut done = HashMap::new();
        for (key, id) in &unchanged {
            let right = source.documents.get(key).and_then(Option::as_ref);
            let there = present.get(key);
            let (write, zones, what) = match (way, right.filter(|document| part.holds(document)), there) {
                (Way::Up, Some(right), None) => (Write::Insert(right), zone_of(right), "the hub got it from its owner"),
                // It is there again, or another zone's document has the same `_id`.
                (Way::Up, ..) => continue,
                (_, Some(right), None) => (Write::Insert(right), zone_of(right), "the spoke got it from the hub"),
                (_, Some(right), Some(there)) if right.as_bytes() == there.as_bytes() => {
                    done.insert(key.clone(), "it was equal when it was looked at again".to_owned());
                    continue;
                }
                (_, Some(right), Some(there)) => (
                    Write::Replace { document: right, upsert: false },
                    zone_of(there),
                    "the spoke got what the hub has",
                ),
                (_, None, Some(there)) => (Write::Delete, zone_of(there), "it was removed at the spoke"),
                (_, None, None) => {
                    done.insert(key.clone(), "it was gone when it was looked at again".to_owned());
                    continue;
                }
            };
            steps.push(Step { event: steps.len(), key: key.clone(), id: *id, zones, write, hub_edit: None });
            done.insert(key.clone(), what.to_owned());
        }
        if let Some(reason) = send(server, &mut held, &steps).await? {
            return Ok(Outcome::Refused(reason));
        }
        if way == Way::Down && !steps.is_empty() {
            let namespace = part.spoke.namespace(part.namespace);
            let documents: Vec<_> = steps.iter().map(|step| (namespace, step.id)).collect();
            held.run_own(&foreign::forget(&documents)).await?;
        }
        held.commit().await?;
        Ok(Outcome::Done(done))
    }
}

/// Tells why the server refuses one of the steps, if it does.
async fn send(server: &Server, held: &mut Held<'_>, steps: &[Step<'_>]) -> Result<Option<String>, Error> {
    let commands = plan::fold(steps, Inserts::Plain, statement::insert_would_change);
    let (namespaces, field) = (server.namespaces(), server.partition_field());
    for ready in statement::render(&commands, steps, namespaces, field, statement::MOST_BYTES) {
        if let Some(reason) = held.send(&ready).await? {
            return Ok(Some(reason));
        }
    }
    Ok(None)
}
