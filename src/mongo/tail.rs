//! A change stream, one server reply at a time.
//!
//! Not the driver's `watch()`: when a resume fails once more with a retryable error, it opens the stream again without its
//! token, and what lies between is lost without an error. Here a stream is an `aggregate` whose every error ends it; its
//! owner opens a new one from the checkpoint, which is exact.
//!
//! Promise: every event after the start, once, in order; or an error.

use std::time::{Duration, Instant};

use bson::{Bson, Document, Timestamp, doc};
use futures_util::StreamExt;
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use super::error::{Error, codes};
use super::metadata::sessions;
use super::server::Server;
use crate::rules::position::Position;
use crate::rules::reply::{BARE, Reply, SessionId};
use crate::rules::size::{self, CALL_LIMIT};

/// How long the server waits for an event before it answers with a position alone.
const PATIENCE: Duration = Duration::from_secs(1);

/// At most so many events in the first reply, before it is known how large they are; any server also stops at 16 MB.
const FIRST_REPLY_EVENTS: u32 = 400;

/// At most so many events in one reply of a near server.
const REPLY_EVENTS: u32 = 5_000;

/// How many bytes a reply of a near server should have, about: what waits is in memory.
const REPLY_BYTES: usize = 3_000_000;

/// A reply should be there within this; a line that is narrow gets smaller ones.
const REPLY_TIME: Duration = Duration::from_secs(3);

/// Of smaller replies most of the time is not that of their bytes.
const TELLING_BYTES: usize = 100_000;

/// What a stream brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Transactions of these sessions are left out at the server.
    pub without: Vec<SessionId>,
    /// Documents that these sessions insert or replace come without their content, of which only the partition key is told.
    pub bare: Vec<SessionId>,
    /// Whether to bring the partition key from before the change, where the collection keeps pre-images.
    pub zone_before: bool,
}

/// An open change stream on the synced collections of one server.
pub struct Tail {
    server: Server,
    selection: Selection,
    replies: Replies,
    /// At most so many events in one reply.
    reply_events: u32,
    /// Where the stream stands, as long as the server may still find that it leaves out the event with that token.
    unproven: Option<Position>,
    /// Events up to here have been seen although the server sends them again.
    seen: Option<Position>,
    last: Timestamp,
}

impl Tail {
    /// Opens a stream that goes on after `position`, or starts now.
    ///
    /// # Errors
    /// If the server does not open it; [`super::error::Failure::HistoryLost`] if the position is no longer in its oplog.
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

    /// What the stream brings.
    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// The server's next reply, which may hold no event.
    ///
    /// # Errors
    /// If the stream fails. It cannot be used any more then.
    pub async fn next(&mut self) -> Result<Reply, Error> {
        let (batch, took) = match self.replies.next(&self.server).await {
            Ok(reply) => reply,
            Err(error) => {
                // While nothing follows the server does not look for the token.
                let Some(place) = self.unproven.take().filter(|_| is_of_token(&error)) else { return Err(error) };
                let (selection, reply_events) = (&self.selection, self.reply_events);
                self.replies = Replies::open_by_time(&self.server, &place, selection, reply_events, &error).await?;
                self.seen = Some(place);
                self.replies.next(&self.server).await?
            }
        };
        self.unproven = self.unproven.take().filter(|_| batch.is_empty()).map(|_| batch.end().clone());
        let times = size::times(self.server.round_trip());
        let came = Came { events: batch.len(), bytes: batch.bytes(), took };
        let reply_events = reply_events(times, self.reply_events, came);
        let batch = self.without_seen(batch);
        self.check_time(&batch)?;
        // The collection was dropped or renamed, and the stream that starts after that sees what comes next. Or the cursor's
        // replies are too large, or too small.
        if batch.is_closed() || reply_events != self.reply_events {
            self.reply_events = reply_events;
            let start = doc! { "startAfter": token(batch.end()) };
            self.replies = Replies::open(&self.server, start, &self.selection, reply_events).await?;
        }
        Ok(batch)
    }

    /// Leaves out what was seen before the stream had to start at a time instead of after a token.
    fn without_seen(&mut self, batch: Reply) -> Reply {
        let Some(seen) = &self.seen else { return batch };
        let new: Vec<usize> = (0..batch.len()).filter(|&index| !seen.has_seen(batch.event(index).token())).collect();
        if new.len() == batch.len() && batch.end() >= seen {
            if !batch.is_empty() {
                self.seen = None;
            }
            return batch;
        }
        batch.excerpt(new.into_iter(), seen.clone().max(batch.end().clone()))
    }

    fn check_time(&mut self, batch: &Reply) -> Result<(), Error> {
        for time in batch.events().map(|event| event.cluster_time()).chain([batch.end().cluster_time()]) {
            if time < self.last {
                let reason = format!("the change stream went back in time, from {} to {time}", self.last);
                return Err(self.server.malformed(crate::rules::reply::Malformed::new(reason)));
            }
            self.last = time;
        }
        Ok(())
    }
}

/// The server's replies. The first one comes with the opening.
struct Replies {
    cursor: RawBatchCursor,
    /// How long the opening took, until its reply is told.
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

    /// Opens it at the time of a place whose token the server cannot use. It brings what was seen at that time once more.
    async fn open_by_time(
        server: &Server,
        place: &Position,
        selection: &Selection,
        reply_events: u32,
        error: &Error,
    ) -> Result<Self, Error> {
        tracing::debug!(server = %server.name(), %error, "resume token not usable, going by its cluster time");
        Self::open(server, doc! { "startAtOperationTime": place.cluster_time() }, selection, reply_events).await
    }

    /// The next reply, and how long it took.
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
            None => return Err(server.unsuitable("the change stream ended without saying so")),
        };
        let took = self.opening.take().unwrap_or_default() + begun.elapsed();
        let batch = Reply::decode(Bytes(reply), server.namespaces()).map_err(|error| server.malformed(error))?;
        Ok((batch, took))
    }
}

/// A reply's bytes where they came.
struct Bytes(RawBatch);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.0.as_raw_document().as_bytes()
    }
}

/// A reply that came.
#[derive(Clone, Copy)]
struct Came {
    events: usize,
    bytes: usize,
    /// How long it was waited for. The server waits for events no longer than [`PATIENCE`].
    took: Duration,
}

/// How many events a reply should have at most, after one of at most `now`, where it may be so many times as large as a near server's.
/// What is about right is left as it is: the stream must be opened anew for it. When nothing comes any more, nothing is known of what
/// will come next.
fn reply_events(times: usize, now: u32, came: Came) -> u32 {
    let Came { events, bytes, took } = came;
    if events == 0 {
        return now.min(FIRST_REPLY_EVENTS);
    }
    let most_events = REPLY_EVENTS.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX));
    let most_bytes = REPLY_BYTES * times;
    let rate = bytes as f64 / took.as_secs_f64().max(1e-3);
    let in_time = if bytes < TELLING_BYTES { most_bytes } else { (rate * REPLY_TIME.as_secs_f64()) as usize };
    let most_bytes = most_bytes.min(in_time);
    let fitting = u32::try_from(events * most_bytes / bytes).unwrap_or(most_events).clamp(1, most_events);
    let is_too_much = bytes > 2 * most_bytes;
    let is_full = u32::try_from(events) == Ok(now);
    if (is_too_much && fitting < now) || (is_full && fitting / 2 >= now) { fitting } else { now }
}

/// The place where a stream that is opened now starts.
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

/// The token is of an event that the stream leaves out, or of another kind of stream.
fn is_of_token(error: &Error) -> bool {
    matches!(error.code(), Some(codes::CHANGE_STREAM_FATAL | codes::INVALID_RESUME_TOKEN))
}

/// Conditions on what never changes of an event, so that every event that was sent once would be sent again.
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
    sessions.iter().map(sessions::binary).collect()
}

/// Only what is read. Without the pre-image's other fields an event of a 16 MB document stays below the limit.
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
            // Changes outside of transactions are not searched for in the list.
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
    fn replies_of_large_events_have_fewer_and_grow_again_when_events_are_small() {
        assert_eq!(after(1, 5_000, 5_000, 5_000_000, 10), 5_000);
        assert_eq!(after(1, 5_000, 160, 16_000_000, 10), 30);
        assert_eq!(after(1, 40, 40, 4_000_000, 10), 40);
        assert_eq!(after(1, 40, 40, 40_000, 10), 3_000);
        assert_eq!(after(1, 40, 3, 3_000, 10), 40, "it was not full");
        assert_eq!(after(1, 5_000, 1, 16_000_000, 10), 1);
        assert_eq!(after(1, 1, 1, 16_000_000, 10), 1);
        assert_eq!(after(1, 5_000, 0, 300, 10), FIRST_REPLY_EVENTS, "it is quiet");
        assert_eq!(after(1, 30, 0, 300, 10), 30);
        assert_eq!(after(3, 15_000, 15_000, 15_000_000, 10), 15_000, "the way is long");
        assert_eq!(after(4, 5_000, 5_000, 4_000_000, 10), 15_000, "it has become long");
        assert_eq!(after(1, 15_000, 15_000, 12_000_000, 10), 3_750, "it has become short");
    }

    #[test]
    fn replies_by_a_narrow_way_have_what_it_carries_in_time() {
        assert_eq!(after(4, 400, 400, 400_000, 1_000), 1_200);
        assert_eq!(after(4, 1_200, 1_200, 1_200_000, 3_000), 1_200, "it is about right");
        assert_eq!(after(4, 12_000, 12_000, 12_000_000, 30_000), 1_200, "it has become narrow");
        assert_eq!(after(4, 1_200, 10, 10_000, 10_000), 1_200, "the server was busy");
        assert_eq!(after(4, 1, 1, 16_000_000, 25_000), 1);
    }
}
