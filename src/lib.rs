//! Keeps a central MongoDB replica set, the hub, in step with many edge replica sets, the spokes. Each spoke holds a
//! configured selection of zones.
//!
//! ```text
//!   uplink    spoke's change stream → rules::uplink → one transaction at the hub, with its checkpoint
//!   downlink  hub's change stream → rules::hub_event, rules::route → a queue for each spoke
//!             → rules::downlink → one transaction at the spoke, with its checkpoint
//! ```
//!
//! - [`config`]: `spokes.toml` and the environment become a valid configuration
//! - [`rules`]: the rules of the sync, as functions on values
//! - [`mongo`]: all communication with servers
//! - [`link`]: the loops of the links, from a change stream to a transaction
//! - [`verify`]: compares all documents of the hub and the spokes; names and repairs differences
//! - [`cluster`]: shares the spokes among several processes
//! - [`actors`]: the supervisors: start and restart the loops
//! - [`observe`]: status, metrics and logs, shown by [`http`] and [`cli`]
//!
//! Imports go in a single direction: `rules` imports no other module, `config` imports `rules`, `mongo` and `observe`
//! import both, `link` and `verify` import all four, `cluster` imports `link` besides, `actors` imports all seven, and
//! `http` and `cli` come last.

mod actors;
pub mod cli;
mod cluster;
pub mod config;
mod http;
mod link;
pub mod mongo;
mod observe;
pub mod rules;
mod verify;
