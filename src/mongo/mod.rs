//! Access to MongoDB servers. The modules here read and write; [`crate::rules`] and the links decide on the content.
//!
//! Connections and errors:
//! - [`endpoint`]: the address of one replica set, and the driver's client behind it
//! - [`server`]: one connected replica set: checks that it is suitable, runs commands within a time limit
//! - [`round_trip`], [`throughput`]: measured latency and bandwidth of the connection to a server
//! - [`diagnose`]: the cause when no primary is found; [`crowd`]: a server that names too many members
//! - [`error`]: errors in words, each classified once by the link's reaction; [`words`]: without values of documents
//!
//! Reads:
//! - [`tail`]: a change stream, one reply at a time
//! - [`haste`]: change streams report their positions sooner while somebody waits for them
//! - [`read`]: chosen documents at one cluster time
//! - [`scan`]: a zone's documents in the order of `_id`, a page at a time
//! - [`large_ids`]: documents that no change event can name
//! - [`walk`]: compares two sides of a zone in the order of `_id`
//! - [`digest`]: numbers, sizes and hashes of a zone's documents by bucket, computed by the server
//! - [`oplog`]: asks for the oplog window, and for the newest writes
//!
//! Writes:
//! - [`statement`]: renders steps as write commands
//! - [`transaction`]: runs several commands, all or none
//! - [`destination`]: the transaction that commits a batch with its checkpoint
//! - [`repair`]: the transaction that repairs differing documents
//! - [`trial`]: writes that are tried and given up
//!
//! Own collections, one file each in [`metadata`]:
//! - [`checkpoints`](metadata::checkpoints): the progress of each link
//! - [`sessions`](metadata::sessions): the sessions of spokesync's own transactions
//! - [`dead_letters`](metadata::dead_letters): changes that a destination refuses
//! - [`hub_edits`](metadata::hub_edits): notes of hub edits
//! - [`foreign`](metadata::foreign): documents of other zones at a spoke, which no link may delete
//! - [`set_aside`](metadata::set_aside): copies of documents that a reconcile deletes
//! - [`identity`](metadata::identity): the identity of the replica set
//! - [`verifications`](metadata::verifications): the progress of each verification

mod crowd;
pub(crate) mod destination;
mod diagnose;
pub(crate) mod digest;
pub mod endpoint;
pub mod error;
mod haste;
mod large_ids;
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
pub(crate) mod trial;
pub(crate) mod walk;
pub(crate) mod words;
