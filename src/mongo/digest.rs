//! Digests of a zone, a bucket at a time, computed by the server: so two sides can be held against each other without their documents
//! crossing the wire.
//!
//! A digest is the number of documents, their size, and the sum of `$toHashedIndexKey` of each, taken as decimals, whose sum is exact.
//! On servers without `$_internalKeyStringValue` (before 6.0.14 and 7.0.6) that hash cannot tell 1 from 1.0, nor 1.5 from 1.7. Equal
//! digests are therefore no proof; unequal ones always mean a difference.

use std::collections::BTreeMap;

use bson::raw::{RawArrayBuf, RawDocumentBuf};
use bson::{Bson, Document, doc, rawdoc};

use super::error::Error;
use super::scan::Area;
use super::server::{Server, first_batch};

/// Into how many buckets a zone falls, by the hash of `_id`.
pub(crate) const BUCKETS: i32 = 256;

/// What a bucket comes to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Digest {
    documents: i64,
    bytes: i64,
    hashes: String,
}

impl Digest {
    /// How many documents it covers.
    pub(crate) fn documents(&self) -> u64 {
        u64::try_from(self.documents).unwrap_or(0)
    }
}

/// The digests of the area's buckets; empty ones are left out.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn digests(server: &Server, area: Area<'_>) -> Result<BTreeMap<i32, Digest>, Error> {
    let namespace = server.namespace(area.namespace);
    let filter = area.which.filter(server.partition_field());
    let filter = Document::try_from(filter).map_err(|error| server.malformed(error))?;
    let hash = doc! { "$toDecimal": { "$toHashedIndexKey": "$$ROOT" } };
    let bucket = Document::try_from(bucket()).map_err(|error| server.malformed(error))?;
    let aggregate = doc! {
        "aggregate": &namespace.collection,
        "pipeline": [
            { "$match": filter },
            { "$project": { "bucket": bucket, "hash": hash, "bytes": { "$bsonSize": "$$ROOT" } } },
            { "$group": {
                "_id": "$bucket", "documents": { "$sum": 1_i64 }, "hashes": { "$sum": "$hash" },
                "bytes": { "$sum": { "$toLong": "$bytes" } },
            } },
        ],
        "cursor": { "batchSize": BUCKETS + 1 },
        "readConcern": { "level": "majority" },
        "allowDiskUse": false,
    };
    let database = server.client().database(&namespace.database);
    let reply = server.run_long("computing digests", &database, aggregate).await?;
    let read = |group: &Document| {
        let digest = Digest {
            documents: group.get_i64("documents").ok()?,
            bytes: group.get_i64("bytes").ok()?,
            hashes: group.get("hashes")?.to_string(),
        };
        Some((group.get("_id").and_then(whole)?, digest))
    };
    Ok(first_batch(&reply).filter_map(read).collect())
}

/// The buckets that do not come to the same.
pub(crate) fn unequal(one: &BTreeMap<i32, Digest>, other: &BTreeMap<i32, Digest>) -> Vec<i32> {
    (0..BUCKETS).filter(|bucket| one.get(bucket) != other.get(bucket)).collect()
}

/// The condition that a document falls into one of these buckets.
pub(super) fn is_in(buckets: &[i32]) -> RawDocumentBuf {
    let buckets: RawArrayBuf = buckets.iter().copied().collect();
    rawdoc! { "$in": [bucket(), buckets] }
}

/// A document's bucket. Hashes are negative as well, and so the remainder is taken twice.
fn bucket() -> RawDocumentBuf {
    let remainder = rawdoc! { "$mod": [{ "$toHashedIndexKey": "$_id" }, BUCKETS] };
    rawdoc! { "$toInt": { "$mod": [{ "$add": [remainder, BUCKETS] }, BUCKETS] } }
}

fn whole(number: &Bson) -> Option<i32> {
    match number {
        Bson::Int32(number) => Some(*number),
        Bson::Int64(number) => i32::try_from(*number).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_that_is_missing_at_one_side_is_unequal() {
        let digest = |documents| Digest { documents, bytes: 1, hashes: "1".to_owned() };
        let one = BTreeMap::from([(0, digest(1)), (7, digest(2)), (9, digest(1))]);
        let other = BTreeMap::from([(0, digest(1)), (7, digest(3)), (200, digest(1))]);
        assert_eq!(unequal(&one, &other), [7, 9, 200]);
    }
}
