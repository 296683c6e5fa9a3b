//! What a server can hold and this program cannot read: an `_id` with text that is no UTF-8, or with a damaged binary.
//! A change of such a document becomes a dead letter under a stand-in for the `_id`. Also events that are nested too
//! deeply to stand in another document.

use bson::raw::{RawBson, RawBsonRef, RawDocument, RawDocumentBuf};
use bson::spec::BinarySubtype;
use bson::{Binary, rawdoc};

/// The subtype of stand-ins, from the range that the BSON specification leaves to applications.
const STAND_IN: BinarySubtype = BinarySubtype::UserDefined(0x81);

/// Most levels below a document that stand in another document. A server accepts about 180 in all.
const LEVELS: usize = 120;

/// True if every part of the `_id` can be read.
pub(crate) fn is_readable(id: RawBsonRef<'_>) -> bool {
    match id {
        RawBsonRef::Document(document) => {
            document.into_iter().all(|element| element.is_ok_and(|(_, value)| is_readable(value)))
        }
        RawBsonRef::Array(array) => array.into_iter().all(|element| element.is_ok_and(is_readable)),
        _ => true,
    }
}

/// True if the document's `_id` can be read.
pub(crate) fn has_readable_id(document: &RawDocument) -> bool {
    document.get("_id").is_ok_and(|id| id.is_some_and(is_readable))
}

/// Stands for the `_id` of a document: the bytes of the event's `documentKey`.
pub(crate) fn stand_in(document_key: &RawDocument) -> RawBson {
    RawBson::Binary(Binary { subtype: STAND_IN, bytes: document_key.as_bytes().to_vec() })
}

/// True for an `_id` that only stands for another one.
pub(crate) fn is_stand_in(id: &RawBson) -> bool {
    matches!(id, RawBson::Binary(binary) if binary.subtype == STAND_IN)
}

/// The event as a value that every server stores: as bytes, if it is nested too deeply.
pub(crate) fn storable(event: &RawDocument) -> RawBson {
    if levels(event) <= LEVELS {
        return RawBson::Document(event.to_owned());
    }
    RawBson::Document(in_bytes(event))
}

/// The event as bytes, with its type.
pub(crate) fn in_bytes(event: &RawDocument) -> RawDocumentBuf {
    let operation = event.get_str("operationType").unwrap_or_default();
    let bytes = Binary { subtype: BinarySubtype::Generic, bytes: event.as_bytes().to_vec() };
    rawdoc! { "operationType": operation, "bytes": bytes }
}

/// Levels of documents and arrays, this one included; [`LEVELS`] and one more if there are more. Without recursion,
/// because the depth is not ours.
fn levels(document: &RawDocument) -> usize {
    let (mut deepest, mut waiting) = (0, vec![(document, 1)]);
    while let Some((document, level)) = waiting.pop() {
        deepest = deepest.max(level);
        if deepest > LEVELS {
            break;
        }
        for (_, value) in document.into_iter().flatten() {
            match value {
                RawBsonRef::Document(inner) => waiting.push((inner, level + 1)),
                RawBsonRef::Array(inner) => {
                    waiting.extend(RawDocument::from_bytes(inner.as_bytes()).ok().map(|inner| (inner, level + 1)))
                }
                _ => {}
            }
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A document `{ _id: VALUE }` of this type, with these bytes as value.
    fn with_id(kind: u8, value: &[u8]) -> RawDocumentBuf {
        let mut bytes = vec![0; 4];
        bytes.push(kind);
        bytes.extend_from_slice(b"_id\0");
        bytes.extend_from_slice(value);
        bytes.push(0);
        let length = i32::try_from(bytes.len()).expect("short");
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        RawDocumentBuf::from_bytes(bytes).expect("a document")
    }

    fn nested(levels: usize) -> RawDocumentBuf {
        let mut document = rawdoc! { "operationType": "insert" };
        for _ in 1..levels {
            document = rawdoc! { "operationType": "insert", "in": document };
        }
        document
    }

    #[test]
    fn an_id_with_text_that_is_no_utf8_or_a_damaged_binary_cannot_be_read() {
        let bad_text = [&4_i32.to_le_bytes()[..], b"\xff\xfe\xc0\0"].concat();
        let bad_binary = [&7_i32.to_le_bytes()[..], b"\x02", &99_i32.to_le_bytes(), b"abc"].concat();
        assert!(!has_readable_id(&with_id(2, &bad_text)));
        assert!(!has_readable_id(&with_id(5, &bad_binary)));
        let inner = with_id(2, &bad_text);
        assert!(!has_readable_id(&with_id(3, inner.as_bytes())), "deep inside as well");
        assert!(!has_readable_id(&rawdoc! { "a": 1 }), "no _id at all");
        for id in [RawBson::Int32(1), RawBson::String("ü".to_owned()), rawdoc! { "a": [1, { "b": "c" }] }.into()] {
            assert!(has_readable_id(&rawdoc! { "_id": id }));
        }
    }

    #[test]
    fn a_stand_in_is_known_and_tells_documents_apart() {
        let (one, other) = (with_id(2, b"\x02\0\0\0\xff\0"), with_id(2, b"\x02\0\0\0\xfe\0"));
        assert!(is_stand_in(&stand_in(&one)) && stand_in(&one) != stand_in(&other));
        assert!(!is_stand_in(&RawBson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![1] })));
    }

    #[test]
    fn an_event_that_is_nested_too_deeply_is_stored_as_bytes() {
        let flat = nested(LEVELS);
        assert_eq!(storable(&flat), RawBson::Document(flat.clone()));
        let deep = nested(LEVELS + 1);
        let RawBson::Document(stored) = storable(&deep) else { panic!("a document") };
        assert_eq!(stored.get_str("operationType").ok(), Some("insert"));
        assert_eq!(stored.get_binary("bytes").expect("bytes").bytes, deep.as_bytes());
    }
}
