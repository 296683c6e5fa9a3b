//! The hub's single change stream for all spokes.
//!
//! A spoke attaches with the position of the checkpoint, and learns the position from which the inbox is filled. The
//! changes between the two positions come on a separate stream of the spoke. If the checkpoint is newer, the spoke
//! skips the changes before the checkpoint. A slow spoke is detached, and attaches again after catching up.
//!
//! If an inbox is full, the fan-out waits only while every spoke's writer is busy: no spoke delays another spoke.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::feed::Feed;
use super::inbox::Inbox;
use super::left_out;
use super::routed::Routed;
use super::subscribers::{Distributed, Subscribers};
use crate::link::lifecycle::Stopped;
use crate::link::{watch_majority, watch_oplog};
use crate::mongo::endpoint::Endpoint;
use crate::mongo::error::{Error, Failure};
use crate::mongo::server::Server;
use crate::mongo::{metadata, tail};
use crate::observe::status::{Board, Cell, Counted, State};
use crate::rules::names::Zone;
use crate::rules::position::Position;
use crate::rules::reply::Reply;
use crate::rules::route::{Routes, SpokeId};

/// Time to wait for further spokes after the first spoke, so that the stream starts at a position common to most
/// spokes.
const GATHERING: Duration = Duration::from_secs(1);

/// The stream from the view of the spokes. The fan-out outlives the loop that fills the inboxes.
pub(crate) struct Fanout {
    subscribers: Mutex<Subscribers>,
    /// Counts the starts of the stream.
    starts: watch::Sender<u64>,
    /// Counts the streams opened at the hub. Before a further one, the hub was away.
    streams: AtomicU64,
    /// Counts the arrivals of spokes that wait for a start.
    arrivals: watch::Sender<u64>,
    lanes: Semaphore,
    /// Signals a delivery taken from an inbox, an idle writer, or a spoke attached or detached.
    taken: Arc<Notify>,
    board: Arc<Board>,
}

/// A reply in distribution.
pub(super) struct Outgoing {
    pub(super) routed: Arc<Routed>,
    /// The zones without the owners' own changes in the reply.
    pub(super) left_out: BTreeSet<Zone>,
    /// The left-out zones with a hub edit after the end of the reply.
    pub(super) edited: Vec<Zone>,
    /// The parts made so far, by spoke.
    parts: HashMap<SpokeId, Arc<Routed>>,
}

impl Outgoing {
    /// Routes a reply that began at `start`. A reply without the own changes of a zone is cut before the zone's first
    /// hub edit.
    async fn route(
        fanout: &Fanout,
        feed: &mut Feed,
        reply: Reply,
        start: &Position,
        left_out: BTreeSet<Zone>,
    ) -> Result<Self, Error> {
        let routes = fanout.routes();
        let mut routed = feed.route(reply, &routes, None).await?;
        let (first, edited) = left_out::cut(&left_out, |zone| routed.first_hub_edit(zone));
        if let Some(first) = first {
            routed = routed.before(first, start);
        }
        Ok(Self { left_out, edited, ..Self::of(routed) })
    }

    /// A complete reply.
    pub(super) fn of(routed: Routed) -> Self {
        Self { routed: Arc::new(routed), left_out: BTreeSet::new(), edited: Vec::new(), parts: HashMap::new() }
    }

    /// The spoke's part: an excerpt if the part is small, else the whole reply, shared by all spokes.
    pub(super) fn part(&mut self, spoke: SpokeId) -> Arc<Routed> {
        let whole = &self.routed;
        let part = || whole.excerpt(spoke).map_or_else(|| whole.clone(), Arc::new);
        self.parts.entry(spoke).or_insert_with(part).clone()
    }
}

/// A permit for a spoke's separate stream.
pub(in crate::link) struct Lane<'f> {
    _permit: SemaphorePermit<'f>,
    _stream: Counted,
}

/// A spoke's subscription to the fan-out.
pub(in crate::link) struct Attachment {
    pub(in crate::link) inbox: Arc<Inbox>,
    /// All changes after this position come through the inbox.
    pub(in crate::link) from: Position,
}

impl Fanout {
    /// A fan-out for these routes. At most `catching_up` spokes catch up at the same time, each on a separate stream.
    /// The board counts the streams open at the hub.
    pub(crate) fn new(routes: Routes, catching_up: usize, board: Arc<Board>) -> Self {
        Self {
            subscribers: Mutex::new(Subscribers::new(routes)),
            starts: watch::Sender::new(0),
            streams: AtomicU64::new(0),
            arrivals: watch::Sender::new(0),
            lanes: Semaphore::new(catching_up),
            taken: Arc::default(),
            board,
        }
    }

    pub(in crate::link) fn routes(&self) -> Arc<Routes> {
        self.subscribers().routes.clone()
    }

    pub(crate) fn set_routes(&self, routes: Routes) {
        self.subscribers().set_routes(routes);
        // The number of spokes to wait for has changed.
        self.arrivals.send_modify(|number| *number += 1);
    }

    /// The stream's position; `None` before the start.
    pub(in crate::link) fn position(&self) -> Option<Position> {
        self.subscribers().position.clone()
    }

    /// The number of streams opened at the hub so far.
    pub(in crate::link) fn streams(&self) -> u64 {
        self.streams.load(Ordering::Acquire)
    }

    /// Waits for a permit for a separate stream.
    pub(in crate::link) async fn lane(&self) -> Lane<'_> {
        let permit = self.lanes.acquire().await.expect("it is never closed");
        Lane { _permit: permit, _stream: self.board.hub_streams().counted() }
    }

    /// Attaches a spoke with a checkpoint at `position`. Waits for the start of the stream.
    pub(in crate::link) async fn attach(&self, zone: &Zone, position: &Position) -> Attachment {
        let mut starts = self.starts.subscribe();
        loop {
            if let Some(attachment) = self.try_attach(zone, position) {
                return attachment;
            }
            starts.changed().await.expect("the sender is borrowed");
        }
    }

    fn try_attach(&self, zone: &Zone, position: &Position) -> Option<Attachment> {
        let mut subscribers = self.subscribers();
        let Some(from) = subscribers.position.clone() else {
            subscribers.waiting.insert(zone.clone(), position.clone());
            self.arrivals.send_modify(|number| *number += 1);
            return None;
        };
        let shown = self.board.get(zone.as_str()).map(|cell| cell.queue().clone()).unwrap_or_default();
        let inbox = Arc::new(Inbox::new(shown, self.taken.clone()));
        self.taken.notify_one();
        subscribers.attach(zone, inbox.clone());
        Some(Attachment { inbox, from })
    }

    /// Detaches a spoke: no further delivery enters the inbox.
    pub(crate) fn detach(&self, zone: &Zone) {
        if self.subscribers().detach(zone) {
            self.taken.notify_one();
        }
    }

    /// The position at which the stream continues, with the routes, and the zones to leave out.
    fn next_part(&self) -> Option<(Position, Arc<Routes>, BTreeSet<Zone>)> {
        let subscribers = self.subscribers();
        Some((subscribers.position.clone()?, subscribers.routes.clone(), subscribers.left_out()))
    }

    /// The position at which the stream continues or starts. `None` after a request to stop.
    async fn start(&self, hub: &Server, stop: &CancellationToken) -> Result<Option<Position>, Error> {
        let (known, lost) = {
            let subscribers = self.subscribers();
            (subscribers.position.clone(), subscribers.lost)
        };
        if known.is_some() {
            return Ok(known);
        }
        let start = if lost {
            tail::present_position(hub).await?
        } else {
            let Some(start) = stop.run_until_cancelled(self.gather()).await else { return Ok(None) };
            // The place comes from a spoke's own server, so it is a claim: only its time counts, and the hub's present
            // is the latest start. A stream that has read everything waits one tick after the present.
            match start.seen_until() > hub.now().await? {
                true => tail::present_position(hub).await?,
                false => start.before_its_time(),
            }
        };
        let mut subscribers = self.subscribers();
        subscribers.position = Some(start.clone());
        subscribers.lost = false;
        drop(subscribers);
        self.starts.send_modify(|number| *number += 1);
        Ok(Some(start))
    }

    /// Waits for the spokes. Returns a start common to most spokes.
    async fn gather(&self) -> Position {
        let mut arrivals = self.arrivals.subscribe();
        let mut deadline = None;
        loop {
            let (start, waiting, spokes) = {
                let subscribers = self.subscribers();
                (subscribers.common_start(), subscribers.waiting.len(), subscribers.routes.len())
            };
            if let Some(start) = start {
                let until = *deadline.get_or_insert_with(|| tokio::time::Instant::now() + GATHERING);
                if waiting >= spokes || tokio::time::Instant::now() >= until {
                    return start;
                }
                drop(tokio::time::timeout_at(until, arrivals.changed()).await);
            } else {
                arrivals.changed().await.expect("the sender is borrowed");
            }
        }
    }

    fn subscribers(&self) -> MutexGuard<'_, Subscribers> {
        // Plain values, each set in one step.
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the stream until a failure or a request to stop.
pub(crate) async fn run(
    fanout: &Fanout,
    hub: &Endpoint,
    cell: &Cell,
    stop: &CancellationToken,
) -> Result<Stopped, Error> {
    let ended = run_once(fanout, hub, cell, stop).await;
    if let Err(error) = &ended {
        hub.renew_after(error);
    }
    ended
}

async fn run_once(fanout: &Fanout, hub: &Endpoint, cell: &Cell, stop: &CancellationToken) -> Result<Stopped, Error> {
    cell.set_state(State::Connecting);
    let server = hub.connect().await?;
    metadata::prepare(&server).await?;
    // The start waits for spokes without a time limit, so the loop does not count as silent meanwhile.
    let start = cell.pulse().while_waiting(fanout.start(&server, stop));
    let Some(position) = start.await? else { return Ok(Stopped) };
    cell.resumes_at(Some(position.cluster_time()));
    // If the hub no longer has the position, all spokes must start again.
    // The server may look for the next event for minutes, among the changes of other collections.
    let opening = cell.pulse().while_waiting(Feed::open(&server, &position, fanout.routes()));
    let Some(opened) = stop.run_until_cancelled(opening).await else { return Ok(Stopped) };
    let mut feed = match opened {
        Ok(feed) => feed,
        Err(error) => return Err(lost(fanout, error)),
    };
    fanout.streams.fetch_add(1, Ordering::AcqRel);
    let _stream = fanout.board.hub_streams().counted();
    let _watching =
        [watch_oplog::watch(&server, fanout.board.hub_window()), watch_majority::watch(&server, fanout.board.hub())];
    cell.set_state(State::Streaming);
    loop {
        // Spokes and routes may change between two replies, so each read uses the present state.
        let (place, routes, left_out) = fanout.next_part().expect("it has started, and is not lost");
        let reading = cell.pulse().while_waiting(feed.read_after(&place, &routes, &left_out));
        let Some(reply) = stop.run_until_cancelled(reading).await else { return Ok(Stopped) };
        let reply = reply.map_err(|error| lost(fanout, error))?;
        if !reply.lost_collections().is_empty() {
            cell.set_error("a synced collection was dropped or renamed at the hub: the spokes keep its documents");
        }
        // All spokes receive the reply before the next read: the position moves for all spokes together.
        let mut outgoing = Outgoing::route(fanout, &mut feed, reply, &place, left_out).await?;
        loop {
            let distributed = fanout.subscribers().distribute(&mut outgoing);
            match distributed {
                Distributed::Done => show(cell, &outgoing.routed.reply),
                // The next round reads the reply again, with the missing changes.
                Distributed::Lacking => {}
                // Backpressure: a writer takes a delivery first.
                Distributed::MustWait => {
                    let taken = cell.pulse().while_waiting(fanout.taken.notified());
                    let Some(()) = stop.run_until_cancelled(taken).await else { return Ok(Stopped) };
                    continue;
                }
                // The zones of the spokes have changed: the same reply is routed again.
                Distributed::NoLongerRouted => {
                    let (reply, left_out) = (outgoing.routed.reply.clone(), outgoing.left_out);
                    outgoing = Outgoing::route(fanout, &mut feed, reply, &place, left_out).await?;
                    continue;
                }
            }
            break;
        }
    }
}

fn show(cell: &Cell, reply: &Reply) {
    let end = reply.end().cluster_time();
    match reply.events().last() {
        Some(event) => {
            cell.received();
            cell.applied(reply.len(), 0, Some(end), event.wall_time());
        }
        None => cell.quiet(end),
    }
}

/// After a lost position, all spokes start again from their own checkpoints.
fn lost(fanout: &Fanout, error: Error) -> Error {
    if error.failure() == Failure::HistoryLost {
        fanout.subscribers().lose();
    }
    error
}
