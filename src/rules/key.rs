//! Identity of a document: namespace and `_id`, compared like the server compares `_id`s.

use bson::raw::RawBsonRef;

/// Identity of a document, small enough for maps with hundreds of thousands of entries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(Box<[u8]>);

impl Key {
    /// The key of the document with this `_id` in the namespace with this number.
    ///
    /// The server regards `1`, `1.0` and `NumberLong(1)` as the same `_id`, so all three have the same key. Inside an
    /// embedded document used as `_id`, equal numbers of different types get different keys. The cost is extra work,
    /// never a lost change.
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
                // Leaves out the length (4 bytes), the type (1), the end of the empty name (1), and the last byte.
                bytes.extend_from_slice(&whole[6..whole.len() - 1]);
            }
        }
        Self(bytes.into())
    }

    /// Number of the namespace.
    pub(crate) fn namespace(&self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }
}

/// The value of an integral `_id` within 64 bits.
fn whole_number(id: RawBsonRef<'_>) -> Option<i64> {
    // 2^63 is exact as a double. Every integral double below fits into 64 bits.
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
    fn numbers_equal_on_the_server_share_a_key() {
        let one = key(&rawdoc! { "_id": 1 });
        assert_eq!(one, key(&rawdoc! { "_id": 1_i64 }));
        assert_eq!(one, key(&rawdoc! { "_id": 1.0 }));
        assert_eq!(key(&rawdoc! { "_id": 0.0 }), key(&rawdoc! { "_id": -0.0 }));
        assert_ne!(one, key(&rawdoc! { "_id": 1.5 }));
        assert_ne!(one, key(&rawdoc! { "_id": "1" }));
        assert_ne!(one, key(&rawdoc! { "_id": true }));
    }

    #[test]
    fn empty_ids_of_different_types_have_different_keys() {
        let ids = [rawdoc! { "_id": "" }, rawdoc! { "_id": {} }, rawdoc! { "_id": bson::RawBson::Null }];
        for (index, left) in ids.iter().enumerate() {
            for right in &ids[index + 1..] {
                assert_ne!(key(left), key(right));
            }
        }
    }

    #[test]
    fn equal_ids_in_different_namespaces_have_different_keys() {
        let id = rawdoc! { "_id": "a" };
        let value = id.get("_id").expect("valid").expect("has _id");
        assert_ne!(Key::new(0, value), Key::new(1, value));
        assert_eq!(Key::new(7, value).namespace(), 7);
    }
}
