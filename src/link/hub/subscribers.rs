//! The spokes from the view of the fan-out: attached spokes, spokes waiting for the start, and the stream's position.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::fanout::Outgoing;
use super::inbox::{Delivery, Inbox};
use super::left_out::{LeftOut, Standing};
use crate::rules::names::Zone;
use crate::rules::position::Position;
use crate::rules::route::Routes;

/// Maximum age in seconds of a checkpoint for a common start, compared with the newest checkpoint. An older start would
/// make every spoke read the changes between.
const WORTH_READING_SECONDS: u32 = 60;

/// The state of the fan-out, behind a lock.
pub(super) struct Subscribers {
    pub(super) routes: Arc<Routes>,
    /// The stream's position. `None` before the start.
    pub(super) position: Option<Position>,
    /// Spokes waiting for the start, with the positions of their checkpoints.
    pub(super) waiting: HashMap<Zone, Position>,
    pub(super) attached: HashMap<Zone, Attached>,
    /// The stream's position was lost: the stream can only start at the present.
    pub(super) lost: bool,
}

pub(super) struct Attached {
    pub(super) inbox: Arc<Inbox>,
    left_out: LeftOut,
}

pub(super) enum Distributed {
    Done,
    /// An inbox is full, and no writer is idle.
    MustWait,
    /// The routes have changed since the routing of the reply.
    NoLongerRouted,
    /// The reply lacks own changes needed by now, for example because the spoke has attached again.
    Lacking,
}

impl Subscribers {
    pub(super) fn new(routes: Routes) -> Self {
        Self {
            routes: Arc::new(routes),
            position: None,
            waiting: HashMap::new(),
            attached: HashMap::new(),
            lost: false,
        }
    }

    pub(super) fn set_routes(&mut self, routes: Routes) {
        for (zone, attached) in &mut self.attached {
            attached.left_out.rerouted(routes.is_only_its_owners(zone.as_str()));
        }
        self.routes = Arc::new(routes);
    }

    /// Attaches a spoke, in place of an earlier attachment.
    pub(super) fn attach(&mut self, zone: &Zone, inbox: Arc<Inbox>) {
        self.waiting.remove(zone);
        let attached = Attached { inbox, left_out: LeftOut::default() };
        if let Some(former) = self.attached.insert(zone.clone(), attached) {
            former.inbox.detach();
        }
    }

    /// Detaches a spoke. True if the spoke was attached.
    pub(super) fn detach(&mut self, zone: &Zone) -> bool {
        self.waiting.remove(zone);
        let former = self.attached.remove(zone);
        if let Some(former) = &former {
            former.inbox.detach();
        }
        former.is_some()
    }

    /// Detaches every spoke: the stream's position is lost.
    pub(super) fn lose(&mut self) {
        self.position = None;
        self.lost = true;
        for (_, attached) in self.attached.drain() {
            attached.inbox.detach();
        }
    }

    /// The zones without the owners' own changes in the stream.
    pub(super) fn left_out(&self) -> BTreeSet<Zone> {
        let left_out = self.attached.iter().filter(|(_, attached)| attached.left_out.is_left_out());
        left_out.map(|(zone, _)| zone.clone()).collect()
    }

    /// A start common to most waiting spokes. `None` if no spoke waits.
    pub(super) fn common_start(&self) -> Option<Position> {
        common_start(self.waiting.values())
    }

    /// Gives every attached spoke a part of the reply.
    pub(super) fn distribute(&mut self, outgoing: &mut Outgoing) -> Distributed {
        let routed = outgoing.routed.clone();
        // A newly attached spoke relies on the present routes.
        if !Arc::ptr_eq(&self.routes, &routed.routes) {
            return Distributed::NoLongerRouted;
        }
        if !outgoing.left_out.is_subset(&self.left_out()) {
            return Distributed::Lacking;
        }
        let lost_collections = routed.reply.lost_collections();
        let mut delivery = |zone: &Zone| {
            let own = routed.routes.owner(zone.as_str()).filter(|spoke| !routed.picks(*spoke).is_empty());
            Delivery {
                routed: own.map(|spoke| (outgoing.part(spoke), spoke)),
                routes: routed.routes.clone(),
                lost_collections: lost_collections.clone(),
                end: routed.reply.end().clone(),
            }
        };
        let deliveries: HashMap<Zone, Delivery> =
            self.attached.keys().map(|zone| (zone.clone(), delivery(zone))).collect();
        // Waiting delays no spoke while every writer is busy.
        let is_full = self.attached.iter().any(|(zone, attached)| !attached.inbox.has_room_for(&deliveries[zone]));
        if is_full && !self.attached.values().any(|attached| attached.inbox.is_awaited()) {
            return Distributed::MustWait;
        }
        self.decide_what_to_leave_out(outgoing);
        self.position = Some(routed.reply.end().clone());
        for (zone, delivery) in deliveries {
            let Some(attached) = self.attached.get(&zone) else { continue };
            if !attached.inbox.push(delivery) {
                tracing::warn!(%zone, "the spoke does not keep up, it will catch up on a stream of its own");
                self.attached.remove(&zone);
            }
        }
        Distributed::Done
    }

    /// Decides about the own changes of each spoke after the reply. Call before the reply is distributed: afterwards no
    /// inbox is empty.
    fn decide_what_to_leave_out(&mut self, outgoing: &Outgoing) {
        let now = Instant::now();
        for (zone, attached) in &mut self.attached {
            let is_only_holder = self.routes.is_only_its_owners(zone.as_str());
            let needs_no_own_changes = attached.inbox.needs_no_own_changes();
            // The search runs only if the result matters.
            let has_hub_edit = is_only_holder && needs_no_own_changes && outgoing.routed.first_hub_edit(zone).is_some();
            let ended_by_hub_edit = outgoing.edited.contains(zone);
            let standing = Standing { ended_by_hub_edit, has_hub_edit, is_only_holder, needs_no_own_changes };
            attached.left_out.decide(standing, now);
        }
    }
}

/// The earliest position within [`WORTH_READING_SECONDS`] of the latest position.
fn common_start<'p>(positions: impl Iterator<Item = &'p Position> + Clone) -> Option<Position> {
    let latest = positions.clone().max()?;
    let behind = |position: &Position| latest.cluster_time().time.saturating_sub(position.cluster_time().time);
    positions.filter(|position| behind(position) <= WORTH_READING_SECONDS).min().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::hub::routed::tests::{routed, routes};
    use crate::observe::status::spoke::Depth;
    use bson::rawdoc;
    use tokio::sync::Notify;

    fn at(seconds: u32) -> Position {
        let data = format!("82{seconds:08X}000000012B0229296E04");
        Position::from_token(&rawdoc! { "_data": data.as_str() }).expect("a token")
    }

    fn start(seconds: &[u32]) -> Option<Position> {
        let positions: Vec<Position> = seconds.iter().map(|seconds| at(*seconds)).collect();
        common_start(positions.iter())
    }

    #[test]
    fn the_stream_starts_where_most_spokes_stand() {
        assert_eq!(start(&[1_000, 995, 990]), Some(at(990)));
        assert_eq!(start(&[]), None);
    }

    #[test]
    fn a_spoke_that_was_away_for_long_does_not_make_the_others_wait() {
        assert_eq!(start(&[1_000, 10, 990]), Some(at(990)));
    }

    /// Subscribers with DFW and HOU attached, and a reply with events for both.
    fn subscribers() -> (Subscribers, Outgoing) {
        let mut subscribers = Subscribers { routes: routes(), ..Subscribers::new(Routes::default()) };
        for zone in ["DFW", "HOU"] {
            let inbox = Arc::new(Inbox::new(Depth::default(), Arc::<Notify>::default()));
            subscribers.attach(&Zone::new(zone), inbox);
        }
        let mut reply = routed();
        reply.routes = subscribers.routes.clone();
        (subscribers, Outgoing::of(reply))
    }

    #[test]
    fn every_subscriber_gets_its_part_of_a_reply() {
        let (mut subscribers, mut outgoing) = subscribers();
        assert!(matches!(subscribers.distribute(&mut outgoing), Distributed::Done));
        for (zone, events) in [("DFW", 3), ("HOU", 1)] {
            let delivery = subscribers.attached[&Zone::new(zone)].inbox.try_next().expect("a delivery");
            let (routed, spoke) = delivery.routed.expect("events");
            assert_eq!(routed.picks(spoke).len(), events, "{zone}");
        }
        assert_eq!(subscribers.position.as_ref(), Some(outgoing.routed.reply.end()));
    }

    #[test]
    fn a_reply_routed_by_former_routes_is_not_distributed() {
        let (mut subscribers, mut outgoing) = subscribers();
        subscribers.set_routes(Routes::default());
        assert!(matches!(subscribers.distribute(&mut outgoing), Distributed::NoLongerRouted));
        assert!(subscribers.attached.values().all(|attached| attached.inbox.try_next().is_none()));
    }

    #[test]
    fn a_reply_that_lacks_a_subscribers_changes_is_not_distributed() {
        let (mut subscribers, mut outgoing) = subscribers();
        outgoing.left_out.insert(Zone::new("DFW"));
        assert!(matches!(subscribers.distribute(&mut outgoing), Distributed::Lacking));
        assert!(subscribers.position.is_none());
    }

    #[test]
    fn an_earlier_attachment_of_a_spoke_ends_with_the_next() {
        let (mut subscribers, _) = subscribers();
        let former = subscribers.attached[&Zone::new("DFW")].inbox.clone();
        subscribers.attach(&Zone::new("DFW"), Arc::new(Inbox::new(Depth::default(), Arc::<Notify>::default())));
        assert!(former.is_detached());
        assert!(subscribers.detach(&Zone::new("DFW")) && !subscribers.detach(&Zone::new("DFW")));
    }

    #[test]
    fn losing_the_place_detaches_everybody() {
        let (mut subscribers, _) = subscribers();
        subscribers.position = Some(at(7));
        subscribers.lose();
        assert!(subscribers.attached.is_empty() && subscribers.position.is_none() && subscribers.lost);
    }
}
