//! Reads the documents of one zone of one collection in the order of `_id` over all BSON types, a page at a time.
//!
//! `{_id: {$gt: …}}` finds only values of the same BSON type; `$expr` compares across types. Both use the index
//! (MongoDB 5.0 and later). The server also evaluates `$expr` for every document, so a read uses `$expr` only if the
//! plain operators would miss documents.

use bson::raw::{CStr, RawArrayBuf, RawBson, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{Timestamp, rawdoc};

use mongodb::options::{ReadPreference, SelectionCriteria};
use mongodb::raw_batch_cursor::RawBatch;

use super::digest;
use super::error::{Error, codes};
use super::large_ids;
use super::server::{Server, first_batch};
use super::statement::in_zone;
use crate::rules::names::Zone;
use crate::rules::opaque;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Area<'a> {
    /// Number of the collection in the configuration.
    pub(crate) namespace: u16,
    pub(crate) which: Which<'a>,
    /// If given, selects only documents in these buckets.
    pub(crate) buckets: Option<&'a [i32]>,
}

impl<'a> Area<'a> {
    pub(crate) fn of(namespace: u16, which: Which<'a>) -> Self {
        Self { namespace, which, buckets: None }
    }
}

/// Selects documents of a collection by zone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which<'a> {
    Of(&'a Zone),
    /// Documents of this zone, and documents without a partition key.
    OfOrUnstamped(&'a Zone),
    /// Documents of none of the zones, with or without a partition key.
    OfNone(&'a [Zone]),
}

impl Which<'_> {
    /// True if a document with this partition key is selected.
    pub(crate) fn includes(self, key: Option<RawBsonRef<'_>>) -> bool {
        let is = |zone: &Zone| key.and_then(RawBsonRef::as_str) == Some(zone.as_str());
        match self {
            Self::Of(zone) => is(zone),
            Self::OfOrUnstamped(zone) => key.is_none() || is(zone),
            Self::OfNone(zones) => !zones.iter().any(is),
        }
    }

    /// The same condition as a query filter.
    pub(super) fn filter(self, partition_key: &CStr) -> RawDocumentBuf {
        let mut filter = RawDocumentBuf::new();
        match self {
            Self::Of(zone) => filter.append(partition_key, in_zone(zone.as_str())),
            Self::OfOrUnstamped(zone) => {
                let mut own = RawDocumentBuf::new();
                own.append(partition_key, in_zone(zone.as_str()));
                let mut none = RawDocumentBuf::new();
                none.append(partition_key, rawdoc! { "$exists": false });
                filter.append(cstr!("$or"), RawArrayBuf::from_iter([own, none]));
            }
            Self::OfNone(zones) => {
                let zones: RawArrayBuf = zones.iter().map(Zone::as_str).collect();
                // An array belongs to no zone, even one that holds the name of a zone.
                let (mut others, mut arrays) = (RawDocumentBuf::new(), RawDocumentBuf::new());
                others.append(partition_key, rawdoc! { "$nin": zones });
                arrays.append(partition_key, rawdoc! { "$type": "array" });
                filter.append(cstr!("$or"), RawArrayBuf::from_iter([others, arrays]));
            }
        }
        filter
    }
}

/// A page of documents, stored as the server's reply.
#[derive(Debug)]
pub(crate) struct Page {
    reply: RawBatch,
    /// Byte range of each document in the reply.
    places: Vec<std::ops::Range<usize>>,
    /// Cluster time of the read.
    pub(crate) at: Timestamp,
    /// Stand-ins for the documents left out, because no link can carry their `_id`.
    pub(crate) left_out: Vec<RawBson>,
    /// The `documentKey` of the last document left out.
    last_left_out: Option<RawDocumentBuf>,
}

impl Page {
    pub(crate) fn documents(&self) -> impl DoubleEndedIterator<Item = &RawDocument> + ExactSizeIterator {
        (0..self.places.len()).map(|number| self.document(number))
    }

    /// The document with this number.
    ///
    /// # Panics
    /// If the page has no document with this number.
    pub(crate) fn document(&self, number: usize) -> &RawDocument {
        let bytes = &self.reply.as_raw_document().as_bytes()[self.places[number].clone()];
        RawDocument::from_bytes(bytes).expect("the place was taken from a document")
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

/// Documents in the first page, before their size is known.
const FIRST_PAGE_DOCUMENTS: usize = 500;

const PAGE_DOCUMENTS: usize = 5_000;

/// Intended size of a page in bytes, computed from the documents of the page before. The server ends a page at 16 MB.
const PAGE_BYTES: usize = 4_000_000;

/// Number of documents in the next page, learnt from the page before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageSize(usize);

impl Default for PageSize {
    fn default() -> Self {
        Self(FIRST_PAGE_DOCUMENTS)
    }
}

impl PageSize {
    /// Adapts the next page to the size of the documents in this page.
    pub(crate) fn learn(&mut self, page: &Page) {
        let bytes: usize = page.documents().map(|document| document.as_bytes().len()).sum();
        if let Some(each) = bytes.checked_div(page.len()) {
            self.0 = (PAGE_BYTES / each.max(1)).clamp(1, PAGE_DOCUMENTS);
        }
    }
}

/// Bounds of a page, and conditions for its read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range<'a> {
    /// Selects only documents after this `_id`.
    pub(crate) after: Option<RawBsonRef<'a>>,
    /// Selects only documents up to and including this `_id`.
    pub(crate) up_to: Option<RawBsonRef<'a>>,
    pub(crate) not_before: Timestamp,
    pub(crate) size: PageSize,
    pub(crate) secondary: bool,
}

impl Range<'_> {
    /// All documents after an `_id`, read from the primary at `not_before` or later.
    pub(crate) fn from(after: Option<RawBsonRef<'_>>, not_before: Timestamp) -> Range<'_> {
        Range { after, up_to: None, not_before, size: PageSize::default(), secondary: false }
    }
}

/// Times that a page is read again because the server no longer had its snapshot.
const AGAIN: u32 = 5;

/// Reads the first documents of a range, all at the same cluster time. Only a page at the end of the range is empty.
pub(crate) async fn page(server: &Server, area: Area<'_>, mut range: Range<'_>) -> Result<Page, Error> {
    for _ in 0..AGAIN {
        match page_once(server, area, range).await {
            // A later page of the same documents is as good: the copy takes the time of each page as it is.
            Err(error) if error.code() == Some(codes::SNAPSHOT_TOO_OLD) => {
                tracing::info!(server = %server.name(), "the snapshot of a page was too old, reading the page again");
                range.not_before = server.now().await?;
            }
            page => return page,
        }
    }
    page_once(server, area, range).await
}

async fn page_once(server: &Server, area: Area<'_>, range: Range<'_>) -> Result<Page, Error> {
    let bounds = Bounds::of(&range);
    let page = read(server, area, range, bounds).await?;
    match bounds {
        // Documents with an `_id` of another type may follow.
        Bounds::WithinType if page.is_empty() && range.up_to.is_none() => {
            read(server, area, range, Bounds::AcrossTypes).await
        }
        _ => Ok(page),
    }
}

/// Form of a range's bounds in the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bounds {
    /// `$gt` and `$lte`, which find only values of their operand's type.
    WithinType,
    /// `$expr`, which compares across types.
    AcrossTypes,
}

impl Bounds {
    /// Chooses the cheaper form. In a range with an open end, `WithinType` misses documents whose `_id` has another
    /// type.
    fn of(range: &Range<'_>) -> Self {
        match (range.after, range.up_to) {
            (Some(after), None) if TypeRange::of(after).is_some() => Self::WithinType,
            (Some(after), Some(up_to))
                if TypeRange::of(after).is_some_and(|kind| TypeRange::of(up_to) == Some(kind)) =>
            {
                Self::WithinType
            }
            _ => Self::AcrossTypes,
        }
    }

    fn append(self, filter: &mut RawDocumentBuf, range: &Range<'_>, buckets: Option<&[i32]>) {
        let bounds = [(cstr!("$gt"), range.after), (cstr!("$lte"), range.up_to)];
        let bounds = bounds.into_iter().filter_map(|(operator, id)| Some((operator, id?)));
        let mut expressions = RawArrayBuf::new();
        match self {
            Self::WithinType => {
                let mut id = RawDocumentBuf::new();
                bounds.for_each(|(operator, bound)| id.append(operator, bound));
                filter.append(cstr!("_id"), id);
            }
            Self::AcrossTypes => {
                bounds.for_each(|(operator, id)| expressions.push(rawdoc! { operator: ["$_id", { "$literal": id }] }))
            }
        }
        buckets.into_iter().for_each(|buckets| expressions.push(digest::is_in(buckets)));
        if !expressions.is_empty() {
            filter.append(cstr!("$expr"), rawdoc! { "$and": expressions });
        }
    }
}

/// BSON types whose values `$gt` and `$lte` order as an index does. NaN belongs to none: no number is greater than NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TypeRange {
    Number,
    String,
    ObjectId,
    DateTime,
    Binary,
}

impl TypeRange {
    fn of(id: RawBsonRef<'_>) -> Option<Self> {
        match id {
            RawBsonRef::Int32(_) | RawBsonRef::Int64(_) => Some(Self::Number),
            RawBsonRef::Double(number) if !number.is_nan() => Some(Self::Number),
            RawBsonRef::String(_) => Some(Self::String),
            RawBsonRef::ObjectId(_) => Some(Self::ObjectId),
            RawBsonRef::DateTime(_) => Some(Self::DateTime),
            RawBsonRef::Binary(_) => Some(Self::Binary),
            _ => None,
        }
    }
}

async fn read(server: &Server, area: Area<'_>, range: Range<'_>, bounds: Bounds) -> Result<Page, Error> {
    let mut filter = area.which.filter(server.partition_field());
    bounds.append(&mut filter, &range, area.buckets);
    let page = find(server, area, &range, filter).await?;
    if page.left_out.is_empty() {
        return Ok(page);
    }
    let (ns, left_out) = (server.namespace(area.namespace), page.left_out.len());
    tracing::warn!(server = %server.name(), %ns, left_out, "documents are left out, whose _id no link can carry");
    // The next page begins after a document of this page, and an empty page is the end.
    if page.is_empty() { after_left_out(server, area, range, page).await } else { Ok(page) }
}

/// Reads the page after documents that are left out and fill the first page alone. An empty page is the end of the
/// range.
async fn after_left_out(server: &Server, area: Area<'_>, range: Range<'_>, first: Page) -> Result<Page, Error> {
    let mut filter = area.which.filter(server.partition_field());
    Bounds::AcrossTypes.append(&mut filter, &range, area.buckets);
    let large = large_ids::of(server, area.namespace, filter.clone()).await?;
    let mut left_out: Vec<RawBson> = large.into_iter().map(|large| large.id).collect();
    left_out.extend(first.left_out);
    // Without large `_id`s, which are too long for a bound.
    let not_large = rawdoc! { "$expr": { "$not": [large_ids::is_large()] } };
    let mut after = rawdoc! {};
    loop {
        let filter = rawdoc! { "$and": [filter.clone(), not_large.clone(), after] };
        let mut page = find(server, area, &range, filter).await?;
        left_out.append(&mut page.left_out);
        let Some(last) = page.last_left_out.as_deref().and_then(opaque::literal).filter(|_| page.is_empty()) else {
            return Ok(Page { left_out, ..page });
        };
        after = rawdoc! { "$expr": { "$gt": ["$_id", last] } };
    }
}

/// Reads documents that match the filter, all at the same cluster time.
async fn find(server: &Server, area: Area<'_>, range: &Range<'_>, filter: RawDocumentBuf) -> Result<Page, Error> {
    let namespace = server.namespace(area.namespace);
    let Range { not_before, size, secondary, .. } = *range;
    let find = rawdoc! {
        "find": namespace.collection.as_str(), "filter": filter, "sort": { "_id": 1 },
        "batchSize": i32::try_from(size.0).unwrap_or(1), "singleBatch": true,
        "readConcern": { "level": "snapshot", "afterClusterTime": not_before },
    };
    let database = server.client().database(&namespace.database);
    let mut run = database.run_raw_cursor_command(find);
    if secondary {
        let preference = ReadPreference::SecondaryPreferred { options: None };
        run = run.selection_criteria(SelectionCriteria::ReadPreference(preference));
    }
    let mut cursor = server.patiently("reading a zone", run.batch()).await?;
    let reply = futures_util::StreamExt::next(&mut cursor);
    let reply = server.patiently("reading a zone", async { reply.await.transpose() }).await?;
    let reply = reply.ok_or_else(|| server.unsuitable("its reply to a find is empty"))?;
    let at = reply.as_raw_document().get_document("cursor").and_then(|cursor| cursor.get_timestamp("atClusterTime"));
    let (mut places, mut left_out, mut last_left_out) = (Vec::new(), Vec::new(), None);
    let start = reply.as_raw_document().as_bytes().as_ptr().addr();
    let slices = reply.doc_slices().map_err(|error| Error::of_driver(server.name(), "reading a zone", &error))?;
    for document in slices {
        if let RawBsonRef::Document(document) = document.map_err(|error| server.malformed(error))? {
            if !opaque::has_readable_id(document) {
                let key = opaque::document_key(document).ok_or_else(|| no_id(server))?;
                left_out.push(opaque::stand_in(&key));
                last_left_out = Some(key);
                continue;
            }
            let place = document.as_bytes().as_ptr().addr() - start;
            places.push(place..place + document.as_bytes().len());
        }
    }
    // The reply names no cluster time if the collection does not exist.
    let at = match at {
        Ok(at) => at,
        Err(_) if places.is_empty() => not_before,
        Err(_) => return Err(super::read::no_read_time(server)),
    };
    Ok(Page { reply, places, at, left_out, last_left_out })
}

/// True if the collection had no document at some time from `not_before` on, or does not exist. A server may look long
/// for the first document that a majority has.
pub(crate) async fn is_empty(server: &Server, namespace: u16, not_before: Timestamp) -> Result<bool, Error> {
    has_none(server, namespace, RawDocumentBuf::new(), not_before).await
}

/// As [`is_empty`], for the documents of an area. Without an index the server looks through the whole collection, in
/// the order on disk, which is much quicker than the order of `_id`.
pub(crate) async fn is_empty_area(server: &Server, area: Area<'_>, not_before: Timestamp) -> Result<bool, Error> {
    has_none(server, area.namespace, area.which.filter(server.partition_field()), not_before).await
}

async fn has_none(
    server: &Server,
    namespace: u16,
    filter: RawDocumentBuf,
    not_before: Timestamp,
) -> Result<bool, Error> {
    let namespace = server.namespace(namespace);
    // Nothing of the document itself, which may hold text that is no UTF-8.
    let nothing = rawdoc! { "_id": 0, "is_there": { "$literal": true } };
    let find = rawdoc! {
        "find": namespace.collection.as_str(), "filter": filter, "projection": nothing, "limit": 1,
        "singleBatch": true, "readConcern": { "level": "snapshot", "afterClusterTime": not_before },
    };
    let database = server.client().database(&namespace.database);
    match server.patiently("looking for documents", database.run_raw_command(find).into_future()).await {
        Ok(reply) => Ok(first_batch(&reply).next().is_none()),
        // A copy finds out.
        Err(error) if error.code() == Some(codes::SNAPSHOT_TOO_OLD) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Approximate number of documents in all buckets of the area; `None` if the server cannot tell within one second. In a
/// small collection they are counted, in a large one a sample tells their share.
pub(crate) async fn estimate(server: &Server, area: Area<'_>) -> Option<u64> {
    const QUICKLY_MS: i32 = 1_000;
    const SMALL: u64 = 10_000;
    // Small enough for the random cursor of a server, which takes less than 5 % of a collection.
    const SAMPLE: u64 = 400;
    let namespace = server.namespace(area.namespace);
    let database = server.client().database(&namespace.database);
    let query = bson::Document::try_from(area.which.filter(server.partition_field())).ok()?;
    let count = async |query: Option<bson::Document>| {
        let mut count = bson::doc! { "count": &namespace.collection, "maxTimeMS": QUICKLY_MS };
        query.into_iter().for_each(|query| drop(count.insert("query", query)));
        let reply = server.run("counting a zone", &database, count).await.ok()?;
        whole(&reply, "n")
    };
    let all = count(None).await?;
    if all <= SMALL {
        return count(Some(query)).await;
    }
    let size = i64::try_from(SAMPLE).ok()?;
    let sample = bson::doc! {
        "aggregate": &namespace.collection, "cursor": {}, "maxTimeMS": QUICKLY_MS,
        "pipeline": [{ "$sample": { "size": size } }, { "$match": query }, { "$count": "n" }],
    };
    let reply = server.run("sampling a zone", &database, sample).await.ok()?;
    let found = first_batch(&reply).next().map_or(Some(0), |counted| whole(counted, "n"))?;
    // A share too small for the sample is unknown.
    (found > 0).then(|| all.saturating_mul(found) / SAMPLE)
}

/// A whole number of either type.
fn whole(document: &bson::Document, field: &str) -> Option<u64> {
    let number = match document.get(field)? {
        bson::Bson::Int32(number) => i64::from(*number),
        bson::Bson::Int64(number) => *number,
        _ => return None,
    };
    u64::try_from(number).ok()
}

/// An owned copy of a document's `_id`. Fails if the document is malformed or has no `_id`.
pub(crate) fn id_of(server: &Server, document: &RawDocument) -> Result<RawBson, Error> {
    let id = document.get("_id").map_err(|error| server.malformed(error))?;
    id.map(RawBson::from).ok_or_else(|| no_id(server))
}

fn no_id(server: &Server) -> Error {
    server.unsuitable("it returned a document without _id")
}
