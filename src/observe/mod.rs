//! What the outside may see: [`status`] cells that the loops write and the HTTP interface reads, the [`logs`], and the [`metrics`].
//! [`pulse`] tells whether a loop lives.

pub mod logs;
pub mod metrics;
pub mod pulse;
pub mod status;
