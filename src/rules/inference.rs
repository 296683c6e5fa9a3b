//! Inference: a link writes or removes a document although no application has just changed the document. Every version
//! that inference replaces or removes is set aside, in the same transaction.
//!
//! The live change itself is no inference: an application decided about the version before.

use bson::raw::RawDocument;

use super::step::Write;

/// The kind of inference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inference {
    /// A first copy, or a comparison of both sides.
    Copy,
    /// The retry of a dead letter.
    Retry,
    /// The decision about an unsettled document.
    Decision,
    /// A live change of a server that was restored from a backup: the application has not seen the newer version.
    Restored,
    /// A live change of a document of which the destination's own side had a change that was refused, and whose dead
    /// letter an operator has dropped: the application has not seen that change.
    Dropped,
    /// The end of a zone that the spoke no longer watches.
    Purge,
}

impl Inference {
    /// The reason with which the present version is set aside. `None`: the write keeps the version.
    pub(crate) fn reason(self, write: &Write<'_>, present: &RawDocument) -> Option<&'static str> {
        let is_removed = match write {
            Write::Insert(document) | Write::Replace { document, .. } if document.as_bytes() == present.as_bytes() => {
                return None;
            }
            Write::Insert(_) | Write::Replace { .. } => false,
            Write::Delete => true,
            Write::Update(_) | Write::Reorder(_) | Write::Read(_) => return None,
        };
        Some(match (self, is_removed) {
            (Self::Copy, false) => "replaced by a copy",
            (Self::Copy, true) => "missing at the source of a copy",
            (Self::Retry, false) => "replaced by a retry",
            (Self::Retry, true) => "deleted by a retry",
            (Self::Decision, false) => "replaced by the hub's version",
            (Self::Decision, true) => "the hub has deleted it, or moved it to a zone that the spoke does not hold",
            (Self::Restored, false) => "replaced by a change made at a restored server",
            (Self::Restored, true) => "deleted at a restored server",
            (Self::Dropped, false) => "replaced, with a change whose dead letter was dropped",
            (Self::Dropped, true) => "removed, with a change whose dead letter was dropped",
            (Self::Purge, _) => "in a zone that the spoke no longer watches",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::delta::Delta;
    use crate::rules::step::Read;
    use bson::rawdoc;

    #[test]
    fn a_version_is_set_aside_exactly_if_it_is_replaced_by_another_one_or_removed() {
        let (present, other) = (rawdoc! { "_id": 1, "a": 1 }, rawdoc! { "_id": 1, "a": 1.0 });
        let table = [
            (Write::Insert(&present), false),
            (Write::Insert(&other), true),
            (Write::Replace { document: &present, upsert: true }, false),
            (Write::Replace { document: &other, upsert: true }, true),
            (Write::Replace { document: &other, upsert: false }, true),
            (Write::Delete, true),
            (Write::Update(Delta::default()), false),
            (Write::Reorder(&other), false),
            (Write::Read(Read::Whole), false),
        ];
        for (write, is_kept) in table {
            for inference in [Inference::Copy, Inference::Retry, Inference::Decision, Inference::Purge] {
                assert_eq!(inference.reason(&write, &present).is_some(), is_kept, "{inference:?} {write:?}");
            }
        }
    }

    #[test]
    fn the_reason_names_the_inference_and_its_effect() {
        let (present, other) = (rawdoc! { "_id": 1 }, rawdoc! { "_id": 1, "a": 1 });
        let replace = Write::Replace { document: &other, upsert: true };
        assert_eq!(Inference::Retry.reason(&replace, &present), Some("replaced by a retry"));
        assert_eq!(Inference::Copy.reason(&Write::Delete, &present), Some("missing at the source of a copy"));
    }
}
