//! What the outside may see: [`status`] cells that the loops write and the HTTP interface reads, the [`logs`], and the [`metrics`].
//! [`pulse`] tells whether a loop lives.

pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod pulse;
pub(crate) mod status;
