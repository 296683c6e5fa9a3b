//! The documents of one zone of one collection, in the order of their `_id` over all BSON types, a page at a time.
//!
//! `{_id: {$gt: …}}` stays within the type of the value; `$expr` compares across types. Both use the index (MongoDB 5.0 and
//! later), but `$expr` is also evaluated for every document, so that it is only asked where it says something else.

use bson::raw::{CStr, RawArrayBuf, RawBson, RawBsonRef, RawDocument, RawDocumentBuf, cstr};
use bson::{Timestamp, rawdoc};

use mongodb::options::{ReadPreference, SelectionCriteria};
use mongodb::raw_batch_cursor::RawBatch;

use super::digest;
use super::error::Error;
use super::server::Server;
use crate::rules::names::Zone;

/// What to read of a collection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area<'a> {
    /// The collection's number.
    pub(crate) namespace: u16,
    /// Which of its documents.
    pub(crate) which: Which<'a>,
    /// Of these only those that fall into these buckets.
    pub(crate) buckets: Option<&'a [i32]>,
}

impl<'a> Area<'a> {
    /// All of these documents.
    pub(crate) fn of(namespace: u16, which: Which<'a>) -> Self {
        Self { namespace, which, buckets: None }
    }
}

/// Some documents of a collection, by their zone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which<'a> {
    /// Those of this zone.
    Of(&'a Zone),
    /// The same, and those without a partition key.
    OfOrUnstamped(&'a Zone),
    /// Those of none of these zones, with or without a partition key.
    OfNone(&'a [Zone]),
}

impl Which<'_> {
    /// Whether it includes a document with this partition key.
    pub(crate) fn includes(self, key: Option<RawBsonRef<'_>>) -> bool {
        let is = |zone: &Zone| key.and_then(RawBsonRef::as_str) == Some(zone.as_str());
        match self {
            Self::Of(zone) => is(zone),
            Self::OfOrUnstamped(zone) => key.is_none() || is(zone),
            Self::OfNone(zones) => !zones.iter().any(is),
        }
    }

    /// The condition that says so.
    pub(super) fn filter(self, partition_key: &CStr) -> RawDocumentBuf {
        let mut filter = RawDocumentBuf::new();
        match self {
            Self::Of(zone) => filter.append(partition_key, zone.as_str()),
            Self::OfOrUnstamped(zone) => {
                let mut own = RawDocumentBuf::new();
                own.append(partition_key, zone.as_str());
                let mut none = RawDocumentBuf::new();
                none.append(partition_key, rawdoc! { "$exists": false });
                filter.append(cstr!("$or"), RawArrayBuf::from_iter([own, none]));
            }
            Self::OfNone(zones) => {
                let zones: RawArrayBuf = zones.iter().map(Zone::as_str).collect();
                filter.append(partition_key, rawdoc! { "$nin": zones });
            }
        }
        filter
    }
}

/// One page of documents, as they lie in the server's reply.
#[derive(Debug)]
pub(crate) struct Page {
    reply: RawBatch,
    /// Where in the reply each document is.
    places: Vec<std::ops::Range<usize>>,
    /// The server's time at which they were like this.
    pub(crate) at: Timestamp,
}

impl Page {
    /// The documents in order.
    pub(crate) fn documents(&self) -> impl DoubleEndedIterator<Item = &RawDocument> + ExactSizeIterator {
        (0..self.places.len()).map(|number| self.document(number))
    }

    /// The document with this number.
    ///
    /// # Panics
    /// If there are not so many.
    pub(crate) fn document(&self, number: usize) -> &RawDocument {
        let bytes = &self.reply.as_raw_document().as_bytes()[self.places[number].clone()];
        RawDocument::from_bytes(bytes).expect("the place was taken from a document")
    }

    /// How many documents there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// True if there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

/// So many documents are in the first page, before it is known how large they are.
const FIRST_PAGE_DOCUMENTS: usize = 500;

/// At most so many documents in one page.
const PAGE_DOCUMENTS: usize = 5_000;

/// A page has about so many bytes, as far as the one before it tells; the server stops at 16 MB.
const PAGE_BYTES: usize = 4_000_000;

/// How large pages should be, learnt from those that were read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageSize(usize);

impl Default for PageSize {
    fn default() -> Self {
        Self(FIRST_PAGE_DOCUMENTS)
    }
}

impl PageSize {
    /// A page was read.
    pub(crate) fn learn(&mut self, page: &Page) {
        let bytes: usize = page.documents().map(|document| document.as_bytes().len()).sum();
        if let Some(each) = bytes.checked_div(page.len()) {
            self.0 = (PAGE_BYTES / each.max(1)).clamp(1, PAGE_DOCUMENTS);
        }
    }
}

/// Where a page begins and ends, and how it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range<'a> {
    /// Only documents whose `_id` is after this one.
    pub(crate) after: Option<RawBsonRef<'a>>,
    /// Only documents whose `_id` is not after this one.
    pub(crate) up_to: Option<RawBsonRef<'a>>,
    /// As they are at one time, not before this one.
    pub(crate) not_before: Timestamp,
    /// How large the page should be.
    pub(crate) size: PageSize,
    /// Whether a secondary may answer.
    pub(crate) secondary: bool,
}

impl Range<'_> {
    /// From here on, as it is at one time, not before this one.
    pub(crate) fn from(after: Option<RawBsonRef<'_>>, not_before: Timestamp) -> Range<'_> {
        Range { after, up_to: None, not_before, size: PageSize::default(), secondary: false }
    }
}

/// Reads the first documents of a range; all as they are at one time. A page is empty only at the end of the range.
///
/// # Errors
/// If the server does not answer.
pub(crate) async fn page(server: &Server, area: Area<'_>, range: Range<'_>) -> Result<Page, Error> {
    let bounds = Bounds::of(&range);
    let page = read(server, area, range, bounds).await?;
    match bounds {
        // There may be more of other types.
        Bounds::WithinType if page.is_empty() && range.up_to.is_none() => {
            read(server, area, range, Bounds::AcrossTypes).await
        }
        _ => Ok(page),
    }
}

/// How the bounds of a range are told to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bounds {
    /// By operators that stay within the type of their value.
    WithinType,
    /// By `$expr`.
    AcrossTypes,
}

impl Bounds {
    /// The cheaper way for a range, which may leave out what is of another type at its open end.
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

/// Types within which `$gt` and `$lte` order all values as an index does. NaN is not: nothing is greater than that.
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
    let namespace = server.namespace(area.namespace);
    let mut filter = area.which.filter(server.partition_field());
    bounds.append(&mut filter, &range, area.buckets);
    let Range { not_before, size, secondary, .. } = range;
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
    let mut cursor = server.bounded("reading a zone", run.batch()).await?;
    let reply = futures_util::StreamExt::next(&mut cursor);
    let reply = server.bounded("reading a zone", async { reply.await.transpose() }).await?;
    let reply = reply.ok_or_else(|| server.unsuitable("it answered a find with nothing"))?;
    let at = reply.as_raw_document().get_document("cursor").and_then(|cursor| cursor.get_timestamp("atClusterTime"));
    let mut places = Vec::new();
    let start = reply.as_raw_document().as_bytes().as_ptr().addr();
    let slices = reply.doc_slices().map_err(|error| Error::of_driver(server.name(), "reading a zone", &error))?;
    for document in slices {
        if let RawBsonRef::Document(document) = document.map_err(|error| server.malformed(error))? {
            let place = document.as_bytes().as_ptr().addr() - start;
            places.push(place..place + document.as_bytes().len());
        }
    }
    // Where there is no such collection there is no time of the read either.
    let at = match at {
        Ok(at) => at,
        Err(_) if places.is_empty() => not_before,
        Err(_) => return Err(super::read::no_read_time(server)),
    };
    Ok(Page { reply, places, at })
}

/// About how many documents there are, if the server can count them quickly.
pub(crate) async fn estimate(server: &Server, area: Area<'_>) -> Option<u64> {
    const QUICKLY_MS: i32 = 1_000;
    let namespace = server.namespace(area.namespace);
    let query = bson::Document::try_from(area.which.filter(server.partition_field())).ok()?;
    let count = bson::doc! { "count": &namespace.collection, "query": query, "maxTimeMS": QUICKLY_MS };
    let reply = server.run("counting a zone", &server.client().database(&namespace.database), count).await.ok()?;
    reply.get_i32("n").ok().and_then(|count| u64::try_from(count).ok())
}

/// A document's `_id`, kept.
///
/// # Errors
/// If the document is damaged, or has none.
pub(crate) fn id_of(server: &Server, document: &RawDocument) -> Result<RawBson, Error> {
    let id = document.get("_id").map_err(|error| server.malformed(error))?;
    id.map(RawBson::from).ok_or_else(|| server.unsuitable("it gave a document without _id"))
}
