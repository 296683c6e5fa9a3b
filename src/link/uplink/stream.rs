//! Follows a spoke's change stream: replies → work → the hub.

use std::collections::HashMap;
use std::time::Instant;

use bson::Timestamp;
use bson::raw::RawDocument;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::SpokeSource;
use super::changes::Changes;
use super::echoless::Echoless;
use crate::link::apply::mark::Mark;
use crate::link::lifecycle::{Link, QUIET_CHECKPOINT, Stopped};
use crate::link::pair::Turn;
use crate::link::{foreign, letters};
use crate::mongo::error::Error;
use crate::mongo::read::{self, Wanted, When};
use crate::observe::status::State;
use crate::rules::names::Direction;
use crate::rules::position::Position;
use crate::rules::queue::Weight;
use crate::rules::reply::{EventRef, Kind, Reply};
use crate::rules::size::gather;
use crate::rules::uplink::Owner;

/// The status after a drop or a rename.
const COLLECTION_LOST: &str =
    "a synced collection was dropped or renamed at the spoke: the hub and the other spokes keep its documents";

/// An open stream. A task fetches the next reply while the present reply is applied.
pub(super) struct Following {
    replies: mpsc::Receiver<Reply>,
    reader: AbortOnDropHandle<Error>,
    /// The moment of the last save of the position.
    saved: Instant,
}

impl Following {
    /// The error that has ended the stream: only the reader's end closes the channel.
    async fn error(self) -> Error {
        match self.reader.await {
            Ok(error) => error,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

impl Link<'_, SpokeSource> {
    /// Applies reply after reply, until the link has another task.
    pub(super) async fn follow_spoke(&mut self, stop: &CancellationToken) -> Result<Turn, Error> {
        let Some(mut following) = self.following(stop).await? else { return Ok(Turn::Stopped) };
        let cell = self.cell();
        cell.set_state(State::Streaming);
        loop {
            // Another task comes before the next reply.
            if let Some(turn) = self.spoke.pair.turn(Direction::Uplink, self.checkpoint().reconciling) {
                return Ok(turn);
            }
            let next = cell.pulse().while_waiting(following.replies.recv());
            let Some(first) = stop.run_until_cancelled(next).await else { return Ok(Turn::Stopped) };
            let Some(first) = first else { return Err(following.error().await) };
            letters::attend(self).await?;
            self.carry(first, &mut following).await?;
        }
    }

    /// Applies replies during a copy, as [`Source::keep_up`](crate::link::source::Source::keep_up) says. The stream stays
    /// open for the next call, and for the time after the copy.
    pub(super) async fn keep_up_with_spoke(
        &mut self,
        bound: Timestamp,
        waits: bool,
        stop: &CancellationToken,
    ) -> Result<Option<Stopped>, Error> {
        let Some(mut following) = self.following(stop).await? else { return Ok(Some(Stopped)) };
        let mut reached = None;
        while reached.is_none_or(|reached| reached < bound) {
            let replies = &mut following.replies;
            if !waits && replies.is_empty() && !replies.is_closed() {
                break;
            }
            let Some(next) = stop.run_until_cancelled(replies.recv()).await else { return Ok(Some(Stopped)) };
            let Some(reply) = next else { return Err(following.error().await) };
            reached = Some(self.carry(reply, &mut following).await?.seen_until());
        }
        self.source.following = Some(following);
        Ok(None)
    }

    /// The stream left open by a copy, or a new one after the link's position. `None` after a request to stop.
    async fn following(&mut self, stop: &CancellationToken) -> Result<Option<Following>, Error> {
        if let Some(following) = self.source.following.take() {
            return Ok(Some(following));
        }
        let position = self.checkpoint().position.clone();
        // The server may look for the first event for minutes, among the changes of other collections.
        let opening = Echoless::open(&self.source.server, position.as_ref());
        let opening = self.cell().pulse().while_waiting(opening);
        let Some(source) = stop.run_until_cancelled(opening).await else { return Ok(None) };
        let (sender, replies) = mpsc::channel(1);
        let reader = AbortOnDropHandle::new(tokio::spawn(source?.read_into(sender).in_current_span()));
        Ok(Some(Following { replies, reader, saved: Instant::now() }))
    }

    /// Applies a reply, together with the replies that wait behind it. Returns the position after them.
    async fn carry(&mut self, first: Reply, following: &mut Following) -> Result<Position, Error> {
        let (rules, cell) = (self.source.rules.clone(), self.cell());
        // Replies that wait already share the transaction, up to the size of a batch.
        let limit = self.destination.server().line().batch();
        let weigh = |reply: &Reply| Weight { events: reply.len(), bytes: reply.bytes() };
        let replies = gather(first, limit, weigh, || following.replies.try_recv().ok());
        // A quiet stream moves only the position, and saves the position every few seconds, to stay within the oplog
        // window.
        let end = replies.last().expect("there is a first").end().clone();
        if replies.iter().all(|reply| reply.is_empty()) {
            self.source.pushed_up_to(self.spoke, &end);
            self.has_carried(&end);
            cell.quiet(end.cluster_time());
            if following.saved.elapsed() >= QUIET_CHECKPOINT {
                self.save(Some(Mark::quiet(end.clone()))).await?;
                following.saved = Instant::now();
            }
            return Ok(end);
        }
        cell.received();
        let changes = Changes(replies);
        // Both links must check lost collections before a missing document may count as deleted.
        let lost: Vec<u16> = changes.0.iter().flat_map(Reply::lost_collections).collect();
        if !lost.is_empty() {
            cell.set_error(COLLECTION_LOST);
            self.spoke.pair.have_lost_collections(&lost);
        }
        // Foreign documents are registered before the link's position passes the inserts.
        self.register_foreign(&changes).await?;
        self.wall_time = changes.events().filter_map(|event| event.wall_time()).last();
        let work = changes.work(&rules, &self.ahead).map_err(|error| self.source.server.malformed(error))?;
        self.apply(work).await?;
        self.learn_collections(&changes.events().map(|event| event.namespace()).collect()).await?;
        letters::show(self);
        following.saved = Instant::now();
        Ok(end)
    }

    /// Registers other zones' documents inserted at the spoke: a reconcile must not delete foreign documents.
    async fn register_foreign(&mut self, changes: &Changes) -> Result<(), Error> {
        let (server, rules, hub) = (self.source.server.clone(), self.source.rules.clone(), self.destination_server());
        let known = &self.spoke.pair.foreign;
        let (mut new, mut gone) = (HashMap::new(), HashMap::new());
        // Documents that did not fit into their events are read.
        let is_cut = |event: &EventRef<'_>| {
            event.kind() == Kind::Insert && event.full_document().is_none() && event.is_readable()
        };
        let cut = changes.events().filter(is_cut).filter_map(|event| Some((event.key().ok()?, event.id().ok()?)));
        let wanted: Wanted<'_> = cut.collect();
        if !wanted.is_empty() {
            let read = read::documents(&server, &wanted, None, When::NotBefore(server.now().await?)).await?;
            let documents = read.documents.into_iter().filter_map(|(key, document)| Some((key, document?)));
            new.extend(documents.filter(|(_, document)| rules.owner(document) == Owner::Other));
        }
        for event in changes.events().filter(EventRef::is_readable) {
            let is_foreign = |document: &&RawDocument| rules.owner(document) == Owner::Other;
            let inserted = event.full_document().filter(|_| event.kind() == Kind::Insert).filter(is_foreign);
            if let Some(document) = inserted {
                let key = event.key().map_err(|error| server.malformed(error))?;
                gone.remove(&key);
                new.insert(key, document.to_owned());
            } else if event.kind() == Kind::Delete && !(known.is_empty() && new.is_empty()) {
                let key = event.key().map_err(|error| server.malformed(error))?;
                new.remove(&key);
                if known.may_hold(&key) {
                    let namespace = &server.namespaces()[usize::from(key.namespace())];
                    gone.insert(key, (namespace, event.id().map_err(|error| server.malformed(error))?));
                }
            }
        }
        // The register has no compare-and-swap of its own.
        if !(new.is_empty() && gone.is_empty()) {
            self.spoke.tenure.wait(self.destination.link()).await?;
        }
        foreign::register(known, &server, &hub, &new).await?;
        known.end(&server, &gone.into_values().collect::<Vec<_>>()).await
    }
}
