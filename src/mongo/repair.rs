//! The transaction that mends documents which differ.
//!
//! It writes to the link's saved checkpoint first, without moving it. So the link cannot commit before this transaction
//! has ended, and what it reads and writes stands at exactly the link's place: nothing newer can be undone, and nothing
//! can come between.

use std::collections::HashMap;

use bson::raw::{RawBsonRef, RawDocumentBuf};
use bson::{Bson, Document, Timestamp};
use mongodb::ClientSession;

use super::error::Error;
use super::metadata::checkpoints::{self, Checkpoint};
use super::metadata::sessions;
use super::read::Wanted;
use super::server::Server;
use super::statement::Ready;
use super::transaction::{self, Transaction, write_error};
use crate::rules::key::Key;
use crate::rules::names::{LinkName, Zone};

/// Whoever mends documents of one zone at one server.
pub(crate) struct Repairer {
    server: Server,
    zone: Zone,
    session: ClientSession,
}

impl Repairer {
    /// Registers itself at this server.
    pub(crate) async fn new(server: &Server, zone: &Zone) -> Result<Self, Error> {
        let session = sessions::repair_session(server, zone).await?;
        Ok(Self { server: server.clone(), zone: zone.clone(), session })
    }

    /// Begins a transaction in which the link stands still. Fails if the server does not answer, or the link has never
    /// begun.
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

    /// Gives a transaction up.
    pub(crate) async fn give_up(&mut self) {
        transaction::abort(&self.server, &mut self.session).await;
    }

    /// Is not needed any more.
    pub(crate) async fn end(self) -> Result<(), Error> {
        sessions::end_repair(&self.server, &self.session, &self.zone).await
    }
}

/// A transaction in which a link stands still.
pub(crate) struct Held<'r> {
    server: &'r Server,
    transaction: Transaction<'r>,
    checkpoint: Checkpoint,
}

impl Held<'_> {
    /// Where the link stands.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// These documents as they are now; those that are not there are left out.
    pub(crate) async fn documents(&mut self, wanted: &Wanted<'_>) -> Result<HashMap<Key, RawDocumentBuf>, Error> {
        self.transaction.documents(wanted).await
    }

    /// Sends a command. Tells why it is refused, which voids the transaction.
    pub(crate) async fn send(&mut self, ready: &Ready) -> Result<Option<String>, Error> {
        let sent = self.transaction.write("mending documents", &ready.database, ready.command.clone(), |_| None).await;
        match sent {
            Ok(_) => Ok(None),
            Err(Error::Refused { refusal, .. }) => Ok(Some(refusal.message)),
            Err(error) => Err(error),
        }
    }

    /// Takes these documents, given with their namespace, out of the register of foreign ones.
    pub(crate) async fn run_own(&mut self, statement: &RawDocumentBuf) -> Result<(), Error> {
        let metadata = self.server.metadata().name().to_owned();
        let reply: Document = self.transaction.send("mending documents", &metadata, statement.clone()).await?;
        match write_error(&reply) {
            Some((_, code, message)) => Err(self.server.failed("mending documents", code, &message)),
            None => Ok(()),
        }
    }

    /// Commits it.
    pub(crate) async fn commit(self) -> Result<Timestamp, Error> {
        self.transaction.commit().await
    }
}

/// The value of a document's partition key, as a condition matches it: nothing where there is none.
pub(crate) fn zone_value<'d>(document: &'d RawDocumentBuf, partition_key: &str) -> RawBsonRef<'d> {
    document.get(partition_key).ok().flatten().unwrap_or(RawBsonRef::Null)
}

/// An `_id` as people read it.
pub(crate) fn shown_id(id: RawBsonRef<'_>) -> serde_json::Value {
    Bson::try_from(bson::raw::RawBson::from(id)).map_or(serde_json::Value::Null, Bson::into_relaxed_extjson)
}
