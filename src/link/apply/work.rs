//! The contract between a link's source and destination: work to apply, and the resulting commits.

use std::collections::HashMap;

use bson::Timestamp;
use bson::raw::{RawBson, RawDocumentBuf};

use super::mark::Mark;
use crate::mongo::metadata::hub_edits::Edit;
use crate::rules::inference::Inference;
use crate::rules::key::Key;
use crate::rules::names::Zone;
use crate::rules::opaque;
use crate::rules::position::Position;
use crate::rules::reply::EventRef;
use crate::rules::step::Step;
use crate::rules::uplink::Cut;

/// Changes to apply at the destination, in one batch or in several.
pub(in crate::link) struct Work<'a> {
    /// The steps, in the source's order.
    pub(in crate::link) steps: Vec<Step<'a>>,
    /// The places at which a batch must end, in ascending order.
    pub(in crate::link) cuts: Vec<Cut>,
    pub(in crate::link) origin: &'a (dyn Origin + Sync),
    /// The link's mark after all steps; `None`: the mark does not move.
    pub(in crate::link) end: Option<Mark>,
    /// The source's cluster time of the last change.
    pub(in crate::link) last: Timestamp,
    /// Documents in the steps that were read at the source, with the cluster time of the read.
    pub(in crate::link) read_at: HashMap<Key, Timestamp>,
    /// The number of changes, with or without a step.
    pub(in crate::link) changes: usize,
    /// The number of changes of other zones' documents, all without a step.
    pub(in crate::link) foreign: usize,
    /// A guard: a step runs only if the destination has the expected document.
    pub(in crate::link) expected: Option<Expected>,
    /// Documents written or removed by inference: what the destination has of them is set aside. A copy need not name
    /// those that it does not expect at the destination.
    pub(in crate::link) inferred: HashMap<Key, Inference>,
    /// Documents about which a decision must be taken, noted in the transaction of the last step.
    pub(in crate::link) to_settle: Vec<(Key, RawBson)>,
    /// Changes of documents whose `_id` cannot be read: each becomes a dead letter.
    pub(in crate::link) unreadable: Vec<Unreadable>,
    /// Statements on our own collections, for the transaction of the last step.
    pub(in crate::link) ours: Vec<RawDocumentBuf>,
    /// A document whose `_id` is taken in another zone is left to the decision about the document, if one waits: the
    /// link knows of every document that the hub never accepted.
    pub(in crate::link) leaves_undecided: bool,
    /// A document whose `_id` is taken in another zone is left alone, like one that is not as expected.
    pub(in crate::link) leaves_taken: bool,
    /// The work is a decision about its documents, so nothing holds them back.
    pub(in crate::link) decides: bool,
}

impl<'a> Work<'a> {
    pub(in crate::link) fn empty(origin: &'a (dyn Origin + Sync)) -> Self {
        Self {
            steps: Vec::new(),
            cuts: Vec::new(),
            origin,
            end: None,
            last: Timestamp { time: 0, increment: 0 },
            read_at: HashMap::new(),
            changes: 0,
            foreign: 0,
            expected: None,
            inferred: HashMap::new(),
            to_settle: Vec::new(),
            unreadable: Vec::new(),
            ours: Vec::new(),
            leaves_undecided: false,
            leaves_taken: false,
            decides: false,
        }
    }
}

/// A change of a document whose `_id` cannot be read.
pub(in crate::link) struct Unreadable {
    /// The number of the event.
    pub(in crate::link) event: usize,
    /// The number of the document's namespace.
    pub(in crate::link) namespace: u16,
    /// The stand-in for the `_id`.
    pub(in crate::link) id: RawBson,
}

impl Unreadable {
    /// `None` for an event of no document.
    pub(in crate::link) fn of(number: usize, event: EventRef<'_>) -> Option<Self> {
        let id = opaque::stand_in(event.document_key()?);
        Some(Self { event: number, namespace: event.namespace(), id })
    }
}

/// The documents expected in a zone of the destination; `None`: no document with the `_id` in the zone.
#[derive(Debug)]
pub(in crate::link) struct Expected {
    /// Documents of other zones count as missing; `None`: no document does.
    pub(in crate::link) zone: Option<Zone>,
    pub(in crate::link) documents: HashMap<Key, Option<RawDocumentBuf>>,
}

/// The events behind the steps of a work, by number.
pub(in crate::link) trait Origin {
    /// The link's mark just before the event. `None`: the mark before the work.
    fn before(&self, event: usize) -> Option<Mark>;

    /// True if the step retries a dead letter, which keeps the event of the first refusal.
    fn is_retry(&self) -> bool {
        false
    }

    /// True if the events are changes by applications, just read from the stream.
    fn is_live(&self) -> bool {
        false
    }

    /// True if the steps are differences found by a copy.
    fn is_copy(&self) -> bool {
        false
    }

    /// The event itself, for a dead letter, and its cluster time at the source if it has one.
    fn event(&self, event: usize) -> (RawDocumentBuf, Option<Timestamp>);
}

/// The origin of work without steps.
pub(in crate::link) struct Nowhere;

impl Origin for Nowhere {
    fn before(&self, _: usize) -> Option<Mark> {
        None
    }

    fn event(&self, _: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        (RawDocumentBuf::new(), None)
    }
}

/// The durable results of a transaction.
#[derive(Debug)]
pub(in crate::link) struct Commit {
    /// The destination's cluster time of the commit.
    pub(in crate::link) at: Timestamp,
    /// The link's new position, if the transaction moved the position.
    pub(in crate::link) position: Option<Position>,
    /// The hub edits of the spoke's own documents in the transaction.
    pub(in crate::link) hub_edits: Vec<Edit>,
    /// The number under which the hub edits are saved.
    pub(in crate::link) number: i64,
    /// The number of changes, with or without a step.
    pub(in crate::link) changes: usize,
    /// The number of changes of other zones' documents, left out.
    pub(in crate::link) foreign: usize,
}
