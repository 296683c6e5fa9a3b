//! The uplink: a spoke as the source, the hub as the destination.
//!
//! Promise: every change of a document of the spoke's zone reaches the hub once, in order, or becomes a dead letter at
//! the hub. A document without partition key becomes a dead letter if the spoke refuses the key.
//!
//! - [`stream`]: follows the spoke's change stream; [`echoless`]: the stream without our own changes
//! - [`changes`]: converts replies into work for the hub
//! - [`copy`]: the spoke's own zone, to the hub; [`stamp`]: partition keys for documents without a key

mod changes;
mod copy;
mod echoless;
mod stamp;
mod stream;

use std::collections::HashSet;
use std::sync::Arc;

use bson::Timestamp;
use bson::raw::RawDocumentBuf;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::stamp::Stamper;
use self::stream::Following;
use super::apply::work::Commit;
use super::copy::Ended;
use super::lifecycle::{self, Link, Stopped};
use super::pair::Turn;
use super::shared::Shared;
use super::source::{Opening, Source};
use super::{watch_majority, watch_oplog};
use crate::mongo::error::Error;
use crate::mongo::ledger::Ledger;
use crate::mongo::metadata::sessions::Slot;
use crate::mongo::read::{self, Snapshot, Wanted};
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::names::{Direction, Zone};
use crate::rules::past::Restored;
use crate::rules::position::Position;
use crate::rules::step::Rules;
use crate::rules::uplink::{Owner, Uplink};

/// Maximum number of attempts to stamp a document: an application may remove the partition key each time.
const STAMPS: u32 = 5;

/// Runs a spoke's uplink until a request to stop. Fails if a server fails, or if another process takes the link over.
pub(crate) async fn run(spoke: &Shared, stop: &CancellationToken) -> Result<Stopped, Error> {
    lifecycle::run::<SpokeSource>(spoke, stop).await
}

struct SpokeSource {
    rules: Arc<Uplink>,
    server: Server,
    stamper: Stamper,
    /// The hub's cluster time of the uplink's last commit.
    last_push: Timestamp,
    /// The stream that a long copy has opened.
    following: Option<Following>,
    _watching: [AbortOnDropHandle<()>; 2],
}

impl SpokeSource {
    /// Takes the documents without partition key out of the snapshot. Returns their keys.
    fn take_unstamped(&self, snapshot: &mut Snapshot) -> HashSet<Key> {
        let lacks = |document: &RawDocumentBuf| self.rules.owner(document) == Owner::Unstamped;
        let taken = snapshot.documents.extract_if(|_, document| document.as_ref().is_some_and(lacks));
        taken.map(|(key, _)| key).collect()
    }

    /// Records: the hub has everything from the spoke up to `position`.
    fn pushed_up_to(&self, spoke: &Shared, position: &Position) {
        spoke.pair.conflicts().uplink_pushed(position.cluster_time(), self.last_push);
    }
}

impl Source for SpokeSource {
    const DIRECTION: Direction = Direction::Uplink;

    fn sessions(spoke: &Shared) -> (&Slot, Option<&Slot>) {
        (&spoke.pair.uplink_session, Some(&spoke.pair.moves_session))
    }

    async fn open(opening: Opening<'_>) -> Result<(Self, Option<Ledger>), Error> {
        let Opening { spoke, link, source: server, destination, .. } = opening;
        let hub = destination.server();
        let rules = Uplink {
            zone: spoke.zone.clone(),
            partition_key: hub.partition_key().to_owned(),
            precise: server.disambiguates_paths(),
        };
        let stamper = Stamper::new(&server, link, &spoke.pair.stamp_session).await?;
        spoke.pair.foreign.load(&server).await?;
        let watching = [
            watch_oplog::watch(&server, spoke.status.window()),
            watch_majority::watch(&server, spoke.status.link(Direction::Uplink)),
        ];
        let last_push = destination.claimed_at();
        Ok((Self { rules: Arc::new(rules), server, stamper, last_push, following: None, _watching: watching }, None))
    }

    fn server(&self) -> &Server {
        &self.server
    }

    fn rules(&self) -> &dyn Rules {
        &*self.rules
    }

    fn zones(&self) -> Vec<Zone> {
        vec![self.rules.zone.clone()]
    }

    fn compares(&self, _: &Zone, _: Restored) -> bool {
        true
    }

    async fn read(
        &mut self,
        wanted: &Wanted<'_>,
        unstamped: &HashSet<Key>,
        time: Timestamp,
    ) -> Result<Vec<Snapshot>, Error> {
        let mut snapshots = Vec::new();
        let mut unstamped = unstamped.clone();
        let mut others: Wanted<'_> = wanted.clone();
        others.retain(|key, _| !unstamped.contains(key));
        if !others.is_empty() {
            let mut snapshot = read::fitting_documents_at(&self.server, &others, time).await?;
            unstamped.extend(self.take_unstamped(&mut snapshot));
            snapshots.push(snapshot);
        }
        for _ in 0..STAMPS {
            if unstamped.is_empty() {
                return Ok(snapshots);
            }
            let stamped_at = self.stamper.stamp(wanted, &unstamped).await?;
            let mut stamped: Wanted<'_> = wanted.clone();
            stamped.retain(|key, _| unstamped.contains(key));
            let mut snapshot = read::fitting_documents_at(&self.server, &stamped, stamped_at.max(time)).await?;
            unstamped = self.take_unstamped(&mut snapshot);
            snapshots.push(snapshot);
        }
        Err(self.server.failed("stamping documents", 0, "an application takes the partition key away again and again"))
    }

    fn committed(&mut self, spoke: &Shared, commit: &Commit) -> Option<i64> {
        self.last_push = commit.at;
        if let Some(position) = &commit.position {
            self.pushed_up_to(spoke, position);
        }
        None
    }

    async fn copy(link: &mut Link<'_, Self>, only_new: bool, stop: &CancellationToken) -> Result<Ended, Error> {
        link.copy_own_zone(only_new, stop).await
    }

    async fn keep_up(
        link: &mut Link<'_, Self>,
        bound: Timestamp,
        waits: bool,
        stop: &CancellationToken,
    ) -> Result<Option<Stopped>, Error> {
        link.keep_up_with_spoke(bound, waits, stop).await
    }

    async fn stream(link: &mut Link<'_, Self>, stop: &CancellationToken) -> Result<Turn, Error> {
        link.follow_spoke(stop).await
    }

    fn lose_place(&mut self, _: &Shared) {
        self.following = None;
    }
}
