//! What applications wrote, as they know it.

use bson::Document;

/// The answer to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written,
    /// No answer: the write may have happened.
    Unknown,
}

/// The part of a document that a write determines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Field(&'static str),
    /// Every field of a document that existed.
    Whole,
    /// A document that did not exist.
    New,
}

/// One write of one document by an application.
#[derive(Clone, Debug)]
pub struct Written {
    pub phase: usize,
    /// The order of the site's writes.
    pub order: usize,
    /// Milliseconds since the beginning of the programme.
    pub at: u128,
    pub site: &'static str,
    pub document: String,
    /// The value that only this write carries; `None` for a delete.
    pub value: Option<String>,
    pub reach: Reach,
    /// The insert to which the document goes back: the value of the insert.
    pub lineage: String,
    /// The document's zone after the write, if it has one.
    pub zone: Option<String>,
    /// The document before the write.
    pub before: Option<Document>,
    pub outcome: Outcome,
    /// Change events of these servers do not name the changed part, so that the whole document is carried.
    pub travels_whole: bool,
    /// The change, to be printed.
    pub change: String,
}
