//! What the outside may see: [`status`] cells that the loops write and the HTTP interface reads, and the [`logs`].

pub mod logs;
pub mod status;
