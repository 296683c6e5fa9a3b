//! The order of a document's fields. No change event tells the order: an update with a pipeline may put a field
//! elsewhere, and the event says only that the field was set to the value that it has.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use bson::raw::{RawDocument, RawDocumentBuf};

use super::lookup::{self, ARRAY, DOCUMENT, Element};

/// The document with its fields, at every depth, in the order of the fields of `order`. Fields that `order` lacks come
/// last. `None` if the fields have this order already, or if the order cannot be told.
pub(crate) fn arranged(document: &RawDocument, order: &RawDocument) -> Option<RawDocumentBuf> {
    let places: HashMap<&[u8], (usize, Element<'_>)> =
        lookup::elements(order).enumerate().map(|(place, field)| (field.name, (place, field))).collect();
    let mut names = HashSet::new();
    let (mut fields, mut is_changed) = (Vec::new(), false);
    for field in lookup::elements(document) {
        // Which of two fields of one name is which, nobody knows.
        if !names.insert(field.name) {
            return None;
        }
        let known = places.get(field.name);
        let inner = known.and_then(|(_, known)| arranged_inside(&field, known));
        is_changed |= inner.is_some();
        let value = inner.map_or(Cow::Borrowed(field.value), |inner| Cow::Owned(inner.into_bytes()));
        fields.push((known.map_or(usize::MAX, |(place, _)| *place), field, value));
    }
    if !is_changed && fields.is_sorted_by_key(|(place, ..)| *place) {
        return None;
    }
    fields.sort_by_key(|(place, ..)| *place);
    let mut elements = Vec::with_capacity(document.as_bytes().len());
    for (_, Element { kind, name, .. }, value) in fields {
        elements.push(kind);
        elements.extend_from_slice(name);
        elements.push(0);
        elements.extend_from_slice(&value);
    }
    // A damaged field hides those behind it.
    lookup::of_elements(&elements).filter(|arranged| arranged.as_bytes().len() == document.as_bytes().len())
}

fn arranged_inside(field: &Element<'_>, known: &Element<'_>) -> Option<RawDocumentBuf> {
    let is_nested = matches!((field.kind, known.kind), (DOCUMENT, DOCUMENT) | (ARRAY, ARRAY));
    if !is_nested || field.value == known.value {
        return None;
    }
    arranged(RawDocument::from_bytes(field.value).ok()?, RawDocument::from_bytes(known.value).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn every_row_of_the_table() {
        let document = rawdoc! { "a": 1, "b": { "c": 2, "d": 3 }, "e": [{ "f": 4, "g": 5 }], "h": 6 };
        let table = [
            // The same order, whatever the values.
            (rawdoc! { "a": 9, "b": { "c": 9, "d": 9 }, "e": [{ "f": 9, "g": 9 }], "h": 9 }, None),
            (rawdoc! {}, None),
            (
                rawdoc! { "a": 1, "new": 1, "h": 1 },
                Some(rawdoc! { "a": 1, "h": 6, "b": { "c": 2, "d": 3 }, "e": [{ "f": 4, "g": 5 }] }),
            ),
            // Another order at the top level, in a document, and in an array.
            (
                rawdoc! { "h": 0, "e": 0, "b": 0, "a": 0 },
                Some(rawdoc! { "h": 6, "e": [{ "f": 4, "g": 5 }], "b": { "c": 2, "d": 3 }, "a": 1 }),
            ),
            (
                rawdoc! { "a": 1, "b": { "d": 3, "c": 2 }, "e": [{ "g": 5, "f": 4 }], "h": 6 },
                Some(rawdoc! { "a": 1, "b": { "d": 3, "c": 2 }, "e": [{ "g": 5, "f": 4 }], "h": 6 }),
            ),
            // A document here and none there.
            (rawdoc! { "a": 1, "b": [3, 2], "e": { "0": 1 }, "h": 6 }, None),
        ];
        for (order, expected) in table {
            assert_eq!(arranged(&document, &order), expected, "{order:?}");
        }
    }

    /// A document of these elements.
    fn document(elements: &[&[u8]]) -> RawDocumentBuf {
        lookup::of_elements(&elements.concat()).expect("a document")
    }

    #[test]
    fn names_that_are_no_utf8_count_and_what_cannot_be_read_stays() {
        let (one, two, damaged): (&[u8], &[u8], &[u8]) = (b"\x10\xff\0\x01\0\0\0", b"\x10a\0\x02\0\0\0", b"\x66x\0\0");
        assert_eq!(arranged(&document(&[one, two]), &document(&[two, one])), Some(document(&[two, one])));
        assert_eq!(arranged(&document(&[one, two, damaged]), &document(&[two, one])), None);
        assert_eq!(arranged(&document(&[one, two, two]), &document(&[two, one])), None);
    }

    #[test]
    fn many_fields_take_no_longer_than_their_number() {
        let (mut document, mut order) = (RawDocumentBuf::new(), RawDocumentBuf::new());
        for number in 0..100_000_u32 {
            document.append(bson::raw::CString::try_from(format!("{number}")).expect("no NUL"), 1);
            order.append(bson::raw::CString::try_from(format!("{}", 99_999 - number)).expect("no NUL"), 1);
        }
        assert_eq!(arranged(&document, &order), Some(order));
    }
}
