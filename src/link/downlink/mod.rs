//! Carries the hub's changes to a spoke.
//!
//! Promise: every change of a zone that the spoke holds reaches it once, in the hub's order, or is a dead letter there.

pub(crate) mod deliveries;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bson::Timestamp;
use bson::raw::{RawDocument, RawDocumentBuf};
use tokio_util::sync::CancellationToken;

use crate::config::OnUnwatch;
use crate::link::apply::Applier;
use crate::link::apply::work::{Commit, Mark, Side};
use crate::link::collections;
use crate::link::copy::{self, Ended, Job, Policy};
use crate::link::downlink::deliveries::{Deliveries, Rules, gather};
use crate::link::hub::feed::Feed;
use crate::link::hub::inbox::{Delivery, Inbox};
use crate::link::letters;
use crate::link::reached::{Reached, Waited};
use crate::link::uplink::stamp::Unstampable;
use crate::link::{QUIET_CHECKPOINT, Spoke, Stopped, Turn};
use crate::mongo::destination::Destination;
use crate::mongo::error::{Error, Failure};
use crate::mongo::metadata::checkpoints::{Part, Reconciling};
use crate::mongo::metadata::{foreign, hub_edits as notes, set_aside};
use crate::mongo::read::{self, Snapshot, Wanted};
use crate::mongo::server::Server;
use crate::mongo::tail;
use crate::observe::status::{Cell, State};
use crate::rules::downlink::Downlink;
use crate::rules::key::Key;
use crate::rules::names::{Direction, Link, Zone};
use crate::rules::position::Position;
use crate::rules::route::Routes;
use crate::rules::step::{Meaning, Step, Zones};

/// A spoke whose stream is so close behind the fan-out's attaches, and reads only the rest by itself.
const CLOSE_SECONDS: u32 = 2;

/// Runs the downlink until it fails or is told to stop.
///
/// # Errors
/// If a server fails.
pub(crate) async fn run(spoke: &Spoke, stop: &CancellationToken) -> Result<Stopped, Error> {
    let cell = spoke.status.link(Direction::Downlink);
    cell.set_state(State::Connecting);
    let link = Link::downlink(&spoke.zone);
    let destination = spoke.endpoint.connect().await?;
    let starting = spoke.starting(Direction::Downlink).await;
    let hub = spoke.hub.connect().await?;
    crate::mongo::metadata::prepare(&hub).await?;
    let session = &spoke.links.downlink_session;
    let mut applier =
        Applier::new(Destination::claim(&destination, &link, session, None, &spoke.holder).await?).await?;
    letters::show(cell, &applier, &hub);
    let last_own_note = restore_conflicts(spoke, &destination, &link, &applier).await?;
    spoke.links.foreign.load(&destination).await?;
    set_aside::forget_old(&destination).await?;
    drop(starting);
    if applier.checkpoint().reconciling == Reconciling::Asked {
        cell.set_comparing(true);
    }
    cell.resumes_at(applier.checkpoint().position.as_ref().map(Position::cluster_time));
    let routes = spoke.fanout.routes();
    let mut side = HubSide {
        hub,
        spoke,
        link,
        held: held(&routes, &spoke.zone),
        routes,
        is_complete: false,
        deletable: None,
        last_own_note,
        wall_time: None,
    };
    if applier.checkpoint().position.is_none() {
        let start = tail::present_position(&side.hub).await?;
        applier.save(&mut side, Mark::Streamed(start)).await?;
    }
    loop {
        let hub = side.hub.clone();
        collections::look(&mut applier, &mut side, &hub, spoke, Direction::Downlink).await?;
        // What an operator wants to be compared can wait; what was never copied, or was lost, cannot.
        let asked = applier.checkpoint().reconciling == Reconciling::Asked;
        let comparing = if asked { spoke.links.compare(Direction::Downlink) } else { None };
        let only_new = asked && comparing.is_none();
        if copy_zones(&mut applier, &mut side, &destination, only_new, stop).await? == Ended::Stopped {
            return Ok(Stopped);
        }
        drop(comparing);
        side.set_complete(&applier);
        match stream(&mut applier, &mut side, stop).await {
            Err(error) if error.failure() == Failure::HistoryLost => {
                tracing::warn!(%error, "history lost, reconciling");
                side.cell().set_error(&error.to_string());
                restart(&mut applier, &mut side).await?;
            }
            Ok(Turn::Compare) => {
                tracing::info!("comparing everything, as an operator wants");
                applier.save(&mut side, Mark::Compares).await?;
            }
            Ok(Turn::Look) => {}
            Ok(Turn::Stopped) => return Ok(Stopped),
            Err(error) => return Err(error),
        }
    }
}

/// Follows the hub's change stream, by the fan-out where that is possible.
async fn stream(applier: &mut Applier, side: &mut HubSide<'_>, stop: &CancellationToken) -> Result<Turn, Error> {
    loop {
        let Some(inbox) = reach_fanout(applier, side, stop).await? else { return Ok(Turn::Stopped) };
        side.cell().set_state(State::Streaming);
        if let Some(turn) = empty(&inbox, applier, side, stop).await? {
            // Nobody should wait for what this inbox has.
            side.spoke.fanout.detach(&side.spoke.zone);
            return Ok(turn);
        }
    }
}

/// The zones that a spoke holds by these routes.
fn held(routes: &Routes, spoke: &Zone) -> Vec<Zone> {
    routes.owner(spoke.as_str()).map(|number| routes.held(number).cloned().collect()).unwrap_or_default()
}

/// Begins at the present, once all that differs is brought.
async fn restart(applier: &mut Applier, side: &mut HubSide<'_>) -> Result<(), Error> {
    side.set_incomplete();
    side.spoke.fanout.detach(&side.spoke.zone);
    let start = tail::present_position(&side.hub).await?;
    applier.save(side, Mark::Restarted(start)).await
}

/// What was saved of hub edits that own changes may still have to be held against. Tells the number of the last note that is a
/// document of its own.
async fn restore_conflicts(
    spoke: &Spoke,
    destination: &Server,
    link: &Link,
    applier: &Applier,
) -> Result<Option<i64>, Error> {
    let now = applier.claimed_at();
    let mut saved = notes::load(destination, link).await?;
    let last_own_note = saved.last().map(|note| note.number);
    saved.extend(applier.checkpoint().notes.iter().cloned());
    saved.sort_by_key(|note| note.number);
    let mut conflicts = spoke.links.conflicts();
    conflicts.restart();
    for note in saved {
        for (key, fields) in note.edits() {
            conflicts.record(key, fields, now);
        }
        conflicts.record_note(note.number, now);
    }
    Ok(last_own_note)
}

/// The first copy of every zone that the spoke holds and has not copied yet: watched ones, then what the hub alone has of
/// its own. Or, once the link has lost its place, what it missed. With `only_new`, what was never copied, while all else waits to
/// be compared.
async fn copy_zones(
    applier: &mut Applier,
    side: &mut HubSide<'_>,
    destination: &Server,
    only_new: bool,
    stop: &CancellationToken,
) -> Result<Ended, Error> {
    let (hub, routes, spoke) = (side.hub.clone(), side.routes.clone(), side.spoke);
    let Some(number) = routes.owner(spoke.zone.as_str()) else { return Ok(Ended::Done) };
    let held: Vec<&str> = routes.held(number).map(Zone::as_str).collect();
    let watched = routes.held(number).filter(|zone| **zone != spoke.zone);
    let reconciling = if only_new { Reconciling::No } else { applier.checkpoint().reconciling };
    let is_again = reconciling != Reconciling::No;
    if leave_zones(applier, side, destination, stop).await?.is_some() {
        return Ok(Ended::Stopped);
    }
    if is_again {
        forget_foreign(&hub, destination).await?;
    }
    for zone in watched.chain([&spoke.zone]) {
        for (namespace_number, namespace) in (0u16..).zip(hub.namespaces()) {
            let part = Part::new(namespace, zone);
            let was_held = applier.checkpoint().left.contains(&part);
            if applier.checkpoint().copied.contains(&part) || (only_new && was_held) {
                continue;
            }
            // A zone that is new to the spoke takes nothing from what it has of its own.
            let own = Part::new(namespace, &spoke.zone);
            let has_own = applier.checkpoint().copied.contains(&own);
            if reconciling == Reconciling::Lost || (reconciling == Reconciling::No && !has_own) {
                side.set_incomplete();
            }
            side.cell().set_state(if is_again { State::Reconciling } else { State::InitialSync });
            let policy = match *zone == spoke.zone {
                true => Policy::HubReconciles,
                false if was_held => Policy::WatchAgain,
                false => Policy::Watch,
            };
            // The owner's documents go up first.
            if policy == Policy::HubReconciles
                && reconciling != Reconciling::Asked
                && spoke.patiently(Direction::Downlink, spoke.links.carried(Direction::Uplink).complete(stop)).await
                    == Waited::Stopped
            {
                return Ok(Ended::Stopped);
            }
            let job = Job {
                spoke,
                source: &hub,
                destination,
                namespace: namespace_number,
                zone,
                within: Zones::Any(held.clone()),
                policy,
                can_wait: reconciling == Reconciling::Asked,
            };
            let ended = copy::part(applier, side, &job, stop).await?;
            if ended != Ended::Done {
                return Ok(ended);
            }
        }
    }
    if is_again {
        applier.save(side, Mark::Reconciled).await?;
        side.cell().set_comparing(false);
    }
    Ok(Ended::Done)
}

/// Zones that the spoke does not watch any more: their documents stay, or go, as the configuration says.
async fn leave_zones(
    applier: &mut Applier,
    side: &mut HubSide<'_>,
    destination: &Server,
    stop: &CancellationToken,
) -> Result<Option<Stopped>, Error> {
    let routes = side.routes.clone();
    let Some(number) = routes.owner(side.spoke.zone.as_str()) else { return Ok(None) };
    let is_held = |part: &Part| routes.held(number).any(|zone| *zone == part.zone);
    let mut parts = applier.checkpoint().copied.clone();
    parts.retain(|part| !is_held(part));
    match side.spoke.on_unwatch {
        OnUnwatch::Keep if parts.is_empty() => {}
        OnUnwatch::Keep => {
            applier.save(side, Mark::Left { kept: parts, purged: Vec::new() }).await?;
        }
        OnUnwatch::Purge => {
            // Left first, so that whatever interrupts this, it is known that the spoke no longer has all of it.
            if !parts.is_empty() {
                applier.save(side, Mark::Left { kept: parts.clone(), purged: Vec::new() }).await?;
            }
            // Also what was left before: by another policy, or in the middle of a reconcile.
            let left = applier.checkpoint().left.iter().filter(|part| !is_held(part) && !parts.contains(part));
            let left: Vec<Part> = left.cloned().collect();
            for part in parts.into_iter().chain(left) {
                if let Some(stopped) = copy::purge(applier, side, destination, &part, stop).await? {
                    return Ok(Some(stopped));
                }
            }
        }
    }
    Ok(None)
}

/// Takes documents out of the register of foreign ones that the hub has by now.
async fn forget_foreign(hub: &Server, destination: &Server) -> Result<(), Error> {
    let registered = foreign::registered(destination).await?;
    if registered.is_empty() {
        return Ok(());
    }
    let wanted: Wanted<'_> = registered.iter().map(|(key, id)| (key.clone(), id.as_raw_bson_ref())).collect();
    let now = hub.now().await?;
    let found = read::documents(hub, &wanted, Some(hub.partition_field()), read::When::NotBefore(now)).await?;
    let known: Vec<_> = wanted
        .iter()
        .filter(|(key, _)| found.documents.get(key).is_some_and(Option::is_some))
        .map(|(key, id)| (&hub.namespaces()[usize::from(key.namespace())], *id))
        .collect();
    if known.is_empty() {
        return Ok(());
    }
    foreign::run(destination, &foreign::forget(&known)).await
}

/// Gets to where the fan-out is, by a stream of its own if it is far away, and attaches. `None` if it is told to stop.
async fn reach_fanout(
    applier: &mut Applier,
    side: &mut HubSide<'_>,
    stop: &CancellationToken,
) -> Result<Option<Arc<Inbox>>, Error> {
    let (fanout, zone) = (side.spoke.fanout.clone(), side.spoke.zone.clone());
    let is_close = |position: &Position| {
        let ahead = fanout.position().map_or(0, |fanout| fanout.cluster_time().time);
        ahead.saturating_sub(position.cluster_time().time) <= CLOSE_SECONDS
    };
    let mut attachment = None;
    if is_close(&side.position(applier)) {
        let position = side.position(applier);
        let attach = side.cell().pulse().while_waiting(fanout.attach(&zone, &position));
        let Some(attached) = stop.run_until_cancelled(attach).await else { return Ok(None) };
        if attached.from <= position {
            return Ok(Some(attached.inbox));
        }
        attachment = Some(attached);
    }
    side.cell().set_state(State::CatchingUp);
    let lane = side.cell().pulse().while_waiting(fanout.lane());
    let Some(_lane) = stop.run_until_cancelled(lane).await else { return Ok(None) };
    let mut feed = Feed::open(&side.hub, &side.position(applier), fanout.routes()).await?;
    loop {
        let Some(batch) = stop.run_until_cancelled(feed.read()).await else { return Ok(None) };
        let routes = fanout.routes();
        let Some(number) = routes.owner(zone.as_str()).filter(|_| side.holds_the_same(&routes)) else {
            return Ok(None);
        };
        let routed = Arc::new(feed.route(batch?, &routes, Some(number)).await?);
        let lost_collections = routed.batch.lost_collections();
        let end = routed.batch.end().clone();
        let mut delivery = Delivery { end, routed: Some((routed.clone(), number)), routes, lost_collections };
        // What comes after this place comes through the inbox.
        if let Some(attachment) = attachment.as_ref().filter(|attachment| attachment.from < delivery.end) {
            delivery.end = attachment.from.clone();
        }
        apply(vec![delivery], applier, side).await?;
        let position = side.position(applier);
        if attachment.is_none() && (routed.batch.is_empty() || is_close(&position)) {
            let attach = side.cell().pulse().while_waiting(fanout.attach(&zone, &position));
            let Some(attached) = stop.run_until_cancelled(attach).await else { return Ok(None) };
            attachment = Some(attached);
        }
        if let Some(attachment) = attachment.take_if(|attachment| attachment.from <= position) {
            return Ok(Some(attachment.inbox));
        }
    }
}

/// Applies what comes through the inbox. `None`: nothing more will come through it.
async fn empty(
    inbox: &Inbox,
    applier: &mut Applier,
    side: &mut HubSide<'_>,
    stop: &CancellationToken,
) -> Result<Option<Turn>, Error> {
    let mut saved = Instant::now();
    loop {
        if let Some(turn) = side.spoke.links.turn(Direction::Downlink, applier.checkpoint().reconciling) {
            return Ok(Some(turn));
        }
        let next = side.cell().pulse().while_waiting(inbox.next(side.is_forgetful(applier)));
        let Some(first) = stop.run_until_cancelled(next).await else { return Ok(Some(Turn::Stopped)) };
        let Some(first) = first else { return Ok(None) };
        let deliveries = gather(first, inbox, applier.batch_size());
        // What was routed for other zones than this loop began with lacks some, or brings some that were never copied. Whoever
        // changed that has another loop started.
        if !deliveries.iter().all(|delivery| side.holds_the_same(&delivery.routes)) {
            return Ok(Some(Turn::Stopped));
        }
        attend(applier, side).await?;
        let says_nothing = |delivery: &Delivery| delivery.routed.is_none() && delivery.lost_collections.is_empty();
        let quiet = deliveries.iter().all(says_nothing);
        if quiet {
            side.quiet(&deliveries.last().expect("there is a first").end);
            if saved.elapsed() < QUIET_CHECKPOINT {
                continue;
            }
        }
        apply(deliveries, applier, side).await?;
        saved = Instant::now();
    }
}

/// Does what an operator wants done about dead letters.
async fn attend(applier: &mut Applier, side: &mut HubSide<'_>) -> Result<(), Error> {
    let (spoke, hub, routes) = (side.spoke, side.hub.clone(), side.routes.clone());
    let Some(number) = routes.owner(spoke.zone.as_str()) else { return Ok(()) };
    let zones = Zones::Any(routes.held(number).map(Zone::as_str).collect());
    letters::attend(spoke.links.letters(Direction::Downlink), applier, side, &hub, &zones).await?;
    letters::show(side.cell(), applier, &hub);
    Ok(())
}

/// Applies deliveries as one batch.
async fn apply(deliveries: Vec<Delivery>, applier: &mut Applier, side: &mut HubSide<'_>) -> Result<(), Error> {
    if let Some((routed, _)) = deliveries.iter().rev().find_map(|delivery| delivery.routed.as_ref()) {
        side.routes = routed.routes.clone();
    }
    side.cell().received();
    let lost: Vec<u16> = deliveries.iter().flat_map(|delivery| delivery.lost_collections.iter().copied()).collect();
    if !lost.is_empty() {
        side.spoke.links.have_lost_collections(&lost);
    }
    let deliveries = Deliveries::new(deliveries, &side.position(applier));
    side.wall_time = deliveries.events.last().and_then(|picked| picked.event().wall_time());
    let rules = Rules { partition_key: side.hub.partition_key().to_owned(), precise: side.hub.disambiguates_paths() };
    let load = {
        let conflicts = side.spoke.links.conflicts();
        deliveries.load(&rules, applier.ahead(), &conflicts).map_err(|error| side.hub.malformed(error))?
    };
    applier.apply(side, load).await?;
    let hub = side.hub.clone();
    collections::learn(applier, side, &hub).await?;
    letters::show(side.cell(), applier, &side.hub);
    Ok(())
}

/// The hub, as the downlink's source.
struct HubSide<'s> {
    hub: Server,
    spoke: &'s Spoke,
    link: Link,
    routes: Arc<Routes>,
    /// The zones that the spoke holds.
    held: Vec<Zone>,
    /// The spoke has all that the hub had before the link's place in the change stream.
    is_complete: bool,
    /// Saved notes up to this number are no longer needed.
    deletable: Option<i64>,
    /// The number of the last note that is a document of its own, if there are any.
    last_own_note: Option<i64>,
    /// When the newest change of the batch under way was made.
    wall_time: Option<i64>,
}

impl HubSide<'_> {
    fn cell(&self) -> &Cell {
        self.spoke.status.link(Direction::Downlink)
    }

    fn holds_the_same(&self, routes: &Arc<Routes>) -> bool {
        Arc::ptr_eq(routes, &self.routes) || held(routes, &self.spoke.zone) == self.held
    }

    fn set_complete(&mut self, applier: &Applier) {
        self.is_complete = true;
        self.carried_up_to(&self.position(applier));
    }

    fn set_incomplete(&mut self) {
        self.is_complete = false;
        self.spoke.links.carried(Direction::Downlink).set(Reached::Incomplete);
    }

    /// The spoke has all that the hub had up to here.
    fn carried_up_to(&self, position: &Position) {
        if self.is_complete {
            self.spoke.links.has_carried(Direction::Downlink, position);
        }
    }

    /// The hub has nothing for this spoke up to here.
    fn quiet(&self, position: &Position) {
        self.cell().quiet(position.cluster_time());
        self.carried_up_to(position);
    }

    /// True if no own change that comes back can meet anything: no hub edit is remembered, and none is set aside that may be tried again.
    fn is_forgetful(&self, applier: &Applier) -> bool {
        self.is_complete && applier.parked().is_empty() && self.spoke.links.conflicts().is_empty()
    }

    fn position(&self, applier: &Applier) -> Position {
        applier.checkpoint().position.clone().expect("it is saved before anything is streamed")
    }
}

impl Side for HubSide<'_> {
    async fn read(
        &mut self,
        wanted: &Wanted<'_>,
        _: &HashSet<Key>,
        time: Timestamp,
    ) -> Result<Result<Vec<Snapshot>, Unstampable>, Error> {
        Ok(Ok(vec![read::documents_at(&self.hub, wanted, time).await?]))
    }

    fn meaning<'a>(&self, document: Option<&'a RawDocument>, _: bool) -> Meaning<'a> {
        let Some(spoke) = self.routes.owner(self.spoke.zone.as_str()) else { return Meaning::Foreign };
        let partition_key = self.hub.partition_key();
        Downlink { routes: &self.routes, spoke, partition_key, precise: false }.meaning(document)
    }

    fn statements(&self, steps: &[Step<'_>]) -> Vec<RawDocumentBuf> {
        let up_to = self.deletable.filter(|_| self.last_own_note.is_some());
        let notes = up_to.map(|up_to| notes::delete(&self.link, up_to));
        notes.into_iter().chain(self.spoke.links.foreign.forgets(steps, self.hub.namespaces())).collect()
    }

    fn outlived_notes(&self) -> Option<i64> {
        self.deletable
    }

    fn committed(&mut self, commit: Commit) {
        if self.deletable >= self.last_own_note {
            self.last_own_note = None;
        }
        if commit.has_own_note {
            self.last_own_note = Some(commit.number);
        }
        let mut conflicts = self.spoke.links.conflicts();
        if !commit.hub_edits.is_empty() {
            for (key, fields) in commit.hub_edits {
                conflicts.record(key, fields, commit.at);
            }
            conflicts.record_note(commit.number, commit.at);
        }
        let cluster_time = commit.position.as_ref().map(Position::cluster_time);
        if let Some(position) = &commit.position {
            self.carried_up_to(position);
        }
        self.deletable = cluster_time.and_then(|time| conflicts.downlink_passed(time));
        drop(conflicts);
        self.cell().applied(commit.changes, commit.foreign, cluster_time, self.wall_time);
    }
}
