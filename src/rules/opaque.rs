//! Contents of a server that no link can carry: an `_id` with text that is no UTF-8, or with a damaged binary, and an
//! `_id` too large for change events. A change of such a document becomes a dead letter under a stand-in for the `_id`.
//! Also events nested too deeply to stand in another document.

use std::collections::HashSet;

use bson::raw::{RawBson, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::spec::BinarySubtype;
use bson::{Binary, rawdoc};
use sha2::{Digest, Sha256};

use super::lookup::{self, ARRAY, DOCUMENT, Element};

/// The subtype of stand-ins, from the range that the BSON specification leaves to applications.
const STAND_IN: BinarySubtype = BinarySubtype::UserDefined(0x81);

/// Largest `_id` that links carry, in bytes. A server's reply repeats the `_id` in two resume tokens, each up to four
/// times as long, and must fit into 16 MB.
pub(crate) const LARGEST_ID: usize = 1_600_000;

/// The subtype of `_id`s that stand in our own `_id`s as bytes.
const NESTED: BinarySubtype = BinarySubtype::UserDefined(0x82);

/// Longest `documentKey`, in bytes, that stands for itself. A hash stands for a longer one.
const LONGEST_STAND_IN: usize = 1_000;

/// Most levels of a document, or of an `_id`, that stand in another document. A server accepts about 180 in all.
const LEVELS: usize = 120;

/// True if every part of the `_id` can be read.
fn is_readable(id: RawBsonRef<'_>) -> bool {
    match id {
        RawBsonRef::Document(document) => {
            document.into_iter().all(|element| element.is_ok_and(|(_, value)| is_readable(value)))
        }
        RawBsonRef::Array(array) => array.into_iter().all(|element| element.is_ok_and(is_readable)),
        RawBsonRef::JavaScriptCodeWithScope(code) => is_readable(RawBsonRef::Document(code.scope)),
        RawBsonRef::DbPointer(_) => !has_zero(id),
        _ => true,
    }
}

/// True if links can carry the document: its `_id` can be read, and fits into change events.
pub(crate) fn has_readable_id(document: &RawDocument) -> bool {
    document.get("_id").is_ok_and(|id| id.is_some_and(|id| is_readable(id) && !is_large(id)))
}

/// True if the name in a `DBPointer` has a zero byte. A server (6.0.5) that is asked for such an `_id` never answers:
/// the index orders the name otherwise than the comparison does.
fn has_zero(pointer: RawBsonRef<'_>) -> bool {
    const OBJECT_ID: usize = 12;
    let holder = holder(pointer);
    let bytes = holder.as_bytes();
    // After the document's length, the type, the empty name and the length of the text; before its final zero.
    bytes.get(10..bytes.len() - 1 - OBJECT_ID - 1).is_some_and(|name| name.contains(&0))
}

fn is_large(id: RawBsonRef<'_>) -> bool {
    bytes_of(id) > LARGEST_ID
}

/// Bytes of an `_id` whose type has no fixed size; else 0.
pub(crate) fn bytes_of(id: RawBsonRef<'_>) -> usize {
    match id {
        RawBsonRef::String(text) | RawBsonRef::Symbol(text) | RawBsonRef::JavaScriptCode(text) => text.len(),
        RawBsonRef::Binary(binary) => binary.bytes.len(),
        RawBsonRef::Document(document) => document.as_bytes().len(),
        RawBsonRef::JavaScriptCodeWithScope(code) => code.code.len() + code.scope.as_bytes().len(),
        RawBsonRef::DbPointer(_) => holder(id).as_bytes().len(),
        _ => 0,
    }
}

/// A document with this value as its only field, under an empty name.
fn holder(value: RawBsonRef<'_>) -> RawDocumentBuf {
    let mut holder = RawDocumentBuf::new();
    holder.append(cstr!(""), value);
    holder
}

/// The `documentKey` of a document: its `_id` alone, byte by byte. `None` for a damaged document.
pub(crate) fn document_key(document: &RawDocument) -> Option<RawDocumentBuf> {
    let (kind, value) = lookup::bytes(document, "_id")?;
    lookup::of_elements(&[&[kind], &b"_id\0"[..], value].concat())
}

/// The `_id` of a `documentKey` as an operand of an aggregation expression, byte by byte.
pub(crate) fn literal(document_key: &RawDocument) -> Option<RawDocumentBuf> {
    let bytes = document_key.as_bytes();
    let (kind, value) = (bytes.get(4..5)?, bytes.get(9..bytes.len() - 1)?);
    lookup::of_elements(&[kind, b"$literal\0", value].concat())
}

/// Stands for the `_id` of a document: the bytes of the `documentKey`, or their hash. A stand-in stands for itself.
pub(crate) fn stand_in(document_key: &RawDocument) -> RawBson {
    if let Ok(Some(id)) = document_key.get("_id")
        && is_stand_in(&id.into())
    {
        return id.into();
    }
    let bytes = document_key.as_bytes();
    let bytes = if bytes.len() > LONGEST_STAND_IN { Sha256::digest(bytes).to_vec() } else { bytes.to_vec() };
    RawBson::Binary(Binary { subtype: STAND_IN, bytes })
}

/// True for an `_id` that only stands for another one.
fn is_stand_in(id: &RawBson) -> bool {
    matches!(id, RawBson::Binary(binary) if binary.subtype == STAND_IN)
}

/// The `_id` as a part of one of our own documents: as bytes, if a server would refuse the `_id` there, or the library
/// would read another one. Servers accept names that begin with `$` inside of an `_id` only where an application
/// inserts the document, and a map holds a name once.
pub(crate) fn nested_id(id: RawBsonRef<'_>) -> RawBson {
    let is_plain = match id {
        RawBsonRef::Binary(binary) => binary.subtype != NESTED,
        RawBsonRef::Document(_) | RawBsonRef::Array(_) | RawBsonRef::JavaScriptCodeWithScope(_) => {
            is_shallow_and_plain(&holder(id))
        }
        _ => true,
    };
    if is_plain {
        return id.into();
    }
    RawBson::Binary(Binary { subtype: NESTED, bytes: holder(id).into_bytes() })
}

/// The `_id` behind [`nested_id`].
pub(crate) fn id_of_nested(nested: RawBsonRef<'_>) -> Option<RawBson> {
    match nested {
        RawBsonRef::Binary(binary) if binary.subtype == NESTED => {
            RawDocument::from_bytes(binary.bytes).ok()?.get("").ok()?.map(RawBson::from)
        }
        id => Some(id.into()),
    }
}

/// True if no name inside begins with `$` or comes twice, and nothing is nested too deeply.
fn is_shallow_and_plain(holder: &RawDocument) -> bool {
    let mut is_plain = true;
    let is_shallow = visit(holder, |document| {
        let mut names = HashSet::new();
        is_plain &= lookup::elements(document).all(|field| !field.name.starts_with(b"$") && names.insert(field.name));
    });
    is_plain && is_shallow
}

/// True if the document is nested too deeply to stand in another one.
pub(crate) fn is_deep(document: &RawDocument) -> bool {
    !visit(document, |_| {})
}

/// The event as a value that every server stores: as bytes, if it is nested too deeply.
pub(crate) fn storable(event: &RawDocument) -> RawBson {
    RawBson::Document(if is_deep(event) { in_bytes(event) } else { event.to_owned() })
}

/// The event as bytes, with its type.
pub(crate) fn in_bytes(event: &RawDocument) -> RawDocumentBuf {
    let operation = event.get_str("operationType").unwrap_or_default();
    let bytes = Binary { subtype: BinarySubtype::Generic, bytes: event.as_bytes().to_vec() };
    rawdoc! { "operationType": operation, "bytes": bytes }
}

/// Visits the document and all documents and arrays in it. Returns false if there are more than [`LEVELS`] levels, this
/// one included, or if something is damaged. Without recursion, because the depth is not ours.
fn visit<'d>(document: &'d RawDocument, mut look: impl FnMut(&'d RawDocument)) -> bool {
    let mut waiting = vec![(document, 1)];
    while let Some((document, level)) = waiting.pop() {
        if level > LEVELS {
            return false;
        }
        look(document);
        for Element { kind, value, .. } in lookup::elements(document) {
            // In code with a scope, the scope stands behind the code.
            let inner = match kind {
                DOCUMENT | ARRAY => value,
                CODE_WITH_SCOPE => match scope(value) {
                    Some(scope) => scope,
                    None => return false,
                },
                _ => continue,
            };
            let Ok(inner) = RawDocument::from_bytes(inner) else { return false };
            waiting.push((inner, level + 1));
        }
    }
    true
}

const CODE_WITH_SCOPE: u8 = 0x0F;

/// The scope in the bytes of a code with a scope: after the whole length, and the code with its length.
fn scope(code: &[u8]) -> Option<&[u8]> {
    let code = code.get(4..)?;
    let length = usize::try_from(i32::from_le_bytes(*code.first_chunk()?)).ok()?;
    code.get(length.checked_add(4)?..)
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
    fn an_id_with_a_dollar_stands_in_our_own_ids_as_bytes() {
        let plain = [RawBson::Int32(1), rawdoc! { "a": { "b.c": [1] } }.into(), RawBson::String("$x".to_owned())];
        for id in plain {
            assert_eq!(nested_id(id.as_raw_bson_ref()), id);
        }
        let deep = RawBson::Document(rawdoc! { "n": 1, "a": [{ "$x": 2 }] });
        let twice = nested_id(deep.as_raw_bson_ref());
        for id in [deep, twice] {
            let nested = nested_id(id.as_raw_bson_ref());
            assert!(matches!(&nested, RawBson::Binary(_)) && nested != id);
            assert_eq!(id_of_nested(nested.as_raw_bson_ref()), Some(id));
        }
    }

    #[test]
    fn a_deep_id_and_one_with_a_name_twice_stand_in_our_own_documents_as_bytes() {
        let mut twice = rawdoc! { "a": 1 };
        twice.append(cstr!("a"), 2);
        let scope = bson::RawJavaScriptCodeWithScope { code: "x".to_owned(), scope: twice.clone() };
        let ids: [RawBson; 4] =
            [nested(LEVELS + 1).into(), twice.clone().into(), rawdoc! { "b": [twice] }.into(), scope.into()];
        for id in ids {
            let nested = nested_id(id.as_raw_bson_ref());
            assert!(matches!(&nested, RawBson::Binary(_)), "{id:?}");
            assert_eq!(id_of_nested(nested.as_raw_bson_ref()), Some(id));
        }
    }

    #[test]
    fn the_size_of_an_id_counts_whatever_its_type() {
        let scope = bson::RawJavaScriptCodeWithScope { code: "x".repeat(LARGEST_ID), scope: rawdoc! { "a": 1 } };
        assert!(!has_readable_id(&rawdoc! { "_id": RawBson::from(scope) }));
    }

    /// A document whose first field has this name, before a deep one.
    fn with_name(name: &[u8]) -> RawDocumentBuf {
        let deep = nested(LEVELS);
        lookup::of_elements(&[&b"\x0A"[..], name, b"\0\x03deep\0", deep.as_bytes()].concat()).expect("a document")
    }

    #[test]
    fn depth_is_seen_behind_a_name_that_cannot_be_read_and_in_a_scope() {
        assert!(is_deep(&with_name(b"a")) && is_deep(&with_name(b"\xff")));
        let code = |levels| {
            let scope = nested(levels);
            rawdoc! { "a": RawBson::from(bson::RawJavaScriptCodeWithScope { code: "x".to_owned(), scope }) }
        };
        assert!(is_deep(&code(LEVELS)) && !is_deep(&code(LEVELS - 1)));
    }

    #[test]
    fn a_pointer_with_a_zero_byte_in_its_name_is_no_id_to_ask_for() {
        let pointer = |name: &[u8]| {
            let length = i32::try_from(name.len() + 1).expect("short").to_le_bytes();
            with_id(12, &[&length[..], name, b"\0", &[1; 12]].concat())
        };
        assert!(has_readable_id(&pointer(b"app.orders")) && has_readable_id(&pointer(b"")));
        for name in [&b"a\0b"[..], b"\0", b"a\0"] {
            assert!(!has_readable_id(&pointer(name)), "{name:?}");
        }
    }

    #[test]
    fn an_id_that_is_too_large_for_change_events_is_not_carried() {
        for (bytes, is_carried) in [(LARGEST_ID, true), (LARGEST_ID + 1, false)] {
            assert_eq!(has_readable_id(&rawdoc! { "_id": "x".repeat(bytes) }), is_carried);
        }
        let (one, other) = (rawdoc! { "_id": "x".repeat(2_000) }, rawdoc! { "_id": "y".repeat(2_000) });
        let RawBson::Binary(binary) = stand_in(&one) else { panic!("a binary") };
        assert!(binary.bytes.len() < 100 && stand_in(&one) != stand_in(&other));
        assert_eq!(stand_in(&rawdoc! { "_id": stand_in(&one) }), stand_in(&one), "it stands for itself");
    }

    #[test]
    fn the_document_key_is_the_id_byte_by_byte_wherever_it_stands() {
        let bad = [&4_i32.to_le_bytes()[..], b"\xff\xfe\xc0\0"].concat();
        let key = with_id(2, &bad);
        assert_eq!(document_key(&key).as_ref(), Some(&key));
        let stored = rawdoc! { "before": "b", "_id": { "a": 1 }, "after": 2 };
        assert_eq!(document_key(&stored), Some(rawdoc! { "_id": { "a": 1 } }));
        assert_eq!(document_key(&rawdoc! { "a": 1 }), None);
        assert_eq!(literal(&rawdoc! { "_id": { "a": 1 } }), Some(rawdoc! { "$literal": { "a": 1 } }));
        assert!(literal(&key).expect("bytes").as_bytes().windows(4).any(|part| part == b"\xff\xfe\xc0\0"));
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
