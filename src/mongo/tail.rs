//! A change stream, one server reply at a time.
//!
//! The driver's `watch()` is not safe here. If a resume itself fails with a retryable error, `watch()` opens the stream
//! again without a resume token, and loses the events between without an error. Here a stream is an `aggregate`, and
//! every error ends the stream. The owner then opens a new stream from the checkpoint, without a gap.
//!
//! Promise: every event after the start comes once and in order, or the stream ends with an error.

use std::time::{Duration, Instant};

use bson::raw::{CStr, RawBson, RawDocumentBuf};
use bson::{Bson, Document, Timestamp, doc, rawdoc};
use futures_util::StreamExt;
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use super::error::{Error, Failure, codes};
use super::large_ids::{self, Large};
use super::metadata::sessions;
use super::server::Server;
use crate::rules::names::{Namespace, by_database};
use crate::rules::position::Position;
use crate::rules::reply::{BARE, CUT, Reply, SessionId, UNNAMED};
use crate::rules::size::{self, Came};

/// The events of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Whole,
    /// Without the content of changes.
    Cut,
    /// Without the content of changes, and only events whose resume token fits into a reply twice.
    WithoutLarge,
}

/// Longest resume token, in bytes, of an event that is not passed over. Every `_id` that links carry has a shorter one.
const LONGEST_TOKEN: i32 = 6_500_000;

/// Content of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The server leaves out transactions of these sessions.
    pub without: Vec<SessionId>,
    /// Inserts and replaces of these sessions bring only the partition key of their document.
    pub bare: Vec<SessionId>,
    /// True to bring the partition key from before the change, if the collection keeps pre-images.
    pub zone_before: bool,
}

/// An open change stream on the synced collections of one server.
pub struct Tail {
    server: Server,
    selection: Selection,
    /// `None` if the next reply does not fit into a document: the next event comes alone.
    replies: Option<Replies>,
    reply_events: u32,
    /// Position of the stream until its first event. Until then the server may still reject the resume token, because
    /// the stream leaves out the token's event.
    unproven: Option<Position>,
    /// Events up to this position were seen before, and the server sends some again.
    seen: Option<Position>,
    /// The position after the last reply; `None` for a stream that began at the present, before its first reply.
    place: Option<Position>,
    /// The last reply had no events.
    is_quiet: bool,
    /// Newest cluster time so far.
    last: Timestamp,
}

impl Tail {
    /// Opens a stream that starts after `position`, or at the present.
    ///
    /// # Errors
    /// If the server does not open the stream; [`super::error::Failure::HistoryLost`] if the oplog no longer holds the
    /// position.
    pub async fn open(server: &Server, position: Option<&Position>, selection: Selection) -> Result<Self, Error> {
        let reply_events = size::FIRST_REPLY_EVENTS;
        let start = position.map_or_else(Document::new, |position| doc! { "startAfter": token(position) });
        let (replies, unproven, seen) = match Replies::open(server, start, &selection, reply_events).await {
            Ok(replies) => (Some(replies), position.cloned(), None),
            Err(error) if position.is_some() && is_too_large(server, &error).await => (None, position.cloned(), None),
            Err(error) => {
                let Some(position) = position.filter(|_| is_of_token(&error)) else { return Err(error) };
                let replies = Replies::open_by_time(server, position, &selection, reply_events, &error).await?;
                (Some(replies), None, Some(position.clone()))
            }
        };
        let last = position.map_or(Timestamp { time: 0, increment: 0 }, Position::cluster_time);
        let place = position.cloned();
        let (server, is_quiet) = (server.clone(), false);
        Ok(Self { server, selection, replies, reply_events, unproven, seen, place, is_quiet, last })
    }

    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Returns the server's next reply, possibly without events.
    ///
    /// # Errors
    /// If the stream fails. The stream cannot be used afterwards.
    pub async fn next(&mut self) -> Result<Reply, Error> {
        // The time that the server waits belongs to the cursor. A stream with events needs no other.
        let is_other = |replies: &Replies| replies.patience != self.server.patience();
        if let Some(place) = self.place.clone()
            && self.is_quiet
            && self.replies.as_ref().is_some_and(is_other)
        {
            self.open_after(&place).await?;
        }
        let Some(replies) = &mut self.replies else { return self.next_alone().await };
        let (reply, took) = match replies.next(&self.server).await {
            Ok(reply) => reply,
            Err(error) if self.place.is_some() && is_too_large(&self.server, &error).await => {
                return self.next_alone().await;
            }
            Err(error) => {
                // The server looks for the token's event only when a later event comes.
                let Some(place) = self.unproven.take().filter(|_| is_of_token(&error)) else { return Err(error) };
                let (selection, reply_events) = (&self.selection, self.reply_events);
                *replies = Replies::open_by_time(&self.server, &place, selection, reply_events, &error).await?;
                self.seen = Some(place);
                replies.next(&self.server).await?
            }
        };
        self.unproven = self.unproven.take().filter(|_| reply.is_empty()).map(|_| reply.end().clone());
        self.place = Some(reply.end().clone());
        self.is_quiet = reply.is_empty();
        let came = Came { events: reply.len(), bytes: reply.bytes(), took };
        let reply_events = self.server.line().reply_events(self.reply_events, came);
        let reply = self.without_seen(reply);
        self.check_time(&reply)?;
        // A new cursor is needed for another size of replies, and after a drop or rename of the collection, which
        // closes the stream. `startAfter` continues after either event.
        if reply.is_closed() || reply_events != self.reply_events {
            self.reply_events = reply_events;
            self.open_after(reply.end()).await?;
        }
        Ok(reply)
    }

    /// Returns a reply with the next event alone, after a reply did not fit into a document. An event that does not fit
    /// by itself comes without its content. One that does not fit even then, because of its `_id`, is passed over. The
    /// stream goes on after the event.
    async fn next_alone(&mut self) -> Result<Reply, Error> {
        let mut reply = self.one_event(Form::Whole).await;
        if does_not_fit(&self.server, &reply).await {
            reply = self.one_event(Form::Cut).await;
            if reply.is_ok() {
                tracing::info!(server = %self.server.name(), "a change event is too large: its document is read instead");
            }
        }
        if does_not_fit(&self.server, &reply).await {
            reply = self.past_large_ids().await;
        }
        let reply = reply?;
        self.place = Some(reply.end().clone());
        self.unproven = None;
        let reply = self.without_seen(reply);
        self.check_time(&reply)?;
        self.open_after(reply.end()).await?;
        Ok(reply)
    }

    /// Reads the event after the present place.
    async fn one_event(&mut self, form: Form) -> Result<Reply, Error> {
        let mut replies = self.replies_from_here(form).await?;
        replies.next(&self.server).await.map(|(reply, _)| reply)
    }

    async fn replies_from_here(&mut self, form: Form) -> Result<Replies, Error> {
        let start = self.place.as_ref().map_or_else(Document::new, |place| doc! { "startAfter": token(place) });
        Replies::open_in_form(&self.server, start, &self.selection, 1, form).await
    }

    /// Goes past events whose `_id` is too large for any reply, up to the next other event or the present time. Events
    /// of our own making name the documents with such an `_id` that are there now.
    async fn past_large_ids(&mut self) -> Result<Reply, Error> {
        let until = self.server.tick().await?;
        let mut replies = self.replies_from_here(Form::WithoutLarge).await?;
        let reply = loop {
            let (reply, _) = replies.next(&self.server).await?;
            if !reply.is_empty() || reply.end().cluster_time() >= until {
                break reply;
            }
        };
        tracing::error!(server = %self.server.name(), "a change is passed over: the document's _id is too large for an event");
        let mut found = Vec::new();
        for number in (0u16..).take(self.server.namespaces().len()) {
            match large_ids::of(&self.server, number, rawdoc! {}).await {
                Ok(large) => found.extend(large),
                // The search is for the operator's sake: the stream goes on without.
                Err(error) => tracing::error!(%error, "documents with a large _id are not found"),
            }
        }
        let events = found.into_iter().map(|large| self.event_of(large, &reply)).collect::<Vec<_>>();
        reply.followed_by(events, self.server.namespaces()).map_err(|error| self.server.malformed(error))
    }

    /// An event at the end of the reply in place of one that no reply can hold.
    fn event_of(&self, large: Large, reply: &Reply) -> RawDocumentBuf {
        let Namespace { database, collection } = self.server.namespace(large.namespace);
        let mut zoned = RawDocumentBuf::new();
        if let Some(zone) = large.zone {
            zoned.append(self.server.partition_field(), zone);
        }
        let mut event = rawdoc! {
            "_id": reply.end().token().to_owned(), "operationType": "insert", "clusterTime": reply.end().cluster_time(),
            "ns": { "db": database.as_str(), "coll": collection.as_str() }, "documentKey": { "_id": large.id },
        };
        for (field, value) in [(BARE, RawBson::Document(zoned)), (UNNAMED, RawBson::Boolean(true))] {
            event.append(<&CStr>::try_from(field).expect("no NUL in our own names"), value);
        }
        event
    }

    /// Continues with a new cursor.
    async fn open_after(&mut self, place: &Position) -> Result<(), Error> {
        let start = doc! { "startAfter": token(place) };
        self.replies = match Replies::open(&self.server, start, &self.selection, self.reply_events).await {
            Err(error) if is_too_large(&self.server, &error).await => None,
            opened => Some(opened?),
        };
        Ok(())
    }

    /// Leaves out events that were seen before the stream had to start at a cluster time instead of a resume token.
    fn without_seen(&mut self, reply: Reply) -> Reply {
        let Some(seen) = &self.seen else { return reply };
        let new: Vec<usize> = (0..reply.len()).filter(|&index| !seen.has_seen(reply.event(index).token())).collect();
        if new.len() == reply.len() && reply.end() >= seen {
            if !reply.is_empty() {
                self.seen = None;
            }
            return reply;
        }
        reply.excerpt(new.into_iter(), seen.clone().max(reply.end().clone()))
    }

    fn check_time(&mut self, reply: &Reply) -> Result<(), Error> {
        for time in reply.events().map(|event| event.cluster_time()).chain([reply.end().cluster_time()]) {
            if time < self.last {
                let reason = format!("the change stream went back in time, from {} to {time}", self.last);
                return Err(self.server.malformed(crate::rules::reply::Malformed::new(reason)));
            }
            self.last = time;
        }
        Ok(())
    }
}

/// Replies of one cursor. The opening already brings the first reply.
struct Replies {
    cursor: RawBatchCursor,
    /// Duration of the opening, until the first reply is returned.
    opening: Option<Duration>,
    /// Longest time that the server waits for an event.
    patience: Duration,
}

impl Replies {
    async fn open(server: &Server, start: Document, selection: &Selection, reply_events: u32) -> Result<Self, Error> {
        Self::open_in_form(server, start, selection, reply_events, Form::Whole).await
    }

    async fn open_in_form(
        server: &Server,
        start: Document,
        selection: &Selection,
        reply_events: u32,
        form: Form,
    ) -> Result<Self, Error> {
        let mut stage = start;
        if selection.zone_before && server.has_pre_images() {
            stage.insert("fullDocumentBeforeChange", "whenAvailable");
        }
        if server.disambiguates_paths() {
            stage.insert("showExpandedEvents", true);
        }
        let namespaces = server.namespaces();
        let one_database = namespaces.iter().all(|namespace| namespace.database == namespaces[0].database);
        if !one_database {
            stage.insert("allChangesForCluster", true);
        }
        let mut pipeline = vec![doc! { "$changeStream": stage }];
        pipeline.extend(filter(server, selection));
        if form == Form::WithoutLarge {
            pipeline
                .push(doc! { "$match": { "$expr": { "$lte": [{ "$strLenBytes": "$_id._data" }, LONGEST_TOKEN] } } });
        }
        pipeline.push(match form {
            Form::Whole => projection(server, selection),
            Form::Cut | Form::WithoutLarge => cut_projection(server, selection),
        });
        let client = server.client();
        let database = client.database(if one_database { &namespaces[0].database } else { "admin" });
        let (begun, patience) = (Instant::now(), server.patience());
        let call = async {
            if let [only] = namespaces {
                let collection = database.collection::<Document>(&only.collection);
                collection.aggregate(pipeline).batch_size(reply_events).max_await_time(patience).batch().await
            } else {
                database.aggregate(pipeline).batch_size(reply_events).max_await_time(patience).batch().await
            }
        };
        let cursor = server.patiently("opening the change stream", call).await?;
        Ok(Self { cursor, opening: Some(begun.elapsed()), patience })
    }

    /// Opens the stream at the cluster time of a position whose resume token the server cannot use. Events of that
    /// cluster time come again.
    async fn open_by_time(
        server: &Server,
        place: &Position,
        selection: &Selection,
        reply_events: u32,
        error: &Error,
    ) -> Result<Self, Error> {
        tracing::debug!(server = %server.name(), %error, "resume token unusable, opening at its cluster time");
        Self::open(server, doc! { "startAtOperationTime": place.cluster_time() }, selection, reply_events).await
    }

    /// Returns the next reply and the time that the reply took.
    async fn next(&mut self, server: &Server) -> Result<(Reply, Duration), Error> {
        let begun = Instant::now();
        let cursor = &mut self.cursor;
        let next = async { cursor.next().await.transpose() };
        let reply = server.patiently("reading the change stream", next).await?;
        let reply = reply.ok_or_else(|| server.unsuitable("the change stream ended without an error"))?;
        let took = self.opening.take().unwrap_or_default() + begun.elapsed();
        let reply = Reply::decode(Bytes(reply), server.namespaces()).map_err(|error| server.malformed(error))?;
        Ok((reply, took))
    }
}

/// The driver's reply as bytes, without a copy.
struct Bytes(RawBatch);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.0.as_raw_document().as_bytes()
    }
}

/// Returns the position at which a stream opened now starts.
///
/// # Errors
/// If the server does not open a stream.
pub async fn present_position(server: &Server) -> Result<Position, Error> {
    let mut tail = Tail::open(server, None, Selection::default()).await?;
    Ok(tail.next().await?.end().clone())
}

/// True if the history of the server has a change at this cluster time, as far as can be told. A server that was
/// restored from a backup lacks the changes since the backup.
///
/// # Errors
/// If the server does not open a stream, or the stream fails.
pub(crate) async fn has_change_at(server: &Server, time: Timestamp) -> Result<bool, Error> {
    match has_event_at(server, time).await {
        // The stream that follows fails for the same reason, and tells it.
        Err(error) if error.failure() == Failure::HistoryLost => Ok(true),
        Err(error) if is_too_large(server, &error).await => Ok(true),
        found => found,
    }
}

async fn has_event_at(server: &Server, time: Timestamp) -> Result<bool, Error> {
    let start = doc! { "startAtOperationTime": time };
    let mut replies = Replies::open_in_form(server, start, &Selection::default(), 1, Form::Cut).await?;
    let mut until = None;
    loop {
        let (reply, _) = replies.next(server).await?;
        if let Some(event) = reply.events().next() {
            return Ok(event.cluster_time() == time);
        }
        // A quiet stream tells how far it has come, and comes past this.
        let until = match until {
            Some(until) => until,
            None => *until.insert(server.tick().await?),
        };
        if reply.end().cluster_time() >= until {
            return Ok(until <= time);
        }
    }
}

fn token(position: &Position) -> Bson {
    Document::try_from(position.token()).map_or(Bson::Null, Bson::Document)
}

/// True if a reply did not fit into a document (`BSONObjectTooLarge`), or perhaps not into a message: then the server
/// closes the connection, and goes on.
async fn is_too_large(server: &Server, error: &Error) -> bool {
    error.code() == Some(codes::OBJECT_TOO_LARGE) || (error.is_closed() && server.is_same_primary().await)
}

async fn does_not_fit(server: &Server, reply: &Result<Reply, Error>) -> bool {
    match reply {
        Ok(_) => false,
        Err(error) => is_too_large(server, error).await,
    }
}

/// True if the server may refuse the resume token: the token names an event that the stream leaves out, comes from
/// another kind of stream, or is damaged. A damaged token has one of many codes, so every error of a command counts for
/// which no other reason is known.
fn is_of_token(error: &Error) -> bool {
    error.code().is_some() && error.failure() == Failure::Transient
}

/// Selects events by fields that never change, so that a resumed stream selects the same events again.
fn filter(server: &Server, selection: &Selection) -> Option<Document> {
    let mut conditions = Vec::new();
    if server.namespaces().len() > 1 {
        // One condition for each database: the server looks a name up in a list quickly, and tries pairs one by one.
        let databases = by_database(server.namespaces());
        let names = |key: &str| -> Vec<Document> {
            let names = databases.iter().map(|(database, collections)| {
                doc! { format!("{key}.db"): *database, format!("{key}.coll"): { "$in": collections.clone() } }
            });
            names.collect()
        };
        let either = [names("ns"), names("to")].concat();
        conditions.push(doc! { "$or": either });
    }
    if !selection.without.is_empty() {
        conditions.push(doc! { "lsid.id": { "$nin": ids(&selection.without) } });
    }
    match conditions.as_slice() {
        [] => None,
        [only] => Some(doc! { "$match": only.clone() }),
        _ => Some(doc! { "$match": { "$and": conditions } }),
    }
}

fn ids(sessions: &[SessionId]) -> Vec<bson::Binary> {
    sessions.iter().map(sessions::binary).collect()
}

/// Keeps only the fields in use. Without the pre-image's other fields, an event of a 16 MB document stays below the
/// limit.
fn projection(server: &Server, selection: &Selection) -> Document {
    let mut fields = doc! {
        "operationType": 1, "clusterTime": 1, "wallTime": 1, "ns": 1, "to": 1, "documentKey._id": 1, "fullDocument": 1,
        "updateDescription": 1, "lsid.id": 1,
    };
    if selection.zone_before {
        fields.insert(format!("fullDocumentBeforeChange.{}", server.partition_key()), 1);
    }
    if !selection.bare.is_empty() {
        let is_bare = doc! { "$and": [
            // Changes outside of transactions have no `lsid` and skip the search of the list.
            { "$in": ["$operationType", ["insert", "replace"]] }, "$lsid", { "$in": ["$lsid.id", ids(&selection.bare)] },
        ] };
        let field = server.partition_key();
        let only_its_key = doc! { field: format!("$fullDocument.{field}") };
        fields.insert("fullDocument", doc! { "$cond": [&is_bare, "$$REMOVE", "$fullDocument"] });
        fields.insert(BARE, doc! { "$cond": [is_bare, only_its_key, "$$REMOVE"] });
    }
    doc! { "$project": fields }
}

/// Bytes of a partition key that an event without content repeats, and of the document `{ v: … }` around it. A larger
/// value is no zone's name.
const LARGEST_ZONE: i32 = 10_000;

/// Keeps what names the document and its zone. Of an update, only the partition key among the changed fields stays. A
/// partition key that is too large for a zone's name comes as `true`, which is no zone's name either.
fn cut_projection(server: &Server, selection: &Selection) -> Document {
    let field = server.partition_key();
    let is_put = doc! { "$in": ["$operationType", ["insert", "replace"]] };
    let key_of = |path: &str| {
        let value = format!("${path}.{field}");
        let is_short = doc! { "$lte": [{ "$bsonSize": { "v": &value } }, LARGEST_ZONE] };
        doc! { field: { "$cond": [is_short, value, true] } }
    };
    let removed = doc! { "$ifNull": ["$updateDescription.removedFields", []] };
    let description = doc! {
        "updatedFields": key_of("updateDescription.updatedFields"),
        "removedFields": { "$filter": { "input": removed, "cond": { "$eq": ["$$this", field] } } },
    };
    let is_update = doc! { "$eq": ["$operationType", "update"] };
    let mut fields = doc! {
        "operationType": 1, "clusterTime": 1, "wallTime": 1, "ns": 1, "to": 1, "documentKey._id": 1, "lsid.id": 1,
        BARE: { "$cond": [is_put, key_of("fullDocument"), "$$REMOVE"] },
        "updateDescription": { "$cond": [is_update, description, "$$REMOVE"] },
        CUT: { "$literal": true },
    };
    if selection.zone_before {
        let is_known = doc! { "$eq": [{ "$type": "$fullDocumentBeforeChange" }, "object"] };
        let before = key_of("fullDocumentBeforeChange");
        fields.insert("fullDocumentBeforeChange", doc! { "$cond": [is_known, before, "$$REMOVE"] });
    }
    doc! { "$project": fields }
}
