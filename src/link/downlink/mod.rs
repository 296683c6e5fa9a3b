//! The downlink: the hub as the source, a spoke as the destination.
//!
//! Promise: every change of a held zone reaches the spoke once, in the hub's order, or becomes a dead letter at the
//! spoke.
//!
//! - [`stream`]: follows the hub's change stream, through the fan-out where possible
//! - [`changes`]: converts deliveries into work for the spoke
//! - [`settle`]: decisions about documents that were not found as expected
//! - [`copy`]: the held zones, to the spoke

mod changes;
mod copy;
mod settle;
mod stream;

use std::collections::HashSet;
use std::sync::Arc;

use bson::Timestamp;
use bson::raw::RawDocument;
use tokio_util::sync::CancellationToken;

use super::apply::work::Commit;
use super::copy::Ended;
use super::hub::inbox::Inbox;
use super::lifecycle::{self, Link, Stopped};
use super::pair::Turn;
use super::shared::Shared;
use super::source::{Opening, Source};
use crate::mongo::error::Error;
use crate::mongo::ledger::Ledger;
use crate::mongo::metadata::hub_edits::Edit;
use crate::mongo::metadata::sessions::Slot;
use crate::mongo::read::{self, Snapshot, Wanted};
use crate::mongo::server::Server;
use crate::rules::downlink::Downlink;
use crate::rules::key::Key;
use crate::rules::names::{Direction, Zone};
use crate::rules::past::Restored;
use crate::rules::position::Position;
use crate::rules::route::Routes;
use crate::rules::step::{Meaning, Rules};

/// Runs a spoke's downlink until a request to stop. Fails if a server fails, or if another process takes the link over.
pub(crate) async fn run(spoke: &Shared, stop: &CancellationToken) -> Result<Stopped, Error> {
    lifecycle::run::<HubSource>(spoke, stop).await
}

struct HubSource {
    server: Server,
    rules: HubRules,
    /// The zones held at the start of the link.
    held: Vec<Zone>,
    /// The inbox that a long copy has attached to the fan-out.
    inbox: Option<Arc<Inbox>>,
    /// The number of the hub's stream, or 0, when the link looked at the servers.
    looked_at: u64,
}

/// The rules for the hub's documents at one spoke.
struct HubRules {
    /// The routes of the newest delivery.
    routes: Arc<Routes>,
    /// The spoke's own zone.
    zone: Zone,
    partition_key: String,
}

impl Rules for HubRules {
    fn meaning<'a>(&self, document: Option<&'a RawDocument>, _: bool) -> Meaning<'a> {
        let Some(spoke) = self.routes.owner(self.zone.as_str()) else { return Meaning::Foreign };
        let partition_key = &self.partition_key;
        Downlink { routes: &self.routes, spoke, partition_key, precise: false }.meaning(document)
    }
}

impl HubSource {
    /// True if the spoke holds the same zones by these routes as at the start of the link.
    fn holds_the_same(&self, routes: &Arc<Routes>) -> bool {
        Arc::ptr_eq(routes, &self.rules.routes) || routes.held_by(&self.rules.zone) == self.held
    }
}

impl Source for HubSource {
    const DIRECTION: Direction = Direction::Downlink;

    fn sessions(spoke: &Shared) -> (&Slot, Option<&Slot>) {
        (&spoke.pair.downlink_session, None)
    }

    async fn open(opening: Opening<'_>) -> Result<(Self, Option<Ledger>), Error> {
        let Opening { spoke, link, source: server, destination, streams } = opening;
        let (ledger, notes) = Ledger::load(destination.server(), link, destination.checkpoint()).await?;
        {
            // Own changes may still meet the saved hub edits. The time of the claim replaces the unknown times of the
            // edits.
            let now = destination.claimed_at();
            let mut conflicts = spoke.pair.conflicts();
            conflicts.restart();
            for note in notes {
                match note.edits() {
                    Some(edits) => edits.into_iter().for_each(|(key, fields)| conflicts.record(key, fields, now)),
                    None => conflicts.record_everything(now),
                }
                conflicts.record_note(note.number, now);
            }
        }
        spoke.pair.foreign.load(destination.server()).await?;
        let routes = spoke.fanout.routes();
        let held = routes.held_by(&spoke.zone);
        let (zone, partition_key) = (spoke.zone.clone(), server.partition_key().to_owned());
        Ok((
            Self { server, rules: HubRules { routes, zone, partition_key }, held, inbox: None, looked_at: streams },
            Some(ledger),
        ))
    }

    fn server(&self) -> &Server {
        &self.server
    }

    fn rules(&self) -> &dyn Rules {
        &self.rules
    }

    fn zones(&self) -> Vec<Zone> {
        self.rules.routes.held_by(&self.rules.zone)
    }

    /// The owner's link brings the documents of a watched zone to a restored hub, and so to the spoke. A zone without
    /// an owner has only the hub and its watchers.
    fn compares(&self, zone: &Zone, restored: Restored) -> bool {
        let has_owner = self.rules.routes.owner(zone.as_str()).is_some();
        *zone == self.rules.zone || (restored == Restored::Hub && !has_owner)
    }

    async fn read(&mut self, wanted: &Wanted<'_>, _: &HashSet<Key>, time: Timestamp) -> Result<Vec<Snapshot>, Error> {
        Ok(vec![read::fitting_documents_at(&self.server, wanted, time).await?])
    }

    fn committed(&mut self, spoke: &Shared, commit: &Commit) -> Option<i64> {
        let mut conflicts = spoke.pair.conflicts();
        if !commit.hub_edits.is_empty() {
            for Edit { key, fields, is_uncertain, .. } in &commit.hub_edits {
                conflicts.record(key.clone(), fields.clone(), commit.at);
                if !is_uncertain {
                    conflicts.record_write(key, commit.at);
                }
            }
            conflicts.record_note(commit.number, commit.at);
        }
        let time = commit.position.as_ref().map(Position::cluster_time);
        time.and_then(|time| conflicts.downlink_passed(time))
    }

    async fn copy(link: &mut Link<'_, Self>, only_new: bool, stop: &CancellationToken) -> Result<Ended, Error> {
        link.copy_held_zones(only_new, stop).await
    }

    async fn keep_up(
        link: &mut Link<'_, Self>,
        bound: Timestamp,
        waits: bool,
        stop: &CancellationToken,
    ) -> Result<Option<Stopped>, Error> {
        link.keep_up_with_hub(bound, waits, stop).await
    }

    async fn stream(link: &mut Link<'_, Self>, stop: &CancellationToken) -> Result<Turn, Error> {
        link.follow_hub(stop).await
    }

    fn lose_place(&mut self, spoke: &Shared) {
        self.inbox = None;
        spoke.fanout.detach(&spoke.zone);
    }
}
