//! One batch: one transaction of a link, with whatever must be read for it.
//!
//! The order of the stages is what correctness rests on; each stage says why it stands where it does.

use std::collections::{HashMap, HashSet};

use bson::Timestamp;
use bson::raw::{RawBson, RawDocumentBuf};

use super::attempt::{Attempt, Brought};
use super::mark::Mark;
use super::work::Expected;
use crate::link::lifecycle::Link;
use crate::link::source::Source;
use crate::mongo::destination::Open;
use crate::mongo::error::Error;
use crate::mongo::metadata::hub_edits::Edit;
use crate::mongo::read::Wanted;
use crate::mongo::server::Server;
use crate::mongo::{statement, walk};
use crate::rules::key::Key;
use crate::rules::ladder::{RefusedStep, Rung};
use crate::rules::plan::{self, Command};
use crate::rules::step::{Step, fill_in};

/// A part of a work, for one transaction.
pub(super) struct Batch<'p, 'a> {
    pub(super) steps: &'p [Step<'a>],
    /// The source's cluster time of the work's last change.
    pub(super) last: Timestamp,
    /// The link's mark after the batch; `None`: the mark does not move.
    pub(super) mark: Option<Mark>,
    /// Statements on our own collections.
    pub(super) ours: Vec<RawDocumentBuf>,
    /// A guard: a step runs only if the destination has its document as expected.
    pub(super) expected: Option<&'p Expected>,
}

/// What a committed transaction leaves to be remembered.
pub(super) struct Committed {
    /// The destination's time of the commit.
    pub(super) at: Timestamp,
    /// The number under which the transaction's hub edits are saved.
    pub(super) number: i64,
    pub(super) written: Written,
    pub(super) brought: Brought,
}

/// What was written, beyond the documents themselves.
#[derive(Default)]
pub(super) struct Written {
    /// Documents written as they were at a known cluster time of the source, with the zones they may be in.
    pub(super) read_at: Vec<(Key, Vec<String>, Timestamp)>,
    /// Hub edits of the spoke's own documents.
    pub(super) edits: Vec<Edit>,
    /// The number of another zone's documents, which were left out.
    pub(super) foreign: usize,
    /// Documents that the destination does not have as expected: their steps were left out.
    pub(super) skipped: Vec<Key>,
}

impl<S: Source> Link<'_, S> {
    /// Runs one transaction. After an error, the session's transaction is still open for the caller to abort. Returns
    /// [`Error::Refused`] if the destination refuses a change, or the source refuses a document its partition key; any
    /// other error if a server fails, or another process has taken the link over.
    pub(super) async fn transact(&mut self, batch: &Batch<'_, '_>, attempt: &mut Attempt) -> Result<Committed, Error> {
        let Self { source, destination, ahead, ledger, spoke, .. } = self;
        let server = destination.server().clone();
        let field = server.partition_field();
        let read_from = ahead.read_from(batch.last);

        // Read: documents that the steps need from the source, all at one cluster time. Before the transaction begins,
        // because a read may take long and a transaction locks what it has written.
        let (wanted, unstamped) = attempt.wanted(batch.steps);
        if !wanted.is_empty() {
            let read = source.read(&wanted, &unstamped, read_from).await;
            for snapshot in read.map_err(|error| at_step(error, batch.steps))? {
                attempt.has_read(snapshot, batch.steps, field);
            }
        }

        // Settle: the documents take the place of the steps that asked for them.
        let rules = source.rules();
        let (mut steps, mut foreign) =
            fill_in(batch.steps, &attempt.reads, field.as_str(), |document| rules.meaning(document, false));

        // Guard: inside the transaction, so that no other write comes between the look and the write. First the zones
        // of documents about to move, because after the move nothing shows where a document came from. A document
        // already in another zone belongs to somebody else.
        let movers: Vec<&Step<'_>> = steps.iter().filter(|step| step.write.is_move(field.as_str())).collect();
        let mut open = destination.begin(!movers.is_empty()).await?;
        let moved = moved(&mut open, &movers).await?;
        if !moved.strangers.is_empty() {
            steps.to_mut().retain(|step| !moved.strangers.contains(&step.key));
            foreign += moved.strangers.len();
        }
        // Then documents that a comparison saw: a step made for what is no longer there is left out.
        let skipped = match batch.expected {
            Some(expected) => unexpected(&mut open, &steps, expected, field.as_str()).await?,
            None => Vec::new(),
        };
        if !skipped.is_empty() {
            steps.to_mut().retain(|step| !skipped.contains(&step.key));
        }

        // Write: the steps, in the way of the present rung.
        let commands = match attempt.rung {
            Rung::Folded(inserts) => plan::fold(&steps, inserts, statement::insert_would_change),
            Rung::InSequence => plan::sequence(&steps),
        };
        let missed = send(&mut open, &server, &commands, &steps).await?;
        let mut written = Written { foreign, skipped, ..Written::of(&steps, |key| attempt.read_at(key)) };

        // Fill: documents that a step did not find are brought whole from the source, before the commit, so that no
        // reader of the destination sees the batch without them.
        let mut brought = Brought::default();
        if missed > 0 {
            let missing = missing(&mut open, &steps, &moved.movers).await?;
            let filled = fill(&mut open, &server, source, &missing, read_from).await?;
            written.add(filled.0);
            brought = filled.1;
        }

        // Record: what must be known later goes with the data. Hub edits enter the ledger; documents that the hub has
        // are no longer foreign at the spoke.
        let (number, former) = (open.next_number(), open.checkpoint().clone());
        let mut checkpoint = former;
        let reads = written.read_at.iter().flat_map(|(_, zones, at)| zones.iter().map(|zone| (zone.as_str(), *at)));
        checkpoint.ahead = ahead.bounds(reads);
        if let Some(mark) = &batch.mark {
            mark.save_in(&mut checkpoint);
        }
        let mut ours = Vec::new();
        let entered = ledger.as_ref().map(|ledger| ledger.enter(number, &written.edits, &mut checkpoint));
        if let Some(entered) = &entered {
            ours.extend(entered.statements.iter().cloned());
            ours.extend(spoke.pair.foreign.forgets(&steps, server.namespaces()));
        }
        ours.extend(batch.ours.iter().cloned());

        // Commit: the checkpoint is the last statement. Its compare-and-swap fails if another process has the link.
        let at = open.commit(&ours, &checkpoint).await?;
        destination.committed(checkpoint);
        if let (Some(ledger), Some(entered)) = (ledger.as_mut(), &entered) {
            ledger.committed(number, entered);
        }
        Ok(Committed { at, number, written, brought })
    }
}

/// Names the event of a refusal that names only a document: the document's first step.
fn at_step(mut error: Error, steps: &[Step<'_>]) -> Error {
    if let Error::Refused { refusal, .. } = &mut error
        && let Some(RefusedStep { key, event: event @ None, .. }) = &mut refusal.step
    {
        *event = steps.iter().find(|step| step.key == *key).map(|step| step.event);
    }
    error
}

/// Sends commands made of these steps. Returns the number of statements that found no document.
async fn send(open: &mut Open<'_>, server: &Server, commands: &[Command], steps: &[Step<'_>]) -> Result<usize, Error> {
    let mut missed = 0;
    let (namespaces, field) = (server.namespaces(), server.partition_field());
    for ready in statement::render(commands, steps, namespaces, field, server.line().command_bytes()) {
        missed += open.send(ready, steps).await?;
    }
    Ok(missed)
}

/// The documents that are not as expected. A read within the transaction: no document can change before it is written.
async fn unexpected(
    open: &mut Open<'_>,
    steps: &[Step<'_>],
    expected: &Expected,
    partition_key: &str,
) -> Result<Vec<Key>, Error> {
    let wanted: Wanted<'_> = steps.iter().map(|step| (step.key.clone(), step.id)).collect();
    let mut present = open.documents(&wanted).await?;
    present.retain(|_, document| walk::is_in_zone(document, partition_key, &expected.zone));
    let bytes = |document: Option<&RawDocumentBuf>| document.map(|document| document.as_bytes().to_vec());
    let is_so = |key: &Key| {
        let expected = expected.documents.get(key).and_then(Option::as_ref);
        bytes(present.get(key)) == bytes(expected)
    };
    Ok(wanted.into_keys().filter(|key| !is_so(key)).collect())
}

/// Documents that steps move out of the zones that the steps name.
#[derive(Default)]
struct Moved {
    /// Documents in one of those zones, so the move is the link's.
    movers: HashSet<Key>,
    /// Documents already in another zone.
    strangers: HashSet<Key>,
}

/// Sorts the documents that steps move.
async fn moved(open: &mut Open<'_>, movers: &[&Step<'_>]) -> Result<Moved, Error> {
    let mut moved = Moved::default();
    if movers.is_empty() {
        return Ok(moved);
    }
    let zones = zones(open, movers).await?;
    for step in movers {
        let is_stranger = zones.get(&step.key).is_some_and(|zone| !is_in_reach(step, zone.as_deref()));
        let kind = if is_stranger { &mut moved.strangers } else { &mut moved.movers };
        kind.insert(step.key.clone());
    }
    Ok(moved)
}

async fn zones(open: &mut Open<'_>, steps: &[&Step<'_>]) -> Result<HashMap<Key, Option<String>>, Error> {
    let wanted: Wanted<'_> = steps.iter().map(|step| (step.key.clone(), step.id)).collect();
    Ok(open.zones(&wanted).await?.into_iter().collect())
}

fn is_in_reach(step: &Step<'_>, zone: Option<&str>) -> bool {
    zone.is_some_and(|zone| step.zones.names().any(|name| name == zone))
}

/// The steps whose document is missing in the zones that they name. A read within the transaction, so no other write
/// can come between.
async fn missing<'a>(open: &mut Open<'_>, steps: &[Step<'a>], movers: &HashSet<Key>) -> Result<Vec<Step<'a>>, Error> {
    let needy: Vec<&Step<'a>> = steps.iter().filter(|step| statement::must_match(step)).collect();
    let zones = zones(open, &needy).await?;
    let is_there = |step: &Step<'a>| {
        zones.get(&step.key).is_some_and(|zone| movers.contains(&step.key) || is_in_reach(step, zone.as_deref()))
    };
    Ok(needy.into_iter().filter(|step| !is_there(step)).cloned().collect())
}

/// Brings missing documents whole, which makes up for every statement that did not find them.
async fn fill<S: Source>(
    open: &mut Open<'_>,
    server: &Server,
    source: &mut S,
    missing: &[Step<'_>],
    read_from: Timestamp,
) -> Result<(Written, Brought), Error> {
    let wanted: Wanted<'_> = missing.iter().map(|step| (step.key.clone(), step.id)).collect();
    let mut brought = Brought::default();
    let read = source.read(&wanted, &HashSet::new(), read_from).await;
    for snapshot in read.map_err(|error| at_step(error, missing))? {
        brought.add(snapshot);
    }
    let rules = source.rules();
    let (whole, foreign) =
        fill_in(missing, &brought.reads, server.partition_key(), |document| rules.meaning(document, true));
    send(open, server, &plan::sequence(&whole), &whole).await?;
    let written = Written { foreign, ..Written::of(&whole, |key| brought.read_at.get(key).copied()) };
    Ok((written, brought))
}

impl Written {
    /// What to remember of these steps. `read_at` gives the cluster time of a document's read.
    fn of(steps: &[Step<'_>], read_at: impl Fn(&Key) -> Option<Timestamp>) -> Self {
        let mut written = Self::default();
        for step in steps {
            if let Some(at) = read_at(&step.key) {
                written.read_at.push((step.key.clone(), step.zones.names().map(str::to_owned).collect(), at));
            }
            if let Some(fields) = &step.hub_edit {
                written.edits.push(Edit { key: step.key.clone(), id: RawBson::from(step.id), fields: fields.clone() });
            }
        }
        written
    }

    fn add(&mut self, more: Self) {
        self.read_at.extend(more.read_at);
        self.edits.extend(more.edits);
        self.foreign += more.foreign;
    }
}
