//! The rules of the sync, as functions on values: no clock, no network, no actor, no random numbers.
//!
//! In the order in which a change meets them:
//! - [`names`]: zones, namespaces, links; [`position`]: places in a change stream
//! - [`batch`]: one server reply of a change stream, decoded no further than the rules need
//! - [`delta`], [`fields`], [`key`]: what an update says, which fields it touches, which document it is about
//! - [`route`]: which spokes a hub event goes to, and as what
//! - [`ahead`], [`conflicts`]: which events a destination has already, or must see again
//! - [`step`]: one change to one document of the destination; [`uplink`] and [`downlink`] decide it
//! - [`plan`]: many steps as few commands; [`attempt`]: what to try when the destination refuses
//! - [`queue`]: the bounded queue between the fan-out and a writer; [`distance`]: how much is sent at once
//! - [`difference`]: in which fields two documents differ

pub(crate) mod ahead;
pub(crate) mod conflicts;
pub(crate) mod copy;
pub(crate) mod delta;
pub(crate) mod difference;
pub(crate) mod downlink;
pub(crate) mod fields;
pub(crate) mod held_back;
pub(crate) mod hub_event;
#[cfg(test)]
mod interleavings;
pub(crate) mod key;
pub(crate) mod ladder;
pub mod names;
pub(crate) mod plan;
pub mod position;
pub(crate) mod queue;
pub mod reply;
pub(crate) mod route;
pub(crate) mod size;
pub(crate) mod step;
pub(crate) mod uplink;
