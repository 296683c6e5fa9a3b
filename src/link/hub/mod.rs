//! The hub's one change stream, for all spokes.

pub(crate) mod fanout;
pub(crate) mod feed;
pub(crate) mod inbox;
