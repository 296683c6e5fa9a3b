//! A server's reply of a change stream: the events, decoded no further than the rules need, and the position after the
//! events.
//!
//! A [`Reply`] owns the bytes, and events are offsets into the bytes. All spokes can share a reply, and no document is
//! copied.

use std::fmt;
use std::sync::Arc;

use bson::Timestamp;
use bson::raw::{RawArrayBuf, RawBsonRef, RawDocument, RawDocumentBuf};
use bson::rawdoc;

use super::key::Key;
use super::names::Namespace;
use super::opaque;
use super::position::Position;

/// A malformed reply of a change stream, with the reason as text.
#[derive(Debug, thiserror::Error)]
#[error("malformed change stream reply: {0}")]
pub struct Malformed(String);

impl Malformed {
    pub(crate) fn new(reason: String) -> Self {
        Self(reason)
    }
}

impl From<bson::error::Error> for Malformed {
    fn from(error: bson::error::Error) -> Self {
        Self(error.to_string())
    }
}

/// The `lsid.id` of a change's transaction.
pub type SessionId = [u8; 16];

/// The field of a bare event: holds only the partition key, in place of the document.
pub(crate) const BARE: &str = "bare";

/// The field of a change event whose content would not fit into a reply: the event names the document, and for an
/// update only the partition key among the changed fields.
pub(crate) const CUT: &str = "cut";

/// The field of an event in place of one that no reply can hold: `documentKey` is a [stand-in](opaque::stand_in).
pub(crate) const UNNAMED: &str = "unnamed";

/// The kind of an event, as far as the sync distinguishes kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Insert,
    Update,
    Replace,
    Delete,
    /// A synced collection was dropped, renamed, or covered by a rename. Never applied anywhere.
    CollectionLost,
    /// Any other event, for example a type of newer servers. Only the position in the stream matters.
    Other,
}

/// A change event, read through [`EventRef`].
#[derive(Clone, Debug)]
struct Event {
    kind: Kind,
    namespace: u16,
    /// The synced namespace that a collection was renamed to.
    renamed_to: Option<u16>,
    cluster_time: Timestamp,
    wall_time: Option<i64>,
    session: Option<SessionId>,
    whole: Span,
    token: Span,
    document_key: Option<Span>,
    full_document: Option<Span>,
    bare: Option<Span>,
    /// The stream left the event's content out because of its size.
    cut: bool,
    /// The `_id` in the document key can be read, and is not too large.
    readable: bool,
    update_description: Option<Span>,
    before: Option<Span>,
}

/// The range of a document in the reply's bytes.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn of(part: &[u8], whole: &[u8]) -> Self {
        // Both slices come from a reply of at most 48 MB, so the offsets fit.
        let start = part.as_ptr().addr() - whole.as_ptr().addr();
        let offset = |at: usize| u32::try_from(at).expect("a reply is smaller than 4 GB");
        Self { start: offset(start), end: offset(start + part.len()) }
    }

    fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    fn moved(self, from: u32, to: u32) -> Self {
        Self { start: self.start - from + to, end: self.end - from + to }
    }
}

/// The bytes of a reply, in any kind of memory.
pub(crate) trait Bytes: AsRef<[u8]> + Send + Sync {}

impl<T: AsRef<[u8]> + Send + Sync> Bytes for T {}

/// A server's reply of a change stream.
#[derive(Clone)]
pub struct Reply {
    bytes: Arc<dyn Bytes>,
    events: Vec<Event>,
    end: Position,
    closed: bool,
}

impl fmt::Debug for Reply {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (events, end) = (&self.events, &self.end);
        formatter.debug_struct("Reply").field("events", events).field("end", end).finish_non_exhaustive()
    }
}

impl Reply {
    /// Decodes and keeps a server's reply to `aggregate` or `getMore`. Events of other namespaces become
    /// [`Kind::Other`]. Fails if the reply does not come from a change stream.
    pub(crate) fn decode(reply: impl Bytes + 'static, namespaces: &[Namespace]) -> Result<Self, Malformed> {
        let bytes: &[u8] = reply.as_ref();
        let whole = RawDocument::from_bytes(bytes)?;
        let mut namespaces = Numbers { namespaces, last: None };
        let mut events = Vec::new();
        let mut end = None;
        let mut closed = false;
        let cursor = whole.get_document("cursor").map_err(|error| Malformed(error.to_string()))?;
        for element in cursor {
            match element? {
                (name, RawBsonRef::Array(array)) if name == "firstBatch" || name == "nextBatch" => {
                    for event in array {
                        let RawBsonRef::Document(event) = event? else {
                            return Err(Malformed("an event is no document".to_owned()));
                        };
                        events.push(decode_event(event, bytes, &mut namespaces)?);
                    }
                }
                (name, RawBsonRef::Document(token)) if name == "postBatchResumeToken" => {
                    end = Position::from_token(token);
                }
                (name, RawBsonRef::Int64(id)) if name == "id" => closed = id == 0,
                _ => {}
            }
        }
        let end = end.ok_or_else(|| Malformed("it has no postBatchResumeToken".to_owned()))?;
        Ok(Self { bytes: Arc::new(reply), events, end, closed })
    }

    /// The events in the stream's order.
    pub fn events(&self) -> impl ExactSizeIterator<Item = EventRef<'_>> {
        self.events.iter().map(|event| EventRef { bytes: (*self.bytes).as_ref(), event })
    }

    /// The event with the number `index`.
    ///
    /// # Panics
    /// If the reply has fewer events.
    pub fn event(&self, index: usize) -> EventRef<'_> {
        EventRef { bytes: (*self.bytes).as_ref(), event: &self.events[index] }
    }

    /// The numbers of the namespaces with a dropped or renamed collection.
    pub(crate) fn lost_collections(&self) -> Vec<u16> {
        let lost = self.events.iter().filter(|event| event.kind == Kind::CollectionLost);
        lost.flat_map(|event| std::iter::once(event.namespace).chain(event.renamed_to)).collect()
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// True if the reply brought only a new position.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Size of the reply in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        (*self.bytes).as_ref().len()
    }

    /// The position after the reply.
    pub fn end(&self) -> &Position {
        &self.end
    }

    /// The position just before the event with the number `index`: the position of the event before. `None` for the
    /// first event.
    pub(crate) fn before(&self, index: usize) -> Option<Position> {
        index.checked_sub(1).and_then(|previous| self.event(previous).position())
    }

    /// The first events, and the others. `None` unless the number of first events is between 1 and all but one.
    pub(crate) fn split(&self, first: usize) -> Option<(Self, Self)> {
        let end = self.before(first).filter(|_| first < self.len())?;
        let (first, others) = self.events.split_at(first);
        let part = |events: &[Event]| Self { events: events.to_vec(), ..self.clone() };
        Some((Self { end, closed: false, ..part(first) }, part(others)))
    }

    /// True if the server closed the stream after the reply, for example after a drop of the collection.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// The reply with more events after its own, in separate memory.
    ///
    /// # Errors
    /// If an additional event is malformed.
    pub(crate) fn followed_by(self, more: Vec<RawDocumentBuf>, namespaces: &[Namespace]) -> Result<Self, Malformed> {
        let mut events = RawArrayBuf::new();
        self.events().map(|event| event.raw()).chain(more).for_each(|event| events.push(event));
        let end = self.end.token().to_owned();
        let cursor = rawdoc! { "id": i64::from(!self.closed), "nextBatch": events, "postBatchResumeToken": end };
        Self::decode(rawdoc! { "cursor": cursor }.into_bytes(), namespaces)
    }

    /// A reply with only these events, in separate memory, with the position `end`.
    pub(crate) fn excerpt(&self, indices: impl Iterator<Item = usize>, end: Position) -> Self {
        let whole = (*self.bytes).as_ref();
        let mut bytes = Vec::new();
        let mut events = Vec::new();
        for index in indices {
            let mut event = self.events[index].clone();
            let from = event.whole;
            let to = u32::try_from(bytes.len()).expect("an excerpt is smaller than its reply");
            bytes.extend_from_slice(&whole[from.start as usize..from.end as usize]);
            let shift = |span: Span| span.moved(from.start, to);
            event.whole = shift(event.whole);
            event.token = shift(event.token);
            event.document_key = event.document_key.map(shift);
            event.full_document = event.full_document.map(shift);
            event.bare = event.bare.map(shift);
            event.update_description = event.update_description.map(shift);
            event.before = event.before.map(shift);
            events.push(event);
        }
        Self { bytes: Arc::new(bytes), events, end, closed: self.closed }
    }
}

/// An event of a [`Reply`].
#[derive(Clone, Copy)]
pub struct EventRef<'a> {
    bytes: &'a [u8],
    event: &'a Event,
}

impl<'a> EventRef<'a> {
    pub(crate) fn kind(&self) -> Kind {
        self.event.kind
    }

    /// The server's time of the change.
    pub fn cluster_time(&self) -> Timestamp {
        self.event.cluster_time
    }

    /// Wall-clock time of the change at the server, in milliseconds since 1970 (MongoDB 6.0 and later).
    pub(crate) fn wall_time(&self) -> Option<i64> {
        self.event.wall_time
    }

    /// The session of the change's transaction.
    pub fn session(&self) -> Option<SessionId> {
        self.event.session
    }

    /// The document's `_id`.
    ///
    /// # Errors
    /// If the event has no `_id`. Every event of a document has an `_id`.
    pub fn id(&self) -> Result<RawBsonRef<'a>, Malformed> {
        let key = self.event.document_key.ok_or_else(|| Malformed("an event has no documentKey".to_owned()))?;
        let id = self.document(key).get("_id")?;
        id.ok_or_else(|| Malformed("a documentKey has no _id".to_owned()))
    }

    /// False for a document whose `_id` cannot be read, or is too large.
    pub(crate) fn is_readable(&self) -> bool {
        self.event.readable
    }

    /// The event's `documentKey`.
    pub(crate) fn document_key(&self) -> Option<&'a RawDocument> {
        self.event.document_key.map(|key| self.document(key))
    }

    /// The number of the event's namespace.
    pub(crate) fn namespace(&self) -> u16 {
        self.event.namespace
    }

    pub(crate) fn key(&self) -> Result<Key, Malformed> {
        Ok(Key::new(self.event.namespace, self.id()?))
    }

    /// The whole document of an insert or a replace, unless the event is bare.
    pub(crate) fn full_document(&self) -> Option<&'a RawDocument> {
        self.event.full_document.map(|span| self.document(span))
    }

    /// True if the event lacks its content: the stream did not ask for the document, or the content was too large.
    pub(crate) fn is_bare(&self) -> bool {
        self.event.bare.is_some() || self.event.cut
    }

    /// The part of an insert or a replace with the zone: the whole document, or only the partition key of a bare event.
    pub(crate) fn zoned(&self) -> Option<&'a RawDocument> {
        self.event.full_document.or(self.event.bare).map(|span| self.document(span))
    }

    pub(crate) fn update_description(&self) -> Option<&'a RawDocument> {
        self.event.update_description.map(|span| self.document(span))
    }

    /// The document before the change, or the selected part of the document, if the collection keeps pre-images.
    pub(crate) fn before(&self) -> Option<&'a RawDocument> {
        self.event.before.map(|span| self.document(span))
    }

    /// The event's resume token.
    pub fn token(&self) -> &'a RawDocument {
        self.document(self.event.token)
    }

    /// The position after the event.
    pub fn position(&self) -> Option<Position> {
        Position::from_token(self.token())
    }

    /// The cluster time of a change of a document. `None` for other events, and for one of our own making, whose
    /// position may be of no event.
    pub fn time_of_change(&self) -> Option<Timestamp> {
        let is_change = matches!(self.kind(), Kind::Insert | Kind::Replace | Kind::Update | Kind::Delete);
        self.position().filter(|position| is_change && position.is_of_event()).map(|_| self.cluster_time())
    }

    /// The unchanged event of the server.
    pub(crate) fn raw(&self) -> RawDocumentBuf {
        self.document(self.event.whole).to_owned()
    }

    /// The event's size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.event.whole.len()
    }

    fn document(&self, span: Span) -> &'a RawDocument {
        RawDocument::from_bytes(&self.bytes[span.start as usize..span.end as usize])
            .expect("the span was taken from a document")
    }
}

fn decode_event<'b>(event: &'b RawDocument, reply: &[u8], namespaces: &mut Numbers<'b>) -> Result<Event, Malformed> {
    let span = |document: &RawDocument| Span::of(document.as_bytes(), reply);
    let mut operation = "";
    let mut token = None;
    let mut time = None;
    let mut from = None;
    let mut to = None;
    let mut decoded = Event {
        kind: Kind::Other,
        namespace: u16::MAX,
        renamed_to: None,
        cluster_time: Timestamp { time: 0, increment: 0 },
        wall_time: None,
        session: None,
        whole: span(event),
        token: span(event),
        document_key: None,
        full_document: None,
        bare: None,
        cut: false,
        readable: true,
        update_description: None,
        before: None,
    };
    // A single pass over the fields: look-ups by name would scan large events repeatedly.
    for element in event {
        let (name, value) = element?;
        match (name.as_str(), value) {
            ("_id", RawBsonRef::Document(document)) => token = Some(span(document)),
            ("operationType", RawBsonRef::String(text)) => operation = text,
            ("clusterTime", RawBsonRef::Timestamp(at)) => time = Some(at),
            ("wallTime", RawBsonRef::DateTime(at)) => decoded.wall_time = Some(at.timestamp_millis()),
            ("ns", RawBsonRef::Document(document)) => from = namespaces.find(document),
            ("to", RawBsonRef::Document(document)) => to = namespaces.find(document),
            ("lsid", RawBsonRef::Document(document)) => decoded.session = session_id(document),
            ("documentKey", RawBsonRef::Document(document)) => {
                decoded.document_key = Some(span(document));
                decoded.readable &= opaque::has_readable_id(document);
            }
            ("fullDocument", RawBsonRef::Document(document)) => decoded.full_document = Some(span(document)),
            (BARE, RawBsonRef::Document(document)) => decoded.bare = Some(span(document)),
            (CUT, RawBsonRef::Boolean(cut)) => decoded.cut = cut,
            (UNNAMED, RawBsonRef::Boolean(unnamed)) => decoded.readable &= !unnamed,
            ("updateDescription", RawBsonRef::Document(document)) => {
                decoded.update_description = Some(span(document));
            }
            ("fullDocumentBeforeChange", RawBsonRef::Document(document)) => decoded.before = Some(span(document)),
            _ => {}
        }
    }
    // Every event needs a position and a time.
    decoded.token = token.ok_or_else(|| Malformed("an event has no _id".to_owned()))?;
    decoded.cluster_time = time.ok_or_else(|| Malformed("an event has no clusterTime".to_owned()))?;
    // Events of other namespaces and unknown types count only as positions.
    decoded.kind = match (operation, from, to) {
        ("insert", Some(_), _) => Kind::Insert,
        ("update", Some(_), _) => Kind::Update,
        ("replace", Some(_), _) => Kind::Replace,
        ("delete", Some(_), _) => Kind::Delete,
        ("drop" | "rename", Some(_), _) | ("rename", _, Some(_)) => Kind::CollectionLost,
        _ => Kind::Other,
    };
    decoded.namespace = from.or(to).unwrap_or(u16::MAX);
    decoded.renamed_to = to.filter(|to| from.is_some_and(|from| from != *to));
    let has_document = match decoded.kind {
        Kind::Insert | Kind::Replace => decoded.full_document.is_some() || decoded.bare.is_some(),
        Kind::Update => decoded.update_description.is_some(),
        _ => true,
    };
    if !has_document {
        return Err(Malformed(format!("an event of type {operation} has no document")));
    }
    Ok(decoded)
}

/// The numbers of namespaces, with the last look-up: successive events mostly share a namespace.
struct Numbers<'b> {
    namespaces: &'b [Namespace],
    last: Option<(&'b RawDocument, Option<u16>)>,
}

impl<'b> Numbers<'b> {
    fn find(&mut self, ns: &'b RawDocument) -> Option<u16> {
        if let Some((last, number)) = self.last
            && last == ns
        {
            return number;
        }
        let number = self.look_up(ns);
        self.last = Some((ns, number));
        number
    }

    fn look_up(&self, ns: &RawDocument) -> Option<u16> {
        let (database, collection) = (ns.get_str("db").ok()?, ns.get_str("coll").ok()?);
        let found = self.namespaces.iter().position(|ns| ns.database == database && ns.collection == collection)?;
        u16::try_from(found).ok()
    }
}

fn session_id(lsid: &RawDocument) -> Option<SessionId> {
    lsid.get_binary("id").ok()?.bytes.try_into().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use bson::{Document, doc, rawdoc};

    pub(crate) const TOKENS: [&str; 4] = [
        "8200000001000000012B022C0100296E04",
        "8200000002000000012B022C0100296E04",
        "8200000003000000012B022C0100296E04",
        "8200000004000000012B022C0100296E04",
    ];

    /// A reply with these events. Each event gets the next token, and default fields in `a.b`.
    pub(crate) fn reply(events: &[Document]) -> Reply {
        let events: Vec<Document> = events
            .iter()
            .zip(TOKENS)
            .enumerate()
            .map(|(index, (event, token))| {
                let time = Timestamp { time: u32::try_from(index).expect("few") + 1, increment: 1 };
                let mut whole =
                    doc! { "_id": { "_data": token }, "clusterTime": time, "ns": { "db": "a", "coll": "b" } };
                whole.extend(event.clone());
                whole
            })
            .collect();
        let last = TOKENS[events.len().saturating_sub(1)];
        let reply = doc! { "cursor": { "nextBatch": events, "id": 7_i64, "postBatchResumeToken": { "_data": last } } };
        let reply = RawDocumentBuf::try_from(&reply).expect("valid");
        Reply::decode(reply.as_bytes().to_vec(), &[Namespace::parse("a.b").expect("valid")]).expect("valid")
    }

    #[test]
    fn events_of_other_namespaces_keep_only_their_place() {
        let reply = reply(&[
            doc! { "operationType": "insert", "documentKey": { "_id": 1 }, "fullDocument": { "_id": 1 } },
            doc! { "operationType": "insert", "ns": { "db": "a", "coll": "x" }, "fullDocument": { "_id": 1 } },
            doc! { "operationType": "rename", "ns": { "db": "a", "coll": "x" }, "to": { "db": "a", "coll": "b" } },
            doc! { "operationType": "reshardCollection" },
        ]);
        let kinds: Vec<Kind> = reply.events().map(|event| event.kind()).collect();
        assert_eq!(kinds, [Kind::Insert, Kind::Other, Kind::CollectionLost, Kind::Other]);
    }

    #[test]
    fn a_rename_between_two_synced_names_concerns_both_collections() {
        let rename = doc! {
            "_id": { "_data": TOKENS[0] }, "operationType": "rename", "clusterTime": Timestamp { time: 1, increment: 1 },
            "ns": { "db": "a", "coll": "b" }, "to": { "db": "a", "coll": "c" },
        };
        let end = doc! { "_data": TOKENS[0] };
        let reply = rawdoc! { "cursor": RawDocumentBuf::try_from(&doc! {
            "nextBatch": [rename], "id": 7_i64, "postBatchResumeToken": end,
        }).expect("valid") };
        let namespaces = ["a.c", "a.b"].map(|name| Namespace::parse(name).expect("valid"));
        let reply = Reply::decode(reply.as_bytes().to_vec(), &namespaces).expect("valid");
        assert_eq!(reply.lost_collections(), [1, 0]);
    }

    #[test]
    fn an_excerpt_says_the_same_of_its_events() {
        let reply = reply(&[
            doc! { "operationType": "delete", "documentKey": { "_id": 1 } },
            doc! {
                "operationType": "update", "documentKey": { "_id": "two" }, "updateDescription": { "x": 1 },
                "lsid": { "id": bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![7; 16] } },
                "fullDocumentBeforeChange": { "_pk": "DFW" },
            },
        ]);
        let excerpt = reply.excerpt([1].into_iter(), reply.end().clone());
        assert_eq!(excerpt.len(), 1);
        assert!(excerpt.bytes() < reply.bytes());
        let (one, other) = (reply.event(1), excerpt.event(0));
        assert_eq!(one.raw(), other.raw());
        assert_eq!(one.key().expect("valid"), other.key().expect("valid"));
        assert_eq!(other.session(), Some([7; 16]));
        assert_eq!(other.update_description(), one.update_description());
        assert_eq!(other.before().expect("there").get_str("_pk").ok(), Some("DFW"));
        assert_eq!(other.token(), one.token());
    }

    #[test]
    fn a_closed_stream_is_noticed() {
        let reply = rawdoc! {
            "cursor": { "nextBatch": [], "id": 0_i64, "postBatchResumeToken": { "_data": TOKENS[0] } },
        };
        let reply = Reply::decode(reply.as_bytes().to_vec(), &[]).expect("valid");
        assert!(reply.is_closed() && reply.is_empty());
    }

    #[test]
    fn garbage_is_an_error_and_not_a_panic() {
        let namespaces = [Namespace::parse("a.b").expect("valid")];
        let end = rawdoc! { "_data": TOKENS[0] };
        let garbage = [
            rawdoc! {},
            rawdoc! { "cursor": 1 },
            rawdoc! { "cursor": { "nextBatch": [] } },
            rawdoc! { "cursor": { "nextBatch": [1], "postBatchResumeToken": end.clone() } },
            rawdoc! { "cursor": { "nextBatch": [{ "_id": { "_data": "" } }], "postBatchResumeToken": end.clone() } },
            rawdoc! { "cursor": { "nextBatch": [{
                "_id": { "_data": "" }, "operationType": "insert", "clusterTime": Timestamp { time: 1, increment: 1 },
                "ns": { "db": "a", "coll": "b" },
            }], "postBatchResumeToken": end } },
        ];
        for reply in garbage {
            assert!(Reply::decode(reply.as_bytes().to_vec(), &namespaces).is_err(), "{reply:?}");
        }
    }
}
