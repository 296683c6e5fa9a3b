//! The program against real replica sets. Each file tests one behaviour; `support` starts the servers and the program.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod anything;
mod bursts;
mod cluster;
mod commands;
mod concurrent;
mod config;
mod control;
mod crash;
mod crossings;
mod dashboard;
mod doors;
mod extremes;
mod faults;
mod fidelity;
mod history;
mod imports;
mod initial;
mod left_out;
mod logs;
mod pressure;
mod process;
mod promise;
mod quiet;
mod refusals;
mod restore;
mod rows;
mod settling;
mod soak;
mod state;
mod support;
mod tls;
mod tokens;
mod trust;
mod upgrade;
mod verify;
