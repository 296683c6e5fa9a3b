//! The part of a link that differs by its direction: the source of the changes.
//!
//! The two implementations are [`uplink`](super::uplink) and [`downlink`](super::downlink), folders of the same shape.

use std::collections::HashSet;

use bson::Timestamp;
use tokio_util::sync::CancellationToken;

use super::apply::work::Commit;
use super::copy::Ended;
use super::lifecycle::Link;
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
use crate::rules::step::Rules;

/// The two ends of a link whose destination is claimed, for a source that begins.
pub(super) struct Opening<'o> {
    pub(super) spoke: &'o Shared,
    pub(super) link: &'o LinkName,
    pub(super) source: Server,
    pub(super) destination: &'o Destination,
}

/// The source of a link's changes.
pub(super) trait Source: Sized + Send + Sync {
    const DIRECTION: Direction;

    /// The sessions of the link's transactions: the usual one, and one for moves if they need their own.
    fn sessions(spoke: &Shared) -> (&Slot, Option<&Slot>);

    /// Begins. Returns the ledger of hub edits with the source, if the destination has one.
    fn open(opening: Opening<'_>) -> impl Future<Output = Result<(Self, Option<Ledger>), Error>> + Send;

    fn server(&self) -> &Server;

    /// The rules for documents read whole.
    fn rules(&self) -> &dyn Rules;

    /// The zones in which the destination may have a document of the link.
    fn zones(&self) -> Vec<Zone>;

    /// Reads documents at the source as they were at this time, or later. The documents in `unstamped` get their
    /// partition key first. Returns [`Error::Refused`] if a document cannot have a partition key.
    fn read(
        &mut self,
        wanted: &Wanted<'_>,
        unstamped: &HashSet<Key>,
        time: Timestamp,
    ) -> impl Future<Output = Result<Vec<Snapshot>, Error>> + Send;

    /// A transaction is committed. Returns the number up to which notes of hub edits are outlived, if there are any.
    fn committed(&mut self, spoke: &Shared, commit: &Commit) -> Option<i64>;

    /// Copies whatever the link has not copied, or has lost. With `only_new`, parts copied before wait. Fails if a
    /// server fails; the next attempt continues from the checkpoint.
    fn copy(
        link: &mut Link<'_, Self>,
        only_new: bool,
        stop: &CancellationToken,
    ) -> impl Future<Output = Result<Ended, Error>> + Send;

    /// Follows the change stream, until the link has another task.
    fn stream(link: &mut Link<'_, Self>, stop: &CancellationToken) -> impl Future<Output = Result<Turn, Error>> + Send;

    /// The link has lost its place.
    fn lose_place(&self, spoke: &Shared);
}
