//! Real MongoDB replica sets for spokesync's tests, demo and benchmarks: started in a moment, on the loopback
//! interface, in a folder that is thrown away, and gone when the process that started them is gone, however that ends.
//!
//! - [`process`]: programs that do not outlive this one
//! - [`node`]: one `mongod` that is a replica set of its own
//! - [`set`]: one of three members
//! - [`mongod`]: which `mongod` to run
//! - [`program`]: spokesync itself
//! - [`proxy`]: a wire that can be broken

pub mod mongod;
pub mod node;
pub mod process;
pub mod program;
pub mod proxy;
pub mod set;
