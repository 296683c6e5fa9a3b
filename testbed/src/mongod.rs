//! The `mongod` to run: `$MONGOD`, which the Makefile sets, or the first on the `PATH`.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Finds the path of `mongod`.
///
/// # Errors
/// If neither `$MONGOD` nor the `PATH` has one.
pub fn path() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("MONGOD").filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join("mongod")).find(|file| file.is_file());
    found.context("no mongod found: use make, which gets one, or set $MONGOD to its path")
}
