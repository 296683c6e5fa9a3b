//! The transaction that repairs differing documents.
//!
//! The transaction first writes to the link's saved checkpoint, without moving the checkpoint. The link therefore
//! cannot commit before the transaction ends. All reads and writes of the transaction happen exactly at the link's
//! position: the repair undoes no newer change, and no change comes between.

use std::collections::HashMap;

use bson::raw::{RawBsonRef, RawDocumentBuf};
use bson::{Document, Timestamp};
use mongodb::ClientSession;

use super::error::Error;
use super::metadata::checkpoints::{self, Checkpoint};
use super::metadata::sessions;
use super::read::Wanted;
use super::server::Server;
use super::statement::Ready;
use super::transaction::{self, Transaction, write_error};
use crate::rules::key::Key;
use crate::rules::lookup;
use crate::rules::names::{LinkName, Zone};

/// Repairs documents of a zone at a server.
pub(crate) struct Repairer {
    server: Server,
    zone: Zone,
    session: ClientSession,
}

impl Repairer {
    /// Registers a session for repairs at the server.
    pub(crate) async fn new(server: &Server, zone: &Zone) -> Result<Self, Error> {
        let session = sessions::repair_session(server, zone).await?;
        Ok(Self { server: server.clone(), zone: zone.clone(), session })
    }

    /// Begins a transaction that holds the link still. Fails if the link has never begun.
    pub(crate) async fn hold(&mut self, link: &LinkName) -> Result<Held<'_>, Error> {
        let metadata = self.server.metadata().name().to_owned();
        let mut transaction = Transaction::start(&self.server, &mut self.session).await?;
        let reply = transaction.send("holding a link", &metadata, checkpoints::hold(link)).await?;
        let saved = reply.get_document("value").ok();
        let saved =
            saved.ok_or_else(|| self.server.unsuitable(&format!("{link} has no checkpoint: it was never synced")))?;
        let checkpoint = checkpoints::read(&self.server, link, saved)?;
        Ok(Held { server: &self.server, transaction, checkpoint })
    }

    pub(crate) async fn give_up(&mut self) {
        transaction::abort(&self.server, &mut self.session).await;
    }

    /// Ends the registration.
    pub(crate) async fn end(self) -> Result<(), Error> {
        sessions::end_repair(&self.server, &self.session, &self.zone).await
    }
}

/// A transaction that holds a link still.
pub(crate) struct Held<'r> {
    server: &'r Server,
    transaction: Transaction<'r>,
    checkpoint: Checkpoint,
}

impl Held<'_> {
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The present documents. Missing documents are left out.
    pub(crate) async fn documents(&mut self, wanted: &Wanted<'_>) -> Result<HashMap<Key, RawDocumentBuf>, Error> {
        self.transaction.documents(wanted).await
    }

    /// Sends a command. Returns the reason of a refusal, which aborts the transaction.
    pub(crate) async fn send(&mut self, ready: &Ready) -> Result<Option<String>, Error> {
        let sent = self.transaction.write("mending documents", &ready.database, ready.command.clone(), |_| None).await;
        match sent {
            Ok(_) => Ok(None),
            Err(Error::Refused { refusal, .. }) => Ok(Some(refusal.message)),
            Err(error) => Err(error),
        }
    }

    /// Runs a statement on our own collections.
    pub(crate) async fn run_own(&mut self, statement: &RawDocumentBuf) -> Result<(), Error> {
        let metadata = self.server.metadata().name().to_owned();
        let reply: Document = self.transaction.send("mending documents", &metadata, statement.clone()).await?;
        match write_error(&reply) {
            Some((_, code, message)) => Err(self.server.failed("mending documents", code, &message)),
            None => Ok(()),
        }
    }

    pub(crate) async fn commit(self) -> Result<Timestamp, Error> {
        self.transaction.commit().await
    }
}

/// The value of a document's partition key for a filter: null matches a missing key.
pub(crate) fn zone_value<'d>(document: &'d RawDocumentBuf, partition_key: &str) -> RawBsonRef<'d> {
    lookup::value(document, partition_key).unwrap_or(RawBsonRef::Null)
}
