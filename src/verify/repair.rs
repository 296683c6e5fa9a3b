//! Repairs differing documents. The hub's order is the truth, so the spoke receives the hub's version. A document found
//! only at the owner goes up to the hub: data wins over deletion.
//!
//! A repair reads a document at the destination, then waits until the links have carried every earlier change. The
//! write happens in a transaction during which the link stands still, and only if the document is unchanged since the
//! read. A repair therefore never undoes a newer change.

use std::collections::{HashMap, HashSet};

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
use crate::mongo::metadata::set_aside::{self, Aside, Content};
use crate::mongo::read::{self, Wanted, When};
use crate::mongo::repair::{Held, Repairer, zone_value};
use crate::mongo::server::Server;
use crate::mongo::statement;
use crate::mongo::transaction::delays;
use crate::rules::key::Key;
use crate::rules::plan::{self, Inserts};
use crate::rules::size::MOST_COMMAND_BYTES;
use crate::rules::step::{Step, Write, Zones};

/// Documents per repair transaction. The link stands still during the transaction, and a concurrent write to any of the
/// documents aborts it, so larger transactions hold up the link longer and abort more often.
const DOCUMENTS_PER_TRANSACTION: usize = 100;

/// Maximum number of attempts at a document that keeps changing. A later `--repair` can try again.
const ATTEMPTS: u32 = 8;

/// A differing document: key, finding, and the versions seen.
pub(super) type Found = (Key, Finding, Seen);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The spoke receives the hub's version, or loses the document.
    Down,
    /// The hub receives the owner's version.
    Up,
    /// The spoke's document receives a partition key, and the uplink carries the change.
    Stamp,
    /// No repair, for the reason given.
    None(&'static str),
}

/// The rules of one repair.
struct Permission {
    purge_foreign: bool,
    /// The hub's collection is the one that the downlink copied: a document missing there was deleted or moved.
    may_remove: bool,
    /// Documents whose dead letter an operator has dropped: neither side's version may be overwritten or removed.
    dropped: HashSet<Key>,
}

fn way((key, finding, seen): (&Key, &Finding, &Seen), permission: &Permission) -> Way {
    let hub_has = seen.hub.as_ref().is_some_and(|version| version.is_held);
    let Permission { purge_foreign, may_remove, ref dropped } = *permission;
    match finding.kind {
        Kind::Parked => Way::None("the destination refuses the document: see `spokesync dead-letters`"),
        Kind::Foreign if !purge_foreign => {
            Way::None("an application wrote the document there: --purge-foreign removes it")
        }
        Kind::Unstamped if !hub_has => Way::Stamp,
        Kind::Extra if seen.spoke.as_ref().is_some_and(|version| version.is_own) && seen.hub.is_none() => Way::Up,
        _ if dropped.contains(key) => Way::None("its dead letter was dropped: both sides keep what they have"),
        _ if !hub_has && !may_remove => {
            Way::None("the hub's collection was dropped or renamed: `spokesync run` copies it again")
        }
        Kind::Missing | Kind::Different | Kind::Extra | Kind::Foreign | Kind::Unstamped => Way::Down,
    }
}

/// Repairs documents where possible, and records the outcome in the findings.
pub(super) async fn repair(part: &Part<'_>, found: &mut [Found], run: &Run<'_>) -> Result<(), Error> {
    // One method at a time, because all documents of a transaction go to the same server.
    let stop = run.stop;
    let wanted = found.iter().map(|(key, _, seen)| (key.clone(), seen.id.as_raw_bson_ref())).collect();
    let permission = Permission {
        purge_foreign: run.scope.purge_foreign,
        may_remove: part.is_the_same_collection().await?,
        dropped: part.dropped_letters(&wanted).await?,
    };
    let mut done: HashMap<Key, String> = HashMap::new();
    for wanted in [Way::Down, Way::Up, Way::Stamp] {
        let ids = found.iter().filter(|(key, finding, seen)| way((key, finding, seen), &permission) == wanted);
        let ids: Vec<(Key, RawBson)> = ids.map(|(key, _, seen)| (key.clone(), seen.id.clone())).collect();
        for ids in ids.chunks(DOCUMENTS_PER_TRANSACTION) {
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
    // A written document counts as repaired only if another look finds both sides equal.
    let ids: Ids = found
        .iter()
        .filter(|(key, ..)| done.contains_key(key))
        .map(|(key, _, seen)| (key.clone(), seen.id.clone()))
        .collect();
    let left = part.persisting(ids, stop).await?;
    let is_told = left.under_way == 0 && left.unsettled == 0 && !stop.is_cancelled();
    // Every finding receives an outcome, including documents that kept changing or have no method of repair.
    for (key, finding, seen) in found.iter_mut() {
        finding.repair = match (done.remove(key), way((key, finding, seen), &permission)) {
            (Some(what), _) => {
                finding.repaired = is_told && !left.differing.contains_key(key);
                Some(what)
            }
            (None, Way::None(reason)) => Some(reason.to_owned()),
            (None, _) => Some("the document kept changing".to_owned()),
        };
        if let Some(what) = &finding.repair {
            tracing::info!(spoke = finding.spoke, ns = finding.ns, id = %finding.id, kind = finding.kind.as_str(), repair = what, repaired = finding.repaired, "repair");
        }
    }
    Ok(())
}

/// Sets the partition key of the spoke's documents. The update does not belong to a session of ours, so the uplink
/// carries the change like an application's.
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
            Ok(_) => "the document received its partition key".to_owned(),
            Err(error) if error.refusal().is_some() => format!("refused: {error}"),
            Err(error) => return Err(error),
        };
        done.insert(key, what);
    }
    Ok(done)
}

/// Repairs documents at one of the two servers.
struct Mender<'p> {
    part: &'p Part<'p>,
    server: &'p Server,
    repairer: Repairer,
}

enum Outcome {
    /// Documents done, with a description. The others have changed since they were read.
    Done(HashMap<Key, String>),
    /// The destination refuses a document, for the reason given.
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
                let outcome = match self.transaction(&ids, way, stop).await {
                    Err(Error::TooMuch { fitting, .. }) => {
                        self.repairer.give_up().await;
                        let all: Vec<_> = ids.drain().collect();
                        batches.extend(all.chunks(fitting).map(|some| some.iter().cloned().collect::<Ids>()));
                        break;
                    }
                    outcome => outcome?,
                };
                match outcome {
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
                    // The refused document is unknown, so each document gets its own transaction.
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

    /// Runs a transaction, and retries after a conflict with the link.
    async fn transaction(&mut self, ids: &Ids, way: Way, stop: &CancellationToken) -> Result<Outcome, Error> {
        let wanted: Wanted<'_> = ids.iter().map(|(key, id)| (key.clone(), id.as_raw_bson_ref())).collect();
        let now = self.server.now().await?;
        let seen = read::fitting_documents(self.server, &wanted, When::NotBefore(now)).await?;
        // The owner's changes up to the read must be at the hub, and for a repair at the spoke the hub's resulting
        // version must have come down.
        let moment = Moment::now(self.part).await?;
        let (mut wanted, mut left) = (wanted, HashMap::new());
        match wait::pass(self.part, moment, stop).await? {
            Waited::Passed if way == Way::Down => {
                let moment = Moment { hub: self.part.hub.now().await?, ..moment };
                wait::pass(self.part, moment, stop).await?;
            }
            Waited::Passed => {}
            Waited::Stopped => return Ok(Outcome::Done(HashMap::new())),
            // No process carries the links. A document that an application has changed since is left to the decision
            // that `spokesync run` takes once the change is carried.
            Waited::StandsStill => {
                let changed = self.part.changed_at_spoke(ids).await?;
                self.part.leave_to_run(ids, &changed).await?;
                wanted.retain(|key, _| !changed.contains(key));
                let reason = "an application has changed the document: `spokesync run` settles it";
                left.extend(changed.into_iter().map(|key| (key, reason.to_owned())));
            }
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
                Ok(Outcome::Done(mut done)) => {
                    done.extend(left);
                    return Ok(Outcome::Done(done));
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn attempt(
        &mut self,
        wanted: &Wanted<'_>,
        seen: &HashMap<Key, Option<RawDocumentBuf>>,
        way: Way,
    ) -> Result<Outcome, Error> {
        // `hold` locks the checkpoint, so the link cannot commit before this transaction ends.
        let (part, server) = (self.part, self.server);
        let zone_of = |document| Zones::Value(zone_value(document, server.partition_key()));
        let (link, source) = match way {
            Way::Up => (part.uplink(), part.spoke),
            _ => (part.downlink(), part.hub),
        };
        let mut held = self.repairer.hold(&link).await?;
        // A document changed since the read is left for the next attempt.
        let present = held.documents(wanted).await?;
        let bytes = |document: Option<&RawDocumentBuf>| document.map(|document| document.as_bytes().to_vec());
        let is_as_seen = |key: &Key| bytes(present.get(key)) == bytes(seen.get(key).and_then(Option::as_ref));
        let unchanged: Wanted<'_> =
            wanted.iter().filter(|(key, _)| is_as_seen(key)).map(|(key, id)| (key.clone(), *id)).collect();
        // The source at the link's exact position holds everything the link has carried, and nothing newer.
        let place = held.checkpoint().position.as_ref().map(|position| position.moment());
        let place = place.ok_or_else(|| server.unsuitable("a checkpoint has no position"))?;
        let source = read::fitting_documents_at(source, &unchanged, place).await?;
        // Each write is restricted to the zone in which the destination holds the document.
        let (mut steps, mut aside) = (Vec::new(), Vec::new());
        let mut done = HashMap::new();
        for (key, id) in &unchanged {
            let right = source.documents.get(key).and_then(Option::as_ref);
            let there = present.get(key);
            let (write, zones, what) = match (way, right.filter(|document| part.holds(document)), there) {
                (Way::Up, Some(right), None) => {
                    (Write::Insert(right), zone_of(right), "the hub received the owner's document")
                }
                // The owner lost the document, or the hub has a document with the same `_id`, possibly of another zone.
                (Way::Up, ..) => continue,
                (_, Some(right), None) => {
                    (Write::Insert(right), zone_of(right), "the spoke received the hub's document")
                }
                (_, Some(right), Some(there)) if right.as_bytes() == there.as_bytes() => {
                    done.insert(key.clone(), "the document was equal when examined again".to_owned());
                    continue;
                }
                (_, Some(right), Some(there)) => (
                    Write::Replace { document: right, upsert: false },
                    zone_of(there),
                    "the spoke received the hub's version",
                ),
                (_, None, Some(there)) => (Write::Delete, zone_of(there), "the document was removed at the spoke"),
                (_, None, None) => {
                    done.insert(key.clone(), "the document was gone when examined again".to_owned());
                    continue;
                }
            };
            // Whatever a repair removes or replaces at the spoke is kept there.
            if way == Way::Down
                && let Some(there) = there
            {
                let (namespace, content) = (part.spoke.namespace(part.namespace), Content::Document(there));
                aside.push(Aside { namespace, id: *id, content, reason: "removed or replaced by a repair" });
            }
            steps.push(Step { event: steps.len(), key: key.clone(), id: *id, zones, write, hub_edit: None });
            done.insert(key.clone(), what.to_owned());
        }
        // A refusal aborts the transaction, so no document counts as done.
        if let Some(reason) = send(server, &mut held, &steps).await? {
            return Ok(Outcome::Refused(reason));
        }
        // Documents written or removed at the spoke are no longer foreign.
        if way == Way::Down && !steps.is_empty() {
            let namespace = part.spoke.namespace(part.namespace);
            let documents: Vec<_> = steps.iter().map(|step| (namespace, step.id)).collect();
            held.run_own(&foreign::forget(&documents)).await?;
            for statement in set_aside::keep(&aside) {
                held.run_own(&statement).await?;
            }
        }
        held.commit().await?;
        Ok(Outcome::Done(done))
    }
}

/// Sends the steps. Returns the server's reason if a step is refused.
async fn send(server: &Server, held: &mut Held<'_>, steps: &[Step<'_>]) -> Result<Option<String>, Error> {
    let commands = plan::fold(steps, Inserts::Plain, statement::insert_would_change);
    let (namespaces, field) = (server.namespaces(), server.partition_field());
    for ready in statement::render(&commands, steps, namespaces, field, MOST_COMMAND_BYTES) {
        if let Some(reason) = held.send(&ready).await? {
            return Ok(Some(reason));
        }
    }
    Ok(None)
}
