//! The hub's one change stream, for all spokes.

pub mod fanout;
pub mod feed;
pub mod inbox;
