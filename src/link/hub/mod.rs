//! The hub's one change stream, for all spokes.
//!
//! - [`feed`]: the stream, with what routing needs; [`routed`]: one reply of it, and what each spoke does about the
//!   reply
//! - [`fanout`]: the loop that gives every spoke its part; [`subscribers`]: the spokes as the fan-out sees them
//! - [`inbox`]: the bounded queue of one spoke; [`left_out`]: own changes that need not come back from the hub

pub(crate) mod fanout;
pub(super) mod feed;
pub(super) mod inbox;
mod left_out;
pub(super) mod routed;
mod subscribers;
