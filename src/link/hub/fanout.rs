//! One change stream of the hub for all spokes.
//!
//! A spoke attaches with the position of its checkpoint and is told from where on its inbox is filled. What lies between
//! the two it reads by a stream of its own; where its checkpoint is the newer one it leaves out what it has. A spoke that
//! does not keep up is detached, and comes back when it has caught up.
//!
//! Where an inbox is full the fan-out waits only as long as every spoke has something to do: nobody is held up by another.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use crate::link::Stopped;
use crate::link::hub::feed::{Feed, Routed};
use crate::link::hub::inbox::{Delivery, Inbox};
use crate::link::watch_oplog;
use crate::mongo::error::{Error, Failure};
use crate::mongo::server::{Endpoint, Server};
use crate::mongo::tail;
use crate::observe::status::{Board, Cell, Counted, State};
use crate::rules::names::Zone;
use crate::rules::position::Position;
use crate::rules::reply::Reply;
use crate::rules::route::{Routes, SpokeId};

/// How long the stream waits for the other spokes once the first one has come, so that it starts where most of them stand.
const GATHERING: Duration = Duration::from_secs(1);

/// After a hub edit in a zone, its owner's own changes come along for so long: to leave them out and to bring them again takes the hub a
/// new stream each time.
const AFTER_HUB_EDIT: Duration = Duration::from_secs(60);

/// Checkpoints further apart than this are not worth making everybody read what lies between.
const TOGETHER: u32 = 60;

/// The one stream, as the spokes see it. It outlives the loop that fills it.
pub(crate) struct Fanout {
    state: Mutex<Shared>,
    /// Counts how often the stream got a place to start at.
    starts: watch::Sender<u64>,
    /// Counts the spokes that came to wait for that.
    arrivals: watch::Sender<u64>,
    lanes: Semaphore,
    /// Some inbox has become emptier, is waited for, or has come or gone.
    taken: Arc<Notify>,
    board: Arc<Board>,
}

struct Shared {
    routes: Arc<Routes>,
    /// Where the stream stands. `None` before it has started.
    position: Option<Position>,
    /// Spokes that wait for it to start, with their checkpoints.
    waiting: HashMap<Zone, Position>,
    attached: HashMap<Zone, Attached>,
    /// The stream's place was lost: it can only start at the present.
    lost: bool,
}

/// A spoke that is attached.
struct Attached {
    inbox: Arc<Inbox>,
    /// From the stream's position on, the spoke's own changes are left out.
    is_left_out: bool,
    /// When a hub edit last came while they were.
    edited: Option<Instant>,
}

impl Attached {
    fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox, is_left_out: false, edited: None }
    }

    /// True if its own changes are of no use to it, and a hub edit that would need them is not likely soon.
    fn needs_no_own_changes(&self) -> bool {
        self.edited.is_none_or(|at| at.elapsed() >= AFTER_HUB_EDIT) && self.inbox.needs_no_own_changes()
    }
}

impl Shared {
    /// The zones whose owners' own changes the stream leaves out.
    fn left_out(&self) -> BTreeSet<Zone> {
        self.attached.iter().filter(|(_, attached)| attached.is_left_out).map(|(zone, _)| zone.clone()).collect()
    }

    /// From the end of this reply on, which is not distributed yet.
    fn decide_what_to_leave_out(&mut self, outgoing: &Outgoing) {
        for (zone, attached) in &mut self.attached {
            if outgoing.edited.contains(zone) {
                (attached.is_left_out, attached.edited) = (false, Some(Instant::now()));
            } else if !attached.is_left_out {
                attached.is_left_out = self.routes.is_only_its_owners(zone.as_str())
                    && attached.needs_no_own_changes()
                    && outgoing.routed.first_hub_edit(zone).is_none();
            }
        }
    }
}

/// A reply on its way to the spokes.
struct Outgoing {
    routed: Arc<Routed>,
    /// The zones whose owners' own changes it lacks.
    left_out: BTreeSet<Zone>,
    /// Those of them in which a hub edit follows it.
    edited: Vec<Zone>,
    /// What each spoke gets of it, once that was made.
    parts: HashMap<SpokeId, Arc<Routed>>,
}

impl Outgoing {
    /// Routes a reply that began at `start`. From the first hub edit on in a zone whose owner's own changes it lacks, it is of no use:
    /// those that come after the hub edit must be held against it.
    async fn route(
        fanout: &Fanout,
        feed: &mut Feed,
        batch: Reply,
        start: &Position,
        left_out: BTreeSet<Zone>,
    ) -> Result<Self, Error> {
        let routes = fanout.routes();
        let mut routed = feed.route(batch, &routes, None).await?;
        let edits = left_out.iter().filter_map(|zone| Some((zone.clone(), routed.first_hub_edit(zone)?)));
        let (edited, events): (Vec<Zone>, Vec<u32>) = edits.unzip();
        if let Some(first) = events.into_iter().min() {
            routed = routed.before(first, start);
        }
        Ok(Self { routed: Arc::new(routed), left_out, edited, parts: HashMap::new() })
    }

    /// What this spoke gets: only its own part where that is small.
    fn part(&mut self, spoke: SpokeId) -> Arc<Routed> {
        let whole = &self.routed;
        let part = || whole.excerpt(spoke).map_or_else(|| whole.clone(), Arc::new);
        self.parts.entry(spoke).or_insert_with(part).clone()
    }
}

/// What became of a reply.
enum Distributed {
    Done,
    /// Some inbox is full, and no writer waits for something to do.
    MustWait,
    /// It was routed by what is no longer configured.
    NoLongerRouted,
    /// It lacks what somebody needs who has come meanwhile.
    Lacking,
}

/// One of the few places for a spoke's own stream.
pub(crate) struct Lane<'f> {
    _permit: SemaphorePermit<'f>,
    _stream: Counted,
}

/// A spoke's place at the fan-out.
pub(crate) struct Attachment {
    /// What comes for the spoke.
    pub(crate) inbox: Arc<Inbox>,
    /// Everything after this place comes through the inbox.
    pub(crate) from: Position,
}

impl Fanout {
    /// A stream for these routes. So many spokes may be `catching_up` at once, each on a stream of its own. Streams that are
    /// open at the hub are counted on the board.
    pub(crate) fn new(routes: Routes, catching_up: usize, board: Arc<Board>) -> Self {
        let state = Shared {
            routes: Arc::new(routes),
            position: None,
            waiting: HashMap::new(),
            attached: HashMap::new(),
            lost: false,
        };
        Self {
            state: Mutex::new(state),
            starts: watch::Sender::new(0),
            arrivals: watch::Sender::new(0),
            lanes: Semaphore::new(catching_up),
            taken: Arc::default(),
            board,
        }
    }

    /// Who holds what.
    pub(crate) fn routes(&self) -> Arc<Routes> {
        self.state().routes.clone()
    }

    /// From now on this is who holds what.
    pub(crate) fn set_routes(&self, routes: Routes) {
        let mut state = self.state();
        for (zone, attached) in &mut state.attached {
            attached.is_left_out &= routes.is_only_its_owners(zone.as_str());
        }
        state.routes = Arc::new(routes);
        drop(state);
        // Whoever waits for all spokes must count them again.
        self.arrivals.send_modify(|number| *number += 1);
    }

    /// Where the stream stands, if it has started.
    pub(crate) fn position(&self) -> Option<Position> {
        self.state().position.clone()
    }

    /// Takes one of the few places for a stream of its own.
    pub(crate) async fn lane(&self) -> Lane<'_> {
        let permit = self.lanes.acquire().await.expect("it is never closed");
        Lane { _permit: permit, _stream: self.board.hub_streams().counted() }
    }

    /// Attaches a spoke that stands at `position`. Waits until the stream has started.
    pub(crate) async fn attach(&self, zone: &Zone, position: &Position) -> Attachment {
        let mut starts = self.starts.subscribe();
        loop {
            if let Some(attachment) = self.try_attach(zone, position) {
                return attachment;
            }
            starts.changed().await.expect("the sender is borrowed");
        }
    }

    fn try_attach(&self, zone: &Zone, position: &Position) -> Option<Attachment> {
        let mut state = self.state();
        let Some(from) = state.position.clone() else {
            state.waiting.insert(zone.clone(), position.clone());
            self.arrivals.send_modify(|number| *number += 1);
            return None;
        };
        state.waiting.remove(zone);
        let shown = self.board.get(zone.as_str()).map(|cell| cell.queue().clone()).unwrap_or_default();
        let inbox = Arc::new(Inbox::new(shown, self.taken.clone()));
        self.taken.notify_one();
        if let Some(former) = state.attached.insert(zone.clone(), Attached::new(inbox.clone())) {
            former.inbox.detach();
        }
        Some(Attachment { inbox, from })
    }

    /// Nothing more is kept for this spoke.
    pub(crate) fn detach(&self, zone: &Zone) {
        let mut state = self.state();
        state.waiting.remove(zone);
        if let Some(former) = state.attached.remove(zone) {
            former.inbox.detach();
            self.taken.notify_one();
        }
    }

    /// Where the stream goes on, and the zones whose owners' own changes it leaves out from there on.
    fn next_part(&self) -> Option<(Position, Arc<Routes>, BTreeSet<Zone>)> {
        let state = self.state();
        Some((state.position.clone()?, state.routes.clone(), state.left_out()))
    }

    /// Gives every spoke its part of a reply.
    fn distribute(&self, outgoing: &mut Outgoing) -> Distributed {
        let mut state = self.state();
        let routed = outgoing.routed.clone();
        // A spoke that has attached meanwhile relies on the present routes.
        if !Arc::ptr_eq(&state.routes, &routed.routes) {
            return Distributed::NoLongerRouted;
        }
        if !outgoing.left_out.is_subset(&state.left_out()) {
            return Distributed::Lacking;
        }
        let lost_collections = routed.batch.lost_collections();
        let mut delivery = |zone: &Zone| {
            let own = routed.routes.owner(zone.as_str()).filter(|spoke| !routed.picks(*spoke).is_empty());
            Delivery {
                routed: own.map(|spoke| (outgoing.part(spoke), spoke)),
                routes: routed.routes.clone(),
                lost_collections: lost_collections.clone(),
                end: routed.batch.end().clone(),
            }
        };
        let deliveries: HashMap<Zone, Delivery> =
            state.attached.keys().map(|zone| (zone.clone(), delivery(zone))).collect();
        let is_full = state.attached.iter().any(|(zone, attached)| !attached.inbox.has_room_for(&deliveries[zone]));
        if is_full && !state.attached.values().any(|attached| attached.inbox.is_awaited()) {
            return Distributed::MustWait;
        }
        state.decide_what_to_leave_out(outgoing);
        state.position = Some(routed.batch.end().clone());
        for (zone, delivery) in deliveries {
            let Some(attached) = state.attached.get(&zone) else { continue };
            if !attached.inbox.push(delivery) {
                tracing::warn!(%zone, "the spoke does not keep up, it will catch up on a stream of its own");
                state.attached.remove(&zone);
            }
        }
        Distributed::Done
    }

    /// Where the stream goes on, or starts.
    async fn start(&self, hub: &Server, stop: &CancellationToken) -> Result<Option<Position>, Error> {
        let (known, lost) = {
            let state = self.state();
            (state.position.clone(), state.lost)
        };
        if known.is_some() {
            return Ok(known);
        }
        let start = if lost {
            tail::present_position(hub).await?
        } else {
            let Some(start) = stop.run_until_cancelled(self.gather()).await else { return Ok(None) };
            start
        };
        let mut state = self.state();
        state.position = Some(start.clone());
        state.lost = false;
        drop(state);
        self.starts.send_modify(|number| *number += 1);
        Ok(Some(start))
    }

    /// Waits for the spokes, and says where most of them stand.
    async fn gather(&self) -> Position {
        let mut arrivals = self.arrivals.subscribe();
        let mut deadline = None;
        loop {
            let (waiting, spokes) = {
                let state = self.state();
                (state.waiting.values().cloned().collect::<Vec<_>>(), state.routes.len())
            };
            if let Some(start) = common_start(&waiting) {
                let until = *deadline.get_or_insert_with(|| tokio::time::Instant::now() + GATHERING);
                if waiting.len() >= spokes || tokio::time::Instant::now() >= until {
                    return start;
                }
                drop(tokio::time::timeout_at(until, arrivals.changed()).await);
            } else {
                arrivals.changed().await.expect("the sender is borrowed");
            }
        }
    }

    /// The stream's place is gone: all spokes start anew from their own.
    fn lose(&self) {
        let mut state = self.state();
        state.position = None;
        state.lost = true;
        for (_, attached) in state.attached.drain() {
            attached.inbox.detach();
        }
    }

    fn state(&self) -> MutexGuard<'_, Shared> {
        // Plain values, each set in one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The earliest of those positions that are close to the latest one.
fn common_start(positions: &[Position]) -> Option<Position> {
    let latest = positions.iter().max()?;
    let close =
        |position: &&Position| latest.cluster_time().time.saturating_sub(position.cluster_time().time) <= TOGETHER;
    positions.iter().filter(close).min().cloned()
}

/// Runs the stream until it fails or is told to stop.
///
/// # Errors
/// If the hub fails.
pub(crate) async fn run(
    fanout: &Fanout,
    hub: &Endpoint,
    cell: &Cell,
    stop: &CancellationToken,
) -> Result<Stopped, Error> {
    cell.set_state(State::Connecting);
    let server = hub.connect().await?;
    crate::mongo::metadata::prepare(&server).await?;
    let start = cell.pulse().while_waiting(fanout.start(&server, stop));
    let Some(position) = start.await? else { return Ok(Stopped) };
    cell.resumes_at(Some(position.cluster_time()));
    let mut feed = match Feed::open(&server, &position, fanout.routes()).await {
        Ok(feed) => feed,
        Err(error) => return Err(lost(fanout, error)),
    };
    let _stream = fanout.board.hub_streams().counted();
    let _watching = watch_oplog::watch(&server, fanout.board.hub_window());
    cell.set_state(State::Streaming);
    loop {
        let (place, routes, left_out) = fanout.next_part().expect("it has started, and is not lost");
        let reading = feed.read_after(&place, &routes, &left_out);
        let Some(batch) = stop.run_until_cancelled(reading).await else { return Ok(Stopped) };
        let batch = batch.map_err(|error| lost(fanout, error))?;
        if !batch.lost_collections().is_empty() {
            cell.set_error("a synced collection was dropped or renamed at the hub: the spokes keep its documents");
        }
        let mut outgoing = Outgoing::route(fanout, &mut feed, batch, &place, left_out).await?;
        loop {
            match fanout.distribute(&mut outgoing) {
                Distributed::Done => show(cell, &outgoing.routed.batch),
                // It is read again, with what it lacks.
                Distributed::Lacking => {}
                Distributed::MustWait => {
                    let taken = cell.pulse().while_waiting(fanout.taken.notified());
                    let Some(()) = stop.run_until_cancelled(taken).await else { return Ok(Stopped) };
                    continue;
                }
                Distributed::NoLongerRouted => {
                    let (batch, left_out) = (outgoing.routed.batch.clone(), outgoing.left_out);
                    outgoing = Outgoing::route(fanout, &mut feed, batch, &place, left_out).await?;
                    continue;
                }
            }
            break;
        }
    }
}

/// Shows how far the stream is.
fn show(cell: &Cell, batch: &Reply) {
    let end = batch.end().cluster_time();
    match batch.events().last() {
        Some(event) => {
            cell.received();
            cell.applied(batch.len(), 0, Some(end), event.wall_time());
        }
        None => cell.quiet(end),
    }
}

fn lost(fanout: &Fanout, error: Error) -> Error {
    if error.failure() == Failure::HistoryLost {
        fanout.lose();
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn at(seconds: u32) -> Position {
        let data = format!("82{seconds:08X}000000012B0229296E04");
        Position::from_token(&rawdoc! { "_data": data.as_str() }).expect("a token")
    }

    #[test]
    fn the_stream_starts_where_most_spokes_stand() {
        assert_eq!(common_start(&[at(1_000), at(995), at(990)]), Some(at(990)));
        assert_eq!(common_start(&[]), None);
    }

    #[test]
    fn a_spoke_that_was_away_for_long_does_not_make_the_others_wait() {
        assert_eq!(common_start(&[at(1_000), at(10), at(990)]), Some(at(990)));
    }
}
