//! Real MongoDB replica sets for spokesync's tests, demo and benchmarks. Each set starts quickly on the loopback
//! interface, keeps its data in a temporary folder, and ends with the process that started the set, even if the process
//! is killed.
//!
//! - [`process`]: child processes that end with this process
//! - [`node`]: a replica set with a single `mongod`
//! - [`set`]: a replica set with three members
//! - [`mongod`]: the path of `mongod`
//! - [`program`]: spokesync as a process
//! - [`proxy`]: a wire to a server, which can be slowed, cut or silenced

pub mod mongod;
pub mod node;
pub mod process;
pub mod program;
pub mod proxy;
pub mod set;
