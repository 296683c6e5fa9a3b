//! Everything that talks to a server. Nothing here decides what is to be synced.
//!
//! - [`error`]: what can go wrong, and what is done about it, decided once
//! - [`server`]: one replica set: connecting, checking, running a command within a time; [`round_trip`] and [`throughput`]: how long
//!   and how wide the way to it is
//! - [`tail`]: a change stream, one reply at a time
//! - [`read`]: documents as they are at one cluster time; [`scan`]: a zone's documents in the order of their `_id`
//! - [`digest`]: what buckets of a zone come to, computed by the server; [`repair`]: the transaction that mends what differs;
//!   [`verifications`]: how far a verification is
//! - [`window`]: how far back a change stream can begin
//! - [`tags`]: which sessions are ours; [`checkpoint`]: how far a link is
//! - [`statement`]: steps as the server's write commands; [`transaction`]: several commands, all or none;
//!   [`destination`]: the one transaction that applies a batch with its checkpoint
//! - [`dead_letters`], [`notes`]: what else is saved in that transaction; [`foreign`]: documents that no link may delete;
//!   [`set_aside`]: what a reconcile has deleted

pub(crate) mod destination;
pub(crate) mod digest;
pub mod error;
pub(crate) mod ledger;
pub(crate) mod metadata;
pub(crate) mod oplog;
pub(crate) mod read;
pub(crate) mod repair;
mod round_trip;
pub(crate) mod scan;
pub mod server;
pub(crate) mod statement;
pub mod tail;
mod throughput;
pub(crate) mod transaction;
pub(crate) mod walk;
