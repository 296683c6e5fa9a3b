//! Identity of a document: namespace and `_id`, compared like the server compares `_id`s.

use bson::Decimal128;
use bson::raw::{RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use sha2::{Digest, Sha256};

/// Longest key in bytes. A hash stands for the `_id` in a longer one: an `_id` may have megabytes.
const LONGEST: usize = 200;

/// Identity of a document, small enough for maps with hundreds of thousands of entries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(Box<[u8]>);

impl Key {
    /// The key of the document with this `_id` in the namespace with this number.
    ///
    /// The server compares numbers by value, whatever their type and however deep inside an `_id`: `1`, `1.0` and
    /// `Decimal128("1.00")` are the same `_id`, and so are `{k: 1}` and `{k: 1.0}`. Equal `_id`s have the same key.
    pub(crate) fn new(namespace: u16, id: RawBsonRef<'_>) -> Self {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend_from_slice(&namespace.to_le_bytes());
        append(&mut bytes, id);
        if bytes.len() > LONGEST {
            let hash = Sha256::digest(&bytes[2..]);
            bytes.truncate(2);
            bytes.push(LONG);
            bytes.extend_from_slice(&hash);
        }
        Self(bytes.into())
    }

    /// Number of the namespace.
    pub(crate) fn namespace(&self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }
}

/// Appends a value such that values equal on the server have equal bytes.
fn append(bytes: &mut Vec<u8>, value: RawBsonRef<'_>) {
    match value {
        RawBsonRef::Int32(number) => append_whole(bytes, number.into()),
        RawBsonRef::Int64(number) => append_whole(bytes, number),
        RawBsonRef::Double(number) => append_double(bytes, number),
        RawBsonRef::Decimal128(number) => append_decimal(bytes, number),
        RawBsonRef::Document(document) => append_document(bytes, document),
        RawBsonRef::Array(array) => {
            bytes.push(value.element_type() as u8);
            for element in array {
                match element {
                    Ok(element) => append(bytes, element),
                    // Damaged: the rest counts as it is.
                    Err(_) => return bytes.extend_from_slice(array.as_bytes()),
                }
            }
            bytes.push(0);
        }
        value => append_as_is(bytes, value),
    }
}

fn append_document(bytes: &mut Vec<u8>, document: &RawDocument) {
    bytes.push(bson::spec::ElementType::EmbeddedDocument as u8);
    for element in document {
        match element {
            Ok((name, value)) => {
                bytes.push(1);
                bytes.extend_from_slice(name.as_str().as_bytes());
                bytes.push(0);
                append(bytes, value);
            }
            // Damaged: the rest counts as it is.
            Err(_) => return bytes.extend_from_slice(document.as_bytes()),
        }
    }
    bytes.push(0);
}

fn append_as_is(bytes: &mut Vec<u8>, value: RawBsonRef<'_>) {
    bytes.push(value.element_type() as u8);
    let mut holder = RawDocumentBuf::new();
    holder.append(cstr!(""), value);
    let whole = holder.as_bytes();
    // Leaves out the length (4 bytes), the type (1), the end of the empty name (1), and the last byte.
    bytes.extend_from_slice(&whole[6..whole.len() - 1]);
}

/// The marks of numbers. No type of BSON has these bytes.
const WHOLE: u8 = b'#';
const OTHER_NUMBER: u8 = b'%';

/// The mark of a hash. No type of BSON has this byte either.
const LONG: u8 = b'=';

fn append_whole(bytes: &mut Vec<u8>, number: i64) {
    bytes.push(WHOLE);
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn append_double(bytes: &mut Vec<u8>, number: f64) {
    // 2^63 is exact as a double. Every integral double below fits into 64 bits.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    // Decimal places of the smallest double: with this many, the text is exact.
    const PLACES: usize = 1_074;
    if number.fract() == 0.0 && (-LIMIT..LIMIT).contains(&number) {
        #[expect(clippy::cast_possible_truncation, reason = "whole and in range")]
        return append_whole(bytes, number as i64);
    }
    append_text(bytes, &if number.is_finite() { format!("{number:.PLACES$}") } else { number.to_string() });
}

fn append_decimal(bytes: &mut Vec<u8>, number: Decimal128) {
    append_text(bytes, &number.to_string());
}

/// Appends a number by its exact decimal text, such as `-1.50` or `15E-1`, in a form that equal numbers share.
fn append_text(bytes: &mut Vec<u8>, text: &str) {
    let (sign, unsigned) = text.strip_prefix('-').map_or(("", text), |unsigned| ("-", unsigned));
    let (mantissa, exponent) = unsigned.split_once(['E', 'e']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        // NaN of every sign is one value; infinities are two.
        let name = if text.to_ascii_lowercase().contains("nan") { "nan".to_owned() } else { format!("{sign}inf") };
        bytes.push(OTHER_NUMBER);
        return bytes.extend_from_slice(name.as_bytes());
    }
    let significant = digits.trim_start_matches('0');
    let without_zeros = significant.trim_end_matches('0');
    let places = i64::try_from(fraction.len()).unwrap_or(i64::MAX);
    let zeros = i64::try_from(significant.len() - without_zeros.len()).unwrap_or(i64::MAX);
    let exponent = exponent.parse::<i64>().unwrap_or(0) - places + zeros;
    let whole = match (without_zeros.is_empty(), usize::try_from(exponent)) {
        (true, _) => Some(0),
        // No 64-bit number has more than 19 digits.
        (false, Ok(exponent)) if exponent < 20 => {
            format!("{sign}{without_zeros}{}", "0".repeat(exponent)).parse::<i64>().ok()
        }
        _ => None,
    };
    match whole {
        Some(whole) => append_whole(bytes, whole),
        None => {
            bytes.push(OTHER_NUMBER);
            bytes.extend_from_slice(format!("{sign}{without_zeros}e{exponent}").as_bytes());
            bytes.push(0);
        }
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

    fn of(value: impl Into<bson::RawBson>) -> Key {
        key(&rawdoc! { "_id": value.into() })
    }

    fn decimal(text: &str) -> Key {
        of(bson::RawBson::Decimal128(text.parse().expect("a decimal")))
    }

    #[test]
    fn numbers_of_any_type_are_compared_by_value() {
        for text in ["1", "1.00", "10E-1", "1E+0"] {
            assert_eq!(decimal(text), of(1), "{text}");
        }
        assert_eq!(decimal("0.5"), of(0.5));
        assert_eq!(decimal("-12.25"), of(-12.25));
        assert_ne!(decimal("0.1"), of(0.1), "the double is not exactly a tenth");
        assert_eq!(decimal("0E+10"), of(-0.0));
        assert_eq!(decimal("9223372036854775807"), of(i64::MAX));
        assert_ne!(decimal("9223372036854775808"), of(i64::MAX));
        assert_eq!(decimal("9223372036854775808"), of(9_223_372_036_854_775_808.0));
        assert_eq!(decimal("1E+30"), decimal("1000000000000000000000000000000"));
        assert_ne!(decimal("1E+30"), decimal("1E+31"));
        assert_eq!(decimal("NaN"), of(f64::NAN));
        assert_eq!(decimal("Infinity"), of(f64::INFINITY));
        assert_ne!(decimal("Infinity"), of(f64::NEG_INFINITY));
    }

    #[test]
    fn numbers_inside_an_id_are_compared_by_value_too() {
        let id = |value: bson::RawBson| key(&rawdoc! { "_id": { "k": value, "deep": { "list": [1, "a"] } } });
        assert_eq!(id(1.into()), id(1.0.into()));
        assert_ne!(id(1.into()), id(1.5.into()));
        assert_ne!(id("1".into()), id(1.into()));
        assert_ne!(key(&rawdoc! { "_id": { "a": 1, "b": 2 } }), key(&rawdoc! { "_id": { "b": 2, "a": 1 } }));
        assert_ne!(key(&rawdoc! { "_id": { "a": {} , "b": 1 } }), key(&rawdoc! { "_id": { "a": { "b": 1 } } }));
    }

    proptest::proptest! {
        #[test]
        fn keys_are_equal_exactly_where_doubles_are(left in proptest::num::f64::ANY, right in proptest::num::f64::ANY) {
            let is_equal = left == right || (left.is_nan() && right.is_nan());
            proptest::prop_assert_eq!(of(left) == of(right), is_equal);
            proptest::prop_assert_eq!(of(left), of(left));
        }
    }
}
