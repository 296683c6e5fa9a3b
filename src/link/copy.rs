//! The first copy of a zone of one collection, a page at a time, in the order of `_id`.
//!
//! The stream's start was saved before the first page is read, and pages are read causally after it: what changes before a
//! page is read is in the page, and what changes later is in the stream. The checkpoint holds the last `_id` that is done,
//! so an interrupted copy goes on there. Only what differs is written.

use std::collections::HashMap;

use bson::raw::{RawBson, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{Timestamp, rawdoc};
use tokio_util::sync::CancellationToken;

use super::Stopped;
use super::apply::Applier;
use super::load::{Load, Mark, Origin, Side};
use crate::mongo::checkpoint::{Part, Progress};
use crate::mongo::error::Error;
use crate::mongo::scan::{self, Area, Page};
use crate::mongo::server::Server;
use crate::sync::fields::Fields;
use crate::sync::key::Key;
use crate::sync::names::Zone;
use crate::sync::step::{Read, Step, Write, Zones};

/// What is copied, and from where to where.
pub(super) struct Job<'a> {
    pub(super) source: &'a Server,
    pub(super) destination: &'a Server,
    /// The collection's number.
    pub(super) namespace: u16,
    pub(super) zone: &'a Zone,
    pub(super) policy: Policy,
}

/// What a copy does with what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// A spoke's own zone, up: the owner's documents win, and those without a partition key get one.
    OwnerPushes,
    /// A spoke's own zone, down: only what the owner does not have. These are hub edits.
    OwnerCompletes,
    /// A watched zone, down: the hub's documents win.
    Watch,
}

/// Copies one part, from where the checkpoint says. What is at the destination alone stays there.
///
/// # Errors
/// If a server fails; the copy can then go on from its checkpoint.
pub(super) async fn part(
    applier: &mut Applier,
    side: &mut impl Side,
    job: &Job<'_>,
    stop: &CancellationToken,
) -> Result<Option<Stopped>, Error> {
    let what = Part::new(&job.source.namespaces()[usize::from(job.namespace)], job.zone);
    let resumed = applier.checkpoint().copying.clone().filter(|progress| progress.part == what);
    let start = applier.checkpoint().position.as_ref().expect("it is saved before anything is copied").seen_until();
    tracing::info!(ns = what.namespace, zone = %job.zone, policy = ?job.policy, resumed = resumed.is_some(), "copying");
    let mut after = resumed.map(|progress| progress.after);
    let mut latest = start;
    let mut documents = 0;
    loop {
        if stop.is_cancelled() {
            return Ok(Some(Stopped));
        }
        let area = Area { namespace: job.namespace, zone: job.zone, unstamped: job.policy == Policy::OwnerPushes };
        let page = scan::page(job.source, area, after.as_ref().map(RawBson::as_raw_bson_ref), None, start).await?;
        latest = latest.max(page.at);
        let Some(last) = page.documents().next_back() else {
            // Of a spoke's own zone only the documents that came down are newer at the spoke, and those are known.
            let until = (job.policy != Policy::OwnerCompletes).then_some(latest);
            applier.save(side, Mark::Finished(what.clone(), until)).await?;
            tracing::info!(ns = what.namespace, zone = %job.zone, documents, "copied");
            return Ok(None);
        };
        let last = scan::id_of(job.source, last)?;
        let there = destination_has(job, &page, after.as_ref(), &last).await?;
        let chunk = Chunk { part: &what, documents: page.documents().collect(), after: after.as_ref(), at: page.at };
        documents += chunk.documents.len();
        let load = chunk.load(job, &there, last.clone())?;
        applier.apply(side, load).await?;
        after = Some(last);
    }
}

/// Of the page's documents that the destination has in this zone: whether they are the same there.
async fn destination_has(
    job: &Job<'_>,
    page: &Page,
    after: Option<&RawBson>,
    last: &RawBson,
) -> Result<HashMap<Key, bool>, Error> {
    let mut source: HashMap<Key, &RawDocument> = HashMap::new();
    for document in page.documents() {
        source.insert(key(job.source, job.namespace, document)?, document);
    }
    let mut there = HashMap::new();
    let area = Area { namespace: job.namespace, zone: job.zone, unstamped: false };
    let now = job.destination.now().await?;
    let mut after = after.cloned();
    loop {
        let from = after.as_ref().map(RawBson::as_raw_bson_ref);
        let page = scan::page(job.destination, area, from, Some(last.as_raw_bson_ref()), now).await?;
        let Some(end) = page.documents().next_back() else { return Ok(there) };
        for document in page.documents() {
            let key = key(job.destination, job.namespace, document)?;
            if let Some(ours) = source.get(&key) {
                there.insert(key, ours.as_bytes() == document.as_bytes());
            }
        }
        after = Some(scan::id_of(job.destination, end)?);
    }
}

/// Documents that are copied together.
struct Chunk<'a> {
    part: &'a Part,
    documents: Vec<&'a RawDocument>,
    after: Option<&'a RawBson>,
    at: Timestamp,
}

impl<'a> Chunk<'a> {
    fn load(&'a self, job: &'a Job<'_>, there: &HashMap<Key, bool>, last: RawBson) -> Result<Load<'a>, Error> {
        let mut steps = Vec::new();
        for (number, document) in self.documents.iter().copied().enumerate() {
            let key = key(job.source, job.namespace, document)?;
            let Some(write) = write(job, document, there.get(&key).copied()) else { continue };
            let id = id(job.source, document)?;
            let hub_edit = (job.policy == Policy::OwnerCompletes).then_some(Fields::All);
            steps.push(Step { event: number, key, id, zones: Zones::One(job.zone.as_str()), write, hub_edit });
        }
        let read_at = match job.policy {
            Policy::OwnerCompletes => steps.iter().map(|step| (step.key.clone(), self.at)).collect(),
            Policy::OwnerPushes | Policy::Watch => HashMap::new(),
        };
        Ok(Load {
            steps,
            origin: self,
            end: Mark::Copied(Progress { part: self.part.clone(), after: last }),
            last: self.at,
            read_at,
            changes: self.documents.len(),
            foreign: 0,
        })
    }
}

impl Origin for Chunk<'_> {
    fn before(&self, event: usize) -> Option<Mark> {
        let previous = match event.checked_sub(1) {
            Some(previous) => self.documents[previous].get("_id").ok().flatten().map(RawBson::from),
            None => self.after.cloned(),
        };
        Some(Mark::Copied(Progress { part: self.part.clone(), after: previous? }))
    }

    fn event(&self, event: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        let mut copied = rawdoc! { "operationType": "initial_sync" };
        copied.append(cstr!("fullDocument"), self.documents[event]);
        (copied, None)
    }
}

/// What is written for a document, if the destination has the same one, has another one, or has none.
fn write<'a>(job: &Job<'_>, document: &'a RawDocument, same: Option<bool>) -> Option<Write<'a>> {
    let stamped = document.get(job.source.partition_key()).is_ok_and(|value| value.is_some());
    match (same, job.policy) {
        (_, Policy::OwnerPushes) if !stamped => {
            Some(Write::Read(Read::Stamp { fresh: same.is_none(), document: Some(document) }))
        }
        (None, _) => Some(Write::Insert(document)),
        (Some(false), Policy::OwnerPushes | Policy::Watch) => Some(Write::Replace { document, upsert: true }),
        (Some(_), _) => None,
    }
}

fn id<'a>(server: &Server, document: &'a RawDocument) -> Result<RawBsonRef<'a>, Error> {
    let id = document.get("_id").map_err(|error| server.malformed(error))?;
    id.ok_or_else(|| server.unsuitable("it gave a document without _id"))
}

fn key(server: &Server, namespace: u16, document: &RawDocument) -> Result<Key, Error> {
    Ok(Key::new(namespace, id(server, document)?))
}
