//! Our own collections, in the metadata database of each server.

pub mod checkpoints;
pub mod dead_letters;
pub mod foreign;
pub mod hub_edits;
pub mod sessions;
pub mod set_aside;
pub mod verifications;
