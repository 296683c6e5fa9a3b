//! Writes one rotating file per actor, limited in size and number: `DFW/reader.log` and four older files.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};

use super::NOBODY;
use super::streams::Line;
use crate::config::LogFormat;

/// Size in bytes at which a file is rotated.
const FILE_BYTES: usize = 10_000_000;

/// Number of rotated files kept per actor.
const OLDER_FILES: usize = 4;

/// Permissions of the files: other users of the machine read no log.
const MODE: u32 = 0o640;

pub(super) struct Files {
    directory: PathBuf,
    format: LogFormat,
    open: Mutex<HashMap<Arc<str>, FileRotate<AppendCount>>>,
    /// Lines that could not be written.
    lost: Arc<AtomicU64>,
}

/// Finds out whether files could be written in the directory, or in the folder where the directory would be created.
/// Leaves nothing behind.
pub(super) fn could_write(directory: &Path) -> io::Result<()> {
    let present = directory.ancestors().find(|folder| folder.exists()).unwrap_or(directory);
    let path = present.join(format!(".spokesync-{}", std::process::id()));
    OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
    fs::remove_file(path)
}

impl Files {
    /// Files in the directory, which is created if necessary. Counts in `lost` the lines that cannot be written later.
    ///
    /// # Errors
    /// If the directory cannot be created, or no file can be written there.
    pub(super) fn new(directory: &Path, format: LogFormat, lost: Arc<AtomicU64>) -> io::Result<Self> {
        let files = Self { directory: directory.to_owned(), format, open: Mutex::default(), lost };
        files.file(NOBODY)?;
        Ok(files)
    }

    /// Writes a line to the actor's file. The console shows the line too. A line that cannot be written is counted; the
    /// first one is told on the console.
    pub(super) fn write(&self, line: &Line) {
        if let Err(error) = self.try_write(line)
            && self.lost.fetch_add(1, Ordering::Relaxed) == 0
        {
            eprintln!("log lines are lost: cannot write to {}: {error}", self.directory.display());
        }
    }

    fn try_write(&self, line: &Line) -> io::Result<()> {
        let mut text = match self.format {
            LogFormat::Text => line.to_string(),
            LogFormat::Json => line.to_json().to_string(),
        };
        text.push('\n');
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // A file may be gone meanwhile, with or without its folder: it is opened again.
        let written = match open.get_mut(&line.actor).filter(|_| self.path(&line.actor).is_file()) {
            Some(file) => file.write_all(text.as_bytes()),
            None => self.file(&line.actor).and_then(|mut file| {
                let written = file.write_all(text.as_bytes());
                open.insert(line.actor.clone(), file);
                written
            }),
        };
        if written.is_err() {
            open.remove(&line.actor);
        }
        written
    }

    fn path(&self, actor: &str) -> PathBuf {
        self.directory.join(format!("{actor}.log"))
    }

    /// Opens an actor's file.
    fn file(&self, actor: &str) -> io::Result<FileRotate<AppendCount>> {
        let path = self.path(actor);
        // Errors are seen here: the rotating file hides or panics on them.
        fs::create_dir_all(path.parent().unwrap_or(&self.directory))?;
        let mut options = OpenOptions::new();
        options.read(true).create(true).append(true).mode(MODE);
        // A file of an earlier version may be open to others.
        options.open(&path)?.set_permissions(fs::Permissions::from_mode(MODE))?;
        let limit = ContentLimit::BytesSurpassed(FILE_BYTES);
        Ok(FileRotate::new(path, AppendCount::new(OLDER_FILES), limit, Compression::None, Some(options)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    fn line(actor: &str, message: &str) -> Line {
        Line {
            time: "2026-01-01T00:00:00Z".to_owned(),
            level: Level::INFO,
            actor: actor.into(),
            generation: None,
            message: message.to_owned(),
            fields: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_line_goes_to_its_actors_file_which_other_users_cannot_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Files::new(&folder.path().join("new"), LogFormat::Text, Arc::default()).expect("a folder");
        files.write(&line("DFW/reader", "one"));
        files.write(&line("DFW/reader", "two"));
        let path = folder.path().join("new/DFW/reader.log");
        let text = fs::read_to_string(&path).expect("a file");
        assert_eq!(text.lines().map(|line| line.rsplit(' ').next()).collect::<Vec<_>>(), [Some("one"), Some("two")]);
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o007, 0, "{mode:o}");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_an_error() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(Files::new(&file.path().join("logs"), LogFormat::Json, Arc::default()).is_err());
        assert!(Files::new(file.path(), LogFormat::Json, Arc::default()).is_err());
        assert!(could_write(&file.path().join("logs")).is_err() && could_write(file.path()).is_err());
    }

    #[test]
    fn a_try_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        could_write(&folder.path().join("a/b")).expect("it could");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn a_directory_that_is_gone_loses_lines_until_it_is_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let (directory, lost) = (folder.path().join("logs"), Arc::new(AtomicU64::new(0)));
        let files = Files::new(&directory, LogFormat::Text, lost.clone()).expect("a folder");
        files.write(&line("DFW/reader", "kept"));
        fs::remove_dir_all(&directory).expect("it is there");
        fs::write(&directory, "").expect("a file");
        files.write(&line("DFW/reader", "lost"));
        files.write(&line("HOU/reader", "lost"));
        assert_eq!(lost.load(Ordering::Relaxed), 2);
        fs::remove_file(&directory).expect("it is there");
        files.write(&line("DFW/reader", "back"));
        assert_eq!(lost.load(Ordering::Relaxed), 2);
        let read = || fs::read_to_string(directory.join("DFW/reader.log")).unwrap_or_default();
        assert!(read().contains("back"));
        // The same with the folder of one actor, and with a file in its place.
        fs::remove_dir_all(directory.join("DFW")).expect("it is there");
        files.write(&line("DFW/reader", "again"));
        assert!(read().contains("again"));
        fs::remove_dir_all(directory.join("DFW")).expect("it is there");
        fs::write(directory.join("DFW"), "").expect("a file");
        files.write(&line("DFW/reader", "lost"));
        assert_eq!(lost.load(Ordering::Relaxed), 3);
    }
}
