//! Keeps one central MongoDB replica set, the hub, and many edge replica sets, the spokes, in step: each spoke with the
//! zones it needs.
//!
//! ```text
//!   uplink    spoke's change stream → rules::uplink → one transaction at the hub, with its checkpoint
//!   downlink  hub's change stream → rules::hub_event, rules::route → a queue for each spoke
//!             → rules::downlink → one transaction at the spoke, with its checkpoint
//! ```
//!
//! - [`config`]: `spokes.toml` and the environment become a valid configuration
//! - [`rules`]: the rules of the sync, as functions on values
//! - [`mongo`]: everything that talks to a server
//! - [`link`]: the loops that carry changes, from a change stream to a transaction
//! - [`verify`]: proves that both sides hold the same documents, or names and repairs differences
//! - [`actors`]: starts the loops, and restarts them when they end
//! - [`observe`]: what the outside may see; [`http`] and [`cli`] show it
//!
//! Imports go one way: `rules` uses nothing of ours, `config` uses `rules`, `mongo` and `observe` use both, `link` uses
//! these, `verify` uses them except `link`, `actors` use all of these, and `http` and `cli` come last.

mod actors;
pub mod cli;
pub mod config;
mod http;
mod link;
pub mod mongo;
mod observe;
pub mod rules;
mod verify;
