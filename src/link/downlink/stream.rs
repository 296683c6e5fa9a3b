//! Follows the hub's change stream for a spoke: deliveries → work → the spoke. Changes come through the fan-out. A link
//! behind the fan-out first catches up on a separate stream.

use std::sync::Arc;
use std::time::Instant;

use bson::Timestamp;
use tokio_util::sync::CancellationToken;

use super::HubSource;
use super::changes::{AtSpoke, Changes, Reading, weigh};
use crate::link::apply::mark::Mark;
use crate::link::hub::feed::Feed;
use crate::link::hub::inbox::{Delivery, Inbox};
use crate::link::letters;
use crate::link::lifecycle::{Link, QUIET_CHECKPOINT, Stopped};
use crate::link::pair::Turn;
use crate::mongo::error::Error;
use crate::observe::status::State;
use crate::rules::inference::Inference;
use crate::rules::key::Key;
use crate::rules::names::Direction;
use crate::rules::position::Position;
use crate::rules::size::gather;

/// Maximum distance behind the fan-out, in seconds, at which a link attaches to the fan-out. Only the rest then comes
/// on a separate stream.
const CLOSE_SECONDS: u32 = 2;

impl Link<'_, HubSource> {
    /// Applies delivery after delivery, until the link has another task.
    pub(super) async fn follow_hub(&mut self, stop: &CancellationToken) -> Result<Turn, Error> {
        loop {
            let Some(inbox) = self.attached(stop).await? else { return Ok(Turn::Stopped) };
            self.cell().set_state(State::Streaming);
            if let Some(turn) = self.empty(&inbox, stop).await? {
                // The fan-out must not wait for an abandoned inbox.
                self.spoke.fanout.detach(&self.spoke.zone);
                return Ok(turn);
            }
        }
    }

    /// Applies deliveries during a copy, as [`Source::keep_up`](crate::link::source::Source::keep_up) says. The inbox
    /// stays attached for the next call, and for the time after the copy.
    pub(super) async fn keep_up_with_hub(
        &mut self,
        bound: Timestamp,
        waits: bool,
        stop: &CancellationToken,
    ) -> Result<Option<Stopped>, Error> {
        let (cell, state) = (self.cell(), self.cell().state());
        let (mut reached, mut unsaved) = (None, None);
        while reached.is_none_or(|reached| reached < bound) {
            let attached = self.attached(stop).await?;
            cell.set_state(state);
            let Some(inbox) = attached else { return Ok(Some(Stopped)) };
            let next = async { if waits { inbox.next(false).await } else { inbox.try_next() } };
            let next = stop.run_until_cancelled(cell.pulse().while_waiting(next)).await;
            let Some(first) = next else { return Ok(Some(Stopped)) };
            let Some(first) = first else {
                // A detached inbox gets nothing more: the next turn attaches again.
                self.source.inbox = Some(inbox).filter(|inbox| !inbox.is_detached());
                if waits {
                    continue;
                }
                break;
            };
            let limit = self.destination.server().line().batch();
            let deliveries = gather(first, limit, weigh, || inbox.try_next());
            // As in the stream: the link begins again, with the zones that the spoke holds now, and looks at the hub.
            let is_as_before = deliveries.iter().all(|delivery| self.source.holds_the_same(&delivery.routes));
            if !is_as_before || self.must_look_at_hub() {
                self.spoke.fanout.detach(&self.spoke.zone);
                return Ok(Some(Stopped));
            }
            self.source.inbox = Some(inbox);
            let end = deliveries.last().expect("there is a first").end.clone();
            reached = Some(end.seen_until());
            if deliveries.iter().all(says_nothing) {
                cell.quiet(end.cluster_time());
                unsaved = Some(end);
            } else {
                self.deliver(deliveries).await?;
                unsaved = None;
            }
        }
        // The place stays in the oplog, however long the copy takes.
        if let Some(end) = unsaved {
            self.save(Some(Mark::quiet(end))).await?;
        }
        Ok(None)
    }

    /// The inbox left attached by a copy, or a new one, as [`Self::reach_fanout`] says.
    async fn attached(&mut self, stop: &CancellationToken) -> Result<Option<Arc<Inbox>>, Error> {
        match self.source.inbox.take() {
            Some(inbox) => Ok(Some(inbox)),
            None => self.reach_fanout(stop).await,
        }
    }

    /// Attaches to the fan-out, after catching up on a separate stream if necessary. `None` after a request to stop, or
    /// after a change of the held zones.
    async fn reach_fanout(&mut self, stop: &CancellationToken) -> Result<Option<Arc<Inbox>>, Error> {
        let (fanout, zone, cell) = (self.spoke.fanout.clone(), self.spoke.zone.clone(), self.cell());
        let is_close = |position: &Position| {
            let ahead = fanout.position().map_or(0, |fanout| fanout.cluster_time().time);
            ahead.saturating_sub(position.cluster_time().time) <= CLOSE_SECONDS
        };
        // A close link attaches immediately. If the inbox begins after the link's position, the changes between are
        // still to be read.
        let mut attachment = None;
        if is_close(&self.position()) {
            let position = self.position();
            let attach = cell.pulse().while_waiting(fanout.attach(&zone, &position));
            let Some(attached) = stop.run_until_cancelled(attach).await else { return Ok(None) };
            if attached.from <= position {
                return Ok(Some(attached.inbox));
            }
            attachment = Some(attached);
        }
        // The rest comes on a separate stream; the hub serves only a few separate streams at the same time.
        cell.set_state(State::CatchingUp);
        let lane = cell.pulse().while_waiting(fanout.lane());
        let Some(_lane) = stop.run_until_cancelled(lane).await else { return Ok(None) };
        let from = self.position();
        let opening = cell.pulse().while_waiting(Feed::open(&self.source.server, &from, fanout.routes()));
        let Some(feed) = stop.run_until_cancelled(opening).await else { return Ok(None) };
        let mut feed = feed?;
        loop {
            let reading = cell.pulse().while_waiting(feed.read());
            let Some(reply) = stop.run_until_cancelled(reading).await else { return Ok(None) };
            // A change of the held zones ends the catch-up: a new loop copies new zones first.
            let routes = fanout.routes();
            let Some(number) = routes.owner(zone.as_str()).filter(|_| self.source.holds_the_same(&routes)) else {
                return Ok(None);
            };
            let routed = Arc::new(feed.route(reply?, &routes, Some(number)).await?);
            let lost_collections = routed.reply.lost_collections();
            let end = routed.reply.end().clone();
            let mut delivery = Delivery { end, routed: Some((routed.clone(), number)), routes, lost_collections };
            // Changes after the attachment's position come through the inbox.
            if let Some(attachment) = attachment.as_ref().filter(|attachment| attachment.from < delivery.end) {
                delivery.end = attachment.from.clone();
            }
            self.deliver(vec![delivery]).await?;
            // A close link attaches. At the attachment's position, the inbox has everything else.
            let position = self.position();
            if attachment.is_none() && (routed.reply.is_empty() || is_close(&position)) {
                let attach = cell.pulse().while_waiting(fanout.attach(&zone, &position));
                let Some(attached) = stop.run_until_cancelled(attach).await else { return Ok(None) };
                attachment = Some(attached);
            }
            if let Some(attachment) = attachment.take_if(|attachment| attachment.from <= position) {
                return Ok(Some(attachment.inbox));
            }
        }
    }

    /// Applies the deliveries of the inbox. `None`: the spoke was detached, and all deliveries are applied.
    async fn empty(&mut self, inbox: &Inbox, stop: &CancellationToken) -> Result<Option<Turn>, Error> {
        let cell = self.cell();
        let mut saved = Instant::now();
        loop {
            // Another task comes before the next delivery.
            if let Some(turn) = self.spoke.pair.turn(Direction::Downlink, self.checkpoint().reconciling) {
                return Ok(Some(turn));
            }
            let next = cell.pulse().while_waiting(inbox.next(self.is_forgetful()));
            let Some(first) = stop.run_until_cancelled(next).await else { return Ok(Some(Turn::Stopped)) };
            let Some(first) = first else { return Ok(None) };
            let limit = self.destination.server().line().batch();
            let deliveries = gather(first, limit, weigh, || inbox.try_next());
            // A delivery routed for other zones lacks changes, or brings changes of zones never copied. The change of
            // the routes also starts a new loop.
            if !deliveries.iter().all(|delivery| self.source.holds_the_same(&delivery.routes)) {
                return Ok(Some(Turn::Stopped));
            }
            if self.must_look_at_hub() {
                return Ok(Some(Turn::Look));
            }
            letters::attend(self).await?;
            self.settle().await?;
            // A quiet stream moves only the place, and saves the place now and then, so that it stays in the oplog
            // window.
            if deliveries.iter().all(says_nothing) {
                let end = deliveries.last().expect("there is a first").end.clone();
                cell.quiet(end.cluster_time());
                self.has_carried(&end);
                if saved.elapsed() < QUIET_CHECKPOINT {
                    continue;
                }
                self.save(Some(Mark::quiet(end))).await?;
            } else {
                self.deliver(deliveries).await?;
            }
            saved = Instant::now();
        }
    }

    /// True if the hub was away since the link looked at the servers: it may have been restored from a backup.
    fn must_look_at_hub(&mut self) -> bool {
        let streams = self.spoke.fanout.streams();
        std::mem::replace(&mut self.source.looked_at, streams).max(1) < streams
    }

    /// Applies deliveries together.
    async fn deliver(&mut self, deliveries: Vec<Delivery>) -> Result<(), Error> {
        if let Some((routed, _)) = deliveries.iter().rev().find_map(|delivery| delivery.routed.as_ref()) {
            self.source.rules.routes = routed.routes.clone();
        }
        self.cell().received();
        let lost: Vec<u16> = deliveries.iter().flat_map(|delivery| delivery.lost_collections.iter().copied()).collect();
        if !lost.is_empty() {
            self.spoke.pair.have_lost_collections(&lost);
        }
        let server = self.source.server.clone();
        let changes = Changes::new(deliveries, &self.position());
        self.wall_time = changes.events.last().and_then(|picked| picked.event().wall_time());
        let foreign = self.spoke.pair.foreign.among(&self.destination_server(), || changes.documents()).await?;
        let reading = Reading { partition_key: server.partition_key(), precise: server.disambiguates_paths() };
        let mut work = {
            let (pair, conflicts) = (&self.spoke.pair, self.spoke.pair.conflicts());
            // With a dead letter at the spoke, somebody has been told already, and the change waits with the letter.
            let known = |key: &Key| match self.parked.contains(key) {
                true => AtSpoke::Nothing,
                false if pair.has_another(key) => AtSpoke::Another,
                false if foreign.contains(key) => AtSpoke::Foreign,
                false => AtSpoke::Nothing,
            };
            let work = changes.work(reading, &self.ahead, &conflicts, known);
            work.map_err(|error| server.malformed(error))?
        };
        // An uplink that has lost its place cannot bring what the spoke's applications wrote meanwhile.
        if !self.spoke.pair.carried(Direction::Uplink).is_complete() {
            let own = work.steps.iter().filter(|step| step.hub_edit.is_some());
            work.inferred.extend(own.map(|step| (step.key.clone(), Inference::Decision)));
        }
        self.apply(work).await?;
        self.learn_collections(&changes.events.iter().map(|picked| picked.event().namespace()).collect()).await?;
        letters::show(self);
        Ok(())
    }

    /// True if no own change can meet a hub edit on the way back from the hub: no hub edit is remembered, and no dead
    /// letter can become a hub edit by a retry.
    fn is_forgetful(&self) -> bool {
        self.is_complete() && self.parked.is_empty() && self.spoke.pair.conflicts().is_empty()
    }
}

/// True for a delivery that only moves the place.
fn says_nothing(delivery: &Delivery) -> bool {
    delivery.routed.is_none() && delivery.lost_collections.is_empty()
}
