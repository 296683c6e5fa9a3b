//! The top-level fields of a document. A server stores names and patterns that are no UTF-8, and the BSON library reads
//! no further than the first of them; the partition key may stand behind it.

use bson::oid::ObjectId;
use bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf};

/// The value of the first field of this name; `None` without such a field. A value of a rare type behind something that
/// cannot be read counts as `Undefined`, which no zone equals.
pub(crate) fn value<'d>(document: &'d RawDocument, field: &str) -> Option<RawBsonRef<'d>> {
    match document.get(field) {
        Ok(value) => value,
        Err(_) => {
            let (kind, bytes) = bytes(document, field)?;
            Some(read(kind, bytes).unwrap_or(RawBsonRef::Undefined))
        }
    }
}

/// The value of the first field of this name, if it is a text.
pub(crate) fn text<'d>(document: &'d RawDocument, field: &str) -> Option<&'d str> {
    value(document, field)?.as_str()
}

/// The type and the bytes of the value of the first field of this name.
pub(crate) fn bytes<'d>(document: &'d RawDocument, field: &str) -> Option<(u8, &'d [u8])> {
    let found = elements(document).find(|element| element.name == field.as_bytes())?;
    Some((found.kind, found.value))
}

/// The type's number of a document in a field.
pub(crate) const DOCUMENT: u8 = 0x03;

/// The type's number of an array, which stands as a document with the indices as names.
pub(crate) const ARRAY: u8 = 0x04;

/// The document of these fields, byte by byte. `None` if it would be too large for any document.
pub(crate) fn of_elements(elements: &[u8]) -> Option<RawDocumentBuf> {
    let length = i32::try_from(elements.len() + 5).ok()?;
    RawDocumentBuf::from_bytes([&length.to_le_bytes()[..], elements, b"\0"].concat()).ok()
}

/// A field as it stands in the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element<'d> {
    /// The type's number in the BSON specification.
    pub(crate) kind: u8,
    pub(crate) name: &'d [u8],
    pub(crate) value: &'d [u8],
}

/// The fields of a document, up to the first damaged one.
pub(crate) fn elements(document: &RawDocument) -> impl Iterator<Item = Element<'_>> {
    let document = document.as_bytes();
    // After the length, and before the final zero.
    let mut rest = document.len().checked_sub(1).and_then(|end| document.get(4..end)).unwrap_or_default();
    std::iter::from_fn(move || {
        let [kind, named @ ..] = rest else { return None };
        let name = until_zero(named)?;
        let bytes = &named[name.len() + 1..];
        let (value, behind) = bytes.split_at_checked(length(*kind, bytes)?)?;
        rest = behind;
        Some(Element { kind: *kind, name, value })
    })
}

/// The length of a value of this type, by the BSON specification.
fn length(kind: u8, bytes: &[u8]) -> Option<usize> {
    let stated = || usize::try_from(i32::from_le_bytes(*bytes.first_chunk()?)).ok();
    Some(match kind {
        0x06 | 0x0A | 0x7F | 0xFF => 0,
        0x08 => 1,
        0x10 => 4,
        0x01 | 0x09 | 0x11 | 0x12 => 8,
        0x07 => 12,
        0x13 => 16,
        0x02 | 0x0D | 0x0E => stated()?.checked_add(4)?,
        0x0C => stated()?.checked_add(4 + 12)?,
        0x05 => stated()?.checked_add(4 + 1)?,
        0x03 | 0x04 | 0x0F => stated()?,
        0x0B => {
            let pattern = until_zero(bytes)?.len() + 1;
            pattern + until_zero(&bytes[pattern..])?.len() + 1
        }
        _ => return None,
    })
}

fn until_zero(bytes: &[u8]) -> Option<&[u8]> {
    bytes.iter().position(|byte| *byte == 0).map(|end| &bytes[..end])
}

fn read(kind: u8, bytes: &[u8]) -> Option<RawBsonRef<'_>> {
    Some(match kind {
        0x01 => RawBsonRef::Double(f64::from_le_bytes(*bytes.first_chunk()?)),
        0x02 => RawBsonRef::String(std::str::from_utf8(bytes.get(4..bytes.len().checked_sub(1)?)?).ok()?),
        0x03 => RawBsonRef::Document(RawDocument::from_bytes(bytes).ok()?),
        0x07 => RawBsonRef::ObjectId(ObjectId::from_bytes(*bytes.first_chunk()?)),
        0x08 => RawBsonRef::Boolean(*bytes.first()? != 0),
        0x0A => RawBsonRef::Null,
        0x10 => RawBsonRef::Int32(i32::from_le_bytes(*bytes.first_chunk()?)),
        0x12 => RawBsonRef::Int64(i64::from_le_bytes(*bytes.first_chunk()?)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::raw::{RawBson, cstr};
    use bson::rawdoc;

    /// A document of these elements.
    fn document(elements: &[&[u8]]) -> RawDocumentBuf {
        of_elements(&elements.concat()).expect("a document")
    }

    /// An element whose name is no UTF-8, and a pattern that is none.
    const UNREADABLE: [&[u8]; 2] = [b"\x10\xff\xfe\0\x01\0\0\0", b"\x0Ba\0\xff\0im\0"];

    #[test]
    fn a_field_behind_something_that_cannot_be_read_is_found() {
        for unreadable in UNREADABLE {
            let found = document(&[unreadable, b"\x02_pk\0\x04\0\0\0DFW\0", b"\x10n\0\x07\0\0\0"]);
            assert!(found.get("_pk").is_err(), "the library does not find it");
            assert_eq!(text(&found, "_pk"), Some("DFW"));
            assert_eq!(value(&found, "n"), Some(RawBsonRef::Int32(7)));
            assert_eq!(value(&found, "none"), None);
        }
        assert_eq!(text(&rawdoc! { "_pk": "DFW" }, "_pk"), Some("DFW"));
    }

    #[test]
    fn a_value_of_every_type_is_passed_over() {
        let values: [RawBson; 18] = [
            RawBson::Double(1.5),
            RawBson::String("text".to_owned()),
            rawdoc! { "_pk": "inside" }.into(),
            RawBson::Array([1, 2].into_iter().collect()),
            RawBson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![1, 0, 2] }),
            RawBson::ObjectId(ObjectId::from_bytes([1; 12])),
            RawBson::Boolean(true),
            RawBson::DateTime(bson::DateTime::from_millis(1)),
            RawBson::Null,
            RawBson::Undefined,
            RawBson::JavaScriptCode("x".to_owned()),
            RawBson::Symbol("s".to_owned()),
            RawBson::Int32(1),
            RawBson::Timestamp(bson::Timestamp { time: 1, increment: 2 }),
            RawBson::Int64(1),
            RawBson::Decimal128("1.5".parse().expect("a number")),
            RawBson::MinKey,
            RawBson::MaxKey,
        ];
        for value in values {
            let mut inner = RawDocumentBuf::new();
            inner.append(cstr!("before"), value.clone());
            let element = &inner.as_bytes()[4..inner.as_bytes().len() - 1];
            let whole = document(&[UNREADABLE[0], element, b"\x02_pk\0\x04\0\0\0DFW\0"]);
            assert_eq!(text(&whole, "_pk"), Some("DFW"), "{value:?}");
        }
    }

    #[test]
    fn a_damaged_document_has_no_such_field() {
        for damaged in [&b"\x02a\0\xff\xff\xff\x7f"[..], b"\x77a\0", b"\x10a", b"\x02a\0\xff\xff\xff\xffb\0"] {
            assert_eq!(value(&document(&[UNREADABLE[0], damaged]), "_pk"), None);
        }
    }
}
