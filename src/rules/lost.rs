//! Refused changes that their document has lost: a link has replaced or removed the spoke's document since, and the
//! spoke's application has not overwritten them itself. They are set aside when the dead letter ends.

use bson::raw::{RawBsonRef, RawDocument};

/// The changes, as events in the spoke's order, of which the present document lacks something that no later change of
/// the spoke has overwritten: a link has replaced or removed the document since. `None`: there is no document.
pub(crate) fn lost<'e, E: AsRef<RawDocument>>(present: Option<&RawDocument>, events: &'e [E]) -> Vec<&'e RawDocument> {
    let mut later = Later::default();
    let mut lost = Vec::new();
    for event in events.iter().rev().map(AsRef::as_ref) {
        let change = inside(event);
        if !later.is_whole && !is_there(present, change, &later) {
            lost.push(event);
        }
        later.add(change);
    }
    lost.reverse();
    lost
}

/// What later changes have written.
#[derive(Default)]
struct Later<'e> {
    /// The whole document.
    is_whole: bool,
    /// Fields, by dotted paths.
    paths: Vec<&'e str>,
}

impl<'e> Later<'e> {
    fn add(&mut self, event: &'e RawDocument) {
        // Of a large change only the operation is known: it hides no earlier change.
        self.is_whole |= event.get_document("fullDocument").is_ok()
            || event.get_str("operationType").is_ok_and(|kind| kind == "delete");
        let Ok(description) = event.get_document("updateDescription") else { return };
        self.paths.extend(set_by(description).map(|(path, _)| path));
        self.paths.extend(elements(description, "removedFields").filter_map(RawBsonRef::as_str));
    }

    /// True if a later change has written the whole field.
    fn has(&self, path: &str) -> bool {
        self.paths.iter().any(|written| *written == path || is_below(path, written))
    }

    /// True if a later change has written a part of the field.
    fn has_part_of(&self, path: &str) -> bool {
        self.paths.iter().any(|written| is_below(written, path))
    }
}

fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with('.'))
}

/// The event. One that is nested too deeply is kept as bytes.
fn inside(event: &RawDocument) -> &RawDocument {
    let bytes = event.get_binary("bytes").ok();
    bytes.and_then(|binary| RawDocument::from_bytes(binary.bytes).ok()).unwrap_or(event)
}

/// The fields that an update sets, by dotted paths.
fn set_by(description: &RawDocument) -> impl Iterator<Item = (&str, RawBsonRef<'_>)> {
    let set = description.get_document("updatedFields").ok().into_iter().flatten().flatten();
    set.map(|(path, value)| (path.as_str(), value))
}

fn elements<'d>(document: &'d RawDocument, name: &str) -> impl Iterator<Item = RawBsonRef<'d>> + use<'d> {
    document.get_array(name).ok().into_iter().flatten().flatten()
}

/// True if the document has everything that the change wrote and that later changes left.
fn is_there(present: Option<&RawDocument>, event: &RawDocument, later: &Later<'_>) -> bool {
    let Ok(description) = event.get_document("updateDescription") else {
        let mut fields = event.get_document("fullDocument").ok().into_iter().flatten().flatten();
        return fields.all(|(name, value)| has(present, name.as_str(), value, later));
    };
    let is_removed = |path| later.has(path) || present.is_some_and(|document| at(document, path).is_none());
    let is_truncated = |array: RawBsonRef<'_>| {
        let array = array.as_document();
        let path = array.and_then(|array| array.get_str("field").ok()).unwrap_or_default();
        let size = array.and_then(|array| usize::try_from(array.get_i32("newSize").ok()?).ok());
        let there = present.and_then(|document| at(document, path)?.as_array());
        let has_size = there.zip(size).is_some_and(|(there, size)| there.into_iter().count() == size);
        later.has(path) || later.has_part_of(path) || has_size
    };
    elements(description, "truncatedArrays").all(is_truncated)
        && set_by(description).all(|(path, value)| has(present, path, value, later))
        && elements(description, "removedFields").filter_map(RawBsonRef::as_str).all(is_removed)
}

/// True if the document has the value at the path, apart from what later changes have written.
fn has(present: Option<&RawDocument>, path: &str, value: RawBsonRef<'_>, later: &Later<'_>) -> bool {
    if later.has(path) || present.and_then(|document| at(document, path)) == Some(value) {
        return true;
    }
    let inner = match value {
        RawBsonRef::Document(inner) => Some(inner),
        // An array is a document with numbers as names.
        RawBsonRef::Array(inner) => RawDocument::from_bytes(inner.as_bytes()).ok(),
        _ => None,
    };
    inner.filter(|_| later.has_part_of(path)).is_some_and(|inner| {
        inner.iter().flatten().all(|(name, value)| has(present, &format!("{path}.{name}"), value, later))
    })
}

/// The value at a dotted path.
fn at<'d>(document: &'d RawDocument, path: &str) -> Option<RawBsonRef<'d>> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let value = document.get(first).ok().flatten()?;
    match (value, rest) {
        (value, None) => Some(value),
        (RawBsonRef::Document(inner), Some(rest)) => at(inner, rest),
        // An array is a document with numbers as names.
        (RawBsonRef::Array(inner), Some(rest)) => at(RawDocument::from_bytes(inner.as_bytes()).ok()?, rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::opaque;
    use bson::raw::RawDocumentBuf;
    use bson::rawdoc;

    fn set(fields: RawDocumentBuf) -> RawDocumentBuf {
        rawdoc! { "operationType": "update", "updateDescription": { "updatedFields": fields } }
    }

    fn removed(path: &str) -> RawDocumentBuf {
        rawdoc! { "operationType": "update", "updateDescription": { "updatedFields": {}, "removedFields": [path] } }
    }

    fn truncated(field: &str, size: i32) -> RawDocumentBuf {
        let description = rawdoc! { "truncatedArrays": [{ "field": field, "newSize": size }] };
        rawdoc! { "operationType": "update", "updateDescription": description }
    }

    fn whole(operation: &str, document: RawDocumentBuf) -> RawDocumentBuf {
        rawdoc! { "operationType": operation, "fullDocument": document }
    }

    fn delete() -> RawDocumentBuf {
        rawdoc! { "operationType": "delete" }
    }

    #[test]
    fn a_change_is_lost_unless_every_part_of_it_is_there() {
        let document = rawdoc! { "_id": 1, "a": 1, "n": { "x": [1, { "y": 2 }] } };
        let table = [
            (whole("replace", document.clone()), false),
            (whole("replace", rawdoc! { "_id": 1, "a": 2 }), true),
            (set(rawdoc! { "a": 1 }), false),
            (set(rawdoc! { "a": 1_i64 }), true),
            (set(rawdoc! { "a": 1, "b": 1 }), true),
            (set(rawdoc! { "n.x.1.y": 2 }), false),
            (set(rawdoc! { "n.x.1.y": 3 }), true),
            (set(rawdoc! { "n.z": 1 }), true),
            (removed("b"), false),
            (removed("n.x"), true),
            (truncated("n.x", 2), false),
            (truncated("n.x", 1), true),
            (truncated("a", 1), true),
            (delete(), false),
        ];
        for (event, is_lost) in table {
            for event in [opaque::in_bytes(&event), event] {
                let events = [event];
                assert_eq!(!lost(Some(&document), &events).is_empty(), is_lost, "{events:?}");
            }
        }
    }

    #[test]
    fn what_the_spoke_has_overwritten_or_deleted_itself_is_not_lost() {
        let present = rawdoc! { "_id": 1, "a": 3, "n": { "x": 1, "y": 2 } };
        let large = rawdoc! { "operationType": "replace" };
        let table: [(&str, &[RawDocumentBuf], &[usize]); 10] = [
            ("the newest value", &[set(rawdoc! { "a": 1 }), set(rawdoc! { "a": 3 })], &[]),
            ("a newer value was lost as well", &[set(rawdoc! { "a": 1 }), set(rawdoc! { "a": 2 })], &[1]),
            ("another field", &[set(rawdoc! { "b": 1 }), set(rawdoc! { "a": 3 })], &[0]),
            ("a part", &[set(rawdoc! { "n": { "x": 0, "y": 2 } }), set(rawdoc! { "n.x": 1 })], &[]),
            ("the other part", &[set(rawdoc! { "n": { "x": 1, "y": 0 } }), set(rawdoc! { "n.x": 1 })], &[0]),
            ("removed again", &[set(rawdoc! { "b": 1 }), removed("b")], &[]),
            ("the field above", &[set(rawdoc! { "n.y": 0 }), set(rawdoc! { "n": { "x": 1, "y": 2 } })], &[]),
            ("a large change hides nothing", &[set(rawdoc! { "b": 1 }), large], &[0]),
            ("an array cut since", &[set(rawdoc! { "b": [1, 2] }), truncated("b", 1)], &[0, 1]),
            ("a replacement", &[set(rawdoc! { "b": 1 }), whole("replace", present.clone())], &[]),
        ];
        for (what, events, expected) in table {
            let expected: Vec<&RawDocument> = expected.iter().map(|&index| &*events[index]).collect();
            assert_eq!(lost(Some(&present), events), expected, "{what}");
        }
    }

    #[test]
    fn every_change_since_the_last_delete_is_lost_with_the_document() {
        let (one, two) = (set(rawdoc! { "a": 1 }), set(rawdoc! { "b": 1 }));
        let table: [(&[RawDocumentBuf], &[usize]); 4] = [
            (std::slice::from_ref(&one), &[0]),
            (&[one.clone(), two.clone()], &[0, 1]),
            (&[one.clone(), delete()], &[]),
            (&[one.clone(), delete(), whole("insert", rawdoc! { "_id": 1, "c": 1 }), two], &[2, 3]),
        ];
        for (events, expected) in table {
            let expected: Vec<&RawDocument> = expected.iter().map(|&index| &*events[index]).collect();
            assert_eq!(lost(None, events), expected);
        }
    }
}
