//! The address of one replica set, and the driver's client behind it: made at the first use, shared, and made anew when
//! the client cannot serve any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use mongodb::Client;
use mongodb::event::EventHandler;
use mongodb::options::{ClientOptions, ServerMonitoringMode};
use tokio::sync::Mutex;

use super::crowd::{self, Crowd};
use super::diagnose::{self, Cause};
use super::error::{Answer, Error, Failure};
use super::haste::Haste;
use super::round_trip::RoundTrip;
use super::server::{self, Server};
use super::throughput::Throughput;
use crate::config::Synced;
use crate::config::uri::Uri;
use crate::rules::size::CALL_LIMIT;

/// Time for which the driver looks for a primary before a command fails.
const SELECTION_LIMIT: Duration = Duration::from_secs(10);

/// Age from which a refused client is replaced. All links may find a client refused at the same time, and one new
/// client is enough.
const RENEWABLE: Duration = Duration::from_secs(5);

/// The address of a replica set. The first use creates the driver's client; later uses share the client, until it finds
/// no primary, or the server refuses its credentials.
pub struct Endpoint {
    name: Arc<str>,
    hosts: String,
    uri: std::sync::Mutex<Uri>,
    sync: Arc<Synced>,
    connections: u32,
    client: Arc<Mutex<Slot>>,
    /// The next use makes a new client.
    is_stale: AtomicBool,
    /// The server has refused the client: the next use makes a new one, if the client is not new itself.
    is_refused: AtomicBool,
    round_trip: Arc<RoundTrip>,
    throughput: Arc<Throughput>,
    haste: Arc<Haste>,
}

impl Endpoint {
    /// An endpoint that messages call `name`. At most `connections` of its commands run at the same time.
    pub fn new(name: &str, uri: Uri, sync: Arc<Synced>, connections: u32) -> Self {
        Self {
            name: name.into(),
            hosts: uri.hosts().to_owned(),
            uri: std::sync::Mutex::new(uri),
            sync,
            connections,
            client: Arc::default(),
            is_stale: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            round_trip: Arc::default(),
            throughput: Arc::default(),
            haste: Arc::default(),
        }
    }

    /// The hosts of the connection string, for messages.
    pub(crate) fn hosts(&self) -> &str {
        &self.hosts
    }

    /// Uses another connection string with the same hosts from now on: other credentials, or a renewed certificate.
    /// Present users keep their client until they end.
    pub(crate) fn set_uri(&self, uri: Uri) {
        *self.uri.lock().unwrap_or_else(PoisonError::into_inner) = uri;
        self.renew();
    }

    /// Makes the next use begin with a new client, with credentials and certificates as they are then.
    pub(crate) fn renew(&self) {
        self.is_stale.store(true, Ordering::Relaxed);
    }

    /// Replaces the client after an error by which this server refuses it. A connection keeps the user of its
    /// beginning, even if the user is dropped and created again.
    pub(crate) fn renew_after(&self, error: &Error) {
        if matches!(error, Error::Command { server, failure: Failure::Fatal, .. } if *server == self.name) {
            self.is_refused.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn sync(&self) -> &Arc<Synced> {
        &self.sync
    }

    /// Connects, and checks that the sync can use the server.
    ///
    /// # Errors
    /// If the server cannot be reached, or if it is unsuitable.
    pub async fn connect(&self) -> Result<Server, Error> {
        if let Some(reason) = self.unsuitable_service() {
            return Err(Error::Unsuitable { server: self.name.clone(), reason });
        }
        let (client, former) = self.client().await?;
        let server = Server::new(&self.name, client, &self.sync, &self.round_trip, &self.throughput, &self.haste);
        let checked = server.checked().await;
        if self.is_crowded().await {
            return Err(Error::Unsuitable { server: self.name.clone(), reason: crowd::reason() });
        }
        match checked {
            Err(error) if error.is_without_primary() => {
                self.forget(former).await;
                Err(self.with_cause(error).await)
            }
            checked => checked,
        }
    }

    /// What the connection string says of the connection, in words.
    pub(crate) fn warnings(&self) -> Vec<&'static str> {
        self.uri.lock().unwrap_or_else(PoisonError::into_inner).warnings()
    }

    fn unsuitable_service(&self) -> Option<String> {
        let name = self.uri.lock().unwrap_or_else(PoisonError::into_inner).imitation()?;
        Some(format!(
            "it is {name}, not MongoDB: it lacks change streams over transactions and reads at a cluster time"
        ))
    }

    /// The error with the cause, as far as the hosts themselves tell it.
    async fn with_cause(&self, error: Error) -> Error {
        let Ok(options) = self.options().await else { return error };
        match (diagnose::cause(&options).await, error) {
            (Some(Cause::Wrong(reason)), _) => Error::Unsuitable { server: self.name.clone(), reason },
            (Some(Cause::Passing(cause)), Error::Command { server, doing, code, again, unsure, failure, .. }) => {
                let (reason, answer) = (cause, Answer::NoPrimary);
                Error::Command { server, doing, reason, code, again, unsure, answer, failure }
            }
            (_, error) => error,
        }
    }

    /// The client, with the number of the clients before it.
    async fn client(&self) -> Result<(Client, u64), Error> {
        let mut slot = self.client.lock().await;
        let is_old = slot.made_at.is_some_and(|made_at| made_at.elapsed() >= RENEWABLE);
        let is_due =
            self.is_stale.swap(false, Ordering::Relaxed) || (is_old && self.is_refused.swap(false, Ordering::Relaxed));
        if is_due && slot.client.take().is_some() {
            slot.former += 1;
            tracing::info!(server = %self.name, "connecting with a new client");
        }
        let client = match &slot.client {
            Some(client) => client.clone(),
            None => {
                slot.made_at = Some(Instant::now());
                slot.crowd = Crowd::default();
                let client = self.make_client(slot.crowd.clone()).await?;
                slot.client.insert(client).clone()
            }
        };
        Ok((client, slot.former))
    }

    /// Forgets the client, so that the next use makes a new one. A client remembers the newest election that it has
    /// seen, and takes the primary of a replica set that was initiated anew for an old one:
    /// <https://github.com/mongodb/specifications/blob/master/source/server-discovery-and-monitoring/server-discovery-and-monitoring.md#electionid-and-setversion-semantics>.
    /// Other users keep their copies of the client until they end. `former` tells the client from a newer one.
    async fn forget(&self, former: u64) {
        let mut slot = self.client.lock().await;
        if slot.former == former && slot.client.take().is_some() {
            slot.former += 1;
            tracing::debug!(server = %self.name, "no primary found, the next try begins with a new client");
        }
    }

    /// Closes the connections, and gives up after `limit`.
    pub(crate) async fn shutdown(&self, limit: Duration) {
        if let Some(client) = self.client.lock().await.client.take() {
            let closing = client.shutdown().immediate(true);
            if tokio::time::timeout(limit, closing).await.is_err() {
                tracing::debug!(server = %self.name, "connections were still open at the end");
            }
        }
    }

    async fn options(&self) -> Result<ClientOptions, Error> {
        let uri = self.uri.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let parse = ClientOptions::parse(uri.expose()).into_future();
        server::bounded(&self.name, "reading the connection string", CALL_LIMIT, parse).await
    }

    async fn is_crowded(&self) -> bool {
        self.client.lock().await.crowd.is_there()
    }

    async fn make_client(&self, crowd: Crowd) -> Result<Client, Error> {
        let mut options = self.options().await?;
        // Before the driver connects to every member that the server names, which would take the links' time.
        if diagnose::members(&options).await.is_some_and(crowd::is_crowd) {
            return Err(Error::Unsuitable { server: self.name.clone(), reason: crowd::reason() });
        }
        options.app_name.get_or_insert_with(|| "spokesync".to_owned());
        options.server_selection_timeout.get_or_insert(SELECTION_LIMIT);
        // The driver waits for a free connection without a limit, so the pool has room for all commands that may run.
        options.max_pool_size = Some(self.connections);
        options.min_pool_size = None;
        // Polling needs half the sockets of the streaming mode. The next command finds a new primary in either mode.
        options.server_monitoring_mode.get_or_insert(ServerMonitoringMode::Poll);
        // Every transaction and every read sets its own concerns, and reads go to the primary unless the caller says
        // otherwise, whatever the connection string asks for.
        options.read_concern = None;
        options.write_concern = None;
        options.selection_criteria = None;
        options.retry_writes = Some(true);
        // A server that names too many members later loses its client.
        let (round_trip, slot) = (self.round_trip.clone(), Arc::downgrade(&self.client));
        options.sdam_event_handler = Some(EventHandler::callback(move |event| {
            round_trip.learn_from(&event);
            if crowd.comes_with(&event) {
                tokio::spawn(close(slot.clone()));
            }
        }));
        Client::with_options(options).map_err(|error| Error::of_driver(&self.name, "connecting", &error))
    }
}

/// The client in use, and the number of the clients before it.
#[derive(Default)]
struct Slot {
    former: u64,
    client: Option<Client>,
    made_at: Option<Instant>,
    /// Of the client in use.
    crowd: Crowd,
}

/// Closes the client in use, with all its connections.
async fn close(slot: Weak<Mutex<Slot>>) {
    let Some(slot) = slot.upgrade() else { return };
    let client = slot.lock().await.client.take();
    if let Some(client) = client {
        client.shutdown().immediate(true).await;
    }
}
