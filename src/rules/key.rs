//! Which document a change is about: its namespace and its `_id`, as the server compares `_id`s.

use bson::raw::RawBsonRef;

/// A document's identity, small enough to be kept in maps by the hundred thousand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(Box<[u8]>);

impl Key {
    /// The key of the document with this `_id` in the namespace with this number.
    ///
    /// `1`, `1.0` and `NumberLong(1)` are one `_id` to the server, and so they are one key here. (Numbers of other
    /// types inside a document used as `_id` are told apart; that only costs work, never a change.)
    pub(crate) fn new(namespace: u16, id: RawBsonRef<'_>) -> Self {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend_from_slice(&namespace.to_le_bytes());
        match whole_number(id) {
            Some(number) => {
                bytes.push(b'#');
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            None => {
                bytes.push(id.element_type() as u8);
                let mut holder = bson::RawDocumentBuf::new();
                holder.append(bson::raw::cstr!(""), id);
                let whole = holder.as_bytes();
                // Length, type, the empty name's end; and the document's last byte.
                bytes.extend_from_slice(&whole[6..whole.len() - 1]);
            }
        }
        Self(bytes.into())
    }

    /// The number of the namespace.
    pub(crate) fn namespace(&self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }
}

/// The number that an `_id` is, if it is a whole one of 64 bits.
fn whole_number(id: RawBsonRef<'_>) -> Option<i64> {
    // 2^63 as a double is exact; every whole double below it fits 64 bits.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    match id {
        RawBsonRef::Int32(number) => Some(number.into()),
        RawBsonRef::Int64(number) => Some(number),
        RawBsonRef::Double(number) if number.fract() == 0.0 && (-LIMIT..LIMIT).contains(&number) =>
        {
            #[expect(clippy::cast_possible_truncation, reason = "whole and in range")]
            Some(number as i64)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn key(document: &bson::RawDocumentBuf) -> Key {
        Key::new(0, document.get("_id").expect("valid").expect("has _id"))
    }

    #[test]
    fn numbers_that_the_server_calls_equal_are_one_key() {
        let one = key(&rawdoc! { "_id": 1 });
        assert_eq!(one, key(&rawdoc! { "_id": 1_i64 }));
        assert_eq!(one, key(&rawdoc! { "_id": 1.0 }));
        assert_eq!(key(&rawdoc! { "_id": 0.0 }), key(&rawdoc! { "_id": -0.0 }));
        assert_ne!(one, key(&rawdoc! { "_id": 1.5 }));
        assert_ne!(one, key(&rawdoc! { "_id": "1" }));
        assert_ne!(one, key(&rawdoc! { "_id": true }));
    }

    #[test]
    fn a_number_is_not_a_document_or_a_text_of_the_same_bytes() {
        let ids = [rawdoc! { "_id": "" }, rawdoc! { "_id": {} }, rawdoc! { "_id": bson::RawBson::Null }];
        for (index, left) in ids.iter().enumerate() {
            for right in &ids[index + 1..] {
                assert_ne!(key(left), key(right));
            }
        }
    }

    #[test]
    fn namespaces_keep_their_documents_apart() {
        let id = rawdoc! { "_id": "a" };
        let value = id.get("_id").expect("valid").expect("has _id");
        assert_ne!(Key::new(0, value), Key::new(1, value));
        assert_eq!(Key::new(7, value).namespace(), 7);
    }
}
