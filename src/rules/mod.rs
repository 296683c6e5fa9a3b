//! The rules of synchronization, as functions on values: no clock, no network, no actor, no random numbers.
//!
//! A change meets the modules in this order:
//! - [`names`]: zones, namespaces and links. [`position`]: positions in a change stream. [`past`]: servers restored
//!   from a backup
//! - [`reply`]: `Reply`, one server answer of a change stream, decoded no further than the rules need
//! - [`lookup`]: a field of a document. [`delta`], [`fields`], [`key`]: the content of an update, the fields touched,
//!   the identity of the document
//! - [`hub_event`]: the zone of a hub event's document before and after. [`route`]: the spokes that receive the event,
//!   and the action of each
//! - [`ahead`], [`conflicts`]: events already contained in the destination, and documents to refresh after a
//!   concurrent edit
//! - [`step`]: one change to one document of the destination. [`uplink`] and [`downlink`] decide on each step
//! - [`copy`]: the documents of a copy that may be written, deleted or overwritten
//! - [`inference`]: what is set aside when no application has just changed a document
//! - [`plan`]: many steps as few commands. [`ladder`]: the next attempt after a refusal. [`held_back`]: changes that
//!   wait with a dead letter
//! - [`queue`]: the bounded queue between the fan-out and a writer. [`size`]: the size of replies, batches and
//!   commands; [`pressure`]: the size that a struggling destination takes
//! - [`opaque`]: `_id`s that no link can carry, and events that no document can hold. [`shown_id`]: `_id`s for people
//! - [`standstill`]: a replica set whose majority confirms nothing
//! - [`share`]: the spokes that each process of a cluster runs
//! - [`difference`]: the paths at which two documents differ
//!
//! The tests in `interleavings` drive [`ahead`] and [`conflicts`] through random orders of concurrent edits;
//! `crossings` drives [`route`], [`settle`] and [`retry`] through random orders of moves and of equal `_id`s in two
//! zones; `takeovers` drives [`share`] through every order of the steps of a small cluster.

pub(crate) mod ahead;
pub(crate) mod conflicts;
pub(crate) mod copy;
#[cfg(test)]
mod crossings;
pub(crate) mod delta;
pub(crate) mod difference;
pub(crate) mod downlink;
pub(crate) mod fields;
pub(crate) mod held_back;
pub(crate) mod hub_event;
pub(crate) mod inference;
#[cfg(test)]
mod interleavings;
pub(crate) mod key;
pub(crate) mod ladder;
pub(crate) mod lookup;
pub(crate) mod lost;
pub mod names;
pub(crate) mod opaque;
pub(crate) mod order;
pub(crate) mod past;
pub(crate) mod plan;
pub mod position;
pub(crate) mod pressure;
pub(crate) mod queue;
pub mod reply;
pub(crate) mod retry;
pub(crate) mod route;
pub(crate) mod settle;
pub(crate) mod share;
pub(crate) mod shown_id;
pub(crate) mod size;
pub(crate) mod standstill;
pub(crate) mod step;
#[cfg(test)]
mod takeovers;
pub(crate) mod uplink;
