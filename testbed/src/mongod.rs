//! Which `mongod` to run: `$MONGOD`, which the Makefile sets, or the first on the `PATH`.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The program's path.
///
/// # Errors
/// If there is none.
pub fn path() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("MONGOD").filter(|named| !named.is_empty()) {
        return Ok(named.into());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join("mongod")).find(|file| file.is_file());
    found.context("there is no mongod: run this by make, which gets one, or name one in $MONGOD")
}
