//! What the outside may see: [`status`] cells that the loops write and the HTTP interface reads, and the [`logs`]. [`pulse`] tells
//! whether a loop lives.

pub mod logs;
pub mod pulse;
pub mod status;
