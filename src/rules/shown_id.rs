//! `_id`s for people: in logs, in the status and in reports. A long one is told by its size and hash.

use std::fmt;

use bson::Bson;
use bson::raw::{RawBson, RawBsonRef, RawDocumentBuf, cstr};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Longest `_id` in bytes that is shown whole.
const LONGEST: usize = 1_000;

/// An `_id` as relaxed extended JSON.
pub(crate) fn as_json(id: RawBsonRef<'_>) -> Value {
    match long(id) {
        Some(told) => Value::String(told),
        None => Bson::try_from(RawBson::from(id)).map_or(Value::Null, Bson::into_relaxed_extjson),
    }
}

/// An `_id` in a log line.
pub(crate) struct Told<'a>(pub(crate) RawBsonRef<'a>);

impl fmt::Display for Told<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", as_json(self.0))
    }
}

fn long(id: RawBsonRef<'_>) -> Option<String> {
    let mut holder = RawDocumentBuf::new();
    holder.append(cstr!(""), id);
    let bytes = holder.as_bytes();
    if bytes.len() <= LONGEST {
        return None;
    }
    let hash: String = Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Some(format!("an _id of {} bytes, hash {hash}", bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_short_id_is_shown_whole_and_a_long_one_by_size_and_hash() {
        let table = [(RawBson::Int32(7), json!(7)), (RawBson::String("a".to_owned()), json!("a"))];
        for (id, shown) in table {
            assert_eq!(as_json(id.as_raw_bson_ref()), shown);
        }
        let (one, other) = (RawBson::String("x".repeat(2_000)), RawBson::String("y".repeat(2_000)));
        let told = |id: &RawBson| Told(id.as_raw_bson_ref()).to_string();
        assert!(told(&one).starts_with("\"an _id of 2") && told(&one).len() < 100 && told(&one) != told(&other));
    }
}
