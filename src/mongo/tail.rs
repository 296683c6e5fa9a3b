//! A change stream, one server reply at a time.
//!
//! The driver's `watch()` is not safe here. If a resume itself fails with a retryable error, `watch()` opens the stream
//! again without a resume token, and loses the events between without an error. Here a stream is an `aggregate`, and
//! every error ends the stream. The owner then opens a new stream from the checkpoint, without a gap.
//!
//! Promise: every event after the start comes once and in order, or the stream ends with an error.

use std::time::{Duration, Instant};

use bson::{Bson, Document, Timestamp, doc};
use futures_util::StreamExt;
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use super::error::{Error, codes};
use super::metadata::sessions as tags;
use super::server::{CALL_LIMIT, Server};
use crate::rules::distance;
use crate::rules::position::Position;
use crate::rules::reply::{BARE, Reply, SessionId};

/// Longest time that the server waits for an event. Afterwards the reply holds only a position.
const PATIENCE: Duration = Duration::from_secs(1);

/// Maximum number of events in the first reply, before their size is known. Every server also ends a reply at 16 MB.
const FIRST_REPLY_EVENTS: u32 = 400;

/// Maximum number of events in one reply of a near server.
const REPLY_EVENTS: u32 = 5_000;

/// Intended size of a reply of a near server, in bytes. Waiting replies stay in memory.
const REPLY_BYTES: usize = 3_000_000;

/// Intended time for the transfer of a reply. A slow connection gets smaller replies.
const REPLY_TIME: Duration = Duration::from_secs(3);

/// Smallest reply that measures the connection, in bytes. The time of a smaller reply depends little on the number of
/// bytes.
const TELLING_BYTES: usize = 100_000;

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
    replies: Replies,
    /// Maximum number of events in one reply.
    reply_events: u32,
    /// Position of the stream until its first event. Until then the server may still reject the resume token, because
    /// the stream leaves out the token's event.
    unproven: Option<Position>,
    /// Events up to this position were seen before, and the server sends some again.
    seen: Option<Position>,
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
        let reply_events = FIRST_REPLY_EVENTS;
        let start = position.map_or_else(Document::new, |position| doc! { "startAfter": token(position) });
        let (replies, unproven, seen) = match Replies::open(server, start, &selection, reply_events).await {
            Ok(replies) => (replies, position.cloned(), None),
            Err(error) => {
                let Some(position) = position.filter(|_| is_of_token(&error)) else { return Err(error) };
                let replies = Replies::open_by_time(server, position, &selection, reply_events, &error).await?;
                (replies, None, Some(position.clone()))
            }
        };
        let last = position.map_or(Timestamp { time: 0, increment: 0 }, Position::cluster_time);
        Ok(Self { server: server.clone(), selection, replies, reply_events, unproven, seen, last })
    }

    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Returns the server's next reply, possibly without events.
    ///
    /// # Errors
    /// If the stream fails. The stream cannot be used afterwards.
    pub async fn next(&mut self) -> Result<Reply, Error> {
        let (reply, took) = match self.replies.next(&self.server).await {
            Ok(reply) => reply,
            Err(error) => {
                // The server looks for the token's event only when a later event comes.
                let Some(place) = self.unproven.take().filter(|_| is_of_token(&error)) else { return Err(error) };
                let (selection, reply_events) = (&self.selection, self.reply_events);
                self.replies = Replies::open_by_time(&self.server, &place, selection, reply_events, &error).await?;
                self.seen = Some(place);
                self.replies.next(&self.server).await?
            }
        };
        self.unproven = self.unproven.take().filter(|_| reply.is_empty()).map(|_| reply.end().clone());
        let times = distance::times(self.server.round_trip());
        let came = Came { events: reply.len(), bytes: reply.bytes(), took };
        let reply_events = reply_events(times, self.reply_events, came);
        let reply = self.without_seen(reply);
        self.check_time(&reply)?;
        // A new cursor is needed for another size of replies, and after a drop or rename of the collection, which
        // closes the stream. `startAfter` continues after either event.
        if reply.is_closed() || reply_events != self.reply_events {
            self.reply_events = reply_events;
            let start = doc! { "startAfter": token(reply.end()) };
            self.replies = Replies::open(&self.server, start, &self.selection, reply_events).await?;
        }
        Ok(reply)
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
}

impl Replies {
    async fn open(server: &Server, start: Document, selection: &Selection, reply_events: u32) -> Result<Self, Error> {
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
        pipeline.push(projection(server, selection));
        let client = server.client();
        let database = client.database(if one_database { &namespaces[0].database } else { "admin" });
        let begun = Instant::now();
        let call = async {
            if let [only] = namespaces {
                let collection = database.collection::<Document>(&only.collection);
                collection.aggregate(pipeline).batch_size(reply_events).max_await_time(PATIENCE).batch().await
            } else {
                database.aggregate(pipeline).batch_size(reply_events).max_await_time(PATIENCE).batch().await
            }
        };
        let cursor = server.bounded("opening the change stream", call).await?;
        Ok(Self { cursor, opening: Some(begun.elapsed()) })
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
        let doing = "reading the change stream";
        let limit = PATIENCE + CALL_LIMIT;
        let begun = Instant::now();
        let Ok(reply) = tokio::time::timeout(limit, self.cursor.next()).await else {
            return Err(Error::Timeout { server: server.name().clone(), doing, after: limit });
        };
        let reply = match reply {
            Some(Ok(reply)) => reply,
            Some(Err(error)) => return Err(Error::of_driver(server.name(), doing, &error)),
            None => return Err(server.unsuitable("the change stream ended without an error")),
        };
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

/// Measurements of a reply.
#[derive(Clone, Copy)]
struct Came {
    events: usize,
    bytes: usize,
    /// Time until the reply came, including at most [`PATIENCE`] in which the server waits for events.
    took: Duration,
}

/// Maximum number of events in the next replies, after a reply with a maximum of `now`. Replies may be `times` as large
/// as those of a near server. A maximum that is about right stays, because each change opens a new cursor. After a
/// reply without events, the maximum is at most that of a first reply, because the size of the next events is unknown.
fn reply_events(times: usize, now: u32, came: Came) -> u32 {
    let Came { events, bytes, took } = came;
    if events == 0 {
        return now.min(FIRST_REPLY_EVENTS);
    }
    let most_events = REPLY_EVENTS.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX));
    let most_bytes = REPLY_BYTES * times;
    // A slow connection gets as many bytes as arrive in time.
    let rate = bytes as f64 / took.as_secs_f64().max(1e-3);
    let in_time = if bytes < TELLING_BYTES { most_bytes } else { (rate * REPLY_TIME.as_secs_f64()) as usize };
    let most_bytes = most_bytes.min(in_time);
    let fitting = u32::try_from(events * most_bytes / bytes).unwrap_or(most_events).clamp(1, most_events);
    let is_too_much = bytes > 2 * most_bytes;
    let is_full = u32::try_from(events) == Ok(now);
    if (is_too_much && fitting < now) || (is_full && fitting / 2 >= now) { fitting } else { now }
}

/// Returns the position at which a stream opened now starts.
///
/// # Errors
/// If the server does not open a stream.
pub async fn present_position(server: &Server) -> Result<Position, Error> {
    let mut tail = Tail::open(server, None, Selection::default()).await?;
    Ok(tail.next().await?.end().clone())
}

fn token(position: &Position) -> Bson {
    Document::try_from(position.token()).map_or(Bson::Null, Bson::Document)
}

/// True if the resume token names an event that the stream leaves out, or comes from another kind of stream.
fn is_of_token(error: &Error) -> bool {
    matches!(error.code(), Some(codes::CHANGE_STREAM_FATAL | codes::INVALID_RESUME_TOKEN))
}

/// Selects events by fields that never change, so that a resumed stream selects the same events again.
fn filter(server: &Server, selection: &Selection) -> Option<Document> {
    let mut conditions = Vec::new();
    if server.namespaces().len() > 1 {
        let names = |key: &str| -> Vec<Document> {
            let name = |ns: &crate::rules::names::Namespace| {
                doc! { format!("{key}.db"): &ns.database, format!("{key}.coll"): &ns.collection }
            };
            server.namespaces().iter().map(name).collect()
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
    sessions.iter().map(tags::binary).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn after(times: usize, now: u32, events: usize, bytes: usize, milliseconds: u64) -> u32 {
        reply_events(times, now, Came { events, bytes, took: Duration::from_millis(milliseconds) })
    }

    #[test]
    fn large_events_lower_the_maximum_of_a_reply_and_small_events_raise_it() {
        assert_eq!(after(1, 5_000, 5_000, 5_000_000, 10), 5_000);
        assert_eq!(after(1, 5_000, 160, 16_000_000, 10), 30);
        assert_eq!(after(1, 40, 40, 4_000_000, 10), 40);
        assert_eq!(after(1, 40, 40, 40_000, 10), 3_000);
        assert_eq!(after(1, 40, 3, 3_000, 10), 40, "the reply was not full");
        assert_eq!(after(1, 5_000, 1, 16_000_000, 10), 1);
        assert_eq!(after(1, 1, 1, 16_000_000, 10), 1);
        assert_eq!(after(1, 5_000, 0, 300, 10), FIRST_REPLY_EVENTS, "the server is quiet");
        assert_eq!(after(1, 30, 0, 300, 10), 30);
        assert_eq!(after(3, 15_000, 15_000, 15_000_000, 10), 15_000, "the server is far");
        assert_eq!(after(4, 5_000, 5_000, 4_000_000, 10), 15_000, "the round trip has become long");
        assert_eq!(after(1, 15_000, 15_000, 12_000_000, 10), 3_750, "the round trip has become short");
    }

    #[test]
    fn a_slow_connection_gets_replies_that_arrive_in_time() {
        assert_eq!(after(4, 400, 400, 400_000, 1_000), 1_200);
        assert_eq!(after(4, 1_200, 1_200, 1_200_000, 3_000), 1_200, "the maximum is about right");
        assert_eq!(after(4, 12_000, 12_000, 12_000_000, 30_000), 1_200, "the connection has become slow");
        assert_eq!(after(4, 1_200, 10, 10_000, 10_000), 1_200, "the server was busy");
        assert_eq!(after(4, 1, 1, 16_000_000, 25_000), 1);
    }
}
