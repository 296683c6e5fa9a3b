//! A step: a change to a single document of the destination.
//!
//! A link converts each change event into at most one step. Some steps first need the present document of the source:
//! [`fill_in`] puts the document into the step after the read.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use bson::raw::{CStr, RawBsonRef, RawDocument, RawDocumentBuf};

use super::delta::Delta;
use super::fields::Fields;
use super::key::Key;
use super::lookup;
use super::names::Zone;

#[derive(Clone, Debug)]
pub(crate) struct Step<'a> {
    /// The number of the step's event among the events applied together. Steps come in ascending order.
    pub(crate) event: usize,
    pub(crate) key: Key,
    pub(crate) id: RawBsonRef<'a>,
    /// The step applies only to a document in these zones of the destination.
    pub(crate) zones: Zones<'a>,
    pub(crate) write: Write<'a>,
    /// At a spoke: the fields touched by a hub edit of the spoke's own document.
    pub(crate) hub_edit: Option<Fields>,
}

impl Step<'_> {
    /// True if the step's event takes the document away.
    pub(crate) fn removes(&self) -> bool {
        matches!(self.write, Write::Delete | Write::Read(Read::Gone))
    }

    /// True if the document read for the step equals the event's document plus the partition key.
    pub(crate) fn expects(&self, read: Option<&RawDocument>, partition_key: &CStr) -> bool {
        let (Write::Read(Read::Stamp { document: Some(expected), .. }), Some(read)) = (&self.write, read) else {
            return false;
        };
        let Some(zone) = lookup::value(read, partition_key.as_str()) else { return false };
        let mut stamped = (*expected).to_owned();
        stamped.append(partition_key, zone);
        stamped.as_bytes() == read.as_bytes()
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Write<'a> {
    /// Inserts a document that the destination should not have.
    Insert(&'a RawDocument),
    Replace {
        document: &'a RawDocument,
        /// Inserts the document if the destination has no document.
        upsert: bool,
    },
    Update(Delta<'a>),
    Delete,
    /// Brings the document's fields into the order of this document's fields, at the end of the batch.
    Reorder(&'a RawDocument),
    /// Unknown until the document is read at the source.
    Read(Read<'a>),
}

impl Write<'_> {
    /// The approximate number of document bytes in the write. A document still to be read counts as `read` bytes.
    pub(crate) fn bytes(&self, read: usize) -> usize {
        match self {
            Self::Insert(document) | Self::Replace { document, .. } | Self::Reorder(document) => {
                document.as_bytes().len()
            }
            Self::Update(delta) => delta.bytes(),
            Self::Read(_) => read,
            Self::Delete => 0,
        }
    }

    /// True if the write takes the document out of the zones of its step.
    pub(crate) fn is_move(&self, partition_key: &str) -> bool {
        match self {
            Self::Update(delta) => delta.value(partition_key).is_some(),
            Self::Replace { upsert, .. } => !upsert,
            _ => false,
        }
    }

    /// The zone of the document after the write, if the write names one.
    pub(crate) fn new_zone(&self, partition_key: &str) -> Option<&str> {
        match self {
            Self::Insert(document) | Self::Replace { document, .. } => lookup::text(document, partition_key),
            Self::Update(delta) => delta.value(partition_key)?.as_str(),
            _ => None,
        }
    }
}

/// The reason to read a document at the source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Read<'a> {
    /// The destination needs the whole document.
    Whole,
    /// The event deletes the document, or takes it out of a zone. If the source has it again, the destination needs the
    /// whole document.
    Gone,
    /// As `Whole`, and the document first needs a partition key.
    Stamp {
        /// The event was an insert, so the destination should not have the document yet.
        fresh: bool,
        /// The document as in the event, without partition key.
        document: Option<&'a RawDocument>,
    },
    /// The destination needs only the order of the fields.
    Order,
}

/// The zones of the documents that a step may touch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Zones<'a> {
    One(&'a str),
    Any(Vec<&'a str>),
    /// This zone, or no zone: the document has no partition key.
    OrNone(&'a str),
    /// The zone named by this value of the partition key, of any BSON type.
    Value(RawBsonRef<'a>),
}

impl<'a> Zones<'a> {
    pub(crate) fn of(zones: &'a [Zone]) -> Self {
        match zones {
            [one] => Self::One(one.as_str()),
            zones => Self::Any(zones.iter().map(Zone::as_str).collect()),
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> + '_ {
        let (one, any) = match self {
            Self::One(zone) | Self::OrNone(zone) => (Some(*zone), [].as_slice()),
            Self::Any(zones) => (None, zones.as_slice()),
            Self::Value(value) => (value.as_str(), [].as_slice()),
        };
        one.into_iter().chain(any.iter().copied())
    }

    /// True if every zone of `others` is among these zones.
    pub(crate) fn include(&self, others: &Self) -> bool {
        self == others || others.names().all(|zone| self.names().any(|name| name == zone))
    }

    fn union(&mut self, more: impl Iterator<Item = &'a str>) {
        let mut names: Vec<&str> = self.names().chain(more).collect();
        names.sort_unstable();
        names.dedup();
        *self = match names.as_slice() {
            [_] if matches!(self, Self::OrNone(_)) => return,
            [one] => Self::One(one),
            _ => Self::Any(names),
        };
    }
}

/// Documents read at the source, all at one cluster time.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// `None` for a document missing at the source.
    pub(crate) documents: HashMap<Key, Option<RawDocumentBuf>>,
    /// Documents that the destination needs whole. Of the others, only the order of the fields is needed.
    pub(crate) whole: HashSet<Key>,
    /// Documents that left the link's zones before they got their partition key: as they were inserted, with the key.
    pub(crate) inserted: HashMap<Key, RawDocumentBuf>,
    /// The numbers of collections that were dropped or renamed at the source: a missing document was not deleted.
    pub(crate) dropped: HashSet<u16>,
}

impl Reads {
    /// True if the document is missing because its collection was dropped.
    pub(crate) fn is_lost(&self, key: &Key) -> bool {
        self.dropped.contains(&key.namespace()) && self.documents.get(key).is_some_and(Option::is_none)
    }
}

/// The meaning of a document read at the source, for the destination.
#[derive(Clone, Debug)]
pub(crate) enum Meaning<'a> {
    Write(Write<'a>),
    /// The document belongs to another zone; nothing is written.
    Foreign,
}

/// A link's rules for documents read whole at the source.
pub(crate) trait Rules: Sync {
    /// The meaning of a document (`None`: missing at the source). `absent`: the document is missing in the link's zones
    /// of the destination.
    fn meaning<'a>(&self, document: Option<&'a RawDocument>, absent: bool) -> Meaning<'a>;
}

/// Puts the documents read into the steps. Returns the steps, and the number of foreign documents left out.
///
/// A document needed whole contains all events of the document: the content replaces the last step, and the earlier
/// steps are dropped. A document that is missing at the source was deleted, unless its collection was dropped.
pub(crate) fn fill_in<'a, 's: 'a>(
    steps: &'s [Step<'a>],
    reads: &'a Reads,
    partition_key: &str,
    meaning: impl Fn(Option<&'a RawDocument>) -> Meaning<'a>,
) -> (Cow<'s, [Step<'a>]>, usize) {
    if reads.documents.is_empty() {
        return (Cow::Borrowed(steps), 0);
    }
    let mut filled = Vec::with_capacity(steps.len());
    let mut foreign = 0;
    // The last step of a document stands for the earlier steps.
    let mut last: HashMap<&Key, usize> = HashMap::new();
    for (index, step) in steps.iter().enumerate() {
        last.insert(&step.key, index);
    }
    let mut chains: HashMap<&Key, Chain<'a>> = HashMap::new();
    for (index, step) in steps.iter().enumerate() {
        let read = reads.documents.get(&step.key);
        match (read, &step.write) {
            // A dropped collection deletes nothing: what the events bring by themselves counts.
            (Some(None), write) if reads.is_lost(&step.key) => match write {
                Write::Read(Read::Gone) => filled.push(Step { write: Write::Delete, ..step.clone() }),
                Write::Read(_) => {}
                _ => filled.push(step.clone()),
            },
            // Needed whole: the chain of the document's steps ends as a single step, in place of the last step.
            (Some(document), _) if reads.whole.contains(&step.key) => {
                let inserted = reads.inserted.get(&step.key);
                let chain = chains.entry(&step.key).or_insert_with(|| Chain::starting_with(step, inserted));
                chain.zones.union(step.zones.names());
                if last[&step.key] != index {
                    continue;
                }
                let document = document.as_deref();
                let write = match meaning(document) {
                    Meaning::Write(write) => write,
                    Meaning::Foreign => {
                        foreign += 1;
                        continue;
                    }
                };
                // A document that leaves the link's zones is replaced only within the zones: elsewhere, a document with
                // the same `_id` belongs to another zone.
                if !matches!(write, Write::Replace { upsert: false, .. }) {
                    chain.zones.union(document.and_then(|document| lookup::text(document, partition_key)).into_iter());
                }
                // A document that the destination never had appears in its first zone, and leaves from there.
                if let (Write::Replace { upsert: false, .. }, Some(document)) = (&write, chain.inserted) {
                    filled.push(Step { zones: chain.zones.clone(), write: Write::Insert(document), ..step.clone() });
                }
                filled.push(chain.end(step, write));
            }
            // Only the order of the fields is needed; a deleted document has no order.
            (Some(Some(document)), Write::Read(_)) => {
                filled.push(Step { write: Write::Reorder(document), ..step.clone() });
            }
            (Some(None), Write::Read(_)) => {}
            _ => filled.push(step.clone()),
        }
    }
    (Cow::Owned(filled), foreign)
}

/// The steps of a document, to be combined into a single step.
struct Chain<'a> {
    zones: Zones<'a>,
    /// The first step inserts, so the destination should not have the document yet.
    fresh: bool,
    /// The document as the first step inserts it.
    inserted: Option<&'a RawDocument>,
}

impl<'a> Chain<'a> {
    fn starting_with(step: &Step<'a>, stamped: Option<&'a RawDocumentBuf>) -> Self {
        let fresh = matches!(step.write, Write::Insert(_) | Write::Read(Read::Stamp { fresh: true, .. }));
        let inserted = match step.write {
            Write::Insert(document) => Some(document),
            _ if fresh => stamped.map(|document| &**document),
            _ => None,
        };
        Self { zones: step.zones.clone(), fresh, inserted }
    }

    fn end(&self, last: &Step<'a>, write: Write<'a>) -> Step<'a> {
        let write = match write {
            Write::Replace { document, upsert: true } if self.fresh => Write::Insert(document),
            write => write,
        };
        let hub_edit = last.hub_edit.as_ref().map(|_| Fields::All);
        Step { zones: self.zones.clone(), write, hub_edit, ..last.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn step<'a>(event: usize, id: &'a RawDocumentBuf, write: Write<'a>) -> Step<'a> {
        let id = id.get("_id").expect("valid").expect("has _id");
        Step { event, key: Key::new(0, id), id, zones: Zones::One("DFW"), write, hub_edit: None }
    }

    fn describe(steps: &[Step<'_>]) -> Vec<(usize, &'static str)> {
        let name = |write: &Write<'_>| match write {
            Write::Insert(_) => "insert",
            Write::Replace { .. } => "replace",
            Write::Update(_) => "update",
            Write::Delete => "delete",
            Write::Reorder(_) => "reorder",
            Write::Read(_) => "read",
        };
        steps.iter().map(|step| (step.event, name(&step.write))).collect()
    }

    fn replace<'a>(document: Option<&'a RawDocument>) -> Meaning<'a> {
        Meaning::Write(document.map_or(Write::Delete, |document| Write::Replace { document, upsert: true }))
    }

    #[test]
    fn a_document_that_was_read_stands_for_all_its_steps() {
        let (one, two) = (rawdoc! { "_id": 1, "_pk": "HOU" }, rawdoc! { "_id": 2 });
        let steps = [
            step(0, &one, Write::Update(Delta::default())),
            step(1, &two, Write::Delete),
            step(2, &one, Write::Read(Read::Whole)),
            step(3, &two, Write::Insert(&two)),
        ];
        let key = steps[0].key.clone();
        let reads =
            Reads { documents: [(key.clone(), Some(one.clone()))].into(), whole: [key].into(), ..Reads::default() };
        let (filled, foreign) = fill_in(&steps, &reads, "_pk", replace);
        assert_eq!(describe(&filled), [(1, "delete"), (2, "replace"), (3, "insert")]);
        assert_eq!(filled[1].zones, Zones::Any(vec!["DFW", "HOU"]));
        assert_eq!(foreign, 0);
    }

    #[test]
    fn a_document_of_another_zone_is_not_looked_for_there() {
        let theirs = rawdoc! { "_id": 1, "_pk": "HOU" };
        let steps = [step(0, &theirs, Write::Read(Read::Whole))];
        let key = steps[0].key.clone();
        let reads =
            Reads { documents: [(key.clone(), Some(theirs.clone()))].into(), whole: [key].into(), ..Reads::default() };
        let leaves = |document: Option<&'_ RawDocument>| match document {
            Some(_) => Meaning::Write(Write::Replace { document: &theirs, upsert: false }),
            None => Meaning::Foreign,
        };
        let (filled, _) = fill_in(&steps, &reads, "_pk", leaves);
        assert_eq!(filled[0].zones, Zones::One("DFW"));
    }

    #[test]
    fn a_fresh_document_stays_an_insert() {
        let one = rawdoc! { "_id": 1, "_pk": "DFW" };
        let steps = [
            step(0, &one, Write::Read(Read::Stamp { fresh: true, document: None })),
            step(1, &one, Write::Read(Read::Whole)),
        ];
        let key = steps[0].key.clone();
        let reads = Reads {
            documents: [(key.clone(), Some(one.clone()))].into(),
            whole: [key.clone()].into(),
            ..Reads::default()
        };
        assert_eq!(describe(&fill_in(&steps, &reads, "_pk", replace).0), [(1, "insert")]);
    }

    #[test]
    fn a_document_that_is_missing_after_a_drop_is_deleted_only_by_an_event_that_says_so() {
        let one = rawdoc! { "_id": 1, "_pk": "DFW" };
        let update = || Write::Update(Delta::default());
        let table = [
            (vec![Write::Read(Read::Whole)], vec![]),
            (vec![Write::Read(Read::Stamp { fresh: true, document: None })], vec![]),
            (vec![Write::Insert(&one), Write::Read(Read::Whole), update()], vec![(0, "insert"), (2, "update")]),
            (vec![update(), Write::Read(Read::Gone)], vec![(0, "update"), (1, "delete")]),
            (vec![Write::Read(Read::Whole), Write::Delete], vec![(1, "delete")]),
        ];
        for (writes, expected) in table {
            let steps: Vec<Step<'_>> =
                writes.into_iter().enumerate().map(|(event, write)| step(event, &one, write)).collect();
            let key = steps[0].key.clone();
            let gone = Reads { documents: [(key.clone(), None)].into(), whole: [key].into(), ..Reads::default() };
            let last = steps.len() - 1;
            assert_eq!(describe(&fill_in(&steps, &gone, "_pk", replace).0), [(last, "delete")]);
            let dropped = Reads { dropped: [0].into(), ..gone };
            assert_eq!(describe(&fill_in(&steps, &dropped, "_pk", replace).0), expected);
        }
    }

    #[test]
    fn a_document_that_was_only_stamped_is_as_expected() {
        let one = rawdoc! { "_id": 1, "a": 1 };
        let step = step(0, &one, Write::Read(Read::Stamp { fresh: true, document: Some(&one) }));
        let key = bson::raw::cstr!("_pk");
        assert!(step.expects(Some(&rawdoc! { "_id": 1, "a": 1, "_pk": "DFW" }), key));
        assert!(!step.expects(Some(&rawdoc! { "_id": 1, "a": 2, "_pk": "DFW" }), key));
        assert!(!step.expects(Some(&rawdoc! { "_id": 1, "_pk": "DFW", "a": 1 }), key));
        assert!(!step.expects(Some(&one), key) && !step.expects(None, key));
    }

    #[test]
    fn where_only_the_order_is_wanted_the_other_steps_stay() {
        let one = rawdoc! { "_id": 1 };
        let steps = [step(0, &one, Write::Update(Delta::default())), step(1, &one, Write::Read(Read::Order))];
        let key = steps[0].key.clone();
        let reads = Reads { documents: [(key.clone(), Some(one.clone()))].into(), ..Reads::default() };
        assert_eq!(describe(&fill_in(&steps, &reads, "_pk", replace).0), [(0, "update"), (1, "reorder")]);
        let gone = Reads { documents: [(key, None)].into(), ..Reads::default() };
        assert_eq!(describe(&fill_in(&steps, &gone, "_pk", replace).0), [(0, "update")]);
    }

    #[test]
    fn a_foreign_document_is_counted_and_not_written() {
        let one = rawdoc! { "_id": 1, "_pk": "HOU" };
        let steps = [step(0, &one, Write::Update(Delta::default()))];
        let key = steps[0].key.clone();
        let reads =
            Reads { documents: [(key.clone(), Some(one.clone()))].into(), whole: [key].into(), ..Reads::default() };
        let (filled, foreign) = fill_in(&steps, &reads, "_pk", |_| Meaning::Foreign);
        assert_eq!((filled.len(), foreign), (0, 1));
    }

    #[test]
    fn a_document_inserted_and_given_away_at_one_time_appears_and_leaves() {
        let (own, given) = (rawdoc! { "_id": 1, "_pk": "DFW" }, rawdoc! { "_id": 1, "_pk": "HOU" });
        let steps = [step(0, &own, Write::Insert(&own)), step(1, &own, Write::Read(Read::Whole))];
        let key = steps[0].key.clone();
        let reads =
            Reads { documents: [(key.clone(), Some(given.clone()))].into(), whole: [key].into(), ..Reads::default() };
        let leaves = |_: Option<&'_ RawDocument>| Meaning::Write(Write::Replace { document: &given, upsert: false });
        let (filled, _) = fill_in(&steps, &reads, "_pk", leaves);
        assert_eq!(describe(&filled), [(1, "insert"), (1, "replace")]);
        assert_eq!(filled[1].zones, Zones::One("DFW"));
    }
}
