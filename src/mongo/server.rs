//! The connection to one replica set. Every command has a time limit, and every error becomes an [`Error`] with a
//! message for people.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::oid::ObjectId;
use bson::{Bson, Document, RawDocumentBuf, Timestamp, doc};
use mongodb::{Client, Database};

use super::error::{Answer, Error, codes};
use super::haste::Haste;
use super::round_trip::RoundTrip;
use super::throughput::Throughput;
use super::words;
use crate::config::Synced;
use crate::rules::names::{Namespace, by_database};
use crate::rules::size::{CALL_LIMIT, Line};

/// Oldest supported wire version: MongoDB 5.0, the first version that reads at a cluster time without a transaction.
const OLDEST_WIRE_VERSION: i32 = 13;

/// Longest time that a server waits for an event of a change stream.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same while somebody waits for the stream.
const HASTY: Duration = Duration::from_millis(100);

/// A connected replica set that the sync can use.
#[derive(Clone)]
pub struct Server {
    name: Arc<str>,
    client: Client,
    sync: Arc<Synced>,
    version: (i32, i32),
    /// The primary, at the time of connecting.
    primary: Option<Primary>,
    round_trip: Arc<RoundTrip>,
    throughput: Arc<Throughput>,
    haste: Arc<Haste>,
}

/// A primary, as it says in `hello`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Primary {
    /// A server restored from a backup may repeat an election.
    election: Option<ObjectId>,
    /// Random for each start of a server's process.
    process: Option<ObjectId>,
}

impl Primary {
    fn of(hello: &Document) -> Self {
        let process = hello.get_document("topologyVersion").and_then(|version| version.get_object_id("processId"));
        Self { election: hello.get_object_id("electionId").ok(), process: process.ok() }
    }
}

impl Server {
    /// A replica set reached by the client, not [checked](Self::checked) yet.
    pub(super) fn new(
        name: &Arc<str>,
        client: Client,
        sync: &Arc<Synced>,
        round_trip: &Arc<RoundTrip>,
        throughput: &Arc<Throughput>,
        haste: &Arc<Haste>,
    ) -> Self {
        Self {
            name: name.clone(),
            client,
            sync: sync.clone(),
            version: (0, 0),
            primary: None,
            round_trip: round_trip.clone(),
            throughput: throughput.clone(),
            haste: haste.clone(),
        }
    }

    /// The name in messages: `hub` or `spoke DFW`.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The synced collections in the order of the configuration. The place of a collection is its number in keys and
    /// steps, starting at 0.
    pub(crate) fn namespaces(&self) -> &[Namespace] {
        &self.sync.namespaces
    }

    pub(crate) fn namespace(&self, number: u16) -> &Namespace {
        &self.sync.namespaces[usize::from(number)]
    }

    /// The field that names a document's zone.
    pub(crate) fn partition_key(&self) -> &str {
        &self.sync.partition_key
    }

    /// The same field, as a name in a raw document.
    pub(crate) fn partition_field(&self) -> &bson::raw::CStr {
        self.partition_key().try_into().expect("the configuration has checked it")
    }

    /// True if several spokes may be one replica set.
    pub(crate) fn allows_sharing(&self) -> bool {
        self.sync.allow_shared_replica_sets
    }

    /// The database of [our own collections](super::metadata).
    pub(crate) fn metadata(&self) -> Database {
        self.client.database(&self.sync.metadata_database)
    }

    /// The major and minor version of MongoDB.
    pub(crate) fn version(&self) -> (i32, i32) {
        self.version
    }

    pub(crate) fn line(&self) -> Line {
        Line { round_trip: self.round_trip.get(), throughput: self.throughput.get() }
    }

    /// Records the duration of a command of `bytes` bytes, which ended with an answer or a timeout.
    pub(super) fn has_sent(&self, bytes: usize, took: Duration) {
        self.throughput.learn(bytes, took);
    }

    /// Somebody waits until the server's change streams pass the present.
    pub(crate) fn hasten(&self) {
        self.haste.ask(Instant::now());
    }

    /// Longest time that the server waits for an event of a change stream. Afterwards the reply holds only a position.
    pub(super) fn patience(&self) -> Duration {
        if self.haste.is_asked(Instant::now()) { HASTY } else { PATIENCE }
    }

    /// True if change events distinguish dots in field names from paths (`disambiguatedPaths`, since MongoDB 6.1).
    pub(crate) fn disambiguates_paths(&self) -> bool {
        self.version >= (6, 1)
    }

    /// True if change events can hold the document from before the change (pre-images, since MongoDB 6.0).
    pub(crate) fn has_pre_images(&self) -> bool {
        self.version >= (6, 0)
    }

    /// The error of a call that took too long.
    pub(crate) fn timed_out(&self, doing: &'static str, after: Duration) -> Error {
        Error::Timeout { server: self.name.clone(), doing, after }
    }

    /// Runs a command. `doing` says in error messages what the command is for. Fails if the command fails, takes longer
    /// than [`CALL_LIMIT`], or reports a write error or write concern error in its reply.
    pub(crate) async fn run(
        &self,
        doing: &'static str,
        database: &Database,
        command: Document,
    ) -> Result<Document, Error> {
        let reply = self.bounded(doing, database.run_command(command).into_future()).await?;
        match write_failure(&reply) {
            Some((code, message)) => Err(self.failed(doing, code, &message)),
            None => Ok(reply),
        }
    }

    /// Runs a write command as [`Self::run`], byte by byte: the command may hold text that is no UTF-8.
    pub(crate) async fn run_raw(
        &self,
        doing: &'static str,
        database: &Database,
        command: RawDocumentBuf,
    ) -> Result<(), Error> {
        let reply = self.bounded(doing, database.run_raw_command(command).into_future()).await?;
        match write_failure(&reply) {
            Some((code, message)) => Err(self.failed(doing, code, &message)),
            None => Ok(()),
        }
    }

    /// Runs a command that reads many documents, for at most ten minutes. Fails if the command fails or takes longer.
    pub(crate) async fn run_long(
        &self,
        doing: &'static str,
        database: &Database,
        command: Document,
    ) -> Result<Document, Error> {
        const LIMIT: Duration = Duration::from_secs(600);
        bounded(&self.name, doing, LIMIT, database.run_command(command).into_future()).await
    }

    /// Awaits a call of the driver for at most [`CALL_LIMIT`]. Fails if the call fails or takes longer.
    pub(crate) async fn bounded<T>(
        &self,
        doing: &'static str,
        call: impl Future<Output = mongodb::error::Result<T>>,
    ) -> Result<T, Error> {
        bounded(&self.name, doing, CALL_LIMIT, call).await
    }

    /// Awaits a call that may take the server long, such as the search for the next event among the changes of other
    /// collections. Fails if the call fails, or if the server is silent: every [`CALL_LIMIT`] it must answer a question
    /// that is no work, and still be the primary of the same election, because another primary cannot answer the call.
    /// The log says what is waited for.
    pub(crate) async fn patiently<T>(
        &self,
        doing: &'static str,
        call: impl Future<Output = mongodb::error::Result<T>>,
    ) -> Result<T, Error> {
        tokio::pin!(call);
        let begun = Instant::now();
        let failed = |error| Error::of_driver(&self.name, doing, &error);
        loop {
            if let Ok(done) = tokio::time::timeout(CALL_LIMIT, &mut call).await {
                return done.map_err(failed);
            }
            let is_alive = tokio::select! {
                done = &mut call => return done.map_err(failed),
                is_same = self.is_same_primary() => is_same,
            };
            if !is_alive {
                return Err(self.timed_out(doing, begun.elapsed()));
            }
            let seconds = begun.elapsed().as_secs();
            tracing::warn!(server = %self.name, doing, seconds, "the server is still at work");
        }
    }

    /// True if the server answers, is still the primary of the same election, and was not started anew.
    pub(super) async fn is_same_primary(&self) -> bool {
        self.hello().await.is_ok_and(|hello| Some(Primary::of(&hello)) == self.primary)
    }

    /// What the primary says about itself and its replica set.
    ///
    /// # Errors
    /// If the server does not answer.
    pub(super) async fn hello(&self) -> Result<Document, Error> {
        self.run("greeting", &self.client.database("admin"), doc! { "hello": 1 }).await
    }

    /// The server's present cluster time. No majority-committed write is later at this moment.
    pub(crate) async fn now(&self) -> Result<Timestamp, Error> {
        let reply = self.run("asking for the cluster time", &self.client.database("admin"), doc! { "ping": 1 }).await?;
        self.operation_time(&reply)
    }

    /// The cluster time of the reply's operation. Fails if the reply has no cluster time.
    pub(crate) fn operation_time(&self, reply: &Document) -> Result<Timestamp, Error> {
        reply.get_timestamp("operationTime").map_err(|_| self.unsuitable("its answers have no operationTime"))
    }

    /// An error that only a person can correct. `reason` names the cause and the remedy.
    pub(crate) fn unsuitable(&self, reason: &str) -> Error {
        Error::Unsuitable { server: self.name.clone(), reason: reason.to_owned() }
    }

    /// An error of a write, as the server reports it in a reply.
    pub(crate) fn failed(&self, doing: &'static str, code: i32, message: &str) -> Error {
        Error::Command {
            server: self.name.clone(),
            doing,
            reason: format!("error {code}: {message}"),
            code: Some(code),
            again: false,
            unsure: false,
            answer: Answer::Error,
            failure: super::error::Failure::Transient,
        }
    }

    /// An error about a reply that cannot be decoded.
    pub(crate) fn malformed(&self, error: impl Into<crate::rules::reply::Malformed>) -> Error {
        Error::Malformed { server: self.name.clone(), source: error.into() }
    }

    pub(super) async fn checked(mut self) -> Result<Self, Error> {
        // The kind of deployment, and the oldest supported version.
        let admin = self.client.database("admin");
        let hello = self.hello().await?;
        if hello.get_str("msg").is_ok_and(|message| message == "isdbgrid") {
            return Err(self.unsuitable("it is a mongos: spokesync keeps replica sets in step, not sharded clusters"));
        }
        if hello.get_str("setName").is_err() {
            let reason = "it is not part of a replica set, and so has no change streams: start it with --replSet and \
                          run rs.initiate()";
            return Err(self.unsuitable(reason));
        }
        if hello.get_i32("maxWireVersion").unwrap_or(0) < OLDEST_WIRE_VERSION {
            return Err(self.unsuitable("it is older than MongoDB 5.0, the oldest version that is supported"));
        }
        self.primary = Some(Primary::of(&hello));
        // The version, and the first measurement of a round trip: the connection is open by now, and the command costs
        // the server next to nothing.
        let begun = Instant::now();
        let info = self.run("asking for the version", &admin, doc! { "buildInfo": 1 }).await?;
        self.round_trip.learn(begun.elapsed());
        let version = info.get_array("versionArray").ok();
        let part = |index: usize| version.and_then(|parts| parts.get(index)?.as_i32()).unwrap_or(0);
        self.version = (part(0), part(1));
        // The synced collections.
        self.collections().await?;
        Ok(self)
    }

    /// The UUID of every synced collection, in the order of [`Self::namespaces`]; `None` for a collection that does not
    /// exist. `Ok(None)` if the user may not list collections. Fails if a collection cannot be synced: views and time
    /// series have no change streams, a capped collection cannot be written in a transaction or read as of a cluster
    /// time, and a collection with a collation may call two `_id`s or two zones equal that change streams distinguish.
    pub(crate) async fn collections(&self) -> Result<Option<Vec<Option<[u8; 16]>>>, Error> {
        // One command for each database: a server may have hundreds of synced collections.
        let mut listed: HashMap<(&str, String), Document> = HashMap::new();
        for (name, collections) in by_database(self.namespaces()) {
            let database = self.client.database(name);
            let command = doc! { "listCollections": 1, "filter": { "name": { "$in": collections } } };
            let reply = match self.run("listing collections", &database, command).await {
                Ok(reply) => reply,
                // The UUIDs are not worth an additional privilege.
                Err(error) if error.code() == Some(codes::UNAUTHORIZED) => return Ok(None),
                Err(error) => return Err(error),
            };
            let found = first_batch(&reply)
                .filter_map(|found| Some(((name, found.get_str("name").ok()?.to_owned()), found.clone())));
            listed.extend(found);
        }
        let mut identities = Vec::new();
        for namespace in self.namespaces() {
            let found = listed.get(&(namespace.database.as_str(), namespace.collection.clone()));
            // Kinds of collections that cannot be synced.
            let options = found.and_then(|collection| collection.get_document("options").ok());
            let unusable = [
                ("encryptedFields", "encrypted fields with metadata of their own (Queryable Encryption)"),
                ("capped", "a fixed size (it is capped)"),
                ("collation", "a collation of its own"),
                ("timeseries", "time series"),
                ("viewOn", "no documents of its own"),
            ];
            for (option, what) in unusable {
                let is_set = |options: &Document| {
                    options.get(option).is_some_and(|value| !matches!(value, Bson::Boolean(false) | Bson::Null))
                };
                if options.is_some_and(is_set) {
                    return Err(self
                        .unsuitable(&format!("the collection {namespace} has {what}, which cannot be kept in step")));
                }
            }
            // The identity: a collection that was dropped and created again has a new UUID.
            let info = found.and_then(|collection| collection.get_document("info").ok());
            identities.push(match info.and_then(|info| info.get("uuid")) {
                Some(Bson::Binary(uuid)) => uuid.bytes.as_slice().try_into().ok(),
                _ => None,
            });
        }
        Ok(Some(identities))
    }
}

pub(super) async fn bounded<T>(
    server: &Arc<str>,
    doing: &'static str,
    limit: Duration,
    call: impl Future<Output = mongodb::error::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::of_driver(server, doing, &error)),
        Err(_) => Err(Error::Timeout { server: server.clone(), doing, after: limit }),
    }
}

/// The first write error or the write concern error of a reply with `ok: 1`.
fn write_failure(reply: &Document) -> Option<(i32, String)> {
    let first = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document());
    let failure = first.or_else(|| reply.get_document("writeConcernError").ok())?;
    let (code, message) =
        (failure.get_i32("code").unwrap_or(0), failure.get_str("errmsg").unwrap_or("no reason given"));
    // A write concern error is about the server, not about a document.
    Some((code, if first.is_some() { words::of_write(code, message) } else { words::of_command(message) }))
}

/// The documents of a cursor's first batch, in the reply to `find`, `aggregate`, `listCollections` or `listIndexes`.
pub(crate) fn first_batch(reply: &Document) -> impl Iterator<Item = &Document> {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    batch.into_iter().flatten().filter_map(Bson::as_document)
}
