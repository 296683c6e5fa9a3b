//! The links. Each link carries changes from a source's change stream into transactions at a destination, by the rules
//! of [`crate::rules`].
//!
//! ```text
//!  uplink     a spoke's change stream ─► uplink::stream ─┐                       ┌─► transaction at the hub
//!                                                        ├─► apply ─► transaction┤     + checkpoint
//!  downlink   hub::fanout ─► inbox ─► downlink::stream ──┘                       └─► transaction at the spoke
//!
//!             lifecycle: claim ─► anchor ─► ( look ─► copy ─► stream ) until stopped
//! ```
//!
//! - [`lifecycle`]: a link from claim to end, the same for both directions
//! - [`source`]: the difference between the directions; [`uplink`]: a spoke as the source; [`downlink`]: the hub as the
//!   source
//! - [`hub`]: the hub's single change stream, for all spokes
//! - [`apply`]: changes into transactions at the destination
//! - [`copy`]: the first copy of a zone, and the reconcile
//! - [`shared`], [`pair`]: what the two links of one spoke share, and what each must know of the other
//! - [`reached`]: the place up to which a link has carried everything, for the opposite link to wait for
//! - [`servers`]: noticing that a server was restored, or is another one
//! - [`collections`]: noticing that a collection was dropped or renamed; [`foreign`]: documents of other zones at a
//!   spoke
//! - [`unsettled`]: documents that were not found as expected, until the decision about each is taken
//! - [`letters`]: an operator's requests about dead letters; [`retry`]: the retry of one
//! - [`tenure`]: whether the process may run a spoke
//! - [`slow`]: showing that a destination takes long to write
//! - [`watch_oplog`]: the oplog window, for the status; [`watch_majority`]: a majority that confirms nothing
//!
//! A loop ends with an error or on request, and never restarts itself: the supervisor starts a new loop, which
//! continues from the checkpoint.

mod apply;
mod collections;
mod copy;
pub(crate) mod downlink;
mod foreign;
pub(crate) mod hub;
pub(crate) mod letters;
mod lifecycle;
pub(crate) mod pair;
mod parked;
pub(crate) mod reached;
mod retry;
pub(crate) mod servers;
pub(crate) mod shared;
mod slow;
mod source;
pub(crate) mod tenure;
mod unsettled;
pub(crate) mod uplink;
mod watch_majority;
mod watch_oplog;

pub(crate) use lifecycle::Stopped;
pub(crate) use pair::Pair;
pub(crate) use shared::Shared;
