//! Our own collections, in the metadata database of each server.

pub(crate) mod checkpoints;
pub(crate) mod dead_letters;
pub(crate) mod foreign;
pub(crate) mod hub_edits;
pub(crate) mod sessions;
pub(crate) mod set_aside;
pub(crate) mod verifications;
