//! Writes one rotating file per actor, limited in size and number: `DFW/reader.log` and four older files.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};

use super::streams::Line;
use crate::config::LogFormat;

/// Size in bytes at which a file is rotated.
const FILE_BYTES: usize = 10_000_000;

/// Number of rotated files kept per actor.
const OLDER_FILES: usize = 4;

pub(super) struct Files {
    directory: PathBuf,
    format: LogFormat,
    open: Mutex<HashMap<Arc<str>, FileRotate<AppendCount>>>,
}

impl Files {
    pub(super) fn new(directory: &Path, format: LogFormat) -> Self {
        Self { directory: directory.to_owned(), format, open: Mutex::default() }
    }

    /// Writes a line to the actor's file. The console shows the line too, and reports a failure to write.
    pub(super) fn write(&self, line: &Line) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let file = open.entry(line.actor.clone()).or_insert_with(|| {
            let path = self.directory.join(format!("{}.log", line.actor));
            let limit = ContentLimit::BytesSurpassed(FILE_BYTES);
            FileRotate::new(path, AppendCount::new(OLDER_FILES), limit, Compression::None, None)
        });
        let written = match self.format {
            LogFormat::Text => writeln!(file, "{line}"),
            LogFormat::Json => writeln!(file, "{}", line.to_json()),
        };
        if let Err(error) = written {
            eprintln!("cannot write the log of {} in {}: {error}", line.actor, self.directory.display());
        }
    }
}
