//! Carries a spoke's own changes to the hub.
//!
//! Promise: every change of a document of the spoke's zone reaches the hub once, in order, or is a dead letter there. So is a
//! document that the spoke itself does not let have a partition key.

pub(crate) mod stamp;

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use bson::Timestamp;
use bson::raw::{RawBson, RawDocument, RawDocumentBuf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::link::apply::Applier;
use crate::link::apply::work::{Commit, Load, Mark, Origin, Side};
use crate::link::copy::{self, Ended, Job, Policy};
use crate::link::letters;
use crate::link::reached::{Reached, Waited};
use crate::link::uplink::stamp::{Stamper, Unstampable};
use crate::link::watch_oplog;
use crate::link::{QUIET_CHECKPOINT, Spoke, Stopped, Turn};
use crate::link::{collections, foreign};
use crate::mongo::destination::Destination;
use crate::mongo::error::{Error, Failure};
use crate::mongo::metadata::checkpoints::{Part, Reconciling};
use crate::mongo::metadata::foreign as register;
use crate::mongo::metadata::sessions::Tags;
use crate::mongo::read::{self, Snapshot, Wanted};
use crate::mongo::server::Server;
use crate::mongo::tail::{self, Selection, Tail};
use crate::observe::status::{Cell, State};
use crate::rules::ahead::Ahead;
use crate::rules::key::Key;
use crate::rules::names::{Direction, Link};
use crate::rules::position::Position;
use crate::rules::queue::Weight;
use crate::rules::reply::{EventRef, Kind, Malformed, Reply};
use crate::rules::step::{Meaning, Step, Zones};
use crate::rules::uplink::{Decision, Owner, Uplink};

/// So many echoes may come through before the stream is opened anew without them. They come through where our own writer
/// at the spoke got a new session after the stream was opened.
const ECHOES: usize = 1_000;

/// What the status says then.
const COLLECTION_LOST: &str =
    "a synced collection was dropped or renamed at the spoke: the hub and the other spokes keep its documents";

/// How often documents that are stamped may lose their stamp again before they are left for the next attempt.
const STAMPS: u32 = 5;

/// Runs the uplink until it fails or is told to stop.
///
/// # Errors
/// If a server fails.
pub(crate) async fn run(spoke: &Spoke, stop: &CancellationToken) -> Result<Stopped, Error> {
    let cell = spoke.status.link(Direction::Uplink);
    cell.set_state(State::Connecting);
    let link = Link::uplink(&spoke.zone);
    let source = spoke.endpoint.connect().await?;
    let starting = spoke.starting(Direction::Uplink).await;
    let hub = spoke.hub.connect().await?;
    crate::mongo::metadata::prepare(&source).await?;
    let (session, moves) = (&spoke.links.uplink_session, &spoke.links.moves_session);
    let destination = Destination::claim(&hub, &link, session, Some(moves), &spoke.holder).await?;
    let mut applier = Applier::new(destination).await?;
    letters::show(cell, &applier, &hub);
    let rules = Uplink {
        zone: spoke.zone.clone(),
        partition_key: hub.partition_key().to_owned(),
        precise: source.disambiguates_paths(),
    };
    let mut side = SpokeSide {
        rules: &rules,
        stamper: Stamper::new(&source, &link, &spoke.links.stamp_session).await?,
        last_push: applier.claimed_at(),
        source,
        hub: hub.clone(),
        spoke,
        is_complete: false,
        wall_time: None,
    };
    drop(starting);
    let _watching = watch_oplog::watch(&side.source, spoke.status.window());
    if applier.checkpoint().reconciling == Reconciling::Asked {
        cell.set_comparing(true);
    }
    cell.resumes_at(applier.checkpoint().position.as_ref().map(Position::cluster_time));
    spoke.links.foreign.load(&side.source).await?;
    if applier.checkpoint().position.is_none() {
        let start = tail::present_position(&side.source).await?;
        applier.save(&mut side, Mark::Streamed(start)).await?;
    }
    loop {
        let source = side.source.clone();
        collections::look(&mut applier, &mut side, &source, spoke, Direction::Uplink).await?;
        // What an operator wants to be compared can wait; what was never copied, or was lost, cannot.
        let asked = applier.checkpoint().reconciling == Reconciling::Asked;
        let comparing = if asked { spoke.links.compare(Direction::Uplink) } else { None };
        let only_new = asked && comparing.is_none();
        if copy_own_zone(&mut applier, &mut side, only_new, stop).await? == Ended::Stopped {
            return Ok(Stopped);
        }
        drop(comparing);
        side.set_complete(applier.checkpoint().position.as_ref());
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

/// Begins at the present, once all that differs is brought.
async fn restart(applier: &mut Applier, side: &mut SpokeSide<'_>) -> Result<(), Error> {
    side.set_incomplete();
    let start = tail::present_position(&side.source).await?;
    applier.save(side, Mark::Restarted(start)).await
}

/// The first copy: what the spoke has of its own zone goes up, and wins over what the hub has. Or, once the link has lost its
/// place, what it missed. With `only_new`, what was never copied, while all else waits to be compared.
async fn copy_own_zone(
    applier: &mut Applier,
    side: &mut SpokeSide<'_>,
    only_new: bool,
    stop: &CancellationToken,
) -> Result<Ended, Error> {
    let (source, hub, spoke) = (side.source.clone(), side.hub.clone(), side.spoke);
    let reconciling = if only_new { Reconciling::No } else { applier.checkpoint().reconciling };
    for (number, namespace) in (0u16..).zip(source.namespaces()) {
        let part = Part::new(namespace, &spoke.zone);
        let has_pushed = applier.checkpoint().left.contains(&part);
        if applier.checkpoint().copied.contains(&part) || (only_new && has_pushed) {
            continue;
        }
        let is_first = reconciling == Reconciling::No;
        if reconciling != Reconciling::Asked {
            side.set_incomplete();
        }
        side.cell().set_state(if is_first { State::InitialSync } else { State::Reconciling });
        // What a hub application does to the zone from now on must come down, or it would be lost under the copy.
        let anchored = spoke.links.carried(Direction::Downlink).anchored(stop);
        if spoke.patiently(Direction::Uplink, anchored).await == Waited::Stopped {
            return Ok(Ended::Stopped);
        }
        let job = Job {
            spoke,
            source: &source,
            destination: &hub,
            namespace: number,
            zone: &spoke.zone,
            within: Zones::One(spoke.zone.as_str()),
            policy: if has_pushed { Policy::OwnerReconciles } else { Policy::OwnerPushes },
            can_wait: reconciling == Reconciling::Asked,
        };
        let ended = copy::part(applier, side, &job, stop).await?;
        if ended != Ended::Done {
            return Ok(ended);
        }
    }
    if reconciling != Reconciling::No {
        applier.save(side, Mark::Reconciled).await?;
        side.cell().set_comparing(false);
    }
    Ok(Ended::Done)
}

/// Follows the change stream.
async fn stream(applier: &mut Applier, side: &mut SpokeSide<'_>, stop: &CancellationToken) -> Result<Turn, Error> {
    let (rules, cell) = (side.rules, side.spoke.status.link(Direction::Uplink));
    let position = applier.checkpoint().position.clone();
    let source = Echoless::open(&side.source, position.as_ref()).await?;
    cell.set_state(State::Streaming);
    // One reply is read ahead while another is applied.
    let (sender, mut replies) = mpsc::channel(1);
    let reader = AbortOnDropHandle::new(tokio::spawn(source.read_into(sender).in_current_span()));
    let mut saved = Instant::now();
    loop {
        if let Some(turn) = side.spoke.links.turn(Direction::Uplink, applier.checkpoint().reconciling) {
            return Ok(turn);
        }
        let Some(first) = stop.run_until_cancelled(replies.recv()).await else { return Ok(Turn::Stopped) };
        let Some(first) = first else {
            return match reader.await {
                Ok(error) => Err(error),
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            };
        };
        let batches = gather(first, &mut replies, applier.batch_size());
        attend(applier, side).await?;
        let end = batches.last().expect("there is a first").end().clone();
        if batches.iter().all(|batch| batch.is_empty()) {
            side.pushed_up_to(&end);
            cell.quiet(end.cluster_time());
            if saved.elapsed() >= QUIET_CHECKPOINT {
                applier.save(side, Mark::Streamed(end)).await?;
                saved = Instant::now();
            }
            continue;
        }
        cell.received();
        let batches = Batches(batches);
        let lost: Vec<u16> = batches.0.iter().flat_map(Reply::lost_collections).collect();
        if !lost.is_empty() {
            cell.set_error(COLLECTION_LOST);
            side.spoke.links.have_lost_collections(&lost);
        }
        side.register_foreign(&batches).await?;
        side.wall_time = batches.events().filter_map(|event| event.wall_time()).last();
        let load = batches.load(rules, applier.ahead()).map_err(|error| side.source.malformed(error))?;
        applier.apply(side, load).await?;
        let source = side.source.clone();
        collections::learn(applier, side, &source).await?;
        letters::show(cell, applier, &side.source);
        saved = Instant::now();
    }
}

/// Does what an operator wants done about dead letters.
async fn attend(applier: &mut Applier, side: &mut SpokeSide<'_>) -> Result<(), Error> {
    let (spoke, source) = (side.spoke, side.source.clone());
    let zones = Zones::One(spoke.zone.as_str());
    letters::attend(spoke.links.letters(Direction::Uplink), applier, side, &source, &zones).await?;
    letters::show(side.cell(), applier, &source);
    Ok(())
}

/// This reply, and what else is waiting, up to a bound.
fn gather(first: Reply, replies: &mut mpsc::Receiver<Reply>, limit: Weight) -> Vec<Reply> {
    let (mut events, mut bytes) = (first.len(), first.bytes());
    let mut batches = vec![first];
    while events < limit.events && bytes < limit.bytes {
        let Ok(next) = replies.try_recv() else { break };
        events += next.len();
        bytes += next.bytes();
        batches.push(next);
    }
    batches
}

/// Replies that are applied together. Their events are numbered through.
struct Batches(Vec<Reply>);

impl Batches {
    fn events(&self) -> impl Iterator<Item = EventRef<'_>> {
        self.0.iter().flat_map(Reply::events)
    }

    /// What the events mean at the hub.
    fn load<'a>(&'a self, rules: &'a Uplink, ahead: &Ahead) -> Result<Load<'a>, Malformed> {
        let zone = rules.zone.as_str();
        let mut steps = Vec::new();
        let mut foreign = 0;
        let mut last = Timestamp { time: 0, increment: 0 };
        // Documents that went to another zone in this batch.
        let mut gone: HashSet<Key> = HashSet::new();
        for (number, event) in self.events().enumerate() {
            last = event.cluster_time();
            if matches!(event.kind(), Kind::CollectionLost) {
                tracing::warn!(zone, cluster_time = %last, "a synced collection was dropped or renamed at the spoke; the hub keeps its documents");
            }
            if matches!(event.kind(), Kind::CollectionLost | Kind::Other) {
                continue;
            }
            let key = event.key()?;
            if gone.contains(&key) {
                if !rules.claims(event) {
                    foreign += 1;
                    continue;
                }
                gone.remove(&key);
            }
            if rules.leaves(event) {
                gone.insert(key.clone());
            }
            let standing = ahead.standing(&key, [zone].into_iter(), last);
            match rules.decide(event, standing)? {
                Decision::Write(write) => {
                    let id = event.id()?;
                    steps.push(Step { event: number, key, id, zones: Zones::One(zone), write, hub_edit: None });
                }
                Decision::Foreign => foreign += 1,
                Decision::Nothing => {}
            }
        }
        let end = Mark::Streamed(self.0.last().expect("there is one").end().clone());
        let changes = self.events().count();
        let (end, read_at) = (Some(end), HashMap::new());
        Ok(Load { steps, origin: self, end, last, read_at, changes, foreign, expected: None, ours: Vec::new() })
    }

    /// The batch that holds the event with this number, and its number there.
    fn find(&self, event: usize) -> (usize, usize) {
        let mut index = event;
        for (number, batch) in self.0.iter().enumerate() {
            if index < batch.len() {
                return (number, index);
            }
            index -= batch.len();
        }
        unreachable!("steps are made of these events")
    }
}

impl Origin for Batches {
    fn before(&self, event: usize) -> Option<Mark> {
        let (number, index) = self.find(event);
        let in_batch = self.0[number].before(index);
        let position = in_batch.or_else(|| Some(self.0[number.checked_sub(1)?].end().clone()));
        position.map(Mark::Streamed)
    }

    fn event(&self, event: usize) -> (RawDocumentBuf, Option<Timestamp>) {
        let (number, index) = self.find(event);
        let event = self.0[number].event(index);
        (event.raw(), Some(event.cluster_time()))
    }
}

/// The spoke, as the uplink's source.
struct SpokeSide<'s> {
    rules: &'s Uplink,
    source: Server,
    hub: Server,
    spoke: &'s Spoke,
    stamper: Stamper,
    /// The hub's time of the last push.
    last_push: Timestamp,
    /// The hub has all that the spoke had before the link's place in the change stream.
    is_complete: bool,
    /// When the newest change of the batch under way was made.
    wall_time: Option<i64>,
}

impl SpokeSide<'_> {
    /// Takes the documents that lack their partition key out of what was read.
    fn take_unstamped(&self, snapshot: &mut Snapshot) -> HashSet<Key> {
        let lacks = |document: &RawDocumentBuf| self.rules.owner(document) == Owner::Unstamped;
        let taken = snapshot.documents.extract_if(|_, document| document.as_ref().is_some_and(lacks));
        taken.map(|(key, _)| key).collect()
    }

    /// All that the spoke had up to here is at the hub.
    fn pushed_up_to(&self, position: &Position) {
        self.spoke.links.conflicts().uplink_pushed(position.cluster_time(), self.last_push);
        if self.is_complete {
            self.spoke.links.has_carried(Direction::Uplink, position);
        }
    }

    fn set_complete(&mut self, position: Option<&Position>) {
        self.is_complete = true;
        if let Some(position) = position {
            self.spoke.links.has_carried(Direction::Uplink, position);
        }
    }

    fn set_incomplete(&mut self) {
        self.is_complete = false;
        self.spoke.links.carried(Direction::Uplink).set(Reached::Incomplete);
    }

    fn cell(&self) -> &Cell {
        self.spoke.status.link(Direction::Uplink)
    }

    /// Registers other zones' documents that were inserted at this spoke, so that a reconcile leaves them alone, before the
    /// link goes past them.
    async fn register_foreign(&mut self, batches: &Batches) -> Result<(), Error> {
        let known = &self.spoke.links.foreign;
        let (mut new, mut gone) = (HashMap::new(), Vec::new());
        for event in batches.events() {
            let is_foreign = event.kind() == Kind::Insert
                && event.full_document().is_some_and(|document| self.rules.owner(document) == Owner::Other);
            if is_foreign {
                let key = event.key().map_err(|error| self.source.malformed(error))?;
                new.insert(key, RawBson::from(event.id().map_err(|error| self.source.malformed(error))?));
            } else if event.kind() == Kind::Delete && !(known.is_empty() && new.is_empty()) {
                let key = event.key().map_err(|error| self.source.malformed(error))?;
                new.remove(&key);
                if known.may_hold(&key) {
                    let namespace = &self.source.namespaces()[usize::from(key.namespace())];
                    gone.push((namespace, event.id().map_err(|error| self.source.malformed(error))?));
                }
            }
        }
        foreign::register(known, &self.source, &self.hub, &new.into_iter().collect::<Vec<_>>()).await?;
        if !gone.is_empty() {
            register::run(&self.source, &register::forget(&gone)).await?;
        }
        Ok(())
    }
}

impl Side for SpokeSide<'_> {
    async fn read(
        &mut self,
        wanted: &Wanted<'_>,
        unstamped: &HashSet<Key>,
        time: Timestamp,
    ) -> Result<Result<Vec<Snapshot>, Unstampable>, Error> {
        let mut snapshots = Vec::new();
        let mut unstamped = unstamped.clone();
        let mut others: Wanted<'_> = wanted.clone();
        others.retain(|key, _| !unstamped.contains(key));
        if !others.is_empty() {
            let mut snapshot = read::documents_at(&self.source, &others, time).await?;
            unstamped.extend(self.take_unstamped(&mut snapshot));
            snapshots.push(snapshot);
        }
        for _ in 0..STAMPS {
            if unstamped.is_empty() {
                return Ok(Ok(snapshots));
            }
            let stamped_at = match self.stamper.stamp(wanted, &unstamped).await? {
                Ok(at) => at,
                Err(unstampable) => return Ok(Err(unstampable)),
            };
            let mut stamped: Wanted<'_> = wanted.clone();
            stamped.retain(|key, _| unstamped.contains(key));
            let mut snapshot = read::documents_at(&self.source, &stamped, stamped_at.max(time)).await?;
            unstamped = self.take_unstamped(&mut snapshot);
            snapshots.push(snapshot);
        }
        Err(self.source.failed("stamping documents", 0, "an application takes the partition key away again and again"))
    }

    fn meaning<'a>(&self, document: Option<&'a RawDocument>, absent: bool) -> Meaning<'a> {
        self.rules.meaning(document, absent)
    }

    fn statements(&self, _: &[Step<'_>]) -> Vec<RawDocumentBuf> {
        Vec::new()
    }

    fn outlived_notes(&self) -> Option<i64> {
        // There are none at the hub.
        None
    }

    fn committed(&mut self, commit: Commit) {
        self.last_push = commit.at;
        let cluster_time = commit.position.as_ref().map(Position::cluster_time);
        if let Some(position) = &commit.position {
            self.pushed_up_to(position);
        }
        let cell = self.spoke.status.link(Direction::Uplink);
        cell.applied(commit.changes, commit.foreign, cluster_time, self.wall_time);
    }
}

/// The spoke's change stream without our own changes.
struct Echoless {
    server: Server,
    tail: Tail,
    tags: Tags,
    echoes: usize,
}

impl Echoless {
    async fn open(server: &Server, position: Option<&Position>) -> Result<Self, Error> {
        let tags = Tags::load(server).await?;
        let selection = Selection { without: tags.ours(), ..Selection::default() };
        let tail = Tail::open(server, position, selection).await?;
        Ok(Self { server: server.clone(), tail, tags, echoes: 0 })
    }

    /// Sends every reply, until the stream fails.
    async fn read_into(mut self, sender: mpsc::Sender<Reply>) -> Error {
        loop {
            match self.next().await {
                // Nobody waits for replies any more: this task is about to be aborted.
                Ok(batch) => drop(sender.send(batch).await),
                Err(error) => return error,
            }
        }
    }

    async fn next(&mut self) -> Result<Reply, Error> {
        let batch = self.tail.next().await?;
        self.tags.look_up(batch.events().filter_map(|event| event.session())).await?;
        let is_echo = |event: EventRef<'_>| event.session().is_some_and(|session| self.tags.get(&session).is_some());
        let echoes = batch.events().filter(|event| is_echo(*event)).count();
        if echoes == 0 {
            return Ok(batch);
        }
        let others = (0..batch.len()).filter(|&index| !is_echo(batch.event(index)));
        let batch = batch.excerpt(others, batch.end().clone());
        self.echoes += echoes;
        if self.echoes > ECHOES {
            *self = Self::open(&self.server, Some(batch.end())).await?;
        }
        Ok(batch)
    }
}
