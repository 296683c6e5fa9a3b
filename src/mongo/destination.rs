//! The one transaction that everything rests on: a batch and the checkpoint that covers it, together or not at all.
//!
//! ```text
//! start transaction (the link's tagged session)
//!   the batch's deletes, updates, inserts
//!   documents that turned out to be missing, whole
//!   dead letters and notes, if any
//!   checkpoints { _id: "uplink:DFW", seq: N } → { seq: N+1, token, … }     must match
//! commit, write concern majority
//! ```
//!
//! Promise: once [`Destination::committed`] was told, the batch is majority-committed with its checkpoint; after any
//! error, or a crash, the saved checkpoint tells whether it is. Whoever has lost the link can commit nothing any more.

use std::collections::HashMap;

use bson::{RawDocumentBuf, Timestamp};
use mongodb::ClientSession;

use super::error::Error;
use super::metadata;
use super::metadata::checkpoints::{self, Checkpoint, Identity};
use super::metadata::sessions::{self, Slot, TaggedSession};
use super::read::Wanted;
use super::server::Server;
use super::statement::Ready;
use super::transaction::{self, Transaction, count, write_error};
use crate::rules::key::Key;
use crate::rules::ladder::RefusedStep;
use crate::rules::names::LinkName;
use crate::rules::plan::CommandKind;
use crate::rules::step::{Step, Write};

/// Where a link's changes are applied.
pub(crate) struct Destination {
    server: Server,
    link: LinkName,
    sessions: Sessions,
    checkpoint: Checkpoint,
    sequence: i64,
    claimed_at: Timestamp,
}

/// The sessions of a link's transactions.
struct Sessions {
    usual: TaggedSession,
    /// Where those transactions that move documents to other zones have one of their own.
    moves: Option<TaggedSession>,
    /// The transaction under way moves documents.
    is_moving: bool,
}

impl Sessions {
    /// The one of the transaction under way.
    fn present(&mut self) -> &mut ClientSession {
        self.moves.as_mut().filter(|_| self.is_moving).unwrap_or(&mut self.usual).get()
    }
}

impl Destination {
    /// Takes the link over at this server, with a session of its tag, and one for moves if there is a slot for that.
    pub(crate) async fn claim(
        server: &Server,
        link: &LinkName,
        slot: &Slot,
        moves: Option<&Slot>,
        holder: &str,
    ) -> Result<Self, Error> {
        metadata::prepare(server).await?;
        // The sessions first: so whatever an earlier one wrote was written before this link's next claim.
        let usual = sessions::tagged_session(server, &link.to_string(), &link.zone, slot).await?;
        let moves = match moves {
            Some(slot) => {
                Some(sessions::tagged_session(server, &sessions::moves_of(&link.zone), &link.zone, slot).await?)
            }
            None => None,
        };
        let claim = checkpoints::claim(server, link, holder).await?;
        Ok(Self {
            server: server.clone(),
            link: link.clone(),
            sessions: Sessions { usual, moves, is_moving: false },
            checkpoint: claim.checkpoint,
            sequence: claim.sequence,
            claimed_at: claim.at,
        })
    }

    /// The server.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// The link.
    pub(crate) fn link(&self) -> &LinkName {
        &self.link
    }

    /// The checkpoint as it is saved.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Which collections the source has, and which this server, as is to be saved with the next checkpoint.
    pub(crate) fn set_collections(&mut self, source: Vec<Identity>, here: Vec<Identity>) {
        self.checkpoint.collections = source;
        self.checkpoint.destination_collections = here;
    }

    /// The server's time when the link was taken over.
    pub(crate) fn claimed_at(&self) -> Timestamp {
        self.claimed_at
    }

    /// Begins a transaction, which `moves` documents to other zones or does not.
    pub(crate) async fn begin(&mut self, moves: bool) -> Result<Open<'_>, Error> {
        self.sessions.is_moving = moves;
        let transaction = Transaction::start(&self.server, self.sessions.present()).await?;
        Ok(Open {
            server: &self.server,
            link: &self.link,
            checkpoint: &self.checkpoint,
            sequence: self.sequence,
            transaction,
        })
    }

    /// Gives the transaction up.
    pub(crate) async fn abort(&mut self) {
        transaction::abort(&self.server, self.sessions.present()).await;
    }

    /// The transaction that saves this checkpoint is committed.
    pub(crate) fn committed(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = checkpoint;
        self.sequence += 1;
    }
}

/// A transaction of a link, under way.
pub(crate) struct Open<'d> {
    server: &'d Server,
    link: &'d LinkName,
    checkpoint: &'d Checkpoint,
    sequence: i64,
    transaction: Transaction<'d>,
}

impl Open<'_> {
    /// The number of this transaction, which no other transaction of the link has.
    pub(crate) fn next_number(&self) -> i64 {
        self.sequence + 1
    }

    /// The checkpoint before this transaction.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        self.checkpoint
    }

    /// Sends a command made of some of these steps. Returns the number of its statements that found no document.
    /// Returns [`Error::Refused`] if the server refuses a step.
    pub(crate) async fn send(&mut self, ready: Ready, steps: &[Step<'_>]) -> Result<usize, Error> {
        let whose = |statement: usize| {
            let step = &steps[*ready.steps.get(statement)?];
            let is_delta = matches!(step.write, Write::Update(_));
            Some(RefusedStep { key: step.key.clone(), event: Some(step.event), is_delta })
        };
        let reply = self.transaction.write("applying a batch", &ready.database, ready.command, whose).await?;
        // Every statement of an update matches one document, or inserts one.
        Ok(match ready.kind {
            CommandKind::Update => ready.steps.len().saturating_sub(count(&reply)),
            CommandKind::Delete | CommandKind::Insert => 0,
        })
    }

    /// The partition keys that these documents have now, within the transaction; those that are not there are left out.
    pub(crate) async fn zones(&mut self, wanted: &Wanted<'_>) -> Result<Vec<(Key, Option<String>)>, Error> {
        let mut found = Vec::new();
        for (number, namespace) in (0u16..).zip(self.server.namespaces()) {
            let ids: Vec<_> = wanted.iter().filter(|(key, _)| key.namespace() == number).map(|(_, id)| *id).collect();
            if !ids.is_empty() {
                found.extend(self.transaction.zones(number, namespace, &ids).await?);
            }
        }
        Ok(found)
    }

    /// These documents as they are now, within the transaction; those that are not there are left out.
    pub(crate) async fn documents(&mut self, wanted: &Wanted<'_>) -> Result<HashMap<Key, RawDocumentBuf>, Error> {
        self.transaction.documents(wanted).await
    }

    /// Sends commands on our own collections, saves the checkpoint, and commits. Tells the server's time of that. Fails
    /// if the server fails, or the link was taken over by another process.
    pub(crate) async fn commit(mut self, ours: &[RawDocumentBuf], checkpoint: &Checkpoint) -> Result<Timestamp, Error> {
        let metadata = self.server.metadata().name().to_owned();
        let save = checkpoints::save(self.link, self.sequence, checkpoint);
        let doing = "saving its checkpoint";
        let mut saved = 0;
        for command in ours.iter().chain([&save]) {
            let reply = self.transaction.send(doing, &metadata, command.clone()).await?;
            if let Some((_, code, message)) = write_error(&reply) {
                return Err(self.server.failed(doing, code, &message));
            }
            saved = count(&reply);
        }
        if saved != 1 {
            let by = checkpoints::holder(self.server, self.link).await?;
            return Err(Error::Fenced { link: self.link.to_string(), by });
        }
        self.transaction.commit().await
    }
}
