//! The source of a link's changes: the part of a link that depends on the direction.
//!
//! The two implementations are [`uplink`](super::uplink) and [`downlink`](super::downlink), folders of the same shape.

use std::collections::HashSet;

use bson::Timestamp;
use tokio_util::sync::CancellationToken;

use super::apply::work::Commit;
use super::copy::Ended;
use super::lifecycle::{Link, Stopped};
use super::pair::Turn;
use super::shared::Shared;
use crate::mongo::destination::Destination;
use crate::mongo::error::Error;
use crate::mongo::ledger::Ledger;
use crate::mongo::metadata::sessions::Slot;
use crate::mongo::read::{Snapshot, Wanted};
use crate::mongo::server::Server;
use crate::rules::key::Key;
use crate::rules::names::{Direction, LinkName, Zone};
use crate::rules::past::Restored;
use crate::rules::step::Rules;

/// Both ends of a link, for [`Source::open`]. The destination is already claimed.
pub(super) struct Opening<'o> {
    pub(super) spoke: &'o Shared,
    pub(super) link: &'o LinkName,
    pub(super) source: Server,
    pub(super) destination: &'o Destination,
    /// The number of streams opened at the hub when the link looked at the servers.
    pub(super) streams: u64,
}

pub(super) trait Source: Sized + Send + Sync {
    const DIRECTION: Direction;

    /// The sessions of the link's transactions: the usual session, and a session for moves if moves need a separate
    /// tag.
    fn sessions(spoke: &Shared) -> (&Slot, Option<&Slot>);

    /// Opens the source. Returns also the ledger of hub edits, if the destination has a ledger.
    fn open(opening: Opening<'_>) -> impl Future<Output = Result<(Self, Option<Ledger>), Error>> + Send;

    fn server(&self) -> &Server;

    /// The rules for documents read whole.
    fn rules(&self) -> &dyn Rules;

    /// The zones of the link's documents at the destination.
    fn zones(&self) -> Vec<Zone>;

    /// True if a zone of the link must be compared after a restore. The change stream brings the changes of the others.
    fn compares(&self, zone: &Zone, restored: Restored) -> bool;

    /// Reads documents at the source as of `time` or later. Documents in `unstamped` first receive a partition key.
    /// Returns [`Error::Refused`] if the source refuses a partition key.
    fn read(
        &mut self,
        wanted: &Wanted<'_>,
        unstamped: &HashSet<Key>,
        time: Timestamp,
    ) -> impl Future<Output = Result<Vec<Snapshot>, Error>> + Send;

    /// Records a committed transaction. Returns the number up to which notes of hub edits are outlived, if any.
    fn committed(&mut self, spoke: &Shared, commit: &Commit) -> Option<i64>;

    /// Copies every part not copied yet, or lost since. With `only_new`, parts copied before wait. After a failure, the
    /// next attempt continues from the checkpoint.
    fn copy(
        link: &mut Link<'_, Self>,
        only_new: bool,
        stop: &CancellationToken,
    ) -> impl Future<Output = Result<Ended, Error>> + Send;

    /// Applies changes of the stream during a copy, until the stream has passed `bound`, a time of the source. Without
    /// `waits`, only changes that wait already. `Some` after a request to stop.
    fn keep_up(
        link: &mut Link<'_, Self>,
        bound: Timestamp,
        waits: bool,
        stop: &CancellationToken,
    ) -> impl Future<Output = Result<Option<Stopped>, Error>> + Send;

    /// Follows the change stream, until the link has another task.
    fn stream(link: &mut Link<'_, Self>, stop: &CancellationToken) -> impl Future<Output = Result<Turn, Error>> + Send;

    /// Reacts to the loss of the link's position.
    fn lose_place(&mut self, spoke: &Shared);
}
