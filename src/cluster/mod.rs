//! The cluster: several processes with the same configuration share the spokes, and take over from each other.
//!
//! ```text
//!  hub: members, leases ◄──► membership (one loop a process) ──► actors: the spokes that the process runs
//!                                 │        rules::share          ▲
//!                                 └──► link::tenure ─────────────┘ asked before a claim and before a commit
//! ```
//!
//! - [`membership`]: the loop; [`round`]: one round: beats, reads members and leases, takes and gives up leases
//! - [`wishes`]: what operators want of spokes that another process runs
//! - [`shown`]: what a process reports of its spokes, and shows of the others
//! - [`desk`]: what the process's other parts tell the loop
//! - [`pace`]: the times that follow from the time of a lease
//! - [`birth`]: telling that another process of the same machine has ended
//!
//! A lease decides who tries to run a spoke. Whose transaction commits is decided by the checkpoint's compare-and-swap,
//! so nothing here can lose or repeat a change.

pub(crate) mod birth;
pub(crate) mod desk;
pub(crate) mod membership;
pub(crate) mod pace;
mod round;
mod shown;
mod wishes;
