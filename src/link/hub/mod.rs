//! The hub's single change stream, for all spokes.
//!
//! - [`feed`]: the stream with the facts for routing; [`routed`]: a reply with the actions of each spoke
//! - [`fanout`]: the loop that distributes replies to the spokes; [`subscribers`]: the attached and the waiting spokes
//! - [`inbox`]: the bounded queue of a spoke; [`left_out`]: a spoke's own changes, left out of the stream if not needed

pub(crate) mod fanout;
pub(super) mod feed;
pub(super) mod inbox;
mod left_out;
pub(super) mod routed;
mod subscribers;
