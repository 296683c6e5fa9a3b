//! The life of a link from claim to end, the same for both directions.
//!
//! Promise: the link's checkpoint passes a change only after the change is applied at the destination, or saved as a
//! dead letter.

use std::time::{Duration, Instant};

use bson::Timestamp;
use tokio_util::sync::CancellationToken;

use super::apply::mark::Mark;
use super::copy::Ended;
use super::letters::{self, Retries};
use super::pair::{REMEMBERED_DOCUMENTS, Turn};
use super::parked::{self, Letters};
use super::reached::Reached;
use super::servers::{self, Ends};
use super::shared::Shared;
use super::slow;
use super::source::{Opening, Source};
use crate::mongo::destination::Destination;
use crate::mongo::error::{Error, Failure};
use crate::mongo::ledger::Ledger;
use crate::mongo::metadata::checkpoints::{Checkpoint, Reconciling};
use crate::mongo::metadata::{set_aside, unsettled};
use crate::mongo::server::Server;
use crate::mongo::{metadata, tail};
use crate::observe::status::{Cell, State};
use crate::rules::ahead::Ahead;
use crate::rules::names::{Direction, LinkName};
use crate::rules::past::{Restore, Restored};
use crate::rules::position::Position;

/// The loop ended on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

/// A link claimed by the process.
pub(super) struct Link<'s, S> {
    pub(super) spoke: &'s Shared,
    pub(super) source: S,
    pub(super) destination: Destination,
    /// Documents with a newer version at the destination than at the link's position.
    pub(super) ahead: Ahead,
    /// The documents with an open dead letter.
    pub(super) parked: Letters,
    /// The next try of each dead letter.
    pub(super) retries: Retries,
    /// The notes of hub edits at the destination; the hub has none.
    pub(super) ledger: Option<Ledger>,
    /// Average bytes of the documents read at the source most recently.
    pub(super) read_bytes: usize,
    /// The destination has everything from the source before the link's position.
    is_complete: bool,
    /// Time of the newest change in the present batch, in milliseconds since 1970.
    pub(super) wall_time: Option<i64>,
    /// The moment at which the link last applied changes of the stream during a copy, or began to copy.
    kept_up: Instant,
    /// The stream may have brought documents that the copy has not reached: in this process, or in an earlier one.
    pub(super) has_followed: bool,
}

/// Interval at which a quiet link saves the stream's position, to stay within the oplog window.
pub(super) const QUIET_CHECKPOINT: Duration = Duration::from_secs(5);

/// Duration of a copy after which the stream's changes are applied between two pages.
const LONG_COPY: Duration = Duration::from_secs(2);

/// Expected bytes of a document before the first read: large, so that the first batch reads few documents.
const UNKNOWN_READ_BYTES: usize = 100_000;

/// Runs a link until a request to stop. Fails if a server fails, or if another process takes the link over.
pub(super) async fn run<S: Source>(spoke: &Shared, stop: &CancellationToken) -> Result<Stopped, Error> {
    let ended = run_once::<S>(spoke, stop).await;
    // The next generation of the link tries other credentials, if there are any by then.
    if let Err(error) = &ended {
        spoke.endpoint.renew_after(error);
        spoke.hub.renew_after(error);
    }
    ended
}

async fn run_once<S: Source>(spoke: &Shared, stop: &CancellationToken) -> Result<Stopped, Error> {
    let what = || {
        format!("the checkpoint is not claimed: the hub or spoke {} takes no writes, or does not answer,", spoke.zone)
    };
    let claiming = Link::<S>::claim(spoke);
    let (mut link, found) = slow::shown(spoke.status.link(S::DIRECTION), what, claiming).await?;
    link.greet(found).await?;
    link.anchor().await?;
    loop {
        match link.copy_and_stream(stop).await {
            Err(error) if error.failure() == Failure::HistoryLost => {
                tracing::warn!(%error, "history lost, reconciling");
                link.cell().set_error(&error.to_string());
                // A server that was restored or replaced has lost its history as well, and then nothing counts as
                // deleted.
                let found = link.look_at_servers().await?;
                link.greet(found).await?;
                if !found.is_other {
                    link.start_again(Mark::Restarted).await?;
                }
            }
            // A comparison that is saved already goes on where it was, unless somebody has asked again.
            Ok(Turn::Compare(reason)) => {
                let asked = *spoke.pair.asked(S::DIRECTION);
                if asked.is_some() || link.checkpoint().reconciling != reason {
                    tracing::info!(?reason, "comparing everything");
                    let found = if reason.is_restored() { link.look_at_servers().await?.restored } else { None };
                    link.compares(reason, found.map_or(0, |restore| restore.number)).await?;
                    // Not before the save: if it fails, the opposite link still waits for the comparison.
                    spoke.pair.asked(S::DIRECTION).take_if(|newest| Some(*newest) == asked);
                }
            }
            Ok(Turn::Look) => {
                let found = link.look_at_servers().await?;
                link.greet(found).await?;
            }
            Ok(Turn::Stopped) => return Ok(Stopped),
            Err(error) => return Err(error),
        }
    }
}

impl<'s, S: Source> Link<'s, S> {
    /// Connects both ends, and takes the link over at the destination. Returns also what the link finds about the
    /// servers.
    async fn claim(spoke: &'s Shared) -> Result<(Self, Ends), Error> {
        let cell = spoke.status.link(S::DIRECTION);
        cell.set_state(State::Connecting);
        let edge = spoke.endpoint.connect().await?;
        let link = match S::DIRECTION {
            Direction::Uplink => LinkName::uplink(&spoke.zone),
            Direction::Downlink => LinkName::downlink(&spoke.zone),
        };
        // While the hub says nothing of leases, the link says what is wrong with the hub.
        if !spoke.tenure.is_known() {
            spoke.hub.connect().await?;
        }
        spoke.patiently(S::DIRECTION, spoke.tenure.wait(&link)).await?;
        let starting = spoke.starting(S::DIRECTION).await;
        let hub = spoke.hub.connect().await?;
        metadata::prepare(&edge).await?;
        metadata::prepare(&hub).await?;
        // A stream that opens from now on may be one of a restored hub.
        let streams = spoke.fanout.streams();
        let found = cell.pulse().while_waiting(servers::look(spoke, S::DIRECTION, &hub, &edge)).await?;
        let (source, destination) = match S::DIRECTION {
            Direction::Uplink => (edge, hub),
            Direction::Downlink => (hub, edge),
        };
        let (usual, moves) = S::sessions(spoke);
        let mut destination = Destination::claim(&destination, &link, usual, moves, &spoke.holder).await?;
        destination.set_source(found.source_id);
        // The opposite link may not notice by itself: its stream goes on at the new server.
        if found.is_other_for_opposite {
            spoke.pair.must_look(S::DIRECTION.opposite());
        }
        spoke.pair.has_due(S::DIRECTION, destination.checkpoint().reconciling);
        let ahead = Ahead::new(destination.checkpoint().ahead.clone(), REMEMBERED_DOCUMENTS);
        let (parked, evidence) = parked::load(destination.server(), destination.link()).await?;
        *spoke.pair.evidence_of(S::DIRECTION) = evidence;
        for (key, id) in unsettled::load(destination.server(), destination.link()).await? {
            spoke.pair.unsettled.add(key, id);
        }
        set_aside::forget_old(destination.server()).await?;
        let mut retries = Retries::default();
        parked.iter().for_each(|(key, _)| retries.add(key.clone(), Instant::now()));
        let has_followed = destination.checkpoint().position.is_some();
        let opening = Opening { spoke, link: &link, source, destination: &destination, streams };
        let (source, ledger) = S::open(opening).await?;
        drop(starting);
        let link = Self {
            spoke,
            source,
            destination,
            ahead,
            parked,
            retries,
            ledger,
            read_bytes: UNKNOWN_READ_BYTES,
            is_complete: false,
            wall_time: None,
            kept_up: Instant::now(),
            has_followed,
        };
        letters::show(&link);
        if link.checkpoint().reconciling == Reconciling::Asked {
            cell.set_comparing(true);
        }
        cell.resumes_at(link.checkpoint().position.as_ref().map(Position::cluster_time));
        Ok((link, found))
    }

    /// Copies what is due, and follows the change stream until the link has another task.
    async fn copy_and_stream(&mut self, stop: &CancellationToken) -> Result<Turn, Error> {
        self.look_at_collections().await?;
        // What an operator wants of dead letters may be what the link needs to go on.
        letters::attend(self).await?;
        // A comparison requested by an operator can wait for the opposite link. A first copy, or a copy after a lost
        // position, cannot wait.
        let (spoke, reason) = (self.spoke, self.checkpoint().reconciling);
        let can_wait = reason.keeps_position();
        let comparing = if can_wait { spoke.pair.compare(S::DIRECTION, reason) } else { None };
        let only_new = can_wait && comparing.is_none();
        self.kept_up = Instant::now();
        if S::copy(self, only_new, stop).await? == Ended::Stopped {
            return Ok(Turn::Stopped);
        }
        drop(comparing);
        spoke.pair.has_due(S::DIRECTION, self.checkpoint().reconciling);
        self.set_complete();
        S::stream(self, stop).await
    }

    async fn look_at_servers(&mut self) -> Result<Ends, Error> {
        let (source, destination) = (self.source.server().clone(), self.destination_server());
        let (hub, edge) = match S::DIRECTION {
            Direction::Uplink => (destination, source),
            Direction::Downlink => (source, destination),
        };
        let looking = servers::look(self.spoke, S::DIRECTION, &hub, &edge);
        let found = self.cell().pulse().while_waiting(looking).await?;
        self.destination.set_source(found.source_id);
        Ok(found)
    }

    /// Reacts to a server that was restored from a backup, or that is another one than before.
    async fn greet(&mut self, found: Ends) -> Result<(), Error> {
        if found.is_other {
            let source = self.source.server().name().clone();
            self.tell(&format!(
                "{source} is another replica set than before: copying everything again, deleting nothing"
            ));
            return self.start_again(Mark::Anew).await;
        }
        let Some(Restore { restored, number }) = found.restored else { return Ok(()) };
        let reason = Reconciling::Restored(restored);
        // A new link has nothing to compare.
        if self.checkpoint().reconciling.is_restored() || self.checkpoint().position.is_none() {
            return Ok(());
        }
        let (old, new) = match restored {
            Restored::Spoke => (format!("spoke {}", self.spoke.zone), "the hub".to_owned()),
            Restored::Hub => ("the hub".to_owned(), format!("spoke {}", self.spoke.zone)),
        };
        self.tell(&format!(
            "{old} was restored from a backup: its checkpoint is older than {new} remembers. Comparing both; the newer \
             versions at {new} win, and nothing is deleted"
        ));
        // The opposite link keeps its number from now on, even if it has not looked yet.
        self.spoke.pair.ask(S::DIRECTION.opposite(), reason);
        // A position that the restored source has not reached says nothing: every change since then is behind it.
        if servers::is_beyond(&self.position(), self.source.server()).await? {
            self.start_again(Mark::Restarted).await?;
        }
        self.compares(reason, number).await
    }

    /// Saves that parts must be compared for this reason. `answers`: the number that has shown a restore, or 0.
    async fn compares(&mut self, reason: Reconciling, answers: i64) -> Result<(), Error> {
        let parts = match reason {
            Reconciling::Restored(restored) => {
                let mut parts = self.checkpoint().copied.clone();
                parts.retain(|part| self.source.compares(&part.zone, restored));
                Some(parts)
            }
            _ => None,
        };
        self.spoke.pair.has_due(S::DIRECTION, reason);
        self.save(Some(Mark::Compares { reason, parts, answers })).await
    }

    /// Tells an operator, in the log and in the status.
    fn tell(&self, what: &str) {
        tracing::warn!("{what}");
        self.cell().set_error(what);
    }

    /// Saves the present end of the source's change stream as the first position of a new link: the link will carry all
    /// later changes.
    async fn anchor(&mut self) -> Result<(), Error> {
        if self.checkpoint().position.is_none() {
            let start = tail::present_position(self.source.server()).await?;
            self.save(Some(Mark::quiet(start))).await?;
        }
        Ok(())
    }

    /// Continues from the source's present position, with the mark made of it, after a lost position or at another
    /// source. Everything must be copied again.
    async fn start_again(&mut self, mark: impl FnOnce(Position) -> Mark) -> Result<(), Error> {
        self.set_incomplete();
        self.source.lose_place(self.spoke);
        let start = tail::present_position(self.source.server()).await?;
        self.save(Some(mark(start))).await
    }

    /// True if the link copies for long without changes of the stream.
    pub(super) fn must_keep_up(&self) -> bool {
        self.kept_up.elapsed() >= LONG_COPY
    }

    /// Applies changes of the stream during a copy: those that wait, or all up to a time of the source. `Some` after a
    /// request to stop.
    pub(super) async fn keep_up(
        &mut self,
        until: Option<Timestamp>,
        stop: &CancellationToken,
    ) -> Result<Option<Stopped>, Error> {
        self.has_followed = true;
        letters::attend(self).await?;
        // A busy source always has a next change, and the copy must go on: only as far as the source has come by now.
        let bound = match until {
            Some(until) => until,
            None => self.source.server().now().await?,
        };
        let stopped = S::keep_up(self, bound, until.is_some(), stop).await?;
        self.kept_up = Instant::now();
        Ok(stopped)
    }

    /// The saved checkpoint.
    pub(super) fn checkpoint(&self) -> &Checkpoint {
        self.destination.checkpoint()
    }

    pub(super) fn position(&self) -> Position {
        self.checkpoint().position.clone().expect("a link is anchored before anything else")
    }

    pub(super) fn destination_server(&self) -> Server {
        self.destination.server().clone()
    }

    pub(super) fn cell(&self) -> &'s Cell {
        self.spoke.status.link(S::DIRECTION)
    }

    /// Declares the destination complete up to the link's position.
    fn set_complete(&mut self) {
        self.is_complete = true;
        self.has_carried(&self.position());
    }

    /// Declares the destination incomplete: the opposite link must not rely on the link's position.
    pub(super) fn set_incomplete(&mut self) {
        self.is_complete = false;
        self.spoke.pair.carried(S::DIRECTION).set(Reached::Incomplete);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Informs the opposite link: the destination has everything up to `position`.
    pub(super) fn has_carried(&self, position: &Position) {
        if self.is_complete {
            self.spoke.pair.has_carried(S::DIRECTION, position);
        }
    }
}
