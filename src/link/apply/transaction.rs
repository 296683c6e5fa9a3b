//! One transaction of a link: a part of a batch into the destination, with whatever must be read for it.

use std::collections::{HashMap, HashSet};

use bson::Timestamp;
use bson::raw::{RawBson, RawDocumentBuf};

use crate::link::apply::attempt::{Brought, Progress};
use crate::link::apply::work::{Expected, Mark, Side};
use crate::link::batch_size::Way;
use crate::link::uplink::stamp::Unstampable;
use crate::mongo::destination::{Destination, Open, Sent};
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{Checkpoint, Reconciling};
use crate::mongo::metadata::hub_edits::{Edit, Note};
use crate::mongo::read::Wanted;
use crate::mongo::server::Server;
use crate::mongo::statement;
use crate::mongo::transaction::Refused;
use crate::mongo::walk;
use crate::rules::ahead::Ahead;
use crate::rules::fields::Fields;
use crate::rules::key::Key;
use crate::rules::ladder::{Attempt, Refusal};
use crate::rules::plan::{self, Command};
use crate::rules::step::{Step, Write, settle};

/// A part of a batch.
pub(super) struct Part<'p, 'a> {
    /// Its steps.
    pub(super) steps: &'p [Step<'a>],
    /// The source's time of the batch's last change.
    pub(super) last: Timestamp,
    /// Where the link stands after it, if that is somewhere else than before.
    pub(super) mark: Option<Mark>,
    /// Statements on our own collections.
    pub(super) ours: Vec<RawDocumentBuf>,
    /// What the destination must have for a step to be done, where that matters.
    pub(super) expected: Option<&'p Expected>,
}

/// What became of a transaction.
pub(super) enum Outcome {
    /// It is committed.
    Committed(Committed),
    /// A change is refused. Nothing was applied.
    Refused(RefusedChange),
}

/// What a committed transaction leaves to be remembered.
pub(super) struct Committed {
    /// The destination's time.
    pub(super) at: Timestamp,
    /// The number that it saved its hub edits under.
    pub(super) number: i64,
    pub(super) written: Written,
    pub(super) brought: Brought,
}

/// What was written, beyond the documents themselves.
#[derive(Default)]
pub(super) struct Written {
    /// Documents that were written as they were at a known time of the source, and the zones they may be in.
    pub(super) read_at: Vec<(Key, Vec<String>, Timestamp)>,
    /// Hub edits of the spoke's own documents.
    pub(super) edits: Vec<Edit>,
    /// The note of these is a document of its own.
    pub(super) has_own_note: bool,
    /// How many documents were another zone's, and left out.
    pub(super) foreign: usize,
    /// Documents that the destination does not have as it was expected: their steps were left out.
    pub(super) skipped: Vec<Key>,
}

/// A change that the destination refuses, or whose document the source refuses a partition key.
#[derive(Debug)]
pub(super) struct RefusedChange {
    pub(super) refusal: Refusal,
    pub(super) message: String,
    /// Which one, if the server tells.
    pub(super) step: Option<RefusedStep>,
}

/// Which change is refused.
#[derive(Debug)]
pub(super) struct RefusedStep {
    pub(super) event: usize,
    pub(super) key: Key,
    pub(super) is_delta: bool,
}

impl RefusedChange {
    fn new(refused: Refused, steps: &[Step<'_>]) -> Self {
        let step = refused.number.map(|number| &steps[number]);
        let step = step.map(|step| RefusedStep {
            event: step.event,
            key: step.key.clone(),
            is_delta: matches!(step.write, Write::Update(_)),
        });
        Self { refusal: refused.refusal, message: refused.message, step }
    }

    fn unstampable(unstampable: Unstampable, steps: &[Step<'_>]) -> Self {
        let Unstampable { key, refusal, message } = unstampable;
        let step = key.and_then(|key| steps.iter().find(|step| step.key == key));
        // That it is read whole has brought this up, and so would not help.
        let step = step.map(|step| RefusedStep { event: step.event, key: step.key.clone(), is_delta: false });
        Self { refusal, message, step }
    }
}

/// Runs one transaction. Where it is refused or fails, the session's transaction is left open for the caller to abort.
///
/// # Errors
/// If a server fails, or another process has taken the link over.
pub(super) async fn transact(
    destination: &mut Destination,
    ahead: &Ahead,
    side: &mut impl Side,
    part: &Part<'_, '_>,
    progress: &mut Progress,
) -> Result<Outcome, Error> {
    let server = destination.server().clone();
    let field = server.partition_field();
    let (wanted, unstamped) = progress.wanted(part.steps);
    if !wanted.is_empty() {
        match side.read(&wanted, &unstamped, ahead.read_from(part.last)).await? {
            Ok(snapshots) => {
                snapshots.into_iter().for_each(|snapshot| progress.has_read(snapshot, part.steps, field));
            }
            Err(unstampable) => return Ok(Outcome::Refused(RefusedChange::unstampable(unstampable, part.steps))),
        }
    }
    let (settled, mut foreign) =
        settle(part.steps, &progress.reads, field.as_str(), |_, document| side.meaning(document, false));
    let (number, link, former) =
        (destination.next_number(), destination.link().clone(), destination.checkpoint().clone());
    let movers: Vec<&Step<'_>> = settled.iter().filter(|step| step.write.is_move(field.as_str())).collect();
    let mut open = destination.begin(!movers.is_empty()).await?;
    let moved = moved(&mut open, &movers).await?;
    let mut settled = settled;
    if !moved.strangers.is_empty() {
        settled.to_mut().retain(|step| !moved.strangers.contains(&step.key));
        foreign += moved.strangers.len();
    }
    let skipped = match part.expected {
        Some(expected) => unexpected(&mut open, &settled, expected, field.as_str()).await?,
        None => Vec::new(),
    };
    if !skipped.is_empty() {
        settled.to_mut().retain(|step| !skipped.contains(&step.key));
    }
    let commands = match progress.attempt {
        Attempt::Folded(inserts) => plan::fold(&settled, inserts, statement::insert_would_change),
        Attempt::InSequence => plan::sequence(&settled),
    };
    let missed = match send(&mut open, &server, &commands, &settled).await? {
        Ok(missed) => missed,
        Err(refused) => return Ok(Outcome::Refused(refused)),
    };
    let mut written = Written { foreign, skipped, ..Written::of(&settled, |key| progress.read_at(key)) };
    let mut brought = Brought::default();
    if missed > 0 {
        let missing = missing(&mut open, &settled, &moved.movers).await?;
        match bring(&mut open, &server, side, &missing, ahead.read_from(part.last)).await? {
            Ok((more, documents)) => {
                written.add(more);
                brought = documents;
            }
            Err(refused) => return Ok(Outcome::Refused(refused)),
        }
    }
    let mut ours = side.statements(&settled);
    ours.extend(part.ours.iter().cloned());
    let mut checkpoint = checkpoint_after(former, ahead, part.mark.as_ref(), &written);
    if let Some(up_to) = side.outlived_notes() {
        checkpoint.notes.retain(|note| note.number > up_to);
    }
    if !written.edits.is_empty() {
        let note = Note::new(number, &written.edits);
        written.has_own_note = !note.fits_into(&checkpoint);
        if written.has_own_note { ours.push(note.save(&link)) } else { checkpoint.notes.push(note) }
    }
    let at = open.commit(&ours, &checkpoint).await?;
    destination.committed(checkpoint);
    Ok(Outcome::Committed(Committed { at, number, written, brought }))
}

/// Sends commands that are made of these steps. Tells how many statements found no document.
async fn send(
    open: &mut Open<'_>,
    server: &Server,
    commands: &[Command],
    steps: &[Step<'_>],
) -> Result<Result<usize, RefusedChange>, Error> {
    let mut missed = 0;
    let (namespaces, field) = (server.namespaces(), server.partition_field());
    for ready in statement::render(commands, steps, namespaces, field, Way::to(server).command_bytes()) {
        match open.send(ready).await? {
            Sent::Done(statements) => missed += statements,
            Sent::Refused(refused) => return Ok(Err(RefusedChange::new(refused, steps))),
        }
    }
    Ok(Ok(missed))
}

/// The documents that are no longer as they were when their steps were made. As this is read within the transaction, none can
/// change before it is written.
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

/// Documents that steps move out of the zones that they name.
#[derive(Default)]
struct Moved {
    /// Those that may be moved.
    movers: HashSet<Key>,
    /// Those that are in another zone already, and so are none of this link's.
    strangers: HashSet<Key>,
}

/// Sorts the documents that steps move. Only before they are moved can it be seen where they are.
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

/// The steps that need a document which is not there, in the zones that they name. That is seen within the transaction, so
/// nobody else's write can come between.
async fn missing<'a>(open: &mut Open<'_>, steps: &[Step<'a>], movers: &HashSet<Key>) -> Result<Vec<Step<'a>>, Error> {
    let needy: Vec<&Step<'a>> = steps.iter().filter(|step| statement::must_match(step)).collect();
    let zones = zones(open, &needy).await?;
    let is_there = |step: &Step<'a>| {
        zones.get(&step.key).is_some_and(|zone| movers.contains(&step.key) || is_in_reach(step, zone.as_deref()))
    };
    Ok(needy.into_iter().filter(|step| !is_there(step)).cloned().collect())
}

/// Brings missing documents whole, which makes up for every statement that did not find them.
async fn bring(
    open: &mut Open<'_>,
    server: &Server,
    side: &mut impl Side,
    missing: &[Step<'_>],
    read_from: Timestamp,
) -> Result<Result<(Written, Brought), RefusedChange>, Error> {
    let wanted: Wanted<'_> = missing.iter().map(|step| (step.key.clone(), step.id)).collect();
    let mut brought = Brought::default();
    match side.read(&wanted, &HashSet::new(), read_from).await? {
        Ok(snapshots) => snapshots.into_iter().for_each(|snapshot| brought.add(snapshot)),
        Err(unstampable) => return Ok(Err(RefusedChange::unstampable(unstampable, missing))),
    }
    let meaning = |_: &Key, document| side.meaning(document, true);
    let (whole, foreign) = settle(missing, &brought.reads, server.partition_key(), meaning);
    if let Err(refused) = send(open, server, &plan::sequence(&whole), &whole).await? {
        return Ok(Err(refused));
    }
    let written = Written { foreign, ..Written::of(&whole, |key| brought.read_at.get(key).copied()) };
    Ok(Ok((written, brought)))
}

impl Written {
    /// What is to be remembered of these steps, whose documents were read when `read_at` says.
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

    /// The hub edits without what is only saved.
    pub(super) fn hub_edits(edits: Vec<Edit>) -> Vec<(Key, Fields)> {
        edits.into_iter().map(|edit| (edit.key, edit.fields)).collect()
    }
}

/// The checkpoint that goes with a transaction.
fn checkpoint_after(former: Checkpoint, ahead: &Ahead, mark: Option<&Mark>, written: &Written) -> Checkpoint {
    let mut checkpoint = former;
    let reads = written.read_at.iter().flat_map(|(_, zones, at)| zones.iter().map(|zone| (zone.as_str(), *at)));
    checkpoint.ahead = ahead.bounds(reads);
    match mark {
        Some(Mark::Streamed(position)) => checkpoint.position = Some(position.clone()),
        Some(Mark::Copied(progress)) => checkpoint.copying = Some(progress.clone()),
        Some(Mark::Restarted(position)) => {
            checkpoint.position = Some(position.clone());
            forget_copied(&mut checkpoint);
            checkpoint.reconciling = Reconciling::Lost;
        }
        Some(Mark::Replaced(namespaces)) => {
            let is_replaced = |namespace: &String| namespaces.contains(namespace);
            checkpoint.copied.retain(|part| !is_replaced(&part.namespace));
            checkpoint.left.retain(|part| !is_replaced(&part.namespace));
            checkpoint.collections.retain(|known| !is_replaced(&known.namespace));
            checkpoint.destination_collections.retain(|known| !is_replaced(&known.namespace));
            checkpoint.copying = None;
        }
        Some(Mark::Compares) => {
            forget_copied(&mut checkpoint);
            checkpoint.reconciling = Reconciling::Asked;
        }
        Some(Mark::Reconciled) => checkpoint.reconciling = Reconciling::No,
        Some(Mark::Left { kept, purged }) => {
            checkpoint.copied.retain(|part| !kept.contains(part) && !purged.contains(part));
            checkpoint.left.retain(|part| !kept.contains(part) && !purged.contains(part));
            checkpoint.left.extend(kept.iter().cloned());
            checkpoint.copying = None;
        }
        Some(Mark::Finished { part, until }) => {
            checkpoint.copying = None;
            for parts in [&mut checkpoint.copied, &mut checkpoint.left] {
                parts.retain(|copied| copied != part);
            }
            checkpoint.copied.push(part.clone());
            if let Some(until) = *until {
                let bound = checkpoint.ahead.entry(part.zone.clone()).or_insert(until);
                *bound = until.max(*bound);
            }
        }
        Some(Mark::Unmoved) | None => {}
    }
    checkpoint
}

/// Everything must be copied again. Until it is, it counts as left: what is there was brought by this link. A first copy that
/// was not done begins anew.
fn forget_copied(checkpoint: &mut Checkpoint) {
    checkpoint.copying = None;
    for part in checkpoint.copied.drain(..) {
        if !checkpoint.left.contains(&part) {
            checkpoint.left.push(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mongo::metadata::checkpoints as checkpoint;
    use crate::rules::names::{Namespace, Zone};

    fn part(zone: &str) -> checkpoint::Part {
        let namespace = Namespace { database: "a".to_owned(), collection: "b".to_owned() };
        checkpoint::Part::new(&namespace, &Zone::new(zone))
    }

    #[test]
    fn what_is_compared_again_is_still_known_to_be_ours() {
        let ahead = Ahead::new(HashMap::new(), 10);
        let progress = checkpoint::CopiedUpTo { part: part("BOS"), after: RawBson::Int32(1) };
        let before = Checkpoint {
            copied: vec![part("DFW"), part("HOU")],
            left: vec![part("HOU")],
            copying: Some(progress),
            ..Checkpoint::default()
        };
        let after = |former: Checkpoint, mark| checkpoint_after(former, &ahead, Some(&mark), &Written::default());
        let compares = after(before, Mark::Compares);
        assert_eq!((compares.copied.len(), compares.copying.is_none()), (0, true));
        assert_eq!(compares.left, [part("HOU"), part("DFW")]);
        let again = after(compares, Mark::Finished { part: part("DFW"), until: None });
        assert_eq!((again.copied, again.left), (vec![part("DFW")], vec![part("HOU")]));
    }
}
