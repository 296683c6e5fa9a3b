//! What passes between the two halves of a link: a batch on its way into the destination, and what became of it.

use std::collections::{HashMap, HashSet};

use bson::Timestamp;
use bson::raw::{RawDocument, RawDocumentBuf};

use crate::link::uplink::stamp::Unstampable;
use crate::mongo::error::Error;
use crate::mongo::metadata::checkpoints::{CopiedUpTo, Part};
use crate::mongo::read::{Snapshot, Wanted};
use crate::rules::fields::Fields;
use crate::rules::key::Key;
use crate::rules::names::Zone;
use crate::rules::position::Position;
use crate::rules::step::{Meaning, Step};

/// A batch that is to be applied.
pub(crate) struct Load<'a> {
    /// The steps, in the source's order.
    pub(crate) steps: Vec<Step<'a>>,
    /// Where the steps come from.
    pub(crate) origin: &'a (dyn Origin + Sync),
    /// Where the link stands after all of it, if that is somewhere else than before.
    pub(crate) end: Option<Mark>,
    /// The source's time of the last change in it.
    pub(crate) last: Timestamp,
    /// Documents in the steps that were read at the source, and when.
    pub(crate) read_at: HashMap<Key, Timestamp>,
    /// How many changes it covers, with or without a step.
    pub(crate) changes: usize,
    /// How many of them were of another zone's documents.
    pub(crate) foreign: usize,
    /// What the destination must have for a step to be done, where that matters.
    pub(crate) expected: Option<Expected>,
    /// Statements on our own collections that go with it.
    pub(crate) ours: Vec<RawDocumentBuf>,
}

impl<'a> Load<'a> {
    /// A batch without anything.
    pub(crate) fn empty(origin: &'a (dyn Origin + Sync)) -> Self {
        Self {
            steps: Vec::new(),
            origin,
            end: None,
            last: Timestamp { time: 0, increment: 0 },
            read_at: HashMap::new(),
            changes: 0,
            foreign: 0,
            expected: None,
            ours: Vec::new(),
        }
    }
}

/// What the destination must have of some documents, in one zone, for their steps to be done.
#[derive(Debug)]
pub(crate) struct Expected {
    /// The zone.
    pub(crate) zone: Zone,
    /// What it has there; `None`: no such document.
    pub(crate) documents: HashMap<Key, Option<RawDocumentBuf>>,
}

/// Where the steps of a batch come from, by the number of a step's event.
pub(crate) trait Origin {
    /// Where the link stands just before the event. `None`: where it stood before the batch.
    fn before(&self, event: usize) -> Option<Mark>;

    /// The event itself, for a dead letter, and its time at the source if it has one.
    fn event(&self, event: usize) -> (RawDocumentBuf, Option<Timestamp>);
}

/// Where a link stands after a batch, or after a part of one.
#[derive(Clone, Debug)]
pub(crate) enum Mark {
    /// Where it stood before.
    Unmoved,
    /// After this place in the change stream.
    Streamed(Position),
    /// After this document of a copy.
    Copied(CopiedUpTo),
    /// This part is copied.
    Finished {
        /// Which one.
        part: Part,
        /// Until then any document of its zone may be newer than the link's position says.
        until: Option<Timestamp>,
    },
    /// Its place in the change stream was lost: it begins here, and everything must be copied again.
    Restarted(Position),
    /// The collections of these namespaces are others than before: they must be copied again, as at first.
    Replaced(Vec<String>),
    /// An operator wants everything to be compared. It stays where it is in the change stream.
    Compares,
    /// All of that is done.
    Reconciled,
    /// These parts are no longer held, and their documents stay or are gone.
    Left {
        /// Whose documents stay.
        kept: Vec<Part>,
        /// Whose documents are gone.
        purged: Vec<Part>,
    },
}

/// What became durable in one transaction.
#[derive(Debug)]
pub(crate) struct Commit {
    /// The destination's time.
    pub(crate) at: Timestamp,
    /// Where the link stands now, if it moved in a change stream.
    pub(crate) position: Option<Position>,
    /// The hub edits of the spoke's own documents in it.
    pub(crate) hub_edits: Vec<(Key, Fields)>,
    /// The number under which they are saved.
    pub(crate) number: i64,
    /// The note of these is a document of its own.
    pub(crate) has_own_note: bool,
    /// How many changes it covers, with or without a step.
    pub(crate) changes: usize,
    /// How many changes of other zones' documents were left out.
    pub(crate) foreign: usize,
    /// How many changes became dead letters.
    pub(crate) parked: usize,
}

/// The part of a link that differs by its direction.
pub(crate) trait Side {
    /// Reads documents at the source as they were at this time, or later. Those in `unstamped` get their partition key
    /// first, or it is told which of them cannot have one.
    fn read(
        &mut self,
        wanted: &Wanted<'_>,
        unstamped: &HashSet<Key>,
        time: Timestamp,
    ) -> impl Future<Output = Result<Result<Vec<Snapshot>, Unstampable>, Error>> + Send;

    /// What a document that was read means for the destination, which is known to have none of its zone if `absent`.
    fn meaning<'a>(&self, document: Option<&'a RawDocument>, absent: bool) -> Meaning<'a>;

    /// Statements of its own for the transaction of these steps.
    fn statements(&self, steps: &[Step<'_>]) -> Vec<RawDocumentBuf>;

    /// Up to this number notes of hub edits are no longer needed.
    fn outlived_notes(&self) -> Option<i64>;

    /// A transaction is committed.
    fn committed(&mut self, commit: Commit);
}
