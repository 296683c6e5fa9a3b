//! A batch: a transaction of a link, with all necessary reads.
//!
//! Correctness depends on the order of the stages. The comment of each stage gives the reason for the order.

use std::collections::{HashMap, HashSet};

use bson::Timestamp;
use bson::raw::{RawBson, RawDocumentBuf};

use super::aside;
use super::attempt::{Attempt, Brought};
use super::mark::Mark;
use super::order;
use super::work::{Expected, Origin, Work};
use crate::config::Moves;
use crate::link::collections;
use crate::link::foreign::Known;
use crate::link::lifecycle::Link;
use crate::link::shared::Shared;
use crate::link::source::Source;
use crate::mongo::destination::{Open, Sent};
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::Reconciling;
use crate::mongo::metadata::hub_edits::Edit;
use crate::mongo::metadata::{dead_letters, unsettled};
use crate::mongo::read::Wanted;
use crate::mongo::server::Server;
use crate::mongo::{statement, walk};
use crate::rules::inference::Inference;
use crate::rules::key::Key;
use crate::rules::ladder::{Refusal, RefusedStep, Rung};
use crate::rules::names::{Direction, Zone};
use crate::rules::plan::{self, Command};
use crate::rules::step::{Step, Write, fill_in};
use crate::rules::uplink;

/// A part of a work, for a single transaction.
pub(super) struct Batch<'p, 'a> {
    pub(super) steps: &'p [Step<'a>],
    /// The source's cluster time of the work's last change.
    pub(super) last: Timestamp,
    /// The link's mark after the batch; `None`: the mark does not move.
    pub(super) mark: Option<Mark>,
    /// Statements on our own collections.
    pub(super) ours: Vec<RawDocumentBuf>,
    /// Documents about which a decision must be taken.
    pub(super) to_settle: Vec<(Key, RawBson)>,
    /// A guard: a step runs only if the destination has the expected document.
    pub(super) expected: Option<&'p Expected>,
    /// Documents written or removed by inference: what the destination has of them is set aside.
    pub(super) inferred: &'p HashMap<Key, Inference>,
    /// The events behind the steps.
    pub(super) origin: &'p (dyn Origin + Sync),
}

impl<'p, 'a> Batch<'p, 'a> {
    /// A transaction that changes only our own collections, at this mark of the work.
    pub(super) fn without_steps(work: &'p Work<'a>, mark: Option<Mark>, ours: Vec<RawDocumentBuf>) -> Self {
        let (last, expected, inferred, origin) = (work.last, None, &work.inferred, work.origin);
        Self { steps: &[], last, mark, ours, to_settle: work.to_settle.clone(), expected, inferred, origin }
    }
}

/// The results of a committed transaction.
pub(super) struct Committed {
    /// The destination's cluster time of the commit.
    pub(super) at: Timestamp,
    /// The number under which the transaction's hub edits are saved.
    pub(super) number: i64,
    pub(super) written: Written,
    pub(super) brought: Brought,
}

/// Facts to remember about the written documents.
#[derive(Default)]
pub(super) struct Written {
    /// Documents written as of a known cluster time of the source, with their possible zones.
    pub(super) read_at: Vec<(Key, Vec<String>, Timestamp)>,
    /// Hub edits of the spoke's own documents.
    pub(super) edits: Vec<Edit>,
    /// The number of other zones' documents, left out.
    pub(super) foreign: usize,
    /// Documents that differ from the expected documents: their steps were left out.
    pub(super) skipped: Vec<Key>,
    /// Documents about which a decision must be taken.
    pub(super) unsettled: Vec<(Key, RawBson)>,
    /// Documents that the transaction took out of the register of foreign documents.
    pub(super) no_longer_foreign: Vec<Key>,
    /// Documents whose dropped dead letter ended, because the destination has accepted a change of them.
    pub(super) accepted: Vec<Key>,
}

impl<S: Source> Link<'_, S> {
    /// Runs a transaction. After an error, the session's transaction is still open for the caller to abort. Returns
    /// [`Error::Refused`] if the destination refuses a change or the source refuses a partition key, and another error
    /// if a server fails or another process has taken the link over.
    pub(super) async fn transact(&mut self, batch: &Batch<'_, '_>, attempt: &mut Attempt) -> Result<Committed, Error> {
        let Self { source, destination, ahead, ledger, spoke, .. } = self;
        let server = destination.server().clone();
        let field = server.partition_field();
        let read_from = ahead.read_from(batch.last);

        // Read: the documents that the steps need from the source, as of a single cluster time. Before the transaction
        // begins, because a read may take long, and a transaction locks the written documents.
        let (wanted, unstamped) = attempt.wanted(batch.steps);
        if !wanted.is_empty() {
            let read = source.read(&wanted, &unstamped, read_from).await;
            for snapshot in read.map_err(|error| at_step(error, batch.steps))? {
                attempt.has_read(snapshot, batch.steps, field);
            }
            // A missing document was deleted, or its collection was dropped before the read.
            let missing = attempt.missing();
            if !missing.is_empty() {
                let dropped = collections::replaced(source.server(), &destination.checkpoint().collections).await?;
                attempt.has_lost(missing.intersection(&dropped).copied().collect());
            }
        }

        // Settle: each document read replaces the steps that asked for the read.
        let rules = source.rules();
        let (mut steps, mut foreign) =
            fill_in(batch.steps, &attempt.reads, field.as_str(), |document| rules.meaning(document, false));

        if steps.iter().any(|step| attempt.is_refused_and_lost(step)) {
            steps.to_mut().retain(|step| !attempt.is_refused_and_lost(step));
        }

        // Guard: inside the transaction, so that no other write comes between the check and the write. First the zones
        // of documents about to move, because a moved document no longer shows the former zone. A document already in
        // another zone belongs to another owner.
        let movers: Vec<&Step<'_>> = steps.iter().filter(|step| step.write.is_move(field.as_str())).collect();
        let mut open = destination.begin(!movers.is_empty()).await?;
        let moved = moved(&mut open, &movers, &steps).await?;
        if let Some((key, event)) = moved.first.clone().filter(|_| S::DIRECTION == Direction::Uplink)
            && spoke.moves == Moves::Refuse
        {
            return Err(Error::Refused { server: server.name().clone(), refusal: Refusal::of_move(key, event) });
        }
        let mut to_settle = batch.to_settle.clone();
        let mut copies = HashSet::new();
        if !moved.strangers.is_empty() {
            if S::DIRECTION == Direction::Uplink {
                copies = moved.copies(&steps, &spoke.fanout.routes().held_by(&spoke.zone), field.as_str());
                let is_crossing =
                    |step: &Step<'_>| moved.strangers.contains_key(&step.key) && !copies.contains(&step.key);
                to_settle.extend(ids_of(&steps, is_crossing));
            }
            steps.to_mut().retain(|step| !moved.strangers.contains_key(&step.key));
            foreign += moved.strangers.len();
        }
        // A dead letter, or a foreign document, may have come since the work was made: then the hub's document is
        // another one than the spoke's. No foreign one comes until the commit. A copy looks at letters by its policy.
        let is_guarded = S::DIRECTION == Direction::Downlink && (batch.origin.is_live() || batch.origin.is_copy());
        let _turn = if is_guarded { Some(spoke.pair.foreign.wait().await) } else { None };
        if is_guarded {
            let others = || wanted_of(steps.iter().filter(|step| !batch.inferred.contains_key(&step.key)));
            let foreign = spoke.pair.foreign.among(&server, others).await?;
            let has_letter = |step: &Step<'_>| batch.origin.is_live() && spoke.pair.has_another(&step.key);
            let is_another = |step: &Step<'_>| has_letter(step) || foreign.contains(&step.key);
            if steps.iter().any(is_another) {
                to_settle.extend(ids_of(&steps, is_another));
                steps.to_mut().retain(|step| !is_another(step));
            }
        }
        // Then the documents of a comparison: a step for a document changed meanwhile is left out.
        let present = present(&mut open, &steps, batch, attempt.rung).await?;
        let skipped = match batch.expected {
            Some(expected) => unexpected(&steps, &present, expected, field.as_str()),
            None => Vec::new(),
        };
        if !skipped.is_empty() {
            steps.to_mut().retain(|step| !skipped.contains(&step.key));
        }
        // What inference replaces or removes is set aside with the write, so that neither exists without the other.
        let otherwise = batch.origin.is_copy().then_some(Inference::Copy);
        let aside = aside::replaced(&server, &steps, &present, |key| batch.inferred.get(key).copied().or(otherwise));

        // Write: the steps, in the form of the present rung.
        let commands = match attempt.rung {
            Rung::Folded(inserts) => plan::fold(&steps, inserts, statement::insert_would_change),
            Rung::InSequence => plan::sequence(&steps),
        };
        let Sent { missed, unchanged, uncertain } = send(&mut open, &server, &commands, &steps).await?;
        let mut written = Written { foreign, skipped, ..Written::of(&steps, |key| attempt.read_at(key)) };
        let uncertain = may_have_found_nothing(&mut open, &steps, &uncertain, &spoke.pair.foreign).await?;
        written.edits.iter_mut().for_each(|edit| edit.is_uncertain = uncertain.contains(&edit.key));

        // Fill: documents missing at the destination are brought whole from the source. Before the commit, so that no
        // reader of the destination sees the batch without the documents.
        let mut brought = Brought::default();
        if missed > 0 {
            let missing = missing(&mut open, &steps, &moved.movers).await?;
            let filled = fill(&mut open, &server, source, &missing, read_from).await?;
            written.add(filled.0);
            brought = filled.1;
            // A move that found nothing, of a document that is in another zone at the source as well: the hub has
            // deleted or moved the document meanwhile.
            let is_lost =
                |step: &Step<'_>| moved.movers.contains(&step.key) && missing.iter().any(|lost| lost.key == step.key);
            if S::DIRECTION == Direction::Uplink {
                to_settle.extend(ids_of(&steps, is_lost));
            }
        }

        // Order: after the fill, because a document brought whole has the source's order. A retry, a copy and a
        // decision bring documents whole.
        let unchanged = if batch.origin.is_live() { unchanged.as_slice() } else { &[] };
        written.edits.extend(order::arrange(&mut open, &server, source, (&steps, unchanged), read_from).await?);

        // Record: what must be known later goes with the data. Hub edits enter the ledger; documents that the hub has
        // are no longer foreign at the spoke.
        let (number, link, former) = (open.next_number(), open.link().clone(), open.checkpoint().clone());
        let mut checkpoint = former;
        let reads = written.read_at.iter().flat_map(|(_, zones, at)| zones.iter().map(|zone| (zone.as_str(), *at)));
        checkpoint.ahead = ahead.bounds(reads);
        // Another partition key is recorded only with the mark that forgets the copies made with the former one.
        if checkpoint.partition_key.is_none() || matches!(batch.mark, Some(Mark::Replaced(_))) {
            checkpoint.partition_key = Some(server.partition_key().to_owned());
        }
        if let Some(mark) = &batch.mark {
            mark.save_in(&mut checkpoint);
        }
        // Until a comparison after a restore has ended, the old number shows the restore.
        let opposite = spoke.pair.saved(S::DIRECTION.opposite());
        let is_restored = || spoke.pair.asked(S::DIRECTION).is_some_and(Reconciling::is_restored);
        if opposite != 0 && !checkpoint.reconciling.is_restored() && !is_restored() {
            checkpoint.opposite_seq = opposite;
        }
        let mut ours = Vec::new();
        let entered = ledger.as_ref().map(|ledger| ledger.enter(number, &written.edits, &mut checkpoint));
        if let Some(entered) = &entered {
            ours.extend(entered.statements.iter().cloned());
            // A delete that found nothing leaves another zone's document of the same `_id` in the register.
            let done = || steps.iter().filter(|step| !uncertain.contains(&step.key));
            ours.extend(spoke.pair.foreign.forgets(done(), server.namespaces()));
            if !spoke.pair.foreign.is_empty() {
                let held = done().map(|step| &step.key).filter(|key| spoke.pair.foreign.holds(key));
                written.no_longer_foreign = held.cloned().collect();
            }
        }
        ours.extend(batch.ours.iter().cloned());
        ours.extend(aside);
        // A change that the hub has overtaken is set aside at the hub: the hub had moved or deleted the document, or
        // has changed the spoke's version before the version was read.
        if S::DIRECTION == Direction::Uplink && batch.origin.is_live() {
            let mut gone = aside::gone(batch.steps, &attempt.reads, &brought, &source.zones(), field.as_str());
            gone.extend(moved.strangers.into_keys());
            gone.extend(batch.steps.iter().map(|step| &step.key).filter(|key| attempt.read_at(key).is_some()).cloned());
            if !gone.is_empty() {
                let conflicts = spoke.pair.conflicts();
                gone.retain(|key| conflicts.has_hub_edit(key) || copies.contains(key));
            }
            let is_overtaken = |step: &&Step<'_>| gone.contains(&step.key) && !step.removes();
            ours.extend(aside::overtaken(&server, batch.origin, batch.steps.iter().filter(is_overtaken)));
        }
        // A dropped letter protects its document until the destination accepts the whole document. After a change of
        // single fields, the decision finds out whether both sides are equal.
        let Accepted { whole, partial } = accepted(spoke, S::DIRECTION, &steps, &brought);
        for step in whole.iter().filter_map(|key| steps.iter().find(|step| step.key == *key)) {
            ours.push(dead_letters::remove_mark(&link, server.namespace(step.key.namespace()), step.id));
        }
        written.accepted = whole;
        to_settle.extend(ids_of(&steps, |step| partial.contains(&step.key)));
        if !to_settle.is_empty() {
            let named: Vec<_> =
                to_settle.iter().map(|(key, id)| (server.namespace(key.namespace()), id.as_raw_bson_ref())).collect();
            ours.push(unsettled::note(&link, &named));
            written.unsettled = to_settle;
        }

        // Commit: the checkpoint is the last statement. The compare-and-swap fails if another process has the link.
        let at = open.commit(&ours, &checkpoint).await?;
        destination.committed(checkpoint);
        spoke.pair.has_saved(S::DIRECTION, destination.sequence());
        if let (Some(ledger), Some(entered)) = (ledger.as_mut(), &entered) {
            ledger.committed(number, entered);
        }
        Ok(Committed { at, number, written, brought })
    }
}

/// The documents of these steps, to be read.
fn wanted_of<'s, 'a: 's>(steps: impl Iterator<Item = &'s Step<'a>>) -> Wanted<'a> {
    steps.map(|step| (step.key.clone(), step.id)).collect()
}

/// The documents of these steps, with their `_id`s.
fn ids_of(steps: &[Step<'_>], is_such: impl Fn(&Step<'_>) -> bool) -> Vec<(Key, RawBson)> {
    let such = steps.iter().filter(|step| is_such(step));
    such.map(|step| (step.key.clone(), RawBson::from(step.id))).collect()
}

/// Documents with a dropped dead letter of which the destination has accepted a change.
#[derive(Default)]
struct Accepted {
    /// The whole document.
    whole: Vec<Key>,
    /// Single fields.
    partial: Vec<Key>,
}

fn accepted(spoke: &Shared, direction: Direction, steps: &[Step<'_>], brought: &Brought) -> Accepted {
    let (mut accepted, evidence) = (Accepted::default(), spoke.pair.evidence_of(direction));
    if evidence.is_empty() {
        return accepted;
    }
    let dropped: HashSet<&Key> = steps
        .iter()
        .map(|step| &step.key)
        .filter(|key| evidence.get(*key).is_some_and(|evidence| evidence.is_dropped))
        .collect();
    for key in dropped {
        let last = steps.iter().rev().find(|step| step.key == *key);
        let is_whole = brought.reads.documents.contains_key(key)
            || last.is_some_and(|last| matches!(last.write, Write::Insert(_) | Write::Replace { .. } | Write::Delete));
        if is_whole { &mut accepted.whole } else { &mut accepted.partial }.push(key.clone());
    }
    accepted
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

/// Sends commands made of these steps.
async fn send(open: &mut Open<'_>, server: &Server, commands: &[Command], steps: &[Step<'_>]) -> Result<Sent, Error> {
    let mut sent = Sent::default();
    let (namespaces, field) = (server.namespaces(), server.partition_field());
    for ready in statement::render(commands, steps, namespaces, field, server.line().command_bytes()) {
        let more = open.send(ready, steps).await?;
        sent.missed += more.missed;
        sent.unchanged.extend(more.unchanged);
        sent.uncertain.extend(more.uncertain);
    }
    Ok(sent)
}

/// The documents whose last step is a delete that may have found nothing. `deletes`: the numbers of such deletes. Of
/// registered documents it is looked up, because the register ends with the document.
async fn may_have_found_nothing(
    open: &mut Open<'_>,
    steps: &[Step<'_>],
    deletes: &[usize],
    foreign: &Known,
) -> Result<HashSet<Key>, Error> {
    if deletes.is_empty() {
        return Ok(HashSet::new());
    }
    let last: HashMap<&Key, usize> = steps.iter().enumerate().map(|(number, step)| (&step.key, number)).collect();
    let deletes = deletes.iter().map(|number| (*number, &steps[*number]));
    let deletes: Vec<&Step<'_>> =
        deletes.filter(|(number, step)| last.get(&step.key) == Some(number)).map(|(_, step)| step).collect();
    let registered: Vec<&Step<'_>> = deletes.iter().filter(|step| foreign.may_hold(&step.key)).copied().collect();
    let there = if registered.is_empty() { HashMap::new() } else { zones(open, &registered).await? };
    let may_be = |step: &&&Step<'_>| !foreign.may_hold(&step.key) || there.contains_key(&step.key);
    Ok(deletes.iter().filter(may_be).map(|step| step.key.clone()).collect())
}

/// The present documents that the guard or inference must know. The read is in the transaction: no document can change
/// before the write.
async fn present(
    open: &mut Open<'_>,
    steps: &[Step<'_>],
    batch: &Batch<'_, '_>,
    rung: Rung,
) -> Result<HashMap<Key, RawDocumentBuf>, Error> {
    // The `_id` of a document that a copy inserts may be taken in another zone: a plain insert is refused then.
    let is_plain = |step: &Step<'_>| rung == Rung::FIRST && !statement::insert_would_change(step);
    let may_replace = |step: &Step<'_>| batch.origin.is_copy() && !is_plain(step);
    let is_wanted =
        |step: &&Step<'_>| batch.expected.is_some() || batch.inferred.contains_key(&step.key) || may_replace(step);
    let wanted = wanted_of(steps.iter().filter(is_wanted));
    if wanted.is_empty() { Ok(HashMap::new()) } else { open.documents(&wanted).await }
}

/// The documents of the steps that differ from the expected documents.
fn unexpected(
    steps: &[Step<'_>],
    present: &HashMap<Key, RawDocumentBuf>,
    expected: &Expected,
    partition_key: &str,
) -> Vec<Key> {
    let is_visible = |document: &&RawDocumentBuf| {
        expected.zone.as_ref().is_none_or(|zone| walk::is_in_zone(document, partition_key, zone))
    };
    let bytes = |document: Option<&RawDocumentBuf>| document.map(|document| document.as_bytes().to_vec());
    let is_so = |key: &Key| {
        let expected = expected.documents.get(key).and_then(Option::as_ref);
        bytes(present.get(key).filter(is_visible)) == bytes(expected)
    };
    let mut unexpected: Vec<Key> = steps.iter().map(|step| step.key.clone()).filter(|key| !is_so(key)).collect();
    unexpected.sort();
    unexpected.dedup();
    unexpected
}

/// Documents that steps move out of the named zones.
#[derive(Default)]
struct Moved {
    /// Documents still in a named zone: the move is the link's.
    movers: HashSet<Key>,
    /// Documents already in another zone, with that zone.
    strangers: HashMap<Key, Option<String>>,
    /// The event of the first move that takes a document out of a named zone.
    first: Option<(Key, usize)>,
}

impl Moved {
    /// The strangers of which the spoke holds a copy, changed by an application of the spoke.
    fn copies(&self, steps: &[Step<'_>], held: &[Zone], partition_key: &str) -> HashSet<Key> {
        let changed = steps.iter().filter(|step| {
            let at_hub = self.strangers.get(&step.key).and_then(Option::as_deref);
            at_hub.is_some_and(|zone| uplink::changes_a_copy(step.write.new_zone(partition_key), zone, held))
        });
        changed.map(|step| step.key.clone()).collect()
    }
}

async fn moved(open: &mut Open<'_>, movers: &[&Step<'_>], steps: &[Step<'_>]) -> Result<Moved, Error> {
    let mut moved = Moved::default();
    if movers.is_empty() {
        return Ok(moved);
    }
    let zones = zones(open, movers).await?;
    // A document inserted by the same batch moves, or the destination refuses the insert.
    let inserted: HashSet<&Key> =
        steps.iter().filter(|step| matches!(step.write, Write::Insert(_))).map(|step| &step.key).collect();
    for step in movers {
        match zones.get(&step.key) {
            Some(zone) if !inserted.contains(&step.key) && !is_in_reach(step, zone.as_deref()) => {
                moved.strangers.insert(step.key.clone(), zone.clone());
            }
            is_there => {
                if (is_there.is_some() || inserted.contains(&step.key)) && moved.first.is_none() {
                    moved.first = Some((step.key.clone(), step.event));
                }
                moved.movers.insert(step.key.clone());
            }
        }
    }
    Ok(moved)
}

async fn zones(open: &mut Open<'_>, steps: &[&Step<'_>]) -> Result<HashMap<Key, Option<String>>, Error> {
    Ok(open.zones(&wanted_of(steps.iter().copied())).await?.into_iter().collect())
}

fn is_in_reach(step: &Step<'_>, zone: Option<&str>) -> bool {
    zone.is_some_and(|zone| step.zones.names().any(|name| name == zone))
}

/// The steps without a document in the named zones. The read is in the transaction: no other write can come between.
async fn missing<'a>(open: &mut Open<'_>, steps: &[Step<'a>], movers: &HashSet<Key>) -> Result<Vec<Step<'a>>, Error> {
    let needy: Vec<&Step<'a>> = steps.iter().filter(|step| statement::must_match(step)).collect();
    let zones = zones(open, &needy).await?;
    let is_there = |step: &Step<'a>| {
        zones.get(&step.key).is_some_and(|zone| movers.contains(&step.key) || is_in_reach(step, zone.as_deref()))
    };
    Ok(needy.into_iter().filter(|step| !is_there(step)).cloned().collect())
}

/// Brings missing documents whole, in place of every statement without a matching document.
async fn fill<S: Source>(
    open: &mut Open<'_>,
    server: &Server,
    source: &mut S,
    missing: &[Step<'_>],
    read_from: Timestamp,
) -> Result<(Written, Brought), Error> {
    let wanted = wanted_of(missing.iter());
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
    /// The facts about these steps. `read_at` returns the cluster time of a document's read.
    fn of(steps: &[Step<'_>], read_at: impl Fn(&Key) -> Option<Timestamp>) -> Self {
        let mut written = Self::default();
        for step in steps {
            if let Some(at) = read_at(&step.key) {
                written.read_at.push((step.key.clone(), step.zones.names().map(str::to_owned).collect(), at));
            }
            if let Some(fields) = &step.hub_edit {
                let (key, id, fields) = (step.key.clone(), RawBson::from(step.id), fields.clone());
                written.edits.push(Edit { key, id, fields, is_uncertain: false });
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
