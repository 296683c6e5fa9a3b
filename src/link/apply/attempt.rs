//! How far one batch is on its way into the destination, and how it is being tried.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use bson::Timestamp;
use bson::raw::{CStr, RawBsonRef, RawDocumentBuf};

use crate::mongo::metadata::dead_letters::{self, Kept};
use crate::mongo::read::{Snapshot, Wanted};
use crate::rules::key::Key;
use crate::rules::ladder::Attempt;
use crate::rules::names::{Link, Namespace};
use crate::rules::step::{Read, Reads, Step, Write};

/// Documents that were missing at the destination, and were read at the source to be brought whole.
#[derive(Default)]
pub(super) struct Brought {
    pub(super) reads: Reads,
    /// The source's time of each of them.
    pub(super) read_at: HashMap<Key, Timestamp>,
}

impl Brought {
    pub(super) fn add(&mut self, snapshot: Snapshot) {
        for key in snapshot.documents.keys() {
            self.read_at.insert(key.clone(), snapshot.at);
            self.reads.whole.insert(key.clone());
        }
        self.reads.documents.extend(snapshot.documents);
    }
}

/// How far a batch is. It begins with all of it, in the fastest way.
pub(super) struct Progress {
    /// How the steps are sent.
    pub(super) attempt: Attempt,
    /// Which steps are being tried. What is before them is done.
    from: usize,
    to: Option<usize>,
    /// What was read at the source for this batch.
    pub(super) reads: Reads,
    read_at: HashMap<Key, Timestamp>,
    /// Documents that must be read although their steps do not say so.
    refused: HashSet<Key>,
}

impl Progress {
    pub(super) fn new(read_at: HashMap<Key, Timestamp>) -> Self {
        Self { attempt: Attempt::FIRST, from: 0, to: None, reads: Reads::default(), read_at, refused: HashSet::new() }
    }

    /// The steps that are being tried, of so many.
    pub(super) fn part(&self, steps: usize) -> Range<usize> {
        self.from..self.to.unwrap_or(steps)
    }

    /// Tries only the steps before this one.
    pub(super) fn stop_before(&mut self, step: usize) {
        self.to = Some(step);
    }

    /// The steps before this one are done; tries all others.
    pub(super) fn go_on_from(&mut self, step: usize) {
        self.from = step;
        self.to = None;
    }

    /// The destination refuses the shape of this document's change.
    pub(super) fn refuse(&mut self, key: Key) {
        self.refused.insert(key);
    }

    /// What these steps need to be read, beyond what was read already; and which of that needs its partition key first.
    pub(super) fn wanted<'a>(&mut self, steps: &[Step<'a>]) -> (Wanted<'a>, HashSet<Key>) {
        let mut wanted = Wanted::new();
        let mut unstamped = HashSet::new();
        for step in steps {
            let reason = match &step.write {
                Write::Read(reason) => *reason,
                _ if self.refused.contains(&step.key) => Read::Whole,
                _ => continue,
            };
            if reason != Read::Order {
                self.reads.whole.insert(step.key.clone());
            }
            if matches!(reason, Read::Stamp { .. }) {
                unstamped.insert(step.key.clone());
            }
            if !self.reads.documents.contains_key(&step.key) {
                wanted.insert(step.key.clone(), step.id);
            }
        }
        (wanted, unstamped)
    }

    /// These documents were brought whole beyond what the steps say. What the batch has of them later on must not bring back what is
    /// older.
    pub(super) fn has_brought(&mut self, brought: Brought) {
        self.reads.whole.extend(brought.reads.whole);
        self.reads.documents.extend(brought.reads.documents);
        self.read_at.extend(brought.read_at);
    }

    /// These documents were read for these steps.
    pub(super) fn has_read(&mut self, snapshot: Snapshot, steps: &[Step<'_>], partition_key: &CStr) {
        for (key, document) in &snapshot.documents {
            let last = steps.iter().rev().find(|step| step.key == *key);
            let as_expected = last.is_some_and(|last| last.expects(document.as_deref(), partition_key));
            // What is just as the last event says is no newer than that.
            if self.reads.whole.contains(key) && !as_expected {
                self.read_at.insert(key.clone(), snapshot.at);
            }
        }
        self.reads.documents.extend(snapshot.documents);
    }

    /// How many bytes a document has that was read, on average, if any was.
    pub(super) fn bytes_of_a_read(&self) -> Option<usize> {
        let bytes: usize = self.reads.documents.values().flatten().map(|document| document.as_bytes().len()).sum();
        bytes.checked_div(self.reads.documents.values().flatten().count())
    }

    /// The source's time of which a document is written, if it is newer than its last change in the batch.
    pub(super) fn read_at(&self, key: &Key) -> Option<Timestamp> {
        self.read_at.get(key).copied()
    }
}

/// Changes of documents that have a dead letter already: counted there, and not applied.
#[derive(Default)]
pub(super) struct Later<'a> {
    steps: Vec<Step<'a>>,
}

impl<'a> Later<'a> {
    /// Takes the steps of parked documents out of those from `from` on.
    pub(super) fn take(&mut self, steps: &mut Vec<Step<'a>>, from: usize, parked: &HashMap<Key, Kept>) {
        if !parked.is_empty() {
            self.steps.extend(steps.extract_if(from.., |step| parked.contains_key(&step.key)));
        }
    }

    /// The statement that counts them, if there are any.
    pub(super) fn statement(&self, link: &Link, namespaces: &[Namespace]) -> Option<RawDocumentBuf> {
        let mut counts: BTreeMap<&Key, (RawBsonRef<'_>, i64)> = BTreeMap::new();
        for step in &self.steps {
            counts.entry(&step.key).or_insert((step.id, 0)).1 += 1;
        }
        let later =
            counts.into_iter().map(|(key, (id, changes))| (&namespaces[usize::from(key.namespace())], id, changes));
        let later: Vec<_> = later.collect();
        (!later.is_empty()).then(|| dead_letters::count_later(link, &later))
    }
}
