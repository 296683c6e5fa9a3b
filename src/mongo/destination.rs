//! The central transaction of a link: a batch and the covering checkpoint commit together or not at all.
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
//! Promise: after [`Destination::committed`], the batch and the checkpoint are majority-committed. After an error or a
//! crash, the saved checkpoint shows the outcome. A process that has lost the link can no longer commit.

use std::collections::HashMap;

use bson::{RawDocumentBuf, Timestamp, Uuid};
use mongodb::ClientSession;

use super::error::{APPLYING, Error};
use super::metadata;
use super::metadata::checkpoints::{self, Checkpoint, Identity};
use super::metadata::sessions::{self, Slot, TaggedSession};
use super::read::Wanted;
use super::server::Server;
use super::statement::Ready;
use super::transaction::{self, Transaction, count, has_unchanged, write_error};
use crate::rules::key::Key;
use crate::rules::ladder::RefusedStep;
use crate::rules::names::LinkName;
use crate::rules::plan::CommandKind;
use crate::rules::step::{Step, Write};

/// The server at the end of a link, with the claimed checkpoint.
pub(crate) struct Destination {
    server: Server,
    link: LinkName,
    sessions: Sessions,
    checkpoint: Checkpoint,
    sequence: i64,
    claimed_at: Timestamp,
}

struct Sessions {
    usual: TaggedSession,
    /// The session of transactions that move documents to other zones, if separate.
    moves: Option<TaggedSession>,
    /// The present transaction moves documents.
    is_moving: bool,
}

impl Sessions {
    /// The session of the present transaction.
    fn present(&mut self) -> &mut ClientSession {
        self.moves.as_mut().filter(|_| self.is_moving).unwrap_or(&mut self.usual).get()
    }
}

impl Destination {
    /// Takes the link over at the server, with a tagged session, and with a second session for moves if `moves` has a
    /// slot. The metadata collections must be [prepared](super::metadata::prepare).
    pub(crate) async fn claim(
        server: &Server,
        link: &LinkName,
        slot: &Slot,
        moves: Option<&Slot>,
        holder: &str,
    ) -> Result<Self, Error> {
        // The sessions first: all writes of earlier sessions then precede the claim.
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

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    pub(crate) fn link(&self) -> &LinkName {
        &self.link
    }

    /// The saved checkpoint.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Sets the identities of the collections at the source and at the destination, for the next saved checkpoint.
    pub(crate) fn set_collections(&mut self, source: Vec<Identity>, here: Vec<Identity>) {
        self.checkpoint.collections = source;
        self.checkpoint.destination_collections = here;
    }

    /// Sets the identity of the source's replica set, for the next saved checkpoint.
    pub(crate) fn set_source(&mut self, id: Uuid) {
        self.checkpoint.source_id = Some(id);
    }

    /// The number of the newest claim or save.
    pub(crate) fn sequence(&self) -> i64 {
        self.sequence
    }

    /// The server's cluster time of the claim.
    pub(crate) fn claimed_at(&self) -> Timestamp {
        self.claimed_at
    }

    /// Begins a transaction. `moves`: the transaction moves documents to other zones.
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

    pub(crate) async fn abort(&mut self) {
        transaction::abort(&self.server, self.sessions.present()).await;
    }

    /// Records the commit of the transaction with this checkpoint.
    pub(crate) fn committed(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = checkpoint;
        self.sequence += 1;
    }
}

/// What commands did.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// The number of statements without a matching document.
    pub(crate) missed: usize,
    /// The updates of commands in which some statement changed nothing.
    pub(crate) unchanged: Vec<usize>,
    /// The deletes of commands in which some statement found no document.
    pub(crate) uncertain: Vec<usize>,
}

/// An open transaction of a link.
pub(crate) struct Open<'d> {
    server: &'d Server,
    link: &'d LinkName,
    checkpoint: &'d Checkpoint,
    sequence: i64,
    transaction: Transaction<'d>,
}

impl Open<'_> {
    /// The number of the transaction, unique within the link.
    pub(crate) fn next_number(&self) -> i64 {
        self.sequence + 1
    }

    pub(crate) fn link(&self) -> &LinkName {
        self.link
    }

    /// The checkpoint before the transaction.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        self.checkpoint
    }

    /// Sends a command made of some of `steps`, or returns [`Error::Refused`] if the server refuses a step.
    pub(crate) async fn send(&mut self, ready: Ready, steps: &[Step<'_>]) -> Result<Sent, Error> {
        let whose = |statement: usize| {
            let step = &steps[*ready.steps.get(statement)?];
            let is_delta = matches!(step.write, Write::Update(_));
            Some(RefusedStep { key: step.key.clone(), event: Some(step.event), is_delta })
        };
        let reply = self.transaction.write(APPLYING, &ready.database, ready.command, whose).await?;
        let found = count(&reply);
        if ready.kind == CommandKind::Delete && found < ready.steps.len() {
            return Ok(Sent { uncertain: ready.steps, ..Sent::default() });
        }
        if ready.kind != CommandKind::Update {
            return Ok(Sent::default());
        }
        // Every statement of an update should match or insert one document.
        let mut unchanged = ready.steps;
        let missed = unchanged.len().saturating_sub(found);
        match has_unchanged(&reply) {
            true => unchanged.retain(|number| matches!(steps[*number].write, Write::Update(_))),
            false => unchanged.clear(),
        }
        Ok(Sent { missed, unchanged, uncertain: Vec::new() })
    }

    /// The present partition keys of the documents, read within the transaction. Missing documents are left out.
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

    /// The present documents, read within the transaction. Missing documents are left out.
    pub(crate) async fn documents(&mut self, wanted: &Wanted<'_>) -> Result<HashMap<Key, RawDocumentBuf>, Error> {
        self.transaction.documents(wanted).await
    }

    /// Sends commands on our own collections, saves the checkpoint, and commits. Returns the server's cluster time of
    /// the commit, or [`Error::Fenced`] if another process has taken the link over.
    pub(crate) async fn commit(mut self, ours: &[RawDocumentBuf], checkpoint: &Checkpoint) -> Result<Timestamp, Error> {
        let database = self.server.metadata().name().to_owned();
        let save = checkpoints::save(self.link, self.sequence, checkpoint);
        let doing = "saving its checkpoint";
        let mut saved = 0;
        for command in ours.iter().chain([&save]).flat_map(metadata::in_parts) {
            let reply = self.transaction.send(doing, &database, command).await?;
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
