//! The loop by which a process takes part in the cluster: it beats, reads members and leases at the hub, and takes and
//! gives up leases as [`share::plan`] says.
//!
//! ```text
//! join ─► ( beat, if due ─► look ─► take or give up ─► wait for the next look, or for news ) until the process ends
//!           └─ declared dead: give up everything, join again as a newcomer
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio_util::sync::CancellationToken;

use super::desk::Desk;
use super::pace::Pace;
use super::round::Round;
use super::wishes::Asked;
use crate::link::Stopped;
use crate::mongo::endpoint::Endpoint;
use crate::mongo::error::Error;
use crate::mongo::metadata;
use crate::mongo::metadata::leases::Lease;
use crate::mongo::metadata::members::{self, Card, Saved};
use crate::mongo::metadata::wishes::Wish;
use crate::observe::pulse::Pulse;
use crate::observe::status::Board;
use crate::rules::names::Zone;
use crate::rules::share::MemberId;

/// Time for the last words of a process that ends.
pub(crate) const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// Sent to the coordinator: the zones whose spokes the process runs from now on, each with whether it is paused.
#[derive(Clone, Debug, Default, Message, PartialEq, Eq)]
#[rtype(result = "()")]
pub(crate) struct Hold(pub(crate) BTreeMap<Zone, bool>);

/// Sent to the coordinator: another member was asked for this, and this process runs the spoke.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), String>")]
pub(crate) struct CarryOut(pub(crate) Wish);

/// The actors that the loop tells and asks.
#[derive(Clone)]
pub(crate) struct Superior {
    pub(crate) hold: Recipient<Hold>,
    pub(crate) carry_out: Recipient<CarryOut>,
}

/// What a process knows of the cluster and of its own part.
pub(crate) struct Member {
    pub(super) card: Card,
    /// The identity at the hub; `None` before it has joined.
    pub(super) id: Option<MemberId>,
    /// The identity with which it tries to join: an attempt without an answer may have succeeded.
    pub(super) joining: Option<MemberId>,
    /// Start of the newest heartbeat that the hub has confirmed.
    pub(super) beaten_at: Option<Instant>,
    /// Since when the process has beaten without a gap.
    pub(super) steady_since: Instant,
    /// Something must be written with the next heartbeat, which is due at once.
    pub(super) must_beat: bool,
    /// The others know that the process is about to end.
    pub(super) is_leaving: bool,
    pub(super) changes: i64,
    /// The leases at the newest look.
    pub(super) leases: BTreeMap<Zone, Lease>,
    /// The zones that the process holds at the hub.
    pub(super) held: BTreeSet<Zone>,
    /// The number of leases that the process waits for.
    pub(super) missing: usize,
    /// Held zones to give up as soon as their loops have ended.
    pub(super) giving: BTreeSet<Zone>,
    /// What the coordinator was told last.
    pub(super) told: Option<Hold>,
    /// The other members that have a spoke in common with this one, with their zones and reports at the newest whole
    /// look.
    pub(super) others: BTreeMap<MemberId, Saved>,
    /// Members without a common spoke: none of our business.
    pub(super) strangers: BTreeMap<MemberId, Saved>,
    /// Holders that were removed as dead, with the age of their last heartbeat.
    pub(super) dead: BTreeMap<MemberId, (Duration, Instant)>,
    /// Members with another configuration that the log has named.
    pub(super) differing: BTreeSet<MemberId>,
    pub(super) asked: Vec<Asked>,
    /// Wishes of other members under way, by their `_id`.
    pub(super) carrying: BTreeSet<String>,
}

impl Member {
    pub(super) fn new(card: Card) -> Self {
        Self {
            card,
            id: None,
            joining: None,
            beaten_at: None,
            steady_since: Instant::now(),
            must_beat: false,
            is_leaving: false,
            changes: 0,
            leases: BTreeMap::new(),
            held: BTreeSet::new(),
            missing: 0,
            giving: BTreeSet::new(),
            told: None,
            others: BTreeMap::new(),
            strangers: BTreeMap::new(),
            dead: BTreeMap::new(),
            differing: BTreeSet::new(),
            asked: Vec::new(),
            carrying: BTreeSet::new(),
        }
    }
}

/// Takes part in the cluster until a request to stop. Fails if the hub fails; the next call goes on.
pub(crate) async fn run(
    desk: &Desk,
    endpoint: &Endpoint,
    board: &Board,
    pulse: &Pulse,
    pace: Pace,
    superior: &Superior,
    stop: &CancellationToken,
) -> Result<Stopped, Error> {
    let mut member = desk.member.lock().await;
    let taking_part = async {
        let hub = endpoint.connect().await?;
        metadata::prepare(&hub).await?;
        metadata::format::check(&hub).await?;
        let mut round = Round { member: &mut member, hub: &hub, desk, board, pace, superior };
        loop {
            pulse.beat();
            match tokio::time::timeout(pace.round(), round.run()).await {
                Ok(done) => done?,
                Err(_) => return Err(hub.timed_out("taking part in the cluster", pace.round())),
            }
            round.rest().await;
        }
    };
    let failed: Result<Stopped, Error> = tokio::select! {
        failed = taking_part => failed,
        () = stop.cancelled() => Ok(Stopped),
    };
    match failed {
        Err(error) => {
            // The next round does what this one may have left.
            member.must_beat = true;
            board.cluster().failed(&error.to_string());
            endpoint.renew_after(&error);
            Err(error)
        }
        Ok(Stopped) => {
            drop(member);
            leave(desk, endpoint).await;
            Ok(Stopped)
        }
    }
}

/// Tells the other members of the end, unless they know. This frees whatever is still held; otherwise the others wait
/// until the lease runs out.
pub(crate) async fn leave(desk: &Desk, endpoint: &Endpoint) {
    // A join without an answer may have succeeded.
    let id = desk.member.try_lock().ok().and_then(|mut member| member.id.take().or(member.joining.take()));
    let Some(id) = id else { return };
    let leaving = async { members::leave(&endpoint.connect().await?, &id).await };
    match tokio::time::timeout(LEAVE_LIMIT, leaving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the other members were not told of the end"),
        Err(_) => tracing::warn!("the hub does not answer: the other members were not told of the end"),
    }
}
