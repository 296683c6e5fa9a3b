//! The program as seen from outside: [`status`] cells, written by the loops and read by the HTTP interface, the
//! [`logs`], and the [`metrics`]. [`pulse`] shows if a loop is alive.

pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod pulse;
pub(crate) mod status;
