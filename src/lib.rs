//! Keeps one central MongoDB replica set, the hub, and many edge ones, the spokes, in step: each spoke with the zones it
//! needs.
//!
//! ```text
//!   uplink     spoke's change stream → rules::uplink   → one transaction at the hub   (+ checkpoint)
//!   downlink   hub's change stream   → rules::route → queue → rules::downlink → one transaction at the spoke (+ checkpoint)
//! ```
//!
//! - [`config`]: `spokes.toml` and the environment become a valid configuration
//! - [`rules`]: the rules, as functions on values
//! - [`mongo`]: everything that talks to a server
//! - [`link`]: the loops that carry changes, from a change stream to a transaction
//! - [`verify`]: proves that both sides hold the same, or names and mends what differs
//! - [`actors`]: who runs which loop, and what happens when it ends
//! - [`observe`]: what the outside may see; [`http`] and [`cli`] show it
//!
//! Imports go one way: `rules` uses nothing of ours, `config` uses `rules`, `mongo` and `observe` use both, `link` uses all of
//! these, `verify` and `actors` use `link`, and `http` and `cli` come last.

mod actors;
pub mod cli;
pub mod config;
mod http;
mod link;
pub mod mongo;
mod observe;
pub mod rules;
mod verify;
