//! Paths at which two documents differ, for people to read. Values differ if their bytes differ.

use bson::raw::{RawBsonRef, RawDocument};

/// Maximum number of paths listed. The list of a longer comparison ends in `…`.
const MOST: usize = 20;

/// Maximum depth of comparison. A deeper difference is listed under the path at this depth.
const DEEPEST: usize = 8;

/// Paths at which the documents differ, such as `speed` or `position.0`. If only the order of fields differs, the list
/// holds the path of the (sub)document, followed by ` (order of fields)`. The path of the top level is empty.
pub(crate) fn paths(one: &RawDocument, other: &RawDocument) -> Vec<String> {
    let mut found = Vec::new();
    documents("", one, other, 0, &mut found);
    if found.len() > MOST {
        found.truncate(MOST);
        found.push("…".to_owned());
    }
    found
}

fn documents(path: &str, one: &RawDocument, other: &RawDocument, depth: usize, found: &mut Vec<String>) {
    if one.as_bytes() == other.as_bytes() || found.len() > MOST {
        return;
    }
    let before = found.len();
    for (name, left) in one.iter().flatten() {
        let inner = join(path, name.as_str());
        match other.get(name).ok().flatten() {
            Some(right) => values(&inner, left, right, depth, found),
            None => found.push(inner),
        }
    }
    for (name, _) in other.iter().flatten() {
        if one.get(name).ok().flatten().is_none() {
            found.push(join(path, name.as_str()));
        }
    }
    if found.len() == before {
        found.push(format!("{path} (order of fields)").trim_start().to_owned());
    }
}

fn values(path: &str, one: RawBsonRef<'_>, other: RawBsonRef<'_>, depth: usize, found: &mut Vec<String>) {
    match (one, other) {
        (RawBsonRef::Document(one), RawBsonRef::Document(other)) if depth < DEEPEST => {
            documents(path, one, other, depth + 1, found);
        }
        (RawBsonRef::Array(one), RawBsonRef::Array(other)) if depth < DEEPEST => {
            let (one, other) = (one.as_bytes(), other.as_bytes());
            // BSON stores an array as a document with the indices as names.
            if let (Ok(one), Ok(other)) = (RawDocument::from_bytes(one), RawDocument::from_bytes(other)) {
                documents(path, one, other, depth + 1, found);
            }
        }
        _ if bytes(one) == bytes(other) => {}
        _ => found.push(path.to_owned()),
    }
}

/// A value's stored bytes with the type: 1 and 1.0 differ, and so do two NaNs with different bits.
fn bytes(value: RawBsonRef<'_>) -> Vec<u8> {
    let mut holder = bson::RawDocumentBuf::new();
    holder.append(bson::raw::cstr!(""), value);
    holder.into_bytes()
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn differing_values_are_named_by_their_path() {
        let one = rawdoc! { "a": 1, "b": { "c": [1, 2, 3], "d": "x" }, "e": 1.5, "f": true };
        let cases = [
            (rawdoc! { "a": 1.0, "b": { "c": [1, 2, 3], "d": "x" }, "e": 1.5, "f": true }, "a"),
            (rawdoc! { "a": 1, "b": { "c": [1, 2], "d": "x" }, "e": 1.5, "f": true }, "b.c.2"),
            (rawdoc! { "a": 1, "b": { "c": [1, 9, 3], "d": "y" }, "e": 1.5, "f": true }, "b.c.1 b.d"),
            (rawdoc! { "a": 1, "b": { "c": [1, 2, 3], "d": "x" }, "e": 1.7 }, "e f"),
            (rawdoc! { "a": 1, "b": { "d": "x", "c": [1, 2, 3] }, "e": 1.5, "f": true }, "b (order of fields)"),
            (rawdoc! { "b": { "c": [1, 2, 3], "d": "x" }, "a": 1, "e": 1.5, "f": true }, "(order of fields)"),
        ];
        for (other, expected) in cases {
            assert_eq!(paths(&one, &other).join(" "), expected);
        }
        assert!(paths(&one, &one).is_empty());
    }

    #[test]
    fn many_paths_are_cut_short() {
        let (one, mut other) = (rawdoc! {}, rawdoc! {});
        for number in 0..100 {
            let name = bson::raw::CString::try_from(format!("f{number}")).expect("a name");
            other.append(name, number);
        }
        let found = paths(&one, &other);
        assert_eq!((found.len(), found.last().map(String::as_str)), (MOST + 1, Some("…")));
    }
}
