//! The status board: one cell per link, written by the loops. Reading a cell never waits for a server.
//!
//! - [`state`]: the states of a link
//! - [`cell`]: the status of one link
//! - [`spoke`]: the status of one spoke with both links
//! - [`board`]: all cells of the process
//! - [`cluster`]: the processes that share the spokes
//! - [`view`]: the answers of the API
//! - [`history`]: rate and lag of the last ten minutes
//! - [`verification`]: the last verification

pub(crate) mod board;
pub(crate) mod cell;
pub(crate) mod cluster;
pub(crate) mod history;
pub(crate) mod spoke;
pub(crate) mod state;
pub(crate) mod verification;
pub(crate) mod view;

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use board::{Board, Counted};
pub(crate) use cell::{Cell, Letter, SHOWN_LETTERS, Waits};
pub(crate) use spoke::{SpokeCell, Window};
pub(crate) use state::State;

/// Milliseconds since 1970, by the local clock.
fn now_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The present time (RFC 3339).
fn now_text() -> String {
    bson::DateTime::now().try_to_rfc3339_string().unwrap_or_default()
}
