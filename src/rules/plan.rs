//! Packs many steps into few commands.
//!
//! *Folded*: at most one command of each kind per namespace, in the order deletes, updates, inserts. A document's last
//! delete replaces every earlier step of the document. Steps after the delete are kept individually. The net effect
//! equals the steps in order, and a reader of the destination's change stream still sees every change of a document not
//! deleted in the meantime.
//!
//! *In sequence*: exactly the source's order, already accepted by the source's own unique indexes.

use std::collections::HashMap;

use super::key::Key;
use super::step::{Step, Write, Zones};

/// The statements of one server command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    /// Number of the namespace.
    pub(crate) namespace: u16,
    pub(crate) kind: CommandKind,
    /// Indices of the steps. Each step is a statement of the command.
    pub(crate) steps: Vec<usize>,
}

/// Kind of a write command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CommandKind {
    /// `delete`
    Delete,
    /// `update`, with or without `upsert`
    Update,
    /// `insert`
    Insert,
}

/// Command used for inserts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserts {
    /// `insert`: the fastest command, but refuses an existing document.
    Plain,
    /// `update` with `upsert`: accepts an existing document.
    Upserts,
}

/// Folds the steps into few commands with the same net effect. `needs_update` selects documents that `insert` would not
/// store unchanged.
///
/// A delete may look for the document in a zone reached only through earlier steps. Dropping the earlier steps would
/// then hide the document from the delete, so the commands follow [`sequence`] instead.
pub(crate) fn fold(steps: &[Step<'_>], inserts: Inserts, needs_update: impl Fn(&Step<'_>) -> bool) -> Vec<Command> {
    if has_delete_elsewhere(steps) {
        return sequence(steps);
    }
    let mut kept = KeptSteps::default();
    for (index, step) in sent(steps) {
        kept.add(index, step);
    }
    let mut commands: Vec<Command> = Vec::new();
    for (index, step) in sent(steps) {
        let Some(alone) = kept.is_kept(index, step) else { continue };
        let plain = alone && inserts == Inserts::Plain && !needs_update(step);
        let kind = kind(&step.write, plain);
        let namespace = step.key.namespace();
        match commands.iter_mut().find(|command| command.namespace == namespace && command.kind == kind) {
            Some(command) => command.steps.push(index),
            None => commands.push(Command { namespace, kind, steps: vec![index] }),
        }
    }
    commands.sort_by_key(|command| (command.namespace, command.kind));
    commands
}

/// True if a delete excludes a zone in which the destination may hold the document before the document's first step.
fn has_delete_elsewhere(steps: &[Step<'_>]) -> bool {
    let is_delete = |step: &Step<'_>| matches!(step.write, Write::Delete);
    let Some(first) = steps.first() else { return false };
    if !steps.iter().any(is_delete) || steps.iter().all(|step| step.zones == first.zones) {
        return false;
    }
    let mut first: HashMap<&Key, &Zones<'_>> = HashMap::new();
    steps.iter().any(|step| !step.zones.include(first.entry(&step.key).or_insert(&step.zones)) && is_delete(step))
}

/// Keeps the order of the steps, with as many commands as necessary.
pub(crate) fn sequence(steps: &[Step<'_>]) -> Vec<Command> {
    let mut commands: Vec<Command> = Vec::new();
    for (index, step) in sent(steps) {
        let (namespace, kind) = (step.key.namespace(), kind(&step.write, false));
        match commands.last_mut().filter(|last| last.namespace == namespace && last.kind == kind) {
            Some(command) => command.steps.push(index),
            None => commands.push(Command { namespace, kind, steps: vec![index] }),
        }
    }
    commands
}

/// The steps of which commands are made, with their indices. The order of fields comes after all of them.
fn sent<'s, 'a>(steps: &'s [Step<'a>]) -> impl Iterator<Item = (usize, &'s Step<'a>)> {
    steps.iter().enumerate().filter(|(_, step)| !matches!(step.write, Write::Reorder(_)))
}

fn kind(write: &Write<'_>, plain: bool) -> CommandKind {
    match write {
        Write::Delete => CommandKind::Delete,
        Write::Insert(_) if plain => CommandKind::Insert,
        _ => CommandKind::Update,
    }
}

/// Remaining steps by document.
#[derive(Default)]
struct KeptSteps {
    chains: HashMap<Key, Chain>,
}

struct Chain {
    /// Index of the last delete.
    delete: Option<usize>,
    /// Index of the first step after the delete.
    first: Option<usize>,
    /// Number of steps after the delete.
    after: usize,
}

impl KeptSteps {
    fn add(&mut self, index: usize, step: &Step<'_>) {
        let fresh = || Chain { delete: None, first: None, after: 0 };
        let chain = match self.chains.get_mut(&step.key) {
            Some(chain) => chain,
            None => self.chains.entry(step.key.clone()).or_insert_with(fresh),
        };
        if matches!(step.write, Write::Delete) {
            *chain = Chain { delete: Some(index), ..fresh() };
        } else {
            chain.first.get_or_insert(index);
            chain.after += 1;
        }
    }

    /// `None` if the step is dropped. Else true if a single step follows the document's last delete.
    fn is_kept(&self, index: usize, step: &Step<'_>) -> Option<bool> {
        let chain = self.chains.get(&step.key)?;
        let kept = chain.delete == Some(index) || chain.first.is_some_and(|first| first <= index);
        kept.then_some(chain.after == 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rules::delta::Delta;
    use bson::raw::RawBsonRef;
    use bson::{RawDocumentBuf, rawdoc};
    use proptest::prelude::*;

    /// A change of a document.
    #[derive(Clone, Copy, Debug)]
    enum Change {
        Insert,
        Replace,
        Update,
        Delete,
    }

    /// Documents by namespace and `_id`. Each holds the index of the last whole write, and of every update since.
    type Places = BTreeMap<(u16, i32), Vec<usize>>;

    fn steps<'a>(changes: &[(u16, i32, Change)], document: &'a RawDocumentBuf) -> Vec<Step<'a>> {
        let write = |change| match change {
            Change::Insert => Write::Insert(document),
            Change::Replace => Write::Replace { document, upsert: true },
            Change::Update => Write::Update(Delta::default()),
            Change::Delete => Write::Delete,
        };
        let step = |(event, &(namespace, id, change)): (usize, &(u16, i32, Change))| {
            let id = RawBsonRef::Int32(id);
            let key = Key::new(namespace, id);
            Step { event, key, id, zones: Zones::One("DFW"), write: write(change), hub_edit: None }
        };
        changes.iter().enumerate().map(step).collect()
    }

    /// Performs a change on the model, like a destination.
    fn perform(model: &mut Places, changes: &[(u16, i32, Change)], index: usize, kind: CommandKind) {
        let (namespace, id, change) = changes[index];
        let place = (namespace, id);
        match change {
            Change::Delete => drop(model.remove(&place)),
            Change::Update => {
                if let Some(document) = model.get_mut(&place) {
                    document.push(index);
                }
            }
            Change::Insert | Change::Replace => {
                let previous = model.insert(place, vec![index]);
                assert!(kind != CommandKind::Insert || previous.is_none(), "an insert of a document that is there");
            }
        }
    }

    /// Keeps the changes possible in a change stream: no insert of an existing document, no update of a missing
    /// document.
    fn possible(changes: Vec<(u16, i32, Change)>, before: &Places) -> Vec<(u16, i32, Change)> {
        let mut there: std::collections::BTreeSet<(u16, i32)> = before.keys().copied().collect();
        changes
            .into_iter()
            .filter(|&(namespace, id, change)| match change {
                Change::Insert => there.insert((namespace, id)),
                Change::Delete => there.remove(&(namespace, id)),
                Change::Update | Change::Replace => there.contains(&(namespace, id)),
            })
            .collect()
    }

    fn change() -> impl Strategy<Value = (u16, i32, Change)> {
        let kind = prop_oneof![Just(Change::Insert), Just(Change::Replace), Just(Change::Update), Just(Change::Delete)];
        (0u16..2, 0i32..4, kind)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_net_effect_equals_the_steps_in_order(
            wanted in prop::collection::vec(change(), 0..40),
            there in prop::collection::btree_set((0u16..2, 0i32..4), 0..6),
        ) {
            let before: Places = there.into_iter().map(|place| (place, vec![usize::MAX])).collect();
            let changes = possible(wanted, &before);
            let document = rawdoc! { "_id": 1 };
            let steps = steps(&changes, &document);
            let mut expected = before.clone();
            for index in 0..changes.len() {
                perform(&mut expected, &changes, index, CommandKind::Update);
            }
            for commands in [fold(&steps, Inserts::Plain, |_| false), fold(&steps, Inserts::Upserts, |_| false), sequence(&steps)] {
                let mut model = before.clone();
                let mut last: BTreeMap<(u16, i32, CommandKind), usize> = BTreeMap::new();
                for command in &commands {
                    for &index in &command.steps {
                        perform(&mut model, &changes, index, command.kind);
                        let (namespace, id, _) = changes[index];
                        let previous = last.insert((namespace, id, command.kind), index);
                        prop_assert!(previous < Some(index), "the order of one document's changes");
                    }
                }
                prop_assert_eq!(&model, &expected);
            }
        }

        #[test]
        fn a_folded_batch_has_at_most_one_command_of_each_kind_per_namespace(
            changes in prop::collection::vec(change(), 0..40),
        ) {
            let document = rawdoc! { "_id": 1 };
            let commands = fold(&steps(&changes, &document), Inserts::Plain, |_| false);
            let order: Vec<_> = commands.iter().map(|command| (command.namespace, command.kind)).collect();
            prop_assert!(order.is_sorted_by(|left, right| left < right));
        }
    }

    #[test]
    fn a_move_into_the_zone_of_a_later_delete_is_kept() {
        let document = rawdoc! { "_id": 1 };
        let changes: Vec<_> = [(1, Change::Replace), (2, Change::Delete), (1, Change::Delete)]
            .into_iter()
            .map(|(id, change)| (0, id, change))
            .collect();
        let mut steps = steps(&changes, &document);
        steps[2].zones = Zones::One("HOU");
        let commands = fold(&steps, Inserts::Plain, |_| false);
        let kept: Vec<_> = commands.iter().map(|command| (command.kind, command.steps.as_slice())).collect();
        assert_eq!(kept, [(CommandKind::Update, [0].as_slice()), (CommandKind::Delete, [1, 2].as_slice())]);
        steps[1].zones = Zones::One("BOS");
        steps[2].zones = Zones::Any(vec!["DFW", "HOU"]);
        assert_eq!(fold(&steps, Inserts::Plain, |_| false).len(), 1, "each is found where it was");
    }

    #[test]
    fn every_change_since_the_last_delete_is_kept() {
        let document = rawdoc! { "_id": 1 };
        let changes = [Change::Update, Change::Delete, Change::Insert, Change::Update, Change::Update];
        let changes: Vec<_> = changes.into_iter().map(|change| (0, 1, change)).collect();
        let commands = fold(&steps(&changes, &document), Inserts::Plain, |_| false);
        let kept: Vec<_> = commands.iter().map(|command| (command.kind, command.steps.as_slice())).collect();
        assert_eq!(kept, [(CommandKind::Delete, [1].as_slice()), (CommandKind::Update, [2, 3, 4].as_slice())]);
    }

    #[test]
    fn a_document_that_insert_would_change_goes_by_update() {
        let document = rawdoc! { "_id": 1 };
        let steps = steps(&[(0, 1, Change::Insert), (0, 2, Change::Insert)], &document);
        let commands = fold(&steps, Inserts::Plain, |step| step.key == Key::new(0, RawBsonRef::Int32(2)));
        let kinds: Vec<_> = commands.iter().map(|command| (command.kind, command.steps.len())).collect();
        assert_eq!(kinds, [(CommandKind::Update, 1), (CommandKind::Insert, 1)]);
    }
}
