//! One replica set, and how its commands are run: within a time, and with errors in our words.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::{Bson, Document, RawDocumentBuf, Timestamp, doc};
use mongodb::event::EventHandler;
use mongodb::options::{ClientOptions, ServerMonitoringMode};
use mongodb::{Client, Database};
use tokio::sync::OnceCell;

use super::error::{Error, codes};
use super::round_trip::RoundTrip;
use super::throughput::Throughput;
use crate::config::Synced;
use crate::config::uri::Uri;
use crate::rules::names::Namespace;
use crate::rules::size::{CALL_LIMIT, Line};

/// How long the driver looks for a primary before a command fails.
const SELECTION_LIMIT: Duration = Duration::from_secs(10);

/// The oldest wire version that is served: MongoDB 5.0, the first whose reads at a cluster time need no transaction.
const OLDEST_WIRE_VERSION: i32 = 13;

/// Where a replica set is. Its client is made at the first use, and shared from then on.
pub struct Endpoint {
    name: Arc<str>,
    uri: Uri,
    sync: Arc<Synced>,
    connections: u32,
    client: OnceCell<Client>,
    round_trip: Arc<RoundTrip>,
    throughput: Arc<Throughput>,
}

impl Endpoint {
    /// An endpoint called `name` in messages, of which at most `connections` commands run at once.
    pub fn new(name: &str, uri: Uri, sync: Arc<Synced>, connections: u32) -> Self {
        let (round_trip, throughput) = (Arc::default(), Arc::default());
        Self { name: name.into(), uri, sync, connections, client: OnceCell::new(), round_trip, throughput }
    }

    /// Its hosts, for people.
    pub(crate) fn hosts(&self) -> &str {
        self.uri.hosts()
    }

    /// What is kept in step.
    pub(crate) fn sync(&self) -> &Arc<Synced> {
        &self.sync
    }

    /// Connects and checks that the server can do what the sync needs.
    ///
    /// # Errors
    /// If it cannot be reached, or is unsuitable.
    pub async fn connect(&self) -> Result<Server, Error> {
        let client = self.client.get_or_try_init(|| self.make_client()).await?.clone();
        let server = Server {
            name: self.name.clone(),
            client,
            sync: self.sync.clone(),
            version: (0, 0),
            round_trip: self.round_trip.clone(),
            throughput: self.throughput.clone(),
        };
        server.checked().await
    }

    /// Closes the connections, within `limit`.
    pub(crate) async fn shutdown(&self, limit: Duration) {
        if let Some(client) = self.client.get() {
            let closing = client.clone().shutdown().immediate(true);
            if tokio::time::timeout(limit, closing).await.is_err() {
                tracing::debug!(server = %self.name, "connections were still open at the end");
            }
        }
    }

    async fn make_client(&self) -> Result<Client, Error> {
        let parse = ClientOptions::parse(self.uri.expose()).into_future();
        let mut options = bounded(&self.name, "reading the connection string", CALL_LIMIT, parse).await?;
        options.app_name.get_or_insert_with(|| "spokesync".to_owned());
        options.server_selection_timeout.get_or_insert(SELECTION_LIMIT);
        // A pool that is too small makes commands wait without a limit, and so it is sized by what runs here.
        options.max_pool_size = Some(self.connections);
        options.min_pool_size = None;
        // Half the sockets of the streaming mode; a new primary is found at the next command anyway.
        options.server_monitoring_mode.get_or_insert(ServerMonitoringMode::Poll);
        // Writes are in transactions and reads say themselves what they read.
        options.read_concern = None;
        options.write_concern = None;
        options.selection_criteria = None;
        options.retry_writes = Some(true);
        let round_trip = self.round_trip.clone();
        options.sdam_event_handler = Some(EventHandler::callback(move |event| round_trip.learn_from(&event)));
        Client::with_options(options).map_err(|error| Error::of_driver(&self.name, "connecting", &error))
    }
}

/// A replica set that has been found suitable.
#[derive(Clone)]
pub struct Server {
    name: Arc<str>,
    client: Client,
    sync: Arc<Synced>,
    version: (i32, i32),
    round_trip: Arc<RoundTrip>,
    throughput: Arc<Throughput>,
}

impl Server {
    /// `hub` or `spoke DFW`.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The driver's client.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The synced collections; their numbers are used all over.
    pub(crate) fn namespaces(&self) -> &[Namespace] {
        &self.sync.namespaces
    }

    /// The field that names a document's zone.
    pub(crate) fn partition_key(&self) -> &str {
        &self.sync.partition_key
    }

    /// The same, as documents are built with it.
    pub(crate) fn partition_field(&self) -> &bson::raw::CStr {
        self.partition_key().try_into().expect("the configuration has checked it")
    }

    /// The database of our own collections.
    pub(crate) fn metadata(&self) -> Database {
        self.client.database(&self.sync.metadata_database)
    }

    /// The major and minor version.
    pub(crate) fn version(&self) -> (i32, i32) {
        self.version
    }

    /// How long a round trip to it takes at present.
    pub(crate) fn round_trip(&self) -> Duration {
        self.round_trip.get()
    }

    /// The line to the server at present.
    pub(crate) fn line(&self) -> Line {
        Line { round_trip: self.round_trip.get(), throughput: self.throughput.get() }
    }

    /// A command of so many bytes took so long, or was given up after that.
    pub(super) fn has_sent(&self, bytes: usize, took: Duration) {
        self.throughput.learn(bytes, took);
    }

    /// True if change streams say how to read paths with dots (`disambiguatedPaths`, from 6.1 on).
    pub(crate) fn disambiguates_paths(&self) -> bool {
        self.version >= (6, 1)
    }

    /// True if change streams can bring documents as they were before (from 6.0 on).
    pub(crate) fn has_pre_images(&self) -> bool {
        self.version >= (6, 0)
    }

    /// Runs a command.
    ///
    /// # Errors
    /// If it fails, takes longer than [`CALL_LIMIT`], or reports a write error or write concern error in its reply.
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

    /// Runs a command that looks at many documents, and so may take longer: up to ten minutes.
    ///
    /// # Errors
    /// If it fails or takes longer.
    pub(crate) async fn run_long(
        &self,
        doing: &'static str,
        database: &Database,
        command: Document,
    ) -> Result<Document, Error> {
        const LIMIT: Duration = Duration::from_secs(600);
        bounded(&self.name, doing, LIMIT, database.run_command(command).into_future()).await
    }

    /// Awaits a call of the driver for at most [`CALL_LIMIT`].
    ///
    /// # Errors
    /// If it fails or takes longer.
    pub(crate) async fn bounded<T>(
        &self,
        doing: &'static str,
        call: impl Future<Output = mongodb::error::Result<T>>,
    ) -> Result<T, Error> {
        bounded(&self.name, doing, CALL_LIMIT, call).await
    }

    /// The server's time now: everything that is majority-committed at this moment is not after it.
    ///
    /// # Errors
    /// If the server does not answer.
    pub(crate) async fn now(&self) -> Result<Timestamp, Error> {
        let reply = self.run("asking for the time", &self.client.database("admin"), doc! { "ping": 1 }).await?;
        self.operation_time(&reply)
    }

    /// All documents of one of our own collections that match, majority-committed, a page at a time.
    pub(crate) async fn all_of(
        &self,
        collection: &str,
        filter: Document,
        projection: Document,
    ) -> Result<Vec<Document>, Error> {
        const PAGE: i32 = 5_000;
        let mut all: Vec<Document> = Vec::new();
        loop {
            let after = all.last().and_then(|last| last.get("_id")).cloned();
            let mut conditions = vec![filter.clone()];
            conditions.extend(after.map(|after| doc! { "_id": { "$gt": after } }));
            let find = doc! {
                "find": collection, "filter": { "$and": conditions }, "projection": projection.clone(), "sort": { "_id": 1 },
                "batchSize": PAGE, "singleBatch": true, "readConcern": { "level": "majority" },
            };
            let reply = self.run("reading its own collections", &self.metadata(), find).await?;
            let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
            let before = all.len();
            all.extend(batch.into_iter().flatten().filter_map(Bson::as_document).cloned());
            if all.len() == before {
                return Ok(all);
            }
        }
    }

    /// Makes the server's time go on, by a write that nobody looks at. Tells the new time: a change stream of this server that
    /// has come to it has brought everything before it.
    ///
    /// # Errors
    /// If the server does not answer.
    pub(crate) async fn tick(&self) -> Result<Timestamp, Error> {
        let tick = doc! {
            "update": "ticks", "updates": [{ "q": { "_id": "tick" }, "u": { "$inc": { "n": 1_i64 } }, "upsert": true }],
            "writeConcern": majority(),
        };
        let reply = self.run("making its time go on", &self.metadata(), tick).await?;
        self.operation_time(&reply)
    }

    pub(crate) fn operation_time(&self, reply: &Document) -> Result<Timestamp, Error> {
        reply.get_timestamp("operationTime").map_err(|_| self.unsuitable("its answers have no operationTime"))
    }

    pub(crate) fn unsuitable(&self, reason: &str) -> Error {
        Error::Unsuitable { server: self.name.clone(), reason: reason.to_owned() }
    }

    /// A write that the server took part in and refused.
    pub(crate) fn failed(&self, doing: &'static str, code: i32, message: &str) -> Error {
        Error::Command {
            server: self.name.clone(),
            doing,
            reason: format!("error {code}: {message}"),
            code: Some(code),
            again: false,
            unsure: false,
            failure: super::error::Failure::Transient,
        }
    }

    pub(crate) fn malformed(&self, error: impl Into<crate::rules::reply::Malformed>) -> Error {
        Error::Malformed { server: self.name.clone(), source: error.into() }
    }

    async fn checked(mut self) -> Result<Self, Error> {
        let admin = self.client.database("admin");
        let hello = self.run("greeting", &admin, doc! { "hello": 1 }).await?;
        if hello.get_str("msg").is_ok_and(|message| message == "isdbgrid") {
            return Err(self.unsuitable("it is a mongos: spokesync keeps replica sets in step, not sharded clusters"));
        }
        if hello.get_str("setName").is_err() {
            let reason = "it is not part of a replica set, and so has no change streams: start it with --replSet and run rs.initiate()";
            return Err(self.unsuitable(reason));
        }
        if hello.get_i32("maxWireVersion").unwrap_or(0) < OLDEST_WIRE_VERSION {
            return Err(self.unsuitable("it is older than MongoDB 5.0, the oldest version that is supported"));
        }
        // The connection is open by now, and this is no work for the server.
        let begun = Instant::now();
        let info = self.run("asking for the version", &admin, doc! { "buildInfo": 1 }).await?;
        self.round_trip.learn(begun.elapsed());
        let version = info.get_array("versionArray").ok();
        let part = |index: usize| version.and_then(|parts| parts.get(index)?.as_i32()).unwrap_or(0);
        self.version = (part(0), part(1));
        self.collections().await?;
        Ok(self)
    }

    /// The UUID of every synced collection, where there is one. `None` if the user may not list collections.
    ///
    /// # Errors
    /// If one cannot be kept in step: a collation of its own makes a collection call different `_id`s equal, or zones, which
    /// change streams do not.
    pub(crate) async fn collections(&self) -> Result<Option<Vec<Option<[u8; 16]>>>, Error> {
        let mut identities = Vec::new();
        for namespace in self.namespaces() {
            let database = self.client.database(&namespace.database);
            let command = doc! { "listCollections": 1, "filter": { "name": &namespace.collection } };
            let reply = match self.run("listing collections", &database, command).await {
                Ok(reply) => reply,
                // Not worth a privilege of its own.
                Err(error) if error.code() == Some(codes::UNAUTHORIZED) => return Ok(None),
                Err(error) => return Err(error),
            };
            let found = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
            let found = found.ok().and_then(|batch| batch.first()?.as_document());
            let options = found.and_then(|collection| collection.get_document("options").ok());
            let unusable = [
                ("collation", "a collation of its own"),
                ("timeseries", "time series"),
                ("viewOn", "no documents of its own"),
            ];
            for (option, what) in unusable {
                if options.is_some_and(|options| options.contains_key(option)) {
                    return Err(self
                        .unsuitable(&format!("the collection {namespace} has {what}, which cannot be kept in step")));
                }
            }
            let info = found.and_then(|collection| collection.get_document("info").ok());
            identities.push(match info.and_then(|info| info.get("uuid")) {
                Some(Bson::Binary(uuid)) => uuid.bytes.as_slice().try_into().ok(),
                _ => None,
            });
        }
        Ok(Some(identities))
    }

    /// Makes our own collections, which a transaction should not have to.
    ///
    /// # Errors
    /// If one is missing and cannot be made.
    pub(crate) async fn prepare_metadata(&self) -> Result<(), Error> {
        for collection in
            ["checkpoints", "sessions", "dead_letters", "hub_edits", "foreign", "set_aside", "ticks", "verifications"]
        {
            match self.run("making its metadata collections", &self.metadata(), doc! { "create": collection }).await {
                Err(error) if error.code() != Some(codes::NAMESPACE_EXISTS) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

async fn bounded<T>(
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

/// The first write error or the write concern error of a reply that says `ok: 1` all the same.
fn write_failure(reply: &Document) -> Option<(i32, String)> {
    let first = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document());
    let failure = first.or_else(|| reply.get_document("writeConcernError").ok())?;
    Some((failure.get_i32("code").unwrap_or(0), failure.get_str("errmsg").unwrap_or("no reason given").to_owned()))
}

/// `writeConcern` for commands outside transactions. A failed one means: applied, but not yet safe.
pub(crate) fn majority() -> Document {
    doc! { "w": "majority", "wtimeout": 20_000 }
}

/// Appends documents one after the other as a raw array does, without copying them twice.
pub(crate) fn raw(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).expect("our own documents are valid")
}
