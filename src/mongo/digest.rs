//! Digests of a zone, one per bucket, computed by the server. Comparing digests of two sides costs no transfer of
//! documents.
//!
//! A digest holds the number of documents, the sum of their sizes, and the sum of their `$toHashedIndexKey` hashes. The
//! hashes are added as decimals, because sums of decimals are exact.
//!
//! `$toHashedIndexKey` ignores the type and the fraction of a number: 1 and 1.0 have the same hash, and so have 1.5 and
//! 1.7. `$_internalKeyStringValue` could tell 1.5 from 1.7, but servers before 6.0.14 and 7.0.6 lack the operator.
//! Equal digests are therefore no proof of equality; unequal digests always mean a difference.

use std::collections::BTreeMap;

use bson::raw::{RawArrayBuf, RawDocumentBuf};
use bson::{Bson, Document, doc, rawdoc};

use super::error::Error;
use super::scan::Area;
use super::server::{Server, first_batch};

/// Number of buckets of a zone. The hash of `_id` chooses a document's bucket.
pub(crate) const BUCKETS: i32 = 256;

/// Number, size and hash of the documents in one bucket.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Digest {
    documents: i64,
    bytes: i64,
    hashes: String,
}

impl Digest {
    /// Number of documents in the bucket.
    pub(crate) fn documents(&self) -> u64 {
        u64::try_from(self.documents).unwrap_or(0)
    }
}

/// Computes the digests of the area's buckets, by bucket. Empty buckets have no digest.
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

/// Buckets whose digests differ. A bucket without a digest on one side only also counts.
pub(crate) fn unequal(one: &BTreeMap<i32, Digest>, other: &BTreeMap<i32, Digest>) -> Vec<i32> {
    (0..BUCKETS).filter(|bucket| one.get(bucket) != other.get(bucket)).collect()
}

/// An aggregation expression, true for documents of these buckets.
pub(super) fn is_in(buckets: &[i32]) -> RawDocumentBuf {
    let buckets: RawArrayBuf = buckets.iter().copied().collect();
    rawdoc! { "$in": [bucket(), buckets] }
}

/// An aggregation expression for a document's bucket. Hashes may be negative, so the remainder is made positive and
/// taken again.
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
